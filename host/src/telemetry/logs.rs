//! Logs of functions: what guests write and what Hob has to say about their invocations.
//!
//! Owns one ring of entries for each function, bounded in bytes, and a feed for those who follow. In memory only: a restart
//! forgets. Invariant: a guest can neither block on its log, nor fill more than its ring, nor write into another function's.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;

use crate::id::{InvocationId, RevisionNumber};
use crate::quota::{LogQuota, Quota};

/// Longest single entry, in bytes; a longer line becomes several entries.
pub const ENTRY_LEN_MAX: usize = 8 << 10;
/// Entries that a slow follower may lag behind before it loses some (and is told how many).
const FEED_LEN: usize = 256;
/// What each function may keep even when the space for all is full, in bytes.
const FLOOR_BYTES: usize = 8 << 10;
/// What an entry costs beside its text, in bytes: an estimate of its other fields and the ring's slot.
const ENTRY_OVERHEAD: usize = 128;

/// Where an entry came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Standard output of the guest.
    Stdout,
    /// Standard error of the guest.
    Stderr,
    /// The SDK's `log`.
    Log,
    /// Hob itself, about an invocation.
    Host,
}

impl Source {
    /// The name that users see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Log => "log",
            Self::Host => "host",
        }
    }
}

/// How serious an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something is odd.
    Warn,
    /// Worth knowing.
    Info,
    /// For the author.
    Debug,
    /// For the author, in detail.
    Trace,
}

impl Level {
    /// The name that users see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// From the number in the handler ABI; what is above 4 counts as trace.
    #[must_use]
    pub fn from_abi(level: u32) -> Self {
        [Self::Error, Self::Warn, Self::Info, Self::Debug].get(level as usize).copied().unwrap_or(Self::Trace)
    }
}

/// One entry of a function's log. Text is the guest's: never trust it, never put it at the start of a line.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Position in the function's log, rising by one; gaps are entries that were dropped.
    pub seq: u64,
    /// Unix time in milliseconds.
    pub time_ms: u64,
    /// Which invocation wrote it.
    pub invocation: InvocationId,
    /// Of which revision.
    pub revision: RevisionNumber,
    /// Where from.
    pub source: Source,
    /// How serious.
    pub level: Level,
    /// What it says: valid UTF-8, one line.
    pub text: String,
}

impl Entry {
    fn cost(&self) -> usize {
        self.text.len() + ENTRY_OVERHEAD
    }
}

/// Room for the logs of all functions together.
#[derive(Debug)]
pub struct LogSpace {
    used: AtomicUsize,
    total_bytes: usize,
    function_bytes: usize,
}

impl LogSpace {
    /// `total_bytes`: of all functions; `function_bytes`: of one.
    #[must_use]
    pub fn new(total_bytes: usize, function_bytes: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), total_bytes, function_bytes })
    }
}

/// The log of one function.
#[derive(Debug)]
pub struct FunctionLog {
    ring: Mutex<Ring>,
    space: Arc<LogSpace>,
    quota: Arc<LogQuota>,
}

#[derive(Debug, Default)]
struct Ring {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    next_seq: u64,
    /// For those who follow; it has some 10 KiB, so it is there while somebody does.
    feed: Option<broadcast::Sender<Arc<Entry>>>,
}

impl FunctionLog {
    /// An empty log, bounded by its share of `space` and by what other functions left of it.
    #[must_use]
    pub fn new(space: Arc<LogSpace>) -> Self {
        Self::of(space, Arc::default())
    }

    /// The same for a function whose tenant may log so much.
    #[must_use]
    pub fn of(space: Arc<LogSpace>, quota: Arc<LogQuota>) -> Self {
        Self { ring: Mutex::default(), space, quota }
    }

    fn ring(&self) -> std::sync::MutexGuard<'_, Ring> {
        // A ring is whole after every statement below, so a poisoned one is still good.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, mut entry: Entry) {
        let mut ring = self.ring();
        entry.seq = ring.next_seq;
        ring.next_seq += 1;
        ring.bytes += entry.cost();
        self.space.used.fetch_add(entry.cost(), Ordering::Relaxed);
        let entry = Arc::new(entry);
        ring.entries.push_back(entry.clone());
        // Whoever writes when the space is full gives up its own oldest entries, never another function's, down to the few that
        // every function may have.
        let is_full = || self.space.used.load(Ordering::Relaxed) > self.space.total_bytes;
        while (ring.bytes > self.space.function_bytes || ring.bytes > FLOOR_BYTES && is_full())
            && let Some(oldest) = ring.entries.pop_front()
        {
            ring.bytes -= oldest.cost();
            self.space.used.fetch_sub(oldest.cost(), Ordering::Relaxed);
        }
        // Sent under the lock so that followers see entries in order.
        if let Some(feed) = &ring.feed
            && feed.send(entry).is_err()
        {
            // Nobody follows any more.
            ring.feed = None;
        }
    }

    /// The newest `count` entries, oldest first.
    #[must_use]
    pub fn tail(&self, count: usize) -> Vec<Arc<Entry>> {
        self.ring().tail(count)
    }

    /// As [`FunctionLog::tail`], and a feed of all that come after: nothing is lost between the two. The feed ends when the log
    /// is dropped.
    #[must_use]
    pub fn follow(&self, count: usize) -> (Vec<Arc<Entry>>, broadcast::Receiver<Arc<Entry>>) {
        let mut ring = self.ring();
        let feed = ring.feed.get_or_insert_with(|| broadcast::channel(FEED_LEN).0).subscribe();
        (ring.tail(count), feed)
    }

    /// Gives back the room that it does not fill, for a function that is not used any more. Returns whether there is anything to
    /// keep: an entry was written, or somebody follows.
    #[must_use]
    pub fn settle(&self) -> bool {
        let mut ring = self.ring();
        ring.entries.shrink_to_fit();
        ring.feed.take_if(|feed| feed.receiver_count() == 0);
        ring.next_seq > 0 || ring.feed.is_some()
    }
}

impl Ring {
    fn tail(&self, count: usize) -> Vec<Arc<Entry>> {
        let skip = self.entries.len().saturating_sub(count);
        self.entries.iter().skip(skip).cloned().collect()
    }
}

impl Drop for FunctionLog {
    fn drop(&mut self) {
        self.space.used.fetch_sub(self.ring().bytes, Ordering::Relaxed);
    }
}

/// Writes the entries of one invocation, and stops the guest's at the limit `log`.
#[derive(Debug)]
pub struct LogSink {
    log: Arc<FunctionLog>,
    invocation: InvocationId,
    revision: RevisionNumber,
    left: AtomicU64,
    dropped: AtomicU64,
    /// Of those, bytes that the tenant's quota had no room for.
    over_quota: AtomicU64,
}

impl LogSink {
    /// A sink into `log` for one invocation; the guest may write `bytes_max` bytes.
    #[must_use]
    pub fn new(log: Arc<FunctionLog>, invocation: InvocationId, revision: RevisionNumber, bytes_max: u64) -> Self {
        Self {
            log,
            invocation,
            revision,
            left: AtomicU64::new(bytes_max),
            dropped: AtomicU64::new(0),
            over_quota: AtomicU64::new(0),
        }
    }

    /// Writes what the guest said. Lines past the limit are dropped and counted; see [`LogSink::finish`].
    pub fn guest(&self, source: Source, level: Level, text: &[u8]) {
        // A guest may write all of its memory at once: what is dropped anyway is not even searched for the end of its line.
        let (text, past) = text.split_at(self.room().min(text.len()));
        self.drop_guest(past.len());
        let mut rest = text.len();
        for line in text.split(|b| *b == b'\n') {
            if self.left.load(Ordering::Relaxed) == 0 {
                self.dropped.fetch_add(rest as u64, Ordering::Relaxed);
                return;
            }
            rest = rest.saturating_sub(line.len() + 1);
            self.guest_line(source, level, &line[..line.len().min(ENTRY_LEN_MAX)]);
            for piece in line.get(ENTRY_LEN_MAX..).unwrap_or_default().chunks(ENTRY_LEN_MAX) {
                self.guest_line(source, level, piece);
            }
        }
    }

    fn guest_line(&self, source: Source, level: Level, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // An empty line costs its overhead too, or a guest could fill the ring for nothing.
        let cost = line.len().max(1) as u64;
        let paid = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(cost));
        if paid.is_err() {
            self.left.store(0, Ordering::Relaxed);
            self.dropped.fetch_add(cost, Ordering::Relaxed);
        } else if !self.log.quota.take(cost) {
            self.over_quota.fetch_add(cost, Ordering::Relaxed);
        } else if !line.is_empty() {
            // Copied before it is looked at: it may lie in memory that is taken away from the guest meanwhile.
            let text = String::from_utf8(line.to_vec());
            let text = text.unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
            self.push(source, level, text);
        }
    }

    /// Writes what Hob says about the invocation; not counted against the guest.
    pub fn host(&self, level: Level, text: impl AsRef<str>) {
        for line in text.as_ref().lines() {
            self.push(Source::Host, level, line.to_owned());
        }
    }

    fn push(&self, source: Source, level: Level, text: String) {
        let time_ms = unix_ms();
        self.log.push(Entry { seq: 0, time_ms, invocation: self.invocation, revision: self.revision, source, level, text });
    }

    /// More bytes of the guest than this are past the limit, whatever lines they are: a line has its end besides, of two bytes at most.
    #[must_use]
    pub fn room(&self) -> usize {
        usize::try_from(self.left.load(Ordering::Relaxed).saturating_add(1).saturating_mul(3)).unwrap_or(usize::MAX)
    }

    /// Counts bytes of the guest that nobody looked at, because they are past the limit.
    pub fn drop_guest(&self, bytes: usize) {
        self.dropped.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes of the guest that were past the limit, so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Says how much was dropped, if anything was. Called once, when the invocation has ended.
    pub fn finish(&self) {
        let over_quota = self.over_quota.load(Ordering::Relaxed);
        if over_quota > 0 {
            let most = Quota::LogBytesPerMinute.show(self.log.quota.most());
            self.host(
                Level::Warn,
                format!(
                    "{over_quota} bytes of this invocation's log were dropped: the tenant has used up its quota log_bytes_per_minute of {most}; its operator may raise it"
                ),
            );
        }
        let dropped = self.dropped();
        if dropped > 0 {
            self.host(
                Level::Warn,
                format!("{dropped} bytes of this invocation's log were dropped: it passed its limit; raise 'log' in [limits]"),
            );
        }
    }
}

/// Unix time in milliseconds; 0 before 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink(log: &Arc<FunctionLog>, limit: u64) -> LogSink {
        LogSink::new(log.clone(), InvocationId::new(0, 0), RevisionNumber(1), limit)
    }

    fn texts(log: &FunctionLog) -> Vec<String> {
        log.tail(usize::MAX).iter().map(|entry| entry.text.clone()).collect()
    }

    #[test]
    fn lines_become_entries_and_long_ones_are_split() {
        let log = Arc::new(FunctionLog::new(LogSpace::new(1 << 20, 1 << 20)));
        sink(&log, 1 << 20).guest(Source::Stdout, Level::Info, b"one\r\ntwo\n\nfour \xff\n");
        assert_eq!(texts(&log), ["one", "two", "four \u{fffd}"]);
        sink(&log, 1 << 20).guest(Source::Log, Level::Info, &vec![b'x'; ENTRY_LEN_MAX + 1]);
        assert_eq!(texts(&log)[4], "x");
    }

    #[test]
    fn the_limit_holds_on_both_sides_and_is_told() {
        let log = Arc::new(FunctionLog::new(LogSpace::new(1 << 20, 1 << 20)));
        let exact = sink(&log, 6);
        exact.guest(Source::Log, Level::Info, b"abcdef");
        exact.finish();
        assert_eq!(texts(&log), ["abcdef"]);
        let over = sink(&log, 5);
        over.guest(Source::Log, Level::Info, b"abcdef");
        over.guest(Source::Log, Level::Info, b"x");
        over.finish();
        assert_eq!(texts(&log).len(), 2);
        assert!(texts(&log)[1].starts_with("7 bytes"), "{:?}", texts(&log));
    }

    #[test]
    fn the_quota_of_the_tenant_holds_on_both_sides_and_is_told_in_one_line() {
        let quota = Arc::new(LogQuota::default());
        quota.set(6);
        let log = Arc::new(FunctionLog::of(LogSpace::new(1 << 20, 1 << 20), quota.clone()));
        let sink = sink(&log, 1 << 20);
        sink.guest(Source::Log, Level::Info, b"abcdef");
        assert_eq!(texts(&log), ["abcdef"]);
        sink.guest(Source::Log, Level::Info, b"ghijkl");
        sink.guest(Source::Log, Level::Info, b"ghijkl");
        sink.finish();
        assert_eq!(texts(&log).len(), 2);
        assert!(texts(&log)[1].contains("12 bytes") && texts(&log)[1].contains("log_bytes_per_minute of 6"), "{:?}", texts(&log));
        assert_eq!(quota.refused(), 2);
    }

    #[test]
    fn a_feed_lasts_as_long_as_somebody_follows() {
        let log = Arc::new(FunctionLog::new(LogSpace::new(1 << 20, 1 << 20)));
        let sink = sink(&log, 1 << 20);
        assert!(!log.settle());
        let (before, mut feed) = log.follow(10);
        assert!(before.is_empty() && log.settle(), "somebody follows");
        sink.guest(Source::Log, Level::Info, b"a");
        assert_eq!(feed.try_recv().unwrap().text, "a");
        let (before, mut second) = log.follow(10);
        assert_eq!(before.len(), 1);
        drop(feed);
        sink.guest(Source::Log, Level::Info, b"b");
        assert_eq!(second.try_recv().unwrap().text, "b");
        drop(second);
        sink.guest(Source::Log, Level::Info, b"c");
        assert!(log.ring().feed.is_none() && log.settle(), "its entries stay");
        let (_, mut third) = log.follow(0);
        drop((sink, log));
        assert_eq!(third.try_recv().unwrap_err(), broadcast::error::TryRecvError::Closed);
    }

    #[test]
    fn the_ring_keeps_the_newest() {
        let log = Arc::new(FunctionLog::new(LogSpace::new(1 << 20, 10 * (ENTRY_OVERHEAD + 1))));
        let sink = sink(&log, 1 << 20);
        for number in 0..25 {
            sink.guest(Source::Log, Level::Info, &[b'a' + number]);
        }
        assert_eq!(texts(&log).len(), 10);
        assert_eq!(log.tail(1)[0].seq, 24);
    }

    #[test]
    fn the_space_is_shared_and_given_back() {
        let fits = 2 * FLOOR_BYTES / (ENTRY_OVERHEAD + 1);
        let space = LogSpace::new(2 * FLOOR_BYTES, 1 << 20);
        let (first, second) = (Arc::new(FunctionLog::new(space.clone())), Arc::new(FunctionLog::new(space.clone())));
        for _ in 0..2 * fits {
            sink(&first, 100).guest(Source::Log, Level::Info, b"a");
        }
        assert_eq!(texts(&first).len(), fits);
        for _ in 0..2 * fits {
            sink(&second, 100).guest(Source::Log, Level::Info, b"b");
        }
        let floor = FLOOR_BYTES / (ENTRY_OVERHEAD + 1);
        assert_eq!((texts(&first).len(), texts(&second).len()), (fits, floor), "the full space takes nothing from a neighbour");
        drop(first);
        assert_eq!(space.used.load(Ordering::Relaxed), floor * (ENTRY_OVERHEAD + 1));
    }
}

//! Feeds: what changes in a bucket's entries, for those who watch it.
//!
//! Owns who watches. Knows nothing about where entries lie: whoever commits says what it did. A change is told after its commit, so that
//! who hears of it and reads finds it, and before the write is acknowledged. What expires or is evicted is not told: nobody wrote it.
//! Invariant: a feed that nobody watches costs a write one atomic load; one that is watched holds [`FEED_LEN`] changes at most, and a
//! reader that is slower is told how many it missed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::broadcast::{self, Receiver, Sender};

use super::kv::Done;

/// Changes that wait for a slow reader; then it misses the oldest.
pub const FEED_LEN: usize = 1024;

/// A change of one entry, committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The key.
    pub key: Bytes,
    /// The entry's version now, `None` if it was deleted.
    pub version: Option<u64>,
}

/// Who watches one bucket.
#[derive(Debug, Default)]
pub(super) struct Feed {
    /// Whether there may be a sender; changed under the lock.
    watched: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sender: Option<Sender<Changed>>,
    ended: bool,
}

impl Feed {
    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every change that is committed from now on; closed at once if the bucket is gone.
    pub(super) fn watch(&self) -> Receiver<Changed> {
        let mut state = self.lock();
        if state.ended {
            return broadcast::channel(1).1;
        }
        self.watched.store(true, Ordering::SeqCst);
        state.sender.get_or_insert_with(|| broadcast::channel(FEED_LEN).0).subscribe()
    }

    /// Whether somebody may be watching.
    pub(super) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::SeqCst)
    }

    /// Tells what a batch did, operation by operation.
    pub(super) fn tell(&self, keys: &[Bytes], done: &[Done]) {
        if !self.is_watched() {
            return;
        }
        let mut state = self.lock();
        let Some(sender) = &state.sender else { return };
        for (key, done) in keys.iter().zip(done) {
            let version = match done {
                Done::Set { version } | Done::Incremented { version, .. } => Some(*version),
                Done::Deleted { found: true } => None,
                Done::Deleted { found: false } => continue,
            };
            // A copy that holds on to nothing else: the key may be a piece of something much larger.
            let key = Bytes::copy_from_slice(key);
            if sender.send(Changed { key, version }).is_err() {
                // The last reader has gone.
                state.sender = None;
                self.watched.store(false, Ordering::SeqCst);
                return;
            }
        }
    }

    /// The bucket was deleted: readers get what waits for them, then the end.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        (state.sender, state.ended) = (None, true);
        self.watched.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;

    fn key(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn changes_are_told_in_order_and_what_changed_nothing_is_not() {
        let feed = Feed::default();
        let mut seen = feed.watch();
        let done = [
            Done::Set { version: 1 },
            Done::Deleted { found: false },
            Done::Deleted { found: true },
            Done::Incremented { value: 1, version: 2 },
        ];
        feed.tell(&["a", "b", "c", "d"].map(key), &done);
        for (name, version) in [("a", Some(1)), ("c", None), ("d", Some(2))] {
            assert_eq!(seen.try_recv(), Ok(Changed { key: key(name), version }));
        }
        assert_eq!(seen.try_recv(), Err(TryRecvError::Empty));
    }

    #[test]
    fn nobody_is_told_once_the_last_reader_left() {
        let feed = Feed::default();
        assert!(!feed.is_watched());
        drop(feed.watch());
        assert!(feed.is_watched());
        feed.tell(&[key("a")], &[Done::Set { version: 1 }]);
        assert!(!feed.is_watched(), "the first change notices");
        let mut seen = feed.watch();
        feed.tell(&[key("a")], &[Done::Set { version: 2 }]);
        assert_eq!(seen.try_recv().unwrap().version, Some(2));
    }

    #[test]
    fn a_slow_reader_is_told_how_many_it_missed() {
        let feed = Feed::default();
        let mut seen = feed.watch();
        for version in 0..FEED_LEN as u64 + 7 {
            feed.tell(&[key("a")], &[Done::Set { version }]);
        }
        assert_eq!(seen.try_recv(), Err(TryRecvError::Lagged(7)));
        assert_eq!(seen.try_recv().unwrap().version, Some(7));
    }

    #[test]
    fn the_end_of_a_bucket_ends_its_feed() {
        let feed = Feed::default();
        let mut seen = feed.watch();
        feed.tell(&[key("a")], &[Done::Set { version: 1 }]);
        feed.end();
        assert!(seen.try_recv().is_ok());
        assert_eq!(seen.try_recv(), Err(TryRecvError::Closed));
        assert_eq!(feed.watch().try_recv(), Err(TryRecvError::Closed));
    }
}

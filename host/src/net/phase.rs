//! What a connection is doing, as its parts see it.
//!
//! hyper owns the stream, the service and the bodies of a connection and tells nobody which of them it waits for. Each of them
//! notes here what it knows, and the timers ask, as does the port that needs the place of one that waits. Invariant: a connection waits
//! for a head exactly when no response is under way, all that hyper wrote has left its buffers, and nobody holds a request's body.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::task::Waker;

use http::Version;

/// From the call of the service until the response's body was handed to hyper in full.
const ANSWERING: u8 = 1;
/// Somebody holds the request's body.
const BODY_HELD: u8 = 1 << 1;
/// hyper's buffers hold bytes of a response.
const UNFLUSHED: u8 = 1 << 2;
/// A request's body was dropped before its end, so input is left over.
const UNREAD: u8 = 1 << 3;
/// The response's body broke off.
const CUT: u8 = 1 << 4;
/// What the response had before it broke off has left hyper's buffers.
const CUT_FLUSHED: u8 = 1 << 5;
/// A request was HTTP/1.0, whose responses may end with the connection.
const OLD: u8 = 1 << 6;
/// A request's body had trailers: the connection takes no other request.
const TRAILED: u8 = 1 << 7;

/// Shared by the parts of one connection, which mostly run in one task, and its port; nothing but the bits themselves is published by
/// them, so relaxed order is enough.
#[derive(Debug, Default)]
pub(super) struct Phase {
    bits: AtomicU8,
    requests: AtomicU32,
    /// Some of the next head has come.
    head_begun: AtomicBool,
    /// Its place is wanted for another connection.
    is_wanted: AtomicBool,
    /// Its task.
    task: OnceLock<Waker>,
    /// Where the connection comes from.
    pub(super) peer: Option<IpAddr>,
}

impl Phase {
    /// Of a connection from this address.
    pub(super) fn of(peer: Option<IpAddr>) -> Self {
        Self { peer, ..Self::default() }
    }

    fn has(&self, bits: u8) -> bool {
        self.bits.load(Relaxed) & bits != 0
    }

    /// A request's head is complete.
    pub(super) fn begin(&self, version: Version) {
        let old = if version == Version::HTTP_11 { 0 } else { OLD };
        self.bits.fetch_or(ANSWERING | UNFLUSHED | old, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        self.head_begun.store(false, Relaxed);
        self.keep_place();
    }

    /// Something was read from the stream. While nobody holds a body it belongs to the next head.
    pub(super) fn read(&self) {
        if !self.has(BODY_HELD) {
            self.head_begun.store(true, Relaxed);
        }
    }

    /// Whether some of the next head has come. What hyper read together with the end of a body does not show.
    pub(super) fn is_head_begun(&self) -> bool {
        self.head_begun.load(Relaxed)
    }

    /// The response's body is with hyper, or given up.
    pub(super) fn answered(&self) {
        self.bits.fetch_and(!ANSWERING, Relaxed);
    }

    pub(super) fn hold_body(&self) {
        self.bits.fetch_or(BODY_HELD, Relaxed);
    }

    pub(super) fn release_body(&self, at_end: bool) {
        self.bits.fetch_and(!BODY_HELD, Relaxed);
        if !at_end {
            self.bits.fetch_or(UNREAD, Relaxed);
        }
    }

    /// A request's body had trailers. hyper lets lines of theirs end as it would not let a chunk's end, so others may see the end of the
    /// request elsewhere, and nothing behind it is believed.
    pub(super) fn trailed(&self) {
        self.bits.fetch_or(TRAILED, Relaxed);
    }

    pub(super) fn is_trailed(&self) -> bool {
        self.has(TRAILED)
    }

    /// The response's body broke off.
    pub(super) fn cut(&self) {
        self.bits.fetch_or(CUT, Relaxed);
    }

    /// hyper's buffers are empty. Returns whether a cut was waiting for that.
    pub(super) fn flushed(&self) -> bool {
        let bits = self.bits.load(Relaxed);
        if bits & (ANSWERING | UNFLUSHED) == UNFLUSHED {
            self.bits.fetch_and(!UNFLUSHED, Relaxed);
        }
        bits & (CUT | CUT_FLUSHED) == CUT && self.bits.fetch_or(CUT_FLUSHED, Relaxed) & CUT_FLUSHED == 0
    }

    pub(super) fn is_cut_flushed(&self) -> bool {
        self.has(CUT_FLUSHED)
    }

    /// Whether a response broke off.
    pub(super) fn is_cut(&self) -> bool {
        self.has(CUT)
    }

    /// Whether a response of HTTP/1.0 broke off, which its client could take for the end.
    pub(super) fn is_cut_unmarked(&self) -> bool {
        self.bits.load(Relaxed) & (CUT | OLD) == CUT | OLD
    }

    pub(super) fn is_unread(&self) -> bool {
        self.has(UNREAD)
    }

    /// Whether a response is under way and some of the request's body may be left unread.
    pub(super) fn leaves_input(&self) -> bool {
        let bits = self.bits.load(Relaxed);
        bits & ANSWERING != 0 && bits & (BODY_HELD | UNREAD) != 0
    }

    /// Whether the connection waits for a head.
    pub(super) fn is_waiting(&self) -> bool {
        !self.has(ANSWERING | BODY_HELD | UNFLUSHED)
    }

    /// Whether no response is under way: what hyper writes now is an answer of its own to a broken head.
    pub(super) fn is_silent(&self) -> bool {
        !self.has(ANSWERING | UNFLUSHED)
    }

    /// How many requests began: tells one wait for a head from the next.
    pub(super) fn requests(&self) -> u32 {
        self.requests.load(Relaxed)
    }

    /// Has the connection's task woken by [`Phase::want_place`]. A task has one waker from its begin to its end, so once is enough.
    pub(super) fn register(&self, task: &Waker) {
        self.task.get_or_init(|| task.clone());
        // Whoever asks finds the task, or the task finds that it was asked.
        fence(SeqCst);
    }

    /// Asks the connection to end, unless a request of it turns out to be there. False if it was asked already.
    pub(super) fn want_place(&self) -> bool {
        let first = !self.is_wanted.swap(true, Relaxed);
        fence(SeqCst);
        if first && let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
        first
    }

    /// Whether its place is wanted.
    pub(super) fn is_wanted(&self) -> bool {
        self.is_wanted.load(Relaxed)
    }

    /// A request of it is there: it stays, until it is asked again.
    pub(super) fn keep_place(&self) {
        self.is_wanted.store(false, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn each_time_that_a_place_is_wanted_its_task_is_woken_once() {
        let (phase, woken) = (Phase::default(), Arc::new(Woken::default()));
        assert!(phase.want_place() && phase.is_wanted(), "before there is a task, which looks when it begins");
        phase.keep_place();
        phase.register(&woken.clone().into());
        for count in 1..4 {
            assert!(phase.want_place() && !phase.want_place());
            assert_eq!(woken.0.load(Relaxed), count);
            phase.begin(Version::HTTP_11);
            assert!(!phase.is_wanted(), "its request is there");
        }
    }
}

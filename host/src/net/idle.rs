//! A timer for silences that costs nothing while there are none.
//!
//! Owns when a silence began and when it is too long. Knows nothing about what is silent. Invariant: the runtime's timer is
//! touched at most once per silence, or twice if its time is a shorter one, and not at all by [`Idle::progress`].

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

#[derive(Debug)]
pub(super) struct Idle {
    timeout: Duration,
    since: Option<Instant>,
    /// May be set for an earlier silence: what it fires for is then checked against `since`.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, since: None, sleep: None }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Something happened: the next silence begins anew.
    pub(super) fn progress(&mut self) {
        self.since = None;
    }

    /// As [`Idle::progress`]; how long the silence was that ends here. The clock is read only if there was one.
    pub(super) fn end(&mut self) -> Duration {
        self.since.take().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// To be called when nothing happened. Ready once that has gone on for `timeout`.
    pub(super) fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_silence_of(self.timeout, cx)
    }

    /// The same with a time for this silence alone, of at most `timeout`.
    pub(super) fn poll_silence_of(&mut self, timeout: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let due = since + timeout.min(self.timeout);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if sleep.deadline() > due {
            sleep.as_mut().reset(due);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(due);
        }
    }
}

//! Telling every connection to finish.
//!
//! Owns the signal. Knows nothing about who waits for it. Invariant: a [`Stop`] that has stopped stays so, and so does every
//! copy of it, made before or after.

use tokio::sync::watch;

/// The end that gives the order. Dropping it gives the order too, so that no connection outlives whoever would stop it.
#[derive(Debug)]
pub struct Drain(watch::Sender<bool>);

/// The end that hears it. Copies are cheap to keep and cheap to ask.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Drain {
    /// A pair.
    #[must_use]
    pub fn new() -> (Self, Stop) {
        let (tx, rx) = watch::channel(false);
        (Self(tx), Stop(rx))
    }

    /// Asks everybody to accept nothing new and to finish what they have.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    /// One more end that hears.
    #[must_use]
    pub fn subscribe(&self) -> Stop {
        // `watch::Sender::subscribe` would count an order that was given already as seen: `is_stopped` looks at just that. A
        // receiver of a new value is therefore told again.
        let stop = Stop(self.0.subscribe());
        if *self.0.borrow() {
            self.0.send_replace(true);
        }
        stop
    }
}

impl Stop {
    /// Whether the order was given. One atomic load: connections ask each time they run.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        // The first change is the order, and no method here marks it as seen.
        self.0.has_changed().unwrap_or(true)
    }

    /// Waits for the order.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn stopped(&self) {
        let mut rx = self.0.clone();
        // An error means that `Drain` is gone, which is the order too.
        let _stopped = rx.wait_for(|stopped| *stopped).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_order_reaches_copies_from_before_and_after() {
        let (drain, stop) = Drain::new();
        let before = stop.clone();
        assert!(!stop.is_stopped());
        drain.stop();
        let after = stop.clone();
        for stop in [stop, before, after, drain.subscribe()] {
            assert!(stop.is_stopped());
            stop.stopped().await;
        }
    }

    #[tokio::test]
    async fn nobody_left_to_give_the_order_is_the_order() {
        let (drain, stop) = Drain::new();
        drop(drain);
        assert!(stop.is_stopped());
        stop.stopped().await;
    }
}

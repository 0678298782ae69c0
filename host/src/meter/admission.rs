//! Admission: how many run at once, and who waits for how long.
//!
//! Owns one bounded place to wait in front of one bounded number of places to run. Invariant: at most `running` permits exist
//! and at most `waiting` callers wait, each for at most `wait`; at most as many as both wait aside for what they would run; everyone
//! else is refused at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A place to run, given back when dropped.
pub type Permit = OwnedSemaphorePermit;

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// All places are taken and so are all places to wait.
    #[error("the queue is full")]
    QueueFull,
    /// No place became free in time.
    #[error("no place became free in time")]
    TimedOut,
    /// As many as may run and wait are there already, and wait for what they would run.
    #[error("too many wait for what they would run")]
    AsideFull,
}

/// Places to run with a queue in front of them.
#[derive(Debug)]
pub struct Admission {
    places: Arc<Semaphore>,
    running_max: usize,
    waiting: AtomicUsize,
    waiting_max: usize,
    wait: Duration,
    aside: AtomicUsize,
}

impl Admission {
    /// `running`: places, at least 1; `waiting`: callers that may wait, 0 for none; `wait`: how long each may.
    #[must_use]
    pub fn new(running: usize, waiting: usize, wait: Duration) -> Self {
        let running_max = running.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(running_max)),
            running_max,
            waiting: AtomicUsize::new(0),
            waiting_max: waiting,
            wait,
            aside: AtomicUsize::new(0),
        }
    }

    /// A place, if one is free now.
    #[must_use]
    pub fn try_admit(&self) -> Option<Permit> {
        self.places.clone().try_acquire_owned().ok()
    }

    /// A place, at once or after waiting.
    ///
    /// # Errors
    /// [`AdmissionError`] when the queue is full (at once) or the wait is over.
    /// # Cancellation
    /// Dropping the future leaves the queue.
    pub async fn admit(&self) -> Result<Permit, AdmissionError> {
        if let Some(permit) = self.try_admit() {
            return Ok(permit);
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.waiting_max {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(AdmissionError::QueueFull);
        }
        let _waits = Waits(&self.waiting);
        self.in_time().await
    }

    /// For who has nothing to run yet: it waits without a place, and asks for one with what this gives.
    ///
    /// # Errors
    /// [`AdmissionError::AsideFull`], at once.
    pub fn aside(&self) -> Result<Waits<'_>, AdmissionError> {
        let before = self.aside.fetch_add(1, Ordering::Relaxed);
        let waits = Waits(&self.aside);
        if before >= self.running_max.saturating_add(self.waiting_max) {
            return Err(AdmissionError::AsideFull);
        }
        Ok(waits)
    }

    /// A place for one who waited aside, at once or after waiting. It needs no place in the queue: the one that it has is given up when it has one
    /// to run. `aside`: of this admission.
    ///
    /// # Errors
    /// [`AdmissionError::TimedOut`].
    /// # Cancellation
    /// As [`Admission::admit`].
    pub async fn admit_from(&self, aside: Waits<'_>) -> Result<Permit, AdmissionError> {
        let permit = self.in_time().await;
        drop(aside);
        permit
    }

    async fn in_time(&self) -> Result<Permit, AdmissionError> {
        match tokio::time::timeout(self.wait, self.places.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(AdmissionError::TimedOut),
        }
    }

    /// How many run and how many wait, for a place or aside.
    #[must_use]
    pub fn occupancy(&self) -> (usize, usize) {
        let running = self.running_max.saturating_sub(self.places.available_permits());
        (running, self.waiting.load(Ordering::Relaxed) + self.aside.load(Ordering::Relaxed))
    }
}

/// One who waits, for as long as this lives.
#[derive(Debug)]
#[must_use = "it counts for as long as it lives"]
pub struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn places_then_queue_then_refusal() {
        let admission = Arc::new(Admission::new(1, 1, Duration::from_secs(60)));
        let running = admission.admit().await.unwrap();
        let waiter = tokio::spawn({
            let admission = admission.clone();
            async move { admission.admit().await.map(drop) }
        });
        while admission.occupancy() != (1, 1) {
            tokio::task::yield_now().await;
        }
        assert_eq!(admission.admit().await.unwrap_err(), AdmissionError::QueueFull);
        drop(running);
        waiter.await.unwrap().unwrap();
        assert_eq!(admission.occupancy(), (0, 0));
    }

    #[tokio::test]
    async fn as_many_wait_aside_as_run_and_wait() {
        let admission = Admission::new(1, 2, Duration::from_millis(1));
        let aside: Vec<_> = (0..3).map(|_| admission.aside().unwrap()).collect();
        assert_eq!(admission.aside().err(), Some(AdmissionError::AsideFull));
        assert_eq!(admission.occupancy(), (0, 3));
        let running = admission.try_admit().unwrap();
        drop(aside);
        assert_eq!(admission.occupancy(), (1, 0));
        // Its place to run is not one of the queue's.
        let (aside, none) = (admission.aside().unwrap(), Admission::new(1, 0, Duration::from_secs(60)));
        assert_eq!(admission.admit_from(aside).await.unwrap_err(), AdmissionError::TimedOut);
        drop(running);
        let taken = none.try_admit().unwrap();
        let (first, ()) = tokio::join!(none.admit_from(none.aside().unwrap()), async {
            assert_eq!(none.admit().await.unwrap_err(), AdmissionError::QueueFull);
            drop(taken);
        });
        assert!(first.is_ok());
        assert_eq!(none.occupancy().1, 0);
    }

    #[tokio::test]
    async fn waiting_ends_and_leaves_the_queue() {
        let admission = Admission::new(1, 1, Duration::from_millis(1));
        let _running = admission.admit().await.unwrap();
        assert_eq!(admission.admit().await.unwrap_err(), AdmissionError::TimedOut);
        assert_eq!(admission.occupancy(), (1, 0));
    }
}

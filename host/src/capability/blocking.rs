//! Work for guests on threads that may block: the bytes of objects on their way to and from the disk.
//!
//! Owns the bounds on how much of it there is at once. Knows nothing about what is done. Invariant: who waits for a place is a future
//! that ends with its guest; only what has a place goes on after that, and it is at most [`JOBS_MAX`] in a process, and
//! [`JOBS_ELSEWHERE_MAX`] that wait for another machine.

use tokio::sync::Semaphore;
use wasmtime::Result;

use crate::data::objects::Place;
use crate::limits::BLOCKING_THREADS_MAX;

/// Jobs that run at once in a process and wait for nothing but this node's disk.
pub const JOBS_MAX: usize = 16;
/// Jobs that run at once in a process and may wait for an origin: it may be slow, and the disk's jobs do not wait for it.
pub const JOBS_ELSEWHERE_MAX: usize = 8;
/// Values that wait to be dropped; whoever has one more drops it itself.
pub const DISCARDS_MAX: usize = 1024;

// All of them may come to run on one data thread. The rest is left for loading templates and for the files of WASI.
const _: () = assert!(JOBS_MAX + JOBS_ELSEWHERE_MAX < BLOCKING_THREADS_MAX);

static DISK: Semaphore = Semaphore::const_new(JOBS_MAX);
static ELSEWHERE: Semaphore = Semaphore::const_new(JOBS_ELSEWHERE_MAX);
static DISCARDS: Semaphore = Semaphore::const_new(DISCARDS_MAX);

/// Runs `job`, which waits for the disk at most, on a thread that may block.
///
/// # Errors
/// As [`run_at`].
///
/// # Cancellation
/// As [`run_at`].
pub async fn run<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    run_at(Place::Disk, job).await
}

/// Runs `job`, about objects in `place`, on a thread that may block.
///
/// # Errors
/// If it panicked: a bug of ours.
///
/// # Cancellation
/// Dropping it before `job` began undoes it; later `job` goes on to its end, and what it answers is dropped on its thread.
pub async fn run_at<T: Send + 'static>(place: Place, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let places = match place {
        Place::Memory | Place::Disk => &DISK,
        Place::Elsewhere => &ELSEWHERE,
    };
    // Nobody closes it.
    let place = places.acquire().await?;
    let run = move || {
        let _place = place;
        job()
    };
    Ok(tokio::task::spawn_blocking(run).await?)
}

/// Drops what may take long to be dropped on a thread that may block, for which nobody waits. Here where there is no runtime, or
/// [`DISCARDS_MAX`] wait already: then who makes more of them waits for each.
pub fn discard<T: Send + 'static>(value: T) {
    match (tokio::runtime::Handle::try_current(), DISCARDS.try_acquire()) {
        (Ok(runtime), Ok(place)) => drop(runtime.spawn_blocking(move || drop((value, place)))),
        (Err(_), _) | (_, Err(_)) => drop(value),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, mpsc};

    use super::*;

    #[test]
    fn at_most_so_many_jobs_run_at_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(64).build().unwrap();
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        runtime.block_on(async {
            let jobs = (0..4 * JOBS_MAX).map(|_| {
                let (running, most) = (running.clone(), most.clone());
                run(move || {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::yield_now();
                    running.fetch_sub(1, Ordering::SeqCst);
                })
            });
            for done in futures_util::future::join_all(jobs).await {
                done.unwrap();
            }
        });
        assert!((1..=JOBS_MAX).contains(&most.load(Ordering::SeqCst)));
    }

    #[test]
    fn a_job_that_nobody_waits_for_any_more_gives_its_place_back() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (go, wait) = mpsc::sync_channel::<()>(0);
            let (began, has_begun) = tokio::sync::oneshot::channel();
            let job = run(move || {
                let _sent = began.send(());
                let _told = wait.recv();
            });
            tokio::select! {
                _ = job => panic!("nobody told it to go on"),
                begun = has_begun => begun.unwrap(),
            }
            go.send(()).unwrap();
            for _ in 0..2 * JOBS_MAX {
                run(|| ()).await.unwrap();
            }
        });
    }

    #[test]
    fn what_is_discarded_is_dropped() {
        let value = Arc::new(());
        discard(value.clone());
        assert_eq!(Arc::strong_count(&value), 1);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { discard(value.clone()) });
        drop(runtime);
        assert_eq!(Arc::strong_count(&value), 1);
    }
}

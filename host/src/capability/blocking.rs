//! Work for guests on threads that may block: the bytes of objects on their way to and from the disk.
//!
//! Owns the bounds on how much of it there is at once. Knows nothing about what is done. Invariant: who waits for a place is a future
//! that ends with its guest; only what has a place goes on after that, and it is at most [`JOBS_MAX`] in a process, and
//! [`JOBS_ELSEWHERE_MAX`] that wait for another machine. One tenant has three quarters of either at most ([`Shares`]), so its flood keeps
//! no other waiting for longer than the jobs that run take.

use std::sync::LazyLock;

use tokio::sync::Semaphore;
use wasmtime::Result;

use crate::data::objects::Place;
use crate::data::{Share, Shares};
use crate::id::TenantId;
use crate::limits::BLOCKING_THREADS_MAX;

/// Jobs that run at once in a process and wait for nothing but this node's disk.
pub const JOBS_MAX: usize = 16;
/// Jobs that run at once in a process and may wait for an origin: it may be slow, and the disk's jobs do not wait for it.
pub const JOBS_ELSEWHERE_MAX: usize = 8;
/// Values that wait to be dropped; whoever has one more drops it itself.
pub const DISCARDS_MAX: usize = 1024;

// All of them may come to run on one data thread. The rest is left for loading templates and for the files of WASI.
const _: () = assert!(JOBS_MAX + JOBS_ELSEWHERE_MAX < BLOCKING_THREADS_MAX);

static DISK: LazyLock<Shares> = LazyLock::new(|| Shares::new(JOBS_MAX));
static ELSEWHERE: LazyLock<Shares> = LazyLock::new(|| Shares::new(JOBS_ELSEWHERE_MAX));
static DISCARDS: Semaphore = Semaphore::const_new(DISCARDS_MAX);

/// The places that guests of one tenant may have.
#[derive(Debug, Clone)]
pub struct Jobs {
    disk: Share,
    elsewhere: Share,
}

impl Jobs {
    /// Those of a tenant, whichever of its functions asks.
    #[must_use]
    pub fn of(tenant: &TenantId) -> Self {
        Self { disk: DISK.of(tenant), elsewhere: ELSEWHERE.of(tenant) }
    }

    /// Runs `job`, which waits for the disk at most, on a thread that may block.
    ///
    /// # Errors
    /// As [`Jobs::run_at`].
    ///
    /// # Cancellation
    /// As [`Jobs::run_at`].
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        self.run_at(Place::Disk, job).await
    }

    /// Runs `job`, about objects in `place`, on a thread that may block.
    ///
    /// # Errors
    /// If it panicked: a bug of ours.
    ///
    /// # Cancellation
    /// Dropping it before `job` began undoes it; later `job` goes on to its end, and what it answers is dropped on its thread.
    pub async fn run_at<T: Send + 'static>(&self, place: Place, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let share = match place {
            Place::Memory | Place::Disk => &self.disk,
            Place::Elsewhere => &self.elsewhere,
        };
        let turn = share.take().await?;
        let run = move || {
            let _turn = turn;
            job()
        };
        Ok(tokio::task::spawn_blocking(run).await?)
    }
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
    use std::sync::{Arc, Condvar, Mutex, mpsc};

    use futures_util::FutureExt as _;
    use futures_util::future::{BoxFuture, join_all};

    use super::*;

    fn jobs(tenant: &str) -> Jobs {
        Jobs::of(&tenant.parse().unwrap())
    }

    /// Jobs that go on when they are told to.
    #[derive(Default)]
    struct Gate {
        began: AtomicUsize,
        is_open: Mutex<bool>,
        opened: Condvar,
    }

    impl Gate {
        fn job(self: &Arc<Self>) -> impl FnOnce() + Send + 'static {
            let gate = Arc::clone(self);
            move || {
                gate.began.fetch_add(1, Ordering::SeqCst);
                let is_open = gate.is_open.lock().unwrap();
                drop(gate.opened.wait_while(is_open, |is_open| !*is_open).unwrap());
            }
        }

        fn open(&self) {
            *self.is_open.lock().unwrap() = true;
            self.opened.notify_all();
        }

        fn began(&self) -> usize {
            self.began.load(Ordering::SeqCst)
        }
    }

    /// Begins as many of a tenant's jobs as there are places for, of `count`.
    fn begin(tenant: &str, place: Place, count: usize, gate: &Arc<Gate>) -> Vec<BoxFuture<'static, Result<()>>> {
        let begin = |_| {
            let (jobs, job) = (jobs(tenant), gate.job());
            let mut begun = async move { jobs.run_at(place, job).await }.boxed();
            assert!((&mut begun).now_or_never().is_none(), "the gate is shut");
            begun
        };
        (0..count).map(begin).collect()
    }

    #[test]
    fn so_many_jobs_run_at_once_and_no_tenant_keeps_the_others_out() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(64).build().unwrap();
        for (place, max, each_max) in [(Place::Disk, JOBS_MAX, 12), (Place::Elsewhere, JOBS_ELSEWHERE_MAX, 6)] {
            runtime.block_on(async {
                let (flood, other) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
                let mut all = begin("flood", place, 100, &flood);
                while flood.began() < each_max {
                    tokio::task::yield_now().await;
                }
                // All others of it wait, and somebody else's job runs to its end meanwhile.
                jobs("quick").run_at(place, || ()).await.unwrap();
                assert_eq!(flood.began(), each_max);
                // The rest, to the last place; one more does not begin before another has ended.
                all.extend(begin("other", place, max - each_max + 1, &other));
                while other.began() < max - each_max {
                    tokio::task::yield_now().await;
                }
                let mut late = begin("late", place, 1, &other);
                assert_eq!((flood.began(), other.began()), (each_max, max - each_max));
                other.open();
                late.remove(0).await.unwrap();
                flood.open();
                for done in join_all(all).await {
                    done.unwrap();
                }
                assert_eq!((flood.began(), other.began()), (100, max - each_max + 2));
            });
        }
    }

    #[test]
    fn a_job_that_nobody_waits_for_any_more_gives_its_place_back() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let jobs = jobs("leaves");
            let (go, wait) = mpsc::sync_channel::<()>(0);
            let (began, has_begun) = tokio::sync::oneshot::channel();
            let job = jobs.run(move || {
                let _sent = began.send(());
                let _told = wait.recv();
            });
            tokio::select! {
                _ = job => panic!("nobody told it to go on"),
                begun = has_begun => begun.unwrap(),
            }
            go.send(()).unwrap();
            for _ in 0..2 * JOBS_MAX {
                jobs.run(|| ()).await.unwrap();
            }
        });
    }

    #[test]
    fn what_is_discarded_is_dropped_and_what_is_too_much_at_once() {
        let value = Arc::new(());
        discard(value.clone());
        assert_eq!(Arc::strong_count(&value), 1, "there is no other thread");
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        let gate = Arc::new(Gate::default());
        runtime.block_on(async {
            drop(tokio::task::spawn_blocking(gate.job()));
            for count in 1..=DISCARDS_MAX {
                discard(value.clone());
                assert_eq!(Arc::strong_count(&value), 1 + count, "it waits for the thread");
            }
            discard(value.clone());
            assert_eq!(Arc::strong_count(&value), 1 + DISCARDS_MAX, "it is dropped here");
        });
        gate.open();
        drop(runtime);
        assert_eq!(Arc::strong_count(&value), 1);
    }
}

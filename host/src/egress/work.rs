//! Processor time of the client's threads: whose it is.
//!
//! A request is a task of its own, and pays for what it takes. A connection is one too, but it serves requests of several functions of its
//! tenant, one after the other, and outlives them: what it takes is shared by the requests of the tenant that are under way, or paid by who sent the
//! last one. What a thread does between two tasks (the kernel's part of waiting, tokio's own) belongs to the one that comes next, so
//! that nothing on these threads is nobody's. Look-ups of names are: they sleep on threads of their own.
//!
//! Owns who pays. Knows nothing about what is paid for. Invariant: each nanosecond is paid once, by the tenant that it was spent for.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Executor;
use rustix::time::{ClockId, clock_gettime};

/// Whoever pays for processor time.
pub trait Pays: std::fmt::Debug + Send + Sync {
    /// Adds what was spent.
    fn pay(&self, took: Duration);
}

/// Who pays for the requests of an invocation; nobody on the terminal.
pub type Payer = Option<Arc<dyn Pays>>;

thread_local! {
    /// Processor time of this thread that is paid for.
    static PAID: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// What this thread has used since it was last asked. A system call.
fn unpaid() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    // The kernel counts it up from 0, and has less than a billion nanoseconds in a second.
    let now = Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0));
    now.saturating_sub(PAID.replace(now))
}

fn pay(payer: &Payer, took: Duration) {
    if let Some(payer) = payer {
        payer.pay(took);
    }
}

/// A task of a request.
pub(super) struct Paid<F> {
    task: Pin<Box<F>>,
    payer: Payer,
}

impl<F> Paid<F> {
    pub(super) fn new(task: F, payer: Payer) -> Self {
        Self { task: Box::pin(task), payer }
    }
}

impl<F: Future> Future for Paid<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let polled = self.task.as_mut().poll(cx);
        pay(&self.payer, unpaid());
        polled
    }
}

/// The requests of one tenant that are under way.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Mutex<Payers>);

#[derive(Debug, Default)]
struct Payers {
    now: Vec<(u64, Payer)>,
    next: u64,
    last: Payer,
}

impl UnderWay {
    /// Another one, until what this returns is dropped.
    pub(super) fn join(self: &Arc<Self>, payer: Payer) -> Member {
        let mut payers = self.lock();
        let number = payers.next;
        payers.next += 1;
        payers.now.push((number, payer));
        Member { of: Arc::clone(self), number }
    }

    fn pay(&self, took: Duration) {
        let payers = self.lock();
        let Ok(count @ 1..) = u32::try_from(payers.now.len()) else { return pay(&payers.last, took) };
        for (_, payer) in &payers.now {
            pay(payer, took / count);
        }
    }

    /// Nothing panics under the lock.
    fn lock(&self) -> MutexGuard<'_, Payers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(super) struct Member {
    of: Arc<UnderWay>,
    number: u64,
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut payers = self.of.lock();
        if let Some(at) = payers.now.iter().position(|(number, _)| *number == self.number) {
            payers.last = payers.now.swap_remove(at).1;
        }
    }
}

/// Runs the connections of one tenant.
#[derive(Debug, Clone)]
pub(super) struct Connections(pub(super) Arc<UnderWay>);

impl<F> Executor<F> for Connections
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        tokio::spawn(Shared { task: Box::pin(task), of: Arc::clone(&self.0) });
    }
}

struct Shared<F> {
    task: Pin<Box<F>>,
    of: Arc<UnderWay>,
}

impl<F: Future> Future for Shared<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let polled = self.task.as_mut().poll(cx);
        self.of.pay(unpaid());
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Purse(Mutex<Duration>);

    impl Pays for Purse {
        fn pay(&self, took: Duration) {
            *self.0.lock().unwrap() += took;
        }
    }

    fn cpu(of: &Purse) -> Duration {
        *of.0.lock().unwrap()
    }

    #[test]
    fn what_connections_take_is_shared_and_the_last_pays_alone() {
        let under_way = Arc::new(UnderWay::default());
        let [first, second] = [(); 2].map(|()| Arc::<Purse>::default());
        let ms = Duration::from_millis;
        // Nobody has sent anything.
        under_way.pay(ms(1));
        let one = under_way.join(Some(first.clone()));
        under_way.pay(ms(10));
        let two = under_way.join(Some(second.clone()));
        under_way.pay(ms(10));
        assert_eq!((cpu(&first), cpu(&second)), (ms(15), ms(5)));
        drop(one);
        under_way.pay(ms(10));
        drop(two);
        under_way.pay(ms(10));
        assert_eq!((cpu(&first), cpu(&second)), (ms(15), ms(25)));
    }

    #[tokio::test]
    async fn a_task_pays_for_all_that_its_thread_did() {
        let payer = Arc::<Purse>::default();
        let work = |time: Duration| {
            let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
            let began = now();
            while now() - began < time {}
        };
        unpaid();
        work(Duration::from_millis(5));
        Paid::new(async { work(Duration::from_millis(5)) }, Some(payer.clone())).await;
        let used = cpu(&payer);
        assert!(used >= Duration::from_millis(10), "{used:?}");
        Paid::new(async {}, Some(payer.clone())).await;
        assert!(cpu(&payer) - used < Duration::from_millis(5), "it is paid once");
    }
}

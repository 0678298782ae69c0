//! The schedule: whose turn it is on a thread, when more guests want to run than one.
//!
//! A guest runs inside of the task of whoever waits for it, as ever; what is scheduled is when it may go on. While a thread has one guest at
//! a time, nothing happens here. Once one computes for longer than its first slice, or a round is over, guests stand in [`line`], and the
//! *driver*, a task that lives as long as anybody does, lets one of them go on after the other. Before each it gives tokio a turn, which
//! polls I/O and timers: so new requests are seen, and guests in line whose time is over end, between any two slices. Where all in line are young,
//! turns that end before the slice is over are shorter than that look, so several of them share one. A slice that is longer than a tick ends at the
//! first tick at which anybody's time is over.
//!
//! ```text
//! begins, or can go on after it waited   nobody in line: at once
//!                                        else at once while its tenant and its function have credit, nobody of the function and its
//!                                        age stands in line, and the round is not over;
//!                                        else in line
//! its slice is over                      in line
//! ```
//!
//! Owns the line of each thread, its driver, and the round: guests that begin at once have [`ROUND`] between two looks at I/O, and so have
//! those in line whose turns are short. Knows no
//! wasmtime; tells time by what it is told. Invariants: a guest in line does not run; who leaves the line leaves nothing behind; while
//! anybody is in line there is a driver. Guests stay on their thread, whose runtime must be one of a single thread.

mod line;

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::deadline::{self, FIRST_SLICE, Sliced, TICK, Until};
use line::{Age, Line, Place};

pub(super) use line::Whose;

/// How long guests may begin at once before I/O is looked at again, and how long short turns may follow one another. The last of them may
/// end its slice.
const ROUND: Duration = Duration::from_micros(500);
/// Slices that are shorter end no round while nobody is in line: tokio itself looks at I/O after 61 tasks.
const SHORT: Duration = Duration::from_micros(50);
/// Processor time up to which a guest is young: what the first slice may take.
const YOUNG: Duration = Duration::from_millis(FIRST_SLICE);
const _: () = assert!(TICK.as_millis() == 1, "slices are counted in ticks");
/// Rounds after which a guest whose turn it is, and whose task does not run it, no longer keeps the others.
const PATIENCE: u32 = 4;

/// One in line.
#[derive(Debug)]
struct Waiter {
    task: Waker,
    /// When its time is over, if it has a wall deadline.
    ends: Option<Instant>,
}

/// What happens on a thread.
#[derive(Default)]
struct Here {
    line: RefCell<Line<Waiter>>,
    /// Whether there is a driver.
    driven: Cell<bool>,
    /// How long guests ran in this round that began at once.
    used: Cell<Duration>,
    /// How long turns took since the driver called the first of them.
    turns: Cell<Duration>,
    /// Whose turn it is, until its slice is over.
    turn: Cell<Option<u64>>,
}

thread_local! {
    static HERE: Here = Here::default();
}

impl Here {
    fn may_go(&self, whose: &Whose, age: Age) -> bool {
        if !self.driven.get() {
            return true;
        }
        let line = self.line.borrow();
        self.used.get() < ROUND && (line.has_credit(whose) || !line.others_wait(whose)) && line.may_overtake(whose, age)
    }

    fn join(&self, whose: &Whose, age: Age, waiter: Waiter) -> Place {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let place = Place { number: NEXT.fetch_add(1, Ordering::Relaxed), age };
        self.line.borrow_mut().join(whose, place, waiter);
        self.drive();
        place
    }

    fn drive(&self) {
        if !self.driven.replace(true) {
            tokio::spawn(drive(Ends));
        }
    }

    /// Something was done for a guest.
    fn did(&self, whose: &Whose, age: Age, took: Duration) {
        if self.driven.get() {
            self.line.borrow_mut().charge(whose, age, took);
        } else if took < SHORT {
            return;
        }
        self.used.set(self.used.get() + took);
    }

    /// A guest ran whose turn it was: what turns took is counted apart ([`Here::pass`]), so it takes nothing from those who begin at once.
    fn had_its_turn(&self, whose: &Whose, age: Age, took: Duration) {
        // Late for a turn that had passed, it may be the last there is.
        if self.driven.get() {
            self.line.borrow_mut().charge(whose, age, took);
        }
    }

    /// Lets the next in line go on. Whether anybody is.
    fn call(&self) -> bool {
        let next = self.line.borrow_mut().next();
        self.turn.set(next.as_ref().map(|(number, _)| *number));
        next.map(|(_, next)| next.task.wake()).is_some()
    }

    /// A guest whose turn it was has ended, or waits: what is left of the round is for others, unless those are there who use all of a slice. Then
    /// I/O, and whose time is over, come first.
    fn pass(&self, took: Duration) {
        self.turns.set(self.turns.get() + took);
        let is_short = self.turns.get() < ROUND && !self.line.borrow().old_wait();
        if is_short && self.driven.get() && self.turn.get().is_none() {
            self.call();
        }
    }

    fn is_over(&self, turn: u64) {
        if self.turn.get() == Some(turn) {
            self.turn.set(None);
        }
    }
}

/// Says that there is no driver any more, also of one that a runtime dropped before it was ever polled: another may come on its thread.
struct Ends;

impl Drop for Ends {
    fn drop(&mut self) {
        // Not there any more when the thread ends.
        let _gone = HERE.try_with(|here| {
            here.driven.set(false);
            here.turn.set(None);
            here.used.set(Duration::ZERO);
        });
    }
}

/// Lets those in line go on, one after the other, until nobody is.
async fn drive(_ends: Ends) {
    let (mut called, mut rounds) = (None, 0);
    loop {
        HERE.with(|here| here.used.set(Duration::ZERO));
        // tokio looks at I/O and timers before it wakes who yielded, and what they wake comes before that.
        tokio::task::yield_now().await;
        let goes_on = HERE.with(|here| {
            let turn = here.turn.get();
            rounds = if turn == called { rounds + 1 } else { 0 };
            called = turn;
            if turn.is_some() && rounds < PATIENCE {
                return true;
            }
            here.turns.set(Duration::ZERO);
            let goes_on = here.call();
            if !goes_on {
                // A guest that computes is in line again before its slice is over, so nobody does.
                here.line.borrow_mut().settle();
            }
            (called, rounds) = (here.turn.get(), 0);
            goes_on
        });
        if !goes_on {
            return;
        }
    }
}

/// The first wall deadline of those who are in line.
fn first_to_end() -> Option<Instant> {
    HERE.with(|here| here.line.borrow().iter().filter_map(|waiter| waiter.ends).min())
}

/// Charges a tenant with what was done for one of its guests outside of a slice.
pub(super) fn charge(whose: &Whose, took: Duration) {
    // What is dropped with its thread is nobody's any more.
    let _gone = HERE.try_with(|here| here.did(whose, Age::Young, took));
}

/// A guest's turns.
#[derive(Debug)]
pub(super) struct Turn {
    whose: Whose,
    state: State,
    /// Who in the guest waits for it to go on, when it computes.
    inner: Vec<Waker>,
    /// Whether it stands in line because its slice was over, and not because what it waited for has come.
    computes: bool,
    /// What it used in this turn.
    had: Duration,
    /// Its wall deadline, if it has one.
    ends: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// It has not begun, or waits for something of its own.
    Away,
    InLine(Place),
    /// It may run a slice. The number that it had in line, if it was there.
    Turn(Option<u64>),
}

impl Turn {
    /// Of a guest that has not begun.
    pub(super) fn new(whose: Whose) -> Self {
        Self { whose, state: State::Away, inner: Vec::new(), computes: false, had: Duration::ZERO, ends: None }
    }

    /// The same with a wall deadline.
    pub(super) fn until(mut self, ends: Instant) -> Self {
        self.ends = Some(ends);
        self
    }

    /// Whose guest it is.
    pub(super) fn whose(&self) -> &Whose {
        &self.whose
    }

    /// Whether it would go on if it could.
    pub(super) fn computes(&self) -> bool {
        self.computes
    }

    /// Whether it may begin now. If not, ask [`Turn::poll`].
    pub(super) fn begin(&mut self) -> bool {
        let may = HERE.with(|here| here.may_go(&self.whose, Age::Young));
        if may {
            self.state = State::Turn(None);
        }
        may
    }

    /// What it waited for has come at once: it has the rest of its turn.
    pub(super) fn go_on(&mut self) {
        if matches!(self.state, State::Away) {
            self.state = State::Turn(None);
        }
    }

    /// Ready when it may run one slice. `used`: its processor time so far.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, used: Duration) -> Poll<()> {
        HERE.with(|here| match self.state {
            State::Turn(_) => Poll::Ready(()),
            State::Away if here.may_go(&self.whose, age(used)) => {
                (self.state, self.had) = (State::Turn(None), Duration::ZERO);
                Poll::Ready(())
            }
            State::Away => {
                self.state = State::InLine(here.join(&self.whose, age(used), self.waiter(cx)));
                Poll::Pending
            }
            State::InLine(place) => {
                // A waker is dropped when nobody looks at the line: what it holds may be a guest in it.
                let mut line = here.line.borrow_mut();
                let Some(Waiter { task, .. }) = line.waiter(&self.whose, place) else {
                    (self.state, self.had) = (State::Turn(Some(place.number)), Duration::ZERO);
                    return Poll::Ready(());
                };
                let other = (!task.will_wake(cx.waker())).then(|| std::mem::replace(task, cx.waker().clone()));
                drop(line);
                drop(other);
                Poll::Pending
            }
        })
    }

    /// Ticks of its first slice. One that had to wait for others does not make them wait for longer than any. And where somebody waits who
    /// computes for long, a longer slice would spare few an interruption, and all would meet their deadlines later.
    pub(super) fn first_ticks(&self) -> u64 {
        HERE.with(|here| {
            let line = here.line.borrow();
            let stood = matches!(self.state, State::Turn(Some(_)));
            if line.old_wait() || (stood && line.others_wait(&self.whose)) { 1 } else { FIRST_SLICE }
        })
    }

    fn waiter(&self, cx: &Context<'_>) -> Waiter {
        Waiter { task: cx.waker().clone(), ends: self.ends }
    }

    /// Runs one slice if it may, else it stands in line. `used`: its processor time, to which that of the slice is added.
    pub(super) fn slice<R>(
        &mut self,
        cx: &mut Context<'_>,
        used: &mut Duration,
        now: Instant,
        run: impl FnOnce(&mut Context<'_>) -> Poll<R>,
    ) -> Sliced<Poll<R>> {
        if self.poll(cx, *used).is_pending() {
            return Sliced { result: Poll::Pending, ended: now, took: Duration::ZERO, yielded: Vec::new() };
        }
        for inner in self.inner.drain(..) {
            // The task itself is awake.
            if !inner.will_wake(cx.waker()) {
                inner.wake();
            }
        }
        let (before, waited) = (*used, matches!(self.state, State::Turn(Some(_))));
        let mut sliced = {
            let (had, until) = (self.had, Until { own: self.ends, others: first_to_end });
            let _turn = Over(self);
            deadline::slice(used, had, now, until, || run(cx))
        };
        self.had += sliced.took;
        self.inner = std::mem::take(&mut sliced.yielded);
        self.computes = sliced.result.is_pending() && !self.inner.is_empty();
        HERE.with(|here| {
            match waited {
                true => here.had_its_turn(&self.whose, age(before), sliced.took),
                false => here.did(&self.whose, age(before), sliced.took),
            }
            if self.computes {
                self.state = State::InLine(here.join(&self.whose, age(*used), self.waiter(cx)));
            } else if waited {
                here.pass(sliced.took);
            } else if here.used.get() >= ROUND {
                // A driver without a line looks at I/O once, and ends.
                here.drive();
            }
        });
        sliced
    }

    /// What it was there for is over.
    fn over(&mut self) {
        let _gone = HERE.try_with(|here| match std::mem::replace(&mut self.state, State::Away) {
            State::Away | State::Turn(None) => {}
            State::InLine(place) => {
                let left = here.line.borrow_mut().leave(&self.whose, place);
                if left.is_none() {
                    // The driver has called it.
                    here.is_over(place.number);
                }
            }
            State::Turn(Some(number)) => here.is_over(number),
        });
    }
}

/// Ends a turn, also if the guest panics.
struct Over<'a>(&'a mut Turn);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.over();
    }
}

fn age(used: Duration) -> Age {
    if used < YOUNG { Age::Young } else { Age::Old }
}

/// Runs a guest in its turns until it ends.
pub(super) async fn in_turns<F: Future>(whose: Whose, guest: F) -> F::Output {
    let mut guest = std::pin::pin!(guest);
    let (mut turn, mut used) = (Turn::new(whose), Duration::ZERO);
    std::future::poll_fn(|cx| turn.slice(cx, &mut used, Instant::now(), |cx| guest.as_mut().poll(cx)).result).await
}

#[cfg(test)]
mod tests;

//! The driver with guests that are plain futures: nothing here depends on how long anything takes.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

type Log = Arc<Mutex<Vec<&'static str>>>;

/// A tenant with one function.
fn tenant(name: &str) -> Whose {
    Whose { tenant: name.parse().unwrap(), function: 0 }
}

/// Without a wall deadline.
fn waiter(task: Waker) -> Waiter {
    Waiter { task, ends: None }
}

/// A guest that computes for so many slices, and logs each.
async fn computes(slices: usize, name: &'static str, log: Log) {
    for _ in 0..slices {
        log.lock().unwrap().push(name);
        deadline::EndOfSlice::new().await;
    }
}

fn spawn(slices: usize, name: &'static str, log: &Log) -> tokio::task::JoinHandle<()> {
    tokio::spawn(in_turns(tenant(name), computes(slices, name, log.clone())))
}

/// How many stand in line, whether there is a driver, and whether it is anybody's turn.
fn state() -> (usize, bool, bool) {
    HERE.with(|here| (here.line.borrow().len(), here.driven.get(), here.turn.get().is_some()))
}

const IDLE: (usize, bool, bool) = (0, false, false);

/// Until nobody is in line and the driver is gone.
async fn until_idle() {
    while state() != IDLE {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_guest_alone_needs_nobody() {
    let mut turn = Turn::new(tenant("a"));
    assert!(turn.begin() && turn.first_ticks() == FIRST_SLICE);
    let mut used = Duration::ZERO;
    let sliced = std::future::poll_fn(|cx| Poll::Ready(turn.slice(cx, &mut used, Instant::now(), |_| Poll::Ready(1)))).await;
    assert_eq!((sliced.result, state()), (Poll::Ready(1), IDLE));
    assert!(!turn.computes());
}

#[tokio::test]
async fn all_who_compute_end_and_nothing_is_left() {
    let log = Log::default();
    let guests: Vec<_> = ["a", "a", "b"].map(|name| spawn(50, name, &log)).into();
    for guest in guests {
        guest.await.unwrap();
    }
    assert_eq!(log.lock().unwrap().len(), 150);
    until_idle().await;
}

#[tokio::test]
async fn io_is_looked_at_between_any_two_slices() {
    let (mut guests, mut neighbour) = tokio::net::UnixStream::pair().unwrap();
    let log = Log::default();
    // What is written in a slice is readable at once; whoever reads it must come before the next slice.
    let guests_write = Arc::new(guests.into_std().unwrap());
    let guest = |name: &'static str| {
        let (log, out) = (log.clone(), guests_write.clone());
        tokio::spawn(in_turns(tenant(name), async move {
            for _ in 0..40 {
                log.lock().unwrap().push("slice");
                std::io::Write::write_all(&mut &*out, b"x").unwrap();
                deadline::EndOfSlice::new().await;
            }
        }))
    };
    let running: Vec<_> = ["a", "a", "b", "c"].map(guest).into();
    let read = tokio::spawn({
        let log = log.clone();
        async move {
            for _ in 0..160 {
                neighbour.read_exact(&mut [0]).await.unwrap();
                log.lock().unwrap().push("io");
            }
        }
    });
    for guest in running {
        guest.await.unwrap();
    }
    read.await.unwrap();
    guests = tokio::net::UnixStream::from_std(Arc::into_inner(guests_write).unwrap()).unwrap();
    guests.shutdown().await.unwrap();
    // The first slices of four guests are at once.
    let log = log.lock().unwrap();
    let after = &log[log.len() - 300..];
    assert!(after.windows(2).all(|two| two != ["slice", "slice"]), "{log:?}");
}

#[tokio::test]
async fn who_comes_in_anothers_slice_begins_right_after_it() {
    let (guest, mut neighbour) = tokio::net::UnixStream::pair().unwrap();
    let guest = guest.into_std().unwrap();
    let spins = tokio::spawn(in_turns(tenant("a"), async move {
        loop {
            std::io::Write::write_all(&mut &guest, b"x").unwrap();
            let began = Instant::now();
            while began.elapsed() < ROUND {}
            deadline::EndOfSlice::new().await;
        }
    }));
    let comes = tokio::spawn(async move {
        for _ in 0..20 {
            neighbour.read_exact(&mut [0]).await.unwrap();
            assert!(Turn::new(tenant("b")).begin(), "its tenant has all of its credit, and the round has just begun");
        }
        neighbour
    });
    // The guest would end if nobody could read what it writes.
    let neighbour = comes.await.unwrap();
    spins.abort();
    assert!(spins.await.unwrap_err().is_cancelled());
    drop(neighbour);
    until_idle().await;
}

#[tokio::test]
async fn one_that_leaves_the_line_leaves_nothing() {
    let log = Log::default();
    let (first, second) = (spawn(usize::MAX, "a", &log), spawn(usize::MAX, "b", &log));
    while log.lock().unwrap().len() < 20 {
        tokio::task::yield_now().await;
    }
    assert!(state().1);
    // One of the two is in line, and it may be the turn of the other.
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let before = log.lock().unwrap().len();
    while log.lock().unwrap().len() < before + 20 {
        tokio::task::yield_now().await;
    }
    assert!(log.lock().unwrap()[before + 1..].iter().all(|name| *name == "b"));
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    until_idle().await;
}

#[tokio::test]
async fn a_guest_that_panics_keeps_nobody() {
    let log = Log::default();
    let panics = tokio::spawn(in_turns(tenant("a"), async {
        for _ in 0..3 {
            deadline::EndOfSlice::new().await;
        }
        panic!("planted");
    }));
    let good = spawn(20, "b", &log);
    assert!(panics.await.unwrap_err().is_panic());
    good.await.unwrap();
    until_idle().await;
    assert_eq!(log.lock().unwrap().len(), 20);
}

#[tokio::test]
async fn a_turn_that_nobody_takes_passes() {
    let log = Log::default();
    let good = spawn(usize::MAX, "b", &log);
    while log.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    // It stands in line, is woken when it is its turn, and nobody runs it.
    let mut absent = Turn::new(tenant("a"));
    let woken = Arc::new(Flag(AtomicUsize::new(0)));
    absent.state = State::InLine(HERE.with(|here| here.join(&absent.whose, Age::Young, waiter(woken.clone().into()))));
    while woken.0.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let before = log.lock().unwrap().len();
    while log.lock().unwrap().len() < before + 5 {
        tokio::task::yield_now().await;
    }
    // It may still run when it comes.
    let mut cx = Context::from_waker(Waker::noop());
    assert!(absent.poll(&mut cx, Duration::ZERO).is_ready());
    drop(absent);
    good.abort();
    assert!(good.await.unwrap_err().is_cancelled());
    until_idle().await;
}

struct Flag(AtomicUsize);

impl std::task::Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_long_slice_ends_the_round_and_the_next_waits_for_io() {
    let mut turn = Turn::new(tenant("a"));
    let mut used = Duration::ZERO;
    let long = |_: &mut Context<'_>| {
        let began = Instant::now();
        while began.elapsed() < ROUND {}
        Poll::Ready(())
    };
    let sliced = std::future::poll_fn(|cx| Poll::Ready(turn.slice(cx, &mut used, Instant::now(), long))).await;
    assert!(sliced.result.is_ready() && sliced.took == used);
    assert_eq!(state(), (0, true, false), "the driver looks at I/O");
    let mut next = Turn::new(tenant("b"));
    assert!(!next.begin());
    std::future::poll_fn(|cx| next.poll(cx, Duration::ZERO)).await;
    assert_eq!(next.first_ticks(), FIRST_SLICE, "nobody else waits");
    drop(next);
    until_idle().await;
    assert!(Turn::new(tenant("b")).begin());
}

#[tokio::test]
async fn short_turns_follow_one_another_without_a_look_at_io() {
    let log = Log::default();
    // Others compute, so that there is a line, also while one of them has its turn; and are young, again and again.
    let others = ["b", "c"].map(|name| {
        let log = log.clone();
        tokio::spawn(async move {
            loop {
                in_turns(tenant(name), computes(5, name, log.clone())).await;
            }
        })
    });
    while log.lock().unwrap().len() < 10 {
        tokio::task::yield_now().await;
    }
    // Over its share beside them, so that its guests stand in line.
    HERE.with(|here| here.line.borrow_mut().charge(&tenant("a"), Age::Young, Duration::from_millis(3)));
    let looks = Arc::new(AtomicUsize::new(0));
    let ended: Arc<Mutex<Vec<(usize, usize)>>> = Arc::default();
    let short = |number: usize| {
        let (looks, ended) = (looks.clone(), ended.clone());
        tokio::spawn(in_turns(tenant("a"), async move { ended.lock().unwrap().push((number, looks.load(Ordering::Relaxed))) }))
    };
    let begun: Vec<_> = (0..100).map(short).collect();
    let counts = tokio::spawn(async move {
        loop {
            tokio::task::yield_now().await;
            looks.fetch_add(1, Ordering::Relaxed);
        }
    });
    while !HERE.with(|here| here.line.borrow().waiting_of(&tenant("a")) > 50) {
        assert!(ended.lock().unwrap().len() < 50, "they stand in line");
        tokio::task::yield_now().await;
    }
    for one in begun {
        one.await.unwrap();
    }
    let [one, other] = others;
    for task in [one, other, counts] {
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    }
    let ended = ended.lock().unwrap().clone();
    assert!(ended.windows(2).all(|two| two[0].0 < two[1].0), "in the order of their coming: {ended:?}");
    // Each would come after a look of its own if its turn ended the round. Where a thread is interrupted a round may be over early.
    assert!(ended.windows(2).any(|two| two[0].1 == two[1].1), "{ended:?}");
    until_idle().await;
}

#[tokio::test]
async fn one_that_waited_in_line_beside_others_has_a_short_first_slice() {
    let log = Log::default();
    let others: Vec<_> = [spawn(usize::MAX, "b", &log), spawn(usize::MAX, "c", &log)].into();
    while log.lock().unwrap().len() < 10 {
        tokio::task::yield_now().await;
    }
    // Over its share: what it did was charged.
    HERE.with(|here| here.line.borrow_mut().charge(&tenant("a"), Age::Young, Duration::from_millis(1)));
    let mut turn = Turn::new(tenant("a"));
    assert!(!turn.begin());
    std::future::poll_fn(|cx| turn.poll(cx, Duration::ZERO)).await;
    assert_eq!(turn.first_ticks(), 1);
    drop(turn);
    for other in others {
        other.abort();
        assert!(other.await.unwrap_err().is_cancelled());
    }
    until_idle().await;
}

#[tokio::test]
async fn one_whose_time_passes_in_line_was_not_executed_and_leaves_it() {
    let log = Log::default();
    let other = spawn(usize::MAX, "b", &log);
    while log.lock().unwrap().len() < 10 {
        tokio::task::yield_now().await;
    }
    // So much in debt that its turn does not come.
    HERE.with(|here| here.line.borrow_mut().charge(&tenant("a"), Age::Young, Duration::from_secs(1 << 30)));
    let mut turn = Turn::new(tenant("a"));
    assert!(!turn.begin());
    let wall = Duration::from_millis(20);
    let fault = crate::engine::run::its_turn(&mut turn, Instant::now(), wall).await.unwrap_err();
    assert_eq!((fault.code, fault.executed), (crate::fault::Code::WallDeadline, crate::fault::Executed::No));
    assert!(matches!(turn.state, State::InLine(_)));
    let before = state().0;
    drop(turn);
    assert_eq!(state().0, before - 1);
    other.abort();
    assert!(other.await.unwrap_err().is_cancelled());
    until_idle().await;
}

#[tokio::test]
async fn parts_of_a_guest_that_have_wakers_of_their_own_go_on() {
    // As the tasks of a component of WASI 0.3: each is polled only when it was woken.
    let mut parts: futures_util::stream::FuturesUnordered<_> = (0..3)
        .map(|_| async {
            for _ in 0..10 {
                deadline::EndOfSlice::new().await;
            }
        })
        .collect();
    let guest = async move { while futures_util::StreamExt::next(&mut parts).await.is_some() {} };
    in_turns(tenant("a"), guest).await;
    until_idle().await;
}

#[test]
fn a_runtime_that_ends_leaves_the_thread_as_it_was() {
    let log = Log::default();
    for _ in 0..2 {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let _guests = [spawn(usize::MAX, "a", &log), spawn(usize::MAX, "b", &log)];
            let before = log.lock().unwrap().len();
            while log.lock().unwrap().len() < before + 10 {
                tokio::task::yield_now().await;
            }
            assert!(state().1);
        });
        drop(runtime);
        assert_eq!(state(), IDLE);
    }
}

#[test]
fn one_that_begins_beside_the_old_has_a_short_first_slice() {
    let place = |age| {
        HERE.with(|here| {
            let place = Place { number: u64::MAX, age };
            here.line.borrow_mut().join(&tenant("a"), place, waiter(Waker::noop().clone()));
            place
        })
    };
    for (age, ticks) in [(Age::Young, FIRST_SLICE), (Age::Old, 1)] {
        let place = place(age);
        let mut turn = Turn::new(tenant("a"));
        assert!(turn.begin(), "nobody drives them");
        assert_eq!(turn.first_ticks(), ticks, "beside the {age:?}");
        HERE.with(|here| here.line.borrow_mut().leave(&tenant("a"), place)).unwrap();
        assert_eq!(turn.first_ticks(), FIRST_SLICE);
    }
}

#[test]
fn a_runtime_that_ends_before_its_driver_ran_leaves_none_behind() {
    let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
    let log = Log::default();
    let first = runtime();
    first.block_on(async {
        let guest = in_turns(tenant("a"), computes(9, "a", log.clone()));
        // One poll puts it in line and spawns a driver; then all of it is given up.
        let mut guest = Box::pin(guest);
        let polled = std::future::poll_fn(|cx| Poll::Ready(guest.as_mut().poll(cx).is_ready())).await;
        assert!(!polled && state().1, "it computes, and has a driver");
    });
    drop(first);
    assert_eq!(state(), IDLE);
    // Another runtime on this thread has a driver of its own.
    runtime().block_on(in_turns(tenant("a"), computes(9, "a", log.clone())));
    assert_eq!(log.lock().unwrap().len(), 10);
}

#[tokio::test]
async fn the_first_in_line_whose_time_ends_is_known() {
    let now = Instant::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    let mut cx = Context::from_waker(Waker::noop());
    assert_eq!(first_to_end(), None);
    // Each computes once, or comes after that: it stands in line.
    let mut waits: Vec<_> = [Some(7), None, Some(3)].map(|ends| (Turn::new(tenant("a")), ends.map(at))).into();
    for (turn, ends) in &mut waits {
        turn.ends = *ends;
        let sliced =
            turn.slice(&mut cx, &mut Duration::ZERO.clone(), now, |cx| std::pin::pin!(deadline::EndOfSlice::new()).poll(cx));
        assert!(sliced.result.is_pending() && matches!(turn.state, State::InLine(_)));
    }
    assert_eq!(first_to_end(), Some(at(3)));
    waits.pop();
    assert_eq!(first_to_end(), Some(at(7)), "who left is forgotten");
    drop(waits);
    assert_eq!(first_to_end(), None);
    until_idle().await;
}

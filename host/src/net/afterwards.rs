//! Afterwards: work that waits until the response it belongs to has been written.
//!
//! Owns the short list of things that are dropped when a connection's turn on its thread is over. Freeing an instance takes longer
//! than starting one; done here, no client waits for it, and the next connection on the thread finds its memory warm. Knows nothing
//! about what it drops. Invariant: nothing that was put off survives the turn it was put off in.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

type Things = Vec<Box<dyn Any + Send>>;

thread_local! {
    /// `None` outside of a turn.
    static PUT_OFF: RefCell<Option<Things>> = const { RefCell::new(None) };
}

/// One turn of a connection: runs `turn`, then drops what was put off in it, also if it panics.
pub fn turn<R>(turn: impl FnOnce() -> R) -> R {
    struct Turn(Option<Things>);
    impl Drop for Turn {
        fn drop(&mut self) {
            let outer = self.0.take();
            let things = PUT_OFF.with(|put_off| put_off.replace(outer));
            things.into_iter().flatten().for_each(let_go);
        }
    }
    let _turn = Turn(PUT_OFF.with(|put_off| put_off.replace(Some(Things::new()))));
    turn()
}

/// Drops `thing` when the connection whose turn it is has written what it has to write. Called outside of a turn, it is a task of
/// its own that drops it, when whoever runs now has yielded.
///
/// # Panics
/// Outside of a turn and of a tokio runtime.
pub fn put_off(thing: impl Send + 'static) {
    let thing: Box<dyn Any + Send> = Box::new(thing);
    let outside = PUT_OFF.with_borrow_mut(|put_off| match put_off {
        Some(things) => {
            things.push(thing);
            None
        }
        None => Some(thing),
    });
    if let Some(thing) = outside {
        tokio::spawn(async move { let_go(thing) });
    }
}

/// Drops `thing`. A panic, which is a bug of ours, ends here: the turn may be ending by one itself, and a second at once would end the process.
fn let_go(thing: Box<dyn Any + Send>) {
    // Unwind safety: nobody uses it again.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(thing))) {
        tracing::error!(
            cause = super::connection::panic_text(&*panic),
            "panic in a drop; what it held may be lost until the node is started again"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn things_live_until_the_end_of_their_turn() {
        let thing = Arc::new(());
        turn(|| {
            put_off(thing.clone());
            turn(|| put_off(thing.clone()));
            assert_eq!(Arc::strong_count(&thing), 2, "the inner turn is over");
        });
        assert_eq!(Arc::strong_count(&thing), 1);
    }

    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("planted");
        }
    }

    #[test]
    fn a_panic_in_a_drop_costs_nothing_else() {
        let thing = Arc::new(());
        let answer = turn(|| {
            put_off(Panics);
            put_off(thing.clone());
            put_off(Panics);
            7
        });
        assert_eq!((answer, Arc::strong_count(&thing)), (7, 1));
        // At the end of a turn that panics itself.
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            turn(|| {
                put_off(Panics);
                put_off(thing.clone());
                panic!("planted");
            });
        }));
        assert!(panicked.is_err() && Arc::strong_count(&thing) == 1);
    }

    #[test]
    fn a_panic_ends_the_turn_too() {
        let thing = Arc::new(());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            turn(|| {
                put_off(thing.clone());
                panic!("planted");
            })
        }));
        assert!(panicked.is_err());
        assert_eq!(Arc::strong_count(&thing), 1);
    }

    #[tokio::test]
    async fn outside_of_a_turn_a_task_drops_it() {
        let thing = Arc::new(());
        put_off(thing.clone());
        assert_eq!(Arc::strong_count(&thing), 2);
        while Arc::strong_count(&thing) > 1 {
            tokio::task::yield_now().await;
        }
    }
}

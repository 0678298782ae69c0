//! Storage: how files and databases are kept so that they survive, whatever they hold. What several parts need of that is here.
//!
//! Owns the order of durable writes (`disk.rs`), the room that files take and who needs them (`space.rs`), which of them this process
//! found good (`checked.rs`), what changes answered (`answers.rs`), huge pages (`huge.rs`), how redb is kept from harming the daemon (`overlay.rs`, [`caught`]), and how its commits become durable fast (`log.rs`).
//! Knows nothing about what the files mean. Invariant: no panic of redb leaves [`caught`].

pub(crate) mod answers;
pub(crate) mod checked;
pub(crate) mod disk;
pub(crate) mod huge;
pub(crate) mod log;
pub(crate) mod overlay;
#[cfg(test)]
pub(crate) mod power;
pub mod space;

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// How many calls of [`caught`] this thread is in.
    static CATCHING: Cell<u32> = const { Cell::new(0) };
}

/// Runs `op`; a panic becomes its text, and is not printed: whoever gets the text says what it means. redb panics where a damaged file is
/// not what it wrote.
pub(crate) fn caught<T>(op: impl FnOnce() -> T) -> Result<T, String> {
    keep_quiet_in_here();
    CATCHING.set(CATCHING.get() + 1);
    let done = catch_unwind(AssertUnwindSafe(op));
    CATCHING.set(CATCHING.get() - 1);
    done.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        format!("reading it failed with '{}'", text.unwrap_or("a panic"))
    })
}

/// Drops an open database so that it writes nothing more. redb writes once more when one is dropped, and where a page is damaged that may panic
/// twice at once, which ends the process; it does not when it is dropped by a panic.
pub(crate) fn abandon<T>(database: T) {
    // Dropped by a panic as it is.
    if std::thread::panicking() {
        return;
    }
    let ends = || {
        let _dropped_by_it = database;
        panic::resume_unwind(Box::new(()))
    };
    let Err(_panic) = catch_unwind::<_, std::convert::Infallible>(AssertUnwindSafe(ends));
}

/// Panics of this thread and of all others are printed as ever, unless they end in [`caught`]; those are in the log at `debug`, with their
/// place.
fn keep_quiet_in_here() {
    static HOOK: Once = Once::new();
    // Whoever panics may not change the hook. What is caught in its drops is printed then.
    if std::thread::panicking() {
        return;
    }
    HOOK.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| match CATCHING.try_with(Cell::get) {
            Ok(0) | Err(_) => others(info),
            Ok(_) => tracing::debug!(panic = %info, "a panic that is an error"),
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_abandoned_is_left_as_its_last_commit_made_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let table = redb::TableDefinition::<u64, u64>::new("t");
        let database = redb::Database::create(&path).unwrap();
        let txn = database.begin_write().unwrap();
        txn.open_table(table).unwrap().insert(1, 2).unwrap();
        txn.commit().unwrap();
        let bytes = || std::fs::read(&path).unwrap();
        let before = bytes();
        abandon(database);
        assert!(bytes() == before);
        // It is closed: another one may open it, which writes when it is dropped in order.
        drop(redb::Database::open(&path).unwrap());
        assert!(bytes() != before);
        let dropped_by_a_panic = caught(|| {
            let _guard = Guard(Some(redb::Database::open(&path).unwrap()));
            panic!("of somebody else");
        });
        assert!(dropped_by_a_panic.is_err_and(|what: String| what.contains("of somebody else")));
    }

    struct Guard(Option<redb::Database>);

    impl Drop for Guard {
        fn drop(&mut self) {
            abandon(self.0.take());
        }
    }

    #[test]
    fn a_panic_is_its_text_however_deep() {
        assert_eq!(caught(|| 1), Ok(1));
        let inner = caught(|| caught(|| panic!("in {}", "there")).map(|()| 1)).unwrap();
        assert_eq!(inner, Err("reading it failed with 'in there'".into()));
        assert_eq!(caught(|| -> () { panic!("again") }), Err("reading it failed with 'again'".into()));
        assert_eq!(CATCHING.get(), 0);
        // Others are not caught, nor taken for one that is.
        assert!(std::thread::spawn(|| panic!("of another thread, printed")).join().is_err());
    }
}

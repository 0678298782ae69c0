//! What happens when the user presses Ctrl-C in a command that has no drain of its own.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit code after SIGINT.
const INTERRUPTED: u8 = 130;
/// Exit code after SIGTERM.
const TERMINATED: u8 = 143;

/// SIGINT and SIGTERM, caught from when this is made.
struct Signals(Signal, Signal);

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
    }

    /// Waits for either. Returns the code to exit with.
    async fn wait(&mut self) -> u8 {
        tokio::select! {
            _ = self.0.recv() => INTERRUPTED,
            _ = self.1.recv() => TERMINATED,
        }
    }
}

/// Runs work until it is done, or until a signal: then it is dropped, and there is the code to exit with in its place.
///
/// # Errors
/// When signals cannot be waited for.
pub(super) async fn or_signal<T>(work: impl Future<Output = T>) -> io::Result<Result<T, u8>> {
    let mut signals = Signals::catch()?;
    Ok(tokio::select! {
        done = work => Ok(done),
        code = signals.wait() => Err(code),
    })
}

type Cleanup = Box<dyn FnOnce() + Send>;

/// What is to be done before the process ends of a signal; `None` as long as nobody waits for one.
static CLEANUPS: Mutex<Option<Vec<Cleanup>>> = Mutex::new(None);

fn cleanups() -> MutexGuard<'static, Option<Vec<Cleanup>>> {
    // A list is whole after every statement that changes it.
    CLEANUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on SIGINT and SIGTERM call `cleanup`, before what was given earlier, on a thread of its own and end the process with 130 or 143. There is
/// one thread, or the first of several would end the process before the others have cleaned up.
///
/// # Errors
/// When no thread or handler can be made.
pub(super) fn on_signal(cleanup: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut cleanups = cleanups();
    if cleanups.is_none() {
        wait_for_signals()?;
    }
    cleanups.get_or_insert_default().push(Box::new(cleanup));
    Ok(())
}

fn wait_for_signals() -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    let mut signals = {
        let _entered = runtime.enter();
        Signals::catch()?
    };
    let wait = move || {
        let code = runtime.block_on(signals.wait());
        let given = cleanups().take();
        given.into_iter().flatten().rev().for_each(|cleanup| cleanup());
        std::process::exit(code.into());
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}

/// Ends a child process and waits until the kernel has closed its files, or for 5 s.
pub(super) fn kill(pid: rustix::process::Pid) {
    use rustix::process::{Signal, kill_process};
    // It may have ended by itself.
    let _ = kill_process(pid, Signal::KILL);
    std::thread::sleep(Duration::from_millis(50));
}

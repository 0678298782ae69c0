//! What happens when the user presses Ctrl-C in a command that has no drain of its own.

use std::io;
use std::time::Duration;

use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

/// Exit code after SIGINT.
pub(super) const INTERRUPTED: u8 = 130;
/// Exit code after SIGTERM.
const TERMINATED: u8 = 143;

/// From now on SIGINT and SIGTERM call `cleanup` on a thread of its own and end the process with 130 or 143.
///
/// # Errors
/// When no thread or handler can be made.
pub(super) fn on_signal(cleanup: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = move || {
        let code = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => INTERRUPTED,
                _ = terminate.recv() => TERMINATED,
            }
        });
        cleanup();
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

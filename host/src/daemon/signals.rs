//! Signals that end a node.
//!
//! Owns their catching. Knows nothing of what a node does then. Invariant: from when a [`Signals`] is there, none of them ends the process
//! unasked.

use rustix::process::Signal;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::threads::current_thread;

/// SIGTERM and SIGINT, caught from when this is made: before anybody is told that the node is ready.
#[derive(Debug)]
pub struct Signals {
    runtime: Runtime,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    /// Catches both.
    ///
    /// # Errors
    /// When signals cannot be waited for.
    pub fn catch() -> std::io::Result<Self> {
        let runtime = current_thread()?;
        let both = async {
            // With a handler, and nobody who listens, writing past what a file may have is an error as any other, and not the end.
            drop(signal(SignalKind::from_raw(Signal::XFSZ.as_raw()))?);
            std::io::Result::Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
        };
        let (terminate, interrupt) = runtime.block_on(both)?;
        Ok(Self { runtime, terminate, interrupt })
    }

    /// Blocks until one comes. The next one ends the process at once.
    ///
    /// # Errors
    /// When the thread that waits for the next one cannot be started.
    pub(super) fn wait(mut self) -> std::io::Result<()> {
        self.next();
        tracing::info!("stopping: finishing what was accepted");
        let impatient = std::thread::Builder::new().name("hob-signals".into());
        impatient.spawn(move || std::process::exit(self.next())).map(drop)
    }

    /// Blocks until one comes: the exit code of a process that it ends.
    fn next(&mut self) -> i32 {
        self.runtime.block_on(async {
            tokio::select! {
                _ = self.terminate.recv() => 143,
                _ = self.interrupt.recv() => 130,
            }
        })
    }
}

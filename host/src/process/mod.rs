//! The process: what it may reach and call, of the files, the network and the kernel, and what it leaves behind when it dies.
//!
//! Owns the second wall, behind wasmtime's: Landlock (`reach.rs`), seccomp (`calls.rs`), and that no core is dumped. Knows nothing about
//! functions, or who reads which file. Invariant: what a wall says to stand does stand, for every thread, until the process ends; nothing
//! here can be taken back.

mod calls;
#[cfg(debug_assertions)]
mod missed;
#[cfg(debug_assertions)]
pub mod probe;
mod reach;

pub use calls::Calls;
pub use reach::Reach;

use std::fmt;
use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use crate::config::Sandbox;

/// Which walls stand around this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walls {
    asked: Sandbox,
    /// Those that stand, by their names.
    standing: Vec<&'static str>,
    /// What is not there, and why.
    missing: Vec<String>,
}

impl Walls {
    /// None yet; `asked`: whether there are to be any.
    #[must_use]
    pub fn new(asked: Sandbox) -> Self {
        Self { asked, standing: Vec::new(), missing: Vec::new() }
    }

    /// Whether every wall stands.
    #[must_use]
    pub fn are_whole(&self) -> bool {
        self.missing.is_empty() && !self.standing.is_empty()
    }

    /// Whether one stands around files.
    #[must_use]
    pub fn are_around_files(&self) -> bool {
        self.standing.contains(&"landlock")
    }

    /// From here on the calling thread, and each that it starts, reaches only what `reach` says. No other thread is bound by it: to be called
    /// before there are any.
    ///
    /// # Errors
    /// [`WallError`] if the kernel cannot and the walls were asked for, or if it refuses.
    pub fn stand_before_files(&mut self, reach: &Reach) -> Result<(), WallError> {
        if self.asked == Sandbox::Off {
            return Ok(());
        }
        let missing = reach.enforce().map_err(|error| WallError::Refused { wall: "landlock", error: error.to_string() })?;
        self.note("landlock", missing)
    }

    /// From here on no thread of the process makes any other system call than those.
    ///
    /// # Errors
    /// As [`Walls::stand_before_files`].
    pub fn stand_before_calls(&mut self, calls: Calls) -> Result<(), WallError> {
        if self.asked == Sandbox::Off {
            return Ok(());
        }
        let missing = calls.enforce().map_err(|error| WallError::Refused { wall: "seccomp", error: error.to_string() })?;
        self.note("seccomp", missing)
    }

    fn note(&mut self, wall: &'static str, missing: Missing) -> Result<(), WallError> {
        let (stands, missing) = match missing {
            Missing::Nothing => (true, None),
            Missing::Part(what) => (true, Some(what)),
            Missing::All(why) => (false, Some(why)),
        };
        if let (Sandbox::On, Some(missing)) = (self.asked, &missing) {
            return Err(WallError::Missing { missing: missing.clone() });
        }
        self.standing.extend(stands.then_some(wall));
        self.missing.extend(missing);
        Ok(())
    }
}

impl fmt::Display for Walls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.asked, &self.standing[..]) {
            (Sandbox::Off, _) => return f.write_str("off"),
            (_, []) => f.write_str("none")?,
            (_, standing) => f.write_str(&standing.join(" and "))?,
        }
        if !self.missing.is_empty() {
            write!(f, "; missing: {}", self.missing.join("; "))?;
        }
        Ok(())
    }
}

/// What of a wall this kernel does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It stands as it should.
    Nothing,
    /// It stands, without this.
    Part(String),
    /// It does not stand.
    All(String),
}

/// Why there is no wall where one was asked for.
#[derive(Debug, thiserror::Error)]
pub enum WallError {
    /// The kernel has none.
    #[error("this kernel cannot do what process.sandbox = \"on\" asks for: {missing}; run a newer one, or say \"auto\"")]
    Missing {
        /// What it has not.
        missing: String,
    },
    /// The kernel has one and did not take ours.
    #[error("the wall '{wall}' cannot be put up: {error}; report it, and start with process.sandbox = \"off\" until then")]
    Refused {
        /// Which.
        wall: &'static str,
        /// Its words.
        error: String,
    },
}

/// What this kernel lacks of the walls, in words.
#[must_use]
pub fn missing() -> Vec<String> {
    // A thread of its own is bound, and is over then.
    let tried = std::thread::spawn(|| Reach::default().enforce()).join();
    let landlock = match tried {
        Ok(Ok(Missing::Nothing)) => None,
        Ok(Ok(Missing::Part(what) | Missing::All(what))) => Some(what),
        Ok(Err(error)) => Some(format!("Landlock: {error}")),
        Err(_) => Some("Landlock: it cannot be tried".into()),
    };
    // Source: seccomp(2). Without filters the file is not there.
    let filters = std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists();
    landlock.into_iter().chain((!filters).then(|| "seccomp with filters".into())).collect()
}

/// From here on this process leaves no core file, and no other process of its user may read its memory. Lost at `execve`.
///
/// # Errors
/// Those of the system.
pub fn forbid_dumps() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_and_refused_where_walls_were_asked_for() {
        let part = || Missing::Part("no rule for ports".into());
        let mut walls = Walls::new(Sandbox::Auto);
        assert_eq!((walls.to_string(), walls.are_whole()), ("none".into(), false));
        walls.note("seccomp", Missing::Nothing).unwrap();
        assert_eq!((walls.to_string(), walls.are_whole(), walls.are_around_files()), ("seccomp".into(), true, false));
        walls.note("landlock", part()).unwrap();
        assert_eq!((walls.to_string(), walls.are_whole()), ("seccomp and landlock; missing: no rule for ports".into(), false));
        assert!(walls.are_around_files());
        let mut walls = Walls::new(Sandbox::Auto);
        walls.note("landlock", Missing::All("no landlock".into())).unwrap();
        assert_eq!(walls.to_string(), "none; missing: no landlock");
        let mut walls = Walls::new(Sandbox::On);
        walls.note("seccomp", Missing::Nothing).unwrap();
        assert!(walls.note("landlock", part()).unwrap_err().to_string().contains("no rule for ports"));
        assert!(walls.note("landlock", Missing::All("no landlock".into())).is_err());
        let mut off = Walls::new(Sandbox::Off);
        off.stand_before_files(&Reach::default()).unwrap();
        off.stand_before_calls(Calls::Build).unwrap();
        assert_eq!((off.to_string(), off.are_whole()), ("off".into(), false));
        assert!(std::fs::read("/proc/self/status").is_ok());
    }
}

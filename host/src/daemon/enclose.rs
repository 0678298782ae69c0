//! The walls around the process of a node, and the process that starts its builds.
//!
//! Owns the order in which they come, and the list of all that a node opens while it runs. Knows nothing about how a wall is made. Invariant: no
//! thread exists before the wall around files stands.

use std::fs;
use std::path::Path;

use super::StartError;
use crate::capability;
use crate::config::{self, Config, Sandbox};
use crate::engine::build::Helper;
use crate::grants::Access;
use crate::process::{self, Calls, Reach, Walls};
use crate::telemetry::metrics::Metrics;

/// Whose the process is that a node is started in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Process {
    /// Others use it too: no walls are put around it.
    #[default]
    Shared,
    /// The node's alone, without any thread yet: walls are put around it, as `process.sandbox` says.
    Own,
}

/// Starts what makes builds, and then the walls around this process that its files stand behind. Before there is any thread.
pub(super) fn enclose(
    config: &Config,
    data_dir: &Path,
    key_file: Option<&Path>,
    credentials: Option<&Path>,
    process: Process,
) -> Result<(Helper, Walls), StartError> {
    let mut reach = reach(config, data_dir, key_file);
    // Before the walls, because it has to do what they forbid.
    let helper = Helper::start(Path::new(Helper::SELF), config.process.sandbox, &reach).map_err(StartError::Helper)?;
    // After it, which reads none of them.
    config.secrets.dir.as_deref().into_iter().chain(credentials).for_each(|path| reach.read(path));
    if process == Process::Shared {
        return Ok((helper, Walls::new(Sandbox::Off)));
    }
    let mut walls = Walls::new(config.process.sandbox);
    walls.stand_before_files(&reach)?;
    if walls.are_around_files() {
        warn_of_named(&config.process);
        let [read, write] = reach.there();
        tracing::info!(?read, ?write, "a wall stands around files: what is not in these paths cannot be opened");
    }
    if !config.process.core_dumps {
        capability::handler::prepare_process();
        process::forbid_dumps().map_err(StartError::Dumps)?;
    }
    Ok((helper, walls))
}

/// Puts the last wall around this process: everything is open, and no guest has run.
pub(super) fn close(walls: &mut Walls, metrics: &Metrics) -> Result<(), StartError> {
    walls.stand_before_calls(Calls::Node)?;
    metrics.sandboxed.set(walls.are_whole().into());
    Ok(())
}

/// Says which of the paths that somebody named do not do what they are named for. Those that Hob adds by itself may be missing without a
/// word: no system has all of them.
fn warn_of_named(named: &config::Process) {
    for (key, paths) in [("process.read", &named.read), ("process.write", &named.write)] {
        for path in paths {
            let shown = path.display();
            match fs::metadata(path) {
                Err(error) => tracing::warn!(
                    key, path = %shown, %error,
                    "a path that is named cannot be opened: what comes to be there later stays out of reach; make it, and start hob again"
                ),
                Ok(meta) if key == "process.write" && !meta.is_dir() => tracing::warn!(
                    key, path = %shown,
                    "a path that is named is no folder: it can be written to, but not be removed or replaced; name the folder that it is in"
                ),
                Ok(_) => {}
            }
        }
    }
}

/// What a node that serves may reach of files. Whoever reads or writes a path that the configuration names adds it here: what is not
/// here cannot be opened, from before the first file of a tenant is read.
fn reach(config: &Config, data_dir: &Path, key_file: Option<&Path>) -> Reach {
    let mut reach = Reach::of_system();
    reach.write(data_dir);
    config.process.write.iter().for_each(|path| reach.write(path));
    config.process.read.iter().for_each(|path| reach.read(path));
    key_file.into_iter().for_each(|path| reach.read(path));
    config.read_later().into_iter().for_each(|path| reach.read_replaced(path));
    config.egress.ca_files.iter().for_each(|path| reach.read(path));
    for folder in &config.folder {
        match folder.access {
            Access::Read => reach.read(&folder.path),
            Access::ReadWrite => reach.write(&folder.path),
        }
    }
    config.origin.iter().filter_map(|origin| origin.key_file.as_deref()).for_each(|path| reach.read(path));
    reach
}

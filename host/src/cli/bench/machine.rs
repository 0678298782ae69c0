//! Where something was measured: the machine and the program, as the daemon says, and what lies in the page cache. A daemon of before that
//! does not say, nor does any to a token that is not its operator's: then what is told is said to be the client's.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::path::{Path, PathBuf};

use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::cli::text::{bytes, clean};
use crate::control::about;
use crate::control::wire::NodeInfo;
use crate::engine::ENGINE_VERSION;

/// Whose daemon was measured.
#[derive(Debug, Clone)]
pub(super) enum Daemon {
    /// One of this program, with its data here.
    Own {
        /// Its data directory.
        data_dir: PathBuf,
    },
    /// The one at this address. Where its files lie is not known here.
    Other(String),
}

/// What a page of memory has on every machine that Hob knows, in bytes.
const PAGE: u64 = 4096;

/// What was measured on, as names and values. `told`: what the daemon says of itself.
pub(super) fn describe(daemon: &Daemon, told: Option<&NodeInfo>) -> Vec<(&'static str, String)> {
    let (place, cache) = match daemon {
        Daemon::Own { data_dir } => ("of this program, on free ports".to_owned(), cached(&data_dir.join("artifacts"))),
        Daemon::Other(server) => (format!("at {}", clean(server)), None),
    };
    let cache = cache.map_or_else(
        || "not known".into(),
        |(cached, all)| format!("{} of {} of native code are cached at the end", bytes(cached), bytes(all)),
    );
    let mine = about(ENGINE_VERSION, &[]);
    let (machine, names) = match told {
        Some(told) => (told, ["processor", "cores", "memory", "kernel", "program"]),
        None => (&mine, ["client processor", "client cores", "client memory", "client kernel", "client program"]),
    };
    let unknown = || "unknown".to_owned();
    let NodeInfo { version, engine, build, settings, processor, cores, memory_bytes, kernel } = machine;
    let slow = if build == "debug" { ": several times slower than a release build" } else { "" };
    let values = [
        processor.clone().unwrap_or_else(unknown),
        cores.map_or_else(unknown, |cores| cores.to_string()),
        memory_bytes.map_or_else(unknown, bytes),
        kernel.clone(),
        format!("hob {version}, {build} build{slow}; {engine}"),
    ];
    let mut all: Vec<_> = names.into_iter().zip(values.map(|value| clean(&value))).collect();
    let set: Vec<_> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let settings = match told {
        None => "not known: its machine, program and settings are told to its operator".to_owned(),
        Some(_) if set.is_empty() => "the defaults of [engine] and [build]".into(),
        Some(_) => format!("{}, else the defaults of [engine] and [build]", clean(&set.join(" "))),
    };
    all.extend([("daemon", place), ("settings", settings), ("page cache", cache)]);
    all
}

/// Bytes of all files below a folder that are in the page cache, and bytes of all. `None` if the file system does not tell.
fn cached(folder: &Path) -> Option<(u64, u64)> {
    let mut sum = (0, 0);
    for entry in fs::read_dir(folder).ok()? {
        let path = entry.ok()?.path();
        let (cached, all) = if path.is_dir() { cached(&path)? } else { cached_of_file(&path)? };
        sum = (sum.0 + cached, sum.1 + all);
    }
    Some(sum)
}

fn cached_of_file(path: &Path) -> Option<(u64, u64)> {
    let file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    let mut cached = 0;
    for at in (0..len).step_by(usize::try_from(PAGE).ok()?) {
        let mut byte = [0];
        match preadv2(&file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT) {
            Ok(_) => cached += PAGE.min(len - at),
            // It would have to be read from the disk.
            Err(Errno::AGAIN) => {}
            Err(_) => return None,
        }
    }
    Some((cached, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_just_written_is_cached_or_not_known() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tenant")).unwrap();
        fs::write(dir.path().join("tenant/a"), vec![1; 10_000]).unwrap();
        assert!(matches!(cached(dir.path()), Some((10_000, 10_000)) | None));
        assert_eq!(cached(&dir.path().join("nothing")), None);
    }

    #[test]
    fn a_machine_is_the_daemons_only_where_it_is_told() {
        let daemon = Daemon::Other("http://10.0.0.1:3900".into());
        let value = |told: Option<&NodeInfo>, name: &str| {
            let all = describe(&daemon, told);
            all.into_iter().find(|(have, _)| *have == name).map(|(_, value)| value)
        };
        let told = about("engine", &[("engine.templates_max".into(), "2".into())]);
        assert_eq!(value(Some(&told), "settings").unwrap(), "engine.templates_max=2, else the defaults of [engine] and [build]");
        assert!(value(Some(&told), "processor").is_some() && value(Some(&told), "client processor").is_none());
        assert!(value(None, "client processor").is_some() && value(None, "processor").is_none());
        assert!(value(None, "settings").unwrap().starts_with("not known"));
    }

    #[test]
    fn nothing_is_left_out() {
        let mut told = about(ENGINE_VERSION, &[]);
        told.kernel = "a\x1b".into();
        let all = describe(&Daemon::Other("http://a\x1b".into()), Some(&told));
        assert!(all.iter().all(|(_, value)| !value.is_empty() && !value.contains('\x1b')), "{all:?}");
    }
}

//! Where something was measured: the machine, the program, and what lies in the page cache. Of a daemon on another machine that is not
//! known, so what is told is said to be the client's.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::cli::text::{bytes, clean};
use crate::engine::ENGINE_VERSION;

/// Whose daemon was measured.
#[derive(Debug, Clone)]
pub(super) enum Daemon {
    /// One of this program, with its data here.
    Own {
        /// Its data directory.
        data_dir: PathBuf,
    },
    /// The one at this address. Which program it is and where its files lie is not known here.
    Other(String),
}

/// What a page of memory has on every machine that Hob knows, in bytes.
const PAGE: u64 = 4096;

/// What was measured on, as names and values.
pub(super) fn describe(daemon: &Daemon) -> Vec<(&'static str, String)> {
    let (is_own, is_here) = match daemon {
        Daemon::Own { .. } => (true, true),
        Daemon::Other(server) => (false, is_loopback(server)),
    };
    let build = if cfg!(debug_assertions) { "debug build: several times slower than a release build" } else { "release build" };
    let program = format!("hob {}, {build}; {ENGINE_VERSION}", env!("CARGO_PKG_VERSION"));
    let (daemon, cache) = match daemon {
        Daemon::Own { data_dir } => {
            ("of this program, on free ports, with default settings".to_owned(), cached(&data_dir.join("artifacts")))
        }
        Daemon::Other(server) => {
            let unknown = if is_here { "its build and settings" } else { "its machine, build and settings" };
            (format!("at {}; {unknown} are not known here", clean(server)), None)
        }
    };
    let cache = cache.map_or_else(
        || "not known".into(),
        |(cached, all)| format!("{} of {} of native code are cached at the end", bytes(cached), bytes(all)),
    );
    let field = |file: &str, key: &str| -> Option<String> {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(clean(line.split_once(':')?.1.trim()))
    };
    let unknown = || "unknown".to_owned();
    let memory = field("/proc/meminfo", "MemTotal").and_then(|text| text.strip_suffix(" kB")?.parse::<u64>().ok());
    let cores = std::thread::available_parallelism().map_or_else(|_| unknown(), |cores| cores.to_string());
    let named = |here, client| if is_here { here } else { client };
    vec![
        (named("processor", "client processor"), field("/proc/cpuinfo", "model name").unwrap_or_else(unknown)),
        (named("cores", "client cores"), cores),
        (named("memory", "client memory"), memory.map_or_else(unknown, |kib| bytes(kib << 10))),
        (named("kernel", "client kernel"), clean(&rustix::system::uname().release().to_string_lossy())),
        (if is_own { "program" } else { "client program" }, program),
        ("daemon", daemon),
        ("page cache", cache),
    ]
}

/// Whether a server's address is one of this machine.
fn is_loopback(server: &str) -> bool {
    let Ok(uri) = server.parse::<http::Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
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
    fn a_machine_is_the_daemons_only_where_it_is_known() {
        let names = |daemon| describe(&daemon).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        for server in ["http://127.0.0.1:3001", "http://[::1]:3001", "https://localhost:3001"] {
            let names = names(Daemon::Other(server.into()));
            assert!(names.contains(&"processor") && names.contains(&"client program"), "{server}: {names:?}");
        }
        for server in ["http://10.0.0.1:3001", "http://hob.example", "http://127.0.0.1.example", ""] {
            let names = names(Daemon::Other(server.into()));
            assert!(names.contains(&"client processor") && !names.contains(&"processor"), "{server}: {names:?}");
        }
    }

    #[test]
    fn nothing_is_left_out() {
        let all = describe(&Daemon::Other("http://a\x1b".into()));
        assert!(all.iter().all(|(_, value)| !value.is_empty() && !value.contains('\x1b')), "{all:?}");
    }
}

//! `hob doctor`: whether this machine has what Hob needs.
//!
//! Owns the checks and what to do about each; those of buckets are in `doctor/data.rs`. Changes nothing without `--fix`, and then only adds wasm targets. A check that
//! fails and is required makes the command fail; one that is not is marked and passed over.

mod data;
mod secrets;

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::process::{Resource, getrlimit};

use super::failure::Exit;
use super::output::{self, Colour, Format, paint};
use super::text::clean;
use super::trust::Trust;
use super::{Ctx, Failure, client, environment, toolchain};
use crate::config::{self, Config};
use crate::process;

/// Arguments of `hob doctor`.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Add the wasm targets that are missing, with rustup
    #[arg(long)]
    fix: bool,
    /// The data directory to check [default: the one of `hob serve`]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Leave out the reading of all that is in buckets
    #[arg(long)]
    no_scrub: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// As it should be.
    Good,
    /// Not, and something will fail.
    Bad,
    /// Not, but only some will miss it.
    Absent,
}

/// One line of the report.
#[derive(Debug)]
struct Check {
    name: String,
    state: State,
    found: String,
    /// What to do about it.
    remedy: Option<String>,
}

impl Check {
    fn good(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Good, found: found.into(), remedy: None }
    }

    fn bad(name: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Bad, remedy: Some(remedy.into()), ..Self::good(name, found) }
    }

    fn absent(name: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Absent, ..Self::bad(name, found, remedy) }
    }

    fn show(&self) -> String {
        let mark = match self.state {
            State::Good => paint(Colour::Green, "✔"),
            State::Bad => paint(Colour::Red, "✘"),
            State::Absent => paint(Colour::Yellow, "–"),
        };
        let remedy = self.remedy.as_ref().map(|remedy| format!("\n    {remedy}")).unwrap_or_default();
        format!("{mark} {}: {}{remedy}", self.name, self.found)
    }

    fn json(&self) -> serde_json::Value {
        let state = match self.state {
            State::Good => "ok",
            State::Bad => "failed",
            State::Absent => "absent",
        };
        serde_json::json!({ "check": self.name, "state": state, "found": self.found, "remedy": self.remedy })
    }
}

impl Doctor {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let checks = self.checks(ctx, &ctx.trust()?);
        match ctx.format {
            Format::Json => output::json(&checks.iter().map(Check::json).collect::<Vec<_>>())?,
            Format::Text => checks.iter().try_for_each(|check| output::line(check.show()))?,
        }
        let bad: Vec<_> = checks.iter().filter(|check| check.state == State::Bad).collect();
        let Some(first) = bad.first() else { return Ok(()) };
        let failure = Failure::new(Exit::Failure, format!("{} of {} checks failed", bad.len(), checks.len()));
        // What is kept counts more than what is built, and what can be mended at once more than the rest.
        let of = |begin: &str| bad.iter().find(|check| check.name.starts_with(begin));
        let worst = of("bucket ").or_else(|| of("target ").filter(|_| !self.fix)).unwrap_or(first);
        let failure = failure.next(next_command(&worst.name, self.fix));
        Err(match &worst.remedy {
            Some(remedy) => failure.hint(remedy.clone()),
            None => failure,
        })
    }

    fn checks(&self, ctx: &Ctx, trust: &Trust) -> Vec<Check> {
        let config = Config::default();
        let mut checks = vec![Check::good("hob", env!("CARGO_PKG_VERSION"))];
        checks.extend(programs());
        checks.extend(targets(self.fix));
        let dir = self.data_dir.clone().or_else(environment::data_dir);
        checks.push(data_dir(dir.clone()));
        checks.push(control_port(&ctx.server, trust));
        checks.push(data_port(config.net.addr, ctx.scheme(), trust));
        checks.push(mappings(&config.engine));
        checks.push(open_files(&config.net));
        checks.push(sandbox());
        checks.extend(data::of_the_daemon(ctx.server.trim_end_matches('/'), trust));
        let client = ctx.client().map_err(|failure| {
            checks.push(Check::bad("token", clean(&failure.sentence()), "hob --token-file FILE doctor"));
        });
        let client = client.ok().filter(|_| client::is_live(ctx.server.trim_end_matches('/'), trust));
        checks.extend(client.iter().flat_map(secrets::online));
        if !self.no_scrub {
            checks.extend(client.iter().flat_map(data::online));
            checks.extend(dir.iter().flat_map(|dir| data::offline(dir, client.is_some())));
        }
        checks
    }
}

/// What to type after a check that failed; the remedy says what to do before.
fn next_command(check: &str, is_fixed: bool) -> String {
    match check.split(' ').collect::<Vec<_>>()[..] {
        ["target", _] if !is_fixed => "hob doctor --fix".into(),
        ["bucket", name] => format!("hob bucket inspect {name}"),
        _ => "hob doctor --help".into(),
    }
}

fn programs() -> Vec<Check> {
    let program = |name: &str, remedy: &str| match toolchain::version(name) {
        Some(version) => Check::good(name, version),
        None => Check::bad(name, "not found", remedy),
    };
    let install = "install Rust: https://rustup.rs";
    let mut checks = vec![program("rustc", install), program("cargo", install)];
    checks.push(match toolchain::version("rustup") {
        Some(version) => Check::good("rustup", version),
        None => Check::absent("rustup", "not found", "needed only to add wasm targets: https://rustup.rs"),
    });
    checks.push(
        match ["cc", "gcc", "clang"].into_iter().find_map(|name| toolchain::version(name).map(|version| (name, version))) {
            Some((name, version)) => Check::good("C compiler", format!("{name}: {version}")),
            None => Check::bad("C compiler", "not found", "cargo links with it: apt-get install gcc, or what your system has"),
        },
    );
    checks
}

fn targets(fix: bool) -> Vec<Check> {
    let here = Path::new(".");
    let Ok(mut missing) = toolchain::missing_targets(here) else { return Vec::new() };
    if fix {
        missing.retain(|target| {
            let added = toolchain::add_target(target, here);
            if let Err(error) = &added {
                output::note(format!("{error:#}"));
            }
            added.is_err()
        });
    }
    let check = |target: &str| match missing.contains(&target) {
        false => Check::good(format!("target {target}"), "installed"),
        true => Check::bad(format!("target {target}"), "not installed", format!("rustup target add {target}")),
    };
    toolchain::TARGETS.into_iter().map(check).collect()
}

/// Whether the data directory, or the nearest folder above it that exists, can be written to. Leaves nothing behind.
fn data_dir(dir: Option<PathBuf>) -> Check {
    let name = "data directory";
    let Some(dir) = dir else {
        return Check::bad(name, "there is no home directory to put it in", "hob serve --data-dir DIR");
    };
    let shown = dir.display();
    let Some(existing) = dir.ancestors().find(|path| path.exists()) else {
        return Check::bad(name, format!("{shown} cannot be made"), "hob serve --data-dir DIR");
    };
    if !existing.is_dir() {
        let found = format!("{shown} cannot be made: '{}' is not a folder", existing.display());
        return Check::bad(name, found, "hob serve --data-dir DIR");
    }
    let probe = existing.join(format!(".hob-doctor-{}", std::process::id()));
    let written = fs::File::create_new(&probe);
    // It was just made, and an empty file harms nobody.
    let _ = fs::remove_file(&probe);
    match written {
        Ok(_) if existing == dir => Check::good(name, format!("{shown} can be written")),
        Ok(_) => Check::good(name, format!("{shown} can be made")),
        Err(error) => {
            Check::bad(name, format!("{shown} cannot be written: {error}"), "change its owner, or: hob serve --data-dir DIR")
        }
    }
}

/// The port at which the other commands look for a daemon.
fn control_port(server: &str, trust: &Trust) -> Check {
    let server = server.trim_end_matches('/');
    let authority = server.trim_start_matches("https://").trim_start_matches("http://");
    let name = format!("control port {authority}");
    if client::is_live(server, trust) {
        return Check::good(name, "a daemon answers");
    }
    // Only on this machine it could be another program's.
    let addrs = authority.to_socket_addrs().ok();
    match addrs.and_then(|mut addrs| addrs.find(|addr| addr.ip().is_loopback())) {
        Some(addr) => port(name, addr, "hob serve --control 127.0.0.1:0"),
        None => Check::absent(name, "no daemon answers", "start one there, or name another: --server or HOB_SERVER"),
    }
}

fn data_port(addr: SocketAddr, scheme: &str, trust: &Trust) -> Check {
    let name = format!("data port {}", addr.port());
    // Whatever path is asked for, a hob's answer names itself in one of these.
    let is_hob = client::probe(&format!("{scheme}://{addr}/"), trust)
        .is_some_and(|response| ["hob-error", "hob-executed"].iter().any(|header| response.headers().contains_key(*header)));
    match is_hob {
        true => Check::good(name, "a daemon answers"),
        false => port(name, addr, "hob serve --addr 127.0.0.1:0"),
    }
}

fn port(name: String, addr: SocketAddr, other: &str) -> Check {
    match TcpListener::bind(addr) {
        Ok(_) => Check::good(name, "free"),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Check::bad(name, "another program listens there", format!("stop it, or take another port: {other}"))
        }
        Err(error) => Check::bad(name, format!("cannot be used: {error}"), format!("take another port: {other}")),
    }
}

/// Mappings that one instance has at most: its memories with their guards, tables, stack and image.
const MAPPINGS_PER_INSTANCE: u64 = 6;
/// What the process has besides: libraries, threads, artifacts and heap.
const MAPPINGS_BESIDES: u64 = 4000;

fn mappings(engine: &config::Engine) -> Check {
    let name = "vm.max_map_count";
    let needed = u64::from(engine.instances_max) * MAPPINGS_PER_INSTANCE + MAPPINGS_BESIDES;
    let text = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    let Ok(found) = text.trim().parse::<u64>() else {
        return Check::absent(name, "cannot be read", "nothing to do if instances start");
    };
    match found >= needed {
        true => Check::good(name, format!("{found}, {needed} needed for {} instances", engine.instances_max)),
        false => Check::bad(name, format!("{found}, {needed} needed"), format!("sudo sysctl vm.max_map_count={needed}")),
    }
}

/// Whether the kernel has the walls that stand around a daemon.
fn sandbox() -> Check {
    let name = "sandbox";
    match process::missing().as_slice() {
        [] => Check::good(name, "this kernel has landlock and seccomp"),
        missing => Check::absent(
            name,
            format!("missing: {}", missing.join("; ")),
            "a daemon runs with fewer walls; a newer kernel has them",
        ),
    }
}

/// Files that the daemon has open besides connections.
const FILES_BESIDES: u64 = 256;

fn open_files(net: &config::Net) -> Check {
    let name = "open files";
    let needed = (net.connections_max + net.control_connections_max) as u64 + FILES_BESIDES;
    // The daemon raises its own soft limit to the hard one.
    match getrlimit(Resource::Nofile).maximum {
        Some(hard) if hard < needed => {
            Check::bad(name, format!("at most {hard}, {needed} needed"), format!("raise the hard limit: ulimit -Hn {needed}"))
        }
        Some(hard) => Check::good(name, format!("at most {hard}, {needed} needed")),
        None => Check::good(name, "unlimited"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_free_or_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        assert_eq!(port("p".into(), addr, "x").state, State::Bad);
        drop(listener);
        assert_eq!(port("p".into(), addr, "x").state, State::Good);
    }

    #[test]
    fn the_control_port_is_the_one_that_was_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        // It accepts, and says nothing that a daemon would. Its port is free before the client is told.
        let deaf = std::thread::spawn(move || {
            let accepted = listener.accept();
            drop(listener);
            drop(accepted);
        });
        let check = control_port(&format!("http://{addr}/"), &Trust::default());
        assert_eq!((check.name.as_str(), check.state), (&*format!("control port {addr}"), State::Good), "{check:?}");
        deaf.join().unwrap();
        assert_eq!(control_port("http://nobody.invalid:1", &Trust::default()).state, State::Absent);
        assert!(control_port("http://nobody.invalid:1", &Trust::default()).name.ends_with(" nobody.invalid:1"));
    }

    #[test]
    fn a_data_directory_is_checked_without_being_made() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a/b");
        assert_eq!(data_dir(Some(dir.clone())).state, State::Good);
        assert!(!dir.exists() && fs::read_dir(temp.path()).unwrap().next().is_none());
        assert_eq!(data_dir(Some("/dev/null/a".into())).state, State::Bad);
        assert_eq!(data_dir(None).state, State::Bad);
    }

    #[test]
    fn too_small_limits_are_named() {
        let engine = config::Engine { instances_max: u32::MAX, ..config::Engine::default() };
        assert_eq!(mappings(&engine).state, State::Bad);
        let net = config::Net { connections_max: usize::MAX / 4, ..config::Net::default() };
        assert_ne!(open_files(&net).found, "");
    }

    #[test]
    fn what_failed_first_says_what_is_next() {
        for (check, is_fixed, expected) in [
            ("target wasm32-wasip1", false, "hob doctor --fix"),
            ("target wasm32-wasip1", true, "hob doctor --help"),
            ("bucket b", false, "hob bucket inspect b"),
            ("bucket b on disk", false, "hob doctor --help"),
            ("open files", false, "hob doctor --help"),
        ] {
            assert_eq!(next_command(check, is_fixed), expected, "{check}");
        }
    }

    #[test]
    fn a_line_has_a_mark_and_a_remedy() {
        assert_eq!(Check::bad("a", "b", "c").show(), "✘ a: b\n    c");
        assert_eq!(Check::good("a", "b").show(), "✔ a: b");
        assert_eq!(Check::absent("a", "b", "c").json()["state"], "absent");
    }
}

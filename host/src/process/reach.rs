//! What a process reaches of files and of the network, as Landlock holds it to.
//!
//! Owns the rules and what each release of the kernel knows of them. Knows nothing about who needs which file: callers add those.
//! Invariant: what was not added cannot be opened, made, renamed, removed or cut; what was added for reading can only be read; no TCP port is
//! opened any more.

use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, Scope,
};

use super::Missing;

/// Files that the C library reads when a name is looked up, and for local time. Each may be missing.
const RESOLVER: [&str; 8] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/localtime",
    "/etc/ld.so.cache",
];

/// Where systems keep the certificates of authorities, and what the links in there lead to.
const TRUST: [&str; 5] =
    ["/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/pki", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates"];

/// Folders with more in them than would be opened for the sake of one file.
const FOR_ALL: [&str; 5] = ["/", "/etc", "/usr", "/var", "/run"];

/// What is read of the kernel at run time: maps and mappings of the own process, limits of mappings, control groups, huge pages, processors.
///
/// `/proc` as a whole, because the files in it get new inodes whenever the kernel is short of memory, and a rule is for an inode. Landlock
/// keeps the memory, mappings and environment of processes outside of it closed all the same (`ptrace` rules).
const KERNEL: [&str; 5] =
    ["/proc", "/sys/fs/cgroup", "/sys/kernel/mm/transparent_hugepage", "/sys/devices/system/cpu", "/sys/devices/system/node"];

/// The release of Landlock that has all that is used: Linux 6.12.
const WHOLE: ABI = ABI::V6;

/// What may be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    execute: Vec<PathBuf>,
}

impl Reach {
    /// What every process needs that looks up names and asks the kernel about itself, and nothing else.
    #[must_use]
    pub fn of_system() -> Self {
        let mut reach = Self::default();
        RESOLVER.iter().for_each(|path| reach.read_replaced(path));
        reach.read.extend(TRUST.into_iter().chain(KERNEL).map(PathBuf::from));
        // The C library loads what looks names up from where it lies itself.
        let libraries = libraries();
        reach.read.extend(libraries.iter().filter_map(|path| path.parent()).map(Path::to_owned));
        reach.read.sort();
        reach.read.dedup();
        reach
    }

    /// A file, or a folder and all that is in it, may be read. One that is missing when the rules are made stays out of reach.
    pub fn read(&mut self, path: impl Into<PathBuf>) {
        self.read.push(absolute(path.into()));
    }

    /// A file may be read that others replace while this process runs, as certificates are: a rule is for one file, and not for a name. So
    /// the folder that a link leads to may be read too, with all that is in it, and the file's own folder, unless that is one of [`FOR_ALL`].
    pub fn read_replaced(&mut self, path: impl AsRef<Path>) {
        let path = absolute(path.as_ref().to_owned());
        let real = fs::canonicalize(&path).ok();
        let folders = [Some(&*path), real.as_deref()].into_iter().flatten().filter_map(Path::parent);
        // Their real names, because '..' and links may lead to one for all.
        for folder in folders.filter_map(|folder| fs::canonicalize(folder).ok()) {
            if !FOR_ALL.iter().any(|wide| folder == Path::new(wide)) {
                self.read.push(folder);
            }
        }
        self.read.push(path);
    }

    /// A folder, and all that is in it, may be read, written, made and removed.
    pub fn write(&mut self, path: impl Into<PathBuf>) {
        self.write.push(absolute(path.into()));
    }

    /// What the running program itself is made of may be run again: for the process that starts builds.
    pub fn run_self(&mut self) {
        self.execute.push("/proc/self/exe".into());
        self.execute.extend(libraries());
    }

    /// Those of its paths that are there, each once and in order: what may be read, and what may be read and written.
    #[must_use]
    pub fn there(&self) -> [Vec<&Path>; 2] {
        [&self.read, &self.write].map(|paths| {
            let mut there: Vec<_> = paths.iter().map(PathBuf::as_path).filter(|path| PathFd::new(path).is_ok()).collect();
            there.sort_unstable();
            there.dedup();
            there
        })
    }

    /// As arguments of a process that is to have the same reach.
    #[must_use]
    pub fn to_args(&self) -> Vec<std::ffi::OsString> {
        let pairs = |flag: &'static str, paths: &[PathBuf]| {
            paths.iter().flat_map(move |path| [flag.into(), path.clone().into_os_string()]).collect::<Vec<_>>()
        };
        [pairs("read", &self.read), pairs("write", &self.write)].concat()
    }

    /// The inverse of [`Reach::to_args`].
    #[must_use]
    pub fn from_args(args: &[std::ffi::OsString]) -> Option<Self> {
        let mut reach = Self::default();
        for pair in args.chunks(2) {
            let [flag, path] = pair else { return None };
            match flag.to_str()? {
                "read" => reach.read(path),
                "write" => reach.write(path),
                _ => return None,
            }
        }
        Some(reach)
    }

    /// Binds the calling thread.
    pub(super) fn enforce(&self) -> Result<Missing, RulesetError> {
        // Nobody makes devices, or speaks to them beyond reading and writing.
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let write = AccessFs::from_all(WHOLE)
            & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock | AccessFs::IoctlDev);
        // Without it nothing may be renamed from one folder to another, by which every file of ours gets its name.
        let ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::Refer)
            .map(|ruleset| ruleset.set_compatibility(CompatLevel::BestEffort));
        let Ok(ruleset) = ruleset else {
            return Ok(Missing::All("Landlock, which Linux has since 5.19 and which lsm= of its command line must name".into()));
        };
        let mut ruleset = ruleset
            .handle_access(AccessFs::from_all(WHOLE))?
            .handle_access(AccessNet::BindTcp)?
            .scope(Scope::from_all(WHOLE))?
            .create()?;
        for (paths, access) in [(&self.read, read), (&self.write, write), (&self.execute, AccessFs::Execute | AccessFs::ReadFile)]
        {
            for path in paths {
                // What is not there cannot be reached; what cannot be opened now could not be later. Whoever named it may be told.
                let Ok(file) = PathFd::new(path) else { continue };
                let access = if path.is_dir() { access } else { access & AccessFs::from_file(WHOLE) };
                ruleset = ruleset.add_rule(PathBeneath::new(file, access))?;
            }
        }
        Ok(match ruleset.restrict_self()?.landlock {
            LandlockStatus::Available { effective_abi, .. } if effective_abi >= WHOLE => Missing::Nothing,
            LandlockStatus::Available { effective_abi, .. } => Missing::Part(lacks(effective_abi)),
            LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => Missing::All("Landlock".into()),
        })
    }
}

/// A path as another process can use it too.
fn absolute(path: PathBuf) -> PathBuf {
    // It fails where there is no current folder, and then a relative path leads nowhere.
    std::path::absolute(&path).unwrap_or(path)
}

/// What a release of Landlock does not know of what is used here.
fn lacks(abi: ABI) -> String {
    let known = [
        (ABI::V3, "cutting files", "6.2"),
        (ABI::V4, "opening TCP ports", "6.7"),
        (ABI::V5, "controlling devices", "6.10"),
        (WHOLE, "signals and abstract sockets", "6.12"),
    ];
    let lacking: Vec<_> =
        known.iter().filter(|(since, ..)| abi < *since).map(|(_, what, linux)| format!("{what} (Linux {linux})")).collect();
    format!("Landlock's rules for {}", lacking.join(", "))
}

/// Files that the running program is made of besides itself.
fn libraries() -> Vec<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let program = fs::read_link("/proc/self/exe").ok();
    let mut found: Vec<_> = maps
        .lines()
        .filter(|line| line.contains(" r-xp "))
        .filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])))
        .filter(|path| Some(path) != program.as_ref())
        .collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Write as _};

    use super::*;

    /// Runs `op` on a thread of its own, which alone is bound.
    fn bound(reach: &Reach, op: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let body = || {
                assert_eq!(reach.enforce().unwrap(), Missing::Nothing, "tests need the Landlock of Linux 6.12");
                op();
            };
            scope.spawn(body).join().unwrap();
        });
    }

    fn is_denied<T: std::fmt::Debug>(result: std::io::Result<T>) {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }

    #[test]
    fn what_was_not_named_cannot_be_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for folder in ["data", "data/a", "shown", "other"] {
            fs::create_dir(path(folder)).unwrap();
        }
        for file in ["data/old", "shown/page", "other/secret"] {
            fs::write(path(file), "text").unwrap();
        }
        let mut reach = Reach::default();
        reach.write(path("data"));
        reach.read(path("shown"));
        reach.read(path("missing"));
        bound(&reach, || {
            fs::write(path("data/new"), "text").unwrap();
            fs::rename(path("data/new"), path("data/a/new")).unwrap();
            fs::remove_file(path("data/old")).unwrap();
            assert_eq!(fs::read_dir(path("data")).unwrap().count(), 1);
            assert_eq!(fs::read_to_string(path("shown/page")).unwrap(), "text");
            is_denied(fs::write(path("shown/page"), "other"));
            is_denied(fs::File::options().append(true).open(path("shown/page")));
            is_denied(fs::remove_file(path("shown/page")));
            is_denied(fs::read(path("other/secret")));
            is_denied(fs::read_dir(path("other")));
            is_denied(fs::write(path("missing"), "text"));
            is_denied(fs::read("/etc/passwd"));
            is_denied(std::process::Command::new("/bin/true").status());
            is_denied(std::net::TcpListener::bind("127.0.0.1:0"));
            // A link of ours leads no further.
            std::os::unix::fs::symlink(path("other/secret"), path("data/link")).unwrap();
            is_denied(fs::read(path("data/link")));
        });
        assert!(fs::read(path("other/secret")).is_ok(), "no other thread is bound");
    }

    #[test]
    fn a_file_that_is_replaced_stays_in_reach() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for folder in ["live", "archive"] {
            fs::create_dir(path(folder)).unwrap();
        }
        fs::write(path("archive/1"), "old").unwrap();
        std::os::unix::fs::symlink("../archive/1", path("live/cert")).unwrap();
        let mut reach = Reach::default();
        reach.read_replaced(path("live/cert"));
        bound(&reach, || assert_eq!(fs::read_to_string(path("live/cert")).unwrap(), "old"));
        let renew = || {
            fs::write(path("archive/2"), "new").unwrap();
            std::os::unix::fs::symlink("../archive/2", path("live/next")).unwrap();
            fs::rename(path("live/next"), path("live/cert")).unwrap();
        };
        std::thread::scope(|scope| {
            let (told, tell) = std::sync::mpsc::sync_channel(1);
            let (done, renewed) = std::sync::mpsc::sync_channel(1);
            let path = &path;
            let reach = &reach;
            scope.spawn(move || {
                reach.enforce().unwrap();
                told.send(()).unwrap();
                renewed.recv().unwrap();
                assert_eq!(fs::read_to_string(path("live/cert")).unwrap(), "new");
            });
            tell.recv().unwrap();
            renew();
            done.send(()).unwrap();
        });
    }

    #[test]
    fn what_is_there_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for file in ["cert", "key"] {
            fs::write(path(file), "text").unwrap();
        }
        let mut reach = Reach::default();
        reach.read_replaced(path("cert"));
        reach.read_replaced(path("key"));
        reach.read(path("missing"));
        reach.write(path("key"));
        reach.write(path("key/below"));
        let real = fs::canonicalize(dir.path()).unwrap();
        let mut read = [real, path("cert"), path("key")];
        read.sort();
        assert_eq!(reach.there(), [read.iter().map(PathBuf::as_path).collect(), vec![&*path("key")]]);
    }

    #[test]
    fn no_folder_for_all_is_opened_for_a_file_in_it() {
        for file in ["/etc/passwd", "/etc/ssl/../passwd"] {
            let mut reach = Reach::default();
            reach.read_replaced(file);
            assert_eq!(reach.there(), [vec![Path::new(file)], vec![]]);
        }
        // One that is named from the current folder is told as it is from any.
        let mut reach = Reach::default();
        reach.read_replaced("Cargo.toml");
        let here = fs::canonicalize(".").unwrap();
        assert_eq!(reach.there()[0], [&*here, &here.join("Cargo.toml")]);
    }

    #[test]
    fn ports_that_are_open_stay_open_and_no_other_can_be() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        bound(&Reach::of_system(), || {
            is_denied(std::net::TcpListener::bind("127.0.0.1:0"));
            let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(b"outbound is free").unwrap();
            listener.accept().unwrap();
            assert!(fs::read("/proc/self/status").is_ok() && fs::read("/etc/hosts").is_ok());
            is_denied(fs::read("/etc/passwd"));
            is_denied(fs::read("/proc/1/environ"));
        });
    }

    #[test]
    fn arguments_round_trip() {
        let mut reach = Reach::default();
        reach.read("/a b");
        reach.write("read");
        assert_eq!(Reach::from_args(&reach.to_args()), Some(reach.clone()));
        let args = reach.to_args();
        assert_eq!(Reach::from_args(&args[1..]), None);
        assert_eq!(Reach::from_args(&args[..1]), None);
    }

    #[test]
    fn each_release_lacks_less() {
        assert!(lacks(ABI::V2).contains("6.2") && lacks(ABI::V5).starts_with("Landlock's rules for signals"));
    }
}

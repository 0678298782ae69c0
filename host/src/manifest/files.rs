//! `files` and `clock` of `[grants]`: which folders a function sees, and how exactly it sees the time.
//!
//! Owns their keys, the bounds on what a deploy may bring, and which paths can be part of it. Knows nothing about what lies on a disk.
//! Invariant: a path that passed here leads below the folder that it is joined to.

use toml::Value;

use super::data::{fields, word};
use super::{ManifestError, problem, string};
use crate::grants::{Access, ClockResolution, FileGrant};

/// Most folders that one function may be granted.
pub const FOLDERS_MAX: usize = 16;
/// Most files and folders that one deploy may bring.
pub const BUNDLE_ENTRIES_MAX: usize = 4096;
/// Longest path of one of them below the manifest's folder, in bytes; also of a folder's name for its guest.
pub const BUNDLE_PATH_LEN_MAX: usize = 512;
/// Most folders on the way to one of them.
pub const BUNDLE_DEPTH_MAX: usize = 16;
/// Longest name of one of them, in bytes: what Linux takes.
const NAME_LEN_MAX: usize = 255;

const FILE_KEYS: [&str; 3] = ["host", "guest", "access"];

/// A path that cannot be one of a deploy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// It leads elsewhere, or its spelling is not the only one.
    #[error("it must be relative, and go down by plain names: without '.', '..', '//', a '/' at its end, and NUL")]
    Form,
    /// Longer than [`BUNDLE_PATH_LEN_MAX`], or a name in it is too long.
    #[error("it is too long: expected at most {BUNDLE_PATH_LEN_MAX} bytes, and {NAME_LEN_MAX} for each name")]
    Len,
    /// Deeper than [`BUNDLE_DEPTH_MAX`].
    #[error("it is too deep: expected at most {BUNDLE_DEPTH_MAX} folders")]
    Depth,
}

/// Whether `path` can be one of a deploy: relative, downwards, within the bounds.
///
/// # Errors
/// [`BadPath`].
pub fn check_path(path: &str) -> Result<(), BadPath> {
    if path.len() > BUNDLE_PATH_LEN_MAX || path.split('/').any(|name| name.len() > NAME_LEN_MAX) {
        return Err(BadPath::Len);
    }
    if path.contains('\0') || path.split('/').any(|name| ["", ".", ".."].contains(&name)) {
        return Err(BadPath::Form);
    }
    if path.split('/').count() > BUNDLE_DEPTH_MAX + 1 { Err(BadPath::Depth) } else { Ok(()) }
}

pub(super) fn file_grant(value: Value) -> Result<FileGrant, ManifestError> {
    let mut fields = fields("grants.files", "a grant of files", value, &FILE_KEYS)?;
    let mut take = |key: &str| {
        let (name, value) = (format!("grants.files.{key}"), fields.remove(key));
        string(&name, value.ok_or_else(|| problem("grants.files", format!("expected '{key}'")))?)
    };
    let (host, guest) = (take("host")?, take("guest")?);
    let access = word("grants.files.access", fields.remove("access"), &Access::ALL.map(|access| (access.as_str(), access)))?;
    let grant = FileGrant { host, guest, access: access.unwrap_or(Access::Read) };
    if let Err(why) = check_path(grant.host.strip_prefix('/').unwrap_or(&grant.host)) {
        return Err(no_folder("grants.files.host", "site' or '/srv/site", &grant.host, &why));
    }
    if grant.is_bundled() && grant.access == Access::ReadWrite {
        let what = format!(
            "'{}' is copied into the revision, which never changes, so it can only be read; leave 'access' out, or name a folder of \
             the node by its absolute path",
            grant.host
        );
        return Err(problem("grants.files.access", what));
    }
    if grant.guest != "/" {
        check_guest("grants.files.guest", "/site", &grant.guest)?;
    }
    Ok(grant)
}

/// Whether a guest can have a folder of this name, which is not all of its paths. `such`: one that it can have.
pub(super) fn check_guest(key: &str, such: &str, path: &str) -> Result<(), ManifestError> {
    let Some(below) = path.strip_prefix('/').filter(|below| !below.is_empty()) else {
        return Err(problem(key, format!("expected a path such as '{such}', found '{path}'")));
    };
    check_path(below).map_err(|why| no_folder(key, such, path, &why))
}

/// A folder's path need not be relative, as [`BadPath::Form`] has it.
fn no_folder(key: &str, such: &str, path: &str, why: &BadPath) -> ManifestError {
    let why = match why {
        BadPath::Form => format!("expected a path such as '{such}', without '.', '..', '//' and a '/' at its end"),
        why => why.to_string(),
    };
    problem(key, format!("'{path}' is no folder: {why}"))
}

/// Refuses two folders of one name.
pub(super) fn distinct_guests<'a>(guests: impl Iterator<Item = &'a str>) -> Result<(), ManifestError> {
    let mut guests: Vec<_> = guests.collect();
    guests.sort_unstable();
    match guests.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(problem("grants.files.guest", format!("two folders are to be '{}'", pair[0]))),
        None => Ok(()),
    }
}

pub(super) fn clock(value: Value) -> Result<ClockResolution, ManifestError> {
    let known = ClockResolution::ALL.map(|clock| (clock.as_str(), clock));
    Ok(word("grants.clock", Some(value), &known)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::Manifest;
    use super::*;

    fn read(line: &str) -> Result<Manifest, String> {
        Manifest::parse(&format!("[grants]\n{line}\n")).map_err(|error| error.to_string())
    }

    #[test]
    fn grants_of_files_and_of_the_clock_are_read() {
        let manifest = read(
            "files = [{ host = 'site', guest = '/site' }, { host = 'a/b', guest = '/', access = 'read' }, \
             { host = '/srv/x', guest = '/x', access = 'read-write' }]\nclock = 'fine'",
        )
        .unwrap();
        let files: Vec<_> = manifest.grants.files.iter().map(|grant| (grant.is_bundled(), grant.access)).collect();
        assert_eq!(files, [(true, Access::Read), (true, Access::Read), (false, Access::ReadWrite)]);
        assert_eq!(manifest.grants.clock, ClockResolution::Fine);
        assert_eq!(read("").unwrap().grants.clock, ClockResolution::Coarse);
        let json = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
    }

    #[test]
    fn wrong_ones_say_what_was_expected() {
        let host = |host: &str| read(&format!("files = [{{ host = \"{host}\", guest = '/a' }}]"));
        for bad in ["", "/", ".", "..", "a/..", "../a", "a/../b", "./a", "a//b", "a/", "//a", "/a/../b", "/a/", "a/./b"] {
            let error = host(bad).unwrap_err();
            assert!(error.contains("is no folder: expected a path") && !error.contains("relative"), "{bad}: {error}");
        }
        assert!(host("a\\u0000b").is_err());
        let guest = |guest: &str| read(&format!("files = [{{ host = 'a', guest = '{guest}' }}]"));
        for bad in ["", "a", "/a/", "//", "/../a", "/a/..", "/a//b", "/./a"] {
            let error = guest(bad).unwrap_err();
            assert!(error.contains("expected a path such as '/site'") && !error.contains("relative"), "{bad}: {error}");
        }
        assert!(guest(&format!("/{}", "a".repeat(NAME_LEN_MAX + 1))).unwrap_err().contains("too long"));
        let wrong = read("files = [{ host = 'site', guest = '/site', access = 'read-write' }]").unwrap_err();
        assert!(wrong.contains("can only be read") && wrong.contains("absolute path"), "{wrong}");
        assert!(read("files = [{ host = 'a', guset = '/a' }]").unwrap_err().contains("did you mean 'guest'?"));
        assert!(read("files = [{ host = 'a' }]").unwrap_err().contains("expected 'guest'"));
        assert!(read("files = [{ guest = '/a' }]").unwrap_err().contains("expected 'host'"));
        assert!(read("files = [{ host = 'a', guest = '/a', access = 'all' }]").unwrap_err().contains("'read' or 'read-write'"));
        assert!(read("files = 'site'").unwrap_err().contains("expected a list of tables"));
        assert!(read("file = []").unwrap_err().contains("did you mean 'files'?"));
        let twice = "files = [{ host = 'a', guest = '/a' }, { host = 'b', guest = '/a' }]";
        assert!(read(twice).unwrap_err().contains("two folders are to be '/a'"));
        let mounted = "files = [{ host = 'a', guest = '/a' }]\ndata = [{ bucket = 'b', mount = '/a' }]";
        assert!(read(mounted).unwrap_err().contains("two folders are to be '/a'"));
        assert!(read("clock = 'exact'").unwrap_err().contains("expected 'coarse' or 'fine', found 'exact'"));
        assert!(read("clock = 1").is_err());
    }

    #[test]
    fn bounds_on_both_sides() {
        let folders = |count: usize| {
            let grants: Vec<_> = (0..count).map(|n| format!("{{ host = 'a', guest = '/{n}' }}")).collect();
            read(&format!("files = [{}]", grants.join(",")))
        };
        assert!(folders(FOLDERS_MAX).is_ok() && folders(FOLDERS_MAX + 1).is_err());
        let deep = |folders: usize| check_path(&vec!["a"; folders + 1].join("/"));
        assert_eq!((deep(BUNDLE_DEPTH_MAX), deep(BUNDLE_DEPTH_MAX + 1)), (Ok(()), Err(BadPath::Depth)));
        let at = format!("{0}/{0}/a", "a".repeat(NAME_LEN_MAX - 1));
        assert_eq!((at.len(), check_path(&at)), (BUNDLE_PATH_LEN_MAX - 1, Ok(())));
        assert_eq!(check_path(&format!("{at}b")), Ok(()));
        assert_eq!(check_path(&format!("{at}bc")), Err(BadPath::Len));
        assert_eq!(check_path(&"a".repeat(NAME_LEN_MAX)), Ok(()));
        assert_eq!(check_path(&"a".repeat(NAME_LEN_MAX + 1)), Err(BadPath::Len));
    }
}

//! Packing: the folders that a manifest grants, as a tar archive.
//!
//! Owns what of a folder goes in. Knows nothing about requests. Invariant: the same files give the same archive: no times, owners or modes
//! go in, and names are in order.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::Failure;
use super::failure::Exit;
use super::project::Project;
use super::scratch::Scratch;
use crate::manifest::{BUNDLE_ENTRIES_MAX, check_path};

/// An archive in a temporary file, which goes with it.
#[derive(Debug)]
pub(super) struct Packed {
    /// At position 0.
    pub(super) file: File,
    /// Its length in bytes.
    pub(super) len: u64,
    _scratch: Scratch,
}

/// Packs what a project's manifest grants of the folder that it lies in; `None` if that is nothing.
pub(super) fn pack(project: &Project) -> Result<Option<Packed>, Failure> {
    let mut entries = BTreeMap::new();
    let hosts = project.manifest.grants.files.iter().filter(|grant| grant.is_bundled()).map(|grant| grant.host.as_str());
    for host in hosts {
        // The folders on the way too: none of them may be a link that leads elsewhere.
        for end in host.match_indices('/').map(|(at, _)| at).chain([host.len()]) {
            let folder = &host[..end];
            let meta = look(&project.dir.join(folder))?;
            if !meta.is_dir() {
                return Err(unfit(&project.dir.join(folder), "is no folder, but a file or a link"));
            }
            entries.insert(folder.to_owned(), meta);
        }
        walk(&project.dir, host, &mut entries)?;
    }
    if entries.is_empty() { Ok(None) } else { write(&project.dir, &entries).map(Some) }
}

fn look(path: &Path) -> Result<Metadata, Failure> {
    let meta = fs::symlink_metadata(path).with_context(|| format!("cannot look at '{}', which hob.toml grants", path.display()));
    meta.map_err(|error| Failure::from(error).exit(Exit::NotFound).hint("'host' in [grants] files is relative to hob.toml"))
}

fn unfit(path: &Path, what: &str) -> Failure {
    let sentence = format!("'{}' {what}, and cannot be part of a deploy", path.display());
    Failure::new(Exit::Failure, sentence)
        .hint("only regular files and folders are copied into a revision: take it out, or copy what it leads to")
}

fn walk(dir: &Path, folder: &str, entries: &mut BTreeMap<String, Metadata>) -> Result<(), Failure> {
    let full = dir.join(folder);
    let listed = fs::read_dir(&full).with_context(|| format!("cannot list '{}'", full.display()))?;
    for entry in listed {
        let entry = entry.with_context(|| format!("cannot list '{}'", full.display()))?;
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| unfit(&entry.path(), "has a name that is not UTF-8"))?;
        let path = format!("{folder}/{name}");
        check_path(&path).map_err(|why| unfit(&entry.path(), &format!("cannot keep its name ({why})")))?;
        let meta = look(&entry.path())?;
        if !meta.is_dir() && !meta.is_file() {
            return Err(unfit(&entry.path(), "is neither a file nor a folder"));
        }
        let is_dir = meta.is_dir();
        entries.insert(path.clone(), meta);
        if entries.len() > BUNDLE_ENTRIES_MAX {
            let sentence = format!("the folders that hob.toml grants have more than {BUNDLE_ENTRIES_MAX} files and folders");
            return Err(Failure::new(Exit::Failure, sentence).hint("put what is large or many into a bucket, and grant that"));
        }
        if is_dir {
            walk(dir, &path, entries)?;
        }
    }
    Ok(())
}

fn write(dir: &Path, entries: &BTreeMap<String, Metadata>) -> Result<Packed, Failure> {
    let scratch = Scratch::new().context("cannot make a temporary folder")?;
    let path: PathBuf = scratch.path().join("files.tar");
    let write = || -> anyhow::Result<File> {
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        let mut archive = tar::Builder::new(BufWriter::new(file));
        for (path, meta) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(if meta.is_dir() { tar::EntryType::Directory } else { tar::EntryType::Regular });
            header.set_mode(if meta.is_dir() { 0o755 } else { 0o644 });
            let full = dir.join(path);
            let reading = || format!("cannot read '{}'", full.display());
            if meta.is_dir() {
                header.set_size(0);
                archive.append_data(&mut header, format!("{path}/"), std::io::empty())?;
                continue;
            }
            let file = File::open(&full).with_context(reading)?;
            let now = file.metadata().with_context(reading)?;
            anyhow::ensure!(now.is_file(), "'{}' is no file any more", full.display());
            header.set_size(now.len());
            // Exactly so much, or the next header would be looked for in the wrong place.
            let mut body = super::invoke::Exactly::new(file, now.len());
            archive.append_data(&mut header, path, std::io::Read::take(&mut body, now.len())).with_context(reading)?;
        }
        let mut file = archive.into_inner()?.into_inner().map_err(|error| error.into_error())?;
        file.flush()?;
        file.rewind()?;
        Ok(file)
    };
    let file = write().context("cannot pack the folders that hob.toml grants")?;
    let len = file.metadata().context("cannot look at what was packed")?.len();
    Ok(Packed { file, len, _scratch: scratch })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    fn project(dir: &Path, hosts: &[&str]) -> Project {
        let grants: Vec<_> = hosts.iter().enumerate().map(|(n, host)| format!("{{ host = '{host}', guest = '/{n}' }}")).collect();
        fs::write(dir.join("hob.toml"), format!("[grants]\nfiles = [{}]", grants.join(","))).unwrap();
        Project::load(dir).unwrap()
    }

    fn names(packed: Packed) -> Vec<String> {
        let mut archive = tar::Archive::new(packed.file);
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_folder_is_packed_in_order_and_always_the_same() {
        let temp = tempfile::tempdir().unwrap();
        let long = "n".repeat(200);
        fs::create_dir_all(temp.path().join("a/site/img")).unwrap();
        for (path, text) in
            [("a/site/b", "1"), ("a/site/a", "2"), ("a/site/img/c", "3"), ("a/other", "no"), (&format!("a/site/{long}"), "")]
        {
            fs::write(temp.path().join(path), text).unwrap();
        }
        let project = project(temp.path(), &["a/site", "a/site/img"]);
        let bytes = |packed: Option<Packed>| {
            let mut bytes = Vec::new();
            packed.unwrap().file.read_to_end(&mut bytes).unwrap();
            bytes
        };
        let first = bytes(pack(&project).unwrap());
        fs::write(temp.path().join("a/site/a"), "2").unwrap();
        assert_eq!(first, bytes(pack(&project).unwrap()));
        let expected = ["a/", "a/site/", "a/site/a", "a/site/b", "a/site/img/", "a/site/img/c", &format!("a/site/{long}")];
        assert_eq!(names(pack(&project).unwrap().unwrap()), expected);
        assert!(pack(&self::project(temp.path(), &["/srv"])).unwrap().is_none());
    }

    #[test]
    fn links_pipes_and_what_is_not_there_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let refused = |host: &str| format!("{:?}", pack(&project(temp.path(), &[host])).unwrap_err());
        assert!(refused("missing").contains("cannot look at"));
        fs::write(temp.path().join("file"), "").unwrap();
        assert!(refused("file").contains("is no folder"));
        fs::create_dir_all(temp.path().join("real/below")).unwrap();
        symlink("real", temp.path().join("link")).unwrap();
        assert!(refused("link").contains("is no folder") && refused("link/below").contains("is no folder"));
        symlink("/etc/passwd", temp.path().join("real/passwd")).unwrap();
        assert!(refused("real").contains("neither a file nor a folder"));
    }
}

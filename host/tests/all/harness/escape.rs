//! A folder that a guest is granted, what lies outside of it, and every way out that is known.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// Names, kinds, lengths, contents and times below a folder, without following links.
pub(crate) fn picture(root: &Path) -> BTreeMap<PathBuf, (u32, u64, i64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let bytes = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path, (meta.mode(), meta.nlink(), meta.mtime(), meta.mtime_nsec(), bytes));
    }
    found
}

pub(crate) const SENTINEL: &str = "nobody may read this";

/// A granted folder with a file and with links that lead out of it, and a folder outside with a sentinel.
pub(crate) fn trap(host: &Path) -> (PathBuf, PathBuf) {
    let (root, outside) = (host.join("granted"), host.join("outside"));
    for folder in [&root.join("sub"), &root.join("swap"), &outside] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(outside.join("file"), SENTINEL).unwrap();
    fs::write(root.join("inside"), "inside!").unwrap();
    fs::write(root.join("swap/file"), "inside!").unwrap();
    (root, outside)
}

/// Paths that lead out, or try to.
pub(crate) fn paths(outside: &Path) -> Vec<String> {
    let file = outside.join("file").display().to_string();
    let up = "../".repeat(20);
    let fixed = [
        "../outside/file",
        "../outside",
        "..",
        "../",
        "../..",
        "./../outside/file",
        "sub/../../outside/file",
        "sub/../..//outside/file",
        "inside/../../outside/file",
        "missing/../../outside/file",
        "..//outside/file",
        "link-file",
        "link-file/",
        "link-folder",
        "link-folder/",
        "link-folder/file",
        "link-folder/.",
        "link-folder/../outside/file",
        "link-absolute",
        "link-up/outside/file",
        "link-chain",
        "link-loop",
        "sub/../link-folder/file",
        "link-proc/etc/passwd",
        "/proc/self/environ",
        "/proc/self/root/etc/passwd",
        "/proc/self/cwd",
        "proc/self/root",
        "/",
        "//",
        "",
        ".",
        "/etc/passwd",
        "\0",
        "inside\0/../../outside/file",
        "../outside/file\0",
        "..\\outside\\file",
        "%2e%2e/outside/file",
        "....//outside/file",
        "link-missing",
        "link-missing/x",
        "new/../../outside/new",
    ];
    let mut paths: Vec<String> = fixed.iter().map(|path| (*path).to_owned()).collect();
    paths.extend([file.clone(), format!("/{file}"), format!("{up}{file}"), "a".repeat(5000)]);
    paths
}

pub(crate) fn links(root: &Path, outside: &Path) {
    let file = outside.join("file");
    for (name, target) in [
        ("link-file", "../outside/file"),
        ("link-folder", "../outside"),
        ("link-up", ".."),
        ("link-chain", "link-file"),
        ("link-loop", "link-loop"),
        ("link-proc", "/proc/self/root"),
        ("link-missing", "../outside/missing"),
        ("link-absolute", file.to_str().unwrap()),
    ] {
        let path = root.join(name);
        // What the guest did to the last one does not matter.
        let _gone = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        symlink(target, path).unwrap();
    }
}

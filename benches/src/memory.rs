//! What a process holds in memory, and what of a folder the page cache holds.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// What a process holds; memory in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Pages that no other process has: those of `Private_*` in `smaps_rollup`.
    pub(crate) private: f64,
    /// All pages, each divided by how many mappings there are of it: `Pss`. And of these, pages of memory that is shared, such as
    /// volatile objects (`Pss_Shmem`), and pages of files (`Pss_File`).
    pub(crate) proportional: f64,
    pub(crate) proportional_shared: f64,
    pub(crate) proportional_file: f64,
    /// Pages that no file is behind.
    pub(crate) anonymous: f64,
    /// The tables that map them.
    pub(crate) page_tables: f64,
    pub(crate) mappings: f64,
    pub(crate) descriptors: f64,
}

impl Memory {
    /// `process`: a number, or `self`.
    pub(crate) fn of(process: &str) -> anyhow::Result<Self> {
        let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let private = field(&rollup, "Private_Clean:")? + field(&rollup, "Private_Dirty:")?;
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
        let (mappings, descriptors) = (
            fs::read_to_string(format!("/proc/{process}/maps"))?.lines().count() as f64,
            fs::read_dir(format!("/proc/{process}/fd"))?.count() as f64,
        );
        Ok(Self {
            private,
            proportional: field(&rollup, "Pss:")?,
            proportional_shared: field(&rollup, "Pss_Shmem:")?,
            proportional_file: field(&rollup, "Pss_File:")?,
            anonymous: field(&rollup, "Anonymous:")?,
            page_tables: field(&status, "VmPTE:")?,
            mappings,
            descriptors,
        })
    }
}

/// Bytes of memory that the machine can give without swapping.
pub(crate) fn available() -> anyhow::Result<f64> {
    field(&fs::read_to_string("/proc/meminfo")?, "MemAvailable:")
}

/// A line such as `VmPTE:  64 kB`, in bytes.
fn field(text: &str, key: &str) -> anyhow::Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("the system does not say {key}"))?;
    Ok(value.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
}

const PAGE: usize = 4096;

/// The part of the bytes of these files that is in the page cache; `None` if the file system does not tell.
pub(crate) fn cached(files: &[PathBuf]) -> Option<f64> {
    let (mut cached, mut all) = (0u32, 0u32);
    for path in files {
        let file = File::open(path).ok()?;
        for at in (0..file.metadata().ok()?.len()).step_by(PAGE) {
            all += 1;
            match preadv2(&file, &mut [IoSliceMut::new(&mut [0])], at, ReadWriteFlags::NOWAIT) {
                Ok(_) => cached += 1,
                // It would have to be read from the disk.
                Err(Errno::AGAIN) => {}
                Err(_) => return None,
            }
        }
    }
    (all > 0).then(|| f64::from(cached) / f64::from(all))
}

/// All files below a folder.
pub(crate) fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

//! What the disk below a folder does by itself.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::Instant;

/// How often the disk was told to make everything durable, by anybody; `None` where the system does not count it.
pub(crate) fn flushes(path: &Path) -> Option<f64> {
    let device = fs::metadata(path).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    // The 16th field: flush requests that were completed.
    stat.split_whitespace().nth(15)?.parse().ok()
}

/// How many times in a second 4 KiB in a file can be overwritten durably, one after the other.
pub(crate) fn fsyncs_per_second(dir: &Path, count: u32) -> anyhow::Result<f64> {
    let path = dir.join("fsyncs");
    let file = File::create(&path)?;
    file.write_all_at(&[1; 4096], 0)?;
    file.sync_all()?;
    let began = Instant::now();
    for number in 0..count {
        file.write_all_at(&[number.to_le_bytes()[0]; 4096], 0)?;
        file.sync_data()?;
    }
    let took = began.elapsed();
    fs::remove_file(path)?;
    Ok(f64::from(count) / took.as_secs_f64())
}

/// What is free for anybody.
pub(crate) fn free_bytes(dir: &Path) -> anyhow::Result<u64> {
    let disk = rustix::fs::statvfs(dir)?;
    Ok(disk.f_bavail * disk.f_frsize)
}

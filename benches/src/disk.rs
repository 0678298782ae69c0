//! What the disk below a folder does by itself.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
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

/// How many files of `len` bytes `writers` can write in a second, `count` in all, with `fsyncs` in each on the mean, in equal pieces.
pub(crate) fn files_per_second(dir: &Path, writers: usize, count: usize, len: usize, fsyncs: f64) -> anyhow::Result<f64> {
    // So many until the file with this number, without it.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "small counts")]
    let until = |number: usize| (number as f64 * fsyncs) as usize;
    let (bytes, next) = (vec![1; len], AtomicUsize::new(0));
    let write = || -> anyhow::Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            let mut file = File::create(dir.join(format!("file-{number}")))?;
            let times = until(number + 1) - until(number);
            for piece in bytes.chunks(len.div_ceil(times.max(1))) {
                file.write_all(piece)?;
                if times > 0 {
                    file.sync_all()?;
                }
            }
        }
    };
    let began = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..writers).map(|_| scope.spawn(write)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?)
    })?;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    let count = count as f64;
    Ok(count / began.elapsed().as_secs_f64())
}

/// What is free for anybody.
pub(crate) fn free_bytes(dir: &Path) -> anyhow::Result<u64> {
    let disk = rustix::fs::statvfs(dir)?;
    Ok(disk.f_bavail * disk.f_frsize)
}

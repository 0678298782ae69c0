//! A disk that fails: a folder with one file, which a switch makes unreadable. A real file system, of FUSE: the kernel's own protocol
//! (`include/uapi/linux/fuse.h`), of which one read-only file needs little.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

const ROOT: u64 = 1;
const FILE: u64 = 2;
const EIO: i32 = 5;
const ENOENT: i32 = 2;
const ENOSYS: i32 = 38;

/// Mounted until it is dropped.
pub(crate) struct Failing {
    fails: Arc<AtomicBool>,
    over: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Failing {
    /// Lays a file system with one file over a folder; `None` where this process may not.
    pub(crate) fn mount(over: &Path, name: &str, bytes: Vec<u8>) -> Option<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        // The command that mounts it inherits it.
        rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::empty()).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let mut mount = Command::new("mount");
        mount.args(["-i", "-t", "fuse", "-o", &options, "hob-test"]).arg(over).stderr(Stdio::null());
        if !mount.status().ok()?.success() {
            return None;
        }
        rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::CLOEXEC).unwrap();
        let fails = Arc::new(AtomicBool::new(false));
        let disk = Disk { name: name.into(), bytes, fails: fails.clone() };
        let server = Some(std::thread::spawn(move || disk.serve(device)));
        Some(Self { fails, over: over.into(), server })
    }

    /// From now on every read is an I/O error, or works again.
    pub(crate) fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::SeqCst);
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.fail(false);
        let status = Command::new("umount").arg("-l").arg(&self.over).status();
        // The server ends when nobody has a file of it open any more, which is when the node is gone.
        drop(self.server.take());
        assert!(status.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

struct Disk {
    name: String,
    bytes: Vec<u8>,
    fails: Arc<AtomicBool>,
}

impl Disk {
    fn serve(&self, mut device: File) {
        let mut request = vec![0; 1 << 20];
        while let Ok(len) = device.read(&mut request) {
            let (head, body) = request[..len].split_at(40);
            let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
            let long = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let (opcode, unique, node) = (number(4), long(head, 8), long(head, 16));
            let answer = match opcode {
                // FORGET, INTERRUPT and BATCH_FORGET have no answer.
                2 | 36 | 42 => continue,
                // INIT: 7.31, nothing that is optional, reads of up to 128 KiB.
                26 => {
                    let mut init = [0; 64];
                    init[..4].copy_from_slice(&7_u32.to_le_bytes());
                    init[4..8].copy_from_slice(&31_u32.to_le_bytes());
                    init[20..24].copy_from_slice(&(128_u32 << 10).to_le_bytes());
                    Ok(init.to_vec())
                }
                // LOOKUP
                1 if body.strip_suffix(b"\0") == Some(self.name.as_bytes()) => {
                    let times = [FILE, 0, 1, 1, 0].map(u64::to_le_bytes).concat();
                    Ok([times, self.attr(FILE)].concat())
                }
                1 => Err(ENOENT),
                // GETATTR
                3 => Ok([[1, 0].map(u64::to_le_bytes).concat(), self.attr(node)].concat()),
                // OPEN and OPENDIR: without FOPEN_KEEP_CACHE an open lets go of what is cached.
                14 | 27 => Ok(vec![0; 16]),
                // READ
                15 if self.fails.load(Ordering::SeqCst) => Err(EIO),
                15 => {
                    let start = (long(body, 8) as usize).min(self.bytes.len());
                    let size = u32::from_le_bytes(body[16..20].try_into().unwrap()) as usize;
                    Ok(self.bytes[start..(start + size).min(self.bytes.len())].to_vec())
                }
                // RELEASE, FLUSH, RELEASEDIR, ACCESS, DESTROY
                18 | 25 | 29 | 34 | 38 => Ok(Vec::new()),
                _ => Err(ENOSYS),
            };
            let (error, data) = answer.map_or_else(|errno: i32| (-errno, Vec::new()), |data| (0, data));
            let head = [(16 + data.len() as u32).to_le_bytes(), error.to_le_bytes()].concat();
            let reply = [head, unique.to_le_bytes().to_vec(), data].concat();
            // A request that was given up meanwhile has no place for an answer.
            let _given_up = device.write(&reply);
        }
    }

    /// `struct fuse_attr`
    fn attr(&self, node: u64) -> Vec<u8> {
        let (mode, len) = if node == ROOT { (0o040_700, 0) } else { (0o100_400, self.bytes.len() as u64) };
        let longs = [node, len, len.div_ceil(512), 0, 0, 0].map(u64::to_le_bytes).concat();
        let shorts = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0_u32].map(u32::to_le_bytes).concat();
        [longs, shorts].concat()
    }
}

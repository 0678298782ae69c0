//! A hostile command: it gives paths to the calls of preview 1 as they are, past the library that would make them harmless.
//!
//! Its query says what it does with its first folder, which has a file `inside`:
//! `matrix`: each path of its input, one a line, with each call; it prints path, call and error number, and whatever it could read.
//! `open=N`: opens `swap/file` N times and prints how often that worked, and everything that was not `inside!`.
//! `swap=N`: puts a link out of the folder and a real folder in the place of `swap`, N times.
//! `hammer=N`: writes, reads and removes N files. `clock`: the resolutions, and 200 moments of both clocks.

use std::io::Read;

mod raw {
    /// A piece of memory, as the host reads it.
    #[repr(C)]
    pub struct Span {
        pub at: *const u8,
        pub len: usize,
    }

    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        pub fn path_open(
            fd: i32,
            flags: i32,
            path: *const u8,
            len: usize,
            oflags: i32,
            rights: i64,
            inheriting: i64,
            fdflags: i32,
            out: *mut i32,
        ) -> i32;
        pub fn path_filestat_get(fd: i32, flags: i32, path: *const u8, len: usize, out: *mut u8) -> i32;
        pub fn path_filestat_set_times(fd: i32, flags: i32, path: *const u8, len: usize, atim: i64, mtim: i64, fst: i32) -> i32;
        pub fn path_create_directory(fd: i32, path: *const u8, len: usize) -> i32;
        pub fn path_remove_directory(fd: i32, path: *const u8, len: usize) -> i32;
        pub fn path_unlink_file(fd: i32, path: *const u8, len: usize) -> i32;
        pub fn path_link(fd: i32, flags: i32, old: *const u8, len: usize, to: i32, new: *const u8, new_len: usize) -> i32;
        pub fn path_rename(fd: i32, old: *const u8, len: usize, to: i32, new: *const u8, new_len: usize) -> i32;
        pub fn path_symlink(target: *const u8, len: usize, fd: i32, path: *const u8, path_len: usize) -> i32;
        pub fn path_readlink(fd: i32, path: *const u8, len: usize, out: *mut u8, cap: usize, used: *mut usize) -> i32;
        pub fn fd_read(fd: i32, iovs: *const Span, count: usize, used: *mut usize) -> i32;
        pub fn fd_write(fd: i32, iovs: *const Span, count: usize, used: *mut usize) -> i32;
        pub fn fd_readdir(fd: i32, out: *mut u8, cap: usize, cookie: i64, used: *mut usize) -> i32;
        pub fn fd_close(fd: i32) -> i32;
        pub fn clock_res_get(id: i32, out: *mut i64) -> i32;
        pub fn clock_time_get(id: i32, precision: i64, out: *mut i64) -> i32;
    }
}

/// The first folder that the host gave.
const FOLDER: i32 = 3;
const CREATE: i32 = 1;
const DIRECTORY: i32 = 2;
const EXCLUSIVE: i32 = 4;
const TRUNCATE: i32 = 8;
const FOLLOW: i32 = 1;

fn main() {
    let query = std::env::var("QUERY_STRING").unwrap_or_default();
    let (what, count) = query.split_once('=').unwrap_or((&query, "0"));
    let count = count.parse().unwrap_or(0);
    match what {
        "matrix" => matrix(),
        "open" => open_often(count),
        "swap" => swap_often(count),
        "hammer" => hammer(count),
        "clock" => clock(),
        _ => println!("no such thing: {what}"),
    }
}

fn open(path: &[u8], oflags: i32, fdflags: i32, writes: bool) -> Result<i32, i32> {
    // Reading, listing and stat; writing and sizes.
    let rights = 1 << 1 | 1 << 2 | 1 << 14 | 1 << 21 | if writes { 1 << 6 | 1 << 22 } else { 0 };
    let mut fd = -1;
    // SAFETY: the pointers are to what lives until the call is over, and their lengths are right; so in every call below.
    match unsafe { raw::path_open(FOLDER, FOLLOW, path.as_ptr(), path.len(), oflags, rights, rights, fdflags, &mut fd) } {
        0 => Ok(fd),
        errno => Err(errno),
    }
}

fn read(fd: i32) -> Vec<u8> {
    let mut buffer = [0; 4096];
    let mut used = 0;
    // SAFETY: as above.
    let errno = unsafe { raw::fd_read(fd, &raw::Span { at: buffer.as_mut_ptr(), len: buffer.len() }, 1, &mut used) };
    if errno == 0 { buffer[..used].to_vec() } else { Vec::new() }
}

fn write(fd: i32, bytes: &[u8]) -> i32 {
    let mut used = 0;
    // SAFETY: as above.
    unsafe { raw::fd_write(fd, &raw::Span { at: bytes.as_ptr(), len: bytes.len() }, 1, &mut used) }
}

fn close(fd: i32) {
    // SAFETY: as above.
    unsafe { raw::fd_close(fd) };
}

/// Opens, shows what is there or lists it, and perhaps writes.
fn opened(path: &[u8], oflags: i32, fdflags: i32, writes: bool) -> i32 {
    let fd = match open(path, oflags, fdflags, writes) {
        Ok(fd) => fd,
        Err(errno) => return errno,
    };
    let mut text = read(fd);
    let (mut list, mut used) = ([0; 4096], 0);
    // SAFETY: as above.
    if unsafe { raw::fd_readdir(fd, list.as_mut_ptr(), list.len(), 0, &mut used) } == 0 {
        text.extend_from_slice(&list[..used]);
    }
    println!("  {}", String::from_utf8_lossy(&text).replace('\0', "."));
    if writes {
        write(fd, b"written by the guest");
    }
    close(fd);
    0
}

/// Makes sure that there is a file to begin from, where that is allowed.
fn fresh(name: &[u8]) {
    if let Ok(fd) = open(name, CREATE, 0, true) {
        write(fd, b"inside!");
        close(fd);
    }
}

fn matrix() {
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).expect("the body came whole");
    for path in input.split(|byte| *byte == b'\n') {
        for call in 0..CALLS.len() {
            fresh(b"begin");
            println!("{}\t{}\t{}", String::from_utf8_lossy(path).escape_debug(), CALLS[call], attempt(call, path));
        }
    }
}

const CALLS: [&str; 21] = [
    "read",
    "list",
    "create",
    "create-new",
    "truncate",
    "append",
    "create-folder-flag",
    "stat",
    "stat-follow",
    "times",
    "times-follow",
    "mkdir",
    "rmdir",
    "unlink",
    "link-from",
    "link-to",
    "rename-from",
    "rename-to",
    "symlink-to",
    "symlink-at",
    "readlink",
];

fn attempt(call: usize, path: &[u8]) -> i32 {
    let (at, len) = (path.as_ptr(), path.len());
    let begin: &[u8] = b"begin";
    let (mut stat, mut link, mut used) = ([0; 64], [0; 4096], 0);
    // SAFETY: as above.
    unsafe {
        match CALLS[call] {
            "read" => opened(path, 0, 0, false),
            "list" => opened(path, DIRECTORY, 0, false),
            "create" => opened(path, CREATE, 0, true),
            "create-new" => opened(path, CREATE | EXCLUSIVE, 0, true),
            "truncate" => opened(path, TRUNCATE, 0, true),
            "append" => opened(path, 0, 1, true),
            "create-folder-flag" => opened(path, CREATE | DIRECTORY, 0, true),
            "stat" => raw::path_filestat_get(FOLDER, 0, at, len, stat.as_mut_ptr()),
            "stat-follow" => raw::path_filestat_get(FOLDER, FOLLOW, at, len, stat.as_mut_ptr()),
            "times" => raw::path_filestat_set_times(FOLDER, 0, at, len, 1, 1, 5),
            "times-follow" => raw::path_filestat_set_times(FOLDER, FOLLOW, at, len, 1, 1, 5),
            "mkdir" => raw::path_create_directory(FOLDER, at, len),
            "rmdir" => raw::path_remove_directory(FOLDER, at, len),
            "unlink" => raw::path_unlink_file(FOLDER, at, len),
            "link-from" => then_open(b"linked", raw::path_link(FOLDER, 0, at, len, FOLDER, b"linked".as_ptr(), 6)),
            "link-to" => raw::path_link(FOLDER, 0, begin.as_ptr(), begin.len(), FOLDER, at, len),
            "rename-from" => then_open(b"moved", raw::path_rename(FOLDER, at, len, FOLDER, b"moved".as_ptr(), 5)),
            "rename-to" => raw::path_rename(FOLDER, begin.as_ptr(), begin.len(), FOLDER, at, len),
            "symlink-to" => then_open(b"symlinked", raw::path_symlink(at, len, FOLDER, b"symlinked".as_ptr(), 9)),
            "symlink-at" => raw::path_symlink(b"inside".as_ptr(), 6, FOLDER, at, len),
            _ => raw::path_readlink(FOLDER, at, len, link.as_mut_ptr(), link.len(), &mut used),
        }
    }
}

/// Uses what was made, writes to it, and removes it.
fn then_open(name: &[u8], errno: i32) -> i32 {
    if errno == 0 {
        opened(name, 0, 0, true);
        // SAFETY: as above.
        unsafe { raw::path_unlink_file(FOLDER, name.as_ptr(), name.len()) };
    }
    errno
}

fn open_often(count: usize) {
    let mut worked = 0;
    for _ in 0..count {
        if let Ok(fd) = open(b"swap/file", 0, 0, false) {
            worked += 1;
            let text = read(fd);
            if text != b"inside!" {
                println!("read: {}", String::from_utf8_lossy(&text));
            }
            close(fd);
        }
    }
    println!("worked: {worked}");
}

fn swap_often(count: usize) {
    let path: &[u8] = b"swap";
    for _ in 0..count {
        // SAFETY: as above. Another one may be first, with each of them.
        unsafe {
            raw::path_rename(FOLDER, path.as_ptr(), path.len(), FOLDER, b"aside".as_ptr(), 5);
            raw::path_symlink(b"../outside".as_ptr(), 10, FOLDER, path.as_ptr(), path.len());
            raw::path_unlink_file(FOLDER, path.as_ptr(), path.len());
            raw::path_rename(FOLDER, b"aside".as_ptr(), 5, FOLDER, path.as_ptr(), path.len());
        }
    }
    println!("done");
}

fn hammer(count: usize) {
    for number in 0..count {
        let name = format!("file-{}", number % 7);
        fresh(name.as_bytes());
        if let Ok(fd) = open(name.as_bytes(), 0, 0, false) {
            read(fd);
            close(fd);
        }
    }
    println!("done");
}

fn clock() {
    for id in [0, 1] {
        let mut value = 0;
        // SAFETY: as above.
        unsafe { raw::clock_res_get(id, &mut value) };
        print!("{value}");
        for _ in 0..200 {
            // SAFETY: as above.
            unsafe { raw::clock_time_get(id, 1, &mut value) };
            print!(" {value}");
        }
        println!();
    }
}

//! Pages of guests: the only code that maps a file into the memory of a guest, and that puts back what was there.
//!
//! ```text
//! linear memory   [ the module's own ......... ][ grown by the host for mappings ][ grown by the guest ] …
//! Ground                                        [ Cover ][ free ][ Cover          ]
//! ```
//!
//! Owns all the `unsafe` of mapping objects. [`Ground`] is what the host has grown of one instance's memory; it puts anonymous memory
//! back over all of it when it is closed, which its owner in the store's data does before wasmtime resets the slot. A [`Cover`] is one
//! mapping on it, known to the handler of SIGBUS. Knows nothing about objects, calls or limits. Invariants: outside of a ground nothing
//! is ever mapped; a closed ground has no mapping left, and if that cannot be had the process ends, because the next instance in the
//! slot would read what is there.
#![expect(unsafe_code, reason = "mapping memory, looking at its pages and handling SIGBUS are calls of the system")]

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::{io, mem, ptr};

use wasmtime::{AsContextMut, Memory};

/// Pages of the systems that Hob runs on.
pub(super) const PAGE: usize = 4096;
/// Pages of WebAssembly.
pub(super) const WASM_PAGE: usize = 64 << 10;
/// Default of `vm.max_map_count`, for a system that does not say.
const MAX_MAP_COUNT: u64 = 65_530;

/// What the host has grown of the memory of one instance.
#[derive(Debug)]
pub(super) struct Ground {
    /// Address of the linear memory, which does not move: it lies in a reservation of 4 GiB.
    base: usize,
    /// Offsets in it, in order and apart from each other; all are multiples of a page.
    grown: Mutex<Vec<Range<usize>>>,
}

impl Ground {
    /// A ground of nothing, in the memory at `base`.
    ///
    /// Until a range is added nothing is done to that memory.
    pub(super) fn new(base: *mut u8) -> Self {
        Self { base: base.addr(), grown: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Range<usize>>> {
        self.grown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many ranges lie apart from each other.
    pub(super) fn pieces(&self) -> usize {
        self.lock().len()
    }

    /// Grows the memory, and adds what that gave: pages above the module's image that nobody had before.
    ///
    /// # Errors
    /// When the memory cannot grow so far.
    ///
    /// # Panics
    /// If `memory` is not the one that this is the ground of: a bug of ours.
    pub(super) fn grow(&self, memory: Memory, mut store: impl AsContextMut, pages: u64) -> wasmtime::Result<Range<usize>> {
        assert!(memory.data_ptr(&store).addr() == self.base && memory.page_size(&store) == WASM_PAGE as u64, "the same memory");
        let start = usize::try_from(memory.grow(&mut store, pages)?)? * WASM_PAGE;
        let end = memory.data_size(&store);
        assert!(memory.data_ptr(&store).addr() == self.base, "a memory of 32 bits has a reservation, and does not move");
        let mut grown = self.lock();
        match grown.last_mut() {
            Some(last) if last.end == start => last.end = end,
            last => {
                assert!(last.is_none_or(|last| last.end < start), "a memory grows upwards");
                grown.push(start..end);
            }
        }
        Ok(start..end)
    }

    /// Whether its last range ends where a memory of `size` bytes does.
    pub(super) fn ends_at(&self, size: usize) -> bool {
        self.lock().last().is_some_and(|last| last.end == size)
    }

    /// Maps a file over a range, privately, to read and to write.
    ///
    /// # Errors
    /// What the system says, `QuotaExceeded` if the node has no mapping left; the range is anonymous memory then.
    pub(super) fn cover(self: &Arc<Self>, range: Range<usize>, file: BorrowedFd<'_>, offset: u64) -> io::Result<Cover> {
        let grown = self.lock();
        assert!(grown.iter().any(|grown| grown.start <= range.start && range.end <= grown.end), "only on ground");
        assert!(range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE) && range.start < range.end);
        let (start, len) = (self.base + range.start, range.len());
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        let slot = Slots::get().take(start, len)?;
        // SAFETY: the range lies in a ground, as was asserted: pages of one linear memory above its image, which no reference of Rust
        // points into (a host call borrows guest memory from its store, and the store is borrowed by whoever called this). `MAP_FIXED`
        // replaces these pages alone. Readable and writable, because host code such as `memory.copy` writes wherever a guest says and
        // a fault there would end the process. Private, so the file never changes. The descriptor is borrowed, hence open.
        let mapped = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
            libc::mmap(address(start), len, libc::PROT_READ | libc::PROT_WRITE, flags, file.as_raw_fd(), offset)
        };
        if mapped == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            // What had been there may be unmapped already.
            put_back(start, len);
            Slots::get().give_back(slot);
            return Err(error);
        }
        Ok(Cover { slot, ground: Arc::clone(self), range })
    }

    /// Bytes of the ground that are this instance's own: written to, and so no page of a file and not the page of zeros.
    ///
    /// # Errors
    /// What the system says.
    ///
    /// # Cost
    /// About 4 ns a page that is there, and 10 us.
    pub(super) fn own_bytes(&self) -> io::Result<usize> {
        let grown = self.lock();
        let mut bytes = 0;
        for range in grown.iter() {
            bytes += own_bytes(self.base + range.start..self.base + range.end)?;
        }
        Ok(bytes)
    }

    /// Takes away all that the instance has written on its ground. For an instance that is to be ended, and may be in the middle of
    /// writing.
    pub(super) fn wipe(&self) {
        for range in self.lock().iter() {
            // SAFETY: the range belongs to a linear memory that lives, because its ground was not closed, and is kept from being closed by
            // the lock. Its pages go back to those of a file or to zeros under whoever reads or writes them: bytes of a guest have no
            // meaning to the host, and every bit pattern is valid. A failure leaves them, and is tried again.
            let _tried_again = unsafe { libc::madvise(address(self.base + range.start), range.len(), libc::MADV_DONTNEED) };
        }
    }

    /// Puts anonymous memory back over all of it.
    pub(super) fn close(&self) {
        for range in mem::take(&mut *self.lock()) {
            put_back(self.base + range.start, range.len());
        }
    }
}

/// One mapping on a ground. Dropping it puts anonymous memory back, unless closing the ground did.
#[derive(Debug)]
pub(super) struct Cover {
    slot: usize,
    ground: Arc<Ground>,
    range: Range<usize>,
}

impl Cover {
    /// Whether a page of it could not be read. It is all zeros since then.
    pub(super) fn is_broken(&self) -> bool {
        Slots::get().list[self.slot].is_broken.load(Ordering::Acquire)
    }
}

impl Drop for Cover {
    fn drop(&mut self) {
        let grown = self.ground.lock();
        if grown.iter().any(|grown| grown.contains(&self.range.start)) {
            put_back(self.ground.base + self.range.start, self.range.len());
        }
        drop(grown);
        Slots::get().give_back(self.slot);
    }
}

fn address(start: usize) -> *mut libc::c_void {
    // The pages were got from the system, never as an allocation of Rust's.
    ptr::with_exposed_provenance_mut(start)
}

/// Private anonymous memory, as wasmtime makes it (`remap_as_zeros_at` of 48). Safe to be called from a handler of signals.
fn map_zeros(start: usize, len: usize) -> bool {
    // SAFETY: only called with ranges of a ground, which is not closed or is being closed: pages of a linear memory whose store still
    // lives and which nobody has a reference into. `mmap` is a bare system call.
    let mapped = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        libc::mmap(address(start), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    mapped.addr() == start
}

fn put_back(start: usize, len: usize) {
    if !map_zeros(start, len) {
        // What is mapped there would be shown to whoever gets the slot next.
        tracing::error!(error = %io::Error::last_os_error(), "memory of a guest cannot be put back: the node ends");
        std::process::abort();
    }
}

/// How many mappings a node may have at once if the system allows a process `max_map_count`: an eighth of them, three for each mapping
/// (itself, and what it divides).
#[must_use]
pub(super) fn share(max_map_count: u64) -> u64 {
    max_map_count / 8 / MAPPINGS_EACH
}

/// What one mapping may take of `vm.max_map_count`.
pub(super) const MAPPINGS_EACH: u64 = 3;

/// The mappings of the node, for whoever handles a signal: a fixed list that is read without a lock.
#[derive(Debug)]
struct Slots {
    list: Box<[Slot]>,
    free: Mutex<Vec<usize>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Address; 0 if the slot is free.
    start: AtomicUsize,
    len: AtomicUsize,
    is_broken: AtomicBool,
}

static SLOTS: OnceLock<Slots> = OnceLock::new();
/// How often a page could not be read, ever.
static BROKEN: AtomicU64 = AtomicU64::new(0);
/// What was done about SIGBUS before.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

/// How often a page of any mapping could not be read since the process started. As long as this stays the same, no mapping broke.
pub(super) fn broken() -> u64 {
    BROKEN.load(Ordering::Acquire)
}

impl Slots {
    fn get() -> &'static Self {
        SLOTS.get_or_init(|| {
            let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
            let all = text.and_then(|text| text.trim().parse().ok()).unwrap_or(MAX_MAP_COUNT);
            let count = usize::try_from(share(all)).unwrap_or(usize::MAX).clamp(1, 1 << 16);
            handle_sigbus();
            Self { list: (0..count).map(|_| Slot::default()).collect(), free: Mutex::new((0..count).rev().collect()) }
        })
    }

    fn free(&self) -> MutexGuard<'_, Vec<usize>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, start: usize, len: usize) -> io::Result<usize> {
        let full = || io::Error::new(io::ErrorKind::QuotaExceeded, "all mappings of this node are taken");
        let at = self.free().pop().ok_or_else(full)?;
        let slot = &self.list[at];
        slot.is_broken.store(false, Ordering::Relaxed);
        // Whoever sees this length sees that the slot was free, too: see `on_sigbus`.
        slot.len.store(len, Ordering::Release);
        slot.start.store(start, Ordering::Release);
        Ok(at)
    }

    fn give_back(&self, at: usize) {
        self.list[at].start.store(0, Ordering::Release);
        self.free().push(at);
    }
}

/// Installs the handler. To be called once. wasmtime handles no SIGBUS on Linux; what Rust installed before is asked for all that is not
/// ours.
fn handle_sigbus() {
    // SAFETY: all zeros is a valid `sigaction`: a set of signals that is empty, no flags, the default action.
    let (mut action, mut before): (libc::sigaction, libc::sigaction) = unsafe { (mem::zeroed(), mem::zeroed()) };
    action.sa_sigaction = on_sigbus as *const () as usize;
    // On the stack that Rust and wasmtime give every thread for signals; a second one within the first is our bug and ends the process.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: both point to structures of this frame. First the old action is read and published, then the new one is set, so the handler
    // never runs without it.
    let failed = unsafe {
        let read = libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before);
        BEFORE.store(Box::into_raw(Box::new(before)), Ordering::Release);
        read != 0 || libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) != 0
    };
    assert!(!failed, "SIGBUS can be handled: {}", io::Error::last_os_error());
}

/// A page could not be read. If it is of a mapping, the whole mapping becomes zeros and is marked as broken, and the instruction is tried
/// again: in the guest, in `memory.copy`, or in a host call that copies. The instance is ended for it before anything leaves it.
///
/// Only loads, stores and one system call, all of which may be done in a handler. Nobody changes the slot meanwhile that the address is in:
/// its owner is the store that this thread is running, which waits in the very instruction that failed.
extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid `siginfo_t`, whose address is set for a SIGBUS of its own making; one that
    // a process sent has a code that is not above 0. `errno` is this thread's.
    let (code, address, errno) = unsafe { ((*info).si_code, (*info).si_addr().addr(), *libc::__errno_location()) };
    let found = SLOTS.get().filter(|_| code > 0).and_then(|slots| {
        slots.list.iter().find_map(|slot| {
            let start = slot.start.load(Ordering::Acquire);
            let len = slot.len.load(Ordering::Acquire);
            // Other slots do change: the length may be that of a later mapping.
            let is_one = slot.start.load(Ordering::Relaxed) == start;
            (is_one && start != 0 && start <= address && address - start < len).then_some((slot, start, len))
        })
    });
    if let Some((slot, start, len)) = found
        && map_zeros(start, len)
    {
        slot.is_broken.store(true, Ordering::Release);
        BROKEN.fetch_add(1, Ordering::Release);
        // SAFETY: as above. The interrupted code may be about to read it.
        unsafe { *libc::__errno_location() = errno };
        return;
    }
    // SAFETY: published before the handler was installed, never freed.
    let before = unsafe { &*BEFORE.load(Ordering::Acquire) };
    let is_default = before.sa_sigaction == libc::SIG_DFL || before.sa_sigaction == libc::SIG_IGN;
    // SAFETY: the earlier action is one that `sigaction` gave, so its field is what its flags say: a handler with three arguments, or with
    // one. Without a handler the default action is set, and ends the process when the instruction is tried again.
    unsafe {
        if is_default {
            libc::signal(signal, libc::SIG_DFL);
        } else if before.sa_flags & libc::SA_SIGINFO != 0 {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            mem::transmute::<usize, Handler>(before.sa_sigaction)(signal, info, context);
        } else {
            mem::transmute::<usize, extern "C" fn(libc::c_int)>(before.sa_sigaction)(signal);
        }
    }
}

/// Page faults of the calling thread since it began: no page is written to for the first time without one.
pub(super) fn faults() -> u64 {
    // SAFETY: all zeros is a valid `rusage`, and the call fills it; it fails only for arguments that these are not.
    let usage = unsafe {
        let mut usage: libc::rusage = mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
        usage
    };
    // Those that had to read a disk count apart, and are as good.
    u64::try_from(usage.ru_minflt.saturating_add(usage.ru_majflt)).unwrap_or(0)
}

/// Argument of the ioctl PAGEMAP_SCAN, which Linux has since 6.7. Source: `include/uapi/linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct PagemapScan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

const _: () = assert!(size_of::<PagemapScan>() == 96 && size_of::<PageRegion>() == 24);

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::Ioctl = 0xC060_6610;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

fn pagemap() -> io::Result<&'static File> {
    static PAGEMAP: OnceLock<Option<File>> = OnceLock::new();
    let file = PAGEMAP.get_or_init(|| File::open("/proc/self/pagemap").ok()).as_ref();
    file.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "/proc/self/pagemap cannot be read"))
}

/// Whether pages can be counted here. Where they cannot, nothing may be mapped.
pub(super) fn can_count() -> bool {
    pagemap().is_ok()
}

/// Bytes of pages in these addresses that are no page of a file and not the page of zeros.
fn own_bytes(range: Range<usize>) -> io::Result<usize> {
    let file = pagemap()?;
    let mut regions = [PageRegion::default(); 256];
    let mut scan = PagemapScan {
        size: size_of::<PagemapScan>() as u64,
        start: range.start as u64,
        end: range.end as u64,
        vec: regions.as_mut_ptr().expose_provenance() as u64,
        vec_len: regions.len() as u64,
        category_inverted: PAGE_IS_FILE | PAGE_IS_PFNZERO,
        category_mask: PAGE_IS_FILE | PAGE_IS_PFNZERO,
        category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        return_mask: PAGE_IS_PRESENT,
        ..PagemapScan::default()
    };
    let mut bytes = 0;
    while scan.start < scan.end {
        // SAFETY: the argument has the size that it names and lives here, as do the regions that it points to, of which the kernel writes
        // at most `vec_len`. Without flags nothing of the pages changes.
        let count = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            // A kernel before 6.7.
            return if error.raw_os_error() == Some(libc::ENOTTY) { own_bytes_by_page(file, range) } else { Err(error) };
        };
        for region in regions.iter().take(count) {
            bytes += usize::try_from(region.end - region.start).unwrap_or(usize::MAX);
        }
        scan.start = scan.walk_end;
    }
    Ok(bytes)
}

/// As [`own_bytes`], for kernels without PAGEMAP_SCAN. A page of zeros that was read counts too: on such a kernel a guest that reads
/// what nobody wrote pays for it.
fn own_bytes_by_page(file: &File, range: Range<usize>) -> io::Result<usize> {
    const FILE_PAGE: u64 = 1 << 61;
    const SWAPPED: u64 = 1 << 62;
    const PRESENT: u64 = 1 << 63;
    let (mut bytes, mut buffer) = (0, [0; 8 * 512]);
    let mut at = range.start;
    while at < range.end {
        let pages = ((range.end - at) / PAGE).min(512);
        let entries = &mut buffer[..8 * pages];
        file.read_exact_at(entries, (at / PAGE * 8) as u64)?;
        let (entries, _) = entries.as_chunks::<8>();
        let is_own = |entry: &&[u8; 8]| {
            let entry = u64::from_le_bytes(**entry);
            entry & (PRESENT | SWAPPED) != 0 && entry & FILE_PAGE == 0
        };
        bytes += PAGE * entries.iter().filter(is_own).count();
        at += PAGE * pages;
    }
    Ok(bytes)
}

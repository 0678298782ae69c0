//! Huge pages for bytes in memory: with them one page fault maps 2 MiB of an object, and not 4 KiB.
//!
//! Owns how the system is asked for them. Knows nothing about what the bytes are. Invariant: it changes neither the bytes nor who may
//! read them.
#![expect(unsafe_code, reason = "the system is asked through an address, at which the file must be mapped for so long")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;

/// Of a huge page on x86-64, and of those of AArch64 with pages of 4 KiB.
const HUGE: usize = 2 << 20;

/// Moves the first `len` bytes of a memory file to huge pages, as far as they fill such. Best effort: where the system has none, all stays
/// as it is. Source of what it brings: docs/decisions/0015-mapping.md.
///
/// # Cost
/// That of copying the bytes once; memory for one more huge page meanwhile. Blocks.
pub(crate) fn gather(file: &File, len: u64) {
    let Ok(len) = usize::try_from(len - len % HUGE as u64) else { return };
    if len == 0 {
        return;
    }
    let Some(reserved) = len.checked_add(HUGE) else { return };
    // SAFETY: addresses that the kernel chooses, so nobody else's; they are used by nothing but the calls below and given back at the end.
    let place = unsafe { libc::mmap(ptr::null_mut(), reserved, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    if place == libc::MAP_FAILED {
        return;
    }
    // Only where file and addresses lie alike can a huge page be.
    let at = place.map_addr(|address| address.next_multiple_of(HUGE));
    // SAFETY: `at..at + len` lies in what was reserved just now, whose pages it replaces. Nothing is read or written through it: it is there to
    // name the pages of the file, which is open. The file's bytes stay the same whether the system moves them or refuses to.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
        if libc::mmap(at, len, libc::PROT_READ, flags, file.as_raw_fd(), 0) != libc::MAP_FAILED {
            let _best_effort = libc::madvise(at, len, libc::MADV_COLLAPSE);
        }
        libc::munmap(place, reserved);
    }
}

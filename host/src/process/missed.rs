//! What a list of system calls lacks, told in debug builds: the number, and then the end of the process.
//!
//! Owns the handler of SIGSYS. Knows nothing about the lists. Invariant: compiled to nothing where debug assertions are off.
#![expect(unsafe_code, reason = "the handler of a signal reads what the kernel tells of it")]

use std::{io, mem, ptr};

/// The part of `siginfo_t` that the kernel fills for SIGSYS. Source: `include/uapi/asm-generic/siginfo.h`, 64 bits.
#[repr(C)]
struct Told {
    _signal_errno_code: [libc::c_int; 4],
    _address: *const libc::c_void,
    call: libc::c_int,
    _arch: libc::c_uint,
}

/// From here on a call that no list has ends the process, and says which it was.
pub(super) fn tell() {
    // SAFETY: all zeros is a valid `sigaction`: a set of signals that is empty, no flags, the default action.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_sigsys as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: it points to a structure of this frame, and the handler only does what a handler may.
    let failed = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) } != 0;
    assert!(!failed, "SIGSYS can be handled: {}", io::Error::last_os_error());
}

extern "C" fn on_sigsys(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid `siginfo_t`, and of this signal's kind it has these fields.
    let call = unsafe { (*info.cast::<Told>()).call };
    let mut text = *b"a system call that is on no list of host/src/process/calls.rs: 0000\n";
    let (mut rest, end) = (call.unsigned_abs(), text.len() - 2);
    for place in 0..4 {
        text[end - place] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    // SAFETY: the bytes are of this frame; both calls may be made in a handler.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        libc::abort();
    }
}

//! The system calls that a process may make, as seccomp holds it to.
//!
//! Owns the two lists. Knows nothing about files: those are `reach.rs`'s. Invariant: what is not on a list is not done. There it answers
//! `ENOSYS`, in a released binary; a debug one says which it was and ends, so that a test finds what a list lacks.
//!
//! Why `ENOSYS` and not the end of the process: every call that is made can fail, and its caller handles that; the C library takes this error
//! for an old kernel and goes another way, as it must for `clone3`, whose flags a filter cannot see. A call that was forgotten thus costs what
//! asked for it, and never half of it. Ending a node of many tenants for it would be worse than what the call could do behind these walls.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::Missing;

/// Which list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// A node that serves: files, sockets of the internet, memory, threads. No other program, no new process, no look at one.
    Node,
    /// A build: memory, threads, and the files that are open already or that Landlock leaves.
    Build,
}

/// Why a list is not in force.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallsError {
    #[error("the list of system calls cannot be compiled: {0}")]
    Compile(#[from] seccompiler::BackendError),
    #[error("the kernel does not take the list of system calls: {0}")]
    Apply(#[from] seccompiler::Error),
}

/// Of both lists: memory, threads, time, and what is done with open files.
const COMMON: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_openat,
    // Folders that a guest may read: each path is looked up beneath its folder.
    libc::SYS_openat2,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_ftruncate,
    // Memory images of modules.
    libc::SYS_memfd_create,
    libc::SYS_fallocate,
    libc::SYS_dup,
    libc::SYS_fcntl,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_membarrier,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    // Pipes that a thread makes for itself to be woken by a signal; with no `socket` beside it they lead nowhere.
    libc::SYS_socketpair,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
];

/// The same by their older names, which only this architecture has.
#[cfg(target_arch = "x86_64")]
const COMMON_OLD: &[i64] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_time, libc::SYS_readlink, libc::SYS_access];
#[cfg(not(target_arch = "x86_64"))]
const COMMON_OLD: &[i64] = &[];

/// What a node makes besides.
const NODE: &[i64] = &[
    // Files and folders.
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_flock,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_utimensat,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_fadvise64,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_getcwd,
    // Memory.
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_mbind,
    libc::SYS_get_mempolicy,
    // Sockets that exist; which are made, a rule below says.
    libc::SYS_connect,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    // The process that starts builds is waited for when it has ended.
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Time, and who one is.
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_setitimer,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getppid,
    libc::SYS_getcpu,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_times,
];

#[cfg(target_arch = "x86_64")]
const NODE_OLD: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_chmod,
    libc::SYS_accept,
    libc::SYS_getdents,
    libc::SYS_dup2,
    libc::SYS_pipe,
];
#[cfg(not(target_arch = "x86_64"))]
const NODE_OLD: &[i64] = &[];

/// A rule: the call is allowed if each argument, by its number, is that value under that mask.
type Rule = Result<SeccompRule, seccompiler::BackendError>;

fn where_all(conditions: &[(u8, u64, u64)]) -> Rule {
    let condition =
        |(argument, mask, value): &(u8, u64, u64)| SeccompCondition::new(*argument, Len::Dword, Op::MaskedEq(*mask), *value);
    SeccompRule::new(conditions.iter().map(condition).collect::<Result<_, _>>()?)
}

/// An argument that is exactly this number, in its lower half.
fn is(argument: u8, value: impl TryInto<u64>) -> (u8, u64, u64) {
    (argument, u64::from(u32::MAX), value.try_into().unwrap_or(u64::MAX) & u64::from(u32::MAX))
}

impl Calls {
    fn rules(self) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
        let lists: &[&[i64]] = match self {
            Self::Build => &[COMMON, COMMON_OLD],
            Self::Node => &[COMMON, COMMON_OLD, NODE, NODE_OLD],
        };
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = lists.concat().into_iter().map(|call| (call, Vec::new())).collect();
        let mut only = |call: i64, allowed: &[&[(u8, u64, u64)]]| {
            rules.insert(call, allowed.iter().map(|conditions| where_all(conditions)).collect::<Result<_, _>>()?);
            Ok::<_, seccompiler::BackendError>(())
        };
        let thread = libc::CLONE_THREAD as u64;
        // A thread of this process, never another process.
        only(libc::SYS_clone, &[&[(0, thread, thread)]])?;
        // A signal to itself: `abort`, and what a thread sends to itself.
        let own = std::process::id();
        only(libc::SYS_tgkill, &[&[is(0, own)]])?;
        // Names of threads and of mappings, and what the kernel told at the start of the program.
        only(libc::SYS_prctl, &[&[is(0, libc::PR_SET_NAME)], &[is(0, PR_SET_VMA)], &[is(0, PR_GET_AUXV)]])?;
        // Limits are read, and not set: the address of what to set is nowhere.
        only(libc::SYS_prlimit64, &[&[is(0, 0u64), (2, u64::from(u32::MAX), 0)], &[is(0, own), (2, u64::from(u32::MAX), 0)]])?;
        match self {
            Self::Build => only(libc::SYS_ioctl, &[&[is(1, libc::FIONBIO)]])?,
            Self::Node => {
                only(
                    libc::SYS_ioctl,
                    &[
                        &[is(1, libc::FIONBIO)],
                        &[is(1, libc::FIOCLEX)],
                        &[is(1, libc::FIONREAD)],
                        &[is(1, libc::TCGETS)],
                        &[is(1, PAGEMAP_SCAN)],
                    ],
                )?;
                // Not of the kind AF_UNIX: Landlock does not see who connects to whose path. AF_NETLINK is how the C library asks which
                // addresses there are before it looks up a name.
                only(
                    libc::SYS_socket,
                    &[&[is(0, libc::AF_INET)], &[is(0, libc::AF_INET6)], &[is(0, libc::AF_NETLINK), is(2, libc::NETLINK_ROUTE)]],
                )?;
                only(libc::SYS_kill, &[&[is(0, own)]])?;
            }
        }
        Ok(rules)
    }

    fn program(self, otherwise: SeccompAction, arch: TargetArch) -> Result<BpfProgram, seccompiler::BackendError> {
        SeccompFilter::new(self.rules()?, otherwise, SeccompAction::Allow, arch)?.try_into()
    }

    /// Binds all threads of this process.
    pub(super) fn enforce(self) -> Result<Missing, CallsError> {
        let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else {
            return Ok(Missing::All(format!("a list of system calls for {}", std::env::consts::ARCH)));
        };
        let none = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        let programs = if cfg!(debug_assertions) {
            // What the C library tries before it goes another way needs an answer: `clone3`, and the path socket of a cache of names.
            let path_socket = where_all(&[is(0, libc::AF_UNIX)])?;
            let tried = [(libc::SYS_clone3, Vec::new()), (libc::SYS_socket, vec![path_socket])].into();
            let answers = SeccompFilter::new(tried, SeccompAction::Allow, none, arch)?;
            let mut all = self.rules()?;
            all.insert(libc::SYS_clone3, Vec::new());
            if let Some(families) = all.get_mut(&libc::SYS_socket) {
                families.push(where_all(&[is(0, libc::AF_UNIX)])?);
            }
            // Of two that disagree the kernel takes the stricter.
            let list = SeccompFilter::new(all, SeccompAction::Trap, SeccompAction::Allow, arch)?;
            vec![answers.try_into()?, list.try_into()?]
        } else {
            vec![self.program(none, arch)?]
        };
        #[cfg(debug_assertions)]
        super::missed::tell();
        for program in &programs {
            match seccompiler::apply_filter_all_threads(program) {
                Ok(()) => {}
                // The second of two has to be allowed by the first.
                Err(seccompiler::Error::Seccomp(error)) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => {
                    return Ok(Missing::All("seccomp with filters, which this kernel was built without".into()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Missing::Nothing)
    }
}

/// Source: `include/uapi/linux/prctl.h`.
const PR_SET_VMA: i32 = 0x5356_4d41;
const PR_GET_AUXV: i32 = 0x4155_5856;
/// Source: `include/uapi/linux/fs.h`; see `capability/handler/mapping/pages.rs`.
const PAGEMAP_SCAN: u32 = 0xC060_6610;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_list_starts_a_program_or_looks_at_another_process() {
        for calls in [Calls::Node, Calls::Build] {
            let rules = calls.rules().unwrap();
            for call in [
                libc::SYS_execve,
                libc::SYS_execveat,
                libc::SYS_fork,
                libc::SYS_vfork,
                libc::SYS_clone3,
                libc::SYS_ptrace,
                libc::SYS_process_vm_readv,
                libc::SYS_process_vm_writev,
                libc::SYS_pidfd_getfd,
                libc::SYS_bpf,
                libc::SYS_perf_event_open,
                libc::SYS_io_uring_setup,
                libc::SYS_userfaultfd,
                libc::SYS_mount,
                libc::SYS_unshare,
                libc::SYS_setns,
                libc::SYS_keyctl,
                libc::SYS_listen,
                libc::SYS_personality,
                libc::SYS_setrlimit,
            ] {
                assert!(!rules.contains_key(&call), "{calls:?} {call}");
            }
            assert!(!rules[&libc::SYS_clone].is_empty() && !rules[&libc::SYS_prlimit64].is_empty());
        }
        let build = Calls::Build.rules().unwrap();
        for call in [libc::SYS_socket, libc::SYS_connect, libc::SYS_unlinkat, libc::SYS_renameat2, libc::SYS_mkdirat] {
            assert!(!build.contains_key(&call), "{call}");
        }
        assert!(Calls::Node.rules().unwrap().len() < 170);
    }

    #[test]
    fn the_lists_compile_for_every_architecture_that_has_them() {
        for calls in [Calls::Node, Calls::Build] {
            let program = calls.program(SeccompAction::Trap, TargetArch::x86_64).unwrap();
            assert!((100..4096).contains(&program.len()), "{}", program.len());
        }
    }
}

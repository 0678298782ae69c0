//! Traps: wasmtime's errors classified once, into faults with a code.
//!
//! Owns the only place that looks inside a wasmtime error of a running guest. Invariant: the detail of a fault holds the kind of
//! trap and numbers, never a guest's words; those go to the function's log.

use std::io;

use rustix::io::Errno;
use wasmtime::{Error, PoolConcurrencyLimitError, Trap};
use wasmtime_wasi::I32Exit;

use super::LoadError;
use crate::capability::Refusal;
use crate::fault::{self, Code, Executed, Fault};
use crate::meter::{MemoryBudget, TenantMeter, exceeded};
use crate::quota::Quota;

/// How a guest ended, when not by a trap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Exit {
    /// With this code: 0 is success.
    Code(i32),
    /// Otherwise.
    Fault(Fault),
}

/// What an error of a guest's call means. `memory`: of the instance, because a trap after a refused growth is "out of memory".
#[must_use]
pub(super) fn classify(error: &Error, memory: &MemoryBudget) -> Exit {
    if let Some(I32Exit(code)) = error.downcast_ref::<I32Exit>() {
        return Exit::Code(*code);
    }
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        return Exit::Fault(Fault::executed(refusal.code, refusal.detail.clone()));
    }
    // Start functions of a component's first instances may have run.
    if error.is::<PoolConcurrencyLimitError>() {
        let fault = Fault::executed(Code::Overloaded, "no room for another instance on this node");
        return Exit::Fault(fault.retry_after(std::time::Duration::from_secs(1)));
    }
    if is_exhausted(error) {
        return Exit::Fault(Fault { executed: Executed::Yes, ..Fault::exhausted() });
    }
    let Some(trap) = error.downcast_ref::<Trap>() else {
        return Exit::Fault(other(error, memory));
    };
    if let Some(tenant) = memory.was_over_quota().filter(|_| !matches!(trap, Trap::StackOverflow)) {
        return Exit::Fault(over_quota(tenant));
    }
    if memory.was_crowded() && !matches!(trap, Trap::StackOverflow) {
        return Exit::Fault(crowded());
    }
    if memory.was_refused() && !matches!(trap, Trap::StackOverflow) {
        return Exit::Fault(out_of_memory(memory));
    }
    let detail = match trap {
        Trap::StackOverflow => "the function used up its stack; look for recursion without end".into(),
        Trap::UnreachableCodeReached => {
            "the function trapped: it reached 'unreachable', which is how a panic or an abort ends".into()
        }
        trap => format!("the function trapped: {trap}"),
    };
    Exit::Fault(Fault::executed(Code::GuestTrap, detail).hint("the function's log has the backtrace: hob logs NAME"))
}

/// Whether it is the node that lacks something, which passes: room in a pool, or what the system gives.
pub(super) fn is_shortage(error: &Error) -> bool {
    error.is::<PoolConcurrencyLimitError>() || is_exhausted(error)
}

fn is_exhausted(error: &Error) -> bool {
    errno(error).is_some_and(|errno| fault::is_exhausted(&io::Error::from_raw_os_error(errno)))
}

/// The number of the system's error that is behind this one.
pub(super) fn errno(error: &Error) -> Option<i32> {
    error.chain().find_map(|cause| match (cause.downcast_ref::<io::Error>(), cause.downcast_ref::<Errno>()) {
        (Some(error), _) => error.raw_os_error(),
        (None, errno) => errno.map(|errno| errno.raw_os_error()),
    })
}

impl LoadError {
    /// Whether the process has no descriptors, mappings or memory left, and the artifact is as good as any.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        is_exhausted(&self.0)
    }
}

fn crowded() -> Fault {
    Fault::executed(Code::Overloaded, "the node had no memory left for the function")
        .hint("try again, or raise engine.memory_max")
        .retry_after(std::time::Duration::from_secs(1))
}

fn over_quota(tenant: &TenantMeter) -> Fault {
    let fault = exceeded(Quota::Memory, tenant.quota(Quota::Memory));
    Fault { executed: Executed::Yes, ..fault }.retry_after(std::time::Duration::from_secs(1))
}

fn out_of_memory(memory: &MemoryBudget) -> Fault {
    let detail = format!("the function was refused memory past its limit of {} bytes, and gave up", memory.limit());
    Fault::executed(Code::GuestMemory, detail).hint("raise 'memory' in [limits] of hob.toml")
}

/// Errors that are neither traps nor ours: an instantiation that does not fit, or a component that breaks the canonical ABI.
fn other(error: &Error, memory: &MemoryBudget) -> Fault {
    if let Some(tenant) = memory.was_over_quota() {
        return over_quota(tenant);
    }
    if memory.was_crowded() {
        return crowded();
    }
    if memory.was_refused() {
        return out_of_memory(memory);
    }
    let cause = error.root_cause().to_string();
    let line: String = cause.lines().next().unwrap_or_default().chars().take(300).collect();
    Fault::executed(Code::GuestTrap, format!("the function failed: {line}"))
}

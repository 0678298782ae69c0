//! Traps: wasmtime's errors classified once, into faults with a code.
//!
//! Owns the only place that looks inside a wasmtime error of a running guest. Invariant: the detail of a fault holds the kind of
//! trap and numbers, never a guest's words; those go to the function's log.

use wasmtime::{Error, PoolConcurrencyLimitError, Trap};
use wasmtime_wasi::I32Exit;

use crate::capability::Refusal;
use crate::fault::{Code, Fault};
use crate::meter::MemoryBudget;

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
    if error.downcast_ref::<PoolConcurrencyLimitError>().is_some() {
        // Start functions of a component's first instances may have run.
        let fault = Fault::executed(Code::Overloaded, "no room for another instance on this node");
        return Exit::Fault(fault.retry_after(std::time::Duration::from_secs(1)));
    }
    let Some(trap) = error.downcast_ref::<Trap>() else {
        return Exit::Fault(other(error, memory));
    };
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

fn out_of_memory(memory: &MemoryBudget) -> Fault {
    let detail = format!("the function was refused memory past its limit of {} bytes, and gave up", memory.limit());
    Fault::executed(Code::GuestMemory, detail).hint("raise 'memory' in [limits] of hob.toml")
}

/// Errors that are neither traps nor ours: an instantiation that does not fit, or a component that breaks the canonical ABI.
fn other(error: &Error, memory: &MemoryBudget) -> Fault {
    if memory.was_refused() {
        return out_of_memory(memory);
    }
    let cause = error.root_cause().to_string();
    let line: String = cause.lines().next().unwrap_or_default().chars().take(300).collect();
    Fault::executed(Code::GuestTrap, format!("the function failed: {line}"))
}

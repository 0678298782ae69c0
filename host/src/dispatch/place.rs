//! A place to run, and what to run there.
//!
//! Owns in which order an invocation gets both, and that nobody has a place while there is nothing to run. Knows nothing about how a
//! template is made. Invariant: who waits for a compilation is one of at most as many as may run and wait, and keeps that until it has a place.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::catalog::Function;
use super::templates::{COMPILE_WAIT, Compilation, Loaded, Reached};
use super::{Dispatcher, no_such_function};
use crate::fault::{Code, Fault};
use crate::invocation::Start;
use crate::limits::Limit;
use crate::meter::{AdmissionError, Permit, Running};

/// A place to run.
pub(super) struct Seat {
    pub(super) permit: Permit,
    pub(super) running: Running,
    /// Whether somebody had to leave it first.
    pub(super) waited: bool,
    pub(super) admitted: Instant,
}

/// A place to run, and what to run there.
pub(super) struct Placed {
    pub(super) seat: Seat,
    /// The revision that it is of, if another took the place of the one that was asked for.
    pub(super) next: Option<Arc<Function>>,
    pub(super) loaded: Loaded,
    /// Time that was waited for a compilation before there was this place.
    pub(super) compiling: Duration,
}

impl Dispatcher {
    /// A place to run, and what to run there.
    ///
    /// # Errors
    /// `concurrency` and `quota-exceeded` where there is no place; those of a load or a compilation.
    pub(super) async fn place(&self, function: &Arc<Function>, asked: Option<Start>) -> Result<Placed, Fault> {
        let (permit, waited) = match function.admission.try_admit() {
            Some(permit) => (permit, false),
            None => (function.admission.admit().await.map_err(|error| no_place(function, error))?, true),
        };
        let seat = take_seat(function, permit, waited)?;
        let (next, reached) = self.reach(function, asked).await?;
        match reached {
            Reached::Loaded(loaded) => Ok(Placed { seat, next, loaded, compiling: Duration::ZERO }),
            Reached::Compiles(compilation) => {
                let function = next.unwrap_or_else(|| function.clone());
                // Apart, so that it makes the future of no other start larger.
                Box::pin(self.place_when_compiled(function, seat, compilation)).await
            }
        }
    }

    /// As [`Dispatcher::place`], for a function that has to be compiled first. It has no place meanwhile: there is nothing to run there, and who
    /// comes after it would wait for that place and then for the same compilation.
    async fn place_when_compiled(&self, of: Arc<Function>, seat: Seat, compilation: Compilation) -> Result<Placed, Fault> {
        let began = seat.admitted;
        let aside = of.admission.aside().map_err(|error| no_place(&of, error))?;
        drop(seat);
        // Not held on to: who waits for a place keeps no template in memory.
        let ended = compilation.end().await.map(|loaded| loaded.verify);
        let compiling = began.elapsed();
        let (function, compiled) = match ended {
            Ok(verify) => (of.clone(), Some(verify)),
            Err(fault) => (self.instead(&of, fault)?, None),
        };
        let permit = of.admission.admit_from(aside).await.map_err(|error| no_place(&of, error))?;
        let seat = take_seat(&of, permit, true)?;
        let (next, reached) = self.reach(&function, None).await?;
        let Reached::Loaded(mut loaded) = reached else { return Err(Fault::compiling(COMPILE_WAIT)) };
        match compiled {
            Some(verify) if next.is_none() => (loaded.start, loaded.verify) = (Start::Compiled, loaded.verify + verify),
            // It has waited, and no instance was there for it.
            _ if loaded.start == Start::Resident => loaded.start = Start::Stored,
            _ => {}
        }
        Ok(Placed { seat, next: Some(next.unwrap_or(function)), loaded, compiling })
    }

    /// How far the template of a function is, or that of the revision that took its place while this waited its turn.
    async fn reach(&self, function: &Arc<Function>, asked: Option<Start>) -> Result<(Option<Arc<Function>>, Reached), Fault> {
        let fault = match self.0.templates.reach(function, asked).await {
            Ok(reached) => return Ok((None, reached)),
            Err(fault) => fault,
        };
        let next = self.instead(function, fault)?;
        let reached = Box::pin(self.0.templates.reach(&next, asked)).await?;
        Ok((Some(next), reached))
    }

    /// The revision to go on with where one cannot be loaded: the files of a revision go when another takes its place, and all when the
    /// function is deleted.
    ///
    /// # Errors
    /// `not-found` if there is none any more; `fault` if it is this one still, or if that cannot be known.
    fn instead(&self, function: &Function, fault: Fault) -> Result<Arc<Function>, Fault> {
        match self.0.functions.get(&function.tenant, &function.name) {
            Ok(Some(found)) if found.revision.number != function.revision.number => Ok(found),
            Ok(None) => Err(no_such_function(&function.name)),
            // The fault that is there already says more.
            Ok(Some(_)) | Err(_) => Err(fault),
        }
    }
}

fn take_seat(function: &Function, permit: Permit, waited: bool) -> Result<Seat, Fault> {
    let running = function.meter.tenant().run()?;
    Ok(Seat { permit, running, waited, admitted: Instant::now() })
}

/// The fault for a function that has no place for one more invocation.
pub(super) fn no_place(function: &Function, error: AdmissionError) -> Fault {
    let (name, running, queue) = (&function.name, function.limits.get(Limit::Concurrency), function.limits.get(Limit::Queue));
    let detail = match error {
        AdmissionError::QueueFull => format!("{running} invocations of '{name}' run and {queue} wait"),
        AdmissionError::TimedOut => format!("{running} invocations of '{name}' run, and none ended in time"),
        AdmissionError::AsideFull => {
            let both = running + queue;
            format!("'{name}' is being built, and {both} invocations wait for that, which is as many as may run and wait")
        }
    };
    Fault::new(Code::Concurrency, detail)
        .hint("raise 'concurrency' or 'queue' in [limits] of hob.toml")
        .retry_after(Duration::from_secs(1))
}

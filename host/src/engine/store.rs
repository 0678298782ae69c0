//! The one place that builds a wasmtime `Store`.
//!
//! Owns what every store has: limiter over the sum of memories, deadline, host state. Whoever runs a guest, for a request, a
//! benchmark or `hob run`, gets its store here, so no limit can be missed in one of them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use wasmtime::Store;

use super::deadline;
use super::kind::Kind;
use crate::capability::handler::{Exchange, Mappings};
use crate::capability::held;
use crate::capability::reply::Reply;
use crate::capability::stdio::{CommandOutput, Stdio};
use crate::capability::{Environment, Host};
use crate::fault::Fault;
use crate::invocation::{Hops, Payload};
use crate::limits::{Limit, Limits};
use crate::meter::{FunctionMeter, MemoryBudget, exceeded};
use crate::quota::Quota;
use crate::telemetry::logs::LogSink;

/// What the standard streams of a guest are to be.
#[derive(Debug)]
pub(super) enum Streams {
    /// What its kind has when it answers requests: a command's output is the response.
    Served {
        /// Input of a command; others have none.
        input: Option<Payload>,
    },
    /// What its kind has before there is a request: a command's output is the log.
    Initialising,
    /// The terminal of whoever started it.
    Terminal,
}

/// What a store is built from.
#[derive(Debug)]
pub(super) struct Blueprint<'a> {
    /// Kind of the guest.
    pub kind: Kind,
    /// Its ceilings.
    pub limits: &'a Limits,
    /// Arguments, variables and grants.
    pub environment: Arc<Environment>,
    /// Where its words go.
    pub log: Arc<LogSink>,
    /// Where its response goes.
    pub reply: Arc<Reply>,
    /// Its standard streams.
    pub streams: Streams,
    /// Request and response of a handler.
    pub exchange: Exchange,
    /// Ticks of its first slice.
    pub ticks: u64,
    /// How many hops its request came by.
    pub hops: Hops,
    /// Who is charged with its memory besides the node.
    pub account: Option<Arc<FunctionMeter>>,
}

/// Builds a store, and the output of a command if it is one that answers a request.
#[must_use]
pub(super) fn build(engine: &wasmtime::Engine, blueprint: Blueprint<'_>) -> (Store<Host>, Option<Arc<CommandOutput>>) {
    let (limits, ticks, kind) = (blueprint.limits, blueprint.ticks, blueprint.kind);
    let (host, output) = host(blueprint);
    let mut store = Store::new(engine, host);
    store.limiter(|host| &mut host.memory);
    if kind.is_component() {
        held::bound_store(&mut store);
    }
    deadline::arm(&mut store, limits.duration(Limit::Cpu), ticks);
    (store, output)
}

/// Gives a store whose instance waited to one invocation: all that belongs to an invocation is new, deadlines count from now.
///
/// # Errors
/// `quota-exceeded` when the tenant has no room for the memory that the instance has.
pub(super) fn dedicate(store: &mut Store<Host>, blueprint: Blueprint<'_>) -> Result<Option<Arc<CommandOutput>>, Fault> {
    let (limits, ticks) = (blueprint.limits, blueprint.ticks);
    let (mut host, output) = host(blueprint);
    store.data_mut().let_go();
    // What its start took counts against the limit of whoever got it.
    if !host.memory.inherit(&mut store.data_mut().memory)
        && let Some(tenant) = host.memory.was_over_quota()
    {
        return Err(exceeded(Quota::Memory, tenant.quota(Quota::Memory)).retry_after(Duration::from_secs(1)));
    }
    *store.data_mut() = host;
    deadline::arm(store, limits.duration(Limit::Cpu), ticks);
    Ok(output)
}

fn host(blueprint: Blueprint<'_>) -> (Host, Option<Arc<CommandOutput>>) {
    let Blueprint { kind, limits, environment, log, reply, streams, exchange, hops, account, .. } = blueprint;
    let (stdio, output) = match streams {
        Streams::Terminal => (Stdio::Inherit, None),
        Streams::Served { input } if kind.is_command() => {
            let output = CommandOutput::new(reply.clone());
            (Stdio::Command { input: Mutex::new(input), output: output.clone(), log: log.clone() }, Some(output))
        }
        Streams::Initialising if kind.is_command() => {
            let output = CommandOutput::new(reply.clone());
            (Stdio::Initialising { output: output.clone(), log: log.clone() }, Some(output))
        }
        Streams::Served { .. } | Streams::Initialising => (Stdio::Log(log.clone()), None),
    };
    let mut host = Host::new(MemoryBudget::of(limits.size(Limit::Memory), account), reply, log, environment, stdio);
    host.exchange = exchange;
    host.came_by(hops);
    host.mappings = Mappings::new(limits.get(Limit::Mapped), limits.get(Limit::Mappings));
    (host, output)
}

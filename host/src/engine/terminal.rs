//! Running a command on the terminal: `hob run FILE.wasm`.
//!
//! Owns the difference to an invocation: standard streams are the user's own, and the exit code is the result. Store, limits and
//! classification of its end are the same.

use std::sync::Arc;

use super::call::{self, Input};
use super::store::{self, Blueprint, Streams};
use super::template::Template;
use super::{Engine, schedule};
use crate::capability::Environment;
use crate::capability::handler::Exchange;
use crate::capability::reply::Reply;
use crate::fault::{Code, Fault};
use crate::id::{InvocationId, RevisionNumber};
use crate::invocation::Hops;
use crate::limits::{Limit, Limits};
use crate::telemetry::logs::{FunctionLog, LogSink};

impl Engine {
    /// Runs a command with the process's own standard streams, and returns its exit code. Its words go to these streams; `log` gets
    /// the backtrace of a trap.
    ///
    /// # Errors
    /// Any fault of a guest but an exit code.
    /// # Cancellation
    /// Dropping the future ends the guest at its next tick or host call.
    pub async fn run_on_terminal(
        &self,
        template: &Arc<Template>,
        environment: Environment,
        limits: &Limits,
        log: Arc<FunctionLog>,
    ) -> Result<i32, Fault> {
        let reply = Arc::new(Reply::default());
        let log = Arc::new(LogSink::new(log, InvocationId::new(0, 0), RevisionNumber::FIRST, 0));
        let blueprint = Blueprint {
            kind: template.shape.kind,
            limits,
            environment: Arc::new(environment),
            log,
            reply: reply.clone(),
            streams: Streams::Terminal,
            exchange: Exchange::default(),
            ticks: 1,
            hops: Hops::default(),
            account: None,
        };
        let code = template.code.clone();
        let (store, output) = store::build(&self.place(code.place).engine, blueprint);
        let guest = call::start(code, store, None, Input { request: None, output, reply });
        let run = schedule::in_turns(schedule::Whose::default(), guest);
        match tokio::time::timeout(limits.duration(Limit::Wall), run).await {
            Ok(ended) => match ended.store.data().exit_code {
                Some(code) => Ok(code),
                None => ended.result.map(|()| 0),
            },
            Err(_) => Err(Fault::executed(
                Code::WallDeadline,
                format!("the program used up its time of {:?}", limits.duration(Limit::Wall)),
            )),
        }
    }
}

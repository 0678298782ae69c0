//! Calls of a function over the data port, with the times that they took.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use ureq::Agent;

use super::cases::Request;
use crate::cli::client;
use crate::cli::text::{bytes, clean, span};
use crate::cli::trust::Trust;
use crate::id::FunctionName;

/// Calls after the first one.
const FOLLOWING: usize = 20;
/// Largest answer of an example, in bytes.
const ANSWER_LEN_MAX: u64 = 64 << 20;

/// Calls functions of one daemon, on a connection that stays open.
#[derive(Debug)]
pub(super) struct Caller {
    agent: Agent,
    base: String,
}

/// One request, sent several times.
#[derive(Debug)]
pub(super) struct Calls {
    /// What was sent, in words.
    request: String,
    /// What came back, in words.
    answer: String,
    first: Timed,
    /// Sorted by time.
    following: Vec<Timed>,
}

/// One call.
#[derive(Debug, Clone)]
struct Timed {
    /// From before the request was sent to after the answer was read.
    took: Duration,
    /// Rung of the start.
    start: String,
    /// What the daemon says about its part, as in `server-timing`: names and milliseconds.
    phases: Vec<(String, f64)>,
}

impl Caller {
    /// Of the daemon whose data port is at `addr`.
    pub(super) fn new(addr: &str) -> Self {
        Self { agent: client::agent(&Trust::default()), base: format!("http://{addr}") }
    }

    /// Sends a request once and then [`FOLLOWING`] times. Every answer must be right.
    pub(super) fn calls(&self, name: &FunctionName, request: &Request) -> anyhow::Result<Calls> {
        let (first, answer) = self.call(name, request)?;
        let following = (0..FOLLOWING).map(|_| self.call(name, request).map(|(timed, _)| timed));
        let mut following = following.collect::<anyhow::Result<Vec<_>>>()?;
        following.sort_by_key(|timed| timed.took);
        let body = if request.body.is_empty() { String::new() } else { format!(" with {}", bytes(request.body.len() as u64)) };
        let request = format!("{} /{name}{}{body}", request.method, request.path);
        Ok(Calls { request, answer, first, following })
    }

    fn call(&self, name: &FunctionName, request: &Request) -> anyhow::Result<(Timed, String)> {
        let url = format!("{}/{name}{}", self.base, request.path);
        let head = http::Request::builder().method(&request.method).uri(&url).header("hob-timing", "1");
        let began = Instant::now();
        let sent = match request.body.as_slice() {
            [] => self.agent.run(head.body(())?),
            body => self.agent.run(head.body(body)?),
        };
        let response = sent.with_context(|| format!("{url} does not answer"))?;
        let status = response.status();
        let header =
            |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let (start, phases) = (header("hob-start"), client::server_timing(&header("server-timing")));
        let answer =
            response.into_body().into_with_config().limit(ANSWER_LEN_MAX).read_to_vec().context("the answer broke off")?;
        let took = began.elapsed();
        ensure!(status.is_success(), "{url} answered {status}: {}", clean(&String::from_utf8_lossy(&answer)));
        let answer = (request.check)(&answer).with_context(|| format!("{url} answered wrongly"))?;
        Ok((Timed { took, start, phases }, answer))
    }
}

impl Calls {
    /// The call in the middle of the following ones.
    fn median(&self) -> &Timed {
        self.following.get(self.following.len() / 2).unwrap_or(&self.first)
    }

    /// Three lines: what came back, the first call, the following ones.
    pub(super) fn text(&self) -> String {
        let line = |what: &str, timed: &Timed| {
            let phase =
                |(name, ms): &(String, f64)| format!("{} {}", clean(name), span(Duration::from_secs_f64(ms.max(0.0) / 1e3)));
            let phases = timed.phases.iter().map(phase).collect::<Vec<_>>().join(", ");
            format!("    {what:14} {:9} {:>10}   ({phases})\n", clean(&timed.start), span(timed.took))
        };
        let head = format!("  {} -> {}\n", self.request, self.answer);
        head + &line("first call", &self.first) + &line(&format!("median of {}", self.following.len()), self.median())
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let timed = |timed: &Timed| {
            let phases: serde_json::Map<_, _> = timed.phases.iter().map(|(name, ms)| (name.clone(), (*ms).into())).collect();
            serde_json::json!({ "ms": timed.took.as_secs_f64() * 1e3, "start": timed.start, "phases_ms": phases })
        };
        serde_json::json!({
            "request": self.request,
            "answer": self.answer,
            "first": timed(&self.first),
            "following": self.following.len(),
            "median": timed(self.median()),
        })
    }
}

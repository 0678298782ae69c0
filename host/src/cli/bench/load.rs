//! The load: requests at a steady rate, whatever the answers do.
//!
//! Owns the schedule and the connections. A request is due at a moment that depends on its number alone, and its time counts from
//! then: a slow server cannot make the load wait and so hide its queue. Compilations alone come one after the other, because all who ask
//! for one at once share it. Knows nothing about what is made of the samples.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use http::{HeaderMap, HeaderValue, Method};

use crate::cli::client::{Call, Client, accept, server_timing};
use crate::cli::{Failure, text};
use crate::control::wire::Problem;
use crate::id::FunctionName;
use crate::invocation::{Phases, Start};
use crate::net::status::{HOB_ERROR, HOB_START};

/// Requests under way at most. When all are taken, the next one is sent late, and its time tells.
const CONNECTIONS_MAX: u32 = 32;
/// Before a request is due, its thread is awake for this long: what wakes a sleeping thread comes some 100 us late.
const AWAKE: Duration = Duration::from_micros(200);
/// Longest answer that is read, in bytes.
const ANSWER_LEN_MAX: u64 = 64 << 20;

/// What is sent for one rung.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// The rung that is asked for.
    pub(super) rung: Start,
    /// Requests per second.
    pub(super) rate: f64,
    /// Requests.
    pub(super) count: u32,
}

impl Plan {
    /// Whether one request follows the other: who asks while a function is compiled waits for the rest of that, and would measure the rest.
    pub(super) fn shares(self) -> bool {
        self.rung == Start::Compiled
    }
}

/// One answer of the rung that was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// From when the request was due until its answer was read.
    pub(super) total: Duration,
    /// The part of it before the request was sent.
    pub(super) late: Duration,
    /// What the daemon says about its part.
    pub(super) phases: Phases,
}

/// What came back for one rung.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) plan: Plan,
    /// In no order.
    pub(super) samples: Vec<Sample>,
    /// Answers that were something else, by what they were, in words.
    pub(super) others: BTreeMap<String, u32>,
}

/// How one request ended.
enum Ended {
    Sample(Sample),
    Other(String),
}

/// One request without a wish, which must be answered by the function. It also opens the connection.
///
/// # Errors
/// What the daemon said instead.
pub(super) fn probe(client: &Client, name: &FunctionName) -> Result<(), Failure> {
    let response = client.invoke(name, call(None), None)?;
    let response = if response.headers().contains_key(&HOB_ERROR) { accept(response, Some(name))? } else { response };
    let body = response.into_body().into_with_config().limit(ANSWER_LEN_MAX).read_to_vec();
    body.context("the function's answer broke off")?;
    Ok(())
}

/// Sends what is planned and waits for all answers.
///
/// # Errors
/// When the daemon cannot be reached any more.
pub(super) fn run(client: &Client, name: &FunctionName, plan: Plan) -> Result<Measured, Failure> {
    let (next, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let began = Instant::now() + AWAKE;
    let awake = AWAKE.min(Duration::from_secs_f64(0.5 / plan.rate));
    let shares = plan.shares();
    let connections = if shares { 1 } else { CONNECTIONS_MAX };
    let send = || -> Result<Vec<Ended>, Failure> {
        let mut ended = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= plan.count {
                break;
            }
            let due = began + Duration::from_secs_f64(f64::from(number) / plan.rate);
            let due = if shares { due.max(Instant::now()) } else { due };
            wait_until(due, awake);
            match one(client, name, plan.rung, due) {
                Ok(one) => ended.push(one),
                Err(failure) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(failure);
                }
            }
        }
        Ok(ended)
    };
    let mut measured = Measured { plan, samples: Vec::new(), others: BTreeMap::new() };
    let ended = thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.count.min(connections)).map(|_| scope.spawn(send)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread of the load panicked").into()))
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>, Failure>>()
    })?;
    for one in ended.into_iter().flatten() {
        match one {
            Ended::Sample(sample) => measured.samples.push(sample),
            Ended::Other(words) => *measured.others.entry(words).or_default() += 1,
        }
    }
    Ok(measured)
}

fn wait_until(due: Instant, awake: Duration) {
    if let Some(time) = due.checked_duration_since(Instant::now() + awake) {
        thread::sleep(time);
    }
    while Instant::now() < due {
        std::hint::spin_loop();
    }
}

fn call(rung: Option<Start>) -> Call {
    let mut headers = HeaderMap::new();
    headers.insert("hob-timing", HeaderValue::from_static("1"));
    if let Some(rung) = rung {
        headers.insert(&HOB_START, HeaderValue::from_static(rung.as_str()));
    }
    Call { method: Method::GET, path: "/".into(), headers }
}

fn one(client: &Client, name: &FunctionName, rung: Start, due: Instant) -> Result<Ended, Failure> {
    let late = due.elapsed();
    let response = client.invoke(name, call(Some(rung)), None)?;
    let header = |name: &str| {
        // Several `server-timing` may come: the guest's stand before Hob's.
        let value = response.headers().get_all(name).iter().next_back();
        value.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let (error, start, timing) = (header(HOB_ERROR.as_str()), header(HOB_START.as_str()), header("server-timing"));
    let body = response.into_body().into_with_config().limit(ANSWER_LEN_MAX).read_to_vec();
    let total = due.elapsed();
    Ok(match body {
        Ok(body) if !error.is_empty() => {
            let detail = serde_json::from_slice::<Problem>(&body).map(|problem| problem.detail).unwrap_or_default();
            Ended::Other(text::clean(&format!("got {error}: {detail}")))
        }
        Ok(_) if start == rung.as_str() => Ended::Sample(Sample { total, late, phases: phases(&timing) }),
        Ok(_) => Ended::Other(text::clean(&format!("began on '{start}'"))),
        Err(error) => Ended::Other(text::clean(&format!("broke off: {error}"))),
    })
}

/// The phases of a `server-timing`; zero for what it does not say.
fn phases(timing: &str) -> Phases {
    let told = server_timing(timing);
    let [queue, load, verify, instantiate, enter, run] = Phases::NAMES.map(|name| {
        let millis = told.iter().find(|(have, _)| have == name).map_or(0.0, |(_, millis)| *millis);
        Duration::try_from_secs_f64(millis / 1e3).unwrap_or_default()
    });
    Phases { queue, load, verify, instantiate, enter, run }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_found_by_name() {
        let us = Duration::from_micros;
        let expected = Phases { queue: us(1), run: us(2), ..Phases::default() };
        assert_eq!(phases("run;dur=0.002, queue;dur=0.001, x;dur=9"), expected);
        assert_eq!(phases("queue;dur=-1, run;dur=NaN"), Phases::default());
    }

    #[test]
    fn nobody_goes_before_a_request_is_due() {
        let due = Instant::now() + Duration::from_millis(3);
        wait_until(due, AWAKE);
        assert!(Instant::now() >= due);
        // Nor does it wait for what is past.
        wait_until(due, AWAKE);
    }
}

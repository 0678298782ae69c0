//! The route to a function's log: the newest entries, and a feed of those that follow.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::Control;
use super::access::Caller;
use super::answer::{Named, Refusal, query_fault};
use super::wire::{LogEntry, LogList, Problem};
use crate::id::FunctionName;
use crate::net::drain::Stop;
use crate::telemetry::logs::Entry;

/// Entries when the request is silent.
const TAIL: usize = 100;

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    tail: Option<usize>,
    #[serde(default)]
    follow: bool,
}

/// Reads a function's log: the newest `tail` entries as JSON, or with `follow=true` as server-sent events that go on.
#[utoipa::path(get, path = "/v1/functions/{name}/logs", security(("token" = ["read"])),
    params(("name" = String, Path), ("tail" = Option<usize>, Query, description = "how many; 100 when absent"),
        ("follow" = Option<bool>, Query, description = "go on with new entries as server-sent events, each a LogEntry")),
    responses((status = 200, description = "with `follow=true` events without end", content((LogList = "application/json"), (String = "text/event-stream"))),
        (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn logs(
    State(control): State<Control>,
    caller: Caller,
    Named(name): Named<FunctionName>,
    wanted: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(wanted) = wanted.map_err(|error| query_fault(&error))?;
    let log = control.dispatcher.function(&caller.tenant, &name)?.log.clone();
    let count = wanted.tail.unwrap_or(TAIL);
    if wanted.follow {
        let (entries, feed) = log.follow(count);
        let events = stream::unfold(Follow { entries: entries.into_iter(), feed, stop: control.stop.clone() }, next);
        return Ok(control.feed(caller, events));
    }
    Ok(Json(LogList { items: log.tail(count).iter().map(|entry| LogEntry::from(entry.as_ref())).collect() }).into_response())
}

impl From<&Entry> for LogEntry {
    fn from(entry: &Entry) -> Self {
        Self {
            seq: entry.seq,
            time_ms: entry.time_ms,
            invocation: entry.invocation.to_string(),
            revision: entry.revision.0,
            source: entry.source.as_str().into(),
            level: entry.level.as_str().into(),
            text: entry.text.clone(),
        }
    }
}

struct Follow {
    entries: std::vec::IntoIter<Arc<Entry>>,
    feed: Receiver<Arc<Entry>>,
    stop: Stop,
}

type Next = Option<(Result<Event, Infallible>, Follow)>;

/// The next event; the feed ends when the function is gone or the node stops.
async fn next(mut follow: Follow) -> Next {
    let event = match follow.entries.next() {
        Some(entry) => event(&entry),
        None => {
            let received = tokio::select! {
                () = follow.stop.stopped() => return None,
                received = follow.feed.recv() => received,
            };
            match received {
                Ok(entry) => event(&entry),
                Err(RecvError::Lagged(count)) => {
                    Event::default().comment(format!("{count} entries were lost: this reader is too slow"))
                }
                Err(RecvError::Closed) => return None,
            }
        }
    };
    Some((Ok(event), follow))
}

fn event(entry: &Entry) -> Event {
    let text = serde_json::to_string(&LogEntry::from(entry)).unwrap_or_default();
    Event::default().data(text)
}

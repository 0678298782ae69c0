//! What is written to the audit log of requests to the control port.
//!
//! Owns which requests are changes, and what their lines say. A change of what is in a bucket is none: those belong to whoever uses it. Knows
//! nothing about how lines are kept. Invariants: no change is begun before its line is on the disk; of one tenant's changes [`CHANGES_MAX`] are
//! begun at once at most, and then one every [`CHANGE_TIME`], because the log keeps so many lines and each change pushes two older ones out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use http::Method;
use serde_json::{Map, Value, json};

use super::access::Caller;
use super::answer::{Refusal, Refused};
use crate::audit::{Audit, AuditError};
use crate::dispatch::templates::blocking;
use crate::fault::{Code, Fault};
use crate::id::TenantId;

/// Refusals that are written down within [`REFUSED_TIME`]; of more only the number.
pub(super) const REFUSED_MAX: u32 = 60;
const REFUSED_TIME: Duration = Duration::from_secs(60);
/// Changes that a tenant may make at once, whatever becomes of them. Whoever runs the node has no such bound.
pub(super) const CHANGES_MAX: u32 = 600;
/// The time in which it may make one more.
const CHANGE_TIME: Duration = Duration::from_millis(100);
/// Longest path in a line, in characters.
const PATH_MAX: usize = 200;

/// What a change led to, as its second line says it: put beside a response by whoever made it.
#[derive(Debug, Clone)]
pub(super) struct Detail(pub Value);

/// Writes the lines.
#[derive(Debug, Clone)]
pub(super) struct Auditor {
    audit: Arc<Audit>,
    refused: Arc<Mutex<Refusals>>,
    changes: Arc<Mutex<Changes>>,
}

/// When each tenant could make [`CHANGES_MAX`] again, of those that cannot: one number says how many it may make now.
#[derive(Debug, Default)]
struct Changes(HashMap<TenantId, Instant>);

impl Changes {
    /// One more of a tenant.
    ///
    /// # Errors
    /// The time until there may be one.
    ///
    /// # Cost
    /// A look at each tenant that lately made some if this one did not.
    fn take(&mut self, tenant: &TenantId, now: Instant) -> Result<(), Duration> {
        let free = match self.0.get(tenant) {
            Some(free) => (*free).max(now),
            None => {
                self.0.retain(|_, free| *free > now);
                now
            }
        };
        let next = free + CHANGE_TIME;
        let late = next.saturating_duration_since(now + CHANGE_TIME * CHANGES_MAX);
        if !late.is_zero() {
            return Err(late);
        }
        self.0.insert(tenant.clone(), next);
        Ok(())
    }
}

#[derive(Debug)]
struct Refusals {
    began: Instant,
    count: u32,
    /// Not written down since the last line that was.
    more: u64,
}

/// What a line says of a request.
#[derive(Debug)]
pub(super) struct Line(Map<String, Value>);

impl Line {
    pub(super) fn of(request: &Request, address: IpAddr) -> Self {
        let path: String = request.uri().path().chars().take(PATH_MAX).collect();
        Self(Map::from_iter([
            ("method".to_owned(), request.method().as_str().into()),
            ("path".to_owned(), path.into()),
            ("address".to_owned(), address.to_string().into()),
        ]))
    }

    /// With who asks.
    pub(super) fn by(mut self, caller: &Caller) -> Self {
        let token = caller.token.as_ref().map(|token| format!("{}/{}", token.tenant, token.name));
        self.0.insert("tenant".into(), caller.tenant.as_str().into());
        self.0.insert("token".into(), token.into());
        self
    }
}

/// A change of which the second line is missing.
struct Begun {
    audit: Arc<Audit>,
    of: u64,
    ended: bool,
}

impl Drop for Begun {
    fn drop(&mut self) {
        // The client left. Whether the change was made, nobody here knows; a deploy goes on to its end.
        if let (false, Ok(runtime)) = (self.ended, tokio::runtime::Handle::try_current()) {
            let (audit, members) = (self.audit.clone(), Map::from_iter([("of".to_owned(), self.of.into())]));
            runtime.spawn_blocking(move || {
                if let Err(error) = audit.append("left", members) {
                    tracing::error!(%error, "the audit log misses that a client left");
                }
            });
        }
    }
}

fn fault(error: &AuditError, what: &'static str) -> Fault {
    if error.is_full() {
        return Fault::new(Code::StorageFull, what).hint("free some space on the node's disk");
    }
    Fault::internal(error)
}

impl Auditor {
    pub(super) fn new(audit: Arc<Audit>) -> Self {
        let refused = Refusals { began: Instant::now(), count: 0, more: 0 };
        Self { audit, refused: Arc::new(Mutex::new(refused)), changes: Arc::default() }
    }

    /// Counts a change of a tenant, before its line is written.
    ///
    /// # Errors
    /// `quota-exceeded`, if it made too many.
    pub(super) fn count(&self, tenant: &TenantId) -> Result<(), Fault> {
        // No code panics while it holds the lock.
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.take(tenant, Instant::now()).map_err(|wait| {
            let detail = format!(
                "the tenant made more than {CHANGES_MAX} changes of the node at once, all of which are written to the audit log; then there may be {} per second",
                1000 / CHANGE_TIME.as_millis()
            );
            Fault::new(Code::QuotaExceeded, detail).hint("wait, and look for what asks over and over again").retry_after(wait)
        })
    }

    /// Whether a request is a change of the node: any that is not only to look, but for what is in buckets and what functions do.
    pub(super) fn is_change(path: &str, method: &Method) -> bool {
        let looks = [Method::GET, Method::HEAD, Method::OPTIONS].contains(method);
        !looks && !path.starts_with("/v1/buckets/{name}/") && !path.starts_with("/v1/functions/{name}/invoke")
    }

    /// Writes the line of a change, makes it, and writes how it ended.
    pub(super) async fn around(&self, line: Line, change: impl Future<Output = Response>) -> Response {
        let audit = self.audit.clone();
        let begun = match blocking(move || audit.append("begin", line.0)).await {
            Ok(Ok(of)) => of,
            Ok(Err(error)) => {
                return Refusal::from(fault(&error, "there is no room for the audit log, so nothing was changed"))
                    .into_response();
            }
            Err(fault) => return Refusal::from(fault).into_response(),
        };
        let mut begun = Begun { audit: self.audit.clone(), of: begun, ended: false };
        let response = change.await;
        let mut end =
            Map::from_iter([("of".to_owned(), begun.of.into()), ("status".to_owned(), response.status().as_u16().into())]);
        if let Some(Refused(code)) = response.extensions().get() {
            end.insert("code".into(), code.as_str().into());
        }
        if let Some(Detail(detail)) = response.extensions().get() {
            end.insert("detail".into(), detail.clone());
        }
        let audit = self.audit.clone();
        begun.ended = true;
        match blocking(move || audit.append("end", end)).await {
            Ok(Ok(_)) => response,
            Ok(Err(error)) => {
                let what =
                    "the request was carried out, but there is no room to say so in the audit log: look before trying again";
                Refusal::from(fault(&error, what)).into_response()
            }
            Err(fault) => Refusal::from(fault).into_response(),
        }
    }

    /// Writes that a request was refused, unless many were lately. Does not wait.
    pub(super) fn refused(&self, mut line: Line, code: Code) {
        let more = {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            if refused.began.elapsed() >= REFUSED_TIME {
                (refused.began, refused.count) = (Instant::now(), 0);
            }
            if refused.count >= REFUSED_MAX {
                refused.more += 1;
                return;
            }
            refused.count += 1;
            std::mem::take(&mut refused.more)
        };
        line.0.insert("code".into(), code.as_str().into());
        if more > 0 {
            line.0.insert("unwritten".into(), json!(more));
        }
        let audit = self.audit.clone();
        // Nothing was changed, so nobody waits for it.
        drop(tokio::task::spawn_blocking(move || {
            if let Err(error) = audit.append("refused", line.0) {
                tracing::error!(%error, "the audit log misses a refusal");
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_change() {
        for (method, path, is_change) in [
            (Method::PUT, "/v1/functions/{name}", true),
            (Method::POST, "/v1/functions/{name}/rollback", true),
            (Method::DELETE, "/v1/buckets/{name}", true),
            (Method::POST, "/v1/anything/new", true),
            (Method::GET, "/v1/functions", false),
            (Method::HEAD, "/v1/functions", false),
            (Method::POST, "/v1/functions/{name}/invoke/{*path}", false),
            (Method::PUT, "/v1/buckets/{name}/kv/{*key}", false),
        ] {
            assert_eq!(Auditor::is_change(path, &method), is_change, "{method} {path}");
        }
    }

    #[test]
    fn a_tenant_makes_so_many_changes_at_once_and_then_as_many_as_time_brings() {
        let (mut changes, now) = (Changes::default(), Instant::now());
        let [flood, other, third] = ["flood", "other", "third"].map(|name| name.parse::<TenantId>().unwrap());
        for _ in 0..CHANGES_MAX {
            assert_eq!(changes.take(&flood, now), Ok(()));
        }
        assert_eq!(changes.take(&flood, now), Err(CHANGE_TIME));
        assert_eq!(changes.take(&flood, now + CHANGE_TIME / 4), Err(CHANGE_TIME / 4 * 3), "what is refused costs nothing");
        assert_eq!(changes.take(&other, now), Ok(()));
        assert_eq!(changes.take(&flood, now + CHANGE_TIME), Ok(()));
        assert_eq!(changes.take(&flood, now + CHANGE_TIME), Err(CHANGE_TIME));
        // Who could make all of them is forgotten.
        let later = now + CHANGE_TIME * (CHANGES_MAX + 1);
        assert_eq!((changes.take(&third, later), changes.0.len()), (Ok(()), 1));
        for _ in 0..CHANGES_MAX {
            assert_eq!(changes.take(&flood, later), Ok(()));
        }
        assert!(changes.take(&flood, later).is_err());
    }

    #[tokio::test]
    async fn a_client_that_leaves_leaves_a_line_and_refusals_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Arc::new(Audit::open(dir.path()).unwrap());
        let auditor = Auditor::new(audit.clone());
        let line = || Line(Map::new());
        let events = || -> Vec<Value> {
            let lines = audit.lines(0, 1000).unwrap();
            lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let count = |event: &str| events().iter().filter(|line| line["event"] == event).count();
        for (ended, lines) in [(true, 0), (false, 1)] {
            drop(Begun { audit: audit.clone(), of: 7, ended });
            while count("left") < lines {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!((count("left"), &events()[0]["of"]), (1, &json!(7)));
        for _ in 0..REFUSED_MAX + 5 {
            auditor.refused(line(), Code::Unauthenticated);
        }
        while count("refused") < REFUSED_MAX as usize {
            tokio::task::yield_now().await;
        }
        assert_eq!((count("refused"), auditor.refused.lock().unwrap().more), (REFUSED_MAX as usize, 5));
        auditor.refused.lock().unwrap().began = Instant::now().checked_sub(REFUSED_TIME).unwrap();
        auditor.refused(line(), Code::Unauthenticated);
        while count("refused") < REFUSED_MAX as usize + 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(events().last().unwrap()["unwritten"], 5);
    }
}

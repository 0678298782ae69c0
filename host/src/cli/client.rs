//! The client of the control port.
//!
//! Owns every request that the command line sends to it, and the way from an answer to a value or a [`Failure`]. Knows nothing
//! about what is printed. Speaks plain HTTP only: the control port is on loopback.

pub(super) mod data;
mod identity;

use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::marker::PhantomData;
use std::time::Duration;

use anyhow::Context as _;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use serde::de::DeserializeOwned;
use ureq::config::AutoHeaderValue;
use ureq::middleware::{Middleware, MiddlewareNext};
use ureq::{Agent, Body, SendBody};

use super::failure::{Exit, Failure};
use super::trust::{self, Trust};
use crate::control::wire::{
    FunctionDetail, FunctionInfo, FunctionList, LogEntry, LogList, NodeInfo, Problem, RevisionInfo, RevisionList, RollbackRequest,
};
use crate::id::{FunctionName, TenantId};
use crate::signing::Signed;
use crate::token::TokenText;

/// How long it may take to connect. The daemon is on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a question may take that needs no build and no guest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of a JSON answer.
const JSON_LEN_MAX: u64 = 256 << 20;
/// Longest line of an event stream, in bytes: an entry of a log is far shorter.
const EVENT_LEN_MAX: u64 = 1 << 20;
/// Uploads above this many bytes wait for the daemon's word, so that a refusal does not meet a broken connection.
const EXPECT_ABOVE: u64 = 1 << 20;

/// Says where functions answer, on answers of the control port.
const DATA_ADDR: &str = "hob-data-addr";
/// Says by which host, if not by any.
const DATA_HOST: &str = "hob-data-host";

/// What goes with every request to one daemon.
#[derive(Debug, Default)]
struct Sent {
    /// Value of `authorization`.
    bearer: Option<HeaderValue>,
    tenant: Option<HeaderValue>,
}

impl Sent {
    fn new(token: Option<&TokenText>, tenant: Option<&TenantId>) -> Result<Self, Failure> {
        let bearer = token.map(|token| HeaderValue::try_from(format!("Bearer {}", token.reveal()))).transpose();
        let mut bearer = bearer.context("a token is legal in a header")?;
        bearer.iter_mut().for_each(|bearer| bearer.set_sensitive(true));
        let tenant = tenant.map(|tenant| HeaderValue::try_from(tenant.as_str())).transpose();
        Ok(Self { bearer, tenant: tenant.context("a name is legal in a header")? })
    }
}

impl Middleware for Sent {
    fn handle(&self, mut request: Request<SendBody<'_>>, next: MiddlewareNext<'_>) -> Result<Response<Body>, ureq::Error> {
        if let Some(bearer) = &self.bearer {
            request.headers_mut().insert(AUTHORIZATION, bearer.clone());
        }
        if let Some(tenant) = &self.tenant {
            request.headers_mut().insert("hob-tenant", tenant.clone());
        }
        next.handle(request)
    }
}

/// An HTTP client with the manners that all of Hob's own requests share.
pub(super) fn agent(trust: &Trust) -> Agent {
    agent_with(trust, Sent::default())
}

fn agent_with(trust: &Trust, sent: Sent) -> Agent {
    Agent::config_builder()
        .tls_config(trust.tls())
        .http_status_as_error(false)
        .allow_non_standard_methods(true)
        // Never through a proxy of the environment, and a function's redirect is its answer.
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .accept_encoding(AutoHeaderValue::None)
        .user_agent(concat!("hob/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .middleware(sent)
        .build()
        .new_agent()
}

/// Talks to one daemon.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    /// `http://HOST:PORT`, or `https:`.
    base: String,
}

/// A deploy on its way.
pub(super) struct Upload<'a> {
    /// Type of the body.
    pub(super) content_type: String,
    /// Its length in bytes.
    pub(super) len: u64,
    /// The body. It must give `len` bytes or fail.
    pub(super) body: &'a mut dyn Read,
    /// Deploy only over the revision with this entity tag.
    pub(super) if_match: Option<String>,
    /// Its signature.
    pub(super) signed: Option<Signed>,
}

/// What a deploy led to.
#[derive(Debug)]
pub(super) struct Deployed {
    /// The function as it is now.
    pub(super) info: FunctionInfo,
    /// Where functions answer, if the daemon said it.
    pub(super) data_addr: Option<String>,
    /// By which host, if not by any; empty if by none.
    pub(super) data_host: Option<String>,
}

/// A request for a function.
#[derive(Debug)]
pub(super) struct Call {
    /// Method.
    pub(super) method: Method,
    /// Path and query that the function sees, beginning with `/`.
    pub(super) path: String,
    /// Headers.
    pub(super) headers: HeaderMap,
}

impl Client {
    /// A client of a daemon that knows no token yet.
    pub(super) fn new(server: &str, trust: &Trust) -> Result<Self, Failure> {
        Self::with(server, trust, None, None)
    }

    /// A client of the daemon at `server`, an address such as `http://127.0.0.1:3900`, that sends a token and the name of a tenant.
    pub(super) fn with(
        server: &str,
        trust: &Trust,
        token: Option<&TokenText>,
        tenant: Option<&TenantId>,
    ) -> Result<Self, Failure> {
        let wrong = |why: &str| {
            let sentence = format!("'{server}' is no address of a control port: {why}");
            Failure::new(Exit::Usage, sentence).next("hob --server http://127.0.0.1:3900 ls")
        };
        let uri: Uri = server.parse().map_err(|_| wrong("expected http://HOST:PORT or https://HOST:PORT"))?;
        match (uri.scheme_str(), uri.authority()) {
            (Some(scheme @ ("http" | "https")), Some(authority)) if matches!(uri.path(), "" | "/") && uri.query().is_none() => {
                let agent = agent_with(trust, Sent::new(token, tenant)?);
                Ok(Self { agent, base: format!("{scheme}://{authority}") })
            }
            _ => Err(wrong("expected http://HOST:PORT or https://HOST:PORT")),
        }
    }

    /// Deploys a function.
    pub(super) fn put(&self, name: &FunctionName, upload: Upload<'_>) -> Result<Deployed, Failure> {
        let mut request = Request::put(self.function_url(name, ""))
            .header("content-type", upload.content_type)
            .header("content-length", upload.len);
        if upload.len > EXPECT_ABOVE {
            request = request.header("expect", "100-continue");
        }
        if let Some(tag) = upload.if_match {
            request = request.header("if-match", tag);
        }
        if let Some(Signed { version, signature }) = upload.signed {
            request = request.header("hob-signature", signature.to_base64()).header("hob-signed-version", version);
        }
        let response = self.send(request, SendBody::from_reader(upload.body))?;
        let said = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(String::from);
        let (data_addr, data_host) = (said(DATA_ADDR), said(DATA_HOST));
        let too_large = response.status() == StatusCode::PAYLOAD_TOO_LARGE;
        let response = accept(response, Some(name));
        // The function whose limits are told elsewhere may not exist yet, and they are not what was passed.
        let response = response.map_err(|failure| if too_large { failure.next("hob deploy --help") } else { failure })?;
        let info = read(response)?;
        Ok(Deployed { info, data_addr, data_host })
    }

    /// All functions, by name.
    pub(super) fn functions(&self) -> Result<Vec<FunctionInfo>, Failure> {
        let mut all = Vec::new();
        let mut query = String::new();
        loop {
            let list: FunctionList = self.get(&format!("{}/v1/functions{query}", self.base), None)?;
            all.extend(list.items);
            match list.next {
                // A cursor is a name; whatever else it may become one day, it goes back as it came.
                Some(cursor) => query = format!("?cursor={}", percent_encode(&cursor)),
                None => return Ok(all),
            }
        }
    }

    /// One function.
    pub(super) fn function(&self, name: &FunctionName) -> Result<FunctionDetail, Failure> {
        self.get(&self.function_url(name, ""), Some(name))
    }

    /// What the node is; for operators.
    pub(super) fn node(&self) -> Result<NodeInfo, Failure> {
        self.get(&format!("{}/v1/node", self.base), None)
    }

    /// Its revisions, newest first.
    pub(super) fn revisions(&self, name: &FunctionName) -> Result<Vec<RevisionInfo>, Failure> {
        self.get(&self.function_url(name, "/revisions"), Some(name)).map(|list: RevisionList| list.items)
    }

    /// Makes revision `to`, or the one before the live one, live.
    pub(super) fn rollback(&self, name: &FunctionName, to: Option<u64>) -> Result<FunctionInfo, Failure> {
        let body = serde_json::to_vec(&RollbackRequest { to }).context("a number is legal JSON")?;
        let request = Request::post(self.function_url(name, "/rollback")).header("content-type", "application/json");
        let request = request.header("content-length", body.len());
        read(accept(self.send(request, SendBody::from_reader(&mut body.as_slice()))?, Some(name))?)
    }

    /// Removes a function.
    pub(super) fn remove(&self, name: &FunctionName) -> Result<(), Failure> {
        let request = Request::delete(self.function_url(name, ""));
        accept(self.send(request, SendBody::none())?, Some(name)).map(drop)
    }

    /// The newest entries of a function's log, oldest first.
    pub(super) fn logs(&self, name: &FunctionName, tail: usize) -> Result<Vec<LogEntry>, Failure> {
        self.get(&self.function_url(name, &format!("/logs?tail={tail}")), Some(name)).map(|list: LogList| list.items)
    }

    /// The newest entries of a function's log and those that follow, until the daemon ends the stream.
    pub(super) fn follow(&self, name: &FunctionName, tail: usize) -> Result<Feed<LogEntry>, Failure> {
        let request = Request::get(self.function_url(name, &format!("/logs?tail={tail}&follow=true")));
        let request = request.header("accept", "text/event-stream");
        Ok(Feed::new(accept(self.send(request, SendBody::none())?, Some(name))?))
    }

    /// Invokes a function by its name. Whatever comes back is returned, faults among it.
    pub(super) fn invoke(&self, name: &FunctionName, call: Call, body: Option<&mut dyn Read>) -> Result<Response<Body>, Failure> {
        // The function sees `/` for nothing at all.
        let path = call.path.strip_prefix('/').filter(|rest| rest.is_empty() || rest.starts_with('?')).unwrap_or(&call.path);
        let mut request = Request::builder().method(call.method).uri(self.function_url(name, &format!("/invoke{path}")));
        if let Some(headers) = request.headers_mut() {
            headers.extend(call.headers);
        }
        match body {
            Some(body) => self.send(request, SendBody::from_reader(body)),
            None => self.send(request, SendBody::none()),
        }
    }

    fn function_url(&self, name: &FunctionName, rest: &str) -> String {
        format!("{}/v1/functions/{name}{rest}", self.base)
    }

    fn get<T: DeserializeOwned>(&self, url: &str, function: Option<&FunctionName>) -> Result<T, Failure> {
        let request = self.agent.get(url).config().timeout_global(Some(ANSWER_TIMEOUT)).build();
        let response = request.call().map_err(|error| self.unreachable(error))?;
        read(accept(response, function)?)
    }

    fn send(&self, request: http::request::Builder, body: SendBody<'_>) -> Result<Response<Body>, Failure> {
        let request = request.body(body).context("the request cannot be made")?;
        let brings = matches!(*request.method(), http::Method::PUT | http::Method::POST);
        self.agent.run(request).map_err(|error| match error {
            // It answers before the end of what it does not want; of that answer nothing is there any more.
            ureq::Error::Io(error) if brings && matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                let sentence =
                    format!("{} ended the connection before all was sent: most often there is no room for it", self.base);
                let failure = Failure::from(anyhow::Error::new(error).context(sentence)).exit(Exit::Failure);
                failure.next("hob bucket ls says what each may have, hob doctor what the node's disk has")
            }
            error => self.unreachable(error),
        })
    }

    fn unreachable(&self, error: ureq::Error) -> Failure {
        match error {
            ureq::Error::Http(_) | ureq::Error::BadUri(_) => {
                Failure::new(Exit::Usage, format!("the request cannot be made: {error}")).next("hob invoke --help")
            }
            error if trust::is_doubt(&error) => {
                let sentence = format!("what answers at {} shows no certificate that is trusted for this name", self.base);
                let failure = Failure::from(anyhow::Error::new(error).context(sentence)).exit(Exit::Unreachable);
                failure.next("hob --ca-file FILE ls")
            }
            error => {
                let sentence = format!("no daemon answers at {}", self.base);
                Failure::from(anyhow::Error::new(error).context(sentence)).exit(Exit::Unreachable).next("hob serve")
            }
        }
    }
}

/// Whether something that answers `GET {base}/livez` with success listens there.
pub(super) fn is_live(base: &str, trust: &Trust) -> bool {
    probe(&format!("{base}/livez"), trust).is_some_and(|response| response.status().is_success())
}

/// What a daemon says of itself at `GET {base}/readyz`, if it takes requests.
pub(super) fn readiness(base: &str, trust: &Trust) -> Option<String> {
    let mut response = probe(&format!("{base}/readyz"), trust).filter(|response| response.status().is_success())?;
    response.body_mut().read_to_string().ok()
}

/// A quick request for whoever wants to know who listens.
pub(super) fn probe(url: &str, trust: &Trust) -> Option<Response<Body>> {
    agent(trust).get(url).config().timeout_global(Some(Duration::from_secs(2))).build().call().ok()
}

/// What a daemon tells as it happens: entries of a log, changes of a bucket.
pub(super) struct Feed<T> {
    lines: Box<dyn BufRead>,
    of: PhantomData<T>,
}

/// What an event stream brings.
#[derive(Debug)]
pub(super) enum Event<T> {
    /// An entry.
    Entry(T),
    /// A remark of the daemon: some were lost.
    Remark(String),
}

impl<T: DeserializeOwned> Feed<T> {
    fn new(response: Response<Body>) -> Self {
        let reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        Self { lines: Box::new(BufReader::new(reader)), of: PhantomData }
    }

    /// The next event; `None` when the daemon has ended the stream.
    pub(super) fn next(&mut self) -> Result<Option<Event<T>>, Failure> {
        loop {
            let mut line = String::new();
            let read = self.lines.by_ref().take(EVENT_LEN_MAX).read_line(&mut line).context("the stream of entries broke off")?;
            if read == 0 {
                return Ok(None);
            }
            let line = line.trim_end_matches(['\r', '\n']);
            if let Some(data) = line.strip_prefix("data:") {
                let entry = serde_json::from_str(data.trim_start()).context("the daemon sent an entry that cannot be read")?;
                return Ok(Some(Event::Entry(entry)));
            }
            // Comments keep the connection alive; those with words are remarks. Other fields mean nothing here.
            if let Some(remark) = line.strip_prefix(':').map(str::trim).filter(|remark| !remark.is_empty()) {
                return Ok(Some(Event::Remark(remark.into())));
            }
        }
    }
}

/// A response that is what was asked for; anything else is a failure.
pub(super) fn accept(response: Response<Body>, function: Option<&FunctionName>) -> Result<Response<Body>, Failure> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status().as_u16();
    match read::<Problem>(response) {
        Ok(problem) => Err(Failure::from_problem(problem, function.map(FunctionName::as_str))),
        Err(_) => {
            let sentence =
                format!("what listens there answered with status {status} and no problem+json: it is no control port of hob");
            Err(Failure::new(Exit::Failure, sentence))
        }
    }
}

fn read<T: DeserializeOwned>(response: Response<Body>) -> Result<T, Failure> {
    let reader = response.into_body().into_with_config().limit(JSON_LEN_MAX).reader();
    let value = serde_json::from_reader(BufReader::new(reader)).context("the daemon's answer cannot be read")?;
    Ok(value)
}

/// Reads `queue;dur=0.001, load;dur=0.002`: names and milliseconds.
pub(super) fn server_timing(header: &str) -> Vec<(String, f64)> {
    let phase = |entry: &str| {
        let (name, rest) = entry.trim().split_once(";dur=")?;
        Some((name.to_owned(), rest.parse().ok()?))
    };
    header.split(',').filter_map(phase).collect()
}

fn percent_encode(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_without_a_path_is_a_server() {
        for good in ["http://127.0.0.1:3900", "https://127.0.0.1:3900", "http://localhost:1/", "http://[::1]:3900"] {
            assert!(Client::new(good, &Trust::default()).is_ok(), "{good}");
        }
        for bad in ["127.0.0.1:3900", "https://a/b", "http://", "http://a/b", "http://a?b", "", "ftp://a"] {
            assert_eq!(Client::new(bad, &Trust::default()).map(drop).unwrap_err().code(), Exit::Usage as u8, "{bad}");
        }
    }

    #[test]
    fn events_are_entries_and_remarks() {
        let entry = r#"{"seq":1,"time_ms":2,"invocation":"I","revision":3,"source":"log","level":"info","text":"t"}"#;
        let text = format!(":\n\ndata: {entry}\n\n: 5 entries were lost\nid: 3\n\n");
        let mut events = Feed::<LogEntry> { lines: Box::new(std::io::Cursor::new(text)), of: PhantomData };
        assert!(matches!(events.next().unwrap(), Some(Event::Entry(entry)) if entry.seq == 1));
        assert!(matches!(events.next().unwrap(), Some(Event::Remark(remark)) if remark == "5 entries were lost"));
        assert!(events.next().unwrap().is_none());
    }

    #[test]
    fn phases_are_read_as_they_are_sent() {
        let expected = [("queue".to_owned(), 0.001), ("run".to_owned(), 12.5)];
        assert_eq!(server_timing("queue;dur=0.001, run;dur=12.5"), expected);
        assert_eq!(server_timing("queue;dur=0.001, odd, run;dur=x, run;dur=12.5"), expected);
        assert!(server_timing("").is_empty());
    }

    #[test]
    fn cursors_go_back_as_they_came() {
        assert_eq!(percent_encode("a-b_1&c=ä"), "a-b_1%26c%3D%C3%A4");
    }
}

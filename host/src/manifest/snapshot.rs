//! `snapshot` of a manifest: what is run at deploy, before the function's memory is kept.
//!
//! Owns the modes, the warm-up requests and their spelling. Knows nothing about how a snapshot is taken (`engine/build`).
//! Invariant: a warm-up request here is one that a client could send to the function.

use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderName, HeaderValue, Method, Uri};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{Auth, ManifestError, problem, string, unknown};
use crate::headers::never_reaches_a_function;
use crate::host::is_authority;
use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX, Limit, Limits, URI_BYTES_MAX};

/// Most warm-up requests of one function.
pub const WARMUPS_MAX: usize = 64;

const KEYS: [&str; 3] = ["mode", "warmup", "randomness"];
const WARMUP_KEYS: [&str; 4] = ["method", "path", "headers", "body"];

/// What is to be done at deploy so that invocations need not do it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// Whether a snapshot is taken.
    pub mode: SnapshotMode,
    /// Requests that run the function before its memory is kept, in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warmup: Vec<WarmupRequest>,
    /// What happens when random numbers are drawn before the memory is kept.
    pub randomness: Randomness,
}

/// Whether a snapshot is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotMode {
    /// If there is something to run and it works; else the function starts without one, and the deploy says why.
    #[default]
    Auto,
    /// Or the deploy fails.
    Required,
    /// Never.
    Off,
}

/// What drawing random numbers before a snapshot means: all instances would draw the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Randomness {
    /// The deploy says so.
    #[default]
    Warn,
    /// The deploy fails.
    Refuse,
}

/// One request that is made of a function at deploy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmupRequest {
    /// Method, such as `GET`.
    pub method: String,
    /// Path and query, as the function sees them.
    pub path: String,
    /// Headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// Body.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub body: String,
}

impl WarmupRequest {
    /// As a request of the data port, its body apart: to `localhost` if it names no host, and with the length of its body if it has one.
    ///
    /// # Errors
    /// Never for one that this module made.
    pub fn head(&self) -> http::Result<http::request::Parts> {
        let mut request = http::Request::builder().method(self.method.as_str()).uri(&self.path);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let mut parts = request.body(())?.into_parts().0;
        parts.headers.entry(HOST).or_insert(HeaderValue::from_static("localhost"));
        if !self.body.is_empty() {
            parts.headers.insert(CONTENT_LENGTH, self.body.len().into());
        }
        Ok(parts)
    }
}

/// `"auto"`, or a table with `mode`, `warmup` and `randomness`.
pub(super) fn snapshot(value: Value) -> Result<Snapshot, ManifestError> {
    let table = match value {
        Value::Table(table) => table,
        Value::String(_) => return Ok(Snapshot { mode: word("snapshot", value)?, ..Snapshot::default() }),
        other => return Err(problem("snapshot", format!("expected a mode in quotes or a table, found {}", other.type_str()))),
    };
    let mut snapshot = Snapshot::default();
    for (key, value) in table {
        match key.as_str() {
            "mode" => snapshot.mode = word("snapshot.mode", value)?,
            "warmup" => snapshot.warmup = warmups(value)?,
            "randomness" => snapshot.randomness = word("snapshot.randomness", value)?,
            _ => return Err(unknown(key, "[snapshot]", &KEYS)),
        }
    }
    Ok(snapshot)
}

/// What depends on the function's limits, and on who may call it.
pub(super) fn check(snapshot: &Snapshot, limits: &Limits, auth: Auth) -> Result<(), ManifestError> {
    let has_token = |request: &&WarmupRequest| request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization"));
    if auth == Auth::Token
        && let Some(WarmupRequest { method, path, .. }) = snapshot.warmup.iter().find(has_token)
    {
        let detail = format!(
            "{method} {path} has the header 'authorization', which never reaches a function with auth = \"token\"; leave it out"
        );
        return Err(problem("snapshot.warmup", detail));
    }
    let most = limits.get(Limit::RequestBody);
    match snapshot.warmup.iter().find(|request| request.body.len() as u64 > most) {
        None => Ok(()),
        Some(WarmupRequest { method, path, body, .. }) => Err(problem(
            "snapshot.warmup",
            format!(
                "the body of {method} {path} has {} bytes, expected at most the {most} of the limit 'request_body'; shorten it, or raise \
                 'request_body' in [limits]",
                body.len()
            ),
        )),
    }
}

/// One of a few words.
fn word<T: for<'de> Deserialize<'de>>(key: &str, value: Value) -> Result<T, ManifestError> {
    T::deserialize(value).map_err(|error| problem(key, error.message()))
}

fn warmups(value: Value) -> Result<Vec<WarmupRequest>, ManifestError> {
    let items = match value {
        Value::Array(items) => items,
        one => vec![one],
    };
    if items.len() > WARMUPS_MAX {
        return Err(problem("snapshot.warmup", format!("{} requests, expected at most {WARMUPS_MAX}", items.len())));
    }
    items.into_iter().map(warmup).collect()
}

/// `"GET /path"`, or a table with `method`, `path`, `headers` and `body`.
fn warmup(value: Value) -> Result<WarmupRequest, ManifestError> {
    let key = "snapshot.warmup";
    let request = match value {
        Value::Table(table) => warmup_table(table)?,
        other => {
            let text = string(key, other)?;
            let (method, path) = text
                .split_once(' ')
                .ok_or_else(|| problem(key, format!("expected a method and a path such as 'GET /', found '{text}'")))?;
            WarmupRequest { method: method.into(), path: path.trim_start().into(), headers: Vec::new(), body: String::new() }
        }
    };
    let WarmupRequest { method, path, .. } = &request;
    // With CONNECT there would be no path.
    if Method::from_bytes(method.as_bytes()).map_or(true, |method| method == Method::CONNECT) {
        return Err(problem(key, format!("'{method}' is no method of a request to a function; expected one such as GET")));
    }
    // What is behind a '#' stays with the client.
    if !path.starts_with('/') || path.contains('#') || path.parse::<Uri>().is_err() {
        return Err(problem(key, format!("'{path}' is no path; expected one such as /index?q=1")));
    }
    if path.len() > URI_BYTES_MAX {
        return Err(problem(key, format!("a path of {} bytes, expected at most {URI_BYTES_MAX}", path.len())));
    }
    let mut hosts = 0;
    for (name, value) in &request.headers {
        hosts += usize::from(check_header(name, value).map_err(|what| problem(key, what))? == HOST);
    }
    if hosts > 1 {
        return Err(problem(key, format!("{hosts} headers 'host', expected one")));
    }
    check_head(&request).map_err(|what| problem(key, what))?;
    Ok(request)
}

/// Whether a node's usual limits would take the head of the request.
fn check_head(request: &WarmupRequest) -> Result<(), String> {
    let WarmupRequest { method, path, .. } = request;
    let head = request.head().map_err(|error| format!("{method} {path} is no request: {error}"))?;
    let (count, line) = (head.headers.len(), method.len() + path.len() + " HTTP/1.1\r\n".len() + 1);
    let bytes = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum::<usize>();
    if count > HEADERS_MAX {
        return Err(format!(
            "{method} {path} has {count} headers, 'host' and 'content-length' counted, expected at most {HEADERS_MAX}"
        ));
    }
    match line + bytes {
        0..=HEAD_BYTES_MAX => Ok(()),
        bytes => Err(format!("the head of {method} {path} has {bytes} bytes, expected at most {HEAD_BYTES_MAX}")),
    }
}

/// The name of a header that a client could send to the function, or what is wrong with it.
fn check_header(name: &str, value: &str) -> Result<HeaderName, String> {
    let (Ok(header), Ok(_)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else {
        return Err(format!("'{name}' with this value is no header"));
    };
    // A length is the body's, and not for the manifest to say.
    if never_reaches_a_function(&header) || header == CONTENT_LENGTH {
        return Err(format!("'{name}' is a header that no client can send to a function, or that Hob sets; leave it out"));
    }
    if header == HOST && !is_authority(value.as_bytes()) {
        return Err(format!("'{value}' is no host; expected one such as 'shop.example' or 'localhost:3000'"));
    }
    Ok(header)
}

fn warmup_table(mut table: Table) -> Result<WarmupRequest, ManifestError> {
    if let Some(key) = table.keys().find(|key| !WARMUP_KEYS.contains(&key.as_str())) {
        return Err(unknown(key.clone(), "a warm-up request", &WARMUP_KEYS));
    }
    let headers = match table.remove("headers") {
        None => Vec::new(),
        Some(Value::Table(headers)) => headers
            .into_iter()
            .map(|(name, value)| Ok((name.clone(), string(&format!("snapshot.warmup.headers.{name}"), value)?)))
            .collect::<Result<_, ManifestError>>()?,
        Some(other) => {
            return Err(problem("snapshot.warmup.headers", format!("expected a table, found {}", other.type_str())));
        }
    };
    let mut take = |key: &str| table.remove(key).map(|value| string(&format!("snapshot.warmup.{key}"), value)).transpose();
    let path = take("path")?.ok_or_else(|| problem("snapshot.warmup", "expected a 'path'"))?;
    Ok(WarmupRequest {
        method: take("method")?.unwrap_or_else(|| "GET".into()),
        path,
        headers,
        body: take("body")?.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Manifest;
    use super::*;

    fn read(text: &str) -> Result<Snapshot, String> {
        Manifest::parse(text).map(|manifest| manifest.snapshot).map_err(|error| error.to_string())
    }

    #[test]
    fn a_path_is_one_that_clients_may_send() {
        let path = |len: usize| read(&format!("[snapshot]\nwarmup = ['GET /{}']", "a".repeat(len - 1)));
        assert_eq!(path(URI_BYTES_MAX).unwrap().warmup[0].path.len(), URI_BYTES_MAX);
        assert!(path(URI_BYTES_MAX + 1).unwrap_err().contains("a path of 8193 bytes, expected at most 8192"));
    }

    #[test]
    fn a_head_is_one_that_clients_may_send() {
        let with = |headers: usize, len: usize| {
            let headers: Vec<_> = (0..headers).map(|number| format!("a{number:02} = '{}'", "v".repeat(len))).collect();
            read(&format!("[snapshot]\nwarmup = [{{ path = '/', headers = {{ {} }} }}]", headers.join(", ")))
        };
        assert!(with(HEADERS_MAX - 1, 1).is_ok());
        assert!(with(HEADERS_MAX, 1).unwrap_err().contains("has 65 headers"));
        // "GET / HTTP/1.1", "host: localhost" and "a00: " with their ends have 16, 17 and 7.
        assert!(with(1, HEAD_BYTES_MAX - 40).is_ok());
        assert!(with(1, HEAD_BYTES_MAX - 39).unwrap_err().contains("has 32769 bytes, expected at most 32768"));
    }

    #[test]
    fn a_token_reaches_no_function_that_asks_for_one() {
        let warmup = "[snapshot]\nwarmup = [{ path = '/x', headers = { Authorization = 'Bearer a' } }]";
        assert!(read(warmup).is_ok());
        let refused = read(&format!("auth = 'token'\n{warmup}")).unwrap_err();
        assert!(refused.contains("GET /x has the header 'authorization'"), "{refused}");
    }

    #[test]
    fn both_spellings_are_read() {
        assert_eq!(read("").unwrap(), Snapshot::default());
        assert_eq!(read("snapshot = 'required'").unwrap().mode, SnapshotMode::Required);
        let text = "[snapshot]\nmode = 'off'\nrandomness = 'refuse'\n\
                    warmup = ['GET /a?b', { method = 'POST', path = '/x', body = 'y', headers = { accept = '*/*' } }, { path = '/' }]";
        let snapshot = read(text).unwrap();
        assert_eq!((snapshot.mode, snapshot.randomness, snapshot.warmup.len()), (SnapshotMode::Off, Randomness::Refuse, 3));
        let head = snapshot.warmup[1].head().unwrap();
        assert_eq!((head.method.as_str(), head.uri.path(), head.headers.len()), ("POST", "/x", 3));
        assert_eq!(snapshot.warmup[2].method, "GET");
    }

    #[test]
    fn a_warm_up_request_has_what_a_client_sends() {
        let head = |request: &str| {
            let snapshot = read(&format!("[snapshot]\nwarmup = [{request}]")).unwrap();
            let headers = snapshot.warmup[0].head().unwrap().headers;
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect::<Vec<_>>()
        };
        assert_eq!(head("'GET /'"), ["host: localhost"]);
        assert_eq!(head("{ path = '/', body = 'äbc' }"), ["host: localhost", "content-length: 4"]);
        assert_eq!(head("{ path = '/', headers = { Host = 'x.example:3000' } }"), ["host: x.example:3000"]);
    }

    #[test]
    fn headers_that_no_client_can_send() {
        let header =
            |name: &str, value: &str| read(&format!("[snapshot]\nwarmup = {{ path = '/', headers = {{ {name} = '{value}' }} }}"));
        for name in
            ["connection", "keep-alive", "TE", "transfer-encoding", "expect", "hob-tenant", "Hob-Trigger", "Content-Length"]
        {
            let error = header(name, "1").unwrap_err();
            assert!(error.contains("leave it out") && error.contains(name), "{name}: {error}");
        }
        for name in ["hobby", "cookie", "content-type", "content-length-of-mine"] {
            assert!(header(name, "1").is_ok(), "{name}");
        }
        for host in ["x", "shop.example", "127.0.0.1:3000", "[::1]:3000", "x:65535", "x:", ""] {
            assert!(header("host", host).is_ok(), "{host}");
        }
        for host in ["a b", "a@b", "x,y", "x:65536", "x:+80", "x:1:2"] {
            assert!(header("host", host).unwrap_err().contains("is no host"), "{host}");
        }
        let twice = read("[snapshot]\nwarmup = { path = '/', headers = { host = 'a', Host = 'b' } }").unwrap_err();
        assert!(twice.contains("2 headers 'host'"), "{twice}");
    }

    #[test]
    fn a_warm_up_body_is_bounded_as_any() {
        for (len, body) in [(3, "abc"), (4, "abcd")] {
            let text = format!("[snapshot]\nwarmup = ['GET /', {{ method = 'POST', path = '/x', body = '{body}' }}]");
            assert!(read(&format!("{text}\n[limits]\nrequest_body = {len}")).is_ok());
            // In any order.
            for text in
                [format!("{text}\n[limits]\nrequest_body = {}", len - 1), format!("limits.request_body = {}\n{text}", len - 1)]
            {
                let error = read(&text).unwrap_err();
                assert!(error.contains("POST /x") && error.contains(&format!("has {len} bytes")), "{error}");
            }
        }
    }

    #[test]
    fn wrong_values_say_what_was_expected() {
        for (text, word) in [
            ("snapshot = 'always'", "auto"),
            ("snapshot = 3", "expected a mode"),
            ("[snapshot]\nwarmups = []", "did you mean 'warmup'?"),
            ("[snapshot]\nwarmup = ['/']", "such as 'GET /'"),
            ("[snapshot]\nwarmup = ['GET index']", "is no path"),
            ("[snapshot]\nwarmup = ['GET /a#b']", "is no path"),
            ("[snapshot]\nwarmup = ['G=T /']", "is no method"),
            ("[snapshot]\nwarmup = ['CONNECT /']", "is no method"),
            ("[snapshot]\nwarmup = [{ method = 'GET' }]", "expected a 'path'"),
            ("[snapshot]\nwarmup = [{ path = '/', hedaers = {} }]", "did you mean 'headers'?"),
            ("[snapshot]\nwarmup = [{ path = '/', headers = { 'a b' = 'c' } }]", "is no header"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        let many = |count: usize| format!("[snapshot]\nwarmup = [{}]", vec!["'GET /'"; count].join(","));
        assert!(read(&many(WARMUPS_MAX)).is_ok() && read(&many(WARMUPS_MAX + 1)).is_err());
    }
}

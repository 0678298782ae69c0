//! What a command learns about its request: the variables of CGI (RFC 3875, section 4.1).
//!
//! Owns the mapping from a request to variables. Invariant: no header of a client can become a variable that means something
//! else: all of them begin with `HTTP_`, and `Proxy` is left out (it would become `HTTP_PROXY`, which programs obey).

use http::HeaderName;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::request::Parts;
use http_body::Body as _;

use crate::capability::Environment;
use crate::capability::handler::target;
use crate::invocation::Payload;

/// The revision's own environment with the variables of one request. The manifest's win over the request's.
pub(super) fn environment(base: &Environment, parts: &Parts, prefix_len: usize, body: &Payload) -> Environment {
    let (slash, rest) = target(parts, prefix_len);
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (host, port) = header(HOST)
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
        .unwrap_or((header(HOST), "80"));
    let mut env = vec![
        ("GATEWAY_INTERFACE".into(), "CGI/1.1".into()),
        ("REQUEST_METHOD".into(), parts.method.as_str().into()),
        ("SCRIPT_NAME".into(), parts.uri.path().get(..prefix_len).unwrap_or_default().into()),
        ("PATH_INFO".into(), format!("{slash}{path}")),
        ("QUERY_STRING".into(), query.into()),
        ("SERVER_NAME".into(), host.into()),
        ("SERVER_PORT".into(), port.into()),
        ("SERVER_PROTOCOL".into(), format!("{:?}", parts.version)),
        ("SERVER_SOFTWARE".into(), concat!("hob/", env!("CARGO_PKG_VERSION")).into()),
    ];
    if let Some(len) = body.size_hint().exact() {
        env.push(("CONTENT_LENGTH".into(), len.to_string()));
    }
    if parts.headers.contains_key(CONTENT_TYPE) {
        env.push(("CONTENT_TYPE".into(), header(CONTENT_TYPE).into()));
    }
    // A name with `_` would become the variable of the one with `-`, which somebody on the way may have set and vouch for.
    let crosses = |name: &&HeaderName| {
        ![CONTENT_TYPE, CONTENT_LENGTH].contains(*name) && name.as_str() != "proxy" && !name.as_str().contains('_')
    };
    for name in parts.headers.keys().filter(crosses) {
        let values: Vec<_> = parts.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        env.push((format!("HTTP_{}", name.as_str().to_ascii_uppercase().replace('-', "_")), values.join(", ")));
    }
    env.retain(|(name, _)| !base.env.iter().any(|(mine, _)| mine == name));
    let env_of_request = env.len();
    env.extend(base.env.iter().cloned());
    Environment {
        args: base.args.clone(),
        env,
        env_of_request,
        env_of_secrets: base.env_of_secrets,
        grants: base.grants.clone(),
        data: base.data.clone(),
        files: base.files.clone(),
        clock: base.clock,
        explained: base.explained.clone(),
        egress: base.egress.clone(),
        secrets: base.secrets.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_becomes_variables() {
        let request = http::Request::builder()
            .method("POST")
            .uri("/count/a/b?x=1")
            .header("host", "example.com:3000")
            .header("x-a", "1")
            .header("x-a", "2")
            .header("x_a", "3")
            .header("proxy", "evil")
            .header("content-type", "text/plain");
        let parts = request.body(()).unwrap().into_parts().0;
        let base = Environment { env: vec![("HTTP_X_B".into(), "mine".into())], ..Environment::default() };
        let env = environment(&base, &parts, "/count".len(), &Payload::Whole("abc".into())).env;
        let get = |name: &str| env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert_eq!((get("SCRIPT_NAME"), get("PATH_INFO"), get("QUERY_STRING")), (Some("/count"), Some("/a/b"), Some("x=1")));
        assert_eq!(
            (get("SERVER_NAME"), get("SERVER_PORT"), get("CONTENT_LENGTH")),
            (Some("example.com"), Some("3000"), Some("3"))
        );
        assert_eq!((get("HTTP_X_A"), get("HTTP_X_B"), get("HTTP_PROXY")), (Some("1, 2"), Some("mine"), None));
        assert_eq!(get("CONTENT_TYPE"), Some("text/plain"));
    }
}

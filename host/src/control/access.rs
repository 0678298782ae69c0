//! Access: who asks, for which tenant, and whether the token goes far enough. One place for all routes.
//!
//! Each route says what it needs where it is described, in `security(…)`; nothing else is asked, and a route that says nothing answers as if it
//! did not take the method. A handler learns the tenant from [`Caller`] and from nowhere else.
//!
//! ```text
//! security(())                         anybody
//! security(("token" = ["read"]))       a token with this scope, for its tenant
//! security(("operator" = ["admin"]))   the same, but only a token of the tenant `default`
//! ```
//!
//! Owns these rules and the two lines in the audit log around a change. Knows no route by name. Invariant: a request that is refused here has
//! changed nothing, and the refusal is the same whether what it named exists or not.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::request::Parts;
use http::{HeaderMap, Method};
use serde_json::Value;

use super::answer::{self, Refusal};
use super::audited::{Auditor, Line};
use super::{InHand, once, openapi};
use crate::crash;
use crate::fault::{Code, Fault};
use crate::id::TenantId;
use crate::identity::{Identity, Presented, Token, missing};
use crate::token::Scope;

/// Names the tenant that an operator means.
pub(super) const TENANT: &str = "hob-tenant";

/// Where functions are invoked with any method; described for some.
const ANY_METHOD: &str = "/v1/functions/{name}/invoke";
/// Where nothing is described.
const UNDESCRIBED: [&str; 2] = ["/openapi.json", "/docs/errors"];

/// Who may reach the control port without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstStart {
    /// Whoever does, as long as there is no token: the port is on loopback.
    Open,
    /// Nobody.
    Closed,
}

/// What a route needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    Token(Scope),
    Operator(Scope),
}

/// The rule of one route and method.
#[derive(Debug, Clone, Copy)]
struct Rule {
    need: Need,
    /// Whether it says that it takes an `Idempotency-Key`.
    takes_key: bool,
}

/// The rules of all routes, and who is known.
#[derive(Debug)]
pub(super) struct Access {
    rules: HashMap<String, HashMap<String, Rule>>,
    identity: Arc<Identity>,
    first_start: FirstStart,
    auditor: Auditor,
    in_hand: Arc<InHand>,
}

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// For which tenant.
    pub(super) tenant: TenantId,
    /// Whether the token is of the tenant `default`.
    pub(super) is_operator: bool,
    /// By which token; none before there is any.
    pub(super) token: Option<Arc<Token>>,
}

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub IpAddr);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        let caller = parts.extensions.get::<Self>().cloned();
        Ok(caller.ok_or_else(|| Fault::internal("a route that anybody may use wants to know who asks"))?)
    }
}

impl Caller {
    /// Whether the token has all scopes. So has everybody before there is a token.
    pub(super) fn is_admin(&self) -> bool {
        self.token.as_ref().is_none_or(|token| token.scopes.has(Scope::Admin))
    }
}

/// What the description of an operation says that it needs; `None` if it says nothing that is understood.
fn need(operation: &Value) -> Option<Need> {
    let [one] = operation["security"].as_array()?.as_slice() else { return None };
    let one = one.as_object()?;
    let Some((scheme, scopes)) = one.iter().next() else { return Some(Need::Nothing) };
    let [scope] = scopes.as_array()?.as_slice() else { return None };
    let scope = scope.as_str()?.parse().ok()?;
    match scheme.as_str() {
        "token" if one.len() == 1 => Some(Need::Token(scope)),
        "operator" if one.len() == 1 => Some(Need::Operator(scope)),
        _ => None,
    }
}

/// Of what anybody may look at.
const OPEN: Rule = Rule { need: Need::Nothing, takes_key: false };

impl Rule {
    /// Refuses a key that would promise what the route does not hold. To look again is always possible, and what a function is sent is its
    /// own.
    fn check_key(self, path: &str, request: &Request) -> Result<(), Fault> {
        let looks = matches!(self.need, Need::Nothing | Need::Token(Scope::Read) | Need::Operator(Scope::Read));
        if looks || path.starts_with(ANY_METHOD) || once::key(request.headers())?.is_none() || self.takes_key {
            return Ok(());
        }
        Err(once::not_here())
    }
}

impl Access {
    /// Rules of a description.
    ///
    /// # Panics
    /// If an operation does not say what it needs: our own mistake, and every start would show it.
    pub(super) fn new(
        description: &Value,
        identity: Arc<Identity>,
        first_start: FirstStart,
        auditor: Auditor,
        in_hand: Arc<InHand>,
    ) -> Self {
        let mut rules = HashMap::<String, HashMap<String, Rule>>::new();
        for (path, operations) in description["paths"].as_object().into_iter().flatten() {
            for (method, operation) in operations.as_object().into_iter().flatten() {
                let need = need(operation);
                assert!(need.is_some(), "{method} {path} does not say what it needs: give it security(…)");
                let rule = need.map(|need| Rule { need, takes_key: openapi::takes_key(operation) });
                rules.entry(path.clone()).or_default().extend(rule.map(|rule| (method.to_ascii_uppercase(), rule)));
            }
        }
        for path in UNDESCRIBED {
            rules.insert(path.into(), HashMap::from([("GET".into(), OPEN)]));
        }
        if cfg!(debug_assertions) {
            // Where a test of a debug build looks at the walls around the process.
            rules.insert("/debug/probe/{word}".into(), HashMap::from([("GET".into(), OPEN)]));
        }
        Self { rules, identity, first_start, auditor, in_hand }
    }

    /// The rule of a route; `path`: as axum has it.
    fn rule(&self, path: &str, method: &Method) -> Option<Rule> {
        // A rest of a path that is empty is a rest.
        let rest = |rest: &str| self.rules.keys().find(|key| key.strip_prefix(path).is_some_and(|name| name == rest));
        let described = match path.strip_suffix('/') {
            Some(_) => rest("{key}").or_else(|| rest("{path}"))?.clone(),
            None => path.replace("{*", "{"),
        };
        let methods = self.rules.get(&described)?;
        let found = methods.get(method.as_str()).copied();
        // axum answers HEAD where it answers GET.
        let found = found.or_else(|| methods.get("GET").copied().filter(|_| method == Method::HEAD));
        found.or_else(|| methods.get("POST").copied().filter(|_| described.starts_with(ANY_METHOD)))
    }

    /// Who asks.
    fn caller(&self, headers: &HeaderMap, address: IpAddr) -> Result<Caller, Fault> {
        let (tenant, token) = if self.first_start == FirstStart::Open && self.identity.is_open() {
            (TenantId::default(), None)
        } else {
            match self.identity.presented(headers) {
                Presented::Token(token) => (token.tenant.clone(), Some(token)),
                Presented::Nothing => return Err(unauthenticated()),
                Presented::Unknown => {
                    self.identity.failed(address)?;
                    return Err(unauthenticated());
                }
            }
        };
        Ok(Caller { is_operator: tenant.is_default(), tenant, token })
    }

    /// The tenant that they ask for, if they may.
    fn permitted(&self, headers: &HeaderMap, caller: &Caller, need: Need) -> Result<TenantId, Fault> {
        let (scope, of_operators) = match need {
            Need::Nothing => return Ok(caller.tenant.clone()),
            Need::Token(scope) => (scope, false),
            Need::Operator(scope) => (scope, true),
        };
        if caller.token.as_ref().is_some_and(|token| !token.scopes.allow(scope)) {
            return Err(missing(scope));
        }
        if of_operators && !caller.is_operator {
            return Err(for_operators());
        }
        Ok(self.named(headers, caller)?.unwrap_or_else(|| caller.tenant.clone()))
    }

    /// The tenant that an operator names.
    fn named(&self, headers: &HeaderMap, caller: &Caller) -> Result<Option<TenantId>, Fault> {
        let mut values = headers.get_all(TENANT).iter();
        let named = match (values.next(), values.next()) {
            (None, _) => return Ok(None),
            (Some(value), None) => String::from_utf8_lossy(value.as_bytes()).into_owned(),
            (Some(_), Some(_)) => {
                return Err(Fault::new(Code::BadRequest, "the header 'hob-tenant' was sent twice, expected one name"));
            }
        };
        if named == caller.tenant.as_str() {
            return Ok(None);
        }
        if !(caller.is_operator && caller.is_admin()) {
            return Err(Fault::new(Code::Forbidden, "only an admin of the tenant 'default' may name another tenant"));
        }
        let tenant: TenantId =
            named.parse().map_err(|error: crate::id::NameError| Fault::new(Code::BadRequest, error.to_string()))?;
        if !self.identity.has_tenant(&tenant) {
            let fault = Fault::new(Code::NotFound, format!("there is no tenant '{tenant}'"));
            return Err(fault.hint("list them with: hob tenant ls"));
        }
        Ok(Some(tenant))
    }
}

fn unauthenticated() -> Fault {
    Fault::new(Code::Unauthenticated, "the request has no token that this node knows").hint(
        "send 'authorization: Bearer TOKEN'; hob takes it from --token-file, HOB_TOKEN, or what 'hob token new --save' kept",
    )
}

/// Lets a request through to its route, if it may pass.
pub(super) async fn check(State(access): State<Arc<Access>>, mut request: Request, next: Next) -> Response {
    let Some(path) = request.extensions().get::<MatchedPath>().cloned() else {
        // Nobody may do anything where nothing is.
        return next.run(request).await;
    };
    let Some(rule) = access.rule(path.as_str(), request.method()) else {
        return answer::no_method(request.method().clone(), request.uri().clone()).await.into_response();
    };
    if rule.need == Need::Nothing {
        return next.run(request).await;
    }
    let address = request.extensions().get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0);
    let line = Line::of(&request, address);
    let refuse = |line: Line, fault: Fault| {
        access.auditor.refused(line, fault.code);
        Refusal::from(fault).into_response()
    };
    let mut caller = match access.caller(request.headers(), address) {
        Ok(caller) => caller,
        Err(fault) => return refuse(line, fault),
    };
    let line = line.by(&caller);
    caller.tenant = match access.permitted(request.headers(), &caller, rule.need) {
        Ok(tenant) => tenant,
        Err(fault) => return refuse(line, fault),
    };
    let line = line.by(&caller);
    let is_change = Auditor::is_change(path.as_str(), request.method());
    if caller.token.is_some() && path.as_str().starts_with(ANY_METHOD) {
        // It was for Hob, and is nothing for a guest to see.
        request.headers_mut().remove(http::header::AUTHORIZATION);
    }
    let line = line.by(&caller);
    if let Err(fault) = rule.check_key(path.as_str(), &request) {
        return refuse(line, fault);
    }
    // Whoever runs the node is never in its own way.
    if is_change
        && !caller.is_operator
        && let Err(fault) = access.auditor.count(&caller.tenant)
    {
        return refuse(line, fault);
    }
    let held = match (!caller.is_operator).then(|| access.in_hand.take(&caller.tenant)).transpose() {
        Ok(held) => held,
        Err(fault) => return Refusal::from(fault).into_response(),
    };
    let keeps = rule.takes_key && request.headers().contains_key(once::KEY);
    request.extensions_mut().insert(caller);
    let response = async {
        let response = next.run(request).await;
        if keeps {
            crash::point("answer-kept");
        }
        response
    };
    let response = match is_change {
        true => access.auditor.around(line, response).await,
        false => response.await,
    };
    match held {
        Some(held) => held.until_sent(response),
        None => response,
    }
}

/// The fault for a token of another tenant where the whole node is meant.
pub(super) fn for_operators() -> Fault {
    Fault::new(Code::Forbidden, "only tokens of the tenant 'default' are for this, which is about the whole node")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_description_needs() {
        let of = |security: Value| need(&serde_json::json!({ "security": security }));
        assert_eq!(of(serde_json::json!([{}])), Some(Need::Nothing));
        assert_eq!(of(serde_json::json!([{ "token": ["deploy"] }])), Some(Need::Token(Scope::Deploy)));
        assert_eq!(of(serde_json::json!([{ "operator": ["admin"] }])), Some(Need::Operator(Scope::Admin)));
        for wrong in [
            Value::Null,
            serde_json::json!([]),
            serde_json::json!([{ "token": [] }]),
            serde_json::json!([{ "token": ["root"] }]),
            serde_json::json!([{ "token": ["read", "deploy"] }]),
            serde_json::json!([{ "other": ["read"] }]),
            serde_json::json!([{ "token": ["read"] }, {}]),
            serde_json::json!([{ "token": ["read"], "operator": ["read"] }]),
        ] {
            assert_eq!(of(wrong.clone()), None, "{wrong}");
        }
    }
}

//! Routes about tokens: make one, list them, remove one.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;

use super::Control;
use super::access::Caller;
use super::answer::{Named, Refusal, json_body};
use super::audited::Detail;
use super::wire::{NewTokenInfo, Problem, TokenInfo, TokenList, TokenRequest};
use crate::dispatch::templates::blocking;
use crate::fault::{Code, Fault};
use crate::id::TokenName;
use crate::identity::Token;
use crate::limits::parse_time;
use crate::registry::TokenRecord;
use crate::token::{EXPIRES_MAX, Scope, Scopes};

/// Name of a node's first token when nobody names it.
const FIRST: &str = "admin";

fn bad(what: impl ToString) -> Fault {
    Fault::new(Code::BadRequest, what.to_string())
}

impl From<&TokenRecord> for TokenInfo {
    fn from(record: &TokenRecord) -> Self {
        Self {
            name: record.name.to_string(),
            tenant: record.tenant.to_string(),
            scopes: record.scopes.iter().map(|scope| scope.to_string()).collect(),
            created_ms: record.created_ms,
            expires_ms: record.expires_ms,
            used_ms: None,
        }
    }
}

impl From<&Arc<Token>> for TokenInfo {
    fn from(token: &Arc<Token>) -> Self {
        Self {
            name: token.name.to_string(),
            tenant: token.tenant.to_string(),
            scopes: token.scopes.iter().map(|scope| scope.to_string()).collect(),
            created_ms: token.created_ms,
            expires_ms: token.expires_ms,
            used_ms: token.used_ms(),
        }
    }
}

/// Makes a token. Its text is in the answer, and nowhere else ever after. The first one of a node ends that anybody may do anything.
#[utoipa::path(post, path = "/v1/tokens", operation_id = "token_post", security(("token" = ["admin"])), request_body = TokenRequest,
    responses((status = 201, body = NewTokenInfo), (status = 400, body = Problem), (status = 409, description = "the name is taken", body = Problem),
        (status = 429, description = "there are too many", body = Problem)))]
pub(super) async fn post(State(control): State<Control>, caller: Caller, body: Body) -> Result<Response, Refusal> {
    let wanted: TokenRequest = json_body(body).await?;
    let is_first = control.identity.is_open();
    let name = wanted.name.or_else(|| is_first.then(|| FIRST.to_owned())).ok_or_else(|| bad("the token needs a 'name'"))?;
    let name: TokenName = name.parse().map_err(bad)?;
    let scopes = wanted.scopes.iter().map(|scope| scope.parse::<Scope>()).collect::<Result<Scopes, _>>().map_err(bad)?;
    let scopes = match scopes.is_empty() {
        false => scopes,
        true if is_first => Scopes::from_iter([Scope::Admin]),
        true => return Err(bad("the token needs 'scopes': of 'read', 'invoke', 'deploy' and 'admin'").into()),
    };
    let expires = wanted.expires.map(|text| parse_time(&text).ok_or(text)).transpose();
    let expires = expires.map_err(|text| bad(format!("'expires' is '{text}': expected a time such as '30days'")))?;
    if expires.is_some_and(|time| time.as_millis() == 0) {
        return Err(bad("'expires' is 0: the token would be worth nothing; expected a time such as '30days'").into());
    }
    if expires.is_some_and(|time| time > EXPIRES_MAX) {
        return Err(bad("'expires' is more than ten years away: leave it out").into());
    }
    let made = blocking(move || control.identity.add_token(caller.tenant, name, scopes, expires));
    let (text, record) = made.await??;
    let info = TokenInfo::from(&record);
    let detail = Detail(serde_json::json!({ "name": info.name, "scopes": info.scopes, "expires_ms": info.expires_ms }));
    let mut response = (StatusCode::CREATED, Json(NewTokenInfo { info, token: text.reveal().into() })).into_response();
    response.headers_mut().insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    response.extensions_mut().insert(detail);
    Ok(response)
}

/// Lists the tokens of a tenant, without their texts.
#[utoipa::path(get, path = "/v1/tokens", operation_id = "token_list", security(("token" = ["admin"])), responses((status = 200, body = TokenList)))]
pub(super) async fn list(State(control): State<Control>, caller: Caller) -> Json<TokenList> {
    Json(TokenList { items: control.identity.tokens(&caller.tenant).iter().map(TokenInfo::from).collect() })
}

/// Removes a token: it is worth nothing from the next request on. The last lasting admin's of the tenant `default` cannot be removed.
#[utoipa::path(delete, path = "/v1/tokens/{name}", operation_id = "token_delete", security(("token" = ["admin"])), params(("name" = String, Path)),
    responses((status = 204), (status = 400, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn delete(
    State(control): State<Control>,
    caller: Caller,
    Named(name): Named<TokenName>,
) -> Result<StatusCode, Refusal> {
    blocking(move || control.identity.remove_token(&caller.tenant, &name)).await??;
    Ok(StatusCode::NO_CONTENT)
}

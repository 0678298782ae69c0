//! Routes about secrets: set one, list them, remove one. None tells a value.
//!
//! Owns the bound on a body. Knows nothing about where values lie. Invariant: no answer and no line of the audit log has a value in it.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use http::StatusCode;
use serde::Deserialize;
use zeroize::Zeroize as _;

use super::Control;
use super::access::Caller;
use super::answer::{Named, Refusal, body_fault, query_fault};
use super::buckets::place;
use super::keys::page;
use super::wire::{Problem, SecretInfo, SecretList, UnreadableSecret};
use crate::dispatch::Unreadable;
use crate::dispatch::templates::blocking;
use crate::fault::{Code, Fault};
use crate::id::{FunctionName, SecretName};
use crate::secrets::{Listed, SecretError, SecretValue, Stored, VALUE_LEN_MAX};

impl From<Stored> for SecretInfo {
    fn from(stored: Stored) -> Self {
        let Stored { name, bytes, changed_ms } = stored;
        Self { name: name.to_string(), bytes: bytes as u64, changed_ms }
    }
}

impl From<Unreadable> for UnreadableSecret {
    fn from(unreadable: Unreadable) -> Self {
        let Unreadable { function, secret, why } = unreadable;
        Self { function: function.to_string(), name: secret.to_string(), why }
    }
}

/// Sets a secret of the tenant, in place of its former value. The next invocation reads it; what is initialised with it is initialised again.
#[utoipa::path(put, path = "/v1/secrets/{name}", operation_id = "secret_put", security(("token" = ["deploy"])),
    params(("name" = String, Path, description = "1 to 64 of A-Z, a-z, 0-9 and '_', beginning with no digit")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "the value, 1 byte to 64 KiB"),
    responses((status = 204, description = "set, and durable"), (status = 400, body = Problem), (status = 408, body = Problem), (status = 413, body = Problem),
        (status = 429, description = "the tenant has too many", body = Problem), (status = 507, body = Problem)))]
pub(super) async fn put(
    State(control): State<Control>,
    caller: Caller,
    Named(name): Named<SecretName>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let body = axum::body::to_bytes(body, VALUE_LEN_MAX).await.map_err(|error| value_fault(&error))?;
    let value = SecretValue::new(body.to_vec()).map_err(|error| error.fault())?;
    if let Ok(mut body) = body.try_into_mut() {
        // Where nobody else has it: the buffer of a connection is not ours to wipe.
        body.as_mut().zeroize();
    }
    let done = blocking(move || {
        control.secrets.put(&caller.tenant, &name, &value)?;
        control.dispatcher.secret_changed(&caller.tenant, &name);
        Ok(())
    });
    done.await?.map_err(|error: SecretError| error.fault())?;
    Ok(StatusCode::NO_CONTENT)
}

fn value_fault(error: &(dyn std::error::Error + 'static)) -> Fault {
    let fault = body_fault(error);
    if fault.code == Code::BodyTooLarge { SecretError::TooLong.fault() } else { fault }
}

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    unreadable: bool,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// Lists the secrets of the tenant by name, without their values. Those that come from the node's folder or its credentials are not among them.
#[utoipa::path(get, path = "/v1/secrets", operation_id = "secret_list", security(("token" = ["read"])),
    params(("unreadable" = Option<bool>, Query, description = "whether to say which secrets functions may read and that cannot be read, from whatever place"),
        ("cursor" = Option<String>, Query, description = "with `unreadable`: `next` of the page before; the answer has `unreadable` of the next functions, and no `items`"),
        ("limit" = Option<usize>, Query, description = "with `unreadable`: of how many functions that may read any, at most 1000")),
    responses((status = 200, body = SecretList), (status = 400, body = Problem),
        (status = 503, description = "with `unreadable`: another such look, or a scrub, is under way", body = Problem)))]
pub(super) async fn list(
    State(control): State<Control>,
    caller: Caller,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<SecretList>, Refusal> {
    let Query(Wanted { unreadable, cursor, limit }) = wanted.map_err(|error| query_fault(&error))?;
    if !unreadable && (cursor.is_some() || limit.is_some()) {
        return Err(
            Fault::new(Code::BadRequest, "'cursor' and 'limit' are for 'unreadable=true': the list itself has no pages").into()
        );
    }
    let after = cursor.map(|cursor| cursor.parse::<FunctionName>()).transpose();
    let after = after.map_err(|_| Fault::new(Code::BadRequest, "the cursor is none that this host gave out"))?;
    let limit = page(limit)?;
    // It may read thousands of files.
    let turn = unreadable.then(|| place(&control.places.scrubs, "scrubs and looks at unreadable secrets")).transpose()?;
    let work = move || {
        let _turn = turn;
        // What the first page has is not read again for each.
        let list = || control.secrets.list(&caller.tenant).map_err(|error| error.fault());
        let listed = if after.is_none() { list()? } else { Listed::default() };
        let find = || control.dispatcher.unreadable_secrets(&control.secrets, &caller.tenant, after, limit);
        Ok((listed, unreadable.then(find).transpose()?))
    };
    let (Listed { secrets, damaged }, found) = blocking(work).await?.map_err(|fault: Fault| fault)?;
    let items = secrets.into_iter().map(SecretInfo::from).collect();
    let (unreadable, next) = found.unzip();
    let unreadable = unreadable.map(|found| found.into_iter().map(UnreadableSecret::from).collect());
    let next = next.flatten().map(|last| last.to_string());
    Ok(Json(SecretList { items, damaged: damaged as u64, unreadable, next }))
}

/// Removes a secret of the tenant. What is initialised with it starts no more until it is set again.
#[utoipa::path(delete, path = "/v1/secrets/{name}", operation_id = "secret_delete", security(("token" = ["deploy"])), params(("name" = String, Path)),
    responses((status = 204), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn delete(
    State(control): State<Control>,
    caller: Caller,
    Named(name): Named<SecretName>,
) -> Result<StatusCode, Refusal> {
    let done = blocking(move || {
        let removed = control.secrets.remove(&caller.tenant, &name).map_err(|error| error.fault())?;
        if !removed {
            let fault = Fault::new(Code::NotFound, format!("there is no secret '{name}' that came by the API"));
            return Err(fault.hint("list them with: hob secret ls"));
        }
        // Another place may have one of its name.
        control.dispatcher.secret_changed(&caller.tenant, &name);
        Ok(())
    });
    done.await??;
    Ok(StatusCode::NO_CONTENT)
}

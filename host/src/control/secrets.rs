//! Routes about secrets: set one, list them, remove one. None tells a value.
//!
//! Owns the bound on a body. Knows nothing about where values lie. Invariant: no answer and no line of the audit log has a value in it.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use http::StatusCode;
use zeroize::Zeroize as _;

use super::Control;
use super::access::Caller;
use super::answer::{Named, Refusal, body_fault};
use super::wire::{Problem, SecretInfo, SecretList};
use crate::dispatch::templates::blocking;
use crate::fault::{Code, Fault};
use crate::id::SecretName;
use crate::secrets::{Listed, SecretError, SecretValue, Stored, VALUE_LEN_MAX};

impl From<Stored> for SecretInfo {
    fn from(stored: Stored) -> Self {
        let Stored { name, bytes, changed_ms } = stored;
        Self { name: name.to_string(), bytes: bytes as u64, changed_ms }
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

/// Lists the secrets of the tenant by name, without their values. Those that come from the node's folder or its credentials are not among them.
#[utoipa::path(get, path = "/v1/secrets", operation_id = "secret_list", security(("token" = ["read"])), responses((status = 200, body = SecretList)))]
pub(super) async fn list(State(control): State<Control>, caller: Caller) -> Result<Json<SecretList>, Refusal> {
    let listed = blocking(move || control.secrets.list(&caller.tenant)).await?.map_err(|error| error.fault())?;
    let Listed { secrets, damaged } = listed;
    Ok(Json(SecretList { items: secrets.into_iter().map(SecretInfo::from).collect(), damaged: damaged as u64 }))
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

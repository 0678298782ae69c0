//! Routes about tenants and the keys that their deploys are signed with, and about the audit log.

use std::collections::BTreeSet;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use serde::Deserialize;

use super::Control;
use super::access::Caller;
use super::answer::{Named, Refusal, json_body, query_fault};
use super::keys::page;
use super::wire::{AuditList, KeyInfo, KeyList, KeyRequest, Problem, TenantChange, TenantInfo, TenantList, TenantRequest};
use crate::dispatch::templates::blocking;
use crate::fault::{Code, Fault};
use crate::host::HostName;
use crate::id::{KeyName, TenantId};
use crate::quota::{NONE, Quota, QuotaError, SPECS, Value};
use crate::registry::{TenantError, TenantRecord};
use crate::signing::PublicKey;

fn keys(record: &TenantRecord) -> Vec<KeyInfo> {
    record.keys.iter().map(|(name, key)| KeyInfo { name: name.to_string(), public_key: key.to_string() }).collect()
}

impl Control {
    fn info(&self, record: &TenantRecord) -> TenantInfo {
        let meter = self.identity.meters().of(&record.name);
        let in_force = SPECS.iter().map(|spec| (spec, meter.quota(spec.quota))).filter(|(_, value)| *value != NONE);
        TenantInfo {
            name: record.name.to_string(),
            hosts: record.hosts.iter().map(ToString::to_string).collect(),
            keys: keys(record),
            quotas: record.quotas.entries().map(|(name, value)| (name.to_owned(), value)).collect(),
            in_force: in_force.map(|(spec, value)| (spec.name.to_owned(), spec.quota.show(value))).collect(),
            created_ms: record.created_ms,
        }
    }

    async fn tenant(&self, name: TenantId) -> Result<TenantRecord, Fault> {
        let identity = self.identity.clone();
        blocking(move || match identity.tenant(&name) {
            Ok(found) => found.ok_or_else(|| TenantError::NoSuchTenant(name).fault()),
            Err(error) => Err(error.fault()),
        })
        .await?
    }

    /// Refuses if a tenant has buckets.
    fn has_no_buckets(&self, name: &TenantId) -> Result<(), Fault> {
        let buckets = self.data.buckets(name, None, 1).map_err(|error| error.fault())?;
        let damaged = self.data.damaged_buckets(name).map_err(|error| error.fault())?;
        if buckets.is_empty() && damaged.is_empty() {
            return Ok(());
        }
        let fault = Fault::new(Code::Conflict, format!("the tenant '{name}' has buckets: delete them first"));
        Err(fault.hint(format!("hob bucket ls --tenant {name}")))
    }
}

/// Lists all tenants by name.
#[utoipa::path(get, path = "/v1/tenants", operation_id = "tenant_list", security(("operator" = ["admin"])), responses((status = 200, body = TenantList)))]
pub(super) async fn list(State(control): State<Control>, _caller: Caller) -> Result<Json<TenantList>, Refusal> {
    let identity = control.identity.clone();
    let tenants = blocking(move || identity.tenants()).await?.map_err(|error| error.fault())?;
    Ok(Json(TenantList { items: tenants.iter().map(|tenant| control.info(tenant)).collect() }))
}

/// Shows a tenant.
#[utoipa::path(get, path = "/v1/tenants/{name}", operation_id = "tenant_get", security(("operator" = ["admin"])), params(("name" = String, Path)),
    responses((status = 200, body = TenantInfo), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn get(State(control): State<Control>, Named(name): Named<TenantId>) -> Result<Json<TenantInfo>, Refusal> {
    let record = control.tenant(name).await?;
    Ok(Json(control.info(&record)))
}

/// Makes a tenant, or changes its hosts. The body may be empty.
#[utoipa::path(put, path = "/v1/tenants/{name}", operation_id = "tenant_put", security(("operator" = ["admin"])),
    params(("name" = String, Path, description = "1 to 63 of a-z, 0-9 and '-'")), request_body = Option<TenantRequest>,
    responses((status = 201, description = "a new tenant", body = TenantInfo), (status = 200, description = "it was there", body = TenantInfo),
        (status = 400, body = Problem), (status = 409, description = "another tenant has a host", body = Problem), (status = 429, description = "there are too many", body = Problem)))]
pub(super) async fn put(State(control): State<Control>, Named(name): Named<TenantId>, body: Body) -> Result<Response, Refusal> {
    let wanted: TenantRequest = json_body(body).await?;
    let hosts = wanted.hosts.iter().map(|host| host.parse()).collect::<Result<BTreeSet<HostName>, _>>();
    let hosts = hosts.map_err(|error| Fault::new(Code::BadRequest, error.to_string()))?;
    let this = control.clone();
    let done = blocking(move || {
        if !this.identity.has_tenant(&name) {
            // What a removed tenant of this name left is nothing for a new one to find.
            this.has_no_buckets(&name)?;
            this.secrets.remove_tenant(&name).map_err(|error| error.fault())?;
            this.data.forget_answers(&name).map_err(|error| error.fault())?;
        }
        this.identity.put_tenant(&name, hosts).map_err(|error| error.fault())
    });
    let (record, is_new) = done.await??;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(control.info(&record))).into_response())
}

/// Changes quotas of a tenant; what is not named stays. They are in force when this is answered.
#[utoipa::path(patch, path = "/v1/tenants/{name}", operation_id = "tenant_patch", security(("operator" = ["admin"])), params(("name" = String, Path)),
    request_body = TenantChange,
    responses((status = 200, body = TenantInfo), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn patch(
    State(control): State<Control>,
    Named(name): Named<TenantId>,
    body: Body,
) -> Result<Json<TenantInfo>, Refusal> {
    let wanted: TenantChange = json_body(body).await?;
    let change = |(name, value): (&String, &Option<Value>)| {
        let quota = Quota::named(name)?;
        Ok((quota, value.as_ref().map(|Value(text)| quota.parse(text)).transpose()?))
    };
    let changes = wanted.quotas.iter().map(change).collect::<Result<Vec<_>, QuotaError>>();
    let changes = changes.map_err(|error| Fault::new(Code::BadRequest, error.to_string()))?;
    let this = control.clone();
    let done = blocking(move || this.identity.set_quotas(&name, &changes).map_err(|error| error.fault()));
    let record = done.await??;
    Ok(Json(control.info(&record)))
}

/// Removes a tenant with its tokens, keys and secrets. It must have no functions and no buckets.
#[utoipa::path(delete, path = "/v1/tenants/{name}", operation_id = "tenant_delete", security(("operator" = ["admin"])), params(("name" = String, Path)),
    responses((status = 204), (status = 400, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn delete(State(control): State<Control>, Named(name): Named<TenantId>) -> Result<StatusCode, Refusal> {
    let done = blocking(move || {
        if control.identity.has_tenant(&name) && !name.is_default() {
            control.has_no_buckets(&name)?;
        }
        control.identity.remove_tenant(&name).map_err(|error| error.fault())?;
        // What a failure leaves here goes before a tenant of this name is made again.
        control.secrets.remove_tenant(&name).map_err(|error| error.fault())?;
        control.data.forget_answers(&name).map_err(|error| error.fault())
    });
    done.await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the keys that deploys are signed with. None: deploys need no signature.
#[utoipa::path(get, path = "/v1/keys", operation_id = "key_list", security(("token" = ["read"])), responses((status = 200, body = KeyList)))]
pub(super) async fn key_list(State(control): State<Control>, caller: Caller) -> Result<Json<KeyList>, Refusal> {
    Ok(Json(KeyList { items: keys(&control.tenant(caller.tenant).await?) }))
}

/// Adds a key that deploys may be signed with. With the first one every deploy must be signed.
#[utoipa::path(put, path = "/v1/keys/{name}", operation_id = "key_put", security(("token" = ["admin"])), params(("name" = String, Path)), request_body = KeyRequest,
    responses((status = 200, body = KeyInfo), (status = 400, body = Problem), (status = 409, description = "the name is taken", body = Problem),
        (status = 429, description = "there are too many", body = Problem)))]
pub(super) async fn key_put(
    State(control): State<Control>,
    caller: Caller,
    Named(name): Named<KeyName>,
    body: Body,
) -> Result<Json<KeyInfo>, Refusal> {
    let wanted: KeyRequest = json_body(body).await?;
    let key = PublicKey::try_from(wanted.public_key).map_err(|error| Fault::new(Code::BadRequest, error.to_string()))?;
    let info = KeyInfo { name: name.to_string(), public_key: key.to_string() };
    blocking(move || control.identity.add_key(&caller.tenant, &name, key)).await?.map_err(|error| error.fault())?;
    Ok(Json(info))
}

/// Removes a key. With the last one deploys need no signature any more.
#[utoipa::path(delete, path = "/v1/keys/{name}", operation_id = "key_delete", security(("token" = ["admin"])), params(("name" = String, Path)),
    responses((status = 204), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn key_delete(
    State(control): State<Control>,
    caller: Caller,
    Named(name): Named<KeyName>,
) -> Result<StatusCode, Refusal> {
    blocking(move || control.identity.remove_key(&caller.tenant, &name)).await?.map_err(|error| error.fault())?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
pub(super) struct Lines {
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
}

/// Reads the audit log of the node.
#[utoipa::path(get, path = "/v1/audit", operation_id = "audit_list", security(("operator" = ["admin"])),
    params(("after" = Option<u64>, Query, description = "number of the line before the first wanted; 0 when absent"), ("limit" = Option<usize>, Query, description = "at most 1000")),
    responses((status = 200, body = AuditList), (status = 400, body = Problem)))]
pub(super) async fn audit(
    State(control): State<Control>,
    _caller: Caller,
    wanted: Result<Query<Lines>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<AuditList>, Refusal> {
    let Query(wanted) = wanted.map_err(|error| query_fault(&error))?;
    let count = page(wanted.limit)?;
    let (lines, head) = blocking(move || (control.audit.lines(wanted.after, count), control.audit.head())).await?;
    let lines = lines.map_err(Fault::internal)?;
    Ok(Json(AuditList { lines, last: head.0, hash: head.1.hex() }))
}

//! Routes about functions: put, list, inspect, revisions, rollback, delete.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;

use super::Control;
use super::access::Caller;
use super::answer::{Named, Refusal, body_fault, precondition, query_fault};
use super::audited::Detail;
use super::keys;
use super::once::{self, Found, Once, respond};
use super::upload;
use super::wire::{
    BundleInfo, DataGrantInfo, FileGrantInfo, FunctionDetail, FunctionInfo, FunctionList, GrantsInfo, Problem, RevisionInfo,
    RevisionList, RollbackRequest, SecretGrantInfo, SnapshotInfo, StartTimeInfo, TriggerInfo, UsageInfo, UsedInfo, object,
};
use crate::fault::{Code, Fault};
use crate::grants::ManifestGrants;
use crate::grants::secrets::SecretGrant;
use crate::histogram::StartTimes;
use crate::id::{BucketName, FunctionName, RevisionNumber};
use crate::idempotency::{Answer, Keep};
use crate::invocation::{Phases, Start};
use crate::manifest::Trigger;
use crate::registry::{FunctionRecord, RevisionRecord, Terms};
use crate::signing::{DeploySignature, Signed};
use crate::telemetry::metrics::millis;

/// Says where the deployed function answers.
const DATA_ADDR: HeaderName = HeaderName::from_static("hob-data-addr");
/// Says by which host, where not by any; empty where by none.
const DATA_HOST: HeaderName = HeaderName::from_static("hob-data-host");

/// Longest body of a rollback, in bytes.
const ROLLBACK_LEN_MAX: usize = 4 << 10;

fn info(record: &FunctionRecord) -> FunctionInfo {
    let live = &record.live;
    FunctionInfo {
        name: record.name.to_string(),
        revision: live.number.0,
        digest: live.wasm.to_string(),
        kind: live.kind.clone(),
        wasm_bytes: live.wasm_bytes,
        artifact_bytes: live.artifact_bytes,
        routes: live.manifest.route.iter().map(ToString::to_string).collect(),
        path: format!("/{}", record.name),
        etag: record.etag(),
        created_ms: record.created_ms,
        updated_ms: record.updated_ms,
        snapshot: live
            .snapshot
            .as_ref()
            .map(|snapshot| SnapshotInfo { memory_bytes: snapshot.memory_bytes, module_bytes: snapshot.bytes }),
        files: live.bundle.as_ref().map(|bundle| BundleInfo {
            digest: bundle.digest.to_string(),
            files: bundle.files,
            bytes: bundle.bytes,
        }),
        notes: live.notes.clone(),
    }
}

/// What the audit log says of what is live now.
fn detail(record: &FunctionRecord, signed_version: Option<u64>, made: &[BucketName]) -> Detail {
    let (number, digest) = (record.live.number.0, record.live.wasm.to_string());
    let made: Vec<_> = made.iter().map(BucketName::as_str).collect();
    Detail(serde_json::json!({ "revision": number, "digest": digest, "signed_version": signed_version, "buckets_made": made }))
}

/// The signature of a deploy, from the headers `hob-signature` and `hob-signed-version`.
fn signed(headers: &HeaderMap) -> Result<Option<Signed>, Fault> {
    let text = |name: &str| match headers.get_all(name).iter().collect::<Vec<_>>().as_slice() {
        [] => Ok(None),
        [one] => one.to_str().map(Some).map_err(|_| ()),
        _ => Err(()),
    };
    let bad = || {
        let detail = "the signature is malformed: expected 'hob-signature' with 64 bytes in Base64, and 'hob-signed-version' with a number";
        Fault::new(Code::BadSignature, detail).hint("hob deploy --sign-key FILE --signed-version N")
    };
    match (text("hob-signature"), text("hob-signed-version")) {
        (Ok(None), Ok(None)) => Ok(None),
        (Ok(Some(signature)), Ok(Some(version))) => {
            let signature = DeploySignature::from_base64(signature).ok_or_else(bad)?;
            Ok(Some(Signed { version: version.parse().map_err(|_| bad())?, signature }))
        }
        _ => Err(bad()),
    }
}

/// An entity tag is digits and quotes.
fn etag(record: &FunctionRecord) -> HeaderValue {
    HeaderValue::try_from(record.etag()).unwrap_or(HeaderValue::from_static("\"\""))
}

/// What a function is that was deployed, or rolled back.
fn live(status: StatusCode, record: &FunctionRecord) -> Answer {
    once::json(status, Some(etag(record)), &info(record))
}

/// Where the functions of a tenant are reached.
#[derive(Debug, Clone)]
struct Reached {
    addr: SocketAddr,
    host: Option<String>,
}

/// What a deploy is answered with.
fn deployed(record: &FunctionRecord, Reached { addr, host }: &Reached) -> Answer {
    let is_new = record.live.number == RevisionNumber::FIRST;
    let mut answer = live(if is_new { StatusCode::CREATED } else { StatusCode::OK }, record);
    // An address is digits and punctuation.
    let addr = HeaderValue::try_from(addr.to_string()).unwrap_or(HeaderValue::from_static(""));
    answer.headers_mut().insert(DATA_ADDR, addr);
    if !record.tenant.is_default() {
        // A host's name is letters, digits and punctuation.
        let host = host.as_deref().and_then(|host| HeaderValue::try_from(host).ok());
        answer.headers_mut().insert(DATA_HOST, host.unwrap_or(HeaderValue::from_static("")));
    }
    answer
}

/// Deploys a function: raw Wasm as `application/wasm`, or `multipart/form-data` with the parts `manifest` (the text of
/// `hob.toml`) and `wasm`.
#[utoipa::path(put, path = "/v1/functions/{name}", security(("token" = ["deploy"])),
    params(("name" = String, Path, description = "1 to 63 of a-z, 0-9 and '-'"),
        ("if-match" = Option<String>, Header, description = "deploy only if this is the live revision's ETag"),
        ("if-none-match" = Option<String>, Header, description = "`*`: deploy only if there is no such function"),
        ("hob-signature" = Option<String>, Header, description = "Ed25519 signature in Base64, needed if the tenant has keys"),
        ("hob-signed-version" = Option<u64>, Header, description = "version that it was signed as, which rises with each deploy"),
        ("idempotency-key" = Option<String>, Header, description = "1 to 255 visible ASCII characters: asked for again with the same key, it is answered again and not done again")),
    responses((status = 201, description = "a new function", body = FunctionInfo, headers(("etag" = String), ("hob-data-addr" = String), ("hob-data-host" = String))),
        (status = 200, description = "a new revision", body = FunctionInfo, headers(("etag" = String), ("hob-data-addr" = String), ("hob-data-host" = String))),
        (status = 400, body = Problem), (status = 408, body = Problem), (status = 409, description = "a route is taken", body = Problem), (status = 412, body = Problem),
        (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, description = "not a function", body = Problem),
        (status = 429, description = "a quota of the tenant is used up", body = Problem), (status = 503, description = "too many builds", body = Problem), (status = 507, body = Problem)))]
pub(super) async fn put(
    State(control): State<Control>,
    caller: Caller,
    once: Once,
    Named(name): Named<FunctionName>,
    request: Request,
) -> Result<Response, Refusal> {
    control.identity.meters().of(&caller.tenant).deploy()?;
    let precondition = precondition(request.headers())?;
    let signed = signed(request.headers())?;
    let (sent, digests) = upload::receive(&control, &caller, request).await?;
    // What it holds, and not its bytes: the same form may have another boundary each time.
    let bundle = sent.bundle.as_ref().map(|bundle| bundle.digest());
    let parts = [Some(digests.wasm), Some(digests.manifest), bundle].into_iter().flatten();
    let parts = parts.map(|digest| Bytes::copy_from_slice(digest.bytes())).collect();
    let ticket = match once.look(&control, parts).await? {
        Found::Answer(answer) => return Ok(answer),
        Found::Nothing(ticket) => ticket,
    };
    let allowed = control.deployer.check_signature(&caller.tenant, &name, digests, signed).await?;
    let at = Reached { addr: control.data_addr, host: control.identity.host_of(&caller.tenant) };
    let kept_at = at.clone();
    let keep = ticket.map(|ticket| Keep::new(ticket, move |record: &FunctionRecord| Some(deployed(record, &kept_at))));
    let (record, made) = control.deployer.deploy(caller.tenant, name, sent, Terms { precondition, keep }, allowed).await?;
    let mut response = respond(deployed(&record, &at));
    response.extensions_mut().insert(detail(&record, signed.map(|signed| signed.version), &made));
    Ok(response)
}

#[derive(Debug, Deserialize)]
pub(super) struct Page {
    cursor: Option<String>,
    limit: Option<usize>,
}

/// Lists functions by name.
#[utoipa::path(get, path = "/v1/functions", security(("token" = ["read"])),
    params(("cursor" = Option<String>, Query, description = "`next` of the page before"), ("limit" = Option<usize>, Query, description = "at most 1000")),
    responses((status = 200, body = FunctionList), (status = 400, body = Problem)))]
pub(super) async fn list(
    State(control): State<Control>,
    caller: Caller,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<FunctionList>, Refusal> {
    let Query(page) = page.map_err(|error| query_fault(&error))?;
    let after = page.cursor.map(|cursor| cursor.parse::<FunctionName>()).transpose();
    let after = after.map_err(|_| Fault::new(Code::BadRequest, "the cursor is none that this host gave out"))?;
    let limit = keys::page(page.limit)?;
    let mut records = control.deployer.list(caller.tenant.clone(), after, limit + 1).await?;
    let more = records.len() > limit;
    records.truncate(limit);
    let next = records.last().filter(|_| more).map(|record| record.name.to_string());
    Ok(Json(FunctionList { items: records.iter().map(info).collect(), next }))
}

/// Shows all that is known about a function.
#[utoipa::path(get, path = "/v1/functions/{name}", security(("token" = ["read"])), params(("name" = String, Path)),
    responses((status = 200, body = FunctionDetail, headers(("etag" = String))), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn get(
    State(control): State<Control>,
    caller: Caller,
    Named(name): Named<FunctionName>,
) -> Result<Response, Refusal> {
    let record = control.deployer.get(caller.tenant.clone(), name).await?;
    let (meter, (running, waiting)) = control.dispatcher.usage(&record.tenant, &record.name);
    let (used, starts) = (meter.series().total(), meter.starts());
    let manifest = &record.live.manifest;
    let artifact = control.dispatcher.artifact(&record.tenant, &record.name).unwrap_or(record.live.artifact);
    let detail = FunctionDetail {
        function: info(&record),
        tenant: record.tenant.to_string(),
        limits: manifest.limits.entries().map(|(name, value)| (name.to_owned(), value)).collect(),
        auth: manifest.auth.as_str().into(),
        args: manifest.args.clone(),
        env: manifest.env.clone(),
        grants: grants(&manifest.grants),
        triggers: manifest.trigger.iter().map(trigger).collect(),
        resident: control.dispatcher.templates().is_resident(&record.tenant, artifact),
        ready: control.dispatcher.templates().ready_instances(&record.tenant, artifact) as u64,
        running: running as u64,
        waiting: waiting as u64,
        usage: UsageInfo {
            starts: Start::ALL.into_iter().map(|start| (start.as_str().to_owned(), starts.count(start))).collect(),
            start_times: start_times(starts),
            faults: meter.faults().iter().map(|(code, count)| (code.as_str().to_owned(), *count)).collect(),
            used: UsedInfo::from(&used),
        },
    };
    Ok(([(header::ETAG, etag(&record))], Json(detail)).into_response())
}

fn grants(grants: &ManifestGrants) -> GrantsInfo {
    let data = grants.data.iter().map(|grant| DataGrantInfo {
        bucket: grant.bucket.to_string(),
        access: grant.access.to_string(),
        mount: grant.mount.clone(),
    });
    let files = grants.files.iter().map(|grant| FileGrantInfo {
        host: grant.host.clone(),
        guest: grant.guest.clone(),
        access: grant.access.to_string(),
    });
    let http = grants.http.iter().map(ToString::to_string).collect();
    let secret =
        |SecretGrant { name, env, init }: &SecretGrant| SecretGrantInfo { name: name.to_string(), env: env.clone(), init: *init };
    let secrets = grants.secrets.iter().map(secret).collect();
    let functions = grants.functions.iter().map(ToString::to_string).collect();
    GrantsInfo { data: data.collect(), files: files.collect(), http, secrets, functions, clock: grants.clock.as_str().into() }
}

fn trigger(trigger: &Trigger) -> TriggerInfo {
    TriggerInfo {
        on: trigger.on.to_string(),
        bucket: trigger.bucket.to_string(),
        prefix: trigger.prefix.clone(),
        attempts: trigger.attempts,
        dead_letter: trigger.dead_letter.as_ref().map(ToString::to_string),
    }
}

fn start_times(starts: &StartTimes) -> BTreeMap<String, StartTimeInfo> {
    let info = |start: Start| {
        let reading = starts.reading(start);
        let (p50_ms, p99_ms) = (millis(reading.quantile(500)?), millis(reading.quantile(990)?));
        let phases = Phases::NAMES.into_iter().zip(starts.mean(start)?.times()).filter(|(_, time)| !time.is_zero());
        let mean_ms = phases.map(|(phase, time)| (phase.to_owned(), millis(time))).collect();
        Some((start.as_str().to_owned(), StartTimeInfo { p50_ms, p99_ms, mean_ms }))
    };
    Start::ALL.into_iter().filter_map(info).collect()
}

/// Lists the kept revisions of a function, newest first.
#[utoipa::path(get, path = "/v1/functions/{name}/revisions", security(("token" = ["read"])), params(("name" = String, Path)),
    responses((status = 200, body = RevisionList), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn revisions(
    State(control): State<Control>,
    caller: Caller,
    Named(name): Named<FunctionName>,
) -> Result<Json<RevisionList>, Refusal> {
    let live = control.deployer.get(caller.tenant.clone(), name.clone()).await?.live.number;
    let revisions = control.deployer.revisions(caller.tenant.clone(), name).await?;
    let info = |revision: &RevisionRecord| RevisionInfo {
        revision: revision.number.0,
        live: revision.number == live,
        digest: revision.wasm.to_string(),
        kind: revision.kind.clone(),
        wasm_bytes: revision.wasm_bytes,
        created_ms: revision.created_ms,
        notes: revision.notes.clone(),
    };
    Ok(Json(RevisionList { items: revisions.iter().map(info).collect() }))
}

/// Makes an older revision live again. The body may be empty.
#[utoipa::path(post, path = "/v1/functions/{name}/rollback", security(("token" = ["deploy"])),
    params(("name" = String, Path), ("if-match" = Option<String>, Header),
        ("idempotency-key" = Option<String>, Header, description = "1 to 255 visible ASCII characters: asked for again with the same key, it is answered again and not done again")), request_body = Option<RollbackRequest>,
    responses((status = 200, body = FunctionInfo, headers(("etag" = String))), (status = 400, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 412, body = Problem)))]
pub(super) async fn rollback(
    State(control): State<Control>,
    caller: Caller,
    once: Once,
    Named(name): Named<FunctionName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let precondition = precondition(&headers)?;
    let body = axum::body::to_bytes(body, ROLLBACK_LEN_MAX).await.map_err(|error| body_fault(&error))?;
    let request: RollbackRequest = match body.as_ref() {
        b"" => RollbackRequest::default(),
        text => object(text)
            .map_err(|error| Fault::new(Code::BadRequest, format!("the body is not as expected, {{\"to\": NUMBER}}: {error}")))?,
    };
    let ticket = match once.look(&control, vec![body]).await? {
        Found::Answer(answer) => return Ok(answer),
        Found::Nothing(ticket) => ticket,
    };
    if !caller.is_admin() && control.deployer.asks_for_signatures(&caller.tenant).await? {
        let fault = Fault::new(
            Code::Forbidden,
            "deploys are signed here and their versions rise, so only an admin goes back to an older one",
        );
        return Err(fault.hint("deploy it again, signed as a higher version, or use a token with the scope 'admin'").into());
    }
    let keep = ticket.map(|ticket| Keep::new(ticket, |record: &FunctionRecord| Some(live(StatusCode::OK, record))));
    let terms = Terms { precondition, keep };
    let (record, made) = control.deployer.rollback(caller.tenant, name, request.to.map(RevisionNumber), terms).await?;
    let mut response = respond(live(StatusCode::OK, &record));
    response.extensions_mut().insert(detail(&record, None, &made));
    Ok(response)
}

/// Removes a function with all its revisions. Invocations that run finish.
#[utoipa::path(delete, path = "/v1/functions/{name}", security(("token" = ["deploy"])), params(("name" = String, Path), ("if-match" = Option<String>, Header),
        ("idempotency-key" = Option<String>, Header, description = "1 to 255 visible ASCII characters: asked for again with the same key, it is answered again and not done again")),
    responses((status = 204), (status = 400, body = Problem), (status = 404, body = Problem), (status = 412, body = Problem)))]
pub(super) async fn delete(
    State(control): State<Control>,
    caller: Caller,
    once: Once,
    Named(name): Named<FunctionName>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let precondition = precondition(&headers)?;
    let ticket = match once.look(&control, Vec::new()).await? {
        Found::Answer(answer) => return Ok(answer),
        Found::Nothing(ticket) => ticket,
    };
    let gone = || once::bare(StatusCode::NO_CONTENT, None);
    let keep = ticket.map(|ticket| Keep::new(ticket, move |removed: &bool| removed.then(gone)));
    control.deployer.remove(caller.tenant, name, Terms { precondition, keep }).await?;
    Ok(respond(gone()))
}

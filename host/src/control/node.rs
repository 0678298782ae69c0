//! Routes about the node itself.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;

use super::Control;
use super::access::Caller;
use super::answer::Refusal;
use super::wire::{NodeInfo, Problem};
use crate::data::CacheCounts;
use crate::dispatch::templates::blocking;
use crate::fault::{Code, Fault};
use crate::id::TenantId;
use crate::meter::TenantMeter;
use crate::meter::series::Used;
use crate::telemetry::exposition::FunctionStarts;
use crate::telemetry::used::{TenantUse, Totals};

/// Says that the process answers.
#[utoipa::path(get, path = "/livez", security(()), responses((status = 200, body = String)))]
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// Says whether requests are taken: from the moment the registry is read until the node stops.
#[utoipa::path(get, path = "/readyz", security(()), responses((status = 200, body = String,
    description = "`ok`, or that data can only be read and why; then whether builds can be made, and which walls stand around the process"),
    (status = 503, body = Problem)))]
pub(super) async fn readyz(State(control): State<Control>) -> Result<String, Refusal> {
    if control.stop.is_stopped() {
        return Err(Fault::new(Code::Draining, "the node is shutting down").into());
    }
    // Functions and reads go on, so it takes requests all the same.
    let data = match control.data.read_only() {
        None => String::new(),
        Some(why) => {
            format!(", but data can only be read since the disk failed ({why}): look at the disk, then start hob again")
        }
    };
    let builds = match control.deployer.can_build() {
        true => "ok",
        false => "impossible, because the process that starts them has ended: start hob again",
    };
    Ok(format!("ok{data}\nbuilds: {builds}\nsandbox: {}\n", control.sandbox))
}

/// Says what the node is, and what it runs on.
#[utoipa::path(get, path = "/v1/node", operation_id = "node_get", security(("operator" = ["read"])), responses((status = 200, body = NodeInfo)))]
pub(super) async fn node(State(control): State<Control>, _caller: Caller) -> Result<Json<NodeInfo>, Refusal> {
    // The system takes its time to describe many processors.
    Ok(Json(blocking(move || about(control.engine_version, &control.set)).await?))
}

/// Looks at this process, and at its machine. `engine`: name and version of what runs guests; `set`: what was set of `[engine]` and `[build]`.
#[must_use]
pub fn about(engine: &str, set: &[(String, String)]) -> NodeInfo {
    let field = |file: &str, key: &str| -> Option<String> {
        let text = std::fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory = field("/proc/meminfo", "MemTotal").and_then(|text| text.strip_suffix(" kB")?.parse::<u64>().ok());
    NodeInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        engine: engine.into(),
        build: if cfg!(debug_assertions) { "debug" } else { "release" }.into(),
        settings: set.iter().cloned().collect(),
        processor: field("/proc/cpuinfo", "model name"),
        cores: std::thread::available_parallelism().ok().map(|cores| cores.get() as u64),
        memory_bytes: memory.map(|kib| kib << 10),
        kernel: rustix::system::uname().release().to_string_lossy().into(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn totals(used: &Used) -> Totals {
    let Used { invocations, cpu, wall, phases, bytes_in, bytes_out, requests, data_operations, memory_bytes_max } = *used;
    let (cpu, wall) = (cpu.as_secs_f64(), wall.as_secs_f64());
    let [invocations, bytes_in, bytes_out, requests, data_operations] =
        [invocations, bytes_in, bytes_out, requests, data_operations].map(|count| count as f64);
    Totals { sums: [invocations, cpu, wall, bytes_in, bytes_out, requests, data_operations], phases, memory_bytes_max }
}

fn tenant_use(name: &TenantId, meter: &TenantMeter) -> TenantUse {
    TenantUse {
        name: name.to_string(),
        totals: totals(&meter.series().total()),
        running: meter.running(),
        memory_bytes: meter.memory_bytes(),
        refused: meter.refused(),
    }
}

/// All metrics, as OpenMetrics text.
#[utoipa::path(get, path = "/metrics", security(("operator" = ["read"])), responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
pub(super) async fn metrics(State(control): State<Control>, _caller: Caller) -> Response {
    let templates = control.dispatcher.templates();
    let CacheCounts { hits, misses, fetched_bytes, evicted, bytes, memory_bytes, .. } = control.data.cache_counts();
    control.metrics.origin.set(hits, misses, fetched_bytes, evicted, [bytes, memory_bytes]);
    let tenants = control.identity.known();
    let metered: Vec<_> = tenants.iter().map(|tenant| (tenant, control.dispatcher.metered(tenant))).collect();
    let all = metered.iter().flat_map(|(tenant, functions)| functions.iter().map(|function| (*tenant, function)));
    let began = all.filter(|(_, function)| function.meter.starts().total() > 0 || !function.meter.faults().is_empty());
    for (port, turned_away) in &control.turned_away {
        control.metrics.turned_away(port, turned_away.counts());
    }
    control.metrics.read_only.set(control.data.read_only().is_some().into());
    match control.data.outbox().waiting() {
        Ok(count) => _ = control.metrics.events.set(count),
        Err(error) => tracing::warn!(%error, "the events that wait cannot be counted"),
    }
    // What waits goes to the tenants before they are asked.
    metered.iter().flat_map(|(_, functions)| functions).for_each(|function| function.meter.settle());
    let used = tenants.iter().map(|tenant| tenant_use(tenant, &control.identity.meters().of(tenant))).collect();
    let text = control.metrics.text(
        began.map(|(tenant, function)| FunctionStarts {
            tenant,
            name: &function.name,
            resident: function.artifact.is_some_and(|artifact| templates.is_resident(tenant, artifact)),
            starts: function.meter.starts(),
            totals: totals(&function.meter.series().total()),
        }),
        used,
    );
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}

/// What a test has the node try; the target is the query.
#[cfg(debug_assertions)]
pub(super) async fn probe(
    axum::extract::Path(word): axum::extract::Path<String>,
    axum::extract::RawQuery(target): axum::extract::RawQuery,
) -> String {
    assert!(word != "panic", "planted");
    crate::process::probe::run(&word, &target.unwrap_or_default())
}

pub(super) async fn openapi(text: String) -> Response {
    ([(CONTENT_TYPE, "application/json")], text).into_response()
}

/// What the codes of problems mean, in short.
pub(super) async fn errors() -> Response {
    let mut page = String::from("<!doctype html><meta charset=utf-8><title>Errors of Hob</title><h1>Errors of Hob</h1><dl>\n");
    for code in Code::ALL {
        let status = crate::net::status::status(code).as_u16();
        page.push_str(&format!("<dt id=\"{code}\"><code>{code}</code>, status {status}<dd>{}\n", code.title()));
    }
    page.push_str("</dl>\n");
    ([(CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

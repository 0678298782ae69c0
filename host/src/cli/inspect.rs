//! `hob inspect`.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::output::{self, Format};
use super::text::{bytes, clean, span, table, time};
use super::{Ctx, Failure};
use crate::control::wire::{FunctionDetail, RevisionInfo, SecretGrantInfo, TriggerInfo, UsageInfo};
use crate::id::FunctionName;
use crate::invocation::{Phases, Start};

/// Arguments of `hob inspect`.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// Name of the function
    name: FunctionName,
}

impl Inspect {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let client = ctx.client()?;
        let detail = client.function(&self.name)?;
        let revisions = client.revisions(&self.name)?;
        if ctx.format == Format::Json {
            let mut document = serde_json::to_value(&detail).context("the daemon's answer is legal JSON")?;
            document["revisions"] = serde_json::to_value(&revisions).context("the daemon's answer is legal JSON")?;
            return Ok(output::json(&document)?);
        }
        output::raw(describe(&detail).as_bytes())?;
        output::line("\nrevisions")?;
        output::raw(table(&revisions.iter().map(row).collect::<Vec<_>>()).as_bytes())?;
        Ok(())
    }
}

fn describe(detail: &FunctionDetail) -> String {
    let function = &detail.function;
    let usage = &detail.usage;
    let mut rows = Vec::new();
    let mut add = |key: &str, value: String| {
        if !value.is_empty() {
            rows.push(vec![key.to_owned(), clean(&value)]);
        }
    };
    add("name", function.name.clone());
    add("revision", function.revision.to_string());
    add("kind", function.kind.clone());
    add("digest", function.digest.clone());
    add("wasm", bytes(function.wasm_bytes));
    add("native code", bytes(function.artifact_bytes));
    add("snapshot", function.snapshot.map_or("none".into(), |snapshot| format!("{} of memory", bytes(snapshot.memory_bytes))));
    add("answers at", format!("{}/*", function.path));
    add("routes", function.routes.join(" "));
    add("etag", function.etag.clone());
    add("created", time(function.created_ms));
    add("updated", time(function.updated_ms));
    add("tenant", detail.tenant.clone());
    add("requests need", if detail.auth == "token" { "a token".into() } else { "no token".into() });
    add("args", detail.args.join(" "));
    add("env", pairs(&detail.env));
    for grant in &detail.grants.data {
        let mount = grant.mount.as_ref().map(|mount| format!(", objects below {mount}")).unwrap_or_default();
        add("may reach", format!("bucket {}: {}{mount}", grant.bucket, grant.access));
    }
    for grant in &detail.grants.files {
        add("may reach", format!("folder {} as {}: {}", grant.host, grant.guest, grant.access));
    }
    add("files", function.files.as_ref().map(|files| format!("{} with {}", files.files, bytes(files.bytes))).unwrap_or_default());
    add("clock", detail.grants.clock.clone());
    for server in &detail.grants.http {
        add("may reach", server.clone());
    }
    for SecretGrantInfo { name, env, init } in &detail.grants.secrets {
        let variable = env.as_ref().map(|variable| format!(", as the variable {variable}")).unwrap_or_default();
        let early = if *init { ", during its initialisation too" } else { "" };
        add("may read", format!("secret {name}{variable}{early}"));
    }
    for name in &detail.grants.functions {
        add("may call", format!("function {name}, once there are calls"));
    }
    for TriggerInfo { on, bucket, prefix, attempts, dead_letter } in &detail.triggers {
        let below = if prefix.is_empty() { String::new() } else { format!(" below {prefix}") };
        let then = dead_letter.as_ref().map(|bucket| format!(", then to bucket {bucket}")).unwrap_or_default();
        add("triggered by", format!("{on} in bucket {bucket}{below}: {attempts} attempts{then}"));
    }
    add("limits", pairs(&detail.limits));
    let ready = if detail.ready == 0 { String::new() } else { format!(", {} instances ready", detail.ready) };
    add("in memory", format!("{}{ready}", if detail.resident { "yes" } else { "no" }));
    add("running", format!("{}, {} waiting", detail.running, detail.waiting));
    for start in Start::ALL {
        add(&format!("starts {}", start.as_str()), starts(usage, start.as_str()).unwrap_or_default());
    }
    add("faults", pairs(&usage.faults));
    add("used", format!("{:.1} ms of processor, {:.1} ms in all", usage.used.cpu_ms, usage.used.wall_ms));
    add("most memory", bytes(usage.used.memory_bytes_max));
    for note in &function.notes {
        add("note", note.clone());
    }
    table(&rows)
}

/// `3: p50 2.10 us, p99 7.90 us; on average queue 1.20 us, enter 2.40 us`, if any began there.
fn starts(usage: &UsageInfo, rung: &str) -> Option<String> {
    let count = usage.starts.get(rung).filter(|count| **count > 0)?;
    let Some(times) = usage.start_times.get(rung) else { return Some(count.to_string()) };
    let took = |ms: f64| span(Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default());
    let phase = |name: &&str| times.mean_ms.get(*name).map(|ms| format!("{name} {}", took(*ms)));
    let phases = Phases::NAMES.iter().filter_map(phase).collect::<Vec<_>>().join(", ");
    Some(format!("{count}: p50 {}, p99 {}; on average {phases}", took(times.p50_ms), took(times.p99_ms)))
}

fn pairs(map: &BTreeMap<String, impl Display>) -> String {
    map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

fn row(revision: &RevisionInfo) -> Vec<String> {
    vec![
        if revision.live { "*" } else { " " }.into(),
        revision.revision.to_string(),
        time(revision.created_ms),
        clean(&revision.kind),
        bytes(revision.wasm_bytes),
        clean(&revision.digest),
    ]
}

//! The route about what was used.
//!
//! Owns which functions are named and how many minutes are shown. Knows nothing about how it is counted.

use std::cmp::Reverse;
use std::time::Instant;

use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;

use super::Control;
use super::access::{Caller, for_operators};
use super::answer::{Refusal, query_fault};
use super::wire::{FunctionUsage, MinuteUsage, Problem, TenantUsage, UsageReport, UsedInfo};
use crate::dispatch::no_such_function;
use crate::fault::{Code, Fault};
use crate::id::{FunctionName, TenantId};
use crate::identity::missing;
use crate::meter::series::{MINUTES, Series, Used, minute};
use crate::quota::SPECS;
use crate::token::Scope;

/// Functions that an answer names of each tenant; what more there are is summed.
const FUNCTIONS_MAX: usize = 1000;
/// Minutes that an answer has when the request is silent.
const SHOWN: u64 = 5;

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    function: Option<String>,
    minutes: Option<u64>,
    #[serde(default)]
    all: bool,
}

/// Says what functions used: since the node started, and in each of the last minutes.
#[utoipa::path(get, path = "/v1/usage", operation_id = "usage_get", security(("token" = ["read"])),
    params(("function" = Option<String>, Query, description = "only this one"),
        ("minutes" = Option<u64>, Query, description = "minutes to show, the one that runs among them: 0 to 60; 5 when absent"),
        ("all" = Option<bool>, Query, description = "of all tenants, for an admin of `default`")),
    responses((status = 200, body = UsageReport), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn usage(
    State(control): State<Control>,
    caller: Caller,
    wanted: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<UsageReport>, Refusal> {
    let Query(wanted) = wanted.map_err(|error| query_fault(&error))?;
    let function = wanted.function.map(|name| name.parse::<FunctionName>()).transpose();
    let function = function.map_err(|error| Fault::new(Code::BadRequest, error.to_string()))?;
    if wanted.all && !caller.is_admin() {
        return Err(missing(Scope::Admin).into());
    }
    if wanted.all && !caller.is_operator {
        return Err(for_operators().into());
    }
    let tenants = if wanted.all { control.identity.known() } else { vec![caller.tenant] };
    if let (Some(name), false) = (&function, wanted.all) {
        // It may have used nothing, and a wrong name is told from that.
        control.deployer.get(tenants[0].clone(), name.clone()).await?;
    }
    let now = control.now();
    let count = wanted.minutes.unwrap_or(SHOWN);
    if count > MINUTES as u64 {
        return Err(Fault::new(Code::BadRequest, format!("'minutes' in the query is {count}: expected 0 to {MINUTES}")).into());
    }
    let first = (now.0 + 1).saturating_sub(count);
    let mut report = UsageReport { minute_ms: now.0 * 60_000, passed_ms: now.1, tenants: Vec::new() };
    report.tenants.extend(tenants.iter().map(|tenant| control.used(tenant, function.as_ref(), first)));
    if let (Some(name), true) = (&function, wanted.all) {
        report.tenants.retain(|tenant| !tenant.functions.is_empty());
        if report.tenants.is_empty() {
            return Err(no_such_function(name).into());
        }
    }
    Ok(Json(report))
}

impl Control {
    /// The minute that runs, and how many milliseconds of it have passed.
    fn now(&self) -> (u64, u64) {
        let now = minute(Instant::now());
        // By the same clock as the minutes', but for what the system's was set by since.
        (now, crate::telemetry::logs::unix_ms().saturating_sub(now * 60_000).min(60_000))
    }

    /// What a tenant used: one function of it, or all.
    fn used(&self, tenant: &TenantId, only: Option<&FunctionName>, first: u64) -> TenantUsage {
        let mut functions: Vec<(Used, Used, FunctionUsage)> = Vec::new();
        for function in self.dispatcher.metered(tenant) {
            let series = function.meter.series();
            let total = series.total();
            if only.is_some_and(|only| *only != function.name) || total.is_nothing() {
                continue;
            }
            let (recent, minutes) = minutes(series, first);
            let usage = FunctionUsage { name: function.name.to_string(), total: UsedInfo::from(&total), minutes };
            functions.push((recent, total, usage));
        }
        functions.sort_by(|a, b| (Reverse(a.0.cpu), &a.2.name).cmp(&(Reverse(b.0.cpu), &b.2.name)));
        functions.truncate(FUNCTIONS_MAX);
        let mut named = Used::default();
        functions.iter().for_each(|(_, total, _)| named.add(total));
        let meter = self.identity.meters().of(tenant);
        let refused = SPECS.iter().zip(meter.refused()).filter(|(_, count)| *count > 0);
        // After the functions, each of which has put into it what waited.
        let total = meter.series().total();
        TenantUsage {
            tenant: tenant.to_string(),
            running: meter.running(),
            memory_bytes: meter.memory_bytes(),
            total: UsedInfo::from(&total),
            minutes: minutes(meter.series(), first).1,
            other: UsedInfo::from(&total.without(&named)),
            functions: functions.into_iter().map(|(.., function)| function).collect(),
            refused: refused.map(|(spec, count)| (spec.name.to_owned(), count)).collect(),
        }
    }
}

/// Minutes from `first` on, and their sum.
fn minutes(series: &Series, first: u64) -> (Used, Vec<MinuteUsage>) {
    let mut sum = Used::default();
    let minutes = series.minutes(first).into_iter().map(|(minute, used)| {
        sum.add(&used);
        MinuteUsage { at_ms: minute * 60_000, used: UsedInfo::from(&used) }
    });
    let minutes = minutes.collect();
    (sum, minutes)
}

//! The JSON of what was used.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::invocation::Phases;
use crate::meter::series::Used;
use crate::telemetry::metrics::millis;

/// What invocations used.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct UsedInfo {
    /// Invocations that ended.
    pub invocations: u64,
    /// Processor time in milliseconds, starts and teardowns included.
    pub cpu_ms: f64,
    /// From the starts of their instances to their ends, in milliseconds.
    pub wall_ms: f64,
    /// Where the time went until their responses began, in milliseconds by phase, as in `server-timing`; phases of nothing are left out.
    #[serde(default)]
    pub phases_ms: BTreeMap<String, f64>,
    /// Bytes of request bodies that came.
    pub bytes_in: u64,
    /// Bytes of response bodies that left.
    pub bytes_out: u64,
    /// Requests to servers elsewhere.
    pub requests: u64,
    /// Operations on buckets.
    pub data_operations: u64,
    /// Most memory that one invocation had.
    pub memory_bytes_max: u64,
}

impl From<&Used> for UsedInfo {
    fn from(used: &Used) -> Self {
        let Used { invocations, cpu, wall, phases, bytes_in, bytes_out, requests, data_operations, memory_bytes_max } = *used;
        let (cpu_ms, wall_ms, phases_ms) = (millis(cpu), millis(wall), phases_ms(&phases));
        Self { invocations, cpu_ms, wall_ms, phases_ms, bytes_in, bytes_out, requests, data_operations, memory_bytes_max }
    }
}

/// Milliseconds by phase; phases of nothing are left out.
pub(in crate::control) fn phases_ms(phases: &Phases) -> BTreeMap<String, f64> {
    let times = Phases::NAMES.into_iter().zip(phases.times());
    times.filter(|(_, time)| !time.is_zero()).map(|(name, time)| (name.to_owned(), millis(time))).collect()
}

/// What was used in one minute.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MinuteUsage {
    /// When it began.
    pub at_ms: u64,
    /// What was used in it.
    #[serde(flatten)]
    pub used: UsedInfo,
}

/// What one function used.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FunctionUsage {
    /// Its name.
    pub name: String,
    /// Since the node started, or since the function was deployed anew after it was removed.
    pub total: UsedInfo,
    /// Minutes in which it used anything, the oldest first; the last may still run.
    pub minutes: Vec<MinuteUsage>,
}

/// What one tenant used.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TenantUsage {
    /// Its name.
    pub tenant: String,
    /// Invocations that run.
    pub running: u64,
    /// Guest memory that they have.
    pub memory_bytes: u64,
    /// Since the node started, functions that were removed included.
    pub total: UsedInfo,
    /// Minutes in which it used anything, the oldest first; the last may still run.
    pub minutes: Vec<MinuteUsage>,
    /// Its functions that used anything, those that used most processor time within the minutes first.
    pub functions: Vec<FunctionUsage>,
    /// What is left of the total without `functions`: functions that were removed, and those that were too many to name.
    pub other: UsedInfo,
    /// What was refused, by the quota that refused it; quotas that refused nothing are left out.
    pub refused: BTreeMap<String, u64>,
}

/// What was used.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UsageReport {
    /// When the minute began that runs, and how much of it has passed.
    pub minute_ms: u64,
    /// Milliseconds of it that have passed.
    pub passed_ms: u64,
    /// By name.
    pub tenants: Vec<TenantUsage>,
}

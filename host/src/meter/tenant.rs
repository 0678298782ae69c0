//! What a tenant used, what runs for it now, and what it may use.
//!
//! Owns the counters of each tenant and the check of its quotas. Knows no request. Invariants: a quota that was changed holds for whatever is asked
//! from then on; what is refused has changed nothing but the count of refusals; nothing here takes a lock that an invocation waits for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::series::{self, Series, Used};
use crate::fault::{Code, Fault};
use crate::id::TenantId;
use crate::quota::{LogQuota, NONE, Quota, Quotas, Rate, SPECS, TokenBucket};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// The counters of one tenant.
#[derive(Debug)]
pub struct TenantMeter {
    series: Series,
    running: AtomicU64,
    memory_bytes: AtomicU64,
    quotas: [AtomicU64; SPECS.len()],
    refused: [AtomicU64; SPECS.len()],
    invocations: TokenBucket,
    cpu: TokenBucket,
    deploys: TokenBucket,
    log: Arc<LogQuota>,
}

impl Default for TenantMeter {
    fn default() -> Self {
        Self {
            series: Series::new(&series::TENANTS),
            running: AtomicU64::new(0),
            memory_bytes: AtomicU64::new(0),
            quotas: std::array::from_fn(|_| AtomicU64::new(NONE)),
            refused: std::array::from_fn(|_| AtomicU64::new(0)),
            invocations: TokenBucket::default(),
            cpu: TokenBucket::default(),
            deploys: TokenBucket::default(),
            log: Arc::default(),
        }
    }
}

/// A place among the invocations of a tenant that run, given back when dropped.
#[derive(Debug)]
pub struct Running(Arc<TenantMeter>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl TenantMeter {
    /// What its functions used.
    #[must_use]
    pub fn series(&self) -> &Series {
        &self.series
    }

    /// Invocations that run.
    #[must_use]
    pub fn running(&self) -> u64 {
        self.running.load(Ordering::Relaxed)
    }

    /// Guest memory that they were charged, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Ordering::Relaxed)
    }

    /// What is in force; [`NONE`] where nothing is.
    #[must_use]
    pub fn quota(&self, quota: Quota) -> u64 {
        self.quotas[quota as usize].load(Ordering::Relaxed)
    }

    /// What was refused by each quota since the node started, in the order of [`SPECS`]; of logs the lines.
    #[must_use]
    pub fn refused(&self) -> [u64; SPECS.len()] {
        let mut refused = std::array::from_fn(|index| self.refused[index].load(Ordering::Relaxed));
        refused[Quota::LogBytesPerMinute as usize] = self.log.refused();
        refused
    }

    /// What its functions may log.
    #[must_use]
    pub fn log(&self) -> &Arc<LogQuota> {
        &self.log
    }

    /// Puts quotas in force.
    pub fn set(&self, quotas: &Quotas) {
        self.log.set(quotas.get(Quota::LogBytesPerMinute).unwrap_or(NONE));
        for spec in &SPECS {
            let value = quotas.get(spec.quota).unwrap_or(NONE);
            if self.quotas[spec.quota as usize].swap(value, Ordering::Relaxed) != value {
                match spec.quota {
                    Quota::InvocationsPerSecond => self.invocations.fill(),
                    Quota::CpuSecondsPerMinute => self.cpu.fill(),
                    Quota::DeploysPerHour => self.deploys.fill(),
                    _ => {}
                }
            }
        }
    }

    pub(super) fn add(&self, minute: u64, used: &Used) {
        self.series.add(minute, used);
        // A start adds its phases alone.
        if !used.cpu.is_zero()
            && let Some(rate) = self.rate(Quota::CpuSecondsPerMinute, MINUTE)
        {
            self.cpu.owe(rate, used.cpu, Instant::now());
        }
    }

    fn rate(&self, quota: Quota, time: Duration) -> Option<Rate> {
        match self.quota(quota) {
            NONE => None,
            tokens => Some(Rate { tokens, time }),
        }
    }

    /// Whether another invocation may begin, which counts as one from here on.
    ///
    /// # Errors
    /// `quota-exceeded`.
    /// # Cost
    /// A load for each quota that is not set.
    pub fn admit(&self) -> Result<(), Fault> {
        let now = |rate| (rate, Instant::now());
        if let Some((rate, now)) = self.rate(Quota::CpuSecondsPerMinute, MINUTE).map(now) {
            self.cpu.look(rate, now).map_err(|wait| self.refuse(Quota::CpuSecondsPerMinute, wait))?;
        }
        let most = self.quota(Quota::Memory);
        if most != NONE && self.memory_bytes() >= most {
            return Err(self.refuse(Quota::Memory, SECOND));
        }
        if let Some((rate, now)) = self.rate(Quota::InvocationsPerSecond, SECOND).map(now) {
            self.invocations.take(rate, 1, now).map_err(|wait| self.refuse(Quota::InvocationsPerSecond, wait))?;
        }
        Ok(())
    }

    /// A place to run.
    ///
    /// # Errors
    /// `quota-exceeded`.
    pub fn run(self: &Arc<Self>) -> Result<Running, Fault> {
        let before = self.running.fetch_add(1, Ordering::Relaxed);
        let place = Running(self.clone());
        if before >= self.quota(Quota::Concurrency) {
            return Err(self.refuse(Quota::Concurrency, SECOND));
        }
        Ok(place)
    }

    /// Whether another deploy may be made, which counts as one from here on.
    ///
    /// # Errors
    /// `quota-exceeded`.
    pub fn deploy(&self) -> Result<(), Fault> {
        match self.rate(Quota::DeploysPerHour, HOUR) {
            None => Ok(()),
            Some(rate) => self.deploys.take(rate, 1, Instant::now()).map_err(|wait| self.refuse(Quota::DeploysPerHour, wait)),
        }
    }

    /// Charges memory; `false`, and nothing charged, past the quota.
    pub(super) fn charge(&self, bytes: usize) -> bool {
        let before = self.memory_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let fits = before.saturating_add(bytes as u64) <= self.quota(Quota::Memory);
        if !fits {
            self.release(bytes);
            self.count(Quota::Memory);
        }
        fits
    }

    /// Charges memory that is there already.
    pub(super) fn note(&self, bytes: usize) {
        self.memory_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn release(&self, bytes: usize) {
        self.memory_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    fn count(&self, quota: Quota) {
        self.refused[quota as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a refusal of what waiting does not help, and says it.
    #[must_use]
    pub fn is_full(&self, quota: Quota) -> Fault {
        self.count(quota);
        exceeded(quota, self.quota(quota))
    }

    /// Counts a refusal, and says it. `wait`: until it is worth asking again.
    fn refuse(&self, quota: Quota, wait: Duration) -> Fault {
        self.count(quota);
        exceeded(quota, self.quota(quota)).retry_after(wait.min(HOUR))
    }
}

/// The fault for a quota, without when to try again.
#[must_use]
pub fn exceeded(quota: Quota, value: u64) -> Fault {
    let spec = quota.spec();
    let detail = format!("the tenant has used up its quota '{}' of {}: {}", spec.name, quota.show(value), spec.about);
    let flag = spec.name.replace('_', "-");
    // What is stored does not go by waiting.
    let (code, first) = match quota {
        Quota::BytesStored => (Code::StorageFull, "delete a bucket"),
        Quota::Functions => (Code::QuotaExceeded, "remove one"),
        _ => (Code::QuotaExceeded, "wait"),
    };
    Fault::new(code, detail).hint(format!(
        "{first}, or let the node's operator raise it: hob tenant set NAME --{flag} VALUE, or quota.{} of the node",
        spec.name
    ))
}

/// The counters of all tenants of a node.
#[derive(Debug, Default)]
pub struct Tenants {
    defaults: Quotas,
    known: Mutex<HashMap<TenantId, Arc<TenantMeter>>>,
}

impl Tenants {
    /// No tenants yet. `defaults`: quotas of whoever has none of its own.
    #[must_use]
    pub fn new(defaults: Quotas) -> Self {
        Self { defaults, known: Mutex::default() }
    }

    /// Every statement leaves the map whole.
    fn known(&self) -> MutexGuard<'_, HashMap<TenantId, Arc<TenantMeter>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_meter(&self) -> Arc<TenantMeter> {
        let meter = TenantMeter::default();
        meter.set(&self.defaults);
        Arc::new(meter)
    }

    /// That of a tenant.
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> Arc<TenantMeter> {
        let mut known = self.known();
        match known.get(tenant) {
            Some(meter) => meter.clone(),
            None => known.entry(tenant.clone()).or_insert_with(|| self.new_meter()).clone(),
        }
    }

    /// Puts the quotas of a tenant in force, at once.
    pub fn set(&self, tenant: &TenantId, own: &Quotas) {
        self.of(tenant).set(&own.or(&self.defaults));
    }

    /// Gives back the room for minutes of tenants that used nothing for an hour. `now`: the minute that runs.
    pub fn rest(&self, now: u64) {
        self.known().values().for_each(|meter| meter.series().rest(now));
    }

    /// Forgets a tenant that was removed.
    pub fn forget(&self, tenant: &TenantId) {
        self.known().remove(tenant);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(quota: Quota, value: u64) -> Arc<TenantMeter> {
        let mut quotas = Quotas::default();
        quotas.set(quota, Some(value));
        let meter = TenantMeter::default();
        meter.set(&quotas);
        Arc::new(meter)
    }

    #[test]
    fn each_quota_on_both_sides() {
        let fault = |result: Result<(), Fault>| result.unwrap_err();
        let meter = of(Quota::InvocationsPerSecond, 1);
        meter.admit().unwrap();
        let refused = fault(meter.admit());
        assert_eq!(refused.code, Code::QuotaExceeded);
        assert!(refused.detail.contains("'invocations_per_second' of 0.001"), "{}", refused.detail);
        assert!(refused.hint.unwrap().contains("--invocations-per-second"));
        assert!(refused.retry_after.unwrap() > Duration::from_secs(900));
        assert_eq!(meter.refused()[Quota::InvocationsPerSecond as usize], 1);

        let meter = of(Quota::Concurrency, 1);
        let place = meter.run().unwrap();
        assert!(meter.run().is_err() && meter.running() == 1);
        drop(place);
        drop(meter.run().unwrap());
        assert_eq!(meter.running(), 0);

        let meter = of(Quota::CpuSecondsPerMinute, 100);
        meter.add(0, &Used { cpu: Duration::from_millis(100), ..Used::default() });
        meter.admit().unwrap();
        meter.add(0, &Used { cpu: Duration::from_secs(1), ..Used::default() });
        assert!(fault(meter.admit()).detail.contains("'cpu_seconds_per_minute' of 0.1"));

        let meter = of(Quota::Memory, 100);
        assert!(meter.charge(60) && !meter.charge(41) && meter.charge(39) && meter.memory_bytes() == 99);
        meter.admit().unwrap();
        assert!(meter.charge(1));
        assert!(fault(meter.admit()).detail.contains("'memory' of 100"));

        let meter = of(Quota::DeploysPerHour, 1000);
        meter.deploy().unwrap();
        assert!(fault(meter.deploy()).detail.contains("'deploys_per_hour' of 1"));
    }

    #[test]
    fn a_change_is_in_force_at_once_and_defaults_hold_for_the_rest() {
        let tenant = TenantId::default();
        let (mut defaults, mut own) = (Quotas::default(), Quotas::default());
        defaults.set(Quota::InvocationsPerSecond, Some(1));
        defaults.set(Quota::Functions, Some(7));
        let tenants = Tenants::new(defaults);
        let meter = tenants.of(&tenant);
        meter.admit().unwrap();
        meter.admit().unwrap_err();
        own.set(Quota::InvocationsPerSecond, Some(NONE));
        tenants.set(&tenant, &own);
        assert!((0..100).all(|_| meter.admit().is_ok()) && meter.quota(Quota::Functions) == 7);
        tenants.set(&tenant, &Quotas::default());
        meter.admit().unwrap();
        meter.admit().unwrap_err();
        tenants.forget(&tenant);
        tenants.of(&tenant).admit().unwrap();
    }
}

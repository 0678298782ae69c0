//! `hob tenant`: make, list and remove tenants.
//!
//! Owns what is printed of them.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};

use super::bucket::removed;
use super::output::{self, Format};
use super::text::{clean, table, time};
use super::{Ctx, Failure};
use crate::control::wire::TenantChange;
use crate::host::HostName;
use crate::id::TenantId;
use crate::quota::{Quota, Value};

/// Arguments of `hob tenant`.
#[derive(Debug, Args)]
pub(super) struct Tenant {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a tenant, or change its hosts
    New {
        /// Name of the tenant
        name: TenantId,
        /// A host whose requests reach its functions, such as shop.example.com; as often as needed, all of them
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<HostName>,
    },
    /// Set quotas of a tenant: a value, `none` for no bound, `default` for what the node's configuration says
    Set {
        /// Name of the tenant
        name: TenantId,
        #[command(flatten)]
        quotas: Quotas,
    },
    /// List the tenants
    Ls,
    /// Remove a tenant, with its tokens, that has no functions and no buckets
    Rm {
        /// Name of the tenant
        name: TenantId,
    },
}

/// Quotas as flags. What is not named stays as it is.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Quotas {
    /// Invocations that begin in a second, such as 100 or 0.5
    #[arg(long, value_name = "N")]
    invocations_per_second: Option<String>,
    /// Invocations that run at once
    #[arg(long, value_name = "N")]
    concurrency: Option<String>,
    /// Seconds of processor time in a minute
    #[arg(long, value_name = "N")]
    cpu_seconds_per_minute: Option<String>,
    /// Guest memory of all invocations that run, such as 1GiB
    #[arg(long, value_name = "BYTES")]
    memory: Option<String>,
    /// Deploys in an hour
    #[arg(long, value_name = "N")]
    deploys_per_hour: Option<String>,
    /// Functions
    #[arg(long, value_name = "N")]
    functions: Option<String>,
    /// Bytes that all buckets may hold, by their own quotas
    #[arg(long, value_name = "BYTES")]
    bytes_stored: Option<String>,
    /// Bytes that functions log in a minute
    #[arg(long, value_name = "BYTES")]
    log_bytes_per_minute: Option<String>,
}

impl Quotas {
    fn change(self) -> TenantChange {
        let named = [
            (Quota::InvocationsPerSecond, self.invocations_per_second),
            (Quota::Concurrency, self.concurrency),
            (Quota::CpuSecondsPerMinute, self.cpu_seconds_per_minute),
            (Quota::Memory, self.memory),
            (Quota::DeploysPerHour, self.deploys_per_hour),
            (Quota::Functions, self.functions),
            (Quota::BytesStored, self.bytes_stored),
            (Quota::LogBytesPerMinute, self.log_bytes_per_minute),
        ];
        let set = |text: String| (text != "default").then_some(Value(text));
        let quotas = named.into_iter().filter_map(|(quota, text)| Some((quota.spec().name.to_owned(), set(text?))));
        TenantChange { quotas: quotas.collect() }
    }
}

/// Quotas on one line.
fn line(quotas: &BTreeMap<String, String>) -> String {
    let pairs: Vec<_> = quotas.iter().map(|(name, value)| clean(&format!("{name}={value}"))).collect();
    if pairs.is_empty() { "none".into() } else { pairs.join(" ") }
}

impl Tenant {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let client = ctx.client()?;
        match self.command {
            Command::New { name, hosts } => {
                let info = client.put_tenant(&name, hosts.iter().map(ToString::to_string).collect())?;
                if ctx.format == Format::Json {
                    return Ok(output::json(&info)?);
                }
                let hosts = if info.hosts.is_empty() { "none of its own".into() } else { clean(&info.hosts.join(" ")) };
                output::note(format!("tenant {name}, hosts: {hosts}; next: hob token new NAME --scope deploy --tenant {name}"));
                Ok(())
            }
            Command::Set { name, quotas } => {
                let info = client.change_tenant(&name, &quotas.change())?;
                if ctx.format == Format::Json {
                    return Ok(output::json(&info)?);
                }
                output::note(format!("tenant {name}, quotas in force: {}", line(&info.in_force)));
                Ok(())
            }
            Command::Rm { name } => {
                client.remove_tenant(&name)?;
                removed(ctx, &serde_json::json!({ "name": name, "removed": true }), &format!("tenant {name}"))
            }
            Command::Ls => {
                let tenants = client.tenants()?;
                if ctx.format == Format::Json {
                    return Ok(output::json(&tenants)?);
                }
                let mut rows = vec![["NAME", "HOSTS", "KEYS", "CREATED", "QUOTAS"].map(String::from).to_vec()];
                rows.extend(tenants.iter().map(|tenant| {
                    let created = if tenant.created_ms == 0 { "with the node".into() } else { time(tenant.created_ms) };
                    vec![
                        clean(&tenant.name),
                        clean(&tenant.hosts.join(" ")),
                        tenant.keys.len().to_string(),
                        created,
                        line(&tenant.in_force),
                    ]
                }));
                Ok(output::raw(table(&rows).as_bytes())?)
            }
        }
    }
}

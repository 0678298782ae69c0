//! `hob tenant`: make, list and remove tenants.
//!
//! Owns what is printed of them.

use clap::{Args, Subcommand};

use super::bucket::removed;
use super::output::{self, Format};
use super::text::{clean, table, time};
use super::{Ctx, Failure};
use crate::host::HostName;
use crate::id::TenantId;

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
    /// List the tenants
    Ls,
    /// Remove a tenant, with its tokens, that has no functions and no buckets
    Rm {
        /// Name of the tenant
        name: TenantId,
    },
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
            Command::Rm { name } => {
                client.remove_tenant(&name)?;
                removed(ctx, &serde_json::json!({ "name": name, "removed": true }), &format!("tenant {name}"))
            }
            Command::Ls => {
                let tenants = client.tenants()?;
                if ctx.format == Format::Json {
                    return Ok(output::json(&tenants)?);
                }
                let mut rows = vec![["NAME", "HOSTS", "KEYS", "CREATED"].map(String::from).to_vec()];
                rows.extend(tenants.iter().map(|tenant| {
                    let created = if tenant.created_ms == 0 { "with the node".into() } else { time(tenant.created_ms) };
                    vec![clean(&tenant.name), clean(&tenant.hosts.join(" ")), tenant.keys.len().to_string(), created]
                }));
                Ok(output::raw(table(&rows).as_bytes())?)
            }
        }
    }
}

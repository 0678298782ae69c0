//! `hob token`: make, list and remove tokens.
//!
//! Owns what is printed of them. With `--data-dir` the first token is made without a daemon, for a node that does not start without one.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::bucket::removed;
use super::failure::Exit;
use super::output::{self, Format};
use super::text::{clean, table, time};
use super::{Ctx, Failure, credentials};
use crate::artifacts::DataDir;
use crate::audit::Audit;
use crate::control::wire::{NewTokenInfo, TokenInfo, TokenRequest};
use crate::id::{TenantId, TokenName};
use crate::identity::Identity;
use crate::limits::parse_time;
use crate::registry::Registry;
use crate::token::{EXPIRES_MAX, Scope, TokenText};

/// Arguments of `hob token`.
#[derive(Debug, Args)]
pub(super) struct Token {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a token and print it, once
    New(New),
    /// List the tokens, without their texts
    Ls,
    /// Remove a token: it is worth nothing from then on
    Rm {
        /// Name of the token
        name: TokenName,
    },
}

#[derive(Debug, Args)]
struct New {
    /// Name of the token [default: admin, for the first token of a node]
    name: Option<TokenName>,
    /// What it allows: read, invoke, deploy (which can read too), admin (which can do everything) [default: admin, for the first one]
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',')]
    scopes: Vec<Scope>,
    /// How long it is worth something, such as 30days [default: for ever]
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// Keep it for this daemon, so that commands find it
    #[arg(long)]
    save: bool,
    /// Make it in the data directory of a daemon that does not run: for the first one, or if all others are lost
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Token {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        match self.command {
            Command::New(new) => new.run(ctx),
            Command::Ls => ls(ctx),
            Command::Rm { name } => {
                ctx.client()?.remove_token(&name)?;
                removed(ctx, &serde_json::json!({ "name": name, "removed": true }), &format!("token {name}"))
            }
        }
    }
}

impl New {
    fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let save = self.save;
        let made = match self.data_dir.clone() {
            Some(dir) => self.in_directory(&dir, ctx.tenant.clone().unwrap_or_default())?,
            None => {
                let Self { name, scopes, expires, .. } = self;
                let (name, scopes) = (name.map(|name| name.to_string()), scopes.iter().map(ToString::to_string).collect());
                ctx.client()?.new_token(&TokenRequest { name, scopes, expires })?
            }
        };
        // Shown first: whatever fails afterwards, nobody can show it again.
        match ctx.format {
            Format::Json => output::json(&made)?,
            Format::Text => {
                output::line(&made.token)?;
                let TokenInfo { name, tenant, scopes, .. } = &made.info;
                output::note(format!("token {name} of {tenant}: {}; it is shown this once", clean(&scopes.join(", "))));
            }
        }
        if save {
            let token: TokenText = made.token.parse().context("the daemon sent no token")?;
            let path = credentials::keep(&ctx.server, &token)?;
            output::note(format!("kept in {} for {}", path.display(), clean(&ctx.server)));
        }
        Ok(())
    }

    /// Makes a token where no daemon runs.
    fn in_directory(self, dir: &std::path::Path, tenant: TenantId) -> Result<NewTokenInfo, Failure> {
        let failed = |error: anyhow::Error| Failure::from(error).next("hob token new --help");
        let mut dir = DataDir::open(dir).map_err(|error| failed(error.into()))?;
        let registry = Registry::open(&dir.registry_path(), dir.format()).map_err(|error| failed(error.into()))?;
        dir.mark_current().map_err(|error| failed(error.into()))?;
        let audit = Audit::open(dir.path()).map_err(|error| failed(error.into()))?;
        let identity = Identity::open(Arc::new(registry), None).map_err(|error| failed(error.into()))?;
        let admin = "admin".parse().context("'admin' is a name")?;
        let name = self.name.unwrap_or(admin);
        let scopes = if self.scopes.is_empty() { vec![Scope::Admin] } else { self.scopes };
        let wrong = |text: &String| {
            Failure::new(Exit::Usage, format!("'{text}' is no time in the next ten years: expected one such as 30days"))
        };
        let expires = self
            .expires
            .as_ref()
            .map(|text| parse_time(text).filter(|time| time.as_millis() > 0 && *time <= EXPIRES_MAX).ok_or_else(|| wrong(text)));
        let expires = expires.transpose()?;
        let line = serde_json::json!({ "path": "hob token new --data-dir", "tenant": tenant, "name": name, "scopes": scopes });
        audit.append("begin", line.as_object().cloned().unwrap_or_default()).map_err(|error| failed(error.into()))?;
        let (begun, _) = audit.head();
        let made = identity.add_token(tenant, name, scopes.into_iter().collect(), expires);
        let code = made.as_ref().err().map(|fault| fault.code.as_str());
        let line = serde_json::json!({ "of": begun, "code": code });
        audit.append("end", line.as_object().cloned().unwrap_or_default()).map_err(|error| failed(error.into()))?;
        let (text, record) = made.map_err(|fault| Failure::from_fault(&fault))?;
        Ok(NewTokenInfo { info: TokenInfo::from(&record), token: text.reveal().into() })
    }
}

fn ls(ctx: &Ctx) -> Result<(), Failure> {
    let tokens = ctx.client()?.tokens()?;
    if ctx.format == Format::Json {
        return Ok(output::json(&tokens)?);
    }
    if tokens.is_empty() {
        output::note("there is no token; next: hob token new --save");
        return Ok(());
    }
    let mut rows = vec![["NAME", "SCOPES", "CREATED", "USED", "EXPIRES"].map(String::from).to_vec()];
    let shown = |at: Option<u64>, none: &str| at.map_or_else(|| none.to_owned(), time);
    rows.extend(tokens.iter().map(|token| {
        vec![
            clean(&token.name),
            clean(&token.scopes.join(",")),
            time(token.created_ms),
            shown(token.used_ms, "not lately"),
            shown(token.expires_ms, "never"),
        ]
    }));
    Ok(output::raw(table(&rows).as_bytes())?)
}

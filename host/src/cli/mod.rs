//! The command line: what people type, and what they read.
//!
//! Owns the commands, one file each, and the rules they share: data and JSON go to standard output, words for people to standard
//! error; an error is one sentence, its causes, and one command to try next; exit codes are those of [`Exit`]. Nothing asks a
//! question. Invariant: whatever a guest or a daemon says is made harmless before it reaches a terminal (`text::clean`), except a
//! response's body, which is passed as it is.

mod archive;
mod audit;
mod bench;
mod blob;
mod bucket;
mod build;
mod client;
mod credentials;
mod demo;
mod deploy;
mod doctor;
mod environment;
mod failure;
mod inspect;
mod interrupt;
mod invoke;
mod key;
mod kv;
mod logs;
mod ls;
mod new;
mod node;
mod output;
mod pack;
mod part;
mod project;
mod rm;
mod rollback;
mod run;
mod scratch;
mod secret;
mod serve;
mod tenant;
mod text;
mod token;
mod top;
mod toolchain;
mod trust;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

pub use failure::{Exit, Failure};
pub use output::Format;

use client::Client;
use trust::Trust;

use crate::id::TenantId;

/// A WebAssembly function runtime: fresh sandboxes in microseconds, next to their data.
#[derive(Debug, Parser)]
#[command(name = "hob", version, propagate_version = true, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to print: text for people, or JSON on standard output
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    /// Control port of the daemon [default: $HOB_SERVER, else http://127.0.0.1:3900]
    #[arg(long, global = true, value_name = "URL")]
    server: Option<String>,
    /// Certificates (PEM) by which a daemon that speaks TLS is known, in place of the system's [default: $HOB_CA_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// File with the token to send [default: $HOB_TOKEN, else what `hob token new --save` kept]
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// For which tenant, if the token is an operator's [default: the token's own]
    #[arg(long, global = true, value_name = "NAME")]
    tenant: Option<TenantId>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: functions answer on one port, deploys come in on the other
    Serve(serve::Serve),
    /// Run a Wasm file without a daemon: a command on this terminal, anything else as a server
    Run(run::Run),
    /// Make a new function from a template
    New(new::New),
    /// Run the build command of a function's hob.toml
    Build(build::Build),
    /// Build a function and make it live
    Deploy(deploy::Deploy),
    /// List the functions that are deployed
    Ls(ls::Ls),
    /// Show all that is known about a function
    Inspect(inspect::Inspect),
    /// Send a function one request; its answer's body goes to standard output
    Invoke(invoke::Invoke),
    /// Show what functions use, those that use most processor time first
    Top(top::Top),
    /// Show what a function logged
    Logs(logs::Logs),
    /// Make an older revision of a function live again
    Rollback(rollback::Rollback),
    /// Remove a function with all its revisions
    Rm(rm::Rm),
    /// Buckets: where functions keep their data
    Bucket(bucket::Bucket),
    /// Entries of a bucket: small values under keys
    Kv(kv::Kv),
    /// Objects of a bucket: bytes of any size under keys
    Blob(blob::Blob),
    /// Secrets: values that functions read and nobody else
    Secret(secret::Secret),
    /// Tokens: who may do what on a node
    Token(token::Token),
    /// Tenants: whose functions and data are apart
    Tenant(tenant::Tenant),
    /// Keys that deploys are signed with
    Key(key::Key),
    /// Show who changed what on the node, or check that nobody changed the log
    Audit(audit::Audit),
    /// Check that this machine has what Hob needs, and say what to do about what is missing
    Doctor(doctor::Doctor),
    /// Measure what a function's starts cost on each rung of the start ladder
    Bench(bench::Bench),
    /// Build the examples, deploy them to a daemon of their own, and send each real input
    Demo(demo::Demo),
}

/// What every command is given beside its own arguments.
#[derive(Debug)]
struct Ctx {
    format: Format,
    /// Address of the control port, as the user wrote it.
    server: String,
    /// Certificates by which its daemon is known; the system's when there is none.
    ca_file: Option<PathBuf>,
    /// File with the token, if one was named.
    token_file: Option<PathBuf>,
    /// For which tenant, if it was said.
    tenant: Option<TenantId>,
}

impl Ctx {
    fn client(&self) -> Result<Client, Failure> {
        let token = credentials::find(&self.server, self.token_file.as_deref())?;
        Client::with(&self.server, &self.trust()?, token.as_ref(), self.tenant.as_ref())
    }

    /// What both ports of the daemon speak.
    fn scheme(&self) -> &'static str {
        if self.server.starts_with("https:") { "https" } else { "http" }
    }

    fn trust(&self) -> Result<Trust, Failure> {
        self.ca_file.as_deref().map_or_else(|| Ok(Trust::default()), Trust::read)
    }
}

/// Address of the control port when nobody says otherwise.
const SERVER: &str = "http://127.0.0.1:3900";

impl Cli {
    /// Runs the command. Returns the exit code of the process: 0, or whatever a guest under `hob run` exited with.
    ///
    /// # Errors
    /// [`Failure`], to be shown by [`Failure::show`].
    pub fn run(self) -> Result<u8, Failure> {
        let server = self.server.or_else(|| environment::var("HOB_SERVER")).unwrap_or_else(|| SERVER.into());
        let ca_file = self.ca_file.or_else(|| environment::var("HOB_CA_FILE").map(PathBuf::from));
        let ctx = Ctx { format: self.output, server, ca_file, token_file: self.token_file, tenant: self.tenant };
        // These have their own ways to end.
        if !matches!(self.command, Command::Serve(_) | Command::Run(_) | Command::Demo(_) | Command::Bench(_) | Command::Top(_)) {
            interrupt::on_signal(|| ())?;
        }
        let done = match self.command {
            Command::Run(run) => return run.run(&ctx),
            Command::Serve(serve) => serve.run(&ctx),
            Command::New(new) => new.run(&ctx),
            Command::Build(build) => build.run(&ctx),
            Command::Deploy(deploy) => deploy.run(&ctx),
            Command::Ls(ls) => ls.run(&ctx),
            Command::Inspect(inspect) => inspect.run(&ctx),
            Command::Invoke(invoke) => invoke.run(&ctx),
            Command::Top(top) => top.run(&ctx),
            Command::Logs(logs) => logs.run(&ctx),
            Command::Rollback(rollback) => rollback.run(&ctx),
            Command::Rm(rm) => rm.run(&ctx),
            Command::Bucket(bucket) => bucket.run(&ctx),
            Command::Kv(kv) => kv.run(&ctx),
            Command::Blob(blob) => blob.run(&ctx),
            Command::Secret(secret) => secret.run(&ctx),
            Command::Token(token) => token.run(&ctx),
            Command::Tenant(tenant) => tenant.run(&ctx),
            Command::Key(key) => key.run(&ctx),
            Command::Audit(audit) => audit.run(&ctx),
            Command::Doctor(doctor) => doctor.run(&ctx),
            Command::Demo(demo) => demo.run(&ctx),
            Command::Bench(bench) => bench.run(&ctx),
        };
        match done {
            Err(failure) if failure.is_closed_output() => Ok(0),
            other => other.map(|()| 0),
        }
    }

    /// How the user wants things printed.
    #[must_use]
    pub fn format(&self) -> Format {
        self.output
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split(' ')).unwrap()
    }

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_before_and_after_the_command() {
        assert_eq!(parse("hob -o json ls").output, Format::Json);
        assert_eq!(parse("hob ls -o json").output, Format::Json);
        assert_eq!(parse("hob ls --server http://127.0.0.1:1").server.unwrap(), "http://127.0.0.1:1");
    }

    #[test]
    fn usage_errors_have_exit_code_2() {
        for line in ["hob nothing", "hob run", "hob new a -t perl", "hob ls -o yaml", "hob run --env A f.wasm"] {
            assert_eq!(Cli::try_parse_from(line.split(' ')).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn what_follows_the_file_is_the_guests() {
        let Command::Run(run) = parse("hob run --net f.wasm -o json --net -- x").command else { panic!("it is run") };
        assert_eq!(run.args().unwrap(), ["-o", "json", "--net", "--", "x"]);
    }
}

//! `hob serve`.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use tracing_subscriber::EnvFilter;

use super::failure::{Exit, next};
use super::output::{self, Format};
use super::{Ctx, Failure, environment};
use crate::config::{Config, Sandbox};
use crate::daemon::{Node, Ports, Process, Setup, Signals, StartError};
use crate::grants::Grants;
use crate::host::HostName;

/// Arguments of `hob serve`. A flag wins over `--set`, that over the file, and the file over the default.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Where to keep functions [default: $XDG_DATA_HOME/hob, else ~/.local/share/hob]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where functions answer; port 0 takes a free one [default: 127.0.0.1:3000]
    #[arg(long, value_name = "ADDR")]
    addr: Option<SocketAddr>,
    /// Where deploys come in; beyond loopback only with TLS and a token; port 0 takes a free one [default: 127.0.0.1:3900]
    #[arg(long, value_name = "ADDR")]
    control: Option<SocketAddr>,
    /// File with the certificate that both ports show, and those that vouch for it (PEM); read again at SIGHUP and when it changes
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// File with the key of that certificate (PEM)
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Domain below which each tenant has a host of its own: requests for TENANT.DOMAIN reach its functions
    #[arg(long, value_name = "DOMAIN")]
    base_domain: Option<HostName>,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, as often as needed: --set net.header_timeout=5s
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    settings: Vec<String>,
    /// File with the 32 bytes of the key that seals artifacts [default: made in the data directory]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Whether walls stand around the process: on (or it does not start), off, auto (as many as the kernel has) [default: auto]
    #[arg(long, value_name = "WORD", value_parser = sandbox)]
    sandbox: Option<Sandbox>,
}

fn sandbox(word: &str) -> Result<Sandbox, String> {
    Sandbox::parse(word).ok_or_else(|| "expected on, off or auto".into())
}

impl Serve {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let key_file = self.key_file.clone();
        let credentials = environment::credentials_dir();
        let config = self.config()?;
        start_tracing(ctx.format, "info");
        if config.is_open() && config.net.tls().is_none() {
            tracing::warn!(addr = %config.net.addr, "functions are reached by plain HTTP from other machines");
        }
        let setup = Setup { config, key_file, credentials, grants: Grants::default(), ports: Ports::Both, process: Process::Own };
        let node =
            Node::start(setup).map_err(|error| start_failure(error, "hob serve --addr 127.0.0.1:0 --control 127.0.0.1:0"))?;
        if node.sandbox().contains("missing") {
            tracing::warn!(sandbox = node.sandbox(), "this kernel has not all walls that stand around a node");
        }
        // Before anybody knows the address: whoever does may send a signal.
        let signals = Signals::catch().context("cannot wait for signals")?;
        announce(ctx.format, &node);
        node.run_until_signal(signals).context("cannot wait for signals")?;
        Ok(())
    }

    fn config(self) -> Result<Config, Failure> {
        let text = match &self.config {
            Some(path) => fs::read_to_string(path).with_context(|| format!("cannot read '{}'", path.display()))?,
            None => String::new(),
        };
        let mut config = Config::read(&text, &self.settings).map_err(next("hob serve --help"))?;
        config.net.addr = self.addr.unwrap_or(config.net.addr);
        config.net.control = self.control.unwrap_or(config.net.control);
        config.net.tls_cert = self.tls_cert.or(config.net.tls_cert);
        config.net.tls_key = self.tls_key.or(config.net.tls_key);
        config.net.base_domain = self.base_domain.or(config.net.base_domain);
        config.process.sandbox = self.sandbox.unwrap_or(config.process.sandbox);
        config.data.dir = self.data_dir.or(config.data.dir).or_else(environment::data_dir);
        if config.data.dir.is_none() {
            let failure = Failure::new(Exit::Failure, "there is no home directory to keep data in");
            return Err(failure.next("hob serve --data-dir DIR"));
        }
        config.check().map_err(next("hob serve --help"))?;
        Ok(config)
    }
}

/// Why a node did not start. `elsewhere`: the command that takes other ports.
pub(super) fn start_failure(error: StartError, elsewhere: &str) -> Failure {
    let next = if matches!(error, StartError::Bind(_)) { elsewhere } else { "hob doctor" };
    Failure::from(anyhow::Error::from(error)).next(next)
}

/// Says where the daemon listens, now that it does.
fn announce(format: Format, node: &Node) {
    let (addr, control, scheme) = (node.addr(), node.control_addr(), node.scheme());
    match format {
        Format::Json => {
            // Whoever started the daemon without reading its output does not need to know.
            let _ = output::json_line(&serde_json::json!({
                "addr": addr.to_string(),
                "control": control.to_string(),
                "scheme": scheme,
                "data_dir": node.data_dir().to_string_lossy(),
                "sandbox": node.sandbox(),
                "version": env!("CARGO_PKG_VERSION"),
            }));
        }
        Format::Text => {
            output::note(format!("functions  {scheme}://{addr}/NAME"));
            output::note(format!("control    {scheme}://{control}"));
            output::note(format!("data       {}", node.data_dir().display()));
            output::note(format!("sandbox    {}", node.sandbox()));
        }
    }
}

/// What the libraries that link WASI say is about what guests did, a line for each call: a guest could write the node's log full.
/// A later directive for the same target wins.
const QUIET: &str = "wasmtime_wasi=off,wasmtime_wasi_http=off,";

/// Sends what Hob notices to standard error. `HOB_LOG` says how much, such as `debug` or `hob::net=trace`; else `usual` does.
pub(super) fn start_tracing(format: Format, usual: &str) {
    let filter = environment::var("HOB_LOG").unwrap_or_else(|| usual.into());
    let filter = EnvFilter::builder().parse(format!("{QUIET}{filter}")).unwrap_or_else(|error| {
        output::note(format!("HOB_LOG is not understood and not used: {error}"));
        EnvFilter::new(format!("{QUIET}{usual}"))
    });
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // It fails only if there is a subscriber already, and then that one is wanted.
    let _ = match format {
        Format::Text => builder.with_ansi(output::coloured()).try_init(),
        Format::Json => builder.json().try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        serve: Serve,
    }

    fn config(line: &[&str]) -> Result<Config, Failure> {
        Line::try_parse_from([&["serve"], line].concat()).unwrap().serve.config()
    }

    #[test]
    fn flags_win_over_settings_and_settings_over_the_file() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("hob.toml");
        fs::write(&file, "[net]\naddr = '127.0.0.1:1'\ncontrol = '127.0.0.1:2'\nheaders_max = 3\n").unwrap();
        let file = file.to_str().unwrap();
        let line =
            ["--config", file, "--set", "net.addr=127.0.0.1:4", "--set", "net.control=127.0.0.1:5", "--addr", "127.0.0.1:6"];
        let net = config(&line).unwrap().net;
        assert_eq!((net.addr.port(), net.control.port(), net.headers_max), (6, 5, 3));
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_starts() {
        for line in [
            ["--control", "0.0.0.0:1"],
            ["--tls-cert", "cert.pem"],
            ["--set", "net.tls_key=key.pem"],
            ["--set", "net.nothing=1"],
            ["--config", "/nonexistent"],
        ] {
            assert!(config(&line).is_err(), "{line:?}");
        }
        assert_eq!(config(&["--data-dir", "12"]).unwrap().data.dir.unwrap(), PathBuf::from("12"));
    }
}

//! `hob run`: a Wasm file without a daemon and without a manifest.
//!
//! Owns the way from a file to something that runs: it is deployed, as by a daemon but without a port, into a temporary data
//! directory, by the one pipeline that there is. A command then runs on this terminal, and the directory is gone before it
//! starts; anything else is served by a node over that directory, under the route `/*`, and what it logs is shown.

mod secrets;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anyhow::Context as _;
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use clap::Args;
use tokio::runtime::{self, Runtime};
use tokio::sync::broadcast::error::RecvError;

use self::secrets::{Given, When};
use super::failure::{Exit, next};
use super::interrupt::or_signal;
use super::output::Format;
use super::scratch::Scratch;
use super::text::clean;
use super::{Ctx, Failure, logs, output, serve};
use crate::artifacts::{Artifacts, DataDir};
use crate::capability::Environment;
use crate::capability::egress::EgressAccess;
use crate::capability::secrets::SecretAccess;
use crate::config::{self, Config, Sandbox};
use crate::daemon::{Node, Ports, Setup, Signals};
use crate::deploy::{Allowed, Deployer, Sent};
use crate::dispatch::Dispatcher;
use crate::dispatch::catalog::Base;
use crate::dispatch::templates::Templates;
use crate::dispatch::templates::bounds::Bounds;
use crate::egress::{Egress, Walls};
use crate::engine::build::{Builder, Helper, check_magic};
use crate::engine::{Engine, Template};
use crate::fault::{Code, Fault};
use crate::grants::{DirGrant, Grants};
use crate::id::{FunctionName, TenantId};
use crate::limits::{Limit, Limits};
use crate::manifest::Manifest;
use crate::process::Reach;
use crate::registry::{Precondition, Registry};
use crate::route::Route;
use crate::telemetry::logs::{Entry, FunctionLog, LogSpace};
use crate::telemetry::metrics::Metrics;

/// Arguments of `hob run`.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// A variable of the guest's environment, as often as needed
    #[arg(long, value_name = "K=V", value_parser = variable)]
    env: Vec<(String, String)>,
    /// A secret that the guest may read by its name, as often as needed; NAME@FILE takes it from a file, which other users do not see
    #[arg(long = "secret", value_name = "NAME=VALUE")]
    secrets: Vec<OsString>,
    /// A folder of this machine that the guest may read and write, as often as needed
    #[arg(long, value_name = "HOST::GUEST", value_parser = folder)]
    dir: Vec<DirGrant>,
    /// Let the guest reach the network
    #[arg(long)]
    net: bool,
    /// Where a function that is served answers; port 0 takes a free one [default: 127.0.0.1:3000]
    #[arg(long, value_name = "ADDR")]
    addr: Option<SocketAddr>,
    /// A limit other than the usual one, as often as needed: --limit memory=256MiB
    #[arg(long = "limit", value_name = "NAME=VALUE")]
    limits: Vec<String>,
    /// The Wasm file, and what a command gets as its arguments
    #[arg(value_name = "FILE.wasm [ARGS]", required = true, trailing_var_arg = true)]
    file_and_args: Vec<OsString>,
}

/// Instances that a command needs at once: itself, and room for what its kind nests.
const COMMAND_INSTANCES: u32 = 4;
/// The one function that runs.
const ONE_TEMPLATE: Bounds = Bounds { count: 1, bytes: u64::MAX };
/// Most instances of a function that is served.
const SERVED_INSTANCES_MAX: u64 = 1000;
/// Largest file that is taken: the largest upload that any daemon may allow.
const FILE_LEN_MAX: u64 = 1 << 30;

impl Run {
    /// Runs the file. Returns the exit code of the process.
    pub(super) fn run(self, ctx: &Ctx) -> Result<u8, Failure> {
        serve::start_tracing(ctx.format, "warn");
        let path = PathBuf::from(&self.file_and_args[0]);
        for dir in &self.dir {
            // As a guest's folder is opened later: what cannot be opened so cannot be granted.
            if let Err(error) = Dir::open_ambient_dir(&dir.host, ambient_authority()) {
                let sentence =
                    format!("the folder '{}' cannot be shown to the guest as '{}': {error}", dir.host.display(), dir.guest);
                return Err(Failure::new(Exit::Failure, sentence).next(format!("ls -ld {}", dir.host.display())));
            }
        }
        let file = open(&path)?;
        // Which of the two applies is known only once the file was built.
        let (served, command) = (self.limits(Limits::default())?, self.limits(Limits::only_memory())?);
        let secrets = Given::read(&self.secrets)?;
        let mut manifest = self.manifest(&path, served)?;
        manifest.grants.secrets = secrets.grants(When::Served);
        let scratch = Scratch::new().context("cannot make a temporary folder")?;
        let data = scratch.path().join("data");
        let runtime = runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
        let (engine, template) = match runtime.block_on(or_signal(deploy(&data, file, manifest.clone())))? {
            Ok(built) => built.map_err(|failure| failure.context(format!("cannot run '{}'", path.display())))?,
            Err(code) => return Ok(code),
        };
        if !template.shape().kind.is_command() {
            drop((runtime, template, engine));
            secrets.keep(&data)?;
            return self.serve(ctx.format, &manifest, data).map(|()| 0);
        }
        // What was built stays mapped.
        drop(scratch);
        if self.addr.is_some() {
            let sentence =
                format!("'{}' is a command, which runs on this terminal: --addr is for what is served", path.display());
            return Err(Failure::new(Exit::Usage, sentence).next(format!("hob run {}", path.display())));
        }
        let (args, mut env, grants, egress) = (self.argv(&path)?, self.env.clone(), self.grants(), self.egress()?);
        env.extend(secrets.variables());
        let secrets = Arc::new(SecretAccess::of_build(&secrets.grants(When::Command), secrets.into_values()));
        let environment = Environment { args, env, grants, egress, secrets, ..Environment::default() };
        on_terminal(runtime, &engine, &template, environment, &command)
    }

    /// Serves what was deployed into `data` until a signal.
    fn serve(self, format: Format, manifest: &Manifest, data: PathBuf) -> Result<(), Failure> {
        let mut config = Config::default();
        config.net.addr = self.addr.unwrap_or(config.net.addr);
        config.net.control = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        config.data.dir = Some(data);
        let instances = manifest.limits.get(Limit::Concurrency).min(SERVED_INSTANCES_MAX);
        config.engine.instances_max = u32::try_from(instances).unwrap_or(COMMAND_INSTANCES);
        let file = self.file_and_args[0].display().to_string();
        // First: the signals that the build listened to end nothing any more.
        let signals = Signals::catch().context("cannot wait for signals")?;
        let node =
            Node::start(Setup { config, key_file: None, grants: self.grants(), ports: Ports::DataOnly, ..Setup::default() })
                .map_err(|error| serve::start_failure(error, &format!("hob run --addr 127.0.0.1:0 {file}")))?;
        output::note(format!("serving http://{}", node.addr()));
        let shown = show_log(&node, manifest)?;
        if format == Format::Json {
            // Whoever started it without reading its output does not need to know.
            let _ = output::json_line(&serde_json::json!({ "addr": node.addr().to_string() }));
        }
        node.run_until_signal(signals).context("cannot wait for signals")?;
        // The log went with the node, unless something of it still ends; that must not hold up the exit.
        let _ended = shown.recv_timeout(Duration::from_secs(1));
        Ok(())
    }

    fn manifest(&self, path: &Path, limits: Limits) -> Result<Manifest, Failure> {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase().replace(['_', '.', ' '], "-");
        let name: FunctionName = stem.parse().or_else(|_| "function".parse()).context("a word is a name")?;
        let route = Route::new("/*", None, None).context("everything is a route")?;
        let env = BTreeMap::from_iter(self.env.iter().cloned());
        Ok(Manifest { name: Some(name), route: vec![route], args: self.args()?, env, limits, ..Manifest::default() })
    }

    /// What a command reaches over HTTP: with `--net` everything, as by sockets.
    fn egress(&self) -> Result<Arc<EgressAccess>, Failure> {
        if !self.net {
            return Ok(Arc::default());
        }
        let walls = Walls { is_down: true, ..Walls::default() };
        let egress = Egress::start(&config::Egress::default(), walls).context("cannot start what sends requests")?;
        Ok(Arc::new(EgressAccess::any(&egress)))
    }

    fn grants(&self) -> Grants {
        Grants { net: self.net, dirs: self.dir.clone() }
    }

    /// What a command gets as its arguments, its own name first.
    fn argv(&self, path: &Path) -> Result<Vec<String>, Failure> {
        let mut args = vec![path.file_name().unwrap_or_default().to_string_lossy().into_owned()];
        args.extend(self.args()?);
        Ok(args)
    }

    /// What follows the file on the command line.
    ///
    /// # Errors
    /// When it is not UTF-8: a guest knows no other text.
    pub(super) fn args(&self) -> Result<Vec<String>, Failure> {
        let text = |arg: &OsString| {
            let wrong =
                || Failure::new(Exit::Usage, format!("the argument '{}' is not UTF-8", arg.display())).next("hob run --help");
            arg.clone().into_string().map_err(|_| wrong())
        };
        self.file_and_args[1..].iter().map(text).collect()
    }

    fn limits(&self, mut limits: Limits) -> Result<Limits, Failure> {
        for setting in &self.limits {
            let (name, value) = setting.split_once('=').ok_or_else(|| {
                let sentence = format!("--limit '{setting}' sets nothing: expected NAME=VALUE, such as memory=256MiB");
                Failure::new(Exit::Usage, sentence).next("hob run --help")
            })?;
            limits.set(name, value).map_err(next("hob run --help")).map_err(|failure: Failure| failure.exit(Exit::Usage))?;
        }
        Ok(limits)
    }
}

/// Shows on standard error what the served function logs: there is no port at which `hob logs` could ask for it. The receiver hears
/// the end of the thread that does, which comes with the end of the node.
fn show_log(node: &Node, manifest: &Manifest) -> Result<Receiver<Infallible>, Failure> {
    let name = manifest.name.as_ref().context("it was given a name")?;
    let function = node.dispatcher().function(&TenantId::default(), name);
    let function = function.map_err(|fault| Failure::from_fault(&fault))?;
    let (entries, mut feed) = function.log.follow(usize::MAX);
    let (sender, ended) = sync_channel(0);
    let show = |entry: &Entry| output::note(logs::show(&entry.into()).trim_end());
    let body = move || {
        let _ends_with_the_thread = sender;
        entries.iter().for_each(|entry| show(entry));
        loop {
            match feed.blocking_recv() {
                Ok(entry) => show(&entry),
                Err(RecvError::Lagged(count)) => output::note(format!("{count} entries were lost: this terminal is too slow")),
                Err(RecvError::Closed) => break,
            }
        }
    };
    std::thread::Builder::new().name("hob-log".into()).spawn(body).context("cannot start a thread")?;
    Ok(ended)
}

/// Opens the file, if it can be one that holds a module.
fn open(path: &Path) -> Result<File, Failure> {
    let shown = path.display();
    let missing = |error: std::io::Error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failure };
        Failure::from(error).context(format!("cannot open '{shown}'")).exit(exit).next("hob run --help")
    };
    // Looked at first, because opening a pipe waits for its other end.
    let meta = std::fs::metadata(path).map_err(missing)?;
    let refuse = |what: &str| Err(Failure::new(Exit::Failure, format!("'{shown}' {what}")).next("hob run --help"));
    match meta.len() {
        _ if meta.is_dir() => refuse("is a folder, not a Wasm file"),
        _ if !meta.is_file() => refuse("is a device or pipe, not a Wasm file"),
        len if len > FILE_LEN_MAX => refuse("has more than 1 GiB"),
        _ => File::open(path).map_err(missing),
    }
}

/// Deploys a file into a new data directory and loads it.
async fn deploy(data: &Path, file: File, manifest: Manifest) -> Result<(Engine, Arc<Template>), Failure> {
    let refused = |fault: Fault| Failure::from_fault(&fault).next("hob new NAME");
    let mut file = file.take(FILE_LEN_MAX);
    let mut wasm = Vec::new();
    file.read_to_end(&mut wasm).context("it cannot be read")?;
    check_magic(&wasm).map_err(|why| refused(why.into_fault()))?;
    let dir = DataDir::open(data).context("cannot use a temporary folder")?;
    let key = dir.mac_key(None).context("cannot make a key")?;
    let registry = Arc::new(Registry::open(&dir.registry_path(), dir.format()).context("cannot use a temporary folder")?);
    let artifacts = Artifacts::open(&dir, key, u64::MAX).context("cannot use a temporary folder")?;
    let engine = config::Engine { instances_max: COMMAND_INSTANCES, ..config::Engine::default() };
    let engine =
        Engine::new(&engine, Arc::new(Metrics::new())).map_err(anyhow::Error::from).context("the engine cannot start")?;
    let mut reach = Reach::of_system();
    reach.write(dir.path());
    let helper = Helper::start(Path::new(Helper::SELF), Sandbox::Auto, &reach)
        .context("the process that starts builds cannot be started")?;
    let builder = Arc::new(Builder::new(helper, config::Build::default()).context("cannot start a thread")?);
    let templates = Templates::new(engine.clone(), artifacts.clone(), registry.clone(), builder.clone(), ONE_TEMPLATE);
    let base = Base {
        logs: LogSpace::new(0, 0),
        grants: Grants::default(),
        data: None,
        files: None,
        egress: None,
        secrets: None,
        identity: None,
    };
    let dispatcher = Dispatcher::new(engine.clone(), templates, registry.clone(), base, 1, 0)
        .context("cannot read the registry of a temporary folder")?;
    let deployer = Deployer::new(artifacts, registry, None, builder, engine.clone(), dispatcher.clone(), config::Data::default());
    let mut upload = deployer.create_upload().map_err(refused)?;
    let uploaded = upload.write(&wasm).and_then(|()| upload.finish()).context("cannot keep a copy in the temporary folder")?;
    let (tenant, name) = (TenantId::default(), manifest.name.clone().context("it was given a name")?);
    let sent = Sent { wasm: uploaded, bundle: None, manifest };
    deployer.deploy(tenant.clone(), name.clone(), sent, Precondition::Any, Allowed::LOCAL).await.map_err(refused)?;
    let function = dispatcher.function(&tenant, &name).map_err(refused)?;
    let loaded = dispatcher.templates().get(&function, None).await.map_err(refused)?;
    Ok((engine, loaded.template))
}

fn on_terminal(
    runtime: Runtime,
    engine: &Engine,
    template: &Arc<Template>,
    environment: Environment,
    limits: &Limits,
) -> Result<u8, Failure> {
    let log = Arc::new(FunctionLog::new(LogSpace::new(1 << 20, 1 << 20)));
    let run = async {
        let ended = engine.run_on_terminal(template, environment, limits, log.clone()).await;
        ended.map_err(|mut fault| {
            for entry in log.tail(usize::MAX) {
                output::note(clean(&entry.text));
            }
            if fault.code == Code::GuestTrap {
                // It says where the log is, and this is all of it.
                fault.hint = None;
            }
            Failure::from_fault(&fault).next("hob run --help")
        })
    };
    let ended = runtime.block_on(or_signal(run));
    // A thread may still wait for standard input, for ever.
    runtime.shutdown_background();
    match ended? {
        Ok(ended) => ended.map(exit_code),
        Err(code) => Ok(code),
    }
}

/// A guest's exit code as the system has them. One that would become 0 by losing its upper bits is an error still.
fn exit_code(code: i32) -> u8 {
    match u8::try_from(code & 0xff).unwrap_or(1) {
        0 if code != 0 => 1,
        code => code,
    }
}

/// Reads `K=V`.
fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("expected NAME=VALUE".into()),
    }
}

/// Reads `HOST::GUEST`, or one folder that has the same name on both sides.
fn folder(text: &str) -> Result<DirGrant, String> {
    let (host, guest) = text.split_once("::").unwrap_or((text, text));
    if host.is_empty() || guest.is_empty() {
        return Err("expected HOST::GUEST".into());
    }
    Ok(DirGrant { host: host.into(), guest: guest.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_pass_through() {
        for (code, expected) in [(0, 0), (3, 3), (255, 255), (256, 1), (-1, 255), (i32::MIN, 1)] {
            assert_eq!(exit_code(code), expected, "{code}");
        }
    }

    #[test]
    fn variables_and_folders_are_read() {
        assert_eq!(variable("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        assert_eq!(folder("/a::/b").unwrap(), DirGrant { host: "/a".into(), guest: "/b".into() });
        assert_eq!(folder(".").unwrap().guest, ".");
        for bad in ["", "=x", "A"] {
            assert!(variable(bad).is_err(), "{bad}");
        }
        assert!(folder("").is_err() && folder("::/b").is_err() && folder("a::").is_err());
    }

    #[test]
    fn odd_files_are_refused_in_a_sentence() {
        let temp = tempfile::tempdir().unwrap();
        for (path, code) in [(Path::new("/nonexistent.wasm"), 3), (temp.path(), 1), (Path::new("/dev/null"), 1)] {
            assert_eq!(open(path).map(drop).unwrap_err().code(), code, "{}", path.display());
        }
    }
}

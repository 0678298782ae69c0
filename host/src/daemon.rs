//! The daemon: builds all parts in order, runs them, stops them in reverse.
//!
//! Owns the threads: one for each core that serves connections and runs guests, one for the control port, so that it answers
//! while every data thread is busy. The only module that sees everything. Invariant: when [`Node::start`] returns, both ports take
//! requests and every acknowledged deploy answers.

mod enclose;
mod signals;
mod threads;

pub use enclose::Process;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Handle;

use crate::artifacts::{ArtifactError, Artifacts, DataDir, DataDirError};
use crate::audit::{Audit, AuditError};
use crate::capability::files::{FolderError, Folders};
use crate::config::{Config, ConfigError, Net};
use crate::control::{Answers, Control, FirstStart, InHand};
use crate::data::objects::{ObjectLimits, Origins};
use crate::data::{Clock, Data, DataConfig, DataError};
use crate::deploy::{Allowed, Deployer, Outside, Sent};
use crate::dispatch::Dispatcher;
use crate::dispatch::catalog::Base;
use crate::dispatch::files::Files;
use crate::dispatch::templates::Templates;
use crate::dispatch::templates::bounds::Bounds;
use crate::dispatch::used::UseOrder;
use crate::egress::{Egress, EgressStartError, Walls};
use crate::engine::build::Builder;
use crate::engine::{ENGINE_VERSION, Engine};
use crate::fault::Fault;
use crate::grants::Grants;
use crate::id::{FunctionName, TenantId};
use crate::identity::Identity;
use crate::invocation::Invoke;
use crate::manifest::Manifest;
use crate::net::drain::Drain;
use crate::net::listener::{self, BindError};
use crate::net::places;
use crate::net::serve::{Options, Relief};
use crate::net::tls::{Tls, TlsError};
use crate::process::WallError;
use crate::registry::{FunctionRecord, Precondition, Registry, RegistryError};
use crate::secrets::{Places, Secrets};
use crate::telemetry::logs::{Level, LogSink, LogSpace};
use crate::telemetry::metrics::Metrics;
use crate::trigger::{Tell, Triggers};
pub use signals::Signals;
use threads::{DataPlane, Used, start_control_thread, start_data_threads, start_trigger_thread};

/// Why a node did not start. Nothing was left running, and nothing was changed in the data directory.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No data directory was named, and none follows from the environment.
    #[error("there is no place for data: expected --data-dir DIR, or HOME or XDG_DATA_HOME in the environment")]
    NoDataDir,
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The buckets in it.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The audit log in it.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// Whoever reaches the control port would be its operator.
    #[error(
        "the control port {addr} can be reached from other machines, and there is no token yet, so whoever comes first would own this node; make one with: hob token new --data-dir {}", .dir.display()
    )]
    NoToken {
        /// Where it would be.
        addr: SocketAddr,
        /// The data directory.
        dir: PathBuf,
    },
    /// Files in it.
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    /// The registry in it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A folder that functions may be granted.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The engine.
    #[error("the engine cannot start: {0}; lower engine.instances_max if addresses are short")]
    Engine(String),
    /// A place of secrets.
    #[error(transparent)]
    Secrets(#[from] crate::secrets::OpenError),
    /// Outbound requests.
    #[error(transparent)]
    Egress(#[from] EgressStartError),
    /// A thread or a runtime.
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
    /// The system gives too few descriptors.
    #[error(
        "the system lets this process open {limit} files, and with {threads} data threads it needs {needed}; raise it: ulimit -n {needed}"
    )]
    Descriptors {
        /// As many as it may have at most.
        limit: u64,
        /// Data threads, which is what the need goes by.
        threads: usize,
        /// As many as it must have.
        needed: u64,
    },
    /// The process that starts builds.
    #[error("the process that starts builds cannot be started: {0}")]
    Helper(std::io::Error),
    /// A wall around the process.
    #[error(transparent)]
    Wall(#[from] WallError),
    /// Core files cannot be forbidden.
    #[error("core files cannot be forbidden: {0}")]
    Dumps(std::io::Error),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// What a node is started with.
#[derive(Debug, Default)]
pub struct Setup {
    /// Its configuration; `data.dir` must be set.
    pub config: Config,
    /// File with the key that seals artifacts; made in the data directory when absent.
    pub key_file: Option<PathBuf>,
    /// Folder in which systemd shows the credentials of the service.
    pub credentials: Option<PathBuf>,
    /// What every function may reach: nothing, but under `hob run --net` and `--dir`.
    pub grants: Grants,
    /// Which ports open.
    pub ports: Ports,
    /// Whose the process is.
    pub process: Process,
}

/// Which ports a node opens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ports {
    /// Both.
    #[default]
    Both,
    /// The data port alone: `hob run` of a served file, which nobody deploys to.
    DataOnly,
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    addr: SocketAddr,
    control_addr: SocketAddr,
    scheme: &'static str,
    data: Arc<Data>,
    drain: Drain,
    /// Lets the data threads go, once the control port has no invocation on them any more.
    release: Drain,
    threads: Vec<JoinHandle<usize>>,
    control_thread: JoinHandle<usize>,
    trigger_thread: JoinHandle<usize>,
    deployer: Deployer,
    dispatcher: Dispatcher,
    data_plane: Arc<DataPlane>,
    control: Handle,
    metrics: Arc<Metrics>,
    used: Used,
    sandbox: String,
    /// Keeps the lock on the directory. Last, because fields are dropped in their order: the deployer and the dispatcher have the data too.
    dir: DataDir,
}

impl Node {
    /// Starts a node.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    /// # Cost
    /// Some 30 ms, and 2 us for each deployed function: the check of the registry.
    pub fn start(setup: Setup) -> Result<Self, StartError> {
        let Setup { config, key_file, credentials, grants, ports, process } = setup;
        config.check()?;
        let (data_max, control_max) = places::most(&config.net, descriptors(&config)?);
        let tls = config.net.tls().map(|(cert, key)| Tls::open(cert, key)).transpose()?;
        let mut dir = DataDir::open(config.data.dir.as_deref().ok_or(StartError::NoDataDir)?)?;
        let [(addr, listeners), (control_addr, control_listeners)] = bind(&config, ports)?;
        let (helper, mut walls) = enclose::enclose(&config, dir.path(), key_file.as_deref(), credentials.as_deref(), process)?;
        let registry = Arc::new(Registry::open(&dir.registry_path(), dir.format())?);
        dir.mark_current()?;
        let (identity, first_start, audit) = identify(&registry, &config, ports, control_addr, dir.path())?;
        let data = Arc::new(open_data(&dir, &config, &registry)?);
        let (artifacts, secrets) = open_sealed(&dir, &config, key_file.as_deref(), credentials.as_deref())?;
        let (engine, metrics) = start_engine(&config, &artifacts)?;
        let (builder, bounds) = (Arc::new(Builder::new(helper, config.build.clone())?), Bounds::find(&config));
        let templates = Templates::new(engine.clone(), artifacts.clone(), registry.clone(), builder.clone(), bounds);
        let node = getrandom::u64().map_err(StartError::Random)?;
        let egress = Some(start_egress(&config.egress, &grants, [addr, control_addr])?);
        let base = Base { egress, identity: Some(identity.clone()), ..base(&config, grants, &data, &artifacts, &secrets)? };
        let outside = base.files.clone().map(|files| Outside { data: data.clone(), files, secrets: secrets.clone() });
        let dispatcher =
            Dispatcher::new(engine.clone(), templates, registry.clone(), base, config.engine.functions_hot_max, node)?;
        let deployer = Deployer::new(artifacts, registry, outside, builder, engine, dispatcher.clone(), config.data.clone());
        let ((drain, stop), (release, released)) = (Drain::new(), Drain::new());
        let [options, control_options] = [data_max, control_max].map(|most| options_of(&config.net, most, &tls, &dispatcher));
        enclose::close(&mut walls, &metrics)?;
        let (threads, data_plane) = start_data_threads(listeners, &options, (&dispatcher, &identity), &stop, &released)?;
        let triggers =
            Triggers { invoke: data_plane.clone(), data: data.clone(), tell: tell(dispatcher.clone()), metrics: metrics.clone() };
        let trigger_thread = start_trigger_thread(triggers, stop.clone(), config.net.drain_timeout.0)?;
        let service = Control {
            deployer: deployer.clone(),
            dispatcher: dispatcher.clone(),
            invoke: data_plane.clone(),
            data: data.clone(),
            secrets,
            metrics: metrics.clone(),
            turned_away: [("data", options.turned_away.clone()), ("control", control_options.turned_away.clone())],
            stop: stop.clone(),
            places: Arc::default(),
            in_hand: InHand::new(control_max),
            answers: Answers::new(&config.data),
            sandbox: walls.to_string().into(),
            engine_version: ENGINE_VERSION,
            set: config.set.into(),
            data_addr: addr,
            identity,
            first_start,
            audit,
        };
        let used = Used(Arc::new(Mutex::new(UseOrder::open(dir.path()))), dispatcher.clone());
        let (control_thread, control) = start_control_thread(control_listeners, control_options, service, used.clone(), stop)?;
        Ok(Self {
            addr,
            control_addr,
            scheme: if tls.is_some() { "https" } else { "http" },
            data,
            dir,
            drain,
            release,
            threads,
            control_thread,
            trigger_thread,
            deployer,
            dispatcher,
            data_plane,
            control,
            metrics,
            used,
            sandbox: walls.to_string(),
        })
    }

    /// Which walls stand around the process, in words for an operator.
    #[must_use]
    pub fn sandbox(&self) -> &str {
        &self.sandbox
    }

    /// Where functions are reached.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where functions are deployed; only configured, not open, with [`Ports::DataOnly`].
    #[must_use]
    pub fn control_addr(&self) -> SocketAddr {
        self.control_addr
    }

    /// `https` when both ports speak TLS, else `http`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    /// The buckets of this node.
    #[must_use]
    pub fn data(&self) -> &Arc<Data> {
        &self.data
    }

    /// What runs invocations on the calling thread, inside a tokio runtime: for measuring without HTTP.
    #[must_use]
    pub fn dispatcher(&self) -> &Dispatcher {
        &self.dispatcher
    }

    /// What runs invocations on the data threads, each in its turn.
    #[must_use]
    pub fn data_plane(&self) -> Arc<dyn Invoke> {
        self.data_plane.clone()
    }

    /// Deploys a file without the control port. Blocks; not to be called from a runtime.
    ///
    /// # Errors
    /// As [`Deployer::deploy`].
    pub fn deploy_file(&self, name: FunctionName, wasm: &Path, manifest: Manifest) -> Result<FunctionRecord, Fault> {
        self.deploy_file_of(TenantId::default(), name, wasm, manifest)
    }

    /// The same for another tenant.
    ///
    /// # Errors
    /// As [`Deployer::deploy`].
    pub fn deploy_file_of(
        &self,
        tenant: TenantId,
        name: FunctionName,
        wasm: &Path,
        manifest: Manifest,
    ) -> Result<FunctionRecord, Fault> {
        let bytes = std::fs::read(wasm).map_err(Fault::internal)?;
        let mut upload = self.deployer.create_upload()?;
        upload.write(&bytes).map_err(|error| error.fault())?;
        let uploaded = upload.finish().map_err(|error| error.fault())?;
        let sent = Sent { wasm: uploaded, bundle: None, manifest };
        let deploy = self.deployer.deploy(tenant, name, sent, Precondition::Any, Allowed::LOCAL);
        self.control.block_on(deploy).map(|(record, _)| record)
    }

    /// Blocks until SIGTERM or SIGINT, then drains. A second signal ends the process at once.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn run_until_signal(self, signals: Signals) -> std::io::Result<()> {
        signals.wait()?;
        self.stop();
        Ok(())
    }

    /// Drains: what was accepted finishes, for at most `net.drain_timeout`; then everything stops. Returns how many connections
    /// had to be cut.
    pub fn stop(self) -> usize {
        self.drain.stop();
        let mut cut = self.control_thread.join().unwrap_or_default();
        let late = self.trigger_thread.join().unwrap_or_default();
        if late > 0 {
            tracing::warn!(late, "deliveries of events were cut: they are made again after the next start");
        }
        self.release.stop();
        cut += self.threads.into_iter().map(|thread| thread.join().unwrap_or_default()).sum::<usize>();
        self.used.remember();
        if cut > 0 {
            self.metrics.cut.inc_by(cut as u64);
            tracing::warn!(cut, "connections were cut: they did not finish in time");
        }
        cut
    }
}

/// The addresses and listening sockets of the data port, one socket for each of its threads, and of the control port.
fn bind(config: &Config, ports: Ports) -> Result<[(SocketAddr, Vec<std::net::TcpListener>); 2], BindError> {
    let control = match ports {
        Ports::Both => |addr| listener::bind(addr, 1),
        Ports::DataOnly => |addr| Ok((addr, Vec::new())),
    };
    Ok([listener::bind(config.net.addr, data_threads(config))?, control(config.net.control)?])
}

fn data_threads(config: &Config) -> usize {
    match config.engine.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

/// What all functions have in common.
fn base(
    config: &Config,
    grants: Grants,
    data: &Arc<Data>,
    artifacts: &Artifacts,
    secrets: &Arc<Secrets>,
) -> Result<Base, StartError> {
    let logs = LogSpace::new(size(config.logs.total_bytes), size(config.logs.function_bytes));
    let own: Vec<&Path> = [&config.data.dir, &config.secrets.dir].into_iter().flatten().map(PathBuf::as_path).collect();
    let files = Files::new(artifacts.clone(), Arc::new(Folders::open(&config.folder, &own)?));
    let (data, secrets) = (Some(data.clone()), Some(secrets.clone()));
    Ok(Base { logs, grants, data, files: Some(files), egress: None, secrets, identity: None })
}

/// Who is known, who may use the control port as long as nobody is, and where it is written down what they do.
fn identify(
    registry: &Arc<Registry>,
    config: &Config,
    ports: Ports,
    control: SocketAddr,
    dir: &Path,
) -> Result<(Arc<Identity>, FirstStart, Arc<Audit>), StartError> {
    let identity = Arc::new(Identity::open_with(registry.clone(), config.net.base_domain.as_ref(), config.quota)?);
    let first_start = if control.ip().is_loopback() { FirstStart::Open } else { FirstStart::Closed };
    if ports == Ports::Both && first_start == FirstStart::Closed && identity.is_open() {
        return Err(StartError::NoToken { addr: control, dir: dir.to_owned() });
    }
    Ok((identity, first_start, Arc::new(Audit::open(dir)?)))
}

/// What runs guests, and where it counts.
fn start_engine(config: &Config, artifacts: &Artifacts) -> Result<(Engine, Arc<Metrics>), StartError> {
    let metrics = Arc::new(Metrics::new());
    metrics.data_bytes.set(artifacts.used_bytes());
    let engine = Engine::new(&config.engine, metrics.clone()).map_err(|error| StartError::Engine(format!("{error:#}")))?;
    Ok((engine, metrics))
}

/// What the node's key is for.
fn open_sealed(
    dir: &DataDir,
    config: &Config,
    key_file: Option<&Path>,
    credentials: Option<&Path>,
) -> Result<(Artifacts, Arc<Secrets>), StartError> {
    let key = dir.mac_key(key_file)?;
    let places = Places { folder: config.secrets.dir.as_deref(), credentials };
    let secrets = Secrets::open(dir.path(), &key.derive(crate::secrets::KEY_CONTEXT), places)?;
    Ok((Artifacts::open(dir, key, config.data.bytes_max.0)?, Arc::new(secrets)))
}

fn open_data(dir: &DataDir, config: &crate::config::Config, registry: &Registry) -> Result<Data, StartError> {
    let (config, opened) = (&config.data, config.origin.clone());
    let object_bytes_max = config.object_bytes_max.0;
    let objects = |bytes: crate::config::Bytes| ObjectLimits { object_bytes_max, bytes_max: bytes.0 };
    let sizes = DataConfig {
        page_cache_bytes: size(config.page_cache_bytes),
        kv_cache_bytes: size(config.kv_cache_bytes),
        volatile_bytes_max: config.volatile_bytes_max.0,
        events_max: config.events_max,
        durable_objects: objects(config.objects_bytes_max),
        volatile_objects: objects(config.volatile_objects_bytes_max),
    };
    let (cache, memory_bytes_max) = (objects(config.cache_bytes_max), config.cache_memory_bytes_max.0);
    let origins = Origins { opened, cache, memory_bytes_max, requests_max: config.origin_requests_max };
    let data = Data::open_with(&dir.data_path(), sizes, &origins, Clock::system())?;
    data.outbox().begin(&registry.triggers()?)?;
    Ok(data)
}

/// Starts what sends requests of functions. `own`: where this node answers.
fn start_egress(config: &crate::config::Egress, grants: &Grants, own: [SocketAddr; 2]) -> Result<Egress, EgressStartError> {
    let own_ports = own.map(|addr| addr.port()).into();
    Egress::start(config, Walls { opened: config.allow.clone(), own_ports, is_down: grants.net })
}

fn size(bytes: crate::config::Bytes) -> usize {
    usize::try_from(bytes.0).unwrap_or(usize::MAX)
}

/// How many descriptors there are, once the soft limit is raised to the hard one: each connection and each file is one, and the usual soft
/// limit of 1,024 is for programs that use `select`.
///
/// # Errors
/// There are fewer than a node has open before anybody came, 31 and 5 for each data thread, and some with which to answer.
fn descriptors(config: &Config) -> Result<u64, StartError> {
    let limit = getrlimit(Resource::Nofile).maximum;
    let threads = data_threads(config);
    let needed = 48 + 5 * threads as u64;
    if let Some(limit) = limit.filter(|limit| *limit < needed) {
        return Err(StartError::Descriptors { limit, threads, needed });
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    Ok(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
}

/// Writes to the log of a function that is deployed still.
fn tell(dispatcher: Dispatcher) -> Tell {
    Arc::new(move |lane, id, text| {
        if let Ok(function) = dispatcher.function(&lane.tenant, &lane.function) {
            LogSink::new(function.log.clone(), id, function.revision.number, 0).host(Level::Warn, text);
        }
    })
}

/// The bounds of a port. Where it has no descriptor for a connection, templates make room.
fn options_of(net: &Net, most: usize, tls: &Option<Arc<Tls>>, dispatcher: &Dispatcher) -> Options {
    let templates = dispatcher.templates().clone();
    Options { relief: Relief::by(move || templates.relieve()), ..Options::new(net, most, tls.clone()) }
}

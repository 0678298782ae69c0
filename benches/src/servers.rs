//! Servers as child processes: bare hyper, a node of Hob, and the other halves of some scenarios.
//!
//! The benchmark starts itself again in another role, so that server and load do not share a process, and each can have a core
//! of its own. A child prints one line when it is ready and ends when its standard input does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use bytes::Bytes;
use hob::config::Config;
use hob::daemon::{Node, Setup};
use http::Response;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::guests::Guest;
use crate::{handoff, serving, walls};

/// What a child is to be.
#[derive(Debug)]
pub(crate) enum Role {
    /// Hyper with a constant answer: the ceiling of anything that speaks HTTP through it. Its header timeout is on, because
    /// without one a server can be stopped by silence, and it flushes pipelined answers together.
    Hyper,
    /// A node of Hob with one data thread and these examples, deployed as their `hob.toml` says.
    Hob(Vec<String>),
    /// A node of Hob on this data directory, on all cores, with settings of the form `engine.templates_max=20`, and these guests.
    Node { data_dir: PathBuf, settings: Vec<String>, guests: Vec<String> },
    /// A node with one data thread and the hello handler, with all walls or without, of scenario `walls`.
    Walls(bool),
    /// The other end of the socket that lies here, of scenario `handoff`.
    Pair(PathBuf),
    /// A worker of scenario `serving` at this Redis.
    Worker(SocketAddr),
    /// A program of others, which ends when this process does; the child of that process, program and arguments.
    Leashed { parent: i32, command: Vec<String> },
}

pub(crate) const ROLE: &str = "bench-server";

/// The role in the command line, if this process is such a child.
pub(crate) fn role_of_child() -> Option<Role> {
    let mut args = std::env::args().skip(1);
    if args.next()? != ROLE {
        return None;
    }
    match args.next()?.as_str() {
        "hyper" => Some(Role::Hyper),
        "walls" => Some(Role::Walls(args.next()? == "on")),
        "pair" => Some(Role::Pair(args.next()?.into())),
        "leashed" => Some(Role::Leashed { parent: args.next()?.parse().ok()?, command: args.collect() }),
        "worker" => Some(Role::Worker(args.next()?.parse().ok()?)),
        "node" => {
            let data_dir = args.next()?.into();
            // No function has a name with an equals sign.
            let (settings, guests) = args.partition(|word| word.contains('='));
            Some(Role::Node { data_dir, settings, guests })
        }
        _ => Some(Role::Hob(args.collect())),
    }
}

/// A server that runs; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) addr: SocketAddr,
    /// The control port, of a node of Hob.
    pub(crate) control: Option<SocketAddr>,
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it in order, as a kill would leave work for the next start.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        anyhow::ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone afterwards.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The two cores of a run: one for the server, one for the load.
pub(crate) const SERVER_CORE: usize = 0;
pub(crate) const LOAD_CORE: usize = 1;

/// Binds the calling thread, and every process it starts from now on, to a core.
pub(crate) fn pin(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).context("the process cannot be bound to a core")
}

/// Starts `role`: a node on all cores, any other on the server's core, which leaves the caller on the load's.
pub(crate) fn start(role: &Role) -> anyhow::Result<Server> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(ROLE);
    match role {
        Role::Hyper => command.arg("hyper"),
        Role::Hob(examples) => command.arg("hob").args(examples),
        Role::Walls(on) => command.args(["walls", if *on { "on" } else { "off" }]),
        Role::Pair(socket) => command.arg("pair").arg(socket),
        Role::Worker(redis) => command.arg("worker").arg(redis.to_string()),
        Role::Leashed { parent, command: words } => command.args(["leashed", &parent.to_string()]).args(words),
        Role::Node { data_dir, settings, guests } => command.arg("node").arg(data_dir).args(settings).args(guests),
    };
    let addresses = |line: &str| {
        let mut words = line.split_whitespace().map(str::parse);
        Some((words.next()?.ok()?, words.next().and_then(Result::ok)))
    };
    match role {
        Role::Node { .. } => wait_for(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?, addresses),
        _ => start_pinned(command, addresses),
    }
}

/// A command that starts `program`, which the system kills when the thread that started it ends, however it ends. Programs of others
/// do not look at their standard input.
pub(crate) fn leashed(program: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args([ROLE, "leashed", &std::process::id().to_string(), program]);
    command
}

fn become_leashed(parent: i32, command: &[String]) -> anyhow::Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // Who ended before sends no signal any more.
    anyhow::ensure!(getppid().is_some_and(|pid| pid.as_raw_nonzero().get() == parent), "whoever started this has ended");
    let [program, arguments @ ..] = command else { anyhow::bail!("expected a program") };
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("'{program}' does not start"))
}

/// Starts a command on the server's core; `addresses` finds where it listens in a line that it prints.
pub(crate) fn start_pinned(mut command: Command, addresses: impl Fn(&str) -> Option<Addresses>) -> anyhow::Result<Server> {
    pin(SERVER_CORE)?;
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    pin(LOAD_CORE)?;
    wait_for(child.with_context(|| format!("{:?} does not start", command.get_program()))?, addresses)
}

/// Data port, and control port if there is one.
type Addresses = (SocketAddr, Option<SocketAddr>);

fn wait_for(mut child: Child, addresses: impl Fn(&str) -> Option<Addresses>) -> anyhow::Result<Server> {
    let stdout = child.stdout.take().context("a child without output")?;
    for line in BufReader::new(stdout).lines() {
        if let Some((addr, control)) = addresses(&line?) {
            return Ok(Server { child, addr, control });
        }
    }
    let status = child.wait()?;
    anyhow::bail!("the server ended before it was ready: {status}")
}

/// Is the server until standard input ends.
pub(crate) fn run(role: Role) -> anyhow::Result<()> {
    match role {
        Role::Hyper => run_hyper(),
        Role::Pair(socket) => handoff::run_pair(&socket),
        Role::Worker(redis) => serving::run_worker(redis),
        Role::Leashed { parent, command } => become_leashed(parent, &command),
        Role::Hob(examples) => {
            let dir = tempfile::tempdir()?;
            let mut setup = setup(dir.path());
            setup.config.engine.threads = 1;
            serve(setup, &examples)
        }
        Role::Walls(on) => walls::serve(on),
        Role::Node { data_dir, settings, guests } => serve(setup_with(&data_dir, &settings)?, &guests),
    }
}

/// A node on free ports.
pub(crate) fn setup(data_dir: &Path) -> Setup {
    on_free_ports(data_dir, Config::default())
}

/// The same with settings of the form `engine.templates_max=20`.
pub(crate) fn setup_with(data_dir: &Path, settings: &[String]) -> anyhow::Result<Setup> {
    Ok(on_free_ports(data_dir, Config::read("", settings)?))
}

fn on_free_ports(data_dir: &Path, config: Config) -> Setup {
    let mut setup = Setup { config, ..Setup::default() };
    setup.config.net.addr = SocketAddr::from(([127, 0, 0, 1], 0));
    setup.config.net.control = setup.config.net.addr;
    setup.config.data.dir = Some(data_dir.to_owned());
    // The load generator keeps its connections, from one address.
    (setup.config.net.requests_max, setup.config.net.connections_per_address) = (0, Some(0));
    setup
}

fn serve(setup: Setup, guests: &[String]) -> anyhow::Result<()> {
    let node = Node::start(setup)?;
    for guest in guests {
        let Guest { name, wasm, manifest } = Guest::load(guest)?;
        node.deploy_file(name.parse()?, &wasm, manifest)?;
    }
    ready(format_args!("{} {}", node.addr(), node.control_addr()))?;
    node.stop();
    Ok(())
}

/// Says the address, then waits for the end of standard input.
pub(crate) fn ready(addresses: impl std::fmt::Display) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{addresses}")?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn run_hyper() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)))?;
    let addr = listener.local_addr()?;
    std::thread::spawn(move || {
        if ready(addr).is_ok() {
            std::process::exit(0);
        }
    });
    runtime.block_on(async move {
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let service = service_fn(async |_| {
                let mut response = Response::new(Full::new(Bytes::from_static(b"Hello, world!\n")));
                response
                    .headers_mut()
                    .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
                Ok::<_, std::convert::Infallible>(response)
            });
            tokio::spawn(async move {
                // A connection that breaks is the load's affair.
                let _ended = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .pipeline_flush(true)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    })
}

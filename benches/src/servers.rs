//! Servers as child processes: bare hyper, and a node of Hob.
//!
//! The benchmark starts itself again in another role, so that server and load do not share a process, and each can have a core
//! of its own. A child prints one line when it is ready and ends when its standard input does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::thread::{CpuSet, sched_setaffinity};

/// What a child is to be.
#[derive(Debug)]
pub(crate) enum Role {
    /// Hyper with a constant answer: the ceiling of anything that speaks HTTP through it. Its header timeout is on, because
    /// without one a server can be stopped by silence, and it flushes pipelined answers together.
    Hyper,
    /// A node of Hob with these functions, each a name and a file.
    Hob(Vec<(String, PathBuf)>),
}

const ROLE: &str = "bench-server";

/// The role in the command line, if this process is such a child.
pub(crate) fn role_of_child() -> Option<Role> {
    let mut args = std::env::args().skip(1);
    if args.next()? != ROLE {
        return None;
    }
    match args.next()?.as_str() {
        "hyper" => Some(Role::Hyper),
        _ => {
            let rest: Vec<String> = args.collect();
            Some(Role::Hob(rest.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone().into())).collect()))
        }
    }
}

/// A server that runs; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) addr: SocketAddr,
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

/// Starts `role` on the server's core, and leaves the caller on the load's.
pub(crate) fn start(role: &Role) -> anyhow::Result<Server> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(ROLE);
    match role {
        Role::Hyper => command.arg("hyper"),
        Role::Hob(functions) => {
            command.arg("hob").args(functions.iter().flat_map(|(name, path)| [name.into(), path.clone().into_os_string()]))
        }
    };
    start_command(command, |line| line.trim().parse().ok())
}

/// Starts a command on the server's core; `address` finds its address in a line that it prints.
pub(crate) fn start_command(mut command: Command, address: impl Fn(&str) -> Option<SocketAddr>) -> anyhow::Result<Server> {
    pin(SERVER_CORE)?;
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    pin(LOAD_CORE)?;
    let mut child = child.with_context(|| format!("{:?} does not start", command.get_program()))?;
    let stdout = child.stdout.take().context("a child without output")?;
    for line in BufReader::new(stdout).lines() {
        if let Some(addr) = address(&line?) {
            return Ok(Server { child, addr });
        }
    }
    let status = child.wait()?;
    anyhow::bail!("the server ended before it was ready: {status}")
}

/// Is the server until standard input ends.
pub(crate) fn run(role: Role) -> anyhow::Result<()> {
    match role {
        Role::Hyper => run_hyper(),
        Role::Hob(functions) => {
            let dir = tempfile::tempdir()?;
            let mut setup = hob::daemon::Setup::default();
            setup.config.net.addr = SocketAddr::from(([127, 0, 0, 1], 0));
            setup.config.net.control = setup.config.net.addr;
            setup.config.engine.threads = 1;
            setup.config.data.dir = Some(dir.path().to_owned());
            let node = hob::daemon::Node::start(setup)?;
            for (name, path) in functions {
                node.deploy_file(name.parse()?, &path, hob::manifest::Manifest::default())?;
            }
            ready(node.addr())?;
            node.stop();
            Ok(())
        }
    }
}

/// Says the address, then waits for the end of standard input.
fn ready(addr: SocketAddr) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{addr}")?;
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

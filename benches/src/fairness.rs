//! Scenario `fairness`: what guests that never end do to a neighbour, and to themselves.
//!
//! A node with two data threads. The victim, of one tenant, answers small requests over HTTP at a steady rate; beside it 64 guests of
//! another tenant spin, and are started again when they die. How late they die is measured against their own limit, by the processor
//! time that was metered for each and by the clock. Then guests of both tenants spin, 8 beside 64, and what each tenant got is compared.
//! The load sleeps between its requests, for it shares the two cores with the node. Beside it a thread looks for pauses of the machine: all 64
//! meet their wall deadline within some milliseconds, so a few pauses decide that figure. Targets stand beside the figures.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hob::daemon::Node;
use hob::id::{FunctionName, TenantId};
use hob::invocation::{Invocation, Invoke, Payload, Target};
use hob::manifest::Manifest;
use rustix::process::setpriority_process;

use crate::guests::Guest;
use crate::report::{Figure, Report, quantile};
use crate::servers::setup_with;

const SCENARIO: &str = "fairness";
const SPINNERS: usize = 64;
/// Requests of the victim per second, from so many connections.
const RATE: usize = 200;
const CONNECTIONS: usize = 8;

/// A handler whose `hob_handle` is `(loop br 0)`.
const SPIN: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x05\x03\x01\0\x01\
    \x07\x17\x02\x06memory\x02\0\x0ahob_handle\0\0\x0a\x09\x01\x07\0\x03\x40\x0c\0\x0b\x0b";

pub(crate) fn run(report: &Report, quick: bool) -> anyhow::Result<()> {
    let time = Duration::from_secs(if quick { 3 } else { 20 });
    let dir = tempfile::tempdir()?;
    let node = Node::start(setup_with(dir.path(), &["engine.threads=2".into()])?)?;
    let hello = Guest::build("hello")?;
    node.deploy_file("hello".parse()?, &hello.wasm, hello.manifest)?;
    // A tenant that the node knows, or `/v1/usage` would not name it.
    ask(&node, "PUT", "/v1/tenants/attacker", "{}")?;
    let spin = dir.path().join("spin.wasm");
    std::fs::write(&spin, SPIN)?;
    let attackers = |limits: &str| Spinners::deploy(&node, &spin, "attacker", SPINNERS, limits);
    let by_cpu = attackers("cpu = '200ms'\nwall = '1h'")?;
    let by_wall = attackers("cpu = '1h'\nwall = '1s'")?;
    let victims = Spinners::deploy(&node, &spin, "default", 8, "cpu = '200ms'\nwall = '1h'")?;

    let quiet = victim(node.addr(), time)?;
    quiet.print(report, "quiet", None)?;
    let before = Metered::now(&node, &[&by_cpu, &by_wall, &victims])?;
    for (spinners, limit, time, target) in [(&by_cpu, "cpu limit", time, 2.0), (&by_wall, "wall limit", time * 3, 5.0)] {
        let watch = Watch::start()?;
        let during = beside(spinners, || victim(node.addr(), time))?;
        let pauses = watch.end()?;
        pauses.print(report, limit)?;
        during.measured?.print(report, &format!("beside 64, {limit}"), Some(&quiet))?;
        late(report, &format!("die at the {limit}"), &during.deaths, target, &pauses)?;
    }
    share(report, &by_cpu, &victims, time)?;
    let after = Metered::now(&node, &[&by_cpu, &by_wall, &victims])?;
    let metered = (after.metered - before.metered) / (after.kernel - before.kernel);
    figure(report, "metered of the kernel's", "ratio (0.97-1.03)", metered, "")?;
    usage(report, &node, &by_cpu, if quick { time } else { Duration::from_secs(60) })?;
    node.stop();
    Ok(())
}

fn figure(report: &Report, system: &str, metric: &str, value: f64, unit: &str) -> std::io::Result<()> {
    report.figure(&Figure { scenario: SCENARIO, system, metric, value, unit, ratio: None })
}

fn late(report: &Report, system: &str, deaths: &[Death], target: f64, pauses: &Pauses) -> anyhow::Result<()> {
    ensure!(!deaths.is_empty(), "no guest died");
    let mut late: Vec<_> = deaths.iter().map(|death| death.late).collect();
    let count = |of: usize| f64::from(u32::try_from(of).unwrap_or(u32::MAX));
    figure(report, system, "count", count(deaths.len()), "")?;
    let over: Vec<_> = deaths.iter().filter(|death| death.late > target).collect();
    figure(report, system, &format!("later than {target} ms"), count(over.len()), "")?;
    let alone = over.iter().filter(|death| !pauses.met(death)).count();
    figure(report, system, "of them without a pause", count(alone), "")?;
    figure(report, system, "late p50", quantile(&mut late, 0.5), "ms")?;
    figure(report, system, &format!("late p99 (<= {target})"), quantile(&mut late, 0.99), "ms")?;
    Ok(())
}

/// What the victim saw.
struct Seen {
    times: Vec<f64>,
    errors: usize,
}

impl Seen {
    fn print(&self, report: &Report, system: &str, quiet: Option<&Self>) -> anyhow::Result<()> {
        let mut times = self.times.clone();
        let p99 = quantile(&mut times, 0.99);
        figure(report, system, "victim p50", quantile(&mut times, 0.5), "ms")?;
        figure(report, system, "victim p99", p99, "ms")?;
        if let Some(quiet) = quiet {
            figure(report, system, "p99 added (<= 5)", p99 - quantile(&mut quiet.times.clone(), 0.99), "ms")?;
        }
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        figure(report, system, "victim errors (0)", self.errors as f64, "")?;
        Ok(())
    }
}

/// Small requests at a steady rate, from connections that take turns.
fn victim(addr: SocketAddr, time: Duration) -> anyhow::Result<Seen> {
    let began = Instant::now();
    let gap = Duration::from_secs(1) * u32::try_from(CONNECTIONS)? / u32::try_from(RATE)?;
    let one = |number: u32| -> anyhow::Result<Seen> {
        let mut stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut seen = Seen { times: Vec::new(), errors: 0 };
        let mut due = began + gap * number / u32::try_from(CONNECTIONS)?;
        while due < began + time {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let sent = Instant::now();
            stream.write_all(b"GET /hello HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
            let (mut answer, mut len) = ([0; 2048], 0);
            while !answer[..len].ends_with(b"Hello, world!\n") && len < answer.len() {
                let read = stream.read(&mut answer[len..])?;
                ensure!(read > 0, "the node closed a connection: {}", String::from_utf8_lossy(&answer[..len]));
                len += read;
            }
            seen.times.push(sent.elapsed().as_secs_f64() * 1e3);
            seen.errors += usize::from(!answer.starts_with(b"HTTP/1.1 200 "));
            due += gap;
        }
        Ok(seen)
    };
    let mut all = Seen { times: Vec::new(), errors: 0 };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CONNECTIONS).map(|number| scope.spawn(move || one(u32::try_from(number)?))).collect();
        for client in clients {
            let seen = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            all.times.extend(seen.times);
            all.errors += seen.errors;
        }
        Ok(all)
    })
}

/// Functions that spin, each with one invocation at a time, so that what one used is known.
struct Spinners {
    plane: Arc<dyn Invoke>,
    dispatcher: hob::dispatch::Dispatcher,
    tenant: TenantId,
    names: Vec<FunctionName>,
    kind: &'static str,
}

impl Spinners {
    fn deploy(node: &Node, wasm: &std::path::Path, tenant: &str, count: usize, limits: &str) -> anyhow::Result<Self> {
        let tenant: TenantId = tenant.parse()?;
        let kind = if limits.contains("cpu = '1h'") { "wall" } else { "cpu" };
        let manifest = Manifest::parse(&format!("[limits]\n{limits}\n"))?;
        let name = |number| format!("spin-{kind}-{number}").parse::<FunctionName>();
        let names = (0..count).map(name).collect::<Result<Vec<_>, _>>()?;
        for name in &names {
            node.deploy_file_of(tenant.clone(), name.clone(), wasm, manifest.clone())?;
        }
        Ok(Self { plane: node.data_plane(), dispatcher: node.dispatcher().clone(), tenant, names, kind })
    }

    fn cpu(&self, name: &FunctionName) -> f64 {
        self.dispatcher.usage(&self.tenant, name).0.series().total().cpu.as_secs_f64() * 1e3
    }

    fn cpu_of_all(&self) -> f64 {
        self.names.iter().map(|name| self.cpu(name)).sum()
    }

    /// Keeps one of them running until `stop`; by how much each invocation passed its limit.
    async fn keep(&self, name: FunctionName, stop: &AtomicBool, deaths: &Mutex<Vec<Death>>) -> anyhow::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let request = http::Request::get("/").header("host", "localhost").body(Payload::empty())?;
            let (received, before) = (Instant::now(), self.cpu(&name));
            let target = Target::Function(name.clone());
            let invocation = Invocation { tenant: self.tenant.clone(), target, request, received, start: None };
            let invoked = self.plane.invoke(invocation).await;
            let at = Instant::now();
            let late = match self.kind {
                "cpu" => self.cpu(&name) - before - 200.0,
                _ => (at - received).as_secs_f64() * 1e3 - 1000.0,
            };
            let fault = invoked.result.err().context("a guest that spins answered")?;
            let code = fault.code.to_string();
            ensure!(code == format!("{}-deadline", self.kind), "expected its deadline, found {code}: {}", fault.detail);
            deaths.lock().unwrap_or_else(PoisonError::into_inner).push(Death { at, late });
        }
        Ok(())
    }
}

/// The end of a guest that spun.
struct Death {
    at: Instant,
    /// By how many milliseconds it passed its limit.
    late: f64,
}

struct During<R> {
    measured: anyhow::Result<R>,
    deaths: Vec<Death>,
}

/// Does `work` while all of `spinners` run.
fn beside<R>(spinners: &Spinners, work: impl FnOnce() -> anyhow::Result<R>) -> anyhow::Result<During<R>> {
    let (stop, deaths) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let measured = std::thread::scope(|scope| {
        let all = scope.spawn(|| {
            // Who looks must not stand in the kernel's line behind those it looks at: it would measure that line.
            if let Err(error) = setpriority_process(None, -20) {
                eprintln!("the thread that watches comes after others: {error}");
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let each = spinners.names.iter().map(|name| spinners.keep(name.clone(), &stop, &deaths));
            runtime.block_on(futures_util::future::try_join_all(each)).map(drop)
        });
        // Until all of them are there.
        std::thread::sleep(Duration::from_millis(500));
        let measured = work();
        stop.store(true, Ordering::Relaxed);
        all.join().map_err(|_| anyhow::anyhow!("the attack panicked"))??;
        anyhow::Ok(measured)
    })?;
    Ok(During { measured, deaths: deaths.into_inner().unwrap_or_else(PoisonError::into_inner) })
}

/// What a tenant with 8 guests that spin gets beside one with 64, of half.
fn share(report: &Report, attackers: &Spinners, victims: &Spinners, time: Duration) -> anyhow::Result<()> {
    let during = beside(attackers, || {
        beside(victims, || {
            let before = (attackers.cpu_of_all(), victims.cpu_of_all());
            std::thread::sleep(time);
            Ok((attackers.cpu_of_all() - before.0, victims.cpu_of_all() - before.1))
        })?
        .measured
    })?;
    let (attackers, victims) = during.measured?;
    figure(report, "8 guests beside 64", "of its share (>= 0.9)", 2.0 * victims / (attackers + victims), "")?;
    Ok(())
}

/// Processor time so far, in milliseconds: what was metered, and what the kernel says of the threads that ran it.
struct Metered {
    metered: f64,
    kernel: f64,
}

impl Metered {
    fn now(node: &Node, of: &[&Spinners]) -> anyhow::Result<Self> {
        let hello = node.dispatcher().usage(&TenantId::default(), &"hello".parse()?).0.series().total().cpu.as_secs_f64() * 1e3;
        Ok(Self { metered: hello + of.iter().map(|spinners| spinners.cpu_of_all()).sum::<f64>(), kernel: kernel_ms()? })
    }
}

/// Processor time of the data threads so far, as the kernel counts it.
fn kernel_ms() -> anyhow::Result<f64> {
    data_threads()?.iter().map(|file| schedstat_ms(file).map(|[ran, _]| ran)).sum()
}

/// What the kernel says of each data thread.
fn data_threads() -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    for task in std::fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        if std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("hob-data-")) {
            files.push(File::open(path.join("schedstat"))?);
        }
    }
    Ok(files)
}

/// For how many milliseconds a thread has run so far, and for how many it was ready and others ran.
fn schedstat_ms(of: &File) -> anyhow::Result<[f64; 2]> {
    let mut text = [0; 128];
    let len = of.read_at(&mut text, 0)?;
    let mut numbers = std::str::from_utf8(&text[..len])?.split(' ');
    let mut next = || anyhow::Ok(numbers.next().context("the system says nothing of a thread")?.parse::<f64>()? / 1e6);
    Ok([next()?, next()?])
}

/// What `/v1/usage` adds to the totals of all tenants over a minute of mixed load, small requests beside guests that spin, held against the
/// kernel's own accounting of the threads that ran it.
fn usage(report: &Report, node: &Node, spinners: &Spinners, time: Duration) -> anyhow::Result<()> {
    let read = || anyhow::Ok((told_ms(node)?, kernel_ms()?));
    let before = read()?;
    let seen = beside(spinners, || victim(node.addr(), time))?.measured?;
    let after = read()?;
    ensure!(seen.errors == 0 && !seen.times.is_empty(), "the small requests were not answered: {} errors", seen.errors);
    let ratio = (after.0 - before.0) / (after.1 - before.1);
    figure(report, "usage of the kernel's", "ratio (0.97-1.03)", ratio, "")?;
    Ok(())
}

/// Processor time of all tenants so far, as the API tells it.
fn told_ms(node: &Node) -> anyhow::Result<f64> {
    let told: serde_json::Value = serde_json::from_str(&ask(node, "GET", "/v1/usage?all=true&minutes=0", "")?)?;
    let tenants = told["tenants"].as_array().context("/v1/usage names no tenants")?;
    ensure!(tenants.iter().any(|tenant| tenant["tenant"] == "attacker"), "/v1/usage does not name all tenants: {told}");
    tenants.iter().map(|tenant| tenant["total"]["cpu_ms"].as_f64().context("a tenant without cpu_ms")).sum()
}

/// The body of a good answer of the control port.
fn ask(node: &Node, method: &str, target: &str, body: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(node.control_addr())?;
    let len = body.len();
    write!(stream, "{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of its head")?;
    ensure!(head.starts_with("HTTP/1.1 2"), "{method} {target}: {answer}");
    ensure!(head.to_ascii_lowercase().contains("\r\ncontent-length: "), "{target}: expected a body with a length, found {head}");
    Ok(body.to_owned())
}

/// What the machine keeps from everybody, looked at once a millisecond by a thread that sleeps in between, as the one that ticks does.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<anyhow::Result<Pauses>>,
}

struct Pauses(Vec<Look>);

struct Look {
    at: Instant,
    /// Milliseconds since the look before.
    gap: f64,
    /// For how many of them the data thread that had to wait longest was ready, and the kernel ran others.
    kept: f64,
}

impl Watch {
    fn start() -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, threads) = (stop.clone(), data_threads()?);
        let look = move || {
            let kept =
                || threads.iter().map(|thread| schedstat_ms(thread).map(|[_, kept]| kept)).collect::<anyhow::Result<Vec<_>>>();
            let (mut looks, mut last, mut before) = (Vec::new(), Instant::now(), kept()?);
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
                let (at, now) = (Instant::now(), kept()?);
                let longest = now.iter().zip(&before).map(|(now, before)| now - before).fold(0.0, f64::max);
                looks.push(Look { at, gap: (at - last).as_secs_f64() * 1e3, kept: longest });
                (last, before) = (at, now);
            }
            Ok(Pauses(looks))
        };
        Ok(Self { stop, thread: std::thread::spawn(look) })
    }

    fn end(self) -> anyhow::Result<Pauses> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
    }
}

impl Pauses {
    /// What a pause is, in milliseconds: more than a tick and the kernel's way to a thread that wakes.
    const LEAST: f64 = 3.0;

    fn print(&self, report: &Report, limit: &str) -> anyhow::Result<()> {
        let system = format!("tick of 1 ms, {limit}");
        let mut gaps: Vec<_> = self.0.iter().map(|look| look.gap).collect();
        figure(report, &system, "p99 (<= 20)", quantile(&mut gaps, 0.99), "ms")?;
        figure(report, &system, "longest", quantile(&mut gaps, 1.0), "ms")?;
        let kept = self.0.iter().map(|look| look.kept).fold(0.0, f64::max);
        figure(report, &system, "longest that a data thread was kept waiting", kept, "ms")?;
        Ok(())
    }

    /// Whether the machine paused, for all or for a data thread, while the guest should have died.
    fn met(&self, Death { at, late }: &Death) -> bool {
        let from = at.checked_sub(Duration::from_secs_f64(late / 1e3));
        let looks = self.0.iter().skip_while(|look| from.is_some_and(|from| look.at < from));
        // The first look after the death tells of what was before it.
        let until = looks.clone().position(|look| look.at >= *at).map_or(usize::MAX, |last| last + 1);
        looks.take(until).any(|look| look.gap >= Self::LEAST || look.kept >= Self::LEAST)
    }
}

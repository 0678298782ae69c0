//! Scenarios `deploy` and `node-start`: what an operator waits for.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::ensure;
use hob::daemon::Node;
use hob::manifest::Manifest;

use crate::fleet;
use crate::guests::Guest;
use crate::report::{Figure, Report, quantile};
use crate::servers::setup;

fn exchange(addr: SocketAddr, request: &[u8]) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.write_all(request)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// From the first byte of a deploy to the first answer of the new revision, over both ports.
pub(crate) fn deploy(report: &Report, quick: bool) -> anyhow::Result<()> {
    let count = if quick { 3 } else { 20 };
    let hello = std::fs::read(Guest::build("hello")?.wasm)?;
    let dir = tempfile::tempdir()?;
    let node = Node::start(setup(dir.path()))?;
    let mut times = Vec::with_capacity(count);
    for round in 0..count {
        let name = format!("hello-{round}");
        // A module of its own: the same one under another name would not be built again.
        let wasm = fleet::variant(&hello, round as u64)?;
        let mut put = format!(
            "PUT /v1/functions/{name} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/wasm\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            wasm.len()
        )
        .into_bytes();
        put.extend_from_slice(&wasm);
        let get = format!("GET /{name} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let began = Instant::now();
        let put = exchange(node.control_addr(), &put)?;
        ensure!(put.starts_with("HTTP/1.1 201"), "the deploy failed: {put}");
        let get = exchange(node.addr(), get.as_bytes())?;
        ensure!(get.starts_with("HTTP/1.1 200"), "the function does not answer: {get}");
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    node.stop();
    figures(report, "deploy", "hello to live", &mut times)
}

/// From the start of the process's work to both ports answering, with 1,000 functions in the registry.
pub(crate) fn start(report: &Report, quick: bool) -> anyhow::Result<()> {
    let (functions, count) = if quick { (50, 3) } else { (1_000, 20) };
    // The smallest function: what counts here is how many there are.
    let wasm = Guest::build("hello")?.wasm;
    let dir = tempfile::tempdir()?;
    let node = Node::start(setup(dir.path()))?;
    for number in 0..functions {
        node.deploy_file(format!("hello-{number}").parse()?, &wasm, Manifest::default())?;
    }
    node.stop();
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        let node = Node::start(setup(dir.path()))?;
        let ready = exchange(node.control_addr(), b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        ensure!(ready.starts_with("HTTP/1.1 200"), "the node is not ready: {ready}");
        node.stop();
        // The lock on the directory is free when the process has let go of it.
        std::thread::sleep(Duration::from_millis(1));
    }
    figures(report, "node-start", &format!("{functions} functions"), &mut times)
}

fn figures(report: &Report, scenario: &str, system: &str, times: &mut [f64]) -> anyhow::Result<()> {
    for (metric, at) in [("p50", 0.5), ("p99", 0.99)] {
        let value = quantile(times, at);
        report.figure(&Figure { scenario, system, metric, value, unit: "ms", ratio: None })?;
    }
    Ok(())
}

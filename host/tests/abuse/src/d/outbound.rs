//! Where requests of functions must not go: to addresses inside, and round to themselves without end.

use std::net::TcpListener;
use std::sync::OnceLock;

use anyhow::Context as _;

use super::upstreams::{IMPORTS, escaped, fetches, record};
use crate::case::{Ready, Seen, Stage, deployed};
use crate::guests::handler_with;
use crate::inside;
use crate::world;

/// Hops that a request may come by.
const HOPS_MAX: u64 = 8;

/// Sends two requests to itself, and answers with the status of the last.
pub(super) fn itself(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    let way = world::way_round()?;
    way.lead_to(stage.node.data);
    let url = format!("http://{}/itself", way.addr);
    let bytes = record("GET", &url, &[], b"");
    let text = handler_with(
        IMPORTS,
        "(memory (export \"memory\") 1)",
        &format!(
            "(data (i32.const 0) \"{}\")
             (func $once (result i32) (local $response i32) (local $status i32)
               (local.set $response (call $send (i32.const 0) (i32.const {})))
               (if (i32.lt_s (local.get $response) (i32.const 0)) (then unreachable))
               (drop (call $head (local.get $response) (i32.const 1024) (i32.const 8192)))
               (local.set $status (i32.load16_u (i32.const 1028)))
               (call $close (local.get $response))
               (local.get $status))
             (func (export \"hob_handle\")
               (drop (call $once))
               (call $answer (call $once) (i32.const 0) (i32.const 0)))",
            escaped(&bytes),
            bytes.len()
        ),
    );
    let manifest = format!("[limits]\nwall = \"1m\"\ncpu = \"30s\"\n[grants]\nhttp = [\"http://{}\"]\n", way.addr);
    deployed(stage, "itself", &text, &manifest)
}

/// One request becomes two at every hop, until the ninth is refused: 511 invocations, and no more.
pub(super) fn call_itself(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let before = started(stage)?;
    stage.get(0, "itself", seen);
    let ran = started(stage)? - before;
    let most = (1 << (HOPS_MAX + 1)) - 1;
    seen.check(ran == most, || format!("{ran} invocations came of one, where {most} may"));
    // A client that says it has come far itself shortens its own way alone.
    let reply = stage.connect(0).ok().and_then(|mut conn| {
        conn.request("GET", "/itself", &[("hob-hops", "9")], b"");
        conn.reply()
    });
    let key = reply.map_or("closed".into(), |reply| reply.key());
    seen.check(key == "508 loop-detected", || format!("a request of nine hops: {key}"));
    Ok(())
}

fn started(stage: &Stage<'_>) -> anyhow::Result<u64> {
    let starts = stage.node.inspect("itself")?["usage"]["starts"].clone();
    Ok(starts.as_object().context("no starts")?.values().filter_map(serde_json::Value::as_u64).sum())
}

/// A listener at every address of this machine that nobody may come to.
fn honeypot() -> anyhow::Result<&'static TcpListener> {
    static HONEYPOT: OnceLock<TcpListener> = OnceLock::new();
    if let Some(honeypot) = HONEYPOT.get() {
        return Ok(honeypot);
    }
    let honeypot = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0"))?;
    honeypot.set_nonblocking(true)?;
    Ok(HONEYPOT.get_or_init(|| honeypot))
}

/// The manifest grants what it can: nothing but the address is in the way. Spellings that no grant has are not granted.
pub(super) fn forbidden_setup(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    let port = honeypot()?.local_addr()?.port();
    let usual = ["127.0.0.1", "127.0.0.2", "0.0.0.0", "10.0.0.1", "100.64.0.1", "169.254.169.254", "172.16.0.1", "192.168.0.1"];
    let odd = ["255.255.255.255", "localhost", "[::1]", "[::]", "[fe80::1]", "[fd00:ec2::254]"];
    let own = [stage.node.data, stage.node.control].map(|addr| format!("\"http://{addr}\""));
    let grants = usual.iter().chain(&odd).map(|host| format!("\"http://{host}:{port}\"")).chain(own);
    let grants = grants.collect::<Vec<_>>().join(", ");
    deployed(stage, "fetches", &fetches(), &format!("[limits]\nwall = \"30s\"\n[grants]\nhttp = [{grants}]\n"))
}

pub(super) fn forbidden(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let honeypot = honeypot()?;
    let mut urls = inside::urls(honeypot.local_addr()?.port());
    urls.extend([stage.node.data, stage.node.control].map(|addr| format!("http://{addr}/v1/functions")));
    stage.crowd(4, seen, |index, seen| {
        for url in urls.iter().skip(index).step_by(4) {
            let reply = stage.ask(index, "POST", "/fetches", &[], &record("GET", url, &[], b""), seen);
            let result = reply.as_ref().and_then(super::upstreams::result);
            // Not granted, no URL, no such name, prohibited.
            let refused = result.is_some_and(|(result, _)| [-2, -4, -10, -14].contains(&result));
            seen.check(refused, || format!("{url}: {result:?} {:?}", reply.map(|reply| reply.key())));
        }
    });
    let nobody = honeypot.accept().is_err();
    seen.check(nobody, || "somebody connected to an address inside".into());
    Ok(())
}

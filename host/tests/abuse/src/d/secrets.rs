//! D10: the secrets of others, wherever they could lie about.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::case::{Ready, Seen, Stage, attacker, eventually};
use crate::guests::{self, handler_with};
use crate::http::{Conn, PATIENCE, Reply, multipart};
use crate::node::Node;
use crate::observe::processor_time;

/// The value that nobody may see but who was granted it.
const VALUE: &str = "d10-correct-horse-battery-staple";
/// What another tenant has under the same name.
const ANOTHER: &str = "d10-a-value-of-acme";
/// What is in every module whose build is looked into.
const MARK: &str = "d10-mark-of-a-module";
const GRANT: &str = "[grants]\nsecrets = [\"KEY\"]\n";
const GRANT_OF_INIT: &str = "[grants]\nsecrets = [{ name = \"KEY\", init = true }]\n";
/// Bytes of a process that are read at once.
const PIECE: usize = 4 << 20;
/// How much of them is read again with the next, for what lies across.
const OVERLAP: usize = 4096;

/// A handler that fetches the secret `KEY` and does `then` with it: `$n` bytes at 1,000, or a negative number.
fn fetches(then: &str) -> String {
    handler_with(
        "(import \"hob1\" \"secret_get\" (func $secret_get (param i32 i32 i32 i32) (result i32)))",
        "(memory (export \"memory\") 1)",
        &format!(
            "(data (i32.const 100) \"KEY\")
             (func (export \"hob_handle\") (local $n i32)
               (local.set $n (call $secret_get (i32.const 100) (i32.const 3) (i32.const 1000) (i32.const 8000)))
               (if (i32.lt_s (local.get $n) (i32.const 0))
                 (then (call $answer (i32.sub (i32.const 400) (local.get $n)) (i32.const 1000) (i32.const 0)) (return)))
               {then})"
        ),
    )
}

/// Answers with the secret.
fn reader() -> String {
    fetches("(call $answer (i32.const 200) (i32.const 1000) (local.get $n))")
}

/// A module that initialises itself for as long as it may.
fn slow() -> String {
    handler_with(
        "",
        "(memory (export \"memory\") 1)",
        &format!(
            "(data (i32.const 100) \"{MARK}\")
             (func (export \"hob_init\") (loop $more (br $more)))
             (func (export \"hob_handle\"))"
        ),
    )
}

pub(super) fn holders(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    let node = stage.node;
    let set = |tenant: &str, value: &str| {
        let set = node.ask_for(tenant, "PUT", "/v1/secrets/KEY", value.as_bytes())?;
        ensure!(set.status == 204, "the secret of {tenant}: {} {}", set.key(), set.text());
        Ok(())
    };
    for tenant in ["acme", "beta"] {
        let made = node.ask("PUT", &format!("/v1/tenants/{tenant}"), b"{}")?;
        ensure!(made.status == 201, "the tenant {tenant}: {} {}", made.key(), made.text());
    }
    set("default", VALUE)?;
    set("acme", ANOTHER)?;
    node.deploy_wat("reader", &reader(), GRANT)?;
    node.deploy_wat("greedy", &reader(), "")?;
    node.deploy_wat("trap", &fetches("unreachable"), GRANT)?;
    // A response head that is none, with the secret in it.
    node.deploy_wat("garbled", &fetches("(call $respond (i32.const 1000) (local.get $n))"), GRANT)?;
    let (kind, body) = multipart(&[("manifest", GRANT.as_bytes()), ("wasm", &guests::wasm(&reader())?)]);
    for tenant in ["acme", "beta"] {
        let headers = [("hob-tenant", tenant), ("content-type", kind.as_str())];
        let deployed = node.ask_as("PUT", "/v1/functions/reader", &headers, &body)?;
        ensure!(deployed.status == 201, "the function of {tenant}: {} {}", deployed.key(), deployed.text());
    }
    Ok(Ready::Yes)
}

pub(super) fn search(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    readers(stage, seen)?;
    surfaces(stage, seen)?;
    builds(stage, seen)?;
    let dir = &stage.node.dir;
    for value in [VALUE, ANOTHER] {
        let found = holds_below(dir, value.as_bytes())?;
        seen.check(found.is_none(), || format!("a value is in {}", found.unwrap_or_default()));
    }
    let said = stage.node.stderr();
    seen.check(!said.contains(VALUE) && !said.contains(ANOTHER), || "a value is in the node's own log".into());
    Ok(())
}

/// Who was granted it reads it; who was not, and who is of another tenant, does not, and no refusal has it.
fn readers(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let invoke = |tenant: &str, name: &str| stage.node.ask_for(tenant, "POST", &format!("/v1/functions/{name}/invoke"), b"");
    for (tenant, name, status, text) in [
        ("default", "reader", 200, Some(VALUE)),
        ("acme", "reader", 200, Some(ANOTHER)),
        ("beta", "reader", 416, Some("")),
        ("default", "greedy", 402, Some("")),
        ("default", "trap", 502, None),
        ("default", "garbled", 502, None),
    ] {
        let reply = invoke(tenant, name)?;
        seen.answered(Some(&reply));
        let is_right = reply.status == status && text.is_none_or(|text| reply.text() == text);
        seen.check(is_right, || format!("{name} of {tenant}: {} {:.100}", reply.key(), reply.text()));
        if status != 200 {
            clean(&format!("the answer of {name} of {tenant}"), &reply, seen);
        }
    }
    // From the data port as well, where errors are made elsewhere.
    for name in ["trap", "garbled"] {
        if let Some(reply) = stage.get(0, name, seen) {
            clean(&format!("the answer of {name}"), &reply, seen);
        }
    }
    let long = VALUE.repeat(4000);
    for (target, value) in [("/v1/secrets/a-b", VALUE), ("/v1/secrets/KEY", &long)] {
        let refused = stage.node.ask("PUT", target, value.as_bytes())?;
        seen.answered(Some(&refused));
        clean("the refusal of a secret", &refused, seen);
    }
    Ok(())
}

fn clean(what: &str, reply: &Reply, seen: &mut Seen) {
    let all = format!("{:?} {}", reply.headers, reply.text());
    seen.check(!all.contains(VALUE) && !all.contains(ANOTHER), || format!("{what} has a value in it"));
}

/// All that the control port and the command show, of each tenant.
fn surfaces(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    for tenant in ["default", "acme", "beta"] {
        let mut targets = vec!["/v1/secrets".to_owned(), "/v1/functions".into(), "/v1/usage".into(), "/v1/tokens".into()];
        let names: &[&str] = if tenant == "default" { &["reader", "greedy", "trap", "garbled"] } else { &["reader"] };
        for name in names {
            targets.extend(["", "/revisions", "/logs?tail=1000"].map(|rest| format!("/v1/functions/{name}{rest}")));
        }
        if tenant == "default" {
            targets.extend(["/v1/audit", "/metrics", "/readyz", "/openapi.json"].map(ToOwned::to_owned));
        }
        for target in targets {
            let reply = stage.node.ask_for(tenant, "GET", &target, b"")?;
            seen.check(reply.status == 200, || format!("{target} of {tenant}: {}", reply.key()));
            clean(&format!("{target} of {tenant}"), &reply, seen);
        }
    }
    let server = format!("http://{}", stage.node.control);
    for args in [
        &["inspect", "reader"][..],
        &["inspect", "trap", "-o", "json"],
        &["logs", "trap"],
        &["logs", "garbled"],
        &["secret", "ls"],
        &["ls"],
    ] {
        let output = Command::new(stage.binary).args(["--server", &server]).args(args).output()?;
        seen.check(output.status.success(), || {
            format!("hob {args:?}: {} {}", output.status, String::from_utf8_lossy(&output.stderr))
        });
        let said = [output.stdout, output.stderr].concat();
        seen.check(!has(&said, VALUE.as_bytes()), || format!("hob {args:?} shows a value"));
    }
    Ok(())
}

/// Builds while they last: only one that was granted the secret for its initialisation has it in its memory, and none leaves a core file.
fn builds(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let wasm = guests::wasm(&slow())?;
    for (manifest, may_hold) in [("", false), (GRANT, false), (GRANT_OF_INIT, true)] {
        let (kind, body) = multipart(&[("manifest", manifest.as_bytes()), ("wasm", &wasm)]);
        let mut deploy = Conn::open(stage.node.control, attacker(0))?;
        deploy.request("PUT", "/v1/functions/slow", &[("content-type", &kind)], &body);
        let mut found = None;
        eventually(PATIENCE, || {
            found = children(stage.node)?.into_iter().find(|(_, command)| command.contains("build-child"));
            Ok(found.is_some())
        })?;
        let (child, _) = found.context("no build was begun")?;
        // The module is compiled by now, or initialises itself: what a build is given it has.
        let is_busy = eventually(PATIENCE, || Ok(processor_time(child)?.as_millis() > 300))?;
        let mut held = [false; 2];
        let is_there = eventually(PATIENCE, || {
            held = memory_has(child, [MARK, VALUE])?;
            Ok(held[0] && (held[1] || !may_hold))
        })?;
        ensure!(is_busy && (is_there || held[0]), "the build does not have its module, or does nothing: {held:?}");
        let what = format!("the build of a function with '{}' has the value in its memory", manifest.escape_debug());
        seen.check(held[1] == may_hold, || format!("{what}: {}", held[1]));
        for (process, command) in children(stage.node)? {
            no_core(process, &command, seen)?;
            if process != child {
                let [_, held] = memory_has(process, [MARK, VALUE])?;
                seen.check(!held, || format!("'{command}' has the value in its memory"));
            }
        }
        drop(deploy);
        let is_over = eventually(PATIENCE, || Ok(!Path::new(&format!("/proc/{child}")).exists()))?;
        seen.check(is_over, || "a build that was given up goes on".into());
    }
    no_core(stage.node.pid(), "hob serve", seen)
}

fn no_core(pid: u32, command: &str, seen: &mut Seen) -> anyhow::Result<()> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("no limit of core files")?;
    let words: Vec<_> = core.split_whitespace().collect();
    seen.check(words.get(4..6) == Some(&["0", "0"]), || format!("'{command}' may leave a core file: {core}"));
    Ok(())
}

/// The processes below the node, each with its command line.
fn children(node: &Node) -> anyhow::Result<Vec<(u32, String)>> {
    let (mut found, mut parents) = (Vec::new(), vec![node.pid()]);
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // One that ended meanwhile is nobody's child.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        all.push((pid, parent));
    }
    while let Some(of) = parents.pop() {
        for (pid, _) in all.iter().filter(|(_, parent)| *parent == Some(of)) {
            parents.push(*pid);
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            found.push((*pid, String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    Ok(found)
}

fn has(bytes: &[u8], what: &[u8]) -> bool {
    memchr::memmem::find(bytes, what).is_some()
}

/// The runs of pages that are not all zeros: most are, and a suite that is not optimised looks long at each byte.
fn written(bytes: &[u8]) -> Vec<&[u8]> {
    const PAGE: usize = 4096;
    let is_zero = |page: &[u8]| page == &[0; PAGE][..page.len()];
    let (mut runs, mut begin) = (Vec::new(), None);
    for (index, page) in bytes.chunks(PAGE).enumerate() {
        match (is_zero(page), begin) {
            (false, None) => begin = Some(index * PAGE),
            (true, Some(from)) => {
                runs.push(&bytes[from..index * PAGE]);
                begin = None;
            }
            _ => {}
        }
    }
    runs.extend(begin.map(|from| &bytes[from..]));
    runs
}

/// Which of these texts a process has anywhere in its memory, but for what it maps of files to read. This takes the rights of root.
fn memory_has<const N: usize>(pid: u32, texts: [&str; N]) -> anyhow::Result<[bool; N]> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut memory = std::fs::File::open(format!("/proc/{pid}/mem")).context("the memory of a build can only be read by root")?;
    let (mut found, mut piece) = ([false; N], vec![0; PIECE]);
    for line in maps.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let (Some((from, to)), Some(rights)) = (words.first().and_then(|range| range.split_once('-')), words.get(1)) else {
            continue;
        };
        let of_a_file = words.get(5).is_some_and(|name| name.starts_with('/') || name.starts_with("[v"));
        if !rights.starts_with('r') || (of_a_file && !rights.starts_with("rw")) {
            continue;
        }
        let (mut at, end) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        while at < end {
            let len = PIECE.min(usize::try_from(end - at)?);
            memory.seek(SeekFrom::Start(at))?;
            // A page that cannot be read, or went meanwhile, holds nothing that could be told.
            let Ok(read) = memory.read(&mut piece[..len]) else { break };
            for run in written(&piece[..read]) {
                for (found, text) in found.iter_mut().zip(texts) {
                    *found = *found || has(run, text.as_bytes());
                }
            }
            let is_last = read < len || at + len as u64 == end;
            at += if is_last { read.max(1) } else { read - OVERLAP } as u64;
        }
    }
    Ok(found)
}

/// The first file below a folder that has these bytes in it.
fn holds_below(folder: &Path, what: &[u8]) -> anyhow::Result<Option<String>> {
    for entry in std::fs::read_dir(folder)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            if let Some(found) = holds_below(&path, what)? {
                return Ok(Some(found));
            }
        // One that went meanwhile holds nothing.
        } else if kind.is_file() && has(&std::fs::read(&path).unwrap_or_default(), what) {
            return Ok(Some(path.display().to_string()));
        }
    }
    Ok(None)
}

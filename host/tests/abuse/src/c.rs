//! C: what a deployer sends.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

use crate::b::Dice;
use crate::case::{Alone, Ground, Kind, Ready, Seen, Stage, attacker, case, deployed, nothing};
use crate::guests::{self, does, handler, says};
use crate::http;
use crate::node::{HOME, Node, Setup};
use crate::run::panics;

pub(crate) const CASES: &[Kind] = &[
    Kind::Beside(
        case("C1", "huge modules", &["413 body-too-large"], nothing, huge).at_control().settings(&["data.upload_bytes_max=4MiB"]),
    ),
    Kind::Beside(case("C2", "one past each cap", &["422 module-over-cap"], nothing, over_caps).burns()),
    Kind::Beside(
        case("C3", "bombs for the compiler", &["?422 build-over-limit", "201", "200"], nothing, compiler_bombs)
            .burns()
            .settings(&["build.cpu=2s", "build.wall=4s"]),
    ),
    Kind::Beside(case("C4", "a million nested blocks", &["422 module-over-cap", "422 *"], nothing, nested).burns()),
    Kind::Beside(
        case("C5", "flipped bits and cut ends", &["422 not-deployable", "422 *", "200", "201"], nothing, malformed).burns(),
    ),
    Kind::Beside(case("C6", "text, ELF and native code", &["422 not-deployable"], nothing, no_modules)),
    Kind::Beside(case("C7", "proposals that are off", &["422 not-deployable", "422 *"], nothing, proposals)),
    Kind::Beside(case("C8", "compressed bytes", &["415 *", "422 not-deployable"], nothing, compressed).at_control()),
    Kind::Beside(case("C9", "imports that nobody has", &["422 not-deployable"], nothing, imports)),
    Kind::Missing { row: "C10", name: "signed deploys", why: "due with identity, and optional" },
    Kind::Beside(case("C11", "a race of deploys", &["200", "412 precondition-failed"], racers, race).burns()),
    Kind::Beside(case("C12", "rollbacks under load", &["200"], flippers, flip).burns()),
    Kind::Alone(Alone { row: "C13", name: "kill -9 in a deploy", expects: &["?200", "killed"], run: kills }),
    Kind::Beside(case("C14", "damaged native code", &["200"], artifacts, damage).at_control().burns()),
    Kind::Beside(case("C15", "native code of another", &["200"], artifacts, swap).at_control().burns()),
    Kind::Missing { row: "C16", name: "who else has this module", why: "no tenants yet" },
    Kind::Beside(case("C17", "manifests", &["400 bad-manifest", "4*"], nothing, manifests).at_control()),
];

/// A larger module than is taken: announced, without announcement, and more than was announced.
fn huge(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    const GIB: u64 = 1 << 30;
    let target = "/v1/functions/huge";
    stage.crowd(4, seen, |index, seen| {
        let announced = ("content-length", &*(10 * GIB).to_string());
        stage.ask(index, "PUT", target, &[announced], b"\0asm\x01\0\0\0", seen);
        let Ok(mut conn) = stage.connect(index) else { return seen.complain("no connection") };
        let begun = conn.send(http::head("PUT", target, &[("transfer-encoding", "chunked")], 0) + "8\r\n\0asm\x01\0\0\0\r\n");
        seen.check(begun.is_ok(), || "a deploy could not begin".into());
        let piece = [&b"10000\r\n"[..], &[0; 65_536], b"\r\n"].concat();
        let mut sent = 0;
        while sent < GIB && conn.send(&piece).is_ok() {
            sent += 65_536;
        }
        seen.check(sent < GIB / 8, || format!("{sent} bytes were taken"));
        // The answer may be lost with what was sent after it.
        if let Some(reply) = conn.reply() {
            seen.answered(Some(&reply));
        }
    });
    Ok(())
}

/// Modules that pass one cap each, as text that is made when it is needed.
fn over_caps(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let entry = "(func (export \"hob_handle\"))";
    let many = |count: usize, text: &dyn Fn(usize) -> String| (0..count).map(text).collect::<String>();
    let targets = "0 ".repeat(10_002);
    let nested = |levels: usize| format!("{}{}", "(block ".repeat(levels), ")".repeat(levels));
    let modules = [
        ("functions", handler(&format!("{entry}{}", "(func)".repeat(100_001)))),
        // A type of its own for each number: its digits in base 2.
        ("types", handler(&format!("{}{entry}", many(10_001, &|n| format!("(type (func (param {})))", digits(n)))))),
        (
            "imports",
            crate::guests::handler_with(
                &"(import \"hob1\" \"log\" (func (param i32 i32 i32)))".repeat(2000),
                "(memory (export \"memory\") 1)",
                entry,
            ),
        ),
        ("exports", handler(&format!("(func $e){entry}{}", many(10_001, &|n| format!("(export \"e{n}\" (func $e))"))))),
        ("segments", handler(&format!("{}{entry}", "(data (i32.const 0) \"\")".repeat(20_001)))),
        ("globals", handler(&format!("{}{entry}", "(global i32 (i32.const 0))".repeat(50_001)))),
        ("body", handler(&format!("(func {}){entry}", "nop ".repeat((1 << 20) + 1)))),
        ("locals", handler(&format!("(func (local {})){entry}", "i32 ".repeat(50_001)))),
        ("nesting", handler(&format!("(func {}){entry}", nested(1001)))),
        ("targets", handler(&format!("(func (br_table {targets} (i32.const 0))){entry}"))),
        ("memories", handler(&format!("(memory 1)(memory 1){entry}"))),
        ("tables", handler(&format!("{}{entry}", "(table 1 funcref)".repeat(5)))),
    ];
    let modules = modules.into_iter().map(|(name, text)| Ok((name, guests::wasm(&text)?))).collect::<anyhow::Result<Vec<_>>>()?;
    stage.crowd(3, seen, |index, seen| {
        for (name, wasm) in modules.iter().skip(index).step_by(3) {
            match stage.deploy(index, name, wasm, "", seen) {
                Ok(reply) => {
                    seen.check(reply.text().contains("cap") || reply.status == 422, || format!("{name}: {}", reply.text()))
                }
                Err(error) => seen.complain(format!("{name}: {error:#}")),
            }
        }
    });
    Ok(())
}

fn digits(number: usize) -> String {
    (0..14).map(|bit| if number >> bit & 1 == 1 { "i64 " } else { "i32 " }).collect()
}

/// What a compiler takes long for, within all caps: many values that live long, and large tables of branches.
fn compiler_bombs(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let entry = "(func (export \"hob_handle\"))";
    // Each local is set from all parts of the function and read at its end.
    let locals = 8000;
    let live = |number: usize| {
        let (a, b) = ((number * 7919) % locals, (number * 104_729) % locals);
        format!("(local.set {number} (i64.add (local.get {a}) (i64.mul (local.get {b}) (i64.const {number}))))")
    };
    let sets: String = (0..locals).map(live).collect();
    let round = format!("(global i32 (i32.const {}))", stage.round);
    let lives = handler(&format!(
        "{round} {entry} (func (local {}) (loop {sets} (br_if 0 (i64.eqz (local.get 1)))))",
        "i64 ".repeat(locals)
    ));
    let arms = "(block ".repeat(900);
    let table = format!("(br_table {} (local.get 0))", (0..9000).map(|n| format!("{} ", n % 900)).collect::<String>());
    let ends = ") (local.set 0 (i32.add (local.get 0) (i32.const 1)))".repeat(900);
    let tables = handler(&format!("{round} {entry} {}", format!("(func (param i32) {arms} {table} {ends})").repeat(30)));
    let bombs = [("lives", guests::wasm(&lives)?), ("tables", guests::wasm(&tables)?)];
    stage.crowd(2, seen, |index, seen| {
        let (name, wasm) = &bombs[index];
        let began = Instant::now();
        match stage.deploy(index, name, wasm, "", seen) {
            Ok(reply) => seen.note(format!("{name}: {} after {:.1?}", reply.key(), began.elapsed())),
            Err(error) => seen.complain(format!("{error:#}")),
        }
    });
    Ok(())
}

fn nested(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    // Text of this depth would be too much for the suite's own parser: the bytes are written here.
    let levels = 500_000;
    let mut body = vec![0];
    (0..levels).for_each(|_| body.extend_from_slice(&[0x02, 0x40]));
    body.extend(std::iter::repeat_n(0x0b, levels + 1));
    for (turn, cut) in [0, levels / 2].into_iter().enumerate() {
        let body = &body[..body.len() - cut];
        let code = [&[1][..], &leb(body.len()), body].concat();
        let wasm = [
            &b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x0e\x01\x0ahob_handle\0\0\x0a"[..],
            &leb(code.len()),
            &code,
        ]
        .concat();
        stage.deploy(turn, "nested", &wasm, "", seen)?;
    }
    Ok(())
}

fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or(0);
        number >>= 7;
        bytes.push(if number > 0 { low | 0x80 } else { low });
        if number == 0 {
            return bytes;
        }
    }
}

fn malformed(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let whole = guests::wasm(&guests::spy("AAAAAAAAAAAAAAAA", ""))?;
    stage.crowd(2, seen, |index, seen| {
        let mut dice = Dice::new(1 + index + 2 * stage.round);
        for turn in 0..stage.times(15, 2000) {
            let mut wasm = whole.clone();
            match turn % 3 {
                0 => wasm.truncate(8 + dice.below(whole.len() - 8)),
                1 => (0..8).for_each(|_| wasm[8 + dice.below(whole.len() - 8)] = dice.next().to_le_bytes()[0]),
                _ => wasm[8 + dice.below(whole.len() - 8)] ^= 1 << dice.below(8),
            }
            if let Err(error) = stage.deploy(index, "malformed", &wasm, "", seen) {
                seen.complain(format!("{error:#}"));
            }
        }
    });
    Ok(())
}

fn no_modules(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let native = std::fs::read(files(stage.node, "artifacts")?.first().context("no native code")?)?;
    let elf = std::fs::read("/proc/self/exe")?;
    let text = says("text").into_bytes();
    let component = b"\0asm\x0d\0\x01\0\xff\xff\xff\xff".to_vec();
    for (name, bytes) in [
        ("text", text),
        ("elf", elf[..elf.len().min(1 << 20)].to_vec()),
        ("native", native),
        ("component", component),
        ("nothing", Vec::new()),
    ] {
        stage.deploy(0, name, &bytes, "", seen)?;
    }
    Ok(())
}

fn proposals(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let entry = "(func (export \"hob_handle\"))";
    let modules = [
        ("memory64", format!("(module (memory (export \"memory\") i64 1) {entry})")),
        ("threads", format!("(module (memory (export \"memory\") 1 2 shared) {entry})")),
        ("gc", format!("(module (type (struct (field i32))) (memory (export \"memory\") 1) {entry})")),
        ("exceptions", handler(&format!("(tag) (func (throw 0)) {entry}"))),
        ("pages", format!("(module (memory (export \"memory\") 1 (pagesize 1)) {entry})")),
        (
            "wide",
            handler(&format!(
                "(func (param i64 i64 i64 i64) (result i64 i64) (i64.add128 (local.get 0) (local.get 1) (local.get 2) (local.get 3))) {entry}"
            )),
        ),
        ("switching", handler(&format!("(type $f (func)) (type $c (cont $f)) {entry}"))),
    ];
    for (name, text) in modules {
        let wasm = guests::wasm(&text).with_context(|| name.to_owned())?;
        let reply = stage.deploy(0, name, &wasm, "", seen)?;
        seen.check(reply.status == 422, || format!("{name}: {}", reply.key()));
    }
    Ok(())
}

/// The first bytes of a gzip of zeros; more of them would say no more.
const GZIP: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 3, 0xed, 0xc1, 1, 1, 0, 0, 0, 0x80, 0x90, 0xfe];

fn compressed(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let body = [GZIP, &[0; 4096]].concat();
    for coding in ["gzip", "zstd", "br", "deflate", "gzip, gzip"] {
        stage.ask(0, "PUT", "/v1/functions/packed", &[("content-encoding", coding)], &body, seen);
    }
    stage.ask(0, "PUT", "/v1/functions/packed", &[], &body, seen);
    Ok(())
}

fn imports(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    for (name, import) in [
        ("unknown", "(import \"env\" \"system\" (func (param i32) (result i32)))"),
        ("newer", "(import \"hob99\" \"respond\" (func (param i32 i32)))"),
        ("absent", "(import \"hob1\" \"become_root\" (func))"),
        ("preview0", "(import \"wasi_snapshot_preview1\" \"proc_exec\" (func (param i32) (result i32)))"),
        ("memory", "(import \"env\" \"memory\" (memory 1))"),
    ] {
        let wasm = guests::wasm(&crate::guests::handler_with(
            import,
            "(memory (export \"memory\") 1)",
            "(func (export \"hob_handle\"))",
        ))?;
        let reply = stage.deploy(0, name, &wasm, "", seen)?;
        let named = import.split('"').nth(1).unwrap_or("");
        seen.check(reply.text().contains(named), || format!("{name}: the answer does not say '{named}': {}", reply.text()));
    }
    Ok(())
}

fn racers(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    deployed(stage, "race", &says("0"), "")
}

/// Many deploy on top of the same revision: one wins, and the others learn of it.
fn race(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    for turn in 0..stage.times(2, 200) {
        let tag = stage.node.inspect("race")?["etag"].as_str().context("no tag")?.to_owned();
        let winners = AtomicUsize::new(0);
        stage.crowd(6, seen, |index, seen| {
            let Ok(wasm) = guests::wasm(&says(&format!("{turn} {index} {}", stage.round))) else { return };
            let headers = [("if-match", &*tag), ("content-type", "application/wasm")];
            let reply = http::request(stage.node.control, attacker(index), "PUT", "/v1/functions/race", &headers, &wasm);
            seen.answered(reply.as_ref().ok());
            if reply.is_ok_and(|reply| reply.status == 200) {
                winners.fetch_add(1, Ordering::SeqCst);
            }
        });
        let winners = winners.into_inner();
        seen.check(winners == 1, || format!("{winners} of 6 deploys on top of one revision were taken"));
    }
    Ok(())
}

const VERSION_LEN: usize = 8000;

fn flippers(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    for version in ["a", "b"] {
        deployed(stage, "flips", &says(&version.repeat(VERSION_LEN)), "")?;
    }
    Ok(Ready::Yes)
}

/// Every answer is wholly of one revision, while it changes 20 times a second.
fn flip(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flipping = scope.spawn(|| {
            for turn in 0..stage.times(20, 2000) {
                let to = format!("{{\"to\": {}}}", 1 + turn % 2);
                let reply = stage.node.ask("POST", "/v1/functions/flips/rollback", to.as_bytes())?;
                ensure!(reply.status == 200, "a rollback: {} {}", reply.key(), reply.text());
                std::thread::sleep(Duration::from_millis(50));
            }
            over.store(true, Ordering::SeqCst);
            anyhow::Ok(())
        });
        stage.crowd(4, seen, |index, seen| {
            let Ok(mut conn) = stage.connect(index) else { return seen.complain("no connection") };
            while !over.load(Ordering::SeqCst) && !flipping.is_finished() {
                conn.request("GET", "/flips", &[], b"");
                let reply = conn.reply();
                seen.answered(reply.as_ref());
                let body = reply.map(|reply| reply.body).unwrap_or_default();
                let whole = body.len() == VERSION_LEN && body.iter().all(|byte| *byte == body[0]);
                seen.check(whole, || format!("an answer of {} bytes is of no one revision", body.len()));
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        match flipping.join() {
            Ok(outcome) => outcome,
            Err(_) => anyhow::bail!("the thread that deploys panicked"),
        }
    })
}

/// A node that is killed at any moment of a deploy has, after its start, the old revision or the new one, and what was acknowledged.
fn kills(ground: &Ground<'_>, seen: &mut Seen) -> anyhow::Result<Ready> {
    let dir = ground.dir.join("data");
    let mut node = Node::start(ground.binary, &dir, &Setup::default())?;
    node.deploy_wat("f", &says("0"), "")?;
    let (mut acknowledged, mut dice, mut longest) = (0, Dice::new(7), Duration::ZERO);
    for turn in 1..=ground.times(12, 300) {
        let wasm = guests::wasm(&says(&turn.to_string()))?;
        let (control, wait) = (node.control, Duration::from_micros(dice.next() % 120_000));
        let deploy = std::thread::spawn(move || {
            let headers = [("content-type", "application/wasm"), ("connection", "close")];
            http::request(control, HOME, "PUT", "/v1/functions/f", &headers, &wasm).ok().map(|reply| reply.status)
        });
        std::thread::sleep(wait);
        node.signal(Signal::KILL)?;
        node.wait()?;
        panics(&node.stderr(), seen);
        let status = deploy.join().ok().flatten();
        match status {
            Some(status) => seen.saw(&status.to_string()),
            None => seen.saw("killed"),
        }
        if status.is_some_and(|status| matches!(status, 200 | 201)) {
            acknowledged = turn;
        }
        let began = Instant::now();
        node = Node::start(ground.binary, &dir, &Setup::default())?;
        longest = longest.max(began.elapsed());
        let reply = crate::case::home(&node, "GET", "/f", &[], b"")?;
        let live = reply.text().parse::<u32>().ok();
        let right = reply.status == 200 && live.is_some_and(|live| live >= acknowledged && live <= turn);
        seen.check(right, || format!("after kill {turn}: {} '{}', acknowledged was {acknowledged}", reply.key(), reply.text()));
        let left = std::fs::read_dir(dir.join("staging"))?.count();
        seen.check(left == 0, || format!("after kill {turn}: {left} unfinished files"));
        acknowledged = live.unwrap_or(acknowledged);
    }
    seen.note(format!("the longest start after a kill took {longest:.1?}"));
    Ok(Ready::Yes)
}

fn files(node: &Node, folder: &str) -> anyhow::Result<Vec<PathBuf>> {
    let tenant = node.dir.join(folder).join("default");
    let mut files = std::fs::read_dir(&tenant)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

const FUNCTIONS: usize = 6;

fn artifacts(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    for number in 0..FUNCTIONS {
        deployed(stage, &format!("f{number}"), &says(&format!("I am {number}")), "")?;
    }
    Ok(Ready::Yes)
}

/// Every function answers as itself, from its file.
fn all_answer(stage: &Stage<'_>, seen: &mut Seen) {
    for number in 0..FUNCTIONS {
        let target = format!("/v1/functions/f{number}/invoke");
        let began = Instant::now();
        // What must be compiled first may be 503 after two seconds, and is asked again.
        loop {
            let headers = [("hob-start", "stored")];
            let reply = http::request(stage.node.control, HOME, "GET", &target, &headers, b"").ok();
            if reply.as_ref().is_some_and(|reply| reply.status == 503) && began.elapsed() < http::PATIENCE {
                continue;
            }
            seen.answered(reply.as_ref());
            let text = reply.map(|reply| reply.text()).unwrap_or_default();
            seen.check(text == format!("I am {number}"), || format!("function {number} answers '{text:.200}'"));
            break;
        }
    }
}

/// Files take the place of others by renaming, as whoever may write there would do it; what is mapped stays as it was.
fn put(path: &std::path::Path, bytes: &[u8]) -> anyhow::Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, bytes)?;
    Ok(std::fs::rename(beside, path)?)
}

fn damage(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let mut dice = Dice::new(1 + stage.round);
    let before = stage.node.metric("hob_artifacts_corrupt_total")?;
    for turn in 0..stage.times(1, 200) {
        for (number, path) in files(stage.node, "artifacts")?.iter().enumerate() {
            let mut bytes = std::fs::read(path)?;
            let at = dice.below(bytes.len().max(1));
            match (turn + number + stage.round) % 5 {
                0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
                1 => bytes.truncate(at),
                2 => bytes.fill(0),
                3 => bytes.clear(),
                _ if at < bytes.len() => (0..64).for_each(|_| bytes[dice.below(at + 1)] ^= dice.next().to_le_bytes()[0]),
                _ => {}
            }
            put(path, &bytes)?;
        }
        all_answer(stage, seen);
    }
    let found = stage.node.metric("hob_artifacts_corrupt_total")? - before;
    seen.check(found > 0, || "N7: no damage was counted".into());
    Ok(())
}

fn swap(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    for _ in 0..stage.times(1, 50) {
        let paths = files(stage.node, "artifacts")?;
        let bytes = paths.iter().map(std::fs::read).collect::<Result<Vec<_>, _>>()?;
        for (path, other) in paths.iter().zip(bytes.iter().cycle().skip(1)) {
            put(path, other)?;
        }
        all_answer(stage, seen);
    }
    Ok(())
}

fn manifests(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let wasm = guests::wasm(&does("(call $number (i32.const 0))"))?;
    let deep = format!("a = {}{}", "[".repeat(30_000), "]".repeat(30_000));
    let tables = format!("[{}]", vec!["a"; 20_000].join("."));
    let routes = format!("route = [{}]", "\"/a\",".repeat(33));
    let manifests: Vec<Vec<u8>> = vec![
        vec![b'a'; 10 << 20],
        vec![b'#'; (64 << 10) + 1],
        deep.into(),
        tables.into(),
        routes.into(),
        b"name = \"other\"".to_vec(),
        b"unknown = 1".to_vec(),
        b"name = \"manifest\"\nname = \"manifest\"".to_vec(),
        b"[limits]\nmemory = nan".to_vec(),
        b"[limits]\nmemory = \"99999999999999999999GiB\"".to_vec(),
        b"[limits]\ncpu = \"-1s\"".to_vec(),
        b"[limits]\nconcurrency = 1e99".to_vec(),
        b"[limits]\nmemory = \"\xd9\xa1MiB\"".to_vec(),
        "name = \"m\u{0430}nifest\"".into(),
        b"\xff\xfe\0".to_vec(),
        b"{\"name\": \"manifest\"}".to_vec(),
        b"env = { \"A=B\" = \"c\" }".to_vec(),
        b"env = { A = \"a\\u0000b\" }".to_vec(),
        b"[grants]\nfiles = [{ host = \"../../etc\", guest = \"/\", access = \"root\" }]".to_vec(),
    ];
    for (number, manifest) in manifests.iter().enumerate() {
        let (kind, body) = http::multipart(&[("manifest", manifest), ("wasm", &wasm)]);
        let reply = stage.ask(number, "PUT", "/v1/functions/manifest", &[("content-type", &kind)], &body, seen);
        if let Some(reply) = reply {
            seen.check((400..500).contains(&reply.status), || {
                format!("manifest {number}: {} {:.200}", reply.key(), reply.text())
            });
        }
    }
    // Forms that are none.
    for body in ["", "--x\r\n", "--x\r\ncontent-disposition: form-data; name=\"wasm\"\r\n\r\n", &"--x\r\n\r\n".repeat(5000)] {
        stage.ask(
            0,
            "PUT",
            "/v1/functions/manifest",
            &[("content-type", "multipart/form-data; boundary=x")],
            body.as_bytes(),
            seen,
        );
    }
    Ok(())
}

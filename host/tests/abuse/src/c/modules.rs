//! Modules that are none, that nobody should take, or that take a compiler long.

use std::time::Instant;

use anyhow::Context as _;

use super::files;
use crate::b::Dice;
use crate::case::{Seen, Stage};
use crate::guests::{self, handler, says};
use crate::http;

/// A larger module than is taken: announced, without announcement, and more than was announced.
pub(super) fn huge(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
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
pub(super) fn over_caps(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
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
pub(super) fn compiler_bombs(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
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

pub(super) fn nested(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
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

pub(super) fn malformed(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
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

pub(super) fn no_modules(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
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

pub(super) fn proposals(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let entry = "(func (export \"hob_handle\"))";
    let modules = [
        ("memory64", format!("(module (memory (export \"memory\") i64 1) {entry})")),
        ("threads", format!("(module (memory (export \"memory\") 1 2 shared) {entry})")),
        ("gc", format!("(module (type (struct (field i32))) (memory (export \"memory\") 1) {entry})")),
        ("references", handler(&format!("(type $t (func)) (func (param (ref $t))) {entry}"))),
        ("calls", handler(&format!("(type $t (func)) (func (param (ref null $t)) (call_ref $t (local.get 0))) {entry}"))),
        ("never-null", handler(&format!("(func (param (ref func))) {entry}"))),
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

pub(super) fn compressed(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let body = [GZIP, &[0; 4096]].concat();
    for coding in ["gzip", "zstd", "br", "deflate", "gzip, gzip"] {
        stage.ask(0, "PUT", "/v1/functions/packed", &[("content-encoding", coding)], &body, seen);
    }
    stage.ask(0, "PUT", "/v1/functions/packed", &[], &body, seen);
    Ok(())
}

pub(super) fn imports(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
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

//! What guests write to their logs.

use anyhow::Context as _;

use crate::b::Dice;
use crate::case::{Ready, Seen, Stage, deployed};
use crate::guests::{does, handler_with};

pub(super) fn floods(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    // 1,000 entries of 60,000 bytes; and as many writes of a byte as fit into the time.
    let text = does(
        "(local $i i32)
         (loop $more
           (call $log (i32.const 1) (i32.const 0) (i32.const 60000))
           (local.set $i (i32.add (local.get $i) (i32.const 1)))
           (br_if $more (i32.lt_u (local.get $i) (i32.const 1000))))
         (call $number (i32.const 0))",
    );
    deployed(stage, "log", &text, "[limits]\ncpu = \"300ms\"\n")?;
    let text = handler_with(
        "(import \"wasi_snapshot_preview1\" \"fd_write\" (func $write (param i32 i32 i32 i32) (result i32)))",
        "(memory (export \"memory\") 1)",
        "(func (export \"hob_handle\") (local $i i32)
           (i32.store (i32.const 4) (i32.const 1))
           (loop $more
             (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
             (local.set $i (i32.add (local.get $i) (i32.const 1)))
             (br_if $more (i32.lt_u (local.get $i) (i32.const 10000000))))
           (call $number (i32.const 0)))",
    );
    deployed(stage, "bytes", &text, "[limits]\ncpu = \"300ms\"\n")
}

pub(super) fn flood(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    stage.crowd(stage.times(4, 32), seen, |index, seen| {
        for name in ["log", "bytes"] {
            stage.get(index, name, seen);
        }
    });
    for name in ["log", "bytes"] {
        let logs = stage.node.ask("GET", &format!("/v1/functions/{name}/logs?tail=1000"), b"")?;
        // What is kept of one function, as JSON writes it.
        seen.check(logs.body.len() < 4 << 20, || format!("{name}: {} bytes of log are kept", logs.body.len()));
        let says = logs.text().contains("dropped");
        seen.check(says, || format!("{name}: nothing says how much was dropped"));
    }
    let said = stage.node.stderr().len();
    seen.check(said < 1 << 20, || format!("the node itself wrote {said} bytes"));
    Ok(())
}

pub(super) fn forgers(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    // Logs the request's body, by the ABI and on standard output.
    let text = handler_with(
        "(import \"wasi_snapshot_preview1\" \"fd_write\" (func $write (param i32 i32 i32 i32) (result i32)))",
        "(memory (export \"memory\") 1)",
        "(func (export \"hob_handle\") (local $len i32) (local $n i32)
           (local.set $len (call $request_read (i32.const 0) (i32.const 16384)))
           (local.set $n (i32.load (i32.const 12)))
           (call $log (i32.const 1) (i32.sub (local.get $len) (local.get $n)) (local.get $n))
           (i32.store (i32.const 20000) (i32.sub (local.get $len) (local.get $n)))
           (i32.store (i32.const 20004) (local.get $n))
           (drop (call $write (i32.const 1) (i32.const 20000) (i32.const 1) (i32.const 20016)))
           (drop (call $write (i32.const 2) (i32.const 20000) (i32.const 1) (i32.const 20016)))
           (call $number (local.get $n)))",
    );
    deployed(stage, "forger", &text, "")
}

/// Control characters, forged entries, and bytes that are no text: each entry is one line of one source, and a terminal is not touched.
pub(super) fn forge(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let mut dice = Dice::new(1 + stage.round);
    for turn in 0..stage.times(50, 2000) {
        let body = match turn % 5 {
            0 => b"\x1b[2J\x1b]0;owned\x07 \x9b31m\r\nlevel=error source=host forged\r".to_vec(),
            1 => "{\"source\":\"host\",\"level\":\"error\",\"text\":\"forged\"}\n\u{202e}\u{2028}x\u{85}y".into(),
            _ => (0..200).flat_map(|_| dice.next().to_le_bytes()).collect(),
        };
        stage.ask(0, "POST", "/forger", &[], &body, seen);
    }
    let logs = stage.node.ask("GET", "/v1/functions/forger/logs?tail=1000", b"")?.json()?;
    let entries = logs["items"].as_array().context("logs without items")?;
    seen.check(!entries.is_empty(), || "nothing was logged".into());
    for entry in entries {
        let (source, text) = (entry["source"].as_str().unwrap_or(""), entry["text"].as_str().unwrap_or(""));
        seen.check(["log", "stdout", "stderr", "host"].contains(&source), || format!("the source '{source}'"));
        seen.check(source != "host" || !text.contains("forged"), || format!("a guest spoke as the host: {text}"));
    }
    let server = format!("http://{}", stage.node.control);
    let output = std::process::Command::new(stage.binary).args(["--server", &server, "logs", "forger"]).output()?;
    seen.check(output.status.success(), || format!("hob logs: {} {}", output.status, String::from_utf8_lossy(&output.stderr)));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let control = text.chars().find(|c| c.is_control() && *c != '\n' && *c != '\t');
    seen.check(control.is_none(), || format!("hob logs printed {control:?}"));
    for line in stage.node.stderr().lines() {
        seen.check(!line.contains("forged") && !line.contains('\x1b'), || format!("the node's own log: {line}"));
    }
    Ok(())
}

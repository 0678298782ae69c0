//! Folders that guests are granted, and sockets that they are not.

use std::fs::rename;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;

use crate::case::{Ready, Seen, Stage, deployed};
use crate::escape::{self, SENTINEL, picture};
use crate::guests::handler_with;
use crate::world;

/// The calls that a guest here makes.
fn imports() -> String {
    let import = |name: &str, params: &str| {
        format!("(import \"wasi_snapshot_preview1\" \"{name}\" (func ${name} (param {params}) (result i32)))\n")
    };
    [
        import("path_open", "i32 i32 i32 i32 i32 i64 i64 i32 i32"),
        import("path_create_directory", "i32 i32 i32"),
        import("path_filestat_get", "i32 i32 i32 i32 i32"),
        import("path_filestat_set_times", "i32 i32 i32 i32 i64 i64 i32"),
        import("path_link", "i32 i32 i32 i32 i32 i32 i32"),
        import("path_readlink", "i32 i32 i32 i32 i32 i32"),
        import("path_remove_directory", "i32 i32 i32"),
        import("path_rename", "i32 i32 i32 i32 i32 i32"),
        import("path_symlink", "i32 i32 i32 i32 i32"),
        import("path_unlink_file", "i32 i32 i32"),
        import("fd_read", "i32 i32 i32 i32"),
        import("fd_write", "i32 i32 i32 i32"),
        import("fd_readdir", "i32 i32 i32 i64 i32"),
        import("fd_close", "i32"),
    ]
    .concat()
}

/// Every call of preview 1 that takes a path, with the path that is the request's body, and with the file `new` where there are two.
/// Answers with all that it read: contents, targets of links, names.
fn tries() -> String {
    let imports = imports();
    let path = "(local.get $at) (local.get $n)";
    let other = "(i32.const 16400) (i32.const 3)";
    // Opened in some way, with what may be done to it then; 3 is the granted folder.
    let opens = |follow: u32, flags: u32, rights: u64, then: &str| {
        format!(
            "(if (i32.eqz (call $path_open (i32.const 3) (i32.const {follow}) {path} (i32.const {flags}) (i64.const {rights}) (i64.const {rights}) (i32.const 0) (i32.const 16500)))
               (then {then} (drop (call $fd_close (i32.load (i32.const 16500))))))"
        )
    };
    let reads = "(i32.store (i32.const 16508) (i32.add (i32.const 65536) (local.get $len)))
                 (i32.store (i32.const 16512) (i32.const 2000))
                 (if (i32.eqz (call $fd_read (i32.load (i32.const 16500)) (i32.const 16508) (i32.const 1) (i32.const 16516)))
                   (then (local.set $len (i32.add (local.get $len) (i32.load (i32.const 16516))))))";
    let lists = "(if (i32.eqz (call $fd_readdir (i32.load (i32.const 16500)) (i32.add (i32.const 65536) (local.get $len)) (i32.const 2000) (i64.const 0) (i32.const 16516)))
                   (then (local.set $len (i32.add (local.get $len) (i32.load (i32.const 16516))))))";
    let writes = "(i32.store (i32.const 16508) (i32.const 16400))
                  (i32.store (i32.const 16512) (i32.const 3))
                  (drop (call $fd_write (i32.load (i32.const 16500)) (i32.const 16508) (i32.const 1) (i32.const 16516)))";
    // Rights: read 2, write 64, list 16384.
    let calls = [
        opens(1, 0, 2, reads),
        opens(0, 0, 2, reads),
        opens(1, 2, 16384, lists),
        format!(
            "(if (i32.eqz (call $path_readlink (i32.const 3) {path} (i32.add (i32.const 65536) (local.get $len)) (i32.const 2000) (i32.const 16516)))
               (then (local.set $len (i32.add (local.get $len) (i32.load (i32.const 16516))))))"
        ),
        format!("(drop (call $path_filestat_get (i32.const 3) (i32.const 1) {path} (i32.const 16600)))"),
        format!("(drop (call $path_filestat_set_times (i32.const 3) (i32.const 1) {path} (i64.const 0) (i64.const 0) (i32.const 5)))"),
        format!("(drop (call $path_link (i32.const 3) (i32.const 0) {path} (i32.const 3) {other}))"),
        opens(1, 0, 66, writes),
        // Created, truncated.
        opens(1, 1, 64, writes),
        opens(1, 8, 64, writes),
        format!("(drop (call $path_symlink {path} (i32.const 3) {other}))"),
        format!("(drop (call $path_symlink {other} (i32.const 3) {path}))"),
        format!("(drop (call $path_link (i32.const 3) (i32.const 0) {other} (i32.const 3) {path}))"),
        format!("(drop (call $path_create_directory (i32.const 3) {path}))"),
        format!("(drop (call $path_rename (i32.const 3) {path} (i32.const 3) {other}))"),
        format!("(drop (call $path_rename (i32.const 3) {other} (i32.const 3) {path}))"),
        format!("(drop (call $path_remove_directory (i32.const 3) {path}))"),
        format!("(drop (call $path_unlink_file (i32.const 3) {path}))"),
    ]
    .concat();
    handler_with(
        &imports,
        "(memory (export \"memory\") 3)",
        &format!(
            "(data (i32.const 16400) \"new\")
             (func (export \"hob_handle\") (local $at i32) (local $n i32) (local $len i32)
               (local.set $at (call $request_read (i32.const 0) (i32.const 16384)))
               (local.set $n (i32.load (i32.const 12)))
               (local.set $at (i32.sub (local.get $at) (local.get $n)))
               {calls}
               (call $answer (i32.const 200) (i32.const 65536) (local.get $len)))"
        ),
    )
}

pub(super) fn folder(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    let [root, _] = world::folders(beside(stage)?);
    for (name, access) in [("reads", "read"), ("writes", "read-write")] {
        let manifest = format!(
            "[limits]\ncpu = \"30s\"\nwall = \"1m\"\n[grants]\nfiles = [{{ host = {root:?}, guest = \"/d\", access = \"{access}\" }}]\n"
        );
        stage.node.deploy_wat(name, &tries(), &manifest)?;
    }
    Ok(Ready::Yes)
}

/// The folder that has the node's.
fn beside<'a>(stage: &Stage<'a>) -> anyhow::Result<&'a Path> {
    stage.node.dir.parent().context("a folder without a parent")
}

fn tells(text: &str) -> bool {
    // What lies outside, `/etc/passwd`, and the environment of the process.
    [SENTINEL, "root:", "PATH="].iter().any(|secret| text.contains(secret))
}

/// Every path that leads out, by every call: nothing outside is read or changed, and what may only be read is as it was.
pub(super) fn paths(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let [root, outside] = world::folders(beside(stage)?);
    for name in ["reads", "writes"] {
        for path in escape::paths(&outside) {
            escape::links(&root, &outside);
            std::fs::write(root.join("inside"), "inside!")?;
            let before = (picture(&outside), picture(&root));
            let reply = stage.ask(0, "POST", &format!("/{name}"), &[], path.as_bytes(), seen);
            let text = reply.map(|reply| reply.text()).unwrap_or_default();
            seen.check(!tells(&text), || format!("{path:.200}: {text:.300}"));
            seen.check(picture(&outside) == before.0, || format!("{path:.200} by '{name}' changed something outside"));
            seen.check(name == "writes" || picture(&root) == before.1, || format!("{path:.200} changed what can only be read"));
        }
        // The calls work: or nothing was tried.
        std::fs::write(root.join("inside"), "inside!")?;
        let reply = stage.ask(0, "POST", &format!("/{name}"), &[], b"inside", seen);
        seen.check(reply.is_some_and(|reply| reply.text().contains("inside!")), || format!("'{name}' reads nothing"));
        seen.check(root.join("inside").exists() == (name == "reads"), || format!("'{name}' removes, or does not"));
    }
    Ok(())
}

/// A folder and a link that leads out of it change places all the time, while guests do all they can to a file below.
pub(super) fn swaps(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let [root, outside] = world::folders(beside(stage)?);
    let (swap, link, aside) = (root.join("swap"), root.join("out"), root.join("aside"));
    if !link.is_symlink() {
        std::os::unix::fs::symlink("../outside", &link)?;
    }
    let before = picture(&outside);
    let over = AtomicBool::new(false);
    let swapped = std::thread::scope(|scope| {
        let swapping = scope.spawn(|| {
            let mut count = 0_u64;
            // Guests may have put something in the place of either, which is then in nobody's way.
            while !over.load(Ordering::SeqCst) {
                for (from, to) in [(&swap, &aside), (&link, &swap), (&swap, &link), (&aside, &swap)] {
                    count += u64::from(rename(from, to).is_ok());
                }
                // What guests removed is put back.
                let _is_a_link_now = std::fs::write(aside.join("file"), "inside!");
            }
            count
        });
        stage.crowd(4, seen, |index, seen| {
            for turn in 0..stage.times(100, 5000) {
                let (name, path) =
                    [("writes", "swap/file"), ("reads", "swap/file"), ("writes", "swap/new"), ("reads", "swap")][turn % 4];
                let reply = stage.ask(index, "POST", &format!("/{name}"), &[], path.as_bytes(), seen);
                let text = reply.map(|reply| reply.text()).unwrap_or_default();
                seen.check(!tells(&text), || format!("{path}: {text:.300}"));
            }
        });
        over.store(true, Ordering::SeqCst);
        swapping.join().unwrap_or(0)
    });
    seen.check(swapped > 0, || "nothing was swapped".into());
    seen.check(picture(&outside) == before, || "something outside has changed".into());
    seen.note(format!("{swapped} renames"));
    Ok(())
}

/// The calls of preview 1 for sockets, on every descriptor that a guest might have: answers how many of them worked.
pub(super) fn sockets_setup(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    let text = handler_with(
        "(import \"wasi_snapshot_preview1\" \"sock_accept\" (func $accept (param i32 i32 i32) (result i32)))
         (import \"wasi_snapshot_preview1\" \"sock_recv\" (func $recv (param i32 i32 i32 i32 i32 i32) (result i32)))
         (import \"wasi_snapshot_preview1\" \"sock_send\" (func $send (param i32 i32 i32 i32 i32) (result i32)))
         (import \"wasi_snapshot_preview1\" \"sock_shutdown\" (func $shutdown (param i32 i32) (result i32)))",
        "(memory (export \"memory\") 1)",
        "(func (export \"hob_handle\") (local $fd i32) (local $worked i32)
           (i32.store (i32.const 100) (i32.const 200))
           (i32.store (i32.const 104) (i32.const 100))
           (loop $more
             (local.set $worked (i32.add (local.get $worked) (i32.eqz (call $accept (local.get $fd) (i32.const 0) (i32.const 300)))))
             (local.set $worked (i32.add (local.get $worked) (i32.eqz (call $recv (local.get $fd) (i32.const 100) (i32.const 1) (i32.const 0) (i32.const 300) (i32.const 304)))))
             (local.set $worked (i32.add (local.get $worked) (i32.eqz (call $send (local.get $fd) (i32.const 100) (i32.const 1) (i32.const 0) (i32.const 300)))))
             (local.set $worked (i32.add (local.get $worked) (i32.eqz (call $shutdown (local.get $fd) (i32.const 1)))))
             (local.set $fd (i32.add (local.get $fd) (i32.const 1)))
             (br_if $more (i32.lt_u (local.get $fd) (i32.const 1024))))
           (call $number (local.get $worked)))",
    );
    deployed(stage, "sockets", &text, "[limits]\ncpu = \"5s\"\n")
}

pub(super) fn sockets(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    stage.crowd(4, seen, |index, seen| {
        for _ in 0..stage.times(5, 200) {
            let body = stage.get(index, "sockets", seen).map(|reply| reply.body);
            seen.check(body.as_deref() == Some(&[0; 4]), || format!("calls of sockets that worked: {body:?}"));
        }
    });
    Ok(())
}

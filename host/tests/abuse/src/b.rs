//! B: a guest's memory, and what it makes the host hold.

use std::time::{Duration, Instant};

use crate::case::{Kind, Ready, Seen, Stage, case, deployed, eventually, nothing};
use crate::guests::{self, SPINS, does, handler, handler_with};
use crate::http::Conn;
use crate::node::value;

pub(crate) const CASES: &[Kind] = &[
    Kind::Beside(case("B1", "memory bomb", &["502 guest-memory", "200"], bombs, bomb).burns()),
    Kind::Beside(case("B1", "memories too large", &["422 not-deployable", "422 module-over-cap"], nothing, too_large)),
    Kind::Beside(case("B2", "table bomb", &["200", "502 guest-memory"], table_bombs, table_bomb).burns()),
    Kind::Beside(case("B2", "tables too large", &["422 *"], nothing, tables_too_large)),
    Kind::Beside(case("B3", "globals and exports", &["422 module-over-cap"], nothing, bloat).burns()),
    Kind::Beside(case("B4", "huge arguments of host calls", &["200", "502 *", "504 cpu-deadline"], huge_setup, huge).burns()),
    Kind::Beside(
        case(
            "B5",
            "bad pointers into every import",
            &["502 guest-bad-call", "200", "502 *", "504 *", "200 cut", "500"],
            pointers_setup,
            pointers,
        )
        .burns(),
    ),
    Kind::Beside(case("B6", "what another instance left", &["200", "502 guest-trap"], spies, spy).burns()),
    Kind::Beside(case("B7", "all places of a function", &["429 concurrency", "200"], holders, hold_function).settings(&[
        "engine.instances_max=400",
        "net.body_idle_timeout=10m",
        "net.body_rate_min=0",
    ])),
    Kind::Beside(
        case("B7", "all instances of the node", &["503 overloaded", "200"], holders, hold_node)
            .settings(&[
                "engine.instances_max=64",
                "engine.instance_wait=100ms",
                "net.body_idle_timeout=10m",
                "net.body_rate_min=0",
            ])
            .victim_may_be_refused(),
    ),
    Kind::Beside(
        case("B8", "traps, deadlines and answers", &["200", "502 guest-trap", "504 cpu-deadline"], soak_setup, soak).burns(),
    ),
];

const NO_SNAPSHOT: &str = "snapshot = \"off\"\n";

fn bombs(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    let grows = "(loop $more (br_if $more (i32.ge_s (memory.grow (i32.const 1)) (i32.const 0))))";
    let touches = "(local $at i32) (local $end i32) (local.set $end (i32.mul (memory.size) (i32.const 65536)))";
    // All of it is written to, then asked for more: what follows is a trap, or an answer.
    let text = |end: &str| {
        does(&format!(
            "{touches} {grows} (local.set $end (i32.mul (memory.size) (i32.const 65536)))
             (loop $more
               (i32.store (local.get $at) (i32.const 1))
               (local.set $at (i32.add (local.get $at) (i32.const 4096)))
               (br_if $more (i32.lt_u (local.get $at) (local.get $end))))
             {end}"
        ))
    };
    deployed(stage, "traps", &text("unreachable"), NO_SNAPSHOT)?;
    deployed(stage, "answers", &text("(call $number (memory.size))"), NO_SNAPSHOT)
}

fn bomb(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    stage.crowd(8, seen, |index, seen| {
        for turn in 0..stage.times(2, 50) {
            let name = ["traps", "answers"][(index + turn) % 2];
            if let Some(reply) = stage.get(index, name, seen)
                && name == "answers"
            {
                // 128 MiB, the default, and no page more.
                seen.check(reply.body == 2048_u32.to_le_bytes(), || format!("{:?} pages instead of 2048", reply.body));
            }
        }
    });
    Ok(())
}

fn too_large(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let many = |count: usize| "(memory 1)".repeat(count);
    for (name, memory) in [
        ("whole", "(memory (export \"memory\") 65536)".to_owned()),
        ("page", "(memory (export \"memory\") 2049)".to_owned()),
        ("hundred", format!("(memory (export \"memory\") 1) {}", many(99))),
    ] {
        let wasm = guests::wasm(&handler_with("", &memory, "(func (export \"hob_handle\"))"))?;
        stage.deploy(0, name, &wasm, "", seen)?;
    }
    Ok(())
}

fn table_bombs(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    let text = |end: &str| {
        handler(&format!(
            "(table $t 0 funcref)
             (func (export \"hob_handle\")
               (loop $more (br_if $more (i32.ge_s (table.grow $t (ref.null func) (i32.const 1000)) (i32.const 0))))
               {end})"
        ))
    };
    deployed(stage, "answers", &text("(call $number (table.size $t))"), NO_SNAPSHOT)?;
    deployed(stage, "traps", &text("unreachable"), "snapshot = \"off\"\n[limits]\nmemory = \"256KiB\"\n")
}

fn table_bomb(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    stage.crowd(8, seen, |index, seen| {
        for turn in 0..stage.times(50, 500) {
            if let Some(reply) = stage.get(index, ["traps", "answers"][(index + turn) % 2], seen)
                && reply.status == 200
            {
                seen.check(reply.body == 100_000_u32.to_le_bytes(), || format!("{:?} elements instead of 100000", reply.body));
            }
        }
    });
    Ok(())
}

fn tables_too_large(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    for (name, table) in
        [("huge", "(table 4000000000 funcref)"), ("over", "(table 100001 funcref)"), ("wide", "(table i64 1 funcref)")]
    {
        let wasm = guests::wasm(&handler(&format!("{table} (func (export \"hob_handle\"))")))?;
        stage.deploy(0, name, &wasm, "", seen)?;
    }
    Ok(())
}

fn bloat(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let globals = "(global i32 (i32.const 0))".repeat(100_000);
    let exports: String =
        (0..stage.times(100_000, 1_000_000)).map(|number| format!("(export \"e{number}\" (func $entry))")).collect();
    for (name, fields) in [("globals", globals), ("exports", exports)] {
        let wasm = guests::wasm(&handler(&format!("{fields} (func $entry (export \"hob_handle\"))")))?;
        stage.deploy(0, name, &wasm, "", seen)?;
    }
    Ok(())
}

/// Calls with as much as a memory holds: some 125 MiB.
const HUGE: [(&str, &str, &str); 8] = [
    ("log", "", "(call $log (i32.const 1) (i32.const 0) (i32.const 131000000))"),
    (
        "respond",
        "",
        "(i32.store (i32.const 0) (i32.const 0)) (i32.store16 (i32.const 4) (i32.const 200)) (i32.store (i32.const 8) (i32.const 130999988)) (call $respond (i32.const 0) (i32.const 131000000)) (return)",
    ),
    (
        "headers",
        "",
        "(i32.store16 (i32.const 4) (i32.const 200)) (i32.store16 (i32.const 6) (i32.const 65535)) (call $respond (i32.const 0) (i32.const 131000000)) (return)",
    ),
    ("body", "", "(call $stream) (drop (call $body_write (i32.const 0) (i32.const 131000000))) (return)"),
    (
        "random",
        "(import \"wasi_snapshot_preview1\" \"random_get\" (func $f (param i32 i32) (result i32)))",
        "(loop $more (br_if $more (i32.eqz (call $f (i32.const 0) (i32.const 131000000)))))",
    ),
    (
        "random-most",
        "(import \"wasi_snapshot_preview1\" \"random_get\" (func $f (param i32 i32) (result i32)))",
        "(loop $more (br_if $more (i32.eqz (call $f (i32.const 0) (i32.const 67000000)))))",
    ),
    (
        "vectors",
        "(import \"wasi_snapshot_preview1\" \"fd_write\" (func $f (param i32 i32 i32 i32) (result i32)))",
        "(loop $more (br_if $more (i32.eqz (call $f (i32.const 1) (i32.const 0) (i32.const 16000000) (i32.const 131000000)))))",
    ),
    (
        "path",
        "(import \"wasi_snapshot_preview1\" \"path_open\" (func $f (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))",
        "(drop (call $f (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 131000000) (i32.const 0) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 131000000)))",
    ),
];

fn huge_setup(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    for (name, import, call) in HUGE {
        let fields = format!("(func (export \"hob_handle\") {call} (call $number (i32.const 0)))");
        let text = handler_with(import, "(memory (export \"memory\") 2040)", &fields);
        deployed(stage, name, &text, "snapshot = \"off\"\n[limits]\ncpu = \"300ms\"\nmemory = \"128MiB\"\n")?;
    }
    Ok(Ready::Yes)
}

/// One after the other, so that what a call costs its neighbours can be told.
fn huge(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    for (name, ..) in HUGE {
        let began = Instant::now();
        stage.crowd(stage.times(2, 8), seen, |index, seen| {
            stage.get(index, name, seen);
        });
        if stage.round == 2 {
            seen.note(format!("{name}: answered after {:.1?}", began.elapsed()));
        }
    }
    Ok(())
}

/// Every import of the ABI and of preview 1, by its parameters (`i` for 32 bits, `I` for 64) and whether it has a result.
const IMPORTS: &[(&str, &str, &str, bool)] = &[
    ("hob1", "request_read", "ii", true),
    ("hob1", "body_read", "ii", true),
    ("hob1", "respond", "ii", false),
    ("hob1", "body_write", "ii", true),
    ("hob1", "log", "iii", false),
    ("hob1", "bucket_open", "ii", true),
    ("hob1", "answer_read", "ii", true),
    ("hob1", "answer_wait", "ii", true),
    ("hob1", "kv_get", "iiiii", true),
    ("hob1", "kv_exists", "iii", true),
    ("hob1", "kv_get_many", "iiiii", true),
    ("hob1", "kv_scan", "iiiiiiii", true),
    ("hob1", "kv_write", "iiiii", true),
    ("hob1", "object_head", "iiiii", true),
    ("hob1", "object_open", "iiiii", true),
    ("hob1", "object_read", "iIii", true),
    ("hob1", "object_close", "i", false),
    ("hob1", "object_map", "iiiIIi", true),
    ("hob1", "object_copy", "ii", true),
    ("hob1", "object_unmap", "i", false),
    ("hob1", "object_list", "iiiiiiii", true),
    ("hob1", "object_put", "iiiii", true),
    ("hob1", "upload_write", "iii", true),
    ("hob1", "upload_finish", "iii", true),
    ("hob1", "upload_drop", "i", false),
    ("hob1", "object_delete", "iiiiiii", true),
    ("wasi_snapshot_preview1", "args_get", "ii", true),
    ("wasi_snapshot_preview1", "args_sizes_get", "ii", true),
    ("wasi_snapshot_preview1", "environ_get", "ii", true),
    ("wasi_snapshot_preview1", "environ_sizes_get", "ii", true),
    ("wasi_snapshot_preview1", "clock_res_get", "ii", true),
    ("wasi_snapshot_preview1", "clock_time_get", "iIi", true),
    ("wasi_snapshot_preview1", "fd_advise", "iIIi", true),
    ("wasi_snapshot_preview1", "fd_close", "i", true),
    ("wasi_snapshot_preview1", "fd_fdstat_get", "ii", true),
    ("wasi_snapshot_preview1", "fd_filestat_get", "ii", true),
    ("wasi_snapshot_preview1", "fd_pread", "iiiIi", true),
    ("wasi_snapshot_preview1", "fd_prestat_get", "ii", true),
    ("wasi_snapshot_preview1", "fd_prestat_dir_name", "iii", true),
    ("wasi_snapshot_preview1", "fd_pwrite", "iiiIi", true),
    ("wasi_snapshot_preview1", "fd_read", "iiii", true),
    ("wasi_snapshot_preview1", "fd_readdir", "iiiIi", true),
    ("wasi_snapshot_preview1", "fd_renumber", "ii", true),
    ("wasi_snapshot_preview1", "fd_seek", "iIii", true),
    ("wasi_snapshot_preview1", "fd_write", "iiii", true),
    ("wasi_snapshot_preview1", "path_create_directory", "iii", true),
    ("wasi_snapshot_preview1", "path_filestat_get", "iiiii", true),
    ("wasi_snapshot_preview1", "path_link", "iiiiiii", true),
    ("wasi_snapshot_preview1", "path_open", "iiiiiIIii", true),
    ("wasi_snapshot_preview1", "path_readlink", "iiiiii", true),
    ("wasi_snapshot_preview1", "path_rename", "iiiiii", true),
    ("wasi_snapshot_preview1", "path_symlink", "iiiii", true),
    ("wasi_snapshot_preview1", "path_unlink_file", "iii", true),
    ("wasi_snapshot_preview1", "poll_oneoff", "iiii", true),
    ("wasi_snapshot_preview1", "proc_exit", "i", false),
    ("wasi_snapshot_preview1", "random_get", "ii", true),
    ("wasi_snapshot_preview1", "sock_recv", "iiiiii", true),
    ("wasi_snapshot_preview1", "sock_send", "iiiii", true),
    ("wasi_snapshot_preview1", "sock_shutdown", "ii", true),
];

/// One function for all imports: the request's body is the number of one, and nine arguments of eight bytes.
fn pointers_setup(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    let (mut imports, mut arms) = (String::new(), String::new());
    for (number, (module, name, parameters, result)) in IMPORTS.iter().enumerate() {
        let types: Vec<_> = parameters.chars().map(|kind| if kind == 'i' { "i32" } else { "i64" }).collect();
        let returns = if *result { "(result i32)" } else { "" };
        imports += &format!("(import \"{module}\" \"{name}\" (func $i{number} (param {}) {returns}))\n", types.join(" "));
        let argument = |(at, kind): (usize, &&str)| format!("({kind}.load (i32.add (local.get $at) (i32.const {})))", 8 + 8 * at);
        let arguments: String = types.iter().enumerate().map(argument).collect();
        let call = format!("(call $i{number} {arguments})");
        let call = if *result { format!("(drop {call})") } else { call };
        arms += &format!("(if (i32.eq (local.get $which) (i32.const {number})) (then {call}))\n");
    }
    let text = handler_with(
        &imports,
        "(memory (export \"memory\") 2)",
        &format!(
            "(data (i32.const 40000) \"ledger\")
             (func (export \"hob_handle\") (local $at i32) (local $which i32)
               (local.set $at (i32.sub (call $request_read (i32.const 0) (i32.const 16384)) (i32.const 80)))
               (local.set $which (i32.load (local.get $at)))
               ;; Handle 0 is a bucket.
               (drop (call $i5 (i32.const 40000) (i32.const 6)))
               {arms}
               (call $number (i32.const 0)))"
        ),
    );
    let manifest = "snapshot = \"off\"\n[limits]\nwall = \"100ms\"\n[grants]\ndata = [{ bucket = \"ledger\" }]\n";
    deployed(stage, "imports", &text, manifest)
}

/// Pointers and lengths about every edge: of nothing, of the memory's 131,072 bytes, of 31, 32, 63 and 64 bits.
const EDGES: [u64; 14] = [
    0,
    1,
    8,
    40_000,
    65_535,
    131_071,
    131_072,
    131_073,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fff8,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ffff,
];

fn pointers(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    stage.crowd(8, seen, |index, seen| {
        let mut dice = Dice::new(1 + index + 8 * stage.round);
        for turn in 0..stage.times(6, 600) * IMPORTS.len() / 4 {
            let mut body = vec![0; 80];
            body[0] = u8::try_from((turn * 8 + index) % IMPORTS.len()).unwrap_or(0);
            for argument in body[8..].chunks_mut(8) {
                let value = if dice.below(4) == 0 { dice.next() } else { EDGES[dice.below(EDGES.len())] };
                argument.copy_from_slice(&value.to_le_bytes());
            }
            let reply = stage.ask(index, "POST", "/imports", &[], &body, seen);
            // Some of what is answered is the guest's own, at random.
            if let Some(reply) = reply
                && !seen.complaints.is_empty()
            {
                seen.note(format!("{}({:?}): {}", IMPORTS[usize::from(body[0])].1, &body[8..], reply.key()));
            }
        }
    });
    Ok(())
}

fn spies(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    deployed(stage, "spy-a", &guests::spy("AAAAAAAAAAAAAAAA", ""), "")?;
    deployed(stage, "spy-b", &guests::spy("BBBBBBBBBBBBBBBB", ""), "")?;
    deployed(stage, "spy-c", &guests::spy("CCCCCCCCCCCCCCCC", "unreachable"), NO_SNAPSHOT)
}

fn spy(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    stage.crowd(4, seen, |index, seen| {
        let Ok(mut conn) = stage.connect(index) else { return seen.complain("no connection") };
        for turn in 0..stage.times(100, 10_000) {
            let name = ["/spy-a", "/spy-a", "/spy-b", "/spy-b", "/spy-c"][(turn + index) % 5];
            conn.request("GET", name, &[], b"");
            let reply = conn.reply();
            seen.answered(reply.as_ref());
            let clean = reply.is_some_and(|reply| reply.status == 502 || reply.body == 0_u32.to_le_bytes());
            seen.check(clean, || format!("{name} found something of another instance"));
        }
    });
    Ok(())
}

/// Functions that wait for the end of a body; each may have 100 invocations.
fn holders(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    deployed(stage, "good", &guests::says("good"), "")?;
    deployed(stage, "holds", &guests::waits(), "[limits]\nwall = \"1h\"\nqueue = 10\nqueue_wait = \"100ms\"\n")
}

fn hold(stage: &Stage<'_>, count: usize) -> anyhow::Result<Vec<Conn>> {
    let mut held = Vec::new();
    for index in 0..count {
        let mut conn = stage.connect(index)?;
        conn.send("POST /holds HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")?;
        held.push(conn);
    }
    Ok(held)
}

fn release(held: Vec<Conn>, seen: &mut Seen) {
    for mut conn in held {
        let ended = conn.send("0\r\n\r\n");
        seen.check(ended.is_ok(), || "a connection that held a place was cut".into());
        seen.answered(conn.reply().as_ref());
    }
}

fn hold_function(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let held = hold(stage, 100)?;
    let all = eventually(Duration::from_secs(5), || Ok(stage.node.inspect("holds")?["running"] == 100))?;
    seen.check(all, || "not all places of the function were taken".into());
    stage.crowd(20, seen, |index, seen| {
        for _ in 0..stage.times(10, 500) {
            stage.get(index, "holds", seen);
        }
    });
    release(held, seen);
    Ok(())
}

fn hold_node(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let held = hold(stage, 64)?;
    let all = eventually(Duration::from_secs(5), || Ok(value(&stage.node.metrics()?, "hob_instances") >= 64))?;
    seen.check(all, || "not all instances were taken".into());
    stage.crowd(20, seen, |index, seen| {
        for _ in 0..stage.times(5, 50) {
            stage.get(index, "holds", seen);
        }
    });
    release(held, seen);
    let began = Instant::now();
    let free = eventually(Duration::from_secs(1), || Ok(stage.get(0, "good", seen).is_some_and(|reply| reply.status == 200)))?;
    seen.check(free, || "a second after the instances were free the node still refuses".into());
    seen.note(format!("served again after {:.1?}", began.elapsed()));
    Ok(())
}

fn soak_setup(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    deployed(stage, "traps", &does("unreachable"), NO_SNAPSHOT)?;
    deployed(stage, "late", &does(SPINS), "snapshot = \"off\"\n[limits]\ncpu = \"2ms\"\n")?;
    deployed(stage, "good", &guests::says("good"), "")
}

fn soak(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    stage.crowd(8, seen, |index, seen| {
        let Ok(mut conn) = stage.connect(index) else { return seen.complain("no connection") };
        for turn in 0..stage.times(1000, 100_000) {
            // A connection has so many requests (`net.requests_max`).
            if turn > 0 && turn % 5000 == 0 {
                let Ok(another) = stage.connect(index) else { return seen.complain("no connection") };
                conn = another;
            }
            let name = match turn % 50 {
                0 => "/late",
                1..10 => "/traps",
                _ => "/good",
            };
            conn.request("GET", name, &[], b"");
            seen.answered(conn.reply().as_ref());
        }
    });
    Ok(())
}

/// Numbers that only look random: the same for the same seed.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: usize) -> Self {
        Self((seed as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or(0) % bound
    }
}

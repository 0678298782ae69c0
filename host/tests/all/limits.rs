//! Limits of one invocation: each is reached exactly, then passed, and answers with its own status; neighbours go on.

use crate::harness::http::Conn;
use crate::harness::wat::{self, SPINS, command, does, handler, handler_with, says, waits};
use crate::harness::{Node, eventually};

pub(crate) fn number(body: &[u8]) -> i32 {
    i32::from_le_bytes(body.try_into().unwrap())
}

/// A request whose body has begun and is never finished by itself.
pub(crate) fn hold(node: &Node, target: &str) -> Conn {
    let mut conn = node.data.connect();
    conn.begin_chunked("POST", target);
    conn.chunk(b"x").unwrap();
    conn
}

#[test]
fn processor_time_of_one_instruction() {
    let node = Node::start(&[]);
    // A GiB that nobody touched takes longer than this on any machine, and behind the instruction nothing would look at the time.
    let limits = "snapshot = \"off\"\n[limits]\ncpu = \"20ms\"\nmemory = \"2GiB\"\n";
    for operation in ["memory.fill (i32.const 0) (i32.const 7)", "memory.copy (i32.const 0) (i32.const 65536)"] {
        let wat = handler_with(
            "(memory (export \"memory\") 20000)",
            &format!("(func (export \"hob_handle\") ({operation} (i32.const 0x4e100000)) (call $number (i32.const 1)))"),
        );
        node.deploy_wat("bulk", &wat, limits);
        node.data.get("/bulk").problem(504, "cpu-deadline");
    }
}

#[test]
fn processor_time() {
    let node = Node::start(&[]);
    // What runs at the start would otherwise run at deploy (`snapshot::`).
    let limit = "snapshot = \"off\"\n[limits]\ncpu = \"50ms\"\n";
    node.deploy_wat("handler", &does(SPINS), limit);
    node.deploy_wat("start", &handler(&format!("(func $start {SPINS}) (start $start) (func (export \"hob_handle\"))")), limit);
    node.deploy_wat("init", &handler(&format!("(func (export \"_initialize\") {SPINS}) (func (export \"hob_handle\"))")), limit);
    node.deploy_wat("command", &command(&format!("(func (export \"_start\") {SPINS})")), limit);
    let component = wat::component("").replace("(result i32) i32.const 0", &format!("(result i32) {SPINS} i32.const 0"));
    node.deploy_wat("component", &component, limit);
    for name in ["handler", "start", "init", "command", "component"] {
        let reply = node.data.get(&format!("/{name}"));
        reply.problem(504, "cpu-deadline");
        assert_eq!(reply.header("hob-executed"), Some("1"), "{name}");
        assert!(node.logs(name).iter().any(|(source, _, text)| source == "host" && text.contains("cpu-deadline")), "{name}");
    }
    assert_eq!(node.faults("cpu-deadline"), 5);
    eventually("no instance is left", || node.metric("hob_instances") == 0);
}

#[test]
fn neighbours_answer_while_guests_spin() {
    let node = Node::start(&[]);
    node.deploy_wat("spins", &does(SPINS), "[limits]\ncpu = \"1h\"\nwall = \"1h\"\n");
    node.deploy_wat("good", &says("good"), "");
    let spinning: Vec<_> = (0..8)
        .map(|_| {
            let mut conn = node.data.connect();
            conn.request("GET", "/spins", &[], b"");
            conn
        })
        .collect();
    eventually("all of them spin", || node.occupancy("spins") == (8, 0));
    for _ in 0..16 {
        assert_eq!(node.data.get("/good").good(), b"good");
    }
    node.control.get("/readyz").ok();
    assert_eq!(node.control.get("/v1/functions/good/invoke").good(), b"good");
    assert_eq!(node.occupancy("spins"), (8, 0));
    // A client that leaves stops its guest, even one that never looks up.
    drop(spinning);
    eventually("their clients left, and they stopped", || node.occupancy("spins") == (0, 0));
    eventually("no instance is left", || node.metric("hob_instances") == 0);
}

#[test]
fn recursion_without_end() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &handler("(func $f (param i64) (result i64) (i64.add (call $f (local.get 0)) (i64.const 1))) (func (export \"hob_handle\") (drop (call $f (i64.const 1))))"), "");
    let problem = node.data.get("/a").problem(502, "guest-trap");
    assert!(problem["detail"].as_str().unwrap().contains("stack"), "{problem}");
}

#[test]
fn memory_is_a_sum_over_two_memories() {
    let node = Node::start(&[]);
    // One page each, 16 in all: +7, +7, then one more in either is refused; the last number holds all four results.
    let memories = "(memory (export \"memory\") 1) (memory $second 1)";
    let grow = "(local.set $sum (i32.add (i32.mul (local.get $sum) (i32.const 100)) (i32.add (i32.const 1)";
    let code = format!(
        "(local $sum i32)
         {grow} (memory.grow (i32.const 7)))))
         {grow} (memory.grow $second (i32.const 7)))))
         {grow} (memory.grow (i32.const 1)))))
         {grow} (memory.grow $second (i32.const 1)))))"
    );
    let text = |end: &str| handler_with(memories, &format!("(func (export \"hob_handle\") {code} {end})"));
    let limit = "[limits]\nmemory = \"1MiB\"\n";
    node.deploy_wat("a", &text("(call $number (local.get $sum))"), limit);
    // Sizes before were 1 and 1, so 2 and 2; then -1 and -1, so 0 and 0.
    assert_eq!(number(&node.data.get("/a").good()), 2_02_00_00);
    node.deploy_wat("b", &text("unreachable"), limit);
    let reply = node.data.get("/b");
    let problem = reply.problem(502, "guest-memory");
    assert!(problem["hint"].as_str().unwrap().contains("memory"), "{problem}");
    // One page more and all of it fits.
    node.deploy_wat("c", &text("(call $number (local.get $sum))"), "[limits]\nmemory = \"1088KiB\"\n");
    assert_eq!(number(&node.data.get("/c").good()), 2_02_09_00);
    assert_eq!(node.inspect("c")["usage"]["memory_bytes_max"], 17 << 16);
}

#[test]
fn the_whole_default_memory_can_be_used() {
    let node = Node::start(&[]);
    let code = "(local $at i32)
        (if (i32.ne (memory.grow (i32.const 2047)) (i32.const 1)) (then unreachable))
        (if (i32.ne (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))
        (loop $more
          (i32.store (local.get $at) (i32.const 1))
          (local.set $at (i32.add (local.get $at) (i32.const 65536)))
          (br_if $more (i32.lt_u (local.get $at) (i32.const 134217728))))
        (call $number (memory.size))";
    node.deploy_wat("a", &does(code), "");
    assert_eq!(number(&node.data.get("/a").good()), 2048);
}

#[test]
fn tables_count_as_memory() {
    let node = Node::start(&[]);
    // 64 KiB are the memory's; of the rest each element takes 8 bytes.
    let text = handler(
        "(table $t 0 funcref)
         (func (export \"hob_handle\")
           (if (i32.ne (table.grow $t (ref.null func) (i32.const 8192)) (i32.const 0)) (then unreachable))
           (call $number (table.grow $t (ref.null func) (i32.const 1))))",
    );
    node.deploy_wat("a", &text, "[limits]\nmemory = \"128KiB\"\n");
    assert_eq!(number(&node.data.get("/a").good()), -1);
    node.deploy_wat("b", &text, "[limits]\nmemory = \"131080\"\n");
    assert_eq!(number(&node.data.get("/b").good()), 8192);
    // A table that is refused before the guest begins.
    let large = handler("(table 100000 funcref) (func (export \"hob_handle\") (call $number (i32.const 1)))");
    node.deploy_wat("c", &large, "snapshot = \"off\"\n[limits]\nmemory = \"128KiB\"\n");
    node.data.get("/c").problem(502, "guest-memory");
    // The node's own bound on one table, whatever the memory.
    node.deploy_wat("d", &text.replace("(i32.const 8192)", "(i32.const 100000)"), "[limits]\nmemory = \"1GiB\"\n");
    assert_eq!(number(&node.data.get("/d").good()), -1);
}

#[test]
fn traps() {
    let node = Node::start(&[]);
    for (name, code) in [
        ("unreachable", "unreachable"),
        ("divide", "(call $number (i32.div_s (i32.const 1) (i32.load (i32.const 0))))"),
        ("outside", "(call $number (i32.load (i32.const 65533)))"),
        ("null", "(call_indirect $t (i32.const 0))"),
    ] {
        node.deploy_wat(name, &handler(&format!("(table $t 1 funcref) (func (export \"hob_handle\") {code})")), "");
        let reply = node.data.get(&format!("/{name}"));
        reply.problem(502, "guest-trap");
        assert_eq!(reply.header("hob-executed"), Some("1"));
        let logs = node.logs(name);
        assert!(
            logs.iter().any(
                |(source, level, text)| (source.as_str(), level.as_str()) == ("host", "error") && text.contains("guest-trap")
            ),
            "{logs:?}"
        );
    }
    let start = handler("(func $start unreachable) (start $start) (func (export \"hob_handle\"))");
    node.deploy_wat("start", &start, "snapshot = \"off\"");
    node.data.get("/start").problem(502, "guest-trap");
    assert_eq!(node.faults("guest-trap"), 5);
}

#[test]
fn exit_codes_of_commands() {
    let node = Node::start(&[]);
    let exits = |code: u32| {
        command(&format!(
            "(data (i32.const 0) \"out\\n\") (data (i32.const 16) \"went wrong\\n\")
             (func (export \"_start\")
               (call $write (i32.const 1) (i32.const 0) (i32.const 4))
               (call $write (i32.const 2) (i32.const 16) (i32.const 11))
               (call $proc_exit (i32.const {code})) unreachable)"
        ))
    };
    node.deploy_wat("good", &exits(0), "");
    assert_eq!(node.data.get("/good").good(), b"out\n");
    node.deploy_wat("three", &exits(3), "");
    let reply = node.data.get("/three");
    let problem = reply.problem(502, "guest-exit");
    assert!(problem["detail"].as_str().unwrap().contains("code 3"), "{problem}");
    assert!(!reply.text().contains("went wrong"), "the guest's words stay out of the answer: {}", reply.text());
    let logs = node.logs("three");
    assert!(logs.contains(&("stderr".into(), "warn".into(), "went wrong".into())), "{logs:?}");
    assert_eq!((node.faults("guest-exit"), node.inspect("three")["usage"]["faults"]["guest-exit"].as_u64()), (1, Some(1)));
}

#[test]
fn a_command_that_fails_after_its_head_was_sent() {
    let node = Node::start(&[]);
    let writes = |end: &str| {
        command(&format!("(func (export \"_start\") (call $write (i32.const 1) (i32.const 0) (i32.const 80000)) {end})"))
    };
    for (name, end, code, cpu) in [
        ("traps", "unreachable", "guest-trap", "1h"),
        ("exits", "(call $proc_exit (i32.const 3))", "guest-exit", "1h"),
        ("spins", SPINS, "cpu-deadline", "1s"),
    ] {
        node.deploy_wat(name, &writes(end), &format!("[limits]\ncpu = \"{cpu}\"\nwall = \"1h\"\n"));
        let reply = node.data.get(&format!("/{name}"));
        assert_eq!((reply.status(), reply.header("transfer-encoding")), (200, Some("chunked")), "{name}");
        assert!(!reply.whole && reply.body.len() <= 80_000, "{name}: {} bytes", reply.body.len());
        eventually("it is counted under its code", || node.faults(code) == 1);
        let logs = node.logs(name);
        assert!(logs.iter().any(|(source, _, text)| source == "host" && text.contains(code)), "{logs:?}");
    }
    node.deploy_wat("good", &writes(""), "");
    assert_eq!(node.data.get("/good").good().len(), 80_000);
    // Below 64 KiB nothing was sent yet, so the status can still tell.
    node.deploy_wat("early", &writes("unreachable").replace("80000", "65000"), "");
    node.data.get("/early").problem(502, "guest-trap");
}

#[test]
fn a_handler_that_fails_after_its_head_was_sent() {
    let node = Node::start(&[]);
    // What comes in one go with the head can still become a status; so the head goes first, and the rest waits for the client.
    let write = "(call $stream) (drop (call $body_write (i32.const 0) (i32.const 5))) (drop (call $drain))";
    let much = "(loop $more (br_if $more (i32.eqz (call $body_write (i32.const 0) (i32.const 30000)))))";
    for (name, end, code) in [
        ("traps", "unreachable", "guest-trap"),
        ("spins", SPINS, "cpu-deadline"),
        ("waits", "", "wall-deadline"),
        ("answers", "(call $answer (i32.const 200) (i32.const 0) (i32.const 0))", "guest-bad-call"),
        ("outside", "(drop (call $body_write (i32.const 65535) (i32.const 2)))", "guest-bad-call"),
        ("much", much, "response-too-large"),
    ] {
        let cpu = if name == "spins" { "1s" } else { "1h" };
        let wall = if name == "waits" { "3s" } else { "1h" };
        let limit = format!("[limits]\ncpu = \"{cpu}\"\nwall = \"{wall}\"\nresponse_body = \"100KiB\"\n");
        node.deploy_wat(name, &does(&format!("{write} {end}")), &limit);
        let mut conn = hold(&node, &format!("/{name}"));
        let head = conn.head();
        assert_eq!((head.status, head.header("transfer-encoding")), (200, Some("chunked")), "{name}");
        if name != "waits" {
            conn.end_chunks();
        }
        let mut len = 0;
        assert!(!conn.body(&head, |piece| len += piece.len()), "{name}: it ends as a whole response");
        assert!(if name == "much" { len <= 100 << 10 } else { len == 5 }, "{name}: {len} bytes came");
        eventually(&format!("{name} is counted under {code}"), || node.inspect(name)["usage"]["faults"][code] == 1);
        let logs = node.logs(name);
        assert!(logs.iter().any(|(source, _, text)| source == "host" && text.contains(code)), "{name}: {logs:?}");
    }
    node.deploy_wat("at-once", &does("(call $stream) (drop (call $body_write (i32.const 0) (i32.const 5))) unreachable"), "");
    let reply = node.data.get("/at-once");
    assert!(reply.header("hob-error") == Some("guest-trap") || !reply.whole, "{reply:?}");
    eventually("no instance is left", || node.metric("hob_instances") == 0);
}

#[test]
fn the_wall_deadline_of_a_guest_that_waits() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &waits(), "[limits]\nwall = \"200ms\"\n");
    let reply = hold(&node, "/a").reply();
    let problem = reply.problem(504, "wall-deadline");
    assert!(problem["hint"].as_str().unwrap().contains("wall"), "{problem}");
    assert_eq!(node.faults("wall-deadline"), 1);
    eventually("no instance is left", || node.metric("hob_instances") == 0);
}

#[test]
fn concurrency_and_its_queue() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &waits(), "[limits]\nconcurrency = 2\nqueue = 2\nqueue_wait = \"60s\"\nwall = \"1h\"\n");
    let mut running = [hold(&node, "/a"), hold(&node, "/a")];
    eventually("two run", || node.occupancy("a") == (2, 0));
    let mut waiting = hold(&node, "/a");
    let mut leaving = node.data.connect();
    leaving.request("GET", "/a", &[], b"");
    eventually("two wait", || node.occupancy("a") == (2, 2));
    for reply in [node.data.get("/a"), node.data.post("/a", b"x"), node.control.post("/v1/functions/a/invoke", b"x")] {
        reply.problem(429, "concurrency");
        assert_eq!((reply.header("hob-executed"), reply.header("retry-after")), (Some("0"), Some("1")));
    }
    // A client that leaves the queue makes room in it.
    drop(leaving);
    eventually("one waits", || node.occupancy("a") == (2, 1));
    for conn in &mut running {
        conn.end_chunks();
        assert_eq!(number(&conn.reply().good()), 1);
    }
    eventually("the other had its turn", || node.occupancy("a") == (1, 0));
    waiting.end_chunks();
    assert_eq!(number(&waiting.reply().good()), 1);
    assert_eq!(node.faults("concurrency"), 3);
}

#[test]
fn functions_that_leave_memory_keep_their_places_totals_and_logs() {
    let mut node = Node::start(&["engine.functions_hot_max=1"]);
    node.deploy_wat("a", &waits(), "[limits]\nconcurrency = 1\nqueue = 0\nwall = \"1h\"\n");
    node.deploy_wat("b", &does("unreachable"), "route = '/to/b'\n");
    node.deploy_wat("c", &says("c"), "");
    for round in 1..=2 {
        let mut conn = hold(&node, "/a");
        eventually("it runs", || node.occupancy("a") == (1, 0));
        for _ in 0..3 {
            node.data.get("/to/b").problem(502, "guest-trap");
            assert_eq!(node.data.get("/c").ok().text(), "c");
        }
        node.data.get("/a").problem(429, "concurrency");
        conn.end_chunks();
        assert_eq!(number(&conn.reply().good()), 1);
        node.data.get("/d").problem(404, "not-found");
        assert_eq!(node.inspect("b")["usage"]["faults"]["guest-trap"], 3);
        let log = node.logs("b");
        assert_eq!(log.iter().filter(|entry| **entry == log[0]).count(), 3, "{log:?}");
        assert_eq!(node.inspect("c")["usage"]["starts"]["resident"], 3 - u64::from(round == 2));
        node.restart();
        assert_eq!(node.metric("hob_functions"), 3);
    }
}

#[test]
fn waiting_in_the_queue_has_an_end() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &waits(), "[limits]\nconcurrency = 1\nqueue_wait = \"50ms\"\nwall = \"1h\"\n");
    let mut conn = hold(&node, "/a");
    eventually("it runs", || node.occupancy("a") == (1, 0));
    let reply = node.data.get("/a");
    reply.problem(429, "concurrency");
    assert!(reply.header("retry-after").is_some());
    conn.end_chunks();
    conn.reply().ok();
}

#[test]
fn instances_of_the_node() {
    let node = Node::start(&["engine.instances_max=2", "engine.instance_wait=50ms"]);
    node.deploy_wat("a", &waits(), "[limits]\nwall = \"1h\"\n");
    let mut held = [hold(&node, "/a"), hold(&node, "/a")];
    eventually("both run", || node.metric("hob_instances") == 2);
    let reply = node.data.get("/a");
    reply.problem(503, "overloaded");
    assert!(reply.header("retry-after").is_some() && reply.header("hob-executed") == Some("0"));
    for conn in &mut held {
        conn.end_chunks();
        conn.reply().ok();
    }
    eventually("no instance is left", || node.metric("hob_instances") == 0);
    node.data.get("/a").ok();
}

#[test]
fn the_wait_for_an_instance_is_in_the_phase_queue() {
    let node = Node::start(&["engine.instances_max=1", "engine.instance_wait=60s"]);
    node.deploy_wat("a", &waits(), "[limits]\nwall = \"1h\"\n");
    let mut held = hold(&node, "/a");
    eventually("it runs", || node.occupancy("a") == (1, 0));
    let mut waits = node.data.connect();
    waits.request("GET", "/a", &[("hob-timing", "1")], b"");
    eventually("the other has a place of the function", || node.occupancy("a") == (2, 0));
    // It cannot begin before the first has ended: all that passes here is its wait.
    let from = std::time::Instant::now();
    for _ in 0..100 {
        node.control.get("/readyz").ok();
    }
    let waited = from.elapsed();
    held.end_chunks();
    held.reply().ok();
    let reply = waits.reply().ok();
    let timing = reply.header("server-timing").unwrap();
    let queue: f64 = timing.strip_prefix("queue;dur=").and_then(|rest| rest.split(',').next()).unwrap().parse().unwrap();
    // Less the moment in which it had its place of the function and did not ask for one of the node yet.
    assert!(queue >= waited.as_secs_f64() * 1e3 / 2.0, "{timing} where it waited for {waited:?}");
}

#[test]
fn log_bytes() {
    let node = Node::start(&[]);
    let text = does(
        "(local $i i32) (loop $more
        (call $log (i32.const 1) (i32.const 0) (i32.const 100))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $more (i32.lt_u (local.get $i) (i32.const 50))))
      (call $number (i32.const 0))",
    );
    node.deploy_wat("a", &text, "[limits]\nlog = \"1000\"\n");
    node.data.get("/a").ok();
    let logs = node.logs("a");
    assert_eq!(logs.iter().filter(|(source, _, _)| source == "log").count(), 10);
    let notice = logs.iter().find(|(source, _, _)| source == "host").unwrap();
    assert!(notice.2.contains("4000"), "it says how much was dropped: {notice:?}");
}

#[test]
fn guests_together_have_only_so_much_memory() {
    let node = Node::start(&["engine.memory_max=64MiB"]);
    // Takes pages, and holds them until its request ends.
    let holds = |pages: u32| {
        does(&format!(
            "(if (i32.lt_s (memory.grow (i32.const {pages})) (i32.const 0)) (then unreachable))
             (call $number (call $drain))"
        ))
    };
    let off = "[snapshot]\nmode = 'off'";
    node.deploy_wat("half", &holds(512), off);
    node.deploy_wat("most", &holds(992), off);
    node.deploy_wat("small", &says("small"), off);
    let hold = |name: &str| {
        let mut conn = node.data.connect();
        conn.send(format!("POST /{name} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"));
        eventually("it holds its memory", || node.metric("hob_instances") == 1);
        conn
    };
    // Half of it is held: a small one runs, and one that wants the other half and a page more is told whose fault it is.
    let held = hold("half");
    assert_eq!(node.data.get("/small").good(), b"small");
    let refused = node.data.request("POST", "/half", &[], b"");
    let told = ["hob-error", "hob-executed", "retry-after"].map(|name| refused.header(name));
    assert_eq!((refused.status(), told), (503, [Some("overloaded"), Some("1"), Some("1")]));
    drop(held);
    eventually("it is gone", || node.metric("hob_instances") == 0);
    assert_eq!(node.data.request("POST", "/half", &[], b"").status(), 200);
    // From nine tenths on nobody begins.
    let held = hold("most");
    eventually("nobody begins", || node.data.get("/small").status() == 503);
    let refused = node.data.get("/small");
    refused.problem(503, "overloaded");
    assert_eq!(refused.header("hob-executed"), Some("0"));
    drop(held);
    eventually("there is room again", || node.data.get("/small").status() == 200);
}

/// Calls of preview 1 with numbers at their bounds and past them: the error number, or `None` if the invocation ended.
#[test]
fn numbers_that_a_guest_gives_to_calls_are_bounded() {
    let node = Node::start(&[]);
    let import = |name: &str, params: &str| {
        format!("(import \"wasi_snapshot_preview1\" \"{name}\" (func $f (param {params}) (result i32)))")
    };
    let answer = |import: &str, call: &str| {
        let fields = format!("(func (export \"hob_handle\") (call $number {call}))");
        let text =
            handler_with("(memory (export \"memory\") 1100)", &fields).replacen("(module", &format!("(module {import}"), 1);
        node.deploy_wat("calls", &text, "snapshot = \"off\"\n[limits]\ncpu = \"10s\"\nwall = \"60s\"\n");
        let reply = node.data.get("/calls");
        (reply.status() == 200).then(|| i32::from_le_bytes(reply.body.try_into().unwrap()))
    };
    let four = "i32 i32 i32 i32";
    for (name, call, within) in [
        ("fd_write", "(call $f (i32.const 1) (i32.const 0) (i32.const N) (i32.const 60000))", 0),
        ("fd_read", "(call $f (i32.const 0) (i32.const 0) (i32.const N) (i32.const 60000))", 0),
        ("poll_oneoff", "(call $f (i32.const 0) (i32.const 100000) (i32.const N) (i32.const 60000))", 0),
    ] {
        let import = import(name, four);
        assert_eq!(answer(&import, &call.replace('N', "1024")), Some(within), "{name}");
        for past in ["1025", "-1", "2147483647"] {
            assert_eq!(answer(&import, &call.replace('N', past)), Some(28), "{name} {past}");
        }
    }
    let random = import("random_get", "i32 i32");
    let call = |len: usize| format!("(call $f (i32.const 8) (i32.const {len}))");
    assert_eq!(answer(&random, &call(64 << 20)), Some(0));
    assert_eq!(answer(&random, &call((64 << 20) + 1)), None);
    assert_eq!(answer(&random, "(call $f (i32.const 72089600) (i32.const 1))"), Some(21), "behind the memory");
    // All of it is drawn, in however many pieces.
    let drawn = "(if (result i32) (call $f (i32.const 0) (i32.const 1000000)) (then (i32.const 1))
        (else (i32.add (i64.eqz (i64.load (i32.const 0))) (i64.eqz (i64.load (i32.const 999992))))))";
    assert_eq!(answer(&random, drawn), Some(0));
}

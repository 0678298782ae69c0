//! Bodies: how long they may be, who waits for whom while they pass, and what happens when a client leaves.

use crate::harness::examples::guest;
use crate::harness::wat::{self, SPINS, command, does, handler_with, says, waits};
use crate::harness::{Node, eventually};
use crate::limits::{hold, number};

const MIB: usize = 1 << 20;

#[test]
fn response_bodies() {
    let node = Node::start(&[]);
    let answers = |len: usize| does(&format!("(call $answer (i32.const 200) (i32.const 0) (i32.const {len}))"));
    let limit = "[limits]\nresponse_body = \"1000\"\n";
    node.deploy_wat("at", &answers(1000), limit);
    assert_eq!(node.data.get("/at").good().len(), 1000);
    node.deploy_wat("past", &answers(1001), limit);
    node.data.get("/past").problem(502, "response-too-large");
    let writes =
        |len: usize| command(&format!("(func (export \"_start\") (call $write (i32.const 1) (i32.const 0) (i32.const {len})))"));
    node.deploy_wat("command", &writes(1001), limit);
    node.data.get("/command").problem(502, "response-too-large");
}

#[test]
fn a_small_body_is_whole_however_it_was_written() {
    let node = Node::start(&[]);
    // More pieces than wait for a client, so that the guest does too.
    for pieces in [1, 2, 6] {
        let piece = "(if (call $body_write (i32.const 0) (i32.const 1000)) (then unreachable))";
        node.deploy_wat("a", &does(&format!("(call $stream) {}", piece.repeat(pieces))), "");
        let reply = node.data.get("/a");
        assert_eq!(reply.header("content-length"), Some((pieces * 1000).to_string().as_str()));
        assert_eq!(reply.header("transfer-encoding"), None);
        assert_eq!(reply.good().len(), pieces * 1000);
    }
}

#[test]
fn a_head_waits_for_a_guest_that_computes_but_not_for_long() {
    let node = Node::start(&[]);
    let computes = |ns: u64| {
        let memory = "(import \"wasi_snapshot_preview1\" \"clock_time_get\" (func $clock (param i32 i64 i32) (result i32)))
            (memory (export \"memory\") 1)
            (func $now (result i64) (drop (call $clock (i32.const 1) (i64.const 1) (i32.const 8))) (i64.load (i32.const 8)))";
        handler_with(
            memory,
            &format!(
                "(func (export \"hob_handle\") (local $until i64)
                   (call $stream)
                   (local.set $until (i64.add (call $now) (i64.const {ns})))
                   (loop $more (br_if $more (i64.lt_u (call $now) (local.get $until))))
                   (drop (call $body_write (i32.const 0) (i32.const 4))))"
            ),
        )
    };
    // Longer than a tick, and shorter than the head waits. The system may take the processor away for longer, so one in many will do.
    node.deploy_wat("soon", &computes(4_000_000), "");
    eventually("an answer is whole", || node.data.get("/soon").header("content-length") == Some("4"));
    // The head is out before the processor time is over: the answer breaks off, and is no 504.
    node.deploy_wat("late", &computes(u64::MAX >> 2), "");
    let mut conn = node.data.connect();
    conn.request("GET", "/late", &[], b"");
    let head = conn.head();
    assert_eq!((head.status, head.header("transfer-encoding")), (200, Some("chunked")));
    assert!(!conn.body(&head, |_| ()));
}

#[test]
fn a_body_that_a_component_never_finishes() {
    let node = Node::start(&[]);
    let reply = node.deploy("a", &std::fs::read(guest("counter2")).unwrap(), "");
    assert_eq!(reply.status(), 201, "{}", reply.text());
    for count in 1..=2 {
        node.data.get("/a/break").problem(502, "guest-bad-response");
        assert_eq!(node.faults("guest-bad-response"), count);
    }
    let logs = node.logs("a");
    assert!(logs.iter().any(|(source, _, text)| source == "host" && text.contains("broke off")), "{logs:?}");
}

/// A handler whose head says 9 bytes, and whose body has 4.
pub(crate) fn says_more_than_it_has() -> String {
    // A head that says 9 bytes; what follows in the record is its name and value.
    let code = "(i32.store (i32.const 32768) (i32.const 1)) (i32.store16 (i32.const 32772) (i32.const 200))
        (i32.store16 (i32.const 32774) (i32.const 1)) (i32.store (i32.const 32776) (i32.const 0))
        (i32.store (i32.const 32780) (i32.const 14)) (i32.store (i32.const 32784) (i32.const 1))
        (memory.copy (i32.const 32788) (i32.const 100) (i32.const 15))
        (call $respond (i32.const 32768) (i32.const 35))
        (drop (call $body_write (i32.const 0) (i32.const 4)))";
    handler_with(
        "(memory (export \"memory\") 1) (data (i32.const 100) \"content-length9\")",
        &format!("(func (export \"hob_handle\") {code})"),
    )
}

#[test]
fn a_length_that_is_not_kept() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &says_more_than_it_has(), "");
    // Four bytes came at once, and are not taken for the nine.
    let mut conn = node.data.connect();
    conn.request("GET", "/a", &[], b"");
    let head = conn.head();
    assert_eq!((head.status, head.header("content-length")), (200, Some("9")));
    assert!(!conn.body(&head, |_| ()), "it breaks off");
}

#[test]
fn a_large_answer_stays_out_of_the_daemons_memory() {
    const GIB: usize = 1 << 30;
    let node = Node::start(&[]);
    let code = "(local $left i32) (call $stream) (local.set $left (i32.const 16384))
        (loop $more
          (if (call $body_write (i32.const 0) (i32.const 65536)) (then unreachable))
          (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))";
    // 1 GiB is what a response may have; only the time is raised, for slow machines.
    node.deploy_wat("a", &does(code), "[limits]\ncpu = \"10m\"\nwall = \"10m\"\n");
    let mut conn = node.data.connect();
    conn.request("GET", "/a", &[], b"");
    let head = conn.head();
    let mut len = 0;
    assert!(conn.body(&head, |piece| len += piece.len()), "{len} bytes came");
    assert_eq!((head.status, len), (200, GIB));
    let peak = node.peak_memory() as usize;
    assert!(peak < 200 * MIB, "{} MiB", peak / MIB);
}

#[test]
fn a_reader_that_stops_holds_its_guest_back() {
    let node = Node::start(&[]);
    // Logs once for each MiB that was taken from it.
    let code = "(local $left i32)
        (i32.store8 (i32.const 65530) (i32.const 109))
        (call $stream)
        (local.set $left (i32.const 16384))
        (loop $more
          (if (call $body_write (i32.const 0) (i32.const 65536)) (then unreachable))
          (local.set $left (i32.sub (local.get $left) (i32.const 1)))
          (if (i32.eqz (i32.rem_u (local.get $left) (i32.const 16))) (then (call $log (i32.const 2) (i32.const 65530) (i32.const 1))))
          (br_if $more (local.get $left)))";
    node.deploy_wat("a", &does(code), "[limits]\ncpu = \"1h\"\nwall = \"5s\"\nlog = \"1MiB\"\n");
    let mut conn = node.data.connect_narrow();
    conn.request("GET", "/a", &[], b"");
    assert_eq!(conn.head().status, 200);
    // The client reads nothing more: the guest gets as far as the sockets' buffers, and waits until its time is over.
    eventually("its time is over", || node.faults("wall-deadline") == 1);
    let taken = node.logs("a").iter().filter(|(source, _, _)| source == "log").count();
    assert!(taken < 64, "{taken} MiB were taken though nobody read");
    assert!((node.peak_memory() as usize) < 200 * MIB);
}

/// More than the sockets between a node and a narrow client hold.
const LARGE: usize = 40 * MIB;

/// A handler that answers with [`LARGE`] bytes at once.
fn large() -> String {
    let code = format!(
        "(func (export \"hob_handle\")
           (call $record (i32.const 0) (i32.const 200) (i32.const {LARGE}))
           (call $respond (i32.const 32768) (i32.const {})))",
        LARGE + 12
    );
    handler_with("(memory (export \"memory\") 700)", &code)
}

#[test]
fn a_large_answer_keeps_its_place_until_it_was_taken() {
    let node = Node::start(&["engine.instances_max=1", "engine.instance_wait=0s"]);
    node.deploy_wat("a", &large(), "[limits]\nconcurrency = 1\nqueue = 0\nwall = \"1h\"\n");
    node.deploy_wat("small", &says("small"), "");
    for ends_well in [true, false] {
        let mut conn = node.data.connect_narrow();
        conn.request("GET", "/a", &[], b"");
        let head = conn.head();
        assert_eq!((head.status, head.header("content-length")), (200, Some(LARGE.to_string().as_str())));
        assert_eq!(node.occupancy("a"), (1, 0));
        node.data.get("/a").problem(429, "concurrency");
        node.data.get("/small").problem(503, "overloaded");
        if ends_well {
            assert!(conn.body(&head, |_| ()), "all of it came");
        } else {
            drop(conn);
        }
        eventually("its place is free", || node.occupancy("a") == (0, 0));
        node.data.get("/small").ok();
        // Its instance goes after its answer.
        eventually("the small one's place is free", || node.metric("hob_instances") == 0);
    }
    // By the control port too, and without a body.
    eventually("the small one's place is free, and all of it came", || {
        let reply = node.control.get("/v1/functions/a/invoke");
        reply.status() == 200 && reply.good().len() == LARGE
    });
    eventually("its place is free", || node.occupancy("a") == (0, 0));
    node.data.request("HEAD", "/a", &[], b"").ok();
    eventually("its place is free", || node.occupancy("a") == (0, 0));
    assert_eq!(node.faults("wall-deadline"), 0);
}

#[test]
fn a_large_answer_is_cut_when_its_time_is_over() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &large(), "[limits]\nconcurrency = 1\nwall = \"5s\"\n");
    let mut conn = node.data.connect_narrow();
    conn.request("GET", "/a", &[], b"");
    let head = conn.head();
    assert_eq!(head.status, 200);
    eventually("its time is over", || node.faults("wall-deadline") == 1);
    assert_eq!(node.occupancy("a"), (0, 0), "its place is free, though the client took nothing");
    assert!(!conn.body(&head, |_| ()), "the rest never comes");
    assert_eq!(node.inspect("a")["usage"]["faults"]["wall-deadline"], 1);
    let logs = node.logs("a");
    assert!(logs.iter().any(|(source, _, text)| source == "host" && text.contains("did not take")), "{logs:?}");
}

#[test]
fn a_client_that_leaves_stops_its_guest() {
    let node = Node::start(&[]);
    let limit = "[limits]\ncpu = \"1h\"\nwall = \"1h\"\n";
    let writes = "(call $stream) (loop $more (br_if $more (i32.eqz (call $body_write (i32.const 0) (i32.const 30000)))))";
    node.deploy_wat("reads", &waits(), limit);
    node.deploy_wat("writes", &does(writes), limit);
    node.deploy_wat("spins", &does(&format!("(call $stream) {SPINS}")), limit);
    node.deploy_wat("command", &command(&format!("(func (export \"_start\") {SPINS})")), limit);
    for name in ["reads", "writes", "spins", "command"] {
        let mut conn = match name {
            "reads" => hold(&node, "/reads"),
            _ => node.data.connect(),
        };
        if name != "reads" {
            conn.request("GET", &format!("/{name}"), &[], b"");
        }
        eventually("it runs", || node.occupancy(name) == (1, 0));
        drop(conn);
        eventually(&format!("{name} is stopped"), || node.occupancy(name) == (0, 0) && node.metric("hob_instances") == 0);
    }
}

#[test]
fn a_client_that_leaves_with_a_body_that_nobody_reads() {
    let node = Node::start(&[]);
    let limit = "[limits]\ncpu = \"1h\"\nwall = \"1h\"\nconcurrency = 1\nqueue_wait = \"60s\"\n";
    node.deploy_wat("silent", &does(SPINS), limit);
    node.deploy_wat("streams", &does(&format!("(call $stream) {SPINS}")), limit);
    for name in ["silent", "streams"] {
        let running = hold(&node, &format!("/{name}"));
        eventually("it runs", || node.occupancy(name) == (1, 0));
        let waiting = hold(&node, &format!("/{name}"));
        eventually("another waits", || node.occupancy(name) == (1, 1));
        drop(waiting);
        eventually("it left the queue", || node.occupancy(name) == (1, 0));
        drop(running);
        eventually(&format!("{name} is stopped"), || node.occupancy(name) == (0, 0) && node.metric("hob_instances") == 0);
    }
}

#[test]
fn request_bodies() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &waits(), "[limits]\nrequest_body = \"100KiB\"\n");
    let at = vec![b'x'; 100 << 10];
    assert_eq!(number(&node.data.post("/a", &at).good()), 100 << 10);
    let past = vec![b'x'; (100 << 10) + 1];
    let reply = node.data.post("/a", &past);
    let problem = reply.problem(413, "body-too-large");
    assert!(problem["hint"].as_str().unwrap().contains("request_body"), "{problem}");
    assert_eq!((reply.header("hob-executed"), reply.header("connection")), (Some("0"), Some("close")));
    // Without announcement it is found when it passes, by whoever reads: a handler, or a command from its standard input.
    let reads = wat::reads();
    node.deploy_wat("command", &reads, "[limits]\nrequest_body = \"100KiB\"\n");
    for name in ["/a", "/command"] {
        let mut conn = node.data.connect();
        conn.begin_chunked("POST", name);
        conn.chunk(&at).unwrap();
        conn.chunk(b"x").unwrap();
        conn.reply().problem(413, "body-too-large");
        let mut conn = node.data.connect();
        conn.begin_chunked("POST", name);
        conn.chunk(&at).unwrap();
        conn.end_chunks();
        conn.reply().ok();
    }
    // A small body is read whole before it is known for whom it is, and counts all the same.
    node.deploy_wat("none", &waits(), "[limits]\nrequest_body = 0\n");
    node.data.post("/none", b"x").problem(413, "body-too-large");
    node.data.post("/none", b"").ok();
}

#[test]
fn a_whole_answer_of_many_pieces_is_what_the_guest_wrote() {
    let node = Node::start(&[]);
    // On both sides of what is copied at once, and of twice that.
    for len in [131_071_u32, 131_072, 131_073, 262_144, 262_145, 700_001] {
        let text = handler_with(
            "(memory (export \"memory\") 16)",
            &format!(
                "(func (export \"hob_handle\") (local $at i32)
                   (loop $more
                     (i32.store8 (i32.add (i32.const 65548) (local.get $at)) (i32.xor (local.get $at) (i32.shr_u (local.get $at) (i32.const 8))))
                     (local.set $at (i32.add (local.get $at) (i32.const 1)))
                     (br_if $more (i32.lt_u (local.get $at) (i32.const {len}))))
                   (i32.store (i32.const 65536) (i32.const 0))
                   (i32.store16 (i32.const 65540) (i32.const 200))
                   (i32.store16 (i32.const 65542) (i32.const 0))
                   (i32.store (i32.const 65544) (i32.const {len}))
                   (call $respond (i32.const 65536) (i32.const {})))",
                len + 12
            ),
        );
        node.deploy_wat("a", &text, "");
        let expected: Vec<u8> = (0..len).map(|at| (at ^ (at >> 8)) as u8).collect();
        assert!(node.data.get("/a").good() == expected, "{len}");
    }
}

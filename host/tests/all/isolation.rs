//! Every invocation has an instance that nothing ran in before: nothing of one is ever seen by another.

use crate::harness::wat::{does, handler, handler_with};
use crate::harness::{Node, eventually};

#[test]
fn a_hundred_at_once_have_a_state_each() {
    const AT_ONCE: usize = 100;
    let node = Node::start(&[]);
    // Counts in a global, in memory and in a table, waits for all the others, and answers the sum of the counts.
    let text = handler(
        "(global $count (mut i32) (i32.const 0))
         (table $t 1 10 funcref)
         (elem declare func $drain)
         (func (export \"hob_handle\")
           (global.set $count (i32.add (global.get $count) (i32.const 1)))
           (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1)))
           (drop (table.grow $t (ref.func $drain) (i32.const 1)))
           (drop (call $drain))
           (call $number (i32.add (i32.add (global.get $count) (i32.load (i32.const 0))) (table.size $t))))",
    );
    node.deploy_wat("a", &text, "[limits]\nwall = \"1h\"\n");
    for round in 0..2 {
        let mut conns: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                let mut conn = node.data.connect();
                conn.begin_chunked("POST", "/a");
                conn.chunk(b"x").unwrap();
                conn
            })
            .collect();
        eventually("all of them run", || node.occupancy("a") == (AT_ONCE as u64, 0));
        for conn in &mut conns {
            conn.end_chunks();
        }
        for conn in &mut conns {
            assert_eq!(conn.reply().good(), (1i32 + 1 + 2).to_le_bytes(), "round {round}");
        }
        eventually("no instance is left", || node.metric("hob_instances") == 0);
    }
}

/// Looks for the secret in all of its memory, globals and table, and answers how often it was there; then plants it everywhere.
/// `data` makes the image of the module its own, so that a slot is handed to the same image and to another.
pub(crate) fn spy(data: &str) -> String {
    handler_with(
        "(memory (export \"memory\") 3)",
        &format!(
            "(data (i32.const 0) \"{data}\")
             (global $g (mut i64) (i64.const 0))
             (table $t 4 20000 funcref)
             (elem declare func $drain)
             (func (export \"hob_handle\") (local $at i32) (local $found i32) (local $end i32)
               ;; The image is as it was deployed.
               (local.set $found (i64.ne (i64.load (i32.const 0)) (i64.load (i32.const 8))))
               (local.set $found (i32.add (local.get $found) (i32.ne (memory.size) (i32.const 3))))
               (local.set $found (i32.add (local.get $found) (i32.ne (table.size $t) (i32.const 4))))
               (local.set $found (i32.add (local.get $found) (i64.ne (global.get $g) (i64.const 0))))
               (local.set $found (i32.add (local.get $found) (i32.eqz (ref.is_null (table.get $t (i32.const 3))))))
               ;; Some pages are there from the beginning, some are asked for.
               (if (i32.ne (memory.grow (i32.const 12)) (i32.const 3)) (then unreachable))
               (drop (table.grow $t (ref.null func) (i32.const 16000)))
               (local.set $found (i32.add (local.get $found) (i32.eqz (ref.is_null (table.get $t (i32.const 16003))))))
               (local.set $at (i32.const 64))
               (local.set $end (i32.mul (memory.size) (i32.const 65536)))
               (loop $more
                 (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then (local.set $found (i32.add (local.get $found) (i32.const 1)))))
                 (i64.store (local.get $at) (i64.const 0x5ec2e7_5ec2e7))
                 (local.set $at (i32.add (local.get $at) (i32.const 8)))
                 (br_if $more (i32.lt_u (local.get $at) (local.get $end))))
               (global.set $g (i64.const 0x5ec2e7))
               (table.fill $t (i32.const 0) (ref.func $drain) (i32.const 16004))
               (i64.store (i32.const 8) (i64.const 0x5ec2e7))
               (call $number (local.get $found)))"
        ),
    )
}

fn hand_over(node: &Node, times: usize) {
    node.deploy_wat("a", &spy("AAAAAAAAAAAAAAAA"), "");
    node.deploy_wat("b", &spy("BBBBBBBBBBBBBBBB"), "");
    node.deploy_wat("trap", &spy("CCCCCCCCCCCCCCCC").replace("(call $number (local.get $found))", "unreachable"), "");
    // One connection, so one thread, whose own slots the pool prefers.
    let mut conn = node.data.connect();
    for turn in 0..times {
        // The same image again, then another, and now and then one that trapped.
        let name = ["/a", "/a", "/b", "/b", "/trap"][turn % 5];
        conn.request("GET", name, &[], b"");
        let reply = conn.reply();
        if name == "/trap" {
            reply.problem(502, "guest-trap");
        } else {
            assert_eq!(reply.good(), 0i32.to_le_bytes(), "turn {turn}: something of another instance is there");
        }
    }
}

#[test]
fn a_secret_is_not_handed_over_in_the_only_slot() {
    hand_over(&Node::start(&["engine.instances_max=1", "engine.instance_wait=60s"]), 3000);
}

#[test]
fn a_secret_is_not_handed_over_among_many_slots() {
    hand_over(&Node::start(&[]), 3000);
}

#[test]
fn a_second_memory_is_fresh_too() {
    let node = Node::start(&["engine.instances_max=2", "engine.instance_wait=60s"]);
    let text = handler_with(
        "(memory (export \"memory\") 1) (memory $second 2)",
        "(func (export \"hob_handle\") (local $at i32) (local $found i32)
           (loop $more
             (local.set $found (i32.or (local.get $found) (i32.load $second (local.get $at))))
             (i32.store $second (local.get $at) (i32.const 0x5ec2e7))
             (local.set $at (i32.add (local.get $at) (i32.const 4)))
             (br_if $more (i32.lt_u (local.get $at) (i32.const 131072))))
           (call $number (local.get $found)))",
    );
    node.deploy_wat("a", &text, "");
    let mut conn = node.data.connect();
    for _ in 0..500 {
        conn.request("GET", "/a", &[], b"");
        assert_eq!(conn.reply().good(), 0i32.to_le_bytes());
    }
}

#[test]
fn after_a_cancel_the_slot_is_clean() {
    let node = Node::start(&["engine.instances_max=1", "engine.instance_wait=60s"]);
    let plants = does(
        "(local $at i32)
         (loop $more
           (i32.store (local.get $at) (i32.const 0x5ec2e7))
           (local.set $at (i32.add (local.get $at) (i32.const 4)))
           (br_if $more (i32.lt_u (local.get $at) (i32.const 65536))))
         (loop $forever (br $forever))",
    );
    node.deploy_wat("plants", &plants, "[limits]\ncpu = \"1h\"\nwall = \"1h\"\n");
    node.deploy_wat("late", &plants, "[limits]\ncpu = \"5ms\"\n");
    node.deploy_wat("looks", &spy("DDDDDDDDDDDDDDDD"), "");
    for _ in 0..20 {
        let mut conn = node.data.connect();
        conn.request("GET", "/plants", &[], b"");
        eventually("it spins", || node.occupancy("plants") == (1, 0));
        drop(conn);
        assert_eq!(node.data.get("/looks").good(), 0i32.to_le_bytes());
        node.data.get("/late").problem(504, "cpu-deadline");
        assert_eq!(node.data.get("/looks").good(), 0i32.to_le_bytes());
    }
}

#[test]
fn two_functions_of_one_module_share_nothing_but_code() {
    let node = Node::start(&[]);
    let text = does(
        "(i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1))) (call $number (i32.load (i32.const 0)))",
    );
    node.deploy_wat("a", &text, "");
    node.deploy_wat("b", &text, "env = { A = '1' }\n");
    assert_eq!(node.files("artifacts").len(), 1);
    for _ in 0..10 {
        for name in ["/a", "/b"] {
            assert_eq!(node.data.get(name).good(), 1i32.to_le_bytes());
        }
    }
    assert_eq!(node.control.request("DELETE", "/v1/functions/a", &[], b"").status(), 204);
    assert_eq!(node.data.get("/b").good(), 1i32.to_le_bytes());
}

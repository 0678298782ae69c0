//! Large guests: they answer the same from both of their pools, and nobody waits for a place in the one for large guests.
//!
//! Whether a thread is idle is the machine's affair, so no test says when a guest comes from which pool: some wait until one did.

use crate::harness::http::Conn;
use crate::harness::wat::{handler_with, says, waits};
use crate::harness::{Node, eventually};

/// How many of its words are not as they were deployed.
const FRESH: [u8; 4] = 0u32.to_le_bytes();

/// A handler that answers how much of its 4 MiB of memory was not as it was deployed, when it has filled all of it and read its
/// request. What is there from the beginning makes its memory a mapping of a file, of which each page faults by itself.
pub(crate) fn large(more: &str) -> String {
    handler_with(
        "(memory (export \"memory\") 64)",
        &format!(
            "(data (i32.const 65540) \"first\") (data (i32.const 4194299) \"last\") {more}
             (func (export \"hob_handle\") (local $at i32) (local $found i32)
               (local.set $found (i32.add
                 (i32.ne (i32.load (i32.const 65540)) (i32.const 0x73726966))
                 (i32.ne (i32.load (i32.const 4194299)) (i32.const 0x7473616c))))
               (i32.store (i32.const 65540) (i32.const 0))
               (i32.store (i32.const 4194299) (i32.const 0))
               (local.set $at (i32.const 65536))
               (loop $more
                 (local.set $found (i32.add (local.get $found) (i32.ne (i32.load (local.get $at)) (i32.const 0))))
                 (i32.store (local.get $at) (i32.const 0x5ec2e7))
                 (local.set $at (i32.add (local.get $at) (i32.const 64)))
                 (br_if $more (i32.lt_u (local.get $at) (i32.const 4194304))))
               (drop (call $drain))
               (call $number (local.get $found)))"
        ),
    )
}

/// A node with one data thread, so that it is known whose load counts.
fn node(settings: &[&str]) -> Node {
    Node::start(&[&["engine.threads=1"], settings].concat())
}

fn ask(node: &Node, times: usize) {
    for _ in 0..times {
        assert_eq!(node.data.get("/a").good(), FRESH);
    }
}

/// Invocations in the pool for large guests so far.
fn in_large(node: &Node) -> u64 {
    node.metric("hob_large_invocations_total")
}

/// Does something now and then, with pauses in which the thread has nothing to do, until an invocation of it ran in the pool for large
/// guests.
#[track_caller]
pub(crate) fn until_in_large(node: &Node, mut act: impl FnMut()) {
    let mut tries = 0;
    eventually("one was in the pool for large guests", || {
        let before = in_large(node);
        if tries % 16 == 0 {
            act();
        }
        tries += 1;
        in_large(node) > before
    });
}

/// How often code is loaded.
fn loaded(node: &Node) -> usize {
    let links = std::fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap();
    let links = links.filter_map(|link| std::fs::read_link(link.unwrap().path()).ok());
    links.filter(|path| path.to_string_lossy().contains(".cwasm")).count()
}

/// An invocation of `name` that runs until its request ends.
fn begin(node: &Node, name: &str) -> Conn {
    let running = node.metric("hob_instances");
    let mut conn = node.data.connect();
    conn.begin_chunked("POST", name);
    conn.chunk(b"x").unwrap();
    eventually("it runs", || node.metric("hob_instances") > running);
    conn
}

#[track_caller]
fn end(mut conn: Conn) {
    conn.end_chunks();
    assert_eq!(conn.reply().good(), FRESH);
}

#[test]
fn a_large_guest_is_fresh_in_both_pools() {
    let node = node(&["engine.large_instances_max=1"]);
    node.deploy_wat("a", &large(""), "");
    assert_eq!(loaded(&node), 1);
    ask(&node, 1);
    assert_eq!(in_large(&node), 0, "its code was not there yet");
    for _ in 0..3 {
        until_in_large(&node, || ask(&node, 1));
    }
    assert_eq!(loaded(&node), 2);
    // The one place is taken: nobody waits for it.
    let mut held = None;
    until_in_large(&node, || {
        if let Some(conn) = held.take() {
            end(conn);
        }
        held = Some(begin(&node, "/a"));
    });
    let before = in_large(&node);
    ask(&node, 5);
    assert_eq!(in_large(&node), before);
    end(held.unwrap());
    until_in_large(&node, || ask(&node, 1));
}

#[test]
fn without_a_pool_for_them_they_run_among_the_others() {
    let node = node(&["engine.large_instances_max=0"]);
    node.deploy_wat("a", &large(""), "");
    ask(&node, 20);
    assert_eq!((in_large(&node), loaded(&node)), (0, 1));
}

#[test]
fn a_place_in_either_pool_is_enough() {
    let node = node(&["engine.large_instances_max=1", "engine.instances_max=1", "engine.instance_wait=0s"]);
    node.deploy_wat("a", &large(""), "");
    node.deploy_wat("waits", &waits(), "");
    let mut small = begin(&node, "/waits");
    until_in_large(&node, || {
        let reply = node.data.get("/a");
        // While its code is not in the other pool, or its thread is busy, there is none.
        if reply.status() == 503 {
            reply.problem(503, "overloaded");
        } else {
            assert_eq!(reply.good(), FRESH);
        }
    });
    small.end_chunks();
    assert_eq!(small.reply().good(), 1u32.to_le_bytes());
    ask(&node, 1);
}

#[test]
fn its_code_leaves_memory_in_both_pools() {
    let node = node(&["engine.templates_max=1"]);
    node.deploy_wat("a", &large(""), "");
    until_in_large(&node, || ask(&node, 1));
    node.deploy_wat("b", &says("b"), "");
    eventually("only the other's is loaded", || loaded(&node) == 1);
    assert_eq!(node.data.get("/a").ok().header("hob-start"), Some("stored"));
    until_in_large(&node, || ask(&node, 1));
}

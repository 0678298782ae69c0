//! Guests that break the rules of the calls `http_*`.

use super::Upstream;
use crate::harness::Node;
use crate::harness::wat::{self, handler};

const IMPORTS: &str = r#"
  (import "hob1" "http_send" (func $http_send (param i32 i32) (result i32)))
  (import "hob1" "http_head" (func $http_head (param i32 i32 i32) (result i32)))
  (import "hob1" "http_read" (func $http_read (param i32 i32 i32) (result i32)))
  (import "hob1" "http_close" (func $http_close (param i32)))
  (import "hob1" "answer_read" (func $answer_read (param i32 i32) (result i32)))"#;

/// A guest that does `code` in `hob_handle`. From 0 on there is the record of a `GET` of `url`; `$send` sends it.
fn guest(url: &str, code: &str) -> Vec<u8> {
    let len = url.len();
    let text = handler(&format!(
        r#"(data (i32.const 0) "\01\00\00\00\03\00\00\00\{len:02x}\00\00\00\00\00\00\00GET{url}")
           (func $send (result i32) (call $http_send (i32.const 0) (i32.const {})))
           (func (export "hob_handle") {code})"#,
        16 + 3 + len
    ));
    wat::wasm(&text.replacen("(module", &format!("(module {IMPORTS}"), 1))
}

#[test]
fn the_calls_do_what_they_say() {
    let upstream = Upstream::start();
    let node = Node::start(&[&upstream.opened()]);
    let url = format!("http://{}/", upstream.addr);
    let manifest = format!("[grants]\nhttp = ['http://{}']", upstream.addr);
    let number = |code: &str| {
        let reply = node.deploy("calls", &guest(&url, &format!("(call $number {code})")), &manifest);
        assert!(matches!(reply.status(), 200 | 201), "{}", reply.text());
        i32::from_le_bytes(node.data.get("/calls").ok().body.try_into().unwrap())
    };
    assert_eq!(number("(call $send)"), 0);
    // A handle for each, and the first that is free again.
    assert_eq!(number("(drop (call $send)) (call $send)"), 1);
    assert_eq!(number("(call $http_close (call $send)) (call $send)"), 0);
    // Fixed part, and `content-length: 5`.
    assert_eq!(number("(call $http_head (call $send) (i32.const 1000) (i32.const 1000))"), 12 + 8 + 14 + 1);
    assert_eq!(number("(call $http_read (call $send) (i32.const 1000) (i32.const 1000))"), 5);
    assert_eq!(number("(call $http_read (call $send) (i32.const 1000) (i32.const 2))"), 2);
    assert_eq!(number("(call $http_read (call $send) (i32.const 1000) (i32.const 0))"), 0);
    let twice = "(drop (call $http_read (call $send) (i32.const 1000) (i32.const 1000)))
                 (call $http_read (i32.const 0) (i32.const 1000) (i32.const 1000))";
    assert_eq!(number(twice), 0);
    // What does not fit is kept.
    let kept = "(drop (call $http_head (call $send) (i32.const 1000) (i32.const 0)))
                (call $answer_read (i32.const 1000) (i32.const 1000))";
    assert_eq!(number(kept), 35);
}

#[test]
fn what_breaks_the_rules_ends_the_invocation() {
    let upstream = Upstream::start();
    let node = Node::start(&[&upstream.opened()]);
    let url = format!("http://{}/", upstream.addr);
    let manifest = format!("[grants]\nhttp = ['http://{}']", upstream.addr);
    let before = upstream.requests();
    for code in [
        "(drop (call $http_send (i32.const 65530) (i32.const 100)))",
        "(drop (call $http_send (i32.const -1) (i32.const 1)))",
        "(drop (call $http_send (i32.const 0) (i32.const -1)))",
        "(drop (call $http_send (i32.const 0) (i32.const 15)))",
        "(drop (call $http_send (i32.const 0) (i32.const 20)))",
        "(drop (call $http_send (i32.const 0) (i32.const 200)))",
        "(i32.store (i32.const 0) (i32.const 0)) (drop (call $send))",
        "(i32.store16 (i32.const 6) (i32.const -1)) (drop (call $send))",
        "(i32.store (i32.const 8) (i32.const -1)) (drop (call $send))",
        "(i32.store (i32.const 12) (i32.const -1)) (drop (call $send))",
        "(drop (call $http_head (i32.const 0) (i32.const 0) (i32.const 0)))",
        "(drop (call $http_read (i32.const 0) (i32.const 0) (i32.const 0)))",
        "(drop (call $http_read (i32.const -1) (i32.const 0) (i32.const 0)))",
        "(call $http_close (i32.const 0))",
        "(call $http_close (i32.const -1))",
    ] {
        assert!(matches!(node.deploy("calls", &guest(&url, code), &manifest).status(), 200 | 201));
        node.data.get("/calls").problem(502, "guest-bad-call");
    }
    assert_eq!(upstream.requests(), before, "nothing of it was sent");
    for code in [
        "(drop (call $http_head (call $send) (i32.const 65530) (i32.const 100)))",
        "(drop (call $http_read (call $send) (i32.const 65530) (i32.const 100)))",
        "(drop (call $http_read (call $send) (i32.const 0) (i32.const -1)))",
        "(call $http_close (call $send)) (call $http_close (i32.const 0))",
        "(call $http_close (call $send)) (drop (call $http_read (i32.const 0) (i32.const 0) (i32.const 1)))",
    ] {
        assert!(matches!(node.deploy("calls", &guest(&url, code), &manifest).status(), 200 | 201));
        node.data.get("/calls").problem(502, "guest-bad-call");
    }
}

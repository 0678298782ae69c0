//! Guests that break the rules of the calls for data.

use std::fmt::Write as _;

use crate::harness::wat::{self, handler};
use crate::harness::{Node, eventually};

const MANIFEST: &str = r#"
[[bucket]]
name = "b"

[[bucket]]
name = "v"
durability = "volatile"

[grants]
data = [{ bucket = "b", access = "read-write" }, { bucket = "v", access = "read-write" }]

[limits]
concurrency = 100
"#;

/// The imports for data, each with its parameters.
const IMPORTS: [(&str, &str); 18] = [
    ("bucket_open", "i32 i32"),
    ("answer_read", "i32 i32"),
    ("answer_wait", "i32 i32"),
    ("kv_get", "i32 i32 i32 i32 i32"),
    ("kv_exists", "i32 i32 i32"),
    ("kv_get_many", "i32 i32 i32 i32 i32"),
    ("kv_scan", "i32 i32 i32 i32 i32 i32 i32 i32"),
    ("kv_write", "i32 i32 i32 i32 i32"),
    ("object_head", "i32 i32 i32 i32 i32"),
    ("object_open", "i32 i32 i32 i32 i32"),
    ("object_read", "i32 i64 i32 i32"),
    ("object_close", "i32"),
    ("object_list", "i32 i32 i32 i32 i32 i32 i32 i32"),
    ("object_put", "i32 i32 i32 i32 i32"),
    ("upload_write", "i32 i32 i32"),
    ("upload_finish", "i32 i32 i32"),
    ("upload_drop", "i32"),
    ("object_delete", "i32 i32 i32 i32 i32 i32 i32"),
];

/// A guest that does `code` in `hob_handle`. At 0 is the name `b`, at 1 `v`, at 16 the key `key`; at 64 an operation that sets it to
/// `value`, of 40 bytes; from 1,024 on there is room.
fn guest(code: &str) -> Vec<u8> {
    let mut imports = String::new();
    for (name, params) in IMPORTS {
        let result = if matches!(name, "object_close" | "upload_drop") { "" } else { "(result i32)" };
        writeln!(imports, "(import \"hob1\" \"{name}\" (func ${name} (param {params}) {result}))").unwrap();
    }
    let rest = handler(&format!(
        r#"(data (i32.const 0) "bv") (data (i32.const 16) "key")
           (data (i32.const 64) "\00\00\00\00\00\00\00\00\03\00\00\00\05\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00keyvalue")
           (func $b (result i32) (call $bucket_open (i32.const 0) (i32.const 1)))
           (func $v (result i32) (call $bucket_open (i32.const 1) (i32.const 1)))
           (func (export "hob_handle") {code})"#
    ));
    wat::wasm(&rest.replacen("(module", &format!("(module {imports}"), 1))
}

/// A call with these arguments, as text; what it answers is dropped.
fn call(name: &str, arguments: &[&str]) -> String {
    let params = IMPORTS.iter().find(|(known, _)| *known == name).unwrap().1.split(' ');
    let arguments: Vec<_> = params
        .zip(arguments)
        .map(|(kind, argument)| match argument.starts_with('(') {
            true => (*argument).to_owned(),
            false => format!("({kind}.const {argument})"),
        })
        .collect();
    let call = format!("(call ${name} {})", arguments.join(" "));
    if matches!(name, "object_close" | "upload_drop") { call } else { format!("(drop {call})") }
}

fn deploy(node: &Node, name: &str, code: &str) {
    let reply = node.deploy(name, &guest(code), MANIFEST);
    assert!(matches!(reply.status(), 200 | 201), "{code}: {}", reply.text());
}

#[track_caller]
fn breaks(node: &Node, code: &str, word: &str) {
    deploy(node, "bad", code);
    let problem = node.data.get("/bad").problem(502, "guest-bad-call");
    assert!(problem["detail"].as_str().unwrap().contains(word), "{code}: {problem}");
}

/// What a guest answers by `$number`.
#[track_caller]
fn number(node: &Node, code: &str) -> i32 {
    deploy(node, "good", &format!("(call $number {code})"));
    i32::from_le_bytes(node.data.get("/good").good().try_into().unwrap())
}

#[test]
fn handles_that_nobody_gave() {
    let node = Node::start(&[]);
    for handle in ["0", "1", "63", "-1", "2147483647"] {
        for (name, rest) in [
            ("kv_get", &["16", "3", "1024", "64"][..]),
            ("kv_exists", &["16", "3"]),
            ("kv_get_many", &["16", "0", "1024", "64"]),
            ("kv_scan", &["16", "3", "16", "0", "1", "1024", "64"]),
            ("kv_write", &["64", "40", "1024", "64"]),
            ("object_head", &["16", "3", "1024", "64"]),
            ("object_open", &["16", "3", "1024", "64"]),
            ("object_list", &["16", "3", "16", "0", "1", "1024", "64"]),
            ("object_put", &["16", "3", "16", "0"]),
            ("object_delete", &["16", "3", "16", "0", "1024", "64"]),
        ] {
            if handle == "0" || handle == "-1" {
                breaks(&node, &call(name, &[&[handle], rest].concat()), "the handle of no bucket");
            }
        }
    }
    breaks(
        &node,
        &format!("(drop (call $b)) {}", call("kv_get", &["1", "16", "3", "1024", "64"])),
        "1 is the handle of no bucket",
    );
    for handle in ["0", "-1"] {
        for code in [call("object_read", &[handle, "0", "1024", "64"]), call("object_close", &[handle])] {
            breaks(&node, &code, "of no open object");
        }
        for code in [
            call("upload_write", &[handle, "16", "3"]),
            call("upload_finish", &[handle, "1024", "64"]),
            call("upload_drop", &[handle]),
        ] {
            breaks(&node, &code, "of no upload");
        }
    }
    // Handles that are over.
    for bucket in ["(call $b)", "(call $v)"] {
        let put = call("object_put", &[bucket, "16", "3", "16", "0"]);
        for end in [call("upload_finish", &["0", "1024", "200"]), call("upload_drop", &["0"])] {
            breaks(&node, &format!("{put} {end} {}", call("upload_write", &["0", "16", "3"])), "of no upload");
        }
        let open = call("object_open", &[bucket, "16", "3", "1024", "200"]);
        let (close, read) = (call("object_close", &["0"]), call("object_read", &["0", "0", "1024", "64"]));
        breaks(
            &node,
            &format!("{put} {} {open} {read} {close} {read}", call("upload_finish", &["0", "1024", "200"])),
            "of no open object",
        );
        breaks(&node, &format!("{open} {close} {close}"), "of no open object");
    }
}

#[test]
fn pointers_that_leave_the_memory() {
    let node = Node::start(&[]);
    // Each argument that is a place in memory: which one it is, and that its length follows.
    for (name, arguments, places) in [
        ("bucket_open", &["0", "1"][..], &[0][..]),
        ("answer_read", &["1024", "64"], &[0]),
        ("answer_wait", &["1024", "64"], &[0]),
        ("kv_get", &["(call $b)", "16", "3", "1024", "64"], &[1]),
        ("kv_exists", &["(call $b)", "16", "3"], &[1]),
        ("kv_get_many", &["(call $b)", "16", "0", "1024", "64"], &[1, 3]),
        ("kv_scan", &["(call $b)", "16", "3", "16", "0", "1", "1024", "64"], &[1, 3, 6]),
        ("kv_write", &["(call $v)", "64", "40", "1024", "64"], &[1, 3]),
        ("object_head", &["(call $b)", "16", "3", "1024", "64"], &[1]),
        ("object_open", &["(call $b)", "16", "3", "1024", "64"], &[1, 3]),
        ("object_list", &["(call $b)", "16", "3", "16", "0", "1", "1024", "64"], &[1, 3, 6]),
        ("object_put", &["(call $b)", "16", "3", "16", "0"], &[1, 3]),
        ("object_delete", &["(call $b)", "16", "3", "16", "0", "1024", "64"], &[1, 3, 5]),
        ("upload_write", &["(call $put)", "16", "3"], &[1]),
        ("upload_finish", &["(call $put)", "1024", "200"], &[1]),
    ] {
        for place in places {
            for (ptr, len) in [("65536", "1"), ("65535", "2"), ("-1", "1"), ("0", "-1"), ("-1", "-1")] {
                let mut arguments = arguments.to_vec();
                (arguments[*place], arguments[*place + 1]) = (ptr, len);
                let put = call("object_put", &["(call $b)", "16", "3", "16", "0"]).replacen("(drop ", "", 1);
                let code = call(name, &arguments).replace("(call $put)", put.strip_suffix(')').unwrap());
                breaks(&node, &code, "do not lie in the memory");
            }
        }
    }
    // To the last byte is fine.
    assert_eq!(number(&node, "(call $kv_exists (call $b) (i32.const 65533) (i32.const 3))"), 0);
    eventually("no upload is left", || node.files("data/staging").is_empty());
}

#[test]
fn records_that_break_the_rules() {
    let node = Node::start(&[]);
    let written = |patch: &str, len: &str| format!("{patch} {}", call("kv_write", &["(call $v)", "64", len, "1024", "64"]));
    let store = |at: u32, value: i64| format!("(i32.store (i32.const {at}) (i32.const {value}))");
    for (code, word) in [
        (written("", "39"), "ends past the record"),
        (written("", "31"), "ends past the record"),
        (written("", "41"), "ends past the record"),
        (written(&store(64, 3), "40"), "an operation is 0, 1 or 2"),
        (written(&store(68, 3), "40"), "the condition of an operation is 0, 1 or 2"),
        (written(&store(64, 1), "40"), "only a set has"),
        (written(&store(72, -1), "40"), "ends past the record"),
        (written(&store(76, -1), "40"), "ends past the record"),
        (call("kv_get_many", &["(call $v)", "16", "3", "1024", "64"]), "ends past the record"),
        (call("kv_get_many", &["(call $v)", "64", "9", "1024", "64"]), "ends past the record"),
        (call("object_put", &["(call $v)", "16", "3", "1024", "87"]), "end before they are whole"),
        (call("object_put", &["(call $v)", "16", "3", "1024", "89"]), "1 bytes follow"),
        (format!("{} {}", store(1024, 2), call("object_put", &["(call $v)", "16", "3", "1024", "88"])), "flags"),
        (format!("{} {}", store(1028, 3), call("object_put", &["(call $v)", "16", "3", "1024", "88"])), "condition of a put"),
        (
            format!("{} {}", store(1104, 1), call("object_put", &["(call $v)", "16", "3", "1024", "88"])),
            "end before they are whole",
        ),
        (
            format!("{} {}", store(1108, -1), call("object_put", &["(call $v)", "16", "3", "1024", "88"])),
            "end before they are whole",
        ),
        (call("object_delete", &["(call $v)", "16", "3", "64", "31", "1024", "64"]), "an ETag has 32 bytes"),
    ] {
        breaks(&node, &code, word);
    }
    assert_eq!(number(&node, "(call $kv_exists (call $v) (i32.const 16) (i32.const 3))"), 0, "nothing was done");
    // Text that is none is the caller's error, not the end of it: a content type of 0xff.
    let bad = "(i32.store8 (i32.const 1112) (i32.const 255)) (i32.store (i32.const 1104) (i32.const 1))";
    deploy(
        &node,
        "text",
        &format!(
            "{bad} (call $number (call $object_put (call $v) (i32.const 16) (i32.const 3) (i32.const 1024) (i32.const 89)))"
        ),
    );
    assert_eq!(node.data.get("/text").good(), (-4_i32).to_le_bytes());
}

#[test]
fn answers_are_kept_until_they_are_read() {
    let node = Node::start(&[]);
    let set = "(drop (call $kv_write (call $v) (i32.const 64) (i32.const 40) (i32.const 4096) (i32.const 64)))";
    // The entry's record has 21 bytes: one too many for the buffer, and nothing is written there.
    let get = "(call $kv_get (call $v) (i32.const 16) (i32.const 3) (i32.const 1024) (i32.const 20))";
    deploy(
        &node,
        "kept",
        &format!(
            "{set} (i32.store (i32.const 1024) (i32.const 0))
             (if (i32.ne {get} (i32.const 21)) (then unreachable))
             (if (i32.load (i32.const 1024)) (then unreachable))
             ;; Its beginning, and then it is gone.
             (if (i32.ne (call $answer_read (i32.const 1024) (i32.const 8)) (i32.const 21)) (then unreachable))
             (if (i32.load (i32.const 1032)) (then unreachable))
             (if (call $answer_read (i32.const 1024) (i32.const 64)) (then unreachable))
             (drop {get})
             (call $answer (i32.const 200) (i32.const 2048) (call $answer_read (i32.const 2048) (i32.const 64)))"
        ),
    );
    assert_eq!(&node.data.get("/kept").good()[16..], b"value");
    // The text of an error; before that none.
    deploy(
        &node,
        "text",
        "(if (call $answer_read (i32.const 1024) (i32.const 64)) (then unreachable))
         (if (i32.ne (call $kv_exists (call $v) (i32.const 16) (i32.const 0)) (i32.const -4)) (then unreachable))
         (call $answer (i32.const 200) (i32.const 2048) (call $answer_read (i32.const 2048) (i32.const 200)))",
    );
    assert_eq!(node.data.get("/text").good(), b"the key is empty: expected 1 to 512 bytes");
}

#[test]
fn a_write_to_the_disk_is_waited_for_once() {
    let node = Node::start(&[]);
    let write = "(call $kv_write (call $b) (i32.const 64) (i32.const 40) (i32.const 1024) (i32.const 64))";
    let wait = "(call $answer_wait (i32.const 1024) (i32.const 64))";
    // A disk may be done before the guest goes on: then the answer is there, and there is nothing to wait for.
    let waits = format!(
        "(local $n i32) (local.set $n {write})
         (call $number (if (result i32) (i32.eq (local.get $n) (i32.const -12)) (then {wait}) (else (local.get $n))))"
    );
    deploy(&node, "waits", &waits);
    assert_eq!(node.data.get("/waits").good(), 24_i32.to_le_bytes());
    breaks(&node, &format!("(drop {wait})"), "nothing to wait for");
    breaks(&node, &format!("(drop {write}) (drop {wait}) (drop {wait})"), "nothing to wait for");
    breaks(&node, &format!("(loop $more (drop {write}) (br $more))"), "still waits");
    // One that is not waited for is made all the same.
    deploy(
        &node,
        "leaves",
        "(i32.store8 (i32.const 96) (i32.const 120)) (call $number (call $kv_write (call $b) (i32.const 64) (i32.const 40) (i32.const 1024) (i32.const 64)))",
    );
    node.data.get("/leaves").good();
    deploy(
        &node,
        "looks",
        "(i32.store8 (i32.const 16) (i32.const 120)) (call $number (call $kv_exists (call $b) (i32.const 16) (i32.const 3)))",
    );
    eventually("it is there", || node.data.get("/looks").good() == 1_i32.to_le_bytes());
    // What waits may be longer than its buffer.
    deploy(
        &node,
        "kept",
        &format!(
            "(drop {write}) (if (i32.ne (call $answer_wait (i32.const 1024) (i32.const 23)) (i32.const 24)) (then unreachable))
                  (call $number (call $answer_read (i32.const 1024) (i32.const 64)))"
        ),
    );
    assert_eq!(node.data.get("/kept").good(), 24_i32.to_le_bytes());
}

/// An instance that opens the same bucket again has the same handle.
#[test]
fn handles_of_buckets_are_not_used_up() {
    let node = Node::start(&[]);
    let code = "(local $n i32)
      (loop $more
        (if (call $b) (then unreachable))
        (br_if $more (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 1000))))
      (call $number (call $v))";
    deploy(&node, "opens", code);
    assert_eq!(node.data.get("/opens").good(), 1_i32.to_le_bytes());
}

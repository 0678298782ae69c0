//! Entries.

use super::{Door, hex};
use crate::harness::eventually;

const VALUE_LEN_MAX: usize = 1 << 20;

#[test]
fn what_the_calls_of_the_sdk_take_at_once() {
    let door = Door::open();
    for bucket in ["durable", "volatile"] {
        assert_eq!(door.one(bucket, "fill 70 00 count=1000"), "1000");
        assert_eq!(door.error(bucket, "fill 71 00 count=1001"), "invalid");
        assert_eq!(door.one(bucket, "scan 71"), "");
        assert_eq!(door.one(bucket, "repeat 70303030303030 count=1000"), "0");
        assert_eq!(door.error(bucket, "repeat 70 count=1001"), "invalid");
        door.version(bucket, format!("set 76 *{}", VALUE_LEN_MAX - 1));
        assert_eq!(door.one(bucket, "repeat 76 count=16"), "16");
        assert_eq!(door.error(bucket, "repeat 76 count=17"), "too-large");
        // A scan gives up where it is told to, and brings values.
        door.one(bucket, "batch\nset 61 61\nset 6100 6100\nset 6161 -\nend");
        assert_eq!(door.one(bucket, "scan 61 values take=2"), "61=61 6100=6100");
        let version = door.version(bucket, "cas 6b 31");
        assert_eq!(door.ask(bucket, "cas 6b 31\ncas 6b 31 version=1"), ["lost", "lost"]);
        door.version(bucket, format!("cas 6b 32 version={version}"));
    }
}

#[test]
fn errors_have_their_kinds() {
    let door = Door::open();
    let long = hex([7; 513]);
    for bucket in ["durable", "volatile"] {
        for (key, kind) in [("-", "invalid"), (long.as_str(), "too-large")] {
            for line in ["set {} -", "del {}", "add {} 1", "get {}", "exists {}", "many 6b {}", "batch\nset {} -\nend"] {
                assert_eq!(door.error(bucket, line.replace("{}", key)), kind, "{line}");
            }
        }
        assert_eq!(door.error(bucket, format!("set 76 *{}", VALUE_LEN_MAX + 1)), "too-large");
        assert_eq!(door.error(bucket, "set 74 - ttl=0"), "invalid");
        door.one(bucket, "set 6e 78");
        assert_eq!(door.error(bucket, "add 6e 1"), "invalid");
        assert_eq!(door.error(bucket, "set 6e 31 absent"), "conflict");
    }
}

#[test]
fn what_was_written_survives_a_kill_or_not() {
    let mut door = Door::open();
    let version = door.version("durable", "set 6b 31");
    door.one("volatile", "set 6b 31");
    let dir = door.node.dir();
    door.node.kill();
    door.node = crate::harness::Node::start_with(crate::harness::Setup { dir: Some(dir), ..Default::default() });
    assert_eq!(door.one("durable", "entry 6b"), format!("31 {version} never"));
    assert_eq!(door.one("volatile", "get 6b"), "none");
    assert!(door.version("volatile", "set 6b 31") > version);
}

#[test]
fn a_full_bucket_refuses_writes_and_nothing_else() {
    let door = Door::open();
    door.one("small", format!("batch\nset 61 {}\nset 62 {}\nend", hex("123456789"), hex("12345678")));
    assert_eq!(door.error("small", "set 63 31"), "quota");
    door.version("small", "set 63 -");
    assert_eq!(door.error("small", "set 64 -"), "quota", "keys are counted too");
    assert_eq!(door.ask("small", "get 62\nscan -\ndel 61"), [hex("12345678"), "61 62 63".into(), "found true".into()]);
    door.version("small", "set 64 31");
}

#[test]
fn without_a_grant_nothing_opens_and_the_log_says_once_what_would_help() {
    let door = Door::open();
    for _ in 0..3 {
        for line in ["get 6b", "set 6b 31", "head 6b", "put 6b 31"] {
            let answer = door.one("hidden", line);
            let expected = "error denied denied: add to hob.toml: [grants] data = [{ bucket = \"hidden\", access = \"read\" }]";
            assert_eq!(answer, expected);
        }
    }
    let said = |word: &str| door.node.logs("data1").iter().filter(|(_, _, text)| text.contains(word)).count();
    assert_eq!(said("bucket = \"hidden\", access = \"read\""), 1, "{:?}", door.node.logs("data1"));
    for name in ["", "../shown", "shown2", "SHOWN", "%00"] {
        assert_eq!(door.error(name, "get 6b"), "denied", "{name}");
    }
}

#[test]
fn a_grant_to_read_is_none_to_write() {
    let door = Door::open();
    assert_eq!(door.ask("shown", "get 6b\nscan -\nhead 6b\nlist -"), ["none", "", "none", ""]);
    for line in ["set 6b 31", "del 6b", "add 6b 1", "batch\nset 6b 31\nend", "put 6b 31", "rm 6b"] {
        let answer = door.one("shown", line);
        assert!(answer.starts_with("error denied") && answer.contains("access = \"read-write\""), "{line}: {answer}");
    }
    assert_eq!(door.ask("shown", "get 6b\nhead 6b"), ["none", "none"]);
    let logs = door.node.logs("data1");
    let said: Vec<_> = logs.iter().filter(|(_, _, text)| text.contains("bucket = \"shown\"")).collect();
    assert_eq!(said.len(), 1, "{logs:?}");
}

#[test]
fn a_bucket_that_is_granted_and_not_there() {
    let door = Door::open();
    for line in ["get 6b", "set 6b 31", "put 6b 31"] {
        let answer = door.one("missing", line);
        assert!(answer.starts_with("error no-bucket") && answer.contains("'missing'"), "{answer}");
    }
    // Somebody else's deploy makes it; the function need not be deployed again.
    let maker = "[[bucket]]\nname = \"missing\"\n";
    assert_eq!(door.node.deploy("maker", &super::wasm(), maker).status(), 201);
    door.version("missing", "set 6b 31");
}

#[test]
fn no_data_at_deploy() {
    let door = Door::open();
    assert_eq!(door.node.data.get("/data1/refused").ok().text(), "0");
    // In `init`, and in a warm-up request: refused, and the guest may go on. What asked for data has looked outside.
    for (name, more) in [("init", "[env]\nASK = \"init\"\n"), ("warm", "[snapshot]\nwarmup = [\"GET /warm-up\"]\n")] {
        let reply = door.node.deploy(name, &super::wasm(), &format!("{BUCKET_OF_INIT}{more}"));
        assert_eq!(reply.status(), 201, "{}", reply.text());
        let asked = door.node.data.get(&format!("/{name}/refused")).ok().text();
        assert_eq!(asked, "1", "{name}: {}", reply.text());
        assert_eq!(door.node.data.post(&format!("/{name}/durable"), b"exists 6b").ok().text(), "false\n");
    }
}

const BUCKET_OF_INIT: &str = "[grants]\ndata = [{ bucket = \"durable\", access = \"read\" }]\n";

#[test]
fn a_guest_that_ends_while_it_writes_leaves_the_node_well() {
    let door = Door::open();
    for _ in 0..20 {
        // The client goes as soon as it has asked: the guest may be anywhere in the middle.
        let mut conn = door.node.data.connect();
        let script = "add 6e 1\n".repeat(50);
        conn.request("POST", "/data1/durable", &[], script.as_bytes());
        drop(conn);
    }
    let answer = door.one("durable", "add 6e 1");
    let count: i64 = answer.strip_prefix("number ").unwrap().parse().unwrap();
    assert!((1..=1001).contains(&count), "{answer}");
    // What was begun may still be made, and a request that is on its way may still begin.
    eventually("all have ended", || door.node.occupancy("data1") == (0, 0));
    let last = door.one("durable", "get 6e");
    assert!(
        (count..=1001).any(|number| last == hex(number.to_string())),
        "{last}: less than {count} is left, or more than was added"
    );
}

#[test]
fn the_control_port_sees_what_the_guest_sees_until_the_bucket_is_deleted() {
    let door = Door::open();
    for bucket in ["durable", "volatile"] {
        let key = format!("/v1/buckets/{bucket}/kv/k");
        let put = door.node.control.request("PUT", &key, &[], b"1");
        assert!(matches!(put.status(), 200 | 201 | 204), "{} {}", put.status(), put.text());
        assert_eq!(door.ask(bucket, "get 6b\nadd 6b 1"), ["31", "number 2"]);
        assert_eq!(door.node.control.get(&key).good(), b"2");
        let deleted = door.node.control.request("DELETE", &format!("/v1/buckets/{bucket}"), &[], b"");
        assert!(matches!(deleted.status(), 200 | 204), "{} {}", deleted.status(), deleted.text());
        for line in ["get 6b", "set 6b 31", "put 6b 31", "scan -"] {
            assert_eq!(door.error(bucket, line), "no-bucket", "{line}");
        }
    }
}

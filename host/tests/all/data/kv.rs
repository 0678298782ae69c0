//! Entries.

use super::{Door, for_both, hex};
use crate::harness::eventually;

const KEY_LEN_MAX: usize = 512;
const VALUE_LEN_MAX: usize = 1 << 20;

fn versions_rise_over_sets_and_deletes(door: &Door, bucket: &str) {
    assert_eq!(door.one(bucket, "get 6b"), "none");
    let first = door.version(bucket, "set 6b 31");
    assert_eq!(door.ask(bucket, "entry 6b\nget 6b"), [format!("31 {first} never"), "31".into()]);
    let second = door.version(bucket, "set 6f 31");
    assert!(second > first);
    assert_eq!(door.ask(bucket, "del 6b\ndel 6b\nexists 6b"), ["found true", "found false", "false"]);
    assert!(door.version(bucket, "set 6b -") > second);
    assert_eq!(door.ask(bucket, "get 6b\nexists 6b"), ["-", "true"]);
    assert_eq!(door.one(bucket, "many 6b 7878 6f"), "- none 31");
}

fn conditions_refuse_the_whole_batch(door: &Door, bucket: &str) {
    let version = door.version(bucket, "set 6b 31 absent");
    let stale = version - 1;
    let found = format!("found version {version};");
    for (op, found) in [
        ("set 6b 32 absent".to_owned(), found.as_str()),
        (format!("set 6b 32 version={stale}"), &found),
        (format!("del 6b version={stale}"), &found),
        (format!("set 7878 32 version={version}"), "found no entry;"),
    ] {
        let answer = door.one(bucket, format!("batch\nset 61 78\n{op}\nset 62 78\nend"));
        assert!(answer.starts_with("error conflict") && answer.contains("operation 1") && answer.contains(found), "{answer}");
    }
    assert_eq!(door.one(bucket, "many 61 62 6b"), "none none 31");
    let version = door.version(bucket, format!("set 6b 32 version={version}"));
    assert_eq!(door.one(bucket, format!("batch\ndel 6b version={version}\nend")), "done found=true");
    assert_eq!(door.one(bucket, "get 6b"), "none");
    assert_eq!(door.one(bucket, "cas 6b 31 version=1"), "lost");
    let version = door.version(bucket, "cas 6b 31");
    assert_eq!(door.one(bucket, "cas 6b 31"), "lost");
    door.version(bucket, format!("cas 6b 32 version={version}"));
}

fn a_batch_happens_in_order(door: &Door, bucket: &str) {
    let done = door.one(bucket, "batch\nset 6e 35\nadd 6e -7\nset 6d 78 absent\ndel 6d\nadd 6d 1\nend");
    let words: Vec<_> = done.split(' ').collect();
    assert!(words[2].starts_with("number=-2,") && words[4] == "found=true" && words[5].starts_with("number=1,"), "{done}");
    let versions: Vec<u64> = words.iter().filter_map(|word| word.split_once("version=")?.1.parse().ok()).collect();
    assert!(versions.len() == 4 && versions.is_sorted_by(|a, b| a < b), "{done}");
    assert_eq!(door.one(bucket, "many 6e 6d"), format!("{} 31", hex("-2")));
    assert_eq!(door.one(bucket, "batch\nend"), "done ");
    assert_eq!(door.error(bucket, "batch\nset 79 31\nset 79 32 absent\nend"), "conflict");
    assert_eq!(door.one(bucket, "get 79"), "none");
}

fn limits_hold_on_both_sides(door: &Door, bucket: &str) {
    let (longest, long) = (hex([7; KEY_LEN_MAX]), hex([7; KEY_LEN_MAX + 1]));
    for key in [hex("\0"), hex("../../etc/passwd"), hex(b"\xff\xff"), hex("a\0b"), longest] {
        door.version(bucket, format!("set {key} 00"));
        assert_eq!(door.ask(bucket, &format!("get {key}\nscan {key}")), ["00", key.as_str()]);
    }
    for (key, kind) in [("-", "invalid"), (&long, "too-large")] {
        for line in ["set {} -", "del {}", "add {} 1", "get {}", "exists {}", "many 6b {}", "batch\nset 6b -\nset {} -\nend"] {
            assert_eq!(door.error(bucket, line.replace("{}", key)), kind, "{line}");
        }
    }
    assert_eq!(door.one(bucket, "get 6b"), "none");
    door.version(bucket, format!("set 76 *{VALUE_LEN_MAX}"));
    assert_eq!(door.one(bucket, "get 76"), format!("*{VALUE_LEN_MAX}"));
    assert_eq!(door.error(bucket, format!("set 76 *{}", VALUE_LEN_MAX + 1)), "too-large");
    assert_eq!(door.ask(bucket, "fill 70 00 count=1000\nfill 71 00 count=1001")[0], "1000");
    assert_eq!(door.error(bucket, "fill 71 00 count=1001"), "invalid");
    assert_eq!(door.one(bucket, "scan 71"), "");
    assert_eq!(door.ask(bucket, "repeat 70303030303030 count=1000")[0], "0");
    assert_eq!(door.error(bucket, "repeat 70 count=1001"), "invalid");
    let batch = |count: usize| format!("batch\n{}end", format!("set 77 *{}\n", VALUE_LEN_MAX - 1).repeat(count));
    assert!(door.one(bucket, batch(16)).starts_with("done "));
    assert_eq!(door.error(bucket, batch(17)), "too-large");
    assert_eq!(door.one(bucket, "repeat 76 count=16"), "16");
    assert_eq!(door.error(bucket, "repeat 76 count=17"), "too-large");
    assert_eq!(door.error(bucket, "set 74 - ttl=0"), "invalid");
    // More than a page by its entries, and by its bytes.
    assert_eq!(door.one(bucket, "scan 70").split(' ').count(), 1000);
    door.ask(bucket, &format!("fill 7a *{VALUE_LEN_MAX} count=6"));
    assert_eq!(door.one(bucket, "scan 7a").split(' ').count(), 6);
}

fn increments_are_decimal_numbers(door: &Door, bucket: &str) {
    assert_eq!(door.ask(bucket, "add 6e 3\nget 6e"), ["number 3", "33"]);
    door.one(bucket, format!("set 6e {}", hex(i64::MAX.to_string())));
    assert_eq!(door.error(bucket, "add 6e 1"), "invalid");
    door.one(bucket, format!("set 6e {}", hex(i64::MIN.to_string())));
    assert_eq!(door.error(bucket, "add 6e -1"), "invalid");
    assert_eq!(door.one(bucket, "get 6e"), hex(i64::MIN.to_string()));
    for value in ["", "x", "1 ", "1.0", "\u{662}", "9223372036854775808"] {
        door.one(bucket, format!("set 6e {}", hex(value)));
        assert_eq!(door.error(bucket, "add 6e 1"), "invalid", "{value}");
    }
    let answers = door.ask(bucket, "set 74 31 ttl=3600000\nentry 74\nadd 74 1\nentry 74");
    let end = |answer: &str| answer.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
    assert_eq!((end(&answers[1]), answers[3].starts_with("32 ")), (end(&answers[3]), true), "{answers:?}");
}

fn what_expired_is_gone(door: &Door, bucket: &str) {
    door.ask(bucket, "set 6b 31 ttl=1\nset 6c 31 ttl=3600000\nset 6d 31");
    eventually("it expires", || door.one(bucket, "get 6b") == "none");
    assert_eq!(door.ask(bucket, "exists 6b\nscan -\nmany 6b 6d"), ["false", "6c 6d", "none 31"]);
    // It is absent for conditions too, and a set without an end lifts one.
    door.version(bucket, "set 6b 32 absent");
    door.one(bucket, "set 6c 32");
    assert!(door.one(bucket, "entry 6c").ends_with(" never"));
}

fn scans_go_by_prefix_and_cursor(door: &Door, bucket: &str) {
    let mut all: Vec<&[u8]> = vec![b"\0", b"a", b"a\0", b"a/", b"aa", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xff"];
    let sets: String = all.iter().map(|key| format!("set {0} {0}\n", hex(key))).collect();
    door.one(bucket, format!("batch\n{sets}end"));
    all.sort_unstable();
    for prefix in [&b""[..], b"a", b"a\xff", b"\xff", b"b", b"c", b"aa"] {
        let expected: Vec<_> = all.iter().filter(|key| key.starts_with(prefix)).map(hex).collect();
        for page in [1, 2, 3, 1000] {
            assert_eq!(door.one(bucket, format!("scan {} page={page}", hex(prefix))), expected.join(" "), "{prefix:?} by {page}");
        }
    }
    assert_eq!(door.one(bucket, "scan 61 values take=2"), "61=61 6100=6100");
    // A cursor stays good when its key is gone, and one outside of the prefix is harmless.
    let after = "scan 61 after=6161 take=1\nscan 61 after=00 take=1\nscan 61 after=7a";
    assert_eq!(door.ask(bucket, &format!("{after}\ndel 6161\n{after}")), ["61ff", "61", "", "found true", "61ff", "61", ""]);
}

fn of_racing_writers_one_wins_and_nothing_is_lost(door: &Door, bucket: &str) {
    let version = door.version(bucket, "set 63 30");
    let won = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                scope.spawn(move || {
                    for _ in 0..10 {
                        let answer = door.one(bucket, "add 6e 1");
                        assert!(answer.starts_with("number "), "{answer}");
                    }
                    door.one(bucket, format!("cas 63 3{thread} version={version}"))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|answer| answer != "lost").count()
    });
    assert_eq!(won, 1);
    assert_eq!(door.one(bucket, "get 6e"), hex("80"));
}

fn buckets_are_apart(door: &Door, bucket: &str) {
    let other = if bucket == "durable" { "volatile" } else { "durable" };
    door.one(bucket, "set 6b 31");
    door.one(other, "set 6b 32");
    assert_eq!(door.ask(bucket, "get 6b\nscan -"), ["31", "6b"]);
    door.one(bucket, "del 6b");
    assert_eq!(door.one(other, "get 6b"), "32");
}

for_both! {
    versions_rise_over_sets_and_deletes
    conditions_refuse_the_whole_batch
    a_batch_happens_in_order
    limits_hold_on_both_sides
    increments_are_decimal_numbers
    what_expired_is_gone
    scans_go_by_prefix_and_cursor
    of_racing_writers_one_wins_and_nothing_is_lost
    buckets_are_apart
}

// Where the two differ, and what is of neither.

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

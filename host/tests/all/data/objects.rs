//! Objects.

use hob::id::Digest;

use super::{Door, hex};
use crate::harness::{Node, eventually, files};
use crate::shortage::behind;

const MIB: usize = 1 << 20;

/// `*N` as the guest has it, and its ETag.
fn ones(len: usize) -> (String, String) {
    let word = if len > 64 { format!("*{len}") } else { hex(vec![1; len]) };
    (word, etag(&vec![1; len]))
}

fn etag(bytes: &[u8]) -> String {
    Digest::of(bytes).bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// ETag, length and version of a head.
#[track_caller]
fn head(answer: &str) -> (String, u64, u64) {
    let words: Vec<_> = answer.split(' ').collect();
    assert_eq!((words[0], words.len()), ("head", 8), "{answer}");
    (words[1].into(), words[2].parse().unwrap(), words[3].parse().unwrap())
}

fn an_upload_that_is_cut_leaves_nothing(door: &Door, bucket: &str) {
    door.one(bucket, format!("put 6b {}", hex("old")));
    for size in [0, 1, 65_536, 200_001] {
        // Dropped by the guest, and by the end of an instance that forgot it.
        let answers = door.ask(bucket, &format!("abandon 6b *{size}\nread 6b\nleak 6b *{size}\nread 6b"));
        assert_eq!(answers, ["abandoned", &hex("old"), "leaked", &hex("old")]);
    }
    let (right, wrong) = (etag(b"new"), etag(b"other"));
    let answer = door.one(bucket, format!("put 6b {} digest={wrong}", hex("new")));
    assert!(answer.starts_with("error invalid") && answer.contains(&right) && answer.contains(&wrong), "{answer}");
    assert_eq!(door.one(bucket, "read 6b"), hex("old"));
    eventually("what was not finished is gone", || door.node.files("data/staging").is_empty());
}

fn errors_and_limits_of_an_instance(door: &Door, bucket: &str) {
    let long = hex([7; 513]);
    for (key, kind) in [("-", "invalid"), (long.as_str(), "too-large")] {
        for line in ["put {} 78", "write {} 78", "read {}", "head {}", "rm {}"] {
            assert_eq!(door.error(bucket, line.replace("{}", key)), kind, "{line}");
        }
    }
    assert_eq!(door.error(bucket, "put 6b 78 ttl=0"), "invalid");
    head(&door.one(bucket, "put 6b 78"));
    assert_eq!(door.error(bucket, "put 6b 78 absent"), "conflict");
    assert_eq!(door.one(bucket, "read 6b from=7 to=3"), "-");
    // Entries are others, under the same keys.
    assert_eq!(door.one(bucket, "get 6b"), "none");
    // What an instance may have open at once.
    assert_eq!(door.one(bucket, "hold 6b count=64"), "78");
    assert_eq!(door.error(bucket, "hold 6b count=65"), "limit");
    assert_eq!(door.one(bucket, "uploads 6b count=16"), "16");
    assert_eq!(door.error(bucket, "uploads 6b count=17"), "limit");
    // What was open is let go of: the same instance has its places again.
    assert_eq!(
        door.ask(bucket, "hold 6b count=65\nhold 6b count=64\nuploads 6b count=17\nuploads 6b count=16")[1..],
        ["78".to_owned(), "error limit an instance may have 16 uploads under way: finish or drop one first".into(), "16".into()]
    );
}

fn an_open_object_outlives_its_key(door: &Door, bucket: &str) {
    for end in ["put 32", "rm"] {
        door.one(bucket, "put 6b *300000");
        assert_eq!(door.one(bucket, format!("hold 6b count=2 {end}")), "*300000");
    }
    assert_eq!(door.one(bucket, "head 6b"), "none");
}

#[test]
fn in_a_bucket_of_either_kind() {
    let door = Door::open();
    for bucket in ["durable", "volatile"] {
        an_upload_that_is_cut_leaves_nothing(&door, bucket);
        errors_and_limits_of_an_instance(&door, bucket);
        an_open_object_outlives_its_key(&door, bucket);
    }
}

#[test]
fn a_full_bucket_refuses_puts_and_nothing_else() {
    let door = Door::open();
    head(&door.one("small", format!("put 61 {}", hex("1234567890"))));
    assert_eq!(door.error("small", format!("put 62 {}", hex("1234567890"))), "quota");
    assert_eq!(door.error("small", "put 62 *21"), "quota", "it could never fit");
    assert_eq!(door.ask("small", "read 61\nlist -"), [hex("1234567890"), "61".into()]);
    head(&door.one("small", "rm 61"));
    head(&door.one("small", format!("put 62 {}", hex("1234567890"))));
    eventually("nothing is left of what was refused", || door.node.files("data/staging").is_empty());
}

#[test]
fn a_durable_object_is_checked_when_it_is_first_opened() {
    let mut door = Door::open();
    let (_, of_good) = ones(3 * MIB);
    door.ask("durable", &format!("put 6b *{}\nput 6c *{}", 3 * MIB, 2 * MIB));
    let dir = door.node.dir();
    door.node.stop();
    let bad = files(&door.node.data_dir().join("data/objects")).into_iter().find(|file| !file.ends_with(&of_good)).unwrap();
    let mut bytes = std::fs::read(&bad).unwrap();
    bytes[MIB] ^= 1;
    std::fs::remove_file(&bad).unwrap();
    std::fs::write(&bad, bytes).unwrap();
    door.node = Node::start_with(crate::harness::Setup { dir: Some(dir), ..Default::default() });
    assert_eq!(door.one("durable", "read 6b"), format!("*{}", 3 * MIB));
    let answer = door.one("durable", "read 6c");
    assert!(answer.starts_with("error damaged"), "{answer}");
    assert_eq!(door.one("durable", "list -"), "6b 6c");
    // Written anew it is whole again.
    head(&door.one("durable", format!("put 6c *{}", 2 * MIB)));
    assert_eq!(door.one("durable", "read 6c"), format!("*{}", 2 * MIB));
}

#[test]
fn a_guest_that_ends_in_the_middle_of_an_upload_leaves_nothing() {
    let node = Node::start(&[]);
    let door = Door::over(node);
    let hasty = "[limits]\nwall = \"300ms\"\n[grants]\ndata = [\n{ bucket = \"durable\", access = \"read-write\" },\n{ bucket = \"volatile\", access = \"read-write\" }]\n";
    assert_eq!(door.node.deploy("hasty", &super::wasm(), hasty).status(), 201);
    for bucket in ["durable", "volatile"] {
        // By its deadline, while it writes, and while it computes with an upload and an open object in its hands.
        for script in ["drip 6b", "put 61 *200000\nleak 6b *200000\nhold 61 count=1\nspin"] {
            let reply = door.node.data.post(&format!("/hasty/{bucket}"), script.as_bytes());
            reply.problem(504, "wall-deadline");
        }
        // By its client.
        for _ in 0..4 {
            let mut conn = door.node.data.connect();
            conn.request("POST", &format!("/data1/{bucket}"), &[], b"write 6b *10000000");
            drop(conn);
        }
        eventually("all have ended", || door.node.occupancy("data1") == (0, 0) && door.node.occupancy("hasty") == (0, 0));
        eventually("nothing is left of them", || door.node.files("data/staging").is_empty());
        let answer = door.one(bucket, "head 6b");
        assert!(answer == "none" || head(&answer).1 == 10_000_000, "{answer}");
        head(&door.one(bucket, "put 6b 31"));
    }
}

#[test]
fn open_objects_do_not_use_up_the_descriptors_of_the_node() {
    const LIMIT: usize = 160;
    let door = Door::over(behind(&format!("ulimit -n {LIMIT};"), &["sh"], &["engine.threads=1"]));
    for bucket in ["durable", "volatile"] {
        door.one(bucket, "put 6b 31");
    }
    // Of the share of all guests one tenant has three quarters.
    let share = LIMIT / 4 * 3 / 4;
    let script = format!("hold 6b count={share}\nhold 6b count={}\nhold 6b count={share}", share + 1);
    let answers = door.ask("durable", &script);
    assert!(answers[1].starts_with("error busy"), "{answers:?}");
    assert_eq!((answers[0].as_str(), answers[2].as_str()), ("31", "31"));
    assert_eq!(door.one("volatile", "hold 6b count=64"), "31");
    let answers = door.ask("durable", &format!("uploads 6b count=16\nhold 6b count={share}"));
    assert_eq!(answers, ["16", "31"]);
}

#[test]
fn what_the_sdk_maps_is_what_was_put() {
    let door = Door::open();
    let bytes: Vec<u8> = (0..300_000_usize).map(|at| (at % 251 + at / 4096) as u8).collect();
    for bucket in ["durable", "volatile"] {
        door.one(bucket, format!("put 6b {}", hex(&bytes)));
        door.one(bucket, format!("put 73 {}", hex(&bytes[..10])));
        door.one(bucket, "put 65 -");
        assert_eq!(
            door.ask(bucket, "map 6b\nmap 73\nmap 65\nmap 6e"),
            [hex(&bytes), hex(&bytes[..10]), "-".into(), "none".into()]
        );
        // Mapped, and so short that they are copied; from any byte on; past the end and at it.
        for (from, to) in [
            (Some(0), Some(300_000)),
            (Some(5000), Some(250_001)),
            (Some(1), None),
            (None, Some(100_000)),
            (Some(4096), Some(4106)),
            (Some(299_999), None),
            (Some(100), Some(u64::MAX)),
            (Some(300_000), None),
            (Some(7), Some(3)),
            // Past all that a memory has.
            (Some(1 << 32), Some(1 << 33)),
        ] {
            let word = |name: &str, at: Option<u64>| at.map(|at| format!(" {name}={at}")).unwrap_or_default();
            let end = usize::try_from(to.unwrap_or(u64::MAX)).unwrap().min(bytes.len());
            let expected = bytes.get(usize::try_from(from.unwrap_or(0)).unwrap()..end).unwrap_or_default();
            let answer = door.one(bucket, format!("map 6b{}{}", word("from", from), word("to", to)));
            assert!(answer == hex(expected), "{from:?} to {to:?}");
        }
    }
}

#[test]
fn a_mapping_that_is_dropped_gives_its_place_and_none_is_laid_over_what_the_guest_takes() {
    let door = Door::open();
    for bucket in ["durable", "volatile"] {
        door.one(bucket, "put 6b *300000");
        assert_eq!(door.one(bucket, "remap 6b count=1000"), "1 0", "one place for all");
        for size in [100, 70_000, 1_000_000] {
            assert_eq!(door.one(bucket, format!("mapgrow 6b count=20 size={size}")), "good 15 40");
        }
        assert_eq!(door.ask(bucket, "mapped 6b\nmapped 6b"), ["256 limit", "256 limit"], "the error lets go of them");
    }
}

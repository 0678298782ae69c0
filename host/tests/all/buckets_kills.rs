//! `kill -9` at random moments under mixed writes. The journal of what was acknowledged is kept here, outside of the process that dies.
//!
//! Each writer has keys of its own, so for every key there are at each moment two things that may be there after a kill: what was
//! acknowledged last, and what was under way. `HOB_TEST_KILLS` says how many kills, `HOB_TEST_SEED` which.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::buckets::{bucket, check_whole};
use crate::harness::http::Conn;
use crate::harness::{Dice, Node, Setup};

/// Kills, unless the environment says otherwise.
const KILLS: usize = 200;
const WRITERS: usize = 4;
/// Keys of each writer, of each kind.
const KEYS: usize = 4;

/// A number in the environment.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var_os(name).map_or(otherwise, |text| text.to_str().unwrap().parse().unwrap())
}

/// What one request changes, by kind and key; `None` deletes.
type Change = BTreeMap<(&'static str, String), Option<Vec<u8>>>;

/// One writer's journal.
#[derive(Debug, Default)]
struct Journal {
    /// What was acknowledged, or found after the last kill.
    kept: BTreeMap<(&'static str, String), Vec<u8>>,
    /// What was sent and not answered.
    pending: Option<Change>,
}

impl Journal {
    fn get(&self, kind: &'static str, key: &str) -> Option<&Vec<u8>> {
        self.kept.get(&(kind, key.to_owned()))
    }

    fn apply(&mut self, change: Change) {
        for (place, value) in change {
            match value {
                Some(value) => self.kept.insert(place, value),
                None => self.kept.remove(&place),
            };
        }
    }
}

fn noise(dice: &mut Dice, most: usize) -> Vec<u8> {
    let len = dice.below(most);
    (0..len).map(|_| dice.below(256) as u8).collect()
}

/// A request and what it changes.
struct Write {
    method: &'static str,
    target: String,
    body: Vec<u8>,
    change: Change,
}

fn next_write(writer: usize, journal: &Journal, dice: &mut Dice) -> Write {
    let key = |name: &str, number: usize| format!("{writer}-{name}-{number}");
    let (at, number) = (|kind: &str, key: &str| format!("/v1/buckets/b/{kind}/{key}"), dice.below(KEYS));
    let count = |key: &str| journal.get("kv", key).map_or(0, |value| String::from_utf8_lossy(value).parse::<i64>().unwrap());
    match dice.below(10) {
        0..=3 => {
            let (key, value) = (key("set", number), noise(dice, 300));
            let change = Change::from([(("kv", key.clone()), Some(value.clone()))]);
            Write { method: "PUT", target: at("kv", &key), body: value, change }
        }
        4 => {
            let key = key("set", number);
            Write { method: "DELETE", target: at("kv", &key), body: Vec::new(), change: Change::from([(("kv", key), None)]) }
        }
        5 => {
            let (key, by) = (key("count", 0), dice.below(100) as i64 - 50);
            let sum = (count(&key) + by).to_string().into_bytes();
            Write {
                method: "POST",
                target: format!("{}?increment={by}", at("kv", &key)),
                body: Vec::new(),
                change: Change::from([(("kv", key), Some(sum))]),
            }
        }
        6 | 7 => {
            // Two sets, a deletion and a number: all of it or nothing.
            let (one, two, three, counted) = (key("set", 0), key("set", 1), key("set", 2), key("count", 0));
            let (first, second) = (noise(dice, 200), noise(dice, 200));
            let ops = json!({ "ops": [
                { "op": "set", "key": one, "value_base64": STANDARD.encode(&first) },
                { "op": "delete", "key": three },
                { "op": "increment", "key": counted, "by": 7 },
                { "op": "set", "key": two, "value_base64": STANDARD.encode(&second) },
            ] });
            let sum = (count(&counted) + 7).to_string().into_bytes();
            let change = Change::from([
                (("kv", one), Some(first)),
                (("kv", two), Some(second)),
                (("kv", three), None),
                (("kv", counted), Some(sum)),
            ]);
            Write { method: "POST", target: "/v1/buckets/b/kv".into(), body: ops.to_string().into_bytes(), change }
        }
        8 => {
            // Some share their bytes, and so their file.
            let key = key("object", number);
            let bytes = if dice.below(3) == 0 { vec![dice.below(2) as u8; 5000] } else { noise(dice, 40_000) };
            let change = Change::from([(("objects", key.clone()), Some(bytes.clone()))]);
            Write { method: "PUT", target: at("objects", &key), body: bytes, change }
        }
        _ => {
            let key = key("object", number);
            Write {
                method: "DELETE",
                target: at("objects", &key),
                body: Vec::new(),
                change: Change::from([(("objects", key), None)]),
            }
        }
    }
}

/// Writes until the node is gone. `acknowledged` counts for all writers.
fn write_on(conn: Option<Conn>, writer: usize, journal: &mut Journal, dice: &mut Dice, acknowledged: &AtomicUsize) {
    let Some(mut conn) = conn else { return };
    loop {
        let Write { method, target, body, change } = next_write(writer, journal, dice);
        journal.pending = Some(change.clone());
        conn.request(method, &target, &[], &body);
        let Some(head) = conn.try_head() else { return };
        let mut text = Vec::new();
        let is_whole = conn.body(&head, |piece| text.extend_from_slice(piece)) || head.status == 204;
        // Nothing to delete is an answer too, and changes nothing.
        let is_good = matches!(head.status, 200 | 201 | 204) || (method == "DELETE" && head.status == 404);
        assert!(is_good, "{method} {target}: {} {}", head.status, String::from_utf8_lossy(&text));
        // Its head was an acknowledgement, whatever became of the rest.
        journal.apply(change);
        journal.pending = None;
        acknowledged.fetch_add(1, Ordering::SeqCst);
        if !is_whole {
            return;
        }
    }
}

/// All that is in the bucket.
fn read_all(node: &Node) -> BTreeMap<(&'static str, String), Vec<u8>> {
    let mut found = BTreeMap::new();
    let list = node.control.get("/v1/buckets/b/kv?values=true").ok().json();
    let bytes = |item: &Value| match item["value"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => STANDARD.decode(item["value_base64"].as_str().unwrap()).unwrap(),
    };
    for item in list["items"].as_array().unwrap() {
        found.insert(("kv", item["key"].as_str().unwrap().to_owned()), bytes(item));
    }
    for item in node.control.get("/v1/buckets/b/objects").ok().json()["items"].as_array().unwrap() {
        let key = item["key"].as_str().unwrap().to_owned();
        let bytes = node.control.get(&format!("/v1/buckets/b/objects/{key}")).good();
        found.insert(("objects", key), bytes);
    }
    found
}

/// Holds what is there against the journals, and goes on from it.
fn settle(journals: &mut [Journal], found: &BTreeMap<(&'static str, String), Vec<u8>>, says: &str) {
    for (writer, journal) in journals.iter_mut().enumerate() {
        let mine = format!("{writer}-");
        let found: BTreeMap<_, _> = found
            .iter()
            .filter(|((_, key), _)| key.starts_with(&mine))
            .map(|(place, value)| (place.clone(), value.clone()))
            .collect();
        let without = journal.kept.clone();
        if let Some(change) = journal.pending.take()
            && found != without
        {
            journal.apply(change);
        }
        let differs = |place: &&(&'static str, String)| journal.kept.get(*place) != found.get(*place);
        let places: Vec<_> = journal.kept.keys().chain(found.keys()).filter(differs).collect();
        assert!(places.is_empty(), "{says}: neither what was acknowledged nor what was under way is at {places:?}");
    }
}

#[test]
fn no_kill_loses_or_tears_what_was_acknowledged() {
    let kills = number("HOB_TEST_KILLS", KILLS as u64);
    let seed = number("HOB_TEST_SEED", getrandom::u64().unwrap() >> 16);
    let dir = Arc::new(TempDir::new().unwrap());
    let start = || Node::start_with(Setup { dir: Some(dir.clone()), settings: &["engine.threads=1"], ..Setup::default() });
    let mut dice = Dice::new(seed);
    let mut journals: Vec<Journal> = (0..WRITERS).map(|_| Journal::default()).collect();
    let mut node = start();
    bucket(&node, "b", json!({}));
    let mut total = 0;
    for kill in 0..kills {
        let says = format!("HOB_TEST_SEED={seed}, kill {kill}");
        let (acknowledged, after) = (AtomicUsize::new(0), dice.below(40));
        let mut seeds: Vec<Dice> = (0..WRITERS).map(|_| Dice::new(dice.next())).collect();
        let conns: Vec<Option<Conn>> = (0..WRITERS).map(|_| Some(node.control.connect())).collect();
        std::thread::scope(|scope| {
            let mut writers = Vec::new();
            for (((writer, journal), dice), conn) in journals.iter_mut().enumerate().zip(&mut seeds).zip(conns) {
                let (acknowledged, says) = (&acknowledged, &says);
                writers.push(scope.spawn(move || {
                    let written = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        write_on(conn, writer, journal, dice, acknowledged)
                    }));
                    assert!(written.is_ok(), "{says}: writer {writer}");
                }));
            }
            // Somewhere in what comes after so many answers.
            while acknowledged.load(Ordering::SeqCst) < after && !writers.iter().any(|writer| writer.is_finished()) {
                std::thread::yield_now();
            }
            for _ in 0..dice.below(2000) {
                std::hint::spin_loop();
            }
            node.kill();
        });
        total += acknowledged.into_inner();
        node = start();
        settle(&mut journals, &read_all(&node), &says);
        check_whole(&node, "b");
    }
    assert!(total as u64 >= kills * 10, "HOB_TEST_SEED={seed}: {total} acknowledged writes are too few to say anything");
    // What nobody refers to goes, and nothing is left half written.
    crate::harness::eventually("no file is left over", || {
        let distinct: std::collections::BTreeSet<_> =
            read_all(&node).into_iter().filter(|((kind, _), _)| *kind == "objects").map(|(_, bytes)| bytes).collect();
        node.files("data/objects").len() == distinct.len() && node.files("data/staging").is_empty()
    });
}

//! What both implementations of [`KeyValue`] promise and no door shows: with the clock in hand, in the library's own words, over buckets
//! that are deleted. The rules of every door, these two among them, are in `host/tests/all/harness/doors/`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::data::clock::testing::Hands;
use crate::data::{Bucket, BucketSpec, Data, DataConfig, Durability, TTL_MAX, Usage};
use crate::fault::Code;

/// A bucket to try things with.
struct Rig {
    data: Data,
    hands: Hands,
    bucket: Bucket,
    kv: Arc<dyn KeyValue>,
    _dir: tempfile::TempDir,
}

const START_MS: u64 = 1_700_000_000_000;

fn rig(durability: Durability) -> Rig {
    rig_of(BucketSpec { durability, bytes_max: 32 << 20, keys_max: 10_000 })
}

fn rig_of(spec: BucketSpec) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let hands = Hands::at(START_MS);
    let data = Data::open(dir.path(), DataConfig::default(), hands.clock()).unwrap();
    let bucket = bucket(&data, "t", "b", spec);
    let kv = data.kv(&bucket).unwrap();
    Rig { data, hands, bucket, kv, _dir: dir }
}

fn bucket(data: &Data, tenant: &str, name: &str, spec: BucketSpec) -> Bucket {
    data.put_bucket(&tenant.parse().unwrap(), &name.parse().unwrap(), spec).wait().unwrap().0
}

fn bytes(text: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref())
}

fn set_when(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, when: When) -> Op {
    Op::Set { key: bytes(key), value: bytes(value), ttl: None, when }
}

fn set(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Op {
    set_when(key, value, When::Always)
}

fn set_for(key: &str, value: &str, ms: u64) -> Op {
    Op::Set { key: bytes(key), value: bytes(value), ttl: Some(Duration::from_millis(ms)), when: When::Always }
}

fn delete(key: impl AsRef<[u8]>) -> Op {
    Op::Delete { key: bytes(key), when: When::Always }
}

fn add(key: &str, by: i64) -> Op {
    Op::Increment { key: bytes(key), by }
}

impl Rig {
    fn write(&self, ops: impl Into<Vec<Op>>) -> Result<Vec<Done>, DataError> {
        self.kv.write(ops.into()).wait()
    }

    fn version(&self, op: Op) -> u64 {
        match self.write([op]).unwrap()[..] {
            [Done::Set { version } | Done::Incremented { version, .. }] => version,
            ref other => panic!("{other:?}"),
        }
    }

    fn value(&self, key: impl AsRef<[u8]>) -> Option<Bytes> {
        self.kv.get(key.as_ref()).unwrap().map(|entry| entry.value)
    }

    /// All keys, by pages of `limit`.
    fn keys(&self, prefix: &[u8], limit: usize) -> Vec<Bytes> {
        let (mut keys, mut after) = (Vec::new(), None::<Bytes>);
        loop {
            let page = self.kv.scan(prefix, after.as_deref(), limit).unwrap();
            assert!(page.entries.len() <= limit);
            keys.extend(page.entries.into_iter().map(|(key, _)| key));
            after = page.next;
            if after.is_none() {
                return keys;
            }
        }
    }

    fn code(&self, ops: impl Into<Vec<Op>>) -> Code {
        self.write(ops).unwrap_err().fault().code
    }
}

fn longest_ms() -> u64 {
    u64::try_from(TTL_MAX.as_millis()).unwrap()
}

fn limits_hold_on_both_sides(durability: Durability) {
    let rig = rig(durability);
    let (longest, long) = (vec![7; KEY_LEN_MAX], vec![7; KEY_LEN_MAX + 1]);
    for key in [&b"\0"[..], b"../../etc/passwd", b"\xff\xff", b"a\0b", &longest] {
        rig.write([set(key, key)]).unwrap();
        assert_eq!(rig.value(key), Some(bytes(key)));
        assert_eq!(rig.keys(key, 10), [bytes(key)]);
    }
    for (key, code) in [(&b""[..], Code::BadRequest), (&long, Code::BodyTooLarge)] {
        for op in [set(key, ""), delete(key), Op::Increment { key: bytes(key), by: 1 }] {
            assert_eq!(rig.code([op]), code);
        }
        assert_eq!(rig.kv.get(key).unwrap_err().fault().code, code);
        assert_eq!(rig.kv.exists(key).unwrap_err().fault().code, code);
        assert_eq!(rig.kv.get_many(&[b"k", key]).unwrap_err().fault().code, code);
    }
    rig.write([set("v", vec![1; VALUE_LEN_MAX])]).unwrap();
    assert_eq!(rig.value("v").unwrap().len(), VALUE_LEN_MAX);
    assert_eq!(rig.code([set("v", vec![1; VALUE_LEN_MAX + 1])]), Code::BodyTooLarge);
    let many = |count: usize| (0..count).map(|n| set(format!("k{n}"), "")).collect::<Vec<_>>();
    assert_eq!(rig.write(many(BATCH_OPS_MAX)).unwrap().len(), BATCH_OPS_MAX);
    assert_eq!(rig.code(many(BATCH_OPS_MAX + 1)), Code::BadRequest);
    let keys = vec![&b"k1"[..]; BATCH_OPS_MAX + 1];
    assert_eq!(rig.kv.get_many(&keys[1..]).unwrap().len(), BATCH_OPS_MAX);
    assert_eq!(rig.kv.get_many(&keys).unwrap_err().fault().code, Code::BadRequest);
    let large = |count: usize| vec![set("w", vec![1; VALUE_LEN_MAX - 1]); count];
    rig.write(large(BATCH_BYTES_MAX / VALUE_LEN_MAX)).unwrap();
    assert_eq!(rig.code(large(BATCH_BYTES_MAX / VALUE_LEN_MAX + 1)), Code::BodyTooLarge);
    assert_eq!(rig.kv.get_many(&[&b"v"[..]; BATCH_BYTES_MAX / VALUE_LEN_MAX]).unwrap().len(), 16);
    let error = rig.kv.get_many(&[&b"v"[..]; BATCH_BYTES_MAX / VALUE_LEN_MAX + 1]).unwrap_err();
    assert_eq!(error.fault().code, Code::BodyTooLarge);
    rig.write([set_for("t", "", longest_ms())]).unwrap();
    for ms in [0, longest_ms() + 1, u64::MAX] {
        assert_eq!(rig.code([set_for("t", "", ms)]), Code::BadRequest, "{ms}");
    }
    assert!(rig.kv.scan(b"", None, 0).unwrap().entries.is_empty());
    // A page ends by its bytes.
    let page = rig.kv.scan(b"", None, PAGE_ENTRIES_MAX + 1).unwrap();
    assert_eq!(page.entries.len(), PAGE_ENTRIES_MAX);
    rig.write((0..6).map(|n| set(format!("z{n}"), vec![0; VALUE_LEN_MAX])).collect::<Vec<_>>()).unwrap();
    assert_eq!(rig.kv.scan(b"z", None, 10).unwrap().entries.len(), PAGE_BYTES_MAX / VALUE_LEN_MAX);
    assert_eq!(rig.keys(b"z", 10).len(), 6);
}

fn what_expired_is_never_seen_again(durability: Durability) {
    let rig = rig(durability);
    rig.write([set_for("k", "1", 1000), set_for("l", "1", 2000), set("m", "1")]).unwrap();
    rig.hands.pass(999);
    assert_eq!(rig.value("k"), Some(bytes("1")));
    rig.hands.pass(1);
    assert_eq!(rig.value("k"), None);
    // Whatever the clock does.
    for wall in [START_MS, 0, START_MS + 500, START_MS + 999] {
        rig.hands.jump_to(wall);
        assert_eq!(rig.value("k"), None);
        assert_eq!(rig.keys(b"", 10), [bytes("l"), bytes("m")]);
        assert_eq!(rig.kv.get_many(&[b"k", b"m"]).unwrap().iter().flatten().flatten().count(), 1);
    }
    assert!(matches!(rig.write([add("k", 1)]).unwrap()[..], [Done::Incremented { value: 1, .. }]));
    assert_eq!(rig.kv.get(b"k").unwrap().unwrap().expires_ms, None);
    rig.write([set("l", "2")]).unwrap();
    rig.hands.jump_to(START_MS * 2);
    assert_eq!(rig.keys(b"", 10).len(), 3, "what has no end stays");
    rig.write([set_for("l", "3", 1)]).unwrap();
    rig.hands.pass(1);
    assert_eq!(rig.code([set_when("l", "4", When::Present)]), Code::PreconditionFailed);
    assert_eq!(rig.write([set_when("l", "4", When::Absent), delete("l"), delete("l")]).unwrap().len(), 3);
    rig.write([set_for("l", "5", longest_ms()), set_when("l", "6", When::Present)]).unwrap();
    assert!(rig.kv.exists(b"l").unwrap());
    rig.write([delete("l"), delete("k")]).unwrap();
    assert_eq!(rig.data.usage(&rig.bucket).unwrap(), Usage { bytes: 2, keys: 1 });
}

fn versions_of_what_a_batch_leaves_nothing_of_are_not_given_again(durability: Durability) {
    let rig = rig(durability);
    let first = rig.version(set("a", "1"));
    let given = rig.write([set("b", "1"), set("b", "2"), add("b", 3), delete("b"), delete("none")]).unwrap();
    let version = |done: &Done| match done {
        Done::Set { version } | Done::Incremented { version, .. } => Some(*version),
        Done::Deleted { .. } => None,
    };
    assert_eq!(given.iter().filter_map(version).collect::<Vec<_>>(), [first + 1, first + 2, first + 3]);
    assert_eq!(rig.version(set("c", "1")), first + 4);
}

fn racing_writers_lose_nothing(durability: Durability) {
    let rig = rig(durability);
    let version = rig.version(set("cas", "0"));
    let won = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let rig = &rig;
                scope.spawn(move || {
                    for _ in 0..25 {
                        let before = rig.value("n").map_or(0, |value| std::str::from_utf8(&value).unwrap().parse().unwrap());
                        let Done::Incremented { value, .. } = rig.write([add("n", 1)]).unwrap()[0] else { panic!() };
                        assert!(value > before, "a read was newer than a later write");
                        let now: i64 = std::str::from_utf8(&rig.value("n").unwrap()).unwrap().parse().unwrap();
                        assert!(now >= value, "a read was older than an acknowledged write");
                    }
                    rig.write([set_when("cas", thread.to_string(), When::Version(version))]).is_ok()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|won| *won).count()
    });
    assert_eq!(won, 1);
    assert_eq!(rig.value("n"), Some(bytes("100")));
}

fn a_deleted_bucket_is_gone(durability: Durability) {
    let rig = rig(durability);
    let many = (0..600).map(|n| set_for(&format!("k{n}"), "v", if n % 2 == 0 { 1000 } else { longest_ms() })).collect::<Vec<_>>();
    rig.write(many).unwrap();
    rig.data.delete_bucket(&rig.bucket.tenant, &rig.bucket.name).wait().unwrap();
    assert_eq!(rig.code([set("k1", "new")]), Code::NotFound);
    assert_eq!(rig.kv.get(b"k1").unwrap_err().fault().code, Code::NotFound);
    assert_eq!(rig.kv.get_many(&[b"k1"]).unwrap_err().fault().code, Code::NotFound);
    assert_eq!(rig.kv.scan(b"", None, 1).unwrap_err().fault().code, Code::NotFound);
    assert_eq!(rig.data.kv(&rig.bucket).unwrap_err().fault().code, Code::NotFound);
    let again = bucket(&rig.data, "t", "b", rig.bucket.spec);
    assert!(rig.data.kv(&again).unwrap().scan(b"", None, 1).unwrap().entries.is_empty());
    // Each group sweeps some of what is left.
    for n in 0..6 {
        rig.hands.pass(1000);
        rig.data.kv(&again).unwrap().write(vec![set(format!("n{n}"), "v")]).wait().unwrap();
    }
    assert_eq!(rig.data.recount(&rig.bucket).unwrap(), Usage::default());
    assert_eq!(rig.data.usage(&again).unwrap(), Usage { bytes: 18, keys: 6 });
}

/// Numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

/// Buckets of two tenants whose names and keys are each other's prefixes and suffixes, against a model.
fn no_bucket_is_confused_with_another(durability: Durability) {
    let rig = rig(durability);
    let spec = rig.bucket.spec;
    let spec = BucketSpec { bytes_max: 1 << 20, ..spec };
    let names = [("t", "a"), ("t", "ab"), ("ta", "b"), ("ta", "a"), ("t", "b-c"), ("t-b", "c")];
    let buckets = names.map(|(tenant, name)| bucket(&rig.data, tenant, name, spec));
    let kvs = buckets.clone().map(|bucket| rig.data.kv(&bucket).unwrap());
    let parts = [&b"a"[..], b"b", b"c", b"bc", b"\0", b"\xff", b"../", b"\x01\0\0\0\0\0\0\0", b"/"];
    let mut dice = Dice(42);
    let mut model = BTreeMap::<(usize, Vec<u8>), Vec<u8>>::new();
    for round in 0..250_u32 {
        let at = dice.roll(kvs.len());
        let mut ops = Vec::new();
        for _ in 0..=dice.roll(4) {
            let key: Vec<u8> = (0..=dice.roll(3)).flat_map(|_| parts[dice.roll(parts.len())]).copied().collect();
            if dice.roll(4) == 0 {
                model.remove(&(at, key.clone()));
                ops.push(delete(key));
            } else {
                let value = format!("{round} in {at}").into_bytes();
                model.insert((at, key.clone()), value.clone());
                ops.push(set(key, value));
            }
        }
        kvs[at].write(ops).wait().unwrap();
        let probe: Vec<u8> = (0..=dice.roll(3)).flat_map(|_| parts[dice.roll(parts.len())]).copied().collect();
        for (at, kv) in kvs.iter().enumerate() {
            let found = kv.get(&probe).unwrap().map(|entry| entry.value.to_vec());
            assert_eq!(found.as_ref(), model.get(&(at, probe.clone())), "round {round}");
        }
    }
    for (at, kv) in kvs.iter().enumerate() {
        let found: Vec<_> = kv.scan(b"", None, 1000).unwrap().entries;
        let expected: Vec<_> = model.iter().filter(|((of, _), _)| *of == at).collect();
        assert_eq!(found.len(), expected.len());
        for ((key, entry), ((_, wanted), value)) in found.iter().zip(&expected) {
            assert_eq!((&key[..], &entry.as_ref().unwrap().value[..]), (&wanted[..], &value[..]));
        }
        let bytes = expected.iter().map(|((_, key), value)| (key.len() + value.len()) as u64).sum();
        let usage = Usage { bytes, keys: expected.len() as u64 };
        assert_eq!(rig.data.usage(&buckets[at]).unwrap(), usage);
        if durability == Durability::Durable {
            assert_eq!(rig.data.recount(&buckets[at]).unwrap(), usage);
        }
    }
}

macro_rules! for_both {
    ($($name:ident)*) => {
        mod durable {
            $(#[test] fn $name() { super::$name(super::Durability::Durable); })*
        }
        mod volatile {
            $(#[test] fn $name() { super::$name(super::Durability::Volatile); })*
        }
    };
}

for_both! {
    limits_hold_on_both_sides
    what_expired_is_never_seen_again
    versions_of_what_a_batch_leaves_nothing_of_are_not_given_again
    racing_writers_lose_nothing
    a_deleted_bucket_is_gone
    no_bucket_is_confused_with_another
}

// Where the two differ.

#[test]
fn a_full_durable_bucket_refuses_what_adds_and_lets_go() {
    let rig = rig_of(BucketSpec { durability: Durability::Durable, bytes_max: 20, keys_max: 3 });
    rig.write([set("a", "123456789"), set("b", "12345678")]).unwrap();
    assert_eq!(rig.code([set("c", "1")]), Code::QuotaExceeded);
    rig.write([set("c", "")]).unwrap();
    let error = rig.write([set("b", ""), set("d", "")]).unwrap_err();
    assert!(matches!(error, DataError::Quota { unit: "keys", wanted: 4, max: 3 }), "{error}");
    assert_eq!(rig.value("b"), Some(bytes("12345678")));
    // One batch may take out what it puts in.
    rig.write([delete("a"), set("d", "123456789")]).unwrap();
    for _ in 0..20 {
        assert_eq!(rig.code([set("e", "1")]), Code::QuotaExceeded);
        rig.write([delete("d")]).unwrap();
        rig.write([set("d", "123456789")]).unwrap();
    }
    // Below what is there: nothing goes, less is fine, more is not.
    bucket(&rig.data, "t", "b", BucketSpec { bytes_max: 5, ..rig.bucket.spec });
    assert_eq!(rig.code([set("d", "1234567890")]), Code::QuotaExceeded);
    rig.write([set("d", "12345678")]).unwrap();
    let usage = rig.data.usage(&rig.bucket).unwrap();
    assert_eq!((usage, rig.data.recount(&rig.bucket).unwrap()), (Usage { bytes: 19, keys: 3 }, usage));
}

#[test]
fn a_full_volatile_bucket_forgets_what_was_used_longest_ago() {
    let rig = rig_of(BucketSpec { durability: Durability::Volatile, bytes_max: 20, keys_max: 3 });
    rig.write([set("a", "12345"), set("b", "12345"), set("c", "12345")]).unwrap();
    assert!(rig.value("a").is_some());
    rig.write([set("d", "12345")]).unwrap();
    assert_eq!(rig.keys(b"", 10), ["a", "c", "d"].map(bytes));
    rig.write([set("e", "")]).unwrap();
    assert_eq!(rig.keys(b"", 10), ["a", "d", "e"].map(bytes));
    for ops in [vec![set("f", "12345678901234567890")], (0..4).map(|n| set(n.to_string(), "")).collect()] {
        assert_eq!(rig.code(ops), Code::QuotaExceeded);
    }
    assert_eq!(rig.keys(b"", 10).len(), 3, "what could never fit pushes nothing out");
    bucket(&rig.data, "t", "b", BucketSpec { keys_max: 1, ..rig.bucket.spec });
    assert_eq!(rig.keys(b"", 10).len(), 1);
}

#[test]
fn two_volatile_buckets_of_the_default_quotas_fit_by_default() {
    let rig = rig(Durability::Volatile);
    for name in ["x", "y"] {
        bucket(&rig.data, "t", name, BucketSpec::new(Durability::Volatile));
    }
}

#[test]
fn volatile_buckets_together_take_no_more_memory_than_the_node_gives() {
    let rig = rig(Durability::Volatile);
    let spec = BucketSpec { bytes_max: 500 << 20, ..rig.bucket.spec };
    let put = |name: &str, spec| rig.data.put_bucket(&rig.bucket.tenant, &name.parse().unwrap(), spec).wait();
    let error = put("c", spec).unwrap_err();
    assert!(matches!(error, DataError::VolatileFull { .. }) && error.to_string().contains("all volatile buckets"), "{error}");
    assert_eq!(put("b", spec).unwrap_err().fault().code, Code::StorageFull);
    put("b", BucketSpec { bytes_max: 200 << 20, ..spec }).unwrap();
    put("c", BucketSpec { durability: Durability::Durable, ..spec }).unwrap();
}

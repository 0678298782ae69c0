//! Rules of entries for doors that can say everything: versions, conditions, times to live, batches, cursors.

use std::time::Duration;

use bytes::Bytes;
use hob::data::TTL_MAX;
use hob::data::kv::{BATCH_OPS_MAX, Done, Entry, KEY_LEN_MAX, Op, VALUE_LEN_MAX, When};

use super::{KvDoor, Said, check_entries, refused};
use crate::harness::eventually;

/// A way to the entries of one bucket by which everything can be said.
pub(crate) trait Entries: Sync {
    fn entry(&self, key: &[u8]) -> Said<Option<Entry>>;
    fn has(&self, key: &[u8]) -> Said<bool>;
    fn values(&self, keys: &[&[u8]]) -> Said<Vec<Option<Vec<u8>>>>;
    /// The version that it has now.
    fn put(&self, key: &[u8], value: &[u8], ttl: Option<Duration>, when: When) -> Said<u64>;
    /// Whether there was one.
    fn remove(&self, key: &[u8]) -> Said<bool>;
    fn add(&self, key: &[u8], by: i64) -> Said<i64>;
    fn batch(&self, ops: &[Op]) -> Said<Vec<Done>>;
    /// All keys with a prefix after one, by pages of `by` at most.
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, by: usize) -> Said<Vec<Vec<u8>>>;
}

impl<D: Entries> KvDoor for D {
    fn get(&self, key: &str) -> Said<Option<Vec<u8>>> {
        Ok(self.entry(key.as_bytes())?.map(|entry| entry.value.to_vec()))
    }
    fn set(&self, key: &str, value: &[u8]) -> Said<()> {
        self.put(key.as_bytes(), value, None, When::Always).map(drop)
    }
    fn delete(&self, key: &str) -> Said<()> {
        self.remove(key.as_bytes()).map(drop)
    }
    fn exists(&self, key: &str) -> Said<bool> {
        self.has(key.as_bytes())
    }
    fn increment(&self, key: &str, by: i64) -> Said<i64> {
        self.add(key.as_bytes(), by)
    }
    fn keys(&self) -> Said<Vec<String>> {
        let keys = self.scan(b"", None, 1000)?;
        Ok(keys.into_iter().map(|key| String::from_utf8(key).unwrap()).collect())
    }
    fn get_many(&self, keys: &[&str]) -> Said<Vec<Option<Vec<u8>>>> {
        self.values(&keys.iter().map(|key| key.as_bytes()).collect::<Vec<_>>())
    }
    fn set_many(&self, entries: &[(&str, &[u8])]) -> Said<()> {
        self.batch(&entries.iter().map(|(key, value)| set(key, value)).collect::<Vec<_>>()).map(drop)
    }
    fn delete_many(&self, keys: &[&str]) -> Said<()> {
        self.batch(&keys.iter().map(delete).collect::<Vec<_>>()).map(drop)
    }
    fn swap(&self, key: &str, expected: Option<&[u8]>, value: &[u8]) -> Option<Said<bool>> {
        let swap = || {
            let found = self.entry(key.as_bytes())?;
            let when = match (&found, expected) {
                (None, None) => When::Absent,
                (Some(entry), Some(expected)) if entry.value == expected => When::Version(entry.version),
                _ => return Ok(false),
            };
            match self.put(key.as_bytes(), value, None, when) {
                Err(text) if text.contains("does not hold") => Ok(false),
                said => said.map(|_| true),
            }
        };
        Some(swap())
    }
    fn has_signs(&self) -> bool {
        true
    }
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

fn delete(key: impl AsRef<[u8]>) -> Op {
    Op::Delete { key: bytes(key), when: When::Always }
}

fn add(key: &str, by: i64) -> Op {
    Op::Increment { key: bytes(key), by }
}

/// All rules, in a bucket that is empty, with room for 10,000 keys and 32 MiB; `other`: one beside it. Both are empty afterwards.
pub(crate) fn check(door: &impl Entries, other: &impl Entries) {
    check_entries(door);
    let rules: [fn(&dyn Entries); 9] = [
        versions_rise_over_sets_and_deletes,
        conditions_refuse_the_whole_batch,
        a_batch_happens_in_order,
        batches_and_pages_have_their_limits,
        keys_are_bytes,
        increments_are_decimal_numbers,
        what_expired_is_gone,
        times_to_live_have_their_limits,
        scans_go_by_prefix_and_cursor,
    ];
    for rule in rules {
        rule(door);
        clear(door);
    }
    racing_writers_lose_nothing(door);
    clear(door);
    buckets_are_apart(door, other);
    clear(door);
    clear(other);
}

fn clear(door: &dyn Entries) {
    let keys = door.scan(b"", None, 1000).unwrap();
    for keys in keys.chunks(BATCH_OPS_MAX) {
        door.batch(&keys.iter().map(delete).collect::<Vec<_>>()).unwrap();
    }
}

impl dyn Entries + '_ {
    fn value(&self, key: &str) -> Option<Bytes> {
        self.entry(key.as_bytes()).unwrap().map(|entry| entry.value)
    }

    /// The version that a set gives.
    fn version(&self, key: &str, value: &str, when: When) -> u64 {
        self.put(key.as_bytes(), value.as_bytes(), None, when).unwrap()
    }
}

fn versions_rise_over_sets_and_deletes(door: &dyn Entries) {
    assert_eq!(door.entry(b"k").unwrap(), None);
    let first = door.version("k", "1", When::Always);
    assert_eq!(door.entry(b"k").unwrap(), Some(Entry { value: bytes("1"), version: first, expires_ms: None }));
    let second = door.version("o", "1", When::Always);
    assert!(second > first);
    assert_eq!((door.remove(b"k"), door.remove(b"k"), door.has(b"k")), (Ok(true), Ok(false), Ok(false)));
    assert!(door.version("k", "", When::Always) > second);
    assert_eq!((door.value("k"), door.has(b"k")), (Some(Bytes::new()), Ok(true)));
    assert_eq!(door.values(&[b"k", b"none", b"o"]).unwrap(), [Some(vec![]), None, Some(b"1".to_vec())]);
}

fn conditions_refuse_the_whole_batch(door: &dyn Entries) {
    let version = door.version("k", "1", When::Absent);
    let found = format!("found version {version};");
    for (op, found) in [
        (set_when("k", "2", When::Absent), found.as_str()),
        (set_when("k", "2", When::Version(version - 1)), &found),
        (Op::Delete { key: bytes("k"), when: When::Version(version - 1) }, &found),
        (set_when("none", "2", When::Version(version)), "found no entry;"),
    ] {
        let said = door.batch(&[set("a", "x"), op, set("b", "x")]).unwrap_err();
        assert!(said.contains("operation 1 does not hold") && said.contains(found), "{said}");
    }
    assert_eq!(door.values(&[b"a", b"b", b"k"]).unwrap(), [None, None, Some(b"1".to_vec())]);
    // Alone too, which is another request at some doors.
    refused(door.put(b"k", b"2", None, When::Absent), &found);
    refused(door.put(b"none", b"2", None, When::Version(version)), "found no entry;");
    let next = door.version("k", "2", When::Version(version));
    assert!(next > version);
    let gone = door.batch(&[Op::Delete { key: bytes("k"), when: When::Version(next) }]).unwrap();
    assert_eq!((gone, door.value("k")), (vec![Done::Deleted { found: true }], None));
}

fn a_batch_happens_in_order(door: &dyn Entries) {
    let ops = [set("n", "5"), add("n", -7), set_when("m", "x", When::Absent), delete("m"), add("m", 1)];
    let done = door.batch(&ops).unwrap();
    let versions: Vec<u64> = done
        .iter()
        .filter_map(|done| match done {
            Done::Set { version } | Done::Incremented { version, .. } => Some(*version),
            Done::Deleted { .. } => None,
        })
        .collect();
    assert!(versions.len() == 4 && versions.is_sorted_by(|a, b| a < b), "{done:?}");
    assert_eq!(done[1], Done::Incremented { value: -2, version: versions[1] });
    assert_eq!((done[3], done[4]), (Done::Deleted { found: true }, Done::Incremented { value: 1, version: versions[3] }));
    assert_eq!((door.value("n"), door.value("m")), (Some(bytes("-2")), Some(bytes("1"))));
    assert_eq!(door.batch(&[]).unwrap(), []);
    refused(door.batch(&[set("y", "1"), set_when("y", "2", When::Absent)]), "does not hold");
    assert_eq!(door.value("y"), None);
}

fn batches_and_pages_have_their_limits(door: &dyn Entries) {
    let full = |count: usize| -> Vec<Op> { (0..count).map(|_| set("w", vec![1; VALUE_LEN_MAX - 1])).collect() };
    assert_eq!(door.batch(&full(16)).unwrap().len(), 16);
    refused(door.batch(&full(17)), "bytes: at most 16");
    refused(door.batch(&[set("k", ""), set("v", vec![1; VALUE_LEN_MAX + 1])]), "the value has 1048577 bytes: at most 1048576");
    assert_eq!(door.value("k"), None);
    assert!(door.put(b"t", b"", Some(Duration::ZERO), When::Always).is_err());
    assert_eq!(door.value("t"), None);
    // More than a page by its bytes; by its entries `check_entries` has.
    let large: Vec<_> = (0..6).map(|n| set(format!("z{n}"), vec![1; VALUE_LEN_MAX])).collect();
    door.batch(&large).unwrap();
    assert_eq!(door.scan(b"z", None, 1000).unwrap().len(), 6);
    // What is read at once has as many bytes as what is written at once.
    assert_eq!(door.values(&[&b"z0"[..]; 16]).unwrap().len(), 16);
    refused(door.values(&[&b"z0"[..]; 17]), "the sum of all values");
}

fn keys_are_bytes(door: &dyn Entries) {
    for key in [&b"\0"[..], b"../../etc/passwd", b"\xff\xff", b"a\0b", b"%2F", b"+", &[7; KEY_LEN_MAX]] {
        door.put(key, key, None, When::Always).unwrap();
        assert_eq!(door.entry(key).unwrap().unwrap().value, key);
        assert_eq!(door.scan(key, None, 10).unwrap(), [key]);
        assert_eq!((door.remove(key), door.has(key)), (Ok(true), Ok(false)));
    }
}

fn increments_are_decimal_numbers(door: &dyn Entries) {
    for number in [i64::MAX, i64::MIN] {
        door.version("n", &number.to_string(), When::Always);
        refused(door.add(b"n", number.signum()), "cannot be done");
        assert_eq!(door.value("n"), Some(bytes(number.to_string())));
    }
    for value in ["", "x", "1 ", "1.0", "\u{662}", "9223372036854775808"] {
        door.version("n", value, When::Always);
        refused(door.add(b"n", 1), "cannot be done");
    }
    // The time to live stays.
    door.put(b"t", b"1", Some(Duration::from_secs(3600)), When::Always).unwrap();
    let before = door.entry(b"t").unwrap().unwrap();
    assert_eq!(door.add(b"t", 1), Ok(2));
    let after = door.entry(b"t").unwrap().unwrap();
    assert!(before.expires_ms.is_some() && after.expires_ms == before.expires_ms && after.version > before.version);
}

fn what_expired_is_gone(door: &dyn Entries) {
    door.put(b"k", b"1", Some(Duration::from_millis(1)), When::Always).unwrap();
    door.put(b"l", b"1", Some(Duration::from_secs(3600)), When::Always).unwrap();
    door.version("m", "1", When::Always);
    eventually("it expires", || door.value("k").is_none());
    assert_eq!(door.has(b"k"), Ok(false));
    assert_eq!(door.scan(b"", None, 10).unwrap(), [b"l", b"m"]);
    assert_eq!(door.values(&[b"k", b"m"]).unwrap(), [None, Some(b"1".to_vec())]);
    // It is absent for conditions too, and a set without an end lifts one.
    door.version("k", "2", When::Absent);
    door.version("l", "2", When::Always);
    assert_eq!(door.entry(b"l").unwrap().unwrap().expires_ms, None);
}

fn times_to_live_have_their_limits(door: &dyn Entries) {
    let set_for = |ttl| Op::Set { key: bytes("k"), value: bytes("2"), ttl: Some(ttl), when: When::Always };
    door.put(b"k", b"1", Some(TTL_MAX), When::Always).unwrap();
    let before = door.entry(b"k").unwrap();
    assert!(before.as_ref().unwrap().expires_ms.is_some_and(|ms| ms < 1 << 53));
    for ttl in [TTL_MAX + Duration::from_millis(1), Duration::from_millis(u64::MAX)] {
        // No door reads a time of so many years at all.
        let words = if ttl.as_millis() < 1 << 60 { "too long: expected 1 ms to 36500 days" } else { "time to live" };
        refused(door.put(b"k", b"2", Some(ttl), When::Always), words);
        refused(door.batch(&[set("other", "1"), set_for(ttl)]), words);
    }
    assert_eq!((door.entry(b"k").unwrap(), door.has(b"other")), (before, Ok(false)));
    door.batch(&[set_for(TTL_MAX)]).unwrap();
}

fn scans_go_by_prefix_and_cursor(door: &dyn Entries) {
    let mut all: Vec<&[u8]> = vec![b"\0", b"a", b"a\0", b"a/", b"aa", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xff"];
    door.batch(&all.iter().map(|key| set(key, key)).collect::<Vec<_>>()).unwrap();
    all.sort_unstable();
    for prefix in [&b""[..], b"a", b"a\xff", b"\xff", b"b", b"c", b"aa"] {
        let expected: Vec<_> = all.iter().copied().filter(|key| key.starts_with(prefix)).collect();
        for by in [1, 2, 3, 1000] {
            assert_eq!(door.scan(prefix, None, by).unwrap(), expected, "{prefix:?} by {by}");
        }
    }
    // A cursor stays good when its key is gone, and one outside of the prefix is harmless.
    for _ in 0..2 {
        let first = |after: &[u8]| door.scan(b"a", Some(after), 1).unwrap().into_iter().next();
        assert_eq!((first(b"aa"), first(b"\0"), first(b"z")), (Some(b"a\xff".to_vec()), Some(b"a".to_vec()), None));
        door.remove(b"aa").unwrap();
    }
}

fn racing_writers_lose_nothing(door: &impl Entries) {
    let version = door.put(b"c", b"0", None, When::Always).unwrap();
    let won = std::thread::scope(|scope| {
        let race = |thread: u8| {
            for _ in 0..10 {
                door.add(b"n", 1).unwrap();
            }
            door.put(b"c", &[thread], None, When::Version(version))
        };
        let threads: Vec<_> = (0..8).map(|thread| scope.spawn(move || race(thread))).collect();
        let said: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(said.iter().flat_map(|said| said.as_ref().err()).all(|text| text.contains("does not hold")), "{said:?}");
        said.iter().filter(|said| said.is_ok()).count()
    });
    assert_eq!((won, door.get("n")), (1, Ok(Some(b"80".to_vec()))));
}

fn buckets_are_apart(door: &dyn Entries, other: &dyn Entries) {
    door.version("k", "1", When::Always);
    other.version("k", "2", When::Always);
    assert_eq!((door.value("k"), door.scan(b"", None, 10).unwrap()), (Some(bytes("1")), vec![b"k".to_vec()]));
    assert_eq!(door.remove(b"k"), Ok(true));
    assert_eq!(other.value("k"), Some(bytes("2")));
}

//! Rules of objects for doors that can say everything: digests, conditions, metadata, times to live, cursors.

use std::collections::BTreeSet;
use std::sync::Barrier;

use hob::data::TTL_MAX;
use hob::data::objects::{CONTENT_TYPE_BYTES_MAX, KEY_BYTES_MAX, METADATA_BYTES_MAX, METADATA_PAIRS_MAX, PutOptions, When};
use hob::id::Digest;

use super::{Keys, ObjectDoor, Said, check_objects, refused};
use crate::harness::eventually;

/// What a door says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) etag: Digest,
    pub(crate) len: u64,
    pub(crate) version: u64,
    pub(crate) expires_ms: Option<u64>,
    pub(crate) content_type: String,
    pub(crate) metadata: Vec<(String, String)>,
}

/// A way to the objects of one bucket by which everything can be said.
pub(crate) trait Files: Sync {
    fn write(&self, key: &[u8], bytes: &[u8], options: &PutOptions) -> Said<Known>;
    fn known(&self, key: &[u8]) -> Said<Option<Known>>;
    /// Bytes from `from` to before `to`, or as many as there are.
    fn read(&self, key: &[u8], from: u64, to: u64) -> Said<Option<Vec<u8>>>;
    /// Whether there was one.
    fn remove(&self, key: &[u8], when: When) -> Said<bool>;
    /// All keys with a prefix after one, by pages of `by` at most.
    fn list(&self, prefix: &[u8], after: Option<&[u8]>, by: usize) -> Said<Vec<Vec<u8>>>;
    /// Whether the objects are those of an origin, which cannot do all that a bucket can (`docs/data.md`).
    fn is_of_origin(&self) -> bool {
        false
    }
}

impl<D: Files> ObjectDoor for D {
    fn put(&self, key: &str, bytes: &[u8]) -> Said<()> {
        self.write(key.as_bytes(), bytes, &PutOptions::default()).map(drop)
    }
    fn get(&self, key: &str) -> Said<Option<Vec<u8>>> {
        self.read(key.as_bytes(), 0, u64::MAX)
    }
    fn part(&self, key: &str, start: u64, len: u64) -> Said<Option<Vec<u8>>> {
        self.read(key.as_bytes(), start, start + len)
    }
    fn delete(&self, key: &str) -> Said<()> {
        self.remove(key.as_bytes(), When::Always).map(drop)
    }
    fn exists(&self, key: &str) -> Said<bool> {
        Ok(self.known(key.as_bytes())?.is_some())
    }
    fn size(&self, key: &str) -> Said<Option<u64>> {
        Ok(self.known(key.as_bytes())?.map(|known| known.len))
    }
    fn keys(&self, by: u64) -> Said<Vec<String>> {
        let keys = self.list(b"", None, by as usize)?;
        Ok(keys.into_iter().map(|key| String::from_utf8(key).unwrap()).collect())
    }
    fn keys_are(&self) -> Keys {
        if self.is_of_origin() { Keys::Paths } else { Keys::Any }
    }
}

/// All rules, in a bucket that is empty and has room for 32 MiB; `other`: one beside it. Both are empty afterwards.
pub(crate) fn check(door: &impl Files, other: &impl Files) {
    check_objects(door);
    let every: [fn(&dyn Files); 5] = [
        what_was_put_is_what_is_read,
        a_wrong_digest_leaves_what_was,
        conditions_decide,
        lists_go_by_prefix_and_cursor,
        limits_hold_on_both_sides,
    ];
    // What a store that speaks S3 has no word for: docs/data.md says why of each.
    let of_ours: [fn(&dyn Files); 6] = [
        versions_rise,
        keys_are_bytes,
        metadata_is_any_text,
        what_expired_is_gone,
        times_to_live_have_their_limits,
        a_delete_may_have_a_condition,
    ];
    let of_origins: [fn(&dyn Files); 1] = [what_an_origin_has_no_word_for_is_refused];
    let rest: &[fn(&dyn Files)] = if door.is_of_origin() { &of_origins } else { &of_ours };
    for rule in every.iter().chain(rest) {
        rule(door);
        clear(door);
    }
    of_racing_writers_one_wins(door);
    clear(door);
    buckets_are_apart(door, other);
    clear(door);
    clear(other);
}

fn clear(door: &dyn Files) {
    for key in door.list(b"", None, 1000).unwrap() {
        assert!(door.remove(&key, When::Always).unwrap());
    }
}

fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251 + at / 4096) as u8).collect()
}

fn on(when: When) -> PutOptions {
    PutOptions { when, ..PutOptions::default() }
}

impl dyn Files + '_ {
    fn plain(&self, key: &[u8], bytes: &[u8]) -> Known {
        self.write(key, bytes, &PutOptions::default()).unwrap()
    }

    fn all(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.read(key, 0, u64::MAX).unwrap()
    }
}

fn what_was_put_is_what_is_read(door: &dyn Files) {
    for size in [0, 1, 4095, 4096, 65_536, 65_537, 200_001, (3 << 20) + 1] {
        let bytes = noise(size);
        let options = PutOptions {
            content_type: "image/png".into(),
            metadata: vec![("by".into(), "Ana B.".into()), ("of".into(), "cats".into())],
            digest: Some(Digest::of(&bytes)),
            ..PutOptions::default()
        };
        let put = door.write(b"k", &bytes, &options).unwrap();
        if !door.is_of_origin() {
            assert_eq!(put.etag, Digest::of(&bytes));
        }
        assert_eq!((put.len, put.expires_ms, put.content_type.as_str()), (size as u64, None, "image/png"));
        assert_eq!(BTreeSet::from_iter(put.metadata.clone()), BTreeSet::from_iter(options.metadata));
        assert_eq!(door.known(b"k").unwrap(), Some(put));
        assert!(door.all(b"k").unwrap() == bytes, "{size}");
    }
    let bytes = noise(100_000);
    door.plain(b"k", &bytes);
    for (from, to) in [(0, 10), (99_990, 100_010), (100_000, 100_001), (200_000, 300_000), (0, 100_000)] {
        let expected = bytes.get(from..to.min(bytes.len())).unwrap_or_default();
        assert!(door.read(b"k", from as u64, to as u64).unwrap().unwrap() == expected, "{from} to {to}");
    }
    assert_eq!((door.all(b"none"), door.known(b"none"), door.remove(b"none", When::Always)), (None, Ok(None), Ok(false)));
}

fn a_wrong_digest_leaves_what_was(door: &dyn Files) {
    door.plain(b"k", b"old");
    for size in [3, 200_001] {
        let (bytes, wanted) = (noise(size), Digest::of(b"other"));
        let said = door.write(b"k", &bytes, &PutOptions { digest: Some(wanted), ..PutOptions::default() }).unwrap_err();
        assert!(said.contains(&wanted.hex()) && said.contains(&Digest::of(&bytes).hex()), "{said}");
        assert_eq!(door.all(b"k").unwrap(), b"old");
    }
}

/// What a refusal says of what is there; the text of an ETag has something before these digits, which goes by the bucket.
fn found(etag: Digest) -> String {
    format!("found one with the ETag …{}", etag.hex())
}

fn conditions_decide(door: &dyn Files) {
    let a = door.write(b"k", b"a", &on(When::Absent)).unwrap();
    let other = Digest::of(b"another");
    for when in [When::Absent, When::Etag(other)] {
        refused(door.write(b"k", b"b", &on(when)), &found(a.etag));
    }
    refused(door.write(b"none", b"b", &on(When::Etag(a.etag))), "found no object");
    let b = door.write(b"k", b"b", &on(When::Etag(a.etag))).unwrap();
    refused(door.write(b"k", b"c", &on(When::Etag(a.etag))), &found(b.etag));
    assert_eq!((door.all(b"k").as_deref(), door.known(b"none")), (Some(&b"b"[..]), Ok(None)));
    assert_eq!((door.remove(b"k", When::Always), door.remove(b"k", When::Always)), (Ok(true), Ok(false)));
    door.write(b"k", b"d", &on(When::Absent)).unwrap();
}

fn a_delete_may_have_a_condition(door: &dyn Files) {
    let put = door.plain(b"k", b"a");
    refused(door.remove(b"k", When::Etag(Digest::of(b"b"))), &found(put.etag));
    assert_eq!((door.remove(b"k", When::Etag(put.etag)), door.known(b"k")), (Ok(true), Ok(None)));
}

fn lists_go_by_prefix_and_cursor(door: &dyn Files) {
    for key in ["c/1", "c/2", "c/3", "d", "e"] {
        door.plain(key.as_bytes(), b"x");
    }
    for by in [1, 2, 1000] {
        assert_eq!(door.list(b"c/", None, by).unwrap(), [b"c/1", b"c/2", b"c/3"], "by {by}");
        assert_eq!(door.list(b"c/", Some(b"c/1"), by).unwrap(), [b"c/2", b"c/3"], "by {by}");
        assert_eq!(door.list(b"", Some(b"c/3"), by).unwrap(), [b"d", b"e"], "by {by}");
    }
    // A cursor that is no key, and one outside of the prefix.
    assert_eq!(door.list(b"c/", Some(b"c/11"), 9).unwrap(), [b"c/2", b"c/3"]);
    assert_eq!((door.list(b"c/", Some(b"b"), 9).unwrap().len(), door.list(b"c/", Some(b"d"), 9).unwrap().len()), (3, 0));
    assert_eq!(door.list(b"x", None, 9).unwrap(), [b""; 0]);
}

fn versions_rise(door: &dyn Files) {
    let first = door.plain(b"k", b"a");
    let second = door.plain(b"k", b"a");
    assert!(second.version > first.version && second.etag == first.etag);
    door.remove(b"k", When::Always).unwrap();
    assert!(door.plain(b"k", b"a").version > second.version);
}

fn limits_hold_on_both_sides(door: &dyn Files) {
    // The store behind the origin of the tests names a file by each key, and names have at most 255 bytes.
    if !door.is_of_origin() {
        door.plain(&[b'k'; KEY_BYTES_MAX], b"x");
    }
    assert!(door.write(&[b'k'; KEY_BYTES_MAX + 1], b"x", &PutOptions::default()).is_err());
    let put = |options| door.write(b"k", b"x", &options);
    let typed = |len: usize| PutOptions { content_type: format!("a/{}", "t".repeat(len - 2)), ..PutOptions::default() };
    assert_eq!(put(typed(CONTENT_TYPE_BYTES_MAX)).unwrap().content_type.len(), CONTENT_TYPE_BYTES_MAX);
    refused(put(typed(CONTENT_TYPE_BYTES_MAX + 1)), "256 bytes: at most 255");
    let tagged = |count: usize, len: usize| PutOptions {
        metadata: (0..count).map(|n| (format!("{n:02}"), "v".repeat(len - 2))).collect(),
        ..PutOptions::default()
    };
    assert_eq!(put(tagged(1, METADATA_BYTES_MAX)).unwrap().metadata[0].1.len(), METADATA_BYTES_MAX - 2);
    assert_eq!(put(tagged(METADATA_PAIRS_MAX, 3)).unwrap().metadata.len(), METADATA_PAIRS_MAX);
    refused(put(tagged(1, METADATA_BYTES_MAX + 1)), "2049 bytes: at most 2048");
    refused(put(tagged(METADATA_PAIRS_MAX + 1, 3)), "64");
    assert!(put(PutOptions { ttl_ms: Some(0), ..PutOptions::default() }).is_err());
    assert_eq!(door.known(b"k").unwrap().unwrap().metadata.len(), METADATA_PAIRS_MAX, "nothing of what was refused");
}

fn metadata_is_any_text(door: &dyn Files) {
    let pairs = [("Case", "Kept"), ("é", "日本"), ("", ""), ("a b", " x\t"), ("crlf", "a\r\nb: c"), ("nul", "\0\u{7f}")];
    let metadata: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let put = door.write(b"k", b"x", &PutOptions { metadata: metadata.clone(), ..PutOptions::default() }).unwrap();
    assert_eq!((&put.metadata, door.known(b"k").unwrap().unwrap().metadata), (&metadata, metadata.clone()));
}

fn what_an_origin_has_no_word_for_is_refused(door: &dyn Files) {
    let put = door.plain(b"k", b"x");
    refused(door.write(b"k", b"y", &PutOptions { ttl_ms: Some(60_000), ..PutOptions::default() }), "time to live");
    refused(door.remove(b"k", When::Etag(put.etag)), "a condition on a delete");
    for (name, value) in [("Case", "x"), ("é", "x"), ("a", "é")] {
        let metadata = vec![(name.to_owned(), value.to_owned())];
        refused(door.write(b"k", b"y", &PutOptions { metadata, ..PutOptions::default() }), "metadata");
    }
    for key in [&b"\xff"[..], b"/a", b"a//b", b"../a", b"a\0"] {
        refused(door.write(key, b"y", &PutOptions::default()), "expected text of parts");
    }
    assert_eq!(door.all(b"k").as_deref(), Some(&b"x"[..]));
}

fn keys_are_bytes(door: &dyn Files) {
    let mut keys: Vec<&[u8]> = vec![b"../../etc/passwd", b"\0", b"/", b"a", b"ab", b"\xff", b"\xff\xff", b"a/b", b"%2F", b"+"];
    for key in &keys {
        door.plain(key, key);
    }
    for key in &keys {
        assert_eq!(door.all(key).unwrap(), *key);
    }
    keys.sort_unstable();
    assert_eq!(door.list(b"", None, 3).unwrap(), keys);
    assert_eq!(door.list(b"\xff", None, 1).unwrap(), [&b"\xff"[..], b"\xff\xff"]);
}

fn what_expired_is_gone(door: &dyn Files) {
    let until = |ms| PutOptions { ttl_ms: Some(ms), ..PutOptions::default() };
    door.write(b"k", b"1", &until(1)).unwrap();
    door.write(b"l", b"1", &until(3_600_000)).unwrap();
    eventually("it expires", || door.known(b"k") == Ok(None));
    assert_eq!((door.all(b"k"), door.remove(b"k", When::Always)), (None, Ok(false)));
    assert_eq!(door.list(b"", None, 9).unwrap(), [b"l"]);
    door.write(b"k", b"2", &on(When::Absent)).unwrap();
    assert!(door.known(b"l").unwrap().unwrap().expires_ms.is_some());
    assert_eq!(door.plain(b"l", b"2").expires_ms, None, "a put without an end lifts one");
}

fn times_to_live_have_their_limits(door: &dyn Files) {
    let longest_ms = u64::try_from(TTL_MAX.as_millis()).unwrap();
    let put = |ms| door.write(b"k", b"1", &PutOptions { ttl_ms: Some(ms), ..PutOptions::default() });
    let before = put(longest_ms).unwrap();
    assert!(before.expires_ms.is_some_and(|ms| ms < 1 << 53));
    refused(put(longest_ms + 1), "too long: expected 1 ms to 36500 days");
    refused(put(u64::MAX), "time to live");
    assert_eq!(door.known(b"k").unwrap(), Some(before));
}

fn of_racing_writers_one_wins(door: &impl Files) {
    for key in [b"1", b"2", b"3"] {
        let barrier = Barrier::new(4);
        let write = &|writer: usize| {
            let bytes = noise(100_000 + writer);
            barrier.wait();
            door.write(key, &bytes, &on(When::Absent))
        };
        let said: Vec<Said<Known>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|writer| scope.spawn(move || write(writer))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let won: Vec<_> = said.iter().filter_map(|said| said.as_ref().ok()).collect();
        assert!(said.iter().flat_map(|said| said.as_ref().err()).all(|text| text.contains("does not hold")), "{said:?}");
        assert_eq!(won.len(), 1, "{said:?}");
        assert_eq!(door.known(key).unwrap().unwrap().etag, won[0].etag);
        assert!(door.read(key, 0, u64::MAX).unwrap().unwrap() == noise(usize::try_from(won[0].len).unwrap()));
    }
}

fn buckets_are_apart(door: &dyn Files, other: &dyn Files) {
    door.plain(b"k", b"1");
    other.plain(b"k", b"2");
    assert_eq!(door.all(b"k").unwrap(), b"1");
    assert_eq!(door.remove(b"k", When::Always), Ok(true));
    assert_eq!((door.all(b"k"), other.all(b"k")), (None, Some(b"2".to_vec())));
}

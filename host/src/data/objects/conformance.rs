//! What both kinds of objects promise and no door shows: descriptors, files, the clock in hand, the library's own words. The rules of every
//! door, these two and an origin among them, are in `host/tests/all/harness/doors/`.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Barrier};

use super::super::clock::testing::Hands;
use super::super::{Bucket, BucketSpec, Data, DataConfig, DataError, Durability, TTL_MAX};
use super::*;
use crate::id::TenantId;

/// Data of a node in a folder of its own.
pub(super) struct Node {
    pub(super) dir: tempfile::TempDir,
    pub(super) hands: Hands,
    pub(super) data: Option<Data>,
    config: DataConfig,
}

pub(super) const MIB: u64 = 1 << 20;

impl Node {
    pub(super) fn new() -> Self {
        let limits = ObjectLimits { object_bytes_max: MIB, bytes_max: 8 * MIB };
        Self::with(DataConfig { durable_objects: limits, volatile_objects: limits, ..DataConfig::default() })
    }

    pub(super) fn with(config: DataConfig) -> Self {
        let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::at(1_000_000));
        let data = Some(Data::open(dir.path(), config, hands.clock()).unwrap());
        Self { dir, hands, data, config }
    }

    pub(super) fn reopen(&mut self) {
        self.data = None;
        self.data = Some(Data::open(self.dir.path(), self.config, self.hands.clock()).unwrap());
    }

    pub(super) fn data(&self) -> &Data {
        self.data.as_ref().unwrap()
    }

    pub(super) fn bucket(&self, name: &str, durability: Durability, bytes_max: u64, keys_max: u64) -> Bucket {
        let spec = BucketSpec { durability, bytes_max, keys_max };
        self.data().put_bucket(&TenantId::default(), &name.parse().unwrap(), spec).wait().unwrap().0
    }

    pub(super) fn find(&self, name: &str) -> Bucket {
        self.data().bucket(&TenantId::default(), &name.parse().unwrap()).unwrap().unwrap()
    }
}

pub(super) fn put_with(
    objects: &dyn Objects,
    to: &Bucket,
    key: &[u8],
    bytes: &[u8],
    options: PutOptions,
) -> Result<Head, DataError> {
    let mut upload = objects.put(to, key, options)?;
    for piece in bytes.chunks(40_000) {
        upload.write(piece)?;
    }
    upload.finish().wait()
}

pub(super) fn put(objects: &dyn Objects, to: &Bucket, key: &[u8], bytes: &[u8]) -> Result<Head, DataError> {
    put_with(objects, to, key, bytes, PutOptions::default())
}

pub(super) fn read(opened: &Opened) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(opened.head().len).unwrap()];
    assert_eq!(opened.read_at(0, &mut bytes).unwrap(), bytes.len());
    bytes
}

pub(super) fn get(objects: &dyn Objects, from: &Bucket, key: &[u8]) -> Option<Vec<u8>> {
    objects.open(from, key).unwrap().map(|opened| read(&opened))
}

fn keys(page: &Page) -> Vec<&[u8]> {
    page.objects.iter().map(|(key, _)| &**key).collect()
}

/// Runs a test against a bucket of each durability.
fn both(test: impl Fn(&Node, &dyn Objects, Bucket)) {
    for durability in [Durability::Durable, Durability::Volatile] {
        let node = Node::new();
        let bucket = node.bucket("b", durability, 4 * MIB, 1000);
        let objects = node.data().objects(durability);
        test(&node, &*objects, bucket);
    }
}

const SIZES: [usize; 8] = [0, 1, 4095, 4096, 65_536, 65_537, 200_001, 1 << 20];

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn what_was_put_is_what_is_opened() {
    both(|_, objects, bucket| {
        for size in SIZES {
            let bytes = noise(size, size as u64 + 1);
            let options = PutOptions {
                content_type: "image/png".into(),
                metadata: vec![("of".into(), "é".into())],
                digest: Some(Digest::of(&bytes)),
                ..PutOptions::default()
            };
            let put = put_with(objects, &bucket, b"k", &bytes, options).unwrap();
            assert_eq!((put.etag, put.len, put.modified_ms), (Digest::of(&bytes), size as u64, 1_000_000));
            assert_eq!((put.content_type.as_str(), put.metadata.len()), ("image/png", 1));
            let opened = objects.open(&bucket, b"k").unwrap().unwrap();
            assert_eq!((opened.head(), opened.verified()), (&put, Verified::Before));
            assert_eq!(objects.head(&bucket, b"k").unwrap(), Some(put));
            assert!(read(&opened) == bytes, "{size}");
            // Ranges, past the end too.
            let mut buf = [0xee; 10];
            for from in [0, size / 2, size.saturating_sub(3), size, size + 1, usize::MAX >> 1] {
                let expected = bytes.get(from..).unwrap_or_default();
                let count = opened.read_at(from as u64, &mut buf).unwrap();
                assert_eq!(buf[..count], expected[..count.min(expected.len())]);
                assert_eq!(count, expected.len().min(10));
            }
            // A descriptor, through which nothing can be written.
            match opened.fd() {
                None => assert!(size <= HEAP_BYTES_MAX && bucket.spec.durability == Durability::Volatile),
                Some(fd) => {
                    let mut file = std::fs::File::from(fd.try_clone_to_owned().unwrap());
                    let mut all = Vec::new();
                    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(0)).unwrap();
                    file.read_to_end(&mut all).unwrap();
                    assert!(all.starts_with(&bytes) && all[size..].iter().all(|byte| *byte == 0), "{size}");
                    assert!(std::io::Write::write(&mut file, b"x").is_err() && file.set_len(1).is_err());
                }
            }
        }
    });
}

#[test]
fn what_was_checked_opens_without_waiting() {
    both(|_, objects, bucket| {
        assert!(matches!(objects.open_now(&bucket, b"k").unwrap(), OpenNow::Absent));
        let bytes = noise(200_001, 7);
        put(objects, &bucket, b"k", &bytes).unwrap();
        let OpenNow::Opened(opened) = objects.open_now(&bucket, b"k").unwrap() else { panic!("it was checked when it was put") };
        assert!(read(&opened) == bytes);
        let (mut found, mut buf) = (Vec::new(), [0; 7000]);
        while (found.len() as u64) < opened.head().len {
            let offset = found.len() as u64;
            let count = match opened.read_cached(offset, &mut buf).unwrap() {
                Some(count) => count,
                // The system may have other uses for its memory.
                None => opened.read_at(offset, &mut buf).unwrap(),
            };
            found.extend_from_slice(&buf[..count]);
        }
        assert!(found == bytes);
        assert_eq!(opened.read_cached(200_001, &mut buf).unwrap(), Some(0));
        assert!(objects.open_now(&bucket, b"").is_err());
    });
}

#[test]
fn an_upload_that_is_cut_leaves_nothing() {
    both(|node, objects, bucket| {
        put(objects, &bucket, b"k", b"old").unwrap();
        for size in SIZES {
            let mut upload = objects.put(&bucket, b"k", PutOptions::default()).unwrap();
            upload.write(&noise(size, 1)).unwrap();
            assert_eq!(get(objects, &bucket, b"k").unwrap(), b"old", "not visible yet");
            drop(upload);
            assert_eq!(get(objects, &bucket, b"k").unwrap(), b"old");
        }
        let wrong = PutOptions { digest: Some(Digest::of(b"other")), ..PutOptions::default() };
        let error = put_with(objects, &bucket, b"k", b"new", wrong).unwrap_err();
        assert!(matches!(error, DataError::WrongDigest { found, .. } if found == Digest::of(b"new")), "{error}");
        assert_eq!(get(objects, &bucket, b"k").unwrap(), b"old");
        assert_eq!(std::fs::read_dir(node.dir.path().join("staging")).unwrap().count(), 0);
        let used = match bucket.spec.durability {
            Durability::Durable => node.data().durable_objects().used_bytes(),
            Durability::Volatile => node.data().volatile_objects.used_bytes(),
        };
        assert_eq!(used, 3);
    });
}

#[test]
fn limits_on_both_sides() {
    both(|_, objects, bucket| {
        let put_key = |key: &[u8]| put(objects, &bucket, key, b"x");
        put_key(&[7; KEY_BYTES_MAX]).unwrap();
        assert!(matches!(put_key(&[7; KEY_BYTES_MAX + 1]), Err(DataError::TooLarge { found: 513, max: 512, .. })));
        assert!(matches!(put_key(b""), Err(DataError::Invalid { .. })));
        for key in [&b""[..], &[7; KEY_BYTES_MAX + 1]] {
            assert!(objects.head(&bucket, key).is_err() && objects.open(&bucket, key).is_err());
            assert!(objects.delete(&bucket, key, When::Always).wait().is_err());
        }
        let put_options = |options| put_with(objects, &bucket, b"k", b"x", options);
        let typed = |len| PutOptions { content_type: "t".repeat(len), ..PutOptions::default() };
        put_options(typed(CONTENT_TYPE_BYTES_MAX)).unwrap();
        assert!(matches!(put_options(typed(CONTENT_TYPE_BYTES_MAX + 1)), Err(DataError::TooLarge { found: 256, .. })));
        let tagged = |count, len| PutOptions { metadata: vec![(String::new(), "v".repeat(len)); count], ..PutOptions::default() };
        put_options(tagged(1, METADATA_BYTES_MAX)).unwrap();
        put_options(tagged(METADATA_PAIRS_MAX, 1)).unwrap();
        assert!(matches!(put_options(tagged(1, METADATA_BYTES_MAX + 1)), Err(DataError::TooLarge { found: 2049, .. })));
        assert!(matches!(put_options(tagged(METADATA_PAIRS_MAX + 1, 1)), Err(DataError::Invalid { .. })));
        let longest_ms = u64::try_from(TTL_MAX.as_millis()).unwrap();
        put_options(PutOptions { ttl_ms: Some(longest_ms), ..PutOptions::default() }).unwrap();
        for ms in [0, longest_ms + 1, u64::MAX] {
            let error = put_options(PutOptions { ttl_ms: Some(ms), ..PutOptions::default() }).unwrap_err();
            assert!(matches!(error, DataError::Invalid { .. }), "{ms}: {error}");
        }

        put(objects, &bucket, b"big", &noise(1 << 20, 1)).unwrap();
        let error = put(objects, &bucket, b"big", &noise((1 << 20) + 1, 1)).unwrap_err();
        assert!(matches!(error, DataError::TooLarge { what: "an object", max: MIB, .. }), "{error}");
        assert_eq!(get(objects, &bucket, b"big").unwrap().len(), 1 << 20);
    });
}

#[test]
fn conditions_decide_when_they_are_committed() {
    both(|_, objects, bucket| {
        let on = |when| PutOptions { when, ..PutOptions::default() };
        let a = put_with(objects, &bucket, b"k", b"a", on(When::Absent)).unwrap();
        let refused = |result: Result<Head, DataError>, etag: Option<Digest>| {
            assert!(matches!(result, Err(DataError::ObjectConflict { found }) if found == etag), "{result:?}");
        };
        refused(put_with(objects, &bucket, b"k", b"b", on(When::Absent)), Some(a.etag));
        refused(put_with(objects, &bucket, b"k", b"b", on(When::Etag(Digest::of(b"b")))), Some(a.etag));
        refused(put_with(objects, &bucket, b"none", b"b", on(When::Etag(a.etag))), None);
        refused(put_with(objects, &bucket, b"none", b"b", on(When::Present)), None);
        let again = put_with(objects, &bucket, b"k", b"a", on(When::Present)).unwrap();
        let b = put_with(objects, &bucket, b"k", b"b", on(When::Etag(a.etag))).unwrap();
        assert!(b.version > again.version && again.version > a.version);
        // Begun before, committed after another.
        let mut late = objects.put(&bucket, b"k", on(When::Etag(b.etag))).unwrap();
        late.write(b"late").unwrap();
        let c = put(objects, &bucket, b"k", b"c").unwrap();
        refused(late.finish().wait(), Some(c.etag));
        let error = objects.delete(&bucket, b"none", When::Present).wait().unwrap_err();
        assert!(matches!(error, DataError::ObjectConflict { found: None }));
        let error = objects.delete(&bucket, b"k", When::Etag(b.etag)).wait().unwrap_err();
        assert!(matches!(error, DataError::ObjectConflict { found } if found == Some(c.etag)));
        assert_eq!(objects.delete(&bucket, b"k", When::Etag(c.etag)).wait().unwrap(), Some(c.clone()));
        assert_eq!(objects.delete(&bucket, b"k", When::Always).wait().unwrap(), None);
        // Versions go on after a deletion.
        assert!(put(objects, &bucket, b"k", b"c").unwrap().version > c.version);
    });
}

#[test]
fn of_racing_writers_one_wins_and_nothing_is_torn() {
    both(|_, objects, bucket| {
        for round in 0..5_u8 {
            let key = [round];
            let barrier = Barrier::new(4);
            let won = std::thread::scope(|scope| {
                let writers: Vec<_> = (0..4_u64)
                    .map(|writer| {
                        let (barrier, bucket) = (&barrier, &bucket);
                        scope.spawn(move || {
                            let bytes = noise(100_000, writer + 1);
                            let options = PutOptions { when: When::Absent, ..PutOptions::default() };
                            let mut upload = objects.put(bucket, &key, options).unwrap();
                            upload.write(&bytes).unwrap();
                            barrier.wait();
                            upload.finish().wait().map(|head| head.etag)
                        })
                    })
                    .collect();
                let results: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
                let won: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
                assert_eq!(won.len(), 1, "{results:?}");
                *won[0]
            });
            assert_eq!(Digest::of(&get(objects, &bucket, &key).unwrap()), won);
        }
    });
}

#[test]
fn a_list_goes_on_after_its_cursor() {
    both(|node, objects, bucket| {
        let other = node.bucket("c", bucket.spec.durability, MIB, 1000);
        put(objects, &other, b"a/0", b"").unwrap();
        for key in [&b"a"[..], b"a/1", b"a/2", b"a/3", b"a0", b"b", b"\xff\xff"] {
            put(objects, &bucket, key, key).unwrap();
        }
        let page = objects.list(&bucket, b"a/", None, 2).unwrap();
        assert_eq!((keys(&page), page.next.as_deref()), (vec![&b"a/1"[..], b"a/2"], Some(&b"a/2"[..])));
        let page = objects.list(&bucket, b"a/", page.next.as_deref(), 2).unwrap();
        assert_eq!((keys(&page), page.next.as_deref()), (vec![&b"a/3"[..]], None));
        // A cursor before the prefix, after it, and one that is no key.
        assert_eq!(objects.list(&bucket, b"a/", Some(b"0"), 9).unwrap().objects.len(), 3);
        assert_eq!(objects.list(&bucket, b"a/", Some(b"b"), 9).unwrap().objects.len(), 0);
        assert_eq!(keys(&objects.list(&bucket, b"a/", Some(b"a/11"), 9).unwrap()), [b"a/2", b"a/3"]);
        assert_eq!(keys(&objects.list(&bucket, b"\xff", None, 9).unwrap()), [b"\xff\xff"]);
        assert_eq!(objects.list(&bucket, b"", None, usize::MAX).unwrap().objects.len(), 7);
        assert_eq!(objects.list(&bucket, b"", None, 0).unwrap().objects.len(), 1, "a page has one at least");
    });
}

#[test]
fn what_has_expired_is_gone_and_stays_gone() {
    both(|node, objects, bucket| {
        let options = PutOptions { ttl_ms: Some(1000), ..PutOptions::default() };
        let head = put_with(objects, &bucket, b"k", b"x", options.clone()).unwrap();
        assert_eq!(head.expires_ms, Some(1_001_000));
        put(objects, &bucket, b"l", b"x").unwrap();
        node.hands.pass(999);
        assert!(objects.open(&bucket, b"k").unwrap().is_some());
        node.hands.pass(1);
        for _ in 0..2 {
            assert!(objects.open(&bucket, b"k").unwrap().is_none() && objects.head(&bucket, b"k").unwrap().is_none());
            assert_eq!(keys(&objects.list(&bucket, b"", None, 9).unwrap()), [b"l"]);
            node.hands.jump_to(0);
        }
        assert_eq!(objects.delete(&bucket, b"k", When::Always).wait().unwrap(), None);
        put_with(objects, &bucket, b"k", b"y", PutOptions { when: When::Absent, ..options }).unwrap();
        // A put without one lifts it.
        put(objects, &bucket, b"k", b"z").unwrap();
        node.hands.pass(5000);
        assert_eq!(get(objects, &bucket, b"k").unwrap(), b"z");
    });
}

#[test]
fn a_bucket_that_is_gone_says_so() {
    both(|node, objects, bucket| {
        put(objects, &bucket, b"k", b"x").unwrap();
        node.data().delete_bucket(&bucket.tenant, &bucket.name).wait().unwrap();
        let is_gone = |error: DataError| assert!(matches!(error, DataError::NoSuchBucket { .. }), "{error}");
        is_gone(objects.head(&bucket, b"k").unwrap_err());
        is_gone(objects.open(&bucket, b"k").unwrap_err());
        is_gone(objects.list(&bucket, b"", None, 9).unwrap_err());
        is_gone(objects.delete(&bucket, b"k", When::Always).wait().unwrap_err());
        is_gone(put(objects, &bucket, b"k", b"y").unwrap_err());
    });
}

#[test]
fn an_open_object_outlives_its_key() {
    both(|_, objects, bucket| {
        let bytes = noise(300_000, 5);
        put(objects, &bucket, b"k", &bytes).unwrap();
        let (first, second) = (objects.open(&bucket, b"k").unwrap().unwrap(), objects.open(&bucket, b"k").unwrap().unwrap());
        put(objects, &bucket, b"k", b"new").unwrap();
        objects.delete(&bucket, b"k", When::Always).wait().unwrap();
        assert!(objects.open(&bucket, b"k").unwrap().is_none());
        assert!(read(&first) == bytes);
        drop(first);
        assert!(read(&second) == bytes);
    });
}

/// Random puts and deletes against a map, with keys that are prefixes of each other.
#[test]
fn a_map_agrees() {
    both(|_, objects, bucket| {
        let mut model = BTreeMap::<Vec<u8>, Vec<u8>>::new();
        let dice = noise(600, 9);
        for dice in dice.chunks_exact(3) {
            let key: Vec<u8> = [0, 0xff, b'a']
                .iter()
                .cycle()
                .skip(usize::from(dice[0] % 3))
                .take(1 + usize::from(dice[1] % 4))
                .copied()
                .collect();
            if dice[2] % 3 == 0 {
                let deleted = objects.delete(&bucket, &key, When::Always).wait().unwrap();
                assert_eq!(deleted.map(|head| head.etag), model.remove(&key).map(|bytes| Digest::of(&bytes)));
            } else {
                // Few values, so that several keys have the same bytes.
                let bytes = noise(usize::from(dice[2] % 5), 3);
                put(objects, &bucket, &key, &bytes).unwrap();
                model.insert(key, bytes);
            }
        }
        let page = objects.list(&bucket, b"", None, 1000).unwrap();
        assert_eq!(keys(&page), model.keys().map(Vec::as_slice).collect::<Vec<_>>());
        for (key, bytes) in &model {
            assert_eq!(get(objects, &bucket, key).as_ref(), Some(bytes));
        }
    });
}

/// Buckets of two tenants whose names and keys are each other's prefixes and suffixes, against a model.
#[test]
fn no_bucket_is_confused_with_another() {
    let names = [("t", "a"), ("t", "ab"), ("ta", "b"), ("ta", "a"), ("t", "b-c"), ("t-b", "c")];
    let all = [&b"a"[..], b"b", b"c", b"bc", b"ab", b"\0", b"\xff", b"../a", b"\x01\0\0\0\0\0\0\0", b"/"];
    for durability in [Durability::Durable, Durability::Volatile] {
        let node = Node::new();
        let spec = BucketSpec { durability, bytes_max: MIB, keys_max: 100 };
        let buckets = names.map(|(tenant, name)| {
            node.data().put_bucket(&tenant.parse().unwrap(), &name.parse().unwrap(), spec).wait().unwrap().0
        });
        let objects = node.data().objects(durability);
        let mut model = BTreeMap::<(usize, &[u8]), Vec<u8>>::new();
        for (round, dice) in noise(600, 17).chunks_exact(3).enumerate() {
            let (at, key) = (usize::from(dice[0]) % buckets.len(), all[usize::from(dice[1]) % all.len()]);
            if dice[2] % 4 == 0 {
                let deleted = objects.delete(&buckets[at], key, When::Always).wait().unwrap();
                assert_eq!(deleted.is_some(), model.remove(&(at, key)).is_some(), "round {round}");
            } else {
                // Equal bytes in several buckets, too.
                let bytes = noise(100 + usize::from(dice[2] % 5), 1);
                put(&*objects, &buckets[at], key, &bytes).unwrap();
                model.insert((at, key), bytes);
            }
            let probe = all[round % all.len()];
            for (at, bucket) in buckets.iter().enumerate() {
                assert_eq!(get(&*objects, bucket, probe).as_ref(), model.get(&(at, probe)), "round {round}");
            }
        }
        for (at, bucket) in buckets.iter().enumerate() {
            let page = objects.list(bucket, b"", None, 1000).unwrap();
            let expected: Vec<_> = model.keys().filter(|(of, _)| *of == at).map(|(_, key)| *key).collect();
            assert_eq!(keys(&page), expected);
        }
        // One that is deleted takes nothing of the others with it.
        node.data().delete_bucket(&buckets[0].tenant, &buckets[0].name).wait().unwrap();
        for ((at, key), bytes) in model.iter().filter(|((at, _), _)| *at != 0) {
            assert_eq!(get(&*objects, &buckets[*at], key).as_ref(), Some(bytes));
        }
    }
}

#[test]
fn both_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Arc<dyn Objects>>();
    shared::<Opened>();
}

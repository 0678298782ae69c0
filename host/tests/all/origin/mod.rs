//! Buckets that are caches of an S3-compatible store: never wrong bytes, one fetch for all, nothing that the operator did not open.

mod copies;
mod doors;
mod faults;
mod store;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hob::bucket::{BucketSpec, Durability, OriginUrl};
use hob::config::{Config, Time};
use hob::data::objects::{ObjectLimits, Objects, Opened, Origins, PutOptions, When};
use hob::data::{Bucket, CacheCounts, Clock, Data, DataConfig, DataError, OriginFault, Reading};
use hob::fault::Code;
use hob::id::{Digest, TenantId};

pub(crate) use self::store::BUCKET;
use self::store::{Fault, KEY_ID, Proxy, SECRET, Server};
use crate::harness::{Dice, Node};

const MIB: u64 = 1 << 20;
/// Requests to an origin at once.
const REQUESTS_MAX: usize = 4;

/// Data of a node whose one origin is a [`Server`] behind a [`Proxy`].
pub(crate) struct Site {
    server: Server,
    proxy: Proxy,
    dir: tempfile::TempDir,
    hands: Arc<AtomicU64>,
    config: hob::config::Origin,
    cache: ObjectLimits,
    memory_bytes_max: u64,
    data: Option<Data>,
}

fn sizes() -> DataConfig {
    let objects = ObjectLimits { object_bytes_max: 64 * MIB, bytes_max: 64 * MIB };
    DataConfig {
        events_max: 100_000,
        durable_objects: objects,
        volatile_objects: objects,
        page_cache_bytes: 1 << 20,
        kv_cache_bytes: 1 << 20,
        volatile_bytes_max: 1 << 20,
    }
}

fn url(text: &str) -> OriginUrl {
    text.parse().unwrap()
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::with(64 * MIB, |_| {})
    }

    fn with(cache_bytes_max: u64, change: impl FnOnce(&mut hob::config::Origin)) -> Self {
        let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
        let proxy = Proxy::start(server.addr);
        let key_file = dir.path().join("key");
        fs::write(&key_file, format!("[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key={SECRET}\n")).unwrap();
        let text = format!("[[origin]]\nurl = 's3://{BUCKET}'\nendpoint = 'http://{}'\nkey_file = {key_file:?}\n", proxy.addr);
        let mut config = Config::read(&text, &[]).unwrap().origin.remove(0);
        change(&mut config);
        let cache = ObjectLimits { object_bytes_max: 64 * MIB, bytes_max: cache_bytes_max };
        let hands = Arc::new(AtomicU64::new(1_000_000));
        let mut site = Self { server, proxy, dir, hands, config, cache, memory_bytes_max: MIB, data: None };
        site.reopen();
        site
    }

    fn reopen(&mut self) {
        self.data = None;
        self.data = Some(self.open("data", vec![self.config.clone()]));
    }

    fn open(&self, folder: &str, opened: Vec<hob::config::Origin>) -> Data {
        let hands = Arc::clone(&self.hands);
        let clock = Clock::new(move || {
            let now = hands.load(Ordering::SeqCst);
            Reading { wall_ms: now, monotonic_ms: now }
        });
        let (cache, memory_bytes_max) = (self.cache, self.memory_bytes_max);
        let origins = Origins { opened, cache, memory_bytes_max, requests_max: REQUESTS_MAX };
        Data::open_with(&self.dir.path().join(folder), sizes(), &origins, clock).unwrap()
    }

    fn data(&self) -> &Data {
        self.data.as_ref().unwrap()
    }

    fn objects(&self) -> Arc<dyn Objects> {
        self.data().objects(Durability::Durable)
    }

    fn bucket(&self, name: &str, bytes_max: u64) -> Bucket {
        bucket(self.data(), name, bytes_max, &format!("s3://{BUCKET}")).unwrap()
    }

    fn counts(&self) -> CacheCounts {
        self.data().cache_counts()
    }

    /// Lets time go by.
    fn pass(&self, ms: u64) {
        self.hands.fetch_add(ms, Ordering::SeqCst);
    }

    /// Files of copies, finished and not.
    fn files(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let cache = self.dir.path().join("data/cache");
        (crate::harness::files(&cache.join("objects")), crate::harness::files(&cache.join("staging")))
    }
}

impl Site {
    /// A node that has opened the same origin.
    pub(crate) fn node(&self, settings: &[&str]) -> Node {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let (key_file, config) = (self.dir.path().join("key"), dir.path().join("hob.toml"));
        let text =
            format!("[[origin]]\nurl = 's3://{BUCKET}'\nendpoint = 'http://{}'\nkey_file = {key_file:?}\n", self.proxy.addr);
        fs::write(&config, text).unwrap();
        let mut command = crate::harness::serve(&crate::harness::data_dir(&dir));
        command.arg("--config").arg(config);
        for setting in settings {
            command.args(["--set", setting]);
        }
        Node::run(command, dir).unwrap()
    }
}

fn bucket(data: &Data, name: &str, bytes_max: u64, origin: &str) -> Result<Bucket, DataError> {
    let spec = BucketSpec { bytes_max, ..BucketSpec::new(Durability::Durable) };
    let made = data.put_bucket_of(&TenantId::default(), &name.parse().unwrap(), spec, Some(&url(origin)));
    made.wait().map(|(bucket, _)| bucket)
}

fn read(opened: &Opened) -> Vec<u8> {
    let mut bytes = vec![0xee; opened.head().len as usize];
    assert_eq!(opened.read_at(0, &mut bytes).unwrap(), bytes.len());
    bytes
}

fn get(objects: &dyn Objects, bucket: &Bucket, key: &str) -> Option<Vec<u8>> {
    objects.open(bucket, key.as_bytes()).unwrap().map(|opened| read(&opened))
}

fn put(
    objects: &dyn Objects,
    to: &Bucket,
    key: &str,
    bytes: &[u8],
    options: PutOptions,
) -> Result<hob::data::objects::Head, DataError> {
    let mut upload = objects.put(to, key.as_bytes(), options)?;
    for piece in bytes.chunks(100_000) {
        upload.write(piece)?;
    }
    upload.finish().wait()
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    (0..len.div_ceil(8)).flat_map(|_| dice.next().to_le_bytes()).take(len).collect()
}

#[track_caller]
fn assert_secret(site: &Site, error: &DataError) {
    let fault = error.fault();
    for text in [
        error.to_string(),
        format!("{error:?}"),
        format!("{fault:?}"),
        format!("{:?}", site.data()),
        format!("{:?}", site.config),
    ] {
        for secret in [SECRET, KEY_ID] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    assert!(!fault.detail.contains(&site.proxy.addr.port().to_string()), "{}", fault.detail);
}

#[test]
fn what_is_put_is_at_the_origin_before_it_is_acknowledged() {
    let site = Site::new();
    let (bucket, objects) = (site.bucket("b", 64 * MIB), site.objects());
    let options = || PutOptions {
        content_type: "image/png".into(),
        metadata: vec![("taken-by".into(), "me, you".into()), ("a".into(), "1".into())],
        ..PutOptions::default()
    };
    let other = site.open("other", vec![site.config.clone()]);
    let (theirs, of_others) = (bucket_of(&other), other.objects(Durability::Durable));
    for (key, len) in [("empty", 0), ("small/one", 70_000), ("in parts", (17 * MIB) as usize + 1)] {
        let bytes = noise(len, len as u64);
        let digest = Some(Digest::of(&bytes));
        let head = put(&*objects, &bucket, key, &bytes, PutOptions { digest, ..options() }).unwrap();
        assert!(fs::read(site.server.path(key)).unwrap() == bytes, "{key}");
        // Its copy is here.
        site.proxy.seen();
        assert!(get(&*objects, &bucket, key).unwrap() == bytes);
        assert_eq!(site.proxy.count(), 0);
        // And another node gets the same.
        let opened = of_others.open(&theirs, key.as_bytes()).unwrap().unwrap();
        assert!(read(&opened) == bytes);
        let there = opened.head();
        assert_eq!((there.etag, there.len, &there.content_type), (head.etag, head.len, &head.content_type));
        assert_eq!((&there.metadata, there.metadata.len()), (&head.metadata, 2));
    }
    let wrong = PutOptions { digest: Some(Digest::of(b"other")), ..PutOptions::default() };
    site.proxy.seen();
    let error = put(&*objects, &bucket, "wrong", b"bytes", wrong).unwrap_err();
    assert!(matches!(error, DataError::WrongDigest { .. }) && site.proxy.count() == 0);
    // A put over a copy: the next read has the new bytes.
    put(&*objects, &bucket, "small/one", b"new", PutOptions::default()).unwrap();
    assert_eq!(get(&*objects, &bucket, "small/one").unwrap(), b"new");
    let gone = objects.delete(&bucket, b"small/one", When::Always).wait().unwrap().unwrap();
    assert_eq!(gone.len, 3);
    assert!(!site.server.path("small/one").exists() && get(&*objects, &bucket, "small/one").is_none());
    assert_eq!(objects.delete(&bucket, b"small/one", When::Always).wait().unwrap(), None);
}

fn bucket_of(data: &Data) -> Bucket {
    bucket(data, "b", 64 * MIB, &format!("s3://{BUCKET}")).unwrap()
}

#[test]
fn a_put_that_fails_leaves_neither_a_copy_nor_a_promise() {
    let site = Site::with(64 * MIB, |config| config.response_timeout = Time(std::time::Duration::from_millis(300)));
    let (bucket, objects) = (site.bucket("b", 64 * MIB), site.objects());
    put(&*objects, &bucket, "k", b"old", PutOptions::default()).unwrap();
    site.proxy.seen();
    for (fault, code) in [
        (Fault::Status(500), Code::OriginFailed),
        (Fault::Status(403), Code::OriginFailed),
        (Fault::Hangup, Code::OriginFailed),
        (Fault::Silent, Code::OriginTimeout),
    ] {
        site.proxy.fail("PUT", [fault.clone()]);
        let error = put(&*objects, &bucket, "k", b"new", PutOptions::default()).unwrap_err();
        assert_eq!(error.fault().code, code, "{fault:?} {error}");
        assert_secret(&site, &error);
        // A write is not tried again, and what the origin has now is asked.
        assert_eq!(site.proxy.methods(), ["PUT"]);
        assert_eq!(get(&*objects, &bucket, "k").unwrap(), b"old");
        assert_eq!(site.proxy.methods(), ["GET"]);
    }
    // In parts: they are dropped at the origin.
    site.proxy.fail("PUT", [Fault::None, Fault::Status(503)]);
    let error = put(&*objects, &bucket, "k", &vec![1; 20 << 20], PutOptions::default()).unwrap_err();
    assert!(matches!(error, DataError::Origin { why: OriginFault::Status { status: 503 } }), "{error}");
    assert_eq!(site.proxy.methods(), ["POST", "PUT", "PUT", "DELETE"]);
    assert_eq!(get(&*objects, &bucket, "k").unwrap(), b"old");
    assert_eq!(site.files().1, Vec::<PathBuf>::new());
    // An upload that is dropped half-way sends nothing.
    site.proxy.seen();
    let mut upload = objects.put(&bucket, b"k", PutOptions::default()).unwrap();
    upload.write(&[1; 1000]).unwrap();
    drop(upload);
    assert_eq!((site.proxy.count(), site.files().1.len(), site.counts().bytes), (0, 0, 3));
}

#[test]
fn conditions_hold_as_far_as_the_origin_has_them() {
    let site = Site::new();
    let (bucket, objects) = (site.bucket("b", 64 * MIB), site.objects());
    let when = |when| PutOptions { when, ..PutOptions::default() };
    let first = put(&*objects, &bucket, "k", b"1", when(When::Absent)).unwrap();
    let conflict = |error: DataError, found: Option<Digest>| match error {
        DataError::ObjectConflict { found: is } => assert_eq!(is, found),
        other => panic!("{other}"),
    };
    conflict(put(&*objects, &bucket, "k", b"2", when(When::Absent)).unwrap_err(), Some(first.etag));
    conflict(put(&*objects, &bucket, "other", b"2", when(When::Etag(first.etag))).unwrap_err(), None);
    let second = put(&*objects, &bucket, "k", b"2", when(When::Etag(first.etag))).unwrap();
    conflict(put(&*objects, &bucket, "k", b"3", when(When::Etag(first.etag))).unwrap_err(), Some(second.etag));
    // The origin decides when somebody was there between the question and the put.
    let mut upload = objects.put(&bucket, b"late", when(When::Absent)).unwrap();
    upload.write(b"mine").unwrap();
    site.server.seed("late", b"theirs");
    assert!(matches!(upload.finish().wait().unwrap_err(), DataError::ObjectConflict { found: Some(_) }));
    assert_eq!(get(&*objects, &bucket, "late").unwrap(), b"theirs");
    // What it has not is refused, and says so.
    let refused = |error: DataError, word: &str| {
        assert!(matches!(error, DataError::Invalid { .. }) && error.to_string().contains(word), "{error}");
    };
    site.proxy.seen();
    refused(put(&*objects, &bucket, "new", &vec![1; (16 << 20) + 1], when(When::Absent)).unwrap_err(), "16777216");
    refused(objects.delete(&bucket, b"k", When::Etag(second.etag)).wait().unwrap_err(), "condition on a delete");
    let ttl = PutOptions { ttl_ms: Some(1), ..PutOptions::default() };
    refused(put(&*objects, &bucket, "k", b"", ttl).unwrap_err(), "time to live");
    for metadata in [("A", "x"), ("", "x"), ("a:b", "x"), ("a", "é"), ("a", "x\r\ny: z"), ("a", " x")] {
        let metadata = vec![(metadata.0.into(), metadata.1.into())];
        refused(put(&*objects, &bucket, "k", b"", PutOptions { metadata, ..PutOptions::default() }).unwrap_err(), "metadata");
    }
    let content_type = PutOptions { content_type: "a\r\nb".into(), ..PutOptions::default() };
    refused(put(&*objects, &bucket, "k", b"", content_type).unwrap_err(), "content type");
    assert_eq!(put(&*objects, &bucket, "new", &vec![1; 16 << 20], when(When::Absent)).unwrap().len, 16 << 20);
    assert_eq!(get(&*objects, &bucket, "k").unwrap(), b"2");
}

#[test]
fn lists_are_the_origins() {
    let site = Site::new();
    for key in ["a/1", "a/2", "a/b/3", "ab", "c", "pre/x", "pre/y", "prefix/z"] {
        site.server.seed(key, key.as_bytes());
    }
    let (bucket, objects) = (site.bucket("b", MIB), site.objects());
    let below = self::bucket(site.data(), "below", MIB, &format!("s3://{BUCKET}/pre")).unwrap();
    let list = |bucket: &Bucket, prefix: &str, limit: usize| {
        let (mut keys, mut after, mut pages) = (Vec::new(), None::<bytes::Bytes>, 0);
        loop {
            let page = objects.list(bucket, prefix.as_bytes(), after.as_deref(), limit).unwrap();
            assert!(page.objects.len() <= limit);
            keys.extend(page.objects.into_iter().map(|(key, head)| {
                assert!(head.as_ref().unwrap().len > 0);
                String::from_utf8(key.to_vec()).unwrap()
            }));
            pages += 1;
            match page.next {
                Some(next) => after = Some(next),
                None => return (keys, pages),
            }
        }
    };
    for limit in [1, 2, 3, 1000] {
        let all = ["a/1", "a/2", "a/b/3", "ab", "c", "pre/x", "pre/y", "prefix/z"];
        assert_eq!(list(&bucket, "", limit).0, all, "{limit}");
        assert_eq!(list(&bucket, "a/", limit).0, ["a/1", "a/2", "a/b/3"], "{limit}");
        // What lies beside is of another bucket.
        assert_eq!(list(&below, "", limit).0, ["x", "y"], "{limit}");
        assert_eq!(list(&below, "none", limit), (vec![], 1));
    }
    assert_eq!(get(&*objects, &below, "x").unwrap(), b"pre/x");
    assert!(get(&*objects, &below, "fix/z").is_none());
}

#[test]
fn keys_that_are_no_paths_are_refused() {
    let site = Site::new();
    let below = bucket(site.data(), "below", MIB, &format!("s3://{BUCKET}/pre")).unwrap();
    site.server.seed("secret", b"x");
    let (objects, long) = (site.objects(), "a".repeat(513));
    for key in ["", "/", "/a", "a/", "a//b", ".", "..", "../secret", "a/../../secret", "a\0b", "a\nb", "a\u{7f}", &long] {
        let error = objects.open(&below, key.as_bytes()).unwrap_err();
        assert!(matches!(error, DataError::Invalid { .. } | DataError::TooLarge { .. }), "{key:?} {error}");
        assert!(objects.put(&below, key.as_bytes(), PutOptions::default()).is_err(), "{key:?}");
        assert!(objects.delete(&below, key.as_bytes(), When::Always).wait().is_err(), "{key:?}");
    }
    assert!(objects.head(&below, b"\xff").is_err());
    assert_eq!(site.proxy.count(), 0);
    for key in ["a b", "é", "a%2e%2e", "a?b", "a#b", "+", "a:b@c", "%", &"a".repeat(100)] {
        put(&*objects, &below, key, key.as_bytes(), PutOptions::default()).unwrap();
        assert_eq!(fs::read(site.server.path("pre").join(key)).unwrap(), key.as_bytes(), "{key}");
        site.pass(10_000);
        assert_eq!(get(&*objects, &below, key).unwrap(), key.as_bytes());
    }
}

#[test]
fn the_longest_key_is_asked_for_and_put_whole() {
    let site = Site::new();
    let below = bucket(site.data(), "below", MIB, &format!("s3://{BUCKET}/pre")).unwrap();
    // The server keeps keys as paths, whose parts have at most 255 bytes.
    let key = [250, 250, 10].map(|len| "a".repeat(len)).join("/");
    assert_eq!(key.len(), 512);
    let objects = site.objects();
    site.server.seed(&format!("pre/{key}"), b"found");
    assert_eq!(get(&*objects, &below, &key).unwrap(), b"found");
    assert_eq!(objects.list(&below, b"aaa", None, 10).unwrap().objects[0].0, key.as_bytes());
    site.proxy.seen();
    // What it notes of an object beside it has the key in its name, and that is too long for it.
    let error = put(&*objects, &below, &key, b"put", PutOptions::default()).unwrap_err();
    assert!(matches!(error, DataError::Origin { why: OriginFault::Status { status: 500 } }), "{error}");
    assert!(site.proxy.seen().contains(&format!("PUT /{BUCKET}/pre/{key}")));
}

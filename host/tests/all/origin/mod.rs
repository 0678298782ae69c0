//! Buckets that are caches of an S3-compatible store: never wrong bytes, one fetch for all, nothing that the operator did not open.

mod store;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use hob::bucket::{BucketSpec, Durability, OriginUrl};
use hob::config::{Config, Time};
use hob::data::objects::{ObjectLimits, Objects, Opened, Origins, PutOptions, When};
use hob::data::{Bucket, CacheCounts, Clock, Data, DataConfig, DataError, OriginFault, Reading};
use hob::fault::Code;
use hob::id::{Digest, TenantId};

pub(crate) use self::store::BUCKET;
use self::store::{Fault, Gate, KEY_ID, Proxy, SECRET, Server};
use crate::conformance::direct::Direct;
use crate::conformance::{Control, Handler};
use crate::harness::{Dice, Node, doors, eventually};

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

/// What a read that must fail says; and that nothing of it is left, and that neither host nor key is in any text.
#[track_caller]
fn failure(site: &Site, bucket: &Bucket, key: &str) -> OriginFault {
    let error = site.objects().open(bucket, key.as_bytes()).unwrap_err();
    let DataError::Origin { why } = error else { panic!("{error:?}") };
    assert_secret(site, &error);
    assert_eq!(site.files(), (vec![], vec![]));
    assert_eq!(site.counts().bytes, 0);
    why
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

/// The rules of every door, as far as an origin can keep them.
#[test]
fn a_bucket_with_an_origin_keeps_the_rules() {
    let site = Site::new();
    let below = |name: &str| {
        let origin = format!("s3://{BUCKET}/{name}");
        Direct::new(site.data(), bucket(site.data(), name, 64 * MIB, &origin).unwrap())
    };
    doors::objects::check(&below("b"), &below("c"));
}

/// The same at the control port of a node.
#[test]
fn a_bucket_with_an_origin_keeps_the_rules_on_the_control_port() {
    let site = Site::new();
    let node = site.node(&["net.headers_max=100"]);
    for name in ["b", "c"] {
        crate::buckets::bucket(&node, name, serde_json::json!({ "origin": format!("s3://{BUCKET}/{name}") }));
    }
    let door = |bucket| Control { node: &node, bucket, is_of_origin: true };
    doors::objects::check(&door("b"), &door("c"));
}

/// And through the SDK.
#[test]
fn a_bucket_with_an_origin_keeps_the_rules_through_the_sdk() {
    let site = Site::new();
    let bucket = |name: &str| format!("[[bucket]]\nname = '{name}'\nbytes_max = '64MiB'\norigin = 's3://{BUCKET}/{name}'\n");
    let limits = "[limits]\nmemory = '256MiB'\nrequest_body = '64MiB'\nwall = '60s'\ncpu = '30s'\n";
    let grant = |name: &str| format!("{{ bucket = '{name}', access = 'read-write' }}");
    let grants = format!("[grants]\ndata = [{}, {}]\n", grant("b"), grant("c"));
    let node = site.node(&[]);
    let reply = node.deploy("data1", &crate::data::wasm(), &[bucket("b"), bucket("c"), limits.into(), grants].concat());
    assert_eq!(reply.status(), 201, "{}", reply.text());
    let door = crate::data::Door { node };
    let handler = |bucket| Handler { door: &door, bucket, is_of_origin: true };
    doors::objects::check(&handler("b"), &handler("c"));
}

#[test]
fn small_copies_stay_in_memory_within_their_budget() {
    const COST: u64 = 128;
    let mut site = Site::new();
    // Room for two of 30,000 bytes, and not for one byte more.
    site.memory_bytes_max = 2 * (30_000 + COST);
    site.reopen();
    let sizes = [("a", 30_000), ("b", 30_000), ("c", 30_000), ("full", 65_536), ("large", 65_537)];
    let content = |key: &str, len: usize| noise(len, key.bytes().map(u64::from).sum());
    for (key, len) in sizes {
        site.server.seed(key, &content(key, len));
    }
    let (bucket, objects) = (site.bucket("b", MIB), site.objects());
    let is_in_memory = |key: &str| objects.open(&bucket, key.as_bytes()).unwrap().unwrap().fd().is_none();
    assert!(!is_in_memory("a") && is_in_memory("a") && !is_in_memory("b") && is_in_memory("b"));
    assert_eq!(site.counts().memory_bytes, site.memory_bytes_max);
    // What was used longest ago goes, and what is larger than a copy into a guest, or than the budget, does not come.
    assert!(is_in_memory("a") && !is_in_memory("c") && is_in_memory("a") && is_in_memory("c"));
    assert!(!is_in_memory("full") && !is_in_memory("full") && is_in_memory("c"), "it passes the budget");
    assert_eq!(site.counts().memory_bytes, site.memory_bytes_max);
    // What is open counts until it is closed, and nothing passes the budget meanwhile.
    let open = ["a", "c"].map(|key| objects.open(&bucket, key.as_bytes()).unwrap().unwrap());
    assert!(open.iter().all(|opened| opened.fd().is_none()) && !is_in_memory("b") && !is_in_memory("b"));
    assert_eq!(site.counts().memory_bytes, site.memory_bytes_max);
    assert!(read(&open[0]) == content("a", 30_000) && read(&open[1]) == content("c", 30_000));
    drop(open);
    assert_eq!(site.counts().memory_bytes, 0);
    // From memory no file is read, and a copy leaves it with its file.
    assert!(!is_in_memory("a") && is_in_memory("a"));
    for file in site.files().0 {
        fs::remove_file(file).unwrap();
    }
    site.proxy.seen();
    assert!(get(&*objects, &bucket, "a").unwrap() == content("a", 30_000));
    assert_eq!(site.proxy.count(), 0);
    let corrupt = site.data().scrub_objects(&bucket).unwrap().corrupt.len();
    assert_eq!((corrupt, site.counts().memory_bytes), (4, 0));
    assert!(get(&*objects, &bucket, "a").unwrap() == content("a", 30_000));
    assert_eq!(site.proxy.methods(), ["GET"]);
    // The size itself.
    drop(objects);
    site.memory_bytes_max = MIB;
    site.reopen();
    let objects = site.objects();
    for (key, len) in sizes {
        drop(objects.open(&bucket, key.as_bytes()).unwrap());
        let opened = objects.open(&bucket, key.as_bytes()).unwrap().unwrap();
        assert_eq!(opened.fd().is_none(), len <= 65_536, "{key}");
        assert!(read(&opened) == content(key, len));
    }
    site.data().delete_bucket(&bucket.tenant, &bucket.name).wait().unwrap();
    eventually("nothing of the bucket is left", || site.counts().memory_bytes == 0);
    // None at all.
    drop(objects);
    site.memory_bytes_max = 0;
    site.reopen();
    let (bucket, objects) = (site.bucket("b", MIB), site.objects());
    for _ in 0..3 {
        assert!(objects.open(&bucket, b"a").unwrap().unwrap().fd().is_some());
    }
    assert_eq!(site.counts().memory_bytes, 0);
}

/// How many at once wait for an origin: of a function's bucket, of a tenant, of the node; at both doors.
#[test]
fn what_waits_for_an_origin_leaves_places_for_others() {
    const OPENINGS_MAX: usize = 4;
    let site = Site::new();
    let node = site.node(&["data.origin_requests_max=64"]);
    crate::identity::tenant(&node, "acme", &["acme.example"]);
    let as_tenant = |tenant: &str, method: &str, target: &str, body: &[u8]| {
        let reply = node.control.request(method, target, &[("hob-tenant", tenant)], body);
        assert!(reply.status() < 300, "{}", reply.text());
    };
    let grants: String = ["x", "y"].map(|name| format!("{{ bucket = '{name}', access = 'read' }}")).join(", ");
    let manifest = format!("[limits]\nwall = '60s'\n[grants]\ndata = [{grants}]\n");
    for tenant in ["default", "acme"] {
        for name in ["x", "y"] {
            let origin = format!("{{\"origin\": \"s3://{BUCKET}/{tenant}/{name}\"}}");
            as_tenant(tenant, "PUT", &format!("/v1/buckets/{name}"), origin.as_bytes());
        }
        let reply = node.deploy_if("data1", &crate::data::wasm(), &manifest, &[("hob-tenant", tenant)]);
        assert_eq!(reply.status(), 201, "{}", reply.text());
    }
    for tenant in ["default", "acme"] {
        for (name, number) in ["x", "y"].into_iter().flat_map(|name| (0..10).map(move |number| (name, number))) {
            site.server.seed(&format!("{tenant}/{name}/{number}"), b"there");
        }
    }
    let through = |host: &str, bucket: &str, number: usize| {
        let mut conn = node.data.connect();
        let body = format!("read {}", crate::data::hex(number.to_string()));
        conn.send(format!("POST /data1/{bucket} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
        conn
    };
    let gate = Gate::default();
    site.proxy.fail("GET", vec![Fault::Hold(gate.clone()); 64]);
    // One bucket of one function; then another one of it, up to what a tenant may have; then the rest for another tenant.
    let mut asking: Vec<_> = (0..10).map(|number| through("localhost", "x", number)).collect();
    eventually("its turns are taken", || site.proxy.count() == OPENINGS_MAX);
    asking.extend((0..10).map(|number| through("localhost", "y", number)));
    eventually("the tenant's places are taken", || site.proxy.count() == 6);
    asking.extend((0..10).map(|number| through("acme.example", "x", number)));
    eventually("all places are taken", || site.proxy.count() == 8);
    gate.open();
    for mut conn in asking {
        let reply = conn.reply();
        assert!(reply.status() == 200 && !reply.text().contains("error"), "{}", reply.text());
    }
    assert_eq!(site.proxy.count(), 30, "each was fetched once");
}

#[test]
fn on_the_control_port_too_what_waits_for_an_origin_leaves_places() {
    let site = Site::new();
    let node = site.node(&["data.origin_requests_max=64"]);
    crate::identity::tenant(&node, "acme", &[]);
    for tenant in ["default", "acme"] {
        let origin = format!("{{\"origin\": \"s3://{BUCKET}/{tenant}\"}}");
        let made = node.control.request("PUT", "/v1/buckets/b", &[("hob-tenant", tenant)], origin.as_bytes());
        assert_eq!(made.status(), 201, "{}", made.text());
        (0..10).for_each(|number| site.server.seed(&format!("{tenant}/{number}"), b"there"));
    }
    // Looks have places, and openings have some of their own before those.
    for method in ["HEAD", "GET"] {
        let gate = Gate::default();
        site.proxy.seen();
        site.proxy.fail(method, vec![Fault::Hold(gate.clone()); 20]);
        let ask = |tenant: &'static str, number: usize| {
            let target = format!("/v1/buckets/b/objects/{number}");
            let reply = node.control.request(method, &target, &[("hob-tenant", tenant)], b"");
            assert_eq!(reply.status(), 200, "{}", reply.text());
        };
        std::thread::scope(|scope| {
            let ask = &ask;
            for number in 0..10 {
                scope.spawn(move || ask("default", number));
            }
            eventually("a tenant has three of four", || site.proxy.count() == 3);
            for number in 0..10 {
                scope.spawn(move || ask("acme", number));
            }
            eventually("another one has the rest", || site.proxy.count() == 4);
            // What waits for nobody goes on.
            node.control.request("GET", "/v1/buckets", &[("hob-tenant", "acme")], b"").ok();
            gate.open();
        });
        assert_eq!(site.proxy.count(), 20);
    }
}

#[test]
fn readers_at_the_same_time_cause_one_fetch() {
    let site = Site::new();
    let bytes = noise(300_000, 1);
    site.server.seed("a/b.jpg", &bytes);
    let bucket = site.bucket("b", 8 * MIB);
    let gate = Gate::default();
    site.proxy.fail("GET", [Fault::Hold(gate.clone())]);
    let (objects, barrier, asking) = (site.objects(), Barrier::new(33), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..32)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    asking.fetch_add(1, Ordering::SeqCst);
                    objects.open(&bucket, b"a/b.jpg").unwrap().unwrap()
                })
            })
            .collect();
        barrier.wait();
        eventually("all ask and one was passed on", || asking.load(Ordering::SeqCst) == 32 && site.proxy.count() == 1);
        gate.open();
        for reader in readers {
            let opened = reader.join().unwrap();
            assert!(read(&opened) == bytes && opened.fd().is_some());
        }
    });
    assert_eq!(site.proxy.methods(), ["GET"]);
    // Nor does one of them later, for as long as what was seen holds.
    site.pass(9_999);
    assert!(get(&*objects, &bucket, "a/b.jpg").unwrap() == bytes);
    assert_eq!((site.proxy.count(), site.files().0.len()), (0, 1));
    let counts = site.counts();
    assert_eq!((counts.misses, counts.fetched_bytes, counts.copies, counts.bytes), (1, 300_000, 1, 300_000));
}

#[test]
fn who_asks_and_goes_takes_nothing_from_the_others() {
    let site = Site::new();
    site.server.seed("k", b"for all");
    let bucket = site.bucket("b", MIB);
    let gate = Gate::default();
    site.proxy.fail("GET", [Fault::Hold(gate.clone())]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let first = {
        let (objects, bucket) = (site.objects(), bucket.clone());
        runtime.spawn_blocking(move || objects.open(&bucket, b"k").map(drop))
    };
    eventually("it is being fetched", || site.proxy.count() == 1);
    first.abort();
    drop(first);
    let objects = site.objects();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| get(&*objects, &bucket, "k"));
        gate.open();
        assert_eq!(second.join().unwrap().unwrap(), b"for all");
    });
    assert_eq!(site.proxy.methods(), ["GET"]);
}

#[test]
fn a_copy_is_asked_about_when_it_is_no_longer_fresh() {
    let site = Site::new();
    site.server.seed("k", b"first");
    let (bucket, objects) = (site.bucket("b", MIB), site.objects());
    let first = objects.open(&bucket, b"k").unwrap().unwrap();
    assert_eq!(first.head(), &objects.head(&bucket, b"k").unwrap().unwrap());
    assert_eq!(first.head().digest, Some(Digest::of(b"first")));
    assert_eq!(site.proxy.methods(), ["GET"]);
    // The same version: one question, no bytes, and then it is fresh again.
    site.pass(10_000);
    assert_eq!(get(&*objects, &bucket, "k").unwrap(), b"first");
    assert_eq!(get(&*objects, &bucket, "k").unwrap(), b"first");
    assert_eq!(site.proxy.methods(), ["HEAD"]);
    // Another one: what is open stays what it was.
    site.server.seed("k", b"second");
    assert_eq!(get(&*objects, &bucket, "k").unwrap(), b"first", "it is fresh");
    site.pass(10_000);
    let unseen = objects.head(&bucket, b"k").unwrap().unwrap();
    assert!(unseen.etag != first.head().etag && unseen.digest.is_none(), "{unseen:?}");
    let second = objects.open(&bucket, b"k").unwrap().unwrap();
    assert_eq!((read(&second), second.head().etag), (b"second".to_vec(), unseen.etag));
    assert_eq!(site.proxy.methods(), ["HEAD", "HEAD", "GET"]);
    assert_eq!(read(&first), b"first");
    drop((first, second));
    eventually("the old copy goes with who had it open", || site.files().0.len() == 1);
    // None.
    fs::remove_file(site.server.path("k")).unwrap();
    site.pass(10_000);
    assert!(get(&*objects, &bucket, "k").is_none() && objects.head(&bucket, b"k").unwrap().is_none());
    eventually("its copy goes", || site.files().0.is_empty());
    assert_eq!((site.counts().copies, site.counts().bytes), (0, 0));
    assert!(get(&*objects, &bucket, "never").is_none());
}

#[test]
fn each_read_asks_if_nothing_is_fresh() {
    let site = Site::with(MIB, |config| config.fresh = Time(std::time::Duration::ZERO));
    site.server.seed("k", b"x");
    let (bucket, objects) = (site.bucket("b", MIB), site.objects());
    for _ in 0..3 {
        assert_eq!(get(&*objects, &bucket, "k").unwrap(), b"x");
    }
    assert_eq!(site.proxy.methods(), ["GET", "HEAD", "HEAD"]);
}

#[test]
fn copies_stay_within_their_room_and_what_is_open_stays() {
    let mut site = Site::with(100_000, |_| {});
    // What is open is a file.
    site.memory_bytes_max = 0;
    site.reopen();
    for key in ["a", "b", "c", "d"] {
        site.server.seed(key, &noise(40_000, u64::from(key.as_bytes()[0])));
    }
    let objects = site.objects();
    let (wide, narrow) = (site.bucket("wide", MIB), site.bucket("narrow", 50_000));
    let is_copied = |bucket: &Bucket, key: &str| {
        site.proxy.seen();
        objects.open(bucket, key.as_bytes()).unwrap().unwrap();
        site.proxy.count() == 0
    };
    // The node's room: what was used longest ago goes.
    for key in ["a", "b", "a", "c"] {
        get(&*objects, &wide, key).unwrap();
    }
    assert_eq!((site.counts().copies, site.counts().bytes, site.counts().evicted), (2, 80_000, 1));
    assert!(is_copied(&wide, "a") && is_copied(&wide, "c") && !is_copied(&wide, "b"));
    assert!(!is_copied(&wide, "a"), "b took its place");
    // What is open stays, and if all is, there is no room: nothing wrong, nothing left behind.
    let open: Vec<_> = ["a", "b"].iter().map(|key| objects.open(&wide, key.as_bytes()).unwrap().unwrap()).collect();
    let error = objects.open(&wide, b"c").unwrap_err();
    assert!(matches!(error, DataError::StorageFull { .. }), "{error}");
    assert!(read(&open[0]) == noise(40_000, 97) && read(&open[1]) == noise(40_000, 98));
    assert_eq!(site.files().1, Vec::<PathBuf>::new());
    drop(open);
    assert!(get(&*objects, &wide, "c").unwrap() == noise(40_000, 99));
    // The bucket's own.
    for key in ["a", "d"] {
        get(&*objects, &narrow, key).unwrap();
    }
    assert!(is_copied(&narrow, "d") && !is_copied(&narrow, "a"));
    site.server.seed("large", &[1; 50_001]);
    let error = objects.open(&narrow, b"large").unwrap_err();
    assert!(matches!(error, DataError::Quota { wanted: 50_001, max: 50_000, .. }), "{error}");
    site.server.seed("large", &[1; 50_000]);
    assert_eq!(get(&*objects, &narrow, "large").unwrap().len(), 50_000);
    assert!(site.counts().bytes <= 100_000);
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
fn a_restart_keeps_copies_and_a_damaged_one_is_fetched_again() {
    let mut site = Site::new();
    let content = |key: &str| noise(100_000, key.bytes().map(u64::from).sum());
    for key in ["good", "flipped", "short", "lost"] {
        site.server.seed(key, &content(key));
    }
    let bucket = site.bucket("b", 8 * MIB);
    for key in ["good", "flipped", "short", "lost"] {
        get(&*site.objects(), &bucket, key).unwrap();
    }
    let path = |key: &str| {
        let digest = Digest::of(&content(key)).hex();
        site.dir.path().join(format!("data/cache/objects/{:0>16}/{digest}", bucket.id.to_string()))
    };
    let (flipped, short, lost) = (path("flipped"), path("short"), path("lost"));
    eventually("all rows are written", || site.data().put_bucket(&bucket.tenant, &bucket.name, bucket.spec).wait().is_ok());
    site.data = None;
    for path in [&flipped, &short] {
        let mut mode = fs::metadata(path).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o600);
        fs::set_permissions(path, mode).unwrap();
    }
    let mut bytes = fs::read(&flipped).unwrap();
    bytes[50_000] ^= 1;
    fs::write(&flipped, bytes).unwrap();
    fs::OpenOptions::new().write(true).open(&short).unwrap().set_len(99_999).unwrap();
    fs::remove_file(&lost).unwrap();
    // Half a copy from before a kill.
    fs::write(site.dir.path().join("data/cache/staging/object-7"), b"half").unwrap();
    site.reopen();
    assert_eq!(site.files().1, Vec::<PathBuf>::new());
    site.proxy.seen();
    for (key, asked) in [("good", &["HEAD"][..]), ("flipped", &["HEAD", "GET"]), ("short", &["HEAD", "GET"]), ("lost", &["GET"])]
    {
        assert!(get(&*site.objects(), &bucket, key).unwrap() == content(key), "{key}");
        assert_eq!(site.proxy.methods(), asked, "{key}");
    }
    assert_eq!((site.counts().copies, site.counts().misses), (4, 3));
    // A deleted bucket takes its copies along, and nothing at the origin.
    site.data().delete_bucket(&bucket.tenant, &bucket.name).wait().unwrap();
    eventually("no copy is left", || site.files().0.is_empty());
    assert!(site.server.path("good").exists());
}

#[test]
fn a_slow_origin_is_a_timeout() {
    let soon = Time(std::time::Duration::from_millis(300));
    let site = Site::with(MIB, |config| (config.response_timeout, config.idle_timeout) = (soon, soon));
    let bytes = noise(200_000, 3);
    site.server.seed("k", &bytes);
    let bucket = site.bucket("b", MIB);
    site.proxy.fail("GET", [Fault::Silent]);
    let why = failure(&site, &bucket, "k");
    assert_eq!(why, OriginFault::Timeout { what: "answer", limit: soon.0 });
    assert_eq!(DataError::Origin { why }.fault().code, Code::OriginTimeout);
    site.proxy.fail("GET", [Fault::Stall(100_000)]);
    assert_eq!(failure(&site, &bucket, "k"), OriginFault::Timeout { what: "further byte", limit: soon.0 });
    site.proxy.fail("HEAD", [Fault::Silent]);
    let error = site.objects().head(&bucket, b"k").unwrap_err();
    assert!(matches!(error, DataError::Origin { why: OriginFault::Timeout { .. } }), "{error}");
    // None of them is tried again.
    assert_eq!(site.proxy.methods(), ["GET", "GET", "HEAD"]);
    assert!(get(&*site.objects(), &bucket, "k").unwrap() == bytes);
}

#[test]
fn an_origin_that_drips_is_a_timeout_too() {
    let site = Site::with(MIB, |config| config.idle_timeout = Time(std::time::Duration::from_millis(400)));
    let bytes = noise(200_000, 3);
    site.server.seed("k", &bytes);
    let bucket = site.bucket("b", MIB);
    site.proxy.fail("GET", [Fault::Drip(std::time::Duration::from_millis(20))]);
    let limit = std::time::Duration::from_millis(800);
    assert_eq!(failure(&site, &bucket, "k"), OriginFault::Timeout { what: "end of the object", limit });
    assert!(get(&*site.objects(), &bucket, "k").unwrap() == bytes);
}

#[test]
fn a_scrub_finds_a_copy_that_rotted_and_it_is_fetched_again() {
    let site = Site::new();
    for (key, seed) in [("good", 1), ("rotten", 2), ("lost", 3)] {
        site.server.seed(key, &noise(100_000, seed));
    }
    let bucket = site.bucket("b", 8 * MIB);
    let content: Vec<_> = ["good", "rotten", "lost"].map(|key| get(&*site.objects(), &bucket, key).unwrap()).into();
    let good = site.data().scrub_objects(&bucket).unwrap();
    assert_eq!((good.objects, good.bytes, good.corrupt.len()), (3, 300_000, 0));
    let path = |bytes: &[u8]| {
        let folder = site.dir.path().join(format!("data/cache/objects/{:0>16}", bucket.id.to_string()));
        folder.join(Digest::of(bytes).hex())
    };
    let rotten = path(&content[1]);
    let mut mode = fs::metadata(&rotten).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o600);
    fs::set_permissions(&rotten, mode).unwrap();
    let mut bytes = fs::read(&rotten).unwrap();
    bytes[1] ^= 1;
    fs::write(&rotten, bytes).unwrap();
    fs::remove_file(path(&content[2])).unwrap();
    let found = site.data().scrub_objects(&bucket).unwrap();
    let mut corrupt: Vec<_> = found.corrupt.iter().map(|(_, key)| &key[..]).collect();
    corrupt.sort_unstable();
    assert_eq!((found.objects, corrupt), (3, vec![&b"lost"[..], b"rotten"]));
    assert_eq!(site.data().scrub_objects(&bucket).unwrap().objects, 1, "what is damaged is gone");
    for (key, content) in ["good", "rotten", "lost"].iter().zip(&content) {
        assert!(get(&*site.objects(), &bucket, key).unwrap() == *content, "{key}");
    }
}

#[test]
fn one_request_more_than_may_be_at_once_waits_and_is_refused() {
    let site = Site::with(MIB, |config| config.response_timeout = Time(std::time::Duration::from_millis(300)));
    let keys = ["1", "2", "3", "4", "5"];
    for key in keys {
        site.server.seed(key, b"ab");
    }
    let (bucket, gate) = (site.bucket("b", MIB), Gate::default());
    site.proxy.fail("GET", vec![Fault::Late(gate.clone()); REQUESTS_MAX]);
    let objects = site.objects();
    std::thread::scope(|scope| {
        let readers: Vec<_> = keys[..REQUESTS_MAX].iter().map(|key| scope.spawn(|| get(&*objects, &bucket, key))).collect();
        eventually("all places are taken", || site.proxy.count() == REQUESTS_MAX);
        let error = objects.open(&bucket, b"5").unwrap_err();
        assert!(matches!(error, DataError::Busy) && error.fault().code == Code::Overloaded, "{error}");
        gate.open();
        for reader in readers {
            assert_eq!(reader.join().unwrap().unwrap(), b"ab");
        }
    });
    assert_eq!(site.proxy.count(), REQUESTS_MAX);
    assert_eq!(get(&*objects, &bucket, "5").unwrap(), b"ab");
}

#[test]
fn an_origin_that_fails_is_asked_three_times_and_no_more() {
    let site = Site::new();
    site.server.seed("k", b"there");
    let bucket = site.bucket("b", MIB);
    for (fault, expected) in [
        (Fault::Status(500), OriginFault::Status { status: 500 }),
        (Fault::Status(503), OriginFault::Status { status: 503 }),
        (Fault::Status(429), OriginFault::Status { status: 429 }),
        (Fault::Hangup, OriginFault::Cut { found: 0, len: 0 }),
        (Fault::Cut(2), OriginFault::Cut { found: 4, len: 5 }),
    ] {
        // Two bytes of five come each time, and then none.
        let faults =
            if matches!(fault, Fault::Cut(_)) { vec![Fault::Cut(2), Fault::Cut(2), Fault::Cut(0)] } else { vec![fault; 3] };
        site.proxy.fail("GET", faults.clone());
        let why = failure(&site, &bucket, "k");
        assert_eq!((why, site.proxy.count()), (expected, 3), "{faults:?}");
        assert_eq!(DataError::Origin { why }.fault().code, Code::OriginFailed);
        site.proxy.seen();
    }
    site.proxy.fail("GET", [Fault::Status(500), Fault::Hangup]);
    assert_eq!(get(&*site.objects(), &bucket, "k").unwrap(), b"there");
    assert_eq!(site.proxy.count(), 3);
}

#[test]
fn an_origin_that_refuses_is_asked_once() {
    let site = Site::new();
    site.server.seed("k", b"there");
    let bucket = site.bucket("b", MIB);
    for (fault, expected) in [
        (Fault::Status(403), OriginFault::Denied { status: 403 }),
        (Fault::Status(401), OriginFault::Denied { status: 401 }),
        (Fault::Status(400), OriginFault::Status { status: 400 }),
        (Fault::Status(204), OriginFault::Nonsense { what: "an answer that cannot be read" }),
    ] {
        site.proxy.fail("GET", [fault]);
        assert_eq!((failure(&site, &bucket, "k"), site.proxy.methods()), (expected, vec!["GET".to_owned()]));
    }
    site.proxy.fail("GET", [Fault::Status(404)]);
    assert!(get(&*site.objects(), &bucket, "k").is_none());
    // A key that the store does not know: its own answer, with its own words.
    let wrong = site.dir.path().join("wrong");
    fs::write(&wrong, format!("aws_access_key_id = {KEY_ID}\naws_secret_access_key = x{SECRET}\n")).unwrap();
    let data = site.open("wrong-key", vec![hob::config::Origin { key_file: Some(wrong), ..site.config.clone() }]);
    let error = data.objects(Durability::Durable).open(&bucket_of(&data), b"k").unwrap_err();
    assert!(matches!(error, DataError::Origin { why: OriginFault::Denied { status: 403 } }), "{error}");
    assert_secret(&site, &error);
}

#[test]
fn no_redirect_is_followed() {
    let site = Site::new();
    site.server.seed("k", b"there");
    let bucket = site.bucket("b", MIB);
    let elsewhere = Proxy::start(site.server.addr);
    for status in [301, 302, 307, 308] {
        site.proxy.fail("GET", [Fault::Redirect(status, format!("http://{}/{BUCKET}/k", elsewhere.addr))]);
        assert_eq!(failure(&site, &bucket, "k"), OriginFault::Status { status });
    }
    assert_eq!(elsewhere.count(), 0);
}

#[test]
fn a_wrong_length_is_an_error() {
    let site = Site::new();
    site.server.seed("k", &noise(100_000, 4));
    let bucket = site.bucket("b", MIB);
    site.proxy.fail("GET", [Fault::Length(-1)]);
    assert_eq!(failure(&site, &bucket, "k"), OriginFault::Length { len: 100_000, found: 99_999 });
    site.proxy.fail("GET", [Fault::Length(1)]);
    assert!(matches!(failure(&site, &bucket, "k"), OriginFault::Nonsense { .. }));
    site.proxy.fail("GET", [Fault::Without("content-range")]);
    assert!(matches!(failure(&site, &bucket, "k"), OriginFault::Nonsense { .. }));
    site.proxy.fail("GET", [Fault::Without("etag")]);
    assert!(matches!(failure(&site, &bucket, "k"), OriginFault::Nonsense { .. }));
    assert_eq!(site.proxy.count(), 4);
    assert!(get(&*site.objects(), &bucket, "k").unwrap() == noise(100_000, 4));
}

#[test]
fn a_cut_is_taken_up_where_it_was_unless_the_object_is_another() {
    let site = Site::new();
    let (old, new) = (noise(100_000, 5), noise(100_000, 6));
    site.server.seed("k", &old);
    let bucket = site.bucket("b", MIB);
    site.proxy.fail("GET", [Fault::Cut(30_000), Fault::Cut(30_000)]);
    assert!(get(&*site.objects(), &bucket, "k").unwrap() == old);
    assert_eq!((site.proxy.methods().len(), site.counts().fetched_bytes), (3, 100_000));
    site.data().delete_bucket(&bucket.tenant, &bucket.name).wait().unwrap();
    eventually("no copy is left", || site.files().0.is_empty());
    // Replaced, removed, or of another length between the two halves.
    let bucket = site.bucket("b", MIB);
    for replace in [&(|| site.server.seed("k", &new)) as &dyn Fn(), &|| fs::remove_file(site.server.path("k")).unwrap(), &|| {
        site.server.seed("k", &old[..99_000])
    }] {
        site.server.seed("k", &old);
        let gate = Gate::default();
        site.proxy.fail("GET", [Fault::Cut(50_000), Fault::Hold(gate.clone())]);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| failure(&site, &bucket, "k"));
            eventually("the second half is asked for", || site.proxy.count() == 2);
            replace();
            gate.open();
            assert_eq!(reader.join().unwrap(), OriginFault::Changed);
        });
        site.proxy.seen();
    }
    assert_eq!(get(&*site.objects(), &bucket, "k").unwrap(), &old[..99_000]);
}

#[test]
fn an_origin_that_nobody_answers_at_cannot_be_reached() {
    let site = Site::new();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = Some(format!("http://{nobody}"));
    let data = site.open("nobody", vec![hob::config::Origin { endpoint, ..site.config.clone() }]);
    let error = data.objects(Durability::Durable).open(&bucket_of(&data), b"k").unwrap_err();
    assert!(matches!(error, DataError::Origin { why: OriginFault::Unreachable }), "{error}");
    assert_secret(&site, &error);
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
                assert!(head.len > 0);
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
fn only_what_the_operator_opened_is_an_origin() {
    let mut site = Site::with(MIB, |config| config.url = url("s3://photos/open"));
    let data = site.data();
    let refused = |error: DataError| {
        assert!(matches!(error, DataError::Invalid { .. }) && error.to_string().contains("[[origin]]"), "{error}");
        assert_eq!(error.fault().code, Code::BadRequest);
    };
    for closed in ["s3://photos", "s3://photos/opened", "s3://photos/closed", "s3://other/open", "s3://127.0.0.1"] {
        refused(bucket(data, "b", MIB, closed).unwrap_err());
        assert!(data.bucket(&TenantId::default(), &"b".parse().unwrap()).unwrap().is_none());
    }
    let made = bucket(data, "b", MIB, "s3://photos/open/deep").unwrap();
    assert_eq!(made.origin, Some(url("s3://photos/open/deep")));
    // What it comes from stays.
    let exists = |error: DataError| assert!(matches!(error, DataError::BucketExists { .. }), "{error}");
    exists(bucket(data, "b", MIB, "s3://photos/open").unwrap_err());
    let (tenant, name, plain) = (TenantId::default(), "b".parse().unwrap(), BucketSpec::new(Durability::Durable));
    let (kept, is_new) = data.put_bucket(&tenant, &name, plain).wait().unwrap();
    assert_eq!((kept.origin, kept.spec, is_new), (made.origin.clone(), plain, false));
    data.put_bucket(&tenant, &"plain".parse().unwrap(), plain).wait().unwrap();
    exists(bucket(data, "plain", MIB, "s3://photos/open").unwrap_err());
    let volatile = BucketSpec::new(Durability::Volatile);
    let error = data.put_bucket_of(&tenant, &"v".parse().unwrap(), volatile, made.origin.as_ref()).wait().unwrap_err();
    assert!(matches!(error, DataError::Invalid { .. }), "{error}");
    // Its entries are as any bucket's.
    data.kv(&made).unwrap();
    // When it is closed again, the bucket is there and its objects are not.
    site.server.seed("open/deep/k", b"x");
    assert_eq!(get(&*site.objects(), &made, "k").unwrap(), b"x");
    site.config.url = url("s3://photos/other");
    site.reopen();
    refused(site.objects().open(&made, b"k").unwrap_err());
    refused(site.objects().list(&made, b"", None, 1).unwrap_err());
    site.data = None;
    let data = site.open("data", Vec::new());
    refused(data.objects(Durability::Durable).open(&made, b"k").unwrap_err());
    assert_eq!(data.buckets(&TenantId::default(), None, 10).unwrap()[0].origin, made.origin);
}

#[test]
fn a_key_file_is_read_or_the_node_does_not_start() {
    let site = Site::new();
    let path = site.dir.path().join("bad");
    for bad in [
        "",
        "aws_access_key_id = a",
        "aws_access_key_id = a\naws_secret_access_key =",
        "aws_access_key_id = a\naws_secret_access_key = thesecret\nmore = b",
        "[a]\naws_access_key_id = a\naws_secret_access_key = thesecret\n[b]",
        "aws_access_key_id = a\naws_access_key_id = a\naws_secret_access_key = thesecret",
        "aws_access_key_id = a\naws_secret_access_key = thesecret\u{e9}",
        "thesecret",
    ] {
        fs::write(&path, bad).unwrap();
        let opened = vec![hob::config::Origin { key_file: Some(path.clone()), ..site.config.clone() }];
        let origins = Origins { opened, cache: site.cache, memory_bytes_max: MIB, requests_max: 1 };
        let error = Data::open_with(&site.dir.path().join("bad-data"), sizes(), &origins, Clock::system()).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("key_file") && text.contains("aws_secret_access_key") && !text.contains("thesecret"), "{text}");
    }
}

#[test]
fn a_manifest_names_what_the_operator_opened_and_nothing_else() {
    let node = Node::start(&[]);
    let wasm = crate::harness::wat::wasm(&crate::harness::wat::handler(r#"(func (export "hob_handle"))"#));
    let reply = node.deploy("f", &wasm, "[[bucket]]\nname = 'b'\norigin = 's3://photos'\n");
    let problem = reply.problem(400, "bad-request");
    assert!(problem["detail"].as_str().unwrap().contains("[[origin]]"), "{problem}");
    let reply = node.deploy("f", &wasm, "[[bucket]]\nname = 'b'\norigin = 'http://169.254.169.254/latest'\n");
    reply.problem(400, "bad-manifest");
    assert!(!Path::new(&node.data_dir()).join("data/cache").exists());
}

#[test]
fn the_api_makes_puts_and_gets() {
    let (server, dir) = (Server::start(), Arc::new(tempfile::tempdir().unwrap()));
    let (key_file, config) = (dir.path().join("key"), dir.path().join("hob.toml"));
    fs::write(&key_file, format!("aws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n")).unwrap();
    let text = format!("[[origin]]\nurl = 's3://{BUCKET}/pre'\nendpoint = 'http://{}'\nkey_file = {key_file:?}\n", server.addr);
    fs::write(&config, text).unwrap();
    let mut command = crate::harness::serve(&crate::harness::data_dir(&dir));
    command.arg("--config").arg(config);
    let node = Node::run(command, dir).unwrap();
    let define = |name: &str, origin: &str| {
        let body = format!("{{\"origin\":\"{origin}\"}}");
        node.control.request("PUT", &format!("/v1/buckets/{name}"), &[], body.as_bytes())
    };
    define("photos", "s3://photos").problem(400, "bad-request");
    define("photos", "http://127.0.0.1").problem(400, "bad-request");
    let made = define("photos", "s3://photos/pre");
    assert_eq!((made.status(), made.json()["origin"].as_str()), (201, Some("s3://photos/pre")));
    define("photos", "s3://photos/pre/deep").problem(409, "conflict");
    let path = "/v1/buckets/photos/objects/a%2Fb";
    let put = node.control.request("PUT", path, &[("content-type", "text/plain")], b"through");
    assert_eq!(put.status(), 201, "{}", put.text());
    assert_eq!(fs::read(server.path("pre/a/b")).unwrap(), b"through");
    let got = node.control.get(path).ok();
    assert_eq!(
        (got.text().as_str(), got.header("etag"), got.header("content-type")),
        ("through", put.header("etag"), Some("text/plain"))
    );
    // SHA-256 of the bytes, which is not the ETag here.
    assert_eq!(got.header("repr-digest"), Some(format!("sha-256=:{}:", base64_of_sha256(b"through")).as_str()));
    server.seed("pre/there", b"theirs");
    assert_eq!(node.control.get("/v1/buckets/photos/objects/there").ok().text(), "theirs");
    assert_eq!((node.metric("hob_origin_misses_total"), node.metric("hob_origin_fetched_bytes_total")), (1, 6));
    assert!(!node.stderr().contains(SECRET) && !node.stderr().contains(KEY_ID));
}

/// As `repr-digest` writes it.
fn base64_of_sha256(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digest = Digest::of(bytes);
    let triples = digest
        .bytes()
        .chunks(3)
        .map(|three| (three.len(), three.iter().chain(&[0; 2]).take(3).fold(0, |sum, b| sum << 8 | usize::from(*b))));
    let digits = triples.flat_map(|(len, sum)| {
        (0..4).map(move |place| if place <= len { char::from(DIGITS[sum >> (18 - 6 * place) & 63]) } else { '=' })
    });
    digits.collect()
}

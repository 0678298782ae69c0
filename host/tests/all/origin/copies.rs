//! Copies: fetched once, asked about, kept within their room on disk and in memory, and never wrong.

use std::fs;
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use hob::config::Time;
use hob::data::{Bucket, DataError};
use hob::id::Digest;

use super::store::{Fault, Gate};
use super::{MIB, Site, get, noise, read};
use crate::harness::eventually;

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

//! Origins that are slow, fail, refuse, cut, lie or change: an error, and nothing is left.

use std::fs;

use hob::bucket::Durability;
use hob::config::Time;
use hob::data::{Bucket, DataError, OriginFault};
use hob::fault::Code;

use super::store::{Fault, Gate, KEY_ID, Proxy, SECRET};
use super::{BUCKET, MIB, REQUESTS_MAX, Site, assert_secret, bucket_of, get, noise};
use crate::harness::eventually;

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

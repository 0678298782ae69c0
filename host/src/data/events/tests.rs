//! Events as `Data` writes, bounds, keeps and removes them.

use super::testing::*;
use super::*;
use crate::bucket::{BucketSpec, Durability};
use crate::data::kv::{Op, When};
use crate::fault::Code;

const NONE: Vec<String> = Vec::new();

fn delete(key: &str) -> Op {
    Op::Delete { key: Bytes::copy_from_slice(key.as_bytes()), when: When::Always }
}

fn lane_of(function: &str, bucket: &Bucket) -> Lane {
    Lane { id: bucket.id, tenant: bucket.tenant.clone(), ..lane(function, bucket.name.as_str()) }
}

#[test]
fn who_wants_a_change_is_told_of_it_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir, 100);
    let (uploads, other) = (bucket(&data, "uploads"), bucket(&data, "other"));
    let theirs = bucket_of(&data, &"them".parse().unwrap(), "uploads");
    want(&data, "puts", &[trigger(On::ObjectPut, "uploads", "in/")]);
    want(&data, "keys", &[trigger(On::KeyChange, "uploads", ""), trigger(On::KeyChange, "uploads", "in/")]);
    for bucket in [&uploads, &other, &theirs] {
        put(&data, bucket, "in/a").unwrap();
        put(&data, bucket, "out/a").unwrap();
        put(&data, bucket, "in/b").unwrap();
        put(&data, bucket, "in/a").unwrap();
        write(&data, bucket, vec![set("x"), set("in/y"), Op::Increment { key: Bytes::from_static(b"n"), by: 1 }]).unwrap();
        write(&data, bucket, vec![delete("x"), delete("missing"), set("z"), delete("z")]).unwrap();
        let refused = Op::Set { key: Bytes::from_static(b"w"), value: Bytes::new(), ttl: None, when: When::Version(1) };
        assert!(write(&data, bucket, vec![set("v"), refused]).is_err());
    }
    assert_eq!(waiting(&data, "puts", &uploads), ["in/a", "in/b", "in/a"]);
    // Of a batch in the order of keys; once, though two triggers match.
    assert_eq!(waiting(&data, "keys", &uploads), ["in/y", "n", "x", "x"]);
    for function in ["puts", "keys"] {
        assert_eq!((waiting(&data, function, &other), waiting(&data, function, &theirs)), (NONE, NONE));
    }
    let lanes = data.events().take_due();
    assert_eq!(lanes, [lane_of("puts", &uploads), lane_of("keys", &uploads)].into());
    assert_eq!(data.outbox().waiting().unwrap(), 7);
    let events: Vec<_> = data.outbox().read(&lane_of("keys", &uploads), 0, 10).unwrap();
    let changes: Vec<_> = events.iter().map(|waiting| waiting.event.clone().unwrap().change).collect();
    assert!(matches!(changes[..], [Change::Set { version: 6 }, Change::Set { .. }, Change::Set { version: 5 }, Change::Deleted]));
    let put = data.outbox().read(&lane_of("puts", &uploads), 0, 1).unwrap()[0].event.clone().unwrap();
    let Change::Put { version: 1, etag, len: 4, content_type } = put.change else { panic!("{put:?}") };
    assert_eq!((etag, content_type.as_str()), (Digest::of(b"in/a"), "text/plain"));
    let numbers: Vec<_> = events.iter().map(|waiting| waiting.number).collect();
    assert!(numbers.is_sorted() && numbers[0] > put.number, "{numbers:?}");
}

#[test]
fn an_event_survives_until_it_is_settled() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir, 100);
    let uploads = bucket(&data, "uploads");
    let triggers = [trigger(On::ObjectPut, "uploads", "")];
    for function in ["a", "gone"] {
        want(&data, function, &triggers);
    }
    for key in ["1", "2", "3"] {
        put(&data, &uploads, key).unwrap();
    }
    let lane = lane_of("a", &uploads);
    assert!(data.outbox().settle(&lane, 2).wait().unwrap());
    assert!(!data.outbox().settle(&lane, 2).wait().unwrap());
    drop(data);
    let data = open(&dir, 100);
    assert!(data.events().take_due().is_empty());
    data.outbox().begin(&[(TenantId::default(), "a".parse().unwrap(), triggers.to_vec())]).unwrap();
    assert_eq!(data.events().take_due(), [lane.clone()].into());
    assert_eq!((waiting(&data, "a", &uploads), waiting(&data, "gone", &uploads)), (vec!["1".into(), "3".into()], NONE));
    assert_eq!(data.outbox().waiting().unwrap(), 2);
    put(&data, &uploads, "4").unwrap();
    let last = data.outbox().read(&lane, 3, 10).unwrap();
    assert_eq!(last.iter().map(|waiting| waiting.number).collect::<Vec<_>>(), [4]);
}

#[test]
fn a_damaged_count_is_counted_anew_when_an_event_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir, 100);
    let uploads = bucket(&data, "uploads");
    let triggers = [trigger(On::ObjectPut, "uploads", "")];
    for function in ["a", "gone"] {
        want(&data, function, &triggers);
    }
    for key in ["1", "2"] {
        put(&data, &uploads, key).unwrap();
    }
    let id = uploads.id;
    let damage = move |txn: &WriteTransaction, _: u64| {
        txn.open_table(outbox::OUTBOXES).unwrap().insert(id.0, &b"no numbers"[..]).unwrap();
        Ok(((), Commit::Yes))
    };
    data.store.remove(100, damage).wait().unwrap();
    assert!(matches!(put(&data, &uploads, "3"), Err(DataError::DamagedRow { .. })));
    assert_eq!(data.outbox().waiting().unwrap(), 0);
    drop(data);
    // The start removes what waits for functions that are gone.
    let data = open(&dir, 100);
    data.outbox().begin(&[(TenantId::default(), "a".parse().unwrap(), triggers.to_vec())]).unwrap();
    assert_eq!(data.outbox().waiting().unwrap(), 2);
    put(&data, &uploads, "3").unwrap();
    let numbers: Vec<_> =
        data.outbox().read(&lane_of("a", &uploads), 0, 10).unwrap().iter().map(|waiting| waiting.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
}

#[test]
fn a_change_whose_event_has_no_room_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir, 4);
    let (uploads, other) = (bucket(&data, "uploads"), bucket(&data, "other"));
    // Two functions, so each event counts twice.
    for function in ["a", "b"] {
        want(&data, function, &[trigger(On::KeyChange, "uploads", "k"), trigger(On::ObjectPut, "uploads", "")]);
    }
    write(&data, &uploads, vec![set("k1")]).unwrap();
    assert!(write(&data, &uploads, vec![set("x"), set("k2"), set("k3")]).is_err(), "six are too many");
    put(&data, &uploads, "o").unwrap();
    for refused in
        [write(&data, &uploads, vec![set("k2")]), write(&data, &uploads, vec![delete("k1")]), put(&data, &uploads, "p")]
    {
        let error = refused.unwrap_err();
        assert_eq!(error.fault().code, Code::QuotaExceeded);
        assert!(error.to_string().contains("6 events that wait for a function would be in it and at most 4 may"), "{error}");
        assert!(error.to_string().contains("data.events_max"), "{error}");
    }
    let kv = data.kv(&uploads).unwrap();
    assert!(!kv.exists(b"x").unwrap() && !kv.exists(b"k2").unwrap() && kv.exists(b"k1").unwrap());
    assert!(data.objects(Durability::Durable).head(&uploads, b"p").unwrap().is_none());
    // What makes no event goes on.
    write(&data, &uploads, vec![set("x")]).unwrap();
    write(&data, &other, vec![set("k")]).unwrap();
    for function in ["a", "b"] {
        assert!(data.outbox().settle(&lane_of(function, &uploads), 1).wait().unwrap());
    }
    write(&data, &uploads, vec![set("k2")]).unwrap();
    assert_eq!(waiting(&data, "a", &uploads), ["o", "k2"]);
}

#[test]
fn who_wants_no_more_keeps_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir, 10_000);
    let (one, two) = (bucket(&data, "one"), bucket(&data, "two"));
    let both = [trigger(On::KeyChange, "one", ""), trigger(On::KeyChange, "two", "")];
    want(&data, "f", &both);
    want(&data, "ff", &both[..1]);
    let keys = |count: usize| (0..count).map(|n| set(&format!("k{n:04}"))).collect::<Vec<_>>();
    // More than one removal takes.
    for batch in keys(PURGE_MAX + 1).chunks(1000) {
        write(&data, &one, batch.to_vec()).unwrap();
    }
    write(&data, &two, keys(3)).unwrap();
    assert_eq!(want(&data, "f", &both[1..]), PURGE_MAX as u64 + 1);
    assert_eq!((waiting(&data, "f", &one).len(), waiting(&data, "f", &two).len()), (0, 3));
    assert_eq!(waiting(&data, "ff", &one).len(), PURGE_MAX + 1);
    let event = data.outbox().read(&lane_of("ff", &one), 0, 1).unwrap()[0].event.clone().unwrap();
    assert!(data.events().trigger(&lane_of("ff", &one), &event).is_some());
    assert_eq!(want(&data, "ff", &[]), PURGE_MAX as u64 + 1);
    assert!(data.events().trigger(&lane_of("ff", &one), &event).is_none());
    assert_eq!(want(&data, "f", &[]), 3);
    assert_eq!(data.outbox().waiting().unwrap(), 0);
    write(&data, &one, keys(1)).unwrap();
    write(&data, &two, keys(1)).unwrap();
    assert_eq!(data.outbox().waiting().unwrap(), 0);
}

#[test]
fn a_bucket_that_triggers_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir, 10);
    let tenant = TenantId::default();
    let spec = BucketSpec { durability: Durability::Volatile, bytes_max: 1000, keys_max: 10 };
    let volatile = |name: &str| data.put_bucket(&tenant, &name.parse().unwrap(), spec).wait();
    volatile("memory").unwrap();
    bucket(&data, "disk");
    let check = |trigger: Trigger| data.check_triggers(&tenant, &[trigger], &[]);
    let good = trigger(On::ObjectPut, "disk", "");
    check(good.clone()).unwrap();
    for bad in [trigger(On::ObjectPut, "memory", ""), Trigger { dead_letter: Some("memory".parse().unwrap()), ..good.clone() }] {
        let error = check(bad).unwrap_err();
        assert!(matches!(error, DataError::Invalid { .. }) && error.to_string().contains("'memory' is volatile"), "{error}");
    }
    for bad in [trigger(On::ObjectPut, "none", ""), Trigger { dead_letter: Some("none".parse().unwrap()), ..good }] {
        assert!(matches!(check(bad).unwrap_err(), DataError::NoSuchBucket { .. }));
    }
    want(&data, "f", &[trigger(On::ObjectPut, "later", "")]);
    let error = volatile("later").unwrap_err();
    assert_eq!(error.fault().code, Code::BadRequest, "{error}");
    want(&data, "f", &[Trigger { dead_letter: Some("dead".parse().unwrap()), ..trigger(On::KeyChange, "later", "") }]);
    for name in ["later", "dead"] {
        assert_eq!(volatile(name).unwrap_err().fault().code, Code::BadRequest, "{name}");
    }
    want(&data, "f", &[]);
    volatile("later").unwrap();
}

#[test]
fn a_bucket_whose_objects_trigger_gets_no_origin() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir, 10);
    let uploads = bucket(&data, "uploads");
    let refusal = |on| {
        want(&data, "f", &[trigger(on, "uploads", "")]);
        data.delete_bucket(&uploads.tenant, &uploads.name).wait().unwrap();
        let origin = "s3://b".parse().unwrap();
        data.put_bucket_of(&uploads.tenant, &uploads.name, uploads.spec, Some(&origin)).wait().unwrap_err().to_string()
    };
    assert!(refusal(On::ObjectPut).contains("expected a bucket without an origin"));
    assert!(refusal(On::KeyChange).contains("is not open on this node"));
}

#[test]
fn what_is_given_up_is_in_one_place_or_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir, 10);
    let uploads = bucket(&data, "uploads");
    let spec = BucketSpec { durability: Durability::Durable, bytes_max: 10, keys_max: 1 };
    let dead = data.put_bucket(&uploads.tenant, &"dead".parse().unwrap(), spec).wait().unwrap().0;
    // Nobody is told of what lies in there.
    want(&data, "f", &[trigger(On::ObjectPut, "uploads", ""), trigger(On::KeyChange, "dead", "")]);
    put(&data, &uploads, "a").unwrap();
    put(&data, &uploads, "b").unwrap();
    let lane = lane_of("f", &uploads);
    let bury = |number, key: &'static str| data.bury(&lane, number, &dead, key.into(), Bytes::from_static(b"v")).wait();
    bury(1, "f/1").unwrap();
    assert_eq!(waiting(&data, "f", &uploads), ["b"]);
    assert_eq!(data.kv(&dead).unwrap().get(b"f/1").unwrap().unwrap().value, "v");
    assert!(matches!(bury(2, "f/2").unwrap_err(), DataError::Quota { .. }));
    assert_eq!(waiting(&data, "f", &uploads), ["b"]);
    assert_eq!(waiting(&data, "f", &dead), NONE);
    assert_eq!(data.outbox().waiting().unwrap(), 1);
}

#[test]
fn events_of_a_bucket_that_is_gone_are_not_those_of_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir, 10);
    let first = bucket(&data, "b");
    want(&data, "f", &[trigger(On::KeyChange, "b", "")]);
    write(&data, &first, vec![set("a")]).unwrap();
    data.delete_bucket(&first.tenant, &first.name).wait().unwrap();
    let second = bucket(&data, "b");
    write(&data, &second, vec![set("b")]).unwrap();
    assert_eq!((waiting(&data, "f", &first), waiting(&data, "f", &second)), (vec!["a".into()], vec!["b".into()]));
    assert!(data.outbox().settle(&lane_of("f", &first), 1).wait().unwrap());
    assert_eq!(data.outbox().waiting().unwrap(), 1);
}

#[test]
fn whoever_listens_hears_of_what_was_committed_before_and_after() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir, 10);
    let b = bucket(&data, "b");
    want(&data, "f", &[trigger(On::KeyChange, "b", "")]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    write(&data, &b, vec![set("a")]).unwrap();
    runtime.block_on(data.events().changed());
    assert_eq!(data.events().take_due().len(), 1);
    std::thread::scope(|scope| {
        scope.spawn(|| write(&data, &b, vec![set("b")]).unwrap());
        runtime.block_on(data.events().changed());
    });
    assert_eq!((data.events().take_due().len(), waiting(&data, "f", &b).len()), (1, 2));
}

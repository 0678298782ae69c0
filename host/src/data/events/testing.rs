//! What tests of events make.

use super::*;
use crate::bucket::{BucketSpec, Durability};
use crate::data::kv::{Op, When};
use crate::data::objects::PutOptions;
use crate::data::{Clock, Data, DataConfig};

/// A lane that no bucket has.
pub(crate) fn lane(function: &str, bucket: &str) -> Lane {
    let (tenant, function) = (TenantId::default(), function.parse().unwrap());
    Lane { tenant, function, bucket: bucket.parse().unwrap(), id: BucketId(u64::MAX) }
}

/// A trigger with the prefix, which tries once.
pub(crate) fn trigger(on: On, bucket: &str, prefix: &str) -> Trigger {
    Trigger { on, bucket: bucket.parse().unwrap(), prefix: prefix.into(), attempts: 1, dead_letter: None }
}

pub(crate) fn open(dir: &tempfile::TempDir, events_max: u64) -> Data {
    Data::open(&dir.path().join("data"), DataConfig { events_max, ..DataConfig::default() }, Clock::system()).unwrap()
}

/// A durable bucket, made if it is missing.
pub(crate) fn bucket_of(data: &Data, tenant: &TenantId, name: &str) -> Bucket {
    data.put_bucket(tenant, &name.parse().unwrap(), BucketSpec::new(Durability::Durable)).wait().unwrap().0
}

pub(crate) fn bucket(data: &Data, name: &str) -> Bucket {
    bucket_of(data, &TenantId::default(), name)
}

pub(crate) fn want(data: &Data, function: &str, triggers: &[Trigger]) -> u64 {
    data.outbox().want(&TenantId::default(), &function.parse().unwrap(), triggers).unwrap()
}

pub(crate) fn set(key: &str) -> Op {
    let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::from_static(b"v"));
    Op::Set { key, value, ttl: None, when: When::Always }
}

pub(crate) fn write(data: &Data, bucket: &Bucket, ops: Vec<Op>) -> Result<(), DataError> {
    data.kv(bucket).unwrap().write(ops).wait().map(drop)
}

pub(crate) fn put(data: &Data, bucket: &Bucket, key: &str) -> Result<(), DataError> {
    let options = PutOptions { content_type: "text/plain".into(), ..PutOptions::default() };
    let mut upload = data.objects(Durability::Durable).put(bucket, key.as_bytes(), options)?;
    upload.write(key.as_bytes())?;
    upload.finish().wait().map(drop)
}

/// What waits for a function, by its keys, in order.
pub(crate) fn waiting(data: &Data, function: &str, bucket: &Bucket) -> Vec<String> {
    let lane = Lane { id: bucket.id, tenant: bucket.tenant.clone(), ..lane(function, bucket.name.as_str()) };
    let found = data.outbox().read(&lane, 0, usize::MAX).unwrap();
    found.into_iter().map(|waiting| String::from_utf8(waiting.event.unwrap().key.to_vec()).unwrap()).collect()
}

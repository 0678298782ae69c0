//! The traits of `hob::data` as doors: what all others stand before.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hob::data::kv::{Done, Entry, KeyValue, Op, When};
use hob::data::objects::{self, Objects, PutOptions};
use hob::data::{Bucket, Data, DataError};

use crate::harness::doors::{Entries, Files, Known, Said};

/// One bucket of a [`Data`].
pub(crate) struct Direct<'a> {
    data: &'a Data,
    bucket: Bucket,
    objects: Arc<dyn Objects>,
}

impl<'a> Direct<'a> {
    pub(crate) fn new(data: &'a Data, bucket: Bucket) -> Self {
        Self { data, objects: data.objects(bucket.spec.durability), bucket }
    }

    fn kv(&self) -> Arc<dyn KeyValue> {
        self.data.kv(&self.bucket).unwrap()
    }

    fn one(&self, op: Op) -> Said<Done> {
        Ok(self.batch(&[op])?[0])
    }
}

fn words(error: DataError) -> String {
    error.fault().detail.into_owned()
}

impl Entries for Direct<'_> {
    fn entry(&self, key: &[u8]) -> Said<Option<Entry>> {
        self.kv().get(key).map_err(words)
    }
    fn has(&self, key: &[u8]) -> Said<bool> {
        self.kv().exists(key).map_err(words)
    }
    fn values(&self, keys: &[&[u8]]) -> Said<Vec<Option<Vec<u8>>>> {
        let found = self.kv().get_many(keys).map_err(words)?;
        found.into_iter().map(|entry| Ok(entry.map_err(words)?.map(|entry| entry.value.to_vec()))).collect()
    }
    fn put(&self, key: &[u8], value: &[u8], ttl: Option<Duration>, when: When) -> Said<u64> {
        let op = Op::Set { key: Bytes::copy_from_slice(key), value: Bytes::copy_from_slice(value), ttl, when };
        match self.one(op)? {
            Done::Set { version } => Ok(version),
            other => panic!("{other:?}"),
        }
    }
    fn remove(&self, key: &[u8]) -> Said<bool> {
        match self.one(Op::Delete { key: Bytes::copy_from_slice(key), when: When::Always })? {
            Done::Deleted { found } => Ok(found),
            other => panic!("{other:?}"),
        }
    }
    fn add(&self, key: &[u8], by: i64) -> Said<i64> {
        match self.one(Op::Increment { key: Bytes::copy_from_slice(key), by })? {
            Done::Incremented { value, .. } => Ok(value),
            other => panic!("{other:?}"),
        }
    }
    fn batch(&self, ops: &[Op]) -> Said<Vec<Done>> {
        self.kv().write(ops.to_vec()).wait().map_err(words)
    }
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, by: usize) -> Said<Vec<Vec<u8>>> {
        let mut keys = Vec::new();
        let mut after = after.map(Bytes::copy_from_slice);
        loop {
            let page = self.kv().scan(prefix, after.as_deref(), by).map_err(words)?;
            assert!(page.entries.len() <= by);
            keys.extend(page.entries.iter().map(|(key, _)| key.to_vec()));
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(keys),
            }
        }
    }
}

impl From<objects::Head> for Known {
    fn from(head: objects::Head) -> Self {
        let objects::Head { etag, len, version, expires_ms, content_type, metadata, .. } = head;
        Self { etag, len, version, expires_ms, content_type, metadata }
    }
}

impl Files for Direct<'_> {
    fn write(&self, key: &[u8], bytes: &[u8], options: &PutOptions) -> Said<Known> {
        let mut upload = self.objects.put(&self.bucket, key, options.clone()).map_err(words)?;
        bytes.chunks(40_000).try_for_each(|piece| upload.write(piece)).map_err(words)?;
        upload.finish().wait().map(Known::from).map_err(words)
    }
    fn known(&self, key: &[u8]) -> Said<Option<Known>> {
        Ok(self.objects.head(&self.bucket, key).map_err(words)?.map(Known::from))
    }
    fn read(&self, key: &[u8], from: u64, to: u64) -> Said<Option<Vec<u8>>> {
        let Some(opened) = self.objects.open(&self.bucket, key).map_err(words)? else { return Ok(None) };
        let mut bytes = vec![0xee; to.min(opened.head().len).saturating_sub(from) as usize];
        let count = opened.read_at(from, &mut bytes).map_err(words)?;
        assert_eq!(count, bytes.len());
        Ok(Some(bytes))
    }
    fn remove(&self, key: &[u8], when: objects::When) -> Said<bool> {
        Ok(self.objects.delete(&self.bucket, key, when).wait().map_err(words)?.is_some())
    }
    fn list(&self, prefix: &[u8], after: Option<&[u8]>, by: usize) -> Said<Vec<Vec<u8>>> {
        let mut keys = Vec::new();
        let mut after = after.map(Bytes::copy_from_slice);
        loop {
            let page = self.objects.list(&self.bucket, prefix, after.as_deref(), by).map_err(words)?;
            assert!(page.objects.len() <= by);
            keys.extend(page.objects.iter().map(|(key, _)| key.to_vec()));
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(keys),
            }
        }
    }
    fn is_of_origin(&self) -> bool {
        self.bucket.origin.is_some()
    }
}

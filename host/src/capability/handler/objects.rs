//! Objects of buckets for handlers: the calls `object_*` and `upload_*` of `hob1`.
//!
//! ```text
//! object_open ──> handle, head ──> object_read, … ──> object_close
//! object_put  ──> handle ──> upload_write, … ──> upload_finish ──> head      visible only then
//! ```
//!
//! What may wait for the disk (puts, first openings, bytes that are not in memory) runs on threads that may block; the guest waits, and
//! others run. Owns what an instance has open (`objects/uploads.rs` what it puts, `objects/records.rs` the records). Knows nothing about who may do what (`capability/data.rs`), how
//! objects are kept (`data`), or how they are mapped (`mapping.rs`). Invariant: a guest that ends leaves nothing open and nothing half
//! put, wherever it was.

mod records;
mod uploads;

use std::sync::Arc;

use wasmtime::{Caller, Linker, Result};

use self::records::{head_len, put_head};
use self::uploads::{Uploading, object_put, upload_drop, upload_finish, upload_write};
use super::data::{Errno, deliver};
use super::{MODULE, span, spans};
use crate::capability::data::{AccessError, OpenBucket};
use crate::capability::descriptors::Descriptor;
use crate::capability::{Host, Refusal, blocking};
use crate::data::DataError;
use crate::data::objects::{Head, KEY_BYTES_MAX, OpenNow, Opened, Page, Place, When};
use crate::grants::Access;
use crate::id::Digest;

/// Objects that one instance may have open.
const OBJECTS_MAX: usize = 64;
/// Most bytes that one `object_read` gives: what a data thread copies at once, or the host holds for a guest that waits.
const READ_BYTES_MAX: u32 = 1 << 20;
/// Letting go of a longer object may take long: its key may be gone, and its memory with it.
const CLOSE_BYTES_MAX: u64 = 1 << 20;

/// What an instance has open of objects.
#[derive(Debug, Default)]
pub(super) struct ObjectState {
    open: Vec<Option<Reading>>,
    uploads: Vec<Option<Uploading>>,
}

/// An open object.
#[derive(Debug)]
struct Reading {
    opened: Arc<Opened>,
    #[expect(dead_code, reason = "it is held, not read")]
    descriptor: Option<Descriptor>,
}

impl Drop for ObjectState {
    fn drop(&mut self) {
        for reading in self.open.drain(..).flatten() {
            match reading.is_quick() {
                true => drop(reading),
                false => blocking::discard(reading),
            }
        }
    }
}

impl Reading {
    /// Whether closing it takes no longer than a host call may.
    fn is_quick(&self) -> bool {
        self.opened.head().len <= CLOSE_BYTES_MAX
    }
}

/// A descriptor for an object of a bucket, if it has one of its own; `None` if guests have all that they may.
pub(super) fn take_descriptor(bucket: &OpenBucket) -> Option<Option<Descriptor>> {
    match bucket.objects.place(&bucket.bucket) {
        Place::Memory => Some(None),
        Place::Disk | Place::Elsewhere => bucket.descriptors.take().map(Some),
    }
}

pub(super) fn refuse_busy(host: &mut Host) -> i32 {
    host.refuse_as(Errno::Busy, "functions have too many objects open on this node: try again".into())
}

impl ObjectState {
    fn opened(&self, handle: u32) -> Result<&Arc<Opened>, Refusal> {
        let reading = self.open.get(handle as usize).and_then(Option::as_ref);
        reading.map(|reading| &reading.opened).ok_or_else(|| no_handle(handle, "open object", "object_open"))
    }
}

fn no_handle(handle: u32, what: &str, call: &str) -> Refusal {
    Refusal::bad_call(format!("{handle} is the handle of no {what}: it is over, or {call} gave another one"))
}

/// The place that the next handle stands for, `None` if all `max` are taken.
pub(super) fn vacancy<T>(slots: &mut Vec<Option<T>>, max: usize) -> Option<u32> {
    let at = slots.iter().position(Option::is_none).unwrap_or(slots.len());
    if at == slots.len() {
        if at == max {
            return None;
        }
        slots.push(None);
    }
    u32::try_from(at).ok()
}

/// Links the calls of this file.
pub(super) fn link(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap_async(MODULE, "object_head", |caller: Caller<'_, Host>, (bucket, key, key_len, buf, cap)| {
        Box::new(object_head(caller, Target { bucket, key, key_len }, buf, cap))
    })?;
    linker.func_wrap_async(MODULE, "object_open", |caller: Caller<'_, Host>, (bucket, key, key_len, buf, cap)| {
        Box::new(object_open(caller, Target { bucket, key, key_len }, buf, cap))
    })?;
    linker.func_wrap_async(
        MODULE,
        "object_read",
        |caller: Caller<'_, Host>, (object, offset, buf, cap): (u32, u64, u32, u32)| {
            Box::new(object_read(caller, object, offset, buf, cap))
        },
    )?;
    linker.func_wrap_async(MODULE, "object_close", |caller: Caller<'_, Host>, (object,): (u32,)| {
        Box::new(object_close(caller, object))
    })?;
    linker.func_wrap_async(
        MODULE,
        "object_list",
        |caller: Caller<'_, Host>, (bucket, prefix, prefix_len, after, after_len, limit, buf, cap)| {
            let list = List { bucket, prefix: (prefix, prefix_len), after: (after, after_len), limit };
            Box::new(object_list(caller, list, buf, cap))
        },
    )?;
    linker.func_wrap_async(MODULE, "object_put", |caller: Caller<'_, Host>, (bucket, key, key_len, options, options_len)| {
        Box::new(object_put(caller, Target { bucket, key, key_len }, options, options_len))
    })?;
    linker.func_wrap_async(MODULE, "upload_write", |caller: Caller<'_, Host>, (upload, ptr, len): (u32, u32, u32)| {
        Box::new(upload_write(caller, upload, ptr, len))
    })?;
    linker.func_wrap_async(MODULE, "upload_finish", |caller: Caller<'_, Host>, (upload, buf, cap): (u32, u32, u32)| {
        Box::new(upload_finish(caller, upload, buf, cap))
    })?;
    linker.func_wrap_async(MODULE, "upload_drop", |caller: Caller<'_, Host>, (upload,): (u32,)| {
        Box::new(upload_drop(caller, upload))
    })?;
    linker.func_wrap_async(
        MODULE,
        "object_delete",
        |caller: Caller<'_, Host>, (bucket, key, key_len, etag, etag_len, buf, cap)| {
            Box::new(object_delete(caller, Target { bucket, key, key_len }, (etag, etag_len), buf, cap))
        },
    )?;
    Ok(())
}

/// A key in a bucket, as the guest passes it.
#[derive(Clone, Copy)]
struct Target {
    bucket: u32,
    key: u32,
    key_len: u32,
}

/// The bucket of a handle as it is now. A handle outlives its bucket, and what is put into memory for a bucket that is gone would be found
/// by nobody.
fn bucket(host: &Host, handle: u32, need: Access) -> Result<Result<Arc<OpenBucket>, AccessError>> {
    let opened = match host.data.bucket(handle, need)? {
        Ok(opened) => opened,
        Err(error) => return Ok(Err(error)),
    };
    let name = opened.bucket.name.as_str();
    Ok(host.environment.data.open(name).and_then(|now| match now.bucket.id == opened.bucket.id {
        true => Ok(now),
        false => Err(DataError::NoSuchBucket { name: name.into() }.into()),
    }))
}

/// A bucket that the guest may use, and a key that may be in it.
type Keyed = (Arc<OpenBucket>, Vec<u8>);

impl Target {
    /// The bucket and the key, if the guest may do this with it.
    fn find(self, caller: &mut Caller<'_, Host>, need: Access) -> Result<Result<Keyed, AccessError>> {
        let (key, host) = span(caller, self.key, self.key_len)?;
        let bucket = match bucket(host, self.bucket, need)? {
            Ok(bucket) => bucket,
            Err(error) => return Ok(Err(error)),
        };
        if key.len() > KEY_BYTES_MAX {
            let (found, max) = (key.len() as u64, KEY_BYTES_MAX as u64);
            return Ok(Err(DataError::TooLarge { what: "a key", found, max }.into()));
        }
        let key = key.to_vec();
        // It may have come from a mapping that could not be read.
        host.mappings.intact(&host.memory)?;
        Ok(Ok((bucket, key)))
    }
}

/// Looks at what is known of objects: here, unless that may take long.
async fn look<T: Send + 'static>(
    bucket: Arc<OpenBucket>,
    ask: impl FnOnce(&OpenBucket) -> Result<T, DataError> + Send + 'static,
) -> Result<Result<T, AccessError>> {
    let found = match bucket.objects.place(&bucket.bucket) {
        Place::Memory | Place::Disk => ask(&bucket),
        place @ Place::Elsewhere => bucket.jobs.clone().run_at(place, move || ask(&bucket)).await?,
    };
    Ok(found.map_err(AccessError::from))
}

fn deliver_head(caller: &mut Caller<'_, Host>, buf: u32, cap: u32, found: Result<Option<Head>, AccessError>) -> Result<i32> {
    match found {
        Ok(Some(head)) => deliver(caller, buf, cap, head_len(&head), |writer| put_head(writer, &head)),
        Ok(None) => Ok(Errno::None as i32),
        Err(error) => Ok(caller.data_mut().refuse(&error)),
    }
}

async fn object_head(mut caller: Caller<'_, Host>, target: Target, buf: u32, cap: u32) -> Result<i32> {
    let found = match target.find(&mut caller, Access::Read)? {
        Ok((bucket, key)) => look(bucket, move |bucket| bucket.objects.head(&bucket.bucket, &key)).await?,
        Err(error) => Err(error),
    };
    deliver_head(&mut caller, buf, cap, found)
}

/// `u32` handle, head.
async fn object_open(mut caller: Caller<'_, Host>, target: Target, buf: u32, cap: u32) -> Result<i32> {
    span(&mut caller, buf, cap)?;
    let (bucket, key) = match target.find(&mut caller, Access::Read)? {
        Ok(found) => found,
        Err(error) => return Ok(caller.data_mut().refuse(&error)),
    };
    let host = caller.data_mut();
    let Some(handle) = vacancy(&mut host.data.objects.open, OBJECTS_MAX) else {
        return Ok(host.refuse_limit(format!("an instance may have {OBJECTS_MAX} objects open: close one first")));
    };
    let Some(descriptor) = take_descriptor(&bucket) else { return Ok(refuse_busy(host)) };
    let opened = match open(bucket, key).await? {
        Ok(Some(opened)) => Arc::new(opened),
        Ok(None) => return Ok(Errno::None as i32),
        Err(error) => return Ok(caller.data_mut().refuse(&error.into())),
    };
    // Still free: an instance makes one call at a time.
    caller.data_mut().data.objects.open[handle as usize] = Some(Reading { opened: opened.clone(), descriptor });
    let head = opened.head();
    deliver(&mut caller, buf, cap, 4 + head_len(head), |writer| {
        writer.put(&handle.to_le_bytes());
        put_head(writer, head);
    })
}

pub(super) async fn open(bucket: Arc<OpenBucket>, key: Vec<u8>) -> Result<Result<Option<Opened>, DataError>> {
    match bucket.objects.open_now(&bucket.bucket, &key) {
        Ok(OpenNow::Opened(opened)) => Ok(Ok(Some(opened))),
        Ok(OpenNow::Absent) => Ok(Ok(None)),
        Ok(OpenNow::Unchecked) => {
            // Those who wait for one reading of the same object would take all places together.
            let opening = bucket.opening.clone();
            let _turn = opening.acquire().await?;
            let (place, jobs) = (bucket.objects.place(&bucket.bucket), bucket.jobs.clone());
            jobs.run_at(place, move || bucket.objects.open(&bucket.bucket, &key)).await
        }
        Err(error) => Ok(Err(error)),
    }
}

async fn object_read(mut caller: Caller<'_, Host>, object: u32, offset: u64, buf: u32, cap: u32) -> Result<i32> {
    span(&mut caller, buf, cap)?;
    let cap = cap.min(READ_BYTES_MAX);
    let (buffer, host) = span(&mut caller, buf, cap)?;
    let opened = host.data.objects.opened(object)?;
    let count = match opened.read_cached(offset, buffer) {
        Ok(Some(count)) => count,
        Ok(None) => {
            let opened = opened.clone();
            let read = move || {
                let mut bytes = vec![0; cap as usize];
                let count = opened.read_at(offset, &mut bytes)?;
                bytes.truncate(count);
                Ok(bytes)
            };
            let jobs = host.environment.data.jobs();
            let bytes = match jobs.run(read).await? {
                Ok(bytes) => bytes,
                Err(error) => return Ok(caller.data_mut().refuse(&AccessError::Data(error))),
            };
            let (buffer, _) = span(&mut caller, buf, cap)?;
            buffer[..bytes.len()].copy_from_slice(&bytes);
            bytes.len()
        }
        Err(error) => return Ok(host.refuse(&error.into())),
    };
    Ok(i32::try_from(count).unwrap_or(i32::MAX))
}

async fn object_close(mut caller: Caller<'_, Host>, object: u32) -> Result<()> {
    let host = caller.data_mut();
    let jobs = host.environment.data.jobs();
    host.data.objects.opened(object)?;
    match host.data.objects.open[object as usize].take() {
        Some(reading) if !reading.is_quick() => jobs.run(move || drop(reading)).await,
        _ => Ok(()),
    }
}

/// In place of the length of a head: what is known of the object is damaged.
const DAMAGED: u32 = u32::MAX;

/// What is to be listed, as the guest passes it.
struct List {
    bucket: u32,
    prefix: (u32, u32),
    after: (u32, u32),
    limit: u32,
}

async fn object_list(mut caller: Caller<'_, Host>, list: List, buf: u32, cap: u32) -> Result<i32> {
    let ([prefix, after], host) = spans(&mut caller, [list.prefix, list.after])?;
    // No key is longer: a longer prefix is the prefix of none, and what follows a longer cursor follows its beginning, or is it.
    let (prefix, after) =
        (prefix.get(..=KEY_BYTES_MAX).unwrap_or(prefix).to_vec(), after.get(..=KEY_BYTES_MAX).unwrap_or(after).to_vec());
    let limit = list.limit as usize;
    let found = match bucket(host, list.bucket, Access::Read)? {
        Ok(bucket) => {
            let after = (!after.is_empty()).then_some(after);
            look(bucket, move |bucket| bucket.objects.list(&bucket.bucket, &prefix, after.as_deref(), limit)).await?
        }
        Err(error) => Err(error),
    };
    let Page { objects, next } = match found {
        Ok(page) => page,
        Err(error) => return Ok(caller.data_mut().refuse(&error)),
    };
    let next = next.unwrap_or_default();
    let len_of = |head: &Result<_, _>| head.as_ref().map_or(0, head_len);
    let len = 4 + next.len() + objects.iter().map(|(key, head)| 8 + key.len() + len_of(head)).sum::<usize>();
    deliver(&mut caller, buf, cap, len, |writer| {
        writer.put_u32(next.len());
        writer.put(&next);
        for (key, head) in &objects {
            writer.put_u32(key.len());
            match head {
                Ok(head) => writer.put_u32(head_len(head)),
                Err(_) => writer.put(&DAMAGED.to_le_bytes()),
            }
            writer.put(key);
            if let Ok(head) = head {
                put_head(writer, head);
            }
        }
    })
}

async fn object_delete(mut caller: Caller<'_, Host>, target: Target, etag: (u32, u32), buf: u32, cap: u32) -> Result<i32> {
    span(&mut caller, buf, cap)?;
    let (etag, _) = span(&mut caller, etag.0, etag.1)?;
    let when = match (etag.len(), <[u8; 32]>::try_from(&*etag)) {
        (0, _) => When::Always,
        (_, Ok(etag)) => When::Etag(Digest::from_bytes(etag)),
        (len, _) => return Err(Refusal::bad_call(format!("an ETag has 32 bytes, or none is given, this one has {len}")).into()),
    };
    let deleted = match target.find(&mut caller, Access::ReadWrite)? {
        Ok((bucket, key)) => {
            let delete = look(bucket, move |bucket| Ok(bucket.objects.delete(&bucket.bucket, &key, when)));
            match delete.await? {
                Ok(ack) => ack.await.map_err(AccessError::from),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    };
    deliver_head(&mut caller, buf, cap, deleted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_given_again_and_bounded() {
        let mut slots = Vec::new();
        for at in 0..3 {
            assert_eq!(vacancy(&mut slots, 3), Some(at));
            slots[at as usize] = Some(at);
        }
        assert_eq!(vacancy(&mut slots, 3), None);
        slots[1] = None;
        assert_eq!(vacancy(&mut slots, 3), Some(1));
    }
}

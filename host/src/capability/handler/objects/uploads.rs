//! Puts of handlers: the calls `object_put` and `upload_*` of `hob1`.
//!
//! Owns what an instance has under way. Knows nothing about how objects are kept (`data`). Invariant: an object is there whole or not at
//! all; an error, a guest that drops its upload and a guest that ends leave nothing of it.

use wasmtime::{Caller, Result};

use super::records::take_options;
use super::{CLOSE_BYTES_MAX, ObjectState, Target, bucket, deliver_head, no_handle, refuse_busy, take_descriptor, vacancy};
use crate::capability::data::AccessError;
use crate::capability::descriptors::Descriptor;
use crate::capability::handler::span;
use crate::capability::{Host, Refusal, blocking};
use crate::data::DataError;
use crate::data::objects::{Place, Upload};
use crate::grants::Access;

/// Uploads that one instance may have under way.
const UPLOADS_MAX: usize = 16;
/// Most bytes of an upload that the host holds for a guest that waits.
const PIECE_BYTES_MAX: usize = 256 << 10;
/// What is put into memory is written on the data thread in pieces of this length, about 50 us each, most of which is the digest.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// An upload under way. Its drop may unlink a file or free memory, so it happens on a thread that may block; an instance has few when it
/// ends, and waits for those that it ends itself.
#[derive(Debug)]
pub(super) struct Uploading {
    upload: Option<Box<dyn Upload>>,
    handle_of_bucket: u32,
    place: Place,
    written: u64,
    descriptor: Option<Descriptor>,
}

impl Uploading {
    /// Whether ending it, either way, takes no longer than a host call may.
    fn is_quick(&self) -> bool {
        matches!(self.place, Place::Memory) && self.written <= CLOSE_BYTES_MAX
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        let parts = (self.upload.take(), self.descriptor.take());
        if parts.0.is_some() && !self.is_quick() {
            blocking::discard(parts);
        }
    }
}

impl ObjectState {
    fn take_upload(&mut self, handle: u32) -> Result<Uploading, Refusal> {
        let upload = self.uploads.get_mut(handle as usize).and_then(Option::take);
        upload.ok_or_else(|| no_handle(handle, "upload", "object_put"))
    }
}

pub(super) async fn object_put(mut caller: Caller<'_, Host>, target: Target, options: u32, options_len: u32) -> Result<i32> {
    let (record, _) = span(&mut caller, options, options_len)?;
    let options = take_options(record)?;
    let found = match (target.find(&mut caller, Access::ReadWrite)?, options) {
        (Ok((bucket, key)), Ok(options)) => Ok((bucket, key, options)),
        (Err(error), _) => Err(error),
        (_, Err(error)) => Err(error.into()),
    };
    let (bucket, key, options) = match found {
        Ok(found) => found,
        Err(error) => return Ok(caller.data_mut().refuse(&error)),
    };
    let host = caller.data_mut();
    let Some(handle) = vacancy(&mut host.data.objects.uploads, UPLOADS_MAX) else {
        return Ok(host.refuse_limit(format!("an instance may have {UPLOADS_MAX} uploads under way: finish or drop one first")));
    };
    let place = bucket.objects.place(&bucket.bucket);
    let Some(descriptor) = take_descriptor(&bucket) else { return Ok(refuse_busy(host)) };
    let jobs = bucket.jobs.clone();
    let begin = move || bucket.objects.put(&bucket.bucket, &key, options);
    let begun = match place {
        Place::Memory => begin(),
        Place::Disk | Place::Elsewhere => jobs.run_at(place, begin).await?,
    };
    let host = caller.data_mut();
    let upload = match begun {
        Ok(upload) => upload,
        Err(error) => return Ok(host.refuse(&error.into())),
    };
    let uploading = Uploading { upload: Some(upload), handle_of_bucket: target.bucket, place, written: 0, descriptor };
    // Still free: an instance makes one call at a time.
    host.data.objects.uploads[handle as usize] = Some(uploading);
    Ok(i32::try_from(handle).unwrap_or(i32::MAX))
}

/// Writes all of it, piece by piece. The upload is taken out meanwhile: an error, or the guest's end, drops it.
pub(super) async fn upload_write(mut caller: Caller<'_, Host>, upload: u32, ptr: u32, len: u32) -> Result<i32> {
    span(&mut caller, ptr, len)?;
    let mut uploading = caller.data_mut().data.objects.take_upload(upload)?;
    let jobs = caller.data().environment.data.jobs();
    let mut written = 0;
    while written < len {
        let piece_max = match uploading.place {
            Place::Memory => INLINE_BYTES_MAX,
            Place::Disk | Place::Elsewhere => PIECE_BYTES_MAX,
        };
        if written > 0 {
            // Others on this thread have their turn between two pieces.
            tokio::task::yield_now().await;
        }
        let count = (len - written).min(u32::try_from(piece_max).unwrap_or(u32::MAX));
        let (piece, _) = span(&mut caller, ptr + written, count)?;
        let result = match (uploading.place, uploading.upload.as_mut()) {
            (Place::Memory, Some(upload)) => upload.write(piece),
            _ => {
                let piece = piece.to_vec();
                let (back, result) = jobs
                    .run_at(uploading.place, move || {
                        let result = uploading.upload.as_mut().map_or(Err(DataError::Closed), |upload| upload.write(&piece));
                        (uploading, result)
                    })
                    .await?;
                uploading = back;
                result
            }
        };
        if let Err(error) = result {
            return Ok(caller.data_mut().refuse(&error.into()));
        }
        written += count;
        uploading.written += u64::from(count);
    }
    caller.data_mut().data.objects.uploads[upload as usize] = Some(uploading);
    Ok(0)
}

pub(super) async fn upload_finish(mut caller: Caller<'_, Host>, upload: u32, buf: u32, cap: u32) -> Result<i32> {
    span(&mut caller, buf, cap)?;
    let mut uploading = caller.data_mut().data.objects.take_upload(upload)?;
    if let Err(error) = bucket(caller.data(), uploading.handle_of_bucket, Access::ReadWrite)? {
        return Ok(caller.data_mut().refuse(&error));
    }
    let (place, is_quick, jobs) = (uploading.place, uploading.is_quick(), caller.data().environment.data.jobs());
    let mut finish = move || uploading.upload.take().map(Upload::finish);
    let ack = match is_quick {
        true => finish(),
        false => jobs.run_at(place, finish).await?,
    };
    let finished = match ack {
        Some(ack) => ack.await,
        None => Err(DataError::Closed),
    };
    deliver_head(&mut caller, buf, cap, finished.map(Some).map_err(AccessError::from))
}

pub(super) async fn upload_drop(mut caller: Caller<'_, Host>, upload: u32) -> Result<()> {
    let mut uploading = caller.data_mut().data.objects.take_upload(upload)?;
    let (parts, jobs) = ((uploading.upload.take(), uploading.descriptor.take()), caller.data().environment.data.jobs());
    match uploading.is_quick() {
        true => Ok(()),
        false => jobs.run(move || drop(parts)).await,
    }
}

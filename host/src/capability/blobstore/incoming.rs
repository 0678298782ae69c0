//! Objects on their way to a guest: whole at once, or as a stream.
//!
//! Owns the part that is still to be read. Knows nothing about containers. Invariant: nothing is kept between two reads, so that many
//! streams take no memory.

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::Result;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::{DynInputStream, InputStream, Pollable, StreamError};

use super::generated::wasi::blobstore::types;
use super::{Answer, Place, SYNC_BYTES_MAX, blocking, open, text};
use crate::capability::Host;
use crate::capability::data::OpenBucket;
use crate::data::objects::{self, Opened};

/// Most bytes in one read of a stream. It is read on the guest's thread, so this bounds how long that waits for the disk.
const READ_BYTES_MAX: usize = 64 << 10;

/// A part of an object to be read. Its bytes stay as they are, whatever becomes of its key.
#[derive(Debug)]
pub struct Incoming {
    opened: Arc<Opened>,
    at: u64,
    end: u64,
    _place: Place,
}

impl Host {
    /// `start` and `end` are both of the part; what is past the end of the object is not there.
    pub(super) async fn incoming(&mut self, bucket: &Arc<OpenBucket>, name: &str, start: u64, end: u64) -> Answer<Incoming> {
        if start > end {
            return Err(format!("the part from {start} to {end} ends before it begins"));
        }
        let place = self.place()?;
        let opened = Arc::new(open(bucket, name).await?);
        let len = opened.head().len;
        Ok(Incoming { opened, at: start.min(len), end: end.saturating_add(1).min(len), _place: place })
    }
}

impl types::HostIncomingValue for Host {
    async fn incoming_value_consume_sync(&mut self, value: Resource<Incoming>) -> Result<Answer<Vec<u8>>> {
        let value = self.table.delete(value)?;
        let len = value.end - value.at;
        if len > SYNC_BYTES_MAX {
            return Ok(Err(format!("{len} bytes at once: at most {SYNC_BYTES_MAX}; use incoming-value-consume-async")));
        }
        let read = move || {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
            let count = value.opened.read_at(value.at, &mut bytes)?;
            bytes.truncate(count);
            Ok(bytes)
        };
        Ok(blocking(self.environment.data.jobs(), objects::Place::Disk, read).await)
    }

    fn incoming_value_consume_async(&mut self, value: Resource<Incoming>) -> Result<Answer<Resource<DynInputStream>>> {
        let value = self.table.delete(value)?;
        let stream: DynInputStream = Box::new(value);
        self.keep(stream)
    }

    fn size(&mut self, value: Resource<Incoming>) -> Result<u64> {
        let value = self.table.get(&value)?;
        Ok(value.end - value.at)
    }

    fn drop(&mut self, value: Resource<Incoming>) -> Result<()> {
        self.table.delete(value)?;
        Ok(())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {}
}

/// Keeps nothing between two reads, so that many streams take no memory.
impl InputStream for Incoming {
    fn read(&mut self, count: usize) -> std::result::Result<Bytes, StreamError> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        if left == 0 {
            return Err(StreamError::Closed);
        }
        let mut piece = vec![0; count.min(left).min(READ_BYTES_MAX)];
        let read = self.opened.read_at(self.at, &mut piece);
        let count = read.map_err(|error| StreamError::LastOperationFailed(wasmtime::Error::msg(text(error))))?;
        piece.truncate(count);
        self.at += count as u64;
        Ok(piece.into())
    }
}

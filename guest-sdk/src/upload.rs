//! Objects that are written.
//!
//! Owns [`Writer`], which is reached as [`objects::Writer`](crate::objects::Writer), and the record of a put. Knows nothing about what is
//! kept where. An upload that is not finished leaves nothing.

use std::io::{self, Write};

use crate::abi;
use crate::data::{Error, length, required, ttl_ms};
use crate::objects::{Bucket, Head, PutOptions, When, take_head};

/// Bytes that a [`Writer`] gathers before it calls the host.
const GATHER_LEN: usize = 64 << 10;

/// An upload at the host; broken off by its drop.
#[derive(Debug)]
pub(crate) struct Upload {
    /// `None` once it is over.
    handle: Option<u32>,
}

impl Upload {
    pub(crate) fn begin(bucket: &Bucket, key: &[u8], options: &PutOptions) -> Result<Self, Error> {
        let handle = abi::object_put(bucket.handle(), key, &put_record(options)?).map_err(Error::of)?;
        Ok(Self { handle: Some(handle) })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let handle = self.handle.ok_or_else(|| Error::invalid("the upload has failed before: begin it anew"))?;
        abi::upload_write(handle, bytes).map_err(|errno| {
            // The host has no such upload any more.
            self.handle = None;
            Error::of(errno)
        })
    }

    pub(crate) fn finish(mut self) -> Result<Head, Error> {
        let handle = self.handle.take().ok_or_else(|| Error::invalid("the upload has failed before: begin it anew"))?;
        required(abi::upload_finish(handle, |record| take_head(&mut &*record).ok_or_else(Error::malformed)))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(handle) = self.handle {
            abi::upload_drop(handle);
        }
    }
}

/// An object that is being written. It is there after [`Writer::finish`]; dropping it leaves nothing.
///
/// Small writes are gathered. Writing fails with an error that holds an [`Error`]; the writer is of no use then.
#[derive(Debug)]
#[must_use = "the object is there after `finish`"]
pub struct Writer {
    upload: Upload,
    buffer: Vec<u8>,
}

impl Writer {
    pub(crate) fn begin(bucket: &Bucket, key: &[u8], options: &PutOptions) -> Result<Self, Error> {
        Ok(Self { upload: Upload::begin(bucket, key, options)?, buffer: Vec::new() })
    }

    /// Ends the object, which is there from then on.
    ///
    /// # Errors
    /// [`Invalid`](crate::data::ErrorKind::Invalid) if the bytes are not those of the digest,
    /// [`Conflict`](crate::data::ErrorKind::Conflict) if the condition does not hold, and others; nothing is left then.
    pub fn finish(mut self) -> Result<Head, Error> {
        self.upload.write(&self.buffer)?;
        self.upload.finish()
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.is_empty() && bytes.len() >= GATHER_LEN {
            self.upload.write(bytes).map_err(io::Error::other)?;
            return Ok(bytes.len());
        }
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= GATHER_LEN {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.upload.write(&self.buffer).map_err(io::Error::other)?;
            self.buffer.clear();
        }
        Ok(())
    }
}

fn put_record(options: &PutOptions) -> Result<Vec<u8>, Error> {
    let PutOptions { content_type, metadata, ttl, when, digest } = options;
    let (when, etag) = match when {
        When::Always => (0_u32, [0; 32]),
        When::Absent => (1, [0; 32]),
        When::Etag(etag) => (2, etag.0),
    };
    let mut record = Vec::with_capacity(88 + content_type.len());
    record.extend(u32::from(digest.is_some()).to_le_bytes());
    record.extend(when.to_le_bytes());
    record.extend(ttl_ms(*ttl)?.to_le_bytes());
    record.extend(etag);
    record.extend(digest.map_or([0; 32], |digest| digest.0));
    record.extend(length(content_type.as_bytes()));
    record.extend(u32::try_from(metadata.len()).unwrap_or(u32::MAX).to_le_bytes());
    record.extend_from_slice(content_type.as_bytes());
    for (name, value) in metadata {
        record.extend(length(name.as_bytes()));
        record.extend(length(value.as_bytes()));
        record.extend_from_slice(name.as_bytes());
        record.extend_from_slice(value.as_bytes());
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::objects::Etag;

    #[test]
    fn options_are_laid_out_as_the_contract_says() {
        let options = PutOptions {
            content_type: "t".into(),
            metadata: vec![("a".into(), "bc".into())],
            ttl: Some(Duration::from_millis(5)),
            when: When::Etag(Etag([1; 32])),
            digest: Some(Etag([2; 32])),
        };
        let record = put_record(&options).unwrap();
        assert_eq!(record[..16], *b"\x01\0\0\0\x02\0\0\0\x05\0\0\0\0\0\0\0");
        assert_eq!((&record[16..48], &record[48..80]), (&[1; 32][..], &[2; 32][..]));
        assert_eq!(record[80..], *b"\x01\0\0\0\x01\0\0\0t\x01\0\0\0\x02\0\0\0abc");
        assert!(put_record(&PutOptions { ttl: Some(Duration::ZERO), ..PutOptions::default() }).is_err());
    }
}

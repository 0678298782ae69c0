//! `wasi:blobstore` 0.2.0-draft.

use self::generated::wasi::blobstore::blobstore;
use self::generated::wasi::blobstore::container::Container;
use self::generated::wasi::blobstore::types::{IncomingValue, ObjectId, OutgoingValue};
use self::generated::wasi::io::streams::{OutputStream, StreamError};
use crate::{Answer, done, field, text};

mod generated {
    #![allow(missing_docs)]
    wit_bindgen::generate!({ path: "../../../wit/blobstore", world: "imports", generate_all });
}

type Result<T> = std::result::Result<T, String>;

pub(crate) fn run(op: &str, bucket: &str, fields: &[Vec<u8>]) -> Answer {
    let answer = match op {
        "create" => blobstore::create_container(bucket).map(|_| done()),
        "destroy" => blobstore::delete_container(bucket).map(|()| done()),
        "is-there" => blobstore::container_exists(bucket).map(|is| field(is.to_string())),
        "copy" | "move" => between(op, bucket, fields),
        _ => blobstore::get_container(bucket).and_then(|container| with(op, &container, fields)),
    };
    answer.unwrap_or_else(Answer::Refused)
}

/// From a key to a bucket's key.
fn between(op: &str, bucket: &str, fields: &[Vec<u8>]) -> Result<Answer> {
    let [from, to_bucket, to] = fields else { return Err("expected three fields".into()) };
    let from = ObjectId { container: bucket.into(), object: text(from) };
    let to = ObjectId { container: text(to_bucket), object: text(to) };
    match op {
        "copy" => blobstore::copy_object(&from, &to),
        _ => blobstore::move_object(&from, &to),
    }?;
    Ok(done())
}

fn number(field: &[u8]) -> u64 {
    text(field).parse().expect("the test sends a number")
}

fn with(op: &str, container: &Container, fields: &[Vec<u8>]) -> Result<Answer> {
    Ok(match (op, fields) {
        ("name", []) => field(container.name()?),
        ("info", []) => field(container.info()?.name),
        ("put", [key, value]) => put(container, &text(key), value, true).map(|()| done())?,
        ("put-later", [key, value]) => put(container, &text(key), value, false).map(|()| done())?,
        ("drop", [key, value]) => {
            let outgoing = OutgoingValue::new_outgoing_value();
            container.write_data(&text(key), &outgoing)?;
            write(&outgoing.outgoing_value_write_body().map_err(|()| "no stream")?, value)?;
            done()
        }
        ("put-twice", [key]) => {
            let outgoing = OutgoingValue::new_outgoing_value();
            container.write_data(&text(key), &outgoing)?;
            container.write_data("another", &outgoing).map(|()| done())?
        }
        ("put-nowhere", []) => OutgoingValue::finish(OutgoingValue::new_outgoing_value()).map(|()| done())?,
        ("finish-early", [key]) => {
            let outgoing = OutgoingValue::new_outgoing_value();
            container.write_data(&text(key), &outgoing)?;
            let _stream = outgoing.outgoing_value_write_body();
            OutgoingValue::finish(outgoing).map(|()| done())?
        }
        // So many MiB of zeros, to a bucket or to none yet.
        ("put-large", [key, mib, how]) => {
            let outgoing = OutgoingValue::new_outgoing_value();
            let first = text(how) == "first";
            if first {
                container.write_data(&text(key), &outgoing)?;
            }
            let stream = outgoing.outgoing_value_write_body().map_err(|()| "no stream")?;
            for _ in 0..number(mib) {
                write(&stream, &vec![0; 1 << 20])?;
            }
            drop(stream);
            if !first {
                container.write_data(&text(key), &outgoing)?;
            }
            OutgoingValue::finish(outgoing).map(|()| done())?
        }
        ("get", [key]) => get(container, &text(key), 0, u64::MAX)?,
        ("get-part", [key, start, end]) => get(container, &text(key), number(start), number(end))?,
        ("get-sync", [key]) => {
            let value = container.get_data(&text(key), 0, u64::MAX)?;
            field(IncomingValue::incoming_value_consume_sync(value)?)
        }
        // Reads after the object was deleted.
        ("get-deleted", [key]) => {
            let value = container.get_data(&text(key), 0, u64::MAX)?;
            container.delete_object(&text(key))?;
            field(IncomingValue::incoming_value_consume_sync(value)?)
        }
        ("open-many", [key]) => {
            let mut open = Vec::new();
            loop {
                match container.get_data(&text(key), 0, 0) {
                    Ok(value) => open.push(value),
                    Err(words) => return Ok(Answer::Fields(vec![open.len().to_string().into_bytes(), words.into_bytes()])),
                }
            }
        }
        ("size", [key]) => field(container.object_info(&text(key))?.size.to_string()),
        ("exists", [key]) => field(container.has_object(&text(key))?.to_string()),
        ("delete", [key]) => container.delete_object(&text(key)).map(|()| done())?,
        ("delete-many", _) => {
            let keys: Vec<_> = fields.iter().map(|key| text(key)).collect();
            container.delete_objects(&keys).map(|()| done())?
        }
        ("clear", []) => container.clear().map(|()| done())?,
        // By so many at once, after so many.
        ("keys", [skip, by]) => {
            let names = container.list_objects()?;
            let (_, mut has_ended) = names.skip_stream_object_names(number(skip))?;
            let mut keys = Vec::new();
            while !has_ended {
                let (page, end) = names.read_stream_object_names(number(by))?;
                keys.extend(page.into_iter().map(String::into_bytes));
                has_ended = end;
            }
            Answer::Fields(keys)
        }
        _ => return Err(format!("no such operation: {op}")),
    })
}

/// `first`: whether the bucket is told before the body is written, so that it takes it meanwhile.
fn put(container: &Container, key: &str, value: &[u8], first: bool) -> Result<()> {
    let outgoing = OutgoingValue::new_outgoing_value();
    if first {
        container.write_data(key, &outgoing)?;
    }
    let stream = outgoing.outgoing_value_write_body().map_err(|()| "no stream")?;
    write(&stream, value)?;
    drop(stream);
    if !first {
        container.write_data(key, &outgoing)?;
    }
    OutgoingValue::finish(outgoing)
}

fn write(stream: &OutputStream, value: &[u8]) -> Result<()> {
    let words = |error| match error {
        StreamError::Closed => "closed".to_owned(),
        StreamError::LastOperationFailed(error) => error.to_debug_string(),
    };
    value.chunks(4096).try_for_each(|piece| stream.blocking_write_and_flush(piece)).map_err(words)
}

fn get(container: &Container, key: &str, start: u64, end: u64) -> Result<Answer> {
    let value = container.get_data(key, start, end)?;
    let size = value.size();
    let stream = IncomingValue::incoming_value_consume_async(value)?;
    let mut bytes = Vec::new();
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(piece) => bytes.extend(piece),
            Err(StreamError::Closed) => break,
            Err(StreamError::LastOperationFailed(error)) => return Err(error.to_debug_string()),
        }
    }
    if bytes.len() as u64 != size {
        return Err(format!("{} bytes of {size}", bytes.len()));
    }
    Ok(field(bytes))
}

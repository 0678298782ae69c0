//! Entries of buckets for handlers: the calls `kv_*` of `hob1`.
//!
//! Owns their records. Knows nothing about who may do what (`capability/data.rs`), or how entries are kept (`data`). Invariant: of a
//! batch nothing is copied before all of it was found to be within the limits.

use std::time::Duration;

use bytes::{Buf, Bytes};
use wasmtime::{Caller, Linker, Result};

use super::data::{Errno, deliver};
use super::{MODULE, Writer, span, spans};
use crate::capability::data::AccessError;
use crate::capability::{Host, Refusal};
use crate::data::DataError;
use crate::data::kv::{BATCH_BYTES_MAX, BATCH_OPS_MAX, Done, Entry, Op, Page, When, check_count, check_sum};
use crate::grants::Access;

/// Fixed part of an entry's record: version and end.
const ENTRY_HEAD: usize = 16;
/// Fixed part of an operation of a batch.
const OP_HEAD: usize = 32;
/// What is answered for each operation.
const DONE_LEN: usize = 24;
/// In place of a length: there is no such entry; on a page, it is damaged.
const NO_ENTRY: u32 = u32::MAX;

const SET: u32 = 0;
const DELETE: u32 = 1;
const INCREMENT: u32 = 2;

const ALWAYS: u32 = 0;
const ABSENT: u32 = 1;
const VERSION: u32 = 2;

/// Links the calls of this file.
pub(super) fn link(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(MODULE, "kv_get", kv_get)?;
    linker.func_wrap(MODULE, "kv_exists", kv_exists)?;
    linker.func_wrap(MODULE, "kv_get_many", kv_get_many)?;
    linker.func_wrap(MODULE, "kv_scan", kv_scan)?;
    linker.func_wrap(MODULE, "kv_write", kv_write)?;
    Ok(())
}

fn entry_len(entry: &Entry) -> usize {
    ENTRY_HEAD + entry.value.len()
}

/// `u64` version, `u64` milliseconds since 1970 when it ends or 0, value.
fn put_entry(writer: &mut Writer<'_>, entry: &Entry) {
    writer.put(&entry.version.to_le_bytes());
    writer.put(&entry.expires_ms.unwrap_or_default().to_le_bytes());
    writer.put(&entry.value);
}

fn kv_get(mut caller: Caller<'_, Host>, bucket: u32, key: u32, key_len: u32, buf: u32, cap: u32) -> Result<i32> {
    let (key, host) = span(&mut caller, key, key_len)?;
    let found = match host.data.bucket(bucket, Access::Read)? {
        Ok(bucket) => bucket.kv.get(key).map_err(AccessError::from),
        Err(error) => Err(error),
    };
    match found {
        Ok(Some(entry)) => deliver(&mut caller, buf, cap, entry_len(&entry), |writer| put_entry(writer, &entry)),
        Ok(None) => Ok(Errno::None as i32),
        Err(error) => Ok(host.refuse(&error)),
    }
}

fn kv_exists(mut caller: Caller<'_, Host>, bucket: u32, key: u32, key_len: u32) -> Result<i32> {
    let (key, host) = span(&mut caller, key, key_len)?;
    let found = match host.data.bucket(bucket, Access::Read)? {
        Ok(bucket) => bucket.kv.exists(key).map_err(AccessError::from),
        Err(error) => Err(error),
    };
    Ok(found.map_or_else(|error| host.refuse(&error), i32::from))
}

fn kv_get_many(mut caller: Caller<'_, Host>, bucket: u32, keys: u32, keys_len: u32, buf: u32, cap: u32) -> Result<i32> {
    let (record, host) = span(&mut caller, keys, keys_len)?;
    let found = match host.data.bucket(bucket, Access::Read)? {
        Ok(bucket) => take_keys(record)?.and_then(|keys| bucket.kv.get_many(&keys)).map_err(AccessError::from),
        Err(error) => Err(error),
    };
    // One that is damaged is an error of the call, which names it: whoever wants the others asks for them.
    let entries = match found.and_then(|found| Ok(found.into_iter().collect::<Result<Vec<_>, _>>()?)) {
        Ok(entries) => entries,
        Err(error) => return Ok(host.refuse(&error)),
    };
    let len = entries.iter().map(|entry| 4 + entry.as_ref().map_or(0, entry_len)).sum();
    deliver(&mut caller, buf, cap, len, |writer| {
        for entry in &entries {
            match entry {
                None => writer.put(&NO_ENTRY.to_le_bytes()),
                Some(entry) => {
                    writer.put_u32(entry_len(entry));
                    put_entry(writer, entry);
                }
            }
        }
    })
}

/// Keys, each behind its length; no more than one too many.
fn take_keys(mut record: &[u8]) -> Result<Result<Vec<&[u8]>, DataError>, Refusal> {
    let short = || Refusal::bad_call("a key of the record ends past the record");
    let mut keys = Vec::new();
    while !record.is_empty() {
        let len = record.try_get_u32_le().map_err(|_| short())?;
        let (key, rest) = record.split_at_checked(len as usize).ok_or_else(short)?;
        record = rest;
        keys.push(key);
        if let Err(error) = check_count(keys.len()) {
            return Ok(Err(error));
        }
    }
    Ok(Ok(keys))
}

#[expect(clippy::too_many_arguments, reason = "it is a host call")]
fn kv_scan(
    mut caller: Caller<'_, Host>,
    bucket: u32,
    prefix: u32,
    prefix_len: u32,
    after: u32,
    after_len: u32,
    limit: u32,
    buf: u32,
    cap: u32,
) -> Result<i32> {
    let ([prefix, after], host) = spans(&mut caller, [(prefix, prefix_len), (after, after_len)])?;
    let after = (!after.is_empty()).then_some(after);
    let found = match host.data.bucket(bucket, Access::Read)? {
        Ok(bucket) => bucket.kv.scan(prefix, after, limit as usize).map_err(AccessError::from),
        Err(error) => Err(error),
    };
    let Page { entries, next } = match found {
        Ok(page) => page,
        Err(error) => return Ok(host.refuse(&error)),
    };
    let next = next.unwrap_or_default();
    let len_of = |entry: &Result<Entry, _>| entry.as_ref().map_or(0, entry_len);
    let len = 4 + next.len() + entries.iter().map(|(key, entry)| 8 + key.len() + len_of(entry)).sum::<usize>();
    deliver(&mut caller, buf, cap, len, |writer| {
        writer.put_u32(next.len());
        writer.put(&next);
        for (key, entry) in &entries {
            writer.put_u32(key.len());
            match entry {
                Ok(entry) => writer.put_u32(entry_len(entry)),
                Err(_) => writer.put(&NO_ENTRY.to_le_bytes()),
            }
            writer.put(key);
            if let Ok(entry) = entry {
                put_entry(writer, entry);
            }
        }
    })
}

/// Begins a write. What is in memory is written then; for what goes to the disk the guest has to wait by `answer_wait`.
fn kv_write(mut caller: Caller<'_, Host>, bucket: u32, ops: u32, ops_len: u32, buf: u32, cap: u32) -> Result<i32> {
    let (record, host) = span(&mut caller, ops, ops_len)?;
    host.data.check_idle()?;
    let written = match host.data.bucket(bucket, Access::ReadWrite)? {
        Ok(bucket) => match take_ops(record)? {
            Ok(ops) => {
                // What was just copied may have come from a mapping that could not be read.
                host.mappings.intact(&host.memory)?;
                match bucket.kv.write(ops).now() {
                    Ok(done) => done.map_err(AccessError::from),
                    Err(ack) => return Ok(host.data.wait(ack)),
                }
            }
            Err(error) => Err(error.into()),
        },
        Err(error) => Err(error),
    };
    match written {
        Ok(done) => answer_done(&mut caller, buf, cap, &done),
        Err(error) => Ok(host.refuse(&error)),
    }
}

/// For each operation `u32` what it was, `u32` whether a deleted entry was there, `u64` version or 0, `i64` number or 0.
pub(super) fn answer_done(caller: &mut Caller<'_, Host>, buf: u32, cap: u32, done: &[Done]) -> Result<i32> {
    deliver(caller, buf, cap, done.len() * DONE_LEN, |writer| {
        for done in done {
            let (what, found, version, value) = match *done {
                Done::Set { version } => (SET, 0, version, 0),
                Done::Deleted { found } => (DELETE, u32::from(found), 0, 0),
                Done::Incremented { value, version } => (INCREMENT, 0, version, value),
            };
            writer.put(&what.to_le_bytes());
            writer.put(&found.to_le_bytes());
            writer.put(&version.to_le_bytes());
            writer.put(&value.to_le_bytes());
        }
    })
}

/// The operations of a record, which share one copy of it.
fn take_ops(record: &[u8]) -> Result<Result<Vec<Op>, DataError>, Refusal> {
    // More than that cannot be within the limits, and is not looked at.
    let longest = BATCH_BYTES_MAX + BATCH_OPS_MAX * OP_HEAD;
    if record.len() > longest {
        return Ok(Err(DataError::TooLarge { what: "a batch", found: record.len() as u64, max: longest as u64 }));
    }
    let (mut rest, mut count, mut bytes) = (record, 0, 0);
    while !rest.is_empty() {
        let head = OpHead::take(&mut rest)?;
        rest = rest.get(head.key_len + head.value_len..).ok_or_else(|| short("an operation"))?;
        count += 1;
        bytes += head.key_len + head.value_len;
        if let Err(error) = check_count(count).and_then(|()| check_sum(bytes)) {
            return Ok(Err(error));
        }
    }
    let copy = Bytes::copy_from_slice(record);
    let (mut ops, mut rest) = (Vec::with_capacity(count), &copy[..]);
    while !rest.is_empty() {
        let head = OpHead::take(&mut rest)?;
        let (key, behind) = rest.split_at_checked(head.key_len).ok_or_else(|| short("a key"))?;
        let (value, behind) = behind.split_at_checked(head.value_len).ok_or_else(|| short("a value"))?;
        rest = behind;
        ops.push(head.op(copy.slice_ref(key), copy.slice_ref(value))?);
    }
    Ok(Ok(ops))
}

fn short(what: &str) -> Refusal {
    Refusal::bad_call(format!("{what} of the record ends past the record"))
}

/// `u32` what, `u32` on which condition, `u32` length of the key, `u32` length of the value, `u64` version of the condition or `i64`
/// number to add, `u64` time to live in milliseconds or 0.
struct OpHead {
    what: u32,
    when: u32,
    key_len: usize,
    value_len: usize,
    number: u64,
    ttl_ms: u64,
}

impl OpHead {
    fn take(rest: &mut &[u8]) -> Result<Self, Refusal> {
        if rest.len() < OP_HEAD {
            return Err(short("an operation"));
        }
        Ok(Self {
            what: rest.get_u32_le(),
            when: rest.get_u32_le(),
            key_len: rest.get_u32_le() as usize,
            value_len: rest.get_u32_le() as usize,
            number: rest.get_u64_le(),
            ttl_ms: rest.get_u64_le(),
        })
    }

    fn op(&self, key: Bytes, value: Bytes) -> Result<Op, Refusal> {
        let when = match self.when {
            ALWAYS => When::Always,
            ABSENT => When::Absent,
            VERSION => When::Version(self.number),
            other => return Err(Refusal::bad_call(format!("the condition of an operation is 0, 1 or 2, not {other}"))),
        };
        let ttl = (self.ttl_ms != 0).then(|| Duration::from_millis(self.ttl_ms));
        match self.what {
            SET => Ok(Op::Set { key, value, ttl, when }),
            DELETE if value.is_empty() && ttl.is_none() => Ok(Op::Delete { key, when }),
            INCREMENT if value.is_empty() && ttl.is_none() && self.when == ALWAYS => {
                Ok(Op::Increment { key, by: self.number.cast_signed() })
            }
            DELETE | INCREMENT => Err(Refusal::bad_call("an operation has a part that only a set has")),
            other => Err(Refusal::bad_call(format!("an operation is 0, 1 or 2, not {other}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn len(bytes: &[u8]) -> u32 {
        bytes.len().try_into().unwrap()
    }

    fn op(what: u32, when: u32, key: &[u8], value: &[u8], number: u64, ttl_ms: u64) -> Vec<u8> {
        let mut record = Vec::new();
        for part in [what, when, len(key), len(value)] {
            record.extend(part.to_le_bytes());
        }
        record.extend(number.to_le_bytes());
        record.extend(ttl_ms.to_le_bytes());
        record.extend(key);
        record.extend(value);
        record
    }

    #[test]
    fn a_batch_is_read_operation_by_operation() {
        let record = [
            op(SET, VERSION, b"k", b"vv", 7, 9),
            op(DELETE, ABSENT, b"d", b"", 0, 0),
            op(INCREMENT, ALWAYS, b"n", b"", u64::MAX, 0),
        ];
        let key = |text: &'static str| Bytes::from_static(text.as_bytes());
        let expected = [
            Op::Set { key: key("k"), value: key("vv"), ttl: Some(Duration::from_millis(9)), when: When::Version(7) },
            Op::Delete { key: key("d"), when: When::Absent },
            Op::Increment { key: key("n"), by: -1 },
        ];
        assert_eq!(take_ops(&record.concat()).unwrap().unwrap(), expected);
        assert!(take_ops(b"").unwrap().unwrap().is_empty());
    }

    #[test]
    fn every_truncation_and_every_part_that_does_not_belong_is_refused() {
        let whole = [op(SET, ALWAYS, b"key", b"value", 0, 0), op(DELETE, ALWAYS, b"key", b"", 0, 0)].concat();
        for end in (1..whole.len()).filter(|end| *end != OP_HEAD + 8) {
            assert!(take_ops(&whole[..end]).is_err(), "{end}");
        }
        for bad in [
            op(3, ALWAYS, b"k", b"", 0, 0),
            op(SET, 3, b"k", b"", 0, 0),
            op(DELETE, ALWAYS, b"k", b"v", 0, 0),
            op(DELETE, ALWAYS, b"k", b"", 0, 1),
            op(INCREMENT, ABSENT, b"k", b"", 1, 0),
            op(INCREMENT, ALWAYS, b"k", b"v", 1, 0),
        ] {
            assert!(take_ops(&bad).is_err(), "{bad:?}");
        }
        let mut lying = op(SET, ALWAYS, b"k", b"v", 0, 0);
        lying[8..16].fill(0xff);
        assert!(take_ops(&lying).is_err());
    }

    #[test]
    fn a_batch_over_its_limits_is_refused_before_it_is_copied() {
        let one = op(DELETE, ALWAYS, b"k", b"", 0, 0);
        assert_eq!(take_ops(&one.repeat(BATCH_OPS_MAX)).unwrap().unwrap().len(), BATCH_OPS_MAX);
        assert!(matches!(take_ops(&one.repeat(BATCH_OPS_MAX + 1)).unwrap(), Err(DataError::Invalid { .. })));
        let large = |len| op(SET, ALWAYS, b"k", &vec![0; len], 0, 0);
        assert!(take_ops(&large(BATCH_BYTES_MAX - 1)).unwrap().is_ok());
        assert!(matches!(take_ops(&large(BATCH_BYTES_MAX)).unwrap(), Err(DataError::TooLarge { .. })));
        assert!(matches!(take_ops(&large(2 * BATCH_BYTES_MAX)).unwrap(), Err(DataError::TooLarge { .. })));
    }

    #[test]
    fn keys_are_read_up_to_their_bound() {
        let key = |key: &[u8]| [&len(key).to_le_bytes()[..], key].concat();
        let record = [key(b"a"), key(b""), key(b"bc")].concat();
        assert_eq!(take_keys(&record).unwrap().unwrap(), [&b"a"[..], b"", b"bc"]);
        for end in (1..record.len()).filter(|end| ![5, 9].contains(end)) {
            assert!(take_keys(&record[..end]).is_err(), "{end}");
        }
        assert_eq!(take_keys(&key(b"").repeat(BATCH_OPS_MAX)).unwrap().unwrap().len(), BATCH_OPS_MAX);
        assert!(take_keys(&key(b"").repeat(1 << 20)).unwrap().is_err());
    }
}

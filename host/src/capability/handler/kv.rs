//! Entries of buckets for handlers: the calls `kv_*` of `hob1`.
//!
//! Owns their records. Knows nothing about who may do what (`capability/data.rs`), or how entries are kept (`data`).

use wasmtime::{Caller, Linker, Result};

use super::{MODULE, data::Errno, span};
use crate::capability::Host;
use crate::capability::data::AccessError;
use crate::data::kv::Entry;
use crate::grants::Access;

/// Fixed part of an entry's record: version and end.
const ENTRY_HEAD: usize = 16;

/// Links the calls of this file.
pub(super) fn link(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(MODULE, "kv_get", kv_get)?;
    Ok(())
}

/// `u64` version, `u64` milliseconds since 1970 when it ends or 0, value.
fn entry_head(entry: &Entry) -> [u8; ENTRY_HEAD] {
    let mut head = [0; ENTRY_HEAD];
    head[..8].copy_from_slice(&entry.version.to_le_bytes());
    head[8..].copy_from_slice(&entry.expires_ms.unwrap_or_default().to_le_bytes());
    head
}

fn kv_get(mut caller: Caller<'_, Host>, bucket: u32, key: u32, key_len: u32, buf: u32, cap: u32) -> Result<i32> {
    let (key, host) = span(&mut caller, key, key_len)?;
    let found = match host.data.bucket(bucket, Access::Read)? {
        Ok(bucket) => bucket.kv.get(key).map_err(AccessError::from),
        Err(error) => Err(error),
    };
    let entry = match found {
        Ok(Some(entry)) => entry,
        Ok(None) => return Ok(Errno::None as i32),
        Err(error) => return Ok(host.refuse(&error)),
    };
    let (head, value) = (entry_head(&entry), &entry.value);
    let (buffer, host) = span(&mut caller, buf, cap)?;
    let len = head.len() + value.len();
    if len > buffer.len() {
        return Ok(host.answer([&head[..], value].concat()));
    }
    buffer[..head.len()].copy_from_slice(&head);
    buffer[head.len()..len].copy_from_slice(value);
    Ok(i32::try_from(len).unwrap_or(i32::MAX))
}

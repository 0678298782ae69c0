//! Secrets for handlers: the call `secret_get` of `hob1`.
//!
//! Owns the way into the guest's memory. Knows nothing about who may read what (`capability/secrets.rs`). Invariant: what the host keeps of a
//! value for a guest to fetch is wiped when it is let go of.

use bytes::Bytes;
use wasmtime::{Caller, Linker, Result};

use super::data::{Errno, deliver_or};
use super::{MODULE, span};
use crate::capability::Host;
use crate::capability::secrets::SecretRefusal;
use crate::id::SECRET_NAME_LEN_MAX;
use crate::secrets::SecretError;

impl From<&SecretRefusal> for Errno {
    fn from(refusal: &SecretRefusal) -> Self {
        match refusal {
            SecretRefusal::Denied(_) | SecretRefusal::NotInInit(_) => Self::Denied,
            SecretRefusal::Missing(_) => Self::NoSecret,
            SecretRefusal::Secret(SecretError::Damaged { .. }) => Self::Corrupt,
            SecretRefusal::Absent | SecretRefusal::Secret(_) => Self::Unavailable,
        }
    }
}

/// Links the call.
pub(super) fn link(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(MODULE, "secret_get", secret_get)?;
    Ok(())
}

/// It reads a file on the thread of the guest: see [`Secrets::get`](crate::secrets::Secrets::get) for how long.
fn secret_get(mut caller: Caller<'_, Host>, name: u32, name_len: u32, buf: u32, cap: u32) -> Result<i32> {
    let (name, host) = span(&mut caller, name, name_len)?;
    // Copied before it is looked at, as with names of buckets. Of a longer name the beginning is one that no secret has either.
    let name = name.get(..=SECRET_NAME_LEN_MAX).unwrap_or(name).to_vec();
    let found = host.secret(&String::from_utf8_lossy(&name));
    match found {
        Ok(value) => deliver_or(&mut caller, buf, cap, value.bytes(), || Bytes::from_owner(value.clone())),
        Err(refusal) => {
            let text = match &refusal {
                // The words of the system are for the operator.
                SecretRefusal::Secret(error @ SecretError::Io { .. }) => {
                    tracing::warn!(%error, "a function cannot read a secret");
                    "the secret cannot be read at present".into()
                }
                refusal => refusal.to_string(),
            };
            Ok(host.refuse_as(Errno::from(&refusal), text))
        }
    }
}

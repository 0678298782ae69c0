//! `wasi:keyvalue` 0.2.0-draft2. The text of the interface is that of the crate `spin-sdk` 5.

use bytes::Bytes;
use wasmtime::Result;
use wasmtime::component::{HasSelf, Linker, Resource};

use self::generated::wasi::keyvalue::{atomics, batch, store};
use super::{Bucket, Cas, Failure, Host, delete, set};

mod generated {
    wasmtime::component::bindgen!({
        path: "wit/keyvalue2",
        world: "imports",
        imports: {
            "wasi:keyvalue/store.[method]bucket.set": async | trappable,
            "wasi:keyvalue/store.[method]bucket.delete": async | trappable,
            "wasi:keyvalue/atomics.increment": async | trappable,
            "wasi:keyvalue/atomics.swap": async | trappable,
            "wasi:keyvalue/batch.set-many": async | trappable,
            "wasi:keyvalue/batch.delete-many": async | trappable,
            default: trappable,
        },
        with: {
            "wasi:keyvalue/store.bucket": crate::capability::keyvalue::Bucket,
            "wasi:keyvalue/atomics.cas": crate::capability::keyvalue::Cas,
        },
        trappable_error_type: { "wasi:keyvalue/store.error" => crate::capability::keyvalue::Failure },
    });
}

pub(super) fn link(linker: &mut Linker<Host>) -> Result<()> {
    store::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    atomics::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    batch::add_to_linker::<_, HasSelf<_>>(linker, |host| host)
}

fn error(failure: Failure) -> Result<store::Error> {
    match failure {
        Failure::NoSuchStore => Ok(store::Error::NoSuchStore),
        Failure::AccessDenied => Ok(store::Error::AccessDenied),
        Failure::Other(text) => Ok(store::Error::Other(text)),
        Failure::Trap(error) => Err(error),
    }
}

impl store::Host for Host {
    fn open(&mut self, name: String) -> Result<Resource<Bucket>, Failure> {
        self.kv_open(&name)
    }

    fn convert_error(&mut self, failure: Failure) -> Result<store::Error> {
        error(failure)
    }
}

impl store::HostBucket for Host {
    fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Option<Vec<u8>>, Failure> {
        self.kv_get(&bucket, &key)
    }

    async fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Result<(), Failure> {
        self.kv_write(&bucket, vec![set(key, value)]).await.map(drop)
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Result<(), Failure> {
        self.kv_write(&bucket, vec![delete(key)]).await.map(drop)
    }

    fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Result<bool, Failure> {
        self.kv_exists(&bucket, &key)
    }

    /// A cursor is the last key of its page in hexadecimal digits: it stays good for ever, and whoever made one up only begins there.
    fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<String>) -> Result<store::KeyResponse, Failure> {
        let after = match cursor {
            Some(cursor) => Some(unhex(&cursor).ok_or_else(|| Failure::Other("the cursor is none of a list of keys".into()))?),
            None => None,
        };
        let page = self.kv_list(&bucket, after.as_deref())?;
        Ok(store::KeyResponse { keys: page.keys, cursor: page.next.as_ref().map(hex) })
    }

    fn drop(&mut self, bucket: Resource<Bucket>) -> Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for Host {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: i64) -> Result<i64, Failure> {
        self.kv_increment(&bucket, key, delta).await
    }

    async fn swap(&mut self, cas: Resource<Cas>, value: Vec<u8>) -> Result<Result<(), atomics::CasError>> {
        match self.cas_swap(cas, value).await {
            Ok(None) => Ok(Ok(())),
            Ok(Some(again)) => Ok(Err(atomics::CasError::CasFailed(again))),
            Err(failure) => Ok(Err(atomics::CasError::StoreError(error(failure)?))),
        }
    }
}

impl atomics::HostCas for Host {
    fn new(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Resource<Cas>, Failure> {
        self.cas_new(&bucket, key)
    }

    fn current(&mut self, cas: Resource<Cas>) -> Result<Option<Vec<u8>>, Failure> {
        self.cas_current(&cas)
    }

    fn drop(&mut self, cas: Resource<Cas>) -> Result<()> {
        self.table.delete(cas)?;
        Ok(())
    }
}

impl batch::Host for Host {
    fn get_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Result<Vec<(String, Option<Vec<u8>>)>, Failure> {
        let found = self.kv_get_many(&bucket, &keys)?;
        Ok(keys.into_iter().zip(found).collect())
    }

    async fn set_many(&mut self, bucket: Resource<Bucket>, entries: Vec<(String, Vec<u8>)>) -> Result<(), Failure> {
        let ops = entries.into_iter().map(|(key, value)| set(key, value)).collect();
        self.kv_write(&bucket, ops).await.map(drop)
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Result<(), Failure> {
        self.kv_write(&bucket, keys.into_iter().map(delete).collect()).await.map(drop)
    }
}

fn hex(key: &Bytes) -> String {
    format!("{key:x}")
}

fn unhex(cursor: &str) -> Option<Vec<u8>> {
    let digits = cursor.as_bytes();
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = digits.len().is_multiple_of(2).then(|| digits.chunks_exact(2))?;
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_keys_in_hexadecimal_digits() {
        for key in [&b"a"[..], b"\0\xff", b"key/of\nmany"] {
            assert_eq!(unhex(&hex(&Bytes::copy_from_slice(key))).as_deref(), Some(key));
        }
        for wrong in ["a", "zz", "0x", "\u{e9}", "+1"] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }
}

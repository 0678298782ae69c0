//! `wasi:keyvalue` 0.2.0-draft. The text of the interface is that of the crate `wasmtime-wasi-keyvalue` 48.

use wasmtime::Result;
use wasmtime::component::{HasSelf, Linker, Resource};

use self::generated::wasi::keyvalue::{atomics, batch, store};
use super::{Bucket, Failure, Host, delete, set};

mod generated {
    wasmtime::component::bindgen!({
        path: "wit/keyvalue",
        world: "imports",
        imports: {
            "wasi:keyvalue/store.[method]bucket.set": async | trappable,
            "wasi:keyvalue/store.[method]bucket.delete": async | trappable,
            "wasi:keyvalue/atomics.increment": async | trappable,
            "wasi:keyvalue/batch.set-many": async | trappable,
            "wasi:keyvalue/batch.delete-many": async | trappable,
            default: trappable,
        },
        with: { "wasi:keyvalue/store.bucket": crate::capability::keyvalue::Bucket },
        trappable_error_type: { "wasi:keyvalue/store.error" => crate::capability::keyvalue::Failure },
    });
}

pub(super) fn link(linker: &mut Linker<Host>) -> Result<()> {
    store::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    atomics::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    batch::add_to_linker::<_, HasSelf<_>>(linker, |host| host)
}

impl store::Host for Host {
    fn open(&mut self, name: String) -> Result<Resource<Bucket>, Failure> {
        self.kv_open(&name)
    }

    fn convert_error(&mut self, failure: Failure) -> Result<store::Error> {
        match failure {
            Failure::NoSuchStore => Ok(store::Error::NoSuchStore),
            Failure::AccessDenied => Ok(store::Error::AccessDenied),
            Failure::Other(text) => Ok(store::Error::Other(text)),
            Failure::Trap(error) => Err(error),
        }
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

    fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<u64>) -> Result<store::KeyResponse, Failure> {
        let id = self.kv_bucket(&bucket)?.bucket.id;
        let after = cursor.map(|cursor| self.cursors.find(id, cursor)).transpose()?;
        let page = self.kv_list(&bucket, after.as_deref())?;
        let cursor = page.next.map(|after| self.cursors.keep(id, after));
        Ok(store::KeyResponse { keys: page.keys, cursor })
    }

    fn drop(&mut self, bucket: Resource<Bucket>) -> Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for Host {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> Result<u64, Failure> {
        let by = i64::try_from(delta).map_err(|_| Failure::Other(format!("{delta} is too much to add: at most {}", i64::MAX)))?;
        let negative =
            |value: &str| Failure::Other(format!("the number is {value}, which this version of the interface cannot say"));
        // Numbers are signed here, and another door may have written one. It is not added to, unless it was written just now.
        match self.kv_get(&bucket, &key)? {
            Some(value) if value.starts_with(b"-") => return Err(negative(&String::from_utf8_lossy(&value))),
            _ => {}
        }
        let sum = self.kv_increment(&bucket, key, by).await?;
        u64::try_from(sum).map_err(|_| negative(&sum.to_string()))
    }
}

impl batch::Host for Host {
    fn get_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Result<Vec<Option<(String, Vec<u8>)>>, Failure> {
        let found = self.kv_get_many(&bucket, &keys)?;
        Ok(keys.into_iter().zip(found).map(|(key, value)| Some((key, value?))).collect())
    }

    async fn set_many(&mut self, bucket: Resource<Bucket>, entries: Vec<(String, Vec<u8>)>) -> Result<(), Failure> {
        let ops = entries.into_iter().map(|(key, value)| set(key, value)).collect();
        self.kv_write(&bucket, ops).await.map(drop)
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Result<(), Failure> {
        self.kv_write(&bucket, keys.into_iter().map(delete).collect()).await.map(drop)
    }
}

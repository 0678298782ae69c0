//! `wasi:blobstore` 0.2.0-draft: the objects of granted buckets, for components. A container is a bucket. The text of the interface is
//! that of the crate `wasmcloud-runtime` 0.12.
//!
//! Owns what the guest holds of containers; `names.rs` has lists, `incoming.rs` objects on their way out of a bucket and `outgoing.rs` those
//! on their way into one.
//! Knows nothing about grants (`capability/data.rs`) and how objects are kept (`data`). Invariant: what the host keeps for an instance is
//! bounded by [`OBJECTS_MAX`] and [`OUTGOING_BYTES_MAX`], whatever the objects' sizes are.
//!
//! Names are text here: objects whose keys are none are there, and are not listed. What the interface has no word for (content
//! type, metadata, ETag, time to live) is not seen and, in a put, not there; a copy keeps the first two.

mod incoming;
mod names;
mod outgoing;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use wasmtime::Result;
use wasmtime::component::{HasSelf, Linker, Resource, ResourceTableError};
use wasmtime_wasi::p2::DynOutputStream;

use self::generated::wasi::blobstore::{blobstore, container, types};
pub use self::incoming::Incoming;
pub use self::names::Names;

use self::outgoing::Writing;
use super::blocking::Jobs;
use super::data::{AccessError, OpenBucket};
use super::descriptors::Descriptor;
use super::{HANDLES_MAX, Host, Refusal};
use crate::data::DataError;
use crate::data::objects::{self, Head, Opened, PAGE_LEN_MAX, Page, PutOptions, Upload, When};
use crate::grants::Access;

/// Objects that an instance may have open or put at once: each is a file.
pub const OBJECTS_MAX: usize = 64;
/// Bytes of values that an instance has written and no bucket has taken yet. A value that was given to `write-data` goes on to its
/// bucket while it is written; one that was not waits here as a whole.
pub const OUTGOING_BYTES_MAX: usize = 4 << 20;
/// Longest value that `incoming-value-consume-sync` gives; a stream gives any.
pub const SYNC_BYTES_MAX: u64 = 16 << 20;
/// Piece in which an object is copied.
const COPY_BYTES: usize = 1 << 20;
/// Deletions that wait for one commit.
const DELETIONS: usize = 64;

mod generated {
    wasmtime::component::bindgen!({
        path: "wit/blobstore",
        world: "imports",
        imports: {
            "wasi:blobstore/blobstore.copy-object": async | trappable,
            "wasi:blobstore/blobstore.move-object": async | trappable,
            "wasi:blobstore/container.[method]container.get-data": async | trappable,
            "wasi:blobstore/container.[method]container.write-data": async | trappable,
            "wasi:blobstore/container.[method]container.delete-object": async | trappable,
            "wasi:blobstore/container.[method]container.delete-objects": async | trappable,
            "wasi:blobstore/container.[method]container.clear": async | trappable,
            "wasi:blobstore/container.[method]container.has-object": async | trappable,
            "wasi:blobstore/container.[method]container.object-info": async | trappable,
            "wasi:blobstore/container.[method]stream-object-names.read-stream-object-names": async | trappable,
            "wasi:blobstore/container.[method]stream-object-names.skip-stream-object-names": async | trappable,
            "wasi:blobstore/types.[static]outgoing-value.finish": async | trappable,
            "wasi:blobstore/types.[static]incoming-value.incoming-value-consume-sync": async | trappable,
            default: trappable,
        },
        with: {
            "wasi:io": wasmtime_wasi::p2::bindings::io,
            "wasi:blobstore/container.container": crate::capability::blobstore::Container,
            "wasi:blobstore/container.stream-object-names": crate::capability::blobstore::Names,
            "wasi:blobstore/types.outgoing-value": crate::capability::blobstore::Outgoing,
            "wasi:blobstore/types.incoming-value": crate::capability::blobstore::Incoming,
        },
    });
}

/// Links the interface.
///
/// # Errors
/// Only if a name is defined twice: a bug of ours.
pub(super) fn link(linker: &mut Linker<Host>) -> Result<()> {
    types::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    container::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    blobstore::add_to_linker::<_, HasSelf<_>>(linker, |host| host)
}

/// What an instance has of objects, in sums.
#[derive(Debug, Default)]
pub(super) struct Blobs {
    /// One more reference for each object that is open or being put.
    objects: Arc<()>,
    /// Bytes that were written and no bucket has taken.
    outgoing: Arc<AtomicUsize>,
}

/// A bucket that a guest has a handle of.
#[derive(Debug)]
pub struct Container(Arc<OpenBucket>);

/// A value to be written.
#[derive(Debug)]
pub struct Outgoing {
    writing: Arc<Writing>,
    has_stream: bool,
}

/// A place among the objects that an instance has open or unfinished, and a descriptor among those that guests have.
#[derive(Debug)]
struct Place {
    _count: Arc<()>,
    _descriptor: Descriptor,
}

/// What the interface answers: a value, or words.
type Answer<T> = std::result::Result<T, String>;

fn text(error: impl Into<AccessError>) -> String {
    error.into().text()
}

/// Runs what may block for long, about objects in `place`. A guest that ends meanwhile does not wait for it.
async fn blocking<T: Send + 'static>(
    jobs: Jobs,
    place: objects::Place,
    run: impl FnOnce() -> std::result::Result<T, DataError> + Send + 'static,
) -> Answer<T> {
    match jobs.run_at(place, run).await {
        Ok(result) => result.map_err(text),
        Err(error) => {
            tracing::error!(%error, "work on an object ended with a panic");
            Err(text(DataError::Closed))
        }
    }
}

async fn open(bucket: &Arc<OpenBucket>, name: &str) -> Answer<Opened> {
    let (bucket, key, place) = (bucket.clone(), name.to_owned(), bucket.objects.place(&bucket.bucket));
    let opened = blocking(bucket.jobs.clone(), place, move || bucket.objects.open(&bucket.bucket, key.as_bytes())).await?;
    opened.ok_or_else(|| no_object(name))
}

async fn put(bucket: &Arc<OpenBucket>, name: String, options: PutOptions) -> Answer<Box<dyn Upload>> {
    let (bucket, place) = (bucket.clone(), bucket.objects.place(&bucket.bucket));
    blocking(bucket.jobs.clone(), place, move || bucket.objects.put(&bucket.bucket, name.as_bytes(), options)).await
}

fn no_object(name: &str) -> String {
    format!("there is no object '{name}'")
}

/// Asks what is known of objects: at once where that takes microseconds.
async fn ask<T: Send + 'static>(
    bucket: &Arc<OpenBucket>,
    ask: impl FnOnce(&OpenBucket) -> std::result::Result<T, DataError> + Send + 'static,
) -> Answer<T> {
    match bucket.objects.place(&bucket.bucket) {
        objects::Place::Memory | objects::Place::Disk => ask(bucket).map_err(text),
        place @ objects::Place::Elsewhere => {
            let bucket = bucket.clone();
            blocking(bucket.jobs.clone(), place, move || ask(&bucket)).await
        }
    }
}

/// What is known of an object, `None` if there is none.
async fn head(bucket: &Arc<OpenBucket>, name: &str) -> Answer<Option<Head>> {
    let name = name.to_owned();
    ask(bucket, move |bucket| bucket.objects.head(&bucket.bucket, name.as_bytes())).await
}

/// A page of a list.
async fn list(bucket: &Arc<OpenBucket>, after: Option<Bytes>, limit: usize) -> Answer<Page> {
    ask(bucket, move |bucket| bucket.objects.list(&bucket.bucket, b"", after.as_deref(), limit)).await
}

/// Deletes objects, a commit for many of them. What was deleted before an error stays so.
async fn delete(bucket: &OpenBucket, names: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Answer<()> {
    let mut names = names.into_iter();
    loop {
        let next = names.by_ref().take(DELETIONS);
        let acks: Vec<_> = next.map(|name| bucket.objects.delete(&bucket.bucket, name.as_ref(), When::Always)).collect();
        if acks.is_empty() {
            return Ok(());
        }
        for ack in acks {
            ack.await.map_err(text)?;
        }
    }
}

impl Host {
    /// Keeps a resource for the guest; words if it has too many.
    fn keep<T: Send + 'static>(&mut self, resource: T) -> Result<Answer<Resource<T>>> {
        match self.table.push(resource) {
            Ok(handle) => Ok(Ok(handle)),
            Err(ResourceTableError::Full) => Ok(Err(format!("a function holds at most {HANDLES_MAX} handles: drop some first"))),
            Err(error) => Err(error.into()),
        }
    }

    /// A place among the objects that the instance may have open.
    fn place(&self) -> Answer<Place> {
        if Arc::strong_count(&self.blobs.objects) > OBJECTS_MAX {
            return Err(format!("a function has at most {OBJECTS_MAX} objects open or unfinished: drop or finish some first"));
        }
        let descriptor =
            self.environment.data.descriptors().take().ok_or("the node has as many objects open as it may: try again")?;
        Ok(Place { _count: self.blobs.objects.clone(), _descriptor: descriptor })
    }

    /// The bucket of a name, for this use.
    fn container(&mut self, name: &str, need: Access) -> Answer<Arc<OpenBucket>> {
        let bucket = self.open_bucket(name).map_err(text)?;
        self.allow(&bucket, need).map_err(text)?;
        Ok(bucket)
    }

    /// The bucket of a handle, for this use.
    fn contained(&self, handle: &Resource<Container>, need: Access) -> Result<Answer<Arc<OpenBucket>>> {
        let bucket = &self.table.get(handle)?.0;
        Ok(self.allow(bucket, need).map_err(text).map(|()| bucket.clone()))
    }

    /// Copies an object; what its copy was made of.
    async fn copy(&mut self, from: &types::ObjectId, to: &types::ObjectId) -> Answer<(Arc<OpenBucket>, Head)> {
        let source = self.container(&from.container, Access::Read)?;
        let target = self.container(&to.container, Access::ReadWrite)?;
        let _places = (self.place()?, self.place()?);
        let opened = Arc::new(open(&source, &from.object).await?);
        let head = opened.head().clone();
        let same = source.bucket.id == target.bucket.id && from.object == to.object;
        if same {
            return Ok((source, head));
        }
        let (content_type, metadata) = (head.content_type.clone(), head.metadata.clone());
        let options = PutOptions { content_type, metadata, digest: head.digest, ..PutOptions::default() };
        let mut upload = put(&target, to.object.clone(), options).await?;
        let at_target = target.objects.place(&target.bucket);
        // In pieces, so that a guest that ends takes the copy with it.
        let mut at = 0;
        while at < head.len {
            let opened = opened.clone();
            let copied = blocking(target.jobs.clone(), at_target, move || {
                let mut piece = vec![0; COPY_BYTES];
                let count = opened.read_at(at, &mut piece)?;
                upload.write(&piece[..count])?;
                Ok((upload, count as u64))
            });
            let (back, count) = copied.await?;
            upload = back;
            at += count;
        }
        blocking(target.jobs.clone(), at_target, move || Ok(upload.finish())).await?.await.map_err(text)?;
        Ok((source, head))
    }
}

/// Why a guest makes and deletes no buckets.
fn not_here(name: &str) -> String {
    format!(
        "a function neither makes nor deletes buckets: declare [[bucket]] name = \"{name}\" in hob.toml, or use the API of the node"
    )
}

impl blobstore::Host for Host {
    fn create_container(&mut self, name: String) -> Result<Answer<Resource<Container>>> {
        Ok(Err(not_here(&name)))
    }

    fn get_container(&mut self, name: String) -> Result<Answer<Resource<Container>>> {
        match self.container(&name, Access::Read) {
            Ok(bucket) => self.keep(Container(bucket)),
            Err(text) => Ok(Err(text)),
        }
    }

    fn delete_container(&mut self, name: String) -> Result<Answer<()>> {
        Ok(Err(not_here(&name)))
    }

    fn container_exists(&mut self, name: String) -> Result<Answer<bool>> {
        Ok(match self.open_bucket(&name) {
            Ok(_) => Ok(true),
            Err(AccessError::Data(DataError::NoSuchBucket { .. })) => Ok(false),
            Err(error) => Err(error.text()),
        })
    }

    async fn copy_object(&mut self, from: types::ObjectId, to: types::ObjectId) -> Result<Answer<()>> {
        Ok(self.copy(&from, &to).await.map(drop))
    }

    /// A copy, and then the deletion of what was copied, unless it was replaced meanwhile.
    async fn move_object(&mut self, from: types::ObjectId, to: types::ObjectId) -> Result<Answer<()>> {
        match self.container(&from.container, Access::ReadWrite) {
            // Before anything is copied. Its store deletes whatever is there by then.
            Ok(bucket) if bucket.bucket.origin.is_some() => {
                return Ok(Err("objects are not moved out of a bucket with an origin: copy and delete them".into()));
            }
            Ok(_) => {}
            Err(text) => return Ok(Err(text)),
        }
        let (source, head) = match self.copy(&from, &to).await {
            Ok(copied) => copied,
            Err(text) => return Ok(Err(text)),
        };
        if from.container == to.container && from.object == to.object {
            return Ok(Ok(()));
        }
        let deleted = source.objects.delete(&source.bucket, from.object.as_bytes(), When::Etag(head.etag)).await;
        Ok(deleted.map(drop).map_err(text))
    }
}

impl container::Host for Host {}

impl container::HostContainer for Host {
    fn name(&mut self, container: Resource<Container>) -> Result<Answer<String>> {
        Ok(Ok(self.table.get(&container)?.0.bucket.name.to_string()))
    }

    fn info(&mut self, container: Resource<Container>) -> Result<Answer<types::ContainerMetadata>> {
        let bucket = &self.table.get(&container)?.0.bucket;
        Ok(Ok(types::ContainerMetadata { name: bucket.name.to_string(), created_at: bucket.created_ms / 1000 }))
    }

    async fn get_data(
        &mut self,
        container: Resource<Container>,
        name: String,
        start: u64,
        end: u64,
    ) -> Result<Answer<Resource<Incoming>>> {
        let incoming = match self.contained(&container, Access::Read)? {
            Ok(bucket) => self.incoming(&bucket, &name, start, end).await,
            Err(text) => Err(text),
        };
        match incoming {
            Ok(incoming) => self.keep(incoming),
            Err(text) => Ok(Err(text)),
        }
    }

    async fn write_data(&mut self, container: Resource<Container>, name: String, data: Resource<Outgoing>) -> Result<Answer<()>> {
        let writing = self.table.get(&data)?.writing.clone();
        let bucket = match self.contained(&container, Access::ReadWrite)? {
            Ok(bucket) => bucket,
            Err(text) => return Ok(Err(text)),
        };
        let place = match self.place() {
            Ok(place) if !writing.has_target() => place,
            Ok(_) => return Ok(Err("the value was given to write-data before: make one for each object".into())),
            Err(text) => return Ok(Err(text)),
        };
        let at = bucket.objects.place(&bucket.bucket);
        Ok(put(&bucket, name, PutOptions::default()).await.map(|upload| writing.begin(upload, at, place)))
    }

    fn list_objects(&mut self, container: Resource<Container>) -> Result<Answer<Resource<Names>>> {
        match self.contained(&container, Access::Read)? {
            Ok(bucket) => self.keep(Names { bucket, after: None, has_ended: false }),
            Err(text) => Ok(Err(text)),
        }
    }

    async fn delete_object(&mut self, container: Resource<Container>, name: String) -> Result<Answer<()>> {
        self.delete_objects(container, vec![name]).await
    }

    async fn delete_objects(&mut self, container: Resource<Container>, names: Vec<String>) -> Result<Answer<()>> {
        match self.contained(&container, Access::ReadWrite)? {
            Ok(bucket) => Ok(delete(&bucket, names).await),
            Err(text) => Ok(Err(text)),
        }
    }

    async fn has_object(&mut self, container: Resource<Container>, name: String) -> Result<Answer<bool>> {
        Ok(match self.contained(&container, Access::Read)? {
            Ok(bucket) => head(&bucket, &name).await.map(|head| head.is_some()),
            Err(text) => Err(text),
        })
    }

    async fn object_info(&mut self, container: Resource<Container>, name: String) -> Result<Answer<types::ObjectMetadata>> {
        let bucket = match self.contained(&container, Access::Read)? {
            Ok(bucket) => bucket,
            Err(text) => return Ok(Err(text)),
        };
        Ok(head(&bucket, &name).await.and_then(|head| {
            let head = head.ok_or_else(|| no_object(&name))?;
            let container = bucket.bucket.name.to_string();
            Ok(types::ObjectMetadata { name, container, created_at: head.modified_ms / 1000, size: head.len })
        }))
    }

    /// Objects that are put meanwhile may stay.
    async fn clear(&mut self, container: Resource<Container>) -> Result<Answer<()>> {
        let bucket = match self.contained(&container, Access::ReadWrite)? {
            Ok(bucket) => bucket,
            Err(text) => return Ok(Err(text)),
        };
        let mut after = None::<Bytes>;
        loop {
            let page = match list(&bucket, after, PAGE_LEN_MAX).await {
                Ok(page) => page,
                Err(text) => return Ok(Err(text)),
            };
            if let Err(text) = delete(&bucket, page.objects.into_iter().map(|(key, _)| key)).await {
                return Ok(Err(text));
            }
            after = page.next;
            if after.is_none() {
                return Ok(Ok(()));
            }
        }
    }

    fn drop(&mut self, container: Resource<Container>) -> Result<()> {
        self.table.delete(container)?;
        Ok(())
    }
}

impl types::Host for Host {}

impl types::HostOutgoingValue for Host {
    fn new_outgoing_value(&mut self) -> Result<Resource<Outgoing>> {
        let writing = Writing::new(self.blobs.outgoing.clone(), self.environment.data.jobs());
        // The interface has no word for a refusal here.
        self.keep(Outgoing { writing, has_stream: false })?.map_err(|text| Refusal::bad_call(text).into())
    }

    fn outgoing_value_write_body(
        &mut self,
        value: Resource<Outgoing>,
    ) -> Result<std::result::Result<Resource<DynOutputStream>, ()>> {
        let outgoing = self.table.get_mut(&value)?;
        if std::mem::replace(&mut outgoing.has_stream, true) {
            return Ok(Err(()));
        }
        let stream: DynOutputStream = Box::new(outgoing.writing.stream());
        match self.table.push_child(stream, &value) {
            Ok(stream) => Ok(Ok(stream)),
            Err(ResourceTableError::Full) => Ok(Err(())),
            Err(error) => Err(error.into()),
        }
    }

    async fn finish(&mut self, value: Resource<Outgoing>) -> Result<Answer<()>> {
        let outgoing = self.outgoing_end(value)?;
        let (upload, at) = match outgoing.writing.whole().await {
            Ok(whole) => whole,
            Err(text) => return Ok(Err(text)),
        };
        Ok(match blocking(self.environment.data.jobs(), at, move || Ok(upload.finish())).await {
            Ok(ack) => ack.await.map(drop).map_err(text),
            Err(text) => Err(text),
        })
    }

    fn drop(&mut self, value: Resource<Outgoing>) -> Result<()> {
        self.outgoing_end(value).map(drop)
    }
}

impl Host {
    fn outgoing_end(&mut self, value: Resource<Outgoing>) -> Result<Outgoing> {
        self.table.delete(value).map_err(|error| match error {
            ResourceTableError::HasChildren => {
                Refusal::bad_call("an outgoing-value was finished or dropped before the stream of its body").into()
            }
            error => error.into(),
        })
    }
}

//! What the host keeps in its own memory for a component: sets of HTTP headers, requests and responses, pieces of bodies, listings of folders;
//! and for a core module the listing that it reads.
//!
//! Owns its sum, and bounds on the calls by which a guest makes it grow, put over those of WASI's library. Knows nothing about what is sent or
//! listed. Invariants: the sum that is known is never less than what is there, it never passes [`HELD_BYTES_MAX`], and what passes
//! [`FREE_BYTES`] is charged to the guest's memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::HeaderMap;
use http_body::Body;
use wasmtime::component::{Linker, Resource};
use wasmtime::{Result, Store, StoreContextMut};
use wasmtime_wasi::p2::bindings::io::streams;
use wasmtime_wasi_http::p2::bindings::http::{outgoing_handler, types as types2};
use wasmtime_wasi_http::p2::body::{HostFutureTrailers, HostOutgoingBody};
use wasmtime_wasi_http::p2::types as held2;
use wasmtime_wasi_http::p3::bindings::http::{client, types as types3};
use wasmtime_wasi_http::p3::{Request, Response};
use wasmtime_wasi_http::{FieldMap, RequestOptions, WasiBody, WasiHttp, WasiHttpView as _};

use super::listing::Listing;
use super::{FIELDS_BYTES_MAX, Host, Refusal};
use crate::egress::HEAD_BYTES_MAX;
use crate::fault::Code;

/// Most bytes that the host keeps for one component.
pub const HELD_BYTES_MAX: usize = 8 << 20;
/// So many of them are on nobody's account: what answers a request and sends another stays below.
pub const FREE_BYTES: usize = 256 << 10;
/// Longest method, authority, and path with its query, of a request that a guest builds, each in bytes.
pub const TARGET_PART_BYTES_MAX: usize = 8 << 10;
/// Longest trailers of a body that a guest of 0.2 builds, in bytes of memory.
pub const TRAILERS_BYTES_MAX: usize = 4 << 10;
/// Most bytes that a component of 0.2 writes to a stream at once.
pub const WRITE_BYTES_MAX: usize = 64 << 10;
/// Pieces in which a body of 0.2 is taken; the library keeps two of them.
pub const BODY_PIECE_BYTES: usize = 32 << 10;
/// Most handles of a component within the engine: those of its own resources, and streams, futures and calls.
pub const COMPONENT_HANDLES_MAX: usize = 8192;
/// Most bytes that a component gives the host in one call.
pub const CALL_BYTES_MAX: usize = 32 << 20;
/// What a stream that reads a file keeps at most.
pub(super) const FILE_STREAM_BYTES: usize = 64 << 10;

/// In such steps memory is charged.
const CHARGE_BYTES: usize = 64 << 10;
/// What one header takes beside its bytes: its place in the map, which may be half empty, and two allocations.
const HEADER_BYTES: usize = 224;
/// What a body that is written takes at most.
const BODY_BYTES: usize = 2 * BODY_PIECE_BYTES + TRAILERS_BYTES_MAX;

/// How much it is.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// At least what is held: what was counted, and what may have come since.
    bytes: usize,
    /// What was counted last.
    counted: usize,
    /// Of it, what the guest's memory is charged with.
    charged: usize,
}

/// Bytes of what is in no handle: requests that are under way, with the heads of their responses, and what streams keep. Nothing until the first.
#[derive(Debug, Clone, Default)]
pub(super) struct Asides(Option<Arc<AtomicUsize>>);

/// One of them: counted until it is dropped. A response carries it until it is the guest's.
#[derive(Debug, Clone)]
pub(super) struct Aside(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    sum: Arc<AtomicUsize>,
    bytes: AtomicUsize,
}

impl Asides {
    /// Counts so many bytes.
    pub(super) fn begin(&mut self, bytes: usize) -> Aside {
        let sum = self.0.get_or_insert_default().clone();
        sum.fetch_add(bytes, Ordering::Relaxed);
        Aside(Arc::new(Counted { sum, bytes: AtomicUsize::new(bytes) }))
    }

    /// Counts a request that is sent, and room for the head of its response.
    pub(super) fn sent(&mut self, request: &http::Request<WasiBody>) -> Aside {
        let body = if request.body().is_end_stream() { 0 } else { BODY_BYTES };
        let uri = request.uri();
        let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
        let target = authority + uri.path_and_query().map_or(0, |path| path.as_str().len());
        self.begin(size(request.headers()) + request.method().as_str().len() + target + body + HEAD_BYTES_MAX)
    }

    fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |sum| sum.load(Ordering::Relaxed))
    }
}

impl Aside {
    /// From now on it is this head alone that is counted.
    pub(super) fn answered(&self, head: &HeaderMap) {
        let Counted { sum, bytes } = &*self.0;
        let now = size(head);
        sum.fetch_add(now, Ordering::Relaxed);
        sum.fetch_sub(bytes.swap(now, Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.sum.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// Of a set of headers, in bytes of memory.
fn size(headers: &HeaderMap) -> usize {
    let names: usize = headers.keys().map(|name| name.as_str().len()).sum();
    headers.values().map(|value| value.len() + HEADER_BYTES).sum::<usize>() + names
}

/// The same of one that is to be made.
fn size_of_list<'a>(list: impl IntoIterator<Item = (&'a String, &'a Vec<u8>)>) -> usize {
    list.into_iter().map(|(name, value)| name.len() + value.len() + HEADER_BYTES).sum()
}

/// Bounds what the engine keeps for a component by itself.
pub fn bound_store(store: &mut Store<Host>) {
    store.set_hostcall_fuel(CALL_BYTES_MAX);
    store.set_max_component_handles(COMPONENT_HANDLES_MAX);
}

impl Host {
    /// Makes room for so many bytes more that the host is about to keep for the guest.
    ///
    /// # Errors
    /// When that passes [`HELD_BYTES_MAX`], or the guest's memory, its tenant's quota or the node has no room for it: the guest ends.
    pub(super) fn hold(&mut self, more: usize) -> Result<()> {
        self.held.bytes = self.held.bytes.saturating_add(more);
        // Counted again whenever as much may have come as was there, so that looking costs no more than bringing it did.
        if self.held.bytes > FREE_BYTES.max(2 * self.held.counted).min(HELD_BYTES_MAX) {
            self.held.counted = self.holds().saturating_add(more);
            self.held.bytes = self.held.counted;
        }
        if self.held.bytes > HELD_BYTES_MAX {
            let detail = format!(
                "the host was to keep more than {HELD_BYTES_MAX} bytes for the function: drop headers, requests, responses and listings that \
                 are done with"
            );
            return Err(Refusal { code: Code::GuestMemory, detail }.into());
        }
        let (due, charged) = (self.held.bytes.saturating_sub(FREE_BYTES).next_multiple_of(CHARGE_BYTES), self.held.charged);
        if due < charged {
            self.memory.undo(charged - due);
        } else if due > charged && !self.memory.grow(charged, due) {
            wasmtime::bail!("there is no memory for what the host keeps for the function");
        }
        self.held.charged = due;
        Ok(())
    }

    /// Gives back what was charged, when the instance goes on under another account.
    pub fn let_go(&mut self) {
        self.memory.undo(std::mem::take(&mut self.held.charged));
    }

    /// Counts what is in no handle until it is dropped.
    pub(super) fn aside(&mut self, bytes: usize) -> Aside {
        self.hooks.asides.begin(bytes)
    }

    /// What is held now, in bytes. Costs a look at each handle and each header.
    fn holds(&mut self) -> usize {
        let mut bytes = self.hooks.asides.bytes();
        // Copies of a set are one in memory until one of them changes, and each may.
        let body = |is_there: bool| if is_there { BODY_BYTES } else { 0 };
        for entry in self.table.iter_mut() {
            let entry = &*entry;
            bytes += if let Some(fields) = entry.downcast_ref::<FieldMap>() {
                size(fields)
            } else if let Some(request) = entry.downcast_ref::<held2::HostOutgoingRequest>() {
                let parts = [&request.authority, &request.path_with_query];
                let parts: usize = parts.into_iter().flatten().map(String::len).sum();
                let method = if let types2::Method::Other(name) = &request.method { name.len() } else { 0 };
                size(&request.headers) + parts + method + body(request.body.is_some())
            } else if let Some(response) = entry.downcast_ref::<held2::HostOutgoingResponse>() {
                size(&response.headers) + body(response.body.is_some())
            } else if let Some(response) = entry.downcast_ref::<held2::HostIncomingResponse>() {
                size(&response.headers)
            } else if let Some(HostFutureTrailers::Done(Ok(Some(trailers)))) = entry.downcast_ref() {
                size(trailers)
            } else if let Some(request) = entry.downcast_ref::<Request>() {
                let authority = request.authority.as_ref().map_or(0, |authority| authority.as_str().len());
                let path = request.path_with_query.as_ref().map_or(0, |path| path.as_str().len());
                size(&request.headers) + request.method.as_str().len() + authority + path
            } else if let Some(response) = entry.downcast_ref::<Response>() {
                size(&response.headers)
            } else if let Some(listing) = entry.downcast_ref::<Listing>() {
                listing.bytes
            } else {
                // A body that is written is its request's, or its response's.
                0
            };
        }
        bytes
    }

    /// Makes room for a part of a request's target. `false`, and no room made, if it is too long to be one.
    fn hold_part(&mut self, part: Option<&String>) -> Result<bool> {
        let len = part.map_or(0, String::len);
        if len <= TARGET_PART_BYTES_MAX {
            self.hold(len)?;
        }
        Ok(len <= TARGET_PART_BYTES_MAX)
    }

    /// Makes a set of headers anew from which something was taken: the map keeps the room of what it had once.
    fn shrink(&mut self, at: u32) -> Result<()> {
        let fields = self.table.get_mut(&Resource::<FieldMap>::new_borrow(at))?;
        // What a guest may build is bounded; what it copied from a client or a server may be longer already.
        let mut anew = FieldMap::new_mutable(usize::MAX);
        for (name, value) in fields.iter() {
            anew.append_raw(name.clone(), value.clone())?;
        }
        anew.set_mutable(FIELDS_BYTES_MAX);
        *fields = anew;
        Ok(())
    }

    /// Of a set of headers, in bytes; 0 if there is none.
    fn size_of_fields(&self, fields: &Resource<FieldMap>) -> usize {
        self.table.get(fields).map_or(0, |fields| size(fields))
    }
}

/// Calls of `fields` and of requests that are the same in 0.2 and 0.3.
macro_rules! link_types {
    ($linker:ident, $interface:literal, $types:ident, $host:ident, $request:ty, $prefix:literal) => {{
        type Failed = $types::HeaderError;
        type Done = Result<(std::result::Result<(), Failed>,)>;
        type Listed = Result<(std::result::Result<Resource<FieldMap>, Failed>,)>;
        type Set = Result<(std::result::Result<(), ()>,)>;
        let mut instance = $linker.instance($interface)?;
        instance.func_wrap("[static]fields.from-list", |mut store: Of<'_>, (list,): (Vec<(String, Vec<u8>)>,)| -> Listed {
            let host = store.data_mut();
            host.hold(size_of_list(list.iter().map(|(name, value)| (name, value))))?;
            match $types::HostFields::from_list(&mut host.http(), list) {
                Ok(fields) => Ok((Ok(fields),)),
                Err(error) => Ok((Err(error.downcast()?),)),
            }
        })?;
        type Several = (Resource<FieldMap>, String, Vec<Vec<u8>>);
        instance.func_wrap("[method]fields.set", |mut store: Of<'_>, (fields, name, values): Several| -> Done {
            let host = store.data_mut();
            host.hold(size_of_list(values.iter().map(|value| (&name, value))))?;
            let (at, before) = (fields.rep(), host.size_of_fields(&fields));
            match $types::HostFields::set(&mut host.http(), fields, name, values) {
                Ok(()) if host.size_of_fields(&Resource::new_borrow(at)) < before => Ok((Ok(host.shrink(at)?),)),
                Ok(()) => Ok((Ok(()),)),
                Err(error) => Ok((Err(error.downcast()?),)),
            }
        })?;
        instance.func_wrap(
            "[method]fields.delete",
            |mut store: Of<'_>, (fields, name): (Resource<FieldMap>, String)| -> Done {
                let host = store.data_mut();
                let at = fields.rep();
                match $types::HostFields::delete(&mut host.http(), fields, name) {
                    Ok(()) => Ok((Ok(host.shrink(at)?),)),
                    Err(error) => Ok((Err(error.downcast()?),)),
                }
            },
        )?;
        type One = (Resource<FieldMap>, String, Vec<u8>);
        instance.func_wrap("[method]fields.append", |mut store: Of<'_>, (fields, name, value): One| -> Done {
            let host = store.data_mut();
            host.hold(size_of_list([(&name, &value)]))?;
            match $types::HostFields::append(&mut host.http(), fields, name, value) {
                Ok(()) => Ok((Ok(()),)),
                Err(error) => Ok((Err(error.downcast()?),)),
            }
        })?;
        instance.func_wrap("[method]fields.clone", |mut store: Of<'_>, (fields,): (Resource<FieldMap>,)| {
            let host = store.data_mut();
            // It is copied when one of the two changes, which may be when something is taken away.
            host.hold(host.size_of_fields(&fields))?;
            Ok(($types::HostFields::clone(&mut host.http(), fields)?,))
        })?;
        type Method = (Resource<$request>, $types::Method);
        instance.func_wrap(
            concat!("[method]", $prefix, "request.set-method"),
            |mut store: Of<'_>, (request, method): Method| -> Set {
                let host = store.data_mut();
                if let $types::Method::Other(name) = &method
                    && !host.hold_part(Some(name))?
                {
                    return Ok((Err(()),));
                }
                Ok(($types::$host::set_method(&mut host.http(), request, method)?,))
            },
        )?;
        type Part = (Resource<$request>, Option<String>);
        instance.func_wrap(
            concat!("[method]", $prefix, "request.set-authority"),
            |mut store: Of<'_>, (request, part): Part| -> Set {
                let host = store.data_mut();
                if !host.hold_part(part.as_ref())? {
                    return Ok((Err(()),));
                }
                Ok(($types::$host::set_authority(&mut host.http(), request, part)?,))
            },
        )?;
        instance.func_wrap(
            concat!("[method]", $prefix, "request.set-path-with-query"),
            |mut store: Of<'_>, (request, part): Part| -> Set {
                let host = store.data_mut();
                if !host.hold_part(part.as_ref())? {
                    return Ok((Err(()),));
                }
                Ok(($types::$host::set_path_with_query(&mut host.http(), request, part)?,))
            },
        )?;
    }};
}

type Of<'a> = StoreContextMut<'a, Host>;

/// Puts them over those of WASI's library, of 0.2, and of 0.3 if `concurrent`. `linker` must allow shadowing.
///
/// # Errors
/// Only if the library names its calls differently: a bug of ours.
pub(super) fn link(linker: &mut Linker<Host>, concurrent: bool) -> Result<()> {
    link_types!(linker, "wasi:http/types@0.2.12", types2, HostOutgoingRequest, held2::HostOutgoingRequest, "outgoing-");
    link_bodies2(linker)?;
    link_streams2(linker)?;
    if concurrent {
        link_types!(linker, "wasi:http/types@0.3.0", types3, HostRequest, Request, "");
        type Taken = Result<(std::result::Result<Vec<Vec<u8>>, types3::HeaderError>,)>;
        let mut instance = linker.instance("wasi:http/types@0.3.0")?;
        instance.func_wrap(
            "[method]fields.get-and-delete",
            |mut store: Of<'_>, (fields, name): (Resource<FieldMap>, String)| -> Taken {
                let host = store.data_mut();
                let at = fields.rep();
                match types3::HostFields::get_and_delete(&mut host.http(), fields, name) {
                    Ok(values) => Ok((host.shrink(at).map(|()| Ok(values))?,)),
                    Err(error) => Ok((Err(error.downcast()?),)),
                }
            },
        )?;
        linker.instance("wasi:http/client@0.3.0")?.func_wrap_concurrent("send", |store, (request,): (Resource<Request>,)| {
            Box::pin(async move {
                store.with(|mut store| store.get().hold(HEAD_BYTES_MAX + BODY_BYTES))?;
                let http = store.with_getter::<WasiHttp>(Host::http);
                match <WasiHttp as client::HostWithStore<Host>>::send(&http, request).await {
                    Ok(response) => Ok((Ok(response),)),
                    Err(error) => Ok((Err(error.downcast()?),)),
                }
            })
        })?;
    }
    Ok(())
}

fn link_bodies2(linker: &mut Linker<Host>) -> Result<()> {
    let mut instance = linker.instance("wasi:http/types@0.2.12")?;
    instance.func_wrap("[method]outgoing-request.body", |mut store: Of<'_>, (request,)| {
        let host = store.data_mut();
        host.hold(BODY_BYTES)?;
        Ok((types2::HostOutgoingRequest::body(&mut host.http(), request)?,))
    })?;
    instance.func_wrap("[method]outgoing-response.body", |mut store: Of<'_>, (response,)| {
        let host = store.data_mut();
        host.hold(BODY_BYTES)?;
        Ok((types2::HostOutgoingResponse::body(&mut host.http(), response)?,))
    })?;
    type Finished = Result<(std::result::Result<(), types2::ErrorCode>,)>;
    type Finish = (Resource<HostOutgoingBody>, Option<Resource<FieldMap>>);
    instance.func_wrap("[static]outgoing-body.finish", |mut store: Of<'_>, (body, trailers): Finish| -> Finished {
        let host = store.data_mut();
        let len = trailers.as_ref().map_or(0, |trailers| host.size_of_fields(trailers));
        if len > TRAILERS_BYTES_MAX {
            // Both were given away: the body ends as one that was dropped.
            types2::HostOutgoingBody::drop(&mut host.http(), body)?;
            if let Some(trailers) = trailers {
                host.table.delete(trailers)?;
            }
            return Ok((Err(types2::ErrorCode::HttpRequestTrailerSectionSize(u32::try_from(len).ok())),));
        }
        match types2::HostOutgoingBody::finish(&mut host.http(), body, trailers) {
            Ok(()) => Ok((Ok(()),)),
            Err(error) => Ok((Err(error.downcast()?),)),
        }
    })?;
    type Sent = Result<(std::result::Result<Resource<held2::HostFutureIncomingResponse>, types2::ErrorCode>,)>;
    type Handled = (Resource<held2::HostOutgoingRequest>, Option<Resource<RequestOptions>>);
    let mut instance = linker.instance("wasi:http/outgoing-handler@0.2.12")?;
    instance.func_wrap("handle", |mut store: Of<'_>, (request, options): Handled| -> Sent {
        let host = store.data_mut();
        host.hold(HEAD_BYTES_MAX)?;
        match outgoing_handler::Host::handle(&mut host.http(), request, options) {
            Ok(response) => Ok((Ok(response),)),
            Err(error) => Ok((Err(error.downcast()?),)),
        }
    })
}

fn link_streams2(linker: &mut Linker<Host>) -> Result<()> {
    type Written = Result<(std::result::Result<(), streams::StreamError>,)>;
    let mut instance = linker.instance("wasi:io/streams@0.2.12")?;
    instance.func_wrap("[method]output-stream.write", |mut store: Of<'_>, (stream, bytes): (_, Vec<u8>)| -> Written {
        if bytes.len() > WRITE_BYTES_MAX {
            let detail =
                format!("{} bytes were written to a stream at once: expected no more than check-write allows", bytes.len());
            return Err(Refusal::bad_call(detail).into());
        }
        match streams::HostOutputStream::write(&mut store.data_mut().table, stream, bytes) {
            Ok(()) => Ok((Ok(()),)),
            Err(error) => Ok((Err(streams::Host::convert_stream_error(&mut store.data_mut().table, error)?),)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::MemoryBudget;

    #[test]
    fn a_set_that_something_was_taken_from_lets_go_of_its_room() {
        let mut host = Host::for_nobody();
        let mut fields = FieldMap::new_mutable(FIELDS_BYTES_MAX);
        for number in 0..300 {
            fields.append_raw(format!("n{number}").parse().unwrap(), "v".parse().unwrap()).unwrap();
        }
        assert!(size(&fields) > 300 * HEADER_BYTES);
        let at = host.table.push(fields).unwrap();
        for number in 1..300 {
            types2::HostFields::delete(&mut host.http(), Resource::new_borrow(at.rep()), format!("n{number}")).unwrap();
        }
        assert!(host.table.get(&at).unwrap().capacity() >= 300);
        host.shrink(at.rep()).unwrap();
        let fields = host.table.get(&at).unwrap();
        assert!(fields.capacity() < 10 && fields.get("n0").unwrap() == "v" && fields.len() == 1);
    }

    #[test]
    fn what_is_aside_is_counted_until_it_is_dropped() {
        let mut host = Host::for_nobody();
        host.memory = MemoryBudget::new(HELD_BYTES_MAX);
        let most = HELD_BYTES_MAX - FREE_BYTES;
        host.hold(most).unwrap();
        let one = host.aside(most);
        let other = one.clone();
        drop(one);
        host.hold(FREE_BYTES).unwrap();
        host.hold(FREE_BYTES + 1).unwrap_err();
        drop(other);
        host.hold(1).unwrap();
        assert_eq!((host.holds(), host.held.charged), (0, 0));
    }
}

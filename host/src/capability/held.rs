//! What the host keeps in its own memory for a component: sets of HTTP headers, requests and responses, pieces of bodies, listings of folders.
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
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView as _};
use wasmtime_wasi::p2::ReaddirIterator;
use wasmtime_wasi::p2::bindings::filesystem::types as files2;
use wasmtime_wasi_http::p2::bindings::http::{outgoing_handler, types as types2};
use wasmtime_wasi_http::p2::body::{HostFutureTrailers, HostOutgoingBody};
use wasmtime_wasi_http::p2::types as held2;
use wasmtime_wasi_http::p3::bindings::http::{client, types as types3};
use wasmtime_wasi_http::p3::{Request, Response};
use wasmtime_wasi_http::{FieldMap, RequestOptions, WasiBody, WasiHttp, WasiHttpView as _};

use super::reply::PIECE_LEN_MAX;
use super::{Host, Refusal};
use crate::egress::HEAD_BYTES_MAX;
use crate::fault::Code;

/// Most bytes that the host keeps for one component.
pub const HELD_BYTES_MAX: usize = 8 << 20;
/// So many of them are on nobody's account: what answers a request and sends a few stays below.
pub const FREE_BYTES: usize = 128 << 10;
/// Longest method, authority, and path with its query, of a request that a guest builds, each in bytes.
pub const TARGET_PART_BYTES_MAX: usize = 8 << 10;
/// Most listings of folders that a guest of 0.2 reads at once.
pub const LISTINGS_MAX: usize = 32;
/// Most handles of a component within the engine: those of its own resources, and streams, futures and calls.
pub const COMPONENT_HANDLES_MAX: usize = 8192;
/// Most bytes that a component gives the host in one call.
pub const CALL_BYTES_MAX: usize = 32 << 20;

/// In such steps memory is charged.
const CHARGE_BYTES: usize = 64 << 10;
/// What one header takes beside its bytes: its place in the map, and two allocations.
const HEADER_BYTES: usize = 160;
/// What a listing is counted as: some 2,000 names.
const LISTING_BYTES: usize = 256 << 10;

/// How much it is.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// At least what is held: counted whenever that would pass the bound, and by what may have come since.
    bytes: usize,
    /// Of it, what the guest's memory was charged with. It is not given back before the guest ends.
    charged: usize,
}

/// Bytes of requests that are under way, with the heads of their responses.
#[derive(Debug, Clone, Default)]
pub(super) struct InFlight(Arc<AtomicUsize>);

/// One of them: a response carries it until it is the guest's.
#[derive(Debug, Clone)]
pub(super) struct Flying(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    sum: InFlight,
    bytes: AtomicUsize,
}

impl InFlight {
    pub(super) fn begin(&self, request: &http::Request<WasiBody>) -> Flying {
        let piece = if request.body().is_end_stream() { 0 } else { PIECE_LEN_MAX };
        let uri = request.uri();
        let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
        let target = authority + uri.path_and_query().map_or(0, |path| path.as_str().len());
        let bytes = size(request.headers()) + request.method().as_str().len() + target + piece + HEAD_BYTES_MAX;
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Flying(Arc::new(Counted { sum: self.clone(), bytes: AtomicUsize::new(bytes) }))
    }
}

impl Flying {
    /// From now on it is this head alone that is held.
    pub(super) fn answered(&self, head: &HeaderMap) {
        let Counted { sum: InFlight(sum), bytes } = &*self.0;
        let now = size(head);
        sum.fetch_add(now, Ordering::Relaxed);
        sum.fetch_sub(bytes.swap(now, Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.sum.0.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
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
    fn hold(&mut self, more: usize) -> Result<()> {
        let mut bytes = self.held.bytes.saturating_add(more);
        if bytes > HELD_BYTES_MAX {
            bytes = self.holds().saturating_add(more);
        }
        if bytes > HELD_BYTES_MAX {
            let detail = format!(
                "the host was to keep more than {HELD_BYTES_MAX} bytes for the function: drop headers, requests, responses and listings that \
                 are done with"
            );
            return Err(Refusal { code: Code::GuestMemory, detail }.into());
        }
        self.held.bytes = bytes;
        let due = bytes.saturating_sub(FREE_BYTES).next_multiple_of(CHARGE_BYTES);
        if due > self.held.charged {
            if !self.memory.grow(self.held.charged, due) {
                wasmtime::bail!("there is no memory for what the host keeps for the function");
            }
            self.held.charged = due;
        }
        Ok(())
    }

    /// What is held now, in bytes. Costs a look at each handle and each header.
    fn holds(&mut self) -> usize {
        let mut bytes = self.hooks.in_flight.0.load(Ordering::Relaxed);
        // Copies of a set are one in memory until one of them changes, and each may.
        let piece = |is_there: bool| if is_there { PIECE_LEN_MAX } else { 0 };
        for entry in self.table.iter_mut() {
            let entry = &*entry;
            bytes += if let Some(fields) = entry.downcast_ref::<FieldMap>() {
                size(fields)
            } else if let Some(request) = entry.downcast_ref::<held2::HostOutgoingRequest>() {
                let parts = [&request.authority, &request.path_with_query];
                let parts: usize = parts.into_iter().flatten().map(String::len).sum();
                let method = if let types2::Method::Other(name) = &request.method { name.len() } else { 0 };
                size(&request.headers) + parts + method + piece(request.body.is_some())
            } else if let Some(response) = entry.downcast_ref::<held2::HostOutgoingResponse>() {
                size(&response.headers) + piece(response.body.is_some())
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
            } else if entry.is::<ReaddirIterator>() {
                LISTING_BYTES
            } else {
                piece(entry.is::<HostOutgoingBody>())
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

    /// Of a set of headers that is to be copied.
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
            match $types::HostFields::set(&mut host.http(), fields, name, values) {
                Ok(()) => Ok((Ok(()),)),
                Err(error) => Ok((Err(error.downcast()?),)),
            }
        })?;
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
    linker
        .instance("wasi:filesystem/types@0.2.12")?
        .func_wrap_async("[method]descriptor.read-directory", |store, (folder,)| Box::new(list2(store, folder)))?;
    if concurrent {
        link_types!(linker, "wasi:http/types@0.3.0", types3, HostRequest, Request, "");
        linker.instance("wasi:http/client@0.3.0")?.func_wrap_concurrent("send", |store, (request,): (Resource<Request>,)| {
            Box::pin(async move {
                store.with(|mut store| store.get().hold(HEAD_BYTES_MAX))?;
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
        host.hold(PIECE_LEN_MAX)?;
        Ok((types2::HostOutgoingRequest::body(&mut host.http(), request)?,))
    })?;
    instance.func_wrap("[method]outgoing-response.body", |mut store: Of<'_>, (response,)| {
        let host = store.data_mut();
        host.hold(PIECE_LEN_MAX)?;
        Ok((types2::HostOutgoingResponse::body(&mut host.http(), response)?,))
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

type Listing2 = (std::result::Result<Resource<ReaddirIterator>, files2::ErrorCode>,);

async fn list2(mut store: Of<'_>, folder: Resource<Descriptor>) -> Result<Listing2> {
    let host = store.data_mut();
    let open = host.table.iter_mut().filter(|entry| entry.is::<ReaddirIterator>()).count();
    if open >= LISTINGS_MAX {
        return Ok((Err(files2::ErrorCode::Quota),));
    }
    host.hold(LISTING_BYTES)?;
    match files2::HostDescriptor::read_directory(&mut host.filesystem(), folder).await {
        Ok(listing) => Ok((Ok(listing),)),
        Err(error) => Ok((Err(error.downcast()?),)),
    }
}

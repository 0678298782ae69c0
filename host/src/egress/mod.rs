//! Requests of functions to servers elsewhere: one client for all of them, on threads of its own.
//!
//! ```text
//! Tenant::send ──> places: invocation, tenant, node ──> headers ──> pool of the tenant ──> answer, its body bounded and timed
//!                                                                     │ none idle
//!                                                                     └── connect.rs: look-up, filter, socket, TLS
//! ```
//!
//! Owns the threads, the pools and the places. `address.rs` is the filter, `headers.rs` what may be sent, `body.rs` what comes back, `work.rs` who pays.
//! Knows nothing about guests and grants (`capability/egress.rs` has those). Invariants: no redirect is followed, no proxy is asked; a
//! request holds its places until it was sent or given up and its response was read or dropped; a tenant's connections are never another's.

mod address;
mod body;
mod connect;
mod error;
mod headers;
mod resolve;
#[cfg(test)]
mod tests;
mod work;

pub use self::address::{Walls, is_public};
pub use self::body::{RequestBody, ResponseBody, from_guest};
pub use self::error::{EgressError, GivenUp, HEAD_BYTES_MAX, HEADERS_MAX};
pub use self::work::{Payer, Pays};

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use http::{Method, Request, Response, Version};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::rt::TokioTimer;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use self::body::Sending;
use self::connect::{Connector, Sockets};
use self::resolve::{Resolve, System};
use self::work::{Connections, Member, Paid, UnderWay};
use crate::config;
use crate::grants::http::Destination;
use crate::id::TenantId;
use crate::invocation::Hops;
use crate::limits::BLOCKING_IDLE;

/// Threads that connect, encrypt and move bytes.
const THREADS: usize = 2;
/// Threads that ask the system for addresses: it answers only whoever waits for it.
const LOOK_UP_THREADS: usize = 32;
/// Look-ups of one tenant at once, so that slow answers for one leave threads for the others.
const LOOK_UPS_MAX: usize = 4;
/// How long a connection is kept for a next request.
const KEPT: Duration = Duration::from_secs(15);
/// Connections to one server that one tenant keeps.
const KEPT_MAX: usize = 16;

/// The client of a node. Cheap to clone.
#[derive(Clone)]
pub struct Egress(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    tenants: Mutex<HashMap<TenantId, Weak<Tenant>>>,
    sockets_of: Vec<TenantId>,
    times: Times,
    invocation_max: usize,
    tenant_max: usize,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

/// What all tenants have in common.
struct Shared {
    walls: Walls,
    resolver: Box<dyn Resolve>,
    tls: Arc<ClientConfig>,
    connect_timeout: Duration,
    idle_timeout: Duration,
    response_bytes_max: u64,
    requests: Arc<Semaphore>,
    sockets: Sockets,
}

/// The requests of one tenant: its pool of connections and its places.
pub struct Tenant {
    egress: Egress,
    client: Client<Connector, Sending>,
    requests: Arc<Semaphore>,
    under_way: Arc<UnderWay>,
}

/// How long each part of a request may take.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// To be connected.
    pub connect: Duration,
    /// From then to the head of the response.
    pub response: Duration,
    /// Without a byte of its body.
    pub idle: Duration,
}

impl Times {
    /// The shorter of both, each.
    #[must_use]
    pub fn at_most(self, connect: Option<Duration>, response: Option<Duration>, idle: Option<Duration>) -> Self {
        let least = |ours: Duration, asked: Option<Duration>| asked.map_or(ours, |asked| asked.min(ours));
        Self { connect: least(self.connect, connect), response: least(self.response, response), idle: least(self.idle, idle) }
    }
}

/// One invocation, as far as its requests go.
#[derive(Debug, Clone)]
pub struct Caller {
    hops: Hops,
    requests: Arc<Semaphore>,
    used: Arc<Used>,
    payer: Payer,
}

/// What an invocation has sent and received by requests of its own.
#[derive(Debug, Default)]
pub struct Used {
    requests: AtomicU64,
    bytes_out: AtomicU64,
    bytes_in: AtomicU64,
}

impl Used {
    /// Requests that were sent, bytes of their bodies, bytes of the bodies of their responses.
    #[must_use]
    pub fn totals(&self) -> [u64; 3] {
        [&self.requests, &self.bytes_out, &self.bytes_in].map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// Why the client cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EgressStartError {
    /// A file of `egress.ca_files`.
    #[error("egress.ca_files: '{path}' cannot be used: {why}; expected a file of certificates in PEM", path = path.display())]
    Authority {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// TLS.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// Its threads.
    #[error("the threads of outbound requests cannot start: {0}")]
    Thread(#[from] std::io::Error),
}

impl Egress {
    /// Starts the threads, and reads the certificates that are trusted. Connects to nothing.
    ///
    /// # Errors
    /// [`EgressStartError`].
    /// # Cost
    /// Some milliseconds: the system's certificates.
    pub fn start(config: &config::Egress, walls: Walls) -> Result<Self, EgressStartError> {
        Self::start_with(config, walls, Box::new(System))
    }

    fn start_with(config: &config::Egress, walls: Walls, resolver: Box<dyn Resolve>) -> Result<Self, EgressStartError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(LOOK_UP_THREADS)
            .thread_keep_alive(BLOCKING_IDLE)
            .thread_name("hob-egress")
            .enable_all()
            .build()?;
        let requests_max = config.requests_max;
        let shared = Shared {
            walls,
            resolver,
            tls: Arc::new(tls(&config.ca_files)?),
            connect_timeout: config.connect_timeout.0,
            idle_timeout: config.idle_timeout.0,
            response_bytes_max: config.response_bytes_max.0,
            requests: Arc::new(Semaphore::new(requests_max)),
            sockets: Sockets::new(requests_max),
        };
        Ok(Self(Arc::new(Inner {
            shared: Arc::new(shared),
            tenants: Mutex::default(),
            sockets_of: config.sockets.clone(),
            times: Times { connect: config.connect_timeout.0, response: config.response_timeout.0, idle: config.idle_timeout.0 },
            invocation_max: config.invocation_requests_max,
            tenant_max: config.tenant_requests_max,
            runtime: Some(runtime),
        })))
    }

    /// The requests of a tenant. All who ask for the same one have the same places.
    #[must_use]
    pub fn tenant(&self, id: &TenantId) -> Arc<Tenant> {
        // No code panics while it holds the lock.
        let mut tenants = self.0.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenant) = tenants.get(id).and_then(Weak::upgrade) {
            return tenant;
        }
        tenants.retain(|_, tenant| tenant.strong_count() > 0);
        let tenant = Arc::new(Tenant::new(self.clone()));
        tenants.insert(id.clone(), Arc::downgrade(&tenant));
        tenant
    }

    /// Whether the operator lets functions of this tenant use sockets.
    #[must_use]
    pub fn has_sockets(&self, id: &TenantId) -> bool {
        self.0.shared.walls.is_down || self.0.sockets_of.contains(id)
    }

    /// The filter of addresses.
    #[must_use]
    pub fn walls(&self) -> &Walls {
        &self.0.shared.walls
    }

    /// The node's own times, which a guest may shorten.
    #[must_use]
    pub fn times(&self) -> Times {
        self.0.times
    }

    /// One invocation, which came by so many hops, and who pays for the processor time that its requests take.
    #[must_use]
    pub fn caller(&self, hops: Hops, payer: Payer) -> Caller {
        Caller { hops, requests: Arc::new(Semaphore::new(self.0.invocation_max)), used: Arc::default(), payer }
    }
}

impl Caller {
    /// Whether it has as many requests under way as it may.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.requests.available_permits() == 0
    }

    /// What it has used so far.
    #[must_use]
    pub fn used(&self) -> &Arc<Used> {
        &self.used
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Who waits for an answer is told that the node stops. A look-up may go on; it ends with the process.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Egress").field("walls", &self.0.shared.walls).finish_non_exhaustive()
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenant").field("requests", &self.requests).finish_non_exhaustive()
    }
}

impl Tenant {
    fn new(egress: Egress) -> Self {
        let requests_max = egress.0.tenant_max;
        let connector = Connector {
            shared: egress.0.shared.clone(),
            sockets: Sockets::new(requests_max),
            look_ups: Arc::new(Semaphore::new(LOOK_UPS_MAX)),
        };
        let under_way = Arc::<UnderWay>::default();
        let client = Client::builder(Connections(under_way.clone()))
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEPT)
            .pool_max_idle_per_host(KEPT_MAX)
            .http1_max_headers(HEADERS_MAX)
            .http1_max_buf_size(HEAD_BYTES_MAX)
            .set_host(false)
            .build(connector);
        Self { egress, client, requests: Arc::new(Semaphore::new(requests_max)), under_way }
    }

    /// The client that this is of.
    #[must_use]
    pub fn egress(&self) -> &Egress {
        &self.egress
    }

    /// Sends a request, once there are places for it, and waits for the head of its response. Its headers are cleaned first
    /// (`headers.rs`); who may send what has been checked before.
    ///
    /// # Errors
    /// [`EgressError`].
    /// # Cancellation
    /// Dropping the future, or the body of the response, closes the connection unless nothing more comes on it.
    pub async fn send(
        self: &Arc<Self>,
        request: Request<RequestBody>,
        caller: &Caller,
        times: Times,
    ) -> Result<Response<ResponseBody>, EgressError> {
        let shared = &self.egress.0.shared;
        let to = Destination::of(request.uri()).ok_or(EgressError::BadTarget)?;
        if *request.method() == Method::CONNECT {
            return Err(EgressError::BadMethod);
        }
        let (mut parts, body) = request.into_parts();
        headers::clean(&mut parts.headers, &body, &to, caller.hops)?;
        // Whatever it was spelled like, this is what was checked.
        let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let path = if path.starts_with('/') { path.into() } else { format!("/{path}") };
        let uri = http::Uri::builder().scheme(to.scheme.as_str()).authority(to.authority()).path_and_query(path).build();
        parts.uri = uri.map_err(|_| EgressError::BadTarget)?;
        parts.version = Version::HTTP_11;
        let mut places = Vec::with_capacity(3);
        for of in [&caller.requests, &self.requests, &shared.requests] {
            places.push(of.clone().acquire_owned().await.map_err(|_| EgressError::Closed)?);
        }
        caller.used.requests.fetch_add(1, Ordering::Relaxed);
        let member = self.under_way.join(caller.payer.clone());
        let places = Arc::new(Places { _of: places, _member: member, _tenant: self.clone() });
        let body = Sending::new(body, caller.used.clone(), places.clone());
        let exchange = exchange(self.client.clone(), Request::from_parts(parts, body), times);
        let runtime = self.egress.0.runtime.as_ref().ok_or(EgressError::Closed)?;
        let mut task = Task(runtime.spawn(Paid::new(exchange, caller.payer.clone())));
        let response = (&mut task.0).await.map_err(|_| EgressError::Closed)??;
        let bounds = body::Bounds { bytes_max: shared.response_bytes_max, idle: times.idle };
        response_of(response, bounds, caller.used.clone(), places)
    }
}

/// What a request holds until it was sent and its response was read. The tenant too: while one of its requests is under way there is no other with its
/// name, and other places.
#[derive(Debug)]
struct Places {
    _of: Vec<OwnedSemaphorePermit>,
    _member: Member,
    _tenant: Arc<Tenant>,
}

/// A task that ends when nobody waits for it any more.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends a request, and bounds how long each part of it takes. Runs on the client's own threads.
async fn exchange(
    client: Client<Connector, Sending>,
    mut request: Request<Sending>,
    times: Times,
) -> Result<Response<hyper::body::Incoming>, EgressError> {
    let progress = request.body().progress();
    let mut connection = capture_connection(&mut request);
    let mut response = std::pin::pin!(client.request(request));
    let error = |error: hyper_util::client::legacy::Error| EgressError::of(&error);
    tokio::select! {
        biased;
        answered = &mut response => return answered.map_err(error),
        _connected = connection.wait_for_connection_metadata() => {}
        () = tokio::time::sleep(times.connect) => return Err(EgressError::ConnectTimeout),
    }
    let mut since = tokio::time::Instant::now();
    loop {
        tokio::select! {
            biased;
            answered = &mut response => return answered.map_err(error),
            () = tokio::time::sleep_until(since + times.response) => {}
        }
        // A request whose body is being taken is not one that nobody answers.
        match progress.last() {
            Some(later) if later > since => since = later,
            _ => return Err(EgressError::ResponseTimeout),
        }
    }
}

fn response_of(
    response: Response<hyper::body::Incoming>,
    bounds: body::Bounds,
    used: Arc<Used>,
    places: Arc<Places>,
) -> Result<Response<ResponseBody>, EgressError> {
    let (parts, incoming) = response.into_parts();
    // The client ends the reading of a longer one, unless all of it came with the last read.
    if head_bytes(&parts) > HEAD_BYTES_MAX {
        return Err(EgressError::HeadTooLarge);
    }
    let body = ResponseBody::new(incoming, bounds, used, places)?;
    Ok(Response::from_parts(parts, body))
}

/// Of a response as it came, in bytes: its first line, each header with a colon and a space, and the empty line.
fn head_bytes(parts: &http::response::Parts) -> usize {
    const LINE: usize = "HTTP/1.1 200 \r\n".len();
    let reason = parts.extensions.get::<hyper::ext::ReasonPhrase>().map(|reason| reason.as_bytes().len());
    let reason = reason.unwrap_or_else(|| parts.status.canonical_reason().unwrap_or_default().len());
    let headers = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    LINE + reason + headers.sum::<usize>() + "\r\n".len()
}

/// What is trusted: the system's certificates, and the operator's own.
fn tls(ca_files: &[PathBuf]) -> Result<ClientConfig, EgressStartError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let error = found.errors.first().map_or_else(|| "there are none".into(), ToString::to_string);
        tracing::warn!(error, "the system has no certificates: functions can reach servers over TLS only by egress.ca_files");
    }
    // A system may have certificates that are malformed; others read past them too.
    roots.add_parsable_certificates(found.certs);
    for path in ca_files {
        let wrong = |why: String| EgressStartError::Authority { path: path.clone(), why };
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let certificates = read.map_err(|error| wrong(error.to_string()))?;
        if certificates.is_empty() {
            return Err(wrong("there is no certificate in it".into()));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(versions.with_root_certificates(roots).with_no_client_auth())
}

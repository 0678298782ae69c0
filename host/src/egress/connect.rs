//! Connections: from the name of a server to a socket that speaks with it.
//!
//! Owns the order of it: a place, one look-up, the filter, a connection to an address that passed it, TLS. Knows nothing about requests.
//! Invariant: a name is looked up once, and only what the filter admitted is connected to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Shared;
use super::address::canonical;
use super::error::EgressError;
use crate::grants::http::{Destination, Host, Scheme};

/// Makes the connections of one tenant.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) shared: Arc<Shared>,
    /// Sockets that the tenant may have, in use or kept for later.
    pub(super) sockets: Sockets,
    /// Names that the tenant may have looked up at once.
    pub(super) look_ups: Arc<Semaphore>,
}

/// Sockets of a tenant, or of the node: two for each request that it may have at once. Half of them at most are kept for later, so that
/// whoever has its place as a request finds a socket.
#[derive(Debug, Clone)]
pub(super) struct Sockets {
    free: Arc<Semaphore>,
    requests_max: usize,
}

impl Sockets {
    pub(super) fn new(requests_max: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(2 * requests_max)), requests_max }
    }

    async fn take(&self) -> Result<OwnedSemaphorePermit, EgressError> {
        self.free.clone().acquire_owned().await.map_err(|_| EgressError::Closed)
    }

    /// Whether more are taken than may be kept.
    fn are_short(&self) -> bool {
        self.free.available_permits() < self.requests_max
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Socket>;
    type Error = EgressError;
    type Future = BoxFuture<'static, Result<TokioIo<Socket>, EgressError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), EgressError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let to = Destination::of(&uri).ok_or(EgressError::BadTarget)?;
            let connect = this.connect(&to);
            let socket = timeout(this.shared.connect_timeout, connect).await;
            socket.unwrap_or(Err(EgressError::ConnectTimeout)).map(TokioIo::new)
        })
    }
}

impl Connector {
    async fn connect(&self, to: &Destination) -> Result<Socket, EgressError> {
        let deadline = Instant::now() + self.shared.connect_timeout;
        let (tenant, node) = (self.sockets.take().await?, self.shared.sockets.take().await?);
        let is_kept = !self.sockets.are_short() && !self.shared.sockets.are_short();
        let mut admitted = self.addresses(to).await?;
        admitted.retain(|addr| self.shared.walls.admit(*addr));
        if admitted.is_empty() {
            return Err(EgressError::Prohibited);
        }
        let stream = first(&admitted, deadline).await?;
        // A request is written whole; waiting for more of it would only delay it.
        stream.set_nodelay(true).map_err(|error| EgressError::of_connect(&error))?;
        let stream = match to.scheme {
            Scheme::Http => Stream::Plain(stream),
            Scheme::Https => {
                let name = match &to.host {
                    Host::Name(name) => ServerName::try_from(name.clone()).map_err(|_| EgressError::BadTarget)?,
                    Host::Ip(ip) => ServerName::from(*ip),
                };
                let connector = TlsConnector::from(self.shared.tls.clone());
                let stream = connector.connect(name, stream).await.map_err(|error| EgressError::of_tls(&error))?;
                Stream::Tls(Box::new(stream))
            }
        };
        Ok(Socket { stream, is_kept, patience: self.shared.idle_timeout, stalled: None, _places: [tenant, node] })
    }

    async fn addresses(&self, to: &Destination) -> Result<Vec<SocketAddr>, EgressError> {
        let ips: Vec<IpAddr> = match &to.host {
            Host::Ip(ip) => vec![*ip],
            Host::Name(name) => {
                let turn = self.look_ups.clone().acquire_owned().await.map_err(|_| EgressError::Closed)?;
                let found = self.shared.resolver.addresses(name.clone(), turn).await;
                found.map_err(|_| EgressError::UnknownName)?
            }
        };
        match ips.is_empty() {
            true => Err(EgressError::UnknownName),
            false => Ok(ips.into_iter().map(|ip| canonical(SocketAddr::new(ip, to.port))).collect()),
        }
    }
}

/// Connects to the first address that answers. Each but the last has its share of the time that is left.
async fn first(addrs: &[SocketAddr], deadline: Instant) -> Result<TcpStream, EgressError> {
    let mut error = EgressError::Unreachable;
    for (left, addr) in (1..=u32::try_from(addrs.len()).unwrap_or(1)).rev().zip(addrs) {
        let share = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)) / left;
        error = match timeout_at(Instant::now() + share, TcpStream::connect(addr)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => EgressError::of_connect(&error),
            Err(_) => EgressError::ConnectTimeout,
        };
    }
    Err(error)
}

/// A connection, with its places among the tenant's and the node's.
#[derive(Debug)]
pub(super) struct Socket {
    stream: Stream,
    /// Whether it may wait for another request to the same server.
    is_kept: bool,
    /// How long a server may take none of what is sent to it, and since when it does: one that has answered and reads no more would have the
    /// connection for as long as it likes.
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    _places: [OwnedSemaphorePermit; 2],
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Socket {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if !self.is_kept {
            connected.poison();
        }
        connected
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl Socket {
    /// What a write came to; an error if it has been waiting for too long.
    fn within_patience<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        self.within_patience(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        };
        self.within_patience(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        };
        self.within_patience(shut, cx)
    }
}

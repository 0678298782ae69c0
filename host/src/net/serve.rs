//! Accepting connections, and letting them finish.
//!
//! Owns every connection of one listener: how many there may be, and their end. Knows nothing about what they carry. Invariant:
//! the loop ends when it is told to stop and never by an error, and when it has ended no connection of its is left.

use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::body::IncomingBody;
use super::connection::{self, Shared};
use super::drain::Stop;
use super::places::{Full, Places};
use super::stream::Stream;
use super::tls::Tls;
use super::turned_away::{TurnedAway, Why};
use super::{listener, refuse, status};
use crate::config::Net;
use crate::fault::{Code, Fault};

/// Refused connections that are given time to read their answer, for each listener: a sixteenth of the port's places, and within these bounds,
/// because they hold descriptors too. More than that are just closed.
const REFUSED: (usize, usize) = (8, 64);
/// First and longest pause after the system had no descriptor or memory for a connection. Such a connection stays in the
/// backlog, so accepting again at once would fail at once.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));

/// How long a port that closes waits for handshakes that had begun: a client that is let in there has sent its request by the time it could
/// learn that nobody listens. Longer than most round trips.
const LAST_HANDSHAKES: Duration = Duration::from_millis(100);

/// The client of a connection that just began has its request on the way: closed before that comes, it would be one that was accepted and
/// not answered.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// Bounds of the connections of one port. Copies share the count of connections, so that all listeners of a port together stay
/// below it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Places for connections.
    pub places: Arc<Places>,
    /// Counts the connections that nobody serves.
    pub turned_away: Arc<TurnedAway>,
    /// Most requests of one connection.
    pub requests_max: u32,
    /// What connections begin with; plain HTTP when `None`.
    pub tls: Option<Arc<Tls>>,
    /// From accept to the end of the handshake of TLS.
    pub handshake_timeout: Duration,
    /// From accept to the end of the first head, and from the first byte of a later one to its end.
    pub header_timeout: Duration,
    /// From the end of a response to the first byte of the next head.
    pub keepalive_timeout: Duration,
    /// Longest silence in a request's body.
    pub body_idle_timeout: Duration,
    /// Fewest bytes of a request's body in each second that its reader waits; 0: no bound.
    pub body_rate_min: u64,
    /// Time that it may wait before that counts.
    pub body_rate_grace: Duration,
    /// Longest time in which a client takes nothing of its response.
    pub write_idle_timeout: Duration,
    /// Most headers of a request.
    pub headers_max: usize,
    /// Longest head of a request in bytes.
    pub head_bytes_max: usize,
    /// Longest target of a request in bytes.
    pub uri_bytes_max: usize,
    /// How long after its begin a connection may bring its first request after the order to stop.
    pub first_request: Duration,
    /// How long connections may take to finish after the order to stop.
    pub drain_timeout: Duration,
    /// Told when the system has no descriptor or memory for a connection.
    pub relief: Relief,
}

/// What may help where descriptors are short.
#[derive(Clone, Default)]
pub struct Relief(Option<Arc<dyn Fn() + Send + Sync>>);

impl Relief {
    /// By `relieve`, which is called within a runtime, perhaps often.
    pub fn by(relieve: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(relieve)))
    }
}

impl std::fmt::Debug for Relief {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Relief").field(&self.0.is_some()).finish()
    }
}

impl Options {
    /// The bounds that `net` sets, with places for `connections_max` connections (the two ports differ in that alone).
    #[must_use]
    pub fn new(net: &Net, connections_max: usize, tls: Option<Arc<Tls>>) -> Self {
        let size = |bytes: crate::config::Bytes| usize::try_from(bytes.0).unwrap_or(usize::MAX);
        Self {
            places: Places::new(connections_max, net.connections_per_address),
            turned_away: Arc::default(),
            requests_max: if net.requests_max == 0 { u32::MAX } else { net.requests_max },
            tls,
            handshake_timeout: net.handshake_timeout.0,
            header_timeout: net.header_timeout.0,
            keepalive_timeout: net.keepalive_timeout.0,
            body_rate_min: net.body_rate_min.0,
            body_rate_grace: net.body_rate_grace.0,
            body_idle_timeout: net.body_idle_timeout.0,
            write_idle_timeout: net.write_idle_timeout.0,
            headers_max: net.headers_max,
            head_bytes_max: size(net.head_bytes_max),
            uri_bytes_max: size(net.uri_bytes_max),
            first_request: FIRST_REQUEST,
            drain_timeout: net.drain_timeout.0,
            relief: Relief::default(),
        }
    }
}

/// Serves `listener` on the current runtime until `stop`; returns how many connections had to be cut because they did not finish
/// within `drain_timeout`.
///
/// `service` answers requests whose head is sound. A panic in its future is answered with 500 and logged; one in its body cuts
/// that connection. After the order to stop: no connection begins; those that have begun are accepted, then the listener closes; requests in
/// hand are finished, as is the first one of a connection that just began; idle connections close.
///
/// # Errors
/// Only when the listener cannot be registered with the runtime, before anything is accepted.
///
/// # Cancellation
/// Dropping the future closes the listener and cuts every connection.
pub async fn serve<S, F, B>(listener: std::net::TcpListener, options: Options, service: S, stop: Stop) -> io::Result<usize>
where
    S: Fn(Request<IncomingBody>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let listener = TcpListener::from_std(listener)?;
    let mut door = Door::new(options, service, stop.clone());
    let mut backoff = BACKOFF.0;
    {
        let mut stopped = pin!(stop.stopped());
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut stopped => break,
                Some(joined) = door.connections.join_next() => {
                    report(joined);
                    continue;
                }
                Some(_) = door.refused.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, addr)) => {
                    backoff = BACKOFF.0;
                    door.admit(stream, addr);
                }
                Err(error) if concerns_one_connection(&error) => tracing::debug!(%error, "a connection failed before accept"),
                Err(error) => {
                    door.shared.options.turned_away.count(Why::System);
                    door.complaints.say(|more| tracing::warn!(%error, more, "cannot accept connections; waiting"));
                    if let Some(relieve) = &door.shared.options.relief.0 {
                        relieve();
                    }
                    // The order to stop waits for at most this long.
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF.1);
                }
            }
        }
    }
    door.let_in_the_last(&listener).await;
    door.empty_backlog(listener);
    Ok(door.drain().await)
}

/// Errors of `accept` that a connection brought along, and that are gone with it (accept(2), "Error handling").
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionAborted
            | Kind::ConnectionReset
            | Kind::ConnectionRefused
            | Kind::Interrupted
            | Kind::HostUnreachable
            | Kind::NetworkUnreachable
            | Kind::NetworkDown
            | Kind::TimedOut
    )
}

/// All connections of one listener.
struct Door<S> {
    shared: Arc<Shared<S>>,
    connections: JoinSet<()>,
    refused: JoinSet<()>,
    refused_max: usize,
    /// What a connection too many is told: of the port, of its address.
    full: [Bytes; 2],
    complaints: Complaints,
}

impl<S, F, B> Door<S>
where
    S: Fn(Request<IncomingBody>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    fn new(options: Options, service: S, stop: Stop) -> Self {
        let full =
            ["the node has as many connections as it takes", "the node has as many connections of your address as it takes"];
        let full = full.map(|detail| {
            let fault = Fault::new(Code::Overloaded, detail).hint("try again, and reuse connections");
            refuse::raw(status::problem(&fault.retry_after(Duration::from_secs(1)), None))
        });
        Self {
            refused_max: (options.places.most() / 16).clamp(REFUSED.0, REFUSED.1),
            shared: Arc::new(Shared { http: connection::builder(&options), options, service, stop }),
            connections: JoinSet::new(),
            refused: JoinSet::new(),
            full,
            complaints: Complaints::default(),
        }
    }

    fn admit(&mut self, stream: TcpStream, addr: SocketAddr) {
        let place = match self.shared.options.places.take(addr.ip()) {
            Ok(place) => place,
            Err(full) => return self.refuse(stream, addr, full),
        };
        // Without it the last packet of a response may wait for the client's delayed acknowledgement, 40 ms.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "could not set TCP_NODELAY");
        }
        if place.made_room {
            let key = "net.connections_max";
            self.complaints.say(|more| {
                tracing::warn!(more, %addr, key, "nearly as many connections as there may be; those that wait for a request make room");
            });
        }
        self.connections.spawn(connection::begin(stream, place, Arc::clone(&self.shared)));
    }

    fn refuse(&mut self, stream: TcpStream, addr: SocketAddr, full: Full) {
        let (key, why) = match full {
            Full::Port => ("net.connections_max", Why::Port),
            Full::Address => ("net.connections_per_address", Why::Address),
        };
        self.shared.options.turned_away.count(why);
        self.complaints.say(|more| tracing::warn!(more, %addr, key, "too many connections; refusing"));
        let full = &self.full[usize::from(full == Full::Address)];
        if self.shared.options.tls.is_some() {
            // A word before the handshake is none that its client understands, and a handshake is what there is no room for.
            return;
        }
        if self.refused.len() < self.refused_max {
            let full = full.clone();
            self.refused.spawn(async move { refuse::answer(Stream::Plain(stream), &full).await });
        } else if let Err(error) = stream.try_write(full) {
            tracing::debug!(%error, "a refused connection missed its answer");
        }
    }

    /// Accepts those whose handshake is under way, and sees to it that no other begins.
    async fn let_in_the_last(&mut self, listener: &TcpListener) {
        if let Err(error) = listener::shut(listener) {
            tracing::debug!(%error, "the last connections may be reset");
            return;
        }
        let accepting = async {
            // Who has no descriptor for them now need not wait for any.
            while let Ok((stream, addr)) = listener.accept().await {
                self.admit(stream, addr);
            }
        };
        // The end of the time is how it ends.
        let _over = tokio::time::timeout(LAST_HANDSHAKES, accepting).await;
    }

    /// Accepts what the kernel already took in on our behalf: its clients believe to be connected.
    fn empty_backlog(&mut self, listener: TcpListener) {
        let listener = match listener.into_std() {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(%error, "connections in the backlog are lost");
                return;
            }
        };
        // Asked directly: the runtime may not have noticed the latest ones. Bounded by the backlog and the connection cap.
        while let Ok((stream, addr)) = listener.accept() {
            match stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                Ok(stream) => self.admit(stream, addr),
                Err(error) => tracing::debug!(%error, "a connection failed after accept"),
            }
        }
    }

    /// Lets connections finish, then cuts the rest; returns how many those were.
    async fn drain(mut self) -> usize {
        let finish = async {
            while let Some(joined) = self.connections.join_next().await {
                report(joined);
            }
            while self.refused.join_next().await.is_some() {}
        };
        if tokio::time::timeout(self.shared.options.drain_timeout, finish).await.is_ok() {
            return 0;
        }
        let cut = self.connections.len();
        tracing::warn!(cut, "connections did not finish in time and were cut (net.drain_timeout)");
        self.connections.shutdown().await;
        self.refused.shutdown().await;
        cut
    }
}

fn report(joined: Result<(), JoinError>) {
    let Err(error) = joined else { return };
    match error.try_into_panic() {
        Ok(panic) => tracing::error!(cause = connection::panic_text(&*panic), "panic in a connection; it was cut"),
        Err(error) => tracing::debug!(%error, "connection task ended early"),
    }
}

/// Says a thing that may happen thousands of times a second at most once a second.
#[derive(Debug, Default)]
struct Complaints {
    last: Option<Instant>,
    unsaid: u64,
}

impl Complaints {
    fn say(&mut self, line: impl FnOnce(u64)) {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last < Duration::from_secs(1)) {
            self.unsaid += 1;
            return;
        }
        self.last = Some(now);
        line(std::mem::take(&mut self.unsaid));
    }
}

//! A server on a thread of its own and a client that sends bytes as they are, for the tests of both ports.

use std::error::Error;
use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;

use super::body::IncomingBody;
use super::drain::{Drain, Stop};
use super::listener::bind;
use super::serve::{Options, serve};
use super::turned_away::TurnedAway;
use crate::config::{Net, Time};

/// How long a test waits for what must happen before it says that it did not.
const PATIENCE: Duration = Duration::from_secs(120);

/// Short enough that a test may wait for each of them to pass.
pub(crate) fn quick() -> Net {
    Net {
        header_timeout: Time(Duration::from_secs(1)),
        keepalive_timeout: Time(Duration::from_secs(1)),
        body_idle_timeout: Time(Duration::from_secs(1)),
        write_idle_timeout: Time(Duration::from_secs(1)),
        drain_timeout: Time(Duration::from_millis(500)),
        ..Net::default()
    }
}

pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) turned_away: Arc<TurnedAway>,
    drain: Drain,
    thread: Option<JoinHandle<usize>>,
}

impl Server {
    pub(crate) fn start<S, F, B>(net: &Net, service: S) -> Self
    where
        S: Fn(Request<IncomingBody>) -> F + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (addr, mut listeners) = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 1).unwrap();
        let (drain, stop) = Drain::new();
        let options = Options::new(net, net.connections_max, None);
        let listener = listeners.remove(0);
        let turned_away = options.turned_away.clone();
        let thread = std::thread::spawn(move || run(listener, options, service, stop));
        Self { addr, turned_away, drain, thread: Some(thread) }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.addr)
    }

    /// Gives the order to stop.
    pub(crate) fn stop(&self) {
        self.drain.stop();
    }

    /// Waits for the end; how many connections were cut.
    pub(crate) fn join(mut self) -> usize {
        self.stop();
        self.thread.take().unwrap().join().unwrap()
    }
}

fn run<S, F, B>(listener: std::net::TcpListener, options: Options, service: S, stop: Stop) -> usize
where
    S: Fn(Request<IncomingBody>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(serve(listener, options, service, stop)).unwrap()
}

/// A client that does as it is told.
pub(crate) struct Client(pub(crate) TcpStream);

/// A response as it came over the wire.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Raw {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Asserts that this is an answer of Hob's own with this status and code.
    #[track_caller]
    pub(crate) fn check_problem(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.header("hob-error")), (status, Some(code)), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!((&body["status"], &body["code"]), (&status.into(), &code.into()), "{body}");
    }
}

impl Client {
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.0.write_all(bytes.as_ref()).unwrap();
        self
    }

    /// Sends as much as the server takes.
    pub(crate) fn send_some(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let _refused = self.0.write_all(bytes.as_ref());
        self
    }

    pub(crate) fn end(&mut self) -> &mut Self {
        self.0.shutdown(Shutdown::Write).unwrap();
        self
    }

    /// All that comes until the server closes.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.0.read_to_end(&mut out).unwrap();
        out
    }

    /// Whether the connection ends here without another byte, by a close or a reset.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(len) => len == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// The head of a response: status and text.
    pub(crate) fn head(&mut self) -> Raw {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            let len = self.0.read(&mut byte).unwrap();
            assert_eq!(len, 1, "the connection ended after {:?}", String::from_utf8_lossy(&head));
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().trim().parse().unwrap();
        Raw { status, head, body: Vec::new() }
    }

    /// A response that announces its length, or the head alone when there is none.
    pub(crate) fn response(&mut self) -> Raw {
        let mut raw = self.head();
        let len = raw.header("content-length").map_or(0, |len| len.parse().unwrap());
        raw.body = vec![0; len];
        self.0.read_exact(&mut raw.body).unwrap();
        raw
    }
}

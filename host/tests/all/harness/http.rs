//! A tiny HTTP/1.1 client over a plain socket: it shows what came byte by byte, and can be as rude as a test needs.
//!
//! Every head that it reads is checked: an answer that calls itself a bug of Hob fails the test that got it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

/// No test waits longer for a single byte: a hang becomes a failure.
const PATIENCE: Duration = Duration::from_secs(300);

/// Answers that must never be seen, noted by every connection of a node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    /// Bugs of Hob that were answered so far.
    pub(crate) fn bugs(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    fn look(&self, head: &Head) {
        // A guest may answer 500 itself; Hob's own answers carry `hob-error`.
        if head.header("hob-error").is_some_and(|code| code == "internal" || head.status == 500) {
            self.0.lock().unwrap().push(format!("{head:?}"));
        }
    }
}

/// One port of a node.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    pub(crate) addr: SocketAddr,
    /// Value of `authorization` in every request.
    pub(crate) bearer: Option<String>,
    pub(crate) seen: Seen,
}

impl Port {
    pub(crate) fn connect(&self) -> Conn {
        self.try_connect().unwrap()
    }

    /// As [`Port::connect`], for a client that will stop reading: its socket holds little, whatever the system would allow it.
    pub(crate) fn connect_narrow(&self) -> Conn {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(64 << 10).unwrap();
        socket.connect(&self.addr.into()).unwrap();
        self.conn(socket.into()).unwrap()
    }

    /// From another address of this machine.
    pub(crate) fn connect_from(&self, from: std::net::Ipv4Addr) -> Conn {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&self.addr.into()).unwrap();
        self.conn(socket.into()).unwrap()
    }

    pub(crate) fn try_connect(&self) -> std::io::Result<Conn> {
        self.conn(TcpStream::connect(self.addr)?)
    }

    fn conn(&self, stream: TcpStream) -> std::io::Result<Conn> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Conn { input: BufReader::new(stream), seen: self.seen.clone() })
    }

    /// One request on a connection of its own.
    pub(crate) fn request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut conn = self.connect();
        conn.request(method, target, &[headers, &self.sent()].concat(), body);
        conn.reply_to(method)
    }

    /// What goes with every request.
    fn sent(&self) -> Vec<(&str, &str)> {
        self.bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect()
    }

    /// The same port, for whoever has this token.
    pub(crate) fn with(&self, token: &str) -> Self {
        Self { bearer: Some(format!("Bearer {token}")), ..self.clone() }
    }

    pub(crate) fn get(&self, target: &str) -> Reply {
        self.request("GET", target, &[], b"")
    }

    pub(crate) fn post(&self, target: &str, body: &[u8]) -> Reply {
        self.request("POST", target, &[], body)
    }
}

/// Status line and headers.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }
}

/// A response.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    /// Whether the body ended as announced: by its length, or by a last chunk.
    pub(crate) whole: bool,
}

impl Reply {
    pub(crate) fn status(&self) -> u16 {
        self.head.status
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }

    /// The response, which must be the guest's and whole.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert!(self.status() == 200 && self.whole, "{} {:?} {}", self.status(), self.head.headers, self.text());
        self
    }

    /// The body, of a response that must be good.
    #[track_caller]
    pub(crate) fn good(self) -> Vec<u8> {
        self.ok().body
    }

    /// The problem document, which must be of this status and code, in the form that all of them have.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, code: &str) -> Value {
        let all = format!("{} {:?} {}", self.status(), self.head.headers, self.text());
        assert_eq!((self.status(), self.header("hob-error")), (status, Some(code)), "{all}");
        assert!(self.whole, "{all}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{all}");
        let problem = self.json();
        assert_eq!((&problem["code"], &problem["status"]), (&code.into(), &status.into()), "{all}");
        assert_eq!(problem["type"], format!("urn:hob:error:{code}"), "{all}");
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{all}");
        let executed = self.header("hob-executed");
        let ran = matches!(status, 502 | 504) || matches!(code, "client-timeout" | "body-too-large" | "bad-request" | "damaged");
        assert!(executed == Some("0") || (ran && executed == Some("1")), "{all}");
        problem
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Conn {
    input: BufReader<TcpStream>,
    seen: Seen,
}

impl Conn {
    pub(crate) fn stream(&self) -> &TcpStream {
        self.input.get_ref()
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    /// As [`Conn::send`], to a server that may have hung up.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.input.get_mut().write_all(bytes.as_ref())
    }

    /// Sends one whole request. A body is announced by its length, unless the headers say otherwise.
    pub(crate) fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = head(method, target, headers);
        let framed = headers.iter().any(|(name, _)| ["content-length", "transfer-encoding"].contains(name));
        if !framed && (!body.is_empty() || matches!(method, "POST" | "PUT")) {
            head.insert_str(head.len() - 2, &format!("content-length: {}\r\n", body.len()));
        }
        // The server may have answered and closed before it took all of it.
        let _refused_midway = self.try_send(head).and_then(|()| self.try_send(body));
    }

    /// Begins a request whose body comes in chunks.
    pub(crate) fn begin_chunked(&mut self, method: &str, target: &str) {
        self.send(head(method, target, &[("transfer-encoding", "chunked")]));
    }

    pub(crate) fn chunk(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.try_send([format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat())
    }

    pub(crate) fn end_chunks(&mut self) {
        self.send("0\r\n\r\n");
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish(&self) {
        self.stream().shutdown(Shutdown::Write).unwrap();
    }

    /// Reads the next head; `None` when the connection ended instead.
    pub(crate) fn try_head(&mut self) -> Option<Head> {
        let status = self.line()?.split(' ').nth(1)?.parse().ok()?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let head = Head { status, headers };
        self.seen.look(&head);
        if head.status == 100 { self.try_head() } else { Some(head) }
    }

    #[track_caller]
    pub(crate) fn head(&mut self) -> Head {
        self.try_head().expect("the connection ended before an answer")
    }

    /// Reads the next response, to a request with any method but `HEAD`.
    #[track_caller]
    pub(crate) fn reply(&mut self) -> Reply {
        self.reply_to("GET")
    }

    #[track_caller]
    pub(crate) fn reply_to(&mut self, method: &str) -> Reply {
        let head = self.head();
        let mut body = Vec::new();
        let whole = method == "HEAD" || self.body(&head, |piece| body.extend_from_slice(piece));
        Reply { head, body, whole }
    }

    /// Reads the body that follows `head`; says whether it ended as announced.
    pub(crate) fn body(&mut self, head: &Head, mut take: impl FnMut(&[u8])) -> bool {
        if head.header("transfer-encoding") == Some("chunked") {
            loop {
                let Some(len) = self.line().and_then(|line| usize::from_str_radix(&line, 16).ok()) else { return false };
                if !self.exactly(len, &mut take) || self.line().is_none_or(|line| !line.is_empty()) {
                    return false;
                }
                if len == 0 {
                    return true;
                }
            }
        }
        let len = head.header("content-length").map_or(0, |len| len.parse().unwrap());
        self.exactly(len, &mut take)
    }

    fn exactly(&mut self, mut len: usize, take: &mut impl FnMut(&[u8])) -> bool {
        while len > 0 {
            let Ok(have) = self.input.fill_buf() else { return false };
            if have.is_empty() {
                return false;
            }
            let count = have.len().min(len);
            take(&have[..count]);
            self.input.consume(count);
            len -= count;
        }
        true
    }

    /// The next line without its end; `None` at the end of the connection.
    pub(crate) fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        match self.input.read_until(b'\n', &mut line) {
            Ok(count) if count > 0 => Some(String::from_utf8_lossy(&line).trim_end().to_owned()),
            Ok(_) | Err(_) => None,
        }
    }

    /// Whether the server closes without another byte.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        match self.input.read(&mut byte) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// The head of a request on a connection that stays open.
pub(crate) fn head(method: &str, target: &str, headers: &[(&str, &str)]) -> String {
    let mut head = format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head + "\r\n"
}

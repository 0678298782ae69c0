//! A small HTTP/1.1 client over a plain socket, from any address of the loopback network: it can be as rude as an attack needs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// Longest silence of a node that is not yet a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A socket that comes from `from`. `receive_bytes`: how much the system may hold of what it gets.
pub(crate) fn socket(from: Ipv4Addr, receive_bytes: Option<usize>) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if let Some(bytes) = receive_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    Ok(socket)
}

/// A response.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether the body ended as announced.
    pub(crate) whole: bool,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// Status and code, as cases name them: `504 cpu-deadline`.
    pub(crate) fn key(&self) -> String {
        let cut = if self.whole { "" } else { " cut" };
        match self.header("hob-error") {
            Some(code) => format!("{} {code}{cut}", self.status),
            None => format!("{}{cut}", self.status),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Conn {
    input: BufReader<TcpStream>,
}

impl Conn {
    pub(crate) fn open(to: SocketAddr, from: Ipv4Addr) -> std::io::Result<Self> {
        let socket = socket(from, None)?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        let stream: TcpStream = socket.into();
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { input: BufReader::new(stream) })
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.input.get_mut().write_all(bytes.as_ref())
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish(&self) {
        // Whoever has hung up needs not be told.
        let _gone = self.input.get_ref().shutdown(Shutdown::Write);
    }

    /// Sends a whole request. Errors are left to whoever reads: a node may answer before it has all of it.
    pub(crate) fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) {
        let _refused_midway = self.send([head(method, target, headers, body.len()).as_bytes(), body].concat());
    }

    /// No byte is waited for longer than this.
    pub(crate) fn wait_at_most(&self, time: Duration) -> std::io::Result<()> {
        self.input.get_ref().set_read_timeout(Some(time))
    }

    /// Another hand on the same connection, to send while this one reads.
    pub(crate) fn writer(&self) -> std::io::Result<TcpStream> {
        self.input.get_ref().try_clone()
    }

    /// The next response to a request that was not `HEAD`; `None` when the connection ended instead.
    pub(crate) fn reply(&mut self) -> Option<Reply> {
        let mut reply = self.head()?;
        if reply.status == 100 {
            reply = self.head()?;
        }
        // These have no body, whatever their headers say (RFC 9112, 6.3).
        reply.whole = matches!(reply.status, 204 | 304) || self.body(&mut reply);
        Some(reply)
    }

    fn head(&mut self) -> Option<Reply> {
        let status = self.line()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Some(Reply { status, headers, body: Vec::new(), whole: true })
    }

    fn body(&mut self, reply: &mut Reply) -> bool {
        if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                let Some(len) = self.line().and_then(|line| usize::from_str_radix(&line, 16).ok()) else { return false };
                if !self.exactly(len, &mut reply.body) || self.line().is_none_or(|line| !line.is_empty()) {
                    return false;
                }
                if len == 0 {
                    return true;
                }
            }
        }
        let len = reply.header("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
        self.exactly(len, &mut reply.body)
    }

    fn exactly(&mut self, len: usize, to: &mut Vec<u8>) -> bool {
        let before = to.len();
        let read = self.input.by_ref().take(len as u64).read_to_end(to);
        read.is_ok() && to.len() - before == len
    }

    /// The next line without its end; `None` at the end of the connection.
    fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        match self.input.read_until(b'\n', &mut line) {
            Ok(count) if count > 0 => Some(String::from_utf8_lossy(&line).trim_end().to_owned()),
            Ok(_) | Err(_) => None,
        }
    }
}

/// The head of a request. A body is announced by its length, unless the headers say otherwise.
pub(crate) fn head(method: &str, target: &str, headers: &[(&str, &str)], body_len: usize) -> String {
    let mut head = format!("{method} {target} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        head.push_str("host: localhost\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let framed = headers.iter().any(|(name, _)| ["content-length", "transfer-encoding"].contains(name));
    if !framed && (body_len > 0 || matches!(method, "POST" | "PUT")) {
        head.push_str(&format!("content-length: {body_len}\r\n"));
    }
    head + "\r\n"
}

/// One request on a connection of its own.
///
/// # Errors
/// When there is no connection, or no answer.
pub(crate) fn request(
    to: SocketAddr,
    from: Ipv4Addr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> anyhow::Result<Reply> {
    let mut conn = Conn::open(to, from)?;
    conn.request(method, target, headers, body);
    conn.reply().ok_or_else(|| anyhow::anyhow!("{method} {target:.100}: the connection ended before an answer"))
}

/// A `multipart/form-data` body: its type and its bytes.
pub(crate) fn multipart(parts: &[(&str, &[u8])]) -> (String, Vec<u8>) {
    const BOUNDARY: &str = "------------------------a4f1c7d02e9b";
    let mut body = Vec::new();
    for (name, bytes) in parts {
        body.extend_from_slice(format!("--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n").as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={BOUNDARY}"), body)
}

//! A server of the S3 protocol over a folder, and a proxy in front of it that makes what goes wrong.
//!
//! ```text
//! Hob ──> Proxy: counts, holds back, cuts, lies ──> Server: s3s over s3s-fs, which checks signatures
//! ```

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::sync::oneshot;

pub(crate) const KEY_ID: &str = "AKIDOFTHETESTS";
pub(crate) const SECRET: &str = "thesecretofthetests0123456789";
/// The store's one bucket.
pub(crate) const BUCKET: &str = "photos";

/// An S3-compatible store that listens on loopback until it is dropped.
pub(crate) struct Server {
    folder: tempfile::TempDir,
    pub(crate) addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(FileSystem::new(folder.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let service = builder.build();
        // S3 decides a condition and writes in one step; this store of files looks first.
        let puts = Arc::new(tokio::sync::Mutex::new(()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, mut stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let stream = tokio::select! {
                        accepted = listener.accept() => accepted.unwrap().0,
                        _ = &mut stopped => return,
                    };
                    let (service, puts) = (service.clone(), Arc::clone(&puts));
                    let answer = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                        let (service, puts) = (service.clone(), Arc::clone(&puts));
                        async move {
                            let _alone = if request.method() == hyper::Method::PUT { Some(puts.lock().await) } else { None };
                            hyper::service::Service::call(&service, request).await
                        }
                    });
                    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                    tokio::spawn(async move {
                        // The proxy's faults end connections early.
                        let _ended = connection.await;
                    });
                }
            });
        });
        Self { folder, addr, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.folder.path().join(BUCKET).join(key)
    }

    /// Puts an object there as somebody else would. Its ETag is that of its bytes.
    pub(crate) fn seed(&self, key: &str, bytes: &[u8]) {
        fs::create_dir_all(self.path(key).parent().unwrap()).unwrap();
        fs::write(self.path(key), bytes).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Holds threads back until it is opened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let mut is_open = self.0.0.lock().unwrap();
        while !*is_open {
            is_open = self.0.1.wait(is_open).unwrap();
        }
    }
}

/// What the proxy does with one exchange.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Nothing but to count it.
    None,
    /// Passes it on when the gate is open.
    Hold(Gate),
    /// Answers nothing, for as long as the client waits.
    Silent,
    /// Answers this, with a body that quotes the key.
    Status(u16),
    /// Answers with this status and `Location`.
    Redirect(u16, String),
    /// Ends the connection without an answer.
    Hangup,
    /// Ends the connection after so many bytes of the body.
    Cut(usize),
    /// Sends so many bytes of the body and then none, for as long as the client waits.
    Stall(usize),
    /// Sends the body a byte at a time, with so long a pause after each.
    Drip(Duration),
    /// Sends one byte of the body, and the rest when the gate is open.
    Late(Gate),
    /// Announces so many bytes more or fewer.
    Length(isize),
    /// Leaves a header out.
    Without(&'static str),
}

struct State {
    upstream: SocketAddr,
    /// For the next exchanges of a method.
    faults: Mutex<Vec<(&'static str, VecDeque<Fault>)>>,
    seen: Mutex<Vec<String>>,
    is_stopping: AtomicBool,
}

/// See the module.
pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub(crate) fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let state = State { upstream, faults: Mutex::default(), seen: Mutex::default(), is_stopping: AtomicBool::new(false) };
        let state = Arc::new(state);
        let of_thread = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if of_thread.is_stopping.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, state) = (stream.unwrap(), Arc::clone(&of_thread));
                // Ends with its connection; what ends early is what the tests are about.
                std::thread::spawn(move || state.exchange(stream).ok());
            }
        });
        Self { addr, state, thread: Some(thread) }
    }

    /// What is done with the next exchanges of a method.
    pub(crate) fn fail(&self, method: &'static str, faults: impl IntoIterator<Item = Fault>) {
        self.state.faults.lock().unwrap().push((method, faults.into_iter().collect()));
    }

    /// Requests since this was last asked, each `METHOD /path?query`.
    pub(crate) fn seen(&self) -> Vec<String> {
        std::mem::take(&mut *self.state.seen.lock().unwrap())
    }

    /// The methods of requests since this was last asked.
    pub(crate) fn methods(&self) -> Vec<String> {
        self.seen().iter().map(|seen| seen.split(' ').next().unwrap().to_owned()).collect()
    }

    /// How many requests there were since it was last asked what they were.
    pub(crate) fn count(&self) -> usize {
        self.state.seen.lock().unwrap().len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.is_stopping.store(true, Ordering::SeqCst);
        let _awake = TcpStream::connect(self.addr);
        self.thread.take().unwrap().join().unwrap();
    }
}

impl State {
    fn fault(&self, method: &str) -> Fault {
        let mut faults = self.faults.lock().unwrap();
        let of_method = faults.iter_mut().find(|(of, faults)| *of == method && !faults.is_empty());
        of_method.and_then(|(_, faults)| faults.pop_front()).unwrap_or(Fault::None)
    }

    /// One request and its response.
    fn exchange(&self, mut client: TcpStream) -> std::io::Result<()> {
        let (head, mut body) = read_head(&mut client)?;
        let len = header(&head, "content-length").map_or(0, |len| len.parse().unwrap());
        let have = body.len();
        body.resize(len, 0);
        client.read_exact(&mut body[have..])?;
        let line = head.lines().next().unwrap();
        let method = line.split(' ').next().unwrap();
        self.seen.lock().unwrap().push(line.rsplit_once(' ').unwrap().0.to_owned());
        let fault = self.fault(method);
        match &fault {
            Fault::Hold(gate) => gate.pass(),
            Fault::Hangup => return Ok(()),
            Fault::Silent => return wait_for_end(&mut client),
            Fault::Status(status) => {
                let text = format!("<Error><AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId><Is>{SECRET}</Is></Error>");
                return write!(
                    client,
                    "HTTP/1.1 {status} No\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                    text.len()
                );
            }
            Fault::Redirect(status, to) => {
                return write!(
                    client,
                    "HTTP/1.1 {status} Go\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                );
            }
            _ => {}
        }
        let mut server = TcpStream::connect(self.upstream)?;
        server.write_all(head.replacen("\r\n", "\r\nconnection: close\r\n", 1).as_bytes())?;
        server.write_all(&body)?;
        let (head, mut body) = read_head(&mut server)?;
        server.read_to_end(&mut body)?;
        let mut head = head.replacen("\r\n", "\r\nconnection: close\r\n", 1);
        match fault {
            Fault::Cut(at) => body.truncate(at),
            Fault::Stall(at) => {
                client.write_all(head.as_bytes())?;
                client.write_all(&body[..at])?;
                return wait_for_end(&mut client);
            }
            Fault::Drip(pause) => {
                client.write_all(head.as_bytes())?;
                for byte in body {
                    client.write_all(&[byte])?;
                    std::thread::sleep(pause);
                }
                return wait_for_end(&mut client);
            }
            Fault::Late(gate) => {
                client.write_all(head.as_bytes())?;
                client.write_all(&body[..1])?;
                gate.pass();
                client.write_all(&body[1..])?;
                return wait_for_end(&mut client);
            }
            Fault::Length(by) => {
                let len = header(&head, "content-length").unwrap();
                let lie = len.parse::<usize>().unwrap().checked_add_signed(by).unwrap();
                head = with_header(&head, "content-length", Some(&lie.to_string()));
            }
            Fault::Without(name) => head = with_header(&head, name, None),
            _ => {}
        }
        client.write_all(head.as_bytes())?;
        client.write_all(&body)?;
        client.shutdown(Shutdown::Write)?;
        // Its end may come while it has bytes to read still: then a reset would take them away.
        wait_for_end(&mut client)
    }
}

fn wait_for_end(client: &mut TcpStream) -> std::io::Result<()> {
    std::io::copy(client, &mut std::io::sink()).map(drop)
}

/// The head with the empty line after it, and what came behind.
fn read_head(stream: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((String::from_utf8(bytes).unwrap(), rest));
        }
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => bytes.extend(&buffer[..count]),
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .find_map(|line| line.split_once(':').filter(|(of, _)| of.eq_ignore_ascii_case(name)))
        .map(|(_, value)| value.trim())
}

fn with_header(head: &str, name: &str, value: Option<&str>) -> String {
    let is_it = |line: &str| line.split_once(':').is_some_and(|(of, _)| of.eq_ignore_ascii_case(name));
    let mut lines: Vec<_> = head.trim_end().lines().filter(|line| !is_it(line)).map(ToOwned::to_owned).collect();
    lines.extend(value.map(|value| format!("{name}: {value}")));
    format!("{}\r\n\r\n", lines.join("\r\n"))
}

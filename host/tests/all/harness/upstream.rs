//! A server that functions send requests to: it does what the path says, and counts.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// See the module.
pub(crate) struct Upstream {
    pub(crate) addr: SocketAddr,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    taken: AtomicUsize,
    open: AtomicUsize,
    most: AtomicUsize,
    requests: AtomicUsize,
    heads: Mutex<Vec<String>>,
    released: Mutex<bool>,
    release: Condvar,
}

impl Upstream {
    pub(crate) fn start() -> Self {
        Self::over(|stream| Box::new(stream))
    }

    /// A server whose bytes go through what `wrap` makes of a connection.
    pub(crate) fn over(wrap: impl Fn(TcpStream) -> Box<dyn Stream> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, counts, wrap) = (listener.local_addr().unwrap(), Arc::new(Counts::default()), Arc::new(wrap));
        let shared = counts.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, counts, wrap) = (stream.unwrap(), shared.clone(), wrap.clone());
                counts.taken.fetch_add(1, Ordering::SeqCst);
                counts.most.fetch_max(counts.open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let serve = move || {
                    let mut stream = BufReader::new(wrap(stream));
                    while counts.serve(&mut stream).is_some() {}
                    drop(stream);
                    counts.open.fetch_sub(1, Ordering::SeqCst);
                };
                std::thread::Builder::new().stack_size(256 << 10).spawn(serve).unwrap();
            }
        });
        Self { addr, counts }
    }

    /// The setting that lets functions reach it.
    pub(crate) fn opened(&self) -> String {
        format!("egress.allow=[\"{}\"]", self.addr)
    }

    /// Connections so far.
    pub(crate) fn taken(&self) -> usize {
        self.counts.taken.load(Ordering::SeqCst)
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }

    /// Most connections at once.
    pub(crate) fn most(&self) -> usize {
        self.counts.most.load(Ordering::SeqCst)
    }

    /// Requests whose head came.
    pub(crate) fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::SeqCst)
    }

    /// Heads and bodies of all requests, byte for byte.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.counts.heads.lock().unwrap().clone()
    }

    /// Lets all go that wait at `/wait`.
    pub(crate) fn release(&self) {
        *self.counts.released.lock().unwrap() = true;
        self.counts.release.notify_all();
    }
}

pub(crate) trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

/// The answer to `/bytes/N`, and in chunks to `/chunks/N`: so many bytes of body; to `/head/N`, so many of head, sent at once.
fn sized(path: &str) -> Option<Vec<u8>> {
    let (kind, len) = path.strip_prefix('/')?.split_once('/')?;
    if kind == "head" {
        let (begins, ends) = ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx: ", "\r\n\r\n");
        let rest = len.parse::<usize>().ok()?.checked_sub(begins.len() + ends.len())?;
        return Some(format!("{begins}{}{ends}", "x".repeat(rest)).into_bytes());
    }
    let body = "x".repeat(len.parse().ok()?);
    let len = body.len();
    let (header, body) = match kind {
        "bytes" => (format!("content-length: {len}"), body),
        "chunks" => ("transfer-encoding: chunked".into(), format!("{len:x}\r\n{body}\r\n0\r\n\r\n")),
        _ => return None,
    };
    Some(format!("HTTP/1.1 200 OK\r\n{header}\r\n\r\n{body}").into_bytes())
}

impl Counts {
    /// One request and its answer; `None` at the end of the connection.
    fn serve(&self, stream: &mut BufReader<Box<dyn Stream>>) -> Option<()> {
        let path = self.request(stream)?;
        let out = stream.get_mut();
        let mut say = |bytes: &[u8]| out.write_all(bytes).and_then(|()| out.flush()).ok();
        match path.as_str() {
            "/wait" => {
                let released = self.released.lock().unwrap();
                drop(self.release.wait_while(released, |released| !*released).unwrap());
                say(OK)
            }
            "/silent" => self.until_it_goes(stream),
            "/half" => {
                say(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")?;
                self.until_it_goes(stream)
            }
            "/cut" => {
                say(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")?;
                None
            }
            "/hangs-up" => None,
            "/endless" => {
                say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
                let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
                while say(&chunk).is_some() {}
                None
            }
            "/announced" => say(b"HTTP/1.1 200 OK\r\ncontent-length: 1099511627776\r\n\r\nx").and(self.until_it_goes(stream)),
            "/exact" => {
                say(b"HTTP/1.1 200 OK\r\ncontent-length: 65536\r\n\r\n")?;
                say(&[b'x'; 65536])
            }
            "/bad-chunk" => {
                say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n")?;
                None
            }
            "/no-http" => {
                say(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")?;
                None
            }
            "/headers" => {
                say(b"HTTP/1.1 200 OK\r\n")?;
                for number in 0..100_000 {
                    say(format!("x-{number}: y\r\n").as_bytes())?;
                }
                say(b"\r\n")?;
                None
            }
            "/long-header" => {
                say(b"HTTP/1.1 200 OK\r\nx: ")?;
                while say(&[b'x'; 4096]).is_some() {}
                None
            }
            "/informs" => {
                while say(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").is_some() {}
                None
            }
            "/early" => {
                say(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")?;
                self.until_it_goes(stream)
            }
            path => match path.strip_prefix("/to/") {
                Some(elsewhere) => {
                    say(format!("HTTP/1.1 302 Found\r\nlocation: http://{elsewhere}/\r\ncontent-length: 0\r\n\r\n").as_bytes())
                }
                None => say(sized(path).as_deref().unwrap_or(OK)),
            },
        }
    }

    /// Takes one request; its path.
    fn request(&self, stream: &mut BufReader<Box<dyn Stream>>) -> Option<String> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let mut line = Vec::new();
            if stream.read_until(b'\n', &mut line).ok()? == 0 {
                return None;
            }
            head.push_str(&String::from_utf8_lossy(&line));
        }
        self.requests.fetch_add(1, Ordering::SeqCst);
        let path = head.split(' ').nth(1)?.to_owned();
        let len = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let mut body = vec![0; if path == "/early" { 0 } else { len.unwrap_or(0) }];
        stream.read_exact(&mut body).ok()?;
        self.heads.lock().unwrap().push(format!("{head}{}", String::from_utf8_lossy(&body)));
        Some(path)
    }

    /// Answers nothing more; `None` once the other side is gone.
    fn until_it_goes(&self, stream: &mut BufReader<Box<dyn Stream>>) -> Option<()> {
        let _reset = std::io::copy(stream, &mut std::io::sink());
        None
    }
}

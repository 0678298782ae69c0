//! Redis as a rival: a server of its own in a temporary folder, and a client of the few commands that the scenarios need.
//!
//! Owns the child process and the protocol (RESP2). The client is no slower than others for being small: a command
//! is one write, a large value goes straight to where it is to lie.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;

use crate::report::Report;
use crate::servers;

/// When Redis calls `fsync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fsync {
    /// Never, and nothing is written to a file either.
    Never,
    /// Before each answer, once for all clients that wait (`appendfsync always`).
    Always,
}

/// A server that runs; killed when dropped, and when this process ends.
#[derive(Debug)]
pub(crate) struct Redis {
    child: Child,
    tcp: SocketAddr,
    unix: PathBuf,
    _dir: TempDir,
}

/// How a client reaches it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Over {
    Tcp,
    Unix,
}

/// Longest time that a server takes to start, or to answer.
const PATIENCE: Duration = Duration::from_secs(60);
const BUFFER_BYTES: usize = 16 << 10;

impl Redis {
    /// A server, or `None` and a note where there is no `redis-server`.
    pub(crate) fn start(report: &Report, fsync: Fsync) -> anyhow::Result<Option<Self>> {
        match Command::new("redis-server").arg("--version").output() {
            Ok(output) => report.note(String::from_utf8_lossy(&output.stdout).trim()),
            Err(error) => {
                report.note(&format!("skipped: redis: 'redis-server' does not start: {error}"));
                return Ok(None);
            }
        }
        let dir = tempfile::tempdir()?;
        // It takes no port 0, so it gets one that was free a moment ago.
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let unix = dir.path().join("redis.sock");
        let mut command = servers::leashed("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--port", &tcp.port().to_string()]);
        command.arg("--dir").arg(dir.path()).arg("--unixsocket").arg(&unix);
        match fsync {
            Fsync::Never => command.args(["--appendonly", "no"]),
            Fsync::Always => command.args(["--appendonly", "yes", "--appendfsync", "always"]),
        };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let mut redis = Self { child, tcp, unix, _dir: dir };
        redis.wait()?;
        Ok(Some(redis))
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            match self.connect(Over::Unix).and_then(|mut client| client.command(&[b"PING"])) {
                Ok(_) => return Ok(()),
                Err(error) if began.elapsed() > PATIENCE => return Err(error.context("redis-server does not answer")),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("redis-server ended before it was ready: {status}");
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.tcp
    }

    pub(crate) fn connect(&self, over: Over) -> anyhow::Result<Client> {
        let stream: Box<dyn Stream> = match over {
            Over::Tcp => return Client::connect(self.tcp, Some(PATIENCE)),
            Over::Unix => {
                let stream = UnixStream::connect(&self.unix)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
        };
        Ok(Client::over(stream))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone afterwards.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

/// One connection.
pub(crate) struct Client {
    stream: BufReader<Box<dyn Stream>>,
    command: Vec<u8>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// `+OK` and the like, and numbers.
    Simple(String),
    /// A value, or that there is none.
    Bulk(Option<Vec<u8>>),
    List(Vec<Reply>),
}

/// An argument longer than this is sent from where it lies.
const COPIED_BYTES_MAX: usize = 64 << 10;

impl Client {
    /// `patience`: the longest time that an answer may take, `None` for ever.
    pub(crate) fn connect(addr: SocketAddr, patience: Option<Duration>) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(patience)?;
        Ok(Self::over(Box::new(stream)))
    }

    fn over(stream: Box<dyn Stream>) -> Self {
        Self { stream: BufReader::with_capacity(BUFFER_BYTES, stream), command: Vec::new() }
    }

    /// Sends a command, without waiting for its answer.
    pub(crate) fn send(&mut self, arguments: &[&[u8]]) -> anyhow::Result<()> {
        self.send_all([arguments])
    }

    /// Sends many, in one write if they are small.
    pub(crate) fn send_all<'a, C: AsRef<[&'a [u8]]>>(&mut self, commands: impl IntoIterator<Item = C>) -> anyhow::Result<()> {
        self.command.clear();
        for command in commands {
            let arguments = command.as_ref();
            write!(self.command, "*{}\r\n", arguments.len())?;
            for argument in arguments {
                write!(self.command, "${}\r\n", argument.len())?;
                if argument.len() > COPIED_BYTES_MAX {
                    self.stream.get_mut().write_all(&self.command)?;
                    self.stream.get_mut().write_all(argument)?;
                    self.command.clear();
                } else {
                    self.command.extend_from_slice(argument);
                }
                self.command.extend_from_slice(b"\r\n");
            }
        }
        Ok(self.stream.get_mut().write_all(&self.command)?)
    }

    pub(crate) fn command(&mut self, arguments: &[&[u8]]) -> anyhow::Result<Reply> {
        self.send(arguments)?;
        self.receive()
    }

    /// As [`Client::command`], for what answers `OK`.
    pub(crate) fn ok(&mut self, arguments: &[&[u8]]) -> anyhow::Result<()> {
        let reply = self.command(arguments)?;
        ensure!(reply == Reply::Simple("OK".into()), "redis: expected OK, found {reply:?}");
        Ok(())
    }

    /// The next answer.
    pub(crate) fn receive(&mut self) -> anyhow::Result<Reply> {
        let line = self.line()?;
        let (kind, rest) = line.split_at(1);
        Ok(match kind {
            "+" | ":" => Reply::Simple(rest.into()),
            "$" if rest == "-1" => Reply::Bulk(None),
            "$" => {
                let mut value = Vec::new();
                self.value(rest.parse()?, &mut value)?;
                Reply::Bulk(Some(value))
            }
            "*" => {
                let count: usize = rest.parse().with_context(|| format!("redis: a list of {rest}"))?;
                Reply::List((0..count).map(|_| self.receive()).collect::<anyhow::Result<_>>()?)
            }
            _ => bail!("redis: {line}"),
        })
    }

    /// Reads a value to where it is to lie, in place of what was there; whether there is one.
    pub(crate) fn get(&mut self, key: &[u8], into: &mut Vec<u8>) -> anyhow::Result<bool> {
        self.send(&[b"GET", key])?;
        let line = self.line()?;
        match line.strip_prefix('$') {
            Some("-1") => Ok(false),
            Some(len) => self.value(len.parse()?, into).map(|()| true),
            None => bail!("redis: expected a value, found {line}"),
        }
    }

    fn value(&mut self, len: usize, into: &mut Vec<u8>) -> anyhow::Result<()> {
        into.resize(len, 0);
        self.stream.read_exact(into)?;
        let mut end = [0; 2];
        self.stream.read_exact(&mut end)?;
        ensure!(&end == b"\r\n", "redis: a value does not end where it should");
        Ok(())
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        ensure!(line.len() > 3 && line.ends_with("\r\n"), "redis: broke off after {line:?}");
        line.truncate(line.len() - 2);
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn commands_and_answers_are_resp() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut client = Client::over(Box::new(ours));
        theirs.write_all(b"+OK\r\n:7\r\n$-1\r\n*2\r\n$1\r\na\r\n$3\r\n\r\nb\r\n$5\r\nvalue\r\n-ERR no\r\n").unwrap();
        client.ok(&[b"SET", b"k", b"v"]).unwrap();
        let mut sent = [0; 27];
        theirs.read_exact(&mut sent).unwrap();
        assert_eq!(&sent, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n");
        let bulk = |bytes: &[u8]| Reply::Bulk(Some(bytes.to_vec()));
        assert_eq!(client.receive().unwrap(), Reply::Simple("7".into()));
        assert_eq!(client.receive().unwrap(), Reply::Bulk(None));
        assert_eq!(client.receive().unwrap(), Reply::List(vec![bulk(b"a"), bulk(b"\r\nb")]));
        let mut value = vec![9; 100];
        assert!(client.get(b"k", &mut value).unwrap() && value == b"value");
        assert!(client.receive().unwrap_err().to_string().contains("ERR no"));
    }
}

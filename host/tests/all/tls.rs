//! TLS on both ports: what is spoken, what is refused, what a new certificate changes, and the command line as a client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use tempfile::TempDir;

use crate::harness::wat::{does, says};
use crate::harness::{Ended, Node, Setup, eventually};

/// A certificate and its key in two files, which both are replaced by [`Pair::renew`].
pub(crate) struct Pair {
    dir: TempDir,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let pair = Self { dir: tempfile::tempdir().unwrap() };
        pair.renew();
        pair
    }

    /// Writes a new pair, each file by renaming; returns the certificate.
    fn renew(&self) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(["127.0.0.1".into(), "localhost".into()]).unwrap().self_signed(&key).unwrap();
        for (path, text) in [(self.cert(), cert.pem()), (self.key(), key.serialize_pem())] {
            let new = path.with_extension("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, path).unwrap();
        }
        cert.der().clone()
    }

    pub(crate) fn cert(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.dir.path().join("key.pem")
    }

    fn settings(&self) -> [String; 2] {
        [format!("net.tls_cert={}", self.cert().display()), format!("net.tls_key={}", self.key().display())]
    }

    /// A node that shows it. The harness speaks plain HTTP, so its own requests do not reach it.
    fn try_start(&self, more: &[&str]) -> Result<Node, Ended> {
        let own = self.settings();
        let settings: Vec<_> = own.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Node::try_start(Setup { settings: &settings, ..Setup::default() })
    }

    pub(crate) fn start(&self, more: &[&str]) -> Node {
        self.try_start(more).unwrap_or_else(|ended| panic!("{ended:?}"))
    }

    /// Runs the command line against the control port of a node.
    fn hob(&self, node: &Node, args: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hob"));
        command.args(args).args(["--server", &format!("https://{}", node.control.addr)]).env("HOB_CA_FILE", self.cert());
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    /// A function that answers with `text`, deployed by the command line.
    fn deploy(&self, node: &Node, name: &str, wat: &str) {
        let file = self.dir.path().join("f.wasm");
        std::fs::write(&file, crate::harness::wat::wasm(wat)).unwrap();
        let (code, text) = self.hob(node, &["deploy", file.to_str().unwrap(), "--name", name]);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains(&format!("https://{}", node.data.addr)), "{text}");
    }
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

struct Client<'a> {
    root: Option<&'a CertificateDer<'static>>,
    versions: &'static [&'static SupportedProtocolVersion],
    alpn: &'a [&'a str],
}

const OLD: &[&SupportedProtocolVersion] = &[&TLS12];
const NEW: &[&SupportedProtocolVersion] = &[&TLS13];
const BOTH: &[&SupportedProtocolVersion] = &[&TLS12, &TLS13];

impl Pair {
    /// One request of somebody who trusts the certificate, and its answer.
    pub(crate) fn get(&self, addr: SocketAddr, target: &str) -> String {
        let root = root(self);
        ask(&mut Client { root: Some(&root), versions: BOTH, alpn: &[] }.connect(addr).unwrap(), target)
    }
}

impl Client<'_> {
    fn connect(&self, addr: SocketAddr) -> std::io::Result<Tls> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.root.cloned());
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let mut config =
            builder.with_protocol_versions(self.versions).unwrap().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
        let mut socket = TcpStream::connect(addr)?;
        socket.set_read_timeout(Some(crate::harness::PATIENCE))?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(StreamOwned::new(connection, socket))
    }
}

/// One request, on a connection that the server ends as TLS demands.
fn ask(stream: &mut Tls, target: &str) -> String {
    write!(stream, "GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = Vec::new();
    // Without its farewell this fails: the end could be somebody else's cut.
    stream.read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

fn root(pair: &Pair) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(pair.cert()).unwrap()
}

#[test]
fn both_ports_speak_it_and_nothing_else() {
    let pair = Pair::new();
    let node = pair.start(&[]);
    pair.deploy(&node, "a", &says("hello"));
    let root = root(&pair);
    for (port, target, expected) in [(&node.data, "/a", "hello"), (&node.control, "/v1/functions", "\"name\":\"a\"")] {
        for versions in [OLD, NEW] {
            for alpn in [&[][..], &["http/1.1"], &["h2", "http/1.1"]] {
                let mut stream = Client { root: Some(&root), versions, alpn }.connect(port.addr).unwrap();
                let chosen = stream.conn.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
                assert_eq!(chosen.as_deref(), alpn.last().copied());
                let text = ask(&mut stream, target);
                assert!(text.starts_with("HTTP/1.1 200 ") && text.contains(expected), "{text}");
            }
        }
        // Who speaks nothing that the port speaks is told in TLS, and who speaks no TLS gets no HTTP.
        assert!(Client { root: Some(&root), versions: BOTH, alpn: &["h2"] }.connect(port.addr).is_err());
        let mut plain = port.connect();
        plain.send("GET /a HTTP/1.1\r\nhost: localhost\r\n\r\n");
        let mut answer = Vec::new();
        let _reset = plain.stream().read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
}

#[test]
fn requests_follow_each_other_and_large_bodies_pass() {
    let pair = Pair::new();
    let node = pair.start(&[]);
    pair.deploy(
        &node,
        "a",
        &does(
            "(call $stream) (loop $more (drop (call $body_write (i32.const 0) (i32.const 60000)))
        (i32.store (i32.const 60004) (i32.add (i32.load (i32.const 60004)) (i32.const 1)))
        (br_if $more (i32.lt_u (i32.load (i32.const 60004)) (i32.const 50))))",
        ),
    );
    let root = root(&pair);
    let mut stream = Client { root: Some(&root), versions: BOTH, alpn: &[] }.connect(node.data.addr).unwrap();
    for _ in 0..20 {
        stream.write_all(b"GET /nobody HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 404");
        // The rest of it, to the end of the problem.
        let mut byte = [0];
        while byte != [b'\n'] || {
            stream.read_exact(&mut byte).unwrap();
            byte != [b'{']
        } {
            stream.read_exact(&mut byte).unwrap();
        }
        while byte != [b'\n'] {
            stream.read_exact(&mut byte).unwrap();
        }
    }
    let text = ask(&mut stream, "/a");
    assert!(text.len() > 50 * 60_000 && text.ends_with("0\r\n\r\n"), "{}", text.len());
}

#[test]
fn a_handshake_that_does_not_end_is_cut_and_stops_nobody() {
    let pair = Pair::new();
    let node = pair.start(&["net.handshake_timeout=1s", "net.connections_max=40"]);
    let root = root(&pair);
    // Nothing, the beginning of a hello, and what is none.
    let beginnings: [&[u8]; 3] = [b"", &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], b"\x16\x03\x01\xff\xff"];
    let silent: Vec<_> = (0..30)
        .map(|number| {
            let mut conn = node.data.connect();
            conn.send(beginnings[number % 3]);
            conn
        })
        .collect();
    let client = Client { root: Some(&root), versions: BOTH, alpn: &[] };
    for _ in 0..5 {
        let text = ask(&mut client.connect(node.data.addr).unwrap(), "/nobody");
        assert!(text.starts_with("HTTP/1.1 404 "), "{text}");
    }
    for conn in silent {
        // An alert may come before the end.
        let mut rest = Vec::new();
        let _reset = conn.stream().read_to_end(&mut rest);
        assert!(rest.len() < 20, "{rest:?}");
    }
}

#[test]
fn handshakes_count_as_connections() {
    let pair = Pair::new();
    let node = pair.start(&["net.handshake_timeout=1h", "net.connections_max=2", "engine.threads=1"]);
    let held: Vec<_> = (0..2).map(|_| node.data.connect()).collect();
    // A word of HTTP would be none of TLS: it is closed.
    eventually("one too many is closed", || node.data.connect().is_closed());
    drop(held);
    let root = root(&pair);
    let client = Client { root: Some(&root), versions: BOTH, alpn: &[] };
    eventually("there is room again", || client.connect(node.data.addr).is_ok());
}

#[test]
fn handshakes_make_room() {
    let pair = Pair::new();
    let node = pair.start(&["net.handshake_timeout=1h", "net.connections_max=16", "engine.threads=1"]);
    let root = root(&pair);
    let client = Client { root: Some(&root), versions: BOTH, alpn: &[] };
    let mut silent: Vec<_> = (0..15).map(|_| node.data.connect()).collect();
    let mut newcomers = Vec::new();
    for mut first in silent.drain(..3) {
        newcomers.push(client.connect(node.data.addr).unwrap());
        assert!(first.is_closed(), "in the order in which they came");
    }
    for newcomer in &mut newcomers {
        assert!(ask(newcomer, "/nobody").starts_with("HTTP/1.1 404 "));
    }
}

#[test]
fn who_makes_room_is_told_that_nothing_more_comes() {
    let pair = Pair::new();
    let node = pair.start(&["net.header_timeout=1h", "net.keepalive_timeout=1h", "net.connections_max=16", "engine.threads=1"]);
    let root = root(&pair);
    let client = Client { root: Some(&root), versions: BOTH, alpn: &[] };
    let mut waiting: Vec<_> = (0..15).map(|_| client.connect(node.data.addr).unwrap()).collect();
    // The first has sent nothing, the second a part of a head.
    waiting[1].write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx: ").unwrap();
    waiting[1].flush().unwrap();
    let (mut newcomers, mut answers) = (Vec::new(), Vec::new());
    for mut first in waiting.drain(..2) {
        newcomers.push(client.connect(node.data.addr).unwrap());
        let mut answer = String::new();
        // A bare end would be an error here: it may be a cut of somebody between.
        first.read_to_string(&mut answer).unwrap();
        answers.push(answer);
    }
    assert_eq!(answers[0], "");
    assert!(answers[1].starts_with("HTTP/1.1 503 ") && answers[1].contains("hob-executed: 0"), "{}", answers[1]);
}

#[test]
fn a_new_certificate_is_shown_without_a_restart() {
    let pair = Pair::new();
    let mut node = pair.start(&[]);
    let shows = |root: &CertificateDer<'static>| {
        [&node.data, &node.control]
            .iter()
            .all(|port| Client { root: Some(root), versions: BOTH, alpn: &[] }.connect(port.addr).is_ok())
    };
    let first = root(&pair);
    assert!(shows(&first));
    // A connection from before goes on.
    let mut old = Client { root: Some(&first), versions: BOTH, alpn: &[] }.connect(node.data.addr).unwrap();
    let second = pair.renew();
    node.signal(Signal::HUP);
    eventually("the second is shown", || shows(&second));
    assert!(!shows(&first));
    assert!(ask(&mut old, "/nobody").starts_with("HTTP/1.1 404 "));
    // Without a signal.
    let third = pair.renew();
    eventually("the third is shown", || shows(&third));
    // What does not fit stays out, and is told.
    std::fs::write(pair.key(), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    node.signal(Signal::HUP);
    eventually("it is told", || node.stderr().contains("is not that of the first certificate"));
    assert!(shows(&third));
    node.stop();
}

#[test]
fn what_cannot_be_shown_refuses_the_start() {
    let pair = Pair::new();
    std::fs::write(pair.key(), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let ended = pair.try_start(&[]).unwrap_err();
    assert!(ended.stderr.contains("is not that of the first certificate"), "{}", ended.stderr);
    std::fs::remove_file(pair.cert()).unwrap();
    let ended = pair.try_start(&[]).unwrap_err();
    assert!(ended.stderr.contains("cert.pem' cannot be read"), "{}", ended.stderr);
    let only = format!("net.tls_cert={}", pair.cert().display());
    let ended = Node::try_start(Setup { settings: &[&only], ..Setup::default() }).unwrap_err();
    assert!(ended.stderr.contains("net.tls_key is missing"), "{}", ended.stderr);
}

#[test]
fn the_end_is_told_when_it_is_near() {
    let pair = Pair::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["localhost".into()]).unwrap();
    params.not_after = (std::time::SystemTime::now() + Duration::from_secs(24 * 3600)).into();
    std::fs::write(pair.cert(), params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(pair.key(), key.serialize_pem()).unwrap();
    let node = pair.start(&[]);
    eventually("it is told", || node.stderr().contains("expires soon"));
}

#[test]
fn the_command_line_believes_who_it_is_told_to() {
    let pair = Pair::new();
    let node = pair.start(&[]);
    pair.deploy(&node, "a", &says("hello"));
    let (code, text) = pair.hob(&node, &["invoke", "a"]);
    assert_eq!((code, text.contains("hello")), (Some(0), true), "{text}");
    // Another's certificate vouches for nothing, and a flag wins over the environment.
    let other = Pair::new();
    let (code, text) = pair.hob(&node, &["ls", "--ca-file", other.cert().to_str().unwrap()]);
    assert_eq!(code, other.hob(&node, &["ls"]).0);
    assert!(code != Some(0) && text.contains("no certificate that is trusted"), "{text}");
    let (code, text) = pair.hob(&node, &["ls", "--ca-file", "/nonexistent"]);
    assert!(code != Some(0) && text.contains("/nonexistent"), "{text}");
}

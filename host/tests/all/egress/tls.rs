//! TLS to other servers: who is trusted, and who is not.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::Upstream;
use super::{deploy, one};
use crate::harness::Node;

/// An authority of the test's own.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A server with a certificate for these names.
    fn server(&self, names: &[&str]) -> Upstream {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        let certificate: CertificateDer<'static> = params.signed_by(&key, &self.issuer).unwrap().into();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap());
        Upstream::over(move |stream| Box::new(StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream)))
    }

    /// Its certificate in a file.
    fn file(&self, dir: &tempfile::TempDir) -> PathBuf {
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, &self.pem).unwrap();
        path
    }
}

/// A server that knows no TLS, and says so at once.
fn speaks_plainly() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _gone = stream.unwrap().write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
    });
    addr
}

#[test]
fn only_who_the_node_trusts_is_spoken_to() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let (good, other_name, unknown) =
        (ours.server(&["localhost", "127.0.0.1"]), ours.server(&["elsewhere.example"]), theirs.server(&["localhost"]));
    let plain = speaks_plainly();
    let addrs = [good.addr, other_name.addr, unknown.addr, plain];
    let allow = addrs.map(|addr| format!("\"{addr}\"")).join(",");
    let ca_files = format!("egress.ca_files=[{:?}]", ours.file(&dir));
    let node = Node::start(&[&format!("egress.allow=[{allow}]"), &ca_files]);
    let mut grants: Vec<String> = addrs.iter().map(|addr| format!("https://localhost:{}", addr.port())).collect();
    grants.push(format!("https://{}", good.addr));
    deploy(&node, "fetch1", &grants, "");
    let get = |host: &str, addr: SocketAddr| one(&node, &format!("GET https://{host}:{}/", addr.port()));
    assert_eq!(get("localhost", good.addr), "200 5 hello");
    assert_eq!(get("127.0.0.1", good.addr), "200 5 hello");
    for server in [&other_name, &unknown] {
        let answer = get("localhost", server.addr);
        assert!(answer.starts_with("error unavailable") && answer.contains("not trusted"), "{answer}");
        assert_eq!(server.requests(), 0);
    }
    let answer = get("localhost", plain);
    assert!(answer.starts_with("error unavailable") && answer.contains("TLS"), "{answer}");
    deploy(&node, "fetch2", &grants, "");
    let get = |addr: SocketAddr| node.data.get(&format!("/fetch2?get+https+localhost:{}+/", addr.port())).ok().text();
    assert_eq!(get(good.addr), "200 5 hello");
    assert!(get(unknown.addr).contains("TlsCertificateError"));
    assert!(get(plain).contains("TlsProtocolError"));
}

#[test]
fn without_the_operator_s_own_authority_its_servers_are_strangers() {
    let ours = Authority::new();
    let server = ours.server(&["localhost"]);
    let node = Node::start(&[&server.opened()]);
    deploy(&node, "fetch1", &[format!("https://localhost:{}", server.addr.port())], "");
    let answer = one(&node, &format!("GET https://localhost:{}/", server.addr.port()));
    assert!(answer.contains("not trusted"), "{answer}");
    assert_eq!(server.requests(), 0);
    let missing =
        Node::try_start(crate::harness::Setup { settings: &["egress.ca_files=[\"/nonexistent.pem\"]"], ..Default::default() });
    let ended = missing.unwrap_err();
    assert!(ended.stderr.contains("egress.ca_files"), "{ended:?}");
}

//! Starts that would leave a node open, or that make no sense: each ends with a code and a sentence, before anything listens.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;

use crate::harness::exposed::{BAD_STARTS, serve};
use crate::harness::http::Port;
use crate::harness::{Node, data_dir};
use crate::tls::Pair;

#[test]
fn bad_configurations_end_with_a_code_and_a_sentence() {
    for (args, code, words) in BAD_STARTS {
        let (found, said) = serve(Path::new(env!("CARGO_BIN_EXE_hob")), args);
        assert_eq!(found, Some(code), "{args:?}: {said}");
        assert!(said.contains(words) && !said.contains("panicked"), "{args:?}: '{words}' in {said}");
    }
}

/// A control port on all addresses, with a certificate.
fn beyond_loopback(pair: &Pair, dir: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hob"));
    command.args(["serve", "-o", "json", "--addr", "127.0.0.1:0", "--control", "0.0.0.0:0", "--data-dir"]).arg(data_dir(dir));
    command.arg("--tls-cert").arg(pair.cert()).arg("--tls-key").arg(pair.key());
    if !rustix::process::geteuid().is_root() {
        command.args(["--set", "process.core_dumps=true"]);
    }
    command
}

#[test]
fn a_control_port_beyond_loopback_needs_a_certificate_and_a_token() {
    let (pair, dir) = (Pair::new(), Arc::new(tempfile::tempdir().unwrap()));
    let ended = Node::run(beyond_loopback(&pair, &dir), dir.clone()).unwrap_err();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    // The command that mends it, as it was said.
    let told = format!("hob token new --data-dir {}", data_dir(&dir).display());
    assert!(ended.stderr.contains(&told), "{}", ended.stderr);
    let args: Vec<_> = told.split(' ').skip(1).collect();
    let made = crate::cli::hob(&args).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    // The token alone does not do.
    let (code, said) =
        serve(Path::new(env!("CARGO_BIN_EXE_hob")), &["--control", "0.0.0.0:0", "--data-dir", data_dir(&dir).to_str().unwrap()]);
    assert!(code == Some(1) && said.contains("--tls-cert FILE --tls-key FILE"), "{said}");
    let node = Node::run(beyond_loopback(&pair, &dir), dir.clone()).unwrap();
    assert!(node.control.addr.ip().is_unspecified());
    let addr = SocketAddr::from(([127, 0, 0, 1], node.control.addr.port()));
    let ls = |token: &str| {
        let mut command = crate::cli::hob(&["ls", "--server", &format!("https://{addr}")]);
        let output = command.env("HOB_CA_FILE", pair.cert()).env("HOB_TOKEN", token).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(ls(&token).0, Some(0), "{}", ls(&token).1);
    let other = format!("{}{}", &token[..token.len() - 1], if token.ends_with('0') { '1' } else { '0' });
    for wrong in ["", &other] {
        let (code, said) = ls(wrong);
        assert!(code != Some(0) && !said.contains("panicked"), "{said}");
    }
    // What is open to whoever comes says nothing of what the node holds.
    for open in ["/livez", "/readyz", "/openapi.json", "/docs/errors"] {
        assert!(pair.get(addr, open).starts_with("HTTP/1.1 200 "), "{open}");
    }
    for closed in ["/v1/functions", "/metrics", "/v1/tokens", "/v1/secrets", "/v1/usage", "/v1/buckets"] {
        let answer = pair.get(addr, closed);
        assert!(answer.starts_with("HTTP/1.1 401 "), "{closed}: {answer}");
    }
}

#[test]
fn a_data_port_beyond_loopback_is_told_of_unless_it_has_a_certificate() {
    const TOLD: &str = "functions are reached by plain HTTP from other machines";
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let start = |pair: Option<&Pair>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hob"));
        command
            .args(["serve", "-o", "json", "--addr", "0.0.0.0:0", "--control", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir(&dir));
        if let Some(pair) = pair {
            command.arg("--tls-cert").arg(pair.cert()).arg("--tls-key").arg(pair.key());
        }
        let mut node = Node::run(command, dir.clone()).unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], node.data.addr.port()));
        match pair {
            Some(pair) => assert!(pair.get(addr, "/nobody").starts_with("HTTP/1.1 404 ")),
            None => _ = Port { addr, ..node.data.clone() }.get("/nobody").problem(404, "not-found"),
        }
        node.stop();
        node.stderr()
    };
    assert!(start(None).contains(TOLD));
    assert!(!start(Some(&Pair::new())).contains(TOLD));
}

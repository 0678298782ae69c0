//! What a guest may try to reach what is not its to reach: every spelling of an address inside, against listeners that must stay alone.

use std::net::TcpListener;

use hob::grants::http::{Destination, HTTP_GRANTS_MAX};

use super::{PATIENT, ask, deploy};
use crate::harness::Node;
use crate::harness::inside;

#[test]
fn no_spelling_of_an_address_inside_gets_through() {
    // Every address of this machine, of both kinds.
    let honeypot = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).unwrap();
    honeypot.set_nonblocking(true).unwrap();
    let port = honeypot.local_addr().unwrap().port();
    // What is open is another port of the same addresses.
    let node = Node::start(&["egress.allow=[\"127.0.0.1:1\", \"[::1]:1\"]", "egress.connect_timeout=2s"]);
    let urls = inside::urls(port);
    assert!(urls.len() >= 80);
    let destination = |url: &String| url.parse().ok().and_then(|uri| Destination::of(&uri));
    for urls in urls.chunks(HTTP_GRANTS_MAX) {
        let mut grants: Vec<String> = urls.iter().filter_map(destination).map(|to| to.to_string()).collect();
        grants.sort();
        grants.dedup();
        deploy(&node, "fetch1", &grants, PATIENT);
        let script: String = urls.iter().map(|url| format!("GET {url}\n")).collect();
        let answers = ask(&node, &script);
        assert_eq!(answers.len(), urls.len());
        for (url, answer) in urls.iter().zip(&answers) {
            let is_name = url.to_lowercase().contains("local");
            let good = match destination(url) {
                // A name that this machine does not know is none of its addresses either.
                Some(_) if is_name => answer.starts_with("error prohibited") || answer.starts_with("error unavailable"),
                Some(_) => answer.starts_with("error prohibited"),
                None => answer.starts_with("error invalid") || answer == "no request",
            };
            assert!(good, "{url}: {answer}");
        }
        // The same through `wasi:http`, as far as a target can say it.
        deploy(&node, "fetch2", &grants, PATIENT);
        for url in urls {
            let Some((scheme, rest)) = url.split_once("://") else { continue };
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let reply = node.data.get(&format!("/fetch2?get+{scheme}+{authority}+/{path}"));
            let answer = reply.text();
            let good = [
                "DestinationIpProhibited",
                "HttpRequestUriInvalid",
                "HttpRequestDenied",
                "HttpProtocolError",
                "DnsError",
                "no request",
                "not understood",
            ];
            assert!(reply.status() != 200 || good.iter().any(|good| answer.contains(good)), "{url}: {answer}");
        }
    }
    assert!(honeypot.accept().is_err(), "somebody connected");
}

#[test]
fn the_node_s_own_ports_are_closed() {
    let node = Node::start(&[]);
    let grants = [format!("http://{}", node.data.addr), format!("http://{}", node.control.addr)];
    deploy(&node, "fetch1", &grants, "");
    for url in &grants {
        let answer = ask(&node, &format!("GET {url}/v1/functions")).remove(0);
        assert!(answer.starts_with("error prohibited"), "{answer}");
    }
}

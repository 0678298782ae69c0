//! What the host keeps in its own memory for a component: bounded, and on the function's account.

use crate::harness::examples::guest;
use crate::harness::http::Reply;
use crate::harness::{Node, eventually};
use crate::snapshot::done;

const MOUNTED: &str = "[grants]\ndata = [{ bucket = 'site', mount = '/site' }]\n[[bucket]]\nname = 'site'\n";

fn deployed(name: &str, manifest: &str) -> Node {
    let node = Node::start(&[]);
    done(node.deploy(name, &std::fs::read(guest(name)).unwrap(), &format!("snapshot = 'off'\n{manifest}")));
    node
}

fn ask(node: &Node, name: &str, query: &str) -> Reply {
    node.data.get(&format!("/{name}?{query}"))
}

#[track_caller]
fn kept(node: &Node, name: &str, query: &str, answer: &str) {
    assert_eq!(ask(node, name, query).ok().text(), answer, "{query}");
}

#[track_caller]
fn refused(node: &Node, name: &str, query: &str) {
    let problem = ask(node, name, query).problem(502, "guest-memory");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("the host was to keep more than 8388608 bytes"), "{query}: {detail}");
    assert!(detail.contains("drop headers, requests, responses"), "{query}: {detail}");
}

/// What both versions of the interface have.
fn holds(node: &Node, name: &str) {
    // 16 KiB each, and 160 bytes for each of three headers.
    kept(node, name, "headers+490+16384", "490");
    refused(node, name, "headers+510+16384");
    kept(node, name, "clones+480+16384", "480");
    refused(node, name, "clones+520+16384");
    kept(node, name, "requests+500+8000", "500");
    refused(node, name, "requests+530+8000");
    // What is dropped is not kept, nor charged, however much it was.
    kept(node, name, "passing+3000+16384", "0");
    // As many as there are handles, if they are small.
    kept(node, name, "headers+1000+10", "1000");
    // One set is bounded for itself; so are the parts of a target.
    ask(node, name, "headers+1+40000").problem(502, "guest-trap");
    kept(node, name, "target+8192+8192+8192", "true true true");
    kept(node, name, "target+8193+1+1", "false true true");
    kept(node, name, "target+1+8193+1", "true false true");
    kept(node, name, "target+1+1+8193", "true true false");
    // So is what one call gives.
    kept(node, name, "target+1+32000000+1", "true false true");
    let detail = ask(node, name, "target+1+34000000+1").problem(502, "guest-trap")["detail"].to_string();
    assert!(detail.contains("too many bytes") || detail.contains("fuel"), "{detail}");
}

#[test]
fn components_of_0_2() {
    let node = deployed("holds2", "");
    holds(&node, "holds2");
    // Two pieces of 32 KiB are taken of each, and there may be trailers.
    kept(&node, "holds2", "bodies+110+65536", "110");
    refused(&node, "holds2", "bodies+130+65536");
    kept(&node, "holds2", "write+65536", "Ok(())");
    let detail = ask(&node, "holds2", "write+65537").problem(502, "guest-bad-call")["detail"].to_string();
    assert!(detail.contains("65537 bytes were written to a stream at once"), "{detail}");
    // Of an error's words nothing is looked at, of which there may be any number.
    let detail = ask(&node, "holds2", "error+16000000").problem(502, "guest-bad-response")["detail"].to_string();
    assert!(detail.contains("'InternalError'") || detail.contains("'ErrorCode::InternalError'"), "{detail}");
}

#[test]
fn components_of_0_3() {
    let node = deployed("holds3", "");
    holds(&node, "holds3");
    // Two ends each, beside those of the answer.
    kept(&node, "holds3", "streams+4000", "4000");
    let detail = ask(&node, "holds3", "streams+4100").problem(502, "guest-trap")["detail"].to_string();
    assert!(detail.contains("handle limit exceeded"), "{detail}");
}

#[test]
fn it_is_charged_to_the_function() {
    let node = deployed("holds2", "[limits]\nmemory = '4MiB'\n");
    kept(&node, "holds2", "headers+100+16384", "100");
    kept(&node, "holds2", "passing+3000+16384", "0");
    let detail = ask(&node, "holds2", "headers+300+16384").problem(502, "guest-memory")["detail"].to_string();
    assert!(detail.contains("past its limit of 4194304 bytes"), "{detail}");
    // All of it is given back.
    eventually("nothing is charged", || node.control.get("/v1/usage").ok().json()["tenants"][0]["memory_bytes"] == 0);
}

#[test]
fn folders_and_files() {
    let node = Node::start(&[]);
    for name in ["holds2", "holds3"] {
        done(node.deploy(name, &std::fs::read(guest(name)).unwrap(), &format!("snapshot = 'off'\n{MOUNTED}")));
    }
    let put = |key: &str| done(node.control.request("PUT", &format!("/v1/buckets/site/objects/{key}"), &[], b"some bytes"));
    for number in 0..100 {
        put(&format!("{number:03}{}", "n".repeat(247)));
    }
    put("file");
    put("folder/file");
    let reply = ask(&node, "holds2", "names");
    assert_eq!(reply.status(), 200, "{:?}", node.logs("holds2"));
    let names = reply.text();
    assert_eq!(names.lines().count(), 102, "{names}");
    assert!(names.contains("\nfile DescriptorType::RegularFile\nfolder DescriptorType::Directory"), "{names}");
    let names = ask(&node, "holds3", "names").ok().text();
    assert_eq!(names.lines().count(), 102, "{names}");
    assert!(names.contains("\nfile DescriptorType::RegularFile\nfolder DescriptorType::Directory"), "{names}");
    for name in ["holds2", "holds3"] {
        // A hundred names of 250 bytes, and what each takes.
        kept(&node, name, "list+230", "230");
        refused(&node, name, "list+250");
        // 64 KiB for each stream.
        kept(&node, name, "read+120+file", "120");
        refused(&node, name, "read+130+file");
    }
    assert!(ask(&node, "holds3", "stat+4096").ok().text().contains("ErrorCode"));
    assert_eq!(ask(&node, "holds3", "stat+4097").ok().text(), "Err(ErrorCode::NameTooLong)");
    assert_eq!(ask(&node, "holds3", "stat+1000000").ok().text(), "Err(ErrorCode::NameTooLong)");
}

//! The same rules at every door to a bucket that has an origin, and what an operator opens.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use hob::bucket::{BucketSpec, Durability};
use hob::data::objects::Origins;
use hob::data::{Clock, Data, DataError};
use hob::fault::Code;
use hob::id::{Digest, TenantId};

use super::store::{Fault, Gate, KEY_ID, SECRET, Server};
use super::{BUCKET, MIB, Site, bucket, get, sizes, url};
use crate::conformance::direct::Direct;
use crate::conformance::{Control, Handler, Mapped};
use crate::harness::http::Reply;
use crate::harness::{Node, doors, eventually};

/// The rules of every door, as far as an origin can keep them.
#[test]
fn a_bucket_with_an_origin_keeps_the_rules() {
    let site = Site::new();
    let below = |name: &str| {
        let origin = format!("s3://{BUCKET}/{name}");
        Direct::new(site.data(), bucket(site.data(), name, 64 * MIB, &origin).unwrap())
    };
    doors::objects::check(&below("b"), &below("c"));
}

/// The same at the control port of a node.
#[test]
fn a_bucket_with_an_origin_keeps_the_rules_on_the_control_port() {
    let site = Site::new();
    let node = site.node(&["net.headers_max=100"]);
    for name in ["b", "c"] {
        crate::buckets::bucket(&node, name, serde_json::json!({ "origin": format!("s3://{BUCKET}/{name}") }));
    }
    let door = |bucket| Control { node: &node, bucket, is_of_origin: true };
    doors::objects::check(&door("b"), &door("c"));
}

/// And through the SDK.
#[test]
fn a_bucket_with_an_origin_keeps_the_rules_through_the_sdk() {
    let site = Site::new();
    let bucket = |name: &str| format!("[[bucket]]\nname = '{name}'\nbytes_max = '64MiB'\norigin = 's3://{BUCKET}/{name}'\n");
    let limits = "[limits]\nmemory = '256MiB'\nrequest_body = '64MiB'\nwall = '60s'\ncpu = '30s'\n";
    let grant = |name: &str| format!("{{ bucket = '{name}', access = 'read-write' }}");
    let grants = format!("[grants]\ndata = [{}, {}]\n", grant("b"), grant("c"));
    let node = site.node(&[]);
    let reply = node.deploy("data1", &crate::data::wasm(), &[bucket("b"), bucket("c"), limits.into(), grants].concat());
    assert_eq!(reply.status(), 201, "{}", reply.text());
    let door = crate::data::Door { node };
    let handler = |bucket| Handler { door: &door, bucket, is_of_origin: true };
    doors::objects::check(&handler("b"), &handler("c"));
    doors::objects::check(&Mapped(handler("b")), &Mapped(handler("c")));
}

/// How many at once wait for an origin: of a function's bucket, of a tenant, of the node; at both doors.
#[test]
fn what_waits_for_an_origin_leaves_places_for_others() {
    const OPENINGS_MAX: usize = 4;
    let site = Site::new();
    let node = site.node(&["data.origin_requests_max=64"]);
    crate::identity::tenant(&node, "acme", &["acme.example"]);
    let as_tenant = |tenant: &str, method: &str, target: &str, body: &[u8]| {
        let reply = node.control.request(method, target, &[("hob-tenant", tenant)], body);
        assert!(reply.status() < 300, "{}", reply.text());
    };
    let grants: String = ["x", "y"].map(|name| format!("{{ bucket = '{name}', access = 'read' }}")).join(", ");
    let manifest = format!("[limits]\nwall = '60s'\n[grants]\ndata = [{grants}]\n");
    for tenant in ["default", "acme"] {
        for name in ["x", "y"] {
            let origin = format!("{{\"origin\": \"s3://{BUCKET}/{tenant}/{name}\"}}");
            as_tenant(tenant, "PUT", &format!("/v1/buckets/{name}"), origin.as_bytes());
        }
        let reply = node.deploy_if("data1", &crate::data::wasm(), &manifest, &[("hob-tenant", tenant)]);
        assert_eq!(reply.status(), 201, "{}", reply.text());
    }
    for tenant in ["default", "acme"] {
        for (name, number) in ["x", "y"].into_iter().flat_map(|name| (0..10).map(move |number| (name, number))) {
            site.server.seed(&format!("{tenant}/{name}/{number}"), b"there");
        }
    }
    let through = |host: &str, bucket: &str, number: usize| {
        let mut conn = node.data.connect();
        let body = format!("read {}", crate::data::hex(number.to_string()));
        conn.send(format!("POST /data1/{bucket} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
        conn
    };
    let gate = Gate::default();
    site.proxy.fail("GET", vec![Fault::Hold(gate.clone()); 64]);
    // One bucket of one function; then another one of it, up to what a tenant may have; then the rest for another tenant.
    let mut asking: Vec<_> = (0..10).map(|number| through("localhost", "x", number)).collect();
    eventually("its turns are taken", || site.proxy.count() == OPENINGS_MAX);
    asking.extend((0..10).map(|number| through("localhost", "y", number)));
    eventually("the tenant's places are taken", || site.proxy.count() == 6);
    asking.extend((0..10).map(|number| through("acme.example", "x", number)));
    eventually("all places are taken", || site.proxy.count() == 8);
    gate.open();
    for mut conn in asking {
        let reply = conn.reply();
        assert!(reply.status() == 200 && !reply.text().contains("error"), "{}", reply.text());
    }
    assert_eq!(site.proxy.count(), 30, "each was fetched once");
}

#[test]
fn on_the_control_port_too_what_waits_for_an_origin_leaves_places() {
    let site = Site::new();
    let node = site.node(&["data.origin_requests_max=64"]);
    crate::identity::tenant(&node, "acme", &[]);
    for tenant in ["default", "acme"] {
        let origin = format!("{{\"origin\": \"s3://{BUCKET}/{tenant}\"}}");
        let made = node.control.request("PUT", "/v1/buckets/b", &[("hob-tenant", tenant)], origin.as_bytes());
        assert_eq!(made.status(), 201, "{}", made.text());
        (0..10).for_each(|number| site.server.seed(&format!("{tenant}/{number}"), b"there"));
    }
    // Looks have places, and openings have some of their own before those.
    for method in ["HEAD", "GET"] {
        let gate = Gate::default();
        site.proxy.seen();
        site.proxy.fail(method, vec![Fault::Hold(gate.clone()); 20]);
        let ask = |tenant: &'static str, number: usize| {
            let target = format!("/v1/buckets/b/objects/{number}");
            let reply = node.control.request(method, &target, &[("hob-tenant", tenant)], b"");
            assert_eq!(reply.status(), 200, "{}", reply.text());
        };
        std::thread::scope(|scope| {
            let ask = &ask;
            for number in 0..10 {
                scope.spawn(move || ask("default", number));
            }
            eventually("a tenant has three of four", || site.proxy.count() == 3);
            for number in 0..10 {
                scope.spawn(move || ask("acme", number));
            }
            eventually("another one has the rest", || site.proxy.count() == 4);
            // What waits for nobody goes on.
            node.control.request("GET", "/v1/buckets/b", &[("hob-tenant", "acme")], b"").ok();
            let entry = node.control.request("PUT", "/v1/buckets/b/kv/k", &[("hob-tenant", "acme")], b"v");
            assert_eq!(entry.status(), 204, "{}", entry.text());
            gate.open();
        });
        assert_eq!(site.proxy.count(), 20);
    }
}

#[test]
fn only_what_the_operator_opened_is_an_origin() {
    let mut site = Site::with(MIB, |config| config.url = url("s3://photos/open"));
    let data = site.data();
    let refused = |error: DataError| {
        assert!(matches!(error, DataError::Invalid { .. }) && error.to_string().contains("[[origin]]"), "{error}");
        assert_eq!(error.fault().code, Code::BadRequest);
    };
    for closed in ["s3://photos", "s3://photos/opened", "s3://photos/closed", "s3://other/open", "s3://127.0.0.1"] {
        refused(bucket(data, "b", MIB, closed).unwrap_err());
        assert!(data.bucket(&TenantId::default(), &"b".parse().unwrap()).unwrap().is_none());
    }
    let made = bucket(data, "b", MIB, "s3://photos/open/deep").unwrap();
    assert_eq!(made.origin, Some(url("s3://photos/open/deep")));
    // What it comes from stays.
    let exists = |error: DataError| assert!(matches!(error, DataError::BucketExists { .. }), "{error}");
    exists(bucket(data, "b", MIB, "s3://photos/open").unwrap_err());
    let (tenant, name, plain) = (TenantId::default(), "b".parse().unwrap(), BucketSpec::new(Durability::Durable));
    let (kept, is_new) = data.put_bucket(&tenant, &name, plain).wait().unwrap();
    assert_eq!((kept.origin, kept.spec, is_new), (made.origin.clone(), plain, false));
    data.put_bucket(&tenant, &"plain".parse().unwrap(), plain).wait().unwrap();
    exists(bucket(data, "plain", MIB, "s3://photos/open").unwrap_err());
    let volatile = BucketSpec::new(Durability::Volatile);
    let error = data.put_bucket_of(&tenant, &"v".parse().unwrap(), volatile, made.origin.as_ref()).wait().unwrap_err();
    assert!(matches!(error, DataError::Invalid { .. }), "{error}");
    // Its entries are as any bucket's.
    data.kv(&made).unwrap();
    // When it is closed again, the bucket is there and its objects are not.
    site.server.seed("open/deep/k", b"x");
    assert_eq!(get(&*site.objects(), &made, "k").unwrap(), b"x");
    site.config.url = url("s3://photos/other");
    site.reopen();
    refused(site.objects().open(&made, b"k").unwrap_err());
    refused(site.objects().list(&made, b"", None, 1).unwrap_err());
    site.data = None;
    let data = site.open("data", Vec::new());
    refused(data.objects(Durability::Durable).open(&made, b"k").unwrap_err());
    assert_eq!(data.buckets(&TenantId::default(), None, 10).unwrap()[0].origin, made.origin);
}

#[test]
fn a_key_file_is_read_or_the_node_does_not_start() {
    let site = Site::new();
    let path = site.dir.path().join("bad");
    for bad in [
        "",
        "aws_access_key_id = a",
        "aws_access_key_id = a\naws_secret_access_key =",
        "aws_access_key_id = a\naws_secret_access_key = thesecret\nmore = b",
        "[a]\naws_access_key_id = a\naws_secret_access_key = thesecret\n[b]",
        "aws_access_key_id = a\naws_access_key_id = a\naws_secret_access_key = thesecret",
        "aws_access_key_id = a\naws_secret_access_key = thesecret\u{e9}",
        "thesecret",
    ] {
        fs::write(&path, bad).unwrap();
        let opened = vec![hob::config::Origin { key_file: Some(path.clone()), ..site.config.clone() }];
        let origins = Origins { opened, cache: site.cache, memory_bytes_max: MIB, requests_max: 1 };
        let error = Data::open_with(&site.dir.path().join("bad-data"), sizes(), &origins, Clock::system()).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("key_file") && text.contains("aws_secret_access_key") && !text.contains("thesecret"), "{text}");
    }
}

#[test]
fn a_manifest_names_what_the_operator_opened_and_nothing_else() {
    let node = Node::start(&[]);
    let wasm = crate::harness::wat::wasm(&crate::harness::wat::handler(r#"(func (export "hob_handle"))"#));
    let reply = node.deploy("f", &wasm, "[[bucket]]\nname = 'b'\norigin = 's3://photos'\n");
    let problem = reply.problem(400, "bad-request");
    assert!(problem["detail"].as_str().unwrap().contains("[[origin]]"), "{problem}");
    let reply = node.deploy("f", &wasm, "[[bucket]]\nname = 'b'\norigin = 'http://169.254.169.254/latest'\n");
    reply.problem(400, "bad-manifest");
    assert!(!Path::new(&node.data_dir()).join("data/cache").exists());
}

#[test]
fn the_api_makes_puts_and_gets() {
    let (server, dir) = (Server::start(), Arc::new(tempfile::tempdir().unwrap()));
    let (key_file, config) = (dir.path().join("key"), dir.path().join("hob.toml"));
    fs::write(&key_file, format!("aws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n")).unwrap();
    let text = format!("[[origin]]\nurl = 's3://{BUCKET}/pre'\nendpoint = 'http://{}'\nkey_file = {key_file:?}\n", server.addr);
    fs::write(&config, text).unwrap();
    let mut command = crate::harness::serve(&crate::harness::data_dir(&dir));
    command.arg("--config").arg(config);
    let node = Node::run(command, dir).unwrap();
    let define = |name: &str, origin: &str| {
        let body = format!("{{\"origin\":\"{origin}\"}}");
        node.control.request("PUT", &format!("/v1/buckets/{name}"), &[], body.as_bytes())
    };
    define("photos", "s3://photos").problem(400, "bad-request");
    define("photos", "http://127.0.0.1").problem(400, "bad-request");
    let made = define("photos", "s3://photos/pre");
    assert_eq!((made.status(), made.json()["origin"].as_str()), (201, Some("s3://photos/pre")));
    define("photos", "s3://photos/pre/deep").problem(409, "conflict");
    let path = "/v1/buckets/photos/objects/a%2Fb";
    let put = node.control.request("PUT", path, &[("content-type", "text/plain")], b"through");
    assert_eq!(put.status(), 201, "{}", put.text());
    assert_eq!(fs::read(server.path("pre/a/b")).unwrap(), b"through");
    let got = node.control.get(path).ok();
    assert_eq!(
        (got.text().as_str(), got.header("etag"), got.header("content-type")),
        ("through", put.header("etag"), Some("text/plain"))
    );
    // SHA-256 of the bytes, which is not the ETag here.
    assert_eq!(got.header("repr-digest"), Some(format!("sha-256=:{}:", base64_of_sha256(b"through")).as_str()));
    the_tag_is_no_digest(&node, &put, path);
    server.seed("pre/there", b"theirs");
    let listed = node.control.get("/v1/buckets/photos/objects?prefix=there").ok().json()["items"][0].clone();
    assert!(listed["etag"].as_str().unwrap().starts_with("origin:") && listed["digest"].is_null(), "{listed}");
    assert_eq!(node.control.get("/v1/buckets/photos/objects/there").ok().text(), "theirs");
    assert_eq!((node.metric("hob_origin_misses_total"), node.metric("hob_origin_fetched_bytes_total")), (1, 6));
    assert!(!node.stderr().contains(SECRET) && !node.stderr().contains(KEY_ID));
}

/// An object's ETag begins with `origin:` wherever it is shown and taken, and what says `sha256:` is the digest of the bytes or not there.
fn the_tag_is_no_digest(node: &Node, put: &Reply, path: &str) {
    let (tag, digest) = (put.header("etag").unwrap(), Digest::of(b"through").to_string());
    let digits = tag.strip_prefix("\"origin:").unwrap();
    let alike = format!("\"sha256:{digits}");
    let info = put.json();
    assert_eq!((info["etag"].as_str(), info["digest"].as_str()), (Some(tag.trim_matches('"')), Some(&*digest)));
    for (method, header, value, status) in [
        ("GET", "if-none-match", tag, 304),
        ("GET", "if-none-match", &alike, 200),
        ("HEAD", "if-match", tag, 200),
        ("HEAD", "if-match", &alike, 412),
        ("PUT", "if-match", &alike, 412),
        ("PUT", "if-match", &*format!("\"{digest}\""), 412),
        ("PUT", "if-match", tag, 200),
    ] {
        let reply = node.control.request(method, path, &[(header, value)], b"through");
        assert_eq!(reply.status(), status, "{method} {header}: {value}");
    }
}

/// As `repr-digest` writes it.
fn base64_of_sha256(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digest = Digest::of(bytes);
    let triples = digest
        .bytes()
        .chunks(3)
        .map(|three| (three.len(), three.iter().chain(&[0; 2]).take(3).fold(0, |sum, b| sum << 8 | usize::from(*b))));
    let digits = triples.flat_map(|(len, sum)| {
        (0..4).map(move |place| if place <= len { char::from(DIGITS[sum >> (18 - 6 * place) & 63]) } else { '=' })
    });
    digits.collect()
}

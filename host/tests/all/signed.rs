//! Signed deploys: what is not signed by the tenant's key, for this function and as a newer version, is not deployed.

use hob::id::{Digest, FunctionName, TenantId};
use hob::signing::{Message, SecretKey};
use serde_json::json;

use crate::cli::{check, hob};
use crate::files::archive;
use crate::harness::http::Reply;
use crate::harness::wat::{says, wasm};
use crate::harness::{Node, multipart};
use crate::identity::{owned, tenant, token};

/// A deploy that can go wrong in one way at a time.
#[derive(Clone)]
struct Deploy {
    tenant: TenantId,
    function: FunctionName,
    version: u64,
    manifest: String,
    /// A tar archive; empty: none.
    files: Vec<u8>,
    wasm: Vec<u8>,
}

impl Deploy {
    fn signature(&self, key: &SecretKey) -> String {
        let Self { tenant, function, version, manifest, files, wasm } = self;
        let (wasm, manifest, files) = (Digest::of(wasm), Digest::of(manifest.as_bytes()), Digest::of(files));
        key.sign(&Message { tenant, function, version: *version, wasm, manifest, files }).to_base64()
    }

    fn send(&self, node: &Node, signature: &str) -> Reply {
        let mut parts = vec![("manifest", self.manifest.as_bytes()), ("files", &self.files), ("wasm", &self.wasm)];
        parts.retain(|(name, bytes)| *name != "files" || !bytes.is_empty());
        let (kind, body) = multipart(&parts);
        let version = self.version.to_string();
        let headers = [
            ("content-type", kind.as_str()),
            ("hob-tenant", self.tenant.as_str()),
            ("hob-signature", signature),
            ("hob-signed-version", &version),
        ];
        node.control.request("PUT", &format!("/v1/functions/{}", self.function), &headers, &body)
    }
}

#[test]
fn only_what_is_signed_is_deployed_and_only_once() {
    let (node, _) = owned(&[]);
    tenant(&node, "acme", &[]);
    let (key, other) = (SecretKey::random().unwrap(), SecretKey::random().unwrap());
    let in_acme =
        |method: &str, target: &str, body: &str| node.control.request(method, target, &[("hob-tenant", "acme")], body.as_bytes());
    let public = json!({ "public_key": key.public() }).to_string();
    assert_eq!(in_acme("PUT", "/v1/keys/ci", &public).status(), 200);
    in_acme("PUT", "/v1/keys/ci", &json!({ "public_key": other.public() }).to_string()).problem(409, "conflict");
    in_acme("PUT", "/v1/keys/weak", &json!({ "public_key": "0".repeat(64) }).to_string()).problem(400, "bad-request");
    let good = Deploy {
        tenant: "acme".parse().unwrap(),
        function: "a".parse().unwrap(),
        version: 5,
        manifest: "args = ['x']\n".into(),
        files: Vec::new(),
        wasm: wasm(&says("one")),
    };
    let signature = good.signature(&key);
    in_acme("PUT", "/v1/functions/a", "").problem(422, "not-deployable");
    let unsigned = node.control.request("PUT", "/v1/functions/a", &[("hob-tenant", "acme")], &good.wasm);
    unsigned.problem(422, "bad-signature");
    for (what, wrong) in [
        ("another function", Deploy { function: "b".parse().unwrap(), ..good.clone() }),
        ("another version", Deploy { version: 6, ..good.clone() }),
        ("another manifest", Deploy { manifest: "args = ['y']\n".into(), ..good.clone() }),
        ("another module", Deploy { wasm: wasm(&says("two")), ..good.clone() }),
        ("other files", Deploy { files: archive(&[("site/a", "x")]), ..good.clone() }),
    ] {
        let reply = wrong.send(&node, &signature);
        assert_eq!((reply.status(), reply.header("hob-error")), (422, Some("bad-signature")), "{what}");
    }
    for malformed in ["", "x", "AAAA"] {
        good.send(&node, malformed).problem(422, "bad-signature");
    }
    good.send(&node, &good.signature(&other)).problem(422, "bad-signature");
    let moved = Deploy { tenant: TenantId::default(), ..good.clone() };
    good.send(&node, &moved.signature(&key)).problem(422, "bad-signature");
    assert_eq!(good.send(&node, &signature).status(), 201);
    // Replayed, and an older one.
    good.send(&node, &signature).problem(412, "precondition-failed");
    let older = Deploy { version: 4, wasm: wasm(&says("old")), ..good.clone() };
    older.send(&node, &older.signature(&key)).problem(412, "precondition-failed");
    let newer = Deploy { version: 9, wasm: wasm(&says("new")), ..good.clone() };
    assert_eq!(newer.send(&node, &newer.signature(&key)).status(), 200);
    let manifest: String = "[grants]\nfiles = [{ host = 'site', guest = '/site' }]\n".into();
    let brings = Deploy { version: 10, manifest, files: archive(&[("site/a", "x")]), ..newer.clone() };
    let signature = brings.signature(&key);
    let others = Deploy { files: archive(&[("site/a", "y")]), ..brings.clone() };
    others.send(&node, &signature).problem(422, "bad-signature");
    assert_eq!(brings.send(&node, &signature).status(), 200);
    // Going back is a downgrade, which only an admin may.
    let deployer = node.control.with(&token(&node, "acme", "d", &["deploy"]));
    deployer.post("/v1/functions/a/rollback", b"").problem(403, "forbidden");
    assert_eq!(in_acme("POST", "/v1/functions/a/rollback", "").status(), 200);
    // Not even removing the function makes an old deploy good again.
    assert_eq!(in_acme("DELETE", "/v1/functions/a", "").status(), 204);
    newer.send(&node, &newer.signature(&key)).problem(412, "precondition-failed");
    // A tenant without keys asks for nothing, and with its last one the other does not any more.
    node.deploy_wat("a", &says("default"), "");
    in_acme("DELETE", "/v1/keys/none", "").problem(404, "not-found");
    assert_eq!(in_acme("DELETE", "/v1/keys/ci", "").status(), 204);
    assert_eq!(deployer.request("PUT", "/v1/functions/a", &[], &good.wasm).status(), 201);
}

#[test]
fn the_command_line_signs() {
    let node = Node::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let server = format!("http://{}", node.control.addr);
    let at = |args: &[&str]| hob(args).env("HOB_SERVER", &server).env("XDG_CONFIG_HOME", dir.path()).output().unwrap();
    let (key, module) = (dir.path().join("key"), dir.path().join("a.wasm"));
    std::fs::write(&module, wasm(&says("a"))).unwrap();
    let (key, module) = (key.to_str().unwrap(), module.to_str().unwrap());
    let (public, _) = check(&at(&["key", "new", key]), 0);
    check(&at(&["key", "new", key]), 1);
    check(&at(&["key", "add", "ci", public.trim()]), 0);
    let (listed, _) = check(&at(&["key", "ls"]), 0);
    assert!(listed.contains(public.trim()), "{listed}");
    let (_, stderr) = check(&at(&["deploy", module]), 1);
    assert!(stderr.contains("must be signed") && stderr.contains("--sign-key"), "{stderr}");
    check(&at(&["deploy", module, "--sign-key", key]), 0);
    check(&at(&["deploy", module, "--sign-key", key]), 0);
    let (_, stderr) = check(&at(&["deploy", module, "--sign-key", key, "--signed-version", "7"]), 1);
    assert!(stderr.contains("version 7"), "{stderr}");
    node.data.get("/a").ok();
}

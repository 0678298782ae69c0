//! Manifests that are none.

use crate::case::{Seen, Stage};
use crate::guests::{self, does};
use crate::http;

pub(super) fn manifests(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let wasm = guests::wasm(&does("(call $number (i32.const 0))"))?;
    let deep = format!("a = {}{}", "[".repeat(30_000), "]".repeat(30_000));
    let tables = format!("[{}]", vec!["a"; 20_000].join("."));
    let routes = format!("route = [{}]", "\"/a\",".repeat(33));
    let manifests: Vec<Vec<u8>> = vec![
        vec![b'a'; 10 << 20],
        vec![b'#'; (64 << 10) + 1],
        deep.into(),
        tables.into(),
        routes.into(),
        b"name = \"other\"".to_vec(),
        b"unknown = 1".to_vec(),
        b"name = \"manifest\"\nname = \"manifest\"".to_vec(),
        b"[limits]\nmemory = nan".to_vec(),
        b"[limits]\nmemory = \"99999999999999999999GiB\"".to_vec(),
        b"[limits]\ncpu = \"-1s\"".to_vec(),
        b"[limits]\nconcurrency = 1e99".to_vec(),
        b"[limits]\nmemory = \"\xd9\xa1MiB\"".to_vec(),
        "name = \"m\u{0430}nifest\"".into(),
        b"\xff\xfe\0".to_vec(),
        b"{\"name\": \"manifest\"}".to_vec(),
        b"env = { \"A=B\" = \"c\" }".to_vec(),
        b"env = { A = \"a\\u0000b\" }".to_vec(),
        b"[grants]\nfiles = [{ host = \"../../etc\", guest = \"/\", access = \"root\" }]".to_vec(),
    ];
    for (number, manifest) in manifests.iter().enumerate() {
        let (kind, body) = http::multipart(&[("manifest", manifest), ("wasm", &wasm)]);
        let reply = stage.ask(number, "PUT", "/v1/functions/manifest", &[("content-type", &kind)], &body, seen);
        if let Some(reply) = reply {
            seen.check((400..500).contains(&reply.status), || {
                format!("manifest {number}: {} {:.200}", reply.key(), reply.text())
            });
        }
    }
    // Forms that are none.
    for body in ["", "--x\r\n", "--x\r\ncontent-disposition: form-data; name=\"wasm\"\r\n\r\n", &"--x\r\n\r\n".repeat(5000)] {
        stage.ask(
            0,
            "PUT",
            "/v1/functions/manifest",
            &[("content-type", "multipart/form-data; boundary=x")],
            body.as_bytes(),
            seen,
        );
    }
    Ok(())
}

//! Two tenants that named everything alike, and what each of them says.

use anyhow::ensure;
use serde_json::json;

use crate::case::{Ready, Stage};
use crate::guests::{self, handler};

pub(crate) const TENANTS: [&str; 2] = ["acme", "beta"];

/// Both, with a host and a function `same` that answers with the tenant and the request's body; the tenant `default` has one too.
pub(crate) fn twins(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    for tenant in TENANTS {
        let hosts = json!({ "hosts": [format!("{tenant}.example")] }).to_string();
        let made = stage.node.ask("PUT", &format!("/v1/tenants/{tenant}"), hosts.as_bytes())?;
        ensure!(made.status == 201, "the tenant {tenant}: {} {}", made.key(), made.text());
        let wasm = guests::wasm(&says_who(tenant))?;
        let deployed = stage.node.ask_for(tenant, "PUT", "/v1/functions/same", &wasm)?;
        ensure!(deployed.status == 201, "the function of {tenant}: {} {}", deployed.key(), deployed.text());
    }
    stage.node.deploy_wat("same", &says_who("default"), "")?;
    Ok(Ready::Yes)
}

/// Answers `name/` and the request's body.
fn says_who(name: &str) -> String {
    let len = name.len() + 1;
    handler(&format!(
        "(data (i32.const 0) \"{name}/\")
         (func (export \"hob_handle\") (local $len i32) (local $n i32)
           (local.set $len (call $request_read (i32.const 64) (i32.const 16384)))
           (local.set $n (i32.load (i32.const 76)))
           (memory.copy (i32.const {len}) (i32.sub (i32.add (i32.const 64) (local.get $len)) (local.get $n)) (local.get $n))
           (call $answer (i32.const 200) (i32.const 0) (i32.add (i32.const {len}) (local.get $n))))"
    ))
}

//! Signatures: whether the entry of a component has the type that its name promises.
//!
//! Owns the names and Rust types of the entries' functions. wasmtime compares them in every new instance only, which would be at the
//! first request. Runs only in the build process. Invariant: what passes can be called as `call.rs` calls it.

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{ComponentNamedList, InstancePre, Lift, Lower, Resource};
use wasmtime::error::Context as _;
use wasmtime::{Result, bail, format_err};
use wasmtime_wasi_http::p2::types::{HostIncomingRequest, HostResponseOutparam};
use wasmtime_wasi_http::p3;
use wasmtime_wasi_http::p3::bindings::http::types::ErrorCode;

use crate::capability::Host;
use crate::engine::Kind;

/// Compares the entry of a component, whose imports are resolved, with what its kind is called as.
///
/// # Errors
/// When there is no such function, or it has other parameters or results.
pub(super) fn check(kind: Kind, pre: &InstancePre<Host>) -> Result<()> {
    // The versions are those of wasmtime's bindings: of several in one series both look-ups take the same.
    match kind {
        Kind::Command02 => check_function::<(), (Result<(), ()>,)>(pre, "wasi:cli/run@0.2.12", "run"),
        Kind::Command03 => check_function::<(), (Result<(), ()>,)>(pre, "wasi:cli/run@0.3.0", "run"),
        Kind::Http02 => check_function::<(Resource<HostIncomingRequest>, Resource<HostResponseOutparam>), ()>(
            pre,
            "wasi:http/incoming-handler@0.2.12",
            "handle",
        ),
        Kind::Http03 => check_function::<(Resource<p3::Request>,), (Result<Resource<p3::Response>, ErrorCode>,)>(
            pre,
            "wasi:http/handler@0.3.0",
            "handle",
        ),
        other => bail!("a {} is no component", other.as_str()),
    }
}

fn check_function<Params, Return>(pre: &InstancePre<Host>, interface: &str, name: &str) -> Result<()>
where
    Params: ComponentNamedList + Lower,
    Return: ComponentNamedList + Lift,
{
    let component = pre.component();
    let function = component.get_export_index(None, interface).and_then(|of| component.get_export(Some(&of), name));
    let Some((ComponentItem::ComponentFunc(function), _)) = function else {
        return Err(format_err!("there is no function '{name}' in '{interface}'"));
    };
    // Undocumented, but what the code of `bindgen!` does for functions that stand in no interface.
    let compared = function.typecheck::<Params, Return>(&pre.instance_type());
    compared.with_context(|| format!("'{name}' has another type than {interface} gives it"))
}

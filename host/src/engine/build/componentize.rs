//! Making components of core modules that carry the type of the component they are to become.
//!
//! Toolchains that build for `wasm32-wasip1` with bindings of the component model stop half-way: the type lies in custom
//! sections, and whoever runs the module is to wrap it, as Spin does. Owns that step. Runs only in the build process, after the
//! caps of the module were checked; knows nothing about what the component will be called as. Invariant: bytes that come out
//! are a component, and have yet to be looked at like any that were uploaded.

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wit_component::ComponentEncoder;

use super::Refused;

/// Names of the custom sections that hold the type begin so.
pub(super) const SECTION_STEM: &str = "component-type";

/// What the module exports besides the functions of its type, which tells how preview 1 is to be adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Model {
    /// `_start`: it becomes a component that exports `wasi:cli/run`.
    Command,
    /// Its own interfaces only.
    Reactor,
}

/// Wraps `module` into a component, and what it imports of preview 1 into an adapter to 0.2.
///
/// # Errors
/// [`Refused`] when the module is not valid, its type is malformed, or it lacks an export or has an import that the type does
/// not know.
pub(super) fn componentize(module: &[u8], model: Model) -> Result<Vec<u8>, Refused> {
    // The encoder takes valid modules for granted.
    wasmparser::Validator::new().validate_all(module).map_err(|error| {
        Refused::unfit(
            format!("the module is not valid: {} (at byte {})", error.message(), error.offset()),
            "the file may be damaged, or built with features of Wasm that this host does not run",
        )
    })?;
    let adapter = match model {
        Model::Command => WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
        Model::Reactor => WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
    };
    let encoder = ComponentEncoder::default().module(module);
    let encoder = encoder.and_then(|encoder| encoder.adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, adapter));
    encoder.and_then(|mut encoder| encoder.encode()).map_err(|error| {
        let detail = format!(
            "the core module carries the type of a component ('{SECTION_STEM}') but cannot be made one: {}",
            super::sentence(format_args!("{error:#}"))
        );
        Refused::unfit(detail, "build it with a current toolchain, or for wasm32-wasip2, which makes the component itself")
    })
}

//! `wasi:config`: the variables of the manifest's `[env]`, by name.
//!
//! Owns the names under which published components import the same two functions. Knows nothing about where variables come from.
//! Invariant: what a client sends is no configuration: a command's variables of its request are not among these.

use wasmtime::component::{ComponentType, Lift, Linker, Lower};
use wasmtime::{Result, StoreContextMut};

use super::Host;

/// The drafts differ in nothing but their names: of wasmCloud before 1.1 and since then, of Spin 3, of `wasmtime serve`.
const INSTANCES: [&str; 4] = [
    "wasi:config/runtime@0.2.0-draft",
    "wasi:config/store@0.2.0-draft",
    "wasi:config/store@0.2.0-draft-2024-09-27",
    "wasi:config/store@0.2.0-rc.1",
];

/// Never answered: variables are in memory.
#[derive(Debug, Clone, ComponentType, Lift, Lower)]
#[component(variant)]
enum Error {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

/// Links all names.
///
/// # Errors
/// Only if a name is defined twice: a bug of ours.
pub(super) fn link(linker: &mut Linker<Host>) -> Result<()> {
    for name in INSTANCES {
        let mut instance = linker.instance(name)?;
        instance.func_wrap("get", |mut store: StoreContextMut<'_, Host>, (key,): (String,)| {
            let found = store.data_mut().variables().iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone());
            Ok((Ok::<_, Error>(found),))
        })?;
        instance.func_wrap("get-all", |mut store: StoreContextMut<'_, Host>, (): ()| {
            Ok((Ok::<_, Error>(store.data_mut().variables().to_vec()),))
        })?;
    }
    Ok(())
}

impl Host {
    fn variables(&mut self) -> &[(String, String)] {
        self.has_asked = true;
        &self.environment.env[self.environment.env_of_request..]
    }
}

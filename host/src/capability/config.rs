//! `wasi:config`: the variables of the manifest's `[env]` by name, and granted secrets to whoever names one.
//!
//! Owns the names under which published components import the same two functions. Knows nothing about where variables come from.
//! Invariants: what a client sends is no configuration: a command's variables of its request are not among these; a list of all holds no
//! secret.

use wasmtime::component::{ComponentType, Lift, Linker, Lower};
use wasmtime::{Result, StoreContextMut};

use super::secrets::SecretRefusal;
use super::{Environment, Host};
use crate::secrets::SecretError;

/// The drafts differ in nothing but their names: of wasmCloud before 1.1 and since then, of Spin 3, of `wasmtime serve`.
const INSTANCES: [&str; 4] = [
    "wasi:config/runtime@0.2.0-draft",
    "wasi:config/store@0.2.0-draft",
    "wasi:config/store@0.2.0-draft-2024-09-27",
    "wasi:config/store@0.2.0-rc.1",
];

/// Answered for secrets alone: variables are in memory.
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
            Ok((store.data_mut().configured(&key),))
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
        let Environment { env, env_of_request, env_of_secrets, .. } = &*self.environment;
        env.get(*env_of_request..env.len() - env_of_secrets).unwrap_or_default()
    }

    fn configured(&mut self, key: &str) -> Result<Option<String>, Error> {
        if let Some((_, value)) = self.variables().iter().find(|(name, _)| name == key) {
            return Ok(Some(value.clone()));
        }
        match self.granted_secret(key) {
            None => Ok(None),
            Some(Ok(value)) => match std::str::from_utf8(value.bytes()) {
                Ok(text) => Ok(Some(text.to_owned())),
                Err(_) => Err(Error::Upstream(format!("the secret '{key}' is no text"))),
            },
            Some(Err(SecretRefusal::Secret(error @ SecretError::Io { .. }))) => {
                tracing::warn!(%error, "a function cannot read a secret");
                Err(Error::Io("the secret cannot be read at present".into()))
            }
            Some(Err(refusal)) => Err(Error::Upstream(format!("secret '{key}': {refusal}"))),
        }
    }
}

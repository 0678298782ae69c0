//! Native code: loaded from files that this host compiled and sealed with its key.
//!
//! Owns the one `unsafe` that loading native code needs. Knows nothing about where artifacts are kept or how they are verified;
//! it takes the proof that they were.

use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;

use wasmtime::component::Component;
use wasmtime::{Engine, Module, ResourcesRequired, Result};

use super::kind::Kind;
use crate::artifacts::VerifiedArtifact;

/// Loaded native code.
pub(super) enum Code {
    Module(Module),
    Component(Component),
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({} bytes)", self.image_bytes())
    }
}

impl Code {
    /// Bytes that are mapped.
    pub(super) fn image_bytes(&self) -> usize {
        let range = match self {
            Self::Module(module) => module.image_range(),
            Self::Component(component) => component.image_range(),
        };
        (range.end as usize).saturating_sub(range.start as usize)
    }

    /// What an instance takes of a pool at its start; `None` for a component that does not say.
    pub(super) fn resources_required(&self) -> Option<ResourcesRequired> {
        match self {
            Self::Module(module) => Some(module.resources_required()),
            Self::Component(component) => component.resources_required(),
        }
    }

    /// Maps a verified artifact. Cost: one mapping and its relocation, no copy.
    ///
    /// # Errors
    /// When it was compiled for other settings or by another version of the engine.
    #[expect(unsafe_code, reason = "wasmtime cannot check native code; VerifiedArtifact is the proof that we made it")]
    pub(super) fn load(engine: &Engine, kind: Kind, artifact: &VerifiedArtifact) -> Result<Self> {
        // SAFETY: `VerifiedArtifact` is only made after the MAC over all bytes matched under the key of this data directory, which
        // only a build of this host writes with; the file lies in a folder of mode 0700 and is never written after its rename, only
        // unlinked.
        unsafe { Self::map(engine, kind, &artifact.file) }
    }

    /// Maps what this very process has just compiled and written.
    ///
    /// # Errors
    /// As [`Code::load`].
    #[expect(unsafe_code, reason = "wasmtime cannot check native code; this process has made it")]
    pub(super) fn load_own(engine: &Engine, kind: Kind, file: &File) -> Result<Self> {
        // SAFETY: only the build process calls this, with the file that it created new and wrote what wasmtime gave it to; nobody
        // else knows its name while it is staged.
        unsafe { Self::map(engine, kind, file) }
    }

    /// # Safety
    /// `file` must hold native code that this version of wasmtime produced, and not change while it is mapped.
    #[expect(unsafe_code, reason = "wasmtime cannot check native code; the callers say who made it")]
    unsafe fn map(engine: &Engine, kind: Kind, file: &File) -> Result<Self> {
        // The very file that was opened, whatever its path now leads to.
        match kind {
            Kind::Handler | Kind::Command => {
                let file = file.try_clone()?;
                // SAFETY: as the caller promises. wasmtime itself checks its version and all settings that matter.
                unsafe { Module::deserialize_open_file(engine, file) }.map(Self::Module)
            }
            _ => {
                // There is no such call for components.
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                // SAFETY: as above.
                unsafe { Component::deserialize_file(engine, path) }.map(Self::Component)
            }
        }
    }
}

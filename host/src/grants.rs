//! Grants: what a guest may reach outside of its sandbox. Nothing, unless somebody said so.
//!
//! Owns the plain values. Knows nothing about who checks them (`capability` does, in one place for each interface).

use std::path::PathBuf;

/// What one guest was granted. The default grants nothing.
#[derive(Debug, Clone, Default)]
pub struct Grants {
    /// Any outbound connection: `hob run --net`.
    pub net: bool,
    /// Folders of the host: `hob run --dir HOST::GUEST`.
    pub dirs: Vec<DirGrant>,
}

/// A folder of the host that a guest sees, for reading and writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirGrant {
    /// Where it is.
    pub host: PathBuf,
    /// What the guest calls it.
    pub guest: String,
}

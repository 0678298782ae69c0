//! Grants: what a guest may reach outside of its sandbox. Nothing, unless somebody said so.
//!
//! Owns the plain values. Knows nothing about who checks them (`capability` does, in one place for each interface).

pub mod http;
pub mod secrets;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::{BucketName, FunctionName};

use self::http::HttpGrant;
use self::secrets::SecretGrant;

/// Most functions that one function may be granted.
pub const FUNCTION_GRANTS_MAX: usize = 64;

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

/// What the manifest of a function grants: `[grants]`. The default grants nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ManifestGrants {
    /// Buckets of the function's tenant, each named once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<DataGrant>,
    /// Folders, in the order in which the guest finds them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileGrant>,
    /// How exactly it sees the time.
    pub clock: ClockResolution,
    /// Servers that it may send requests to, each named once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpGrant>,
    /// Secrets of the function's tenant, each named once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretGrant>,
    /// Functions of the function's tenant that it may call, each named once; they need not exist yet. Nothing calls any so far.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<FunctionName>,
}

impl ManifestGrants {
    /// Whether nothing is granted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A bucket, and what may be done with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataGrant {
    /// Which bucket; it need not exist yet.
    pub bucket: BucketName,
    /// What may be done.
    pub access: Access,
    /// Where a command finds the bucket's objects as files, for reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
}

/// A folder, and what may be done with what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileGrant {
    /// Relative: a folder beside the manifest, which a deploy copies into the revision. Absolute: a folder of the node, which its
    /// operator must allow.
    pub host: String,
    /// What the guest calls it.
    pub guest: String,
    /// What may be done.
    pub access: Access,
}

impl FileGrant {
    /// Whether a deploy brings the folder with it.
    #[must_use]
    pub fn is_bundled(&self) -> bool {
        !self.host.starts_with('/')
    }
}

/// A folder of the host as one guest is shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    /// A folder that no guest can replace by another.
    pub root: PathBuf,
    /// The way down from there, empty for the root itself. Guests that may write below the root can have put links on it.
    pub below: PathBuf,
    /// What the guest calls it.
    pub guest: String,
    /// What may be done.
    pub access: Access,
}

/// How exactly a guest sees the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClockResolution {
    /// Whole milliseconds.
    #[default]
    Coarse,
    /// As the system has it.
    Fine,
}

impl ClockResolution {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Coarse, Self::Fine];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Coarse => "coarse",
            Self::Fine => "fine",
        }
    }
}

/// What may be done with what was granted. The greater one allows what the lesser does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reading and listing.
    Read,
    /// Writing and deleting too.
    ReadWrite,
}

impl Access {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Read, Self::ReadWrite];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::ReadWrite => "read-write",
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

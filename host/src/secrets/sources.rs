//! Places besides the API that secrets come from: a folder of the operator's, and credentials of systemd.
//!
//! Owns how a file there is named and what one must be. Knows nothing about which place counts more. Invariant: nothing outside of the
//! folder is read, whatever links are in it; a file that cannot be used is an error that says so, and never an absent secret.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt as _};

use super::value::{SecretValue, VALUE_LEN_MAX, read};
use super::{OpenError, SecretError};
use crate::id::{SecretName, TenantId};

/// A folder that others write.
#[derive(Debug)]
pub(super) struct Source {
    dir: Dir,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Folder,
    Credentials,
}

impl Source {
    /// A folder with a folder for each tenant, and in that a file for each secret.
    pub(super) fn folder(path: &Path) -> Result<Self, OpenError> {
        Self::open(path, Kind::Folder, "open the folder that secrets.dir names,")
    }

    /// Where systemd shows credentials: `secret.TENANT.NAME`, and `secret.NAME` of the tenant `default`. (No name has a dot in it.)
    pub(super) fn credentials(path: &Path) -> Result<Self, OpenError> {
        Self::open(path, Kind::Credentials, "open the folder of credentials,")
    }

    fn open(path: &Path, kind: Kind, doing: &'static str) -> Result<Self, OpenError> {
        let open = Dir::open_ambient_dir(path, ambient_authority());
        open.map(|dir| Self { dir, kind }).map_err(|source| OpenError { doing, path: path.into(), source })
    }

    pub(super) fn get(&self, tenant: &TenantId, name: &SecretName) -> Result<Option<SecretValue>, SecretError> {
        let unusable = |why: String| SecretError::Unusable { name: name.clone(), place: self.place(), why };
        for path in self.paths(tenant, name) {
            match self.read(&path) {
                Ok(bytes) if bytes.len() > VALUE_LEN_MAX => return Err(unusable(SecretError::TooLong.to_string())),
                Ok(bytes) => return SecretValue::new(bytes.to_vec()).map(Some).map_err(|error| unusable(error.to_string())),
                Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => {}
                Err(error) if crate::fault::is_exhausted(&error) => {
                    return Err(SecretError::Io { doing: "read a secret", source: error });
                }
                // What it says has no path in it.
                Err(error) => return Err(unusable(error.to_string())),
            }
        }
        Ok(None)
    }

    fn place(&self) -> &'static str {
        match self.kind {
            Kind::Folder => "the operator's folder",
            Kind::Credentials => "the service's credentials",
        }
    }

    fn paths(&self, tenant: &TenantId, name: &SecretName) -> Vec<PathBuf> {
        match self.kind {
            Kind::Folder => vec![Path::new(tenant.as_str()).join(name.as_str())],
            Kind::Credentials if tenant.is_default() => {
                vec![format!("secret.{tenant}.{name}").into(), format!("secret.{name}").into()]
            }
            Kind::Credentials => vec![format!("secret.{tenant}.{name}").into()],
        }
    }

    fn read(&self, path: &Path) -> io::Result<zeroize::Zeroizing<Vec<u8>>> {
        let mut options = OpenOptions::new();
        // Nobody waits for whoever writes to a pipe.
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut file = self.dir.open_with(path, &options)?.into_std();
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        read(&mut file, VALUE_LEN_MAX)
    }
}

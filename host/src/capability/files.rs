//! Files: which folders a guest may see. The one place that checks a grant of files, and the one that opens them.
//!
//! Owns [`Folders`], what the node's operator allows, and [`FileAccess`], what one revision sees. Knows nothing about the calls that a
//! guest makes: WASI's own library keeps them below the folder that is opened here. Invariants: nobody sees a folder of the node that the
//! operator did not allow; what a deploy brought is never opened for writing; a guest's folders keep their numbers, because a snapshot
//! remembers them.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use super::Host;
use crate::artifacts::Pin;
use crate::config;
use crate::grants::{Access, FileGrant, Folder};
use crate::id::TenantId;

/// A folder that the operator allows, and that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the folder '{}', which the configuration allows, cannot be opened: {source}; make it, or take its [[folder]] out", .path.display())]
pub struct FolderError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// A folder that a manifest names, and that the operator does not allow. The same for one that is allowed to other tenants.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this node's operator does not allow '{host}' for {access}")]
pub struct NotAllowed {
    /// As the manifest has it.
    pub host: String,
    /// What it asks for.
    pub access: Access,
}

impl NotAllowed {
    /// What the operator would have to do.
    #[must_use]
    pub fn hint(&self) -> String {
        let Self { host, access } = self;
        format!(
            "its operator would add to the node's configuration a table [[folder]] with path = \"{host}\" and access = \"{access}\", or change \
             the one in which it lies"
        )
    }
}

/// Folders of the node that functions may be granted.
#[derive(Debug, Default)]
pub struct Folders(Vec<Allowed>);

#[derive(Debug)]
struct Allowed {
    config: config::Folder,
    /// Without links on the way.
    root: PathBuf,
}

impl Folders {
    /// The folders of a configuration, which must be there, and by whatever names they go neither hold nor lie in what is the node's `own`.
    ///
    /// # Errors
    /// [`FolderError`] for the first that is not so.
    pub fn open(folders: &[config::Folder], own: &[&Path]) -> Result<Self, FolderError> {
        // What is not there yet holds nothing.
        let own: Vec<PathBuf> = own.iter().filter_map(|path| path.canonicalize().ok()).collect();
        let apart = |root: PathBuf| match own.iter().find(|own| own.starts_with(&root) || root.starts_with(own)) {
            None => Ok(root),
            Some(own) => Err(io::Error::other(format!(
                "it is, holds or lies in '{}', which is the node's own: choose a folder apart from data.dir and secrets.dir",
                own.display()
            ))),
        };
        let open = |folder: &config::Folder| {
            let root = folder.path.canonicalize().and_then(apart);
            let open = root.and_then(|root| Dir::open_ambient_dir(&root, ambient_authority()).map(|_| root));
            match open {
                Ok(root) => Ok(Allowed { config: folder.clone(), root }),
                Err(source) => Err(FolderError { path: folder.path.clone(), source }),
            }
        };
        folders.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// The folder of the node that a manifest of `tenant` names.
    ///
    /// # Errors
    /// [`NotAllowed`].
    pub fn allow(&self, tenant: &TenantId, grant: &FileGrant) -> Result<Folder, NotAllowed> {
        let wanted = Path::new(&grant.host);
        let fits = |allowed: &&Allowed| {
            let Allowed { config, .. } = allowed;
            let is_theirs = config.tenants.as_ref().is_none_or(|tenants| tenants.contains(tenant));
            is_theirs && config.access >= grant.access && wanted.starts_with(&config.path)
        };
        let found = self.0.iter().find_map(|allowed| {
            let below = fits(&allowed).then(|| wanted.strip_prefix(&allowed.config.path).ok()).flatten()?;
            Some(Folder { root: allowed.root.clone(), below: below.into(), guest: grant.guest.clone(), access: grant.access })
        });
        found.ok_or_else(|| NotAllowed { host: grant.host.clone(), access: grant.access })
    }
}

/// Opens a folder: whatever lies on the way below its root, nothing above that is reached.
///
/// # Errors
/// What the system says.
pub fn open(folder: &Folder) -> io::Result<Dir> {
    let root = Dir::open_ambient_dir(&folder.root, ambient_authority())?;
    if folder.below.as_os_str().is_empty() { Ok(root) } else { root.open_dir(&folder.below) }
}

/// Folders that one revision sees. The default sees none.
#[derive(Default)]
pub struct FileAccess {
    folders: Vec<Folder>,
    /// Keeps the files of the revision from the collector, as long as an invocation may read them.
    _pin: Option<Pin>,
}

impl FileAccess {
    /// `folders` in the order in which the guest finds them. `pin`: of the files that the deploy brought.
    #[must_use]
    pub fn new(folders: Vec<Folder>, pin: Option<Pin>) -> Self {
        Self { folders, _pin: pin }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.folders.is_empty()
    }

    /// Shows the folders to a guest. One that cannot be opened ends it, or those behind would have other numbers than a snapshot
    /// remembers; why not is returned.
    pub(super) fn show(&self, builder: &mut WasiCtxBuilder) -> Option<String> {
        self.folders.iter().find_map(|folder| {
            let error = show(folder, builder).err()?;
            // The operator's folder may have gone, or a guest has put something in its place: as often as it likes, so this is no warning.
            // The path is not the guest's to know.
            tracing::debug!(root = %folder.root.display(), below = %folder.below.display(), error, "a granted folder cannot be opened");
            Some(format!("the folder {} cannot be opened on this node; it and those behind it are not there", folder.guest))
        })
    }
}

fn show(folder: &Folder, builder: &mut WasiCtxBuilder) -> Result<(), String> {
    let perms = match folder.access {
        Access::Read => FsPerms::ReadOnly,
        Access::ReadWrite => FsPerms::ReadWrite,
    };
    let dir = open(folder).map_err(|error| error.to_string())?;
    // The library takes paths alone. This one names what was opened, whatever is put in its place meanwhile.
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    builder.preopened_dir(path, &folder.guest, perms).map(drop).map_err(|error| format!("{error:#}"))
}

impl fmt::Debug for FileAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.folders).finish()
    }
}

impl Host {
    /// Whether the guest sees no folder at all.
    pub(super) fn has_no_folders(&self) -> bool {
        let environment = &self.environment;
        environment.grants.dirs.is_empty() && environment.files.is_empty() && self.mounts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn config(path: &Path, access: Access, tenants: Option<&[&str]>) -> config::Folder {
        let tenants = tenants.map(|tenants| tenants.iter().map(|tenant| tenant.parse().unwrap()).collect());
        config::Folder { path: path.into(), access, tenants }
    }

    fn grant(host: &Path, access: Access) -> FileGrant {
        FileGrant { host: host.to_str().unwrap().into(), guest: "/x".into(), access }
    }

    #[test]
    fn only_what_the_operator_allows_and_only_for_that() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        for name in ["read/below", "write", "theirs", "read2"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        let all = [
            config(&path("read"), Access::Read, None),
            config(&path("write"), Access::ReadWrite, None),
            config(&path("theirs"), Access::Read, Some(&["other"])),
        ];
        let folders = Folders::open(&all, &[&path("read2"), &path("not-there")]).unwrap();
        let (mine, other) = (TenantId::default(), "other".parse::<TenantId>().unwrap());
        let allowed = |tenant, name: &str, access| folders.allow(tenant, &grant(&path(name), access)).is_ok();
        for name in ["read", "read/below", "read/not/there/yet", "write"] {
            assert!(allowed(&mine, name, Access::Read), "{name}");
        }
        assert!(allowed(&mine, "write", Access::ReadWrite) && !allowed(&mine, "read", Access::ReadWrite));
        assert!(allowed(&other, "theirs", Access::Read) && !allowed(&mine, "theirs", Access::Read));
        for name in ["read2", "elsewhere", ""] {
            let refused = folders.allow(&mine, &grant(&path(name), Access::Read)).unwrap_err();
            assert!(refused.hint().contains("[[folder]] with path = "), "{name}");
        }
        assert!(Folders::open(&[config(&path("not-there"), Access::Read, None)], &[]).is_err());
        fs::write(path("file"), "").unwrap();
        assert!(Folders::open(&[config(&path("file"), Access::Read, None)], &[]).is_err());
    }

    #[test]
    fn what_is_the_nodes_own_is_no_folder_by_any_name() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        fs::create_dir_all(path("app/data/keys")).unwrap();
        symlink(path("app/data"), path("link")).unwrap();
        let own = path("app/../app/data");
        for bad in ["app", "app/data", "app/data/keys", "link"] {
            let error = Folders::open(&[config(&path(bad), Access::Read, None)], &[&own]).unwrap_err().to_string();
            assert!(error.contains("the node's own"), "{error}");
        }
        fs::create_dir(path("app/site")).unwrap();
        assert!(Folders::open(&[config(&path("app/site"), Access::Read, None)], &[&own]).is_ok());
    }

    #[test]
    fn a_link_on_the_way_leads_nowhere_outside() {
        let temp = tempfile::tempdir().unwrap();
        let (root, outside) = (temp.path().join("root"), temp.path().join("outside"));
        for folder in [&root, &root.join("real"), &outside] {
            fs::create_dir(folder).unwrap();
        }
        symlink("../outside", root.join("relative")).unwrap();
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("real", root.join("inside")).unwrap();
        let folders = Folders::open(&[config(&root, Access::ReadWrite, None)], &[]).unwrap();
        let opens =
            |name: &str| open(&folders.allow(&TenantId::default(), &grant(&root.join(name), Access::Read)).unwrap()).is_ok();
        assert!(opens("") && opens("real") && opens("inside"));
        assert!(!opens("relative") && !opens("absolute") && !opens("missing"));
    }
}

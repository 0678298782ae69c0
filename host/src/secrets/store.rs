//! Secrets that came by the API, each in a file of its own.
//!
//! ```text
//! DIR/secrets/TENANT/HASH      HASH: keyed BLAKE3 of tenant and name, so that no name is in a listing of the disk
//!
//! offset   bytes
//! 0            8   magic: "HOBSEC1\n"
//! 8           24   nonce, random
//! 32         ...   the body, sealed by XChaCha20-Poly1305 with all before it, the tenant and HASH as associated data
//! ...         16   its tag
//!
//! body: u64 when it was put, in milliseconds since 1970 · u8 length of the name · name · value; little-endian
//! ```
//!
//! Owns the layout, the sealing and the bound on their number. Knows nothing about where else secrets come from. Invariant: what
//! [`Store::get`] returns was put under this tenant and name with this key; under its name a file is whole or absent.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use chacha20poly1305::aead::AeadInOut as _;
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::value::{SecretValue, VALUE_LEN_MAX, read};
use super::{OpenError, SecretError};
use crate::id::{Digest, SECRET_NAME_LEN_MAX, SecretName, TenantId};
use crate::storage::disk::{create_dirs, sync_dir, write_durably};

/// Most secrets of one tenant.
pub const SECRETS_MAX: usize = 256;

const MAGIC: &[u8; 8] = b"HOBSEC1\n";
const NONCE_LEN: usize = 24;
const HEAD_LEN: usize = MAGIC.len() + NONCE_LEN;
const TAG_LEN: usize = 16;
const FILE_LEN_MAX: usize = HEAD_LEN + 8 + 1 + SECRET_NAME_LEN_MAX + VALUE_LEN_MAX + TAG_LEN;
/// How the files end that a kill leaves half-written.
const UNFINISHED: &str = "new";

/// See the module.
pub(super) struct Store {
    root: PathBuf,
    cipher: XChaCha20Poly1305,
    name_key: Zeroizing<[u8; 32]>,
    /// Held over every change, so that the bound holds.
    changing: Mutex<()>,
}

/// A secret that is kept, without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub name: SecretName,
    /// Length of its value in bytes.
    pub bytes: usize,
    /// When it was put: Unix time in milliseconds.
    pub changed_ms: u64,
}

/// The secrets of a tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// By name.
    pub secrets: Vec<Stored>,
    /// Files that are damaged, or were sealed with another key. Whose names they hold is not known.
    pub damaged: usize,
}

/// What a file holds.
struct Opened {
    name: SecretName,
    changed_ms: u64,
    value: SecretValue,
}

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> SecretError {
    move |source| SecretError::Io { doing, source }
}

/// What `op` comes to, if what it is about is there.
fn found<T>(op: io::Result<T>) -> io::Result<Option<T>> {
    match op {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Store {
    /// # Errors
    /// [`OpenError`] when what a kill left cannot be removed.
    pub(super) fn open(root: &Path, key: &[u8; 32]) -> Result<Self, OpenError> {
        let sealing = Zeroizing::new(blake3::derive_key("hob 2026-11-28 secrets, sealing", key));
        let store = Self {
            root: root.into(),
            cipher: XChaCha20Poly1305::new((&*sealing).into()),
            name_key: Zeroizing::new(blake3::derive_key("hob 2026-11-28 secrets, names of files", key)),
            changing: Mutex::new(()),
        };
        store.sweep().map_err(|source| OpenError { doing: "look at secrets in", path: root.into(), source })?;
        Ok(store)
    }

    /// Removes what was not whole when the process was killed.
    fn sweep(&self) -> io::Result<()> {
        for tenant in found(fs::read_dir(&self.root))?.into_iter().flatten() {
            let tenant = tenant?;
            if !tenant.file_type()?.is_dir() {
                continue;
            }
            for file in fs::read_dir(tenant.path())? {
                let path = file?.path();
                if path.extension().is_some_and(|end| end == UNFINISHED) {
                    fs::remove_file(path)?;
                }
            }
        }
        Ok(())
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        // It guards no value: every step of a change leaves the files whole.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folder(&self, tenant: &TenantId) -> PathBuf {
        self.root.join(tenant.as_str())
    }

    fn hash(&self, tenant: &TenantId, name: &SecretName) -> Digest {
        let mut hasher = blake3::Hasher::new_keyed(&self.name_key);
        for part in [tenant.as_str(), name.as_str()] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        Digest::from_bytes(*hasher.finalize().as_bytes())
    }

    pub(super) fn get(&self, tenant: &TenantId, name: &SecretName) -> Result<Option<SecretValue>, SecretError> {
        let (doing, hash) = ("read a secret", self.hash(tenant, name));
        let Some(mut file) = found(File::open(self.folder(tenant).join(hash.hex()))).map_err(io_error(doing))? else {
            return Ok(None);
        };
        let sealed = read(&mut file, FILE_LEN_MAX).map_err(io_error(doing))?;
        match self.unseal(tenant, hash, sealed) {
            Some(opened) if opened.name == *name => Ok(Some(opened.value)),
            _ => Err(SecretError::Damaged { name: name.clone() }),
        }
    }

    pub(super) fn put(&self, tenant: &TenantId, name: &SecretName, value: &SecretValue) -> Result<(), SecretError> {
        let (doing, hash) = ("keep a secret", self.hash(tenant, name));
        let (folder, file) = (self.folder(tenant), hash.hex());
        let sealed = self.seal(tenant, name, hash, value)?;
        let _turn = self.change();
        let count = self.files(tenant).map_err(io_error(doing))?.len();
        if count >= SECRETS_MAX && !folder.join(&file).exists() {
            return Err(SecretError::TooMany { count });
        }
        create_dirs(&folder).and_then(|()| write_durably(&folder, &file, &sealed)).map_err(io_error(doing))
    }

    pub(super) fn remove(&self, tenant: &TenantId, name: &SecretName) -> Result<bool, SecretError> {
        let folder = self.folder(tenant);
        let _turn = self.change();
        let removed = found(fs::remove_file(folder.join(self.hash(tenant, name).hex())));
        let removed = removed.and_then(|removed| removed.map(|()| sync_dir(&folder)).transpose());
        removed.map(|removed| removed.is_some()).map_err(io_error("remove a secret"))
    }

    pub(super) fn remove_tenant(&self, tenant: &TenantId) -> Result<(), SecretError> {
        let _turn = self.change();
        let removed = found(fs::remove_dir_all(self.folder(tenant)));
        let removed = removed.and_then(|removed| removed.map(|()| sync_dir(&self.root)).transpose());
        removed.map(drop).map_err(io_error("remove the secrets of a tenant"))
    }

    pub(super) fn list(&self, tenant: &TenantId) -> Result<Listed, SecretError> {
        let (doing, folder) = ("list the secrets of a tenant", self.folder(tenant));
        let mut listed = Listed::default();
        for hash in self.files(tenant).map_err(io_error(doing))? {
            // One that was removed a moment ago is not listed.
            let Some(mut file) = found(File::open(folder.join(hash.hex()))).map_err(io_error(doing))? else { continue };
            let sealed = read(&mut file, FILE_LEN_MAX).map_err(io_error(doing))?;
            match self.unseal(tenant, hash, sealed) {
                Some(Opened { name, changed_ms, value }) => {
                    listed.secrets.push(Stored { name, bytes: value.bytes().len(), changed_ms });
                }
                None => listed.damaged += 1,
            }
        }
        listed.secrets.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    /// What a tenant has.
    fn files(&self, tenant: &TenantId) -> io::Result<Vec<Digest>> {
        let mut files = Vec::new();
        for file in found(fs::read_dir(self.folder(tenant)))?.into_iter().flatten() {
            // What is being written has another name.
            files.extend(file?.file_name().to_str().and_then(|name| Digest::from_hex(name).ok()));
        }
        Ok(files)
    }

    fn associated(head: &[u8], tenant: &TenantId, hash: Digest) -> Vec<u8> {
        [head, hash.bytes(), tenant.as_str().as_bytes()].concat()
    }

    fn seal(&self, tenant: &TenantId, name: &SecretName, hash: Digest, value: &SecretValue) -> Result<Vec<u8>, SecretError> {
        let mut nonce = [0; NONCE_LEN];
        let random = getrandom::fill(&mut nonce).map_err(io::Error::other);
        random.map_err(io_error("draw random bytes to seal a secret"))?;
        let head = [&MAGIC[..], &nonce].concat();
        let name = name.as_str().as_bytes();
        let name_len = u8::try_from(name.len()).expect("a name has at most 64 bytes");
        let mut body = Zeroizing::new(Vec::with_capacity(FILE_LEN_MAX));
        body.extend(now_ms().to_le_bytes());
        body.push(name_len);
        body.extend(name);
        body.extend(value.bytes());
        let associated = Self::associated(&head, tenant, hash);
        let sealed = self.cipher.encrypt_in_place(&XNonce::from(nonce), &associated, &mut *body);
        sealed.expect("a body is far shorter than what one key stream seals");
        Ok([&head, &body[..]].concat())
    }

    fn unseal(&self, tenant: &TenantId, hash: Digest, mut sealed: Zeroizing<Vec<u8>>) -> Option<Opened> {
        if sealed.len() > FILE_LEN_MAX {
            return None;
        }
        let head = sealed.get(..HEAD_LEN).filter(|head| head.starts_with(MAGIC))?.to_vec();
        let nonce = <[u8; NONCE_LEN]>::try_from(head.get(MAGIC.len()..)?).ok()?;
        sealed.drain(..HEAD_LEN);
        let associated = Self::associated(&head, tenant, hash);
        self.cipher.decrypt_in_place(&XNonce::from(nonce), &associated, &mut *sealed).ok()?;
        let (changed_ms, rest) = sealed.split_first_chunk::<8>()?;
        let (name_len, rest) = rest.split_first()?;
        let (name, value) = rest.split_at_checked(usize::from(*name_len))?;
        let name = std::str::from_utf8(name).ok()?.parse().ok()?;
        Some(Opened { name, changed_ms: u64::from_le_bytes(*changed_ms), value: SecretValue::new(value.to_vec()).ok()? })
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("root", &self.root).finish_non_exhaustive()
    }
}

//! Jobs: what the node tells the child beside the module.
//!
//! Owns the bytes on the child's standard input. Knows nothing about what is done with them.
//!
//! ```text
//! offset   bytes
//! 0            8   length of the job, little-endian
//! 8          ...   the job, JSON
//! ...        ...   the module, to the end
//! ```

use std::io::{self, Read};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::capability::wasi;
use crate::grants::secrets::{SECRET_GRANTS_MAX, SecretGrant};
use crate::grants::{Access, ClockResolution, Folder};
use crate::id::{Digest, FunctionName, SecretName};
use crate::limits::Limits;
use crate::manifest::{Manifest, Snapshot, SnapshotMode};
use crate::secrets::{InitSecrets, SecretValue, VALUE_LEN_MAX};

/// Longest job, in bytes: all secrets of a function in Base64, and a MiB for the rest. A manifest is far smaller.
const JOB_LEN_MAX: u64 = (1 << 20) + (SECRET_GRANTS_MAX * (VALUE_LEN_MAX / 3 * 4 + 256)) as u64;

/// Secrets of a function in its build.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct JobSecrets {
    /// What is granted.
    pub grants: Vec<SecretGrant>,
    /// What initialisation may read of it.
    pub values: Vec<JobSecret>,
    /// Digest of that, under a key of the node.
    pub digest: Option<Digest>,
}

/// A secret on its way to the child.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobSecret {
    /// Its name.
    pub name: SecretName,
    /// Its value.
    #[serde(serialize_with = "write_value", deserialize_with = "read_value")]
    pub value: SecretValue,
}

fn write_value<S: Serializer>(value: &SecretValue, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&Zeroizing::new(STANDARD.encode(value.bytes())))
}

fn read_value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretValue, D::Error> {
    let text = Zeroizing::new(String::deserialize(deserializer)?);
    let bytes = STANDARD.decode(text.as_bytes()).map_err(|_| serde::de::Error::custom("a secret is no Base64"))?;
    SecretValue::new(bytes).map_err(serde::de::Error::custom)
}

/// What to make of a module.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// What is run before the memory is kept.
    pub snapshot: Snapshot,
    /// Arguments, its name first.
    pub args: Vec<String>,
    /// Variables.
    pub env: Vec<(String, String)>,
    /// Folders that the guest may read, and the only ones that the child has to open.
    pub folders: Vec<Folder>,
    /// Digest of the files in them that the deploy brought. What is in folders of the node is not followed.
    pub bundle: Option<Digest>,
    /// Whether an invocation has folders that are not there in the build: buckets.
    pub has_mounts: bool,
    /// Whether an invocation may use buckets.
    pub has_data: bool,
    /// Whether an invocation may send requests.
    pub has_http: bool,
    /// Secrets.
    pub secrets: JobSecrets,
    /// How exactly the guest sees the time.
    pub clock: ClockResolution,
    /// Where the guest's monotonic clock begins, as the node has it.
    pub epoch_ns: u64,
    /// Ceilings of each invocation, and of each that the build tries.
    pub limits: Limits,
    /// Whether the module is a snapshot already, to be compiled as it is.
    pub restored: bool,
    /// Processor time and time on the clock that initialisation may take, and each warm-up request.
    pub init: Duration,
    /// Largest memory that is kept, in bytes.
    pub snapshot_bytes_max: u64,
}

impl Job {
    /// The job of deploying `manifest` under `name`. The node fills in its own limits.
    #[must_use]
    pub fn deploy(name: &FunctionName, manifest: &Manifest) -> Self {
        let mut args = vec![name.as_str().to_owned()];
        args.extend(manifest.args.iter().cloned());
        Self {
            snapshot: manifest.snapshot.clone(),
            args,
            env: manifest.env.clone().into_iter().collect(),
            folders: Vec::new(),
            bundle: None,
            has_mounts: manifest.grants.data.iter().any(|grant| grant.mount.is_some()),
            has_data: !manifest.grants.data.is_empty(),
            has_http: !manifest.grants.http.is_empty(),
            secrets: JobSecrets::default(),
            clock: manifest.grants.clock,
            epoch_ns: wasi::epoch_ns(),
            limits: manifest.limits.clone(),
            restored: false,
            init: Duration::ZERO,
            snapshot_bytes_max: 0,
        }
    }

    /// The same with folders, whatever they may be in an invocation: for reading.
    #[must_use]
    pub fn reading(self, folders: Vec<Folder>, bundle: Option<Digest>) -> Self {
        let folders = folders.into_iter().map(|folder| Folder { access: Access::Read, ..folder }).collect();
        Self { folders, bundle, ..self }
    }

    /// The same with secrets, of which initialisation may read `init`.
    #[must_use]
    pub fn with_secrets(self, grants: &[SecretGrant], init: Option<InitSecrets>) -> Self {
        let digest = init.as_ref().map(|init| init.digest);
        let values = init.into_iter().flat_map(|init| init.values);
        let values = values.map(|(name, value)| JobSecret { name, value }).collect();
        Self { secrets: JobSecrets { grants: grants.into(), values, digest }, ..self }
    }

    /// The job of only compiling what is a snapshot already: nothing runs, and nothing is read.
    #[must_use]
    pub fn of_snapshot(self) -> Self {
        Self { restored: true, folders: Vec::new(), bundle: None, secrets: JobSecrets::default(), ..self }
    }

    /// Digest of arguments, variables, clock and secrets, and of the names of folders and the files in them.
    ///
    /// # Cost
    /// Proportional to their length.
    #[must_use]
    pub fn environment(&self) -> Digest {
        let guests: Vec<_> = self.folders.iter().map(|folder| &folder.guest).collect();
        let bundle = self.bundle.map(|bundle| bundle.hex());
        let secrets = self.secrets.digest.map(|digest| digest.hex());
        let json = serde_json::to_vec(&(&self.args, &self.env, self.clock, guests, bundle, &self.secrets.grants, secrets));
        let json = json.expect("texts can be written as JSON");
        Digest::of(&json)
    }

    /// Whether the module is only compiled: it is not even started once.
    #[must_use]
    pub(super) fn only_compiles(&self) -> bool {
        self.restored || self.snapshot.mode == SnapshotMode::Off
    }

    /// Everything before the module.
    pub(super) fn to_bytes(&self) -> serde_json::Result<Zeroizing<Vec<u8>>> {
        let json = Zeroizing::new(serde_json::to_vec(self)?);
        Ok(Zeroizing::new([&(json.len() as u64).to_le_bytes(), &json[..]].concat()))
    }

    /// Reads a job, and leaves the module behind it.
    pub(super) fn read(input: &mut impl Read) -> io::Result<Self> {
        let mut len = [0; 8];
        input.read_exact(&mut len)?;
        let len = u64::from_le_bytes(len);
        if len > JOB_LEN_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a job of {len} bytes")));
        }
        let mut json = Zeroizing::new(vec![0; usize::try_from(len).unwrap_or(usize::MAX)]);
        input.read_exact(&mut json)?;
        Ok(serde_json::from_slice(&json)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_round_trip() {
        let manifest = Manifest::parse("args = ['-v']\n[env]\nA = '1'\n[snapshot]\nwarmup = ['GET /']").unwrap();
        let job = Job::deploy(&"a".parse().unwrap(), &manifest);
        let bytes = [&job.to_bytes().unwrap()[..], b"\0asm"].concat();
        let mut rest = &bytes[..];
        let read = Job::read(&mut rest).unwrap();
        assert_eq!((read.args, read.env, rest), (vec!["a".into(), "-v".into()], vec![("A".into(), "1".into())], &b"\0asm"[..]));
        assert_eq!(read.snapshot, manifest.snapshot);
        assert_eq!(read.epoch_ns, wasi::epoch_ns());
        for len in 0..bytes.len() - 4 {
            assert!(Job::read(&mut &bytes[..len]).is_err(), "{len}");
        }
        assert!(Job::read(&mut &u64::MAX.to_le_bytes()[..]).is_err());
    }

    #[test]
    fn the_longest_secrets_go_along_and_are_not_shown() {
        let names =
            || (0..SECRET_GRANTS_MAX).map(|number| format!("{}{number:02}", "S".repeat(62)).parse::<SecretName>().unwrap());
        let grants: Vec<_> = names().map(|name| SecretGrant { name, env: Some("e".repeat(128)), init: true }).collect();
        let value = || SecretValue::new(vec![0xa5; VALUE_LEN_MAX]).unwrap();
        let values = names().map(|name| (name, value())).collect();
        let init = InitSecrets { values, digest: Digest::of(b"d") };
        let job = Job::deploy(&"a".parse().unwrap(), &Manifest::default()).with_secrets(&grants, Some(init));
        let bytes = job.to_bytes().unwrap();
        let read = Job::read(&mut &bytes[..]).unwrap();
        assert_eq!((read.secrets.grants, read.secrets.digest), (grants, Some(Digest::of(b"d"))));
        assert!(read.secrets.values.iter().all(|secret| secret.value.bytes() == value().bytes()));
        assert!(!format!("{job:?}").contains("165") && format!("{job:?}").contains("SecretValue(..)"));
        assert_ne!(job.environment(), Job::deploy(&"a".parse().unwrap(), &Manifest::default()).environment());
    }
}

//! Secrets: which ones a guest may read. The one place that checks a grant of a secret, whichever interface asks.
//!
//! Owns [`SecretAccess`], what one revision may read and from where, and the refusal of everything else. Knows nothing about where values lie
//! (`secrets`) and how they cross into a guest (`handler/secrets.rs`, `config.rs`). Invariants: nobody reads a secret that the manifest does
//! not name; what a build runs reads none but those that the manifest lets it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::explain::{Denied, How};
use super::{Environment, Host};
use crate::fault::{Code, Fault};
use crate::grants::secrets::SecretGrant;
use crate::id::{Digest, SECRET_NAME_LEN_MAX, SecretName, TenantId};
use crate::manifest::ENV_LEN_MAX;
use crate::secrets::{Changes, InitError, SecretError, SecretValue, Secrets};
use crate::telemetry::logs::{Level, LogSink};

/// What one revision of a function may read. The default reads nothing.
#[derive(Default)]
pub struct SecretAccess {
    holder: Holder,
    grants: Vec<SecretGrant>,
    /// Whether one was asked for that is granted, but not to the initialisation.
    missed: AtomicBool,
}

/// Where values come from.
#[derive(Default)]
enum Holder {
    /// The guest runs where there are none.
    #[default]
    Nowhere,
    Node {
        secrets: Arc<Secrets>,
        tenant: TenantId,
        changes: Changes,
    },
    /// The guest runs in a build, which got those that its initialisation may read.
    Build(Vec<(SecretName, SecretValue)>),
}

/// Why a guest does not get what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum SecretRefusal {
    /// The manifest does not grant it.
    #[error(transparent)]
    Denied(Denied),
    /// The manifest grants it, but not to the initialisation.
    #[error(
        "not readable during initialisation and warm-up unless hob.toml says so: [grants] secrets = [{{ name = \"{0}\", init = true }}]"
    )]
    NotInInit(SecretName),
    /// The guest runs where there are none.
    #[error("there are no secrets here: a function reads them on the node that it is deployed to")]
    Absent,
    /// Nobody has set it.
    #[error("there is no secret '{0}': set it with hob secret set {0}")]
    Missing(SecretName),
    /// It is there, and cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

impl SecretAccess {
    /// What `grants` allow of the secrets of a tenant.
    #[must_use]
    pub fn new(secrets: Arc<Secrets>, tenant: TenantId, grants: &[SecretGrant]) -> Self {
        let changes = secrets.changes(&tenant);
        Self { holder: Holder::Node { secrets, tenant, changes }, grants: grants.into(), ..Self::default() }
    }

    /// The same in a build, which has these values.
    #[must_use]
    pub fn of_build(grants: &[SecretGrant], values: Vec<(SecretName, SecretValue)>) -> Self {
        Self { holder: Holder::Build(values), grants: grants.into(), ..Self::default() }
    }

    /// Whether a guest in a build asked for one that is granted, but not to the initialisation.
    #[must_use]
    pub fn was_missed(&self) -> bool {
        self.missed.load(Ordering::Relaxed)
    }

    /// A granted secret.
    ///
    /// # Errors
    /// [`SecretRefusal`].
    /// # Cost
    /// Blocks as [`Secrets::get`] says.
    pub fn get(&self, name: &str) -> Result<SecretValue, SecretRefusal> {
        let grant = self.grant(name).ok_or_else(|| SecretRefusal::Denied(denied(name)))?;
        self.read(grant)
    }

    fn grant(&self, name: &str) -> Option<&SecretGrant> {
        self.grants.iter().find(|grant| grant.name.as_str() == name)
    }

    fn read(&self, grant: &SecretGrant) -> Result<SecretValue, SecretRefusal> {
        let name = &grant.name;
        match &self.holder {
            Holder::Nowhere => Err(SecretRefusal::Absent),
            Holder::Build(_) if !grant.init => {
                self.missed.store(true, Ordering::Relaxed);
                Err(SecretRefusal::NotInInit(name.clone()))
            }
            Holder::Build(values) => {
                let found = values.iter().find(|(of, _)| of == name).map(|(_, value)| value.clone());
                found.ok_or_else(|| SecretRefusal::Missing(name.clone()))
            }
            Holder::Node { secrets, tenant, .. } => {
                secrets.get(tenant, name)?.ok_or_else(|| SecretRefusal::Missing(name.clone()))
            }
        }
    }

    /// Whether any secret is a variable too.
    #[must_use]
    pub fn has_variables(&self) -> bool {
        self.grants.iter().any(|grant| grant.env.is_some())
    }

    /// The variables that hold secrets. In a build, those of the initialisation alone.
    fn variables(&self) -> Result<Vec<(String, String)>, String> {
        let is_here = |grant: &&SecretGrant| grant.init || !matches!(self.holder, Holder::Build(_));
        let (mut variables, mut left) = (Vec::new(), ENV_LEN_MAX);
        for grant in self.grants.iter().filter(is_here) {
            let Some(variable) = &grant.env else { continue };
            let name = &grant.name;
            let value = self.read(grant).map_err(|error| format!("secret '{name}': {error}"))?;
            let text = std::str::from_utf8(value.bytes()).ok().filter(|text| !text.contains('\0'));
            let text =
                text.ok_or_else(|| format!("secret '{name}' is no text without NUL, so it cannot be the variable '{variable}'"))?;
            let rest = left.checked_sub(variable.len() + text.len());
            left = rest.ok_or_else(|| format!("the variables that hold secrets have more than {ENV_LEN_MAX} bytes together"))?;
            variables.push((variable.clone(), text.to_owned()));
        }
        Ok(variables)
    }

    /// Digest of what the initialisation may read, as it is now; `None` if that is nothing.
    ///
    /// # Errors
    /// `secret-unavailable`; the log of the function says which.
    /// # Cost
    /// Blocks as [`Secrets::of_init`] says.
    pub fn digest_of_init(&self, log: &LogSink) -> Result<Option<Digest>, Fault> {
        let Holder::Node { secrets, tenant, .. } = &self.holder else { return Ok(None) };
        match secrets.of_init(tenant, &self.grants) {
            Ok(init) => Ok(init.map(|init| init.digest)),
            Err(InitError::Secret(SecretError::Io { source, .. })) => Err(Fault::system(&source)),
            Err(error) => Err(unavailable(&error.to_string(), log)),
        }
    }
}

impl SecretAccess {
    /// How often a secret of the tenant changed by the API so far.
    #[must_use]
    pub fn changes(&self) -> u64 {
        match &self.holder {
            Holder::Node { changes, .. } => changes.count(),
            Holder::Nowhere | Holder::Build(_) => 0,
        }
    }

    /// The granted secrets that cannot be read, and why, without a value or a path.
    ///
    /// # Cost
    /// Blocks as [`Secrets::get`] says, for each.
    #[must_use]
    pub fn unreadable(&self) -> Vec<(SecretName, String)> {
        let why = |grant: &SecretGrant| Some((grant.name.clone(), self.read(grant).err()?.to_string()));
        self.grants.iter().filter_map(why).collect()
    }
}

impl fmt::Debug for SecretAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.grants).finish()
    }
}

/// What of a guest's text is repeated: as much as could be a name.
fn denied(name: &str) -> Denied {
    let shown: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(SECRET_NAME_LEN_MAX).collect();
    let (what, shown) = match name.parse::<SecretName>() {
        Ok(_) => (format!("secret '{shown}'"), shown),
        Err(_) => ("a secret by what is no secret's name".into(), "NAME".into()),
    };
    Denied { what, how: How::Add, line: format!("secrets = [\"{shown}\"]") }
}

/// The answer to a client whose function cannot start. Which secret it is, is for the function's log.
fn unavailable(what: &str, log: &LogSink) -> Fault {
    log.host(Level::Error, format!("{}: {what}", Code::SecretUnavailable));
    let fault = Fault::new(Code::SecretUnavailable, "a secret that the function cannot start without is not available");
    fault.hint("its log says which: hob logs NAME; set it with: hob secret set SECRET")
}

impl Environment {
    /// With the secrets that are variables.
    ///
    /// # Errors
    /// `secret-unavailable`; the log of the function says which.
    /// # Cost
    /// Blocks for a read of each, as [`Secrets::get`] says.
    pub fn with_secrets(self: Arc<Self>, log: &LogSink) -> Result<Arc<Self>, Fault> {
        if !self.secrets.has_variables() {
            return Ok(self);
        }
        let variables = self.secrets.variables().map_err(|what| unavailable(&what, log))?;
        let mut environment = Self::clone(&self);
        environment.env_of_secrets = variables.len();
        environment.env.extend(variables);
        Ok(Arc::new(environment))
    }
}

impl Host {
    /// A secret, if the guest may read it. Says in the function's log what would have allowed what is denied.
    ///
    /// # Errors
    /// As [`SecretAccess::get`].
    pub(super) fn secret(&mut self, name: &str) -> Result<SecretValue, SecretRefusal> {
        self.has_asked = true;
        let found = self.environment.secrets.get(name);
        if let Err(SecretRefusal::Denied(denied)) = &found {
            self.explain(denied);
        }
        found
    }

    /// As [`Host::secret`]; `None` for what is not granted, and nothing is said about it.
    pub(super) fn granted_secret(&mut self, name: &str) -> Option<Result<SecretValue, SecretRefusal>> {
        self.has_asked = true;
        let secrets = &self.environment.secrets;
        secrets.grant(name).map(|grant| secrets.read(grant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{InvocationId, RevisionNumber};
    use crate::secrets::Places;
    use crate::telemetry::logs::{FunctionLog, LogSpace};

    fn grant(name: &str, env: Option<&str>, init: bool) -> SecretGrant {
        SecretGrant { name: name.parse().unwrap(), env: env.map(Into::into), init }
    }

    fn value(bytes: &[u8]) -> SecretValue {
        SecretValue::new(bytes.to_vec()).unwrap()
    }

    fn sink() -> (Arc<FunctionLog>, LogSink) {
        let log = Arc::new(FunctionLog::new(LogSpace::new(1 << 20, 1 << 20)));
        (log.clone(), LogSink::new(log, InvocationId::new(0, 0), RevisionNumber::FIRST, 0))
    }

    fn text(access: &SecretAccess, name: &str) -> Result<String, String> {
        let found = access.get(name).map(|value| String::from_utf8(value.bytes().to_vec()).unwrap());
        found.map_err(|error| error.to_string())
    }

    #[test]
    fn only_what_is_granted_is_read_and_in_a_build_only_what_is_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Arc::new(Secrets::open(dir.path(), &[7; 32], Places::default()).unwrap());
        let mine = TenantId::default();
        for name in ["A", "B", "C"] {
            secrets.put(&mine, &name.parse().unwrap(), &value(name.as_bytes())).unwrap();
        }
        let grants = [grant("A", None, false), grant("B", None, true), grant("MISSING", None, false)];
        let node = SecretAccess::new(secrets.clone(), mine, &grants);
        assert_eq!((text(&node, "A").as_deref(), text(&node, "B").as_deref()), (Ok("A"), Ok("B")));
        assert_eq!(text(&node, "C").unwrap_err(), "denied: add to hob.toml: [grants] secrets = [\"C\"]");
        assert!(text(&node, "MISSING").unwrap_err().contains("there is no secret 'MISSING'"));
        assert!(text(&node, "x\n\"]y").unwrap_err().ends_with("secrets = [\"NAME\"]"));
        let theirs = SecretAccess::new(secrets, "other".parse().unwrap(), &grants);
        assert!(text(&theirs, "A").unwrap_err().contains("there is no secret 'A'"));
        let build = SecretAccess::of_build(&grants, vec![("B".parse().unwrap(), value(b"frozen"))]);
        assert_eq!(text(&build, "B").as_deref(), Ok("frozen"));
        assert!(text(&build, "A").unwrap_err().contains("init = true"));
        assert!(text(&build, "C").unwrap_err().starts_with("denied"));
        assert!(text(&SecretAccess::default(), "A").unwrap_err().starts_with("denied"));
    }

    #[test]
    fn variables_are_text_and_bounded() {
        let (log, sink) = sink();
        let with = |grants: &[SecretGrant], values: Vec<(&str, &[u8])>| {
            let values = values.into_iter().map(|(name, bytes)| (name.parse().unwrap(), value(bytes))).collect();
            let secrets = Arc::new(SecretAccess::of_build(grants, values));
            let env = vec![("OWN".to_owned(), "1".to_owned())];
            Arc::new(Environment { env, secrets, ..Environment::default() }).with_secrets(&sink)
        };
        let both = [grant("A", Some("X"), true), grant("B", Some("Y"), false), grant("C", None, true)];
        let found = with(&both, vec![("A", b"a"), ("C", b"c")]).unwrap();
        assert_eq!(format!("{found:?}"), "Environment { args: [], env: [\"OWN\", \"X\"], .. }", "no value");
        assert_eq!((found.env_of_secrets, &found.env[1..]), (1, &[("X".to_owned(), "a".to_owned())][..]));
        assert_eq!(with(&[grant("A", None, true)], vec![("A", b"\xff")]).unwrap().env.len(), 1);
        for (bad, word) in [(&b"\xff"[..], "no text"), (b"a\0b", "no text")] {
            let fault = with(&[grant("A", Some("X"), true)], vec![("A", bad)]).unwrap_err();
            assert_eq!(fault.code, Code::SecretUnavailable);
            assert!(log.tail(1)[0].text.contains(word), "{}", log.tail(1)[0].text);
            assert!(!fault.detail.contains("'A'"), "{fault}");
        }
        with(&[grant("A", Some("X"), true)], vec![]).unwrap_err();
        assert!(log.tail(1)[0].text.contains("there is no secret 'A'"));
        let long = |len: usize| with(&[grant("A", Some("X"), true)], vec![("A", &vec![b'x'; len])]);
        assert!(long(ENV_LEN_MAX - 1).is_ok() && long(ENV_LEN_MAX).is_err());
    }
}

//! The manifest, `hob.toml`: what its author says about one function.
//!
//! Owns the keys, their meaning and the messages for wrong ones. Knows nothing about files: it is given text.
//! Invariant: a [`Manifest`] holds only values that are legal on their own; what depends on other functions (a route that is
//! taken) is checked where they are known.

mod data;
mod files;
mod grants;
mod http;
mod secrets;
mod snapshot;
mod trigger;

pub use data::BUCKETS_MAX;
pub use files::{BUNDLE_DEPTH_MAX, BUNDLE_ENTRIES_MAX, BUNDLE_PATH_LEN_MAX, BadPath, FOLDERS_MAX, check_path};
pub use snapshot::{Randomness, Snapshot, SnapshotMode, WARMUPS_MAX, WarmupRequest};
pub use trigger::{ATTEMPTS, ATTEMPTS_MAX, On, TRIGGERS_MAX, Trigger};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::bucket::BucketDeclaration;
use crate::grants::ManifestGrants;
use crate::id::{Digest, FunctionName};
use crate::limits::{Limits, nearest};
use crate::route::Route;

/// Longest manifest, in bytes.
pub const MANIFEST_LEN_MAX: usize = 64 << 10;
/// Most routes of one function.
pub const ROUTES_MAX: usize = 32;
/// Most variables in `[env]`, and most `args`.
pub const ENV_MAX: usize = 256;
/// Sum of the lengths of all names and values in `[env]` and `args`, in bytes.
pub const ENV_LEN_MAX: usize = 32 << 10;

/// Name of the file, beside the source of the function.
pub const FILE_NAME: &str = "hob.toml";

const KEYS: [&str; 12] =
    ["name", "wasm", "build", "route", "auth", "args", "env", "limits", "snapshot", "grants", "bucket", "trigger"];
const ROUTE_KEYS: [&str; 3] = ["path", "host", "method"];

/// One function as its author describes it. The default is an empty manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// Name under which to deploy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<FunctionName>,
    /// Path of the Wasm file, relative to the manifest. Only the command line uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wasm: Option<String>,
    /// Shell command that makes the Wasm file, run in the manifest's folder. Only the command line uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
    /// Requests that reach the function besides `/NAME/…`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<Route>,
    /// What a request of the data port needs.
    #[serde(skip_serializing_if = "Auth::is_open")]
    pub auth: Auth,
    /// Arguments of a command, after its own name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment of the guest.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Ceilings of each invocation.
    pub limits: Limits,
    /// What is run at deploy.
    pub snapshot: Snapshot,
    /// What the function may reach.
    #[serde(skip_serializing_if = "ManifestGrants::is_empty")]
    pub grants: ManifestGrants,
    /// Buckets that are made at deploy if they are missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bucket: Vec<BucketDeclaration>,
    /// What invokes the function besides requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trigger: Vec<Trigger>,
}

/// What a request of the data port needs to reach a function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// Nothing.
    #[default]
    Open,
    /// A token of the function's tenant with the scope `invoke`.
    Token,
}

impl Auth {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Token => "token",
        }
    }

    fn is_open(&self) -> bool {
        *self == Self::Open
    }
}

/// A manifest that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Longer than [`MANIFEST_LEN_MAX`].
    #[error("the manifest has {len} bytes: expected at most {MANIFEST_LEN_MAX}")]
    TooLong {
        /// Length found.
        len: usize,
    },
    /// Not TOML.
    #[error("the manifest is not valid TOML: {0}")]
    Syntax(String),
    /// A key that means nothing here.
    #[error("unknown key '{key}' in {place}{}; the keys are {known}", .near.as_ref().map(|near| format!(" (did you mean '{near}'?)")).unwrap_or_default())]
    UnknownKey {
        /// The key found.
        key: String,
        /// Where: `hob.toml`, or a table of it.
        place: &'static str,
        /// The nearest known key.
        near: Option<String>,
        /// All known keys.
        known: String,
    },
    /// A value of the wrong type or out of its range.
    #[error("'{key}' in hob.toml: {problem}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong and what was expected.
        problem: String,
    },
}

/// What is wrong with a text that is not TOML, and where, in one line.
pub(crate) fn syntax(text: &str, error: &toml::de::Error) -> String {
    let at = error.span().and_then(|span| text.get(..span.start));
    let place = at.map_or(String::new(), |before| {
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!("line {}, column {column}: ", before.matches('\n').count() + 1)
    });
    format!("{place}{}", error.message().replace('\n', "; "))
}

impl Manifest {
    /// Reads a manifest from the text of a `hob.toml`.
    ///
    /// # Errors
    /// [`ManifestError`]: not TOML, an unknown key (with the nearest known one), or a value outside of its range.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        if text.len() > MANIFEST_LEN_MAX {
            return Err(ManifestError::TooLong { len: text.len() });
        }
        let table: Table = text.parse().map_err(|error| ManifestError::Syntax(syntax(text, &error)))?;
        let mut manifest = Self::default();
        for (key, value) in table {
            match key.as_str() {
                "name" => manifest.name = Some(string(&key, value)?.parse().map_err(|e| problem(&key, e))?),
                "wasm" => manifest.wasm = Some(string(&key, value)?),
                "build" => manifest.build = Some(string(&key, value)?),
                "route" => manifest.route = routes(value)?,
                "auth" => manifest.auth = auth(value)?,
                "args" => manifest.args = strings(&key, value)?,
                "env" => manifest.env = env(value)?,
                "limits" => manifest.limits = limits(value)?,
                "snapshot" => manifest.snapshot = snapshot::snapshot(value)?,
                "grants" => manifest.grants = grants::grants(value)?,
                "bucket" => manifest.bucket = data::buckets(value)?,
                "trigger" => manifest.trigger = trigger::triggers(value)?,
                _ => return Err(unknown(key, "hob.toml", &KEYS)),
            }
        }
        manifest.check_sizes()?;
        snapshot::check(&manifest.snapshot, &manifest.limits, manifest.auth)?;
        secrets::check(&manifest.grants.secrets, &manifest.env)?;
        trigger::check(&manifest.trigger, &manifest.grants, &manifest.bucket)?;
        Ok(manifest)
    }

    fn check_sizes(&self) -> Result<(), ManifestError> {
        let count = self.env.len().max(self.args.len());
        if count > ENV_MAX {
            return Err(problem("env", format!("{count} entries, expected at most {ENV_MAX}")));
        }
        let lens = self.env.iter().map(|(name, value)| name.len() + value.len());
        let sum: usize = lens.chain(self.args.iter().map(String::len)).sum();
        if sum > ENV_LEN_MAX {
            return Err(problem("env", format!("{sum} bytes with 'args', expected at most {ENV_LEN_MAX}")));
        }
        Ok(())
    }

    /// What its author should know, though it is allowed.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = trigger::loops(&self.trigger, &self.grants);
        notes.extend(grants::unused(&self.grants));
        notes
    }

    /// The parts that decide what is in a snapshot, as bytes for a digest: what is run, and what a guest may read meanwhile, which is
    /// frozen in it. So are the limits, and what is thought of random numbers: a guest may grow until it is refused, and no build takes the place of
    /// another that a live revision has; and whether buckets and servers are granted, of which initialisation gets none and notes say what it missed.
    /// Routes are not. `bundle`: digest of the files that the deploy brought. `secrets`: of the secrets that may be read meanwhile.
    #[must_use]
    pub fn snapshot_inputs(&self, bundle: Option<&Digest>, secrets: Option<&Digest>) -> Vec<u8> {
        let ManifestGrants { files, clock, data, http, secrets: granted, .. } = &self.grants;
        // What is not there meanwhile is noticed, and may be a reason to keep nothing.
        let mounts: Vec<_> = data.iter().filter_map(|grant| grant.mount.as_ref()).collect();
        let variables: Vec<_> =
            granted.iter().filter(|grant| grant.env.is_some()).map(|grant| (&grant.name, grant.init)).collect();
        let [bundle, secrets] = [bundle, secrets].map(|digest| digest.map(Digest::hex));
        let Snapshot { warmup, randomness, .. } = &self.snapshot;
        let Self { env, args, limits, .. } = self;
        let missed = (!data.is_empty(), !http.is_empty());
        let seen = (files, clock, bundle, secrets, mounts, variables, missed);
        serde_json::to_vec(&(warmup, randomness, env, args, limits, seen)).expect("text and lists are JSON")
    }
}

fn problem(key: &str, what: impl ToString) -> ManifestError {
    ManifestError::Value { key: key.into(), problem: what.to_string() }
}

fn unknown(key: String, place: &'static str, known: &[&str]) -> ManifestError {
    let near = nearest(&key, known.iter().copied()).map(Into::into);
    ManifestError::UnknownKey { key, place, near, known: known.join(", ") }
}

fn string(key: &str, value: Value) -> Result<String, ManifestError> {
    match value {
        Value::String(text) if !text.contains('\0') => Ok(text),
        Value::String(_) => Err(problem(key, "expected text without NUL")),
        other => Err(problem(key, format!("expected text in quotes, found {}", other.type_str()))),
    }
}

fn strings(key: &str, value: Value) -> Result<Vec<String>, ManifestError> {
    match value {
        Value::Array(items) => items.into_iter().map(|item| string(key, item)).collect(),
        other => Err(problem(key, format!("expected a list of texts, found {}", other.type_str()))),
    }
}

fn auth(value: Value) -> Result<Auth, ManifestError> {
    match string("auth", value)?.as_str() {
        "open" => Ok(Auth::Open),
        "token" => Ok(Auth::Token),
        other => {
            Err(problem("auth", format!("expected 'open' or 'token', found '{}'", other.chars().take(80).collect::<String>())))
        }
    }
}

fn env(value: Value) -> Result<BTreeMap<String, String>, ManifestError> {
    let Value::Table(table) = value else {
        return Err(problem("env", format!("expected a table, found {}", value.type_str())));
    };
    let entry = |(name, value): (String, Value)| {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(problem("env", format!("'{name}' cannot be the name of a variable")));
        }
        let value = string(&format!("env.{name}"), value)?;
        Ok((name, value))
    };
    table.into_iter().map(entry).collect()
}

fn limits(value: Value) -> Result<Limits, ManifestError> {
    let Value::Table(table) = value else {
        return Err(problem("limits", format!("expected a table, found {}", value.type_str())));
    };
    let mut limits = Limits::default();
    for (name, value) in table {
        let text = match value {
            Value::Integer(number) => number.to_string(),
            other => string(&format!("limits.{name}"), other)?,
        };
        limits.set(&name, &text).map_err(|e| problem("limits", e))?;
    }
    Ok(limits)
}

/// `"/path"`, a table with `path`, `host` and `method`, or a list of either.
fn routes(value: Value) -> Result<Vec<Route>, ManifestError> {
    let items = match value {
        Value::Array(items) => items,
        one => vec![one],
    };
    if items.len() > ROUTES_MAX {
        return Err(problem("route", format!("{} routes, expected at most {ROUTES_MAX}", items.len())));
    }
    let mut routes = items.into_iter().map(route).collect::<Result<Vec<_>, _>>()?;
    routes.sort();
    routes.dedup();
    Ok(routes)
}

fn route(value: Value) -> Result<Route, ManifestError> {
    let mut table = match value {
        Value::Table(table) => table,
        path => Table::from_iter([("path".into(), path)]),
    };
    if let Some(key) = table.keys().find(|key| !ROUTE_KEYS.contains(&key.as_str())) {
        return Err(unknown(key.clone(), "a route", &ROUTE_KEYS));
    }
    let mut take = |key: &str| table.remove(key).map(|value| string(&format!("route.{key}"), value)).transpose();
    let (path, host, method) = (take("path")?, take("host")?, take("method")?);
    let path = path.ok_or_else(|| problem("route", "expected a 'path'"))?;
    Route::new(&path, host.as_deref(), method.as_deref()).map_err(|e| problem("route", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limit;

    fn error(text: &str) -> String {
        Manifest::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_full_manifest_is_read() {
        let manifest = Manifest::parse(
            "name = 'shop'\nwasm = 'a.wasm'\nbuild = 'make'\nroute = ['/b/*', { path = '/a', host = 'X.example', method = 'GET' }]\n\
             args = ['-v']\n[env]\nA = '1'\n[limits]\nmemory = '64MiB'\nconcurrency = 5\n",
        )
        .unwrap();
        assert_eq!(manifest.name.as_ref().unwrap().as_str(), "shop");
        assert_eq!(manifest.route.iter().map(ToString::to_string).collect::<Vec<_>>(), ["GET x.example/a", "/b/*"]);
        assert_eq!(manifest.limits.get(Limit::Concurrency), 5);
        let json = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
    }

    #[test]
    fn unknown_keys_are_errors_with_a_suggestion() {
        assert!(error("rout = '/'").contains("did you mean 'route'?"));
        assert!(error("route = { pth = '/' }").contains("did you mean 'path'?"));
        assert!(error("[limits]\nmemroy = '1MiB'").contains("did you mean 'memory'?"));
        assert!(error("[grants]\nhttps = []").contains("unknown key 'https' in [grants]"));
    }

    #[test]
    fn wrong_values_say_what_was_expected() {
        assert!(error("name = 3").contains("expected text"));
        assert!(error("auth = 'none'").contains("expected 'open' or 'token'") && error("auth = true").contains("expected text"));
        assert_eq!(Manifest::parse("auth = 'token'").unwrap().auth, Auth::Token);
        assert!(error("name = 'A'").contains("not a valid name"));
        assert!(error("args = 'x'").contains("expected a list"));
        assert!(error("args = [\"a\\u0000b\"]").contains("without NUL"));
        assert!(error("route = { host = 'a' }").contains("expected a 'path'"));
        assert!(error("env = { 'A=B' = 'x' }").contains("cannot be the name"));
        assert!(error("[limits]\nmemory = '5GiB'").contains("expected 64KiB to 4GiB"));
        assert!(error("a = [").contains("not valid TOML"));
        assert!(Manifest::parse(&"[".repeat(60_000)).is_err());
        assert!(error(&" ".repeat(MANIFEST_LEN_MAX + 1)).contains("expected at most"));
        assert!(Manifest::parse(&" ".repeat(MANIFEST_LEN_MAX)).is_ok());
    }

    #[test]
    fn counts_and_sizes_on_both_sides() {
        let args = |count: usize, len: usize| format!("args = [{}]", vec![format!("'{}'", "a".repeat(len)); count].join(","));
        assert!(Manifest::parse(&args(ENV_MAX, 1)).is_ok() && Manifest::parse(&args(ENV_MAX + 1, 1)).is_err());
        assert!(Manifest::parse(&args(32, 1024)).is_ok() && Manifest::parse(&args(33, 1024)).is_err());
        let routes = |count: usize| format!("route = [{}]", (0..count).map(|n| format!("'/{n}'")).collect::<Vec<_>>().join(","));
        assert!(Manifest::parse(&routes(ROUTES_MAX)).is_ok() && Manifest::parse(&routes(ROUTES_MAX + 1)).is_err());
    }
}

//! `secrets` in `[grants]` of a manifest: the secrets that a function may read.
//!
//! Owns its keys and the messages for wrong ones. Knows nothing about which secrets exist. Invariant: a secret is granted once, and no two
//! variables have one name.

use std::collections::{BTreeMap, BTreeSet};

use toml::Value;

use super::data::{fields, list};
use super::{ManifestError, problem, string};
use crate::grants::secrets::{SECRET_GRANTS_MAX, SecretGrant};

const KEY: &str = "grants.secrets";
const KEYS: [&str; 3] = ["name", "env", "init"];
/// Longest name of a variable that holds a secret, in bytes.
const ENV_NAME_LEN_MAX: usize = 128;

/// Reads the list: names, or tables with `name`, `env` and `init`.
pub(super) fn grants(value: Value) -> Result<Vec<SecretGrant>, ManifestError> {
    list(KEY, value, SECRET_GRANTS_MAX, grant)
}

fn grant(value: Value) -> Result<SecretGrant, ManifestError> {
    let name = |value| string(KEY, value)?.parse().map_err(|error| problem(KEY, error));
    if value.is_str() {
        return Ok(SecretGrant { name: name(value)?, env: None, init: false });
    }
    let mut fields = fields(KEY, "a grant of a secret", value, &KEYS)?;
    let named = fields.remove("name").ok_or_else(|| problem(KEY, "expected the 'name' of a secret"))?;
    let init = match fields.remove("init") {
        None => false,
        Some(Value::Boolean(init)) => init,
        Some(other) => return Err(problem("grants.secrets.init", format!("expected true or false, found {}", other.type_str()))),
    };
    Ok(SecretGrant { name: name(named)?, env: fields.remove("env").map(variable).transpose()?, init })
}

fn variable(value: Value) -> Result<String, ManifestError> {
    let key = "grants.secrets.env";
    let name = string(key, value)?;
    match name.is_empty() || name.contains('=') || name.len() > ENV_NAME_LEN_MAX {
        true => {
            let shown: String = name.chars().take(80).collect();
            Err(problem(key, format!("'{shown}' cannot be the name of a variable")))
        }
        false => Ok(name),
    }
}

/// Whether each secret, and each variable, is there once. `env`: the manifest's own.
pub(super) fn check(grants: &[SecretGrant], env: &BTreeMap<String, String>) -> Result<(), ManifestError> {
    let (mut names, mut variables) = (BTreeSet::new(), BTreeSet::new());
    for SecretGrant { name, env: variable, .. } in grants {
        if !names.insert(name) {
            return Err(problem(KEY, format!("'{name}' is named twice")));
        }
        let Some(variable) = variable else { continue };
        if env.contains_key(variable) || !variables.insert(variable) {
            return Err(problem(
                KEY,
                format!("the variable '{variable}' is set twice; expected each once, in [env] or by a secret"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Manifest;
    use super::*;

    fn error(list: &str) -> String {
        Manifest::parse(&format!("[env]\nA = '1'\n[grants]\nsecrets = {list}")).unwrap_err().to_string()
    }

    #[test]
    fn grants_of_secrets_are_read() {
        let text = "[grants]\nsecrets = ['API_KEY', { name = 'DB', env = 'DATABASE_URL', init = true }, { name = 'c' }]";
        let manifest = Manifest::parse(text).unwrap();
        let grant =
            |name: &str, env: Option<&str>, init| SecretGrant { name: name.parse().unwrap(), env: env.map(Into::into), init };
        assert_eq!(
            manifest.grants.secrets,
            [grant("API_KEY", None, false), grant("DB", Some("DATABASE_URL"), true), grant("c", None, false)]
        );
        let json = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
    }

    #[test]
    fn wrong_ones_say_what_was_expected() {
        assert!(error("'A'").contains("expected a list"));
        assert!(error("[1]").contains("expected a table, found integer"));
        assert!(error("['a-b']").contains("'a-b' is not a valid name: expected 1 to 64 of A-Z"));
        assert!(error("[{ nmae = 'B' }]").contains("did you mean 'name'?"));
        assert!(error("[{ env = 'B' }]").contains("expected the 'name' of a secret"));
        assert!(error("[{ name = 'B', init = 1 }]").contains("expected true or false, found integer"));
        assert!(error("[{ name = 'B', value = 'x' }]").contains("unknown key 'value' in a grant of a secret"));
        for bad in ["", "A=B", &"x".repeat(ENV_NAME_LEN_MAX + 1)] {
            assert!(error(&format!("[{{ name = 'B', env = '{bad}' }}]")).contains("cannot be the name of a variable"), "{bad}");
        }
        assert!(error("['B', { name = 'B' }]").contains("'B' is named twice"));
        assert!(error("[{ name = 'B', env = 'A' }]").contains("the variable 'A' is set twice"));
        assert!(error("[{ name = 'B', env = 'X' }, { name = 'C', env = 'X' }]").contains("the variable 'X' is set twice"));
    }

    #[test]
    fn counts_on_both_sides() {
        let names = |count: usize| {
            let names: Vec<_> = (0..count).map(|number| format!("'S{number}'")).collect();
            Manifest::parse(&format!("[grants]\nsecrets = [{}]", names.join(",")))
        };
        assert!(names(SECRET_GRANTS_MAX).is_ok() && names(SECRET_GRANTS_MAX + 1).is_err());
        let variable = |len| Manifest::parse(&format!("[grants]\nsecrets = [{{ name = 'B', env = '{}' }}]", "x".repeat(len)));
        assert!(variable(ENV_NAME_LEN_MAX).is_ok() && variable(ENV_NAME_LEN_MAX + 1).is_err());
    }
}

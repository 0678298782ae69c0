//! `[[trigger]]` of a manifest: what invokes the function besides requests.
//!
//! Owns its keys and the messages for wrong ones. Knows nothing about buckets that exist, and nothing about delivery. Invariant: a
//! function is triggered only by buckets that it may read, since it is told their keys.

use std::fmt;

use serde::{Deserialize, Serialize};
use toml::Value;

use super::data::{bucket_name, fields, list, word};
use super::{ManifestError, problem, string};
use crate::bucket::{BucketDeclaration, Durability};
use crate::grants::{Access, ManifestGrants};
use crate::id::BucketName;

/// Most triggers of one function.
pub const TRIGGERS_MAX: usize = 16;
/// Times that an event is delivered before it is given up, if nobody says.
pub const ATTEMPTS: u32 = 10;
/// Most times that an event may be delivered before it is given up.
pub const ATTEMPTS_MAX: u32 = 100;
/// Longest prefix in bytes: that of a key.
const PREFIX_LEN_MAX: usize = 512;

const KEYS: [&str; 5] = ["on", "bucket", "prefix", "attempts", "dead_letter"];

/// One kind of change of one bucket that invokes the function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    /// Which changes.
    pub on: On,
    /// Of which bucket.
    pub bucket: BucketName,
    /// Of keys that begin with this; of all if it is empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// Times that an event is delivered before it is given up, from 1 to [`ATTEMPTS_MAX`].
    pub attempts: u32,
    /// Where an event goes that was given up, as an entry; it is dropped if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<BucketName>,
}

/// Which changes of a bucket invoke a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum On {
    /// An object was put.
    ObjectPut,
    /// An entry was set, incremented or deleted.
    KeyChange,
}

impl On {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::ObjectPut, Self::KeyChange];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ObjectPut => "object-put",
            Self::KeyChange => "key-change",
        }
    }
}

impl fmt::Display for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reads `[[trigger]]`.
pub(super) fn triggers(value: Value) -> Result<Vec<Trigger>, ManifestError> {
    let triggers = list("trigger", value, TRIGGERS_MAX, trigger)?;
    let mut places: Vec<_> = triggers.iter().map(|trigger| (&trigger.bucket, trigger.on, &trigger.prefix)).collect();
    places.sort();
    match places.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(&[(bucket, on, prefix), ..]) => {
            Err(problem("trigger", format!("'{on}' of bucket '{bucket}' with the prefix '{prefix}' is there twice")))
        }
        _ => Ok(triggers),
    }
}

fn trigger(value: Value) -> Result<Trigger, ManifestError> {
    let mut fields = fields("trigger", "a trigger", value, &KEYS)?;
    let on = word("trigger.on", fields.remove("on"), &On::ALL.map(|on| (on.as_str(), on)))?;
    let on = on.ok_or_else(|| problem("trigger.on", "expected 'object-put' or 'key-change'"))?;
    let bucket = bucket_name("trigger.bucket", fields.remove("bucket"))?;
    let prefix = fields.remove("prefix").map(|value| string("trigger.prefix", value)).transpose()?.unwrap_or_default();
    if prefix.len() > PREFIX_LEN_MAX {
        return Err(problem("trigger.prefix", format!("{} bytes, expected at most {PREFIX_LEN_MAX}", prefix.len())));
    }
    let attempts = match fields.remove("attempts") {
        Some(value) => {
            let number = value.as_integer().and_then(|number| u32::try_from(number).ok());
            let number = number.filter(|number| (1..=ATTEMPTS_MAX).contains(number));
            number.ok_or_else(|| problem("trigger.attempts", format!("expected 1 to {ATTEMPTS_MAX}, found {value}")))?
        }
        None => ATTEMPTS,
    };
    let dead_letter = fields.remove("dead_letter").map(|value| bucket_name("trigger.dead_letter", Some(value))).transpose()?;
    if dead_letter.as_ref() == Some(&bucket) {
        return Err(problem("trigger.dead_letter", format!("expected another bucket than '{bucket}', which triggers it")));
    }
    Ok(Trigger { on, bucket, prefix, attempts, dead_letter })
}

/// Holds triggers against the rest of their manifest.
pub(super) fn check(triggers: &[Trigger], grants: &ManifestGrants, declared: &[BucketDeclaration]) -> Result<(), ManifestError> {
    let is_volatile =
        |name: &BucketName| declared.iter().any(|bucket| bucket.name == *name && bucket.spec.durability == Durability::Volatile);
    for Trigger { bucket, dead_letter, .. } in triggers {
        if !grants.data.iter().any(|grant| grant.bucket == *bucket) {
            let line = format!("[grants] data = [{{ bucket = \"{bucket}\", access = \"read\" }}]");
            return Err(problem(
                "trigger.bucket",
                format!("a function may read what triggers it, and '{bucket}' is not granted: add {line}"),
            ));
        }
        for (key, name) in [("trigger.bucket", Some(bucket)), ("trigger.dead_letter", dead_letter.as_ref())] {
            if let Some(name) = name.filter(|name| is_volatile(name)) {
                return Err(problem(key, format!("expected a durable bucket, and '{name}' is declared volatile")));
            }
        }
    }
    Ok(())
}

/// Warns of what a function may do to trigger itself.
pub(super) fn loops(triggers: &[Trigger], grants: &ManifestGrants) -> Vec<String> {
    let writes =
        |bucket: &BucketName| grants.data.iter().any(|grant| grant.bucket == *bucket && grant.access == Access::ReadWrite);
    let loops = triggers.iter().filter(|trigger| writes(&trigger.bucket));
    let note = |Trigger { on, bucket, prefix, .. }: &Trigger| {
        format!(
            "it may write to bucket '{bucket}', whose {on} below '{prefix}' triggers it: what it writes there invokes it again"
        )
    };
    loops.map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Manifest;
    use super::*;

    const GRANT: &str = "[grants]\ndata = [{ bucket = 'in' }]\n";

    fn error(trigger: &str) -> String {
        Manifest::parse(&format!("{GRANT}[[trigger]]\n{trigger}")).unwrap_err().to_string()
    }

    #[test]
    fn triggers_are_read() {
        let manifest = Manifest::parse(&format!(
            "{GRANT}[[trigger]]\non = 'object-put'\nbucket = 'in'\nprefix = 'a/'\nattempts = 3\ndead_letter = 'dead'\n\
             [[trigger]]\non = 'key-change'\nbucket = 'in'\n"
        ))
        .unwrap();
        let (bucket, dead) = ("in".parse::<BucketName>().unwrap(), "dead".parse().unwrap());
        let puts =
            Trigger { on: On::ObjectPut, bucket: bucket.clone(), prefix: "a/".into(), attempts: 3, dead_letter: Some(dead) };
        let changes = Trigger { on: On::KeyChange, bucket, prefix: String::new(), attempts: ATTEMPTS, dead_letter: None };
        assert_eq!(manifest.trigger, [puts, changes]);
        let json = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
    }

    #[test]
    fn wrong_ones_say_what_was_expected() {
        assert!(error("on = 'object-put'\nbukket = 'in'").contains("did you mean 'bucket'?"));
        assert!(
            error("on = 'object-gone'\nbucket = 'in'").contains("expected 'object-put' or 'key-change', found 'object-gone'")
        );
        assert!(error("bucket = 'in'").contains("expected 'object-put' or 'key-change'"));
        assert!(error("on = 'object-put'").contains("expected the name of a bucket"));
        for attempts in ["0", "101", "-1", "'x'"] {
            let error = error(&format!("on = 'object-put'\nbucket = 'in'\nattempts = {attempts}"));
            assert!(error.contains("expected 1 to 100, found"), "{error}");
        }
        assert!(error("on = 'object-put'\nbucket = 'in'\ndead_letter = 'in'").contains("expected another bucket than 'in'"));
        let twice = "on = 'object-put'\nbucket = 'in'\n";
        assert!(error(&format!("{twice}[[trigger]]\n{twice}")).contains("is there twice"));
        let missing = error("on = 'object-put'\nbucket = 'other'");
        assert!(missing.contains("add [grants] data = [{ bucket = \"other\", access = \"read\" }]"), "{missing}");
        let volatile = |name: &str| format!("[[bucket]]\nname = '{name}'\ndurability = 'volatile'");
        let trigger = "on = 'key-change'\nbucket = 'in'\ndead_letter = 'dead'\n";
        assert!(error(&format!("{trigger}{}", volatile("in"))).contains("'in' is declared volatile"));
        assert!(error(&format!("{trigger}{}", volatile("dead"))).contains("'dead' is declared volatile"));
    }

    #[test]
    fn a_function_that_may_trigger_itself_is_noted() {
        let notes = |access: &str| {
            let grant = format!("[grants]\ndata = [{{ bucket = 'in', access = '{access}' }}]\n");
            Manifest::parse(&format!("{grant}[[trigger]]\non = 'object-put'\nbucket = 'in'")).unwrap().notes()
        };
        assert!(notes("read").is_empty());
        assert!(notes("read-write")[0].contains("invokes it again"));
    }

    #[test]
    fn bounds_on_both_sides() {
        let parse = |trigger: &str| Manifest::parse(&format!("{GRANT}{trigger}"));
        let one = |more: &str| format!("[[trigger]]\non = 'object-put'\nbucket = 'in'\n{more}\n");
        let many = |count: usize| (0..count).map(|n| one(&format!("prefix = '{n}'"))).collect::<String>();
        assert!(parse(&many(TRIGGERS_MAX)).is_ok() && parse(&many(TRIGGERS_MAX + 1)).is_err());
        let attempts = |count: u32| one(&format!("attempts = {count}"));
        assert!(parse(&attempts(1)).is_ok() && parse(&attempts(ATTEMPTS_MAX)).is_ok());
        assert!(parse(&attempts(0)).is_err() && parse(&attempts(ATTEMPTS_MAX + 1)).is_err());
        let prefix = |len: usize| one(&format!("prefix = '{}'", "a".repeat(len)));
        assert!(parse(&prefix(PREFIX_LEN_MAX)).is_ok() && parse(&prefix(PREFIX_LEN_MAX + 1)).is_err());
    }
}

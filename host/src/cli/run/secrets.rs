//! `hob run --secret`: values that the guest may read under names.
//!
//! Owns how one is written on the command line. Invariant: no sentence has a value in it, nor what may be one: clap would repeat all of what it
//! cannot read, so it reads nothing of it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::Context as _;

use super::super::Failure;
use super::super::failure::Exit;
use crate::artifacts::DataDir;
use crate::grants::secrets::{SECRET_GRANTS_MAX, SecretGrant};
use crate::id::{SecretName, TenantId};
use crate::secrets::{KEY_CONTEXT, Places, SecretValue, Secrets, VALUE_LEN_MAX};

/// Names with their values.
#[derive(Debug, Default)]
pub(super) struct Given(Vec<(SecretName, SecretValue)>);

/// When a guest may read one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// Once it was built. What is built is not kept, but what is served may be initialised once for many requests.
    Served,
    /// In a command's one run.
    Command,
}

impl Given {
    /// Reads `NAME=VALUE` and `NAME@FILE`.
    pub(super) fn read(given: &[OsString]) -> Result<Self, Failure> {
        let mut found = Vec::new();
        for text in given {
            let (name, value) = one(text)?;
            if found.iter().any(|(other, _)| *other == name) {
                return Err(wrong(format!("--secret {name} is there twice: expected each once")));
            }
            if found.len() >= SECRET_GRANTS_MAX {
                return Err(wrong(format!(
                    "--secret is there more than {SECRET_GRANTS_MAX} times, and a function may read no more"
                )));
            }
            found.push((name, value));
        }
        Ok(Self(found))
    }

    /// The grants that let a guest read them, and nothing else.
    pub(super) fn grants(&self, when: When) -> Vec<SecretGrant> {
        let grant =
            |(name, _): &(SecretName, SecretValue)| SecretGrant { name: name.clone(), env: None, init: when == When::Command };
        self.0.iter().map(grant).collect()
    }

    /// Those that are text, as variables: most commands have no other way to read one.
    pub(super) fn variables(&self) -> Vec<(String, String)> {
        let text =
            |value: &SecretValue| std::str::from_utf8(value.bytes()).ok().filter(|text| !text.contains('\0')).map(String::from);
        self.0.iter().filter_map(|(name, value)| Some((name.to_string(), text(value)?))).collect()
    }

    pub(super) fn into_values(self) -> Vec<(SecretName, SecretValue)> {
        self.0
    }

    /// Keeps them, sealed, in a data directory that no node uses yet.
    pub(super) fn keep(&self, data: &Path) -> Result<(), Failure> {
        if self.0.is_empty() {
            return Ok(());
        }
        let dir = DataDir::open(data).context("cannot use a temporary folder")?;
        let key = dir.mac_key(None).context("cannot use a temporary folder")?.derive(KEY_CONTEXT);
        let secrets = Secrets::open(dir.path(), &key, Places::default()).context("cannot use a temporary folder")?;
        for (name, value) in &self.0 {
            secrets.put(&TenantId::default(), name, value).with_context(|| format!("cannot keep the secret {name}"))?;
        }
        Ok(())
    }
}

fn wrong(sentence: String) -> Failure {
    Failure::new(Exit::Usage, sentence).next("hob run --help")
}

fn one(text: &OsStr) -> Result<(SecretName, SecretValue), Failure> {
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|byte| matches!(byte, b'=' | b'@'));
    let at = at.ok_or_else(|| wrong("--secret names no value: expected NAME=VALUE or NAME@FILE".into()))?;
    let name = std::str::from_utf8(&bytes[..at]).ok().and_then(|name| name.parse::<SecretName>().ok());
    let name = name.ok_or_else(|| {
        wrong(
            "--secret has no name of a secret before its '=' or '@': expected 1 to 64 of A-Z, a-z, 0-9 and '_', beginning with no digit"
                .into(),
        )
    })?;
    let rest = &bytes[at + 1..];
    let value = if bytes[at] == b'@' { of_file(&name, Path::new(OsStr::from_bytes(rest)))? } else { rest.to_vec() };
    let value = SecretValue::new(value).map_err(|error| wrong(format!("--secret {name}: {error}")))?;
    Ok((name, value))
}

/// A file as it is. One byte more than any value has is enough to see that it is too long.
fn of_file(name: &SecretName, path: &Path) -> Result<Vec<u8>, Failure> {
    let mut value = Vec::with_capacity(VALUE_LEN_MAX + 64);
    let read = File::open(path).and_then(|file| file.take(VALUE_LEN_MAX as u64 + 1).read_to_end(&mut value));
    read.map_err(|error| wrong(format!("--secret {name}: cannot read '{}': {error}", path.display())))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[&str]) -> Result<Vec<(String, Vec<u8>)>, String> {
        let given: Vec<OsString> = given.iter().map(Into::into).collect();
        let found = Given::read(&given).map_err(|failure| failure.sentence())?;
        Ok(found.0.iter().map(|(name, value)| (name.to_string(), value.bytes().to_vec())).collect())
    }

    #[test]
    fn values_come_from_the_line_or_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("value=@");
        std::fs::write(&file, "of a file\n").unwrap();
        let found = read(&["A=b=c@d", &format!("B@{}", file.display())]).unwrap();
        assert_eq!(found, [("A".into(), b"b=c@d".to_vec()), ("B".into(), b"of a file\n".to_vec())]);
        std::fs::write(&file, vec![b'x'; VALUE_LEN_MAX]).unwrap();
        let long = format!("B@{}", file.display());
        assert_eq!(read(&[&long]).unwrap()[0].1.len(), VALUE_LEN_MAX);
        std::fs::write(&file, vec![b'x'; VALUE_LEN_MAX + 1]).unwrap();
        assert!(read(&[&long]).unwrap_err().contains("too long"));
        assert!(read(&["B@/nonexistent"]).unwrap_err().contains("'/nonexistent'"));
    }

    #[test]
    fn as_many_as_a_manifest_may_name() {
        let given: Vec<OsString> = (0..=SECRET_GRANTS_MAX).map(|number| format!("S{number}=x").into()).collect();
        assert!(Given::read(&given[1..]).is_ok() && Given::read(&given).is_err());
    }

    #[test]
    fn no_sentence_has_a_value() {
        for (bad, word) in [
            (&["hunter2"][..], "expected NAME=VALUE"),
            (&["1A=hunter2"], "no name"),
            (&["a-hunter2=x"], "no name"),
            (&["=hunter2"], "no name"),
            (&["A="], "A: the value is empty"),
            (&["A=hunter2", "A=hunter2"], "A is there twice"),
        ] {
            let sentence = read(bad).unwrap_err();
            assert!(sentence.contains(word) && !sentence.contains("hunter2"), "{sentence}");
        }
        let given = Given::read(&["A=hunter2".into()]).unwrap();
        assert!(!format!("{given:?}").contains("hunter2"));
        assert_eq!(given.variables(), [("A".into(), "hunter2".into())]);
    }
}

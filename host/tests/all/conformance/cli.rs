//! `hob kv` and `hob blob` as doors. What they have no word for is done by the control port's routes (docs/data.md says what that is).

use std::io::Write as _;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::Control;
use crate::cli::{check, hob};
use crate::harness::Node;
use crate::harness::doors::{Keys, KvDoor, ObjectDoor, Said};

/// One bucket as people type it.
pub(crate) struct CommandLine<'a>(pub(crate) Control<'a>);

impl<'a> CommandLine<'a> {
    pub(crate) fn new(node: &'a Node, bucket: &'a str) -> Self {
        Self(Control::new(node, bucket))
    }

    /// What a command prints, or says that it did not do.
    fn run(&self, args: &[&str], input: &[u8]) -> Said<Vec<u8>> {
        let mut child = hob(args);
        let mut child =
            child.env("HOB_SERVER", format!("http://{}", self.0.node.control.addr)).stdin(Stdio::piped()).spawn().unwrap();
        // Who is refused before the end reads no more.
        let _closed = child.stdin.take().unwrap().write_all(input);
        let output = child.wait_with_output().unwrap();
        match output.status.code() {
            Some(0) => Ok(output.stdout),
            Some(code @ (1 | 3)) => {
                let stderr = String::from_utf8(output.stderr.clone()).unwrap();
                assert!(stderr.contains("error") && stderr.contains("next"), "{code} {stderr}");
                // Of several keys it gives what is there.
                if output.stdout.is_empty() { Err(stderr) } else { Ok(output.stdout) }
            }
            _ => panic!("{args:?} {:?} {:?}", check(&output, 0), output.status),
        }
    }

    fn kv(&self, verb: &str, key: &str, more: &[&str], input: &[u8]) -> Said<Vec<u8>> {
        let key = STANDARD.encode(key);
        self.run(&[&["kv", verb, "--base64", self.0.bucket, &key], more].concat(), input)
    }

    fn json(&self, args: &[&str]) -> Said<Value> {
        Ok(serde_json::from_slice(&self.run(&[args, &["-o", "json"]].concat(), b"")?).unwrap())
    }

    fn object(&self, key: &str) -> String {
        format!("hob:{}/{key}", self.0.bucket)
    }
}

fn there<T>(said: Said<T>) -> Said<Option<T>> {
    match said {
        Err(text) if text.contains("under this key") => Ok(None),
        said => said.map(Some),
    }
}

fn bytes_of(item: &Value, name: &str) -> Vec<u8> {
    match item[name].as_str() {
        Some(text) => text.into(),
        None => STANDARD.decode(item[format!("{name}_base64")].as_str().unwrap()).unwrap(),
    }
}

impl KvDoor for CommandLine<'_> {
    fn get(&self, key: &str) -> Said<Option<Vec<u8>>> {
        there(self.kv("get", key, &[], b""))
    }
    fn set(&self, key: &str, value: &[u8]) -> Said<()> {
        self.kv("set", key, &[], value).map(drop)
    }
    fn delete(&self, key: &str) -> Said<()> {
        there(self.kv("del", key, &[], b"")).map(drop)
    }
    fn exists(&self, key: &str) -> Said<bool> {
        Ok(KvDoor::get(self, key)?.is_some())
    }
    fn increment(&self, key: &str, by: i64) -> Said<i64> {
        let said = self.kv("incr", key, &[&by.to_string()], b"")?;
        Ok(String::from_utf8(said).unwrap().trim().parse().unwrap())
    }
    fn keys(&self) -> Said<Vec<String>> {
        let list = self.json(&["kv", "ls", self.0.bucket])?;
        Ok(list.as_array().unwrap().iter().map(|item| String::from_utf8(bytes_of(item, "key")).unwrap()).collect())
    }
    fn get_many(&self, keys: &[&str]) -> Said<Vec<Option<Vec<u8>>>> {
        // It takes one key at least, and shows one as it is.
        if keys.len() < 2 {
            return keys.iter().map(|key| KvDoor::get(self, key)).collect();
        }
        let keys: Vec<String> = keys.iter().map(|key| STANDARD.encode(key)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let list = self.json(&[&["kv", "get", "--base64", self.0.bucket], &keys[..]].concat())?;
        Ok(list.as_array().unwrap().iter().map(|item| (!item.is_null()).then(|| bytes_of(item, "value"))).collect())
    }
    fn set_many(&self, entries: &[(&str, &[u8])]) -> Said<()> {
        let pairs: Vec<String> =
            entries.iter().flat_map(|(key, value)| [STANDARD.encode(key), String::from_utf8(value.to_vec()).unwrap()]).collect();
        let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
        self.run(&[&["kv", "set", "--base64", self.0.bucket], &pairs[..]].concat(), b"").map(drop)
    }
    fn delete_many(&self, keys: &[&str]) -> Said<()> {
        self.0.delete_many(keys)
    }
    fn swap(&self, key: &str, expected: Option<&[u8]>, value: &[u8]) -> Option<Said<bool>> {
        let swap = || {
            let encoded = STANDARD.encode(key);
            let found = there(self.json(&["kv", "get", "--base64", self.0.bucket, &encoded]))?;
            let version = found.as_ref().map(|found| found["version"].to_string());
            let condition = match (&version, expected) {
                (None, None) => vec!["--if-absent"],
                (Some(version), Some(expected)) if bytes_of(found.as_ref().unwrap(), "value") == expected => {
                    vec!["--if-version", version]
                }
                _ => return Ok(false),
            };
            match self.kv("set", key, &condition, value) {
                Err(text) if text.contains("does not hold") => Ok(false),
                said => said.map(|_| true),
            }
        };
        Some(swap())
    }
    fn has_signs(&self) -> bool {
        true
    }
}

impl ObjectDoor for CommandLine<'_> {
    fn put(&self, key: &str, bytes: &[u8]) -> Said<()> {
        self.run(&["blob", "cp", "-", &self.object(key)], bytes).map(drop)
    }
    fn get(&self, key: &str) -> Said<Option<Vec<u8>>> {
        there(self.run(&["blob", "cat", &self.object(key)], b""))
    }
    fn part(&self, key: &str, start: u64, len: u64) -> Said<Option<Vec<u8>>> {
        self.0.part(key, start, len)
    }
    fn delete(&self, key: &str) -> Said<()> {
        there(self.run(&["blob", "rm", &self.object(key)], b"")).map(drop)
    }
    fn exists(&self, key: &str) -> Said<bool> {
        Ok(ObjectDoor::get(self, key)?.is_some())
    }
    fn size(&self, key: &str) -> Said<Option<u64>> {
        Ok(ObjectDoor::get(self, key)?.map(|bytes| bytes.len() as u64))
    }
    fn keys(&self, _by: u64) -> Said<Vec<String>> {
        let list = self.json(&["blob", "ls", self.0.bucket])?;
        Ok(list.as_array().unwrap().iter().map(|item| item["key"].as_str().unwrap().to_owned()).collect())
    }
    fn keys_are(&self) -> Keys {
        Keys::Arguments
    }
}

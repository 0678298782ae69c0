//! Reading: from text and settings to values.
//!
//! Owns the spellings of bytes and times, and which source wins. Knows no key but what a setting names.

use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

use super::{Bytes, Config, ConfigError, Time};
use crate::limits::{parse_bytes, parse_time};
use crate::manifest;

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match Value::deserialize(deserializer)? {
            Value::Integer(number) => number.to_string(),
            Value::String(text) => text,
            other => {
                return Err(serde::de::Error::custom(format!("expected bytes such as \"64MiB\", found {}", other.type_str())));
            }
        };
        parse_bytes(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom(format!("expected bytes such as \"64MiB\", found '{text}'")))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let time = value.as_str().and_then(parse_time);
        time.map(Self).ok_or_else(|| serde::de::Error::custom(format!("expected a time such as \"10s\", found {value}")))
    }
}

impl Config {
    /// Reads a configuration: the text of a file (may be empty), then settings of the form `net.header_timeout=5s`, which win.
    ///
    /// # Errors
    /// [`ConfigError`] names the key and what was expected.
    pub fn read(text: &str, settings: &[String]) -> Result<Self, ConfigError> {
        let mut table: Table = text.parse().map_err(|error| ConfigError::Syntax(manifest::syntax(text, &error)))?;
        for setting in settings {
            apply(&mut table, setting)?;
        }
        let set = set_of(&table);
        let mut config = Self::deserialize(table).map_err(|error| ConfigError::Syntax(in_one_line(&error)))?;
        config.set = set;
        config.check()?;
        Ok(config)
    }
}

fn set_of(table: &Table) -> Vec<(String, String)> {
    let keys = |section: &'static str| {
        let keys = table.get(section).and_then(Value::as_table).into_iter().flatten();
        keys.map(move |(key, value)| {
            (format!("{section}.{key}"), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        })
    };
    ["engine", "build"].into_iter().flat_map(keys).collect()
}

/// Where a value stands, and what is wrong with it. `toml` says where last, on a line of its own.
fn in_one_line(error: &toml::de::Error) -> String {
    let text = error.to_string();
    match text.trim_end().rsplit_once("\nin ") {
        Some((wrong, place)) => format!("{place}: {wrong}"),
        None => text.trim_end().into(),
    }
}

fn apply(table: &mut Table, setting: &str) -> Result<(), ConfigError> {
    let wrong = || ConfigError::Setting(setting.into());
    let (path, value) = setting.split_once('=').ok_or_else(wrong)?;
    let (section, key) = path.split_once('.').ok_or_else(wrong)?;
    let value = typed(section, key, value);
    let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    section.as_table_mut().ok_or_else(wrong)?.insert(key.into(), value);
    Ok(())
}

/// The value of one setting in the type that its key takes: text if it does, quotes or not (a folder may be named `12`), else a
/// number, a boolean or a list.
fn typed(section: &str, key: &str, value: &str) -> Value {
    let text = Value::String(value.trim_matches('"').into());
    let table = |key: &str, value| Table::from_iter([(key.to_owned(), value)]);
    let alone = table(section, Value::Table(table(key, text.clone())));
    if Config::deserialize(alone).is_ok() {
        return text;
    }
    let list = || format!("list = {value}").parse::<Table>().ok()?.remove("list").filter(Value::is_array);
    if value.starts_with('[')
        && let Some(list) = list()
    {
        return list;
    }
    match value.parse::<i64>() {
        Ok(number) => Value::Integer(number),
        Err(_) => value.parse::<bool>().map_or(text, Value::Boolean),
    }
}

//! The node's configuration: one struct per part, every key with its unit, default and range.
//!
//! Owns the keys and their check. Knows nothing about who uses them. Invariant: a [`Config`] that left this module was checked
//! whole, before any socket or file was opened.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

use crate::limits::{parse_bytes, parse_time};
use crate::manifest;

/// A number of bytes, written `64MiB` or plain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// A time, written `500ms` or `10s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

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

/// Configuration of one node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where requests and bytes come in.
    pub net: Net,
    /// What runs guests.
    pub engine: Engine,
    /// The child process that compiles.
    pub build: Build,
    /// What is kept on disk.
    pub data: Data,
    /// Logs of functions.
    pub logs: Logs,
}

/// `[net]`: both ports.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Net {
    /// Where functions are reached. Default `127.0.0.1:3000`.
    pub addr: SocketAddr,
    /// Where functions are deployed. Default `127.0.0.1:3900`; loopback only, because it asks for no token yet.
    pub control: SocketAddr,
    /// Most connections of the data port at once. Default 4,096.
    pub connections_max: usize,
    /// Most connections of the control port at once. Default 256.
    pub control_connections_max: usize,
    /// From accept, or the end of the last response, to the end of a request's head. Default 10 s.
    pub header_timeout: Time,
    /// Longest silence in a request's body. Default 10 s.
    pub body_idle_timeout: Time,
    /// Longest time in which a client takes nothing of its response. Default 30 s.
    pub write_idle_timeout: Time,
    /// Most headers of a request. Default 64.
    pub headers_max: usize,
    /// Longest head of a request in bytes. Default 32 KiB; at least 8 KiB (hyper's smallest buffer).
    pub head_bytes_max: Bytes,
    /// Longest target of a request in bytes. Default 8 KiB.
    pub uri_bytes_max: Bytes,
    /// How long accepted requests may take to finish once the node was told to stop. Default 30 s.
    pub drain_timeout: Time,
}

impl Default for Net {
    fn default() -> Self {
        Self {
            addr: SocketAddr::from(([127, 0, 0, 1], 3000)),
            control: SocketAddr::from(([127, 0, 0, 1], 3900)),
            connections_max: 4096,
            control_connections_max: 256,
            header_timeout: Time(Duration::from_secs(10)),
            body_idle_timeout: Time(Duration::from_secs(10)),
            write_idle_timeout: Time(Duration::from_secs(30)),
            headers_max: 64,
            head_bytes_max: Bytes(32 << 10),
            uri_bytes_max: Bytes(8 << 10),
            drain_timeout: Time(Duration::from_secs(30)),
        }
    }
}

/// `[engine]`: what runs guests.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// Threads that run guests and their connections; 0 means one for each core. Default 0.
    pub threads: usize,
    /// Most instances at once. Default 1,000; at most 10,000, so that their mappings stay below the usual 65,530.
    pub instances_max: u32,
    /// How long an invocation waits for an instance when all are taken. Default 1 s.
    pub instance_wait: Time,
    /// Most templates in memory; the system's limits of descriptors and mappings may allow fewer. Default 1,000.
    pub templates_max: usize,
    /// Most instances at once of guests that use much of a large memory, such as interpreters; each keeps up to 16 MiB. 0: they run
    /// among the others. Default 64.
    pub large_instances_max: u32,
    /// Most instances of one function that wait on one thread for a request. 0: none. Default 4.
    pub ready_max: usize,
    /// Guest memory of all instances that wait for a request. Default 256 MiB.
    pub ready_bytes_max: Bytes,
    /// How long an instance waits when nobody asks for one of its function. Default 10 s.
    pub ready_idle: Time,
    /// Most bytes of code and memory images that templates in memory map, holes and all. They are pages of files, which the
    /// system takes back when it is short of memory; what they cost for certain is page tables, 2 MiB for each GiB that was touched.
    /// Default 16 GiB.
    pub templates_bytes_max: Bytes,
    /// Most functions in memory: what a request needs to know of one before its template. Default 4,000, of some 2 KiB each. One that
    /// is not there costs its next request a read of the registry.
    pub functions_hot_max: usize,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            threads: 0,
            instances_max: 1000,
            instance_wait: Time(Duration::from_secs(1)),
            templates_max: 1000,
            large_instances_max: 64,
            ready_max: 4,
            ready_bytes_max: Bytes(256 << 20),
            ready_idle: Time(Duration::from_secs(10)),
            templates_bytes_max: Bytes(16 << 30),
            functions_hot_max: 4000,
        }
    }
}

/// `[build]`: the child process that compiles.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Build {
    /// Data memory of one build (`RLIMIT_DATA`) beside five times the function's memory limit. Default 1 GiB.
    pub memory: Bytes,
    /// Most data memory of one build, whatever the function's memory limit. Default: half the machine's.
    pub memory_max: Option<Bytes>,
    /// Time that the initialisation of a function may take, and each of its warm-up requests, on the clock and on the processor.
    /// Default 30 s.
    pub init: Time,
    /// Largest memory of a guest that is kept as a snapshot. Default 2 GiB.
    pub snapshot_bytes_max: Bytes,
    /// Processor time of one build, in whole seconds. Default 60 s.
    pub cpu: Time,
    /// Time of one build. Default 120 s.
    pub wall: Time,
    /// Builds at once; 0 means as many as cores. Default 0.
    pub concurrency: usize,
    /// Builds that wait; beyond it a deploy gets 503. Default 64.
    pub queue: usize,
}

impl Default for Build {
    fn default() -> Self {
        Self {
            memory: Bytes(1 << 30),
            memory_max: None,
            init: Time(Duration::from_secs(30)),
            snapshot_bytes_max: Bytes(2 << 30),
            cpu: Time(Duration::from_secs(60)),
            wall: Time(Duration::from_secs(120)),
            concurrency: 0,
            queue: 64,
        }
    }
}

/// `[data]`: what is kept on disk.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// Where. Default `$XDG_DATA_HOME/hob`, else `~/.local/share/hob`.
    pub dir: Option<PathBuf>,
    /// Most bytes of modules and artifacts; past it a deploy gets 507. Default 64 GiB.
    pub bytes_max: Bytes,
    /// Largest Wasm file of a deploy. Default 64 MiB.
    pub upload_bytes_max: Bytes,
    /// Longest time from the head of a deploy to the end of its body, however steadily it comes. Default 5 min.
    pub upload_timeout: Time,
    /// Revisions kept of each function, the live one among them. Default 10.
    pub revisions_max: usize,
    /// Most functions of one tenant. Default 100,000.
    pub functions_max: usize,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            dir: None,
            bytes_max: Bytes(64 << 30),
            upload_bytes_max: Bytes(64 << 20),
            upload_timeout: Time(Duration::from_secs(300)),
            revisions_max: 10,
            functions_max: 100_000,
        }
    }
}

/// `[logs]`: what functions log, kept in memory.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logs {
    /// Bytes kept for each function; the oldest entries go first. Default 256 KiB.
    pub function_bytes: Bytes,
    /// Bytes kept in all. Default 64 MiB.
    pub total_bytes: Bytes,
}

impl Default for Logs {
    fn default() -> Self {
        Self { function_bytes: Bytes(256 << 10), total_bytes: Bytes(64 << 20) }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("the configuration cannot be read: {0}")]
    Syntax(String),
    /// `--set` without `=`, or with a key that is no path.
    #[error("'{0}' sets nothing: expected TABLE.KEY=VALUE, such as net.header_timeout=5s")]
    Setting(String),
    /// A value outside of its range.
    #[error("{key} is {found}: expected {expected}")]
    Range {
        /// Which key.
        key: &'static str,
        /// What it was.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
}

fn range(good: bool, key: &'static str, found: String, expected: &'static str) -> Result<(), ConfigError> {
    if good { Ok(()) } else { Err(ConfigError::Range { key, found, expected }) }
}

impl Engine {
    fn check(&self) -> Result<(), ConfigError> {
        range(self.threads <= 1024, "engine.threads", self.threads.to_string(), "at most 1024")?;
        range((1..=10_000).contains(&self.instances_max), "engine.instances_max", self.instances_max.to_string(), "1 to 10000")?;
        range(self.templates_max > 0, "engine.templates_max", "0".into(), "1 or more")?;
        let large = self.large_instances_max;
        range(large <= 10_000, "engine.large_instances_max", large.to_string(), "at most 10000")?;
        let bytes = self.templates_bytes_max.0;
        range(bytes >= 1 << 20, "engine.templates_bytes_max", bytes.to_string(), "1MiB or more")?;
        range(self.functions_hot_max > 0, "engine.functions_hot_max", "0".into(), "1 or more")?;
        Ok(())
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
        let config = Self::deserialize(table).map_err(|error| ConfigError::Syntax(in_one_line(&error)))?;
        config.check()?;
        Ok(config)
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`ConfigError::Range`] for the first value outside of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let net = &self.net;
        range(
            net.control.ip().is_loopback(),
            "net.control",
            net.control.to_string(),
            "a loopback address, because the control port asks for no token yet; use 127.0.0.1:3900, and a tunnel from elsewhere",
        )?;
        range(net.connections_max > 0, "net.connections_max", "0".into(), "1 or more")?;
        range(net.control_connections_max > 0, "net.control_connections_max", "0".into(), "1 or more")?;
        range((1..=1024).contains(&net.headers_max), "net.headers_max", net.headers_max.to_string(), "1 to 1024")?;
        range(
            (8 << 10..=1 << 20).contains(&net.head_bytes_max.0),
            "net.head_bytes_max",
            net.head_bytes_max.0.to_string(),
            "8KiB to 1MiB",
        )?;
        range(
            (1..=net.head_bytes_max.0).contains(&net.uri_bytes_max.0),
            "net.uri_bytes_max",
            net.uri_bytes_max.0.to_string(),
            "1 to net.head_bytes_max",
        )?;
        for (key, time) in [
            ("net.header_timeout", net.header_timeout),
            ("net.body_idle_timeout", net.body_idle_timeout),
            ("net.write_idle_timeout", net.write_idle_timeout),
            ("data.upload_timeout", self.data.upload_timeout),
            ("engine.ready_idle", self.engine.ready_idle),
        ] {
            range(!time.0.is_zero(), key, "0".into(), "more than no time")?;
        }
        self.engine.check()?;
        range(self.build.cpu.0.as_secs() >= 1, "build.cpu", format!("{:?}", self.build.cpu.0), "1s or more")?;
        range(self.build.wall.0.as_secs() >= 1, "build.wall", format!("{:?}", self.build.wall.0), "1s or more")?;
        range(self.build.queue <= 10_000, "build.queue", self.build.queue.to_string(), "at most 10000")?;
        range(self.data.functions_max > 0, "data.functions_max", "0".into(), "1 or more")?;
        range(
            self.logs.function_bytes.0 <= self.logs.total_bytes.0,
            "logs.function_bytes",
            self.logs.function_bytes.0.to_string(),
            "at most logs.total_bytes",
        )?;
        range(self.build.memory.0 >= 64 << 20, "build.memory", self.build.memory.0.to_string(), "64MiB or more")?;
        range(
            (1..=1000).contains(&self.data.revisions_max),
            "data.revisions_max",
            self.data.revisions_max.to_string(),
            "1 to 1000",
        )?;
        range(
            (1024..=1 << 30).contains(&self.data.upload_bytes_max.0),
            "data.upload_bytes_max",
            self.data.upload_bytes_max.0.to_string(),
            "1KiB to 1GiB",
        )
    }

    /// Whether functions can be reached from other machines.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match self.net.addr.ip() {
            IpAddr::V4(ip) => !ip.is_loopback(),
            IpAddr::V6(ip) => !ip.is_loopback(),
        }
    }
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
/// number or a boolean.
fn typed(section: &str, key: &str, value: &str) -> Value {
    let text = Value::String(value.trim_matches('"').into());
    let table = |key: &str, value| Table::from_iter([(key.to_owned(), value)]);
    let alone = table(section, Value::Table(table(key, text.clone())));
    if Config::deserialize(alone).is_ok() {
        return text;
    }
    match value.parse::<i64>() {
        Ok(number) => Value::Integer(number),
        Err(_) => value.parse::<bool>().map_or(text, Value::Boolean),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(setting: &str) -> Result<Config, ConfigError> {
        Config::read("", &[setting.into()])
    }

    #[test]
    fn defaults_pass_their_own_check() {
        Config::default().check().unwrap();
        Config::read("", &[]).unwrap();
    }

    #[test]
    fn settings_win_over_the_file() {
        let config =
            Config::read("[net]\nheader_timeout = '3s'\n", &["net.header_timeout=500ms".into(), "data.bytes_max=1MiB".into()])
                .unwrap();
        assert_eq!(config.net.header_timeout.0, Duration::from_millis(500));
        assert_eq!(config.data.bytes_max.0, 1 << 20);
    }

    #[test]
    fn every_range_on_both_sides() {
        for good in [
            "net.headers_max=1",
            "net.headers_max=1024",
            "net.head_bytes_max=8KiB",
            "net.head_bytes_max=1MiB",
            "engine.instances_max=1",
            "engine.instances_max=10000",
            "engine.threads=1024",
            "engine.templates_max=1",
            "engine.templates_bytes_max=1MiB",
            "engine.functions_hot_max=1",
            "engine.large_instances_max=0",
            "engine.large_instances_max=10000",
            "engine.ready_idle=1ms",
            "build.cpu=1s",
            "build.wall=1s",
            "build.queue=10000",
            "data.functions_max=1",
            "logs.function_bytes=64MiB",
            "build.memory=64MiB",
            "data.revisions_max=1",
            "data.revisions_max=1000",
            "data.upload_bytes_max=1KiB",
            "data.upload_bytes_max=1GiB",
            "data.upload_timeout=1ns",
            "net.uri_bytes_max=1",
            "net.uri_bytes_max=32KiB",
            "net.connections_max=1",
            "net.control=[::1]:0",
        ] {
            set(good).unwrap();
        }
        for bad in [
            "net.headers_max=0",
            "net.headers_max=1025",
            "net.head_bytes_max=8191",
            "net.head_bytes_max=1048577",
            "engine.instances_max=0",
            "engine.instances_max=10001",
            "engine.threads=1025",
            "engine.templates_max=0",
            "engine.templates_bytes_max=1048575",
            "engine.functions_hot_max=0",
            "engine.large_instances_max=10001",
            "engine.ready_idle=0s",
            "build.cpu=999ms",
            "build.wall=999ms",
            "build.queue=10001",
            "data.functions_max=0",
            "logs.function_bytes=65MiB",
            "build.memory=67108863",
            "data.revisions_max=0",
            "data.revisions_max=1001",
            "data.upload_bytes_max=1023",
            "data.upload_bytes_max=1073741825",
            "data.upload_timeout=0s",
            "net.uri_bytes_max=0",
            "net.uri_bytes_max=32769",
            "net.connections_max=0",
            "net.control_connections_max=0",
            "net.header_timeout=0s",
            "net.body_idle_timeout=0s",
            "net.write_idle_timeout=0s",
            "net.control=0.0.0.0:3900",
        ] {
            assert!(matches!(set(bad), Err(ConfigError::Range { .. })), "{bad}: {:?}", set(bad));
        }
    }

    #[test]
    fn a_setting_has_the_type_of_its_key() {
        for text in ["12", "true", "\"12\"", "./a b"] {
            let config = set(&format!("data.dir={text}")).unwrap();
            assert_eq!(config.data.dir.unwrap().to_str(), Some(text.trim_matches('"')));
        }
        assert_eq!(set("data.bytes_max=4096").unwrap().data.bytes_max.0, 4096);
        assert_eq!(set("engine.threads=3").unwrap().engine.threads, 3);
        for bad in ["engine.threads=true", "engine.threads=many", "data.bytes_max=-1", "net.addr=3000"] {
            assert!(matches!(set(bad), Err(ConfigError::Syntax(_))), "{bad}");
        }
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_named() {
        let error = Config::read("[net]\nx = \n", &[]).unwrap_err().to_string();
        assert!(error.contains("line 2, column 5: ") && !error.contains('\n'), "{error}");
        for (bad, word) in [
            ("net.hedaer_timeout=1s", "hedaer_timeout"),
            ("net.header_timeout=5", "a time"),
            ("net.addr=nowhere", "addr"),
            ("data.bytes_max=lots", "bytes"),
        ] {
            let error = set(bad).unwrap_err().to_string();
            let table = bad.split_once('.').unwrap().0;
            assert!(error.contains(word) && error.contains(&format!(": `{table}")) && !error.contains('\n'), "{bad}: {error}");
        }
        assert!(matches!(set("nothing"), Err(ConfigError::Setting(_))) && matches!(set("a=b"), Err(ConfigError::Setting(_))));
    }
}

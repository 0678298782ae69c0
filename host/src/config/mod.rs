//! The node's configuration: one struct per part, every key with its unit, default and range.
//!
//! Owns the keys, how they are read (`read.rs`) and their ranges (`check.rs`). Knows nothing about who uses them. Invariant: a
//! [`Config`] that left this module was checked whole, before any socket or file was opened.

mod check;
mod egress;
mod read;
#[cfg(test)]
mod tests;

pub use self::egress::{Egress, Opened};

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::bucket::OriginUrl;
use crate::grants::Access;
use crate::host::HostName;
use crate::id::TenantId;
use crate::limits;
use crate::quota::Quotas;

/// A number of bytes, written `64MiB` or plain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// A time, written `500ms` or `10s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

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
    /// Stores that buckets may be caches of.
    pub origin: Vec<Origin>,
    /// Folders of this machine that functions may be granted.
    pub folder: Vec<Folder>,
    /// What functions may reach over the network.
    pub egress: Egress,
    /// Where secrets come from besides the API.
    pub secrets: Secrets,
    /// What the process itself may reach and call.
    pub process: Process,
    /// What each tenant may use that has no quotas of its own. Default: no bounds.
    pub quota: Quotas,
    /// What was set of `[engine]` and `[build]`, as `engine.templates_max` and `2`: what bears on how fast functions start.
    #[serde(skip)]
    pub set: Vec<(String, String)>,
}

/// `[net]`: both ports.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Net {
    /// Where functions are reached. Default `127.0.0.1:3000`.
    pub addr: SocketAddr,
    /// Where functions are deployed. Default `127.0.0.1:3900`; another address than loopback needs a certificate, and a token.
    pub control: SocketAddr,
    /// Domain below which each tenant has a host of its own on the data port, `TENANT.BASE`. Default: none.
    pub base_domain: Option<HostName>,
    /// Most connections of the data port at once. Default 4,096.
    pub connections_max: usize,
    /// Most connections of the control port at once. Default 256.
    pub control_connections_max: usize,
    /// Most connections from one address (of IPv6: from one /64) on each port; 0: no bound of its own. Default: a quarter of the port's, and
    /// no less than 64.
    pub connections_per_address: Option<usize>,
    /// Most requests of one connection; 0: no bound. Default 10,000.
    pub requests_max: u32,
    /// From accept to the end of the first head, and from the first byte of a later head to its end. Default 10 s.
    pub header_timeout: Time,
    /// From the end of a response to the first byte of the next head. Default 30 s.
    pub keepalive_timeout: Time,
    /// File with the certificate that both ports show, and those that vouch for it, as PEM; with `tls_key`. Default: plain HTTP.
    pub tls_cert: Option<PathBuf>,
    /// File with the key of that certificate, as PEM.
    pub tls_key: Option<PathBuf>,
    /// From accept to the end of the handshake of TLS. Default 5 s.
    pub handshake_timeout: Time,
    /// Longest silence in a request's body. Default 10 s.
    pub body_idle_timeout: Time,
    /// Fewest bytes of a request's body in each second that its reader waits, beyond `body_rate_grace`; 0: no bound. Default 1 KiB.
    pub body_rate_min: Bytes,
    /// Time that the reader of a request's body may wait in all before `body_rate_min` counts. Default 5 s.
    pub body_rate_grace: Time,
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
            base_domain: None,
            connections_max: 4096,
            control_connections_max: 256,
            connections_per_address: None,
            requests_max: 10_000,
            header_timeout: Time(Duration::from_secs(10)),
            keepalive_timeout: Time(Duration::from_secs(30)),
            tls_cert: None,
            tls_key: None,
            handshake_timeout: Time(Duration::from_secs(5)),
            body_idle_timeout: Time(Duration::from_secs(10)),
            body_rate_min: Bytes(1 << 10),
            body_rate_grace: Time(Duration::from_secs(5)),
            write_idle_timeout: Time(Duration::from_secs(30)),
            headers_max: limits::HEADERS_MAX,
            head_bytes_max: Bytes(limits::HEAD_BYTES_MAX as u64),
            uri_bytes_max: Bytes(limits::URI_BYTES_MAX as u64),
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
    /// Most guest memory that all live instances may have been charged together; from nine tenths of it on no invocation begins. Default:
    /// three quarters of the machine's memory, or of the least that a control group allows the node.
    pub memory_max: Option<Bytes>,
    /// Most templates in memory; the system's limits of descriptors and mappings may allow fewer. Default 1,000.
    pub templates_max: usize,
    /// Most instances at once in the pool for guests with a large memory, such as interpreters; each keeps up to 16 MiB. More run among
    /// the others, and with 0 all. Default 64.
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
            memory_max: None,
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
    /// Most data memory of one build, whatever the function's memory limit; at least `memory`. Default: half the machine's, or
    /// of the least that a control group allows the node, or `memory` if that is more.
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
    /// Most bytes of all files that one deploy brings beside its Wasm file. Default 64 MiB.
    pub bundle_bytes_max: Bytes,
    /// Longest time from the head of a deploy to the end of its body, however steadily it comes. Default 5 min.
    pub upload_timeout: Time,
    /// Revisions kept of each function, the live one among them. Default 10.
    pub revisions_max: usize,
    /// Most functions of one tenant. Default 100,000.
    pub functions_max: usize,
    /// Memory for pages of the file of buckets, besides the system's own cache. Default 64 MiB.
    pub page_cache_bytes: Bytes,
    /// Memory for entries of buckets that were read lately; 0: none are kept. Default 64 MiB.
    pub kv_cache_bytes: Bytes,
    /// Memory that all volatile buckets may take together, by their quotas. Default 256 MiB.
    pub volatile_bytes_max: Bytes,
    /// Most events of one durable bucket that wait for the functions that it triggers; past it what would add one gets 507. Default
    /// 100,000, of some 150 bytes and the key each.
    pub events_max: u64,
    /// How long the answer to a change with an `Idempotency-Key` is kept. Default 24 h.
    pub answers_time: Time,
    /// Most of those answers of one tenant, of functions and of entries each; one counts for each KiB that it begins. Default 10,000.
    pub answers_max: u64,
    /// Largest object. Default 16 GiB.
    pub object_bytes_max: Bytes,
    /// Most bytes of all durable objects, those included that are being written. Default 64 GiB.
    pub objects_bytes_max: Bytes,
    /// Most memory of all volatile objects, those included that are being written. Default 256 MiB.
    pub volatile_objects_bytes_max: Bytes,
    /// Most bytes of copies of objects from origins, those included that are being fetched or put. Default 16 GiB.
    pub cache_bytes_max: Bytes,
    /// Memory for copies of up to 64 KiB that were used lately, besides the system's own cache; 0: none are kept. Default 64 MiB.
    pub cache_memory_bytes_max: Bytes,
    /// Most requests to origins at once; more wait for as long as the origin's `response_timeout`. Default 16.
    pub origin_requests_max: usize,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            dir: None,
            bytes_max: Bytes(64 << 30),
            upload_bytes_max: Bytes(64 << 20),
            bundle_bytes_max: Bytes(64 << 20),
            upload_timeout: Time(Duration::from_secs(300)),
            revisions_max: 10,
            functions_max: 100_000,
            page_cache_bytes: Bytes(64 << 20),
            kv_cache_bytes: Bytes(64 << 20),
            volatile_bytes_max: Bytes(256 << 20),
            events_max: 100_000,
            answers_time: Time(Duration::from_secs(24 * 60 * 60)),
            answers_max: 10_000,
            object_bytes_max: Bytes(16 << 30),
            objects_bytes_max: Bytes(64 << 30),
            volatile_objects_bytes_max: Bytes(256 << 20),
            cache_bytes_max: Bytes(16 << 30),
            cache_memory_bytes_max: Bytes(64 << 20),
            origin_requests_max: 16,
        }
    }
}

/// `[[origin]]`: an S3-compatible store that buckets of this node may be caches of. Only what is here can be one: no manifest and no
/// client of the API names a host.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// What buckets call it. Their `origin` may be this or what lies below it; the longest that fits is meant.
    pub url: OriginUrl,
    /// Where it is: `http://HOST:PORT` or `https://HOST`. Default: AWS, in the region.
    pub endpoint: Option<String>,
    /// Region that requests are signed for. Default `us-east-1`.
    #[serde(default = "region")]
    pub region: String,
    /// File with `aws_access_key_id`, `aws_secret_access_key` and perhaps `aws_session_token`, each `NAME = VALUE` on a line of its own.
    /// Default: requests are not signed.
    pub key_file: Option<PathBuf>,
    /// How long it may take to connect. Default 5 s.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Time,
    /// From a request to the head of its response, connecting included; bytes that are sent have a second more for each 256 KiB. Default 10 s.
    #[serde(default = "response_timeout")]
    pub response_timeout: Time,
    /// Longest silence in the body of a response, all of which may take twice that and a second more for each 256 KiB. Default 10 s.
    #[serde(default = "idle_timeout")]
    pub idle_timeout: Time,
    /// For how long what was seen of an object holds without asking again; 0: each read asks. Default 10 s.
    #[serde(default = "fresh")]
    pub fresh: Time,
}

fn region() -> String {
    "us-east-1".into()
}

fn connect_timeout() -> Time {
    Time(Duration::from_secs(5))
}

fn response_timeout() -> Time {
    Time(Duration::from_secs(10))
}

fn idle_timeout() -> Time {
    Time(Duration::from_secs(10))
}

fn fresh() -> Time {
    Time(Duration::from_secs(10))
}

/// `[[folder]]`: a folder of this machine that functions may be granted, with all below it. No manifest gets any other.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Folder {
    /// Where it is, absolute. It must be there when the node starts.
    pub path: PathBuf,
    /// Most that a manifest may ask for: `read` or `read-write`. Default `read`.
    #[serde(default = "read")]
    pub access: Access,
    /// Whose functions may be granted it. Default: those of every tenant.
    pub tenants: Option<Vec<TenantId>>,
}

fn read() -> Access {
    Access::Read
}

/// `[secrets]`: where secrets come from besides the API.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Secrets {
    /// Folder with a folder for each tenant, and in that a file for each secret, named as it is. It must be there when the node starts, apart
    /// from `data.dir` and every `[[folder]]`. Default: none.
    pub dir: Option<PathBuf>,
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

/// `[process]`: what the process itself may reach and call.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Process {
    /// Whether walls stand around the process. Default `auto`.
    pub sandbox: Sandbox,
    /// Whether it may leave a core file, and a debugger of its user may look into it. Default false: both show secrets.
    pub core_dumps: bool,
    /// Files and folders that it may read besides what follows from other keys, absolute. Default none.
    pub read: Vec<PathBuf>,
    /// Folders that it may write to besides the data directory, absolute: where links in that lead to. Default none.
    pub write: Vec<PathBuf>,
}

/// Whether walls stand around a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sandbox {
    /// All of them, or it does not start.
    On,
    /// None.
    Off,
    /// As many as the kernel has.
    #[default]
    Auto,
}

impl Sandbox {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Auto => "auto",
        }
    }

    /// The inverse of [`Sandbox::as_str`].
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::On, Self::Off, Self::Auto].into_iter().find(|sandbox| sandbox.as_str() == word)
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

impl Net {
    /// The files with the certificate and its key, when both ports speak TLS.
    #[must_use]
    pub fn tls(&self) -> Option<(&Path, &Path)> {
        self.tls_cert.as_deref().zip(self.tls_key.as_deref())
    }
}

impl Config {
    /// Files that the process reads again long after its start, as the operator named them; a process that locks itself down must be
    /// able to. They are replaced by renaming, or are links into folders that are (as those of certbot and of Kubernetes are), so it is
    /// the folders that must stay readable: the file's own, and that of what it leads to.
    #[must_use]
    pub fn read_later(&self) -> Vec<&Path> {
        self.net.tls_cert.iter().chain(&self.net.tls_key).map(PathBuf::as_path).collect()
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

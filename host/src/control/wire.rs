//! The JSON of the control port: what leaves the process and what the command line reads back.
//!
//! Owns these shapes and nothing else; a change here is a change of the API. Times are Unix milliseconds, sizes are bytes, limits
//! are text with their unit as in `hob.toml`.

mod data;
mod identity;
mod object;
mod secrets;
mod usage;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::data::{
    BatchInfo, BatchKind, BatchOp, BatchRequest, BucketInfo, BucketList, BucketRequest, ChangeInfo, CorruptInfo, DESCRIBED,
    DamagedInfo, DescribedRequest, DoneInfo, EntryInfo, EntryKey, EntryList, GetManyInfo, GetManyRequest, IncrementInfo,
    ObjectInfo, ObjectItem, ObjectList, ScrubInfo, SizeInfo, join, split,
};
pub(crate) use self::data::{NO_ENTRY, NO_OBJECT};
pub use self::identity::{
    AuditList, KeyInfo, KeyList, KeyRequest, NewTokenInfo, TenantChange, TenantInfo, TenantList, TenantRequest, TokenInfo,
    TokenList, TokenRequest,
};
pub(super) use self::object::object;
pub use self::secrets::{SecretGrantInfo, SecretInfo, SecretList, UnreadableSecret};
pub use self::usage::{FunctionUsage, MinuteUsage, TenantUsage, UsageReport, UsedInfo};

/// What a node is, and what it runs on.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NodeInfo {
    /// Version of Hob.
    pub version: String,
    /// Name and version of the engine.
    pub engine: String,
    /// `release` or `debug`.
    pub build: String,
    /// What was set of `[engine]` and `[build]`; all else has its default.
    pub settings: BTreeMap<String, String>,
    /// Model of the processor, if the system says it.
    pub processor: Option<String>,
    /// Processors that the node may use.
    pub cores: Option<u64>,
    /// Memory of the machine.
    pub memory_bytes: Option<u64>,
    /// Version of the kernel.
    pub kernel: String,
}

/// A deployed function and its live revision.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FunctionInfo {
    /// Name.
    pub name: String,
    /// Number of the live revision.
    pub revision: u64,
    /// Digest of its Wasm, `sha256:…`.
    pub digest: String,
    /// What it is: `handler`, `command`, `command-0.2`, `command-0.3`, `http-0.2`, `http-0.3`; `+async` follows when a 0.2
    /// component imports interfaces of 0.3.
    pub kind: String,
    /// Length of the Wasm in bytes.
    pub wasm_bytes: u64,
    /// Length of the native code in bytes.
    pub artifact_bytes: u64,
    /// Declared routes, as `[METHOD ][HOST]PATH`.
    pub routes: Vec<String>,
    /// Path under which it answers besides.
    pub path: String,
    /// Entity tag for `If-Match`, with its quotes.
    pub etag: String,
    /// When the function was first deployed.
    pub created_ms: u64,
    /// When another revision last became live.
    pub updated_ms: u64,
    /// The memory that every instance begins with, if a snapshot was taken.
    #[serde(default)]
    pub snapshot: Option<SnapshotInfo>,
    /// The files that the deploy brought, if any.
    #[serde(default)]
    pub files: Option<BundleInfo>,
    /// What the deploy had to say: warnings and hints.
    pub notes: Vec<String>,
}

/// Files of a revision.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BundleInfo {
    /// Digest of their names and bytes, `sha256:…`.
    pub digest: String,
    /// How many they are.
    pub files: u64,
    /// Sum of their lengths in bytes.
    pub bytes: u64,
}

/// The snapshot of a revision.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
pub struct SnapshotInfo {
    /// Most bytes of guest memory that there were when it was taken, tables included.
    pub memory_bytes: u64,
    /// Length in bytes of the snapshotted module that is kept, compressed, for another engine.
    pub module_bytes: u64,
}

/// A function with all that is known about it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FunctionDetail {
    /// As in the list.
    #[serde(flatten)]
    pub function: FunctionInfo,
    /// Tenant.
    pub tenant: String,
    /// Ceilings of each invocation, by name.
    pub limits: BTreeMap<String, String>,
    /// What a request of the data port needs: `open`, nothing; `token`, a token with the scope `invoke`.
    #[serde(default)]
    pub auth: String,
    /// Arguments after the name.
    pub args: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// What it may reach.
    #[serde(default)]
    pub grants: GrantsInfo,
    /// What invokes it besides requests.
    #[serde(default)]
    pub triggers: Vec<TriggerInfo>,
    /// Whether its template is in memory.
    pub resident: bool,
    /// Instances that wait for an invocation.
    #[serde(default)]
    pub ready: u64,
    /// Invocations that run now.
    pub running: u64,
    /// Invocations that wait for their turn.
    pub waiting: u64,
    /// Totals since the node started.
    pub usage: UsageInfo,
}

/// What a function may reach.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct GrantsInfo {
    /// Buckets.
    pub data: Vec<DataGrantInfo>,
    /// Folders.
    #[serde(default)]
    pub files: Vec<FileGrantInfo>,
    /// How exactly it sees the time: `coarse` or `fine`.
    #[serde(default)]
    pub clock: String,
    /// Servers that it may send requests to, as the manifest names them.
    #[serde(default)]
    pub http: Vec<String>,
    /// Secrets that it may read.
    #[serde(default)]
    pub secrets: Vec<SecretGrantInfo>,
    /// Functions that it may call, once there are calls.
    #[serde(default)]
    pub functions: Vec<String>,
}

/// A bucket that a function may use.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DataGrantInfo {
    /// Its name.
    pub bucket: String,
    /// `read` or `read-write`.
    pub access: String,
    /// Where a command finds its objects as files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
}

/// A folder that a function sees.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FileGrantInfo {
    /// As the manifest has it: relative if the deploy brought it, absolute if it is the node's.
    pub host: String,
    /// What the function calls it.
    pub guest: String,
    /// `read` or `read-write`.
    pub access: String,
}

/// A change of a bucket that invokes a function.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TriggerInfo {
    /// `object-put` or `key-change`.
    pub on: String,
    /// Of which bucket.
    pub bucket: String,
    /// Of keys that begin with this.
    pub prefix: String,
    /// Times that an event is delivered before it is given up.
    pub attempts: u32,
    /// Bucket for events that were given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<String>,
}

/// Totals of a function since the node started.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UsageInfo {
    /// Invocations by the rung of their start.
    pub starts: BTreeMap<String, u64>,
    /// What the starts took, by rung; rungs that nothing began on are left out.
    #[serde(default)]
    pub start_times: BTreeMap<String, StartTimeInfo>,
    /// Faults by code.
    pub faults: BTreeMap<String, u64>,
    /// What its invocations used.
    #[serde(flatten)]
    pub used: UsedInfo,
}

/// What starts on one rung took.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StartTimeInfo {
    /// What half of them did not pass from admission to the first instruction, in milliseconds: an estimate from a histogram, at most a
    /// factor of 2 off.
    pub p50_ms: f64,
    /// What 99 of 100 did not pass, likewise.
    pub p99_ms: f64,
    /// What each phase took on average, in milliseconds; phases that the rung does not have are left out.
    #[serde(default)]
    pub mean_ms: BTreeMap<String, f64>,
}

/// One kept revision.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RevisionInfo {
    /// Number.
    pub revision: u64,
    /// Whether requests reach it.
    pub live: bool,
    /// Digest of its Wasm.
    pub digest: String,
    /// What it is.
    pub kind: String,
    /// Length of the Wasm in bytes.
    pub wasm_bytes: u64,
    /// When it was published.
    pub created_ms: u64,
    /// What the deploy had to say.
    pub notes: Vec<String>,
}

/// A list of functions. `next` is the cursor of the next page, absent on the last.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FunctionList {
    /// By name.
    pub items: Vec<FunctionInfo>,
    /// Pass it as `?cursor=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The kept revisions of a function, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RevisionList {
    /// Newest first.
    pub items: Vec<RevisionInfo>,
}

/// Which revision to make live.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Its number; the newest one before the live one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
}

/// One entry of a function's log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// Position in the function's log; gaps are entries that were dropped.
    pub seq: u64,
    /// When.
    pub time_ms: u64,
    /// Which invocation.
    pub invocation: String,
    /// Of which revision.
    pub revision: u64,
    /// `stdout`, `stderr`, `log` or `host`.
    pub source: String,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// The guest's words, or Hob's for `host`.
    pub text: String,
}

/// The newest entries of a log, oldest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LogList {
    /// Oldest first.
    pub items: Vec<LogEntry>,
}

/// An answer that Hob makes itself when something went wrong (RFC 9457).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The code as a name of its own: `urn:hob:error:CODE`.
    pub r#type: String,
    /// The code in words.
    pub title: String,
    /// The HTTP status again.
    pub status: u16,
    /// Stable text to test for; also in the header `hob-error`.
    pub code: String,
    /// What happened and what was expected.
    pub detail: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Which invocation, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invocation_id: Option<String>,
}

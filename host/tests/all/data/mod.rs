//! Data through the door of handlers: the calls of `hob1` and the SDK over them, in the real program.
//!
//! `../conformance/` holds them to the rules of every door; `kv.rs` and `objects.rs` have what only a guest can do or see. `calls.rs` breaks the
//! rules of the calls. The guest is `tests/guests/data1`, whose first lines say how it is spoken to.

mod calls;
mod kv;
mod objects;

use crate::harness::Node;
use crate::harness::examples::guest;
use crate::harness::http::Reply;

/// A node with the guest, and what its manifest makes and grants.
pub(crate) struct Door {
    pub(crate) node: Node,
}

/// One bucket of each durability, with room, and two durable ones that are small or only read.
const BUCKETS: &str = r#"
[[bucket]]
name = "durable"
bytes_max = "64MiB"
keys_max = 10_000

[[bucket]]
name = "volatile"
durability = "volatile"
bytes_max = "64MiB"
keys_max = 10_000

[[bucket]]
name = "small"
bytes_max = 20
keys_max = 3

[[bucket]]
name = "shown"

[[bucket]]
name = "hidden"

[limits]
memory = "256MiB"
request_body = "64MiB"
wall = "60s"
cpu = "30s"

[grants]
data = [
  { bucket = "durable", access = "read-write" },
  { bucket = "volatile", access = "read-write" },
  { bucket = "small", access = "read-write" },
  { bucket = "shown", access = "read" },
  { bucket = "missing", access = "read-write" },
]
"#;

pub(crate) fn wasm() -> Vec<u8> {
    std::fs::read(guest("data1")).unwrap()
}

impl Door {
    pub(crate) fn open() -> Self {
        Self::over(Node::start(&[]))
    }

    pub(crate) fn over(node: Node) -> Self {
        let reply = node.deploy("data1", &wasm(), BUCKETS);
        assert_eq!(reply.status(), 201, "{}", reply.text());
        Self { node }
    }

    pub(crate) fn post(&self, bucket: &str, script: &str) -> Reply {
        self.node.data.post(&format!("/data1/{bucket}"), script.as_bytes())
    }

    /// The answers to a script's lines, which the guest must have lived to give.
    #[track_caller]
    pub(crate) fn ask(&self, bucket: &str, script: &str) -> Vec<String> {
        self.post(bucket, script).ok().text().lines().map(str::to_owned).collect()
    }

    /// The answer to one line.
    #[track_caller]
    pub(crate) fn one(&self, bucket: &str, line: impl AsRef<str>) -> String {
        let mut answers = self.ask(bucket, line.as_ref());
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    /// The kind of the error that a line gives.
    #[track_caller]
    pub(crate) fn error(&self, bucket: &str, line: impl AsRef<str>) -> String {
        let answer = self.one(bucket, line);
        let kind = answer.strip_prefix("error ").and_then(|rest| rest.split(' ').next());
        kind.unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// The version that a line gives.
    #[track_caller]
    pub(crate) fn version(&self, bucket: &str, line: impl AsRef<str>) -> u64 {
        let answer = self.one(bucket, line);
        answer.strip_prefix("version ").unwrap_or_else(|| panic!("{answer}")).parse().unwrap()
    }
}

/// Bytes as the guest reads them.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    match bytes.as_ref() {
        [] => "-".into(),
        bytes => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

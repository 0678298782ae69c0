//! One suite of rules (`harness/doors/`) over every way to data and every implementation of it: the traits themselves (`direct.rs`), the
//! calls of handlers through the SDK, mappings too (`handler.rs`), the control port (`control.rs`), the command line (`cli.rs`), for both
//! durabilities, and files of a mount (`mount.rs`). `standard.rs` has the interfaces of WASI, `origin/` runs the rules of objects over a bucket that has an origin, at the same doors. What only one of them has is tested beside it.

mod cli;
mod control;
pub(crate) mod direct;
mod handler;
mod mount;

use hob::bucket::{BucketSpec, Durability};
use hob::data::objects::ObjectLimits;
use hob::data::{Clock, Data, DataConfig};
use hob::id::TenantId;
use serde_json::json;

use self::cli::CommandLine;
pub(crate) use self::control::Control;
use self::direct::Direct;
pub(crate) use self::handler::{Handler, Mapped};
use self::mount::Mount;
use crate::buckets::bucket;
use crate::data::Door;
use crate::harness::examples::guest;
use crate::harness::{Node, doors};

const MIB: u64 = 1 << 20;
const DURABILITIES: [(Durability, &str); 2] = [(Durability::Durable, "durable"), (Durability::Volatile, "volatile")];

fn data(dir: &tempfile::TempDir) -> Data {
    let limits = ObjectLimits { object_bytes_max: 64 * MIB, bytes_max: 256 * MIB };
    let config = DataConfig {
        events_max: 100_000,
        durable_objects: limits,
        volatile_objects: limits,
        page_cache_bytes: 1 << 20,
        kv_cache_bytes: 1 << 20,
        volatile_bytes_max: 256 * MIB,
    };
    Data::open(dir.path(), config, Clock::system()).unwrap()
}

fn direct<'a>(data: &'a Data, name: &str, durability: Durability) -> Direct<'a> {
    let spec = BucketSpec { durability, bytes_max: 64 * MIB, keys_max: 10_000 };
    let (bucket, _) = data.put_bucket(&TenantId::default(), &name.parse().unwrap(), spec).wait().unwrap();
    Direct::new(data, bucket)
}

#[test]
fn both_implementations_of_entries() {
    for (durability, _) in DURABILITIES {
        let dir = tempfile::tempdir().unwrap();
        let data = data(&dir);
        doors::entries::check(&direct(&data, "b", durability), &direct(&data, "c", durability));
    }
}

#[test]
fn both_implementations_of_objects() {
    for (durability, _) in DURABILITIES {
        let dir = tempfile::tempdir().unwrap();
        let data = data(&dir);
        doors::objects::check(&direct(&data, "b", durability), &direct(&data, "c", durability));
    }
}

#[test]
fn entries_through_the_sdk() {
    let door = Door::open();
    for (bucket, other) in [("durable", "volatile"), ("volatile", "durable")] {
        doors::entries::check(&Handler::new(&door, bucket), &Handler::new(&door, other));
    }
}

#[test]
fn objects_through_the_sdk() {
    let door = Door::open();
    for (bucket, other) in [("durable", "volatile"), ("volatile", "durable")] {
        doors::objects::check(&Handler::new(&door, bucket), &Handler::new(&door, other));
    }
}

fn control() -> Node {
    // For metadata in headers.
    let node = Node::start(&["net.headers_max=100"]);
    for (_, name) in DURABILITIES {
        bucket(&node, name, json!({ "durability": name, "bytes_max": 64 * MIB, "keys_max": 10_000 }));
    }
    node
}

#[test]
fn entries_on_the_control_port() {
    let node = control();
    for (bucket, other) in [("durable", "volatile"), ("volatile", "durable")] {
        doors::entries::check(&Control::new(&node, bucket), &Control::new(&node, other));
    }
}

#[test]
fn objects_on_the_control_port() {
    let node = control();
    for (bucket, other) in [("durable", "volatile"), ("volatile", "durable")] {
        doors::objects::check(&Control::new(&node, bucket), &Control::new(&node, other));
    }
}

#[test]
fn objects_through_mappings() {
    let door = Door::open();
    for (bucket, other) in [("durable", "volatile"), ("volatile", "durable")] {
        doors::objects::check(&Mapped(Handler::new(&door, bucket)), &Mapped(Handler::new(&door, other)));
    }
}

#[test]
fn entries_on_the_command_line() {
    let node = control();
    for (_, bucket) in DURABILITIES {
        doors::check_entries(&CommandLine::new(&node, bucket));
    }
}

#[test]
fn objects_on_the_command_line() {
    let node = control();
    for (_, bucket) in DURABILITIES {
        doors::check_objects(&CommandLine::new(&node, bucket));
    }
}

#[test]
fn objects_as_files_of_a_mount() {
    let node = control();
    let manifest = "[grants]\ndata = [{ bucket = 'durable', mount = '/site' }]\n";
    assert_eq!(node.deploy("files1", &std::fs::read(guest("files1")).unwrap(), manifest).status(), 201);
    doors::check_objects(&Mount::new(&node, "durable"));
}

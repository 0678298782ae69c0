//! The calls for data against data that changes under them, which no request could time.

use std::sync::Arc;

use wasmtime::{Config, Engine, Instance, Linker, Module, Store, Val};

use super::data::Errno;
use crate::bucket::{BucketSpec, Durability};
use crate::capability::data::DataAccess;
use crate::capability::reply::Reply;
use crate::capability::stdio::Stdio;
use crate::capability::{Environment, Host};
use crate::data::{Clock, Data, DataConfig};
use crate::grants::{Access, DataGrant};
use crate::id::{BucketName, InvocationId, RevisionNumber, TenantId};
use crate::meter::MemoryBudget;
use crate::telemetry::logs::{FunctionLog, LogSink, LogSpace};

/// What the guest exports: calls under their own names. At 0 is `b`, at 16 `key`, at 64 an operation that sets it to `value`.
const GUEST: &str = r#"(module
  (import "hob1" "bucket_open" (func $bucket_open (param i32 i32) (result i32)))
  (import "hob1" "answer_wait" (func $answer_wait (param i32 i32) (result i32)))
  (import "hob1" "kv_get" (func $kv_get (param i32 i32 i32 i32 i32) (result i32)))
  (import "hob1" "kv_write" (func $kv_write (param i32 i32 i32 i32 i32) (result i32)))
  (import "hob1" "object_put" (func $object_put (param i32 i32 i32 i32 i32) (result i32)))
  (import "hob1" "object_head" (func $object_head (param i32 i32 i32 i32 i32) (result i32)))
  (import "hob1" "object_open" (func $object_open (param i32 i32 i32 i32 i32) (result i32)))
  (import "hob1" "object_read" (func $object_read (param i32 i64 i32 i32) (result i32)))
  (import "hob1" "upload_write" (func $upload_write (param i32 i32 i32) (result i32)))
  (import "hob1" "upload_finish" (func $upload_finish (param i32 i32 i32) (result i32)))
  (memory (export "memory") 40)
  (data (i32.const 0) "b") (data (i32.const 16) "key")
  (data (i32.const 64) "\00\00\00\00\00\00\00\00\03\00\00\00\05\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00keyvalue")
  (func (export "open") (param i32) (result i32) (call $bucket_open (i32.const 0) (i32.const 1)))
  (func (export "get") (param i32) (result i32)
    (call $kv_get (local.get 0) (i32.const 16) (i32.const 3) (i32.const 1024) (i32.const 64)))
  (func (export "begin") (param i32) (result i32)
    (call $kv_write (local.get 0) (i32.const 64) (i32.const 40) (i32.const 1024) (i32.const 64)))
  (func (export "wait") (param i32) (result i32) (call $answer_wait (i32.const 1024) (i32.const 64)))
  (func (export "put") (param i32) (result i32)
    (call $object_put (local.get 0) (i32.const 16) (i32.const 3) (i32.const 0) (i32.const 0)))
  (func (export "write") (param i32) (result i32)
    (call $upload_write (local.get 0) (i32.const 65536) (i32.const 2000000)))
  (func (export "finish") (param i32) (result i32) (call $upload_finish (local.get 0) (i32.const 1024) (i32.const 200)))
  (func (export "head") (param i32) (result i32)
    (call $object_head (local.get 0) (i32.const 16) (i32.const 3) (i32.const 1024) (i32.const 200)))
  (func (export "open_object") (param i32) (result i32)
    (call $object_open (local.get 0) (i32.const 16) (i32.const 3) (i32.const 1024) (i32.const 200)))
  (func (export "read") (param i32) (result i32)
    (call $object_read (local.get 0) (i64.const 1999999) (i32.const 1024) (i32.const 200))))"#;

struct Rig {
    dir: tempfile::TempDir,
    data: Arc<Data>,
    runtime: tokio::runtime::Runtime,
    store: Store<Host>,
    instance: Instance,
}

fn name() -> BucketName {
    "b".parse().unwrap()
}

impl Rig {
    fn new(durability: Durability) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = Arc::new(Data::open(dir.path(), DataConfig::default(), Clock::system()).unwrap());
        let tenant = TenantId::default();
        let grant = DataGrant { bucket: name(), access: Access::ReadWrite, mount: None };
        let access = DataAccess::new(data.clone(), tenant, &[grant]);
        let environment = Arc::new(Environment { data: Arc::new(access), ..Environment::default() });
        let log = Arc::new(FunctionLog::new(LogSpace::new(1 << 20, 1 << 20)));
        let log = Arc::new(LogSink::new(log, InvocationId::new(0, 0), RevisionNumber::FIRST, 1 << 20));
        let stdio = Stdio::Log(log.clone());
        let host = Host::new(MemoryBudget::new(1 << 30), Arc::<Reply>::default(), log, environment, stdio);
        let engine = Engine::new(&Config::new()).unwrap();
        let mut linker = Linker::new(&engine);
        super::link(&mut linker).unwrap();
        let mut store = Store::new(&engine, host);
        let module = Module::new(&engine, wat::parse_str(GUEST).unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let instance = runtime.block_on(linker.instantiate_async(&mut store, &module)).unwrap();
        let rig = Self { dir, data, runtime, store, instance };
        rig.make(durability);
        rig
    }

    fn make(&self, durability: Durability) {
        self.data.put_bucket(&TenantId::default(), &name(), BucketSpec::new(durability)).wait().unwrap();
    }

    fn delete(&self) {
        self.data.delete_bucket(&TenantId::default(), &name()).wait().unwrap();
    }

    fn call(&mut self, export: &str, handle: i32) -> i32 {
        let function = self.instance.get_func(&mut self.store, export).unwrap();
        let mut result = [Val::I32(0)];
        self.runtime.block_on(function.call_async(&mut self.store, &[Val::I32(handle)], &mut result)).unwrap();
        result[0].unwrap_i32()
    }

    /// Writes the entry, and waits if that is to be done.
    fn set(&mut self, handle: i32) -> i32 {
        match self.call("begin", handle) {
            waits if waits == Errno::Waits as i32 => self.call("wait", 0),
            done => done,
        }
    }

    /// Begins a call, lets it go on for as long as it needs nobody, and breaks it off.
    fn cancel(&mut self, export: &str, handle: i32) {
        let function = self.instance.get_func(&mut self.store, export).unwrap();
        let mut result = [Val::I32(0)];
        self.runtime.block_on(async {
            let (arguments, store) = ([Val::I32(handle)], &mut self.store);
            let call = std::pin::pin!(function.call_async(store, &arguments, &mut result));
            tokio::select! {
                biased;
                done = call => done.unwrap(),
                () = std::future::ready(()) => {}
            }
        });
    }
}

const BOTH: [Durability; 2] = [Durability::Durable, Durability::Volatile];

#[test]
fn a_bucket_that_is_deleted_meanwhile_is_no_bucket() {
    for durability in BOTH {
        let mut rig = Rig::new(durability);
        let bucket = rig.call("open", 0);
        assert_eq!((bucket, rig.set(bucket), rig.call("get", bucket)), (0, 24, 21), "{durability:?}");
        let put = |rig: &mut Rig| {
            let upload = rig.call("put", bucket);
            assert_eq!(rig.call("write", upload), 0);
            upload
        };
        let upload = put(&mut rig);
        assert_eq!(rig.call("finish", upload), 72);
        let (object, upload) = (rig.call("open_object", bucket), put(&mut rig));
        assert_eq!(object, 76);
        rig.delete();
        let gone = Errno::NoBucket as i32;
        let check = |rig: &mut Rig| {
            let found = ["get", "head", "put", "open_object"].map(|export| rig.call(export, bucket));
            assert_eq!((rig.set(bucket), found), (gone, [gone; 4]), "{durability:?}");
        };
        check(&mut rig);
        assert_eq!(rig.call("finish", upload), gone, "{durability:?}");
        assert_eq!(rig.call("open", 0), gone);
        assert_eq!(rig.call("read", 0), 1, "what is open stays until it is closed");
        // Another one of its name is another one.
        rig.make(durability);
        check(&mut rig);
        let again = rig.call("open", 0);
        assert_eq!((again, rig.call("get", again), rig.set(again)), (1, Errno::None as i32, 24), "{durability:?}");
        drop(rig.runtime);
        drop(rig.store);
        assert_eq!(std::fs::read_dir(rig.dir.path().join("staging")).unwrap().count(), 0);
    }
}

#[test]
fn a_call_that_is_broken_off_leaves_nothing() {
    for durability in BOTH {
        let mut rig = Rig::new(durability);
        let bucket = rig.call("open", 0);
        rig.cancel("put", bucket);
        let upload = rig.call("put", bucket);
        rig.cancel("write", upload);
        let upload = rig.call("put", bucket);
        rig.call("write", upload);
        rig.cancel("finish", upload);
        rig.call("begin", bucket);
        if durability == Durability::Durable {
            rig.cancel("wait", bucket);
        }
        drop(rig.store);
        // Waits for the jobs that had begun.
        drop(rig.runtime);
        assert_eq!(std::fs::read_dir(rig.dir.path().join("staging")).unwrap().count(), 0, "{durability:?}");
        // What goes on is the write, whole; the put may have come to its end.
        let kv = rig.data.kv(&rig.data.bucket(&TenantId::default(), &name()).unwrap().unwrap()).unwrap();
        kv.write(Vec::new()).wait().unwrap();
        assert_eq!(&kv.get(b"key").unwrap().unwrap().value[..], b"value");
    }
}

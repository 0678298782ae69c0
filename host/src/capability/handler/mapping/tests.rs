//! What the real daemon cannot be made to do by its clients: a panic in a host call, deletes at a chosen moment, objects in sealed memory.
//! The store, its data, the calls and wasmtime's pool, of one slot, are the real ones.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, Linker, Module, PoolingAllocationConfig, Store};

use super::*;
use crate::bucket::{BucketSpec, Durability};
use crate::capability::Environment;
use crate::capability::data::DataAccess;
use crate::capability::reply::Reply;
use crate::capability::stdio::Stdio;
use crate::data::objects::{PutOptions, When};
use crate::data::{Bucket, Clock, Data, DataConfig};
use crate::grants::DataGrant;
use crate::id::{InvocationId, RevisionNumber, TenantId};
use crate::telemetry::logs::{FunctionLog, LogSink, LogSpace};

const LEN: usize = 300_000;

struct Bench {
    engine: Engine,
    linker: Linker<Host>,
    data: Arc<Data>,
    bucket: Bucket,
    environment: Arc<Environment>,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

fn bytes() -> Vec<u8> {
    (0..LEN).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

impl Bench {
    fn new(durability: Durability) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = Arc::new(Data::open(dir.path(), DataConfig::default(), Clock::system()).unwrap());
        let name: crate::id::BucketName = "b".parse().unwrap();
        let spec = BucketSpec { bytes_max: 1 << 20, keys_max: 100, ..BucketSpec::new(durability) };
        let (bucket, _) = data.put_bucket(&TenantId::default(), &name, spec).wait().unwrap();
        let mut upload = data.objects(durability).put(&bucket, b"k", PutOptions::default()).unwrap();
        upload.write(&bytes()).unwrap();
        upload.finish().wait().unwrap();
        let grant = DataGrant { bucket: name, access: Access::Read, mount: None };
        let access = DataAccess::new(data.clone(), TenantId::default(), &[grant]);
        let environment = Arc::new(Environment { data: Arc::new(access), ..Environment::default() });
        let mut pool = PoolingAllocationConfig::new();
        pool.total_core_instances(1).total_memories(1).total_tables(1).total_stacks(1).linear_memory_keep_resident(128 << 10);
        let mut config = Config::new();
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        let engine = Engine::new(&config).unwrap();
        let mut linker = Linker::new(&engine);
        crate::capability::link_modules(&mut linker).unwrap();
        let (objects, of) = (data.objects(durability), bucket.clone());
        let linked = linker.func_wrap_async("test", "delete", move |_: Caller<'_, Host>, (): ()| {
            let deleted = objects.delete(&of, b"k", When::Always);
            Box::new(async move { drop(deleted.await.unwrap()) })
        });
        linked.unwrap();
        linker.func_wrap("test", "panic", || -> () { panic!("planted in a host call") }).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { engine, linker, data, bucket, environment, runtime, _dir: dir }
    }

    /// Runs `code` in a fresh instance, with the bucket open and the object mapped at `$at`; what it leaves on the stack.
    fn run(&self, code: &str) -> std::thread::Result<Result<i32>> {
        let text = format!(
            r#"(module
              (import "hob1" "bucket_open" (func $bucket_open (param i32 i32) (result i32)))
              (import "hob1" "object_map" (func $object_map (param i32 i32 i32 i64 i64 i32) (result i32)))
              (import "hob1" "object_unmap" (func $object_unmap (param i32)))
              (import "test" "delete" (func $delete))
              (import "test" "panic" (func $panic))
              (memory (export "memory") 1)
              (data (i32.const 0) "bk")
              (func $sum (param $at i32) (param $len i32) (result i32) (local $sum i32) (local $end i32)
                (local.set $end (i32.add (local.get $at) (local.get $len)))
                (loop $more
                  (local.set $sum (i32.add (local.get $sum) (i32.load8_u (local.get $at))))
                  (local.set $at (i32.add (local.get $at) (i32.const 1)))
                  (br_if $more (i32.lt_u (local.get $at) (local.get $end))))
                (local.get $sum))
              (func $map (result i32)
                (drop (call $bucket_open (i32.const 0) (i32.const 1)))
                (if (call $object_map (i32.const 0) (i32.const 1) (i32.const 1) (i64.const 0) (i64.const -1) (i32.const 16)) (then unreachable))
                (i32.load (i32.const 16)))
              (func (export "run") (result i32) (local $at i32) {code}))"#
        );
        let module = Module::new(&self.engine, wat::parse_str(text).unwrap()).unwrap();
        let log = Arc::new(FunctionLog::new(LogSpace::new(1 << 16, 1 << 16)));
        let log = Arc::new(LogSink::new(log, InvocationId::new(0, 0), RevisionNumber::FIRST, 0));
        let memory = MemoryBudget::new(16 << 20);
        let mut host = Host::new(memory, Arc::new(Reply::default()), log.clone(), self.environment.clone(), Stdio::Log(log));
        host.mappings = Mappings::new(1 << 30, 256);
        let mut store = Store::new(&self.engine, host);
        store.limiter(|host| &mut host.memory);
        let run = async move {
            let instance = self.linker.instantiate_async(&mut store, &module).await?;
            instance.get_typed_func::<(), i32>(&mut store, "run")?.call_async(&mut store, ()).await
        };
        self.runtime.block_on(AssertUnwindSafe(run).catch_unwind())
    }

    fn answer(&self, code: &str) -> i32 {
        self.run(code).unwrap().unwrap()
    }
}

/// What was mapped in the slot before, and everything around it.
const LOOKS: &str = "(drop (memory.grow (i32.const 16))) (call $sum (i32.const 1024) (i32.const 1113088))";
const READS: &str = "(local.set $at (call $map)) (call $sum (local.get $at) (i32.const 300000))";
const WRITES: &str = "(local.set $at (call $map)) (memory.fill (local.get $at) (i32.const 7) (i32.const 200000))";

fn sum() -> i32 {
    bytes().iter().map(|byte| i32::from(*byte)).sum()
}

#[test]
fn a_panic_in_a_host_call_leaves_nothing_in_the_slot() {
    for durability in [Durability::Durable, Durability::Volatile] {
        let bench = Bench::new(durability);
        for _ in 0..3 {
            let panicked = bench.run(&format!("{WRITES} (call $panic) (i32.const 0)"));
            assert!(panicked.is_err(), "{panicked:?}");
            assert_eq!(bench.answer(LOOKS), 0);
            assert!(bench.run(&format!("{WRITES} unreachable")).unwrap().is_err());
            assert_eq!(bench.answer(LOOKS), 0);
            assert_eq!(bench.answer(READS), sum());
            assert_eq!(bench.answer(LOOKS), 0);
        }
    }
}

#[test]
fn what_is_mapped_stays_when_it_is_deleted() {
    for durability in [Durability::Durable, Durability::Volatile] {
        let bench = Bench::new(durability);
        let code = "(local.set $at (call $map)) (call $delete) (call $sum (local.get $at) (i32.const 300000))";
        assert_eq!(bench.answer(code), sum());
        // It is gone for the next one, and so are its bytes, once the collector came round.
        assert!(bench.run(READS).unwrap().is_err());
        assert!(bench.data.objects(durability).head(&bench.bucket, b"k").unwrap().is_none());
    }
}

#[test]
fn free_ranges_join() {
    let bench = Bench::new(Durability::Volatile);
    let twice = "(local.set $at (call $map)) (drop (call $map)) (call $object_unmap (local.get $at))
                 (if (i32.ne (call $map) (local.get $at)) (then unreachable)) (memory.size)";
    // Five pages of 64 KiB each.
    assert_eq!(bench.answer(twice), 1 + 5 + 5);
}

#[test]
fn pages_are_counted_exactly() {
    let bench = Bench::new(Durability::Durable);
    // Limits count what was written and not what was read: 16 MiB are far, so nothing is refused here.
    assert_eq!(bench.answer(&format!("{WRITES} (call $sum (local.get $at) (i32.const 200000))")), 1_400_000);
    assert!(pages::can_count());
    assert_eq!(pages::share(65_530), 2730);
    assert_eq!(system_mappings(65_530), 8190);
}

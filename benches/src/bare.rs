//! The ceiling of a start, and of a build: bare wasmtime, with the same pool settings, no limits, no deadline and no host behind the imports.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store, component};

use crate::report::quantile;

/// Medians in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bare {
    /// From `Store::new` to a live instance.
    pub(crate) start: f64,
    /// The same, and dropping it.
    pub(crate) whole: f64,
}

/// Places of the pool that can keep a memory.
pub(crate) const MEMORIES: u32 = 20;

/// Makes `count` instances of a module or component, one after the other.
///
/// # Errors
/// When it does not compile, or calls an import while it starts: every import traps.
pub(crate) fn measure(wasm: &Path, count: usize) -> anyhow::Result<Bare> {
    let engine = engine()?;
    let bytes = std::fs::read(wasm)?;
    let is_component = bytes.get(4..8) == Some(&[0x0d, 0, 1, 0]);
    if is_component {
        let component = component::Component::new(&engine, &bytes)?;
        let mut linker = component::Linker::new(&engine);
        linker.define_unknown_imports_as_traps(&component)?;
        let pre = linker.instantiate_pre(&component)?;
        repeat(&engine, count, |store| pre.instantiate(store).map(drop))
    } else {
        let module = wasmtime::Module::new(&engine, &bytes)?;
        let mut linker = wasmtime::Linker::new(&engine);
        linker.define_unknown_imports_as_traps(&module)?;
        let pre = linker.instantiate_pre(&module)?;
        repeat(&engine, count, |store| pre.instantiate(store).map(drop))
    }
}

/// Makes `count` instances of `modules`, always of another than the ones before: none finds a place that has its memory already, if there
/// are more modules than [`MEMORIES`].
pub(crate) fn of_others(modules: &[Vec<u8>], count: usize) -> anyhow::Result<Bare> {
    let engine = engine()?;
    let pre = |module: &Vec<u8>| -> anyhow::Result<_> {
        let module = wasmtime::Module::new(&engine, module)?;
        let mut linker = wasmtime::Linker::new(&engine);
        linker.define_unknown_imports_as_traps(&module)?;
        Ok(linker.instantiate_pre(&module)?)
    };
    let pres = modules.iter().map(pre).collect::<anyhow::Result<Vec<_>>>()?;
    let mut next = pres.iter().cycle();
    repeat(&engine, count, |store| next.next().map_or(Ok(()), |pre| pre.instantiate(store).map(drop)))
}

/// How many modules like these can be compiled in a second, as many at once as there are cores.
pub(crate) fn compiles_per_second(modules: &[Vec<u8>]) -> anyhow::Result<f64> {
    let (engine, next) = (engine()?, AtomicUsize::new(0));
    let compile = || -> anyhow::Result<()> {
        while let Some(module) = modules.get(next.fetch_add(1, Ordering::Relaxed)) {
            wasmtime::Module::new(&engine, module)?;
        }
        Ok(())
    };
    let began = Instant::now();
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism()?.get();
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(compile)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a compiler panicked"))?)
    })?;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    let count = modules.len() as f64;
    Ok(count / began.elapsed().as_secs_f64())
}

fn engine() -> anyhow::Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(10).total_core_instances(200).total_memories(MEMORIES).total_tables(200);
    pool.max_memory_size(4 << 30).max_core_instance_size(16 << 20).max_component_instance_size(16 << 20).table_elements(100_000);
    pool.linear_memory_keep_resident(128 << 10).table_keep_resident(128 << 10).pagemap_scan(Enabled::No);
    let mut config = Config::new();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool)).memory_guaranteed_dense_image_size(1 << 30);
    Ok(Engine::new(&config)?)
}

fn repeat(engine: &Engine, count: usize, mut start: impl FnMut(&mut Store<()>) -> wasmtime::Result<()>) -> anyhow::Result<Bare> {
    let (mut starts, mut wholes) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for _ in 0..count {
        let began = Instant::now();
        let mut store = Store::new(engine, ());
        start(&mut store)?;
        starts.push(began.elapsed().as_secs_f64() * 1e6);
        drop(store);
        wholes.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Bare { start: quantile(&mut starts, 0.5), whole: quantile(&mut wholes, 0.5) })
}

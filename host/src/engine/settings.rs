//! Settings of wasmtime: one function, so that what is compiled in the build process loads in the daemon.
//!
//! Owns every knob. `docs/decisions/` says why each differs from its default. Invariant: the two lanes differ in one knob only.

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, ResourcesRequired, Result,
    WasmFeatures,
};

use super::kind::Lane;

/// Version in every artifact: a security fix of the compiler must reach code that was compiled before it, and by default
/// wasmtime writes only its major version.
pub const ENGINE_VERSION: &str = "wasmtime-48.0.8/hob-3";

/// Memory and table bytes of a slot that stay resident between two instances: reset by copying instead of by the kernel.
pub(super) const KEEP_RESIDENT: usize = 128 << 10;
/// The same in the pool for large guests (`large.rs`).
pub(super) const LARGE_KEEP_RESIDENT: usize = 16 << 20;
/// Stack of a guest and of the fiber it runs on, in bytes; the difference is left to host calls.
const WASM_STACK: usize = 512 << 10;
const FIBER_STACK: usize = 2 << 20;
/// How many times the stack of optimised code the same code may have that was compiled fast, where each value has a place of its own. It is
/// enough for what `rehearsal::initialisation_has_the_stack_of_an_invocation` tries.
const UNOPTIMISED: usize = 8;
/// Elements of all tables of a component; the cap at deploy is the same.
const TABLE_ELEMENTS: usize = 100_000;

/// Wasmtime's own bookkeeping for one instance, in bytes.
const INSTANCE_BYTES: usize = 32 << 20;

/// Core instances, memories and tables of one component; the largest measured (an interpreter) has 14, 1 and few.
const CORE_INSTANCES: u32 = 64;
const MEMORIES: u32 = 8;
const TABLES: u32 = 64;
/// Tables of a pool for each of its instances, and core instances in the usual one.
const TABLES_EACH: u32 = 3;
const CORE_INSTANCES_EACH: u32 = 16;

fn common(lane: Lane) -> Result<Config> {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .memory_init_cow(true)
        // Otherwise a large sparse snapshot is copied at each start instead of mapped.
        .memory_guaranteed_dense_image_size(4 << 30)
        .max_wasm_stack(WASM_STACK)
        .async_stack_size(FIBER_STACK)
        .concurrency_support(lane == Lane::Concurrent)
        .wasm_memory64(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false)
        // The setters of these are compiled in with GC alone, and they are on without. With GC on, references to functions of a type are
        // valid whatever their own feature says (wasmparser 0.253, `check_ref_type`).
        .wasm_features(WasmFeatures::GC | WasmFeatures::FUNCTION_REFERENCES, false)
        .wasm_multi_memory(true)
        .wasm_simd(true)
        .wasm_relaxed_simd(true)
        .wasm_tail_call(true)
        .native_unwind_info(false)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(16))
        .wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Disable)
        .cranelift_opt_level(OptLevel::Speed);
    config.module_version(wasmtime::ModuleVersionStrategy::Custom(ENGINE_VERSION.into()))?;
    Ok(config)
}

/// The engine of the build process: it compiles, and runs what has to be run before a function is deployed. It has no pool, whose
/// tables alone would pass the child's memory limit.
///
/// # Errors
/// When wasmtime refuses the settings: a bug of ours.
pub(super) fn compiling(lane: Lane) -> Result<Engine> {
    Engine::new(&common(lane)?)
}

/// An engine of the daemon, with a pool for `instances` instances at once, `keep_resident` bytes of each kept resident.
///
/// # Errors
/// When the address space for the pool cannot be reserved.
pub(super) fn serving(lane: Lane, instances: u32, keep_resident: usize) -> Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    // These are only counted, and what a guest takes of them is not known before.
    let core_instances = if keep_resident == LARGE_KEEP_RESIDENT { CORE_INSTANCES } else { CORE_INSTANCES_EACH };
    // A component has several core instances (its adapters), and may have more than one memory. Each memory reserves 4 GiB of
    // addresses, 47 bits of which are there: 25,000 for both lanes together at the most instances a node may have.
    let memories = if lane == Lane::Plain { instances + instances / 2 } else { instances };
    pool.total_component_instances(instances)
        .total_core_instances(core_instances * instances)
        .total_memories(memories)
        .total_tables(TABLES_EACH * instances)
        .total_stacks(instances + 64)
        .max_memory_size(4 << 30)
        .max_memories_per_module(2)
        .max_tables_per_module(4)
        // One component must not take the node's share of all.
        .max_core_instances_per_component(CORE_INSTANCES)
        .max_memories_per_component(MEMORIES)
        .max_tables_per_component(TABLES)
        // Only a check, instances are allocated by need: room for what the caps at deploy allow.
        .max_core_instance_size(INSTANCE_BYTES)
        .max_component_instance_size(INSTANCE_BYTES)
        .table_elements(TABLE_ELEMENTS)
        .max_unused_warm_slots(memories)
        .linear_memory_keep_resident(keep_resident)
        .table_keep_resident(KEEP_RESIDENT)
        // Wasmtime 48 can hand a swapped-out dirty page of one instance to the next if this is on (fixed upstream in 50).
        .pagemap_scan(Enabled::No);
    let mut config = common(lane)?;
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool)).parallel_compilation(false);
    Engine::new(&config)
}

/// Whether any guest that needs this finds its slots in a pool that has a place for it, whatever runs there.
pub(super) fn has_slots(needed: &ResourcesRequired) -> bool {
    needed.num_memories <= 1 && needed.num_tables <= TABLES_EACH
}

/// The engine of the build process for what runs there once and is thrown away: compiled fast, not well.
///
/// # Errors
/// As [`compiling`].
pub(super) fn initialising(lane: Lane) -> Result<Engine> {
    let mut config = common(lane)?;
    config
        .cranelift_opt_level(OptLevel::None)
        .max_wasm_stack(UNOPTIMISED * WASM_STACK)
        .async_stack_size(UNOPTIMISED * WASM_STACK + (FIBER_STACK - WASM_STACK));
    Engine::new(&config)
}

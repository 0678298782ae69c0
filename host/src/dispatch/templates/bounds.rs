//! Bounds of what is resident: what the operator allows, and what the system leaves.
//!
//! Owns the arithmetic. Knows nothing about templates but what each costs. Invariant: at least a quarter of the system's descriptors
//! and mappings goes to templates, whatever the rest of the node may need at its most: all of that at once is rare, and a load
//! that fails for lack of either gives templates up and tries again (`load.rs`).

use rustix::process::{Resource, getrlimit};

use crate::capability::handler::system_mappings;
use crate::config::{Bytes, Config};

/// Mappings of a loaded template: what is before its code in the file, the code, what is behind it, and one in reserve.
/// Source: `/proc/PID/maps` of a node with resident handlers, commands and components: three each.
const MAPPINGS: u64 = 4;
/// Descriptors of a loaded template: its file, which wasmtime keeps open.
const DESCRIPTORS: u64 = 1;

/// Mappings of a memory slot that was used: image, memory, what may grow, guard.
const SLOT_MAPPINGS: u64 = 4;
/// Memory slots of both lanes, in halves of an instance: 1.5 and 1 for each (`engine/settings.rs`).
const SLOT_HALVES: u64 = 5;
/// Those of the pool for large guests.
const LARGE_SLOT_HALVES: u64 = 3;
/// Mappings of the stacks of an instance in both lanes: stack and guard.
const STACK_MAPPINGS: u64 = 2 * 2;
/// Mappings of everything else: libraries, heaps, threads, the registry.
const OTHER_MAPPINGS: u64 = 4096;

/// Descriptors of a thread: listener, epoll, its waker.
const THREAD_DESCRIPTORS: u64 = 8;
/// Descriptors of a build: its pipes, its files, its process.
const BUILD_DESCRIPTORS: u64 = 16;
/// Descriptors of everything else: the registry, the lock, files that are being loaded or put in place.
const OTHER_DESCRIPTORS: u64 = 256;

/// Default of `vm.max_map_count`, for a system that does not say.
const MAPPINGS_MAX: u64 = 65_530;

/// How much may be resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Templates; at least 1.
    pub count: usize,
    /// Bytes of code and images that they map.
    pub bytes: u64,
}

/// What the system lets this process have.
#[derive(Debug, Clone, Copy)]
struct System {
    descriptors: u64,
    mappings: u64,
    cores: u64,
}

impl System {
    fn read() -> Self {
        let mappings = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok().and_then(|text| text.trim().parse().ok());
        Self {
            descriptors: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            mappings: mappings.unwrap_or(MAPPINGS_MAX),
            cores: std::thread::available_parallelism().map_or(1, usize::from) as u64,
        }
    }
}

impl Bounds {
    /// What the configuration allows and the system leaves. Says in the node's log what it is and why. To be called after the
    /// limit of descriptors was raised.
    #[must_use]
    pub fn find(config: &Config) -> Self {
        let system = System::read();
        let (bounds, by) = Self::of(config, system);
        let Bytes(bytes) = config.engine.templates_bytes_max;
        tracing::info!(
            templates = bounds.count,
            bytes,
            bound_by = by,
            descriptors = system.descriptors,
            mappings = system.mappings,
            "templates in memory at most"
        );
        bounds
    }

    /// The bounds, and the name of what the count is bound by.
    fn of(config: &Config, system: System) -> (Self, &'static str) {
        let instances = u64::from(config.engine.instances_max);
        let large = u64::from(config.engine.large_instances_max);
        let or_cores = |count: usize| if count == 0 { system.cores } else { count as u64 };
        // A template that is evicted lives on in the instances that run it.
        let evicted = instances + large;
        // Any may be that of a large guest, which is loaded into both pools.
        let loaded = if large > 0 { 2 } else { 1 };
        let mappings = instances * (SLOT_MAPPINGS * SLOT_HALVES).div_ceil(2)
            + instances * STACK_MAPPINGS
            // One lane of the two has a pool for large guests.
            + large * (SLOT_MAPPINGS * LARGE_SLOT_HALVES / 2 + STACK_MAPPINGS / 2)
            + evicted * MAPPINGS
            // Of objects in the memory of guests.
            + system_mappings(system.mappings)
            + OTHER_MAPPINGS;
        let connections = config.net.connections_max.saturating_add(config.net.control_connections_max) as u64;
        let descriptors = connections
            .saturating_add(evicted * DESCRIPTORS)
            .saturating_add(or_cores(config.engine.threads) * THREAD_DESCRIPTORS)
            .saturating_add(or_cores(config.build.concurrency).saturating_mul(BUILD_DESCRIPTORS))
            .saturating_add(OTHER_DESCRIPTORS);
        let left = |all: u64, needed: u64, each: u64| all.saturating_sub(needed).max(all / 4) / each;
        let candidates = [
            (config.engine.templates_max as u64, "engine.templates_max"),
            (left(system.descriptors, descriptors, loaded * DESCRIPTORS), "the limit of open files"),
            (left(system.mappings, mappings, loaded * MAPPINGS), "vm.max_map_count"),
        ];
        let (count, by) = candidates.into_iter().min_by_key(|(count, _)| *count).expect("there are three");
        let count = usize::try_from(count).unwrap_or(usize::MAX).max(1);
        (Self { count, bytes: config.engine.templates_bytes_max.0 }, by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(descriptors: u64, mappings: u64, settings: &[&str]) -> (usize, &'static str) {
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).into()).collect();
        let config = Config::read("", &settings).unwrap();
        let (bounds, by) = Bounds::of(&config, System { descriptors, mappings, cores: 2 });
        (bounds.count, by)
    }

    #[test]
    fn the_least_of_three_binds() {
        let many = "engine.templates_max=100000";
        assert_eq!(of(20_000, 65_530, &[]), (1000, "engine.templates_max"));
        assert_eq!(of(1 << 20, 1 << 20, &[many]), (100_000, "engine.templates_max"));
        // An eighth for mapped objects, in threes. 4 * 2.5 for memories, 4 for stacks, 4 for templates in use, of 1,000 instances each; 4 * 1.5, 2 and 4 of 64 large ones. A
        // template may be loaded twice.
        assert_eq!(of(1 << 20, 65_530, &[many]), ((65_530 - 18_000 - 768 - 8190 - 4096) / 8, "vm.max_map_count"));
        let none_large = [many, "engine.large_instances_max=0"];
        assert_eq!(of(1 << 20, 65_530, &none_large), ((65_530 - 18_000 - 8190 - 4096) / 4, "vm.max_map_count"));
        let left = 8000 - 4096 - 256 - 1000 - 16 - 32 - 256;
        assert_eq!(of(8000, 1 << 20, &none_large), (left, "the limit of open files"));
        assert_eq!(of(8000, 1 << 20, &[many]), ((left - 64) / 2, "the limit of open files"));
    }

    #[test]
    fn a_quarter_is_left_and_never_nothing() {
        let many = "engine.templates_max=100000";
        assert_eq!(of(1024, 1 << 20, &[many]), (128, "the limit of open files"));
        assert_eq!(of(1 << 20, 65_530, &[many, "engine.instances_max=10000"]), (65_530 / 32, "vm.max_map_count"));
        assert_eq!(of(0, 0, &[]).0, 1);
        assert_eq!(of(u64::MAX, u64::MAX, &["net.connections_max=9223372036854775807"]), (1000, "engine.templates_max"));
    }

    #[test]
    fn this_system_can_be_read() {
        let system = System::read();
        assert!(system.descriptors > 0 && system.mappings > 0 && system.cores > 0, "{system:?}");
        assert!(Bounds::find(&Config::default()).count > 0);
    }
}

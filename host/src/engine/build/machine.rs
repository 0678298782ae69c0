//! The machine's memory, as far as this process may use it.
//!
//! Owns the reading of control groups. Knows nothing about who asks. Invariant: what cannot be read bounds nothing.

use std::fs;
use std::path::Path;

/// Where control groups are found.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Memory in bytes: the machine's, or less if a control group that this process is in has less.
///
/// # Cost
/// Some small files are read, one for each level of the group.
pub(in crate::engine) fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = info.totalram.saturating_mul(u64::from(info.mem_unit));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limit(&groups, Path::new(CGROUPS)).map_or(machine, |limit| limit.min(machine))
}

/// The smallest limit of memory of the `groups` and of those around them, in bytes. In a container the path may be that of the machine
/// outside, where nothing is found; then the one above all is the container's own.
///
/// Source: cgroups(7), `/proc/PID/cgroup`: lines of `ID:CONTROLLERS:PATH`, `0::PATH` in version 2.
fn limit(groups: &str, root: &Path) -> Option<u64> {
    let of_group = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (top, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        // Without a limit the file says "max", or in version 1 a number above all memory.
        let read = |group: &Path| fs::read_to_string(top.join(group).join(file)).ok()?.trim().parse::<u64>().ok();
        Path::new(path.trim_start_matches('/')).ancestors().filter_map(read).min()
    };
    groups.lines().filter_map(of_group).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let limit = |groups: &str| limit(groups, dir.path());
        assert_eq!(limit("0::/system.slice/hob.service\n"), None, "nothing is there");
        put("system.slice/hob.service/memory.max", "max\n");
        assert_eq!(limit("0::/system.slice/hob.service\n"), None);
        put("system.slice/memory.max", "2147483648\n");
        assert_eq!(limit("0::/system.slice/hob.service\n"), Some(2 << 30));
        put("system.slice/hob.service/memory.max", "1073741824\n");
        assert_eq!(limit("0::/system.slice/hob.service\n"), Some(1 << 30));
        assert_eq!(limit("0::/system.slice\n"), Some(2 << 30));
        assert_eq!(limit("0::/other.slice\n"), None);
        // A container, whose path is not the one that it sees.
        put("memory/memory.limit_in_bytes", "536870912\n");
        let old = "2:cpu,cpuacct:/system.slice\n1:memory:/docker/0123abcd\n";
        assert_eq!(limit(old), Some(512 << 20));
        put("memory/docker/0123abcd/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit(old), Some(512 << 20));
        assert_eq!(limit(&format!("{old}0::/system.slice\n")), Some(512 << 20), "both versions at once");
        for text in ["", "\n", "0", "0:", "0::", "a:memory", "::::"] {
            let _ = limit(text);
        }
    }

    #[test]
    fn there_is_some_memory() {
        assert!(memory_bytes() > 1 << 20);
    }
}

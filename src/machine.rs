//! What this process may use: the machine's, or what its control group leaves of it.

use std::path::{Path, PathBuf};

/// What a platform may use of the machine that it runs on; the bounds of its preset are shares of it. A host that keeps
/// a part for itself, or a test that wants the same bounds everywhere, says so by
/// [`PlatformBuilder::machine`](crate::PlatformBuilder::machine).
///
/// ```
/// use sas::{Machine, prelude::*};
/// let half = Machine::new(2).with_memory(4 << 30);
/// let builder = Platform::builder().machine(half);
/// # drop(builder);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Machine {
    /// Cores, as the scheduler and the control group's quota allow.
    pub cores: u32,
    /// Bytes; `None`: not known here, and nothing is bounded by it.
    pub memory_bytes: Option<u64>,
    /// Open files at once, up to the hard limit, which runtimes raise the soft one to; `None`: not bounded, or not known.
    pub descriptors: Option<u64>,
}

impl Machine {
    /// A machine of so many cores, whose memory and descriptors bound nothing.
    pub const fn new(cores: u32) -> Self {
        Self { cores, memory_bytes: None, descriptors: None }
    }

    /// With so many bytes of memory.
    #[must_use]
    pub const fn with_memory(mut self, bytes: u64) -> Self {
        self.memory_bytes = Some(bytes);
        self
    }

    /// With so many open files at once.
    #[must_use]
    pub const fn with_descriptors(mut self, descriptors: u64) -> Self {
        self.descriptors = Some(descriptors);
        self
    }

    /// What this process may use: the machine's, or what its control group leaves of it. Reads a handful of small
    /// files, where the system has them.
    pub fn here() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let read = |path: &Path| std::fs::read_to_string(path).ok();
        Self {
            cores: u32::try_from(cores).unwrap_or(u32::MAX),
            memory_bytes: memory(&read),
            descriptors: read(Path::new("/proc/self/limits")).and_then(|limits| descriptors(&limits)),
        }
    }
}

/// The hard limit of open files in `/proc/self/limits`; `None` when it is `unlimited`.
fn descriptors(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The least of the machine's memory and of the limits of this process's control group and of those above it.
fn memory(read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let total = read(Path::new("/proc/meminfo")).and_then(|text| total(&text));
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limits = limit_files(&groups).into_iter().filter_map(|file| read(&file)?.trim().parse().ok());
    limits.chain(total).min()
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Where limits of memory stand that hold for a process with this `/proc/self/cgroup`: its own and those of all groups
/// above it, as the host sees the hierarchy and as a container does, whose root is its own group.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let relative = Path::new(path.trim_start_matches('/'));
        files.extend(relative.ancestors().map(|group| Path::new(root).join(group).join(file)));
    }
    files
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn seen(files: &[(&str, &str)]) -> Option<u64> {
        let files: BTreeMap<&Path, &str> =
            files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
        memory(&|path| files.get(path).map(|text| (*text).to_owned()))
    }

    const MEMINFO: (&str, &str) = ("/proc/meminfo", "MemTotal:        8000000 kB\nMemFree: 1 kB\n");

    #[test]
    fn the_hard_limit_of_open_files_counts() {
        let limits = "Limit Soft Limit Hard Limit Units\nMax open files            1024                 524288               files     \n";
        assert_eq!(descriptors(limits), Some(524_288));
        assert_eq!(descriptors(&limits.replace("524288", "unlimited")), None);
        assert_eq!(descriptors(""), None);
    }

    #[test]
    fn the_least_limit_on_the_way_up_holds() {
        let machine = Some(8_000_000 * 1024);
        assert_eq!(seen(&[MEMINFO]), machine);
        let own = ("/proc/self/cgroup", "0::/a/b\n");
        assert_eq!(seen(&[MEMINFO, own, ("/sys/fs/cgroup/a/b/memory.max", "max\n")]), machine);
        assert_eq!(seen(&[MEMINFO, own, ("/sys/fs/cgroup/a/b/memory.max", "1048576\n")]), Some(1 << 20));
        let above = ("/sys/fs/cgroup/a/memory.max", "4096\n");
        assert_eq!(seen(&[MEMINFO, own, ("/sys/fs/cgroup/a/b/memory.max", "1048576\n"), above]), Some(4096));
        let first = ("/proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/1\n");
        let container = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n");
        assert_eq!(seen(&[MEMINFO, first, container]), Some(512 << 20), "version 1, inside of a container");
        let unlimited = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(seen(&[MEMINFO, first, unlimited]), machine);
        assert_eq!(seen(&[]), None);
    }

    #[test]
    fn this_machine_has_a_core() {
        assert!(Machine::here().cores >= 1);
    }
}

//! The memory of the machine, or of this process's control group.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Half of the memory that this process may have: of its control group, or of the machine, whichever is less.
pub(crate) fn default_total() -> u64 {
    const UNKNOWN: u64 = 4 << 30;
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    });
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = of_groups(&groups, Path::new("/sys/fs/cgroup"));
    machine.into_iter().chain(limit).min().unwrap_or(UNKNOWN) / 2
}

/// The least limit of memory of a process's groups and of those above them.
fn of_groups(groups: &str, root: &Path) -> Option<u64> {
    let mut least = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (base, file): (PathBuf, _) = if controllers.is_empty() {
            (root.to_owned(), "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        let mut dir = base.join(path.trim_start_matches('/'));
        loop {
            let limit =
                fs::read_to_string(dir.join(file)).ok().and_then(|text| text.trim().parse::<u64>().ok());
            least = least.into_iter().chain(limit).min();
            if dir == base || !dir.pop() {
                break;
            }
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let root = tempfile::tempdir().expect("a directory");
        let inner = root.path().join("system/app");
        fs::create_dir_all(&inner).expect("made");
        fs::write(inner.join("memory.max"), "max\n").expect("written");
        assert_eq!(of_groups("0::/system/app\n", root.path()), None);
        fs::write(root.path().join("system/memory.max"), "1048576\n").expect("written");
        assert_eq!(of_groups("0::/system/app\n", root.path()), Some(1 << 20));
        fs::create_dir_all(root.path().join("memory/old")).expect("made");
        fs::write(root.path().join("memory/old/memory.limit_in_bytes"), "4096").expect("written");
        assert_eq!(of_groups("5:cpu,memory:/old\n0::/system/app", root.path()), Some(4096));
        assert!(default_total() > 0);
    }
}

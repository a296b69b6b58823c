//! What a process and its descendants have used, from `/proc`.

use std::fs;

use sas_core::Usage;

/// More processes than this below one instance are not looked at: a sample must stay cheap.
const MAX_PROCESSES: usize = 256;

/// CPU time of the process, of its living descendants and of those it has waited for; resident memory of all that
/// live. `None` when it is gone.
///
/// CPU time of the living is exact; that of descendants that were waited for has the kernel's tick as its unit (10 ms
/// mostly). Resident memory counts pages that several processes
/// share once for each.
pub fn sample(pid: i32) -> Option<Usage> {
    let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    let page = rustix::param::page_size() as u64;
    let (mut cpu_ns, mut pages) = (0u64, 0u64);
    let mut open = vec![pid];
    let mut seen = 0;
    while let Some(pid) = open.pop() {
        let Some(Sampled { own, awaited, resident }) = stat(pid) else {
            if seen == 0 {
                return None;
            }
            continue;
        };
        cpu_ns += cpu_clock(pid).unwrap_or(own * tick_ns) + awaited * tick_ns;
        pages += resident;
        seen += 1;
        if seen >= MAX_PROCESSES {
            break;
        }
        open.extend(children(pid));
    }
    Some(Usage::new(cpu_ns, pages * page))
}

/// The processes that a process has forked and that still live or were not waited for.
pub fn children(pid: i32) -> Vec<i32> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        if let Ok(children) = fs::read_to_string(task.path().join("children")) {
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
    }
    found
}

/// The CPU clock of a process, in nanoseconds.
fn cpu_clock(pid: i32) -> Option<u64> {
    let clock = nix::time::clock_getcpuclockid(nix::unistd::Pid::from_raw(pid)).ok()?;
    let time = nix::time::clock_gettime(clock).ok()?;
    Some(u64::try_from(time.tv_sec()).ok()? * 1_000_000_000 + u64::try_from(time.tv_nsec()).ok()?)
}

#[derive(Debug, PartialEq, Eq)]
struct Sampled {
    /// User and system ticks of its own.
    own: u64,
    /// The same of the children that it has waited for.
    awaited: u64,
    /// Resident pages.
    resident: u64,
}

fn stat(pid: i32) -> Option<Sampled> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(text: &str) -> Option<Sampled> {
    // The name may hold blanks and parentheses; the numbers begin after the last of these.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<i64>().ok().map(|n| u64::try_from(n).unwrap_or(0));
    // Field 3 (state) is the first here: utime 14, stime 15, cutime 16, cstime 17, rss 24.
    Some(Sampled {
        own: number(11)? + number(12)?,
        awaited: number(13)? + number(14)?,
        resident: number(21)?,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let text = "42 (a) b (c)) S 1 42 42 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1 0 99 1000 7 18446744073709551615 0";
        assert_eq!(super::parse(text), Some(super::Sampled { own: 30, awaited: 70, resident: 7 }));
        assert_eq!(super::parse("42 (cut"), None);
    }

    #[test]
    fn this_process_uses_memory() {
        let usage = super::sample(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(usage.memory_bytes > 100_000, "{usage:?}");
        assert_eq!(super::sample(i32::MAX), None);
    }
}

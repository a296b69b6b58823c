//! Finds processes by the empty file that a host gave all its instances as standard input.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use rustix::process::{Pid, Signal, kill_process};

/// Kills every process whose standard input is `marker`, until none is found. Returns how many there were.
pub fn kill(marker: &Path) -> usize {
    // The very file, not what a link leads to.
    let Some(wanted) = fs::symlink_metadata(marker).ok().filter(fs::Metadata::is_file) else { return 0 };
    let wanted = (wanted.dev(), wanted.ino());
    let mut killed = 0;
    // A process may fork while we look; a few rounds catch the children of the killed.
    for _ in 0..4 {
        let mut found = 0;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            // By path, so that the kernel resolves it to the very file that is open.
            let Ok(stdin) = fs::metadata(entry.path().join("fd/0")) else { continue };
            if (stdin.dev(), stdin.ino()) == wanted
                && let Some(pid) = Pid::from_raw(pid)
                && kill_process(pid, Signal::KILL).is_ok()
            {
                found += 1;
            }
        }
        if found == 0 {
            break;
        }
        killed += found;
    }
    killed
}

//! Runs `tests/cases`: what went wrong for users of other platforms, against the example `platform`.
//!
//! A case starts the platform with its own manifests, tries, and says per check what is right and what is wrong.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// No case takes as long, also on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(240);

/// The example that `cargo test` builds beside the tests.
fn platform() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(Path::parent).unwrap().join("examples/platform");
    assert!(path.is_file(), "{} is missing: build it by cargo build --example platform", path.display());
    path
}

fn has(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).is_file())
}

/// Two free ports. They are given up before the platform takes them, so that a start may fail, which it says.
fn ports() -> (u16, u16) {
    let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (one, two) = (free(), free());
    (one.local_addr().unwrap().port(), two.local_addr().unwrap().port())
}

/// A program of an ordinary user, with copies of what it needs where that user may read; `None` where the tests have
/// no root to give up, or nothing to do it with.
#[allow(clippy::print_stdout, reason = "the test's output says what was skipped")]
fn ordinary(platform: &Path, cases: &Path) -> Option<(tempfile::TempDir, Command, PathBuf, PathBuf)> {
    use std::os::unix::fs::PermissionsExt as _;
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !root || !has("setpriv") {
        println!("skipped: to run as another user takes root and setpriv");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    for from in [platform, cases] {
        // By another process: one that this one starts meanwhile would hold the program open for writing.
        let copied = Command::new("cp").arg("-r").arg(from).arg(dir.path()).status().unwrap();
        assert!(copied.success());
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", "sh"]);
    command.env("TMPDIR", dir.path()).env("HOME", dir.path()).current_dir(dir.path());
    let (platform, cases) = (dir.path().join("platform"), dir.path().join("cases"));
    Some((dir, command, platform, cases))
}

/// Runs the case whose directory begins with `number`.
fn run(number: &str, tools: &[&str]) {
    run_by(number, tools, false);
}

#[allow(clippy::disallowed_methods, reason = "it waits for a real program, outside of any runtime")]
#[allow(clippy::print_stdout, reason = "the test's output says what was skipped and what a case found")]
fn run_by(number: &str, tools: &[&str], as_ordinary: bool) {
    let missing: Vec<&str> =
        ["sh", "curl", "python3"].iter().chain(tools).copied().filter(|tool| !has(tool)).collect();
    if !missing.is_empty() {
        println!("skipped: case {number} needs {}", missing.join(", "));
        return;
    }
    // Some count processes of the whole machine: they must not meet themselves.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = (number == "05-").then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner));
    let (mut platform, mut cases) = (platform(), Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases"));
    let (mut command, mut _copies) = (Command::new("sh"), None);
    if as_ordinary {
        let Some((dir, by, its_platform, its_cases)) = ordinary(&platform, &cases) else { return };
        (command, platform, cases, _copies) = (by, its_platform, its_cases, Some(dir));
    }
    let found = std::fs::read_dir(&cases).unwrap().flatten().map(|entry| entry.path());
    let mut found = found.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(number));
    let case = found.next().unwrap_or_else(|| panic!("no case {number} in {}", cases.display()));
    let (port, admin) = ports();
    let output = tempfile::tempfile().unwrap();
    let mut child = command
        .arg(case.join("run.sh"))
        .env("PLATFORM", &platform)
        .env("PORT", port.to_string())
        .env("ADMIN", admin.to_string())
        .env("SAS_ADMIN_TOKEN", "case-token-0123456789abcdef")
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output.try_clone().unwrap())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if began.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut said = String::new();
    let mut output = output;
    std::io::Seek::rewind(&mut output).unwrap();
    std::io::Read::read_to_string(&mut output, &mut said).unwrap();
    println!("{said}");
    match status {
        Some(status) => assert!(status.success() && said.contains("ok "), "case {number}: {status}\n{said}"),
        None => panic!("case {number}: not done after {LIMIT:?}\n{said}"),
    }
}

/// A test per case: its name, number and the tools that it needs beside `sh`, `curl` and `python3`.
macro_rules! cases {
    ($($name:ident $number:literal $([$($tool:literal),*])?;)*) => {
        $(#[test]
        fn $name() {
            run($number, &[$($($tool),*)?]);
        })*

        #[test]
        fn no_process_outlives_its_instance_for_an_ordinary_user_either() {
            run_by("05-", &["node", "bash"], true);
        }

        #[test]
        fn every_case_has_a_test_and_every_test_a_line_in_the_table() {
            let tests = [$(($number, stringify!($name)),)* ("40-", "real_frameworks_start_without_a_command")];
            let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
            let table = std::fs::read_to_string(cases.join("README.md")).unwrap();
            for entry in std::fs::read_dir(&cases).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
                let case = entry.file_name().into_string().unwrap();
                if case == "raw" {
                    continue;
                }
                let test = tests.iter().find(|(number, _)| case.starts_with(number));
                let (_, test) = test.unwrap_or_else(|| panic!("{case} has no test"));
                assert!(table.contains(&case) && table.contains(test), "{case} ({test}) is not in its README's table");
            }
        }
    };
}

cases! {
    an_answer_with_both_lengths_is_framed_by_its_coding "01-";
    two_tenants_of_one_package_share_no_file "02-";
    a_revision_cannot_change_itself "04-";
    no_process_outlives_its_instance "05-" ["node", "bash"];
    an_answer_before_the_upload_ends_reaches_the_client "07-";
    more_than_a_hundred_header_lines_pass "09-";
    node_starts_as_npm_start_does "10-" ["node"];
    archives_made_on_a_mac_are_projects "12-" ["node"];
    a_project_with_its_virtual_environment_deploys "14-";
    home_is_set "15-";
    an_app_on_the_other_loopback_is_found "17-" ["node"];
    why_a_start_failed_reaches_the_client "18-" ["node"];
    a_client_that_closes_its_side_gets_its_answer "20-";
    a_query_with_other_characters_passes "22-";
    a_host_is_known_as_clients_write_it "30-";
    a_source_may_come_before_its_service "32-";
    slow_apps_get_their_uploads "33-";
}

/// Fetches its dependencies from PyPI and npm, as a user's build does.
#[test]
fn real_frameworks_start_without_a_command() {
    if std::env::var_os("SAS_REAL_APPS").is_none() {
        println!("skipped: case 40 fetches packages from PyPI and npm; set SAS_REAL_APPS=1");
        return;
    }
    run("40-", &["node", "npm", "gcc"]);
}

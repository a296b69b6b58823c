//! Runs `tests/cases`: what went wrong for users of other platforms, against the example `platform`.
//!
//! A case starts the platform with its own manifests, tries, and says per check what is right and what is wrong. Most of
//! its time it waits, so that more cases run at once than there are cores: which is what the harness is for. A case that
//! cannot run here is told as ignored with the reason, and fails where `CI` is set.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Trial};

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

/// Why a case cannot run here; `None`: it can.
fn hindrance(tools: &[&str], as_ordinary: bool) -> Option<String> {
    let own = std::fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own));
    if as_ordinary && !own.is_ok_and(|uid| uid == 0) {
        return Some("to run as another user takes root".into());
    }
    let needed = ["sh", "curl", "python3"].into_iter().chain(as_ordinary.then_some("setpriv"));
    let missing: Vec<&str> = needed.chain(tools.iter().copied()).filter(|tool| !has(tool)).collect();
    (!missing.is_empty()).then(|| format!("it needs {}", missing.join(", ")))
}

/// A program of an ordinary user, with copies of what it needs where that user may read.
fn ordinary(platform: &Path, case: &Path) -> (tempfile::TempDir, Command, PathBuf, PathBuf) {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let shared = case.parent().unwrap().join("lib.sh");
    for from in [platform, &shared, case] {
        // By another process: one that this one starts meanwhile would hold the program open for writing.
        let copied = Command::new("cp").arg("-r").arg(from).arg(dir.path()).status().unwrap();
        assert!(copied.success());
    }
    let copy = dir.path().join(case.file_name().unwrap());
    // It counts processes of the whole machine by how long they sleep: beside root's run it has numbers of its own.
    let numbers = "grep -rl 8640 . | xargs sed -i s/8640/8650/g";
    assert!(Command::new("sh").args(["-c", numbers]).current_dir(&copy).status().unwrap().success());
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", "sh"]);
    command.env("TMPDIR", dir.path()).env("HOME", dir.path()).current_dir(dir.path());
    let platform = dir.path().join("platform");
    (dir, command, platform, copy)
}

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases")
}

/// Runs the case whose directory begins with `number`.
#[allow(clippy::disallowed_methods, reason = "it waits for a real program, outside of any runtime")]
fn run(number: &str, as_ordinary: bool) -> Result<(), String> {
    let found = std::fs::read_dir(cases()).unwrap().flatten().map(|entry| entry.path());
    let mut found = found.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(number));
    let mut case = found.next().ok_or_else(|| format!("no case {number} in {}", cases().display()))?;
    let mut platform = platform();
    let (mut command, mut _copies) = (Command::new("sh"), None);
    if as_ordinary {
        let (dir, by, its_platform, its_case) = ordinary(&platform, &case);
        (command, platform, case, _copies) = (by, its_platform, its_case, Some(dir));
    }
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
    match status {
        Some(status) if status.success() && said.contains("ok ") => Ok(()),
        Some(status) => Err(format!("case {number}: {status}\n{said}")),
        None => Err(format!("case {number}: not done after {LIMIT:?}\n{said}")),
    }
}

/// A test per case: its name, number and the tools that it needs beside `sh`, `curl` and `python3`.
const CASES: &[(&str, &str, &[&str])] = &[
    ("an_answer_with_both_lengths_is_framed_by_its_coding", "01-", &[]),
    ("two_tenants_of_one_package_share_no_file", "02-", &[]),
    ("a_revision_cannot_change_itself", "04-", &[]),
    ("no_process_outlives_its_instance", "05-", &["node", "bash"]),
    ("an_answer_before_the_upload_ends_reaches_the_client", "07-", &[]),
    ("more_than_a_hundred_header_lines_pass", "09-", &[]),
    ("node_starts_as_npm_start_does", "10-", &["node"]),
    ("archives_made_on_a_mac_are_projects", "12-", &["node"]),
    ("a_project_with_its_virtual_environment_deploys", "14-", &[]),
    ("home_is_set", "15-", &[]),
    ("an_app_on_the_other_loopback_is_found", "17-", &["node"]),
    ("why_a_start_failed_reaches_the_client", "18-", &["node"]),
    ("a_client_that_closes_its_side_gets_its_answer", "20-", &[]),
    ("a_query_with_other_characters_passes", "22-", &[]),
    ("a_host_is_known_as_clients_write_it", "30-", &[]),
    ("a_source_may_come_before_its_service", "32-", &[]),
    (SLOW, "33-", &[]),
    (FRAMEWORKS, "40-", &["node", "npm", "gcc"]),
];

/// Waits for longer than the platform waits for a client's body, which is 30 s.
const SLOW: &str = "slow_apps_get_their_uploads";

/// Fetches its dependencies from PyPI and npm, as a user's build does.
const FRAMEWORKS: &str = "real_frameworks_start_without_a_command";

fn every_case_has_a_test_and_every_test_a_line_in_the_table() -> Result<(), String> {
    let table = std::fs::read_to_string(cases().join("README.md")).map_err(|error| error.to_string())?;
    for entry in std::fs::read_dir(cases()).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        let case = entry.file_name().into_string().unwrap();
        if case == "raw" {
            continue;
        }
        let test = CASES.iter().find(|(_, number, _)| case.starts_with(number));
        let (test, ..) = test.ok_or_else(|| format!("{case} has no test"))?;
        if !table.contains(&case) || !table.contains(test) {
            return Err(format!("{case} ({test}) is not in its README's table"));
        }
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "the test's output says what was skipped")]
fn trial(name: &str, number: &'static str, tools: &[&str], as_ordinary: bool) -> Trial {
    let real = std::env::var_os("SAS_REAL_APPS").is_some();
    let asked = (name == FRAMEWORKS && !real)
        .then(|| "set SAS_REAL_APPS=1: it fetches packages from PyPI and npm".into());
    let hindrance = asked.clone().or_else(|| hindrance(tools, as_ordinary));
    let Some(why) = hindrance else { return Trial::test(name, move || Ok(run(number, as_ordinary)?)) };
    if asked.is_none() && std::env::var_os("CI").is_some() {
        return Trial::test(name, move || Err(why.into()));
    }
    println!("skipped: {name}: {why}");
    Trial::test(name, || Ok(())).with_ignored_flag(true)
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(8);
    let mut trials: Vec<Trial> =
        CASES.iter().map(|(name, number, tools)| trial(name, number, tools, false)).collect();
    let ordinary = "no_process_outlives_its_instance_for_an_ordinary_user_either";
    // The longest first.
    trials.insert(0, trial(ordinary, "05-", &["node", "bash"], true));
    trials.sort_by_key(|trial| !(trial.name() == SLOW || trial.name().starts_with("no_process")));
    trials.push(Trial::test("every_case_has_a_test_and_every_test_a_line_in_the_table", || {
        Ok(every_case_has_a_test_and_every_test_a_line_in_the_table()?)
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

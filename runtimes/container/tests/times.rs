//! Times, printed: pulls of 1 and 100 MB; from a start to the first answer, by each program that runs containers and beside that
//! program alone, `podman run` and `ctr run`; a hundred at once; and what an idle container takes of memory. Only with
//! `SAS_TIMES=1`: `SAS_TIMES=1 cargo test --release -p sas-runtime-container --test times -- --nocapture`.

#![allow(clippy::print_stdout, reason = "it prints what it measures")]

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use sas_core::{RevisionSpec, Runtime as _, Source, TenantKey};
use sas_runtime_container::{ContainerRuntime, ImageSettings, write_image};
use support::{Workplace, get, prepare, start_deployed};
use tokio::time::Instant;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// How often each is started.
const ROUNDS: usize = 20;

/// The first answer of whoever listens at a port of loopback, asked for each half millisecond.
async fn first_answer(port: u16) {
    loop {
        let answered = std::net::TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
            stream.read(&mut [0; 16])
        });
        if answered.is_ok_and(|read| read > 0) {
            return;
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// From the call of a program that runs one container, in the host's network, to the answer; then `end` ends it.
async fn alone(name: &str, call: impl Fn(usize, u16) -> Command, end: impl Fn(usize) -> Command) {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let port = free_port();
        let began = Instant::now();
        let mut child: Child = quiet(&mut call(round, port)).spawn().unwrap();
        if tokio::time::timeout(Duration::from_secs(30), first_answer(port)).await.is_err() {
            println!("{name}: no answer within 30 s");
            let _ = child.kill();
            let _ = child.wait();
            let _ = quiet(&mut end(round)).status();
            return;
        }
        times.push(began.elapsed());
        let _ = quiet(&mut end(round)).status();
        let _ = child.wait();
    }
    println!("start to first answer by {name} alone: median of {ROUNDS} {:.1?}", median(times));
}

/// A bundle of the place's root file system, as `crun spec` writes one, in the host's network.
fn bundle(place: &Workplace, program: &str) -> PathBuf {
    let dir = place.dir.path().join(format!("bundle-{program}"));
    fs::create_dir_all(&dir).unwrap();
    assert!(Command::new(program).arg("spec").current_dir(&dir).status().unwrap().success());
    let text = fs::read_to_string(dir.join("config.json")).unwrap();
    let mut spec: serde_json::Value = serde_json::from_str(&text).unwrap();
    spec["process"]["terminal"] = false.into();
    spec["root"]["path"] = place.dir.path().join("root").display().to_string().into();
    spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|space| space["type"] != "network");
    // Version 1 and 2 side by side is what crun refuses to look at.
    spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|space| space["type"] != "cgroup");
    spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| mount["type"] != "cgroup" && mount["type"] != "sysfs");
    fs::write(dir.join("config.json"), spec.to_string()).unwrap();
    dir
}

async fn program_alone(place: &Workplace, program: &str) {
    let (dir, state) = (bundle(place, program), place.dir.path().join(format!("state-{program}")));
    // Version 2 of control groups beside version 1 is what crun refuses to look at.
    let hides = program == "crun" && Path::new("/sys/fs/cgroup/unified").exists();
    let base = || {
        let mut command = match hides {
            true => {
                let mut command = Command::new("unshare");
                let script = "umount -l /sys/fs/cgroup/unified; exec crun \"$@\"";
                command.args(["--mount", "sh", "-c", script, "crun"]);
                command
            }
            false => Command::new(program),
        };
        command.arg("--root").arg(&state);
        if program == "crun" {
            command.arg("--cgroup-manager=disabled");
        }
        command
    };
    let call = |round: usize, port: u16| {
        let text = fs::read_to_string(dir.join("config.json")).unwrap();
        let mut spec: serde_json::Value = serde_json::from_str(&text).unwrap();
        spec["process"]["args"] = serde_json::json!(["/bin/app", format!("port={port}")]);
        fs::write(dir.join("config.json"), spec.to_string()).unwrap();
        let mut command = base();
        command.arg("run").arg("--bundle").arg(&dir).arg(format!("alone{round}"));
        command
    };
    let end = |round: usize| {
        let mut command = base();
        command.args(["kill", &format!("alone{round}"), "KILL"]);
        command
    };
    alone(&format!("{program} run"), call, end).await;
}

async fn podman(place: &Workplace) {
    let store = place.dir.path().join("podman");
    let base = || {
        // It waits without end where something is not to its liking.
        let mut command = Command::new("timeout");
        command.args(["20", "podman"]);
        command.arg("--root").arg(store.join("root")).arg("--runroot").arg(store.join("run"));
        command.args(["--cgroup-manager=cgroupfs", "--runtime=runc"]);
        command
    };
    // Its names of layouts are in lower case.
    let lower = std::env::temp_dir().join(format!("sas-times-{}", std::process::id()));
    std::os::unix::fs::symlink(&place.layout, &lower).unwrap();
    let image = format!("oci:{}:app", lower.display());
    let pulled = base().args(["pull", "--quiet", &image]).output();
    let _ = fs::remove_file(&lower);
    let id = match pulled {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Ok(output) => return println!("podman: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => return println!("podman: {error}"),
    };
    let call = |round: usize, port: u16| {
        let mut command = base();
        command.args(["run", "--rm", "--network=host", "--log-driver=none", "--ulimit=host"]);
        command.args(["--name", &format!("alone{round}"), &id, &format!("port={port}")]);
        command
    };
    let end = |round: usize| {
        let mut command = base();
        command.args(["rm", "--force", "--time=0", &format!("alone{round}")]);
        command
    };
    alone("podman run", call, end).await;
}

/// `ctr` with a containerd of its own.
async fn ctr(place: &Workplace) {
    let dir = place.dir.path().join("containerd");
    fs::create_dir_all(&dir).unwrap();
    let socket = dir.join("socket");
    let config = dir.join("config.toml");
    fs::write(&config, "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n").unwrap();
    let mut daemon = Command::new("containerd");
    daemon
        .arg("--config")
        .arg(&config)
        .arg("--root")
        .arg(dir.join("root"))
        .arg("--state")
        .arg(dir.join("state"));
    let Ok(mut daemon) = quiet(daemon.arg("--address").arg(&socket)).spawn() else {
        return println!("ctr: no containerd");
    };
    let base = || {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&socket);
        command
    };
    for _ in 0..100 {
        if quiet(base().arg("version")).status().is_ok_and(|status| status.success()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let archive = dir.join("app.tar");
    let copied = Command::new("skopeo")
        .args(["copy", "--quiet"])
        .arg(format!("oci:{}:app", place.layout.display()))
        .arg(format!("oci-archive:{}:local/app:1", archive.display()))
        .status();
    let imported = base().args(["image", "import"]).arg(&archive).output();
    match (copied, imported) {
        (Ok(copied), Ok(output)) if copied.success() && output.status.success() => {
            let call = |round: usize, port: u16| {
                let mut command = base();
                command.args(["run", "--rm", "--net-host", "local/app:1", &format!("alone{round}")]);
                command.args(["/bin/app", &format!("port={port}")]);
                command
            };
            let end = |round: usize| {
                let mut command = base();
                command.args(["task", "kill", "--signal=KILL", &format!("alone{round}")]);
                command
            };
            alone("ctr run", call, end).await;
        }
        (copied, imported) => println!("ctr: {copied:?} {imported:?}"),
    }
    let _ = daemon.kill();
    let _ = daemon.wait();
}

/// Proportional memory of a process in bytes.
fn memory(pid: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// The memory of this process, of the programs of a store that run containers, and of the containers' own programs.
fn memories(store: &Path) -> (u64, u64, u64) {
    let (mut beside, mut own) = (0, 0);
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().display().to_string();
        let stdin = fs::read_link(entry.path().join("fd/0")).unwrap_or_default();
        if pid.parse::<u32>().is_err() || !stdin.starts_with(store) {
            continue;
        }
        let program = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        match program.trim() {
            "app" => own += memory(&pid).unwrap_or_default(),
            _ => beside += memory(&pid).unwrap_or_default(),
        }
    }
    (memory("self").unwrap_or_default(), beside, own)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times() {
    if std::env::var_os("SAS_TIMES").is_none() {
        println!("skipped: set SAS_TIMES=1");
        return;
    }
    support::needs_containers!();
    let place = Workplace::new();
    if let Some(registry) = support::Registry::start().await {
        for megabytes in [1usize, 100] {
            let files = place.dir.path().join(format!("files-{megabytes}"));
            fs::create_dir_all(&files).unwrap();
            // Bytes that do not pack.
            let mut state = 0x9e37_79b9_7f4a_7c15u64;
            let bytes: Vec<u8> = (0..megabytes << 20)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                })
                .collect();
            fs::write(files.join("data"), bytes).unwrap();
            let tag = format!("m{megabytes}");
            write_image(&files, &place.layout, &tag, &ImageSettings::new(["/app/data"])).unwrap();
            registry.push(&place.layout, &tag, &format!("size/{tag}:1")).await;
            let mut config = place.config();
            config.store = place.dir.path().join(format!("store-{megabytes}"));
            config.registries.plain_http.push(registry.address.to_string());
            let runtime = ContainerRuntime::new(config).unwrap();
            let spec =
                RevisionSpec::new("container", Source::Image(format!("{}/size/{tag}:1", registry.address)));
            let began = Instant::now();
            let pinned = runtime.pin(&spec, TenantKey(1)).await.unwrap();
            let resolved = began.elapsed();
            runtime.prepare(&pinned).await.unwrap();
            let pulled = began.elapsed();
            let again = Instant::now();
            runtime.prepare(&pinned).await.unwrap();
            println!(
                "pull of {megabytes} MB: tag {resolved:.1?}, whole {pulled:.1?}, again {:.1?}",
                again.elapsed()
            );
        }
    }
    for program in ["crun", "runc"] {
        let mut config = place.config();
        config.store = place.dir.path().join(format!("store-{program}"));
        config.programs = vec![program.to_owned()];
        let Ok(runtime) = ContainerRuntime::new(config).map(Arc::new) else { continue };
        let deployed = prepare(&runtime, place.app(&[])).await.unwrap();
        let mut times = Vec::new();
        for id in 0..ROUNDS as u64 {
            let began = Instant::now();
            let started = start_deployed(&runtime, &deployed, id).await.unwrap();
            get(&*started.instance, "/").await;
            times.push(began.elapsed());
            started.instance.stop(Duration::ZERO).await.unwrap();
        }
        println!("start to first answer by {}: median of {ROUNDS} {:.1?}", runtime.program(), median(times));
        program_alone(&place, program).await;
        let store = fs::canonicalize(place.dir.path().join(format!("store-{program}"))).unwrap();
        let before = memories(&store);
        let began = Instant::now();
        // As the pool's gate lets them through: one more than there are cores.
        let gate =
            Arc::new(tokio::sync::Semaphore::new(1 + std::thread::available_parallelism().unwrap().get()));
        let many = (100..200).map(|id| {
            let (runtime, deployed, gate) = (Arc::clone(&runtime), Arc::clone(&deployed), Arc::clone(&gate));
            tokio::spawn(async move {
                let _turn = gate.acquire().await.unwrap();
                start_deployed(&runtime, &deployed, id).await.unwrap()
            })
        });
        let mut all = Vec::new();
        for one in many.collect::<Vec<_>>() {
            all.push(one.await.unwrap());
        }
        println!("  100 asked for at once, through a gate: all ready after {:.1?}", began.elapsed());
        let after = memories(&store);
        let each = |before: u64, after: u64| after.saturating_sub(before) / 100 / 1024;
        println!(
            "  an idle container takes {} KiB of the host and {} KiB of {program}, beside {} KiB of its own program",
            each(before.0, after.0),
            each(before.1, after.1),
            each(before.2, after.2)
        );
        for one in all {
            one.instance.stop(Duration::ZERO).await.unwrap();
        }
        runtime.quiesce().await;
    }
    podman(&place).await;
    ctr(&place).await;
}

//! Knative's runtime contract on real containers. Each test is named after a sentence of it
//! (knative/specs, `specs/serving/runtime-contract.md`, Apache-2.0). Needs root and crun or runc.

mod support;

use std::time::Duration;

use sas_core::{
    Companion, ContainerSpec, EnvFrom, EnvValue, ErrorKind, Mount, Probe, ProbeAction, Runtime as _, Volume,
    VolumeSource,
};
use support::{Workplace, get, get_with, start, until};

fn text(logs: &sas_testkit::fake::RecordingLogs) -> String {
    logs.lines().iter().map(|line| format!("{}\n", String::from_utf8_lossy(&line.line))).collect()
}

fn with(spec: &mut sas_core::RevisionSpec, fill: impl FnOnce(&mut ContainerSpec)) {
    fill(spec.container.get_or_insert_default());
}

#[tokio::test]
async fn the_selected_port_is_in_port_and_the_revision_configuration_and_service_are_named() {
    support::needs_containers!();
    let place = Workplace::new();
    let runtime = place.runtime();
    let mut spec = place.app(&["$(FROM_IMAGE)", "$$(KEPT)"]);
    spec.port = Some(9191);
    spec.env.insert("FROM_MANIFEST".into(), EnvValue::Literal("a b".into()));
    let started = start(&runtime, spec).await.unwrap();
    let env = get(&*started.instance, "/env").await;
    for line in [
        "PORT=9191",
        "K_SERVICE=hello",
        "K_CONFIGURATION=hello",
        "K_REVISION=hello-00001",
        "FROM_IMAGE=yes",
        "FROM_MANIFEST=a b",
        "HOME=/root",
    ] {
        assert!(env.lines().any(|one| one == line), "{line} in\n{env}");
    }
    assert_eq!(get(&*started.instance, "/args").await, "/bin/app\nyes\n$(KEPT)");
    // Several instances listen on one port: none can take it from another.
    let second = start(&runtime, {
        let mut spec = place.app(&[]);
        spec.port = Some(9191);
        spec
    });
    assert_eq!(get(&*second.await.unwrap().instance, "/cwd").await, "/");
}

#[tokio::test]
async fn inbound_request_headers_are_the_same_as_those_of_the_incoming_request() {
    support::needs_containers!();
    let place = Workplace::new();
    let started = start(&place.runtime(), place.app(&[])).await.unwrap();
    let (_, head) = get_with(&*started.instance, "/head", &[("x-own", "kept"), ("forwarded", "for=1.2.3.4")])
        .await
        .unwrap();
    assert!(head.contains("x-own: kept") && head.contains("forwarded: for=1.2.3.4"), "{head}");
}

#[tokio::test]
async fn a_read_from_stdin_results_in_eof_and_output_is_collected() {
    support::needs_containers!();
    let place = Workplace::new();
    let started = start(&place.runtime(), place.app(&[])).await.unwrap();
    assert_eq!(get(&*started.instance, "/stdin").await, "done: 0");
    get(&*started.instance, "/say").await;
    let logs = &started.logs;
    until("both streams are collected", || {
        let text = text(logs);
        text.contains("conformance-output on stderr") && text.contains("conformance-output of /say")
    })
    .await;
}

#[tokio::test]
async fn a_container_is_sent_sigterm_and_after_the_grace_it_is_killed() {
    support::needs_containers!();
    let place = Workplace::new();
    let runtime = place.runtime();
    let polite = start(&runtime, place.app(&[])).await.unwrap();
    polite.instance.stop(Duration::from_secs(10)).await.unwrap();
    until("the exit is told", || !polite.events.exits().is_empty()).await;
    assert_eq!(polite.events.exits()[0].1.code, Some(0));
    until("its last line is collected", || text(&polite.logs).contains("stopped politely")).await;

    let stubborn = start(&runtime, place.app(&["stubborn"])).await.unwrap();
    let began = tokio::time::Instant::now();
    stubborn.instance.stop(Duration::from_millis(300)).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300) && began.elapsed() < Duration::from_secs(8));
    until("the exit is told", || !stubborn.events.exits().is_empty()).await;
    assert_eq!(stubborn.events.exits()[0].1.signal, Some(9));
}

#[tokio::test]
async fn failures_of_the_program_are_in_the_error_and_in_the_logs() {
    support::needs_containers!();
    let place = Workplace::new();
    let error = start(&place.runtime(), place.app(&["exit"])).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Crashed);
    assert!(
        error.message.contains("exited with status 3")
            && error.message.contains("cannot find my configuration"),
        "{error}"
    );
}

#[tokio::test]
async fn tmp_can_be_written_also_where_the_root_is_read_only() {
    support::needs_containers!();
    let place = Workplace::new();
    let runtime = place.runtime();
    let mut spec = place.app(&[]);
    with(&mut spec, |container| container.security.read_only_root_filesystem = Some(true));
    let read_only = start(&runtime, spec).await.unwrap();
    assert_eq!(get(&*read_only.instance, "/write/tmp/file").await, "done: written");
    assert_eq!(get(&*read_only.instance, "/write/var/log/file").await, "done: written");
    assert!(get(&*read_only.instance, "/write/data/file").await.contains("Read-only"));
    let usual = start(&runtime, place.app(&[])).await.unwrap();
    assert_eq!(get(&*usual.instance, "/write/data/file").await, "done: written");
    assert_eq!(get(&*usual.instance, "/write/tmp/file").await, "done: written");
    // What one wrote, no other sees.
    let other = start(&runtime, place.app(&[])).await.unwrap();
    assert_eq!(get(&*other.instance, "/read/data/file").await, "of the image");
}

#[tokio::test]
async fn files_for_name_resolution_are_there() {
    support::needs_containers!();
    let place = Workplace::new();
    let started = start(&place.runtime(), place.app(&[])).await.unwrap();
    let name = get(&*started.instance, "/read/etc/hostname").await;
    assert!(name.starts_with("hello-00001-"), "{name}");
    assert!(get(&*started.instance, "/read/etc/hosts").await.contains(name.trim()));
    let resolv = get(&*started.instance, "/read/etc/resolv.conf").await;
    assert!(
        !resolv.contains("nameserver") && resolv.starts_with('#'),
        "none is reached from there: {resolv}"
    );
}

#[tokio::test]
async fn it_runs_as_the_specified_user_and_group() {
    support::needs_containers!();
    let place = Workplace::new();
    let runtime = place.runtime();
    let mut spec = place.app(&[]);
    with(&mut spec, |container| {
        container.security.run_as_user = Some(1234);
        container.security.run_as_non_root = Some(true);
        container.security.supplemental_groups = vec![77];
    });
    let started = start(&runtime, spec).await.unwrap();
    let id = get(&*started.instance, "/id").await;
    assert!(id.starts_with("uid=1234 gid=1300"), "as in its /etc/passwd: {id}");
    let groups = id.lines().find(|line| line.starts_with("Groups")).unwrap();
    assert!(groups.contains("29") && groups.contains("77"), "{groups}");
    assert!(id.contains("CapEff:\t0000000000000000"), "{id}");
    assert!(get(&*started.instance, "/env").await.contains("HOME=/home/dev"));

    let mut by_name = support::settings();
    by_name.user = "dev".into();
    sas_runtime_container::write_image(
        &place.layout.parent().unwrap().join("root"),
        &place.layout,
        "named",
        &by_name,
    )
    .unwrap();
    let named = start(&runtime, place.image("named", &[])).await.unwrap();
    assert!(get(&*named.instance, "/id").await.starts_with("uid=1234 gid=1300"));
}

#[tokio::test]
async fn where_the_identity_is_not_allowed_the_execution_fails() {
    support::needs_containers!();
    let place = Workplace::new();
    let mut spec = place.app(&[]);
    with(&mut spec, |container| container.security.run_as_non_root = Some(true));
    let error = start(&place.runtime(), spec).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidSpec);
    assert!(error.message.contains("run_as_user"), "{error}");
    let mut config = place.config();
    config.allow_root = false;
    config.store = place.dir.path().join("other");
    let strict = std::sync::Arc::new(sas_runtime_container::ContainerRuntime::new(config).unwrap());
    assert!(start(&strict, place.app(&[])).await.is_err());
    let mut spec = place.app(&[]);
    with(&mut spec, |container| container.security.run_as_user = Some(0));
    assert_eq!(strict.accepts(&spec).unwrap_err().0[0].field, "container.security.run_as_user");
}

#[tokio::test]
async fn the_limits_are_enforced_and_shown_in_the_control_groups_which_are_read_only() {
    support::needs_containers!();
    let place = Workplace::new();
    let runtime = place.runtime();
    if !runtime.capabilities().limits {
        return sas_testkit::kernel_lacks("control groups that this user can make");
    }
    let mut spec = place.app(&[]);
    spec.resources.memory_limit_bytes = Some(64 << 20);
    spec.resources.cpu_limit_millis = Some(500);
    let started = start(&runtime, spec).await.unwrap();
    let read = async |path: &str| get(&*started.instance, &format!("/read{path}")).await;
    let v2 = read("/sys/fs/cgroup/memory.max").await;
    if v2.starts_with("refused") {
        assert_eq!(read("/sys/fs/cgroup/memory/memory.limit_in_bytes").await.trim(), (64 << 20).to_string());
        assert_eq!(read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").await.trim(), "50000");
        assert!(read("/sys/fs/cgroup/cpu/cpu.shares").await.trim().parse::<u64>().is_ok());
        let written = get(&*started.instance, "/write/sys/fs/cgroup/memory/memory.limit_in_bytes").await;
        assert!(written.contains("Read-only"), "{written}");
    } else {
        assert_eq!(v2.trim(), (64 << 20).to_string());
        assert_eq!(read("/sys/fs/cgroup/cpu.max").await.trim(), "50000 100000");
        assert!(get(&*started.instance, "/write/sys/fs/cgroup/memory.max").await.contains("Read-only"));
    }
    assert!(get_with(&*started.instance, "/grow/200", &[]).await.is_err(), "it has no 200 MiB");
    until("the exit is told", || !started.events.exits().is_empty()).await;
    assert!(started.events.exits()[0].1.out_of_memory, "{:?}", started.events.exits());
}

#[tokio::test]
async fn secrets_and_configuration_maps_are_mounted_read_only_and_empty_directories_are_not() {
    support::needs_containers!();
    let place = Workplace::new();
    let mut spec = place.app(&[]);
    with(&mut spec, |container| {
        let secret = VolumeSource::Secret {
            name: "db".into(),
            items: vec![("PASSWORD".into(), "a/pw".into())],
            mode: Some(0o400),
            optional: false,
        };
        let map =
            VolumeSource::ConfigMap { name: "app".into(), items: Vec::new(), mode: None, optional: false };
        let gone =
            VolumeSource::Secret { name: "gone".into(), items: Vec::new(), mode: None, optional: true };
        container.volumes = vec![
            Volume::new("secret", secret.clone()),
            Volume::new("both", VolumeSource::Projected(vec![secret, map, gone])),
            Volume::new("empty", VolumeSource::EmptyDir { size_limit_bytes: Some(1 << 20), memory: false }),
        ];
        let mut part = Mount::new("empty", "/part");
        part.sub_path = Some("deep/er".into());
        container.mounts = vec![
            Mount::new("secret", "/etc/secret"),
            Mount::new("both", "/both"),
            Mount::new("empty", "/scratch"),
            part,
        ];
        let mut from = EnvFrom::new("configmap/app");
        from.prefix = "APP_".into();
        container.env_from = vec![from];
    });
    let started = start(&place.runtime(), spec).await.unwrap();
    let instance = &*started.instance;
    assert_eq!(get(instance, "/read/etc/secret/a/pw").await, "hidden");
    assert_eq!(get(instance, "/stat/etc/secret/a/pw").await, "100400 0 0 6");
    assert!(get(instance, "/write/etc/secret/new").await.contains("Read-only"));
    assert_eq!(get(instance, "/list/both").await, "a\ncolor\ndeep.conf");
    assert_eq!(get(instance, "/write/scratch/file").await, "done: written");
    assert_eq!(get(instance, "/write/part/file").await, "done: written");
    assert_eq!(get(instance, "/read/scratch/deep/er/file").await, "written");
    assert!(get(instance, "/env").await.contains("APP_color=blue"));
}

/// A configuration map that changes when it is told to.
#[derive(Debug, Default)]
struct Changing(std::sync::Mutex<std::collections::BTreeMap<String, bytes::Bytes>>);

impl Changing {
    fn set(&self, pairs: &[(&str, &str)]) {
        *self.0.lock().unwrap() = pairs
            .iter()
            .map(|(key, text)| ((*key).to_owned(), bytes::Bytes::from((*text).to_owned())))
            .collect();
    }
}

#[async_trait::async_trait]
impl sas_core::SecretSource for Changing {
    async fn resolve(&self, reference: &str, _: sas_core::TenantKey) -> sas_core::Result<bytes::Bytes> {
        Err(sas_core::Error::new(ErrorKind::NotFound, "resolve", reference.to_owned()))
    }

    async fn entries(
        &self,
        _: &str,
        _: sas_core::TenantKey,
    ) -> sas_core::Result<std::collections::BTreeMap<String, bytes::Bytes>> {
        let all = self.0.lock().unwrap().clone();
        match all.is_empty() {
            true => Err(sas_core::Error::new(ErrorKind::Unavailable, "resolve", "the vault is away")),
            false => Ok(all),
        }
    }
}

#[tokio::test]
async fn mounted_secrets_and_configuration_maps_follow_what_they_are_of_while_the_instance_runs() {
    support::needs_containers!();
    let place = Workplace::new();
    let source = std::sync::Arc::new(Changing::default());
    source.set(&[("color", "blue"), ("size", "one")]);
    let mut config = place.config();
    config.secrets = Some(std::sync::Arc::clone(&source) as _);
    config.refresh = Some(Duration::from_millis(50));
    let runtime = std::sync::Arc::new(sas_runtime_container::ContainerRuntime::new(config).unwrap());
    let mut spec = place.app(&[]);
    with(&mut spec, |container| {
        let map =
            VolumeSource::ConfigMap { name: "app".into(), items: Vec::new(), mode: None, optional: false };
        container.volumes = vec![Volume::new("map", map)];
        container.mounts = vec![Mount::new("map", "/map")];
    });
    let started = start(&runtime, spec).await.unwrap();
    let until_it_is = async |path: &str, wanted: &str| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let now = get(&*started.instance, path).await;
            if now == wanted {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{path}: {now}, not {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(get(&*started.instance, "/read/map/color").await, "blue");
    source.set(&[("color", "green"), ("shape", "round")]);
    until_it_is("/read/map/color", "green").await;
    until_it_is("/list/map", "color\nshape").await;
    assert!(get(&*started.instance, "/write/map/color").await.contains("Read-only"));
    // While nobody can be asked, what is there stays.
    source.set(&[]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(get(&*started.instance, "/read/map/color").await, "green");
    source.set(&[("color", "red")]);
    until_it_is("/list/map", "color").await;
    assert_eq!(get(&*started.instance, "/read/map/color").await, "red");
}

#[tokio::test]
async fn init_containers_end_before_and_sidecars_run_beside_in_one_network_with_the_same_volumes() {
    support::needs_containers!();
    let place = Workplace::new();
    let runtime = place.runtime();
    let image = match place.app(&[]).source {
        sas_core::Source::Image(name) => name,
        other => panic!("{other}"),
    };
    let volume = Volume::new("shared", VolumeSource::EmptyDir { size_limit_bytes: None, memory: false });
    let mut init = Companion::new("first", &image);
    init.args = ["once", "write", "/shared/made", "by the first"].map(str::to_owned).to_vec();
    init.mounts = vec![Mount::new("shared", "/shared")];
    let mut side = Companion::new("side", &image);
    side.args = vec!["port=9999".into()];
    side.mounts = vec![Mount::new("shared", "/its")];
    let mut readiness =
        Probe::new(ProbeAction::Http { path: "/".into(), port: Some(9999), headers: Vec::new() });
    readiness.timeout = Duration::from_secs(2);
    side.readiness = Some(readiness);
    let mut spec = place.app(&[]);
    with(&mut spec, |container| {
        container.volumes = vec![volume];
        container.mounts = vec![Mount::new("shared", "/shared")];
        container.init = vec![init.clone()];
        container.sidecars = vec![side];
    });
    let started = start(&runtime, spec.clone()).await.unwrap();
    assert_eq!(get(&*started.instance, "/read/shared/made").await, "by the first");
    assert_eq!(get(&*started.instance, "/connect/127.0.0.1:9999").await, "done: connected");
    started.instance.stop(Duration::from_secs(5)).await.unwrap();
    runtime.quiesce().await;
    assert_eq!(runtime.containers(), 0);

    init.args = ["once", "fail"].map(str::to_owned).to_vec();
    with(&mut spec, |container| container.init = vec![init]);
    let error = start(&runtime, spec).await.map(|_| ()).unwrap_err();
    assert!(error.message.contains("init container \"first\" exited with status 4"), "{error}");
    assert!(error.message.contains("the schema is too old"), "{error}");
}

#[tokio::test]
async fn probes_ask_over_http_over_tcp_and_by_commands_and_startup_comes_before_readiness() {
    support::needs_containers!();
    let place = Workplace::new();
    let runtime = place.runtime();
    let http =
        |path: &str| Probe::new(ProbeAction::Http { path: path.into(), port: None, headers: Vec::new() });
    let exec = |words: &[&str]| {
        Probe::new(ProbeAction::Exec { command: words.iter().map(|word| (*word).to_owned()).collect() })
    };
    for (startup, readiness) in [
        (None, http("/ok")),
        (Some(exec(&["/bin/app", "once", "write", "/tmp/asked", "yes"])), http("/ok")),
        (
            Some(Probe::new(ProbeAction::Tcp { port: None })),
            exec(&["/bin/app", "once", "write", "/tmp/asked", "yes"]),
        ),
    ] {
        let asks = format!("{startup:?} {readiness:?}").contains("Exec");
        let mut spec = place.app(&[]);
        (spec.startup, spec.readiness) = (startup, Some(readiness));
        let started = start(&runtime, spec).await.unwrap();
        if asks {
            assert_eq!(get(&*started.instance, "/read/tmp/asked").await, "yes");
        }
        let ran = started.instance.exec(&["/bin/app".into(), "exit".into()]).await.unwrap();
        assert_eq!(ran.code, Some(3));
        assert!(String::from_utf8_lossy(&ran.output).contains("cannot find my configuration"));
        let none = started.instance.exec(&["/bin/nothing".into()]).await.unwrap_err();
        assert_eq!(none.kind, ErrorKind::NotFound, "{none}");
    }
    let mut spec = place.app(&[]);
    spec.timeouts.start = Duration::from_secs(5);
    spec.readiness = Some(http("/fail"));
    let error = start(&runtime, spec).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!(error.message.contains("503"), "{error}");
}

#[tokio::test]
async fn the_working_directory_and_the_command_are_the_images_unless_said() {
    support::needs_containers!();
    let place = Workplace::new();
    let runtime = place.runtime();
    let mut spec = place.app(&["x"]);
    spec.command = vec!["/bin/app".into(), "own".into()];
    with(&mut spec, |container| container.working_dir = Some("/data".into()));
    let started = start(&runtime, spec).await.unwrap();
    assert_eq!(get(&*started.instance, "/args").await, "/bin/app\nown\nx");
    assert_eq!(get(&*started.instance, "/cwd").await, "/data");
}

#[tokio::test]
async fn no_container_gets_out() {
    support::needs_containers!();
    let place = Workplace::new();
    let runtime = place.runtime();
    let one = start(&runtime, place.app(&[])).await.unwrap();
    let mut strong = place.app(&[]);
    with(&mut strong, |container| container.security.drop_capabilities = vec!["ALL".into()]);
    let other = start(&runtime, strong).await.unwrap();
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // What they try to read is there, for the host.
    let file = place.dir.path().join("root/data/file");
    assert!(file.is_absolute() && file.is_file() && place.store().join("layers").is_dir());
    let port = host.local_addr().unwrap().port();
    for started in [&one, &other] {
        let instance = &*started.instance;
        for path in [
            format!("/connect/127.0.0.1:{port}"),
            "/connect/1.1.1.1:53".to_owned(),
            "/mount".to_owned(),
            "/unshare".to_owned(),
            "/mknod/dev/sda".to_owned(),
            "/mknod/tmp/sda".to_owned(),
            "/write/proc/sys/kernel/core_pattern".to_owned(),
            "/write/proc/sysrq-trigger".to_owned(),
            "/write/sys/kernel/uevent_helper".to_owned(),
            "/read/proc/kcore".to_owned(),
            format!("/read{}", file.display()),
            format!("/read/proc/1/root{}", file.display()),
            format!("/list{}", place.store().display()),
        ] {
            let answer = get(instance, &path).await;
            assert!(answer.starts_with("refused") || answer.is_empty(), "{path}: {answer}");
        }
        // It is the first process of its own, and sees no other instance's.
        assert_eq!(get(instance, "/pid").await, "1");
        let seen = get(instance, "/list/proc").await;
        assert_eq!(seen.lines().filter(|name| name.parse::<u32>().is_ok()).count(), 1, "{seen}");
        let id = get(instance, "/id").await;
        assert!(id.contains("NoNewPrivs:\t1") && id.contains("Seccomp:\t2"), "{id}");
        let devices = get(instance, "/list/dev").await;
        assert!(
            !devices.contains("sda") && !devices.contains("vda") && !devices.contains("kmsg"),
            "{devices}"
        );
        // What it writes is bounded, and so is how many it can be.
        let filled: u64 = get(instance, "/fill").await.parse().unwrap();
        assert!(filled <= 520, "{filled} MiB");
    }
}

#[tokio::test]
async fn a_fork_bomb_stays_within_its_limit() {
    support::needs_containers!();
    let place = Workplace::new();
    let mut config = place.config();
    config.processes = 64;
    let runtime = std::sync::Arc::new(sas_runtime_container::ContainerRuntime::new(config).unwrap());
    if !runtime.capabilities().limits {
        return sas_testkit::kernel_lacks("control groups that this user can make");
    }
    let started = start(&runtime, place.app(&[])).await.unwrap();
    let made: u32 = get(&*started.instance, "/fork/1000").await.parse().unwrap();
    assert!((1..64).contains(&made), "{made} forks");
    started.instance.stop(Duration::ZERO).await.unwrap();
    runtime.quiesce().await;
    let store = place.store();
    until("nothing is left", || support::census(&store).is_empty()).await;
}

#[tokio::test]
async fn in_the_hosts_network_each_instance_has_a_port_of_its_own() {
    support::needs_containers!();
    let place = Workplace::new();
    let mut config = place.config();
    config.network = sas_runtime_container::Network::Host;
    let error = sas_runtime_container::ContainerRuntime::new(config.clone()).unwrap_err();
    assert!(error.message.contains("closed_ports") && error.message.contains("empty list"), "{error}");
    config.closed_ports = Some(Vec::new());
    let runtime = std::sync::Arc::new(sas_runtime_container::ContainerRuntime::new(config).unwrap());
    let one = start(&runtime, place.app(&[])).await.unwrap();
    let two = start(&runtime, place.app(&[])).await.unwrap();
    let port = |started: &support::Started| match started.instance.endpoint() {
        Some(sas_core::Endpoint::Tcp(address)) => address.port(),
        other => panic!("{other:?}"),
    };
    assert_ne!(port(&one), port(&two));
    let env = get(&*one.instance, "/env").await;
    assert!(env.contains(&format!("PORT={}", port(&one))), "{env}");
    // It asks the host's name servers.
    assert_eq!(
        get(&*one.instance, "/read/etc/resolv.conf").await,
        std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
    );
    // A program that listens elsewhere is not ready, and nobody else's answer is taken for its own.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut taken = place.app(&["deaf"]);
    taken.port = Some(listener.local_addr().unwrap().port());
    assert!(start(&runtime, taken).await.is_err());
}

#[tokio::test]
async fn in_the_hosts_network_closed_ports_are_reached_by_no_name_of_tcp_and_nobody_listens_in() {
    support::needs_containers!();
    let place = Workplace::new();
    let (admin, open) = (
        std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
        std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
    );
    let (closed, other) = (admin.local_addr().unwrap().port(), open.local_addr().unwrap().port());
    let mut config = place.config();
    config.network = sas_runtime_container::Network::Host;
    config.closed_ports = Some(vec![closed]);
    let runtime = match sas_runtime_container::ContainerRuntime::new(config) {
        Ok(runtime) => std::sync::Arc::new(runtime),
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
            return sas_testkit::skip(&error.to_string());
        }
    };
    let mut spec = place.app(&[]);
    with(&mut spec, |container| container.security.allow_privilege_escalation = Some(true));
    let started = start(&runtime, spec).await.unwrap();
    let instance = &*started.instance;
    assert_eq!(get(instance, &format!("/connect/127.0.0.1:{other}")).await, "done: connected");
    for path in [
        format!("/connect/127.0.0.1:{closed}"),
        format!("/mptcp/{closed}"),
        format!("/fastopen/{closed}"),
        format!("/listen/{closed}"),
        "/packets".to_owned(),
    ] {
        let answer = get(instance, &path).await;
        assert!(answer.starts_with("refused"), "{path}: {answer}");
    }
    assert!(get(instance, &format!("/fastopen/{other}")).await.starts_with("refused"), "no fast open at all");
    assert_eq!(get(instance, "/udp").await, "done: sent");
    // A command that is run in it is held to it as well.
    for (port, code) in [(closed, 101), (other, 0)] {
        let command = ["/bin/app", "once", "connect", &port.to_string()].map(str::to_owned);
        let ran = instance.exec(&command).await.unwrap();
        assert_eq!(ran.code, Some(code), "{}", String::from_utf8_lossy(&ran.output));
    }
    // Nor is it had by asking the host.
    let mut spec = place.app(&[]);
    spec.port = Some(closed);
    spec.liveness = Some(Probe::new(ProbeAction::Tcp { port: Some(closed) }));
    let errors = runtime.accepts(&spec).unwrap_err().0;
    assert_eq!(errors.iter().map(|error| &*error.field).collect::<Vec<_>>(), ["port", "liveness.port"]);
}

#[tokio::test]
async fn a_container_without_a_limit_has_the_hosts_ceiling_of_memory_and_its_end_says_so() {
    support::needs_containers!();
    let place = Workplace::new();
    let mut config = place.config();
    config.instance_memory = Some(48 << 20);
    let runtime = std::sync::Arc::new(sas_runtime_container::ContainerRuntime::new(config).unwrap());
    if !runtime.capabilities().limits {
        return sas_testkit::kernel_lacks("control groups that this user can make");
    }
    let started = start(&runtime, place.app(&[])).await.unwrap();
    assert!(get_with(&*started.instance, "/grow/200", &[]).await.is_err(), "it has no 200 MiB");
    until("the exit is told", || !started.events.exits().is_empty()).await;
    let report = started.events.exits()[0].1.clone();
    assert!(report.out_of_memory, "{report:?}");
    let told = report.to_string();
    assert!(told.contains(&(48u64 << 20).to_string()) && told.contains("instance_memory"), "{told}");
    // Without the host's word it is half of what there is.
    let usual = start(&place.runtime_in("usual"), place.app(&[])).await.unwrap();
    let mut limit = get(&*usual.instance, "/read/sys/fs/cgroup/memory.max").await;
    if limit.starts_with("refused") {
        limit = get(&*usual.instance, "/read/sys/fs/cgroup/memory/memory.limit_in_bytes").await;
    }
    let all = sas_runtime_os::cgroup::memory_here().unwrap();
    let limit: u64 = limit.trim().parse().unwrap();
    assert!(limit <= all / 2 && limit + (64 << 10) > all / 2, "{limit} of {all}");
}

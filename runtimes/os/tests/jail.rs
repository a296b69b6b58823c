//! What a jailed program can and can't do, tried by real programs. What needs root says so when it is skipped.
#![cfg(target_os = "linux")]

use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use sas_core::TenantKey;
use sas_runtime_os::{
    JailConfig, JailLevel,
    cell::Cell,
    jail::{JailRequest, Jails},
};

struct Host {
    _dir: tempfile::TempDir,
    root: PathBuf,
    package: PathBuf,
    jails: Jails,
}

/// Whether the test can run. It says so where it can't, and fails in CI.
#[track_caller]
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        sas_testkit::skip("namespaces and user ids need root");
    }
    root
}

/// The same for a test that needs Python.
#[track_caller]
fn has_python() -> bool {
    let has = Command::new("python3").arg("--version").output().is_ok();
    if !has {
        sas_testkit::skip("python3 is not installed");
    }
    has
}

fn host(level: JailLevel) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(root.join("state"), "the host's secret\n").unwrap();
    let package = root.join("packages/one");
    fs::create_dir_all(package.join("sub")).unwrap();
    fs::write(package.join("config.ini"), "as deployed\n").unwrap();
    let mut config = JailConfig::default();
    config.level = level;
    config.ready = 1;
    let jails = Jails::open(config, std::slice::from_ref(&root), &[]).unwrap();
    jails.grant(&package).unwrap();
    Host { _dir: dir, root, package, jails }
}

impl Host {
    fn request(&self, level: JailLevel) -> JailRequest {
        let mut request = JailRequest::new(level, Some(TenantKey(7)));
        request.package = Some(self.package.clone());
        request
    }

    fn start(&self, request: JailRequest, script: &str) -> (std::process::Child, Option<Cell>) {
        let jail = self.jails.enter(request).unwrap();
        let env = jail.environment();
        let (reader, writer) = std::io::pipe().unwrap();
        let spawned = jail.spawn(|| {
            Command::new("/bin/sh")
                .args(["-c", script])
                .env_clear()
                .env("PATH", "/usr/bin:/bin")
                .envs(env)
                .current_dir(&self.package)
                .stdin(Stdio::null())
                .stdout(writer.try_clone()?)
                .stderr(writer.try_clone()?)
                .spawn()
        });
        drop(writer);
        let (mut child, cell) = spawned.unwrap();
        child.stdout = None;
        READERS.with_borrow_mut(|readers| readers.push(reader));
        (child, cell)
    }

    fn run(&self, request: JailRequest, script: &str) -> String {
        let (mut child, cell) = self.start(request, script);
        child.wait().unwrap();
        drop(cell);
        let mut text = String::new();
        READERS.with_borrow_mut(|readers| readers.pop().unwrap().read_to_string(&mut text).unwrap());
        text
    }
}

thread_local! {
    static READERS: std::cell::RefCell<Vec<std::io::PipeReader>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn processes(mark: &str) -> usize {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .filter(|line| line.split(|byte| *byte == 0).any(|word| word == mark.as_bytes()))
        .count()
}

#[allow(clippy::disallowed_methods, reason = "it waits for what the kernel does")]
fn until(what: &str, mut good: impl FnMut() -> bool) {
    let began = Instant::now();
    while !good() {
        assert!(began.elapsed() < Duration::from_secs(5), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_jailed_program_has_a_user_and_files_of_its_own() {
    if !is_root() {
        return;
    }
    let host = host(JailLevel::Basic);
    let told = host.run(
        host.request(JailLevel::Basic),
        "id -u; id -un; grep -c . /proc/self/status >/dev/null && echo proc; \
         cat config.ini; echo changed > config.ini; cat config.ini; echo new > sub/new && cat sub/new; \
         echo x > $HOME/x && echo home; echo x > /tmp/x && echo tmp; \
         grep -E 'NoNewPrivs|Seccomp:|CapEff|CapPrm' /proc/self/status",
    );
    let user = host.jails.config().uids.start() + 1;
    for line in [
        &user.to_string(),
        "app",
        "proc",
        "as deployed",
        "changed",
        "new",
        "home",
        "tmp",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "CapEff:\t0000000000000000",
    ] {
        assert!(told.lines().any(|told| told == line), "{line:?} in {told}");
    }
    // The next instance begins with what was deployed, and the host still has it.
    assert_eq!(host.run(host.request(JailLevel::Basic), "cat config.ini; ls sub"), "as deployed\n");
    assert_eq!(fs::read_to_string(host.package.join("config.ini")).unwrap(), "as deployed\n");
}

#[test]
fn every_instance_begins_with_what_was_deployed_also_from_a_cell_that_waited_for_it() {
    if !is_root() {
        return;
    }
    let host = host(JailLevel::Basic);
    for round in 0..6 {
        let told = host.run(
            host.request(JailLevel::Basic),
            "cat config.ini; ls sub; id -un; ls $HOME /tmp; echo x > config.ini; echo x > sub/new; echo x > $HOME/x; echo x > /tmp/x; \
             ls /run/sas/host && echo HOST",
        );
        assert!(
            told.starts_with("as deployed\napp\n") && !told.contains("HOST") && !told.contains('x'),
            "{round}: {told}"
        );
        pause();
    }
    // Made anew at the same path it is another package.
    fs::remove_dir_all(&host.package).unwrap();
    fs::create_dir_all(&host.package).unwrap();
    fs::write(host.package.join("config.ini"), "deployed again\n").unwrap();
    host.jails.grant(&host.package).unwrap();
    assert_eq!(host.run(host.request(JailLevel::Basic), "cat config.ini"), "deployed again\n");
    // And another tenant's cell is another one.
    let mut other = host.request(JailLevel::Basic);
    other.tenant = Some(TenantKey(8));
    let user = host.jails.config().uids.start() + 2;
    assert_eq!(host.run(other, "id -u"), format!("{user}\n"));
}

#[test]
fn a_jailed_program_has_no_way_to_the_host() {
    if !is_root() {
        return;
    }
    // A file that everybody may read, were it to be seen: its way there is open, too.
    let home = tempfile::tempdir_in("/root").unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = home.path().join("file");
    fs::write(&file, "the host's secret\n").unwrap();
    let pid = std::process::id();
    for level in [JailLevel::None, JailLevel::Basic, JailLevel::Strict] {
        let host = host(level);
        // What works without a jail is tried by the same words as what fails in one.
        let script = format!(
            "cat {state} && echo STATE; cat {file} && echo ROOT; kill -0 {pid} && echo SIGNAL; ls /proc/{pid} && echo PROCESS; \
             head -c 1 /etc/shadow >/dev/null && echo SHADOW; touch /usr/.sas-jail-test-{pid} && echo USR; test -w /etc/passwd && echo PASSWD; \
             unshare -m mount -t tmpfs x /mnt && echo MOUNTS; cat /proc/{pid}/environ >/dev/null && echo ENVIRON; echo done",
            state = host.root.join("state").display(),
            file = file.display(),
        );
        let told = host.run(host.request(level), &script);
        // Nothing is left, whoever made it.
        let _ = fs::remove_file(format!("/usr/.sas-jail-test-{pid}"));
        let has = |word: &str| told.lines().any(|line| line == word);
        assert!(has("done"), "the program ran to its end: {told}");
        for way in ["STATE", "ROOT", "SIGNAL", "PROCESS", "SHADOW", "USR", "PASSWD", "MOUNTS", "ENVIRON"] {
            assert_eq!(has(way), level == JailLevel::None, "{way} at {level}: {told}");
        }
        assert_eq!(told.contains("secret"), level == JailLevel::None, "{told}");
        if level != JailLevel::None {
            // What is not tried without one: it has its process 1, and the mounts are the machine's.
            let inside = "exec 2>/dev/null; ls /run/sas/host && echo HOST; cat /proc/1/environ && echo INIT; \
                          unshare -U true && echo USERS; mount -t tmpfs x /tmp && echo MOUNT; \
                          kill -9 1; kill -0 1 && echo SIGNAL; echo done";
            assert_eq!(host.run(host.request(level), inside), "done\n", "{level}");
        }
    }
}

#[test]
fn whoever_left_its_group_ends_with_its_cell() {
    if !is_root() {
        return;
    }
    for level in [JailLevel::Basic, JailLevel::Strict] {
        let host = host(level);
        let (mut child, cell) = host.start(
            host.request(level),
            "setsid sleep 87001.5 </dev/null >/dev/null 2>&1 & (setsid sh -c 'sleep 87001.5 & exit' </dev/null >/dev/null 2>&1 &); \
             sleep 87001.5",
        );
        until("three sleep", || processes("87001.5") == 3);
        // A signal that it has no handler for reaches it: it is not process 1.
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&child),
            rustix::process::Signal::TERM,
        )
        .unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
        drop(cell);
        until("all gone", || processes("87001.5") == 0);
    }
}

#[test]
fn orphans_are_collected_in_a_cell() {
    if !is_root() {
        return;
    }
    let host = host(JailLevel::Basic);
    let told = host.run(
        host.request(JailLevel::Basic),
        "for n in 1 2 3 4 5; do (sh -c 'sleep 0.01' &) ; done; sleep 0.3; grep -l '^State:.Z' /proc/[0-9]*/status; echo done",
    );
    assert_eq!(told, "done\n");
}

#[test]
fn descriptors_that_the_host_left_open_are_closed_to_it() {
    let levels: &[JailLevel] = if is_root() { &JailLevel::ALL } else { &JailLevel::ALL[..2] };
    let file = fs::File::open("/etc/hostname").unwrap();
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    for level in levels {
        let host = host(*level);
        let told = host.run(host.request(*level), "ls /proc/$$/fd");
        let open: Vec<u32> = told.lines().map(|fd| fd.parse().unwrap()).filter(|fd| *fd != 10).collect();
        // Ten is the shell's own.
        assert_eq!(open, [0, 1, 2], "{level}: {told}");
        let flags = rustix::io::fcntl_getfd(&file).unwrap();
        assert!(flags.is_empty(), "the host's own is as it was");
    }
}

#[test]
fn a_strict_instance_has_a_network_of_its_own() {
    if !is_root() {
        return;
    }
    use sas_core::SocketSource as _;
    let host = host(JailLevel::Strict);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    // The same port is free there, and the host's is not to be reached.
    let script = format!(
        "python3 -c 'import socket\n\
         try: socket.create_connection((\"127.0.0.1\", {port}), 1); print(\"REACHED\", flush=True)\n\
         except OSError as e: print(type(e).__name__, flush=True)\n\
         s = socket.create_server((\"127.0.0.1\", {port})); c = s.accept()[0]; c.sendall(b\"inside\"); c.close()'"
    );
    let (mut child, cell) = host.start(host.request(JailLevel::Strict), &script);
    let cell = cell.unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let network = std::sync::Arc::clone(cell.network().unwrap());
    let mut heard = String::new();
    until("an answer from inside", || {
        let socket = network.tcp_socket(&address).unwrap();
        rustix::io::ioctl_fionbio(&socket, false).unwrap();
        if rustix::net::connect(&socket, &address).is_err() {
            return false;
        }
        std::net::TcpStream::from(socket).read_to_string(&mut heard).is_ok()
    });
    assert_eq!(heard, "inside");
    child.wait().unwrap();
    drop(cell);
    let mut told = String::new();
    READERS.with_borrow_mut(|readers| readers.pop().unwrap().read_to_string(&mut told).unwrap());
    assert_eq!(told, "ConnectionRefusedError\n");
}

#[test]
fn two_tenants_have_two_users_and_one_more_is_refused() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = JailConfig::default();
    config.uids = 1_900_000_000..=1_900_000_001;
    config.ready = 0;
    let jails = Jails::open(config, &[dir.path().to_path_buf()], &[]).unwrap();
    jails.enter(JailRequest::new(JailLevel::Basic, Some(TenantKey(1)))).unwrap();
    jails.enter(JailRequest::new(JailLevel::Basic, Some(TenantKey(1)))).unwrap();
    let error = jails.enter(JailRequest::new(JailLevel::Basic, Some(TenantKey(2)))).unwrap_err().to_string();
    assert!(error.contains("jail.uids"), "{error}");
}

#[test]
fn a_package_can_be_shown_to_a_program_that_runs_already() {
    if !is_root() {
        return;
    }
    let host = host(JailLevel::Basic);
    let mut request = JailRequest::new(JailLevel::Basic, None);
    request.later = Some(host.root.join("packages"));
    let (_, writer) = std::io::pipe().unwrap();
    drop(writer);
    let script = format!(
        "cd /; until cat {p}/config.ini 2>/dev/null; do sleep 0.01; done; echo new > {p}/new && cat {p}/new; \
         cat {state} && echo STATE; id -u",
        p = host.package.display(),
        state = host.root.join("state").display()
    );
    let elsewhere = Host { package: "/".into(), ..host };
    let (mut child, cell) = elsewhere.start(request, &script);
    let package = elsewhere.root.join("packages/one");
    elsewhere.jails.show(cell.as_ref(), &package, &[]).unwrap();
    child.wait().unwrap();
    drop(cell);
    let mut told = String::new();
    READERS.with_borrow_mut(|readers| readers.pop().unwrap().read_to_string(&mut told).unwrap());
    assert!(told.starts_with("as deployed\nnew\n"), "{told}");
    assert!(!told.contains("STATE"), "{told}");
    assert!(told.ends_with(&format!("{}\n", elsewhere.jails.config().uids.end())), "{told}");
    assert!(!package.join("new").exists());
}

#[test]
fn its_disk_has_a_size() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = JailConfig::default();
    config.disk_bytes = 2 << 20;
    let root = dir.path().join("store");
    let package = root.join("packages/one");
    fs::create_dir_all(&package).unwrap();
    let jails = Jails::open(config, std::slice::from_ref(&root), &[]).unwrap();
    jails.grant(&package).unwrap();
    let host = Host { _dir: dir, root, package, jails };
    let told = host.run(
        host.request(JailLevel::Basic),
        "for at in . $HOME /tmp; do head -c 3000000 /dev/zero > $at/big 2>&1 || echo full; rm $at/big; done",
    );
    assert_eq!(told.matches("full").count(), 3, "{told}");
}

/// Landlock bounds the ports of TCP: what is TCP by another name, or connects without `connect`, would pass by it.
#[test]
fn nobody_reaches_a_port_by_another_kind_of_socket() {
    if !is_root() || !has_python() {
        return;
    }
    let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let script = format!(
        "python3 -c 'import errno, socket\n\
         there = (\"127.0.0.1\", {port})\n\
         def tried(what, f):\n\
         \x20try: f(); print(what, \"is open\", flush=True)\n\
         \x20except OSError as e: print(what, errno.errorcode[e.errno], flush=True)\n\
         def socket_of(family, protocol): return lambda: socket.socket(family, socket.SOCK_STREAM, protocol)\n\
         tried(\"mptcp\", socket_of(socket.AF_INET, 262))\n\
         tried(\"mptcp6\", socket_of(socket.AF_INET6, 262))\n\
         tried(\"sctp\", socket_of(socket.AF_INET, 132))\n\
         tried(\"smc\", socket_of(43, 0))\n\
         tried(\"alg\", lambda: socket.socket(38, socket.SOCK_SEQPACKET, 0))\n\
         tried(\"sendto\", lambda: socket.socket().sendto(b\"x\", 0x20000000, there))\n\
         tried(\"sendmsg\", lambda: socket.socket().sendmsg([b\"x\"], [], 0x20000000, there))\n\
         a, b = socket.socketpair()\n\
         a.send(b\"x\"); a.sendmsg([b\"y\"])\n\
         print(\"plain\", b.recv(2).decode(), flush=True)'",
        port = admin.local_addr().unwrap().port(),
    );
    for level in [JailLevel::Basic, JailLevel::Strict] {
        let host = host(level);
        let told = host.run(host.request(level), &script);
        for right in [
            "mptcp EPROTONOSUPPORT",
            "mptcp6 EPROTONOSUPPORT",
            "sctp EPROTONOSUPPORT",
            "smc EPERM",
            "alg EPERM",
            "sendto ENOTSUP",
            "sendmsg ENOTSUP",
            "plain xy",
        ] {
            assert!(told.lines().any(|line| line == right), "{right} at {level}: {told}");
        }
    }
}

/// As an ordinary user: this test runs itself again as one where it is root.
#[test]
fn an_ordinary_user_jails_by_landlock() {
    if rustix::process::geteuid().is_root() {
        let itself = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let copy = dir.path().join("jail-test");
        fs::copy(itself, &copy).unwrap();
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
            .arg(&copy)
            .args(["--exact", "an_ordinary_user_jails_by_landlock", "--nocapture"])
            .env("TMPDIR", dir.path())
            .output();
        let output = match output {
            Ok(output) => output,
            Err(error) => {
                return sas_testkit::skip(&format!("setpriv: {error}"));
            }
        };
        let told =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{told}");
        eprintln!("{told}");
        return;
    }
    let host = host(JailLevel::Basic);
    assert!(!host.jails.has_namespaces());
    let error = host.jails.enter(host.request(JailLevel::Strict)).unwrap_err().to_string();
    assert!(error.contains("strict") && error.contains("not root"), "{error}");
    if host.jails.report().missing().any(|means| means.name.contains("landlock")) {
        return sas_testkit::kernel_lacks(&host.jails.report().to_string());
    }
    let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // Somebody else may have it just now, which is found out only where it is allowed.
    let mine = admin.local_addr().unwrap().port() - 1;
    let script = format!(
        "cat {state} && echo STATE; kill -0 {pid} && echo SIGNAL; cat /proc/{pid}/environ && echo ENVIRON; \
         cat config.ini; echo x > config.ini && echo WRITTEN; \
         python3 -c 'import errno, socket\n\
         def tried(what, f):\n\
         \x20try: f(); print(what, flush=True)\n\
         \x20except PermissionError: print(\"no\", what, flush=True)\n\
         \x20except OSError as e:\n\
         \x20 if e.errno != errno.EADDRINUSE: raise\n\
         \x20 print(what, flush=True)\n\
         tried(\"own\", lambda: socket.socket().bind((\"127.0.0.1\", {mine})))\n\
         tried(\"other\", lambda: socket.socket().bind((\"127.0.0.1\", 8099)))\n\
         tried(\"admin\", lambda: socket.create_connection((\"127.0.0.1\", {admin}), 1))'",
        state = host.root.join("state").display(),
        pid = std::process::id(),
        admin = admin.local_addr().unwrap().port(),
    );
    let mut request = host.request(JailLevel::Basic);
    request.ports = vec![mine];
    let told = host.run(request, &script);
    for way in ["STATE", "SIGNAL", "ENVIRON", "WRITTEN", "other", "admin"] {
        assert!(!told.lines().any(|line| line == way), "{way}: {told}");
    }
    for right in ["as deployed", "own", "no other", "no admin"] {
        assert!(told.lines().any(|line| line == right), "{right}: {told}");
    }
    let mut request = host.request(JailLevel::Basic);
    // A port that it may listen on is none that it may connect to: somebody else may listen there.
    request.ports = vec![mine, admin.local_addr().unwrap().port()];
    let told = host.run(request, &script);
    assert!(told.lines().any(|line| line == "no admin"), "{told}");
}

#[test]
#[allow(clippy::disallowed_methods, reason = "what is measured is the kernel's work, outside of any runtime")]
fn levels_cost_this_much() {
    // Measured, not judged: the machine that runs the tests is busy. `SECURITY.md` has the figures of a quiet one.
    let rounds = std::env::var("SAS_JAIL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let levels: &[JailLevel] = if is_root() { &JailLevel::ALL } else { &JailLevel::ALL[..2] };
    let hosts: Vec<Host> = levels.iter().map(|level| host(*level)).collect();
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); levels.len()];
    for _ in 0..rounds {
        for (at, host) in hosts.iter().enumerate() {
            let request = host.request(levels[at]);
            host.jails.warm(&request);
            pause();
            let began = Instant::now();
            let jail = host.jails.enter(request).unwrap();
            let (mut child, cell) = jail.spawn(|| Command::new("/bin/true").env_clear().spawn()).unwrap();
            times[at].push(began.elapsed());
            assert!(child.wait().unwrap().success());
            drop(cell);
        }
    }
    for (level, times) in levels.iter().zip(&mut times) {
        times.sort();
        let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
        eprintln!("{level}: until spawned p10 {:?} p50 {:?} p99 {:?}", at(10), at(50), at(99));
    }
}

/// What an ordinary user's instance begins with, whose package is copied. Measured, not judged, as above.
#[test]
#[allow(clippy::disallowed_methods, reason = "what is measured is the kernel's work, outside of any runtime")]
fn a_copy_of_a_package_costs_this_much() {
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    for at in 0..2_000 {
        let within = package.join(format!("node_modules/{}", at % 100));
        fs::create_dir_all(&within).unwrap();
        fs::write(within.join(format!("{at}.js")), vec![b'x'; 4_096]).unwrap();
    }
    let mut times = Vec::new();
    for round in 0..5 {
        let to = dir.path().join(round.to_string());
        let began = Instant::now();
        let taken = sas_runtime_os::view::copy(&package, &to).unwrap();
        times.push(began.elapsed());
        assert_eq!(taken, sas_runtime_os::view::bytes(&to), "what it says is what it takes");
        assert!(taken > 2_000 * 4_096, "{taken}");
        assert_eq!(fs::read(to.join("node_modules/42/1942.js")).unwrap(), vec![b'x'; 4_096]);
    }
    times.sort();
    eprintln!(
        "2,000 files of 4 KiB: {:?} at best, {:?} as a rule, {:?} at worst",
        times[0], times[2], times[4]
    );
}

/// What fifty sleeping programs take at each level, kernel memory included: as the control group counts it that this test
/// runs in, whose file with the figure `SAS_JAIL_MEMORY` names.
#[test]
fn levels_take_this_much_memory() {
    let Some(file) = std::env::var_os("SAS_JAIL_MEMORY").filter(|_| is_root()) else { return };
    let used = || fs::read_to_string(&file).unwrap().trim().parse::<i64>().unwrap();
    for level in JailLevel::ALL {
        let host = host(level);
        let started = || {
            let jail = host.jails.enter(host.request(level)).unwrap();
            jail.spawn(|| Command::new("/bin/sleep").arg("1000").env_clear().spawn()).unwrap()
        };
        let mut all = vec![started()];
        pause();
        let before = used();
        all.extend((0..50).map(|_| started()));
        pause();
        eprintln!("{level}: {} KiB each", (used() - before) / 50 / 1024);
        for (mut child, cell) in all {
            child.kill().unwrap();
            child.wait().unwrap();
            drop(cell);
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "cells are made meanwhile, as between two starts")]
fn pause() {
    std::thread::sleep(Duration::from_millis(25));
}

#[test]
fn what_the_machine_lacks_is_said() {
    let host = host(JailLevel::Basic);
    let report = host.jails.report();
    assert_eq!(report.means.len(), 8, "{report}");
    let missing: Vec<&str> = report.missing().map(|means| means.name).collect();
    for means in &report.means {
        let said = means.missing.as_ref().is_some_and(|why| report.to_string().contains(why.as_str()));
        assert_eq!(said, missing.contains(&means.name), "{}: {report}", means.name);
    }
    let root = rustix::process::geteuid().is_root();
    // Of an ordinary user all that root alone can do is missing, and is said.
    assert_eq!(missing.iter().any(|name| name.contains("namespace")), !root, "{report}");
    assert!(report.to_string().starts_with("jail basic"), "{report}");
}

//! The program around a platform as its operator meets it: its configuration in a file, its backup, its upgrade in place.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::shared::{
    ADMIN_TOKEN, PlatformProcess, call, call_admin, call_with, eventually, example, hello_manifest,
    platform_command,
};
use serde_json::{Value, json};
use tokio::time::Instant;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A platform that is configured by `config`, a file in `dir`.
fn configured(dir: &Path, config: &str, args: &[&str]) -> (PlatformProcess, PathBuf) {
    let file = dir.join("platform.yaml");
    fs::write(&file, config).expect("written");
    let mut command = platform_command(&["--config", text(&file)]);
    command.stderr(fs::File::create(dir.join("log")).expect("a file"));
    (PlatformProcess::run(command, args), file)
}

fn check(file: &Path) -> Output {
    platform_command(&["--config-check", text(file)]).output().expect("it runs")
}

async fn field(platform: &PlatformProcess, name: &str) -> Value {
    let page = call_admin(platform.admin, "GET", "/v1/config", "").await.expect("an answer").json();
    let fields = page["fields"].as_array().expect("fields");
    fields.iter().find(|field| field["name"] == name).unwrap_or_else(|| panic!("{name}: {page}")).clone()
}

async fn reload(platform: &PlatformProcess) -> (u16, Value) {
    let answer = call_admin(platform.admin, "POST", "/v1/config/reload", "").await.expect("an answer");
    (answer.status, answer.json())
}

const PORTS: &str = "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\n";

#[tokio::test]
async fn a_file_says_what_flags_say_and_flags_go_before_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = format!("{PORTS}domain: file.example\ndrainSeconds: 5\nadminHosts: [ops.example]\n");
    let (platform, _) = configured(dir.path(), &config, &["--domain", "flag.example", "--open-metrics"]);
    let domain = field(&platform, "domain").await;
    assert_eq!((&domain["value"], &domain["origin"]), (&json!("flag.example"), &json!("flag")), "{domain}");
    let drain = field(&platform, "drainSeconds").await;
    assert_eq!((&drain["value"], &drain["origin"]), (&json!(5), &json!("file")));
    assert_eq!((&drain["flag"], &drain["changes"]), (&json!("--drain"), &json!("restart")));
    assert_eq!(field(&platform, "openMetrics").await["value"], true);
    assert_eq!(field(&platform, "workers").await["origin"], "default");
    // In JSON, and found by the environment.
    let other = dir.path().join("platform.json");
    fs::write(&other, r#"{"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "preset": "frugal"}"#)
        .expect("written");
    let mut command = platform_command(&[]);
    command.env("SAS_CONFIG", &other);
    let other = PlatformProcess::run(command, &[]);
    assert_eq!(field(&other, "preset").await["value"], "frugal");
}

#[test]
fn every_mistake_of_a_file_is_told_at_once_with_field_line_and_remedy() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("platform.yaml");
    fs::write(
        &file,
        "listen: everywhere\ndrain: 5\npackage-root: /srv\npreset: quick\nworkers: many\nnonsense: 1\nadminBurst: 0\n",
    )
    .expect("written");
    let output = check(&file);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        "listen: \"everywhere\": line 1",
        "drain: \"5\": line 2: no such field; write `drainSeconds`",
        "package-root: \"/srv\": line 3: no such field; write `packageRoots`",
        "preset: \"quick\": line 4",
        "workers: \"many\": line 5",
        "nonsense: \"1\": line 6: no such field; `platform --help`",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    fs::write(&file, "adminBurst: 0\nusageFile: /tmp/usage\nlog: '===='\ndefaultQuota: /nowhere/quota\n")
        .expect("written");
    let said = String::from_utf8_lossy(&check(&file).stderr).into_owned();
    for part in [
        "adminBurst: \"0\"",
        "wants `usageKey` beside it",
        "log: \"====\"",
        "defaultQuota: \"/nowhere/quota\": can't be read",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    fs::write(
        &file,
        "packages: postgres://me:se/cret@db/x\npeersSecret: /nowhere/secret\nmanifests: [/nowhere/app.yaml]\n\
         admin: 0.0.0.0:8081\nusageFile: /tmp/usage\nusageKey: k=/nowhere/key\nworkers: http://me:se/cret@x\n",
    )
    .expect("written");
    let said = String::from_utf8_lossy(&check(&file).stderr).into_owned();
    assert!(said.contains("workers") && !said.contains("cret@"), "{said}");
    let written = fs::read_to_string(&file).expect("it").replace("workers", "# workers");
    fs::write(&file, written).expect("written");
    let said = String::from_utf8_lossy(&check(&file).stderr).into_owned();
    for part in [
        "packages: \"postgres://***@db/x\": wants `state`",
        "peersSecret: \"/nowhere/secret\": can't be read",
        "manifests: \"/nowhere/app.yaml\": can't be read",
        "admin: \"0.0.0.0:8081\": tokens would go there in the clear",
        "usageKey: \"/nowhere/key\": can't be read",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    fs::write(&file, "listen: [127.0.0.1:0\n").expect("written");
    let said = String::from_utf8_lossy(&check(&file).stderr).into_owned();
    assert!(said.contains("config: \"line ") && said.contains("not YAML or JSON"), "{said}");
    fs::write(&file, "# nothing\n").expect("written");
    assert!(check(&file).status.success());
}

#[tokio::test]
async fn a_reload_is_whole_and_a_bad_one_leaves_everything_as_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let quota = dir.path().join("quota.json");
    fs::write(&quota, r#"{"instances": 7}"#).expect("written");
    let config = format!("{PORTS}defaultQuota: {}\n", text(&quota));
    let (platform, file) = configured(dir.path(), &config, &[]);
    let manifest = hello_manifest("hello", "", 0);
    assert_eq!(call_admin(platform.admin, "POST", "/v1/services", &manifest).await.unwrap().status, 201);
    let limit = async || {
        let tenant = call_admin(platform.admin, "GET", "/v1/tenants/default", "").await.unwrap().json();
        tenant["usage"][0]["limit"].as_f64()
    };
    let known = async |host: &str| {
        let token = format!("authorization: Bearer {ADMIN_TOKEN}\r\n");
        call_with(platform.admin, "GET", host, &token, "/v1/whoami", "").await.unwrap().status == 200
    };
    assert_eq!(limit().await, Some(7.0));
    assert!(!known("ops.example").await);

    // What only a restart changes, beside what a reload could: nothing of it is done.
    fs::write(&file, format!("{config}adminHosts: [ops.example]\ndomain: elsewhere.example\njail: strict\n"))
        .unwrap();
    let (status, problem) = reload(&platform).await;
    assert_eq!(status, 422, "{problem}");
    let fields: Vec<&str> =
        problem["fields"].as_array().unwrap().iter().map(|field| field["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["domain", "jail"], "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("the configuration in force stays"), "{problem}");
    assert!(!known("ops.example").await);

    // What can't be read.
    fs::write(&file, format!("{config}adminHosts: ops.example\nfoo: 1\n")).unwrap();
    let (status, problem) = reload(&platform).await;
    assert_eq!((status, problem["fields"].as_array().unwrap().len()), (422, 2), "{problem}");
    fs::write(&quota, r#"{"instances": "many"}"#).unwrap();
    fs::write(&file, &config).unwrap();
    assert_eq!(reload(&platform).await.0, 422);
    assert_eq!(limit().await, Some(7.0));

    // Good ones.
    fs::write(&quota, r#"{"instances": 9}"#).unwrap();
    let good = format!(
        "{config}adminHosts: [ops.example]\nrequireIfMatch: true\nallowedRegistries: [registry.example]\npackageRoots: [/nowhere]\n"
    );
    fs::write(&file, &good).unwrap();
    let (status, done) = reload(&platform).await;
    assert_eq!(status, 200, "{done}");
    assert_eq!(done["changed"], json!(["adminHosts", "allowedRegistries", "packageRoots", "requireIfMatch"]));
    assert_eq!(limit().await, Some(9.0), "the file that a field names is read too");
    assert!(known("ops.example").await);
    let other = hello_manifest("other", "", 0);
    assert_eq!(call_admin(platform.admin, "POST", "/v1/services", &other).await.unwrap().status, 428);
    let token = format!("authorization: Bearer {ADMIN_TOKEN}\r\nif-none-match: *\r\n");
    let refused =
        call_with(platform.admin, "POST", "localhost", &token, "/v1/services", &other).await.unwrap();
    assert_eq!(refused.status, 422, "packages come from other directories: {refused:?}");
    let audit = call_admin(platform.admin, "GET", "/v1/audit", "").await.unwrap().json();
    let paths: Vec<&str> = audit["records"].as_array().map_or_else(
        || panic!("{audit}"),
        |records| records.iter().filter_map(|record| record["path"].as_str()).collect(),
    );
    assert!(paths.contains(&"/v1/config/reload"), "{audit}");

    // And by a signal.
    fs::write(&file, format!("{config}openMetrics: true\n")).unwrap();
    signal(platform.id(), "-HUP");
    eventually("the metrics are open", Duration::from_secs(10), async || {
        call(platform.admin, "GET", "localhost", "/metrics", "").await.unwrap().status == 200
    })
    .await;
    assert!(!known("ops.example").await);
    assert_eq!(
        call_admin(platform.admin, "POST", "/v1/services", &other).await.unwrap().status,
        201,
        "as before"
    );
}

fn signal(id: u32, name: &str) {
    let sent = Command::new("kill").args([name, &id.to_string()]).status().expect("kill runs");
    assert!(sent.success());
}

/// `docs/configuration.md` has the table of all fields. Written with `SAS_WRITE_DOCS=1`.
#[tokio::test]
async fn the_table_of_fields_in_the_docs_is_what_the_platform_says() {
    let platform = PlatformProcess::start(&[]);
    let page = call_admin(platform.admin, "GET", "/v1/config", "").await.expect("an answer").json();
    let mut table = String::from("| Field | Flag | Changes at | What |\n|---|---|---|---|\n");
    for field in page["fields"].as_array().expect("fields") {
        let part = |name: &str| field[name].as_str().unwrap_or_default();
        let flag = if part("flag").is_empty() { String::new() } else { format!("`{}`", part("flag")) };
        table.push_str(&format!(
            "| `{}` | {flag} | {} | {} |\n",
            part("name"),
            part("changes"),
            part("help").replace('|', "\\|")
        ));
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let text = fs::read_to_string(&file).expect("the guide");
    let (begin, end) = ("<!-- fields: begin -->\n", "<!-- fields: end -->");
    let (before, rest) = text.split_once(begin).expect("a mark");
    let (found, after) = rest.split_once(end).expect("a mark");
    if std::env::var_os("SAS_WRITE_DOCS").is_some() {
        fs::write(&file, format!("{before}{begin}{table}{end}{after}")).expect("written");
    } else {
        assert_eq!(found, table, "docs/configuration.md is old: run this test with SAS_WRITE_DOCS=1");
    }
}

fn restore(backup: &Path, state: &Path) -> Output {
    platform_command(&["--restore", text(backup), "--state", text(state)]).output().expect("it runs")
}

fn sasctl(state: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(example("sasctl"));
    command.args(args).env("SAS_STATE", state).env("SAS_ADMIN_TOKEN", ADMIN_TOKEN).env_remove("SAS_ADMIN");
    command.output().expect("sasctl runs")
}

async fn services(platform: &PlatformProcess) -> Vec<String> {
    let page =
        call_admin(platform.admin, "GET", "/v1/services?limit=5000", "").await.expect("an answer").json();
    let all = page["services"].as_array().expect("a list").iter();
    all.map(|service| service["name"].as_str().expect("a name").to_owned()).collect()
}

#[tokio::test]
async fn a_backup_under_deploys_is_a_state_that_was_and_restores_to_a_platform_that_serves_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (state, again) = (dir.path().join("state"), dir.path().join("again"));
    let platform = PlatformProcess::start(&["--state", text(&state)]);
    let deploy = async |admin, name: &str| {
        let answer =
            call_admin(admin, "POST", "/v1/services", &hello_manifest(name, "", 0)).await.expect("an answer");
        assert_eq!(answer.status, 201, "{answer:?}");
    };
    for at in 0..20 {
        deploy(platform.admin, &format!("before-{at:02}")).await;
    }
    let admin = platform.admin;
    let stop = Arc::new(AtomicBool::new(false));
    let deploying = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                deploy(admin, &format!("during-{count:04}")).await;
                count += 1;
            }
            count
        }
    });
    let file = dir.path().join("backup.tar");
    let output = {
        let (state, file) = (state.clone(), file.clone());
        tokio::task::spawn_blocking(move || sasctl(&state, &["backup", text(&file)])).await.expect("it ends")
    };
    stop.store(true, Ordering::Relaxed);
    let deployed = deploying.await.expect("it deploys");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let bytes = fs::read(&file).expect("the backup");
    assert!(!bytes.windows(ADMIN_TOKEN.len()).any(|at| at == ADMIN_TOKEN.as_bytes()), "no token");

    let output = restore(&file, &again);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let restored = PlatformProcess::start(&["--state", text(&again)]);
    let names = services(&restored).await;
    let during = names.iter().filter(|name| name.starts_with("during-")).count();
    assert_eq!(names.len(), 20 + during);
    // One after the other was deployed: a state that was holds the first ones, without a gap.
    let first: Vec<String> = (0..during).map(|at| format!("during-{at:04}")).collect();
    assert_eq!(names[20..], first, "of {deployed}");
    let last = names.last().expect("services");
    let answer =
        call(restored.listen, "GET", &format!("{last}.default.localhost"), "/", "").await.expect("an answer");
    assert_eq!(answer.status, 200, "its package is there: {answer:?}");

    // Not into what is there; and nothing that is no whole backup.
    let refused = restore(&file, &again);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is not empty"), "{refused:?}");
    let bad = dir.path().join("bad.tar");
    let fresh = dir.path().join("fresh");
    let middle = bytes.len() / 2;
    let mut flipped = bytes.clone();
    flipped[middle] ^= 1;
    let newer = String::from_utf8_lossy(&bytes[..2048]).contains(r#""format":1"#);
    assert!(newer, "the head is plain");
    let mut younger = bytes.clone();
    let at = younger.windows(10).position(|at| at == br#""format":1"#).expect("a format");
    younger[at + 9] = b'9';
    for (content, says) in [
        (&bytes[..middle], "no whole copy"),
        (&bytes[..bytes.len() - 2048], "no whole copy"),
        (&flipped[..], "no whole copy"),
        (&younger[..], "of the format 9"),
        (&b"not a backup"[..], "no backup of a sas platform"),
        (&b""[..], "no whole copy"),
    ] {
        fs::write(&bad, content).expect("written");
        let refused = restore(&bad, &fresh);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(says), "{says}: {said}");
        assert!(!fresh.exists(), "{says}");
    }
}

#[tokio::test]
async fn a_kill_during_backup_or_restore_leaves_nothing_half() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let platform = PlatformProcess::start(&["--state", text(&state)]);
    for at in 0..5 {
        let manifest = hello_manifest(&format!("hello-{at}"), "", 0);
        assert_eq!(call_admin(platform.admin, "POST", "/v1/services", &manifest).await.unwrap().status, 201);
    }
    let file = dir.path().join("backup.tar");
    assert!(sasctl(&state, &["backup", text(&file)]).status.success());
    let size = fs::metadata(&file).unwrap().len();
    for millis in [0, 2, 5, 10, 20, 40, 80, 160] {
        let again = dir.path().join(format!("again-{millis}"));
        let mut restoring =
            platform_command(&["--restore", text(&file), "--state", text(&again)]).spawn().expect("it runs");
        tokio::time::sleep(Duration::from_millis(millis)).await;
        let _ended = restoring.kill();
        let _status = restoring.wait().expect("it ends");
        if !again.exists() {
            let output = restore(&file, &again);
            assert!(output.status.success(), "{millis}: {}", String::from_utf8_lossy(&output.stderr));
        }
        assert!(again.join("state.redb").exists() && !again.join("unpacking").exists());

        let cut = dir.path().join(format!("cut-{millis}.tar"));
        let mut command = Command::new(example("sasctl"));
        command.args(["backup", text(&cut)]).env("SAS_STATE", &state).env("SAS_ADMIN_TOKEN", ADMIN_TOKEN);
        let mut backing = command.spawn().expect("it runs");
        tokio::time::sleep(Duration::from_millis(millis)).await;
        let _ended = backing.kill();
        let _status = backing.wait().expect("it ends");
        assert!(!cut.exists() || fs::metadata(&cut).unwrap().len() >= size, "{millis}: a whole one, or none");
    }
    let restored = PlatformProcess::start(&["--state", text(&dir.path().join("again-160"))]);
    assert_eq!(services(&restored).await.len(), 5);
    // The turn of a backup that nobody reads any more is free again.
    eventually("another backup", Duration::from_secs(10), async || {
        sasctl(&state, &["backup", text(&dir.path().join("last.tar"))]).status.success()
    })
    .await;
}

/// Asks all the time, each request over a connection of its own, and keeps what went wrong and the longest answer.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<(Vec<String>, Duration)>>,
}

impl Load {
    fn begin(to: std::net::SocketAddr, clients: usize) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..clients).map(|_| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                let (mut wrong, mut longest) = (Vec::new(), Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    match call(to, "GET", "hello.default.localhost", "/", "").await {
                        Ok(answer) if answer.status == 200 => {}
                        Ok(answer) => wrong.push(format!("{}: {}", answer.status, answer.body)),
                        Err(error) => wrong.push(error.to_string()),
                    }
                    longest = longest.max(began.elapsed());
                    done.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                (wrong, longest)
            })
        });
        Self { clients: clients.collect(), stop, done }
    }

    async fn end(self) -> (u64, Vec<String>, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut wrong, mut longest) = (Vec::new(), Duration::ZERO);
        for client in self.clients {
            let (of_it, slowest) = client.await.expect("it ends");
            wrong.extend(of_it);
            longest = longest.max(slowest);
        }
        (self.done.load(Ordering::Relaxed), wrong, longest)
    }
}

/// Ends the process that a platform handed over to.
struct Heir(u32);

impl Drop for Heir {
    fn drop(&mut self) {
        let _sent = Command::new("kill").args(["-KILL", &self.0.to_string()]).status();
    }
}

fn pid(state: &Path) -> u32 {
    let left: Value =
        serde_json::from_slice(&fs::read(state.join("platform.json")).expect("it")).expect("JSON");
    u32::try_from(left["pid"].as_u64().expect("a process")).expect("a pid")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_under_load_refuses_and_fails_nobody_and_one_that_fails_leaves_the_old_serving() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let config = format!("{PORTS}state: {}\n", text(&state));
    let (mut platform, file) = configured(dir.path(), &config, &[]);
    let manifest = hello_manifest("hello", "", 0);
    assert_eq!(call_admin(platform.admin, "POST", "/v1/services", &manifest).await.unwrap().status, 201);
    let first = call(platform.listen, "GET", "hello.default.localhost", "/", "").await.unwrap();
    assert_eq!(first.status, 200);
    let load = Load::begin(platform.listen, 4);
    let log = || fs::read_to_string(dir.path().join("log")).expect("a log");

    // A new process that does not come so far as to be prepared.
    fs::write(&file, format!("{config}nonsense: 1\n")).unwrap();
    signal(platform.id(), "-USR2");
    eventually("it says that it goes on", Duration::from_secs(30), async || log().contains("no upgrade"))
        .await;
    assert!(log().contains("nonsense"), "{}", log());
    assert_eq!(pid(&state), platform.id());

    // One that was given the state and can't serve: the old one does again.
    let nonsense = dir.path().join("nonsense.yaml");
    fs::write(&nonsense, "kind: Nonsense\n").unwrap();
    fs::write(&file, format!("{config}manifests: [{}]\n", text(&nonsense))).unwrap();
    signal(platform.id(), "-USR2");
    eventually("it serves again", Duration::from_secs(60), async || log().contains("this one does again"))
        .await;
    eventually("its services are back", Duration::from_secs(30), async || {
        call(platform.admin, "GET", "localhost", "/readyz", "").await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
    assert_eq!(pid(&state), platform.id());

    // And one that is good, asked for by the operator's word.
    fs::write(&file, &config).unwrap();
    let output = {
        let state = state.clone();
        tokio::task::spawn_blocking(move || sasctl(&state, &["upgrade"])).await.expect("it ends")
    };
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stderr), log());
    let heir = Heir(pid(&state));
    assert_ne!(heir.0, platform.id());
    assert!(platform.ended(Duration::from_secs(30)), "the old process ends");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (done, wrong, longest) = load.end().await;
    assert_eq!(wrong, Vec::<String>::new(), "of {done} requests");
    assert!(done > 100, "{done}");
    println!(
        "{done} requests through two hand-overs, the longest answer after {longest:?}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert_eq!(services(&platform).await, ["hello"], "the new one has the state, at the same address");
}

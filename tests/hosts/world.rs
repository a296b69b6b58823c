//! Hosts as processes of their own on one PostgreSQL, and what was seen of them: in the store, and by what they ran.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use sas::{
    cluster::{host_of, shard_of},
    core::{Change, Store, Version, Watched},
};
use sas_testkit::server::{PostgresServer, free_port};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    sync::MutexGuard,
    task::JoinSet,
    time::Instant,
};

use crate::{
    gate::Gate,
    shared::{PlatformProcess, call_admin, eventually, platform_command},
};

/// Of the default, which a host is not told.
const SHARDS: u16 = 256;
/// How long a start may have been under way when its host ceased to act.
const START: Duration = Duration::from_secs(2);
/// How much later than the host the test may see that it owns something.
const SEEN: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Owner {
    pub(crate) holder: String,
    life: String,
    pub(crate) epoch: u64,
}

#[derive(Deserialize)]
struct Member {
    life: String,
    #[serde(default)]
    draining: bool,
}

/// Who owned what since when, by every version that the store ever had.
#[derive(Default)]
struct Seen {
    owners: BTreeMap<u16, Vec<(Instant, Version, Owner)>>,
    members: BTreeMap<String, Member>,
    renewed: HashMap<String, Instant>,
    written: Vec<(Version, String)>,
    /// Of services that several hosts run: which ones, since when; none: one alone.
    parts: HashMap<String, Vec<(Instant, PartsByHost)>>,
    wrong: Vec<String>,
}

type PartsByHost = BTreeMap<String, Part>;

/// What a host may run of a service.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Part {
    state: String,
    revisions: BTreeMap<String, Range>,
}

#[derive(Clone, Debug, Deserialize)]
struct Range {
    max: u32,
}

impl Part {
    pub(crate) fn serves(&self) -> bool {
        self.state == "serving"
    }

    /// Most instances of all revisions together.
    pub(crate) fn most(&self) -> u32 {
        self.revisions.values().map(|range| range.max).sum()
    }
}

#[derive(Deserialize)]
struct Parts {
    hosts: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    host: String,
    #[serde(flatten)]
    part: Part,
}

impl Seen {
    fn take(&mut self, change: &Change, at: Instant) {
        let key = change.key.as_str();
        self.written.push((change.version, key.to_owned()));
        if let Some(name) = key.strip_prefix("cluster/host/") {
            match &change.value {
                Some(value) => {
                    let member = serde_json::from_slice(value).expect("a member");
                    self.members.insert(name.to_owned(), member);
                }
                None => drop(self.members.remove(name)),
            }
        } else if let Some(name) = key.strip_prefix("cluster/renewed/") {
            self.renewed.insert(name.to_owned(), at);
        } else if let Some(shard) = key.strip_prefix("cluster/shard/") {
            let Some(value) = &change.value else {
                self.wrong.push(format!("{key} was removed"));
                return;
            };
            let owner: Owner = serde_json::from_slice(value).expect("an owner");
            let owners = self.owners.entry(shard.parse().expect("a number")).or_default();
            let before = owners.last().map_or(0, |(_, _, before)| before.epoch);
            if owner.epoch != before + 1 {
                self.wrong.push(format!("{key}: {owner:?} after {:?}", owners.last()));
            }
            owners.push((at, change.version, owner));
        } else if let Some(service) = key.strip_prefix("spread/parts/default/") {
            let parts: Parts = match &change.value {
                Some(value) => serde_json::from_slice(value).expect("parts"),
                None => Parts { hosts: Vec::new() },
            };
            let parts = parts.hosts.into_iter().map(|named| (named.host, named.part)).collect();
            self.parts.entry(service.to_owned()).or_default().push((at, parts));
        }
    }

    /// Whether a host had a part of a service at that time, or a moment before.
    fn had_part(&self, service: &str, host: &str, at: Instant) -> bool {
        let all = self.parts.get(service).map_or(&[][..], Vec::as_slice);
        all.iter().enumerate().any(|(n, (since, parts))| {
            let until = all.get(n + 1).map_or(at, |(until, _)| *until);
            parts.get(host).is_some_and(|part| part.most() > 0) && *since <= at + SEEN && until + START >= at
        })
    }
}

/// What the programs said: who was started, what was done.
#[derive(Default)]
pub(crate) struct Report {
    done: Mutex<HashMap<String, u32>>,
    /// Requests that each host's instances have done.
    by: Mutex<BTreeMap<String, u32>>,
    events: Mutex<BTreeMap<String, u32>>,
    /// Service, host, when.
    started: Mutex<Vec<(String, String, Instant)>>,
    /// The processes of hosts.
    hosts: Mutex<HashMap<u32, String>>,
}

impl Report {
    pub(crate) fn done(&self, id: &str) -> u32 {
        self.done.lock().get(id).copied().unwrap_or_default()
    }

    /// Events by their ids, and how often each came.
    pub(crate) fn events(&self) -> BTreeMap<String, u32> {
        self.events.lock().clone()
    }

    /// Requests that each host's instances have done.
    pub(crate) fn done_by(&self) -> BTreeMap<String, u32> {
        self.by.lock().clone()
    }

    async fn take(&self, line: &str) {
        let mut words = line.split_whitespace();
        let (Some(what), Some(id), Some(service), Some(pid)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            panic!("{line:?} is no report")
        };
        match what {
            "started" => {
                let (at, pid) = (Instant::now(), pid.parse().expect("a process"));
                // A host that starts serves before it says that it is ready.
                while Path::new(&format!("/proc/{pid}")).exists() {
                    if let Some(host) = self.host_of(pid) {
                        self.started.lock().push((service.to_owned(), host, at));
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            "event" => *self.events.lock().entry(id.to_owned()).or_default() += 1,
            _ => {
                *self.done.lock().entry(id.to_owned()).or_default() += 1;
                if let Some(host) = pid.parse().ok().and_then(|pid| self.host_of(pid)) {
                    *self.by.lock().entry(host).or_default() += 1;
                }
            }
        }
    }

    /// The host that a process descends from.
    fn host_of(&self, mut pid: u32) -> Option<String> {
        loop {
            if let Some(host) = self.hosts.lock().get(&pid) {
                return Some(host.clone());
            }
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            pid = stat
                .rsplit_once(')')?
                .1
                .split_whitespace()
                .nth(1)?
                .parse::<u32>()
                .ok()
                .filter(|pid| *pid > 1)?;
        }
    }
}

/// A host: a process, its ways to the store and from the others, and what is kept for its next start.
pub(crate) struct Host {
    pub(crate) name: &'static str,
    pub(crate) listen: SocketAddr,
    pub(crate) store: Gate,
    /// The way of the others to it.
    pub(crate) peers: Gate,
    pub(crate) process: PlatformProcess,
}

impl Host {
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.process.id().to_string()]).status();
        assert!(status.expect("kill runs").success(), "{name}");
    }

    /// A metric of the host, summed over its labels.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = call_admin(self.process.admin, "GET", "/metrics", "").await.expect("an answer").body;
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    pub(crate) async fn deploy(&self, manifest: &str) {
        let answer = call_admin(self.process.admin, "POST", "/v1/services", manifest).await;
        let answer = answer.expect("an answer");
        assert!((200..300).contains(&answer.status), "{}: {}", answer.status, answer.body);
    }
}

pub(crate) struct World {
    pub(crate) server: PostgresServer,
    pub(crate) term: Duration,
    /// Most instances of each host that starts from now on.
    pub(crate) most: Option<u32>,
    pub(crate) report: Arc<Report>,
    pub(crate) store: Arc<dyn Store>,
    seen: Arc<Mutex<Seen>>,
    database: Arc<OnceLock<SocketAddr>>,
    reports: u16,
    dir: tempfile::TempDir,
    _tasks: JoinSet<()>,
    _alone: MutexGuard<'static, ()>,
}

/// One world at a time: its hosts, its database and its load are as much as two cores bear, and terms are short.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The program of `app.rs`, compiled once.
fn app() -> &'static Path {
    static APP: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    &APP.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let program = dir.path().join("app");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts/app.rs");
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
        let mut command = Command::new(rustc);
        command.args(["-O", "--edition", "2024", "-o"]).arg(&program).arg(source);
        assert!(command.status().expect("rustc runs").success(), "tests/hosts/app.rs compiles");
        (dir, program)
    })
    .1
}

impl World {
    /// `None` where there is no PostgreSQL.
    pub(crate) async fn new(term: Duration) -> Option<Self> {
        let alone = ALONE.lock().await;
        let server = PostgresServer::start().await?;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let url = |port| format!("postgres://postgres:admin-pass@127.0.0.1:{port}/postgres?connections=4\n");
        let file = dir.path().join("store-url");
        fs::write(&file, url(server.port())).expect("written");
        fs::write(dir.path().join("secret"), "0123456789abcdef0123456789abcdef").expect("written");
        let database = Arc::new(OnceLock::from(SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()))));
        let store = sas::open_store(file.to_str().expect("UTF-8")).await.expect("opened");
        let (seen, report) = (Arc::new(Mutex::new(Seen::default())), Arc::new(Report::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(Arc::clone(&store), Arc::clone(&seen)));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let reports = listener.local_addr().expect("an address").port();
        tasks.spawn(take_reports(listener, Arc::clone(&report)));
        Some(Self {
            server,
            term,
            most: None,
            report,
            store,
            seen,
            database,
            reports,
            dir,
            _tasks: tasks,
            _alone: alone,
        })
    }

    pub(crate) async fn host(&self, name: &'static str) -> Host {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let (store, peers) =
            tokio::join!(Gate::to(Arc::clone(&self.database)), Gate::to(Arc::new(OnceLock::from(listen))));
        let process = self.start(name, listen, &store, &peers);
        Host { name, listen, store, peers, process }
    }

    /// Starts a host that has ended again, under its name.
    pub(crate) async fn restart(&self, host: Host) -> Host {
        let Host { name, listen, store, peers, process } = host;
        drop((process, peers));
        let peers = Gate::to(Arc::new(OnceLock::from(listen))).await;
        let process = self.start(name, listen, &store, &peers);
        Host { name, listen, store, peers, process }
    }

    fn start(&self, name: &str, listen: SocketAddr, store: &Gate, peers: &Gate) -> PlatformProcess {
        let dir = self.dir.path();
        let url = dir.join(format!("{name}-url"));
        let to = store.address;
        fs::write(&url, format!("postgres://postgres:admin-pass@{to}/postgres?connections=4\n"))
            .expect("written");
        let log = File::options().create(true).append(true).open(dir.join(format!("{name}.log")));
        let mut command = platform_command(&["--admin", "127.0.0.1:0", "--package-root", "/"]);
        command.args(["--listen", &listen.to_string(), "--advertise", &peers.address.to_string()]);
        command.args(["--host-name", name, "--host-term", &self.term.as_secs().to_string()]);
        if let Some(most) = self.most {
            command.args(["--host-max-instances", &most.to_string()]);
        }
        command.arg("--store").arg(&url).arg("--packages").arg(&url);
        command.arg("--state").arg(dir.join(name)).arg("--peers-secret").arg(dir.join("secret"));
        // Programs tell the test what they do, on a port of loopback.
        command.args(["--jail", "none", "--drain", "20"]).stderr(log.expect("a log"));
        let process = tokio::task::block_in_place(|| PlatformProcess::run(command, &[]));
        self.report.hosts.lock().insert(process.id(), name.to_owned());
        process
    }

    /// What a host has logged.
    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    pub(crate) fn manifest(&self, name: &str, version: u32) -> String {
        format!(
            "apiVersion: serving.knative.dev/v1
kind: Service
metadata: {{name: {name}, annotations: {{sas.dev/package: {}}}}}
spec:
  template:
    metadata: {{annotations: {{autoscaling.knative.dev/window: 6s}}}}
    spec:
      containerConcurrency: 20
      containers: [{{env: [{{name: REPORT, value: \"{}\"}}, {{name: VERSION, value: \"{version}\"}}]}}]
",
            app().display(),
            self.reports,
        )
    }

    /// So many names of services for each of these hosts, when all of them are there.
    pub(crate) fn names(hosts: &[&'static str], each: usize) -> Vec<String> {
        let mut taken: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for name in (0..).map(|number| format!("s{number}")) {
            let of = taken.entry(Self::belongs(&name, hosts)).or_default();
            if of.len() < each {
                of.push(name);
            }
            if taken.len() == hosts.len() && taken.values().all(|of| of.len() == each) {
                break;
            }
        }
        taken.into_values().flatten().collect()
    }

    /// The host where a service of this name is when all of these are there.
    pub(crate) fn belongs(name: &str, hosts: &[&'static str]) -> &'static str {
        host_of(shard_of(&format!("default/{name}"), SHARDS), hosts.iter().copied()).expect("there are hosts")
    }

    /// Whether every shard is where it belongs when there are these hosts.
    pub(crate) fn is_settled(&self, hosts: &[&str]) -> bool {
        let seen = self.seen.lock();
        seen.members.len() == hosts.len()
            && (0..SHARDS).all(|shard| {
                let Some((.., owner)) = seen.owners.get(&shard).and_then(|owners| owners.last()) else {
                    return false;
                };
                host_of(shard, hosts.iter().copied()) == Some(owner.holder.as_str())
                    && seen.members.get(&owner.holder).is_some_and(|member| member.life == owner.life)
            })
    }

    pub(crate) async fn settled(&self, hosts: &[&str]) {
        let limit = self.term * 3 + Duration::from_secs(20);
        eventually("every shard is where it belongs", limit, async || self.is_settled(hosts)).await;
    }

    /// Waits until others own all that the host had, and says when the last of it was taken.
    pub(crate) async fn followed(&self, gone: &str) -> Instant {
        let taken = || {
            let seen = self.seen.lock();
            let mut last = None;
            for owners in seen.owners.values() {
                let (at, _, owner) = owners.last().expect("an owner");
                if owner.holder == gone {
                    return None;
                }
                last = last.max(Some(*at));
            }
            last
        };
        let limit = self.term * 2 + Duration::from_secs(20);
        eventually("others follow", limit, async || taken().is_some()).await;
        taken().expect("they do")
    }

    /// Who owns each shard, and in which epoch.
    pub(crate) fn owners(&self) -> Vec<Owner> {
        let seen = self.seen.lock();
        seen.owners.values().map(|owners| owners.last().expect("an owner").2.clone()).collect()
    }

    /// Whether a host has renewed since then.
    pub(crate) fn renewed_since(&self, host: &str, since: Instant) -> bool {
        self.seen.lock().renewed.get(host).is_some_and(|at| *at > since)
    }

    pub(crate) fn is_draining(&self, host: &str) -> bool {
        self.seen.lock().members.get(host).is_none_or(|member| member.draining)
    }

    /// When the shard of a service was written last.
    pub(crate) fn moved(&self, service: &str) -> Version {
        let seen = self.seen.lock();
        let owners = &seen.owners[&shard_of(&format!("default/{service}"), SHARDS)];
        owners.last().expect("an owner").1
    }

    /// How often a key was written after one version and before another.
    pub(crate) fn written(&self, key: &str, after: Version, before: Version) -> usize {
        let seen = self.seen.lock();
        let of = seen
            .written
            .iter()
            .filter(|(version, name)| name == key && *version > after && *version < before);
        of.count()
    }

    /// Which hosts run a service together, and how far each is with that; none: one alone.
    pub(crate) fn parts(&self, service: &str) -> PartsByHost {
        let seen = self.seen.lock();
        seen.parts
            .get(service)
            .and_then(|parts| parts.last())
            .map_or_else(BTreeMap::new, |(_, last)| last.clone())
    }

    /// No shard had two owners in one epoch.
    pub(crate) fn assert_one_owner(&self) {
        assert_eq!(self.seen.lock().wrong, Vec::<String>::new());
    }

    /// No shard had two owners in one epoch. Each start was of a host that owned the service or had a part of it then, or a
    /// moment before.
    pub(crate) fn assert_sound(&self) {
        self.assert_one_owner();
        let seen = self.seen.lock();
        for (service, host, at) in &*self.report.started.lock() {
            let owners = &seen.owners[&shard_of(&format!("default/{service}"), SHARDS)];
            let owned = owners.iter().enumerate().any(|(n, (since, _, owner))| {
                let until = owners.get(n + 1).map_or(*at, |(until, ..)| *until);
                owner.holder == *host && *since <= *at + SEEN && until + START >= *at
            });
            let owned = owned || seen.had_part(service, host, *at);
            assert!(owned, "{host} has started {service} at {at:?}, whose owners were {owners:?}");
        }
    }
}

/// Reads every change that the store ever had, also after it was away.
async fn follow(store: Arc<dyn Store>, seen: Arc<Mutex<Seen>>) {
    let mut since = Version(0);
    loop {
        match store.watch("", since).await {
            Ok(Watched::Changes(changes)) => {
                let (mut seen, now) = (seen.lock(), Instant::now());
                for change in changes {
                    since = change.version;
                    seen.take(&change, now);
                }
            }
            Ok(Watched::ListAgain) => {
                seen.lock().wrong.push(format!("the history after {since:?} is not there any more"));
                return;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn take_reports(listener: TcpListener, report: Arc<Report>) {
    let mut streams = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let report = Arc::clone(&report);
        streams.spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            if stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
                report.take(&line).await;
                // Whoever said it may be gone.
                let _ = stream.get_mut().write_all(b"\n").await;
            }
        });
        while streams.try_join_next().is_some() {}
    }
}

//! `kill -9` of a real `platform` under load, again and again on one state directory: what was acknowledged stays, no process
//! is left, and the books say what was answered but for gaps that are written down.
//!
//! `SAS_LONG=1 cargo test --test programs kills -- --nocapture` kills it 200 times; `SAS_KILLS` says another number, `SAS_SEED` other
//! moments.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::shared::{Answer, PlatformProcess, call, call_admin, eventually, hello_manifest, processes_below};
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use sas::core::{Clock as _, SystemClock, Timestamp};
use serde_json::Value;
use tokio::{task::JoinSet, time::Instant};

/// Clients that ask all the time: at most so many requests are under way when the platform is killed.
const CLIENTS: usize = 8;
/// Services that are deployed, changed and deleted meanwhile.
const SERVICES: u32 = 6;
/// How often usage is written: what a kill may cost.
const CHECKPOINT: Duration = Duration::from_secs(1);
/// How much later a machine that does other things beside may write it.
const LATE: Duration = Duration::from_secs(4);
/// A request is counted with the last byte of its answer, and seen here a little before or after that.
const SEEN: Duration = Duration::from_millis(250);

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

fn manifest(name: &str, value: u64) -> String {
    hello_manifest(name, "", 4)
        .replace(
            "  annotations:\n    sas",
            &format!("  labels: {{trial: \"{value}\"}}\n  annotations:\n    sas"),
        )
        .replace("[{}]", &format!("[{{env: [{{name: TRIAL, value: \"{value}\"}}]}}]"))
}

async fn get(admin: SocketAddr, path: &str) -> Value {
    let answer = call_admin(admin, "GET", path, "").await.expect("the admin API answers");
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()
}

/// What clients saw of one life of the platform.
#[derive(Default)]
struct Seen {
    answered: Mutex<Vec<Timestamp>>,
    unanswered: AtomicUsize,
    wrong: Mutex<Vec<Answer>>,
    enough: AtomicBool,
}

impl Seen {
    async fn ask(&self, listen: SocketAddr, service: &str, path: &str) -> bool {
        match call(listen, "GET", &format!("{service}.default.localhost"), path, "").await {
            Ok(answer) if answer.status == 200 => self.answered.lock().push(SystemClock.now()),
            Ok(answer) => self.wrong.lock().push(answer),
            Err(_) => {
                self.unanswered.fetch_add(1, Ordering::Relaxed);
                return false;
            }
        }
        true
    }

    fn clients(self: &Arc<Self>, listen: SocketAddr) -> JoinSet<()> {
        let client = |seen: Arc<Self>| async move {
            let mut goes_on = true;
            while goes_on && !seen.enough.load(Ordering::Relaxed) {
                goes_on = seen.ask(listen, "hello", "/work?ms=5").await;
            }
        };
        (0..CLIENTS).map(|_| client(Arc::clone(self))).collect()
    }
}

/// Services as they were acknowledged, each with its last value, and the one change that was not answered.
#[derive(Default)]
struct Services {
    acknowledged: BTreeMap<String, u64>,
    open: Option<(String, Option<u64>)>,
    changes: u64,
}

impl Services {
    /// Changes one after the other until the platform is gone.
    async fn change(&mut self, admin: SocketAddr, dice: &mut SmallRng) {
        loop {
            self.changes += 1;
            let name = format!("app-{}", dice.random_range(0..SERVICES));
            let goes = self.acknowledged.contains_key(&name) && dice.random_bool(0.3);
            let value = (!goes).then_some(self.changes);
            self.open = Some((name.clone(), value));
            let asked = match value {
                Some(value) => call_admin(admin, "POST", "/v1/services", &manifest(&name, value)).await,
                None => call_admin(admin, "DELETE", &format!("/v1/services/default/{name}"), "").await,
            };
            let Ok(answer) = asked else { return };
            assert!((200..300).contains(&answer.status), "{name}: {answer:?}");
            self.settle(&name, value);
        }
    }

    fn settle(&mut self, name: &str, value: Option<u64>) {
        match value {
            Some(value) => drop(self.acknowledged.insert(name.to_owned(), value)),
            None => drop(self.acknowledged.remove(name)),
        }
        self.open = None;
    }

    /// The platform has all that it acknowledged and nothing else. The change that it did not answer was done or not.
    async fn check(&mut self, admin: SocketAddr) {
        let page = get(admin, "/v1/services?limit=5000").await;
        let mut found = BTreeMap::new();
        for service in page["services"].as_array().expect("a list") {
            let name = service["name"].as_str().expect("a name");
            if name != "hello" {
                let shown = get(admin, &format!("/v1/services/default/{name}")).await;
                let value = shown["labels"]["trial"].as_str().and_then(|value| value.parse().ok());
                found.insert(
                    name.to_owned(),
                    value.unwrap_or_else(|| panic!("{name} has its label: {shown}")),
                );
            }
        }
        if let Some((name, value)) = self.open.take()
            && found.get(&name).copied() == value
        {
            self.settle(&name, value);
        }
        assert_eq!(found, self.acknowledged, "services as they were acknowledged");
    }
}

/// What the platform says was used.
struct Books {
    requests: usize,
    gaps: Vec<(Timestamp, Timestamp)>,
}

impl Books {
    /// Reads them, and adds the hours up: to the nanosecond they are what the sums say.
    async fn read(admin: SocketAddr) -> Self {
        let amounts = |totals: &Value| -> BTreeMap<String, u128> {
            let amount = |value: &Value| {
                value.as_str().map_or(value.as_u64().map(u128::from), |text| text.parse().ok())
            };
            let totals = totals.as_object().expect("totals").iter();
            totals.map(|(name, value)| (name.clone(), amount(value).expect("a whole number"))).collect()
        };
        let page = get(admin, "/v1/usage").await;
        let of_default = |tenant: &&Value| tenant["namespace"] == "default";
        let sums = page["tenants"].as_array().expect("a list").iter().find(of_default);
        let sums = sums.map(|tenant| amounts(&tenant["totals"])).unwrap_or_default();
        let mut added: BTreeMap<String, u128> = BTreeMap::new();
        let mut path = "/v1/usage/hours?namespace=default".to_owned();
        let gaps = loop {
            let page = get(admin, &path).await;
            for hour in page["hours"].as_array().expect("a list") {
                for (name, amount) in amounts(&hour["totals"]) {
                    *added.entry(name).or_default() += amount;
                }
            }
            match page["next"].as_str() {
                Some(next) => path = format!("/v1/usage/hours?namespace=default&after={next}"),
                None => break page["gaps"].clone(),
            }
        };
        assert_eq!(added, sums, "hours add up to the sums");
        let time = |text: &Value| {
            let time: jiff::Timestamp = text.as_str().expect("a time").parse().expect("in RFC 3339");
            Timestamp::from_millis(time.as_millisecond())
        };
        let gaps = gaps.as_array().expect("a list").iter();
        let gaps = gaps.map(|gap| (time(&gap["from"]), time(&gap["until"]))).collect();
        Self { requests: sums.get("requests").map_or(0, |count| *count as usize), gaps }
    }
}

fn start(state: &Path) -> PlatformProcess {
    let seconds = CHECKPOINT.as_secs().to_string();
    PlatformProcess::start(&[
        "--state",
        state.to_str().expect("UTF-8"),
        "--usage-checkpoint",
        &seconds,
        "--log",
        "warn",
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kills_and_the_books_miss_what_their_gaps_say() {
    let long = std::env::var_os("SAS_LONG").is_some();
    let kills = number("SAS_KILLS").unwrap_or(if long { 200 } else { 5 });
    let mut dice = SmallRng::seed_from_u64(number("SAS_SEED").unwrap_or(1));
    let dir = tempfile::tempdir().expect("a temporary directory");
    let state = dir.path().join("state");
    let mut platform = start(&state);
    let answer =
        call_admin(platform.admin, "POST", "/v1/services", &manifest("hello", 0)).await.expect("deployed");
    assert_eq!(answer.status, 201, "{answer:?}");

    let mut services = Services::default();
    let mut books = Books::read(platform.admin).await;
    let (mut answered, mut unanswered, mut missing, mut killed_instances) = (0, 0, 0, 0);
    let mut back = Vec::new();
    let mut seen = Arc::new(Seen::default());
    for kill in 0..kills {
        let clients = seen.clients(platform.listen);
        // Not at once after the start in each life, and now and then long after a checkpoint.
        let life = Duration::from_millis(dice.random_range(200..2_500));
        let admin = platform.admin;
        let killed = async {
            tokio::time::sleep(life).await;
            let ran = processes_below(&state).len();
            platform.kill();
            (ran, SystemClock.now())
        };
        let (_, (ran, at)) = tokio::join!(services.change(admin, &mut dice), killed);
        let orphans = processes_below(&state);
        clients.join_all().await;
        killed_instances += ran;

        let began = Instant::now();
        platform = start(&state);
        back.push(began.elapsed());
        eventually("no process of the life before is left", Duration::from_secs(10), async || {
            let left = processes_below(&state);
            !orphans.iter().any(|orphan| left.contains(orphan))
        })
        .await;
        services.check(platform.admin).await;

        let wrong = std::mem::take(&mut *seen.wrong.lock());
        assert!(wrong.is_empty(), "kill {kill}: {wrong:?}");
        let answers = std::mem::take(&mut *seen.answered.lock());
        let cut = seen.unanswered.load(Ordering::Relaxed);
        let now = Books::read(platform.admin).await;
        let metered = now.requests - books.requests;
        let what = format!(
            "kill {kill} after {life:?}: {} answers, {cut} cut, {metered} in the books",
            answers.len()
        );
        assert!(metered <= answers.len() + cut, "nothing is counted twice: {what}");
        match now.gaps.len() - books.gaps.len() {
            1 => {
                let (from, until) = now.gaps[now.gaps.len() - 1];
                assert!(from <= at && at <= until, "the kill is in the gap: {what}");
                assert!(at.since(from) <= CHECKPOINT + LATE, "{:?} are missing: {what}", at.since(from));
                let before = answers.iter().filter(|answer| **answer + SEEN < from).count();
                assert!(metered >= before, "{before} were answered before the gap: {what}");
            }
            0 => {
                let early = answers.iter().filter(|answer| at.since(**answer) > LATE).count();
                assert!(early == 0 && metered == 0, "use without a gap: {what}");
            }
            more => panic!("{more} gaps of one kill: {what}"),
        }
        seen = Arc::default();
        answered += answers.len();
        unanswered += cut;
        missing += answers.len().saturating_sub(metered);
        books = now;
        // What the state says is served: its package is there, too.
        if let Some(name) = services.acknowledged.keys().next() {
            assert!(seen.ask(platform.listen, name, "/").await, "{name} is served");
        }
    }

    // One that is not killed misses nothing.
    let clients = seen.clients(platform.listen);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    seen.enough.store(true, Ordering::Relaxed);
    clients.join_all().await;
    assert!(platform.terminate().success());
    let platform = start(&state);
    let now = Books::read(platform.admin).await;
    let answers = seen.answered.lock().len();
    assert_eq!(now.gaps.len(), books.gaps.len(), "an end that was asked for leaves no gap");
    assert_eq!(now.requests - books.requests, answers, "and no request out");
    back.sort_unstable();
    println!(
        "{kills} kills, {killed_instances} instances ran at them: {} changes, none lost; {answered} answers and {unanswered} \
         cut, {missing} of the answers in {} gaps; ready again after {:?} (median), {:?} at most",
        services.changes,
        now.gaps.len(),
        back[back.len() / 2],
        back[back.len() - 1],
    );
}

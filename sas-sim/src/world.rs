//! Carries out a plan and lets the invariants look.

use std::{any::Any, collections::BTreeMap, fmt, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use parking_lot::Mutex;
use sas::Preset;
use sas_core::{
    Body, Cx, ErrorKind, Invoker as _, Payer, Quota, Request, RequestId, Target, Timestamp, TriggerSpec,
};
use sas_knative::manifest::{ServiceManifest, TrafficTarget};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use crate::{
    Plant,
    books::Books,
    clock::SimClock,
    draw::Draw,
    history::{Answered, Fact, History, QuotaSet},
    host::{HORIZON_MINUTES, Host, manifest, name, special},
    invariants::{Invariant, View, durable::Durable, leaks, replay},
    plan::{Action, SAFETY, Step, plan, with_crash},
    queue::{self, SimQueue},
    runtime::{REQUEST, StartFault},
    store::{Applied, SimStore},
};

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a plain record")]
pub struct Violation {
    /// Which invariant says so.
    pub invariant: &'static str,
    /// What the invariant saw, for whoever reads the report.
    pub message: String,
}

/// How a plan went.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SeedRun {
    /// The seed of everything that the plan leaves open.
    pub seed: u64,
    /// The bug that was planted.
    pub plant: Option<Plant>,
    /// The steps of the run, in the order of their times.
    pub steps: Vec<Step>,
    /// Hash of the history.
    pub hash: u64,
    /// Facts in the history.
    pub facts: u64,
    /// Requests that were sent.
    pub requests: u64,
    /// Writes to the store.
    pub writes: u64,
    /// Faults that were injected, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// The first violation of each invariant.
    pub violations: Vec<Violation>,
    /// What happened, where it was asked for.
    pub told: Vec<(Duration, Fact)>,
}

impl fmt::Display for SeedRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: hash {:016x}, {} facts, {} requests",
            self.seed, self.hash, self.facts, self.requests
        )?;
        for violation in &self.violations {
            writeln!(f, "  {}: {}", violation.invariant, violation.message)?;
        }
        if !self.violations.is_empty() {
            writeln!(f, "  the plan:")?;
            for step in &self.steps {
                writeln!(f, "    {step}")?;
            }
            write!(f, "  again: cargo run --release -p sas-sim --example seeds -- --seed {}", self.seed)?;
            if let Some(plant) = self.plant {
                write!(f, " --plant {plant:?}")?;
            }
            let (write, kept) = self.origin();
            match write {
                Some((write, Applied::Not)) => write!(f, " --write {write}")?,
                Some((write, Applied::Whole)) => write!(f, " --write {write}a")?,
                Some((write, Applied::Part(percent))) => write!(f, " --write {write}t{percent}")?,
                None => {}
            }
            if let Some(kept) = kept {
                let kept: Vec<String> = kept.iter().map(usize::to_string).collect();
                write!(f, " --keep {}", kept.join(","))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl SeedRun {
    /// The whole plan that these steps are of: that of the seed, or with a crash at a write that is none of its own.
    /// And which steps of it are left, where some are not.
    pub fn origin(&self) -> (Option<(u64, Applied)>, Option<Vec<usize>>) {
        let own = plan(self.seed);
        let write = self.steps.iter().filter(|step| !own.contains(step)).find_map(|step| match step.action {
            Action::CrashAtWrite { write, applied: true } => Some((write, Applied::Whole)),
            Action::CrashAtWrite { write, applied: false } => Some((write, Applied::Not)),
            Action::TornWrite { write, percent } => Some((write, Applied::Part(percent))),
            _ => None,
        });
        let whole = match write {
            Some((write, applied)) => with_crash(self.seed, write, applied),
            None => own,
        };
        let mut left = self.steps.iter().peekable();
        let kept: Vec<usize> = whole
            .iter()
            .enumerate()
            .filter(|(_, step)| left.next_if_eq(step).is_some())
            .map(|(at, _)| at)
            .collect();
        (write, (kept.len() < whole.len()).then_some(kept))
    }
}

/// The preset of the platform of a seed: each fourth works ahead of demand, the others are Knative's, whose promises about
/// sleep are stricter.
fn preset_of(seed: u64) -> Preset {
    if seed % 4 == 3 { Preset::Default } else { Preset::Knative }
}

/// Runs the plan of a seed.
pub fn run_seed(seed: u64, plant: Option<Plant>) -> SeedRun {
    run(seed, plan(seed), plant)
}

/// Runs a plan. What it leaves open follows from the seed.
///
/// # Panics
/// When no runtime can be built.
pub fn run(seed: u64, steps: Vec<Step>, plant: Option<Plant>) -> SeedRun {
    run_plan(seed, steps, plant, false)
}

/// The same, keeping every fact.
///
/// # Panics
/// When no runtime can be built.
pub fn run_told(seed: u64, steps: Vec<Step>, plant: Option<Plant>) -> SeedRun {
    run_plan(seed, steps, plant, true)
}

fn run_plan(seed: u64, steps: Vec<Step>, plant: Option<Plant>, tell: bool) -> SeedRun {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O");
    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let world = World::new(seed, plant, tell);
            Box::pin(world.run(&steps)).await
        })
    }));
    match ran {
        Ok(mut outcome) => {
            outcome.steps = steps;
            outcome
        }
        Err(panic) => {
            let violation = Violation { invariant: "no panic", message: panicked(&*panic) };
            SeedRun {
                seed,
                plant,
                steps,
                hash: 0,
                facts: 0,
                requests: 0,
                writes: 0,
                faults: BTreeMap::new(),
                violations: vec![violation],
                told: Vec::new(),
            }
        }
    }
}

/// The text of a panic.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a value that is not text").to_owned()
}

/// How long a client waits for its answer.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often the invariants look.
const LOOK: Duration = Duration::from_millis(250);
/// The period of the trigger.
const PERIOD: Duration = Duration::from_secs(5);

struct World {
    seed: u64,
    tell: bool,
    plant: Option<Plant>,
    history: Arc<History>,
    store: Arc<SimStore>,
    clock: Arc<SimClock>,
    queue: Arc<SimQueue>,
    host: Mutex<Option<Arc<Host>>>,
    clients: TaskTracker,
    next: Mutex<u64>,
    versions: Mutex<u64>,
    epoch: Mutex<u64>,
    faults: Mutex<BTreeMap<&'static str, u64>>,
    /// Milliseconds that the wall clock jumped back, in all: times that come twice and are not fired twice.
    back: Mutex<u64>,
    /// What the control plane said that it keeps.
    durable: Mutex<Durable>,
    books: Arc<Books>,
    restarting: tokio::sync::Mutex<()>,
    /// Violations that are seen by others than the invariants that look at every fact.
    late: Mutex<Vec<Violation>>,
    told: Mutex<Vec<(Duration, Fact)>>,
}

impl World {
    fn new(seed: u64, plant: Option<Plant>, tell: bool) -> Arc<Self> {
        let mut draw = Draw::new(seed).fork(2);
        let drift = draw.below(401) as i64 - 200;
        let lies = plant == Some(Plant::AcknowledgesLostWrites);
        let clients = TaskTracker::new();
        clients.close();
        let history: Arc<History> = Arc::default();
        Arc::new(Self {
            seed,
            tell,
            plant,
            queue: Arc::new(SimQueue::new(Arc::clone(&history))),
            history,
            store: Arc::new(if lies { SimStore::lying() } else { SimStore::default() }),
            clock: Arc::new(SimClock::new(Timestamp::from_secs(1_767_571_200), drift)),
            host: Mutex::new(None),
            clients,
            next: Mutex::new(0),
            versions: Mutex::new(0),
            epoch: Mutex::new(0),
            faults: Mutex::default(),
            back: Mutex::default(),
            durable: Mutex::default(),
            books: Arc::default(),
            restarting: tokio::sync::Mutex::new(()),
            late: Mutex::default(),
            told: Mutex::default(),
        })
    }

    /// Whether the platform works ahead of demand.
    fn ahead(&self) -> bool {
        preset_of(self.seed) == Preset::Default
    }

    fn host(&self) -> Option<Arc<Host>> {
        self.host.lock().clone()
    }

    async fn boot(&self) {
        let epoch = {
            let mut epoch = self.epoch.lock();
            *epoch += 1;
            *epoch
        };
        let draw = Draw::new(self.seed).fork(100 + epoch);
        let (history, plant) = (&self.history, self.plant);
        let preset = preset_of(self.seed);
        let parts = (&self.queue, &self.books);
        let booted = Host::boot(history, &self.store, &self.clock, parts, draw, (preset, plant), epoch).await;
        self.history.tell(Fact::Control { what: "boot".into(), done: booted.is_ok() });
        if let Ok(host) = &booted {
            let damaged = self.store.damaged().await;
            if damaged.iter().any(|key| key.starts_with("quota/") || key.starts_with("tenant/")) {
                self.history.tell(Fact::QuotaUnsure);
            }
            let mut durable = self.durable.lock();
            let unnamed = durable.damaged(&damaged, &host.recovery());
            let broken = unnamed.or_else(|| durable.came_back(host.control()));
            self.late.lock().extend(broken.map(|message| Violation { invariant: "durable", message }));
        }
        *self.host.lock() = booted.ok();
    }

    /// The host dies and comes back on what the store holds.
    async fn crash(&self) {
        let _one_at_a_time = self.restarting.lock().await;
        let host = self.host.lock().take();
        if let Some(host) = host {
            self.history.tell(Fact::HostDied);
            host.kill().await;
        }
        sleep(Duration::from_millis(500)).await;
        self.store.reopen();
        self.boot().await;
    }

    async fn run(self: &Arc<Self>, steps: &[Step]) -> SeedRun {
        let mut invariants = crate::invariants::all();
        let mut violations: Vec<Violation> = Vec::new();
        let faulty = steps.iter().any(|step| step.action.fault().is_some());
        let began = Instant::now();
        // What is planned for the first moment counts from the first write.
        let (first, steps) = steps.split_at(steps.iter().take_while(|step| step.at.is_zero()).count());
        let actions = TaskTracker::new();
        for step in first.iter().filter(|step| step.action.is_at_a_write()) {
            self.take(step, &actions).await;
        }
        self.boot().await;

        let crashing = async {
            loop {
                self.store.crashed().await;
                self.crash().await;
            }
        };
        let watching = async {
            loop {
                sleep(LOOK).await;
                self.look(&mut invariants, &mut violations, faulty, false);
            }
        };
        let script = async {
            for step in first.iter().filter(|step| !step.action.is_at_a_write()) {
                self.take(step, &actions).await;
            }
            for step in steps {
                sleep_until(began + step.at).await;
                self.take(step, &actions).await;
            }
            sleep_until(began + SAFETY).await;
            Box::pin(self.liveness(&actions)).await
        };
        let late = tokio::select! {
            biased;
            late = script => late,
            () = watching => Vec::new(),
            () = crashing => Vec::new(),
        };
        self.look(&mut invariants, &mut violations, faulty, true);
        let books = self.books.broken().map(|message| Violation { invariant: "books", message });
        let late = late.into_iter().chain(std::mem::take(&mut *self.late.lock())).chain(books);
        for violation in late {
            if !violations.iter().any(|known| known.invariant == violation.invariant) {
                violations.push(violation);
            }
        }
        SeedRun {
            seed: self.seed,
            plant: self.plant,
            steps: Vec::new(),
            hash: self.history.hash(),
            facts: self.history.len(),
            requests: *self.next.lock(),
            writes: self.store.writes(),
            faults: std::mem::take(&mut *self.faults.lock()),
            violations,
            told: std::mem::take(&mut *self.told.lock()),
        }
    }

    async fn take(self: &Arc<Self>, step: &Step, actions: &TaskTracker) {
        self.history.tell(Fact::Step(format!("{:?}", step.action)));
        if let Some(kind) = step.action.fault() {
            *self.faults.lock().entry(kind).or_default() += 1;
        }
        self.act(&step.action, actions).await;
    }

    /// Lets every invariant look at what happened since, and at the pool as it is.
    fn look(
        &self,
        invariants: &mut [Box<dyn Invariant>],
        violations: &mut Vec<Violation>,
        faulty: bool,
        end: bool,
    ) {
        let facts = self.history.drain();
        if self.tell {
            self.told.lock().extend(facts.iter().cloned());
        }
        let host = self.host();
        let view = View::of(host.as_deref(), faulty, end);
        for invariant in invariants {
            let seen = invariant.look(&facts, &view);
            if let Err(message) = seen
                && !violations.iter().any(|known| known.invariant == invariant.name())
            {
                violations.push(Violation { invariant: invariant.name(), message });
            }
        }
    }

    async fn act(self: &Arc<Self>, action: &Action, actions: &TaskTracker) {
        match action {
            Action::Deploy { service, concurrency, max } => {
                let version = {
                    let mut versions = self.versions.lock();
                    *versions += 1;
                    *versions
                };
                self.deploy(*service, manifest(*service, *concurrency, *max, version, self.ahead()), actions);
            }
            Action::DeployAs { service, special: kind } => {
                let version = {
                    let mut versions = self.versions.lock();
                    *versions += 1;
                    *versions
                };
                self.deploy(*service, special(*service, *kind, version, self.ahead()), actions);
            }
            Action::Quota { concurrency, rate, burst } => {
                let set = QuotaSet { concurrency: *concurrency, rate: *rate, burst: *burst };
                let world = Arc::clone(self);
                actions.spawn(async move {
                    if let Some(host) = world.host() {
                        world.limit(&host, Some(set)).await;
                    }
                });
            }
            Action::FallIll { index, hangs } => {
                if let Some(host) = self.host() {
                    host.runtime.fall_ill(*index, *hangs);
                }
            }
            Action::Enqueue { messages } => self.queue.push(*messages),
            Action::Split { service, percent } => {
                let (world, service, percent) = (Arc::clone(self), *service, *percent);
                actions.spawn(async move {
                    let Some(host) = world.host() else { return };
                    let Ok(record) = host.control().record("default", &name(service)) else { return };
                    let names: Vec<&str> = record.revisions.iter().map(|it| it.name.as_str()).collect();
                    let [.., older, newer] = names[..] else { return };
                    let service = name(service);
                    let targets = vec![
                        TrafficTarget::revision(older.to_owned(), percent),
                        TrafficTarget::revision(newer.to_owned(), 100 - percent),
                    ];
                    let done = tokio::select! {
                        biased;
                        () = host.lost.cancelled() => false,
                        set = host.control().set_traffic("default", &service, targets) => set.is_ok(),
                    };
                    world.changed(&host, "split", &service, done);
                });
            }
            Action::Delete { service } => {
                let (world, service) = (Arc::clone(self), name(*service));
                actions.spawn(async move {
                    let Some(host) = world.host() else { return };
                    let done = tokio::select! {
                        biased;
                        () = host.lost.cancelled() => false,
                        deleted = host.control().delete("default", &service) => deleted.is_ok(),
                    };
                    world.changed(&host, "delete", &service, done);
                });
            }
            Action::Traffic { service, requests, over, seed } => {
                let mut draw = Draw::new(*seed);
                for _ in 0..*requests {
                    let after = draw.between(Duration::ZERO, *over);
                    let idempotent = draw.chance(0.5);
                    let patience =
                        draw.chance(0.1).then(|| draw.between(Duration::ZERO, Duration::from_secs(4)));
                    let (world, service) = (Arc::clone(self), *service);
                    self.clients.spawn(async move {
                        sleep(after).await;
                        world.request(service, idempotent, patience).await;
                    });
                }
            }
            Action::Kill { index } => {
                if let Some(host) = self.host() {
                    host.runtime.kill(*index);
                }
            }
            Action::FailStarts { count } => {
                for _ in 0..*count {
                    self.next_start(StartFault::Fail);
                }
            }
            Action::HangStart => self.next_start(StartFault::Hang),
            Action::DieAfter(after) => self.next_start(StartFault::Die(*after)),
            Action::Slow(time) => {
                if let Some(host) = self.host() {
                    host.runtime.set_service_time(*time);
                }
            }
            Action::ClockJump(millis) => {
                self.clock.jump(*millis);
                *self.back.lock() += millis.min(&0).unsigned_abs();
            }
            Action::StoreBreaks { after, applied } => self.store.break_after(*after, *applied),
            Action::HostCrash => self.crash().await,
            Action::CrashAtWrite { write, applied } => {
                self.store.crash_at(*write, if *applied { Applied::Whole } else { Applied::Not });
            }
            Action::TornWrite { write, percent } => self.store.crash_at(*write, Applied::Part(*percent)),
            Action::SlowStore(delay) => self.store.slow(*delay),
            Action::ExitsTwice => {
                if let Some(host) = self.host() {
                    host.runtime.tell_exits_twice();
                }
            }
            Action::Recycle { service } => {
                if let Some(host) = self.host() {
                    for key in host.keys(*service) {
                        if let Some(view) = host.pool().instances(key).first() {
                            host.pool().recycle(key, view.id, Duration::from_secs(2));
                        }
                    }
                }
            }
        }
    }

    fn deploy(self: &Arc<Self>, service: u32, manifest: ServiceManifest, actions: &TaskTracker) {
        let world = Arc::clone(self);
        actions.spawn(async move {
            let Some(host) = world.host() else { return };
            let done = tokio::select! {
                biased;
                () = host.lost.cancelled() => false,
                deployed = host.control().deploy(manifest) => deployed.is_ok(),
            };
            world.changed(&host, "deploy", &name(service), done);
            // The first service gets a timer, which wakes it all through the run, and reads the queue.
            if service == 0 && done {
                for spec in [tick(), work()] {
                    let done = tokio::select! {
                        biased;
                        () = host.lost.cancelled() => false,
                        applied = host.control().apply_trigger(spec) => applied.is_ok(),
                    };
                    world.history.tell(Fact::Control { what: "trigger".into(), done });
                }
            }
        });
    }

    /// Changes what the tenant may use. Until it is acknowledged nothing certain holds, and afterwards if it is not.
    async fn limit(&self, host: &Host, set: Option<QuotaSet>) -> bool {
        self.history.tell(Fact::QuotaUnsure);
        let quota = set.map(|set| {
            let quota =
                if set.rate > 0 { Quota::rate(f64::from(set.rate), set.burst) } else { Quota::UNLIMITED };
            if set.concurrency > 0 { quota.with_concurrency(set.concurrency) } else { quota }
        });
        let done = tokio::select! {
            biased;
            () = host.lost.cancelled() => false,
            done = host.control().set_tenant_quota("default", quota.map(Into::into)) => done.is_ok(),
        };
        if self.plant == Some(Plant::ForgetsQuotas) {
            host.forget_quota();
        }
        self.history.tell(if done { Fact::Quota(set) } else { Fact::QuotaUnsure });
        done
    }

    /// A change of a service was acknowledged, or its outcome is not known: a write may have been applied all the same.
    fn changed(&self, host: &Host, what: &str, service: &str, done: bool) {
        self.durable.lock().changed(host.control(), service, done, what == "delete");
        self.history.tell(Fact::Control { what: format!("{what} {service}"), done });
    }

    fn next_start(&self, fault: StartFault) {
        if let Some(host) = self.host() {
            host.runtime.next_start(fault);
        }
    }

    async fn request(&self, service: u32, idempotent: bool, patience: Option<Duration>) -> Option<Answered> {
        let host = self.host()?;
        let number = {
            let mut next = self.next.lock();
            *next += 1;
            *next
        };
        self.history.tell(Fact::Sent { request: number, service, idempotent });
        let mut request = Request::new(Body::empty());
        *request.method_mut() = if idempotent { http::Method::GET } else { http::Method::POST };
        request.headers_mut().insert(REQUEST, http::HeaderValue::from(number));
        let cx = Cx::new(Payer::Owner, RequestId(u128::from(number)), Instant::now() + DEADLINE);
        let target = Target::Service(format!("default/{}", name(service)).into());
        let invoked = async {
            match host.gateway().invoke(target, request, &cx).await {
                Ok(response) => {
                    let status = response.status().as_u16();
                    match response.into_body().collect(1 << 20).await {
                        Ok(_) => Answered::Status(status),
                        Err(_) => Answered::Error("body"),
                    }
                }
                Err(failed) => Answered::Error(failed.error.kind.as_str()),
            }
        };
        let leaves = async {
            match patience {
                Some(patience) => sleep(patience).await,
                None => std::future::pending().await,
            }
        };
        if self.plant == Some(Plant::LosesAnswers) && number % 23 == 7 {
            return None;
        }
        let answer = tokio::select! {
            biased;
            () = host.lost.cancelled() => Answered::Error("host_lost"),
            answer = invoked => answer,
            () = leaves => Answered::Left,
        };
        self.history.tell(Fact::Answered { request: number, answer: answer.clone() });
        Some(answer)
    }

    /// What an operator does about damaged values, by what the recovery told: what fails of it.
    async fn repair(&self, host: &Host) -> Vec<String> {
        let mut failed = Vec::new();
        for key in self.store.damaged().await {
            let done = if let Some(service) = key.strip_prefix("service/default/svc-") {
                let service: u32 = service.parse().unwrap_or(0);
                let deployed = host.control().deploy(manifest(service, 2, 3, 1_000_000, self.ahead())).await;
                self.changed(host, "deploy", &name(service), deployed.is_ok());
                deployed.map(drop)
            } else if key.starts_with("quota/") {
                host.control().set_tenant_quota("default", None).await
            } else if key.starts_with("deadletter/") {
                let trigger = trigger_of(&key).name;
                let trigger = trigger.trim_start_matches("default/");
                let told = host.control().dead_letters("default", trigger, None, usize::MAX).await;
                if !told.is_err_and(|error| error.message.contains(&key)) {
                    failed.push(format!("{key} is damaged, and whoever reads the dead letters is not told"));
                }
                host.control().discard_dead_letters("default", trigger).await.map(drop)
            } else if key.starts_with("trigger") {
                let spec = trigger_of(&key);
                let trigger = spec.name.trim_start_matches("default/");
                let gone = host.control().delete_trigger("default", trigger).await;
                match gone.and(host.control().record("default", &name(0))) {
                    Ok(_) => host.control().apply_trigger(spec).await.map(drop),
                    // Without its service nobody wants it back.
                    Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
                    Err(error) => Err(error),
                }
            } else {
                Ok(())
            };
            if let Err(error) = done {
                failed.push(format!("{key} is damaged, and can't be written anew: {}", error.chain()));
            }
        }
        failed
    }

    /// The faults have ended: everything must serve, settle, sleep and go.
    async fn liveness(self: &Arc<Self>, actions: &TaskTracker) -> Vec<Violation> {
        let mut violations = Vec::new();
        let mut broken = |invariant, message| violations.push(Violation { invariant, message });
        self.store.mend();
        actions.close();
        if tokio::time::timeout(Duration::from_secs(120), actions.wait()).await.is_err() {
            broken("desired is reached", "a change of the control plane never ended".to_owned());
        }
        let restarting = self.restarting.lock().await;
        if self.host().is_none() {
            self.boot().await;
        }
        drop(restarting);
        let Some(host) = self.host() else {
            broken("durable", "the host does not come back on a store that works".to_owned());
            return violations;
        };
        host.runtime.mend();
        self.history.tell(Fact::Step("faults end".into()));
        if tokio::time::timeout(DEADLINE + Duration::from_secs(10), self.clients.wait()).await.is_err() {
            broken("one answer", "clients still wait after their deadline".to_owned());
        }
        // Longer than a start that hangs and the longest pause after it.
        sleep(Duration::from_secs(30)).await;
        for message in self.repair(&host).await {
            broken("durable", message);
        }
        if !self.limit(&host, None).await {
            broken("quotas", "after the faults a quota can't be taken away".to_owned());
        }

        for record in host.control().records() {
            let Some(service) = record.name.strip_prefix("svc-").and_then(|number| number.parse().ok())
            else {
                continue;
            };
            let deployed = host.control().deploy(manifest(service, 2, 3, 1_000_000, self.ahead())).await;
            self.history
                .tell(Fact::Control { what: format!("deploy {}", record.name), done: deployed.is_ok() });
            if let Err(error) = deployed {
                broken("desired is reached", format!("after the faults a deploy fails: {}", error.chain()));
            }
            let answers =
                futures_like_join((0..4).map(|_| self.request(service, true, None)).collect()).await;
            if let Some(bad) = answers.iter().flatten().find(|answer| **answer != Answered::Status(200)) {
                let keys = host.keys(service);
                let states: Vec<_> = keys.iter().map(|key| host.pool().status(*key)).collect();
                broken(
                    "no lost wake-up",
                    format!(
                        "after the faults {} answers with {bad:?}; its revisions: {states:?}",
                        record.name
                    ),
                );
            }
        }
        // What is known of a tenant is written anew with the first deploy of its namespace.
        let mut damaged = self.store.damaged().await;
        damaged.retain(|key| !key.starts_with("tenant/") || !host.control().records().is_empty());
        if !damaged.is_empty() {
            broken("durable", format!("{damaged:?} are damaged still, though all was written anew"));
        }
        // The timer must be heard in five of its periods, if there is one and its service is there.
        let target = host.control().record("default", &name(0)).is_ok();
        // Times that were fired before the clock jumped back are not fired again.
        let back = Duration::from_millis(*self.back.lock());
        sleep(back).await;
        let expected =
            target && host.control().trigger_status().iter().any(|status| status.name == "default/tick");
        self.history.tell(Fact::Quiet { timer: expected });
        sleep(PERIOD * 5).await;
        self.history.tell(Fact::QuietEnds);
        let reads =
            target && host.control().trigger_status().iter().any(|status| status.name == "default/work");
        if reads && self.queue.len() > 0 {
            let left = self.queue.len();
            broken("messages arrive", format!("{left} messages wait still, and their service is there"));
        }
        for status in host.control().trigger_status() {
            let (namespace, trigger) = status.name.split_once('/').unwrap_or(("default", "tick"));
            let _ = host.control().delete_trigger(namespace, trigger).await;
        }
        // What is kept warm goes later, by decisions of the pool's own.
        let rest = if host.ahead { AHEAD_REST } else { Duration::from_secs(60) };
        sleep(rest).await;
        let live = host.runtime.live();
        if !live.is_empty() {
            broken("desired is reached", format!("{rest:?} after the last request {live:?} still run"));
        }
        for message in leaks::at_rest(&host) {
            broken("no leaks", message);
        }
        for message in replay::differences(&host, self.plant) {
            broken("decisions replay", message);
        }
        self.durable.lock().wants(host.control());
        drop(host);
        let host = self.host.lock().take();
        if let Some(host) = host {
            if tokio::time::timeout(Duration::from_secs(30), host.end(Duration::from_secs(10))).await.is_err()
            {
                broken("no leaks", "the shutdown does not end".to_owned());
            }
            for message in leaks::after_shutdown(&host).await {
                broken("no leaks", message);
            }
        }
        // What was wanted is what the store brings back.
        self.boot().await;
        if let Some(host) = self.host() {
            host.end(Duration::ZERO).await;
        }
        self.host.lock().take();
        violations
    }
}

/// How long a platform that keeps instances warm is watched after the last request: for as long as its policy looks ahead,
/// and a while more.
const AHEAD_REST: Duration = Duration::from_secs((HORIZON_MINUTES as u64 + 5) * 60);

/// What brings messages of the queue to the first service.
fn work() -> TriggerSpec {
    TriggerSpec::new("default/work", queue::KIND, format!("default/{}", name(0)))
}

/// The trigger whose key in the store this is.
fn trigger_of(key: &str) -> TriggerSpec {
    if key.split('/').any(|part| part == "work") { work() } else { tick() }
}

/// The timer of the first service.
fn tick() -> TriggerSpec {
    TriggerSpec::new("default/tick", "timer", format!("default/{}", name(0)))
        .with_option("period", format!("{}s", PERIOD.as_secs()))
}

/// Runs all on this task, each in its turn.
async fn futures_like_join<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, done) in futures.iter_mut().zip(&mut done) {
            if done.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *done = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

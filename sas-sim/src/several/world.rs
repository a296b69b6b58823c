//! What is done to the hosts of a run.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas::{ClusterOptions, Machine, Platform};
use sas_core::{
    Body, CallError, Commit, Cx, Handler as _, Invoker, MemoryStore, Place, Request, Response, Result,
    Secret, Store as _, Target, Timestamp, TriggerSpec,
};
use sas_testkit::fault::LinkFault;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    SeveralPlant, SeveralRun,
    link::{Gate, HostLink},
    lives::{Life, NAMESPACE, SERVICES, Sent, Shared, paths},
    promises::{Seen, broken},
};
use crate::{
    clock::SimClock,
    draw::Draw,
    history::History,
    host::{manifest, name},
    runtime::{REQUEST, SimRuntime},
    world::Violation,
};

/// The shortest that a lease may be is a second.
const TERM: Duration = Duration::from_secs(2);
/// How long everything goes wrong.
const SAFETY: Duration = Duration::from_secs(30);
/// How often the promises are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// After the faults each shard has its owner, and all know it.
const SETTLED: Duration = Duration::from_secs(7);
/// After that everything is served by whichever host is asked.
const SERVED: Duration = Duration::from_secs(20);
/// Longer than any request may take: held, passed on, started for and answered.
const ANSWERED: Duration = Duration::from_secs(180);
/// Longer than all of a run's parts together may take.
const ENDED: Duration = Duration::from_secs(900);
const SECRET: &str = "of the simulator: 32 bytes at least";
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// What the triggers of a host send through.
#[derive(Debug)]
struct Noting {
    inner: Arc<dyn Invoker>,
    shared: Arc<Shared>,
    epoch: u64,
}

#[async_trait]
impl Invoker for Noting {
    async fn invoke(&self, target: Target, request: Request, cx: &Cx) -> Result<Response, CallError> {
        let id =
            request.headers().get("ce-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
        let life = self.shared.lives().into_iter().find(|life| life.epoch == self.epoch);
        let others = life.is_some_and(|life| life.knows_another(NAMESPACE));
        let place = {
            let mut sent = self.shared.sent.lock();
            sent.push(Sent::new(id, self.epoch, others));
            sent.len() - 1
        };
        let answer = self.inner.invoke(target, request, cx).await;
        if answer.as_ref().is_ok_and(|answer| answer.status().is_success()) {
            self.shared.sent.lock()[place].answered = Some(Instant::now());
        }
        answer
    }
}

struct World {
    shared: Arc<Shared>,
    began: Instant,
    draw: Mutex<Draw>,
    names: &'static [&'static str],
    epochs: Mutex<u64>,
    versions: Mutex<u64>,
    tasks: TaskTracker,
    /// Services of which a change is under way.
    changing: Mutex<BTreeSet<u32>>,
}

pub(super) async fn run(seed: u64, plant: Option<SeveralPlant>) -> SeveralRun {
    let mut draw = Draw::new(seed).fork(900);
    let names = &NAMES[..2 + draw.below(3) as usize];
    let shared = Arc::new(Shared {
        plant,
        history: Arc::new(History::new()),
        store: Arc::new(MemoryStore::default()),
        hosts: Mutex::default(),
        killed: Mutex::default(),
        refused: Mutex::default(),
        sent: Mutex::default(),
        kept: Mutex::default(),
        run: Mutex::new(SeveralRun { seed, ..SeveralRun::default() }),
        broken: Mutex::default(),
    });
    let world = Arc::new(World {
        shared: Arc::clone(&shared),
        began: Instant::now(),
        draw: Mutex::new(draw),
        names,
        epochs: Mutex::new(0),
        versions: Mutex::new(0),
        tasks: TaskTracker::new(),
        changing: Mutex::default(),
    });
    world.tasks.close();
    let mut seen = Seen::default();
    let went = match timeout(ENDED, Box::pin(world.all(&mut seen))).await {
        Ok(went) => went,
        Err(_) => broken("one answer", format!("the run did not end within {ENDED:?}")),
    };
    let mut run = shared.run.lock().clone();
    run.fires = seen.fires;
    run.refused = *shared.refused.lock();
    run.violation = went.err().or_else(|| shared.broken.lock().clone());
    run
}

impl World {
    fn below(&self, bound: u64) -> u64 {
        self.draw.lock().below(bound)
    }

    fn any<T: Clone>(&self, of: &[T]) -> Option<T> {
        self.draw.lock().pick(of).cloned()
    }

    /// Does something, and looks at the promises all the while.
    async fn watched<T>(&self, seen: &mut Seen, what: impl Future<Output = T>) -> Result<T, Violation> {
        let mut what = std::pin::pin!(what);
        loop {
            tokio::select! {
                biased;
                done = &mut what => return Ok(done),
                () = sleep(LOOK) => {
                    seen.look(&self.shared)?;
                    if let Some(violation) = self.shared.broken.lock().clone() {
                        return Err(violation);
                    }
                }
            }
        }
    }

    async fn all(self: &Arc<Self>, seen: &mut Seen) -> Result<(), Violation> {
        let began = async {
            for name in self.names {
                self.start(name).await;
            }
            for service in 0..SERVICES {
                self.change(service).await;
            }
            self.declare().await
        };
        Box::pin(self.watched(seen, began)).await??;
        let end = Instant::now() + SAFETY;
        while Instant::now() < end {
            self.watched(seen, self.step()).await?;
            let pause = Duration::from_millis(self.below(1_500));
            self.watched(seen, sleep(pause)).await?;
        }
        self.watched(seen, self.heal()).await?;
        self.watched(seen, self.settled()).await??;
        self.watched(seen, self.served()).await??;
        self.watched(seen, self.fires()).await??;
        self.ended(seen).await
    }

    async fn start(&self, host: &'static str) {
        let epoch = {
            let mut epochs = self.epochs.lock();
            *epochs += 1;
            *epochs
        };
        let shared = &self.shared;
        let mut draw = self.draw.lock().fork(epoch);
        let drift = draw.below(401) as i64 - 200;
        let started = Timestamp::from_secs(1_767_571_200) + self.began.elapsed();
        let clock = Arc::new(SimClock::new(started, drift));
        let link = HostLink::new(&shared.store, shared.plant, host == NAMES[0]);
        let link = Arc::new(link);
        let runtime = Arc::new(SimRuntime::new(
            Arc::clone(&shared.history),
            Arc::clone(&clock) as _,
            draw.clone(),
            None,
            epoch,
        ));
        let built = async {
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            let gate = Gate::before(listener.local_addr()?).await?;
            let mut options = ClusterOptions::new(host, gate.address, Secret::new(SECRET));
            (options.term, options.shards) = (TERM, 32);
            let in_triggers = Arc::clone(shared);
            let platform = Platform::builder()
                .machine(Machine::new(2).with_memory(8 << 30))
                .seed(draw.next())
                .clock(Arc::clone(&clock))
                .runtime(Arc::clone(&runtime))
                .store(Arc::clone(&link))
                .listener(listener)?
                .cluster(options)
                .trigger_invoker(move |inner| Arc::new(Noting { inner, shared: in_triggers, epoch }))
                .build()
                .await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((gate, platform))
        };
        let (gate, platform) = match built.await {
            Ok(built) => built,
            Err(error) => {
                let message = format!("{host} does not start: {error}");
                shared.breaks(Violation { invariant: "all know and serve", message });
                return;
            }
        };
        let (gone, well) = (CancellationToken::new(), Mutex::new(Some(Instant::now())));
        let life = Arc::new(Life { name: host, epoch, platform, link, gate, runtime, clock, gone, well });
        shared.hosts.lock().insert(host, life);
    }

    /// A host that is over: what it counted stays.
    fn take(&self, host: &str) -> Option<Arc<Life>> {
        let life = self.shared.hosts.lock().remove(host)?;
        *self.shared.refused.lock() += life.link.refused();
        Some(life)
    }

    /// SIGKILL: nothing is said to anybody.
    async fn kill(&self, host: &str) {
        let Some(life) = self.take(host) else { return };
        self.shared.fault("host killed");
        self.shared.killed.lock().insert(life.epoch);
        life.link.link.set(LinkFault::Fails);
        life.gate.end();
        life.gone.cancel();
        match self.shared.plant {
            Some(SeveralPlant::LeavesInstances) => life.runtime.abandon(),
            _ => life.runtime.kill_all(),
        }
        life.platform.shutdown(Duration::ZERO).await;
    }

    /// An orderly end.
    async fn leave(&self, host: &str) {
        let Some(life) = self.shared.life(host) else { return };
        self.shared.fault("host left");
        life.mend();
        life.platform.shutdown(Duration::from_secs(20)).await;
        self.take(host);
        life.gate.end();
        life.gone.cancel();
    }

    async fn step(self: &Arc<Self>) {
        let host = self.any(self.names).expect("there are names");
        let life = self.shared.life(host);
        match (self.below(24), life) {
            (0 | 1, Some(_)) if self.shared.lives().len() > 1 => self.kill(host).await,
            (2, Some(_)) if self.shared.lives().len() > 1 => self.leave(host).await,
            (0..=4, None) => self.start(host).await,
            (3, Some(life)) => self.sleeps(&life),
            (4, Some(life)) => {
                self.shared.fault("store lost by a host");
                life.break_link(LinkFault::Fails);
            }
            (5, Some(life)) => {
                self.shared.fault("answers of the store lost");
                life.break_link(LinkFault::Unanswered);
            }
            (6, Some(life)) => {
                self.shared.fault("host cut from the others");
                *life.well.lock() = None;
                life.gate.set(false);
            }
            (7, Some(life)) => {
                self.shared.fault("clock jumped");
                let far = self.below(40_000) as i64 - 20_000;
                *life.well.lock() = None;
                life.clock.jump(far);
            }
            (8, Some(_)) => {
                self.shared.fault("store lost by all");
                for life in self.shared.lives() {
                    life.break_link(LinkFault::Fails);
                }
            }
            (10 | 11, _) => {
                for life in self.shared.lives() {
                    life.mend();
                }
            }
            (15, Some(life)) => self.writes_late(&life),
            (12..=14, _) => {
                let (world, service) = (Arc::clone(self), self.below(u64::from(SERVICES)) as u32);
                self.tasks.spawn(async move { world.change(service).await });
            }
            _ => {
                for _ in 0..=self.below(4) {
                    let (world, service) = (Arc::clone(self), self.below(u64::from(SERVICES)) as u32);
                    self.tasks.spawn(async move { world.request(service).await });
                }
            }
        }
    }

    /// As after SIGSTOP, as far as anybody else can see: nothing goes out, nothing comes in, and what was sent arrives when
    /// it wakes.
    fn sleeps(&self, life: &Life) {
        self.shared.fault("host asleep");
        life.break_link(LinkFault::Hangs);
        life.gate.set(false);
    }

    /// A write that only the owner may do is on its way for a while: what it is guarded by is of when it was sent.
    fn writes_late(&self, life: &Arc<Life>) {
        let cluster = life.platform.cluster().expect("it is one of several");
        let Some(Place::Here(guard)) =
            paths().map(|path| cluster.place(&path)).find(|it| matches!(it, Place::Here(_)))
        else {
            return;
        };
        self.shared.fault("write held on its way");
        let (life, held) = (Arc::clone(life), Duration::from_millis(self.below(8_000)));
        self.tasks.spawn(async move {
            sleep(held).await;
            let commit = Commit::new().guarded_by(guard).put(format!("simulated/{}", life.name), life.name);
            // Refused, or done by who still is the owner: the link counts.
            let _ = life.link.commit(commit).await;
        });
    }

    /// Deploys the next version of a service at some host.
    async fn change(&self, service: u32) {
        if !self.changing.lock().insert(service) {
            return;
        }
        let version = {
            let mut versions = self.versions.lock();
            *versions += 1;
            *versions
        };
        let life = self.any(&self.shared.lives());
        if let Some(life) = life {
            let manifest = manifest(service, 2, 3, version, false);
            let deployed = async {
                tokio::select! {
                    () = life.gone.cancelled() => None,
                    deployed = life.platform.control().deploy(manifest) => deployed.ok(),
                }
            };
            if let Ok(Some(deployed)) = timeout(Duration::from_secs(60), deployed).await {
                self.shared.run.lock().changes += 1;
                let mut kept = self.shared.kept.lock();
                let kept = kept.entry(name(service)).or_default();
                *kept = deployed.record.generation.max(*kept);
            }
        }
        self.changing.lock().remove(&service);
    }

    async fn declare(&self) -> Result<(), Violation> {
        let spec = TriggerSpec::new(format!("{NAMESPACE}/tick"), "timer", format!("{NAMESPACE}/{}", name(0)));
        let spec = spec.with_option("period", "2s");
        let life = self.any(&self.shared.lives()).expect("hosts run");
        match life.platform.control().apply_trigger(spec).await {
            Ok(_) => Ok(()),
            Err(error) => broken("all know and serve", format!("a trigger is refused: {}", error.chain())),
        }
    }

    /// Asks some host for a service once; `None`: the host was killed meanwhile.
    async fn request(&self, service: u32) -> Option<u16> {
        let number = {
            let mut run = self.shared.run.lock();
            run.requests += 1;
            run.requests
        };
        let life = self.any(&self.shared.lives())?;
        let status = self.ask(&life, service, number).await;
        let repeats = self.shared.plant == Some(SeveralPlant::RepeatsRequests);
        // Seldom is a request cut off after it was executed: so that a search for the bug is no search for that, each fourth
        // answer counts as lost.
        if repeats && (status != Some(200) || number.is_multiple_of(4)) {
            let again = self.any(&self.shared.lives())?;
            return self.ask(&again, service, number).await;
        }
        status
    }

    /// A request that may not be executed twice.
    async fn ask(&self, life: &Life, service: u32, number: u64) -> Option<u16> {
        let mut request = Request::new(Body::from("a request"));
        *request.method_mut() = http::Method::POST;
        let host = format!("{}.{NAMESPACE}.localhost", name(service));
        request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_str(&host).ok()?);
        request.headers_mut().insert(REQUEST, http::HeaderValue::from(number));
        let answer = async {
            let response = life.platform.gateway().handle(request).await;
            let status = response.status().as_u16();
            let _ = response.into_body().collect(1 << 20).await;
            status
        };
        let answered = async {
            tokio::select! {
                () = life.gone.cancelled() => Ok(None),
                status = timeout(ANSWERED, answer) => status.map(Some),
            }
        };
        match answered.await {
            Ok(status) => {
                self.shared.run.lock().served += u64::from(status == Some(200));
                status
            }
            Err(_) => {
                let message = format!("request {number} had no answer after {ANSWERED:?}");
                self.shared.breaks(Violation { invariant: "one answer", message });
                None
            }
        }
    }

    /// The faults are over, and all hosts are there again.
    async fn heal(&self) {
        for life in self.shared.lives() {
            life.mend();
        }
        for name in self.names {
            if self.shared.life(name).is_none() {
                self.start(name).await;
            }
        }
    }

    /// Each path has one host that acts for it, and all hosts know which.
    async fn settled(&self) -> Result<(), Violation> {
        let end = Instant::now() + SETTLED;
        loop {
            let lives = self.shared.lives();
            let open: Vec<String> = paths()
                .filter(|path| {
                    let places = lives.iter().filter_map(|life| Some(life.platform.cluster()?.place(path)));
                    let places: Vec<Place> = places.collect();
                    let here = places.iter().filter(|place| matches!(place, Place::Here(_))).count();
                    here != 1 || places.contains(&Place::Undecided)
                })
                .collect();
            if open.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                return broken("settled in time", format!("after {SETTLED:?} nobody acts for {open:?}"));
            }
            sleep(LOOK).await;
        }
    }

    /// Whichever host is asked for whichever service answers, knows all acknowledged changes, and the same as the others.
    async fn served(&self) -> Result<(), Violation> {
        let end = Instant::now() + SERVED;
        let mut open = Vec::new();
        loop {
            let late = Instant::now() > end;
            open.clear();
            let kept = self.shared.kept.lock().clone();
            for (service, generation) in &kept {
                let mut known = BTreeSet::new();
                for life in self.shared.lives() {
                    let record = life.platform.control().record(NAMESPACE, service);
                    known.insert(record.map_or(0, |record| record.generation));
                }
                if known.iter().all(|known| known < generation) {
                    open.push((
                        "changes are kept",
                        format!("{service} was acknowledged at {generation}, and hosts know {known:?}"),
                    ));
                } else if known.len() != 1 {
                    open.push((
                        "all know and serve",
                        format!("hosts know generations {known:?} of {service}"),
                    ));
                }
            }
            for service in 0..SERVICES {
                for life in self.shared.lives() {
                    let number = {
                        let mut run = self.shared.run.lock();
                        run.requests += 1;
                        run.requests
                    };
                    let status = self.ask(&life, service, number).await;
                    if status != Some(200) && kept.contains_key(&name(service)) {
                        open.push((
                            "all know and serve",
                            format!("{} answers {status:?} for {}", life.name, name(service)),
                        ));
                    }
                }
            }
            let Some((invariant, message)) = open.first() else { return Ok(()) };
            if late {
                return broken(invariant, message.clone());
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// The schedule goes on, and instances are only where somebody acts for them.
    async fn fires(&self) -> Result<(), Violation> {
        // The clock of who acts may be forty seconds behind that of who did: until then all is fired.
        sleep(Duration::from_secs(45)).await;
        let before = self.shared.sent.lock().len();
        sleep(Duration::from_secs(10)).await;
        let fired = self.shared.sent.lock().len() - before;
        if fired < 4 {
            return broken(
                "the schedule goes on",
                format!("{fired} fires in 10 s, one is due every two seconds"),
            );
        }
        for life in self.shared.lives() {
            for service in 0..SERVICES {
                let instances = life.instances(&name(service));
                if instances > 0 && !life.acts_for(&format!("{NAMESPACE}/{}", name(service))) {
                    let message = format!(
                        "{} keeps {instances} instances of {}, which another host acts for",
                        life.name,
                        name(service)
                    );
                    return broken("nothing is left", message);
                }
            }
        }
        Ok(())
    }

    async fn ended(&self, seen: &mut Seen) -> Result<(), Violation> {
        self.watched(seen, self.tasks.wait()).await?;
        for host in self.names {
            if let Some(life) = self.take(host) {
                let ended = life.platform.shutdown(Duration::from_secs(30));
                let report = self.watched(seen, ended).await?;
                if !report.drained {
                    return broken("nothing is left", format!("{host} did not drain: {report:?}"));
                }
                life.gate.end();
                life.gone.cancel();
            }
        }
        seen.look(&self.shared)?;
        match seen.alive(&self.shared.killed.lock()) {
            0 => Ok(()),
            alive => broken("nothing is left", format!("{alive} instances run, and no host does")),
        }
    }
}

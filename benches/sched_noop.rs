//! Bench a: a request accepted → an instance assigned, with the real router, pool and scaler around a runtime whose
//! starts do nothing. 1,000 revisions, keep-alive 0: every request is cold, and its stop is in the cycle.
//!
//! `cargo bench --bench sched_noop [-- a1 a2 a3 a4 burst]`

#[path = "shared/sched.rs"]
mod sched;

use std::{
    collections::VecDeque,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use sas_autoscale::Kpa;
use sas_core::{
    Artifact, Capabilities, Cx, Instance, InstanceId, InstanceTarget, Isolation, Pool, Result, RevisionSpec,
    Runtime, ScaleInput, Scaler, StartRequest, Timestamp,
};
use sas_pool::config::IdleRule;
use sched::{
    Counting, Draws, Noop, NoopInstance, World, allocations, arrivals, context, cpu_time, now_or_panic,
    peak_rss_mib, percentile, row, spread, world,
};
use tokio::{sync::oneshot, task::JoinSet, time::Instant};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const REVISIONS: usize = 1_000;
const RUNS: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|text| !text.starts_with("--")).collect();
    if arguments.first().is_some_and(|text| text == "starter") {
        starter(&arguments[1]);
        return;
    }
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|text| text == name);
    row("what", "median [min .. max] of five runs", "target");
    if wanted("a1") {
        a1();
    }
    if wanted("a2") {
        a2();
    }
    if wanted("a3") {
        a3();
    }
    if wanted("a4") {
        a4();
    }
    if wanted("burst") {
        burst();
    }
    row("peak RSS", &format!("{} MiB", peak_rss_mib()), "");
}

fn one_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The scaler's part of a cycle: the loads of all shards, through the real policy. With keep-alive 0 its decisions are
/// made and not applied.
struct Ticks {
    scaler: Kpa,
    states: Box<dyn std::any::Any + Send>,
    out: Vec<sas_core::Decision>,
}

impl Ticks {
    fn new() -> Self {
        let scaler = Kpa::default();
        let states = scaler.new_states();
        Self { scaler, states, out: Vec::new() }
    }

    fn tick(&mut self, world: &World, at: i64) -> usize {
        let mut decided = 0;
        for shard in 0..world.pool.shards() {
            world.pool.take_load(shard, &mut |load, deployed| {
                let row = load.revision.slot();
                let now = Timestamp::from_millis(at);
                let input = ScaleInput::new(row, now, &deployed.spec.scaling, load, Some(0));
                self.out.clear();
                self.scaler.tick(&mut *self.states, &[input], &mut self.out);
                decided += self.out.len();
            });
        }
        decided
    }
}

/// Inline: the start completes in the call, on the thread that took the request.
fn a1() {
    let tokio = one_thread();
    let _entered = tokio.enter();
    let headers = http::HeaderMap::new();
    let world = world(Arc::new(Noop), REVISIONS, 1, IdleRule::AtOnce);
    let cx = context();
    let mut ticks = Ticks::new();
    let mut draws = Draws(11);
    let order: Vec<usize> = (0..1 << 16).map(|_| draws.below(REVISIONS)).collect();
    let (mut rates, mut wall_rates, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    let cycles = 500_000u64;
    let mut tick = 0;
    // A pool remembers the loads of what fell asleep once a scaler visits.
    assert_eq!(ticks.tick(&world, tick), 0);
    for run in 0..=RUNS {
        let (cpu, begin, allocated) = (cpu_time(), Instant::now(), allocations());
        for n in 0..cycles {
            let host = &world.hosts[order[(n & 0xffff) as usize]];
            let lease = now_or_panic(world.assign(host, &headers, &cx));
            assert!(lease.start.is_some());
            drop(lease);
            // A tick of the scaler every thousand requests: at this rate, more than a thousand times as often as real.
            if n % 1000 == 999 {
                tick += 2_000;
                assert!(ticks.tick(&world, tick) > 0);
            }
        }
        if run > 0 {
            rates.push(cycles as f64 / (cpu_time() - cpu).as_secs_f64() / 1e6);
            wall_rates.push(cycles as f64 / begin.elapsed().as_secs_f64() / 1e6);
            counts.push((allocations() - allocated) as f64 / cycles as f64);
        }
    }
    let (rate, least, most) = spread(&mut rates);
    row(
        "a1 cold starts, inline",
        &format!("{rate:.2} M/s of CPU [{least:.2} .. {most:.2}], {:.0} ns", 1e3 / rate),
        "≥ 1.5 M/s",
    );
    let (rate, least, most) = spread(&mut wall_rates);
    row("   the same by the wall clock", &format!("{rate:.2} M/s [{least:.2} .. {most:.2}]"), "");
    row("   allocations per cycle", &format!("{:.2}", spread(&mut counts).0), "");

    // The warm way beside it: route, claim, release.
    let warm = sched::world(Arc::new(Noop), 1, 0, IdleRule::Decided);
    drop(now_or_panic(warm.assign(&warm.hosts[0], &headers, &cx)));
    let (allocated, begin) = (allocations(), Instant::now());
    for _ in 0..1_000_000 {
        let claim = warm.claim_of(&warm.hosts[0], &headers);
        drop(warm.pool.try_claim(&claim).expect("it is warm"));
    }
    row(
        "   warm: route, claim, release",
        &format!("{} ns, {} allocations", begin.elapsed().as_millis(), allocations() - allocated),
        "0 allocations",
    );

    // Open loop at 100 k/s, from the intended arrival.
    let (mut p50s, mut p99s, mut p999s) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..RUNS {
        let schedule = arrivals(100 + run as u64, 100_000.0, 200_000);
        let mut latencies = Vec::with_capacity(schedule.len());
        let begin = Instant::now();
        for (n, &at) in schedule.iter().enumerate() {
            let due = Duration::from_nanos(at);
            while begin.elapsed() < due {
                std::hint::spin_loop();
            }
            let lease = now_or_panic(world.assign(&world.hosts[order[n & 0xffff]], &headers, &cx));
            latencies.push((begin.elapsed() - due).as_nanos() as u64);
            drop(lease);
        }
        let reached = schedule.last().expect("arrivals") / 1000;
        let took = begin.elapsed().as_micros() as u64;
        if took * 99 > reached * 100 {
            row("   a run is void", "under 99 % of the offered load was reached", "");
            continue;
        }
        latencies.sort_unstable();
        p50s.push(percentile(&latencies, 0.5) as f64 / 1e3);
        p99s.push(percentile(&latencies, 0.99) as f64 / 1e3);
        p999s.push(percentile(&latencies, 0.999) as f64 / 1e3);
    }
    if p99s.is_empty() {
        return;
    }
    let (p99, least, most) = spread(&mut p99s);
    row(
        "   assigned, open loop at 100 k/s",
        &format!(
            "p99 {p99:.1} µs [{least:.1} .. {most:.1}], p50 {:.2}, p99.9 {:.1}",
            spread(&mut p50s).0,
            spread(&mut p999s).0
        ),
        "p99 ≤ 10 µs on a quiet core",
    );
}

/// A start that somebody else completes.
struct Pending {
    id: InstanceId,
    done: oneshot::Sender<()>,
}

/// Starts on their way to whoever completes them, taken out in batches.
#[derive(Default)]
struct Outbox {
    pending: Mutex<VecDeque<Pending>>,
    filled: Condvar,
    /// How many complete together: so many are waited for, a millisecond at most.
    batch: usize,
}

/// A runtime whose starts complete elsewhere.
struct Remote {
    outbox: Arc<Outbox>,
    /// Another process instead of a thread.
    socket: Option<Arc<Bridge>>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Remote")
    }
}

#[async_trait]
impl Runtime for Remote {
    fn name(&self) -> &'static str {
        "noop"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Isolation::None)
    }

    async fn prepare(&self, _: &RevisionSpec) -> Result<Artifact> {
        Ok(sched::artifact())
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        let (done, completed) = oneshot::channel();
        let pending = Pending { id: request.id, done };
        match &self.socket {
            None => {
                let mut outbox = self.outbox.pending.lock().expect("no panic");
                outbox.push_back(pending);
                if outbox.len() == 1 || outbox.len() == self.outbox.batch {
                    self.outbox.filled.notify_one();
                }
            }
            Some(bridge) => bridge.ask(pending),
        }
        completed.await.expect("starts are completed");
        Ok(Arc::new(NoopInstance(request.id)))
    }

    async fn quiesce(&self) {}
}

/// Closed loop with so many requests in flight; the rate by CPU time and by the wall clock.
async fn in_flight(world: &Arc<World>, flights: usize, requests: usize) -> (f64, f64) {
    let (cpu, begin) = (cpu_time(), Instant::now());
    let mut clients = JoinSet::new();
    for client in 0..flights {
        let world = Arc::clone(world);
        clients.spawn(async move {
            let headers = http::HeaderMap::new();
            let cx = context();
            // Each client has revisions of its own, so that each is cold when it is asked for.
            let mine: Vec<&String> = world.hosts.iter().skip(client).step_by(flights).collect();
            for n in 0..requests / flights {
                let waiting = world.assign(mine[n % mine.len()], &headers, &cx);
                let lease = waiting.await.expect("a lease");
                assert!(lease.start.is_some());
                drop(lease);
            }
        });
    }
    clients.join_all().await;
    let requests = (requests / flights * flights) as f64;
    (requests / (cpu_time() - cpu).as_secs_f64() / 1e3, requests / begin.elapsed().as_secs_f64() / 1e3)
}

/// Completed by another thread: as they come, which wakes it for nearly each, and in batches of half of those that are in
/// flight.
fn a2() {
    for (batch, target) in [(1, ""), (32, "≥ 500 k/s of CPU time")] {
        a2_in_batches(batch, target);
    }
}

fn a2_in_batches(batch: usize, target: &str) {
    let outbox = Arc::new(Outbox { batch, ..Outbox::default() });
    let completer = Arc::clone(&outbox);
    std::thread::spawn(move || {
        loop {
            let batch = {
                let mut pending = completer.pending.lock().expect("no panic");
                while pending.is_empty() {
                    pending = completer.filled.wait(pending).expect("no panic");
                }
                let fills = |pending: &mut VecDeque<Pending>| pending.len() < completer.batch;
                let waited = completer.filled.wait_timeout_while(pending, Duration::from_millis(1), fills);
                let mut pending = waited.expect("no panic").0;
                std::mem::take(&mut *pending)
            };
            for start in batch {
                let _ = start.done.send(());
            }
        }
    });
    let tokio = one_thread();
    let (mut by_cpu, mut by_wall) = (Vec::new(), Vec::new());
    tokio.block_on(async {
        let runtime = Arc::new(Remote { outbox, socket: None });
        let world = Arc::new(world(runtime, REVISIONS, 1, IdleRule::AtOnce));
        in_flight(&world, 64, 50_000).await;
        for _ in 0..RUNS {
            let (cpu, wall) = in_flight(&world, 64, 400_000).await;
            by_cpu.push(cpu);
            by_wall.push(wall);
        }
    });
    let (rate, least, most) = spread(&mut by_cpu);
    row(
        &format!("a2 by another thread, 64 in flight, {batch} at a time"),
        &format!("{rate:.0} k/s of CPU [{least:.0} .. {most:.0}], {:.0} k/s wall", spread(&mut by_wall).0),
        target,
    );
}

/// Starts in another process: ids over a socket, as many as there are in one write.
struct Bridge {
    waiting: Mutex<std::collections::HashMap<u64, oneshot::Sender<()>>>,
    buffer: Mutex<Vec<u8>>,
    told: tokio::sync::Notify,
}

impl Bridge {
    fn ask(&self, pending: Pending) {
        self.waiting.lock().expect("no panic").insert(pending.id.0, pending.done);
        self.buffer.lock().expect("no panic").extend_from_slice(&pending.id.0.to_le_bytes());
        self.told.notify_one();
    }

    async fn run(self: Arc<Self>, stream: tokio::net::UnixStream) {
        let (mut read, mut write) = stream.into_split();
        let writer = Arc::clone(&self);
        tokio::spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            loop {
                writer.told.notified().await;
                let batch = std::mem::take(&mut *writer.buffer.lock().expect("no panic"));
                if write.write_all(&batch).await.is_err() {
                    return;
                }
            }
        });
        use tokio::io::AsyncReadExt as _;
        let mut buffer = vec![0; 1 << 16];
        let mut have = 0;
        loop {
            let Ok(more @ 1..) = read.read(&mut buffer[have..]).await else { return };
            have += more;
            let whole = have / 8 * 8;
            {
                let mut waiting = self.waiting.lock().expect("no panic");
                for id in buffer[..whole].chunks_exact(8) {
                    let id = u64::from_le_bytes(id.try_into().expect("eight bytes"));
                    let _ = waiting.remove(&id).expect("an id that was asked for").send(());
                }
            }
            buffer.copy_within(whole..have, 0);
            have -= whole;
        }
    }
}

/// The other process: says each id back.
fn starter(path: &str) {
    let mut stream = UnixStream::connect(path).expect("the bench listens");
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

fn a3() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("starter.sock");
    let tokio = one_thread();
    let (mut by_cpu, mut by_wall) = (Vec::new(), Vec::new());
    tokio.block_on(async {
        let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
        let mut child = std::process::Command::new(std::env::current_exe().expect("this bench"))
            .arg("starter")
            .arg(&path)
            .spawn()
            .expect("a second process");
        let (stream, _) = listener.accept().await.expect("the starter connects");
        let bridge = Arc::new(Bridge {
            waiting: Mutex::default(),
            buffer: Mutex::default(),
            told: tokio::sync::Notify::new(),
        });
        let link = tokio::spawn(Arc::clone(&bridge).run(stream));
        let runtime = Arc::new(Remote { outbox: Arc::default(), socket: Some(bridge) });
        let world = Arc::new(world(runtime, REVISIONS, 1, IdleRule::AtOnce));
        in_flight(&world, 64, 20_000).await;
        for _ in 0..RUNS {
            let (cpu, wall) = in_flight(&world, 64, 200_000).await;
            by_cpu.push(cpu);
            by_wall.push(wall);
        }
        link.abort();
        let _ = child.kill();
        let _ = child.wait();
    });
    let (rate, least, most) = spread(&mut by_wall);
    row(
        "a3 completed by another process, batched",
        &format!(
            "{rate:.0} k/s [{least:.0} .. {most:.0}], {:.0} k/s of this process's CPU",
            spread(&mut by_cpu).0
        ),
        "≥ 100 k/s",
    );
}

/// A start that takes 40 ms and notes when it was over.
#[derive(Debug)]
struct Slow(Duration);

#[derive(Debug)]
struct Stamped {
    id: InstanceId,
}

/// When the latest start of each instance completed, for the request that gets it.
static COMPLETED: OnceLock<Mutex<std::collections::HashMap<InstanceId, Instant>>> = OnceLock::new();

#[async_trait]
impl Runtime for Slow {
    fn name(&self) -> &'static str {
        "noop"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Isolation::None)
    }

    async fn prepare(&self, _: &RevisionSpec) -> Result<Artifact> {
        Ok(sched::artifact())
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        tokio::time::sleep(self.0).await;
        let completed = Instant::now();
        let stamps = COMPLETED.get_or_init(Mutex::default);
        stamps.lock().expect("no panic").insert(request.id, completed);
        Ok(Arc::new(Stamped { id: request.id }))
    }

    async fn quiesce(&self) {}
}

/// Nobody calls it.
static NOWHERE: sas_core::Endpoint = sas_core::Endpoint::Tcp(std::net::SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    9,
));

#[async_trait]
impl Instance for Stamped {
    fn id(&self) -> InstanceId {
        self.id
    }
    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Endpoint(&NOWHERE)
    }

    async fn stop(&self, _: Duration) -> Result<()> {
        COMPLETED.get_or_init(Mutex::default).lock().expect("no panic").remove(&self.id);
        Ok(())
    }
}

/// After a 40 ms timer: start completed → request assigned, at 10 k/s.
fn a4() {
    let tokio = one_thread();
    let (mut p50s, mut p99s, mut p999s) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..RUNS {
        let mut latencies: Vec<u64> = tokio.block_on(async {
            let world =
                Arc::new(world(Arc::new(Slow(Duration::from_millis(40))), REVISIONS, 1, IdleRule::AtOnce));
            let schedule = arrivals(200 + run as u64, 10_000.0, 20_000);
            let begin = Instant::now();
            let mut requests = JoinSet::new();
            let mut latencies = Vec::with_capacity(schedule.len());
            for (n, at) in schedule.into_iter().enumerate() {
                let due = begin + Duration::from_nanos(at);
                // Timers have a granularity of a millisecond; the last stretch is spun, letting others run.
                while Instant::now() < due {
                    tokio::task::yield_now().await;
                }
                let world = Arc::clone(&world);
                requests.spawn(async move {
                    let headers = http::HeaderMap::new();
                    let cx: Cx = context();
                    let waiting = world.assign(&world.hosts[n % REVISIONS], &headers, &cx);
                    let lease = waiting.await.expect("a lease");
                    let assigned = Instant::now();
                    let stamps = COMPLETED.get_or_init(Mutex::default);
                    let completed = stamps.lock().expect("no panic")[&lease.instance.id()];
                    drop(lease);
                    (assigned - completed).as_nanos() as u64
                });
                while let Some(done) = requests.try_join_next() {
                    latencies.push(done.expect("no panic"));
                }
            }
            latencies.extend(requests.join_all().await);
            latencies
        });
        latencies.sort_unstable();
        p50s.push(percentile(&latencies, 0.5) as f64 / 1e3);
        p99s.push(percentile(&latencies, 0.99) as f64 / 1e3);
        p999s.push(percentile(&latencies, 0.999) as f64 / 1e3);
    }
    let (p99, least, most) = spread(&mut p99s);
    row(
        "a4 completed → assigned, 40 ms, 10 k/s",
        &format!(
            "p99 {p99:.1} µs [{least:.1} .. {most:.1}], p50 {:.1}, p99.9 {:.1}",
            spread(&mut p50s).0,
            spread(&mut p999s).0
        ),
        "p99 ≤ 50 µs",
    );
}

/// A hundred requests at one instant to one cold revision with concurrency 1.
fn burst() {
    let headers = http::HeaderMap::new();
    let tokio = one_thread();
    let mut times = Vec::new();
    for _ in 0..101 {
        let _entered = tokio.enter();
        let world = world(Arc::new(Noop), 1, 1, IdleRule::Decided);
        let cx = context();
        let begin = Instant::now();
        let leases: Vec<_> = (0..100)
            .map(|n| {
                let claim = world.claim_of(&world.hosts[0], &headers);
                assert!(world.pool.try_claim(&claim).is_none(), "request {n} was not cold");
                now_or_panic(world.pool.claim(&claim, &cx))
            })
            .collect();
        times.push(begin.elapsed().as_nanos() as f64 / 1e3);
        let mut ids: Vec<_> = leases.iter().map(|lease| lease.instance.id()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 100, "a hundred instances");
    }
    let (time, least, most) = spread(&mut times);
    row(
        "burst: the 100th assigned, one thread",
        &format!("{time:.0} µs [{least:.0} .. {most:.0}] of 101"),
        "≤ 200 µs",
    );

    let workers = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut times = Vec::new();
    for _ in 0..101 {
        let time = workers.block_on(async {
            let world = Arc::new(world(Arc::new(Noop), 1, 1, IdleRule::Decided));
            let begin = Instant::now();
            let mut requests = JoinSet::new();
            for _ in 0..100 {
                let world = Arc::clone(&world);
                requests.spawn(async move {
                    let claim = world.claim_of(&world.hosts[0], &http::HeaderMap::new());
                    let lease = world.pool.claim(&claim, &context()).await.expect("a lease");
                    (lease, Instant::now())
                });
            }
            let leases = requests.join_all().await;
            let last = leases.iter().map(|(_, at)| *at).max().expect("a hundred");
            (last - begin).as_nanos() as f64 / 1e3
        });
        times.push(time);
    }
    let (time, least, most) = spread(&mut times);
    row(
        "   the same, two workers, a task each",
        &format!("{time:.0} µs [{least:.0} .. {most:.0}] of 101"),
        "",
    );
}

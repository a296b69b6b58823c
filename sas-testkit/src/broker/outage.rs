//! A host that keeps running while its broker is away.

use std::{
    fmt,
    ops::Range,
    pin::pin,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use sas_core::{Event, SecretSource, TriggerSource};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Broker, Running, unique, until};
use crate::fake::{FakeEventSink, FakeStore};

/// The platform's waits before a failed source is begun again: the first, which doubles, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How long after the broker the source may be back: the longest wait, and a connection, on a busy machine.
const BACK: Duration = Duration::from_secs(20);
/// How long a question for the backlog may go without an answer.
const ANSWER: Duration = Duration::from_secs(15);
const PROCESS: &str = "/proc/self/stat";

/// A host of its own: a thread on which one source runs, and is begun again after each failure as the platform does it. It can be
/// measured and ended whatever the source does. Dropping it ends it without waiting.
#[derive(Debug)]
pub struct Host {
    thread: Option<JoinHandle<()>>,
    /// Of the thread, in /proc.
    stat: String,
    shutdown: CancellationToken,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Host {
    /// Runs `source` into `sink`.
    ///
    /// # Panics
    /// When there is no thread for it.
    pub fn start(
        source: Arc<dyn TriggerSource>,
        sink: &Arc<FakeEventSink>,
        secrets: Option<Arc<dyn SecretSource>>,
    ) -> Self {
        let (shutdown, failures) = (CancellationToken::new(), Arc::new(Mutex::new(Vec::new())));
        let (tell, told) = mpsc::channel();
        let (sink, failed, ends) = (Arc::clone(sink), Arc::clone(&failures), shutdown.clone());
        let thread = std::thread::spawn(move || {
            let own = std::fs::read_link("/proc/thread-self").expect("Linux has it");
            let _ = tell.send(format!("/proc/{}/stat", own.display()));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(keep(source, sink, secrets, ends, failed));
        });
        let stat = told.recv().expect("the thread says which it is");
        Self { thread: Some(thread), stat, shutdown, failures }
    }

    /// What the runs that failed ended with.
    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().clone()
    }

    /// Processor time of its thread, to a hundredth of a second.
    ///
    /// # Panics
    /// When the thread has ended.
    pub fn processor_time(&self) -> Duration {
        processor_time(&self.stat)
    }

    /// Ends it in order.
    ///
    /// # Panics
    /// When it does not end within a minute, or panicked.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        let thread = self.thread.take().expect("it is taken here only");
        until("the host ends", async || thread.is_finished()).await;
        thread.join().expect("a source does not panic");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// To a hundredth of a second, as `stat` of a process or a thread has it.
fn processor_time(stat: &str) -> Duration {
    let stat = std::fs::read_to_string(stat).expect("what is measured lives");
    // utime and stime, fields 14 and 15; the second, in parentheses, may hold spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    let ticks = ticks(11).zip(ticks(12)).expect("it has the times");
    Duration::from_millis((ticks.0 + ticks.1) * 10)
}

async fn keep(
    source: Arc<dyn TriggerSource>,
    sink: Arc<FakeEventSink>,
    secrets: Option<Arc<dyn SecretSource>>,
    shutdown: CancellationToken,
    failures: Arc<Mutex<Vec<String>>>,
) {
    let store = Arc::new(FakeStore::default());
    let mut delay = WAITS.0;
    while !shutdown.is_cancelled() {
        let running = Running::with(Arc::clone(&source), &sink, Arc::clone(&store) as _, secrets.clone());
        let ends = running.shutdown.clone();
        let mut ended = pin!(running.ended());
        let ended = tokio::select! {
            biased;
            () = shutdown.cancelled() => {
                ends.cancel();
                ended.await
            }
            ended = &mut ended => ended,
        };
        if let Err(error) = ended {
            failures.lock().push(error.chain());
        }
        let _ = timeout(delay, shutdown.cancelled()).await;
        delay = (delay * 2).min(WAITS.1);
    }
}

/// What [`outage`] saw.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outage {
    /// How long the broker was away.
    pub away: Duration,
    /// Events before, and after.
    pub events: usize,
    /// Deliveries beyond one of each.
    pub again: usize,
    /// Runs that failed meanwhile.
    pub runs: usize,
    /// What the last of them ended with.
    pub said: String,
    /// Processor time of the host's thread meanwhile.
    pub used: Duration,
    /// That of the whole process, with what else it does: for clients that have threads of their own.
    pub used_by_process: Duration,
    /// From the moment at which the broker answered again until its new events were delivered.
    pub back: Duration,
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { away, events, again, runs, said, used, used_by_process, back } = self;
        write!(
            f,
            "{away:?} without the broker: {runs} runs, {used:?} of processor time ({used_by_process:?} of the process), back after {back:.1?}; {events} events, \
             lost 0, {again} twice; it said: {said}"
        )
    }
}

/// Takes the broker away while a host reads from it: at the host's start, and later for ten seconds (ten minutes with
/// `SAS_LONG` in the environment). `publish` puts events with these numbers into the broker, and returns when it has them; what it
/// puts there just before the broker goes is half delivered then. `identity` tells one event from another.
///
/// # Panics
/// When an event is lost, the host spins (2 % of a core), says nothing, begins more runs than its waits allow, knows a backlog
/// of a broker that is away, or is not back 20 s after the broker.
pub async fn outage<B: Broker>(
    broker: &mut B,
    publish: impl AsyncFn(&mut B, Range<usize>),
    identity: impl Fn(&Event) -> String,
) -> Outage {
    let long = std::env::var_os("SAS_LONG").is_some();
    let away = Duration::from_secs(if long { 600 } else { 10 });
    let (sink, source) = (FakeEventSink::new(16), broker.source());
    broker.kill();
    let host = Host::start(Arc::clone(&source), &sink, broker.secrets());
    until("it says that the broker is not there", async || !host.failures().is_empty()).await;
    broker.restart().await;
    publish(broker, 0..50).await;
    until("it comes when the broker does", async || unique(&sink, &identity) == 50).await;

    sink.set_delivery_time(Duration::from_millis(20));
    publish(broker, 50..200).await;
    broker.kill();
    let (before, before_of_process) = (host.processor_time(), processor_time(PROCESS));
    let runs = host.failures().len();
    let ends = Instant::now() + away;
    until("it says that the broker is away", async || host.failures().len() > runs).await;
    let known =
        timeout(ANSWER, source.backlog()).await.expect("it says at once that the backlog is not known");
    assert!(!matches!(known, Ok(Some(_))), "a backlog of a broker that is away: {known:?}");
    sleep(ends.saturating_duration_since(Instant::now())).await;
    let (used, failures) = (host.processor_time() - before, host.failures());
    let used_by_process = processor_time(PROCESS) - before_of_process;
    broker.restart().await;
    let began = Instant::now();
    publish(broker, 200..250).await;
    let all = async {
        while unique(&sink, &identity) < 250 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(BACK, all).await.is_err() {
        panic!("{} of 250 events {BACK:?} after the broker; {:?}", unique(&sink, &identity), host.failures());
    }
    let back = began.elapsed();
    host.stop().await;
    let done = Outage {
        away,
        events: 250,
        again: sink.delivered().len() - 250,
        runs: failures.len() - runs,
        said: failures.last().cloned().unwrap_or_default(),
        used,
        used_by_process,
        back,
    };
    assert!(done.used <= away / 50, "it spins: {done}");
    assert!(done.runs <= most_runs(away), "{} runs would do: {done}", most_runs(away));
    done
}

/// How many runs the waits allow in this time, where each fails at once.
fn most_runs(mut time: Duration) -> usize {
    let (mut runs, mut wait) = (1, WAITS.0);
    while time >= wait {
        time -= wait;
        wait = (wait * 2).min(WAITS.1);
        runs += 1;
    }
    runs
}

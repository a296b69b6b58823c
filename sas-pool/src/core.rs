//! What the shards of a pool share.

use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use sas_core::{Balancer, ClaimError, InstanceId, KeepAlivePolicy, MeterSink, RevisionSpec};
use tokio::{runtime::Handle, sync::Notify, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    bounds::Bounds,
    config::{IdleRule, PoolConfig},
    effects::{Effects, Reading},
    gate::{Ask, Gate, share_of},
    instance::IdLayout,
    metrics::Metrics,
    nursery::Nursery,
    shard::Shard,
    state::Holds,
    stems::Stems,
    sync::{AtomicBool, AtomicU32, AtomicU64, Mutex, Ordering},
};

/// The option by which a revision asks for a balancer.
pub(crate) const BALANCER_OPTION: &str = "sas.dev/balancer";

/// [`IdleRule`] without the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    Decided,
    AtOnce,
    Policy,
}

pub(crate) struct Core {
    pub(crate) config: PoolConfig,
    pub(crate) idle: Idle,
    policy: Option<Mutex<Box<dyn KeepAlivePolicy>>>,
    pub(crate) ids: IdLayout,
    pub(crate) metering: bool,
    pub(crate) metrics: Metrics,
    balancers: Vec<Arc<dyn Balancer>>,
    epoch: Instant,
    pub(crate) gate: Mutex<Gate>,
    /// Whether somebody waits for a budget: read at every release.
    short: AtomicBool,
    pub(crate) bounds: Mutex<Bounds>,
    pub(crate) stems: Stems,
    has_stems: bool,
    shards: OnceLock<Box<[Weak<Shard>]>>,
    handle: OnceLock<Handle>,
    nurseries: OnceLock<Box<[Nursery]>>,
    pub(crate) tasks: TaskTracker,
    /// Ends every task of the pool.
    pub(crate) ended: CancellationToken,
    /// Told when instances are gone, if anybody waits for it.
    pub(crate) gone: Notify,
    pub(crate) waiting_for_gone: AtomicU32,
    /// When the pool's clock task wakes next, in nanoseconds of the pool's life.
    armed: AtomicU64,
    rearm: Notify,
    ticking: AtomicBool,
}

impl Core {
    pub(crate) fn new(mut config: PoolConfig) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        let gate = Gate::new(config.gate, config.budget, cores);
        let (idle, policy) = match std::mem::take(&mut config.idle) {
            IdleRule::Decided => (Idle::Decided, None),
            IdleRule::AtOnce => (Idle::AtOnce, None),
            IdleRule::Policy(policy) => (Idle::Policy, Some(policy.0)),
        };
        let mut balancers = vec![Arc::clone(&config.balancer)];
        balancers.extend(config.balancers.values().cloned());
        let core = Self {
            idle,
            policy,
            ids: IdLayout { shard_bits: config.shards.trailing_zeros() },
            metering: config.meter.is_some(),
            metrics: Metrics::new(&config.recorder),
            balancers,
            epoch: Instant::now(),
            gate: Mutex::new(gate),
            short: AtomicBool::new(false),
            bounds: Mutex::new(Bounds::default()),
            stems: Stems::new(&config.stems),
            has_stems: !config.stems.classes.is_empty(),
            shards: OnceLock::new(),
            handle: OnceLock::new(),
            nurseries: OnceLock::new(),
            tasks: TaskTracker::new(),
            ended: CancellationToken::new(),
            gone: Notify::new(),
            waiting_for_gone: AtomicU32::new(0),
            armed: AtomicU64::new(u64::MAX),
            rearm: Notify::new(),
            ticking: AtomicBool::new(false),
            config,
        };
        if let Ok(handle) = Handle::try_current() {
            let _ = core.handle.set(handle);
        }
        core
    }

    pub(crate) fn adopt(self: &Arc<Self>, shards: &[Arc<Shard>]) {
        let shards: Box<[Weak<Shard>]> = shards.iter().map(Arc::downgrade).collect();
        self.shards.set(shards).expect("a pool is made once");
        if self.has_stems {
            self.arm(self.now());
        }
    }

    /// Nanoseconds of the pool's life, from 1: 0 is "never".
    pub(crate) fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    pub(crate) fn at(&self, instant: Instant) -> u64 {
        crate::state::nanos(instant.saturating_duration_since(self.epoch)) + 1
    }

    pub(crate) fn instant(&self, at: u64) -> Instant {
        // A century is as good as never, and within what every platform's clock can say.
        self.epoch + Duration::from_nanos(at.saturating_sub(1)).min(Duration::from_secs(100 * 365 * 86_400))
    }

    pub(crate) fn balancer(&self, at: u32) -> &dyn Balancer {
        &*self.balancers[at as usize]
    }

    /// Which balancer a revision gets.
    pub(crate) fn balancer_of(&self, spec: &RevisionSpec) -> u32 {
        if spec.options.is_empty() || self.config.balancers.is_empty() {
            return 0;
        }
        spec.options
            .get(BALANCER_OPTION)
            .and_then(|name| self.config.balancers.keys().position(|known| known == name))
            .map_or(0, |at| at as u32 + 1)
    }

    pub(crate) fn with_policy<T>(&self, ask: impl FnOnce(&mut dyn KeepAlivePolicy) -> T) -> Option<T> {
        Some(ask(&mut **self.policy.as_ref()?.lock()))
    }

    pub(crate) fn shard(&self, shard: u32) -> Option<Arc<Shard>> {
        self.shards.get()?[shard as usize].upgrade()
    }

    /// The runtime that the pool's tasks run on: that in which the pool was made, else that of the first caller.
    ///
    /// # Panics
    /// When there never was one.
    pub(crate) fn handle(&self) -> &Handle {
        self.handle.get_or_init(Handle::current)
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, self.handle());
    }

    /// Where a shard's starts go on: one nursery per worker of the runtime.
    pub(crate) fn nursery(&self, shard: u32) -> &Nursery {
        let nurseries = self.nurseries.get_or_init(|| {
            (0..self.handle().metrics().num_workers()).map(|_| Nursery::new(self.ended.clone())).collect()
        });
        &nurseries[shard as usize % nurseries.len()]
    }

    // The clock.

    /// Makes sure that the clock task wakes by `at`.
    pub(crate) fn arm(self: &Arc<Self>, at: u64) {
        if self.armed.fetch_min(at, Ordering::AcqRel) <= at {
            return;
        }
        // No clock runs in a model of loom's: its deadlines are never met.
        if cfg!(not(loom)) && !self.ticking.swap(true, Ordering::AcqRel) {
            self.spawn(Self::tick(Arc::downgrade(self), self.ended.clone()));
        }
        self.rearm.notify_one();
    }

    async fn tick(core: Weak<Self>, ended: CancellationToken) {
        loop {
            let Some(this) = core.upgrade() else { return };
            // Before the shards are looked at: a timer that is set meanwhile lowers it again and tells.
            this.armed.store(u64::MAX, Ordering::Release);
            let mut next = u64::MAX;
            for shard in this.shards.get().map_or(&[][..], |shards| shards) {
                if let Some(shard) = shard.upgrade() {
                    next = next.min(shard.expire());
                }
            }
            if this.has_stems {
                next = next.min(this.stems.tick(&this));
            }
            next = next.min(this.armed.fetch_min(next, Ordering::AcqRel));
            let wake = this.instant(next);
            tokio::select! {
                biased;
                () = ended.cancelled() => return,
                () = this.rearm.notified() => {}
                () = tokio::time::sleep_until(wake), if next != u64::MAX => {}
            }
        }
    }

    // The gate.

    /// Whether anybody waits for room in a budget.
    pub(crate) fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// Whether starts of this kind pass the gate at all.
    pub(crate) fn is_gated(&self, cpu_bound: bool) -> bool {
        cpu_bound || self.config.budget.is_limited()
    }

    /// What an instance counts with in the budget of memory.
    pub(crate) fn memory_of(&self, spec: &RevisionSpec) -> u64 {
        let resources = &spec.resources;
        resources
            .memory_request_bytes
            .or(resources.memory_limit_bytes)
            .unwrap_or(self.config.budget.assumed_memory_bytes)
    }

    /// Puts a start in line.
    pub(crate) fn ask(&self, ask: Ask) {
        let share = share_of(&self.config.tenants, ask.tenant);
        self.gate.lock().ask(Ask { weight: share.weight.max(1), class: share.class, ..ask });
    }

    /// Begins all starts that may begin. One thread at a time does; whoever comes meanwhile makes it look again.
    pub(crate) fn pump(self: &Arc<Self>) {
        let mut gate = self.gate.lock();
        if gate.pumping {
            return;
        }
        gate.pumping = true;
        loop {
            let was_short = gate.is_short();
            let Some(ask) = gate.admit() else {
                gate.pumping = false;
                let shortage = gate.shortage();
                self.short.store(shortage.is_some(), Ordering::Relaxed);
                drop(gate);
                match shortage {
                    // What stems held is free at once; idle instances give theirs back when they are gone.
                    Some(shortage) if !was_short && crate::reclaim::make_room(self, shortage) => self.pump(),
                    // Nobody waits for the CPU: stems may boot, if that stays so.
                    None if self.has_stems => Stems::refill_soon(self),
                    _ => {}
                }
                return;
            };
            drop(gate);
            let holds = Holds { permit: ask.gated, memory: Some(ask.memory) };
            match self.shard(ask.shard) {
                Some(shard) => shard.begin(ask.id, holds),
                None => {
                    let mut gate = self.gate.lock();
                    if ask.gated {
                        gate.started(ask.tenant);
                    }
                    gate.gone(ask.tenant, ask.memory);
                }
            }
            gate = self.gate.lock();
        }
    }

    pub(crate) fn shards(&self) -> impl Iterator<Item = Arc<Shard>> + '_ {
        self.shards.get().map_or(&[][..], |shards| shards).iter().filter_map(Weak::upgrade)
    }

    // What is told.

    pub(crate) fn tell(&self, fx: &mut Effects) {
        if let Some(meter) = &self.config.meter {
            for reading in fx.readings.drain(..) {
                tell(&**meter, reading);
            }
        }
        if fx.gone && self.waiting_for_gone.load(Ordering::Acquire) > 0 {
            self.gone.notify_waiters();
        }
    }

    pub(crate) fn refused(&self, error: &ClaimError) {
        match error {
            ClaimError::QueueFull { .. } => self.metrics.queue_full.increment(1),
            ClaimError::Exhausted { .. } => self.metrics.exhausted.increment(1),
            ClaimError::Start { .. } => self.metrics.shut.increment(1),
            _ => {}
        }
    }

    pub(crate) fn shard_of(&self, id: InstanceId) -> u32 {
        self.ids.shard(id)
    }
}

fn tell(meter: &dyn MeterSink, reading: Reading) {
    match reading {
        Reading::Phase(id, revision, tenant, phase, ns) => meter.phase(id, revision, tenant, phase, ns),
        Reading::Requests(revision, tenant, count) => meter.requests(revision, tenant, count),
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("config", &self.config).finish_non_exhaustive()
    }
}

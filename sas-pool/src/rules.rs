//! What the state machine is run under: the configuration in the form in which it is asked, the policies, and the
//! leaf locks of the gate and of the queue's bounds. No task and no channel: a table test makes one.

use std::{fmt, sync::Arc, time::Duration};

use sas_core::{
    Balancer, ClaimError, Deployed, Isolation, KeepAlivePolicy, LifecycleEvent, LifecycleKind, Metered,
    PoolBudget, PoolTotals, QuotaPressure, RevisionSpec, Runtime, SpecErrors, TenantKey, TenantQuota,
};

use crate::{
    ahead_log::AheadLog,
    bounds::Bounds,
    clock::PoolClock,
    config::{IdleRule, PoolConfig},
    effects::{Failure, Reading},
    gate::{Ask, Gate, share_of},
    instance::IdLayout,
    limits::Takes,
    metrics::Metrics,
    sync::{AtomicBool, Mutex, Ordering},
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

pub(crate) struct Rules {
    pub(crate) config: PoolConfig,
    pub(crate) idle: Idle,
    policy: Option<Mutex<Box<dyn KeepAlivePolicy>>>,
    /// [`KeepAlivePolicy::resolution`].
    pub(crate) resolution: Duration,
    pub(crate) ids: IdLayout,
    pub(crate) metering: bool,
    pub(crate) metrics: Metrics,
    pub(crate) ahead: AheadLog,
    balancers: Vec<Arc<dyn Balancer>>,
    pub(crate) clock: PoolClock,
    pub(crate) gate: Mutex<Gate>,
    /// Whether somebody waits for a budget: read at every release.
    short: AtomicBool,
    /// Whether there is a budget: read at every start.
    limited: AtomicBool,
    /// Whether any tenant has a quota here: read at every start.
    quotas: AtomicBool,
    pub(crate) bounds: Mutex<Bounds>,
}

impl Rules {
    pub(crate) fn new(mut config: PoolConfig) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        let gate = Gate::new(config.gate, config.budget, cores);
        let (idle, policy) = match std::mem::take(&mut config.idle) {
            IdleRule::Decided => (Idle::Decided, None),
            IdleRule::AtOnce => (Idle::AtOnce, None),
            IdleRule::Policy(policy) => (Idle::Policy, Some(policy.0)),
        };
        let resolution = policy.as_ref().map_or(Duration::ZERO, |policy| policy.lock().resolution());
        let mut balancers = vec![Arc::clone(&config.balancer)];
        balancers.extend(config.balancers.values().cloned());
        Self {
            idle,
            policy,
            resolution,
            ids: IdLayout::new(config.shards, config.engine),
            metering: config.meter.is_some(),
            metrics: Metrics::new(&config.recorder),
            ahead: AheadLog::default(),
            balancers,
            clock: PoolClock::start(),
            gate: Mutex::new(gate),
            short: AtomicBool::new(false),
            limited: AtomicBool::new(config.budget.is_limited()),
            quotas: AtomicBool::new(false),
            bounds: Mutex::new(Bounds::default()),
            config,
        }
    }

    /// Nanoseconds of the pool's life.
    pub(crate) fn now(&self) -> u64 {
        self.clock.now()
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

    /// Tells of an instance that failed.
    pub(crate) fn tell(&self, failure: Failure) {
        if let Some(lifecycle) = &self.config.lifecycle {
            let Failure { id, deployed, reason, message } = failure;
            let now = self.config.clock.now();
            let event = LifecycleEvent::of_revision(LifecycleKind::InstanceFailed, &deployed.name, now);
            lifecycle
                .told(event.with("instance", id.to_string()).with("reason", reason).with("message", message));
        }
    }

    /// Whether anybody waits for room in a budget.
    pub(crate) fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// Says whether anybody waits for room in a budget.
    pub(crate) fn set_short(&self, short: bool) {
        self.short.store(short, Ordering::Relaxed);
    }

    /// Whether starts of this kind pass the gate at all.
    pub(crate) fn is_gated(&self, cpu_bound: bool, tenant: TenantKey) -> bool {
        cpu_bound
            || self.limited.load(Ordering::Relaxed)
            || self.quotas.load(Ordering::Relaxed) && self.gate.lock().is_limited(tenant)
    }

    /// Changes what a tenant may use; whether its instances are to be counted from now on. The caller lets those begin
    /// for whom there is room now.
    pub(crate) fn limit(&self, tenant: TenantKey, quota: Option<TenantQuota>) -> bool {
        self.bounds.lock().limit(tenant, quota.and_then(|quota| quota.queue_bytes));
        let new = self.gate.lock().limit(tenant, quota, self.now());
        if new {
            self.quotas.store(true, Ordering::Relaxed);
        }
        new
    }

    /// What tenants use of their quotas.
    pub(crate) fn pressure(&self) -> Vec<QuotaPressure> {
        let mut all = self.gate.lock().pressure(self.now());
        all.extend(self.bounds.lock().pressure());
        all
    }

    /// Counts an instance that began when nobody counted those of its tenant; the bytes that it counts with.
    pub(crate) fn adopt(&self, deployed: &Deployed, measured: u64) -> u64 {
        let takes = Takes { memory: self.memory_of(deployed, measured), cpu_millis: self.cpu_of(deployed) };
        let share = share_of(&self.config.tenants, deployed.tenant);
        self.gate.lock().adopt(deployed.tenant, share, takes);
        takes.memory
    }

    /// What an instance counts with in its tenant's quota of CPU, in thousandths of a core: its request, else its limit,
    /// else what is assumed. A closure in this process counts with what it says only.
    pub(crate) fn cpu_of(&self, deployed: &Deployed) -> u64 {
        let resources = &deployed.spec.resources;
        let said = resources.cpu_request_millis.or(resources.cpu_limit_millis);
        u64::from(said.unwrap_or_else(|| match deployed.runtime.capabilities().isolation {
            Isolation::None => 0,
            _ => self.config.budget.assumed_cpu_millis,
        }))
    }

    /// Changes what all may use. The caller lets those begin for whom there is room now.
    pub(crate) fn set_budget(&self, budget: PoolBudget) {
        let mut gate = self.gate.lock();
        let budget = gate.set_budget(budget);
        // Instances that began while there was none hold no part of it.
        self.limited.store(budget.is_limited(), Ordering::Relaxed);
    }

    /// What an instance counts with in the budget of memory: what its spec says, else what instances of the revision
    /// were measured to use, else what is assumed. A closure in this process takes none of its own.
    pub(crate) fn memory_of(&self, deployed: &Deployed, measured: u64) -> u64 {
        let resources = &deployed.spec.resources;
        match resources.memory_request_bytes.or(resources.memory_limit_bytes) {
            Some(said) => said,
            None if measured > 0 => measured,
            None => self.assumed(&*deployed.runtime),
        }
    }

    fn assumed(&self, runtime: &dyn Runtime) -> u64 {
        match runtime.capabilities().isolation {
            Isolation::None => 0,
            _ => self.config.budget.assumed_memory_bytes,
        }
    }

    /// What of `spec` the budgets could never hold.
    pub(crate) fn admits(&self, spec: &RevisionSpec, runtime: &dyn Runtime) -> Result<(), SpecErrors> {
        let resources = &spec.resources;
        let (field, stated, memory) = match (resources.memory_request_bytes, resources.memory_limit_bytes) {
            (Some(request), _) => ("resources.memory_request_bytes", request.to_string(), request),
            (None, Some(limit)) => ("resources.memory_limit_bytes", limit.to_string(), limit),
            (None, None) => ("resources.memory_request_bytes", String::new(), self.assumed(runtime)),
        };
        let least = match spec.scaling.max {
            0 => spec.scaling.min,
            most => spec.scaling.min.min(most),
        };
        self.gate.lock().admits(field, &stated, memory, least).into_result()
    }

    /// What the pool holds in all, and what it did ahead of demand.
    pub(crate) fn totals(&self) -> PoolTotals {
        let mut totals = PoolTotals::default();
        self.gate.lock().totals(&mut totals);
        self.metrics.wakes.totals(&mut totals);
        totals
    }

    /// Puts a start in line.
    pub(crate) fn ask(&self, ask: Ask) {
        let share = share_of(&self.config.tenants, ask.tenant);
        self.gate.lock().ask(Ask { weight: share.weight.max(1), class: share.class, ..ask });
    }

    /// Tells the meter.
    pub(crate) fn meter(&self, readings: impl Iterator<Item = Reading>) {
        let Some(meter) = &self.config.meter else { return };
        for reading in readings {
            match reading {
                Reading::Phase(id, revision, deployed, phase, ns) => {
                    meter.phase(Metered::of(revision, deployed.tenant, &deployed.name), id, phase, ns);
                }
                Reading::Resources(id, revision, deployed, cpu_ns, memory_byte_ns) => {
                    let of = Metered::of(revision, deployed.tenant, &deployed.name);
                    meter.resources(of, id, cpu_ns, memory_byte_ns);
                }
            }
        }
    }

    /// Counts a refused claim.
    pub(crate) fn refused(&self, error: &ClaimError) {
        match error {
            ClaimError::QueueFull { .. } => self.metrics.queue_full.increment(1),
            ClaimError::Exhausted { .. } => self.metrics.exhausted.increment(1),
            ClaimError::Quota(_) => self.metrics.quota.increment(1),
            ClaimError::Start { .. } => self.metrics.shut.increment(1),
            _ => {}
        }
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("config", &self.config).finish_non_exhaustive()
    }
}

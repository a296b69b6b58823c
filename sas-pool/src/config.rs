//! What a pool is made with.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use sas_core::{
    Balancer, CapacityPolicy, Clock, EngineKey, KeepAlivePolicy, LifecycleSink, LogSink, MeterSink, NoSink,
    Recorder, SecretSource, SpecErrors, StemClass, SystemClock, TenantKey,
};

use crate::{balance::PowerOfTwo, sync::Mutex};

/// What an [`crate::InstancePool`] is made with. `PoolConfig::default()` suits one machine of one operator; fields
/// are public and may be set one by one.
///
/// ```
/// use sas_pool::PoolConfig;
/// let mut config = PoolConfig::default();
/// config.seed = 7;
/// config.budget.instances = 500;
/// config.validate()?;
/// # Ok::<(), sas_core::SpecErrors>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct PoolConfig {
    /// Into how many shards the state is cut: a power of two, at most 4,096. More shards, less contention and a
    /// little more work per tick of the scaler.
    pub shards: u32,
    /// The engine whose pool it is: the keys and ids that it gives out are of its place. The first unless a platform has
    /// several.
    pub engine: EngineKey,
    /// Where all of the pool's randomness comes from. The same seed, inputs and single-threaded runtime give the same
    /// history.
    pub seed: u64,
    /// The most revisions that may be registered at a time.
    pub max_revisions: u32,
    /// Which instance a request gets, unless the revision names one of `balancers`.
    pub balancer: Arc<dyn Balancer>,
    /// Balancers that a revision may ask for by its option `sas.dev/balancer`.
    pub balancers: BTreeMap<String, Arc<dyn Balancer>>,
    /// How starts that burn CPU take turns.
    pub gate: GateConfig,
    /// What all instances together may use.
    pub budget: BudgetConfig,
    /// How much may wait.
    pub queue: QueueConfig,
    /// What happens after a start failed.
    pub backoff: BackoffConfig,
    /// When the last idle instance of a revision goes.
    pub idle: IdleRule,
    /// Takes an instance off the CPU after it was idle for so long, where its runtime can; `None`: never.
    pub suspend_after: Option<Duration>,
    /// When an instance that keeps failing is left out for a while; `None`: never.
    pub outliers: Option<OutlierConfig>,
    /// The shares of tenants at the start gate and at the budgets. Tenants not named have [`TenantShare::default`].
    pub tenants: BTreeMap<TenantKey, TenantShare>,
    /// Booted instances that belong to no revision yet.
    pub stems: StemsConfig,
    /// Wall time, for keep-alive policies and stamps.
    pub clock: Arc<dyn Clock>,
    /// Where the output of instances goes.
    pub logs: Arc<dyn LogSink>,
    /// Where the time of instances is accounted; `None`: nowhere.
    pub meter: Option<Arc<dyn MeterSink>>,
    /// Who is told of instances that fail; `None`: nobody.
    pub lifecycle: Option<Arc<dyn LifecycleSink>>,
    /// What resolves the references to secrets in specs; `None`: a revision that has any can't start.
    pub secrets: Option<Arc<dyn SecretSource>>,
    /// Where the pool's metrics go.
    pub recorder: Recorder,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            shards: 64,
            engine: EngineKey::FIRST,
            seed: 0,
            max_revisions: 16 << 20,
            balancer: Arc::new(PowerOfTwo),
            balancers: BTreeMap::new(),
            gate: GateConfig::default(),
            budget: BudgetConfig::default(),
            queue: QueueConfig::default(),
            backoff: BackoffConfig::default(),
            idle: IdleRule::Decided,
            suspend_after: None,
            outliers: Some(OutlierConfig::default()),
            tenants: BTreeMap::new(),
            stems: StemsConfig::default(),
            clock: Arc::new(SystemClock),
            logs: NoSink::logs(),
            meter: None,
            lifecycle: None,
            secrets: None,
            recorder: Recorder::default(),
        }
    }
}

impl PoolConfig {
    /// The default with a seed.
    pub fn seeded(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// All mistakes at once, each with its field.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        if !self.shards.is_power_of_two() || self.shards > 4096 {
            errors.push("shards", self.shards, "a power of two from 1 to 4096");
        }
        if self.max_revisions == 0 {
            errors.push("max_revisions", 0, "at least 1");
        }
        if !(0.0..=0.5).contains(&self.budget.reserve) {
            errors.push("budget.reserve", self.budget.reserve, "a share from 0 to 0.5");
        }
        if self.budget.instances == 0 {
            errors.push("budget.instances", 0, "at least 1, or u32::MAX for no limit");
        }
        if self.queue.host_requests == 0 {
            errors.push("queue.host_requests", 0, "at least 1, else no cold request could ever wait");
        }
        if self.queue.tenant_requests == 0 {
            errors.push("queue.tenant_requests", 0, "at least 1, else no cold request could ever wait");
        }
        if self.backoff.attempts == 0 {
            errors.push("backoff.attempts", 0, "at least 1");
        }
        if self.backoff.initial.is_zero() || self.backoff.initial > self.backoff.longest {
            errors.push(
                "backoff.initial",
                format!("{:?}", self.backoff.initial),
                "more than nothing and at most backoff.longest",
            );
        }
        if self.stems.slot < Duration::from_millis(10) {
            errors.push("stems.slot", format!("{:?}", self.stems.slot), "at least 10ms");
        }
        if let Some(outliers) = &self.outliers
            && (outliers.failures == 0 || outliers.max_ejected_percent > 100)
        {
            errors.push(
                "outliers",
                format!("{outliers:?}"),
                "failures of at least 1 and max_ejected_percent of at most 100",
            );
        }
        if let Some(automatic) = &self.stems.automatic {
            if automatic.memory_bytes == 0 {
                errors.push(
                    "stems.automatic.memory_bytes",
                    0,
                    "what one stem takes, so that the budget can be kept",
                );
            }
            if automatic.min > automatic.max {
                errors.push(
                    "stems.automatic.min",
                    automatic.min,
                    format!("at most its max, which is {}", automatic.max),
                );
            }
            if automatic.classes == 0 {
                errors.push("stems.automatic.classes", 0, "at least 1, or no automatic stems at all");
            }
        }
        for (class, stems) in &self.stems.classes {
            if stems.memory_bytes == 0 {
                errors.push(
                    format!("stems.classes[{class}].memory_bytes"),
                    0,
                    "what one stem of the class takes, so that the budget can be kept",
                );
            }
            if stems.memory_bytes > self.stems.memory_bytes {
                errors.push(
                    format!("stems.classes[{class}].memory_bytes"),
                    stems.memory_bytes,
                    format!("at most stems.memory_bytes, which is {}", self.stems.memory_bytes),
                );
            }
            if stems.min > stems.max {
                errors.push(
                    format!("stems.classes[{class}].min"),
                    stems.min,
                    format!("at most its max, which is {}", stems.max),
                );
            }
        }
        errors.into_result()
    }
}

/// How starts that burn CPU ([`sas_core::Capabilities::cpu_bound_start`]) take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GateConfig {
    /// How many may start at once; 0: one more than there are cores. `u32::MAX` opens the gate.
    pub starts: u32,
    /// How many of these no single tenant may take, so that a tenant that was quiet starts at once. At least one
    /// start is always open to everybody.
    pub reserve: u32,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self { starts: 0, reserve: 1 }
    }
}

/// What all instances together may use. An instance counts with its memory request, else its memory limit, else what
/// instances of its revision were measured to use, else `assumed_memory_bytes`; one without isolation, which has no
/// memory of its own, with nothing unless its spec says.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct BudgetConfig {
    /// Instances, starting ones included; `u32::MAX`: no limit.
    pub instances: u32,
    /// Memory in bytes, stems included; `u64::MAX`: no limit.
    pub memory_bytes: u64,
    /// What an instance is taken for that says nothing about its memory.
    pub assumed_memory_bytes: u64,
    /// What an instance counts with in its tenant's quota of CPU that says neither request nor limit, in thousandths of
    /// a core.
    pub assumed_cpu_millis: u32,
    /// The share of either that is kept for tenants that hold less than their fair share.
    pub reserve: f64,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self {
            instances: u32::MAX,
            memory_bytes: u64::MAX,
            assumed_memory_bytes: 64 << 20,
            assumed_cpu_millis: 100,
            reserve: 0.05,
        }
    }
}

impl BudgetConfig {
    pub(crate) const fn is_limited(&self) -> bool {
        self.instances != u32::MAX || self.memory_bytes != u64::MAX
    }
}

/// How much may wait. The length per revision is in its spec ([`sas_core::RevisionSpec::queue_limit`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueConfig {
    /// Bytes that the waiting requests of one revision hold.
    pub revision_bytes: u64,
    /// Waiting requests of one tenant.
    pub tenant_requests: u32,
    /// Bytes that the waiting requests of one tenant hold.
    pub tenant_bytes: u64,
    /// Waiting requests of all.
    pub host_requests: u32,
    /// Bytes that all waiting requests hold.
    pub host_bytes: u64,
    /// When a refused request may come back.
    pub retry_after: Duration,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            revision_bytes: 64 << 20,
            tenant_requests: 50_000,
            tenant_bytes: 128 << 20,
            host_requests: 100_000,
            host_bytes: 256 << 20,
            retry_after: Duration::from_secs(1),
        }
    }
}

/// What happens after a start failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackoffConfig {
    /// After so many failures in a row, with no instance up and none on its way, waiting and new requests fail at
    /// once until the next attempt is due. One that can never succeed (a malformed spec) counts as all of them.
    pub attempts: u32,
    /// The pause after the first failure; each further one doubles it.
    pub initial: Duration,
    /// The pause between two starts never grows beyond this.
    pub longest: Duration,
    /// An instance that dies within this time of being ready, without a good answer, counts as a failed start.
    pub settle: Duration,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self {
            attempts: 3,
            initial: Duration::from_millis(100),
            longest: Duration::from_secs(30),
            settle: Duration::from_secs(5),
        }
    }
}

impl BackoffConfig {
    /// The pause after `failures` in a row.
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        self.initial.saturating_mul(1u32 << failures.saturating_sub(1).min(20)).min(self.longest)
    }
}

/// When an instance that keeps failing is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutlierConfig {
    /// Failures in a row.
    pub failures: u32,
    /// How long it is left out the first time; the n-th time n times as long.
    pub ejection: Duration,
    /// An instance is kept idle for no longer than this.
    pub longest: Duration,
    /// At most this share of a revision's instances is out at a time, in percent; the last one never is.
    pub max_ejected_percent: u32,
}

impl Default for OutlierConfig {
    fn default() -> Self {
        Self {
            failures: 5,
            ejection: Duration::from_secs(30),
            longest: Duration::from_secs(300),
            max_ejected_percent: 50,
        }
    }
}

/// A tenant's share at the start gate and at the budgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TenantShare {
    /// Turns are in proportion to the weights. At least 1.
    pub weight: u32,
    /// A tenant of a higher class goes before all of lower ones, whatever the weights.
    pub class: u8,
}

impl Default for TenantShare {
    fn default() -> Self {
        Self { weight: 100, class: 0 }
    }
}

impl TenantShare {
    /// A share of ordinary class; a weight of 0 counts as 1.
    pub fn weighing(weight: u32) -> Self {
        Self { weight: weight.max(1), class: 0 }
    }
}

/// When the last idle instances of a revision go.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum IdleRule {
    /// When [`sas_core::Pool::set_desired`] says so.
    #[default]
    Decided,
    /// As soon as it has nothing to do, unless more were decided: every request of a quiet revision is cold.
    AtOnce,
    /// When neither a decision nor the policy keeps it; the policy may also wake the revision ahead of its next call.
    /// Decisions still rule how many there are above one. A revision that says itself when it sleeps
    /// ([`sas_core::ScalingSpec::says_when_to_sleep`]) is taken at its word.
    Policy(KeepAliveRule),
}

impl IdleRule {
    /// Idle instances are kept as long as `policy` says.
    pub fn policy(policy: impl KeepAlivePolicy) -> Self {
        Self::Policy(KeepAliveRule(Mutex::new(Box::new(policy))))
    }
}

/// A keep-alive policy on its way into a pool.
#[derive(Debug)]
pub struct KeepAliveRule(pub(crate) Mutex<Box<dyn KeepAlivePolicy>>);

/// Makes the capacity policy of a class.
pub type CapacityFactory = Arc<dyn Fn(&StemClass) -> Box<dyn CapacityPolicy> + Send + Sync>;

/// Booted instances that belong to no revision yet, by class.
#[derive(Clone)]
#[non_exhaustive]
pub struct StemsConfig {
    /// The classes that are held whatever is registered, with their bounds.
    pub classes: BTreeMap<StemClass, StemClassConfig>,
    /// How the classes are held that registered revisions can come from and `classes` does not name; `None`: not at
    /// all, stems of other classes are never booted.
    pub automatic: Option<AutomaticStems>,
    /// Memory of all stems together, in bytes.
    pub memory_bytes: u64,
    /// The slot of time by which capacity is decided.
    pub slot: Duration,
    /// How many stems each class holds; `None`: its `min`, as a fixed number.
    pub capacity: Option<CapacityFactory>,
    /// How long one boot may take.
    pub boot_timeout: Duration,
}

impl Default for StemsConfig {
    fn default() -> Self {
        Self {
            classes: BTreeMap::new(),
            automatic: None,
            memory_bytes: 1 << 30,
            slot: Duration::from_secs(60),
            capacity: None,
            boot_timeout: Duration::from_secs(60),
        }
    }
}

impl fmt::Debug for StemsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StemsConfig")
            .field("classes", &self.classes)
            .field("automatic", &self.automatic)
            .field("memory_bytes", &self.memory_bytes)
            .field("slot", &self.slot)
            .field("capacity", &self.capacity.is_some())
            .field("boot_timeout", &self.boot_timeout)
            .finish()
    }
}

/// Bounds of the classes of stems that are held because a registered revision can come from them
/// ([`sas_core::ArtifactInfo::stem`]). A class whose last revision goes is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AutomaticStems {
    /// The least to hold of each class, as far as memory goes.
    pub min: u32,
    /// The most to hold of each class.
    pub max: u32,
    /// What one stem is taken for, in bytes.
    pub memory_bytes: u64,
    /// How many classes at most; stems of further ones are not booted, which the log says.
    pub classes: u32,
}

impl Default for AutomaticStems {
    fn default() -> Self {
        Self { min: 1, max: 64, memory_bytes: 96 << 20, classes: 16 }
    }
}

/// A class of stems.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StemClassConfig {
    /// The runtime that boots these stems.
    pub runtime: Arc<dyn sas_core::Runtime>,
    /// The least to hold, as far as memory goes.
    pub min: u32,
    /// The most to hold.
    pub max: u32,
    /// What one takes, in bytes.
    pub memory_bytes: u64,
}

impl StemClassConfig {
    /// `min` to `max` stems of `memory_bytes` each, booted by `runtime`.
    pub fn new(runtime: Arc<dyn sas_core::Runtime>, min: u32, max: u32, memory_bytes: u64) -> Self {
        Self { runtime, min, max, memory_bytes }
    }
}

//! How many instances a revision should have, and why.

use std::{any::Any, fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use smallvec::SmallVec;

use crate::{Load, Metric, NamedValues, NamedVote, Resources, ScalingSpec, SpecErrors, Timestamp};

/// All that a decision is made from. No clock, no I/O.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ScaleInput<'a> {
    /// The row of the revision in the scaler's state: dense, given by the driver, reused after
    /// [`Scaler::retire`].
    pub row: u32,
    /// The time at which is decided.
    pub now: Timestamp,
    /// How long `load` was measured: since the input before this one, or one tick for the first.
    pub elapsed: Duration,
    /// Requests at once per instance, a hard limit; 0: unlimited.
    pub concurrency: u32,
    /// What one instance may use, for targets in percent; `None`: not known.
    pub resources: Option<&'a Resources>,
    /// The scaling configuration of the revision.
    pub spec: &'a ScalingSpec,
    /// The load that was measured since the last decision.
    pub load: &'a Load,
    /// What the host measured beyond the load, by name.
    pub named: &'a NamedValues,
    /// The decision before this one.
    pub desired: Option<u32>,
}

impl<'a> ScaleInput<'a> {
    /// An input whose load was measured over one second, of instances without a limit.
    pub const fn new(
        row: u32,
        now: Timestamp,
        spec: &'a ScalingSpec,
        load: &'a Load,
        desired: Option<u32>,
    ) -> Self {
        let elapsed = Duration::from_secs(1);
        let named = &crate::named_values::NO_VALUES;
        Self { row, now, elapsed, concurrency: 0, resources: None, spec, load, named, desired }
    }

    /// The same, measured over `elapsed`.
    #[must_use]
    pub const fn over(mut self, elapsed: Duration) -> Self {
        self.elapsed = elapsed;
        self
    }

    /// The same, with what the host measured by name.
    #[must_use]
    pub const fn named(mut self, named: &'a NamedValues) -> Self {
        self.named = named;
        self
    }

    /// The same, of instances that take `concurrency` requests at once and use `resources`.
    #[must_use]
    pub const fn of(mut self, concurrency: u32, resources: Option<&'a Resources>) -> Self {
        self.concurrency = concurrency;
        self.resources = resources;
        self
    }
}

/// What a [`Decision`] says to do with the number of instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Leave things as they are: there is nothing to decide from.
    Hold,
    /// Have this many instances.
    Set(u32),
}

/// Why a [`Decision`] says what it says, for operators and records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// No sample in the window.
    NoData,
    /// The stable window decided.
    Stable,
    /// The panic window decided, or a panic holds the number.
    Panic,
    /// An earlier, higher decision is held for the scale-down delay.
    Delayed,
    /// Nothing was asked for a whole window.
    Idle,
    /// Requests wait: the number fits them.
    Waiting,
    /// The input was not usable (NaN, a clock that jumped back); the last decision stays.
    BadInput,
    /// The scaler panicked; the last decision stays.
    ScalerFailed,
    /// After a restart nothing shrinks before a stable window was seen.
    WarmingUp,
    /// A metric was not measured, and what is stated for this case decided.
    Fallback,
    /// A schedule's window decided.
    Scheduled,
    /// A forecast raised the floor.
    Forecast,
    /// No instance became ready within the activation timeout.
    TimedOut,
    /// The scaler decides on some of the ticks only; until the next of them the last decision stays.
    BetweenTicks,
    /// The keep-alive policy expects a call: an instance is started ahead of it.
    Expected,
    /// The keep-alive policy expects no call any more: the last instance goes.
    NotExpected,
    /// An idle instance was stopped, because others lacked room in a budget.
    Reclaimed,
    /// The pool's own: a roll-out sizes the revision for a share of the traffic, or lets it go with one.
    RollOut,
    /// The pool's own: the service runs on several hosts, and this one's part of it changed.
    Part,
    /// A request found no instance at all: the pool started what those who wait need, without waiting for a scaler.
    Activated,
    /// A custom policy's own.
    Custom(u16),
}

impl Reason {
    /// Whether the pool decided, not a scaler: what is replayed takes such a decision as it was.
    pub const fn is_pools_own(self) -> bool {
        matches!(
            self,
            Self::Expected
                | Self::NotExpected
                | Self::Reclaimed
                | Self::RollOut
                | Self::Part
                | Self::Activated
        )
    }
}

/// Which bounds acted on a decision, as a set.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Clamps(pub u16);

impl Clamps {
    /// `max_scale_up_rate` held it down.
    pub const UP_RATE: Self = Self(1);
    /// `max_scale_down_rate` held it up.
    pub const DOWN_RATE: Self = Self(1 << 1);
    /// The bound `activation` has raised the number.
    pub const ACTIVATION: Self = Self(1 << 2);
    /// `scale_down_delay` held it up.
    pub const DELAY: Self = Self(1 << 3);
    /// The bound `min` has raised the number.
    pub const MIN: Self = Self(1 << 4);
    /// `max` held it down.
    pub const MAX: Self = Self(1 << 5);
    /// The bound `initial` has raised the number.
    pub const INITIAL: Self = Self(1 << 6);
    /// A running panic held it up.
    pub const PANIC: Self = Self(1 << 7);
    /// The revision may not sleep (yet): grace, retention, or `scale_to_zero` off.
    pub const ZERO: Self = Self(1 << 8);
    /// A policy's ceiling or floor.
    pub const SCHEDULE: Self = Self(1 << 9);
    /// A quiet stretch let it fall before the window's end.
    pub const QUIET: Self = Self(1 << 10);
    /// What waits counted only in part, since instances that start will take it.
    pub const STARTING: Self = Self(1 << 11);
    /// The tolerance of the resource scaler kept it.
    pub const TOLERANCE: Self = Self(1 << 12);
    /// A stabilisation window kept it.
    pub const STABILIZATION: Self = Self(1 << 13);
    /// A scaling policy held it back.
    pub const POLICY: Self = Self(1 << 14);
    /// After a restart it may not fall yet.
    pub const RESTART: Self = Self(1 << 15);

    const NAMES: [(Self, &'static str); 16] = [
        (Self::UP_RATE, "up_rate"),
        (Self::DOWN_RATE, "down_rate"),
        (Self::ACTIVATION, "activation"),
        (Self::DELAY, "delay"),
        (Self::MIN, "min"),
        (Self::MAX, "max"),
        (Self::INITIAL, "initial"),
        (Self::PANIC, "panic"),
        (Self::ZERO, "zero"),
        (Self::SCHEDULE, "schedule"),
        (Self::QUIET, "quiet"),
        (Self::STARTING, "starting"),
        (Self::TOLERANCE, "tolerance"),
        (Self::STABILIZATION, "stabilization"),
        (Self::POLICY, "policy"),
        (Self::RESTART, "restart"),
    ];

    /// Adds the bounds of `other` to these.
    pub fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether all of `other` are in it.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names of those in it.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(clamp, _)| self.contains(*clamp)).map(|(_, name)| name)
    }
}

impl fmt::Debug for Clamps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// What one metric wanted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Vote {
    /// The metric that votes.
    pub metric: Metric,
    /// Its value over the window; `None`: not measured.
    pub value: Option<f64>,
    /// What one instance should carry.
    pub target: f64,
    /// The instances that it asks for; `None`: no opinion.
    pub desired: Option<u32>,
}

impl Vote {
    /// What `metric` wants, from its value and its target.
    #[inline]
    pub const fn new(metric: Metric, value: Option<f64>, target: f64, desired: Option<u32>) -> Self {
        Self { metric, value, target, desired }
    }
}

/// The votes of a decision: a list that holds two without an allocation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Votes(SmallVec<[Vote; 2]>);

impl Votes {
    /// No votes yet.
    pub const fn new() -> Self {
        Self(SmallVec::new_const())
    }

    /// Two, at no cost.
    #[inline]
    pub fn pair(first: Vote, second: Vote) -> Self {
        Self(SmallVec::from_buf([first, second]))
    }

    /// Adds the vote of one metric.
    #[inline]
    pub fn push(&mut self, vote: Vote) {
        self.0.push(vote);
    }
}

impl std::ops::Deref for Votes {
    type Target = [Vote];
    fn deref(&self) -> &[Vote] {
        &self.0
    }
}

impl FromIterator<Vote> for Votes {
    fn from_iter<I: IntoIterator<Item = Vote>>(votes: I) -> Self {
        Self(votes.into_iter().collect())
    }
}

impl Extend<Vote> for Votes {
    fn extend<I: IntoIterator<Item = Vote>>(&mut self, votes: I) {
        self.0.extend(votes);
    }
}

impl<'a> IntoIterator for &'a Votes {
    type Item = &'a Vote;
    type IntoIter = std::slice::Iter<'a, Vote>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// A verdict and its whole story.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Decision {
    /// What to do with the number of instances.
    pub verdict: Verdict,
    /// Why this was decided, for operators and records.
    pub reason: Reason,
    /// The bounds that changed the number.
    pub clamps: Clamps,
    /// Requests that could still burst in before capacity is short; negative: it is short.
    pub excess_burst: i32,
    /// What the scaler wanted before the bounds of the spec; `None`: it held, or nobody applied bounds yet.
    pub proposed: Option<u32>,
    /// The version of the scaler that decided, by [`Scaler::version`].
    pub version: u32,
    /// What each metric wanted; for the KPA the stable window, then the panic window.
    pub votes: Votes,
    /// What has a name of its own; most decisions have nothing such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
}

/// The part of a decision's story that is told by names: see [`Decision::because`] and [`Decision::named_votes`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Details {
    /// The reason by name: the named measurement that decided, or a custom policy's own word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// What each named measurement wanted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub votes: Vec<NamedVote>,
}

impl Decision {
    const fn new(verdict: Verdict, reason: Reason) -> Self {
        Self {
            verdict,
            reason,
            clamps: Clamps(0),
            excess_burst: 0,
            proposed: None,
            version: 1,
            votes: Votes::new(),
            details: None,
        }
    }

    /// Leave things as they are.
    #[inline]
    pub const fn hold(reason: Reason) -> Self {
        Self::new(Verdict::Hold, reason)
    }

    /// A decision to have `desired` instances.
    #[inline]
    pub const fn set(desired: u32, reason: Reason) -> Self {
        Self::new(Verdict::Set(desired), reason)
    }

    /// The same with a reason by name, for policies whose reasons [`Reason`] has not.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.details.get_or_insert_default().because = Some(reason.into());
        self
    }

    /// Adds what a named measurement wanted.
    pub fn push_named(&mut self, vote: NamedVote) {
        self.details.get_or_insert_default().votes.push(vote);
    }

    /// What each named measurement wanted.
    pub fn named_votes(&self) -> &[NamedVote] {
        self.details.as_ref().map_or(&[], |details| &details.votes)
    }

    /// The number, when there is one.
    #[inline]
    pub const fn desired(&self) -> Option<u32> {
        match self.verdict {
            Verdict::Set(desired) => Some(desired),
            Verdict::Hold => None,
        }
    }
}

/// How a policy is written: typed, serialisable state; state + input → decision. No I/O, clock, randomness or lock.
///
/// ```
/// use sas_core::{Decision, Policy, Reason, ScaleInput};
///
/// /// One instance for every ten requests.
/// #[derive(Debug)]
/// struct Tenth;
///
/// impl Policy for Tenth {
///     type State = ();
///     fn name(&self) -> &'static str {
///         "tenth"
///     }
///     fn decide(&self, _: &mut (), input: &ScaleInput<'_>) -> Decision {
///         Decision::set((input.load.concurrency / 10.0).ceil() as u32, Reason::Stable)
///     }
/// }
/// ```
pub trait Policy: fmt::Debug + Send + Sync + 'static {
    /// What it remembers of one revision.
    type State: Default + Clone + Serialize + DeserializeOwned + Send + 'static;
    /// The name by which specs ask for it, with a version when its decisions change.
    fn name(&self) -> &'static str;
    /// Decides. The same state and input give the same decision, bit for bit. Bounds of the spec are applied by
    /// the driver, not here.
    fn decide(&self, state: &mut Self::State, input: &ScaleInput<'_>) -> Decision;
    /// Counts up whenever the same state and input begin to give another decision.
    fn version(&self) -> u32 {
        1
    }
    /// Checks what of a spec concerns this policy, beyond [`ScalingSpec::validate`].
    ///
    /// # Errors
    /// All mistakes at once, each with its field.
    fn validate(&self, spec: &ScalingSpec) -> Result<(), SpecErrors> {
        let _ = spec;
        Ok(())
    }
    /// Asked when the revision goes to sleep: when it is to be looked at again, and its state kept until then.
    /// `None`: on its next request, from nothing.
    fn wake_at(&self, state: &Self::State, input: &ScaleInput<'_>) -> Option<Timestamp> {
        let _ = (state, input);
        None
    }
}

/// How the platform drives a policy: one object for all revisions that it serves, so that state can lie in columns.
/// Every [`Policy`] is one, with a state per row.
///
/// The driver calls it once per tick. It is given to the builder's `scaler`; `examples/custom_scaler.rs` has a policy that is one.
pub trait Scaler: fmt::Debug + Send + Sync + 'static {
    /// The name by which specs ask for it.
    fn name(&self) -> &'static str;
    /// Counts up whenever the same state and input begin to give another decision.
    fn version(&self) -> u32 {
        1
    }
    /// Checks what of a spec concerns this scaler, beyond [`ScalingSpec::validate`].
    ///
    /// # Errors
    /// All mistakes at once, each with its field.
    fn validate(&self, spec: &ScalingSpec) -> Result<(), SpecErrors> {
        let _ = spec;
        Ok(())
    }
    /// Asked when the revision of `input.row` goes to sleep: when it is to be looked at again, and its state kept
    /// until then. `None`: on its next request, from nothing.
    fn wake_at(&self, states: &(dyn Any + Send), input: &ScaleInput<'_>) -> Option<Timestamp> {
        let _ = (states, input);
        None
    }
    /// Empty state.
    fn new_states(&self) -> Box<dyn Any + Send>;
    /// Decides for each input, in order, pushing one decision each to `out`. A row that was not seen since
    /// [`Scaler::retire`] starts from nothing.
    fn tick(&self, states: &mut (dyn Any + Send), batch: &[ScaleInput<'_>], out: &mut Vec<Decision>);
    /// Forgets a row.
    fn retire(&self, states: &mut (dyn Any + Send), row: u32);
    /// The state of a row, for a checkpoint; `None` when the row is empty.
    fn checkpoint(&self, states: &(dyn Any + Send), row: u32) -> Option<serde_json::Value>;
    /// Puts a checkpoint back.
    ///
    /// # Errors
    /// `InvalidSpec` when it is not one of this scaler's.
    fn restore(
        &self,
        states: &mut (dyn Any + Send),
        row: u32,
        checkpoint: serde_json::Value,
    ) -> crate::Result<()>;
}

#[deny(clippy::missing_trait_methods)]
impl<T: Scaler + ?Sized> Scaler for Arc<T> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn version(&self) -> u32 {
        (**self).version()
    }

    fn validate(&self, spec: &ScalingSpec) -> Result<(), SpecErrors> {
        (**self).validate(spec)
    }

    fn wake_at(&self, states: &(dyn Any + Send), input: &ScaleInput<'_>) -> Option<Timestamp> {
        (**self).wake_at(states, input)
    }

    fn new_states(&self) -> Box<dyn Any + Send> {
        (**self).new_states()
    }

    fn tick(&self, states: &mut (dyn Any + Send), batch: &[ScaleInput<'_>], out: &mut Vec<Decision>) {
        (**self).tick(states, batch, out);
    }

    fn retire(&self, states: &mut (dyn Any + Send), row: u32) {
        (**self).retire(states, row);
    }

    fn checkpoint(&self, states: &(dyn Any + Send), row: u32) -> Option<serde_json::Value> {
        (**self).checkpoint(states, row)
    }

    fn restore(
        &self,
        states: &mut (dyn Any + Send),
        row: u32,
        checkpoint: serde_json::Value,
    ) -> crate::Result<()> {
        (**self).restore(states, row, checkpoint)
    }
}

/// The rows of a [`Policy`].
type Rows<P> = Vec<Option<<P as Policy>::State>>;

impl<P: Policy> Scaler for P {
    fn name(&self) -> &'static str {
        Policy::name(self)
    }

    fn version(&self) -> u32 {
        Policy::version(self)
    }

    fn validate(&self, spec: &ScalingSpec) -> Result<(), SpecErrors> {
        Policy::validate(self, spec)
    }

    fn wake_at(&self, states: &(dyn Any + Send), input: &ScaleInput<'_>) -> Option<Timestamp> {
        let state = states.downcast_ref::<Rows<P>>()?.get(input.row as usize)?.as_ref()?;
        Policy::wake_at(self, state, input)
    }

    fn new_states(&self) -> Box<dyn Any + Send> {
        Box::<Rows<P>>::default()
    }

    fn tick(&self, states: &mut (dyn Any + Send), batch: &[ScaleInput<'_>], out: &mut Vec<Decision>) {
        let Some(rows) = states.downcast_mut::<Rows<P>>() else {
            out.extend(batch.iter().map(|_| Decision::hold(Reason::ScalerFailed)));
            return;
        };
        for input in batch {
            let row = input.row as usize;
            if rows.len() <= row {
                rows.resize_with(row + 1, || None);
            }
            out.push(self.decide(rows[row].get_or_insert_default(), input));
        }
    }

    fn retire(&self, states: &mut (dyn Any + Send), row: u32) {
        if let Some(slot) = states.downcast_mut::<Rows<P>>().and_then(|rows| rows.get_mut(row as usize)) {
            *slot = None;
        }
    }

    fn checkpoint(&self, states: &(dyn Any + Send), row: u32) -> Option<serde_json::Value> {
        let state = states.downcast_ref::<Rows<P>>()?.get(row as usize)?.as_ref()?;
        serde_json::to_value(state).ok()
    }

    fn restore(
        &self,
        states: &mut (dyn Any + Send),
        row: u32,
        checkpoint: serde_json::Value,
    ) -> crate::Result<()> {
        let bad = |message: String| crate::Error::new(crate::ErrorKind::InvalidSpec, "restore", message);
        let state = serde_json::from_value(checkpoint)
            .map_err(|error| bad(format!("not a checkpoint of {}: {error}", Policy::name(self))))?;
        let rows = states
            .downcast_mut::<Rows<P>>()
            .ok_or_else(|| bad(format!("these are not states of {}", Policy::name(self))))?;
        let row = row as usize;
        if rows.len() <= row {
            rows.resize_with(row + 1, || None);
        }
        rows[row] = Some(state);
        Ok(())
    }
}

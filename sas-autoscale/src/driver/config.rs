//! What a host may set.

use std::{sync::Arc, time::Duration};

use sas_core::{Clock, DecisionSink, NoSink, Recorder, SpecErrors, SystemClock};

/// How the driver works.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DriverConfig {
    /// How often an active revision is looked at; 50 ms to 1 min, 1 s unless the host knows better.
    pub tick: Duration,
    /// Records kept per active revision; 0: none.
    pub history: usize,
    /// Revisions at most that have a history.
    pub history_revisions: usize,
    /// Revisions at most that keep their history after they went to sleep.
    pub asleep_histories: usize,
    /// How long a reported measurement counts.
    pub measurement_age: Duration,
    /// Revisions at most with reported measurements.
    pub measured_revisions: usize,
    /// The clock that stamps decisions.
    pub clock: Arc<dyn Clock>,
    /// Who is told of every decision.
    pub sink: Arc<dyn DecisionSink>,
    /// The recorder that the driver's metrics go to.
    pub recorder: Recorder,
    /// The host that decides, which its records name, where several share a state; a platform sets it.
    pub host: Option<Arc<str>>,
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self {
            tick: Duration::from_secs(1),
            history: 120,
            history_revisions: 10_000,
            asleep_histories: 1_000,
            measurement_age: Duration::from_secs(30),
            measured_revisions: 100_000,
            clock: Arc::new(SystemClock),
            sink: Arc::new(NoSink),
            recorder: Recorder::default(),
            host: None,
        }
    }
}

impl DriverConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// All mistakes at once, each with its field.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        if self.tick < Duration::from_millis(50) || self.tick > Duration::from_secs(60) {
            errors.push("tick", format!("{:?}", self.tick), "50ms to 60s");
        }
        if self.history > 100_000 {
            errors.push("history", self.history, "at most 100000 records per revision");
        }
        if self.measurement_age < self.tick {
            errors.push(
                "measurement_age",
                format!("{:?}", self.measurement_age),
                "at least one tick, else no measurement would ever count",
            );
        }
        errors.into_result()
    }
}

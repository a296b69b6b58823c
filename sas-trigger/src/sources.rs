//! Cron and timer triggers for those who compose them in code.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sas_core::{Error, ErrorKind, Fires, Recorder, Result, Timestamp, TriggerCx, TriggerSource};

#[cfg(feature = "cron")]
use crate::cron::CronSchedule;
use crate::{
    every::Every,
    scheduled::{EventTemplate, SchedulePolicy, Scheduled},
};

macro_rules! scheduled_source {
    ($name:ident) => {
        impl $name {
            /// With metrics that go to `recorder`.
            #[must_use]
            pub fn with_recorder(self, recorder: &Recorder) -> Self {
                Self(self.0.with_recorder(recorder))
            }
        }

        #[async_trait]
        impl TriggerSource for $name {
            fn kind(&self) -> &'static str {
                self.0.kind()
            }

            async fn run(&self, cx: TriggerCx) -> Result<()> {
                self.0.run(cx).await
            }

            fn sleeps(&self) -> bool {
                self.0.sleeps()
            }

            async fn wake(&self, cx: &TriggerCx) -> Result<Option<Timestamp>> {
                self.0.wake(cx).await
            }

            fn fires(&self, now: Timestamp) -> Fires {
                self.0.fires(now)
            }
        }
    };
}

/// Fires by a cron expression.
///
/// ```
/// use sas_trigger::{CronSchedule, CronTrigger, EventTemplate, SchedulePolicy};
///
/// let schedule = CronSchedule::new("*/5 * * * * *", "UTC")?;
/// let template = EventTemplate::new("/clock", "tick");
/// let trigger = CronTrigger::new(schedule, SchedulePolicy::default(), template);
/// # drop(trigger);
/// # Ok::<(), sas_trigger::CronError>(())
/// ```
#[cfg(feature = "cron")]
#[derive(Debug)]
pub struct CronTrigger(Scheduled);

#[cfg(feature = "cron")]
impl CronTrigger {
    /// A trigger that fires by `schedule`.
    pub fn new(schedule: CronSchedule, policy: SchedulePolicy, template: EventTemplate) -> Self {
        Self(Scheduled::new("cron", Arc::new(schedule), policy, template))
    }
}

#[cfg(feature = "cron")]
scheduled_source!(CronTrigger);

/// Fires periodically, on a grid that is the same after a restart.
#[derive(Debug)]
pub struct TimerTrigger(Scheduled);

impl TimerTrigger {
    /// A trigger that fires every `period`, counted from the Unix epoch.
    ///
    /// # Errors
    /// `InvalidSpec` for a period of less than a millisecond or more than 200 years.
    pub fn new(period: Duration, policy: SchedulePolicy, template: EventTemplate) -> Result<Self> {
        let Some(schedule) = Every::new(period) else {
            let message = format!("period of {period:?}: use 1 ms to 200 years");
            return Err(Error::new(ErrorKind::InvalidSpec, "timer", message));
        };
        Ok(Self(Scheduled::new("timer", Arc::new(schedule), policy, template)))
    }
}

scheduled_source!(TimerTrigger);

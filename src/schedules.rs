//! How schedules of scaling are read.

use std::sync::Arc;

use sas_core::{Error, ErrorKind, Schedule};
#[cfg(feature = "cron")]
use sas_trigger::CronSchedule;

/// How scaling schedules are read: as cron expressions, in UTC unless a zone is given.
#[cfg(feature = "cron")]
pub(crate) fn cron(expression: &str, zone: Option<&str>) -> Result<Arc<dyn Schedule>, Error> {
    match CronSchedule::new(expression, zone.unwrap_or("UTC")) {
        // One that never came would scale nothing, and nobody would notice.
        Ok(schedule) if schedule.next_after(sas_core::Timestamp(0)).is_none() => {
            let message = format!("{expression}: never fires: there is no such time");
            Err(Error::new(ErrorKind::InvalidSpec, "schedule", message))
        }
        Ok(schedule) => Ok(Arc::new(schedule)),
        Err(error) => {
            Err(Error::new(ErrorKind::InvalidSpec, "schedule", error.to_string()).with_source(error))
        }
    }
}

/// Without the feature `cron` no schedule can be read.
#[cfg(not(feature = "cron"))]
pub(crate) fn cron(expression: &str, _: Option<&str>) -> Result<Arc<dyn Schedule>, Error> {
    let message = format!("{expression}: this platform was built without the feature cron");
    Err(Error::new(ErrorKind::Unsupported, "schedule", message))
}

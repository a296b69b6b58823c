//! CloudEvents 1.0 on the wire.

mod http;

use jiff::Timestamp as Instant;
use sas_core::Timestamp;

pub use http::to_request;

/// A time as CloudEvents write it; `None`: out of the range of the calendar.
pub(crate) fn rfc3339(time: Timestamp) -> Option<String> {
    Instant::from_nanosecond(i128::from(time.0)).ok().map(|instant| instant.to_string())
}

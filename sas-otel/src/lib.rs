#![forbid(unsafe_code)]
//! OpenTelemetry for the `sas` serverless SDK: traces, metrics and logs, over OTLP to a collector.
//!
//! The parts of a platform tell what they know by traits of `sas-core`: a [`TraceSink`](sas_core::TraceSink) hears of every
//! request and delivery when it is over, a [`Recorder`](sas_core::Recorder) counts, a [`LogSink`](sas_core::LogSink) gets
//! the lines of instances. [`Otel`] is all three, and one task for each signal sends what they gather.
//!
//! Nobody waits for a collector: what there is no room for is dropped and counted ([`metrics::DROPPED`]). There is no state
//! of the process: two exporters share nothing.
//!
//! ```
//! use sas_otel::{Otel, OtelConfig};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = OtelConfig::new("http://127.0.0.1:4318");
//! config.sampling.ratio = 0.05;
//! let otel = Otel::start(config)?;
//! // For a gateway of one's own: `GatewayConfig::traces`. The facade does it by `PlatformBuilder::otel`.
//! let sink = otel.traces().expect("traces are exported by default");
//! assert!(!sink.samples(1, None), "one in twenty");
//! # otel.shutdown(tokio::time::Instant::now()).await;
//! # Ok(())
//! # }
//! ```

mod config;
mod export;
mod faas;
mod logs;
pub mod metrics;
mod otel;
mod recorder;
mod semconv;
mod traces;
mod transport;
mod value;

pub use config::{Batching, OtelConfig, Sampling};
pub use otel::Otel;
pub use recorder::OtelRecorder;
pub use semconv::SCHEMA_URL;
pub use traces::OtelTraces;

/// The README's code.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

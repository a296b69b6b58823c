//! How a gateway behaves.

use std::time::Duration;

use sas_core::Recorder;

use crate::{retry::RetryPolicy, upstream::UpstreamConfig};

/// When answers carry `Server-Timing` with the times of queue, start and instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerTiming {
    /// Never.
    Never,
    /// When the request has the header `x-sas-timing`.
    #[default]
    WhenAsked,
    /// Always.
    Always,
}

/// Configuration of a [`crate::Gateway`]. Made by `default()` and then filled in.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GatewayConfig {
    /// Decides request ids and spans. Two gateways of one platform need different seeds.
    pub seed: u64,
    /// Where metrics go.
    pub recorder: Recorder,
    /// Hosts that end in a dot and this are only reachable through [`sas_core::Invoker`]. `svc`.
    pub internal_suffix: String,
    /// Whether `x-request-id`, `Forwarded` and `X-Forwarded-*` of requests are believed and added to, because a
    /// proxy of one's own stands in front. False: they are replaced.
    pub trust_forwarded: bool,
    /// When and how often a request is tried again on another instance.
    pub retry: RetryPolicy,
    /// When answers carry `Server-Timing`.
    pub server_timing: ServerTiming,
    /// Longest path and query in bytes; longer ones are answered with 414. 16 KiB.
    pub max_uri_bytes: usize,
    /// How connections to instances are made and kept.
    pub upstream: UpstreamConfig,
    /// How long a request of no service (one from a trigger or a test) may take, where nothing else says so. 300 s.
    pub default_timeout: Duration,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            recorder: Recorder::default(),
            internal_suffix: "svc".to_owned(),
            trust_forwarded: false,
            retry: RetryPolicy::default(),
            server_timing: ServerTiming::default(),
            max_uri_bytes: 16 * 1024,
            upstream: UpstreamConfig::default(),
            default_timeout: Duration::from_secs(300),
        }
    }
}

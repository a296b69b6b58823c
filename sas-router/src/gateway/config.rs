//! How a gateway behaves.

use std::sync::Arc;

use sas_core::{MeterSink, Recorder, TraceSink};

use crate::{
    access::AccessLog,
    admission::{Admission, AdmissionConfig},
    hook::Hook,
    mirror::MirrorConfig,
    peer::Peers,
    retry::RetryPolicy,
    upstream::UpstreamConfig,
};

/// When answers carry `Server-Timing` with the times of queue, start and instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerTiming {
    /// No answer carries them.
    Never,
    /// When the request has the header `x-sas-timing`.
    #[default]
    WhenAsked,
    /// Every answer carries them.
    Always,
}

/// Configuration of a [`crate::Gateway`]. Made by `default()` and then filled in.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GatewayConfig {
    /// Decides request ids and spans. Two gateways of one platform need different seeds. 0: no seed, and the ids
    /// differ with each start.
    pub seed: u64,
    /// The recorder that the gateway's metrics go to.
    pub recorder: Recorder,
    /// Hosts that end in a dot and this are only reachable through [`sas_core::Invoker`]. `svc`.
    pub internal_suffix: String,
    /// Whether `x-request-id`, `Forwarded`, `X-Real-IP` and `X-Forwarded-*` of requests are believed and added to, because a
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
    /// Quotas and the budget of bytes. Keep a clone to change quotas later.
    pub admission: Arc<Admission>,
    /// The other hosts of the platform, to which routes may lead; `None`: there are none, and such a route is answered with
    /// 503.
    pub peers: Option<Arc<Peers>>,
    /// Code of the host that sees every request from outside, in this order.
    pub hooks: Vec<Arc<dyn Hook>>,
    /// Takes a record of every request from outside; `None`: no records are made.
    pub access: Option<Arc<dyn AccessLog>>,
    /// Takes what requests used, once the answer of an instance is over: their number, cold starts, events and bytes.
    /// `None`: they are not metered.
    pub meter: Option<Arc<dyn MeterSink>>,
    /// Is told of every request when it is over, for traces. `None`: instances get a context all the same, of spans that
    /// nobody records.
    pub traces: Option<Arc<dyn TraceSink>>,
    /// How copies of requests are made for services that have another revision see them.
    pub mirror: MirrorConfig,
    /// The page that browsers get while a revision starts whose route has `placeholder`.
    pub placeholder: bytes::Bytes,
}

const PLACEHOLDER: &str = "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
    <meta http-equiv=\"refresh\" content=\"1\">\n<title>Starting</title>\n\
    <p>This service is starting. The page reloads by itself.</p>\n</html>\n";

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
            admission: Admission::new(AdmissionConfig::default()),
            peers: None,
            hooks: Vec::new(),
            access: None,
            meter: None,
            traces: None,
            mirror: MirrorConfig::default(),
            placeholder: bytes::Bytes::from_static(PLACEHOLDER.as_bytes()),
        }
    }
}

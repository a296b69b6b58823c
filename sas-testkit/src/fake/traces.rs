//! A sink of traces that keeps what it is told.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use sas_core::{
    AttemptSpan, DeliverySpan, FaasTrigger, ParentSpan, RequestSpan, StepSpan, TraceContext, TraceSink,
    UpstreamSpan,
};

/// A request as it was told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ToldRequest {
    /// Its span.
    pub context: TraceContext,
    /// What it is part of.
    pub parent: Option<ParentSpan>,
    /// What caused it.
    pub trigger: FaasTrigger,
    /// Method and path.
    pub line: String,
    /// The name of the revision.
    pub name: Option<String>,
    /// What was answered.
    pub status: Option<u16>,
    /// Why it failed.
    pub error: Option<&'static str>,
    /// Whether it ended early.
    pub aborted: bool,
    /// Whether it ended while it waited for a slot.
    pub waited: bool,
    /// The exchanges with instances.
    pub upstream: Vec<UpstreamSpan>,
    /// Bytes in and out.
    pub bytes: (u64, u64),
}

/// A delivery as it was told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ToldDelivery {
    /// Its span.
    pub context: TraceContext,
    /// What it is part of.
    pub parent: Option<ParentSpan>,
    /// What the trigger is.
    pub trigger: FaasTrigger,
    /// The names of trigger and target.
    pub names: (String, String),
    /// The id of the event, and how many it was.
    pub event: (String, usize),
    /// The attempts.
    pub attempts: Vec<AttemptSpan>,
    /// Why it was given up.
    pub error: Option<String>,
    /// Whether a service was woken.
    pub cold: bool,
}

/// A [`sas_core::StepSpan`] that was told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ToldStep {
    /// Its span.
    pub context: TraceContext,
    /// What it is part of.
    pub parent: Option<ParentSpan>,
    /// `namespace/run`.
    pub run: String,
    /// The step's id; empty: it is the run.
    pub step: String,
    /// What was asked for.
    pub kind: &'static str,
    /// Why it failed.
    pub error: Option<String>,
    /// How long it took.
    pub duration: std::time::Duration,
}

/// A [`TraceSink`] that keeps all that it is told, and samples what begins if it is told so.
#[derive(Debug, Default)]
pub struct RecordingTraces {
    samples: AtomicBool,
    requests: Mutex<Vec<ToldRequest>>,
    deliveries: Mutex<Vec<ToldDelivery>>,
    steps: Mutex<Vec<ToldStep>>,
}

impl RecordingTraces {
    /// From now on everything is sampled, or nothing.
    pub fn sample(&self, everything: bool) {
        self.samples.store(everything, Ordering::SeqCst);
    }

    /// The requests that were told since this was asked last.
    pub fn requests(&self) -> Vec<ToldRequest> {
        std::mem::take(&mut self.requests.lock())
    }

    /// The deliveries that were told since this was asked last.
    pub fn deliveries(&self) -> Vec<ToldDelivery> {
        std::mem::take(&mut self.deliveries.lock())
    }

    /// The steps and runs that were told since this was asked last.
    pub fn steps(&self) -> Vec<ToldStep> {
        std::mem::take(&mut self.steps.lock())
    }
}

impl TraceSink for RecordingTraces {
    fn samples(&self, _: u128, _: Option<ParentSpan>) -> bool {
        self.samples.load(Ordering::SeqCst)
    }

    fn request(&self, span: &RequestSpan<'_>) {
        self.requests.lock().push(ToldRequest {
            context: span.context,
            parent: span.parent,
            trigger: span.trigger,
            line: format!("{} {}", span.method, span.path),
            name: span.name.map(ToString::to_string),
            status: span.status.map(|status| status.as_u16()),
            error: span.error,
            aborted: span.aborted,
            waited: span.waited_from.is_some(),
            upstream: span.upstream.to_vec(),
            bytes: (span.bytes_in, span.bytes_out),
        });
    }

    fn delivery(&self, span: &DeliverySpan<'_>) {
        self.deliveries.lock().push(ToldDelivery {
            context: span.context,
            parent: span.parent,
            trigger: span.trigger,
            names: (span.name.to_owned(), span.target.to_owned()),
            event: (span.id.to_owned(), span.events),
            attempts: span.attempts.to_vec(),
            error: span.error.map(str::to_owned),
            cold: span.cold,
        });
    }

    fn step(&self, span: &StepSpan<'_>) {
        self.steps.lock().push(ToldStep {
            context: span.context,
            parent: span.parent,
            run: format!("{}/{}", span.namespace, span.run),
            step: span.step.to_owned(),
            kind: span.kind,
            error: span.error.map(str::to_owned),
            duration: span.duration,
        });
    }
}

//! The metrics that OpenTelemetry's conventions have for functions, counted from what is told of requests.

use std::{fmt, sync::Arc};

use metrics::{Counter, Key, Label, Level, Metadata, Recorder as _};
use sas_core::{Clock, FaasTrigger, RequestSpan, TraceContext};

use crate::{
    recorder::{Buckets, OtelRecorder},
    semconv,
};

const INVOCATIONS: &str = "faas.invocations";
const COLDSTARTS: &str = "faas.coldstarts";
const ERRORS: &str = "faas.errors";
const TIMEOUTS: &str = "faas.timeouts";
const INVOKE_DURATION: &str = "faas.invoke_duration";
const INIT_DURATION: &str = "faas.init_duration";

const METADATA: Metadata<'static> = Metadata::new("sas", Level::INFO, None);
const TRIGGERS: [FaasTrigger; 5] =
    [FaasTrigger::Http, FaasTrigger::PubSub, FaasTrigger::Timer, FaasTrigger::Datasource, FaasTrigger::Other];

/// By what caused the calls.
struct OfTrigger {
    invocations: Counter,
    coldstarts: Counter,
    errors: Counter,
    timeouts: Counter,
    invoke: Arc<Buckets>,
    init: Arc<Buckets>,
}

/// Counters and histograms of all functions together, by `faas.trigger`: never by function, of which there may be a million.
pub(crate) struct FaasMetrics {
    by: [OfTrigger; 5],
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for FaasMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaasMetrics")
    }
}

impl FaasMetrics {
    pub(crate) fn new(recorder: &OtelRecorder, clock: Arc<dyn Clock>) -> Self {
        for (name, unit, help) in [
            (INVOCATIONS, "{invocation}", "Calls of functions that succeeded."),
            (COLDSTARTS, "{coldstart}", "Calls that waited for an instance to start."),
            (ERRORS, "{error}", "Calls that failed."),
            (TIMEOUTS, "{timeout}", "Calls that took too long."),
            (INVOKE_DURATION, "s", "How long functions took, from the slot to the last byte."),
            (INIT_DURATION, "s", "How long instances took to start, as calls waited for them."),
        ] {
            recorder.describe(name, unit, help);
        }
        let by = TRIGGERS.map(|trigger| {
            let key = |name| Key::from_parts(name, vec![Label::new(semconv::FAAS_TRIGGER, trigger.as_str())]);
            let counter = |name| recorder.register_counter(&key(name), &METADATA);
            OfTrigger {
                invocations: counter(INVOCATIONS),
                coldstarts: counter(COLDSTARTS),
                errors: counter(ERRORS),
                timeouts: counter(TIMEOUTS),
                invoke: recorder.buckets(&key(INVOKE_DURATION)),
                init: recorder.buckets(&key(INIT_DURATION)),
            }
        });
        Self { by, clock }
    }

    /// `context`: that of a trace that is kept, as an example.
    pub(crate) fn request(&self, span: &RequestSpan<'_>, context: Option<TraceContext>) {
        // Without a revision nothing of a function was called.
        if span.name.is_none() {
            return;
        }
        let at = TRIGGERS.iter().position(|trigger| *trigger == span.trigger).unwrap_or(TRIGGERS.len() - 1);
        let by = &self.by[at];
        if span.failed() {
            by.errors.increment(1);
            if matches!(span.error, Some("timeout" | "queue_timeout")) {
                by.timeouts.increment(1);
            }
        } else {
            by.invocations.increment(1);
        }
        let Some(last) = span.upstream.last().filter(|last| last.instance.is_some()) else { return };
        let took = span.duration.saturating_sub(last.began).as_secs_f64();
        match context {
            Some(context) => by.invoke.record_in(took, self.clock.now(), context),
            None => metrics::HistogramFn::record(&*by.invoke, took),
        }
        let starts = span.upstream.iter().filter_map(|exchange| exchange.start.as_ref());
        for start in starts {
            by.coldstarts.increment(1);
            metrics::HistogramFn::record(&*by.init, start.ready.as_secs_f64());
        }
    }
}

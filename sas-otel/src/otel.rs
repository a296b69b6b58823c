//! The exporter as a part of a platform: started, handed around, and ended.

use std::sync::Arc;

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse},
    common::v1::KeyValue,
    metrics::v1::{Metric, ResourceMetrics, ScopeMetrics},
    resource::v1::Resource,
};
use prost::Message as _;
use sas_core::{LogSink, Recorder, SpecErrors, TraceSink};
use tokio::{
    select,
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};
use tokio_util::task::TaskTracker;

use crate::{
    OtelConfig,
    export::{Exporter, Queue, Signal, Stop},
    faas::FaasMetrics,
    logs::{Line, LogSignal, OtelLogs},
    metrics::{ExportMetrics, OVERFLOWS},
    recorder::OtelRecorder,
    semconv,
    traces::{OtelTraces, TraceSignal},
    transport::Transport,
    value::{attribute, scope},
};

/// The way to a collector, with a task for each signal. It changes nothing but what it is handed to: two of them share
/// nothing.
///
/// ```
/// use sas_otel::{Otel, OtelConfig};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let otel = Otel::start(OtelConfig::new("http://127.0.0.1:4318"))?;
/// otel.recorder().counter("shop_orders_total", &[]).increment(1);
/// // No collector is there: what could not be sent in time is lost and counted.
/// otel.shutdown(tokio::time::Instant::now() + std::time::Duration::from_millis(200)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Otel {
    recorder: Recorder,
    traces: Option<Arc<OtelTraces>>,
    lines: Option<Arc<Queue<Line>>>,
    tasks: TaskTracker,
    stop: watch::Sender<Option<Instant>>,
}

impl Otel {
    /// Starts to export. Nothing is connected yet: a collector that is not there delays no start.
    ///
    /// # Errors
    /// All fields of the configuration that are wrong.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn start(config: OtelConfig) -> Result<Self, SpecErrors> {
        config.validate()?;
        let transport = Transport::new(&config).map_err(|problem| {
            let mut errors = SpecErrors::default();
            errors.push("endpoint", &config.endpoint, problem);
            errors
        })?;
        let mut platform: Vec<KeyValue> = vec![
            attribute(semconv::SERVICE_NAME, config.service_name.as_str()),
            attribute(semconv::TELEMETRY_SDK_NAME, env!("CARGO_PKG_NAME")),
            attribute(semconv::TELEMETRY_SDK_LANGUAGE, "rust"),
            attribute(semconv::TELEMETRY_SDK_VERSION, env!("CARGO_PKG_VERSION")),
        ];
        for (key, value) in &config.attributes {
            platform.retain(|own| own.key != *key);
            platform.push(attribute(key, value.as_str()));
        }
        let resource = Resource { attributes: platform.clone(), ..Resource::default() };
        let (stop, stopped) = watch::channel(None);
        let tasks = TaskTracker::new();
        let batching = config.batching;

        let series = config.metrics.then(|| OtelRecorder::new(config.most_series, Arc::clone(&config.clock)));
        let recorder = match &series {
            Some(series) => config.recorder.and(Arc::clone(series) as _),
            None => config.recorder.clone(),
        };
        crate::metrics::describe(&recorder);
        if let Some(series) = &series {
            let metrics = ExportMetrics::new(&recorder, MetricSignal::NAME);
            let overflows = recorder.counter(OVERFLOWS, &[]);
            let signal = MetricSignal { resource: resource.clone() };
            let exporter = Exporter::new(signal, transport.clone(), batching, metrics);
            let (series, every, stop) = (Arc::clone(series), config.metrics_interval, stopped.clone());
            let count = {
                let series = Arc::clone(&series);
                move || overflows.absolute(series.overflows())
            };
            tasks.spawn(export_metrics(exporter, series, every, count, stop));
        }
        let spans = config.traces.then(|| {
            let metrics = ExportMetrics::new(&recorder, TraceSignal::NAME);
            let queue = Queue::new(&batching, metrics.clone());
            let exporter = Exporter::new(TraceSignal { resource }, transport.clone(), batching, metrics);
            tasks.spawn(exporter.run(Arc::clone(&queue), stopped.clone()));
            queue
        });
        let lines = config.logs.then(|| {
            let metrics = ExportMetrics::new(&recorder, LogSignal::NAME);
            let queue = Queue::new(&batching, metrics.clone());
            let exporter = Exporter::new(LogSignal { platform }, transport, batching, metrics);
            tasks.spawn(exporter.run(Arc::clone(&queue), stopped.clone()));
            queue
        });
        let faas = series.map(|series| FaasMetrics::new(&series, Arc::clone(&config.clock)));
        let traces = (spans.is_some() || faas.is_some())
            .then(|| Arc::new(OtelTraces::new(config.sampling, config.clock, spans, faas)));
        tasks.close();
        Ok(Self { recorder, traces, lines, tasks, stop })
    }

    /// The recorder of the configuration, with the bridge beside it: what is counted here goes to both.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// What data plane and triggers tell of requests and events; `None` where neither traces nor metrics are exported.
    pub fn traces(&self) -> Option<Arc<dyn TraceSink>> {
        self.traces.clone().map(|traces| traces as _)
    }

    /// `inner`, and before it the export of lines where that is configured.
    pub fn logs(&self, inner: Arc<dyn LogSink>) -> Arc<dyn LogSink> {
        match &self.lines {
            Some(queue) => Arc::new(OtelLogs::new(inner, Arc::clone(queue))),
            None => inner,
        }
    }

    /// Sends what waits, and the metrics once more, until `deadline`; what is left then is counted as lost. Idempotent.
    ///
    /// **Cancel safety:** dropping the future leaves the tasks to end by themselves at the deadline.
    pub async fn shutdown(&self, deadline: Instant) {
        self.stop.send_if_modified(|stop| {
            let first = stop.is_none();
            if first {
                *stop = Some(deadline);
            }
            first
        });
        let _ = timeout_at(deadline, self.tasks.wait()).await;
    }
}

/// Exports the metrics as they are, again and again, and once more at the end.
async fn export_metrics(
    mut exporter: Exporter<MetricSignal>,
    series: Arc<OtelRecorder>,
    every: std::time::Duration,
    count_overflows: impl Fn(),
    mut stop: Stop,
) {
    // A reading that is not taken is followed by a newer one: it is not worth more attempts than fit between two.
    exporter.batching.retry_for = exporter.batching.retry_for.min(every);
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first is at once, before anything was counted.
    ticks.tick().await;
    loop {
        let last = select! {
            biased;
            _ = stop.wait_for(Option::is_some) => true,
            _ = ticks.tick() => false,
        };
        count_overflows();
        let (metrics, points) = series.collect();
        let message = exporter.signal.encode(metrics);
        exporter.send(message, points, &mut stop).await;
        if last {
            return;
        }
    }
}

/// Metrics on their way out.
struct MetricSignal {
    resource: Resource,
}

impl Signal for MetricSignal {
    type Item = Metric;
    const NAME: &'static str = "metrics";
    const PATH: &'static str = "/v1/metrics";

    fn count(_: &Metric) -> u64 {
        1
    }

    fn encode(&self, metrics: Vec<Metric>) -> Bytes {
        let resource_metrics = vec![ResourceMetrics {
            resource: Some(self.resource.clone()),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(scope()),
                metrics,
                schema_url: semconv::SCHEMA_URL.to_owned(),
            }],
            schema_url: semconv::SCHEMA_URL.to_owned(),
        }];
        ExportMetricsServiceRequest { resource_metrics }.encode_to_vec().into()
    }

    fn rejected(answer: &[u8]) -> (u64, String) {
        let partial =
            ExportMetricsServiceResponse::decode(answer).ok().and_then(|answer| answer.partial_success);
        partial.map_or((0, String::new()), |partial| {
            (u64::try_from(partial.rejected_data_points).unwrap_or(0), partial.error_message)
        })
    }
}

//! The bridge from `metrics` to OTLP: series in memory, told as often as they are asked for.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Label, Metadata, SharedString,
    Unit,
};
use opentelemetry_proto::tonic::{
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, Exemplar, Gauge as GaugePoints, Histogram as HistogramPoints,
        HistogramDataPoint, Metric, NumberDataPoint, Sum, exemplar, metric::Data, number_data_point::Value,
    },
};
use parking_lot::Mutex;
use sas_core::{Clock, Timestamp, TraceContext};

use crate::value::attribute;

/// Upper bounds of the buckets of histograms of seconds.
const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Of those of anything else.
const NUMBERS: [f64; 14] = [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 1e4, 1e5, 1e6, 1e7];
/// What series beyond the bound are counted under.
const OVERFLOW: &str = "otel.metric.overflow";

/// A gauge's number in one word.
#[derive(Debug, Default)]
struct Level(AtomicU64);

impl Level {
    fn read(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    fn change(&self, change: impl Fn(f64) -> f64) {
        let changed = |bits| Some(change(f64::from_bits(bits)).to_bits());
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed);
    }
}

impl GaugeFn for Level {
    fn increment(&self, value: f64) {
        self.change(|now| now + value);
    }

    fn decrement(&self, value: f64) {
        self.change(|now| now - value);
    }

    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Count(AtomicU64);

impl CounterFn for Count {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }
}

/// A measurement of a trace, kept as an example of its bucket.
#[derive(Clone, Copy, Debug)]
struct Example {
    value: f64,
    at: Timestamp,
    context: TraceContext,
}

/// A histogram with buckets of fixed bounds: it takes the same memory however much is measured.
#[derive(Debug)]
pub(crate) struct Buckets {
    bounds: &'static [f64],
    counts: Box<[AtomicU64]>,
    sum: Level,
    /// The last example of each bucket, since the last reading.
    examples: Mutex<Vec<Option<Example>>>,
}

impl Buckets {
    fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: Level::default(), examples: Mutex::default() }
    }

    fn bucket(&self, value: f64) -> usize {
        self.bounds.partition_point(|bound| *bound < value)
    }

    /// Takes a measurement that a trace of is kept.
    pub(crate) fn record_in(&self, value: f64, at: Timestamp, context: TraceContext) {
        self.record(value);
        let mut examples = self.examples.lock();
        examples.resize(self.counts.len(), None);
        examples[self.bucket(value)] = Some(Example { value, at, context });
    }

    fn point(&self, attributes: Vec<KeyValue>, start: u64, now: u64) -> HistogramDataPoint {
        let bucket_counts: Vec<u64> = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let examples = std::mem::take(&mut *self.examples.lock());
        let exemplars = examples.into_iter().flatten().map(|example| Exemplar {
            time_unix_nano: nanos(example.at),
            span_id: example.context.span.to_be_bytes().to_vec(),
            trace_id: example.context.trace.to_be_bytes().to_vec(),
            value: Some(exemplar::Value::AsDouble(example.value)),
            ..Exemplar::default()
        });
        HistogramDataPoint {
            attributes,
            start_time_unix_nano: start,
            time_unix_nano: now,
            count: bucket_counts.iter().sum(),
            sum: Some(self.sum.read()),
            bucket_counts,
            explicit_bounds: self.bounds.to_vec(),
            exemplars: exemplars.collect(),
            ..HistogramDataPoint::default()
        }
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        if value.is_nan() {
            return;
        }
        self.counts[self.bucket(value)].fetch_add(1, Ordering::Relaxed);
        self.sum.change(|sum| sum + value);
    }
}

#[derive(Clone, Debug)]
enum Series {
    Counter(Arc<Count>),
    Gauge(Arc<Level>),
    Histogram(Arc<Buckets>),
}

/// Labels in their order, which is no part of what they mean.
type Labels = Vec<(String, String)>;

/// What is known of a name before anything is counted under it, and all that is.
#[derive(Debug, Default)]
struct Named {
    unit: &'static str,
    help: String,
    series: BTreeMap<Labels, Series>,
}

/// A [`metrics::Recorder`] whose series are exported over OTLP, under their own names. Counters and histograms are told as
/// sums since the start (cumulative).
pub struct OtelRecorder {
    names: Mutex<(BTreeMap<String, Named>, usize)>,
    most: usize,
    overflows: Count,
    clock: Arc<dyn Clock>,
    started: Timestamp,
}

impl fmt::Debug for OtelRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtelRecorder").field("most", &self.most).finish_non_exhaustive()
    }
}

impl OtelRecorder {
    pub(crate) fn new(most: usize, clock: Arc<dyn Clock>) -> Arc<Self> {
        let started = clock.now();
        Arc::new(Self { names: Mutex::default(), most, overflows: Count::default(), clock, started })
    }

    /// How many series were counted together with others, since there were too many.
    pub(crate) fn overflows(&self) -> u64 {
        self.overflows.0.load(Ordering::Relaxed)
    }

    /// Says what a metric is: its unit as UCUM has it, and a text for people.
    pub(crate) fn describe(&self, name: &str, unit: &'static str, help: &str) {
        let mut names = self.names.lock();
        let named = names.0.entry(name.to_owned()).or_default();
        (named.unit, named.help) = (unit, help.to_owned());
    }

    fn series(&self, key: &Key, make: impl FnOnce(&Named) -> Series) -> Series {
        let label = |label: &Label| (label.key().to_owned(), label.value().to_owned());
        let mut labels: Labels = key.labels().map(label).collect();
        labels.sort_unstable();
        let mut guard = self.names.lock();
        let (names, held) = &mut *guard;
        let named = names.entry(key.name().to_owned()).or_default();
        if let Some(series) = named.series.get(&labels) {
            return series.clone();
        }
        if *held >= self.most {
            self.overflows.increment(1);
            labels = vec![(OVERFLOW.to_owned(), "true".to_owned())];
            if let Some(series) = named.series.get(&labels) {
                return series.clone();
            }
        }
        *held += 1;
        let series = make(named);
        named.series.insert(labels, series.clone());
        series
    }

    pub(crate) fn buckets(&self, key: &Key) -> Arc<Buckets> {
        let made = self.series(key, |named| {
            let seconds = named.unit == "s" || (named.unit.is_empty() && key.name().ends_with("_seconds"));
            Series::Histogram(Arc::new(Buckets::new(if seconds { &SECONDS } else { &NUMBERS })))
        });
        match made {
            Series::Histogram(buckets) => buckets,
            // Another kind has the name: what is recorded here is told nowhere, as Prometheus' exporter does it.
            _ => Arc::new(Buckets::new(&NUMBERS)),
        }
    }

    /// All metrics as they are now, and how many points they have.
    pub(crate) fn collect(&self) -> (Vec<Metric>, u64) {
        let (start, now) = (nanos(self.started), nanos(self.clock.now()));
        let names = self.names.lock();
        let mut metrics = Vec::with_capacity(names.0.len());
        let mut points = 0;
        for (name, named) in &names.0 {
            let (mut sums, mut gauges, mut histograms) = (Vec::new(), Vec::new(), Vec::new());
            for (labels, series) in &named.series {
                let attributes = labels.iter().map(|(key, value)| attribute(key, value.as_str())).collect();
                let number = |attributes, value| NumberDataPoint {
                    attributes,
                    start_time_unix_nano: start,
                    time_unix_nano: now,
                    value: Some(value),
                    ..NumberDataPoint::default()
                };
                match series {
                    Series::Counter(count) => {
                        let count = i64::try_from(count.0.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
                        sums.push(number(attributes, Value::AsInt(count)));
                    }
                    Series::Gauge(level) => {
                        let mut point = number(attributes, Value::AsDouble(level.read()));
                        point.start_time_unix_nano = 0;
                        gauges.push(point);
                    }
                    Series::Histogram(buckets) => histograms.push(buckets.point(attributes, start, now)),
                }
            }
            points += (sums.len() + gauges.len() + histograms.len()) as u64;
            let cumulative = AggregationTemporality::Cumulative as i32;
            let kinds = [
                (!sums.is_empty()).then_some(Data::Sum(Sum {
                    data_points: sums,
                    aggregation_temporality: cumulative,
                    is_monotonic: true,
                })),
                (!gauges.is_empty()).then_some(Data::Gauge(GaugePoints { data_points: gauges })),
                (!histograms.is_empty()).then_some(Data::Histogram(HistogramPoints {
                    data_points: histograms,
                    aggregation_temporality: cumulative,
                })),
            ];
            metrics.extend(kinds.into_iter().flatten().map(|data| Metric {
                name: name.clone(),
                description: named.help.clone(),
                unit: named.unit.to_owned(),
                data: Some(data),
                ..Metric::default()
            }));
        }
        (metrics, points)
    }
}

fn nanos(at: Timestamp) -> u64 {
    u64::try_from(at.0).unwrap_or(0)
}

/// A unit as UCUM has it.
const fn ucum(unit: Option<Unit>) -> &'static str {
    match unit {
        Some(Unit::Count) => "1",
        Some(Unit::Percent) => "%",
        Some(Unit::Seconds) => "s",
        Some(Unit::Milliseconds) => "ms",
        Some(Unit::Microseconds) => "us",
        Some(Unit::Nanoseconds) => "ns",
        Some(Unit::Bytes) => "By",
        Some(Unit::Kibibytes) => "KiBy",
        Some(Unit::Mebibytes) => "MiBy",
        Some(Unit::Gibibytes) => "GiBy",
        Some(Unit::Tebibytes) => "TiBy",
        Some(Unit::BitsPerSecond) => "bit/s",
        Some(Unit::CountPerSecond) => "1/s",
        _ => "",
    }
}

impl metrics::Recorder for OtelRecorder {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(key.as_str(), ucum(unit), &description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(key.as_str(), ucum(unit), &description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(key.as_str(), ucum(unit), &description);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match self.series(key, |_| Series::Counter(Arc::default())) {
            Series::Counter(count) => Counter::from_arc(count),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match self.series(key, |_| Series::Gauge(Arc::default())) {
            Series::Gauge(level) => Gauge::from_arc(level),
            _ => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.buckets(key))
    }
}

#[cfg(test)]
mod tests {
    use metrics::Recorder as _;
    use sas_core::SystemClock;

    use super::*;

    const METADATA: Metadata<'static> = Metadata::new("test", metrics::Level::INFO, None);

    fn recorder(most: usize) -> Arc<OtelRecorder> {
        OtelRecorder::new(most, Arc::new(SystemClock))
    }

    #[test]
    fn a_counter_is_a_monotonic_sum_since_the_start() {
        let recorder = recorder(10);
        recorder.describe_counter("a_total".into(), Some(Unit::Count), "All of them.".into());
        let labels = |one: &'static str, two: &'static str| {
            Key::from_parts("a_total", vec![Label::new("x", one), Label::new("y", two)])
        };
        recorder.register_counter(&labels("1", "2"), &METADATA).increment(3);
        let turned = Key::from_parts("a_total", vec![Label::new("y", "2"), Label::new("x", "1")]);
        recorder.register_counter(&turned, &METADATA).increment(4);
        let (metrics, points) = recorder.collect();
        assert_eq!((metrics.len(), points), (1, 1), "the order of labels makes no other series");
        assert_eq!((metrics[0].unit.as_str(), metrics[0].description.as_str()), ("1", "All of them."));
        let Some(Data::Sum(sum)) = &metrics[0].data else { panic!("{:?}", metrics[0]) };
        assert!(sum.is_monotonic && sum.aggregation_temporality == AggregationTemporality::Cumulative as i32);
        assert_eq!(sum.data_points[0].value, Some(Value::AsInt(7)));
    }

    #[test]
    fn a_value_on_a_bound_belongs_below_it() {
        let recorder = recorder(10);
        let histogram = recorder.register_histogram(&Key::from_static_name("x_seconds"), &METADATA);
        for value in [0.0005, 0.0006, 61.0, f64::NAN] {
            histogram.record(value);
        }
        let (metrics, _) = recorder.collect();
        let Some(Data::Histogram(told)) = &metrics[0].data else { panic!("{:?}", metrics[0]) };
        let point = &told.data_points[0];
        assert_eq!((point.count, point.bucket_counts.len()), (3, SECONDS.len() + 1));
        assert_eq!((point.bucket_counts[0], point.bucket_counts[1], point.bucket_counts[16]), (1, 1, 1));
        assert!((point.sum.unwrap() - 61.0011).abs() < 1e-9);
    }

    #[test]
    fn an_example_is_told_once_with_its_trace() {
        let recorder = recorder(10);
        let buckets = recorder.buckets(&Key::from_static_name("x_seconds"));
        let context = TraceContext { trace: 5, span: 6, flags: 1 };
        buckets.record_in(0.2, Timestamp(9), context);
        let example = |recorder: &OtelRecorder| {
            let (metrics, _) = recorder.collect();
            let Some(Data::Histogram(told)) = &metrics[0].data else { panic!("{:?}", metrics[0]) };
            told.data_points[0].exemplars.clone()
        };
        let told = example(&recorder);
        assert_eq!((told.len(), told[0].trace_id.clone()), (1, 5_u128.to_be_bytes().to_vec()));
        assert_eq!(told[0].value, Some(exemplar::Value::AsDouble(0.2)));
        assert!(example(&recorder).is_empty());
    }

    #[test]
    fn too_many_series_are_counted_together() {
        let recorder = recorder(2);
        for tenant in ["a", "b", "c", "d"] {
            let key = Key::from_parts("x_total", vec![Label::new("tenant", tenant)]);
            recorder.register_counter(&key, &METADATA).increment(1);
        }
        assert_eq!(recorder.overflows(), 2);
        let (metrics, points) = recorder.collect();
        assert_eq!(points, 3);
        let Some(Data::Sum(sum)) = &metrics[0].data else { panic!("{:?}", metrics[0]) };
        let rest = sum.data_points.iter().find(|point| point.attributes[0].key == OVERFLOW).unwrap();
        assert_eq!(rest.value, Some(Value::AsInt(2)));
    }
}

//! Metrics go to a recorder that the host injects; the process-wide one only by default.

use std::{fmt, sync::Arc};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Label, Level, Metadata,
    SharedString, Unit,
};

type Shared = Arc<dyn metrics::Recorder + Send + Sync>;

/// A handle to the host's [`metrics::Recorder`], cheap to clone.
///
/// Two platforms in one process can each have their own. Register once and keep the returned handles: registering
/// allocates, counting does not.
///
/// ```
/// use sas_core::Recorder;
/// let recorder = Recorder::default(); // the process-wide recorder, or none
/// recorder.counter("sas_example_total", &[("reason", "demo")]).increment(1);
/// ```
#[derive(Clone, Default)]
pub struct Recorder {
    recorder: Option<Shared>,
    /// Recorders that get the same.
    beside: Arc<[Shared]>,
    /// What all metrics are labelled with, before their own labels.
    labels: Arc<[Label]>,
}

const METADATA: Metadata<'static> = Metadata::new("sas", Level::INFO, None);

impl Recorder {
    /// Metrics go to `recorder`.
    pub fn new(recorder: Shared) -> Self {
        Self { recorder: Some(recorder), beside: Arc::default(), labels: Arc::default() }
    }

    /// The same recorder, where all that is registered through it has one more label, such as the engine that it is of.
    #[must_use]
    pub fn labelled(&self, name: &'static str, value: &str) -> Self {
        let more = Label::new(name, value.to_owned());
        let labels = self.labels.iter().cloned().chain([more]).collect();
        Self { recorder: self.recorder.clone(), beside: Arc::clone(&self.beside), labels }
    }

    /// The same recorder, and `other` beside it: both get all that is registered and described from now on.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use sas_core::Recorder;
    /// let both = Recorder::default().and(Arc::new(metrics::NoopRecorder));
    /// both.counter("sas_example_total", &[]).increment(1);
    /// ```
    #[must_use]
    pub fn and(&self, other: Shared) -> Self {
        let beside = self.beside.iter().cloned().chain([other]).collect();
        Self { recorder: self.recorder.clone(), beside, labels: Arc::clone(&self.labels) }
    }

    /// What `f` gets from every recorder.
    fn all<T>(&self, f: impl Fn(&dyn metrics::Recorder) -> T) -> Vec<T> {
        let beside = self.beside.iter().map(|recorder| f(&**recorder));
        std::iter::once(self.with(&f)).chain(beside).collect()
    }

    fn with<T>(&self, f: impl FnOnce(&dyn metrics::Recorder) -> T) -> T {
        match &self.recorder {
            Some(recorder) => f(&**recorder),
            None => metrics::with_recorder(f),
        }
    }

    /// The counter `name` with these labels, registered if it is new.
    pub fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        let key = self.key(name, labels);
        if self.beside.is_empty() {
            return self.with(|recorder| recorder.register_counter(&key, &METADATA));
        }
        Counter::from_arc(Arc::new(Each(self.all(|recorder| recorder.register_counter(&key, &METADATA)))))
    }

    /// The gauge `name` with these labels, registered if it is new.
    pub fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        let key = self.key(name, labels);
        if self.beside.is_empty() {
            return self.with(|recorder| recorder.register_gauge(&key, &METADATA));
        }
        Gauge::from_arc(Arc::new(Each(self.all(|recorder| recorder.register_gauge(&key, &METADATA)))))
    }

    /// The histogram `name` with these labels, registered if it is new.
    pub fn histogram(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Histogram {
        let key = self.key(name, labels);
        if self.beside.is_empty() {
            return self.with(|recorder| recorder.register_histogram(&key, &METADATA));
        }
        Histogram::from_arc(Arc::new(Each(self.all(|recorder| recorder.register_histogram(&key, &METADATA)))))
    }

    fn key(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Key {
        if labels.is_empty() && self.labels.is_empty() {
            return Key::from_static_name(name);
        }
        let own = labels.iter().map(|(k, v)| Label::new(*k, (*v).to_owned()));
        Key::from_parts(name, self.labels.iter().cloned().chain(own).collect::<Vec<_>>())
    }

    /// Describes a counter, for exporters.
    pub fn describe_counter(&self, name: &'static str, help: &'static str) {
        self.all(|r| {
            r.describe_counter(
                KeyName::from_const_str(name),
                Some(Unit::Count),
                SharedString::const_str(help),
            );
        });
    }

    /// Describes a gauge, for exporters.
    pub fn describe_gauge(&self, name: &'static str, unit: Unit, help: &'static str) {
        self.all(|r| {
            r.describe_gauge(KeyName::from_const_str(name), Some(unit), SharedString::const_str(help));
        });
    }

    /// Describes a histogram, for exporters.
    pub fn describe_histogram(&self, name: &'static str, unit: Unit, help: &'static str) {
        self.all(|r| {
            r.describe_histogram(KeyName::from_const_str(name), Some(unit), SharedString::const_str(help));
        });
    }
}

/// A handle of several recorders.
struct Each<T>(Vec<T>);

impl CounterFn for Each<Counter> {
    fn increment(&self, value: u64) {
        self.0.iter().for_each(|counter| counter.increment(value));
    }

    fn absolute(&self, value: u64) {
        self.0.iter().for_each(|counter| counter.absolute(value));
    }
}

impl GaugeFn for Each<Gauge> {
    fn increment(&self, value: f64) {
        self.0.iter().for_each(|gauge| gauge.increment(value));
    }

    fn decrement(&self, value: f64) {
        self.0.iter().for_each(|gauge| gauge.decrement(value));
    }

    fn set(&self, value: f64) {
        self.0.iter().for_each(|gauge| gauge.set(value));
    }
}

impl HistogramFn for Each<Histogram> {
    fn record(&self, value: f64) {
        self.0.iter().for_each(|histogram| histogram.record(value));
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.recorder.is_some() { "Recorder(injected)" } else { "Recorder(global)" })
    }
}

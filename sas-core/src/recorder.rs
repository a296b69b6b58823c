//! Metrics go to a recorder that the host injects; the process-wide one only by default.

use std::{fmt, sync::Arc};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, SharedString, Unit};

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
pub struct Recorder(Option<Shared>);

const METADATA: Metadata<'static> = Metadata::new("sas", Level::INFO, None);

impl Recorder {
    /// Metrics go to `recorder`.
    pub fn new(recorder: Shared) -> Self {
        Self(Some(recorder))
    }

    fn with<T>(&self, f: impl FnOnce(&dyn metrics::Recorder) -> T) -> T {
        match &self.0 {
            Some(recorder) => f(&**recorder),
            None => metrics::with_recorder(f),
        }
    }

    /// The counter `name` with these labels, registered if it is new.
    pub fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        self.with(|recorder| recorder.register_counter(&key(name, labels), &METADATA))
    }

    /// The gauge `name` with these labels, registered if it is new.
    pub fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.with(|recorder| recorder.register_gauge(&key(name, labels), &METADATA))
    }

    /// The histogram `name` with these labels, registered if it is new.
    pub fn histogram(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Histogram {
        self.with(|recorder| recorder.register_histogram(&key(name, labels), &METADATA))
    }

    /// Describes a counter, for exporters.
    pub fn describe_counter(&self, name: &'static str, help: &'static str) {
        self.with(|r| {
            r.describe_counter(
                KeyName::from_const_str(name),
                Some(Unit::Count),
                SharedString::const_str(help),
            );
        });
    }

    /// Describes a gauge, for exporters.
    pub fn describe_gauge(&self, name: &'static str, unit: Unit, help: &'static str) {
        self.with(|r| {
            r.describe_gauge(KeyName::from_const_str(name), Some(unit), SharedString::const_str(help));
        });
    }

    /// Describes a histogram, for exporters.
    pub fn describe_histogram(&self, name: &'static str, unit: Unit, help: &'static str) {
        self.with(|r| {
            r.describe_histogram(KeyName::from_const_str(name), Some(unit), SharedString::const_str(help));
        });
    }
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    if labels.is_empty() {
        return Key::from_static_name(name);
    }
    let labels: Vec<Label> = labels.iter().map(|(k, v)| Label::new(*k, (*v).to_owned())).collect();
    Key::from_parts(name, labels)
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Recorder(injected)" } else { "Recorder(global)" })
    }
}

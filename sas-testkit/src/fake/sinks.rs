//! Sinks that remember.

use parking_lot::Mutex;
use sas_core::{
    DecisionRecord, DecisionSink, ExitReport, InstanceEvents, InstanceId, LogRecord, LogSink, LogStream,
    MeterPhase, MeterSink, Metered, RequestId, RequestUsage, RevisionKey, StartPhase, Timestamp,
};

/// One line as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a record of exactly what the trait passes")]
pub struct Line {
    /// The instance that printed the line.
    pub instance: InstanceId,
    /// The revision of that instance.
    pub revision: RevisionKey,
    /// Of which request, where that is known.
    pub request: Option<RequestId>,
    /// The time that the runtime stamped.
    pub at: Timestamp,
    /// The stream that it was printed to.
    pub stream: LogStream,
    /// The bytes of the line, without its end.
    pub line: Vec<u8>,
}

/// A log sink that keeps every line.
#[derive(Debug, Default)]
pub struct RecordingLogs(Mutex<Vec<Line>>);

impl RecordingLogs {
    /// All lines so far.
    pub fn lines(&self) -> Vec<Line> {
        self.0.lock().clone()
    }
}

impl LogSink for RecordingLogs {
    fn line(&self, record: &LogRecord<'_>) {
        let LogRecord { instance, revision, request, at, stream, line, .. } = *record;
        self.0.lock().push(Line { instance, revision, request, at, stream, line: line.to_vec() });
    }
}

/// Records what instances tell their owner, for tests of runtimes.
#[derive(Debug, Default)]
pub struct RecordingEvents {
    phases: Mutex<Vec<(InstanceId, StartPhase)>>,
    exits: Mutex<Vec<(InstanceId, ExitReport)>>,
}

impl RecordingEvents {
    /// All phases so far.
    pub fn phases(&self) -> Vec<(InstanceId, StartPhase)> {
        self.phases.lock().clone()
    }

    /// All exits so far.
    pub fn exits(&self) -> Vec<(InstanceId, ExitReport)> {
        self.exits.lock().clone()
    }
}

impl InstanceEvents for RecordingEvents {
    fn phase(&self, id: InstanceId, phase: StartPhase) {
        self.phases.lock().push((id, phase));
    }
    fn exited(&self, id: InstanceId, report: ExitReport) {
        self.exits.lock().push((id, report));
    }
}

/// A decision sink that keeps every record.
#[derive(Debug, Default)]
pub struct RecordingDecisions(Mutex<Vec<(RevisionKey, DecisionRecord)>>);

impl RecordingDecisions {
    /// All records so far.
    pub fn records(&self) -> Vec<(RevisionKey, DecisionRecord)> {
        self.0.lock().clone()
    }
}

impl DecisionSink for RecordingDecisions {
    fn decided(&self, revision: RevisionKey, record: &DecisionRecord) {
        self.0.lock().push((revision, record.clone()));
    }
}

/// A meter sink that keeps every reading.
#[derive(Debug, Default)]
pub struct RecordingMeter {
    readings: Mutex<Vec<(InstanceId, MeterPhase, u64)>>,
    requests: Mutex<u64>,
}

impl RecordingMeter {
    /// All readings so far.
    pub fn readings(&self) -> Vec<(InstanceId, MeterPhase, u64)> {
        self.readings.lock().clone()
    }

    /// Nanoseconds of one instance over all phases.
    pub fn life_of(&self, instance: InstanceId) -> u64 {
        self.readings.lock().iter().filter(|(of, ..)| *of == instance).map(|(.., ns)| ns).sum()
    }

    /// How many requests were metered so far.
    pub fn requests_total(&self) -> u64 {
        *self.requests.lock()
    }
}

impl MeterSink for RecordingMeter {
    fn phase(&self, _: Metered<'_>, instance: InstanceId, phase: MeterPhase, ns: u64) {
        self.readings.lock().push((instance, phase, ns));
    }
    fn requests(&self, _: Metered<'_>, used: &RequestUsage) {
        *self.requests.lock() += used.requests;
    }
}

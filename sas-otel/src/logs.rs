//! The lines of instances as log records.

use std::{collections::HashMap, fmt, sync::Arc};

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse},
    common::v1::KeyValue,
    logs::v1::{LogRecord as OtlpRecord, ResourceLogs, ScopeLogs, SeverityNumber},
    resource::v1::Resource,
};
use parking_lot::RwLock;
use prost::Message as _;
use sas_core::{
    InstanceId, LogLevel, LogLine, LogQuery, LogRecord, LogSink, LogStream, RequestId, RevisionKey,
    RevisionName, TenantKey, Timestamp,
};

use crate::{
    export::{Queue, Signal},
    semconv,
    value::{any, attribute, scope},
};

/// What a line counts with in the queue beside its bytes.
const LINE_BYTES: usize = 256;

/// A line that waits for export.
pub(crate) struct Line {
    name: Option<RevisionName>,
    instance: InstanceId,
    request: Option<RequestId>,
    at: Timestamp,
    stream: LogStream,
    text: Box<[u8]>,
}

/// Passes lines on to another sink, and exports them too.
pub(crate) struct OtelLogs {
    inner: Arc<dyn LogSink>,
    queue: Arc<Queue<Line>>,
    /// The names of the revisions that write.
    names: RwLock<HashMap<RevisionKey, RevisionName>>,
}

impl fmt::Debug for OtelLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtelLogs").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl OtelLogs {
    pub(crate) fn new(inner: Arc<dyn LogSink>, queue: Arc<Queue<Line>>) -> Self {
        Self { inner, queue, names: RwLock::default() }
    }
}

#[deny(clippy::missing_trait_methods)]
impl LogSink for OtelLogs {
    fn line(&self, record: &LogRecord<'_>) {
        self.inner.line(record);
        self.queue.offer(record.line.len() + LINE_BYTES, 1, || Line {
            name: self.names.read().get(&record.revision).cloned(),
            instance: record.instance,
            request: record.request,
            at: record.at,
            stream: record.stream,
            text: record.line.into(),
        });
    }

    fn starts(&self, revision: RevisionKey, name: &RevisionName, tenant: TenantKey) {
        self.names.write().entry(revision).or_insert_with(|| name.clone());
        self.inner.starts(revision, name, tenant);
    }

    fn log_query(&self) -> Option<&dyn LogQuery> {
        self.inner.log_query()
    }

    fn forget(&self, revision: RevisionKey) {
        self.names.write().remove(&revision);
        self.inner.forget(revision);
    }
}

const fn severity(level: LogLevel) -> SeverityNumber {
    match level {
        LogLevel::Trace => SeverityNumber::Trace,
        LogLevel::Debug => SeverityNumber::Debug,
        LogLevel::Warn => SeverityNumber::Warn,
        LogLevel::Error => SeverityNumber::Error,
        LogLevel::Fatal => SeverityNumber::Fatal,
        _ => SeverityNumber::Info,
    }
}

/// The id of a trace or a span in a structured line, of so many bytes.
fn id(fields: &serde_json::Map<String, serde_json::Value>, names: [&str; 2], bytes: usize) -> Vec<u8> {
    let text = names.iter().find_map(|name| fields.get(*name)?.as_str()).unwrap_or_default();
    if text.len() != 2 * bytes || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Vec::new();
    }
    (0..bytes).filter_map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()).collect()
}

fn record(line: Line) -> OtlpRecord {
    let text = String::from_utf8_lossy(&line.text).into_owned();
    let read = LogLine::new(0, line.at, line.instance, line.stream, text).for_request(line.request);
    let stream = match line.stream {
        LogStream::Stdout => "stdout",
        LogStream::Stderr => "stderr",
        _ => "platform",
    };
    let mut attributes = vec![attribute("log.iostream", stream)];
    if let Some(request) = read.about() {
        attributes.push(attribute(semconv::FAAS_INVOCATION_ID, request.to_string()));
    }
    let level = read.level();
    let fields = read.fields().unwrap_or_default();
    let time = u64::try_from(line.at.0).unwrap_or(0);
    OtlpRecord {
        time_unix_nano: time,
        observed_time_unix_nano: time,
        severity_number: level.map_or(SeverityNumber::Unspecified, severity) as i32,
        severity_text: level.map_or("", LogLevel::as_str).to_uppercase(),
        attributes,
        trace_id: id(&fields, ["trace_id", "traceId"], 16),
        span_id: id(&fields, ["span_id", "spanId"], 8),
        body: Some(any(read.line)),
        ..OtlpRecord::default()
    }
}

/// The instance that writes, as a resource of its own.
fn resource(platform: &[KeyValue], name: Option<&RevisionName>, instance: InstanceId) -> Resource {
    let mut attributes = Vec::with_capacity(platform.len() + 7);
    if let Some(name) = name {
        attributes.extend([
            attribute(semconv::SERVICE_NAME, name.service()),
            attribute(semconv::SERVICE_NAMESPACE, name.namespace()),
            attribute(semconv::SERVICE_VERSION, name.revision()),
            attribute(semconv::FAAS_NAME, name.service_path()),
            attribute(semconv::FAAS_VERSION, name.revision()),
        ]);
    }
    attributes.push(attribute(semconv::SERVICE_INSTANCE_ID, instance.to_string()));
    attributes.push(attribute(semconv::FAAS_INSTANCE, instance.to_string()));
    let own: Vec<&str> = attributes.iter().map(|own| own.key.as_str()).collect();
    let of_platform: Vec<KeyValue> =
        platform.iter().filter(|more| !own.contains(&more.key.as_str())).cloned().collect();
    attributes.extend(of_platform);
    Resource { attributes, ..Resource::default() }
}

/// Log records on their way out: those of an instance together.
pub(crate) struct LogSignal {
    /// Attributes of the platform, which instances have too.
    pub(crate) platform: Vec<KeyValue>,
}

impl Signal for LogSignal {
    type Item = Line;
    const NAME: &'static str = "logs";
    const PATH: &'static str = "/v1/logs";

    fn count(_: &Line) -> u64 {
        1
    }

    fn encode(&self, items: Vec<Line>) -> Bytes {
        let mut groups: Vec<(Option<RevisionName>, InstanceId, Vec<OtlpRecord>)> = Vec::new();
        let mut places: HashMap<(Option<RevisionName>, InstanceId), usize> = HashMap::new();
        for line in items {
            let place = *places.entry((line.name.clone(), line.instance)).or_insert_with(|| {
                groups.push((line.name.clone(), line.instance, Vec::new()));
                groups.len() - 1
            });
            groups[place].2.push(record(line));
        }
        let resource_logs = groups.into_iter().map(|(name, instance, log_records)| ResourceLogs {
            resource: Some(resource(&self.platform, name.as_ref(), instance)),
            scope_logs: vec![ScopeLogs {
                scope: Some(scope()),
                log_records,
                schema_url: semconv::SCHEMA_URL.to_owned(),
            }],
            schema_url: semconv::SCHEMA_URL.to_owned(),
        });
        ExportLogsServiceRequest { resource_logs: resource_logs.collect() }.encode_to_vec().into()
    }

    fn rejected(answer: &[u8]) -> (u64, String) {
        let partial =
            ExportLogsServiceResponse::decode(answer).ok().and_then(|answer| answer.partial_success);
        partial.map_or((0, String::new()), |partial| {
            (u64::try_from(partial.rejected_log_records).unwrap_or(0), partial.error_message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &[u8]) -> OtlpRecord {
        record(Line {
            name: None,
            instance: InstanceId(1),
            request: Some(RequestId(0xab)),
            at: Timestamp(7),
            stream: LogStream::Stderr,
            text: text.into(),
        })
    }

    #[test]
    fn a_line_has_its_severity_and_its_request() {
        let told = line(b"2026-01-05 12:00:01 WARN cache is full");
        assert_eq!(told.severity_number, SeverityNumber::Warn as i32);
        assert_eq!((told.severity_text.as_str(), told.time_unix_nano), ("WARN", 7));
        assert!(
            told.attributes.contains(&attribute("faas.invocation_id", format!("{:032x}", 0xab).as_str()))
        );
        assert!(told.attributes.contains(&attribute("log.iostream", "stderr")));
        assert_eq!(line(b"no level").severity_number, SeverityNumber::Unspecified as i32);
        assert_eq!(line(b"\xff").body, Some(any("\u{fffd}")));
    }

    #[test]
    fn a_structured_line_names_its_trace() {
        let told = line(br#"{"level":"error","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","span_id":"00f067aa0ba902b7"}"#);
        assert_eq!(told.severity_number, SeverityNumber::Error as i32);
        assert_eq!(told.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes());
        assert_eq!(told.span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
        assert!(line(br#"{"trace_id":"zz"}"#).trace_id.is_empty());
    }

    #[test]
    fn what_an_instance_says_of_itself_is_not_the_platforms() {
        let platform = [attribute("service.name", "sas"), attribute("region", "here")];
        let name = RevisionName::new("default", "hello", "hello-00001");
        let told = resource(&platform, Some(&name), InstanceId(3)).attributes;
        let names: Vec<&KeyValue> = told.iter().filter(|one| one.key == "service.name").collect();
        assert_eq!(names, [&attribute("service.name", "hello")]);
        assert!(told.contains(&attribute("region", "here")));
    }
}

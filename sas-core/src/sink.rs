//! Where logs, decisions and secrets go or come from.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    Decision, InstanceId, Load, NamedValues, RequestId, RevisionKey, RevisionName, TenantKey, Timestamp,
};

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The platform's own word about the instance.
    Platform,
}

/// One line that an instance wrote, or that the platform wrote about it.
///
/// Runtimes make one by [`LogRecord::new`] and hand it to [`LogSink::line`], which copies what it keeps: the text
/// belongs to a buffer of the runtime's.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LogRecord<'a> {
    /// The instance that wrote it.
    pub instance: InstanceId,
    /// The revision of that instance.
    pub revision: RevisionKey,
    /// The request that it is about, where the runtime can tell.
    pub request: Option<RequestId>,
    /// When the runtime read it.
    pub at: Timestamp,
    /// The stream that it came from.
    pub stream: LogStream,
    /// The bytes of the line without its end; not always UTF-8.
    pub line: &'a [u8],
}

impl<'a> LogRecord<'a> {
    /// A line that is about no request in particular.
    pub const fn new(
        instance: InstanceId,
        revision: RevisionKey,
        at: Timestamp,
        stream: LogStream,
        line: &'a [u8],
    ) -> Self {
        Self { instance, revision, request: None, at, stream, line }
    }

    /// The same line, about `request`.
    #[must_use]
    pub fn with_request(mut self, request: impl Into<Option<RequestId>>) -> Self {
        self.request = request.into();
        self
    }
}

/// A line as it was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LogLine {
    /// Counts the lines of the platform, so that a reader can go on where it was.
    pub sequence: u64,
    /// When it was written.
    pub at: Timestamp,
    /// The instance that wrote the line.
    #[serde(serialize_with = "as_text")]
    pub instance: InstanceId,
    /// For which request, where that is known.
    pub request: Option<RequestId>,
    /// Where it was written to.
    pub stream: LogStream,
    /// The line; bytes that are not UTF-8 are replaced.
    pub line: String,
}

impl LogLine {
    /// The `sequence`-th line of the platform, written to `stream` by `instance`, for no known request.
    pub fn new(sequence: u64, at: Timestamp, instance: InstanceId, stream: LogStream, line: String) -> Self {
        Self { sequence, at, instance, request: None, stream, line }
    }

    /// The same, written for a request.
    #[must_use]
    pub fn for_request(mut self, request: Option<RequestId>) -> Self {
        self.request = request;
        self
    }
}

/// How grave a line is, as far as it says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LogLevel {
    /// Finer than debugging.
    Trace,
    /// For debugging.
    Debug,
    /// What is ordinary.
    Info,
    /// What may become an error.
    Warn,
    /// What went wrong.
    Error,
    /// What ended the program.
    Fatal,
}

impl LogLevel {
    /// The level of a word such as `warn`, `WARNING` or `E`, in any case.
    pub fn from_word(word: &str) -> Option<Self> {
        const WORDS: [(&str, LogLevel); 17] = [
            ("trace", LogLevel::Trace),
            ("finest", LogLevel::Trace),
            ("debug", LogLevel::Debug),
            ("fine", LogLevel::Debug),
            ("info", LogLevel::Info),
            ("information", LogLevel::Info),
            ("notice", LogLevel::Info),
            ("warn", LogLevel::Warn),
            ("warning", LogLevel::Warn),
            ("error", LogLevel::Error),
            ("err", LogLevel::Error),
            ("severe", LogLevel::Error),
            ("fatal", LogLevel::Fatal),
            ("critical", LogLevel::Fatal),
            ("alert", LogLevel::Fatal),
            ("emergency", LogLevel::Fatal),
            ("panic", LogLevel::Fatal),
        ];
        WORDS.iter().find(|(known, _)| word.eq_ignore_ascii_case(known)).map(|(_, level)| *level)
    }

    /// The level of a number as Bunyan and Pino write it: 10 is `Trace`, 60 `Fatal`.
    const fn from_number(number: u64) -> Self {
        match number {
            0..20 => Self::Trace,
            20..30 => Self::Debug,
            30..40 => Self::Info,
            40..50 => Self::Warn,
            50..60 => Self::Error,
            _ => Self::Fatal,
        }
    }

    /// In lower case, as JSON has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Fatal => "fatal",
        }
    }
}

/// Members of a structured line that hold its level.
const LEVEL_MEMBERS: [&str; 4] = ["level", "severity", "lvl", "log.level"];
/// Members of a structured line that hold the id of the request that it is about.
const REQUEST_MEMBERS: [&str; 5] =
    ["request_id", "requestId", "x-request-id", "request", "http.request.header.x-request-id"];
/// How far into a line its level is looked for.
const LEVEL_WORDS: usize = 6;

impl LogLine {
    /// The members of a line that is a JSON object; `None` for any other.
    pub fn fields(&self) -> Option<serde_json::Map<String, serde_json::Value>> {
        let text = self.line.trim();
        (text.starts_with('{') && text.ends_with('}')).then(|| serde_json::from_str(text).ok()).flatten()
    }

    /// The level that the line says: the member `level` or `severity` of a JSON object (words, or numbers as Pino writes
    /// them), else one of the first words of the text, in capitals or in brackets, as most loggers write it.
    pub fn level(&self) -> Option<LogLevel> {
        if let Some(fields) = self.fields() {
            let found = LEVEL_MEMBERS.iter().find_map(|name| fields.get(*name))?;
            return match found {
                serde_json::Value::String(word) => LogLevel::from_word(word),
                serde_json::Value::Number(number) => number.as_u64().map(LogLevel::from_number),
                _ => None,
            };
        }
        self.line.split_ascii_whitespace().take(LEVEL_WORDS).find_map(|word| {
            let logfmt = LEVEL_MEMBERS.iter().find_map(|name| {
                word.strip_prefix(name)?.strip_prefix('=').map(|word| word.trim_matches('"'))
            });
            if let Some(word) = logfmt {
                return LogLevel::from_word(word);
            }
            let bare = word.trim_matches(|at: char| !at.is_ascii_alphabetic());
            let marked = bare.len() < word.len() || bare.bytes().all(|byte| byte.is_ascii_uppercase());
            if marked { LogLevel::from_word(bare) } else { None }
        })
    }

    /// The request that the line is about: as the runtime knew it, else as a JSON object says in a member `request_id` or
    /// `requestId`, 32 hexadecimal digits as in `x-request-id`.
    pub fn about(&self) -> Option<RequestId> {
        self.request.or_else(|| {
            let fields = self.fields()?;
            let id = REQUEST_MEMBERS.iter().find_map(|name| fields.get(*name)?.as_str())?;
            let digits: String = id.chars().filter(|digit| *digit != '-').collect();
            (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok().map(RequestId)).flatten()
        })
    }
}

/// Which lines are asked for. Empty: all.
///
/// ```
/// use sas_core::{InstanceId, LogFilter, LogLevel, LogLine, LogStream, Timestamp};
/// let line = |text: &str| LogLine::new(1, Timestamp(5), InstanceId(1), LogStream::Stdout, text.to_owned());
/// let mut filter = LogFilter::default();
/// filter.level = Some(LogLevel::Warn);
/// assert!(filter.matches(&line(r#"{"level": "error", "msg": "no"}"#)));
/// assert!(filter.matches(&line("2026-01-05 12:00:01 WARN cache is full")));
/// assert!(!filter.matches(&line("[info] ready")) && !filter.matches(&line("no level here")));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogFilter {
    /// With a sequence above this alone.
    pub after: u64,
    /// From this time on.
    pub from: Option<Timestamp>,
    /// Before this time.
    pub until: Option<Timestamp>,
    /// Of this instance alone.
    pub instance: Option<InstanceId>,
    /// About this request alone.
    pub request: Option<RequestId>,
    /// Of this level or a graver one: lines that say no level are left out.
    pub level: Option<LogLevel>,
    /// With this text in them, in any case of ASCII letters.
    pub text: Option<String>,
}

impl LogFilter {
    /// Whether a line is asked for.
    pub fn matches(&self, line: &LogLine) -> bool {
        line.sequence > self.after
            && self.from.is_none_or(|from| line.at >= from)
            && self.until.is_none_or(|until| line.at < until)
            && self.instance.is_none_or(|instance| line.instance == instance)
            && self.text.as_ref().is_none_or(|text| contains(&line.line, text))
            && self.level.is_none_or(|level| line.level().is_some_and(|said| said >= level))
            && self.request.is_none_or(|request| line.about() == Some(request))
    }
}

fn contains(line: &str, text: &str) -> bool {
    text.is_empty()
        || line.as_bytes().windows(text.len()).any(|part| part.eq_ignore_ascii_case(text.as_bytes()))
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
fn as_text<S: serde::Serializer>(instance: &InstanceId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(instance)
}

/// Lines that were read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogPage {
    /// The lines, the oldest first.
    pub lines: Vec<LogLine>,
    /// Lines of the revisions asked for that are no longer kept.
    pub dropped: u64,
    /// Whether younger lines than the one that was asked after are not among these: there were more than were asked for, or
    /// they came and went since, and may have been what the filter asks for.
    pub gap: bool,
    /// The sequence of the youngest line that was looked at, whether the filter asks for it or not: who follows asks after it.
    pub last: u64,
}

impl LogPage {
    /// These lines, after `dropped` that are gone.
    pub fn new(lines: Vec<LogLine>, dropped: u64) -> Self {
        let last = lines.last().map_or(0, |line| line.sequence);
        Self { lines, dropped, gap: false, last }
    }

    /// The same, where younger lines than the one that was asked after are not among these.
    #[must_use]
    pub fn with_gap(mut self, gap: bool) -> Self {
        self.gap = gap;
        self
    }
}

/// Reads back what a [`LogSink`] took. The admin API shows logs through it.
#[async_trait]
pub trait LogQuery: fmt::Debug + Send + Sync + 'static {
    /// The last `most` lines of these revisions together that have a sequence above `after`, oldest first.
    ///
    /// # Errors
    /// `Unavailable` when the place where lines are kept can't be reached.
    async fn lines(&self, revisions: &[RevisionKey], most: usize, after: u64) -> crate::Result<LogPage>;

    /// The last `most` lines of these revisions that the filter asks for, oldest first. The default looks at all lines that
    /// [`LogQuery::lines`] gives; a place that can search by itself does.
    ///
    /// # Errors
    /// As [`LogQuery::lines`].
    async fn search(
        &self,
        revisions: &[RevisionKey],
        filter: &LogFilter,
        most: usize,
    ) -> crate::Result<LogPage> {
        let mut page = self.lines(revisions, usize::MAX, filter.after).await?;
        page.lines.retain(|line| filter.matches(line));
        let surplus = page.lines.len().saturating_sub(most);
        page.lines.drain(..surplus);
        page.gap |= surplus > 0;
        Ok(page)
    }

    /// Waits until there may be a line with a sequence above `after`, for those who follow. The default waits for a quarter
    /// of a second.
    ///
    /// **Cancel safety:** dropping it leaves nothing behind.
    async fn wait(&self, after: u64) {
        let _ = after;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Takes the lines that instances write.
///
/// Runtimes write to it. It is given to the builder's `log_sink`; `examples/custom_parts.rs` wraps the default one.
pub trait LogSink: fmt::Debug + Send + Sync + 'static {
    /// One line, without its end; longer ones were cut by the runtime. Returns at once: a sink that can't keep up
    /// drops and counts.
    fn line(&self, record: &LogRecord<'_>);

    /// An instance of this revision is started: lines that come under its key are of this name and tenant. Told again with
    /// each start.
    fn starts(&self, revision: RevisionKey, name: &RevisionName, tenant: TenantKey) {
        let _ = (revision, name, tenant);
    }

    /// Reads back what was written; `None` (the default) for a sink that only passes lines on. The admin API then
    /// says so instead of showing no lines.
    fn log_query(&self) -> Option<&dyn LogQuery> {
        None
    }

    /// No instance of the revision will write again, and nobody will ask for its lines: what is kept of it may go.
    fn forget(&self, revision: RevisionKey) {
        let _ = revision;
    }
}

/// A decision and all that it was made from: enough to make it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DecisionRecord {
    /// Counts the decisions of a revision from 1.
    pub sequence: u64,
    /// The time at which was decided.
    pub at: Timestamp,
    /// How long `load` was measured.
    #[serde(default = "one_second")]
    pub elapsed: Duration,
    /// The load that was measured and decided by.
    pub load: Load,
    /// What the host measured by name.
    #[serde(default, skip_serializing_if = "NamedValues::is_empty")]
    pub named: NamedValues,
    /// The decision before it.
    pub previous: Option<u32>,
    /// What was decided, and why.
    pub decision: Decision,
    /// The host that decided, where several share a state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Arc<str>>,
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}

impl DecisionRecord {
    /// A record of a load that was measured over one second.
    pub fn new(sequence: u64, at: Timestamp, load: Load, previous: Option<u32>, decision: Decision) -> Self {
        let (elapsed, named, host) = (one_second(), NamedValues::NONE, None);
        Self { sequence, at, elapsed, load, named, previous, decision, host }
    }
}

/// Takes every decision that changes a revision's instances; the driver and the pool call it, hosts may implement it.
///
/// It is given to the builder's `decision_sink`; `examples/custom_parts.rs` wraps the default one.
pub trait DecisionSink: fmt::Debug + Send + Sync + 'static {
    /// One decision. Returns at once.
    fn decided(&self, revision: RevisionKey, record: &DecisionRecord);

    /// Reads back what was decided; `None` (the default) for a sink that only passes decisions on. The admin API then
    /// says so instead of showing none.
    fn decision_query(&self) -> Option<&dyn DecisionQuery> {
        None
    }

    /// Nobody will ask for the decisions of the revision any more: what is kept of it may go.
    fn forget(&self, revision: RevisionKey) {
        let _ = revision;
    }
}

/// Reads back what a [`DecisionSink`] took. The admin API shows decisions through it.
#[async_trait]
pub trait DecisionQuery: fmt::Debug + Send + Sync + 'static {
    /// The last `most` decisions of a revision, oldest first.
    ///
    /// # Errors
    /// `Unavailable` when the place where decisions are kept can't be reached.
    async fn last_decisions(&self, revision: RevisionKey, most: usize) -> crate::Result<Vec<DecisionRecord>>;
}

/// Resolves the references that specs hold instead of secrets.
///
/// Starts of instances and triggers ask it. It is given to the builder's `secrets`; `examples/vault_secrets.rs` is one.
///
/// A value that is to be overwritten in memory when it is let go of is given as [`secret_bytes`] makes it.
#[async_trait]
pub trait SecretSource: fmt::Debug + Send + Sync + 'static {
    /// The value behind `reference` for `tenant`.
    ///
    /// # Errors
    /// `NotFound` when there is none that this tenant may have. The error never holds a secret.
    async fn resolve(&self, reference: &str, tenant: TenantKey) -> crate::Result<Bytes>;

    /// All keys of a secret or a configuration map with their values: `secret/name` or `configmap/name`. Asked for by
    /// what wants all of one, such as a volume of a container. By default there is no way to know the keys.
    ///
    /// # Errors
    /// As [`SecretSource::resolve`]; `Unsupported` for a source that knows single values only.
    async fn entries(&self, reference: &str, tenant: TenantKey) -> crate::Result<BTreeMap<String, Bytes>> {
        let _ = tenant;
        let what = format!(
            "{reference}: the platform's SecretSource lists no keys; name each key in `items`, or implement \
             SecretSource::entries"
        );
        Err(crate::Error::new(crate::ErrorKind::Unsupported, "resolve", what))
    }
}

/// The bytes of a secret. Their memory is overwritten when the last of those who share it lets go; slices of them share it.
///
/// ```
/// let value = sas_core::secret_bytes(b"hunter2".to_vec());
/// assert_eq!(value, "hunter2");
/// ```
pub fn secret_bytes(value: Vec<u8>) -> Bytes {
    Bytes::from_owner(Zeroizing::new(value))
}

/// A sink that drops everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSink;

impl NoSink {
    /// As a shared log sink.
    pub fn logs() -> Arc<dyn LogSink> {
        Arc::new(Self)
    }
}

impl LogSink for NoSink {
    fn line(&self, _: &LogRecord<'_>) {}
}

impl DecisionSink for NoSink {
    fn decided(&self, _: RevisionKey, _: &DecisionRecord) {}
}

#[deny(clippy::missing_trait_methods)]
impl<T: LogSink + ?Sized> LogSink for Arc<T> {
    fn line(&self, record: &LogRecord<'_>) {
        (**self).line(record);
    }

    fn starts(&self, revision: RevisionKey, name: &RevisionName, tenant: TenantKey) {
        (**self).starts(revision, name, tenant);
    }

    fn log_query(&self) -> Option<&dyn LogQuery> {
        (**self).log_query()
    }

    fn forget(&self, revision: RevisionKey) {
        (**self).forget(revision);
    }
}

#[deny(clippy::missing_trait_methods)]
impl<T: DecisionSink + ?Sized> DecisionSink for Arc<T> {
    fn decided(&self, revision: RevisionKey, record: &DecisionRecord) {
        (**self).decided(revision, record);
    }

    fn decision_query(&self) -> Option<&dyn DecisionQuery> {
        (**self).decision_query()
    }

    fn forget(&self, revision: RevisionKey) {
        (**self).forget(revision);
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: SecretSource + ?Sized> SecretSource for Arc<T> {
    async fn resolve(&self, reference: &str, tenant: TenantKey) -> crate::Result<Bytes> {
        (**self).resolve(reference, tenant).await
    }

    async fn entries(&self, reference: &str, tenant: TenantKey) -> crate::Result<BTreeMap<String, Bytes>> {
        (**self).entries(reference, tenant).await
    }
}

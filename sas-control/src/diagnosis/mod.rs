//! What is wrong with a platform, and what to do about it: named checks over what can be seen of it.
//!
//! A look is taken first ([`look`]), of the pool, the records, the quotas and the host; the checks ([`checks`]) are pure
//! functions of one look and of what earlier looks remember ([`Memory`]).

mod checks;
mod host;
mod look;
mod memory;
mod records;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use sas_core::{LifecycleEvent, LifecycleKind, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

use crate::control::Control;
pub(crate) use memory::Memory;
pub(crate) use records::Records;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// It costs something, or will.
    Warning,
    /// Somebody is not served.
    Critical,
}

/// A value that something was seen by.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Evidence {
    /// Whether something is so.
    Flag(bool),
    /// How many, or how long in the unit that the value's name ends in.
    Count(u64),
    /// A number with fractions, such as a rate per second.
    Number(f64),
    /// A word or a message.
    Text(String),
    /// There is no such value, such as the bound of what is unbounded: `null`.
    Absent,
}

impl utoipa::PartialSchema for Evidence {
    /// One schema of several types: a whole number is a number too, so it would never be just one of two schemas.
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
        let types = vec![Type::Boolean, Type::Number, Type::String, Type::Null];
        ObjectBuilder::new()
            .schema_type(SchemaType::Array(types))
            .description(Some(
                "A value that something was seen by: a flag, a number, a word, or null where there is none.",
            ))
            .into()
    }
}

impl ToSchema for Evidence {}

impl From<bool> for Evidence {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<u32> for Evidence {
    fn from(count: u32) -> Self {
        Self::Count(count.into())
    }
}

impl From<u64> for Evidence {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<usize> for Evidence {
    fn from(count: usize) -> Self {
        Self::Count(u64::try_from(count).unwrap_or(u64::MAX))
    }
}

impl From<f64> for Evidence {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for Evidence {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Evidence {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl<T: Into<Self>> From<Option<T>> for Evidence {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Absent, Into::into)
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The check that found it, one of [`Diagnosis::checks`].
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: `default/hello (hello-00001)`, an engine, a tenant, `host`.
    pub subject: String,
    /// What is wrong, in a sentence.
    pub finding: String,
    /// What it was seen by.
    pub evidence: BTreeMap<&'static str, Evidence>,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    fn new(
        name: &'static str,
        severity: Severity,
        subject: impl Into<String>,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            name,
            severity,
            subject: subject.into(),
            finding: finding.into(),
            evidence: BTreeMap::new(),
            remedy: remedy.into(),
        }
    }

    fn because(mut self, what: &'static str, value: impl Into<Evidence>) -> Self {
        self.evidence.insert(what, value.into());
        self
    }
}

/// What a diagnosis found.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Diagnosis {
    /// When it looked.
    pub at: Timestamp,
    /// The checks that were made.
    pub checks: Vec<&'static str>,
    /// What they found, the worst first.
    pub findings: Vec<Finding>,
}

/// A certificate as a diagnosis sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CertificateState {
    /// The name of its files.
    pub name: String,
    /// The hosts that it is for.
    pub domains: Vec<String>,
    /// When it ends.
    pub expires: Timestamp,
}

impl CertificateState {
    /// A certificate for no host that is known.
    pub fn new(name: impl Into<String>, expires: Timestamp) -> Self {
        Self { name: name.into(), domains: Vec::new(), expires }
    }
}

/// Who knows the certificates that clients are shown.
///
/// The diagnosis asks it for those that end soon.
pub trait CertificateSource: std::fmt::Debug + Send + Sync + 'static {
    /// Those that are in force.
    fn certificates(&self) -> Vec<CertificateState>;

    /// Why those that are there now are not in force, if they are not.
    fn problem(&self) -> Option<String>;
}

/// What counts as wrong, and how often it is looked for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DiagnosisConfig {
    /// How often the platform looks by itself, and writes what is new to its log; at least a second. 1 min.
    pub every: Duration,
    /// Failed starts in a row that are a crash loop. 3.
    pub crash_loop: u32,
    /// How many times as long as usual a start takes that is slow. 2.
    pub slow_start: f64,
    /// The share of a revision's queue that is nearly full, in percent. 80.
    pub queue_percent: u64,
    /// The share of memory, descriptors or disk that is nearly all, in percent. 90.
    pub full_percent: u64,
    /// How far the wall clock may run apart from the time that passed between two looks. 2 s.
    pub clock_jump: Duration,
    /// How long a service that may sleep is awake before it is asked what keeps it. 6 h.
    pub never_sleeps: Duration,
    /// Directories whose file systems are not to fill up.
    pub directories: Vec<PathBuf>,
    /// The certificates that are shown to clients, where the platform knows them.
    pub certificates: Option<Arc<dyn CertificateSource>>,
    /// How long before its end a certificate is to be renewed. 14 days.
    pub certificate_renewal: Duration,
}

impl Default for DiagnosisConfig {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(60),
            crash_loop: 3,
            slow_start: 2.0,
            queue_percent: 80,
            full_percent: 90,
            clock_jump: Duration::from_secs(2),
            never_sleeps: Duration::from_secs(6 * 3600),
            directories: Vec::new(),
            certificates: None,
            certificate_renewal: Duration::from_secs(14 * 24 * 3600),
        }
    }
}

impl Control {
    /// Looks at the whole platform now and says what is wrong. What needs a past (starts slower than usual, clock jumps,
    /// services that never sleep) is told from the looks before this one, which the platform takes by itself
    /// ([`DiagnosisConfig::every`]).
    pub async fn diagnose(self: &Arc<Self>) -> Diagnosis {
        let look = self.look().await;
        let mut findings = {
            let mut memory = self.diagnosis.lock();
            memory.remember(&look);
            checks::all(&look, &memory, &self.diagnosis_config)
        };
        findings.sort_by(|one, two| {
            two.severity.cmp(&one.severity).then(one.name.cmp(two.name)).then(one.subject.cmp(&two.subject))
        });
        self.metrics.found(findings.iter().map(|finding| finding.name), checks::NAMES);
        Diagnosis { at: look.at, checks: checks::NAMES.to_vec(), findings }
    }

    /// The look that is taken by itself: what was not found the last time is written to the log.
    pub(crate) async fn diagnose_by_itself(self: &Arc<Self>) {
        let found = self.diagnose().await.findings;
        let (new, over) = self.diagnosis.lock().tell(&found);
        let now = self.clock.now();
        self.tell(over.into_iter().map(|(check, subject)| {
            LifecycleEvent::new(LifecycleKind::FindingCleared, subject, now).with("check", check)
        }));
        for finding in found.iter().filter(|finding| new.contains(&(finding.name, finding.subject.clone()))) {
            let Finding { name, subject, finding, remedy, evidence, severity } = finding;
            let raised = LifecycleEvent::new(LifecycleKind::FindingRaised, subject, now)
                .with("check", *name)
                .with("severity", serde_json::to_value(severity).unwrap_or_default())
                .with("finding", finding.as_str())
                .with("evidence", serde_json::to_value(evidence).unwrap_or_default())
                .with("remedy", remedy.as_str());
            self.tell([raised]);
            let evidence = serde_json::to_string(evidence).unwrap_or_default();
            tracing::warn!(check = name, subject, evidence, remedy, "{finding}");
        }
    }
}

//! What is stored of a service: its desired state and its revisions.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use sas_core::{
    Affinity, Error, ErrorKind, Fidelity, Principal, Quota, Result, RevisionSpec, RolloutPlan, SpecError,
    TenantKey, Timestamp,
};
use sas_knative::manifest::{FaultRule, MirrorTo, TagRoute, TrafficTarget};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    labels::APP_LABEL,
    rollout::{RolloutProgress, RolloutState},
};

/// The format of the records that this version writes.
const FORMAT: u16 = 1;
/// The alias that every service has: of the youngest revision that is ready.
pub(crate) const LATEST: &str = "latest";

/// A service, as the store holds it under `service/<namespace>/<name>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ServiceRecord {
    /// The version of this format.
    pub format: u16,
    /// The namespace that it is in.
    pub namespace: String,
    /// The name within the namespace.
    pub name: String,
    /// The tenant whose it is, who pays for it.
    pub tenant: TenantKey,
    /// Counts the changes of the desired state from 1.
    pub generation: u64,
    /// Who asked for the last change, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_by: Option<Principal>,
    /// When it was first deployed.
    pub created_at: Timestamp,
    /// Labels of the manifest.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// Whether it answers only at its internal host.
    pub cluster_local: bool,
    /// What makes requests belong to one instance.
    #[serde(default)]
    pub affinity: Affinity,
    /// Whether browsers get a page that reloads itself while the service starts.
    #[serde(default)]
    pub placeholder: bool,
    /// Paths whose requests start no instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub no_wake: Vec<String>,
    /// Which requests go to the revision of a tag, whatever the shares say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<TagRoute>,
    /// Which revision gets copies of its requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorTo>,
    /// Faults that its requests meet on purpose.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultRule>,
    /// What its requests may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
    /// Where its traffic goes.
    pub traffic: Vec<TrafficTarget>,
    /// How long traffic takes to move to a new revision.
    pub rollout: Duration,
    /// How it moves, if not by time alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<RolloutPlan>,
    /// A move of traffic that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolling: Option<Rolling>,
    /// Set while it is switched off: nothing of it starts, its triggers wait, and requests are answered with 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<Disabled>,
    /// Names of one's own for revisions; they keep them, and stand wherever a revision's name may.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<String, String>,
    /// The number of the next revision that is not given a name.
    pub next_number: u32,
    /// Its revisions, oldest first.
    pub revisions: Vec<RevisionRecord>,
    /// The manifest of the last deploy as it was written, whole but for its `status`; `None`: there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<Arc<Value>>,
}

/// That a service is switched off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Disabled {
    /// Since when.
    pub at: Timestamp,
    /// Who did it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Principal>,
    /// Why, where that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A gradual move of the latest revision's share to a new one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Rolling {
    /// The revision that the traffic comes from.
    pub from: String,
    /// The revision that it goes to.
    pub to: String,
    /// When the new one was ready.
    pub since: Timestamp,
    /// How long it takes, when it goes by time alone.
    pub over: Duration,
    /// How far it is, when it goes by steps that look at the errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<RolloutProgress>,
    /// Why it was stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A revision: immutable but for its state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RevisionRecord {
    /// Its name, such as `hello-00001`.
    pub name: String,
    /// The service's generation that made it.
    pub generation: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// What it is: `sha256:` of its spec and its package's content. Equal digests run equally.
    pub digest: String,
    /// `sha256:` of its package's content, if it has one.
    pub package: Option<String>,
    /// Bytes of the platform's copy of its package, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package_bytes: Option<u64>,
    /// The digest that the runtime gave, once it was prepared.
    pub artifact: Option<String>,
    /// Labels of the template.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the template.
    pub annotations: BTreeMap<String, String>,
    /// How instances of the revision run.
    #[serde(deserialize_with = "spec_of_any_age")]
    pub spec: Arc<RevisionSpec>,
    /// How far it has come.
    pub state: RevisionState,
    /// What the runtime has to say about it.
    pub notes: Vec<String>,
    /// When it last lost its traffic, for the collection of old revisions.
    pub retired_at: Option<Timestamp>,
    /// Who deployed it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<Principal>,
    /// Why it was made: the annotation `kubernetes.io/change-cause` of its manifest, or what a change of its app's
    /// environment gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it has of the environment of its app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_env: Option<AppEnv>,
}

/// What a revision has of the environment of its app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct AppEnv {
    /// The app.
    pub app: String,
    /// The version of its environment.
    pub version: u64,
    /// The variables that come from there; the others are the service's own.
    pub names: Vec<String>,
}

/// Reads a spec as this version and earlier ones wrote it: what is now in the options of the scaler was
/// beside them, and how closely Knative is followed had the names of presets.
fn spec_of_any_age<'de, D: Deserializer<'de>>(given: D) -> std::result::Result<Arc<RevisionSpec>, D::Error> {
    const NOW_OPTIONS: [&str; 6] = ["metrics", "combine", "resource", "backlog", "schedule", "forecast"];
    let mut spec = Value::deserialize(given)?;
    if let Some(Value::Object(scaling)) = spec.get_mut("scaling") {
        if let Some(preset) = scaling.remove("preset") {
            scaling.entry("fidelity").or_insert(preset);
        }
        if let Some(fidelity) = scaling.get_mut("fidelity") {
            match fidelity.as_str() {
                Some("knative") => *fidelity = json!(Fidelity::Exact),
                Some("default") => *fidelity = json!(Fidelity::Corrected),
                _ => {}
            }
        }
        let found: Vec<_> =
            NOW_OPTIONS.iter().filter_map(|name| Some((*name, scaling.remove(*name)?))).collect();
        let options = scaling.entry("options").or_insert_with(|| json!({}));
        for (name, value) in found {
            // Those that say what is so without them.
            let says_nothing = value.is_null() || value == json!([]) || (name == "combine" && value == "max");
            if !says_nothing && let Value::Object(options) = options {
                options.insert(name.to_owned(), value);
            }
        }
    }
    RevisionSpec::deserialize(spec).map(Arc::new).map_err(de::Error::custom)
}

/// How far a revision has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RevisionState {
    /// It is to be prepared.
    Pending,
    /// It was prepared and may take traffic.
    Ready,
    /// It could not be prepared.
    Failed {
        /// The kind of the error, in snake case.
        reason: String,
        /// The error.
        message: String,
        /// Its fields, where it has some.
        fields: Vec<Field>,
    },
}

/// A mistake, as records keep it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Field {
    /// The path of the field with the mistake.
    pub field: String,
    /// The value that stands in that field.
    pub value: String,
    /// What should stand there instead.
    pub problem: String,
}

impl From<&SpecError> for Field {
    fn from(error: &SpecError) -> Self {
        Self { field: error.field.clone(), value: error.value.clone(), problem: error.problem.clone() }
    }
}

/// A part of the traffic, resolved to a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Share {
    /// The name of the revision that gets this share.
    pub revision: String,
    /// The share of the traffic, in percent.
    pub percent: u32,
    /// The tag, if it has one.
    pub tag: Option<String>,
    /// Whether the manifest asks for the latest revision here.
    pub latest: bool,
}

impl ServiceRecord {
    pub(crate) fn new(namespace: &str, name: &str, tenant: TenantKey, now: Timestamp) -> Self {
        Self {
            format: FORMAT,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            tenant,
            generation: 0,
            changed_by: None,
            created_at: now,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            cluster_local: false,
            affinity: Affinity::None,
            placeholder: false,
            no_wake: Vec::new(),
            routes: Vec::new(),
            mirror: None,
            faults: Vec::new(),
            quota: None,
            traffic: vec![TrafficTarget::latest()],
            rollout: Duration::ZERO,
            plan: None,
            rolling: None,
            disabled: None,
            aliases: BTreeMap::new(),
            next_number: 1,
            revisions: Vec::new(),
            document: None,
        }
    }

    /// The key by which it is found, as `namespace/name`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The revision of that name.
    pub fn revision(&self, name: &str) -> Option<&RevisionRecord> {
        self.revisions.iter().find(|revision| revision.name == name)
    }

    /// The revision that a name means: its own name, an alias, or `latest` for the youngest that is ready.
    pub fn resolve(&self, name: &str) -> Option<&RevisionRecord> {
        match self.revision(name) {
            None if name == LATEST => self.latest_ready(),
            None => self.aliases.get(name).and_then(|revision| self.revision(revision)),
            found => found,
        }
    }

    /// The app that it belongs to, if any: its label [`crate::APP_LABEL`].
    pub fn app(&self) -> Option<&str> {
        self.labels.get(APP_LABEL).map(String::as_str).filter(|app| !app.is_empty())
    }

    /// The aliases of a revision.
    pub fn aliases_of(&self, revision: &str) -> impl Iterator<Item = &str> {
        self.aliases.iter().filter(move |(_, named)| *named == revision).map(|(alias, _)| alias.as_str())
    }

    pub(crate) fn revision_mut(&mut self, name: &str) -> Option<&mut RevisionRecord> {
        self.revisions.iter_mut().find(|revision| revision.name == name)
    }

    /// The youngest revision, ready or not.
    pub fn latest_created(&self) -> Option<&RevisionRecord> {
        self.revisions.last()
    }

    /// The youngest revision that is ready.
    pub fn latest_ready(&self) -> Option<&RevisionRecord> {
        self.revisions.iter().rev().find(|revision| revision.state == RevisionState::Ready)
    }

    /// Where the traffic goes at `now`: each target with the revision that it means. Targets whose revision is not
    /// ready are left out.
    pub fn shares(&self, now: Timestamp) -> Vec<Share> {
        let latest = self.latest_ready().map(|revision| revision.name.as_str());
        let mut shares = Vec::with_capacity(self.traffic.len() + 1);
        for target in &self.traffic {
            let revision = target.revision_name.as_deref().or(latest);
            let ready = |name: &&str| self.revision(name).is_some_and(|r| r.state == RevisionState::Ready);
            let Some(revision) = revision.filter(ready) else { continue };
            let mut share = Share {
                revision: revision.to_owned(),
                percent: target.percent,
                tag: target.tag.clone(),
                latest: target.revision_name.is_none(),
            };
            if share.latest
                && let Some(rolling) = &self.rolling
                && rolling.to == share.revision
                && self.revision(&rolling.from).is_some()
            {
                let moved = rolling.moved(share.percent, now);
                // With nothing, the old one is kept for going back.
                if moved < share.percent || rolling.keeps_old() {
                    shares.push(Share {
                        revision: rolling.from.clone(),
                        percent: share.percent - moved,
                        tag: None,
                        latest: true,
                    });
                    share.percent = moved;
                }
            }
            // A stopped revision that nobody can ask for by a tag has no business to run; one whose instances are still
            // to come has.
            let comes = self.rolling.as_ref().is_some_and(|rolling| !rolling.is_stopped());
            let stopped = share.latest && share.percent == 0 && share.tag.is_none() && !comes;
            if !stopped || target.percent == 0 {
                shares.push(share);
            }
        }
        shares
    }

    /// Whether all of the traffic is what a roll-out moves: the latest revision has 100 %, and no target names one of the two.
    pub(crate) fn moves_everything(&self, rolling: &Rolling) -> bool {
        self.traffic.iter().any(|target| target.revision_name.is_none() && target.percent == 100)
            && self
                .traffic
                .iter()
                .filter_map(|target| target.revision_name.as_ref())
                .all(|named| *named != rolling.from && *named != rolling.to)
    }

    /// Whether the latest revision has a share of the traffic.
    pub(crate) fn latest_has_traffic(&self) -> bool {
        self.traffic.iter().any(|target| target.revision_name.is_none() && target.percent > 0)
    }

    pub(crate) fn encode(&self) -> Result<Bytes> {
        serde_json::to_vec(self).map(Bytes::from).map_err(|error| {
            let message = format!("{} can't be written: {error}", self.path());
            Error::new(ErrorKind::Unexpected, "store", message).with_source(error)
        })
    }

    /// # Errors
    /// `Unsupported` for a record of another version, `InvalidSpec` for what is no record.
    pub(crate) fn decode(key: &str, value: &[u8]) -> Result<Self> {
        /// What records of all versions have.
        #[derive(Deserialize)]
        struct AnyVersion {
            format: u16,
        }
        // First: in all else the record of another version may look different.
        if let Ok(AnyVersion { format }) = serde_json::from_slice(value)
            && format != FORMAT
        {
            let message = format!("{key} has format {format}; this version reads {FORMAT}");
            return Err(Error::new(ErrorKind::Unsupported, "recover", message));
        }
        serde_json::from_slice(value).map_err(|error| {
            let message = format!("{key} is not a service's record: {error}; deploy it again or delete it");
            Error::new(ErrorKind::InvalidSpec, "recover", message)
        })
    }

    /// The name of the next revision.
    pub(crate) fn next_name(&self) -> (String, u32) {
        let mut number = self.next_number;
        loop {
            let suffix = format!("-{number:05}");
            let most = 63_usize.saturating_sub(suffix.len());
            let stem = self.name.get(..most).unwrap_or(&self.name);
            let name = format!("{stem}{suffix}");
            if self.revision(&name).is_none() {
                return (name, number + 1);
            }
            number += 1;
        }
    }
}

impl Rolling {
    /// How much of `percent` has moved at `now`. By time: 1 % at once, the rest in whole percents, as Knative does. By
    /// steps: the step's part, at least 1 %.
    pub(crate) fn moved(&self, percent: u32, now: Timestamp) -> u32 {
        if let Some(progress) = &self.progress {
            return (percent * progress.percent()).div_ceil(100);
        }
        let passed = now.since(self.since);
        if passed >= self.over || percent <= 1 {
            return percent;
        }
        let part = passed.as_nanos() * u128::from(percent) / self.over.as_nanos().max(1);
        u32::try_from(part).unwrap_or(percent).clamp(1, percent)
    }

    /// Whether it has reached its end. One that was stopped has not: it waits for what people say.
    pub(crate) fn is_over(&self, now: Timestamp) -> bool {
        match &self.progress {
            Some(progress) => progress.state() == RolloutState::Done,
            None => now >= self.since + self.over,
        }
    }

    /// Whether its errors are looked at.
    pub(crate) fn is_watched(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| progress.state() == RolloutState::Moving)
    }

    /// Whether the old revision stays although the new one has everything.
    pub(crate) fn keeps_old(&self) -> bool {
        self.progress.as_ref().is_some_and(RolloutProgress::keeps_old)
    }

    /// Whether the new revision failed, or people stopped it.
    pub(crate) fn is_stopped(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| progress.state() == RolloutState::Stopped)
    }
}

/// `sha256:` and 64 hexadecimal digits.
pub(crate) fn sha256(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    format!("sha256:{}", hex(&hash.finalize()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use sas_core::Source;

    use super::*;

    /// One that is ready.
    pub(crate) fn revision(name: &str) -> RevisionRecord {
        let spec = RevisionSpec::new("process", Source::Path("app".into()));
        RevisionRecord {
            name: name.to_owned(),
            generation: 1,
            created_at: Timestamp(0),
            digest: String::new(),
            package: None,
            package_bytes: None,
            artifact: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            spec: Arc::new(spec),
            state: RevisionState::Ready,
            notes: Vec::new(),
            author: None,
            reason: None,
            app_env: None,
            retired_at: None,
        }
    }

    #[test]
    fn a_record_of_before_the_scalers_had_options_of_their_own_opens() {
        let mut record = ServiceRecord::new("default", "hello", TenantKey(7), Timestamp(0));
        record.revisions.push(revision("hello-00001"));
        let mut stored: Value = serde_json::from_slice(&record.encode().unwrap()).unwrap();
        assert_eq!(ServiceRecord::decode("k", stored.to_string().as_bytes()).unwrap(), record);

        let scaling = stored.pointer_mut("/revisions/0/spec/scaling").and_then(Value::as_object_mut).unwrap();
        scaling.remove("fidelity");
        for (name, value) in [
            ("preset", json!("knative")),
            ("metrics", json!([{ "metric": "cpu", "target": { "utilization": 80.0 } }])),
            ("combine", json!("max")),
            ("resource", Value::Null),
            ("backlog", json!({ "target": 20.0, "activation": 5, "fallback": null })),
            ("schedule", json!([])),
            ("forecast", Value::Null),
            ("options", json!({ "mine": "4" })),
        ] {
            scaling.insert(name.to_owned(), value);
        }
        let read = ServiceRecord::decode("k", stored.to_string().as_bytes()).unwrap();
        let scaling = &read.revisions[0].spec.scaling;
        assert_eq!(scaling.fidelity, Fidelity::Exact);
        let names: Vec<_> = scaling.options.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["backlog", "metrics", "mine"]);
        assert_eq!(scaling.options.get("mine"), Some(&json!("4")));
        assert_eq!(ServiceRecord::decode("k", &read.encode().unwrap()).unwrap(), read);
    }
}

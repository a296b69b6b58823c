//! Services and revisions as operators see them, in JSON.

use std::collections::BTreeMap;

use sas_core::{AnswerCounts, ErrorKind, Principal, Quota, RevisionKey, RolloutKind, TriggerStatus};
use sas_knative::manifest::{FaultRule, MirrorTo, TrafficTarget};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    control::Control,
    record::{RevisionRecord, RevisionState, ServiceRecord, Share},
    stamp::rfc3339,
};

/// A condition, as Kubernetes writes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[non_exhaustive]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// One word for programs, such as `ProgressDeadlineExceeded`.
    pub reason: String,
    /// What it is, for a human.
    pub message: String,
}

impl Condition {
    fn new(kind: &'static str, status: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Self { kind, status, reason: reason.to_owned(), message: message.into() }
    }
}

/// The instances of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct InstancesView {
    /// How many the last decision asked for.
    pub desired: u32,
    /// How many can take requests.
    pub ready: u32,
    /// How many are on their way up.
    pub starting: u32,
    /// How many are on their way out.
    pub draining: u32,
    /// Requests that wait for one.
    pub queued: u32,
    /// How many requests are on its instances now.
    pub in_flight: u32,
}

/// A part of a service's traffic, as it goes now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct TrafficView {
    /// The name of the revision that gets this share.
    pub revision_name: String,
    /// The share of the traffic, in percent.
    pub percent: u32,
    /// Whether it is meant for the latest revision, whichever that is.
    pub latest_revision: bool,
    /// The tag, if it has one.
    pub tag: Option<String>,
    /// The host of the tag.
    pub host: Option<String>,
}

/// How far a roll-out is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RolloutStage {
    /// Traffic moves.
    Moving,
    /// The new revision failed and got its traffic taken away, or somebody stopped it.
    Stopped,
    /// All traffic has moved.
    Done,
}

/// Answers that were counted of the two revisions of a roll-out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
#[non_exhaustive]
pub struct RolloutAnswers {
    /// Of the revision that the traffic comes from.
    pub from: AnswerCounts,
    /// Of the one that it goes to.
    pub to: AnswerCounts,
}

/// How long the two revisions of a roll-out take to begin an answer, in the step that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct RolloutLatency {
    /// Which part of the answers began within these times.
    pub quantile: f64,
    /// Of the revision that the traffic comes from, in milliseconds; `null`: it answered nothing.
    pub from_millis: Option<f64>,
    /// Of the one that it goes to.
    pub to_millis: Option<f64>,
}

/// Instances of the two revisions of a roll-out that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct RolloutInstances {
    /// What the service would need with one revision.
    pub needed: u32,
    /// What both revisions may have together: that and the surge.
    pub most: u32,
    /// Ready ones of the revision that the traffic comes from.
    pub from_ready: u32,
    /// Ready ones of the one that it goes to.
    pub to_ready: u32,
    /// What that one is sized for.
    pub to_wanted: u32,
    /// The share of the traffic that this is for, in percent.
    pub to_percent: u32,
}

/// A roll-out that is under way, done, or stopped.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct RolloutView {
    /// The revision that the traffic comes from.
    pub from: String,
    /// The revision that it goes to.
    pub to: String,
    /// How much of it has moved, in percent.
    pub percent: u32,
    /// How far it is.
    pub state: RolloutStage,
    /// Why it was stopped; or, while it moves, why its new revision is not judged.
    pub reason: Option<String>,
    /// Since when it is as it is, in RFC 3339.
    pub since: String,
    /// The steps in percent, when it goes by steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<u32>>,
    /// How long each step is held, in seconds, when it goes by steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_seconds: Option<f64>,
    /// Requests that a step needs before it is judged, when it goes by steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_requests: Option<u64>,
    /// How much larger the share of errors may be, when it goes by steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_more_errors: Option<f64>,
    /// How long it takes, in seconds, when it goes by time alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_seconds: Option<f64>,
    /// Answers so far, where they are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answers: Option<RolloutAnswers>,
    /// Which way the traffic goes, when it goes by steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<RolloutKind>,
    /// By which part the new revision may be slower; left out where the move goes by time alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_slower: Option<f64>,
    /// What both revisions may have together beyond what the service needs: instances, or a percentage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub surge: Option<String>,
    /// How long the new revision may take to have its instances, in seconds, when it goes by steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_within_seconds: Option<f64>,
    /// How long the old revision is kept once the new one has everything, in seconds, when it goes by steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_old_seconds: Option<f64>,
    /// Latencies so far, where they are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<RolloutLatency>,
    /// Instances of the two, while it moves by steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instances: Option<RolloutInstances>,
}

/// A trigger and how it is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct TriggerView {
    /// Its name, as `namespace/name`.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// Whether its source runs now; false while it waits to be started again.
    pub running: bool,
    /// Whether it was paused.
    pub paused: bool,
    /// Attempts to deliver that were made since the platform runs.
    pub attempts: u64,
    /// Whether its target is taken to be down, so that events wait upstream.
    pub circuit_open: bool,
    /// Since when the oldest event waits upstream, in RFC 3339, where that is known.
    pub oldest: Option<String>,
    /// How often its source failed and was started again.
    pub restarts: u64,
    /// The error of the last failure, until a run lasts.
    pub last_error: Option<String>,
    /// When it fired last since the platform runs, in RFC 3339; `null`: not yet, or it follows no schedule.
    pub last_fire: Option<String>,
    /// When it fires next, jitter apart, in RFC 3339; `null`: never again, or it follows no schedule.
    pub next_fire: Option<String>,
}

impl From<TriggerStatus> for TriggerView {
    fn from(status: TriggerStatus) -> Self {
        Self {
            last_fire: status.fires.last.map(rfc3339),
            next_fire: status.fires.next.map(rfc3339),
            name: status.name,
            kind: status.kind,
            running: status.running,
            paused: status.paused,
            attempts: status.attempts,
            circuit_open: status.circuit_open,
            oldest: status.oldest.map(rfc3339),
            restarts: status.restarts,
            last_error: status.last_error,
        }
    }
}

/// Something that the last start could not bring back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[non_exhaustive]
pub struct MissingView {
    /// `Service namespace/name`, or another kind.
    pub what: String,
    /// The kind of the error, in snake case.
    pub reason: String,
    /// The error, with its causes.
    pub message: String,
}

/// A revision as the admin API shows it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct RevisionView {
    /// The name within its namespace.
    pub name: String,
    /// The service's generation that made it.
    pub generation: u64,
    /// When it was made, in RFC 3339.
    pub created_at: String,
    /// What it is; equal digests run equally.
    pub digest: String,
    /// The digest of its package's content.
    pub package: Option<String>,
    /// The digest that the runtime gave.
    pub artifact: Option<String>,
    /// Which runtime serves it.
    pub runtime: String,
    /// Its share of the traffic now, in percent.
    pub percent: u32,
    /// The tags of the routes that lead to it.
    pub tags: Vec<String>,
    /// Instances: the last decision, and what they do.
    pub instances: Option<InstancesView>,
    /// What the runtime has to say.
    pub notes: Vec<String>,
    /// Who deployed it, where that is known.
    #[schema(value_type = Option<String>)]
    pub author: Option<Principal>,
    /// Why it was made, where that was said.
    pub reason: Option<String>,
    /// Labels of its template.
    pub labels: BTreeMap<String, String>,
    /// Names of one's own that it has.
    pub aliases: Vec<String>,
    /// The version of its app's environment that it has; `null`: none.
    pub environment_version: Option<u64>,
    /// Whether it can serve.
    pub conditions: Vec<Condition>,
}

/// That a service is switched off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct DisabledView {
    /// Since when, in RFC 3339.
    pub since: String,
    /// Who did it, where that is known.
    #[schema(value_type = Option<String>)]
    pub by: Option<Principal>,
    /// Why, where that was said.
    pub reason: Option<String>,
}

/// A service as the admin API shows it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ServiceView {
    /// The namespace that the service is in.
    pub namespace: String,
    /// The name within its namespace.
    pub name: String,
    /// The host it answers at.
    pub host: String,
    /// Counts the changes of what is wanted.
    pub generation: u64,
    /// Who asked for the last change, where that is known.
    #[schema(value_type = Option<String>)]
    pub changed_by: Option<Principal>,
    /// When it was first deployed, in RFC 3339.
    pub created_at: String,
    /// The app that it belongs to: its label `sas.dev/app`.
    pub app: Option<String>,
    /// That it is switched off; `null`: it is not.
    pub disabled: Option<DisabledView>,
    /// Names of one's own for revisions.
    pub aliases: BTreeMap<String, String>,
    /// Labels of the manifest.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// The youngest revision, ready or not; `None`: none was made.
    pub latest_created_revision: Option<String>,
    /// The youngest revision that is ready.
    pub latest_ready_revision: Option<String>,
    /// Where the traffic is to go.
    pub spec: Vec<TrafficTarget>,
    /// Where requests go, and in which shares.
    pub traffic: Vec<TrafficView>,
    /// Which revision gets copies of its requests, by its tag.
    pub mirror: Option<MirrorTo>,
    /// Faults that its requests meet on purpose.
    pub faults: Vec<FaultRule>,
    /// What its requests may use; `null`: what all services may.
    pub quota: Option<Quota>,
    /// The roll-out that is under way or was stopped; `null`: none.
    pub rollout: Option<RolloutView>,
    /// How the service is, one condition for each question.
    pub conditions: Vec<Condition>,
    /// The hosts that run it together, the one that acts for it first; empty where one host runs it.
    pub hosts: Vec<HostPartView>,
    /// Its revisions, youngest first.
    pub revisions: Vec<RevisionView>,
}

/// What one of several hosts runs of a service.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct HostPartView {
    /// The name of the host.
    pub host: String,
    /// Whether it acts for the service, and so says who has which part.
    pub owner: bool,
    /// `joining` while it prepares the revisions and gets no requests, `serving`, or `leaving` while it ends what it has.
    pub state: &'static str,
    /// Its share of the service's quota and of the requests that other hosts pass on, in thousandths.
    pub share: u32,
    /// What it may run of each revision, and runs.
    pub revisions: Vec<HostRevisionView>,
    /// Why it can't take its part; `null`: it can.
    pub error: Option<String>,
}

/// What one of several hosts runs of a revision. What it runs is what it said last, and `null` while it has not said.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct HostRevisionView {
    /// The name of the revision.
    pub name: String,
    /// Instances at least.
    pub min: u32,
    /// Instances at most; `null`: no bound.
    pub max: Option<u32>,
    /// Instances that the requests there need.
    pub asked: Option<u32>,
    /// Instances that are there, those on their way up included.
    pub instances: Option<u32>,
    /// Instances that the host has room for; `null`: no bound, or not said.
    pub room: Option<u32>,
}

impl Control {
    /// What the last start could not bring back and is not back yet.
    pub fn missing_view(&self) -> Vec<MissingView> {
        let missing = self.missing().into_iter();
        missing
            .map(|(what, error)| MissingView {
                what,
                reason: error.kind.as_str().to_owned(),
                message: error.chain(),
            })
            .collect()
    }

    /// A service as operators see it.
    pub fn view(&self, record: &ServiceRecord) -> ServiceView {
        let shares = record.shares(self.clock.now());
        let traffic = self.traffic_view(record);
        let revisions: Vec<RevisionView> =
            record.revisions.iter().rev().map(|revision| self.revision_view(record, revision)).collect();
        let [ready, configuration, routes] = self.service_conditions(record, &shares);
        let mut conditions = vec![ready, configuration, routes];
        conditions.extend(rolling_condition(record));
        ServiceView {
            namespace: record.namespace.clone(),
            name: record.name.clone(),
            host: self.rules.host(record, None),
            generation: record.generation,
            changed_by: record.changed_by.clone(),
            created_at: rfc3339(record.created_at),
            app: record.app().map(str::to_owned),
            disabled: record.disabled.as_ref().map(|disabled| DisabledView {
                since: rfc3339(disabled.at),
                by: disabled.by.clone(),
                reason: disabled.reason.clone(),
            }),
            aliases: record.aliases.clone(),
            labels: record.labels.clone(),
            annotations: record.annotations.clone(),
            latest_created_revision: record.latest_created().map(|revision| revision.name.clone()),
            latest_ready_revision: record.latest_ready().map(|revision| revision.name.clone()),
            spec: record.traffic.clone(),
            traffic,
            mirror: record.mirror.clone(),
            faults: record.faults.clone(),
            quota: record.quota,
            rollout: self.rollout_view(record),
            conditions,
            hosts: self.host_parts(record),
            revisions,
        }
    }

    fn host_parts(&self, record: &ServiceRecord) -> Vec<HostPartView> {
        let bounded = |number: u32| (number < u32::MAX).then_some(number);
        let parts = self.parts_of(&record.path()).into_iter().enumerate();
        let view = parts.map(|(at, (part, report))| {
            let revisions = part.revisions.iter().map(|(name, range)| {
                let seen = report.as_ref().and_then(|report| report.revisions.get(name));
                HostRevisionView {
                    name: name.clone(),
                    min: range.min,
                    max: bounded(range.max),
                    asked: seen.map(|seen| seen.asked),
                    instances: seen.map(|seen| seen.have),
                    room: seen.and_then(|seen| bounded(seen.room)),
                }
            });
            HostPartView {
                owner: at == 0,
                state: part.state.as_str(),
                share: part.share,
                revisions: revisions.collect(),
                error: report.as_ref().and_then(|report| report.error.clone()),
                host: part.host,
            }
        });
        view.collect()
    }

    /// Where the requests of a service go now.
    pub(crate) fn traffic_view(&self, record: &ServiceRecord) -> Vec<TrafficView> {
        let shares = record.shares(self.clock.now());
        let view = shares.iter().map(|share| TrafficView {
            revision_name: share.revision.clone(),
            percent: share.percent,
            latest_revision: share.latest,
            tag: share.tag.clone(),
            host: share.tag.as_deref().map(|tag| self.rules.host(record, Some(tag))),
        });
        view.collect()
    }

    /// `Ready`, `ConfigurationsReady` and `RoutesReady` of a service whose traffic goes by these shares.
    pub(crate) fn service_conditions(&self, record: &ServiceRecord, shares: &[Share]) -> [Condition; 3] {
        let configuration = match record.latest_created() {
            Some(latest) => self.revision_conditions(record, latest).remove(0),
            None => Condition::new("Ready", "Unknown", "NoRevision", ""),
        };
        let configuration = Condition { kind: "ConfigurationsReady", ..configuration };
        let percent: u32 = shares.iter().map(|share| share.percent).sum();
        let serving = shares.iter().filter(|share| share.percent > 0).find_map(|share| {
            let revision = record.revision(&share.revision)?;
            let condition = self.revision_conditions(record, revision).remove(0);
            (condition.status == "False").then_some(condition)
        });
        let routes = match serving {
            _ if record.disabled.is_some() => {
                let why = record.disabled.as_ref().and_then(|disabled| disabled.reason.as_deref());
                let message = format!("it is switched off: {}", why.unwrap_or("no reason was given"));
                Condition::new("RoutesReady", "False", "Disabled", message)
            }
            Some(failing) => Condition { kind: "RoutesReady", ..failing },
            None if percent == 100 => Condition::new("RoutesReady", "True", "", ""),
            None if percent == 0 => Condition::new(
                "RoutesReady",
                "False",
                "NoReadyRevision",
                "no revision is ready to take traffic",
            ),
            None => {
                let message = format!(
                    "revisions for {} % of the traffic are not ready; the others take it",
                    100 - percent
                );
                Condition::new("RoutesReady", "False", "RevisionMissing", message)
            }
        };
        let worst = [&configuration, &routes].into_iter().min_by_key(|condition| match condition.status {
            "False" => 0,
            "Unknown" => 1,
            _ => 2,
        });
        let ready = worst.map_or_else(
            || Condition::new("Ready", "Unknown", "", ""),
            |worst| Condition { kind: "Ready", ..worst.clone() },
        );
        [ready, configuration, routes]
    }

    /// A revision as operators see it.
    pub fn revision_view(&self, record: &ServiceRecord, revision: &RevisionRecord) -> RevisionView {
        let shares = record.shares(self.clock.now());
        let own = || shares.iter().filter(|share| share.revision == revision.name);
        let status = self.key_of(record, &revision.name).and_then(|key| self.pool.status(key));
        RevisionView {
            name: revision.name.clone(),
            generation: revision.generation,
            created_at: rfc3339(revision.created_at),
            digest: revision.digest.clone(),
            package: revision.package.clone(),
            artifact: revision.artifact.clone(),
            runtime: revision.spec.runtime.clone(),
            percent: own().map(|share| share.percent).sum(),
            tags: own().filter_map(|share| share.tag.clone()).collect(),
            instances: status.map(|status| InstancesView {
                desired: status.desired,
                ready: status.ready,
                starting: status.starting,
                draining: status.draining,
                queued: status.queued,
                in_flight: status.in_flight,
            }),
            notes: revision.notes.clone(),
            author: revision.author.clone(),
            reason: revision.reason.clone(),
            labels: revision.labels.clone(),
            aliases: record.aliases_of(&revision.name).map(str::to_owned).collect(),
            environment_version: revision.app_env.as_ref().map(|env| env.version),
            conditions: self.revision_conditions(record, revision),
        }
    }

    pub(crate) fn key_of(&self, record: &ServiceRecord, revision: &str) -> Option<RevisionKey> {
        self.revision_key(&record.namespace, &record.name, revision)
    }

    /// `Ready` first, then `Active`. That a package could be prepared proves nothing: a revision is `Ready` once a start
    /// has succeeded. It takes traffic before, or a revision that sleeps would never start.
    fn revision_conditions(&self, record: &ServiceRecord, revision: &RevisionRecord) -> Vec<Condition> {
        let status = self.key_of(record, &revision.name).and_then(|key| self.pool.status(key));
        let (blocked, started_before) = self.live(&record.path()).map_or((None, false), |live| {
            let state = live.state.lock();
            let blocked = state.observed.blocked.get(&revision.name).map(|blocked| blocked.message.clone());
            (blocked, state.started.contains(&revision.name))
        });
        let started =
            started_before || status.as_ref().is_some_and(|status| status.started || status.ready > 0);
        let ready = match &revision.state {
            RevisionState::Pending => {
                Condition::new("Ready", "Unknown", "Preparing", "its package is being prepared")
            }
            RevisionState::Failed { reason, message, .. } => {
                let word = if *reason == ErrorKind::InvalidSpec.as_str() {
                    "PackageRefused"
                } else {
                    "PrepareFailed"
                };
                Condition::new("Ready", "False", word, message.as_str())
            }
            RevisionState::Ready => {
                match (blocked, status.as_ref().and_then(|s| s.last_start_error.as_ref())) {
                    (Some(message), _) => Condition::new("Ready", "False", "PrepareFailed", message),
                    (None, Some(error)) => {
                        let failed = status.as_ref().map_or(0, |status| status.failed_starts);
                        let message = format!("{failed} starts failed in a row: {}", error.chain());
                        Condition::new("Ready", "False", "StartFailed", message)
                    }
                    (None, None) if started => Condition::new("Ready", "True", "", ""),
                    (None, None) => {
                        let gated = status.as_ref().and_then(|status| status.gated.as_deref());
                        let message = gated.unwrap_or(
                            "no instance has started since the platform runs; the next request starts one",
                        );
                        Condition::new("Ready", "Unknown", "NeverStarted", message)
                    }
                }
            }
        };
        let active = match &status {
            Some(status) if status.ready > 0 => Condition::new("Active", "True", "", ""),
            Some(status) if status.starting > 0 => {
                let message = status.gated.as_deref().unwrap_or("an instance starts");
                Condition::new("Active", "Unknown", "Starting", message)
            }
            Some(_) => Condition::new("Active", "False", "NoTraffic", "it sleeps; the next request wakes it"),
            None => Condition::new("Active", "False", "Retired", "it takes no traffic; a test run wakes it"),
        };
        vec![ready, active]
    }
}

/// `RolledOut`, for services of which traffic moves, or was kept from moving.
fn rolling_condition(record: &ServiceRecord) -> Option<Condition> {
    let rolling = record.rolling.as_ref()?;
    Some(match &rolling.reason {
        Some(reason) => Condition::new("RolledOut", "False", "Stopped", reason),
        None => {
            let message = format!("traffic moves from {} to {}", rolling.from, rolling.to);
            Condition::new("RolledOut", "Unknown", "Moving", message)
        }
    })
}

//! What a Pod's status says of an instance. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodStatus};
use sas_core::{Error, ErrorKind, ExitReport, Retry, Timestamp};

use crate::pod::MAIN;

/// Letters of a program's last words that are kept.
const MOST_WORDS: usize = 2000;

/// An instance as its Pod shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    /// Where it is reached: known as soon as it has a network, before the cluster calls it ready.
    pub(crate) address: Option<IpAddr>,
    /// The container that takes the requests runs, or did.
    pub(crate) has_run: bool,
    /// The cluster calls all the other containers ready.
    pub(crate) companions_ready: bool,
    /// Why it does not run yet.
    pub(crate) waits: Option<Waits>,
    /// It can't go on and is to be ended: why.
    pub(crate) doomed: Option<String>,
    /// Somebody has asked for its end: why, as far as it is said.
    pub(crate) leaving: Option<String>,
    /// How it ended.
    pub(crate) ended: Option<Ended>,
    /// Its node is out of sight, and nobody knows whether its programs have ended.
    pub(crate) is_lost: bool,
}

/// Why an instance does not run yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Waits {
    /// No node has room, or none fits.
    Unschedulable(String),
    /// It will not come up: what kind of error that is, and why.
    Hopeless(ErrorKind, String),
    /// Something else that may pass.
    Other(String),
}

/// The end of an instance.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ended {
    pub(crate) report: ExitReport,
    /// The end of what it wrote.
    pub(crate) words: Option<String>,
}

/// Reads a Pod. `now` stamps an end that has no time of its own.
pub(crate) fn read(pod: &Pod, now: Timestamp) -> Seen {
    let none = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&none);
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let init = status.init_container_statuses.as_deref().unwrap_or_default();
    let main = containers.iter().find(|container| container.name == MAIN);
    let ended_main = main.and_then(terminated);
    let mut seen = Seen {
        address: status.pod_ip.as_ref().and_then(|ip| ip.parse().ok()),
        has_run: main.and_then(|main| main.state.as_ref()).is_some_and(|state| state.running.is_some())
            || ended_main.is_some(),
        companions_ready: containers.iter().filter(|one| one.name != MAIN).all(|one| one.ready),
        leaving: pod.metadata.deletion_timestamp.as_ref().map(|_| why_leaving(status)),
        ..Seen::default()
    };
    let phase = status.phase.as_deref().unwrap_or_default();
    if let Some(end) = ended_main {
        seen.ended = Some(ended(end, status, now));
    } else if phase == "Failed" || phase == "Succeeded" {
        seen.ended = Some(unstarted(status, init, now));
    } else if seen.leaving.is_some() && is_lost(status) {
        // Nobody will say how it ended.
        let why = format!("the cluster has lost sight of its node{}", said(status));
        seen.ended = Some(Ended { report: ExitReport::at(now).with_reason(why), words: None });
        seen.is_lost = true;
    } else {
        let other = containers.iter().filter(|one| one.name != MAIN);
        seen.doomed = other
            .filter_map(|one| terminated(one).map(|end| format!("sidecar {:?} {}", one.name, shown(end))))
            .next();
        seen.waits = waits(status, init.iter().chain(containers));
    }
    seen
}

fn terminated(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    container.state.as_ref()?.terminated.as_ref()
}

/// Why a Pod is being deleted, as far as the cluster says.
fn why_leaving(status: &PodStatus) -> String {
    match disruption(status) {
        Some((reason, message)) => format!("{reason}: {message}"),
        None => match &status.reason {
            Some(reason) => reason.clone(),
            None => "the Pod was deleted".to_owned(),
        },
    }
}

/// What the cluster itself has against a Pod: eviction, preemption, a taint of its node.
fn disruption(status: &PodStatus) -> Option<(&str, &str)> {
    let condition = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True")?;
    let reason = condition.reason.as_deref().unwrap_or("DisruptionTarget");
    Some((reason, condition.message.as_deref().unwrap_or_default()))
}

fn is_lost(status: &PodStatus) -> bool {
    status.reason.as_deref() == Some("NodeLost")
        || disruption(status).is_some_and(|(reason, _)| reason == "DeletionByTaintManager")
}

fn said(status: &PodStatus) -> String {
    match (disruption(status), &status.message) {
        (_, Some(message)) if !message.is_empty() => format!(": {message}"),
        (Some((reason, message)), _) => format!(": {reason}: {message}"),
        _ => String::new(),
    }
}

fn cut(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(MOST_WORDS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// The container that takes the requests has ended.
fn ended(end: &ContainerStateTerminated, status: &PodStatus, now: Timestamp) -> Ended {
    let at = end.finished_at.as_ref().map_or(now, |at| Timestamp::from_millis(at.0.as_millisecond()));
    let mut report = ExitReport::at(at).with_code(end.exit_code);
    if let Some(signal) = end.signal.filter(|signal| *signal > 0) {
        report = report.with_signal(signal);
    }
    let words = end.message.as_deref().map(cut).filter(|words| !words.is_empty());
    if end.reason.as_deref() == Some("OOMKilled") {
        report = report.with_out_of_memory().with_reason("its limit of memory, resources.memory_limit_bytes");
    } else if let Some(reason) = status.reason.as_deref().filter(|reason| !reason.is_empty()) {
        report = report.with_reason(format!("{reason}{}", said(status)));
    } else if let Some((reason, message)) = disruption(status) {
        report = report.with_reason(format!("{reason}: {message}"));
    }
    Ended { report, words }
}

/// The Pod has ended, and the container that takes the requests never ran.
fn unstarted(status: &PodStatus, init: &[ContainerStatus], now: Timestamp) -> Ended {
    let failed =
        init.iter().filter_map(|one| Some((one, terminated(one)?))).find(|(_, end)| end.exit_code != 0);
    let (why, words) = match failed {
        Some((one, end)) => {
            let words = end.message.as_deref().map(cut).filter(|words| !words.is_empty());
            (format!("init container {:?} {}", one.name, shown(end)), words)
        }
        None => match status.reason.as_deref() {
            Some(reason) => (format!("{reason}{}", said(status)), None),
            None => (format!("the cluster has ended the Pod{}", said(status)), None),
        },
    };
    Ended { report: ExitReport::at(now).with_reason(why), words }
}

fn shown(end: &ContainerStateTerminated) -> String {
    match end.reason.as_deref() {
        Some("OOMKilled") => "was killed for want of memory".to_owned(),
        _ => format!("exited with status {}", end.exit_code),
    }
}

/// Why it does not run yet: what is hopeless first.
fn waits<'a>(status: &PodStatus, containers: impl Iterator<Item = &'a ContainerStatus>) -> Option<Waits> {
    let mut other = None;
    for container in containers {
        let Some(waiting) = container.state.as_ref().and_then(|state| state.waiting.as_ref()) else {
            continue;
        };
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let message = waiting.message.as_deref().unwrap_or_default();
        let what = format!("container {:?}: {reason}: {}", container.name, cut(message));
        match hopeless(reason, message) {
            Some(kind) => return Some(Waits::Hopeless(kind, what)),
            None if reason.is_empty() || reason == "PodInitializing" => {}
            None => other = other.or(Some(Waits::Other(what))),
        }
    }
    let scheduled = status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled");
    match scheduled {
        Some(condition) if condition.status == "False" => {
            let message = condition.message.clone().unwrap_or_default();
            Some(match condition.reason.as_deref() {
                Some("Unschedulable") => Waits::Unschedulable(message),
                reason => Waits::Other(format!("{}: {message}", reason.unwrap_or("not scheduled"))),
            })
        }
        _ => other,
    }
}

/// The kind of error of a container that will not come up.
fn hopeless(reason: &str, message: &str) -> Option<ErrorKind> {
    let says = |words: &[&str]| words.iter().any(|word| message.to_ascii_lowercase().contains(word));
    Some(match reason {
        "InvalidImageName" | "ErrImageNeverPull" | "CreateContainerConfigError" => ErrorKind::InvalidSpec,
        "ErrImagePull" | "ImagePullBackOff" | "ImageInspectError" => {
            if says(&["not found", "notfound", "manifest unknown", "name unknown"]) {
                ErrorKind::NotFound
            } else if says(&["unauthorized", "denied", "forbidden", "authorization failed", "no basic auth"])
            {
                ErrorKind::InvalidSpec
            } else {
                ErrorKind::Unavailable
            }
        }
        "RegistryUnavailable" => ErrorKind::Unavailable,
        "CreateContainerError" | "RunContainerError" | "CrashLoopBackOff" => ErrorKind::Crashed,
        _ => return None,
    })
}

impl Seen {
    /// The error of a start that is over with this, if it is.
    pub(crate) fn start_error(&self) -> Option<Error> {
        if let Some(end) = &self.ended {
            return Some(end.before_ready());
        }
        if let Some(why) = &self.doomed {
            return Some(Error::new(
                ErrorKind::Crashed,
                "start",
                format!("{why} before the instance was ready"),
            ));
        }
        if let Some(Waits::Hopeless(kind, why)) = &self.waits {
            let error = Error::new(*kind, "start", why.clone());
            return Some(match kind {
                ErrorKind::Unavailable => error.with_retry(Retry::After(std::time::Duration::from_secs(5))),
                _ => error,
            });
        }
        self.leaving.as_ref().map(|why| {
            Error::new(ErrorKind::Crashed, "start", format!("{why}, before the instance was ready"))
        })
    }
}

impl Ended {
    fn before_ready(&self) -> Error {
        let words = self.words.as_ref().map_or(String::new(), |words| format!("; its last words: {words}"));
        let what = format!("the container {} before it was ready{words}", self.report);
        Error::new(ErrorKind::Crashed, "start", what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn seen(status: Value) -> Seen {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a"}, "status": status})).unwrap();
        read(&pod, Timestamp::from_millis(5))
    }

    fn leaving(status: Value) -> Seen {
        let metadata = json!({"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        let pod: Pod = serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap();
        read(&pod, Timestamp::from_millis(5))
    }

    fn main_is(state: Value) -> Value {
        json!({"phase": "Running", "containerStatuses": [
            {"name": MAIN, "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": state}
        ]})
    }

    #[test]
    fn an_address_is_enough_to_be_asked() {
        let seen = seen(json!({"phase": "Pending", "podIP": "10.1.2.3"}));
        assert_eq!(seen.address, Some([10, 1, 2, 3].into()));
        assert!(seen.start_error().is_none());
    }

    #[test]
    fn each_reason_why_a_container_does_not_come_up_is_an_error_of_its_kind() {
        use ErrorKind::{Crashed, InvalidSpec, NotFound, Unavailable};
        for (reason, message, kind) in [
            ("ErrImagePull", "failed to resolve: registry/x:1: not found", Some(NotFound)),
            ("ImagePullBackOff", "Back-off pulling image: 401 Unauthorized", Some(InvalidSpec)),
            ("ErrImagePull", "dial tcp 127.0.0.1:1: connect: connection refused", Some(Unavailable)),
            ("InvalidImageName", "couldn't parse image name", Some(InvalidSpec)),
            (
                "CreateContainerConfigError",
                "container has runAsNonRoot and image will run as root",
                Some(InvalidSpec),
            ),
            ("RunContainerError", "exec: \"/nope\": no such file", Some(Crashed)),
            ("ContainerCreating", "", None),
        ] {
            let seen = seen(main_is(json!({"waiting": {"reason": reason, "message": message}})));
            let error = seen.start_error();
            assert_eq!(error.as_ref().map(|error| error.kind), kind, "{reason}");
            assert!(error.is_none_or(|error| error.message.contains(message)));
        }
    }

    #[test]
    fn a_pod_without_a_node_waits_and_says_for_what() {
        let waits = seen(json!({"phase": "Pending", "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient memory."
        }]}))
        .waits;
        let expected = Waits::Unschedulable("0/3 nodes are available: 3 Insufficient memory.".into());
        assert_eq!(waits, Some(expected));
    }

    #[test]
    fn ends_have_their_status_their_ceiling_and_their_last_words() {
        let finished = "2026-01-01T00:00:01Z";
        let oom = seen(main_is(json!({"terminated":
            {"exitCode": 137, "reason": "OOMKilled", "finishedAt": finished}})));
        let report = oom.ended.unwrap().report;
        assert!(report.out_of_memory && report.code == Some(137), "{report:?}");
        assert_eq!(report.at, Timestamp::from_millis(1_767_225_601_000));
        let crash = seen(main_is(json!({"terminated":
            {"exitCode": 3, "reason": "Error", "message": "no configuration\n", "finishedAt": finished}})));
        let error = crash.start_error().unwrap();
        assert_eq!(error.kind, ErrorKind::Crashed);
        assert!(
            error
                .message
                .ends_with("exited with status 3 before it was ready; its last words: no configuration")
        );
    }

    #[test]
    fn evictions_preemption_and_lost_nodes_are_ends_with_their_reason() {
        let evicted = seen(json!({"phase": "Failed", "reason": "Evicted",
            "message": "The node was low on resource: memory."}));
        let report = evicted.ended.unwrap().report;
        assert_eq!(report.to_string(), "ended (Evicted: The node was low on resource: memory.)");
        let mut preempted = main_is(json!({"terminated": {"exitCode": 143, "reason": "Error"}}));
        preempted["conditions"] = json!([{"type": "DisruptionTarget", "status": "True",
            "reason": "PreemptionByScheduler", "message": "for a Pod of higher priority"}]);
        let report = leaving(preempted).ended.unwrap().report;
        assert!(
            report.to_string().contains("PreemptionByScheduler: for a Pod of higher priority"),
            "{report}"
        );
        let mut lost = main_is(json!({"running": {}}));
        lost["conditions"] = json!([{"type": "DisruptionTarget", "status": "True",
            "reason": "DeletionByTaintManager", "message": "Taint manager: deleting due to NoExecute taint"}]);
        let lost = leaving(lost);
        assert!(lost.is_lost);
        let report = lost.ended.unwrap().report;
        assert!(report.to_string().contains("lost sight of its node"), "{report}");
        let by_hand = leaving(main_is(json!({"running": {}})));
        assert_eq!((by_hand.leaving.as_deref(), by_hand.ended), (Some("the Pod was deleted"), None));
    }

    #[test]
    fn the_end_of_a_sidecar_dooms_the_instance_and_that_of_an_init_container_is_its_own() {
        let sidecar = seen(json!({"phase": "Running", "containerStatuses": [
            {"name": MAIN, "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}},
            {"name": "proxy", "ready": false, "restartCount": 0, "image": "", "imageID": "",
             "state": {"terminated": {"exitCode": 2}}},
        ]}));
        assert_eq!(sidecar.doomed.as_deref(), Some("sidecar \"proxy\" exited with status 2"));
        assert!(!sidecar.companions_ready);
        let init = seen(json!({"phase": "Failed", "initContainerStatuses": [
            {"name": "migrate", "ready": false, "restartCount": 0, "image": "", "imageID": "",
             "state": {"terminated": {"exitCode": 4, "message": "the schema is too old"}}},
        ]}));
        let error = init.start_error().unwrap();
        assert!(error.message.contains("init container \"migrate\" exited with status 4"), "{error}");
        assert!(error.message.contains("the schema is too old"), "{error}");
    }
}

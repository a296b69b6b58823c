//! What the vocabulary promises.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use sas_core::{
    Body, Claim, Clock, ContainerSpec, Error, ErrorKind, Event, Lease, Mount, Probe, ProbeAction, Resources,
    Result, Retry, RevisionKey, RevisionName, RevisionSpec, ScalingSpec, Secret, Source, SpecErrors,
    SystemClock, TenantKey, Timeouts, Timestamp, TokioClock, WaitList, Waiting,
};

struct Broken;

impl futures_util::Stream for Broken {
    type Item = std::result::Result<http_body::Frame<Bytes>, std::io::Error>;
    fn poll_next(self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(Some(Err(std::io::Error::other("reset"))))
    }
}

#[tokio::test]
async fn collect_refuses_a_body_over_the_limit() {
    assert_eq!(Body::from("abcd").collect(4).await.expect("four bytes"), "abcd");
    assert!(Body::from("abcde").collect(4).await.is_err());
}

#[test]
fn only_bodies_in_memory_can_be_sent_again() {
    assert!(Body::empty().try_clone().is_some());
    assert!(Body::from("x").try_clone().is_some());
    assert!(Body::new(http_body_util::StreamBody::new(Broken)).try_clone().is_none());
}

#[test]
fn timestamps_saturate_and_round_down() {
    assert_eq!(Timestamp(-1).as_secs(), -1);
    assert_eq!(Timestamp::from_secs(i64::MAX), Timestamp(i64::MAX));
    assert_eq!(Timestamp(i64::MAX) + Duration::from_secs(1), Timestamp(i64::MAX));
    assert_eq!(Timestamp(5).since(Timestamp(9)), Duration::ZERO);
    assert!(SystemClock.now() > Timestamp::from_secs(1_700_000_000));
}

#[tokio::test(start_paused = true)]
async fn tokio_clock_moves_with_the_paused_clock() {
    let clock = TokioClock::starting_at(Timestamp::from_secs(10));
    tokio::time::advance(Duration::from_millis(1500)).await;
    assert_eq!(clock.now(), Timestamp::from_millis(11_500));
}

#[test]
fn keys_and_names_come_apart_again() {
    let key = RevisionKey::new(u32::MAX, 3);
    assert_eq!((key.slot(), key.generation()), (u32::MAX, 3));
    let name = RevisionName::new("team-a", "shop", "shop-00012");
    assert_eq!(name.service_path(), "team-a/shop");
    assert_eq!((name.namespace(), name.service(), name.revision()), ("team-a", "shop", "shop-00012"));
}

#[test]
fn secrets_do_not_show_in_debug() {
    assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter2"));
}

#[test]
fn a_spec_reports_all_its_mistakes_with_their_fields() {
    let mut spec = RevisionSpec::new("", Source::Path("x".into()));
    assert_eq!(spec.validate(), Ok(()), "without a runtime the control plane asks which one accepts it");
    spec.version = 9;
    spec.port = Some(0);
    spec.queue_limit = 0;
    spec.working_dir = Some("../up".to_owned());
    spec.scaling.min = 5;
    spec.scaling.max = 2;
    spec.readiness = Some(Probe::new(ProbeAction::Exec { command: Vec::new() }));
    spec.startup =
        Some(Probe::new(ProbeAction::Http { path: "no slash".into(), port: Some(0), headers: vec![] }));
    let errors = spec.validate().expect_err("eight mistakes");
    let fields: Vec<&str> = errors.0.iter().map(|e| e.field.as_str()).collect();
    let startup = ["startup.action.http.path", "startup.action.port"];
    assert_eq!(fields[..4], ["version", "port", "queue_limit", "working_dir"]);
    assert_eq!(fields[4..6], startup);
    assert_eq!(fields[6..], ["readiness.action.exec.command", "scaling.min"]);
    let error = Error::from(errors);
    assert_eq!((error.kind, error.retry), (ErrorKind::InvalidSpec, Retry::Never));
    assert!(error.to_string().contains("queue_limit: \"0\""));
}

#[test]
fn a_spec_survives_a_round_trip_and_refuses_unknown_fields() {
    let spec = RevisionSpec::new("process", Source::Path("x".into()));
    let json = serde_json::to_value(&spec).expect("serialises");
    assert_eq!(serde_json::from_value::<RevisionSpec>(json.clone()).expect("reads"), spec);
    let mut unknown = json;
    unknown["nonsense"] = 1.into();
    assert!(serde_json::from_value::<RevisionSpec>(unknown).is_err());
}

#[test]
fn what_only_a_container_can_be_given_is_refused_by_name() {
    let mut spec = RevisionSpec::new("process", Source::Path("x".into()));
    assert!(spec.container_fields("process").is_empty());
    let mut container = ContainerSpec::default();
    container.mounts.push(Mount::new("data", "/data"));
    container.security.run_as_user = Some(65_532);
    container.other.insert("containers[0].tty".into(), "true".into());
    spec.container = Some(Box::new(container));
    let refused = spec.container_fields("process");
    let fields: Vec<&str> = refused.0.iter().map(|e| e.field.as_str()).collect();
    let expected =
        ["container.mounts[0]", "container.security.run_as_user", "container.other[containers[0].tty]"];
    assert_eq!(fields, expected);
    let json = serde_json::to_value(&spec).expect("serialises");
    assert_eq!(serde_json::from_value::<RevisionSpec>(json).expect("reads"), spec);
}

#[test]
fn a_spec_as_it_was_stored_before_there_were_containers_reads_and_is_written_as_it_was() {
    let stored = serde_json::json!({
        "version": 1, "runtime": "process", "source": {"path": "x"}, "command": [], "args": [],
        "working_dir": null, "env": {}, "port": null, "protocol": "http1", "concurrency": 0,
        "timeouts": Timeouts::default(), "resources": Resources::default(), "readiness": null, "liveness": null,
        "queue_limit": 10_000, "scaling": ScalingSpec::default(), "options": {},
    });
    let spec: RevisionSpec = serde_json::from_value(stored.clone()).expect("reads");
    assert_eq!(spec, RevisionSpec::new("process", Source::Path("x".into())));
    assert_eq!(serde_json::to_value(&spec).expect("serialises"), stored, "so its digest stays");
}

#[test]
fn not_a_number_is_no_valid_target() {
    let mut spec = ScalingSpec::default();
    assert_eq!(spec.validate(), Ok(()));
    spec.target = f64::NAN;
    let SpecErrors(errors) = spec.validate().expect_err("NaN");
    assert_eq!(errors[0].field, "target");
}

#[test]
fn events_are_valid_by_construction() {
    assert!(Event::new("", "s", "t").is_err());
    assert!(Event::new("1", "s", "t\n").is_err());
    let event = Event::new("1", "s", "t").expect("valid");
    assert!(event.clone().with_extension("Bad", "1").is_err());
    assert!(event.clone().with_extension("id", "1").is_err());
    assert_eq!(event.with_extension("fireid", "9").expect("valid").extensions()["fireid"], "9");
}

struct Never {
    left: AtomicU32,
}

impl WaitList for Never {
    fn poll(
        &self,
        _: u64,
        _: &mut std::task::Context<'_>,
    ) -> Poll<std::result::Result<Lease, sas_core::ClaimError>> {
        Poll::Pending
    }
    fn leave(&self, _: u64) {
        self.left.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_dropped_wait_leaves_its_place() {
    let list = Arc::new(Never { left: AtomicU32::new(0) });
    drop(Waiting::queued(Arc::clone(&list) as Arc<dyn WaitList>, 1));
    assert_eq!(list.left.load(Ordering::Relaxed), 1);
    let _claim = Claim::new(RevisionKey(1), TenantKey(1));
}

fn boxes<E: std::error::Error + Send + Sync + 'static>() {}

#[test]
fn every_error_goes_through_the_question_mark() {
    boxes::<Error>();
    boxes::<sas_core::CallError>();
    boxes::<sas_core::ClaimError>();
    boxes::<sas_core::RouteError>();
    boxes::<SpecErrors>();

    fn send() -> Result<(), sas_core::BoxError> {
        let request = http::Request::new(Body::from("kept"));
        let error = Error::new(ErrorKind::Unavailable, "call", "nobody is there");
        Err(sas_core::CallError::unsent(error, request))?
    }
    let boxed = send().unwrap_err();
    let mut error = *boxed.downcast::<sas_core::CallError>().unwrap();
    let request = error.unsent.take().expect("the request is still there");
    assert_eq!(http_body::Body::size_hint(request.body()).exact(), Some(4));
    assert_eq!(Error::from(error).kind, ErrorKind::Unavailable);
}

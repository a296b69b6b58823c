//! The Kubernetes runtime passes the suite for runtimes on a real cluster, with the rights of the shipped Role.

use std::{sync::Arc, time::Duration};

use crate::support::{Place, app, place};
use sas_core::{RevisionSpec, Runtime, Source};
use sas_runtime_kubernetes::KubernetesRuntime;
use sas_testkit::runtime::{self, Fixtures};

/// Starts take time, calls go over a socket and belong to the data plane, a Pod has no stem, and this cluster measures
/// nothing.
const SKIPPED: [&str; 8] = [
    "try_start does what start does",
    "a call ends at its deadline",
    "running calls finish within the grace",
    "stem becomes",
    "stem that is stopped",
    "suspend and resume",
    "a suspended instance",
    "usage is told",
];

async fn fixtures(place: &Arc<Place>) -> (Arc<Place>, Fixtures) {
    let config = place.config("suite").await;
    let admin = place.cluster.lock().await.admin().clone();
    let runtime = Arc::new(KubernetesRuntime::open(config).await.unwrap_or_else(|error| panic!("{error}")));
    let mut relative = app(&[]);
    relative.working_dir = Some("somewhere".into());
    let mut blank = app(&[]);
    blank.source = Source::Image("no image".into());
    let mut mounts = app(&[]);
    let mut container = sas_core::ContainerSpec::default();
    container.pull_secrets.push("registry".into());
    mounts.container = Some(Box::new(container));
    // What only the cluster knows to be wrong.
    let mut variable = app(&[]);
    variable.env.insert("\u{1}".into(), sas_core::EnvValue::Literal("x".into()));
    let fixtures = Fixtures::new(Arc::clone(&runtime) as Arc<dyn Runtime>, app(&[]))
        .slow(app(&["always=/slow"]))
        .endless(app(&["always=/endless"]))
        .crash_on_start(app(&["exit"]))
        .never_ready(app(&["deaf"]))
        .crash_on_call(app(&[]))
        .ignores_stop(app(&["stubborn"]))
        .chatty(app(&[]))
        .environment(app(&["always=/env"]))
        .invalid(RevisionSpec::new("kubernetes", Source::Path("no/such/file".into())), "source")
        .invalid(blank, "no image")
        .invalid(relative, "working_dir")
        .invalid(mounts, "container.pull_secrets[0]")
        .invalid(variable, "pod.spec.containers[0].env[0].name")
        .census(move || admin.names("suite", "pods"))
        .start_limit(Duration::from_secs(60));
    (Arc::clone(place), fixtures)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_pass_the_runtime_suite_under_the_shipped_role() {
    let Some(place) = place().await else { return };
    let _shared = place.shared().await;
    let report = runtime::suite(async || fixtures(&place).await).await;
    println!("{report}");
    report.assert_passed_skipping(&SKIPPED);
}

//! What goes wrong in a real cluster, and what is told of it: under the rights of the shipped Role.

use std::{sync::Arc, time::Duration};

use crate::support::{
    APP, Started, app, deployed, get, place, start, start_deployed, start_with_secret, until,
};
use sas_core::{
    Companion, ContainerSpec, EnvValue, ErrorKind, Probe, ProbeAction, Resources, Runtime as _, Source,
};
use sas_runtime_kubernetes::KubernetesRuntime;
use tokio::time::Instant;

/// A start error is told when the cluster says it, far from the deadline.
const SOON: Duration = Duration::from_secs(25);

macro_rules! needs_cluster {
    () => {
        match place().await {
            Some(place) => place,
            None => return,
        }
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_come_up_fails_with_the_clusters_own_words_and_not_at_the_deadline() {
    let place = needs_cluster!();
    let _shared = place.shared().await;
    let config = place.config("start-errors").await;
    let admin = place.cluster.lock().await.admin().clone();
    let runtime = Arc::new(KubernetesRuntime::open(config).await.unwrap());
    // Nothing listens at port 1; a name with capitals is none; nothing is at that path.
    let mut unreachable = app(&[]);
    unreachable.source = Source::Image("127.0.0.1:1/none:1".into());
    let mut misnamed = app(&[]);
    misnamed.source = Source::Image("Not/A/Name:1".into());
    let mut no_program = app(&[]);
    no_program.command = vec!["/nope".into()];
    let mut as_root = app(&[]);
    let mut container = ContainerSpec::default();
    container.security.run_as_non_root = Some(true);
    as_root.container = Some(Box::new(container));
    let mut init_fails = app(&[]);
    let mut container = ContainerSpec::default();
    let mut migrate = Companion::new("migrate", APP);
    migrate.args = ["once", "fail"].map(str::to_owned).to_vec();
    container.init.push(migrate);
    init_fails.container = Some(Box::new(container));
    for (number, (spec, kind, mentions)) in [
        (unreachable, ErrorKind::Unavailable, "connection refused"),
        (misnamed, ErrorKind::InvalidSpec, "InvalidImageName"),
        (no_program, ErrorKind::Crashed, "/nope"),
        (as_root, ErrorKind::InvalidSpec, "runAsNonRoot"),
        (init_fails, ErrorKind::Crashed, "the schema is too old"),
        (app(&["exit"]), ErrorKind::Crashed, "cannot find my configuration"),
    ]
    .into_iter()
    .enumerate()
    {
        let began = Instant::now();
        let error = start(&runtime, spec, number as u64).await.err().expect(mentions);
        let took = began.elapsed();
        println!("{took:>10.2?}  {:?}: {}", error.kind, error.message);
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(mentions), "{error}");
        assert!(took < SOON, "{mentions} took {took:?}");
    }
    runtime.quiesce().await;
    assert_eq!(admin.names("start-errors", "pods"), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_room_is_exhaustion_that_says_what_is_missing() {
    let place = needs_cluster!();
    let _shared = place.shared().await;
    let config = place.config("no-room").await;
    let runtime = Arc::new(KubernetesRuntime::open(config).await.unwrap());
    let mut large = app(&[]);
    let mut resources = Resources::default();
    resources.memory_request_bytes = Some(1 << 50);
    resources.memory_limit_bytes = Some(1 << 50);
    large.resources = resources;
    large.timeouts.start = Duration::from_secs(3);
    let error = start(&runtime, large, 1).await.err().expect("a petabyte");
    assert_eq!(error.kind, ErrorKind::Exhausted, "{error}");
    assert!(error.message.contains("Insufficient memory"), "{error}");
    // And of a quota, at once.
    let quota = "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: few}\nspec: {hard: {pods: \"0\"}}\n";
    place.cluster.lock().await.admin().run(&["-n", "no-room", "apply", "-f", "-"], quota);
    let error = start(&runtime, app(&[]), 2).await.err().expect("a quota of none");
    assert_eq!(error.kind, ErrorKind::Exhausted, "{error}");
    assert!(error.message.contains("exceeded quota: few"), "{error}");
    runtime.quiesce().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_are_told_once_with_their_reasons() {
    let place = needs_cluster!();
    let _shared = place.shared().await;
    let config = place.config("ends").await;
    let runtime = Arc::new(KubernetesRuntime::open(config).await.unwrap());
    let mut small = app(&[]);
    small.resources.memory_limit_bytes = Some(48 << 20);
    let (greedy, leaves, by_hand) = tokio::join!(
        start(&runtime, small, 1),
        start(&runtime, app(&[]), 2),
        start(&runtime, app(&["stubborn"]), 3),
    );
    let (greedy, leaves, by_hand) = (greedy.unwrap(), leaves.unwrap(), by_hand.unwrap());

    let _ = get(&*greedy.instance, "/grow/400").await;
    let _ = get(&*leaves.instance, "/exit/7").await;
    let name = format!("{:?}", by_hand.instance);
    let name = name.split("pod: \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap().to_owned();
    place
        .cluster
        .lock()
        .await
        .admin()
        .run(&["-n", "ends", "delete", "pod", &name, "--wait=false", "--grace-period=1"], "");

    let told = |started: &Started| started.events.exits().len() == 1;
    until("three ends", Duration::from_secs(30), || told(&greedy) && told(&leaves) && told(&by_hand)).await;
    let report = |started: &Started| started.events.exits()[0].1.clone();
    assert!(report(&greedy).out_of_memory, "{:?}", report(&greedy));
    assert_eq!(report(&leaves).code, Some(7));
    println!("{}; {}; {}", report(&greedy), report(&leaves), report(&by_hand));
    runtime.quiesce().await;
    assert!(told(&greedy) && told(&leaves) && told(&by_hand), "an end was told twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_reaches_its_instance_and_goes_with_it() {
    let place = needs_cluster!();
    let _shared = place.shared().await;
    let config = place.config("secrets").await;
    let admin = place.cluster.lock().await.admin().clone();
    let runtime = Arc::new(KubernetesRuntime::open(config).await.unwrap());
    let mut spec = app(&["always=/env"]);
    spec.env.insert("TOKEN".into(), EnvValue::Secret("secret/app/token".into()));
    let started = start_with_secret(&runtime, spec, "TOKEN", "hunter-2-secret").await.unwrap();
    let env = get(&*started.instance, "/").await.unwrap();
    assert!(env.contains("TOKEN=hunter-2-secret"), "{env}");
    let pods = admin.run(&["-n", "secrets", "get", "pods", "-o", "json"], "");
    assert!(!pods.contains("hunter-2-secret"), "the value is in the Pod");
    started.instance.stop(Duration::from_secs(1)).await.unwrap();
    runtime.quiesce().await;
    assert_eq!(admin.names("secrets", "secrets"), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_run_in_the_instance_and_probes_may_be_commands() {
    let place = needs_cluster!();
    let _shared = place.shared().await;
    let config = place.config("commands").await;
    let runtime = Arc::new(KubernetesRuntime::open(config).await.unwrap());
    let mut spec = app(&[]);
    let command = ["/bin/app", "once", "connect", "8080"].map(str::to_owned).to_vec();
    spec.readiness = Some(Probe::new(ProbeAction::Exec { command }));
    let started = start(&runtime, spec, 1).await.unwrap();
    let run = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let done = started.instance.exec(&run(&["/bin/app", "once", "fail"])).await.unwrap();
    assert_eq!(done.code, Some(4));
    assert!(String::from_utf8_lossy(&done.output).contains("the schema is too old"));
    let error = started.instance.exec(&run(&["/nope"])).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    started.instance.stop(Duration::from_secs(1)).await.unwrap();
    runtime.quiesce().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_host_has_left_is_taken_away_by_another_and_by_no_other_platform() {
    let place = needs_cluster!();
    let _shared = place.shared().await;
    let config = place.config("orphans").await;
    let admin = place.cluster.lock().await.admin().clone();
    let pods = || admin.names("orphans", "pods");
    // A host that ends without a word: its runtime of tasks is gone with all that it was doing.
    let died = config.clone();
    let left = std::thread::spawn(move || {
        let tasks =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let left = tasks.block_on(async {
            let runtime = Arc::new(KubernetesRuntime::open(died).await.unwrap());
            let started = start(&runtime, app(&[]), 1).await.unwrap();
            (runtime, started.instance)
        });
        tasks.shutdown_background();
        left
    })
    .join()
    .unwrap();
    assert_eq!(pods().len(), 1);

    let mut other = config.clone();
    other.platform = "other".into();
    let other = KubernetesRuntime::open(other).await.unwrap();
    tokio::time::sleep(config.term * 3).await;
    assert_eq!(pods().len(), 1, "another platform touched it");

    let began = Instant::now();
    let heir = KubernetesRuntime::open(config.clone()).await.unwrap();
    until("the Pod of the dead host to go", Duration::from_secs(30), || pods().is_empty()).await;
    println!("taken away {:?} after another host began; the term is {:?}", began.elapsed(), config.term);
    assert!(began.elapsed() >= config.term, "it was not listened to for a whole term");
    drop((heir, other));
    // Nobody drops it in an orderly way.
    std::mem::forget(left);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_api_server_is_away_what_runs_goes_on_and_starts_say_so() {
    let place = needs_cluster!();
    let _alone = place.alone().await;
    let mut config = place.config("away").await;
    config.patience = Duration::from_secs(3);
    let runtime = Arc::new(KubernetesRuntime::open(config).await.unwrap());
    let started = start(&runtime, app(&[]), 1).await.unwrap();
    let spec = deployed(&runtime, app(&[])).await.unwrap();
    {
        let mut cluster = place.cluster.lock().await;
        cluster.kill_server();
        let began = Instant::now();
        let error = start_deployed(&runtime, &spec, 2).await.err().expect("nobody answers");
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(get(&*started.instance, "/").await.is_ok(), "warm traffic goes on");
        cluster.start_server().await;
    }
    // The watch is there again: an end is seen.
    let after = start(&runtime, app(&[]), 3).await.unwrap();
    let _ = get(&*after.instance, "/exit/5").await;
    until("the end after the outage", Duration::from_secs(30), || after.events.exits().len() == 1).await;
    assert!(started.events.exits().is_empty());
    started.instance.stop(Duration::from_secs(1)).await.unwrap();
    runtime.quiesce().await;
}

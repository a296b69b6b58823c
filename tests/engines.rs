//! Several engines in one platform: who is on which, what is set aside, and what that gives.

use std::{sync::Arc, time::Duration};

use sas::{
    core::{DEFAULT_ENGINE, Isolation},
    prelude::*,
};
use tokio::sync::Semaphore;

/// A function that holds its instance until it is let go, and one that answers at once.
fn functions(gate: &Arc<Semaphore>) -> InlineRuntime {
    let gate = Arc::clone(gate);
    InlineRuntime::new()
        .with("holds", move |_: Request, _cx| {
            let gate = Arc::clone(&gate);
            async move {
                let _turn = gate.acquire().await;
                Response::new(Body::from("held"))
            }
        })
        .with("answers", |_: Request, _cx| async { Response::new(Body::from("here")) })
}

fn one_at_a_time(function: &str) -> RevisionSpec {
    let mut spec = RevisionSpec::new("inline", Source::Function(function.to_owned()));
    spec.concurrency = 1;
    spec
}

fn get(namespace: &str, name: &str) -> Request {
    let host = format!("{name}.{namespace}.localhost");
    http::Request::get("/").header("host", host).body(Body::empty()).expect("a request")
}

#[tokio::test]
async fn what_is_set_aside_for_an_engine_is_there_when_others_take_all_they_can() {
    let gate = Arc::new(Semaphore::new(0));
    let mut bank = EngineSpec::new("bank", EngineKind::Dedicated);
    bank.namespaces.push("bank".to_owned());
    bank.reserved.instances = Some(2);
    let platform = Platform::builder()
        .runtime(functions(&gate))
        .configure_pool(|pool| pool.budget.instances = 6)
        .engine(bank)
        .build()
        .await
        .expect("a platform");
    platform.deploy("default", "greedy", one_at_a_time("holds")).await.expect("deployed");
    platform.deploy("bank", "teller", one_at_a_time("answers")).await.expect("deployed");

    let gateway = platform.gateway();
    let crowd: Vec<_> = (0..20)
        .map(|_| {
            let gateway = Arc::clone(gateway);
            tokio::spawn(async move { gateway.handle(get("default", "greedy")).await.status() })
        })
        .collect();
    let key = |namespace: &str, name: &str| {
        let revision = format!("{name}-00001");
        platform.control().revision_key(namespace, name, &revision).expect("it runs")
    };
    let (greedy, teller) = (key("default", "greedy"), key("bank", "teller"));
    assert_ne!(greedy.place(), teller.place(), "two engines");
    while platform.pool().status(greedy).is_none_or(|status| status.ready < 4) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let status = platform.pool().status(greedy).expect("it is there");
    assert_eq!(
        (status.ready, status.starting.min(1)),
        (4, 1),
        "the default engine has what was not set aside"
    );

    for _ in 0..3 {
        assert_eq!(gateway.handle(get("bank", "teller")).await.status(), 200, "its own engine has room");
    }
    assert_eq!(platform.pool().totals().instances, 5);
    let drivers = [greedy, teller].map(|key| platform.driver_of(key).expect("each engine is driven"));
    assert!(!Arc::ptr_eq(&drivers[0], &drivers[1]));

    gate.add_permits(20);
    for one in crowd {
        assert_eq!(one.await.expect("it ends"), 200);
    }
    assert!(platform.shutdown(Duration::from_secs(5)).await.drained);
}

#[tokio::test]
async fn a_shared_engine_keeps_its_tenants_on_the_isolation_that_it_states() {
    let gate = Arc::new(Semaphore::new(0));
    let mut trusted = EngineSpec::new("trusted", EngineKind::Dedicated);
    trusted.namespaces.push("ours".to_owned());
    let platform = Platform::builder()
        .runtime(functions(&gate))
        .engine(EngineSpec::new(DEFAULT_ENGINE, EngineKind::shared(Isolation::Process)))
        .engine(trusted)
        .build()
        .await
        .expect("a platform");
    platform.deploy("ours", "hello", one_at_a_time("answers")).await.expect("its owner trusts it");
    let refused = platform.deploy("theirs", "hello", one_at_a_time("answers")).await.expect_err("weaker");
    assert_eq!(refused.kind, ErrorKind::Unsupported);
    assert!(refused.message.contains("asks for isolation Process or stronger"), "{refused}");
    platform.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn engines_that_can_not_be_are_refused_with_the_field() {
    let build = async |change: fn(&mut [EngineSpec; 2])| {
        let mut specs = ["one", "two"].map(|name| EngineSpec::new(name, EngineKind::Dedicated));
        change(&mut specs);
        let [one, two] = specs;
        let builder = Platform::builder()
            .runtime(functions(&Arc::new(Semaphore::new(0))))
            .configure_pool(|pool| pool.budget.instances = 6)
            .engine(one)
            .engine(two);
        builder.build().await.expect_err("refused").to_string()
    };
    let error = build(|specs| specs[1].name = "Two".to_owned()).await;
    assert!(error.contains("engines: ") && error.contains("name"), "{error}");
    let error = build(|specs| specs.iter_mut().for_each(|spec| spec.namespaces = vec!["a".to_owned()])).await;
    assert!(error.contains("namespace a is on the engine one"), "{error}");
    let error = build(|specs| specs.iter_mut().for_each(|spec| spec.reserved.instances = Some(3))).await;
    assert!(error.contains("reserved.instances") && error.contains("ask for fewer"), "{error}");
}

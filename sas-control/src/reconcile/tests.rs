//! Laws of reconciling, over random histories of what is wanted and what runs.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Command, GcLimits, NO_GC, Observed, Registration, Rules, collectable, reconcile, reconcile_part,
};
use crate::{
    RevisionState, ServiceRecord,
    spread::{Part, PartState, Range, Standing},
};
use proptest::prelude::*;
use sas_core::{HostPattern, HostShare, Quota, RevisionKey, RouteAction, RouteChange, Timestamp};
use sas_knative::manifest::TrafficTarget;
use serde_json::json;

#[derive(Clone, Debug)]
enum Step {
    /// A new revision, which can be prepared or not.
    Deploy {
        good: bool,
    },
    /// Traffic between two revisions by number.
    Split(usize, usize, u32),
    Latest,
    Rollout,
    Pass(u64),
    TestRun(usize),
    Delete,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<bool>().prop_map(|good| Step::Deploy { good }),
        2 => (0_usize..6, 0_usize..6, 0_u32..=100).prop_map(|(a, b, weight)| Step::Split(a, b, weight)),
        1 => Just(Step::Latest),
        1 => Just(Step::Rollout),
        3 => (0_u64..200_000).prop_map(Step::Pass),
        1 => (0_usize..6).prop_map(Step::TestRun),
        1 => Just(Step::Delete),
    ]
}

/// A service and its world, in which commands do what they say at once.
struct Model {
    record: Option<ServiceRecord>,
    good: BTreeMap<String, bool>,
    observed: Observed,
    now: Timestamp,
    next_key: u32,
    rules: Rules,
}

fn empty() -> ServiceRecord {
    serde_json::from_value(json!({
        "format": 1, "namespace": "default", "name": "hello", "tenant": 1, "generation": 1, "created_at": 0,
        "labels": {}, "annotations": {}, "cluster_local": false, "traffic": [{"percent": 100}],
        "rollout": {"secs": 0, "nanos": 0}, "next_number": 1, "revisions": [],
    }))
    .expect("a record")
}

impl Model {
    fn new() -> Self {
        let rules = Rules::new("example.org");
        Self {
            record: Some(empty()),
            good: BTreeMap::new(),
            observed: Observed::default(),
            now: Timestamp(0),
            next_key: 0,
            rules,
        }
    }

    fn ready(&self) -> Vec<String> {
        let record = self.record.iter().flat_map(|record| &record.revisions);
        record
            .filter(|revision| revision.state == RevisionState::Ready)
            .map(|revision| revision.name.clone())
            .collect()
    }

    fn apply(&mut self, step: &Step) {
        let ready = self.ready();
        match step {
            Step::Deploy { good } => {
                let Some(record) = &mut self.record else {
                    self.record = Some(empty());
                    return;
                };
                let name = format!("hello-{:05}", self.good.len() + 1);
                let spec = serde_json::to_value(sas_core::RevisionSpec::new(
                    "process",
                    sas_core::Source::Path("a".into()),
                ))
                .unwrap();
                record.revisions.push(
                    serde_json::from_value(json!({
                        "name": name, "generation": 1, "created_at": self.now, "digest": name, "package": null,
                        "artifact": null, "labels": {}, "annotations": {}, "spec": spec, "state": "pending",
                        "notes": [], "retired_at": null,
                    }))
                    .expect("a revision"),
                );
                self.good.insert(name, *good);
            }
            Step::Split(a, b, weight) => {
                if let (Some(record), false) = (&mut self.record, ready.is_empty()) {
                    let (a, b) = (&ready[a % ready.len()], &ready[b % ready.len()]);
                    record.traffic = vec![
                        TrafficTarget::revision(a.as_str(), *weight).tagged("a"),
                        TrafficTarget::revision(b.as_str(), 100 - weight),
                    ];
                }
            }
            Step::Latest => {
                if let Some(record) = &mut self.record {
                    record.traffic = vec![TrafficTarget::latest()];
                }
            }
            Step::Rollout => {
                if let (Some(record), [.., from, to]) = (&mut self.record, &ready[..]) {
                    let rolling =
                        json!({"from": from, "to": to, "since": self.now, "over": {"secs": 100, "nanos": 0}});
                    record.rolling = Some(serde_json::from_value(rolling).expect("a roll-out"));
                }
            }
            Step::Pass(seconds) => self.now = self.now + Duration::from_secs(*seconds),
            Step::TestRun(at) => {
                if !ready.is_empty() {
                    self.register(&ready[at % ready.len()].clone(), false);
                }
            }
            Step::Delete => self.record = None,
        }
    }

    fn register(&mut self, revision: &str, routable: bool) {
        self.next_key += 1;
        let key = RevisionKey::new(self.next_key, 0);
        self.observed.registrations.push(Registration::new(revision, key, routable, self.now));
    }

    /// Revision keys that some route sends requests to.
    fn routed(&self) -> Vec<RevisionKey> {
        let mut keys = Vec::new();
        for rule in self.observed.hosts.values().flatten() {
            if let RouteAction::Split(splits) = &rule.action {
                assert!(splits.is_empty() || splits.iter().map(|split| split.weight).sum::<u32>() == 100);
                keys.extend(splits.iter().map(|split| split.revision));
            }
        }
        keys
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Start { revision } => {
                let record = self.record.as_mut().expect("nothing is started of what was deleted");
                let found = record
                    .revisions
                    .iter_mut()
                    .find(|r| r.name == revision)
                    .expect("a revision of the record");
                if self.good[&revision] {
                    found.state = RevisionState::Ready;
                    self.register(&revision, true);
                } else {
                    found.state = serde_json::from_value(
                        json!({"failed": {"reason": "x", "message": "y", "fields": []}}),
                    )
                    .unwrap();
                }
            }
            Command::Prepare { revision } => {
                let record = self.record.as_mut().expect("a record");
                let found = record.revisions.iter_mut().find(|r| r.name == revision).expect("a revision");
                found.state = if self.good[&revision] {
                    RevisionState::Ready
                } else {
                    serde_json::from_value(json!({"failed": {"reason": "x", "message": "y", "fields": []}}))
                        .unwrap()
                };
            }
            Command::Route(changes) => {
                for change in changes {
                    match change {
                        RouteChange::Set { host, rules } => {
                            self.observed.hosts.insert(host, rules);
                        }
                        RouteChange::Remove { host } => {
                            self.observed.hosts.remove(&host);
                        }
                        other => panic!("{other:?}"),
                    }
                }
                for key in self.routed() {
                    assert!(
                        self.observed.registrations.iter().any(|r| r.key == key && r.routable && !r.retiring),
                        "a route to what does not run"
                    );
                }
            }
            Command::Retire { key } => {
                assert!(!self.routed().contains(&key), "a routed revision is retired");
                self.observed.registrations.retain(|registration| registration.key != key);
            }
            Command::MarkRetired { revision, retired } => {
                let record = self.record.as_mut().expect("a record");
                let found = record.revisions.iter_mut().find(|r| r.name == revision).expect("a revision");
                found.retired_at = retired.then_some(self.now);
            }
            Command::Collect { revisions } => {
                let record = self.record.as_mut().expect("a record");
                for name in &revisions {
                    assert!(
                        !self.observed.registrations.iter().any(|r| r.revision == *name),
                        "{name} is in use"
                    );
                    assert!(record.latest_ready().is_none_or(|latest| latest.name != *name));
                    assert!(
                        record.shares(self.now).iter().all(|share| share.revision != *name),
                        "{name} has traffic"
                    );
                }
                record.revisions.retain(|revision| !revisions.contains(&revision.name));
            }
            Command::FinishRollout => self.record.as_mut().expect("a record").rolling = None,
            other => panic!("unknown command {other:?}"),
        }
    }

    fn settle(&mut self) {
        for _ in 0..64 {
            let commands = reconcile(self.record.as_ref(), &self.observed, self.now, &self.rules);
            assert_eq!(commands, reconcile(self.record.as_ref(), &self.observed, self.now, &self.rules));
            if commands.is_empty() {
                return;
            }
            for command in commands {
                self.execute(command);
            }
        }
        panic!("it does not come to an end");
    }

    fn check(&self) {
        let main = HostPattern::Exact("hello.default.example.org".to_owned());
        match &self.record {
            None => assert!(self.observed.hosts.is_empty() && self.observed.registrations.is_empty()),
            Some(record) => {
                let rules = self.observed.hosts.get(&main).expect("the service's host");
                let RouteAction::Split(splits) = &rules[0].action else { panic!("{rules:?}") };
                let with_weight = record.shares(self.now).iter().any(|share| share.percent > 0);
                assert_eq!(
                    !splits.is_empty(),
                    with_weight,
                    "traffic goes somewhere iff some revision may have it"
                );
                assert!(record.revisions.iter().all(|revision| revision.state != RevisionState::Pending));
                // What runs without traffic is for test runs, and not for long.
                for registration in self.observed.registrations.iter().filter(|r| r.routable) {
                    assert!(
                        record.shares(self.now).iter().any(|share| share.revision == registration.revision)
                    );
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_settles_and_no_route_leads_nowhere(steps in proptest::collection::vec(step(), 1..25)) {
        let mut model = Model::new();
        for step in &steps {
            model.apply(step);
            model.settle();
            model.check();
        }
    }

    /// A change may be overtaken by the next before its steps are done.
    #[test]
    fn a_history_that_is_interrupted_settles_all_the_same(
        steps in proptest::collection::vec((step(), 0_usize..3), 1..25)
    ) {
        let mut model = Model::new();
        for (step, done) in &steps {
            model.apply(step);
            let commands = reconcile(model.record.as_ref(), &model.observed, model.now, &model.rules);
            for command in commands.into_iter().take(*done) {
                model.execute(command);
            }
        }
        model.settle();
        model.check();
    }
}

#[test]
fn limits_are_read_as_knative_names_them() {
    let read = |text: &str| text.parse::<GcLimits>();
    assert_eq!(read("").unwrap(), GcLimits::default());
    let all =
        read("retain-since-create-time=1h30m, min-non-active-revisions=2,max-non-active-revisions=disabled");
    let all = all.unwrap();
    assert_eq!(all.retain_since_create, Duration::from_secs(5400));
    assert_eq!((all.min_non_active, all.max_non_active), (2, usize::MAX));
    let one = read("retain-since-create-time=disabled").unwrap();
    assert_eq!(
        (one.retain_since_create, one.retain_since_last_active.as_secs()),
        (Duration::ZERO, 15 * 3600)
    );
    let none = read("retain-since-create-time=disabled,retain-since-last-active-time=disabled").unwrap();
    assert_eq!((none.retain_since_create, none.retain_since_last_active), (Duration::MAX, Duration::MAX));
    for (wrong, field) in [
        ("retain=1h", "retain"),
        ("retain-since-create-time=soon", "retain-since-create-time"),
        ("retain-since-last-active-time=-1h", "retain-since-last-active-time"),
        ("min-non-active-revisions=disabled", "min-non-active-revisions"),
        ("max-non-active-revisions=5", "max-non-active-revisions"),
    ] {
        assert_eq!(read(wrong).unwrap_err().0[0].field, field, "{wrong}");
    }
}

#[test]
fn collection_takes_the_old_first_then_what_is_beyond_the_maximum_and_never_what_is_kept() {
    const HOUR: u64 = 3600;
    let mut record = ServiceRecord::new("default", "hello", sas_core::TenantKey(1), Timestamp(0));
    for (number, retired_hours) in [(1, 90), (2, 10), (3, 95), (4, 80), (5, 99)] {
        let mut revision = crate::record::tests::revision(&format!("r{number}"));
        revision.retired_at = Some(Timestamp::from_secs(retired_hours * HOUR as i64));
        record.revisions.push(revision);
    }
    record.revisions.push(crate::record::tests::revision("latest"));
    record.aliases.insert("stable".to_owned(), "r3".to_owned());
    record.revisions[3].annotations.insert(NO_GC.to_owned(), "true".to_owned());
    let now = Timestamp::from_secs(100 * HOUR as i64);
    let mut gc = GcLimits { min_non_active: 0, max_non_active: 1000, ..GcLimits::default() };
    let collected = |gc: &GcLimits| {
        let shares = record.shares(now);
        collectable(&record, &shares, &Observed::default(), now, gc)
    };
    assert_eq!(collected(&gc), ["r2"], "90 hours without traffic; the others had some within 15");
    gc.min_non_active = 3;
    assert!(collected(&gc).is_empty(), "three of r1, r2 and r5 stay");
    (gc.min_non_active, gc.max_non_active) = (0, 1);
    assert_eq!(collected(&gc), ["r2", "r1"], "the old, then the one whose traffic is longest ago");
}

#[test]
fn a_host_with_a_part_runs_what_gets_requests_and_leads_them_here_once_all_of_it_runs() {
    let mut record = ServiceRecord::new("default", "hello", sas_core::TenantKey(1), Timestamp(0));
    record.quota = Some(Quota::rate(90.0, 30));
    record.revisions.push(crate::record::tests::revision("r1"));
    record.traffic = vec![TrafficTarget::latest()];
    let rules = Rules::new("example.org");
    let mut observed = Observed::default();
    let part = |state| Part {
        host: "b".to_owned(),
        state,
        share: 333,
        revisions: BTreeMap::from([("r1".to_owned(), Range { min: 0, max: 2, goal: 2 })]),
    };
    let hosts = vec![HostShare::new("a", 667), HostShare::new("b", 333)];
    observed.standing = Standing { part: Some(part(PartState::Joining)), hosts: hosts.clone(), version: 7 };
    let next = |record: &ServiceRecord, observed: &Observed| {
        reconcile_part(Some(record), observed, Timestamp(1), &rules, "a")
    };
    assert_eq!(next(&record, &observed), [Command::Start { revision: "r1".to_owned() }]);
    observed.registrations.push(Registration::new("r1", RevisionKey::new(1, 0), true, Timestamp(0)));
    let [Command::Limit(Some(quota))] = next(&record, &observed)[..] else { panic!("no limit") };
    assert_eq!((quota.rate.round(), quota.burst), (30.0, 9), "a third of it");
    observed.quota = Some(quota);
    assert_eq!(next(&record, &observed), [Command::Share(hosts.clone())]);
    observed.shared = hosts;
    let leads = |observed: &Observed, record: &ServiceRecord| {
        let commands = next(record, observed);
        let [Command::Route(changes)] = &commands[..] else { panic!("no routes: {commands:?}") };
        changes.iter().all(|change| match change {
            RouteChange::Set { rules, .. } => {
                rules.iter().all(|rule| matches!(rule.action, RouteAction::Remote { .. }))
            }
            _ => false,
        })
    };
    assert!(leads(&observed, &record), "it joins: requests go to the host that acts");
    for state in [PartState::Serving, PartState::Leaving] {
        observed.standing.part = Some(part(state));
        assert!(!leads(&observed, &record), "{state:?}: what comes here is served here");
    }
    let [Command::Route(changes)] = &next(&record, &observed)[..] else { panic!("no routes") };
    for change in changes {
        let RouteChange::Set { host, rules } = change else { panic!("{change:?}") };
        observed.hosts.insert(host.clone(), rules.clone());
    }
    assert_eq!(next(&record, &observed), []);
    // Another revision that this part says nothing of yet: who comes here by its routes goes as before, and nobody is led
    // here who was not.
    record.revisions.push(crate::record::tests::revision("r2"));
    record.traffic = vec![TrafficTarget::revision("r1", 50), TrafficTarget::revision("r2", 50)];
    assert_eq!(next(&record, &observed), []);
    observed.hosts.clear();
    assert!(leads(&observed, &record));
}

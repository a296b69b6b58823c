//! The state machine by itself: no task, no clock, no runtime of tokio's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use async_trait::async_trait;
use sas_core::{
    Artifact, ArtifactInfo, Capabilities, Endpoint, InstanceTarget, Isolation, RevisionName, RevisionSpec,
    Runtime, Source, StartRequest, TenantKey,
};

use super::*;
use crate::{
    config::{BudgetConfig, IdleRule, PoolConfig},
    gate::{Ask, Turn},
};

#[derive(Debug)]
struct Paper;

#[derive(Debug)]
struct Sheet(InstanceId);

#[async_trait]
impl Runtime for Paper {
    fn name(&self) -> &'static str {
        "paper"
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Isolation::None)
    }
    async fn prepare(&self, _: &RevisionSpec) -> sas_core::Result<Artifact> {
        unreachable!("the tests hand the artifact over")
    }
    async fn start(&self, _: StartRequest) -> sas_core::Result<Arc<dyn Instance>> {
        unreachable!("the tests say when a start is over")
    }
    async fn quiesce(&self) {}
}

#[async_trait]
impl Instance for Sheet {
    fn id(&self) -> InstanceId {
        self.0
    }
    fn target(&self) -> InstanceTarget<'_> {
        static NOWHERE: Endpoint = Endpoint::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9));
        InstanceTarget::Endpoint(&NOWHERE)
    }
    async fn stop(&self, _: Duration) -> sas_core::Result<()> {
        unreachable!("the tests say when a stop is over")
    }
}

/// A machine with one revision.
struct Table {
    rules: Rules,
    state: State,
    key: RevisionKey,
    fx: Effects,
}

impl Table {
    fn new(config: PoolConfig, change: impl FnOnce(&mut RevisionSpec)) -> Self {
        let rules = Rules::new(PoolConfig { shards: 1, ..config });
        let mut state = State::new(0, 7);
        let mut spec = RevisionSpec::new("paper", Source::Function("f".to_owned()));
        change(&mut spec);
        let deployed = Arc::new(Deployed::new(
            Arc::new(Paper),
            Artifact::new((), ArtifactInfo::default()),
            Arc::new(spec),
            RevisionName::new("default", "f", "f-00001"),
            TenantKey(1),
        ));
        let mut fx = Effects::default();
        let key = state.register(&rules, deployed, 1, &mut fx);
        Self { rules, state, key, fx }
    }

    /// A claim that waits: its ticket.
    fn wait(&mut self, now: u64, deadline: u64) -> u64 {
        let claim = Claim::new(self.key, TenantKey(1));
        let Met::Waits(a) = self.state.claim(&self.rules, &claim, deadline, now, &mut self.fx) else {
            panic!("a claim that finds nothing waits");
        };
        match self.state.enqueue(&self.rules, a, &claim, deadline, now, &mut self.fx) {
            Err(ticket) => ticket,
            Ok(decided) => panic!("decided: {:?}", decided.err()),
        }
    }

    fn try_claim(&mut self, now: u64) -> Option<Grant> {
        let claim = Claim::new(self.key, TenantKey(1));
        let a = self.state.open(&self.rules, self.key)?;
        self.state.try_claim(&self.rules, a, &claim, now)
    }

    fn poll(&mut self, ticket: u64) -> Option<Result<Grant, ClaimError>> {
        match self.state.poll(ticket, Waker::noop()) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    /// The starts that were decided since the last call.
    fn begun(&mut self) -> Vec<InstanceId> {
        self.fx.begin.drain(..).map(|plan| plan.id).collect()
    }

    fn started(&mut self, id: InstanceId, now: u64) {
        let made = Started { instance: Arc::new(Sheet(id)), from_stem: false };
        self.state.started(&self.rules, id, Ok(made), None, now, &mut self.fx);
    }

    fn failed(&mut self, id: InstanceId, now: u64) {
        let error = Arc::new(Error::new(ErrorKind::Crashed, "start", "torn"));
        self.state.started(&self.rules, id, Err(error), None, now, &mut self.fx);
    }

    fn release(&mut self, grant: &Grant, now: u64) {
        self.state.release(&self.rules, grant.token, Outcome::Ok, now, &mut self.fx);
    }

    fn desire(&mut self, desired: u32, now: u64) {
        self.state.set_desired(&self.rules, &[(self.key, desired)], now, &mut self.fx);
    }

    /// Least, most that a decision makes, and most.
    fn bound(&mut self, bounds: Option<(u32, u32, u32)>, now: u64) {
        let bounds = bounds.map(|(floor, ceiling, limit)| SizeBounds::new(floor, ceiling, limit));
        self.state.set_bounds(&self.rules, self.key, bounds, now, &mut self.fx);
    }

    /// Instances that serve or will.
    fn have(&self) -> u32 {
        let slot = self.state.lookup(&self.rules, self.key).unwrap();
        self.state.active(slot).map_or(0, |a| self.state.actives[a as usize].have())
    }

    fn expire(&mut self, now: u64) -> u64 {
        self.state.expire(&self.rules, now, &mut self.fx)
    }
}

#[test]
fn the_first_claims_start_as_many_instances_as_they_need() {
    for (concurrency, claims, starts) in [(1, 3, 3), (10, 3, 1), (2, 5, 3), (0, 7, 1)] {
        let mut table = Table::new(PoolConfig::seeded(1), |spec| spec.concurrency = concurrency);
        assert!(table.try_claim(10).is_none(), "it sleeps");
        let tickets: Vec<u64> = (0..claims).map(|_| table.wait(10, 1_000)).collect();
        let begun = table.begun();
        assert_eq!(begun.len(), starts, "{claims} claims at concurrency {concurrency}");
        for id in begun {
            table.started(id, 20);
        }
        for ticket in tickets {
            assert!(matches!(table.poll(ticket), Some(Ok(_))), "every claim is served");
        }
    }
}

#[test]
fn a_slot_that_comes_back_goes_to_the_next_in_line() {
    let mut table = Table::new(PoolConfig::seeded(1), |spec| {
        spec.concurrency = 1;
        spec.scaling.max = 1;
    });
    let (first, second) = (table.wait(1, 1_000), table.wait(2, 1_000));
    let begun = table.begun();
    assert_eq!(begun.len(), 1, "at most one instance");
    table.started(begun[0], 3);
    let Some(Ok(grant)) = table.poll(first) else { panic!("the first in line has the slot") };
    assert!(table.poll(second).is_none());
    table.release(&grant, 4);
    assert!(matches!(table.poll(second), Some(Ok(_))));
}

#[test]
fn a_deadline_is_met_at_its_nanosecond_and_not_before() {
    let mut table = Table::new(PoolConfig::seeded(1), |_| {});
    let ticket = table.wait(10, 500);
    assert_eq!(table.expire(499), 500, "the machine says when it wants to be asked again");
    assert!(table.poll(ticket).is_none());
    table.expire(500);
    assert!(matches!(table.poll(ticket), Some(Err(ClaimError::Deadline))));
}

#[test]
fn failed_starts_shut_the_gate_for_the_pause_that_the_rules_say() {
    let mut config = PoolConfig::seeded(1);
    config.backoff.attempts = 1;
    config.backoff.initial = Duration::from_nanos(100);
    let mut table = Table::new(config, |_| {});
    let ticket = table.wait(1, 10_000);
    let id = table.begun()[0];
    table.failed(id, 10);
    assert!(matches!(table.poll(ticket), Some(Err(ClaimError::Start { .. }))));
    let claim = Claim::new(table.key, TenantKey(1));
    let met = table.state.claim(&table.rules, &claim, 10_000, 50, &mut table.fx);
    assert!(matches!(met, Met::Decided(Err(ClaimError::Start { .. }))), "within the pause");
    table.wait(10 + 100, 10_000);
    assert_eq!(table.begun().len(), 1, "after it");
}

#[test]
fn a_smaller_desire_takes_idle_instances_before_busy_ones() {
    let mut table = Table::new(PoolConfig::seeded(1), |spec| spec.concurrency = 1);
    table.desire(3, 1);
    for id in table.begun() {
        table.started(id, 2);
    }
    let busy = table.try_claim(3).expect("three are ready");
    table.desire(1, 4);
    let stopped: Vec<InstanceId> = table.fx.stop.drain(..).map(|stop| stop.id).collect();
    assert_eq!(stopped.len(), 2);
    assert!(!stopped.contains(&busy.instance.id()));
    table.release(&busy, 5);
    assert!(table.fx.stop.is_empty(), "the one that stays stays");
}

#[test]
fn without_a_scaler_the_last_release_ends_the_instance() {
    let mut config = PoolConfig::seeded(1);
    config.idle = IdleRule::AtOnce;
    let mut table = Table::new(config, |_| {});
    let ticket = table.wait(1, 1_000);
    let id = table.begun()[0];
    table.started(id, 2);
    let Some(Ok(grant)) = table.poll(ticket) else { panic!("served") };
    table.release(&grant, 3);
    assert_eq!(table.fx.stop.len(), 1);
    table.state.stopped(&table.rules, id, Some(4), &mut table.fx);
    assert!(table.state.live.is_empty(), "a revision at zero has no record");
}

#[test]
fn under_a_budget_a_start_waits_for_its_turn() {
    let mut config = PoolConfig::seeded(1);
    config.budget = BudgetConfig { instances: 1, ..BudgetConfig::default() };
    let mut table = Table::new(config, |_| {});
    table.wait(1, 1_000);
    let plan = table.fx.begin.pop().expect("a start is decided");
    assert!(plan.gated, "and asks for room first");
    let holds = Holds { memory: Some(64), ..Holds::default() };
    assert!(table.state.begin(&table.rules, plan.id, holds, 7, &mut table.fx));
    assert_eq!(table.state.instances[0].begun, 7, "it begins with its turn");
}

/// A start of `table` in the gate's line, as the shard puts it there.
fn in_line(table: &mut Table, memory: u64) -> InstanceId {
    let plan = table.fx.begin.pop().expect("a start is decided");
    table.rules.ask(Ask {
        tenant: TenantKey(1),
        shard: 0,
        id: plan.id,
        priority: plan.priority,
        need: plan.need,
        gated: false,
        memory,
        cpu_millis: 0,
        told: 0,
        weight: 1,
        class: 0,
    });
    plan.id
}

fn with_memory(memory_bytes: u64) -> PoolConfig {
    let mut config = PoolConfig::seeded(1);
    config.budget = BudgetConfig { memory_bytes, ..BudgetConfig::default() };
    config
}

#[test]
fn a_request_that_waits_at_the_gate_is_told_for_what() {
    let mut table = Table::new(with_memory(100), |_| {});
    assert!(table.rules.gate.lock().take_for_stem(80));
    let ticket = table.wait(10, 500);
    in_line(&mut table, 50);
    assert!(table.rules.gate.lock().admit(10).is_none());
    let gated = table.state.gated(&table.rules, 0).expect("it waits at the gate");
    table.expire(500);
    let Some(Err(ClaimError::StartPending { error })) = table.poll(ticket) else {
        panic!("its deadline came")
    };
    assert_eq!(error.message, gated);
    assert!(gated.contains("for memory: it counts with 50 bytes"), "{gated}");
}

#[test]
fn a_start_beyond_the_budget_fails_by_itself_with_its_reason() {
    let mut table = Table::new(with_memory(100), |_| {});
    let ticket = table.wait(10, 500);
    let id = in_line(&mut table, 101);
    let turn = table.rules.gate.lock().admit(10);
    assert!(matches!(turn, Some(Turn::Never(ask, 100)) if ask.id == id));
    let error = Arc::new(Error::new(ErrorKind::Exhausted, "start", "too large"));
    table.state.refused(&table.rules, id, &error, 20, &mut table.fx);
    let Some(Err(ClaimError::Start { error, .. })) = table.poll(ticket) else { panic!("it is told at once") };
    assert_eq!(error.message, "too large");
    assert_eq!(table.rules.gate.lock().waiting(), 0);
}

#[test]
fn what_leaves_the_gates_line_lets_the_next_have_its_turn() {
    for unregister in [false, true] {
        let mut table = Table::new(with_memory(100), |_| {});
        let ticket = table.wait(10, 500);
        in_line(&mut table, 50);
        table.fx = Effects::default();
        if unregister {
            table.state.unregister(&table.rules, table.key, 20, &mut table.fx);
        } else {
            table.state.leave(&table.rules, ticket, 20, &mut table.fx);
            table.desire(0, 30);
        }
        assert_eq!(table.rules.gate.lock().waiting(), 0);
        assert!(table.fx.pump, "unregistered: {unregister}");
    }
}

#[test]
fn a_start_ahead_of_a_call_is_the_calls_once_it_comes() {
    let mut table = Table::new(with_memory(100), |spec| spec.scaling.min = 1);
    let id = table.fx.begin[0].id;
    assert_eq!(table.fx.begin[0].need, Need::Size, "a minimum");
    in_line(&mut table, 50);
    table.wait(10, 500);
    assert_eq!(table.fx.promoted.as_slice(), [id]);
    assert!(table.begun().is_empty(), "no second start for it");
    assert_eq!(table.state.actives[0].unclaimed, 0);
}

/// Keeps a revision for a moment, and expects its next call at a given time.
#[derive(Debug)]
struct Foresees;

impl sas_core::KeepAlivePolicy for Foresees {
    fn called(&mut self, _: RevisionKey, _: sas_core::Timestamp) {}
    fn idle(&mut self, _: RevisionKey, now: sas_core::Timestamp) -> sas_core::KeepAlive {
        let mut plan = sas_core::KeepAlive::until(now + Duration::from_secs(1));
        plan.wake_at = Some(now + Duration::from_secs(10));
        plan.wake_until = Some(now + Duration::from_secs(20));
        plan
    }
    fn forget(&mut self, _: RevisionKey) {}
    fn bytes(&self) -> usize {
        0
    }
}

#[test]
fn what_the_policy_starts_and_lets_go_is_told_as_decisions() {
    use sas_core::Reason;
    let second = |n: u64| n * 1_000_000_000;
    let mut config = PoolConfig::seeded(1);
    config.idle = IdleRule::policy(Foresees);
    let mut table = Table::new(config, |_| {});
    table.state.visited = Some(1);
    let ticket = table.wait(10, second(1));
    let id = table.begun()[0];
    table.started(id, 20);
    let Some(Ok(grant)) = table.poll(ticket) else { panic!("served") };
    table.release(&grant, 30);
    table.desire(0, 40);
    table.expire(second(2));
    table.fx.stop.clear();
    table.state.stopped(&table.rules, id, Some(second(3)), &mut table.fx);
    table.expire(second(11));
    assert_eq!(table.fx.begin[0].need, Need::Expected, "nobody waits for it yet");
    let told: Vec<_> = table.state.take_decisions().into_iter().map(|(told, _)| told).collect();
    let story: Vec<_> = told.iter().map(|told| (told.before, told.desired, told.reason)).collect();
    assert_eq!(story, [(0, 1, Reason::Activated), (1, 0, Reason::NotExpected), (0, 1, Reason::Expected)]);
    assert!(told[2].until.is_some());
    assert!(table.state.take_decisions().is_empty(), "each is told once");
}

#[test]
fn a_burst_from_zero_is_one_decision_with_what_it_started_and_how_many_waited() {
    use sas_core::Reason;
    let told = |table: &mut Table| -> Vec<_> {
        let taken = table.state.take_decisions().into_iter();
        taken.map(|(told, _)| (told.before, told.desired, told.reason, told.waited)).collect()
    };
    let mut table = Table::new(PoolConfig::seeded(1), |spec| spec.concurrency = 10);
    let tickets: Vec<u64> = (0..25).map(|_| table.wait(10, 500)).collect();
    let started = table.begun();
    assert_eq!(told(&mut table), [(0, 3, Reason::Activated, 25)]);
    table.wait(20, 500);
    assert_eq!(told(&mut table), [], "from now on the scaler decides");
    for id in started {
        table.started(id, 30);
    }
    for ticket in tickets {
        let Some(Ok(grant)) = table.poll(ticket) else { panic!("served") };
        table.release(&grant, 40);
    }
    assert_eq!(told(&mut table), [], "a warm request decides nothing");
}

#[test]
fn bounds_hold_decisions_and_not_what_waits() {
    let mut table = Table::new(PoolConfig::seeded(1), |spec| {
        spec.concurrency = 1;
        spec.scaling.min = 3;
        spec.scaling.max = 20;
    });
    assert_eq!(table.have(), 3);
    table.bound(Some((0, 2, 6)), 1);
    assert_eq!(table.have(), 0, "the floor stands for the minimum, and nobody has decided anything");
    table.desire(9, 2);
    assert_eq!(table.have(), 2);
    table.bound(Some((4, 5, 6)), 3);
    assert_eq!(table.have(), 5, "the decision stands as far as it may");
    table.desire(0, 4);
    assert_eq!(table.have(), 4, "a floor");
    for id in table.begun() {
        table.started(id, 5);
    }
    for _ in 0..10 {
        if table.try_claim(6).is_none() {
            table.wait(6, 1_000);
        }
    }
    assert_eq!(table.have(), 6, "what waits is served beyond the ceiling, up to the limit");
    table.bound(None, 7);
    table.desire(8, 8);
    assert_eq!(table.have(), 8, "lifted");
}

#[test]
fn a_revision_that_sleeps_keeps_its_bounds_and_a_floor_wakes_it() {
    let mut table = Table::new(PoolConfig::seeded(1), |_| {});
    table.bound(Some((0, 1, 2)), 1);
    assert_eq!(table.have(), 0, "nothing of it is kept but the bounds");
    table.desire(5, 2);
    assert_eq!(table.have(), 1);
    table.desire(0, 3);
    table.bound(Some((2, 2, 2)), 4);
    assert_eq!(table.have(), 2);
    let Table { rules, state, key, fx } = &mut table;
    state.unregister(rules, *key, 5, fx);
    assert!(table.state.bounds.is_empty());
}

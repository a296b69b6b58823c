//! Where tenants meet: the start gate and the budgets of memory and instances. Pure.
//!
//! Turns follow start-time fair queueing, a deficit round robin without rounds: each start that a tenant is granted
//! moves its virtual time on by 1 / weight, and the tenant that is furthest behind goes next. A tenant that was quiet
//! joins at the present virtual time, so it is served with the next free permit, however long the others' queues are.
//! That alone leaves it to wait for a permit that others hold; so some permits ([`GateConfig::reserve`]) and a share
//! of the budgets ([`BudgetConfig::reserve`]) can't be taken by a tenant that holds its share already.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use sas_core::{InstanceId, PoolBudget, PoolTotals, TenantKey};

use crate::config::{BudgetConfig, GateConfig, TenantShare};

/// The length of a turn of weight 1 in virtual time.
const TURN: u64 = 1 << 32;

/// A start that asks for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) tenant: TenantKey,
    pub(crate) shard: u32,
    pub(crate) id: InstanceId,
    pub(crate) priority: u8,
    /// Whether it needs a permit of the gate, not only room in the budgets.
    pub(crate) gated: bool,
    pub(crate) memory: u64,
    pub(crate) weight: u32,
    pub(crate) class: u8,
}

/// What stands in the way of the first in line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub(crate) instances: u32,
    pub(crate) memory: u64,
}

#[derive(Debug, Default)]
struct Tenant {
    pass: u64,
    weight: u32,
    class: u8,
    pending: BTreeMap<(Reverse<u8>, u64), Ask>,
    starting: u32,
    instances: u32,
    memory: u64,
}

impl Tenant {
    fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.starting == 0 && self.instances == 0
    }
}

#[derive(Debug)]
pub(crate) struct Gate {
    permits: u32,
    reserve: u32,
    budget: BudgetConfig,
    starting: u32,
    instances: u32,
    memory: u64,
    /// Memory that stems hold out of the same budget.
    stems: u64,
    now: u64,
    sequence: u64,
    tenants: BTreeMap<TenantKey, Tenant>,
    /// Tenants with something pending, in the order of their turns.
    turns: BTreeSet<(Reverse<u8>, u64, TenantKey)>,
    pending: BTreeMap<InstanceId, (TenantKey, (Reverse<u8>, u64))>,
    /// Weights of all tenants that hold or want something.
    weights: u64,
    /// Set while the first in line waits for a budget.
    shortage: Option<Shortage>,
    /// Set while somebody begins admitted starts.
    pub(crate) pumping: bool,
}

impl Gate {
    pub(crate) fn new(gate: GateConfig, budget: BudgetConfig, cores: u32) -> Self {
        let permits = if gate.starts == 0 { cores + 1 } else { gate.starts };
        Self {
            permits,
            reserve: gate.reserve.min(permits - 1),
            budget,
            starting: 0,
            instances: 0,
            memory: 0,
            stems: 0,
            now: 0,
            sequence: 0,
            tenants: BTreeMap::new(),
            turns: BTreeSet::new(),
            pending: BTreeMap::new(),
            weights: 0,
            shortage: None,
            pumping: false,
        }
    }

    /// Changes the bounds, and gives them back in full.
    pub(crate) fn set_budget(&mut self, budget: PoolBudget) -> BudgetConfig {
        self.budget.instances = budget.instances.unwrap_or(u32::MAX);
        self.budget.memory_bytes = budget.memory_bytes.unwrap_or(u64::MAX);
        self.shortage = None;
        self.budget
    }

    /// Puts a start in line.
    pub(crate) fn ask(&mut self, ask: Ask) {
        self.sequence += 1;
        let key = (Reverse(ask.priority), self.sequence);
        let now = self.now;
        let weights = &mut self.weights;
        let tenant = self.tenants.entry(ask.tenant).or_insert_with(|| {
            *weights += u64::from(ask.weight.max(1));
            Tenant { weight: ask.weight.max(1), class: ask.class, pass: now, ..Tenant::default() }
        });
        if tenant.pending.is_empty() {
            tenant.pass = tenant.pass.max(now);
            self.turns.insert((Reverse(tenant.class), tenant.pass, ask.tenant));
        }
        tenant.pending.insert(key, ask);
        self.pending.insert(ask.id, (ask.tenant, key));
    }

    /// Takes a start out of the line; false when it is not in it (any more).
    pub(crate) fn withdraw(&mut self, id: InstanceId) -> bool {
        let Some((key, at)) = self.pending.remove(&id) else { return false };
        let tenant = self.tenants.get_mut(&key).expect("a pending start belongs to a tenant");
        tenant.pending.remove(&at);
        if tenant.pending.is_empty() {
            self.turns.remove(&(Reverse(tenant.class), tenant.pass, key));
            self.forget_idle(key);
        }
        if self.pending.is_empty() {
            self.shortage = None;
        }
        true
    }

    /// The next start whose turn it is and for which there is room. It holds its permit until [`Gate::started`], its
    /// part of the budgets until [`Gate::gone`].
    pub(crate) fn admit(&mut self) -> Option<Ask> {
        self.shortage = None;
        let mut chosen = None;
        for &(_, _, key) in &self.turns {
            let tenant = &self.tenants[&key];
            let ask = tenant.pending.values().next().expect("a tenant in turn has something pending");
            if ask.gated && !self.has_permit(tenant) {
                continue;
            }
            match self.room(tenant, ask) {
                Ok(()) => {
                    chosen = Some((key, *ask));
                    break;
                }
                // Over its share: others may still go.
                Err(None) => {}
                // The host is full: nobody overtakes the first in line, else a large start would never have its turn.
                Err(Some(shortage)) => {
                    self.shortage = Some(shortage);
                    return None;
                }
            }
        }
        let (key, ask) = chosen?;
        let tenant = self.tenants.get_mut(&key).expect("a tenant in turn is known");
        self.turns.remove(&(Reverse(tenant.class), tenant.pass, key));
        self.now = self.now.max(tenant.pass);
        tenant.pass += TURN / u64::from(tenant.weight);
        tenant.pending.pop_first();
        self.pending.remove(&ask.id);
        if !tenant.pending.is_empty() {
            self.turns.insert((Reverse(tenant.class), tenant.pass, key));
        }
        if ask.gated {
            tenant.starting += 1;
            self.starting += 1;
        }
        tenant.instances += 1;
        tenant.memory += ask.memory;
        self.instances += 1;
        self.memory += ask.memory;
        Some(ask)
    }

    fn has_permit(&self, tenant: &Tenant) -> bool {
        self.starting < self.permits && tenant.starting < self.permits - self.reserve
    }

    /// Whether the budgets have room; `Err(None)`: only for tenants that hold less than their share.
    fn room(&self, tenant: &Tenant, ask: &Ask) -> Result<(), Option<Shortage>> {
        if !self.budget.is_limited() {
            return Ok(());
        }
        let memory = self.memory + self.stems + ask.memory;
        let shortage = Shortage {
            instances: u32::from(self.instances >= self.budget.instances),
            memory: memory.saturating_sub(self.budget.memory_bytes),
        };
        if shortage != Shortage::default() {
            return Err(Some(shortage));
        }
        let open = 1.0 - self.budget.reserve;
        let reserved = f64::from(self.instances + 1) > (f64::from(self.budget.instances) * open).max(1.0)
            || memory as f64 > self.budget.memory_bytes as f64 * open;
        if reserved && !self.is_below_share(tenant, ask) {
            return Err(None);
        }
        Ok(())
    }

    fn is_below_share(&self, tenant: &Tenant, ask: &Ask) -> bool {
        // A tenant alone has the whole host: there is nobody to keep a reserve for.
        let share = f64::from(tenant.weight) / self.weights.max(1) as f64;
        f64::from(tenant.instances + 1) <= (f64::from(self.budget.instances) * share).max(1.0)
            && (tenant.memory + ask.memory) as f64 <= self.budget.memory_bytes as f64 * share
    }

    /// Whether `tenant` holds more than its fair share of a limited budget.
    pub(crate) fn is_over_share(&self, tenant: TenantKey) -> bool {
        let Some(tenant) = self.tenants.get(&tenant) else { return false };
        let share = f64::from(tenant.weight) / self.weights.max(1) as f64;
        self.budget.is_limited()
            && (f64::from(tenant.instances) > f64::from(self.budget.instances) * share
                || tenant.memory as f64 > self.budget.memory_bytes as f64 * share)
    }

    /// Gives the permit of an admitted start back.
    pub(crate) fn started(&mut self, tenant: TenantKey) {
        self.starting -= 1;
        if let Some(tenant) = self.tenants.get_mut(&tenant) {
            tenant.starting -= 1;
        }
    }

    /// Gives the part of an admitted start in the budgets back.
    pub(crate) fn gone(&mut self, key: TenantKey, memory: u64) {
        self.instances -= 1;
        self.memory -= memory;
        if let Some(tenant) = self.tenants.get_mut(&key) {
            tenant.instances -= 1;
            tenant.memory -= memory;
        }
        self.forget_idle(key);
    }

    /// Reserves memory for a stem, if there is any that nobody waits for.
    pub(crate) fn take_for_stem(&mut self, memory: u64) -> bool {
        if self.shortage.is_some()
            || self.memory.saturating_add(self.stems).saturating_add(memory) > self.budget.memory_bytes
        {
            return false;
        }
        self.stems += memory;
        true
    }

    /// Gives the memory of a stem back.
    pub(crate) fn stem_gone(&mut self, memory: u64) {
        self.stems -= memory;
    }

    /// What the first in line lacks, as of the last [`Gate::admit`].
    pub(crate) fn shortage(&self) -> Option<Shortage> {
        self.shortage
    }

    /// Whether somebody with less than its share waits for a budget.
    pub(crate) fn is_short(&self) -> bool {
        self.shortage.is_some()
    }

    /// Puts in what is held and what waits.
    pub(crate) fn totals(&self, totals: &mut PoolTotals) {
        totals.instances = u64::from(self.instances);
        totals.memory_bytes = self.memory.saturating_add(self.stems);
        totals.memory_limit_bytes =
            (self.budget.memory_bytes != u64::MAX).then_some(self.budget.memory_bytes);
        totals.waiting_starts = self.pending.len() as u64;
    }

    pub(crate) fn waiting(&self) -> usize {
        self.pending.len()
    }

    #[cfg(test)]
    fn starting(&self) -> u32 {
        self.starting
    }

    /// A tenant that holds and wants nothing costs nothing, once its virtual time is past.
    fn forget_idle(&mut self, key: TenantKey) {
        if self.tenants.get(&key).is_some_and(|tenant| tenant.is_idle() && tenant.pass <= self.now)
            && let Some(tenant) = self.tenants.remove(&key)
        {
            self.weights -= u64::from(tenant.weight);
        }
        // One that is ahead of the time stays known for as long, so that leaving and coming back gains nothing; the
        // time passes with every grant, and when nobody wants anything all are forgiven.
        if self.pending.is_empty() && self.starting == 0 && self.instances == 0 {
            self.tenants.clear();
            self.weights = 0;
        }
    }
}

/// The share of a tenant, by configuration.
pub(crate) fn share_of(shares: &BTreeMap<TenantKey, TenantShare>, tenant: TenantKey) -> TenantShare {
    shares.get(&tenant).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gate(starts: u32, reserve: u32) -> Gate {
        Gate::new(GateConfig { starts, reserve }, BudgetConfig::default(), 2)
    }

    fn ask(tenant: u32, id: u64) -> Ask {
        Ask {
            tenant: TenantKey(tenant),
            shard: 0,
            id: InstanceId(id),
            priority: 0,
            gated: true,
            memory: 1,
            weight: 100,
            class: 0,
        }
    }

    #[test]
    fn no_more_start_at_once_than_the_gate_lets_in() {
        let mut gate = gate(3, 0);
        for id in 0..10 {
            gate.ask(ask(1, id));
        }
        assert_eq!(std::iter::from_fn(|| gate.admit()).count(), 3);
        gate.started(TenantKey(1));
        assert_eq!(gate.admit().unwrap().id, InstanceId(3));
        assert!(gate.admit().is_none());
    }

    #[test]
    fn a_quiet_tenant_starts_at_once_while_another_has_a_thousand_in_line() {
        let mut gate = gate(3, 1);
        for id in 0..1000 {
            gate.ask(ask(1, id));
        }
        assert_eq!(std::iter::from_fn(|| gate.admit()).count(), 2, "one permit is kept for others");
        gate.ask(ask(2, 5000));
        assert_eq!(gate.admit().unwrap().tenant, TenantKey(2));
    }

    #[test]
    fn turns_are_in_proportion_to_the_weights() {
        let mut gate = gate(1, 0);
        for id in 0..1000 {
            gate.ask(Ask { weight: 300, ..ask(1, id) });
            gate.ask(Ask { weight: 100, ..ask(2, 10_000 + id) });
        }
        let mut first = 0;
        for _ in 0..400 {
            let admitted = gate.admit().unwrap();
            first += u32::from(admitted.tenant == TenantKey(1));
            gate.started(admitted.tenant);
        }
        assert!((299..=301).contains(&first), "{first} of 400");
    }

    #[test]
    fn a_higher_class_and_a_higher_priority_go_first() {
        let mut gate = gate(1, 0);
        gate.ask(ask(1, 1));
        gate.ask(Ask { priority: 9, ..ask(1, 2) });
        gate.ask(Ask { class: 1, ..ask(2, 3) });
        let mut order = Vec::new();
        while let Some(admitted) = gate.admit() {
            order.push(admitted.id.0);
            gate.started(admitted.tenant);
        }
        assert_eq!(order, [3, 2, 1]);
    }

    #[test]
    fn the_budget_keeps_a_reserve_for_those_below_their_share() {
        let budget = BudgetConfig { instances: 20, reserve: 0.1, ..BudgetConfig::default() };
        let mut gate = Gate::new(GateConfig { starts: u32::MAX, reserve: 0 }, budget, 2);
        gate.ask(ask(2, 9_999));
        assert!(gate.admit().is_some());
        for id in 0..100 {
            gate.ask(ask(1, id));
        }
        assert_eq!(std::iter::from_fn(|| gate.admit()).count(), 17, "1 + 17 of 20, 2 are kept");
        gate.ask(ask(2, 10_000));
        assert_eq!(gate.admit().unwrap().tenant, TenantKey(2));
        gate.ask(ask(2, 10_001));
        assert_eq!(gate.admit().unwrap().tenant, TenantKey(2));
        assert!(gate.admit().is_none());
        assert_eq!(gate.shortage(), Some(Shortage { instances: 1, memory: 0 }));
        assert!(gate.is_over_share(TenantKey(1)) && !gate.is_over_share(TenantKey(2)));
    }

    #[test]
    fn a_withdrawn_start_leaves_the_line() {
        let mut gate = gate(1, 0);
        gate.ask(ask(1, 1));
        gate.ask(ask(1, 2));
        assert!(gate.withdraw(InstanceId(1)));
        assert!(!gate.withdraw(InstanceId(1)));
        assert_eq!(gate.admit().unwrap().id, InstanceId(2));
        assert_eq!(gate.waiting(), 0);
    }

    proptest! {
        #[test]
        fn permits_and_budgets_are_never_exceeded_and_nothing_is_lost(
            ops in prop::collection::vec((0u8..4, 1u32..6, 1u64..40), 1..400),
        ) {
            let budget = BudgetConfig { instances: 12, memory_bytes: 200, reserve: 0.1, ..BudgetConfig::default() };
            let mut gate = Gate::new(GateConfig { starts: 3, reserve: 1 }, budget, 2);
            let (mut next, mut starting, mut running) = (0, Vec::new(), Vec::new());
            let (mut asked, mut admitted, mut withdrawn) = (0usize, 0usize, 0usize);
            for (op, tenant, memory) in ops {
                match op {
                    0 => {
                        next += 1;
                        asked += 1;
                        gate.ask(Ask { memory, ..ask(tenant, next) });
                    }
                    1 => {
                        if let Some(ask) = gate.admit() {
                            admitted += 1;
                            starting.push(ask);
                        }
                    }
                    2 if !starting.is_empty() => {
                        let ask: Ask = starting.remove(memory as usize % starting.len());
                        gate.started(ask.tenant);
                        running.push(ask);
                    }
                    3 if !running.is_empty() => {
                        let ask: Ask = running.remove(memory as usize % running.len());
                        gate.gone(ask.tenant, ask.memory);
                    }
                    _ => withdrawn += usize::from(gate.withdraw(InstanceId(memory))),
                }
                prop_assert!(gate.starting() <= 3);
                prop_assert!(gate.instances <= 12 && gate.memory <= 200);
                prop_assert_eq!(gate.waiting(), asked - admitted - withdrawn);
            }
        }
    }
}

//! Where tenants meet: the start gate and the budgets of memory and instances. Pure.
//!
//! Turns follow start-time fair queueing, a deficit round robin without rounds: each start that a tenant is granted
//! moves its virtual time on by 1 / weight, and the tenant that is furthest behind goes next. A tenant that was quiet
//! joins at the present virtual time, so it is served with the next free permit, however long the others' queues are.
//! That alone leaves it to wait for a permit that others hold; so some permits ([`GateConfig::reserve`]) and a share
//! of the budgets ([`BudgetConfig::reserve`]) can't be taken by a tenant that holds its share already.
//!
//! Who may go before whom, when there is not room for all:
//! - What no budget could ever hold does not wait: it is [`Turn::Never`].
//! - What is started ahead of an expected call ([`Need::Expected`]) goes after everything else, takes a share of the
//!   permits only, and nobody is stopped for it.
//! - A start that lacks room and that requests wait for holds the line: nobody overtakes it, so that what comes free
//!   gathers for it. It does so for 10 s; then those that fit go past it for as long; then it holds the line for twice
//!   as long, up to 80 s. So a large start is not starved by small ones, and what may never find its room (others'
//!   instances stay busy, or are minima) keeps nobody out for more than 80 s at a time.
//! - A start that lacks room and that nobody waits for yet (a minimum, a scaler's decision) is passed at once.
//! - A start that its tenant's own quota has no room for is told so once when requests wait for it ([`Turn::Over`]), and
//!   is passed at once: the line of others never waits for one tenant's quota.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use sas_core::{
    InstanceId, PoolBudget, PoolTotals, QuotaExceeded, QuotaPressure, QuotaResource, SpecErrors, TenantKey,
    TenantQuota,
};

use crate::{
    config::{BudgetConfig, GateConfig, TenantShare},
    limits::{Held, Limits, Takes, wait_of},
};

/// The length of a turn of weight 1 in virtual time.
const TURN: u64 = 1 << 32;

/// How long a start that lacks room holds the line the first time, in nanoseconds.
const HOLD: u64 = 10_000_000_000;

/// How long it holds it at most.
const LONGEST_HOLD: u64 = 8 * HOLD;

/// Of the pending starts of a tenant so many are looked at for one that fits, when the first ones don't.
const LOOKED_AT: usize = 64;

/// Who needs a start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// Nobody yet: a call is expected.
    Expected,
    /// A decision, or the revision's minimum.
    #[default]
    Size,
    /// Requests that wait for it.
    Requests,
}

/// A start that asks for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) tenant: TenantKey,
    pub(crate) shard: u32,
    pub(crate) id: InstanceId,
    pub(crate) priority: u8,
    pub(crate) need: Need,
    /// Whether it needs a permit of the gate, not only room in the budgets.
    pub(crate) gated: bool,
    pub(crate) memory: u64,
    /// Thousandths of a core that it counts with in its tenant's quota.
    pub(crate) cpu_millis: u64,
    /// Whoever asks was told that the tenant's quota is in the way, when the tenant had given so many instances back; 0:
    /// not yet.
    pub(crate) told: u64,
    pub(crate) weight: u32,
    pub(crate) class: u8,
}

impl Ask {
    fn takes(&self) -> Takes {
        Takes { memory: self.memory, cpu_millis: self.cpu_millis }
    }
}

/// What stands in the way of the first in line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub(crate) instances: u32,
    pub(crate) memory: u64,
}

/// What the gate says to the first for whom it has an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Turn {
    /// It begins.
    Begin(Ask),
    /// The whole budget of memory, of so many bytes, would not hold it.
    Never(Ask, u64),
    /// The quota of its tenant has no room for it, and requests wait for it. It stays in line; this is said once, and again
    /// whenever the tenant has given something back that it was not for.
    Over(Ask, QuotaExceeded),
}

/// Where a pending start stands among those of its tenant: what is only expected last, then by priority, then in order.
type Rank = (bool, Reverse<u8>, u64);

/// Where a tenant stands among those that want something.
type TurnKey = (bool, Reverse<u8>, u64, TenantKey);

#[derive(Debug, Default)]
struct Tenant {
    pass: u64,
    weight: u32,
    class: u8,
    pending: BTreeMap<Rank, Ask>,
    /// Where it stands in [`Gate::turns`].
    turn: Option<TurnKey>,
    starting: u32,
    held: Held,
    /// Instances that it gave back, and one.
    given: u64,
}

impl Tenant {
    fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.starting == 0 && self.held.instances == 0
    }
}

#[derive(Debug)]
pub(crate) struct Gate {
    permits: u32,
    reserve: u32,
    budget: BudgetConfig,
    starting: u32,
    /// Of these, such that a call was only expected for when they began.
    expected: u32,
    instances: u32,
    memory: u64,
    /// Memory that stems hold out of the same budget.
    stems: u64,
    /// Virtual time.
    now: u64,
    /// The time at which somebody last asked for turns, in nanoseconds of the pool's life.
    seen: u64,
    sequence: u64,
    tenants: BTreeMap<TenantKey, Tenant>,
    /// Tenants with something pending, in the order of their turns.
    turns: BTreeSet<TurnKey>,
    pending: BTreeMap<InstanceId, (TenantKey, Rank)>,
    /// How many pending starts ask for so many bytes: what is smallest tells whether to look any further.
    sizes: BTreeMap<u64, u32>,
    /// Weights of all tenants that hold or want something.
    weights: u64,
    /// Set while the first in line waits for a budget.
    shortage: Option<(InstanceId, Shortage)>,
    /// For whom room was made last.
    helped: Option<InstanceId>,
    /// Since when starts that requests wait for lack room, without one that found it.
    lacking: Option<u64>,
    /// When the line is held or passed anew.
    look_at: Option<u64>,
    limits: Limits,
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
            expected: 0,
            instances: 0,
            memory: 0,
            stems: 0,
            now: 0,
            seen: 0,
            sequence: 0,
            tenants: BTreeMap::new(),
            turns: BTreeSet::new(),
            pending: BTreeMap::new(),
            sizes: BTreeMap::new(),
            weights: 0,
            shortage: None,
            helped: None,
            lacking: None,
            look_at: None,
            limits: Limits::default(),
            pumping: false,
        }
    }

    /// Changes the bounds, and gives them back in full.
    pub(crate) fn set_budget(&mut self, budget: PoolBudget) -> BudgetConfig {
        self.budget.instances = budget.instances.unwrap_or(u32::MAX);
        self.budget.memory_bytes = budget.memory_bytes.unwrap_or(u64::MAX);
        self.forget_shortage();
        self.budget
    }

    /// The mistakes of a revision of which the budgets could not even hold what it is to have at the least, were there
    /// nothing else: instances of `memory` bytes each, as stated or assumed, and `least` of them.
    pub(crate) fn admits(&self, field: &str, stated: &str, memory: u64, least: u32) -> SpecErrors {
        let mut errors = SpecErrors::default();
        let BudgetConfig { instances, memory_bytes: all, .. } = self.budget;
        if memory > all {
            let problem = format!(
                "an instance counts with {}, and all instances together have {} (the budget of memory): ask for at \
                 most that, or raise the budget",
                mib(memory),
                mib(all),
            );
            errors.push(field, stated, problem);
        } else if memory.saturating_mul(u64::from(least)) > all {
            let problem = format!(
                "{least} instances of {} each are more than the {} that all instances together have (the budget of \
                 memory): keep at most {}, or raise the budget",
                mib(memory),
                mib(all),
                all / memory.max(1),
            );
            errors.push("scaling.min", least, problem);
        }
        if least > instances {
            let problem = format!(
                "all revisions together have {instances} instances (the budget): keep at most that many, or raise the \
                 budget"
            );
            errors.push("scaling.min", least, problem);
        }
        errors
    }

    fn forget_shortage(&mut self) {
        self.shortage = None;
        self.helped = None;
        self.lacking = None;
        self.look_at = None;
    }

    /// Puts a start in line.
    pub(crate) fn ask(&mut self, ask: Ask) {
        self.sequence += 1;
        let rank = (ask.need == Need::Expected, Reverse(ask.priority), self.sequence);
        let now = self.now;
        let share = TenantShare { weight: ask.weight, class: ask.class };
        let tenant = self.known(ask.tenant, share);
        if tenant.pending.is_empty() {
            tenant.pass = tenant.pass.max(now);
        }
        tenant.pending.insert(rank, ask);
        *self.sizes.entry(ask.memory).or_default() += 1;
        self.pending.insert(ask.id, (ask.tenant, rank));
        self.place(ask.tenant);
    }

    /// A tenant, known from now on.
    fn known(&mut self, key: TenantKey, share: TenantShare) -> &mut Tenant {
        let (now, weights) = (self.now, &mut self.weights);
        self.tenants.entry(key).or_insert_with(|| {
            let weight = share.weight.max(1);
            *weights += u64::from(weight);
            Tenant { weight, class: share.class, pass: now, given: 1, ..Tenant::default() }
        })
    }

    /// Requests wait for a pending start that nobody waited for when it was put in line.
    pub(crate) fn promote(&mut self, id: InstanceId) {
        let Some((key, rank)) = self.pending.get_mut(&id) else { return };
        let tenant = self.tenants.get_mut(key).expect("a pending start belongs to a tenant");
        let Some(mut ask) = tenant.pending.remove(rank) else { return };
        ask.need = Need::Requests;
        ask.told = 0;
        rank.0 = false;
        // Room is made for it anew, now that it is needed.
        self.helped = self.helped.filter(|helped| *helped != id);
        tenant.pending.insert(*rank, ask);
        let key = *key;
        self.place(key);
    }

    /// Puts a tenant where it stands by its first pending start.
    fn place(&mut self, key: TenantKey) {
        let tenant = self.tenants.get_mut(&key).expect("only tenants that are known are placed");
        let first = tenant.pending.keys().next();
        let turn = first.map(|(expected, ..)| (*expected, Reverse(tenant.class), tenant.pass, key));
        if tenant.turn == turn {
            return;
        }
        if let Some(before) = std::mem::replace(&mut tenant.turn, turn) {
            self.turns.remove(&before);
        }
        self.turns.extend(turn);
    }

    /// Takes a pending start out.
    fn take(&mut self, id: InstanceId) -> Option<Ask> {
        let (key, rank) = self.pending.remove(&id)?;
        let tenant = self.tenants.get_mut(&key).expect("a pending start belongs to a tenant");
        let ask = tenant.pending.remove(&rank)?;
        if let Some(count) = self.sizes.get_mut(&ask.memory) {
            *count -= 1;
            if *count == 0 {
                self.sizes.remove(&ask.memory);
            }
        }
        Some(ask)
    }

    /// Takes a start out of the line; false when it is not in it (any more). Others may have their turn then.
    pub(crate) fn withdraw(&mut self, id: InstanceId) -> bool {
        let Some(ask) = self.take(id) else { return false };
        self.place(ask.tenant);
        self.forget_idle(ask.tenant);
        if self.pending.is_empty() {
            self.forget_shortage();
        }
        true
    }

    /// The next start whose turn it is and for which there is room, or that can't ever have any. What begins holds its
    /// permit until [`Gate::started`], its part of the budgets until [`Gate::gone`]. `now` is in nanoseconds of the pool's
    /// life.
    pub(crate) fn admit(&mut self, now: u64) -> Option<Turn> {
        self.seen = self.seen.max(now);
        let mut shortage = None;
        let mut lacking = false;
        let mut found = None;
        let mut line_at = None;
        let mut rate_at: Option<u64> = None;
        let smallest = self.sizes.keys().next().copied().unwrap_or_default();
        'turns: for &(.., key) in &self.turns {
            let tenant = &self.tenants[&key];
            // Of what its quota leaves, what requests wait for comes first: room was made for that.
            let limited = self.limits.contains(key);
            let looked_at = || tenant.pending.values().take(LOOKED_AT);
            let first = looked_at().filter(|ask| !limited || ask.need == Need::Requests);
            let rest = looked_at().filter(|ask| limited && ask.need != Need::Requests);
            for ask in first.chain(rest) {
                if ask.memory > self.budget.memory_bytes {
                    found = Some(Turn::Never(*ask, self.budget.memory_bytes));
                    break 'turns;
                }
                if let Some(over) = self.limits.exceeded(key, tenant.held, ask.takes(), now) {
                    if ask.need == Need::Requests && ask.told != tenant.given {
                        found = Some(Turn::Over(*ask, over));
                        break 'turns;
                    }
                    rate_at = rate_at.into_iter().chain(wait_of(&over, now)).min();
                    // A smaller one may fit, and one that was not told is to be.
                    continue;
                }
                if ask.gated && !self.has_permit(tenant, ask) {
                    break;
                }
                match self.room(tenant, ask) {
                    Ok(()) => {
                        found = Some(Turn::Begin(*ask));
                        break 'turns;
                    }
                    // Over its share: others may still go.
                    Err(None) => break,
                    Err(Some(lacks)) => {
                        if ask.need != Need::Expected {
                            shortage = shortage.or(Some((ask.id, lacks)));
                        }
                        if ask.need == Need::Requests && !lacking {
                            lacking = true;
                            let since = *self.lacking.get_or_insert(now);
                            let (holds, left) = window(now.saturating_sub(since));
                            line_at = Some(now.saturating_add(left));
                            if holds {
                                break 'turns;
                            }
                        }
                        if !self.may_hold(smallest) {
                            break 'turns;
                        }
                    }
                }
            }
        }
        self.look_at = line_at.into_iter().chain(rate_at).min();
        self.shortage = shortage;
        if shortage.is_none() {
            self.helped = None;
        }
        if !lacking {
            self.lacking = None;
        }
        let ask = match found? {
            Turn::Never(ask, budget) => {
                self.withdraw(ask.id);
                return Some(Turn::Never(ask, budget));
            }
            Turn::Over(ask, over) => {
                self.told(ask.id);
                return Some(Turn::Over(ask, over));
            }
            Turn::Begin(ask) => ask,
        };
        self.take(ask.id);
        let tenant = self.tenants.get_mut(&ask.tenant).expect("a tenant in turn is known");
        self.now = self.now.max(tenant.pass);
        tenant.pass += TURN / u64::from(tenant.weight);
        if ask.gated {
            tenant.starting += 1;
            self.starting += 1;
            self.expected += u32::from(ask.need == Need::Expected);
        }
        self.hold(ask.tenant, ask.takes());
        self.limits.begin(ask.tenant, now);
        self.place(ask.tenant);
        Some(Turn::Begin(ask))
    }

    /// Whoever asked knows that its tenant's quota is in the way.
    fn told(&mut self, id: InstanceId) {
        if let Some((key, rank)) = self.pending.get(&id)
            && let Some(tenant) = self.tenants.get_mut(key)
            && let Some(ask) = tenant.pending.get_mut(rank)
        {
            ask.told = tenant.given;
        }
    }

    /// Counts an instance that has its part from now on.
    fn hold(&mut self, tenant: TenantKey, takes: Takes) {
        if let Some(tenant) = self.tenants.get_mut(&tenant) {
            tenant.held.instances += 1;
            tenant.held.memory += takes.memory;
            tenant.held.cpu_millis += takes.cpu_millis;
        }
        self.instances += 1;
        self.memory += takes.memory;
    }

    /// Counts an instance that began when nobody counted those of its tenant.
    pub(crate) fn adopt(&mut self, key: TenantKey, share: TenantShare, takes: Takes) {
        self.known(key, share);
        self.hold(key, takes);
    }

    /// Changes what a tenant may use; whether it is limited now and was not before, so that its instances are to be
    /// counted.
    pub(crate) fn limit(&mut self, tenant: TenantKey, quota: Option<TenantQuota>, now: u64) -> bool {
        self.limits.set(tenant, quota, now)
    }

    /// Whether starts of this tenant are to be counted whatever there is.
    pub(crate) fn is_limited(&self, tenant: TenantKey) -> bool {
        self.limits.contains(tenant)
    }

    /// Requests of a tenant were refused for its quota.
    pub(crate) fn over_quota(&mut self, tenant: TenantKey, resource: QuotaResource, count: u64) {
        self.limits.refused(tenant, resource, count);
    }

    /// Whether to look for idle instances of a tenant that has used up its quota.
    pub(crate) fn may_look(&self, tenant: TenantKey, now: u64) -> bool {
        self.limits.may_look(tenant, now)
    }

    /// Such instances were looked for, in vain.
    pub(crate) fn looked(&mut self, tenant: TenantKey, now: u64) {
        self.limits.looked(tenant, now);
    }

    /// What tenants use of their quotas.
    pub(crate) fn pressure(&self, now: u64) -> Vec<QuotaPressure> {
        let held = |key| self.tenants.get(&key).map_or_else(Held::default, |tenant| tenant.held);
        self.limits.pressure(held, now)
    }

    /// Whether the budgets have room for a start of so many bytes.
    fn may_hold(&self, memory: u64) -> bool {
        self.instances < self.budget.instances
            && self.memory.saturating_add(self.stems).saturating_add(memory) <= self.budget.memory_bytes
    }

    fn has_permit(&self, tenant: &Tenant, ask: &Ask) -> bool {
        self.starting < self.permits
            && tenant.starting < self.permits - self.reserve
            && (ask.need != Need::Expected || self.expected < self.expected_permits())
    }

    /// How many of the permits those may take for whom a call is only expected: a third, and one at least.
    fn expected_permits(&self) -> u32 {
        (self.permits / 3).max(1)
    }

    /// Whether the budgets have room; `Err(None)`: only for tenants that hold less than their share.
    fn room(&self, tenant: &Tenant, ask: &Ask) -> Result<(), Option<Shortage>> {
        if !self.budget.is_limited() {
            return Ok(());
        }
        let memory = self.memory.saturating_add(self.stems).saturating_add(ask.memory);
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

    /// Instances of `memory` bytes each that the budgets would hold beside what they hold now; `None`: nothing bounds them.
    pub(crate) fn free(&self, memory: u64) -> Option<u32> {
        if !self.budget.is_limited() {
            return None;
        }
        let instances = self.budget.instances.saturating_sub(self.instances);
        let used = self.memory.saturating_add(self.stems);
        let of_memory = self.budget.memory_bytes.saturating_sub(used).checked_div(memory);
        Some(of_memory.map_or(instances, |most| instances.min(u32::try_from(most).unwrap_or(u32::MAX))))
    }

    fn is_below_share(&self, tenant: &Tenant, ask: &Ask) -> bool {
        // A tenant alone has the whole host: there is nobody to keep a reserve for.
        let share = f64::from(tenant.weight) / self.weights.max(1) as f64;
        f64::from(tenant.held.instances + 1) <= (f64::from(self.budget.instances) * share).max(1.0)
            && (tenant.held.memory + ask.memory) as f64 <= self.budget.memory_bytes as f64 * share
    }

    /// Whether `tenant` holds more than its fair share of a limited budget.
    pub(crate) fn is_over_share(&self, tenant: TenantKey) -> bool {
        let Some(tenant) = self.tenants.get(&tenant) else { return false };
        let share = f64::from(tenant.weight) / self.weights.max(1) as f64;
        self.budget.is_limited()
            && (f64::from(tenant.held.instances) > f64::from(self.budget.instances) * share
                || tenant.held.memory as f64 > self.budget.memory_bytes as f64 * share)
    }

    /// Gives the permit of an admitted start back.
    pub(crate) fn started(&mut self, tenant: TenantKey, need: Need) {
        self.starting -= 1;
        self.expected -= u32::from(need == Need::Expected);
        if let Some(tenant) = self.tenants.get_mut(&tenant) {
            tenant.starting -= 1;
        }
    }

    /// Gives the part of an admitted start in the budgets back.
    pub(crate) fn gone(&mut self, key: TenantKey, takes: Takes) {
        self.instances -= 1;
        self.memory -= takes.memory;
        if let Some(tenant) = self.tenants.get_mut(&key) {
            tenant.given += 1;
            tenant.held.instances -= 1;
            tenant.held.memory -= takes.memory;
            tenant.held.cpu_millis -= takes.cpu_millis;
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

    /// What the first in line lacks, as of the last [`Gate::admit`], once for each first.
    pub(crate) fn newly_short(&mut self) -> Option<Shortage> {
        let (id, shortage) = self.shortage?;
        (self.helped.replace(id) != Some(id)).then_some(shortage)
    }

    /// Whether requests wait for a start that lacks room.
    pub(crate) fn is_short(&self) -> bool {
        self.lacking.is_some()
    }

    /// When to ask [`Gate::admit`] again, whatever happens before: the line is not held for ever.
    pub(crate) fn look_at(&self) -> Option<u64> {
        self.look_at
    }

    /// Why a start waits, for whoever waits for it; `None`: it does not.
    pub(crate) fn why(&self, id: InstanceId) -> Option<String> {
        let (key, rank) = self.pending.get(&id)?;
        let tenant = &self.tenants[key];
        let ask = &tenant.pending[rank];
        let held = self.memory.saturating_add(self.stems);
        let free = self.budget.memory_bytes.saturating_sub(held);
        let others = self.pending.len() - 1;
        if let Some(over) = self.limits.exceeded(*key, tenant.held, ask.takes(), self.seen) {
            return Some(format!("its start waits at the gate: {over}"));
        }
        Some(if ask.memory > free {
            format!(
                "its start waits at the gate for memory: it counts with {}, and of the budget of {} {} are free \
                 ({} instances and stems hold the rest; {others} other starts wait)",
                mib(ask.memory),
                mib(self.budget.memory_bytes),
                mib(free),
                self.instances,
            )
        } else if self.instances >= self.budget.instances {
            format!(
                "its start waits at the gate for a place: {} instances are all that the budget allows \
                 ({others} other starts wait)",
                self.budget.instances,
            )
        } else if ask.gated && !self.has_permit(tenant, ask) {
            format!(
                "its start waits at the gate for its turn: {} starts are under way, of {} at once, and {others} \
                 others wait",
                self.starting, self.permits,
            )
        } else {
            format!(
                "its start waits at the gate behind others that waited longer, or that hold less than their share \
                 ({others} other starts wait)"
            )
        })
    }

    /// Puts in what is held and what waits.
    pub(crate) fn totals(&self, totals: &mut PoolTotals) {
        totals.instances = u64::from(self.instances);
        totals.memory_bytes = self.memory.saturating_add(self.stems);
        totals.memory_limit_bytes =
            (self.budget.memory_bytes != u64::MAX).then_some(self.budget.memory_bytes);
        totals.waiting_starts = self.waiting_for_others() as u64;
    }

    /// How many wait for the CPU or for room, and not for their own tenant's quota: what the pool could do more for.
    pub(crate) fn waiting_for_others(&self) -> usize {
        let waits = |key: &TenantKey| {
            let tenant = &self.tenants[key];
            let over = |ask: &&Ask| self.limits.exceeded(*key, tenant.held, ask.takes(), self.seen).is_none();
            if self.limits.contains(*key) {
                tenant.pending.values().filter(over).count()
            } else {
                tenant.pending.len()
            }
        };
        self.turns.iter().map(|(.., key)| waits(key)).sum()
    }

    #[cfg(test)]
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
            self.turns.clear();
            self.tenants.clear();
            self.weights = 0;
        }
    }
}

/// Whether the line is held after so many nanoseconds, and for how long that stays so.
fn window(elapsed: u64) -> (bool, u64) {
    let (mut left, mut length) = (elapsed, HOLD);
    while left >= 2 * length {
        left -= 2 * length;
        if length == LONGEST_HOLD {
            left %= 2 * length;
        } else {
            length *= 2;
        }
    }
    if left < length { (true, length - left) } else { (false, 2 * length - left) }
}

/// Bytes as people read them.
pub(crate) fn mib(bytes: u64) -> String {
    if bytes < 1 << 20 { format!("{bytes} bytes") } else { format!("{} MiB", bytes >> 20) }
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
            need: Need::Requests,
            gated: true,
            memory: 1,
            cpu_millis: 0,
            told: 0,
            weight: 100,
            class: 0,
        }
    }

    /// The next that begins, with no time gone by.
    fn begin(gate: &mut Gate) -> Option<Ask> {
        match gate.admit(0)? {
            Turn::Begin(ask) => Some(ask),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn no_more_start_at_once_than_the_gate_lets_in() {
        let mut gate = gate(3, 0);
        for id in 0..10 {
            gate.ask(ask(1, id));
        }
        assert_eq!(std::iter::from_fn(|| begin(&mut gate)).count(), 3);
        gate.started(TenantKey(1), Need::Requests);
        assert_eq!(begin(&mut gate).unwrap().id, InstanceId(3));
        assert!(begin(&mut gate).is_none());
    }

    #[test]
    fn a_quiet_tenant_starts_at_once_while_another_has_a_thousand_in_line() {
        let mut gate = gate(3, 1);
        for id in 0..1000 {
            gate.ask(ask(1, id));
        }
        assert_eq!(std::iter::from_fn(|| begin(&mut gate)).count(), 2, "one permit is kept for others");
        gate.ask(ask(2, 5000));
        assert_eq!(begin(&mut gate).unwrap().tenant, TenantKey(2));
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
            let admitted = begin(&mut gate).unwrap();
            first += u32::from(admitted.tenant == TenantKey(1));
            gate.started(admitted.tenant, admitted.need);
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
        while let Some(admitted) = begin(&mut gate) {
            order.push(admitted.id.0);
            gate.started(admitted.tenant, admitted.need);
        }
        assert_eq!(order, [3, 2, 1]);
    }

    #[test]
    fn the_budget_keeps_a_reserve_for_those_below_their_share() {
        let budget = BudgetConfig { instances: 20, reserve: 0.1, ..BudgetConfig::default() };
        let mut gate = Gate::new(GateConfig { starts: u32::MAX, reserve: 0 }, budget, 2);
        gate.ask(ask(2, 9_999));
        assert!(begin(&mut gate).is_some());
        for id in 0..100 {
            gate.ask(ask(1, id));
        }
        assert_eq!(std::iter::from_fn(|| begin(&mut gate)).count(), 17, "1 + 17 of 20, 2 are kept");
        gate.ask(ask(2, 10_000));
        assert_eq!(begin(&mut gate).unwrap().tenant, TenantKey(2));
        gate.ask(ask(2, 10_001));
        assert_eq!(begin(&mut gate).unwrap().tenant, TenantKey(2));
        assert!(begin(&mut gate).is_none());
        assert_eq!(gate.newly_short(), Some(Shortage { instances: 1, memory: 0 }));
        assert_eq!(gate.newly_short(), None, "room is made once for each");
        assert!(gate.is_over_share(TenantKey(1)) && !gate.is_over_share(TenantKey(2)));
    }

    #[test]
    fn a_withdrawn_start_leaves_the_line() {
        let mut gate = gate(1, 0);
        gate.ask(ask(1, 1));
        gate.ask(ask(1, 2));
        assert!(gate.withdraw(InstanceId(1)));
        assert!(!gate.withdraw(InstanceId(1)));
        assert_eq!(begin(&mut gate).unwrap().id, InstanceId(2));
        assert_eq!(gate.waiting(), 0);
    }

    /// A gate with a budget of so many bytes, of which one instance holds some.
    fn held(all: u64, held: u64) -> Gate {
        let budget = BudgetConfig { memory_bytes: all, reserve: 0.0, ..BudgetConfig::default() };
        let mut gate = Gate::new(GateConfig { starts: u32::MAX, reserve: 0 }, budget, 2);
        gate.ask(Ask { memory: held, ..ask(9, 900) });
        assert!(begin(&mut gate).is_some());
        gate
    }

    #[test]
    fn what_no_budget_could_hold_is_told_so_and_blocks_nobody() {
        let mut gate = held(100, 1);
        gate.ask(Ask { memory: 101, ..ask(1, 1) });
        gate.ask(Ask { memory: 50, ..ask(1, 2) });
        assert!(matches!(gate.admit(0), Some(Turn::Never(refused, 100)) if refused.id == InstanceId(1)));
        assert_eq!(begin(&mut gate).unwrap().id, InstanceId(2));
        let mut smaller = PoolBudget::default();
        smaller.memory_bytes = Some(60);
        gate.ask(Ask { memory: 70, ..ask(1, 3) });
        assert!(gate.admit(0).is_none() && gate.is_short(), "it would fit if others went");
        gate.set_budget(smaller);
        assert!(matches!(gate.admit(0), Some(Turn::Never(refused, 60)) if refused.id == InstanceId(3)));
        assert!(!gate.is_short() && gate.waiting() == 0);
    }

    #[test]
    fn a_large_start_holds_the_line_for_a_while_and_then_lets_those_pass_that_fit() {
        let second = |n: u64| n * 1_000_000_000;
        // The same for a start behind it of the same tenant and of another.
        for other in [1, 2] {
            let mut gate = held(100, 60);
            gate.ask(Ask { memory: 50, ..ask(1, 1) });
            gate.ask(Ask { memory: 10, ..ask(other, 2) });
            assert_eq!(gate.admit(second(100)), None, "it holds the line");
            assert_eq!(gate.look_at(), Some(second(110)));
            assert_eq!(gate.admit(second(110) - 1), None);
            let passes = gate.admit(second(110));
            assert!(matches!(passes, Some(Turn::Begin(ask)) if ask.id == InstanceId(2)), "{passes:?}");
            gate.ask(Ask { memory: 10, ..ask(other, 3) });
            assert_eq!(gate.admit(second(120)), None, "it holds the line again, for twice as long");
            assert_eq!(gate.look_at(), Some(second(140)));
            gate.gone(TenantKey(9), Takes { memory: 60, cpu_millis: 0 });
            let first = gate.admit(second(121));
            assert!(matches!(first, Some(Turn::Begin(ask)) if ask.id == InstanceId(1)), "{first:?}");
        }
        for (elapsed, holds) in
            [(0, true), (9, true), (10, false), (20, true), (39, true), (40, false), (60, true)]
        {
            assert_eq!(window(second(elapsed)).0, holds, "{elapsed} s");
        }
        for elapsed in (0..20_000).map(second) {
            let (_, left) = window(elapsed);
            assert!(left > 0 && left <= LONGEST_HOLD, "{elapsed}: {left}");
        }
    }

    #[test]
    fn a_start_that_nobody_waits_for_holds_nobody_up_until_somebody_does() {
        let mut gate = held(100, 60);
        gate.ask(Ask { memory: 50, need: Need::Size, ..ask(1, 1) });
        gate.ask(Ask { memory: 10, ..ask(1, 2) });
        assert_eq!(begin(&mut gate).unwrap().id, InstanceId(2));
        assert!(begin(&mut gate).is_none() && !gate.is_short());
        assert!(gate.newly_short().is_some(), "what is idle goes for it all the same");
        gate.promote(InstanceId(1));
        gate.ask(Ask { memory: 10, ..ask(1, 3) });
        assert!(begin(&mut gate).is_none() && gate.is_short());
        assert!(gate.newly_short().is_some(), "and again when it is needed");
        let why = gate.why(InstanceId(1)).unwrap();
        assert!(why.contains("for memory") && why.contains("1 other starts wait"), "{why}");
        assert!(gate.withdraw(InstanceId(1)));
        assert_eq!(begin(&mut gate).unwrap().id, InstanceId(3));
    }

    #[test]
    fn what_is_expected_goes_last_takes_a_share_and_is_needed_when_its_call_comes() {
        let expected = |tenant, id| Ask { need: Need::Expected, ..ask(tenant, id) };
        let mut gate = gate(3, 0);
        for id in 0..5 {
            gate.ask(expected(1, id));
        }
        assert_eq!(std::iter::from_fn(|| begin(&mut gate)).count(), 1, "a third of the permits");
        gate.ask(ask(2, 10));
        gate.ask(Ask { need: Need::Size, ..ask(1, 11) });
        gate.promote(InstanceId(4));
        let order: Vec<u64> = std::iter::from_fn(|| begin(&mut gate)).map(|ask| ask.id.0).collect();
        assert_eq!(order, [10, 4], "whoever is needed goes first, and a call makes it so");
        gate.started(TenantKey(2), Need::Requests);
        gate.started(TenantKey(1), Need::Expected);
        let order: Vec<u64> = std::iter::from_fn(|| begin(&mut gate)).map(|ask| ask.id.0).collect();
        assert_eq!(order, [11, 1]);
    }

    #[test]
    fn a_tenant_at_its_quota_is_told_once_and_holds_nobody_up() {
        let mut gate = gate(u32::MAX, 0);
        let quota = TenantQuota::default().with_instances(2).with_cpu_millis(500);
        assert!(gate.limit(TenantKey(1), Some(quota), 0), "new");
        assert!(!gate.limit(TenantKey(1), Some(quota), 0), "and the same again");
        for id in 0..4 {
            gate.ask(Ask { cpu_millis: 200, ..ask(1, id) });
        }
        gate.ask(Ask { need: Need::Size, ..ask(1, 4) });
        gate.ask(ask(2, 5));
        let mut begun = Vec::new();
        let mut told = Vec::new();
        while let Some(turn) = gate.admit(0) {
            match turn {
                Turn::Begin(ask) => begun.push(ask.id.0),
                Turn::Over(ask, over) => told.push((ask.id.0, over.resource, over.used, over.limit)),
                Turn::Never(..) => panic!("{turn:?}"),
            }
        }
        assert_eq!(begun, [0, 5, 1], "two of the one, and the other's at its turn");
        let instances = |id| (id, QuotaResource::Instances, 2.0, 2.0);
        assert_eq!(told, [instances(2), instances(3)], "each that requests wait for, and no other");
        assert!(!gate.is_short(), "the line of others is not held");
        assert_eq!((gate.waiting(), gate.waiting_for_others()), (3, 0));
        let why = gate.why(InstanceId(2)).unwrap();
        assert!(why.contains("quota instances") && why.contains("2 of 2"), "{why}");

        // Another limit is named when that is the one in the way; raised, both go on.
        gate.limit(TenantKey(1), Some(quota.with_instances(9)), 0);
        gate.promote(InstanceId(2));
        let Some(Turn::Over(_, over)) = gate.admit(0) else { panic!("it is over") };
        assert_eq!((over.resource, over.used, over.asked), (QuotaResource::Cpu, 400.0, 200.0));
        gate.limit(TenantKey(1), None, 0);
        assert_eq!(std::iter::from_fn(|| begin(&mut gate)).count(), 3);
        assert!(gate.pressure(0).is_empty(), "nobody is limited any more");
    }

    #[test]
    fn what_a_quota_leaves_goes_to_what_requests_wait_for() {
        let mut gate = gate(u32::MAX, 0);
        gate.limit(TenantKey(1), Some(TenantQuota::default().with_instances(1)), 0);
        for id in 0..3 {
            gate.ask(Ask { need: Need::Size, ..ask(1, id) });
        }
        assert_eq!(begin(&mut gate).unwrap().id, InstanceId(0));
        gate.ask(ask(1, 3));
        assert!(matches!(gate.admit(0), Some(Turn::Over(ask, _)) if ask.id == InstanceId(3)));
        assert!(gate.admit(0).is_none(), "told once");
        gate.ask(ask(1, 4));
        assert!(matches!(gate.admit(0), Some(Turn::Over(ask, _)) if ask.id == InstanceId(4)));
        gate.gone(TenantKey(1), Takes { memory: 1, cpu_millis: 0 });
        assert_eq!(begin(&mut gate).unwrap().id, InstanceId(3), "though others were in line before");
        let again = gate.admit(0);
        assert!(
            matches!(again, Some(Turn::Over(ask, _)) if ask.id == InstanceId(4)),
            "it was not for this one"
        );
        assert!(gate.admit(0).is_none());
    }

    #[test]
    fn starts_of_a_tenant_come_no_faster_than_its_rate() {
        let mut gate = gate(u32::MAX, 0);
        gate.limit(TenantKey(1), Some(TenantQuota::default().with_cold_starts_per_second(2.0)), 0);
        for id in 0..5 {
            gate.ask(Ask { need: Need::Size, ..ask(1, id) });
        }
        assert_eq!(std::iter::from_fn(|| begin(&mut gate)).count(), 2, "a second's worth at once");
        assert_eq!(gate.look_at(), Some(500_000_000), "and the next in half a second");
        assert!(gate.admit(499_999_999).is_none());
        assert!(matches!(gate.admit(500_000_001), Some(Turn::Begin(_))));
        assert!(gate.admit(600_000_000).is_none());
        let told = gate.pressure(600_000_000);
        assert_eq!((told[0].limit, told[0].most, told[0].used.ceil()), (2.0, 2.0, 2.0));
    }

    proptest! {
        #[test]
        fn permits_and_budgets_are_never_exceeded_and_nothing_is_lost(
            ops in prop::collection::vec((0u8..4, 1u32..6, 1u64..40), 1..400),
        ) {
            let budget = BudgetConfig { instances: 12, memory_bytes: 200, reserve: 0.1, ..BudgetConfig::default() };
            let mut gate = Gate::new(GateConfig { starts: 3, reserve: 1 }, budget, 2);
            let quota = TenantQuota::default().with_instances(2).with_memory_bytes(50);
            gate.limit(TenantKey(1), Some(quota), 0);
            let (mut next, mut starting, mut running) = (0, Vec::new(), Vec::new());
            let (mut asked, mut admitted, mut withdrawn) = (0usize, 0usize, 0usize);
            let mut now = 0;
            for (op, tenant, memory) in ops {
                now += memory * 300_000_000;
                match op {
                    0 => {
                        next += 1;
                        asked += 1;
                        let need = [Need::Expected, Need::Size, Need::Requests][memory as usize % 3];
                        gate.ask(Ask { memory, need, ..ask(tenant, next) });
                    }
                    1 => {
                        gate.promote(InstanceId(u64::from(tenant) * 7));
                        if let Some(Turn::Begin(ask)) = gate.admit(now) {
                            admitted += 1;
                            starting.push(ask);
                        }
                    }
                    2 if !starting.is_empty() => {
                        let ask: Ask = starting.remove(memory as usize % starting.len());
                        gate.started(ask.tenant, ask.need);
                        running.push(ask);
                    }
                    3 if !running.is_empty() => {
                        let ask: Ask = running.remove(memory as usize % running.len());
                        gate.gone(ask.tenant, ask.takes());
                    }
                    _ => withdrawn += usize::from(gate.withdraw(InstanceId(memory))),
                }
                prop_assert!(gate.starting() <= 3);
                prop_assert!(gate.instances <= 12 && gate.memory <= 200);
                let held = gate.tenants.get(&TenantKey(1)).map_or_else(Held::default, |one| one.held);
                prop_assert!(held.instances <= 2 && held.memory <= 50, "{held:?}");
                prop_assert!(gate.expected <= 1);
                prop_assert_eq!(gate.waiting(), asked - admitted - withdrawn);
                prop_assert_eq!(gate.sizes.values().sum::<u32>() as usize, gate.waiting());
                let wanting = gate.tenants.values().filter(|tenant| !tenant.pending.is_empty()).count();
                prop_assert_eq!(gate.turns.len(), wanting);
            }
        }
    }
}

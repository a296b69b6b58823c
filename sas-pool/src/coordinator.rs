//! What is done over all shards: turns at the gate, room in the budgets, and what is due.

use std::sync::Arc;

use sas_core::{InstanceId, QuotaExceeded, QuotaResource, TenantKey, TenantQuota};

use crate::{
    config::PoolConfig,
    effects::{Candidate, Holds},
    executor::Due,
    gate::{Ask, Shortage, Turn},
    rules::Rules,
    shard::Shard,
    shared::{Shared, Turns},
};

pub(crate) struct Coordinator {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shards: Box<[Arc<Shard>]>,
}

impl Coordinator {
    pub(crate) fn new(config: PoolConfig) -> Arc<Self> {
        let shared = Arc::new(Shared::new(Rules::new(config)));
        let shards = (0..shared.rules.config.shards).map(|index| Shard::new(&shared, index)).collect();
        let coordinator = Arc::new(Self { shared, shards });
        let turns: Arc<dyn Turns> = Arc::clone(&coordinator) as _;
        coordinator.shared.take_turns_from(Arc::downgrade(&turns));
        let due: Arc<dyn Due> = Arc::clone(&coordinator) as _;
        coordinator.shared.executor.call(Arc::downgrade(&due));
        if coordinator.shared.stems.any() {
            coordinator.shared.executor.arm(coordinator.shared.rules.now());
        }
        coordinator
    }

    fn shard_of(&self, id: InstanceId) -> &Arc<Shard> {
        &self.shards[self.shared.rules.ids.shard(id) as usize]
    }

    /// When somebody waits for memory or an instance, idle instances go before anybody is refused: gives stems up, then
    /// stops idle instances, until what is short can be given. Says whether stems were given up: their memory is free
    /// at once.
    fn make_room(&self, shortage: Shortage) -> bool {
        let mut left = shortage;
        self.shared.stems.give_up(&mut left.memory);
        let given_up = left.memory < shortage.memory;
        if left == Shortage::default() {
            return given_up;
        }
        // Over all shards, so that the cheapest to lose goes first wherever it is.
        let mut idle: Vec<_> = self.shards.iter().flat_map(|shard| shard.idle()).collect();
        idle.sort_by(|one, two| {
            one.worth.total_cmp(&two.worth).then(one.since.cmp(&two.since)).then(one.id.cmp(&two.id))
        });
        // Those of tenants over their share go first.
        for over_share_only in [true, false] {
            for candidate in &idle {
                if left == Shortage::default() {
                    return given_up;
                }
                self.shard_of(candidate.id).reclaim(candidate.id, &mut left, over_share_only);
            }
        }
        given_up
    }

    /// Changes what a tenant may use. What it has beyond that is not stopped for it: nothing more of it starts until
    /// enough has ended.
    pub(crate) fn limit(&self, tenant: TenantKey, quota: Option<TenantQuota>) {
        if self.shared.rules.limit(tenant, quota) {
            self.shards.iter().for_each(|shard| shard.adopt(tenant));
        }
        self.pump();
    }

    /// A tenant's quota has no room for a start that requests wait for: its own idle instances go for it, if that is
    /// enough; else those who wait are told.
    fn over_quota(&self, ask: &Ask, over: QuotaExceeded) {
        let rules = &self.shared.rules;
        let held = !matches!(over.resource, QuotaResource::ColdStarts);
        if held && rules.gate.lock().may_look(ask.tenant, rules.now()) {
            if self.make_room_of(ask.tenant, &over) {
                return;
            }
            rules.gate.lock().looked(ask.tenant, rules.now());
        }
        let told = self.shards[ask.shard as usize].over_quota(ask.id, over);
        // The claim that brought it here is told when it wants its place in the line.
        rules.gate.lock().over_quota(ask.tenant, over.resource, told);
    }

    /// Stops idle instances of a tenant until what is over its quota would fit; none when all of them are too few.
    fn make_room_of(&self, tenant: TenantKey, over: &QuotaExceeded) -> bool {
        let mut lacks = over.used + over.asked - over.limit;
        let mut idle: Vec<_> = self.shards.iter().flat_map(|shard| shard.idle()).collect();
        idle.retain(|candidate| candidate.tenant == tenant);
        idle.sort_by(|one, two| {
            one.worth.total_cmp(&two.worth).then(one.since.cmp(&two.since)).then(one.id.cmp(&two.id))
        });
        let gives = |candidate: &Candidate| match over.resource {
            QuotaResource::Memory => candidate.takes.memory as f64,
            QuotaResource::Cpu => candidate.takes.cpu_millis as f64,
            _ => 1.0,
        };
        if idle.iter().map(gives).sum::<f64>() < lacks {
            return false;
        }
        for candidate in idle {
            if lacks <= 0.0 {
                break;
            }
            // All of it: what one gives is what counts here.
            let all = Shortage { instances: 1, memory: u64::MAX };
            let mut left = all;
            self.shard_of(candidate.id).reclaim(candidate.id, &mut left, false);
            if left != all {
                lacks -= gives(&candidate);
            }
        }
        lacks <= 0.0
    }
}

impl Turns for Coordinator {
    /// Begins all starts that may begin. One thread at a time does; whoever comes meanwhile makes it look again.
    fn pump(&self) {
        let rules = &self.shared.rules;
        let mut gate = rules.gate.lock();
        if gate.pumping {
            return;
        }
        gate.pumping = true;
        loop {
            let Some(turn) = gate.admit(rules.now()) else {
                gate.pumping = false;
                let (short, new, look_at) = (gate.is_short(), gate.newly_short(), gate.look_at());
                rules.set_short(short);
                drop(gate);
                if let Some(at) = look_at {
                    self.shared.executor.arm(at);
                }
                match new {
                    // What stems held is free at once; idle instances give theirs back when they are gone.
                    Some(shortage) if self.make_room(shortage) => self.pump(),
                    // Nobody waits for the CPU: stems may boot, if that stays so.
                    None if !short && self.shared.stems.any() => self.shared.stems.refill_soon(),
                    _ => {}
                }
                return;
            };
            drop(gate);
            match turn {
                Turn::Begin(ask) => {
                    let holds = Holds { permit: ask.gated, memory: Some(ask.memory), need: ask.need };
                    self.shards[ask.shard as usize].begin(ask.id, holds);
                }
                Turn::Never(ask, budget) => self.shards[ask.shard as usize].refuse(&ask, budget),
                Turn::Over(ask, over) => self.over_quota(&ask, over),
            }
            gate = rules.gate.lock();
        }
    }
}

impl Due for Coordinator {
    fn expire(&self) -> u64 {
        let due = |look_at: Option<u64>| look_at.filter(|&at| at <= self.shared.rules.now());
        let look_at = self.shared.rules.gate.lock().look_at();
        if due(look_at).is_some() {
            self.pump();
        }
        let look_at = self.shared.rules.gate.lock().look_at().unwrap_or(u64::MAX);
        let next = self.shards.iter().map(|shard| shard.expire()).min().unwrap_or(u64::MAX).min(look_at);
        if self.shared.stems.any() { next.min(self.shared.stems.tick()) } else { next }
    }
}

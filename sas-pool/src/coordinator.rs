//! What is done over all shards: turns at the gate, room in the budgets, and what is due.

use std::sync::Arc;

use sas_core::InstanceId;

use crate::{
    config::PoolConfig,
    effects::Holds,
    executor::Due,
    gate::{Shortage, Turn},
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

//! What the scaler is told: the load of each active revision since its last visit.

use std::{sync::Arc, time::Duration};

use sas_core::{Deployed, Instance, InstanceId, Load, RevisionKey, Usage};

use crate::{
    effects::{Effects, LastSample, Reading},
    revision::{Ended, Link},
    rules::Rules,
    shard::Shard,
    state::State,
};

/// A revision's load, and what is to be sampled for it.
struct Visit {
    load: Load,
    deployed: Arc<Deployed>,
    samples: Vec<Sample>,
}

struct Sample {
    id: InstanceId,
    handle: Arc<dyn Instance>,
    /// Since when it is ready.
    ready: u64,
    before: Option<(u64, Usage)>,
}

/// Visits the loads of a shard. Nothing foreign runs under its lock.
pub(crate) fn take(shard: &Shard, visit: &mut dyn FnMut(&Load, &Arc<Deployed>)) {
    let mut visits = Vec::new();
    let now = shard.with(|state, rules, fx| {
        let now = rules.now();
        state.loads(rules, &mut visits, now, fx);
        now
    });
    let mut sampled = Vec::new();
    let mut readings = Vec::new();
    for visited in &mut visits {
        let metered = shard.shared.rules.metering.then_some(&mut readings);
        measure(visited, now, &mut sampled, metered);
    }
    shard.shared.rules.meter(readings.into_iter());
    if !sampled.is_empty() {
        let mut state = shard.state.lock();
        for (id, usage) in sampled {
            if let Some(i) = state.find(&shard.shared.rules, id) {
                state.instances[i as usize].sampled = Some((now, usage));
            }
        }
    }
    let measured: Vec<(RevisionKey, f64)> =
        visits.iter().filter_map(|visited| Some((visited.load.revision, visited.load.memory?))).collect();
    if !measured.is_empty() {
        let mut state = shard.state.lock();
        for (key, bytes) in measured {
            if let Some(a) = state.lookup(&shard.shared.rules, key).and_then(|slot| state.active(slot)) {
                state.actives[a as usize].measured = bytes as u64;
            }
        }
    }
    for visited in &visits {
        visit(&visited.load, &visited.deployed);
    }
}

/// Means over the ready instances whose usage is known.
fn measure(
    visited: &mut Visit,
    now: u64,
    sampled: &mut Vec<(InstanceId, Usage)>,
    mut readings: Option<&mut Vec<Reading>>,
) {
    let (mut cpu, mut cpu_count, mut memory, mut count) = (0.0, 0u32, 0.0, 0u32);
    for sample in visited.samples.drain(..) {
        let Some(usage) = sample.handle.usage() else { continue };
        memory += usage.memory_bytes as f64;
        count += 1;
        if let Some(readings) = &mut readings {
            let (at, cpu_ns) = sample.before.map_or((sample.ready, 0), |(at, before)| (at, before.cpu_ns));
            let (revision, deployed) = (visited.load.revision, Arc::clone(&visited.deployed));
            readings.extend(LastSample { revision, deployed, at, cpu_ns }.reading(sample.id, usage, now));
        }
        if let Some((at, before)) = sample.before
            && now > at
        {
            cpu += usage.cpu_ns.saturating_sub(before.cpu_ns) as f64 / (now - at) as f64;
            cpu_count += 1;
        }
        sampled.push((sample.id, usage));
    }
    visited.load.cpu = (cpu_count > 0).then(|| cpu / f64::from(cpu_count));
    visited.load.memory = (count > 0).then(|| memory / f64::from(count));
}

impl State {
    fn loads(&mut self, rules: &Rules, visits: &mut Vec<Visit>, now: u64, fx: &mut Effects) {
        let visited = self.visited.replace(now);
        visits.reserve(self.live.len() + self.ended.len());
        self.sort_live();
        for at in 0..self.live.len() {
            let a = self.live[at];
            let active = &mut self.actives[a as usize];
            if active.orphan {
                continue;
            }
            active.account(now);
            let from = visited.unwrap_or(active.since);
            let mut load = Load::idle(active.key.0);
            load.concurrency = mean(active.area, now.saturating_sub(from), active.load);
            load.requests = active.requests;
            load.queued = active.waiting();
            load.ready = (active.slots.len() + active.suspended.len()) as u32;
            load.starting = active.coming.len() as u32;
            load.start_time = (active.start_time > 0).then(|| Duration::from_nanos(active.start_time));
            active.area = 0;
            active.requests = 0;
            let Some(deployed) = active.deployed.clone() else { continue };
            let mut samples = Vec::new();
            if active.sampled {
                for slot in &self.actives[a as usize].slots {
                    let instance = &self.instances[rules.ids.slot(slot.id) as usize];
                    if let Some(handle) = &instance.instance {
                        let handle = Arc::clone(handle);
                        let (ready, before) = (instance.ready, instance.sampled);
                        samples.push(Sample { id: slot.id, handle, ready, before });
                    }
                }
            }
            visits.push(Visit { load, deployed, samples });
        }
        for ended in std::mem::take(&mut self.ended) {
            let revision = &mut self.revisions[ended.slot as usize];
            debug_assert!(matches!(revision.link.get(), Link::Ended(_)));
            revision.link.set(Link::Asleep);
            let key = RevisionKey::new(ended.slot << rules.ids.shard_bits | self.shard, revision.generation);
            let Some(deployed) = revision.deployed.clone() else { continue };
            visits.push(Visit { load: last(&ended, key, visited, now), deployed, samples: Vec::new() });
        }
        if rules.metering {
            self.read_meters(now, fx);
        }
    }

    /// Puts the live records in the order in which they lie in memory, where a visit of all meets them one after the other.
    fn sort_live(&mut self) {
        if self.live.is_sorted() {
            return;
        }
        self.live.sort();
        for (listed, &a) in self.live.iter().enumerate() {
            self.actives[a as usize].listed = listed as u32;
        }
    }

    fn read_meters(&mut self, now: u64, fx: &mut Effects) {
        for meter in self.meters.iter_mut().filter(|meter| meter.runs()) {
            let active = &self.actives[meter.active as usize];
            let (id, key) = (meter.id, active.key.0);
            let deployed = active.deployed.as_ref().expect("a record in use has its revision");
            let spent = meter.take(now);
            fx.readings
                .extend(spent.map(|(phase, ns)| Reading::Phase(id, key, Arc::clone(deployed), phase, ns)));
        }
    }
}

/// The load of a revision that fell asleep since the last visit.
fn last(ended: &Ended, key: RevisionKey, visited: Option<u64>, now: u64) -> Load {
    let mut load = Load::idle(key);
    load.concurrency = mean(ended.area, now.saturating_sub(visited.unwrap_or(0)), 0);
    load.requests = ended.requests;
    load.start_time = (ended.start_time > 0).then(|| Duration::from_nanos(ended.start_time));
    load
}

/// The mean over `span` nanoseconds; over none it is what is there now.
fn mean(area: u128, span: u64, present: u32) -> f64 {
    if span == 0 { f64::from(present) } else { area as f64 / span as f64 }
}

//! Stems: booted instances that belong to no revision yet. A cold start takes one of its class first; it is used once
//! and never handed on.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Weak},
    time::Duration,
};

use sas_core::{
    CapacityInput, CapacityPolicy, CapacityReason, Deployed, ExitReport, InstanceEvents, InstanceId,
    MeterPhase, Metered, RevisionKey, StartPhase, Stem, StemClass, StemRequest, StemView,
};
use tokio::time::Instant;

use crate::{
    clock::nanos,
    config::{StemClassConfig, StemsConfig},
    executor::Executor,
    rules::Rules,
    sync::Mutex,
};

/// What the meter is told instead of a revision.
const NOBODY: RevisionKey = RevisionKey(u64::MAX);

pub(crate) struct Stems {
    me: Weak<Stems>,
    rules: Arc<Rules>,
    executor: Arc<Executor>,
    shelf: Mutex<Shelf>,
    /// Whether any class is held, or may be.
    any: bool,
}

#[derive(Default)]
struct Shelf {
    classes: BTreeMap<StemClass, Class>,
    /// How many ids were given out. Those of instances have a generation above; stems have none.
    ids: u32,
    next_slot: u64,
    booting: u32,
    closed: bool,
}

struct Class {
    config: StemClassConfig,
    policy: Option<Box<dyn CapacityPolicy>>,
    /// The oldest first.
    ready: VecDeque<Held>,
    booting: BTreeSet<InstanceId>,
    /// What the policy wants.
    target: u32,
    /// What memory allows of it.
    granted: u32,
    taken: u32,
    missed: u32,
    /// Registered revisions that can come from it.
    revisions: u32,
    /// It is held because of them.
    automatic: bool,
    /// Counts since the pool was made, and the last decision.
    seen: StemView,
    boot_time: Duration,
    /// Boots that failed in a row, and when the next may be tried.
    failures: u32,
    retry_at: u64,
}

#[derive(Debug)]
struct Held {
    id: InstanceId,
    stem: Box<dyn Stem>,
    since: u64,
}

/// A boot that was decided.
struct Boot {
    id: InstanceId,
    class: StemClass,
    config: StemClassConfig,
}

impl Stems {
    pub(crate) fn new(rules: &Arc<Rules>, executor: &Arc<Executor>) -> Arc<Self> {
        let config = &rules.config.stems;
        let classes = config
            .classes
            .iter()
            .map(|(class, stems)| (class.clone(), Class::new(config, class, stems.clone(), false)));
        let shelf = Shelf { classes: classes.collect(), ..Shelf::default() };
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            rules: Arc::clone(rules),
            executor: Arc::clone(executor),
            any: !shelf.classes.is_empty() || config.automatic.is_some(),
            shelf: Mutex::new(shelf),
        })
    }

    /// Whether any class is held, or may be.
    pub(crate) fn any(&self) -> bool {
        self.any
    }

    /// A revision was registered: its class is held from now on, if that is how stems are held here.
    pub(crate) fn registered(&self, deployed: &Deployed) {
        let Some(name) = stem_class(deployed) else { return };
        let config = &self.rules.config.stems;
        {
            let mut shelf = self.shelf.lock();
            if let Some(class) = shelf.classes.get_mut(name) {
                class.revisions += 1;
                if !class.automatic || class.revisions > 1 {
                    return;
                }
                class.held_again();
            } else {
                let Some(automatic) = config.automatic else { return };
                let held = shelf.classes.values().filter(|class| class.automatic).count();
                if held >= automatic.classes as usize && !shelf.forget_unused() {
                    tracing::warn!(class = %name, "no stems are held of it: stems.automatic.classes are held already");
                    return;
                }
                let stems = StemClassConfig::new(
                    Arc::clone(&deployed.runtime),
                    automatic.min,
                    automatic.max,
                    automatic.memory_bytes,
                );
                let mut class = Class::new(config, name, stems, true);
                class.revisions = 1;
                shelf.classes.insert(name.clone(), class);
            }
            shelf.grant(&self.rules);
        }
        self.refill_soon();
    }

    /// A revision was unregistered: the last of an automatic class takes its stems with it.
    pub(crate) fn unregistered(&self, deployed: &Deployed) {
        let Some(name) = stem_class(deployed) else { return };
        {
            let mut shelf = self.shelf.lock();
            let Some(class) = shelf.classes.get_mut(name) else { return };
            class.revisions = class.revisions.saturating_sub(1);
            if !class.automatic || class.revisions > 0 {
                return;
            }
            shelf.grant(&self.rules);
        }
        self.trim();
    }

    /// The classes as operators see them.
    pub(crate) fn views(&self) -> Vec<StemView> {
        let shelf = self.shelf.lock();
        let views = shelf.classes.values().map(|class| {
            let mut view = class.seen.clone();
            view.ready = class.ready.len() as u32;
            view.booting = class.booting.len() as u32;
            view.size = class.granted;
            view
        });
        views.collect()
    }

    /// A stem for a start, if its class is held: none is a miss, and the next are booted.
    pub(crate) fn take(&self, class: &StemClass) -> Option<Box<dyn Stem>> {
        let held = {
            let mut shelf = self.shelf.lock();
            let state = shelf.classes.get_mut(class)?;
            state.taken += 1;
            let held = state.ready.pop_front();
            if held.is_some() {
                self.rules.gate.lock().stem_gone(state.config.memory_bytes);
                self.rules.metrics.stem_hits.increment(1);
                state.seen.used += 1;
            } else {
                state.missed += 1;
                state.seen.missed += 1;
                self.rules.metrics.stem_misses.increment(1);
            }
            held
        };
        if let Some(held) = &held {
            told_pooled(&self.rules, held);
        }
        self.refill_soon();
        held.map(|held| held.stem)
    }

    /// Refills in a moment. A burst comes one claim after the other: by then all of it is in line, and its cold starts go
    /// before the boots, which at its first claim would have had the CPU to themselves.
    pub(crate) fn refill_soon(&self) {
        self.executor.arm(self.rules.now() + nanos(MOMENT));
    }

    /// Ends the slots of time that are over, and says when the next one is.
    pub(crate) fn tick(&self) -> u64 {
        let rules = &self.rules;
        let now = rules.now();
        let slot = rules.config.stems.slot;
        let next = {
            let mut shelf = self.shelf.lock();
            if shelf.classes.is_empty() || shelf.closed {
                return u64::MAX;
            }
            let retry = shelf.classes.values().map(|class| class.retry_at).filter(|at| *at > now).min();
            if now >= shelf.next_slot {
                if shelf.next_slot > 0 {
                    shelf.end_slot(rules, slot);
                }
                shelf.next_slot = now + nanos(slot);
            }
            shelf.grant(rules);
            shelf.next_slot.min(retry.unwrap_or(u64::MAX))
        };
        self.trim();
        self.refill();
        next
    }

    /// Boots what is missing, as far as nobody waits for the CPU or for memory.
    fn refill(&self) {
        let boots = self.shelf.lock().boots(&self.rules);
        for boot in boots {
            let stems = self.me.upgrade().expect("stems that are used are referred to");
            self.executor.spawn(async move { stems.boot(boot).await });
        }
    }

    async fn boot(&self, boot: Boot) {
        let rules = &self.rules;
        let begun = rules.now();
        let events = Arc::new(StemEvents(Weak::clone(&self.me)));
        let deadline = Instant::now() + rules.config.stems.boot_timeout;
        let request = StemRequest::new(boot.id, boot.class.clone(), events, deadline);
        let booted = tokio::select! {
            biased;
            () = self.executor.ended.cancelled() => return self.not_booted(&boot, None),
            booted = tokio::time::timeout_at(deadline, boot.config.runtime.start_stem(request)) => booted,
        };
        let stem = match booted {
            Ok(Ok(stem)) => stem,
            Ok(Err(error)) => return self.not_booted(&boot, Some(error.chain())),
            Err(_) => {
                return self.not_booted(&boot, Some("not booted in time (stems.boot_timeout)".into()));
            }
        };
        let now = rules.now();
        let surplus = {
            let mut shelf = self.shelf.lock();
            shelf.booting -= 1;
            let closed = shelf.closed;
            rules.metrics.stems_booted.increment(1);
            let mut surplus = Some(stem);
            // An automatic class may be gone when its last boot ended by itself.
            if let Some(class) = shelf.classes.get_mut(&boot.class) {
                class.boot_time = Duration::from_nanos(now - begun);
                class.failures = 0;
                class.seen.booted += 1;
                // Taken off the list: it died as it became ready.
                let lives = class.booting.remove(&boot.id);
                match surplus.take_if(|_| lives && !closed) {
                    Some(stem) => class.ready.push_back(Held { id: boot.id, stem, since: now }),
                    None => class.seen.wasted += 1,
                }
            }
            if surplus.is_some() {
                rules.metrics.stems_wasted.increment(1);
                rules.gate.lock().stem_gone(boot.config.memory_bytes);
            }
            surplus
        };
        if let Some(meter) = &rules.config.meter {
            meter.phase(Metered::host(NOBODY), boot.id, MeterPhase::Starting, now - begun);
        }
        if let Some(stem) = surplus {
            let _ = stem.stop().await;
        }
        self.refill();
    }

    fn not_booted(&self, boot: &Boot, error: Option<String>) {
        let rules = &self.rules;
        let mut shelf = self.shelf.lock();
        shelf.booting -= 1;
        rules.gate.lock().stem_gone(boot.config.memory_bytes);
        let Some(class) = shelf.classes.get_mut(&boot.class) else { return };
        class.booting.remove(&boot.id);
        let Some(error) = error else { return };
        class.failures += 1;
        class.seen.failed += 1;
        rules.metrics.stems_failed.increment(1);
        class.retry_at = rules.now() + nanos(rules.config.backoff.pause(class.failures));
        tracing::warn!(class = %boot.class, error, "a stem could not be booted");
        let at = class.retry_at;
        drop(shelf);
        self.executor.arm(at);
    }

    /// Stops stems beyond what is granted.
    fn trim(&self) {
        let rules = &self.rules;
        let mut surplus = Vec::new();
        for class in self.shelf.lock().classes.values_mut() {
            while class.ready.len() as u32 > class.granted {
                surplus.extend(class.ready.pop_front());
                class.seen.wasted += 1;
                rules.gate.lock().stem_gone(class.config.memory_bytes);
            }
        }
        self.discard(surplus);
    }

    /// Gives stems up until `bytes` are free; those that are left over are stopped. The largest holdings first.
    pub(crate) fn give_up(&self, bytes: &mut u64) {
        let rules = &self.rules;
        let mut surplus = Vec::new();
        {
            let mut shelf = self.shelf.lock();
            while *bytes > 0 {
                let holding = |class: &Class| class.ready.len() as u64 * class.config.memory_bytes;
                let Some(class) = shelf
                    .classes
                    .values_mut()
                    .max_by_key(|class| holding(class))
                    .filter(|class| holding(class) > 0)
                else {
                    break;
                };
                surplus.extend(class.ready.pop_front());
                class.seen.wasted += 1;
                *bytes = bytes.saturating_sub(class.config.memory_bytes);
                rules.gate.lock().stem_gone(class.config.memory_bytes);
            }
        }
        self.discard(surplus);
    }

    fn discard(&self, surplus: Vec<Held>) {
        for held in surplus {
            self.rules.metrics.stems_wasted.increment(1);
            told_pooled(&self.rules, &held);
            self.executor.spawn(async move {
                if let Err(error) = held.stem.stop().await {
                    tracing::warn!(stem = %held.id, error = %error.chain(), "a stem may not be gone");
                }
            });
        }
    }

    /// A stem ended by itself.
    fn exited(&self, id: InstanceId) {
        let rules = &self.rules;
        let mut lost = None;
        for class in self.shelf.lock().classes.values_mut() {
            if let Some(at) = class.ready.iter().position(|held| held.id == id) {
                lost = class.ready.remove(at);
                class.seen.wasted += 1;
                rules.metrics.stems_wasted.increment(1);
                rules.gate.lock().stem_gone(class.config.memory_bytes);
                break;
            }
            if class.booting.remove(&id) {
                break;
            }
        }
        if let Some(held) = lost {
            told_pooled(rules, &held);
            self.refill();
        }
    }

    /// Stops all stems, for good. Boots end with the pool's tasks.
    pub(crate) fn close(&self) {
        let rules = &self.rules;
        let mut surplus = Vec::new();
        {
            let mut shelf = self.shelf.lock();
            shelf.closed = true;
            for class in shelf.classes.values_mut() {
                class.seen.wasted += class.ready.len() as u64;
                for held in class.ready.drain(..) {
                    rules.gate.lock().stem_gone(class.config.memory_bytes);
                    surplus.push(held);
                }
            }
        }
        if !surplus.is_empty() {
            self.discard(surplus);
        }
    }
}

/// The class of stems that a revision can come from.
fn stem_class(deployed: &Deployed) -> Option<&StemClass> {
    deployed.artifact.info().stem.as_ref().filter(|_| deployed.runtime.capabilities().stems)
}

fn told_pooled(rules: &Rules, held: &Held) {
    if let Some(meter) = &rules.config.meter {
        let ns = rules.now().saturating_sub(held.since);
        meter.phase(Metered::host(NOBODY), held.id, MeterPhase::Pooled, ns);
    }
}

impl Class {
    fn new(stems: &StemsConfig, name: &StemClass, config: StemClassConfig, automatic: bool) -> Self {
        let mut seen = StemView::new(name.clone(), config.memory_bytes);
        seen.wanted = config.min;
        Self {
            policy: stems.capacity.as_ref().map(|make| make(name)),
            ready: VecDeque::new(),
            booting: BTreeSet::new(),
            target: config.min,
            granted: 0,
            taken: 0,
            missed: 0,
            revisions: 0,
            automatic,
            seen,
            boot_time: Duration::ZERO,
            failures: 0,
            retry_at: 0,
            config,
        }
    }

    /// A revision can come from it again: what its boots failed of may be gone.
    fn held_again(&mut self) {
        self.failures = 0;
        self.retry_at = 0;
    }

    fn is_unused(&self) -> bool {
        self.automatic && self.revisions == 0
    }

    /// Why `granted` are held.
    fn reason(&self, granted: u32) -> CapacityReason {
        if self.is_unused() {
            CapacityReason::Unused
        } else if granted < self.target {
            CapacityReason::Memory
        } else if self.seen.wanted < self.target {
            CapacityReason::Minimum
        } else if self.seen.wanted > self.target {
            CapacityReason::Maximum
        } else if self.policy.is_none() || self.boot_time.is_zero() {
            CapacityReason::New
        } else {
            CapacityReason::Law
        }
    }
}

impl Shelf {
    /// Asks the policies for the next slot.
    fn end_slot(&mut self, rules: &Rules, slot: Duration) {
        let wall = rules.config.clock.now();
        for class in self.classes.values_mut() {
            let mut input = CapacityInput::new(wall, slot, class.taken);
            input.missed = class.missed;
            input.ready = class.ready.len() as u32;
            input.booting = class.booting.len() as u32;
            input.boot_time = class.boot_time;
            (input.min, input.max) = (class.config.min, class.config.max);
            (class.taken, class.missed) = (0, 0);
            class.seen.wanted =
                class.policy.as_mut().map_or(class.config.min, |policy| policy.target(&input));
            class.target = class.seen.wanted.clamp(class.config.min, class.config.max);
        }
    }

    /// Shares the memory of stems between the classes. A size that changes is told.
    fn grant(&mut self, rules: &Rules) {
        let wants: Vec<Want> = self
            .classes
            .values()
            .map(|class| match class.is_unused() {
                true => Want { least: 0, most: 0, bytes: class.config.memory_bytes },
                false => {
                    Want { least: class.config.min, most: class.target, bytes: class.config.memory_bytes }
                }
            })
            .collect();
        for (class, granted) in self.classes.values_mut().zip(grants(&wants, rules.config.stems.memory_bytes))
        {
            let reason = class.reason(granted);
            if granted == class.granted && reason == class.seen.reason {
                continue;
            }
            class.granted = granted;
            class.seen.reason = reason;
            class.seen.decided_at = rules.config.clock.now();
            tracing::info!(
                class = %class.seen.class,
                size = granted,
                wanted = class.seen.wanted,
                ?reason,
                "stems to hold"
            );
        }
    }

    /// Makes room for another automatic class; false when all are in use.
    fn forget_unused(&mut self) -> bool {
        let unused = self.classes.iter().find_map(|(name, class)| {
            (class.is_unused() && class.ready.is_empty() && class.booting.is_empty()).then(|| name.clone())
        });
        unused.is_some_and(|name| self.classes.remove(&name).is_some())
    }

    /// The boots that may begin now.
    fn boots(&mut self, rules: &Rules) -> Vec<Boot> {
        let mut boots = Vec::new();
        let now = rules.now();
        let most = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        if self.closed || rules.gate.lock().waiting_for_others() > 0 {
            return boots;
        }
        // A stem for each class in turn, the one that lacks most first: none starves while another refills.
        while self.booting < most {
            let lacking = |class: &Class| {
                let have = class.ready.len() as u32 + class.booting.len() as u32;
                if now < class.retry_at { 0 } else { class.granted.saturating_sub(have) }
            };
            let chosen =
                self.classes.iter_mut().filter(|(_, class)| lacking(class) > 0).max_by(|(_, a), (_, b)| {
                    let share = |class: &Class| f64::from(lacking(class)) / f64::from(class.granted);
                    share(a).total_cmp(&share(b))
                });
            let Some((name, class)) = chosen else { break };
            if !rules.gate.lock().take_for_stem(class.config.memory_bytes) {
                break;
            }
            self.ids += 1;
            let id = InstanceId(u64::from(rules.ids.first) << 32 | u64::from(self.ids));
            class.booting.insert(id);
            self.booting += 1;
            boots.push(Boot { id, class: name.clone(), config: class.config.clone() });
        }
        boots
    }
}

/// How long a burst takes to arrive, at most.
const MOMENT: Duration = Duration::from_millis(20);

/// What a class wants of the budget.
#[derive(Clone, Copy, Debug)]
struct Want {
    least: u32,
    most: u32,
    bytes: u64,
}

/// Shares a budget of memory between classes: first everybody's minimum, then max-min fair by bytes, so that the
/// class that wants most can't take what a smaller one wants.
fn grants(wants: &[Want], budget: u64) -> Vec<u32> {
    let mut granted = vec![0u32; wants.len()];
    let mut left = budget;
    for goal in [|want: &Want| want.least.min(want.most), |want: &Want| want.most] {
        // Those who want least are served first; what they leave is shared by the others.
        let mut open: Vec<usize> = (0..wants.len()).filter(|&at| granted[at] < goal(&wants[at])).collect();
        open.sort_by_key(|&at| u64::from(goal(&wants[at]) - granted[at]) * wants[at].bytes);
        let mut rest = open.len() as u64;
        for &at in &open {
            let want = &wants[at];
            let share = left / rest;
            let more = (share / want.bytes).min(u64::from(goal(want) - granted[at])) as u32;
            granted[at] += more;
            left -= u64::from(more) * want.bytes;
            rest -= 1;
        }
        // What rounding left over goes to whoever can still use it.
        for &at in &open {
            let want = &wants[at];
            let more = (left / want.bytes).min(u64::from(goal(want) - granted[at])) as u32;
            granted[at] += more;
            left -= u64::from(more) * want.bytes;
        }
    }
    granted
}

/// Whom a stem tells about its life while it is one.
struct StemEvents(Weak<Stems>);

impl std::fmt::Debug for StemEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StemEvents")
    }
}

impl InstanceEvents for StemEvents {
    fn phase(&self, _: InstanceId, _: StartPhase) {}

    fn exited(&self, id: InstanceId, _: ExitReport) {
        if let Some(stems) = self.0.upgrade() {
            stems.exited(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn want(least: u32, most: u32, bytes: u64) -> Want {
        Want { least, most, bytes }
    }

    #[test]
    fn a_large_class_does_not_starve_a_small_one() {
        assert_eq!(grants(&[want(0, 1000, 10), want(0, 5, 10)], 200), [15, 5]);
        assert_eq!(grants(&[want(0, 1000, 10), want(0, 1000, 20)], 400), [20, 10]);
        assert_eq!(grants(&[want(2, 10, 100), want(1, 10, 50)], 250), [2, 1], "minima first");
        assert_eq!(grants(&[want(5, 5, 100)], 250), [2], "as far as memory goes");
        assert_eq!(grants(&[want(1, 1, 300)], 250), [0], "a budget smaller than a stem holds none");
    }

    proptest! {
        #[test]
        fn grants_keep_the_budget_and_leave_nothing_usable(
            wants in prop::collection::vec((0u32..10, 0u32..50, 1u64..100), 1..6),
            budget in 0u64..4000,
        ) {
            let wants: Vec<Want> =
                wants.into_iter().map(|(least, more, bytes)| want(least, least + more, bytes)).collect();
            let granted = grants(&wants, budget);
            let spent: u64 = wants.iter().zip(&granted).map(|(want, n)| want.bytes * u64::from(*n)).sum();
            prop_assert!(spent <= budget);
            for (want, n) in wants.iter().zip(&granted) {
                prop_assert!(*n <= want.most);
                prop_assert!(*n == want.most || budget - spent < want.bytes, "{wants:?} {granted:?}");
            }
        }
    }
}

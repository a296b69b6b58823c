//! How many instances the two revisions of a roll-out may have: together no more than the service needs with one, and
//! the surge. Pure; see `docs/adr/0167-capacity-of-roll-outs.md`.

use sas_core::{SizeBounds, Surge};

/// One of the two revisions, as the pool sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sized {
    /// Instances that its scaler wants, or its minimum.
    pub(crate) asked: u32,
    /// The minimum of its spec.
    pub(crate) min: u32,
    /// Most instances that it may have; 0: no maximum.
    pub(crate) max: u32,
    /// Instances that take requests.
    pub(crate) ready: u32,
}

/// What is to be decided on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizing {
    pub(crate) old: Sized,
    pub(crate) new: Sized,
    /// The new revision's share of the traffic, in percent.
    pub(crate) moved: u32,
    /// The share that it is sized for.
    pub(crate) goal: u32,
    /// Whether the old one stays at its size although the new one has everything.
    pub(crate) keeps_old: bool,
    pub(crate) surge: Surge,
}

impl Sized {
    /// As many as its own maximum allows.
    fn within(&self, instances: u32) -> u32 {
        if self.max == 0 { instances } else { instances.min(self.max) }
    }
}

impl Sizing {
    /// Instances that the service would need with one revision: what both scalers want. Each rounds up, so the sum may be
    /// one too many; and a minimum counts by the share of the traffic, or it would be there twice.
    pub(crate) fn needed(&self) -> u32 {
        let wants = |of: Sized, share: u32| match of.asked > of.min {
            true => of.asked,
            // Also before its scaler decided anything.
            false => part(of.min, share),
        };
        let (old, new) = (wants(self.old, 100 - self.moved), wants(self.new, self.moved));
        let both = old.saturating_add(new) - u32::from(old > 0 && new > 0);
        let max = self.max();
        if max == 0 { both } else { both.min(max) }
    }

    /// Most instances of the service with one revision, the larger maximum; 0: one of the two has none.
    fn max(&self) -> u32 {
        if self.old.max == 0 || self.new.max == 0 { 0 } else { self.old.max.max(self.new.max) }
    }

    /// How many percent of the traffic the ready instances of the new revision are enough for.
    pub(crate) fn covered(&self) -> u32 {
        match u64::from(self.needed()) {
            0 => 100,
            // All but one, which the old revision has and can't lend: it goes with the last of the traffic.
            _ if self.new.ready >= self.total() - 1 => 100,
            // More will not come, whatever is needed.
            _ if self.new.max > 0 && self.new.ready >= self.new.max => 100,
            needed => (u64::from(self.new.ready) * 100 / needed).min(100) as u32,
        }
    }

    /// Instances of the new revision that its goal needs.
    pub(crate) fn wanted(&self) -> u32 {
        self.new.within(part(self.needed(), self.goal))
    }

    /// Instances that both may have.
    pub(crate) fn total(&self) -> u32 {
        let needed = self.needed();
        // Two revisions can't share one instance.
        needed.saturating_add(self.surge.of(needed)).min(self.most()).max(2)
    }

    /// The same at the service's maximum.
    fn most(&self) -> u32 {
        match self.max() {
            0 => u32::MAX,
            max => max.saturating_add(self.surge.of(max)).max(2),
        }
    }

    /// What holds for the old and the new revision.
    pub(crate) fn bounds(&self) -> [SizeBounds; 2] {
        let needed = self.needed();
        let most = self.most();
        if needed == 0 {
            // Nothing to size: whoever gets requests starts what they need, within the maximum.
            let [old, new] = self.limits(most, 1, 1);
            return [SizeBounds::new(0, old, old), SizeBounds::new(0, new, new)];
        }
        let total = self.total();
        let wanted = self.wanted();
        let (mut old, mut new);
        if self.keeps_old {
            // Who has all of the traffic comes first; what is kept for going back has the rest.
            new = wanted.min(total - 1);
            old = self.old.within(needed).min(total - new);
        } else {
            old = self.old.within(part(needed, 100 - self.moved)).min(total);
            new = wanted.min(total - old);
        }
        // The surge has no room for the next one: the old revision lends it, one at a time, and what it has for rounding up.
        let next = wanted.min(self.new.ready.saturating_add(1)).min(total - 1);
        if !self.keeps_old && new < next && old > 1 {
            new = next;
            old = old.min(total - new);
        }
        let mut spare = total - old - new;
        let mut take = |base: u32, asked: u32| {
            let more = asked.saturating_sub(base).min(spare);
            spare -= more;
            base + more
        };
        // Who has more of the traffic has the first word about what is left.
        let (old_most, new_most);
        if self.moved < 50 {
            old_most = take(old, self.old.asked);
            new_most = take(new, u32::MAX);
        } else {
            new_most = take(new, self.new.asked);
            old_most = take(old, u32::MAX);
        }
        let [old_limit, new_limit] = self.limits(most, old_most, new_most);
        [SizeBounds::new(old, old_most, old_limit), SizeBounds::new(new, new_most, new_limit)]
    }

    /// The service's maximum, shared out by the traffic; each may have what its decisions may make, and one at least.
    fn limits(&self, most: u32, old: u32, new: u32) -> [u32; 2] {
        let max = self.max();
        if max == 0 {
            return [u32::MAX, u32::MAX];
        }
        let old = part(max, 100 - self.moved).max(old).max(1).min(most - new.max(1));
        [old, most - old]
    }
}

fn part(of: u32, percent: u32) -> u32 {
    u32::try_from((u64::from(of) * u64::from(percent)).div_ceil(100)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sizing(asked: (u32, u32), ready: u32, moved: u32, goal: u32, surge: Surge) -> Sizing {
        let old = Sized { asked: asked.0, min: 0, max: 0, ready: asked.0 };
        let new = Sized { asked: asked.1, min: 0, max: 0, ready };
        Sizing { old, new, moved, goal, keeps_old: false, surge }
    }

    fn sides(sizing: &Sizing) -> [(u32, u32); 2] {
        sizing.bounds().map(|bounds| (bounds.floor, bounds.ceiling))
    }

    #[test]
    fn the_new_revision_grows_in_what_the_surge_and_the_old_one_leave() {
        let quarter = Surge::Percent(25);
        // Ten needed, three beyond them: a tenth is one instance.
        let first = sizing((10, 0), 0, 0, 10, quarter);
        assert_eq!((first.needed(), first.covered(), sides(&first)), (10, 0, [(10, 10), (1, 3)]));
        // Half of it is sized three at a time, and the old one shrinks as its share does.
        let half = sizing((9, 2), 2, 20, 50, quarter);
        assert_eq!((half.needed(), half.covered(), sides(&half)), (10, 20, [(8, 8), (5, 5)]));
    }

    #[test]
    fn without_a_surge_the_old_one_lends_one_at_a_time() {
        let none = Surge::Instances(0);
        assert_eq!(sides(&sizing((4, 0), 0, 0, 50, none)), [(3, 3), (1, 1)]);
        let moved = sizing((3, 1), 1, 25, 50, none);
        assert_eq!(moved.needed(), 3, "each side rounds up");
        assert!(moved.bounds().iter().map(|bounds| bounds.ceiling).sum::<u32>() <= 3);
    }

    #[test]
    fn the_last_instance_of_the_old_one_goes_with_the_last_of_the_traffic() {
        let none = Surge::Instances(0);
        let mut last = sizing((1, 8), 7, 90, 100, none);
        assert_eq!((last.needed(), last.covered()), (8, 100));
        last.new.ready = 6;
        assert_eq!((last.covered(), sides(&last)), (75, [(1, 1), (7, 7)]));
    }

    #[test]
    fn a_single_instance_gets_one_beside_it() {
        let single = sizing((1, 0), 0, 0, 1, Surge::Instances(0));
        assert_eq!(sides(&single), [(1, 1), (1, 1)]);
    }

    #[test]
    fn a_service_that_sleeps_has_nothing_to_size() {
        let asleep = sizing((0, 0), 0, 0, 10, Surge::Percent(25));
        assert_eq!((asleep.needed(), asleep.covered()), (0, 100));
        assert!(asleep.bounds().iter().all(|bounds| bounds.floor == 0 && bounds.ceiling > 0));
    }

    #[test]
    fn a_minimum_is_not_there_twice() {
        let mut both = sizing((5, 5), 1, 10, 25, Surge::Percent(20));
        (both.old.min, both.new.min) = (5, 5);
        assert_eq!(both.needed(), 5);
        let [old, new] = both.bounds();
        assert!(old.ceiling + new.ceiling <= 6, "{old:?} {new:?}");
    }

    #[test]
    fn what_is_kept_for_going_back_keeps_its_size() {
        let mut kept = sizing((2, 10), 10, 100, 100, Surge::Percent(100));
        kept.keeps_old = true;
        let [old, new] = kept.bounds();
        assert_eq!((old.floor, new.floor), (11, 11));
    }

    #[test]
    fn what_is_kept_for_going_back_takes_nothing_from_who_has_the_traffic() {
        let mut kept = sizing((1, 10), 10, 100, 100, Surge::Percent(25));
        kept.keeps_old = true;
        let [old, new] = kept.bounds();
        assert_eq!((kept.needed(), new.floor, old.floor), (10, 10, 3));
    }

    #[test]
    fn a_smaller_maximum_of_the_new_one_takes_nothing_from_the_old_one() {
        let mut smaller = sizing((20, 0), 0, 0, 10, Surge::Percent(25));
        (smaller.old.max, smaller.new.max) = (20, 5);
        let [old, new] = smaller.bounds();
        assert_eq!((smaller.needed(), old.floor, new.floor), (20, 20, 2));
        (smaller.goal, smaller.new.ready) = (100, 5);
        assert_eq!((smaller.covered(), smaller.wanted()), (100, 5), "no more of them will come");
    }

    fn anything() -> impl Strategy<Value = Sizing> {
        let surge =
            prop_oneof![(0..20_u32).prop_map(Surge::Instances), (0..=100_u32).prop_map(Surge::Percent)];
        let max = || prop_oneof![Just(0), 1..200_u32];
        let side = (0..200_u32, 0..20_u32, 0..200_u32, max()).prop_map(|(asked, min, ready, max)| {
            let side = Sized { max, ..Sized::default() };
            let min = side.within(min);
            Sized { asked: side.within(asked).max(min), min, max, ready: side.within(ready) }
        });
        (side.clone(), side, 0..=100_u32, 0..=100_u32, any::<bool>(), surge).prop_map(
            |(old, new, moved, goal, keeps_old, surge)| {
                let keeps_old = keeps_old && moved == 100;
                Sizing { old, new, moved, goal: goal.max(moved), keeps_old, surge }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn both_together_never_exceed_what_is_needed_and_the_surge(sizing in anything()) {
            let [old, new] = sizing.bounds();
            let needed = sizing.needed();
            if needed > 0 {
                let together = u64::from(old.ceiling) + u64::from(new.ceiling);
                let may = (u64::from(needed) + u64::from(sizing.surge.of(needed))).max(2);
                prop_assert!(together <= may, "{old:?} {new:?} with {needed} needed");
                prop_assert!(old.floor <= old.ceiling && new.floor <= new.ceiling, "{old:?} {new:?}");
                if sizing.moved == 100 {
                    let wanted = sizing.wanted().min(sizing.total() - 1);
                    prop_assert!(new.floor >= wanted, "all of the traffic with {new:?} of {wanted}");
                }
                if sizing.moved == 0 && sizing.goal == 0 {
                    prop_assert!(old.floor >= sizing.old.within(needed), "{old:?} has all of the traffic");
                }
            }
            let max = sizing.max();
            if max > 0 {
                let most = (max + sizing.surge.of(max)).max(2);
                prop_assert!(old.limit + new.limit <= most, "{old:?} {new:?} of {most}");
                prop_assert!(old.limit > 0 && new.limit > 0, "nobody is shut out: {old:?} {new:?}");
                if needed > 0 {
                    prop_assert!(old.ceiling <= old.limit && new.ceiling <= new.limit, "{old:?} {new:?}");
                }
            }
        }

        /// Moved on as the driver would, every roll-out comes to its end, whatever the surge; and the old revision is short
        /// of one instance at most meanwhile.
        #[test]
        fn every_roll_out_comes_to_its_end(needed in 0..120_u32, instances in 0..4_u32, goal in 1..=100_u32) {
            let mut sizing = sizing((needed, 0), 0, 0, goal, Surge::Instances(instances));
            for _ in 0..2_000 {
                if sizing.covered() >= goal {
                    return Ok(());
                }
                sizing.moved = sizing.moved.max(sizing.covered());
                let [old, new] = sizing.bounds();
                let has = sizing.needed() * (100 - sizing.moved) / 100;
                // Shares are whole percents: of hundreds of instances several are one.
                prop_assert!(old.floor + 1 + sizing.needed() / 100 >= has, "{:?} has traffic for {}", old, has);
                sizing.new.ready = new.floor;
                sizing.old.asked = part(needed, 100 - sizing.moved);
                sizing.new.asked = part(needed, sizing.moved);
                sizing.old.ready = old.floor;
            }
            prop_assert!(false, "stuck at {} % of {goal} %", sizing.moved);
        }
    }
}

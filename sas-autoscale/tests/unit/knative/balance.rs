//! Which instance an activator takes.

/// The two pickers of revisions with a limit of requests at once, and the slots that they have given out.
#[derive(Clone, Debug)]
pub struct Picker {
    targets: Vec<(String, u32)>,
    /// Slots of instances that are not targets any more, until they come back or are released.
    gone: Vec<(String, u32)>,
    slots: u32,
    cursor: Option<usize>,
}

impl Picker {
    /// In the order of addresses: for limits of 1 to 3.
    pub const fn first_available(slots: u32) -> Self {
        Self { targets: Vec::new(), gone: Vec::new(), slots, cursor: None }
    }

    /// In turn: for higher limits.
    pub const fn round_robin(slots: u32) -> Self {
        Self { targets: Vec::new(), gone: Vec::new(), slots, cursor: Some(0) }
    }

    /// The picker of a limit, as Knative chooses it; `None` without a limit, where two are drawn.
    pub const fn of(container_concurrency: u32) -> Option<Self> {
        match container_concurrency {
            0 => None,
            1..=3 => Some(Self::first_available(container_concurrency)),
            _ => Some(Self::round_robin(container_concurrency)),
        }
    }

    /// Changes the instances. A name that stays, or comes back, keeps its slots that are out.
    pub fn set_targets(&mut self, names: Vec<String>) {
        let mut known = std::mem::take(&mut self.targets);
        known.append(&mut self.gone);
        for name in names {
            let out =
                known.iter().position(|(other, _)| *other == name).map_or(0, |at| known.swap_remove(at).1);
            self.targets.push((name, out));
        }
        known.retain(|(_, out)| *out > 0);
        self.gone = known;
    }

    /// Takes a slot; `None`: all are out.
    pub fn acquire(&mut self) -> Option<String> {
        let count = self.targets.len();
        let from = match &mut self.cursor {
            None => 0,
            Some(cursor) => {
                if *cursor >= count {
                    *cursor = 0;
                }
                *cursor
            }
        };
        let at = (0..count).map(|by| (from + by) % count).find(|at| self.targets[*at].1 < self.slots)?;
        if let Some(cursor) = &mut self.cursor {
            *cursor = at + 1;
        }
        self.targets[at].1 += 1;
        Some(self.targets[at].0.clone())
    }

    /// Gives a slot back.
    pub fn release(&mut self, name: &str) {
        for (other, out) in self.targets.iter_mut().chain(&mut self.gone) {
            if other == name {
                *out = out.saturating_sub(1);
                return;
            }
        }
    }
}

/// The choice for revisions without a limit: two are drawn, the one with less in flight is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeastLoaded;

impl LeastLoaded {
    /// The index of the choice. `first` and `second` are uniform draws over all `u64`, `coin` decides ties.
    pub fn pick(in_flight: &[u32], first: u64, second: u64, coin: bool) -> Option<usize> {
        let count = in_flight.len() as u64;
        match count {
            0 => None,
            1 => Some(0),
            _ => {
                let one = usize::try_from(first % count).ok()?;
                let mut other = usize::try_from(second % (count - 1)).ok()?;
                if other >= one {
                    other += 1;
                }
                Some(match in_flight[one].cmp(&in_flight[other]) {
                    std::cmp::Ordering::Less => one,
                    std::cmp::Ordering::Greater => other,
                    std::cmp::Ordering::Equal => {
                        if coin {
                            one
                        } else {
                            other
                        }
                    }
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_after_the_other_while_there_are_slots() {
        let mut picker = Picker::round_robin(1);
        picker.set_targets(["a", "b"].map(str::to_owned).to_vec());
        assert_eq!(picker.acquire().as_deref(), Some("a"));
        assert_eq!(picker.acquire().as_deref(), Some("b"));
        assert_eq!(picker.acquire(), None);
    }

    #[test]
    fn of_two_distinct_instances_the_less_loaded_is_taken() {
        for first in 0..4 {
            for second in 0..3 {
                let at = LeastLoaded::pick(&[3, 1, 2, 0], first, second, true).unwrap();
                let one = usize::try_from(first).unwrap();
                assert!([3, 1, 2, 0][at] <= [3, 1, 2, 0][one]);
            }
        }
        assert_eq!(LeastLoaded::pick(&[1, 1], 0, 0, true), Some(0));
        assert_eq!(LeastLoaded::pick(&[1, 1], 0, 0, false), Some(1));
        assert_eq!(LeastLoaded::pick(&[7], 9, 9, false), Some(0));
        assert_eq!(LeastLoaded::pick(&[], 0, 0, false), None);
    }
}

//! Services that several hosts run: which of them gets a request that is passed on. Where there are none, a request pays
//! for one load.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use sas_core::{HostShare, LeaseOwner, Outcome};

use crate::seed::mix;

type All = HashMap<Box<str>, Arc<Sharing>>;

#[derive(Debug, Default)]
pub(crate) struct Shares {
    all: ArcSwapOption<All>,
    /// Changes are made one after the other.
    writing: Mutex<()>,
}

/// The hosts that run a service.
#[derive(Debug)]
pub(crate) struct Sharing {
    hosts: Vec<Sharer>,
    drawn: AtomicU64,
}

#[derive(Clone, Debug)]
struct Sharer {
    share: HostShare,
    passed: Arc<Passed>,
}

/// Requests of a service that this host passed on to another one and that are not over.
#[derive(Debug, Default)]
pub(crate) struct Passed(AtomicU32);

impl Passed {
    pub(crate) fn begin(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl LeaseOwner for Passed {
    fn release(&self, _token: u64, _outcome: Outcome) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shares {
    /// The hosts that run a service, named as `namespace/name`; `None`: one alone.
    pub(crate) fn of(&self, service: &str) -> Option<Arc<Sharing>> {
        self.all.load().as_ref()?.get(service).cloned()
    }

    pub(crate) fn set(&self, service: &str, hosts: Vec<HostShare>) {
        let _one_at_a_time = self.writing.lock();
        let mut all = self.all.load_full().map_or_else(All::default, |all| All::clone(&all));
        let before = all.remove(service);
        if !hosts.is_empty() {
            let known = |host: &str| {
                let mut hosts = before.iter().flat_map(|sharing| &sharing.hosts);
                hosts.find(|sharer| *sharer.share.host == *host).map(|sharer| Arc::clone(&sharer.passed))
            };
            let hosts = hosts.into_iter().map(|share| {
                let passed = known(&share.host).unwrap_or_default();
                Sharer { share, passed }
            });
            all.insert(
                service.into(),
                Arc::new(Sharing { hosts: hosts.collect(), drawn: AtomicU64::new(0) }),
            );
        }
        self.all.store((!all.is_empty()).then(|| Arc::new(all)));
    }
}

impl Sharing {
    /// One of the hosts that `may` have a request: of two that are drawn by their weights, the one with less under way for
    /// its weight.
    pub(crate) fn choose(&self, may: impl Fn(&str) -> bool) -> Option<(Arc<str>, Arc<Passed>)> {
        let open = || self.hosts.iter().filter(|one| one.share.weight > 0 && may(&one.share.host));
        let all: u64 = open().map(|one| u64::from(one.share.weight)).sum();
        if all == 0 {
            return None;
        }
        let drawn = mix(self.drawn.fetch_add(1, Ordering::Relaxed));
        let at = |mut at: u64| {
            open().find(|one| {
                let weight = u64::from(one.share.weight);
                let here = at < weight;
                at = at.wrapping_sub(weight);
                here
            })
        };
        let (first, second) = (at((drawn >> 32) % all)?, at((drawn & 0xffff_ffff) % all)?);
        let load = |one: &Sharer| u64::from(one.passed.0.load(Ordering::Relaxed)) + 1;
        let (one, other) =
            (load(first) * u64::from(second.share.weight), load(second) * u64::from(first.share.weight));
        let chosen = if one <= other { first } else { second };
        Some((Arc::clone(&chosen.share.host), Arc::clone(&chosen.passed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(hosts: &[(&str, u32)]) -> Vec<HostShare> {
        hosts.iter().map(|(host, weight)| HostShare::new(*host, *weight)).collect()
    }

    #[test]
    fn requests_go_by_weight_and_by_what_is_under_way() {
        let all = Shares::default();
        all.set("a/b", shares(&[("h0", 300), ("h1", 100), ("h2", 0)]));
        let sharing = all.of("a/b").expect("it is shared");
        let mut counts: HashMap<Arc<str>, u32> = HashMap::new();
        for _ in 0..4_000 {
            let (host, passed) = sharing.choose(|_| true).expect("somebody");
            passed.begin();
            *counts.entry(host).or_default() += 1;
        }
        // Nothing ends, so what is under way follows the weights closely.
        assert!((2_900..=3_100).contains(&counts["h0"]), "{counts:?}");
        assert!(!counts.contains_key("h2"));
        assert_eq!(&*sharing.choose(|host| host != "h0").expect("the other").0, "h1");
        assert!(sharing.choose(|_| false).is_none());
    }

    #[test]
    fn a_change_keeps_what_is_under_way_and_none_forgets_the_service() {
        let all = Shares::default();
        all.set("a/b", shares(&[("h0", 1), ("h1", 1)]));
        let (_, passed) = all.of("a/b").expect("shared").choose(|host| host == "h1").expect("h1");
        passed.begin();
        all.set("a/b", shares(&[("h1", 5), ("h2", 5)]));
        let hosts: Vec<_> =
            (0..50).filter_map(|_| all.of("a/b")?.choose(|_| true)).map(|(host, _)| host).collect();
        assert!(hosts.iter().filter(|host| &***host == "h2").count() > 25, "{hosts:?}");
        passed.release(0, Outcome::Ok);
        assert_eq!(passed.0.load(Ordering::Relaxed), 0);
        all.set("a/b", Vec::new());
        assert!(all.of("a/b").is_none() && all.all.load().is_none());
    }
}

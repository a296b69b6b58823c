use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use parking_lot::Mutex;
use sas_core::{
    Affinity, Error, ErrorKind, HostPattern, Result, RevisionKey, Route, RouteAction, RouteChange,
    RouteError, RouteQuery, RouteRule, Router, ValueMatch,
};
use sas_router::RouteTable;
use sas_testkit::router::{Subject, suite};

use crate::caught;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// No bug: the base of the others.
    Sound,
    AnyHostWillDo,
    ComparesHostsByCase,
    WildcardsBeforeExactHosts,
    WildcardsOfAnyDepth,
    ShortestPrefixWins,
    PrefixesEndAnywhere,
    IgnoresMethods,
    IgnoresHeaders,
    IgnoresQueries,
    LastRuleWins,
    SplitsByChance,
    OneCounterForAllSplits,
    SplitsInOneThreadOnly,
    AnotherSeedEachTime,
    DisabledLooksUnknown,
    TakesAnyWeights,
    RefusesWithoutTheHost,
    AppliesTheGoodHalf,
    RedirectsLiterally,
    AffinityOfNothing,
    AffinityOfAllCookies,
    ForgetsTheTenant,
    ForgetsTheTimeout,
    WakesAlways,
    ForgetsTheFallback,
    KeepsOldRules,
    KeepsRemovedHosts,
    FailsOnTheSecondRemoval,
    GoneAfterChanges,
    HoldsAThousandHosts,
    PanicsOnOddHosts,
    AppliesLater,
}

#[derive(Debug)]
struct Broken {
    inner: RouteTable,
    bug: Bug,
    calls: AtomicU64,
    /// Changes that wait to be applied.
    later: Mutex<Vec<RouteChange>>,
    /// The thread of the first split.
    thread: Mutex<Option<std::thread::ThreadId>>,
    /// Hosts and their rules, as they were set.
    set: Mutex<BTreeMap<HostPattern, Vec<RouteRule>>>,
}

static MADE: AtomicU64 = AtomicU64::new(0);

impl Broken {
    fn new(bug: Bug) -> Arc<Self> {
        let seed = if bug == Bug::AnotherSeedEachTime { MADE.fetch_add(1, SeqCst) * 7919 } else { 7 };
        let inner = RouteTable::new(seed);
        Arc::new(Self {
            inner,
            bug,
            calls: AtomicU64::new(0),
            later: Mutex::default(),
            thread: Mutex::default(),
            set: Mutex::default(),
        })
    }

    /// The weights of a request's rule, where it has a split.
    fn weights(&self, query: &RouteQuery<'_>) -> Option<Vec<(RevisionKey, u32)>> {
        let set = self.set.lock();
        let rules = set.get(&HostPattern::Exact(query.host.to_owned()))?;
        let rule = rules.iter().filter(|rule| query.path.starts_with(&rule.matches.path_prefix));
        let rule = rule.max_by_key(|rule| rule.matches.path_prefix.len())?;
        match &rule.action {
            RouteAction::Split(splits) if splits.len() > 1 => {
                Some(splits.iter().map(|split| (split.revision, split.weight)).collect())
            }
            _ => None,
        }
    }

    fn change(&self, rule: &mut RouteRule) {
        let matches = &mut rule.matches;
        match self.bug {
            Bug::IgnoresMethods => matches.methods.clear(),
            Bug::IgnoresHeaders => matches.headers.clear(),
            Bug::IgnoresQueries => {
                for (_, value) in &mut matches.query {
                    *value = ValueMatch::Present;
                }
            }
            Bug::TakesAnyWeights => {
                if let RouteAction::Split(splits) = &mut rule.action
                    && !splits.is_empty()
                    && splits.iter().map(|split| u64::from(split.weight)).sum::<u64>() != 100
                {
                    splits.truncate(1);
                    splits[0].weight = 100;
                }
            }
            Bug::RedirectsLiterally => {
                if let RouteAction::Redirect { location, .. } = &mut rule.action {
                    *location = location.replace("{query}", "");
                }
            }
            Bug::AffinityOfAllCookies => {
                if let Affinity::Cookie(_) = rule.affinity {
                    rule.affinity = Affinity::Header("cookie".into());
                }
            }
            _ => {}
        }
    }
}

impl Router for Broken {
    fn route(&self, query: &RouteQuery<'_>) -> Result<Route, RouteError> {
        let mut query = *query;
        let calls = self.calls.fetch_add(1, SeqCst);
        match self.bug {
            Bug::ComparesHostsByCase if query.host.bytes().any(|byte| byte.is_ascii_uppercase()) => {
                return Err(RouteError::NoRoute);
            }
            Bug::PanicsOnOddHosts => assert!(query.host.is_ascii(), "{} is not ASCII", query.host),
            Bug::WildcardsOfAnyDepth if self.inner.route(&query) == Err(RouteError::NoRoute) => {
                if let Some(dot) = query.host.find('.') {
                    query.host = &query.host[dot + 1..];
                }
            }
            Bug::PrefixesEndAnywhere if query.path.starts_with("/apis") => query.path = "/api",
            Bug::ShortestPrefixWins => {
                let end = query.path.match_indices('/').nth(1).map_or(query.path.len(), |(at, _)| at);
                query.path = &query.path[..end];
            }
            Bug::WildcardsBeforeExactHosts => {
                let parent = query.host.split_once('.').map(|(_, parent)| parent.to_owned());
                let sibling = format!("never-set.{}", parent.unwrap_or_default());
                let wild = self.inner.route(&RouteQuery { host: &sibling, ..query });
                let any = self.inner.route(&RouteQuery { host: "never.set.anywhere", ..query });
                if wild.is_ok() && wild != any {
                    return wild;
                }
            }
            Bug::GoneAfterChanges if self.later.lock().pop().is_some() => return Err(RouteError::NoRoute),
            _ => {}
        }
        if matches!(self.bug, Bug::SplitsByChance | Bug::OneCounterForAllSplits | Bug::SplitsInOneThreadOnly)
            && let (Some(weights), Ok(Route::To(mut target))) =
                (self.weights(&query), self.inner.route(&query))
        {
            let mixed = calls.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
            let mut place = match self.bug {
                Bug::SplitsByChance => (mixed % 100) as u32,
                Bug::OneCounterForAllSplits => (calls % 100) as u32,
                _ if *self.thread.lock().get_or_insert(std::thread::current().id())
                    != std::thread::current().id() =>
                {
                    0
                }
                _ => return self.inner.route(&query),
            };
            for (revision, weight) in weights {
                if place < weight {
                    target.revision = revision;
                    break;
                }
                place -= weight;
            }
            return Ok(Route::To(target));
        }
        let routed = self.inner.route(&query);
        match (self.bug, routed) {
            (Bug::AnyHostWillDo, Err(RouteError::NoRoute)) => {
                let set = self.set.lock();
                match set.keys().next().map(HostPattern::to_string) {
                    Some(host) => self.inner.route(&RouteQuery { host: &host, path: "/api", ..query }),
                    None => Err(RouteError::NoRoute),
                }
            }
            (Bug::DisabledLooksUnknown, Err(_)) => Err(RouteError::NoRoute),
            (bug, Ok(Route::To(mut target))) => {
                match bug {
                    Bug::AffinityOfNothing => target.affinity = target.affinity.or(Some(0)),
                    Bug::ForgetsTheTenant => target.tenant = sas_core::TenantKey(1),
                    Bug::ForgetsTheTimeout => target.timeout = std::time::Duration::from_secs(300),
                    Bug::WakesAlways => target.wakes = true,
                    Bug::ForgetsTheFallback => target.fallback = None,
                    _ => {}
                }
                Ok(Route::To(target))
            }
            (_, routed) => routed,
        }
    }

    fn apply(&self, mut changes: Vec<RouteChange>) -> Result<()> {
        for change in &mut changes {
            let RouteChange::Set { host, rules } = change else { continue };
            for rule in rules.iter_mut() {
                self.change(rule);
            }
            if self.bug == Bug::LastRuleWins {
                rules.reverse();
            }
            if self.bug == Bug::KeepsOldRules {
                rules.extend(self.set.lock().get(host).cloned().unwrap_or_default());
            }
            self.set.lock().insert(host.clone(), rules.clone());
        }
        match self.bug {
            Bug::AppliesTheGoodHalf => {
                let mut outcome = Ok(());
                for change in changes {
                    let applied = self.inner.apply(vec![change]);
                    if applied.is_err() {
                        outcome = applied;
                    }
                }
                return outcome;
            }
            Bug::RefusesWithoutTheHost => {
                let refused = |_| Error::new(ErrorKind::InvalidSpec, "apply", "a weight is wrong");
                return self.inner.apply(changes).map_err(refused);
            }
            Bug::KeepsRemovedHosts => changes.retain(|change| matches!(change, RouteChange::Set { .. })),
            Bug::FailsOnTheSecondRemoval => {
                for change in &changes {
                    if let RouteChange::Remove { host } = change {
                        let mut set = self.set.lock();
                        let before = set.len();
                        set.retain(|known, _| known != host);
                        if set.len() == before {
                            return Err(Error::new(
                                ErrorKind::NotFound,
                                "apply",
                                format!("{host}: not there"),
                            ));
                        }
                    }
                }
            }
            Bug::HoldsAThousandHosts if self.inner.len() >= 1000 => {
                changes.retain(|change| matches!(change, RouteChange::Remove { .. }));
            }
            // The next look-up finds nothing.
            Bug::GoneAfterChanges => self.later.lock().clone_from(&changes),
            Bug::AppliesLater => {
                // What was given before is applied now, so that a change is seen one change late.
                let before = std::mem::replace(&mut *self.later.lock(), changes.clone());
                // What can't be applied is refused all the same.
                RouteTable::new(0).apply(changes)?;
                return self.inner.apply(before);
            }
            _ => {}
        }
        self.inner.apply(changes)
    }
}

const MUTANTS: [(Bug, &str); 32] = [
    (Bug::AnyHostWillDo, "an unknown host"),
    (Bug::ComparesHostsByCase, "without case"),
    (Bug::WildcardsBeforeExactHosts, "an exact host goes before"),
    (Bug::WildcardsOfAnyDepth, "a wildcard is one label"),
    (Bug::ShortestPrefixWins, "the longest path prefix"),
    (Bug::PrefixesEndAnywhere, "ends at a segment's end"),
    (Bug::IgnoresMethods, "methods, headers and queries"),
    (Bug::IgnoresHeaders, "methods, headers and queries"),
    (Bug::IgnoresQueries, "methods, headers and queries"),
    (Bug::LastRuleWins, "of equal rules the first"),
    (Bug::SplitsByChance, "exact over each run"),
    (Bug::OneCounterForAllSplits, "does not depend on other rules"),
    (Bug::SplitsInOneThreadOnly, "when many threads route"),
    (Bug::AnotherSeedEachTime, "the same seed"),
    (Bug::DisabledLooksUnknown, "disabled"),
    (Bug::TakesAnyWeights, "weights that do not add up"),
    (Bug::RefusesWithoutTheHost, "refused with the host"),
    (Bug::AppliesTheGoodHalf, "all or nothing"),
    (Bug::RedirectsLiterally, "a redirect"),
    (Bug::AffinityOfNothing, "affinity"),
    (Bug::AffinityOfAllCookies, "affinity"),
    (Bug::ForgetsTheTenant, "are handed on"),
    (Bug::ForgetsTheTimeout, "are handed on"),
    (Bug::WakesAlways, "are handed on"),
    (Bug::ForgetsTheFallback, "are handed on"),
    (Bug::KeepsOldRules, "only its new rules"),
    (Bug::KeepsRemovedHosts, "a removed host"),
    (Bug::FailsOnTheSecondRemoval, "removing it again is no error"),
    (Bug::GoneAfterChanges, "never without"),
    (Bug::HoldsAThousandHosts, "ten thousand hosts"),
    (Bug::PanicsOnOddHosts, "makes it panic"),
    (Bug::AppliesLater, "never without"),
];

fn subject(bug: Bug) -> Subject {
    Subject::new(move || Broken::new(bug) as Arc<dyn Router>)
}

#[tokio::test]
async fn every_broken_router_is_refused() {
    suite(async || ((), subject(Bug::Sound))).await.assert_passed_skipping(&[]);
    for (bug, by) in MUTANTS {
        let report = suite(async || ((), subject(bug))).await;
        caught(bug, &report, by);
    }
}

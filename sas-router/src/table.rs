//! The route table: persistent maps of hosts behind one atomic pointer.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sas_core::{HostPattern, Result, Route, RouteChange, RouteError, RouteQuery, Router};

use crate::{
    host::{self, MAX_HOST},
    hosts::HostMap,
    rule::Entry,
    seed::hash,
};

#[derive(Clone, Debug)]
struct Snapshot {
    exact: HostMap<Entry>,
    wildcard: HostMap<Entry>,
    any: Option<Entry>,
    hosts: usize,
}

/// The default [`Router`].
///
/// An exact host goes before a wildcard (one label: `a.example.com` for `*.example.com`), and that before
/// [`HostPattern::Any`]. A host that has rules answers for itself: when none of them matches, there is no route.
/// Within a host the longest path prefix wins, then the rule with the most conditions, then the first.
///
/// Lookups take no lock. A change makes a new version that shares all but the path to the hosts it names, and puts
/// it in place at once, so a request sees all of a change or nothing of it.
///
/// ```
/// use sas_core::*;
/// let table = sas_router::RouteTable::new(7);
/// let split = RouteAction::Split(vec![Split::new(RevisionKey(1), 90), Split::new(RevisionKey(2), 10)]);
/// table.apply(vec![RouteChange::Set {
///     host: HostPattern::Exact("hello.default.example.com".into()),
///     rules: vec![RouteRule::new(TenantKey(1), split)],
/// }])?;
/// let headers = http::HeaderMap::new();
/// let query = RouteQuery {
///     method: &http::Method::GET, host: "Hello.default.example.com", path: "/", query: None, headers: &headers,
/// };
/// let canary = (0..100)
///     .filter(|_| matches!(table.route(&query), Ok(Route::To(target)) if target.revision == RevisionKey(2)));
/// assert_eq!(canary.count(), 10);
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct RouteTable {
    seed: u64,
    current: ArcSwap<Snapshot>,
    /// Changes are made one after the other.
    writing: Mutex<()>,
}

impl RouteTable {
    /// An empty table. `seed` decides the order in which splits deal requests, and keys the hash of hosts.
    pub fn new(seed: u64) -> Self {
        let snapshot = Snapshot { exact: HostMap::new(), wildcard: HostMap::new(), any: None, hosts: 0 };
        Self { seed, current: ArcSwap::from_pointee(snapshot), writing: Mutex::new(()) }
    }

    /// How many hosts have rules.
    pub fn len(&self) -> usize {
        self.current.load().hosts
    }

    /// Whether no host has rules.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn hash_of(&self, pattern: &HostPattern) -> u64 {
        match pattern {
            HostPattern::Any => 0,
            HostPattern::Exact(host) | HostPattern::Wildcard(host) => hash(self.seed, host.as_bytes()),
        }
    }
}

/// A change that was checked: the hash of its host, and the rules from now on.
type Change = (u64, HostPattern, Option<Entry>);

impl Snapshot {
    /// Makes room for many changes of one leaf at once; a few find it as they go.
    fn reserve(&mut self, run: &[Change]) {
        if run.len() < 4 {
            return;
        }
        let added = run.iter().filter_map(|change| match change {
            (_, HostPattern::Exact(host), Some(_)) => Some(host.len()),
            _ => None,
        });
        let (hosts, bytes) = added.fold((0, 0), |(hosts, bytes), length| (hosts + 1, bytes + length));
        self.exact.reserve(run[0].0, hosts, bytes);
    }

    fn replace(&mut self, hash: u64, pattern: &HostPattern, entry: Option<Entry>) {
        let before = match pattern {
            HostPattern::Any => self.any.take(),
            HostPattern::Exact(host) | HostPattern::Wildcard(host) => {
                let map = match pattern {
                    HostPattern::Exact(_) => &mut self.exact,
                    _ => &mut self.wildcard,
                };
                match &entry {
                    // The place is kept; what follows fills it.
                    Some(_) => map.get(hash, host.as_bytes()).cloned(),
                    None => map.remove(hash, host.as_bytes()),
                }
            }
        };
        self.hosts -= usize::from(before.is_some());
        let Some(mut entry) = entry else { return };
        if let Some(before) = &before {
            entry.continue_from(before);
        }
        self.hosts += 1;
        match pattern {
            HostPattern::Any => self.any = Some(entry),
            HostPattern::Exact(host) => {
                self.exact.insert(hash, host.as_bytes(), entry);
            }
            HostPattern::Wildcard(host) => {
                self.wildcard.insert(hash, host.as_bytes(), entry);
            }
        }
    }
}

impl Router for RouteTable {
    fn route(&self, query: &RouteQuery<'_>) -> Result<Route, RouteError> {
        let snapshot = self.current.load();
        let mut buffer = [0; MAX_HOST];
        let host = host::normalized(query.host, &mut buffer).ok_or(RouteError::NoRoute)?;
        if let Some(entry) = snapshot.exact.get(hash(self.seed, host), host) {
            return entry.route(query, self.seed);
        }
        // An empty label is none.
        if let Some(dot) = host.iter().position(|byte| *byte == b'.').filter(|dot| *dot > 0) {
            let parent = &host[dot + 1..];
            if let Some(entry) = snapshot.wildcard.get(hash(self.seed, parent), parent) {
                return entry.route(query, self.seed);
            }
        }
        snapshot.any.as_ref().map_or(Err(RouteError::NoRoute), |entry| entry.route(query, self.seed))
    }

    fn apply(&self, changes: Vec<RouteChange>) -> Result<()> {
        let mut compiled: Vec<Change> = Vec::with_capacity(changes.len());
        for change in changes {
            compiled.push(match change {
                RouteChange::Set { host, rules } => {
                    let entry = Entry::compile(&host, rules, self.seed)?;
                    (self.hash_of(&host), host, Some(entry))
                }
                RouteChange::Remove { host } => (self.hash_of(&host), host, None),
                other => {
                    let text = format!("this version does not know the change {other:?}");
                    return Err(sas_core::Error::new(sas_core::ErrorKind::Unsupported, "apply", text));
                }
            });
        }
        // In the order of the map: of many changes those to one leaf follow each other, and those to one host stay in
        // the order in which they were given.
        compiled.sort_by_key(|(hash, ..)| *hash);
        let _one_at_a_time = self.writing.lock();
        let mut next = Snapshot::clone(&self.current.load());
        for run in compiled.chunk_by_mut(|(one, ..), (two, ..)| HostMap::<Entry>::are_near(*one, *two)) {
            next.reserve(run);
            for (hash, pattern, entry) in run {
                next.replace(*hash, pattern, entry.take());
            }
        }
        // The version before is dropped by the last lookup that still reads it: at most a path, never the table.
        self.current.store(Arc::new(next));
        Ok(())
    }
}

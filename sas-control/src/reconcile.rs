//! What is to be done so that what runs becomes what is wanted. Pure: tables and properties test it, and a crash
//! between two commands is mended by asking again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sas_core::{
    Fault, HostPattern, HostShare, Mirror, Quota, RevisionKey, RouteAction, RouteChange, RouteRule, Split,
    Timestamp,
};

use sas_knative::keys::NO_GC;

use crate::{
    record::{RevisionRecord, RevisionState, ServiceRecord, Share},
    spread::{PartState, Standing},
};

/// What runs of one service.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub(crate) struct Observed {
    /// Its revisions in the pool.
    pub registrations: Vec<Registration>,
    /// Its hosts in the router, with their rules.
    pub hosts: BTreeMap<HostPattern, Vec<RouteRule>>,
    /// Hosts that are mapped to it.
    pub domains: BTreeSet<String>,
    /// Revisions that ran before and can't be started now.
    pub blocked: BTreeMap<String, Blocked>,
    /// What its requests are held to.
    pub quota: Option<Quota>,
    /// What is tried out on its traffic.
    pub rehearsal: Rehearsal,
    /// Which part of it this host runs, and which hosts run it.
    pub standing: Standing,
    /// The hosts that the gateway passes its requests on to.
    pub shared: Vec<HostShare>,
}

/// What is tried out on the traffic of a service, with the keys of the revisions that run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rehearsal {
    pub mirror: Option<Mirror>,
    pub faults: Vec<Fault>,
}

impl Observed {
    /// Whether another host's requests for it would not find it here: its routes lead to hosts.
    pub(crate) fn is_away(&self) -> bool {
        let mut rules = self.hosts.values().flatten();
        rules.any(|rule| matches!(rule.action, RouteAction::Remote { .. }))
    }

    /// Under what the revision takes traffic, or could.
    pub(crate) fn running(&self, revision: &str) -> Option<&Registration> {
        self.registrations.iter().find(|r| r.revision == revision && r.routable && !r.retiring)
    }
}

/// Why a revision that is ready does not run, and when it is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) struct Blocked {
    /// The error of the last attempt.
    pub message: String,
    /// Attempts that failed in a row.
    pub failures: u32,
    /// The next step is not due before this time.
    pub until: Timestamp,
}

impl Blocked {
    /// Another attempt failed: the next one is due after 1, 2, 4, ... at most 64 seconds.
    pub(crate) fn fail(&mut self, now: Timestamp, message: String) {
        self.message = message;
        self.until = now + Duration::from_secs(1 << self.failures.min(6));
        self.failures = self.failures.saturating_add(1);
    }
}

/// A revision that the pool holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) struct Registration {
    /// The name of the revision.
    pub revision: String,
    /// The pool's key of the revision.
    pub key: RevisionKey,
    /// Whether it was registered to take traffic; else for test runs, without a minimum of instances.
    pub routable: bool,
    /// Whether it is being drained.
    pub retiring: bool,
    /// When it was last called for a test run, or registered.
    pub last_used: Timestamp,
}

impl Registration {
    /// A registration that was just made.
    pub(crate) fn new(revision: impl Into<String>, key: RevisionKey, routable: bool, now: Timestamp) -> Self {
        Self { revision: revision.into(), key, routable, retiring: false, last_used: now }
    }
}

/// One step that brings what is observed nearer to what is desired.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub(crate) enum Command {
    /// Prepare the revision and register it with the pool to take traffic.
    Start {
        /// The revision, by its name within the service.
        revision: String,
    },
    /// Prepare a revision that a younger one overtook, so that it can be gone back to.
    Prepare {
        /// The revision, by its name within the service.
        revision: String,
    },
    /// Hold the service's requests to this quota from now on.
    Limit(Option<Quota>),
    /// Pass requests on to these hosts from now on.
    Share(Vec<HostShare>),
    /// Change the router's table.
    Route(Vec<RouteChange>),
    /// Try this out on the service's traffic from now on.
    Rehearse(Rehearsal),
    /// Drain a registration, then unregister it.
    Retire {
        /// The registration, by its key in the pool.
        key: RevisionKey,
    },
    /// Remember since when a revision has no traffic.
    MarkRetired {
        /// The revision, by its name within the service.
        revision: String,
        /// Whether it lost its traffic; else it got some again.
        retired: bool,
    },
    /// Forget revisions that nobody will come back to.
    Collect {
        /// Their names within the service.
        revisions: Vec<String>,
    },
    /// A roll-out is over.
    FinishRollout,
}

/// When old revisions are forgotten. The defaults are Knative's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcLimits {
    /// Revisions that were made less than this ago are kept.
    pub retain_since_create: Duration,
    /// Those that had traffic within this time stay.
    pub retain_since_last_active: Duration,
    /// This many without traffic stay, however old.
    pub min_non_active: usize,
    /// More than this many without traffic go, however young.
    pub max_non_active: usize,
}

impl Default for GcLimits {
    fn default() -> Self {
        Self {
            retain_since_create: Duration::from_secs(48 * 3600),
            retain_since_last_active: Duration::from_secs(15 * 3600),
            min_non_active: 20,
            max_non_active: 1000,
        }
    }
}

/// Reads limits as Knative's `config-gc` names them, with commas between, such as
/// `retain-since-create-time=48h,max-non-active-revisions=100`; what is not named is as by default. `disabled` takes a rule
/// away: a time is not asked for (and where neither is, nothing gets old), the maximum is none.
impl std::str::FromStr for GcLimits {
    type Err = sas_core::SpecErrors;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut limits = Self::default();
        let mut errors = sas_core::SpecErrors::default();
        let (mut create, mut active) =
            (Some(limits.retain_since_create), Some(limits.retain_since_last_active));
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let time = || match value {
                "disabled" => Some(None),
                _ => {
                    let nanos = sas_core::parse_duration(value).ok()?;
                    Some(Some(Duration::from_nanos(u64::try_from(nanos).ok()?)))
                }
            };
            match key {
                "retain-since-create-time" | "retain-since-last-active-time" => match time() {
                    Some(time) if key == "retain-since-create-time" => create = time,
                    Some(time) => active = time,
                    None => errors.push(key, value, "must be a time such as 48h, or disabled"),
                },
                "min-non-active-revisions" => match value.parse() {
                    Ok(number) => limits.min_non_active = number,
                    Err(_) => errors.push(key, value, "must be a whole number"),
                },
                "max-non-active-revisions" => match value.parse() {
                    Ok(number) => limits.max_non_active = number,
                    Err(_) if value == "disabled" => limits.max_non_active = usize::MAX,
                    Err(_) => errors.push(key, value, "must be a whole number, or disabled"),
                },
                _ => errors.push(
                    key,
                    value,
                    "must be retain-since-create-time, retain-since-last-active-time, min-non-active-revisions or \
                     max-non-active-revisions",
                ),
            }
        }
        if limits.max_non_active < limits.min_non_active {
            let problem = format!("must be at least min-non-active-revisions, {}", limits.min_non_active);
            errors.push("max-non-active-revisions", limits.max_non_active, problem);
        }
        let neither = create.is_none() && active.is_none();
        let without = if neither { Duration::MAX } else { Duration::ZERO };
        limits.retain_since_create = create.unwrap_or(without);
        limits.retain_since_last_active = active.unwrap_or(without);
        errors.into_result().map(|()| limits)
    }
}

/// What reconciling is configured with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Rules {
    /// Services answer at `name.namespace.domain`.
    pub domain: String,
    /// And at `name.namespace.internal`, which the ingress refuses from outside.
    pub internal: String,
    /// The header by which a request asks for the revision of a tag, whatever the weights say: a lower-case name.
    pub tag_header: String,
    /// How long a registration for test runs stays after the last one.
    pub test_linger: Duration,
    /// When old revisions are forgotten.
    pub gc: GcLimits,
    /// Whether requests may be made to meet faults on purpose, so that tests of one's own see what comes of them.
    pub allow_faults: bool,
}

impl Rules {
    /// Rules with Knative's header for tags and its limits for old revisions.
    pub fn new(domain: impl Into<String>) -> Self {
        Self {
            domain: domain.into(),
            internal: "svc".to_owned(),
            tag_header: sas_knative::TAG_HEADER.to_owned(),
            test_linger: Duration::from_secs(60),
            gc: GcLimits::default(),
            allow_faults: false,
        }
    }

    /// The host of a service, or of one of its tags.
    pub fn host(&self, record: &ServiceRecord, tag: Option<&str>) -> String {
        Self::host_under(record, tag, if record.cluster_local { &self.internal } else { &self.domain })
    }

    fn host_under(record: &ServiceRecord, tag: Option<&str>, domain: &str) -> String {
        match tag {
            Some(tag) => format!("{tag}-{}.{}.{domain}", record.name, record.namespace),
            None => format!("{}.{}.{domain}", record.name, record.namespace),
        }
    }
}

/// The next steps towards `desired` (`None`: the service was deleted). Empty when there is nothing to do.
///
/// # Contract
/// - A revision gets traffic only when it is registered, and is unregistered only when no route names it.
/// - The same input gives the same commands; doing them and asking again comes to an end.
/// - Steps that depend on others come later: [`Command::Route`] only when all revisions it names run,
///   [`Command::Retire`] only when the routes are as they should be.
pub(crate) fn reconcile(
    desired: Option<&ServiceRecord>,
    observed: &Observed,
    now: Timestamp,
    rules: &Rules,
) -> Vec<Command> {
    let Some(record) = desired else { return removal(observed) };
    let running = |revision: &str| observed.running(revision);

    // What a service would have that is switched off is kept, and nothing of it runs.
    let enabled = record.disabled.is_none();
    let shares = record.shares(now);
    let mut starts: Vec<&str> = Vec::new();
    if let Some(latest) = record.latest_created()
        && latest.state == RevisionState::Pending
        && enabled
    {
        starts.push(&latest.name);
    }
    for share in shares.iter().filter(|_| enabled) {
        let blocked = observed.blocked.get(&share.revision).is_some_and(|blocked| now < blocked.until);
        if running(&share.revision).is_none() && !blocked && !starts.contains(&share.revision.as_str()) {
            starts.push(&share.revision);
        }
    }
    if !starts.is_empty() {
        return starts.into_iter().map(|revision| Command::Start { revision: revision.to_owned() }).collect();
    }

    if let Some(command) = limits(record, observed) {
        return vec![command];
    }
    let key = |revision: &str| running(revision).filter(|_| enabled).map(|r| r.key);
    let hosts = routes(record, &shares, rules, &observed.domains, key);
    let changes = changes(&observed.hosts, &hosts);
    if !changes.is_empty() {
        return vec![Command::Route(changes)];
    }
    let rehearsal = rehearsal(record, &shares, rules, key);
    if observed.rehearsal != rehearsal {
        return vec![Command::Rehearse(rehearsal)];
    }

    let mut commands: Vec<Command> = record
        .revisions
        .iter()
        .filter(|revision| revision.state == RevisionState::Pending)
        .map(|revision| Command::Prepare { revision: revision.name.clone() })
        .collect();
    if let Some(rolling) = &record.rolling
        && rolling.is_over(now)
    {
        commands.push(Command::FinishRollout);
    }
    for registration in observed.registrations.iter().filter(|registration| !registration.retiring) {
        let wanted = shares.iter().any(|share| share.revision == registration.revision);
        let lingers = now.since(registration.last_used) < rules.test_linger;
        let keep = enabled && if registration.routable { wanted } else { lingers };
        if !keep {
            commands.push(Command::Retire { key: registration.key });
        }
    }
    for revision in &record.revisions {
        let wanted = shares.iter().any(|share| share.revision == revision.name);
        if wanted == revision.retired_at.is_some() {
            commands.push(Command::MarkRetired { revision: revision.name.clone(), retired: !wanted });
        }
    }
    if !commands.is_empty() {
        return commands;
    }
    let old = collectable(record, &shares, observed, now, &rules.gc);
    if !old.is_empty() {
        commands.push(Command::Collect { revisions: old });
    }
    commands
}

/// The next steps on a host where the service is another host's, `peer`: requests go there, and nothing of it runs here but
/// what somebody test-runs. `peer` may be this host itself: then requests wait until it acts.
pub(crate) fn reconcile_away(
    desired: Option<&ServiceRecord>,
    observed: &Observed,
    now: Timestamp,
    rules: &Rules,
    peer: &str,
) -> Vec<Command> {
    let Some(record) = desired else { return removal(observed) };
    if observed.shared != observed.standing.hosts {
        return vec![Command::Share(observed.standing.hosts.clone())];
    }
    let changes = changes(&observed.hosts, &routes_away(record, observed, rules, peer));
    if !changes.is_empty() {
        return vec![Command::Route(changes)];
    }
    if observed.rehearsal != Rehearsal::default() {
        return vec![Command::Rehearse(Rehearsal::default())];
    }
    if observed.quota.is_some() {
        return vec![Command::Limit(None)];
    }
    let lingers = |registration: &Registration| {
        !registration.routable && now.since(registration.last_used) < rules.test_linger
    };
    let retired = observed.registrations.iter().filter(|r| !r.retiring && !lingers(r));
    retired.map(|registration| Command::Retire { key: registration.key }).collect()
}

/// The next steps on a host that runs a part of a service that another host, `peer`, acts for: the revisions that get requests,
/// once the record has them as ready. What follows of that is written by the other host alone.
pub(crate) fn reconcile_part(
    desired: Option<&ServiceRecord>,
    observed: &Observed,
    now: Timestamp,
    rules: &Rules,
    peer: &str,
) -> Vec<Command> {
    let (Some(record), Some(part)) =
        (desired.filter(|record| record.disabled.is_none()), &observed.standing.part)
    else {
        return reconcile_away(desired, observed, now, rules, peer);
    };
    let running = |revision: &str| {
        observed.registrations.iter().find(|r| r.revision == revision && r.routable && !r.retiring)
    };
    let shares: Vec<Share> = record.shares(now);
    let ready = |share: &&Share| {
        record.revision(&share.revision).is_some_and(|found| found.state == RevisionState::Ready)
    };
    let shares: Vec<Share> = shares.iter().filter(ready).cloned().collect();
    let starts = shares.iter().map(|share| share.revision.as_str()).filter(|revision| {
        let blocked = observed.blocked.get(*revision).is_some_and(|blocked| now < blocked.until);
        part.revisions.contains_key(*revision) && running(revision).is_none() && !blocked
    });
    let starts: BTreeSet<&str> = starts.collect();
    if !starts.is_empty() {
        return starts.into_iter().map(|revision| Command::Start { revision: revision.to_owned() }).collect();
    }
    if let Some(command) = limits(record, observed) {
        return vec![command];
    }
    let complete = part.covers(shares.iter().map(|share| share.revision.as_str()))
        && shares.iter().all(|share| running(&share.revision).is_some());
    let key = |revision: &str| running(revision).map(|registration| registration.key);
    let hosts = match (part.state, complete) {
        (PartState::Serving | PartState::Leaving, true) => {
            routes(record, &shares, rules, &observed.domains, key)
        }
        // Others still pass requests on to this host, and must not get them back: those that came before a revision is
        // prepared here go as before.
        (PartState::Serving | PartState::Leaving, false)
            if !observed.hosts.is_empty() && !observed.is_away() =>
        {
            return Vec::new();
        }
        _ => routes_away(record, observed, rules, peer),
    };
    let changes = changes(&observed.hosts, &hosts);
    if !changes.is_empty() {
        return vec![Command::Route(changes)];
    }
    let rehearsal = rehearsal(record, &shares, rules, key);
    if observed.rehearsal != rehearsal {
        return vec![Command::Rehearse(rehearsal)];
    }
    let keeps = |registration: &Registration| match registration.routable {
        true => shares.iter().any(|share| share.revision == registration.revision),
        false => now.since(registration.last_used) < rules.test_linger,
    };
    let retired = observed.registrations.iter().filter(|r| !r.retiring && !keeps(r));
    retired.map(|registration| Command::Retire { key: registration.key }).collect()
}

/// What its requests are held to here, and which hosts get some of them.
fn limits(record: &ServiceRecord, observed: &Observed) -> Option<Command> {
    let standing = &observed.standing;
    let quota = match (&standing.part, record.quota) {
        (Some(part), Some(quota)) => Some(part.of_quota(quota)),
        (_, quota) => quota,
    };
    if observed.quota != quota {
        return Some(Command::Limit(quota));
    }
    (observed.shared != standing.hosts).then(|| Command::Share(standing.hosts.clone()))
}

/// All hosts of the service, each to another host of the platform, which knows the rest.
pub(crate) fn routes_away(
    record: &ServiceRecord,
    observed: &Observed,
    rules: &Rules,
    peer: &str,
) -> BTreeMap<HostPattern, Vec<RouteRule>> {
    let mut rule = RouteRule::new(record.tenant, RouteAction::Remote { peer: peer.to_owned() });
    rule.service = Some(record.path());
    let timeouts = record.revisions.iter().map(|revision| revision.spec.timeouts.request);
    rule.timeout = timeouts.max().unwrap_or(rule.timeout);
    let mut hosts: Vec<String> = observed.domains.iter().cloned().collect();
    let domains: &[&str] =
        if record.cluster_local { &[&rules.internal] } else { &[&rules.domain, &rules.internal] };
    for domain in domains {
        hosts.push(Rules::host_under(record, None, domain));
        let tags = record.traffic.iter().filter_map(|target| target.tag.as_deref());
        hosts.extend(tags.map(|tag| Rules::host_under(record, Some(tag), domain)));
    }
    hosts.into_iter().map(|host| (HostPattern::Exact(host), vec![rule.clone()])).collect()
}

/// Whether time alone may bring new steps for a service that has none now.
pub(crate) fn waits_for_time(desired: Option<&ServiceRecord>, observed: &Observed, rules: &Rules) -> bool {
    let Some(record) = desired else { return false };
    record.rolling.as_ref().is_some_and(|rolling| !rolling.is_stopped())
        || !observed.blocked.is_empty()
        || observed.registrations.iter().any(|registration| !registration.routable && !registration.retiring)
        || record.revisions.len() > rules.gc.min_non_active.min(rules.gc.max_non_active)
}

fn removal(observed: &Observed) -> Vec<Command> {
    if !observed.hosts.is_empty() {
        let removed = observed.hosts.keys().map(|host| RouteChange::Remove { host: host.clone() }).collect();
        return vec![Command::Route(removed)];
    }
    if observed.quota.is_some() {
        return vec![Command::Limit(None)];
    }
    if observed.rehearsal != Rehearsal::default() {
        return vec![Command::Rehearse(Rehearsal::default())];
    }
    if !observed.shared.is_empty() {
        return vec![Command::Share(Vec::new())];
    }
    observed
        .registrations
        .iter()
        .filter(|registration| !registration.retiring)
        .map(|registration| Command::Retire { key: registration.key })
        .collect()
}

/// The hosts that the service answers at, with their rules.
fn routes(
    record: &ServiceRecord,
    shares: &[Share],
    rules: &Rules,
    mapped: &BTreeSet<String>,
    key: impl Fn(&str) -> Option<RevisionKey>,
) -> BTreeMap<HostPattern, Vec<RouteRule>> {
    let rule = |shares: &[(&str, u32)]| {
        let mut splits: Vec<Split> = Vec::new();
        let mut timeout = Duration::ZERO;
        for (revision, percent) in shares {
            let Some(key) = key(revision) else { continue };
            timeout = timeout.max(record.revision(revision).map_or(timeout, |r| r.spec.timeouts.request));
            match splits.iter_mut().find(|split| split.revision == key) {
                Some(split) => split.weight += percent,
                None => splits.push(Split::new(key, *percent)),
            }
        }
        // A share whose revision is not ready leaves a gap; those that are ready fill it in proportion.
        splits.retain(|split| split.weight > 0);
        fill_to_100(&mut splits);
        let mut rule = RouteRule::new(record.tenant, RouteAction::Split(splits));
        rule.affinity.clone_from(&record.affinity);
        rule.placeholder = record.placeholder;
        if timeout > Duration::ZERO {
            rule.timeout = timeout;
        }
        rule
    };
    let mut hosts = BTreeMap::new();
    let domains: &[&str] =
        if record.cluster_local { &[&rules.internal] } else { &[&rules.domain, &rules.internal] };
    for domain in domains {
        let main: Vec<(&str, u32)> = shares.iter().map(|s| (s.revision.as_str(), s.percent)).collect();
        let mut all = with_quiet_paths(rule(&main), &record.no_wake);
        for share in shares {
            if let Some(tag) = &share.tag {
                let tagged = rule(&[(&share.revision, 100)]);
                all.extend(with_quiet_paths(
                    tagged.clone().with_header(&rules.tag_header, tag),
                    &record.no_wake,
                ));
                let host = HostPattern::Exact(Rules::host_under(record, Some(tag), domain));
                hosts.insert(host, with_quiet_paths(tagged, &record.no_wake));
            }
        }
        for route in &record.routes {
            // Until the tag's revision is ready, its requests go as all others.
            let Some(share) = shares.iter().find(|share| share.tag.as_deref() == Some(&route.tag)) else {
                continue;
            };
            let mut routed = rule(&[(&share.revision, 100)]);
            routed.matches = route.matches();
            match route.path.is_empty() {
                true => all.extend(with_quiet_paths(routed, &record.no_wake)),
                false => all.push(routed),
            }
        }
        for host in mapped {
            hosts.insert(HostPattern::Exact(host.clone()), all.clone());
        }
        hosts.insert(HostPattern::Exact(Rules::host_under(record, None, domain)), all);
    }
    hosts
}

/// What is tried out, as far as the revisions run that it is about.
fn rehearsal(
    record: &ServiceRecord,
    shares: &[Share],
    rules: &Rules,
    key: impl Fn(&str) -> Option<RevisionKey>,
) -> Rehearsal {
    let mirror = record.mirror.as_ref().and_then(|to| {
        let share = shares.iter().find(|share| share.tag.as_ref() == Some(&to.tag))?;
        Some(Mirror::new(key(&share.revision)?, to.percent))
    });
    // The host may have taken its leave back since they were stored.
    let faults = record.faults.iter().filter(|_| rules.allow_faults).filter_map(|rule| {
        let mut fault = Fault::default();
        fault.matches = rule.matches();
        fault.percent = rule.percent;
        (fault.delay, fault.abort) = (rule.delay(), rule.abort);
        if let Some(revision) = &rule.revision {
            fault.revision = Some(key(revision)?);
        }
        Some(fault)
    });
    Rehearsal { mirror, faults: faults.collect() }
}

/// The rule, and the same for the paths whose requests start no instance.
fn with_quiet_paths(rule: RouteRule, paths: &[String]) -> Vec<RouteRule> {
    let quiet = paths.iter().map(|path| {
        let mut quiet = rule.clone().under(path);
        quiet.wakes = false;
        quiet
    });
    let quiet: Vec<RouteRule> = quiet.collect();
    std::iter::once(rule).chain(quiet).collect()
}

/// Scales weights so that they add up to 100; the rounding goes to the largest.
fn fill_to_100(splits: &mut [Split]) {
    let sum: u32 = splits.iter().map(|split| split.weight).sum();
    if sum == 0 || sum == 100 {
        return;
    }
    for split in splits.iter_mut() {
        split.weight = split.weight * 100 / sum;
    }
    let rest = 100 - splits.iter().map(|split| split.weight).sum::<u32>();
    if let Some(largest) = splits.iter_mut().max_by_key(|split| split.weight) {
        largest.weight += rest;
    }
}

pub(crate) fn changes(
    before: &BTreeMap<HostPattern, Vec<RouteRule>>,
    after: &BTreeMap<HostPattern, Vec<RouteRule>>,
) -> Vec<RouteChange> {
    let set = after
        .iter()
        .filter(|(host, rules)| before.get(host) != Some(rules))
        .map(|(host, rules)| RouteChange::Set { host: host.clone(), rules: rules.clone() });
    let removed = before
        .keys()
        .filter(|host| !after.contains_key(*host))
        .map(|host| RouteChange::Remove { host: host.clone() });
    set.chain(removed).collect()
}

/// Knative's rules: of those without traffic, the ones that are old by both measures while more than the minimum are left,
/// and beyond the maximum those whose traffic is longest ago. Never one that gets traffic or holds a tag, which are the
/// shares; that is the latest, has an alias, or says that it is to be kept.
fn collectable(
    record: &ServiceRecord,
    shares: &[Share],
    observed: &Observed,
    now: Timestamp,
    gc: &GcLimits,
) -> Vec<String> {
    let latest = record.latest_created().map(|revision| revision.name.as_str());
    let latest_ready = record.latest_ready().map(|revision| revision.name.as_str());
    let last_active = |revision: &RevisionRecord| revision.retired_at.unwrap_or(revision.created_at);
    let mut non_active: Vec<_> = record
        .revisions
        .iter()
        .filter(|revision| {
            let name = revision.name.as_str();
            let kept = revision.annotations.get(NO_GC).is_some_and(|kept| kept.eq_ignore_ascii_case("true"));
            !kept
                && !shares.iter().any(|share| share.revision == name)
                // One that waits for another to be ready has its tag all the same.
                && !record.traffic.iter().any(|target| target.revision_name.as_deref() == Some(name))
                && Some(name) != latest
                && Some(name) != latest_ready
                && record.aliases_of(name).next().is_none()
                && record.rolling.as_ref().is_none_or(|r| r.from != name && r.to != name)
        })
        .collect();
    non_active.sort_by_key(|revision| last_active(revision));
    let mut left = non_active.len();
    let mut old: Vec<String> = Vec::new();
    let in_use = |name: &str| observed.registrations.iter().any(|r| r.revision == name);
    for aged_only in [true, false] {
        for revision in &non_active {
            let aged = left > gc.min_non_active
                && now.since(revision.created_at) >= gc.retain_since_create
                && now.since(last_active(revision)) >= gc.retain_since_last_active;
            let goes = if aged_only { aged } else { left > gc.max_non_active };
            if goes && !in_use(&revision.name) && !old.contains(&revision.name) {
                old.push(revision.name.clone());
                left -= 1;
            }
        }
    }
    old
}

#[cfg(test)]
mod tests;

//! Which hosts get a part of a service, and how large it is. Pure; see `docs/adr/0257-parts-of-a-service.md`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sas_core::{Quota, Timestamp};

use super::record::{Part, PartState, Report, Spread};

/// Shares are thousandths.
const WHOLE: u64 = 1000;

/// How long a host may take to say for the first time what it has.
const SAYS_SO: Duration = Duration::from_secs(5);

/// How fast a service spreads over more hosts, and comes back to fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpreadConfig {
    /// How long the hosts of a service must have too little room for it before one more gets a part. 5 s.
    pub grow_after: Duration,
    /// How long what it needs must fit on fewer hosts before the last one gives its part back. 60 s.
    pub shrink_after: Duration,
    /// The shortest time between two such steps. 5 s.
    pub period: Duration,
    /// How long a host may take to prepare its part, and how long one that could not is left alone. 120 s.
    pub patience: Duration,
}

impl Default for SpreadConfig {
    fn default() -> Self {
        Self {
            grow_after: Duration::from_secs(5),
            shrink_after: Duration::from_secs(60),
            period: Duration::from_secs(5),
            patience: Duration::from_secs(120),
        }
    }
}

/// What a revision may have in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) min: u32,
    /// 0: no bound.
    pub(crate) max: u32,
}

/// What is known now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    pub(crate) now: Timestamp,
    /// The host that acts for the service, which decides.
    pub(crate) owner: &'a str,
    /// The hosts that may have a part, who is to get one first.
    pub(crate) candidates: &'a [String],
    /// All hosts that are there.
    pub(crate) alive: &'a BTreeSet<String>,
    /// The revisions that get requests; none: no host but the owner is to have a part.
    pub(crate) revisions: &'a BTreeMap<String, Wanted>,
    /// What all hosts together may let in.
    pub(crate) quota: Option<Quota>,
    /// What the hosts said last, the owner of itself included.
    pub(crate) reports: &'a BTreeMap<String, Report>,
}

/// What has to be remembered from one decision to the next. A new owner begins anew.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace {
    short_since: Option<Timestamp>,
    fits_since: Option<Timestamp>,
    stepped: Option<Timestamp>,
    /// Hosts that have not all of their part yet, and since when.
    unready: BTreeMap<String, Timestamp>,
    /// Hosts that give their part back, since when, and whether they have said since what they have.
    leaving: BTreeMap<String, (Timestamp, bool)>,
    /// Hosts that could not take a part.
    refused: BTreeMap<String, Timestamp>,
}

impl Pace {
    /// Whether nothing has to be remembered.
    pub(crate) fn is_quiet(&self) -> bool {
        self.short_since.is_none() && self.unready.is_empty() && self.refused.is_empty()
    }
}

/// What comes after `before`; `None`: it stays.
///
/// # Contract
/// - No host is there twice, and the owner is the first; or nobody is there, and the owner has everything.
/// - The maxima of a revision never add up to more than its own, and a maximum is raised only by what others have given
///   back. Its minima add up to its own, as far as the maxima allow.
/// - Where there is a quota, the shares of all hosts never add up to more than the whole of it, in the same way.
/// - Beside hosts that went and came, at most one host gets or gives back a part per [`SpreadConfig::period`].
pub(crate) fn step(
    before: &Spread,
    input: &Input<'_>,
    pace: &mut Pace,
    config: &SpreadConfig,
) -> Option<Spread> {
    let mut next = before.clone();
    keep_up(&mut next, before.version, input, pace, config);
    decide(&mut next, input, pace, config);
    if next.hosts.iter().all(|part| part.host == input.owner) {
        next.hosts.clear();
    }
    allot(&mut next, before, input);
    if next.hosts == before.hosts {
        return None;
    }
    next.version += 1;
    Some(next)
}

/// What follows of what hosts did and became, whatever the pace.
fn keep_up(next: &mut Spread, version: u64, input: &Input<'_>, pace: &mut Pace, config: &SpreadConfig) {
    if next.hosts.is_empty() {
        pace.unready.clear();
        pace.leaving.clear();
        return;
    }
    next.hosts.retain(|part| input.alive.contains(&part.host) || part.host == input.owner);
    let mut owner = match next.hosts.iter().position(|part| part.host == input.owner) {
        Some(at) => next.hosts.remove(at),
        None => part(input.owner, PartState::Serving),
    };
    owner.state = PartState::Serving;
    next.hosts.insert(0, owner);

    let most = most_hosts(input);
    let mut kept = 1;
    for part in next.hosts.iter_mut().skip(1).filter(|part| part.state != PartState::Leaving) {
        let may = input.candidates.contains(&part.host) && kept < most;
        let report = input.reports.get(&part.host);
        if !may {
            part.state = PartState::Leaving;
        } else {
            let joins = part.state == PartState::Joining;
            let answer = report.filter(|report| report.applied >= version);
            let fails = answer.is_some_and(|report| report.error.is_some());
            let full = |report: &Report| report.ready && report.revisions.values().all(|one| one.room == 0);
            if !joins && !fails {
                pace.unready.remove(&part.host);
            } else {
                let since = *pace.unready.entry(part.host.clone()).or_insert(input.now);
                // One that serves may get over what hinders it in a new revision.
                let refuses = joins && (fails || answer.is_some_and(full));
                if refuses || input.now.since(since) >= config.patience {
                    pace.refused.insert(part.host.clone(), input.now);
                    part.state = PartState::Leaving;
                } else if joins
                    && answer.is_some_and(|report| report.ready)
                    && part.covers(input.revisions.keys().map(String::as_str))
                    && (input.quota.is_none() || part.share > 0)
                {
                    part.state = PartState::Serving;
                    pace.unready.remove(&part.host);
                }
            }
        }
        kept += usize::from(part.state != PartState::Leaving);
    }
    // Who has nothing left says nothing any more; but who acted until now has not said anything yet.
    let leaves = |part: &Part| part.state == PartState::Leaving;
    for part in next.hosts.iter().filter(|part| leaves(part)) {
        let (_, has_said) = pace.leaving.entry(part.host.clone()).or_insert((input.now, false));
        *has_said |= input.reports.contains_key(&part.host);
    }
    next.hosts.retain(|part| {
        let silent = || {
            pace.leaving
                .get(&part.host)
                .is_some_and(|(since, has_said)| *has_said || input.now.since(*since) >= SAYS_SO)
        };
        !leaves(part) || input.reports.contains_key(&part.host) || !silent()
    });
    pace.leaving.retain(|host, _| next.part(host).is_some_and(leaves));
    pace.unready.retain(|host, _| next.part(host).is_some_and(|part| part.state != PartState::Leaving));
    pace.refused.retain(|_, since| input.now.since(*since) < config.patience);
}

/// One host more, one less, or a maximum shared out anew.
fn decide(next: &mut Spread, input: &Input<'_>, pace: &mut Pace, config: &SpreadConfig) {
    if input.revisions.is_empty() {
        (pace.short_since, pace.fits_since) = (None, None);
        return;
    }
    let staying = staying(next, input.owner);
    let short = input.revisions.iter().any(|(revision, wanted)| {
        let room: u64 =
            staying.iter().map(|host| u64::from(holds(next, input, host, revision, *wanted))).sum();
        u64::from(needed(next, input, revision, *wanted)) > room
    });
    let fits = staying.len() > 1 && {
        let (last, others) = staying.split_last().expect("more than one");
        input.revisions.iter().all(|(revision, wanted)| {
            let room: u64 = others.iter().map(|host| u64::from(room(input, host, revision))).sum();
            let room = if wanted.max == 0 { room } else { room.min(u64::from(wanted.max)) };
            let needed = u64::from(needed(next, input, revision, *wanted));
            let seen = input.reports.get(last).and_then(|report| report.revisions.get(revision));
            let quiet = seen.is_some_and(|seen| seen.asked == 0 && seen.have == 0);
            // Some room beyond what is needed, so that it does not come back with the next wave.
            let spare = if quiet { 0 } else { (needed / 5).max(1) };
            needed + spare <= room
        })
    };
    let since = |known: Option<Timestamp>, is: bool| is.then(|| known.unwrap_or(input.now));
    pace.short_since = since(pace.short_since, short);
    pace.fits_since = since(pace.fits_since, fits);
    // One change at a time, and each is seen for a while.
    let changing = next.hosts.iter().any(|part| part.state != PartState::Serving);
    let early = pace.stepped.is_some_and(|stepped| input.now.since(stepped) < config.period);
    if changing || early {
        return;
    }
    let lasts = |since: Option<Timestamp>, long| since.is_some_and(|since| input.now.since(since) >= long);
    if lasts(pace.short_since, config.grow_after) {
        if next.hosts.is_empty() {
            next.hosts.push(part(input.owner, PartState::Serving));
        }
        if !share_anew(next, input) {
            let most = most_hosts(input);
            let free = |host: &&String| {
                next.part(host).is_none() && **host != input.owner && !pace.refused.contains_key(*host)
            };
            let Some(host) = input.candidates.iter().find(free).filter(|_| next.hosts.len() < most) else {
                return;
            };
            next.hosts.push(part(host, PartState::Joining));
            set_goals(next, input);
        }
    } else if lasts(pace.fits_since, config.shrink_after) {
        if let Some(last) = next.hosts.last_mut() {
            last.state = PartState::Leaving;
        }
        set_goals(next, input);
    } else {
        return;
    }
    pace.stepped = Some(input.now);
    (pace.short_since, pace.fits_since) = (None, None);
}

/// What each host may have now.
fn allot(next: &mut Spread, before: &Spread, input: &Input<'_>) {
    let unknown = |part: &Part| {
        part.state != PartState::Leaving
            && input.revisions.keys().any(|revision| !part.revisions.contains_key(revision))
    };
    let gone = before.hosts.iter().any(|part| {
        part.state != PartState::Leaving
            && next.part(&part.host).is_none_or(|part| part.state == PartState::Leaving)
    });
    if next.hosts.iter().any(unknown) || gone || other_maximum(next, input) {
        set_goals(next, input);
    }
    for part in &mut next.hosts {
        part.revisions.retain(|revision, _| input.revisions.contains_key(revision));
    }
    share_out(next, before, input);
    // Who may let nothing in yet runs nothing: its requests are others'.
    let shut = |part: &Part| part.state == PartState::Serving && part.share == 0;
    // An owner that is new to what others run may begin nothing before they have given something back.
    let old_owner = before.hosts.is_empty() || before.part(input.owner).is_some();
    let runs_all = |host: &str| host == input.owner && old_owner;
    for (revision, wanted) in input.revisions {
        let held = |host: &str| {
            let was = before.part(host).and_then(|part| part.revisions.get(revision));
            let report = input.reports.get(host);
            let seen = report.and_then(|report| report.revisions.get(revision));
            let have = seen.map_or(0, |seen| seen.have);
            match was {
                // It may have everything, as nobody told it otherwise; others are told before they begin.
                None if runs_all(host) => wanted.max,
                None => have,
                Some(range) if range.max == 0 => have,
                Some(range) if report.is_some_and(|report| report.applied >= before.version) => {
                    range.max.max(have)
                }
                // It was lowered by the last record, maybe, and has not said that it knows.
                Some(_) => wanted.max,
            }
        };
        if wanted.max > 0 {
            let all: u64 = next.hosts.iter().map(|part| u64::from(held(&part.host))).sum();
            let mut spare = wanted.max.saturating_sub(u32::try_from(all).unwrap_or(u32::MAX));
            // One that leaves gets no more.
            for part in next.hosts.iter_mut().filter(|part| part.state != PartState::Leaving) {
                let shut = shut(part);
                let Some(range) = part.revisions.get_mut(revision) else { continue };
                let had = before.part(&part.host).and_then(|part| part.revisions.get(revision));
                let has = match had {
                    Some(range) => range.max,
                    None if runs_all(&part.host) => range.goal,
                    None => 0,
                };
                let more = if shut { 0 } else { range.goal.saturating_sub(has).min(spare) };
                spare -= more;
                range.max = has.min(range.goal) + more;
            }
        } else {
            for part in &mut next.hosts {
                let shut = shut(part);
                if let Some(range) = part.revisions.get_mut(revision) {
                    range.max = if shut { 0 } else { range.goal };
                }
            }
        }
        share_minimum(next, input, revision, *wanted);
    }
}

/// The minimum stays where it is kept whatever is decided here, so that it is not kept twice: an owner that others came after
/// has it. The rest goes where the room is, the owner first.
fn share_minimum(next: &mut Spread, input: &Input<'_>, revision: &str, wanted: Wanted) {
    for part in &mut next.hosts {
        if let Some(range) = part.revisions.get_mut(revision) {
            range.min = 0;
        }
    }
    let kept = |host: &str| {
        let seen = input.reports.get(host).and_then(|report| report.revisions.get(revision));
        seen.map_or(0, |seen| seen.least.min(room(input, host, revision)))
    };
    let mut rest = wanted.min;
    let steps: [&dyn Fn(&str) -> u32; 3] = [&kept, &|host| room(input, host, revision), &|_| u32::MAX];
    for most in steps {
        for part in next.hosts.iter_mut().filter(|part| part.state != PartState::Leaving) {
            let Some(range) = part.revisions.get_mut(revision) else { continue };
            let more = most(&part.host).min(range.max).saturating_sub(range.min).min(rest);
            rest -= more;
            range.min += more;
        }
    }
}

/// Where there is a quota, it and the requests that are passed on go in equal parts; else requests go by the maxima where
/// there are any.
fn share_out(next: &mut Spread, before: &Spread, input: &Input<'_>) {
    if input.quota.is_some() {
        return share_quota(next, before, input);
    }
    let serving: Vec<usize> =
        (0..next.hosts.len()).filter(|at| next.hosts[*at].state == PartState::Serving).collect();
    let sizes: Vec<u64> = serving
        .iter()
        .map(|at| {
            let goals = next.hosts[*at].revisions.values().map(|range| range.goal);
            goals.filter(|goal| *goal < u32::MAX).map(u64::from).sum()
        })
        .collect();
    let bounded = sizes.iter().all(|size| *size > 0);
    let all: u64 = if bounded { sizes.iter().sum() } else { serving.len() as u64 };
    for part in next.hosts.iter_mut().filter(|part| part.state != PartState::Serving) {
        part.share = 0;
    }
    for (at, size) in serving.into_iter().zip(sizes) {
        let size = if bounded { size } else { 1 };
        next.hosts[at].share = u32::try_from(size * WHOLE / all.max(1)).unwrap_or(1000).max(1);
    }
}

/// A share is raised only by what others have said that they gave back, and begins with the whole of it.
fn share_quota(next: &mut Spread, before: &Spread, input: &Input<'_>) {
    let said = |host: &str, is: &dyn Fn(&Report) -> bool| input.reports.get(host).is_some_and(is);
    let takes = |part: &Part| match part.state {
        PartState::Serving => true,
        PartState::Joining => said(&part.host, &|report| report.ready),
        PartState::Leaving => false,
    };
    let takers = next.hosts.iter().filter(|part| takes(part)).count();
    let whole = u32::try_from(WHOLE).unwrap_or(1000);
    let goal = whole / u32::try_from(takers.max(1)).unwrap_or(whole);
    let had = |host: &str| match before.part(host) {
        Some(part) => part.share,
        None if before.hosts.is_empty() && host == input.owner => whole,
        None => 0,
    };
    let all_know = before
        .hosts
        .iter()
        .filter(|part| next.part(&part.host).is_some())
        .all(|part| said(&part.host, &|report| report.applied >= before.version));
    let held: u32 = next.hosts.iter().map(|part| had(&part.host)).sum();
    let mut spare = if all_know { whole.saturating_sub(held) } else { 0 };
    for part in &mut next.hosts {
        let had = had(&part.host);
        // One that leaves keeps its share for its last requests.
        let goal = if part.state == PartState::Leaving {
            had
        } else if takes(part) {
            goal
        } else {
            0
        };
        let more = goal.saturating_sub(had).min(spare);
        let more = if had == 0 && more < goal { 0 } else { more };
        spare -= more;
        part.share = had.min(goal) + more;
    }
}

fn part(host: &str, state: PartState) -> Part {
    Part { host: host.to_owned(), state, share: 0, revisions: BTreeMap::new() }
}

/// Hosts that have a part and keep it.
fn staying(next: &Spread, owner: &str) -> Vec<String> {
    let staying = next.hosts.iter().filter(|part| part.state != PartState::Leaving);
    let staying: Vec<String> = staying.map(|part| part.host.clone()).collect();
    if staying.is_empty() { vec![owner.to_owned()] } else { staying }
}

/// Each host is to have one instance of each revision at least, and to let a request in.
fn most_hosts(input: &Input<'_>) -> usize {
    if input.revisions.is_empty() {
        return 1;
    }
    let maxima = input.revisions.values().map(|wanted| wanted.max).filter(|max| *max > 0);
    let quota = input.quota.unwrap_or(Quota::UNLIMITED);
    let burst = if quota.limits_rate() { quota.burst } else { u32::MAX };
    maxima.chain([quota.concurrency.max(1), burst.max(1)]).min().unwrap_or(u32::MAX) as usize
}

/// Instances of a revision that all requests together need, or its minimum.
fn needed(next: &Spread, input: &Input<'_>, revision: &str, wanted: Wanted) -> u32 {
    let seen = input.reports.iter().filter_map(|(host, report)| {
        let counts = *host == input.owner || next.part(host).is_some();
        report.revisions.get(revision).filter(|_| counts)
    });
    let asked: u64 = seen
        .map(|seen| {
            // Up to its own minimum it is not known what the requests there need.
            let asked = if seen.asked > seen.least { seen.asked } else { seen.asked.min(seen.have) };
            u64::from(asked)
        })
        .sum();
    let asked = u32::try_from(asked).unwrap_or(u32::MAX).max(wanted.min);
    if wanted.max == 0 { asked } else { asked.min(wanted.max) }
}

/// Instances that a host could have. One that has not said yet has enough.
fn room(input: &Input<'_>, host: &str, revision: &str) -> u32 {
    let seen = input.reports.get(host).and_then(|report| report.revisions.get(revision));
    seen.map_or(u32::MAX, |seen| seen.room.max(seen.have))
}

/// Instances that a host could have within its part.
fn holds(next: &Spread, input: &Input<'_>, host: &str, revision: &str, wanted: Wanted) -> u32 {
    let goal = next.part(host).and_then(|part| part.revisions.get(revision)).map(|range| range.goal);
    let most = if wanted.max == 0 { u32::MAX } else { wanted.max };
    room(input, host, revision).min(goal.unwrap_or(most))
}

/// Whether a revision's maximum is another than the one that was shared out.
fn other_maximum(next: &Spread, input: &Input<'_>) -> bool {
    let staying = || next.hosts.iter().filter(|part| part.state != PartState::Leaving);
    staying().next().is_some()
        && input.revisions.iter().any(|(revision, wanted)| {
            let goals = staying().filter_map(|part| part.revisions.get(revision)).map(|range| range.goal);
            match wanted.max {
                0 => goals.into_iter().any(|goal| goal != u32::MAX),
                max => goals.map(u64::from).sum::<u64>() != u64::from(max),
            }
        })
}

/// Gives maxima that hosts have no room for to those that have. Whether that helps.
fn share_anew(next: &mut Spread, input: &Input<'_>) -> bool {
    if next.hosts.len() < 2 {
        return false;
    }
    let held = |next: &Spread| -> u64 {
        let hosts = staying(next, input.owner);
        let each = input.revisions.iter().flat_map(|(revision, wanted)| {
            let hosts = hosts.iter();
            hosts.map(|host| u64::from(holds(next, input, host, revision, *wanted))).collect::<Vec<_>>()
        });
        each.sum()
    };
    let was = held(next);
    let mut other = next.clone();
    set_goals(&mut other, input);
    if held(&other) <= was {
        return false;
    }
    *next = other;
    true
}

/// Shares the maxima out by the room that there is.
fn set_goals(next: &mut Spread, input: &Input<'_>) {
    for (revision, wanted) in input.revisions {
        let staying: Vec<usize> =
            (0..next.hosts.len()).filter(|at| next.hosts[*at].state != PartState::Leaving).collect();
        let goals = match wanted.max {
            0 => vec![u32::MAX; staying.len()],
            max => {
                let rooms: Vec<u32> =
                    staying.iter().map(|at| room(input, &next.hosts[*at].host, revision).max(1)).collect();
                filled(max, &rooms)
            }
        };
        for (at, goal) in staying.into_iter().zip(goals) {
            next.hosts[at].revisions.entry(revision.clone()).or_default().goal = goal;
        }
    }
}

/// `most` in parts that are as equal as `rooms` allow; what nobody has room for, equally.
fn filled(most: u32, rooms: &[u32]) -> Vec<u32> {
    let mut given = vec![0_u32; rooms.len()];
    let mut rest = most;
    for bounded in [true, false] {
        loop {
            let open: Vec<usize> =
                (0..rooms.len()).filter(|at| !bounded || given[*at] < rooms[*at]).collect();
            if open.is_empty() || rest == 0 {
                break;
            }
            let each = (rest / open.len() as u32).max(1);
            for at in open {
                let left = if bounded { rooms[at] - given[at] } else { u32::MAX - given[at] };
                let more = each.min(left).min(rest);
                given[at] += more;
                rest -= more;
            }
        }
    }
    given
}

#[cfg(test)]
mod tests;

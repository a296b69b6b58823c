use proptest::prelude::*;

use super::*;
use crate::spread::record::Reported;

/// Hosts as a decision sees them, each with room for so many instances, and a load that is shared among those that serve.
struct World {
    rooms: BTreeMap<String, u32>,
    candidates: Vec<String>,
    alive: BTreeSet<String>,
    owner: String,
    wanted: Wanted,
    quota: Option<Quota>,
    load: u32,
    spread: Spread,
    /// What each host has applied, as it may be behind.
    applied: BTreeMap<String, Spread>,
    /// What each host runs.
    have: BTreeMap<String, u32>,
    /// What each host was registered with as a minimum of its own.
    least: BTreeMap<String, u32>,
    cannot: BTreeSet<String>,
    pace: Pace,
    now: i64,
}

impl World {
    fn new(rooms: &[u32], min: u32, max: u32) -> Self {
        let names: Vec<String> = (0..rooms.len()).map(|n| format!("h{n}")).collect();
        Self {
            rooms: names.iter().cloned().zip(rooms.iter().copied()).collect(),
            alive: names.iter().cloned().collect(),
            owner: names[0].clone(),
            candidates: names,
            wanted: Wanted { min, max },
            quota: None,
            load: 0,
            spread: Spread::default(),
            applied: BTreeMap::new(),
            have: BTreeMap::new(),
            least: BTreeMap::from([("h0".to_owned(), min)]),
            cannot: BTreeSet::new(),
            pace: Pace::default(),
            now: 0,
        }
    }

    /// The most that a host may run by what it has applied.
    fn limit(&self, host: &str) -> u32 {
        let all = if self.wanted.max == 0 { u32::MAX } else { self.wanted.max };
        match self.applied.get(host).filter(|spread| !spread.hosts.is_empty()) {
            Some(spread) => spread.part(host).and_then(|p| p.revisions.get("r")).map_or(0, |range| range.max),
            None if host == self.owner => all,
            None => 0,
        }
    }

    fn apply(&mut self, host: &str) {
        self.applied.insert(host.to_owned(), self.spread.clone());
        self.run(host);
    }

    /// What a host's share of the load needs, or its own minimum.
    fn asked(&self, host: &str) -> u32 {
        let serving = self.spread.serving();
        let share = match serving.iter().position(|share| *share.host == *host) {
            Some(_) => self.load.div_ceil(serving.len() as u32),
            None if serving.is_empty() && host == self.owner => self.load,
            None => 0,
        };
        share.max(self.least.get(host).copied().unwrap_or(0))
    }

    /// A host runs what it asks for and its part keeps, as far as it may and has room.
    fn run(&mut self, host: &str) {
        let part = self.applied.get(host).and_then(|spread| spread.part(host));
        if part.is_some_and(|part| part.state == PartState::Leaving) {
            // It says no more once nothing of it runs.
            self.have.insert(host.to_owned(), 0);
            return;
        }
        let kept = match part {
            Some(part) => part.revisions.get("r").map_or(0, |range| range.min),
            None if host == self.owner => self.wanted.min,
            None => 0,
        };
        let wants = self.asked(host).max(kept);
        self.have.insert(host.to_owned(), wants.min(self.limit(host)).min(self.rooms[host]));
    }

    /// Another host acts from now on.
    fn moves_to(&mut self, host: &str) {
        if self.spread.hosts.is_empty() {
            // Nothing is shared: who acted lets all of it go, and the next one begins with the minimum.
            self.least = BTreeMap::from([(host.to_owned(), self.wanted.min)]);
            self.have.clear();
            self.applied.clear();
        }
        (self.owner, self.pace) = (host.to_owned(), Pace::default());
    }

    fn reports(&self) -> BTreeMap<String, Report> {
        let known = |host: &&String| **host == self.owner || self.spread.part(host).is_some();
        let hosts = self.alive.iter().filter(known);
        hosts
            .map(|host| {
                let have = self.have.get(host).copied().unwrap_or(0);
                let mut report = Report {
                    applied: self.applied.get(host).map_or(0, |spread| spread.version),
                    ready: !self.cannot.contains(host),
                    ..Report::default()
                };
                report.error = self.cannot.contains(host).then(|| "no such package".to_owned());
                let least = self.least.get(host).copied().unwrap_or(0);
                let (asked, room) = (self.asked(host), self.rooms[host]);
                report.revisions.insert("r".into(), Reported { asked, least, have, room });
                (host.clone(), report)
            })
            // One that has given its part back says no more.
            .filter(|(host, _)| {
                let leaving = |part: &Part| part.state == PartState::Leaving;
                let told = self.applied.get(host).and_then(|spread| spread.part(host));
                !(self.spread.part(host).is_some_and(leaving) && told.is_some_and(leaving))
            })
            .collect()
    }

    /// A second passes, and `late` hosts have not heard of what was decided before.
    fn second(&mut self, late: &[&str]) -> bool {
        self.now += 1;
        for host in self.alive.clone() {
            if late.contains(&host.as_str()) { self.run(&host) } else { self.apply(&host) }
        }
        let reports = self.reports();
        let revisions = BTreeMap::from([("r".to_owned(), self.wanted)]);
        let input = Input {
            now: Timestamp(1_000_000_000_000 + self.now * 1_000_000_000),
            owner: &self.owner,
            candidates: &self.candidates,
            alive: &self.alive,
            revisions: &revisions,
            quota: self.quota,
            reports: &reports,
        };
        let before = self.spread.clone();
        let changed = step(&before, &input, &mut self.pace, &SpreadConfig::default());
        let is = changed.is_some();
        if let Some(next) = changed {
            self.spread = next;
            // The owner acts by what it wrote at once.
            self.apply(&self.owner.clone());
        }
        let (spread, owner) = (&self.spread, &self.owner);
        // Whoever comes again comes as one with a part.
        self.least.retain(|host, _| host == owner || spread.part(host).is_some());
        self.check();
        is
    }

    fn seconds(&mut self, seconds: u32) -> u32 {
        (0..seconds).map(|_| u32::from(self.second(&[]))).sum()
    }

    fn check(&self) {
        let names: BTreeSet<&str> = self.spread.hosts.iter().map(|part| part.host.as_str()).collect();
        assert_eq!(names.len(), self.spread.hosts.len(), "no host twice: {:?}", self.spread);
        if let Some(first) = self.spread.hosts.first() {
            assert_eq!(first.host, self.owner, "{:?}", self.spread);
        }
        let ranges = self.spread.hosts.iter().filter_map(|part| part.revisions.get("r"));
        if self.wanted.max > 0 {
            let may: u64 = ranges.clone().map(|range| u64::from(range.max)).sum();
            assert!(may <= u64::from(self.wanted.max), "{may} of {}: {:?}", self.wanted.max, self.spread);
            let run: u32 =
                self.have.iter().filter(|(host, _)| self.alive.contains(*host)).map(|(_, n)| n).sum();
            assert!(run <= self.wanted.max, "{run} run of {}", self.wanted.max);
        }
        if !self.spread.hosts.is_empty() {
            let staying = self.spread.hosts.iter().filter(|part| part.state != PartState::Leaving);
            let most: u64 =
                staying.filter_map(|part| part.revisions.get("r")).map(|range| u64::from(range.max)).sum();
            let least: u64 = ranges.map(|range| u64::from(range.min)).sum();
            assert_eq!(least, u64::from(self.wanted.min).min(most), "{:?}", self.spread);
        }
        if self.quota.is_some() {
            let shares =
                self.spread.hosts.iter().filter(|part| self.alive.contains(&part.host)).map(|part| {
                    let knows = self.applied.get(&part.host).filter(|spread| !spread.hosts.is_empty());
                    match knows {
                        Some(spread) => spread.part(&part.host).map_or(0, |part| part.share),
                        None if part.host == self.owner => 1000,
                        None => 0,
                    }
                });
            let shares: Vec<u32> = shares.collect();
            assert!(shares.iter().sum::<u32>() <= 1000, "{shares:?}: {:?}", self.spread);
        }
        assert!(
            self.spread.serving().iter().map(|share| share.weight).sum::<u32>() <= 1000,
            "{:?}",
            self.spread
        );
    }

    fn serving(&self) -> Vec<String> {
        self.spread.serving().iter().map(|share| share.host.to_string()).collect()
    }
}

#[test]
fn a_service_that_fits_on_its_host_stays_there() {
    let mut world = World::new(&[10, 10], 0, 0);
    world.load = 10;
    assert_eq!(world.seconds(200), 0);
    assert!(world.spread.hosts.is_empty());
}

#[test]
fn a_service_that_needs_more_gets_one_host_more_at_a_time_and_gives_them_back() {
    let mut world = World::new(&[4, 4, 4], 0, 0);
    world.load = 10;
    world.seconds(4);
    assert!(world.spread.hosts.is_empty(), "a moment is no reason");
    world.seconds(6);
    assert_eq!(world.serving(), ["h0", "h1"]);
    world.seconds(20);
    assert_eq!(world.serving(), ["h0", "h1", "h2"]);
    assert_eq!(world.spread.hosts.iter().map(|part| part.share).collect::<Vec<_>>(), [333, 333, 333]);
    assert_eq!(world.seconds(300), 0, "nothing more to do");
    world.load = 0;
    world.seconds(50);
    assert_eq!(world.serving().len(), 3, "it may come back");
    world.seconds(200);
    assert_eq!(world.spread.hosts, []);
}

#[test]
fn noise_around_the_edge_moves_nothing() {
    let mut world = World::new(&[4, 4], 0, 0);
    for second in 0..600 {
        world.load = if second % 4 == 0 { 6 } else { 4 };
        assert!(!world.second(&[]), "at {second}");
    }
    world.load = 6;
    world.seconds(20);
    assert_eq!(world.serving().len(), 2);
    for second in 0..600 {
        world.load = if second % 50 == 0 { 5 } else { 2 };
        assert!(!world.second(&[]), "at {second}");
    }
}

#[test]
fn a_maximum_is_shared_by_the_room_that_there_is() {
    let mut world = World::new(&[3, 20], 0, 10);
    world.load = 10;
    world.seconds(30);
    let maxima: Vec<u32> = world.spread.hosts.iter().map(|part| part.revisions["r"].max).collect();
    // Room that is not known is taken for enough; once it is, nothing is left over.
    assert_eq!(maxima.iter().sum::<u32>(), 10, "{maxima:?}");
    assert_eq!(maxima[0], 3, "{maxima:?}");
}

#[test]
fn a_minimum_that_is_too_large_for_one_host_is_kept_by_two() {
    let mut world = World::new(&[4, 4], 6, 0);
    world.seconds(30);
    let minima: Vec<u32> = world.spread.hosts.iter().map(|part| part.revisions["r"].min).collect();
    assert_eq!(minima, [4, 2]);
    assert_eq!(world.have.values().sum::<u32>(), 6);
}

#[test]
fn a_maximum_of_one_never_spreads() {
    let mut world = World::new(&[0, 4], 0, 1);
    world.load = 5;
    assert_eq!(world.seconds(200), 0);
}

#[test]
fn a_host_that_can_not_take_its_part_is_left_alone_for_a_while_and_another_one_asked() {
    let mut world = World::new(&[2, 9, 9], 0, 0);
    world.cannot.insert("h1".into());
    world.load = 6;
    world.seconds(25);
    assert_eq!(world.serving(), ["h0", "h2"]);
    // One that serves, and can't prepare what was deployed since, has some time.
    world.cannot.insert("h2".into());
    world.seconds(100);
    assert_eq!(world.serving(), ["h0", "h2"]);
    world.seconds(30);
    assert_eq!(world.spread.part("h2"), None);
    let mut full = World::new(&[2, 0, 9], 0, 0);
    full.load = 6;
    full.seconds(25);
    assert_eq!(full.serving(), ["h0", "h2"], "there is no room on h1");
}

#[test]
fn a_host_that_dies_or_drains_loses_its_part_and_a_new_owner_goes_on() {
    let mut world = World::new(&[4, 4, 4, 4], 0, 0);
    world.load = 10;
    world.seconds(40);
    assert_eq!(world.serving().len(), 3);
    world.alive.remove("h1");
    world.candidates.retain(|host| host != "h1");
    world.seconds(1);
    assert_eq!(world.serving(), ["h0", "h2"]);
    world.seconds(30);
    assert_eq!(world.serving(), ["h0", "h2", "h3"]);
    // The owner dies, and a host that has a part takes over.
    world.alive.remove("h0");
    world.candidates.retain(|host| host != "h0");
    world.moves_to("h2");
    world.seconds(1);
    assert_eq!(world.serving(), ["h2", "h3"]);
    // One that drains ends what it has.
    world.candidates.retain(|host| host != "h3");
    world.second(&["h3"]);
    assert_eq!(world.spread.part("h3").expect("it is there").state, PartState::Leaving);
    world.seconds(3);
    assert!(world.spread.part("h3").is_none());
}

#[test]
fn a_former_owner_that_leaves_is_waited_for_although_it_has_not_said_anything_yet() {
    let mut world = World::new(&[4, 4, 4], 0, 0);
    world.load = 7;
    world.seconds(20);
    assert_eq!(world.serving(), ["h0", "h1"]);
    world.moves_to("h1");
    world.candidates.retain(|host| host != "h0");
    let revisions = BTreeMap::from([("r".to_owned(), world.wanted)]);
    let mut reports = world.reports();
    let unsaid = reports.remove("h0").expect("it has a part");
    let mut seen = |spread: &Spread, reports: &BTreeMap<String, Report>, now: i64| {
        let input = Input {
            now: Timestamp(2_000_000_000_000_000 + now * 1_000_000_000),
            owner: "h1",
            candidates: &world.candidates,
            alive: &world.alive,
            revisions: &revisions,
            quota: None,
            reports,
        };
        step(spread, &input, &mut world.pace, &SpreadConfig::default())
    };
    let leaves = seen(&world.spread, &reports, 0).expect("h0 leaves");
    assert_eq!(leaves.part("h0").expect("it is there").state, PartState::Leaving);
    assert_eq!(seen(&leaves, &reports, 1), None, "it has not heard of it");
    reports.insert("h0".into(), unsaid);
    assert_eq!(seen(&leaves, &reports, 9), None, "it ends what it has");
    reports.remove("h0");
    assert_eq!(seen(&leaves, &reports, 10).expect("it is gone").hosts, []);
}

#[test]
fn an_owner_that_only_moved_keeps_what_it_ran_as_a_part() {
    let mut world = World::new(&[4, 4, 4], 0, 0);
    world.load = 7;
    world.seconds(20);
    world.moves_to("h2");
    world.second(&[]);
    assert_eq!(world.serving(), ["h2", "h0", "h1"]);
}

#[test]
fn a_minimum_stays_where_it_is_kept_when_another_host_acts() {
    let mut world = World::new(&[4, 4, 4], 3, 0);
    world.load = 7;
    world.seconds(20);
    let minima = |world: &World| -> Vec<(String, u32)> {
        world.spread.hosts.iter().map(|part| (part.host.clone(), part.revisions["r"].min)).collect()
    };
    assert_eq!(minima(&world), [("h0".into(), 3), ("h1".into(), 0)]);
    world.moves_to("h2");
    world.seconds(2);
    assert_eq!(minima(&world), [("h2".into(), 0), ("h0".into(), 3), ("h1".into(), 0)]);
    world.load = 0;
    world.seconds(20);
    assert_eq!(world.have.values().sum::<u32>(), 3, "{:?}", world.have);
    world.alive.remove("h0");
    world.candidates.retain(|host| host != "h0");
    world.seconds(1);
    assert_eq!(minima(&world), [("h2".into(), 3), ("h1".into(), 0)]);
}

#[test]
fn a_quota_is_had_once_and_whoever_begins_has_its_share_at_once() {
    let mut world = World::new(&[4, 4, 4, 4], 0, 0);
    world.quota = Some(Quota::rate(100.0, 50).with_concurrency(3));
    world.load = 30;
    world.seconds(40);
    let shares = |world: &World| -> Vec<u32> { world.spread.hosts.iter().map(|part| part.share).collect() };
    assert_eq!(shares(&world), [333, 333, 333], "a fourth could not let anything in");
    world.moves_to("h3");
    world.second(&["h1"]);
    assert_eq!(shares(&world)[0], 0, "nobody has given it anything");
    assert_eq!(world.spread.part("h3").expect("it is there").revisions["r"].max, 0);
    world.seconds(10);
    assert_eq!(
        (world.serving(), shares(&world)),
        (vec!["h3".into(), "h0".into(), "h1".into()], vec![333; 3])
    );
    world.load = 0;
    world.seconds(300);
    assert_eq!(world.spread.hosts, []);
}

#[test]
fn a_service_that_is_switched_off_gives_all_parts_back() {
    let mut world = World::new(&[4, 4], 0, 0);
    world.load = 7;
    world.seconds(20);
    let reports = world.reports();
    let input = Input {
        now: Timestamp(2_000_000_000_000),
        owner: "h0",
        candidates: &world.candidates,
        alive: &world.alive,
        revisions: &BTreeMap::new(),
        quota: None,
        reports: &reports,
    };
    let next = step(&world.spread, &input, &mut world.pace, &SpreadConfig::default()).expect("a change");
    assert_eq!(next.part("h1").expect("it is there").state, PartState::Leaving);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes and goes, and however late hosts hear of it: what [`World::check`] says holds at each second, no more
    /// than one host joins or leaves by decision per period, and in quiet it comes to rest.
    #[test]
    fn parts_are_sound_under_anything(
        rooms in proptest::collection::vec(0..12_u32, 1..6),
        quota in any::<bool>(),
        (min, max) in prop_oneof![Just((0, 0)), (0..6_u32, 6..40_u32), (0..6_u32, Just(0))],
        events in proptest::collection::vec((0..9_u8, any::<prop::sample::Index>(), 0..60_u32, 1..40_u32), 1..30),
    ) {
        let mut world = World::new(&rooms, min, max);
        world.quota = quota.then(|| Quota::rate(100.0, 50).with_concurrency(4));
        for (event, which, load, seconds) in events {
            let names: Vec<String> = world.rooms.keys().cloned().collect();
            let host = which.get(&names).clone();
            let mut late = None;
            match event {
                0 if host != world.owner => {
                    world.alive.remove(&host);
                    world.candidates.retain(|name| *name != host);
                    world.have.remove(&host);
                    world.applied.remove(&host);
                }
                1 if !world.alive.contains(&host) => {
                    world.alive.insert(host.clone());
                    world.candidates.push(host);
                }
                2 => late = Some(host),
                3 => world.candidates.retain(|name| *name != host || *name == world.owner),
                5 if world.candidates.contains(&host) => {
                    world.moves_to(&host);
                }
                4 => {
                    world.rooms.insert(host, load / 4);
                }
                _ => world.load = load,
            }
            let mut steps = Vec::new();
            for _ in 0..seconds {
                let before = world.spread.hosts.len();
                let late: Vec<&str> = late.as_deref().into_iter().collect();
                world.second(&late);
                if world.spread.hosts.len() > before {
                    steps.push(world.now);
                }
            }
            prop_assert!(steps.windows(2).all(|two| two[1] - two[0] >= 5), "{steps:?}");
        }
        world.seconds(900);
        let changes = world.seconds(120);
        prop_assert!(changes == 0 || rooms.len() > 1 && world.pace.refused.len() + world.pace.unready.len() > 0, "{changes}");
    }
}

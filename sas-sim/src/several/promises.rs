//! What several hosts promise together.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sas_core::{Place, RevisionKey};

use super::lives::{NAMESPACE, Shared, paths};
use crate::{history::Fact, world::Violation};

/// How long after an answer a fire is kept: what is under way when its host goes may come again.
const KEPT_AFTER: Duration = Duration::from_secs(1);

/// What was seen at the looks before.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// For which paths each host acted at the look before.
    acted: BTreeSet<(u64, String)>,
    /// Which paths each host knew to be another's.
    others: BTreeSet<(u64, String)>,
    executed: BTreeMap<u64, u32>,
    /// Instances, and whether they got ready.
    alive: BTreeMap<u64, bool>,
    pub(super) fires: u64,
    looked: usize,
}

impl Seen {
    /// Looks at all hosts, and at what happened since the last look.
    pub(super) fn look(&mut self, shared: &Shared) -> Result<(), Violation> {
        let lives = shared.lives();
        let (mut acts, mut others) = (BTreeSet::new(), BTreeSet::new());
        for path in paths() {
            let mut acting: Option<&str> = None;
            for life in &lives {
                let cluster = life.platform.cluster().expect("it is one of several");
                match cluster.place(&path) {
                    Place::Here(_) => {}
                    Place::There(_) => {
                        others.insert((life.epoch, path.clone()));
                        continue;
                    }
                    Place::Undecided => continue,
                }
                if let Some(other) = acting.replace(life.name) {
                    return broken("one owner", format!("{other} and {} act for {path} at once", life.name));
                }
                acts.insert((life.epoch, path.clone()));
            }
        }
        for life in &lives {
            let late = life.link.late();
            if late > 0 {
                let message =
                    format!("{late} writes of {} were done after another host took over", life.name);
                return broken("former owners write nothing", message);
            }
        }
        for (at, fact) in shared.history.drain() {
            self.take(shared, &others, at, fact)?;
        }
        self.fires(shared, &acts)?;
        (self.acted, self.others) = (acts, others);
        Ok(())
    }

    fn take(
        &mut self,
        shared: &Shared,
        others: &BTreeSet<(u64, String)>,
        at: Duration,
        fact: Fact,
    ) -> Result<(), Violation> {
        match fact {
            Fact::Executed { request, .. } => {
                let times = self.executed.entry(request).or_default();
                *times += 1;
                if *times > 1 {
                    return broken("executed once", format!("request {request} was executed {times} times"));
                }
            }
            Fact::Starting { instance, revision } => {
                self.alive.insert(instance, false);
                let epoch = revision >> 48;
                let lives = shared.lives();
                let Some(life) = lives.iter().find(|life| life.epoch == epoch) else { return Ok(()) };
                let key = RevisionKey(revision ^ (epoch << 48));
                let Some(service) = life.service_of(key) else { return Ok(()) };
                let path = (epoch, format!("{NAMESPACE}/{service}"));
                // A host that knows of nobody who acts goes on as before for the requests that come to it.
                if others.contains(&path) && self.others.contains(&path) {
                    let message = format!(
                        "{} started an instance of {service} at {at:?}, which is another's",
                        life.name
                    );
                    return broken("who acts starts", message);
                }
            }
            Fact::Ready { instance } => {
                self.alive.insert(instance, true);
            }
            Fact::Gone { instance, .. } => {
                self.alive.remove(&instance);
            }
            _ => {}
        }
        Ok(())
    }

    /// A fire that was answered, and whose host kept that, never comes again; and no host sends what is another's.
    fn fires(&mut self, shared: &Shared, acts: &BTreeSet<(u64, String)>) -> Result<(), Violation> {
        let mut sent = shared.sent.lock();
        let acted = |epoch: u64| {
            let path = (epoch, NAMESPACE.to_owned());
            acts.contains(&path) || self.acted.contains(&path)
        };
        for index in self.looked..sent.len() {
            self.fires += 1;
            let (id, epoch) = (sent[index].id.clone(), sent[index].epoch);
            if sent[..index].iter().any(|before| before.id == id && before.kept) {
                return broken("one fire", format!("{id} came again after it was done"));
            }
            // What a host claimed while it acted it may send, and send again.
            let again = sent[..index].iter().any(|before| before.id == id && before.epoch == epoch);
            if !again && sent[index].others {
                return broken("one fire", format!("{id} was begun by a host that knows another to act"));
            }
        }
        self.looked = sent.len();
        for one in sent.iter_mut().filter(|one| !one.kept && !one.given_away) {
            // What is under way while the namespace moves may come again, also when it comes back in time.
            if !acted(one.epoch) {
                one.given_away = true;
                continue;
            }
            let Some(answered) = one.answered else { continue };
            let well = shared.well_since(one.epoch).is_some_and(|since| since <= one.at);
            one.kept = well && answered.elapsed() >= KEPT_AFTER;
        }
        Ok(())
    }

    /// Instances that are not gone. What a host that was killed was starting ends with it, and tells nobody.
    pub(super) fn alive(&self, killed: &BTreeSet<u64>) -> usize {
        self.alive.iter().filter(|(instance, ready)| **ready || !killed.contains(&(*instance >> 48))).count()
    }
}

pub(super) fn broken<T>(invariant: &'static str, message: String) -> Result<T, Violation> {
    Err(Violation { invariant, message })
}

//! Every request that was sent has exactly one answer, at the latest at its deadline; without faults it is a good one.

use std::{collections::BTreeMap, time::Duration};

use super::{Invariant, View};
use crate::history::{Answered, Fact};

/// The longest that a client waits, and a look.
const LATEST: Duration = Duration::from_secs(31);

#[derive(Debug, Default)]
pub(crate) struct OneAnswer {
    waiting: BTreeMap<u64, Duration>,
    answered: BTreeMap<u64, Answered>,
    /// Whether there ever was a quota to refuse requests by.
    limited: bool,
}

impl Invariant for OneAnswer {
    fn name(&self) -> &'static str {
        "one answer"
    }

    fn look(&mut self, facts: &[(Duration, Fact)], view: &View) -> Result<(), String> {
        for (at, fact) in facts {
            match fact {
                Fact::Sent { request, .. } => {
                    self.waiting.insert(*request, *at);
                }
                Fact::Answered { request, answer } => {
                    let Some(sent) = self.waiting.remove(request) else {
                        return Err(format!("request {request} was answered again: {answer:?}"));
                    };
                    if *at > sent + LATEST {
                        return Err(format!("request {request} was answered after {:?}", *at - sent));
                    }
                    let good = matches!(answer, Answered::Status(200) | Answered::Left);
                    // A service that was deployed with the first request is not there yet: that is an answer, too.
                    let early = matches!(answer, Answered::Error("not_found") | Answered::Status(404));
                    let refused = self.limited && matches!(answer, Answered::Error("exhausted"));
                    if !view.faulty && !good && !early && !refused {
                        return Err(format!(
                            "without any fault request {request} was answered with {answer:?}"
                        ));
                    }
                    self.answered.insert(*request, answer.clone());
                }
                Fact::QuotaUnsure => self.limited = true,
                _ => {}
            }
        }
        let last = facts.last().map(|(at, _)| *at);
        let stale = self.waiting.iter().find(|(_, sent)| last.is_some_and(|last| last > **sent + LATEST));
        if let Some((request, _)) = stale.or_else(|| self.waiting.iter().next().filter(|_| view.end)) {
            return Err(format!("request {request} was never answered"));
        }
        Ok(())
    }
}

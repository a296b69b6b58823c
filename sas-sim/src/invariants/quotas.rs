//! What a tenant may use holds: of the requests that were sent since a quota was acknowledged, no more run at once than
//! it allows, and no more were let in than its rate and its burst allow. It holds after a restart, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Invariant, View};
use crate::history::{Fact, QuotaSet};

#[derive(Debug, Default)]
pub(crate) struct Quotas {
    /// `None` while it is not certain, or nothing is limited.
    quota: Option<QuotaSet>,
    /// Requests that were sent since it holds, and when.
    sent: BTreeMap<u64, Duration>,
    /// When those of them were sent that were let in.
    admitted: BTreeMap<u64, Duration>,
    /// Those that run.
    running: BTreeSet<u64>,
}

impl Quotas {
    /// What is counted begins anew.
    fn restart(&mut self) -> Result<(), String> {
        let kept = self.rate_was_kept();
        self.sent.clear();
        self.admitted.clear();
        self.running.clear();
        kept
    }

    fn rate_was_kept(&self) -> Result<(), String> {
        let Some(quota) = self.quota.filter(|quota| quota.rate > 0) else { return Ok(()) };
        let (rate, burst) = (f64::from(quota.rate), f64::from(quota.burst));
        let mut times: Vec<Duration> = self.admitted.values().copied().collect();
        times.sort_unstable();
        let (mut left, mut before) = (burst, times.first().copied().unwrap_or_default());
        for at in &times {
            left = (left + (*at - before).as_secs_f64() * rate).min(burst) - 1.0;
            before = *at;
            if left < -1e-6 {
                return Err(format!("{} requests were let in by {at:?}, beyond {quota:?}", times.len()));
            }
        }
        Ok(())
    }
}

impl Invariant for Quotas {
    fn name(&self) -> &'static str {
        "quotas"
    }

    fn look(&mut self, facts: &[(Duration, Fact)], view: &View) -> Result<(), String> {
        for (at, fact) in facts {
            match fact {
                Fact::QuotaUnsure => {
                    self.restart()?;
                    self.quota = None;
                }
                Fact::Quota(quota) => {
                    self.restart()?;
                    self.quota = *quota;
                }
                // Buckets and counts are of one life of the host; the quota itself is not.
                Fact::HostDied => self.restart()?,
                Fact::Control { what, .. } if what == "boot" => self.restart()?,
                Fact::Sent { request, .. } if self.quota.is_some() => {
                    self.sent.insert(*request, *at);
                }
                Fact::Executed { request, .. } => {
                    let (Some(sent), Some(quota)) = (self.sent.get(request), self.quota) else { continue };
                    self.admitted.insert(*request, *sent);
                    self.running.insert(*request);
                    if quota.concurrency > 0 && self.running.len() > quota.concurrency as usize {
                        return Err(format!(
                            "request {request} is one of {} that run, beyond {quota:?}",
                            self.running.len()
                        ));
                    }
                }
                Fact::Answered { request, .. } => {
                    self.running.remove(request);
                }
                _ => {}
            }
        }
        if view.end { self.rate_was_kept() } else { Ok(()) }
    }
}

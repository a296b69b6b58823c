//! What is tried out on the traffic of services: copies of requests to another revision, and faults on purpose.

use std::sync::Arc;

use sas_core::{Error, ErrorKind, MirrorCounts, Principal, Result, SpecErrors};
use sas_knative::manifest::{FaultRule, MirrorTo, check_faults};

use super::{Control, deploy::check_routes, refused};
use crate::record::ServiceRecord;

impl Control {
    /// Refuses what this platform can't try out, or may not. Each with the field that says it.
    pub(super) fn check_rehearsal(
        &self,
        (mirror, mirror_at): (Option<&MirrorTo>, &str),
        (faults, faults_at): (&[FaultRule], &str),
    ) -> Result<()> {
        let mut errors = SpecErrors::default();
        if mirror.is_some() && self.rehearsals.is_none() {
            errors.push(mirror_at, "", "nothing here copies requests");
        }
        if !faults.is_empty() && self.rehearsals.is_none() {
            errors.push(faults_at, "", "nothing here makes faults");
        } else if !faults.is_empty() && !self.rules.allow_faults {
            let problem = "faults on purpose are not allowed on this platform: leave them out, or have the host allow them \
                           (PlatformBuilder::allow_faults, --allow-faults of the example platform)";
            errors.push(faults_at, format!("{} faults", faults.len()), problem);
        }
        if errors.is_empty() {
            return Ok(());
        }
        let message = errors.to_string();
        Err(Error::new(ErrorKind::Unsupported, "rehearsal", message).with_source(errors))
    }

    /// Copies a share of a service's requests to the revision of a tag from now on; `None`: no more. A manifest that is applied
    /// later says it anew.
    ///
    /// # Errors
    /// `NotFound` when there is no such service; `InvalidSpec` for a tag that no target of its traffic has, or a share that
    /// is none; `Unsupported` where nothing copies requests.
    pub async fn set_mirror(
        self: &Arc<Self>,
        principal: Option<&Principal>,
        namespace: &str,
        name: &str,
        mirror: Option<MirrorTo>,
    ) -> Result<Arc<ServiceRecord>> {
        let mut errors = SpecErrors::default();
        if let Some(mirror) = &mirror {
            mirror.check("", &mut errors);
        }
        if !errors.is_empty() {
            return Err(refused("mirror", errors));
        }
        self.check_rehearsal((mirror.as_ref(), "tag"), (&[], ""))?;
        let change = |record: &mut ServiceRecord| {
            record.mirror = mirror;
            check_routes(record, &record.traffic)
        };
        self.change_record(principal, namespace, name, change).await
    }

    /// Makes requests of a service meet faults from now on, instead of those before. A manifest that is applied later says it
    /// anew.
    ///
    /// # Errors
    /// `NotFound` when there is no such service; `InvalidSpec` with what is wrong with a fault; `Unsupported` where the
    /// host does not allow faults.
    pub async fn set_faults(
        self: &Arc<Self>,
        principal: Option<&Principal>,
        namespace: &str,
        name: &str,
        faults: Vec<FaultRule>,
    ) -> Result<Arc<ServiceRecord>> {
        let mut errors = SpecErrors::default();
        check_faults("faults", &faults, &mut errors);
        if !errors.is_empty() {
            return Err(refused("faults", errors));
        }
        self.check_rehearsal((None, ""), (&faults, "faults"))?;
        let change = |record: &mut ServiceRecord| {
            let mut errors = SpecErrors::default();
            for (at, fault) in faults.iter().enumerate() {
                if let Some(revision) = &fault.revision
                    && record.revision(revision).is_none()
                {
                    let problem =
                        "the service has no such revision: name one that it has, or leave it out for all";
                    errors.push(format!("faults[{at}].revision"), revision, problem);
                }
            }
            if !errors.is_empty() {
                return Err(refused("faults", errors));
            }
            record.faults = faults;
            Ok(())
        };
        self.change_record(principal, namespace, name, change).await
    }

    /// What became of the copies of a service's requests; `None`: none are made.
    pub fn mirrored(&self, namespace: &str, name: &str) -> Option<MirrorCounts> {
        self.rehearsals.as_ref()?.mirrored(&format!("{namespace}/{name}"))
    }

    /// How many requests met each of a service's faults, in the order of its record; a fault for a revision that does not run
    /// has met none.
    pub fn faulted(&self, record: &ServiceRecord) -> Vec<u64> {
        let path = record.path();
        let Some(rehearsals) = &self.rehearsals else { return Vec::new() };
        let mut counts = rehearsals.faulted(&path).into_iter();
        let runs = |revision: &str| {
            let live = self.live(&path);
            live.is_some_and(|live| live.state.lock().observed.running(revision).is_some())
        };
        let met = record.faults.iter().map(|fault| match &fault.revision {
            Some(revision) if !runs(revision) => 0,
            _ => counts.next().unwrap_or(0),
        });
        met.collect()
    }
}

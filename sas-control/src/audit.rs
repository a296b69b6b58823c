//! Who changed what, when and how it went: kept in the store, bounded.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use sas_core::{Clock, Commit, Principal, Result, Store, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::stamp::rfc3339;

/// Where changes are in the store. Keys count down, so that the youngest comes first.
const AUDIT: &str = "audit/";
/// Old ones that a new one takes away at most: more than one, so that a lowered limit is reached.
const AWAY: usize = 8;

/// Who is told each change at the admin API as it is answered, such as a host's own audit trail; beside the log that the
/// platform keeps in its store.
///
/// ```
/// use sas_control::{AuditRecord, AuditSink};
///
/// #[derive(Debug)]
/// struct Trail;
///
/// impl AuditSink for Trail {
///     fn changed(&self, record: &AuditRecord) {
///         tracing::info!(principal = record.principal, path = record.path, status = record.status);
///     }
/// }
/// ```
pub trait AuditSink: fmt::Debug + Send + Sync + 'static {
    /// Takes a change, done or refused. Called once for each, before it is stored, within the request: it must not block,
    /// and what has to be sent somewhere waits in a bounded queue of the sink's own.
    fn changed(&self, record: &AuditRecord);
}

#[deny(clippy::missing_trait_methods)]
impl<T: AuditSink + ?Sized> AuditSink for Arc<T> {
    fn changed(&self, record: &AuditRecord) {
        (**self).changed(record);
    }
}

/// How much of the audit log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditLimits {
    /// Changes: 10,000.
    pub count: usize,
    /// How long: 90 days. What is older goes with the next change.
    pub age: Duration,
}

impl Default for AuditLimits {
    fn default() -> Self {
        Self { count: 10_000, age: Duration::from_secs(90 * 24 * 3600) }
    }
}

/// A change that somebody asked for at the admin API, done or refused. Never the body of the request, which may hold
/// secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct AuditRecord {
    /// When it was answered, in RFC 3339.
    pub at: String,
    /// Who asked.
    pub principal: String,
    /// The namespace that it is about, or that who asked is held to; `null`: the whole platform.
    pub namespace: Option<String>,
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// What was changed, such as `Service default/hello`, where the path does not say it.
    pub objects: Vec<String>,
    /// The status of the answer: below 400, it was done.
    pub status: u16,
    /// Why it was refused; `null`: it was done.
    pub reason: Option<String>,
    /// The id under which the log knows the request.
    pub request_id: String,
}

/// The audit log of a platform.
#[derive(Debug)]
pub(crate) struct AuditLog {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    limits: AuditLimits,
    sink: Option<Arc<dyn AuditSink>>,
    /// The keys that are stored, youngest first; read from the store by the first change.
    kept: tokio::sync::Mutex<Option<VecDeque<String>>>,
}

impl AuditLog {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        limits: AuditLimits,
        sink: Option<Arc<dyn AuditSink>>,
    ) -> Self {
        Self { store, clock, limits, sink, kept: tokio::sync::Mutex::default() }
    }

    /// Keeps a change. One that can't be kept is in the log of the process all the same.
    pub(crate) async fn record(&self, mut record: AuditRecord) {
        let now = self.clock.now();
        record.at = rfc3339(now);
        if let Some(sink) = &self.sink {
            sink.changed(&record);
        }
        if let Err(error) = self.write(now, &record).await {
            tracing::error!(error = %error.chain(), ?record, "a change could not be written to the audit log");
        }
    }

    async fn write(&self, now: Timestamp, record: &AuditRecord) -> Result<()> {
        let mut kept = self.kept.lock().await;
        let keys = match &mut *kept {
            Some(keys) => keys,
            none => none.insert(self.keys().await?),
        };
        let key = format!("{AUDIT}{:019}-{}", i64::MAX - now.0, record.request_id);
        let value = serde_json::to_vec(record).unwrap_or_default();
        let mut commit = Commit::new().put(key.clone(), value);
        let oldest = now.0.saturating_sub(i64::try_from(self.limits.age.as_nanos()).unwrap_or(i64::MAX));
        let mut away = 0;
        for old in keys.iter().rev().take(AWAY) {
            if keys.len() - away >= self.limits.count.max(1) || stamp(old).is_none_or(|at| at < oldest) {
                commit = commit.delete(old.clone());
                away += 1;
            } else {
                break;
            }
        }
        self.store.commit(commit).await?;
        keys.truncate(keys.len() - away);
        // A clock that went back puts a younger one behind.
        let at = keys.partition_point(|other| *other < key);
        keys.insert(at, key);
        Ok(())
    }

    async fn keys(&self) -> Result<VecDeque<String>> {
        let mut keys: VecDeque<String> = VecDeque::new();
        loop {
            let page = self.store.list(AUDIT, keys.back().map(String::as_str), 256).await?;
            let more = page.len() == 256;
            keys.extend(page.into_iter().map(|entry| entry.key));
            if !more {
                return Ok(keys);
            }
        }
    }

    /// Up to `most` changes that `by` may see, youngest first, after the one with the key `after`; and the key to go on
    /// after, if there may be more.
    pub(crate) async fn list(
        &self,
        by: &Principal,
        after: Option<String>,
        most: usize,
    ) -> Result<(Vec<AuditRecord>, Option<String>)> {
        let (mut records, mut at) = (Vec::new(), after);
        loop {
            let page = self.store.list(AUDIT, at.as_deref(), 256).await?;
            let more = page.len() == 256;
            for entry in page {
                if records.len() == most {
                    return Ok((records, at));
                }
                at = Some(entry.key.clone());
                match serde_json::from_slice::<AuditRecord>(&entry.value) {
                    Ok(record)
                        if record.namespace.as_deref().map_or(by.tenant().is_none(), |at| by.reaches(at)) =>
                    {
                        records.push(record);
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::error!(key = entry.key, %error, "what is stored is no audit record")
                    }
                }
            }
            if !more {
                return Ok((records, None));
            }
        }
    }
}

fn stamp(key: &str) -> Option<i64> {
    let digits = key.strip_prefix(AUDIT)?.split('-').next()?;
    digits.parse::<i64>().ok().map(|down| i64::MAX - down)
}

#[cfg(test)]
mod tests {
    use sas_core::MemoryStore;
    use sas_testkit::fake::FakeClock;

    use super::*;

    fn record(id: u32, namespace: Option<&str>) -> AuditRecord {
        AuditRecord {
            at: String::new(),
            principal: "ci".to_owned(),
            namespace: namespace.map(str::to_owned),
            method: "POST".to_owned(),
            path: "/v1/services".to_owned(),
            objects: Vec::new(),
            status: 201,
            reason: None,
            request_id: format!("{id:032x}"),
        }
    }

    fn ids(records: &[AuditRecord]) -> Vec<u32> {
        records.iter().map(|record| u32::from_str_radix(&record.request_id, 16).unwrap()).collect()
    }

    #[tokio::test]
    async fn the_log_keeps_the_youngest_in_number_and_age_also_after_a_restart() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let clock = FakeClock::starting_at(Timestamp(1_000_000_000_000_000_000));
        let limits = AuditLimits { count: 5, age: Duration::from_secs(60) };
        let open = || AuditLog::new(Arc::clone(&store), Arc::new(clock.clone()), limits, None);
        let log = open();
        for id in 0..8 {
            log.record(record(id, None)).await;
            clock.jump_forward(Duration::from_secs(1));
        }
        let host = Principal::host();
        assert_eq!(ids(&log.list(&host, None, 100).await.unwrap().0), [7, 6, 5, 4, 3]);
        let (page, next) = log.list(&host, None, 2).await.unwrap();
        assert_eq!(ids(&page), [7, 6]);
        assert_eq!(ids(&log.list(&host, next, 2).await.unwrap().0), [5, 4]);

        let again = open();
        again.record(record(8, None)).await;
        assert_eq!(ids(&again.list(&host, None, 100).await.unwrap().0), [8, 7, 6, 5, 4]);
        clock.jump_forward(Duration::from_secs(61));
        again.record(record(9, None)).await;
        assert_eq!(ids(&again.list(&host, None, 100).await.unwrap().0), [9]);
    }

    #[tokio::test]
    async fn a_tenant_sees_its_own_changes() {
        let told = Arc::new(Trail::default());
        let log = AuditLog::new(
            Arc::new(MemoryStore::default()),
            Arc::new(FakeClock::starting_at(Timestamp(1))),
            AuditLimits::default(),
            Some(Arc::clone(&told) as Arc<dyn AuditSink>),
        );
        log.record(record(1, Some("shop"))).await;
        log.record(record(2, Some("bank"))).await;
        log.record(record(3, None)).await;
        let of = async |by: Principal| ids(&log.list(&by, None, 10).await.unwrap().0);
        assert_eq!(of(Principal::new("a").with_tenant("shop")).await, [1]);
        assert_eq!(of(Principal::new("a")).await.len(), 3);
        assert_eq!(*told.0.lock(), ["1", "2", "3"], "the sink is told each, in order");
    }

    /// The ids of the changes that it was told.
    #[derive(Debug, Default)]
    struct Trail(parking_lot::Mutex<Vec<String>>);

    impl AuditSink for Trail {
        fn changed(&self, record: &AuditRecord) {
            assert!(!record.at.is_empty(), "it is stamped");
            self.0.lock().push(record.request_id.trim_start_matches('0').to_owned());
        }
    }
}

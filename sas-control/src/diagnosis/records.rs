//! Records in the store whose bytes can't be what was written.
//!
//! Whoever reads a record says what is wrong with it, but some are read when they are needed, long after they were damaged.
//! So the platform reads all of them once after its start and once a day, a piece each second, and keeps the names of those
//! that have not even the outer form of their kind. Nothing is written: what is there may be of use to whoever mends it.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use sas_core::{Entry, Result, Store};
use serde::de::IgnoredAny;
use tokio::time::{Duration, Instant};

/// Records of one look, so that housekeeping has time for the rest, and a store that is far away too.
const PIECE: usize = 2_000;
/// Entries that are read from the store in one go.
const PAGE: usize = 256;
/// Time from the end of a round to the next.
const ROUND: Duration = Duration::from_secs(24 * 3600);
/// Records that are named; a store that has more is to be put back from a copy.
const NAMED: usize = 100;

/// What a value of its kind looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    /// JSON on the first line, then bytes.
    Head,
    /// The time in eight bytes, then JSON.
    Timed,
    Text,
}

/// Where records are, with their form. What sources remember and parts of larger values are of any form.
const FORMS: [(&str, Form); 39] = [
    ("app/", Form::Json),
    ("async/answer/", Form::Head),
    ("async/call/", Form::Head),
    ("async/calls-of/", Form::Head),
    ("async/expiry/", Form::Text),
    ("audit/", Form::Json),
    ("broker/", Form::Json),
    ("brokers/", Form::Json),
    ("cluster/host/", Form::Json),
    ("cluster/renewed/", Form::Text),
    ("cluster/shard/", Form::Json),
    ("cluster/terms", Form::Json),
    ("deadletter/", Form::Json),
    ("domain/", Form::Json),
    ("engine/", Form::Json),
    ("events/last/", Form::Json),
    ("events/records/", Form::Timed),
    ("platform/id", Form::Text),
    ("purge/", Form::Json),
    ("quota/", Form::Json),
    ("service/", Form::Json),
    ("tenant/", Form::Json),
    ("tenants/numbers", Form::Json),
    ("token/", Form::Json),
    ("triggers/", Form::Json),
    ("usage/checkpoint/", Form::Json),
    ("usage/export/", Form::Text),
    ("usage/gap/", Form::Json),
    ("usage/hour/", Form::Json),
    ("usage/mark/", Form::Json),
    ("usage/total/", Form::Json),
    ("workflow/definition/", Form::Json),
    ("workflow/ended/", Form::Json),
    ("workflow/listens/", Form::Json),
    ("workflow/outbox/", Form::Json),
    ("workflow/record/", Form::Json),
    ("workflow/retired/", Form::Json),
    ("workflow/run/", Form::Json),
    ("workflow/told/", Form::Json),
];
/// What was set aside by the books of usage, which go on without it.
const SET_ASIDE: &str = "usage/damaged/";

/// Why the value can't be what was written, if so.
fn problem(key: &str, value: &[u8]) -> Option<String> {
    if key.starts_with(SET_ASIDE) {
        return Some("it could not be read when it was needed, and was set aside".to_owned());
    }
    let form = if key.starts_with("trigger/") && key.ends_with("/fires") {
        Form::Json
    } else {
        FORMS.iter().find(|(prefix, _)| key.starts_with(prefix))?.1
    };
    let json = match form {
        Form::Json => value,
        Form::Head => value.split(|byte| *byte == b'\n').next().unwrap_or_default(),
        Form::Timed if value.len() < 8 => return Some("it is cut off".to_owned()),
        Form::Timed => &value[8..],
        Form::Text => return std::str::from_utf8(value).err().map(|error| error.to_string()),
    };
    // The head's line is cut off where its end is missing, too.
    serde_json::from_slice::<IgnoredAny>(json).err().map(|error| error.to_string())
}

/// Those that were found, and how far the round is.
#[derive(Debug, Default)]
pub(crate) struct Records {
    found: Mutex<BTreeMap<String, String>>,
    /// Behind this key goes the round on; `None`: none is under way.
    at: Mutex<Option<String>>,
    ended: Mutex<Option<Instant>>,
}

impl Records {
    /// Reads a piece on, where a round is under way or due.
    ///
    /// # Errors
    /// The store's: the same piece comes again.
    pub(crate) async fn read_on(&self, store: &Arc<dyn Store>) -> Result<()> {
        let ended = *self.ended.lock();
        let mut at = match (self.at.lock().clone(), ended) {
            (Some(at), _) => Some(at),
            (None, Some(ended)) if ended.elapsed() < ROUND => return Ok(()),
            (None, _) => None,
        };
        let mut read = 0;
        while read < PIECE {
            let page = store.list("", at.as_deref(), PAGE).await?;
            let is_last = page.len() < PAGE;
            read += page.len();
            for Entry { key, value, .. } in &page {
                if let Some(problem) = problem(key, value) {
                    self.note(key, problem);
                }
            }
            if is_last {
                *self.at.lock() = None;
                *self.ended.lock() = Some(Instant::now());
                return Ok(());
            }
            at = page.last().map(|entry| entry.key.clone());
        }
        *self.at.lock() = at;
        Ok(())
    }

    fn note(&self, key: &str, problem: String) {
        let mut found = self.found.lock();
        if found.contains_key(key) || found.len() < NAMED {
            found.insert(key.to_owned(), problem);
        }
    }

    /// Those that are damaged still, each with what is wrong.
    pub(super) async fn damaged(&self, store: &Arc<dyn Store>) -> Vec<(String, String)> {
        for entry in store.list(SET_ASIDE, None, NAMED).await.unwrap_or_default() {
            self.note(&entry.key, problem(&entry.key, &entry.value).unwrap_or_default());
        }
        let keys: Vec<String> = self.found.lock().keys().cloned().collect();
        for key in keys {
            // A store that fails now tells nothing.
            let Ok(entry) = store.get(&key).await else { continue };
            match entry.and_then(|entry| problem(&entry.key, &entry.value)) {
                Some(problem) => self.note(&key, problem),
                None => drop(self.found.lock().remove(&key)),
            }
        }
        self.found.lock().clone().into_iter().collect()
    }
}

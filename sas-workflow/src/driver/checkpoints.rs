//! Checkpoints in the store: `workflow/checkpoint/<run>/<records>/<part>` is a part of what the first so many records came to. The run's
//! state says which checkpoint counts; then the records before it, and older checkpoints, go.

use sas_core::{Commit, Error, ErrorKind, Result, Version};

use super::{
    Inner,
    past::Past,
    records::{
        Checkpoint, Kept, Phase, Records, RunState, Writer, decoded, encoded, ended_key, record_key,
        record_prefix, state_key,
    },
};
use crate::{Machine, NoCheckpoint, Record};

fn prefix(run: &str) -> String {
    format!("workflow/checkpoint/{run}/")
}

fn below(run: &str, records: u64) -> String {
    format!("{}{records:020}/", prefix(run))
}

fn key(run: &str, records: u64, part: usize) -> String {
    format!("{}{part:06}", below(run, records))
}

impl Records {
    /// A run with its checkpoint and the records after it.
    pub(super) async fn kept(&self, run: &str) -> Result<Option<Kept>> {
        loop {
            let Some((state, version)) = self.state(run).await? else { return Ok(None) };
            let first = state.checkpoint.map_or(0, |checkpoint| checkpoint.records);
            if let Some(checkpoint) = self.checkpoint(run, state.checkpoint).await?
                && let Some(records) = self.records_from(run, first, state.records).await?
            {
                return Ok(Some(Kept { state, version, checkpoint, first, records }));
            }
            // Another checkpoint was made between the two, or the run was forgotten; then the state is another one.
            if self.listed(run).await?.is_some_and(|(_, now)| now == version) {
                let message =
                    format!("the records of the run {run:?} from {first} on are not whole in the store");
                return Err(Error::new(ErrorKind::Unexpected, "workflow", message));
            }
        }
    }

    /// `None`: a part of it is gone.
    async fn checkpoint(
        &self,
        run: &str,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Option<Option<(Past, String)>>> {
        let Some(checkpoint) = checkpoint else { return Ok(Some(None)) };
        let mut bytes = Vec::with_capacity(usize::try_from(checkpoint.bytes).unwrap_or_default());
        for part in 0..checkpoint.parts {
            match self.store.get(&key(run, checkpoint.records, part)).await? {
                Some(entry) => bytes.extend_from_slice(&entry.value),
                None => return Ok(None),
            }
        }
        let at = below(run, checkpoint.records);
        let text = String::from_utf8(bytes).ok();
        let Some((past, machine)) = text.as_ref().and_then(|text| text.split_once('\n')) else {
            let message = format!("{at} in the store is no checkpoint");
            return Err(Error::new(ErrorKind::Unexpected, "workflow", message));
        };
        Ok(Some(Some((decoded(&at, past.as_bytes())?, machine.to_owned()))))
    }

    /// The records from this number on, which are at least so many; `None`: one of them is gone.
    async fn records_from(&self, run: &str, first: u64, records: u64) -> Result<Option<Vec<Record>>> {
        let prefix = record_prefix(run);
        let mut after = first.checked_sub(1).map(|before| record_key(run, before));
        let (mut read, mut next) = (Vec::new(), first);
        loop {
            let page = self.store.list(&prefix, after.as_deref(), 500).await?;
            let Some(last) = page.last() else { return Ok((next >= records).then_some(read)) };
            after = Some(last.key.clone());
            for entry in &page {
                if entry.key != record_key(run, next) {
                    return Ok(None);
                }
                read.push(decoded(&entry.key, &entry.value)?);
                next += 1;
            }
            // Those that came since the state was read are none of its own.
            if next >= records {
                return Ok(Some(read));
            }
        }
    }

    /// Writes a checkpoint, if the state is still of this version.
    async fn write_checkpoint(
        &self,
        text: &str,
        before: &RunState,
        expected: Version,
    ) -> Result<(RunState, Version)> {
        let run = before.path();
        let parts: Vec<&[u8]> = text.as_bytes().chunks(self.most()).collect();
        let checkpoint = Checkpoint {
            records: before.records,
            parts: parts.len(),
            bytes: u64::try_from(text.len()).unwrap_or(u64::MAX),
        };
        let mut last = Commit::new();
        for (number, part) in parts.iter().enumerate() {
            let key = key(&run, checkpoint.records, number);
            if number + 1 == parts.len() {
                last = last.put(key, part.to_vec());
                break;
            }
            let commit = Commit::new().guard(state_key(&run), Some(expected)).put(key, part.to_vec());
            self.commit((&before.namespace, &before.id), Writer::Driver, commit).await?;
        }
        let state = RunState { checkpoint: Some(checkpoint), bytes: 0, ..before.clone() };
        let version = self.append((Writer::Driver, last), &[], before, &state, expected).await?;
        Ok((state, version))
    }

    /// Deletes what a run's checkpoint stands for.
    async fn trim(&self, state: &RunState) -> Result<()> {
        let Some(checkpoint) = state.checkpoint else { return Ok(()) };
        let run = state.path();
        let gone = [
            (record_prefix(&run), record_key(&run, checkpoint.records)),
            (prefix(&run), below(&run, checkpoint.records)),
        ];
        let most = self.page();
        for (prefix, first) in gone {
            loop {
                let page = self.store.list(&prefix, None, most).await?;
                let old: Vec<&str> =
                    page.iter().map(|entry| entry.key.as_str()).filter(|key| **key < *first).collect();
                if old.is_empty() {
                    break;
                }
                let all = old.len() < page.len();
                let commit = old.into_iter().fold(Commit::new(), Commit::delete);
                self.commit((&state.namespace, &state.id), Writer::Driver, commit).await?;
                if all {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Forgets a run with all that is kept of it.
    pub(super) async fn forget(&self, run: &str, version: Version) -> Result<()> {
        // The records first: a state without them has ended, and is forgotten the next time.
        for prefix in [record_prefix(run), prefix(run)] {
            loop {
                let page = self.store.list(&prefix, None, self.page()).await?;
                if page.is_empty() {
                    break;
                }
                let commit = Commit::new().guard(state_key(run), Some(version));
                let commit = page.iter().fold(commit, |commit, entry| commit.delete(&entry.key));
                self.store.commit(commit).await?;
            }
        }
        let key = state_key(run);
        let commit = Commit::new().guard(&key, Some(version)).delete(&key).delete(ended_key(run));
        self.store.commit(commit).await.map(drop)
    }

    /// How many deletions, with a guard, a commit takes.
    fn page(&self) -> usize {
        self.store.limits().commit_writes.clamp(2, 100) - 1
    }
}

/// When a checkpoint was last tried, in records and bytes after the one that counts.
pub(super) type Tried = (u64, u64);

impl Inner {
    /// Makes a checkpoint of a run when it is time for one. What cannot be written now is tried again after as many records.
    pub(super) async fn keep_short(
        &self,
        (state, version): (&mut RunState, &mut Version),
        machine: &Machine,
        past: &Past,
        tried: &mut Tried,
    ) -> Result<()> {
        let first = state.checkpoint.map_or(0, |checkpoint| checkpoint.records);
        let since = (state.records.saturating_sub(first), state.bytes);
        let due = since.0.saturating_sub(tried.0) >= self.config.checkpoint_records.max(1)
            || since.1.saturating_sub(tried.1) >= self.config.checkpoint_bytes.max(1);
        if state.phase != Phase::Running || !due {
            return Ok(());
        }
        *tried = since;
        let run = state.path();
        let made = match machine.checkpoint() {
            Ok(made) => made,
            // Told when the run ends for it.
            Err(NoCheckpoint::Exposes(_)) => return Ok(()),
            Err(error) => {
                tracing::debug!(run, %error, "no checkpoint of a run now");
                return Ok(());
            }
        };
        let mut text = encoded(past)?;
        text.push(b'\n');
        text.extend_from_slice(made.as_bytes());
        let text = String::from_utf8(text)
            .map_err(|error| Error::new(ErrorKind::Unexpected, "workflow", error.to_string()))?;
        if u64::try_from(text.len()).unwrap_or(u64::MAX) > self.config.bytes_per_run / 2 {
            tracing::warn!(
                run,
                bytes = text.len(),
                "the checkpoint of a run takes more than half of what the run may take"
            );
            return Ok(());
        }
        (*state, *version) = self.records.write_checkpoint(&text, state, *version).await?;
        *tried = (0, 0);
        self.records.trim(state).await
    }
}

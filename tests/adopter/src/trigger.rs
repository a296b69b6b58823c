use std::{path::PathBuf, time::Duration};

use sas::{
    bytes::Bytes,
    core::{Error, ErrorKind, Event, Result, TriggerCx, TriggerSource},
};

/// How often the file is looked at when everything in it was delivered.
const LOOK: Duration = Duration::from_secs(1);

/// An event for each line that is appended to a file.
#[derive(Debug)]
pub struct Lines {
    pub path: PathBuf,
}

impl Lines {
    /// The lines from the `from`th on that are written to their end; none while there is no file.
    async fn lines(&self, from: usize) -> Result<Vec<String>> {
        let text = match tokio::fs::read_to_string(&self.path).await {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                let message = format!("{}: {error}", self.path.display());
                return Err(Error::new(ErrorKind::Unavailable, "lines", message));
            }
        };
        let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        Ok(whole.skip(from).map(str::to_owned).collect())
    }

    async fn follow(&self, cx: &TriggerCx) -> Result<()> {
        // How many lines were delivered is remembered under a key of the trigger's own.
        let key = format!("trigger/{}/lines", cx.name);
        let stored = cx.store.get(&key).await?;
        let text = stored.as_ref().map_or(&b"0"[..], |entry| &entry.value);
        let count = std::str::from_utf8(text).ok().and_then(|text| text.parse::<usize>().ok());
        let mut count = count.ok_or_else(|| {
            Error::new(ErrorKind::Unexpected, "lines", format!("{key}: no number is stored"))
        })?;
        let mut version = stored.map(|entry| entry.version);
        loop {
            // Room first: what nobody has room for stays upstream.
            let mut room = Some(cx.sink.ready().await?);
            for line in self.lines(count).await? {
                let room = match room.take() {
                    Some(room) => room,
                    None => cx.sink.ready().await?,
                };
                let event = Event::new(count.to_string(), format!("/lines/{}", cx.name), "com.example.line")?
                    .with_data("text/plain", line)?
                    .with_time(cx.clock.now());
                // Acknowledged after it was delivered only. With an error this run ends, and the next offers it again.
                cx.sink.deliver(room, event).await?;
                count += 1;
                version = Some(cx.store.put(&key, version, Bytes::from(count.to_string())).await?);
            }
            drop(room);
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[sas::async_trait]
impl TriggerSource for Lines {
    fn kind(&self) -> &'static str {
        "lines"
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        tokio::select! {
            biased;
            () = cx.shutdown.cancelled() => Ok(()),
            ended = self.follow(&cx) => ended,
        }
    }
}

//! The source: a consumer of a group at a stream.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use redis::{Cmd, Value, aio::MultiplexedConnection, cmd};
use sas_core::{
    Deliveries, Error, ErrorKind, Result, SpecErrors, TriggerCx, TriggerOptions, TriggerSecrets,
    TriggerSource, TriggerSpec, host_name,
};
use tokio::time::{Instant, timeout};

use crate::{
    access::{Access, RedisServers, failed},
    entry::Entry,
};

/// Entries that one request takes from the stream at most.
const TAKEN: usize = 64;
/// Unread entries that are counted one by one at most, where the server has no number.
const COUNTED: usize = 1000;
/// How long one request waits for entries.
const WAIT: Duration = Duration::from_secs(2);
/// How long deliveries under way may go on when a run ends; the rest comes again.
const LAST: Duration = Duration::from_secs(1);

impl RedisServers {
    /// The source that `spec` declares.
    ///
    /// # Errors
    /// All that is wrong with its options.
    pub fn source(&self, spec: &TriggerSpec) -> Result<RedisStream, SpecErrors> {
        let mut options = TriggerOptions::new(&spec.options, "options.");
        let access = Access::read(&mut options, &self.hosts);
        let stream = options.required("stream").to_owned();
        let start = options.word("start", &[("latest", "$"), ("earliest", "0")], "$");
        let claim_after = options.span("claim-after", Duration::from_secs(86_400), Duration::from_secs(60));
        if claim_after < Duration::from_secs(1) {
            options.wrong("claim-after", &format!("{claim_after:?}"), "must be at least 1s");
        }
        let group = options.reference("group").unwrap_or_else(|| spec.name.clone());
        let consumer = options.reference("consumer").unwrap_or_else(host_name);
        options.finish()?;
        Ok(RedisStream { access, stream, group, consumer, start, claim_after, asking: Mutex::default() })
    }
}

/// What questions for the backlog are asked with: the secrets of the run that began last, and its connection.
#[derive(Debug, Default)]
struct Asking {
    secrets: Option<TriggerSecrets>,
    connection: Option<Connection>,
}

#[derive(Clone)]
struct Connection(MultiplexedConnection);

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

/// The entries of one stream as events, read as a consumer of a group.
#[derive(Debug)]
pub struct RedisStream {
    access: Access,
    stream: String,
    group: String,
    consumer: String,
    start: &'static str,
    claim_after: Duration,
    asking: Mutex<Asking>,
}

fn strange(what: &str) -> Error {
    Error::new(ErrorKind::Unexpected, "redis", format!("{what}: the server's answer is of no known form"))
}

impl RedisStream {
    async fn make_group(&self, connection: &mut MultiplexedConnection) -> Result<()> {
        let mut create = cmd("XGROUP");
        create.arg("CREATE").arg(&self.stream).arg(&self.group).arg(self.start).arg("MKSTREAM");
        match create.query_async::<()>(connection).await {
            Err(error) if error.code() != Some("BUSYGROUP") => Err(failed("XGROUP CREATE")(error)),
            _ => Ok(()),
        }
    }

    /// Entries after `from`: of this consumer that are unacknowledged, or new ones (`>`), which are waited for.
    async fn take(
        &self,
        connection: &mut MultiplexedConnection,
        from: &str,
        most: usize,
    ) -> Result<Vec<Entry>> {
        let mut read = cmd("XREADGROUP");
        read.arg("GROUP").arg(&self.group).arg(&self.consumer).arg("COUNT").arg(most);
        read.arg("BLOCK").arg(u64::try_from(WAIT.as_millis()).unwrap_or(u64::MAX));
        read.arg("STREAMS").arg(&self.stream).arg(from);
        let answer: Value = read.query_async(connection).await.map_err(failed("XREADGROUP"))?;
        let Value::Array(mut streams) = answer else { return Ok(Vec::new()) };
        match streams.pop() {
            Some(Value::Array(mut stream)) if stream.len() == 2 => {
                entries(stream.pop().unwrap_or(Value::Nil))
            }
            _ => Err(strange("XREADGROUP")),
        }
    }

    /// Takes over what others of the group left for too long.
    async fn claim(&self, connection: &mut MultiplexedConnection) -> Result<Vec<Entry>> {
        let mut claim = cmd("XAUTOCLAIM");
        claim.arg(&self.stream).arg(&self.group).arg(&self.consumer);
        claim
            .arg(u64::try_from(self.claim_after.as_millis()).unwrap_or(u64::MAX))
            .arg("0")
            .arg("COUNT")
            .arg(TAKEN);
        match claim.query_async(connection).await.map_err(failed("XAUTOCLAIM"))? {
            Value::Array(answer) if answer.len() >= 2 => {
                entries(answer.into_iter().nth(1).unwrap_or(Value::Nil))
            }
            _ => Err(strange("XAUTOCLAIM")),
        }
    }

    fn acknowledgement(&self, id: &str) -> Cmd {
        let mut ack = cmd("XACK");
        ack.arg(&self.stream).arg(&self.group).arg(id);
        ack
    }

    async fn follow(&self, cx: &TriggerCx) -> Result<()> {
        let mut reading = self.access.connect(&cx.secrets).await?;
        let mut acks = self.access.connect(&cx.secrets).await?;
        {
            let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            *asking =
                Asking { secrets: Some(cx.secrets.clone()), connection: Some(Connection(acks.clone())) };
        }
        self.make_group(&mut acks).await?;
        let mut deliveries = Deliveries::default();
        let pulled = tokio::select! {
            biased;
            () = cx.shutdown.cancelled() => Ok(()),
            pulled = self.pull(cx, &mut reading, &mut acks, &mut deliveries) => pulled,
        };
        let _ = timeout(LAST, deliveries.finish()).await;
        pulled
    }

    async fn pull(
        &self,
        cx: &TriggerCx,
        reading: &mut MultiplexedConnection,
        acks: &mut MultiplexedConnection,
        deliveries: &mut Deliveries,
    ) -> Result<()> {
        // First what a former run left: its own entries that are unacknowledged.
        let mut from = Some("0".to_owned());
        let mut next_claim = Instant::now() + self.claim_after;
        loop {
            let mut room = Some(deliveries.meanwhile(cx.sink.ready()).await??);
            let taken = if let Some(after) = &from {
                let left = deliveries.meanwhile(self.take(reading, after, TAKEN)).await??;
                from = left.last().map(|last| last.id.clone());
                left
            } else if Instant::now() >= next_claim && deliveries.is_empty() {
                // An entry under way here must not be taken as one that was left.
                next_claim = Instant::now() + self.claim_after;
                self.claim(acks).await?
            } else {
                deliveries.meanwhile(self.take(reading, ">", TAKEN)).await??
            };
            for entry in taken {
                let acknowledgement = self.acknowledgement(&entry.id);
                if entry.deleted {
                    let (stream, entry) = (&self.stream, &entry.id);
                    tracing::warn!(stream, entry, "deleted from the stream before it was delivered");
                    acknowledge(acks.clone(), acknowledgement).await?;
                    continue;
                }
                let slot = match room.take() {
                    Some(slot) => slot,
                    None => deliveries.meanwhile(cx.sink.ready()).await??,
                };
                let (sink, event, acks) = (Arc::clone(&cx.sink), entry.event(&self.stream)?, acks.clone());
                deliveries.begin(async move {
                    sink.deliver(slot, event).await?;
                    acknowledge(acks, acknowledgement).await
                });
            }
        }
    }

    async fn ask(&self, connection: &mut MultiplexedConnection) -> Result<Option<u64>> {
        let mut info = cmd("XINFO");
        info.arg("GROUPS").arg(&self.stream);
        let groups: Vec<std::collections::HashMap<String, Value>> =
            info.query_async(connection).await.map_err(failed("XINFO GROUPS"))?;
        let number = |value: Option<&Value>| match value {
            Some(Value::Int(number)) => u64::try_from(*number).ok(),
            _ => None,
        };
        let named = |group: &&std::collections::HashMap<String, Value>| matches!(group.get("name"), Some(Value::BulkString(name)) if name == self.group.as_bytes());
        let Some(group) = groups.iter().find(named) else { return Ok(None) };
        let Some(pending) = number(group.get("pending")) else { return Err(strange("XINFO GROUPS")) };
        if let Some(lag) = number(group.get("lag")) {
            return Ok(Some(lag + pending));
        }
        // After deletions, and some restarts, the server does not know how many are unread: then they are counted, up to a bound.
        let Some(Value::BulkString(last)) = group.get("last-delivered-id") else {
            return Err(strange("XINFO GROUPS"));
        };
        let mut range = cmd("XRANGE");
        range.arg(&self.stream).arg([b"(".as_slice(), last].concat()).arg("+").arg("COUNT").arg(COUNTED);
        let unread = entries(range.query_async(connection).await.map_err(failed("XRANGE"))?)?.len();
        Ok(Some(u64::try_from(unread).unwrap_or(u64::MAX).saturating_add(pending)))
    }
}

async fn acknowledge(mut connection: MultiplexedConnection, acknowledgement: Cmd) -> Result<()> {
    acknowledgement.query_async::<()>(&mut connection).await.map_err(failed("XACK"))
}

fn entries(answer: Value) -> Result<Vec<Entry>> {
    let Value::Array(answer) = answer else { return Err(strange("a list of entries")) };
    let mut entries = Vec::with_capacity(answer.len());
    for entry in answer {
        let Value::Array(parts) = entry else { return Err(strange("an entry")) };
        let Ok([id, fields]) = <[Value; 2]>::try_from(parts) else { return Err(strange("an entry")) };
        let Value::BulkString(id) = id else { return Err(strange("an entry's id")) };
        let deleted = matches!(fields, Value::Nil);
        let fields = match fields {
            Value::Array(fields) => fields,
            Value::Nil => Vec::new(),
            _ => return Err(strange("an entry's fields")),
        };
        let mut texts = Vec::with_capacity(fields.len());
        for field in fields {
            let Value::BulkString(text) = field else { return Err(strange("an entry's field")) };
            texts.push(text);
        }
        let mut texts = texts.into_iter();
        let mut pairs = Vec::new();
        while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
            pairs.push((name, value));
        }
        entries.push(Entry { id: String::from_utf8_lossy(&id).into_owned(), fields: pairs, deleted });
    }
    Ok(entries)
}

#[async_trait]
impl TriggerSource for RedisStream {
    fn kind(&self) -> &'static str {
        "redis-stream"
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        tokio::select! {
            biased;
            () = cx.shutdown.cancelled() => Ok(()),
            ended = self.follow(&cx) => ended,
        }
    }

    /// What is unread, and what is read and unacknowledged, as the server counts it.
    async fn backlog(&self) -> Result<Option<u64>> {
        let (secrets, connection) = {
            let asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            (asking.secrets.clone(), asking.connection.clone())
        };
        let Some(secrets) = secrets else { return Ok(None) };
        let mut connection = match connection {
            Some(Connection(connection)) => connection,
            None => self.access.connect(&secrets).await?,
        };
        let answer = self.ask(&mut connection).await;
        let kept = answer.is_ok().then_some(Connection(connection));
        self.asking.lock().unwrap_or_else(PoisonError::into_inner).connection = kept;
        answer
    }
}

//! The source: the items of a list, each in a list of its host while it is delivered.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use data_encoding::HEXLOWER;
use redis::{aio::MultiplexedConnection, cmd, pipe};
use sas_cloudevents::uri_path;
use sas_core::{
    Connected, Deliveries, Error, ErrorKind, Event, EventError, EventSink, Result, Slot, SpecErrors,
    TriggerCx, TriggerOptions, TriggerSource, TriggerSpec, host_name,
};
use tokio::time::timeout;

use crate::access::{RedisServers, failed};

/// Items that one request moves at most.
const TAKEN: usize = 64;
/// How long one request waits for an item.
const WAIT: Duration = Duration::from_secs(2);
/// How long deliveries under way may go on when a run ends; the rest comes again.
const LAST: Duration = Duration::from_secs(1);

impl RedisServers {
    /// The source of the kind `redis-list` that `spec` declares.
    ///
    /// # Errors
    /// All that is wrong with its options.
    pub fn list(&self, spec: &TriggerSpec) -> Result<RedisList, SpecErrors> {
        let mut options = TriggerOptions::new(&spec.options, "options.");
        let access = crate::access::Access::read(&mut options, &self.hosts);
        let list = options.required("list").to_owned();
        let consumer = options.reference("consumer").unwrap_or_else(host_name);
        options.finish()?;
        // Braces, so that a cluster keeps both lists at one place.
        let place = if list.contains('{') { list.clone() } else { format!("{{{list}}}") };
        let held = format!("{place}:{}:{consumer}", spec.name);
        Ok(RedisList { access, list, held, connected: Connected::default() })
    }
}

/// The connection that questions for the backlog are asked with.
struct Asked(MultiplexedConnection);

/// The items of one list as events, first in, first out.
pub struct RedisList {
    access: crate::access::Access,
    list: String,
    /// The list of what this host has under way.
    held: String,
    connected: Connected<Asked>,
}

impl fmt::Debug for RedisList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisList")
            .field("list", &self.list)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

impl RedisList {
    async fn follow(&self, cx: &TriggerCx) -> Result<()> {
        let mut moving = self.access.connect(&cx.secrets).await?;
        let others = self.access.connect(&cx.secrets).await?;
        let _connected = self.connected.begin(Arc::new(Asked(others.clone())));
        let mut deliveries = Deliveries::default();
        let pulled = tokio::select! {
            biased;
            () = cx.shutdown.cancelled() => Ok(()),
            pulled = self.pull(cx, &mut moving, &others, &mut deliveries) => pulled,
        };
        let _ = timeout(LAST, deliveries.finish()).await;
        pulled
    }

    async fn pull(
        &self,
        cx: &TriggerCx,
        moving: &mut MultiplexedConnection,
        others: &MultiplexedConnection,
        deliveries: &mut Deliveries,
    ) -> Result<()> {
        let mut run = [0; 8];
        getrandom::fill(&mut run)
            .map_err(|error| Error::new(ErrorKind::Unavailable, "redis", format!("a name: {error}")))?;
        let run = HEXLOWER.encode(&run);
        let mut number = 0_u64;
        let mut begin = |deliveries: &mut Deliveries, slot: Slot, item: Vec<u8>| -> Result<()> {
            number += 1;
            let event = event(&self.list, &item, format!("{run}-{number}"))?;
            let (sink, done) = (Arc::clone(&cx.sink), (others.clone(), self.held.clone(), item));
            deliveries.begin(deliver(sink, slot, event, done));
            Ok(())
        };
        // First what a former run left: no more than it had room for.
        let mut left = cmd("LRANGE");
        left.arg(&self.held).arg(0).arg(-1);
        let left: Vec<Vec<u8>> = left.query_async(moving).await.map_err(failed("LRANGE"))?;
        for item in left {
            let slot = deliveries.meanwhile(cx.sink.ready()).await??;
            begin(deliveries, slot, item)?;
        }
        let mut more = false;
        loop {
            let slots = deliveries.slots(&*cx.sink, more, TAKEN).await?;
            let items = deliveries.meanwhile(self.take(moving, more, slots.len())).await??;
            more = !items.is_empty();
            for (slot, item) in slots.into_iter().zip(items) {
                begin(deliveries, slot, item)?;
            }
        }
    }

    /// Moves items to those of this host: at once as many as there are, or the next that comes.
    async fn take(
        &self,
        moving: &mut MultiplexedConnection,
        eager: bool,
        most: usize,
    ) -> Result<Vec<Vec<u8>>> {
        if !eager {
            let mut next = cmd("BLMOVE");
            next.arg(&self.list).arg(&self.held).arg("LEFT").arg("RIGHT").arg(WAIT.as_secs());
            let item: Option<Vec<u8>> = next.query_async(moving).await.map_err(failed("BLMOVE"))?;
            return Ok(item.into_iter().collect());
        }
        let mut all = pipe();
        for _ in 0..most {
            all.cmd("LMOVE").arg(&self.list).arg(&self.held).arg("LEFT").arg("RIGHT");
        }
        let items: Vec<Option<Vec<u8>>> = all.query_async(moving).await.map_err(failed("LMOVE"))?;
        Ok(items.into_iter().flatten().collect())
    }
}

async fn deliver(
    sink: Arc<dyn EventSink>,
    slot: Slot,
    event: Event,
    (mut connection, held, item): (MultiplexedConnection, String, Vec<u8>),
) -> Result<()> {
    sink.deliver(slot, event).await?;
    // One of several that are equal: which one does not matter.
    let mut done = cmd("LREM");
    done.arg(held).arg(1).arg(item);
    done.query_async::<()>(&mut connection).await.map_err(failed("LREM"))
}

/// The event of an item: a CloudEvent in JSON is that one; one that says so and is none is `dev.sas.redis.malformed`; any other is
/// `dev.sas.redis.item` with `id`, since items have none of their own.
fn event(list: &str, item: &[u8], id: String) -> Result<Event> {
    let is_event =
        serde_json::from_slice::<serde_json::Value>(item).is_ok_and(|json| json.get("specversion").is_some());
    let plain = |kind: &str| -> std::result::Result<Event, EventError> {
        Ok(Event::new(id, format!("/redis/{}", uri_path(list)), kind)?.with_untyped_data(item.to_vec()))
    };
    let event = match is_event.then(|| sas_cloudevents::from_json(item)) {
        Some(Ok(event)) => Ok(event),
        Some(Err(problem)) => {
            tracing::warn!(list, %problem, "an item is no event");
            plain("dev.sas.redis.malformed")
        }
        None => plain("dev.sas.redis.item"),
    };
    event
        .and_then(|event| event.with_extension("sasposition", uri_path(list)))
        .map_err(|error| Error::new(ErrorKind::Unexpected, "redis", format!("{list}: {error}")))
}

#[async_trait]
impl TriggerSource for RedisList {
    fn kind(&self) -> &'static str {
        "redis-list"
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        self.follow(&cx).await
    }

    /// The items of the list, and those that this host has under way.
    async fn backlog(&self) -> Result<Option<u64>> {
        let Some(asked) = self.connected.get(&self.list)? else { return Ok(None) };
        let mut lengths = pipe();
        lengths.cmd("LLEN").arg(&self.list).cmd("LLEN").arg(&self.held);
        let mut connection = asked.0.clone();
        let lengths: (u64, u64) = lengths.query_async(&mut connection).await.map_err(failed("LLEN"))?;
        Ok(Some(lengths.0.saturating_add(lengths.1)))
    }
}

//! The source: leases rows, delivers them, and deletes or marks them.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use sas_core::{
    Connected, Deliveries, Error, ErrorKind, EventSink, Result, Slot, SpecErrors, TriggerCx, TriggerOptions,
    TriggerSecrets, TriggerSource, TriggerSpec, with_renewal,
};
use tokio::{sync::Notify, task::JoinSet, time::timeout};
use tokio_postgres::{Client, Statement};
use tokio_util::sync::CancellationToken;

use crate::{
    access::{Access, PostgresServers, answer, failed},
    row::Row,
    table::{Table, quoted},
};

/// Rows that are leased at once at most.
const TAKEN: usize = 64;
/// How long deliveries under way may go on when a run ends; the rest comes again.
const LAST: Duration = Duration::from_secs(1);

impl PostgresServers {
    /// The source that `spec` declares.
    ///
    /// # Errors
    /// All that is wrong with its options.
    pub fn source(&self, spec: &TriggerSpec) -> Result<PostgresOutbox, SpecErrors> {
        const HOUR: Duration = Duration::from_secs(3600);
        let mut options = TriggerOptions::new(&spec.options, "options.");
        let access = Access::read(&mut options, &self.hosts);
        let (name, table) = table(&mut options);
        let channel = match options.take("channel") {
            None => table.name.clone(),
            Some(channel) if !channel.is_empty() && channel.len() <= 63 && !channel.contains(['"', '\0']) => {
                channel.to_owned()
            }
            Some(channel) => {
                options.wrong("channel", channel, "must be a name of 1 to 63 bytes without quotation marks");
                String::new()
            }
        };
        let lease = options.span("lease", HOUR, Duration::from_secs(30));
        if lease < Duration::from_secs(1) {
            options.wrong("lease", &format!("{lease:?}"), "must be at least 1s");
        }
        let poll = options.span("poll", HOUR, Duration::from_secs(5));
        if poll < Duration::from_millis(100) {
            options.wrong("poll", &format!("{poll:?}"), "must be at least 100ms");
        }
        let mark = options.word("done", &[("delete", false), ("mark", true)], false);
        options.finish()?;
        Ok(PostgresOutbox {
            access,
            name,
            table,
            channel,
            lease,
            poll,
            mark,
            connected: Connected::default(),
        })
    }
}

/// The rows of one outbox table as events.
pub struct PostgresOutbox {
    access: Access,
    /// The table as the declaration names it.
    name: String,
    table: Table,
    channel: String,
    lease: Duration,
    poll: Duration,
    mark: bool,
    connected: Connected<Rows>,
}

impl fmt::Debug for PostgresOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOutbox")
            .field("server", &self.access.server)
            .field("table", &self.name)
            .finish_non_exhaustive()
    }
}

/// The table that a declaration names, as it names it and as it stands in statements.
pub(crate) fn table(options: &mut TriggerOptions<'_>) -> (String, Table) {
    let given = options.required("table");
    let table = Table::parse(given).unwrap_or_else(|| {
        if !given.is_empty() {
            options.wrong("table", given, "must be name or schema.name, without quotation marks");
        }
        Table::parse("outbox").expect("a name")
    });
    (given.to_owned(), table)
}

/// A connection, with what is asked on it.
struct Rows {
    client: Client,
    claim: Statement,
    renew: Statement,
    release: Statement,
    done: Statement,
    count: Statement,
    lease: Duration,
    /// Drives the connection, and ends with this.
    _driver: JoinSet<()>,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rows")
    }
}

impl Rows {
    fn lease_millis(&self) -> f64 {
        self.lease.as_secs_f64() * 1000.0
    }

    /// Leases up to `most` rows.
    async fn claim(&self, most: usize) -> Result<Vec<Row>> {
        let (most, lease) = (i64::try_from(most).unwrap_or(i64::MAX), self.lease_millis());
        let claimed = answer("leasing rows", self.client.query(&self.claim, &[&most, &lease])).await?;
        let mut rows = Vec::new();
        for row in claimed {
            let wrong = failed("a row");
            rows.push(Row {
                id: row.try_get(0).map_err(&wrong)?,
                key: row.try_get(1).map_err(&wrong)?,
                event: row.try_get::<_, Option<String>>(2).map_err(&wrong)?.unwrap_or_default(),
                deliveries: row.try_get(3).map_err(&wrong)?,
                created_millis: row.try_get(4).map_err(&wrong)?,
            });
        }
        // What an UPDATE returns has no order of its own.
        rows.sort_unstable_by_key(|row| row.id);
        Ok(rows)
    }

    /// Delivers a row, keeps its lease meanwhile, and deletes or marks it.
    async fn deliver(
        self: Arc<Self>,
        sink: Arc<dyn EventSink>,
        slot: Slot,
        id: i64,
        event: sas_core::Event,
        next: Arc<Notify>,
    ) -> Result<()> {
        let lease = self.lease_millis();
        let renewed = || async {
            answer("renewing a lease", self.client.execute(&self.renew, &[&id, &lease])).await.map(drop)
        };
        let delivered = with_renewal(sink.deliver(slot, event), self.lease / 3, renewed).await?;
        if let Err(error) = delivered {
            // It may come again at once, here or at another host; the platform makes this one wait.
            let _ = answer("giving up a lease", self.client.execute(&self.release, &[&id])).await;
            return Err(error);
        }
        answer("acknowledging", self.client.execute(&self.done, &[&id])).await?;
        // The next of its key may come now.
        next.notify_one();
        Ok(())
    }
}

impl PostgresOutbox {
    /// A connection with the credentials as they are now. `lost` is cancelled when it breaks, and `wake` told when
    /// somebody notifies.
    async fn connect(
        &self,
        secrets: &TriggerSecrets,
        lost: &CancellationToken,
        wake: &Arc<Notify>,
    ) -> Result<Rows> {
        let woken = Arc::clone(wake);
        let (client, driver) = self.access.connect(secrets, lost, move || woken.notify_one()).await?;
        let listen = format!("LISTEN {}", quoted(&self.channel));
        answer("LISTEN", client.batch_execute(&listen)).await?;
        let prepare = async |what: &str, statement: String| {
            answer(&format!("table {}: {what}", self.name), client.prepare(&statement)).await
        };
        Ok(Rows {
            claim: prepare("leasing", self.table.claim()).await?,
            renew: prepare("renewing", self.table.renew()).await?,
            release: prepare("giving up", self.table.release()).await?,
            done: prepare("acknowledging", self.table.done(self.mark)).await?,
            count: prepare("counting", self.table.count()).await?,
            lease: self.lease,
            _driver: driver,
            client,
        })
    }

    async fn follow(&self, cx: &TriggerCx) -> Result<()> {
        let (lost, wake) = (CancellationToken::new(), Arc::new(Notify::new()));
        let rows = tokio::select! {
            biased;
            () = cx.shutdown.cancelled() => return Ok(()),
            rows = self.connect(&cx.secrets, &lost, &wake) => Arc::new(rows?),
        };
        let _connected = self.connected.begin(Arc::clone(&rows));
        let mut deliveries = Deliveries::default();
        let pulled = tokio::select! {
            biased;
            () = cx.shutdown.cancelled() => Ok(()),
            () = lost.cancelled() => {
                Err(Error::new(ErrorKind::Unavailable, "postgres", format!("{} has gone away", self.access.server)))
            }
            pulled = self.pull(cx, &rows, &mut deliveries, &wake) => pulled,
        };
        let _ = timeout(LAST, deliveries.finish()).await;
        pulled
    }

    async fn pull(
        &self,
        cx: &TriggerCx,
        rows: &Arc<Rows>,
        deliveries: &mut Deliveries,
        wake: &Arc<Notify>,
    ) -> Result<()> {
        let mut more = false;
        loop {
            let mut slots = deliveries.slots(&*cx.sink, more, TAKEN).await?;
            let claimed = deliveries.meanwhile(rows.claim(slots.len())).await??;
            more = !claimed.is_empty();
            for row in claimed {
                let Some(slot) = slots.pop() else { break };
                let event = row.event(&self.access.database, &self.name)?;
                let delivery =
                    Arc::clone(rows).deliver(Arc::clone(&cx.sink), slot, row.id, event, Arc::clone(wake));
                deliveries.begin(delivery);
            }
            drop(slots);
            if !more {
                // Leases of hosts that died end without a notice: so it looks again by itself.
                let _ = deliveries.meanwhile(timeout(self.poll, wake.notified())).await?;
            }
        }
    }
}

#[async_trait]
impl TriggerSource for PostgresOutbox {
    fn kind(&self) -> &'static str {
        "postgres-outbox"
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        self.follow(&cx).await
    }

    /// The rows that were not delivered, those under way among them, as the server counts them.
    async fn backlog(&self) -> Result<Option<u64>> {
        let Some(rows) = self.connected.get(&self.access.server)? else { return Ok(None) };
        let row = answer("counting rows", rows.client.query_one(&rows.count, &[])).await?;
        let count: i64 = row.try_get(0).map_err(failed("counting rows"))?;
        Ok(Some(u64::try_from(count).unwrap_or(0)))
    }
}

//! The source: leases rows, delivers them, and deletes or marks them.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use sas_core::{
    Connected, Deliveries, Error, ErrorKind, EventSink, Result, Slot, SpecErrors, TriggerCx, TriggerOptions,
    TriggerSecrets, TriggerSource, TriggerSpec,
};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, Statement};
use tokio_util::sync::CancellationToken;

use crate::{
    row::Row,
    table::{Table, quoted},
};

/// Rows that are leased at once at most.
const TAKEN: usize = 64;
/// After how long an answer is missed.
const ANSWER: Duration = Duration::from_secs(10);
/// How long deliveries under way may go on when a run ends; the rest comes again.
const LAST: Duration = Duration::from_secs(1);

/// The servers that triggers may read from, and the maker of their sources.
#[derive(Clone, Debug)]
pub struct PostgresServers {
    hosts: BTreeSet<String>,
}

impl PostgresServers {
    /// Sources that read from these servers only, each `host:port` as it stands in a trigger's `url`. Whoever declares a
    /// trigger reaches no other address of the platform's network by it.
    pub fn new(hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { hosts: hosts.into_iter().map(Into::into).collect() }
    }

    /// The source that `spec` declares.
    ///
    /// # Errors
    /// All that is wrong with its options.
    pub fn source(&self, spec: &TriggerSpec) -> Result<PostgresOutbox, SpecErrors> {
        const HOUR: Duration = Duration::from_secs(3600);
        let mut options = TriggerOptions::new(&spec.options, "options.");
        let by = "`PlatformBuilder::postgres_hosts`";
        let server = options.server("url", &["postgres", "postgresql"], &self.hosts, by);
        let database = server.path;
        if !server.address.is_empty() && (database.is_empty() || database.contains(['/', '?', '#', '%'])) {
            let problem = "must be postgres://host:port/database, without parameters (TLS is not offered)";
            options.wrong("url", database, problem);
        }
        let (host, port) = server.host_and_port().unwrap_or_default();
        if !server.address.is_empty() && port == 0 {
            options.wrong("url", server.address, "must name a port, such as 5432");
        }
        let given = options.required("table");
        let table = Table::parse(given).unwrap_or_else(|| {
            if !given.is_empty() {
                options.wrong("table", given, "must be name or schema.name, without quotation marks");
            }
            Table::parse("outbox").expect("a name")
        });
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
        let username = options.required("username").to_owned();
        let password = options.reference("password-secret");
        options.finish()?;
        Ok(PostgresOutbox {
            server: format!("postgres://{}/{database}", server.address),
            host: host.to_owned(),
            port,
            database: database.to_owned(),
            name: given.to_owned(),
            table,
            channel,
            lease,
            poll,
            mark,
            username,
            password,
            connected: Connected::default(),
        })
    }
}

/// The rows of one outbox table as events.
pub struct PostgresOutbox {
    server: String,
    host: String,
    port: u16,
    database: String,
    /// The table as the declaration names it.
    name: String,
    table: Table,
    channel: String,
    lease: Duration,
    poll: Duration,
    mark: bool,
    username: String,
    password: Option<String>,
    connected: Connected<Rows>,
}

impl fmt::Debug for PostgresOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOutbox")
            .field("server", &self.server)
            .field("table", &self.name)
            .finish_non_exhaustive()
    }
}

fn failed(what: &str) -> impl Fn(tokio_postgres::Error) -> Error + '_ {
    move |error| {
        let told = match error.as_db_error() {
            Some(error) => format!("{what}: {} ({})", error.message(), error.code().code()),
            None => format!("{what}: {error}"),
        };
        Error::new(ErrorKind::Unavailable, "postgres", told).with_source(error)
    }
}

/// What the server answers, or an error when it does not.
async fn answer<T>(
    what: &str,
    asked: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
) -> Result<T> {
    match timeout(ANSWER, asked).await {
        Ok(answer) => answer.map_err(failed(what)),
        Err(_) => {
            let message = format!("{what}: no answer within {ANSWER:?}");
            Err(Error::new(ErrorKind::Unavailable, "postgres", message))
        }
    }
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
        let mut delivery = sink.deliver(slot, event);
        let every = self.lease / 3;
        let mut ticks = interval_at(Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let delivered = loop {
            tokio::select! {
                biased;
                delivered = &mut delivery => break delivered,
                _ = ticks.tick() => {
                    let lease = self.lease_millis();
                    answer("renewing a lease", self.client.execute(&self.renew, &[&id, &lease])).await?;
                }
            }
        };
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
        let mut config = Config::new();
        config
            .host(&self.host)
            .port(self.port)
            .dbname(&self.database)
            .user(&self.username)
            .application_name("sas")
            .connect_timeout(ANSWER);
        if let Some(reference) = &self.password {
            config.password(secrets.text(reference).await?);
        }
        let what = format!("connecting to {}", self.server);
        let (client, mut connection) = answer(&what, config.connect(NoTls)).await?;
        let (lost, woken) = (lost.clone(), Arc::clone(wake));
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            let mut messages = stream::poll_fn(move |cx| connection.poll_message(cx));
            while let Some(Ok(message)) = messages.next().await {
                if matches!(message, AsyncMessage::Notification(_)) {
                    woken.notify_one();
                }
            }
            lost.cancel();
        });
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
                Err(Error::new(ErrorKind::Unavailable, "postgres", format!("{} has gone away", self.server)))
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
            let mut slots = vec![deliveries.meanwhile(cx.sink.ready()).await??];
            // An idle source keeps one slot; one that has much to do takes what is free, for a moment.
            while more && slots.len() < TAKEN {
                let Some(slot) = cx.sink.ready().now_or_never() else { break };
                slots.push(slot?);
            }
            let claimed = deliveries.meanwhile(rows.claim(slots.len())).await??;
            more = !claimed.is_empty();
            for row in claimed {
                let Some(slot) = slots.pop() else { break };
                let event = row.event(&self.database, &self.name)?;
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
        let Some(rows) = self.connected.get(&self.server)? else { return Ok(None) };
        let row = answer("counting rows", rows.client.query_one(&rows.count, &[])).await?;
        let count: i64 = row.try_get(0).map_err(failed("counting rows"))?;
        Ok(Some(u64::try_from(count).unwrap_or(0)))
    }
}

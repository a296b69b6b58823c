//! Connections: how they are made, pooled and given up, and what an error of the server means.

use std::{fmt, time::Duration};

use deadpool::managed::{self, Metrics, PoolError, RecycleError, RecycleResult};
use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use sas_core::{Error, ErrorKind, Result};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_postgres::{AsyncMessage, Client, Row, Statement, types::ToSql};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{
    answer::{ANSWER, answer, failed, has_ended, unavailable},
    options::{CONNECT, PostgresOptions, Target},
    statements::{self, Statements},
};

/// How long the server may work on a statement, and wait for a lock.
const STATEMENT: Duration = Duration::from_secs(10);
const LOCK: Duration = Duration::from_secs(5);
/// After how long the server ends a transaction in which nothing happens, which is tried again: a host that was stopped in the
/// middle of a commit lets the others go on then, before leases of ten seconds run out that are to be renewed meanwhile.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(2);
/// How long who asks waits for a connection to be free.
const ROOM: Duration = Duration::from_secs(10);
/// After a connection that failed, how long the next are not tried; doubled each time up to the longest.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A connection with its statements.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) statements: Statements,
    /// Drives the connection, and ends with this.
    _driver: JoinSet<()>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}

/// How long no connection is tried after one that failed.
#[derive(Clone, Debug)]
struct Pause {
    until: Instant,
    length: Duration,
    message: String,
}

/// Makes connections, and pauses after one that failed.
#[derive(Debug)]
pub(crate) struct Dialer {
    options: PostgresOptions,
    pause: Mutex<Option<Pause>>,
}

impl Dialer {
    pub(crate) fn new(options: PostgresOptions) -> Self {
        Self { options, pause: Mutex::default() }
    }

    pub(crate) fn schema(&self) -> &str {
        &self.options.schema
    }

    async fn target(&self) -> Result<Target> {
        let options = self.options.clone();
        let read = tokio::task::spawn_blocking(move || options.target()).await;
        read.map_err(|error| Error::new(ErrorKind::Unexpected, "connect", error.to_string()))?
    }

    /// A connection without statements. `heard` is told the payload of each notification.
    pub(crate) async fn connect(
        &self,
        mut heard: impl FnMut(&str) + Send + 'static,
    ) -> Result<(Client, JoinSet<()>)> {
        const CONNECTING: &str = "connect";
        let target = self.target().await?;
        // Whether it is used is said by `sslmode`.
        let connector = MakeRustlsConnect::new((*target.tls).clone());
        let connecting = timeout(CONNECT * 2, target.config.connect(connector)).await;
        let connected = connecting.map_err(|_| {
            unavailable(CONNECTING, format!("PostgreSQL: no connection within {:?}", CONNECT * 2))
        })?;
        let (client, mut connection) = connected.map_err(|error| failed(CONNECTING, error))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            let mut messages = stream::poll_fn(move |cx| connection.poll_message(cx));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notification(note) = message {
                    heard(note.payload());
                }
            }
        });
        let millis = |time: Duration| time.as_millis();
        // A commit is durable when it is acknowledged, whatever the server's default is.
        let settings = format!(
            "SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {};
             SET default_transaction_isolation = 'read committed';
             SELECT set_config('synchronous_commit', 'on', false)
             WHERE current_setting('synchronous_commit') = 'off'",
            millis(STATEMENT),
            millis(LOCK),
            millis(IDLE_IN_TRANSACTION),
        );
        answer(CONNECTING, client.batch_execute(&settings)).await?;
        Ok((client, driver))
    }

    async fn session(&self) -> Result<Session> {
        let (client, driver) = self.connect(|_| {}).await?;
        let statements = answer("connect", statements::prepare(&client, self.schema())).await?;
        Ok(Session { client, statements, _driver: driver })
    }
}

impl managed::Manager for Dialer {
    type Type = Session;
    type Error = Error;

    async fn create(&self) -> Result<Session> {
        let now = Instant::now();
        if let Some(pause) = &*self.pause.lock()
            && now < pause.until
        {
            return Err(unavailable("connect", pause.message.clone()));
        }
        let made = self.session().await;
        let mut pause = self.pause.lock();
        *pause = made.as_ref().err().map(|error| {
            let length = pause.as_ref().map_or(PAUSE, |pause| (pause.length * 2).min(LONGEST_PAUSE));
            Pause { until: Instant::now() + length, length, message: error.message.clone() }
        });
        made
    }

    async fn recycle(&self, session: &mut Session, _: &Metrics) -> RecycleResult<Error> {
        if session.client.is_closed() {
            return Err(RecycleError::message("the connection has ended"));
        }
        Ok(())
    }
}

pub(crate) type Held = managed::Object<Dialer>;

/// A bounded number of connections.
#[derive(Clone, Debug)]
pub(crate) struct Sessions(managed::Pool<Dialer>);

impl Sessions {
    pub(crate) fn new(options: PostgresOptions) -> Self {
        let most = options.connections;
        let pool = managed::Pool::builder(Dialer::new(options))
            .max_size(most)
            .wait_timeout(Some(ROOM))
            .runtime(deadpool::Runtime::Tokio1)
            .build()
            .expect("a pool with timeouts has a runtime");
        Self(pool)
    }

    pub(crate) fn dialer(&self) -> &Dialer {
        self.0.manager()
    }

    pub(crate) async fn get(&self, operation: &'static str) -> Result<Held> {
        self.0.get().await.map_err(|error| match error {
            PoolError::Backend(mut error) => {
                error.operation = operation;
                error
            }
            PoolError::Timeout(_) => {
                let most = self.0.status().max_size;
                let message = format!(
                    "all {most} connections to PostgreSQL were busy for {ROOM:?}: raise `connections` in the store's URL"
                );
                unavailable(operation, message)
            }
            other => unavailable(operation, format!("no connection to PostgreSQL: {other}")),
        })
    }

    /// Asks on a connection. One that turns out to have ended before it answered is replaced, once.
    pub(crate) async fn query(
        &self,
        operation: &'static str,
        statement: fn(&Statements) -> &Statement,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>> {
        let mut again = true;
        loop {
            let held = self.get(operation).await?;
            match timeout(ANSWER, held.client.query(statement(&held.statements), parameters)).await {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(error)) => {
                    let ended = has_ended(&error) || held.client.is_closed();
                    if ended {
                        drop(Held::take(held));
                    }
                    if !(ended && again) {
                        return Err(failed(operation, error));
                    }
                    again = false;
                }
                Err(_) => {
                    drop(Held::take(held));
                    return Err(unavailable(operation, format!("PostgreSQL: no answer within {ANSWER:?}")));
                }
            }
        }
    }
}

//! The sink: events as rows of a table.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use sas_core::{
    Error, ErrorKind, Event, EventPublisher, Reconnecting, Result, SinkSpec, SpecErrors, TriggerOptions,
    TriggerSecrets,
};
use tokio::task::JoinSet;
use tokio_postgres::{Client, Statement, error::SqlState};
use tokio_util::sync::CancellationToken;

use crate::{
    access::{Access, PostgresServers, answer},
    source::table,
    table::Table,
};

impl PostgresServers {
    /// The sink that a trigger declares: `table`, with the columns `key` and `event` of an outbox, and `url` with what says
    /// as whom, as for the source.
    ///
    /// # Errors
    /// All mistakes in the options.
    pub fn sink(
        &self,
        spec: &SinkSpec,
        secrets: TriggerSecrets,
    ) -> Result<Arc<dyn EventPublisher>, SpecErrors> {
        let mut options = TriggerOptions::new(&spec.options, spec.place);
        let access = Access::read(&mut options, &self.hosts);
        let (name, table) = table(&mut options);
        options.finish()?;
        Ok(Arc::new(PostgresSink { access, name, table, secrets, connection: Reconnecting::default() }))
    }
}

struct Link {
    client: Client,
    insert: Statement,
    /// Drives the connection, and ends with this.
    _driver: JoinSet<()>,
}

/// Writes events into one table, each as a CloudEvent in JSON, with its `partitionkey` as the row's `key`: the row is
/// committed when an event is taken.
pub struct PostgresSink {
    access: Access,
    /// The table as the declaration names it.
    name: String,
    table: Table,
    secrets: TriggerSecrets,
    connection: Reconnecting<Link>,
}

impl fmt::Debug for PostgresSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSink").field("table", &self.name).finish_non_exhaustive()
    }
}

impl PostgresSink {
    async fn connect(&self) -> Result<Link> {
        let (client, driver) = self.access.connect(&self.secrets, &CancellationToken::new(), || {}).await?;
        let what = format!("table {}: writing", self.name);
        let insert = answer(&what, client.prepare(&self.table.insert())).await?;
        Ok(Link { client, insert, _driver: driver })
    }
}

/// Whether the server said that it never takes this row: what it holds is wrong, and not where it is to stand.
fn never(error: &Error) -> bool {
    let source =
        std::error::Error::source(error).and_then(|source| source.downcast_ref::<tokio_postgres::Error>());
    let code = source.and_then(tokio_postgres::Error::code);
    // Class 22, data exceptions: such as a NUL, which text in JSON may hold and jsonb may not.
    code.is_some_and(|code: &SqlState| code.code().starts_with("22"))
}

#[async_trait]
impl EventPublisher for PostgresSink {
    async fn publish(&self, event: Event) -> Result<()> {
        let link = self.connection.get(async || self.connect().await).await?;
        let key = event.extensions().get("partitionkey").map(|key| key.to_text().into_owned());
        let document = sas_cloudevents::to_json(&event);
        let what = format!("table {}: writing", self.name);
        match answer(&what, link.client.execute(&link.insert, &[&key, &document])).await {
            Ok(_) => Ok(()),
            Err(error) if never(&error) => Err(Error::new(ErrorKind::InvalidSpec, "publish", error.message)),
            Err(error) => {
                self.connection.failed(&link).await;
                Err(error)
            }
        }
    }
}

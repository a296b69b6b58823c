//! The source: a subscription whose session outlives the connection.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{
    Deliveries, Result, SpecErrors, TriggerCx, TriggerOptions, TriggerSource, TriggerSpec, host_name,
};
use tokio::{sync::mpsc, time::timeout};

use crate::session::{Access, Client, Incoming, Line, MqttBrokers, Receipt, WINDOW};

/// How long deliveries under way are waited for at the end.
const GRACE: Duration = Duration::from_secs(5);
/// The same, when the run failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// How long a session waits for its host unless the trigger says.
const EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);

impl MqttBrokers {
    /// The source that `spec` declares.
    ///
    /// # Errors
    /// All that is wrong with its options.
    pub fn source(&self, spec: &TriggerSpec) -> Result<MqttSource, SpecErrors> {
        let mut options = TriggerOptions::new(&spec.options, "options.");
        let access = Access::read(&mut options, &self.allowed);
        let filters: Vec<String> = options.list("topics").into_iter().map(str::to_owned).collect();
        if filters.is_empty() {
            options.wrong("topics", "", "must name a topic, or several with commas between them");
        }
        for filter in &filters {
            if !rumqttc::valid_filter(filter) || filter.starts_with("$share/") {
                let problem =
                    "must be a topic or a filter such as orders/+/new or orders/#; hosts share by `share`";
                options.wrong("topics", filter, problem);
            }
        }
        let share = options.take("share").filter(|share| !share.is_empty());
        if let Some(share) = share
            && share.contains(['/', '+', '#'])
        {
            options.wrong("share", share, "must hold no /, + or #");
        }
        let client = options.take("client-id").filter(|name| !name.is_empty());
        let client = client.map_or_else(|| format!("sas-{}-{}", spec.name, host_name()), str::to_owned);
        let expiry = options.span("session-expiry", Duration::from_secs(365 * 24 * 3600), EXPIRY);
        if expiry < Duration::from_secs(1) {
            options.wrong("session-expiry", "0", "must be at least 1s: what comes meanwhile would be lost");
        }
        options.finish()?;
        let filters = match share {
            Some(share) => filters.iter().map(|filter| format!("$share/{share}/{filter}")).collect(),
            None => filters,
        };
        Ok(MqttSource { access, filters, client, expiry })
    }
}

/// The messages of topics as events.
#[derive(Debug)]
pub struct MqttSource {
    access: Access,
    filters: Vec<String>,
    client: String,
    expiry: Duration,
}

/// Acknowledges messages in the order in which they came, as the protocol wants it.
#[derive(Debug)]
struct Acknowledging {
    client: Client,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// Those that came and are not acknowledged, and whether they were delivered.
    receipts: BTreeMap<u64, (Receipt, bool)>,
}

impl Acknowledging {
    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn came(&self, receipt: Receipt) -> u64 {
        let mut open = self.open();
        open.next += 1;
        let number = open.next;
        open.receipts.insert(number, (receipt, false));
        number
    }

    fn delivered(&self, number: u64) -> Result<()> {
        let mut open = self.open();
        if let Some((_, delivered)) = open.receipts.get_mut(&number) {
            *delivered = true;
        }
        while let Some(first) = open.receipts.first_entry().filter(|first| first.get().1) {
            self.client.acknowledge(&first.remove().0)?;
        }
        Ok(())
    }
}

/// Asks the line for ever: it is where signs of life come from too.
async fn speak(mut line: Line, came: mpsc::Sender<Incoming>) -> Result<()> {
    loop {
        let incoming = line.next().await?;
        if !matches!(incoming, Incoming::Other) && came.send(incoming).await.is_err() {
            return Ok(());
        }
    }
}

impl MqttSource {
    async fn pull(
        &self,
        cx: &TriggerCx,
        deliveries: &mut Deliveries,
        acknowledging: &Arc<Acknowledging>,
        mut came: mpsc::Receiver<Incoming>,
    ) -> Result<()> {
        loop {
            let (message, receipt) = match deliveries.meanwhile(came.recv()).await? {
                None => return Ok(()),
                Some(Incoming::Connected) => {
                    acknowledging.client.subscribe(&self.filters)?;
                    continue;
                }
                Some(Incoming::Message(came)) => *came,
                Some(_) => continue,
            };
            let slot = deliveries.meanwhile(cx.sink.ready()).await??;
            let number = acknowledging.came(receipt);
            let event = message.event(format!("{}-{number}", cx.clock.now().0))?;
            let (sink, acknowledging) = (Arc::clone(&cx.sink), Arc::clone(acknowledging));
            deliveries.begin(async move {
                sink.deliver(slot, event).await?;
                acknowledging.delivered(number)
            });
        }
    }
}

#[async_trait]
impl TriggerSource for MqttSource {
    fn kind(&self) -> &'static str {
        "mqtt"
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        let (client, line) = self.access.open(&self.client, self.expiry, &cx.secrets).await?;
        let acknowledging = Arc::new(Acknowledging { client, open: Mutex::default() });
        // More than the broker gives unacknowledged, so that the line is asked all the time. Messages of quality of service
        // 0 have no such bound: a flood of them that nobody takes costs the connection.
        let (sender, came) = mpsc::channel(usize::from(WINDOW) * 16);
        let mut speaking = pin!(speak(line, sender));
        let mut deliveries = Deliveries::default();
        let mut connected = true;
        let ended = tokio::select! {
            biased;
            () = cx.shutdown.cancelled() => Ok(()),
            ended = &mut speaking => {
                connected = false;
                ended
            }
            ended = self.pull(&cx, &mut deliveries, &acknowledging, came) => ended,
        };
        if connected {
            // What is under way is acknowledged, so that it does not come again for the sake of another.
            let finishing = async {
                deliveries.finish().await;
                acknowledging.client.leave();
                // The farewell is spoken, and then the line ends.
                std::future::pending::<()>().await;
            };
            let both = async {
                tokio::select! {
                    _ = &mut speaking => {}
                    () = finishing => {}
                }
            };
            let _ = timeout(if ended.is_ok() { GRACE } else { AFTER_FAILURE }, both).await;
        }
        ended
    }
}

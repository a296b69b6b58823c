//! The source: a durable pull consumer of a stream.

use std::{fmt, sync::Arc, time::Duration};

use async_nats::{
    Client,
    jetstream::{
        self, AckKind, Message,
        consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
    },
};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use sas_core::{
    Connected, Deliveries, Error, ErrorKind, EventSink, Result, Slot, SpecErrors, Timestamp, TriggerCx,
    TriggerOptions, TriggerSource, TriggerSpec, with_renewal,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    access::{Access, NatsServers, failed},
    message::Received,
};

/// Messages that one request takes from the stream at most.
const TAKEN: usize = 64;
/// How long a request for many waits at the server.
const EAGER: Duration = Duration::from_secs(5);
/// How long a request waits at the server for a message.
const WAIT: Duration = Duration::from_secs(10);
/// How long deliveries under way may go on when a run ends; the rest comes again.
const LAST: Duration = Duration::from_secs(1);

/// From where a consumer reads, when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Latest,
    Earliest,
    Sequence(u64),
    Time(Timestamp),
}

impl NatsServers {
    /// The source that `spec` declares.
    ///
    /// # Errors
    /// All that is wrong with its options.
    pub fn source(&self, spec: &TriggerSpec) -> Result<NatsJetStream, SpecErrors> {
        let mut options = TriggerOptions::new(&spec.options, "options.");
        let access = Access::read(&mut options, &self.hosts);
        let stream = name(&mut options, "stream", None);
        let durable: String = spec.name.chars().map(|c| if in_name(c) { c } else { '_' }).collect();
        let consumer = name(&mut options, "consumer", Some(durable));
        let subject = options.take("subject").unwrap_or_default();
        if subject.contains(char::is_whitespace) {
            options.wrong("subject", subject, "must be a subject such as orders.*.paid or orders.>");
        }
        let start = start(&mut options);
        let ack_wait = options.span("ack-wait", Duration::from_secs(3600), Duration::from_secs(30));
        if ack_wait < Duration::from_secs(1) {
            options.wrong("ack-wait", &format!("{ack_wait:?}"), "must be at least 1s");
        }
        let max_ack_pending = options.number("max-ack-pending", 1..=65_536, 1000);
        options.finish()?;
        Ok(NatsJetStream {
            access,
            stream,
            consumer,
            subject: subject.to_owned(),
            start,
            ack_wait,
            max_ack_pending: i64::try_from(max_ack_pending).unwrap_or(i64::MAX),
            connected: Connected::default(),
        })
    }
}

fn in_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_')
}

/// The name of a stream or a consumer.
fn name(options: &mut TriggerOptions<'_>, option: &'static str, default: Option<String>) -> String {
    let given = match (options.has(option), default) {
        (false, Some(default)) => return default,
        _ => options.required(option),
    };
    if !given.is_empty() && (given.len() > 255 || !given.chars().all(in_name)) {
        options.wrong(option, given, "must be letters, digits, - and _ only, 255 at most");
    }
    given.to_owned()
}

fn start(options: &mut TriggerOptions<'_>) -> Start {
    let text = match options.take("start") {
        None | Some("latest") => return Start::Latest,
        Some("earliest") => return Start::Earliest,
        Some(text) => text,
    };
    let time = || text.parse::<jiff::Timestamp>().ok().and_then(|at| i64::try_from(at.as_nanosecond()).ok());
    match (text.parse::<u64>(), time()) {
        (Ok(sequence @ 1..), _) => Start::Sequence(sequence),
        (_, Some(nanos)) => Start::Time(Timestamp(nanos)),
        _ => {
            let problem = "must be latest, earliest, a sequence number from 1 on, or a time such as \
                           2030-01-31T09:00:00Z; it counts when the consumer is made";
            options.wrong("start", text, problem);
            Start::Latest
        }
    }
}

/// The messages of one stream as events, pulled from a durable consumer.
pub struct NatsJetStream {
    access: Access,
    stream: String,
    consumer: String,
    subject: String,
    start: Start,
    ack_wait: Duration,
    max_ack_pending: i64,
    connected: Connected<PullConsumer>,
}

impl fmt::Debug for NatsJetStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsJetStream")
            .field("server", &self.access.server)
            .field("stream", &self.stream)
            .field("consumer", &self.consumer)
            .finish_non_exhaustive()
    }
}

impl NatsJetStream {
    /// The consumer: as it is, where there is one, with what may change of it as it is declared; else a new one.
    async fn consumer(&self, client: Client) -> Result<PullConsumer> {
        let context = jetstream::new(client);
        let stream =
            context.get_stream(&self.stream).await.map_err(failed(&format!("stream {}", self.stream)))?;
        let mut config = pull::Config {
            durable_name: Some(self.consumer.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.ack_wait,
            max_ack_pending: self.max_ack_pending,
            filter_subject: self.subject.clone(),
            deliver_policy: match self.start {
                Start::Latest => DeliverPolicy::New,
                Start::Earliest => DeliverPolicy::All,
                Start::Sequence(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
                Start::Time(at) => DeliverPolicy::ByStartTime { start_time: time_of(at) },
            },
            ..pull::Config::default()
        };
        let what = format!("consumer {} of stream {}", self.consumer, self.stream);
        if let Ok(found) = stream.get_consumer::<pull::Config>(&self.consumer).await {
            let has = &found.cached_info().config;
            if has.deliver_subject.is_some() || has.ack_policy != AckPolicy::Explicit {
                let problem = "must be one that is pulled from, with explicit acknowledgement";
                return Err(Error::new(ErrorKind::InvalidSpec, "nats", format!("{what}: {problem}")));
            }
            if has.ack_wait == config.ack_wait
                && has.max_ack_pending == config.max_ack_pending
                && has.filter_subject == config.filter_subject
            {
                return Ok(found);
            }
            // Where it began stands since it was made.
            config.deliver_policy = has.deliver_policy;
        }
        stream.create_consumer(config).await.map_err(failed(&what))
    }

    async fn follow(&self, cx: &TriggerCx) -> Result<()> {
        let lost = CancellationToken::new();
        let client = self.access.connect(&format!("sas {}", self.consumer), &cx.secrets, &lost).await?;
        let consumer = Arc::new(self.consumer(client).await?);
        let _connected = self.connected.begin(Arc::clone(&consumer));
        let mut deliveries = Deliveries::default();
        let pulled = tokio::select! {
            biased;
            () = cx.shutdown.cancelled() => Ok(()),
            () = lost.cancelled() => {
                Err(Error::new(ErrorKind::Unavailable, "nats", format!("{} has gone away", self.access.server)))
            }
            pulled = self.pull(cx, &consumer, &mut deliveries) => pulled,
        };
        let _ = timeout(LAST, deliveries.finish()).await;
        pulled
    }

    async fn pull(&self, cx: &TriggerCx, consumer: &PullConsumer, deliveries: &mut Deliveries) -> Result<()> {
        let mut more = false;
        loop {
            let mut slots = deliveries.slots(&*cx.sink, more, TAKEN).await?;
            let room = slots.len();
            let request = async {
                if more {
                    consumer.fetch().max_messages(room).expires(EAGER).messages().await
                } else {
                    consumer.batch().max_messages(1).expires(WAIT).messages().await
                }
            };
            let mut messages = deliveries.meanwhile(request).await?.map_err(failed("pulling"))?;
            more = false;
            while let Some(message) = deliveries.meanwhile(messages.next()).await? {
                let message = message.map_err(failed("pulling"))?;
                let Some(slot) = slots.pop() else { break };
                more = true;
                deliveries.begin(deliver(Arc::clone(&cx.sink), slot, message, self.ack_wait / 3)?);
            }
        }
    }
}

fn time_of(at: Timestamp) -> time::OffsetDateTime {
    // All of 64 bits of nanoseconds lie within the calendar.
    time::OffsetDateTime::from_unix_timestamp_nanos(at.0.into()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

/// Delivers a message, tells the server each `every` that it is under way, and acknowledges it.
fn deliver(
    sink: Arc<dyn EventSink>,
    slot: Slot,
    message: Message,
    every: Duration,
) -> Result<impl Future<Output = Result<()>> + Send + 'static> {
    let event = {
        let info = message.info().map_err(failed("a message"))?;
        let received = Received {
            stream: info.stream,
            sequence: info.stream_sequence,
            deliveries: info.delivered,
            published: Timestamp(i64::try_from(info.published.unix_timestamp_nanos()).unwrap_or(i64::MAX)),
            subject: &message.subject,
            headers: message.headers.as_ref(),
            payload: message.payload.clone(),
        };
        received.event()?
    };
    Ok(async move {
        let in_progress =
            || async { message.ack_with(AckKind::Progress).await.map_err(failed("in progress")) };
        let delivered = with_renewal(sink.deliver(slot, event), every, in_progress).await?;
        if let Err(error) = delivered {
            // It may come again at once, here or at another host; the platform makes this one wait.
            let _ = message.ack_with(AckKind::Nak(None)).await;
            return Err(error);
        }
        message.double_ack().await.map_err(failed("acknowledging"))
    })
}

#[async_trait]
impl TriggerSource for NatsJetStream {
    fn kind(&self) -> &'static str {
        "nats-jetstream"
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        self.follow(&cx).await
    }

    /// What the consumer has not given out, and what it has given out that is unacknowledged, as the server counts it.
    async fn backlog(&self) -> Result<Option<u64>> {
        let Some(consumer) = self.connected.get(&self.access.server)? else { return Ok(None) };
        let info = consumer.get_info().await.map_err(failed("the consumer's state"))?;
        let unacknowledged = u64::try_from(info.num_ack_pending).unwrap_or(u64::MAX);
        Ok(Some(info.num_pending.saturating_add(unacknowledged)))
    }
}

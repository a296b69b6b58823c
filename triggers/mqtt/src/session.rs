//! A session with a broker, in either version of the protocol.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rumqttc::{AsyncClient, EventLoop, QoS, TlsConfiguration, Transport, v5};
use sas_core::{Error, ErrorKind, Result, TriggerOptions, TriggerSecrets};
use sas_tls::Authorities;

use crate::message::Message;

/// Messages that the broker gives before the first is acknowledged.
pub(crate) const WINDOW: u16 = 64;
/// Requests that wait for the line: as many as there can be messages that are not acknowledged, so that none finds no room.
const REQUESTS: usize = 1 << 16;
/// Between two signs of life.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Seconds within which a connection is made.
const CONNECT: u64 = 5;
/// Bytes of the largest message.
const LARGEST: u32 = 16 << 20;

/// Which version of MQTT is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Five,
    Three,
}

/// The broker of a declaration, and references to what it asks for.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    host: String,
    port: u16,
    pub(crate) version: Version,
    username: Option<String>,
    password: Option<String>,
    tls: bool,
    authorities: Authorities,
}

/// The brokers that triggers may read from and send to: what the option `url` may name.
#[derive(Clone, Debug)]
pub struct MqttBrokers {
    pub(crate) allowed: Arc<BTreeSet<String>>,
}

impl MqttBrokers {
    /// These brokers only, each `host:port` as it stands in a trigger's `url`. Whoever declares a trigger reaches no other
    /// address of the platform's network by it.
    pub fn new(brokers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { allowed: Arc::new(brokers.into_iter().map(Into::into).collect()) }
    }
}

/// What makes requests.
#[derive(Clone, Debug)]
pub(crate) enum Client {
    Five(v5::AsyncClient),
    Three(AsyncClient),
}

/// What speaks with the broker; it must be asked for the next all the time.
pub(crate) enum Line {
    Five(Box<v5::EventLoop>),
    Three(Box<EventLoop>),
}

/// By which a message is acknowledged.
#[derive(Debug)]
pub(crate) enum Receipt {
    Five(v5::mqttbytes::v5::Publish),
    Three(rumqttc::Publish),
}

/// What came from the broker.
#[derive(Debug)]
pub(crate) enum Incoming {
    Connected,
    Message(Box<(Message, Receipt)>),
    /// The broker has a message that was sent to it.
    Taken,
    Other,
}

fn failed(what: &str, problem: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unavailable, "mqtt", format!("{what}: {problem}"))
}

impl Access {
    /// Reads the options that say where and as whom, which sources and sinks have in common.
    pub(crate) fn read(options: &mut TriggerOptions<'_>, allowed: &BTreeSet<String>) -> Self {
        let server = options.server("url", &["mqtt", "mqtts"], allowed, "`PlatformBuilder::mqtt_hosts`");
        if server.address.is_empty() {
            // It was said what is wrong with it.
        } else if server.host_and_port().is_none() || !server.path.is_empty() {
            options.wrong("url", server.address, "must be mqtt://host:port, or mqtts://host:port for TLS");
        }
        let (host, port) = server.host_and_port().unwrap_or_default();
        let versions = [("5", Version::Five), ("3.1.1", Version::Three)];
        let version = options.word("version", &versions, Version::Five);
        let (username, password) = (options.reference("username"), options.reference("password-secret"));
        if username.is_some() != password.is_some() {
            options.wrong("password-secret", "", "a user and a reference to the password go together");
        }
        let tls = server.scheme == "mqtts";
        let authorities = Authorities::read(options, "mqtts://", tls);
        Self { host: host.to_owned(), port, version, username, password, tls, authorities }
    }

    /// A session with this name, which the broker keeps for `expiry` without a connection; zero: a fresh one. Nothing is
    /// sent before the line is asked.
    pub(crate) async fn open(
        &self,
        name: &str,
        expiry: Duration,
        secrets: &TriggerSecrets,
    ) -> Result<(Client, Line)> {
        let password = match &self.password {
            Some(reference) => Some(secrets.text(reference).await?),
            None => None,
        };
        let login = self.username.clone().zip(password);
        let transport = match self.tls {
            true => {
                let config = self.authorities.client_config(secrets).await?;
                Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(config)))
            }
            false => Transport::tcp(),
        };
        if self.version == Version::Five {
            let mut options = v5::MqttOptions::new(name, &self.host, self.port);
            options
                .set_keep_alive(KEEP_ALIVE)
                .set_manual_acks(true)
                .set_clean_start(expiry.is_zero())
                .set_connection_timeout(CONNECT)
                .set_receive_maximum(Some(WINDOW))
                .set_max_packet_size(Some(LARGEST))
                .set_session_expiry_interval(Some(u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX)));
            if let Some((username, password)) = login {
                options.set_credentials(username, password);
            }
            options.set_transport(transport);
            let (client, line) = v5::AsyncClient::new(options, REQUESTS);
            return Ok((Client::Five(client), Line::Five(Box::new(line))));
        }
        let mut options = rumqttc::MqttOptions::new(name, &self.host, self.port);
        options
            .set_keep_alive(KEEP_ALIVE)
            .set_manual_acks(true)
            .set_clean_session(expiry.is_zero())
            .set_max_packet_size(LARGEST as usize, LARGEST as usize);
        if let Some((username, password)) = login {
            options.set_credentials(username, password);
        }
        options.set_transport(transport);
        let (client, mut line) = AsyncClient::new(options, REQUESTS);
        let mut network = line.network_options();
        network.set_connection_timeout(CONNECT);
        line.set_network_options(network);
        Ok((Client::Three(client), Line::Three(Box::new(line))))
    }
}

impl Client {
    /// Asks for these topics, with quality of service 1.
    pub(crate) fn subscribe(&self, filters: &[String]) -> Result<()> {
        let asked = match self {
            Self::Five(client) => {
                let filters = filters.iter().map(|filter| {
                    let mut filter = v5::mqttbytes::v5::Filter::new(filter, v5::mqttbytes::QoS::AtLeastOnce);
                    // What the broker retains comes once, and not with each connection.
                    filter.retain_forward_rule = v5::mqttbytes::v5::RetainForwardRule::OnNewSubscribe;
                    filter
                });
                client.try_subscribe_many(filters).map_err(|error| error.to_string())
            }
            Self::Three(client) => {
                let filters = filters
                    .iter()
                    .map(|filter| rumqttc::SubscribeFilter::new(filter.clone(), QoS::AtLeastOnce));
                client.try_subscribe_many(filters).map_err(|error| error.to_string())
            }
        };
        asked.map_err(|problem| failed("subscribing", problem))
    }

    pub(crate) fn acknowledge(&self, receipt: &Receipt) -> Result<()> {
        let asked = match (self, receipt) {
            (Self::Five(client), Receipt::Five(publish)) => {
                client.try_ack(publish).map_err(|error| error.to_string())
            }
            (Self::Three(client), Receipt::Three(publish)) => {
                client.try_ack(publish).map_err(|error| error.to_string())
            }
            _ => Ok(()),
        };
        asked.map_err(|problem| failed("acknowledging", problem))
    }

    /// Sends a message with quality of service 1.
    pub(crate) fn send(&self, message: Message) -> Result<()> {
        let sent = match self {
            Self::Five(client) => {
                let properties = v5::mqttbytes::v5::PublishProperties {
                    user_properties: message.properties,
                    content_type: message.content_type,
                    ..Default::default()
                };
                let qos = v5::mqttbytes::QoS::AtLeastOnce;
                client
                    .try_publish_with_properties(message.topic, qos, false, message.payload, properties)
                    .map_err(|error| error.to_string())
            }
            Self::Three(client) => client
                .try_publish(message.topic, QoS::AtLeastOnce, false, message.payload)
                .map_err(|error| error.to_string()),
        };
        sent.map_err(|problem| failed("sending", problem))
    }

    pub(crate) fn leave(&self) {
        // A line that has gone needs no farewell.
        let _ = match self {
            Self::Five(client) => client.try_disconnect().map_err(drop),
            Self::Three(client) => client.try_disconnect().map_err(drop),
        };
    }
}

impl Line {
    /// What comes next.
    ///
    /// # Errors
    /// When the connection can't be made, or is gone; when the broker refuses a subscription or a message.
    pub(crate) async fn next(&mut self) -> Result<Incoming> {
        match self {
            Self::Five(line) => {
                use v5::{
                    Event,
                    mqttbytes::v5::{Packet, PubAckReason, SubscribeReasonCode},
                };
                let event = line.poll().await.map_err(|error| failed("the connection", error))?;
                Ok(match event {
                    Event::Incoming(Packet::ConnAck(_)) => Incoming::Connected,
                    Event::Incoming(Packet::Publish(publish)) => {
                        let properties = publish.properties.clone().unwrap_or_default();
                        let message = Message {
                            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                            payload: publish.payload.clone(),
                            content_type: properties.content_type,
                            properties: properties.user_properties,
                        };
                        Incoming::Message(Box::new((message, Receipt::Five(publish))))
                    }
                    Event::Incoming(Packet::SubAck(answer)) => {
                        let refused = answer
                            .return_codes
                            .iter()
                            .find(|code| !matches!(code, SubscribeReasonCode::Success(_)));
                        match refused {
                            Some(code) => {
                                return Err(failed("the broker refuses the topic", format!("{code:?}")));
                            }
                            None => Incoming::Other,
                        }
                    }
                    Event::Incoming(Packet::PubAck(answer)) => match answer.reason {
                        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Incoming::Taken,
                        reason => return Err(failed("the broker refuses the event", format!("{reason:?}"))),
                    },
                    _ => Incoming::Other,
                })
            }
            Self::Three(line) => {
                use rumqttc::{Event, Packet, SubscribeReasonCode};
                let event = line.poll().await.map_err(|error| failed("the connection", error))?;
                Ok(match event {
                    Event::Incoming(Packet::ConnAck(_)) => Incoming::Connected,
                    Event::Incoming(Packet::Publish(publish)) => {
                        let message = Message {
                            topic: publish.topic.clone(),
                            payload: publish.payload.clone(),
                            ..Message::default()
                        };
                        Incoming::Message(Box::new((message, Receipt::Three(publish))))
                    }
                    Event::Incoming(Packet::SubAck(answer)) => {
                        if answer.return_codes.contains(&SubscribeReasonCode::Failure) {
                            return Err(failed("the broker refuses the topic", "no reason in MQTT 3.1.1"));
                        }
                        Incoming::Other
                    }
                    Event::Incoming(Packet::PubAck(_)) => Incoming::Taken,
                    _ => Incoming::Other,
                })
            }
        }
    }
}

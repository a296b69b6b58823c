//! Events: the `Trigger` of this platform, and Knative's `Broker`, `Trigger`, `Channel`, `Subscription` and `KafkaSource`.

use std::{collections::BTreeMap, time::Duration};

use sas_core::{BrokerIngress, BrokerSpec, SpecErrors, TriggerSpec, parse_duration};
use serde_json::{Map, Value};

use super::{
    ParseOptions,
    pod::{LABEL, is_label, required},
    service::Metadata,
    tree::{Fields, Node, join},
};
use crate::{format_duration, keys::own};

/// The annotations of a broker and a channel, without what they begin with.
const RETENTION: &str = "retention";
const MOST_EVENTS: &str = "most-events";
const INGRESS: &str = "ingress";
const INGRESS_TOKEN: &str = "ingress-token";

/// What `spec.delivery` may hold: the field, the option of the delivery, whether it is a duration.
const DELIVERY: [(&str, &str, bool); 16] = [
    ("retry", "retry", false),
    ("backoffPolicy", "backoff-policy", false),
    ("backoffDelay", "backoff-delay", true),
    ("backoffLongest", "backoff-longest", true),
    ("backoffJitter", "backoff-jitter", false),
    ("timeout", "timeout", true),
    ("deadline", "deadline", true),
    ("concurrency", "concurrency", false),
    ("orderBy", "order-by", false),
    ("batch", "batch", false),
    ("dedupEvents", "dedup-events", false),
    ("dedupWindow", "dedup-window", true),
    ("circuitFailures", "circuit-failures", false),
    ("circuitLongest", "circuit-longest", true),
    ("hops", "hops", false),
    ("deadLetter", "dead-letter", false),
];

/// Whether an option is one of the delivery, so that no source may have one of that name.
fn is_of_delivery(option: &str) -> bool {
    DELIVERY.iter().any(|(_, known, _)| *known == option)
        || matches!(option, "filter" | "transform" | "reply")
        || option.starts_with("sink.")
        || option.starts_with("dead-letter.")
}

/// A destination, as a trigger's target and options have it.
pub(super) struct Destination {
    pub(super) target: String,
    pub(super) path: String,
    /// Options of the sink, for targets `sink:kind`.
    pub(super) options: BTreeMap<String, String>,
}

/// The head that all these kinds share: name, namespace, annotations of this platform as options.
struct Head {
    name: String,
    namespace: String,
    options: BTreeMap<String, String>,
}

fn head<'a>(node: &'a Node, options: &ParseOptions, errors: &mut SpecErrors) -> (Option<Head>, Fields<'a>) {
    let mut fields = Fields::new("", node, errors);
    fields.ignore(&["apiVersion", "kind", "status"]);
    let metadata = Metadata::read("metadata", fields.take("metadata").unwrap_or(&Node::Null), errors);
    match &metadata.name {
        None => errors.push("metadata.name", "", "missing"),
        Some(name) if !is_label(name) => errors.push("metadata.name", name, LABEL),
        Some(_) => {}
    }
    let namespace = metadata.namespace.clone().unwrap_or_else(|| options.namespace.clone());
    let spec = Fields::new("spec", fields.take("spec").unwrap_or(&Node::Null), errors);
    fields.finish(errors);
    let own = metadata
        .annotations
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(own::PREFIX)?.to_owned(), value.clone())));
    let head = metadata.name.clone().map(|name| Head { name, namespace, options: own.collect() });
    (head, spec)
}

/// The trigger of this platform: source, filter, target, delivery, transformation.
pub(super) fn trigger(node: &Node, options: &ParseOptions, errors: &mut SpecErrors) -> Option<TriggerSpec> {
    let before = errors.0.len();
    let (head, mut spec) = head(node, options, errors);
    let namespace = head.as_ref().map_or(options.namespace.as_str(), |head| &head.namespace);
    let mut source = Fields::new("spec.source", spec.take("source").unwrap_or(&Node::Null), errors);
    let kind = required(&mut source, "kind", errors).unwrap_or_default().to_owned();
    let at = source.at("options");
    let mut all = scalars(&mut source, "options", errors);
    for (name, value) in &all {
        if is_of_delivery(name) {
            let problem =
                "is what the delivery is told: write it in spec.delivery, spec.filter or spec.target";
            errors.push(join(&at, name), value, problem);
        }
    }
    let content_type = source.string("contentType", errors).map(str::to_owned);
    let data = source.string("data", errors).unwrap_or_default().as_bytes().to_vec();
    let extensions = source.string_map("extensions", errors);
    source.finish(errors);
    filters(&mut spec, &mut all, errors);
    if let Some(node) = spec.take("transform") {
        all.insert("transform".to_owned(), json(node).to_string());
    }
    let target = match spec.take("target") {
        Some(node) => own_destination("spec.target", node, namespace, errors),
        None => {
            errors.push("spec.target", "", "missing: what gets the events");
            None
        }
    };
    if let Some(node) = spec.take("delivery") {
        delivery("spec.delivery", node, namespace, &mut all, errors);
    }
    if let Some(node) = spec.take("reply") {
        match node {
            Node::Text(none) if none == "none" => {
                all.insert("reply".to_owned(), "none".to_owned());
            }
            node => {
                let reply = own_destination("spec.reply", node, namespace, errors);
                if let Some(reply) = reply {
                    all.insert("reply".to_owned(), reply.target);
                }
            }
        }
    }
    let paused = spec.boolean("paused", errors).unwrap_or(false);
    spec.finish(errors);
    let (head, target) = (head?, target?);
    if let Some((name, value)) = head.options.iter().next() {
        let at = format!("metadata.annotations[{}{name}]", own::PREFIX);
        errors.push(
            at,
            value,
            "this kind has fields for it: write it in spec.source.options or spec.delivery",
        );
    }
    if errors.0.len() > before {
        return None;
    }
    all.extend(target.options.into_iter().map(|(name, value)| (format!("sink.{name}"), value)));
    let mut trigger = TriggerSpec::new(format!("{}/{}", head.namespace, head.name), kind, target.target);
    trigger.path = target.path;
    trigger.options = all;
    trigger.paused = paused;
    trigger.content_type = content_type;
    trigger.data = data;
    trigger.extensions = extensions;
    Some(trigger)
}

/// Knative's `Broker`, and its `Channel`, which is a broker without filters.
pub(super) fn broker(node: &Node, options: &ParseOptions, errors: &mut SpecErrors) -> Option<BrokerSpec> {
    let before = errors.0.len();
    let (head, mut spec) = head(node, options, errors);
    for name in ["config", "subscribers", "channelTemplate"] {
        let at = spec.at(name);
        if let Some(node) = spec.take(name) {
            errors.push(
                at,
                node.shown(),
                "brokers of this platform are kept in its store and need none; leave it out",
            );
        }
    }
    let mut delivered = BTreeMap::new();
    if let Some(node) = spec.take("delivery") {
        let namespace = head.as_ref().map_or(options.namespace.as_str(), |head| &head.namespace);
        delivery("spec.delivery", node, namespace, &mut delivered, errors);
    }
    spec.finish(errors);
    let head = head?;
    let mut broker = BrokerSpec::new(format!("{}/{}", head.namespace, head.name));
    broker.delivery = delivered;
    let mut token = None;
    for (name, value) in &head.options {
        let at = format!("metadata.annotations[{}{name}]", own::PREFIX);
        match name.as_str() {
            RETENTION => match duration(value) {
                Some(retention) => broker.retention = retention,
                None => errors.push(at, value, "must be a duration such as 24h"),
            },
            MOST_EVENTS => match value.parse() {
                Ok(most) => broker.most_events = most,
                Err(_) => errors.push(at, value, "must be a whole number"),
            },
            INGRESS => match value.as_str() {
                "closed" => {}
                "open" => broker.ingress = BrokerIngress::Open,
                _ => {
                    errors.push(at, value, "must be closed or open; for a token, write sas.dev/ingress-token")
                }
            },
            INGRESS_TOKEN => token = Some(value.clone()),
            _ => errors.push(
                at,
                value,
                "is no annotation of a broker: retention, most-events, ingress, ingress-token are",
            ),
        }
    }
    if let Some(reference) = token {
        if broker.ingress == BrokerIngress::Open {
            let at = format!("metadata.annotations[{}{INGRESS}]", own::PREFIX);
            errors.push(at, "open", "contradicts sas.dev/ingress-token: give one of the two");
        }
        broker.ingress = BrokerIngress::Token(reference);
    }
    (errors.0.len() == before).then_some(broker)
}

/// Knative Eventing's `Trigger`: a subscription to a broker with a filter.
pub(super) fn knative_trigger(
    node: &Node,
    options: &ParseOptions,
    errors: &mut SpecErrors,
) -> Option<TriggerSpec> {
    let before = errors.0.len();
    let (head, mut spec) = head(node, options, errors);
    let namespace = head.as_ref().map_or(options.namespace.clone(), |head| head.namespace.clone());
    let broker = required(&mut spec, "broker", errors).unwrap_or_default().to_owned();
    let at = spec.at("brokerRef");
    if let Some(node) = spec.take("brokerRef") {
        errors.push(
            at,
            node.shown(),
            "brokers of other namespaces are not read; name one of its own by spec.broker",
        );
    }
    let mut all = BTreeMap::new();
    let attributes = spec.take("filter");
    // As in Knative: `filters` goes before `filter`.
    all.extend(filter_list(&mut spec, errors).map(|filter| ("filter".to_owned(), filter.to_string())));
    if let Some(node) = attributes {
        let mut filter = Fields::new("spec.filter", node, errors);
        let attributes = filter.string_map("attributes", errors);
        filter.finish(errors);
        // An empty value wants any, and so says nothing.
        let exact: Map<String, Value> = attributes
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(k, v)| (k, v.into()))
            .collect();
        if !all.contains_key("filter") && !exact.is_empty() {
            all.insert("filter".to_owned(), serde_json::json!({ "exact": exact }).to_string());
        }
    }
    let subscriber = destination(&mut spec, "subscriber", &namespace, errors);
    if let Some(node) = spec.take("delivery") {
        delivery("spec.delivery", node, &namespace, &mut all, errors);
    }
    spec.finish(errors);
    subscribed(head?, subscriber?, broker, all, None, errors, before)
}

/// Knative's `Subscription`: a subscription to a channel.
pub(super) fn subscription(
    node: &Node,
    options: &ParseOptions,
    errors: &mut SpecErrors,
) -> Option<TriggerSpec> {
    let before = errors.0.len();
    let (head, mut spec) = head(node, options, errors);
    let namespace = head.as_ref().map_or(options.namespace.clone(), |head| head.namespace.clone());
    let mut channel = Fields::new("spec.channel", spec.take("channel").unwrap_or(&Node::Null), errors);
    let api = channel.string("apiVersion", errors).unwrap_or("messaging.knative.dev/v1");
    let kind = channel.string("kind", errors).unwrap_or("Channel");
    if !api.starts_with("messaging.knative.dev/") || !matches!(kind, "Channel" | "InMemoryChannel") {
        errors.push("spec.channel", format!("{api} {kind}"), "must be a Channel of messaging.knative.dev/v1");
    }
    let broker = required(&mut channel, "name", errors).unwrap_or_default().to_owned();
    channel.finish(errors);
    let mut all = BTreeMap::new();
    let subscriber = destination(&mut spec, "subscriber", &namespace, errors);
    let mut reply = None;
    if spec.take("reply").is_some() {
        reply = destination(&mut spec, "reply", &namespace, errors).map(|reply| reply.target);
    }
    if let Some(node) = spec.take("delivery") {
        delivery("spec.delivery", node, &namespace, &mut all, errors);
    }
    spec.finish(errors);
    let reply = reply.unwrap_or_else(|| "none".to_owned());
    subscribed(head?, subscriber?, broker, all, Some(reply), errors, before)
}

/// A trigger that reads from a broker.
fn subscribed(
    head: Head,
    subscriber: Destination,
    broker: String,
    mut all: BTreeMap<String, String>,
    reply: Option<String>,
    errors: &SpecErrors,
    before: usize,
) -> Option<TriggerSpec> {
    if errors.0.len() > before {
        return None;
    }
    all.insert("broker".to_owned(), format!("{}/{broker}", head.namespace));
    all.extend(reply.map(|reply| ("reply".to_owned(), reply)));
    all.extend(head.options);
    all.extend(subscriber.options.into_iter().map(|(name, value)| (format!("sink.{name}"), value)));
    let mut trigger =
        TriggerSpec::new(format!("{}/{}", head.namespace, head.name), "broker", subscriber.target);
    trigger.path = subscriber.path;
    trigger.options = all;
    Some(trigger)
}

/// Knative's `KafkaSource`: a trigger of the kind `kafka`.
pub(super) fn kafka_source(
    node: &Node,
    options: &ParseOptions,
    errors: &mut SpecErrors,
) -> Option<TriggerSpec> {
    let before = errors.0.len();
    let (head, mut spec) = head(node, options, errors);
    let namespace = head.as_ref().map_or(options.namespace.clone(), |head| head.namespace.clone());
    let mut all = BTreeMap::new();
    for (field, option) in [("bootstrapServers", "brokers"), ("topics", "topics")] {
        let at = spec.at(field);
        let words = spec.strings(field, errors).unwrap_or_default();
        if words.is_empty() {
            errors.push(at, "", "missing: at least one");
        }
        all.insert(option.to_owned(), words.join(","));
    }
    let group = spec.string("consumerGroup", errors).map(str::to_owned);
    let own = head.as_ref().map(|head| format!("{namespace}-{}", head.name));
    all.extend(group.or(own).map(|group| ("group".to_owned(), group)));
    if let Some(start) = spec.string("initialOffset", errors) {
        match start {
            "earliest" | "latest" => {
                all.insert("start".to_owned(), start.to_owned());
            }
            other => errors.push("spec.initialOffset", other, "must be earliest or latest"),
        }
    }
    // As Knative has it: ordered is one record of a partition at a time, which is also the default.
    let ordering = match spec.string("ordering", errors) {
        None | Some("ordered") => "partition",
        Some("unordered") => "none",
        Some(other) => {
            errors.push("spec.ordering", other, "must be ordered or unordered");
            ""
        }
    };
    all.insert("ordering".to_owned(), ordering.to_owned());
    let consumers = spec.at("consumers");
    if let Some(node) = spec.take("consumers")
        && *node != Node::Int(1)
    {
        errors.push(
            consumers,
            node.shown(),
            "a host is one consumer of the group; bound what is under way by sas.dev/concurrency",
        );
    }
    if let Some(node) = spec.take("net") {
        kafka_net(node, &mut all, errors);
    }
    if let Some(node) = spec.take("ceOverrides") {
        errors.push("spec.ceOverrides", node.shown(), "add attributes by the annotation sas.dev/transform");
    }
    let sink = destination(&mut spec, "sink", &namespace, errors);
    if let Some(node) = spec.take("delivery") {
        delivery("spec.delivery", node, &namespace, &mut all, errors);
    }
    spec.finish(errors);
    let (head, sink) = (head?, sink?);
    if errors.0.len() > before {
        return None;
    }
    all.extend(head.options);
    all.extend(sink.options.into_iter().map(|(name, value)| (format!("sink.{name}"), value)));
    let mut trigger = TriggerSpec::new(format!("{}/{}", head.namespace, head.name), "kafka", sink.target);
    trigger.path = sink.path;
    trigger.options = all;
    Some(trigger)
}

/// `spec.net`: TLS and SASL, with their secrets by reference.
fn kafka_net(node: &Node, all: &mut BTreeMap<String, String>, errors: &mut SpecErrors) {
    let mut net = Fields::new("spec.net", node, errors);
    if let Some(node) = net.take("tls") {
        let mut tls = Fields::new("spec.net.tls", node, errors);
        if tls.boolean("enable", errors) == Some(true) {
            all.insert("tls".to_owned(), "true".to_owned());
        }
        for (field, option) in [("caCert", "ca-secret"), ("cert", "cert-secret"), ("key", "key-secret")] {
            let at = tls.at(field);
            if let Some(node) = tls.take(field) {
                secret(&at, node, option, all, errors);
            }
        }
        tls.finish(errors);
    }
    if let Some(node) = net.take("sasl") {
        let mut sasl = Fields::new("spec.net.sasl", node, errors);
        let on = sasl.boolean("enable", errors) == Some(true);
        for (field, option) in
            [("user", "username-secret"), ("password", "password-secret"), ("type", "sasl-mechanism-secret")]
        {
            let at = sasl.at(field);
            if let (Some(node), true) = (sasl.take(field), on) {
                secret(&at, node, option, all, errors);
            }
        }
        sasl.finish(errors);
    }
    net.finish(errors);
}

/// `{secretKeyRef: {name, key}}` as an option that holds the reference.
fn secret(at: &str, node: &Node, option: &str, all: &mut BTreeMap<String, String>, errors: &mut SpecErrors) {
    let mut fields = Fields::new(at, node, errors);
    let place = fields.at("secretKeyRef");
    match fields.take("secretKeyRef") {
        None => {
            errors.push(place, "", "missing: values of their own are not taken, only references to secrets")
        }
        Some(node) => {
            let mut reference = Fields::new(place, node, errors);
            let name = required(&mut reference, "name", errors);
            let key = required(&mut reference, "key", errors);
            reference.finish(errors);
            if let (Some(name), Some(key)) = (name, key) {
                all.insert(option.to_owned(), format!("secret/{name}/{key}"));
            }
        }
    }
    fields.finish(errors);
}

/// What there is instead of Knative's `ApiServerSource`.
pub(super) const NO_API_SERVER: &str = "ApiServerSource watches the API of a Kubernetes cluster, which this platform is not; \
     send what you watch to a Broker, or write a source of your own by the builder's trigger_kind";

/// `filters` as the Subscriptions API has it: all of the list must want an event.
fn filter_list(spec: &mut Fields<'_>, errors: &mut SpecErrors) -> Option<Value> {
    let items = spec.list("filters", errors)?;
    let several: Vec<Value> = items.iter().map(|(_, node)| json(node)).collect();
    (!several.is_empty()).then(|| serde_json::json!({ "all": several }))
}

/// `filter`, a mapping, or `filters`, a list; as the option `filter`.
fn filters(spec: &mut Fields<'_>, all: &mut BTreeMap<String, String>, errors: &mut SpecErrors) {
    let single = spec.at("filter");
    let one = match spec.take("filter") {
        Some(node @ Node::Map(_)) => Some(json(node)),
        Some(other) => {
            errors.push(single, other.shown(), "must be a mapping, such as {exact: {type: order.created}}");
            None
        }
        None => None,
    };
    let several = filter_list(spec, errors);
    if one.is_some() && several.is_some() {
        errors.push("spec.filters", "", "contradicts spec.filter: give one of the two");
    }
    all.extend(one.or(several).map(|filter| ("filter".to_owned(), filter.to_string())));
}

/// `spec.delivery`, as options.
fn delivery(
    path: &str,
    node: &Node,
    namespace: &str,
    all: &mut BTreeMap<String, String>,
    errors: &mut SpecErrors,
) {
    let mut fields = Fields::new(path, node, errors);
    for (field, option, is_duration) in DELIVERY {
        let at = fields.at(field);
        let Some(node) = fields.take(field) else { continue };
        let Some(text) = scalar(node) else {
            errors.push(at, node.shown(), format!("must be a value, not {}", node.kind()));
            continue;
        };
        if !is_duration {
            all.insert(option.to_owned(), text);
            continue;
        }
        match duration(&text) {
            Some(span) => {
                let nanos = i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
                all.insert(option.to_owned(), format_duration(nanos).to_string());
            }
            None => errors.push(at, text, "must be a duration such as PT1S or 1s"),
        }
    }
    let sink = fields.take("deadLetterSink").is_some();
    if sink && let Some(letters) = destination(&mut fields, "deadLetterSink", namespace, errors) {
        if letters.path != "/" {
            let at = fields.at("deadLetterSink");
            errors.push(
                at,
                &letters.path,
                "dead letters go to the path / of their service; leave the path out",
            );
        }
        all.insert("dead-letter".to_owned(), letters.target);
        all.extend(letters.options.into_iter().map(|(name, value)| (format!("dead-letter.{name}"), value)));
    }
    let format = fields.at("format");
    if let Some(node) = fields.take("format")
        && node.text() != Some("binary")
    {
        errors.push(format, node.shown(), "single events are sent in binary mode; leave it out");
    }
    let after = fields.at("retryAfterMax");
    if let Some(node) = fields.take("retryAfterMax") {
        errors.push(after, node.shown(), "Retry-After is honoured up to 300s; leave it out");
    }
    fields.finish(errors);
}

/// A duration in either writing: ISO 8601's `PT1.5S` as Knative has it, or Go's `1.5s`.
fn duration(text: &str) -> Option<Duration> {
    let nanos = match text.strip_prefix('P') {
        Some(rest) => iso_nanos(rest)?,
        None => parse_duration(text).ok()?,
    };
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

/// What stands after the `P`: days, and after a `T` hours, minutes and seconds.
fn iso_nanos(rest: &str) -> Option<i64> {
    let (days, time) = match rest.split_once('T') {
        Some((days, time)) => (days, Some(time).filter(|time| !time.is_empty())?),
        None => (rest, ""),
    };
    let mut go = String::new();
    if !days.is_empty() {
        let days: u32 = days.strip_suffix('D')?.parse().ok()?;
        go.push_str(&format!("{}h", days.checked_mul(24)?));
    }
    go.push_str(&time.to_ascii_lowercase());
    parse_duration(&go).ok()
}

fn scalar(node: &Node) -> Option<String> {
    matches!(node, Node::Text(_) | Node::Int(_) | Node::Bool(_) | Node::Float(_)).then(|| match node {
        Node::Text(text) => text.clone(),
        other => other.shown(),
    })
}

/// A mapping of values of any kind, as text.
fn scalars(fields: &mut Fields<'_>, name: &'static str, errors: &mut SpecErrors) -> BTreeMap<String, String> {
    let at = fields.at(name);
    let mut map = BTreeMap::new();
    match fields.take(name) {
        None => {}
        Some(Node::Map(items)) => {
            for (key, node) in items {
                match scalar(node) {
                    Some(text) => {
                        map.insert(key.clone(), text);
                    }
                    None => match node {
                        // Lists of words, as the kinds read them: with commas.
                        Node::List(words) if words.iter().all(|word| scalar(word).is_some()) => {
                            let words: Vec<String> = words.iter().filter_map(scalar).collect();
                            map.insert(key.clone(), words.join(","));
                        }
                        other => {
                            errors.push(join(&at, key), other.shown(), "must be a value or a list of values")
                        }
                    },
                }
            }
        }
        Some(other) => errors.push(at, other.shown(), format!("must be a mapping, not {}", other.kind())),
    }
    map
}

fn json(node: &Node) -> Value {
    match node {
        Node::Null => Value::Null,
        Node::Bool(value) => Value::Bool(*value),
        Node::Int(value) => i64::try_from(*value).map_or_else(|_| Value::from(*value as f64), Value::from),
        Node::Float(value) => Value::from(*value),
        Node::Text(text) => Value::String(text.clone()),
        Node::List(items) => Value::Array(items.iter().map(json).collect()),
        Node::Map(fields) => {
            Value::Object(fields.iter().map(|(key, node)| (key.clone(), json(node))).collect())
        }
    }
}

/// A destination as the trigger of this platform has it: one of `service`, `broker` and `sink`.
fn own_destination(path: &str, node: &Node, namespace: &str, errors: &mut SpecErrors) -> Option<Destination> {
    let mut fields = Fields::new(path, node, errors);
    let named = |name: &str| if name.contains('/') { name.to_owned() } else { format!("{namespace}/{name}") };
    let service = fields.string("service", errors).map(named);
    let broker = fields.string("broker", errors).map(|name| format!("broker:{}", named(name)));
    let sink = fields.string("sink", errors).map(|kind| format!("sink:{kind}"));
    let options = scalars(&mut fields, "options", errors);
    let at = fields.string("path", errors).unwrap_or("/").to_owned();
    fields.finish(errors);
    let mut given = [service, broker, sink].into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(target), None) => {
            if !options.is_empty() && !target.starts_with("sink:") {
                errors.push(join(path, "options"), "", "are for a sink; leave them out");
            }
            Some(Destination { target, path: at, options })
        }
        _ => {
            errors.push(path, node.shown(), "must have one of service, broker and sink");
            None
        }
    }
}

/// A destination as Knative has it: `ref` to a Service, Broker or Channel, or `uri`.
pub(super) fn destination(
    spec: &mut Fields<'_>,
    field: &'static str,
    namespace: &str,
    errors: &mut SpecErrors,
) -> Option<Destination> {
    let place = spec.at(field);
    let Some(node) = spec.take(field) else {
        errors.push(place, "", "missing: what gets the events");
        return None;
    };
    let before = errors.0.len();
    let mut sink = Fields::new(place.clone(), node, errors);
    let mut target = None;
    if let Some(node) = sink.take("ref") {
        let mut reference = Fields::new(join(&place, "ref"), node, errors);
        let kind = required(&mut reference, "kind", errors);
        let api = reference.string("apiVersion", errors);
        let name = required(&mut reference, "name", errors);
        let other =
            reference.string("namespace", errors).filter(|other| !other.is_empty()).unwrap_or(namespace);
        let group = api.and_then(|api| api.split('/').next());
        let prefix = match (kind, group) {
            (Some("Service"), None | Some("serving.knative.dev")) => Some(""),
            (Some("Broker"), None | Some("eventing.knative.dev"))
            | (Some("Channel" | "InMemoryChannel"), None | Some("messaging.knative.dev")) => Some("broker:"),
            _ => None,
        };
        match (prefix, kind) {
            (None, Some(kind)) => errors.push(
                join(&place, "ref"),
                format!("{} {kind}", api.unwrap_or_default()),
                "must be a Service of serving.knative.dev/v1, a Broker of eventing.knative.dev/v1 or a Channel of \
                 messaging.knative.dev/v1",
            ),
            (Some(prefix), _) => target = name.map(|name| format!("{prefix}{other}/{name}")),
            (None, None) => {}
        }
        reference.finish(errors);
    }
    let (mut path, mut options) = ("/".to_owned(), BTreeMap::new());
    let at = sink.at("uri");
    if let Some(uri) = sink.string("uri", errors) {
        match uri.parse::<http::Uri>() {
            Ok(parsed) => {
                path = parsed.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
                match (parsed.host().map(internal_service), &target) {
                    (None, Some(_)) => {}
                    (Some(Some(service)), None) => target = Some(service),
                    (Some(None), None) => {
                        // Somewhere else: a webhook.
                        target = Some("sink:webhook".to_owned());
                        options.insert("url".to_owned(), uri.to_owned());
                        path = "/".to_owned();
                    }
                    _ => errors.push(
                        at,
                        uri,
                        "must be a path below the ref, or the URL of what gets the events",
                    ),
                }
            }
            Err(error) => errors.push(at, uri, format!("is not a URI: {error}")),
        }
    }
    for name in ["CACerts", "audience"] {
        let at = sink.at(name);
        if let Some(node) = sink.take(name) {
            errors.push(at, node.shown(), "events to services and brokers stay on this host; leave it out");
        }
    }
    sink.finish(errors);
    if errors.0.len() > before {
        return None;
    }
    if target.is_none() {
        errors.push(join(&place, "ref"), "", "missing: what gets the events");
    }
    target.map(|target| Destination { target, path, options })
}

/// `name.namespace.svc` and `name.namespace.svc.cluster.local` as `namespace/name`.
fn internal_service(host: &str) -> Option<String> {
    let host = host.strip_suffix(".cluster.local").unwrap_or(host).strip_suffix(".svc")?;
    let (name, namespace) = host.split_once('.')?;
    (is_label(name) && is_label(namespace)).then(|| format!("{namespace}/{name}"))
}

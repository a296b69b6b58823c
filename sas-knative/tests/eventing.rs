//! Manifests of events: the trigger of this platform and those of Knative Eventing, field by field.

use std::time::Duration;

use sas_core::{BrokerIngress, TriggerSpec};
use sas_knative::manifest::{Manifest, ParseOptions, parse};

fn one(text: &str) -> TriggerSpec {
    let mut manifests = parse(text, &ParseOptions::default()).unwrap_or_else(|errors| panic!("{errors}"));
    match manifests.pop() {
        Some(Manifest::Trigger(trigger)) => *trigger,
        other => panic!("{other:?}"),
    }
}

/// The first field that is refused.
fn refused(text: &str) -> String {
    let errors = parse(text, &ParseOptions::default()).expect_err(text);
    errors.0[0].field.clone()
}

const OWN: &str = "
apiVersion: sas.dev/v1
kind: Trigger
metadata: {name: orders, namespace: shop}
spec:
  source:
    kind: kafka
    options: {brokers: [a:9092, b:9092], topics: orders, group: billing, batch-bytes: 1000, tls: true}
  filter: {all: [{exact: {type: order}}, {sql: \"amount > 100\"}]}
  transform: {type: 'bill.{{ type }}', data: {id: '{{ data.id }}'}}
  target: {service: billing, path: /in}
  delivery: {retry: 3, backoffPolicy: linear, backoffDelay: PT0.5S, timeout: 10s, orderBy: partitionkey, deadLetterSink: {ref: {kind: Broker, name: dead}}}
  reply: {broker: replies}
  paused: true
";

#[test]
fn the_trigger_of_this_platform_takes_every_kind() {
    let trigger = one(OWN);
    assert_eq!(
        (trigger.name.as_str(), trigger.kind.as_str(), trigger.target.as_str(), trigger.path.as_str()),
        ("shop/orders", "kafka", "shop/billing", "/in")
    );
    assert!(trigger.paused);
    for (option, value) in [
        ("brokers", "a:9092,b:9092"),
        ("topics", "orders"),
        ("batch-bytes", "1000"),
        ("tls", "true"),
        ("filter", r#"{"all":[{"exact":{"type":"order"}},{"sql":"amount > 100"}]}"#),
        ("transform", r#"{"data":{"id":"{{ data.id }}"},"type":"bill.{{ type }}"}"#),
        ("retry", "3"),
        ("backoff-policy", "linear"),
        ("backoff-delay", "500ms"),
        ("timeout", "10s"),
        ("order-by", "partitionkey"),
        ("dead-letter", "broker:shop/dead"),
        ("reply", "broker:shop/replies"),
    ] {
        assert_eq!(trigger.options.get(option).map(String::as_str), Some(value), "{option}");
    }
    for (from, to, field) in [
        ("kind: kafka", "kin: kafka", "spec.source.kind"),
        ("batch-bytes", "timeout", "spec.source.options.timeout"),
        ("service: billing, path", "service: billing, broker: b, path", "spec.target"),
        ("service: billing", "servise: billing", "spec.target.servise"),
        ("retry: 3", "retries: 3", "spec.delivery.retries"),
        ("PT0.5S", "P1Y", "spec.delivery.backoffDelay"),
        ("paused: true", "paused: yes", "spec.paused"),
        ("filter: {all", "filters: [], filter: {all", "spec.filters"),
    ] {
        let text = if field == "spec.filters" {
            OWN.replace("  filter:", "  filters: [{exact: {type: a}}]\n  filter:")
        } else {
            OWN.replace(from, to)
        };
        assert_eq!(refused(&text), field);
    }
}

#[test]
fn a_target_may_be_a_sink_with_options() {
    let text = OWN.replace("{service: billing, path: /in}", "{sink: kafka, options: {topic: bills}}");
    let trigger = one(&text);
    assert_eq!((trigger.target.as_str(), trigger.options["sink.topic"].as_str()), ("sink:kafka", "bills"));
}

#[test]
fn brokers_and_their_triggers_are_read_as_knative_writes_them() {
    let text = "
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: default, annotations: {eventing.knative.dev/broker.class: MTChannelBasedBroker, sas.dev/retention: 48h, sas.dev/most-events: '500', sas.dev/ingress-token: secret/broker/token}}
spec: {delivery: {retry: 5, backoffPolicy: exponential, backoffDelay: PT1S, deadLetterSink: {uri: 'http://dead.default.svc.cluster.local'}}}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: paid, annotations: {sas.dev/concurrency: '7'}}
spec:
  broker: default
  filter: {attributes: {type: order.paid, source: ''}}
  subscriber: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: billing}, uri: /events}
";
    let manifests = parse(text, &ParseOptions::default()).unwrap_or_else(|errors| panic!("{errors}"));
    let [Manifest::Broker(broker), Manifest::Trigger(trigger)] = &manifests[..] else {
        panic!("{manifests:?}")
    };
    assert_eq!(
        (broker.name.as_str(), broker.retention, broker.most_events),
        ("default/default", Duration::from_secs(48 * 3600), 500)
    );
    assert_eq!(broker.ingress, BrokerIngress::Token("secret/broker/token".to_owned()));
    assert_eq!(broker.delivery["dead-letter"], "default/dead");
    assert_eq!(
        (trigger.kind.as_str(), trigger.target.as_str(), trigger.path.as_str()),
        ("broker", "default/billing", "/events")
    );
    assert_eq!(trigger.options["broker"], "default/default");
    assert_eq!(trigger.options["filter"], r#"{"exact":{"type":"order.paid"}}"#);
    assert_eq!(trigger.options["concurrency"], "7");
    for (from, to, field) in [
        ("spec: {delivery", "spec: {config: {kind: ConfigMap}, delivery", "documents[0].spec.config"),
        ("broker: default", "broke: default", "documents[1].spec.broker"),
        ("attributes: {type", "atributes: {type", "documents[1].spec.filter.atributes"),
        ("kind: Service", "kind: Deployment", "documents[1].spec.subscriber.ref"),
        (
            "sas.dev/retention: 48h",
            "sas.dev/retention: long",
            "documents[0].metadata.annotations[sas.dev/retention]",
        ),
        ("PT1S", "1 second", "documents[0].spec.delivery.backoffDelay"),
    ] {
        assert_eq!(refused(&text.replace(from, to)), field);
    }
    // `filters` goes before `filter`, as in Knative.
    let both = text.replace(
        "  filter:",
        "  filters: [{prefix: {type: order.}}, {not: {exact: {source: /test}}}]\n  filter:",
    );
    assert_eq!(
        one(&both).options["filter"],
        r#"{"all":[{"prefix":{"type":"order."}},{"not":{"exact":{"source":"/test"}}}]}"#
    );
}

#[test]
fn subscriptions_read_from_channels() {
    let text = "
apiVersion: messaging.knative.dev/v1
kind: Subscription
metadata: {name: s}
spec:
  channel: {apiVersion: messaging.knative.dev/v1, kind: Channel, name: orders}
  subscriber: {uri: 'https://hooks.example.org/in?x=1'}
  reply: {ref: {apiVersion: messaging.knative.dev/v1, kind: Channel, name: replies}}
";
    let read = one(text);
    assert_eq!((read.kind.as_str(), read.target.as_str()), ("broker", "sink:webhook"));
    assert_eq!(read.options["sink.url"], "https://hooks.example.org/in?x=1");
    assert_eq!(
        (read.options["broker"].as_str(), read.options["reply"].as_str()),
        ("default/orders", "broker:default/replies")
    );
    let silent = text.lines().filter(|line| !line.contains("reply")).collect::<Vec<_>>().join("\n");
    assert_eq!(one(&silent).options["reply"], "none");
    assert_eq!(
        refused(&text.replace("kind: Channel, name: orders", "kind: Topic, name: orders")),
        "spec.channel"
    );
}

#[test]
fn kafka_sources_are_triggers_of_the_kind_kafka() {
    let text = "
apiVersion: sources.knative.dev/v1
kind: KafkaSource
metadata: {name: k}
spec:
  bootstrapServers: [a:9092]
  topics: [x, y]
  consumerGroup: g
  initialOffset: earliest
  ordering: unordered
  net:
    tls: {enable: true, caCert: {secretKeyRef: {name: kafka, key: ca}}}
    sasl: {enable: true, user: {secretKeyRef: {name: kafka, key: user}}, password: {secretKeyRef: {name: kafka, key: pw}}, type: {secretKeyRef: {name: kafka, key: type}}}
  sink: {ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: default}}
";
    let read = one(text);
    assert_eq!((read.kind.as_str(), read.target.as_str()), ("kafka", "broker:default/default"));
    for (option, value) in [
        ("brokers", "a:9092"),
        ("topics", "x,y"),
        ("group", "g"),
        ("start", "earliest"),
        ("ordering", "none"),
        ("tls", "true"),
        ("ca-secret", "secret/kafka/ca"),
        ("username-secret", "secret/kafka/user"),
        ("password-secret", "secret/kafka/pw"),
        ("sasl-mechanism-secret", "secret/kafka/type"),
    ] {
        assert_eq!(read.options.get(option).map(String::as_str), Some(value), "{option}");
    }
    let ordered = one(&text.replace("ordering: unordered", "ordering: ordered"));
    assert_eq!(ordered.options["ordering"], "partition");
    for (from, to, field) in [
        ("topics: [x, y]", "topics: []", "spec.topics"),
        ("consumerGroup: g", "consumers: 3", "spec.consumers"),
        ("earliest", "2024", "spec.initialOffset"),
        ("{secretKeyRef: {name: kafka, key: pw}}", "{value: pw}", "spec.net.sasl.password.secretKeyRef"),
    ] {
        assert_eq!(refused(&text.replace(from, to)), field);
    }
    assert_eq!(
        refused("{apiVersion: sources.knative.dev/v1, kind: ApiServerSource, metadata: {name: a}}"),
        "kind"
    );
}

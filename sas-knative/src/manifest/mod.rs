//! Manifests: what people write, and every mistake in it with its field path.
//!
//! YAML 1.2 and JSON, one document or several, or a `List` of them. Known are Knative's `Service`, `DomainMapping`,
//! `PingSource`, `KafkaSource`, `Broker`, `Trigger`, `Channel` and `Subscription`, and this platform's own `Trigger` for every kind
//! of source and `Workflow` for definitions in the Open Workflow DSL.
//!
//! ```
//! use sas_knative::manifest::{Manifest, ParseOptions, parse};
//!
//! let text = r#"
//! apiVersion: serving.knative.dev/v1
//! kind: Service
//! metadata:
//!   name: hello
//!   annotations:
//!     sas.dev/package: ./hello.jar
//! spec:
//!   template:
//!     spec:
//!       containerConcurrency: 10
//! "#;
//! let manifests = parse(text, &ParseOptions::default())?;
//! let [Manifest::Service(service)] = &manifests[..] else { panic!("one service") };
//! assert_eq!((service.name.as_str(), service.spec.concurrency), ("hello", 10));
//!
//! let wrong = text.replace("containerConcurrency: 10", "containerConcurency: 10");
//! let errors = parse(&wrong, &ParseOptions::default()).unwrap_err();
//! assert_eq!(errors.0[0].field, "spec.template.spec.containerConcurency");
//! # Ok::<(), sas_core::SpecErrors>(())
//! ```

mod conditions;
mod domain;
mod eventing;
mod ping;
mod pod;
mod rehearsal;
mod rollout;
mod routing;
#[cfg(test)]
mod schema;
mod service;
mod tree;
mod words;
mod workflow;

use std::collections::HashSet;

use sas_core::{BrokerSpec, Scalers, SpecErrors, TriggerSpec, WorkflowSpec};

pub use domain::{DomainMapping, is_host};
pub use pod::{LABEL, is_label};
pub use rehearsal::{FaultRule, MirrorTo, check_faults};
pub use routing::TagRoute;
pub use service::{ServiceManifest, TrafficTarget};
use tree::Node;
pub use tree::document;

use crate::{AutoscalerConfig, Fidelity};

/// The kinds that are known, as their manifests name them.
pub const KINDS: [(&str, &str); 10] = [
    ("serving.knative.dev/v1", "Service"),
    ("serving.knative.dev/v1beta1", "DomainMapping"),
    ("sources.knative.dev/v1", "PingSource"),
    ("sources.knative.dev/v1", "KafkaSource"),
    ("eventing.knative.dev/v1", "Broker"),
    ("eventing.knative.dev/v1", "Trigger"),
    ("messaging.knative.dev/v1", "Channel"),
    ("messaging.knative.dev/v1", "Subscription"),
    ("sas.dev/v1", "Trigger"),
    ("sas.dev/v1", "Workflow"),
];

/// The JSON schema (draft 2020-12) of the manifests of all kinds, for editors and other tools: which fields there are, and
/// of which types. What is accepted in the end, [`parse`] says: it also looks at what belongs together.
pub const SCHEMA: &str = include_str!("../../manifests.schema.json");

/// What manifests mean beyond what they say.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ParseOptions {
    /// The namespace of what names none.
    pub namespace: String,
    /// The autoscaler's defaults, Knative's `config-autoscaler`.
    pub autoscaler: AutoscalerConfig,
    /// How closely scaling follows Knative's algorithm.
    pub fidelity: Fidelity,
    /// The scalers of the platform, which check what concerns them; `None`: who deploys asks them.
    pub scalers: Option<Scalers>,
}

impl Default for ParseOptions {
    fn default() -> Self {
        Self {
            namespace: "default".to_owned(),
            autoscaler: AutoscalerConfig::default(),
            fidelity: Fidelity::default(),
            scalers: None,
        }
    }
}

/// A document. Who applies documents handles every kind: a new kind is a change that each must look at.
#[derive(Clone, Debug, PartialEq)]
pub enum Manifest {
    /// A service.
    Service(Box<ServiceManifest>),
    /// A trigger.
    Trigger(Box<TriggerSpec>),
    /// A broker.
    Broker(Box<BrokerSpec>),
    /// A host at which a service answers too.
    Domain(Box<DomainMapping>),
    /// A definition of a workflow.
    Workflow(Box<WorkflowSpec>),
}

impl Manifest {
    /// `Service namespace/name`, `Trigger namespace/name`, `Broker namespace/name`, `DomainMapping host` or
    /// `Workflow namespace/name version`.
    pub fn identity(&self) -> String {
        match self {
            Self::Service(service) => format!("Service {}/{}", service.namespace, service.name),
            Self::Trigger(trigger) => format!("Trigger {}", trigger.name),
            Self::Broker(broker) => format!("Broker {}", broker.name),
            Self::Domain(domain) => format!("DomainMapping {}", domain.host),
            Self::Workflow(workflow) => format!("Workflow {}", workflow.shown()),
        }
    }
}

/// Reads manifests. Never panics; the work is bounded by the input's size, at most 4 MiB.
///
/// # Errors
/// All mistakes of all documents at once. With several documents, fields begin with `documents[n].`.
pub fn parse(text: &str, options: &ParseOptions) -> Result<Vec<Manifest>, SpecErrors> {
    let documents = tree::documents(text)?;
    let several = documents.len() > 1;
    let mut errors = SpecErrors::default();
    if documents.is_empty() {
        errors.push("$", "", "holds no document");
    }
    let mut manifests: Vec<Manifest> = Vec::with_capacity(documents.len());
    let mut known = HashSet::new();
    for (at, document) in documents.iter().enumerate() {
        let place = if several { format!("documents[{at}]") } else { String::new() };
        for (place, document) in items(&place, document, &mut errors) {
            let mut own = SpecErrors::default();
            if let Some(manifest) = read_document(document, options, &mut own) {
                if !known.insert(manifest.identity()) {
                    own.push("metadata.name", manifest.identity(), "is declared twice");
                }
                manifests.push(manifest);
            }
            if place.is_empty() {
                errors.0.extend(own.0);
            } else {
                errors.extend_under(&place, own);
            }
        }
    }
    errors.into_result()?;
    Ok(manifests)
}

/// The document with the place that its mistakes are told at; or what is in it, if it is a list of Kubernetes, as
/// `kubectl get -o yaml` writes them. A list holds no list.
fn items<'a>(place: &str, document: &'a Node, errors: &mut SpecErrors) -> Vec<(String, &'a Node)> {
    let said = |name| document.get(name).and_then(Node::text).unwrap_or_default();
    if !matches!(
        (said("apiVersion"), said("kind")),
        ("v1", "List") | ("serving.knative.dev/v1", "ServiceList")
    ) {
        return vec![(place.to_owned(), document)];
    }
    let mut own = SpecErrors::default();
    let mut fields = tree::Fields::new("", document, &mut own);
    fields.ignore(&["apiVersion", "kind", "metadata"]);
    let items = fields.list("items", &mut own);
    fields.finish(&mut own);
    if items.as_ref().is_none_or(Vec::is_empty) && own.is_empty() {
        own.push("items", "", "missing: a list of manifests");
    }
    if place.is_empty() {
        errors.0.extend(own.0);
    } else {
        errors.extend_under(place, own);
    }
    let at = |item: String| if place.is_empty() { item } else { format!("{place}.{item}") };
    items.unwrap_or_default().into_iter().map(|(item, node)| (at(item), node)).collect()
}

/// The documents of a test, without what `parse` does around them.
#[cfg(test)]
fn read_all(text: &str, errors: &mut SpecErrors) {
    for document in tree::documents(text).expect("documents") {
        let _ = read_document(&document, &ParseOptions::default(), errors);
    }
}

fn read_document(document: &Node, options: &ParseOptions, errors: &mut SpecErrors) -> Option<Manifest> {
    if !matches!(document, Node::Map(_)) {
        errors.push("$", document.shown(), format!("must be a mapping, not {}", document.kind()));
        return None;
    }
    let said = |name| document.get(name).and_then(Node::text).unwrap_or_default();
    match (said("apiVersion"), said("kind")) {
        ("serving.knative.dev/v1", "Service") => {
            service::service(document, options, errors).map(|service| Manifest::Service(Box::new(service)))
        }
        ("serving.knative.dev/v1beta1" | "serving.knative.dev/v1alpha1", "DomainMapping") => {
            domain::domain_mapping(document, options, errors).map(|domain| Manifest::Domain(Box::new(domain)))
        }
        ("sources.knative.dev/v1", "PingSource") => {
            ping::ping_source(document, options, errors).map(|trigger| Manifest::Trigger(Box::new(trigger)))
        }
        ("sources.knative.dev/v1" | "sources.knative.dev/v1beta1", "KafkaSource") => {
            eventing::kafka_source(document, options, errors)
                .map(|trigger| Manifest::Trigger(Box::new(trigger)))
        }
        ("eventing.knative.dev/v1", "Broker")
        | ("messaging.knative.dev/v1", "Channel" | "InMemoryChannel") => {
            eventing::broker(document, options, errors).map(|broker| Manifest::Broker(Box::new(broker)))
        }
        ("eventing.knative.dev/v1", "Trigger") => eventing::knative_trigger(document, options, errors)
            .map(|trigger| Manifest::Trigger(Box::new(trigger))),
        ("messaging.knative.dev/v1", "Subscription") => eventing::subscription(document, options, errors)
            .map(|trigger| Manifest::Trigger(Box::new(trigger))),
        ("sas.dev/v1", "Trigger") => {
            eventing::trigger(document, options, errors).map(|trigger| Manifest::Trigger(Box::new(trigger)))
        }
        ("sas.dev/v1", "Workflow") => workflow::workflow(document, options, errors)
            .map(|workflow| Manifest::Workflow(Box::new(workflow))),
        (_, "ApiServerSource") => {
            errors.push("kind", "ApiServerSource", eventing::NO_API_SERVER);
            None
        }
        (api, kind) => {
            let known: Vec<String> = KINDS.iter().map(|(api, kind)| format!("{kind} ({api})")).collect();
            let known = format!("known kinds: {}", known.join(", "));
            let same_kind = KINDS.iter().find(|(_, known)| *known == kind);
            let (field, shown) = match same_kind {
                Some(_) => ("apiVersion", api),
                None => ("kind", kind),
            };
            errors.push(field, shown, if shown.is_empty() { format!("missing; {known}") } else { known });
            None
        }
    }
}

/// Reads the body of a change of traffic: a list of targets, or a mapping with `traffic`.
///
/// # Errors
/// All mistakes at once.
pub fn parse_traffic(text: &str, service: &str) -> Result<Vec<TrafficTarget>, SpecErrors> {
    let mut errors = SpecErrors::default();
    let mut documents = tree::documents(text)?;
    let (Some(document), true) = (documents.pop(), documents.is_empty()) else {
        errors.push("$", "", "must be one document: a list of traffic targets");
        return Err(errors);
    };
    let list = match &document {
        Node::List(_) => Node::Map(vec![("traffic".to_owned(), document)]),
        _ => document,
    };
    let mut fields = tree::Fields::new("", &list, &mut errors);
    let items = fields.list("traffic", &mut errors);
    fields.finish(&mut errors);
    let targets = match items {
        Some(items) => service::traffic("traffic", &items, Some(service), &mut errors),
        None => {
            if errors.is_empty() {
                errors.push("traffic", "", "missing: a list of targets");
            }
            Vec::new()
        }
    };
    errors.into_result()?;
    Ok(targets)
}

//! Knative's `DomainMapping`: a host at which a service answers beside its own.

use sas_core::SpecErrors;
use serde::{Deserialize, Serialize};

use super::{
    ParseOptions,
    pod::{is_label, required},
    service::Metadata,
    tree::{Fields, Node},
};

/// A host at which a service answers too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[non_exhaustive]
pub struct DomainMapping {
    /// The host, from `metadata.name`: a DNS name of at least two labels.
    pub host: String,
    /// The namespace that the mapping and its service are in.
    pub namespace: String,
    /// The service, from `spec.ref.name`.
    pub service: String,
    /// The document that it was read from, whole but for its `status`; `None`: it was made without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<serde_json::Value>,
}

impl DomainMapping {
    /// `host` leads to `namespace/service` too.
    pub fn new(host: impl Into<String>, namespace: impl Into<String>, service: impl Into<String>) -> Self {
        Self { host: host.into(), namespace: namespace.into(), service: service.into(), document: None }
    }

    /// Checks the names.
    ///
    /// # Errors
    /// All mistakes at once, with the fields that a document would have.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        if !is_host(&self.host) {
            errors.push("metadata.name", &self.host, HOST);
        }
        if !is_label(&self.namespace) {
            errors.push("metadata.namespace", &self.namespace, super::LABEL);
        }
        if !is_label(&self.service) {
            errors.push("spec.ref.name", &self.service, super::LABEL);
        }
        errors.into_result()
    }
}

const HOST: &str = "must be a DNS name such as shop.example.org: at least two labels of lower-case letters, digits or dashes, at most 253 letters";

/// A DNS name of at least two labels, in lower case, which is no address.
pub fn is_host(text: &str) -> bool {
    text.len() <= 253
        && text.contains('.')
        && text.split('.').all(is_label)
        && !text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
}

pub(super) fn domain_mapping(
    node: &Node,
    options: &ParseOptions,
    errors: &mut SpecErrors,
) -> Option<DomainMapping> {
    let before = errors.0.len();
    let mut fields = Fields::new("", node, errors);
    fields.ignore(&["apiVersion", "kind", "status"]);
    let metadata = Metadata::read("metadata", fields.take("metadata").unwrap_or(&Node::Null), errors);
    match &metadata.name {
        None => errors.push("metadata.name", "", "missing: the host that is mapped"),
        Some(name) if !is_host(name) => errors.push("metadata.name", name, HOST),
        Some(name) if name.ends_with(".svc.cluster.local") => {
            errors.push("metadata.name", name, "is a host of the cluster itself; map another");
        }
        Some(_) => {}
    }
    let namespace = metadata.namespace.clone().unwrap_or_else(|| options.namespace.clone());
    let mut spec = Fields::new("spec", fields.take("spec").unwrap_or(&Node::Null), errors);
    fields.finish(errors);
    let reference = spec.take("ref");
    if reference.is_none() {
        errors.push("spec.ref", "", "missing: the service that answers there");
    }
    let mut service = None;
    if let Some(node) = reference {
        let mut reference = Fields::new("spec.ref", node, errors);
        service = required(&mut reference, "name", errors);
        if let Some(name) = service
            && !is_label(name)
        {
            errors.push("spec.ref.name", name, super::LABEL);
        }
        let kind = required(&mut reference, "kind", errors);
        let api = reference.string("apiVersion", errors);
        if let Some(kind) = kind
            && (kind != "Service" || api.is_some_and(|api| api != "serving.knative.dev/v1"))
        {
            let shown = format!("{} {kind}", api.unwrap_or_default());
            errors.push("spec.ref", shown, "must be a Service of serving.knative.dev/v1");
        }
        if let Some(other) = reference.string("namespace", errors)
            && !other.is_empty()
            && other != namespace
        {
            let problem = format!("must be the mapping's own, {namespace}, or be left out");
            errors.push("spec.ref.namespace", other, problem);
        }
        reference.finish(errors);
    }
    if let Some(node) = spec.take("tls") {
        let problem = "certificates are the listener's here, not a mapping's; leave it out";
        errors.push("spec.tls", node.shown(), problem);
    }
    spec.finish(errors);
    let (host, service) = (metadata.name?, service?);
    if errors.0.len() > before {
        return None;
    }
    let mut mapping = DomainMapping::new(host, namespace, service);
    mapping.document = Some(node.without("status").into_json());
    Some(mapping)
}

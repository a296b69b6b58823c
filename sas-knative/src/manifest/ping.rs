//! Knative's `PingSource`: a cron trigger.

use base64::Engine as _;
use sas_core::{SpecErrors, TriggerSpec};

use super::{
    ParseOptions,
    pod::{LABEL, is_label, required},
    service::Metadata,
    tree::{Fields, Node},
};
use crate::keys::own;

/// Knative's own limit.
const DATA_LIMIT: usize = 1 << 20;

pub(super) fn ping_source(
    node: &Node,
    options: &ParseOptions,
    errors: &mut SpecErrors,
) -> Option<TriggerSpec> {
    let before = errors.0.len();
    let mut fields = Fields::new("", node, errors);
    fields.ignore(&["apiVersion", "kind", "status"]);
    let metadata = Metadata::read("metadata", fields.take("metadata").unwrap_or(&Node::Null), errors);
    match &metadata.name {
        None => errors.push("metadata.name", "", "missing: the name of the source"),
        Some(name) if !is_label(name) => errors.push("metadata.name", name, LABEL),
        Some(_) => {}
    }
    let namespace = metadata.namespace.clone().unwrap_or_else(|| options.namespace.clone());
    let mut spec = Fields::new("spec", fields.take("spec").unwrap_or(&Node::Null), errors);
    fields.finish(errors);

    let schedule = spec.string("schedule", errors).unwrap_or("* * * * *").to_owned();
    let timezone = spec.string("timezone", errors).filter(|zone| !zone.is_empty()).map(str::to_owned);
    let content_type = spec.string("contentType", errors).filter(|kind| !kind.is_empty()).map(str::to_owned);
    let text = spec.string("data", errors).filter(|data| !data.is_empty());
    let encoded = spec.string("dataBase64", errors).filter(|data| !data.is_empty());
    let data = match (text, encoded) {
        (Some(text), Some(_)) => {
            errors.push("spec.data", text, "contradicts dataBase64: give one of the two");
            Vec::new()
        }
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(encoded)) => {
            base64::engine::general_purpose::STANDARD.decode(encoded.trim()).unwrap_or_else(|error| {
                errors.push("spec.dataBase64", encoded, format!("is not base64: {error}"));
                Vec::new()
            })
        }
        (None, None) => Vec::new(),
    };
    if data.len() > DATA_LIMIT {
        errors.push("spec.data", format!("{} bytes", data.len()), format!("at most {DATA_LIMIT} bytes"));
    }
    let target = sink(&mut spec, &namespace, errors);
    let mut extensions = std::collections::BTreeMap::new();
    if let Some(node) = spec.take("ceOverrides") {
        let mut overrides = Fields::new("spec.ceOverrides", node, errors);
        extensions = overrides.string_map("extensions", errors);
        overrides.finish(errors);
    }
    spec.finish(errors);

    let name = metadata.name.as_deref()?;
    let (service, path) = target?;
    if errors.0.len() > before {
        return None;
    }
    let mut trigger =
        TriggerSpec::new(format!("{namespace}/{name}"), "cron", service).with_option("schedule", schedule);
    if let Some(zone) = timezone {
        trigger = trigger.with_option("timezone", zone);
    }
    for (key, value) in &metadata.annotations {
        if let Some(option) = key.strip_prefix(own::PREFIX) {
            trigger = trigger.with_option(option, value);
        }
    }
    trigger.path = path;
    trigger.extensions = extensions;
    trigger.content_type = content_type;
    trigger.data = data;
    Some(trigger)
}

/// The service and the path that `spec.sink` names.
fn sink(spec: &mut Fields<'_>, namespace: &str, errors: &mut SpecErrors) -> Option<(String, String)> {
    let Some(node) = spec.take("sink") else {
        errors.push("spec.sink", "", "missing: the service that gets the events");
        return None;
    };
    let before = errors.0.len();
    let mut sink = Fields::new("spec.sink", node, errors);
    let mut target = None;
    if let Some(node) = sink.take("ref") {
        let mut reference = Fields::new("spec.sink.ref", node, errors);
        let kind = required(&mut reference, "kind", errors);
        let api = reference.string("apiVersion", errors).unwrap_or("serving.knative.dev/v1");
        if kind.is_some_and(|kind| kind != "Service") || !api.starts_with("serving.knative.dev/") {
            let shown = format!("{api} {}", kind.unwrap_or_default());
            errors.push("spec.sink.ref", shown, "must be a Service of serving.knative.dev/v1");
        }
        let name = required(&mut reference, "name", errors);
        let other =
            reference.string("namespace", errors).filter(|other| !other.is_empty()).unwrap_or(namespace);
        reference.finish(errors);
        target = name.map(|name| format!("{other}/{name}"));
    }
    let mut path = "/".to_owned();
    if let Some(uri) = sink.string("uri", errors) {
        match uri.parse::<http::Uri>() {
            Ok(parsed) => {
                path = parsed.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
                if let Some(host) = parsed.host() {
                    match internal_service(host) {
                        Some(service) if target.is_none() => target = Some(service),
                        _ => errors.push(
                            "spec.sink.uri",
                            uri,
                            "must be a path below the ref, or http://name.namespace.svc.cluster.local/path",
                        ),
                    }
                }
            }
            Err(error) => errors.push("spec.sink.uri", uri, format!("is not a URI: {error}")),
        }
    }
    for name in ["CACerts", "audience"] {
        let at = sink.at(name);
        if let Some(node) = sink.take(name) {
            errors.push(at, node.shown(), "events stay on this host, without TLS; leave it out");
        }
    }
    sink.finish(errors);
    if errors.0.len() > before {
        return None;
    }
    if target.is_none() {
        errors.push("spec.sink.ref", "", "missing: the service that gets the events");
    }
    target.map(|target| (target, path))
}

/// `name.namespace.svc` and `name.namespace.svc.cluster.local` as `namespace/name`.
fn internal_service(host: &str) -> Option<String> {
    let host = host.strip_suffix(".cluster.local").unwrap_or(host).strip_suffix(".svc")?;
    let (name, namespace) = host.split_once('.')?;
    (is_label(name) && is_label(namespace)).then(|| format!("{namespace}/{name}"))
}

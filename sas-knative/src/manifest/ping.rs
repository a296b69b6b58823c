//! Knative's `PingSource`: a cron trigger.

use base64::Engine as _;
use sas_core::{SpecErrors, TriggerSpec};

use super::{
    ParseOptions,
    eventing::destination,
    pod::{LABEL, is_label},
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
    let target = destination(&mut spec, "sink", &namespace, errors);
    let mut extensions = std::collections::BTreeMap::new();
    if let Some(node) = spec.take("ceOverrides") {
        let mut overrides = Fields::new("spec.ceOverrides", node, errors);
        extensions = overrides.string_map("extensions", errors);
        overrides.finish(errors);
    }
    spec.finish(errors);

    let name = metadata.name.as_deref()?;
    let target = target?;
    if errors.0.len() > before {
        return None;
    }
    let mut trigger = TriggerSpec::new(format!("{namespace}/{name}"), "cron", target.target)
        .with_option("schedule", schedule);
    if let Some(zone) = timezone {
        trigger = trigger.with_option("timezone", zone);
    }
    for (key, value) in &metadata.annotations {
        if let Some(option) = key.strip_prefix(own::PREFIX) {
            trigger = trigger.with_option(option, value);
        }
    }
    for (name, value) in target.options {
        trigger = trigger.with_option(format!("sink.{name}"), value);
    }
    trigger.path = target.path;
    trigger.extensions = extensions;
    trigger.content_type = content_type;
    trigger.data = data;
    Some(trigger)
}

//! The platform's own `Workflow`: a document in the Open Workflow DSL below `spec`. What the document means, who runs it says;
//! here its head is made to fit the manifest's.

use sas_core::{SpecErrors, WorkflowSpec};
use serde_json::Value;

use super::{
    LABEL, ParseOptions, is_label,
    service::Metadata,
    tree::{Fields, Node},
};

/// Without `document.name` and `document.namespace`, these are the manifest's; where they are given, they must be the same.
pub(super) fn workflow(node: &Node, options: &ParseOptions, errors: &mut SpecErrors) -> Option<WorkflowSpec> {
    let before = errors.0.len();
    let mut fields = Fields::new("", node, errors);
    fields.ignore(&["apiVersion", "kind", "status"]);
    let metadata = Metadata::read("metadata", fields.take("metadata").unwrap_or(&Node::Null), errors);
    match &metadata.name {
        None => errors.push("metadata.name", "", "missing"),
        Some(name) if !is_label(name) => errors.push("metadata.name", name, LABEL),
        Some(_) => {}
    }
    let namespace = metadata.namespace.clone().unwrap_or_else(|| options.namespace.clone());
    let spec = fields.take("spec").unwrap_or(&Node::Null);
    let mut document = Fields::new("spec", spec, errors);
    let head = document.take("document").unwrap_or(&Node::Null);
    // The rest is in the language of workflows, and whoever runs them reads it.
    let _ = document.rest();
    fields.finish(errors);
    let mut head = Fields::new("spec.document", head, errors);
    let said = [head.string("namespace", errors), head.string("name", errors)];
    let version = head.string("version", errors).map(str::to_owned);
    let _ = head.rest();
    let own = [Some(namespace.as_str()), metadata.name.as_deref()];
    for ((field, said), own) in ["namespace", "name"].into_iter().zip(said).zip(own) {
        if let (Some(said), Some(own)) = (said, own)
            && said != own
        {
            let problem = format!("must be metadata.{field}, which is {own}; or leave it out");
            errors.push(format!("spec.document.{field}"), said, problem);
        }
    }
    if version.is_none() {
        errors.push(
            "spec.document.version",
            "",
            "missing: a version such as 1.0.0, which names this document for ever",
        );
    }
    let (name, version) = (metadata.name?, version?);
    if errors.0.len() > before {
        return None;
    }
    let mut document = spec.clone().into_json();
    if let Value::Object(head) = &mut document["document"] {
        head.insert("namespace".to_owned(), namespace.clone().into());
        head.insert("name".to_owned(), name.clone().into());
    }
    Some(WorkflowSpec::new(namespace, name, version, document))
}

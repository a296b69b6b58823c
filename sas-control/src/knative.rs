//! What runs, in the shapes of Knative's API: `Service`, `Configuration`, `Route`, `Revision` and `DomainMapping`.

use sas_core::{EnvValue, Protocol, RevisionSpec, Source};
use sas_knative::{keys, manifest::TrafficTarget};
use serde_json::{Map, Value, json};

use crate::{
    control::{Control, DomainRecord},
    record::{RevisionRecord, ServiceRecord},
    stamp::rfc3339,
    view::Condition,
};

/// The version that all of them but `DomainMapping` have.
pub(crate) const V1: &str = "serving.knative.dev/v1";
/// The version of `DomainMapping`.
pub(crate) const V1BETA1: &str = "serving.knative.dev/v1beta1";

/// A service's manifest as it was written, with the traffic as it is wanted now; `None`: it was deployed without one.
pub(crate) fn exported(record: &ServiceRecord) -> Option<Value> {
    let mut document = Value::clone(record.document.as_deref()?);
    let written = document["spec"].get("traffic").cloned();
    let as_written = match &written {
        None | Some(Value::Null) => record.traffic == [TrafficTarget::latest()],
        Some(written) => targets(written).is_some_and(|written| written == record.traffic),
    };
    if !as_written {
        document["spec"]["traffic"] = record.traffic.iter().map(target).collect();
    }
    Some(document)
}

/// What a list of targets says, however it says it.
fn targets(written: &Value) -> Option<Vec<TrafficTarget>> {
    let text = serde_json::to_string(written).ok()?;
    sas_knative::manifest::parse_traffic(&text, "").ok()
}

fn target(target: &TrafficTarget) -> Value {
    let mut out = json!({"percent": target.percent, "latestRevision": target.revision_name.is_none()});
    if let Some(name) = &target.revision_name {
        out["revisionName"] = name.as_str().into();
    }
    if let Some(tag) = &target.tag {
        out["tag"] = tag.as_str().into();
    }
    out
}

fn conditions(conditions: &[Condition]) -> Value {
    let one = |condition: &Condition| {
        let mut out = json!({"type": condition.kind, "status": condition.status});
        if !condition.reason.is_empty() {
            out["reason"] = condition.reason.as_str().into();
        }
        if !condition.message.is_empty() {
            out["message"] = condition.message.as_str().into();
        }
        out
    };
    conditions.iter().map(one).collect()
}

/// The conditions of a part of a service: its own `Ready`, made of the service's condition `of`.
fn ready(of: &str, service: &[Condition]) -> Vec<Condition> {
    let found = service.iter().filter(|condition| condition.kind == of);
    found.map(|condition| Condition { kind: "Ready", ..condition.clone() }).collect()
}

fn without_empty(map: Value) -> Value {
    match map {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| match value {
                Value::Null => false,
                Value::Array(items) => !items.is_empty(),
                Value::Object(fields) => !fields.is_empty(),
                Value::String(text) => !text.is_empty(),
                _ => true,
            })
            .collect::<Map<_, _>>()
            .into(),
        other => other,
    }
}

fn variable((name, value): (&String, &EnvValue)) -> Value {
    match value {
        EnvValue::Literal(text) => json!({"name": name, "value": text}),
        EnvValue::Secret(reference) => {
            let mut parts = reference.splitn(3, '/');
            let (kind, of, key) = (parts.next(), parts.next(), parts.next());
            match (kind, of, key) {
                (Some("configmap"), Some(of), Some(key)) => {
                    json!({"name": name, "valueFrom": {"configMapKeyRef": {"name": of, "key": key}}})
                }
                (Some("secret"), Some(of), Some(key)) => {
                    json!({"name": name, "valueFrom": {"secretKeyRef": {"name": of, "key": key}}})
                }
                _ => json!({"name": name, "valueFrom": {"secretKeyRef": {"name": reference, "key": ""}}}),
            }
        }
        _ => json!({"name": name}),
    }
}

/// A revision's spec as Knative has it: the container that takes the requests, and what bounds it. What Knative has no
/// field for is in the revision's annotations.
fn revision_spec(spec: &RevisionSpec) -> Value {
    let quantity = |value: Option<String>| value.map_or(Value::Null, Value::String);
    let amounts = |cpu: Option<u32>, memory: Option<u64>| {
        without_empty(json!({
            "cpu": quantity(cpu.map(|millis| format!("{millis}m"))),
            "memory": quantity(memory.map(|bytes| bytes.to_string())),
        }))
    };
    let resources = &spec.resources;
    let port = spec.port.map(|port| {
        let name = if spec.protocol == Protocol::H2c { "h2c" } else { "http1" };
        json!([{"containerPort": port, "name": name}])
    });
    let container = without_empty(json!({
        "name": "user-container",
        "image": match &spec.source { Source::Image(image) => image.as_str(), _ => "" },
        "command": spec.command,
        "args": spec.args,
        "env": spec.env.iter().map(variable).collect::<Vec<_>>(),
        "ports": port,
        "resources": without_empty(json!({
            "requests": amounts(resources.cpu_request_millis, resources.memory_request_bytes),
            "limits": amounts(resources.cpu_limit_millis, resources.memory_limit_bytes),
        })),
    }));
    let sidecars = spec.container.as_deref().into_iter().flat_map(|pod| &pod.sidecars).map(|sidecar| {
        without_empty(json!({
            "name": sidecar.name, "image": sidecar.image, "command": sidecar.command, "args": sidecar.args,
            "env": sidecar.env.iter().map(variable).collect::<Vec<_>>(),
        }))
    });
    let containers: Vec<Value> = std::iter::once(container).chain(sidecars).collect();
    json!({
        "containerConcurrency": spec.concurrency,
        "timeoutSeconds": spec.timeouts.request.as_secs(),
        "containers": containers,
    })
}

impl Control {
    fn metadata(&self, record: &ServiceRecord) -> Value {
        without_empty(json!({
            "name": record.name,
            "namespace": record.namespace,
            "labels": record.labels,
            "annotations": record.annotations,
            "creationTimestamp": rfc3339(record.created_at),
            "generation": record.generation,
            "resourceVersion": self
                .version(&record.namespace, &record.name)
                .map_or_else(String::new, |version| version.0.to_string()),
        }))
    }

    /// The template of what was deployed last.
    fn template(&self, record: &ServiceRecord) -> Value {
        if let Some(template) =
            record.document.as_deref().and_then(|document| document["spec"].get("template"))
        {
            return template.clone();
        }
        let Some(latest) = record.latest_created() else { return Value::Null };
        json!({
            "metadata": without_empty(json!({"labels": latest.labels, "annotations": latest.annotations})),
            "spec": revision_spec(&latest.spec),
        })
    }

    /// `status.traffic`: where it goes now.
    fn traffic_status(&self, record: &ServiceRecord) -> Value {
        let one = |share: &crate::record::Share| {
            without_empty(json!({
                "revisionName": share.revision,
                "percent": share.percent,
                "latestRevision": share.latest,
                "tag": share.tag,
                "url": share.tag.as_deref().map(|tag| format!("http://{}", self.rules.host(record, Some(tag)))),
            }))
        };
        record.shares(self.clock.now()).iter().map(one).collect()
    }

    /// `Service`.
    pub(crate) fn knative_service(&self, record: &ServiceRecord) -> Value {
        let view = self.view(record);
        json!({
            "apiVersion": V1, "kind": "Service", "metadata": self.metadata(record),
            "spec": without_empty(json!({
                "template": self.template(record),
                "traffic": record.traffic.iter().map(target).collect::<Vec<_>>(),
            })),
            "status": without_empty(json!({
                "observedGeneration": record.generation,
                "conditions": conditions(&view.conditions),
                "latestCreatedRevisionName": view.latest_created_revision,
                "latestReadyRevisionName": view.latest_ready_revision,
                "traffic": self.traffic_status(record),
                "url": format!("http://{}", view.host),
                "address": {"url": format!("http://{}.{}.{}", record.name, record.namespace, self.rules.internal)},
            })),
        })
    }

    /// `Configuration`: what the service's revisions are made from.
    pub(crate) fn knative_configuration(&self, record: &ServiceRecord) -> Value {
        let view = self.view(record);
        json!({
            "apiVersion": V1, "kind": "Configuration", "metadata": self.owned(record),
            "spec": {"template": self.template(record)},
            "status": without_empty(json!({
                "observedGeneration": record.generation,
                "conditions": conditions(&ready("ConfigurationsReady", &view.conditions)),
                "latestCreatedRevisionName": view.latest_created_revision,
                "latestReadyRevisionName": view.latest_ready_revision,
            })),
        })
    }

    /// `Route`: where the service's requests go.
    pub(crate) fn knative_route(&self, record: &ServiceRecord) -> Value {
        let view = self.view(record);
        let traffic: Vec<Value> = record
            .traffic
            .iter()
            .map(|wanted| {
                let mut out = target(wanted);
                if wanted.revision_name.is_none() {
                    out["configurationName"] = record.name.as_str().into();
                }
                out
            })
            .collect();
        json!({
            "apiVersion": V1, "kind": "Route", "metadata": self.owned(record),
            "spec": {"traffic": traffic},
            "status": without_empty(json!({
                "observedGeneration": record.generation,
                "conditions": conditions(&ready("RoutesReady", &view.conditions)),
                "traffic": self.traffic_status(record),
                "url": format!("http://{}", view.host),
                "address": {"url": format!("http://{}.{}.{}", record.name, record.namespace, self.rules.internal)},
            })),
        })
    }

    /// Metadata of what belongs to a service.
    fn owned(&self, record: &ServiceRecord) -> Value {
        let mut metadata = self.metadata(record);
        metadata["labels"][keys::SERVICE_LABEL] = record.name.as_str().into();
        metadata["ownerReferences"] = owner("Service", &record.name);
        metadata
    }

    /// `Revision`.
    pub(crate) fn knative_revision(&self, record: &ServiceRecord, revision: &RevisionRecord) -> Value {
        let view = self.revision_view(record, revision);
        let mut metadata = without_empty(json!({
            "name": revision.name,
            "namespace": record.namespace,
            "labels": revision.labels,
            "annotations": revision.annotations,
            "creationTimestamp": view.created_at,
            "generation": 1,
        }));
        metadata["labels"][keys::SERVICE_LABEL] = record.name.as_str().into();
        metadata["labels"][keys::CONFIGURATION_LABEL] = record.name.as_str().into();
        metadata["labels"][keys::CONFIGURATION_GENERATION_LABEL] = revision.generation.to_string().into();
        metadata["ownerReferences"] = owner("Configuration", &record.name);
        let (actual, desired) =
            view.instances.map_or((None, None), |instances| (Some(instances.ready), Some(instances.desired)));
        json!({
            "apiVersion": V1, "kind": "Revision", "metadata": metadata,
            "spec": revision_spec(&revision.spec),
            "status": without_empty(json!({
                "observedGeneration": 1,
                "conditions": conditions(&view.conditions),
                "actualReplicas": actual,
                "desiredReplicas": desired,
                "containerStatuses": match &revision.spec.source {
                    Source::Image(image) => json!([{"name": "user-container", "imageDigest": image}]),
                    _ => Value::Null,
                },
            })),
        })
    }

    /// `DomainMapping`.
    pub(crate) fn knative_domain(&self, domain: &DomainRecord) -> Value {
        let mapping = &domain.mapping;
        let service = self.record(&mapping.namespace, &mapping.service);
        let resolved = if service.is_ok() { "True" } else { "False" };
        let missing = format!("there is no service {}", domain.service());
        let unresolved = |kind: &str| match resolved {
            "True" => json!({"type": kind, "status": "True"}),
            _ => json!({"type": kind, "status": "False", "reason": "ServiceNotFound", "message": missing}),
        };
        let document = mapping.document.clone().unwrap_or_else(|| {
            json!({"metadata": {}, "spec": {"ref": {"apiVersion": V1, "kind": "Service", "name": mapping.service}}})
        });
        let mut metadata = document["metadata"].clone();
        metadata["name"] = mapping.host.as_str().into();
        metadata["namespace"] = mapping.namespace.as_str().into();
        metadata["creationTimestamp"] = rfc3339(domain.created_at).into();
        json!({
            "apiVersion": V1BETA1, "kind": "DomainMapping", "metadata": metadata,
            "spec": document["spec"],
            "status": {
                "url": format!("http://{}", mapping.host),
                "conditions": [
                    unresolved("Ready"),
                    {"type": "DomainClaimed", "status": "True"},
                    unresolved("ReferenceResolved"),
                ],
            },
        })
    }
}

fn owner(kind: &str, name: &str) -> Value {
    json!([{"apiVersion": V1, "kind": kind, "name": name, "controller": true}])
}

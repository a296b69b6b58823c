//! Knative's `Service`.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use sas_core::{
    Affinity, Companion, ContainerSpec, Principal, Quota, RevisionSpec, RolloutPlan, SecurityContext, Source,
    SpecErrors, parse_duration,
};
use serde::{Deserialize, Serialize};

use super::{
    ParseOptions,
    pod::{self, Container, LABEL, POD, common, is_label},
    rehearsal::{FaultRule, MirrorTo},
    routing::{Routing, TagRoute},
    tree::{Fields, Node, join},
    words,
};
use crate::{
    keys::{self, own},
    scaling_from_annotations,
};

/// Knative's default limit of `containerConcurrency`.
const MAX_CONCURRENCY: i128 = 1000;
/// The longest request that can be asked for: a day.
const MAX_TIMEOUT_SECONDS: i128 = 86_400;

/// A `Service` as it was written, every field checked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ServiceManifest {
    /// `metadata.namespace`, or the default one.
    pub namespace: String,
    /// The service's name, from `metadata.name`.
    pub name: String,
    /// The service's labels, from `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// The service's annotations, from `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// Whether the service answers only at its internal host.
    pub cluster_local: bool,
    /// What makes requests belong to one instance.
    pub affinity: Affinity,
    /// Whether browsers get a page that reloads itself while the service starts.
    pub placeholder: bool,
    /// Paths whose requests start no instance.
    pub no_wake: Vec<String>,
    /// Which requests go to the revision of a tag, whatever the shares say.
    pub routes: Vec<TagRoute>,
    /// Which revision gets copies of its requests.
    pub mirror: Option<MirrorTo>,
    /// Faults that its requests meet on purpose.
    pub faults: Vec<FaultRule>,
    /// What its requests may use; `None`: what all services may.
    pub quota: Option<Quota>,
    /// `spec.template.metadata.name`: the name of the revision, where it is given.
    pub revision: Option<String>,
    /// The revision's labels, from `spec.template.metadata.labels`.
    pub template_labels: BTreeMap<String, String>,
    /// The revision's annotations, from `spec.template.metadata.annotations`.
    pub template_annotations: BTreeMap<String, String>,
    /// What the revision is.
    pub spec: RevisionSpec,
    /// `spec.traffic`; `None`: all of it to the latest revision.
    pub traffic: Option<Vec<TrafficTarget>>,
    /// How long traffic takes to move to a new revision.
    pub rollout: Duration,
    /// How it moves, if not by time alone: in steps, and back when the new revision fails.
    pub plan: Option<RolloutPlan>,
    /// The index of the container that takes the requests, so that what a runtime says of the spec is told at the
    /// field of the document ([`ServiceManifest::field_of`]).
    pub serving: usize,
    /// Who deploys it, kept as the author of a new revision; no field of a document.
    pub author: Option<Principal>,
    /// The document that it was read from, whole but for its `status`, so that it can be exported as it was written;
    /// `None`: it was made without one.
    pub document: Option<Arc<serde_json::Value>>,
}

impl ServiceManifest {
    /// A service without annotations, for hosts that deploy specs instead of documents.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, spec: RevisionSpec) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            cluster_local: false,
            affinity: Affinity::None,
            placeholder: false,
            no_wake: Vec::new(),
            routes: Vec::new(),
            mirror: None,
            faults: Vec::new(),
            quota: None,
            revision: None,
            template_labels: BTreeMap::new(),
            template_annotations: BTreeMap::new(),
            spec,
            traffic: None,
            rollout: Duration::ZERO,
            plan: None,
            serving: 0,
            author: None,
            document: None,
        }
    }

    /// The field of the document from which the code, a field of [`RevisionSpec::container`] or a probe was
    /// read, such as `spec.template.spec.volumes[0]` for `container.volumes[0]`. Other fields as they are.
    #[must_use]
    pub fn field_of(&self, field: &str) -> String {
        for probe in ["startup", "readiness", "liveness"] {
            let action = field.strip_prefix(probe).and_then(|rest| rest.strip_prefix(".action."));
            let action = match action {
                Some(action @ ("exec" | "grpc")) => action,
                Some("tcp") => "tcpSocket",
                Some("http") => "httpGet",
                Some("http.port") => "httpGet.port",
                _ => continue,
            };
            return format!("{POD}.containers[{}].{probe}Probe.{action}", self.serving);
        }
        match field {
            "resources.memory_limit_bytes" => {
                return format!("{POD}.containers[{}].resources.limits.memory", self.serving);
            }
            "resources.memory_request_bytes" => {
                return format!("{POD}.containers[{}].resources.requests.memory", self.serving);
            }
            "source" if self.template_annotations.contains_key(own::PACKAGE) => {
                return format!("spec.template.metadata.annotations[{}]", own::PACKAGE);
            }
            "source" if self.annotations.contains_key(own::PACKAGE) => {
                return format!("metadata.annotations[{}]", own::PACKAGE);
            }
            "scaling.min" => {
                return format!("spec.template.metadata.annotations[{}]", keys::MIN_SCALE[0]);
            }
            _ => {}
        }
        let Some(rest) = field.strip_prefix("container.") else { return field.to_owned() };
        let container = |at: usize, rest: &str| {
            let name = match rest.split(['.', '[']).next().unwrap_or_default() {
                "working_dir" => "workingDir",
                "env_from" => "envFrom",
                "mounts" => "volumeMounts",
                "security" => "securityContext",
                "startup" => "startupProbe",
                "readiness" => "readinessProbe",
                "liveness" => "livenessProbe",
                other => other,
            };
            let after = rest.find(['.', '[']).map_or("", |at| &rest[at..]);
            let after = after.replacen(".add_capabilities", ".capabilities.add", 1).replacen(
                ".drop_capabilities",
                ".capabilities.drop",
                1,
            );
            format!("{POD}.containers[{at}].{name}{}", camel(&after))
        };
        let companion = |list: &str| -> Option<(usize, &str)> {
            let (at, rest) = rest.strip_prefix(list)?.strip_prefix('[')?.split_once(']')?;
            Some((at.parse().ok()?, rest.strip_prefix('.').unwrap_or(rest)))
        };
        if let Some(path) = rest.strip_prefix("other[").and_then(|rest| rest.strip_suffix(']')) {
            return format!("{POD}.{path}");
        }
        if let Some((at, rest)) = companion("init") {
            let of = container(at, rest).replacen("containers", "initContainers", 1);
            return of.trim_end_matches('.').to_owned();
        }
        if let Some((at, rest)) = companion("sidecars") {
            let at = if at < self.serving { at } else { at + 1 };
            return container(at, rest).trim_end_matches('.').to_owned();
        }
        match rest {
            rest if rest.starts_with("volumes") => format!("{POD}.{}", camel(rest)),
            rest if rest.starts_with("pull_secrets") => {
                format!("{POD}.imagePullSecrets{}", &rest["pull_secrets".len()..])
            }
            rest => container(self.serving, rest),
        }
    }

    /// Checks what a host may have filled in by hand: names, the spec, the sum of the traffic.
    ///
    /// # Errors
    /// All mistakes at once, with the fields that a document would have.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        if !is_label(&self.namespace) {
            errors.push("metadata.namespace", &self.namespace, LABEL);
        }
        if !is_service_name(&self.name) {
            errors.push("metadata.name", &self.name, SERVICE_NAME);
        }
        if let Some(revision) = &self.revision
            && !is_revision_of(revision, &self.name)
        {
            errors.push("spec.template.metadata.name", revision, revision_rule(&self.name));
        }
        if let Some(traffic) = &self.traffic {
            let sum: u64 = traffic.iter().map(|target| u64::from(target.percent)).sum();
            if sum != 100 {
                errors.push("spec.traffic", format!("{sum} %"), "the percents must add up to 100");
            }
        }
        if let Err(spec) = self.spec.validate() {
            errors.extend_under("spec.template.spec", spec);
        }
        if let Some(Err(quota)) = self.quota.map(|quota| quota.validate()) {
            errors.extend_under("quota", quota);
        }
        if let Some(Err(plan)) = self.plan.as_ref().map(RolloutPlan::validate) {
            errors.extend_under("plan", plan);
        }
        if let Some(plan) = &self.plan
            && self.spec.scaling.max == 1
            && plan.surge.of(1) == 0
        {
            let problem =
                "must be at least 1 where the service may have one instance: two revisions can't share it";
            errors.push(format!("metadata.annotations[{}]", own::ROLLOUT_SURGE), plan.surge, problem);
        }
        errors.into_result()
    }
}

/// `run_as_user` becomes `runAsUser`.
fn camel(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for letter in name.chars() {
        match letter {
            '_' => upper = true,
            letter if std::mem::take(&mut upper) => out.push(letter.to_ascii_uppercase()),
            letter => out.push(letter),
        }
    }
    out
}

const SERVICE_NAME: &str = "must be 1 to 63 lower-case letters, digits or dashes, begin with a letter and end with a letter or digit";

/// DNS-1035, as in Knative: it becomes a host name.
fn is_service_name(name: &str) -> bool {
    is_label(name) && name.starts_with(|first: char| first.is_ascii_lowercase())
}

fn is_revision_of(revision: &str, service: &str) -> bool {
    is_label(revision)
        && revision.strip_prefix(service).is_some_and(|rest| rest.len() > 1 && rest.starts_with('-'))
}

fn revision_rule(service: &str) -> String {
    format!("must be {service}- and more, at most 63 letters")
}

/// A line of `spec.traffic`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[non_exhaustive]
pub struct TrafficTarget {
    /// The revision; `None`: the latest one that is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision_name: Option<String>,
    /// Its share. The shares of a service add up to 100.
    #[serde(default)]
    pub percent: u32,
    /// A name under which this revision answers at a host of its own, whatever its share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

impl TrafficTarget {
    /// All traffic to the latest revision that is ready.
    pub fn latest() -> Self {
        Self { revision_name: None, percent: 100, tag: None }
    }

    /// `percent` to a revision.
    pub fn revision(name: impl Into<String>, percent: u32) -> Self {
        Self { revision_name: Some(name.into()), percent, tag: None }
    }

    /// The same with a tag.
    #[must_use]
    pub fn tagged(mut self, tag: impl Into<String>) -> Self {
        self.tag = Some(tag.into());
        self
    }
}

pub(super) fn service(
    node: &Node,
    options: &ParseOptions,
    errors: &mut SpecErrors,
) -> Option<ServiceManifest> {
    let before = errors.0.len();
    let mut fields = Fields::new("", node, errors);
    fields.ignore(&["apiVersion", "kind", "status"]);
    let metadata = Metadata::read("metadata", fields.take("metadata").unwrap_or(&Node::Null), errors);
    let namespace = metadata.namespace.clone().unwrap_or_else(|| options.namespace.clone());
    service_name(&metadata, errors);

    let mut spec = Fields::new("spec", fields.take("spec").unwrap_or(&Node::Null), errors);
    fields.finish(errors);
    let template = spec.take("template");
    if template.is_none() {
        errors.push("spec.template", "", "missing: what the revision is");
    }
    let mut template = Fields::new("spec.template", template.unwrap_or(&Node::Null), errors);
    let template_metadata =
        Metadata::read("spec.template.metadata", template.take("metadata").unwrap_or(&Node::Null), errors);
    let template_spec = template.take("spec").unwrap_or(&Node::Null);
    if let Some(node) = template.take("containers") {
        errors.push(
            "spec.template.containers",
            node.shown(),
            "belongs one level deeper: spec.template.spec.containers",
        );
    }
    template.finish(errors);
    if let Some(name) = &template_metadata.name
        && !metadata.name.as_ref().is_some_and(|service| is_revision_of(name, service))
    {
        let rule = revision_rule(metadata.name.as_deref().unwrap_or("name"));
        errors.push("spec.template.metadata.name", name, rule);
    }

    let annotations = Annotations::new(&metadata, &template_metadata, errors);
    let mut pod = Pod::read(template_spec, annotations.name_code(), errors);
    let traffic_path = spec.at("traffic");
    let targets = spec.list("traffic", errors);
    let traffic = targets.map(|items| traffic(&traffic_path, &items, metadata.name.as_deref(), errors));
    spec.finish(errors);

    let cluster_local = visibility(&metadata, errors);
    let rollout = duration(&metadata, keys::ROLLOUT_DURATION, errors).unwrap_or_default();
    let Routing { affinity, placeholder, no_wake, routes, quota, plan, mirror, faults } =
        Routing::read(|name| annotations.get(name), rollout, errors);
    let container = std::mem::take(&mut pod.container);
    let image = container.image.clone();
    let source = annotations.source.clone().or_else(|| image.map(Source::Image));
    let runtime = annotations.runtime(errors);
    let mut revision = RevisionSpec::new(runtime, source.unwrap_or(Source::Image(String::new())));
    annotations.fill(&mut revision, &container, errors);
    let serving = pod.serving;
    fill(&mut revision, container, pod, errors);
    match scaling_from_annotations(
        &template_metadata.annotations,
        revision.concurrency,
        &options.autoscaler,
        options.fidelity,
        options.scalers.as_ref(),
    ) {
        Ok(scaling) => revision.scaling = scaling,
        Err(scaling) => {
            for mut error in scaling.0 {
                error.field = join("spec.template.metadata.annotations", &error.field);
                errors.0.push(error);
            }
        }
    }
    if errors.0.len() == before
        && let Err(invalid) = revision.validate()
    {
        errors.extend_under("spec.template.spec", invalid);
    }
    let name = metadata.name?;
    if errors.0.len() > before {
        return None;
    }
    Some(ServiceManifest {
        namespace,
        name,
        labels: metadata.labels,
        annotations: metadata.annotations,
        cluster_local,
        affinity,
        placeholder,
        no_wake,
        routes,
        mirror,
        faults,
        quota,
        revision: template_metadata.name,
        template_labels: template_metadata.labels,
        template_annotations: template_metadata.annotations,
        spec: revision,
        traffic,
        rollout,
        plan,
        serving,
        author: None,
        document: Some(Arc::new(node.without("status").into_json())),
    })
}

/// What Kubernetes calls `ObjectMeta`.
pub(super) struct Metadata {
    pub(super) path: &'static str,
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
}

impl Metadata {
    pub(super) fn read(path: &'static str, node: &Node, errors: &mut SpecErrors) -> Self {
        let mut fields = Fields::new(path, node, errors);
        let name = fields.string("name", errors).filter(|name| !name.is_empty()).map(str::to_owned);
        let namespace = fields.string("namespace", errors).filter(|name| !name.is_empty()).map(str::to_owned);
        if let Some(namespace) = &namespace
            && !is_label(namespace)
        {
            errors.push(fields.at("namespace"), namespace, LABEL);
        }
        let labels = fields.string_map("labels", errors);
        let annotations = fields.string_map("annotations", errors);
        let generate = fields.at("generateName");
        if let Some(node) = fields.take("generateName") {
            errors.push(generate, node.shown(), "names are not generated; give metadata.name");
        }
        // What an API server adds to what it gives out.
        fields.ignore(&[
            "creationTimestamp",
            "deletionGracePeriodSeconds",
            "deletionTimestamp",
            "finalizers",
            "generation",
            "managedFields",
            "ownerReferences",
            "resourceVersion",
            "selfLink",
            "uid",
        ]);
        fields.finish(errors);
        Self { path, name, namespace, labels, annotations }
    }

    pub(super) fn annotation_path(&self, name: &str) -> String {
        join(&join(self.path, "annotations"), name)
    }
}

fn service_name(metadata: &Metadata, errors: &mut SpecErrors) {
    match &metadata.name {
        None => {
            if !errors.0.iter().any(|error| error.field == "metadata.name") {
                errors.push("metadata.name", "", "missing: the name of the service");
            }
        }
        Some(name) if !is_service_name(name) => errors.push("metadata.name", name, SERVICE_NAME),
        Some(_) => {}
    }
}

fn visibility(metadata: &Metadata, errors: &mut SpecErrors) -> bool {
    let mut local = false;
    for label in keys::VISIBILITY {
        match metadata.labels.get(label).map(String::as_str) {
            None => {}
            Some("cluster-local") => local = true,
            Some(other) => {
                errors.push(join("metadata.labels", label), other, "must be cluster-local, or be left out");
            }
        }
    }
    local
}

fn duration(metadata: &Metadata, name: &str, errors: &mut SpecErrors) -> Option<Duration> {
    let text = metadata.annotations.get(name)?;
    let parsed =
        parse_duration(text).ok().and_then(|nanos| u64::try_from(nanos).ok()).map(Duration::from_nanos);
    if parsed.is_none() {
        errors.push(
            metadata.annotation_path(name),
            text,
            "must be a duration such as 30s or 1m30s, not negative",
        );
    }
    parsed
}

/// The annotations of this platform, of the service and of the template together.
struct Annotations<'a> {
    service: &'a Metadata,
    template: &'a Metadata,
    source: Option<Source>,
}

impl<'a> Annotations<'a> {
    fn new(service: &'a Metadata, template: &'a Metadata, errors: &mut SpecErrors) -> Self {
        for name in common(&service.annotations, &template.annotations) {
            if name.starts_with(own::PREFIX) && service.annotations[name] != template.annotations[name] {
                let problem = format!("contradicts {}", template.annotation_path(name));
                errors.push(service.annotation_path(name), &service.annotations[name], problem);
            }
        }
        for (name, value) in &service.annotations {
            if name.starts_with("autoscaling.knative.dev/") || own::is_scaling(name) {
                errors.push(
                    service.annotation_path(name),
                    value,
                    "belongs to the template: spec.template.metadata.annotations",
                );
            }
        }
        let mut annotations = Self { service, template, source: None };
        let package = annotations.get(own::PACKAGE).and_then(|(path, text)| package(&path, text, errors));
        let function = annotations.get(own::FUNCTION).map(|(path, text)| {
            if text.is_empty() {
                errors.push(path.clone(), text, "must name a function that the host registered");
            }
            if annotations.get(own::PACKAGE).is_some() {
                errors.push(path, text, format!("contradicts {}: give one of the two", own::PACKAGE));
            }
            Source::Function(text.to_owned())
        });
        annotations.source = package.or(function);
        annotations
    }

    /// Whether they say where the code is, rightly or wrongly.
    fn name_code(&self) -> bool {
        self.get(own::PACKAGE).is_some() || self.get(own::FUNCTION).is_some()
    }

    /// The annotation, that of the template first, with its path.
    fn get(&self, name: &str) -> Option<(String, &'a str)> {
        [self.template, self.service].into_iter().find_map(|metadata| {
            Some((metadata.annotation_path(name), metadata.annotations.get(name)?.as_str()))
        })
    }

    /// The runtime that is asked for; empty: the one that accepts the spec.
    fn runtime(&self, errors: &mut SpecErrors) -> String {
        if let Some((path, text)) = self.get(own::RUNTIME) {
            if !is_label(text) {
                errors.push(path, text, "must name a runtime, such as process or wasm");
            }
            return text.to_owned();
        }
        String::new()
    }

    /// What the annotations say about the revision.
    fn fill(&self, spec: &mut RevisionSpec, container: &Container, errors: &mut SpecErrors) {
        if let Some((path, text)) = self.get(own::COMMAND) {
            match words::command(text) {
                Ok(command) => spec.command = command,
                Err(problem) => errors.push(&path, text, problem),
            }
            if !container.command.is_empty() {
                let at = join(&container.path, "command");
                errors.push(
                    at,
                    container.command.join(" "),
                    format!("contradicts the annotation {}", own::COMMAND),
                );
            }
        }
        if let Some((path, text)) = self.get(own::PORT) {
            match text.parse::<u16>() {
                Ok(port) if port != 0 => spec.port = Some(port),
                _ => errors.push(path, text, "must be a port from 1 to 65535"),
            }
        }
        if let Some((path, text)) = self.get(own::QUEUE_LIMIT) {
            match text.parse::<u32>() {
                Ok(limit) if limit > 0 => spec.queue_limit = limit,
                _ => errors.push(path, text, "must be a whole number, at least 1"),
            }
        }
        for (name, timeout) in
            [(own::START_TIMEOUT, &mut spec.timeouts.start), (own::STOP_GRACE, &mut spec.timeouts.stop_grace)]
        {
            if let Some((path, text)) = self.get(name) {
                match parse_duration(text).ok().and_then(|nanos| u64::try_from(nanos).ok()) {
                    Some(nanos) if nanos > 0 || name == own::STOP_GRACE => {
                        *timeout = Duration::from_nanos(nanos)
                    }
                    _ => errors.push(path, text, "must be a duration such as 10s, longer than nothing"),
                }
            }
        }
        for metadata in [self.service, self.template] {
            for (name, value) in &metadata.annotations {
                let read_here = own::OF_SERVICE.contains(&name.as_str()) || own::is_scaling(name);
                if name.starts_with(own::PREFIX) && !read_here {
                    spec.options.insert(name.clone(), value.clone());
                }
            }
        }
    }
}

/// A path, or a `file:` URL.
fn package(field: &str, text: &str, errors: &mut SpecErrors) -> Option<Source> {
    let mut refuse = |problem: &str| {
        errors.push(field, text, problem);
        None
    };
    if text.trim().is_empty() {
        return refuse("must be a path or a file: URL");
    }
    if text.contains('\0') {
        return refuse("must hold no NUL");
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        let path = text.strip_prefix("file:").unwrap_or(text);
        return Some(Source::Path(PathBuf::from(path)));
    };
    if !scheme.eq_ignore_ascii_case("file") {
        return refuse("must be a path or a file: URL; download it first");
    }
    let Some((host, _)) = rest.split_once('/') else {
        return refuse("the URL has no path: write file:///path");
    };
    if !(host.is_empty() || host.eq_ignore_ascii_case("localhost")) {
        return refuse("must be a file of this host: write file:///path");
    }
    match percent_encoding::percent_decode_str(&rest[host.len()..]).decode_utf8() {
        Ok(path) if !path.contains('\0') => Some(Source::Path(PathBuf::from(path.into_owned()))),
        _ => refuse("must be UTF-8 without NUL when decoded"),
    }
}

/// `spec.template.spec`.
struct Pod {
    container: Container,
    serving: usize,
    /// What the Pod says beside that container.
    spec: ContainerSpec,
    concurrency: u32,
    timeout: Option<Duration>,
    response_start: Option<Duration>,
    idle: Option<Duration>,
}

impl Pod {
    fn read(node: &Node, has_source: bool, errors: &mut SpecErrors) -> Self {
        let mut fields = Fields::new(POD, node, errors);
        let mut spec = ContainerSpec::default();
        let concurrency = fields.integer("containerConcurrency", 0..=MAX_CONCURRENCY, errors).unwrap_or(0);
        let seconds = |name: &'static str, fields: &mut Fields<'_>, errors: &mut SpecErrors| {
            fields
                .integer(name, 0..=MAX_TIMEOUT_SECONDS, errors)
                .and_then(|seconds| u64::try_from(seconds).ok())
                .filter(|seconds| *seconds > 0)
                .map(Duration::from_secs)
        };
        let timeout = seconds("timeoutSeconds", &mut fields, errors);
        let response_start = seconds("responseStartTimeoutSeconds", &mut fields, errors);
        let idle = seconds("idleTimeoutSeconds", &mut fields, errors);
        let whole = timeout.unwrap_or(Duration::from_secs(300));
        for (name, part) in [("responseStartTimeoutSeconds", response_start), ("idleTimeoutSeconds", idle)] {
            if let Some(part) = part
                && part > whole
            {
                let problem = format!("contradicts timeoutSeconds: at most {}", whole.as_secs());
                errors.push(fields.at(name), part.as_secs(), problem);
            }
        }
        let containers_path = fields.at("containers");
        let items = fields.list("containers", errors).unwrap_or_default();
        let several = items.len() > 1;
        let has_ports =
            |node: &Node| matches!(node.get("ports"), Some(Node::List(ports)) if !ports.is_empty());
        let mut containers: Vec<Container> = items
            .into_iter()
            .map(|(path, node)| pod::container(path, node, several && !has_ports(node), errors))
            .collect();
        if containers.is_empty() && !has_source {
            let problem = "missing: give one container with an image, or the annotation sas.dev/package";
            if !errors
                .0
                .iter()
                .any(|error| error.field == containers_path || error.field == "spec.template.containers")
            {
                errors.push(&containers_path, "", problem);
            }
        }
        let serving = Self::serving(&containers_path, &containers, errors);
        for (at, container) in containers.iter().enumerate() {
            if container.image.is_none() && !(has_source && at == serving) {
                let problem = "missing: an image, or the annotation sas.dev/package";
                errors.push(join(&container.path, "image"), "", problem);
            }
        }
        let at = fields.at("volumes");
        let volumes = fields.list("volumes", errors).unwrap_or_default();
        spec.volumes = pod::volumes(&volumes, &mut spec.other, errors);
        let init = fields.list("initContainers", errors).unwrap_or_default();
        let mut init: Vec<Container> =
            init.into_iter().map(|(path, node)| pod::container(path, node, false, errors)).collect();
        let known: Vec<&str> = volumes.iter().filter_map(|(_, node)| node.get("name")?.text()).collect();
        for container in containers.iter().chain(&init) {
            for (index, mount) in container.mounts.iter().enumerate() {
                if !known.contains(&mount.volume.as_str()) {
                    let field = format!("{}.volumeMounts[{index}].name", container.path);
                    errors.push(field, &mount.volume, format!("no volume of that name is in {at}"));
                }
            }
        }
        let at = fields.at("securityContext");
        let common = fields
            .take("securityContext")
            .map(|node| pod::security(at, node, &mut spec.other, errors))
            .unwrap_or_default();
        for container in containers.iter_mut().chain(&mut init) {
            inherit(&mut container.security, &common);
            spec.other.append(&mut container.other);
        }
        for container in &init {
            if container.image.is_none() {
                errors.push(join(&container.path, "image"), "", "missing: an image");
            }
            if let Some(port) = container.port {
                let field = join(&container.path, "ports");
                errors.push(field, port.number, "an init container serves nothing; leave it out");
            }
            for (name, probe) in [
                ("livenessProbe", &container.liveness),
                ("readinessProbe", &container.readiness),
                ("startupProbe", &container.startup),
            ] {
                if probe.is_some() {
                    let problem = "an init container ends before anything is asked; leave it out";
                    errors.push(join(&container.path, name), "", problem);
                }
            }
        }
        spec.init = init.into_iter().map(companion).collect();
        let container = if containers.is_empty() { Container::default() } else { containers.remove(serving) };
        spec.sidecars = containers.into_iter().map(companion).collect();
        for (at, item) in fields.list("imagePullSecrets", errors).unwrap_or_default() {
            let mut inner = Fields::new(at, item, errors);
            spec.pull_secrets.extend(pod::required(&mut inner, "name", errors).map(str::to_owned));
            inner.finish(errors);
        }
        for name in [
            "affinity",
            "dnsConfig",
            "dnsPolicy",
            "hostAliases",
            "hostIPC",
            "hostNetwork",
            "hostPID",
            "hostUsers",
            "nodeSelector",
            "priorityClassName",
            "runtimeClassName",
            "schedulerName",
            "shareProcessNamespace",
            "tolerations",
            "topologySpreadConstraints",
        ] {
            let path = fields.at(name);
            if let Some(node) = fields.take(name) {
                pod::keep(&mut spec.other, &path, node);
            }
        }
        // They are about a cluster's own services and accounts; an instance meets none of these.
        fields.ignore(&["automountServiceAccountToken", "enableServiceLinks", "serviceAccountName"]);
        fields.finish(errors);
        Self {
            container,
            serving,
            spec,
            concurrency: u32::try_from(concurrency).unwrap_or(0),
            timeout,
            response_start,
            idle,
        }
    }

    /// The index of the container that takes the requests: the only one, or the one that has a port.
    fn serving(path: &str, containers: &[Container], errors: &mut SpecErrors) -> usize {
        if containers.len() <= 1 {
            return 0;
        }
        let with_port: Vec<usize> =
            (0..containers.len()).filter(|at| containers[*at].port.is_some()).collect();
        if with_port.len() != 1 {
            let problem =
                "of several containers exactly one must have ports: the one that takes the requests";
            errors.push(path, format!("{} of {} have ports", with_port.len(), containers.len()), problem);
        }
        with_port.first().copied().unwrap_or(0)
    }
}

/// What a Pod says for all of its containers, where one says nothing else.
fn inherit(security: &mut SecurityContext, common: &SecurityContext) {
    security.run_as_user = security.run_as_user.or(common.run_as_user);
    security.run_as_group = security.run_as_group.or(common.run_as_group);
    security.run_as_non_root = security.run_as_non_root.or(common.run_as_non_root);
    security.fs_group = common.fs_group;
    security.supplemental_groups.clone_from(&common.supplemental_groups);
    if security.seccomp_profile.is_none() {
        security.seccomp_profile.clone_from(&common.seccomp_profile);
    }
}

/// A container beside the one that takes the requests.
fn companion(container: Container) -> Companion {
    let mut out = Companion::new(container.name, container.image.unwrap_or_default());
    out.command = container.command;
    out.args = container.args;
    out.working_dir = container.working_dir;
    out.env = container.env;
    out.env_from = container.env_from;
    out.mounts = container.mounts;
    out.security = container.security;
    out.resources = container.resources;
    out.startup = container.startup;
    out.readiness = container.readiness;
    out.liveness = container.liveness;
    out
}

/// What the container says about the revision.
fn fill(spec: &mut RevisionSpec, container: Container, pod: Pod, errors: &mut SpecErrors) {
    let mut own = pod.spec;
    spec.concurrency = pod.concurrency;
    if let Some(timeout) = pod.timeout {
        spec.timeouts.request = timeout;
    }
    spec.timeouts.response_start = pod.response_start.unwrap_or(spec.timeouts.request);
    spec.timeouts.idle = pod.idle.unwrap_or_default();
    if spec.command.is_empty() {
        spec.command = container.command;
    }
    spec.args = container.args;
    let image = matches!(spec.source, Source::Image(_));
    if let Some(dir) = container.working_dir {
        if dir.starts_with('/') {
            own.working_dir = Some(dir);
        } else if matches!(&spec.source, Source::Image(name) if !name.is_empty()) {
            errors.push(join(&container.path, "workingDir"), &dir, "must be an absolute path in the image");
        } else if dir.split('/').any(|part| part == "..") {
            errors.push(join(&container.path, "workingDir"), &dir, "must stay inside of the package");
        } else {
            spec.working_dir = Some(dir);
        }
    }
    own.env_from = container.env_from;
    own.mounts = container.mounts;
    own.security = container.security;
    spec.env = container.env;
    if let Some(port) = container.port {
        spec.protocol = port.protocol;
        // In a container every instance has all ports to itself. Packages share the host's, so they are given one in
        // own::PORT, as Knative's contract has it, and insist on one only by annotation.
        if image && spec.port.is_none() {
            spec.port = Some(port.number);
        }
    }
    spec.resources = container.resources;
    if let Some(startup) = &container.startup {
        // The startup probe's budget is how long a start may take.
        let tries = startup.period.max(Duration::from_secs(1)).saturating_mul(startup.failure_threshold);
        spec.timeouts.start = startup.initial_delay.saturating_add(tries).max(Duration::from_secs(1));
    }
    spec.startup = container.startup;
    spec.readiness = container.readiness;
    spec.liveness = container.liveness;
    if own != ContainerSpec::default() {
        spec.container = Some(Box::new(own));
    }
}

/// Checks `spec.traffic`, or the body of a change of traffic.
pub(crate) fn traffic(
    path: &str,
    items: &[(String, &Node)],
    service: Option<&str>,
    errors: &mut SpecErrors,
) -> Vec<TrafficTarget> {
    let before = errors.0.len();
    let mut targets: Vec<TrafficTarget> = Vec::with_capacity(items.len());
    for (at, item) in items {
        let mut fields = Fields::new(at.clone(), item, errors);
        let latest = fields.boolean("latestRevision", errors);
        let revision_name =
            fields.string("revisionName", errors).filter(|name| !name.is_empty()).map(str::to_owned);
        match (&revision_name, latest) {
            (Some(name), Some(true)) => {
                errors.push(
                    fields.at("latestRevision"),
                    "true",
                    format!("contradicts revisionName {name:?}"),
                );
            }
            (None, Some(false)) => {
                errors.push(fields.at("revisionName"), "", "missing: latestRevision is false");
            }
            _ => {}
        }
        if let Some(name) = &revision_name
            && !is_label(name)
        {
            errors.push(fields.at("revisionName"), name, LABEL);
        }
        let percent = fields.integer("percent", 0..=100, errors).unwrap_or(0);
        let tag = fields.string("tag", errors).filter(|tag| !tag.is_empty()).map(str::to_owned);
        if let Some(tag) = &tag {
            if !is_label(tag) {
                errors.push(fields.at("tag"), tag, LABEL);
            } else if service.is_some_and(|service| tag.len() + 1 + service.len() > 63) {
                errors.push(
                    fields.at("tag"),
                    tag,
                    "tag and service name together must have at most 62 letters",
                );
            }
            if targets.iter().any(|other| other.tag.as_ref() == Some(tag)) {
                errors.push(fields.at("tag"), tag, "is given twice");
            }
        }
        fields.ignore(&["url"]);
        let configuration = fields.at("configurationName");
        if let Some(node) = fields.take("configurationName") {
            errors.push(
                configuration,
                node.shown(),
                "a service's traffic goes to its own revisions; leave it out",
            );
        }
        fields.finish(errors);
        let percent = u32::try_from(percent).unwrap_or(0);
        targets.push(TrafficTarget { revision_name, percent, tag });
    }
    let sum: u32 = targets.iter().map(|target| target.percent).sum();
    if errors.0.len() == before && sum != 100 {
        errors.push(path, format!("{sum} %"), "the percents must add up to 100");
    }
    targets
}

//! From a revision to a Pod, as the JSON that is sent.

use std::{collections::BTreeMap, time::Duration};

use sas_core::{
    Companion, ContainerSpec, EnvFrom, EnvValue, Error, ErrorKind, InstanceId, Mount, Probe, ProbeAction,
    Resources, Result, RevisionName, RevisionSpec, SecurityContext, Source, TenantKey, Volume, VolumeSource,
};
use serde_json::{Map, Value, json};

use crate::config::KubernetesConfig;

/// The container that takes the requests.
pub(crate) const MAIN: &str = "user-container";
/// The port of an instance whose spec names none.
pub(crate) const DEFAULT_PORT: u16 = 8080;
/// The platform whose Pod it is.
pub(crate) const PLATFORM: &str = "sas.dev/platform";
/// The life of the host that made it.
pub(crate) const GENERATION: &str = "sas.dev/generation";

/// What is said of a Pod beside its revision's spec.
#[derive(Clone, Debug)]
pub(crate) struct About<'a> {
    pub(crate) id: InstanceId,
    pub(crate) name: &'a RevisionName,
    pub(crate) tenant: TenantKey,
    pub(crate) generation: &'a str,
    /// The Lease of this host: what belongs to it goes with it.
    pub(crate) owner: Option<&'a Value>,
    /// The names of variables whose values are in the Pod's own secret.
    pub(crate) secrets: &'a [String],
}

/// The name of an instance's Pod: at most 63 letters, unlike that of any other host's.
pub(crate) fn name(name: &RevisionName, generation: &str, id: InstanceId) -> String {
    let tail = format!("{generation}-{:x}", id.0);
    let mut head: String = name
        .revision()
        .to_ascii_lowercase()
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
        .collect();
    head.truncate(63 - 1 - tail.len());
    let head = head.trim_matches('-');
    // A name begins with a letter in some of the places where the cluster uses it.
    if head.starts_with(|letter: char| letter.is_ascii_alphabetic()) {
        format!("{head}-{tail}")
    } else {
        format!("i{tail}")
    }
}

/// The labels of all that belongs to a host's life.
pub(crate) fn labels(config: &KubernetesConfig, generation: &str) -> Map<String, Value> {
    let mut labels = Map::new();
    labels.insert(PLATFORM.into(), json!(config.platform));
    labels.insert(GENERATION.into(), json!(generation));
    labels
}

/// The text as the value of a label: others are left out.
fn label(text: &str) -> Option<&str> {
    let fits = text.len() <= 63
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && text.starts_with(|letter: char| letter.is_ascii_alphanumeric())
        && text.ends_with(|letter: char| letter.is_ascii_alphanumeric());
    fits.then_some(text)
}

/// Whole seconds, and at least one: without any, the cluster forgets a Pod before its programs have ended.
pub(crate) fn grace_seconds(grace: Duration) -> u32 {
    let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(u32::MAX).clamp(1, i32::MAX as u32)
}

/// The Pod of an instance.
///
/// # Errors
/// `InvalidSpec` for fields of a Pod whose JSON or path is none.
pub(crate) fn pod(config: &KubernetesConfig, spec: &RevisionSpec, about: &About<'_>) -> Result<Value> {
    let Source::Image(image) = &spec.source else {
        let what = format!("source: {:?}: the kubernetes runtime takes images", spec.source.to_string());
        return Err(Error::new(ErrorKind::InvalidSpec, "prepare", what));
    };
    let none = ContainerSpec::default();
    let asked = spec.container.as_deref().unwrap_or(&none);
    let name = name(about.name, about.generation, about.id);
    let port = spec.port.unwrap_or(DEFAULT_PORT);

    let mut env = variables(&spec.env, |variable| {
        about.secrets.iter().any(|known| known == variable).then(|| name.clone())
    });
    env.extend(
        [
            ("PORT", port.to_string().as_str()),
            ("K_SERVICE", about.name.service()),
            ("K_CONFIGURATION", about.name.service()),
            ("K_REVISION", about.name.revision()),
        ]
        .map(|(name, value)| json!({"name": name, "value": value})),
    );
    let mut main = container(
        config,
        &Parts {
            name: MAIN,
            image,
            command: &spec.command,
            args: &spec.args,
            working_dir: asked.working_dir.as_deref(),
            env,
            env_from: &asked.env_from,
            mounts: &asked.mounts,
            security: &asked.security,
            resources: &spec.resources,
        },
    );
    main["ports"] = json!([{"containerPort": port}]);
    let mut containers = vec![main];
    containers.extend(asked.sidecars.iter().map(|companion| beside(config, companion)));
    let init: Vec<Value> = asked.init.iter().map(|companion| beside(config, companion)).collect();

    let overlay = &config.overlay;
    let mut labels = labels(config, about.generation);
    labels.insert("sas.dev/instance".into(), json!(about.id.to_string()));
    labels.insert("sas.dev/tenant".into(), json!(about.tenant.0.to_string()));
    for (key, text) in [
        ("sas.dev/namespace", about.name.namespace()),
        ("sas.dev/service", about.name.service()),
        ("sas.dev/revision", about.name.revision()),
    ] {
        labels.extend(label(text).map(|text| (key.to_owned(), json!(text))));
    }
    labels.extend(overlay.labels.iter().map(|(key, value)| (key.clone(), json!(value))));
    let pull: Vec<Value> = overlay
        .image_pull_secrets
        .iter()
        .chain(&asked.pull_secrets)
        .map(|name| json!({ "name": name }))
        .collect();
    let mut tolerations = overlay.tolerations.clone();
    // What the cluster adds of its own otherwise, with five minutes.
    let lost = config.node_lost_after.as_secs();
    tolerations.extend(["not-ready", "unreachable"].map(|taint| {
        json!({"key": format!("node.kubernetes.io/{taint}"), "operator": "Exists", "effect": "NoExecute",
               "tolerationSeconds": lost})
    }));
    let mut pod_security = json!({"seccompProfile": {"type": "RuntimeDefault"}});
    set(&mut pod_security, "fsGroup", asked.security.fs_group.map(|value| json!(value)));
    set(&mut pod_security, "supplementalGroups", some(&asked.security.supplemental_groups));

    let mut body = json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": grace_seconds(spec.timeouts.stop_grace),
        "securityContext": pod_security,
        "tolerations": tolerations,
        "containers": containers,
    });
    set(&mut body, "initContainers", some(&init));
    set(&mut body, "volumes", some(&asked.volumes.iter().map(volume).collect::<Vec<_>>()));
    set(&mut body, "imagePullSecrets", some(&pull));
    set(&mut body, "runtimeClassName", overlay.runtime_class_name.as_ref().map(|value| json!(value)));
    set(&mut body, "priorityClassName", overlay.priority_class_name.as_ref().map(|value| json!(value)));
    set(&mut body, "serviceAccountName", overlay.service_account_name.as_ref().map(|value| json!(value)));
    if !overlay.node_selector.is_empty() {
        body["nodeSelector"] = json!(overlay.node_selector);
    }
    for (path, text) in &asked.other {
        lay_over(&mut body, path, text)?;
    }
    let mut metadata = json!({"name": name, "namespace": config.namespace, "labels": labels});
    set(&mut metadata, "annotations", (!overlay.annotations.is_empty()).then(|| json!(overlay.annotations)));
    set(&mut metadata, "ownerReferences", about.owner.map(|owner| json!([owner])));
    Ok(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": body}))
}

/// The secret of an instance, by the name of its Pod. Its values are read by the cluster when the container starts.
pub(crate) fn secret<'a>(
    config: &KubernetesConfig,
    name: &str,
    generation: &str,
    owner: Option<&Value>,
    values: impl Iterator<Item = (&'a str, &'a str)>,
) -> Value {
    let values: Map<String, Value> = values.map(|(key, value)| (key.to_owned(), json!(value))).collect();
    let mut metadata =
        json!({"name": name, "namespace": config.namespace, "labels": labels(config, generation)});
    set(&mut metadata, "ownerReferences", owner.map(|owner| json!([owner])));
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "immutable": true,
           "stringData": values})
}

fn set(object: &mut Value, field: &str, value: Option<Value>) {
    if let Some(value) = value {
        object[field] = value;
    }
}

fn some<T: serde::Serialize>(list: &[T]) -> Option<Value> {
    (!list.is_empty()).then(|| json!(list))
}

/// Sets a field of the Pod's spec by its path, such as `nodeSelector` or `containers[0].lifecycle`. Mappings and lists that
/// the operator has set are added to, and win where both say something.
fn lay_over(body: &mut Value, path: &str, text: &str) -> Result<()> {
    let wrong = |problem: &str| {
        let what = format!("container.other[{path}]: {text}: {problem}");
        Error::new(ErrorKind::InvalidSpec, "prepare", what)
    };
    let value: Value =
        serde_json::from_str(text).map_err(|_| wrong("must be the JSON of the field's value"))?;
    let mut at = body;
    let mut parts = path.split('.').peekable();
    while let Some(part) = parts.next() {
        let (field, index) = match part.split_once('[') {
            Some((field, rest)) => {
                let index: Option<usize> = rest.strip_suffix(']').and_then(|number| number.parse().ok());
                (field, Some(index.ok_or_else(|| wrong("no such path in a Pod's spec"))?))
            }
            None => (part, None),
        };
        if parts.peek().is_none() && index.is_none() {
            match (at.get_mut(field), value) {
                (Some(Value::Object(own)), Value::Object(theirs)) => {
                    for (key, value) in theirs {
                        own.entry(key).or_insert(value);
                    }
                }
                (Some(Value::Array(own)), Value::Array(theirs)) => own.extend(theirs),
                (Some(_), _) => return Err(wrong("the operator of this platform has set it; leave it out")),
                (None, value) => at[field] = value,
            }
            return Ok(());
        }
        let next = match index {
            Some(index) => at.get_mut(field).and_then(|list| list.get_mut(index)),
            None => at.get_mut(field),
        };
        at = next.ok_or_else(|| wrong("no such path in the Pod of this service"))?;
    }
    Err(wrong("no such path in a Pod's spec"))
}

/// What a container is made of, whichever of a Pod's it is.
struct Parts<'a> {
    name: &'a str,
    image: &'a str,
    command: &'a [String],
    args: &'a [String],
    working_dir: Option<&'a str>,
    env: Vec<Value>,
    env_from: &'a [EnvFrom],
    mounts: &'a [Mount],
    security: &'a SecurityContext,
    resources: &'a Resources,
}

fn container(config: &KubernetesConfig, parts: &Parts<'_>) -> Value {
    let mut container = json!({
        "name": parts.name,
        "image": parts.image,
        // The last words of a program that fails are in its status then.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": security(config, parts.security),
    });
    set(&mut container, "command", some(parts.command));
    set(&mut container, "args", some(parts.args));
    set(&mut container, "workingDir", parts.working_dir.map(|value| json!(value)));
    set(&mut container, "env", some(&parts.env));
    let from: Vec<Value> = parts.env_from.iter().filter_map(env_from).collect();
    set(&mut container, "envFrom", some(&from));
    let mounts: Vec<Value> = parts.mounts.iter().map(mount).collect();
    set(&mut container, "volumeMounts", some(&mounts));
    set(&mut container, "resources", resources(parts.resources));
    container
}

fn beside(config: &KubernetesConfig, companion: &Companion) -> Value {
    let mut container = container(
        config,
        &Parts {
            name: &companion.name,
            image: &companion.image,
            command: &companion.command,
            args: &companion.args,
            working_dir: companion.working_dir.as_deref(),
            env: variables(&companion.env, |_| None),
            env_from: &companion.env_from,
            mounts: &companion.mounts,
            security: &companion.security,
            resources: &companion.resources,
        },
    );
    // The platform asks the container that takes the requests; the cluster asks the others.
    for (field, asked) in [
        ("startupProbe", &companion.startup),
        ("readinessProbe", &companion.readiness),
        ("livenessProbe", &companion.liveness),
    ] {
        set(&mut container, field, asked.as_ref().and_then(probe));
    }
    container
}

/// `secret_of` says in which secret of the Pod's own the value of a variable is.
fn variables(env: &BTreeMap<String, EnvValue>, secret_of: impl Fn(&str) -> Option<String>) -> Vec<Value> {
    let variable = |(name, value): (&String, &EnvValue)| match value {
        EnvValue::Literal(text) => Some(json!({"name": name, "value": text})),
        _ => secret_of(name).map(
            |secret| json!({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name}}}),
        ),
    };
    env.iter().filter_map(variable).collect()
}

fn env_from(from: &EnvFrom) -> Option<Value> {
    let (kind, name) = from.reference.split_once('/')?;
    let source = if kind == "secret" { "secretRef" } else { "configMapRef" };
    let mut object = Map::new();
    object.insert(source.to_owned(), json!({"name": name, "optional": from.optional}));
    if !from.prefix.is_empty() {
        object.insert("prefix".to_owned(), json!(from.prefix));
    }
    Some(Value::Object(object))
}

fn mount(mount: &Mount) -> Value {
    let mut object = json!({"name": mount.volume, "mountPath": mount.path, "readOnly": mount.read_only});
    set(&mut object, "subPath", mount.sub_path.as_ref().map(|value| json!(value)));
    object
}

fn volume(volume: &Volume) -> Value {
    let mut object = json!({"name": volume.name});
    match &volume.source {
        VolumeSource::EmptyDir { size_limit_bytes, memory } => {
            let mut dir = json!({});
            set(&mut dir, "sizeLimit", size_limit_bytes.map(|bytes| json!(bytes.to_string())));
            set(&mut dir, "medium", memory.then(|| json!("Memory")));
            object["emptyDir"] = dir;
        }
        VolumeSource::Claim { name, read_only } => {
            object["persistentVolumeClaim"] = json!({"claimName": name, "readOnly": read_only});
        }
        VolumeSource::Projected(sources) => {
            let sources: Vec<Value> = sources.iter().map(|source| files(source, true)).collect();
            object["projected"] = json!({ "sources": sources });
        }
        secret @ VolumeSource::Secret { .. } => object["secret"] = files(secret, false)["secret"].take(),
        other => object["configMap"] = files(other, false)["configMap"].take(),
    }
    object
}

/// The files of a secret or a configuration map, as a volume of its own or as a part of a projection, which has the mode at
/// each item.
fn files(source: &VolumeSource, projected: bool) -> Value {
    let (kind, name, items, mode, optional) = match source {
        VolumeSource::Secret { name, items, mode, optional } => ("secret", name, items, mode, optional),
        VolumeSource::ConfigMap { name, items, mode, optional } => ("configMap", name, items, mode, optional),
        _ => return Value::Null,
    };
    // The name of a secret is in another field where it is a volume of its own.
    let name_field = if kind == "secret" && !projected { "secretName" } else { "name" };
    let items: Vec<Value> = items
        .iter()
        .map(|(key, path)| {
            let mut item = json!({"key": key, "path": path});
            set(&mut item, "mode", mode.filter(|_| projected).map(|value| json!(value)));
            item
        })
        .collect();
    let mut files = json!({"optional": optional});
    files[name_field] = json!(name);
    set(&mut files, "items", some(&items));
    if !projected {
        set(&mut files, "defaultMode", mode.map(|value| json!(value)));
    }
    json!({ kind: files })
}

fn security(config: &KubernetesConfig, asked: &SecurityContext) -> Value {
    let mut security = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
    });
    if !asked.add_capabilities.is_empty() {
        security["capabilities"]["add"] = json!(asked.add_capabilities);
    }
    set(&mut security, "runAsUser", asked.run_as_user.map(|value| json!(value)));
    set(&mut security, "runAsGroup", asked.run_as_group.map(|value| json!(value)));
    let non_root = if config.allow_root { asked.run_as_non_root } else { Some(true) };
    set(&mut security, "runAsNonRoot", non_root.map(|value| json!(value)));
    set(&mut security, "readOnlyRootFilesystem", asked.read_only_root_filesystem.map(|value| json!(value)));
    security
}

fn resources(asked: &Resources) -> Option<Value> {
    let amounts = |cpu: Option<u32>, memory: Option<u64>| {
        let mut amounts = Map::new();
        amounts.extend(cpu.map(|millis| ("cpu".to_owned(), json!(format!("{millis}m")))));
        amounts.extend(memory.map(|bytes| ("memory".to_owned(), json!(bytes.to_string()))));
        (!amounts.is_empty()).then_some(Value::Object(amounts))
    };
    let limits = amounts(asked.cpu_limit_millis, asked.memory_limit_bytes);
    let requests = amounts(asked.cpu_request_millis, asked.memory_request_bytes);
    if limits.is_none() && requests.is_none() {
        return None;
    }
    let mut object = json!({});
    set(&mut object, "limits", limits);
    // Without requests the cluster takes the limits.
    set(&mut object, "requests", requests);
    Some(object)
}

/// A probe that the cluster asks. Its times are whole seconds there.
fn probe(asked: &Probe) -> Option<Value> {
    let seconds = |time: Duration| u32::try_from(time.as_secs() + u64::from(time.subsec_nanos() > 0)).ok();
    let port = |port: Option<u16>| port.unwrap_or(DEFAULT_PORT);
    let mut object = match &asked.action {
        ProbeAction::Tcp { port: at } => json!({"tcpSocket": {"port": port(*at)}}),
        ProbeAction::Http { path, port: at, headers } => {
            let headers: Vec<Value> =
                headers.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
            json!({"httpGet": {"path": path, "port": port(*at), "httpHeaders": headers}})
        }
        ProbeAction::Grpc { port: at, service } => {
            json!({"grpc": {"port": port(*at), "service": service.clone().unwrap_or_default()}})
        }
        ProbeAction::Exec { command } => json!({"exec": {"command": command}}),
        _ => return None,
    };
    set(&mut object, "initialDelaySeconds", seconds(asked.initial_delay).map(|value| json!(value)));
    set(&mut object, "periodSeconds", seconds(asked.period).map(|seconds| json!(seconds.max(1))));
    set(&mut object, "timeoutSeconds", seconds(asked.timeout).map(|seconds| json!(seconds.max(1))));
    object["successThreshold"] = json!(asked.success_threshold.max(1));
    object["failureThreshold"] = json!(asked.failure_threshold.max(1));
    Some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(config: &KubernetesConfig, spec: &RevisionSpec) -> Result<Value> {
        let name = RevisionName::new("default", "hello", "hello-00001");
        pod(
            config,
            spec,
            &About {
                id: InstanceId(0x2a),
                name: &name,
                tenant: TenantKey(7),
                generation: "0123456789",
                owner: None,
                secrets: &["TOKEN".to_owned()],
            },
        )
    }

    fn image() -> RevisionSpec {
        RevisionSpec::new("kubernetes", Source::Image("registry.example.com/app:1".into()))
    }

    #[test]
    fn names_are_those_of_hosts_in_dns_and_unlike_those_of_other_lives() {
        let long = RevisionName::new("default", "s", &"a".repeat(80));
        for (of, id, expected) in [
            (
                RevisionName::new("default", "hello", "hello-00001"),
                42,
                "hello-00001-0123456789-2a".to_owned(),
            ),
            (RevisionName::new("default", "s", "00001"), 1, "i0123456789-1".to_owned()),
            (RevisionName::new("default", "s", "Big.One-"), 1, "big-one-0123456789-1".to_owned()),
            (long, u64::MAX, format!("{}-0123456789-ffffffffffffffff", "a".repeat(35))),
        ] {
            let made = name(&of, "0123456789", InstanceId(id));
            assert_eq!(made, expected);
            assert!(made.len() <= 63);
        }
    }

    #[test]
    fn a_pod_has_no_more_rights_than_it_needs_and_is_never_restarted() {
        let pod = made(&KubernetesConfig::new("functions"), &image()).unwrap();
        let spec = &pod["spec"];
        assert_eq!(spec["restartPolicy"], "Never");
        assert_eq!(spec["automountServiceAccountToken"], false);
        assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let main = &spec["containers"][0];
        assert_eq!(main["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(main["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
        assert_eq!(main["ports"], json!([{"containerPort": 8080}]));
        assert!(main["env"].as_array().unwrap().contains(&json!({"name": "PORT", "value": "8080"})));
        let labels = &pod["metadata"]["labels"];
        assert_eq!(labels[PLATFORM], "sas");
        assert_eq!(labels[GENERATION], "0123456789");
        assert_eq!(labels["sas.dev/service"], "hello");
    }

    #[test]
    fn the_value_of_a_secret_is_in_no_pod() {
        let mut spec = image();
        spec.env.insert("PLAIN".into(), EnvValue::Literal("text".into()));
        spec.env.insert("TOKEN".into(), EnvValue::Secret("secret/app/token".into()));
        let pod = made(&KubernetesConfig::new("functions"), &spec).unwrap();
        let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
        let from = json!({"secretKeyRef": {"name": pod["metadata"]["name"], "key": "TOKEN"}});
        assert!(env.contains(&json!({"name": "TOKEN", "valueFrom": from})), "{env:?}");
        assert!(env.contains(&json!({"name": "PLAIN", "value": "text"})));
    }

    #[test]
    fn fields_of_the_service_are_laid_over_those_of_the_operator_which_win() {
        let mut config = KubernetesConfig::new("functions");
        config.overlay.node_selector.insert("pool".into(), "functions".into());
        config.overlay.runtime_class_name = Some("gvisor".into());
        let mut spec = image();
        let mut container = ContainerSpec::default();
        container.other.insert("nodeSelector".into(), r#"{"disk": "ssd", "pool": "system"}"#.into());
        container
            .other
            .insert("containers[0].lifecycle".into(), r#"{"preStop": {"sleep": {"seconds": 1}}}"#.into());
        spec.container = Some(Box::new(container.clone()));
        let pod = made(&config, &spec).unwrap();
        assert_eq!(pod["spec"]["nodeSelector"], json!({"disk": "ssd", "pool": "functions"}));
        assert_eq!(pod["spec"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"], 1);
        container.other.insert("runtimeClassName".into(), "\"runc\"".into());
        spec.container = Some(Box::new(container));
        let error = made(&config, &spec).unwrap_err();
        assert!(error.message.contains("runtimeClassName"), "{error}");
    }

    #[test]
    fn a_grace_is_at_least_one_whole_second() {
        for (grace, seconds) in [(0, 1), (1, 1), (300, 1), (1000, 1), (1001, 2)] {
            assert_eq!(grace_seconds(Duration::from_millis(grace)), seconds, "{grace} ms");
        }
    }
}

//! What Knative takes over from Kubernetes' containers: environment, probes, resources, ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sas_core::{
    EnvFrom, EnvValue, Mount, Probe, ProbeAction, Protocol, Resources, SecurityContext, SpecErrors, Volume,
    VolumeSource,
};

use super::tree::{Fields, Node, join};
use crate::parse_quantity;

/// The port that Knative assumes when a container names none.
pub(super) const DEFAULT_PORT: u16 = 8080;
/// Names that the runtime contract keeps for itself in every container.
const RESERVED_ENV: [&str; 3] = ["K_SERVICE", "K_CONFIGURATION", "K_REVISION"];
/// The name that it keeps for itself but in sidecars, which are told no port.
const PORT_ENV: &str = "PORT";
/// The name of the container that Knative adds of its own.
const RESERVED_CONTAINER: &str = "queue-proxy";
/// Where Knative lets nothing be mounted.
const RESERVED_PATHS: [&str; 6] = ["/", "/dev", "/dev/log", "/tmp", "/var", "/var/log"];

/// A container as written.
#[derive(Clone, Debug, Default)]
pub(super) struct Container {
    pub(super) path: String,
    pub(super) image: Option<String>,
    pub(super) command: Vec<String>,
    pub(super) args: Vec<String>,
    pub(super) working_dir: Option<String>,
    pub(super) env: BTreeMap<String, EnvValue>,
    pub(super) port: Option<Port>,
    pub(super) resources: Resources,
    pub(super) readiness: Option<Probe>,
    pub(super) liveness: Option<Probe>,
    pub(super) startup: Option<Probe>,
    pub(super) name: String,
    pub(super) env_from: Vec<EnvFrom>,
    pub(super) mounts: Vec<Mount>,
    pub(super) security: SecurityContext,
    /// What has no form of its own, by its path within the Pod's spec.
    pub(super) other: BTreeMap<String, String>,
}

/// The path of the Pod's spec in a manifest.
pub(super) const POD: &str = "spec.template.spec";

/// Whether a field says nothing.
pub(super) fn is_off(node: &Node) -> bool {
    match node {
        Node::Bool(false) => true,
        Node::List(items) => items.is_empty(),
        Node::Map(fields) => fields.is_empty(),
        _ => false,
    }
}

/// Keeps a field that has no form of its own, for the runtime to take or to refuse.
pub(super) fn keep(other: &mut BTreeMap<String, String>, path: &str, node: &Node) {
    if !is_off(node) {
        let path = path.strip_prefix(POD).and_then(|path| path.strip_prefix('.')).unwrap_or(path);
        other.insert(path.to_owned(), node.clone().into_json().to_string());
    }
}

/// A serving port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) protocol: Protocol,
}

/// Reads a container; a `sidecar` stands beside the one that takes the requests. What has no form of its own goes to
/// `other`.
pub(super) fn container(path: String, node: &Node, sidecar: bool, errors: &mut SpecErrors) -> Container {
    let mut fields = Fields::new(path.clone(), node, errors);
    let mut out = Container { path, ..Container::default() };
    if let Some(name) = fields.string("name", errors) {
        if !is_label(name) {
            errors.push(fields.at("name"), name, LABEL);
        } else if name == RESERVED_CONTAINER {
            errors.push(fields.at("name"), name, "is a reserved name; give the container another");
        }
        name.clone_into(&mut out.name);
    }
    out.image =
        fields.string("image", errors).map(str::trim).filter(|image| !image.is_empty()).map(str::to_owned);
    out.command = fields.strings("command", errors).unwrap_or_default();
    out.args = fields.strings("args", errors).unwrap_or_default();
    out.working_dir = fields.string("workingDir", errors).filter(|dir| !dir.is_empty()).map(str::to_owned);
    let env = fields.at("env");
    if let Some(items) = fields.list("env", errors) {
        out.env = environment(&env, &items, sidecar, errors);
    }
    let ports = fields.at("ports");
    if let Some(items) = fields.list("ports", errors) {
        out.port = port(&ports, &items, errors);
    }
    if let Some(node) = fields.take("resources") {
        out.resources = resources(fields.at("resources"), node, errors);
    }
    let serving = out.port.map_or(DEFAULT_PORT, |port| port.number);
    for (name, probe) in [
        ("readinessProbe", &mut out.readiness),
        ("livenessProbe", &mut out.liveness),
        ("startupProbe", &mut out.startup),
    ] {
        let path = fields.at(name);
        if let Some(node) = fields.take(name) {
            *probe = read_probe(&path, node, name, serving, errors);
        }
    }
    let env_from = fields.list("envFrom", errors).unwrap_or_default();
    out.env_from = env_from.into_iter().filter_map(|(at, item)| variables(at, item, errors)).collect();
    let mounts = fields.list("volumeMounts", errors).unwrap_or_default();
    for (at, item) in mounts {
        if let Some(mount) = mount(at.clone(), item, &mut out.other, errors) {
            if out.mounts.iter().any(|other| other.path == mount.path) {
                errors.push(join(&at, "mountPath"), &mount.path, "is mounted twice");
            }
            out.mounts.push(mount);
        }
    }
    let at = fields.at("securityContext");
    if let Some(node) = fields.take("securityContext") {
        out.security = security(at, node, &mut out.other, errors);
    }
    for name in ["volumeDevices", "lifecycle", "stdin", "stdinOnce", "tty"] {
        let path = fields.at(name);
        if let Some(node) = fields.take(name) {
            keep(&mut out.other, &path, node);
        }
    }
    // They are about pulling an image and about the words of a dead container; a package has neither.
    fields.ignore(&["imagePullPolicy", "terminationMessagePath", "terminationMessagePolicy"]);
    fields.finish(errors);
    out
}

/// An item of `envFrom`.
fn variables(path: String, node: &Node, errors: &mut SpecErrors) -> Option<EnvFrom> {
    let before = errors.0.len();
    let mut fields = Fields::new(path.clone(), node, errors);
    let prefix = fields.string("prefix", errors).unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for (field, kind) in [("secretRef", "secret"), ("configMapRef", "configmap")] {
        let at = fields.at(field);
        let Some(node) = fields.take(field) else { continue };
        let mut inner = Fields::new(at, node, errors);
        let name = object_name(&mut inner, "name", errors);
        let optional = inner.boolean("optional", errors).unwrap_or(false);
        inner.finish(errors);
        if let Some(name) = name {
            let mut from = EnvFrom::new(format!("{kind}/{name}"));
            (from.prefix, from.optional) = (prefix.clone(), optional);
            found.push(from);
        }
    }
    fields.finish(errors);
    if errors.0.len() == before && found.len() != 1 {
        errors.push(path, node.shown(), "must have one of secretRef and configMapRef");
    }
    if errors.0.len() > before { None } else { found.pop() }
}

/// The name of a secret or a configuration map, which becomes a part of a reference.
fn object_name(fields: &mut Fields<'_>, field: &'static str, errors: &mut SpecErrors) -> Option<String> {
    let name = required(fields, field, errors)?;
    if name.contains('/') || name.chars().any(char::is_control) {
        errors.push(fields.at(field), name, "must hold no slash and no control character");
        return None;
    }
    Some(name.to_owned())
}

fn mount(
    path: String,
    node: &Node,
    other: &mut BTreeMap<String, String>,
    errors: &mut SpecErrors,
) -> Option<Mount> {
    let before = errors.0.len();
    let mut fields = Fields::new(path, node, errors);
    let volume = required(&mut fields, "name", errors);
    let target = required(&mut fields, "mountPath", errors);
    if let Some(target) = target
        && (!target.starts_with('/') || target.contains(':') || target.split('/').any(|part| part == ".."))
    {
        errors.push(fields.at("mountPath"), target, "must be an absolute path without .. and :");
    } else if let Some(target) = target
        && RESERVED_PATHS.contains(&clean(target).as_str())
    {
        let problem = format!("is reserved, as are {}; mount it below", RESERVED_PATHS.join(", "));
        errors.push(fields.at("mountPath"), target, problem);
    }
    let sub_path = fields.string("subPath", errors).filter(|path| !path.is_empty()).map(str::to_owned);
    if let Some(sub) = &sub_path
        && !is_inside(sub)
    {
        errors.push(fields.at("subPath"), sub, "must be a relative path without ..");
    }
    let read_only = fields.boolean("readOnly", errors).unwrap_or(false);
    for name in ["subPathExpr", "mountPropagation", "recursiveReadOnly"] {
        let path = fields.at(name);
        if let Some(node) = fields.take(name)
            && node.text() != Some("None")
            && node.text() != Some("Disabled")
        {
            keep(other, &path, node);
        }
    }
    fields.finish(errors);
    let (Some(volume), Some(target)) = (volume, target) else { return None };
    let mut mount = Mount::new(volume, target);
    (mount.sub_path, mount.read_only) = (sub_path, read_only);
    (errors.0.len() == before).then_some(mount)
}

/// An absolute path without empty parts and `.`.
fn clean(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    format!("/{}", parts.join("/"))
}

/// A relative path that stays below where it begins.
fn is_inside(path: &str) -> bool {
    !path.starts_with('/') && !path.split('/').any(|part| part == "..") && !path.contains('\0')
}

/// Of a container or of a Pod, which has some fields more and some less.
pub(super) fn security(
    path: String,
    node: &Node,
    other: &mut BTreeMap<String, String>,
    errors: &mut SpecErrors,
) -> SecurityContext {
    const MOST: i128 = u32::MAX as i128 - 1;
    let mut out = SecurityContext::default();
    let mut fields = Fields::new(path, node, errors);
    let mut id = |name: &'static str, fields: &mut Fields<'_>| {
        fields.integer(name, 0..=MOST, errors).and_then(|id| u32::try_from(id).ok())
    };
    out.run_as_user = id("runAsUser", &mut fields);
    out.run_as_group = id("runAsGroup", &mut fields);
    out.fs_group = id("fsGroup", &mut fields);
    let groups = fields.list("supplementalGroups", errors).unwrap_or_default();
    for (at, item) in groups {
        match item {
            Node::Int(group) if (0..=MOST).contains(group) => {
                out.supplemental_groups.push(u32::try_from(*group).unwrap_or_default());
            }
            other => errors.push(at, other.shown(), "must be a group's number"),
        }
    }
    out.run_as_non_root = fields.boolean("runAsNonRoot", errors);
    out.read_only_root_filesystem = fields.boolean("readOnlyRootFilesystem", errors);
    out.allow_privilege_escalation = fields.boolean("allowPrivilegeEscalation", errors);
    let at = fields.at("capabilities");
    if let Some(node) = fields.take("capabilities") {
        let mut inner = Fields::new(at, node, errors);
        out.add_capabilities = inner.strings("add", errors).unwrap_or_default();
        out.drop_capabilities = inner.strings("drop", errors).unwrap_or_default();
        inner.finish(errors);
    }
    let at = fields.at("seccompProfile");
    if let Some(node) = fields.take("seccompProfile") {
        let mut inner = Fields::new(at, node, errors);
        let kind = required(&mut inner, "type", errors).unwrap_or_default();
        let local = inner.string("localhostProfile", errors);
        out.seccomp_profile = match (kind, local) {
            ("RuntimeDefault" | "Unconfined", None) => Some(kind.to_owned()),
            ("Localhost", Some(local)) if is_inside(local) => Some(format!("Localhost/{local}")),
            ("", _) => None,
            _ => {
                let problem = "must be RuntimeDefault, Unconfined, or Localhost with a localhostProfile";
                errors.push(inner.at("type"), kind, problem);
                None
            }
        };
        inner.finish(errors);
    }
    for name in [
        "appArmorProfile",
        "fsGroupChangePolicy",
        "privileged",
        "procMount",
        "seLinuxOptions",
        "supplementalGroupsPolicy",
        "sysctls",
        "windowsOptions",
    ] {
        let path = fields.at(name);
        if let Some(node) = fields.take(name) {
            keep(other, &path, node);
        }
    }
    fields.finish(errors);
    out
}

/// The volumes of a Pod.
pub(super) fn volumes(
    items: &[(String, &Node)],
    other: &mut BTreeMap<String, String>,
    errors: &mut SpecErrors,
) -> Vec<Volume> {
    let mut volumes: Vec<Volume> = Vec::with_capacity(items.len());
    for (at, item) in items {
        let before = errors.0.len();
        let mut fields = Fields::new(at.clone(), item, errors);
        let name = required(&mut fields, "name", errors);
        if let Some(name) = name {
            if !is_label(name) {
                errors.push(fields.at("name"), name, LABEL);
            } else if volumes.iter().any(|volume| volume.name == name) {
                errors.push(fields.at("name"), name, "is declared twice");
            }
        }
        let mut sources = Vec::new();
        let empty = fields.at("emptyDir");
        // `emptyDir:` without a value is an empty directory too.
        if item.get("emptyDir").is_some() {
            let node = fields.take("emptyDir").unwrap_or(&Node::Null);
            let mut inner = Fields::new(empty, node, errors);
            let size_limit_bytes = amount(&mut inner, "sizeLimit", 1, errors);
            let memory = match inner.string("medium", errors) {
                None | Some("") => false,
                Some("Memory") => true,
                Some(medium) => {
                    errors.push(inner.at("medium"), medium, "must be Memory, or be left out");
                    false
                }
            };
            inner.finish(errors);
            sources.push(VolumeSource::EmptyDir { size_limit_bytes, memory });
        }
        for kind in ["configMap", "secret"] {
            let at = fields.at(kind);
            if let Some(node) = fields.take(kind) {
                sources.extend(keys(kind, at, node, None, errors));
            }
        }
        let at = fields.at("projected");
        if let Some(node) = fields.take("projected") {
            sources.extend(projected(at, node, other, errors));
        }
        let at = fields.at("persistentVolumeClaim");
        if let Some(node) = fields.take("persistentVolumeClaim") {
            let mut inner = Fields::new(at, node, errors);
            let name = object_name(&mut inner, "claimName", errors);
            let read_only = inner.boolean("readOnly", errors).unwrap_or(false);
            inner.finish(errors);
            sources.extend(name.map(|name| VolumeSource::Claim { name, read_only }));
        }
        // Every other kind is the name of its only field.
        for (kind, node) in fields.rest() {
            sources.push(VolumeSource::Other(format!("{kind}: {}", node.shown())));
        }
        if errors.0.len() > before {
            continue;
        }
        match (name, sources.len()) {
            (Some(name), 1) => volumes.extend(sources.pop().map(|source| Volume::new(name, source))),
            (Some(name), 0) => {
                errors.push(fields.path(), name, "has no source, such as emptyDir, secret or configMap")
            }
            (_, more) => errors.push(fields.path(), format!("{more} sources"), "a volume has one"),
        }
    }
    volumes
}

/// A secret or a configuration map as files. `mode` is that of a projection around it.
fn keys(
    kind: &str,
    path: String,
    node: &Node,
    mode: Option<u32>,
    errors: &mut SpecErrors,
) -> Option<VolumeSource> {
    let before = errors.0.len();
    let mut fields = Fields::new(path, node, errors);
    // Alone a secret is called `secretName`, within a projection `name`.
    let alone = kind == "secret" && mode.is_none() && fields.has("secretName");
    let name = object_name(&mut fields, if alone { "secretName" } else { "name" }, errors);
    let bits = |fields: &mut Fields<'_>, name: &'static str, errors: &mut SpecErrors| {
        fields.integer(name, 0..=0o777, errors).and_then(|mode| u32::try_from(mode).ok())
    };
    let own = bits(&mut fields, "defaultMode", errors);
    let optional = fields.boolean("optional", errors).unwrap_or(false);
    let mut items = Vec::new();
    for (at, item) in fields.list("items", errors).unwrap_or_default() {
        let mut inner = Fields::new(at, item, errors);
        let key = required(&mut inner, "key", errors);
        let target = required(&mut inner, "path", errors);
        let one = bits(&mut inner, "mode", errors);
        if let Some(one) = one
            && Some(one) != own.or(mode)
        {
            let problem = "all files of a volume have one mode here: set defaultMode";
            errors.push(inner.at("mode"), format!("{one:o}"), problem);
        }
        if let Some(target) = target
            && !is_inside(target)
        {
            errors.push(inner.at("path"), target, "must be a relative path without ..");
        }
        inner.finish(errors);
        if let (Some(key), Some(target)) = (key, target) {
            items.push((key.to_owned(), target.to_owned()));
        }
    }
    fields.finish(errors);
    if errors.0.len() > before {
        return None;
    }
    let (name, mode) = (name?, own.or(mode));
    Some(match kind {
        "secret" => VolumeSource::Secret { name, items, mode, optional },
        _ => VolumeSource::ConfigMap { name, items, mode, optional },
    })
}

fn projected(
    path: String,
    node: &Node,
    other: &mut BTreeMap<String, String>,
    errors: &mut SpecErrors,
) -> Option<VolumeSource> {
    let before = errors.0.len();
    let mut fields = Fields::new(path, node, errors);
    let mode = fields.integer("defaultMode", 0..=0o777, errors).and_then(|mode| u32::try_from(mode).ok());
    let mut sources = Vec::new();
    for (at, item) in fields.list("sources", errors).unwrap_or_default() {
        let mut inner = Fields::new(at, item, errors);
        for kind in ["configMap", "secret"] {
            let at = inner.at(kind);
            if let Some(node) = inner.take(kind) {
                sources.extend(keys(kind, at, node, Some(mode.unwrap_or(0o644)), errors));
            }
        }
        for name in ["downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"] {
            let at = inner.at(name);
            if let Some(node) = inner.take(name) {
                keep(other, &at, node);
            }
        }
        inner.finish(errors);
    }
    fields.finish(errors);
    (errors.0.len() == before).then_some(VolumeSource::Projected(sources))
}

/// What [`is_label`] asks for, for messages.
pub const LABEL: &str =
    "must be 1 to 63 lower-case letters, digits or dashes, and begin and end with a letter or digit";

/// A DNS label of RFC 1123.
pub fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| inner(b) || b == b'-')
        && text.bytes().next().is_some_and(inner)
        && text.bytes().next_back().is_some_and(inner)
}

fn environment(
    path: &str,
    items: &[(String, &Node)],
    sidecar: bool,
    errors: &mut SpecErrors,
) -> BTreeMap<String, EnvValue> {
    let mut env: BTreeMap<String, EnvValue> = BTreeMap::new();
    for (at, item) in items {
        let mut fields = Fields::new(at.clone(), item, errors);
        let name = fields.string("name", errors);
        let literal = fields.string("value", errors);
        let from = fields.take("valueFrom");
        let value = match (literal, from) {
            (Some(text), Some(_)) => {
                errors.push(fields.at("value"), text, "contradicts valueFrom: give one of the two");
                None
            }
            (literal, None) => Some(EnvValue::Literal(expand(literal.unwrap_or_default(), &env))),
            (None, Some(from)) => reference(fields.at("valueFrom"), from, errors).map(EnvValue::Secret),
        };
        let name_path = fields.at("name");
        fields.finish(errors);
        let Some(name) = name else {
            if !matches!(item.get("name"), Some(node) if *node != Node::Null) {
                errors.push(name_path, "", "missing: every variable has a name");
            }
            continue;
        };
        if name.is_empty() || !name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
            errors.push(name_path, name, "must be printable ASCII without =, not empty");
        } else if RESERVED_ENV.contains(&name) || (name == PORT_ENV && !sidecar) {
            let problem = format!("is set by the platform, as are {PORT_ENV}, {}", RESERVED_ENV.join(", "));
            errors.push(name_path, name, problem);
        } else if let Some(value) = value {
            match env.get(name) {
                Some(before) if *before != value => {
                    errors.push(name_path, name, format!("is set twice in {path}, to different values"));
                }
                _ => {
                    env.insert(name.to_owned(), value);
                }
            }
        }
    }
    env
}

/// `$(NAME)` becomes the literal value of a variable that was declared before, and `$$` becomes `$`, as in Kubernetes.
/// What names no such variable stays as it is.
fn expand(text: &str, env: &BTreeMap<String, EnvValue>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let named = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        match named.and_then(|(name, after)| Some((env.get(name)?, after))) {
            // Values grow at most by what was declared before; the manifest's own size bounds that.
            Some((EnvValue::Literal(value), after))
                if out.len() + value.len() <= super::tree::INPUT_LIMIT =>
            {
                out.push_str(value);
                rest = after;
            }
            _ => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

/// `secret/name/key` or `configmap/name/key`, in the tenant's own namespace.
fn reference(path: String, node: &Node, errors: &mut SpecErrors) -> Option<String> {
    let before = errors.0.len();
    let mut fields = Fields::new(path.clone(), node, errors);
    let mut references = Vec::new();
    for (field, kind) in [("secretKeyRef", "secret"), ("configMapKeyRef", "configmap")] {
        let at = fields.at(field);
        let Some(node) = fields.take(field) else { continue };
        let mut inner = Fields::new(at, node, errors);
        let name = required(&mut inner, "name", errors);
        let key = required(&mut inner, "key", errors);
        if inner.boolean("optional", errors) == Some(true) {
            let problem = "an instance starts with all of its variables or not at all; leave it out";
            errors.push(inner.at("optional"), "true", problem);
        }
        for (part, value) in [("name", name), ("key", key)] {
            if let Some(value) = value
                && (value.contains('/') || value.chars().any(char::is_control))
            {
                errors.push(inner.at(part), value, "must hold no slash and no control character");
            }
        }
        inner.finish(errors);
        if let (Some(name), Some(key)) = (name, key) {
            references.push(format!("{kind}/{name}/{key}"));
        }
    }
    for field in ["fieldRef", "resourceFieldRef"] {
        let at = fields.at(field);
        if let Some(node) = fields.take(field) {
            errors.push(at, node.shown(), "there is no Pod to refer to; use secretKeyRef or configMapKeyRef");
        }
    }
    fields.finish(errors);
    if errors.0.len() > before {
        return None;
    }
    match references.len() {
        1 => references.pop(),
        0 => {
            errors.push(path, node.shown(), "must have secretKeyRef or configMapKeyRef");
            None
        }
        _ => {
            errors.push(path, node.shown(), "must have one of secretKeyRef and configMapKeyRef, not both");
            None
        }
    }
}

pub(super) fn required<'a>(
    fields: &mut Fields<'a>,
    name: &'static str,
    errors: &mut SpecErrors,
) -> Option<&'a str> {
    let before = errors.0.len();
    let value = fields.string(name, errors).filter(|value| !value.is_empty());
    if value.is_none() && errors.0.len() == before {
        errors.push(fields.at(name), "", "missing");
    }
    value
}

fn port(path: &str, items: &[(String, &Node)], errors: &mut SpecErrors) -> Option<Port> {
    if items.len() > 1 {
        errors.push(path, format!("{} ports", items.len()), "a service has one port");
    }
    let mut first = None;
    for (at, item) in items {
        let mut fields = Fields::new(at.clone(), item, errors);
        let number = fields.integer("containerPort", 0..=65_535, errors);
        let protocol = match fields.string("name", errors) {
            None | Some("" | "http1" | "http") => Protocol::Http1,
            Some("h2c") => Protocol::H2c,
            Some(other) => {
                errors.push(fields.at("name"), other, "must be http1 or h2c");
                Protocol::Http1
            }
        };
        if let Some(transport) = fields.string("protocol", errors)
            && transport != "TCP"
        {
            errors.push(fields.at("protocol"), transport, "must be TCP");
        }
        for name in ["hostPort", "hostIP"] {
            let at = fields.at(name);
            if let Some(node) = fields.take(name) {
                errors.push(at, node.shown(), "instances share the host's ports; leave it out");
            }
        }
        fields.finish(errors);
        let number = number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0);
        first.get_or_insert(Port { number: number.unwrap_or(DEFAULT_PORT), protocol });
    }
    first
}

fn resources(path: String, node: &Node, errors: &mut SpecErrors) -> Resources {
    let mut out = Resources::default();
    let mut fields = Fields::new(path, node, errors);
    for (part, limit) in [("requests", false), ("limits", true)] {
        let at = fields.at(part);
        let Some(node) = fields.take(part) else { continue };
        let mut inner = Fields::new(at, node, errors);
        let millis =
            amount(&mut inner, "cpu", 1000, errors).map(|millis| u32::try_from(millis).unwrap_or(u32::MAX));
        let bytes = amount(&mut inner, "memory", 1, errors);
        // Disk space is neither reserved nor limited; saying it is allowed, as most manifests that do mean nothing.
        let _ = amount(&mut inner, "ephemeral-storage", 1, errors);
        inner.finish(errors);
        if limit {
            (out.cpu_limit_millis, out.memory_limit_bytes) = (millis, bytes);
        } else {
            (out.cpu_request_millis, out.memory_request_bytes) = (millis, bytes);
        }
    }
    let requests = fields.at("requests");
    let claims = fields.at("claims");
    if let Some(node) = fields.take("claims") {
        errors.push(claims, node.shown(), "there are no resource claims here");
    }
    fields.finish(errors);
    if let (Some(request), Some(limit)) = (out.cpu_request_millis, out.cpu_limit_millis)
        && request > limit
    {
        errors.push(
            join(&requests, "cpu"),
            format!("{request}m"),
            format!("contradicts limits.cpu: at most {limit}m"),
        );
    }
    if let (Some(request), Some(limit)) = (out.memory_request_bytes, out.memory_limit_bytes)
        && request > limit
    {
        errors.push(
            join(&requests, "memory"),
            request,
            format!("contradicts limits.memory: at most {limit}"),
        );
    }
    out
}

fn amount(fields: &mut Fields<'_>, name: &'static str, unit: u128, errors: &mut SpecErrors) -> Option<u64> {
    let path = fields.at(name);
    let node = fields.take(name)?;
    let text = match node {
        Node::Text(text) => text.clone(),
        Node::Int(number) => number.to_string(),
        Node::Float(number) => number.to_string(),
        other => {
            errors.push(path, other.shown(), format!("must be a quantity, not {}", other.kind()));
            return None;
        }
    };
    let amount = parse_quantity(text.trim(), unit);
    if amount.is_none() {
        errors.push(path, text, "must be a quantity such as 250m, 0.5, 64Mi or 1G");
    }
    amount
}

fn read_probe(path: &str, node: &Node, kind: &str, serving: u16, errors: &mut SpecErrors) -> Option<Probe> {
    let before = errors.0.len();
    let mut fields = Fields::new(path, node, errors);
    let mut actions = Vec::new();
    let at = fields.at("httpGet");
    if let Some(node) = fields.take("httpGet") {
        let mut http = Fields::new(at, node, errors);
        let target = http.string("path", errors).unwrap_or("/");
        let port = probe_port(&mut http, serving, errors);
        if let Some(scheme) = http.string("scheme", errors)
            && scheme != "HTTP"
        {
            errors.push(http.at("scheme"), scheme, "must be HTTP: instances speak plain HTTP");
        }
        no_host(&mut http, errors);
        let mut headers = Vec::new();
        for (at, item) in http.list("httpHeaders", errors).unwrap_or_default() {
            let mut header = Fields::new(at, item, errors);
            let name = required(&mut header, "name", errors);
            let value = header.string("value", errors).unwrap_or_default();
            if let Some(name) = name {
                if name.parse::<http::HeaderName>().is_err() || value.parse::<http::HeaderValue>().is_err() {
                    errors.push(header.path(), name, "is not an HTTP header");
                }
                headers.push((name.to_owned(), value.to_owned()));
            }
            header.finish(errors);
        }
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        if target.parse::<http::uri::PathAndQuery>().is_err() {
            errors.push(http.at("path"), &target, "is not the path of a URL");
        }
        http.finish(errors);
        actions.push(ProbeAction::Http { path: target, port, headers });
    }
    let at = fields.at("tcpSocket");
    if let Some(node) = fields.take("tcpSocket") {
        let mut tcp = Fields::new(at, node, errors);
        let port = probe_port(&mut tcp, serving, errors);
        no_host(&mut tcp, errors);
        tcp.finish(errors);
        actions.push(ProbeAction::Tcp { port });
    }
    let at = fields.at("exec");
    if let Some(node) = fields.take("exec") {
        let mut exec = Fields::new(at, node, errors);
        let command = exec.strings("command", errors).unwrap_or_default();
        if command.is_empty() {
            errors.push(exec.at("command"), "", "missing: the program that asks");
        }
        exec.finish(errors);
        actions.push(ProbeAction::Exec { command });
    }
    let at = fields.at("grpc");
    if let Some(node) = fields.take("grpc") {
        let mut grpc = Fields::new(at, node, errors);
        let port = probe_port(&mut grpc, serving, errors);
        let service = grpc.string("service", errors).filter(|service| !service.is_empty()).map(str::to_owned);
        grpc.finish(errors);
        actions.push(ProbeAction::Grpc { port, service });
    }
    if actions.len() > 1 {
        errors.push(path, node.shown(), "must ask in one way: httpGet, tcpSocket, exec or grpc");
    }
    // A probe that says no way asks by connecting, as in Knative.
    let mut probe = Probe::new(actions.pop().unwrap_or(ProbeAction::Tcp { port: None }));
    let seconds = |value: i128| Duration::from_secs(u64::try_from(value).unwrap_or_default());
    const MOST: i128 = i32::MAX as i128;
    if let Some(delay) = fields.integer("initialDelaySeconds", 0..=MOST, errors) {
        probe.initial_delay = seconds(delay);
    }
    match fields.integer("periodSeconds", 0..=MOST, errors) {
        Some(period) => probe.period = seconds(period),
        // While it starts and for readiness: as often as makes sense, as Knative's queue-proxy does.
        None if kind == "livenessProbe" => probe.period = Duration::from_secs(10),
        None => {}
    }
    if let Some(timeout) = fields.integer("timeoutSeconds", 1..=MOST, errors) {
        probe.timeout = seconds(timeout);
    }
    let threshold = |value: i128| u32::try_from(value).unwrap_or(1);
    if let Some(successes) = fields.integer("successThreshold", 1..=MOST, errors) {
        probe.success_threshold = threshold(successes);
        if kind != "readinessProbe" && successes != 1 {
            errors.push(fields.at("successThreshold"), successes, "must be 1 for this probe");
        }
    }
    if let Some(failures) = fields.integer("failureThreshold", 1..=MOST, errors) {
        probe.failure_threshold = threshold(failures);
    }
    fields.ignore(&["terminationGracePeriodSeconds"]);
    fields.finish(errors);
    (errors.0.len() == before).then_some(probe)
}

/// The port of a probe: `None` for the one that serves.
fn probe_port(fields: &mut Fields<'_>, serving: u16, errors: &mut SpecErrors) -> Option<u16> {
    let path = fields.at("port");
    match fields.take("port")? {
        Node::Int(0) => None,
        Node::Int(port) => match u16::try_from(*port) {
            Ok(port) => (port != serving).then_some(port),
            Err(_) => {
                errors.push(path, port, "must be a port from 1 to 65535");
                None
            }
        },
        Node::Text(text) => match (text.as_str(), text.parse::<u16>()) {
            (_, Ok(port)) => (port != serving && port != 0).then_some(port),
            ("" | "http1" | "http" | "h2c" | "user-port", _) => None,
            _ => {
                errors.push(path, text, "must be a number, or the name of the service's port");
                None
            }
        },
        other => {
            errors.push(path, other.shown(), format!("must be a port, not {}", other.kind()));
            None
        }
    }
}

fn no_host(fields: &mut Fields<'_>, errors: &mut SpecErrors) {
    let path = fields.at("host");
    if let Some(host) = fields.string("host", errors)
        && !["", "localhost", "127.0.0.1"].contains(&host)
    {
        errors.push(path, host, "a probe asks its own instance; leave it out");
    }
}

/// Names that are in both sets.
pub(super) fn common<'a>(a: &'a BTreeMap<String, String>, b: &BTreeMap<String, String>) -> BTreeSet<&'a str> {
    a.keys().filter(|key| b.contains_key(*key)).map(String::as_str).collect()
}

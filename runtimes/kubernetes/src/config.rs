//! How a Kubernetes runtime is set up.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use sas_core::{Clock, Error, ErrorKind, Isolation, Recorder, Result, SystemClock};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How the API server of the cluster is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// By the service account of the Pod that this process runs in.
    #[default]
    InCluster,
    /// By a file such as `~/.kube/config`, in its current context.
    Kubeconfig(PathBuf),
}

/// What the operator adds to every Pod. Read from JSON or YAML in the words of a Pod's own spec.
///
/// ```
/// let overlay: sas_runtime_kubernetes::PodOverlay = serde_json::from_str(
///     r#"{"nodeSelector": {"pool": "functions"}, "runtimeClassName": "gvisor", "imagePullSecrets": ["registry"]}"#,
/// )?;
/// assert_eq!(overlay.runtime_class_name.as_deref(), Some("gvisor"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[non_exhaustive]
pub struct PodOverlay {
    /// Labels that a node must have. A service may ask for further ones, and can't undo these.
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that instances bear, as in a Pod's spec.
    pub tolerations: Vec<Value>,
    /// The class of container runtime, such as one of gVisor or Kata Containers. Say in
    /// [`KubernetesConfig::isolation`] what it gives.
    pub runtime_class_name: Option<String>,
    /// The priority of the Pods.
    pub priority_class_name: Option<String>,
    /// The service account of the Pods, whose token is not mounted into them. `None`: the namespace's default.
    pub service_account_name: Option<String>,
    /// Names of secrets of the namespace with credentials for registries.
    pub image_pull_secrets: Vec<String>,
    /// Annotations, for whatever else watches Pods.
    pub annotations: BTreeMap<String, String>,
    /// Labels, for network policies and the like. Those that begin with `sas.dev/` are the runtime's own.
    pub labels: BTreeMap<String, String>,
}

/// Configuration of a [`crate::KubernetesRuntime`].
///
/// ```
/// use sas_runtime_kubernetes::{Access, KubernetesConfig};
/// let mut config = KubernetesConfig::new("functions");
/// config.access = Access::Kubeconfig("/etc/platform/kubeconfig".into());
/// config.validate()?;
/// # Ok::<(), sas_core::Error>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct KubernetesConfig {
    /// How the API server is reached. Default: from within the cluster.
    pub access: Access,
    /// The namespace in which instances run. It should hold nothing else: whoever may start instances may mount what is in
    /// it as far as [`Self::references`] allows.
    pub namespace: String,
    /// The name of this platform among those that share the namespace, in the label `sas.dev/platform`. Hosts of one
    /// platform have the same, and clean up after each other. Default `sas`.
    pub platform: String,
    /// For how long a host may be silent until the others take its Pods away. Each host renews a Lease three times in this
    /// time. Default 15 s.
    pub term: Duration,
    /// Whether services may name secrets, configuration maps and claims of the namespace: in volumes, in `envFrom` and as
    /// pull secrets. Any service may name any of them then. Default false. The platform's own secrets in `env` need it
    /// not.
    pub references: bool,
    /// Fields of a Pod's spec that services may set beyond those that every container has, by their names such as
    /// `nodeSelector`. Default: `nodeSelector`, `affinity`, `topologySpreadConstraints`, `hostAliases`, `dnsConfig`,
    /// `dnsPolicy`, `lifecycle`. Add `tolerations`, `runtimeClassName`, `priorityClassName`, `schedulerName` where tenants are
    /// trusted with nodes, isolation and priority.
    pub fields: Vec<String>,
    /// What is added to every Pod.
    pub overlay: PodOverlay,
    /// Whether a container may run as user 0, without capabilities and with the filter of system calls that the container
    /// runtime has by default. Default true.
    pub allow_root: bool,
    /// Capabilities that a service may ask for; it has none of its own. Default `NET_BIND_SERVICE`.
    pub capabilities: Vec<String>,
    /// What keeps Pods apart: [`Isolation::Container`], unless the runtime class gives more.
    pub isolation: Isolation,
    /// For how long a Pod is kept on a node that the cluster has lost sight of. Whole seconds. Default 30 s; Kubernetes'
    /// own default is five minutes.
    pub node_lost_after: Duration,
    /// How many instances have their output followed at once, each by a connection of its own to the API server. The
    /// output of further ones is not read, and a line says so. Default 200.
    pub followed: usize,
    /// Longest line of output in bytes; the rest of a longer one is dropped. Default 16 KiB.
    pub line_bytes: usize,
    /// Bytes per second of one instance's output that are passed on; beyond it lines are dropped and counted. Default
    /// 1 MiB.
    pub log_bytes_per_second: u64,
    /// How often the cluster is asked what instances use, where it has `metrics.k8s.io`. Default 15 s, as often as
    /// metrics-server looks.
    pub usage_period: Duration,
    /// How long the API server may take to answer. Default 10 s.
    pub patience: Duration,
    /// Where stamps come from.
    pub clock: Arc<dyn Clock>,
    /// Where metrics go.
    pub recorder: Recorder,
}

/// Fields that say where and how a Pod runs, and change nothing of what it may do.
const FIELDS: [&str; 7] = [
    "nodeSelector",
    "affinity",
    "topologySpreadConstraints",
    "hostAliases",
    "dnsConfig",
    "dnsPolicy",
    "lifecycle",
];

/// Fields that would give a Pod the host's means, which no configuration allows.
const NEVER: [&str; 9] = [
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "hostUsers",
    "privileged",
    "procMount",
    "sysctls",
    "shareProcessNamespace",
    "volumeDevices",
];

impl KubernetesConfig {
    /// The defaults, with instances in `namespace`.
    pub fn new(namespace: impl Into<String>) -> Self {
        Self {
            access: Access::default(),
            namespace: namespace.into(),
            platform: "sas".to_owned(),
            term: Duration::from_secs(15),
            references: false,
            fields: FIELDS.map(str::to_owned).to_vec(),
            overlay: PodOverlay::default(),
            allow_root: true,
            capabilities: vec!["NET_BIND_SERVICE".to_owned()],
            isolation: Isolation::Container,
            node_lost_after: Duration::from_secs(30),
            followed: 200,
            line_bytes: 16 << 10,
            log_bytes_per_second: 1 << 20,
            usage_period: Duration::from_secs(15),
            patience: Duration::from_secs(10),
            clock: Arc::new(SystemClock),
            recorder: Recorder::default(),
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// `InvalidSpec` with the field, the value and the remedy.
    pub fn validate(&self) -> Result<()> {
        let wrong = |message: String| Err(Error::new(ErrorKind::InvalidSpec, "configure", message));
        for (field, value, most) in [("namespace", &self.namespace, 63), ("platform", &self.platform, 32)] {
            if !is_label(value, most) {
                let what =
                    "lower-case letters, digits and hyphens, beginning and ending with a letter or digit";
                return wrong(format!("{field}: {value:?}: at most {most} {what}"));
            }
        }
        for (field, value, least) in [
            ("term", self.term, Duration::from_secs(1)),
            ("node_lost_after", self.node_lost_after, Duration::ZERO),
            ("usage_period", self.usage_period, Duration::from_secs(1)),
            ("patience", self.patience, Duration::from_millis(100)),
        ] {
            if value < least {
                return wrong(format!("{field}: {value:?}: at least {least:?}"));
            }
        }
        if self.line_bytes == 0 || self.log_bytes_per_second == 0 {
            return wrong(
                "line_bytes, log_bytes_per_second: 0: at least 1; to follow no output, followed: 0".into(),
            );
        }
        if let Some(field) = self.fields.iter().find(|field| NEVER.contains(&field.as_str())) {
            return wrong(format!(
                "fields: {field:?}: it would give an instance the node's means; leave it out"
            ));
        }
        if let Some(label) = self.overlay.labels.keys().find(|label| label.starts_with("sas.dev/")) {
            return wrong(format!("overlay.labels: {label:?}: those of sas.dev/ are the runtime's own"));
        }
        Ok(())
    }
}

/// A label of DNS, as names of namespaces are.
fn is_label(text: &str, most: usize) -> bool {
    let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (Some(first), Some(last)) = (text.bytes().next(), text.bytes().last()) else { return false };
    text.len() <= most
        && letters(first)
        && letters(last)
        && text.bytes().all(|byte| letters(byte) || byte == b'-')
}

impl fmt::Debug for KubernetesConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesConfig")
            .field("access", &self.access)
            .field("namespace", &self.namespace)
            .field("platform", &self.platform)
            .field("term", &self.term)
            .field("references", &self.references)
            .field("fields", &self.fields)
            .field("overlay", &self.overlay)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_configuration_is_told_by_its_field_and_value() {
        type Change = fn(&mut KubernetesConfig);
        let wrong: [(Change, &str); 6] = [
            (|config| config.namespace = "Functions".into(), "namespace: \"Functions\""),
            (|config| config.platform = String::new(), "platform: \"\""),
            (|config| config.term = Duration::ZERO, "term: 0ns"),
            (|config| config.line_bytes = 0, "line_bytes"),
            (|config| config.fields.push("hostNetwork".into()), "fields: \"hostNetwork\""),
            (
                |config| drop(config.overlay.labels.insert("sas.dev/platform".into(), "x".into())),
                "overlay.labels: \"sas.dev/platform\"",
            ),
        ];
        assert!(KubernetesConfig::new("functions").validate().is_ok());
        for (change, mentions) in wrong {
            let mut config = KubernetesConfig::new("functions");
            change(&mut config);
            let error = config.validate().expect_err(mentions);
            assert!(error.message.contains(mentions), "{error}");
        }
    }
}

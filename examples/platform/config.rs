//! What `platform` can be told: one structure, that the command line and a file fill in the same way.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use clap::{Args, Parser};
use sas::{core::SpecErrors, prelude::*};
use serde::{Deserialize, Serialize};

use crate::file::shown;

/// What a platform is told. Each field is a flag, and a field of the file of `--config`: `package_roots` is
/// `--package-root` there and `packageRoots` here. What is left out has the default that its text names.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Config {
    /// Where requests are served [127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// Threads of the listener's own (docs/data-plane.md, "Speed") [0].
    #[arg(long, value_name = "COUNT")]
    pub(crate) workers: Option<usize>,
    /// Where the admin API is: an address, or unix:PATH [127.0.0.1:8081].
    #[arg(long, value_name = "ADDR|unix:PATH")]
    pub(crate) admin: Option<AdminAt>,
    /// Serves the console at /console/ of the admin API's address (docs/console.md) [true].
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) console: Option<bool>,
    /// Where the state is kept; without it, nothing outlives the process.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// This host's name among several on one store (docs/hosts.md).
    #[arg(long, value_name = "NAME")]
    pub(crate) host_name: Option<String>,
    /// Where the other hosts reach this one's listener of requests.
    #[arg(long, value_name = "ADDR")]
    pub(crate) advertise: Option<SocketAddr>,
    /// The file of the secret that the hosts know each other by: at least 32 random bytes, the same on all.
    #[arg(long, value_name = "FILE")]
    pub(crate) peers_secret: Option<PathBuf>,
    /// For how long a silent host is not disturbed, 1 to 300; the same on all hosts [10].
    #[arg(long = "host-term", value_name = "SECONDS")]
    pub(crate) host_term_seconds: Option<u64>,
    /// Most instances on this host at once, of all services; one that needs more than that goes to other hosts as well
    /// (docs/hosts.md).
    #[arg(long, value_name = "COUNT")]
    pub(crate) host_max_instances: Option<u32>,
    /// Where what is deployed is kept instead of in the state directory: postgres://USER@HOST:PORT/DATABASE,
    /// etcd://HOST:PORT/PREFIX, or a file that holds such a URL with its password (docs/stores.md).
    #[arg(long, value_name = "URL|FILE")]
    pub(crate) store: Option<String>,
    /// Where packages are kept that several hosts share: a URL of PostgreSQL, or a file that holds one; copies of what this host
    /// runs are in the state directory.
    #[arg(long, value_name = "URL|FILE")]
    pub(crate) packages: Option<String>,
    /// A service answers at `<name>.<namespace>.DOMAIN` [localhost].
    #[arg(long)]
    pub(crate) domain: Option<String>,
    /// What is done ahead of demand: default, knative or frugal [default].
    #[arg(long)]
    pub(crate) preset: Option<Word<Preset>>,
    /// A directory of certificates: NAME.crt and NAME.key, each for the hosts that stand in it (docs/data-plane.md).
    #[arg(long, value_name = "DIR")]
    pub(crate) tls_cert_dir: Option<PathBuf>,
    /// How long requests may take to end before a new process takes over (SIGUSR2) [10].
    #[arg(long = "upgrade-drain", value_name = "SECONDS")]
    pub(crate) upgrade_drain_seconds: Option<u64>,
    /// How long requests and instances may take to end when the platform does [30].
    #[arg(long = "drain", value_name = "SECONDS")]
    pub(crate) drain_seconds: Option<u64>,
    /// How much is logged to stderr, such as info or info,sas_pool=debug; RUST_LOG says it else [info].
    #[arg(long, value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// Requests per second that each principal may ask of the admin API [500].
    #[arg(long, value_name = "COUNT")]
    pub(crate) admin_rate: Option<f64>,
    /// Requests at once of each principal, after quiet [1000].
    #[arg(long, value_name = "COUNT")]
    pub(crate) admin_burst: Option<u32>,
    /// The file of the admin token: a new one in it counts at once; refused beside SAS_ADMIN_TOKEN.
    #[arg(long, value_name = "FILE")]
    pub(crate) admin_token_file: Option<PathBuf>,
    /// A host name by which the admin API is reached, beside loopback.
    #[arg(long = "admin-host", value_name = "NAME")]
    pub(crate) admin_hosts: Vec<String>,
    /// Metrics are read without a token.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) open_metrics: Option<bool>,
    /// Changes at the admin API want `If-Match`.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) require_if_match: Option<bool>,
    /// The admin API may listen beyond loopback in the clear.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) admin_without_tls: Option<bool>,
    /// How instances of packages are jailed: none, basic or strict [basic].
    #[arg(long)]
    pub(crate) jail: Option<String>,
    /// Services may bring zygotes: programs without namespaces, as the host's user (SECURITY.md).
    #[arg(long = "allow-zygotes", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) allow_zygotes: Option<bool>,
    /// Services may have their requests meet faults on purpose (docs/data-plane.md).
    #[arg(long = "allow-faults", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) allow_faults: Option<bool>,
    /// One more port that services may list in `sas.dev/egress`.
    #[arg(long = "egress-grant", value_name = "PORT")]
    pub(crate) egress_grants: Vec<u16>,
    /// One more network that instances do not reach (as root), such as 10.0.0.0/8.
    #[arg(long = "close-network", value_name = "ADDRESS/PREFIX")]
    pub(crate) closed_networks: Vec<Network>,
    /// The most that a service may ask for of the disk of an instance; what each container has.
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_disk_bytes: Option<u64>,
    /// The most processes that a service may ask for; what each container has.
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_pids: Option<u64>,
    /// What the directory of a service holds that stays (`sas.dev/data`).
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_data_bytes: Option<u64>,
    /// The memory of all instances of packages together, and of all containers.
    #[arg(long, value_name = "BYTES")]
    pub(crate) total_memory_bytes: Option<u64>,
    /// The processes of all instances of packages together, and of all containers.
    #[arg(long, value_name = "COUNT")]
    pub(crate) total_pids: Option<u64>,
    /// A directory from which packages may come that manifests name by a path.
    #[arg(long = "package-root", value_name = "DIR")]
    pub(crate) package_roots: Vec<PathBuf>,
    /// A registry of images without TLS, such as 127.0.0.1:5000.
    #[arg(long = "plain-http-registry", value_name = "HOST")]
    pub(crate) plain_http_registries: Vec<String>,
    /// A directory below which images of files are read (`oci:DIR/layout:tag`).
    #[arg(long = "image-root", value_name = "DIR")]
    pub(crate) image_roots: Vec<PathBuf>,
    /// Images run as Pods of a Kubernetes cluster: in-cluster, or the file by which its API server is reached
    /// (docs/kubernetes.md).
    #[arg(long, value_name = "in-cluster|FILE")]
    pub(crate) kubernetes: Option<String>,
    /// The namespace of these Pods [sas-instances].
    #[arg(long, value_name = "NAME")]
    pub(crate) kubernetes_namespace: Option<String>,
    /// This platform among those that share the namespace; the same on all of its hosts [sas].
    #[arg(long, value_name = "NAME")]
    pub(crate) kubernetes_platform: Option<String>,
    /// What is added to every Pod, in YAML: nodeSelector, tolerations, runtimeClassName, imagePullSecrets and others.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubernetes_overlay: Option<PathBuf>,
    /// Services may name secrets, configuration maps and claims of the namespace [false].
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) kubernetes_references: Option<bool>,
    /// A registry of images, or a folder of one, from which code may come; with one, from no other.
    #[arg(long = "allow-registry", value_name = "NAME")]
    pub(crate) allowed_registries: Vec<String>,
    /// A host to which triggers may send events.
    #[arg(long = "webhook-host", value_name = "HOST")]
    pub(crate) webhook_hosts: Vec<String>,
    /// A host whose URLs workflows may call.
    #[arg(long = "workflow-host", value_name = "HOST")]
    pub(crate) workflow_hosts: Vec<String>,
    /// Brokers named `default` get events of the lives of runs (docs/workflows.md).
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) workflow_events: Option<bool>,
    /// A broker that gets events of what happens to services, revisions, instances and engines (docs/lifecycle.md).
    #[arg(long, value_name = "NAMESPACE/BROKER")]
    pub(crate) lifecycle_events: Option<String>,
    /// A Redis server that triggers may read from.
    #[arg(long = "redis-host", value_name = "HOST:PORT")]
    pub(crate) redis_hosts: Vec<String>,
    /// A NATS server that triggers may read from.
    #[arg(long = "nats-host", value_name = "HOST:PORT")]
    pub(crate) nats_hosts: Vec<String>,
    /// A Kafka broker that triggers may use.
    #[arg(long = "kafka-host", value_name = "HOST:PORT")]
    pub(crate) kafka_hosts: Vec<String>,
    /// An MQTT broker that triggers may use.
    #[arg(long = "mqtt-host", value_name = "HOST:PORT")]
    pub(crate) mqtt_hosts: Vec<String>,
    /// A PostgreSQL server that triggers may read from.
    #[arg(long = "postgres-host", value_name = "HOST:PORT")]
    pub(crate) postgres_hosts: Vec<String>,
    /// A RabbitMQ server that triggers may read from.
    #[arg(long = "rabbitmq-host", value_name = "HOST:PORT")]
    pub(crate) rabbitmq_hosts: Vec<String>,
    /// A server of Amazon SQS that triggers may use, such as sqs.eu-central-1.amazonaws.com.
    #[arg(long = "sqs-host", value_name = "HOST[:PORT]")]
    pub(crate) sqs_hosts: Vec<String>,
    /// A directory whose files triggers may watch.
    #[arg(long = "file-root", value_name = "DIR")]
    pub(crate) file_roots: Vec<PathBuf>,
    /// The directory of the sink `file`.
    #[arg(long, value_name = "DIR")]
    pub(crate) event_files: Option<PathBuf>,
    /// Secrets are files: DIR/NAMESPACE/secret/NAME/KEY.
    #[arg(long, value_name = "DIR")]
    pub(crate) secrets: Option<PathBuf>,
    /// Secrets are variables of the environment: PREFIXNAMESPACE__NAME__KEY.
    #[arg(long, value_name = "PREFIX")]
    pub(crate) secrets_env: Option<String>,
    /// The file that says what a tenant may use that has no quota of its own: JSON, as `PUT /v1/quotas/NAMESPACE` takes it.
    #[arg(long, value_name = "FILE")]
    pub(crate) default_quota: Option<PathBuf>,
    /// Lines of instances go to this file too, which rotates.
    #[arg(long, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
    /// A price table: costs are told at `/v1/usage/cost`.
    #[arg(long, value_name = "FILE")]
    pub(crate) prices: Option<PathBuf>,
    /// How often usage is written while there is any, 1 to 3600: what a kill may cost of it [10].
    #[arg(long = "usage-checkpoint", value_name = "SECONDS")]
    pub(crate) usage_checkpoint_seconds: Option<u64>,
    /// Signed records of each hour's usage go to this file (docs/metering.md).
    #[arg(long, value_name = "FILE")]
    pub(crate) usage_file: Option<PathBuf>,
    /// The name of the key that they are signed with, and the file that holds it.
    #[arg(long, value_name = "NAME=FILE")]
    pub(crate) usage_key: Option<KeyFile>,
    /// An OpenTelemetry collector, such as http://127.0.0.1:4318, gets traces and metrics (docs/telemetry.md).
    #[arg(long, value_name = "URL")]
    pub(crate) otlp: Option<String>,
    /// The share of traces that is recorded beside errors and cold starts.
    #[arg(long, value_name = "SHARE")]
    pub(crate) otlp_ratio: Option<f64>,
    /// Clients do not decide what is recorded.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) otlp_ignore_parent: Option<bool>,
    /// Lines of instances go to the collector too.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) otlp_logs: Option<bool>,
    /// Manifests that are deployed at the start.
    #[arg(value_name = "MANIFEST")]
    pub(crate) manifests: Vec<PathBuf>,
}

/// A host platform: serves what manifests say. SIGTERM and SIGINT drain and end it with status 0; SIGHUP reads the
/// configuration again; SIGUSR2 hands over to a new process. SAS_ADMIN_TOKEN may hold the admin token.
#[derive(Debug, Parser)]
#[command(name = "platform")]
pub(crate) struct Cli {
    /// Writes the description of the admin API to stdout, and ends.
    #[arg(long)]
    pub(crate) openapi: bool,
    /// A file in YAML or JSON with what stands on the command line else, which goes before it (docs/configuration.md).
    #[arg(long, value_name = "FILE", env = "SAS_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Says what is wrong with such a file together with the command line, and ends: with 0 if nothing is.
    #[arg(long, value_name = "FILE")]
    pub(crate) config_check: Option<PathBuf>,
    /// Deploys services of this repository and calls them, so that the console has something to show; they need Python.
    #[arg(long)]
    pub(crate) demo: bool,
    /// Copies all state from a state directory, or a store, to that of --store or --state, which is empty, and ends. No platform
    /// may run on either meanwhile (docs/stores.md).
    #[arg(long, value_name = "DIR|URL|FILE")]
    pub(crate) copy_from: Option<String>,
    /// Makes the directory of --state of a backup (`sasctl backup`), and ends.
    #[arg(long, value_name = "FILE")]
    pub(crate) restore: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) flags: Config,
}

impl Config {
    /// Requests of each principal at the admin API: per second, and at once.
    pub(crate) fn admin_rate(&self) -> (f64, u32) {
        (self.admin_rate.unwrap_or(500.0), self.admin_burst.unwrap_or(1000))
    }

    /// What contradicts itself, and what this build can't do: all of it.
    pub(crate) fn check(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        let hosts = [
            ("redisHosts", "redis", cfg!(feature = "redis"), &self.redis_hosts),
            ("natsHosts", "nats", cfg!(feature = "nats"), &self.nats_hosts),
            ("kafkaHosts", "kafka", cfg!(feature = "kafka"), &self.kafka_hosts),
            ("mqttHosts", "mqtt", cfg!(feature = "mqtt"), &self.mqtt_hosts),
            ("postgresHosts", "postgres", cfg!(feature = "postgres"), &self.postgres_hosts),
            ("rabbitmqHosts", "rabbitmq", cfg!(feature = "rabbitmq"), &self.rabbitmq_hosts),
            ("sqsHosts", "sqs", cfg!(feature = "sqs"), &self.sqs_hosts),
        ];
        let unbuilt = |feature: &str| format!("this program was built without `--features {feature}`");
        for (field, feature, built, hosts) in hosts {
            if !built && !hosts.is_empty() {
                errors.push(field, hosts.join(","), unbuilt(feature));
            }
        }
        #[cfg(feature = "process")]
        if let Some(jail) = &self.jail
            && let Err(error) = jail.parse::<sas::process::JailLevel>()
        {
            errors.push("jail", jail, error.to_string());
        }
        if let (false, Some(dir)) = (cfg!(feature = "tls"), &self.tls_cert_dir) {
            errors.push("tlsCertDir", dir.display(), unbuilt("tls"));
        }
        if let (false, Some(root)) = (cfg!(feature = "files"), self.file_roots.first()) {
            errors.push("fileRoots", root.display(), unbuilt("files"));
        }
        let otlp = [
            ("otlpRatio", self.otlp_ratio.map(|ratio| ratio.to_string())),
            ("otlpIgnoreParent", self.otlp_ignore_parent.map(|on| on.to_string())),
            ("otlpLogs", self.otlp_logs.map(|on| on.to_string())),
        ];
        for (field, value) in otlp {
            if let (None, Some(value)) = (&self.otlp, value) {
                errors.push(field, value, "wants `otlp` beside it: the URL of a collector");
            }
        }
        if let (false, Some(cluster)) = (cfg!(feature = "kubernetes"), &self.kubernetes) {
            errors.push("kubernetes", cluster, unbuilt("kubernetes"));
        }
        let pods = [
            ("kubernetesNamespace", self.kubernetes_namespace.clone()),
            ("kubernetesPlatform", self.kubernetes_platform.clone()),
            ("kubernetesOverlay", self.kubernetes_overlay.as_ref().map(|file| file.display().to_string())),
            ("kubernetesReferences", self.kubernetes_references.map(|on| on.to_string())),
        ];
        for (field, value) in pods {
            if let (None, Some(value)) = (&self.kubernetes, value) {
                errors.push(field, value, "wants `kubernetes` beside it");
            }
        }
        if let (false, Some(url)) = (cfg!(feature = "otel"), &self.otlp) {
            errors.push("otlp", shown(&url.as_str().into()), unbuilt("otel"));
        }
        if let Some(ratio) = self.otlp_ratio.filter(|ratio| !(0.0..=1.0).contains(ratio)) {
            errors.push("otlpRatio", ratio, "must be a share from 0 to 1");
        }
        let several = [
            ("hostName", self.host_name.clone()),
            ("advertise", self.advertise.map(|address| address.to_string())),
            ("peersSecret", self.peers_secret.as_ref().map(|file| file.display().to_string())),
        ];
        if several.iter().any(|(_, value)| value.is_some()) {
            for (field, _) in several.iter().filter(|(_, value)| value.is_none()) {
                errors.push(
                    *field,
                    "",
                    "one of several hosts wants `hostName`, `advertise` and `peersSecret`",
                );
            }
        }
        if let (Some(_), Some(broker)) = (&self.host_name, &self.lifecycle_events) {
            errors.push(
                "lifecycleEvents",
                broker,
                "a broker is on one of several hosts: leave it out, or `hostName`",
            );
        }
        if let (None, Some(term)) = (&self.host_name, self.host_term_seconds) {
            errors.push("hostTermSeconds", term, "wants `hostName` beside it");
        }
        if self.host_max_instances == Some(0) {
            errors.push("hostMaxInstances", 0, "must be at least 1; leave it out for no bound");
        }
        if let Some(rate) = self.admin_rate.filter(|rate| !rate.is_finite() || *rate <= 0.0) {
            errors.push("adminRate", rate, "must be more than 0 requests per second");
        }
        if self.admin_burst == Some(0) {
            errors.push("adminBurst", 0, "must be at least 1");
        }
        if let Some(seconds) = self.usage_checkpoint_seconds.filter(|seconds| !(1..=3_600).contains(seconds))
        {
            errors.push("usageCheckpointSeconds", seconds, "must be 1 to 3600 seconds");
        }
        match (&self.usage_file, &self.usage_key) {
            (Some(file), None) => errors.push("usageFile", file.display(), "wants `usageKey` beside it"),
            (None, Some(key)) => errors.push("usageKey", key, "wants `usageFile` beside it"),
            _ => {}
        }
        if let (Some(dir), Some(_)) = (&self.secrets, &self.secrets_env) {
            errors.push("secrets", dir.display(), "give it or `secretsEnv`, not both");
        }
        if let (None, Some(place)) = (&self.state, &self.packages) {
            let problem =
                "wants `state` beside it: the directory in which copies are kept of what this host runs";
            errors.push("packages", shown(&place.as_str().into()), problem);
        }
        self.check_files(&mut errors);
        if let AdminAt::Address(address) = self.admin.clone().unwrap_or_default()
            && !address.ip().to_canonical().is_loopback()
            && !(cfg!(feature = "tls") && self.tls_cert_dir.is_some())
            && !self.admin_without_tls.unwrap_or_default()
        {
            let problem = "tokens would go there in the clear: give `tlsCertDir`, listen on loopback, or say by \
                           `adminWithoutTls` that it is meant";
            errors.push("admin", address, problem);
        }
        errors.into_result()
    }

    /// That what it names can be read: a new process that takes over is told so before the old one ends.
    fn check_files(&self, errors: &mut SpecErrors) {
        let files = [("peersSecret", self.peers_secret.as_ref())].into_iter();
        let key = self.usage_key.as_ref().map(|key| &key.file);
        let files = files.chain([("usageKey", key)]);
        let files = files.chain(self.manifests.iter().map(|file| ("manifests", Some(file))));
        for (field, file) in files.filter_map(|(field, file)| Some((field, file?))) {
            // What is no file, such as /dev/stdin, can be read once.
            let readable = std::fs::metadata(file).and_then(|found| match found.is_dir() {
                true => Err(std::io::ErrorKind::IsADirectory.into()),
                false if found.is_file() => std::fs::File::open(file).map(|_| ()),
                false => Ok(()),
            });
            if let Err(error) = readable {
                errors.push(field, file.display(), format!("can't be read: {error}"));
            }
        }
        if let Some(dir) = &self.tls_cert_dir
            && let Err(error) = std::fs::read_dir(dir)
        {
            errors.push("tlsCertDir", dir.display(), format!("can't be read: {error}"));
        }
    }
}

/// A value that is a word in files and on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Word<T>(pub(crate) T);

impl<T: FromStr> FromStr for Word<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        text.parse().map(Self)
    }
}

impl<T: fmt::Display> fmt::Display for Word<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where the admin API is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum AdminAt {
    Address(SocketAddr),
    Socket(PathBuf),
}

impl FromStr for AdminAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Socket(path.into())),
            None => text
                .parse()
                .map(Self::Address)
                .map_err(|_| format!("{text}: write an address like 127.0.0.1:8081, or unix:PATH")),
        }
    }
}

impl Default for AdminAt {
    fn default() -> Self {
        Self::Address(SocketAddr::from(([127, 0, 0, 1], 8081)))
    }
}

impl fmt::Display for AdminAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A network of addresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Network(pub(crate) IpAddr, pub(crate) u8);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once('/')
            .and_then(|(address, prefix)| Some(Self(address.parse().ok()?, prefix.parse().ok()?)))
            .filter(|Self(address, prefix)| *prefix <= if address.is_ipv4() { 32 } else { 128 })
            .ok_or_else(|| format!("{text}: write one like 10.0.0.0/8"))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, self.1)
    }
}

/// A key by its name, in a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeyFile {
    pub(crate) name: String,
    pub(crate) file: PathBuf,
}

impl FromStr for KeyFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, file) = text.split_once('=').ok_or_else(|| format!("{text}: write NAME=FILE"))?;
        Ok(Self { name: name.to_owned(), file: file.into() })
    }
}

impl fmt::Display for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.file.display())
    }
}

/// In files they are text, as on the command line.
macro_rules! text_in_files {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

text_in_files!(Word<Preset>, AdminAt, Network, KeyFile);

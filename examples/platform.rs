//! A host platform in one file.
//!
//! ```text
//! platform --listen ADDR --admin ADDR|unix:PATH [--state DIR] [--domain localhost] [--preset default|knative|frugal] MANIFEST...
//! ```
//!
//! Built with `--features container` it runs images too, as root where crun or runc is installed:
//! `--plain-http-registry 127.0.0.1:5000` names a registry without TLS, `--image-root DIR` a directory below which images of
//! files are read (`oci:DIR/layout:tag`).
//!
//! `--secrets DIR` reads what manifests refer to as secrets from `DIR/NAMESPACE/secret/NAME/KEY`; a changed file counts for
//! new instances and for webhooks at once.
//!
//! `--secrets-env PREFIX` reads them from the variables `PREFIXNAMESPACE__NAME__KEY` of its environment instead.
//!
//! `--default-quota FILE` is what every tenant may use that has no quota of its own: JSON as `PUT /v1/quotas/NAMESPACE` takes
//! it (docs/tenancy.md).
//!
//! `--allow-registry NAME` lets images come from that registry, or a folder of it, and no other; may be repeated.
//!
//! `--log-file FILE` writes the lines of instances to a file that rotates; `--prices FILE` tells costs at `/v1/usage/cost`;
//! `--usage-file FILE --usage-key NAME=FILE` writes signed records of each hour (docs/metering.md).
//!
//! Built with `--features otel`, `--otlp http://127.0.0.1:4318` sends traces and metrics to an OpenTelemetry collector:
//! `--otlp-ratio 0.01` records one trace in a hundred beside all errors and cold starts, `--otlp-ignore-parent` does not let
//! clients decide that, `--otlp-logs` sends the lines of instances too. `OTEL_EXPORTER_OTLP_HEADERS` holds headers for it, as
//! `name=value,name=value` (docs/telemetry.md).
//!
//! `--workers COUNT` serves requests from that many threads of the listener's own (docs/data-plane.md, "Speed").
//!
//! A service answers at `Host: <name>.<namespace>.<domain>`. One JSON line on stdout says that it serves; logs go to
//! stderr, as much as `RUST_LOG` says (`info` without it). SIGTERM and SIGINT drain and end it with status 0.
//!
//! Instances connect to no port that the platform listens on itself, and not to the metadata services of clouds;
//! `--close-network 10.0.0.0/8` closes one more network to them (as root). `--egress-grant PORT` lets services list one more port
//! in `sas.dev/egress`, `--max-disk-bytes` and `--max-pids` bound what they ask for (and are what each container has),
//! `--max-data-bytes` what the directory of a service holds that stays (`sas.dev/data`),
//! `--total-memory-bytes` and `--total-pids` what all instances of packages, and all containers, have together, and
//! `--allow-zygotes` lets them bring programs that run without namespaces as the host's user (SECURITY.md).
//!
//! The admin API wants `Authorization: Bearer TOKEN`, with the token of `SAS_ADMIN_TOKEN`, or else of the file that the
//! JSON line names; a new token in that file counts at once. A Unix socket has mode 0600, and wants no token unless
//! there is one in `SAS_ADMIN_TOKEN`. `platform --openapi` writes the description of the admin API to stdout.

use std::{
    env::VarError,
    error::Error,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use metrics_exporter_prometheus::PrometheusBuilder;
use sas::{
    control::{
        AllowedSources, FileUsageExport, LogFileLimits, PackageRoots, PriceTable, SecretDir, SecretEnv,
        UsageKey,
    },
    core::{Recorder, Secret, SecretSource},
    prelude::*,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

const USAGE: &str = "usage: platform --listen ADDR --admin ADDR|unix:PATH [--workers COUNT] [--state DIR] [--domain DOMAIN] \
[--preset default|knative|frugal] [--drain SECONDS] [--admin-token-file FILE] [--admin-host NAME]... [--open-metrics] [--require-if-match] [--admin-without-tls] [--jail none|basic|strict] [--allow-zygotes] [--egress-grant PORT]... [--close-network ADDRESS/PREFIX]... [--max-disk-bytes BYTES] [--max-pids COUNT] [--max-data-bytes BYTES] [--total-memory-bytes BYTES] [--total-pids COUNT] [--package-root DIR]... [--plain-http-registry HOST]... [--image-root DIR]... [--webhook-host HOST]... \
[--redis-host HOST:PORT]... [--nats-host HOST:PORT]... [--kafka-host HOST:PORT]... [--mqtt-host HOST:PORT]... [--postgres-host HOST:PORT]... [--rabbitmq-host HOST:PORT]... [--file-root DIR]... \
[--event-files DIR] [--secrets DIR | --secrets-env PREFIX] [--default-quota FILE] [--allow-registry NAME]... [--log-file FILE] [--prices FILE] [--usage-file FILE --usage-key NAME=FILE] \
[--otlp URL [--otlp-ratio SHARE] [--otlp-ignore-parent] [--otlp-logs]] MANIFEST...\n       platform --openapi";

/// Where the admin API is.
enum AdminAt {
    Address(SocketAddr),
    Socket(PathBuf),
}

struct Options {
    listen: SocketAddr,
    workers: usize,
    admin: AdminAt,
    state: Option<PathBuf>,
    package_roots: Vec<PathBuf>,
    webhook_hosts: Vec<String>,
    /// Servers that triggers may read from, by the feature that knows them.
    broker_hosts: Vec<(&'static str, String)>,
    /// Directories whose files triggers may watch.
    file_roots: Vec<PathBuf>,
    event_files: Option<PathBuf>,
    domain: String,
    preset: Preset,
    drain: Duration,
    token_file: Option<PathBuf>,
    admin_hosts: Vec<String>,
    open_metrics: bool,
    require_if_match: bool,
    admin_without_tls: bool,
    jail: String,
    zygotes: bool,
    egress_grants: Vec<u16>,
    closed_networks: Vec<(IpAddr, u8)>,
    max_disk_bytes: Option<u64>,
    max_pids: Option<u64>,
    max_data_bytes: Option<u64>,
    total_memory_bytes: Option<u64>,
    total_pids: Option<u64>,
    /// Lines of instances go here too.
    log_file: Option<PathBuf>,
    /// A price table.
    prices: Option<PathBuf>,
    /// Signed usage records go here.
    usage_file: Option<PathBuf>,
    /// The name of the key that they are signed with, and the file that holds it.
    usage_key: Option<(String, PathBuf)>,
    #[cfg_attr(not(feature = "container"), allow(dead_code, reason = "read where images are run"))]
    images: Images,
    /// Secrets are files of this directory.
    secrets: Option<PathBuf>,
    /// Secrets are variables of this prefix.
    secrets_env: Option<String>,
    /// What tenants may use.
    default_quota: Option<PathBuf>,
    /// Images come from these registries only, if any is named.
    registries: Vec<String>,
    #[cfg_attr(not(feature = "otel"), allow(dead_code, reason = "read where telemetry is exported"))]
    otlp: Otlp,
    manifests: Vec<PathBuf>,
}

/// The servers of one feature.
#[cfg(any(
    feature = "kafka",
    feature = "mqtt",
    feature = "redis",
    feature = "nats",
    feature = "postgres",
    feature = "rabbitmq"
))]
fn hosts_of(feature: &str, hosts: &[(&str, String)]) -> Vec<String> {
    hosts.iter().filter(|(of, _)| *of == feature).map(|(_, host)| host.clone()).collect()
}

/// Where images come from.
#[derive(Default)]
#[cfg_attr(not(feature = "container"), allow(dead_code, reason = "read where images are run"))]
struct Images {
    plain_http: Vec<String>,
    roots: Vec<PathBuf>,
}

/// Where telemetry goes, and which.
#[derive(Default)]
#[cfg_attr(not(feature = "otel"), allow(dead_code, reason = "read where telemetry is exported"))]
struct Otlp {
    endpoint: Option<String>,
    ratio: Option<f64>,
    ignore_parent: bool,
    logs: bool,
}

#[cfg(feature = "otel")]
impl Otlp {
    fn config(self) -> Result<Option<sas::otel::OtelConfig>, String> {
        let Some(endpoint) = self.endpoint else {
            let alone = self.ratio.is_some() || self.ignore_parent || self.logs;
            let problem = "--otlp-ratio, --otlp-ignore-parent and --otlp-logs want --otlp URL beside them";
            return if alone { Err(problem.to_owned()) } else { Ok(None) };
        };
        let mut config = sas::otel::OtelConfig::new(endpoint);
        if let Some(ratio) = self.ratio {
            config.sampling.ratio = ratio;
        }
        config.sampling.parent = !self.ignore_parent;
        config.logs = self.logs;
        match std::env::var("OTEL_EXPORTER_OTLP_HEADERS") {
            Ok(headers) => {
                for header in headers.split(',').filter(|header| !header.trim().is_empty()) {
                    let (name, value) = header
                        .split_once('=')
                        .ok_or("OTEL_EXPORTER_OTLP_HEADERS: write name=value,name=value")?;
                    config.headers.push((name.trim().to_owned(), Secret::new(value.trim())));
                }
            }
            Err(VarError::NotPresent) => {}
            Err(error) => return Err(format!("OTEL_EXPORTER_OTLP_HEADERS: {error}")),
        }
        Ok(Some(config))
    }
}

impl Options {
    /// Takes a server that triggers may read from.
    fn broker_host(&mut self, feature: &'static str, built: bool, host: String) -> Result<(), String> {
        if !built {
            return Err(format!("--{feature}-host: this program was built without `--features {feature}`"));
        }
        self.broker_hosts.push((feature, host));
        Ok(())
    }

    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            workers: 0,
            admin: AdminAt::Address(SocketAddr::from(([127, 0, 0, 1], 8081))),
            state: None,
            package_roots: Vec::new(),
            webhook_hosts: Vec::new(),
            broker_hosts: Vec::new(),
            file_roots: Vec::new(),
            event_files: None,
            domain: "localhost".to_owned(),
            preset: Preset::Default,
            drain: Duration::from_secs(30),
            token_file: None,
            admin_hosts: Vec::new(),
            open_metrics: false,
            require_if_match: false,
            admin_without_tls: false,
            jail: "basic".to_owned(),
            zygotes: false,
            egress_grants: Vec::new(),
            closed_networks: Vec::new(),
            max_disk_bytes: None,
            max_pids: None,
            max_data_bytes: None,
            total_memory_bytes: None,
            total_pids: None,
            log_file: None,
            prices: None,
            usage_file: None,
            usage_key: None,
            images: Images::default(),
            secrets: None,
            secrets_env: None,
            default_quota: None,
            registries: Vec::new(),
            otlp: Otlp::default(),
            manifests: Vec::new(),
        };
        while let Some(argument) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{argument}: needs a value\n{USAGE}"));
            let address = |text: String| {
                text.parse()
                    .map_err(|_| format!("{argument} {text}: not an address; write one like 127.0.0.1:8080"))
            };
            match argument.as_str() {
                "--listen" => options.listen = address(value()?)?,
                "--workers" => options.workers = number(&argument, &value()?)?,
                "--admin" => {
                    let text = value()?;
                    options.admin = match text.strip_prefix("unix:") {
                        Some(path) => AdminAt::Socket(path.into()),
                        None => AdminAt::Address(address(text)?),
                    }
                }
                "--state" => options.state = Some(value()?.into()),
                "--package-root" => options.package_roots.push(value()?.into()),
                "--redis-host" => options.broker_host("redis", cfg!(feature = "redis"), value()?)?,
                "--mqtt-host" => options.broker_host("mqtt", cfg!(feature = "mqtt"), value()?)?,
                "--kafka-host" => options.broker_host("kafka", cfg!(feature = "kafka"), value()?)?,
                "--nats-host" => options.broker_host("nats", cfg!(feature = "nats"), value()?)?,
                "--postgres-host" => options.broker_host("postgres", cfg!(feature = "postgres"), value()?)?,
                "--rabbitmq-host" => options.broker_host("rabbitmq", cfg!(feature = "rabbitmq"), value()?)?,
                "--file-root" if cfg!(feature = "files") => options.file_roots.push(value()?.into()),
                "--file-root" => {
                    return Err("--file-root: this program was built without `--features files`".into());
                }
                "--webhook-host" => options.webhook_hosts.push(value()?),
                "--event-files" => options.event_files = Some(value()?.into()),
                "--admin-token-file" => options.token_file = Some(value()?.into()),
                "--admin-host" => options.admin_hosts.push(value()?),
                "--jail" => options.jail = value()?,
                "--allow-zygotes" => options.zygotes = true,
                "--egress-grant" => options.egress_grants.push(number(&argument, &value()?)?),
                "--close-network" => {
                    let text = value()?;
                    let network = text
                        .split_once('/')
                        .and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)));
                    let network = network
                        .ok_or_else(|| format!("--close-network {text}: write one like 10.0.0.0/8"))?;
                    options.closed_networks.push(network);
                }
                "--max-disk-bytes" => options.max_disk_bytes = Some(number(&argument, &value()?)?),
                "--max-pids" => options.max_pids = Some(number(&argument, &value()?)?),
                "--max-data-bytes" => options.max_data_bytes = Some(number(&argument, &value()?)?),
                "--total-memory-bytes" => {
                    options.total_memory_bytes = Some(number(&argument, &value()?)?);
                }
                "--total-pids" => options.total_pids = Some(number(&argument, &value()?)?),
                "--plain-http-registry" => options.images.plain_http.push(value()?),
                "--image-root" => options.images.roots.push(value()?.into()),
                "--secrets" => options.secrets = Some(value()?.into()),
                "--secrets-env" => options.secrets_env = Some(value()?),
                "--default-quota" => options.default_quota = Some(value()?.into()),
                "--allow-registry" => options.registries.push(value()?),
                "--log-file" => options.log_file = Some(value()?.into()),
                "--prices" => options.prices = Some(value()?.into()),
                "--usage-file" => options.usage_file = Some(value()?.into()),
                "--usage-key" => {
                    let text = value()?;
                    let (name, file) =
                        text.split_once('=').ok_or_else(|| format!("--usage-key {text}: write NAME=FILE"))?;
                    options.usage_key = Some((name.to_owned(), file.into()));
                }
                "--otlp" | "--otlp-ratio" | "--otlp-ignore-parent" | "--otlp-logs"
                    if !cfg!(feature = "otel") =>
                {
                    return Err(format!("{argument}: this program was built without `--features otel`"));
                }
                "--otlp" => options.otlp.endpoint = Some(value()?),
                "--otlp-ratio" => {
                    let text = value()?;
                    let ratio =
                        text.parse().map_err(|_| format!("--otlp-ratio {text}: a share from 0 to 1"))?;
                    options.otlp.ratio = Some(ratio);
                }
                "--otlp-ignore-parent" => options.otlp.ignore_parent = true,
                "--otlp-logs" => options.otlp.logs = true,
                "--open-metrics" => options.open_metrics = true,
                "--admin-without-tls" => options.admin_without_tls = true,
                "--require-if-match" => options.require_if_match = true,
                "--domain" => options.domain = value()?,
                "--preset" => {
                    options.preset = value()?.parse().map_err(|error| format!("--preset {error}"))?;
                }
                "--drain" => {
                    let text = value()?;
                    let seconds = text.parse().map_err(|_| format!("--drain {text}: whole seconds"))?;
                    options.drain = Duration::from_secs(seconds);
                }
                "--help" | "-h" => return Err(USAGE.to_owned()),
                flag if flag.starts_with('-') => return Err(format!("{flag}: no such option\n{USAGE}")),
                manifest => options.manifests.push(manifest.into()),
            }
        }
        Ok(options)
    }
}

/// A number that an option gives.
fn number<T: std::str::FromStr>(option: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{option} {text}: a whole number that fits (a port: 1 to 65535)"))
}

async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let prometheus = PrometheusBuilder::new().build_recorder();
    let metrics = prometheus.handle();
    let recorder = Recorder::new(Arc::new(prometheus));

    // The gateway's port is everybody's, and often one that services must reach elsewhere, such as 443. The admin API's is
    // taken now, so that the one that the kernel chooses is closed to instances too.
    let mut closed: Vec<u16> = Vec::new();
    let mut builder = Platform::builder()
        .listen(options.listen)
        .workers(options.workers)
        .domain(options.domain)
        .preset(options.preset)
        .recorder(recorder.clone())
        .metrics_text(move || metrics.render());
    builder = match options.admin {
        AdminAt::Address(address) => {
            let listener = std::net::TcpListener::bind(address)
                .map_err(|error| format!("--admin {address}: can't listen there: {error}"))?;
            closed.push(listener.local_addr()?.port());
            builder.admin_listener(listener)?
        }
        AdminAt::Socket(path) => builder.admin_socket(path),
    };
    match std::env::var("SAS_ADMIN_TOKEN") {
        Ok(token) => builder = builder.admin_token(token),
        Err(VarError::NotPresent) => {}
        Err(error) => return Err(format!("SAS_ADMIN_TOKEN: {error}").into()),
    }
    if let Some(file) = options.token_file {
        builder = builder.admin_token_file(file);
    }
    for host in options.admin_hosts {
        builder = builder.admin_host(host);
    }
    #[cfg(feature = "webhook")]
    {
        builder = builder.webhook_hosts(options.webhook_hosts);
        if let Some(dir) = options.event_files {
            builder = builder.event_files(dir);
        }
    }
    #[cfg(not(feature = "webhook"))]
    drop((options.webhook_hosts, options.event_files));
    #[cfg(feature = "redis")]
    {
        builder = builder.redis_hosts(hosts_of("redis", &options.broker_hosts));
    }
    #[cfg(feature = "mqtt")]
    {
        builder = builder.mqtt_hosts(hosts_of("mqtt", &options.broker_hosts));
    }
    #[cfg(feature = "kafka")]
    {
        builder = builder.kafka_hosts(hosts_of("kafka", &options.broker_hosts));
    }
    #[cfg(feature = "nats")]
    {
        builder = builder.nats_hosts(hosts_of("nats", &options.broker_hosts));
    }
    #[cfg(feature = "postgres")]
    {
        builder = builder.postgres_hosts(hosts_of("postgres", &options.broker_hosts));
    }
    #[cfg(feature = "files")]
    {
        builder = builder.file_roots(options.file_roots);
    }
    #[cfg(not(feature = "files"))]
    drop(options.file_roots);
    #[cfg(feature = "rabbitmq")]
    {
        builder = builder.rabbitmq_hosts(hosts_of("rabbitmq", &options.broker_hosts));
    }
    if options.open_metrics {
        builder = builder.open_metrics();
    }
    if let Some(file) = options.log_file {
        builder = builder.log_file(file, LogFileLimits::default());
    }
    if let Some(file) = options.prices {
        let text = std::fs::read_to_string(&file)
            .map_err(|error| format!("--prices {}: {error}", file.display()))?;
        builder = builder.prices(PriceTable::parse(&text)?);
    }
    match (options.usage_file, options.usage_key) {
        (Some(file), Some((name, key))) => {
            let text = std::fs::read_to_string(&key)
                .map_err(|error| format!("--usage-key {}: {error}", key.display()))?;
            let key = UsageKey::new(name, Secret::new(text.trim_end()))?;
            builder = builder.usage_export("file", key, FileUsageExport::new(file));
        }
        (None, None) => {}
        _ => return Err("--usage-file and --usage-key: give both, or none".into()),
    }
    let secrets: Option<Arc<dyn SecretSource>> = match (options.secrets, options.secrets_env) {
        (Some(dir), None) => Some(Arc::new(SecretDir::new(dir, builder.namespaces()))),
        (None, Some(prefix)) => Some(Arc::new(SecretEnv::new(prefix, builder.namespaces()))),
        (None, None) => None,
        _ => return Err("--secrets and --secrets-env: give one of them".into()),
    };
    if let Some(secrets) = &secrets {
        builder = builder.secrets(Arc::clone(secrets));
    }
    if let Some(file) = options.default_quota {
        let failed = |error: &dyn std::fmt::Display| format!("--default-quota {}: {error}", file.display());
        let text = std::fs::read_to_string(&file).map_err(|error| failed(&error))?;
        let quota: TenantQuota = serde_json::from_str(&text).map_err(|error| failed(&error))?;
        builder = builder.default_tenant_quota(quota);
    }
    #[cfg(feature = "otel")]
    if let Some(config) = options.otlp.config()? {
        builder = builder.otel(config);
    }
    if !options.registries.is_empty() {
        builder = builder.admission(
            // Directories have a list of their own, `--package-root`.
            options
                .registries
                .into_iter()
                .fold(AllowedSources::none().with_root("/"), AllowedSources::with_registry),
        );
    }
    if options.require_if_match {
        builder = builder.require_conditions();
    }
    if !options.package_roots.is_empty() {
        // The manifests of the command line name packages of their own directories.
        let manifests = options.manifests.iter().filter_map(|path| path.parent());
        let dirs = options.package_roots.iter().map(PathBuf::as_path).chain(manifests);
        builder = builder.package_roots(dirs.fold(PackageRoots::none(), PackageRoots::with));
    }
    if let Some(state) = &options.state {
        builder = builder.state_dir(state);
        // A build without the feature keeps its state all the same.
        #[cfg(not(feature = "redb"))]
        {
            sas::control::private_dir(state)?;
            let store = sas_store_redb::RedbStore::open(state.join("state.redb")).await?;
            builder = builder.store(Arc::new(store));
        }
    }
    #[cfg(feature = "process")]
    {
        let mut config = ProcessConfig::default();
        if let Some(state) = &options.state {
            config.store = state.join("unpacked");
            config.keep_packages = Duration::from_secs(600);
        }
        config.recorder = recorder.clone();
        config.data =
            options.state.as_ref().map(|state| std::path::absolute(state.join("data"))).transpose()?;
        config.jail.level = options.jail.parse()?;
        config.zygotes = options.zygotes;
        config.jail.egress_grants = options.egress_grants;
        config.jail.closed_networks.extend(options.closed_networks);
        if let Some(most) = options.max_disk_bytes {
            config.jail.max_disk_bytes = most;
        }
        if let Some(most) = options.max_pids {
            config.jail.max_instance_processes = most;
        }
        if let Some(most) = options.max_data_bytes {
            config.jail.data_bytes = most;
        }
        config.jail.total_memory = options.total_memory_bytes;
        config.jail.total_processes = options.total_pids;
        config.jail.closed_ports = closed;
        for port in &config.jail.closed_ports {
            if config.jail.egress_ports.contains(port) || config.jail.egress_grants.contains(port) {
                tracing::warn!(
                    port,
                    "instances connect to this port nowhere: the platform listens on it itself"
                );
            }
        }
        let runtime = ProcessRuntime::new(config)?;
        tracing::info!(report = %runtime.jail_report(), "instances are jailed");
        builder = builder.runtime(runtime);
    }
    #[cfg(not(feature = "process"))]
    drop((
        options.jail,
        options.zygotes,
        options.egress_grants,
        options.closed_networks,
        options.max_data_bytes,
        closed,
    ));
    #[cfg(all(feature = "container", target_os = "linux"))]
    {
        let mut config = ContainerConfig::default();
        if let Some(state) = &options.state {
            config.store = std::path::absolute(state.join("images"))?;
        }
        config.recorder = recorder.clone();
        config.secrets = secrets;
        if let Some(most) = options.max_disk_bytes {
            config.disk_bytes = most;
        }
        if let Some(most) = options.max_pids {
            config.processes = most;
        }
        config.total_memory = options.total_memory_bytes;
        config.total_processes = options.total_pids;
        config.registries.plain_http = options.images.plain_http;
        config.local_images =
            options.images.roots.iter().map(std::path::absolute).collect::<Result<_, _>>()?;
        config.progress = Some(Arc::new(Watch));
        match ContainerRuntime::new(config) {
            Ok(runtime) => {
                tracing::info!(program = runtime.program(), "images are run");
                builder = builder.runtime(runtime);
            }
            // Manifests that name an image are refused, with what is missing told here.
            Err(error) if error.kind == ErrorKind::Unsupported => {
                tracing::warn!(%error, "no images can be run here");
            }
            Err(error) => return Err(error.into()),
        }
    }
    #[cfg(feature = "wasm")]
    {
        let cache_dir = options.state.as_ref().map(|state| state.join("wasm-cache"));
        let config = WasmConfig { cache_dir, recorder, ..WasmConfig::default() };
        builder = builder.runtime(WasmRuntime::new(config)?);
    }
    let platform = builder.build().await?;

    for path in &options.manifests {
        if let Err(error) = deploy(&platform, path).await {
            platform.shutdown(options.drain).await;
            return Err(format!("{}: {error}", path.display()).into());
        }
    }
    let mut ready = serde_json::json!({
        "ready": true,
        "listen": platform.listen_addr().map(|a| a.to_string()),
        "admin": platform.admin_addr().map(|a| a.to_string()),
    });
    if let Some(socket) = platform.admin_socket() {
        ready["admin"] = format!("unix:{}", socket.display()).into();
    }
    if let Some(file) = platform.admin_token_file() {
        ready["adminTokenFile"] = std::path::absolute(file)?.to_string_lossy().into();
    }
    // For tools on this host, such as `sasctl --state`.
    if let Some(state) = &options.state {
        std::fs::write(state.join("platform.json"), format!("{ready}\n"))?;
    }
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{ready}")?;
    stdout.flush()?;

    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let report = platform.shutdown(options.drain).await;
    writeln!(std::io::stderr(), "drained: {}, after {:?}", report.drained, report.took)?;
    Ok(())
}

/// Pulls, as a line that a person likes to watch where stderr is a terminal.
#[cfg(all(feature = "container", target_os = "linux"))]
#[derive(Debug)]
struct Watch;

#[cfg(all(feature = "container", target_os = "linux"))]
impl sas::container::PullObserver for Watch {
    fn progress(&self, image: &str, progress: &sas::container::PullProgress) {
        use sas::container::PullProgress;
        use std::io::IsTerminal as _;
        let mut stderr = std::io::stderr();
        if !stderr.is_terminal() {
            if !matches!(progress, PullProgress::Pulling { .. }) {
                tracing::info!(image, %progress, "pull");
            }
            return;
        }
        let end = if matches!(progress, PullProgress::Pulling { .. }) { "" } else { "\n" };
        let _ = write!(stderr, "\r\x1b[2K{image}: {progress}{end}");
        let _ = stderr.flush();
    }
}

async fn deploy(platform: &Platform, path: &Path) -> Result<(), Box<dyn Error>> {
    let text = std::fs::read_to_string(path)?;
    platform.apply(&text, path.parent()).await?;
    Ok(())
}

/// Logs to stderr, as much as `RUST_LOG` says.
fn log() {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

#[tokio::main]
async fn main() -> ExitCode {
    if std::env::args().skip(1).eq(["--openapi"]) {
        let written = writeln!(std::io::stdout(), "{}", sas::control::Admin::openapi());
        return if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    log();
    let outcome = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => Box::pin(run(options)).await,
        Err(problem) => Err(problem.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "platform: {error}");
            ExitCode::FAILURE
        }
    }
}

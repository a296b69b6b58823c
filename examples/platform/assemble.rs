//! A platform from what it was told.

use std::{env::VarError, error::Error, sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusBuilder;
use sas::{
    ClusterOptions,
    control::{FileUsageExport, LogFileLimits, SecretDir, SecretEnv, UsageKey},
    core::{Recorder, Secret, SecretSource, Store},
    prelude::*,
};

use crate::{
    config::{AdminAt, Config},
    upgrade::Sockets,
};

/// What goes wrong on the way, for a human.
type Failure = Box<dyn Error>;

/// The platform that `config` describes, before it starts.
pub(crate) async fn assemble(config: &Config, sockets: &Sockets) -> Result<PlatformBuilder, Failure> {
    let prometheus = PrometheusBuilder::new().build_recorder();
    let metrics = prometheus.handle();
    let recorder = Recorder::new(Arc::new(prometheus));

    let mut builder = Platform::builder()
        .listener(sockets.requests.try_clone()?)?
        .workers(config.workers.unwrap_or_default())
        .domain(config.domain.as_deref().unwrap_or("localhost"))
        .preset(config.preset.unwrap_or_default().0)
        .recorder(recorder.clone())
        .metrics_text(move || metrics.render());
    // The gateway's port is everybody's, and often one that services must reach elsewhere, such as 443. The admin API's is
    // taken now, so that the one that the kernel chooses is closed to instances too.
    let mut closed: Vec<u16> = Vec::new();
    builder = match (&sockets.admin, config.admin.clone().unwrap_or_default()) {
        (Some(listener), _) => {
            closed.push(listener.local_addr()?.port());
            builder.admin_listener(listener.try_clone()?)?
        }
        (None, AdminAt::Socket(path)) => builder.admin_socket(path),
        (None, AdminAt::Address(address)) => builder.admin(address),
    };
    #[cfg(feature = "console")]
    if has_console(config) {
        builder = builder.console();
    }
    #[cfg(feature = "tls")]
    if let Some(dir) = &config.tls_cert_dir {
        builder = builder.certificates(dir);
    }
    builder = access(builder, config)?;
    builder = events(builder, config);
    builder = usage(builder, config)?;
    let secrets: Option<Arc<dyn SecretSource>> = match (&config.secrets, &config.secrets_env) {
        (Some(dir), _) => Some(Arc::new(SecretDir::new(dir, builder.namespaces()))),
        (None, Some(prefix)) => Some(Arc::new(SecretEnv::new(prefix, builder.namespaces()))),
        (None, None) => None,
    };
    if let Some(secrets) = &secrets {
        builder = builder.secrets(Arc::clone(secrets));
    }
    #[cfg(feature = "otel")]
    if let Some(otel) = otel(config)? {
        builder = builder.otel(otel);
    }
    if let Some(state) = &config.state {
        builder = builder.state_dir(state);
        // A build without the feature keeps its state all the same.
        #[cfg(not(feature = "redb"))]
        if config.store.is_none() {
            sas::control::private_dir(state)?;
            let store = sas_store_redb::RedbStore::open(state.join("state.redb")).await?;
            builder = builder.store(Arc::new(store));
        }
    }
    if let Some(place) = &config.store {
        builder = builder.store(open_store("--store", place).await?);
    }
    if let (Some(place), Some(state)) = (&config.packages, &config.state) {
        without_password("--packages", place)?;
        let opening = sas::open_packages(place, state.join("packages"));
        builder = builder.packages(opening.await.map_err(|error| format!("--packages: {error}"))?);
    }
    builder = one_of_several(builder, config)?;
    if let Some(most) = config.host_max_instances {
        builder = builder.configure_pool(move |pool| pool.budget.instances = most);
    }
    #[cfg(feature = "kubernetes")]
    if let Some(cluster) = &config.kubernetes {
        builder = builder.runtime(pods(cluster, config, &recorder).await?);
    }
    runtimes(builder, config, &recorder, secrets, closed)
}

/// Instances as Pods of a cluster.
#[cfg(feature = "kubernetes")]
async fn pods(cluster: &str, config: &Config, recorder: &Recorder) -> Result<KubernetesRuntime, Failure> {
    let mut pods = KubernetesConfig::new(config.kubernetes_namespace.as_deref().unwrap_or("sas-instances"));
    pods.access = match cluster {
        "in-cluster" => Access::InCluster,
        file => Access::Kubeconfig(file.into()),
    };
    if let Some(platform) = &config.kubernetes_platform {
        pods.platform.clone_from(platform);
    }
    if let Some(file) = &config.kubernetes_overlay {
        let shown = file.display();
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("--kubernetes-overlay {shown}: {error}"))?;
        pods.overlay = serde_saphyr::from_str(&text)
            .map_err(|error| format!("--kubernetes-overlay {shown}: {error}"))?;
    }
    pods.references = config.kubernetes_references.unwrap_or_default();
    pods.recorder = recorder.clone();
    let runtime =
        KubernetesRuntime::open(pods).await.map_err(|error| format!("--kubernetes {cluster}: {error}"))?;
    tracing::info!(generation = runtime.generation(), "images are run as Pods");
    Ok(runtime)
}

/// Whether operators have pages.
pub(crate) fn has_console(config: &Config) -> bool {
    cfg!(feature = "console") && config.console.unwrap_or(true)
}

/// One of several hosts on one store.
fn one_of_several(builder: PlatformBuilder, config: &Config) -> Result<PlatformBuilder, Failure> {
    let (Some(name), Some(advertise), Some(file)) =
        (&config.host_name, config.advertise, &config.peers_secret)
    else {
        return Ok(builder);
    };
    let secret = std::fs::read_to_string(file)
        .map_err(|error| format!("--peers-secret {}: {error}", file.display()))?;
    let mut options = ClusterOptions::new(name, advertise, Secret::new(secret.trim_end()));
    if let Some(seconds) = config.host_term_seconds {
        options.term = Duration::from_secs(seconds);
    }
    Ok(builder.cluster(options))
}

/// The store that an option names.
pub(crate) async fn open_store(option: &str, place: &str) -> Result<Arc<dyn Store>, Failure> {
    without_password(option, place)?;
    Ok(sas::open_store(place).await.map_err(|error| format!("{option}: {error}"))?)
}

/// Whoever is on this host reads its command lines.
fn without_password(option: &str, place: &str) -> Result<(), Failure> {
    let login = place.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@'));
    match login {
        Some((login, _)) if login.contains(':') => {
            let problem = "a URL with a password belongs into a file: write it there, and give the file";
            Err(format!("{option}: {problem}").into())
        }
        _ => Ok(()),
    }
}

/// Who uses the admin API, and how.
fn access(mut builder: PlatformBuilder, config: &Config) -> Result<PlatformBuilder, Failure> {
    match std::env::var("SAS_ADMIN_TOKEN") {
        Ok(token) => builder = builder.admin_token(token),
        Err(VarError::NotPresent) => {}
        Err(error) => return Err(format!("SAS_ADMIN_TOKEN: {error}").into()),
    }
    if let Some(file) = &config.admin_token_file {
        builder = builder.admin_token_file(file);
    }
    for host in &config.admin_hosts {
        builder = builder.admin_host(host);
    }
    let (rate, burst) = config.admin_rate();
    builder = builder.admin_rate_limit(rate, burst);
    if config.allow_faults.unwrap_or_default() {
        builder = builder.allow_faults();
    }
    if config.open_metrics.unwrap_or_default() {
        builder = builder.open_metrics();
    }
    if config.require_if_match.unwrap_or_default() {
        builder = builder.require_conditions();
    }
    if config.admin_without_tls.unwrap_or_default() {
        builder = builder.admin_without_tls();
    }
    Ok(builder)
}

/// Where events come from and go to.
#[cfg_attr(
    not(feature = "webhook"),
    allow(unused_mut, unused_variables, reason = "each line is of one feature")
)]
fn events(mut builder: PlatformBuilder, config: &Config) -> PlatformBuilder {
    #[cfg(feature = "webhook")]
    {
        builder = builder.webhook_hosts(config.webhook_hosts.iter().cloned());
        #[cfg(feature = "workflow")]
        if !config.workflow_hosts.is_empty() {
            builder = builder.workflow_hosts(config.workflow_hosts.iter().cloned());
        }
        if let Some(dir) = &config.event_files {
            builder = builder.event_files(dir);
        }
    }
    #[cfg(feature = "workflow")]
    if config.workflow_events.unwrap_or(false) {
        builder = builder.workflows(|runs| runs.lifecycle = true);
    }
    if let Some(broker) = &config.lifecycle_events {
        builder = builder.lifecycle_events_to(broker);
    }
    #[cfg(feature = "redis")]
    {
        builder = builder.redis_hosts(config.redis_hosts.iter().cloned());
    }
    #[cfg(feature = "mqtt")]
    {
        builder = builder.mqtt_hosts(config.mqtt_hosts.iter().cloned());
    }
    #[cfg(feature = "kafka")]
    {
        builder = builder.kafka_hosts(config.kafka_hosts.iter().cloned());
    }
    #[cfg(feature = "nats")]
    {
        builder = builder.nats_hosts(config.nats_hosts.iter().cloned());
    }
    #[cfg(feature = "postgres")]
    {
        builder = builder.postgres_hosts(config.postgres_hosts.iter().cloned());
    }
    #[cfg(feature = "files")]
    {
        builder = builder.file_roots(config.file_roots.iter().cloned());
    }
    #[cfg(feature = "rabbitmq")]
    {
        builder = builder.rabbitmq_hosts(config.rabbitmq_hosts.iter().cloned());
    }
    #[cfg(feature = "sqs")]
    {
        builder = builder.sqs_hosts(config.sqs_hosts.iter().cloned());
    }
    builder
}

/// What is kept of what instances write and use.
fn usage(mut builder: PlatformBuilder, config: &Config) -> Result<PlatformBuilder, Failure> {
    if let Some(file) = &config.log_file {
        builder = builder.log_file(file, LogFileLimits::default());
    }
    if let Some(seconds) = config.usage_checkpoint_seconds {
        builder = builder.meter(move |meter| meter.checkpoint = Duration::from_secs(seconds));
    }
    if let (Some(file), Some(key)) = (&config.usage_file, &config.usage_key) {
        let text = std::fs::read_to_string(&key.file)
            .map_err(|error| format!("--usage-key {}: {error}", key.file.display()))?;
        let key = UsageKey::new(key.name.clone(), Secret::new(text.trim_end()))?;
        builder = builder.usage_export("file", key, FileUsageExport::new(file));
    }
    Ok(builder)
}

/// What code runs in.
#[allow(unused_mut, unused_variables, clippy::unnecessary_wraps, reason = "each part is of one feature")]
fn runtimes(
    mut builder: PlatformBuilder,
    config: &Config,
    recorder: &Recorder,
    secrets: Option<Arc<dyn SecretSource>>,
    closed: Vec<u16>,
) -> Result<PlatformBuilder, Failure> {
    #[cfg(feature = "process")]
    {
        let mut process = ProcessConfig::default();
        if let Some(state) = &config.state {
            process.store = state.join("unpacked");
            process.keep_packages = Duration::from_secs(600);
        }
        process.recorder = recorder.clone();
        process.data =
            config.state.as_ref().map(|state| std::path::absolute(state.join("data"))).transpose()?;
        process.jail.level = config.jail.as_deref().unwrap_or("basic").parse()?;
        process.zygotes = config.allow_zygotes.unwrap_or_default();
        process.jail.egress_grants = config.egress_grants.clone();
        process
            .jail
            .closed_networks
            .extend(config.closed_networks.iter().map(|network| (network.0, network.1)));
        if let Some(most) = config.max_disk_bytes {
            process.jail.max_disk_bytes = most;
        }
        if let Some(most) = config.max_pids {
            process.jail.max_instance_processes = most;
        }
        if let Some(most) = config.max_data_bytes {
            process.jail.data_bytes = most;
        }
        process.jail.total_memory = config.total_memory_bytes;
        process.jail.total_processes = config.total_pids;
        process.jail.closed_ports.clone_from(&closed);
        for port in &process.jail.closed_ports {
            if process.jail.egress_ports.contains(port) || process.jail.egress_grants.contains(port) {
                tracing::warn!(
                    port,
                    "instances connect to this port nowhere: the platform listens on it itself"
                );
            }
        }
        let runtime = ProcessRuntime::new(process)?;
        tracing::info!(report = %runtime.jail_report(), "instances are jailed");
        builder = builder.runtime(runtime);
    }
    // Where images run in a cluster, they run nowhere else.
    #[cfg(all(feature = "container", target_os = "linux"))]
    if config.kubernetes.is_none() {
        let mut container = ContainerConfig::default();
        if let Some(state) = &config.state {
            container.store = std::path::absolute(state.join("images"))?;
        }
        container.recorder = recorder.clone();
        container.secrets = secrets;
        if let Some(most) = config.max_disk_bytes {
            container.disk_bytes = most;
        }
        if let Some(most) = config.max_pids {
            container.processes = most;
        }
        container.total_memory = config.total_memory_bytes;
        container.total_processes = config.total_pids;
        container.closed_ports = Some(closed);
        container.registries.plain_http = config.plain_http_registries.clone();
        container.local_images =
            config.image_roots.iter().map(std::path::absolute).collect::<Result<_, _>>()?;
        container.progress = Some(Arc::new(crate::pulls::Watch));
        match ContainerRuntime::new(container) {
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
        let cache_dir = config.state.as_ref().map(|state| state.join("wasm-cache"));
        let wasm = WasmConfig { cache_dir, recorder: recorder.clone(), ..WasmConfig::default() };
        builder = builder.runtime(WasmRuntime::new(wasm)?);
    }
    Ok(builder)
}

/// Where telemetry goes, and which.
#[cfg(feature = "otel")]
fn otel(config: &Config) -> Result<Option<sas::otel::OtelConfig>, Failure> {
    let Some(endpoint) = &config.otlp else { return Ok(None) };
    let mut otel = sas::otel::OtelConfig::new(endpoint);
    if let Some(ratio) = config.otlp_ratio {
        otel.sampling.ratio = ratio;
    }
    otel.sampling.parent = !config.otlp_ignore_parent.unwrap_or_default();
    otel.logs = config.otlp_logs.unwrap_or_default();
    match std::env::var("OTEL_EXPORTER_OTLP_HEADERS") {
        Ok(headers) => {
            for header in headers.split(',').filter(|header| !header.trim().is_empty()) {
                let (name, value) = header
                    .split_once('=')
                    .ok_or("OTEL_EXPORTER_OTLP_HEADERS: write name=value,name=value")?;
                otel.headers.push((name.trim().to_owned(), Secret::new(value.trim())));
            }
        }
        Err(VarError::NotPresent) => {}
        Err(error) => return Err(format!("OTEL_EXPORTER_OTLP_HEADERS: {error}").into()),
    }
    Ok(Some(otel))
}

//! A host platform in one file.
//!
//! ```text
//! platform --listen ADDR --admin ADDR [--state DIR] [--domain localhost] [--preset default|knative] MANIFEST...
//! ```
//!
//! A service answers at `Host: <name>.<namespace>.<domain>`. One JSON line on stdout says that it serves; logs go to
//! stderr. SIGTERM and SIGINT drain and end it with status 0.

use std::{
    error::Error,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use metrics_exporter_prometheus::PrometheusBuilder;
use sas::{core::Recorder, prelude::*};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: platform --listen ADDR --admin ADDR [--state DIR] [--domain DOMAIN] \
[--preset default|knative] [--drain SECONDS] MANIFEST...";

struct Options {
    listen: SocketAddr,
    admin: SocketAddr,
    state: Option<PathBuf>,
    domain: String,
    preset: Preset,
    drain: Duration,
    manifests: Vec<PathBuf>,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin: SocketAddr::from(([127, 0, 0, 1], 8081)),
            state: None,
            domain: "localhost".to_owned(),
            preset: Preset::Default,
            drain: Duration::from_secs(30),
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
                "--admin" => options.admin = address(value()?)?,
                "--state" => options.state = Some(value()?.into()),
                "--domain" => options.domain = value()?,
                "--preset" => {
                    options.preset = match value()?.as_str() {
                        "default" => Preset::Default,
                        "knative" => Preset::Knative,
                        other => return Err(format!("--preset {other}: default or knative")),
                    }
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

async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let prometheus = PrometheusBuilder::new().build_recorder();
    let metrics = prometheus.handle();
    let recorder = Recorder::new(Arc::new(prometheus));

    let mut builder = Platform::builder()
        .listen(options.listen)
        .admin(options.admin)
        .domain(options.domain)
        .preset(options.preset)
        .recorder(recorder.clone())
        .metrics_text(move || metrics.render());
    if let Some(state) = &options.state {
        std::fs::create_dir_all(state).map_err(|error| format!("--state {}: {error}", state.display()))?;
        builder = builder.state_dir(state);
    }
    #[cfg(feature = "process")]
    {
        let mut config = ProcessConfig::default();
        if let Some(state) = &options.state {
            config.store = state.join("unpacked");
        }
        config.recorder = recorder.clone();
        builder = builder.runtime(ProcessRuntime::new(config)?);
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
    let ready = serde_json::json!({
        "ready": true,
        "listen": platform.listen_addr().map(|a| a.to_string()),
        "admin": platform.admin_addr().map(|a| a.to_string()),
    });
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

async fn deploy(platform: &Platform, path: &Path) -> Result<(), Box<dyn Error>> {
    let text = std::fs::read_to_string(path)?;
    platform.apply(&text, path.parent()).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => run(options).await,
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

//! A host platform.
//!
//! ```text
//! platform --listen ADDR --admin ADDR|unix:PATH [--state DIR] [--domain localhost] [--preset default|knative|frugal] MANIFEST...
//! platform --help
//! ```
//!
//! A console for operators is at `/console/` of the admin API's address, for browsers (docs/console.md). `platform --demo`
//! deploys services of this repository and calls them, so that there is something to see.
//!
//! `config.rs` is what it can be told, flag by flag or by a file (`file.rs`); `assemble.rs` makes a platform of it; `live.rs`
//! changes what a reload changes; `upgrade.rs` hands over to a new process.
//!
//! Built with `--features container` it runs images too, as root where crun or runc is installed; with `--features kubernetes`
//! and `--kubernetes in-cluster|FILE` as Pods of a cluster (docs/kubernetes.md). Built with
//! `--features otel`, `--otlp http://127.0.0.1:4318` sends traces and metrics to an OpenTelemetry collector;
//! `OTEL_EXPORTER_OTLP_HEADERS` holds headers for it, as `name=value,name=value` (docs/telemetry.md).
//!
//! A service answers at `Host: <name>.<namespace>.<domain>`. One JSON line on stdout says that it serves; logs go to
//! stderr, as much as `--log` or `RUST_LOG` says (`info` without both). SIGTERM and SIGINT drain and end it with status 0;
//! SIGHUP reads the configuration again; SIGUSR2 hands over to a new process of the program's file, with the listening sockets.
//!
//! Instances connect to no port that the platform listens on itself, and not to the metadata services of clouds.
//!
//! The admin API wants `Authorization: Bearer TOKEN`, with the token of `SAS_ADMIN_TOKEN`, or else of the file that the
//! JSON line names; a new token in that file counts at once. A Unix socket has mode 0600, and wants no token unless
//! there is one in `SAS_ADMIN_TOKEN`. `platform --openapi` writes the description of the admin API to stdout.

mod assemble;
mod config;
#[cfg(all(feature = "process", feature = "manifests", feature = "cron"))]
mod demo;
mod file;
mod live;
mod moving;
#[cfg(all(feature = "container", target_os = "linux"))]
mod pulls;
mod upgrade;

use std::{error::Error, io::Write as _, path::Path, process::ExitCode, sync::Arc, time::Duration};

use clap::{CommandFactory as _, FromArgMatches as _};
use config::{Cli, Config};
use live::{Live, Program, log_filter};
use sas::{control::ProgramConfig as _, prelude::*};
use tokio::signal::unix::{Signal, SignalKind, signal};
use upgrade::{Inherited, Predecessor, Sockets, Successor};

/// Signals that this program knows.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    upgrade: Signal,
}

impl Signals {
    /// The platform is to end.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn run(cli: Cli, inherited: Inherited) -> Result<(), Box<dyn Error>> {
    let mut signals = Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        upgrade: signal(SignalKind::user_defined2())?,
    };
    let hangup = signal(SignalKind::hangup())?;
    let demo = cli.demo;
    // Its path, before another file has its name.
    let itself = std::env::current_exe()?;
    let program = Program::new(cli.flags.clone(), cli.config.clone(), log()?)?;
    let config = program.config();
    config.check()?;
    if let Some(from) = &cli.copy_from {
        return moving::copy(from, &config).await;
    }
    program.log(&Live::of(&config)?)?;
    let mut predecessor = Predecessor::find().await?;
    let sockets = Sockets::open(&config, inherited)?;
    if let Some(predecessor) = &mut predecessor {
        predecessor.state().await?;
    }
    tokio::spawn(reload_at(hangup, Arc::clone(&program)));
    loop {
        let config = program.config();
        let platform = start(&program, &config, &sockets, demo).await?;
        if let Some(predecessor) = predecessor.take() {
            predecessor.ready().await;
        }
        let successor = tokio::select! {
            successor = serve(&mut signals, &itself, &sockets) => successor,
            () = load_demo(&platform, demo) => None,
        };
        let limit = match successor {
            Some(_) => config.upgrade_drain_seconds.unwrap_or(10),
            None => config.drain_seconds.unwrap_or(30),
        };
        let report = platform.shutdown(Duration::from_secs(limit)).await;
        drop(platform);
        writeln!(std::io::stderr(), "drained: {}, after {:?}", report.drained, report.took)?;
        let Some(successor) = successor else {
            if let Some(state) = &config.state {
                // It names a process that is gone.
                let _gone = std::fs::remove_file(state.join("platform.json"));
            }
            return Ok(());
        };
        match successor.take_over(&mut signals).await {
            Ok(()) => return Ok(()),
            Err(problem) => tracing::error!(problem, "the new process does not serve: this one does again"),
        }
    }
}

/// Serves until it is to end, or until a new process is prepared to take over.
async fn serve(signals: &mut Signals, itself: &Path, sockets: &Sockets) -> Option<Successor> {
    loop {
        tokio::select! {
            biased;
            _ = signals.terminate.recv() => return None,
            _ = signals.interrupt.recv() => return None,
            _ = signals.upgrade.recv() => {}
        }
        let prepared = tokio::select! {
            biased;
            () = signals.end() => return None,
            prepared = Successor::prepare(itself, sockets) => prepared,
        };
        match prepared {
            Ok(successor) => return Some(successor),
            Err(problem) => tracing::error!(problem, "no upgrade: this process goes on"),
        }
    }
}

/// Starts the platform on these sockets, and says that it serves.
async fn start(
    program: &Arc<Program>,
    config: &Config,
    sockets: &Sockets,
    demo: bool,
) -> Result<Arc<Platform>, Box<dyn Error>> {
    let live = Live::of(config)?;
    let builder = assemble::assemble(config, sockets).await?;
    let platform = Arc::new(program.build(builder, live).build().await?);
    program.serves(&platform);
    if demo && let Err(error) = deploy_demo(&platform).await {
        platform.shutdown(Duration::from_secs(1)).await;
        return Err(error);
    }
    for path in &config.manifests {
        if let Err(error) = deploy(&platform, path).await {
            platform.shutdown(Duration::from_secs(config.drain_seconds.unwrap_or(30))).await;
            return Err(format!("{}: {error}", path.display()).into());
        }
    }
    let mut ready = serde_json::json!({
        "ready": true,
        "pid": std::process::id(),
        "listen": platform.listen_addr().map(|a| a.to_string()),
        "admin": platform.admin_addr().map(|a| a.to_string()),
    });
    if let Some(socket) = platform.admin_socket() {
        ready["admin"] = format!("unix:{}", socket.display()).into();
    }
    if let Some(file) = platform.admin_token_file() {
        ready["adminTokenFile"] = std::path::absolute(file)?.to_string_lossy().into();
    }
    if let (Some(address), true) = (platform.admin_addr(), assemble::has_console(config)) {
        let encrypted = cfg!(feature = "tls") && config.tls_cert_dir.is_some();
        let scheme = if encrypted { "https" } else { "http" };
        ready["console"] = format!("{scheme}://{address}/console/").into();
    }
    // For tools on this host, such as `sasctl --state`.
    if let Some(state) = &config.state {
        // Which process has this id can be told from one that has it later.
        ready["started"] = started().into();
        let file = state.join("platform.json");
        let beside = state.join("platform.json.new");
        std::fs::write(&beside, format!("{ready}\n")).and_then(|()| std::fs::rename(&beside, file))?;
    }
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{ready}")?;
    stdout.flush()?;
    Ok(platform)
}

/// When this process began, in ticks since the machine did, where the kernel says so.
fn started() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Reads the configuration again at each SIGHUP.
async fn reload_at(mut hangup: Signal, program: Arc<Program>) {
    while hangup.recv().await.is_some() {
        if let Err(error) = program.reload().await {
            tracing::error!(error = %error.chain(), "the configuration was not reloaded");
        }
    }
}

/// Deploys the services of `--demo`.
#[cfg(all(feature = "process", feature = "manifests", feature = "cron"))]
async fn deploy_demo(platform: &Platform) -> Result<(), Box<dyn Error>> {
    demo::deploy(platform).await
}

#[cfg(not(all(feature = "process", feature = "manifests", feature = "cron")))]
async fn deploy_demo(_: &Platform) -> Result<(), Box<dyn Error>> {
    Err("--demo: this program was built without `--features process,manifests,cron`".into())
}

/// Calls the services of `--demo`, for as long as it is polled.
async fn load_demo(platform: &Arc<Platform>, demo: bool) {
    #[cfg(all(feature = "process", feature = "manifests", feature = "cron"))]
    if demo {
        return demo::load(Arc::clone(platform)).await;
    }
    let _ = (platform, demo);
    std::future::pending().await
}

async fn deploy(platform: &Platform, path: &Path) -> Result<(), Box<dyn Error>> {
    let text = std::fs::read_to_string(path)?;
    platform.apply(&text, path.parent()).await?;
    Ok(())
}

/// Logs to stderr; how much is set by what this returns.
fn log() -> Result<impl Fn(tracing_subscriber::EnvFilter) -> Result<(), String> + Send + Sync, String> {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(log_filter(None)?)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_filter_reloading();
    let handle = subscriber.reload_handle();
    subscriber.init();
    Ok(move |filter| handle.reload(filter).map_err(|error| error.to_string()))
}

/// Whether nothing is wrong with a file, and what is.
fn check(cli: Cli, path: &Path) -> Result<(), Box<dyn Error>> {
    let config = file::over(&cli.flags, &file::read(path)?);
    let mut errors = config.check().err().unwrap_or_default();
    errors.0.extend(Live::of(&config).err().into_iter().flat_map(|more| more.0));
    errors.into_result()?;
    Ok(())
}

/// Makes a state directory of a backup, and says what is in it.
async fn restore(cli: Cli, backup: &Path) -> Result<(), Box<dyn Error>> {
    let config = match &cli.config {
        Some(path) => file::over(&cli.flags, &file::read(path)?),
        None => cli.flags,
    };
    for (field, place) in [("store", &config.store), ("packages", &config.packages)] {
        if place.is_some() {
            let steps = "a backup is restored into a state directory: restore without it, into a new --state; then \
                         `platform --copy-from DIR --store ...` moves what is deployed into an empty store, and a start with \
                         --packages puts the packages of the directory into that storage (docs/stores.md)";
            return Err(format!("--restore: `{field}` is given, by --{field} or a file: {steps}").into());
        }
    }
    let state = config.state.ok_or("--restore: name the directory that is made, by --state")?;
    #[cfg(feature = "redb")]
    {
        let restored = sas::restore(backup, &state).await.map_err(|error| error.chain())?;
        let text = serde_json::json!({
            "restored": state, "made": restored.made, "entries": restored.entries, "packages": restored.packages,
            "missing": restored.missing,
        });
        writeln!(std::io::stdout(), "{text}")?;
        Ok(())
    }
    #[cfg(not(feature = "redb"))]
    Err(format!(
        "--restore {} into {}: this program was built without `--features redb`",
        backup.display(),
        state.display()
    )
    .into())
}

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let Err(errors) = file::not_text(&matches).into_result() {
        let _ = writeln!(std::io::stderr(), "platform: {errors}");
        return ExitCode::FAILURE;
    }
    if cli.openapi {
        let written = writeln!(std::io::stdout(), "{}", sas::control::Admin::openapi());
        return if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    // Before there are other threads.
    let outcome = Inherited::take().map_err(Box::from).and_then(|inherited| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            match (cli.config_check.clone(), cli.restore.clone()) {
                (Some(path), _) => check(cli, &path),
                (None, Some(backup)) => restore(cli, &backup).await,
                (None, None) => Box::pin(run(cli, inherited)).await,
            }
        })
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "platform: {error}");
            ExitCode::FAILURE
        }
    }
}

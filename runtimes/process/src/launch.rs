//! From a start request to an instance that can serve.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use sas_core::{Endpoint, Error, ErrorKind, Instance, Result, Retry, StartPhase, StartRequest};
use sas_runtime_os::JailLevel;
use tokio::time::Instant;

use crate::{
    artifact::ProcessArtifact,
    beside::Beside,
    engine::{Engine, Proc},
    failure,
    home::{Home, LANG},
    instance::ProcessInstance,
    logs::LogTarget,
    options,
    ready::{self, Quickest},
    spawn::{self, Environment, Placed, SpawnRequest},
};

/// The port of an instance that has a network of its own and insists on none.
const ALONE: u16 = 8080;

/// Spawns the program and waits until it can serve.
pub(crate) async fn start(
    engine: &Arc<Engine>,
    artifact: &ProcessArtifact,
    request: StartRequest,
) -> Result<Arc<dyn Instance>> {
    let began = Instant::now();
    let own_network = engine.jails.has_own_network(&artifact.jail(engine, Some(request.tenant()), 0));
    let (address, port, stdin) = if own_network && !artifact.options.listen_fd {
        // Nobody else is there: every instance may have the same.
        let port = request.spec().port.unwrap_or(ALONE);
        (SocketAddr::from((Ipv4Addr::LOCALHOST, port)), None, None)
    } else if artifact.options.listen_fd || artifact.zygote.is_some() {
        let listener = listen(request.spec().port)?;
        let address = listener.local_addr().map_err(|error| no_socket(&error))?;
        (address, None, Some(OwnedFd::from(listener)))
    } else {
        let port = match request.spec().port {
            Some(number) => engine.ports.take_fixed(number)?,
            None => engine.ports.take()?,
        };
        (SocketAddr::from((Ipv4Addr::LOCALHOST, port.number())), Some(port), None)
    };
    let inherited = stdin.is_some();
    let home = Home::make(engine)?;
    let mut env =
        Environment::of(&request, address.port(), &engine.config.path, &artifact.launch, home.path());
    let (program, args) = artifact.command();
    let args = args.iter().map(|arg| env.expand(arg)).collect();
    let rlimits = artifact.rlimits(engine);
    let limits = artifact.ceilings(engine);
    let logs = log_target(&request);
    let cwd = artifact.launch.cwd.clone();
    let mut jail = artifact.jail(engine, Some(request.tenant()), address.port());
    let data = artifact.data(engine, request.name())?;
    if let Some(data) = &data {
        env.0.insert(options::DATA_DIR.to_owned(), data.display().to_string());
        jail.data.push(data.clone());
    }
    let (spawned, placed) = match (&artifact.zygote, stdin) {
        (Some(zygote), Some(listener)) => {
            let mut bare = Environment::default();
            bare.0.insert("PATH".into(), engine.config.path.clone());
            bare.0.insert("LANG".into(), LANG.to_owned());
            let placed = Placed { env: env.clone(), cwd: cwd.clone(), jail: jail.clone(), copied: 0 };
            let boot = || SpawnRequest {
                program,
                args,
                env: bare,
                cwd,
                stdin: None,
                rlimits: Vec::new(),
                limits,
                logs: None,
                jail,
                beside: None,
            };
            let forked = tokio::select! {
                biased;
                forked = zygote.fork(boot, listener, &env, logs) => forked?,
                () = tokio::time::sleep_until(request.deadline) => {
                    return Err(Error::new(
                        ErrorKind::Timeout,
                        "start",
                        "the zygote did not fork by the deadline",
                    ));
                }
            };
            spawn::limit(engine, forked.proc(), &rlimits, &limits)?;
            (forked, placed)
        }
        (_, stdin) => {
            let rlimits = rlimits.clone();
            let logs = Some(logs);
            let plan =
                SpawnRequest { program, args, env, cwd, stdin, rlimits, limits, logs, jail, beside: None };
            spawn::spawn(engine, plan).await?
        }
    };
    spawned.proc().hold(port, &artifact.package);
    spawned.proc().hold_dir(home.into_dir());
    if artifact.level != JailLevel::None {
        engine.bound_disk(spawned.proc(), artifact.disk_bytes(engine), placed.copied);
        if let Some(data) = data {
            engine.bound_data(spawned.proc(), data);
        }
    }
    let beside = Beside::new(engine, spawned.proc(), placed, &rlimits);
    request.events.phase(request.id, StartPhase::Spawned);
    if inherited {
        // Whoever connects now is served as soon as the program accepts: the kernel holds the line.
        request.events.phase(request.id, StartPhase::Listening);
    }
    let probed = request.spec().readiness.is_some() || request.spec().startup.is_some();
    let mut endpoint = match spawned.proc().network().filter(|_| !inherited) {
        Some(network) => Endpoint::Within(address, network),
        None => Endpoint::Tcp(address),
    };
    if !inherited || probed {
        endpoint =
            until_ready(&request, spawned.proc(), &beside, &artifact.quickest, &endpoint, address.port())
                .await?;
    }
    if let Err(report) = spawned.proc().started(request.id, Arc::clone(&request.events)) {
        return Err(failure::crashed(spawned.proc(), &report, address.port(), None));
    }
    request.events.phase(request.id, StartPhase::Ready);
    engine.metrics.ready.record(began.elapsed().as_secs_f64());
    let proc = spawned.keep();
    Ok(Arc::new(ProcessInstance::new(request.id, endpoint, proc, beside)))
}

pub(crate) fn log_target(request: &StartRequest) -> LogTarget {
    LogTarget { instance: request.id, revision: request.revision, sink: Arc::clone(&request.logs) }
}

pub(crate) fn listen(port: Option<u16>) -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port.unwrap_or(0))).map_err(|error| no_socket(&error))
}

fn no_socket(error: &std::io::Error) -> Error {
    Error::new(
        ErrorKind::Exhausted,
        "start",
        format!("a listening socket for the instance: {error}; free the port, or leave `port` out"),
    )
    .with_retry(Retry::After(Duration::from_secs(1)))
}

/// When a start first tells why it is not ready yet; then after twice as long, and so on.
const FIRST_WORD: Duration = Duration::from_millis(500);

/// Waits for readiness, the deadline or the exit, whichever is first, and says where it listens. Meanwhile whoever waits
/// for the start learns how it stands, so that a request whose own deadline comes first can say why.
pub(crate) async fn until_ready(
    request: &StartRequest,
    proc: &Arc<Proc>,
    beside: &Beside,
    quickest: &Quickest,
    at: &Endpoint,
    port: u16,
) -> Result<Endpoint> {
    let last = Mutex::new(None);
    let candidates = ready::candidates(at);
    let mut ready = std::pin::pin!(ready::wait(
        &candidates,
        request.spec(),
        beside,
        quickest,
        || request.events.phase(request.id, StartPhase::Listening),
        &last,
    ));
    let (mut pause, mut word) = (FIRST_WORD, Instant::now() + FIRST_WORD);
    loop {
        tokio::select! {
            biased;
            report = proc.exited() => return Err(failure::crashed(proc, &report, port, last.lock().take())),
            ready = &mut ready => {
                let endpoint = ready.map_err(|error| failure::not_ready(proc, error))?;
                prove(proc, &endpoint, port).await?;
                return Ok(endpoint);
            }
            () = tokio::time::sleep_until(request.deadline) => {
                let late = format!("within {:?}", request.spec().timeouts.start);
                let probe = last.lock().take();
                return Err(failure::late(proc, &late, port, probe).await);
            }
            () = tokio::time::sleep_until(word) => {
                pause *= 2;
                word += pause;
                let probe = last.lock().clone();
                let why = failure::late(proc, "so far", port, probe).await;
                request.events.waiting(request.id, Arc::new(why));
            }
        }
    }
}

/// Who answers must be the instance: another user's program may have taken its port before it did.
async fn prove(proc: &Arc<Proc>, at: &Endpoint, port: u16) -> Result<()> {
    // A network of its own is nobody else's.
    if !matches!(at, Endpoint::Tcp(_)) {
        return Ok(());
    }
    let asked = Arc::clone(proc);
    let its_own = tokio::task::spawn_blocking(move || asked.listens_on(port)).await.unwrap_or(false);
    if its_own { Ok(()) } else { Err(failure::not_its_own(proc, port)) }
}

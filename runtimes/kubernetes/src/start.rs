//! From a start request to an instance that can serve.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use sas_core::{
    Endpoint, EnvValue, Error, ErrorKind, Instance, Probe, ProbeAction, Result, StartPhase, StartRequest,
};
use sas_probe::ProbeFailure;
use serde_json::Value;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    board::Slot,
    engine::Engine,
    instance::{PodInstance, exec},
    output::LogTarget,
    pod::{self, About},
    status::{Seen, Waits},
};

/// When a start first tells why it is not ready yet; then after twice as long, and so on.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// Has the Pod removed when a start is given up.
struct Asked {
    engine: Arc<Engine>,
    slot: Arc<Slot>,
    keeps: bool,
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.keeps {
            self.engine.remove(&self.slot, 1);
        }
    }
}

/// Asks for a Pod and waits until it can serve.
pub(crate) async fn start(engine: &Arc<Engine>, request: StartRequest) -> Result<Arc<dyn Instance>> {
    let began = Instant::now();
    if began >= request.deadline {
        return Err(Error::new(
            ErrorKind::Timeout,
            "start",
            "the deadline had passed before the Pod was asked for",
        ));
    }
    let mut asked = ask(engine, &request).await?;
    let slot = Arc::clone(&asked.slot);
    let at = until_ready(engine, &request, &slot).await?;
    let instance = PodInstance::new(engine, &request, at, &slot);
    slot.serves(request.id, Arc::clone(&request.events))?;
    asked.keeps = true;
    request.events.phase(request.id, StartPhase::Ready);
    engine.metrics.started.increment(1);
    engine.metrics.ready.record(began.elapsed().as_secs_f64());
    Ok(instance)
}

/// Makes the Pod, and its secret before it. A task: who gives up the start while the API server answers finds nothing of
/// it after `quiesce`.
async fn ask(engine: &Arc<Engine>, request: &StartRequest) -> Result<Asked> {
    let spec = request.spec();
    let secrets: Vec<String> = spec
        .env
        .iter()
        .filter(|(_, value)| !matches!(value, EnvValue::Literal(_)))
        .map(|(name, _)| name.clone())
        .collect();
    let owner = engine.lease.owner();
    let about = About {
        id: request.id,
        name: request.name(),
        tenant: request.tenant(),
        generation: &engine.generation,
        owner: Some(&owner),
        secrets: &secrets,
    };
    let body = pod::pod(&engine.config, spec, &about)?;
    let name = pod::name(request.name(), &engine.generation, request.id);
    let secret = (!secrets.is_empty()).then(|| {
        let values = request.environment().filter(|(name, _)| secrets.iter().any(|secret| secret == name));
        pod::secret(&engine.config, &name, &engine.generation, Some(&owner), values)
    });
    let slot = engine.board.add(&name, secret.is_some());
    slot.writes_to(LogTarget::of(request));
    let asked = Asked { engine: Arc::clone(engine), slot, keeps: false };
    let (tell, told) = oneshot::channel();
    // What nobody takes any more is dropped, and so removed, before the task is over.
    engine.tasks.spawn(async move { drop(tell.send(make(asked, secret, body).await)) });
    told.await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "start", "the host is shutting down")))
}

async fn make(asked: Asked, secret: Option<Value>, body: Value) -> Result<Asked> {
    let cluster = &asked.engine.cluster;
    if let Some(secret) = secret {
        cluster.create("start", "secrets", &secret, false).await?;
    }
    match cluster.create("start", "pods", &body, false).await {
        Ok(_) => Ok(asked),
        // The name is this start's alone: an answer that was lost on the way, of a request that came through.
        Err(error) if error.kind == ErrorKind::Conflict => Ok(asked),
        Err(error) => Err(error),
    }
}

async fn until_ready(engine: &Arc<Engine>, request: &StartRequest, slot: &Arc<Slot>) -> Result<Endpoint> {
    let mut changes = slot.seen();
    let last = Mutex::new(None);
    let mut asking = std::pin::pin!(answers(engine, request, slot, &last));
    let (mut pause, mut word) = (FIRST_WORD, Instant::now() + FIRST_WORD);
    let within = request.spec().timeouts.start;
    loop {
        if let Some(error) = changes.borrow_and_update().start_error() {
            return Err(error);
        }
        tokio::select! {
            biased;
            changed = changes.changed() => {
                if changed.is_err() {
                    return Err(Error::new(ErrorKind::Unavailable, "start", "the kubernetes runtime was shut down"));
                }
            }
            answered = &mut asking => {
                return answered.map_err(|probe| {
                    let what = format!("the start-up probe failed as often as it may: {probe}");
                    Error::new(ErrorKind::Timeout, "start", what)
                });
            }
            () = tokio::time::sleep_until(request.deadline) => {
                let seen = Arc::clone(&changes.borrow());
                return Err(late(&seen, last.lock().take(), &format!("not ready within {within:?}")));
            }
            () = tokio::time::sleep_until(word) => {
                pause *= 2;
                word += pause;
                let seen = Arc::clone(&changes.borrow());
                let probe = last.lock().clone();
                request.events.waiting(request.id, Arc::new(late(&seen, probe, "not ready so far")));
            }
        }
    }
}

/// Why an instance is not ready in time.
fn late(seen: &Seen, probe: Option<ProbeFailure>, what: &str) -> Error {
    match (&seen.waits, probe) {
        (Some(Waits::Unschedulable(why)), _) => {
            let what = format!("{what}: no node takes the Pod: {why}");
            Error::new(ErrorKind::Exhausted, "start", what)
                .with_retry(sas_core::Retry::After(Duration::from_secs(5)))
        }
        (Some(Waits::Hopeless(_, why) | Waits::Other(why)), None) => {
            Error::new(ErrorKind::Timeout, "start", format!("{what}: {why}"))
        }
        (_, Some(probe)) => Error::new(ErrorKind::Timeout, "start", format!("{what}: {probe}")),
        (None, None) if seen.address.is_none() => {
            Error::new(ErrorKind::Timeout, "start", format!("{what}: the Pod has no address yet"))
        }
        (None, None) => Error::new(ErrorKind::Timeout, "start", what),
    }
}

/// Waits for an address, then asks there: the start-up probe until it is good, then the readiness probe; without either, a
/// connection is enough. The cluster's own word, which comes later, is waited for only of the other containers.
async fn answers(
    engine: &Arc<Engine>,
    request: &StartRequest,
    slot: &Arc<Slot>,
    last: &Mutex<Option<ProbeFailure>>,
) -> std::result::Result<Endpoint, ProbeFailure> {
    let spec = request.spec();
    let address = when(slot, |seen| seen.address).await;
    request.events.phase(request.id, StartPhase::Spawned);
    let at = Endpoint::Tcp(SocketAddr::new(address, spec.port.unwrap_or(pod::DEFAULT_PORT)));
    let connects = Probe::new(ProbeAction::Tcp { port: None });
    let stages = match (&spec.startup, &spec.readiness) {
        (None, None) => vec![(&connects, false)],
        (startup, readiness) => {
            let startup = startup.iter().map(|probe| (probe, true));
            startup.chain(readiness.iter().map(|probe| (probe, false))).collect()
        }
    };
    let mut heard = false;
    for (probe, startup) in stages {
        tokio::time::sleep(probe.initial_delay).await;
        let began = Instant::now();
        let (mut good, mut bad) = (0, 0);
        loop {
            let asked = Instant::now();
            let answer = match &probe.action {
                ProbeAction::Exec { command } => sas_probe::command(probe, exec(engine, slot, command)).await,
                _ => sas_probe::endpoint(probe, &at).await,
            };
            let connected = answer.as_ref().map_or_else(|failure| failure.connected, |()| true);
            if connected && !std::mem::replace(&mut heard, true) {
                request.events.phase(request.id, StartPhase::Listening);
            }
            match answer {
                Ok(()) => {
                    (good, bad) = (good + 1, 0);
                    if good >= probe.success_threshold.max(1) {
                        break;
                    }
                }
                Err(failure) => {
                    (good, bad) = (0, bad + 1);
                    // Asked as often as makes sense, a count of failures says nothing; the deadline ends it.
                    if startup && !probe.period.is_zero() && bad >= probe.failure_threshold.max(1) {
                        return Err(failure);
                    }
                    *last.lock() = Some(failure);
                }
            }
            if probe.period.is_zero() {
                tokio::time::sleep(pause(began.elapsed())).await;
            } else {
                tokio::time::sleep_until(asked + probe.period).await;
            }
        }
    }
    if spec.container.as_ref().is_some_and(|asked| !asked.sidecars.is_empty()) {
        when(slot, |seen| (seen.has_run && seen.companions_ready).then_some(())).await;
    }
    Ok(at)
}

/// Waits until what was seen of a Pod has something.
async fn when<T>(slot: &Slot, wanted: impl Fn(&Seen) -> Option<T>) -> T {
    let mut changes = slot.seen();
    loop {
        if let Some(found) = wanted(&changes.borrow_and_update()) {
            return found;
        }
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Asked often at first, and never less than ten times a second.
fn pause(elapsed: Duration) -> Duration {
    (elapsed / 8).clamp(Duration::from_millis(5), Duration::from_millis(50))
}

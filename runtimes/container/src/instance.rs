//! A running instance as the platform sees it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use rustix::process::Signal;
use sas_core::{
    Endpoint, Error, ErrorKind, ExecOutput, ExitReport, Instance, InstanceId, InstanceTarget, Probe,
    ProbeAction, Result, StartRequest, Usage,
};
use sas_runtime_os::ports::Port;
use tokio::time::Instant;

use crate::{
    artifact::ContainerArtifact,
    container::Container,
    engine::{Engine, Killed as _},
    images::Image,
    pod::Pod,
};

/// An instance of an image: one container, and those beside it.
pub(crate) struct ContainerInstance {
    id: InstanceId,
    endpoint: Endpoint,
    engine: Arc<Engine>,
    pod: Arc<Pod>,
    main: Arc<Container>,
    sidecars: Vec<Arc<Container>>,
    stop_signal: Signal,
    stopping: AtomicBool,
    /// Held as long as it may run: nobody removes their layers.
    _images: Vec<Arc<Image>>,
}

impl fmt::Debug for ContainerInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContainerInstance")
            .field("id", &self.id)
            .field("endpoint", &self.endpoint)
            .field("pid", &self.main.pid())
            .finish_non_exhaustive()
    }
}

/// After SIGKILL a container is gone at once, unless the kernel holds it; nobody waits for that forever.
const AFTER_FORCE: Duration = Duration::from_secs(10);

impl ContainerInstance {
    #[allow(clippy::too_many_arguments, reason = "called at one place, with what a start has made")]
    pub(crate) fn begin(
        engine: &Arc<Engine>,
        request: StartRequest,
        endpoint: Endpoint,
        main: Arc<Container>,
        sidecars: Vec<Arc<Container>>,
        pod: Arc<Pod>,
        port: Option<Port>,
        artifact: &ContainerArtifact,
    ) -> Arc<dyn Instance> {
        let images: Vec<Arc<Image>> =
            [&artifact.main].into_iter().chain(&artifact.sidecars).map(Arc::clone).collect();
        let stop_signal = signal(&artifact.main.config.stop_signal);
        let instance = Arc::new(Self {
            id: request.id,
            endpoint,
            engine: Arc::clone(engine),
            pod,
            main: Arc::clone(&main),
            sidecars: sidecars.clone(),
            stop_signal,
            stopping: AtomicBool::new(false),
            _images: images.clone(),
        });
        let engine = Arc::clone(engine);
        let (watched, at) = (Arc::clone(&instance.pod), instance.endpoint.clone());
        tokio::spawn(async move {
            // One that ends takes the others along.
            let first = {
                let sidecar = async {
                    match sidecars.as_slice() {
                        [] => std::future::pending().await,
                        some => {
                            let ends = some.iter().map(|one| Box::pin(one.end()));
                            futures_util::future::select_all(ends).await.0
                        }
                    }
                };
                // The data plane asks the container that takes the requests; nobody else asks the others.
                let asked = request.spec().container.iter().flat_map(|asked| &asked.sidecars).zip(&sidecars);
                let mut lives: Vec<futures_util::future::BoxFuture<'_, ()>> = Vec::new();
                for (companion, container) in asked {
                    if let Some(probe) = &companion.liveness {
                        lives.push(Box::pin(dies(probe, container, &engine, &watched, &at)));
                    }
                }
                let dead = async {
                    match lives.is_empty() {
                        true => std::future::pending().await,
                        false => futures_util::future::select_all(lives).await.0,
                    }
                };
                tokio::select! {
                    biased;
                    report = main.end() => report,
                    report = sidecar => report,
                    () = dead => ExitReport::at(engine.config.clock.now()),
                }
            };
            for container in sidecars.iter().chain([&main]) {
                if container.ended().is_none() {
                    container.kill(&engine);
                }
            }
            for container in &sidecars {
                container.end().await;
            }
            let report = match main.ended() {
                Some(own) => own,
                None => {
                    main.end().await;
                    first
                }
            };
            drop((port, images, watched));
            request.events.exited(request.id, report);
        });
        instance
    }

    fn begin_stop(&self, signal: Signal) {
        for container in self.sidecars.iter().chain([&self.main]) {
            container.ending(&self.engine);
        }
        self.main.signal(signal);
    }
}

/// Resolves when a sidecar has failed its liveness probe as often as it may.
async fn dies(
    probe: &Probe,
    container: &Arc<Container>,
    engine: &Arc<Engine>,
    pod: &Arc<Pod>,
    at: &Endpoint,
) {
    let period = if probe.period.is_zero() { Duration::from_secs(10) } else { probe.period };
    tokio::time::sleep(probe.initial_delay).await;
    let mut failed = 0;
    loop {
        tokio::time::sleep(period).await;
        let asked = match &probe.action {
            ProbeAction::Exec { command } => {
                sas_probe::command(probe, container.exec(engine, pod, command)).await
            }
            _ => sas_probe::endpoint(probe, at).await,
        };
        match asked {
            Ok(()) => failed = 0,
            Err(failure) => {
                failed += 1;
                if failed >= probe.failure_threshold.max(1) {
                    tracing::info!(sidecar = container.name, %failure, "a sidecar is dead, and its instance ends");
                    return;
                }
            }
        }
    }
}

/// The signal by its name or number, as images name it.
fn signal(name: &str) -> Signal {
    let name = name.trim().to_ascii_uppercase();
    match name.strip_prefix("SIG").unwrap_or(&name) {
        "HUP" | "1" => Signal::HUP,
        "INT" | "2" => Signal::INT,
        "QUIT" | "3" => Signal::QUIT,
        "KILL" | "9" => Signal::KILL,
        "USR1" | "10" => Signal::USR1,
        "USR2" | "12" => Signal::USR2,
        "WINCH" | "28" => Signal::WINCH,
        _ => Signal::TERM,
    }
}

#[async_trait]
impl Instance for ContainerInstance {
    fn id(&self) -> InstanceId {
        self.id
    }

    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Endpoint(&self.endpoint)
    }

    async fn exec(&self, command: &[String]) -> Result<ExecOutput> {
        if self.main.ended().is_some() {
            return Err(Error::new(ErrorKind::Crashed, "exec", "the instance is gone"));
        }
        if command.is_empty() {
            return Err(Error::new(ErrorKind::InvalidSpec, "exec", "command: name a program"));
        }
        self.main.exec(&self.engine, &self.pod, command).await
    }

    fn usage(&self) -> Option<Usage> {
        let mut all = self.main.usage()?;
        for usage in self.sidecars.iter().filter_map(|one| one.usage()) {
            all = Usage::new(all.cpu_ns + usage.cpu_ns, all.memory_bytes + usage.memory_bytes);
        }
        Some(all)
    }

    async fn stop(&self, grace: Duration) -> Result<()> {
        let first = !self.stopping.swap(true, Ordering::AcqRel);
        let deadline = Instant::now() + grace;
        if first {
            self.begin_stop(self.stop_signal);
            // A program that was taken off the CPU gets no signal until it is back.
            self.main.signal(Signal::CONT);
            let (main, engine) = (Arc::clone(&self.main), Arc::clone(&self.engine));
            let sidecars = self.sidecars.clone();
            // Once polled it goes on without this future.
            tokio::spawn(async move {
                if tokio::time::timeout_at(deadline, main.end()).await.is_err() {
                    main.kill(&engine);
                }
                for one in &sidecars {
                    one.kill(&engine);
                }
            });
        } else if grace.is_zero() {
            self.main.kill(&self.engine);
        }
        let gone = async {
            self.main.end().await;
            for one in &self.sidecars {
                one.end().await;
            }
        };
        match tokio::time::timeout(grace.saturating_add(AFTER_FORCE), gone).await {
            Ok(()) => Ok(()),
            Err(_) => {
                let what = format!(
                    "container {:?} is still there {AFTER_FORCE:?} after it was killed",
                    self.main.pid()
                );
                Err(Error::new(ErrorKind::Unexpected, "stop", what))
            }
        }
    }
}

impl Drop for ContainerInstance {
    fn drop(&mut self) {
        for container in self.sidecars.iter().chain([&self.main]) {
            if container.ended().is_none() {
                container.kill(&self.engine);
            }
        }
    }
}

#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod connect;
mod grpc;
mod http1;

use std::{fmt, future::Future, sync::Arc};

use sas_core::{
    Answer, Body, Cx, Endpoint, ErrorKind, ExecOutput, Instance, InstanceTarget, Probe, ProbeAction, Purpose,
    RequestId, Result as CoreResult, TenantKey,
};
use tokio::time::{Instant, timeout};

use connect::connect;

/// Why a probe did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProbeFailure {
    /// Whether a connection was made: something listens, and its answer was not the one that is wanted.
    pub connected: bool,
    /// It could not be asked at all, since whatever runs the instance can't ask in this way: no sign of its health.
    pub unsupported: bool,
    /// What was asked and what came of it, for humans.
    pub message: String,
}

impl ProbeFailure {
    fn new(connected: bool, message: impl Into<String>) -> Self {
        Self { connected, unsupported: false, message: message.into() }
    }

    fn unsupported(message: impl Into<String>) -> Self {
        Self { connected: false, unsupported: true, message: message.into() }
    }
}

impl fmt::Display for ProbeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ProbeFailure {}

/// Asks an instance that runs, in whatever way it is reached. The data plane calls it for liveness.
///
/// An instance that is called instead of connected to is asked by HTTP alone, which calls it.
///
/// **Cancel safety:** dropping the future ends the question.
///
/// # Errors
/// What was asked and what came of it: no connection, another answer than the wanted one, none within
/// [`Probe::timeout`].
pub async fn instance(probe: &Probe, instance: &dyn Instance, tenant: TenantKey) -> Result<(), ProbeFailure> {
    if let ProbeAction::Exec { command: words } = &probe.action {
        return command(probe, instance.exec(words)).await;
    }
    match instance.target() {
        InstanceTarget::Endpoint(at) => endpoint(probe, at).await,
        InstanceTarget::Call(_) => called(probe, instance, tenant).await,
    }
}

/// Asks whatever listens at `at`. Runtimes call it while an instance starts.
///
/// **Cancel safety:** dropping the future closes the connection.
///
/// # Errors
/// As [`instance`]; always for a probe that is a command, which [`command`] judges.
pub async fn endpoint(probe: &Probe, at: &Endpoint) -> Result<(), ProbeFailure> {
    let mut connected = false;
    let asking = async {
        match &probe.action {
            ProbeAction::Tcp { port } => connect(&with_port(at, *port), &mut connected).await.map(drop),
            ProbeAction::Http { path, port, headers } => {
                let at = with_port(at, *port);
                let io = connect(&at, &mut connected).await?;
                http1::get(io, path, headers)
                    .await
                    .map_err(|what| ProbeFailure::new(true, format!("GET http://{at}{path}: {what}")))
            }
            ProbeAction::Grpc { port, service } => {
                let at = with_port(at, *port);
                let io = connect(&at, &mut connected).await?;
                grpc::check(io, service.as_deref().unwrap_or_default())
                    .await
                    .map_err(|what| ProbeFailure::new(true, format!("gRPC health check at {at}: {what}")))
            }
            other => Err(ProbeFailure::unsupported(format!("{other:?} is not asked over a connection"))),
        }
    };
    match timeout(probe.timeout, asking).await {
        Ok(answered) => answered,
        Err(_) => {
            let what = if connected { "no answer" } else { "no connection" };
            Err(ProbeFailure::new(
                connected,
                format!("{} at {at}: {what} within {:?}", kind(probe), probe.timeout),
            ))
        }
    }
}

/// Judges a command that runs within an instance: status 0 within [`Probe::timeout`] is success. Dropping `run`, as
/// happens when the time is over, has to end the command.
///
/// # Errors
/// The command's status with the beginning of its output, or that it could not be run or took too long.
pub async fn command(
    probe: &Probe,
    run: impl Future<Output = CoreResult<ExecOutput>>,
) -> Result<(), ProbeFailure> {
    let words = match &probe.action {
        ProbeAction::Exec { command } => command.join(" "),
        other => format!("{other:?}"),
    };
    match timeout(probe.timeout, run).await {
        Err(_) => Err(ProbeFailure::new(false, format!("{words}: not done within {:?}", probe.timeout))),
        Ok(Err(error)) => Err(ProbeFailure {
            connected: false,
            unsupported: error.kind == ErrorKind::Unsupported,
            message: format!("{words}: {}", error.message),
        }),
        Ok(Ok(ExecOutput { code: Some(0), .. })) => Ok(()),
        Ok(Ok(ran)) => {
            let how = ran.code.map_or("ended by a signal".to_owned(), |code| format!("status {code}"));
            let said = String::from_utf8_lossy(&ran.output);
            let said: Vec<&str> =
                said.lines().map(str::trim).filter(|line| !line.is_empty()).take(4).collect();
            let said = if said.is_empty() { String::new() } else { format!(": {}", said.join(" | ")) };
            Err(ProbeFailure::new(false, format!("{words}: {how}{said}")))
        }
    }
}

/// Asks an instance of this process by a call that is neither metered nor counted as traffic.
async fn called(probe: &Probe, instance: &dyn Instance, tenant: TenantKey) -> Result<(), ProbeFailure> {
    let ProbeAction::Http { path, headers, .. } = &probe.action else {
        return Err(ProbeFailure::unsupported("it listens on no socket; ask by HTTP, which calls it"));
    };
    let mut request = ::http::Request::get(path.as_str()).header(::http::header::HOST, "localhost");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request
        .body(Body::empty())
        .map_err(|error| ProbeFailure::new(false, format!("GET {path}: {error}")))?;
    let mut cx = Cx::new(tenant, RequestId(0), Instant::now() + probe.timeout);
    cx.purpose = Purpose::Probe;
    let failed = |what: String| Err(ProbeFailure::new(true, format!("GET {path}: {what}")));
    match timeout(probe.timeout, instance.call(request, &cx)).await {
        Err(_) => failed(format!("no answer within {:?}", probe.timeout)),
        Ok(Ok(Answer::Http(response))) if good(response.status()) => Ok(()),
        Ok(Ok(Answer::Http(response))) => failed(format!("answered {}", response.status().as_u16())),
        Ok(Ok(Answer::Upgrade { .. })) => failed("switched protocols without being asked to".into()),
        // A place that it has for no more calls says nothing of its health.
        Ok(Err(error)) if error.error.kind == ErrorKind::Exhausted => Ok(()),
        Ok(Err(error)) => failed(error.error.message),
    }
}

/// Kubernetes counts redirections as success.
fn good(status: ::http::StatusCode) -> bool {
    (200..400).contains(&status.as_u16())
}

fn kind(probe: &Probe) -> &'static str {
    match probe.action {
        ProbeAction::Http { .. } => "an HTTP probe",
        ProbeAction::Grpc { .. } => "a gRPC probe",
        ProbeAction::Exec { .. } => "a command",
        _ => "a TCP probe",
    }
}

/// The same host at another port. A Unix socket has none.
fn with_port(at: &Endpoint, port: Option<u16>) -> Endpoint {
    let Some(port) = port else { return at.clone() };
    match at {
        Endpoint::Tcp(address) => Endpoint::Tcp((address.ip(), port).into()),
        Endpoint::Host { name, .. } => Endpoint::Host { name: Arc::clone(name), port },
        Endpoint::Within(address, sockets) => {
            Endpoint::Within((address.ip(), port).into(), Arc::clone(sockets))
        }
        other => other.clone(),
    }
}

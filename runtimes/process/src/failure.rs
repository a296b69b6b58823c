//! Why a start failed, in words that the one who deployed it can act on.

use std::{net::IpAddr, sync::Arc};

use sas_core::{Error, ErrorKind, ExitReport, Retry};
use sas_probe::ProbeFailure;

use crate::{
    engine::Proc,
    ready::{self, NotReady},
};

/// What it printed goes last: it is the longest part.
fn with_output(mut message: String, probe: Option<ProbeFailure>, proc: &Proc) -> String {
    if let Some(probe) = probe {
        message.push_str(&format!("; the probe that failed: {probe}"));
    }
    // Who has ended has said so already.
    if let Some(ceiling) = proc.ceiling().filter(|_| proc.exit().is_none()) {
        message.push_str(&format!("; {ceiling}"));
    }
    if let Some(words) = proc.last_words() {
        message.push_str("; its output: ");
        message.push_str(&words);
    }
    message
}

/// The program ended before it was ready.
pub(crate) fn crashed(proc: &Proc, report: &ExitReport, port: u16, probe: Option<ProbeFailure>) -> Error {
    // That nobody listens any more follows from its end.
    let probe = probe.filter(|probe| probe.connected);
    let message = format!(
        "the program {report} before it was ready on 127.0.0.1:{port} or [::1]:{port}; it must keep running and listen \
         on the port in the variable PORT"
    );
    Error::new(ErrorKind::Crashed, "start", with_output(message, probe, proc))
}

/// Asking it came to an end that more time would not change.
pub(crate) fn not_ready(proc: &Proc, ended: NotReady) -> Error {
    match ended {
        NotReady::Startup(probe) => {
            let message =
                "its start-up probe failed as often as it may (startup.failure_threshold)".to_owned();
            Error::new(ErrorKind::Unavailable, "start", with_output(message, Some(probe), proc))
        }
        NotReady::Host(error) => {
            Error::new(ErrorKind::Unavailable, "start", format!("readiness of the instance: {error}"))
                .with_source(error)
        }
    }
}

/// It is not ready `by` some time, in words such as "within 10s".
pub(crate) async fn late(proc: &Arc<Proc>, by: &str, port: u16, probe: Option<ProbeFailure>) -> Error {
    let pid = proc.pid();
    let sockets =
        tokio::task::spawn_blocking(move || ready::listening_sockets(pid)).await.unwrap_or_default();
    let here = |ip: &IpAddr| ip.is_unspecified() || ip.is_loopback();
    let there = sockets.iter().any(|socket| socket.port() == port && here(&socket.ip()));
    // Where it listens says more than that it was not found.
    let probe = probe.filter(|probe| there || probe.connected);
    let what = if there {
        "it listens there, but it is not ready; mend it or the probe, or give it more time (timeouts.start)"
            .to_owned()
    } else if sockets.is_empty() {
        "it listens on no port; it must listen on the port in the variable PORT, or be given more time \
         (timeouts.start)"
            .to_owned()
    } else {
        let others: Vec<String> = sockets.iter().take(8).map(ToString::to_string).collect();
        let remedy = match sockets.iter().find(|socket| socket.port() != port) {
            Some(other) => format!(
                "make it read the variable PORT (or pass $(PORT) in args), or set `port` to {}",
                other.port()
            ),
            None => "make it listen on 127.0.0.1 or on all addresses".to_owned(),
        };
        format!("it listens on {} instead; {remedy}", others.join(", "))
    };
    let message =
        format!("the program was not ready on 127.0.0.1:{port} or [::1]:{port} (PORT) {by}: {what}");
    Error::new(ErrorKind::Timeout, "start", with_output(message, probe, proc))
}

/// Somebody else answers on its port.
pub(crate) fn not_its_own(proc: &Proc, port: u16) -> Error {
    let what = format!(
        "port {port} answers, but not by a process of the instance: another program of this machine has taken it, and \
         gets no request; find it (ss -ltnp) or give the instances a network of their own (sas.dev/egress: deny)"
    );
    Error::new(ErrorKind::Conflict, "start", with_output(what, None, proc)).with_retry(Retry::AnotherInstance)
}

//! Connections that switched protocols: bytes both ways, with the lease, until one side ends.

use http::{StatusCode, response::Parts};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sas_core::{Body, Io, Lease, Outcome, Response};

use super::Gateway;
use crate::{failure::Failure, forward};

/// The instance's side of an upgraded connection.
pub(super) enum InstanceEnd {
    Socket(OnUpgrade),
    Inside(Box<dyn Io>),
}

/// Answers 101 and joins the two sides in a task of their own.
pub(super) fn splice(
    gateway: &Gateway,
    mut head: Parts,
    instance: InstanceEnd,
    client: Option<OnUpgrade>,
    mut lease: Lease,
) -> Result<Response, Failure> {
    let Some(client) = client else {
        lease.outcome = Outcome::Unused;
        let text = "the instance switched protocols, but the request did not come over a connection that can";
        return Err(Failure::new(StatusCode::BAD_GATEWAY, "instance", "bad_response", text));
    };
    lease.outcome = Outcome::Ok;
    gateway.tasks.spawn(async move {
        let mut lease = lease;
        if let Err(error) = join(client, instance).await {
            tracing::debug!(instance = %lease.instance.id(), %error, "an upgraded connection broke");
            lease.outcome = Outcome::Lost;
        }
    });
    forward::strip_hop_by_hop(&mut head.headers, true);
    Ok(Response::from_parts(head, Body::empty()))
}

async fn join(client: OnUpgrade, instance: InstanceEnd) -> std::io::Result<()> {
    let mut client = TokioIo::new(client.await.map_err(std::io::Error::other)?);
    match instance {
        InstanceEnd::Socket(upgrade) => {
            let mut instance = TokioIo::new(upgrade.await.map_err(std::io::Error::other)?);
            tokio::io::copy_bidirectional(&mut client, &mut instance).await?;
        }
        InstanceEnd::Inside(mut io) => {
            tokio::io::copy_bidirectional(&mut client, &mut io).await?;
        }
    }
    Ok(())
}

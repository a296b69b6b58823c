//! Requests whose route leads to another host: passed on, or held for a moment while the hosts agree who answers.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use sas_core::{Cx, Deployed, RemoteTarget, Request, Response, Route, RouteTarget};
use tokio::time::Instant;

use super::{Gateway, deliver::Refused, passed_on_twice};
use crate::{
    connection::ClientConnection, failure::Failure, forward, peer::Marked, shares::Passed, tail::Tail,
};

/// How long a request waits before its route is looked up again: at first, and at most.
const WAITS: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(50)];

/// What became of a request whose route led to another host.
pub(super) enum Onward {
    Answered(Response),
    /// Its route leads elsewhere by now.
    Route(Route),
}

impl Gateway {
    /// Passes a request on to the host that its route names. While that host is this one, which is about to act for the
    /// service, or can't be reached, or has passed it on already, and nothing was sent, it waits as long as
    /// [`crate::Peers::set_hold`] says, and looks its route up again: who passed it on may know already what this host is
    /// about to learn.
    #[allow(clippy::too_many_arguments, reason = "a request, where it goes, and who counts it")]
    pub(super) async fn go_elsewhere(
        &self,
        request: &mut Request,
        host: &str,
        mut remote: RemoteTarget,
        cx: &Cx,
        arrived: Instant,
        connection: &Arc<ClientConnection>,
        marked: Option<&Marked>,
        tail: &mut Tail,
    ) -> Result<Onward, Box<Refused>> {
        let peers = self.config.peers.as_ref();
        let hold = peers.map_or(Duration::ZERO, |peers| peers.hold());
        let until = cx.deadline.min(arrived + hold);
        let hops = marked.map_or(0, |marked| marked.hops);
        let mut place = None;
        let [mut wait, longest] = WAITS;
        // First whoever has a part of the service, then the host that acts for it, and so on.
        let mut by_share = true;
        loop {
            if let Some(draft) = &mut tail.draft {
                draft.record.tenant = Some(remote.tenant);
            }
            if let Some(span) = &mut tail.span {
                span.goes_to(remote.tenant, None);
            }
            let shared = remote.service.as_deref().filter(|_| by_share);
            let shared = shared.and_then(|service| self.other_host(service, request));
            by_share = !by_share;
            let few = peers.is_some_and(|peers| hops < peers.most_hops());
            let refused = if let Some((host, passed)) = shared.filter(|_| few) {
                let mut to = remote.clone();
                to.peer = host;
                match self.pass_on(request, &to, Some(&passed), cx, arrived, connection, hops + 1, tail).await
                {
                    Ok(response) => return Ok(Onward::Answered(response)),
                    Err(refused) => refused,
                }
            } else if peers.is_some_and(|peers| *peers.name() == *remote.peer) {
                let why = "this host takes the service over, or nobody acts for it now";
                let failure = Failure::new(StatusCode::SERVICE_UNAVAILABLE, "router", "moving", why);
                Refused::new(failure.after(Duration::from_secs(1)), true)
            } else if let Some(marked) = marked
                && peers.is_none_or(|peers| hops >= peers.most_hops())
            {
                let why = format!("{} passed it on to this host", marked.from);
                Refused::new(passed_on_twice(&why), true)
            } else {
                match self.pass_on(request, &remote, None, cx, arrived, connection, hops + 1, tail).await {
                    Ok(response) => return Ok(Onward::Answered(response)),
                    Err(refused) => refused,
                }
            };
            if !refused.unsent || Instant::now() + wait > until {
                return Err(refused);
            }
            if place.is_none() {
                place = peers.and_then(|peers| peers.place_to_wait());
                if place.is_none() {
                    return Err(refused);
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(longest);
            match self.route(request, host) {
                Ok(Route::Remote(other)) => remote = other,
                Ok(route) => return Ok(Onward::Route(route)),
                Err(failure) => return Err(Refused::new(failure, true)),
            }
        }
    }

    /// Another host that runs a part of the service and could have the request.
    fn other_host(&self, service: &str, request: &Request) -> Option<(Arc<str>, Arc<Passed>)> {
        let peers = self.config.peers.as_ref()?;
        self.shares.of(service)?.choose(|host| peers.could_have(host, request.headers()))
    }

    /// Passes a request on to another host that runs a part of its service, if this host's part is full. `None`: it stays.
    #[allow(clippy::too_many_arguments, reason = "a request, where it goes, and who counts it")]
    pub(super) async fn leave_to_others(
        &self,
        request: &mut Request,
        target: &RouteTarget,
        deployed: &Deployed,
        cx: &Cx,
        arrived: Instant,
        connection: &Arc<ClientConnection>,
        tail: &mut Tail,
    ) -> Option<Result<Response, Box<Refused>>> {
        let sharing = self.shares.of(deployed.name.service_path())?;
        if !target.wakes || !self.pool.is_full(target.revision) {
            return None;
        }
        let peers = self.config.peers.as_ref()?;
        let (host, passed) = sharing.choose(|host| peers.could_have(host, request.headers()))?;
        let to = RemoteTarget::new(host, target.tenant, target.timeout);
        let upgrade = request.extensions().get::<hyper::upgrade::OnUpgrade>().is_some();
        if upgrade && forward::wants_upgrade(request.headers()) {
            // What can't be put back when the other host is not there stays.
            return None;
        }
        let passing = self.pass_on(request, &to, Some(&passed), cx, arrived, connection, 1, tail);
        match Box::pin(passing).await {
            // Nobody has seen it: it waits here.
            Err(refused) if refused.unsent => None,
            passed => Some(passed),
        }
    }
}

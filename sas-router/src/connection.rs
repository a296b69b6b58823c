//! What is known of the connection that a request came over.

use std::{net::SocketAddr, sync::Arc};

use sas_core::Request;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

#[cfg(feature = "tls")]
use crate::host::host_of;
use crate::{forward::Origin, interim::Interim};

/// How everything that came in over one listener is brought to its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ending {
    /// Take nothing new; finish what there is.
    pub(crate) drain: CancellationToken,
    /// End at once.
    pub(crate) abort: CancellationToken,
    /// What must be gone before a shutdown is done.
    pub(crate) tasks: TaskTracker,
}

impl Ending {
    /// Drains until `deadline`, then aborts; resolves when every task has ended.
    pub(crate) async fn run(&self, deadline: tokio::time::Instant) {
        self.drain.cancel();
        self.tasks.close();
        if tokio::time::timeout_at(deadline, self.tasks.wait()).await.is_err() {
            self.abort.cancel();
            self.tasks.wait().await;
        }
    }
}

/// The client's connection. [`crate::Server`] puts an `Arc` of it into the extensions of every request; a host that
/// feeds a [`crate::Gateway`] from a server of its own does the same, or leaves it out.
#[derive(Debug)]
pub struct ClientConnection {
    peer: Option<SocketAddr>,
    secure: bool,
    origin: Origin,
    ending: Arc<Ending>,
    /// Where interim answers go; `None`: nowhere.
    interim: Option<Arc<Interim>>,
    /// The name that chose the certificate, if one did.
    #[cfg(feature = "tls")]
    pub(crate) asked: Option<crate::certificates::Asked>,
}

impl ClientConnection {
    /// A connection from `peer`; `secure`: over TLS.
    pub fn new(peer: Option<SocketAddr>, secure: bool) -> Self {
        Self::of(peer, secure, Arc::default(), None)
    }

    pub(crate) fn of(
        peer: Option<SocketAddr>,
        secure: bool,
        ending: Arc<Ending>,
        interim: Option<Arc<Interim>>,
    ) -> Self {
        Self {
            peer,
            secure,
            origin: Origin::new(peer, secure),
            ending,
            interim,
            #[cfg(feature = "tls")]
            asked: None,
        }
    }

    /// The address of the client, or of the proxy before us.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Whether it is encrypted.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Whether a request is for a host that this connection is not for (RFC 9110, section 15.5.20).
    #[cfg(feature = "tls")]
    pub(crate) fn misdirects(&self, request: &Request) -> bool {
        let Some(asked) = &self.asked else { return false };
        let authority = request.uri().authority().map(http::uri::Authority::as_str);
        let named = || request.headers().get(http::header::HOST)?.to_str().ok();
        // One without a host, or with one that is none, is refused for that.
        authority.or_else(named).and_then(host_of).is_some_and(|host| asked.excludes(host))
    }

    #[cfg(not(feature = "tls"))]
    pub(crate) fn misdirects(&self, _: &Request) -> bool {
        false
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(crate) fn interim(&self) -> Option<&Arc<Interim>> {
        self.interim.as_ref()
    }

    pub(crate) fn ending(&self) -> &Arc<Ending> {
        &self.ending
    }
}

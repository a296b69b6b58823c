//! What is known of the connection that a request came over.

use std::net::SocketAddr;

use crate::forward::Origin;

/// The client's connection. [`crate::Server`] puts an `Arc` of it into the extensions of every request; a host that
/// feeds a [`crate::Gateway`] from a server of its own does the same, or leaves it out.
#[derive(Debug)]
pub struct ClientConnection {
    peer: Option<SocketAddr>,
    secure: bool,
    origin: Origin,
}

impl ClientConnection {
    /// A connection from `peer`; `secure`: over TLS.
    pub fn new(peer: Option<SocketAddr>, secure: bool) -> Self {
        Self { peer, secure, origin: Origin::new(peer, secure) }
    }

    /// The address of the client, or of the proxy before us.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Whether it is encrypted.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }
}

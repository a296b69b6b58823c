//! A connection for one question.

use std::io;

use sas_core::{Endpoint, Io};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use crate::ProbeFailure;

/// Connects, and says so in `connected`.
pub(crate) async fn connect(at: &Endpoint, connected: &mut bool) -> Result<Box<dyn Io>, ProbeFailure> {
    let made =
        dial(at).await.map_err(|error| ProbeFailure::new(false, format!("connect to {at}: {error}")))?;
    *connected = true;
    Ok(made)
}

async fn dial(at: &Endpoint) -> io::Result<Box<dyn Io>> {
    let stream = match at {
        Endpoint::Tcp(address) => TcpStream::connect(address).await?,
        Endpoint::Host { name, port } => TcpStream::connect((&**name, *port)).await?,
        Endpoint::Within(address, sockets) => {
            let socket = std::net::TcpStream::from(sockets.tcp_socket(address)?);
            TcpSocket::from_std_stream(socket).connect(*address).await?
        }
        Endpoint::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
        other => {
            let text = format!("this version can't connect to an endpoint of the kind {other:?}");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
    };
    // TCP can connect a port to itself when nobody listens on it and it is picked as the local one.
    if stream.local_addr().ok() == stream.peer_addr().ok() {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

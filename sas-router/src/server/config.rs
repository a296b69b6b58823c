//! How a server takes connections.

use std::time::Duration;

use sas_core::Recorder;

/// Configuration of a [`crate::Server`]. Made by `default()` and then filled in.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Connections at once; more wait in the kernel's backlog until one ends. `None`:
    /// [`ServerConfig::DEFAULT_MAX_CONNECTIONS`], or what whoever composes the server finds right for the machine.
    pub max_connections: Option<usize>,
    /// Threads of the listener's own, each with a runtime of one thread, that take its connections and serve them: as many
    /// as there are cores for a program that does little else. Handlers run on them, too. 0: connections are served by the
    /// runtime that the server is made in. Not for Unix sockets. 0.
    pub workers: usize,
    /// How long a request's head may take, from its first byte. 10 s.
    pub header_timeout: Duration,
    /// How long a connection may lie without a request. 75 s.
    pub idle_timeout: Duration,
    /// How long a request's body may pause. 30 s.
    pub body_timeout: Duration,
    /// How long a client may take nothing of a response. 60 s.
    pub write_timeout: Duration,
    /// How long an HTTP/1.1 client that has closed its sending side after a whole request is taken to wait for the
    /// answer. Most that close have left, and nothing tells the two apart. 5 s.
    pub half_close: Duration,
    /// Longest head of an HTTP/1.1 request, and header list of an HTTP/2 one. 64 KiB.
    pub max_header_bytes: u32,
    /// Most header lines of an HTTP/1.1 request. 100.
    pub max_headers: usize,
    /// Whether HTTP/1.1 requests that are whole at once, with answers in memory, take the short way past hyper
    /// (docs/adr/0186). `false` costs some microseconds of CPU per request, and nothing else differs. `true`.
    pub plain_http1: bool,
    /// HTTP/2 streams at once per connection. 200.
    pub max_streams: u32,
    /// Streams that a client may reset before the platform has looked at them; one more ends the connection. 20.
    pub max_reset_streams: usize,
    /// How often a quiet HTTP/2 connection is asked whether it is there, and how long the answer may take. 30 s.
    pub ping: Duration,
    /// Decides the ids of requests that are refused before a handler sees them. 0: they differ with each start.
    pub seed: u64,
    /// Encrypts every connection; `None`: plain text.
    #[cfg(feature = "tls")]
    pub tls: Option<super::Tls>,
    /// The recorder that the listener's metrics go to.
    pub recorder: Recorder,
}

impl ServerConfig {
    /// The connections at once of a server that is not told how many.
    pub const DEFAULT_MAX_CONNECTIONS: usize = 10_000;
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_connections: None,
            workers: 0,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            half_close: Duration::from_secs(5),
            max_header_bytes: 64 * 1024,
            max_headers: 100,
            plain_http1: true,
            max_streams: 200,
            max_reset_streams: 20,
            ping: Duration::from_secs(30),
            seed: 0,
            #[cfg(feature = "tls")]
            tls: None,
            recorder: Recorder::default(),
        }
    }
}

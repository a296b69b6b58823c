#![forbid(unsafe_code)]
//! Routes, HTTP ingress, upstream client and gateway of the `sas` serverless SDK.
//!
//! | | |
//! |---|---|
//! | [`RouteTable`] | which revision answers a request; the default [`sas_core::Router`] |
//! | [`Gateway`] | brings a request to an instance of that revision, and the answer back |
//! | `UnixServer` | the same on a Unix socket of mode 0600 |
//! | [`Server`] | takes HTTP/1.1 and HTTP/2 connections and hands their requests to a [`sas_core::Handler`] |
//! | [`Admission`] | quotas, and the budget of bytes |
//! | [`Hook`] | the host's code in every request's way |
//!
//! A gateway needs no listener:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use std::sync::Arc;
//! use sas_core::{Body, Handler};
//! use sas_router::{Gateway, GatewayConfig, RouteTable};
//!
//! let pool = sas_pool::InstancePool::new(Default::default());
//! let gateway = Gateway::new(Arc::new(RouteTable::new(7)), pool, GatewayConfig::default());
//! let request = http::Request::get("http://nobody.example.com/").body(Body::empty()).unwrap();
//! let response = gateway.handle(request).await;
//! assert_eq!(response.status(), 404);
//! assert!(response.headers().contains_key("x-request-id"));
//! # }
//! ```

mod access;
mod admission;
#[cfg(feature = "tls")]
mod certificates;
mod connection;
mod failure;
mod fault;
mod forward;
mod framing;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod gateway;
mod health;
mod hook;
mod host;
mod hosts;
mod identity;
mod interim;
mod matching;
pub mod metrics;
mod mirror;
mod peer;
mod rehearsals;
mod retry;
mod rule;
mod seed;
mod server;
mod shares;
mod span;
mod split;
mod stall;
mod table;
mod tail;
mod tally;
mod timed;
#[cfg(feature = "tower")]
mod tower;
mod upstream;
mod websocket;
mod wire;

pub use access::{AccessLog, AccessRecord, End, TracingAccessLog};
pub use admission::{Admission, AdmissionConfig, Permit, Refusal};
#[cfg(feature = "tls")]
pub use certificates::{CertificateView, Certificates};
pub use connection::ClientConnection;
pub use failure::{Failure, REQUEST_ID};
pub use gateway::{Gateway, GatewayConfig, ServerTiming};
pub use health::HealthChecks;
pub use hook::{Hook, HookCx, Step};
pub use host::host_of;
pub use mirror::MirrorConfig;
pub use peer::Peers;
pub use retry::RetryPolicy;
#[cfg(unix)]
pub use server::UnixServer;
#[cfg(feature = "tls")]
pub use server::{CertificateDir, Tls};
pub use server::{Server, ServerConfig};
pub use table::RouteTable;
pub use tally::Tally;
#[cfg(feature = "tower")]
pub use tower::HandlerService;
pub use upstream::UpstreamConfig;
pub use websocket::WebSocketFrames;

/// The README's code.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

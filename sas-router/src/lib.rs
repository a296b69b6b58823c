#![forbid(unsafe_code)]
//! Routes, HTTP ingress, upstream client and gateway of the `sas` serverless SDK.
//!
//! | | |
//! |---|---|
//! | [`RouteTable`] | which revision answers a request; the default [`sas_core::Router`] |
//! | [`Gateway`] | brings a request to an instance of that revision, and the answer back |
//! | [`Server`] | takes HTTP/1.1 and HTTP/2 connections and hands their requests to a [`sas_core::Handler`] |

mod access;
mod admission;
mod connection;
mod failure;
mod forward;
mod gateway;
mod hook;
mod host;
mod hosts;
mod identity;
mod matching;
pub mod metrics;
mod retry;
mod rule;
mod seed;
mod server;
mod split;
mod table;
mod tail;
mod tally;
mod timed;
mod upstream;
mod websocket;

pub use access::{AccessLog, AccessRecord, End, TracingAccessLog};
pub use admission::{Admission, AdmissionConfig, Permit, Quota, Refusal, TokenBucket};
pub use connection::ClientConnection;
pub use failure::{Failure, REQUEST_ID};
pub use gateway::{Gateway, GatewayConfig, ServerTiming};
pub use hook::{Hook, HookCx, Step};
pub use host::host_of;
pub use retry::RetryPolicy;
#[cfg(feature = "tls")]
pub use server::Tls;
pub use server::{Server, ServerConfig};
pub use table::RouteTable;
pub use tally::Tally;
pub use upstream::UpstreamConfig;
pub use websocket::WebSocketFrames;

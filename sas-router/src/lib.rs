#![forbid(unsafe_code)]
//! Routes, HTTP ingress, upstream client and gateway of the `sas` serverless SDK.
//!
//! | | |
//! |---|---|
//! | [`RouteTable`] | which revision answers a request; the default [`sas_core::Router`] |
//! | [`Gateway`] | brings a request to an instance of that revision, and the answer back |
//! | [`Server`] | takes HTTP/1.1 and HTTP/2 connections and hands their requests to a [`sas_core::Handler`] |

mod connection;
mod failure;
mod forward;
mod gateway;
mod host;
mod hosts;
mod identity;
mod matching;
mod retry;
mod rule;
mod seed;
mod server;
mod split;
mod table;
mod upstream;

pub use connection::ClientConnection;
pub use failure::{Failure, REQUEST_ID};
pub use gateway::{Gateway, GatewayConfig, ServerTiming};
pub use host::host_of;
pub use retry::RetryPolicy;
pub use server::{Server, ServerConfig};
pub use table::RouteTable;
pub use upstream::UpstreamConfig;

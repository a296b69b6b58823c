//! Ingress, gateway and upstream client, part by part. One program, since each more is built and linked for seconds.
//! Apart are those that count what the process allocates (`allocations`), measure what it holds (`protocols`) or load it
//! (`plain`, `storm`), and those that run on both ways of HTTP/1.1 (`exchanges`).

#[cfg(feature = "tls")]
mod certificates;
mod conformance;
mod features;
#[path = "../support/frames.rs"]
mod frames;
mod gateway;
mod grpc;
mod h2spec;
mod http2_abuse;
mod http2_conformance;
mod peers;
mod rehearsals;
#[path = "../support/mod.rs"]
mod support;
#[cfg(feature = "tls")]
mod tls;
mod traces;

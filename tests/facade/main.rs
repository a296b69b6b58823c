//! A whole platform in one process, part by part. One program, since each more is built and linked for seconds.

mod builder;
mod engines;
mod errors;
mod metering;
mod rollouts;
mod scaling;
mod start_gate;
mod state;
mod tenants;
mod traffic;

//! The control plane, part by part. One program, since each more is built and linked for seconds; `races` is apart, which loads it.

mod admin;
mod admin_api;
mod admin_tokens;
#[cfg(unix)]
mod blobs;
mod clock_jumps;
mod conformance;
mod control;
mod damaged;
mod data_plane;
mod life;
mod lifecycle;
mod logs;
mod meter;
mod packages;
#[path = "../support/mod.rs"]
mod support;
mod tenancy;

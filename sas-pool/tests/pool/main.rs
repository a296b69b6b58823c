//! The pool, part by part. One program, since each more is built and linked for seconds; apart are `allocations`, which counts, `stress`,
//! which loads it, and `loom`, which is built in its own way.

mod balancer_vectors;
mod claims;
#[cfg(not(loom))]
mod conformance;
mod fairness;
#[path = "../fake/mod.rs"]
mod fake;
mod keep_alive;
mod lives;
mod pending_starts;
mod policy_tables;
mod stems;
mod tenant_quotas;
mod trace_replay;

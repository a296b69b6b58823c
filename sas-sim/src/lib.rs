//! Deterministic simulator that drives the production crates of the sas serverless SDK

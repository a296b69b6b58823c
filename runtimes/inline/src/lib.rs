//! Runtime of the sas serverless SDK: functions that are async Rust closures

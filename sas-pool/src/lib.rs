//! Instances, leases, activation queues, stems and warm-pool policies of the sas serverless SDK

pub mod capacity;

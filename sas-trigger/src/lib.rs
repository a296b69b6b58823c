//! Trigger sources, filters and event delivery of the sas serverless SDK

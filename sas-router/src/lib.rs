//! Routes, HTTP ingress, upstream client and gateway of the sas serverless SDK

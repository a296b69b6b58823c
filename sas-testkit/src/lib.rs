//! Conformance suites, fakes, load and fault tools for backends of the sas serverless SDK

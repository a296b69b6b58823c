//! Runtime of the sas serverless SDK: WebAssembly functions, a fresh sandbox per request

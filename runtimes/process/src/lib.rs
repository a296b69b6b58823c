//! Runtime of the sas serverless SDK: code packages as native processes

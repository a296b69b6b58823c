//! Apps, services, revisions, manifests, stores and the admin API of the sas serverless SDK

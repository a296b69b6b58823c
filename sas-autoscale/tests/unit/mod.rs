//! Tests of what is private: the parts of the scalers, against vectors, laws and tables.

mod knative;
mod kpa_vectors;
mod laws;
mod metrics_together;
mod policy_tables;
mod presets;
mod upstream;

#![forbid(unsafe_code)]
//! Knative's and Kubernetes' words for the `sas` serverless SDK: annotations, the autoscaler's configuration, and
//! (feature `manifest`) the documents themselves.
//!
//! Two ways lead through the autoscaling annotations. A platform takes [`scaling_from_annotations`], which refuses
//! what Knative's webhook refuses and gives a [`sas_core::ScalingSpec`]. Who replays Knative takes [`resolve`], which
//! gives what its run-time code makes of annotations, valid or not.
//!
//! ```
//! use std::collections::BTreeMap;
//! use sas_knative::{AutoscalerConfig, Fidelity, scaling_from_annotations};
//!
//! let annotations = BTreeMap::from([
//!     ("autoscaling.knative.dev/target".to_owned(), "10".to_owned()),
//!     ("autoscaling.knative.dev/window".to_owned(), "30s".to_owned()),
//! ]);
//! let spec = scaling_from_annotations(&annotations, 0, &AutoscalerConfig::default(), Fidelity::Corrected, None)?;
//! assert_eq!((spec.target, spec.utilization), (10.0, 0.7));
//!
//! let wrong = BTreeMap::from([("autoscaling.knative.dev/window".to_owned(), "soon".to_owned())]);
//! let errors = scaling_from_annotations(&wrong, 0, &AutoscalerConfig::default(), Fidelity::Corrected, None).unwrap_err();
//! assert_eq!(errors.0[0].field, "autoscaling.knative.dev/window");
//! # Ok::<(), sas_core::SpecErrors>(())
//! ```

mod annotations;
mod config;
mod go;
pub mod keys;
#[cfg(feature = "manifest")]
pub mod manifest;
mod own;
mod quantity;
mod resolve;

pub use annotations::validate_annotations;
pub use config::AutoscalerConfig;
pub use go::{ParseError, format_duration, parse_bool, parse_float, parse_int};
pub use keys::{HPA_CLASS, KPA_CLASS, TAG_HEADER};
pub use quantity::parse_quantity;
pub use resolve::{Reachability, Resolved, resolve, scaling_from_annotations};

pub use sas_core::Fidelity;

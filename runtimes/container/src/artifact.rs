//! What a revision is started from.

use std::sync::Arc;

use crate::images::Image;

/// The images of a revision, held on disk.
#[derive(Debug)]
pub(crate) struct ContainerArtifact {
    pub(crate) main: Arc<Image>,
    pub(crate) init: Vec<Arc<Image>>,
    pub(crate) sidecars: Vec<Arc<Image>>,
}

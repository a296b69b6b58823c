//! How a pull is going, for whoever likes to watch.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::digest::Digest;

/// A step of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PullProgress {
    /// The name stands for this digest, and the image has so many layers of which some have to be brought here.
    Resolved {
        /// `sha256:` and 64 hexadecimal digits.
        digest: String,
        /// All layers.
        layers: usize,
        /// Those that are not here yet.
        missing: usize,
    },
    /// So much of a layer is here. Told about ten times a second at most.
    Pulling {
        /// The digest of the layer's blob.
        layer: String,
        /// Bytes that are here.
        bytes: u64,
        /// Bytes of the whole.
        of: u64,
    },
    /// A layer lies unpacked.
    Unpacked {
        /// The digest of the layer's content.
        layer: String,
        /// Bytes on disk.
        bytes: u64,
    },
    /// All of it is here.
    Done {
        /// Bytes on disk of all layers.
        bytes: u64,
        /// How long it took.
        took: Duration,
    },
}

impl fmt::Display for PullProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |digest: &str| digest.chars().skip(7).take(12).collect::<String>();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        match self {
            Self::Resolved { digest, layers, missing } => {
                write!(f, "{}: {layers} layers, {missing} to pull", short(digest))
            }
            Self::Pulling { layer, bytes, of } => {
                let tenths =
                    usize::try_from((bytes * 20).checked_div(*of).unwrap_or(20)).unwrap_or(20).min(20);
                let bar = "#".repeat(tenths) + &".".repeat(20 - tenths);
                write!(f, "{} [{bar}] {:.1} of {:.1} MiB", short(layer), mib(*bytes), mib(*of))
            }
            Self::Unpacked { layer, bytes } => write!(f, "{} unpacked, {:.1} MiB", short(layer), mib(*bytes)),
            Self::Done { bytes, took } => write!(f, "{:.1} MiB in {took:.1?}", mib(*bytes)),
        }
    }
}

/// Is told how pulls are going.
pub trait PullObserver: fmt::Debug + Send + Sync + 'static {
    /// A step of the pull of `image`. Returns at once.
    fn progress(&self, image: &str, progress: &PullProgress);
}

/// Tells an observer of one pull.
#[derive(Clone)]
pub(crate) struct Reporter {
    image: Arc<str>,
    observer: Option<Arc<dyn PullObserver>>,
    began: Instant,
}

impl Reporter {
    pub(crate) fn new(image: &str, observer: Option<Arc<dyn PullObserver>>) -> Self {
        Self { image: image.into(), observer, began: Instant::now() }
    }

    pub(crate) fn tell(&self, progress: PullProgress) {
        tracing::debug!(image = &*self.image, %progress, "pull");
        if let Some(observer) = &self.observer {
            observer.progress(&self.image, &progress);
        }
    }

    pub(crate) fn pulling(&self, layer: &Digest, bytes: u64, of: u64) {
        if self.observer.is_some() {
            self.tell(PullProgress::Pulling { layer: layer.to_string(), bytes, of });
        }
    }

    pub(crate) fn done(&self, bytes: u64) {
        self.tell(PullProgress::Done { bytes, took: self.began.elapsed() });
    }
}

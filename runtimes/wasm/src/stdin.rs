//! Standard input of a CGI guest: the body of its request.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use sas_core::{Body, BoxError};

/// The request's body as it comes in.
pub(crate) struct Stdin {
    pub(crate) body: Body,
    /// What was read and not yet taken.
    pub(crate) piece: Bytes,
    /// Bytes of all of it, where that is known beforehand.
    pub(crate) length: Option<u64>,
}

impl Stdin {
    pub(crate) fn new(body: Body, headers: &http::HeaderMap) -> Self {
        let declared =
            headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let length = declared.or_else(|| http_body::Body::size_hint(&body).exact());
        Self { body, piece: Bytes::new(), length }
    }

    /// Waits for more; an empty piece is the end.
    pub(crate) async fn more(&mut self) -> Result<&mut Bytes, BoxError> {
        while self.piece.is_empty() {
            match self.body.frame().await {
                None => break,
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.piece = data;
                    }
                }
            }
        }
        Ok(&mut self.piece)
    }
}

//! Style, script and icon: in the binary, told apart by their digest, so that browsers keep them for ever.

use std::sync::OnceLock;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use sas_core::{Body, Response};
use sha2::{Digest as _, Sha256};

/// A file that pages refer to.
#[derive(Debug)]
pub(crate) struct Asset {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
    digest: OnceLock<String>,
}

pub(crate) static STYLE: Asset =
    Asset::new("console.css", "text/css; charset=utf-8", include_str!("../assets/console.css"));
pub(crate) static SCRIPT: Asset =
    Asset::new("console.js", "text/javascript; charset=utf-8", include_str!("../assets/console.js"));
pub(crate) static ICON: Asset = Asset::new("icon.svg", "image/svg+xml", include_str!("../assets/icon.svg"));

impl Asset {
    const fn new(name: &'static str, kind: &'static str, text: &'static str) -> Self {
        Self { name, kind, text, digest: OnceLock::new() }
    }

    fn digest(&self) -> &str {
        self.digest.get_or_init(|| {
            let digest = Sha256::digest(self.text.as_bytes());
            digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
        })
    }

    /// Where pages find it: another text has another address.
    pub(crate) fn url(&self) -> String {
        format!("/console/assets/{}?{}", self.name, self.digest())
    }
}

/// The asset of this name, as the browser has it or whole.
pub(crate) fn answer(name: &str, headers: &HeaderMap) -> Option<Response> {
    let asset = [&STYLE, &SCRIPT, &ICON].into_iter().find(|asset| asset.name == name)?;
    let tag = format!("\"{}\"", asset.digest());
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let mut response = Response::new(if known { Body::empty() } else { Body::from(asset.text) });
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    if let Ok(tag) = HeaderValue::try_from(tag) {
        headers.insert(header::ETAG, tag);
    }
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asset_is_sent_once() {
        let first = answer("console.css", &HeaderMap::new()).unwrap();
        assert_eq!(first.status(), StatusCode::OK);
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        assert_eq!(answer("console.css", &headers).unwrap().status(), StatusCode::NOT_MODIFIED);
        assert!(answer("../lib.rs", &headers).is_none());
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        for asset in [&STYLE, &SCRIPT, &ICON] {
            let text = asset.text.replace("http://www.w3.org/2000/svg", "");
            assert!(
                !text.contains("http://") && !text.contains("https://") && !text.contains("@import"),
                "{}",
                asset.name
            );
        }
    }
}

//! How long an instance keeps a connection that is not used.

use std::time::Duration;

/// How long the instance keeps the connection unused (`Keep-Alive: timeout=5, max=100`), less what a request may be on
/// its way: one that comes just when the instance hangs up would be lost.
pub(super) fn keep_for(headers: &http::HeaderMap) -> Option<Duration> {
    let list = headers.get("keep-alive")?.to_str().ok()?;
    let mut time = None;
    for item in list.split(',') {
        let (name, value) = item.split_once('=')?;
        let Ok(number) = value.trim().trim_matches('"').parse::<u32>() else { continue };
        match name.trim().to_ascii_lowercase().as_str() {
            "timeout" => {
                let said = Duration::from_secs(number.into());
                time = Some(said - (said / 2).min(Duration::from_secs(1)));
            }
            "max" if number == 0 => return Some(Duration::ZERO),
            _ => {}
        }
    }
    time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_kept_a_little_shorter_than_the_instance_keeps_it() {
        for (said, kept) in [
            ("timeout=5", Some(4_000)),
            ("timeout=60, max=100", Some(59_000)),
            ("max=7,Timeout = \"10\"", Some(9_000)),
            ("timeout=1", Some(500)),
            ("timeout=0", Some(0)),
            ("timeout=5, max=0", Some(0)),
            ("max=3", None),
            ("timeout=soon", None),
            ("5", None),
        ] {
            let mut headers = http::HeaderMap::new();
            headers.insert("keep-alive", http::HeaderValue::from_static(said));
            assert_eq!(keep_for(&headers), kept.map(Duration::from_millis), "{said}");
        }
        assert_eq!(keep_for(&http::HeaderMap::new()), None);
    }
}

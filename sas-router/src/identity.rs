//! Request ids and trace contexts.

use std::{
    hash::BuildHasher as _,
    sync::atomic::{AtomicU64, Ordering},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use sas_core::RequestId;

use crate::seed::mix;

/// W3C Trace Context.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Ids that do not repeat within a gateway's life and differ between seeds.
#[derive(Debug)]
pub(crate) struct IdSource {
    seed: u64,
    next: AtomicU64,
}

impl IdSource {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { seed, next: AtomicU64::new(0) }
    }

    /// Of a configured seed; 0: none was asked for, and the ids are others with each start.
    pub(crate) fn configured(seed: u64) -> Self {
        match seed {
            // The keys of the standard library's hash maps come from the system's randomness.
            0 => Self::new(std::collections::hash_map::RandomState::new().hash_one(0)),
            seed => Self::new(seed),
        }
    }

    /// How many ids were given out.
    pub(crate) fn given(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    pub(crate) fn next(&self) -> RequestId {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let high = mix(self.seed ^ mix(turn));
        // `mix` is a bijection, so the low word alone keeps ids of one source apart.
        let low = mix(turn.wrapping_add(self.seed));
        RequestId(u128::from(high) << 64 | u128::from(low))
    }
}

/// The id that a trusted sender gave: 32 hexadecimal digits, with or without the dashes of a UUID.
pub(crate) fn parse_request_id(value: &HeaderValue) -> Option<RequestId> {
    let mut id: u128 = 0;
    let mut digits = 0;
    for byte in value.as_bytes() {
        if *byte == b'-' && value.len() == 36 {
            continue;
        }
        id = id << 4 | u128::from(char::from(*byte).to_digit(16)?);
        digits += 1;
        if digits > 32 {
            return None;
        }
    }
    (digits == 32).then_some(RequestId(id))
}

/// Carries the trace of `headers` on with a span of its own, or starts one whose id is that of the request.
pub(crate) fn trace(headers: &mut HeaderMap, request: RequestId) {
    let span = mix(request.0 as u64) | 1;
    let carried = headers.get(TRACEPARENT).and_then(|value| parse_traceparent(value.as_bytes()));
    if headers.get_all(TRACEPARENT).iter().nth(1).is_some() || carried.is_none() {
        // Without a valid parent its state means nothing (Trace Context, section 3.3).
        headers.remove(TRACESTATE);
    }
    let (trace, flags) = carried.unwrap_or((request.0.max(1), 0));
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    write_hex(&mut text[3..35], trace);
    write_hex(&mut text[36..52], u128::from(span));
    write_hex(&mut text[53..55], u128::from(flags));
    headers.insert(TRACEPARENT, HeaderValue::from_bytes(&text).expect("hexadecimal digits and dashes"));
}

fn write_hex(into: &mut [u8], number: u128) {
    for (at, digit) in into.iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (4 * at)) as usize & 0xf];
    }
}

/// Trace id and flags of a valid `traceparent`.
fn parse_traceparent(text: &[u8]) -> Option<(u128, u8)> {
    let number = |range: std::ops::Range<usize>| {
        text.get(range)?.iter().try_fold(0_u128, |number, byte| {
            let digit = char::from(*byte).to_digit(16)?;
            (!byte.is_ascii_uppercase()).then_some(number << 4 | u128::from(digit))
        })
    };
    let dashes = [2, 35, 52].iter().all(|at| text.get(*at) == Some(&b'-'));
    let version = number(0..2)?;
    // Version 00 has exactly this length; later ones may go on after a dash.
    let length = text.len() == 55 || (version > 0 && text.get(55) == Some(&b'-'));
    if !dashes || !length || version == 0xff {
        return None;
    }
    let (trace, parent, flags) = (number(3..35)?, number(36..52)?, number(53..55)?);
    (trace != 0 && parent != 0).then_some((trace, if version == 0 { flags as u8 } else { flags as u8 & 1 }))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_do_not_repeat_and_differ_between_seeds() {
        let (one, two) = (IdSource::new(1), IdSource::new(2));
        let ids: HashSet<u128> = (0..10_000).flat_map(|_| [one.next().0, two.next().0]).collect();
        assert_eq!(ids.len(), 20_000);
    }

    #[test]
    fn without_a_seed_no_start_repeats_the_ids_of_another() {
        let first: HashSet<u128> = (0..1_000).map(|_| IdSource::configured(0).next().0).collect();
        assert_eq!(first.len(), 1_000);
        assert_eq!(IdSource::configured(7).next(), IdSource::configured(7).next());
    }

    #[test]
    fn a_request_id_is_taken_over_only_when_it_is_one() {
        let parse = |text: &str| parse_request_id(&HeaderValue::from_str(text).unwrap()).map(|id| id.0);
        assert_eq!(parse("000000000000000000000000000000ff"), Some(255));
        assert_eq!(parse("00000000-0000-0000-0000-0000000000ff"), Some(255));
        for bad in
            ["", "ff", "g00000000000000000000000000000ff", "000000000000000000000000000000ff0", "<script>"]
        {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_valid_trace_is_carried_on_with_a_new_span() {
        let mut headers = HeaderMap::new();
        let sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        headers.insert(TRACEPARENT, HeaderValue::from_static(sent));
        headers.insert(TRACESTATE, HeaderValue::from_static("vendor=1"));
        trace(&mut headers, RequestId(9));
        let passed = headers[TRACEPARENT].to_str().unwrap();
        assert_eq!(&passed[..36], &sent[..36]);
        assert_ne!(&passed[36..52], &sent[36..52]);
        assert_eq!(&passed[52..], "-01");
        assert!(headers.contains_key(TRACESTATE));
    }

    #[test]
    fn without_a_valid_trace_one_is_started() {
        for bad in [
            None,
            Some("00-00000000000000000000000000000000-00f067aa0ba902b7-01"),
            Some("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"),
            Some("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            Some("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"),
            Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x"),
            Some("nonsense"),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(bad) = bad {
                headers.insert(TRACEPARENT, HeaderValue::from_static(bad));
            }
            headers.insert(TRACESTATE, HeaderValue::from_static("vendor=1"));
            trace(&mut headers, RequestId(0xabc));
            let passed = headers[TRACEPARENT].to_str().unwrap();
            assert!(passed.starts_with("00-00000000000000000000000000000abc-"), "{passed}");
            assert!(!headers.contains_key(TRACESTATE));
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let later = b"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-more";
        assert_eq!(parse_traceparent(later), Some((0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 1)));
    }
}

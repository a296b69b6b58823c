//! Ids of requests and of spans.

use std::{
    hash::BuildHasher as _,
    sync::atomic::{AtomicU64, Ordering},
};

use http::HeaderValue;
use sas_core::RequestId;

use crate::seed::mix;

/// Ids that do not repeat within a gateway's life and differ between seeds.
#[derive(Debug)]
pub(crate) struct IdSource {
    seed: u64,
    next: AtomicU64,
    spans: AtomicU64,
}

impl IdSource {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { seed, next: AtomicU64::new(0), spans: AtomicU64::new(0) }
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

    /// The id of a span; never zero.
    pub(crate) fn next_span(&self) -> u64 {
        let turn = self.spans.fetch_add(1, Ordering::Relaxed);
        mix(mix(turn) ^ self.seed).max(1)
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
    fn spans_have_ids_of_their_own() {
        let source = IdSource::new(7);
        let spans: HashSet<u64> = (0..10_000).map(|_| source.next_span()).collect();
        assert_eq!(spans.len(), 10_000);
        assert_eq!(source.given(), 0, "they are not requests");
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
}

//! Deterministic numbers from a seed that the caller gives.

/// One step of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
pub(crate) const fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A keyed hash of bytes: whoever does not know the seed can't choose inputs that collide.
pub(crate) fn hash(seed: u64, bytes: &[u8]) -> u64 {
    const K: u64 = 0x9fb2_1c65_1e98_df25;
    let fold = |a: u64, b: u64| {
        let wide = u128::from(a) * u128::from(b);
        (wide as u64) ^ ((wide >> 64) as u64)
    };
    let mut state = mix(seed) ^ (bytes.len() as u64);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().expect("chunks of eight bytes"));
        state = fold(state ^ word, K ^ mix(seed ^ 1));
    }
    let mut last = [0_u8; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    fold(state ^ u64::from_le_bytes(last), K ^ mix(seed ^ 2))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn equal_bytes_hash_alike_and_the_seed_matters() {
        assert_eq!(hash(7, b"a.example.com"), hash(7, b"a.example.com"));
        assert_ne!(hash(7, b"a.example.com"), hash(8, b"a.example.com"));
        assert_ne!(hash(7, b""), hash(7, b"\0"));
    }

    #[test]
    fn numbered_hosts_spread_over_the_upper_and_the_lower_bits() {
        let hashes: Vec<u64> =
            (0..10_000).map(|n| hash(1, format!("svc-{n}.ns.example.com").as_bytes())).collect();
        let upper: HashSet<u64> = hashes.iter().map(|h| h >> 49).collect();
        let lower: HashSet<u32> = hashes.iter().map(|h| *h as u32).collect();
        assert!(upper.len() > 8_000, "{} of 32768 leaves used", upper.len());
        assert!(lower.len() > 9_990, "{} distinct low words", lower.len());
    }
}

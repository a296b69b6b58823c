//! What fuzzers call: plain functions of bytes that panic when a law is broken. `fuzz/` runs them under libFuzzer; the
//! tests here run each on some thousand seeded inputs.

use std::collections::HashMap;

use http::{HeaderMap, Method};
use sas_core::{
    HostPattern, RevisionKey, Route, RouteAction, RouteChange, RouteQuery, RouteRule, Router as _, Split,
    TenantKey, ValueMatch,
};

use crate::{RouteTable, WebSocketFrames, host, host_of, matching, split};

/// A reader of structured values from arbitrary bytes.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn text(&mut self) -> String {
        let length = usize::from(self.byte() % 24).min(self.0.len());
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        String::from_utf8_lossy(text).into_owned()
    }

    /// A host of few labels, so that exact hosts, wildcards and queries meet.
    fn host(&mut self) -> String {
        match self.byte() % 8 {
            0 => self.text(),
            some => (0..some.div_ceil(2))
                .map(|_| ["a", "b", "example"][usize::from(self.byte()) % 3])
                .collect::<Vec<_>>()
                .join("."),
        }
    }
}

/// The table against a plain map: whatever is set and removed, lookups agree.
pub fn route_table(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let table = RouteTable::new(u64::from(bytes.byte()));
    let mut exact: HashMap<String, u64> = HashMap::new();
    let mut wildcard: HashMap<String, u64> = HashMap::new();
    let mut any = None;
    let mut next = 0;
    while !bytes.0.is_empty() {
        let kind = bytes.byte();
        let name = bytes.host();
        next += 1;
        let rule = RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(RevisionKey(next), 100)]));
        let pattern = match kind % 3 {
            0 => HostPattern::Exact(name.clone()),
            1 => HostPattern::Wildcard(name.clone()),
            _ => HostPattern::Any,
        };
        let change = match kind & 0x40 {
            0 => RouteChange::Set { host: pattern.clone(), rules: vec![rule] },
            _ => RouteChange::Remove { host: pattern.clone() },
        };
        let removes = kind & 0x40 != 0;
        if table.apply(vec![change]).is_err() {
            assert!(host::problem(&pattern).is_some(), "{pattern:?} was refused without a problem");
            continue;
        }
        let model = match pattern {
            HostPattern::Exact(_) => &mut exact,
            HostPattern::Wildcard(_) => &mut wildcard,
            HostPattern::Any => {
                any = (!removes).then_some(next);
                continue;
            }
        };
        if removes {
            model.remove(&name)
        } else {
            model.insert(name, next)
        };
        let asked = bytes.host();
        let lower = asked.strip_suffix('.').unwrap_or(&asked).to_ascii_lowercase();
        let parent = lower.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, parent)| parent);
        let want = exact.get(&lower).or_else(|| wildcard.get(parent?)).copied().or(any);
        let headers = HeaderMap::new();
        let query =
            RouteQuery { method: &Method::GET, host: &asked, path: "/", query: None, headers: &headers };
        let got = match table.route(&query) {
            Ok(Route::To(target)) => Some(target.revision.0),
            _ => None,
        };
        assert_eq!(got, want, "{asked:?}");
    }
}

/// An authority either has a host that a route could name (or an address), or is refused.
pub fn authority(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(host) = host_of(&text) {
        assert!(text.starts_with(host) && !host.is_empty());
        let mut buffer = [0; host::MAX_HOST];
        let normal = host::normalized(host, &mut buffer);
        assert!(normal.is_some() || host.len() > host::MAX_HOST, "{host:?}");
    }
}

/// Paths: what is under a prefix is under each of its parents, and dots do not lead out.
pub fn path(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let prefix = format!("/{}", bytes.text());
    let prefix = prefix.trim_end_matches('/');
    let path = format!("/{}", String::from_utf8_lossy(bytes.0));
    if matching::under(prefix, &path)
        && let Some((parent, _)) = prefix.rsplit_once('/')
    {
        assert!(matching::under(parent, &path), "{path:?} is under {prefix:?} but not under {parent:?}");
    }
    let escaped = format!("{prefix}/x/../..{path}");
    if prefix.matches('/').count() == 1 && !prefix.contains('.') && !prefix.contains('%') {
        assert_eq!(matching::under("", &escaped), matching::under("", &path));
    }
}

/// Header and query conditions never panic, and `Present` holds wherever `Exact` does.
pub fn conditions(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let (name, value, query) = (bytes.text(), bytes.text(), bytes.text());
    let headers = HeaderMap::new();
    let request =
        RouteQuery { method: &Method::GET, host: "a", path: "/", query: Some(&query), headers: &headers };
    let with = |want: ValueMatch| {
        let mut matches = sas_core::RouteMatch::default();
        matches.query.push((name.clone(), want));
        matching::Conditions::compile(&matches).ok().flatten().map(|conditions| conditions.matches(&request))
    };
    let (exact, present) = (with(ValueMatch::Exact(value.clone())), with(ValueMatch::Present));
    let prefix = with(ValueMatch::Prefix(value.clone()));
    assert!(
        exact != Some(true) || (present == Some(true) && prefix == Some(true)),
        "{name:?} {value:?} {query:?}"
    );
}

/// Whatever the weights, any hundred consecutive requests are split exactly.
pub fn weights(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let (seed, skip) = (u64::from(bytes.byte()), usize::from(bytes.byte()));
    let mut left = 100;
    let mut splits = Vec::new();
    while left > 0 {
        let weight = if bytes.0.is_empty() { left } else { u32::from(bytes.byte()) % (left + 1) };
        splits.push(Split::new(RevisionKey(splits.len() as u64), weight));
        left -= weight;
    }
    let deal = split::Deal::new(&splits, seed);
    for _ in 0..skip {
        deal.next();
    }
    let mut counts = vec![0; splits.len()];
    for _ in 0..split::RUN {
        counts[deal.next().0 as usize] += 1;
    }
    assert!(splits.iter().zip(&counts).all(|(split, count)| split.weight == *count), "{splits:?} {counts:?}");
}

/// Frames are found alike however the bytes are cut.
pub fn frames(bytes: &[u8]) {
    let (mut whole, mut single) = (WebSocketFrames::default(), WebSocketFrames::default());
    let end = whole.follow(bytes);
    let mut last = None;
    for (at, byte) in bytes.iter().enumerate() {
        if single.follow(std::slice::from_ref(byte)).is_some() {
            last = Some(at + 1);
        }
    }
    assert_eq!((end, whole.between(), whole.closed()), (last, single.between(), single.closed()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seeded inputs: random bytes, and random bytes of an alphabet that matters.
    fn run(target: fn(&[u8]), alphabet: &[u8]) {
        let mut state = 0x5eed;
        let mut random = || {
            state = crate::seed::mix(state);
            state
        };
        for round in 0..3_000 {
            let length = random() % 120;
            let bytes: Vec<u8> = (0..length)
                .map(|_| match round % 2 {
                    0 => random() as u8,
                    _ => alphabet[random() as usize % alphabet.len()],
                })
                .collect();
            target(&bytes);
        }
    }

    #[test]
    fn the_table_agrees_with_a_plain_map() {
        run(route_table, &[0, 1, 2, 3, 4, 0x40, 0x41, 0x42, 7]);
    }

    #[test]
    fn authorities_are_hosts_or_refused() {
        run(authority, b"aZ0-._:[]@/ 1\x00\xff");
    }

    #[test]
    fn paths_keep_their_laws() {
        run(path, b"/.%2eEab\x03\x05");
    }

    #[test]
    fn conditions_keep_their_laws() {
        run(conditions, b"ab=&+%20\x01\x02\x03");
    }

    #[test]
    fn weights_are_exact() {
        run(weights, &[0, 1, 7, 50, 99, 100, 101, 255]);
    }

    #[test]
    fn frames_are_found_alike() {
        run(frames, &[0x81, 0x88, 0, 1, 2, 126, 127, 0xfe, 0xff]);
    }
}

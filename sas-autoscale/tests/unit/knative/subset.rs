//! Who serves whom: capacity per activator, instances per activator, activators per revision.

/// The capacity of one activator's breaker for a revision.
///
/// `trackers` are instances that the activator addresses one by one; without any, `backends` behind one address are
/// shared among `activators`.
pub fn capacity(container_concurrency: i64, backends: i64, trackers: i64, activators: i64) -> i32 {
    let mut capacity = if trackers > 0 {
        container_concurrency.saturating_mul(trackers)
    } else {
        let whole = container_concurrency.saturating_mul(backends);
        if whole > 0 { (whole / activators.max(1)).max(1) } else { whole }
    };
    if backends > 0 && (container_concurrency == 0 || capacity > i64::from(i32::MAX)) {
        capacity = i64::from(i32::MAX);
    }
    i32::try_from(capacity).unwrap_or(i32::MAX)
}

/// Which of `instances` (sorted by address) the activator with the rank `index` of `activators` uses, as indices.
/// A rank of -1, not known, uses all.
pub fn assign_slice(instances: usize, index: i64, activators: usize) -> Vec<usize> {
    let all = || (0..instances).collect();
    if instances <= 1 || activators <= 1 {
        return all();
    }
    let Ok(index) = usize::try_from(index) else { return all() };
    if activators > instances {
        return vec![index % instances];
    }
    let slice = instances / activators;
    let rest = instances % activators;
    let mut chosen: Vec<usize> = (index * slice..(index + 1) * slice).filter(|at| *at < instances).collect();
    if index < rest {
        chosen.push(instances - rest + index);
    }
    chosen
}

const UNIVERSE: u64 = 2048;

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The `n` of `activators` that serve the revision `name`, sorted: a walk around a circle of 2,048 angles, from an
/// angle and in steps that hang on the name alone.
pub fn activator_subset(activators: &[String], n: usize, name: &str) -> Vec<String> {
    let mut sorted: Vec<&String> = activators.iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    if n >= sorted.len() {
        return sorted.into_iter().cloned().collect();
    }
    let angle_of = |text: &[u8]| fnv1a(text) % UNIVERSE;
    let mut circle: Vec<(u64, &String)> = Vec::with_capacity(sorted.len());
    for address in sorted {
        let mut buffer = address.clone().into_bytes();
        buffer.extend_from_slice(name.as_bytes());
        loop {
            let hash = fnv1a(&buffer);
            let angle = hash % UNIVERSE;
            // More addresses than angles can't all have their own.
            if circle.len() >= UNIVERSE as usize || !circle.iter().any(|(taken, _)| *taken == angle) {
                circle.push((angle, address));
                break;
            }
            buffer.extend_from_slice(format!("{hash:x}").as_bytes());
        }
    }
    circle.sort_unstable();
    let mut angle = angle_of(format!("{name}start-angle-salt").as_bytes());
    let step = angle_of(format!("{name}step-angle-salt").as_bytes());
    let mut taken = vec![false; circle.len()];
    let mut chosen = Vec::with_capacity(n);
    while chosen.len() < n {
        let from = circle.partition_point(|(at, _)| *at < angle);
        let free = (0..circle.len()).map(|by| (from + by) % circle.len()).find(|at| !taken[*at]);
        let Some(at) = free else { break };
        taken[at] = true;
        chosen.push(circle[at].1.clone());
        angle = (angle + step) % UNIVERSE;
    }
    chosen.sort_unstable();
    chosen
}

/// How many of `instances` a scrape asks, so that the mean is within a few percent at 95 % confidence.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 16")]
pub fn sample_size(instances: u32) -> u32 {
    if instances <= 3 {
        return instances;
    }
    const SIGNIFICANT: f64 = 1.96 * 1.96 * 100.0 / 25.0;
    let population = f64::from(instances);
    (population * SIGNIFICANT / (population + SIGNIFICANT - 1.0)).ceil() as u32
}

/// How many activators a revision gets.
pub fn num_activators(
    ready: i32,
    total_value: f64,
    target_burst_capacity: f64,
    activator_capacity: f64,
) -> i32 {
    if target_burst_capacity == 0.0 {
        return 2;
    }
    let capacity = f64::from(ready) * total_value + target_burst_capacity.max(0.0);
    (capacity / activator_capacity).ceil().max(2.0) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_as_large_as_the_confidence_needs() {
        let sizes = [0, 1, 3, 4, 5, 10, 20, 50, 100, 1000].map(sample_size);
        assert_eq!(sizes, [0, 1, 3, 4, 4, 7, 9, 12, 14, 16]);
    }
}

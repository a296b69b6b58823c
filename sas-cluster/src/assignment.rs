//! Which host a shard belongs on: rendezvous hashing, so that all who see the same hosts agree without a word, and a host
//! that comes or goes moves only what it gets or had.

/// The shard of a path, one of `0..shards`.
///
/// ```
/// let shard = sas_cluster::shard_of("shop/orders", 256);
/// assert!(shard < 256);
/// assert_eq!(shard, sas_cluster::shard_of("shop/orders", 256));
/// ```
pub fn shard_of(path: &str, shards: u16) -> u16 {
    let shard = mixed(hash(path)) % u64::from(shards.max(1));
    u16::try_from(shard).unwrap_or_default()
}

/// The host that a shard belongs on, of those that are given, in any order; `None` without any.
///
/// ```
/// let hosts = ["a", "b", "c"];
/// let owner = sas_cluster::host_of(7, hosts).expect("there are hosts");
/// let others = hosts.into_iter().filter(|host| *host != "a");
/// assert!(owner == "a" || sas_cluster::host_of(7, others) == Some(owner), "only what a had moves without a");
/// ```
pub fn host_of<'a>(shard: u16, hosts: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // By name where two score the same.
    hosts.into_iter().max_by_key(|host| (score(shard, host), *host))
}

/// How much a shard belongs on a host.
pub(crate) fn score(shard: u16, host: &str) -> u64 {
    mixed(hash(host) ^ mixed(u64::from(shard) + 1))
}

/// FNV-1a: names are short, and nobody gains by choosing one that collides.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finaliser of SplitMix64: every bit of the input changes every bit of the output half of the time.
const fn mixed(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owners(hosts: &[String]) -> Vec<Option<&str>> {
        (0..256).map(|shard| host_of(shard, hosts.iter().map(String::as_str))).collect()
    }

    proptest! {
        #[test]
        fn whoever_sees_the_same_hosts_agrees_in_whatever_order(
            mut hosts in proptest::collection::btree_set("[a-z]{1,8}", 0..20)
                .prop_map(|hosts| hosts.into_iter().collect::<Vec<_>>()).prop_shuffle()
        ) {
            let one: Vec<_> = owners(&hosts).into_iter().map(|owner| owner.map(str::to_owned)).collect();
            hosts.sort_unstable();
            let other: Vec<_> = owners(&hosts).into_iter().map(|owner| owner.map(str::to_owned)).collect();
            prop_assert_eq!(one, other);
        }

        #[test]
        fn a_host_that_goes_moves_what_it_had_and_nothing_else(
            hosts in proptest::collection::btree_set("[a-z]{1,8}", 1..20), which in any::<prop::sample::Index>()
        ) {
            let hosts: Vec<String> = hosts.into_iter().collect();
            let gone = &hosts[which.index(hosts.len())];
            let left: Vec<String> = hosts.iter().filter(|host| *host != gone).cloned().collect();
            for (before, after) in owners(&hosts).into_iter().zip(owners(&left)) {
                prop_assert!(before == after || before == Some(gone.as_str()));
            }
        }

        #[test]
        fn every_path_has_a_shard(path in ".{0,64}", shards in 1_u16..5000) {
            prop_assert!(shard_of(&path, shards) < shards);
        }
    }

    #[test]
    fn shards_and_services_spread_about_evenly() {
        let hosts: Vec<String> = (0..8).map(|n| format!("host-{n}")).collect();
        let owners = owners(&hosts);
        for host in &hosts {
            let has = owners.iter().filter(|owner| **owner == Some(host)).count();
            assert!((16..=50).contains(&has), "{host} has {has} of 256, and 32 would be even");
        }
        let mut services = vec![0_u32; 256];
        for n in 0..100_000 {
            services[usize::from(shard_of(&format!("tenant-{}/service-{n}", n % 100), 256))] += 1;
        }
        let (least, most) = (services.iter().min().unwrap(), services.iter().max().unwrap());
        assert!(*least > 290 && *most < 500, "{least} to {most} of 100,000 services, and 390 would be even");
    }
}

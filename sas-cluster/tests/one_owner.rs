//! Of all hosts at most one acts for a shard, whatever pauses, clocks and networks do; and somebody soon does again.

mod hosts;

use std::{sync::Arc, time::Duration};

use hosts::{Hosts, SHARDS, TERM};
use sas_core::{Hosts as _, Place};
use sas_testkit::fault::LinkFault;
use tokio::time::{Instant, sleep};

#[tokio::test(start_paused = true)]
async fn the_first_host_owns_all_and_the_next_one_gets_its_part_of_it() {
    let mut hosts = Hosts::default();
    hosts.start("a").await;
    hosts.until_settled(Duration::from_secs(1)).await;
    assert_eq!(hosts.owned("a"), SHARDS);
    hosts.start("b").await;
    hosts.until_settled(Duration::from_secs(1)).await;
    assert!(hosts.owned("b") > SHARDS / 4, "b has {}", hosts.owned("b"));
    assert_eq!(hosts.owned("a") + hosts.owned("b"), SHARDS);
    hosts.start("c").await;
    hosts.until_settled(Duration::from_secs(1)).await;
    assert!(hosts.owned("c") > SHARDS / 6);
    hosts.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_host_had_is_taken_within_a_term_and_a_second() {
    let mut hosts = Hosts::default();
    for name in ["a", "b", "c"] {
        hosts.start(name).await;
    }
    hosts.until_settled(Duration::from_secs(2)).await;
    // At whatever moment between two renewals.
    for wait in [0, 700, 1_300, 2_400] {
        sleep(Duration::from_millis(wait)).await;
        hosts.kill("b");
        let killed = Instant::now();
        hosts.until_settled(TERM + Duration::from_secs(1)).await;
        assert!(
            killed.elapsed() > TERM / 2,
            "never while the killed host could still act: {:?}",
            killed.elapsed()
        );
        hosts.start("b").await;
        hosts.until_settled(TERM + Duration::from_secs(1)).await;
    }
    hosts.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_host_that_leaves_is_followed_at_once() {
    let mut hosts = Hosts::default();
    hosts.start("a").await;
    hosts.start("b").await;
    hosts.until_settled(Duration::from_secs(1)).await;
    hosts.stop("a").await;
    hosts.until_settled(Duration::from_millis(500)).await;
    assert_eq!(hosts.owned("b"), SHARDS);
    hosts.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_draining_host_hands_over_before_it_leaves_and_no_shard_is_without_owner_meanwhile() {
    let mut hosts = Hosts::default();
    hosts.start("a").await;
    hosts.start("b").await;
    hosts.until_settled(Duration::from_secs(1)).await;
    let before: Vec<_> = (0..SHARDS as u16).map(|shard| hosts.record(shard)).collect();
    tokio::time::timeout(Duration::from_secs(2), hosts.cluster("a").drained()).await.expect("b is there");
    assert_eq!(hosts.owned("a"), 0);
    hosts.until_settled(Duration::from_millis(500)).await;
    for (shard, before) in (0..).zip(before) {
        let after = hosts.record(shard);
        let moved = u64::from(before.0 != after.0);
        assert_eq!(after.1, before.1 + moved, "shard {shard}: one change of owner, and no time without");
    }
    hosts.stop("a").await;
    hosts.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn the_last_host_can_drain_too() {
    let mut hosts = Hosts::default();
    hosts.start("a").await;
    hosts.until_settled(Duration::from_secs(1)).await;
    tokio::time::timeout(Duration::from_secs(2), hosts.cluster("a").drained())
        .await
        .expect("nobody to wait for");
}

#[tokio::test(start_paused = true)]
async fn a_host_that_sleeps_is_followed_and_its_writes_are_refused_and_counted_when_it_wakes() {
    let mut hosts = Hosts::default();
    hosts.start("a").await;
    hosts.start("b").await;
    hosts.until_settled(Duration::from_secs(1)).await;
    let path = hosts.path_of("a");
    let Place::Here(guard) = hosts.cluster("a").place(&path) else { panic!("it is a's") };
    // Asleep: what it would write does not go out, and it notices nothing.
    hosts.freeze("a");
    sleep(TERM * 3).await;
    assert!(matches!(hosts.cluster("b").place(&path), Place::Here(_)));
    hosts.thaw("a");
    let late = hosts.write_guarded("a", guard).await;
    assert!(!late, "a former owner's write is refused");
    assert_eq!(hosts.cluster("a").refused_writes(), 1);
    hosts.until_settled(Duration::from_secs(2)).await;
    assert!(hosts.owned("a") > 0, "it is a host again, and has its part");
    hosts.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_host_cut_from_the_store_stops_by_its_own_clock_before_anybody_follows() {
    let mut hosts = Hosts::default();
    hosts.start("a").await;
    hosts.start("b").await;
    hosts.until_settled(Duration::from_secs(1)).await;
    let path = hosts.path_of("a");
    for fault in [LinkFault::Fails, LinkFault::Hangs] {
        hosts.break_store("a", fault);
        let cut = Instant::now();
        let mut stopped = None;
        while !matches!(hosts.cluster("b").place(&path), Place::Here(_)) {
            let acts = matches!(hosts.cluster("a").place(&path), Place::Here(_));
            match (acts, stopped) {
                (false, None) => stopped = Some(cut.elapsed()),
                (true, Some(_)) => panic!("it acted again"),
                _ => {}
            }
            assert!(cut.elapsed() <= TERM + Duration::from_secs(1), "nobody follows");
            sleep(Duration::from_millis(20)).await;
        }
        let stopped = stopped.expect("it stopped first");
        assert!(stopped <= TERM * 2 / 3, "{stopped:?}");
        hosts.break_store("a", LinkFault::None);
        hosts.until_settled(Duration::from_secs(2)).await;
        assert!(matches!(hosts.cluster("a").place(&path), Place::Here(_)), "its part comes back to it");
    }
    hosts.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_changes_hears_of_a_lapse_while_every_question_to_the_store_fails() {
    let mut hosts = Hosts::default();
    hosts.start("a").await;
    hosts.until_settled(Duration::from_secs(1)).await;
    let (path, cluster) = (hosts.path_of("a"), Arc::clone(hosts.cluster("a")));
    for fault in [LinkFault::Fails, LinkFault::Hangs] {
        hosts.break_store("a", fault);
        let heard = async {
            while matches!(cluster.place(&path), Place::Here(_)) {
                cluster.changed(cluster.round()).await;
            }
        };
        tokio::time::timeout(TERM * 2 / 3 + Duration::from_secs(1), heard).await.expect("it is told");
        hosts.break_store("a", LinkFault::None);
        hosts.until_settled(Duration::from_secs(2)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_away_for_all_nobody_acts_and_nobody_is_declared_gone() {
    let mut hosts = Hosts::default();
    for name in ["a", "b", "c"] {
        hosts.start(name).await;
    }
    hosts.until_settled(Duration::from_secs(2)).await;
    let before: Vec<_> = (0..SHARDS as u16).map(|shard| hosts.record(shard)).collect();
    for name in ["a", "b", "c"] {
        hosts.break_store(name, LinkFault::Fails);
    }
    sleep(TERM * 6).await;
    for name in ["a", "b", "c"] {
        let path = hosts.path_of(name);
        assert!(matches!(hosts.cluster(name).place(&path), Place::Undecided), "{name}");
        assert_eq!(hosts.cluster(name).list().len(), 3);
    }
    for name in ["a", "b", "c"] {
        hosts.break_store(name, LinkFault::None);
    }
    hosts.until_settled(Duration::from_secs(2)).await;
    let after: Vec<_> = (0..SHARDS as u16).map(|shard| hosts.record(shard)).collect();
    assert_eq!(before, after, "all go on with what they had, in the same epochs");
}

#[tokio::test(start_paused = true)]
async fn a_restart_under_the_same_name_waits_for_the_silence_of_the_life_before() {
    let mut hosts = Hosts::default();
    hosts.start("a").await;
    hosts.until_settled(Duration::from_secs(1)).await;
    hosts.kill("a");
    hosts.start("a").await;
    sleep(TERM / 2).await;
    assert!(!hosts.cluster("a").is_member(), "its former life may still act, as far as anybody knows");
    hosts.until_settled(TERM + Duration::from_secs(1)).await;
    assert_eq!(hosts.owned("a"), SHARDS);
    hosts.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_host_of_other_terms_is_refused_with_the_field() {
    let mut hosts = Hosts::default();
    hosts.start("a").await;
    let mut config = hosts.config("b");
    config.shards = 17;
    config.term = Duration::from_secs(11);
    let error = sas_cluster::Cluster::new(config).await.expect_err("it has other shards").to_string();
    assert!(error.contains("shards") && error.contains("term") && error.contains("cluster/terms"), "{error}");
    let mut config = hosts.config("b/c");
    config.address = ([0, 0, 0, 0], 80).into();
    let error = sas_cluster::Cluster::new(config).await.expect_err("nobody could connect to it").to_string();
    assert!(error.contains("name") && error.contains("address"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_host_writes_once_per_quarter_of_its_term_however_many_shards_it_owns() {
    let mut hosts = Hosts::default();
    for n in 0..10 {
        hosts.start(&format!("h{n}")).await;
    }
    hosts.until_settled(Duration::from_secs(3)).await;
    let before = hosts.writes();
    sleep(TERM * 10).await;
    let each = (hosts.writes() - before) as f64 / 10.0 / TERM.as_secs_f64() / 10.0;
    assert!(each <= 4.1 / TERM.as_secs_f64(), "{each} writes per host and second");
    hosts.assert_sound();
}

/// Pauses, cuts and lost answers at random: never two owners, and in the end all is as it should be.
#[tokio::test(start_paused = true)]
async fn whatever_happens_no_shard_has_two_owners_and_all_come_back() {
    for seed in 0..4 {
        hosts::storm(seed, Duration::from_secs(45)).await;
    }
}

//! The tools for load and faults.

use std::time::Duration;

use sas_core::{ErrorKind, Store as _};
use sas_testkit::{
    fake::FakeStore,
    fault::{SlowDisk, Victim, closed_port},
    load::{Arrivals, Ledger, run},
};

#[test]
fn arrivals_are_the_same_for_the_same_seed_and_come_at_the_rate() {
    let of = |seed| Arrivals::poisson(200.0, Duration::from_secs(100), seed);
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
    assert!((19_000..21_000).contains(&of(1).len()), "{}", of(1).len());
    assert!(of(1).times().is_sorted());
}

#[tokio::test(start_paused = true)]
async fn latency_counts_from_the_intended_time() {
    // One at a time: the second of two that are meant for the same moment waits for the first, and that counts.
    let turn = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
    let report = run(&Arrivals::burst(10), 100, |_| {
        let turn = turn.clone();
        async move {
            let _turn = turn.acquire().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            "200".to_owned()
        }
    })
    .await;
    report.ledger.assert_paired();
    assert!((950_000..1_100_000).contains(&report.latency.max()), "{report}");
    assert_eq!(report.ledger.answers().get("200"), Some(&10));
}

#[tokio::test(start_paused = true)]
async fn a_generator_without_room_says_so() {
    let stuck = async |_| {
        tokio::time::sleep(Duration::from_secs(60)).await;
        "200".to_owned()
    };
    let report = run(&Arrivals::burst(5), 2, stuck).await;
    report.ledger.assert_paired();
    assert_eq!(report.ledger.answers().get("no_room"), Some(&3));
}

#[test]
fn a_ledger_finds_what_is_lost_and_what_is_doubled() {
    let ledger = Ledger::default();
    for request in 0..3 {
        ledger.sent(request);
    }
    ledger.answered(0, "200");
    ledger.answered(1, "200");
    ledger.answered(1, "200");
    let odd: Vec<u64> = ledger.unpaired().into_iter().map(|(request, _)| request).collect();
    assert_eq!(odd, [1, 2]);
}

#[tokio::test]
async fn a_process_is_paused_and_killed() {
    let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep runs");
    let victim = Victim::new(child.id()).expect("a pid");
    let paused = tokio::spawn(victim.pause(Duration::from_millis(300)));
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    let mut stopped = false;
    for _ in 0..200 {
        stopped |= state().contains(") T ");
        if stopped || !cfg!(target_os = "linux") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(stopped || !cfg!(target_os = "linux"), "{}", state());
    paused.await.unwrap().expect("paused");
    victim.kill().expect("killed");
    assert!(!child.wait().expect("reaped").success());
}

#[tokio::test]
async fn nobody_listens_at_a_closed_port() {
    let address = closed_port().await.expect("a port");
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_slow_disk_is_slow_and_a_full_one_keeps_nothing() {
    let disk = SlowDisk::new(std::sync::Arc::new(FakeStore::default()));
    disk.delay(Duration::from_secs(3));
    let before = tokio::time::Instant::now();
    let version = disk.put("a", None, "1".into()).await.expect("a write");
    assert_eq!(before.elapsed(), Duration::from_secs(3));
    disk.delay(Duration::ZERO);
    disk.refuse_writes(2);
    assert_eq!(disk.put("b", None, "2".into()).await.unwrap_err().kind, ErrorKind::Exhausted);
    assert_eq!(disk.delete("a", version).await.unwrap_err().kind, ErrorKind::Exhausted);
    assert!(disk.get("b").await.expect("a read").is_none());
    disk.put("b", None, "2".into()).await.expect("there is room again");
    disk.delete("a", version).await.expect("there is room again");
}

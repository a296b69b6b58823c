//! One owner at a time, whatever clocks and pauses do.

use std::{sync::Arc, time::Duration};

use sas_core::{Candidacy, Commit, ErrorKind, MemoryStore, Owned, Store};
use tokio::time::advance;

const TERM: Duration = Duration::from_secs(15);

fn candidacy(store: &Arc<MemoryStore>, holder: &str) -> Candidacy {
    Candidacy::new(Arc::clone(store) as _, "shards/7", holder, TERM)
}

async fn taken(candidacy: &mut Candidacy) -> Owned {
    candidacy.try_take().await.expect("the store answers").expect("it is free")
}

async fn refused(candidacy: &mut Candidacy) -> bool {
    candidacy.try_take().await.expect("the store answers").is_none()
}

async fn write(store: &Arc<MemoryStore>, owned: &Owned, value: &'static str) -> Result<(), ErrorKind> {
    let commit = Commit::new().guarded_by(owned.guard()).put("services/a", value);
    store.commit(commit).await.map(drop).map_err(|error| error.kind)
}

#[tokio::test(start_paused = true)]
async fn a_silent_owner_is_followed_after_a_term_that_the_taker_saw() {
    let store = Arc::new(MemoryStore::default());
    let (mut a, mut b) = (candidacy(&store, "a"), candidacy(&store, "b"));
    let owned = taken(&mut a).await;
    // However long the owner has been silent: the taker counts from when it first looked.
    advance(TERM * 10).await;
    assert!(refused(&mut b).await);
    advance(TERM - Duration::from_millis(1)).await;
    assert!(refused(&mut b).await);
    advance(Duration::from_millis(1)).await;
    let next = taken(&mut b).await;
    assert_eq!((owned.epoch(), next.epoch()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_renewed_ownership_is_not_taken() {
    let store = Arc::new(MemoryStore::default());
    let (mut a, mut b) = (candidacy(&store, "a"), candidacy(&store, "b"));
    let mut owned = taken(&mut a).await;
    for _ in 0..20 {
        assert!(refused(&mut b).await);
        advance(TERM / 2).await;
        assert!(owned.renew().await.expect("the store answers"));
    }
    assert!(owned.is_held());
    assert_eq!(owned.epoch(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_owner_stops_before_anybody_can_follow() {
    let store = Arc::new(MemoryStore::default());
    let (mut a, mut b) = (candidacy(&store, "a"), candidacy(&store, "b"));
    let owned = taken(&mut a).await;
    assert!(refused(&mut b).await);
    advance(TERM * 2 / 3 - Duration::from_millis(1)).await;
    assert!(owned.is_held());
    advance(Duration::from_millis(1)).await;
    assert!(!owned.is_held(), "at two thirds of the term");
    assert!(refused(&mut b).await);
}

#[tokio::test(start_paused = true)]
async fn what_a_paused_owner_writes_is_refused() {
    let store = Arc::new(MemoryStore::default());
    let (mut a, mut b) = (candidacy(&store, "a"), candidacy(&store, "b"));
    let mut old = taken(&mut a).await;
    assert_eq!(write(&store, &old, "from a").await, Ok(()));
    assert!(old.renew().await.expect("the store answers"));
    assert_eq!(write(&store, &old, "a again").await, Ok(()), "a renewal changes no guard");
    assert!(refused(&mut b).await);
    advance(TERM).await;
    let new = taken(&mut b).await;
    assert_eq!(write(&store, &old, "late").await, Err(ErrorKind::Conflict));
    assert!(!old.renew().await.expect("the store answers"));
    assert!(!old.is_held());
    assert_eq!(write(&store, &new, "from b").await, Ok(()));
    assert_eq!(store.get("services/a").await.unwrap().unwrap().value, "from b");
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_is_taken_at_once_with_a_higher_epoch() {
    let store = Arc::new(MemoryStore::default());
    let (mut a, mut b) = (candidacy(&store, "a"), candidacy(&store, "b"));
    taken(&mut a).await.give_up().await.expect("the store answers");
    let next = taken(&mut b).await;
    assert_eq!(next.epoch(), 2);
    assert!(refused(&mut a).await);
}

#[tokio::test(start_paused = true)]
async fn of_many_candidates_one_wins() {
    let store = Arc::new(MemoryStore::default());
    let mut candidates: Vec<Candidacy> = (0..16).map(|n| candidacy(&store, &format!("h{n}"))).collect();
    let won = futures_util::future::join_all(candidates.iter_mut().map(Candidacy::try_take)).await;
    assert_eq!(won.iter().filter(|taken| matches!(taken, Ok(Some(_)))).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_lost_is_found_out() {
    let store = Arc::new(MemoryStore::default());
    drop(taken(&mut candidacy(&store, "a")).await);
    let again = taken(&mut candidacy(&store, "a")).await;
    assert_eq!(again.epoch(), 1, "it was its own already");
}

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_core::{Event, Result, TriggerCx, TriggerSource, Version};
use sas_testkit::trigger::{self, Subject};

use crate::caught;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// No bug: the base of the others.
    Sound,
    IgnoresShutdown,
    IgnoresShutdownWhileItWaitsForRoom,
    DropsRefusedEvents,
    UsesOneIdForAll,
    CatchesUpWithoutBounds,
    FallsSilentWhenTheClockJumpsBack,
    LeaksSlots,
    GoesOnInTheBackground,
    PanicsOnABrokenStore,
    EndsAfterOneRefusal,
    /// No bug: the trait lets it, and the platform starts it again.
    FailsAtEachRefusal,
    CanRunOnlyOnce,
    HangsInBacklog,
}

const PERIOD: Duration = Duration::from_secs(1);

/// An event each second of the wall clock, numbered, its number kept in the store.
#[derive(Debug)]
struct Seconds {
    bug: Bug,
    runs: AtomicU64,
    leaked: Arc<Mutex<Vec<sas_core::Slot>>>,
}

impl Seconds {
    async fn pump(&self, cx: &TriggerCx) -> Result<()> {
        let key = format!("trigger/{}/number", cx.name);
        let entry = cx.store.get(&key).await?;
        let mut version: Option<Version> = entry.as_ref().map(|entry| entry.version);
        let mut number: u64 = entry
            .and_then(|entry| String::from_utf8(entry.value.to_vec()).ok())
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        let mut due = cx.clock.now();
        loop {
            let now = cx.clock.now();
            if now < due {
                // A clock that jumped back by more than one period is taken as it is.
                let far = due.since(now) > 2 * PERIOD;
                if far && self.bug == Bug::FallsSilentWhenTheClockJumpsBack {
                    std::future::pending::<()>().await;
                }
                if far {
                    due = now;
                    continue;
                }
                tokio::time::sleep(due.since(now).min(PERIOD)).await;
                continue;
            }
            number += 1;
            let id = if self.bug == Bug::UsesOneIdForAll { "1".to_owned() } else { number.to_string() };
            let event = Event::new(id, "/conformance", "test.second").map_err(|error| {
                sas_core::Error::new(sas_core::ErrorKind::Unexpected, "event", error.to_string())
            })?;
            loop {
                let slot = cx.sink.ready().await?;
                if self.bug == Bug::LeaksSlots && number.is_multiple_of(2) {
                    self.leaked.lock().push(slot);
                    break;
                }
                match cx.sink.deliver(slot, event.clone()).await {
                    Ok(_) => break,
                    Err(_) if self.bug == Bug::DropsRefusedEvents => break,
                    Err(_) if self.bug == Bug::EndsAfterOneRefusal => return Ok(()),
                    Err(error) if self.bug == Bug::FailsAtEachRefusal => return Err(error),
                    Err(_) => tokio::time::sleep(PERIOD / 4).await,
                }
            }
            match cx.store.put(&key, version, number.to_string().into()).await {
                Ok(next) => version = Some(next),
                Err(error) if self.bug == Bug::PanicsOnABrokenStore => panic!("the store failed: {error}"),
                Err(error) => return Err(error),
            }
            due = due + PERIOD;
            if self.bug != Bug::CatchesUpWithoutBounds && cx.clock.now().since(due) > 4 * PERIOD {
                due = cx.clock.now();
            }
        }
    }
}

#[async_trait]
impl TriggerSource for Seconds {
    fn kind(&self) -> &'static str {
        "seconds"
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        if self.runs.fetch_add(1, SeqCst) > 0 && self.bug == Bug::CanRunOnlyOnce {
            std::future::pending::<()>().await;
        }
        match self.bug {
            Bug::IgnoresShutdown => self.pump(&cx).await,
            Bug::IgnoresShutdownWhileItWaitsForRoom => {
                let shutdown = cx.shutdown.clone();
                drop(cx.sink.ready().await?);
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => Ok(()),
                    ended = self.pump(&cx) => ended,
                }
            }
            Bug::GoesOnInTheBackground => {
                let (bug, runs) = (Bug::Sound, AtomicU64::new(0));
                let other = Seconds { bug, runs, leaked: Arc::clone(&self.leaked) };
                let shutdown = cx.shutdown.clone();
                tokio::spawn(async move { other.pump(&cx).await });
                shutdown.cancelled().await;
                Ok(())
            }
            _ => {
                let shutdown = cx.shutdown.clone();
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => Ok(()),
                    ended = self.pump(&cx) => ended,
                }
            }
        }
    }

    async fn backlog(&self) -> Result<Option<u64>> {
        if self.bug == Bug::HangsInBacklog {
            std::future::pending::<()>().await;
        }
        Ok(None)
    }
}

const MUTANTS: [(Bug, &str); 12] = [
    (Bug::IgnoresShutdown, "ends soon after shutdown"),
    (Bug::IgnoresShutdownWhileItWaitsForRoom, "while it waits for room"),
    (Bug::DropsRefusedEvents, "offered again"),
    (Bug::UsesOneIdForAll, "an id of its own"),
    (Bug::CatchesUpWithoutBounds, "no flood"),
    (Bug::FallsSilentWhenTheClockJumpsBack, "does not silence"),
    (Bug::LeaksSlots, "gives every slot back"),
    (Bug::GoesOnInTheBackground, "delivers nothing after its end"),
    (Bug::PanicsOnABrokenStore, "a store that fails"),
    (Bug::EndsAfterOneRefusal, "offered again"),
    (Bug::CanRunOnlyOnce, "does not keep the next"),
    (Bug::HangsInBacklog, "backlog answers"),
];

fn subject(bug: Bug) -> Subject {
    Subject::new(Arc::new(Seconds { bug, runs: AtomicU64::new(0), leaked: Arc::default() }), PERIOD)
}

#[tokio::test(start_paused = true)]
async fn every_broken_trigger_source_is_refused() {
    trigger::suite(async || ((), subject(Bug::Sound))).await.assert_passed_skipping(&[]);
    for (bug, by) in MUTANTS {
        let report = trigger::suite(async || ((), subject(bug))).await;
        caught(bug, &report, by);
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_may_end_its_run_with_an_error() {
    trigger::suite(async || ((), subject(Bug::FailsAtEachRefusal))).await.assert_passed_skipping(&[]);
}

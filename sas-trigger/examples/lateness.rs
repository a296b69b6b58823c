//! How late fires are: thousands of schedules of second precision, on the system's clock.
//!
//! `cargo run --release -p sas-trigger --example lateness -- [SCHEDULES] [SECONDS]`; 10,000 and 30 without them.
//!
//! Each schedule is a trigger of its own and fires on its own seconds, so that in each second about a thousand of
//! 10,000 are due at the same instant. Measured is from the second that the expression names to the delivery.

#![allow(clippy::print_stdout, reason = "the table is what the program is for")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{Ack, Clock, Event, EventSink, Result, Slot, SystemClock, TriggerCx, TriggerSource};
use sas_testkit::fake::FakeStore;
use sas_trigger::{CronSchedule, CronTrigger, EventTemplate, SchedulePolicy};
use tokio_util::sync::CancellationToken;

/// Writes down how late each event is, in nanoseconds; negative would be early.
#[derive(Debug, Default)]
struct Stopwatch {
    late: Mutex<Vec<i64>>,
}

#[async_trait]
impl EventSink for Stopwatch {
    async fn ready(&self) -> Result<Slot> {
        Ok(Slot(Box::new(())))
    }

    async fn deliver(&self, _: Slot, event: Event) -> Result<Ack> {
        let due = event.time().map_or(0, |time| time.0);
        let late = SystemClock.now().0 - due;
        self.late.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(late);
        Ok(Ack::Completed)
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let schedules = numbers.next().transpose()?.unwrap_or(10_000);
    let seconds = numbers.next().transpose()?.unwrap_or(30);
    let (sink, store) = (Arc::new(Stopwatch::default()), Arc::<FakeStore>::default());
    let stop = CancellationToken::new();
    let mut running = tokio::task::JoinSet::new();
    for number in 0..schedules {
        // Six seconds of the minute, ten apart.
        let expression = format!("{}/10 * * * * *", number % 10);
        let schedule = CronSchedule::new(&expression, "Europe/Berlin")?;
        let trigger =
            CronTrigger::new(schedule, SchedulePolicy::default(), EventTemplate::new("/clock", "tick"));
        let cx = TriggerCx::new(
            format!("default/schedule-{number}"),
            Arc::clone(&sink) as _,
            Arc::clone(&store) as _,
            Arc::new(SystemClock),
            stop.clone(),
        );
        running.spawn(async move { trigger.run(cx).await });
    }
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    stop.cancel();
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    let mut late = std::mem::take(&mut *sink.late.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    late.sort_unstable();
    let at =
        |share: f64| late.get((late.len() as f64 * share) as usize).or(late.last()).copied().unwrap_or(0);
    let shown = |nanos: i64| format!("{:.2} ms", nanos as f64 / 1e6);
    println!("| schedules | fires | early | p50 | p99 | max |");
    println!("|---|---|---|---|---|---|");
    println!(
        "| {schedules} | {} | {} | {} | {} | {} |",
        late.len(),
        late.partition_point(|nanos| *nanos < 0),
        shown(at(0.5)),
        shown(at(0.99)),
        shown(late.last().copied().unwrap_or(0))
    );
    Ok(())
}

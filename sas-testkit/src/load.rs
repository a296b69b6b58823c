//! Open-loop load: requests are sent when they were meant to be, however slow the answers are.

use std::{collections::BTreeMap, fmt, future::Future, time::Duration};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use tokio::{task::JoinSet, time::Instant};

/// Times at which requests are meant to be sent, from the beginning, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrivals(Vec<Duration>);

impl Arrivals {
    /// A Poisson stream of `rate` a second for `length`, the same for the same seed.
    ///
    /// # Panics
    /// When `rate` is not a positive number.
    pub fn poisson(rate: f64, length: Duration, seed: u64) -> Self {
        assert!(rate > 0.0 && rate.is_finite(), "rate: {rate}: must be a positive number");
        let mut random = SmallRng::seed_from_u64(seed);
        let (mut at, mut all) = (0.0, Vec::new());
        loop {
            at += -(1.0 - random.random::<f64>()).ln() / rate;
            if at >= length.as_secs_f64() {
                return Self(all);
            }
            all.push(Duration::from_secs_f64(at));
        }
    }

    /// All requests at once, at the beginning.
    pub fn burst(requests: usize) -> Self {
        Self(vec![Duration::ZERO; requests])
    }

    /// How many requests there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The times of the requests, from the beginning, in order.
    pub fn times(&self) -> &[Duration] {
        &self.0
    }
}

/// Pairs every request with its one answer.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<BTreeMap<u64, Entry>>);

#[derive(Clone, Debug, Default)]
struct Entry {
    sent: u32,
    answers: Vec<String>,
}

impl Ledger {
    /// A request was sent.
    pub fn sent(&self, request: u64) {
        self.0.lock().entry(request).or_default().sent += 1;
    }

    /// A request was answered: `200`, or the reason of a failure.
    pub fn answered(&self, request: u64, answer: impl Into<String>) {
        self.0.lock().entry(request).or_default().answers.push(answer.into());
    }

    /// Requests that do not have exactly one answer, with all that they have.
    pub fn unpaired(&self) -> Vec<(u64, Vec<String>)> {
        let entries = self.0.lock();
        let odd = entries.iter().filter(|(_, entry)| entry.sent != 1 || entry.answers.len() != 1);
        odd.map(|(request, entry)| (*request, entry.answers.clone())).collect()
    }

    /// How often each answer was given.
    pub fn answers(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for answer in self.0.lock().values().flat_map(|entry| &entry.answers) {
            *counts.entry(answer.clone()).or_default() += 1;
        }
        counts
    }

    /// For tests.
    ///
    /// # Panics
    /// When a request does not have exactly one answer.
    #[track_caller]
    pub fn assert_paired(&self) {
        let odd = self.unpaired();
        assert!(
            odd.is_empty(),
            "{} requests without exactly one answer: {:?}",
            odd.len(),
            &odd[..odd.len().min(10)]
        );
    }
}

/// How a load went. Latencies are counted from the *intended* time, so that a generator that falls behind, or a
/// server that stalls, can't hide what its clients would have waited.
#[derive(Debug)]
pub struct LoadReport {
    /// What each request was answered.
    pub ledger: Ledger,
    /// Microseconds from the intended time to the answer.
    pub latency: Histogram<u64>,
    /// Microseconds by which requests were sent later than intended.
    pub lateness: Histogram<u64>,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |micros: u64| micros as f64 / 1000.0;
        write!(
            f,
            "{} requests: p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, max {:.2} ms (sent late by p99 {:.2} ms); {:?}",
            self.latency.len(),
            ms(self.latency.value_at_quantile(0.5)),
            ms(self.latency.value_at_quantile(0.99)),
            ms(self.latency.value_at_quantile(0.999)),
            ms(self.latency.max()),
            ms(self.lateness.value_at_quantile(0.99)),
            self.ledger.answers()
        )
    }
}

/// Sends each request at its time by `send`, which gets its number and answers with what it got.
///
/// At most `most` are under way; a request for which there is no room is answered `no_room` and not sent, so that
/// the generator itself stays bounded.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// use sas_testkit::load::{Arrivals, run};
/// use std::time::Duration;
///
/// let arrivals = Arrivals::poisson(100.0, Duration::from_secs(2), 7);
/// let report = run(&arrivals, 1000, async |_request| "200".to_owned()).await;
/// report.ledger.assert_paired();
/// println!("{report}");
/// # }
/// ```
pub async fn run<F, Fut>(arrivals: &Arrivals, most: usize, send: F) -> LoadReport
where
    F: Fn(u64) -> Fut,
    Fut: Future<Output = String> + Send + 'static,
{
    // Up to a day, by microseconds; what is longer counts as a day.
    let histogram =
        || Histogram::new_with_bounds(1, 86_400_000_000, 3).expect("three digits are within the bounds");
    let mut report = LoadReport { ledger: Ledger::default(), latency: histogram(), lateness: histogram() };
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let began = Instant::now();
    let mut running = JoinSet::new();
    let finish = |report: &mut LoadReport,
                  joined: Result<(u64, String, Duration), tokio::task::JoinError>| {
        match joined {
            Ok((request, answer, took)) => {
                report.ledger.answered(request, answer);
                report.latency.saturating_record(micros(took));
            }
            Err(error) => report.ledger.answered(u64::MAX, format!("panicked: {error}")),
        }
    };
    for (request, intended) in (0_u64..).zip(arrivals.times()) {
        let at = began + *intended;
        tokio::time::sleep_until(at).await;
        while let Some(joined) = running.try_join_next() {
            finish(&mut report, joined);
        }
        report.lateness.saturating_record(micros(at.elapsed()));
        report.ledger.sent(request);
        if running.len() >= most {
            report.ledger.answered(request, "no_room");
            continue;
        }
        let answer = send(request);
        running.spawn(async move { (request, answer.await, at.elapsed()) });
    }
    while let Some(joined) = running.join_next().await {
        finish(&mut report, joined);
    }
    report
}

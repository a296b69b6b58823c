//! The last requests: what each revision was asked for by the second, how long it took, and the ways of single requests.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use http::Method;
use parking_lot::Mutex;
use sas_core::{
    Clock, DeliverySpan, FaasTrigger, ParentSpan, Pool, Purpose, RequestId, RequestSpan, RevisionKey,
    RevisionName, RevisionStatus, StepSpan, Timestamp, TraceSink, UpstreamSpan,
};

/// Shards of the ring of requests, so that workers that end requests at once seldom wait for each other.
const SHARDS: usize = 8;
/// Bytes of a path, host or message that are kept.
const TEXT: usize = 256;
/// Bytes of a method that are kept.
const METHOD: usize = 32;
/// Seconds of which the durations are counted together.
const SPAN: i64 = 10;
/// Bounds of durations grow by this factor, from [`SHORTEST`] on: a quantile is at most a fifth too high.
const FACTOR: f64 = 1.2;
/// The first bound of durations, in seconds.
const SHORTEST: f64 = 0.000_2;
/// Bounds of durations: up to about 100 seconds.
const BOUNDS: usize = 73;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestLimits {
    /// Requests of all revisions together, of the last ones.
    pub recent: usize,
    /// Requests of each revision that failed or waited for a start, which the rest does not push out.
    pub notable: usize,
    /// For how long those are kept.
    pub notable_age: Duration,
    /// For how long each second of a revision is kept: a second to a day, whatever is given.
    pub seconds: Duration,
    /// Revisions. When there are more, those of the namespace that has most of them go, the quietest first, at the next
    /// [`RequestLog::sample`]; until then the new one's requests are found by their ids, and count in no rate:
    /// [`RequestLog::uncounted`].
    pub revisions: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            recent: 4096,
            notable: 64,
            notable_age: Duration::from_secs(3600),
            seconds: Duration::from_secs(600),
            revisions: 4096,
        }
    }
}

/// A [`TraceSink`] that keeps the last requests in memory, so that an operator can ask what happens now and why: rates,
/// errors and durations of each revision by the second, and the way of each of the last requests.
///
/// Bounded by [`RequestLimits`], and in what it holds of one request. A revision that nobody asked for an hour costs
/// nothing. It passes everything on to the sink that it stands before.
///
/// ```
/// use std::sync::Arc;
///
/// use http::{Method, StatusCode};
/// use sas_control::{RequestLimits, RequestLog};
/// use sas_core::{RequestId, RequestSpan, RevisionName, SystemClock, TraceContext, TraceSink};
///
/// let log = RequestLog::new(RequestLimits::default(), Arc::new(SystemClock));
/// let context = TraceContext { trace: 1, span: 2, flags: 0 };
/// let name = RevisionName::new("default", "hello", "hello-00001");
/// let mut span = RequestSpan::new(context, RequestId(7), &Method::GET, "/greeting");
/// span.name = Some(&name);
/// span.status = Some(StatusCode::OK);
/// log.request(&span);
/// assert_eq!(log.find(RequestId(7)).unwrap().path, "/greeting");
/// ```
#[derive(Debug)]
pub struct RequestLog {
    limits: RequestLimits,
    clock: Arc<dyn Clock>,
    next: Option<Arc<dyn TraceSink>>,
    revisions: DashMap<RevisionName, Revision>,
    /// How many there are: the map itself would have to lock all of its shards to tell it.
    kept: AtomicUsize,
    uncounted: AtomicU64,
    /// What the last look saw of it.
    uncounted_before: AtomicU64,
    recent: [Mutex<VecDeque<Arc<RequestRecord>>>; SHARDS],
}

/// A request that is over.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RequestRecord {
    /// The id of `x-request-id`.
    pub id: RequestId,
    /// The id of its trace.
    pub trace: u128,
    /// When it was over.
    pub at: Timestamp,
    /// From its arrival to its last byte.
    pub duration: Duration,
    /// The revision that was to answer.
    pub revision: RevisionName,
    /// Why it was made.
    pub purpose: Purpose,
    /// What caused it.
    pub trigger: FaasTrigger,
    /// Its method.
    pub method: Method,
    /// The host that was asked for, as far as it is kept.
    pub host: Option<String>,
    /// Its path without the query, as far as it is kept.
    pub path: String,
    /// What was answered.
    pub status: Option<u16>,
    /// Why it failed, as one word.
    pub error: Option<&'static str>,
    /// The same for a person.
    pub message: Option<String>,
    /// Whether it ended before its last byte.
    pub aborted: bool,
    /// When a slot was asked for in vain, from its arrival.
    pub waited_from: Option<Duration>,
    /// What was tried, in its order.
    pub exchanges: Vec<UpstreamSpan>,
    /// Bytes of its body.
    pub bytes_in: u64,
    /// Bytes of the answer's body.
    pub bytes_out: u64,
}

impl RequestRecord {
    /// Whether it waited for an instance to start.
    pub fn is_cold(&self) -> bool {
        self.exchanges.iter().any(|exchange| exchange.start.is_some())
    }

    /// Whether the platform could not answer it, or the service said that it could not.
    pub fn failed(&self) -> bool {
        self.error.is_some() || self.status.is_some_and(|status| status >= 500)
    }
}

/// A second of a revision in which something was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestSecond {
    /// The second, since 1970.
    pub at: i64,
    /// Requests that were over in it.
    pub requests: u32,
    /// Those of them that failed.
    pub errors: u32,
    /// Those of them that waited for a start.
    pub cold_starts: u32,
    /// How many instances the last decision asked for.
    pub desired: u32,
    /// Instances that took requests.
    pub ready: u32,
    /// Instances on their way up.
    pub starting: u32,
    /// Instances on their way out.
    pub draining: u32,
    /// Requests that waited for an instance.
    pub queued: u32,
    /// Requests that were on instances.
    pub in_flight: u32,
}

/// What was asked of a service, or of a revision, within the last seconds.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RequestRates {
    /// Requests per second over the last ten seconds.
    pub requests_per_second: f64,
    /// Requests per second that failed, over the last ten seconds.
    pub errors_per_second: f64,
    /// Requests of the last minute that waited for a start.
    pub cold_starts: u64,
    /// Requests of the last minute.
    pub requests: u64,
    /// The median of the durations of the last minute; `None`: there was no request.
    pub p50: Option<Duration>,
    /// The duration that 99 of 100 requests of the last minute kept within.
    pub p99: Option<Duration>,
}

#[derive(Debug, Default)]
struct Revision {
    key: Option<RevisionKey>,
    seconds: VecDeque<RequestSecond>,
    durations: VecDeque<Durations>,
    notable: VecDeque<Arc<RequestRecord>>,
    last: i64,
}

/// How many requests took how long.
#[derive(Debug)]
struct Durations {
    /// In tens of seconds.
    span: i64,
    counts: Box<[u32; BOUNDS]>,
}

fn bound_of(duration: Duration) -> usize {
    let over = (duration.as_secs_f64() / SHORTEST).max(1.0);
    ((over.ln() / FACTOR.ln()).ceil() as usize).min(BOUNDS - 1)
}

fn quantile(counts: &[u64; BOUNDS], share: f64) -> Option<Duration> {
    let all: u64 = counts.iter().sum();
    let rank = ((all as f64 * share).ceil() as u64).max(1);
    let mut seen = 0;
    let at = counts.iter().position(|count| {
        seen += count;
        seen >= rank
    })?;
    Some(Duration::from_secs_f64(SHORTEST * FACTOR.powi(at as i32)))
}

fn shortened(text: &str) -> String {
    let end = (0..=TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].to_owned()
}

/// A method as it is kept: one that somebody made up may be as long as a head.
fn method(method: &Method) -> Method {
    if method.as_str().len() <= METHOD {
        method.clone()
    } else {
        Method::from_bytes(b"_OTHER").unwrap_or_default()
    }
}

impl Revision {
    fn second(&mut self, at: i64, keep: i64) -> &mut RequestSecond {
        // A clock that was set back: what is there already takes it.
        if self.seconds.back().is_none_or(|last| last.at < at) {
            let before = self.seconds.back().copied().unwrap_or_default();
            self.seconds.push_back(RequestSecond { at, requests: 0, errors: 0, cold_starts: 0, ..before });
        }
        while self.seconds.front().is_some_and(|first| first.at <= at - keep) {
            self.seconds.pop_front();
        }
        self.seconds.back_mut().expect("one was put there")
    }

    fn took(&mut self, at: i64, duration: Duration) {
        let span = at / SPAN;
        if self.durations.back().is_none_or(|last| last.span < span) {
            self.durations.push_back(Durations { span, counts: Box::new([0; BOUNDS]) });
        }
        while self.durations.front().is_some_and(|first| first.span < span - 60 / SPAN) {
            self.durations.pop_front();
        }
        if let Some(last) = self.durations.back_mut() {
            last.counts[bound_of(duration)] += 1;
        }
    }
}

/// Sums of the rates of several revisions.
#[derive(Debug)]
struct Sum {
    requests: u64,
    errors: u64,
    rates: RequestRates,
    counts: [u64; BOUNDS],
}

impl Sum {
    fn new() -> Self {
        Self { requests: 0, errors: 0, rates: RequestRates::default(), counts: [0; BOUNDS] }
    }

    fn add(&mut self, revision: &Revision, now: i64) {
        for second in revision.seconds.iter().rev().take_while(|second| second.at > now - 60) {
            self.rates.requests += u64::from(second.requests);
            self.rates.cold_starts += u64::from(second.cold_starts);
            // The second that is not over yet would make a rate too low.
            if (now - 10..now).contains(&second.at) {
                self.requests += u64::from(second.requests);
                self.errors += u64::from(second.errors);
            }
        }
        for durations in revision.durations.iter().filter(|it| it.span >= (now - 60) / SPAN) {
            for (sum, count) in self.counts.iter_mut().zip(durations.counts.iter()) {
                *sum += u64::from(*count);
            }
        }
    }

    fn rates(mut self) -> RequestRates {
        self.rates.requests_per_second = self.requests as f64 / 10.0;
        self.rates.errors_per_second = self.errors as f64 / 10.0;
        self.rates.p50 = quantile(&self.counts, 0.5);
        self.rates.p99 = quantile(&self.counts, 0.99);
        self.rates
    }
}

impl RequestLog {
    /// A log with these limits, whose requests are stamped by this clock.
    pub fn new(mut limits: RequestLimits, clock: Arc<dyn Clock>) -> Self {
        limits.seconds = limits.seconds.clamp(Duration::from_secs(1), Duration::from_secs(86_400));
        Self {
            limits,
            clock,
            next: None,
            revisions: DashMap::new(),
            kept: AtomicUsize::new(0),
            uncounted: AtomicU64::new(0),
            uncounted_before: AtomicU64::new(0),
            recent: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Requests that are in no rate, because there were more revisions than are kept.
    pub fn uncounted(&self) -> u64 {
        self.uncounted.load(Ordering::Relaxed)
    }

    /// Stands before this sink: it is told all of it, and decides what is sampled.
    #[must_use]
    pub fn before(mut self, next: Arc<dyn TraceSink>) -> Self {
        self.next = Some(next);
        self
    }

    /// How much it keeps.
    pub fn limits(&self) -> RequestLimits {
        self.limits
    }

    /// The way of a request, if it is still kept.
    pub fn find(&self, id: RequestId) -> Option<Arc<RequestRecord>> {
        let found = self.shard(id).lock().iter().rev().find(|record| record.id == id).cloned();
        found.or_else(|| {
            let mut notable = self.revisions.iter();
            notable.find_map(|revision| revision.notable.iter().find(|record| record.id == id).cloned())
        })
    }

    /// The last `most` requests of a service that failed or waited for a start, youngest first.
    pub fn notable(&self, namespace: &str, service: &str, most: usize) -> Vec<Arc<RequestRecord>> {
        let mut found: Vec<Arc<RequestRecord>> = Vec::new();
        for revision in &self.revisions {
            if (revision.key().namespace(), revision.key().service()) == (namespace, service) {
                found.extend(revision.notable.iter().cloned());
            }
        }
        youngest(found, most)
    }

    /// The last `most` requests of a service, youngest first.
    pub fn recent(&self, namespace: &str, service: &str, most: usize) -> Vec<Arc<RequestRecord>> {
        let mut found = Vec::new();
        for shard in &self.recent {
            let shard = shard.lock();
            let own = shard
                .iter()
                .rev()
                .filter(|it| (it.revision.namespace(), it.revision.service()) == (namespace, service));
            found.extend(own.take(most).cloned());
        }
        youngest(found, most)
    }

    /// What was in each of the last seconds of the revisions of a service in which something was, by revision.
    pub fn seconds(&self, namespace: &str, service: &str) -> BTreeMap<String, Vec<RequestSecond>> {
        let own = self.revisions.iter().filter(|revision| {
            (revision.key().namespace(), revision.key().service()) == (namespace, service)
        });
        own.map(|revision| (revision.key().revision().to_owned(), revision.seconds.iter().copied().collect()))
            .collect()
    }

    /// What was asked of each revision of a service lately, by revision.
    pub fn rates(&self, namespace: &str, service: &str) -> BTreeMap<String, RequestRates> {
        let now = self.clock.now().as_secs();
        let own = self.revisions.iter().filter(|revision| {
            (revision.key().namespace(), revision.key().service()) == (namespace, service)
        });
        own.map(|revision| {
            let mut sum = Sum::new();
            sum.add(&revision, now);
            (revision.key().revision().to_owned(), sum.rates())
        })
        .collect()
    }

    /// What was asked of each service lately, by `namespace/service`; those that nobody asked are left out.
    pub fn rates_by_service(&self) -> HashMap<String, RequestRates> {
        let now = self.clock.now().as_secs();
        let mut sums: HashMap<String, Sum> = HashMap::new();
        for revision in &self.revisions {
            if revision.last > now - 60 {
                let service = revision.key().service_path();
                match sums.get_mut(service) {
                    Some(sum) => sum.add(&revision, now),
                    None => {
                        let mut sum = Sum::new();
                        sum.add(&revision, now);
                        sums.insert(service.to_owned(), sum);
                    }
                }
            }
        }
        sums.into_iter().map(|(service, sum)| (service, sum.rates())).collect()
    }

    /// Looks at the instances of those revisions that were asked lately, and forgets what is too old. Call it once a
    /// second: what instances did between two calls is not seen.
    pub fn sample(&self, pool: &dyn Pool) {
        let keys = self.forget();
        let (now, keep) = (self.clock.now(), self.limits.seconds.as_secs() as i64);
        for (name, key) in keys {
            let status = pool.status(key);
            if let Some(mut revision) = self.revisions.get_mut(&name) {
                revision.saw(now.as_secs(), keep, status.as_ref());
            }
        }
    }

    /// Forgets what is too old, and what there is no room for; tells whose instances are to be looked at.
    fn forget(&self) -> Vec<(RevisionName, RevisionKey)> {
        let now = self.clock.now();
        let keep = self.limits.seconds.as_secs() as i64;
        let mut keys = Vec::new();
        self.revisions.retain(|name, revision| {
            while revision
                .notable
                .front()
                .is_some_and(|oldest| now.since(oldest.at) > self.limits.notable_age)
            {
                revision.notable.pop_front();
            }
            while revision.seconds.front().is_some_and(|first| first.at <= now.as_secs() - keep) {
                revision.seconds.pop_front();
            }
            if revision.last <= now.as_secs() - 60 {
                revision.durations.clear();
            }
            if let (Some(key), false) = (revision.key, revision.seconds.is_empty()) {
                keys.push((name.clone(), key));
            }
            !(revision.seconds.is_empty() && revision.notable.is_empty())
        });
        let uncounted = self.uncounted();
        if self.uncounted_before.swap(uncounted, Ordering::Relaxed) < uncounted {
            self.make_room();
        }
        self.kept.store(self.revisions.len(), Ordering::Relaxed);
        keys
    }

    fn shard(&self, id: RequestId) -> &Mutex<VecDeque<Arc<RequestRecord>>> {
        // The low bits of an id are random.
        &self.recent[(id.0 % SHARDS as u128) as usize]
    }

    /// Forgets an eighth of the revisions, if so many are kept: of the namespaces that have most, the quietest.
    fn make_room(&self) {
        let most = self.limits.revisions.max(1);
        let room = most - (most / 8).max(1);
        let mut namespaces: HashMap<String, Vec<(i64, RevisionName)>> = HashMap::new();
        for revision in &self.revisions {
            let of = namespaces.entry(revision.key().namespace().to_owned()).or_default();
            of.push((revision.last, revision.key().clone()));
        }
        // The largest share that lets all of them fit.
        let sizes: Vec<usize> = namespaces.values().map(Vec::len).collect();
        let fits = |share: usize| sizes.iter().map(|size| *size.min(&share)).sum::<usize>() <= room;
        let (mut share, mut above) = (0, most + 1);
        while above - share > 1 {
            let middle = share + (above - share) / 2;
            if fits(middle) { share = middle } else { above = middle }
        }
        let (mut gone, mut left) = (0, sizes.iter().map(|size| *size.min(&share)).sum::<usize>());
        for (_, mut of) in namespaces {
            of.sort_unstable();
            let mut surplus = of.len().saturating_sub(share);
            // What the shares leave over goes to whoever comes first.
            while surplus > 0 && left < room {
                (surplus, left) = (surplus - 1, left + 1);
            }
            gone += surplus;
            for (_, name) in of.into_iter().take(surplus) {
                self.revisions.remove(&name);
            }
        }
        tracing::warn!(
            kept = most,
            gone,
            "more revisions are asked than requests are kept of: the quietest were forgotten; \
             raise RequestLimits::revisions"
        );
    }

    fn keep(&self, span: &RequestSpan<'_>, name: &RevisionName) {
        let now = self.clock.now();
        let record = Arc::new(RequestRecord {
            id: span.request,
            trace: span.context.trace,
            at: now,
            duration: span.duration,
            revision: name.clone(),
            purpose: span.purpose,
            trigger: span.trigger,
            method: method(span.method),
            host: span.host.map(shortened),
            path: shortened(span.path),
            status: span.status.map(|status| status.as_u16()),
            error: span.error,
            message: span.message.map(shortened),
            aborted: span.aborted,
            waited_from: span.waited_from,
            exchanges: span.upstream.to_vec(),
            bytes_in: span.bytes_in,
            bytes_out: span.bytes_out,
        });
        self.count(span, name, &record);
        let mut shard = self.shard(record.id).lock();
        if shard.len() >= self.limits.recent.div_ceil(SHARDS) {
            shard.pop_front();
        }
        shard.push_back(record);
    }

    fn count(&self, span: &RequestSpan<'_>, name: &RevisionName, record: &Arc<RequestRecord>) {
        let (now, cold, failed) = (record.at, record.is_cold(), record.failed());
        let mut revision = match self.revisions.get_mut(name) {
            Some(revision) => revision,
            None if self.kept.load(Ordering::Relaxed) >= self.limits.revisions.max(1) => {
                self.uncounted.fetch_add(1, Ordering::Relaxed);
                return;
            }
            None => {
                self.kept.fetch_add(1, Ordering::Relaxed);
                self.revisions.entry(name.clone()).or_default()
            }
        };
        revision.key = span.revision.or(revision.key);
        revision.last = now.as_secs();
        // A test run is shown, and counts for nothing.
        if span.purpose.metered() {
            let second = revision.second(now.as_secs(), self.limits.seconds.as_secs() as i64);
            second.requests += 1;
            second.errors += u32::from(failed);
            second.cold_starts += u32::from(cold);
            revision.took(now.as_secs(), span.duration);
        }
        if cold || failed {
            if revision.notable.len() >= self.limits.notable.max(1) {
                revision.notable.pop_front();
            }
            revision.notable.push_back(Arc::clone(record));
        }
    }
}

impl Revision {
    fn saw(&mut self, now: i64, keep: i64, status: Option<&RevisionStatus>) {
        let asleep = status.is_none_or(|it| it.ready + it.starting + it.draining + it.queued == 0);
        let before = self.seconds.back();
        // A revision that sleeps and slept before is told once.
        if asleep && before.is_some_and(|it| it.ready + it.starting + it.draining + it.queued == 0) {
            return;
        }
        let second = self.second(now, keep);
        let status = status.cloned().unwrap_or_default();
        second.desired = status.desired;
        second.ready = status.ready;
        second.starting = status.starting;
        second.draining = status.draining;
        second.queued = status.queued;
        second.in_flight = status.in_flight;
    }
}

fn youngest(mut found: Vec<Arc<RequestRecord>>, most: usize) -> Vec<Arc<RequestRecord>> {
    found.sort_by_key(|record| std::cmp::Reverse(record.at));
    found.truncate(most);
    found
}

impl TraceSink for RequestLog {
    fn samples(&self, trace: u128, parent: Option<ParentSpan>) -> bool {
        match &self.next {
            Some(next) => next.samples(trace, parent),
            // Nobody exports traces here: whoever began it has decided.
            None => parent.is_some_and(|parent| parent.context.sampled()),
        }
    }

    fn request(&self, span: &RequestSpan<'_>) {
        if let Some(name) = span.name {
            self.keep(span, name);
        }
        if let Some(next) = &self.next {
            next.request(span);
        }
    }

    fn delivery(&self, span: &DeliverySpan<'_>) {
        if let Some(next) = &self.next {
            next.delivery(span);
        }
    }

    fn step(&self, span: &StepSpan<'_>) {
        if let Some(next) = &self.next {
            next.step(span);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use sas_core::{InstanceId, StartTimings, TraceContext};
    use sas_testkit::fake::FakeClock;

    use super::*;

    fn log(limits: RequestLimits) -> (RequestLog, Arc<FakeClock>) {
        let clock = Arc::new(FakeClock::starting_at(Timestamp::from_secs(1_000_000)));
        (RequestLog::new(limits, Arc::clone(&clock) as _), clock)
    }

    fn tell(log: &RequestLog, id: u128, name: &RevisionName, status: u16, cold: bool, took: u64) {
        let context = TraceContext { trace: 1, span: 2, flags: 0 };
        let mut span = RequestSpan::new(context, RequestId(id), &Method::GET, "/");
        let mut exchange =
            UpstreamSpan::new(3, Some(InstanceId(4)), Duration::ZERO, Duration::from_millis(took));
        exchange.start = cold.then(|| Arc::new(StartTimings::default()));
        let upstream = [exchange];
        span.name = Some(name);
        span.status = StatusCode::from_u16(status).ok();
        span.upstream = &upstream;
        span.duration = Duration::from_millis(took);
        log.request(&span);
    }

    #[tokio::test(start_paused = true)]
    async fn rates_are_of_whole_seconds_and_quantiles_of_the_last_minute() {
        let (log, clock) = log(RequestLimits::default());
        let name = RevisionName::new("shop", "cart", "cart-00001");
        for id in 0..100 {
            tell(&log, id, &name, if id < 10 { 503 } else { 200 }, id == 50, if id < 98 { 10 } else { 900 });
        }
        assert_eq!(
            log.rates("shop", "cart")["cart-00001"].requests_per_second,
            0.0,
            "the second is not over"
        );
        clock.jump_forward(Duration::from_secs(1));
        let rates = &log.rates_by_service()["shop/cart"];
        assert_eq!((rates.requests_per_second, rates.errors_per_second), (10.0, 1.0));
        assert_eq!((rates.requests, rates.cold_starts), (100, 1));
        let (p50, p99) = (rates.p50.expect("asked"), rates.p99.expect("asked"));
        assert!((10..=12).contains(&p50.as_millis()), "{p50:?}");
        assert!((900..=1080).contains(&p99.as_millis()), "{p99:?}");
        clock.jump_forward(Duration::from_secs(61));
        assert!(log.rates_by_service().is_empty(), "a minute later nobody asks");
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_or_waited_is_kept_when_the_rest_is_gone() {
        let limits = RequestLimits { recent: 16, notable: 2, ..RequestLimits::default() };
        let (log, _) = log(limits);
        let name = RevisionName::new("shop", "cart", "cart-00001");
        for id in 1..=3 {
            tell(&log, id, &name, 200, true, 5);
        }
        for id in 8..800 {
            tell(&log, id, &name, 200, false, 5);
        }
        assert!(log.find(RequestId(3)).expect("kept").is_cold());
        assert!(log.find(RequestId(1)).is_none() && log.find(RequestId(400)).is_none(), "both have bounds");
        assert!(log.find(RequestId(799)).is_some());
        assert_eq!(log.notable("shop", "cart", 10).len(), 2);
        assert_eq!(log.recent("shop", "cart", 5).len(), 5);
        assert!(log.recent("shop", "car", 5).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn revisions_are_bounded_and_the_namespace_that_has_most_lets_its_quietest_go() {
        let (log, clock) = log(RequestLimits { revisions: 4, recent: 8, ..RequestLimits::default() });
        tell(&log, 0, &RevisionName::new("bank", "vault", "vault-1"), 200, false, 1);
        for at in 1..=3 {
            clock.jump_forward(Duration::from_secs(1));
            tell(&log, at, &RevisionName::new("shop", "cart", &format!("cart-{at}")), 200, false, 1);
        }
        let till = RevisionName::new("shop", "till", "till-1");
        tell(&log, 9, &till, 200, false, 1);
        assert_eq!(log.uncounted(), 1, "it is said, and nobody else goes for it within a request");
        assert!(log.find(RequestId(9)).is_some() && log.seconds("shop", "till").is_empty());
        log.forget();
        assert_eq!(log.seconds("bank", "vault").len(), 1, "another namespace goes for nobody");
        assert_eq!(log.seconds("shop", "cart").into_keys().collect::<Vec<_>>(), ["cart-2", "cart-3"]);
        tell(&log, 10, &till, 200, false, 1);
        assert_eq!((log.uncounted(), log.seconds("shop", "till").len()), (1, 1), "now there is room");
        log.forget();
        assert_eq!(log.seconds("bank", "vault").len(), 1, "where nobody is turned away, nobody goes");
    }

    #[tokio::test(start_paused = true)]
    async fn limits_of_nothing_and_of_everything_break_no_request() {
        for seconds in [Duration::ZERO, Duration::MAX] {
            let limits =
                RequestLimits { seconds, recent: 0, notable: 0, revisions: 0, ..RequestLimits::default() };
            let (log, _) = log(limits);
            tell(&log, 1, &RevisionName::new("shop", "cart", "cart-1"), 500, true, 1);
            assert_eq!(log.seconds("shop", "cart").len(), 1);
        }
    }

    #[test]
    fn a_method_that_somebody_made_up_is_not_kept_at_length() {
        assert_eq!(method(&Method::from_bytes(&[b'A'; 5000]).unwrap()).as_str(), "_OTHER");
        assert_eq!(method(&Method::PATCH), Method::PATCH);
    }

    #[test]
    fn foreign_text_is_kept_short_and_whole() {
        assert_eq!(shortened(&"ü".repeat(1000)).chars().count(), TEXT / 2);
        assert_eq!(shortened("/a"), "/a");
    }

    #[test]
    fn bounds_hold_what_falls_into_them() {
        for ms in [0_u64, 1, 7, 40, 333, 5000, 90_000] {
            let took = Duration::from_millis(ms);
            let mut counts = [0; BOUNDS];
            counts[bound_of(took)] = 1;
            let read = quantile(&counts, 0.5).expect("one");
            assert!(
                read >= took && read <= took.mul_f64(FACTOR) + Duration::from_millis(1),
                "{took:?}: {read:?}"
            );
        }
        assert_eq!(bound_of(Duration::from_secs(100_000)), BOUNDS - 1);
        assert_eq!(quantile(&[0; BOUNDS], 0.5), None);
    }
}

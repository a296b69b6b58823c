//! Requests at once, weighted by time.

/// Counts requests of one revision in one place.
///
/// Times are in seconds' fractions of nanoseconds since anything; one that goes back is ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RequestStats {
    last_change: i64,
    seconds: f64,
    concurrency: f64,
    proxied_concurrency: f64,
    weighted: f64,
    proxied_weighted: f64,
    requests: f64,
    proxied_requests: f64,
}

/// What was counted since the report before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RequestReport {
    /// Mean requests at once.
    pub concurrency: f64,
    /// Of these, proxied.
    pub proxied_concurrency: f64,
    /// Requests per second that came.
    pub requests: f64,
    /// Of these, proxied.
    pub proxied_requests: f64,
}

impl RequestStats {
    /// Nothing counted at `now`, in nanoseconds.
    pub fn new(now: i64) -> Self {
        Self { last_change: now, ..Self::default() }
    }

    fn pass(&mut self, now: i64) {
        let passed = now.saturating_sub(self.last_change);
        if passed > 0 {
            // Whole seconds and the rest apart, as Go's Duration.Seconds has it.
            let seconds = (passed / 1_000_000_000) as f64 + (passed % 1_000_000_000) as f64 / 1e9;
            self.seconds += seconds;
            self.weighted += self.concurrency * seconds;
            self.proxied_weighted += self.proxied_concurrency * seconds;
            self.last_change = now;
        }
    }

    /// A request begins.
    pub fn begin(&mut self, now: i64, proxied: bool) {
        self.pass(now);
        self.concurrency += 1.0;
        self.requests += 1.0;
        if proxied {
            self.proxied_concurrency += 1.0;
            self.proxied_requests += 1.0;
        }
    }

    /// A request ends.
    pub fn end(&mut self, now: i64, proxied: bool) {
        self.pass(now);
        self.concurrency -= 1.0;
        if proxied {
            self.proxied_concurrency -= 1.0;
        }
    }

    /// What was counted since the last report. Requests that run on go on counting.
    pub fn report(&mut self, now: i64) -> RequestReport {
        self.pass(now);
        let mean = |weighted: f64| if self.seconds > 0.0 { weighted / self.seconds } else { 0.0 };
        let report = RequestReport {
            concurrency: mean(self.weighted),
            proxied_concurrency: mean(self.proxied_weighted),
            requests: self.requests,
            proxied_requests: self.proxied_requests,
        };
        *self = Self {
            last_change: self.last_change,
            concurrency: self.concurrency,
            proxied_concurrency: self.proxied_concurrency,
            ..Self::default()
        };
        report
    }
}

/// The activator's reports of one revision: the first request is told at once, the next report leaves it out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ActivatorStats {
    stats: RequestStats,
    told: bool,
}

impl ActivatorStats {
    /// The entry of a revision whose first request came at `now`; the report that goes out at once.
    pub fn first_request(now: i64) -> (Self, RequestReport) {
        let mut stats = RequestStats::new(now);
        stats.begin(now, false);
        let report = RequestReport { concurrency: 1.0, requests: 1.0, ..RequestReport::default() };
        (Self { stats, told: true }, report)
    }

    /// A request begins.
    pub fn begin(&mut self, now: i64) {
        self.stats.begin(now, false);
    }

    /// A request ends.
    pub fn end(&mut self, now: i64) {
        self.stats.end(now, false);
    }

    /// The periodic report.
    pub fn report(&mut self, now: i64) -> RequestReport {
        let mut report = self.stats.report(now);
        if std::mem::take(&mut self.told) {
            report.concurrency = (report.concurrency - 1.0).max(0.0);
            report.requests -= 1.0;
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_request_is_told_once() {
        let (mut stats, first) = ActivatorStats::first_request(0);
        assert_eq!((first.concurrency, first.requests), (1.0, 1.0));
        stats.begin(500_000_000);
        let report = stats.report(1_000_000_000);
        assert_eq!((report.concurrency, report.requests), (0.5, 1.0));
        assert_eq!(stats.report(2_000_000_000).concurrency, 2.0);
    }
}

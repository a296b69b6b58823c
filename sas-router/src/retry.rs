//! When a failed request may have another instance.

use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use sas_core::Request;
use tokio::time::Instant;

/// How often requests are tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Attempts per request, the first included. 3.
    pub attempts: u32,
    /// Retries per request over time: 0.2 allows one retry for every five requests. 0.2.
    pub ratio: f64,
    /// Retries per second that are always allowed, so that a quiet service can retry too. 10.
    pub per_second: f64,
    /// The most retries that can be saved up. 100.
    pub burst: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 3, ratio: 0.2, per_second: 10.0, burst: 100.0 }
    }
}

/// What all requests of a gateway may spend on retries: when instances fail in numbers, retries would only double
/// the load on those that are left.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    policy: RetryPolicy,
    state: Mutex<Saved>,
}

#[derive(Clone, Copy, Debug)]
struct Saved {
    retries: f64,
    requests: u64,
    at: Option<Instant>,
}

impl RetryBudget {
    pub(crate) fn new(policy: RetryPolicy) -> Self {
        Self { policy, state: Mutex::new(Saved { retries: policy.burst, requests: 0, at: None }) }
    }

    /// Takes one retry, if there is one. `requests` counts all requests so far; nothing is touched by requests
    /// that succeed.
    pub(crate) fn take(&self, now: Instant, requests: u64) -> bool {
        let mut state = self.state.lock();
        let passed = state.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let earned = passed.as_secs_f64() * self.policy.per_second
            + requests.saturating_sub(state.requests) as f64 * self.policy.ratio;
        state.retries = (state.retries + earned).min(self.policy.burst);
        state.requests = state.requests.max(requests);
        state.at = Some(now);
        if state.retries < 1.0 {
            return false;
        }
        state.retries -= 1.0;
        true
    }
}

/// Methods that may be sent twice (RFC 9110, section 9.2.2).
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// Whether a request may be sent again after it was sent: its method allows it, and its body is in memory.
pub(crate) fn may_repeat(request: &Request) -> bool {
    is_idempotent(request.method()) && request.body().in_memory().is_some()
}

/// The same request once more; `None` when its body streams.
pub(crate) fn again(request: &Request) -> Option<Box<Request>> {
    let mut again = Request::new(request.body().try_clone()?);
    again.method_mut().clone_from(request.method());
    again.uri_mut().clone_from(request.uri());
    *again.version_mut() = request.version();
    again.headers_mut().clone_from(request.headers());
    Some(Box::new(again))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn retries_end_with_the_budget_and_come_back_with_time_and_traffic() {
        let policy = RetryPolicy { attempts: 3, ratio: 0.5, per_second: 1.0, burst: 2.0 };
        let budget = RetryBudget::new(policy);
        let start = Instant::now();
        assert!(budget.take(start, 0));
        assert!(budget.take(start, 0));
        assert!(!budget.take(start, 0), "the burst is spent");
        assert!(budget.take(start + Duration::from_secs(1), 0), "a second brings one");
        assert!(!budget.take(start + Duration::from_secs(1), 1), "one request brings half a retry");
        assert!(budget.take(start + Duration::from_secs(1), 2), "two bring one");
        assert!(budget.take(start + Duration::from_secs(100), 2));
        assert!(budget.take(start + Duration::from_secs(100), 2));
        assert!(!budget.take(start + Duration::from_secs(100), 2), "no more than the burst is saved");
    }

    #[test]
    fn posts_are_not_idempotent() {
        assert!(is_idempotent(&Method::GET) && is_idempotent(&Method::PUT) && is_idempotent(&Method::DELETE));
        assert!(!is_idempotent(&Method::POST) && !is_idempotent(&Method::PATCH));
        assert!(!is_idempotent(&Method::from_bytes(b"PURGE").unwrap()));
    }
}

//! How a suite runs its checks: each on a fresh subject, with a limit, panics caught.

use std::{any::Any, fmt, future::Future, panic::AssertUnwindSafe, pin::Pin, time::Duration};

use futures_util::FutureExt as _;
use sas_core::ErrorKind;
use tokio::time::Instant;

use crate::report::{CheckResult, Checked, Report};

/// Why a check ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    Skip(String),
    Fail(String),
}

impl Stop {
    pub(crate) fn fail(message: impl Into<String>) -> Self {
        Self::Fail(message.into())
    }

    pub(crate) fn skip(reason: impl Into<String>) -> Self {
        Self::Skip(reason.into())
    }
}

/// What a check says; `Ok` is that the sentence holds.
pub(crate) type Verdict<T = ()> = Result<T, Stop>;

/// A boxed check on a subject.
pub(crate) type Check<S> = for<'a> fn(&'a S) -> Pin<Box<dyn Future<Output = Verdict> + 'a>>;

/// Fails the check with a formatted message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {{
        let holds: bool = $condition;
        if !holds {
            return Err($crate::check::Stop::Fail(format!($($message)+)));
        }
    }};
}
pub(crate) use ensure;

/// A table of checks: `sentence => async fn`.
macro_rules! checks {
    ($($name:literal => $check:path,)+) => {
        &[$(($name, |subject| Box::pin($check(subject)))),+]
    };
}
pub(crate) use checks;

/// The longest that one check may take, in tokio's time, in suites that run in real time.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// The same for suites that wait much and are meant for paused time.
pub(crate) const PAUSED_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Runs each check on a subject of its own. The guard is dropped after the subject.
pub(crate) async fn run<G, T, S>(
    suite: &'static str,
    limit: Duration,
    builder: impl AsyncFn() -> (G, T),
    subject: impl Fn(T) -> S,
    checks: &[(&'static str, Check<S>)],
) -> Report {
    let mut report = Report::new(suite);
    for (name, check) in checks {
        let before = Instant::now();
        let outcome = one(limit, &builder, &subject, *check).await;
        report.push(Checked { name, outcome, took: before.elapsed() });
    }
    report
}

async fn one<G, T, S>(
    limit: Duration,
    builder: &impl AsyncFn() -> (G, T),
    subject: &impl Fn(T) -> S,
    check: Check<S>,
) -> CheckResult {
    let whole = async {
        let (guard, built) = builder().await;
        let subject = subject(built);
        let verdict = check(&subject).await;
        drop(subject);
        drop(guard);
        verdict
    };
    match tokio::time::timeout(limit, AssertUnwindSafe(whole).catch_unwind()).await {
        Ok(Ok(Ok(()))) => CheckResult::Passed,
        Ok(Ok(Err(Stop::Skip(reason)))) => CheckResult::Skipped(reason),
        Ok(Ok(Err(Stop::Fail(message)))) => CheckResult::Failed(message),
        Ok(Err(panic)) => CheckResult::Failed(format!("panicked: {}", panic_text(&*panic))),
        Err(_) => CheckResult::Failed(format!("did not end within {limit:?}")),
    }
}

pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a value that is not text")
}

/// `future`, or a failure that says `what` did not happen in time.
pub(crate) async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> Verdict<T> {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => Ok(value),
        Err(_) => Err(Stop::Fail(format!("{what} did not happen within {limit:?}"))),
    }
}

/// Waits until `condition` holds, looking again every few milliseconds.
pub(crate) async fn eventually(limit: Duration, what: &str, condition: impl Fn() -> bool) -> Verdict {
    let look = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(limit, what, look).await
}

/// Polls `future` at most `polls` times, giving the runtime a turn in between, then drops it. `Some` when it was
/// ready by then.
pub(crate) async fn drop_after_polls<T>(polls: u32, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    for _ in 0..polls {
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx))).await;
        if let std::task::Poll::Ready(value) = polled {
            return Some(value);
        }
        // A turn of the reactor, so that the next poll finds something new.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    None
}

/// What `result` gives, or a failure that says `what` gave an error.
pub(crate) fn ok<T>(what: &str, result: sas_core::Result<T>) -> Verdict<T> {
    result.map_err(|error| Stop::fail(format!("{what}: {}", error.chain())))
}

/// Fails unless `result` is an error of that kind.
pub(crate) fn refused<T: fmt::Debug>(what: &str, kind: ErrorKind, result: sas_core::Result<T>) -> Verdict {
    match result {
        Err(error) if error.kind == kind => Ok(()),
        other => Err(Stop::fail(format!("{what}: expected {kind:?}, got {other:?}"))),
    }
}

//! Deliveries of a run whose outcomes it wants to know one by one.

use std::{collections::VecDeque, future::Future, pin::pin};

use futures_util::{
    future::{BoxFuture, Either, FutureExt as _, select},
    stream::{FuturesUnordered, StreamExt as _},
};

/// Deliveries that are polled in the task of their run, in the order in which they began. Whatever else the run waits for,
/// the store above all, goes through [`UnderWay::meanwhile`]: a delivery that nobody polls keeps the instance that it has
/// got, and does nothing with it. [`sas_core::Deliveries`] is for sources that need to know of failures only.
pub(crate) struct UnderWay<T> {
    polled: FuturesUnordered<BoxFuture<'static, T>>,
    /// Outcomes that nobody has asked for yet, oldest first.
    ended: VecDeque<T>,
}

impl<T> UnderWay<T> {
    pub(crate) fn new() -> Self {
        Self { polled: FuturesUnordered::new(), ended: VecDeque::new() }
    }

    /// Adds a delivery, which begins when something is waited for.
    pub(crate) fn push(&mut self, delivery: impl Future<Output = T> + Send + 'static) {
        self.polled.push(delivery.boxed());
    }

    /// Whether there is no outcome to wait for.
    pub(crate) fn is_empty(&self) -> bool {
        self.polled.is_empty() && self.ended.is_empty()
    }

    /// The next outcome; `None`: there is none to wait for.
    ///
    /// **Cancel safety:** no outcome is lost.
    pub(crate) async fn next(&mut self) -> Option<T> {
        match self.ended.pop_front() {
            None => self.polled.next().await,
            ended => ended,
        }
    }

    /// Waits for `other` while the deliveries go on.
    ///
    /// **Cancel safety:** that of `other`; no outcome is lost.
    pub(crate) async fn meanwhile<O>(&mut self, other: impl Future<Output = O>) -> O {
        let mut other = pin!(other);
        loop {
            if self.polled.is_empty() {
                return other.await;
            }
            match select(self.polled.next(), other.as_mut()).await {
                Either::Left((ended, _)) => self.ended.extend(ended),
                Either::Right((done, _)) => return done,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn they_go_on_while_something_else_is_waited_for_and_each_outcome_is_heard_of_once() {
        let began = Instant::now();
        let mut deliveries = UnderWay::new();
        for seconds in [3, 1] {
            deliveries.push(async move {
                sleep(Duration::from_secs(seconds)).await;
                began.elapsed().as_secs()
            });
        }
        deliveries.meanwhile(sleep(Duration::from_secs(10))).await;
        assert!(!deliveries.is_empty());
        assert_eq!([deliveries.next().await, deliveries.next().await], [Some(1), Some(3)]);
        assert!(deliveries.is_empty() && deliveries.next().await.is_none());
    }
}

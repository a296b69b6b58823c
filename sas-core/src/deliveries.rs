//! What a source has under way.

use std::{
    future::Future,
    pin::pin,
    task::{Context, Waker},
    time::Duration,
};

use futures_util::{
    future::{BoxFuture, Either, FutureExt as _, select},
    stream::{FuturesUnordered, StreamExt as _},
};

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::{EventSink, Result, Slot};

/// The deliveries that a run of a source has begun and that have not ended: each the delivery of one event, and then its
/// acknowledgement upstream. They go on while the source waits for something in [`Deliveries::meanwhile`], in its own
/// task. For those who write a source.
///
/// ```
/// use std::sync::Arc;
/// use sas_core::{Deliveries, Event, Result, TriggerCx};
///
/// async fn follow(mut upstream: tokio::sync::mpsc::Receiver<Event>, cx: &TriggerCx) -> Result<()> {
///     let mut deliveries = Deliveries::default();
///     loop {
///         let slot = deliveries.meanwhile(cx.sink.ready()).await??;
///         let Some(event) = deliveries.meanwhile(upstream.recv()).await? else { break };
///         let sink = Arc::clone(&cx.sink);
///         deliveries.begin(async move {
///             sink.deliver(slot, event).await?;
///             // Here it is acknowledged upstream.
///             Ok(())
///         });
///     }
///     deliveries.finish().await;
///     Ok(())
/// }
/// ```
#[derive(Debug, Default)]
pub struct Deliveries {
    under_way: FuturesUnordered<BoxFuture<'static, Result<()>>>,
    /// The first failure that nobody was told of yet.
    failed: Option<crate::Error>,
}

impl Deliveries {
    /// Begins a delivery. It is begun before the next one is, so that the sink gets events in the order of the calls.
    pub fn begin(&mut self, delivery: impl Future<Output = Result<()>> + Send + 'static) {
        let mut delivery = delivery.boxed();
        // Whoever polls next looks at it again, so nobody needs to be woken for it now.
        match delivery.poll_unpin(&mut Context::from_waker(Waker::noop())) {
            std::task::Poll::Ready(ended) => self.note(ended),
            std::task::Poll::Pending => self.under_way.push(delivery),
        }
    }

    /// Waits for `other` while the deliveries go on.
    ///
    /// **Cancel safety:** that of `other`; no delivery is dropped.
    ///
    /// # Errors
    /// That of the first delivery that failed; `other` is dropped then.
    pub async fn meanwhile<T>(&mut self, other: impl Future<Output = T>) -> Result<T> {
        let mut other = pin!(other);
        loop {
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            if self.under_way.is_empty() {
                return Ok(other.await);
            }
            match select(self.under_way.next(), other.as_mut()).await {
                Either::Left((ended, _)) => self.note(ended.unwrap_or(Ok(()))),
                Either::Right((done, _)) => return Ok(done),
            }
        }
    }

    /// Lets all end that are under way, those that fail too: what was delivered is acknowledged, so that it does not come
    /// again for the sake of another that failed.
    ///
    /// **Cancel safety:** those that have not ended stay under way.
    pub async fn finish(&mut self) {
        while let Some(ended) = self.under_way.next().await {
            self.note(ended);
        }
    }

    /// Slots for events that are about to be pulled: one, which is waited for while the deliveries go on, and when `eager`,
    /// what else is free now, `most` in all. An idle source is not to keep more than one.
    ///
    /// **Cancel safety:** slots that were taken are given back.
    ///
    /// # Errors
    /// As [`Deliveries::meanwhile`], and that of the sink.
    pub async fn slots(&mut self, sink: &dyn EventSink, eager: bool, most: usize) -> Result<Vec<Slot>> {
        let mut slots = vec![self.meanwhile(sink.ready()).await??];
        while eager && slots.len() < most {
            let Some(slot) = sink.ready().now_or_never() else { break };
            slots.push(slot?);
        }
        Ok(slots)
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Whether none is under way.
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    fn note(&mut self, ended: Result<()>) {
        if let (Err(error), None) = (ended, &self.failed) {
            self.failed = Some(error);
        }
    }
}

/// Waits for the delivery of an event, and calls `renew` each `every` meanwhile: for brokers that give an event to somebody
/// else unless they are told that its delivery goes on.
///
/// **Cancel safety:** that of `delivery`.
///
/// # Errors
/// That of `renew`; the delivery is dropped then.
pub async fn with_renewal<T, K: Future<Output = Result<()>>>(
    delivery: impl Future<Output = T>,
    every: Duration,
    mut renew: impl FnMut() -> K,
) -> Result<T> {
    let mut delivery = pin!(delivery);
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        match select(delivery.as_mut(), pin!(ticks.tick())).await {
            Either::Left((delivered, _)) => return Ok(delivered),
            Either::Right(_) => renew().await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        time::Duration,
    };

    use super::*;
    use crate::{Error, ErrorKind};

    #[tokio::test(start_paused = true)]
    async fn they_begin_in_order_and_go_on_while_something_is_waited_for() {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let mut deliveries = Deliveries::default();
        for (number, millis) in [(1, 30), (2, 0), (3, 10)] {
            let seen = Arc::clone(&seen);
            deliveries.begin(async move {
                seen.lock().unwrap().push(format!("begins {number}"));
                if millis > 0 {
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                }
                seen.lock().unwrap().push(format!("ends {number}"));
                Ok(())
            });
        }
        assert_eq!(deliveries.len(), 2);
        deliveries.meanwhile(tokio::time::sleep(Duration::from_millis(50))).await.unwrap();
        assert!(deliveries.is_empty());
        let expected = ["begins 1", "begins 2", "ends 2", "begins 3", "ends 3", "ends 1"];
        assert_eq!(*seen.lock().unwrap(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_kept_until_its_delivery_ends() {
        let mut kept = 0;
        let delivery = tokio::time::sleep(Duration::from_millis(3500));
        with_renewal(delivery, Duration::from_secs(1), || {
            kept += 1;
            async { Ok(()) }
        })
        .await
        .unwrap();
        assert_eq!(kept, 3);
        let lost = || async { Err(Error::new(ErrorKind::Unavailable, "keep", "taken by another")) };
        let error =
            with_renewal(std::future::pending::<()>(), Duration::from_secs(1), lost).await.unwrap_err();
        assert_eq!(error.message, "taken by another");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_ends_the_wait_and_the_others_may_finish() {
        let mut deliveries = Deliveries::default();
        let done = Arc::new(Mutex::new(false));
        let late = Arc::clone(&done);
        deliveries.begin(async move {
            tokio::time::sleep(Duration::from_millis(40)).await;
            *late.lock().unwrap() = true;
            Ok(())
        });
        deliveries.begin(async { Err(Error::new(ErrorKind::Unavailable, "deliver", "refused")) });
        let failed = deliveries.meanwhile(std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(failed.message, "refused");
        assert!(!*done.lock().unwrap());
        deliveries.finish().await;
        assert!(*done.lock().unwrap());
    }
}

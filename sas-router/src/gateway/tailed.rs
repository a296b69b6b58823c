//! A response's body with what is to be done at its end, and event streams that end in order.

use std::{
    future::Future as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use sas_core::{BoxError, Lease, Outcome};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval_at, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::{access::End, connection::Ending, metrics::GatewayMetrics, tail::Tail};

/// How often a long-lived stream asks whether its instance drains.
const ASK: Duration = Duration::from_secs(1);

/// Resolves when what is long-lived should end in order: its listener drains, or its instance does.
pub(super) struct Farewell {
    listener: Pin<Box<WaitForCancellationFutureOwned>>,
    ask: Interval,
    said: bool,
    /// When a draining instance stops, whatever it does then.
    last: Option<Pin<Box<Sleep>>>,
}

impl Farewell {
    pub(super) fn new(ending: &Ending) -> Self {
        let mut ask = interval_at(Instant::now() + ASK, ASK);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { listener: Box::pin(ending.drain.clone().cancelled_owned()), ask, said: false, last: None }
    }

    pub(super) fn poll(&mut self, lease: Option<&Lease>, cx: &mut Context<'_>) -> Poll<()> {
        if self.said || self.listener.as_mut().poll(cx).is_ready() {
            self.said = true;
            return Poll::Ready(());
        }
        loop {
            ready!(self.ask.poll_tick(cx));
            if let Some(at) = lease.and_then(Lease::draining) {
                self.said = true;
                self.last = Some(Box::pin(sleep_until(at)));
                return Poll::Ready(());
            }
        }
    }

    /// Ready at the deadline of the instance's drain. A listener's deadline is told by its own token.
    pub(super) fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.last {
            Some(last) => last.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    /// Whether the deadline of the instance's drain has passed.
    pub(super) fn is_late(&self) -> bool {
        self.last.as_ref().is_some_and(|last| Instant::now() >= last.deadline())
    }
}

/// What ends an event stream after an event, never within one.
pub(super) struct Events {
    farewell: Farewell,
    metrics: Arc<GatewayMetrics>,
    /// Line breaks that the bytes so far end in: two end an event.
    breaks: u8,
    last: u8,
}

impl Events {
    pub(super) fn new(ending: &Ending, metrics: Arc<GatewayMetrics>) -> Self {
        Self { farewell: Farewell::new(ending), metrics, breaks: 2, last: 0 }
    }

    /// Follows `data`; where its last complete event ends.
    fn follow(&mut self, data: &[u8]) -> Option<usize> {
        let mut end = None;
        for (at, byte) in data.iter().enumerate() {
            match byte {
                // `\r\n` is one line break.
                b'\n' if self.last == b'\r' => {}
                b'\n' | b'\r' => self.breaks += 1,
                _ => self.breaks = 0,
            }
            self.last = *byte;
            if self.breaks >= 2 {
                self.breaks = 2;
                // The `\n` of a final `\r\n` belongs to it.
                let whole = *byte != b'\r' || data.get(at + 1) != Some(&b'\n');
                if whole {
                    end = Some(at + 1);
                }
            }
        }
        end
    }
}

/// A body and its tail.
pub(super) struct Tailed<B> {
    body: Option<B>,
    tail: Tail,
    events: Option<Events>,
    /// An error that waits until what came before it was sent: hyper drops what it has not yet flushed when a body
    /// fails, and a client that got nothing could not tell a broken answer from none.
    broken: Option<BoxError>,
}

impl<B: HttpBody> Tailed<B> {
    pub(super) fn new(body: B, tail: Tail, events: Option<Events>) -> Self {
        Self { body: Some(body), tail, events, broken: None }
    }

    fn end(&mut self, end: End) {
        self.body = None;
        if let (End::Broken, Some(lease)) = (end, &mut self.tail.lease) {
            lease.outcome = Outcome::Lost;
        }
        self.tail.ended(end);
    }
}

impl<B> HttpBody for Tailed<B>
where
    B: HttpBody<Data = Bytes, Error = BoxError> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let leaving = match &mut this.events {
            Some(events) => {
                let leaving = events.farewell.poll(this.tail.lease.as_ref(), cx).is_ready();
                if leaving && events.breaks >= 2 {
                    events.metrics.event_streams.increment(1);
                    this.end(End::Complete);
                    return Poll::Ready(None);
                }
                if leaving && events.farewell.poll_deadline(cx).is_ready() {
                    events.metrics.forced.increment(1);
                    this.end(End::Aborted);
                    let text = "the instance's drain reached its deadline within an event";
                    return Poll::Ready(Some(Err(text.into())));
                }
                leaving
            }
            None => false,
        };
        match ready!(Pin::new(&mut *body).poll_frame(cx)) {
            Some(Ok(mut frame)) => {
                let last = body.is_end_stream();
                if let Some(data) = frame.data_mut() {
                    let end = this.events.as_mut().and_then(|events| events.follow(data));
                    if let (true, Some(end)) = (leaving, end) {
                        // The event that was under way is complete; what was begun after it is not sent.
                        data.truncate(end);
                        if let Some(events) = &mut this.events {
                            events.breaks = 2;
                        }
                    }
                    this.tail.passed(data.len());
                }
                if last {
                    this.end(End::Complete);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                this.end(End::Broken);
                this.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None => {
                this.end(End::Complete);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            // A stream that may be ended early has no length.
            Some(_) if self.events.is_some() => SizeHint::default(),
            Some(body) => body.size_hint(),
            None if self.broken.is_some() => SizeHint::default(),
            None => SizeHint::with_exact(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use sas_core::{Body, Recorder};

    use super::*;

    #[test]
    fn events_end_at_an_empty_line_however_it_is_written() {
        let events = || Events::new(&Ending::default(), Arc::new(GatewayMetrics::new(&Recorder::default())));
        let _in_a_runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _guard = _in_a_runtime.enter();
        for (data, end) in [
            (&b"data: 1\n\ndata: 2"[..], Some(9)),
            (b"data: 1\r\n\r\ndata: 2", Some(11)),
            (b"data: 1\r\rdata: 2", Some(9)),
            (b"data: 1\ndata: 2\n", None),
            (b"data: 1\n\n", Some(9)),
        ] {
            assert_eq!(events().follow(data), end, "{}", String::from_utf8_lossy(data));
        }
        let mut pieces = events();
        assert_eq!(pieces.follow(b"data: 1\n"), None);
        assert_eq!(pieces.follow(b"\nda"), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_stream_ends_after_the_event_that_is_under_way() {
        let (mut sender, body) = http_body_util::channel::Channel::<Bytes, BoxError>::new(4);
        let ending = Ending::default();
        let metrics = Arc::new(GatewayMetrics::new(&Recorder::default()));
        let events = Events::new(&ending, metrics);
        let mut body = Tailed::new(Body::new(body), Tail::default(), Some(events));
        sender.send_data(Bytes::from_static(b"data: on")).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: on");
        ending.drain.cancel();
        assert!(
            tokio::time::timeout(Duration::from_secs(5), body.frame()).await.is_err(),
            "not within an event"
        );
        sender.send_data(Bytes::from_static(b"e\n\ndata: tw")).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "e\n\n");
        assert!(body.frame().await.is_none());
    }
}

//! Bodies under time limits.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use sas_core::{BoxError, Error, ErrorKind};
use tokio::time::{Instant, Sleep};

/// Limits of a body that streams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// For the whole of it; `None`: it may go on for ever (event streams).
    pub(crate) deadline: Option<Instant>,
    /// Between two frames; zero: no limit.
    pub(crate) idle: Duration,
    /// Who is to send: `instance` or `client`.
    pub(crate) sender: &'static str,
}

/// A body that fails when it takes too long. A timer is made only when there is something to wait for.
#[derive(Debug)]
pub(crate) struct Timed<B> {
    body: B,
    limits: Limits,
    last: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B> Timed<B> {
    pub(crate) fn new(body: B, limits: Limits) -> Self {
        Self { body, limits, last: None, timer: None }
    }

    /// When the wait that begins or goes on now must end.
    fn due(&mut self) -> Option<Instant> {
        let idle = (!self.limits.idle.is_zero()).then(|| {
            let last = *self.last.get_or_insert_with(Instant::now);
            last + self.limits.idle
        });
        match (self.limits.deadline, idle) {
            (Some(deadline), Some(idle)) => Some(deadline.min(idle)),
            (deadline, idle) => deadline.or(idle),
        }
    }

    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        loop {
            let Some(due) = self.due() else { return Poll::Pending };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            // Frames came since the timer was set: it is moved only when it fires, not with every frame.
            if timer.deadline() < due {
                timer.as_mut().reset(due);
                continue;
            }
            let text = match self.limits.deadline {
                Some(deadline) if deadline <= due => {
                    "the deadline passed in the middle of the response".to_owned()
                }
                _ => format!("the {} sent nothing for {:?}", self.limits.sender, self.limits.idle),
            };
            return Poll::Ready(Error::new(ErrorKind::Timeout, "receive", text));
        }
    }
}

impl<B> HttpBody for Timed<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            self.last = None;
            return polled.map_err(Into::into);
        }
        self.poll_limits(cx).map(|error| Some(Err(error.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use sas_core::Body;

    use super::*;

    fn silent() -> Body {
        let (sender, body) = http_body_util::channel::Channel::<Bytes, BoxError>::new(1);
        std::mem::forget(sender);
        Body::new(body)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_fails_at_its_deadline() {
        let start = Instant::now();
        let limits = Limits {
            deadline: Some(start + Duration::from_secs(3)),
            idle: Duration::ZERO,
            sender: "instance",
        };
        let error = Timed::new(silent(), limits).frame().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("deadline"), "{error}");
        assert_eq!(start.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_the_last_frame() {
        let (mut sender, body) = http_body_util::channel::Channel::<Bytes, BoxError>::new(1);
        let limits = Limits { deadline: None, idle: Duration::from_secs(2), sender: "client" };
        let mut body = Timed::new(Body::new(body), limits);
        let start = Instant::now();
        let feed = tokio::spawn(async move {
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_millis(1_500)).await;
                sender.send_data(Bytes::from_static(b"x")).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        for _ in 0..4 {
            assert!(body.frame().await.unwrap().is_ok());
        }
        let error = body.frame().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("sent nothing"), "{error}");
        assert_eq!(start.elapsed(), Duration::from_secs(8));
        feed.abort();
    }
}

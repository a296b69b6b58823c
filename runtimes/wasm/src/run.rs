//! A guest at work on one request: polled, timed, stopped; and the answer that streams while it works.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use sas_core::{Answer, Body, BoxError, Error, ErrorKind, Response, Retry};
use tokio::{
    sync::{futures::OwnedNotified, oneshot},
    time::{Instant, Sleep},
};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use crate::{
    cgi::Output,
    component::Work,
    context::InstanceContext,
    ends::{BadAnswer, Limit, call_error},
    http_guest::Reply,
    lifecycle::{Entered, Stream},
    slots::SlotPermit,
    sync::{Lock, Shared},
    ticker::Ticking,
    usage::CallUsage,
};

/// A guest at work.
pub(crate) struct Run {
    // First, so that the sandbox is gone before its place is given to another.
    work: Option<Work>,
    place: Option<SlotPermit>,
    pub(crate) usage: Arc<CallUsage>,
    deadline: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    stop: Option<Pin<Box<OwnedNotified>>>,
    _ticking: Ticking,
    entered: Entered,
}

impl Run {
    pub(crate) fn new(
        work: Work,
        place: SlotPermit,
        usage: Arc<CallUsage>,
        deadline: Instant,
        ticking: Ticking,
        entered: Entered,
    ) -> Self {
        Self {
            work: Some(work),
            place: Some(place),
            usage,
            deadline,
            timer: None,
            stop: None,
            _ticking: ticking,
            entered,
        }
    }

    fn instance(&self) -> &InstanceContext {
        &self.entered.lifecycle().context
    }

    /// Lets the guest work until it is done, waits, or its time slice is over.
    ///
    /// Once it was ready, it is done: further polls are ready too.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let Some(work) = &mut self.work else {
            return Poll::Ready(Ok(()));
        };
        if self.entered.lifecycle().context.is_killed() {
            return Poll::Ready(Err(self.end(&Limit::Stopped.into())));
        }
        self.usage.enter();
        let polled = work.as_mut().poll(cx);
        let used = self.usage.leave();
        self.instance().add_cpu(used);
        match polled {
            Poll::Ready(Ok(warm)) => {
                self.work = None;
                self.instance().function.host.metrics.served(&self.usage);
                if let Some(warm) = warm {
                    self.entered.lifecycle().keep(warm, self.place.take());
                }
                self.place = None;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.end(&error))),
            Poll::Pending => self.poll_ends(cx),
        }
    }

    /// The deadline and the stop, looked at only when the guest waits.
    fn poll_ends(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let deadline = self.deadline;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.as_mut().poll(cx).is_ready() {
            self.work = None;
            self.place = None;
            self.instance().function.host.metrics.ended("deadline", &self.usage);
            return Poll::Ready(Err(Error::new(
                ErrorKind::Timeout,
                "call",
                "the guest had not answered by the request's deadline (timeouts.request)",
            )));
        }
        let instance = &self.entered.lifecycle().context;
        let stop = self.stop.get_or_insert_with(|| Box::pin(instance.function.host.stops()));
        while stop.as_mut().poll(cx).is_ready() {
            stop.set(instance.function.host.stops());
        }
        // Asked after the wait began: a stop in between would go unheard.
        if instance.is_killed() {
            return Poll::Ready(Err(self.end(&Limit::Stopped.into())));
        }
        Poll::Pending
    }

    fn end(&mut self, error: &wasmtime::Error) -> Error {
        self.work = None;
        self.place = None;
        let (error, reason) = call_error(error);
        self.instance().function.host.metrics.ended(reason, &self.usage);
        error
    }
}

/// Where the answer of a guest appears.
pub(crate) enum ResponseSource {
    /// Standard output.
    Cgi(Shared<Output>),
    /// `response-outparam.set`, or the value that the handler returns.
    Http(oneshot::Receiver<Reply>),
}

enum Head {
    Nothing,
    Cgi(http::response::Parts),
    Http(http::Response<HyperOutgoingBody>),
}

impl ResponseSource {
    fn poll_head(&mut self) -> Result<Head, wasmtime::Error> {
        match self {
            Self::Cgi(output) => Ok(output.lock().take_head().map_or(Head::Nothing, Head::Cgi)),
            Self::Http(reply) => match reply.try_recv() {
                Ok(Ok(response)) => Ok(Head::Http(response)),
                Ok(Err(code)) => Err(BadAnswer(format!("the guest answered with the error {code:?}")).into()),
                Err(_) => Ok(Head::Nothing),
            },
        }
    }

    fn no_response(&self) -> wasmtime::Error {
        BadAnswer(match self {
            Self::Cgi(_) => "the guest ended without an answer".to_owned(),
            Self::Http(_) => {
                "the guest returned without an answer: response-outparam.set was never called".to_owned()
            }
        })
        .into()
    }
}

/// Waits for the head of the answer. The guest may be done by then, or go on while its body streams.
pub(crate) async fn answer(mut run: Run, mut source: ResponseSource) -> Result<Answer, Error> {
    let (head, done) = std::future::poll_fn(|cx| {
        let done = match run.poll(cx) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => false,
        };
        match source.poll_head() {
            Ok(Head::Nothing) if done => Poll::Ready(Err(run.end(&source.no_response()))),
            Ok(Head::Nothing) => Poll::Pending,
            Ok(head) => Poll::Ready(Ok((head, done))),
            Err(error) => Poll::Ready(Err(run.end(&error))),
        }
    })
    .await?;
    let limit = run.instance().function.options.limits.response_bytes;
    let usage = Arc::clone(&run.usage);
    let mut response = match head {
        Head::Nothing => return Err(run.end(&source.no_response())),
        Head::Cgi(head) => {
            let ResponseSource::Cgi(output) = source else {
                return Err(run.end(&BadAnswer("an answer of the wrong kind".to_owned()).into()));
            };
            let body = if done {
                output.lock().take_body().map_or(Body::empty(), Body::from)
            } else {
                Body::new(Streaming::new(run, Source::Cgi(output), limit))
            };
            Response::from_parts(head, body)
        }
        Head::Http(response) => {
            let (head, body) = response.into_parts();
            let body = if done { whole(body, limit)? } else { Whole::No(body) };
            let body = match body {
                Whole::Yes(bytes) => Body::from(bytes),
                Whole::No(body) => Body::new(Streaming::new(run, Source::Http(body), limit)),
            };
            Response::from_parts(head, body)
        }
    };
    response.extensions_mut().insert(usage);
    Ok(Answer::Http(response))
}

enum Whole {
    Yes(Bytes),
    No(HyperOutgoingBody),
}

/// A body of one piece, of a guest that is done, needs no stream.
fn whole(mut body: HyperOutgoingBody, limit: u64) -> Result<Whole, Error> {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let first = match Pin::new(&mut body).poll_frame(&mut cx) {
        Poll::Ready(None) => return Ok(Whole::Yes(Bytes::new())),
        Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return Ok(Whole::No(put_back(frame, body))),
        },
        Poll::Ready(Some(Err(error))) => return Err(broken(&error)),
        Poll::Pending => return Ok(Whole::No(body)),
    };
    if first.len() as u64 > limit {
        return Err(call_error(&Limit::Response(limit).into()).0);
    }
    match Pin::new(&mut body).poll_frame(&mut cx) {
        Poll::Ready(None) => Ok(Whole::Yes(first)),
        Poll::Ready(Some(Ok(second))) => Ok(Whole::No(put_back(Frame::data(first), put_back(second, body)))),
        Poll::Ready(Some(Err(error))) => Err(broken(&error)),
        Poll::Pending => Ok(Whole::No(put_back(Frame::data(first), body))),
    }
}

fn put_back(frame: Frame<Bytes>, body: HyperOutgoingBody) -> HyperOutgoingBody {
    use http_body_util::BodyExt as _;
    Again { frame: Some(frame), body }.boxed_unsync()
}

/// A body with a frame that was read too early.
struct Again {
    frame: Option<Frame<Bytes>>,
    body: HyperOutgoingBody,
}

impl http_body::Body for Again {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.frame.take() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Pin::new(&mut self.body).poll_frame(cx),
        }
    }
}

fn broken(error: &wasmtime_wasi_http::Error) -> Error {
    let message = format!("the guest broke its answer off: {error}");
    Error::new(ErrorKind::Crashed, "call", message).with_retry(Retry::Never)
}

enum Source {
    Cgi(Shared<Output>),
    Http(HyperOutgoingBody),
}

/// The body of an answer whose guest is still at work. It works while the body is read.
struct Streaming {
    /// Shared with the instance, which ends the guest when it stops, even if nobody reads.
    run: Shared<Option<Run>>,
    source: Source,
    limit: u64,
    sent: u64,
    done: bool,
    ended: bool,
}

impl Streaming {
    fn new(run: Run, source: Source, limit: u64) -> Self {
        let life = Arc::clone(run.entered.lifecycle());
        let run = Arc::new(Lock::new(Some(run)));
        life.add_stream(&run);
        Self { run, source, limit, sent: 0, done: false, ended: false }
    }

    fn fail(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.ended = true;
        drop(self.run.lock().take());
        Poll::Ready(Some(Err(error.into())))
    }

    fn end(&mut self) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.ended = true;
        drop(self.run.lock().take());
        Poll::Ready(None)
    }

    fn send(&mut self, frame: Frame<Bytes>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
        if self.sent > self.limit {
            return self.fail(call_error(&Limit::Response(self.limit).into()).0);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn poll_run(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match &mut *self.run.lock() {
            Some(run) => run.poll(cx),
            None => Poll::Ready(Err(call_error(&Limit::Stopped.into()).0)),
        }
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.source {
            Source::Cgi(output) => match output.lock().take_body() {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None => Poll::Pending,
            },
            Source::Http(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|error| broken(&error)))),
        }
    }
}

impl Stream for Lock<Option<Run>> {
    fn end(&self) {
        let run = self.lock().take();
        drop(run);
    }
}

impl http_body::Body for Streaming {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut waits = false;
        loop {
            match self.poll_source(cx) {
                Poll::Ready(Some(Ok(frame))) => return self.send(frame),
                Poll::Ready(Some(Err(error))) => return self.fail(error),
                // The source of a guest that failed may end as if all were well: the guest has the last word.
                Poll::Ready(None) => {
                    return match self.poll_run(cx) {
                        Poll::Ready(Ok(())) => self.end(),
                        Poll::Ready(Err(error)) => self.fail(error),
                        Poll::Pending => Poll::Pending,
                    };
                }
                Poll::Pending if self.done => return self.end(),
                Poll::Pending if waits => return Poll::Pending,
                Poll::Pending => {}
            }
            match self.poll_run(cx) {
                Poll::Ready(Ok(())) => self.done = true,
                Poll::Ready(Err(error)) => return self.fail(error),
                // What it wrote meanwhile is looked at once more.
                Poll::Pending => waits = true,
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Cgi(_) => SizeHint::default(),
            Source::Http(body) => body.size_hint(),
        }
    }
}

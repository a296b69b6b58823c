//! One call of a closure: deadline, panics, and the end of its instance.

use std::{
    future::{Future, poll_fn},
    io,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body::{Frame, SizeHint};
use sas_core::{
    Answer, Body, BoxError, CallError, Cx, Error, ErrorKind, Io, LogStream, Request, Response, Result, Retry,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    life::{Kept, Life},
    reply::IntoReply,
};

pub(crate) type CallFuture<'a> = Pin<Box<dyn Future<Output = Result<Answer, CallError>> + Send + 'a>>;

pub(crate) async fn run<F, Fut>(
    instance: &Life,
    function: &F,
    mut request: Request,
    cx: Cx,
) -> Result<Answer, CallError>
where
    F: Fn(Request, Cx) -> Fut,
    Fut: Future,
    Fut::Output: IntoReply,
{
    let Some(running) = instance.enter() else {
        let error = Error::new(ErrorKind::Unavailable, "call", "the instance is being stopped")
            .with_retry(Retry::AnotherInstance);
        return Err(CallError::unsent(error, request));
    };
    if let Some(env) = instance.env() {
        request.extensions_mut().insert(env.clone());
    }
    // The closure itself is called inside, so that its panic is caught as well as that of its future.
    let mut work = pin!(AssertUnwindSafe(async { function(request, cx).await.into_reply() }).catch_unwind());
    let mut poll = |task: &mut Context<'_>| instance.poll_unless_cut(|| work.as_mut().poll(task));

    // Most functions are ready at once, and those never need a timer or a place in the list of those to cut.
    let first = poll_fn(|task| Poll::Ready(poll(task))).await;
    let finished = match first {
        Some(Poll::Ready(result)) => result,
        None => return Err(cut()),
        Some(Poll::Pending) => {
            let mut cut_off = pin!(instance.cut_off());
            let mut late = pin!(tokio::time::sleep_until(cx.deadline));
            let waited = poll_fn(|task| {
                // Registered before the flag is read again: a cut in between wakes this task.
                let _ = cut_off.as_mut().poll(task);
                match poll(task) {
                    None => return Poll::Ready(Err(cut())),
                    Some(Poll::Ready(result)) => return Poll::Ready(Ok(result)),
                    Some(Poll::Pending) => {}
                }
                late.as_mut().poll(task).map(|()| {
                    Err(CallError::sent(Error::new(
                        ErrorKind::Timeout,
                        "call",
                        "the function did not answer before the request's deadline",
                    )))
                })
            });
            waited.await?
        }
    };
    match finished {
        Ok(Ok(Answer::Http(response))) => Ok(Answer::Http(response.map(|body| {
            if body.try_clone().is_some() {
                body
            } else {
                Body::new(Streamed { body, running: running.keep() })
            }
        }))),
        Ok(Ok(Answer::Upgrade { head, io })) => {
            Ok(Answer::Upgrade { head, io: Box::new(UpgradedIo { io: Some(io), running: running.keep() }) })
        }
        Ok(Err(failed)) => {
            instance.log(Some(cx.request), LogStream::Stderr, &format!("the function failed: {failed}"));
            Ok(Answer::Http(failure(&cx)))
        }
        Err(panic) => {
            let text = panic_text(&*panic);
            instance.log(Some(cx.request), LogStream::Stderr, &format!("the function panicked: {text}"));
            let message = "the function panicked; its message is in the log of the instance";
            Err(CallError::sent(Error::new(ErrorKind::Crashed, "call", message)))
        }
    }
}

fn failure(cx: &Cx) -> Response {
    let body =
        format!("{{\"component\":\"function\",\"reason\":\"failed\",\"request_id\":\"{}\"}}", cx.request);
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn cut() -> CallError {
    CallError::sent(Error::new(
        ErrorKind::Crashed,
        "call",
        "the instance was stopped before the function answered",
    ))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a value that is not text")
}

/// A call that goes on in the body of its answer: it counts as running until the last frame, ends with its
/// instance, and its panics end it alone.
struct Streamed {
    body: Body,
    running: Kept,
}

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let body = Pin::new(&mut this.body);
        let polled = this
            .running
            .poll(task, |task| std::panic::catch_unwind(AssertUnwindSafe(|| body.poll_frame(task))));
        match polled {
            Some(Ok(polled)) => polled,
            Some(Err(panic)) => {
                let text = panic_text(&*panic);
                let line = format!("the function's body panicked: {text}");
                this.running.instance.life().log(None, LogStream::Stderr, &line);
                this.body = Body::empty();
                let message = "the function panicked in the middle of its answer";
                Poll::Ready(Some(Err(Error::new(ErrorKind::Crashed, "call", message).into())))
            }
            None => {
                this.body = Body::empty();
                Poll::Ready(Some(Err(cut().error.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The function's end of an upgraded connection, which breaks when the instance is cut.
struct UpgradedIo {
    io: Option<Box<dyn Io>>,
    running: Kept,
}

impl UpgradedIo {
    fn with<T>(
        &mut self,
        task: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut dyn Io>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let io = self.io.as_mut();
        let polled = self.running.poll(task, |task| io.map(|io| poll(Pin::new(&mut **io), task))).flatten();
        polled.unwrap_or_else(|| {
            // The function sees the end of its side at once.
            self.io = None;
            Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, "the instance was stopped")))
        })
    }
}

impl AsyncRead for UpgradedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(task, |io, task| io.poll_read(task, buffer))
    }
}

impl AsyncWrite for UpgradedIo {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.with(task, |io, task| io.poll_write(task, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(task, |io, task| io.poll_flush(task))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(task, |io, task| io.poll_shutdown(task))
    }
}

//! Copies of requests to another revision. Nobody waits for them: a copy costs its request a copy of the body, of
//! bounded size, and what the target can't take is dropped and counted.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderName, Method, Uri, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use sas_core::{
    Body, BoxError, Cx, Invoker, Mirror, MirrorCounts, Payer, Purpose, Request, RequestId, Target, TenantKey,
};
use tokio::time::Instant;

use crate::metrics::GatewayMetrics;

/// Says to an application that a request is a copy, whose answer nobody gets.
pub(crate) const MIRRORED: HeaderName = HeaderName::from_static("x-sas-mirrored");

/// How copies of requests are made, see [`sas_core::Mirror`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MirrorConfig {
    /// Largest body of a request that is copied, in bytes. 64 KiB.
    pub max_body_bytes: usize,
    /// Copies of one service under way at once. 16.
    pub at_once: usize,
    /// Copies of one service that wait for one of these to end; more are dropped. A copy has its place from the start of
    /// its body on. 64.
    pub waiting: usize,
    /// How long a copy may take. 30 s, or the time-out of the target's requests, if that is less.
    pub timeout: Duration,
}

impl Default for MirrorConfig {
    fn default() -> Self {
        Self { max_body_bytes: 64 * 1024, at_once: 16, waiting: 64, timeout: Duration::from_secs(30) }
    }
}

/// The copies of a service's requests.
#[derive(Debug)]
pub(crate) struct Mirroring {
    pub(crate) mirror: Mirror,
    config: MirrorConfig,
    invoker: Weak<dyn Invoker>,
    seen: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    too_large: AtomicU64,
    dropped: AtomicU64,
    incomplete: AtomicU64,
    metrics: Arc<GatewayMetrics>,
    work: Mutex<Work>,
}

#[derive(Debug, Default)]
struct Work {
    running: usize,
    waiting: VecDeque<Copy>,
    /// Those whose bodies are still on their way.
    copying: usize,
    ended: bool,
}

/// What became of a copy; in the order of [`crate::metrics::MIRRORED`].
#[derive(Clone, Copy, Debug)]
enum Ended {
    Answered,
    Failed,
    TooLarge,
    Dropped,
    Incomplete,
}

/// A request that waits to be sent; its body is in memory.
#[derive(Debug)]
struct Copy {
    method: Method,
    uri: Uri,
    headers: http::HeaderMap,
    body: Body,
    id: RequestId,
    tenant: TenantKey,
}

impl Mirroring {
    pub(crate) fn new(
        mirror: Mirror,
        config: MirrorConfig,
        invoker: Weak<dyn Invoker>,
        metrics: Arc<GatewayMetrics>,
    ) -> Arc<Self> {
        let none = AtomicU64::default;
        Arc::new(Self {
            mirror,
            config,
            invoker,
            seen: none(),
            answered: none(),
            failed: none(),
            too_large: none(),
            dropped: none(),
            incomplete: none(),
            metrics,
            work: Mutex::default(),
        })
    }

    pub(crate) fn counts(&self) -> MirrorCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        MirrorCounts {
            answered: read(&self.answered),
            failed: read(&self.failed),
            too_large: read(&self.too_large),
            dropped: read(&self.dropped),
            incomplete: read(&self.incomplete),
        }
    }

    fn count(&self, what: Ended) {
        let count = match what {
            Ended::Answered => &self.answered,
            Ended::Failed => &self.failed,
            Ended::TooLarge => &self.too_large,
            Ended::Dropped => &self.dropped,
            Ended::Incomplete => &self.incomplete,
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.metrics.mirrored[what as usize].increment(1);
    }

    /// What waits is not sent any more.
    pub(crate) fn end(&self) {
        let mut work = self.work.lock();
        work.ended = true;
        work.waiting.clear();
    }

    /// Copies a request that is ready to be sent to an instance, if it is its turn: at once, or as its body passes by.
    pub(crate) fn copy(self: &Arc<Self>, request: &mut Request, id: RequestId, tenant: TenantKey) {
        if !is_chosen(self.seen.fetch_add(1, Ordering::Relaxed), self.mirror.percent) {
            return;
        }
        let said = request.body().size_hint();
        if said.lower() > self.config.max_body_bytes as u64 {
            self.count(Ended::TooLarge);
            return;
        }
        let Some(place) = self.place() else {
            self.count(Ended::Dropped);
            return;
        };
        let headers = request.headers().clone();
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let mut copy = Copy { method, uri, headers, body: Body::empty(), id, tenant };
        match request.body().try_clone() {
            Some(body) => {
                copy.body = body;
                self.send(copy, place);
            }
            None if request.body().is_end_stream() => self.send(copy, place),
            None => {
                let body = std::mem::take(request.body_mut());
                let copying = Copying { place, copy, held: BytesMut::new() };
                *request.body_mut() = Body::new(Passing { body, copying: Some(copying) });
            }
        }
    }

    /// A place for a copy, if there is one: what is held in memory is bounded by them.
    fn place(self: &Arc<Self>) -> Option<Place> {
        let mut work = self.work.lock();
        let held = work.running + work.waiting.len() + work.copying;
        if work.ended || held >= self.config.at_once.saturating_add(self.config.waiting) {
            return None;
        }
        work.copying += 1;
        Some(Place(Arc::clone(self)))
    }

    /// Sends a copy, now or when another one is over.
    fn send(self: &Arc<Self>, copy: Copy, place: Place) {
        drop(place);
        {
            let mut work = self.work.lock();
            if !work.ended && work.running < self.config.at_once {
                work.running += 1;
            } else if !work.ended && work.waiting.len() < self.config.waiting {
                work.waiting.push_back(copy);
                return;
            } else {
                drop(work);
                self.count(Ended::Dropped);
                return;
            }
        }
        tokio::spawn(Arc::clone(self).run(copy));
    }

    /// Sends one copy after the other, as long as there are any.
    async fn run(self: Arc<Self>, first: Copy) {
        let _one = Running(&self);
        let mut next = Some(first);
        while let Some(copy) = next {
            let answered = self.call(copy).await;
            self.count(if answered { Ended::Answered } else { Ended::Failed });
            next = self.work.lock().waiting.pop_front();
        }
    }

    async fn call(&self, copy: Copy) -> bool {
        let Some(invoker) = self.invoker.upgrade() else { return false };
        let deadline = Instant::now() + self.config.timeout;
        let cx = Cx::new(Payer::Tenant(copy.tenant), copy.id, deadline).for_purpose(Purpose::Mirrored);
        let mut request = Request::new(copy.body);
        *request.method_mut() = copy.method;
        *request.uri_mut() = copy.uri;
        *request.version_mut() = Version::HTTP_11;
        *request.headers_mut() = copy.headers;
        let target = Target::Revision(self.mirror.to);
        let Ok(response) = invoker.invoke(target, request, &cx).await else { return false };
        let good = !response.status().is_server_error();
        // Read to its end, so that the instance is not told of a client that went away.
        let mut body = response.into_body();
        let whole = tokio::time::timeout_at(deadline, async {
            while let Some(frame) = body.frame().await {
                if frame.is_err() {
                    return false;
                }
            }
            true
        });
        good && whole.await.unwrap_or(false)
    }
}

/// Of a copy whose body is on its way.
#[derive(Debug)]
struct Place(Arc<Mirroring>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.work.lock().copying -= 1;
    }
}

struct Running<'a>(&'a Mirroring);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.work.lock().running -= 1;
    }
}

/// Whether the `n`-th of a sequence is among the `percent` of a hundred: any hundred in a row have exactly so many, evenly.
pub(crate) fn is_chosen(n: u64, percent: u32) -> bool {
    let (n, percent) = (n % 100, u64::from(percent.min(100)));
    (n + 1) * percent / 100 > n * percent / 100
}

#[derive(Debug)]
struct Copying {
    place: Place,
    copy: Copy,
    /// What has passed by. Copied, since a small frame may be a part of a large buffer.
    held: BytesMut,
}

impl Copying {
    fn count(&self, what: Ended) {
        self.place.0.count(what);
    }

    fn end(mut self) {
        self.copy.body = match self.held.is_empty() {
            true => Body::empty(),
            false => Body::from(self.held.freeze()),
        };
        let mirroring = Arc::clone(&self.place.0);
        mirroring.send(self.copy, self.place);
    }
}

/// A body that copies what passes by, up to the bound.
#[derive(Debug)]
struct Passing {
    body: Body,
    copying: Option<Copying>,
}

impl HttpBody for Passing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let polled = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &polled {
            Some(Ok(frame)) => {
                if let (Some(copying), Some(data)) = (&mut this.copying, frame.data_ref()) {
                    if copying.held.len() + data.len() > copying.place.0.config.max_body_bytes {
                        copying.count(Ended::TooLarge);
                        this.copying = None;
                    } else {
                        copying.held.extend_from_slice(data);
                    }
                }
                if this.body.is_end_stream()
                    && let Some(copying) = this.copying.take()
                {
                    copying.end();
                }
            }
            // Told by the drop.
            Some(Err(_)) => {}
            None => {
                if let Some(copying) = this.copying.take() {
                    copying.end();
                }
            }
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if let Some(copying) = self.copying.take() {
            copying.count(Ended::Incomplete);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_hundred_in_a_row_have_the_share() {
        for percent in [0, 1, 10, 33, 50, 99, 100] {
            for from in [0_u64, 7, 250] {
                let chosen = (from..from + 100).filter(|n| is_chosen(*n, percent)).count();
                assert_eq!(chosen, percent as usize, "{percent} % from {from}");
            }
        }
    }
}

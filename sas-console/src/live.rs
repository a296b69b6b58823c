//! Pages that go on: server-sent events with the parts that have changed.
//!
//! A stream is driven by the browser that reads it: no task runs for a page, and none when nobody looks. Streams of equal
//! rights on one page share what is made of it.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, StatusCode, header};
use http_body::Frame;
use http_body_util::StreamBody;
use parking_lot::Mutex;
use sas_core::{Body, Response};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Api, Problem, Result, Who},
    pages::{Place, logs},
    session::{STREAMS, Session, random},
};

/// Pages that are kept live at once.
const MOST: usize = 256;
/// The shortest time between two looks.
const OFTEN: Duration = Duration::from_millis(500);
/// The longest.
const SELDOM: Duration = Duration::from_secs(10);
/// All looks together take at most one part of so many of a core while there are up to [`FEW`] pages to look at.
const SHARE: u32 = 25;
/// The same when there are more: what is sent, and who asks for it, costs as well.
const SHARE_OF_MANY: u32 = 80;
/// Pages that come as often as one alone would, as far as [`SHARE`] lets them.
const FEW: usize = 10;
/// How often a line is sent while nothing happens, so that dead connections are noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The pages that somebody looks at.
#[derive(Debug)]
pub(crate) struct Live {
    streams: Arc<Semaphore>,
    /// Ends all streams: nobody waits for a browser to go.
    stop: CancellationToken,
    pages: Mutex<HashMap<Key, Arc<Shared>>>,
    /// Tells the streams of this process from those before it.
    began: String,
    /// Stands in forms for the mark of the session, which each tab gets in its place. Nobody who writes a line or a name
    /// knows it.
    mark: String,
}

/// A page, and what those who look at it may: they see the same.
type Key = (Rights, String);

/// What decides what the admin API answers: the scopes, and the namespace that a token is held to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Rights(Vec<String>, Option<String>);

impl Rights {
    fn of(who: &Who) -> Self {
        Self(who.scopes.clone(), who.namespace.clone())
    }
}

/// A page that tabs of equal rights look at.
#[derive(Debug, Default)]
struct Shared {
    last: tokio::sync::Mutex<Option<Arc<Look>>>,
    /// What a look took, in nanoseconds.
    took: AtomicU64,
}

/// The parts of a page as they were at one time.
#[derive(Debug)]
struct Look {
    at: Instant,
    took: Duration,
    parts: Vec<(&'static str, Arc<str>)>,
}

impl Live {
    /// No streams; those to come end with `stop`.
    pub(crate) fn new(stop: CancellationToken) -> Self {
        // Without randomness no session can be opened either.
        let mark = random().unwrap_or_default();
        let began =
            random().unwrap_or_default().chars().filter(char::is_ascii_alphanumeric).take(8).collect();
        Self { streams: Arc::new(Semaphore::new(MOST)), stop, pages: Mutex::default(), began, mark }
    }

    /// The stream of a page. `after` is the id of the last event that was seen, or the last line of a log that is on the
    /// page: what came since is sent.
    pub(crate) fn stream(
        self: &Arc<Self>,
        target: &str,
        place: Place,
        who: &Who,
        session: Arc<Session>,
        api: Api,
        after: Option<&str>,
    ) -> Result<Response> {
        let permit = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            let detail = format!("{MOST} pages are kept live already: this one does not change by itself");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        })?;
        let own = Arc::clone(&session.streams).try_acquire_owned().map_err(|_| {
            let detail = format!(
                "{STREAMS} pages of this session are kept live already: this one does not change by itself"
            );
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        })?;
        if self.mark.is_empty() {
            let detail =
                "the system had no randomness when the console began: this page does not change by itself";
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
        }
        let viewer = Viewer {
            live: Arc::clone(self),
            shared: self.share((Rights::of(who), target.to_owned())),
            place,
            session,
            api,
            sent: HashMap::new(),
            line: after.map_or(0, |after| self.line(after)),
            first: true,
            troubled: false,
            told: Instant::now(),
            _permits: (permit, own),
        };
        let frames = stream::unfold(Some(viewer), async |viewer| {
            let mut viewer = viewer?;
            let stop = viewer.live.stop.clone();
            let text = tokio::select! {
                biased;
                () = stop.cancelled() => None,
                text = viewer.next() => text,
            }?;
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from(text))), Some(viewer)))
        });
        let mut response = Response::new(Body::new(StreamBody::new(frames)));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        Ok(response)
    }

    /// Joins those who look at a page.
    fn share(self: &Arc<Self>, key: Key) -> Share {
        let page = Arc::clone(self.pages.lock().entry(key.clone()).or_default());
        Share { live: Arc::clone(self), key, page: Some(page) }
    }

    /// The number of the line that an id or a page names. Numbers begin anew with the process: another one's name nothing.
    fn line(&self, after: &str) -> u64 {
        match after.split_once('-') {
            Some((began, line)) if began == self.began => line.parse().unwrap_or(0),
            Some(_) => 0,
            None => after.parse().unwrap_or(0),
        }
    }

    /// How long it is until the next look at a page, so that all of them together stay within their share of a core.
    fn pause(&self) -> Duration {
        let pages = self.pages.lock();
        let took: u64 = pages.values().map(|page| page.took.load(Ordering::Relaxed)).sum();
        let share = if pages.len() > FEW { SHARE_OF_MANY } else { SHARE };
        (Duration::from_nanos(took) * share).clamp(OFTEN, SELDOM)
    }
}

/// One of those who look at a page; the last one who goes takes it along.
#[derive(Debug)]
struct Share {
    live: Arc<Live>,
    key: Key,
    /// `None` once it is given back.
    page: Option<Arc<Shared>>,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.page = None;
        let mut pages = self.live.pages.lock();
        if pages.get(&self.key).is_some_and(|page| Arc::strong_count(page) == 1) {
            pages.remove(&self.key);
        }
    }
}

/// One tab.
#[derive(Debug)]
struct Viewer {
    live: Arc<Live>,
    shared: Share,
    place: Place,
    session: Arc<Session>,
    api: Api,
    /// What the tab has of each part, with the mark that stands for its session's.
    sent: HashMap<&'static str, Arc<str>>,
    line: u64,
    first: bool,
    /// Whether the tab was told last that its page is old.
    troubled: bool,
    told: Instant,
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Viewer {
    /// The next text for the tab; `None`: it is over.
    async fn next(&mut self) -> Option<String> {
        loop {
            let pause = self.live.pause();
            if !std::mem::take(&mut self.first) {
                tokio::time::sleep(pause).await;
            }
            let (mut text, mut troubled) = (String::new(), false);
            match self.look(pause).await {
                Ok(look) => {
                    for (id, content) in &look.parts {
                        if self.has(id, content) {
                            continue;
                        }
                        match content.contains(&self.live.mark) {
                            true => {
                                part(&mut text, id, &content.replace(&self.live.mark, &self.session.form))
                            }
                            false => part(&mut text, id, content),
                        }
                        self.sent.insert(id, Arc::clone(content));
                    }
                }
                Err(problem) if problem.is(StatusCode::UNAUTHORIZED) => {
                    event(&mut text, "over", None, "signed out");
                    self.told = Instant::now();
                    return if self.sent.remove("over").is_some() {
                        None
                    } else {
                        self.sent.insert("over", Arc::from(""));
                        Some(text)
                    };
                }
                // Of the moment: the page keeps what it has, and says that it is old.
                Err(problem) => {
                    troubled = true;
                    event(&mut text, "problem", None, &problem.sentence());
                }
            }
            if let Err(problem) = self.follow(&mut text).await {
                troubled = true;
                event(&mut text, "problem", None, &problem.sentence());
            }
            if std::mem::replace(&mut self.troubled, troubled) && !troubled {
                event(&mut text, "fine", None, "live");
            }
            if text.is_empty() && self.told.elapsed() < KEEP_ALIVE {
                continue;
            }
            if text.is_empty() {
                text.push_str(":\n\n");
            }
            self.told = Instant::now();
            return Some(text);
        }
    }

    fn has(&self, id: &str, content: &Arc<str>) -> bool {
        self.sent.get(id).is_some_and(|sent| Arc::ptr_eq(sent, content) || sent == content)
    }

    /// Looks at the page, or takes what another tab of the same rights has just seen.
    async fn look(&mut self, pause: Duration) -> Result<Arc<Look>> {
        if !self.session.is_open() {
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "signed out"));
        }
        // Each tab asks for itself: what another one sees is for those alone who may see it now.
        let who: Who = self.api.get("/v1/whoami").await?;
        if self.shared.key.0 != Rights::of(&who) {
            let target = self.shared.key.1.clone();
            self.shared = self.live.share((Rights::of(&who), target));
        }
        let shared = self.shared.page.as_ref().expect("it is given back at the end only");
        let mut last = shared.last.lock().await;
        if let Some(look) = &*last
            && look.at.elapsed() < pause.mul_f64(0.9)
        {
            return Ok(Arc::clone(look));
        }
        let (seen, took) = timed(async {
            // Of a log nothing changes but its lines, which each tab follows from where it is.
            if matches!(self.place, Place::Logs(..)) {
                return Ok(Vec::new());
            }
            let page = self.place.show(&self.api, &who, &self.live.mark).await?;
            let parts = page.regions.into_iter().map(|part| (part.id, Arc::from(part.content.into_string())));
            Ok::<_, Problem>(parts.collect())
        })
        .await;
        // Of two looks the shorter one: the longer one may have been pushed aside by others.
        let before = last.as_ref().map_or(took, |last| last.took);
        shared.took.store(u64::try_from(took.min(before).as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let look = Arc::new(Look { at: Instant::now(), took, parts: seen? });
        *last = Some(Arc::clone(&look));
        Ok(look)
    }

    /// Lines of a log that came since.
    async fn follow(&mut self, text: &mut String) -> Result<()> {
        let Place::Logs(service, filter) = &self.place else { return Ok(()) };
        let (lines, last) = logs::since(service, filter, &self.api, self.line).await?;
        let lines = lines.into_string();
        if !lines.is_empty() {
            event(text, "lines", Some(&format!("{}-{last}", self.live.began)), &lines);
        }
        self.line = last;
        Ok(())
    }
}

/// Writes a part of a page.
fn part(text: &mut String, id: &str, content: &str) {
    text.reserve(content.len() + 64);
    event(text, "part", None, &format!("{id}\n{content}"));
}

/// Writes an event. Its data may have several lines.
fn event(text: &mut String, name: &str, id: Option<&str>, data: &str) {
    if let Some(id) = id {
        text.push_str("id: ");
        text.push_str(id);
        text.push('\n');
    }
    text.push_str("event: ");
    text.push_str(name);
    text.push('\n');
    for line in data.split(['\n', '\r']) {
        text.push_str("data: ");
        text.push_str(line);
        text.push('\n');
    }
    text.push('\n');
}

/// How long a future was on a thread: what it waited for is not counted.
async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let (mut future, mut took) = (pin!(future), Duration::ZERO);
    let done = std::future::poll_fn(|cx| {
        let began = Instant::now();
        let polled = future.as_mut().poll(cx);
        took += began.elapsed();
        match polled {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    (done, took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_several_lines_is_one_event() {
        let mut text = String::new();
        event(&mut text, "part", Some("7"), "one\r\ntwo\nevent: forged");
        assert_eq!(text, "id: 7\nevent: part\ndata: one\ndata: \ndata: two\ndata: event: forged\n\n");
    }

    #[test]
    fn lines_of_another_process_name_nothing() {
        let live = Live::new(CancellationToken::new());
        assert_eq!(live.line(&format!("{}-42", live.began)), 42);
        assert_eq!(live.line("elsewhere-42"), 0);
        assert_eq!(live.line("42"), 42);
    }
}

//! One eye on all connections of a server.
//!
//! A timer per connection would cost memory for each idle one and work for each request. Instead a connection
//! leaves marks (a byte came, a request began, a write is stuck), and one task per server looks at them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use sas_core::{Clock as _, SystemClock};
use tokio::time::Instant;

use super::config::ServerConfig;

/// Milliseconds of the server's life, coarse: as of the last look.
type Tick = u32;

/// What a connection is told. Ordered: a later signal goes before an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Signal {
    /// Nothing yet.
    Continue,
    /// Finish what there is, take nothing new.
    Drain,
    /// It overran a limit.
    Overrun,
    /// Its request's head took too long: an overrun that is owed an answer.
    TooSlow,
    /// It takes no byte: nothing more can be said to it.
    Stuck,
    /// End at once.
    Abort,
}

impl Signal {
    const ALL: [Self; 6] =
        [Self::Continue, Self::Drain, Self::Overrun, Self::TooSlow, Self::Stuck, Self::Abort];
}

/// Where bytes of an HTTP/1.1 connection belong that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// The head of a request begins with them.
    Head,
    /// The head of a request goes on.
    MoreOfHead,
    /// A body, perhaps.
    Body,
    /// The next request, before the answer to the one before.
    Ahead,
}

/// The marks of one connection.
#[derive(Debug)]
pub(super) struct Watched {
    id: u64,
    all: Arc<Watch>,
    /// Requests that are being answered.
    busy: AtomicU32,
    /// Bytes of the next request's head have come.
    reading_head: AtomicBool,
    /// When it last fell idle, or when the head's first byte came.
    since: AtomicU32,
    /// When a write got stuck; 0: none is.
    stuck: AtomicU32,
    /// The body of a request is still to come.
    uploading: AtomicBool,
    /// The connection speaks another protocol from now on.
    upgraded: AtomicBool,
    /// A request's body was given up before its end.
    cut_short: AtomicBool,
    /// When the client closed its sending side while it was owed an answer; 0: it did not.
    half_closed: AtomicU32,
    /// Whom to tell of that end once the answer is written.
    reader: Mutex<Option<Waker>>,
    signal: AtomicU8,
    /// Whom to wake for a signal. Two tokens and a notify, asked with every poll, would take six locks per request.
    waker: Mutex<Option<Waker>>,
}

/// All connections of a server.
#[derive(Debug)]
pub(super) struct Watch {
    born: Instant,
    now: AtomicU32,
    /// Seconds since the epoch, coarse like `now`.
    seconds: AtomicU64,
    next: AtomicU64,
    connections: Mutex<HashMap<u64, Arc<Watched>>>,
    /// What new connections are told too.
    standing: AtomicU8,
    header_timeout: Tick,
    idle_timeout: Tick,
    write_timeout: Tick,
    half_close: Tick,
}

fn ticks(time: Duration) -> Tick {
    Tick::try_from(time.as_millis()).unwrap_or(Tick::MAX)
}

fn epoch_seconds() -> u64 {
    u64::try_from(SystemClock.now().as_secs()).unwrap_or(0)
}

impl Watch {
    pub(super) fn new(config: &ServerConfig) -> Arc<Self> {
        Arc::new(Self {
            born: Instant::now(),
            now: AtomicU32::new(1),
            seconds: AtomicU64::new(epoch_seconds()),
            next: AtomicU64::new(0),
            connections: Mutex::default(),
            standing: AtomicU8::new(Signal::Continue as u8),
            header_timeout: ticks(config.header_timeout),
            idle_timeout: ticks(config.idle_timeout),
            write_timeout: ticks(config.write_timeout),
            half_close: ticks(config.half_close),
        })
    }

    /// How often to look: often enough that no limit is overrun by more than a quarter.
    pub(super) fn period(&self) -> Duration {
        let shortest =
            self.header_timeout.min(self.idle_timeout).min(self.write_timeout).min(self.half_close);
        Duration::from_millis(u64::from(shortest / 4)).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }

    /// Seconds since the epoch, a second late at most.
    pub(super) fn seconds(&self) -> u64 {
        self.seconds.load(Ordering::Relaxed)
    }

    /// Connections that are open.
    pub(super) fn open(&self) -> usize {
        self.connections.lock().len()
    }

    pub(super) fn enter(self: &Arc<Self>) -> Arc<Watched> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let watched = Arc::new(Watched {
            id,
            all: Arc::clone(self),
            busy: AtomicU32::new(0),
            reading_head: AtomicBool::new(false),
            since: AtomicU32::new(self.now.load(Ordering::Relaxed)),
            stuck: AtomicU32::new(0),
            uploading: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            cut_short: AtomicBool::new(false),
            half_closed: AtomicU32::new(0),
            reader: Mutex::new(None),
            signal: AtomicU8::new(Signal::Continue as u8),
            waker: Mutex::new(None),
        });
        self.connections.lock().insert(id, Arc::clone(&watched));
        // After it can be found: whoever says a signal to all either finds it, or said it before this.
        watched.tell(Signal::ALL[usize::from(self.standing.load(Ordering::SeqCst))]);
        watched
    }

    /// Tells all connections, and those to come.
    pub(super) fn tell_all(&self, signal: Signal) {
        self.standing.fetch_max(signal as u8, Ordering::SeqCst);
        let connections: Vec<_> = self.connections.lock().values().cloned().collect();
        for connection in connections {
            connection.tell(signal);
        }
    }

    /// Ends connections that overran a limit. How many there were, by limit: head, idle, write.
    pub(super) fn look(&self) -> [u32; 3] {
        let now = ticks(self.born.elapsed()).max(1);
        self.now.store(now, Ordering::Relaxed);
        self.seconds.store(epoch_seconds(), Ordering::Relaxed);
        let mut ended = [0; 3];
        let connections: Vec<_> = self.connections.lock().values().cloned().collect();
        for watched in &connections {
            let waited = |since: &AtomicU32| now.saturating_sub(since.load(Ordering::Relaxed));
            if watched.half_closed.load(Ordering::Relaxed) != 0
                && waited(&watched.half_closed) >= self.half_close
            {
                watched.tell(Signal::Stuck);
                continue;
            }
            let overrun = if watched.stuck.load(Ordering::Relaxed) != 0 {
                (waited(&watched.stuck) >= self.write_timeout).then_some(2)
            } else if watched.busy.load(Ordering::Relaxed) > 0 {
                None
            } else if watched.reading_head.load(Ordering::Relaxed) {
                (waited(&watched.since) >= self.header_timeout).then_some(0)
            } else {
                (waited(&watched.since) >= self.idle_timeout).then_some(1)
            };
            if let Some(limit) = overrun {
                ended[limit] += 1;
                watched.tell([Signal::TooSlow, Signal::Overrun, Signal::Stuck][limit]);
            }
        }
        ended
    }
}

impl Watched {
    /// Bytes came. Where they belong, as far as is known.
    pub(super) fn read(&self) -> Came {
        if self.is_busy() {
            let body = self.uploading.load(Ordering::Relaxed) || self.upgraded.load(Ordering::Relaxed);
            return if body { Came::Body } else { Came::Ahead };
        }
        let begins = !self.reading_head.load(Ordering::Relaxed);
        if begins {
            self.mark();
            self.reading_head.store(true, Ordering::Relaxed);
        }
        if self.upgraded.load(Ordering::Relaxed)
            || self.uploading.load(Ordering::Relaxed)
            || self.was_cut_short()
        {
            // It may be the rest of a body that nobody wanted.
            Came::Body
        } else if begins {
            Came::Head
        } else {
            Came::MoreOfHead
        }
    }

    /// What comes next is of another protocol.
    pub(super) fn upgrades(&self) {
        self.upgraded.store(true, Ordering::Relaxed);
    }

    /// A write went through, or could not.
    pub(super) fn wrote(&self, went: bool) {
        let stuck = self.stuck.load(Ordering::Relaxed);
        if went && stuck != 0 {
            self.stuck.store(0, Ordering::Relaxed);
        } else if !went && stuck == 0 {
            self.stuck.store(self.all.now.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// A request's body begins, or has come whole.
    pub(super) fn uploads(&self, uploading: bool) {
        self.uploading.store(uploading, Ordering::Relaxed);
    }

    /// Nobody wants the rest of a request's body.
    pub(super) fn cut_short(&self) {
        self.cut_short.store(true, Ordering::Relaxed);
    }

    pub(super) fn was_cut_short(&self) -> bool {
        self.cut_short.load(Ordering::Relaxed)
    }

    /// The client has closed its sending side. Whether that is left unsaid, since it is owed an answer to a whole
    /// request.
    pub(super) fn hides_end(&self, cx: &Context<'_>) -> bool {
        if !self.is_busy() || self.uploading.load(Ordering::Relaxed) || self.all.half_close == 0 {
            return false;
        }
        if self.half_closed.load(Ordering::Relaxed) == 0 {
            self.half_closed.store(self.all.now.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        *self.reader.lock() = Some(cx.waker().clone());
        true
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    /// A request has come whole; it is over when the guard goes.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.reading_head.store(false, Ordering::Relaxed);
        self.uploads(false);
        self.half_closed.store(0, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    fn tell(&self, signal: Signal) {
        if self.signal.fetch_max(signal as u8, Ordering::SeqCst) < signal as u8
            && let Some(waker) = self.waker.lock().take()
        {
            waker.wake();
        }
    }

    /// Whether the request that is answered now is the connection's last, since it was told to drain.
    pub(super) fn is_draining(&self) -> bool {
        self.signal.load(Ordering::SeqCst) == Signal::Drain as u8
    }

    /// Ready with a signal later than `known`.
    pub(super) fn poll_signal(&self, known: Signal, cx: &mut Context<'_>) -> Poll<Signal> {
        {
            let mut waker = self.waker.lock();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        // Read after the waker is there: a signal said in between wakes it.
        let signal = Signal::ALL[usize::from(self.signal.load(Ordering::SeqCst))];
        if signal > known { Poll::Ready(signal) } else { Poll::Pending }
    }

    /// Forgets the connection.
    pub(super) fn leave(&self) {
        self.all.connections.lock().remove(&self.id);
    }

    fn mark(&self) {
        self.since.store(self.all.now.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Busy(Arc<Watched>);

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.busy.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.mark();
            if self.0.half_closed.load(Ordering::Relaxed) != 0
                && let Some(reader) = self.0.reader.lock().take()
            {
                reader.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Arc<Watch> {
        let config = ServerConfig {
            header_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(3),
            ..ServerConfig::default()
        };
        Watch::new(&config)
    }

    #[test]
    fn a_head_is_told_from_bodies_and_from_what_comes_ahead() {
        let watch = watch();
        let connection = watch.enter();
        assert_eq!((connection.read(), connection.read()), (Came::Head, Came::MoreOfHead));
        let busy = connection.begin();
        assert_eq!(connection.read(), Came::Ahead);
        connection.uploads(true);
        assert_eq!(connection.read(), Came::Body);
        connection.uploads(false);
        drop(busy);
        assert_eq!((connection.read(), connection.read()), (Came::Head, Came::MoreOfHead));
        let busy = connection.begin();
        connection.uploads(true);
        connection.cut_short();
        drop(busy);
        assert_eq!(connection.read(), Came::Body, "the rest of an upload that was given up");
        drop(connection.begin());
        assert_eq!(connection.read(), Came::Body, "nobody knows where it ended");
        let other = watch.enter();
        let busy = other.begin();
        other.upgrades();
        assert_eq!(other.read(), Came::Body);
        drop(busy);
        assert_eq!(other.read(), Came::Body, "another protocol");
    }

    async fn after(watch: &Watch, time: Duration) -> [u32; 3] {
        tokio::time::advance(time).await;
        watch.look()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_drips_in_is_cut_from_its_first_byte_on() {
        let watch = watch();
        let slow = watch.enter();
        slow.read();
        assert_eq!(after(&watch, Duration::from_millis(900)).await, [0, 0, 0]);
        slow.read();
        assert_eq!(after(&watch, Duration::from_millis(200)).await, [1, 0, 0]);
        assert_eq!(std::future::poll_fn(|cx| slow.poll_signal(Signal::Continue, cx)).await, Signal::TooSlow);
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_connection_is_left_alone_and_an_idle_one_ends() {
        let watch = watch();
        let connection = watch.enter();
        connection.read();
        let busy = connection.begin();
        assert_eq!(after(&watch, Duration::from_secs(60)).await, [0, 0, 0]);
        drop(busy);
        assert_eq!(after(&watch, Duration::from_secs(4)).await, [0, 0, 0]);
        assert_eq!(after(&watch, Duration::from_secs(2)).await, [0, 1, 0]);
        connection.leave();
        assert_eq!((after(&watch, Duration::from_secs(9)).await, watch.open()), ([0, 0, 0], 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_word_reaches_those_that_are_there_and_those_that_come() {
        let watch = watch();
        let there = watch.enter();
        let waiting = tokio::spawn({
            let there = Arc::clone(&there);
            async move { std::future::poll_fn(|cx| there.poll_signal(Signal::Continue, cx)).await }
        });
        tokio::task::yield_now().await;
        watch.tell_all(Signal::Drain);
        assert_eq!(waiting.await.unwrap(), Signal::Drain);
        let later = watch.enter();
        let nobody = &mut Context::from_waker(Waker::noop());
        assert_eq!(later.poll_signal(Signal::Continue, nobody), Poll::Ready(Signal::Drain));
        assert_eq!(later.poll_signal(Signal::Drain, nobody), Poll::Pending, "it is said once");
        watch.tell_all(Signal::Abort);
        assert_eq!(later.poll_signal(Signal::Drain, nobody), Poll::Ready(Signal::Abort));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut() {
        let watch = watch();
        let connection = watch.enter();
        let _busy = connection.begin();
        connection.wrote(false);
        assert_eq!(after(&watch, Duration::from_secs(2)).await, [0, 0, 0]);
        connection.wrote(true);
        assert_eq!(after(&watch, Duration::from_secs(2)).await, [0, 0, 0]);
        connection.wrote(false);
        assert_eq!(after(&watch, Duration::from_secs(4)).await, [0, 0, 1]);
    }
}

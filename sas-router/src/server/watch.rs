//! One eye on all connections of a server.
//!
//! A timer per connection would cost memory for each idle one and work for each request. Instead a connection
//! leaves marks (a byte came, a request began, a write is stuck), and one task per server looks at them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::config::ServerConfig;

/// Milliseconds of the server's life, coarse: as of the last look.
type Tick = u32;

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
    too_slow: AtomicBool,
    end: Notify,
}

/// All connections of a server.
#[derive(Debug)]
pub(super) struct Watch {
    born: Instant,
    now: AtomicU32,
    next: AtomicU64,
    connections: Mutex<HashMap<u64, Arc<Watched>>>,
    header_timeout: Tick,
    idle_timeout: Tick,
    write_timeout: Tick,
}

fn ticks(time: Duration) -> Tick {
    Tick::try_from(time.as_millis()).unwrap_or(Tick::MAX)
}

impl Watch {
    pub(super) fn new(config: &ServerConfig) -> Arc<Self> {
        Arc::new(Self {
            born: Instant::now(),
            now: AtomicU32::new(1),
            next: AtomicU64::new(0),
            connections: Mutex::default(),
            header_timeout: ticks(config.header_timeout),
            idle_timeout: ticks(config.idle_timeout),
            write_timeout: ticks(config.write_timeout),
        })
    }

    /// How often to look: often enough that no limit is overrun by more than a quarter.
    pub(super) fn period(&self) -> Duration {
        let shortest = self.header_timeout.min(self.idle_timeout).min(self.write_timeout);
        Duration::from_millis(u64::from(shortest / 4)).clamp(Duration::from_millis(5), Duration::from_secs(1))
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
            too_slow: AtomicBool::new(false),
            end: Notify::new(),
        });
        self.connections.lock().insert(id, Arc::clone(&watched));
        watched
    }

    /// Ends connections that overran a limit. How many there were, by limit: head, idle, write.
    pub(super) fn look(&self) -> [u32; 3] {
        let now = ticks(self.born.elapsed()).max(1);
        self.now.store(now, Ordering::Relaxed);
        let mut ended = [0; 3];
        for watched in self.connections.lock().values() {
            let waited = |since: &AtomicU32| now.saturating_sub(since.load(Ordering::Relaxed));
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
                watched.too_slow.store(limit == 0, Ordering::Relaxed);
                watched.end.notify_one();
            }
        }
        ended
    }
}

impl Watched {
    /// Bytes came.
    pub(super) fn read(&self) {
        if self.busy.load(Ordering::Relaxed) == 0 && !self.reading_head.load(Ordering::Relaxed) {
            self.mark();
            self.reading_head.store(true, Ordering::Relaxed);
        }
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

    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    /// Whether the end came because a head took too long.
    pub(super) fn was_too_slow(&self) -> bool {
        self.too_slow.load(Ordering::Relaxed)
    }

    /// A request has come whole; it is over when the guard goes.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.reading_head.store(false, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// Resolves when the connection overran a limit.
    pub(super) async fn overrun(&self) {
        self.end.notified().await;
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Arc<Watch> {
        let mut config = ServerConfig::default();
        config.header_timeout = Duration::from_secs(1);
        config.idle_timeout = Duration::from_secs(5);
        config.write_timeout = Duration::from_secs(3);
        Watch::new(&config)
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
        slow.overrun().await;
        assert!(slow.was_too_slow());
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

//! Starts that did not complete at once. The pool drives them itself: a start costs a place here, not a task, and those
//! that can go on at the same time wake one task together.

use std::{
    fmt,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use sas_core::{Error, ErrorKind, InstanceId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    core::Core,
    shard::Shard,
    start::{Guard, Made, panicked},
    sync::{AtomicBool, Mutex, Ordering},
};

/// How long one step of a start may keep the others waiting before it gets a task of its own.
const LONG: Duration = Duration::from_micros(200);

pub(crate) type Work = Pin<Box<dyn Future<Output = Made> + Send>>;

/// Starts that are under way.
#[derive(Clone)]
pub(crate) struct Nursery(Arc<Inner>);

struct Inner {
    beds: Mutex<Beds>,
    ready: Arc<Ready>,
    ended: CancellationToken,
}

#[derive(Default)]
struct Beds {
    beds: Vec<Bed>,
    free: Vec<u32>,
    /// The driver looks for starts that are too late at this time, or when `None` never.
    looks: Option<Instant>,
    driven: bool,
    closed: bool,
}

struct Bed {
    wakes: Arc<Wakes>,
    waker: Waker,
    /// It was woken before it was put in.
    early: bool,
    start: Option<Start>,
}

struct Start {
    work: Work,
    shard: Arc<Shard>,
    id: InstanceId,
    deadline: Instant,
}

/// Which starts can go on.
struct Ready(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    beds: Vec<u32>,
    /// The driver has to look at the deadlines again.
    deadlines: bool,
    /// Set while the driver sleeps.
    driver: Option<Waker>,
}

impl Ready {
    fn push(&self, bed: u32) {
        let driver = {
            let mut list = self.0.lock();
            list.beds.push(bed);
            list.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Has the driver look at the deadlines: one is sooner than those that it knows.
    fn look(&self) {
        let driver = {
            let mut list = self.0.lock();
            list.deadlines = true;
            list.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

/// The waker of a bed. It outlives the starts in it: one that is woken for an earlier start is polled once in vain.
struct Wakes {
    ready: Arc<Ready>,
    bed: u32,
    /// It is on the list.
    listed: AtomicBool,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.listed.swap(true, Ordering::AcqRel) {
            self.ready.push(self.bed);
        }
    }
}

impl Nursery {
    pub(crate) fn new(ended: CancellationToken) -> Self {
        let ready = Arc::new(Ready(Mutex::new(List::default())));
        Self(Arc::new(Inner { beds: Mutex::new(Beds::default()), ready, ended }))
    }

    /// Polls a start for the first time, and keeps it if it is not over.
    pub(crate) fn admit(
        &self,
        core: &Core,
        shard: &Arc<Shard>,
        id: InstanceId,
        mut work: Work,
        deadline: Instant,
    ) -> Option<Made> {
        let (bed, waker) = self.0.beds.lock().bed(&self.0.ready);
        let polled = poll(&mut work, &waker);
        let mut beds = self.0.beds.lock();
        if polled.is_ready() || beds.closed {
            beds.free.push(bed);
            drop(beds);
            return Some(match polled {
                Poll::Ready(made) => made,
                Poll::Pending => shut_down(),
            });
        }
        let at = &mut beds.beds[bed as usize];
        at.start = Some(Start { work, shard: Arc::clone(shard), id, deadline });
        let early = std::mem::take(&mut at.early);
        let sooner = beds.looks.is_none_or(|looks| deadline < looks);
        if sooner {
            beds.looks = Some(deadline);
        }
        let begins = !std::mem::replace(&mut beds.driven, true);
        drop(beds);
        if begins {
            core.spawn(drive(Driver { inner: Arc::clone(&self.0), batch: Vec::new() }));
        }
        if early {
            self.0.ready.push(bed);
        }
        if sooner {
            self.0.ready.look();
        }
        None
    }
}

impl Beds {
    fn bed(&mut self, ready: &Arc<Ready>) -> (u32, Waker) {
        let bed = self.free.pop().unwrap_or_else(|| {
            let bed = self.beds.len() as u32;
            let wakes = Arc::new(Wakes { ready: Arc::clone(ready), bed, listed: AtomicBool::new(false) });
            let waker = Waker::from(Arc::clone(&wakes));
            self.beds.push(Bed { wakes, waker, early: false, start: None });
            bed
        });
        let at = &mut self.beds[bed as usize];
        at.early = false;
        (bed, at.waker.clone())
    }

    /// Takes a start out to poll it.
    fn take(&mut self, bed: u32) -> Option<(Start, Waker)> {
        let at = &mut self.beds[bed as usize];
        // From here on a wake-up puts it on the list again.
        at.wakes.listed.store(false, Ordering::Release);
        match at.start.take() {
            Some(start) => Some((start, at.waker.clone())),
            None => {
                at.early = true;
                None
            }
        }
    }

    /// Takes out what is too late, and says when to look again.
    fn late(&mut self, now: Instant) -> Vec<Start> {
        let mut late = Vec::new();
        self.looks = None;
        for (bed, at) in self.beds.iter_mut().enumerate() {
            let Some(start) = &at.start else { continue };
            if start.deadline <= now {
                late.extend(at.start.take());
                self.free.push(bed as u32);
            } else {
                self.looks = Some(self.looks.map_or(start.deadline, |looks| looks.min(start.deadline)));
            }
        }
        late
    }
}

/// The task that polls what can go on.
struct Driver {
    inner: Arc<Inner>,
    batch: Vec<u32>,
}

async fn drive(mut driver: Driver) {
    let inner = Arc::clone(&driver.inner);
    let mut ended = pin!(inner.ended.cancelled());
    let mut sleep = pin!(tokio::time::sleep_until(Instant::now()));
    poll_fn(|cx| {
        if ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        driver.step();
        loop {
            let looks = driver.inner.beds.lock().looks;
            let Some(looks) = looks else { break };
            if sleep.deadline() != looks {
                sleep.as_mut().reset(looks);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                break;
            }
            driver.expire();
        }
        let mut list = driver.inner.ready.0.lock();
        if list.beds.is_empty() && !std::mem::take(&mut list.deadlines) {
            list.driver = Some(cx.waker().clone());
        } else {
            // The next batch has its own turn: others on this thread have theirs between.
            drop(list);
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await;
}

impl Driver {
    /// Polls the starts that can go on.
    fn step(&mut self) {
        std::mem::swap(&mut self.inner.ready.0.lock().beds, &mut self.batch);
        if self.batch.is_empty() {
            return;
        }
        let mut begin = Instant::now();
        for bed in self.batch.drain(..) {
            let taken = self.inner.beds.lock().take(bed);
            let Some((mut start, waker)) = taken else { continue };
            let polled = poll(&mut start.work, &waker);
            let end = Instant::now();
            let took = end - std::mem::replace(&mut begin, end);
            match polled {
                Poll::Ready(made) => {
                    self.inner.beds.lock().free.push(bed);
                    start.over(made);
                }
                Poll::Pending if took > LONG => {
                    self.inner.beds.lock().free.push(bed);
                    start.move_out(&self.inner.ended);
                }
                Poll::Pending => self.inner.beds.lock().beds[bed as usize].start = Some(start),
            }
        }
    }

    fn expire(&self) {
        let late = self.inner.beds.lock().late(Instant::now());
        for start in late {
            start.over(too_late());
        }
    }
}

impl Drop for Driver {
    /// The pool ends, or the async runtime does: nothing is left that nobody polls.
    fn drop(&mut self) {
        let left: Vec<Start> = {
            let mut beds = self.inner.beds.lock();
            beds.closed = true;
            beds.beds.iter_mut().filter_map(|bed| bed.start.take()).collect()
        };
        for start in left {
            start.over(shut_down());
        }
    }
}

impl Start {
    /// It is over.
    fn over(self, made: Made) {
        let Self { work, shard, id, .. } = self;
        // What it left behind is for its runtime to clean up, before anybody hears of it.
        drop(work);
        shard.started(id, made.result, made.from_stem, None);
    }

    /// Goes on in a task of its own.
    fn move_out(self, ended: &CancellationToken) {
        let Self { mut work, shard, id, deadline } = self;
        let core = Arc::clone(&shard.core);
        let ended = ended.clone();
        core.spawn(async move {
            let guard = Guard::new(&shard, id);
            let made = tokio::select! {
                biased;
                made = poll_fn(|cx| poll(&mut work, cx.waker())) => made,
                () = tokio::time::sleep_until(deadline) => too_late(),
                () = ended.cancelled() => shut_down(),
            };
            guard.disarm();
            Start { work, shard: Arc::clone(&shard), id, deadline }.over(made);
        });
    }
}

/// Polls a start; one whose runtime panics is over.
fn poll(work: &mut Work, waker: &Waker) -> Poll<Made> {
    let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(&mut Context::from_waker(waker))));
    polled.unwrap_or_else(|_| Poll::Ready(Made::failed(panicked())))
}

fn too_late() -> Made {
    Made::failed(Error::new(
        ErrorKind::Timeout,
        "start",
        "the runtime did not end the start at its deadline (timeouts.start)",
    ))
}

fn shut_down() -> Made {
    Made::failed(Error::new(ErrorKind::Unavailable, "start", "the pool shuts down"))
}

impl fmt::Debug for Nursery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nursery")
    }
}

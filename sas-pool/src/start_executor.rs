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

use sas_core::{Error, ErrorKind, Instance, InstanceId, Result};
use tokio::time::Instant;

use crate::{
    executor::Executor,
    sync::{AtomicBool, Mutex, Ordering},
};

/// How long one step of a start may keep the others waiting before it gets a task of its own.
const LONG: Duration = Duration::from_micros(200);

pub(crate) type Work = Pin<Box<dyn Future<Output = Made> + Send>>;

/// What a start made.
pub(crate) struct Made {
    pub(crate) result: Result<Arc<dyn Instance>>,
    pub(crate) from_stem: bool,
}

impl Made {
    pub(crate) fn failed(error: Error) -> Self {
        Self { result: Err(error), from_stem: false }
    }
}

/// Who asked for a start, and is told when it is over.
pub(crate) trait StartOwner: Send + Sync {
    /// The start of `id` is over.
    fn started(&self, id: InstanceId, made: Made);
}

/// Reports a start as failed when its runtime panics.
pub(crate) struct Guard<'a> {
    owner: &'a dyn StartOwner,
    id: InstanceId,
    armed: bool,
}

impl<'a> Guard<'a> {
    pub(crate) fn new(owner: &'a dyn StartOwner, id: InstanceId) -> Self {
        Self { owner, id, armed: true }
    }

    pub(crate) fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.owner.started(self.id, Made::failed(panicked()));
        }
    }
}

fn panicked() -> Error {
    Error::new(
        ErrorKind::Unexpected,
        "start",
        "the runtime panicked, or the async runtime shut down, while an instance was starting",
    )
}

/// Polls the starts that did not complete at once, all of them in one task.
#[derive(Clone)]
pub(crate) struct StartExecutor(Arc<Inner>);

struct Inner {
    slots: Mutex<Slots>,
    ready: Arc<Ready>,
    executor: Arc<Executor>,
}

#[derive(Default)]
struct Slots {
    all: Vec<StartSlot>,
    free: Vec<u32>,
    /// The driver looks for starts that are too late at this time, or when `None` never.
    looks: Option<Instant>,
    driven: bool,
    closed: bool,
}

struct StartSlot {
    wakes: Arc<Wakes>,
    waker: Waker,
    /// It was woken before it was put in.
    early: bool,
    start: Option<Start>,
}

struct Start {
    work: Work,
    owner: Arc<dyn StartOwner>,
    id: InstanceId,
    deadline: Instant,
}

/// Which starts can go on.
struct Ready(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    slots: Vec<u32>,
    /// The driver has to look at the deadlines again.
    deadlines: bool,
    /// Set while the driver sleeps.
    driver: Option<Waker>,
}

impl Ready {
    fn push(&self, slot: u32) {
        let driver = {
            let mut list = self.0.lock();
            list.slots.push(slot);
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

/// The waker of a slot. It outlives the starts in it: one that is woken for an earlier start is polled once in vain.
struct Wakes {
    ready: Arc<Ready>,
    slot: u32,
    /// It is on the list.
    listed: AtomicBool,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.listed.swap(true, Ordering::AcqRel) {
            self.ready.push(self.slot);
        }
    }
}

impl StartExecutor {
    pub(crate) fn new(executor: Arc<Executor>) -> Self {
        let ready = Arc::new(Ready(Mutex::new(List::default())));
        Self(Arc::new(Inner { slots: Mutex::new(Slots::default()), ready, executor }))
    }

    /// Polls a start for the first time, and keeps it if it is not over.
    pub(crate) fn admit(
        &self,
        owner: Arc<dyn StartOwner>,
        id: InstanceId,
        mut work: Work,
        deadline: Instant,
    ) -> Option<Made> {
        let (slot, waker) = self.0.slots.lock().slot(&self.0.ready);
        let polled = poll(&mut work, &waker);
        let mut slots = self.0.slots.lock();
        if polled.is_ready() || slots.closed {
            slots.free.push(slot);
            drop(slots);
            return Some(match polled {
                Poll::Ready(made) => made,
                Poll::Pending => shut_down(),
            });
        }
        let at = &mut slots.all[slot as usize];
        at.start = Some(Start { work, owner, id, deadline });
        let early = std::mem::take(&mut at.early);
        let sooner = slots.looks.is_none_or(|looks| deadline < looks);
        if sooner {
            slots.looks = Some(deadline);
        }
        let begins = !std::mem::replace(&mut slots.driven, true);
        drop(slots);
        if begins {
            self.0.executor.spawn(drive(Driver { inner: Arc::clone(&self.0), batch: Vec::new() }));
        }
        if early {
            self.0.ready.push(slot);
        }
        if sooner {
            self.0.ready.look();
        }
        None
    }
}

impl Slots {
    fn slot(&mut self, ready: &Arc<Ready>) -> (u32, Waker) {
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = self.all.len() as u32;
            let wakes = Arc::new(Wakes { ready: Arc::clone(ready), slot, listed: AtomicBool::new(false) });
            let waker = Waker::from(Arc::clone(&wakes));
            self.all.push(StartSlot { wakes, waker, early: false, start: None });
            slot
        });
        let at = &mut self.all[slot as usize];
        at.early = false;
        (slot, at.waker.clone())
    }

    /// Takes a start out to poll it.
    fn take(&mut self, slot: u32) -> Option<(Start, Waker)> {
        let at = &mut self.all[slot as usize];
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
        for (slot, at) in self.all.iter_mut().enumerate() {
            let Some(start) = &at.start else { continue };
            if start.deadline <= now {
                late.extend(at.start.take());
                self.free.push(slot as u32);
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
    let mut ended = pin!(inner.executor.ended.cancelled());
    let mut sleep = pin!(tokio::time::sleep_until(Instant::now()));
    poll_fn(|cx| {
        if ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        driver.step();
        loop {
            let looks = driver.inner.slots.lock().looks;
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
        if list.slots.is_empty() && !std::mem::take(&mut list.deadlines) {
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
        std::mem::swap(&mut self.inner.ready.0.lock().slots, &mut self.batch);
        if self.batch.is_empty() {
            return;
        }
        let mut begin = Instant::now();
        for slot in self.batch.drain(..) {
            let taken = self.inner.slots.lock().take(slot);
            let Some((mut start, waker)) = taken else { continue };
            let polled = poll(&mut start.work, &waker);
            let end = Instant::now();
            let took = end - std::mem::replace(&mut begin, end);
            match polled {
                Poll::Ready(made) => {
                    self.inner.slots.lock().free.push(slot);
                    start.over(made);
                }
                Poll::Pending if took > LONG => {
                    self.inner.slots.lock().free.push(slot);
                    start.move_out(&self.inner.executor);
                }
                Poll::Pending => self.inner.slots.lock().all[slot as usize].start = Some(start),
            }
        }
    }

    fn expire(&self) {
        let late = self.inner.slots.lock().late(Instant::now());
        for start in late {
            start.over(too_late());
        }
    }
}

impl Drop for Driver {
    /// The pool ends, or the async runtime does: nothing is left that nobody polls.
    fn drop(&mut self) {
        let left: Vec<Start> = {
            let mut slots = self.inner.slots.lock();
            slots.closed = true;
            slots.all.iter_mut().filter_map(|slot| slot.start.take()).collect()
        };
        for start in left {
            start.over(shut_down());
        }
    }
}

impl Start {
    /// It is over.
    fn over(self, made: Made) {
        let Self { work, owner, id, .. } = self;
        // What it left behind is for its runtime to clean up, before anybody hears of it.
        drop(work);
        owner.started(id, made);
    }

    /// Goes on in a task of its own.
    fn move_out(self, executor: &Executor) {
        let Self { mut work, owner, id, deadline } = self;
        let ended = executor.ended.clone();
        executor.spawn(async move {
            let guard = Guard::new(&*owner, id);
            let made = tokio::select! {
                biased;
                made = poll_fn(|cx| poll(&mut work, cx.waker())) => made,
                () = tokio::time::sleep_until(deadline) => too_late(),
                () = ended.cancelled() => shut_down(),
            };
            guard.disarm();
            Start { work, owner: Arc::clone(&owner), id, deadline }.over(made);
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

impl fmt::Debug for StartExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StartExecutor")
    }
}

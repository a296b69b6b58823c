//! Sandboxes are given out in the order of arrival; those who wait are bounded.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Room for one guest, given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Too many wait already.
    QueueFull,
    /// The deadline came first.
    Deadline,
}

/// How long a refused caller should stay away.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Admission {
    slots: Arc<Semaphore>,
    total: u32,
    queue: u32,
    waiting: AtomicU32,
    keepable: AtomicU32,
}

impl Admission {
    pub(crate) fn new(total: u32, queue: u32) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(total as usize)),
            total,
            queue,
            waiting: AtomicU32::new(0),
            keepable: AtomicU32::new(total / 2),
        }
    }

    /// Slots there are in all.
    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    /// Callers that wait now.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes `units` slots at once, if they are free and nobody waits for them.
    pub(crate) fn try_enter(&self, units: u32) -> Option<Place> {
        let permit = Arc::clone(&self.slots).try_acquire_many_owned(units).ok()?;
        Some(Place { _permit: permit })
    }

    /// Waits for `units` slots in the order of arrival. Dropping the future leaves the queue.
    pub(crate) async fn enter(&self, units: u32, deadline: Instant) -> Result<Place, Refusal> {
        if let Some(place) = self.try_enter(units) {
            return Ok(place);
        }
        let _seat = Seat::take(&self.waiting, self.queue).ok_or(Refusal::QueueFull)?;
        let waiting = Arc::clone(&self.slots).acquire_many_owned(units);
        match tokio::time::timeout_at(deadline, waiting).await {
            // The semaphore is never closed.
            Ok(Ok(permit)) => Ok(Place { _permit: permit }),
            Ok(Err(_)) | Err(_) => Err(Refusal::Deadline),
        }
    }

    /// Leave to keep an idle sandbox: at most half of the slots are kept, so that fresh ones always find room.
    pub(crate) fn try_keep(self: &Arc<Self>, units: u32) -> Option<Keep> {
        self.keepable
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(units))
            .ok()?;
        Some(Keep { admission: Arc::clone(self), units })
    }
}

/// Leave to keep an idle sandbox.
#[derive(Debug)]
pub(crate) struct Keep {
    admission: Arc<Admission>,
    units: u32,
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.admission.keepable.fetch_add(self.units, Ordering::Relaxed);
    }
}

struct Seat<'a>(&'a AtomicU32);

impl<'a> Seat<'a> {
    fn take(waiting: &'a AtomicU32, queue: u32) -> Option<Self> {
        waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < queue).then_some(count + 1))
            .ok()?;
        Some(Self(waiting))
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_are_served_in_order_and_bounded() {
        let admission = Arc::new(Admission::new(1, 2));
        let first = admission.try_enter(1).unwrap();
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for name in ["second", "third"] {
            let (admission, order) = (Arc::clone(&admission), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let place = admission.enter(1, soon()).await.unwrap();
                order.lock().unwrap().push(name);
                drop(place);
            }));
            tokio::task::yield_now().await;
        }
        assert_eq!(admission.enter(1, soon()).await.unwrap_err(), Refusal::QueueFull);
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), ["second", "third"]);
        assert_eq!(admission.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_leaves_at_its_deadline_or_when_it_is_dropped() {
        let admission = Admission::new(2, 5);
        let held = admission.try_enter(2).unwrap();
        assert_eq!(admission.enter(1, soon()).await.unwrap_err(), Refusal::Deadline);
        {
            let mut waiting = std::pin::pin!(admission.enter(1, soon()));
            let polled = futures_poll(waiting.as_mut()).await;
            assert!(polled.is_none());
            assert_eq!(admission.waiting(), 1);
        }
        assert_eq!(admission.waiting(), 0);
        drop(held);
        assert!(admission.try_enter(2).is_some());
    }

    async fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        let mut future = future;
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(match future.as_mut().poll(cx) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }

    #[test]
    fn at_most_half_of_the_slots_are_kept_idle() {
        let admission = Arc::new(Admission::new(4, 1));
        let (one, two) = (admission.try_keep(1), admission.try_keep(1));
        assert!(one.is_some() && two.is_some() && admission.try_keep(1).is_none());
        drop(one);
        assert!(admission.try_keep(1).is_some());
    }
}

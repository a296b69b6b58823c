//! Places are given out fairly: to the tenant that has the fewest of those who wait, and never all of them to one. Within a
//! tenant it goes by arrival. Those who wait are bounded.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use crate::sync::Lock;

/// A tenant; `None`: the caller named none, as embedders without tenants do.
pub(crate) type Who = Option<sas_core::TenantKey>;

/// Room for one guest or one compilation, given back on drop.
#[derive(Debug)]
pub(crate) struct SlotPermit {
    slots: Arc<FairSlots>,
    tenant: Who,
    units: u32,
}

impl Drop for SlotPermit {
    fn drop(&mut self) {
        self.slots.give_back(self.tenant, self.units);
    }
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
pub(crate) struct FairSlots {
    /// The most that one tenant has.
    share: u32,
    queue: usize,
    /// The most of the queue that one tenant has.
    queue_share: usize,
    state: Lock<State>,
    keepable: AtomicU32,
}

#[derive(Debug)]
struct State {
    free: u32,
    /// Of tenants that have or want something.
    tenants: HashMap<Who, Tenant>,
    waiting: usize,
    next_ticket: u64,
    /// Whose turn it is needs more than is free: nobody else may take that meanwhile.
    short: bool,
}

#[derive(Debug, Default)]
struct Tenant {
    held: u32,
    line: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    units: u32,
    turn: oneshot::Sender<()>,
}

impl FairSlots {
    /// `total` places, of which a tenant has at most `share`, and a line of at most `queue`, shared alike.
    pub(crate) fn new(total: u32, share: u32, queue: u32) -> Self {
        let share = share.clamp(1, total.max(1));
        let queue_share = u64::from(queue) * u64::from(share) / u64::from(total.max(1));
        Self {
            share,
            queue: queue as usize,
            queue_share: queue_share as usize,
            state: Lock::new(State {
                free: total,
                tenants: HashMap::new(),
                waiting: 0,
                next_ticket: 0,
                short: false,
            }),
            keepable: AtomicU32::new(total / 2),
        }
    }

    /// The most places that one tenant has.
    pub(crate) fn share(&self) -> u32 {
        self.share
    }

    /// Callers that wait now.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().waiting
    }

    /// Takes `units` places at once, if they are free and it is nobody else's turn.
    pub(crate) fn try_enter(self: &Arc<Self>, tenant: Who, units: u32) -> Option<SlotPermit> {
        let mut state = self.state.lock();
        if state.short || state.free < units {
            return None;
        }
        let theirs = state.tenants.entry(tenant).or_default();
        if theirs.held + units > self.share {
            if theirs.held == 0 && theirs.line.is_empty() {
                state.tenants.remove(&tenant);
            }
            return None;
        }
        theirs.held += units;
        state.free -= units;
        Some(SlotPermit { slots: Arc::clone(self), tenant, units })
    }

    /// Waits for `units` places. Dropping the future leaves the line.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        tenant: Who,
        units: u32,
        deadline: Instant,
    ) -> Result<SlotPermit, Refusal> {
        if let Some(place) = self.try_enter(tenant, units) {
            return Ok(place);
        }
        let (turn, mine) = oneshot::channel();
        let mut seat = {
            let mut state = self.state.lock();
            let line = state.tenants.get(&tenant).map_or(0, |theirs| theirs.line.len());
            if state.waiting >= self.queue || line >= self.queue_share {
                return Err(Refusal::QueueFull);
            }
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.waiting += 1;
            state.tenants.entry(tenant).or_default().line.push_back(Waiter { ticket, units, turn });
            Seat { slots: self, tenant, units, ticket, over: false }
        };
        // What was given back since we looked.
        self.serve(&mut self.state.lock());
        let waited = tokio::time::timeout_at(deadline, mine).await;
        if !matches!(waited, Ok(Ok(()))) {
            return Err(Refusal::Deadline);
        }
        seat.over = true;
        Ok(SlotPermit { slots: Arc::clone(self), tenant, units })
    }

    fn give_back(&self, tenant: Who, units: u32) {
        let mut state = self.state.lock();
        state.free += units;
        if let Some(theirs) = state.tenants.get_mut(&tenant) {
            theirs.held -= units;
            if theirs.held == 0 && theirs.line.is_empty() {
                state.tenants.remove(&tenant);
            }
        }
        self.serve(&mut state);
    }

    /// Gives what is free to those whose turn it is: the tenant that has least, the longest wait among equals.
    fn serve(&self, state: &mut State) {
        state.short = false;
        while state.waiting > 0 {
            let turn = state
                .tenants
                .iter()
                .filter_map(|(tenant, theirs)| {
                    let first = theirs.line.front()?;
                    let fits = theirs.held + first.units <= self.share;
                    fits.then_some((theirs.held, first.ticket, first.units, *tenant))
                })
                .min();
            let Some((_, _, units, tenant)) = turn else { return };
            if units > state.free {
                state.short = true;
                return;
            }
            let Some(theirs) = state.tenants.get_mut(&tenant) else { return };
            let Some(waiter) = theirs.line.pop_front() else { return };
            state.waiting -= 1;
            theirs.held += units;
            state.free -= units;
            // Who has left, but has not said so yet, gives it back when its seat is dropped.
            let _ = waiter.turn.send(());
        }
    }

    /// Leave to keep an idle sandbox: at most half of the places are kept, so that fresh ones always find room.
    pub(crate) fn try_keep(self: &Arc<Self>, units: u32) -> Option<Keep> {
        self.keepable
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(units))
            .ok()?;
        Some(Keep { slots: Arc::clone(self), units })
    }
}

/// Leave to keep an idle sandbox.
#[derive(Debug)]
pub(crate) struct Keep {
    slots: Arc<FairSlots>,
    units: u32,
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.slots.keepable.fetch_add(self.units, Ordering::Relaxed);
    }
}

/// A place in the line. Dropped without having been served, it leaves the line, or gives back what it was just given.
struct Seat<'a> {
    slots: &'a Arc<FairSlots>,
    tenant: Who,
    units: u32,
    ticket: u64,
    over: bool,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut state = self.slots.state.lock();
        let Some(theirs) = state.tenants.get_mut(&self.tenant) else { return };
        if let Some(at) = theirs.line.iter().position(|waiter| waiter.ticket == self.ticket) {
            theirs.line.remove(at);
            let empty = theirs.held == 0 && theirs.line.is_empty();
            state.waiting -= 1;
            if empty {
                state.tenants.remove(&self.tenant);
            }
            self.slots.serve(&mut state);
        } else {
            drop(state);
            self.slots.give_back(self.tenant, self.units);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Who = Some(sas_core::TenantKey(1));
    const U: Who = Some(sas_core::TenantKey(2));

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_are_served_in_order_and_bounded() {
        let slots = Arc::new(FairSlots::new(1, 1, 2));
        let first = slots.try_enter(T, 1).unwrap();
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for name in ["second", "third"] {
            let (slots, order) = (Arc::clone(&slots), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let place = slots.enter(T, 1, soon()).await.unwrap();
                order.lock().unwrap().push(name);
                drop(place);
            }));
            tokio::task::yield_now().await;
        }
        assert_eq!(slots.enter(T, 1, soon()).await.unwrap_err(), Refusal::QueueFull);
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), ["second", "third"]);
        assert_eq!(slots.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_leaves_at_its_deadline_or_when_it_is_dropped() {
        let slots = Arc::new(FairSlots::new(2, 2, 5));
        let held = slots.try_enter(T, 2).unwrap();
        assert_eq!(slots.enter(T, 1, soon()).await.unwrap_err(), Refusal::Deadline);
        {
            let mut waiting = std::pin::pin!(slots.enter(T, 1, soon()));
            let polled = futures_poll(waiting.as_mut()).await;
            assert!(polled.is_none());
            assert_eq!(slots.waiting(), 1);
        }
        assert_eq!(slots.waiting(), 0);
        drop(held);
        assert!(slots.try_enter(T, 2).is_some());
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
        let slots = Arc::new(FairSlots::new(4, 4, 1));
        let (one, two) = (slots.try_keep(1), slots.try_keep(1));
        assert!(one.is_some() && two.is_some() && slots.try_keep(1).is_none());
        drop(one);
        assert!(slots.try_keep(1).is_some());
    }

    #[test]
    fn a_tenant_never_has_all_of_the_places() {
        let slots = Arc::new(FairSlots::new(4, 3, 4));
        let theirs: Vec<_> = std::iter::from_fn(|| slots.try_enter(T, 1)).collect();
        assert_eq!(theirs.len(), 3);
        assert!(slots.try_enter(U, 1).is_some());
        drop(theirs);
        assert!(slots.try_enter(T, 3).is_some(), "nothing is lost");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_least_is_served_first_however_many_others_wait() {
        let slots = Arc::new(FairSlots::new(4, 3, 40));
        let mut held: Vec<_> = std::iter::from_fn(|| slots.try_enter(T, 1)).collect();
        held.extend(slots.try_enter(U, 1));
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for tenant in [T, T, T, T, T, U, U] {
            let (slots, order) = (Arc::clone(&slots), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let place = slots.enter(tenant, 1, soon()).await.unwrap();
                order.lock().unwrap().push(tenant);
                tokio::time::sleep(Duration::from_secs(1)).await;
                drop(place);
            }));
            tokio::task::yield_now().await;
        }
        assert_eq!(slots.waiting(), 7);
        drop(held.remove(0));
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(*order.lock().unwrap(), [U], "it has one place, the other tenant two");
        drop(held);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!((slots.waiting(), slots.state.lock().free), (0, 4));
        assert!(slots.state.lock().tenants.is_empty(), "whoever has nothing is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_can_not_fill_the_line_either() {
        let slots = Arc::new(FairSlots::new(4, 3, 4));
        let _held: Vec<_> = std::iter::from_fn(|| slots.try_enter(T, 1)).collect();
        let mut waiting = Vec::new();
        for _ in 0..3 {
            let slots = Arc::clone(&slots);
            waiting.push(tokio::spawn(async move { slots.enter(T, 1, soon()).await.map(drop) }));
            tokio::task::yield_now().await;
        }
        assert_eq!(slots.enter(T, 1, soon()).await.unwrap_err(), Refusal::QueueFull);
        assert!(slots.enter(U, 1, soon()).await.is_ok());
    }
}

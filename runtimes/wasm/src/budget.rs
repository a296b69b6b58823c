//! Bytes of all guests together, and of each tenant's.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use sas_core::TenantKey;

use crate::{ends::Limit, sync::Lock};

/// What all sandboxes of a runtime may hold at once, and of it the most that one tenant's may.
#[derive(Debug)]
pub(crate) struct Budget {
    all: Purse,
    share: u64,
    /// Of tenants that have an instance.
    tenants: Lock<HashMap<TenantKey, Weak<Share>>>,
}

/// The part of a budget that a tenant's instances draw on together.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    tenant: TenantKey,
    own: Purse,
}

#[derive(Debug)]
struct Purse {
    most: u64,
    used: AtomicU64,
}

impl Purse {
    fn new(most: u64) -> Self {
        Self { most, used: AtomicU64::new(0) }
    }

    /// All or nothing.
    fn take(&self, bytes: u64) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|wanted| *wanted <= self.most)
            })
            .is_ok()
    }

    fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Budget {
    pub(crate) fn new(total: u64, share: u64) -> Self {
        Self { all: Purse::new(total), share, tenants: Lock::default() }
    }

    /// The part of a tenant: the same for all of its instances.
    pub(crate) fn of(self: &Arc<Self>, tenant: TenantKey) -> Arc<Share> {
        let mut tenants = self.tenants.lock();
        if let Some(share) = tenants.get(&tenant).and_then(Weak::upgrade) {
            return share;
        }
        let share = Arc::new(Share { budget: Arc::clone(self), tenant, own: Purse::new(self.share) });
        tenants.insert(tenant, Arc::downgrade(&share));
        share
    }
}

impl Share {
    /// Takes `bytes`, all or nothing.
    pub(crate) fn take(&self, bytes: u64) -> Result<(), Limit> {
        let all = &self.budget.all;
        if !self.own.take(bytes) {
            // Whoever may have all has met what there is.
            return Err(match self.own.most < all.most {
                true => Limit::TenantMemory { share: self.own.most, wanted: bytes },
                false => Limit::HostMemory { total: all.most, wanted: bytes },
            });
        }
        if !all.take(bytes) {
            self.own.give(bytes);
            return Err(Limit::HostMemory { total: all.most, wanted: bytes });
        }
        Ok(())
    }

    pub(crate) fn give(&self, bytes: u64) {
        self.budget.all.give(bytes);
        self.own.give(bytes);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut tenants = self.budget.tenants.lock();
        // An instance that started meanwhile has put another here.
        if tenants.get(&self.tenant).is_some_and(|share| share.strong_count() == 0) {
            tenants.remove(&self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_given_beyond_the_total_and_all_of_it_comes_back() {
        let budget = Arc::new(Budget::new(100, 100));
        let share = budget.of(TenantKey(1));
        let took = |bytes| share.take(bytes).is_ok();
        assert!(took(60) && !took(41) && took(40) && !took(1));
        share.give(60);
        assert!(!took(u64::MAX) && took(60));
    }

    #[test]
    fn a_tenant_at_its_share_leaves_the_rest_to_others() {
        let budget = Arc::new(Budget::new(100, 75));
        let (one, again, other) = (budget.of(TenantKey(1)), budget.of(TenantKey(1)), budget.of(TenantKey(2)));
        one.take(50).unwrap();
        again.take(25).unwrap();
        assert_eq!(again.take(1), Err(Limit::TenantMemory { share: 75, wanted: 1 }));
        other.take(25).unwrap();
        assert_eq!(other.take(1), Err(Limit::HostMemory { total: 100, wanted: 1 }));
        one.give(50);
        other.take(50).expect("what was refused took nothing");
        other.give(75);
        again.give(25);
        drop((one, other));
        assert_eq!(budget.tenants.lock().len(), 1, "a tenant without an instance is forgotten");
        budget.of(TenantKey(1)).take(75).expect("all came back");
    }
}

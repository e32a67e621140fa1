//! Room for the work of compressing: so many bodies at a time on one worker, shared among its tenants.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use portico_cert_store::TenantId;

use crate::limits;

/// The places of one worker. A tenant takes no more of them than it leaves free, so that clients who read one tenant's answers
/// slowly, or not at all, keep no other tenant's answers from being compressed.
#[derive(Debug, Default)]
pub(crate) struct CodingPlaces {
    taken: Cell<usize>,
    /// Of those that have any.
    by_tenant: RefCell<HashMap<TenantId, usize>>,
}

/// One body that is being compressed, counted while it lives.
#[derive(Debug)]
pub(crate) struct CodingPlace {
    places: Rc<CodingPlaces>,
    tenant: TenantId,
}

impl CodingPlaces {
    pub(crate) fn take(self: &Rc<Self>, tenant: TenantId) -> Option<CodingPlace> {
        let free = limits::CODINGS_PER_WORKER_MAX.saturating_sub(self.taken.get());
        let mut by_tenant = self.by_tenant.borrow_mut();
        if by_tenant.get(&tenant).copied().unwrap_or(0) >= free {
            return None;
        }
        *by_tenant.entry(tenant).or_default() += 1;
        self.taken.set(self.taken.get() + 1);
        Some(CodingPlace { places: Rc::clone(self), tenant })
    }
}

impl Drop for CodingPlace {
    fn drop(&mut self) {
        self.places.taken.set(self.places.taken.get() - 1);
        let mut by_tenant = self.places.by_tenant.borrow_mut();
        if let Some(count) = by_tenant.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                by_tenant.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tenant_leaves_as_much_as_it_takes() {
        let places = Rc::<CodingPlaces>::default();
        let mut held = Vec::new();
        for share in [2, 4, 8] {
            let tenant = TenantId::generate();
            let before = held.len();
            held.extend(std::iter::from_fn(|| places.take(tenant)));
            assert_eq!(held.len() - before, limits::CODINGS_PER_WORKER_MAX / share);
        }
        while places.take(TenantId::generate()).map(|place| held.push(place)).is_some() {}
        assert_eq!(held.len(), limits::CODINGS_PER_WORKER_MAX);
        held.clear();
        assert!(places.by_tenant.borrow().is_empty());
        assert_eq!(places.taken.get(), 0);
    }
}

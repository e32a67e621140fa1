//! Sockets to origins. The process has so many descriptors, and one client of HTTP/2 can make a hundred requests wait for
//! one slow site; without a bound of their own they would take the place of everybody's next connection.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

use super::through::Reading;
use crate::{limits, live::TenantState};

/// What is open to origins, over all workers.
#[derive(Debug)]
pub struct OriginSockets {
    most: u64,
    workers: u64,
    open: Arc<AtomicU64>,
}

impl OriginSockets {
    /// So many, among so many workers.
    pub fn new(most: u64, workers: usize) -> Self {
        Self { most, workers: u64::try_from(workers).unwrap_or(1).max(1), open: Arc::default() }
    }

    /// A place for one more of the tenant's, at an origin to which this worker has `of_origin`. `None` where the tenant holds
    /// [`limits::ORIGIN_SOCKETS_PER_FREE`] times as many as are free, or the worker as many to that origin as are free for a
    /// worker: however many tenants and origins take all they can get, something is left for the next (dynamic thresholds,
    /// Choudhury and Hahne 1998).
    pub(super) fn take(&self, tenant: &TenantState, of_origin: &Rc<Cell<u64>>) -> Option<Place> {
        let free = self.most.saturating_sub(self.open.load(Ordering::Relaxed));
        let of_tenant = tenant.origin_sockets();
        let tenant_is_full =
            of_tenant.load(Ordering::Relaxed) >= free.saturating_mul(limits::ORIGIN_SOCKETS_PER_FREE);
        if tenant_is_full || of_origin.get() >= free.div_ceil(self.workers) {
            return None;
        }
        // Workers that ask at the same moment may exceed it by one each.
        Some(Place::among([Arc::clone(&self.open), Arc::clone(of_tenant)], Rc::clone(of_origin)))
    }

    /// None is to stand idle: half of them are taken.
    pub(super) fn are_scarce(&self) -> bool {
        self.open.load(Ordering::Relaxed) >= self.most.div_ceil(2)
    }
}

/// For those who are bounded otherwise.
impl Default for OriginSockets {
    fn default() -> Self {
        Self::new(u64::MAX, 1)
    }
}

/// Counted until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    shared: [Arc<AtomicU64>; 2],
    of_origin: Rc<Cell<u64>>,
}

impl Place {
    fn among(shared: [Arc<AtomicU64>; 2], of_origin: Rc<Cell<u64>>) -> Self {
        for count in &shared {
            count.fetch_add(1, Ordering::Relaxed);
        }
        of_origin.set(of_origin.get() + 1);
        Self { shared, of_origin }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for count in &self.shared {
            count.fetch_sub(1, Ordering::Relaxed);
        }
        self.of_origin.set(self.of_origin.get() - 1);
    }
}

/// A stream has it for as long as it is open.
impl Reading for Place {
    fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        inner: &mut S,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(inner).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::watch::tests::tenant;

    #[test]
    fn whoever_takes_all_it_can_get_leaves_some_to_the_next() {
        let sockets = OriginSockets::new(90, 1);
        let tenants = [(); 3].map(|()| tenant());
        let mut places = Vec::new();
        // Of each tenant two origins.
        let mut held = tenants.iter().flat_map(|tenant| [tenant, tenant]).map(|tenant| {
            let (before, of_origin) = (places.len(), Rc::default());
            places.extend(std::iter::from_fn(|| sockets.take(tenant, &of_origin)));
            places.len() - before
        });
        assert_eq!([(); 6].map(|()| held.next().unwrap()), [45, 15, 15, 5, 5, 2]);
        let alone = 90 * limits::ORIGIN_SOCKETS_PER_FREE / (limits::ORIGIN_SOCKETS_PER_FREE + 1);
        assert_eq!(tenants[0].origin_sockets().load(Ordering::Relaxed), alone);
        assert!(sockets.are_scarce());
        places.clear();
        assert!(!sockets.are_scarce());
        assert!(tenants.iter().all(|tenant| tenant.origin_sockets().load(Ordering::Relaxed) == 0));
    }
}

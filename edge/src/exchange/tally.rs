//! Counts what an exchange carries for the domain that it belongs to.

use std::{
    cell::{Cell, OnceCell},
    rc::Rc,
    sync::Arc,
};

use super::ConnectionContext;
use crate::{
    limits,
    live::{Counts, Host},
};

/// Held by everything that carries bytes of an exchange; the last one to go counts it. What an exchange that goes on for hours
/// has carried is counted meanwhile.
pub(crate) struct Tally {
    context: Rc<ConnectionContext>,
    host: OnceCell<Arc<Host>>,
    counts: Cell<Counts>,
    /// Of the request's body so far.
    received: Cell<u64>,
    is_cached: Cell<bool>,
}

impl Tally {
    pub(super) fn of_exchange(context: &Rc<ConnectionContext>) -> Rc<Self> {
        Self::new(context, Counts { requests: 1, ..Counts::default() })
    }

    /// For what goes on when the request that opened it has been counted.
    pub(crate) fn of_tunnel(context: &Rc<ConnectionContext>, host: &Arc<Host>) -> Rc<Self> {
        let tally = Self::new(context, Counts::default());
        tally.of_host(host);
        tally
    }

    fn new(context: &Rc<ConnectionContext>, counts: Counts) -> Rc<Self> {
        let (host, is_cached) = (OnceCell::new(), Cell::new(false));
        let received = Cell::new(0);
        Rc::new(Self { context: Rc::clone(context), host, counts: Cell::new(counts), received, is_cached })
    }

    /// A claim without a proof has nothing to pay for.
    pub(super) fn of_host(&self, host: &Arc<Host>) {
        if host.served {
            let _first = self.host.set(Arc::clone(host));
        }
    }

    /// What is sent from now on did not come from an origin.
    pub(super) fn comes_from_cache(&self) {
        self.is_cached.set(true);
    }

    pub(super) fn request_bytes(&self) -> u64 {
        self.received.get()
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
        self.add(Counts { request_bytes: bytes as u64, ..Counts::default() });
    }

    pub(crate) fn sent(&self, bytes: usize) {
        let response_bytes = bytes as u64;
        let cached_bytes = if self.is_cached.get() { response_bytes } else { 0 };
        self.add(Counts { response_bytes, cached_bytes, ..Counts::default() });
    }

    fn add(&self, more: Counts) {
        let mut counts = self.counts.get();
        counts += more;
        self.counts.set(counts);
        if counts.request_bytes + counts.response_bytes >= limits::COUNTED_AFTER_BYTES {
            self.count();
        }
    }

    fn count(&self) {
        let counts = self.counts.take();
        if let Some(host) = self.host.get().filter(|_| counts != Counts::default()) {
            self.context.worker.edge.live.used.count(host, counts);
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.count();
    }
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tally").field("counts", &self.counts.get()).finish_non_exhaustive()
    }
}

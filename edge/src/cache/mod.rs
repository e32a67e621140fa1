//! The response cache: what tenants' origins allow to be kept, for routes that say so.
//!
//! One cache for the process, read by all workers: with one for each, an edge of n workers would ask an origin n times for the
//! same page, hold n copies of it, and a purge would have n ends. Memory alone; a new process begins with nothing.
//!
//! An exchange comes in by [`serve()`], whatever its protocol. `request` makes requests for one thing the same, [`CacheKey`] says
//! whose and which it is, `freshness` decides what is kept and how long it is good, `flight` lets one of many ask, `filling`
//! brings a body in while clients read it, `store` holds it within bounds, `conditions` and `answer` give each client what it
//! asked for, `coded` holds the compressed forms of it, `purge` takes it out.
//!
//! Deliberately absent: heuristic lifetimes, answers to anything but GET, parts (206) of what is not here as a whole, a disk.

mod answer;
mod coded;
mod conditions;
mod detached;
mod directives;
mod filling;
mod flight;
mod freshness;
mod growing;
mod key;
mod outcome;
mod passes;
mod purge;
mod request;
mod serve;
mod spelling;
mod store;
mod stored;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

pub use answer::StoredReader;
pub(crate) use coded::Coded;
pub(crate) use directives::contains_token;
pub use growing::GrowingReader;
pub use key::CacheKey;
pub use outcome::Outcome;
pub(crate) use request::take_unkeyed;
pub(crate) use serve::{Asking, serve};

use flight::Flights;
use passes::Passes;
use store::Store;

use crate::{clock, metrics::Metrics};

/// What all workers share of it.
pub struct Cache {
    store: Arc<Store>,
    flights: Arc<Flights>,
    passes: Passes,
    /// Requests that no client of their own waits for.
    background: AtomicUsize,
    /// The last purge that was done.
    purged: AtomicU64,
    purged_entries: AtomicU64,
    forms_made: AtomicU64,
    since_unix_ms: u64,
    /// Where clients reach this edge, beside 80 and 443; each once.
    ports: Box<[u16]>,
}

impl Cache {
    /// Of at most `bytes`, all that is needed for an entry included; 0: nothing is kept. `ports`: where clients reach this
    /// edge; a purge of a URL without a port means all of them.
    pub fn new(bytes: u64, ports: impl IntoIterator<Item = u16>) -> Arc<Self> {
        let ports: std::collections::BTreeSet<u16> =
            ports.into_iter().filter(|port| !matches!(port, 80 | 443)).collect();
        Arc::new(Self {
            ports: ports.into_iter().collect(),
            store: Arc::new(Store::new(bytes)),
            flights: Arc::default(),
            passes: Passes::new(clock::now()),
            background: AtomicUsize::new(0),
            purged: AtomicU64::new(0),
            purged_entries: AtomicU64::new(0),
            forms_made: AtomicU64::new(0),
            since_unix_ms: clock::unix_ms().unsigned_abs(),
        })
    }

    /// Whether anything is kept at all.
    pub fn is_on(&self) -> bool {
        self.store.capacity() > 0
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        self.store.held()
    }

    pub fn entries(&self) -> u64 {
        self.store.entries()
    }

    /// Bytes of one tenant's entries.
    pub fn bytes_of(&self, tenant: portico_cert_store::TenantId) -> u64 {
        self.store.bytes_of(tenant)
    }

    /// Forgets answers of at least so many bytes, where there are so many; they are freed when nobody reads them any more.
    pub(crate) fn give_back(&self, bytes: u64) {
        self.store.give_back(bytes);
    }

    /// Compressed forms that were begun.
    pub fn forms_made(&self) -> u64 {
        self.forms_made.load(Ordering::Relaxed)
    }

    /// Requests that wait for another's answer now.
    pub fn waiting(&self) -> usize {
        self.flights.waiting()
    }

    /// Since when something may be kept: the start, Unix milliseconds; 0: nothing is.
    pub fn since_unix_ms(&self) -> u64 {
        if self.is_on() { self.since_unix_ms } else { 0 }
    }

    /// Brings the metrics up to date.
    pub(crate) fn show(&self, metrics: &Metrics) {
        let float = |count: u64| u32::try_from(count / 1024).map_or(f64::MAX, f64::from) * 1024.0;
        metrics.cache_bytes.set(float(self.bytes()));
        metrics.cache_entries.set(u32::try_from(self.entries()).map_or(f64::MAX, f64::from));
        metrics.cache_purged.absolute(self.purged_entries.load(Ordering::Relaxed));
        metrics.cache_evictions.absolute(self.store.evicted());
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Cache").field("store", &self.store).finish_non_exhaustive()
    }
}

//! What each domain was used for, until somebody takes the figures to report them.
//!
//! A worker adds to the domain's own counters; the first one after they were taken puts the host into a queue, so that taking
//! them looks at the domains that were used and not at all there are.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Host;

/// What was served. Bytes are those of bodies and tunnels; heads, TLS and retransmissions are not in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub requests: u64,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// Of `response_bytes`: from the cache.
    pub cached_bytes: u64,
}

/// One domain's counters.
#[derive(Debug, Default)]
pub(super) struct Usage {
    requests: AtomicU64,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    cached_bytes: AtomicU64,
    is_queued: AtomicBool,
}

/// Hosts that were used since their figures were taken.
#[derive(Debug, Default)]
pub struct UsedHosts(Mutex<Vec<Arc<Host>>>);

impl UsedHosts {
    /// Adds to a domain's figures.
    pub fn count(&self, host: &Arc<Host>, counts: Counts) {
        let usage = &host.state.usage;
        usage.requests.fetch_add(counts.requests, Ordering::Relaxed);
        usage.request_bytes.fetch_add(counts.request_bytes, Ordering::Relaxed);
        usage.response_bytes.fetch_add(counts.response_bytes, Ordering::Relaxed);
        usage.cached_bytes.fetch_add(counts.cached_bytes, Ordering::Relaxed);
        // A swap, though nearly always nothing changes: it orders the additions before the next taking.
        if !usage.is_queued.swap(true, Ordering::AcqRel) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(host));
        }
    }

    /// All figures since they were taken last. What is added meanwhile is in these or in the next.
    pub fn take(&self) -> Vec<(Arc<Host>, Counts)> {
        let hosts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let taken = hosts.into_iter().map(|host| {
            let usage = &host.state.usage;
            usage.is_queued.swap(false, Ordering::AcqRel);
            let counts = Counts {
                requests: usage.requests.swap(0, Ordering::Relaxed),
                request_bytes: usage.request_bytes.swap(0, Ordering::Relaxed),
                response_bytes: usage.response_bytes.swap(0, Ordering::Relaxed),
                cached_bytes: usage.cached_bytes.swap(0, Ordering::Relaxed),
            };
            (host, counts)
        });
        taken.filter(|(_, counts)| *counts != Counts::default()).collect()
    }

    /// The same, without taking them.
    pub fn look(&self) -> Vec<(Arc<Host>, Counts)> {
        // Out of the lock: a worker may wait for it.
        let hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let looked = hosts.into_iter().map(|host| {
            let usage = &host.state.usage;
            let counts = Counts {
                requests: usage.requests.load(Ordering::Relaxed),
                request_bytes: usage.request_bytes.load(Ordering::Relaxed),
                response_bytes: usage.response_bytes.load(Ordering::Relaxed),
                cached_bytes: usage.cached_bytes.load(Ordering::Relaxed),
            };
            (host, counts)
        });
        looked.collect()
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.request_bytes += other.request_bytes;
        self.response_bytes += other.response_bytes;
        self.cached_bytes += other.cached_bytes;
    }
}

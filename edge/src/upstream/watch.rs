//! What the threads of an edge share of an origin that has a health check or a circuit breaker.
//!
//! A worker asks for it once, when it first meets the origin; from then on there are only atomics between the threads.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use portico_cert_store::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::OriginError;
use crate::{
    clock, limits,
    live::{Origin, TenantState},
    rate::{Meter, Rate},
};

/// All watched origins of an edge.
#[derive(Debug)]
pub struct OriginWatch {
    watched: Mutex<Known>,
    /// Each worker meets each origin, and all may be too many.
    told: Meter,
    start: Instant,
}

type Known = HashMap<(TenantId, Arc<Origin>), Arc<Watched>, RandomState>;

/// One origin of one tenant.
pub(super) struct Watched {
    pub tenant: Arc<TenantState>,
    pub origin: Arc<Origin>,
    unwell: AtomicBool,
    /// Milliseconds after `start` at which a request last looked for it.
    used_ms: AtomicU64,
    start: Instant,
    permits: Option<Arc<Semaphore>>,
    waiting: AtomicU32,
    /// The checker's own notes.
    pub checks: Mutex<Checks>,
}

/// How the health checks of an origin have gone.
#[derive(Debug, Default)]
pub(super) struct Checks {
    pub due: Option<Instant>,
    pub under_way: bool,
    /// In a row.
    pub good: u32,
    pub bad: u32,
}

impl Default for OriginWatch {
    fn default() -> Self {
        Self { watched: Mutex::default(), told: Meter::default(), start: clock::now() }
    }
}

impl OriginWatch {
    /// What is shared of `origin`; None where it has neither check nor breaker.
    pub(super) fn of(&self, tenant: &Arc<TenantState>, origin: &Arc<Origin>) -> Option<Arc<Watched>> {
        if origin.health_check.is_none() && origin.breaker.is_none() {
            return None;
        }
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (tenant.id, Arc::clone(origin));
        if let Some(known) = watched.get(&key) {
            return Some(Arc::clone(known));
        }
        let new = Arc::new(Watched::new(tenant, origin, self.start));
        if watched.len() < limits::WATCHED_ORIGINS_MAX {
            watched.insert(key, Arc::clone(&new));
        } else if self
            .told
            .take(Rate::every(limits::TOLD_EVERY, limits::TOLD_AT_ONCE), clock::uptime())
            .is_ok()
        {
            // It is then spared by each worker alone and not checked.
            tracing::warn!(tenant = %tenant.id, "too many watched origins: this one has no health check");
        }
        Some(new)
    }

    /// All that are to be checked. What no worker knows any more is forgotten.
    pub(super) fn checked(&self) -> Vec<Arc<Watched>> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|_, one| Arc::strong_count(one) > 1);
        watched.values().filter(|one| one.origin.health_check.is_some()).map(Arc::clone).collect()
    }
}

impl Watched {
    fn new(tenant: &Arc<TenantState>, origin: &Arc<Origin>, start: Instant) -> Self {
        let permits = origin
            .breaker
            .map(|breaker| usize::try_from(breaker.in_flight_max).unwrap_or(Semaphore::MAX_PERMITS));
        let new = Self {
            tenant: Arc::clone(tenant),
            origin: Arc::clone(origin),
            unwell: AtomicBool::new(false),
            used_ms: AtomicU64::new(0),
            start,
            permits: permits.map(|permits| Arc::new(Semaphore::new(permits))),
            waiting: AtomicU32::new(0),
            checks: Mutex::default(),
        };
        new.touch();
        new
    }

    /// A place under the circuit breaker, where there is one.
    pub(super) async fn enter(
        &self,
        patience: Duration,
    ) -> Result<Option<OwnedSemaphorePermit>, OriginError> {
        let (Some(permits), Some(breaker)) = (&self.permits, self.origin.breaker) else { return Ok(None) };
        if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
            return Ok(Some(permit));
        }
        let Some(_waiting) = Waiting::begin(&self.waiting, breaker.pending_max) else {
            return Err(OriginError::Busy);
        };
        match tokio::time::timeout(patience, Arc::clone(permits).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            Ok(Err(_)) | Err(_) => Err(OriginError::Busy),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.permits.as_ref().is_some_and(|permits| permits.available_permits() == 0)
    }

    pub(super) fn is_unwell(&self) -> bool {
        self.unwell.load(Ordering::Relaxed)
    }

    /// Whether that is news.
    pub(super) fn set_unwell(&self, unwell: bool) -> bool {
        self.unwell.swap(unwell, Ordering::Relaxed) != unwell
    }

    pub(super) fn touch(&self) {
        self.used_ms.store(self.ms_at(clock::now()), Ordering::Relaxed);
    }

    /// How long no request has looked for it.
    pub(super) fn unused_for(&self, now: Instant) -> Duration {
        Duration::from_millis(self.ms_at(now).saturating_sub(self.used_ms.load(Ordering::Relaxed)))
    }

    fn ms_at(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }
}

/// One request that waits.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicU32, max: u32) -> Option<Self> {
        let place = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < max).then_some(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Watched").field("unwell", &self.is_unwell()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "watch/tests.rs"]
pub(in crate::upstream) mod tests;

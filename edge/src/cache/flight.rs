//! Request collapsing: of those who ask for one resource at the same time, one asks the origin (the leader) and the others
//! wait for what comes of it.
//!
//! A waiter never waits for another client: what a leader does goes on without its client while somebody waits (`detached`), and
//! a body is pulled by a task of its own. Only a leader may put something into the cache, so that there is one place where a purge can stop it: what was
//! asked for before a purge is not kept after it.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use portico_cert_store::TenantId;
use tokio::sync::watch;

use super::{filling::Filling, key::CacheKey};

/// Who is asking for what.
#[derive(Default)]
pub(super) struct Flights {
    by_key: Mutex<HashMap<Arc<CacheKey>, Arc<Flight>>>,
}

/// One request to an origin that others may wait for.
struct Flight {
    doomed: AtomicBool,
    progress: watch::Sender<Progress>,
}

/// How far a leader has come.
#[derive(Debug, Clone)]
pub(super) enum Progress {
    Asking,
    /// The body comes, and may be read along.
    Filling(Arc<Filling>),
    /// In the cache.
    Kept,
    /// Not in the cache: each has to ask for itself.
    NotKept,
    /// The leader went away before there was an answer, or has one that says nothing of the page: somebody else may lead.
    Abandoned,
}

/// The one who asks. Dropped: those who wait ask again.
pub(super) struct Leading {
    flights: Arc<Flights>,
    key: Arc<CacheKey>,
    flight: Arc<Flight>,
}

/// All who wait for one flight.
#[derive(Clone)]
pub(super) struct Audience(Arc<Flight>);

/// One who waits.
pub(super) struct Waiting(watch::Receiver<Progress>);

pub(super) enum Turn {
    Lead(Leading),
    Wait(Waiting),
}

impl Flights {
    pub(super) fn join(self: &Arc<Self>, key: &Arc<CacheKey>) -> Turn {
        let mut by_key = self.by_key();
        if let Some(flight) = by_key.get(key) {
            return Turn::Wait(Waiting(flight.progress.subscribe()));
        }
        let (progress, _) = watch::channel(Progress::Asking);
        let flight = Arc::new(Flight { doomed: AtomicBool::new(false), progress });
        by_key.insert(Arc::clone(key), Arc::clone(&flight));
        Turn::Lead(Leading { flights: Arc::clone(self), key: Arc::clone(key), flight })
    }

    /// What is asked for now is not kept, and later requests do not wait for it.
    pub(super) fn doom_key(&self, key: &CacheKey) {
        if let Some(flight) = self.by_key().remove(key) {
            flight.doomed.store(true, Ordering::SeqCst);
        }
    }

    /// The same for all of a tenant, or of all tenants.
    pub(super) fn doom_all(&self, tenant: Option<TenantId>) {
        self.by_key().retain(|key, flight| {
            let meant = tenant.is_none_or(|tenant| key.tenant() == tenant);
            if meant {
                flight.doomed.store(true, Ordering::SeqCst);
            }
            !meant
        });
    }

    /// Requests that wait for another's answer now.
    pub(super) fn waiting(&self) -> usize {
        self.by_key().values().map(|flight| flight.progress.receiver_count()).sum()
    }

    fn by_key(&self) -> MutexGuard<'_, HashMap<Arc<CacheKey>, Arc<Flight>>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leading {
    pub(super) fn key(&self) -> &Arc<CacheKey> {
        &self.key
    }

    pub(super) fn audience(&self) -> Audience {
        Audience(Arc::clone(&self.flight))
    }

    /// A purge has come since it began.
    pub(super) fn is_doomed(&self) -> bool {
        self.flight.doomed.load(Ordering::SeqCst)
    }

    pub(super) fn filling(&self, filling: &Arc<Filling>) {
        self.flight.progress.send_replace(Progress::Filling(Arc::clone(filling)));
    }

    pub(super) fn kept(self) {
        self.end(Progress::Kept);
    }

    pub(super) fn uncacheable(self) {
        self.end(Progress::NotKept);
    }

    fn end(self, how: Progress) {
        // Those who come from now on do not find it; those who wait are told.
        self.leave();
        self.flight.progress.send_replace(how);
    }

    fn leave(&self) {
        let mut by_key = self.flights.by_key();
        // A doomed flight was taken out before, and another may be under way in its place.
        if by_key.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            by_key.remove(&self.key);
        }
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        self.leave();
        self.flight.progress.send_if_modified(|progress| {
            let left_as = match progress {
                Progress::Asking => Progress::Abandoned,
                Progress::Filling(_) => Progress::NotKept,
                Progress::Kept | Progress::NotKept | Progress::Abandoned => return false,
            };
            *progress = left_as;
            true
        });
    }
}

impl Audience {
    pub(super) fn is_there(&self) -> bool {
        self.0.progress.receiver_count() > 0
    }

    /// Ends when nobody waits any more.
    pub(super) async fn gone(&self) {
        self.0.progress.closed().await;
    }
}

impl Waiting {
    /// The next that is known beyond `Asking`.
    pub(super) async fn outcome(&mut self) -> Progress {
        match self.0.wait_for(|progress| !matches!(progress, Progress::Asking)).await {
            Ok(progress) => progress.clone(),
            Err(_) => Progress::Abandoned,
        }
    }
}

impl fmt::Debug for Flights {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Flights").field("under_way", &self.by_key().len()).finish()
    }
}

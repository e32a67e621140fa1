//! Where answers are kept: one index for all workers, and a ledger of who holds how many bytes.
//!
//! A hit reads one of [`SHARDS`] tables under its lock for the time of a look-up and touches nothing else that is shared. All
//! changes go through the ledger's lock: they come with an exchange with an origin, which costs a thousand times as much.
//!
//! Who is evicted: the tenant that holds the most, so that nobody's answers go for somebody who holds more than they do. A
//! tenant with no more than (the cache's bytes / tenants) therefore keeps what it has, whatever others do, and one alone may
//! use all of it, or as much as its own limit says. Within the tenant it is the oldest that was not asked for since it was
//! looked at last (CLOCK).
//!
//! Bytes are counted where they are freed, not where they are forgotten: a [`Held`] goes back when the last reader of a body
//! is gone, one that came before it was kept or that was never kept included, so the bound holds for slow readers too. moka, which this project uses elsewhere, knows no tenants, and frees
//! what it has forgotten at some later time.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fmt,
    hash::BuildHasher,
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use portico_cert_store::TenantId;

use super::{coded::Forms, key::CacheKey, stored::Stored};
use crate::limits;

/// Enough that workers seldom meet.
const SHARDS: usize = 256;
/// So many shelves more, or as many as are used, make a sweep worth its while.
const SWEEP_AFTER: usize = 64;

type Shard = RwLock<HashMap<Arc<CacheKey>, Vec<Arc<Stored>>, foldhash::fast::RandomState>>;

/// Answers of all tenants, within a bound in bytes.
pub(super) struct Store {
    hasher: foldhash::fast::RandomState,
    shards: Box<[Shard]>,
    ledger: Mutex<Ledger>,
    totals: Arc<Totals>,
}

/// Bytes in use, by all.
#[derive(Debug)]
pub(super) struct Totals {
    capacity: u64,
    held: AtomicU64,
    evicted: AtomicU64,
}

/// Bytes that are taken until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    totals: Arc<Totals>,
    of_tenant: Arc<AtomicU64>,
    /// Changed by one at a time: who brings the body.
    bytes: AtomicU64,
}

#[derive(Default)]
struct Ledger {
    tenants: HashMap<TenantId, Shelf>,
    /// By the bytes of their entries.
    by_bytes: BTreeSet<(u64, TenantId)>,
    entries: u64,
    /// With so many shelves, those that nobody uses are taken down.
    sweep_at: usize,
}

/// One tenant's entries.
struct Shelf {
    /// Of what is in the index.
    bytes: u64,
    entries: u64,
    /// Of all that is held for it.
    held: Arc<AtomicU64>,
    /// The tenant's limit on that.
    most: u64,
    /// Oldest first; what is gone otherwise stays as a dead reference until it is met or swept.
    queue: VecDeque<Weak<Stored>>,
    /// Asked for since the last sweep: an answer may be on its way, and the limit is told before it comes.
    asked: bool,
}

impl Store {
    pub(super) fn new(capacity: u64) -> Self {
        let hasher = foldhash::fast::RandomState::default();
        let shard = || RwLock::new(HashMap::with_hasher(hasher.clone()));
        let totals = Totals { capacity, held: AtomicU64::new(0), evicted: AtomicU64::new(0) };
        Self {
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            ledger: Mutex::default(),
            totals: Arc::new(totals),
            hasher,
        }
    }

    pub(super) fn capacity(&self) -> u64 {
        self.totals.capacity
    }

    pub(super) fn held(&self) -> u64 {
        self.totals.held.load(Ordering::Relaxed)
    }

    pub(super) fn evicted(&self) -> u64 {
        self.totals.evicted.load(Ordering::Relaxed)
    }

    pub(super) fn entries(&self) -> u64 {
        self.ledger().entries
    }

    /// Bytes of a tenant's entries.
    pub(super) fn bytes_of(&self, tenant: TenantId) -> u64 {
        self.ledger().tenants.get(&tenant).map_or(0, |shelf| shelf.bytes)
    }

    /// The newest answer for `key` that `fits`.
    pub(super) fn find(&self, key: &CacheKey, fits: impl Fn(&Stored) -> bool) -> Option<Arc<Stored>> {
        let shard = self.shard(key).read().unwrap_or_else(PoisonError::into_inner);
        let found = shard.get(key)?.iter().find(|stored| fits(stored))?;
        found.touch();
        Some(Arc::clone(found))
    }

    /// All answers that `wanted` picks; for purges.
    pub(super) fn all(&self, wanted: impl Fn(&CacheKey, &Stored) -> bool) -> Vec<Arc<Stored>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            let stored =
                shard.iter().flat_map(|(key, variants)| variants.iter().map(move |stored| (key, stored)));
            found.extend(
                stored.filter(|(key, stored)| wanted(key, stored)).map(|(_, stored)| Arc::clone(stored)),
            );
        }
        found
    }

    /// All answers for one key.
    pub(super) fn of_key(&self, key: &CacheKey) -> Vec<Arc<Stored>> {
        self.shard(key).read().unwrap_or_else(PoisonError::into_inner).get(key).cloned().unwrap_or_default()
    }

    /// Takes bytes for `tenant`, from others or from itself. None: there is no room now.
    pub(super) fn take(&self, tenant: TenantId, bytes: u64) -> Option<Held> {
        let mut ledger = self.ledger();
        let of_tenant = Arc::clone(&ledger.shelf(tenant).held);
        self.make_room(&mut ledger, tenant, bytes).then(|| {
            of_tenant.fetch_add(bytes, Ordering::Relaxed);
            Held { totals: Arc::clone(&self.totals), of_tenant, bytes: AtomicU64::new(bytes) }
        })
    }

    /// Forgets answers of at least so many bytes, where there are so many, of whoever holds the most. Not under one lock:
    /// workers come in between.
    pub(super) fn give_back(&self, bytes: u64) {
        let mut forgotten = 0;
        for _ in 0..limits::CACHE_EVICTIONS_MAX {
            if forgotten >= bytes {
                return;
            }
            let mut ledger = self.ledger();
            let Some(&(_, largest)) = ledger.by_bytes.last() else { return };
            let Some(evicted) = self.evict(&mut ledger, largest) else { return };
            forgotten += evicted;
        }
    }

    /// Sets a tenant's limit. What is held beyond it goes as new answers come.
    pub(super) fn limit(&self, tenant: TenantId, most: u64) {
        self.ledger().shelf(tenant).most = most;
    }

    /// Adds to what is held; false: there is no room now.
    pub(super) fn grow(&self, tenant: TenantId, held: &Held, bytes: u64) -> bool {
        let Some(taken) = self.take(tenant, bytes) else { return false };
        held.bytes.fetch_add(taken.bytes.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        true
    }

    /// Puts an answer in the place of those that it supersedes, unless `is_doomed` says that it is out of date already:
    /// asked under the lock, so that whoever dooms and then calls [`Store::settle`] finds it or has prevented it.
    pub(super) fn put(&self, stored: &Arc<Stored>, is_doomed: impl FnOnce() -> bool) -> bool {
        let mut ledger = self.ledger();
        if is_doomed() {
            return false;
        }
        let key = Arc::clone(&stored.key);
        let mut gone = Vec::new();
        {
            let mut shard = self.shard(&key).write().unwrap_or_else(PoisonError::into_inner);
            let variants = shard.entry(key).or_default();
            variants.retain(|old| {
                let superseded = stored.supersedes(old);
                if superseded {
                    gone.push(Arc::clone(old));
                }
                !superseded
            });
            variants.insert(0, Arc::clone(stored));
            if variants.len() > limits::CACHE_VARIANTS_MAX {
                gone.extend(variants.pop());
            }
        }
        for old in &gone {
            ledger.subtract(old);
        }
        ledger.add(stored);
        true
    }

    /// Adds to the kept body of these forms what `add` adds, of `bytes` that are taken already. Nothing is done if the body is
    /// not kept.
    pub(super) fn widen(&self, key: &CacheKey, forms: &Arc<Forms>, bytes: u64, add: impl FnOnce()) {
        let mut ledger = self.ledger();
        let shard = self.shard(key).read().unwrap_or_else(PoisonError::into_inner);
        let of_body = |stored: &&Arc<Stored>| Arc::ptr_eq(&stored.body.forms, forms);
        let Some(stored) = shard.get(key).and_then(|variants| variants.iter().find(of_body)) else {
            return;
        };
        add();
        stored.weight.fetch_add(bytes, Ordering::Relaxed);
        ledger.widen(key.tenant(), bytes);
    }

    /// Forgets one answer; false: it was gone.
    pub(super) fn remove(&self, stored: &Arc<Stored>) -> bool {
        let mut ledger = self.ledger();
        let removed = self.unlink(stored);
        if removed {
            ledger.subtract(stored);
        }
        removed
    }

    /// Forgets all answers for a key.
    pub(super) fn remove_key(&self, key: &CacheKey) -> usize {
        let mut ledger = self.ledger();
        let gone = self.shard(key).write().unwrap_or_else(PoisonError::into_inner).remove(key);
        let gone = gone.unwrap_or_default();
        for old in &gone {
            ledger.subtract(old);
        }
        gone.len()
    }

    /// Returns when every [`Store::put`] that had looked at its doom before is done.
    pub(super) fn settle(&self) {
        drop(self.ledger());
    }

    /// For what has to be told apart by chance, such as a key in a table without keys.
    pub(super) fn hash_of(&self, key: &CacheKey) -> u64 {
        self.hasher.hash_one(key)
    }

    fn make_room(&self, ledger: &mut Ledger, tenant: TenantId, bytes: u64) -> bool {
        let capacity = self.totals.capacity;
        let shelf = ledger.shelf(tenant);
        let loose = shelf.held.load(Ordering::Relaxed).saturating_sub(shelf.bytes);
        let wanted = loose.saturating_add(bytes);
        // No eviction makes room for more than the tenant may have.
        if wanted > (capacity / limits::CACHE_LOOSE_SHARE).min(shelf.most) {
            return false;
        }
        for _ in 0..limits::CACHE_EVICTIONS_MAX {
            let shelf = ledger.shelf(tenant);
            let is_over = shelf.held.load(Ordering::Relaxed).saturating_add(bytes) > shelf.most;
            let fits = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= capacity);
            let largest = if is_over {
                tenant
            } else if self.totals.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok() {
                return true;
            } else {
                let Some(&(_, largest)) = ledger.by_bytes.last() else { return false };
                largest
            };
            if self.evict(ledger, largest).is_none() {
                return false;
            }
        }
        false
    }

    /// Forgets one answer of a tenant and says how many bytes it has; `None`: the tenant has none.
    fn evict(&self, ledger: &mut Ledger, tenant: TenantId) -> Option<u64> {
        let stored = ledger.shelf(tenant).next_to_go()?;
        if !self.unlink(&stored) {
            return Some(0);
        }
        ledger.subtract(&stored);
        self.totals.evicted.fetch_add(1, Ordering::Relaxed);
        Some(stored.weight.load(Ordering::Relaxed))
    }

    /// Out of the index; the caller holds the ledger.
    fn unlink(&self, stored: &Arc<Stored>) -> bool {
        let mut shard = self.shard(&stored.key).write().unwrap_or_else(PoisonError::into_inner);
        let Some(variants) = shard.get_mut(&stored.key) else { return false };
        let before = variants.len();
        variants.retain(|other| !Arc::ptr_eq(other, stored));
        let removed = variants.len() < before;
        if variants.is_empty() {
            shard.remove(&stored.key);
        }
        removed
    }

    fn shard(&self, key: &CacheKey) -> &Shard {
        let hash = self.hasher.hash_one(key);
        // The tables use the low bits and the high ones.
        let index =
            usize::try_from((hash >> 24) % (SHARDS as u64)).expect("fewer shards than usize has values");
        &self.shards[index]
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    fn shelf(&mut self, tenant: TenantId) -> &mut Shelf {
        if self.tenants.len() >= self.sweep_at && !self.tenants.contains_key(&tenant) {
            self.sweep();
        }
        let shelf = self.tenants.entry(tenant).or_default();
        shelf.asked = true;
        shelf
    }

    /// Tenants come and go: whoever holds nothing for two sweeps is forgotten.
    fn sweep(&mut self) {
        let used = self.tenants.values().filter(|shelf| shelf.is_used()).count();
        self.tenants.retain(|_, shelf| std::mem::take(&mut shelf.asked) || shelf.is_used());
        self.sweep_at = self.tenants.len() + used.max(SWEEP_AFTER);
    }

    /// Changes what a tenant's entries are.
    fn reweigh(&mut self, tenant: TenantId, change: impl FnOnce(&mut Shelf)) {
        let shelf = self.shelf(tenant);
        let before = shelf.bytes;
        change(shelf);
        let after = (shelf.entries > 0).then_some((shelf.bytes, tenant));
        self.by_bytes.remove(&(before, tenant));
        self.by_bytes.extend(after);
    }

    fn add(&mut self, stored: &Arc<Stored>) {
        let tenant = stored.key.tenant();
        // Under the ledger's lock: a form may have come since the entry was made.
        let weight = stored.body.weight() + stored.head_bytes();
        stored.weight.store(weight, Ordering::Relaxed);
        self.reweigh(tenant, |shelf| {
            shelf.bytes += weight;
            shelf.entries += 1;
            shelf.queue.push_back(Arc::downgrade(stored));
            if shelf.queue.len() as u64 > 2 * shelf.entries + 64 {
                shelf.queue.retain(|stored| stored.strong_count() > 0);
            }
        });
        self.entries += 1;
    }

    fn widen(&mut self, tenant: TenantId, bytes: u64) {
        self.reweigh(tenant, |shelf| shelf.bytes += bytes);
    }

    fn subtract(&mut self, stored: &Stored) {
        let weight = stored.weight.load(Ordering::Relaxed);
        self.reweigh(stored.key.tenant(), |shelf| {
            shelf.bytes = shelf.bytes.saturating_sub(weight);
            shelf.entries = shelf.entries.saturating_sub(1);
        });
        self.entries = self.entries.saturating_sub(1);
    }
}

impl Default for Shelf {
    fn default() -> Self {
        Self {
            bytes: 0,
            entries: 0,
            held: Arc::default(),
            most: u64::MAX,
            queue: VecDeque::new(),
            asked: false,
        }
    }
}

impl Shelf {
    /// By an entry or by a [`Held`], of no bytes too: one that grows later is to be found here.
    fn is_used(&self) -> bool {
        self.entries > 0 || Arc::strong_count(&self.held) > 1
    }

    /// Each has one more round if it was asked for since the last.
    fn next_to_go(&mut self) -> Option<Arc<Stored>> {
        for _ in 0..=2 * self.queue.len() {
            let oldest = self.queue.pop_front()?;
            let Some(stored) = oldest.upgrade() else { continue };
            if !stored.untouch() {
                return Some(stored);
            }
            self.queue.push_back(oldest);
        }
        None
    }
}

impl Held {
    /// Gives back what was taken beyond `bytes`.
    pub(super) fn shrink_to(&self, bytes: u64) {
        let beyond = self.bytes().saturating_sub(bytes);
        self.bytes.fetch_sub(beyond, Ordering::Relaxed);
        self.give_back(beyond);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn give_back(&self, bytes: u64) {
        self.totals.held.fetch_sub(bytes, Ordering::Relaxed);
        self.of_tenant.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back(self.bytes());
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Store").field("totals", &self.totals).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, StatusCode};
    use portico_cert_store::DomainName;

    use super::*;
    use crate::{
        cache::{
            freshness::Life,
            stored::{Head, StoredBody, Variant},
        },
        clock,
        http::authority::Authority,
    };

    fn key(tenant: TenantId, path: &str) -> Arc<CacheKey> {
        let name = DomainName::parse("shop.example").expect("a name");
        Arc::new(CacheKey::new(tenant, true, &Authority { name, port: None }, path, None))
    }

    /// An entry of `bytes`, one of the variants that `route` tells apart.
    fn put(store: &Store, key: &Arc<CacheKey>, route: u64, bytes: u64) {
        let held = |bytes| store.take(key.tenant(), bytes).expect("there is room");
        let life = Life {
            received: clock::now(),
            initial_age: Duration::ZERO,
            lifetime: Duration::from_secs(60),
            while_revalidate: Duration::ZERO,
            if_error: Duration::ZERO,
            shared: true,
        };
        let variant = Variant::of(route, &HeaderMap::new(), &HeaderMap::new()).expect("it varies by nothing");
        let body = Arc::new(StoredBody::new(Vec::new(), Arc::default(), Arc::new(held(0))));
        let head = Head::of(StatusCode::OK, HeaderMap::new());
        let stored = Stored::new(Arc::clone(key), variant, head, life, body, held(bytes));
        assert!(store.put(&Arc::new(stored), || false));
    }

    #[test]
    fn what_is_on_its_way_is_a_share_of_the_cache_for_each_tenant() {
        let store = Store::new(4000);
        let (one, other) = (TenantId::generate(), TenantId::generate());
        let share = 4000 / limits::CACHE_LOOSE_SHARE;
        assert!(store.take(one, share + 1).is_none());
        let held = store.take(one, share);
        assert!(held.is_some() && store.take(one, 1).is_none() && store.take(other, share).is_some());
    }

    #[test]
    fn a_resource_has_so_many_variants_and_the_oldest_goes() {
        let store = Store::new(1 << 20);
        let key = key(TenantId::generate(), "/");
        let variants = limits::CACHE_VARIANTS_MAX as u64;
        for route in 0..=variants {
            put(&store, &key, route, 10);
        }
        assert_eq!((store.entries(), store.held()), (variants, 10 * variants));
        let fits = |route| move |stored: &Stored| stored.variant.fits(route, &HeaderMap::new());
        assert!(store.find(&key, fits(0)).is_none() && store.find(&key, fits(1)).is_some());
    }

    #[test]
    fn tenants_that_hold_nothing_any_more_are_forgotten_and_those_that_do_are_not() {
        let store = Store::new(1 << 20);
        let (keeps, fills) = (TenantId::generate(), TenantId::generate());
        put(&store, &key(keeps, "/"), 1, 10);
        let filling = store.take(fills, 0).expect("there is room");
        for _ in 0..100 * SWEEP_AFTER {
            let passing = TenantId::generate();
            store.limit(passing, 1000);
            drop(store.take(passing, 10).expect("there is room"));
            let key = key(passing, "/");
            put(&store, &key, 1, 10);
            store.remove_key(&key);
        }
        assert!(store.ledger().tenants.len() <= 3 * SWEEP_AFTER, "{}", store.ledger().tenants.len());
        assert_eq!((store.entries(), store.bytes_of(keeps)), (1, 10));
        assert!(store.grow(fills, &filling, 100));
        drop(filling);
        assert_eq!(store.ledger().tenants[&fills].held.load(Ordering::Relaxed), 0, "counted in one place");
    }

    #[test]
    fn what_is_given_back_is_of_whoever_holds_the_most_and_no_more_than_was_asked_for() {
        let store = Store::new(1 << 20);
        let (one, other) = (TenantId::generate(), TenantId::generate());
        for number in 0..10 {
            put(&store, &key(one, &format!("/{number}")), 1, 100);
        }
        put(&store, &key(other, "/"), 1, 300);
        store.give_back(0);
        assert_eq!(store.entries(), 11);
        store.give_back(550);
        assert_eq!((store.bytes_of(one), store.bytes_of(other)), (400, 300));
        assert_eq!((store.held(), store.evicted()), (700, 6));
        store.give_back(u64::MAX);
        assert_eq!((store.held(), store.entries()), (0, 0));
    }

    #[test]
    fn one_reservation_pushes_out_so_many_and_the_next_goes_on() {
        let entries = limits::CACHE_EVICTIONS_MAX as u64 + 10;
        let store = Store::new(entries);
        let tenant = TenantId::generate();
        for number in 0..entries {
            put(&store, &key(tenant, &format!("/{number}")), 1, 1);
        }
        // Nothing is freed by forgetting what somebody still reads.
        let read = store.all(|_, _| true);
        let other = TenantId::generate();
        assert!(store.take(other, 1).is_none());
        assert_eq!((store.evicted(), store.entries()), (limits::CACHE_EVICTIONS_MAX as u64, 10));
        drop(read);
        assert!(store.take(other, 1).is_some());
    }
}

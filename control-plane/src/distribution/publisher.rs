//! Follows the table of changes and brings the published image up to it.
//!
//! One task. It reads a consistent state (one reader's transaction), projects each changed resource once for all edges,
//! lets the removals pass the gate, and publishes. Woken by the store's hint, and each second without one, because only
//! the table is the truth.
//!
//! The gate: when more than 5 % (and more than 32) of a cell's names would go within [`GATE_WINDOW`], those removals
//! stay behind, in the database too, and an event asks for an operator's word; everything else flows on.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use portico_cert_store::{CellId, Generation};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::fleet_policy::FleetPolicy;
use super::image::{Change, Image, Missing, Pending, removals_allowed};
use super::metrics;
use super::projection::{self, ProjectionError};
use super::resource::{Kind, Published, ResourceKey};
use crate::clock::{self, Clock};
use crate::store::projection_rows::{self, CredentialRow, DomainRow, TenantRow};
use crate::store::{ReadTx, Store, StoreError, change, event, meta, origin_identity, publication};

/// The table is read at least this often.
const POLL: Duration = Duration::from_secs(1);
/// Removals within this time count together.
pub const GATE_WINDOW: Duration = Duration::from_secs(10);
/// Changes read at once.
const PAGE: u32 = 2_000;
/// Tombstones are kept for at least this many changes ...
const KEEP_CHANGES: u64 = 100_000;
/// ... and this long; an edge that was away for longer gets a snapshot.
const KEEP_MS: i64 = 7 * 24 * 3600 * 1000;
const COMPACT_EVERY: Duration = Duration::from_secs(3600);
/// With other control planes on the database a removal that was signed off may go for so long: they let it go when they get
/// to it, and one that is away for longer begins anew.
const SIGNED_OFF_KEPT_MS: i64 = 600_000;

/// The published state and its only writer.
#[derive(Debug)]
pub(super) struct Publisher {
    store: Store,
    clock: Clock,
    image: RwLock<Image>,
    published: watch::Sender<Generation>,
    /// Held while one advance runs.
    gate: Mutex<Gate>,
}

#[derive(Debug, Default)]
struct Gate {
    /// Names that went lately, by cell.
    recent: VecDeque<(Instant, CellId, u64)>,
    /// Nothing has been published yet, so nothing can be lost.
    loaded: bool,
}

/// One consistent reading of the store.
struct Reading {
    generation: Generation,
    changes: Vec<Change>,
    /// Keys held back, and whether an operator has let them go.
    held: HashMap<ResourceKey, bool>,
    refused: Vec<(ResourceKey, ProjectionError)>,
}

impl Publisher {
    /// Reads and publishes everything there is.
    pub(super) async fn load(store: Store, clock: Clock) -> Result<Self, StoreError> {
        let floor = publication::floor(&mut *store.read().await?).await?;
        let publisher = Self {
            store,
            clock,
            image: RwLock::new(Image::new(floor)),
            published: watch::Sender::new(Generation::default()),
            gate: Mutex::default(),
        };
        publisher.advance().await?;
        Ok(publisher)
    }

    /// Follows the changes until `shutdown`.
    pub(super) async fn follow(&self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let mut hint = self.store.changes();
        let mut compact_at = clock::instant();
        loop {
            if let Err(error) = self.advance().await {
                // The next turn tries again; edges keep what they have.
                metrics::publish_failed();
                tracing::error!(error = &error as &dyn std::error::Error, "cannot publish");
                tokio::time::sleep(POLL).await;
            }
            if clock::instant() >= compact_at {
                self.compact().await;
                compact_at = clock::instant() + COMPACT_EVERY;
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = tokio::time::timeout(POLL, hint.changed()) => {}
            }
        }
    }

    pub(super) fn generation(&self) -> Generation {
        *self.published.borrow()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Generation> {
        self.published.subscribe()
    }

    /// What an edge of `cell` at `base` lacks, and the generation that it then has.
    pub(super) fn missing(&self, cell: &CellId, base: Generation) -> (Generation, Missing) {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        (image.generation(), image.missing(cell, base))
    }

    /// How these resources stand for an edge of `cell`.
    pub(super) fn pending(&self, cell: &CellId, keys: impl Iterator<Item = ResourceKey>) -> Vec<Pending> {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        keys.filter_map(|key| image.pending(cell, key)).collect()
    }

    /// Everything for an edge of `cell`.
    pub(super) fn snapshot(&self, cell: &CellId) -> (Generation, Vec<Arc<Published>>) {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        (image.generation(), image.everything(cell))
    }

    pub(super) fn names(&self, cell: &CellId) -> u64 {
        self.image.read().unwrap_or_else(PoisonError::into_inner).names(cell)
    }

    /// A resource as it is published, with the generation that brought it to every edge.
    pub(super) fn find(&self, key: ResourceKey) -> Option<(Arc<Published>, Generation)> {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        let published = image.find(key)?;
        let generation = Generation { epoch: image.generation().epoch, sequence: published.version };
        Some((published, generation))
    }

    /// Publishes what is committed now; answers the generation.
    pub(super) async fn advance(&self) -> Result<Generation, StoreError> {
        let mut gate = self.gate.lock().await;
        let started = clock::instant();
        let Some(mut reading) = self.read(self.generation()).await? else { return Ok(self.generation()) };
        let stays = self.held_back(&mut gate, &reading, started);
        self.remember_held(&reading, &stays).await?;
        reading.changes.retain(|change| !stays.contains(&change.key));
        for (key, error) in &reading.refused {
            tracing::error!(
                id = key.id(),
                error = error as &dyn std::error::Error,
                "cannot publish a resource"
            );
        }
        metrics::published(reading.changes.len(), reading.generation, started.elapsed());
        let generation = reading.generation;
        self.image.write().unwrap_or_else(PoisonError::into_inner).apply(generation, reading.changes);
        gate.loaded = true;
        self.published.send_replace(generation);
        Ok(generation)
    }

    /// `None`: nothing is new since `base`.
    async fn read(&self, base: Generation) -> Result<Option<Reading>, StoreError> {
        let mut tx = self.store.read().await?;
        let epoch = meta::epoch(&mut tx).await?;
        let sequence = change::last_sequence(&mut tx).await?;
        let generation = Generation { epoch, sequence };
        if generation == base {
            return Ok(None);
        }
        let held = publication::held_removals(&mut tx).await?;
        let held =
            held.iter().filter_map(|held| Some((ResourceKey::parse(held.kind, &held.id)?, held.signed_off)));
        let mut reading =
            Reading { generation, changes: Vec::new(), held: held.collect(), refused: Vec::new() };
        let mut from = base.sequence;
        while from < sequence {
            let page = change::after(&mut tx, from, PAGE).await?;
            let Some(last) = page.last() else { break };
            from = last.sequence;
            project_page(&mut tx, &page, &mut reading).await?;
        }
        Ok(Some(reading))
    }

    /// The keys whose change stays behind.
    fn held_back(&self, gate: &mut Gate, reading: &Reading, now: Instant) -> HashSet<ResourceKey> {
        let waiting = |key: &ResourceKey| reading.held.get(key).is_some_and(|signed_off| !signed_off);
        if !gate.loaded {
            // After a restart nothing is held against: what was held before still is.
            return reading.changes.iter().map(|change| change.key).filter(waiting).collect();
        }
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        let mut lost: HashMap<CellId, Vec<ResourceKey>> = HashMap::new();
        let mut stays = HashSet::new();
        for (key, cells) in image.removals(&reading.changes) {
            match reading.held.get(&key) {
                Some(true) => {}
                Some(false) => drop(stays.insert(key)),
                None => cells.into_iter().for_each(|cell| lost.entry(cell).or_default().push(key)),
            }
        }
        for (cell, keys) in lost {
            if gate.passes(&cell, keys.len() as u64, image.names(&cell), now) {
                continue;
            }
            metrics::removals_held(keys.len());
            // Once for all that follow until the operator's word: a clean-up of a thousand names is one cause.
            if !reading.held.values().any(|signed_off| !signed_off) {
                tracing::error!(%cell, removals = keys.len(), "holding removals back until an operator signs them off");
            }
            stays.extend(keys);
        }
        stays
    }

    /// Makes the decision of the gate durable before it has effect.
    async fn remember_held(&self, reading: &Reading, stays: &HashSet<ResourceKey>) -> Result<(), StoreError> {
        let changed: HashSet<_> = reading.changes.iter().map(|change| change.key).collect();
        let new: Vec<_> = stays.iter().filter(|key| !reading.held.contains_key(key)).collect();
        let gone = reading.held.iter().filter(|(key, signed_off)| {
            // What was signed off other control planes have to let go, too; `compact` forgets it.
            changed.contains(key) && !stays.contains(key) && !(**signed_off && self.store.is_shared())
        });
        let gone: Vec<_> = gone.map(|(key, _)| key).collect();
        let waiting = reading.held.values().any(|signed_off| !signed_off);
        if new.is_empty() && gone.is_empty() && !waiting {
            return Ok(());
        }
        let now = self.clock.now_ms();
        let mut tx = self.store.begin().await?;
        let mut news = 0;
        for key in &new {
            let is_news = publication::hold_removal(&mut tx, key.wire_kind(), &key.id(), now).await?;
            news += usize::from(is_news);
        }
        for key in gone {
            publication::release_removal(&mut tx, key.wire_kind(), &key.id()).await?;
        }
        // Recorded as new changes, which the next turn lets pass.
        publication::release_taken_over(&mut tx, now).await?;
        // Another control plane may have come to the same.
        if news > 0 {
            let text = format!(
                "{} names would have left the edges within {} s; they stay until an operator signs the removal off: \
                 look at them with `portico removal list`",
                news,
                GATE_WINDOW.as_secs()
            );
            event::append(&mut tx, "removals.held", None, "fleet", &text, now).await?;
        }
        tx.commit().await
    }

    async fn compact(&self) {
        let forgotten = async {
            let mut tx = self.store.begin().await?;
            let now = self.clock.now_ms();
            let floor = publication::compact(&mut tx, now, KEEP_CHANGES, KEEP_MS).await?;
            if self.store.is_shared() {
                publication::forget_signed_off(&mut tx, now - SIGNED_OFF_KEPT_MS).await?;
            }
            tx.commit().await?;
            Ok::<_, StoreError>(floor)
        };
        match forgotten.await {
            Ok(floor) => self.image.write().unwrap_or_else(PoisonError::into_inner).forget_removals(floor),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot forget old tombstones");
            }
        }
    }
}

impl Gate {
    /// Whether `removed` more of a cell's names may go at once; they count from then on.
    fn passes(&mut self, cell: &CellId, removed: u64, held: u64, now: Instant) -> bool {
        while self.recent.front().is_some_and(|(at, ..)| now.duration_since(*at) > GATE_WINDOW) {
            self.recent.pop_front();
        }
        let lately: u64 = self.recent.iter().filter(|(_, of, _)| of == cell).map(|(.., count)| count).sum();
        let allowed = removals_allowed(lately + removed, held + lately);
        if allowed {
            self.recent.push_back((now, cell.clone(), removed));
        }
        allowed
    }
}

/// Reads the rows behind a page of changes and projects them.
async fn project_page(
    tx: &mut ReadTx,
    page: &[change::Change],
    reading: &mut Reading,
) -> Result<(), StoreError> {
    let mut wanted: HashMap<ResourceKey, u64> = HashMap::new();
    let mut ids: [Vec<String>; 4] = Default::default();
    for change in page {
        let Some(key) = ResourceKey::parse(change.kind, &change.id) else {
            tracing::warn!(kind = change.kind, id = change.id, "a change of an unknown kind is left out");
            continue;
        };
        wanted.insert(key, change.sequence);
        match key.kind {
            _ if change.removed => {}
            Kind::Tenant => ids[0].push(change.id.clone()),
            Kind::Domain => ids[1].push(change.id.clone()),
            Kind::Credential => ids[2].push(change.id.clone()),
            Kind::OriginIdentity => ids[3].push(change.id.clone()),
            Kind::Fleet => {}
        }
    }
    let version = |key: ResourceKey| wanted.get(&key).copied().unwrap_or(0);
    let mut projected = Vec::with_capacity(page.len());
    for row in projection_rows::tenants(tx, &ids[0]).await? {
        let key = ResourceKey::tenant(row.id);
        projected.push((key, projection::tenant(&row as &TenantRow, version(key))));
    }
    for row in projection_rows::domains(tx, &ids[1]).await? {
        let key = ResourceKey::domain(row.id);
        projected.push((key, projection::domain(&row as &DomainRow, version(key))));
    }
    for row in projection_rows::credentials(tx, &ids[2]).await? {
        let key = ResourceKey::credential(row.lineage);
        projected.push((key, projection::credential(&row as &CredentialRow, version(key))));
    }
    for row in origin_identity::by_ids(tx, &ids[3]).await? {
        let key = ResourceKey::origin_identity(row.id);
        projected.push((key, projection::origin_identity(&row, version(key))));
    }
    if wanted.contains_key(&ResourceKey::FLEET) {
        let json = publication::fleet_policy(tx).await?.unwrap_or_default();
        let policy = serde_json::from_str::<FleetPolicy>(&json).unwrap_or_default();
        let default = publication::default_domain(tx).await?;
        projected
            .push((ResourceKey::FLEET, projection::fleet(&policy, default, version(ResourceKey::FLEET))));
    }
    for (key, published) in projected {
        let Some(version) = wanted.remove(&key) else { continue };
        match published {
            Ok(published) => reading.changes.push(Change { key, version, published: Some(published) }),
            Err(error) => reading.refused.push((key, error)),
        }
    }
    // What has no row (any more) is gone, whatever its last change says.
    reading.changes.extend(wanted.into_iter().map(|(key, version)| Change { key, version, published: None }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removals_in_small_steps_count_together() {
        let cell = CellId::parse("default").unwrap();
        let start = clock::instant();
        let mut gate = Gate::default();
        assert!(gate.passes(&cell, 30, 100, start));
        assert!(!gate.passes(&cell, 3, 70, start + Duration::from_secs(9)));
        assert!(gate.passes(&CellId::parse("other").unwrap(), 3, 70, start + Duration::from_secs(9)));
        assert!(gate.passes(&cell, 3, 70, start + Duration::from_secs(11)));
    }
}

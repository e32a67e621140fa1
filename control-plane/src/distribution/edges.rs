//! What an operator does with edges: let one join, look at them, take one out, sign removals off.

use std::net::SocketAddr;
use std::time::Duration;

use portico_api::distribution::ResourceKind;
use portico_api::v1;
use portico_cert_store::{CellId, EdgeId, LineageId};
use zeroize::Zeroizing;

use super::context::Context;
use super::fleet::EdgeView;
use super::fleet_policy::{FleetPolicy, listener};
use super::join::{self, JoinError};
use super::refusals::BATCH_KIND;
use super::{Distribution, DistributionError};
use crate::ca::InternalCa;
use crate::clock::rfc3339;
use crate::config::Config;
use crate::store::edge::{self, EdgeRow, NackRow};
use crate::store::publication::{self, HeldRemoval};
use crate::store::rekey::{self, RekeyRow};
use crate::store::{Store, StoreError, WriteTx, cell, edge_key, event, uploaded};

/// For so long after an operator's sign-off, a snapshot may leave out any number of names.
const SIGN_OFF_LASTS: Duration = Duration::from_secs(600);

/// What taking an edge out leaves to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedEdge {
    pub cell: CellId,
    /// The cell-key epoch that seals from now on.
    pub epoch: u32,
    /// Lineages whose present key the edge could read; each is due for renewal, with a new key, from now on.
    pub rekey: Vec<LineageId>,
}

impl Distribution {
    /// Makes a one-time token for an edge of `cell`. The cell comes to be when it is first named.
    ///
    /// # Errors
    /// [`JoinError::Ttl`], or the store's.
    pub async fn create_join_token(
        &self,
        cell: &CellId,
        ttl_seconds: u32,
    ) -> Result<v1::JoinToken, JoinError> {
        let mut tx = self.context.store.begin().await?;
        let token = self.create_join_token_in(&mut tx, cell, ttl_seconds).await?;
        tx.commit().await?;
        Ok(token)
    }

    /// [`Self::create_join_token`] in a transaction that the caller commits.
    ///
    /// # Errors
    /// [`JoinError::Ttl`], or the store's.
    pub async fn create_join_token_in(
        &self,
        tx: &mut WriteTx,
        cell: &CellId,
        ttl_seconds: u32,
    ) -> Result<v1::JoinToken, JoinError> {
        join::create_token(&self.context, tx, cell, ttl_seconds).await
    }

    /// Every edge with what it has applied and what it refuses.
    ///
    /// # Errors
    /// The store's.
    pub async fn edges(&self) -> Result<Vec<v1::Edge>, StoreError> {
        let views = self.context.fleet.edges();
        let mut tx = self.context.store.read().await?;
        let mut edges = Vec::new();
        for row in edge::all(&mut tx).await? {
            let nacks = edge::nacks(&mut tx, row.id).await?;
            let view = views.iter().find(|view| view.id == row.id);
            edges.push(self.shown(row, nacks, view));
        }
        Ok(edges)
    }

    /// One edge; `None` when it is unknown or removed.
    ///
    /// # Errors
    /// The store's.
    pub async fn edge(&self, id: EdgeId) -> Result<Option<v1::Edge>, StoreError> {
        let views = self.context.fleet.edges();
        let mut tx = self.context.store.read().await?;
        let Some(row) = edge::find(&mut tx, id).await? else { return Ok(None) };
        let nacks = edge::nacks(&mut tx, id).await?;
        Ok(Some(self.shown(row, nacks, views.iter().find(|view| view.id == id))))
    }

    /// Takes an edge out of the fleet: its identity counts no longer, its stream ends, and its cell starts a new key
    /// epoch, whose key it never gets. `None` when it is unknown or removed already.
    ///
    /// # Errors
    /// The store's.
    pub async fn remove_edge(&self, id: EdgeId) -> Result<Option<RemovedEdge>, StoreError> {
        let mut tx = self.context.store.begin().await?;
        let removed = self.remove_edge_in(&mut tx, id).await?;
        if removed.is_some() {
            tx.commit().await?;
            self.edge_removed(id);
        }
        Ok(removed)
    }

    /// The part of [`Self::remove_edge`] that a caller commits together with its own; after the commit comes
    /// [`Self::edge_removed`].
    ///
    /// # Errors
    /// The store's.
    pub async fn remove_edge_in(
        &self,
        tx: &mut WriteTx,
        id: EdgeId,
    ) -> Result<Option<RemovedEdge>, StoreError> {
        let context = &self.context;
        let now = context.clock.now_ms();
        let Some(row) = edge::find(tx, id).await? else { return Ok(None) };
        edge::remove(tx, id, now).await?;
        let epoch = cell::next_epoch(tx, &context.sealer, &row.cell, now).await?;
        let rekey = cell::sealed_before(tx, &row.cell, epoch).await?;
        cell::renew_sealed_before(tx, &row.cell, epoch, now).await?;
        replace_keys(tx, id, &row.cell, epoch, now).await?;
        edge_key::forget_requests(tx, &row.cell, now).await?;
        let text = format!(
            "removed from cell {}; {} keys that it could read are to be replaced",
            row.cell,
            rekey.len()
        );
        event::append(tx, "edge.removed", None, &id.to_string(), &text, now).await?;
        tell_of_uploaded_keys(tx, &row.cell, epoch, now).await?;
        Ok(Some(RemovedEdge { cell: row.cell, epoch, rekey }))
    }

    /// A removal is committed: the edge's stream ends, and the others of its cell get the new key.
    pub fn edge_removed(&self, id: EdgeId) {
        self.context.fleet.forget(id);
        self.cell_key_changed();
    }

    /// A cell's new key is committed: its edges get it.
    pub fn cell_key_changed(&self) {
        self.context.signals.cell_keys.send_replace(());
    }

    /// Removals that wait for an operator's word.
    ///
    /// # Errors
    /// The store's.
    pub async fn held_removals(&self) -> Result<Vec<HeldRemoval>, StoreError> {
        publication::held_removals(&mut *self.context.store.read().await?).await
    }

    /// Lets all held removals go, and for ten minutes lets snapshots leave names out that edges still have. Answers how
    /// many were held.
    ///
    /// # Errors
    /// The store's.
    pub async fn sign_off_removals(&self, actor: &str) -> Result<u64, StoreError> {
        let mut tx = self.context.store.begin().await?;
        let count = self.sign_off_removals_in(&mut tx, actor).await?;
        tx.commit().await?;
        self.removals_signed_off();
        Ok(count)
    }

    /// The part of [`Self::sign_off_removals`] that a caller commits together with its own; after the commit comes
    /// [`Self::removals_signed_off`].
    ///
    /// # Errors
    /// The store's.
    pub async fn sign_off_removals_in(&self, tx: &mut WriteTx, actor: &str) -> Result<u64, StoreError> {
        let now = self.context.clock.now_ms();
        let count = publication::sign_off_removals(tx, now).await?;
        publication::put_signed_off_until(tx, now.saturating_add(signed_off_lasts_ms())).await?;
        let text = format!("{actor} signed {count} held removals off");
        event::append(tx, "removals.signed_off", None, publication::FLEET_ID, &text, now).await?;
        Ok(count)
    }

    /// A committed sign-off counts for snapshots from now on.
    pub fn removals_signed_off(&self) {
        let until = self.context.clock.now_ms().saturating_add(signed_off_lasts_ms());
        self.context.signals.signed_off_until.send_replace(until);
    }

    fn shown(&self, row: EdgeRow, nacks: Vec<NackRow>, view: Option<&EdgeView>) -> v1::Edge {
        let facts = view.filter(|view| view.here).map(|view| &view.facts);
        v1::Edge {
            id: row.id,
            cell: row.cell,
            connected: view.is_some_and(|view| view.live),
            build: row.build,
            io_backend: facts.map_or(row.io_backend, |facts| facts.io_backend.clone()),
            applied_generation: view.map_or(row.applied, |view| view.applied).to_string(),
            published_generation: self.context.publisher.generation().to_string(),
            connections: facts.map_or(row.connections, |facts| facts.connections),
            names: facts.map_or(row.names, |facts| facts.names),
            nacks: nacks.into_iter().map(shown_nack).collect(),
            joined_at: rfc3339(row.joined_at_ms),
            last_seen_at: view
                .filter(|view| view.here)
                .and_then(|view| view.seen_at_ms)
                .or(row.last_seen_at_ms)
                .map(rfc3339),
            identity_not_after: rfc3339(row.identity_not_after_ms),
        }
    }
}

fn signed_off_lasts_ms() -> i64 {
    i64::try_from(SIGN_OFF_LASTS.as_millis()).unwrap_or(i64::MAX)
}

fn shown_nack(row: NackRow) -> v1::EdgeNack {
    let kind = i32::try_from(row.kind).ok().and_then(|kind| ResourceKind::try_from(kind).ok());
    let kind = match kind {
        _ if row.kind == BATCH_KIND => "batch".to_owned(),
        Some(ResourceKind::Tenant) => "tenant".to_owned(),
        Some(ResourceKind::Domain) => "domain".to_owned(),
        Some(ResourceKind::Credential) => "credential".to_owned(),
        Some(ResourceKind::OriginIdentity) => "origin identity".to_owned(),
        Some(ResourceKind::Fleet) => "fleet".to_owned(),
        Some(ResourceKind::Unspecified) | None => format!("kind {}", row.kind),
    };
    v1::EdgeNack { kind, id: row.id, version: row.version, code: row.code, text: row.text }
}

/// Publishes the fleet's policy anew if the configuration or an edge's addresses have changed it.
pub(super) async fn refresh_fleet_policy(
    store: &Store,
    config: &Config,
    (replica, distribution): (&str, SocketAddr),
) -> Result<(), DistributionError> {
    let mut tx = store.begin().await?;
    let edges = edge::all(&mut tx).await?;
    let listeners = edges.iter().flat_map(|edge| &edge.listeners).filter_map(|text| listener(text));
    let public = config.fleet.public_addresses.iter().copied();
    // Its sockets, not its addresses: a small provider's origin may well run beside the control plane.
    let advertised = config.distribution_advertised.as_deref().and_then(|text| text.parse().ok());
    let own = [Some(config.api), Some(distribution), advertised, config.dns.responder];
    // Of all control planes on this database, so that none lets go what another keeps.
    let own: Vec<SocketAddr> = own.into_iter().flatten().collect();
    let changed = publication::put_sockets(&mut tx, replica, &own).await?;
    let own = publication::sockets(&mut tx).await?;
    let policy = FleetPolicy::new(public, listeners, own, config.fleet.tenant_limits);
    let json = serde_json::to_string(&policy).map_err(|_| DistributionError::Policy)?;
    if publication::put_fleet_policy(&mut tx, &json).await? || changed {
        tx.commit().await?;
    }
    Ok(())
}

/// Writes what the edges have said of themselves into their table.
pub(super) async fn write_observations(context: &Context) -> Result<(), StoreError> {
    let observations = context.fleet.take_observations();
    if observations.is_empty() {
        return Ok(());
    }
    let mut tx = context.store.begin().await?;
    for seen in &observations {
        edge::observed(&mut tx, seen).await?;
    }
    tx.commit().await
}

/// The stored authority, or a new one at the first start.
pub(super) async fn load_authority(
    store: &Store,
    sealer: &crate::sealer::Sealer,
    now_ms: i64,
) -> Result<InternalCa, DistributionError> {
    const PURPOSE: &str = "internal CA";
    let mut tx = store.begin().await?;
    if let Some((certificate, sealed)) = edge::internal_ca(&mut tx).await? {
        let key: Zeroizing<Vec<u8>> = sealer.open(PURPOSE, "1", &sealed)?;
        return Ok(InternalCa::from_stored(certificate, &key)?);
    }
    let (authority, key) = InternalCa::generate(join::date(now_ms))?;
    let sealed = sealer.seal(PURPOSE, "1", &key);
    edge::insert_internal_ca(&mut tx, authority.certificate(), &sealed, now_ms).await?;
    tx.commit().await?;
    tracing::info!(fingerprint = authority.fingerprint_hex(), "made the internal CA");
    Ok(authority)
}

/// Notes that what an edge could read that has gone is to be replaced, whatever else moves a renewal: the loop over rekeys finds what
/// that is, which may be much.
async fn replace_keys(
    tx: &mut WriteTx,
    edge: EdgeId,
    cell: &CellId,
    epoch: u32,
    now_ms: i64,
) -> Result<(), StoreError> {
    let row = RekeyRow {
        id: v1::RekeyId::generate(),
        scope: v1::RekeyScope::Edge,
        subject: edge.to_string(),
        cell: Some((cell.clone(), epoch)),
        compromised: false,
        note: "the edge was taken out".to_owned(),
        requested_by: "system".to_owned(),
        requested_at: now_ms,
        finished_at: None,
        behind: Vec::new(),
    };
    rekey::insert(tx, &row).await
}

/// Keys that are made here are replaced by themselves; those that tenants brought only they can replace.
async fn tell_of_uploaded_keys(
    tx: &mut WriteTx,
    cell: &CellId,
    epoch: u32,
    now_ms: i64,
) -> Result<(), StoreError> {
    for found in uploaded::under_older_key(tx, cell, epoch).await? {
        let Some(lineage) = found.lineages.first() else { continue };
        let names: Vec<&str> = lineage.names.keys().map(String::as_str).collect();
        let text = format!(
            "an edge that could read the uploaded key of {} was removed; upload a certificate with a new key",
            names.join(", ")
        );
        let subject = lineage.credential.to_string();
        event::append(tx, "certificate.key_exposed", Some(found.tenant), &subject, &text, now_ms).await?;
    }
    Ok(())
}

//! The API's view of the fleet: who is connected, what they have applied, and the short way to all of them.
//!
//! [`FleetLink`] wraps the distribution's handle. Without one ([`FleetLink::absent`], for the API alone) there are no
//! edges: nothing is deployed, nobody acknowledges a suspension, and calls about edges say so.

use std::time::Duration;

use axum::http::StatusCode;
use portico_api::distribution::DrillTarget;
use portico_api::v1::{Edge, JoinToken, Purge, PurgeDone, PurgeRequest, Suspension, SuspensionAnswer};
use portico_cert_store::{CellId, DomainId, EdgeId, Generation, TenantId};

use crate::distribution::{Distribution, JoinError, UrgentOutcome};
use crate::http::fault::{Answered, Fault, field};
use crate::store::publication::{self, WaitingRemoval};
use crate::store::{Store, WriteTx};

/// The way to the edges.
#[derive(Clone, Debug, Default)]
pub struct FleetLink(Option<Distribution>);

/// How far the live edges of a cell have come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CellState {
    /// The sequence that each live edge of the cell has applied; 0 while it follows another epoch.
    pub(crate) applied: Vec<u64>,
}

impl FleetLink {
    /// The edges of a running distribution.
    pub fn to(distribution: &Distribution) -> Self {
        Self(Some(distribution.clone()))
    }

    /// No edges.
    pub fn absent() -> Self {
        Self::default()
    }

    pub(crate) fn cell(&self, cell: &CellId) -> CellState {
        let Some(distribution) = &self.0 else { return CellState::default() };
        let epoch = distribution.generation().epoch;
        let live = distribution.fleet.edges().into_iter().filter(|edge| edge.live && edge.cell == *cell);
        let applied = live.map(|edge| if edge.applied.epoch == epoch { edge.applied.sequence } else { 0 });
        CellState { applied: applied.collect() }
    }

    /// Suspends (or with `None` resumes) on every connected edge; waits for their word at most a second.
    pub(crate) async fn suspend(
        &self,
        tenant: TenantId,
        domain: Option<DomainId>,
        suspension: Option<&Suspension>,
        version: u64,
    ) -> SuspensionAnswer {
        let Some(distribution) = &self.0 else {
            return SuspensionAnswer { acked: Vec::new(), not_acked: Vec::new() };
        };
        let outcome = distribution.fleet.suspend(tenant, domain, suspension, version).await;
        SuspensionAnswer { acked: outcome.acked, not_acked: outcome.not_acked }
    }

    /// Has the edges of a cell try whether they would serve names by these lineages.
    pub(crate) async fn drill(&self, cell: &CellId, targets: Vec<DrillTarget>) -> UrgentOutcome {
        match &self.0 {
            Some(distribution) => distribution.fleet.drill(cell, targets).await,
            None => UrgentOutcome::default(),
        }
    }

    /// Which edges of these cells have applied what is committed by now, and which have not within the deadline.
    pub(crate) async fn applied(
        &self,
        cells: &[CellId],
        generation: Generation,
        deadline: Duration,
    ) -> (Vec<EdgeId>, Vec<EdgeId>) {
        let Some(distribution) = &self.0 else { return (Vec::new(), Vec::new()) };
        let found = distribution.fleet.wait_applied(cells, generation, deadline).await;
        (found.applied, found.behind)
    }

    /// A place in the order of purges; to be taken before a purge's transaction begins.
    pub(crate) async fn purge_turn(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        match &self.0 {
            Some(distribution) => Some(distribution.fleet.purge_turn().await),
            None => None,
        }
    }

    /// Tells all edges of a purge that is stored.
    pub(crate) async fn purge(
        &self,
        turn: Option<tokio::sync::MutexGuard<'_, ()>>,
        number: u64,
        tenant: TenantId,
        request: &PurgeRequest,
    ) -> Purge {
        let outcome = match (&self.0, turn) {
            (Some(distribution), Some(turn)) => distribution.fleet.purge(turn, number, tenant, request).await,
            _ => UrgentOutcome::default(),
        };
        let done = |edge: &EdgeId| PurgeDone {
            edge: edge.to_string(),
            answers: outcome.met.get(edge).copied().unwrap_or_default(),
        };
        let done = outcome.acked.iter().map(done).collect();
        Purge { number, done, pending: outcome.not_acked.iter().map(ToString::to_string).collect() }
    }

    /// Lets held removals go, as a part of the caller's transaction; [`Self::removals_signed_off`] follows its commit.
    pub(crate) async fn sign_off_removals_in(&self, tx: &mut WriteTx, actor: &str) -> Answered<u64> {
        let distribution = self.0.as_ref().ok_or_else(no_distribution)?;
        Ok(distribution.sign_off_removals_in(tx, actor).await?)
    }

    pub(crate) fn removals_signed_off(&self) {
        if let Some(distribution) = &self.0 {
            distribution.removals_signed_off();
        }
    }

    /// Publishes what is committed, and answers the removal of `domain` when it is held back: its name is still served.
    pub(crate) async fn held_removal(
        &self,
        store: &Store,
        domain: DomainId,
    ) -> Answered<Option<WaitingRemoval>> {
        if let Some(distribution) = &self.0 {
            distribution.publish_now().await?;
        }
        Ok(publication::waiting_removal(&mut *store.read().await?, domain).await?)
    }

    /// Makes a join token, as a part of the caller's transaction.
    pub(crate) async fn create_join_token_in(
        &self,
        tx: &mut WriteTx,
        cell: &CellId,
        ttl_seconds: u32,
    ) -> Answered<JoinToken> {
        let distribution = self.0.as_ref().ok_or_else(no_distribution)?;
        distribution.create_join_token_in(tx, cell, ttl_seconds).await.map_err(|error| {
            if matches!(error, JoinError::Ttl) {
                return Fault::fields(vec![field("/ttl_seconds", "out_of_range", error.to_string())]);
            }
            if matches!(error, JoinError::Taken { .. }) {
                return Fault::conflict("cell_taken", error.to_string());
            }
            tracing::error!(error = &error as &dyn std::error::Error, "no join token could be made");
            no_distribution()
        })
    }

    pub(crate) async fn edges(&self) -> Answered<Vec<Edge>> {
        match &self.0 {
            Some(distribution) => Ok(distribution.edges().await?),
            None => Ok(Vec::new()),
        }
    }

    pub(crate) async fn edge(&self, id: EdgeId) -> Answered<Option<Edge>> {
        match &self.0 {
            Some(distribution) => Ok(distribution.edge(id).await?),
            None => Ok(None),
        }
    }

    /// Removes an edge, as a part of the caller's transaction; [`Self::edge_removed`] follows its commit. `false`: there
    /// was none to remove.
    pub(crate) async fn remove_edge_in(&self, tx: &mut WriteTx, id: EdgeId) -> Answered<bool> {
        match &self.0 {
            Some(distribution) => Ok(distribution.remove_edge_in(tx, id).await?.is_some()),
            None => Ok(false),
        }
    }

    /// A cell's new key is committed: its edges are to have it.
    pub(crate) fn cell_key_changed(&self) {
        if let Some(distribution) = &self.0 {
            distribution.cell_key_changed();
        }
    }

    pub(crate) fn edge_removed(&self, id: EdgeId) {
        if let Some(distribution) = &self.0 {
            distribution.edge_removed(id);
        }
    }
}

fn no_distribution() -> Fault {
    Fault::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "no_distribution",
        "this control plane runs without distribution",
    )
}

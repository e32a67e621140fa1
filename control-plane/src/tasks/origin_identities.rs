//! The reconciler of origin identities: each cell that needs one has one, renewed in time, under the cell's newest key; where
//! none is needed any more, the edges have none; an authority that was replaced is forgotten when no edge can show any more what
//! it issued.

use std::collections::BTreeMap;
use std::time::Duration;

use portico_cert_store::{CellId, TenantId};

use crate::Parts;
use crate::app::origin_identity::{self as app, IdentityError, ensure, is_good};
use crate::ca::sha256;
use crate::store::origin_identity::{self, AuthorityRole, IdentityRow};
use crate::store::{StoreError, cell};

/// Changes of what is distributed come by the store's hint; time, and new keys of cells, do not.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// And at most this often: a look reads each domain of the tenants that have an authority.
const PAUSE: Duration = Duration::from_secs(1);
/// Written in one transaction: a key and a signature each, some 0.1 ms.
const TOGETHER: usize = 64;

/// Runs until the control plane ends.
///
/// # Errors
/// None of its own: a round that fails is logged and done again.
pub async fn run(parts: Parts) -> anyhow::Result<()> {
    let mut hint = parts.store.changes();
    loop {
        if let Err(error) = round(&parts).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "origin identities could not be looked after"
            );
        }
        tokio::select! {
            () = parts.shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(PAUSE) => {}
        }
        tokio::select! {
            () = parts.shutdown.cancelled() => return Ok(()),
            _ = tokio::time::timeout(LOOK_INTERVAL, hint.changed()) => {}
        }
    }
}

/// A round that finds nothing to do takes no turn at writing.
async fn round(parts: &Parts) -> Result<(), IdentityError> {
    let (due, unwanted) = look(parts).await?;
    for some in due.chunks(TOGETHER) {
        make(parts, some).await?;
    }
    finish(parts).await?;
    if unwanted.is_empty() {
        return Ok(());
    }
    let mut tx = parts.store.begin().await?;
    // A route may have come to need one since.
    let wanted = origin_identity::wanted(&mut tx).await?;
    for row in unwanted.iter().filter(|row| !wanted.contains(&(row.tenant, row.cell.clone()))) {
        origin_identity::remove(&mut tx, row).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// What is to be made or renewed, and what nobody needs.
async fn look(parts: &Parts) -> Result<(Vec<(TenantId, CellId)>, Vec<IdentityRow>), IdentityError> {
    let mut read = parts.store.read().await?;
    let wanted = origin_identity::wanted(&mut read).await?;
    let mut epochs = BTreeMap::new();
    for cell in wanted.iter().map(|(_, cell)| cell) {
        if !epochs.contains_key(cell) {
            epochs.insert(cell.clone(), cell::newest_epoch(&mut read, cell).await?);
        }
    }
    let mut authorities = BTreeMap::new();
    for (tenant, _) in &wanted {
        if !authorities.contains_key(tenant) {
            let present = origin_identity::authority(&mut read, *tenant, AuthorityRole::Present).await?;
            authorities.insert(*tenant, present.map(|row| sha256(&row.certificate)));
        }
    }
    let now_ms = parts.clock.now_ms();
    let (mut due, mut unwanted) = (wanted.clone(), Vec::new());
    for row in origin_identity::all(&mut read).await? {
        let place = (row.tenant, row.cell.clone());
        let epoch = epochs.get(&row.cell).copied().flatten();
        let authority = authorities.get(&row.tenant).and_then(Option::as_ref);
        if !wanted.contains(&place) {
            unwanted.push(row);
        } else if is_good(&row, epoch, authority, now_ms) {
            due.remove(&place);
        }
    }
    Ok((due.into_iter().collect(), unwanted))
}

/// Forgets authorities that were replaced, as far as it is time.
async fn finish(parts: &Parts) -> Result<(), StoreError> {
    let mut read = parts.store.read().await?;
    let mut due = Vec::new();
    for tenant in origin_identity::with_previous(&mut read).await? {
        if app::all_switched(&mut read, tenant).await?.is_some() {
            due.push(tenant);
        }
    }
    drop(read);
    for tenant in due {
        let mut tx = parts.store.begin().await?;
        if app::finish(&mut tx, tenant, parts.clock.now_ms()).await? {
            tracing::info!(%tenant, "the origin authority before the present one is forgotten");
        }
        tx.commit().await?;
    }
    Ok(())
}

async fn make(parts: &Parts, places: &[(TenantId, CellId)]) -> Result<(), IdentityError> {
    let mut tx = parts.store.begin().await?;
    let mut made = 0;
    for (tenant, cell) in places {
        match ensure(&mut tx, &parts.sealer, (*tenant, cell), parts.clock.now_ms()).await {
            Ok(did) => made += usize::from(did),
            Err(error @ IdentityError::Store(_)) => return Err(error),
            // One tenant's damage is not the others'.
            Err(error) => tracing::warn!(
                %tenant,
                %cell,
                error = &error as &dyn std::error::Error,
                "an origin identity could not be made"
            ),
        }
    }
    tx.commit().await?;
    if made > 0 {
        tracing::info!(made, "origin identities were made");
    }
    Ok(())
}

//! What the CA says of a first cell's authorizations, for the cells that follow.

use super::Issuance;
use crate::acme::{AuthorizationStatus, CaOrder};
use crate::plan::cells;
use crate::store::order::OrderRow;
use crate::store::{StoreError, fan_out};

/// Reads until when all authorizations of an order stand, and notes it, where other cells are to follow. What a valid one
/// says is not what it said while it was pending, so each is asked for anew. Of no consequence for the order itself: where the
/// CA does not say, those that follow are validated again.
pub(super) async fn note(issuance: &Issuance, row: &OrderRow, order: &mut CaOrder) -> Result<(), StoreError> {
    // Backups of several cells have no window of their own: they are ordered when nothing else is.
    if row.backup || !fan_out::has_siblings(&mut *issuance.parts.store.read().await?, row.lineage).await? {
        return Ok(());
    }
    let authorizations = match order.authorizations(true).await {
        Ok(authorizations) => authorizations,
        Err(error) => {
            tracing::info!(order = %row.id, %error, "until when its authorizations stand is not known");
            return Ok(());
        }
    };
    let stands = |one: &crate::acme::CaAuthorization| {
        one.expires_ms.filter(|_| one.status == AuthorizationStatus::Valid)
    };
    let all: Option<Vec<i64>> = authorizations.iter().map(stands).collect();
    let Some(until) = all.and_then(|all| all.into_iter().min()) else { return Ok(()) };
    let mut tx = issuance.parts.store.begin().await?;
    fan_out::note(&mut tx, row.id, until).await?;
    tx.commit().await
}

/// Tells the operator of what is to be in more cells than the CAs' limits bear: a limit may have been made stricter since the
/// API let it pass.
pub(super) async fn warn(issuance: &Issuance) -> Result<(), StoreError> {
    let Some((issuer, borne)) = cells::least(&issuance.parts.config.issuers, &[cells::ANY_NAME.to_owned()])
    else {
        return Ok(());
    };
    let found = fan_out::in_more_cells_than(&mut *issuance.parts.store.read().await?, borne.cells).await?;
    if let Some((who, wanted)) = found.first() {
        tracing::error!(
            issuer = issuer.name,
            "{who} is to be served by {wanted} cells, and {} more by too many; {} are borne: {}; further cells get no \
             certificate",
            found.len() - 1,
            borne.cells,
            borne.why()
        );
    }
    Ok(())
}

//! The reconciler of uploaded certificates: takes them from where they are needed no more, and tells their tenants in time
//! that they end.
//!
//! A key leaves a cell when the last of its hostnames there has gone: deleted, proved by another tenant, or moved to other
//! cells. Nothing is renewed here; after an end edges show what else there is by themselves.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use portico_cert_store::{CellId, DomainId};

use crate::Parts;
use crate::clock::{DAY_MS, HOUR_MS, rfc3339};
use crate::store::uploaded::{self, Uploaded, UploadedLineage};
use crate::store::{StoreError, WriteTx, event, group};

/// Ends are looked at so often, and what has changed at most so often.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// What has been replaced or removed is listed for so long after it was uploaded; looked at once an hour.
const KEPT_MS: i64 = 30 * DAY_MS;

/// The second word about an end comes when this share of the lifetime is left.
const VERY_SOON_SHARE: i64 = 10;

/// Runs until the control plane ends.
///
/// # Errors
/// None of its own: a round that fails is logged and done again.
pub async fn run(parts: Parts) -> anyhow::Result<()> {
    let mut changes = parts.store.changes();
    let mut pruned_at_ms = 0;
    loop {
        if let Err(error) = round(&parts, &mut pruned_at_ms).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "uploaded certificates could not be looked at"
            );
        }
        tokio::select! {
            () = parts.shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_PAUSE) => {}
        }
        tokio::select! {
            () = parts.shutdown.cancelled() => return Ok(()),
            _ = changes.changed() => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

async fn round(parts: &Parts, pruned_at_ms: &mut i64) -> Result<(), StoreError> {
    look(parts).await?;
    prune(parts, pruned_at_ms).await
}

async fn look(parts: &Parts) -> Result<(), StoreError> {
    let now = parts.clock.now_ms();
    let mut read = parts.store.read().await?;
    let all = uploaded::all(&mut read).await?;
    let cells = uploaded::served_cells(&mut read).await?;
    drop(read);
    let is_due = |lineage: &UploadedLineage| {
        word(lineage, now) > lineage.told || staying(&cells, lineage).len() < lineage.names.len()
    };
    for group in all.iter().filter(|found| found.lineages.iter().any(is_due)).map(|found| found.group) {
        let mut tx = parts.store.begin().await?;
        // Anew: it may have been replaced since.
        if let Some(found) = uploaded::find(&mut tx, group).await? {
            let cells = uploaded::served_cells(&mut tx).await?;
            tell(&mut tx, &found, now).await?;
            withdraw(&mut tx, &found, &cells, now).await?;
        }
        tx.commit().await?;
    }
    Ok(())
}

async fn prune(parts: &Parts, pruned_at_ms: &mut i64) -> Result<(), StoreError> {
    let now = parts.clock.now_ms();
    if now - *pruned_at_ms < HOUR_MS {
        return Ok(());
    }
    let mut tx = parts.store.begin().await?;
    uploaded::prune(&mut tx, now - KEPT_MS).await?;
    tx.commit().await?;
    *pruned_at_ms = now;
    Ok(())
}

type Cells = HashMap<DomainId, Vec<CellId>>;

/// The hostnames that are still to be served with it in this cell.
fn staying(cells: &Cells, lineage: &UploadedLineage) -> BTreeMap<String, DomainId> {
    let stays = |domain: &DomainId| cells.get(domain).is_some_and(|cells| cells.contains(&lineage.cell));
    lineage.names.iter().filter(|(_, domain)| stays(domain)).map(|(name, id)| (name.clone(), *id)).collect()
}

async fn withdraw(tx: &mut WriteTx, found: &Uploaded, cells: &Cells, now_ms: i64) -> Result<(), StoreError> {
    let mut left = BTreeMap::new();
    for lineage in &found.lineages {
        let names = staying(cells, lineage);
        if names.is_empty() {
            uploaded::retire_lineage(tx, lineage.id, now_ms).await?;
        } else if names.len() < lineage.names.len() {
            uploaded::serve(tx, lineage.id, &names).await?;
        }
        left.extend(names);
    }
    if !left.is_empty() {
        return group::put_names(tx, found.group, &left).await;
    }
    group::retire(tx, found.group, now_ms).await?;
    let text =
        format!("the uploaded certificate of {} was removed: it serves no name any more", listed(found));
    let subject = subject(found);
    event::append(tx, "certificate.removed", Some(found.tenant), &subject, &text, now_ms).await
}

async fn tell(tx: &mut WriteTx, found: &Uploaded, now_ms: i64) -> Result<(), StoreError> {
    let Some(first) = found.lineages.first() else { return Ok(()) };
    let words = word(first, now_ms);
    if words > first.told {
        let ends = rfc3339(first.not_after);
        let (kind, text) = if words == OVER {
            ("certificate.expired", format!("the uploaded certificate of {} ended at {ends}", listed(found)))
        } else {
            let text =
                format!("the uploaded certificate of {} ends at {ends}; upload the next", listed(found));
            ("certificate.ends_soon", text)
        };
        event::append(tx, kind, Some(found.tenant), &subject(found), &text, now_ms).await?;
    }
    for lineage in &found.lineages {
        uploaded::set_told(tx, lineage.credential, words.max(lineage.told)).await?;
    }
    Ok(())
}

const OVER: u8 = 3;

/// What is to be said of an end by now: nothing (0), that it is near (1), very near (2), or past.
fn word(lineage: &UploadedLineage, now_ms: i64) -> u8 {
    let very_soon = lineage.not_after - (lineage.not_after - lineage.not_before) / VERY_SOON_SHARE;
    if lineage.not_after <= now_ms {
        OVER
    } else if very_soon <= now_ms {
        2
    } else {
        u8::from(lineage.renew_at <= now_ms)
    }
}

fn subject(found: &Uploaded) -> String {
    found.lineages.first().map(|lineage| lineage.credential.to_string()).unwrap_or_default()
}

fn listed(found: &Uploaded) -> String {
    found.names.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

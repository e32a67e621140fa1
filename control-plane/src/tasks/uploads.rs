//! The reconciler of uploaded certificates: takes them from where they are needed no more, tells their tenants in time that they
//! end, and destroys keys that have waited for their certificates in vain.
//!
//! A key leaves a cell when the last of its hostnames there has gone: deleted, proved by another tenant, or moved to other
//! cells. Nothing is renewed here; after an end edges show what else there is by themselves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use portico_cert_store::{CellId, DomainId, GroupId};

use crate::Parts;
use crate::app::certificate_request::described;
use crate::clock::{DAY_MS, HOUR_MS, is_within, rfc3339};
use crate::plan::timing::{self, TOLD_OVER};
use crate::store::uploaded::{self, Uploaded, UploadedLineage};
use crate::store::{Store, StoreError, WriteTx, audit, certificate_request, change, event, group};

/// Ends are looked at so often, and what has changed at most so often.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// What has been replaced or removed is listed for so long after it was uploaded; looked at once an hour.
const KEPT_MS: i64 = 30 * DAY_MS;

/// Requests that one transaction ends.
const EXPIRED_AT_ONCE: u32 = 64;

/// Groups that are read at once.
const TOGETHER: usize = 500;

/// Runs until the control plane ends.
///
/// # Errors
/// None of its own: a round that fails is logged and done again.
pub async fn run(parts: Parts) -> anyhow::Result<()> {
    let mut changes = parts.store.changes();
    let (mut seen, mut pruned_at_ms) = (None, 0);
    loop {
        if let Err(error) = round(&parts, &mut seen, &mut pruned_at_ms).await {
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

async fn round(parts: &Parts, seen: &mut Option<u64>, pruned_at_ms: &mut i64) -> Result<(), StoreError> {
    let now_ms = parts.clock.now_ms();
    look(&parts.store, now_ms, seen).await?;
    expire(&parts.store, now_ms).await?;
    prune(parts, pruned_at_ms).await
}

/// Looks at those of which there is something to tell, and at those with a domain that changed since `seen`; at all where
/// that is `None`. Answers how many these were.
async fn look(store: &Store, now_ms: i64, seen: &mut Option<u64>) -> Result<usize, StoreError> {
    let mut read = store.read().await?;
    let newest = change::last_sequence(&mut read).await?;
    let mut groups: BTreeSet<GroupId> = match *seen {
        None => uploaded::groups(&mut read).await?,
        Some(seen) if seen == newest => Vec::new(),
        Some(seen) => uploaded::groups_changed_after(&mut read, seen).await?,
    }
    .into_iter()
    .collect();
    groups.extend(uploaded::groups_to_tell(&mut read, now_ms).await?);
    let groups: Vec<GroupId> = groups.into_iter().collect();
    let mut due = Vec::new();
    for groups in groups.chunks(TOGETHER) {
        let found = uploaded::of_groups(&mut read, groups).await?;
        let domains: Vec<DomainId> = found.iter().flat_map(Uploaded::domains).collect();
        let cells = uploaded::served_cells(&mut read, &domains).await?;
        due.extend(found.iter().filter(|found| is_due(found, &cells, now_ms)).map(|found| found.group));
    }
    drop(read);
    for group in due {
        let mut tx = store.begin().await?;
        // Anew: it may have been replaced since.
        if let Some(found) = uploaded::find(&mut tx, group).await? {
            let domains: Vec<DomainId> = found.domains().collect();
            let cells = uploaded::served_cells(&mut tx, &domains).await?;
            tell(&mut tx, &found, now_ms).await?;
            withdraw(&mut tx, &found, &cells, now_ms).await?;
        }
        tx.commit().await?;
    }
    *seen = Some(newest);
    Ok(groups.len())
}

fn is_due(found: &Uploaded, cells: &Cells, now_ms: i64) -> bool {
    found.lineages.iter().any(|lineage| {
        timing::told_by(&lineage.ends(), now_ms) > lineage.told
            || staying(cells, lineage).len() < lineage.names.len()
    })
}

/// Destroys keys whose certificates have not come in their time.
async fn expire(store: &Store, now_ms: i64) -> Result<(), StoreError> {
    loop {
        if certificate_request::expired(&mut *store.read().await?, now_ms, 1).await?.is_empty() {
            return Ok(());
        }
        let mut tx = store.begin().await?;
        for row in certificate_request::expired(&mut tx, now_ms, EXPIRED_AT_ONCE).await? {
            certificate_request::delete(&mut tx, row.id).await?;
            let (subject, names) = (row.id.to_string(), row.names.join(", "));
            let entry = audit::Entry {
                at: now_ms,
                actor: "system",
                request_id: "",
                action: "certificate_request.expire",
                subject: &subject,
                before: described(&row),
                after: serde_json::Value::Null,
            };
            audit::append(&mut tx, &entry).await?;
            let text = format!(
                "the key of the certificate request for {names} was destroyed: no certificate for it was uploaded by {}; make \
                 another request if one is to come",
                rfc3339(row.expires_at)
            );
            let kind = "certificate_request.expired";
            event::append(&mut tx, kind, Some(row.tenant), &subject, &text, now_ms).await?;
        }
        tx.commit().await?;
    }
}

async fn prune(parts: &Parts, pruned_at_ms: &mut i64) -> Result<(), StoreError> {
    let now = parts.clock.now_ms();
    if is_within(HOUR_MS, *pruned_at_ms, now) {
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
    // Its cells are asked for the next at moments apart; the first of them counts.
    let words = found.lineages.iter().map(|lineage| timing::told_by(&lineage.ends(), now_ms)).max();
    let told = found.lineages.iter().map(|lineage| lineage.told).max();
    let (Some(words), Some(told), Some(first)) = (words, told, found.lineages.first()) else { return Ok(()) };
    if words > told {
        let ends = rfc3339(first.not_after);
        let (kind, text) = if words == TOLD_OVER {
            ("certificate.expired", format!("the uploaded certificate of {} ended at {ends}", listed(found)))
        } else {
            let text =
                format!("the uploaded certificate of {} ends at {ends}; upload the next", listed(found));
            ("certificate.ends_soon", text)
        };
        event::append(tx, kind, Some(found.tenant), &subject(found), &text, now_ms).await?;
    }
    let told = words.max(told);
    for lineage in &found.lineages {
        let next = timing::tell_at(&lineage.ends(), told);
        uploaded::set_told(tx, lineage.credential, told, next).await?;
    }
    Ok(())
}

fn subject(found: &Uploaded) -> String {
    found.lineages.first().map(|lineage| lineage.credential.to_string()).unwrap_or_default()
}

fn listed(found: &Uploaded) -> String {
    found.names.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;

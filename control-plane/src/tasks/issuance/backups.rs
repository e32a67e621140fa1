//! Backup certificates at work: groups and lineages as planned ([`crate::plan::backups`]), and what becomes of their orders.
//!
//! An order for a backup goes the way of any other, to the same gate. It differs in what its failures mean: nothing for the
//! names and their groups, whose certificates serve all the while.

use std::sync::Arc;

use portico_cert_store::{GroupId, LineageId};

use super::Issuance;
use super::health::fresh_ms;
use super::slots::Slots;
use super::stopped::{Ran, over};
use crate::clock;
use crate::plan::backups::{self, BackupChange};
use crate::plan::issuers::RestrictionKind;
use crate::plan::reconcile::Facts;
use crate::plan::timing;
use crate::store::backup::{self, Backup};
use crate::store::group::{self, GroupRow};
use crate::store::order::{self, OrderRow};
use crate::store::{StoreError, credential, event};

impl Issuance {
    /// Brings the groups of backups and their lineages in line with the plan; answers whether anything has changed.
    pub(super) async fn arrange_backups(
        self: &Arc<Self>,
        facts: &Facts,
        slots: &Slots,
    ) -> Result<bool, StoreError> {
        let changes = backups::changes(facts);
        let leaving = backups::lineages_to_retire(facts);
        if changes.is_empty() && leaving.is_empty() {
            return Ok(false);
        }
        let now = facts.now_ms;
        for open in facts.open_orders.iter().filter(|open| leaving.contains(&open.lineage)) {
            let row = async { order::find(&mut *self.parts.store.read().await?, open.id).await };
            let row = row.await?.filter(|row| !row.state.is_over() && !slots.runs(row.id));
            if let Some(row) = row {
                give_up(self, &row).await?;
            }
        }
        let mut tx = self.parts.store.begin().await?;
        for change in changes {
            match change {
                BackupChange::New { of, tenant, cells, names, shown } => {
                    let row = GroupRow { id: GroupId::generate(), tenant, cells, alone: false, names };
                    backup::insert(&mut tx, of, &row, shown, now).await?;
                }
                BackupChange::Names { group, names, shown } => {
                    group::put_names(&mut tx, group, &names).await?;
                    if shown {
                        backup::set_state(&mut tx, &lineages_of(facts, group), Backup::Shown).await?;
                    }
                }
                BackupChange::Retire { group } => group::retire(&mut tx, group, now).await?,
            }
        }
        for lineage in leaving {
            // What runs ends first: a certificate must not come for a lineage that is gone.
            if !facts.open_orders.iter().any(|open| open.lineage == lineage && slots.runs(open.id)) {
                credential::retire_lineage(&mut tx, lineage, now).await?;
            }
        }
        tx.commit().await?;
        Ok(true)
    }
}

fn lineages_of(facts: &Facts, group: GroupId) -> Vec<LineageId> {
    let of = facts.backups.groups.iter().filter(|backup| backup.id == group);
    of.flat_map(|backup| &backup.lineages).map(|lineage| lineage.id).collect()
}

async fn give_up(issuance: &Arc<Issuance>, row: &OrderRow) -> Result<Ran, StoreError> {
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    order::fail(&mut tx, row.id, now, "no backup is wanted any more", now).await?;
    over(issuance, tx, row, "BackupUnwanted").await
}

/// A name that an issuer will not have, or cannot validate, for a backup.
pub(super) struct Unwanted {
    pub(super) name: String,
    pub(super) why: String,
    /// `None`: a validation failed.
    pub(super) kind: Option<RestrictionKind>,
}

/// Leaves names out of what this issuer is asked for; the order is over, and one for the others may follow.
pub(super) async fn leave_out(
    issuance: &Arc<Issuance>,
    row: &OrderRow,
    unwanted: Vec<Unwanted>,
) -> Result<Ran, StoreError> {
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    let mut texts = Vec::new();
    for Unwanted { name, why, kind } in unwanted {
        let Some(index) = row.names.iter().position(|own| *own == name) else { continue };
        let domain = row.domains[index];
        let attempts = backup::attempts(&mut tx, domain, &row.issuer).await? + 1;
        let seed = timing::seed_of(row.lineage) ^ u64::from(attempts);
        let fresh = kind.map(|kind| now + fresh_ms(kind));
        let until = fresh.unwrap_or(0).max(timing_after(now, attempts, seed));
        backup::put_failure(&mut tx, (domain, &row.issuer), attempts, until, &why).await?;
        texts.push(format!("{name}: {why}"));
    }
    let text = format!("{} has not issued the backup: {}", row.issuer, texts.join("; "));
    // Where no name of ours was named the same order would be refused again at once.
    let retry_at = if texts.is_empty() { timing_after(now, 1, timing::seed_of(row.lineage)) } else { now };
    order::fail(&mut tx, row.id, retry_at, &text, now).await?;
    event::append(&mut tx, "backup.failed", row.tenant, &row.id.to_string(), &text, now).await?;
    tracing::info!(order = %row.id, names = ?row.names, text, "names are left out of a backup");
    over(issuance, tx, row, "BackupFailed").await
}

fn timing_after(now: i64, attempts: u32, seed: u64) -> i64 {
    now + timing::after_failures(attempts, seed)
}

/// What is to be told of a backup that was issued.
pub(super) fn told(row: &OrderRow, not_after: i64) -> (&'static str, String) {
    let kind = if row.renewal { "backup.renewed" } else { "backup.issued" };
    (kind, format!("{} of {} until {}", row.names.join(", "), row.issuer, clock::rfc3339(not_after)))
}

//! Which names have a backup certificate standing by, and which orders that takes.
//!
//! A backup is of another issuer than what serves, with another key, so that neither a CA's trouble nor a lost key
//! takes both. It is ordered when all else is done: only for names whose certificate serves and is not due, of an
//! issuer that works, and within half of each limit ([`super::ledger`]). One that is shown is what serves, and is
//! renewed as such. What serves is planned as if there were no backups.
//!
//! A name that an issuer will not have for a backup is left out for a while and fails in nothing else.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use portico_cert_store::{CellId, DomainId, GroupId, LineageId, TenantId};

use super::issuers::{IssuerFacts, Standing};
use super::reconcile::{
    DueOrder, Facts, Names, fair, holds_retired, is_orderable, name_set, same_names, spent,
};
use crate::store::backup::{Backup, BackupGroup, BackupLineage};
use crate::store::group::{GroupRow, LineageRow, LiveCredential};

/// Orders for backups that may be open at a time: few, for what they hold of the CA is not there for what serves.
const ORDERS_OPEN_MAX: usize = 16;

/// What is known of backups.
#[derive(Clone, Debug, Default)]
pub struct Backups {
    /// Whether names have one whose tenant and domain say nothing.
    pub by_default: bool,
    pub groups: Vec<BackupGroup>,
    /// Until when an issuer is not asked for a name's backup.
    pub left_out: HashMap<(DomainId, String), i64>,
}

/// How backups are to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupChange {
    /// `shown`: names of it are switched to another backup, which this one is to follow.
    New { of: GroupId, tenant: Option<TenantId>, cells: Vec<CellId>, names: Names, shown: bool },
    /// `shown`: names come to it that are switched to another backup, which this one is to follow.
    Names { group: GroupId, names: Names, shown: bool },
    /// It orders nothing any more.
    Retire { group: GroupId },
}

/// What must change for each group to have the backup that its names' owners wish.
pub fn changes(facts: &Facts) -> Vec<BackupChange> {
    let wishing = wishing(facts);
    let mut standing: HashMap<GroupId, &BackupGroup> = facts
        .backups
        .groups
        .iter()
        .filter(|backup| !backup.leaving)
        .map(|backup| (backup.of, backup))
        .collect();
    let shown = shown_domains(facts);
    let mut changes = Vec::new();
    for group in &facts.groups {
        let has_another_issuer = facts.issuers.preferred(group.tenant).len() > 1;
        let wanted = group.names.iter().filter(|(_, domain)| has_another_issuer && wishing.contains(domain));
        let names: Names = wanted.map(|(name, domain)| (name.clone(), *domain)).collect();
        match standing.remove(&group.id) {
            None if names.is_empty() => {}
            None => changes.push(BackupChange::New {
                of: group.id,
                tenant: group.tenant,
                cells: group.cells.clone(),
                shown: names.values().any(|domain| shown.contains(domain)),
                names,
            }),
            Some(backup) if names.is_empty() => changes.push(BackupChange::Retire { group: backup.id }),
            Some(backup) if backup.names != names => {
                let mut coming = names.iter().filter(|(name, _)| !backup.names.contains_key(*name));
                let shown = coming.any(|(_, domain)| shown.contains(domain));
                changes.push(BackupChange::Names { group: backup.id, names, shown });
            }
            Some(_) => {}
        }
    }
    // Of groups that are retired.
    let mut left: Vec<GroupId> = standing.values().map(|backup| backup.id).collect();
    left.sort();
    changes.extend(left.into_iter().map(|group| BackupChange::Retire { group }));
    changes
}

/// Lineages that nobody needs any more. What is shown stays until its names are gone, or shown by another backup.
pub fn lineages_to_retire(facts: &Facts) -> Vec<LineageId> {
    let served: HashSet<DomainId> = facts.domains.iter().map(|domain| domain.id).collect();
    let mut followed: HashSet<(&CellId, DomainId)> = HashSet::new();
    for backup in facts.backups.groups.iter().filter(|backup| !backup.leaving) {
        for lineage in backup.lineages.iter().filter(|lineage| is_shown(lineage)) {
            followed.extend(lineage.holds.values().map(|domain| (&lineage.cell, *domain)));
        }
    }
    let is_needed = |lineage: &BackupLineage| {
        let holds =
            |domain: &DomainId| served.contains(domain) && !followed.contains(&(&lineage.cell, *domain));
        let is_valid = lineage.live.as_ref().is_some_and(|live| live.not_after > facts.now_ms);
        is_shown(lineage) && is_valid && lineage.holds.values().any(holds)
    };
    let leaving = facts.backups.groups.iter().filter(|backup| backup.leaving);
    leaving.flat_map(|backup| &backup.lineages).filter(|one| !is_needed(one)).map(|one| one.id).collect()
}

/// Orders for backups that are due and have room. Groups must be as [`changes`] wants them.
pub fn orders_due(facts: &Facts) -> Vec<DueOrder> {
    let open = facts.open_orders.iter().filter(|open| open.backup).count();
    let view = View::of(facts);
    let mut by_tenant: BTreeMap<Option<TenantId>, Vec<DueOrder>> = BTreeMap::new();
    for backup in facts.backups.groups.iter().filter(|backup| !backup.leaving) {
        if let Some(due) = view.due(backup) {
            by_tenant.entry(backup.tenant).or_default().push(due);
        }
    }
    let queues = by_tenant.into_iter().map(|(tenant, due)| (spent(facts, tenant), due)).collect();
    let mut tried = HashSet::new();
    let is_first = |due: &DueOrder| !view.is_on_trial(&due.issuer) || tried.insert(due.issuer.clone());
    fair(queues).into_iter().filter(is_first).take(ORDERS_OPEN_MAX.saturating_sub(open)).collect()
}

/// How many are staged and shown, and how many are not there that should be.
pub fn count(facts: &Facts) -> (usize, usize, usize) {
    let is_valid =
        |lineage: &&BackupLineage| lineage.live.as_ref().is_some_and(|live| live.not_after > facts.now_ms);
    let lineages = facts.backups.groups.iter().flat_map(|backup| &backup.lineages);
    let shown = lineages.clone().filter(is_valid).filter(|lineage| is_shown(lineage)).count();
    let staged = lineages.clone().filter(is_valid).count() - shown;
    let standing = facts.backups.groups.iter().filter(|backup| !backup.leaving);
    let wanted = standing.flat_map(|backup| &backup.lineages).filter(|lineage| !is_valid(lineage)).count();
    (staged, shown, wanted)
}

/// Domains whose names are to have one.
fn wishing(facts: &Facts) -> HashSet<DomainId> {
    let wishes = facts.domains.iter().filter(|domain| {
        let wish = domain.spec.backup_certificate.or(domain.tenant_backups);
        domain.spec.issue_certificates && wish.unwrap_or(facts.backups.by_default)
    });
    wishes.map(|domain| domain.id).collect()
}

fn shown_domains(facts: &Facts) -> HashSet<DomainId> {
    let lineages = facts.backups.groups.iter().flat_map(|backup| &backup.lineages);
    lineages.filter(|lineage| is_shown(lineage)).flat_map(|one| one.holds.values().copied()).collect()
}

fn is_shown(lineage: &BackupLineage) -> bool {
    lineage.state == Backup::Shown && lineage.live.is_some()
}

struct View<'a> {
    facts: &'a Facts,
    groups: HashMap<GroupId, &'a GroupRow>,
    serving: HashMap<(GroupId, &'a CellId), &'a LineageRow>,
    open: HashSet<LineageId>,
    /// Of them, those that wait for an edge to make their keys, and hold up nothing.
    lacking_key: HashSet<LineageId>,
}

impl<'a> View<'a> {
    fn of(facts: &'a Facts) -> Self {
        Self {
            facts,
            groups: facts.groups.iter().map(|group| (group.id, group)).collect(),
            serving: facts.lineages.iter().map(|lineage| ((lineage.group, &lineage.cell), lineage)).collect(),
            open: facts.open_orders.iter().map(|open| open.lineage).collect(),
            lacking_key: facts.open_orders.iter().filter(|o| o.lacks_key).map(|o| o.lineage).collect(),
        }
    }

    /// The order of a backup for the first of its cells that needs one.
    fn due(&self, backup: &'a BackupGroup) -> Option<DueOrder> {
        let holds_up = |id: &LineageId| self.open.contains(id) && !self.lacking_key.contains(id);
        if backup.lineages.iter().any(|lineage| holds_up(&lineage.id)) {
            return None;
        }
        let group = self.groups.get(&backup.of)?;
        let mut free = backup.lineages.iter().filter(|lineage| !self.open.contains(&lineage.id));
        free.find_map(|lineage| self.due_in_cell(backup, group, lineage))
    }

    fn due_in_cell(
        &self,
        backup: &'a BackupGroup,
        group: &GroupRow,
        lineage: &'a BackupLineage,
    ) -> Option<DueOrder> {
        let now = self.facts.now_ms;
        let serving = self.serving.get(&(group.id, &lineage.cell))?;
        // What is shown does not wait for what it stands in for: that one's issuer may be gone for good.
        let is_ripe = |live: &&LiveCredential| is_shown(lineage) || live.renew_at > now;
        let served_by = serving.live.as_ref().filter(is_ripe)?;
        let is_replaced = self.open.contains(&serving.id) && !is_shown(lineage);
        let waits = self.facts.retry_at.get(&lineage.id).is_some_and(|at| *at > now);
        if is_replaced || waits {
            return None;
        }
        let names: Names = backup
            .names
            .iter()
            .filter(|(name, domain)| serving.serves.contains_key(*name) && is_orderable(self.facts, **domain))
            .map(|(name, domain)| (name.clone(), *domain))
            .collect();
        let (issuer, names) = self.choose(backup.tenant, &served_by.issuer, &names)?;
        let holds_all = names.iter().all(|(name, domain)| lineage.holds.get(name) == Some(domain));
        let is_over = |live: &LiveCredential| {
            live.renew_at <= now
                || live.issuer == served_by.issuer
                || holds_retired(self.facts, &backup.names, Some(live))
        };
        if holds_all && lineage.live.as_ref().is_some_and(|live| !is_over(live)) {
            return None;
        }
        let has_cells = backup.lineages.iter().filter(|other| other.live.is_some()).count();
        let borne = self.facts.cells_max.get(&issuer.name).copied().unwrap_or(usize::MAX);
        if lineage.live.is_none() && has_cells >= borne {
            return None;
        }
        let of_issuer = lineage.live.as_ref().filter(|live| live.issuer == issuer.name);
        let replaces = of_issuer.map(|live| live.id).filter(|id| !self.facts.replaced.contains(id));
        Some(DueOrder {
            issuer: issuer.name.clone(),
            lineage: lineage.id,
            group: backup.id,
            tenant: backup.tenant,
            cell: lineage.cell.clone(),
            name_set: name_set(names.keys().map(String::as_str)),
            renewal: lineage.live.as_ref().is_some_and(|live| same_names(&live.names, &names)),
            deadline: lineage.live.as_ref().filter(|_| is_shown(lineage)).map(|live| live.deadline()),
            window_until: None,
            backup: true,
            replaces,
            names,
        })
    }

    fn is_on_trial(&self, issuer: &str) -> bool {
        let mut all = self.facts.issuers.all.iter();
        all.any(|one| one.name == issuer && one.health.standing(self.facts.now_ms) == Standing::Trial)
    }

    /// One that was away is tried by one order at a time, which may be a backup's: nobody else may need it.
    fn works(&self, issuer: &IssuerFacts) -> bool {
        match issuer.health.standing(self.facts.now_ms) {
            Standing::Well => true,
            Standing::Trial => {
                let mut open = self.facts.open_orders.iter().filter(|open| !open.lacks_key);
                !open.any(|open| open.issuer == issuer.name)
            }
            Standing::Away => false,
        }
    }

    /// Of the issuers that work, but not that of what serves: the one that may have most of the names, the first of equals.
    fn choose(
        &self,
        tenant: Option<TenantId>,
        serving: &str,
        names: &Names,
    ) -> Option<(&'a IssuerFacts, Names)> {
        let now = self.facts.now_ms;
        let preferred = self.facts.issuers.preferred(tenant).into_iter();
        let others = preferred.filter(|issuer| issuer.name != serving && self.works(issuer));
        let all = others.map(|issuer| {
            let may = |domain: &DomainId| {
                let state = self.facts.names.get(domain);
                let forbidden = state.and_then(|state| state.issuers.get(&issuer.name));
                let left_out = self.facts.backups.left_out.get(&(*domain, issuer.name.clone()));
                forbidden.is_none_or(|known| !known.forbids(now))
                    && left_out.is_none_or(|until| *until <= now)
            };
            let names: Names = names
                .iter()
                .filter(|(_, domain)| may(domain))
                .map(|(name, domain)| (name.clone(), *domain))
                .collect();
            (issuer, names)
        });
        // Of equals `min_by_key` has the first.
        all.filter(|(_, names)| !names.is_empty()).min_by_key(|(_, names)| Reverse(names.len()))
    }
}

#[cfg(test)]
mod tests;

//! What is under way, as far as it holds up other orders.

use std::collections::{HashMap, HashSet};

use portico_cert_store::{CellId, LineageId, TenantId};

use super::{Facts, NEW_ORDERS_OF_TENANT_MAX, open_orders};
use crate::store::group::LineageRow;

/// Orders of what serves that are not over. One that waits for an edge to make its key holds up nothing but its own lineage: no CA
/// has heard of it, and that edge may be away for weeks.
pub(super) struct Open<'a> {
    lineages: HashSet<LineageId>,
    with_key: HashSet<LineageId>,
    sets: HashSet<&'a str>,
    of_tenant: HashMap<Option<TenantId>, usize>,
    lacking_key: HashMap<Option<TenantId>, usize>,
    /// Cells whose edge could not be asked.
    away: HashSet<&'a CellId>,
}

impl<'a> Open<'a> {
    pub(super) fn of(facts: &'a Facts) -> Self {
        let of_what_serves = || facts.open_orders.iter().filter(|open| !open.backup);
        let lacking = || of_what_serves().filter(|open| open.lacks_key);
        let waiting: HashSet<LineageId> = lacking().map(|open| open.lineage).collect();
        let away = facts.lineages.iter().filter(|lineage| waiting.contains(&lineage.id));
        Self {
            lineages: of_what_serves().map(|open| open.lineage).collect(),
            with_key: open_orders(facts).map(|open| open.lineage).collect(),
            sets: open_orders(facts).map(|open| open.name_set.as_str()).collect(),
            of_tenant: counted(open_orders(facts).map(|open| open.tenant)),
            lacking_key: counted(lacking().map(|open| open.tenant)),
            away: away.map(|lineage| &lineage.cell).collect(),
        }
    }

    pub(super) fn lineages(&self) -> &HashSet<LineageId> {
        &self.lineages
    }

    pub(super) fn has(&self, lineage: &LineageRow) -> bool {
        self.lineages.contains(&lineage.id)
    }

    /// The cells of a group follow one another.
    pub(super) fn holds_up(&self, lineages: &[&LineageRow]) -> bool {
        lineages.iter().any(|lineage| self.with_key.contains(&lineage.id))
    }

    pub(super) fn has_set(&self, name_set: &str) -> bool {
        self.sets.contains(name_set)
    }

    pub(super) fn count(&self, tenant: Option<TenantId>) -> usize {
        self.of_tenant.get(&tenant).copied().unwrap_or(0)
    }

    /// So many of a tenant's wait for an edge already that another would say nothing new.
    pub(super) fn would_wait(&self, tenant: Option<TenantId>, lineage: &LineageRow) -> bool {
        let waiting = self.lacking_key.get(&tenant).copied().unwrap_or(0);
        waiting >= NEW_ORDERS_OF_TENANT_MAX && self.away.contains(&lineage.cell)
    }
}

fn counted(tenants: impl Iterator<Item = Option<TenantId>>) -> HashMap<Option<TenantId>, usize> {
    let mut counts = HashMap::new();
    for tenant in tenants {
        *counts.entry(tenant).or_default() += 1;
    }
    counts
}

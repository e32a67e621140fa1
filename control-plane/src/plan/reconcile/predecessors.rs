//! Which certificate each due order replaces.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use portico_cert_store::{CellId, CredentialId, DomainId};

use super::{Facts, Names};
use crate::store::group::{LineageRow, LiveCredential};

/// Which certificate an order replaces: at most one, and each certificate at most once (RFC 9773 section 5). A group's own,
/// as a rule; but where names of a retired group's certificate, whose time has come, move to a group whose certificate has
/// time yet, that one, because a CA exempts an order from its limits within the window of what it replaces.
pub(super) struct Predecessors<'a> {
    now_ms: i64,
    taken: HashSet<CredentialId>,
    /// Certificates of retired groups, by what they cover in which cell.
    leaving: HashMap<(&'a CellId, DomainId), &'a LiveCredential>,
}

impl<'a> Predecessors<'a> {
    pub(super) fn of(facts: &'a Facts) -> Self {
        let mut leaving = HashMap::new();
        for lineage in facts.lineages.iter().filter(|lineage| lineage.leaving) {
            if let Some(live) = &lineage.live {
                leaving.extend(lineage.serves.values().map(|domain| ((&lineage.cell, *domain), live)));
            }
        }
        Self { now_ms: facts.now_ms, taken: facts.replaced.clone(), leaving }
    }

    /// What an order of `lineage` for `names` replaces; no other order will.
    pub(super) fn take(&mut self, lineage: &'a LineageRow, names: &Names) -> Option<CredentialId> {
        let shared =
            |live: &LiveCredential| live.names.iter().filter(|name| names.contains_key(*name)).count();
        let own = lineage.live.as_ref().filter(|live| shared(live) > 0);
        let left = names.values().filter_map(|domain| self.leaving.get(&(&lineage.cell, *domain)).copied());
        let rank = |(live, is_own): &(&LiveCredential, bool)| {
            (live.renew_at <= self.now_ms, *is_own, shared(live), Reverse(live.id))
        };
        let free = own.map(|live| (live, true)).into_iter().chain(left.map(|live| (live, false)));
        let free = free.filter(|(live, _)| !self.taken.contains(&live.id));
        let (chosen, _) = free.max_by_key(rank)?;
        self.taken.insert(chosen.id);
        Some(chosen.id)
    }
}

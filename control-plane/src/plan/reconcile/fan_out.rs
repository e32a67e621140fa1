//! The other cells of a group, as long as the CA takes the authorizations of the one that went first.

use std::collections::{HashMap, HashSet};

use portico_cert_store::{GroupId, LineageId};

use super::{Facts, same_names};
use crate::clock::MINUTE_MS;
use crate::plan::levelling::Ahead;
use crate::store::group::LineageRow;

/// An order takes minutes; what ends sooner is no help.
const MARGIN_MS: i64 = 10 * MINUTE_MS;

/// Lineages that follow another of their group.
#[derive(Debug, Default)]
pub(super) struct Followers {
    /// Until when the authorizations of the one before stand.
    pub(super) until: HashMap<LineageId, i64>,
    /// Of them, renewals that are not due yet and go now: later each of their names would be validated anew.
    pub(super) early: HashSet<LineageId>,
}

/// Who follows whom. A renewal is early by at most as much as any is that is levelled ([`Ahead`]), and of the exact names only.
pub(super) fn followers(facts: &Facts, by_group: &HashMap<GroupId, Vec<&LineageRow>>) -> Followers {
    let mut found = Followers::default();
    if facts.authorized_until.is_empty() {
        return found;
    }
    for group in facts.groups.iter().filter(|group| group.cells.len() > 1) {
        let lineages = by_group.get(&group.id).map(Vec::as_slice).unwrap_or_default();
        let window = |lineage: &&LineageRow| {
            let live = lineage.live.as_ref().filter(|live| same_names(&live.names, &group.names))?;
            let until = *facts.authorized_until.get(&lineage.id)?;
            (until > facts.now_ms + MARGIN_MS).then_some((until, live.issued_at, lineage.id))
        };
        let Some((until, issued_at, leader)) = lineages.iter().filter_map(window).max() else { continue };
        for lineage in lineages.iter().filter(|lineage| lineage.id != leader) {
            match &lineage.live {
                None => {
                    found.until.insert(lineage.id, until);
                }
                Some(live) if live.issued_at < issued_at => {
                    found.until.insert(lineage.id, until);
                    let ahead =
                        Ahead { lineage: lineage.id, issued_at: live.issued_at, due_at: live.renew_at };
                    let waits = facts.retry_at.get(&lineage.id).is_some_and(|at| *at > facts.now_ms);
                    let same = same_names(&live.names, &group.names);
                    if live.renew_at > facts.now_ms && same && !waits && ahead.is_of_age(facts.now_ms) {
                        found.early.insert(lineage.id);
                    }
                }
                Some(_) => {}
            }
        }
    }
    found
}

//! Keys that are replaced before their time: sees to it that each is, and forgets the old ones when the edges have the new.
//!
//! One loop over what the store has, so that a restart is another turn of it. The orders are the ordinary ones: a certificate
//! that is to be replaced counts as due ([`hasten`]).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use portico_cert_store::{CellId, CredentialId, EdgeId, Generation, LineageId};

use super::{Issuance, revoke};
use crate::clock::MINUTE_MS;
use crate::distribution::EdgeView;
use crate::store::group::LiveCredential;
use crate::store::rekey::{self, RekeyRow, Replaced, Wanted};
use crate::store::{StoreError, compromise, event, meta};

/// What is done, and what edges say, is looked at so often.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Certificates of one rekey that a turn looks at, and such as it writes down.
const LOOKED_AT: u32 = 4096;
const RETIRED_AT_ONCE: usize = 256;
/// An edge that was heard within this time is waited for: it may only be starting again. One that is away for longer gets what
/// is new before it serves anything to anybody who can reach it through us.
const REACHABLE_MS: i64 = 10 * MINUTE_MS;
/// Edges that are told to be behind.
const BEHIND_MAX: usize = 20;

/// What is to be replaced is due since it was asked for, and goes before others where it has to be over by some time: whoever
/// wants a certificate replaced before its time says so in `wanted`.
pub(super) fn hasten<'a>(
    live: impl Iterator<Item = &'a mut LiveCredential>,
    wanted: &HashMap<CredentialId, Wanted>,
) {
    for live in live {
        if let Some(wanted) = wanted.get(&live.id) {
            live.renew_at = live.renew_at.min(wanted.since);
            if let Some(by) = wanted.by {
                live.press(by);
            }
        }
    }
}

/// Runs until shutdown.
pub(super) async fn run(issuance: Arc<Issuance>) {
    let shutdown = issuance.parts.shutdown.clone();
    loop {
        if let Err(error) = turn(&issuance).await {
            tracing::warn!(%error, "keys that are to be replaced could not be looked at; it is done again");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

/// What one turn finds of one rekey.
struct Found {
    row: RekeyRow,
    lacking: Vec<CredentialId>,
    /// The edges have what took the place of these: their keys can be forgotten.
    confirmed: Vec<CredentialId>,
    /// The same, and they are to be revoked before.
    revocable: Vec<CredentialId>,
    behind: Vec<EdgeId>,
    is_over: bool,
}

async fn turn(issuance: &Arc<Issuance>) -> Result<(), StoreError> {
    let mut read = issuance.parts.store.read().await?;
    let open = rekey::open(&mut read).await?;
    if open.is_empty() {
        return Ok(());
    }
    let some_replaced = rekey::some_replaced(&mut read).await?;
    let refusals = rekey::refusals(&mut read).await?;
    let epoch = meta::epoch(&mut read).await?;
    let now = issuance.parts.clock.now_ms();
    let fleet = Reached { edges: issuance.fleet.edges(), refusals, epoch, now_ms: now };
    let mut all = Vec::with_capacity(open.len());
    for row in open {
        let lacking = rekey::lacking(&mut read, &row).await?;
        let replaced = rekey::replaced(&mut read, row.id, now, LOOKED_AT).await?;
        let progress = rekey::progress(&mut read, row.id).await?;
        let is_over = progress.certificates == progress.retired
            && lacking.is_empty()
            && !rekey::has_orders(&mut read, &row).await?;
        let (confirmed, behind) = fleet.judge(&replaced);
        let revocable: Vec<CredentialId> = replaced
            .iter()
            .filter(|one| one.revoke_first && confirmed.contains(&one.credential))
            .map(|one| one.credential)
            .collect();
        let confirmed = confirmed.into_iter().filter(|one| !revocable.contains(one)).collect();
        all.push(Found { row, lacking, confirmed, revocable, behind, is_over });
    }
    drop(read);
    let revocable: Vec<CredentialId> = all.iter().flat_map(|found| found.revocable.clone()).collect();
    if all.iter().any(|found| found.row.compromised) {
        revoke::turn(issuance, &revocable).await?;
    }
    let is_idle = |found: &Found| {
        found.lacking.is_empty()
            && found.confirmed.is_empty()
            && !found.is_over
            && found.behind == found.row.behind
    };
    if !some_replaced && all.iter().all(is_idle) {
        return Ok(());
    }
    let mut tx = issuance.parts.store.begin().await?;
    rekey::note_replaced(&mut tx, now).await?;
    for found in all {
        let id = found.row.id;
        for credential in found.lacking {
            rekey::add(&mut tx, id, credential).await?;
            if found.row.compromised {
                compromise::note_key_of(&mut tx, id, credential, now).await?;
            }
        }
        for credential in found.confirmed.into_iter().take(RETIRED_AT_ONCE) {
            rekey::retire(&mut tx, credential, now).await?;
        }
        if found.is_over {
            rekey::finish(&mut tx, id, now).await?;
            let revoked = if found.row.compromised { ", and their certificates revoked" } else { "" };
            let text = format!("the keys of {} are replaced{revoked}", crate::app::rekey::of(&found.row));
            tracing::info!(rekey = %id, text, "rekeyed");
            event::append(&mut tx, "keys.rekeyed", None, &id.to_string(), &text, now).await?;
        } else if found.behind != found.row.behind {
            rekey::set_behind(&mut tx, id, &found.behind).await?;
        }
    }
    tx.commit().await
}

/// The fleet as it is now.
struct Reached {
    edges: Vec<EdgeView>,
    /// Edges that refuse what a lineage has.
    refusals: HashMap<LineageId, Vec<EdgeId>>,
    epoch: u64,
    now_ms: i64,
}

impl Reached {
    /// Those that all edges in reach have a successor of, and the edges that lack one.
    fn judge(&self, replaced: &[Replaced]) -> (Vec<CredentialId>, Vec<EdgeId>) {
        let (mut confirmed, mut behind) = (Vec::new(), BTreeSet::new());
        for one in replaced {
            let lacking: Vec<EdgeId> = self.behind(one).collect();
            if lacking.is_empty() {
                confirmed.push(one.credential);
            }
            behind.extend(lacking);
        }
        (confirmed, behind.into_iter().take(BEHIND_MAX).collect())
    }

    fn behind<'a>(&'a self, one: &'a Replaced) -> impl Iterator<Item = EdgeId> + 'a {
        let generation = Generation { epoch: self.epoch, sequence: one.sequence };
        let refuses =
            |edge: EdgeId| self.refusals.get(&one.lineage).is_some_and(|refusing| refusing.contains(&edge));
        self.of_cell(&one.cell)
            .filter(move |edge| edge.applied < generation || refuses(edge.id))
            .map(|edge| edge.id)
    }

    fn of_cell<'a>(&'a self, cell: &'a CellId) -> impl Iterator<Item = &'a EdgeView> {
        let in_reach =
            |edge: &EdgeView| edge.live || edge.seen_at_ms.is_some_and(|at| at > self.now_ms - REACHABLE_MS);
        self.edges.iter().filter(move |edge| edge.cell == *cell && in_reach(edge))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000_000;

    fn edge(cell: &str, live: bool, sequence: u64, seen_ago_ms: i64) -> EdgeView {
        EdgeView {
            id: EdgeId::generate(),
            cell: CellId::parse(cell).unwrap(),
            live,
            here: true,
            applied: Generation { epoch: 1, sequence },
            facts: crate::distribution::Facts::default(),
            seen_at_ms: Some(NOW - seen_ago_ms),
        }
    }

    fn judged(edges: Vec<EdgeView>, refusing: &[EdgeId]) -> (bool, Vec<EdgeId>) {
        let one = Replaced {
            credential: CredentialId::generate(),
            lineage: LineageId::generate(),
            cell: CellId::parse("a").unwrap(),
            sequence: 7,
            revoke_first: false,
        };
        let refusals = HashMap::from([(one.lineage, refusing.to_vec())]);
        let (confirmed, behind) = Reached { edges, refusals, epoch: 1, now_ms: NOW }.judge(&[one]);
        (confirmed.len() == 1, behind)
    }

    #[test]
    fn every_edge_in_reach_has_to_have_what_is_new() {
        assert!(judged(vec![edge("a", true, 7, 0), edge("a", true, 9, 0)], &[]).0);
        let behind = edge("a", true, 6, 0);
        let id = behind.id;
        assert_eq!(judged(vec![edge("a", true, 7, 0), behind], &[]), (false, vec![id]));
        let starting_again = edge("a", false, 6, MINUTE_MS);
        assert!(!judged(vec![starting_again], &[]).0, "it may be back in a moment");
        assert!(judged(vec![edge("a", false, 6, REACHABLE_MS)], &[]).0, "it is away");
        assert!(judged(vec![edge("b", true, 6, 0)], &[]).0, "another cell's edges never had the key");
        let refusing = edge("a", true, 9, 0);
        let id = refusing.id;
        assert_eq!(judged(vec![refusing], &[id]), (false, vec![id]), "it has seen what it does not serve");
    }
}

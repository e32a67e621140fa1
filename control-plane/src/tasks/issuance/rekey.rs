//! Keys that are replaced before their time: sees to it that each is, and forgets the old ones when the edges have the new.
//!
//! One loop over what the store has, so that a restart is another turn of it. The orders are the ordinary ones: a certificate
//! that is to be replaced counts as due ([`hasten`]).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use portico_api::v1::RekeyId;
use portico_cert_store::{CellId, CredentialId, EdgeId, Generation, LineageId};

use super::Issuance;
use super::revoke::{Due, Revoking};
use crate::app::compromise;
use crate::clock::MINUTE_MS;
use crate::distribution::EdgeView;
use crate::store::group::LiveCredential;
use crate::store::rekey::{self, RekeyRow, Replaced, Wanted};
use crate::store::{self, Connection, StoreError, change, event, meta};

/// What is done, and what edges say, is looked at so often.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Certificates of one rekey that a turn looks at, and such as it writes down.
const LOOKED_AT: u32 = 4096;
const RETIRED_AT_ONCE: usize = 256;
/// Certificates, and keys that tenants brought, that one write adds to a rekey.
const TAKEN_IN_AT_ONCE: usize = 1000;
const UPLOADS_AT_ONCE: usize = 50;
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
    let (mut seen, mut revoking) = (Seen::default(), Revoking::default());
    loop {
        if let Err(error) = turn(&issuance, &mut seen, &mut revoking).await {
            tracing::warn!(%error, "keys that are to be replaced could not be looked at; it is done again");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

/// The changes up to which all has been looked at: whatever takes a certificate's place is a change of its lineage. A restart looks
/// at all again.
#[derive(Debug, Default)]
struct Seen {
    /// For what was replaced.
    replaced: Option<u64>,
    /// For what each rekey is about.
    gathered: HashMap<RekeyId, u64>,
}

/// What one turn finds of one rekey.
struct Found {
    row: RekeyRow,
    lacking: Vec<CredentialId>,
    /// Keys that tenants brought and that are to be noted as reported.
    uploads: Vec<Vec<u8>>,
    /// The edges have what took the place of these: their keys can be forgotten.
    confirmed: Vec<CredentialId>,
    behind: Vec<EdgeId>,
    is_over: bool,
}

impl Found {
    fn is_idle(&self) -> bool {
        self.lacking.is_empty()
            && self.uploads.is_empty()
            && self.confirmed.is_empty()
            && !self.is_over
            && self.behind == self.row.behind
    }
}

async fn turn(issuance: &Arc<Issuance>, seen: &mut Seen, revoking: &mut Revoking) -> Result<(), StoreError> {
    let mut read = issuance.parts.store.read().await?;
    let open = rekey::open(&mut read).await?;
    if open.is_empty() {
        *seen = Seen::default();
        return Ok(());
    }
    seen.gathered.retain(|id, _| open.iter().any(|row| row.id == *id));
    let last = change::last_sequence(&mut read).await?;
    let some_replaced = seen.replaced != Some(last) && rekey::some_replaced(&mut read, seen.replaced).await?;
    let refusals = rekey::refusals(&mut read).await?;
    let epoch = meta::epoch(&mut read).await?;
    let now = issuance.parts.clock.now_ms();
    let fleet = Reached { edges: issuance.fleet.edges(), refusals, epoch, now_ms: now };
    let mut due = Due::default();
    let mut all = Vec::with_capacity(open.len());
    for row in open {
        all.push(look(issuance, &mut read, &fleet, row, (&*seen, last), &mut due).await?);
    }
    drop(read);
    revoking.turn(issuance, due).await?;
    for found in &all {
        take_in(issuance, found).await?;
        seen.gathered.insert(found.row.id, last);
    }
    if some_replaced || !all.iter().all(Found::is_idle) {
        record(issuance, all, seen.replaced, now).await?;
    }
    seen.replaced = Some(last);
    Ok(())
}

/// Looks at one rekey, and notes what of it may be revoked by now.
async fn look(
    issuance: &Issuance,
    read: &mut Connection,
    fleet: &Reached,
    row: RekeyRow,
    (seen, last): (&Seen, u64),
    due: &mut Due,
) -> Result<Found, StoreError> {
    let gathered = seen.gathered.get(&row.id).copied();
    let (lacking, uploads) = match gathered == Some(last) {
        true => Default::default(),
        false => {
            let uploads = store::compromise::unnoted_uploads(read, &row).await?;
            (rekey::lacking(read, &row, gathered).await?, uploads)
        }
    };
    let replaced = rekey::replaced(read, row.id, fleet.now_ms, LOOKED_AT).await?;
    let is_over = lacking.is_empty()
        && uploads.is_empty()
        && !rekey::is_unfinished(read, row.id).await?
        && !rekey::has_orders(read, &row).await?;
    let (confirmed, behind) = fleet.judge(&replaced);
    let confirmed: HashSet<CredentialId> = confirmed.into_iter().collect();
    let confirmed: Vec<Replaced> =
        replaced.into_iter().filter(|one| confirmed.contains(&one.credential)).collect();
    let mut copies: HashMap<Vec<u8>, u64> = HashMap::new();
    for revocation in confirmed.iter().filter_map(|one| one.revocation.as_ref()) {
        *copies.entry(revocation.fingerprint_sha256.clone()).or_default() += 1;
    }
    let mut forgettable = Vec::with_capacity(confirmed.len());
    for one in confirmed {
        match one.revocation {
            None => forgettable.push(one.credential),
            // Nobody here can ask a CA that is not ours for it; the operator was told.
            Some(revocation) if revocation.adopted && issuance.issuer(&revocation.issuer).is_none() => {
                forgettable.push(one.credential);
            }
            Some(revocation) if copies[&revocation.fingerprint_sha256] < revocation.copies => {}
            Some(revocation) => due.replaced(one.credential, revocation, fleet.now_ms),
        }
    }
    if row.compromised {
        due.reported(&row, fleet.now_ms);
    }
    Ok(Found { row, lacking, uploads, confirmed: forgettable, behind, is_over })
}

/// Adds what a rekey lacks, in several writes where that is much, so that others have their turn.
async fn take_in(issuance: &Issuance, found: &Found) -> Result<(), StoreError> {
    let row = &found.row;
    let now = issuance.parts.clock.now_ms();
    for some in found.lacking.chunks(TAKEN_IN_AT_ONCE) {
        let mut tx = issuance.parts.store.begin().await?;
        if row.compromised {
            compromise::take_in(&mut tx, row, some, &issuance.parts.config.issuers, now).await?;
        } else {
            rekey::add(&mut tx, row.id, some, now).await?;
        }
        tx.commit().await?;
    }
    for some in found.uploads.chunks(UPLOADS_AT_ONCE) {
        let mut tx = issuance.parts.store.begin().await?;
        store::compromise::note_keys(&mut tx, row.id, some, now).await?;
        compromise::expose_uploaded(&mut tx, some, now).await?;
        tx.commit().await?;
    }
    Ok(())
}

async fn record(
    issuance: &Issuance,
    all: Vec<Found>,
    changed_after: Option<u64>,
    now: i64,
) -> Result<(), StoreError> {
    let mut tx = issuance.parts.store.begin().await?;
    rekey::note_replaced(&mut tx, changed_after, now).await?;
    for found in all {
        let id = found.row.id;
        for credential in found.confirmed.into_iter().take(RETIRED_AT_ONCE) {
            rekey::retire(&mut tx, credential, now).await?;
        }
        if found.is_over {
            rekey::finish(&mut tx, id, now).await?;
            let text = words(issuance, &mut tx, &found.row, now).await?;
            tracing::info!(rekey = %id, text, "rekeyed");
            event::append(&mut tx, "keys.rekeyed", None, &id.to_string(), &text, now).await?;
        } else if found.behind != found.row.behind {
            rekey::set_behind(&mut tx, id, &found.behind).await?;
        }
    }
    tx.commit().await
}

/// That it is over, for people.
async fn words(
    issuance: &Issuance,
    connection: &mut Connection,
    row: &RekeyRow,
    now: i64,
) -> Result<String, StoreError> {
    let of = crate::app::rekey::of(row);
    let left = match store::compromise::uploads_left(connection, row).await? {
        0 => String::new(),
        left => format!("; {left} uploaded certificates keep theirs until their tenants bring others"),
    };
    if !row.compromised {
        return Ok(format!("the keys of {of} are replaced{left}"));
    }
    let issuers: Vec<&str> = issuance.issuers.iter().map(|issuer| issuer.config.name.as_str()).collect();
    let (others, some) = store::compromise::of_other_issuers(connection, row.id, &issuers, now, 1).await?;
    Ok(match some.first() {
        None => format!("the keys of {of} are replaced, and their certificates revoked{left}"),
        Some(first) => format!(
            "the keys of {of} are replaced, and their certificates revoked, but for {others}: {}{left}",
            compromise::not_revoked_here(&first.issuer)
        ),
    })
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
            revocation: None,
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

//! The watch over names that led here once: do they still? Those that have left are told, retired after their grace, and
//! taken back when they lead here again ([`crate::plan::presence`] decides).
//!
//! A look asks every configured resolver. One address of ours in any answer, and the name is here. Where all of them say
//! that it leads elsewhere, two more questions keep the innocent: does a challenge put on our edges come back through the
//! name (a CDN or a balancer before us)? And is its `_acme-challenge` delegated, so that it is validated without leading
//! here? A wildcard has no address to fetch from; its standing TXT proof keeps it, too. Whatever is not known leaves the name
//! as it is.
//!
//! When far more names than usual are away, the fault is here and not with them: then nothing goes on but what is back, and
//! an operator is told.
//!
//! Deliberately absent: an end of service. A name in its grace is served as ever; a retired one is no longer on a certificate.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use portico_api::v1::{ConditionKind, ConditionStatus};
use portico_cert_store::{DomainId, DomainName};
use serde_json::json;

use super::{Issuance, preflight, reach};
use crate::clock::rfc3339;
use crate::dns::lookup::Found;
use crate::dns::pointing;
use crate::plan::presence::{self as plan, Change, Rules, Sighting, Standing};
use crate::proof;
use crate::store::condition::{self, Observation};
use crate::store::domain::{self, DomainRow};
use crate::store::{StoreError, WriteTx, audit, event, presence};

/// Names looked at side by side: each takes two questions to each resolver, and a few more when it is away.
const CONCURRENCY: usize = 32;
/// Names taken up in one round.
const ROUND: u32 = 64;
/// Results written in one transaction.
const WRITES_TOGETHER: usize = 32;
/// Keys destroyed in one transaction.
const KEYS_TOGETHER: u32 = 32;
const INTERVAL: Duration = Duration::from_secs(1);

/// What one look saw, for the rule and for people.
struct Seen {
    domain: DomainId,
    sighting: Sighting,
    /// Where it leads, or why that is not known.
    text: String,
    points_here: Observation,
}

/// What there is to do, by the configuration.
enum Duty {
    /// `held`: too many were away at the last look.
    Watch {
        held: bool,
    },
    /// What was seen before nobody watched any more is forgotten.
    Forget,
    Nothing,
}

/// Runs until shutdown.
pub(super) async fn run(issuance: Arc<Issuance>) {
    let shutdown = issuance.parts.shutdown.clone();
    let mut duty = match issuance.parts.config.leavers.enabled {
        true => Duty::Watch { held: false },
        false => Duty::Forget,
    };
    loop {
        let done = match &mut duty {
            Duty::Watch { held } => round(&issuance, held).await,
            Duty::Forget => forget(&issuance).await.map(|()| {
                duty = Duty::Nothing;
                0
            }),
            Duty::Nothing => return shutdown.cancelled().await,
        };
        let pause = match done {
            Ok(0) => INTERVAL,
            // There may be more that is due.
            Ok(_) => Duration::ZERO,
            Err(error) => {
                tracing::warn!(%error, "the watch over names that leave could not go on; it tries again");
                INTERVAL
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn forget(issuance: &Issuance) -> Result<(), StoreError> {
    let mut tx = issuance.parts.store.begin().await?;
    presence::forget(&mut tx).await?;
    tx.commit().await
}

/// Looks at what is due; answers how much was done.
async fn round(issuance: &Issuance, held: &mut bool) -> Result<usize, StoreError> {
    let rules = issuance.parts.config.leavers.rules();
    let now = issuance.parts.clock.now_ms();
    let mut read = issuance.parts.store.read().await?;
    let due = presence::due(&mut read, now, ROUND).await?;
    let rows = domain::find_many(&mut read, &due).await?;
    let mut watched = Vec::with_capacity(rows.len());
    for row in rows.into_iter().filter(|row| row.served) {
        if let Some(standing) = presence::find(&mut read, row.id).await? {
            watched.push((row, standing));
        }
    }
    drop(read);
    let gone = due.iter().filter(|id| !watched.iter().any(|(row, _)| row.id == **id)).copied();
    let gone: Vec<DomainId> = gone.collect();
    if !gone.is_empty() {
        let mut tx = issuance.parts.store.begin().await?;
        for domain in gone {
            end_if_unserved(&mut tx, domain).await?;
        }
        tx.commit().await?;
    }
    let looks = futures_util::stream::iter(watched)
        .map(async |(row, standing)| look(issuance, &row, standing).await)
        .buffer_unordered(CONCURRENCY)
        .ready_chunks(WRITES_TOGETHER);
    let mut looks = std::pin::pin!(looks);
    while let Some(seen) = looks.next().await {
        let now = issuance.parts.clock.now_ms();
        let mut tx = issuance.parts.store.begin().await?;
        *held = hold(&mut tx, &rules, *held, now).await?;
        for seen in &seen {
            apply(&mut tx, &rules, seen, *held, now).await?;
        }
        tx.commit().await?;
    }
    Ok(due.len() + sweep(issuance).await? + destroy_keys(issuance).await?)
}

/// Finds the keys that one retired name had before its group changed last. That reads much, so not in the writer's turn.
async fn sweep(issuance: &Issuance) -> Result<usize, StoreError> {
    let mut read = issuance.parts.store.read().await?;
    let Some(domain) = presence::unswept(&mut read).await? else { return Ok(0) };
    let credentials = match domain::find(&mut read, domain).await? {
        Some(row) => presence::credentials_with(&mut read, row.tenant_id, &row.name.to_string()).await?,
        None => Vec::new(),
    };
    drop(read);
    let mut tx = issuance.parts.store.begin().await?;
    presence::sweep(&mut tx, domain, &credentials, issuance.parts.clock.now_ms()).await?;
    tx.commit().await?;
    Ok(1)
}

/// What is not served is not watched.
async fn end_if_unserved(tx: &mut WriteTx, domain: DomainId) -> Result<(), StoreError> {
    if domain::find(tx, domain).await?.is_some_and(|row| row.served) {
        return Ok(());
    }
    presence::end(tx, domain).await
}

/// Whether too many are away; told when it begins.
async fn hold(tx: &mut WriteTx, rules: &Rules, was_held: bool, now: i64) -> Result<bool, StoreError> {
    let counts = presence::counts(tx).await?;
    crate::metrics::presences(&counts);
    let (away, all) = counts.away_of();
    let held = rules.are_too_many(away, all);
    if held && !was_held {
        let text = format!(
            "{away} of {all} names that led here once no longer do, more than leavers.most_percent = {}: none of them is \
             retired until fewer are, or until that is raised; are fleet.public_addresses and dns.resolvers right?",
            rules.most_percent
        );
        tracing::error!(text);
        event::append(tx, "leavers.held", None, "leavers", &text, now).await?;
    }
    Ok(held)
}

async fn look(issuance: &Issuance, row: &DomainRow, standing: Standing) -> Seen {
    let name = row.name.to_string();
    let host = probe_name(row);
    let ours = &issuance.parts.config.fleet.public_addresses;
    let views = issuance.lookup.addresses_everywhere(&host).await;
    let points_here = pointing::points_here(&name, ours, &together(&views));
    let of =
        |sighting, text: String| Seen { domain: row.id, sighting, text, points_here: points_here.clone() };
    let is_ours = |address: &IpAddr| ours.iter().any(|own| own.to_canonical() == address.to_canonical());
    if views.iter().any(|view| view.records().iter().any(is_ours)) {
        return of(Sighting::Here, points_here.message.clone());
    }
    if points_here.status == ConditionStatus::Unknown {
        return of(Sighting::Unknown, points_here.message.clone());
    }
    if matches!(standing, Standing::Never { .. }) || !row.spec.issue_certificates {
        return of(Sighting::Elsewhere, points_here.message.clone());
    }
    let (sighting, text) = reached_otherwise(issuance, row, &views).await;
    let text = if text.is_empty() {
        points_here.message.clone()
    } else {
        format!("{}; {text}", points_here.message)
    };
    of(sighting, text)
}

/// Of a name that leads elsewhere: what speaks for it all the same.
async fn reached_otherwise(
    issuance: &Issuance,
    row: &DomainRow,
    views: &[Found<IpAddr>],
) -> (Sighting, String) {
    let base = row.name.base();
    match preflight::delegation(issuance, row.id, base, false).await {
        (Some(true), _) => return (Sighting::Kept, format!("_acme-challenge.{base} is ours to answer")),
        (None, why) => return (Sighting::Unknown, why.unwrap_or_default()),
        (Some(false), _) => {}
    }
    if row.name.is_wildcard() {
        let at = proof::txt_name(&row.name);
        return match issuance.lookup.txt(&at).await {
            Found::Unknown(why) => (Sighting::Unknown, why),
            found if proof::txt_proves(found.records(), &row.labels.txt_token) => {
                (Sighting::Kept, format!("the proof at {at} stands"))
            }
            Found::Records(_) | Found::Nothing => (Sighting::Elsewhere, String::new()),
        };
    }
    let mut addresses: Vec<IpAddr> = views.iter().flat_map(|view| view.records().iter().copied()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return (Sighting::Elsewhere, String::new());
    }
    match reach::fetch_through(issuance, row.tenant_id, base, &addresses).await {
        Err(why) => (Sighting::Unknown, why),
        Ok(fetched) if fetched.iter().any(Result::is_ok) => {
            (Sighting::Here, "what is asked there comes to our edges".to_owned())
        }
        Ok(_) => (Sighting::Elsewhere, "what is asked there does not come to our edges".to_owned()),
    }
}

/// What all views say together: not known where one is not.
fn together(views: &[Found<IpAddr>]) -> Found<IpAddr> {
    let mut all: Vec<IpAddr> = Vec::new();
    for view in views {
        match view {
            Found::Unknown(why) => return Found::Unknown(why.clone()),
            Found::Nothing => {}
            Found::Records(addresses) => all.extend(addresses),
        }
    }
    all.sort_unstable();
    all.dedup();
    if all.is_empty() { Found::Nothing } else { Found::Records(all) }
}

/// The host, or some name that a wildcard covers and nobody would set by itself.
fn probe_name(row: &DomainRow) -> DomainName {
    let base = row.name.base();
    if !row.name.is_wildcard() {
        return base.clone();
    }
    let label = &row.labels.http_token[..row.labels.http_token.len().min(12)];
    DomainName::parse(&format!("{label}.{base}")).unwrap_or_else(|_| base.clone())
}

async fn apply(tx: &mut WriteTx, rules: &Rules, seen: &Seen, held: bool, now: i64) -> Result<(), StoreError> {
    let row = domain::find(tx, seen.domain).await?.filter(|row| row.served);
    let Some(row) = row else { return presence::end(tx, seen.domain).await };
    let Some(before) = presence::find(tx, row.id).await? else { return Ok(()) };
    condition::set(tx, row.id, &seen.points_here, now).await?;
    // Without orders there is nothing to retire it from.
    let held = held || !row.spec.issue_certificates;
    let (standing, change) = plan::after(before, seen.sighting, now, rules, held);
    let seed = u64::try_from(row.id.ulid().0 & u128::from(u64::MAX)).unwrap_or(0);
    let next_at = plan::next_look(standing, now, rules, seed);
    presence::put(tx, row.id, standing, next_at).await?;
    match change {
        None => {}
        Some(Change::Left) => tell(tx, &row, "domain.left", &text(&row, standing, seen, rules), now).await?,
        Some(Change::Retired) => retire(tx, &row, standing, seen, rules, now).await?,
        Some(Change::Back { was_retired }) => come_back(tx, &row, was_retired, seen, now).await?,
    }
    if matches!(standing, Standing::Retired { .. }) {
        // Also what an order that was under way has brought since.
        presence::doom_keys(tx, row.id, &row.name.to_string(), now).await?;
    }
    match observation(&row, standing, seen, rules, next_at) {
        Some(observed) => condition::set(tx, row.id, &observed, now).await.map(drop),
        None => Ok(()),
    }
}

async fn retire(
    tx: &mut WriteTx,
    row: &DomainRow,
    standing: Standing,
    seen: &Seen,
    rules: &Rules,
    now: i64,
) -> Result<(), StoreError> {
    let text = text(row, standing, seen, rules);
    tell(tx, row, "domain.retired", &text, now).await?;
    note(tx, "domain.retire", &row.id.to_string(), json!({ "name": row.name.to_string(), "why": text }), now)
        .await
}

async fn come_back(
    tx: &mut WriteTx,
    row: &DomainRow,
    was_retired: bool,
    seen: &Seen,
    now: i64,
) -> Result<(), StoreError> {
    let then = if was_retired { "it gets a certificate again" } else { "nothing was changed meanwhile" };
    tell(tx, row, "domain.back", &format!("{} is back: {}; {then}", row.name, seen.text), now).await?;
    if !was_retired {
        return Ok(());
    }
    presence::spare_keys(tx, row.id).await?;
    presence::forget_failures(tx, row.id, now).await?;
    let after = json!({ "name": row.name.to_string(), "why": seen.text });
    note(tx, "domain.return", &row.id.to_string(), after, now).await
}

async fn tell(tx: &mut WriteTx, row: &DomainRow, kind: &str, text: &str, now: i64) -> Result<(), StoreError> {
    event::append(tx, kind, Some(row.tenant_id), &row.id.to_string(), text, now).await
}

async fn note(
    tx: &mut WriteTx,
    action: &str,
    subject: &str,
    after: serde_json::Value,
    now: i64,
) -> Result<(), StoreError> {
    let before = serde_json::Value::Null;
    let entry =
        audit::Entry { at: now, actor: "system", request_id: "leavers", action, subject, before, after };
    audit::append(tx, &entry).await.map(drop)
}

/// Where the name stands, since when, what follows and when.
fn text(row: &DomainRow, standing: Standing, seen: &Seen, rules: &Rules) -> String {
    let (name, saw) = (&row.name, &seen.text);
    match standing {
        Standing::Never { .. } => String::new(),
        Standing::Here { .. } => saw.clone(),
        Standing::Away { since, looks } => format!(
            "{name} was seen elsewhere {looks} times in a row, since {}: {saw}; after {} times and not before {} it counts \
             as left",
            rfc3339(since),
            rules.looks,
            rfc3339(since + rules.away_ms)
        ),
        Standing::Left { since, looks, at } => format!(
            "{name} has not led here since {}, in {looks} looks: {saw}; it is served on until {}, then nothing is ordered for \
             it any more and it leaves its certificate; if it leads here again before, all stays as it is",
            rfc3339(since),
            rfc3339(at + rules.grace_ms)
        ),
        Standing::Retired { since, at, .. } => format!(
            "{name} has not led here since {} and was retired at {}: {saw}; nothing is ordered for it, a certificate without \
             it is ordered by {} at the latest, and the key that it had is destroyed; it comes back by itself when it leads \
             here again",
            rfc3339(since),
            rfc3339(at),
            rfc3339(at + rules.leave_within_ms)
        ),
    }
}

/// `None` for a name that never led here: nothing is expected of it.
fn observation(
    row: &DomainRow,
    standing: Standing,
    seen: &Seen,
    rules: &Rules,
    next_at: i64,
) -> Option<Observation> {
    let (status, reason) = match standing {
        Standing::Never { .. } => return None,
        Standing::Here { .. } if seen.sighting == Sighting::Unknown => return None,
        Standing::Here { .. } => (ConditionStatus::True, "LeadsHere"),
        Standing::Away { .. } => (ConditionStatus::Unknown, "SeenElsewhere"),
        Standing::Left { .. } => (ConditionStatus::False, LEFT),
        Standing::Retired { .. } => (ConditionStatus::False, RETIRED),
    };
    Some(Observation {
        kind: ConditionKind::Present,
        status,
        reason: reason.to_owned(),
        message: text(row, standing, seen, rules),
        next_check_at: Some(next_at),
    })
}

/// Reasons of [`ConditionKind::Present`].
pub(crate) const LEFT: &str = "Left";
pub(crate) const RETIRED: &str = "Retired";

/// Destroys keys that nothing refers to any more; answers how many.
async fn destroy_keys(issuance: &Issuance) -> Result<usize, StoreError> {
    let doomed = presence::keys_to_destroy(&mut *issuance.parts.store.read().await?, KEYS_TOGETHER).await?;
    if doomed.is_empty() {
        return Ok(0);
    }
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    for key in &doomed {
        if !presence::destroy_key(&mut tx, key.credential).await? {
            continue;
        }
        let id = key.credential.to_string();
        // P5: the others on it may be other tenants'.
        let text = match &key.name {
            Some(name) => format!(
                "the key of a certificate that {name} was on was destroyed: {name} has left, and nothing uses it"
            ),
            None => {
                "the key of a certificate was destroyed: a name on it is gone, and nothing uses it".to_owned()
            }
        };
        event::append(&mut tx, "certificate.key_destroyed", key.tenant, &id, &text, now).await?;
        let after = json!({ "names": key.names, "left": key.domain.to_string() });
        note(&mut tx, "certificate.destroy_key", &id, after, now).await?;
    }
    tx.commit().await?;
    Ok(doomed.len())
}

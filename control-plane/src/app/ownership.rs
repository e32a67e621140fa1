//! Checks of ownership: look at DNS (and, where it may count, at a file), then let the rules of `proof` decide and
//! write what follows, in one transaction.
//!
//! Looking and deciding are apart: [`look`] does the network and takes seconds, [`apply`] runs inside the writer's turn
//! and reads everything anew. A claim whose texts changed in between is not judged by what was seen.

use std::net::IpAddr;

use portico_api::v1::{ConditionKind, ConditionStatus, ProofMethod};
use portico_cert_store::{DomainId, DomainName};

use super::claim::new_labels;
use super::status::{CLAIM_LASTS_MS, RECHECK_FAILED};
use super::{App, instructions};
use crate::clock::{DAY_MS, HOUR_MS};
use crate::dns::lookup::Found;
use crate::dns::pointing;
use crate::http::fault::{Answered, Fault};
use crate::http::write::Write;
use crate::proof::{self, Decision, Refusal, Standing};
use crate::store::condition::{self, Observation};
use crate::store::domain::{self, DomainRow, Labels};
use crate::store::proof::ProofRow;
use crate::store::{StoreError, WriteTx, event, presence, proof as proofs};

mod fetch;
#[cfg(test)]
mod tests;

/// A standing proof is looked at again after this.
const RECHECK_MS: i64 = 30 * DAY_MS;
/// The first waiting time of an unproved claim; it doubles with each check, up to the second figure.
const BACKOFF_FIRST_MS: i64 = 2_000;
const BACKOFF_MAX_MS: i64 = HOUR_MS;
/// The same for a served domain whose record is gone: many take the record away once it has served, and mean it.
const GONE_BACKOFF_MAX_MS: i64 = DAY_MS;

/// What a look found.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    domain: DomainId,
    /// When the look began.
    since_ms: i64,
    /// The texts that were looked for.
    labels: Labels,
    /// A proof that holds, with what was seen.
    proof: Option<(ProofMethod, String)>,
    /// Without a proof: why, and whether that is certain.
    lacking: Observation,
    points_here: Observation,
}

/// What a check changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    /// The domain is served from now on.
    Served,
    Unchanged,
    /// The domain was deleted, changed or proved meanwhile.
    Stale,
}

impl Checked {
    /// For the count of checks.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Unchanged => "unchanged",
            Self::Stale => "stale",
        }
    }
}

/// Looks for proofs of a claim and where its name points. Takes seconds; never fails, it says what is not known.
pub(crate) async fn look(app: &App, row: &DomainRow) -> Seen {
    let since_ms = app.parts.clock.now_ms();
    let dns = &app.parts.config.dns;
    let target = proof::cname_target(&row.name, &row.labels.proof_label, dns.cname_zone.as_deref());
    let txt_name = proof::txt_name(&row.name);
    let host = probe_name(row);
    let cname = async {
        match &target {
            Some(_) => app.lookup.cname(row.name.base().as_str()).await,
            None => Found::Nothing,
        }
    };
    let (txt, cname, addresses) = tokio::join!(app.lookup.txt(&txt_name), cname, app.lookup.addresses(&host));
    let answers = Answers { txt, cname, addresses };
    let mut seen = Seen::in_dns(app, row, &answers, since_ms);
    if seen.proof.is_none() && file_may_prove(row, answers.addresses.records(), |at| fetch::is_own(app, at)) {
        seen.proof = fetch::http_proof(app, row, answers.addresses.records()).await;
    }
    seen
}

/// What DNS said to one look.
#[derive(Clone, Debug)]
struct Answers {
    /// At the name of the TXT proof.
    txt: Found<String>,
    /// At the host; nothing where no CNAME would prove.
    cname: Found<String>,
    addresses: Found<IpAddr>,
}

impl Seen {
    fn in_dns(app: &App, row: &DomainRow, answers: &Answers, since_ms: i64) -> Self {
        let dns = &app.parts.config.dns;
        let target = proof::cname_target(&row.name, &row.labels.proof_label, dns.cname_zone.as_deref());
        let ours = &app.parts.config.fleet.public_addresses;
        let mut proof = None;
        if proof::txt_proves(answers.txt.records(), &row.labels.txt_token) {
            let at = proof::txt_name(&row.name);
            proof = Some((ProofMethod::Txt, format!("TXT {at} \"{}\"", row.labels.txt_token)));
        } else if let Some(target) =
            target.filter(|target| proof::cname_proves(answers.cname.records(), target))
        {
            proof = Some((ProofMethod::Cname, format!("CNAME {} -> {target}", row.name)));
        }
        Self {
            domain: row.id,
            since_ms,
            labels: row.labels.clone(),
            proof,
            lacking: lacking(app, row, [&answers.txt, &answers.cname]),
            points_here: pointing::points_here(&row.name.to_string(), ours, &answers.addresses),
        }
    }
}

/// A file proves only what nothing else has proved, and only on servers that are not ours.
fn file_may_prove(row: &DomainRow, addresses: &[IpAddr], is_own: impl Fn(IpAddr) -> bool) -> bool {
    !row.served && !row.name.is_wildcard() && proof::http_may_be_fetched(addresses, is_own)
}

/// Writes what follows from a look. `actor` caused it: a token's id, or `system`.
///
/// # Errors
/// The store's.
pub(crate) async fn apply(
    tx: &mut WriteTx,
    seen: &Seen,
    actor: &str,
    now_ms: i64,
) -> Result<Checked, StoreError> {
    let Some(row) = domain::find(tx, seen.domain).await? else { return Ok(Checked::Stale) };
    if row.labels != seen.labels {
        return Ok(Checked::Stale);
    }
    // Looks overlap (the reconciler's and one that was asked for); what an older one missed, a newer one has found.
    if seen.proof.is_none()
        && proofs::standing(tx, row.id).await?.is_some_and(|proof| proof.checked_at >= seen.since_ms)
    {
        return Ok(Checked::Stale);
    }
    condition::set(tx, row.id, &seen.points_here, now_ms).await?;
    if row.served && seen.points_here.status == ConditionStatus::True {
        presence::wake(tx, row.id).await?;
    }
    let Some((method, evidence)) = &seen.proof else {
        return without_proof(tx, &row, seen, now_ms).await;
    };
    let proof = ProofRow {
        domain_id: row.id,
        method: *method,
        proved_at: now_ms,
        checked_at: now_ms,
        evidence: evidence.clone(),
        actor: actor.to_owned(),
    };
    let was_served = row.served;
    let refused = accept(tx, row, proof, now_ms).await?.err();
    let Some(row) = domain::find(tx, seen.domain).await? else { return Ok(Checked::Stale) };
    let observed = match refused {
        None => observation(ConditionStatus::True, "Proved", evidence.clone()),
        Some(refusal) => observation(ConditionStatus::False, "OwnedByAnother", refusal.to_string()),
    };
    condition::set(tx, row.id, &observed, now_ms).await?;
    schedule(tx, &row, seen, &observed, now_ms).await?;
    Ok(if row.served && !was_served { Checked::Served } else { Checked::Unchanged })
}

/// Puts a proof that holds before the rules and does what they say.
///
/// # Errors
/// The store's; inside, why the rules refuse.
pub(crate) async fn accept(
    tx: &mut WriteTx,
    row: DomainRow,
    proof: ProofRow,
    now_ms: i64,
) -> Result<Result<(), Refusal>, StoreError> {
    let served = standing(tx, &row).await?;
    match proof::decide(row.id, &row.name, proof.method, served) {
        Decision::Refuse(refusal) => return Ok(Err(refusal)),
        Decision::Confirm => proofs::confirm(tx, row.id, now_ms).await?,
        Decision::Replace | Decision::Serve => serve(tx, row, &proof, now_ms).await?,
        Decision::Displace(loser) => {
            displace(tx, loser, now_ms).await?;
            serve(tx, row, &proof, now_ms).await?;
        }
    }
    Ok(Ok(()))
}

/// The operator vouches for a name.
///
/// # Errors
/// 409 where the name is another's; the store's.
pub(crate) async fn attest(write: &mut Write, row: DomainRow, note: &str) -> Answered<()> {
    let (now, id, name) = (write.now_ms, row.id, row.name.to_string());
    let proof = ProofRow {
        domain_id: id,
        method: ProofMethod::Attestation,
        proved_at: now,
        checked_at: now,
        evidence: format!("the operator's word: {note}"),
        actor: write.actor().to_owned(),
    };
    if let Err(refusal) = accept(&mut write.tx, row, proof, now).await? {
        return Err(Fault::conflict("owned_by_another", format!("{name}: {refusal}")));
    }
    write.audit("domain.attest", &id.to_string(), &(), &note).await
}

/// Who is served for the very name of `row`, and on what.
async fn standing(tx: &mut WriteTx, row: &DomainRow) -> Result<Option<Standing>, StoreError> {
    let Some(served) = domain::find_served(tx, &row.name).await? else { return Ok(None) };
    let proof = proofs::standing(tx, served.id).await?;
    // A served row without a proof cannot be; were it so, anybody's proof would be better than none.
    Ok(proof.map(|proof| Standing { domain: served.id, method: proof.method }))
}

async fn serve(
    tx: &mut WriteTx,
    mut row: DomainRow,
    proof: &ProofRow,
    now_ms: i64,
) -> Result<(), StoreError> {
    row.served = true;
    domain::update(tx, &mut row, now_ms).await?;
    proofs::put(tx, proof).await?;
    presence::begin(tx, row.id, now_ms).await?;
    domain::publish(tx, &row).await?;
    let text = format!("control of {} is proved: {}", row.name, proof.evidence);
    event::append(tx, "domain.proved", Some(row.tenant_id), &row.id.to_string(), &text, now_ms).await
}

/// Ends service of a claim whose name somebody else proved since. Its texts are replaced: records that still stand in
/// the zone prove nothing from now on.
async fn displace(tx: &mut WriteTx, loser: DomainId, now_ms: i64) -> Result<(), StoreError> {
    let Some(mut row) = domain::find(tx, loser).await? else { return Ok(()) };
    proofs::end(tx, row.id, now_ms, "a newer proof of another account").await?;
    presence::end(tx, row.id).await?;
    condition::clear(tx, row.id, ConditionKind::Present).await?;
    row.served = false;
    row.labels = new_labels();
    row.check_at = Some(now_ms + BACKOFF_FIRST_MS);
    row.check_failures = 0;
    domain::update(tx, &mut row, now_ms).await?;
    domain::publish(tx, &row).await?;
    let observed = observation(
        ConditionStatus::False,
        "Displaced",
        "another account has proved control of the name since; the records to set have changed".to_owned(),
    );
    condition::set(tx, row.id, &observed, now_ms).await?;
    let text =
        format!("{} is no longer served for this tenant: another account proved control of it", row.name);
    event::append(tx, "domain.displaced", Some(row.tenant_id), &row.id.to_string(), &text, now_ms).await
}

async fn without_proof(
    tx: &mut WriteTx,
    row: &DomainRow,
    seen: &Seen,
    now_ms: i64,
) -> Result<Checked, StoreError> {
    let standing = proofs::standing(tx, row.id).await?.filter(|_| row.served);
    let observed = match standing {
        None => seen.lacking.clone(),
        // Nothing was set in DNS for an attestation, so nothing can be missing there.
        Some(proof) if proof.method == ProofMethod::Attestation => {
            observation(ConditionStatus::True, "Proved", proof.evidence)
        }
        // The file behind an HTTP proof may go once it was seen.
        Some(proof) if proof.method == ProofMethod::Http => {
            observation(ConditionStatus::True, "Proved", proof.evidence)
        }
        // Not known is not gone.
        Some(proof) if seen.lacking.status == ConditionStatus::Unknown => {
            observation(ConditionStatus::True, "Proved", proof.evidence)
        }
        Some(_) => {
            let message = "The record that proved control is gone; the domain is served on all the same.";
            observation(ConditionStatus::True, RECHECK_FAILED, message.to_owned())
        }
    };
    let changed = condition::set(tx, row.id, &observed, now_ms).await?;
    if changed && observed.reason == RECHECK_FAILED {
        let text = format!("{}: {}", row.name, observed.message);
        event::append(tx, "domain.recheck_failed", Some(row.tenant_id), &row.id.to_string(), &text, now_ms)
            .await?;
    }
    schedule(tx, row, seen, &observed, now_ms).await?;
    Ok(Checked::Unchanged)
}

/// When the claim is looked at next: a served one with nothing amiss in 30 days (spread over three more), others soon and
/// then less and less often, an unproved one no longer after 7 days.
async fn schedule(
    tx: &mut WriteTx,
    row: &DomainRow,
    seen: &Seen,
    ownership: &Observation,
    now_ms: i64,
) -> Result<(), StoreError> {
    let gone = ownership.reason == RECHECK_FAILED;
    let settled = row.served && !gone && seen.points_here.status != ConditionStatus::False;
    if settled {
        let spread = i64::try_from(row.id.ulid().0 % (RECHECK_MS as u128 / 10)).unwrap_or(0);
        return domain::schedule(tx, row.id, Some(now_ms + RECHECK_MS + spread), 0).await;
    }
    let failures = row.check_failures.saturating_add(1);
    let longest = if gone { GONE_BACKOFF_MAX_MS } else { BACKOFF_MAX_MS };
    let wait = BACKOFF_FIRST_MS.saturating_mul(1 << row.check_failures.min(20)).min(longest);
    let given_up = !row.served && now_ms - row.created_at >= CLAIM_LASTS_MS;
    domain::schedule(tx, row.id, (!given_up).then_some(now_ms + wait), failures).await
}

fn lacking(app: &App, row: &DomainRow, looked: [&Found<String>; 2]) -> Observation {
    let unknown = looked.into_iter().find_map(|found| match found {
        Found::Unknown(why) => Some(why.clone()),
        Found::Nothing | Found::Records(_) => None,
    });
    match unknown {
        Some(why) => observation(ConditionStatus::Unknown, "NoAnswer", why),
        None => {
            let wanted = instructions::proof_text(&instructions::instructions(row, &app.parts.config));
            observation(ConditionStatus::False, "RecordNotFound", format!("not found yet: {wanted}"))
        }
    }
}

fn observation(status: ConditionStatus, reason: &str, message: String) -> Observation {
    Observation {
        kind: ConditionKind::OwnershipProved,
        status,
        reason: reason.to_owned(),
        message,
        next_check_at: None,
    }
}

/// The name whose addresses are looked at: the host, or some name below a wildcard's base.
fn probe_name(row: &DomainRow) -> DomainName {
    let base = row.name.base();
    if !row.name.is_wildcard() {
        return base.clone();
    }
    let label = &row.labels.http_token[..row.labels.http_token.len().min(12)];
    DomainName::parse(&format!("{label}.{base}")).unwrap_or_else(|_| base.clone())
}

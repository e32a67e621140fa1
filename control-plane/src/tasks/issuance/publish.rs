//! From the CA's chain to a live credential: the control plane's half of the activation gate, then one transaction.
//!
//! Live only with a chain to the issuer's roots, the order's key, its names, sane dates, and only where it does not
//! replace a better one (P9). The edge's half is a handshake before the swap. Credential, change records, event and the
//! order's end are one transaction: after a crash there is all of it or none.

use std::sync::Arc;
use std::time::Duration;

use portico_api::v1::{ConditionKind, ConditionStatus};
use portico_cert_store::{
    CellId, CertificateChain, CertificateFacts, Custody, DomainId, Generation, NamePattern, UnixTime,
};
use rustls::RootCertStore;

use super::issuer::Issuer;
use super::stopped::close;
use super::{Issuance, backups, health, spending};
use crate::clock::{self, unix_ms};
use crate::plan::timing::{self, Ends};
use crate::store::account::{self, AccountRow, AccountState};
use crate::store::condition::{self, Observation};
use crate::store::credential::{self, CredentialRow, NewCredential};
use crate::store::group::NameState;
use crate::store::order::{self, OrderRow, OrderState};
use crate::store::{StoreError, WriteTx, backup, compromise, event, fan_out, group, meta, rekey};

/// A certificate that is valid for less than this from now is of no use: edges would serve an expired one at once.
const REMAINING_MIN: Duration = Duration::from_secs(60);
/// How long edges may take to apply before the condition names those that have not.
const DEPLOY_DEADLINE: Duration = Duration::from_secs(30);

/// Why a certificate did not go live.
#[derive(Debug)]
pub(super) enum NotPublished {
    Store(StoreError),
    /// What came is no chain at all; it may be had again.
    Garbled(String),
    /// The gate's words.
    Gate(String),
    /// What is in use is better until then, Unix milliseconds, and the words for that.
    Early(i64, String),
    /// Its key was reported compromised while it was ordered.
    KeyCompromised,
}

impl From<StoreError> for NotPublished {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Publishes the chain of an order. A second call for an issued order changes nothing.
pub(super) async fn publish(
    issuance: &Arc<Issuance>,
    issuer: &Issuer,
    row: &OrderRow,
    pem: &str,
) -> Result<(), NotPublished> {
    let arrived = clock::instant();
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    if order::find(&mut tx, row.id).await?.is_none_or(|row| row.state.is_over()) {
        return Ok(());
    }
    let chain = CertificateChain::parse_pem(pem.as_bytes())
        .map_err(|error| NotPublished::Garbled(format!("the CA's chain: {error}")))?;
    not_behind(issuer, row, chain.facts(), now)?;
    check(&chain, row, &issuer.roots, issuance.parts.clock.now()).map_err(NotPublished::Gate)?;
    if compromise::is_compromised(&mut tx, &row.spki_sha256).await? {
        return Err(NotPublished::KeyCompromised);
    }
    // What stands by is replaced by another issuer's too, whichever ends first.
    let comparable = |live: &CredentialRow| !row.backup || live.issuer == row.issuer;
    let live = credential::live_of_lineage(&mut tx, row.lineage).await?.filter(comparable);
    // What has to go is no better, however long it is good for.
    let better = match live {
        Some(live) if rekey::is_wanted(&mut tx, live.id).await? => None,
        live => live,
    };
    if let Some(live) = better.filter(|live| is_better(live, row, chain.facts(), now)) {
        let until = clock::rfc3339(live.renew_at);
        let text = format!("the certificate in use ends later than the new one, which waits until {until}");
        return Err(NotPublished::Early(live.renew_at, text));
    }
    let mut new = new_credential(row, &chain, pem, issuance.parts.config.renewal.share);
    let account = match row.account {
        None => account::own(&mut tx, &row.issuer, &issuer.config.directory).await?,
        Some(id) => account::find(&mut tx, id).await?,
    };
    if let Some(AccountRow { state: AccountState::Registered { url }, .. }) = account {
        new.account = Some(url);
    }
    let mut domains = Vec::new();
    for (name, domain) in row.names.iter().zip(&row.domains) {
        if group::is_orderable(&mut tx, *domain).await? {
            domains.push((name.clone(), *domain));
        }
    }
    if row.backup {
        return stand_by(issuance, tx, (issuer, row), &new, &domains).await;
    }
    let published = credential::publish(&mut tx, &new, &domains, now).await?;
    fan_out::carry_over(&mut tx, row.id, new.id).await?;
    order::set_state(&mut tx, row.id, &OrderState::Issued, now).await?;
    spending::issued(&mut tx, issuer, row, now).await?;
    health::note_success(&mut tx, &row.issuer, now).await?;
    let records = close(&mut tx, row).await?;
    note_success(&mut tx, row, &new, now).await?;
    let planned_at = order::created_at(&mut tx, row.id).await?;
    let epoch = meta::epoch(&mut tx).await?;
    let cell = group::cell_of_lineage(&mut tx, row.lineage).await?;
    tx.commit().await?;
    issuance.forget_records(&records);
    let took = Duration::from_millis(u64::try_from(now - planned_at).unwrap_or(0));
    crate::metrics::certificate_issued(&row.issuer, took);
    tracing::info!(
        order = %row.id, credential = %new.id, names = ?row.names, %cell, kept = ?published.kept, "certificate issued"
    );
    let generation = Generation { epoch, sequence: published.sequence };
    let deployment = Deployment { cell, generation, row: row.clone(), arrived };
    tokio::spawn(watch_deployment(issuance.clone(), deployment));
    Ok(())
}

/// A backup goes to the edges, and no name is told of it.
async fn stand_by(
    issuance: &Arc<Issuance>,
    mut tx: WriteTx,
    (issuer, row): (&Issuer, &OrderRow),
    new: &NewCredential,
    domains: &[(String, DomainId)],
) -> Result<(), NotPublished> {
    let now = issuance.parts.clock.now_ms();
    backup::publish(&mut tx, new, domains, now).await?;
    backup::clear_failures(&mut tx, &row.domains, &row.issuer).await?;
    order::set_state(&mut tx, row.id, &OrderState::Issued, now).await?;
    spending::issued(&mut tx, issuer, row, now).await?;
    health::note_success(&mut tx, &row.issuer, now).await?;
    let records = close(&mut tx, row).await?;
    let (kind, text) = backups::told(row, new.not_after);
    event::append(&mut tx, kind, row.tenant, &new.id.to_string(), &text, now).await?;
    let planned_at = order::created_at(&mut tx, row.id).await?;
    tx.commit().await?;
    issuance.forget_records(&records);
    let took = Duration::from_millis(u64::try_from(now - planned_at).unwrap_or(0));
    crate::metrics::certificate_issued(&row.issuer, took);
    tracing::info!(order = %row.id, credential = %new.id, names = ?row.names, issuer = row.issuer, "a backup stands by");
    Ok(())
}

/// A certificate that is not valid yet only because our clock is behind is kept: another order would bring just such a one.
fn not_behind(
    issuer: &Issuer,
    row: &OrderRow,
    facts: &CertificateFacts,
    now: i64,
) -> Result<(), NotPublished> {
    let from = unix_ms(facts.not_before);
    if from <= now || issuer.http().date_ms().is_none_or(|date| date < from) {
        return Ok(());
    }
    let text = format!(
        "the certificate waits: it is valid from {} on, which is past by the CA's clock and to come by ours; this control \
         plane's clock is behind",
        clock::rfc3339(from)
    );
    tracing::error!(order = %row.id, text, "the clock is behind");
    Err(NotPublished::Early(from, text))
}

/// The gate. Its words are for the tenant and the operator.
fn check(
    chain: &CertificateChain,
    row: &OrderRow,
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<(), String> {
    let facts = chain.facts();
    if facts.spki_sha256.as_slice() != row.spki_sha256 {
        return Err("the CA signed another key than ours".to_owned());
    }
    let names: Vec<NamePattern> = row.names.iter().filter_map(|name| NamePattern::parse(name).ok()).collect();
    chain.check_chain(roots, &names, now).map_err(|e| format!("the CA's chain: {e}"))?;
    let remaining = facts.not_after.as_secs().saturating_sub(now.as_secs());
    if remaining < REMAINING_MIN.as_secs() {
        return Err(format!("the CA's certificate ends in {remaining} s"));
    }
    Ok(())
}

/// Whether the live certificate is kept for now: it covers all of the order's names, and is better.
fn is_better(live: &CredentialRow, row: &OrderRow, new: &CertificateFacts, now: i64) -> bool {
    let ends = Ends { not_before: live.not_before, not_after: live.not_after, renew_at: live.renew_at };
    row.names.iter().all(|name| live.names.contains(name))
        && timing::is_better(&ends, unix_ms(new.not_after), now)
}

fn new_credential(row: &OrderRow, chain: &CertificateChain, pem: &str, share: f64) -> NewCredential {
    let facts: &CertificateFacts = chain.facts();
    let (not_before, not_after) = (unix_ms(facts.not_before), unix_ms(facts.not_after));
    NewCredential {
        id: row.credential,
        lineage: row.lineage,
        custody: if row.key_at_edge { Custody::Edge } else { Custody::Cell },
        issuer: row.issuer.clone(),
        names: facts.names.iter().map(ToString::to_string).collect(),
        chain_pem: pem.to_owned(),
        sealed_key: row.sealed_key.clone(),
        cell_key_epoch: row.cell_key_epoch,
        key_tenant: row.key_tenant.clone(),
        spki_sha256: facts.spki_sha256,
        fingerprint_sha256: facts.fingerprint_sha256,
        not_before,
        not_after,
        renew_at: timing::renew_at(not_before, not_after, share, row.lineage),
        account: None,
        is_rsa: facts.key_type.is_rsa(),
        tell_at: None,
        adopted: false,
    }
}

async fn note_success(
    tx: &mut WriteTx,
    row: &OrderRow,
    new: &NewCredential,
    now: i64,
) -> Result<(), StoreError> {
    let until = clock::rfc3339(new.not_after);
    for domain in &row.domains {
        let before = group::name_state(tx, *domain).await?.unwrap_or_default();
        let state =
            NameState { failed_before: false, part: 0, attempts: 0, next_at: 0, error: None, ..before };
        group::put_name_state(tx, *domain, &state, now).await?;
        let observed = Observation {
            kind: ConditionKind::CertificateReady,
            status: ConditionStatus::True,
            reason: "Issued".to_owned(),
            message: format!("valid until {until}"),
            next_check_at: Some(new.renew_at),
        };
        condition::set(tx, *domain, &observed, now).await?;
    }
    let kind = if row.renewal { "certificate.renewed" } else { "certificate.issued" };
    let text = format!("{} until {until}", row.names.join(", "));
    event::append(tx, kind, row.tenant, &new.id.to_string(), &text, now).await
}

struct Deployment {
    cell: CellId,
    generation: Generation,
    row: OrderRow,
    arrived: std::time::Instant,
}

/// Writes down whether every live edge of the cell serves the certificate.
async fn watch_deployment(issuance: Arc<Issuance>, deployment: Deployment) {
    let Deployment { cell, generation, row, arrived } = deployment;
    let applied = issuance.fleet.wait_applied(std::slice::from_ref(&cell), generation, DEPLOY_DEADLINE).await;
    let took = arrived.elapsed();
    crate::metrics::certificate_deployed(took);
    let all = applied.applied.len() + applied.behind.len();
    let (status, reason) = match (applied.applied.len(), applied.behind.len()) {
        (0, _) => (ConditionStatus::False, "NoEdge"),
        (_, 0) => (ConditionStatus::True, "OnAllEdges"),
        _ => (ConditionStatus::True, "EdgesBehind"),
    };
    let behind: Vec<_> = applied.behind.iter().map(ToString::to_string).collect();
    let message = match behind.as_slice() {
        [] => format!("on {all} of {all} edges of cell {cell}"),
        behind => {
            format!(
                "on {} of {all} edges of cell {cell}; not on {}",
                applied.applied.len(),
                behind.join(", ")
            )
        }
    };
    let observed = Observation {
        kind: ConditionKind::Deployed,
        status,
        reason: reason.to_owned(),
        message,
        next_check_at: None,
    };
    let written = async {
        let mut tx = issuance.parts.store.begin().await?;
        for domain in &row.domains {
            condition::set(&mut tx, *domain, &observed, issuance.parts.clock.now_ms()).await?;
        }
        tx.commit().await
    };
    if let Err(error) = written.await {
        tracing::warn!(%error, order = %row.id, "deployment could not be noted");
    }
    tracing::debug!(order = %row.id, ?took, message = observed.message, "deployed");
}

//! Revokes certificates whose keys others may have: when the edges have what takes their place, and in time in any case.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use portico_api::v1::RekeyId;
use portico_cert_store::{CredentialId, KeyType, SealContext, SealedKey, TenantId};
use tokio::task::JoinSet;

use super::Issuance;
use super::issuer::Issuer;
use crate::acme::AcmeError;
use crate::clock::{MINUTE_MS, rfc3339};
use crate::plan::timing;
use crate::store::account::{self, AccountOrigin};
use crate::store::compromise::{self, Of, Revocable};
use crate::store::rekey::{REVOKED_WITHIN_MS, RekeyRow, Revocation};
use crate::store::{Connection, StoreError, WriteTx, audit, cell, event};

/// Of one issuer and turn, which is a second: Let's Encrypt lets one address revoke 10 in that time.
const REVOKED_AT_ONCE: u32 = 8;
/// What must be over by a moment is begun so long before: a CA may have to be asked more than once.
const MARGIN_MS: i64 = 15 * MINUTE_MS;
/// The longest pause between two tries.
const PAUSE_MAX_MS: i64 = 10 * MINUTE_MS;
/// From the try on that many times failed, the operator has an event.
const TOLD_AFTER: u32 = 5;
/// Names that one event lists.
const NAMES_LISTED: usize = 5;

/// What may be revoked by now.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Of each issuer, certificates of which all edges in reach have a successor, with the moment since when its CA may be asked.
    replaced: BTreeMap<String, Vec<(i64, CredentialId)>>,
    /// Reports whose time is up.
    overdue: Vec<RekeyId>,
}

impl Due {
    pub(super) fn replaced(&mut self, credential: CredentialId, revocation: Revocation, now_ms: i64) {
        if revocation.next_at <= now_ms {
            self.replaced.entry(revocation.issuer).or_default().push((revocation.next_at, credential));
        }
    }

    pub(super) fn reported(&mut self, row: &RekeyRow, now_ms: i64) {
        if row.requested_at <= now_ms - REVOKED_WITHIN_MS + MARGIN_MS {
            self.overdue.push(row.id);
        }
    }

    /// Those of an issuer whose turn it is.
    async fn of(
        &mut self,
        issuer: &str,
        read: &mut Connection,
        now_ms: i64,
    ) -> Result<Vec<Revocable>, StoreError> {
        let mut replaced = self.replaced.remove(issuer).unwrap_or_default();
        replaced.sort_unstable();
        replaced.dedup();
        let mut first: Vec<CredentialId> = replaced.into_iter().map(|(_, credential)| credential).collect();
        first.truncate(REVOKED_AT_ONCE as usize);
        let mut found = Vec::new();
        if !self.overdue.is_empty() {
            let of = Of::Reports(&self.overdue);
            found = compromise::revocable(read, issuer, of, now_ms, REVOKED_AT_ONCE).await?;
        }
        if found.is_empty() && !first.is_empty() {
            let of = Of::Replaced(&first);
            found = compromise::revocable(read, issuer, of, now_ms, REVOKED_AT_ONCE).await?;
        }
        Ok(found)
    }
}

/// What is under way: of each issuer some, so that a CA that does not answer holds up no other.
#[derive(Debug, Default)]
pub(super) struct Revoking {
    tasks: JoinSet<()>,
    issuers: HashMap<tokio::task::Id, String>,
}

impl Revoking {
    /// Begins with some of each issuer that none is under way at.
    pub(super) async fn turn(&mut self, issuance: &Arc<Issuance>, mut due: Due) -> Result<(), StoreError> {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.issuers.remove(&ended.map_or_else(|error| error.id(), |(task, ())| task));
        }
        if due.replaced.is_empty() && due.overdue.is_empty() {
            return Ok(());
        }
        let now = issuance.parts.clock.now_ms();
        let mut read = issuance.parts.store.read().await?;
        for issuer in &issuance.issuers {
            let name = &issuer.config.name;
            if self.issuers.values().any(|busy| busy == name) {
                continue;
            }
            let some = due.of(name, &mut read, now).await?;
            if !some.is_empty() {
                let task = self.tasks.spawn(revoke_some(issuance.clone(), some));
                self.issuers.insert(task.id(), name.clone());
            }
        }
        Ok(())
    }
}

/// Certificates of one issuer.
async fn revoke_some(issuance: Arc<Issuance>, some: Vec<Revocable>) {
    let issuance = &issuance;
    let asked = some.into_iter().map(|one| async move {
        let answer = revoke(issuance, &one).await;
        (one, answer)
    });
    let answers = futures_util::future::join_all(asked).await;
    if let Err(error) = record(issuance, &answers).await {
        tracing::warn!(%error, "what the CA said of revocations could not be written down; it is asked again");
    }
}

async fn record(
    issuance: &Issuance,
    answers: &[(Revocable, Result<SignedBy, AcmeError>)],
) -> Result<(), StoreError> {
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    let mut revoked: BTreeMap<Option<TenantId>, Vec<&Revocable>> = BTreeMap::new();
    for (one, answer) in answers {
        match answer {
            Ok(by) => {
                compromise::set_revoked(&mut tx, one.credential, now).await?;
                note(&mut tx, one, *by, now).await?;
                revoked.entry(one.tenant).or_default().push(one);
            }
            Err(error) => put_off(&mut tx, one, error, now).await?,
        }
    }
    for (tenant, revoked) in revoked {
        let subject = revoked[0].credential.to_string();
        event::append(&mut tx, "certificate.revoked", tenant, &subject, &words(&revoked), now).await?;
    }
    tx.commit().await
}

/// Who signed the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SignedBy {
    Key,
    Account,
}

/// With the certificate's own key, as long as we have it.
async fn revoke(issuance: &Issuance, one: &Revocable) -> Result<SignedBy, AcmeError> {
    let Some(issuer) = issuance.issuer(&one.issuer) else {
        return Err(AcmeError::ours(format!("issuer \"{}\" is no longer configured", one.issuer)));
    };
    match key(issuance, one).await {
        // An adopted one may be of a kind that signs no request of ours.
        Ok(Some(key)) if key.key_type() != KeyType::EcdsaP384 => {
            match issuer.http().revoke_by_key(&one.chain_pem, key.secret_der()).await {
                Ok(()) => return Ok(SignedBy::Key),
                // It may take the same from whoever ordered it.
                Err(error) if error.is_refusal() => {
                    tracing::warn!(credential = %one.credential, %error, "the CA does not take the key's word");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(_) | None) => {}
        Err(error) => tracing::warn!(credential = %one.credential, error, "its key cannot be opened"),
    }
    by_account(issuance, issuer, one).await?;
    Ok(SignedBy::Account)
}

async fn key(issuance: &Issuance, one: &Revocable) -> Result<Option<portico_cert_store::PrivateKey>, String> {
    if one.sealed_key.is_empty() {
        return Ok(None);
    }
    let mut read = issuance.parts.store.read().await.map_err(|error| error.to_string())?;
    let of_cell = cell::key(&mut read, &issuance.parts.sealer, &one.cell, one.cell_key_epoch).await;
    let Some(of_cell) = of_cell.map_err(|error| error.to_string())? else { return Ok(None) };
    let spki_sha256: [u8; 32] =
        one.spki_sha256.as_slice().try_into().map_err(|_| "its public key's hash is none".to_owned())?;
    let context = SealContext {
        cell: &one.cell,
        epoch: one.cell_key_epoch,
        key_tenant: &one.key_tenant,
        credential: one.credential,
        spki_sha256,
    };
    let sealed = SealedKey::from_bytes(one.sealed_key.clone());
    of_cell.open(&sealed, &context).map(Some).map_err(|error| error.to_string())
}

async fn by_account(issuance: &Issuance, issuer: &Issuer, one: &Revocable) -> Result<(), AcmeError> {
    let row = match &one.account {
        Some(url) => {
            let found = async {
                let mut read = issuance.parts.store.read().await?;
                account::of_url(&mut read, &one.issuer, url).await
            };
            found.await.map_err(AcmeError::ours)?
        }
        None => None,
    };
    let adopted = row.filter(|row| row.origin == AccountOrigin::Adopted).map(|row| row.id);
    issuer.account(&issuance.parts, adopted).await?.revoke(&one.chain_pem).await
}

async fn note(tx: &mut WriteTx, one: &Revocable, by: SignedBy, now: i64) -> Result<(), StoreError> {
    let signed_by = match by {
        SignedBy::Key => "key",
        SignedBy::Account => "account",
    };
    tracing::info!(credential = %one.credential, names = ?one.names, signed_by, "certificate revoked");
    let entry = audit::Entry {
        at: now,
        actor: "system",
        request_id: "",
        action: "certificate.revoke",
        subject: &one.credential.to_string(),
        before: serde_json::Value::Null,
        after: serde_json::json!({ "reason": "keyCompromise", "signed_by": signed_by, "issuer": one.issuer }),
    };
    audit::append(tx, &entry).await?;
    Ok(())
}

async fn put_off(tx: &mut WriteTx, one: &Revocable, error: &AcmeError, now: i64) -> Result<(), StoreError> {
    let text = error.to_string();
    tracing::error!(credential = %one.credential, names = ?one.names, text, "a certificate could not be revoked");
    let pause = timing::after_transient(one.attempts + 1, timing::seed_of(one.lineage)).min(PAUSE_MAX_MS);
    let asked = error.retry_after.and_then(|wait| i64::try_from(wait.as_millis()).ok()).unwrap_or(0);
    compromise::put_off(tx, one.credential, &text, now + pause.max(asked)).await?;
    if one.attempts + 1 == TOLD_AFTER {
        let text = format!(
            "{}: the certificate, whose key was reported compromised, is not revoked after {TOLD_AFTER} tries, which was to be \
             by {}: {text}",
            one.names.join(", "),
            rfc3339(one.reported_at + REVOKED_WITHIN_MS)
        );
        let subject = one.credential.to_string();
        event::append(tx, "certificate.revocation_failed", None, &subject, &text, now).await?;
    }
    Ok(())
}

fn words(revoked: &[&Revocable]) -> String {
    let names: Vec<&str> = revoked.iter().flat_map(|one| &one.names).map(String::as_str).collect();
    let shown = names[..names.len().min(NAMES_LISTED)].join(", ");
    let more = names.len().saturating_sub(NAMES_LISTED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let bare = revoked.iter().filter(|one| !one.is_replaced).count();
    let after = match bare {
        0 => "each was replaced before".to_owned(),
        bare => format!(
            "{bare} of them before another took its place, because the time was up: `portico domain show` says what keeps their \
             names from one"
        ),
    };
    format!(
        "{shown}{more}: {} certificates were revoked, because their keys were reported compromised; {after}",
        revoked.len()
    )
}

//! Revokes certificates whose keys others may have: when the edges have what takes their place, and in time in any case.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use portico_cert_store::{CredentialId, KeyType, SealContext, SealedKey, TenantId};

use super::Issuance;
use super::issuer::Issuer;
use crate::acme::AcmeError;
use crate::clock::{MINUTE_MS, rfc3339};
use crate::plan::timing;
use crate::store::account::{self, AccountOrigin};
use crate::store::compromise::{self, Revocable};
use crate::store::rekey::REVOKED_WITHIN_MS;
use crate::store::{StoreError, WriteTx, audit, cell, event};

/// Of one turn, which is a second: Let's Encrypt lets one address revoke 10 in that time.
const REVOKED_AT_ONCE: u32 = 8;
/// What must be over by a moment is begun so long before: a CA may have to be asked more than once.
const MARGIN_MS: i64 = 15 * MINUTE_MS;
/// The longest pause between two tries.
const PAUSE_MAX_MS: i64 = 10 * MINUTE_MS;
/// From the try on that many times failed, the operator has an event.
const TOLD_AFTER: u32 = 5;
/// Names that one event lists.
const NAMES_LISTED: usize = 5;

/// Revokes some of `replaced`, of which all edges in reach have a successor, and of those whose time is up.
pub(super) async fn turn(issuance: &Arc<Issuance>, replaced: &[CredentialId]) -> Result<(), StoreError> {
    let now = issuance.parts.clock.now_ms();
    let overdue = now - REVOKED_WITHIN_MS + MARGIN_MS;
    let mut read = issuance.parts.store.read().await?;
    let due = compromise::revocable(&mut read, replaced, overdue, now, REVOKED_AT_ONCE).await?;
    drop(read);
    if due.is_empty() {
        return Ok(());
    }
    let answers: Vec<(Revocable, Result<SignedBy, AcmeError>)> = futures_util::stream::iter(due)
        .map(async |one| {
            let answer = revoke(issuance, &one).await;
            (one, answer)
        })
        .buffer_unordered(REVOKED_AT_ONCE as usize)
        .collect()
        .await;
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    let mut revoked: BTreeMap<Option<TenantId>, Vec<&Revocable>> = BTreeMap::new();
    for (one, answer) in &answers {
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

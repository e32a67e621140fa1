//! Keys that others may have: what a report brings about, beside the orders, for the certificates of those keys.

use std::collections::BTreeMap;

use portico_cert_store::{CredentialId, TenantId};

use super::rekey::{NAMES_TOLD_MAX, of};
use crate::clock::rfc3339;
use crate::config::IssuerConfig;
use crate::store::compromise::{self, Owned};
use crate::store::rekey::{self, REVOKED_WITHIN_MS, RekeyRow};
use crate::store::{StoreError, WriteTx, event, uploaded};

/// Takes certificates into a report: their keys are noted, what takes their place goes before all other orders, and whom they
/// belong to is told. Bounded by its caller: it is part of one write.
///
/// # Errors
/// The store's.
pub(crate) async fn take_in(
    tx: &mut WriteTx,
    row: &RekeyRow,
    credentials: &[CredentialId],
    issuers: &[IssuerConfig],
    now_ms: i64,
) -> Result<(), StoreError> {
    rekey::add(tx, row.id, credentials, now_ms).await?;
    let new = compromise::note_keys_of(tx, row.id, credentials, now_ms).await?;
    compromise::press_orders(tx, credentials, now_ms).await?;
    let owners = compromise::owners(tx, credentials).await?;
    tell_owners(tx, row, &owners, issuers, now_ms).await?;
    expose_uploaded(tx, &new, now_ms).await
}

async fn tell_owners(
    tx: &mut WriteTx,
    row: &RekeyRow,
    owners: &[Owned],
    issuers: &[IssuerConfig],
    now_ms: i64,
) -> Result<(), StoreError> {
    let is_ours = |one: &Owned| issuers.iter().any(|issuer| issuer.name == one.issuer);
    let mut by_tenant: BTreeMap<TenantId, Vec<&Owned>> = BTreeMap::new();
    for one in owners {
        if let Some(tenant) = one.tenant {
            by_tenant.entry(tenant).or_default().push(one);
        }
    }
    let by = rfc3339(row.requested_at + REVOKED_WITHIN_MS);
    for (tenant, owned) in by_tenant {
        let names: Vec<&str> = owned.iter().flat_map(|one| &one.names).map(String::as_str).collect();
        let then = match owned.iter().filter(|one| !is_ours(one)).count() {
            0 => format!("and these are revoked by {by}"),
            others => format!(
                "and these are revoked by {by}, but for {others} whose CA is not one that certificates are ordered from here"
            ),
        };
        let text = format!(
            "{}: others may have the keys of {} certificates; new ones are ordered, {then}",
            listed(&names),
            owned.len()
        );
        let subject = owned[0].credential.to_string();
        event::append(tx, "certificate.key_compromised", Some(tenant), &subject, &text, now_ms).await?;
    }
    let others: Vec<&Owned> = owners.iter().filter(|one| !is_ours(one)).collect();
    let Some(first) = others.first() else { return Ok(()) };
    let names: Vec<&str> = others.iter().flat_map(|one| &one.names).map(String::as_str).collect();
    let text =
        format!("{}: {} of {}: {}", listed(&names), others.len(), of(row), not_revoked_here(&first.issuer));
    tracing::warn!(rekey = %row.id, text, "certificates cannot be revoked here");
    event::append(tx, "certificate.revocation_failed", None, &first.credential.to_string(), &text, now_ms)
        .await
}

/// Why a certificate is not revoked, and who can do it.
pub(crate) fn not_revoked_here(issuer: &str) -> String {
    format!(
        "not revoked, and not tried: its CA ({issuer}) is no issuer of the configuration; have that CA revoke it with reason \
         keyCompromise, as with `certbot revoke --reason keycompromise` where it was ordered"
    )
}

/// What tenants brought with these keys is taken out of service where its names have another certificate; they are told in any
/// case.
///
/// # Errors
/// The store's.
pub(crate) async fn expose_uploaded(
    tx: &mut WriteTx,
    keys: &[Vec<u8>],
    now_ms: i64,
) -> Result<(), StoreError> {
    for group in compromise::uploaded_groups(tx, keys).await? {
        let Some(found) = uploaded::find(tx, group).await? else { continue };
        let mut is_only = false;
        for lineage in &found.lineages {
            for (name, domain) in &lineage.names {
                let at = (name.as_str(), *domain);
                is_only |= !uploaded::has_another(tx, at, &lineage.cell, group, now_ms).await?;
            }
        }
        let names: Vec<&str> = found.names.keys().map(String::as_str).collect();
        let then = if is_only {
            "it is still served, because some of its names have no other certificate; upload one with a new key now"
        } else {
            "it is served no more, its names have other certificates"
        };
        let text =
            format!("{}: others may have the uploaded key; {then}; have its CA revoke it", listed(&names));
        let subject = found.lineages.first().map(|lineage| lineage.credential.to_string());
        let subject = subject.unwrap_or_default();
        event::append(tx, "certificate.key_compromised", Some(found.tenant), &subject, &text, now_ms).await?;
        if !is_only {
            uploaded::retire(tx, &found, now_ms).await?;
        }
    }
    Ok(())
}

fn listed(names: &[&str]) -> String {
    let shown = names[..names.len().min(NAMES_TOLD_MAX)].join(", ");
    match names.len().saturating_sub(NAMES_TOLD_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

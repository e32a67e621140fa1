//! By whom a tenant's origins know our edges: its authority, and a certificate for each cell that needs one.

use portico_api::v1::{
    AuthorityCertificate, DomainSpec, FieldError, OriginAuthority as Shown, OriginIdentity as ShownIdentity,
    PreviousOriginAuthority,
};
use portico_cert_store::{
    CellId, CredentialId, LineageId, PrivateKey, SealContext, TenantId, certificate_pem,
};
use time::OffsetDateTime;

use crate::ca::{CaError, IssuedIdentity, OriginAuthority, sha256};
use crate::clock::rfc3339;
use crate::http::fault::field;
use crate::sealer::{Sealer, SealerError};
use crate::store::origin_identity::{self, AuthorityRole, AuthorityRow, IdentityRow};
use crate::store::{Connection, StoreError, WriteTx, cell, event};

const PURPOSE: &str = "origin authority";

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "the data key of cell {cell} cannot be opened; put back the key-encryption key that this database was sealed with, or \
         restore a backup"
    )]
    CellKey { cell: CellId, source: SealerError },
    #[error(
        "the key of tenant {tenant}'s origin authority cannot be opened; put back the key-encryption key that this database was \
         sealed with, or replace the authority (`portico tenant origin-authority {tenant} --make-next`, then --switch)"
    )]
    AuthorityKey { tenant: TenantId, source: SealerError },
    #[error(
        "tenant {tenant}'s origin authority cannot issue; if it is damaged, restore a backup or replace it (`portico tenant \
         origin-authority {tenant} --make-next`, then --switch)"
    )]
    Authority { tenant: TenantId, source: CaError },
    #[error(
        "the new key of tenant {tenant} cannot be sealed for cell {cell}; it is tried again within seconds"
    )]
    Seal { tenant: TenantId, cell: CellId, source: portico_cert_store::SealError },
}

/// Makes an authority of a tenant.
///
/// # Errors
/// The store's, or the library's.
pub(crate) async fn make_authority(
    tx: &mut WriteTx,
    sealer: &Sealer,
    (tenant, role): (TenantId, AuthorityRole),
    now_ms: i64,
) -> Result<AuthorityRow, IdentityError> {
    let made = OriginAuthority::generate(tenant, time_of(now_ms));
    let (authority, key) = made.map_err(|source| IdentityError::Authority { tenant, source })?;
    let row = AuthorityRow {
        tenant,
        role,
        certificate: authority.certificate().to_vec(),
        sealed_key: sealer.seal(PURPOSE, &tenant.to_string(), &key),
        created_at: now_ms,
    };
    origin_identity::insert_authority(tx, &row).await?;
    Ok(row)
}

/// Has the next authority issue what edges show from now on. The one before is kept until no edge can show any more what it
/// issued ([`finish`]); neither may be there twice.
///
/// # Errors
/// The store's, the sealer's or the library's.
pub(crate) async fn switch(
    tx: &mut WriteTx,
    sealer: &Sealer,
    tenant: TenantId,
    now_ms: i64,
) -> Result<(), IdentityError> {
    origin_identity::set_role(tx, tenant, AuthorityRole::Present, AuthorityRole::Previous).await?;
    origin_identity::set_role(tx, tenant, AuthorityRole::Next, AuthorityRole::Present).await?;
    for row in origin_identity::of_tenant(tx, tenant).await? {
        ensure(tx, sealer, (tenant, &row.cell), now_ms).await?;
    }
    Ok(())
}

/// The present authority's fingerprint, where no edge can show any more what another has issued.
///
/// # Errors
/// The store's.
pub(crate) async fn all_switched(
    connection: &mut Connection,
    tenant: TenantId,
) -> Result<Option<String>, StoreError> {
    let present = origin_identity::authority(connection, tenant, AuthorityRole::Present).await?;
    let Some(fingerprint) = present.map(|row| sha256(&row.certificate)) else { return Ok(None) };
    let behind = origin_identity::edges_behind(connection, tenant, &fingerprint).await?;
    Ok(behind.is_empty().then(|| hex::encode(fingerprint)))
}

/// Forgets the authority before the present one, if [`all_switched`] says so. Whether it did.
///
/// # Errors
/// The store's.
pub(crate) async fn finish(tx: &mut WriteTx, tenant: TenantId, now_ms: i64) -> Result<bool, StoreError> {
    let Some(fingerprint) = all_switched(tx, tenant).await? else { return Ok(false) };
    if !origin_identity::remove_authority(tx, tenant, AuthorityRole::Previous).await? {
        return Ok(false);
    }
    let text = format!(
        "every edge shows certificates of the new origin authority {fingerprint}; origins need not trust the one before any more"
    );
    let subject = tenant.to_string();
    event::append(tx, "tenant.origin_authority_replaced", Some(tenant), &subject, &text, now_ms).await?;
    Ok(true)
}

/// A route that shows a certificate needs an authority that its origin can trust beforehand.
///
/// # Errors
/// The store's.
pub(crate) async fn check(
    connection: &mut Connection,
    tenant: TenantId,
    spec: &DomainSpec,
) -> Result<Option<FieldError>, StoreError> {
    let Some(route) = spec.shows_client_certificate() else { return Ok(None) };
    if origin_identity::authority(connection, tenant, AuthorityRole::Present).await?.is_some() {
        return Ok(None);
    }
    let message = format!(
        "the tenant has no origin authority yet: make it with POST /v1/tenants/{tenant}/origin-authority, let the origin \
         trust its certificate, then say this again"
    );
    let at = format!("/routes/{route}/action/tls/client_certificate");
    Ok(Some(field(at, "no_origin_authority", message)))
}

/// Sees to it that the edges of a served domain's cells have what its routes want to show, before they learn of the routes.
///
/// # Errors
/// The store's, the sealer's or the library's.
pub(crate) async fn prepare(
    tx: &mut WriteTx,
    sealer: &Sealer,
    (tenant, tenant_cells): (TenantId, &[CellId]),
    spec: &DomainSpec,
    now_ms: i64,
) -> Result<(), IdentityError> {
    if spec.shows_client_certificate().is_none() {
        return Ok(());
    }
    for cell in cell::of_domain(&spec.cells, tenant_cells) {
        ensure(tx, sealer, (tenant, &cell), now_ms).await?;
    }
    Ok(())
}

/// Makes an identity where there is none, or one that is due for its successor: by time, because the cell has a new key (an edge
/// that was taken out could read the old one), or because the tenant has a new authority. Whether it did.
///
/// # Errors
/// As [`prepare`].
pub(crate) async fn ensure(
    tx: &mut WriteTx,
    sealer: &Sealer,
    (tenant, cell): (TenantId, &CellId),
    now_ms: i64,
) -> Result<bool, IdentityError> {
    let cell_key = cell::current_key(tx, sealer, cell, now_ms).await;
    let cell_key = cell_key.map_err(|source| IdentityError::CellKey { cell: cell.clone(), source })?;
    let Some(stored) = origin_identity::authority(tx, tenant, AuthorityRole::Present).await? else {
        return Ok(false);
    };
    let authority_sha256 = sha256(&stored.certificate);
    let epoch = cell_key.epoch();
    let of_tenant = origin_identity::of_tenant(tx, tenant).await?;
    let present = of_tenant.into_iter().find(|row| row.cell == *cell);
    if present.as_ref().is_some_and(|row| is_good(row, Some(epoch), Some(&authority_sha256), now_ms)) {
        return Ok(false);
    }
    let (issued, key) = issue(sealer, stored, cell, now_ms)?;
    let (credential, key_tenant) = (CredentialId::generate(), tenant.to_string());
    let spki_sha256 = key.spki_sha256();
    let context = SealContext { cell, epoch, key_tenant: &key_tenant, credential, spki_sha256 };
    let sealed_key = cell_key.seal(&key, &context);
    let sealed_key =
        sealed_key.map_err(|source| IdentityError::Seal { tenant, cell: cell.clone(), source })?;
    let not_after = issued.not_after.unix_timestamp().saturating_mul(1000);
    let row = IdentityRow {
        id: present.map_or_else(LineageId::generate, |row| row.id),
        tenant,
        cell: cell.clone(),
        credential,
        certificate: issued.certificate.to_vec(),
        authority_sha256: authority_sha256.to_vec(),
        sealed_key: sealed_key.as_bytes().to_vec(),
        cell_key_epoch: epoch,
        spki_sha256: spki_sha256.to_vec(),
        not_after,
        // With a third of its life left, as certificates for visitors.
        renew_at: now_ms + (not_after - now_ms) / 3 * 2,
    };
    origin_identity::put(tx, &row).await?;
    Ok(true)
}

fn issue(
    sealer: &Sealer,
    stored: AuthorityRow,
    cell: &CellId,
    now_ms: i64,
) -> Result<(IssuedIdentity, PrivateKey), IdentityError> {
    let tenant = stored.tenant;
    let key = sealer.open(PURPOSE, &tenant.to_string(), &stored.sealed_key);
    let key = key.map_err(|source| IdentityError::AuthorityKey { tenant, source })?;
    OriginAuthority::from_stored(tenant, stored.certificate, &key)
        .and_then(|authority| authority.issue(cell, time_of(now_ms)))
        .map_err(|source| IdentityError::Authority { tenant, source })
}

/// Whether an identity may stay; `newest`: the epoch of its cell's newest key, `authority`: the SHA-256 of its tenant's present
/// authority.
pub(crate) fn is_good(
    row: &IdentityRow,
    newest: Option<u32>,
    authority: Option<&[u8; 32]>,
    now_ms: i64,
) -> bool {
    row.renew_at > now_ms
        && newest == Some(row.cell_key_epoch)
        && authority.is_some_and(|authority| row.authority_sha256 == authority)
}

/// What a tenant gives its origins to trust; `None`: it has no authority.
///
/// # Errors
/// The store's.
pub(crate) async fn show(connection: &mut Connection, tenant: TenantId) -> Result<Option<Shown>, StoreError> {
    let all = origin_identity::authorities(connection, tenant).await?;
    let of = |role| all.iter().find(|row| row.role == role);
    let Some(present) = of(AuthorityRole::Present) else { return Ok(None) };
    let present_sha256 = sha256(&present.certificate);
    let identities = origin_identity::of_tenant(connection, tenant).await?;
    let identities = identities.into_iter().map(|identity| ShownIdentity {
        cell: identity.cell,
        certificate_sha256: hex::encode(sha256(&identity.certificate)),
        not_after: rfc3339(identity.not_after),
    });
    let previous = match of(AuthorityRole::Previous) {
        None => None,
        Some(row) => Some(PreviousOriginAuthority {
            certificate: shown(row),
            edges_behind: origin_identity::edges_behind(connection, tenant, &present_sha256).await?,
        }),
    };
    Ok(Some(Shown {
        present: shown(present),
        identities: identities.collect(),
        next: of(AuthorityRole::Next).map(shown),
        previous,
    }))
}

fn shown(row: &AuthorityRow) -> AuthorityCertificate {
    AuthorityCertificate {
        certificate_pem: certificate_pem(&row.certificate),
        certificate_sha256: hex::encode(sha256(&row.certificate)),
        created_at: rfc3339(row.created_at),
    }
}

fn time_of(ms: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

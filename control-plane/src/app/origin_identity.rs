//! By whom a tenant's origins know our edges: its authority, and a certificate for each cell that needs one.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use portico_api::v1::{DomainSpec, FieldError, OriginAuthority as Shown, OriginIdentity as ShownIdentity};
use portico_cert_store::{CellId, CredentialId, LineageId, SealContext, TenantId};
use time::OffsetDateTime;

use crate::ca::{CaError, OriginAuthority, hex, sha256};
use crate::clock::rfc3339;
use crate::http::fault::field;
use crate::sealer::{Sealer, SealerError};
use crate::store::origin_identity::{self, AuthorityRow, IdentityRow};
use crate::store::{Connection, StoreError, WriteTx, cell};

const PURPOSE: &str = "origin authority";

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a key cannot be sealed or opened")]
    Sealer(#[from] SealerError),
    #[error("the tenant's origin authority")]
    Authority(#[from] CaError),
    #[error("the key does not fit its cell: {0}")]
    Seal(#[from] portico_cert_store::SealError),
}

/// Makes a tenant's authority.
///
/// # Errors
/// The store's, or the library's.
pub(crate) async fn make_authority(
    tx: &mut WriteTx,
    sealer: &Sealer,
    tenant: TenantId,
    now_ms: i64,
) -> Result<AuthorityRow, IdentityError> {
    let (authority, key) = OriginAuthority::generate(tenant, time_of(now_ms))?;
    let row = AuthorityRow {
        tenant,
        certificate: authority.certificate().to_vec(),
        sealed_key: sealer.seal(PURPOSE, &tenant.to_string(), &key),
        created_at: now_ms,
    };
    origin_identity::insert_authority(tx, &row).await?;
    Ok(row)
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
    if origin_identity::authority(connection, tenant).await?.is_some() {
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

/// Makes an identity where there is none, or one that is due for its successor: by time, or because the cell has a new key
/// (an edge that was taken out could read the old one). Whether it did.
///
/// # Errors
/// As [`prepare`].
pub(crate) async fn ensure(
    tx: &mut WriteTx,
    sealer: &Sealer,
    (tenant, cell): (TenantId, &CellId),
    now_ms: i64,
) -> Result<bool, IdentityError> {
    let cell_key = cell::current_key(tx, sealer, cell, now_ms).await?;
    let of_tenant = origin_identity::of_tenant(tx, tenant).await?;
    let present = of_tenant.into_iter().find(|row| row.cell == *cell);
    if present.as_ref().is_some_and(|row| is_good(row, Some(cell_key.epoch()), now_ms)) {
        return Ok(false);
    }
    let Some(stored) = origin_identity::authority(tx, tenant).await? else { return Ok(false) };
    let authority_key = sealer.open(PURPOSE, &tenant.to_string(), &stored.sealed_key)?;
    let authority = OriginAuthority::from_stored(tenant, stored.certificate, &authority_key)?;
    let (issued, key) = authority.issue(cell, time_of(now_ms))?;
    let (credential, key_tenant) = (CredentialId::generate(), tenant.to_string());
    let epoch = cell_key.epoch();
    let spki_sha256 = key.spki_sha256();
    let context = SealContext { cell, epoch, key_tenant: &key_tenant, credential, spki_sha256 };
    let sealed_key = cell_key.seal(&key, &context)?.as_bytes().to_vec();
    let not_after = issued.not_after.unix_timestamp().saturating_mul(1000);
    let row = IdentityRow {
        id: present.map_or_else(LineageId::generate, |row| row.id),
        tenant,
        cell: cell.clone(),
        credential,
        certificate: issued.certificate.to_vec(),
        sealed_key,
        cell_key_epoch: epoch,
        spki_sha256: spki_sha256.to_vec(),
        not_after,
        // With a third of its life left, as certificates for visitors.
        renew_at: now_ms + (not_after - now_ms) / 3 * 2,
    };
    origin_identity::put(tx, &row).await?;
    Ok(true)
}

/// Whether an identity may stay; `newest`: the epoch of its cell's newest key.
pub(crate) fn is_good(row: &IdentityRow, newest: Option<u32>, now_ms: i64) -> bool {
    row.renew_at > now_ms && newest == Some(row.cell_key_epoch)
}

/// What a tenant gives its origins to trust.
///
/// # Errors
/// The store's.
pub(crate) async fn show(connection: &mut Connection, row: &AuthorityRow) -> Result<Shown, StoreError> {
    let identities = origin_identity::of_tenant(connection, row.tenant).await?;
    let identities = identities.into_iter().map(|identity| ShownIdentity {
        cell: identity.cell,
        certificate_sha256: hex(&sha256(&identity.certificate)),
        not_after: rfc3339(identity.not_after),
    });
    Ok(Shown {
        certificate_pem: pem(&row.certificate),
        certificate_sha256: hex(&sha256(&row.certificate)),
        created_at: rfc3339(row.created_at),
        identities: identities.collect(),
    })
}

/// RFC 7468.
fn pem(der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned());
    let lines: Vec<_> = lines.collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn time_of(ms: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

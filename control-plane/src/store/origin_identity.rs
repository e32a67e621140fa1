//! Tenants' origin authorities, and the identities that edges show to origins.

use std::collections::BTreeSet;

use portico_api::distribution::ResourceKind;
use portico_api::v1::{DomainSpec, TenantSpec};
use portico_cert_store::{CellId, CredentialId, LineageId, TenantId};
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::projection_rows::select;
use super::{StoreError, WriteTx, cell, change, from_id, from_json};

/// A tenant's authority.
#[derive(Clone, Debug)]
pub struct AuthorityRow {
    pub tenant: TenantId,
    /// DER.
    pub certificate: Vec<u8>,
    pub sealed_key: Vec<u8>,
    pub created_at: i64,
}

/// What the edges of one cell show to a tenant's origins.
#[derive(Clone, Debug)]
pub struct IdentityRow {
    /// Of the distributed resource; it stays over renewals.
    pub id: LineageId,
    pub tenant: TenantId,
    pub cell: CellId,
    pub credential: CredentialId,
    /// DER.
    pub certificate: Vec<u8>,
    pub sealed_key: Vec<u8>,
    pub cell_key_epoch: u32,
    pub spki_sha256: Vec<u8>,
    pub not_after: i64,
    pub renew_at: i64,
}

/// # Errors
/// The database's.
pub async fn authority(
    connection: &mut SqliteConnection,
    tenant: TenantId,
) -> Result<Option<AuthorityRow>, StoreError> {
    let row = sqlx::query("SELECT * FROM origin_authorities WHERE tenant_id = ?")
        .bind(tenant.to_string())
        .fetch_optional(connection)
        .await?;
    row.map(|row| {
        Ok(AuthorityRow {
            tenant,
            certificate: row.try_get("certificate")?,
            sealed_key: row.try_get("sealed_key")?,
            created_at: row.try_get("created_at")?,
        })
    })
    .transpose()
}

/// # Errors
/// The database's; a second authority of a tenant is one.
pub async fn insert_authority(tx: &mut WriteTx, row: &AuthorityRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO origin_authorities (tenant_id, certificate, sealed_key, created_at) VALUES (?, ?, ?, ?)",
    )
    .bind(row.tenant.to_string())
    .bind(&row.certificate)
    .bind(&row.sealed_key)
    .bind(row.created_at)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The identities of one tenant, by cell.
///
/// # Errors
/// The database's.
pub async fn of_tenant(
    connection: &mut SqliteConnection,
    tenant: TenantId,
) -> Result<Vec<IdentityRow>, StoreError> {
    let rows = sqlx::query("SELECT * FROM origin_identities WHERE tenant_id = ? ORDER BY cell")
        .bind(tenant.to_string())
        .fetch_all(connection)
        .await?;
    rows.iter().map(read).collect()
}

/// All identities.
///
/// # Errors
/// The database's.
pub async fn all(connection: &mut SqliteConnection) -> Result<Vec<IdentityRow>, StoreError> {
    let rows = sqlx::query("SELECT * FROM origin_identities ORDER BY id").fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

/// Those of these ids, for the projection.
///
/// # Errors
/// The database's.
pub async fn by_ids(
    connection: &mut SqliteConnection,
    ids: &[String],
) -> Result<Vec<IdentityRow>, StoreError> {
    let rows = select(connection, "SELECT * FROM origin_identities WHERE id IN (", ids, ")").await?;
    rows.iter().map(read).collect()
}

/// Writes an identity in the place of that of the same tenant and cell, and tells the cell's edges.
///
/// # Errors
/// The database's.
pub async fn put(tx: &mut WriteTx, row: &IdentityRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO origin_identities (id, tenant_id, cell, credential_id, certificate, sealed_key, cell_key_epoch, \
         spki_sha256, not_after, renew_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (id) DO UPDATE SET credential_id = excluded.credential_id, certificate = excluded.certificate, \
         sealed_key = excluded.sealed_key, cell_key_epoch = excluded.cell_key_epoch, \
         spki_sha256 = excluded.spki_sha256, not_after = excluded.not_after, renew_at = excluded.renew_at",
    )
    .bind(row.id.to_string())
    .bind(row.tenant.to_string())
    .bind(row.cell.as_str())
    .bind(row.credential.to_string())
    .bind(&row.certificate)
    .bind(&row.sealed_key)
    .bind(row.cell_key_epoch)
    .bind(&row.spki_sha256)
    .bind(row.not_after)
    .bind(row.renew_at)
    .execute(&mut **tx)
    .await?;
    let (id, tenant) = (row.id.to_string(), row.tenant.to_string());
    change::record(tx, ResourceKind::OriginIdentity, &id, Some(&tenant)).await?;
    Ok(())
}

/// Takes an identity from the edges.
///
/// # Errors
/// The database's.
pub async fn remove(tx: &mut WriteTx, row: &IdentityRow) -> Result<(), StoreError> {
    let (id, tenant) = (row.id.to_string(), row.tenant.to_string());
    sqlx::query("DELETE FROM origin_identities WHERE id = ?").bind(&id).execute(&mut **tx).await?;
    change::record_removal(tx, ResourceKind::OriginIdentity, &id, Some(&tenant)).await?;
    Ok(())
}

/// Who needs one where: the cells of each served domain with a route that shows it. One whose name is not proved has no edge
/// that could use it.
///
/// # Errors
/// The database's.
pub async fn wanted(connection: &mut SqliteConnection) -> Result<BTreeSet<(TenantId, CellId)>, StoreError> {
    // The text is how the specification is stored; what it finds too much is sorted out by reading it.
    let rows = sqlx::query(
        "SELECT d.tenant_id, d.spec, t.spec AS tenant_spec FROM origin_authorities a \
         JOIN domains d ON d.tenant_id = a.tenant_id JOIN tenants t ON t.id = a.tenant_id \
         WHERE d.deleted_at IS NULL AND d.served = 1 AND instr(d.spec, '\"client_certificate\":true') > 0",
    )
    .fetch_all(connection)
    .await?;
    let mut wanted = BTreeSet::new();
    for row in &rows {
        let spec: DomainSpec = from_json(row.try_get("spec")?, "domains: spec")?;
        let of_tenant: TenantSpec = from_json(row.try_get("tenant_spec")?, "tenants: spec")?;
        if spec.shows_client_certificate().is_some() {
            let tenant = from_id(row.try_get("tenant_id")?, "domains")?;
            let cells = cell::of_domain(&spec.cells, &of_tenant.cells);
            wanted.extend(cells.into_iter().map(|cell| (tenant, cell)));
        }
    }
    Ok(wanted)
}

fn read(row: &SqliteRow) -> Result<IdentityRow, StoreError> {
    let table = "origin_identities";
    Ok(IdentityRow {
        id: from_id(row.try_get("id")?, table)?,
        tenant: from_id(row.try_get("tenant_id")?, table)?,
        cell: from_id(row.try_get("cell")?, table)?,
        credential: from_id(row.try_get("credential_id")?, table)?,
        certificate: row.try_get("certificate")?,
        sealed_key: row.try_get("sealed_key")?,
        cell_key_epoch: row.try_get("cell_key_epoch")?,
        spki_sha256: row.try_get("spki_sha256")?,
        not_after: row.try_get("not_after")?,
        renew_at: row.try_get("renew_at")?,
    })
}

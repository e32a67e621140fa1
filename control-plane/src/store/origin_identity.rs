//! Tenants' origin authorities, and the identities that edges show to origins.

use std::collections::BTreeSet;

use portico_api::distribution::ResourceKind;
use portico_api::v1::{DomainSpec, TenantSpec};
use portico_cert_store::{CellId, CredentialId, EdgeId, LineageId, TenantId};

use super::projection_rows::select;
use super::sql::Row;
use super::{Connection, StoreError, WriteTx, cell, change, from_id, from_json, meta, sql};

/// An authority of a tenant.
#[derive(Clone, Debug)]
pub struct AuthorityRow {
    pub tenant: TenantId,
    pub role: AuthorityRole,
    /// DER.
    pub certificate: Vec<u8>,
    pub sealed_key: Vec<u8>,
    pub created_at: i64,
}

/// What an authority is to its tenant. There is at most one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorityRole {
    /// It issues what edges show.
    Present,
    /// It is to take the place of the present one, when origins trust both.
    Next,
    /// It was the present one; an edge may still show what it issued.
    Previous,
}

impl AuthorityRole {
    const ALL: [Self; 3] = [Self::Present, Self::Next, Self::Previous];

    fn as_str(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Next => "next",
            Self::Previous => "previous",
        }
    }
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
    /// Of the certificate of the authority that issued it.
    pub authority_sha256: Vec<u8>,
    pub sealed_key: Vec<u8>,
    pub cell_key_epoch: u32,
    pub spki_sha256: Vec<u8>,
    pub not_after: i64,
    pub renew_at: i64,
}

/// All authorities of a tenant.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn authorities(
    connection: &mut Connection,
    tenant: TenantId,
) -> Result<Vec<AuthorityRow>, StoreError> {
    let rows = sql::query("SELECT * FROM origin_authorities WHERE tenant_id = ?")
        .bind(tenant.to_string())
        .fetch_all(connection)
        .await?;
    let authority = |row: &Row| {
        let role: &str = row.try_get("role")?;
        let role = AuthorityRole::ALL.into_iter().find(|known| known.as_str() == role);
        Ok(AuthorityRow {
            tenant,
            role: role
                .ok_or_else(|| StoreError::Unreadable { what: "origin_authorities: role".to_owned() })?,
            certificate: row.try_get("certificate")?,
            sealed_key: row.try_get("sealed_key")?,
            created_at: row.try_get("created_at")?,
        })
    };
    rows.iter().map(authority).collect()
}

/// One of them.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn authority(
    connection: &mut Connection,
    tenant: TenantId,
    role: AuthorityRole,
) -> Result<Option<AuthorityRow>, StoreError> {
    Ok(authorities(connection, tenant).await?.into_iter().find(|row| row.role == role))
}

/// # Errors
/// The database's; a second authority of a tenant with this role is one.
pub async fn insert_authority(tx: &mut WriteTx, row: &AuthorityRow) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO origin_authorities (tenant_id, role, certificate, sealed_key, created_at) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(row.tenant.to_string())
    .bind(row.role.as_str())
    .bind(&row.certificate)
    .bind(&row.sealed_key)
    .bind(row.created_at)
    .execute(tx)
    .await?;
    Ok(())
}

/// Gives an authority another role, which none of the tenant may have.
///
/// # Errors
/// The database's.
pub async fn set_role(
    tx: &mut WriteTx,
    tenant: TenantId,
    from: AuthorityRole,
    to: AuthorityRole,
) -> Result<(), StoreError> {
    sql::query("UPDATE origin_authorities SET role = ? WHERE tenant_id = ? AND role = ?")
        .bind(to.as_str())
        .bind(tenant.to_string())
        .bind(from.as_str())
        .execute(tx)
        .await?;
    Ok(())
}

/// Forgets an authority with its key. Whether there was one.
///
/// # Errors
/// The database's.
pub async fn remove_authority(
    tx: &mut WriteTx,
    tenant: TenantId,
    role: AuthorityRole,
) -> Result<bool, StoreError> {
    let done = sql::query("DELETE FROM origin_authorities WHERE tenant_id = ? AND role = ?")
        .bind(tenant.to_string())
        .bind(role.as_str())
        .execute(tx)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Tenants with an authority that was replaced.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn with_previous(connection: &mut Connection) -> Result<Vec<TenantId>, StoreError> {
    let ids: Vec<String> =
        sql::query_scalar("SELECT tenant_id FROM origin_authorities WHERE role = 'previous' ORDER BY 1")
            .fetch_all(connection)
            .await?;
    ids.iter().map(|id| from_id(id, "origin_authorities")).collect()
}

/// Edges that may still show what another than this authority has issued: those that have not applied, or refuse, what there is
/// for their cell now; those that are away are among them.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn edges_behind(
    connection: &mut Connection,
    tenant: TenantId,
    authority_sha256: &[u8],
) -> Result<Vec<EdgeId>, StoreError> {
    let epoch = meta::epoch(connection).await?;
    let ids: Vec<String> = sql::query_scalar(
        "SELECT DISTINCT e.id FROM origin_identities i JOIN edges e ON e.cell = i.cell AND e.removed_at IS NULL \
         LEFT JOIN changes c ON c.kind = ?1 AND c.id = i.id \
         LEFT JOIN edge_nacks n ON n.edge_id = e.id AND n.kind = ?1 AND n.id = i.id \
         WHERE i.tenant_id = ?2 AND (i.authority_sha256 <> ?3 OR n.id IS NOT NULL OR e.applied_epoch < ?4 \
         OR (e.applied_epoch = ?4 AND e.applied_sequence < COALESCE(c.sequence, 0))) ORDER BY e.id",
    )
    .bind(ResourceKind::OriginIdentity as i32)
    .bind(tenant.to_string())
    .bind(authority_sha256)
    .bind(i64::try_from(epoch).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?;
    ids.iter().map(|id| from_id(id, "edges")).collect()
}

/// The identities of one tenant, by cell.
///
/// # Errors
/// The database's.
pub async fn of_tenant(
    connection: &mut Connection,
    tenant: TenantId,
) -> Result<Vec<IdentityRow>, StoreError> {
    let rows = sql::query("SELECT * FROM origin_identities WHERE tenant_id = ? ORDER BY cell")
        .bind(tenant.to_string())
        .fetch_all(connection)
        .await?;
    rows.iter().map(read).collect()
}

/// All identities.
///
/// # Errors
/// The database's.
pub async fn all(connection: &mut Connection) -> Result<Vec<IdentityRow>, StoreError> {
    let rows = sql::query("SELECT * FROM origin_identities ORDER BY id").fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

/// Those of these ids, for the projection.
///
/// # Errors
/// The database's.
pub async fn by_ids(connection: &mut Connection, ids: &[String]) -> Result<Vec<IdentityRow>, StoreError> {
    let rows = select(connection, "SELECT * FROM origin_identities WHERE id IN (", ids, ")").await?;
    rows.iter().map(read).collect()
}

/// Writes an identity in the place of that of the same tenant and cell, and tells the cell's edges.
///
/// # Errors
/// The database's.
pub async fn put(tx: &mut WriteTx, row: &IdentityRow) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO origin_identities (id, tenant_id, cell, credential_id, certificate, authority_sha256, sealed_key, \
         cell_key_epoch, spki_sha256, not_after, renew_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (id) DO UPDATE SET credential_id = excluded.credential_id, certificate = excluded.certificate, \
         authority_sha256 = excluded.authority_sha256, sealed_key = excluded.sealed_key, cell_key_epoch = excluded.cell_key_epoch, \
         spki_sha256 = excluded.spki_sha256, not_after = excluded.not_after, renew_at = excluded.renew_at",
    )
    .bind(row.id.to_string())
    .bind(row.tenant.to_string())
    .bind(row.cell.as_str())
    .bind(row.credential.to_string())
    .bind(&row.certificate)
    .bind(&row.authority_sha256)
    .bind(&row.sealed_key)
    .bind(row.cell_key_epoch)
    .bind(&row.spki_sha256)
    .bind(row.not_after)
    .bind(row.renew_at)
    .execute(tx)
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
    sql::query("DELETE FROM origin_identities WHERE id = ?").bind(&id).execute(tx).await?;
    change::record_removal(tx, ResourceKind::OriginIdentity, &id, Some(&tenant)).await?;
    Ok(())
}

/// Who needs one where: the cells of each served domain with a route that shows it. One whose name is not proved has no edge
/// that could use it.
///
/// # Errors
/// The database's.
pub async fn wanted(connection: &mut Connection) -> Result<BTreeSet<(TenantId, CellId)>, StoreError> {
    let rows = sql::query(
        "SELECT d.tenant_id, d.spec, t.spec AS tenant_spec FROM origin_authorities a \
         JOIN domains d ON d.tenant_id = a.tenant_id AND d.shows_identity = 1 JOIN tenants t ON t.id = a.tenant_id \
         WHERE a.role = 'present' AND d.deleted_at IS NULL AND d.served = 1",
    )
    .fetch_all(connection)
    .await?;
    let mut wanted = BTreeSet::new();
    for row in &rows {
        let spec: DomainSpec = from_json(row.try_get("spec")?, "domains: spec")?;
        let of_tenant: TenantSpec = from_json(row.try_get("tenant_spec")?, "tenants: spec")?;
        let tenant = from_id(row.try_get("tenant_id")?, "domains")?;
        let cells = cell::of_domain(&spec.cells, &of_tenant.cells);
        wanted.extend(cells.into_iter().map(|cell| (tenant, cell)));
    }
    Ok(wanted)
}

fn read(row: &Row) -> Result<IdentityRow, StoreError> {
    let table = "origin_identities";
    Ok(IdentityRow {
        id: from_id(row.try_get("id")?, table)?,
        tenant: from_id(row.try_get("tenant_id")?, table)?,
        cell: from_id(row.try_get("cell")?, table)?,
        credential: from_id(row.try_get("credential_id")?, table)?,
        certificate: row.try_get("certificate")?,
        authority_sha256: row.try_get("authority_sha256")?,
        sealed_key: row.try_get("sealed_key")?,
        cell_key_epoch: row.try_get("cell_key_epoch")?,
        spki_sha256: row.try_get("spki_sha256")?,
        not_after: row.try_get("not_after")?,
        renew_at: row.try_get("renew_at")?,
    })
}

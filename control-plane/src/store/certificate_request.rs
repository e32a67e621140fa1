//! Keys that were made here for certificates which tenants order themselves. Each waits, sealed, until its certificate is brought
//! or its time is up; then its row goes, and the key with it.

use portico_api::v1::CertificateRequestId;
use portico_cert_store::{KeyType, TenantId};

use super::sql::Row;
use super::{Connection, StoreError, WriteTx, from_id, from_json, from_word, sql, to_json, to_word};

/// One request, as it is stored.
#[derive(Clone, Debug)]
pub struct CertificateRequestRow {
    pub id: CertificateRequestId,
    pub tenant: TenantId,
    /// Sorted.
    pub names: Vec<String>,
    pub key_type: KeyType,
    pub csr_pem: String,
    /// By the [`crate::sealer::Sealer`].
    pub sealed_key: Vec<u8>,
    pub spki_sha256: Vec<u8>,
    pub created_at: i64,
    pub expires_at: i64,
}

/// # Errors
/// The database's.
pub async fn insert(tx: &mut WriteTx, row: &CertificateRequestRow) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO certificate_requests (id, tenant_id, names, key_type, csr_pem, sealed_key, spki_sha256, created_at, \
         expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(row.id.to_string())
    .bind(row.tenant.to_string())
    .bind(to_json(&row.names)?)
    .bind(to_word(&row.key_type)?)
    .bind(&row.csr_pem)
    .bind(&row.sealed_key)
    .bind(&row.spki_sha256)
    .bind(row.created_at)
    .bind(row.expires_at)
    .execute(tx)
    .await?;
    Ok(())
}

/// # Errors
/// The database's, or a row that cannot be read.
pub async fn find(
    connection: &mut Connection,
    id: CertificateRequestId,
    now_ms: i64,
) -> Result<Option<CertificateRequestRow>, StoreError> {
    let row = sql::query("SELECT * FROM certificate_requests WHERE id = ? AND expires_at > ?")
        .bind(id.to_string())
        .bind(now_ms)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read).transpose()
}

/// The tenant's newest for just these names and this kind of key.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn find_same(
    connection: &mut Connection,
    tenant: TenantId,
    names: &[String],
    key_type: KeyType,
    now_ms: i64,
) -> Result<Option<CertificateRequestRow>, StoreError> {
    let row = sql::query(
        "SELECT * FROM certificate_requests WHERE tenant_id = ? AND names = ? AND key_type = ? AND expires_at > ? \
         ORDER BY id DESC LIMIT 1",
    )
    .bind(tenant.to_string())
    .bind(to_json(names)?)
    .bind(to_word(&key_type)?)
    .bind(now_ms)
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(read).transpose()
}

/// The tenant's with this public key.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn of_key(
    connection: &mut Connection,
    tenant: TenantId,
    spki_sha256: &[u8],
    now_ms: i64,
) -> Result<Option<CertificateRequestRow>, StoreError> {
    let row = sql::query(
        "SELECT * FROM certificate_requests WHERE tenant_id = ? AND spki_sha256 = ? AND expires_at > ? LIMIT 1",
    )
    .bind(tenant.to_string())
    .bind(spki_sha256.to_vec())
    .bind(now_ms)
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(read).transpose()
}

/// A tenant's after `after`, by id.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn of_tenant(
    connection: &mut Connection,
    tenant: TenantId,
    now_ms: i64,
    after: &str,
    limit: u32,
) -> Result<Vec<CertificateRequestRow>, StoreError> {
    let rows = sql::query(
        "SELECT * FROM certificate_requests WHERE tenant_id = ? AND expires_at > ? AND id > ? ORDER BY id LIMIT ?",
    )
    .bind(tenant.to_string())
    .bind(now_ms)
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(read).collect()
}

/// How many of a tenant are kept.
///
/// # Errors
/// The database's.
pub async fn count(connection: &mut Connection, tenant: TenantId) -> Result<u64, StoreError> {
    let counted: i64 = sql::query_scalar("SELECT COUNT(*) FROM certificate_requests WHERE tenant_id = ?")
        .bind(tenant.to_string())
        .fetch_one(connection)
        .await?;
    Ok(counted.unsigned_abs())
}

/// Those whose time is up, the first `most`.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn expired(
    connection: &mut Connection,
    now_ms: i64,
    most: u32,
) -> Result<Vec<CertificateRequestRow>, StoreError> {
    let rows =
        sql::query("SELECT * FROM certificate_requests WHERE expires_at <= ? ORDER BY expires_at LIMIT ?")
            .bind(now_ms)
            .bind(most)
            .fetch_all(connection)
            .await?;
    rows.iter().map(read).collect()
}

/// Forgets one with its key; `false`: it was gone already.
///
/// # Errors
/// The database's.
pub async fn delete(tx: &mut WriteTx, id: CertificateRequestId) -> Result<bool, StoreError> {
    let done =
        sql::query("DELETE FROM certificate_requests WHERE id = ?").bind(id.to_string()).execute(tx).await?;
    Ok(done.rows_affected() > 0)
}

/// The certificate of a tenant's key is here: its request is over, for the key is where the certificate is. Answers it.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn complete(
    tx: &mut WriteTx,
    tenant: TenantId,
    spki_sha256: &[u8],
) -> Result<Option<CertificateRequestRow>, StoreError> {
    let row =
        sql::query("DELETE FROM certificate_requests WHERE tenant_id = ? AND spki_sha256 = ? RETURNING *")
            .bind(tenant.to_string())
            .bind(spki_sha256.to_vec())
            .fetch_optional(tx)
            .await?;
    row.as_ref().map(read).transpose()
}

fn read(row: &Row) -> Result<CertificateRequestRow, StoreError> {
    Ok(CertificateRequestRow {
        id: from_id(row.try_get("id")?, "certificate_requests")?,
        tenant: from_id(row.try_get("tenant_id")?, "certificate_requests")?,
        names: from_json(row.try_get("names")?, "certificate_requests: names")?,
        key_type: from_word(row.try_get("key_type")?, "certificate_requests: key_type")?,
        csr_pem: row.try_get("csr_pem")?,
        sealed_key: row.try_get("sealed_key")?,
        spki_sha256: row.try_get("spki_sha256")?,
        created_at: row.try_get("created_at")?,
        expires_at: row.try_get("expires_at")?,
    })
}

//! API tokens: only the hash of a secret is kept.

use portico_cert_store::TenantId;

use super::sql::Row;
use super::{Connection, StoreError, WriteTx, from_id, sql};

/// A token as it is stored.
#[derive(Clone, Debug)]
pub struct TokenRow {
    pub id: String,
    pub secret_sha256: Vec<u8>,
    /// `None`: an operator's.
    pub tenant_id: Option<TenantId>,
    pub label: String,
    /// Unix milliseconds.
    pub created_at: i64,
}

/// # Errors
/// The database's.
pub async fn insert(tx: &mut WriteTx, row: &TokenRow) -> Result<(), StoreError> {
    sql::query("INSERT INTO tokens (id, secret_sha256, tenant_id, label, created_at) VALUES (?, ?, ?, ?, ?)")
        .bind(&row.id)
        .bind(&row.secret_sha256)
        .bind(row.tenant_id.map(|id| id.to_string()))
        .bind(&row.label)
        .bind(row.created_at)
        .execute(tx)
        .await?;
    Ok(())
}

/// A token that is not revoked.
///
/// # Errors
/// The database's.
pub async fn find(connection: &mut Connection, id: &str) -> Result<Option<TokenRow>, StoreError> {
    let row = sql::query("SELECT * FROM tokens WHERE id = ? AND revoked_at IS NULL")
        .bind(id)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read).transpose()
}

/// Tokens that are not revoked, after `after`.
///
/// # Errors
/// The database's.
pub async fn list(connection: &mut Connection, after: &str, limit: u32) -> Result<Vec<TokenRow>, StoreError> {
    let rows = sql::query("SELECT * FROM tokens WHERE revoked_at IS NULL AND id > ? ORDER BY id LIMIT ?")
        .bind(after)
        .bind(limit)
        .fetch_all(connection)
        .await?;
    rows.iter().map(read).collect()
}

/// How many operator's tokens are valid.
///
/// # Errors
/// The database's.
pub async fn count_operators(connection: &mut Connection) -> Result<u64, StoreError> {
    let count: i64 =
        sql::query_scalar("SELECT COUNT(*) FROM tokens WHERE tenant_id IS NULL AND revoked_at IS NULL")
            .fetch_one(connection)
            .await?;
    Ok(count.unsigned_abs())
}

/// Ends a token; `false` when there was none to end.
///
/// # Errors
/// The database's.
pub async fn revoke(tx: &mut WriteTx, id: &str, now_ms: i64) -> Result<bool, StoreError> {
    let done = sql::query("UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL")
        .bind(now_ms)
        .bind(id)
        .execute(tx)
        .await?;
    Ok(done.rows_affected() > 0)
}

fn read(row: &Row) -> Result<TokenRow, StoreError> {
    let tenant: Option<String> = row.try_get("tenant_id")?;
    Ok(TokenRow {
        id: row.try_get("id")?,
        secret_sha256: row.try_get("secret_sha256")?,
        tenant_id: tenant.map(|id| from_id(&id, "tokens")).transpose()?,
        label: row.try_get("label")?,
        created_at: row.try_get("created_at")?,
    })
}

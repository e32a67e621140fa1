//! The sealer's data keys, wrapped by the key-encryption key.

use super::{Connection, StoreError, WriteTx, sql};

/// A data key as it is kept: wrapped.
#[derive(Clone, Debug)]
pub struct WrappedKey {
    /// 16 hex digits.
    pub id: String,
    pub wrapped: Vec<u8>,
}

/// All data keys, oldest first.
///
/// # Errors
/// The database's.
pub async fn all(connection: &mut Connection) -> Result<Vec<WrappedKey>, StoreError> {
    let rows = sql::query("SELECT id, wrapped FROM sealing_keys ORDER BY created_at, id")
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| Ok(WrappedKey { id: row.try_get("id")?, wrapped: row.try_get("wrapped")? }))
        .collect()
}

/// Adds a data key.
///
/// # Errors
/// The database's.
pub async fn insert(tx: &mut WriteTx, key: &WrappedKey, now_ms: i64) -> Result<(), StoreError> {
    sql::query("INSERT INTO sealing_keys (id, wrapped, created_at) VALUES (?, ?, ?)")
        .bind(&key.id)
        .bind(&key.wrapped)
        .bind(now_ms)
        .execute(tx)
        .await?;
    Ok(())
}

/// Puts another wrapping of the same data key in place.
///
/// # Errors
/// The database's.
pub async fn rewrap(tx: &mut WriteTx, key: &WrappedKey) -> Result<(), StoreError> {
    sql::query("UPDATE sealing_keys SET wrapped = ? WHERE id = ?")
        .bind(&key.wrapped)
        .bind(&key.id)
        .execute(tx)
        .await?;
    Ok(())
}

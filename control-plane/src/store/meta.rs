//! Single facts about this installation, above all the epoch of its generations.

use super::{Connection, StoreError, WriteTx, sql};

/// The epoch of every generation that is published now.
///
/// # Errors
/// The database's.
pub async fn epoch(connection: &mut Connection) -> Result<u64, StoreError> {
    let text = find(connection, "epoch").await?;
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| StoreError::Unreadable { what: "meta: epoch".to_owned() })
}

/// Raises the epoch to at least `at_least`; it never falls. Answers the epoch that holds now.
///
/// # Errors
/// The database's.
pub async fn raise_epoch(tx: &mut WriteTx, at_least: u64) -> Result<u64, StoreError> {
    let raised = epoch(tx).await?.max(at_least);
    put(tx, "epoch", &raised.to_string()).await?;
    Ok(raised)
}

/// One fact, `None` when it was never written.
///
/// # Errors
/// The database's.
pub async fn find(connection: &mut Connection, key: &str) -> Result<Option<String>, StoreError> {
    Ok(sql::query_scalar("SELECT value FROM meta WHERE key = ?").bind(key).fetch_optional(connection).await?)
}

/// Every fact whose key begins so.
///
/// # Errors
/// The database's.
pub async fn with_prefix(connection: &mut Connection, prefix: &str) -> Result<Vec<String>, StoreError> {
    Ok(sql::query_scalar("SELECT value FROM meta WHERE SUBSTR(key, 1, LENGTH(?1)) = ?1 ORDER BY key")
        .bind(prefix)
        .fetch_all(connection)
        .await?)
}

/// Writes one fact over what was there.
///
/// # Errors
/// The database's.
pub async fn put(tx: &mut WriteTx, key: &str, value: &str) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
    )
    .bind(key)
    .bind(value)
    .execute(tx)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn the_epoch_never_falls() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(folder.path()).await.unwrap();
        let mut tx = store.begin().await.unwrap();
        assert_eq!(raise_epoch(&mut tx, 7).await.unwrap(), 7);
        assert_eq!(raise_epoch(&mut tx, 3).await.unwrap(), 7);
        tx.commit().await.unwrap();
        assert_eq!(epoch(&mut store.read().await.unwrap()).await.unwrap(), 7);
    }
}

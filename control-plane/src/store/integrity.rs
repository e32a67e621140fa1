//! Whether a database file is whole.

use super::{Store, StoreError, sql};

/// The first fault that SQLite finds in pages, indexes or references; `None` when there is none.
///
/// # Errors
/// The database's.
pub async fn fault(store: &Store) -> Result<Option<String>, StoreError> {
    let mut tx = store.read().await?;
    let verdict: String = sql::query_scalar("PRAGMA integrity_check(1)").fetch_one(&mut tx).await?;
    if verdict != "ok" {
        return Ok(Some(verdict));
    }
    let orphan: Option<String> = sql::query_scalar("SELECT \"table\" FROM pragma_foreign_key_check LIMIT 1")
        .fetch_optional(&mut tx)
        .await?;
    Ok(orphan.map(|table| format!("a row of {table} refers to one that does not exist")))
}

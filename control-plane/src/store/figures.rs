//! How many there are of what, for the metrics.

use super::sql::Row;
use super::{Connection, StoreError, sql};

/// How domains stand, in the words that [`domains`] gives.
pub const DOMAIN_STANDINGS: [&str; 4] = ["suspended", "unproved", "uncertified", "certified"];

/// Domains by how they stand: suspended themselves, without a proof of ownership that stands, without a certificate that names
/// them, or with one. Where a domain stands in the words of the API depends on the edges too; that is looked at one by one.
///
/// # Errors
/// The database's.
pub async fn domains(connection: &mut Connection) -> Result<Vec<(String, u64)>, StoreError> {
    let rows = sql::query(
        "SELECT CASE WHEN suspension IS NOT NULL THEN 'suspended' WHEN served = 0 THEN 'unproved' \
         WHEN EXISTS (SELECT 1 FROM lineage_names n WHERE n.domain_id = domains.id) THEN 'certified' \
         ELSE 'uncertified' END AS word, COUNT(*) AS count FROM domains WHERE deleted_at IS NULL GROUP BY word",
    )
    .fetch_all(connection)
    .await?;
    counted(&rows)
}

/// Orders that are not over, by state.
///
/// # Errors
/// The database's.
pub async fn open_orders(connection: &mut Connection) -> Result<Vec<(String, u64)>, StoreError> {
    let rows = sql::query(
        "SELECT state AS word, COUNT(*) AS count FROM orders WHERE state NOT IN ('issued', 'failed') GROUP BY state",
    )
    .fetch_all(connection)
    .await?;
    counted(&rows)
}

fn counted(rows: &[Row]) -> Result<Vec<(String, u64)>, StoreError> {
    rows.iter().map(|row| Ok((row.try_get("word")?, row.try_get::<i64>("count")?.unsigned_abs()))).collect()
}

//! Keys that the one edge of a cell makes and keeps: which cells are such, and what their orders have of them.

use portico_cert_store::{CellId, Custody, EdgeId, OrderId};

use super::order::OrderRow;
use super::sql::Row;
use super::{Connection, StoreError, WriteTx, edge, from_id, from_word, sql};

/// A cell as operators see it.
#[derive(Clone, Debug)]
pub struct CellRow {
    pub id: CellId,
    pub custody: Custody,
    pub edges: u32,
    /// Certificates in use that were issued here.
    pub certificates: u64,
    /// Of them, those whose keys are on the edge alone.
    pub keys_on_edge: u64,
}

/// Where the keys of a cell are made from now on; of one that nobody has named yet, as of any.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn custody(connection: &mut Connection, cell: &CellId) -> Result<Custody, StoreError> {
    let word: Option<String> = sql::query_scalar("SELECT custody FROM cells WHERE id = ?")
        .bind(cell.as_str())
        .fetch_optional(connection)
        .await?;
    word.map_or(Ok(Custody::Cell), |word| from_word(&word, "cells"))
}

/// # Errors
/// The database's.
pub async fn set_custody(tx: &mut WriteTx, cell: &CellId, custody: Custody) -> Result<(), StoreError> {
    sql::query("UPDATE cells SET custody = ? WHERE id = ?")
        .bind(custody.as_str())
        .bind(cell.as_str())
        .execute(tx)
        .await?;
    Ok(())
}

/// All cells, by name.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn cells(connection: &mut Connection) -> Result<Vec<CellRow>, StoreError> {
    let rows = sql::query(
        "SELECT x.id, x.custody, (SELECT COUNT(*) FROM edges e WHERE e.cell = x.id AND e.removed_at IS NULL) AS edges, \
         COUNT(c.id) AS certificates, COUNT(CASE WHEN c.key_at_edge = 1 THEN 1 END) AS keys_on_edge FROM cells x \
         LEFT JOIN lineages l ON l.cell = x.id AND l.retired_at IS NULL AND l.custody = 'cell' \
         LEFT JOIN credentials c ON c.id = l.live_credential GROUP BY x.id, x.custody ORDER BY x.id",
    )
    .fetch_all(connection)
    .await?;
    rows.iter().map(read).collect()
}

fn read(row: &Row) -> Result<CellRow, StoreError> {
    let count = |column| Ok::<_, StoreError>(row.try_get::<i64>(column)?.unsigned_abs());
    Ok(CellRow {
        id: from_id(row.try_get("id")?, "cells")?,
        custody: from_word(row.try_get("custody")?, "cells")?,
        edges: u32::try_from(count("edges")?).unwrap_or(u32::MAX),
        certificates: count("certificates")?,
        keys_on_edge: count("keys_on_edge")?,
    })
}

/// The edge beside which no other can be in a cell: it has the cell's keys for itself, or those of some certificates in use.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn taken_by(connection: &mut Connection, cell: &CellId) -> Result<Option<EdgeId>, StoreError> {
    let found: Option<String> = sql::query_scalar(
        "SELECT MIN(e.id) FROM edges e WHERE e.cell = ?1 AND e.removed_at IS NULL AND \
         (EXISTS (SELECT 1 FROM cells x WHERE x.id = ?1 AND x.custody = 'edge') OR EXISTS \
          (SELECT 1 FROM lineages l JOIN credentials c ON c.id = l.live_credential \
           WHERE l.cell = ?1 AND l.retired_at IS NULL AND c.key_at_edge = 1))",
    )
    .bind(cell.as_str())
    .fetch_one(connection)
    .await?;
    found.map(|id| from_id(&id, "edges")).transpose()
}

/// How many edges a cell has.
///
/// # Errors
/// The database's.
pub async fn edges(connection: &mut Connection, cell: &CellId) -> Result<usize, StoreError> {
    let edges = edge::all(connection).await?;
    Ok(edges.iter().filter(|edge| edge.cell == *cell).count())
}

// ---- orders ----

/// Notes the request that an order's edge has made; one that is there already stays. `epoch`: that of the cell's key now.
///
/// # Errors
/// The database's.
pub async fn put_request(
    tx: &mut WriteTx,
    order: OrderId,
    csr: &[u8],
    spki_sha256: &[u8; 32],
    epoch: u32,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query(
        "UPDATE orders SET csr = ?, spki_sha256 = ?, cell_key_epoch = ?, attempts = 0, next_at = ?, error = NULL, updated_at = ? \
         WHERE id = ? AND key_at_edge = 1 AND length(csr) = 0",
    )
    .bind(csr)
    .bind(spki_sha256.as_slice())
    .bind(epoch)
    .bind(now_ms)
    .bind(now_ms)
    .bind(order.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// Whether a public key is that of another order under way or of any certificate.
///
/// # Errors
/// The database's.
pub async fn is_used(
    connection: &mut Connection,
    spki_sha256: &[u8; 32],
    order: OrderId,
) -> Result<bool, StoreError> {
    Ok(sql::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM credentials WHERE spki_sha256 = ?1) OR EXISTS (SELECT 1 FROM orders \
         WHERE state NOT IN ('issued', 'failed') AND spki_sha256 = ?1 AND id <> ?2)",
    )
    .bind(spki_sha256.as_slice())
    .bind(order.to_string())
    .fetch_one(connection)
    .await?)
}

/// Whether the CA has another order for the same names, which it might give for a new one: where an order waited for its edge, those
/// of other cells went on.
///
/// # Errors
/// The database's.
pub async fn has_other(connection: &mut Connection, order: &OrderRow) -> Result<bool, StoreError> {
    Ok(sql::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM orders WHERE name_set = ? AND state NOT IN ('issued', 'failed') AND state <> 'planned' \
         AND issuer = ? AND id <> ?)",
    )
    .bind(&order.name_set)
    .bind(&order.issuer)
    .bind(order.id.to_string())
    .fetch_one(connection)
    .await?)
}

/// The edge that made the keys of a cell's orders has gone: those that are not with the CA yet get others.
///
/// # Errors
/// The database's.
pub async fn forget_requests(tx: &mut WriteTx, cell: &CellId, now_ms: i64) -> Result<(), StoreError> {
    sql::query(
        "UPDATE orders SET csr = ?1, spki_sha256 = ?1, updated_at = ?2 WHERE key_at_edge = 1 \
         AND state IN ('planned', 'created', 'challenged', 'ready') \
         AND lineage_id IN (SELECT id FROM lineages WHERE cell = ?3)",
    )
    .bind(Vec::<u8>::new())
    .bind(now_ms)
    .bind(cell.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

/// The edge of a cell is back: orders that wait for a key of it go on now.
///
/// # Errors
/// The database's.
pub async fn resume_orders(tx: &mut WriteTx, cell: &CellId, now_ms: i64) -> Result<u64, StoreError> {
    let done = sql::query(
        "UPDATE orders SET next_at = ?1 WHERE key_at_edge = 1 AND length(csr) = 0 AND next_at > ?1 \
         AND state NOT IN ('issued', 'failed') AND lineage_id IN (SELECT id FROM lineages WHERE cell = ?2)",
    )
    .bind(now_ms)
    .bind(cell.as_str())
    .execute(tx)
    .await?;
    Ok(done.rows_affected())
}

//! Until when a CA takes the authorizations of a certificate's names again, for the other cells of its group.

use std::collections::HashMap;

use portico_cert_store::{CellId, CredentialId, LineageId, OrderId};

use super::{Connection, StoreError, WriteTx, cell, from_id, from_json, sql};
use portico_api::v1;

/// Whether the group of a lineage has others, in other cells.
///
/// # Errors
/// The database's.
pub async fn has_siblings(connection: &mut Connection, lineage: LineageId) -> Result<bool, StoreError> {
    Ok(sql::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM lineages o JOIN lineages l ON l.group_id = o.group_id AND l.id <> o.id \
         WHERE o.id = ? AND l.retired_at IS NULL)",
    )
    .bind(lineage.to_string())
    .fetch_one(connection)
    .await?)
}

/// Notes what the CA says of an order's authorizations.
///
/// # Errors
/// The database's.
pub async fn note(tx: &mut WriteTx, order: OrderId, until_ms: i64) -> Result<(), StoreError> {
    sql::query("UPDATE orders SET authorized_until = ? WHERE id = ?")
        .bind(until_ms)
        .bind(order.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// The order's certificate stands for it from now on.
///
/// # Errors
/// The database's.
pub async fn carry_over(
    tx: &mut WriteTx,
    order: OrderId,
    credential: CredentialId,
) -> Result<(), StoreError> {
    sql::query(
        "UPDATE credentials SET authorized_until = (SELECT authorized_until FROM orders WHERE id = ?) WHERE id = ?",
    )
    .bind(order.to_string())
    .bind(credential.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// Of lineages whose live certificate has such a window that is open at `now_ms`: its end.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn windows(
    connection: &mut Connection,
    now_ms: i64,
) -> Result<HashMap<LineageId, i64>, StoreError> {
    let rows = sql::query(
        "SELECT l.id, c.authorized_until FROM lineages l JOIN credentials c ON c.id = l.live_credential \
         WHERE l.retired_at IS NULL AND c.authorized_until > ?",
    )
    .bind(now_ms)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok((from_id(row.try_get("id")?, "lineages")?, row.try_get("authorized_until")?)))
        .collect()
}

/// What is to be served by more than `most` cells, for the operator: the tenant or hostname, and how many. Each tenant's own
/// cells first.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn in_more_cells_than(
    connection: &mut Connection,
    most: usize,
) -> Result<Vec<(String, usize)>, StoreError> {
    let mut found = Vec::new();
    for row in sql::query("SELECT name, spec FROM tenants ORDER BY name").fetch_all(&mut *connection).await? {
        let spec: v1::TenantSpec = from_json(row.try_get("spec")?, "tenants: spec")?;
        found.push((format!("tenant {}", row.try_get::<String>("name")?), distinct(&spec.cells)));
    }
    let rows = sql::query(
        "SELECT name, spec FROM domains WHERE deleted_at IS NULL AND spec LIKE '%\"cells\":[\"%' ORDER BY name",
    )
    .fetch_all(connection)
    .await?;
    for row in &rows {
        let spec: v1::DomainSpec = from_json(row.try_get("spec")?, "domains: spec")?;
        found.push((row.try_get("name")?, distinct(&spec.cells)));
    }
    found.retain(|(_, cells)| *cells > most);
    Ok(found)
}

fn distinct(cells: &[CellId]) -> usize {
    cell::of_domain(cells, &[]).len()
}

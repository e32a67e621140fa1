//! How renewals stand over the whole fleet, and which certificates are later than they should be.

use std::collections::BTreeSet;

use portico_cert_store::{CredentialId, DomainId, EdgeId, LineageId, TenantId};
use serde::{Deserialize, Serialize};

use super::sql::Row;
use super::{Connection, StoreError, WriteTx, from_id, from_json, meta, sql, to_json};
use crate::clock::MINUTE_MS;

/// Figures of the certificates in use; what stands by is none of them. Times are Unix milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub live: u64,
    /// Of them, renewed by their CA's suggestion.
    pub by_ari: u64,
    /// Of `live`: their time of renewal has come.
    pub due: u64,
    /// Of `due`: their CA's window is over, as before a revocation.
    pub overdue: u64,
    /// Of `due`: a quarter of what was left between that time and their end has passed.
    pub late: u64,
    /// Of `live`: ended.
    pub expired: u64,
    /// When the first of `due` has to be replaced by.
    pub first_deadline: Option<i64>,
    /// Orders under way that keep names alive.
    pub orders: u64,
    /// Certificates replaced within the last [`RECENT_MS`].
    pub replaced_recently: u64,
}

/// What is recent: the pace of this time tells when the rest is done.
pub const RECENT_MS: i64 = 15 * MINUTE_MS;

/// # Errors
/// The database's.
pub async fn standing(connection: &mut Connection, now_ms: i64) -> Result<Standing, StoreError> {
    let row = sql::query(
        "SELECT COUNT(*) AS live, COUNT(c.window_start) AS by_ari, \
         COUNT(CASE WHEN c.renew_at <= ?1 THEN 1 END) AS due, \
         COUNT(CASE WHEN c.renew_at <= ?1 AND c.window_end <= ?1 THEN 1 END) AS overdue, \
         COUNT(CASE WHEN c.renew_at <= ?1 AND (?1 - c.renew_at) * 4 > c.not_after - c.renew_at THEN 1 END) AS late, \
         COUNT(CASE WHEN c.not_after <= ?1 THEN 1 END) AS expired, \
         MIN(CASE WHEN c.renew_at > ?1 THEN NULL WHEN c.window_end < c.not_after THEN c.window_end \
           ELSE c.not_after END) AS first_deadline, \
         (SELECT COUNT(*) FROM orders WHERE state NOT IN ('issued', 'failed') AND deadline IS NOT NULL) AS orders, \
         (SELECT COUNT(*) FROM orders WHERE issued_at > ?1 - ?2 AND deadline IS NOT NULL) AS replaced_recently \
         FROM credentials c WHERE c.state = 'live' AND c.custody = 'cell' \
         AND c.lineage_id NOT IN (SELECT id FROM lineages WHERE backup = 'staged')",
    )
    .bind(now_ms)
    .bind(RECENT_MS)
    .fetch_one(connection)
    .await?;
    let count = |column| Ok::<u64, StoreError>(row.try_get::<i64>(column)?.unsigned_abs());
    Ok(Standing {
        live: count("live")?,
        by_ari: count("by_ari")?,
        due: count("due")?,
        overdue: count("overdue")?,
        late: count("late")?,
        expired: count("expired")?,
        first_deadline: row.try_get("first_deadline")?,
        orders: count("orders")?,
        replaced_recently: count("replaced_recently")?,
    })
}

/// A certificate that is late and of which nobody was told.
#[derive(Clone, Debug)]
pub struct Late {
    pub id: CredentialId,
    pub lineage: LineageId,
    /// `None`: the operator's.
    pub tenant: Option<TenantId>,
    pub names: Vec<String>,
    pub renew_at: i64,
    pub not_after: i64,
}

/// # Errors
/// The database's, or a row that cannot be read.
pub async fn late_and_untold(
    connection: &mut Connection,
    now_ms: i64,
    limit: u32,
) -> Result<Vec<Late>, StoreError> {
    let rows = sql::query(
        "SELECT c.id, c.lineage_id, g.tenant_id, c.names, c.renew_at, c.not_after FROM credentials c \
         JOIN lineages l ON l.id = c.lineage_id JOIN groups g ON g.id = l.group_id \
         WHERE c.state = 'live' AND c.custody = 'cell' AND l.backup <> 'staged' AND c.late_told_at IS NULL AND c.renew_at <= ?1 \
         AND (?1 - c.renew_at) * 4 > c.not_after - c.renew_at ORDER BY c.not_after LIMIT ?2",
    )
    .bind(now_ms)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let late = |row: &Row| {
        let tenant: Option<String> = row.try_get("tenant_id")?;
        Ok(Late {
            id: from_id(row.try_get("id")?, "credentials")?,
            lineage: from_id(row.try_get("lineage_id")?, "credentials")?,
            tenant: tenant.map(|tenant| from_id(&tenant, "groups")).transpose()?,
            names: from_json(row.try_get("names")?, "credentials: names")?,
            renew_at: row.try_get("renew_at")?,
            not_after: row.try_get("not_after")?,
        })
    };
    rows.iter().map(late).collect()
}

/// # Errors
/// The database's.
pub async fn set_told(tx: &mut WriteTx, id: CredentialId, now_ms: i64) -> Result<(), StoreError> {
    sql::query("UPDATE credentials SET late_told_at = ? WHERE id = ?")
        .bind(now_ms)
        .bind(id.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// What the operator was told and is still so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// That renewals are late.
    pub late: bool,
    /// That a CA wants many certificates replaced at once.
    pub many: bool,
    /// Whose identity is late.
    pub edges: BTreeSet<EdgeId>,
}

const META_TOLD: &str = "renewals_told";

/// # Errors
/// The database's, or a row that cannot be read.
pub async fn told(connection: &mut Connection) -> Result<Told, StoreError> {
    let text = meta::find(connection, META_TOLD).await?;
    text.map_or_else(|| Ok(Told::default()), |text| from_json(&text, "meta: renewals_told"))
}

/// # Errors
/// The database's.
pub async fn set_operator_told(tx: &mut WriteTx, told: &Told) -> Result<(), StoreError> {
    meta::put(tx, META_TOLD, &to_json(told)?).await
}

/// Domains that a lineage's certificate serves, of those that are still there.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn served_by(connection: &mut Connection, lineage: LineageId) -> Result<Vec<DomainId>, StoreError> {
    let ids: Vec<String> = sql::query_scalar(
        "SELECT n.domain_id FROM lineage_names n JOIN domains d ON d.id = n.domain_id \
         WHERE n.lineage_id = ? AND d.deleted_at IS NULL ORDER BY n.name",
    )
    .bind(lineage.to_string())
    .fetch_all(connection)
    .await?;
    ids.iter().map(|id| from_id(id, "lineage_names")).collect()
}

/// Edges whose identity ends before `before_ms`: each renews its own a third of the lifetime before the end.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn identities_ending(
    connection: &mut Connection,
    before_ms: i64,
) -> Result<Vec<(EdgeId, i64)>, StoreError> {
    let rows = sql::query(
        "SELECT id, identity_not_after FROM edges WHERE removed_at IS NULL AND identity_not_after < ? ORDER BY id",
    )
    .bind(before_ms)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok((from_id(row.try_get("id")?, "edges")?, row.try_get("identity_not_after")?)))
        .collect()
}

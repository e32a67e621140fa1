//! Purges of the edges' caches, for edges that were away when they were asked for.

use portico_api::v1::PurgeRequest;
use portico_cert_store::TenantId;

use super::sql::Row;
use super::{Connection, StoreError, WriteTx, from_id, from_json, sql, to_json};

/// Rows that stay; an edge that has missed more than these forgets everything.
const KEPT: i64 = 10_000;

/// A purge as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurgeRow {
    pub number: u64,
    pub tenant: TenantId,
    pub request: PurgeRequest,
}

/// What of the numbers is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// 0: none was ever given.
    pub last: u64,
    /// The oldest row; None: there is none.
    pub oldest: Option<Oldest>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oldest {
    pub number: u64,
    /// Unix milliseconds.
    pub at_ms: i64,
}

/// Which purges an edge has not had.
#[derive(Clone, Copy, Debug)]
pub enum Since {
    Number(u64),
    /// Unix milliseconds.
    Time(i64),
}

/// Notes a purge and answers its number; the oldest beyond what is kept go.
///
/// # Errors
/// The database's.
pub async fn append(
    tx: &mut WriteTx,
    tenant: TenantId,
    request: &PurgeRequest,
    now_ms: i64,
) -> Result<u64, StoreError> {
    let row = sql::query("INSERT INTO purges (at, tenant_id, request) VALUES (?, ?, ?) RETURNING number")
        .bind(now_ms)
        .bind(tenant.to_string())
        .bind(to_json(request)?)
        .fetch_one(tx)
        .await?;
    let number: i64 = row.try_get("number")?;
    sql::query("DELETE FROM purges WHERE number <= ?").bind(number - KEPT).execute(tx).await?;
    Ok(number.unsigned_abs())
}

/// # Errors
/// The database's.
pub async fn known(connection: &mut Connection) -> Result<Known, StoreError> {
    let oldest = sql::query("SELECT number, at FROM purges ORDER BY number LIMIT 1")
        .fetch_optional(&mut *connection)
        .await?;
    let last = sql::query("SELECT MAX(number) AS last FROM purges").fetch_one(connection).await?;
    let oldest = oldest.map(|row| -> Result<Oldest, StoreError> {
        Ok(Oldest { number: row.try_get::<i64>("number")?.unsigned_abs(), at_ms: row.try_get("at")? })
    });
    let last: Option<i64> = last.try_get("last")?;
    Ok(Known { last: last.unwrap_or_default().unsigned_abs(), oldest: oldest.transpose()? })
}

/// At most `limit` of those that an edge has not had, in their order.
///
/// # Errors
/// The database's; a row that cannot be read.
pub async fn since(
    connection: &mut Connection,
    since: Since,
    limit: u32,
) -> Result<Vec<PurgeRow>, StoreError> {
    let (number, at) = match since {
        Since::Number(number) => (number.cast_signed(), i64::MIN),
        Since::Time(at) => (0, at),
    };
    let rows = sql::query("SELECT * FROM purges WHERE number > ? AND at >= ? ORDER BY number LIMIT ?")
        .bind(number)
        .bind(at)
        .bind(limit)
        .fetch_all(connection)
        .await?;
    rows.iter().map(read).collect()
}

fn read(row: &Row) -> Result<PurgeRow, StoreError> {
    Ok(PurgeRow {
        number: row.try_get::<i64>("number")?.unsigned_abs(),
        tenant: from_id(row.try_get("tenant_id")?, "purge")?,
        request: from_json(row.try_get("request")?, "purge")?,
    })
}

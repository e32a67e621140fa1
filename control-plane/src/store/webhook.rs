//! Endpoints that events are sent to, how far each has come, and the last tries.
//!
//! There is no queue. `delivered_to` is a place in the events; the next one after it that the endpoint wants is the next to
//! send. So what waits takes no room, order is the events' own, and a replay is another place.

use portico_api::v1::WebhookTry;
use portico_cert_store::TenantId;

use super::sql::{QueryBuilder, Row};
use super::{Connection, StoreError, WriteTx, from_id, from_json, sql, to_json};

/// An endpoint as it is stored. Times are Unix milliseconds.
#[derive(Clone, Debug)]
pub struct WebhookRow {
    pub id: String,
    /// `None`: the operators'.
    pub tenant: Option<TenantId>,
    pub url: String,
    /// Empty: all.
    pub kinds: Vec<String>,
    pub label: String,
    pub sealed_secret: Vec<u8>,
    /// The secret before, sealed, and until when it signs too.
    pub previous: Option<(Vec<u8>, i64)>,
    pub delivered_to: u64,
    /// Why nothing is sent.
    pub disabled: Option<String>,
    pub failures: u32,
    pub failing_since: Option<i64>,
    pub next_at: i64,
    pub last_error: Option<String>,
    pub taken_at: Option<i64>,
    pub created_at: i64,
}

impl WebhookRow {
    pub fn wants(&self, kind: &str) -> bool {
        self.kinds.is_empty() || self.kinds.iter().any(|wanted| wanted == kind)
    }
}

/// One try, as it is written down.
#[derive(Clone, Debug)]
pub struct Try {
    pub sequence: u64,
    pub kind: String,
    pub at: i64,
    pub status: Option<u16>,
    pub error: Option<String>,
    pub took_ms: i64,
}

/// # Errors
/// The database's.
pub async fn insert(tx: &mut WriteTx, row: &WebhookRow) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO webhooks (id, tenant_id, url, kinds, label, sealed_secret, delivered_to, next_at, created_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&row.id)
    .bind(row.tenant.map(|id| id.to_string()))
    .bind(&row.url)
    .bind(to_json(&row.kinds)?)
    .bind(&row.label)
    .bind(&row.sealed_secret)
    .bind(row.delivered_to.cast_signed())
    .bind(row.next_at)
    .bind(row.created_at)
    .execute(tx)
    .await?;
    Ok(())
}

/// # Errors
/// The database's, or a row that cannot be read.
pub async fn find(connection: &mut Connection, id: &str) -> Result<Option<WebhookRow>, StoreError> {
    let row = sql::query("SELECT * FROM webhooks WHERE id = ?").bind(id).fetch_optional(connection).await?;
    row.as_ref().map(read).transpose()
}

/// Endpoints after `after`; a tenant's, or all.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn list(
    connection: &mut Connection,
    tenant: Option<TenantId>,
    after: &str,
    limit: u32,
) -> Result<Vec<WebhookRow>, StoreError> {
    let mut query = QueryBuilder::new("SELECT * FROM webhooks WHERE id > ");
    query.push_bind(after);
    if let Some(tenant) = tenant {
        query.push(" AND tenant_id = ").push_bind(tenant.to_string());
    }
    query.push(" ORDER BY id LIMIT ").push_bind(limit);
    query.build().fetch_all(connection).await?.iter().map(read).collect()
}

/// How many endpoints a tenant has, or the operators.
///
/// # Errors
/// The database's.
pub async fn count(connection: &mut Connection, tenant: Option<TenantId>) -> Result<u64, StoreError> {
    let counted: i64 = match tenant {
        Some(tenant) => {
            sql::query_scalar("SELECT COUNT(*) FROM webhooks WHERE tenant_id = ?")
                .bind(tenant.to_string())
                .fetch_one(connection)
                .await?
        }
        None => {
            sql::query_scalar("SELECT COUNT(*) FROM webhooks WHERE tenant_id IS NULL")
                .fetch_one(connection)
                .await?
        }
    };
    Ok(counted.unsigned_abs())
}

/// # Errors
/// The database's.
pub async fn delete(tx: &mut WriteTx, id: &str) -> Result<(), StoreError> {
    sql::query("DELETE FROM webhook_tries WHERE webhook_id = ?").bind(id).execute(tx).await?;
    sql::query("DELETE FROM webhooks WHERE id = ?").bind(id).execute(tx).await?;
    Ok(())
}

/// Another secret signs from now on; the one before signs too until `previous_until`.
///
/// # Errors
/// The database's.
pub async fn put_secret(
    tx: &mut WriteTx,
    id: &str,
    sealed: &[u8],
    previous_until: i64,
) -> Result<(), StoreError> {
    sql::query(
        "UPDATE webhooks SET previous_secret = sealed_secret, previous_until = ?, sealed_secret = ? WHERE id = ?",
    )
    .bind(previous_until)
    .bind(sealed)
    .bind(id)
    .execute(tx)
    .await?;
    Ok(())
}

/// Sends again, or on, from behind this event; what failed before is forgotten.
///
/// # Errors
/// The database's.
pub async fn restart(tx: &mut WriteTx, id: &str, delivered_to: u64, now_ms: i64) -> Result<(), StoreError> {
    sql::query(
        "UPDATE webhooks SET delivered_to = ?, disabled = NULL, failures = 0, failing_since = NULL, next_at = ? \
         WHERE id = ?",
    )
    .bind(delivered_to.cast_signed())
    .bind(now_ms)
    .bind(id)
    .execute(tx)
    .await?;
    Ok(())
}

/// Endpoints that have something to look at by `now_ms`, in turns of their tenants, the longest waiting first.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn due(
    connection: &mut Connection,
    now_ms: i64,
    limit: u32,
) -> Result<Vec<WebhookRow>, StoreError> {
    let rows = sql::query(
        "SELECT w.* FROM (SELECT id, ROW_NUMBER() OVER (PARTITION BY tenant_id ORDER BY next_at) AS turn FROM webhooks \
         WHERE disabled IS NULL AND next_at <= ?) AS due JOIN webhooks w ON w.id = due.id \
         WHERE (w.tenant_id IS NULL AND EXISTS (SELECT 1 FROM events e WHERE e.sequence > w.delivered_to)) \
         OR EXISTS (SELECT 1 FROM events e WHERE e.tenant_id = w.tenant_id AND e.sequence > w.delivered_to) \
         ORDER BY due.turn, w.next_at LIMIT ?",
    )
    .bind(now_ms)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(read).collect()
}

/// Moves an endpoint on; `false`: it was moved meanwhile, by a replay, and stays where that put it.
///
/// # Errors
/// The database's.
pub async fn advance(tx: &mut WriteTx, id: &str, from: u64, to: u64) -> Result<bool, StoreError> {
    let done = sql::query("UPDATE webhooks SET delivered_to = ? WHERE id = ? AND delivered_to = ?")
        .bind(to.cast_signed())
        .bind(id)
        .bind(from.cast_signed())
        .execute(tx)
        .await?;
    Ok(done.rows_affected() > 0)
}

/// It took one: what failed before is over.
///
/// # Errors
/// The database's.
pub async fn note_taken(tx: &mut WriteTx, id: &str, now_ms: i64) -> Result<(), StoreError> {
    sql::query(
        "UPDATE webhooks SET failures = 0, failing_since = NULL, last_error = NULL, taken_at = ?, next_at = ? WHERE id = ?",
    )
    .bind(now_ms)
    .bind(now_ms)
    .bind(id)
    .execute(tx)
    .await?;
    Ok(())
}

/// It did not take one; with `disabled` nothing is sent any more.
///
/// # Errors
/// The database's.
pub async fn note_failure(
    tx: &mut WriteTx,
    id: &str,
    error: &str,
    next_at: i64,
    disabled: Option<&str>,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query(
        "UPDATE webhooks SET failures = failures + 1, failing_since = COALESCE(failing_since, ?), last_error = ?, \
         next_at = ?, disabled = ? WHERE id = ?",
    )
    .bind(now_ms)
    .bind(error)
    .bind(next_at)
    .bind(disabled)
    .bind(id)
    .execute(tx)
    .await?;
    Ok(())
}

/// Writes a try down; of one endpoint the last `keep` stay.
///
/// # Errors
/// The database's.
pub async fn note_try(tx: &mut WriteTx, id: &str, tried: &Try, keep: u32) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO webhook_tries (webhook_id, sequence, kind, at, status, error, took_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(id)
    .bind(tried.sequence.cast_signed())
    .bind(&tried.kind)
    .bind(tried.at)
    .bind(tried.status)
    .bind(&tried.error)
    .bind(tried.took_ms)
    .execute(tx)
    .await?;
    sql::query(
        "DELETE FROM webhook_tries WHERE webhook_id = ? AND number <= (SELECT number FROM webhook_tries \
         WHERE webhook_id = ? ORDER BY number DESC LIMIT 1 OFFSET ?)",
    )
    .bind(id)
    .bind(id)
    .bind(keep)
    .execute(tx)
    .await?;
    Ok(())
}

/// The last tries, newest first.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn tries(connection: &mut Connection, id: &str, limit: u32) -> Result<Vec<WebhookTry>, StoreError> {
    let rows = sql::query("SELECT * FROM webhook_tries WHERE webhook_id = ? ORDER BY number DESC LIMIT ?")
        .bind(id)
        .bind(limit)
        .fetch_all(connection)
        .await?;
    let tried = |row: &Row| {
        Ok(WebhookTry {
            sequence: row.try_get::<i64>("sequence")?.unsigned_abs(),
            kind: row.try_get("kind")?,
            at: crate::clock::rfc3339(row.try_get("at")?),
            status: row.try_get("status")?,
            error: row.try_get("error")?,
            took_ms: row.try_get::<i64>("took_ms")?.unsigned_abs(),
        })
    };
    rows.iter().map(tried).collect()
}

fn read(row: &Row) -> Result<WebhookRow, StoreError> {
    let id: String = row.try_get("id")?;
    let tenant: Option<String> = row.try_get("tenant_id")?;
    let (previous, until): (Option<Vec<u8>>, Option<i64>) =
        (row.try_get("previous_secret")?, row.try_get("previous_until")?);
    Ok(WebhookRow {
        tenant: tenant.map(|id| from_id(&id, "webhooks")).transpose()?,
        url: row.try_get("url")?,
        kinds: from_json(row.try_get("kinds")?, &id)?,
        label: row.try_get("label")?,
        sealed_secret: row.try_get("sealed_secret")?,
        previous: previous.zip(until),
        delivered_to: row.try_get::<i64>("delivered_to")?.unsigned_abs(),
        disabled: row.try_get("disabled")?,
        failures: row.try_get("failures")?,
        failing_since: row.try_get("failing_since")?,
        next_at: row.try_get("next_at")?,
        last_error: row.try_get("last_error")?,
        taken_at: row.try_get("taken_at")?,
        created_at: row.try_get("created_at")?,
        id,
    })
}

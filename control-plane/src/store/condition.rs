//! Observed facts about a domain, one row a kind. Written by whoever observes: proofs and DNS by the checks of
//! ownership, reachability of challenges by the pre-flight.

use portico_api::v1::{Condition, ConditionKind, ConditionStatus};
use portico_cert_store::DomainId;

use super::sql::{QueryBuilder, Row};
use super::{Connection, StoreError, WriteTx, from_id, from_word, push_ids, sql, to_word};

/// What was observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    pub kind: ConditionKind,
    pub status: ConditionStatus,
    /// CamelCase, stable.
    pub reason: String,
    /// For people; at most 1,000 bytes are kept.
    pub message: String,
    /// Unix milliseconds.
    pub next_check_at: Option<i64>,
}

/// A condition as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionRow {
    pub domain_id: DomainId,
    pub observed: Observation,
    /// Unix milliseconds; when `status` last changed.
    pub since: i64,
}

impl From<&ConditionRow> for Condition {
    fn from(row: &ConditionRow) -> Self {
        Self {
            kind: row.observed.kind,
            status: row.observed.status,
            reason: row.observed.reason.clone(),
            message: row.observed.message.clone(),
            since: crate::clock::rfc3339(row.since),
            next_check_at: row.observed.next_check_at.map(crate::clock::rfc3339),
        }
    }
}

const MESSAGE_BYTES_MAX: usize = 1000;

/// Writes an observation; `since` moves only when the status changes. Answers whether status or reason changed.
///
/// # Errors
/// The database's.
pub async fn set(
    tx: &mut WriteTx,
    domain: DomainId,
    observed: &Observation,
    now_ms: i64,
) -> Result<bool, StoreError> {
    let kind = to_word(&observed.kind)?;
    let before = sql::query("SELECT * FROM conditions WHERE domain_id = ? AND type = ?")
        .bind(domain.to_string())
        .bind(&kind)
        .fetch_optional(tx)
        .await?;
    let before = before.as_ref().map(read).transpose()?;
    let same_status = before.as_ref().filter(|row| row.observed.status == observed.status);
    let changed = same_status.is_none_or(|row| row.observed.reason != observed.reason);
    let message: String =
        observed.message[..observed.message.floor_char_boundary(MESSAGE_BYTES_MAX)].to_owned();
    sql::query(
        "INSERT INTO conditions (domain_id, type, status, reason, message, since, next_check_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (domain_id, type) DO UPDATE SET status = excluded.status, reason = excluded.reason, \
         message = excluded.message, since = excluded.since, next_check_at = excluded.next_check_at",
    )
    .bind(domain.to_string())
    .bind(kind)
    .bind(to_word(&observed.status)?)
    .bind(&observed.reason)
    .bind(message)
    .bind(same_status.map_or(now_ms, |row| row.since))
    .bind(observed.next_check_at)
    .execute(tx)
    .await?;
    Ok(changed)
}

/// Forgets what was observed: it is not looked at any more.
///
/// # Errors
/// The database's.
pub async fn clear(tx: &mut WriteTx, domain: DomainId, kind: ConditionKind) -> Result<(), StoreError> {
    sql::query("DELETE FROM conditions WHERE domain_id = ? AND type = ?")
        .bind(domain.to_string())
        .bind(to_word(&kind)?)
        .execute(tx)
        .await?;
    Ok(())
}

/// The conditions of several domains.
///
/// # Errors
/// The database's.
pub async fn of(connection: &mut Connection, domains: &[DomainId]) -> Result<Vec<ConditionRow>, StoreError> {
    if domains.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = QueryBuilder::new("SELECT * FROM conditions WHERE domain_id IN (");
    push_ids(&mut query, domains).push(")");
    let rows = query.build().fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

fn read(row: &Row) -> Result<ConditionRow, StoreError> {
    Ok(ConditionRow {
        domain_id: from_id(row.try_get("domain_id")?, "conditions")?,
        observed: Observation {
            kind: from_word(row.try_get("type")?, "conditions")?,
            status: from_word(row.try_get("status")?, "conditions")?,
            reason: row.try_get("reason")?,
            message: row.try_get("message")?,
            next_check_at: row.try_get("next_check_at")?,
        },
        since: row.try_get("since")?,
    })
}

//! Answers under an `Idempotency-Key`, kept a day, so that a repeated request gets the first one's answer.

use super::{Connection, StoreError, WriteTx, sql};

/// What was answered under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// SHA-256 of method, path and body.
    pub fingerprint: Vec<u8>,
    /// `None`: the request was begun and its answer is not kept; doing it again has the same effect.
    pub answer: Option<Answer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub etag: Option<String>,
    pub body: Vec<u8>,
}

/// # Errors
/// The database's.
pub async fn find(
    connection: &mut Connection,
    actor: &str,
    key: &str,
    not_before_ms: i64,
) -> Result<Option<Remembered>, StoreError> {
    let row = sql::query("SELECT * FROM idempotency WHERE actor = ? AND key = ? AND created_at >= ?")
        .bind(actor)
        .bind(key)
        .bind(not_before_ms)
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let status: Option<u16> = row.try_get("status")?;
    let answer = match status {
        Some(status) => Some(Answer { status, etag: row.try_get("etag")?, body: row.try_get("body")? }),
        None => None,
    };
    Ok(Some(Remembered { fingerprint: row.try_get("fingerprint")?, answer }))
}

/// # Errors
/// The database's.
pub async fn put(
    tx: &mut WriteTx,
    actor: &str,
    key: &str,
    remembered: &Remembered,
    now_ms: i64,
) -> Result<(), StoreError> {
    let answer = remembered.answer.as_ref();
    sql::query("DELETE FROM idempotency WHERE actor = ? AND key = ?")
        .bind(actor)
        .bind(key)
        .execute(tx)
        .await?;
    sql::query(
        "INSERT INTO idempotency (actor, key, fingerprint, status, etag, body, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(actor)
    .bind(key)
    .bind(&remembered.fingerprint)
    .bind(answer.map(|answer| answer.status))
    .bind(answer.and_then(|answer| answer.etag.clone()))
    .bind(answer.map(|answer| answer.body.clone()))
    .bind(now_ms)
    .execute(tx)
    .await?;
    Ok(())
}

/// How many keys of an actor are remembered, and the bytes of the answers kept with them.
///
/// # Errors
/// The database's.
pub async fn held(tx: &mut WriteTx, actor: &str) -> Result<(i64, i64), StoreError> {
    let row = sql::query("SELECT COUNT(*), COALESCE(SUM(LENGTH(body)), 0) FROM idempotency WHERE actor = ?")
        .bind(actor)
        .fetch_one(tx)
        .await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Forgets what is older than `before_ms`.
///
/// # Errors
/// The database's.
pub async fn purge(tx: &mut WriteTx, before_ms: i64) -> Result<(), StoreError> {
    sql::query("DELETE FROM idempotency WHERE created_at < ?").bind(before_ms).execute(tx).await?;
    Ok(())
}

//! The audit trail: who wrote what, before and after. Each entry's hash covers the entry before it.
//!
//! Deliberately absent: secrets (callers pass API documents, which hold none) and a signature; whoever can rewrite the
//! whole file can rewrite the chain, so an operator who needs more ships the entries elsewhere.

use aws_lc_rs::digest::{Context, SHA256};
use portico_api::v1::AuditEntry;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::{StoreError, WriteTx, from_json, to_json};

/// One write, as its author reports it.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Unix milliseconds.
    pub at: i64,
    /// A token's id, or `system`.
    pub actor: &'a str,
    pub request_id: &'a str,
    /// `domain.create`, `tenant.suspend`, ..
    pub action: &'a str,
    pub subject: &'a str,
    pub before: serde_json::Value,
    pub after: serde_json::Value,
}

struct Stored {
    entry: AuditEntry,
    at: i64,
    before: String,
    after: String,
    hash: Vec<u8>,
}

/// # Errors
/// The database's.
pub async fn append(tx: &mut WriteTx, entry: &Entry<'_>) -> Result<(), StoreError> {
    let last = sqlx::query("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1")
        .fetch_optional(&mut **tx)
        .await?;
    let (sequence, previous): (i64, Vec<u8>) = match last {
        Some(row) => (row.try_get("sequence")?, row.try_get("hash")?),
        None => (0, Vec::new()),
    };
    let sequence = sequence + 1;
    let (before, after) = (to_json(&entry.before)?, to_json(&entry.after)?);
    let texts = [entry.actor, entry.request_id, entry.action, entry.subject, &before, &after];
    let hash = chain(&previous, sequence, entry.at, texts);
    sqlx::query(
        "INSERT INTO audit (sequence, at, actor, request_id, action, subject, before, after, hash) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(sequence)
    .bind(entry.at)
    .bind(entry.actor)
    .bind(entry.request_id)
    .bind(entry.action)
    .bind(entry.subject)
    .bind(&before)
    .bind(&after)
    .bind(hash)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Entries after `since`, oldest first.
///
/// # Errors
/// The database's.
pub async fn list(
    connection: &mut SqliteConnection,
    since: u64,
    limit: u32,
) -> Result<Vec<AuditEntry>, StoreError> {
    Ok(stored(connection, since.cast_signed(), limit).await?.into_iter().map(|row| row.entry).collect())
}

/// Follows the chain from its beginning. Answers the first entry that does not fit, `None` when all do.
///
/// # Errors
/// The database's.
pub async fn first_altered(connection: &mut SqliteConnection) -> Result<Option<u64>, StoreError> {
    let (mut previous, mut last) = (Vec::new(), 0);
    loop {
        let rows = stored(connection, last, 1000).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        for row in rows {
            let sequence = row.entry.sequence.cast_signed();
            let entry = &row.entry;
            let texts =
                [&*entry.actor, &entry.request_id, &entry.action, &entry.subject, &row.before, &row.after];
            if sequence != last + 1 || row.hash != chain(&previous, sequence, row.at, texts) {
                return Ok(Some(row.entry.sequence));
            }
            (previous, last) = (row.hash, sequence);
        }
    }
}

async fn stored(
    connection: &mut SqliteConnection,
    since: i64,
    limit: u32,
) -> Result<Vec<Stored>, StoreError> {
    let rows = sqlx::query("SELECT * FROM audit WHERE sequence > ? ORDER BY sequence LIMIT ?")
        .bind(since)
        .bind(limit)
        .fetch_all(connection)
        .await?;
    rows.iter().map(read).collect()
}

fn read(row: &SqliteRow) -> Result<Stored, StoreError> {
    let at: i64 = row.try_get("at")?;
    let (before, after): (String, String) = (row.try_get("before")?, row.try_get("after")?);
    Ok(Stored {
        entry: AuditEntry {
            sequence: row.try_get::<i64, _>("sequence")?.unsigned_abs(),
            at: crate::clock::rfc3339(at),
            actor: row.try_get("actor")?,
            request_id: row.try_get("request_id")?,
            action: row.try_get("action")?,
            subject: row.try_get("subject")?,
            before: from_json(&before, "audit")?,
            after: from_json(&after, "audit")?,
        },
        at,
        before,
        after,
        hash: row.try_get("hash")?,
    })
}

/// SHA-256 over the previous hash and every field, each with its length before it.
fn chain(previous: &[u8], sequence: i64, at: i64, texts: [&str; 6]) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    let (sequence, at) = (sequence.to_be_bytes(), at.to_be_bytes());
    let fields = [previous, &sequence, &at].into_iter().chain(texts.iter().map(|text| text.as_bytes()));
    for field in fields {
        context.update(&(field.len() as u64).to_be_bytes());
        context.update(field);
    }
    context.finish().as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn an_entry_altered_or_removed_afterwards_shows() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        for number in 0..5 {
            let mut tx = store.begin().await.unwrap();
            let entry = Entry {
                at: number,
                actor: "tok_1",
                request_id: "req_1",
                action: "domain.create",
                subject: "dom_1",
                before: json!(null),
                after: json!({ "number": number }),
            };
            append(&mut tx, &entry).await.unwrap();
            tx.commit().await.unwrap();
        }
        assert_eq!(first_altered(&mut store.read().await.unwrap()).await.unwrap(), None);
        assert_eq!(list(&mut store.read().await.unwrap(), 3, 10).await.unwrap().len(), 2);

        let mut tx = store.begin().await.unwrap();
        sqlx::query("UPDATE audit SET actor = 'tok_2' WHERE sequence = 3").execute(&mut *tx).await.unwrap();
        assert_eq!(first_altered(&mut tx).await.unwrap(), Some(3));
        drop(tx);
        let mut tx = store.begin().await.unwrap();
        sqlx::query("DELETE FROM audit WHERE sequence = 2").execute(&mut *tx).await.unwrap();
        assert_eq!(first_altered(&mut tx).await.unwrap(), Some(3));
    }
}

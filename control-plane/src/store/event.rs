//! Events: what happened to a domain, a certificate, an edge, in the order in which it was committed.

use portico_api::v1::Event;
use portico_cert_store::TenantId;

use super::sql::{QueryBuilder, Row};
use super::{Connection, StoreError, WriteTx, sql};
use crate::limits::EVENT_TEXT_BYTES_MAX;

/// Of the text at most [`EVENT_TEXT_BYTES_MAX`] bytes are kept.
///
/// # Errors
/// The database's.
pub async fn append(
    tx: &mut WriteTx,
    kind: &str,
    tenant: Option<TenantId>,
    subject: &str,
    text: &str,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query("INSERT INTO events (at, kind, tenant_id, subject, text) VALUES (?, ?, ?, ?, ?)")
        .bind(now_ms)
        .bind(kind)
        .bind(tenant.map(|id| id.to_string()))
        .bind(subject)
        .bind(&text[..text.floor_char_boundary(EVENT_TEXT_BYTES_MAX)])
        .execute(tx)
        .await?;
    Ok(())
}

/// Events after `since`, oldest first; of one tenant, or of all. Texts that are longer than one may be, of an earlier release, are cut
/// here too: what a page takes is bounded by its number.
///
/// # Errors
/// The database's.
pub async fn list(
    connection: &mut Connection,
    since: u64,
    tenant: Option<TenantId>,
    limit: u32,
) -> Result<Vec<Event>, StoreError> {
    let mut query = QueryBuilder::new("SELECT sequence, at, kind, tenant_id, subject, SUBSTR(text, 1, ");
    query.push(EVENT_TEXT_BYTES_MAX).push(") AS text FROM events WHERE sequence > ");
    query.push_bind(since.cast_signed());
    if let Some(tenant) = tenant {
        query.push(" AND tenant_id = ").push_bind(tenant.to_string());
    }
    query.push(" ORDER BY sequence LIMIT ").push_bind(limit);
    let rows = query.build().fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

/// The numbers of the first and the last event that are kept; 0 and 0: there is none.
///
/// # Errors
/// The database's.
pub async fn kept(connection: &mut Connection) -> Result<(u64, u64), StoreError> {
    let row = sql::query("SELECT MIN(sequence) AS first, MAX(sequence) AS last FROM events")
        .fetch_one(connection)
        .await?;
    let number =
        |column: &str| Ok::<u64, StoreError>(row.try_get::<Option<i64>>(column)?.unwrap_or(0).unsigned_abs());
    Ok((number("first")?, number("last")?))
}

/// Drops events older than `before_ms`; the newest one stays, so that its number is never given out again.
///
/// # Errors
/// The database's.
pub async fn purge(tx: &mut WriteTx, before_ms: i64) -> Result<(), StoreError> {
    sql::query("DELETE FROM events WHERE at < ? AND sequence < (SELECT MAX(sequence) FROM events)")
        .bind(before_ms)
        .execute(tx)
        .await?;
    Ok(())
}

fn read(row: &Row) -> Result<Event, StoreError> {
    // The database counts characters.
    let mut text: String = row.try_get("text")?;
    text.truncate(text.floor_char_boundary(EVENT_TEXT_BYTES_MAX));
    Ok(Event {
        sequence: row.try_get::<i64>("sequence")?.unsigned_abs(),
        at: crate::clock::rfc3339(row.try_get("at")?),
        kind: row.try_get("kind")?,
        tenant_id: row.try_get("tenant_id")?,
        subject: row.try_get("subject")?,
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn a_long_text_is_cut_where_it_is_kept_and_where_an_earlier_release_kept_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(folder.path()).await.unwrap();
        // Of three bytes each, so that the bound is within one.
        let long = "\u{20ac}".repeat(EVENT_TEXT_BYTES_MAX * 2);
        let cut = "\u{20ac}".repeat(EVENT_TEXT_BYTES_MAX / 3);
        let mut tx = store.begin().await.unwrap();
        append(&mut tx, "domain.unreachable", None, "a", &long, 1).await.unwrap();
        append(&mut tx, "domain.unreachable", None, "b", "short", 1).await.unwrap();
        let kept: Vec<String> =
            sql::query_scalar("SELECT text FROM events ORDER BY sequence").fetch_all(&mut tx).await.unwrap();
        assert_eq!(kept, [cut.as_str(), "short"]);
        sql::query("UPDATE events SET text = ? WHERE subject = 'a'")
            .bind(long)
            .execute(&mut tx)
            .await
            .unwrap();
        let listed = list(&mut tx, 0, None, 10).await.unwrap();
        let texts: Vec<&str> = listed.iter().map(|event| event.text.as_str()).collect();
        assert_eq!(texts, [cut.as_str(), "short"]);
    }
}

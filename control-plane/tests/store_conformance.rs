//! What the store promises to those who write and read, whatever database is behind it.

#![expect(clippy::unwrap_used, reason = "set-up fails the test")]

use portico_control_plane::store::{Store, meta, sql};
use tempfile::TempDir;

async fn opened() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).await.unwrap();
    (folder, store)
}

#[tokio::test]
async fn a_reader_sees_one_state_and_a_dropped_writer_leaves_nothing() {
    let (_folder, store) = opened().await;
    let mut read = store.read().await.unwrap();
    assert_eq!(meta::find(&mut read, "fact").await.unwrap(), None);
    let mut tx = store.begin().await.unwrap();
    meta::put(&mut tx, "fact", "1").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(meta::find(&mut read, "fact").await.unwrap(), None, "the state of before");
    drop(read);
    let mut tx = store.begin().await.unwrap();
    meta::put(&mut tx, "fact", "2").await.unwrap();
    drop(tx);
    let mut read = store.read().await.unwrap();
    assert_eq!(meta::find(&mut read, "fact").await.unwrap().as_deref(), Some("1"));
    let refused = sql::query("DELETE FROM meta").execute(&mut read).await;
    assert!(refused.is_err(), "a reader writes nothing");
}

#[tokio::test]
async fn text_with_a_zero_and_numbers_bytes_and_nothing_come_back() {
    let (_folder, store) = opened().await;
    let mut tx = store.begin().await.unwrap();
    let written = sql::query(
        "INSERT INTO idempotency (actor, key, fingerprint, status, etag, body, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind("a'?b")
    .bind("zero \0 within")
    .bind([0_u8, 255].as_slice())
    .bind(None::<i64>)
    .bind(None::<String>)
    .bind(None::<Vec<u8>>)
    .bind(i64::MIN)
    .execute(&mut tx)
    .await
    .unwrap();
    assert_eq!(written.rows_affected(), 1);
    let row =
        sql::query("SELECT * FROM idempotency WHERE actor = 'a''?b' AND created_at = ?1 AND created_at < ?2")
            .bind(i64::MIN)
            .bind(true)
            .fetch_one(&mut tx)
            .await
            .unwrap();
    assert!(row.try_get::<&str>("key").unwrap().starts_with("zero "));
    assert_eq!(row.try_get::<Vec<u8>>("fingerprint").unwrap(), [0, 255]);
    assert_eq!(row.try_get::<Option<i64>>("status").unwrap(), None);
    assert_eq!(row.try_get::<Option<&str>>("etag").unwrap(), None);
    assert_eq!(row.try_get::<Option<Vec<u8>>>("body").unwrap(), None);
    // A number that does not fit, nothing where something must be, another type, a column that is not there.
    assert!(row.try_get::<u32>("created_at").is_err());
    assert!(row.try_get::<i64>("status").is_err());
    assert!(row.try_get::<String>("created_at").is_err());
    assert!(row.try_get::<i64>("absent").is_err());
}

#[tokio::test]
async fn values_of_a_list_are_bound_in_order_and_no_row_is_an_error_only_where_one_is_asked_for() {
    let (_folder, store) = opened().await;
    let mut tx = store.begin().await.unwrap();
    for (key, value) in [("a", "1"), ("b", "2"), ("c", "3")] {
        meta::put(&mut tx, key, value).await.unwrap();
    }
    let mut query = sql::QueryBuilder::new("SELECT key, value FROM meta WHERE key IN (");
    query
        .push_list(["c", "a", "x') OR ('' = '"])
        .push(") AND value <> ")
        .push_bind("0")
        .push(" ORDER BY key");
    let rows = query.build().fetch_all(&mut tx).await.unwrap();
    let found: Vec<(String, String)> =
        rows.iter().map(|row| (row.try_get(0).unwrap(), row.try_get(1).unwrap())).collect();
    assert_eq!(found, [("a".to_owned(), "1".to_owned()), ("c".to_owned(), "3".to_owned())]);
    let absent = || sql::query_scalar::<String>("SELECT value FROM meta WHERE key = 'd'");
    assert_eq!(absent().fetch_optional(&mut tx).await.unwrap(), None);
    assert!(absent().fetch_one(&mut tx).await.is_err());
    assert!(absent().fetch_all(&mut tx).await.unwrap().is_empty());
}

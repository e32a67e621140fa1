//! The table `changes`: what the edges have to learn, in the order in which it was committed.
//!
//! It holds the newest change of each resource only (a delta from any base needs no more), so it is as large as the set
//! of resources and tombstones. The sequence comes from the one row of `sequencer`: whoever updates that row holds its
//! lock until the commit, so numbers are handed out in commit order and none is committed late. A
//! resource's version is the sequence of its newest change.

use portico_api::distribution::ResourceKind;

use super::sql::{QueryBuilder, Row};
use super::{Connection, IDS_PER_QUERY, StoreError, WriteTx, sql};

/// The newest change of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub sequence: u64,
    /// A [`ResourceKind`] as on the wire.
    pub kind: i32,
    pub id: String,
    pub tenant_id: Option<String>,
    pub removed: bool,
}

/// Notes that a resource is new or changed. Answers its sequence, which is its version.
///
/// # Errors
/// The database's.
pub async fn record(
    tx: &mut WriteTx,
    kind: ResourceKind,
    id: &str,
    tenant_id: Option<&str>,
) -> Result<u64, StoreError> {
    put(tx, kind, id, tenant_id, false).await
}

/// Notes that resources, each with its tenant, are new or changed, in this order. Each is there once. Answers the newest sequence; 0:
/// there is none among them.
///
/// # Errors
/// The database's.
pub async fn record_all(
    tx: &mut WriteTx,
    kind: ResourceKind,
    resources: &[(String, Option<String>)],
) -> Result<u64, StoreError> {
    let mut newest = 0;
    for some in resources.chunks(IDS_PER_QUERY) {
        let count = i64::try_from(some.len()).unwrap_or(i64::MAX);
        let last: i64 = sql::query_scalar("UPDATE sequencer SET last = last + ? WHERE id = 1 RETURNING last")
            .bind(count)
            .fetch_one(tx)
            .await?;
        let mut old = QueryBuilder::new("DELETE FROM changes WHERE kind = ");
        old.push_bind(kind as i32).push(" AND id IN (").push_list(some.iter().map(|(id, _)| id)).push(")");
        old.build().execute(tx).await?;
        let mut new = QueryBuilder::new(
            "INSERT INTO changes (sequence, kind, id, version, tenant_id, removed) VALUES ",
        );
        for (at, (id, tenant)) in (last - count + 1..).zip(some) {
            new.push(if at == last - count + 1 { "(" } else { ", (" });
            new.push_bind(at).push(", ").push_bind(kind as i32).push(", ").push_bind(id).push(", ");
            new.push_bind(at).push(", ").push_bind(tenant).push(", 0)");
        }
        new.build().execute(tx).await?;
        newest = last.unsigned_abs();
        tx.recorded = Some(newest);
    }
    Ok(newest)
}

/// Notes that a resource is no longer distributed.
///
/// # Errors
/// The database's.
pub async fn record_removal(
    tx: &mut WriteTx,
    kind: ResourceKind,
    id: &str,
    tenant_id: Option<&str>,
) -> Result<u64, StoreError> {
    put(tx, kind, id, tenant_id, true).await
}

async fn put(
    tx: &mut WriteTx,
    kind: ResourceKind,
    id: &str,
    tenant_id: Option<&str>,
    removed: bool,
) -> Result<u64, StoreError> {
    let sequence: i64 = sql::query_scalar("UPDATE sequencer SET last = last + 1 WHERE id = 1 RETURNING last")
        .fetch_one(tx)
        .await?;
    sql::query("DELETE FROM changes WHERE kind = ? AND id = ?")
        .bind(kind as i32)
        .bind(id)
        .execute(tx)
        .await?;
    sql::query(
        "INSERT INTO changes (sequence, kind, id, version, tenant_id, removed) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(sequence)
    .bind(kind as i32)
    .bind(id)
    .bind(sequence)
    .bind(tenant_id)
    .bind(removed)
    .execute(tx)
    .await?;
    let sequence = sequence.unsigned_abs();
    tx.recorded = Some(sequence);
    Ok(sequence)
}

/// The newest sequence handed out, 0 before the first.
///
/// # Errors
/// The database's.
pub async fn last_sequence(connection: &mut Connection) -> Result<u64, StoreError> {
    let last: i64 =
        sql::query_scalar("SELECT last FROM sequencer WHERE id = 1").fetch_one(connection).await?;
    Ok(last.unsigned_abs())
}

/// Changes after `base`, oldest first, at most `limit`.
///
/// # Errors
/// The database's.
pub async fn after(connection: &mut Connection, base: u64, limit: u32) -> Result<Vec<Change>, StoreError> {
    let rows = sql::query(
        "SELECT sequence, kind, id, tenant_id, removed FROM changes WHERE sequence > ? ORDER BY sequence LIMIT ?",
    )
    .bind(i64::try_from(base).unwrap_or(i64::MAX))
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(read).collect()
}

/// The version of a resource; `None` when it was never distributed or is removed.
///
/// # Errors
/// The database's.
pub async fn version(
    connection: &mut Connection,
    kind: ResourceKind,
    id: &str,
) -> Result<Option<u64>, StoreError> {
    let version: Option<i64> =
        sql::query_scalar("SELECT version FROM changes WHERE kind = ? AND id = ? AND removed = 0")
            .bind(kind as i32)
            .bind(id)
            .fetch_optional(connection)
            .await?;
    Ok(version.map(i64::unsigned_abs))
}

fn read(row: &Row) -> Result<Change, StoreError> {
    Ok(Change {
        sequence: row.try_get::<i64>("sequence")?.unsigned_abs(),
        kind: row.try_get("kind")?,
        id: row.try_get("id")?,
        tenant_id: row.try_get("tenant_id")?,
        removed: row.try_get("removed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn only_the_newest_change_of_a_resource_is_kept_and_numbers_are_never_reused() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(folder.path()).await.unwrap();
        let mut tx = store.begin().await.unwrap();
        record(&mut tx, ResourceKind::Domain, "dom_a", Some("ten_1")).await.unwrap();
        record(&mut tx, ResourceKind::Domain, "dom_b", Some("ten_1")).await.unwrap();
        record(&mut tx, ResourceKind::Tenant, "dom_a", None).await.unwrap();
        record(&mut tx, ResourceKind::Domain, "dom_a", Some("ten_1")).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = store.begin().await.unwrap();
        record_removal(&mut tx, ResourceKind::Domain, "dom_b", Some("ten_1")).await.unwrap();
        tx.commit().await.unwrap();

        let mut read = store.read().await.unwrap();
        let seen: Vec<_> = after(&mut read, 0, 10)
            .await
            .unwrap()
            .into_iter()
            .map(|c| (c.sequence, c.id, c.removed))
            .collect();
        assert_eq!(seen, [(3, "dom_a".into(), false), (4, "dom_a".into(), false), (5, "dom_b".into(), true)]);
        assert_eq!(version(&mut read, ResourceKind::Domain, "dom_a").await.unwrap(), Some(4));
        assert_eq!(version(&mut read, ResourceKind::Domain, "dom_b").await.unwrap(), None);
        assert_eq!(last_sequence(&mut read).await.unwrap(), 5);
    }

    #[tokio::test]
    async fn many_changes_have_numbers_as_one_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(folder.path()).await.unwrap();
        let changes = store.changes();
        let mut tx = store.begin().await.unwrap();
        record(&mut tx, ResourceKind::Domain, "dom_0700", None).await.unwrap();
        let all: Vec<_> = (0..1_201).map(|n| (format!("dom_{n:04}"), Some("ten_1".to_owned()))).collect();
        assert_eq!(record_all(&mut tx, ResourceKind::Domain, &[]).await.unwrap(), 0);
        assert_eq!(record_all(&mut tx, ResourceKind::Domain, &all).await.unwrap(), 1_202);
        tx.commit().await.unwrap();
        assert_eq!(*changes.borrow(), 1_202, "followers are woken");
        let mut read = store.read().await.unwrap();
        let seen: Vec<_> = after(&mut read, 0, 2_000).await.unwrap();
        assert!(seen.iter().map(|one| one.sequence).eq(2..=1_202), "the first one has been replaced");
        assert!(seen.iter().zip(&all).all(|(one, (id, tenant))| one.id == *id && one.tenant_id == *tenant));
        assert_eq!(last_sequence(&mut read).await.unwrap(), 1_202);
    }
}

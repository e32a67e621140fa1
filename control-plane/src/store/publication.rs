//! What publication must remember over a restart: removals held back, and how far tombstones were forgotten.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use portico_api::distribution::ResourceKind;
use portico_cert_store::{DomainId, TenantId};

use super::sql::Row;
use super::{Connection, StoreError, WriteTx, change, from_id, from_json, meta, sql, to_json};

const META_FLOOR: &str = "changes_floor";
const META_FLEET_POLICY: &str = "fleet_policy";
const META_SIGNED_OFF_UNTIL: &str = "signed_off_until";
/// With the control plane's id behind.
const META_SOCKETS: &str = "sockets of ";
const META_DEFAULT_DOMAIN: &str = "default_domain";

/// The id of the only resource of kind Fleet.
pub const FLEET_ID: &str = "fleet";

/// A removal that the publisher holds back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRemoval {
    /// A [`ResourceKind`] as on the wire.
    pub kind: i32,
    pub id: String,
    pub held_at_ms: i64,
    pub signed_off: bool,
}

/// A domain whose removal waits for an operator's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingRemoval {
    pub domain: DomainId,
    pub hostname: String,
    pub tenant: TenantId,
    pub tenant_name: String,
    pub held_at_ms: i64,
}

/// The sequence up to which tombstones are forgotten.
///
/// # Errors
/// The database's.
pub async fn floor(connection: &mut Connection) -> Result<u64, StoreError> {
    let floor = meta::find(connection, META_FLOOR).await?;
    Ok(floor.and_then(|floor| floor.parse().ok()).unwrap_or(0))
}

/// Notes the present sequence with the time, then forgets tombstones that are both more than `keep_changes` changes and
/// `keep_ms` old. Answers the new floor.
///
/// # Errors
/// The database's.
pub async fn compact(
    tx: &mut WriteTx,
    now_ms: i64,
    keep_changes: u64,
    keep_ms: i64,
) -> Result<u64, StoreError> {
    let last = change::last_sequence(tx).await?;
    sql::query("INSERT INTO change_marks (sequence, at) VALUES (?, ?) ON CONFLICT (sequence) DO NOTHING")
        .bind(signed(last))
        .bind(now_ms)
        .execute(tx)
        .await?;
    let old: Option<i64> = sql::query_scalar("SELECT MAX(sequence) FROM change_marks WHERE at <= ?")
        .bind(now_ms.saturating_sub(keep_ms))
        .fetch_one(tx)
        .await?;
    let below = old.map_or(0, i64::unsigned_abs).min(last.saturating_sub(keep_changes));
    let newest: Option<i64> =
        sql::query_scalar("SELECT MAX(sequence) FROM changes WHERE removed = 1 AND sequence <= ?")
            .bind(signed(below))
            .fetch_one(tx)
            .await?;
    let floor = floor(tx).await?.max(newest.map_or(0, i64::unsigned_abs));
    sql::query("DELETE FROM changes WHERE removed = 1 AND sequence <= ?")
        .bind(signed(below))
        .execute(tx)
        .await?;
    // Of the marks that are past their use, the last one still tells how old what follows it is.
    sql::query("DELETE FROM change_marks WHERE sequence < ?").bind(signed(below)).execute(tx).await?;
    meta::put(tx, META_FLOOR, &floor.to_string()).await?;
    Ok(floor)
}

/// All held removals, by kind and id.
///
/// # Errors
/// The database's.
pub async fn held_removals(connection: &mut Connection) -> Result<Vec<HeldRemoval>, StoreError> {
    let rows = sql::query("SELECT kind, id, held_at, signed_off_at FROM held_removals ORDER BY kind, id")
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(HeldRemoval {
                kind: row.try_get("kind")?,
                id: row.try_get("id")?,
                held_at_ms: row.try_get("held_at")?,
                signed_off: row.try_get::<Option<i64>>("signed_off_at")?.is_some(),
            })
        })
        .collect()
}

/// Removals that wait for an operator's word, after `after`, by the domain's id.
///
/// # Errors
/// The database's.
pub async fn waiting_removals(
    connection: &mut Connection,
    after: &str,
    limit: u32,
) -> Result<Vec<WaitingRemoval>, StoreError> {
    let rows = sql::query(
        "SELECT h.id, h.held_at, d.name, d.tenant_id, t.name AS tenant_name FROM held_removals h \
         JOIN domains d ON d.id = h.id JOIN tenants t ON t.id = d.tenant_id \
         WHERE h.kind = ? AND h.signed_off_at IS NULL AND h.id > ? ORDER BY h.id LIMIT ?",
    )
    .bind(ResourceKind::Domain as i32)
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(read_waiting).collect()
}

/// The removal of that domain, when it waits for an operator's word.
///
/// # Errors
/// The database's.
pub async fn waiting_removal(
    connection: &mut Connection,
    domain: DomainId,
) -> Result<Option<WaitingRemoval>, StoreError> {
    let row = sql::query(
        "SELECT h.id, h.held_at, d.name, d.tenant_id, t.name AS tenant_name FROM held_removals h \
         JOIN domains d ON d.id = h.id JOIN tenants t ON t.id = d.tenant_id \
         WHERE h.kind = ? AND h.signed_off_at IS NULL AND h.id = ?",
    )
    .bind(ResourceKind::Domain as i32)
    .bind(domain.to_string())
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(read_waiting).transpose()
}

fn read_waiting(row: &Row) -> Result<WaitingRemoval, StoreError> {
    Ok(WaitingRemoval {
        domain: from_id(row.try_get("id")?, "held_removals")?,
        hostname: row.try_get("name")?,
        tenant: from_id(row.try_get("tenant_id")?, "domains")?,
        tenant_name: row.try_get("tenant_name")?,
        held_at_ms: row.try_get("held_at")?,
    })
}

/// How many [`waiting_removals`] there are.
///
/// # Errors
/// The database's.
pub async fn count_waiting_removals(connection: &mut Connection) -> Result<u64, StoreError> {
    let count: i64 = sql::query_scalar(
        "SELECT COUNT(*) FROM held_removals h JOIN domains d ON d.id = h.id \
         WHERE h.kind = ? AND h.signed_off_at IS NULL",
    )
    .bind(ResourceKind::Domain as i32)
    .fetch_one(connection)
    .await?;
    Ok(count.unsigned_abs())
}

/// Holds a removal back; answers whether that is news.
///
/// # Errors
/// The database's.
pub async fn hold_removal(
    tx: &mut WriteTx,
    kind: ResourceKind,
    id: &str,
    now_ms: i64,
) -> Result<bool, StoreError> {
    let done = sql::query(
        "INSERT INTO held_removals (kind, id, held_at) VALUES (?, ?, ?) ON CONFLICT (kind, id) DO NOTHING",
    )
    .bind(kind as i32)
    .bind(id)
    .bind(now_ms)
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Forgets a held removal: it was sent, or is no longer wanted.
///
/// # Errors
/// The database's.
pub async fn release_removal(tx: &mut WriteTx, kind: ResourceKind, id: &str) -> Result<(), StoreError> {
    sql::query("DELETE FROM held_removals WHERE kind = ? AND id = ?")
        .bind(kind as i32)
        .bind(id)
        .execute(tx)
        .await?;
    Ok(())
}

/// Forgets held removals that were signed off before `before_ms`.
///
/// # Errors
/// The database's.
pub async fn forget_signed_off(tx: &mut WriteTx, before_ms: i64) -> Result<(), StoreError> {
    sql::query("DELETE FROM held_removals WHERE signed_off_at < ?").bind(before_ms).execute(tx).await?;
    Ok(())
}

/// Lets those held domains go whose name another domain serves by now: a name has one owner, whatever the number of
/// removals. Answers how many.
///
/// # Errors
/// The database's.
pub async fn release_taken_over(tx: &mut WriteTx, now_ms: i64) -> Result<u64, StoreError> {
    let ids: Vec<String> = sql::query_scalar(
        "SELECT h.id FROM held_removals h JOIN domains d ON d.id = h.id \
         WHERE h.kind = ? AND h.signed_off_at IS NULL AND EXISTS (SELECT 1 FROM domains o \
         WHERE o.name = d.name AND o.id <> d.id AND o.served = 1 AND o.deleted_at IS NULL) ORDER BY h.id",
    )
    .bind(ResourceKind::Domain as i32)
    .fetch_all(tx)
    .await?;
    for id in &ids {
        sql::query("UPDATE held_removals SET signed_off_at = ? WHERE kind = ? AND id = ?")
            .bind(now_ms)
            .bind(ResourceKind::Domain as i32)
            .bind(id)
            .execute(tx)
            .await?;
        record_again(tx, ResourceKind::Domain, id).await?;
    }
    Ok(ids.len() as u64)
}

/// Lets all waiting removals go: each is recorded as a new change, which the publisher then lets pass. Answers how many.
///
/// # Errors
/// The database's.
pub async fn sign_off_removals(tx: &mut WriteTx, now_ms: i64) -> Result<u64, StoreError> {
    let mut held = held_removals(tx).await?;
    held.retain(|removal| !removal.signed_off);
    sql::query("UPDATE held_removals SET signed_off_at = ? WHERE signed_off_at IS NULL")
        .bind(now_ms)
        .execute(tx)
        .await?;
    for removal in &held {
        let kind = ResourceKind::try_from(removal.kind)
            .map_err(|_| StoreError::Unreadable { what: "held_removals: kind".to_owned() })?;
        record_again(tx, kind, &removal.id).await?;
    }
    Ok(held.len() as u64)
}

/// The same change under a new sequence, so that every edge hears of it.
async fn record_again(tx: &mut WriteTx, kind: ResourceKind, id: &str) -> Result<(), StoreError> {
    let row = sql::query("SELECT tenant_id, removed FROM changes WHERE kind = ? AND id = ?")
        .bind(kind as i32)
        .bind(id)
        .fetch_optional(tx)
        .await?;
    let Some(row) = row else { return Ok(()) };
    let tenant: Option<String> = row.try_get("tenant_id")?;
    if row.try_get::<bool>("removed")? {
        change::record_removal(tx, kind, id, tenant.as_deref()).await?;
    } else {
        change::record(tx, kind, id, tenant.as_deref()).await?;
    }
    Ok(())
}

/// The fleet's policy as it was last published, JSON; `None` before the first.
///
/// # Errors
/// The database's.
pub async fn fleet_policy(connection: &mut Connection) -> Result<Option<String>, StoreError> {
    meta::find(connection, META_FLEET_POLICY).await
}

/// Stores the fleet's policy and records its change, unless it is what stands already. Answers whether it changed.
///
/// # Errors
/// The database's.
pub async fn put_fleet_policy(tx: &mut WriteTx, json: &str) -> Result<bool, StoreError> {
    if fleet_policy(tx).await?.as_deref() == Some(json) {
        return Ok(false);
    }
    meta::put(tx, META_FLEET_POLICY, json).await?;
    change::record(tx, ResourceKind::Fleet, FLEET_ID, None).await?;
    Ok(true)
}

/// The domain whose certificate is the default one.
///
/// # Errors
/// The database's.
pub async fn default_domain(connection: &mut Connection) -> Result<Option<DomainId>, StoreError> {
    let id = meta::find(connection, META_DEFAULT_DOMAIN).await?.filter(|id| !id.is_empty());
    id.map(|id| from_id(&id, "meta: default_domain")).transpose()
}

/// Chooses that domain, or none, and records the fleet's change.
///
/// # Errors
/// The database's.
pub async fn put_default_domain(tx: &mut WriteTx, domain: Option<DomainId>) -> Result<(), StoreError> {
    let id = domain.map(|domain| domain.to_string()).unwrap_or_default();
    meta::put(tx, META_DEFAULT_DOMAIN, &id).await?;
    change::record(tx, ResourceKind::Fleet, FLEET_ID, None).await?;
    Ok(())
}

/// Until when snapshots may leave any number of names out; Unix milliseconds.
///
/// # Errors
/// The database's.
pub async fn signed_off_until(connection: &mut Connection) -> Result<i64, StoreError> {
    let until = meta::find(connection, META_SIGNED_OFF_UNTIL).await?;
    Ok(until.and_then(|until| until.parse().ok()).unwrap_or(0))
}

/// # Errors
/// The database's.
pub async fn put_signed_off_until(tx: &mut WriteTx, until_ms: i64) -> Result<(), StoreError> {
    tx.wake_others();
    meta::put(tx, META_SIGNED_OFF_UNTIL, &until_ms.to_string()).await
}

/// Notes which sockets a control plane has; answers whether that is news.
///
/// # Errors
/// The database's.
pub async fn put_sockets(
    tx: &mut WriteTx,
    replica: &str,
    sockets: &[SocketAddr],
) -> Result<bool, StoreError> {
    let (key, json) = (format!("{META_SOCKETS}{replica}"), to_json(&sockets)?);
    if meta::find(tx, &key).await?.as_ref() == Some(&json) {
        return Ok(false);
    }
    meta::put(tx, &key, &json).await?;
    Ok(true)
}

/// The sockets of every control plane that this database has had, each once.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn sockets(connection: &mut Connection) -> Result<BTreeSet<SocketAddr>, StoreError> {
    let mut all = BTreeSet::new();
    for json in meta::with_prefix(connection, META_SOCKETS).await? {
        all.extend(from_json::<Vec<SocketAddr>>(&json, "meta: sockets")?);
    }
    Ok(all)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn tombstones_go_only_when_they_are_old_and_far_behind() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(folder.path()).await.unwrap();
        let mut tx = store.begin().await.unwrap();
        change::record_removal(&mut tx, ResourceKind::Domain, "dom_a", None).await.unwrap();
        change::record(&mut tx, ResourceKind::Domain, "dom_b", None).await.unwrap();
        assert_eq!(compact(&mut tx, 1_000, 1, 500).await.unwrap(), 0, "too young");
        for id in ["dom_c", "dom_d"] {
            change::record(&mut tx, ResourceKind::Domain, id, None).await.unwrap();
        }
        assert_eq!(compact(&mut tx, 2_000, 10, 500).await.unwrap(), 0, "too near");
        assert_eq!(compact(&mut tx, 2_000, 1, 500).await.unwrap(), 1);
        assert_eq!(compact(&mut tx, 2_001, 1, 500).await.unwrap(), 1, "a floor never falls");
        let left: Vec<_> = change::after(&mut tx, 0, 10).await.unwrap().into_iter().map(|c| c.id).collect();
        assert_eq!(left, ["dom_b", "dom_c", "dom_d"]);
    }

    #[tokio::test]
    async fn signed_off_removal_is_a_new_change() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(folder.path()).await.unwrap();
        let mut tx = store.begin().await.unwrap();
        change::record_removal(&mut tx, ResourceKind::Domain, "dom_a", Some("ten_1")).await.unwrap();
        hold_removal(&mut tx, ResourceKind::Domain, "dom_a", 5).await.unwrap();
        assert!(!held_removals(&mut tx).await.unwrap()[0].signed_off);
        assert_eq!(sign_off_removals(&mut tx, 6).await.unwrap(), 1);
        assert!(held_removals(&mut tx).await.unwrap()[0].signed_off);
        let changes = change::after(&mut tx, 0, 10).await.unwrap();
        assert_eq!((changes[0].sequence, changes[0].removed), (2, true));
        release_removal(&mut tx, ResourceKind::Domain, "dom_a").await.unwrap();
        assert_eq!(held_removals(&mut tx).await.unwrap(), []);
    }
}

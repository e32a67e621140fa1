//! What waits for a time, all tables together: moved when the clock that wrote it has jumped.
//!
//! Back with a clock that is set back, so that each wait ends when it would have. With a clock that goes forward nothing is to be
//! done: waits end early, and the ledger's buckets, which must not, go with it. Deliberately absent: what only keeps something for
//! longer (events, proofs, a time of grace), times that a certificate or a CA has named, and leases, which go by the database's
//! clock ([`super::lease`]).

use super::{StoreError, WriteTx, issuer, sql};
use crate::clock::NEVER_MS;

/// The clock was set back by `by_ms`: what waits for a time after `after_ms` waits for one that is so much earlier.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn bring_back(tx: &mut WriteTx, by_ms: i64, after_ms: i64) -> Result<(), StoreError> {
    bring_back_orders(tx, by_ms, after_ms).await?;
    for statement in [
        sql::query("UPDATE domains SET check_at = check_at - ? WHERE check_at > ? AND check_at < ?"),
        sql::query(
            "UPDATE conditions SET next_check_at = next_check_at - ? WHERE next_check_at > ? AND next_check_at < ?",
        ),
        sql::query(
            "UPDATE presences SET next_look_at = next_look_at - ? WHERE next_look_at > ? AND next_look_at < ?",
        ),
        sql::query("UPDATE webhooks SET next_at = next_at - ? WHERE next_at > ? AND next_at < ?"),
        sql::query(
            "UPDATE rekeys SET requested_at = requested_at - ? WHERE requested_at > ? AND requested_at < ?",
        ),
        sql::query(
            "UPDATE rekey_items SET revoke_next_at = revoke_next_at - ? WHERE revoke_next_at > ? AND revoke_next_at < ?",
        ),
    ] {
        statement.bind(by_ms).bind(after_ms).bind(NEVER_MS).execute(tx).await?;
    }
    Ok(())
}

/// Of issuance.
async fn bring_back_orders(tx: &mut WriteTx, by_ms: i64, after_ms: i64) -> Result<(), StoreError> {
    for statement in [
        sql::query(
            "UPDATE orders SET next_at = next_at - ? WHERE next_at > ? AND next_at < ? AND state <> 'issued'",
        ),
        sql::query("UPDATE name_states SET next_at = next_at - ? WHERE next_at > ? AND next_at < ?"),
        sql::query("UPDATE order_requests SET at = at - ? WHERE at > ? AND at < ?"),
        sql::query("UPDATE backup_failures SET until = until - ? WHERE until > ? AND until < ?"),
        sql::query(
            "UPDATE credentials SET window_next_at = window_next_at - ? \
             WHERE window_next_at > ? AND window_next_at < ? AND state = 'live'",
        ),
    ] {
        statement.bind(by_ms).bind(after_ms).bind(NEVER_MS).execute(tx).await?;
    }
    // What was spent at such a time is as long ago as it was: a bucket with a time to come would refill no more before somebody looks.
    sql::query("UPDATE ledger_buckets SET arrival = arrival - ?1, seen_at = seen_at - ?1 WHERE seen_at > ?2")
        .bind(by_ms)
        .bind(after_ms)
        .execute(tx)
        .await?;
    // What somebody asked for at a time that is still to come keeps nobody from asking again.
    sql::query("DELETE FROM retries WHERE asked_at > ?").bind(after_ms).execute(tx).await?;
    for (name, health) in issuer::all(tx).await? {
        let back = health.clone().set_back(by_ms, after_ms);
        if back != health {
            issuer::put_health(tx, &name, &back, after_ms).await?;
        }
    }
    Ok(())
}

/// The clock went forward by `by_ms`, from `before_ms`, and no bucket has refilled in that: whether time has passed nobody knows, and
/// too strict a ledger costs a wait, too lax a one a lockout.
///
/// # Errors
/// The database's.
pub async fn keep_spent(tx: &mut WriteTx, by_ms: i64, before_ms: i64) -> Result<(), StoreError> {
    sql::query("UPDATE ledger_buckets SET arrival = arrival + ?1, seen_at = seen_at + ?1 WHERE arrival > ?2")
        .bind(by_ms)
        .bind(before_ms)
        .execute(tx)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Store, sql};

    #[tokio::test]
    async fn every_column_that_says_when_to_try_next_is_moved() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let columns = "SELECT m.name AS of, p.name AS wait FROM sqlite_master m JOIN pragma_table_info(m.name) p \
                       WHERE m.type = 'table' AND p.name LIKE '%next%'";
        let rows = sql::query(columns).fetch_all(&mut store.read().await.unwrap()).await.unwrap();
        assert!(rows.len() >= 7, "{}", rows.len());
        let module = include_str!("waits.rs");
        for row in rows {
            let (table, column): (String, String) =
                (row.try_get("of").unwrap(), row.try_get("wait").unwrap());
            let moved = format!("UPDATE {table} SET {column} = {column} - ");
            assert!(module.contains(&moved), "{table}.{column} waits for as long as the clock was set back");
        }
    }
}

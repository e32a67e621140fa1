//! What the DNS responders of all control planes on one database answer: the CA may ask any of them.
//!
//! Each change of the challenge records has a number. A control plane says up to which one its responder answers, and that it
//! lives; whoever puts a record up goes on when all that live have said so.

use super::{Connection, StoreError, WriteTx, meta, sql};

const META_NUMBER: &str = "challenge_records_number";
/// A control plane that has said nothing for so long is gone for good.
const FORGOTTEN_AFTER_MS: i64 = 24 * 3_600_000;

/// A responder that lives and does not answer yet what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    pub replica: String,
    /// Where its control plane is, for people.
    pub address: String,
}

/// The challenge records change with this transaction; answers the number of what they are then.
///
/// # Errors
/// The database's.
pub async fn records_change(tx: &mut WriteTx) -> Result<i64, StoreError> {
    let number = number(tx).await? + 1;
    meta::put(tx, META_NUMBER, &number.to_string()).await?;
    tx.wake_others();
    Ok(number)
}

/// The number of what the challenge records are.
///
/// # Errors
/// The database's.
pub async fn number(connection: &mut Connection) -> Result<i64, StoreError> {
    match meta::find(connection, META_NUMBER).await? {
        Some(text) => {
            text.parse().map_err(|_| StoreError::Unreadable { what: format!("meta: {META_NUMBER}") })
        }
        None => Ok(0),
    }
}

/// The responder of `replica` lives, and answers the records up to `number`.
///
/// # Errors
/// The database's.
pub async fn put(tx: &mut WriteTx, replica: &str, address: &str, number: i64) -> Result<(), StoreError> {
    let now_ms = tx.now_ms().await?;
    tx.wake_others();
    sql::query("DELETE FROM responders WHERE seen_at < ?")
        .bind(now_ms - FORGOTTEN_AFTER_MS)
        .execute(tx)
        .await?;
    sql::query(
        "INSERT INTO responders (replica, address, number, seen_at) VALUES (?, ?, ?, ?) ON CONFLICT (replica) \
         DO UPDATE SET address = excluded.address, number = excluded.number, seen_at = excluded.seen_at",
    )
    .bind(replica)
    .bind(address)
    .bind(number)
    .bind(now_ms)
    .execute(tx)
    .await?;
    Ok(())
}

/// The responder of `replica` ends.
///
/// # Errors
/// The database's.
pub async fn leave(tx: &mut WriteTx, replica: &str) -> Result<(), StoreError> {
    tx.wake_others();
    sql::query("DELETE FROM responders WHERE replica = ?").bind(replica).execute(tx).await?;
    Ok(())
}

/// Those other than `replica`'s that have lived within the last `within_ms` and do not answer `number` yet.
///
/// # Errors
/// The database's.
pub async fn behind(
    connection: &mut Connection,
    replica: &str,
    number: i64,
    within_ms: i64,
) -> Result<Vec<Behind>, StoreError> {
    let since = connection.now_ms().await? - within_ms;
    let rows = sql::query(
        "SELECT replica, address FROM responders WHERE replica <> ? AND number < ? AND seen_at > ? ORDER BY replica",
    )
    .bind(replica)
    .bind(number)
    .bind(since)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok(Behind { replica: row.try_get("replica")?, address: row.try_get("address")? }))
        .collect()
}

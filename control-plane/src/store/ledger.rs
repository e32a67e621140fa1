//! The ledger's buckets and what orders under way have reserved of them; the arithmetic is [`crate::plan::ledger`]'s.

use std::collections::BTreeMap;

use super::sql::{QueryBuilder, Row};
use super::{Connection, StoreError, WriteTx, sql};
use crate::clock::DAY_MS;
use crate::plan::ledger::{At, Bucket, BucketKey, Charged, Level, Levels, LimitName, Need, Rate};

/// How long an empty bucket is remembered: longer than any certificate lives, because one that was ever charged for a set
/// says that an order for the same set is a renewal.
const KEEP_MS: i64 = 400 * DAY_MS;

/// The level of each need's bucket.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn levels_of(connection: &mut Connection, needs: &[Need]) -> Result<Vec<Level>, StoreError> {
    let keys: Vec<&BucketKey> = needs.iter().map(|need| &need.key).collect();
    let levels = levels(connection, &keys).await?;
    Ok(needs.iter().map(|need| levels.of(&need.key)).collect())
}

/// The levels of these buckets; one that is absent is empty.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn levels(connection: &mut Connection, keys: &[&BucketKey]) -> Result<Levels, StoreError> {
    let mut subjects: BTreeMap<(LimitName, &str, &str), Vec<&str>> = BTreeMap::new();
    for key in keys {
        subjects.entry((key.limit, &key.ca, &key.account)).or_default().push(&key.subject);
    }
    let mut levels = Levels::default();
    for ((limit, ca, account), subjects) in subjects {
        for (columns, table, group) in [
            ("subject, arrival, seen_at", "ledger_buckets", ""),
            ("subject, COUNT(*) AS reserved", "ledger_reservations", " GROUP BY subject"),
        ] {
            let mut query = QueryBuilder::new("SELECT ");
            query.push(columns).push(" FROM ").push(table).push(" WHERE ca = ").push_bind(ca);
            query.push(" AND limit_name = ").push_bind(limit.as_str());
            query.push(" AND account = ").push_bind(account).push(" AND subject IN (");
            super::push_ids(&mut query, &subjects).push(")").push(group);
            for row in query.build().fetch_all(&mut *connection).await? {
                let subject = row.try_get("subject")?;
                let key = BucketKey { limit, ca: ca.to_owned(), account: account.to_owned(), subject };
                add(levels.0.entry(key).or_default(), &row)?;
            }
        }
    }
    Ok(levels)
}

/// Every bucket of an issuer's CA and account, and of tenants, that is not empty at `now`.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn levels_at(connection: &mut Connection, at: At<'_>, now_ms: i64) -> Result<Levels, StoreError> {
    let mut levels = Levels::default();
    for query in [
        sql::query(
            "SELECT ca, limit_name, account, subject, arrival, seen_at FROM ledger_buckets \
             WHERE arrival > ? AND ca IN ('', ?) AND account IN ('', ?)",
        )
        .bind(now_ms),
        sql::query(
            "SELECT ca, limit_name, account, subject, COUNT(*) AS reserved FROM ledger_reservations \
             WHERE ca IN ('', ?) AND account IN ('', ?) GROUP BY ca, limit_name, account, subject",
        ),
    ] {
        let rows = query.bind(at.ca).bind(at.account).fetch_all(&mut *connection);
        for row in rows.await? {
            let limit: &str = row.try_get("limit_name")?;
            let limit = LimitName::parse(limit)
                .ok_or_else(|| StoreError::Unreadable { what: format!("ledger: limit {limit}") })?;
            let (ca, account) = (row.try_get("ca")?, row.try_get("account")?);
            let key = BucketKey { limit, ca, account, subject: row.try_get("subject")? };
            add(levels.0.entry(key).or_default(), &row)?;
        }
    }
    Ok(levels)
}

/// A row of a bucket, or of the reservations in one.
fn add(level: &mut Level, row: &Row) -> Result<(), StoreError> {
    if let Ok(reserved) = row.try_get("reserved") {
        level.reserved = reserved;
    } else {
        level.bucket = Bucket { arrival_ms: row.try_get("arrival")?, seen_ms: row.try_get("seen_at")? };
    }
    Ok(())
}

/// Reserves for `holder` what its needs take.
///
/// # Errors
/// The database's; a second reservation of a holder in one bucket is one.
pub async fn reserve(tx: &mut WriteTx, holder: &str, needs: &[Need]) -> Result<(), StoreError> {
    for need in needs {
        let Some(charged) = word(need.charged) else { continue };
        let key = &need.key;
        // That a set was issued is to be known where no limit is, too.
        if !need.rate.is_limited() && key.limit != LimitName::ExactSet {
            continue;
        }
        sql::query("INSERT INTO ledger_reservations VALUES (?, ?, ?, ?, ?, ?, ?)")
            .bind(holder)
            .bind(&key.ca)
            .bind(key.limit.as_str())
            .bind(&key.account)
            .bind(&key.subject)
            .bind(charged)
            .bind(need.rate.interval_ms())
            .execute(tx)
            .await?;
    }
    Ok(())
}

/// What `holder` has reserved for this is spent now.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn charge_reserved(
    tx: &mut WriteTx,
    holder: &str,
    charged: Charged,
    now_ms: i64,
) -> Result<(), StoreError> {
    let Some(charged) = word(charged) else { return Ok(()) };
    let rows = sql::query("DELETE FROM ledger_reservations WHERE holder = ? AND charged = ? RETURNING *")
        .bind(holder)
        .bind(charged)
        .fetch_all(tx)
        .await?;
    for row in rows {
        let limit: &str = row.try_get("limit_name")?;
        let limit = LimitName::parse(limit)
            .ok_or_else(|| StoreError::Unreadable { what: format!("ledger: limit {limit}") })?;
        let (ca, account) = (row.try_get("ca")?, row.try_get("account")?);
        let key = BucketKey { limit, ca, account, subject: row.try_get("subject")? };
        charge(tx, &key, row.try_get("interval_ms")?, now_ms).await?;
    }
    Ok(())
}

/// What `holder` has reserved is free again.
///
/// # Errors
/// The database's.
pub async fn release(tx: &mut WriteTx, holder: &str) -> Result<(), StoreError> {
    sql::query("DELETE FROM ledger_reservations WHERE holder = ?").bind(holder).execute(tx).await?;
    Ok(())
}

/// Spends one unit, reserved or not.
///
/// # Errors
/// The database's.
pub async fn charge(
    tx: &mut WriteTx,
    key: &BucketKey,
    interval_ms: i64,
    now_ms: i64,
) -> Result<(), StoreError> {
    let bucket = bucket(tx, key).await?.charged(interval_ms, now_ms);
    put(tx, key, bucket, Some(now_ms)).await
}

/// The CA's word that this bucket has no room before `until`.
///
/// # Errors
/// The database's.
pub async fn learn(
    tx: &mut WriteTx,
    key: &BucketKey,
    rate: Rate,
    until_ms: i64,
    now_ms: i64,
) -> Result<(), StoreError> {
    let bucket = bucket(tx, key).await?.without_room_until(rate, until_ms, now_ms);
    put(tx, key, bucket, None).await
}

/// Buckets that were written by a clock that was ahead of now: no time has passed since.
///
/// # Errors
/// The database's.
pub async fn see_clock(
    tx: &mut WriteTx,
    needs: &[Need],
    levels: &[Level],
    now_ms: i64,
) -> Result<(), StoreError> {
    for (need, level) in needs.iter().zip(levels) {
        if level.bucket.seen_ms > now_ms {
            put(tx, &need.key, level.bucket.at(now_ms), None).await?;
        }
    }
    Ok(())
}

/// Forgets what was spent, as a CA does with failures in a row at the first success.
///
/// # Errors
/// The database's.
pub async fn clear(tx: &mut WriteTx, key: &BucketKey) -> Result<(), StoreError> {
    sql::query("DELETE FROM ledger_buckets WHERE ca = ? AND limit_name = ? AND account = ? AND subject = ?")
        .bind(&key.ca)
        .bind(key.limit.as_str())
        .bind(&key.account)
        .bind(&key.subject)
        .execute(tx)
        .await?;
    Ok(())
}

/// Whether something of ours was ever charged there: of an exact set, whether this CA has issued it to us.
///
/// # Errors
/// The database's.
pub async fn was_charged(connection: &mut Connection, key: &BucketKey) -> Result<bool, StoreError> {
    let found = sql::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM ledger_buckets WHERE ca = ? AND limit_name = ? AND account = ? \
         AND subject = ? AND charged_at IS NOT NULL)",
    )
    .bind(&key.ca)
    .bind(key.limit.as_str())
    .bind(&key.account)
    .bind(&key.subject)
    .fetch_one(connection)
    .await?;
    Ok(found)
}

/// Forgets buckets that are empty; those of exact sets after more than a year.
///
/// # Errors
/// The database's.
pub async fn prune(tx: &mut WriteTx, now_ms: i64) -> Result<(), StoreError> {
    sql::query(
        "DELETE FROM ledger_buckets WHERE arrival < ?1 AND seen_at < ?1 AND (limit_name <> ?2 OR arrival < ?3)",
    )
    .bind(now_ms)
    .bind(LimitName::ExactSet.as_str())
    .bind(now_ms - KEEP_MS)
    .execute(tx)
    .await?;
    Ok(())
}

async fn bucket(connection: &mut Connection, key: &BucketKey) -> Result<Bucket, StoreError> {
    Ok(levels(connection, &[key]).await?.of(key).bucket)
}

async fn put(
    tx: &mut WriteTx,
    key: &BucketKey,
    bucket: Bucket,
    charged_at: Option<i64>,
) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO ledger_buckets VALUES (?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (ca, limit_name, account, subject) DO UPDATE SET \
         arrival = excluded.arrival, seen_at = excluded.seen_at, \
         charged_at = COALESCE(excluded.charged_at, ledger_buckets.charged_at)",
    )
    .bind(&key.ca)
    .bind(key.limit.as_str())
    .bind(&key.account)
    .bind(&key.subject)
    .bind(bucket.arrival_ms)
    .bind(bucket.seen_ms)
    .bind(charged_at)
    .execute(tx)
    .await?;
    Ok(())
}

fn word(charged: Charged) -> Option<&'static str> {
    match charged {
        Charged::AtOrder => Some("order"),
        Charged::AtCertificate => Some("certificate"),
        Charged::Never => None,
    }
}

#[cfg(test)]
mod tests;

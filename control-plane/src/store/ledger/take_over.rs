//! The upgrade from releases that counted requests: what was asked of each CA within the longest limit's period becomes
//! spent of its buckets, at the first start of this release and never again.
//!
//! As before, never less than the CA counts: a request is charged as late as its answer may have come.

use std::collections::BTreeMap;

use sqlx::Row;

use super::{StoreError, WriteTx, charge, reserve};
use crate::plan::ledger::{At, BucketKey, Charged, DAYS_7_MS, LimitName, Limits, Need};

/// An issuer of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct IssuerLimits<'a> {
    pub name: &'a str,
    pub directory: &'a str,
    pub limits: &'a Limits,
}

/// The longest that an answer was waited for.
const ANSWER_MS: i64 = 60_000;

/// One unit to be charged.
struct Event {
    at_ms: i64,
    key: BucketKey,
}

/// Takes the requests of earlier releases into the ledger; answers how many there were.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn take_over(
    tx: &mut WriteTx,
    issuers: &[IssuerLimits<'_>],
    now_ms: i64,
) -> Result<u64, StoreError> {
    let mut count = 0;
    for issuer in issuers {
        let rows: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM order_requests WHERE in_ledger = 0 AND issuer = ?")
                .bind(issuer.name)
                .fetch_one(&mut **tx)
                .await?;
        if rows == 0 {
            continue;
        }
        count += u64::try_from(rows).unwrap_or(0);
        let mut events = requests(tx, issuer, now_ms).await?;
        events.extend(certificates(tx, issuer, now_ms).await?);
        events.extend(failures(tx, issuer).await?);
        events.extend(accounts(tx, issuer).await?);
        events.sort_by_key(|event| event.at_ms);
        for event in events {
            let rate = issuer.limits.rate(event.key.limit, &event.key.subject);
            charge(tx, &event.key, rate.interval_ms(), event.at_ms.min(now_ms)).await?;
        }
    }
    sqlx::query("UPDATE order_requests SET in_ledger = 1 WHERE in_ledger = 0").execute(&mut **tx).await?;
    Ok(count)
}

/// New orders, of the account and of tenants.
async fn requests(
    tx: &mut WriteTx,
    issuer: &IssuerLimits<'_>,
    now_ms: i64,
) -> Result<Vec<Event>, StoreError> {
    let rows = sqlx::query(
        "SELECT at, tenant_id FROM order_requests WHERE in_ledger = 0 AND issuer = ? AND renewal = 0 AND at > ?",
    )
    .bind(issuer.name)
    .bind(now_ms - DAYS_7_MS)
    .fetch_all(&mut **tx)
    .await?;
    let mut events = Vec::new();
    for row in rows {
        let at_ms = row.try_get::<i64, _>("at")? + ANSWER_MS;
        events.push(Event { at_ms, key: key(issuer, LimitName::Orders, "") });
        if let Some(tenant) = row.try_get::<Option<String>, _>("tenant_id")? {
            for limit in [LimitName::TenantHour, LimitName::TenantDay] {
                events.push(Event { at_ms, key: key(issuer, limit, &tenant) });
            }
        }
    }
    Ok(events)
}

/// Certificates, one for each order, whenever they came; what an open order may still get is reserved.
async fn certificates(
    tx: &mut WriteTx,
    issuer: &IssuerLimits<'_>,
    now_ms: i64,
) -> Result<Vec<Event>, StoreError> {
    let rows = sqlx::query(
        "SELECT r.order_id, r.name_set, r.renewal, MAX(r.at) AS at, o.state, o.issued_at, \
         (SELECT json_group_array(DISTINCT d.registered_domain) FROM order_request_domains d \
          JOIN order_requests q ON q.id = d.request_id WHERE q.order_id = r.order_id) AS domains \
         FROM order_requests r LEFT JOIN orders o ON o.id = r.order_id \
         WHERE r.in_ledger = 0 AND r.issuer = ? AND r.certificate = 1 GROUP BY r.order_id",
    )
    .bind(issuer.name)
    .fetch_all(&mut **tx)
    .await?;
    let mut events = Vec::new();
    for row in rows {
        let mut keys = vec![key(issuer, LimitName::ExactSet, row.try_get("name_set")?)];
        if !row.try_get::<bool, _>("renewal")? {
            let domains: Vec<String> = crate::store::from_json(row.try_get("domains")?, "order_requests")?;
            keys.extend(domains.iter().map(|domain| key(issuer, LimitName::RegisteredDomain, domain)));
        }
        let state: Option<String> = row.try_get("state")?;
        if state.is_some_and(|state| !["issued", "failed"].contains(&state.as_str())) {
            let need = |key: BucketKey| {
                let rate = issuer.limits.rate(key.limit, &key.subject);
                Need { key, rate, keep: 0, charged: Charged::AtCertificate }
            };
            let needs: Vec<Need> = keys.into_iter().map(need).collect();
            reserve(tx, row.try_get("order_id")?, &needs).await?;
            continue;
        }
        let requested: i64 = row.try_get("at")?;
        let at_ms = row.try_get::<Option<i64>, _>("issued_at")?.unwrap_or(requested + ANSWER_MS);
        // An older one is empty again, but tells that the set was issued.
        let keys =
            keys.into_iter().filter(|key| key.limit == LimitName::ExactSet || at_ms > now_ms - DAYS_7_MS);
        events.extend(keys.map(|key| Event { at_ms, key }));
    }
    Ok(events)
}

/// Failed validations, of names that have not succeeded since.
async fn failures(tx: &mut WriteTx, issuer: &IssuerLimits<'_>) -> Result<Vec<Event>, StoreError> {
    let rows = sqlx::query(
        "SELECT d.name, s.attempts, s.updated_at FROM name_states s JOIN domains d ON d.id = s.domain_id \
         WHERE s.failed_before = 1 AND s.attempts > 0",
    )
    .fetch_all(&mut **tx)
    .await?;
    let mut failed: BTreeMap<String, (u32, i64)> = BTreeMap::new();
    for row in rows {
        let (attempts, at): (u32, i64) = (row.try_get("attempts")?, row.try_get("updated_at")?);
        let entry = failed.entry(row.try_get("name")?).or_default();
        *entry = (entry.0.max(attempts), entry.1.max(at));
    }
    let mut events = Vec::new();
    for (name, (attempts, at_ms)) in failed {
        for limit in [LimitName::FailedAuthorizations, LimitName::ConsecutiveFailures] {
            let most = issuer.limits.rate(limit, &name).count;
            for _ in 0..attempts.min(most) {
                events.push(Event { at_ms, key: key(issuer, limit, &name) });
            }
        }
    }
    Ok(events)
}

async fn accounts(tx: &mut WriteTx, issuer: &IssuerLimits<'_>) -> Result<Vec<Event>, StoreError> {
    let at: Option<i64> = sqlx::query_scalar(
        "SELECT registered_at FROM accounts WHERE issuer = ? AND directory = ? AND registered_at IS NOT NULL",
    )
    .bind(issuer.name)
    .bind(issuer.directory)
    .fetch_optional(&mut **tx)
    .await?;
    Ok(at.map(|at_ms| Event { at_ms, key: key(issuer, LimitName::NewAccounts, "") }).into_iter().collect())
}

fn key(issuer: &IssuerLimits<'_>, limit: LimitName, subject: &str) -> BucketKey {
    BucketKey::new(limit, At { ca: issuer.directory, account: issuer.name }, subject)
}

#[cfg(test)]
mod tests;

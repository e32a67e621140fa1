//! Who may have a failed name tried again before its back-off is over, and how often.
//!
//! Each such try can cost a failed validation at the CA, of which Let's Encrypt allows five an hour for one name and
//! account, for all of our tenants' sake; and each may cost one of the account's new orders.

use portico_cert_store::{DomainId, TenantId};

use super::{StoreError, WriteTx, sql};

/// Between two calls for one name: as fast as Let's Encrypt's limit of failed validations refills (one in 12 minutes).
pub const NAME_EVERY_MS: i64 = 12 * 60 * 1000;
/// Calls of one tenant in [`TENANT_PERIOD_MS`], over all its names: a tenth of Let's Encrypt's new orders of one account
/// (300 in 3 hours) at most.
pub const TENANT_CALLS_MAX: i64 = 10;
pub const TENANT_PERIOD_MS: i64 = 3600 * 1000;

/// Why a call has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSoon {
    /// When the same call is granted.
    pub next_ms: i64,
    /// The tenant's calls are used up; else the name's.
    pub of_tenant: bool,
}

/// Notes a call and grants it, or says when it can be. An operator's calls are bounded by name only. By name, not by domain:
/// one that was deleted and claimed anew has had its calls. Only for a domain that is served: a claim that anybody can make must
/// not use up the calls of whoever has the name.
///
/// # Errors
/// The database's.
pub async fn ask(
    tx: &mut WriteTx,
    domain: DomainId,
    tenant: TenantId,
    by_operator: bool,
    now_ms: i64,
) -> Result<Result<(), TooSoon>, StoreError> {
    sql::query("DELETE FROM retries WHERE asked_at <= ?").bind(now_ms - TENANT_PERIOD_MS).execute(tx).await?;
    let last: Option<i64> = sql::query_scalar(
        "SELECT MAX(r.asked_at) FROM retries r JOIN domains d ON d.id = r.domain_id \
         WHERE d.name = (SELECT name FROM domains WHERE id = ?)",
    )
    .bind(domain.to_string())
    .fetch_one(tx)
    .await?;
    if let Some(next_ms) = last.map(|at| at + NAME_EVERY_MS).filter(|next| *next > now_ms) {
        return Ok(Err(TooSoon { next_ms, of_tenant: false }));
    }
    let asked = sql::query("SELECT COUNT(*), MIN(asked_at) FROM retries WHERE tenant_id = ?")
        .bind(tenant.to_string())
        .fetch_one(tx)
        .await?;
    let (count, oldest): (i64, Option<i64>) = (asked.try_get(0)?, asked.try_get(1)?);
    if let Some(oldest) = oldest.filter(|_| !by_operator && count >= TENANT_CALLS_MAX) {
        return Ok(Err(TooSoon { next_ms: oldest + TENANT_PERIOD_MS, of_tenant: true }));
    }
    sql::query("INSERT INTO retries (domain_id, tenant_id, asked_at) VALUES (?, ?, ?)")
        .bind(domain.to_string())
        .bind(tenant.to_string())
        .bind(now_ms)
        .execute(tx)
        .await?;
    Ok(Ok(()))
}

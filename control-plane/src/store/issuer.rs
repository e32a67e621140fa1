//! What is known of each issuer, and which ones tenants prefer.

use std::collections::HashMap;

use portico_cert_store::TenantId;
use serde::Deserialize;

use super::{Connection, StoreError, WriteTx, from_id, from_json, sql, to_json};
use crate::plan::issuers::Health;

/// Of every issuer of which anything is known, by its name.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn all(connection: &mut Connection) -> Result<HashMap<String, Health>, StoreError> {
    let rows = sql::query("SELECT issuer, health FROM issuer_states").fetch_all(connection).await?;
    rows.iter()
        .map(|row| Ok((row.try_get("issuer")?, from_json(row.try_get("health")?, "issuer_states")?)))
        .collect()
}

/// # Errors
/// The database's, or a row that cannot be read.
pub async fn health(connection: &mut Connection, issuer: &str) -> Result<Health, StoreError> {
    let text: Option<String> = sql::query_scalar("SELECT health FROM issuer_states WHERE issuer = ?")
        .bind(issuer)
        .fetch_optional(connection)
        .await?;
    text.map_or(Ok(Health::Well), |text| from_json(&text, "issuer_states"))
}

/// # Errors
/// The database's.
pub async fn put_health(
    tx: &mut WriteTx,
    issuer: &str,
    health: &Health,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO issuer_states VALUES (?, ?, ?) \
         ON CONFLICT (issuer) DO UPDATE SET health = excluded.health, updated_at = excluded.updated_at",
    )
    .bind(issuer)
    .bind(to_json(health)?)
    .bind(now_ms)
    .execute(tx)
    .await?;
    Ok(())
}

/// What tenants prefer that name issuers of their own, the best first.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn preferences(connection: &mut Connection) -> Result<HashMap<TenantId, Vec<String>>, StoreError> {
    // The specification of one that names none has no such field.
    let rows = sql::query("SELECT id, spec FROM tenants WHERE spec LIKE '%\"issuers\":[%'")
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            let preference: Preference = from_json(row.try_get("spec")?, "tenants: issuers")?;
            Ok((from_id(row.try_get("id")?, "tenants")?, preference.issuers))
        })
        .collect()
}

/// What a tenant prefers; empty: what the fleet does.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn preference(connection: &mut Connection, tenant: TenantId) -> Result<Vec<String>, StoreError> {
    let spec: Option<String> = sql::query_scalar("SELECT spec FROM tenants WHERE id = ?")
        .bind(tenant.to_string())
        .fetch_optional(connection)
        .await?;
    let preference: Option<Preference> = spec.map(|spec| from_json(&spec, "tenants: issuers")).transpose()?;
    Ok(preference.unwrap_or_default().issuers)
}

/// Of a tenant's specification.
#[derive(Default, Deserialize)]
struct Preference {
    #[serde(default)]
    issuers: Vec<String>,
}

/// Figures of one issuer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// In use.
    pub certificates: u64,
    /// Of them: their time of renewal has come.
    pub due: u64,
    /// Orders that are not over.
    pub orders: u64,
}

/// # Errors
/// The database's.
pub async fn figures(connection: &mut Connection, issuer: &str, now_ms: i64) -> Result<Figures, StoreError> {
    let row = sql::query(
        "SELECT COUNT(*) AS certificates, COUNT(*) FILTER (WHERE renew_at <= ?2) AS due, (SELECT COUNT(*) FROM orders \
         WHERE issuer = ?1 AND state NOT IN ('issued', 'failed')) AS orders \
         FROM credentials WHERE issuer = ?1 AND state = 'live' AND custody = 'cell'",
    )
    .bind(issuer)
    .bind(now_ms)
    .fetch_one(connection)
    .await?;
    let count = |column| Ok::<u64, StoreError>(row.try_get::<i64>(column)?.unsigned_abs());
    Ok(Figures { certificates: count("certificates")?, due: count("due")?, orders: count("orders")? })
}

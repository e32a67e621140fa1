//! The operator's groups of names of several tenants: what each tenant is offered, and its consent.

use portico_cert_store::TenantId;

use super::{Connection, StoreError, WriteTx, sql};

/// What one tenant is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedGroupRow {
    pub group: String,
    pub offered_at: i64,
    /// `None`: nothing of the tenant is shared.
    pub consent: Option<ConsentRow>,
}

/// Its consent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsentRow {
    pub at: i64,
    /// A token's id.
    pub by: String,
    pub note: Option<String>,
}

/// # Errors
/// The database's.
pub async fn find(
    connection: &mut Connection,
    tenant: TenantId,
) -> Result<Option<SharedGroupRow>, StoreError> {
    let row = sql::query("SELECT * FROM shared_groups WHERE tenant_id = ?")
        .bind(tenant.to_string())
        .fetch_optional(connection)
        .await?;
    row.map(|row| {
        let at: Option<i64> = row.try_get("consented_at")?;
        let by: Option<String> = row.try_get("consented_by")?;
        let note = row.try_get("note")?;
        let consent = at.zip(by).map(|(at, by)| ConsentRow { at, by, note });
        Ok(SharedGroupRow {
            group: row.try_get("group_name")?,
            offered_at: row.try_get("offered_at")?,
            consent,
        })
    })
    .transpose()
}

/// Writes what a tenant is offered over what was there, its consent with it.
///
/// # Errors
/// The database's.
pub async fn put(tx: &mut WriteTx, tenant: TenantId, row: &SharedGroupRow) -> Result<(), StoreError> {
    let consent = row.consent.as_ref();
    sql::query(
        "INSERT INTO shared_groups (tenant_id, group_name, offered_at, consented_at, consented_by, note) \
         VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (tenant_id) DO UPDATE SET group_name = excluded.group_name, \
         offered_at = excluded.offered_at, consented_at = excluded.consented_at, \
         consented_by = excluded.consented_by, note = excluded.note",
    )
    .bind(tenant.to_string())
    .bind(&row.group)
    .bind(row.offered_at)
    .bind(consent.map(|consent| consent.at))
    .bind(consent.map(|consent| &consent.by))
    .bind(consent.and_then(|consent| consent.note.as_ref()))
    .execute(tx)
    .await?;
    Ok(())
}

/// # Errors
/// The database's.
pub async fn remove(tx: &mut WriteTx, tenant: TenantId) -> Result<(), StoreError> {
    sql::query("DELETE FROM shared_groups WHERE tenant_id = ?").bind(tenant.to_string()).execute(tx).await?;
    Ok(())
}

/// Tenants that have consented to a group.
///
/// # Errors
/// The database's.
pub async fn members(connection: &mut Connection, group: &str) -> Result<u64, StoreError> {
    let count: i64 = sql::query_scalar(
        "SELECT COUNT(*) FROM shared_groups WHERE group_name = ? AND consented_at IS NOT NULL",
    )
    .bind(group)
    .fetch_one(connection)
    .await?;
    Ok(count.unsigned_abs())
}

//! Tenants.

use std::collections::{BTreeMap, HashMap};

use futures_util::TryStreamExt as _;
use portico_api::v1::{ErrorPages, OrderBudget, Suspension, TenantSpec};
use portico_cert_store::TenantId;

use super::sql::Row;
use super::{Connection, StoreError, WriteTx, from_id, from_json, sql, to_json};

/// Error pages that one read of many tenants takes; the tenant that passes it is the last.
const LISTED_PAGES_BYTES_MAX: usize = 4 << 20;

/// A tenant as it is stored.
#[derive(Clone, Debug)]
pub struct TenantRow {
    pub id: TenantId,
    pub spec: TenantSpec,
    pub suspension: Option<Suspension>,
    pub revision: u64,
    /// Unix milliseconds.
    pub created_at: i64,
}

/// # Errors
/// The database's; a name that is taken is one.
pub async fn insert(tx: &mut WriteTx, row: &TenantRow) -> Result<(), StoreError> {
    let (spec, error_pages) = texts(&row.spec)?;
    sql::query(
        "INSERT INTO tenants (id, name, spec, error_pages, suspension, revision, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(row.id.to_string())
    .bind(&row.spec.name)
    .bind(spec)
    .bind(error_pages)
    .bind(row.suspension.as_ref().map(to_json).transpose()?)
    .bind(row.revision.cast_signed())
    .bind(row.created_at)
    .execute(tx)
    .await?;
    Ok(())
}

/// Order budgets by tenants' ids, of those that have one; of one tenant only, or of all.
///
/// # Errors
/// The database's.
pub async fn order_budgets(
    connection: &mut Connection,
    only: Option<TenantId>,
) -> Result<BTreeMap<String, OrderBudget>, StoreError> {
    let rows = match only {
        Some(tenant) => {
            let query = sql::query("SELECT id, spec FROM tenants WHERE id = ?").bind(tenant.to_string());
            query.fetch_all(connection).await?
        }
        // A text in some other field may match, too: what counts is read below.
        None => {
            let query = sql::query("SELECT id, spec FROM tenants WHERE spec LIKE '%\"order_budget\":%'");
            query.fetch_all(connection).await?
        }
    };
    let mut budgets = BTreeMap::new();
    for row in rows {
        let spec: TenantSpec = from_json(row.try_get("spec")?, "a tenant")?;
        if !spec.order_budget.is_empty() {
            budgets.insert(row.try_get("id")?, spec.order_budget);
        }
    }
    Ok(budgets)
}

/// Writes spec and suspension and raises the revision, also in `row`.
///
/// # Errors
/// The database's; a name that is taken is one.
pub async fn update(tx: &mut WriteTx, row: &mut TenantRow) -> Result<(), StoreError> {
    row.revision += 1;
    let (spec, error_pages) = texts(&row.spec)?;
    sql::query(
        "UPDATE tenants SET name = ?, spec = ?, error_pages = ?, suspension = ?, revision = ? WHERE id = ?",
    )
    .bind(&row.spec.name)
    .bind(spec)
    .bind(error_pages)
    .bind(row.suspension.as_ref().map(to_json).transpose()?)
    .bind(row.revision.cast_signed())
    .bind(row.id.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// # Errors
/// The database's.
pub async fn find(connection: &mut Connection, id: TenantId) -> Result<Option<TenantRow>, StoreError> {
    let row = sql::query("SELECT * FROM tenants WHERE id = ?")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read).transpose()
}

/// # Errors
/// The database's.
pub async fn find_by_name(connection: &mut Connection, name: &str) -> Result<Option<TenantRow>, StoreError> {
    let row =
        sql::query("SELECT * FROM tenants WHERE name = ?").bind(name).fetch_optional(connection).await?;
    row.as_ref().map(read).transpose()
}

/// Tenants after `after`, in the order in which they were made, and whether these are the last ones: large error pages make
/// a list short.
///
/// # Errors
/// The database's.
pub async fn list(
    connection: &mut Connection,
    after: &str,
    limit: u32,
) -> Result<(Vec<TenantRow>, bool), StoreError> {
    let mut found = sql::query("SELECT * FROM tenants WHERE id > ? ORDER BY id LIMIT ?")
        .bind(after)
        .bind(limit.saturating_add(1))
        .fetch(connection);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(row) = found.try_next().await? {
        if rows.len() == limit as usize || bytes >= LISTED_PAGES_BYTES_MAX {
            return Ok((rows, false));
        }
        let row = read(&row)?;
        bytes += row.spec.error_pages.iter().map(|(_, page)| page.body.len()).sum::<usize>();
        rows.push(row);
    }
    Ok((rows, true))
}

/// What each tenant is called.
///
/// # Errors
/// The database's.
pub async fn names(connection: &mut Connection) -> Result<HashMap<TenantId, String>, StoreError> {
    let rows = sql::query("SELECT id, name FROM tenants").fetch_all(connection).await?;
    rows.iter().map(|row| Ok((from_id(row.try_get("id")?, "tenants")?, row.try_get("name")?))).collect()
}

/// How many domains the tenant has, and how many of them are served.
///
/// # Errors
/// The database's.
pub async fn count_domains(connection: &mut Connection, id: TenantId) -> Result<DomainCount, StoreError> {
    let row = sql::query(
        "SELECT COUNT(*) AS domains, COUNT(CASE WHEN served = 1 THEN 1 END) AS served FROM domains \
         WHERE tenant_id = ? AND deleted_at IS NULL",
    )
    .bind(id.to_string())
    .fetch_one(connection)
    .await?;
    Ok(DomainCount {
        all: row.try_get::<i64>("domains")?.unsigned_abs(),
        served: row.try_get::<i64>("served")?.unsigned_abs(),
    })
}

/// See [`count_domains`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainCount {
    pub all: u64,
    pub served: u64,
}

/// The spec without the error pages, and these.
fn texts(spec: &TenantSpec) -> Result<(String, Option<String>), StoreError> {
    let pages = &spec.error_pages;
    let pages_text = (!pages.is_empty()).then(|| to_json(pages)).transpose()?;
    let rest = TenantSpec { error_pages: ErrorPages::default(), ..spec.clone() };
    Ok((to_json(&rest)?, pages_text))
}

/// A tenant's spec with its error pages.
pub(super) fn read_spec(row: &Row, what: &str) -> Result<TenantSpec, StoreError> {
    let spec = from_json(row.try_get("spec")?, what)?;
    let error_pages: Option<String> = row.try_get("error_pages")?;
    let error_pages = error_pages.map(|text| from_json(&text, what)).transpose()?;
    Ok(TenantSpec { error_pages: error_pages.unwrap_or_default(), ..spec })
}

fn read(row: &Row) -> Result<TenantRow, StoreError> {
    let id: String = row.try_get("id")?;
    let suspension: Option<String> = row.try_get("suspension")?;
    Ok(TenantRow {
        id: from_id(&id, "tenants")?,
        spec: read_spec(row, &id)?,
        suspension: suspension.map(|text| from_json(&text, &id)).transpose()?,
        revision: row.try_get::<i64>("revision")?.unsigned_abs(),
        created_at: row.try_get("created_at")?,
    })
}

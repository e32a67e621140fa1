//! Domains: claims and what became of them.
//!
//! Several tenants may claim one name; at most one claim is `served` (a unique index holds that). A domain is a
//! distributed resource while it is served, and only then: an unproved claim never reaches an edge, so it cannot shadow
//! another tenant's wildcard. [`publish`] keeps `changes` in step and belongs into every transaction that changes a
//! domain. A deleted domain stays as a tombstone, and its labels and tokens stay in `used_labels`.

use portico_api::distribution::ResourceKind;
use portico_api::v1::{DomainSpec, Suspension};
use portico_cert_store::{DomainId, NamePattern, TenantId};

use super::sql::{QueryBuilder, Row};
use super::{Connection, StoreError, WriteTx, change, from_id, from_json, push_ids, sql, to_json};

/// A domain as it is stored.
#[derive(Clone, Debug)]
pub struct DomainRow {
    pub id: DomainId,
    pub tenant_id: TenantId,
    pub name: NamePattern,
    pub spec: DomainSpec,
    /// Its proof of control stands and no other claim's is newer.
    pub served: bool,
    pub labels: Labels,
    pub suspension: Option<Suspension>,
    /// Set while an order of that ACME account is open for the name.
    pub acme_thumbprint: Option<String>,
    /// When its proof is looked at next; `None`: only when asked.
    pub check_at: Option<i64>,
    /// Checks since one succeeded.
    pub check_failures: u32,
    pub revision: u64,
    /// Unix milliseconds.
    pub created_at: i64,
    pub deleted_at: Option<i64>,
}

/// The unguessable texts by which a claim is told from every other one. Never handed out twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// `<label>.<cname_zone>` is the claim's CNAME target.
    pub proof_label: String,
    /// The value of TXT `_portico.<host>`.
    pub txt_token: String,
    /// The path and content of the HTTP token.
    pub http_token: String,
    /// `<label>.<challenge_zone>` is where `_acme-challenge.<host>` is delegated to.
    pub challenge_label: String,
}

/// Which domains to list; everything not deleted when empty.
#[derive(Clone, Debug, Default)]
pub struct DomainFilter {
    pub tenant: Option<TenantId>,
    /// Part of the name.
    pub part: Option<String>,
    /// The whole name: its claims.
    pub name: Option<NamePattern>,
    /// The id after which the list goes on.
    pub after: String,
    pub limit: u32,
}

/// # Errors
/// The database's; a second claim of one tenant for one name, and a label used before, are such.
pub async fn insert(tx: &mut WriteTx, row: &DomainRow) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO domains (id, tenant_id, name, spec, served, proof_label, txt_token, http_token, \
         challenge_label, suspension, acme_thumbprint, check_at, check_failures, revision, created_at, shows_identity) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(row.id.to_string())
    .bind(row.tenant_id.to_string())
    .bind(row.name.to_string())
    .bind(to_json(&row.spec)?)
    .bind(row.served)
    .bind(&row.labels.proof_label)
    .bind(&row.labels.txt_token)
    .bind(&row.labels.http_token)
    .bind(&row.labels.challenge_label)
    .bind(row.suspension.as_ref().map(to_json).transpose()?)
    .bind(&row.acme_thumbprint)
    .bind(row.check_at)
    .bind(row.check_failures)
    .bind(row.revision.cast_signed())
    .bind(row.created_at)
    .bind(row.spec.shows_client_certificate().is_some())
    .execute(tx)
    .await?;
    use_labels(tx, row, row.created_at).await
}

/// Writes what may change and raises the revision, also in `row`. Labels that are new are marked as used.
///
/// # Errors
/// The database's; a second served claim for one name is one.
pub async fn update(tx: &mut WriteTx, row: &mut DomainRow, now_ms: i64) -> Result<(), StoreError> {
    row.revision += 1;
    sql::query(
        "UPDATE domains SET spec = ?, served = ?, proof_label = ?, txt_token = ?, http_token = ?, \
         challenge_label = ?, suspension = ?, check_at = ?, check_failures = ?, revision = ?, deleted_at = ?, \
         shows_identity = ? WHERE id = ?",
    )
    .bind(to_json(&row.spec)?)
    .bind(row.served)
    .bind(&row.labels.proof_label)
    .bind(&row.labels.txt_token)
    .bind(&row.labels.http_token)
    .bind(&row.labels.challenge_label)
    .bind(row.suspension.as_ref().map(to_json).transpose()?)
    .bind(row.check_at)
    .bind(row.check_failures)
    .bind(row.revision.cast_signed())
    .bind(row.deleted_at)
    .bind(row.spec.shows_client_certificate().is_some())
    .bind(row.id.to_string())
    .execute(tx)
    .await?;
    use_labels(tx, row, now_ms).await
}

/// Writes when the proof is looked at next. Not a change that a caller sees: the revision stays.
///
/// # Errors
/// The database's.
pub async fn schedule(
    tx: &mut WriteTx,
    id: DomainId,
    check_at: Option<i64>,
    check_failures: u32,
) -> Result<(), StoreError> {
    sql::query("UPDATE domains SET check_at = ?, check_failures = ? WHERE id = ?")
        .bind(check_at)
        .bind(check_failures)
        .bind(id.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// Notes in `changes` that the domain is distributed as it stands now, or no longer.
///
/// # Errors
/// The database's.
pub async fn publish(tx: &mut WriteTx, row: &DomainRow) -> Result<(), StoreError> {
    let (id, tenant) = (row.id.to_string(), row.tenant_id.to_string());
    if row.served && row.deleted_at.is_none() {
        change::record(tx, ResourceKind::Domain, &id, Some(&tenant)).await?;
    } else if change::version(tx, ResourceKind::Domain, &id).await?.is_some() {
        change::record_removal(tx, ResourceKind::Domain, &id, Some(&tenant)).await?;
    }
    Ok(())
}

async fn use_labels(tx: &mut WriteTx, row: &DomainRow, now_ms: i64) -> Result<(), StoreError> {
    let labels = &row.labels;
    for label in [&labels.proof_label, &labels.txt_token, &labels.http_token, &labels.challenge_label] {
        let owner: Option<String> = sql::query_scalar("SELECT domain_id FROM used_labels WHERE label = ?")
            .bind(label)
            .fetch_optional(tx)
            .await?;
        if owner.as_deref() == Some(&row.id.to_string()) {
            continue;
        }
        // A label of another domain violates the key: the whole write fails, as it must.
        sql::query("INSERT INTO used_labels (label, domain_id, created_at) VALUES (?, ?, ?)")
            .bind(label)
            .bind(row.id.to_string())
            .bind(now_ms)
            .execute(tx)
            .await?;
    }
    Ok(())
}

/// A domain that is not deleted.
///
/// # Errors
/// The database's.
pub async fn find(connection: &mut Connection, id: DomainId) -> Result<Option<DomainRow>, StoreError> {
    let row = sql::query("SELECT * FROM domains WHERE id = ? AND deleted_at IS NULL")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read).transpose()
}

/// A domain also when it is deleted.
///
/// # Errors
/// The database's.
pub async fn find_any(connection: &mut Connection, id: DomainId) -> Result<Option<DomainRow>, StoreError> {
    let row = sql::query("SELECT * FROM domains WHERE id = ?")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read).transpose()
}

/// The tenant's claim for a name.
///
/// # Errors
/// The database's.
pub async fn find_of_tenant(
    connection: &mut Connection,
    tenant: TenantId,
    name: &NamePattern,
) -> Result<Option<DomainRow>, StoreError> {
    let row = sql::query("SELECT * FROM domains WHERE tenant_id = ? AND name = ? AND deleted_at IS NULL")
        .bind(tenant.to_string())
        .bind(name.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read).transpose()
}

/// The names that a tenant is served for; at most 100,000.
///
/// # Errors
/// The database's.
pub async fn served_names(connection: &mut Connection, tenant: TenantId) -> Result<Vec<String>, StoreError> {
    Ok(sql::query_scalar("SELECT name FROM domains WHERE tenant_id = ? AND served = 1 LIMIT 100000")
        .bind(tenant.to_string())
        .fetch_all(connection)
        .await?)
}

/// The claim that is served for a name.
///
/// # Errors
/// The database's.
pub async fn find_served(
    connection: &mut Connection,
    name: &NamePattern,
) -> Result<Option<DomainRow>, StoreError> {
    let row = sql::query("SELECT * FROM domains WHERE name = ? AND served = 1")
        .bind(name.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read).transpose()
}

/// All claims for a name, oldest first.
///
/// # Errors
/// The database's.
pub async fn claims(connection: &mut Connection, name: &NamePattern) -> Result<Vec<DomainRow>, StoreError> {
    let rows =
        sql::query("SELECT * FROM domains WHERE name = ? AND deleted_at IS NULL ORDER BY id LIMIT 1000")
            .bind(name.to_string())
            .fetch_all(connection)
            .await?;
    rows.iter().map(read).collect()
}

/// Claims that are not served: no proof of control stands.
///
/// # Errors
/// The database's.
pub async fn count_unproved(connection: &mut Connection) -> Result<u64, StoreError> {
    let count: i64 =
        sql::query_scalar("SELECT COUNT(*) FROM domains WHERE deleted_at IS NULL AND served = 0")
            .fetch_one(connection)
            .await?;
    Ok(count.unsigned_abs())
}

/// Domains in the order in which they were made.
///
/// # Errors
/// The database's.
pub async fn list(connection: &mut Connection, filter: &DomainFilter) -> Result<Vec<DomainRow>, StoreError> {
    let mut query = QueryBuilder::new("SELECT * FROM domains WHERE deleted_at IS NULL AND id > ");
    query.push_bind(&filter.after);
    if let Some(tenant) = filter.tenant {
        query.push(" AND tenant_id = ").push_bind(tenant.to_string());
    }
    if let Some(name) = &filter.name {
        query.push(" AND name = ").push_bind(name.to_string());
    }
    if let Some(part) = &filter.part {
        let part = part.to_ascii_lowercase().replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_");
        query.push(" AND name LIKE ").push_bind(format!("%{part}%")).push(r" ESCAPE '\'");
    }
    query.push(" ORDER BY id LIMIT ").push_bind(filter.limit);
    let rows = query.build().fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

/// Those of `ids` that are not deleted, by id.
///
/// # Errors
/// The database's.
pub async fn find_many(connection: &mut Connection, ids: &[DomainId]) -> Result<Vec<DomainRow>, StoreError> {
    let mut query = QueryBuilder::new("SELECT * FROM domains WHERE deleted_at IS NULL AND id IN (");
    push_ids(&mut query, ids).push(") ORDER BY id");
    let rows = query.build().fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

/// Domains whose proof is to be looked at by `now_ms`: the longest overdue of each tenant first, so that the many claims of
/// one hold up nobody's.
///
/// # Errors
/// The database's.
pub async fn due(connection: &mut Connection, now_ms: i64, limit: u32) -> Result<Vec<DomainRow>, StoreError> {
    let rows = sql::query(
        "SELECT domains.* FROM (SELECT id, ROW_NUMBER() OVER (PARTITION BY tenant_id ORDER BY check_at) AS turn FROM domains \
         WHERE check_at IS NOT NULL AND check_at <= ? AND deleted_at IS NULL) AS due JOIN domains ON domains.id = due.id \
         ORDER BY turn, check_at LIMIT ?",
    )
    .bind(now_ms)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(read).collect()
}

fn read(row: &Row) -> Result<DomainRow, StoreError> {
    let id: String = row.try_get("id")?;
    let suspension: Option<String> = row.try_get("suspension")?;
    let unreadable = || StoreError::Unreadable { what: format!("domains: {id}: name") };
    Ok(DomainRow {
        id: from_id(&id, "domains")?,
        tenant_id: from_id(row.try_get("tenant_id")?, "domains")?,
        name: row.try_get::<String>("name")?.parse().map_err(|_| unreadable())?,
        spec: from_json(row.try_get("spec")?, &id)?,
        served: row.try_get("served")?,
        labels: Labels {
            proof_label: row.try_get("proof_label")?,
            txt_token: row.try_get("txt_token")?,
            http_token: row.try_get("http_token")?,
            challenge_label: row.try_get("challenge_label")?,
        },
        suspension: suspension.map(|text| from_json(&text, &id)).transpose()?,
        acme_thumbprint: row.try_get("acme_thumbprint")?,
        check_at: row.try_get("check_at")?,
        check_failures: row.try_get("check_failures")?,
        revision: row.try_get::<i64>("revision")?.unsigned_abs(),
        created_at: row.try_get("created_at")?,
        deleted_at: row.try_get("deleted_at")?,
    })
}

//! Certificates that tenants bring: a group for each, with a lineage in each cell that serves one of its names.
//!
//! Nothing is ever ordered for them. A key that is no longer in use is forgotten, not kept with its row.

use std::collections::{BTreeMap, HashMap};

use portico_api::distribution::ResourceKind;
use portico_api::v1;
use portico_cert_store::{CellId, CredentialId, DomainId, GroupId, LineageId, NamePattern, TenantId};

use super::credential::{self, NewCredential};
use super::group::{self, GroupRow};
use super::sql::{QueryBuilder, Row};
use super::{Connection, IDS_PER_QUERY, StoreError, WriteTx, cell, from_id, from_json, push_ids, sql};
use crate::plan::timing::Ends;

/// An uploaded certificate, wherever it is in use.
#[derive(Clone, Debug)]
pub struct Uploaded {
    pub group: GroupId,
    pub tenant: TenantId,
    /// The hostnames that it was brought for.
    pub names: BTreeMap<String, DomainId>,
    /// At least one.
    pub lineages: Vec<UploadedLineage>,
}

impl Uploaded {
    /// Whether this credential is the one in use, in one of its cells.
    pub fn serves(&self, credential: CredentialId) -> bool {
        self.lineages.iter().any(|lineage| lineage.credential == credential)
    }

    pub fn is_rsa(&self) -> bool {
        self.lineages.iter().any(|lineage| lineage.is_rsa)
    }

    /// The domains of its hostnames.
    pub fn domains(&self) -> impl Iterator<Item = DomainId> {
        self.lineages.iter().flat_map(|lineage| lineage.names.values().copied())
    }
}

/// It in one cell.
#[derive(Clone, Debug)]
pub struct UploadedLineage {
    pub id: LineageId,
    pub cell: CellId,
    pub credential: CredentialId,
    pub cell_key_epoch: u32,
    /// The hostnames that this cell serves.
    pub names: BTreeMap<String, DomainId>,
    pub is_rsa: bool,
    pub fingerprint_sha256: Vec<u8>,
    pub not_before: i64,
    pub not_after: i64,
    pub renew_at: i64,
    /// What the tenant has heard of its end.
    pub told: u8,
}

impl UploadedLineage {
    pub fn ends(&self) -> Ends {
        Ends { not_before: self.not_before, not_after: self.not_after, renew_at: self.renew_at }
    }
}

/// Those in use for one of these domains.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn of_domains(
    connection: &mut Connection,
    domains: &[DomainId],
) -> Result<Vec<Uploaded>, StoreError> {
    let mut query = QueryBuilder::new(SELECT);
    query.push(" AND l.group_id IN (SELECT group_id FROM group_names WHERE domain_id IN (");
    push_ids(&mut query, domains).push("))");
    let rows = query.build().fetch_all(&mut *connection).await?;
    gathered(connection, &rows).await
}

/// The one with this group, while it is in use.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn find(connection: &mut Connection, group: GroupId) -> Result<Option<Uploaded>, StoreError> {
    let mut query = QueryBuilder::new(SELECT);
    query.push(" AND l.group_id = ").push_bind(group.to_string());
    let rows = query.build().fetch_all(&mut *connection).await?;
    Ok(gathered(connection, &rows).await?.pop())
}

/// Those of these groups that are in use.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn of_groups(connection: &mut Connection, groups: &[GroupId]) -> Result<Vec<Uploaded>, StoreError> {
    let mut found = Vec::with_capacity(groups.len());
    for groups in groups.chunks(IDS_PER_QUERY) {
        let mut query = QueryBuilder::new(SELECT);
        query.push(" AND l.group_id IN (");
        push_ids(&mut query, groups).push(")");
        let rows = query.build().fetch_all(&mut *connection).await?;
        found.extend(gathered(connection, &rows).await?);
    }
    Ok(found)
}

/// Those in one cell whose key is sealed under an older key of the cell; each with that lineage alone.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn under_older_key(
    connection: &mut Connection,
    cell: &CellId,
    newest_epoch: u32,
) -> Result<Vec<Uploaded>, StoreError> {
    let mut query = QueryBuilder::new(SELECT);
    query.push(" AND l.cell = ").push_bind(cell.as_str());
    query.push(" AND c.cell_key_epoch < ").push_bind(newest_epoch);
    let rows = query.build().fetch_all(&mut *connection).await?;
    gathered(connection, &rows).await
}

/// The groups of all in use.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn groups(connection: &mut Connection) -> Result<Vec<GroupId>, StoreError> {
    let ids = sql::query_scalar(
        "SELECT DISTINCT group_id FROM lineages WHERE custody = 'uploaded' AND retired_at IS NULL",
    )
    .fetch_all(connection)
    .await?;
    group_ids(ids)
}

/// The groups of those in use with a domain that changed after `sequence`.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn groups_changed_after(
    connection: &mut Connection,
    sequence: u64,
) -> Result<Vec<GroupId>, StoreError> {
    // What changed is few as a rule, so it comes first (CROSS JOIN keeps SQLite to the order).
    let ids = sql::query_scalar(
        "SELECT DISTINCT l.group_id FROM changes c CROSS JOIN lineage_names n CROSS JOIN lineages l \
         WHERE n.domain_id = c.id AND l.id = n.lineage_id AND c.sequence > ? AND c.kind = ? AND l.custody = 'uploaded' AND l.retired_at IS NULL",
    )
    .bind(i64::try_from(sequence).unwrap_or(i64::MAX))
    .bind(ResourceKind::Domain as i32)
    .fetch_all(connection)
    .await?;
    group_ids(ids)
}

/// The groups of those in use of whose end there is more to tell by now.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn groups_to_tell(connection: &mut Connection, now_ms: i64) -> Result<Vec<GroupId>, StoreError> {
    let ids = sql::query_scalar(
        "SELECT DISTINCT l.group_id FROM credentials c CROSS JOIN lineages l \
         WHERE l.live_credential = c.id AND l.id = c.lineage_id AND c.custody = 'uploaded' AND c.state = 'live' AND c.tell_at <= ? AND l.retired_at IS NULL",
    )
    .bind(now_ms)
    .fetch_all(connection)
    .await?;
    group_ids(ids)
}

fn group_ids(ids: Vec<String>) -> Result<Vec<GroupId>, StoreError> {
    ids.iter().map(|id| from_id(id, "lineages")).collect()
}

const SELECT: &str = "SELECT l.id, l.group_id, l.cell, g.tenant_id, c.id AS credential_id, c.cell_key_epoch, c.is_rsa, \
     c.fingerprint_sha256, c.not_before, c.not_after, c.renew_at, c.told FROM lineages l JOIN groups g ON g.id = l.group_id \
     JOIN credentials c ON c.id = l.live_credential WHERE l.custody = 'uploaded' AND l.retired_at IS NULL";

async fn gathered(connection: &mut Connection, rows: &[Row]) -> Result<Vec<Uploaded>, StoreError> {
    let mut ids = Vec::with_capacity(rows.len());
    let mut groups = Vec::new();
    for row in rows {
        ids.push(row.try_get::<String>("id")?);
        groups.push(row.try_get::<String>("group_id")?);
    }
    groups.dedup();
    let of_lineage = "SELECT lineage_id AS id, name, domain_id FROM lineage_names WHERE lineage_id IN (";
    let mut served = credential::names_by_id(connection, of_lineage, &ids).await?;
    let of_group = "SELECT group_id AS id, name, domain_id FROM group_names WHERE group_id IN (";
    let mut brought_for = credential::names_by_id(connection, of_group, &groups).await?;
    let mut found: BTreeMap<GroupId, Uploaded> = BTreeMap::new();
    for (row, id) in rows.iter().zip(&ids) {
        let group: String = row.try_get("group_id")?;
        let names = brought_for.remove(&group).unwrap_or_default();
        let group = from_id(&group, "lineages")?;
        let tenant = from_id(row.try_get("tenant_id")?, "groups")?;
        let uploaded =
            found.entry(group).or_insert_with(|| Uploaded { group, tenant, names, lineages: Vec::new() });
        uploaded.lineages.push(lineage(row, served.remove(id).unwrap_or_default())?);
    }
    Ok(found.into_values().collect())
}

fn lineage(row: &Row, names: BTreeMap<String, DomainId>) -> Result<UploadedLineage, StoreError> {
    Ok(UploadedLineage {
        id: from_id(row.try_get("id")?, "lineages")?,
        cell: from_id(row.try_get("cell")?, "lineages")?,
        credential: from_id(row.try_get("credential_id")?, "credentials")?,
        cell_key_epoch: row.try_get("cell_key_epoch")?,
        names,
        is_rsa: row.try_get("is_rsa")?,
        fingerprint_sha256: row.try_get("fingerprint_sha256")?,
        not_before: row.try_get("not_before")?,
        not_after: row.try_get("not_after")?,
        renew_at: row.try_get("renew_at")?,
        told: row.try_get("told")?,
    })
}

/// A group for a new one.
///
/// # Errors
/// The database's.
pub async fn insert_group(
    tx: &mut WriteTx,
    tenant: TenantId,
    names: &BTreeMap<String, DomainId>,
    now_ms: i64,
) -> Result<GroupId, StoreError> {
    let id = GroupId::generate();
    let row = GroupRow { id, tenant: Some(tenant), cells: Vec::new(), alone: false, names: names.clone() };
    group::insert(tx, &row, "{}", now_ms).await?;
    Ok(id)
}

/// Makes the lineage of (group, cell) unless it exists; answers its id.
///
/// # Errors
/// The database's.
pub async fn ensure_lineage(
    tx: &mut WriteTx,
    group: GroupId,
    cell: &CellId,
    now_ms: i64,
) -> Result<LineageId, StoreError> {
    let id: String = sql::query_scalar(
        "INSERT INTO lineages (id, group_id, cell, created_at, custody) VALUES (?, ?, ?, ?, 'uploaded') \
         ON CONFLICT (group_id, cell) DO UPDATE SET retired_at = NULL RETURNING id",
    )
    .bind(LineageId::generate().to_string())
    .bind(group.to_string())
    .bind(cell.as_str())
    .bind(now_ms)
    .fetch_one(tx)
    .await?;
    from_id(&id, "lineages")
}

/// Makes a credential its lineage's live one, for these hostnames. The key of the one before is forgotten.
///
/// # Errors
/// The database's.
pub async fn publish(
    tx: &mut WriteTx,
    new: &NewCredential,
    names: &BTreeMap<String, DomainId>,
    now_ms: i64,
) -> Result<(), StoreError> {
    let (group, _, replaced) = credential::lineage(tx, new.lineage).await?;
    credential::insert(tx, new, now_ms).await?;
    credential::set_live(tx, new.lineage, new.id).await?;
    if let Some(replaced) = replaced {
        sql::query("UPDATE credentials SET state = 'replaced' WHERE id = ?")
            .bind(replaced.to_string())
            .execute(tx)
            .await?;
        forget_keys(tx, new.lineage).await?;
    }
    let tenant = credential::group_tenant(tx, group).await?;
    credential::record_lineage(tx, new.lineage, tenant.as_deref()).await?;
    serve(tx, new.lineage, names).await
}

/// Has a lineage serve these hostnames, and no others any more.
///
/// # Errors
/// The database's.
pub async fn serve(
    tx: &mut WriteTx,
    lineage: LineageId,
    names: &BTreeMap<String, DomainId>,
) -> Result<(), StoreError> {
    let before = credential::names_of(tx, lineage).await?;
    let names: Vec<(String, DomainId)> = names.iter().map(|(name, id)| (name.clone(), *id)).collect();
    credential::put_names(tx, lineage, &names).await?;
    let mut touched: Vec<DomainId> = before.iter().chain(&names).map(|(_, domain)| *domain).collect();
    touched.sort();
    touched.dedup();
    credential::record_domains(tx, &touched).await?;
    Ok(())
}

/// Takes it out of service in one cell, and forgets its key there.
///
/// # Errors
/// The database's.
pub async fn retire_lineage(tx: &mut WriteTx, lineage: LineageId, now_ms: i64) -> Result<(), StoreError> {
    credential::retire_lineage(tx, lineage, now_ms).await?;
    forget_keys(tx, lineage).await
}

/// Takes it out of service altogether.
///
/// # Errors
/// The database's.
pub async fn retire(tx: &mut WriteTx, uploaded: &Uploaded, now_ms: i64) -> Result<(), StoreError> {
    for lineage in &uploaded.lineages {
        retire_lineage(tx, lineage.id, now_ms).await?;
    }
    group::retire(tx, uploaded.group, now_ms).await
}

/// Of credentials that are not live.
async fn forget_keys(tx: &mut WriteTx, lineage: LineageId) -> Result<(), StoreError> {
    sql::query("UPDATE credentials SET sealed_key = ? WHERE lineage_id = ? AND state <> 'live'")
        .bind(Vec::<u8>::new())
        .bind(lineage.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// Drops those that were made before `before_ms` and are in use no more, and the lineages and groups that are left without any.
///
/// # Errors
/// The database's.
pub async fn prune(tx: &mut WriteTx, before_ms: i64) -> Result<(), StoreError> {
    sql::query("DELETE FROM credentials WHERE custody = 'uploaded' AND state <> 'live' AND created_at < ?")
        .bind(before_ms)
        .execute(tx)
        .await?;
    let mut groups: Vec<String> = sql::query_scalar(
        "DELETE FROM lineages WHERE custody = 'uploaded' AND retired_at IS NOT NULL \
         AND NOT EXISTS (SELECT 1 FROM credentials c WHERE c.lineage_id = lineages.id) \
         AND NOT EXISTS (SELECT 1 FROM lineage_names n WHERE n.lineage_id = lineages.id) RETURNING group_id",
    )
    .fetch_all(tx)
    .await?;
    groups.sort();
    groups.dedup();
    for group in groups {
        sql::query(
            "DELETE FROM groups WHERE id = ?1 AND retired_at IS NOT NULL \
             AND NOT EXISTS (SELECT 1 FROM lineages WHERE group_id = ?1) \
             AND NOT EXISTS (SELECT 1 FROM group_names WHERE group_id = ?1)",
        )
        .bind(group)
        .execute(tx)
        .await?;
    }
    Ok(())
}

/// Notes what the tenant has heard of a certificate's end, and when there is more to tell.
///
/// # Errors
/// The database's.
pub async fn set_told(
    tx: &mut WriteTx,
    credential: CredentialId,
    told: u8,
    tell_at: Option<i64>,
) -> Result<(), StoreError> {
    sql::query("UPDATE credentials SET told = ?, tell_at = ? WHERE id = ?")
        .bind(told)
        .bind(tell_at)
        .bind(credential.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// What a tenant's uploads take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadedBytes {
    /// Of those in use.
    pub live: u64,
    /// Of all that are kept.
    pub kept: u64,
}

/// # Errors
/// The database's.
pub async fn bytes_of(connection: &mut Connection, tenant: TenantId) -> Result<UploadedBytes, StoreError> {
    let row = sql::query(
        "SELECT CAST(COALESCE(SUM(stored_bytes) FILTER (WHERE state = 'live'), 0) AS BIGINT) AS live, \
         CAST(COALESCE(SUM(stored_bytes), 0) AS BIGINT) AS kept \
         FROM credentials WHERE custody = 'uploaded' AND key_tenant = ?",
    )
    .bind(tenant.to_string())
    .fetch_one(connection)
    .await?;
    let bytes = |column| Ok::<_, StoreError>(row.try_get::<i64>(column)?.unsigned_abs());
    Ok(UploadedBytes { live: bytes("live")?, kept: bytes("kept")? })
}

/// A key that serves, as it is sealed in one cell.
#[derive(Clone, Debug)]
pub struct SealedInCell {
    pub cell: CellId,
    pub epoch: u32,
    pub credential: CredentialId,
    pub key_tenant: String,
    pub sealed_key: Vec<u8>,
}

/// The key that a tenant has in service for this public key; in one of its cells, for it is the same in each.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn key_in_service(
    connection: &mut Connection,
    tenant: TenantId,
    spki_sha256: &[u8],
) -> Result<Option<SealedInCell>, StoreError> {
    let row = sql::query(
        "SELECT c.id, l.cell, c.cell_key_epoch, c.key_tenant, c.sealed_key FROM credentials c \
         JOIN lineages l ON l.live_credential = c.id \
         WHERE c.spki_sha256 = ? AND c.key_tenant = ? AND c.custody = 'uploaded' AND l.retired_at IS NULL ORDER BY c.id LIMIT 1",
    )
    .bind(spki_sha256.to_vec())
    .bind(tenant.to_string())
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(SealedInCell {
        cell: from_id(row.try_get("cell")?, "lineages")?,
        epoch: row.try_get("cell_key_epoch")?,
        credential: from_id(row.try_get("id")?, "credentials")?,
        key_tenant: row.try_get("key_tenant")?,
        sealed_key: row.try_get("sealed_key")?,
    }))
}

/// Forgets those of a tenant that are in use no more, before their time.
///
/// # Errors
/// The database's.
pub async fn forget_replaced(tx: &mut WriteTx, tenant: TenantId) -> Result<(), StoreError> {
    sql::query("DELETE FROM credentials WHERE custody = 'uploaded' AND state <> 'live' AND key_tenant = ?")
        .bind(tenant.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// Whether a hostname has another certificate in a cell that is valid at `now_ms`: its own, or that of its tenant's wildcard
/// over it.
///
/// # Errors
/// The database's.
pub async fn has_another(
    connection: &mut Connection,
    (name, domain): (&str, DomainId),
    cell: &CellId,
    but: GroupId,
    now_ms: i64,
) -> Result<bool, StoreError> {
    let wildcard = NamePattern::parse(name).ok().filter(|name| !name.is_wildcard());
    let wildcard = wildcard.and_then(|name| Some(format!("*.{}", name.base().parent()?)));
    Ok(sql::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM lineage_names n JOIN lineages l ON l.id = n.lineage_id \
         JOIN credentials c ON c.id = l.live_credential \
         WHERE l.retired_at IS NULL AND l.backup = '' AND l.cell = ?1 AND l.group_id <> ?2 AND c.not_after > ?3 \
         AND (n.domain_id = ?4 OR n.domain_id IN (SELECT w.id FROM domains w \
          WHERE w.name = ?5 AND w.tenant_id = (SELECT tenant_id FROM domains WHERE id = ?4))))",
    )
    .bind(cell.as_str())
    .bind(but.to_string())
    .bind(now_ms)
    .bind(domain.to_string())
    .bind(wildcard)
    .fetch_one(connection)
    .await?)
}

/// The group of a credential, in use or not, with whether it was uploaded; `None`: there is no such credential.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn group_of(
    connection: &mut Connection,
    credential: CredentialId,
) -> Result<Option<(GroupId, Option<TenantId>, bool)>, StoreError> {
    let row = sql::query(
        "SELECT l.group_id, g.tenant_id, l.custody = 'uploaded' AS uploaded FROM credentials c \
         JOIN lineages l ON l.id = c.lineage_id JOIN groups g ON g.id = l.group_id WHERE c.id = ?",
    )
    .bind(credential.to_string())
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let tenant: Option<String> = row.try_get("tenant_id")?;
    let tenant = tenant.map(|tenant| from_id(&tenant, "groups")).transpose()?;
    Ok(Some((from_id(row.try_get("group_id")?, "lineages")?, tenant, row.try_get("uploaded")?)))
}

/// The cells that are to serve each of these domains; those that are not served are left out.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn served_cells(
    connection: &mut Connection,
    domains: &[DomainId],
) -> Result<HashMap<DomainId, Vec<CellId>>, StoreError> {
    let mut served = HashMap::with_capacity(domains.len());
    for domains in domains.chunks(IDS_PER_QUERY) {
        let mut query = QueryBuilder::new(
            "SELECT d.id, d.spec, t.spec AS tenant_spec FROM domains d JOIN tenants t ON t.id = d.tenant_id \
             WHERE d.deleted_at IS NULL AND d.served = 1 AND d.id IN (",
        );
        push_ids(&mut query, domains).push(")");
        for row in query.build().fetch_all(&mut *connection).await? {
            let spec: v1::DomainSpec = from_json(row.try_get("spec")?, "domains: spec")?;
            let tenant: v1::TenantSpec = from_json(row.try_get("tenant_spec")?, "tenants: spec")?;
            let cells = cell::of_domain(&spec.cells, &tenant.cells);
            served.insert(from_id(row.try_get("id")?, "domains")?, cells);
        }
    }
    Ok(served)
}

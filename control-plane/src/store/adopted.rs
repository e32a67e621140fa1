//! Certificates that were taken over from other ACME clients, with their keys.
//!
//! Each has a group of its own that is retired from the start, with a lineage in each cell that serves one of its names: nothing is
//! ordered for such a group, its lineages serve until their names are live elsewhere, and the planner counts on them until their
//! time comes. So the order that follows is that of the names' own group, and replaces them.

use std::collections::{BTreeMap, HashMap};

use portico_cert_store::{CellId, CredentialId, DomainId, GroupId, LineageId, TenantId};

use super::group::{self, GroupRow};
use super::sql::{QueryBuilder, Row};
use super::{Connection, StoreError, WriteTx, credential, from_id, push_ids, sql};

/// An adopted certificate in use.
#[derive(Clone, Debug)]
pub struct Adopted {
    pub group: GroupId,
    pub tenant: TenantId,
    /// At least one.
    pub lineages: Vec<AdoptedLineage>,
}

/// It in one cell.
#[derive(Clone, Debug)]
pub struct AdoptedLineage {
    pub id: LineageId,
    pub cell: CellId,
    pub credential: CredentialId,
    /// The names that it serves there.
    pub names: BTreeMap<String, DomainId>,
    pub is_rsa: bool,
    pub fingerprint_sha256: Vec<u8>,
    /// Unix milliseconds.
    pub not_after: i64,
    /// URL of the account that is to replace it.
    pub account: Option<String>,
}

impl Adopted {
    /// Whether this credential is the one in use, in one of its cells.
    pub fn serves(&self, credential: CredentialId) -> bool {
        self.lineages.iter().any(|lineage| lineage.credential == credential)
    }
}

const SELECT: &str = "SELECT l.id, l.group_id, l.cell, g.tenant_id, c.id AS credential_id, c.is_rsa, c.fingerprint_sha256, \
     c.not_after, c.account FROM lineages l JOIN groups g ON g.id = l.group_id JOIN credentials c ON c.id = l.live_credential \
     WHERE l.custody = 'cell' AND l.retired_at IS NULL AND c.adopted = 1 AND g.tenant_id IS NOT NULL";

/// Those that serve one of these domains.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn of_domains(
    connection: &mut Connection,
    domains: &[DomainId],
) -> Result<Vec<Adopted>, StoreError> {
    let mut query = QueryBuilder::new(SELECT);
    query.push(
        " AND l.group_id IN (SELECT o.group_id FROM lineages o JOIN lineage_names n ON n.lineage_id = o.id ",
    );
    query.push("WHERE n.domain_id IN (");
    push_ids(&mut query, domains).push("))");
    let rows = query.build().fetch_all(&mut *connection).await?;
    gathered(connection, &rows).await
}

/// The one with this group, while it is in use.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn find(connection: &mut Connection, group: GroupId) -> Result<Option<Adopted>, StoreError> {
    let mut query = QueryBuilder::new(SELECT);
    query.push(" AND l.group_id = ").push_bind(group.to_string());
    let rows = query.build().fetch_all(&mut *connection).await?;
    Ok(gathered(connection, &rows).await?.pop())
}

/// Whether a credential was taken over, in use or not.
///
/// # Errors
/// The database's.
pub async fn is_adopted(connection: &mut Connection, credential: CredentialId) -> Result<bool, StoreError> {
    let adopted = sql::query_scalar("SELECT adopted FROM credentials WHERE id = ?")
        .bind(credential.to_string())
        .fetch_optional(connection)
        .await?;
    Ok(adopted.unwrap_or(false))
}

/// Until when a certificate that was issued here serves a domain in a cell, if one does that ends after `now_ms`.
///
/// # Errors
/// The database's.
pub async fn issued_until(
    connection: &mut Connection,
    domain: DomainId,
    cell: &CellId,
    now_ms: i64,
) -> Result<Option<i64>, StoreError> {
    Ok(sql::query_scalar(
        "SELECT c.not_after FROM lineage_names n JOIN lineages l ON l.id = n.lineage_id \
         JOIN credentials c ON c.id = l.live_credential WHERE n.domain_id = ? AND l.cell = ? AND l.retired_at IS NULL \
         AND l.custody = 'cell' AND c.adopted = 0 AND c.not_after > ? ORDER BY c.not_after DESC LIMIT 1",
    )
    .bind(domain.to_string())
    .bind(cell.as_str())
    .bind(now_ms)
    .fetch_optional(connection)
    .await?)
}

async fn gathered(connection: &mut Connection, rows: &[Row]) -> Result<Vec<Adopted>, StoreError> {
    let mut found: HashMap<GroupId, Adopted> = HashMap::new();
    for row in rows {
        let id: LineageId = from_id(row.try_get("id")?, "lineages")?;
        let group: GroupId = from_id(row.try_get("group_id")?, "lineages")?;
        let lineage = AdoptedLineage {
            id,
            cell: from_id(row.try_get("cell")?, "lineages")?,
            credential: from_id(row.try_get("credential_id")?, "credentials")?,
            names: names_of(connection, id).await?,
            is_rsa: row.try_get("is_rsa")?,
            fingerprint_sha256: row.try_get("fingerprint_sha256")?,
            not_after: row.try_get("not_after")?,
            account: row.try_get("account")?,
        };
        let tenant = from_id(row.try_get("tenant_id")?, "groups")?;
        let adopted = found.entry(group).or_insert_with(|| Adopted { group, tenant, lineages: Vec::new() });
        adopted.lineages.push(lineage);
    }
    let mut found: Vec<Adopted> = found.into_values().collect();
    found.sort_by_key(|adopted| adopted.group);
    for adopted in &mut found {
        adopted.lineages.sort_by(|a, b| a.cell.cmp(&b.cell));
    }
    Ok(found)
}

async fn names_of(
    connection: &mut Connection,
    lineage: LineageId,
) -> Result<BTreeMap<String, DomainId>, StoreError> {
    let rows = sql::query("SELECT name, domain_id FROM lineage_names WHERE lineage_id = ?")
        .bind(lineage.to_string())
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("name")?, from_id(row.try_get("domain_id")?, "lineage_names")?)))
        .collect()
}

/// A group for a new one. It keeps its names, for whoever looks at the certificate later.
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
    sql::query("UPDATE groups SET retired_at = ? WHERE id = ?")
        .bind(now_ms)
        .bind(id.to_string())
        .execute(tx)
        .await?;
    Ok(id)
}

/// Says which account is to replace a credential.
///
/// # Errors
/// The database's.
pub async fn set_account(
    tx: &mut WriteTx,
    credential: CredentialId,
    issuer: &str,
    account: &str,
) -> Result<(), StoreError> {
    // Its CA may not have been known before: it is asked now when to renew.
    sql::query(
        "UPDATE credentials SET account = ?, issuer = ?, window_next_at = 0 WHERE id = ? AND adopted = 1",
    )
    .bind(account)
    .bind(issuer)
    .bind(credential.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// Has it serve no name of `taken` any more; without any name it goes.
///
/// # Errors
/// The database's.
pub async fn give_up(
    tx: &mut WriteTx,
    adopted: &Adopted,
    taken: &BTreeMap<String, DomainId>,
    now_ms: i64,
) -> Result<(), StoreError> {
    for lineage in &adopted.lineages {
        let left = lineage.names.iter().filter(|(name, _)| !taken.contains_key(*name));
        let left: Vec<(String, DomainId)> = left.map(|(name, id)| (name.clone(), *id)).collect();
        if left.len() == lineage.names.len() {
            continue;
        }
        if left.is_empty() {
            credential::retire_lineage(tx, lineage.id, now_ms).await?;
            continue;
        }
        credential::put_names(tx, lineage.id, &left).await?;
        let mut touched: Vec<DomainId> = lineage.names.values().copied().collect();
        touched.sort();
        credential::record_domains(tx, &touched).await?;
    }
    Ok(())
}

/// Takes it out of service, and forgets its key.
///
/// # Errors
/// The database's.
pub async fn retire(tx: &mut WriteTx, adopted: &Adopted, now_ms: i64) -> Result<(), StoreError> {
    for lineage in &adopted.lineages {
        credential::retire_lineage(tx, lineage.id, now_ms).await?;
        sql::query("UPDATE credentials SET sealed_key = ? WHERE lineage_id = ? AND state <> 'live'")
            .bind(Vec::<u8>::new())
            .bind(lineage.id.to_string())
            .execute(tx)
            .await?;
    }
    Ok(())
}

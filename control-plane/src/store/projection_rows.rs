//! The rows that resources are made from, read in sets.

use std::collections::HashMap;

use portico_api::v1;
use portico_cert_store::{
    CellId, CredentialId, Custody, DomainId, GroupId, LineageId, TenantId, pem_certificates,
};

use super::backup::{self, Backup};
use super::credential::custody_of;
use super::sql::{QueryBuilder, Row};
use super::tenant::read_spec;
use super::{Connection, IDS_PER_QUERY, StoreError, from_id, from_json, from_word, push_ids};

#[derive(Clone, Debug)]
pub struct TenantRow {
    pub id: TenantId,
    pub spec: v1::TenantSpec,
    pub suspension: Option<v1::Suspension>,
}

/// A domain with what it takes from its tenant and from issuance.
#[derive(Clone, Debug)]
pub struct DomainRow {
    pub id: DomainId,
    pub tenant: TenantId,
    /// A-label, or `*.` and a base.
    pub name: String,
    pub spec: v1::DomainSpec,
    pub tenant_cells: Vec<CellId>,
    pub suspension: Option<v1::Suspension>,
    pub acme_thumbprint: Option<String>,
    pub served: bool,
    pub lineages: Vec<LineageRow>,
}

/// A lineage whose live credential covers a domain's name.
#[derive(Clone, Debug)]
pub struct LineageRow {
    pub id: LineageId,
    pub cell: CellId,
    /// Its certificate holds the very name, not only a wildcard over it.
    pub exact: bool,
    pub custody: Custody,
    /// The operator has switched to it.
    pub goes_first: bool,
    pub not_after_ms: i64,
}

/// A lineage's live credential.
#[derive(Clone, Debug)]
pub struct CredentialRow {
    pub id: CredentialId,
    pub lineage: LineageId,
    pub group: GroupId,
    pub cell: CellId,
    pub custody: Custody,
    pub backup: Option<Backup>,
    /// `None`: the operator's group.
    pub tenant: Option<TenantId>,
    pub chain_der: Vec<Vec<u8>>,
    pub sealed_key: Vec<u8>,
    pub cell_key_epoch: u32,
    pub spki_sha256: Vec<u8>,
    pub key_tenant: String,
}

/// # Errors
/// The database's.
pub async fn tenants(connection: &mut Connection, ids: &[String]) -> Result<Vec<TenantRow>, StoreError> {
    let rows =
        select(connection, "SELECT id, spec, error_pages, suspension FROM tenants WHERE id IN (", ids, ")")
            .await?;
    rows.iter()
        .map(|row| {
            Ok(TenantRow {
                id: from_id(row.try_get("id")?, "tenants")?,
                spec: read_spec(row, "tenants: spec")?,
                suspension: suspension(row, "tenants: suspension")?,
            })
        })
        .collect()
}

/// Served domains, with the lineages that may serve them: those of their own name, and those of a
/// wildcard of the same tenant over it.
///
/// # Errors
/// The database's.
pub async fn domains(connection: &mut Connection, ids: &[String]) -> Result<Vec<DomainRow>, StoreError> {
    let rows = select(
        connection,
        "SELECT d.id, d.tenant_id, d.name, d.spec, d.suspension, d.acme_thumbprint, d.served, t.spec AS tenant_spec \
         FROM domains d JOIN tenants t ON t.id = d.tenant_id WHERE d.deleted_at IS NULL AND d.served = 1 AND d.id IN (",
        ids,
        ")",
    )
    .await?;
    let mut domains = rows.iter().map(domain).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<String> = domains
        .iter()
        .flat_map(|domain| [Some(domain.name.clone()), wildcard_over(&domain.name)])
        .flatten()
        .collect();
    let lineages = lineages_of_names(connection, &names).await?;
    for domain in &mut domains {
        let own = lineages.get(&domain.name).into_iter().flatten();
        let own = own.filter(|covering| covering.domain == domain.id).map(|covering| covering.lineage(true));
        let over = wildcard_over(&domain.name).and_then(|name| lineages.get(&name));
        let over = over.into_iter().flatten().filter(|covering| covering.tenant == Some(domain.tenant));
        domain.lineages = own.chain(over.map(|covering| covering.lineage(false))).collect();
    }
    Ok(domains)
}

/// The live credentials of lineages that are not retired.
///
/// # Errors
/// The database's.
pub async fn credentials(
    connection: &mut Connection,
    lineages: &[String],
) -> Result<Vec<CredentialRow>, StoreError> {
    let rows = select(
        connection,
        "SELECT c.id, l.id AS lineage_id, l.group_id, l.cell, g.tenant_id, c.chain_pem, c.sealed_key, \
         c.cell_key_epoch, c.spki_sha256, c.key_tenant, c.custody, c.key_at_edge, l.backup FROM lineages l \
         JOIN groups g ON g.id = l.group_id JOIN credentials c ON c.id = l.live_credential \
         WHERE l.retired_at IS NULL AND l.id IN (",
        lineages,
        ")",
    )
    .await?;
    rows.iter().map(credential).collect()
}

/// A lineage found by a name that its live certificate holds.
struct Covering {
    id: LineageId,
    cell: CellId,
    domain: DomainId,
    tenant: Option<TenantId>,
    custody: Custody,
    goes_first: bool,
    not_after_ms: i64,
}

impl Covering {
    fn lineage(&self, exact: bool) -> LineageRow {
        let Self { id, custody, goes_first, not_after_ms, .. } = *self;
        LineageRow { id, cell: self.cell.clone(), exact, custody, goes_first, not_after_ms }
    }
}

async fn lineages_of_names(
    connection: &mut Connection,
    names: &[String],
) -> Result<HashMap<String, Vec<Covering>>, StoreError> {
    let rows = select(
        connection,
        "SELECT n.name, n.domain_id, d.tenant_id, l.id AS lineage_id, l.cell, l.custody, l.backup, c.not_after FROM lineage_names n \
         JOIN lineages l ON l.id = n.lineage_id JOIN credentials c ON c.id = l.live_credential \
         JOIN domains d ON d.id = n.domain_id WHERE l.retired_at IS NULL AND l.backup <> 'staged' AND n.name IN (",
        names,
        ")",
    )
    .await?;
    let mut found: HashMap<String, Vec<Covering>> = HashMap::new();
    for row in &rows {
        let tenant: String = row.try_get("tenant_id")?;
        found.entry(row.try_get("name")?).or_default().push(Covering {
            id: from_id(row.try_get("lineage_id")?, "lineages")?,
            cell: from_id(row.try_get("cell")?, "lineages")?,
            domain: from_id(row.try_get("domain_id")?, "lineage_names")?,
            tenant: Some(from_id(&tenant, "domains")?),
            custody: from_word(row.try_get("custody")?, "lineages")?,
            goes_first: backup::of_row(row)? == Some(Backup::Shown),
            not_after_ms: row.try_get("not_after")?,
        });
    }
    Ok(found)
}

/// `*.example.org` for `www.example.org`; none for a wildcard itself.
fn wildcard_over(name: &str) -> Option<String> {
    let (first, base) = name.split_once('.')?;
    (first != "*").then(|| format!("*.{base}"))
}

fn domain(row: &Row) -> Result<DomainRow, StoreError> {
    let tenant_spec: v1::TenantSpec = from_json(row.try_get("tenant_spec")?, "tenants: spec")?;
    Ok(DomainRow {
        id: from_id(row.try_get("id")?, "domains")?,
        tenant: from_id(row.try_get("tenant_id")?, "domains")?,
        name: row.try_get("name")?,
        spec: from_json(row.try_get("spec")?, "domains: spec")?,
        tenant_cells: tenant_spec.cells,
        suspension: suspension(row, "domains: suspension")?,
        acme_thumbprint: row.try_get("acme_thumbprint")?,
        served: row.try_get("served")?,
        lineages: Vec::new(),
    })
}

fn credential(row: &Row) -> Result<CredentialRow, StoreError> {
    let tenant: Option<String> = row.try_get("tenant_id")?;
    let pem: String = row.try_get("chain_pem")?;
    let chain_der = pem_certificates(pem.as_bytes())
        .map(|certificate| certificate.map(|certificate| certificate.to_vec()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| StoreError::Unreadable { what: "credentials: chain_pem".to_owned() })?;
    Ok(CredentialRow {
        id: from_id(row.try_get("id")?, "credentials")?,
        lineage: from_id(row.try_get("lineage_id")?, "lineages")?,
        group: from_id(row.try_get("group_id")?, "lineages")?,
        cell: from_id(row.try_get("cell")?, "lineages")?,
        custody: custody_of(row)?,
        backup: backup::of_row(row)?,
        tenant: tenant.map(|id| from_id(&id, "groups")).transpose()?,
        chain_der,
        sealed_key: row.try_get("sealed_key")?,
        cell_key_epoch: row.try_get("cell_key_epoch")?,
        spki_sha256: row.try_get("spki_sha256")?,
        key_tenant: row.try_get("key_tenant")?,
    })
}

fn suspension(row: &Row, what: &str) -> Result<Option<v1::Suspension>, StoreError> {
    let json: Option<String> = row.try_get("suspension")?;
    json.map(|json| from_json(&json, what)).transpose()
}

pub(super) async fn select(
    connection: &mut Connection,
    head: &'static str,
    ids: &[String],
    tail: &'static str,
) -> Result<Vec<Row>, StoreError> {
    let mut found = Vec::with_capacity(ids.len());
    for ids in ids.chunks(IDS_PER_QUERY) {
        let mut query = QueryBuilder::new(head);
        push_ids(&mut query, ids).push(tail);
        found.extend(query.build().fetch_all(&mut *connection).await?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcard_is_one_label_deep() {
        assert_eq!(wildcard_over("www.example.org").as_deref(), Some("*.example.org"));
        assert_eq!(wildcard_over("*.example.org"), None);
    }
}

//! What the API shows of issuance: the live certificates of many domains at once, their unfinished orders, and what
//! kept names from being ordered. Read only; the rows are written by `group`, `credential` and `order`.

use portico_cert_store::{CellId, CredentialId, Custody, DomainId, GroupId, LineageId};

use super::backup::{self, Backup};
use super::sql::{QueryBuilder, Row};
use super::{Connection, StoreError, credential, from_id, from_json, push_ids, renewal_info, sql};
use crate::plan::renewal_info::Window;

/// A certificate, without its key.
#[derive(Clone, Debug)]
pub struct CertificateRow {
    pub id: CredentialId,
    pub lineage: LineageId,
    pub group: GroupId,
    pub cell: CellId,
    pub custody: Custody,
    /// `None`: it is no backup.
    pub backup: Option<Backup>,
    pub issuer: String,
    /// `live` and the certificate of its lineage.
    pub live: bool,
    pub names: Vec<String>,
    pub chain_pem: String,
    pub spki_sha256: Vec<u8>,
    pub fingerprint_sha256: Vec<u8>,
    /// Unix milliseconds.
    pub not_before: i64,
    pub not_after: i64,
    pub renew_at: i64,
    /// The window that the CA suggests; `None`: `renew_at` is by share of the lifetime.
    pub window: Option<Window>,
    pub explanation_url: Option<String>,
    /// Why there is no window, or why the last question failed.
    pub window_note: Option<String>,
    pub window_asked_at: Option<i64>,
    pub created_at: i64,
    /// It was taken over from another ACME client.
    pub adopted: bool,
}

/// The newest order of one of a domain's lineages.
#[derive(Clone, Debug)]
pub struct OrderSummary {
    pub domain: DomainId,
    /// Whether the order is for the domain's name; else the name came to the group later.
    pub carries: bool,
    pub state: String,
    pub error: Option<String>,
    pub next_at: i64,
}

/// What is known about ordering a name.
#[derive(Clone, Debug)]
pub struct NameTrouble {
    pub domain: DomainId,
    pub failed_before: bool,
    pub next_at: i64,
    pub error: String,
}

/// Which certificates to list.
#[derive(Clone, Debug, Default)]
pub struct CertificateFilter {
    pub tenant: Option<String>,
    pub domain: Option<DomainId>,
    /// Unix milliseconds.
    pub expires_before: Option<i64>,
    pub after: String,
    pub limit: u32,
}

const COLUMNS: &str = "c.id, c.lineage_id, c.issuer, c.state, c.names, c.chain_pem, c.spki_sha256, \
     c.fingerprint_sha256, c.not_before, c.not_after, c.renew_at, c.window_start, c.window_end, c.explanation_url, c.window_note, c.window_asked_at, \
     c.created_at, c.custody, c.key_at_edge, c.adopted, l.group_id, l.cell, l.backup, l.live_credential";

/// The live certificates that carry these domains' names, with the domain of each, a backup that is shown before what it stands in
/// for.
///
/// # Errors
/// The database's.
pub async fn certificates_of(
    connection: &mut Connection,
    domains: &[DomainId],
) -> Result<Vec<(DomainId, CertificateRow)>, StoreError> {
    let mut query = QueryBuilder::new("SELECT n.domain_id, ");
    query.push(COLUMNS).push(
        " FROM lineage_names n JOIN lineages l ON l.id = n.lineage_id AND l.retired_at IS NULL \
         AND l.backup <> 'staged' JOIN credentials c ON c.id = l.live_credential WHERE n.domain_id IN (",
    );
    push_ids(&mut query, domains)
        .push(") ORDER BY l.cell, CASE WHEN l.backup = 'shown' THEN 0 ELSE 1 END, c.not_after DESC");
    let rows = query.build().fetch_all(connection).await?;
    rows.iter()
        .map(|row| Ok((from_id(row.try_get("domain_id")?, "lineage_names")?, certificate(row)?)))
        .collect()
}

/// Certificates by id; of a tenant: those that carry a name of one of its domains.
///
/// # Errors
/// The database's.
pub async fn certificates(
    connection: &mut Connection,
    filter: &CertificateFilter,
) -> Result<Vec<CertificateRow>, StoreError> {
    let mut query = QueryBuilder::new("SELECT ");
    query.push(COLUMNS).push(" FROM credentials c JOIN lineages l ON l.id = c.lineage_id WHERE c.id > ");
    query.push_bind(&filter.after);
    if let Some(tenant) = &filter.tenant {
        query.push(
            " AND EXISTS (SELECT 1 FROM group_names g JOIN domains d ON d.id = g.domain_id \
             WHERE g.group_id = l.group_id AND d.tenant_id = ",
        );
        query.push_bind(tenant).push(")");
    }
    if let Some(domain) = filter.domain {
        query.push(
            " AND EXISTS (SELECT 1 FROM group_names g WHERE g.group_id = l.group_id AND g.domain_id = ",
        );
        query.push_bind(domain.to_string()).push(")");
    }
    if let Some(before) = filter.expires_before {
        query.push(" AND c.not_after < ").push_bind(before);
    }
    query.push(" ORDER BY c.id LIMIT ").push_bind(filter.limit);
    let rows = query.build().fetch_all(connection).await?;
    rows.iter().map(certificate).collect()
}

/// Whether an order for this domain is at the CA and may have challenges up.
///
/// # Errors
/// The database's.
pub async fn is_being_validated(connection: &mut Connection, domain: DomainId) -> Result<bool, StoreError> {
    let found = sql::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM orders WHERE state IN ('created', 'challenged') AND domains LIKE ?)",
    )
    .bind(format!("%\"{domain}\"%"))
    .fetch_one(connection)
    .await?;
    Ok(found)
}

/// The domains on a certificate's group, with their tenants.
///
/// # Errors
/// The database's.
pub async fn domains_of_group(
    connection: &mut Connection,
    group: GroupId,
) -> Result<Vec<(DomainId, String)>, StoreError> {
    let rows = sql::query(
        "SELECT g.domain_id, d.tenant_id FROM group_names g JOIN domains d ON d.id = g.domain_id \
         WHERE g.group_id = ? ORDER BY g.name",
    )
    .bind(group.to_string())
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok((from_id(row.try_get("domain_id")?, "group_names")?, row.try_get("tenant_id")?)))
        .collect()
}

/// The newest order of each live lineage of these domains, unless it was issued.
///
/// # Errors
/// The database's.
pub async fn unfinished_orders(
    connection: &mut Connection,
    domains: &[DomainId],
) -> Result<Vec<OrderSummary>, StoreError> {
    let mut query = QueryBuilder::new(
        "SELECT n.domain_id, o.state, o.error, o.next_at, \
         REPLACE(o.domains, n.domain_id, '') <> o.domains AS carries FROM group_names n \
         JOIN groups g ON g.id = n.group_id AND g.retired_at IS NULL \
         JOIN lineages l ON l.group_id = g.id AND l.retired_at IS NULL AND l.backup = '' \
         JOIN orders o ON o.lineage_id = l.id AND o.created_at = \
         (SELECT MAX(created_at) FROM orders WHERE lineage_id = l.id) \
         WHERE o.state <> 'issued' AND n.domain_id IN (",
    );
    push_ids(&mut query, domains).push(") ORDER BY o.created_at");
    let rows = query.build().fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            Ok(OrderSummary {
                domain: from_id(row.try_get("domain_id")?, "group_names")?,
                carries: row.try_get("carries")?,
                state: row.try_get("state")?,
                error: row.try_get("error")?,
                next_at: row.try_get("next_at")?,
            })
        })
        .collect()
}

/// Errors that keep these domains' names from being ordered.
///
/// # Errors
/// The database's.
pub async fn troubles(
    connection: &mut Connection,
    domains: &[DomainId],
) -> Result<Vec<NameTrouble>, StoreError> {
    let mut query = QueryBuilder::new(
        "SELECT domain_id, failed_before, next_at, error FROM name_states WHERE error IS NOT NULL AND domain_id IN (",
    );
    push_ids(&mut query, domains).push(")");
    let rows = query.build().fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            Ok(NameTrouble {
                domain: from_id(row.try_get("domain_id")?, "name_states")?,
                failed_before: row.try_get("failed_before")?,
                next_at: row.try_get("next_at")?,
                error: row.try_get("error")?,
            })
        })
        .collect()
}

fn certificate(row: &Row) -> Result<CertificateRow, StoreError> {
    let id: String = row.try_get("id")?;
    let live: Option<String> = row.try_get("live_credential")?;
    Ok(CertificateRow {
        id: from_id(&id, "credentials")?,
        lineage: from_id(row.try_get("lineage_id")?, "credentials")?,
        group: from_id(row.try_get("group_id")?, "lineages")?,
        cell: from_id(row.try_get("cell")?, "lineages")?,
        custody: credential::custody_of(row)?,
        backup: backup::of_row(row)?,
        issuer: row.try_get("issuer")?,
        live: row.try_get::<String>("state")? == "live" && live.as_deref() == Some(&*id),
        names: from_json(row.try_get("names")?, &id)?,
        chain_pem: row.try_get("chain_pem")?,
        spki_sha256: row.try_get("spki_sha256")?,
        fingerprint_sha256: row.try_get("fingerprint_sha256")?,
        not_before: row.try_get("not_before")?,
        not_after: row.try_get("not_after")?,
        renew_at: row.try_get("renew_at")?,
        window: renewal_info::window(row)?,
        explanation_url: row.try_get("explanation_url")?,
        window_note: row.try_get("window_note")?,
        window_asked_at: row.try_get("window_asked_at")?,
        created_at: row.try_get("created_at")?,
        adopted: row.try_get("adopted")?,
    })
}

//! Credentials: one row for each certificate with its sealed key. The newest good one of a lineage is live.

use std::collections::{BTreeMap, HashMap};

use portico_api::distribution::ResourceKind;
use portico_cert_store::{CellId, CredentialId, Custody, DomainId, GroupId, LineageId};

use super::sql::{QueryBuilder, Row};
use super::{
    Connection, IDS_PER_QUERY, StoreError, WriteTx, change, from_id, from_json, from_word, push_ids, sql,
    to_json,
};

/// A certificate with its key sealed, as it is written.
#[derive(Clone, Debug)]
pub struct NewCredential {
    pub id: CredentialId,
    pub lineage: LineageId,
    pub custody: Custody,
    pub issuer: String,
    /// As in the leaf.
    pub names: Vec<String>,
    pub chain_pem: String,
    pub sealed_key: Vec<u8>,
    pub cell_key_epoch: u32,
    pub key_tenant: String,
    pub spki_sha256: [u8; 32],
    pub fingerprint_sha256: [u8; 32],
    pub not_before: i64,
    pub not_after: i64,
    pub renew_at: i64,
    /// URL of the account that ordered it.
    pub account: Option<String>,
    pub is_rsa: bool,
    /// When its tenant is to hear of its end; `None`: it is renewed here.
    pub tell_at: Option<i64>,
    /// It was taken over with its key; the key may be in other lineages too.
    pub adopted: bool,
}

/// What the API shows of a credential.
#[derive(Clone, Debug)]
pub struct CredentialRow {
    pub id: CredentialId,
    pub lineage: LineageId,
    pub group: GroupId,
    pub cell: CellId,
    pub issuer: String,
    pub state: String,
    pub names: Vec<String>,
    pub chain_pem: String,
    pub spki_sha256: Vec<u8>,
    pub fingerprint_sha256: Vec<u8>,
    pub not_before: i64,
    pub not_after: i64,
    pub renew_at: i64,
}

/// What publishing changed.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Sequence of the newest change; an edge that has applied it serves the credential.
    pub sequence: u64,
    /// Names whose only certificate was the replaced one: it went on to serve them in a lineage of their own.
    pub kept: Vec<String>,
}

/// Where a key is, of the two columns that say so: `custody` tells what is issued here from what tenants bring.
pub(super) fn custody_of(row: &Row) -> Result<Custody, StoreError> {
    match row.try_get("key_at_edge")? {
        true => Ok(Custody::Edge),
        false => from_word(row.try_get("custody")?, "credentials"),
    }
}

/// Makes a credential its lineage's live one, and notes that the lineage and the domains of its names changed.
///
/// A name that the replaced credential covers and the new one does not, and that no other live lineage of the cell
/// covers, must not lose its certificate: the replaced credential then moves to that name's own lineage.
///
/// # Errors
/// The database's; a public key that another lineage has is one.
pub async fn publish(
    tx: &mut WriteTx,
    new: &NewCredential,
    domains: &[(String, DomainId)],
    now_ms: i64,
) -> Result<Published, StoreError> {
    let (group, cell, replaced) = lineage(tx, new.lineage).await?;
    let tenant = group_tenant(tx, group).await?;
    let before = names_of(tx, new.lineage).await?;
    insert(tx, new, now_ms).await?;
    set_live(tx, new.lineage, new.id).await?;
    put_names(tx, new.lineage, domains).await?;
    let mut published = Published::default();
    let mut touched: Vec<DomainId> = domains.iter().map(|(_, domain)| *domain).collect();
    let mut orphans = Vec::new();
    for (name, domain) in before {
        touched.push(domain);
        if !domains.iter().any(|(kept, _)| *kept == name) && is_orphan(tx, &cell, domain).await? {
            orphans.push((name, domain));
        }
    }
    let new_home = match (replaced, orphans.first()) {
        (Some(old), Some((_, domain))) => {
            free_lineage(tx, *domain, &cell, group).await?.map(|home| (old, home))
        }
        _ => None,
    };
    match (replaced, new_home) {
        (Some(old), Some((_, home))) => {
            sql::query("UPDATE credentials SET lineage_id = ? WHERE id = ?")
                .bind(home.to_string())
                .bind(old.to_string())
                .execute(tx)
                .await?;
            set_live(tx, home, old).await?;
            put_names(tx, home, &orphans).await?;
            published.kept = orphans.into_iter().map(|(name, _)| name).collect();
            record_lineage(tx, home, tenant.as_deref()).await?;
        }
        (Some(old), None) => {
            sql::query("UPDATE credentials SET state = 'replaced' WHERE id = ?")
                .bind(old.to_string())
                .execute(tx)
                .await?;
        }
        (None, _) => {}
    }
    let sequence = record_lineage(tx, new.lineage, tenant.as_deref()).await?;
    touched.sort();
    touched.dedup();
    published.sequence = record_domains(tx, &touched).await?.max(sequence);
    Ok(published)
}

/// Notes that the domains with these ids, each there once, changed; answers the newest sequence (0: none of them exists any more).
///
/// # Errors
/// The database's.
pub async fn record_domains(tx: &mut WriteTx, domains: &[DomainId]) -> Result<u64, StoreError> {
    let mut found: Vec<(String, Option<String>)> = Vec::with_capacity(domains.len());
    for some in domains.chunks(IDS_PER_QUERY) {
        let mut query =
            QueryBuilder::new("SELECT id, tenant_id FROM domains WHERE deleted_at IS NULL AND id IN (");
        push_ids(&mut query, some).push(") ORDER BY id");
        for row in query.build().fetch_all(tx).await? {
            found.push((row.try_get("id")?, Some(row.try_get("tenant_id")?)));
        }
    }
    change::record_all(tx, ResourceKind::Domain, &found).await
}

/// Overwrites the key of a credential, and its copy in the order that made it; `false`: it was gone already.
///
/// # Errors
/// The database's.
pub async fn forget_key(tx: &mut WriteTx, credential: CredentialId) -> Result<bool, StoreError> {
    let done = sql::query("UPDATE credentials SET sealed_key = ? WHERE id = ? AND length(sealed_key) > 0")
        .bind(Vec::<u8>::new())
        .bind(credential.to_string())
        .execute(tx)
        .await?;
    sql::query("UPDATE orders SET sealed_key = ? WHERE credential_id = ?")
        .bind(Vec::<u8>::new())
        .bind(credential.to_string())
        .execute(tx)
        .await?;
    Ok(done.rows_affected() > 0)
}

/// Takes a lineage out of service: the edges forget it, the domains that it served are told without it.
///
/// # Errors
/// The database's.
pub async fn retire_lineage(tx: &mut WriteTx, id: LineageId, now_ms: i64) -> Result<(), StoreError> {
    let domains = domains_of_lineage(tx, id).await?;
    let (group, _, live) = lineage(tx, id).await?;
    super::group::retire_lineage(tx, id, now_ms).await?;
    record_domains(tx, &domains).await?;
    if live.is_some() {
        let tenant = group_tenant(tx, group).await?;
        change::record_removal(tx, ResourceKind::Credential, &id.to_string(), tenant.as_deref()).await?;
    }
    Ok(())
}

/// The credentials that serve a domain, one for each live lineage.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn of_domain(
    connection: &mut Connection,
    domain: DomainId,
) -> Result<Vec<CredentialRow>, StoreError> {
    let rows = sql::query(
        "SELECT c.*, l.group_id, l.cell FROM lineage_names n JOIN lineages l ON l.id = n.lineage_id \
         JOIN credentials c ON c.id = l.live_credential \
         WHERE n.domain_id = ? AND l.retired_at IS NULL AND l.backup <> 'staged' ORDER BY l.cell, c.not_after DESC",
    )
    .bind(domain.to_string())
    .fetch_all(connection)
    .await?;
    rows.iter().map(credential).collect()
}

/// Whether a domain has a live credential in the cell of a lineage; an uploaded one does not count, nor does a backup.
///
/// # Errors
/// The database's.
pub async fn is_live_beside(
    connection: &mut Connection,
    domain: DomainId,
    lineage: LineageId,
) -> Result<bool, StoreError> {
    let live = sql::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM lineage_names n JOIN lineages l ON l.id = n.lineage_id \
         WHERE n.domain_id = ? AND l.retired_at IS NULL AND l.live_credential IS NOT NULL AND l.custody = 'cell' \
         AND l.backup = '' AND l.cell = (SELECT cell FROM lineages WHERE id = ?))",
    )
    .bind(domain.to_string())
    .bind(lineage.to_string())
    .fetch_one(connection)
    .await?;
    Ok(live)
}

/// Whether this issuer has issued what a lineage serves.
///
/// # Errors
/// The database's.
pub async fn is_live_of_issuer(
    connection: &mut Connection,
    lineage: LineageId,
    issuer: &str,
) -> Result<bool, StoreError> {
    let live = sql::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM lineages l JOIN credentials c ON c.id = l.live_credential \
         WHERE l.id = ? AND c.issuer = ?)",
    )
    .bind(lineage.to_string())
    .bind(issuer)
    .fetch_one(connection)
    .await?;
    Ok(live)
}

/// # Errors
/// The database's, or a row that cannot be read.
pub async fn find(
    connection: &mut Connection,
    id: CredentialId,
) -> Result<Option<CredentialRow>, StoreError> {
    let row = sql::query(
        "SELECT c.*, l.group_id, l.cell FROM credentials c JOIN lineages l ON l.id = c.lineage_id WHERE c.id = ?",
    )
    .bind(id.to_string())
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(credential).transpose()
}

/// The domains whose names a lineage's live credential covers.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn domains_of_lineage(
    connection: &mut Connection,
    lineage: LineageId,
) -> Result<Vec<DomainId>, StoreError> {
    let ids: Vec<String> =
        sql::query_scalar("SELECT domain_id FROM lineage_names WHERE lineage_id = ? ORDER BY name")
            .bind(lineage.to_string())
            .fetch_all(connection)
            .await?;
    ids.iter().map(|id| from_id(id, "lineage_names")).collect()
}

/// When the live credential of a lineage ends, and which names it covers; `None`: it has none.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn live_of_lineage(
    connection: &mut Connection,
    lineage: LineageId,
) -> Result<Option<CredentialRow>, StoreError> {
    let row = sql::query(
        "SELECT c.*, l.group_id, l.cell FROM lineages l JOIN credentials c ON c.id = l.live_credential \
         WHERE l.id = ?",
    )
    .bind(lineage.to_string())
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(credential).transpose()
}

pub(super) async fn insert(tx: &mut WriteTx, new: &NewCredential, now_ms: i64) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO credentials (id, lineage_id, issuer, state, names, chain_pem, sealed_key, cell_key_epoch, \
         key_tenant, spki_sha256, fingerprint_sha256, not_before, not_after, renew_at, account, created_at, custody, \
         is_rsa, stored_bytes, tell_at, adopted, key_at_edge) \
         VALUES (?, ?, ?, 'live', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(new.id.to_string())
    .bind(new.lineage.to_string())
    .bind(&new.issuer)
    .bind(to_json(&new.names)?)
    .bind(&new.chain_pem)
    .bind(&new.sealed_key)
    .bind(new.cell_key_epoch)
    .bind(&new.key_tenant)
    .bind(new.spki_sha256.as_slice())
    .bind(new.fingerprint_sha256.as_slice())
    .bind(new.not_before)
    .bind(new.not_after)
    .bind(new.renew_at)
    .bind(&new.account)
    .bind(now_ms)
    .bind(if new.custody.is_ours() { Custody::Cell } else { new.custody }.as_str())
    .bind(new.is_rsa)
    .bind(i64::try_from(new.chain_pem.len() + new.sealed_key.len()).unwrap_or(i64::MAX))
    .bind(new.tell_at)
    .bind(new.adopted)
    .bind(new.custody == Custody::Edge)
    .execute(tx)
    .await?;
    Ok(())
}

pub(super) async fn lineage(
    tx: &mut WriteTx,
    lineage: LineageId,
) -> Result<(GroupId, String, Option<CredentialId>), StoreError> {
    let row = sql::query("SELECT group_id, cell, live_credential FROM lineages WHERE id = ?")
        .bind(lineage.to_string())
        .fetch_one(tx)
        .await?;
    let live: Option<String> = row.try_get("live_credential")?;
    let live = live.map(|id| from_id(&id, "lineages")).transpose()?;
    Ok((from_id(row.try_get("group_id")?, "lineages")?, row.try_get("cell")?, live))
}

pub(super) async fn names_of(
    tx: &mut WriteTx,
    lineage: LineageId,
) -> Result<Vec<(String, DomainId)>, StoreError> {
    let rows = sql::query("SELECT name, domain_id FROM lineage_names WHERE lineage_id = ? ORDER BY name")
        .bind(lineage.to_string())
        .fetch_all(tx)
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("name")?, from_id(row.try_get("domain_id")?, "lineage_names")?)))
        .collect()
}

/// Names with their domains, by what they are of. `head`: the statement up to the ids of that.
pub(super) async fn names_by_id(
    connection: &mut Connection,
    head: &'static str,
    ids: &[String],
) -> Result<HashMap<String, BTreeMap<String, DomainId>>, StoreError> {
    let mut found: HashMap<String, BTreeMap<String, DomainId>> = HashMap::new();
    for some in ids.chunks(IDS_PER_QUERY) {
        let mut query = QueryBuilder::new(head);
        push_ids(&mut query, some).push(")");
        for row in query.build().fetch_all(&mut *connection).await? {
            let domain = from_id(row.try_get("domain_id")?, "domains")?;
            found.entry(row.try_get("id")?).or_default().insert(row.try_get("name")?, domain);
        }
    }
    Ok(found)
}

/// The domain is still served and has not been retired as a leaver, and no live lineage of the cell covers it. An uploaded one
/// does not count: it ends, and then there must be another.
async fn is_orphan(tx: &mut WriteTx, cell: &str, domain: DomainId) -> Result<bool, StoreError> {
    Ok(sql::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM domains d WHERE d.id = ?1 AND d.deleted_at IS NULL AND d.served = 1 AND NOT EXISTS \
         (SELECT 1 FROM presences p WHERE p.domain_id = d.id AND p.retired_at IS NOT NULL) AND NOT EXISTS \
         (SELECT 1 FROM lineage_names n JOIN lineages l ON l.id = n.lineage_id \
          WHERE n.domain_id = ?1 AND l.cell = ?2 AND l.retired_at IS NULL AND l.live_credential IS NOT NULL \
          AND l.custody = 'cell' AND l.backup = ''))",
    )
    .bind(domain.to_string())
    .bind(cell)
    .fetch_one(tx)
    .await?)
}

/// The lineage of the group that the domain belongs to now, in this cell, if it is another one and has no credential.
async fn free_lineage(
    tx: &mut WriteTx,
    domain: DomainId,
    cell: &str,
    not_of: GroupId,
) -> Result<Option<LineageId>, StoreError> {
    let id: Option<String> = sql::query_scalar(
        "SELECT l.id FROM group_names n JOIN lineages l ON l.group_id = n.group_id \
         WHERE n.domain_id = ? AND l.cell = ? AND l.group_id <> ? AND l.live_credential IS NULL \
         AND l.retired_at IS NULL AND l.custody = 'cell' AND l.backup = '' LIMIT 1",
    )
    .bind(domain.to_string())
    .bind(cell)
    .bind(not_of.to_string())
    .fetch_optional(tx)
    .await?;
    id.map(|id| from_id(&id, "lineages")).transpose()
}

pub(super) async fn set_live(
    tx: &mut WriteTx,
    lineage: LineageId,
    credential: CredentialId,
) -> Result<(), StoreError> {
    sql::query("UPDATE lineages SET live_credential = ?, retired_at = NULL WHERE id = ?")
        .bind(credential.to_string())
        .bind(lineage.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

pub(super) async fn put_names(
    tx: &mut WriteTx,
    lineage: LineageId,
    names: &[(String, DomainId)],
) -> Result<(), StoreError> {
    sql::query("DELETE FROM lineage_names WHERE lineage_id = ?")
        .bind(lineage.to_string())
        .execute(tx)
        .await?;
    for (name, domain) in names {
        sql::query("INSERT INTO lineage_names (lineage_id, name, domain_id) VALUES (?, ?, ?)")
            .bind(lineage.to_string())
            .bind(name)
            .bind(domain.to_string())
            .execute(tx)
            .await?;
    }
    Ok(())
}

pub(super) async fn group_tenant(tx: &mut WriteTx, group: GroupId) -> Result<Option<String>, StoreError> {
    Ok(sql::query_scalar("SELECT tenant_id FROM groups WHERE id = ?")
        .bind(group.to_string())
        .fetch_one(tx)
        .await?)
}

pub(super) async fn record_lineage(
    tx: &mut WriteTx,
    lineage: LineageId,
    tenant: Option<&str>,
) -> Result<u64, StoreError> {
    change::record(tx, ResourceKind::Credential, &lineage.to_string(), tenant).await
}

fn credential(row: &Row) -> Result<CredentialRow, StoreError> {
    Ok(CredentialRow {
        id: from_id(row.try_get("id")?, "credentials")?,
        lineage: from_id(row.try_get("lineage_id")?, "credentials")?,
        group: from_id(row.try_get("group_id")?, "lineages")?,
        cell: from_id(row.try_get("cell")?, "lineages")?,
        issuer: row.try_get("issuer")?,
        state: row.try_get("state")?,
        names: from_json(row.try_get("names")?, "credentials: names")?,
        chain_pem: row.try_get("chain_pem")?,
        spki_sha256: row.try_get("spki_sha256")?,
        fingerprint_sha256: row.try_get("fingerprint_sha256")?,
        not_before: row.try_get("not_before")?,
        not_after: row.try_get("not_after")?,
        renew_at: row.try_get("renew_at")?,
    })
}

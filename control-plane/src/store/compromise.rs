//! Keys that others may have: which they are, and the revocation of their certificates.

use std::collections::BTreeSet;

use portico_api::v1::RekeyId;
use portico_cert_store::{CellId, CredentialId, GroupId, LineageId, TenantId};

use super::rekey::RekeyRow;
use super::sql::{QueryBuilder, Row};
use super::{Connection, IDS_PER_QUERY, StoreError, WriteTx, from_id, from_json, push_ids, sql};

/// Notes the keys of certificates that are part of a report. Answers those that nobody had reported before.
///
/// # Errors
/// The database's.
pub async fn note_keys_of(
    tx: &mut WriteTx,
    rekey: RekeyId,
    credentials: &[CredentialId],
    now_ms: i64,
) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut new = Vec::new();
    for some in credentials.chunks(IDS_PER_QUERY) {
        let mut query = QueryBuilder::new(
            "INSERT INTO compromised_keys (spki_sha256, rekey_id, reported_at) SELECT spki_sha256, ",
        );
        query.push_bind(rekey.to_string()).push(", ").push_bind(now_ms);
        query.push(" FROM credentials WHERE id IN (");
        push_ids(&mut query, some).push(") ON CONFLICT DO NOTHING RETURNING spki_sha256");
        for row in query.build().fetch_all(tx).await? {
            new.push(row.try_get("spki_sha256")?);
        }
    }
    Ok(new)
}

/// Notes keys by their public parts alone.
///
/// # Errors
/// The database's.
pub async fn note_keys(
    tx: &mut WriteTx,
    rekey: RekeyId,
    spki_sha256: &[Vec<u8>],
    now_ms: i64,
) -> Result<(), StoreError> {
    for key in spki_sha256 {
        sql::query(
            "INSERT INTO compromised_keys (spki_sha256, rekey_id, reported_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(key)
        .bind(rekey.to_string())
        .bind(now_ms)
        .execute(tx)
        .await?;
    }
    Ok(())
}

/// Keys that tenants brought, that edges of a reported cell could read, and that are not noted yet.
///
/// # Errors
/// The database's.
pub async fn unnoted_uploads(
    connection: &mut Connection,
    row: &RekeyRow,
) -> Result<Vec<Vec<u8>>, StoreError> {
    let Some((cell, epoch)) = row.cell.as_ref().filter(|_| row.compromised) else { return Ok(Vec::new()) };
    Ok(sql::query_scalar(
        "SELECT DISTINCT c.spki_sha256 FROM lineages l JOIN credentials c ON c.id = l.live_credential \
         WHERE l.custody = 'uploaded' AND l.retired_at IS NULL AND l.cell = ? AND c.cell_key_epoch < ? \
         AND NOT EXISTS (SELECT 1 FROM compromised_keys k WHERE k.spki_sha256 = c.spki_sha256) ORDER BY c.spki_sha256",
    )
    .bind(cell.as_str())
    .bind(i64::from(*epoch))
    .fetch_all(connection)
    .await?)
}

/// Whether a key was ever reported.
///
/// # Errors
/// The database's.
pub async fn is_compromised(connection: &mut Connection, spki_sha256: &[u8]) -> Result<bool, StoreError> {
    Ok(sql::query_scalar("SELECT EXISTS (SELECT 1 FROM compromised_keys WHERE spki_sha256 = ?)")
        .bind(spki_sha256.to_vec())
        .fetch_one(connection)
        .await?)
}

/// The cell whose keys were replaced since this one was sealed there, if there is one: an edge that is gone, or whoever the operator
/// thought of, could read it. Also where another took its place before, as long as that is known.
///
/// # Errors
/// The database's.
pub async fn exposed_in(
    connection: &mut Connection,
    spki_sha256: &[u8],
) -> Result<Option<String>, StoreError> {
    // From the key's own, which are few as a rule (CROSS JOIN keeps SQLite to the order).
    Ok(sql::query_scalar(
        "SELECT l.cell FROM credentials c CROSS JOIN lineages l CROSS JOIN \
         (SELECT cell, MAX(before_epoch) AS epoch FROM rekeys WHERE cell IS NOT NULL GROUP BY cell) r \
         WHERE c.spki_sha256 = ? AND l.id = c.lineage_id AND r.cell = l.cell AND c.cell_key_epoch < r.epoch \
         ORDER BY l.cell LIMIT 1",
    )
    .bind(spki_sha256.to_vec())
    .fetch_optional(connection)
    .await?)
}

/// How many certificates that tenants brought are in use with a key that a rekey of their cell is about.
///
/// # Errors
/// The database's.
pub async fn uploads_left(connection: &mut Connection, row: &RekeyRow) -> Result<u64, StoreError> {
    let Some((cell, epoch)) = &row.cell else { return Ok(0) };
    let count: i64 = sql::query_scalar(
        "SELECT COUNT(*) FROM lineages l JOIN credentials c ON c.id = l.live_credential \
         WHERE l.custody = 'uploaded' AND l.retired_at IS NULL AND l.cell = ? AND c.cell_key_epoch < ?",
    )
    .bind(cell.as_str())
    .bind(i64::from(*epoch))
    .fetch_one(connection)
    .await?;
    Ok(count.unsigned_abs())
}

/// Certificates that were made here for a key and have not ended, in use or not.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn of_key(
    connection: &mut Connection,
    spki_sha256: &[u8],
    now_ms: i64,
) -> Result<Vec<CredentialId>, StoreError> {
    let ids: Vec<String> = sql::query_scalar(
        "SELECT id FROM credentials WHERE spki_sha256 = ? AND custody = 'cell' AND not_after > ? ORDER BY id",
    )
    .bind(spki_sha256.to_vec())
    .bind(now_ms)
    .fetch_all(connection)
    .await?;
    ids.iter().map(|id| from_id(id, "credentials")).collect()
}

/// Uploaded certificates in use with one of these keys; each is one group.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn uploaded_groups(
    connection: &mut Connection,
    spki_sha256: &[Vec<u8>],
) -> Result<Vec<GroupId>, StoreError> {
    let mut found = Vec::new();
    for some in spki_sha256.chunks(IDS_PER_QUERY) {
        // From the keys, which are few: CROSS JOIN keeps SQLite to the order.
        let mut query = QueryBuilder::new(
            "SELECT DISTINCT l.group_id FROM credentials c CROSS JOIN lineages l WHERE l.id = c.lineage_id \
             AND l.live_credential = c.id AND l.retired_at IS NULL AND c.custody = 'uploaded' AND c.spki_sha256 IN (",
        );
        query.push_list(some).push(") ORDER BY l.group_id");
        for row in query.build().fetch_all(&mut *connection).await? {
            found.push(from_id(row.try_get("group_id")?, "lineages")?);
        }
    }
    Ok(found)
}

/// Whether somebody else than `tenant` has a certificate in use with this key; then whose it is (`None`: the operator's).
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn in_use_by_another(
    connection: &mut Connection,
    spki_sha256: &[u8],
    tenant: TenantId,
) -> Result<Option<Option<TenantId>>, StoreError> {
    let row = sql::query(
        "SELECT g.tenant_id FROM credentials c JOIN lineages l ON l.id = c.lineage_id AND l.live_credential = c.id \
         JOIN groups g ON g.id = l.group_id WHERE c.spki_sha256 = ? AND l.retired_at IS NULL \
         AND COALESCE(g.tenant_id, '') <> ? ORDER BY l.id LIMIT 1",
    )
    .bind(spki_sha256.to_vec())
    .bind(tenant.to_string())
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let other: Option<String> = row.try_get("tenant_id")?;
    Ok(Some(other.map(|id| from_id(&id, "groups")).transpose()?))
}

/// A certificate that is to be revoked.
#[derive(Clone, Debug)]
pub struct Revocable {
    pub credential: CredentialId,
    pub lineage: LineageId,
    pub cell: CellId,
    pub tenant: Option<TenantId>,
    pub issuer: String,
    /// URL of the account that ordered it.
    pub account: Option<String>,
    pub names: Vec<String>,
    pub chain_pem: String,
    /// Under the cell's data key; empty: it was forgotten.
    pub sealed_key: Vec<u8>,
    pub cell_key_epoch: u32,
    pub key_tenant: String,
    pub spki_sha256: Vec<u8>,
    pub attempts: u32,
    /// Another took its place.
    pub is_replaced: bool,
    pub reported_at: i64,
}

/// Which certificates are to be revoked.
#[derive(Clone, Copy, Debug)]
pub enum Of<'a> {
    /// These, of which the edges have a successor.
    Replaced(&'a [CredentialId]),
    /// All of these reports, whose time is up.
    Reports(&'a [RekeyId]),
}

/// Certificates of an issuer that were reported, are not revoked yet, have not ended and may be tried, by whose turn it is.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn revocable(
    connection: &mut Connection,
    issuer: &str,
    of: Of<'_>,
    now_ms: i64,
    most: u32,
) -> Result<Vec<Revocable>, StoreError> {
    let mut query = QueryBuilder::new(
        "SELECT c.id, c.lineage_id, l.cell, g.tenant_id, c.issuer, c.account, c.names, c.chain_pem, c.sealed_key, \
         c.cell_key_epoch, c.key_tenant, c.spki_sha256, i.revoke_attempts, i.replaced_at, r.requested_at FROM rekey_items i \
         JOIN rekeys r ON r.id = i.rekey_id AND r.compromised = 1 JOIN credentials c ON c.id = i.credential_id \
         JOIN lineages l ON l.id = c.lineage_id JOIN groups g ON g.id = l.group_id \
         WHERE i.revoked_at IS NULL AND i.revoke_next_at <= ",
    );
    query.push_bind(now_ms).push(" AND c.not_after > ").push_bind(now_ms);
    query.push(" AND c.issuer = ").push_bind(issuer);
    match of {
        Of::Replaced(credentials) => push_ids(query.push(" AND i.credential_id IN ("), credentials),
        Of::Reports(rekeys) => push_ids(query.push(" AND i.rekey_id IN ("), rekeys),
    };
    query.push(") ORDER BY i.revoke_next_at, r.requested_at, c.id LIMIT ").push_bind(most);
    let rows = query.build().fetch_all(connection).await?;
    let mut found = rows.iter().map(read).collect::<Result<Vec<Revocable>, StoreError>>()?;
    // One may be in several reports.
    let mut seen = BTreeSet::new();
    found.retain(|one| seen.insert(one.credential));
    Ok(found)
}

fn read(row: &Row) -> Result<Revocable, StoreError> {
    let tenant: Option<String> = row.try_get("tenant_id")?;
    Ok(Revocable {
        credential: from_id(row.try_get("id")?, "credentials")?,
        lineage: from_id(row.try_get("lineage_id")?, "credentials")?,
        cell: from_id(row.try_get("cell")?, "lineages")?,
        tenant: tenant.map(|tenant| from_id(&tenant, "groups")).transpose()?,
        issuer: row.try_get("issuer")?,
        account: row.try_get("account")?,
        names: from_json(row.try_get("names")?, "credentials: names")?,
        chain_pem: row.try_get("chain_pem")?,
        sealed_key: row.try_get("sealed_key")?,
        cell_key_epoch: row.try_get("cell_key_epoch")?,
        key_tenant: row.try_get("key_tenant")?,
        spki_sha256: row.try_get("spki_sha256")?,
        attempts: row.try_get("revoke_attempts")?,
        is_replaced: row.try_get::<Option<i64>>("replaced_at")?.is_some(),
        reported_at: row.try_get("requested_at")?,
    })
}

/// The CA has revoked it.
///
/// # Errors
/// The database's.
pub async fn set_revoked(tx: &mut WriteTx, credential: CredentialId, now_ms: i64) -> Result<(), StoreError> {
    sql::query(
        "UPDATE rekey_items SET revoked_at = ?, revoke_error = NULL WHERE credential_id = ? AND revoked_at IS NULL \
         AND rekey_id IN (SELECT id FROM rekeys WHERE compromised = 1)",
    )
    .bind(now_ms)
    .bind(credential.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// The CA has not; it is asked again at `next_at`.
///
/// # Errors
/// The database's.
pub async fn put_off(
    tx: &mut WriteTx,
    credential: CredentialId,
    error: &str,
    next_at: i64,
) -> Result<(), StoreError> {
    sql::query(
        "UPDATE rekey_items SET revoke_attempts = revoke_attempts + 1, revoke_error = ?, revoke_next_at = ? \
         WHERE credential_id = ? AND revoked_at IS NULL",
    )
    .bind(error)
    .bind(next_at)
    .bind(credential.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// Of a report: how many are revoked, and what the CA said of others, at most so many.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn revocations(
    connection: &mut Connection,
    row: &RekeyRow,
    most: u32,
) -> Result<(u64, Vec<(CredentialId, Vec<String>, String)>), StoreError> {
    let revoked: i64 = sql::query_scalar("SELECT COUNT(revoked_at) FROM rekey_items WHERE rekey_id = ?")
        .bind(row.id.to_string())
        .fetch_one(&mut *connection)
        .await?;
    let rows = sql::query(
        "SELECT c.id, c.names, i.revoke_error FROM rekey_items i JOIN credentials c ON c.id = i.credential_id \
         WHERE i.rekey_id = ? AND i.revoked_at IS NULL AND i.revoke_error IS NOT NULL ORDER BY c.id LIMIT ?",
    )
    .bind(row.id.to_string())
    .bind(most)
    .fetch_all(connection)
    .await?;
    let mut troubles = Vec::with_capacity(rows.len());
    for row in &rows {
        let names = from_json(row.try_get("names")?, "credentials: names")?;
        troubles.push((from_id(row.try_get("id")?, "credentials")?, names, row.try_get("revoke_error")?));
    }
    Ok((revoked.unsigned_abs(), troubles))
}

/// Certificates of a report that are not revoked, because their CA is no issuer of ours: how many, and some.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn of_other_issuers(
    connection: &mut Connection,
    rekey: RekeyId,
    issuers: &[&str],
    now_ms: i64,
    most: u32,
) -> Result<(u64, Vec<Owned>), StoreError> {
    let of = |columns: &str| {
        let mut query = QueryBuilder::new("SELECT ");
        query.push(columns).push(
            " FROM rekey_items i JOIN credentials c ON c.id = i.credential_id JOIN lineages l ON l.id = c.lineage_id \
             JOIN groups g ON g.id = l.group_id WHERE i.revoked_at IS NULL AND i.rekey_id = ",
        );
        query.push_bind(rekey.to_string()).push(" AND c.not_after > ").push_bind(now_ms);
        if !issuers.is_empty() {
            query.push(" AND c.issuer NOT IN (").push_list(issuers.iter().copied()).push(")");
        }
        query
    };
    let count = of("COUNT(*) AS count").build().fetch_one(&mut *connection).await?;
    let mut some = of("g.tenant_id, c.id, c.issuer, c.names");
    some.push(" ORDER BY c.id LIMIT ").push_bind(most);
    let rows = some.build().fetch_all(connection).await?;
    Ok((count.try_get::<i64>("count")?.unsigned_abs(), rows.iter().map(owned).collect::<Result<_, _>>()?))
}

/// Orders for what takes the place of these that are under way, or failed and wait, go now and before others.
///
/// # Errors
/// The database's.
pub async fn press_orders(
    tx: &mut WriteTx,
    credentials: &[CredentialId],
    now_ms: i64,
) -> Result<(), StoreError> {
    for some in credentials.chunks(IDS_PER_QUERY) {
        let mut query = QueryBuilder::new("UPDATE orders SET next_at = CASE WHEN next_at > ");
        query
            .push_bind(now_ms)
            .push(" THEN ")
            .push_bind(now_ms)
            .push(" ELSE next_at END, deadline = CASE WHEN deadline < ");
        query.push_bind(now_ms).push(" THEN deadline ELSE ").push_bind(now_ms);
        query.push(
            " END WHERE state <> 'issued' AND lineage_id IN (SELECT l.id FROM credentials c JOIN lineages l \
             ON l.id = c.lineage_id AND l.live_credential = c.id WHERE l.retired_at IS NULL AND c.id IN (",
        );
        push_ids(&mut query, some).push("))");
        query.build().execute(tx).await?;
    }
    Ok(())
}

/// A certificate and whose it is; `None`: the operator's.
#[derive(Clone, Debug)]
pub struct Owned {
    pub tenant: Option<TenantId>,
    pub credential: CredentialId,
    pub issuer: String,
    pub names: Vec<String>,
}

/// Whom certificates belong to.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn owners(
    connection: &mut Connection,
    credentials: &[CredentialId],
) -> Result<Vec<Owned>, StoreError> {
    let mut found = Vec::with_capacity(credentials.len());
    for some in credentials.chunks(IDS_PER_QUERY) {
        let mut query = QueryBuilder::new(
            "SELECT g.tenant_id, c.id, c.issuer, c.names FROM credentials c JOIN lineages l ON l.id = c.lineage_id \
             JOIN groups g ON g.id = l.group_id WHERE c.id IN (",
        );
        push_ids(&mut query, some).push(") ORDER BY c.id");
        for row in query.build().fetch_all(&mut *connection).await? {
            found.push(owned(&row)?);
        }
    }
    Ok(found)
}

fn owned(row: &Row) -> Result<Owned, StoreError> {
    let tenant: Option<String> = row.try_get("tenant_id")?;
    Ok(Owned {
        tenant: tenant.map(|tenant| from_id(&tenant, "groups")).transpose()?,
        credential: from_id(row.try_get("id")?, "credentials")?,
        issuer: row.try_get("issuer")?,
        names: from_json(row.try_get("names")?, "credentials: names")?,
    })
}

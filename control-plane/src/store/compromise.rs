//! Keys that others may have: which they are, and the revocation of their certificates.

use portico_api::v1::RekeyId;
use portico_cert_store::{CellId, CredentialId, LineageId, TenantId};

use super::rekey::RekeyRow;
use super::sql::Row;
use super::{Connection, StoreError, WriteTx, from_id, from_json, sql};

/// Notes the key of a certificate that is part of a report.
///
/// # Errors
/// The database's.
pub async fn note_key_of(
    tx: &mut WriteTx,
    rekey: RekeyId,
    credential: CredentialId,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO compromised_keys (spki_sha256, rekey_id, reported_at) \
         SELECT spki_sha256, ?, ? FROM credentials WHERE id = ? ON CONFLICT DO NOTHING",
    )
    .bind(rekey.to_string())
    .bind(now_ms)
    .bind(credential.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// Notes a key by its public part alone.
///
/// # Errors
/// The database's.
pub async fn note_key(
    tx: &mut WriteTx,
    rekey: RekeyId,
    spki_sha256: &[u8],
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO compromised_keys (spki_sha256, rekey_id, reported_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(spki_sha256.to_vec())
    .bind(rekey.to_string())
    .bind(now_ms)
    .execute(tx)
    .await?;
    Ok(())
}

/// Whether a key was ever reported.
///
/// # Errors
/// The database's.
pub async fn is_compromised(connection: &mut Connection, spki_sha256: &[u8]) -> Result<bool, StoreError> {
    let found: i64 = sql::query_scalar("SELECT COUNT(*) FROM compromised_keys WHERE spki_sha256 = ?")
        .bind(spki_sha256.to_vec())
        .fetch_one(connection)
        .await?;
    Ok(found > 0)
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

/// Certificates that edges of a cell could read under a key before `epoch` and that have not ended: those that were replaced since
/// among them, for their keys are as good to whoever has them.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn readable(
    connection: &mut Connection,
    cell: &CellId,
    epoch: u32,
    now_ms: i64,
) -> Result<Vec<CredentialId>, StoreError> {
    let ids: Vec<String> = sql::query_scalar(
        "SELECT c.id FROM credentials c JOIN lineages l ON l.id = c.lineage_id \
         WHERE l.cell = ? AND c.custody = 'cell' AND c.cell_key_epoch < ? AND c.not_after > ? ORDER BY c.id",
    )
    .bind(cell.as_str())
    .bind(i64::from(epoch))
    .bind(now_ms)
    .fetch_all(connection)
    .await?;
    ids.iter().map(|id| from_id(id, "credentials")).collect()
}

/// Uploaded certificates in use with a key; each is one lineage.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn uploaded_groups(
    connection: &mut Connection,
    spki_sha256: &[u8],
) -> Result<Vec<portico_cert_store::GroupId>, StoreError> {
    let ids: Vec<String> = sql::query_scalar(
        "SELECT DISTINCT l.group_id FROM credentials c JOIN lineages l ON l.live_credential = c.id \
         WHERE c.spki_sha256 = ? AND c.custody = 'uploaded' AND l.retired_at IS NULL ORDER BY l.group_id",
    )
    .bind(spki_sha256.to_vec())
    .fetch_all(connection)
    .await?;
    ids.iter().map(|id| from_id(id, "lineages")).collect()
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

/// Certificates of reports that are not revoked yet, have not ended and may be tried: those of `replaced`, of which the edges have a
/// successor, and all that were reported before `overdue_ms`.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn revocable(
    connection: &mut Connection,
    replaced: &[CredentialId],
    overdue_ms: i64,
    now_ms: i64,
    most: u32,
) -> Result<Vec<Revocable>, StoreError> {
    let mut query = sql::QueryBuilder::new(
        "SELECT c.id, c.lineage_id, l.cell, g.tenant_id, c.issuer, c.account, c.names, c.chain_pem, c.sealed_key, \
         c.cell_key_epoch, c.key_tenant, c.spki_sha256, MAX(i.revoke_attempts) AS attempts, \
         COUNT(i.replaced_at) AS replaced, MIN(r.requested_at) AS reported FROM rekey_items i \
         JOIN rekeys r ON r.id = i.rekey_id AND r.compromised = 1 JOIN credentials c ON c.id = i.credential_id \
         JOIN lineages l ON l.id = c.lineage_id JOIN groups g ON g.id = l.group_id \
         WHERE i.revoked_at IS NULL AND i.revoke_next_at <= ",
    );
    query.push_bind(now_ms).push(" AND c.not_after > ").push_bind(now_ms);
    query.push(" AND (r.requested_at <= ").push_bind(overdue_ms);
    if !replaced.is_empty() {
        query.push(" OR c.id IN (");
        super::push_ids(&mut query, replaced).push(")");
    }
    query.push(
        ") GROUP BY c.id, c.lineage_id, l.cell, g.tenant_id, c.issuer, c.account, c.names, c.chain_pem, c.sealed_key, \
         c.cell_key_epoch, c.key_tenant, c.spki_sha256 ORDER BY reported, c.id LIMIT ",
    );
    query.push_bind(most);
    query.build().fetch_all(connection).await?.iter().map(read).collect()
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
        attempts: row.try_get("attempts")?,
        is_replaced: row.try_get::<i64>("replaced")? > 0,
        reported_at: row.try_get("reported")?,
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

/// Of a report: how many are revoked, and what the CA said of others, at most 20.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn revocations(
    connection: &mut Connection,
    row: &RekeyRow,
) -> Result<(u64, Vec<(CredentialId, Vec<String>, String)>), StoreError> {
    let revoked: i64 = sql::query_scalar("SELECT COUNT(revoked_at) FROM rekey_items WHERE rekey_id = ?")
        .bind(row.id.to_string())
        .fetch_one(&mut *connection)
        .await?;
    let rows = sql::query(
        "SELECT c.id, c.names, i.revoke_error FROM rekey_items i JOIN credentials c ON c.id = i.credential_id \
         WHERE i.rekey_id = ? AND i.revoked_at IS NULL AND i.revoke_error IS NOT NULL ORDER BY c.id LIMIT 20",
    )
    .bind(row.id.to_string())
    .fetch_all(connection)
    .await?;
    let mut troubles = Vec::with_capacity(rows.len());
    for row in &rows {
        let names = from_json(row.try_get("names")?, "credentials: names")?;
        troubles.push((from_id(row.try_get("id")?, "credentials")?, names, row.try_get("revoke_error")?));
    }
    Ok((revoked.unsigned_abs(), troubles))
}

/// Orders of a report's lineages that are under way, or failed and wait, go now and before others.
///
/// # Errors
/// The database's.
pub async fn press_orders(tx: &mut WriteTx, rekey: RekeyId, now_ms: i64) -> Result<(), StoreError> {
    sql::query(
        "UPDATE orders SET next_at = CASE WHEN next_at > ?1 THEN ?1 ELSE next_at END, \
         deadline = CASE WHEN deadline < ?1 THEN deadline ELSE ?1 END WHERE state <> 'issued' AND lineage_id IN \
         (SELECT l.id FROM lineages l JOIN rekey_items i ON i.credential_id = l.live_credential \
          WHERE i.rekey_id = ?2 AND l.retired_at IS NULL)",
    )
    .bind(now_ms)
    .bind(rekey.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// Whom the certificates of a report belong to, with the names of each.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn owners(
    connection: &mut Connection,
    rekey: RekeyId,
) -> Result<Vec<(Option<TenantId>, CredentialId, Vec<String>)>, StoreError> {
    let rows = sql::query(
        "SELECT g.tenant_id, c.id, c.names FROM rekey_items i JOIN credentials c ON c.id = i.credential_id \
         JOIN lineages l ON l.id = c.lineage_id JOIN groups g ON g.id = l.group_id WHERE i.rekey_id = ? ORDER BY c.id",
    )
    .bind(rekey.to_string())
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let tenant: Option<String> = row.try_get("tenant_id")?;
            Ok((
                tenant.map(|tenant| from_id(&tenant, "groups")).transpose()?,
                from_id(row.try_get("id")?, "credentials")?,
                from_json(row.try_get("names")?, "credentials: names")?,
            ))
        })
        .collect()
}

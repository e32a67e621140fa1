//! Keys that are replaced before their time: what was asked for, and how far each certificate is.

use std::collections::HashMap;

use portico_api::distribution::ResourceKind;
use portico_api::v1::{RekeyId, RekeyScope};
use portico_cert_store::{CellId, CredentialId, EdgeId, LineageId, TenantId};

use super::sql::Row;
use super::{
    Connection, IDS_PER_QUERY, StoreError, WriteTx, credential, from_id, from_json, from_word, push_ids, sql,
    to_json, to_word,
};
use crate::clock::DAY_MS;
use crate::plan::renewal_info::Window;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct RekeyRow {
    pub id: RekeyId,
    pub scope: RekeyScope,
    /// The edge, cell, certificate or public key (SHA-256, hex).
    pub subject: String,
    /// Of an edge or a cell, with the epoch before which what is sealed is concerned.
    pub cell: Option<(CellId, u32)>,
    /// Others may have them: their certificates are revoked.
    pub compromised: bool,
    pub note: String,
    pub requested_by: String,
    /// Unix milliseconds.
    pub requested_at: i64,
    pub finished_at: Option<i64>,
    /// Edges that do not have yet what took the place of others.
    pub behind: Vec<EdgeId>,
}

/// How far one is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub certificates: u64,
    pub replaced: u64,
    pub retired: u64,
}

/// After a report, certificates are revoked within this time: the CA has to (Baseline Requirements, section 4.9.1.1).
pub const REVOKED_WITHIN_MS: i64 = DAY_MS;

impl RekeyRow {
    /// When the last of its certificates is revoked, whether or not it was replaced.
    pub fn revoked_by(&self) -> Option<i64> {
        self.compromised.then_some(self.requested_at.saturating_add(REVOKED_WITHIN_MS))
    }
}

/// That a certificate is to be replaced before its time. Unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// It is due since then.
    pub since: i64,
    /// It goes before others whose time is later.
    pub by: Option<i64>,
}

/// A certificate of which another took the place, whose key is not forgotten yet.
#[derive(Clone, Debug)]
pub struct Replaced {
    pub credential: CredentialId,
    pub lineage: LineageId,
    pub cell: CellId,
    /// The newest change of its lineage: an edge that has applied it has what took its place.
    pub sequence: u64,
    /// What is to become of it at its CA before its key is forgotten; `None`: nothing.
    pub revocation: Option<Revocation>,
}

/// That a certificate is to be revoked, as it was reported compromised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    pub issuer: String,
    /// Its CA may never have been one of ours.
    pub adopted: bool,
    pub fingerprint_sha256: Vec<u8>,
    /// Copies of the certificate, this one among them, that are in use, or that edges may show yet: an adopted one is in each cell that
    /// serves its names, and a CA revokes all of them at once.
    pub copies: u64,
    /// Unix milliseconds; the CA is not asked before.
    pub next_at: i64,
}

/// A certificate that still has to be replaced.
#[derive(Clone, Debug)]
pub struct Outstanding {
    pub credential: CredentialId,
    pub tenant: Option<TenantId>,
    pub issuer: String,
    pub names: Vec<String>,
    pub window: Option<Window>,
    /// What became of the last order, where it failed.
    pub trouble: Option<String>,
}

/// # Errors
/// The database's.
pub async fn insert(tx: &mut WriteTx, row: &RekeyRow) -> Result<(), StoreError> {
    let (cell, epoch) = row.cell.as_ref().map(|(cell, epoch)| (cell.as_str(), i64::from(*epoch))).unzip();
    sql::query(
        "INSERT INTO rekeys (id, scope, subject, cell, before_epoch, compromised, note, requested_by, requested_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(row.id.to_string())
    .bind(to_word(&row.scope)?)
    .bind(&row.subject)
    .bind(cell)
    .bind(epoch)
    .bind(row.compromised)
    .bind(&row.note)
    .bind(&row.requested_by)
    .bind(row.requested_at)
    .execute(tx)
    .await?;
    Ok(())
}

/// # Errors
/// The database's, or a row that cannot be read.
pub async fn find(connection: &mut Connection, id: RekeyId) -> Result<Option<RekeyRow>, StoreError> {
    let row = sql::query("SELECT * FROM rekeys WHERE id = ?")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read).transpose()
}

/// One that goes on.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn find_open(
    connection: &mut Connection,
    scope: RekeyScope,
    subject: &str,
    compromised: bool,
) -> Result<Option<RekeyRow>, StoreError> {
    let row = sql::query(
        "SELECT * FROM rekeys WHERE scope = ? AND subject = ? AND compromised = ? AND finished_at IS NULL",
    )
    .bind(to_word(&scope)?)
    .bind(subject)
    .bind(compromised)
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(read).transpose()
}

/// Those that go on, oldest first.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn open(connection: &mut Connection) -> Result<Vec<RekeyRow>, StoreError> {
    let rows = sql::query("SELECT * FROM rekeys WHERE finished_at IS NULL ORDER BY requested_at, id")
        .fetch_all(connection)
        .await?;
    rows.iter().map(read).collect()
}

/// The newest first, those before `before` (an id).
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn list(
    connection: &mut Connection,
    before: Option<&str>,
    limit: u32,
) -> Result<Vec<RekeyRow>, StoreError> {
    let rows = sql::query("SELECT * FROM rekeys WHERE id < ? ORDER BY id DESC LIMIT ?")
        .bind(before.unwrap_or("~"))
        .bind(limit)
        .fetch_all(connection)
        .await?;
    rows.iter().map(read).collect()
}

fn read(row: &Row) -> Result<RekeyRow, StoreError> {
    let cell: Option<String> = row.try_get("cell")?;
    let epoch: Option<i64> = row.try_get("before_epoch")?;
    let cell = cell.map(|cell| from_id(&cell, "rekeys")).transpose()?;
    Ok(RekeyRow {
        id: from_id(row.try_get("id")?, "rekeys")?,
        scope: from_word(row.try_get("scope")?, "rekeys")?,
        subject: row.try_get("subject")?,
        cell: cell.zip(epoch.and_then(|epoch| u32::try_from(epoch).ok())),
        compromised: row.try_get("compromised")?,
        note: row.try_get("note")?,
        requested_by: row.try_get("requested_by")?,
        requested_at: row.try_get("requested_at")?,
        finished_at: row.try_get("finished_at")?,
        behind: from_json(row.try_get("behind")?, "rekeys: behind")?,
    })
}

// ---- certificates ----

/// Adds certificates. One of which another took the place already counts as replaced.
///
/// # Errors
/// The database's.
pub async fn add(
    tx: &mut WriteTx,
    rekey: RekeyId,
    credentials: &[CredentialId],
    now_ms: i64,
) -> Result<(), StoreError> {
    for some in credentials.chunks(IDS_PER_QUERY) {
        let mut query =
            sql::QueryBuilder::new("INSERT INTO rekey_items (rekey_id, credential_id, replaced_at) SELECT ");
        query.push_bind(rekey.to_string());
        query.push(", c.id, CASE WHEN l.live_credential = c.id AND l.retired_at IS NULL THEN NULL ELSE ");
        query
            .push_bind(now_ms)
            .push(" END FROM credentials c JOIN lineages l ON l.id = c.lineage_id WHERE c.id IN (");
        push_ids(&mut query, some).push(") ON CONFLICT DO NOTHING");
        query.build().execute(tx).await?;
    }
    Ok(())
}

/// Those that a rekey of a cell lacks: at first all, later such as an order that was under way brought under the older key. Of a
/// report also what has one of their keys in other cells, and what was in use before. `changed_after`: only those of lineages
/// that changed after this change.
///
/// # Errors
/// The database's.
pub async fn lacking(
    connection: &mut Connection,
    row: &RekeyRow,
    changed_after: Option<u64>,
) -> Result<Vec<CredentialId>, StoreError> {
    let Some((cell, epoch)) = &row.cell else { return Ok(Vec::new()) };
    let mut query = sql::QueryBuilder::new(match row.compromised {
        true => "SELECT DISTINCT s.id FROM ",
        false => "SELECT s.id FROM ",
    });
    // What changed is few as a rule, so it comes first (CROSS JOIN keeps SQLite to the order).
    query.push(match changed_after {
        Some(_) => "changes h CROSS JOIN lineages l CROSS JOIN credentials c",
        None => "lineages l CROSS JOIN credentials c",
    });
    query.push(match row.compromised {
        true => " CROSS JOIN credentials s WHERE s.spki_sha256 = c.spki_sha256 AND c.custody IN ('cell', 'uploaded')",
        false => " CROSS JOIN credentials s WHERE s.id = c.id AND l.live_credential = c.id AND l.retired_at IS NULL",
    });
    query.push(" AND c.lineage_id = l.id AND l.cell = ").push_bind(cell.as_str());
    query.push(" AND c.cell_key_epoch < ").push_bind(*epoch);
    if row.compromised {
        query.push(" AND c.not_after > ").push_bind(row.requested_at);
        query.push(" AND s.not_after > ").push_bind(row.requested_at);
    }
    if let Some(sequence) = changed_after {
        query.push(" AND h.id = l.id AND h.kind = ").push_bind(ResourceKind::Credential as i32);
        query.push(" AND h.sequence > ").push_bind(i64::try_from(sequence).unwrap_or(i64::MAX));
    }
    query.push(" AND s.custody = 'cell' AND NOT EXISTS (SELECT 1 FROM rekey_items i WHERE i.credential_id = s.id AND i.rekey_id = ");
    query.push_bind(row.id.to_string()).push(") ORDER BY s.id");
    let rows = query.build().fetch_all(connection).await?;
    rows.iter().map(|row| from_id(row.try_get("id")?, "credentials")).collect()
}

/// Whether some order under way would still bring a certificate under an older key of the cell.
///
/// # Errors
/// The database's.
pub async fn has_orders(connection: &mut Connection, row: &RekeyRow) -> Result<bool, StoreError> {
    let Some((cell, epoch)) = &row.cell else { return Ok(false) };
    Ok(sql::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM orders o JOIN lineages l ON l.id = o.lineage_id \
         WHERE o.state NOT IN ('issued', 'failed') AND l.cell = ? AND o.cell_key_epoch < ?)",
    )
    .bind(cell.as_str())
    .bind(i64::from(*epoch))
    .fetch_one(connection)
    .await?)
}

/// Live certificates that are to be replaced before their time.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn wanted(connection: &mut Connection) -> Result<HashMap<CredentialId, Wanted>, StoreError> {
    let rows = sql::query(
        "SELECT i.credential_id, MIN(r.requested_at) AS since, \
         MIN(CASE WHEN r.compromised = 1 THEN r.requested_at END) AS wanted_by FROM rekey_items i JOIN rekeys r ON r.id = i.rekey_id \
         WHERE i.retired_at IS NULL AND i.replaced_at IS NULL GROUP BY i.credential_id",
    )
    .fetch_all(connection)
    .await?;
    let wanted = |row: &Row| {
        let wanted = Wanted { since: row.try_get("since")?, by: row.try_get("wanted_by")? };
        Ok((from_id(row.try_get("credential_id")?, "rekey_items")?, wanted))
    };
    rows.iter().map(wanted).collect()
}

/// Whether a certificate is to be replaced whatever follows it.
///
/// # Errors
/// The database's.
pub async fn is_wanted(connection: &mut Connection, credential: CredentialId) -> Result<bool, StoreError> {
    Ok(sql::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM rekey_items WHERE credential_id = ? AND retired_at IS NULL AND replaced_at IS NULL)",
    )
    .bind(credential.to_string())
    .fetch_one(connection)
    .await?)
}

/// By when a certificate is revoked, in use or not; `None`: it is not.
///
/// # Errors
/// The database's.
pub async fn revoked_by(
    connection: &mut Connection,
    credential: CredentialId,
) -> Result<Option<i64>, StoreError> {
    let reported: Option<i64> = sql::query_scalar(
        "SELECT MIN(r.requested_at) FROM rekey_items i JOIN rekeys r ON r.id = i.rekey_id AND r.compromised = 1 \
         WHERE i.credential_id = ? AND i.retired_at IS NULL",
    )
    .bind(credential.to_string())
    .fetch_one(connection)
    .await?;
    Ok(reported.map(|at| at.saturating_add(REVOKED_WITHIN_MS)))
}

/// Whether there is something for [`note_replaced`].
///
/// # Errors
/// The database's.
pub async fn some_replaced(
    connection: &mut Connection,
    changed_after: Option<u64>,
) -> Result<bool, StoreError> {
    let mut query = sql::QueryBuilder::new("SELECT 1 FROM rekey_items WHERE ");
    push_replaced(&mut query, changed_after);
    query.push(" LIMIT 1");
    Ok(query.build().fetch_optional(connection).await?.is_some())
}

/// Notes of which another took the place. `changed_after`: of lineages that changed after this change, for no other has a
/// certificate that it had not before.
///
/// # Errors
/// The database's.
pub async fn note_replaced(
    tx: &mut WriteTx,
    changed_after: Option<u64>,
    now_ms: i64,
) -> Result<(), StoreError> {
    let mut query = sql::QueryBuilder::new("UPDATE rekey_items SET replaced_at = ");
    query.push_bind(now_ms).push(" WHERE ");
    push_replaced(&mut query, changed_after);
    query.build().execute(tx).await?;
    Ok(())
}

fn push_replaced(query: &mut sql::QueryBuilder, changed_after: Option<u64>) {
    query.push(
        "retired_at IS NULL AND replaced_at IS NULL AND NOT EXISTS (SELECT 1 FROM credentials c \
         JOIN lineages l ON l.id = c.lineage_id WHERE c.id = rekey_items.credential_id AND l.live_credential = c.id \
         AND l.retired_at IS NULL)",
    );
    if let Some(sequence) = changed_after {
        query.push(
            " AND credential_id IN (SELECT c.id FROM changes h CROSS JOIN credentials c \
             WHERE c.lineage_id = h.id AND h.kind = ",
        );
        query.push_bind(ResourceKind::Credential as i32).push(" AND h.sequence > ");
        query.push_bind(i64::try_from(sequence).unwrap_or(i64::MAX)).push(")");
    }
}

/// Those of which another took the place and whose keys are not forgotten yet, of one rekey.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn replaced(
    connection: &mut Connection,
    rekey: RekeyId,
    now_ms: i64,
    most: u32,
) -> Result<Vec<Replaced>, StoreError> {
    let rows = sql::query(
        "SELECT i.credential_id, i.revoke_next_at, c.lineage_id, c.issuer, c.adopted, c.fingerprint_sha256, l.cell, \
         COALESCE(h.sequence, 0) AS sequence, (SELECT COUNT(*) FROM credentials o JOIN lineages m ON m.id = o.lineage_id \
          WHERE o.spki_sha256 = c.spki_sha256 AND o.fingerprint_sha256 = c.fingerprint_sha256 \
          AND ((m.live_credential = o.id AND m.retired_at IS NULL) OR EXISTS (SELECT 1 FROM rekey_items y \
          WHERE y.credential_id = o.id AND y.retired_at IS NULL))) AS copies, \
         CASE WHEN c.not_after > ? AND EXISTS (SELECT 1 FROM rekey_items x JOIN rekeys r ON r.id = x.rekey_id AND r.compromised = 1 \
         WHERE x.credential_id = c.id AND x.revoked_at IS NULL) THEN 1 ELSE 0 END AS revoke_first FROM rekey_items i \
         JOIN credentials c ON c.id = i.credential_id JOIN lineages l ON l.id = c.lineage_id \
         LEFT JOIN changes h ON h.kind = ? AND h.id = l.id \
         WHERE i.rekey_id = ? AND i.replaced_at IS NOT NULL AND i.retired_at IS NULL ORDER BY i.replaced_at, c.id LIMIT ?",
    )
    .bind(now_ms)
    .bind(ResourceKind::Credential as i32)
    .bind(rekey.to_string())
    .bind(most)
    .fetch_all(connection)
    .await?;
    rows.iter().map(read_replaced).collect()
}

fn read_replaced(row: &Row) -> Result<Replaced, StoreError> {
    let revocation = || {
        Ok::<_, StoreError>(Revocation {
            issuer: row.try_get("issuer")?,
            adopted: row.try_get("adopted")?,
            fingerprint_sha256: row.try_get("fingerprint_sha256")?,
            copies: row.try_get::<i64>("copies")?.unsigned_abs(),
            next_at: row.try_get("revoke_next_at")?,
        })
    };
    Ok(Replaced {
        credential: from_id(row.try_get("credential_id")?, "rekey_items")?,
        lineage: from_id(row.try_get("lineage_id")?, "credentials")?,
        cell: from_id(row.try_get("cell")?, "lineages")?,
        sequence: row.try_get::<i64>("sequence")?.unsigned_abs(),
        revocation: if row.try_get("revoke_first")? { Some(revocation()?) } else { None },
    })
}

/// Edges that refuse what a lineage has.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn refusals(connection: &mut Connection) -> Result<HashMap<LineageId, Vec<EdgeId>>, StoreError> {
    let rows = sql::query("SELECT id, edge_id FROM edge_nacks WHERE kind = ?")
        .bind(i64::from(ResourceKind::Credential as i32))
        .fetch_all(connection)
        .await?;
    let mut found: HashMap<LineageId, Vec<EdgeId>> = HashMap::new();
    for row in &rows {
        let lineage = from_id(row.try_get("id")?, "edge_nacks")?;
        found.entry(lineage).or_default().push(from_id(row.try_get("edge_id")?, "edge_nacks")?);
    }
    Ok(found)
}

/// The edges have what took its place: its key is forgotten, and in each rekey that it is a part of nothing is left to do.
///
/// # Errors
/// The database's.
pub async fn retire(tx: &mut WriteTx, credential: CredentialId, now_ms: i64) -> Result<(), StoreError> {
    sql::query("UPDATE rekey_items SET retired_at = ? WHERE credential_id = ? AND retired_at IS NULL")
        .bind(now_ms)
        .bind(credential.to_string())
        .execute(tx)
        .await?;
    let state: Option<String> = sql::query_scalar("SELECT state FROM credentials WHERE id = ?")
        .bind(credential.to_string())
        .fetch_optional(tx)
        .await?;
    if state.is_some_and(|state| state != "live") {
        credential::forget_key(tx, credential).await?;
    }
    Ok(())
}

/// Whether there is a certificate of one of which something is left to do.
///
/// # Errors
/// The database's.
pub async fn is_unfinished(connection: &mut Connection, rekey: RekeyId) -> Result<bool, StoreError> {
    Ok(sql::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM rekey_items WHERE rekey_id = ? AND retired_at IS NULL)",
    )
    .bind(rekey.to_string())
    .fetch_one(connection)
    .await?)
}

/// # Errors
/// The database's.
pub async fn progress(connection: &mut Connection, rekey: RekeyId) -> Result<Progress, StoreError> {
    let row = sql::query(
        "SELECT COUNT(*) AS certificates, COUNT(replaced_at) AS replaced, COUNT(retired_at) AS retired \
         FROM rekey_items WHERE rekey_id = ?",
    )
    .bind(rekey.to_string())
    .fetch_one(connection)
    .await?;
    let count = |column| Ok::<_, StoreError>(row.try_get::<i64>(column)?.unsigned_abs());
    Ok(Progress {
        certificates: count("certificates")?,
        replaced: count("replaced")?,
        retired: count("retired")?,
    })
}

/// # Errors
/// The database's.
pub async fn set_behind(tx: &mut WriteTx, rekey: RekeyId, behind: &[EdgeId]) -> Result<(), StoreError> {
    sql::query("UPDATE rekeys SET behind = ? WHERE id = ?")
        .bind(to_json(&behind)?)
        .bind(rekey.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// # Errors
/// The database's.
pub async fn finish(tx: &mut WriteTx, rekey: RekeyId, now_ms: i64) -> Result<(), StoreError> {
    sql::query("UPDATE rekeys SET finished_at = ?, behind = '[]' WHERE id = ?")
        .bind(now_ms)
        .bind(rekey.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// Certificates of these, as far as they are in use, for a forecast.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn outstanding(
    connection: &mut Connection,
    credentials: &[CredentialId],
) -> Result<Vec<Outstanding>, StoreError> {
    let mut found = Vec::with_capacity(credentials.len());
    for some in credentials.chunks(IDS_PER_QUERY) {
        let mut query = sql::QueryBuilder::new(
            "SELECT c.id, c.issuer, c.names, c.window_start, c.window_end, g.tenant_id, o.error FROM credentials c \
             JOIN lineages l ON l.id = c.lineage_id AND l.live_credential = c.id JOIN groups g ON g.id = l.group_id \
             LEFT JOIN orders o ON o.lineage_id = l.id AND o.credential_id <> c.id AND NOT EXISTS \
             (SELECT 1 FROM orders n WHERE n.lineage_id = l.id AND n.id > o.id) WHERE c.id IN (",
        );
        push_ids(&mut query, some).push(") ORDER BY c.id");
        for row in query.build().fetch_all(&mut *connection).await? {
            let tenant: Option<String> = row.try_get("tenant_id")?;
            found.push(Outstanding {
                credential: from_id(row.try_get("id")?, "credentials")?,
                tenant: tenant.map(|tenant| from_id(&tenant, "groups")).transpose()?,
                issuer: row.try_get("issuer")?,
                names: from_json(row.try_get("names")?, "credentials: names")?,
                window: super::renewal_info::window(&row)?,
                trouble: row.try_get("error")?,
            });
        }
    }
    Ok(found)
}

/// Certificates of one that are still to be replaced.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn not_replaced(
    connection: &mut Connection,
    rekey: RekeyId,
) -> Result<Vec<CredentialId>, StoreError> {
    let ids: Vec<String> = sql::query_scalar(
        "SELECT credential_id FROM rekey_items WHERE rekey_id = ? AND replaced_at IS NULL AND retired_at IS NULL ORDER BY credential_id",
    )
    .bind(rekey.to_string())
    .fetch_all(connection)
    .await?;
    ids.iter().map(|id| from_id(id, "rekey_items")).collect()
}

/// The cell of an edge, of one that was taken out too, and for such a one the first key of the cell that it never had.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn cell_of_edge(
    connection: &mut Connection,
    edge: EdgeId,
) -> Result<Option<(CellId, Option<u32>)>, StoreError> {
    let row = sql::query("SELECT cell, removed_at FROM edges WHERE id = ?")
        .bind(edge.to_string())
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let cell: CellId = from_id(row.try_get("cell")?, "edges")?;
    let Some(removed_at) = row.try_get::<Option<i64>>("removed_at")? else { return Ok(Some((cell, None))) };
    let epoch: Option<u32> =
        sql::query_scalar("SELECT MIN(epoch) FROM cell_keys WHERE cell = ? AND created_at >= ?")
            .bind(cell.as_str())
            .bind(removed_at)
            .fetch_one(connection)
            .await?;
    Ok(Some((cell, epoch)))
}

//! Edges, their join tokens, what they refused, and the internal CA that names them.

use portico_api::distribution::ResourceKind;
use portico_cert_store::{CellId, DomainId, EdgeId, Generation};

use super::sql::{QueryBuilder, Row};
use super::{Connection, StoreError, WriteTx, from_id, from_json, push_ids, sql, to_json};

/// Refusals kept for one edge; an edge that refuses more than this has one fault, not a thousand.
const NACKS_PER_EDGE_MAX: i64 = 1_000;

/// An edge that has joined and was not removed.
#[derive(Clone, Debug)]
pub struct EdgeRow {
    pub id: EdgeId,
    pub cell: CellId,
    pub hpke_public_key: Vec<u8>,
    pub identity_not_after_ms: i64,
    pub build: String,
    pub io_backend: String,
    /// As the edge reported them: `address:port`.
    pub listeners: Vec<String>,
    pub applied: Generation,
    pub connections: u64,
    pub names: u64,
    pub joined_at_ms: i64,
    pub last_seen_at_ms: Option<i64>,
}

/// A one-time permission to join, as it is stored.
#[derive(Clone, Debug)]
pub struct JoinTokenRow {
    pub id: String,
    pub secret_sha256: Vec<u8>,
    pub cell: CellId,
    pub expires_at_ms: i64,
    pub used_at_ms: Option<i64>,
}

/// A resource (or with kind 0 a batch) that an edge refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NackRow {
    pub kind: u32,
    pub id: String,
    pub version: u64,
    pub code: String,
    pub text: String,
}

/// What an edge last said of itself.
#[derive(Clone, Debug)]
pub struct Observation {
    pub edge: EdgeId,
    pub applied: Generation,
    pub io_backend: String,
    pub listeners: Vec<String>,
    pub connections: u64,
    pub names: u64,
    pub seen_at_ms: i64,
}

/// The stored authority: certificate (DER) and sealed key.
///
/// # Errors
/// The database's.
pub async fn internal_ca(connection: &mut Connection) -> Result<Option<(Vec<u8>, Vec<u8>)>, StoreError> {
    let row = sql::query("SELECT certificate, sealed_key FROM internal_ca WHERE id = 1")
        .fetch_optional(connection)
        .await?;
    row.map(|row| Ok((row.try_get("certificate")?, row.try_get("sealed_key")?))).transpose()
}

/// Stores the authority, once.
///
/// # Errors
/// The database's; a second authority is one.
pub async fn insert_internal_ca(
    tx: &mut WriteTx,
    certificate: &[u8],
    sealed_key: &[u8],
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query("INSERT INTO internal_ca (id, certificate, sealed_key, created_at) VALUES (1, ?, ?, ?)")
        .bind(certificate)
        .bind(sealed_key)
        .bind(now_ms)
        .execute(tx)
        .await?;
    Ok(())
}

/// # Errors
/// The database's.
pub async fn insert_join_token(
    tx: &mut WriteTx,
    token: &JoinTokenRow,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO join_tokens (id, secret_sha256, cell, created_at, expires_at) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(&token.id)
    .bind(&token.secret_sha256)
    .bind(token.cell.as_str())
    .bind(now_ms)
    .bind(token.expires_at_ms)
    .execute(tx)
    .await?;
    Ok(())
}

/// # Errors
/// The database's.
pub async fn find_join_token(
    connection: &mut Connection,
    id: &str,
) -> Result<Option<JoinTokenRow>, StoreError> {
    let row = sql::query("SELECT id, secret_sha256, cell, expires_at, used_at FROM join_tokens WHERE id = ?")
        .bind(id)
        .fetch_optional(connection)
        .await?;
    row.map(|row| {
        Ok(JoinTokenRow {
            id: row.try_get("id")?,
            secret_sha256: row.try_get("secret_sha256")?,
            cell: from_id(row.try_get("cell")?, "join_tokens")?,
            expires_at_ms: row.try_get("expires_at")?,
            used_at_ms: row.try_get("used_at")?,
        })
    })
    .transpose()
}

/// Spends a token; `false` when another has spent it before.
///
/// # Errors
/// The database's.
pub async fn use_join_token(
    tx: &mut WriteTx,
    id: &str,
    edge: EdgeId,
    now_ms: i64,
) -> Result<bool, StoreError> {
    let done = sql::query("UPDATE join_tokens SET used_at = ?, used_by = ? WHERE id = ? AND used_at IS NULL")
        .bind(now_ms)
        .bind(edge.to_string())
        .bind(id)
        .execute(tx)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Forgets tokens that expired before `before_ms`.
///
/// # Errors
/// The database's.
pub async fn drop_expired_join_tokens(tx: &mut WriteTx, before_ms: i64) -> Result<(), StoreError> {
    sql::query("DELETE FROM join_tokens WHERE expires_at < ?").bind(before_ms).execute(tx).await?;
    Ok(())
}

/// Adds an edge that has just joined.
///
/// # Errors
/// The database's.
pub async fn insert(tx: &mut WriteTx, edge: &EdgeRow, serial: &str) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO edges (id, cell, hpke_public_key, certificate_serial, identity_not_after, build, joined_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(edge.id.to_string())
    .bind(edge.cell.as_str())
    .bind(&edge.hpke_public_key)
    .bind(serial)
    .bind(edge.identity_not_after_ms)
    .bind(&edge.build)
    .bind(edge.joined_at_ms)
    .execute(tx)
    .await?;
    Ok(())
}

/// Notes an edge's next identity.
///
/// # Errors
/// The database's.
pub async fn renewed(
    tx: &mut WriteTx,
    id: EdgeId,
    serial: &str,
    not_after_ms: i64,
) -> Result<(), StoreError> {
    sql::query("UPDATE edges SET certificate_serial = ?, identity_not_after = ? WHERE id = ?")
        .bind(serial)
        .bind(not_after_ms)
        .bind(id.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// Notes what an edge's Hello said.
///
/// # Errors
/// The database's.
pub async fn greeted(
    tx: &mut WriteTx,
    id: EdgeId,
    build: &str,
    hpke_public_key: &[u8],
) -> Result<(), StoreError> {
    sql::query("UPDATE edges SET build = ?, hpke_public_key = ? WHERE id = ?")
        .bind(build)
        .bind(hpke_public_key)
        .bind(id.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// Notes what an edge last said of itself.
///
/// # Errors
/// The database's.
pub async fn observed(tx: &mut WriteTx, seen: &Observation) -> Result<(), StoreError> {
    sql::query(
        "UPDATE edges SET applied_epoch = ?, applied_sequence = ?, io_backend = ?, listeners = ?, connections = ?, \
         names = ?, last_seen_at = ? WHERE id = ?",
    )
    .bind(signed(seen.applied.epoch))
    .bind(signed(seen.applied.sequence))
    .bind(&seen.io_backend)
    .bind(to_json(&seen.listeners)?)
    .bind(signed(seen.connections))
    .bind(signed(seen.names))
    .bind(seen.seen_at_ms)
    .bind(seen.edge.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// The edge, unless it was removed.
///
/// # Errors
/// The database's.
pub async fn find(connection: &mut Connection, id: EdgeId) -> Result<Option<EdgeRow>, StoreError> {
    let row = sql::query("SELECT * FROM edges WHERE id = ? AND removed_at IS NULL")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read).transpose()
}

/// All edges that were not removed, by id.
///
/// # Errors
/// The database's.
pub async fn all(connection: &mut Connection) -> Result<Vec<EdgeRow>, StoreError> {
    let rows =
        sql::query("SELECT * FROM edges WHERE removed_at IS NULL ORDER BY id").fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

/// Takes an edge out of the fleet; `false` when there is none of that id.
///
/// # Errors
/// The database's.
pub async fn remove(tx: &mut WriteTx, id: EdgeId, now_ms: i64) -> Result<bool, StoreError> {
    let done = sql::query("UPDATE edges SET removed_at = ? WHERE id = ? AND removed_at IS NULL")
        .bind(now_ms)
        .bind(id.to_string())
        .execute(tx)
        .await?;
    if done.rows_affected() == 1 {
        sql::query("DELETE FROM edge_nacks WHERE edge_id = ?").bind(id.to_string()).execute(tx).await?;
    }
    Ok(done.rows_affected() == 1)
}

/// Notes a refusal over an older one of the same resource.
///
/// # Errors
/// The database's.
pub async fn put_nack(tx: &mut WriteTx, edge: EdgeId, nack: &NackRow, now_ms: i64) -> Result<(), StoreError> {
    let kept: i64 = sql::query_scalar("SELECT COUNT(*) FROM edge_nacks WHERE edge_id = ?")
        .bind(edge.to_string())
        .fetch_one(tx)
        .await?;
    if kept >= NACKS_PER_EDGE_MAX {
        return Ok(());
    }
    sql::query(
        "INSERT INTO edge_nacks (edge_id, kind, id, version, code, text, at) VALUES (?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (edge_id, kind, id) DO UPDATE SET version = excluded.version, code = excluded.code, \
         text = excluded.text, at = excluded.at",
    )
    .bind(edge.to_string())
    .bind(nack.kind)
    .bind(&nack.id)
    .bind(signed(nack.version))
    .bind(&nack.code)
    .bind(&nack.text)
    .bind(now_ms)
    .execute(tx)
    .await?;
    Ok(())
}

/// Forgets one refusal: the edge has taken a newer version, or lost the resource.
///
/// # Errors
/// The database's.
pub async fn clear_nack(tx: &mut WriteTx, edge: EdgeId, kind: u32, id: &str) -> Result<(), StoreError> {
    sql::query("DELETE FROM edge_nacks WHERE edge_id = ? AND kind = ? AND id = ?")
        .bind(edge.to_string())
        .bind(kind)
        .bind(id)
        .execute(tx)
        .await?;
    Ok(())
}

/// What an edge refuses at present.
///
/// # Errors
/// The database's.
pub async fn nacks(connection: &mut Connection, edge: EdgeId) -> Result<Vec<NackRow>, StoreError> {
    let rows = sql::query(
        "SELECT kind, id, version, code, text FROM edge_nacks WHERE edge_id = ? ORDER BY kind, id",
    )
    .bind(edge.to_string())
    .fetch_all(connection)
    .await?;
    rows.iter().map(read_nack).collect()
}

/// A refusal that keeps a domain from being served as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub domain: DomainId,
    pub edge: EdgeId,
    pub nack: NackRow,
    pub at_ms: i64,
}

/// What edges refuse at present of these domains: a domain itself, a credential that covers it, its tenant, or what its tenant
/// shows to origins.
///
/// # Errors
/// The database's.
pub async fn refusals_of(
    connection: &mut Connection,
    domains: &[DomainId],
) -> Result<Vec<Refusal>, StoreError> {
    // Refusals are few and mostly none, so each part begins with them (CROSS JOIN keeps SQLite to the order).
    let parts = [
        (ResourceKind::Domain, "n.id", " WHERE"),
        (
            ResourceKind::Credential,
            "o.domain_id",
            " CROSS JOIN lineage_names o WHERE o.lineage_id = n.id AND",
        ),
        (ResourceKind::Tenant, "o.id", " CROSS JOIN domains o WHERE o.tenant_id = n.id AND"),
        (
            ResourceKind::OriginIdentity,
            "o.id",
            " CROSS JOIN origin_identities i CROSS JOIN domains o WHERE i.id = n.id AND o.tenant_id = i.tenant_id AND",
        ),
    ];
    let mut query = QueryBuilder::new("");
    for (index, (kind, domain, join)) in parts.into_iter().enumerate() {
        query.push(if index == 0 { "" } else { " UNION ALL " });
        query.push(format!("SELECT {domain} AS domain_id, n.* FROM edge_nacks n{join} n.kind = "));
        query.push_bind(kind as i32).push(format!(" AND {domain} IN ("));
        push_ids(&mut query, domains).push(")");
    }
    query.push(" ORDER BY 1, 2, 3");
    let rows = query.build().fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            Ok(Refusal {
                domain: from_id(row.try_get("domain_id")?, "edge_nacks")?,
                edge: from_id(row.try_get("edge_id")?, "edge_nacks")?,
                nack: read_nack(row)?,
                at_ms: row.try_get("at")?,
            })
        })
        .collect()
}

fn read(row: &Row) -> Result<EdgeRow, StoreError> {
    Ok(EdgeRow {
        id: from_id(row.try_get("id")?, "edges")?,
        cell: from_id(row.try_get("cell")?, "edges")?,
        hpke_public_key: row.try_get("hpke_public_key")?,
        identity_not_after_ms: row.try_get("identity_not_after")?,
        build: row.try_get("build")?,
        io_backend: row.try_get("io_backend")?,
        listeners: from_json(row.try_get("listeners")?, "edges: listeners")?,
        applied: Generation {
            epoch: unsigned(row, "applied_epoch")?,
            sequence: unsigned(row, "applied_sequence")?,
        },
        connections: unsigned(row, "connections")?,
        names: unsigned(row, "names")?,
        joined_at_ms: row.try_get("joined_at")?,
        last_seen_at_ms: row.try_get("last_seen_at")?,
    })
}

fn read_nack(row: &Row) -> Result<NackRow, StoreError> {
    Ok(NackRow {
        kind: row.try_get("kind")?,
        id: row.try_get("id")?,
        version: unsigned(row, "version")?,
        code: row.try_get("code")?,
        text: row.try_get("text")?,
    })
}

fn unsigned(row: &Row, column: &str) -> Result<u64, StoreError> {
    Ok(row.try_get::<i64>(column)?.unsigned_abs())
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

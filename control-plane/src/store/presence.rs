//! What the watch over DNS knows of each served name, and the keys that go with names that have left.
//!
//! A row begins with service ([`begin`]) and ends with it ([`end`]). Of a retired name the credentials that hold it are
//! noted ([`doom_keys`], [`sweep`]); once nothing refers to one of them any more, its key is destroyed ([`destroy_key`]) with the
//! order that made it. The certificates themselves stay: they hold nothing secret, and say what was public for how long.

use std::collections::BTreeMap;

use portico_cert_store::{CredentialId, DomainId, TenantId};

use super::sql::Row;
use super::{Connection, StoreError, WriteTx, credential, from_id, from_json, sql};
use crate::plan::presence::Standing;

/// How many names stand where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub here: u64,
    pub away: u64,
    pub left: u64,
    pub retired: u64,
}

impl Counts {
    /// Names that no longer lead here and are not retired yet, and all that led here once and are not retired.
    pub fn away_of(&self) -> (u64, u64) {
        let away = self.away + self.left;
        (away, away + self.here)
    }
}

/// A credential whose key is to be destroyed, with the domain that it was doomed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoomedKey {
    pub credential: CredentialId,
    pub domain: DomainId,
    pub tenant: Option<TenantId>,
    /// The domain's; `None`: it is gone for good.
    pub name: Option<String>,
    /// As in the certificate: others' names may be among them.
    pub names: Vec<String>,
}

/// The name is served from now on; what is known of it already stays.
///
/// # Errors
/// The database's.
pub async fn begin(tx: &mut WriteTx, domain: DomainId, now_ms: i64) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO presences (domain_id, state, since, next_look_at) VALUES (?, 'never', ?, ?) \
         ON CONFLICT (domain_id) DO NOTHING",
    )
    .bind(domain.to_string())
    .bind(now_ms)
    .bind(now_ms)
    .execute(tx)
    .await?;
    Ok(())
}

/// The name is served no longer for this domain.
///
/// # Errors
/// The database's.
pub async fn end(tx: &mut WriteTx, domain: DomainId) -> Result<(), StoreError> {
    sql::query("DELETE FROM presences WHERE domain_id = ?").bind(domain.to_string()).execute(tx).await?;
    Ok(())
}

/// Domains to look at by `now_ms`, the longest overdue of each tenant first: one with many names, or slow name servers, holds
/// up nobody else's.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn due(connection: &mut Connection, now_ms: i64, limit: u32) -> Result<Vec<DomainId>, StoreError> {
    let ids: Vec<String> = sql::query_scalar(
        "SELECT domain_id FROM (SELECT p.domain_id, p.next_look_at, ROW_NUMBER() OVER (PARTITION BY d.tenant_id \
         ORDER BY p.next_look_at) AS turn FROM presences p JOIN domains d ON d.id = p.domain_id \
         WHERE p.next_look_at <= ?) AS due ORDER BY turn, next_look_at LIMIT ?",
    )
    .bind(now_ms)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    ids.iter().map(|id| from_id(id, "presences")).collect()
}

/// `None`: the name is not watched.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn find(connection: &mut Connection, domain: DomainId) -> Result<Option<Standing>, StoreError> {
    let row = sql::query("SELECT * FROM presences WHERE domain_id = ?")
        .bind(domain.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read).transpose()
}

/// Writes where the name stands; nothing where it is not watched.
///
/// # Errors
/// The database's.
pub async fn put(
    tx: &mut WriteTx,
    domain: DomainId,
    standing: Standing,
    next_look_at: i64,
) -> Result<(), StoreError> {
    let (state, since, looks, left_at, retired_at) = match standing {
        Standing::Never { since } => ("never", since, 0, None, None),
        Standing::Here { since } => ("here", since, 0, None, None),
        Standing::Away { since, looks } => ("away", since, looks, None, None),
        Standing::Left { since, looks, at } => ("left", since, looks, Some(at), None),
        Standing::Retired { since, looks, left_at, at } => ("retired", since, looks, Some(left_at), Some(at)),
    };
    sql::query(
        "UPDATE presences SET state = ?, since = ?, looks = ?, left_at = ?, retired_at = ?, next_look_at = ?, \
         swept = CASE WHEN retired_at = ? THEN swept ELSE 0 END WHERE domain_id = ?",
    )
    .bind(state)
    .bind(since)
    .bind(looks)
    .bind(left_at)
    .bind(retired_at)
    .bind(next_look_at)
    .bind(retired_at)
    .bind(domain.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// Somebody else has seen the name here: one that is away or gone is looked at again at once.
///
/// # Errors
/// The database's.
pub async fn wake(tx: &mut WriteTx, domain: DomainId) -> Result<(), StoreError> {
    sql::query("UPDATE presences SET next_look_at = 0 WHERE domain_id = ? AND state <> 'here'")
        .bind(domain.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// Nobody watches: what was retired is ordered for again.
///
/// # Errors
/// The database's.
pub async fn forget(tx: &mut WriteTx) -> Result<(), StoreError> {
    sql::query(
        "UPDATE presences SET state = 'never', looks = 0, left_at = NULL, retired_at = NULL, swept = 0, next_look_at = 0 \
         WHERE state <> 'never'",
    )
    .execute(tx)
    .await?;
    sql::query("DELETE FROM doomed_keys").execute(tx).await?;
    sql::query("DELETE FROM conditions WHERE type = 'Present'").execute(tx).await?;
    Ok(())
}

/// Retired names, and when that was.
///
/// # Errors
/// The database's.
pub async fn retired(connection: &mut Connection) -> Result<BTreeMap<String, i64>, StoreError> {
    let rows = sql::query(
        "SELECT d.name, p.retired_at FROM presences p JOIN domains d ON d.id = p.domain_id \
         WHERE p.retired_at IS NOT NULL AND d.served = 1",
    )
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get("name")?, row.try_get("retired_at")?))).collect()
}

/// # Errors
/// The database's.
pub async fn counts(connection: &mut Connection) -> Result<Counts, StoreError> {
    let rows = sql::query("SELECT state, COUNT(*) AS names FROM presences GROUP BY state")
        .fetch_all(connection)
        .await?;
    let mut counts = Counts::default();
    for row in &rows {
        let names = row.try_get::<i64>("names")?.unsigned_abs();
        match row.try_get::<&str>("state")? {
            "here" => counts.here = names,
            "away" => counts.away = names,
            "left" => counts.left = names,
            "retired" => counts.retired = names,
            _ => {}
        }
    }
    Ok(counts)
}

/// The name fails no longer by what happened while it was away: it may be tried as any other.
///
/// # Errors
/// The database's.
pub async fn forget_failures(tx: &mut WriteTx, domain: DomainId, now_ms: i64) -> Result<(), StoreError> {
    sql::query(
        "UPDATE name_states SET methods = '[]', attempts = 0, next_at = 0, error = NULL, updated_at = ? \
         WHERE domain_id = ?",
    )
    .bind(now_ms)
    .bind(domain.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// Notes the keys of all certificates made here that hold the name, in the lineages that serve the domain now.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn doom_keys(
    tx: &mut WriteTx,
    domain: DomainId,
    name: &str,
    now_ms: i64,
) -> Result<(), StoreError> {
    let rows = sql::query(
        "SELECT c.id, c.names FROM lineage_names n JOIN credentials c ON c.lineage_id = n.lineage_id \
         WHERE n.domain_id = ? AND c.custody = 'cell' AND length(c.sealed_key) > 0",
    )
    .bind(domain.to_string())
    .fetch_all(tx)
    .await?;
    for credential in with_name(&rows, name)? {
        doom_key(tx, domain, &credential, now_ms).await?;
    }
    Ok(())
}

async fn doom_key(
    tx: &mut WriteTx,
    domain: DomainId,
    credential: &str,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO doomed_keys (credential_id, domain_id, since) VALUES (?, ?, ?) \
         ON CONFLICT (credential_id, domain_id) DO NOTHING",
    )
    .bind(credential)
    .bind(domain.to_string())
    .bind(now_ms)
    .execute(tx)
    .await?;
    Ok(())
}

/// Those of the credentials that hold the name.
fn with_name(rows: &[Row], name: &str) -> Result<Vec<String>, StoreError> {
    let mut found = Vec::new();
    for row in rows {
        let names: Vec<String> = from_json(row.try_get("names")?, "credentials: names")?;
        if names.iter().any(|held| held == name) {
            found.push(row.try_get("id")?);
        }
    }
    Ok(found)
}

/// A retired name whose earlier certificates have not been looked for.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn unswept(connection: &mut Connection) -> Result<Option<DomainId>, StoreError> {
    let id: Option<String> = sql::query_scalar(
        "SELECT domain_id FROM presences WHERE retired_at IS NOT NULL AND swept = 0 ORDER BY retired_at LIMIT 1",
    )
    .fetch_optional(connection)
    .await?;
    id.map(|id| from_id(&id, "presences")).transpose()
}

/// All credentials made here, in lineages of the domain's tenant or the operator's, that hold its name and have a key: also
/// those that it was on before its group changed. Reads as much as the tenant has certificates.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn credentials_with(
    connection: &mut Connection,
    tenant: TenantId,
    name: &str,
) -> Result<Vec<String>, StoreError> {
    let rows = sql::query(
        "SELECT c.id, c.names FROM groups g JOIN lineages l ON l.group_id = g.id JOIN credentials c ON c.lineage_id = l.id \
         WHERE (g.tenant_id = ? OR g.tenant_id IS NULL) AND c.custody = 'cell' AND c.names LIKE ? \
         AND length(c.sealed_key) > 0",
    )
    .bind(tenant.to_string())
    .bind(format!("%\"{name}\"%"))
    .fetch_all(connection)
    .await?;
    with_name(&rows, name)
}

/// Notes the keys of these credentials: the name's earlier certificates are looked for no more. Nothing where the name is back.
///
/// # Errors
/// The database's.
pub async fn sweep(
    tx: &mut WriteTx,
    domain: DomainId,
    credentials: &[String],
    now_ms: i64,
) -> Result<(), StoreError> {
    let done = sql::query("UPDATE presences SET swept = 1 WHERE domain_id = ? AND retired_at IS NOT NULL")
        .bind(domain.to_string())
        .execute(tx)
        .await?;
    if done.rows_affected() == 0 {
        return Ok(());
    }
    for credential in credentials {
        doom_key(tx, domain, credential, now_ms).await?;
    }
    Ok(())
}

/// The name is back: no further key is destroyed for it.
///
/// # Errors
/// The database's.
pub async fn spare_keys(tx: &mut WriteTx, domain: DomainId) -> Result<(), StoreError> {
    sql::query("DELETE FROM doomed_keys WHERE domain_id = ?").bind(domain.to_string()).execute(tx).await?;
    Ok(())
}

/// Doomed keys to which nothing refers: no lineage serves by them, no order is under way with them, and no revocation is to be
/// signed with them.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn keys_to_destroy(connection: &mut Connection, limit: u32) -> Result<Vec<DoomedKey>, StoreError> {
    let rows = sql::query(
        "SELECT k.credential_id, k.domain_id, d.tenant_id, d.name, c.names FROM doomed_keys k \
         JOIN credentials c ON c.id = k.credential_id LEFT JOIN domains d ON d.id = k.domain_id \
         WHERE c.state <> 'live' AND NOT EXISTS (SELECT 1 FROM lineages l WHERE l.id = c.lineage_id AND l.live_credential = c.id) \
         AND NOT EXISTS (SELECT 1 FROM orders o WHERE o.credential_id = c.id AND o.state NOT IN ('issued', 'failed')) \
         AND NOT EXISTS (SELECT 1 FROM rekey_items i WHERE i.credential_id = c.id AND i.retired_at IS NULL) \
         ORDER BY k.since, k.credential_id, k.domain_id LIMIT ?",
    )
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let doomed = |row: &Row| {
        let tenant: Option<String> = row.try_get("tenant_id")?;
        Ok(DoomedKey {
            credential: from_id(row.try_get("credential_id")?, "doomed_keys")?,
            domain: from_id(row.try_get("domain_id")?, "doomed_keys")?,
            tenant: tenant.map(|id| from_id(&id, "domains")).transpose()?,
            name: row.try_get("name")?,
            names: from_json(row.try_get("names")?, "credentials: names")?,
        })
    };
    rows.iter().map(doomed).collect()
}

/// Forgets the key of a credential that was noted for that; `false`: it was gone already.
///
/// # Errors
/// The database's.
pub async fn destroy_key(tx: &mut WriteTx, credential: CredentialId) -> Result<bool, StoreError> {
    let was_there = credential::forget_key(tx, credential).await?;
    sql::query("DELETE FROM doomed_keys WHERE credential_id = ?")
        .bind(credential.to_string())
        .execute(tx)
        .await?;
    Ok(was_there)
}

fn read(row: &Row) -> Result<Standing, StoreError> {
    let unreadable = || StoreError::Unreadable { what: "presences: state".to_owned() };
    let (since, looks): (i64, u32) = (row.try_get("since")?, row.try_get("looks")?);
    let time = |column: &str| -> Result<i64, StoreError> {
        row.try_get::<Option<i64>>(column)?.ok_or_else(unreadable)
    };
    Ok(match row.try_get::<&str>("state")? {
        "never" => Standing::Never { since },
        "here" => Standing::Here { since },
        "away" => Standing::Away { since, looks },
        "left" => Standing::Left { since, looks, at: time("left_at")? },
        "retired" => Standing::Retired { since, looks, left_at: time("left_at")?, at: time("retired_at")? },
        _ => return Err(unreadable()),
    })
}

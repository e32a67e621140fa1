//! Accepted proofs of control. One stands for each served domain; the ended ones stay as history.

use portico_api::v1::{Proof, ProofMethod};
use portico_cert_store::DomainId;

use super::sql::{QueryBuilder, Row};
use super::{Connection, StoreError, WriteTx, from_id, from_word, push_ids, sql, to_word};

/// A proof as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofRow {
    pub domain_id: DomainId,
    pub method: ProofMethod,
    /// Unix milliseconds.
    pub proved_at: i64,
    /// When it was last seen to hold.
    pub checked_at: i64,
    pub evidence: String,
    pub actor: String,
}

impl From<&ProofRow> for Proof {
    fn from(row: &ProofRow) -> Self {
        Self {
            method: row.method,
            proved_at: crate::clock::rfc3339(row.proved_at),
            evidence: row.evidence.clone(),
            actor: row.actor.clone(),
        }
    }
}

/// Makes `row` the domain's standing proof; the one before ends.
///
/// # Errors
/// The database's.
pub async fn put(tx: &mut WriteTx, row: &ProofRow) -> Result<(), StoreError> {
    end(tx, row.domain_id, row.proved_at, "a newer proof").await?;
    sql::query(
        "INSERT INTO proofs (domain_id, method, proved_at, checked_at, evidence, actor) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(row.domain_id.to_string())
    .bind(to_word(&row.method)?)
    .bind(row.proved_at)
    .bind(row.checked_at)
    .bind(&row.evidence)
    .bind(&row.actor)
    .execute(tx)
    .await?;
    Ok(())
}

/// Notes that the standing proof was seen to hold.
///
/// # Errors
/// The database's.
pub async fn confirm(tx: &mut WriteTx, domain: DomainId, now_ms: i64) -> Result<(), StoreError> {
    sql::query("UPDATE proofs SET checked_at = ? WHERE domain_id = ? AND ended_at IS NULL")
        .bind(now_ms)
        .bind(domain.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// Ends the standing proof, if there is one; `by` says why.
///
/// # Errors
/// The database's.
pub async fn end(tx: &mut WriteTx, domain: DomainId, now_ms: i64, by: &str) -> Result<(), StoreError> {
    sql::query("UPDATE proofs SET ended_at = ?, ended_by = ? WHERE domain_id = ? AND ended_at IS NULL")
        .bind(now_ms)
        .bind(by)
        .bind(domain.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// The standing proof of a domain.
///
/// # Errors
/// The database's.
pub async fn standing(connection: &mut Connection, domain: DomainId) -> Result<Option<ProofRow>, StoreError> {
    Ok(standing_of(connection, &[domain]).await?.pop())
}

/// The standing proofs of several domains.
///
/// # Errors
/// The database's.
pub async fn standing_of(
    connection: &mut Connection,
    domains: &[DomainId],
) -> Result<Vec<ProofRow>, StoreError> {
    if domains.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = QueryBuilder::new("SELECT * FROM proofs WHERE ended_at IS NULL AND domain_id IN (");
    push_ids(&mut query, domains).push(")");
    let rows = query.build().fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

fn read(row: &Row) -> Result<ProofRow, StoreError> {
    Ok(ProofRow {
        domain_id: from_id(row.try_get("domain_id")?, "proofs")?,
        method: from_word(row.try_get("method")?, "proofs")?,
        proved_at: row.try_get("proved_at")?,
        checked_at: row.try_get("checked_at")?,
        evidence: row.try_get("evidence")?,
        actor: row.try_get("actor")?,
    })
}

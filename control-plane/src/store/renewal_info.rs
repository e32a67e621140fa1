//! What each certificate's CA suggests for its renewal (RFC 9773), and when to ask again.

use portico_cert_store::{CredentialId, LineageId, TenantId};

use super::sql::Row;
use super::{Connection, StoreError, WriteTx, from_id, from_json, sql};
use crate::plan::renewal_info::{Subject, Window};

/// A live certificate whose CA is to be asked.
#[derive(Clone, Debug)]
pub struct Watched {
    pub id: CredentialId,
    pub lineage: LineageId,
    /// Whom its group belongs to; `None`: the operator.
    pub tenant: Option<TenantId>,
    pub issuer: String,
    pub names: Vec<String>,
    pub chain_pem: String,
    /// Unix milliseconds, all of them.
    pub not_before: i64,
    pub not_after: i64,
    pub created_at: i64,
    pub renew_at: i64,
    pub window: Option<Window>,
    /// Questions in a row that failed.
    pub failures: u32,
}

impl Watched {
    pub fn subject(&self) -> Subject {
        Subject {
            lineage: self.lineage,
            credential: self.id,
            not_before: self.not_before,
            not_after: self.not_after,
            created_at: self.created_at,
        }
    }
}

/// What is known after a question.
#[derive(Clone, Debug)]
pub struct Noted {
    /// `None`: by share of the lifetime.
    pub window: Option<Window>,
    pub explanation_url: Option<String>,
    /// Why there is no window, or why the question failed.
    pub note: Option<String>,
    pub renew_at: i64,
    /// The CA has answered, whatever it was.
    pub answered: bool,
    pub failures: u32,
    pub next_at: i64,
}

/// Live certificates whose CA is to be asked by now, those that waited longest first.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn due(connection: &mut Connection, now_ms: i64, limit: u32) -> Result<Vec<Watched>, StoreError> {
    let rows = sql::query(
        "SELECT c.*, g.tenant_id FROM credentials c JOIN lineages l ON l.id = c.lineage_id \
         JOIN groups g ON g.id = l.group_id \
         WHERE c.state = 'live' AND c.custody = 'cell' AND c.window_next_at <= ? ORDER BY c.window_next_at, c.id LIMIT ?",
    )
    .bind(now_ms)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(watched).collect()
}

/// Writes down what a question brought, unless the certificate has been replaced meanwhile.
///
/// # Errors
/// The database's.
pub async fn note(tx: &mut WriteTx, id: CredentialId, noted: &Noted, now_ms: i64) -> Result<(), StoreError> {
    sql::query(
        "UPDATE credentials SET window_start = ?, window_end = ?, explanation_url = ?, window_note = ?, renew_at = ?, \
         window_asked_at = CASE WHEN ? = 1 THEN ? ELSE window_asked_at END, window_failures = ?, window_next_at = ? \
         WHERE id = ? AND state = 'live'",
    )
    .bind(noted.window.map(|window| window.start))
    .bind(noted.window.map(|window| window.end))
    .bind(&noted.explanation_url)
    .bind(&noted.note)
    .bind(noted.renew_at)
    .bind(noted.answered)
    .bind(now_ms)
    .bind(noted.failures)
    .bind(noted.next_at)
    .bind(id.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// A question failed: what was known stays, and the CA is asked again at `next_at`.
///
/// # Errors
/// The database's.
pub async fn note_failure(
    tx: &mut WriteTx,
    id: CredentialId,
    text: &str,
    failures: u32,
    next_at: i64,
) -> Result<(), StoreError> {
    sql::query(
        "UPDATE credentials SET window_note = ?, window_failures = ?, window_next_at = ? \
         WHERE id = ? AND state = 'live'",
    )
    .bind(text)
    .bind(failures)
    .bind(next_at)
    .bind(id.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// A certificate that an order replaces.
#[derive(Clone, Debug)]
pub struct Predecessor {
    pub names: Vec<String>,
    /// As its CA suggests.
    pub window: Window,
}

/// The names of a certificate, and its window; `None` where its CA suggests none.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn predecessor(
    connection: &mut Connection,
    id: CredentialId,
) -> Result<Option<Predecessor>, StoreError> {
    let row = sql::query("SELECT names, window_start, window_end FROM credentials WHERE id = ?")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map_or(Ok(None), predecessor_of)
}

/// From the columns `names`, `window_start` and `window_end` of a certificate, which may all be NULL.
pub(super) fn predecessor_of(row: &Row) -> Result<Option<Predecessor>, StoreError> {
    let Some(window) = window(row)? else { return Ok(None) };
    Ok(Some(Predecessor { names: from_json(row.try_get("names")?, "credentials: names")?, window }))
}

/// Which account of which issuer ordered a certificate, and its chain in PEM.
#[derive(Clone, Debug)]
pub struct Origin {
    pub issuer: String,
    /// `None`: unknown.
    pub account: Option<String>,
    pub chain_pem: String,
}

/// # Errors
/// The database's.
pub async fn origin_of(connection: &mut Connection, id: CredentialId) -> Result<Option<Origin>, StoreError> {
    let row = sql::query("SELECT issuer, account, chain_pem FROM credentials WHERE id = ?")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await?;
    let origin = |row: &Row| {
        Ok(Origin {
            issuer: row.try_get("issuer")?,
            account: row.try_get("account")?,
            chain_pem: row.try_get("chain_pem")?,
        })
    };
    row.as_ref().map(origin).transpose()
}

pub(super) fn window(row: &Row) -> Result<Option<Window>, StoreError> {
    let start: Option<i64> = row.try_get("window_start")?;
    let end: Option<i64> = row.try_get("window_end")?;
    Ok(start.zip(end).map(|(start, end)| Window { start, end }))
}

fn watched(row: &Row) -> Result<Watched, StoreError> {
    let tenant: Option<String> = row.try_get("tenant_id")?;
    Ok(Watched {
        id: from_id(row.try_get("id")?, "credentials")?,
        lineage: from_id(row.try_get("lineage_id")?, "credentials")?,
        tenant: tenant.map(|tenant| from_id(&tenant, "groups")).transpose()?,
        issuer: row.try_get("issuer")?,
        names: from_json(row.try_get("names")?, "credentials: names")?,
        chain_pem: row.try_get("chain_pem")?,
        not_before: row.try_get("not_before")?,
        not_after: row.try_get("not_after")?,
        created_at: row.try_get("created_at")?,
        renew_at: row.try_get("renew_at")?,
        window: window(row)?,
        failures: row.try_get("window_failures")?,
    })
}

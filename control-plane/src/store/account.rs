//! Accounts at CAs, each with its key sealed, written before the CA hears of the key; and the secrets of external accounts.
//!
//! An issuer has one account of its own, which it has made. Adopted ones have ordered certificates elsewhere before.

use super::sql::Row;
use super::{Connection, StoreError, WriteTx, sql};

/// An account's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AccountId(pub(super) i64);

/// An account as it is kept.
#[derive(Clone, Debug)]
pub struct AccountRow {
    pub id: AccountId,
    pub issuer: String,
    pub directory: String,
    pub origin: AccountOrigin,
    pub state: AccountState,
    /// PKCS#8, by the Sealer.
    pub sealed_key: Vec<u8>,
    /// Unix milliseconds.
    pub created_at: i64,
}

/// Whose account it was at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountOrigin {
    Made,
    Adopted,
}

/// How far an account has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountState {
    /// The key is stored; whether the CA has it is not known.
    Intended,
    Registered {
        url: String,
    },
    /// The CA does not know it any more.
    Lost,
}

impl std::fmt::Display for AccountId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl AccountOrigin {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Adopted => "adopted",
        }
    }
}

/// The issuer's own account at this directory.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn own(
    connection: &mut Connection,
    issuer: &str,
    directory: &str,
) -> Result<Option<AccountRow>, StoreError> {
    let row = sql::query("SELECT * FROM accounts WHERE issuer = ? AND directory = ? AND origin = 'made'")
        .bind(issuer)
        .bind(directory)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(account).transpose()
}

/// # Errors
/// The database's, or a row that cannot be read.
pub async fn find(connection: &mut Connection, id: AccountId) -> Result<Option<AccountRow>, StoreError> {
    let row = sql::query("SELECT * FROM accounts WHERE id = ?").bind(id.0).fetch_optional(connection).await?;
    row.as_ref().map(account).transpose()
}

/// The registered account of an issuer that has this URL at the CA.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn of_url(
    connection: &mut Connection,
    issuer: &str,
    url: &str,
) -> Result<Option<AccountRow>, StoreError> {
    let row = sql::query("SELECT * FROM accounts WHERE issuer = ? AND url = ? AND state = 'registered'")
        .bind(issuer)
        .bind(url)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(account).transpose()
}

/// All of an issuer at this directory, its own first.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn of_issuer(
    connection: &mut Connection,
    issuer: &str,
    directory: &str,
) -> Result<Vec<AccountRow>, StoreError> {
    let rows =
        sql::query("SELECT * FROM accounts WHERE issuer = ? AND directory = ? ORDER BY origin DESC, id")
            .bind(issuer)
            .bind(directory)
            .fetch_all(connection)
            .await?;
    rows.iter().map(account).collect()
}

/// The adopted ones whose key was written down and which the CA may not know by it: a change of key was not seen to its end.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn adoptions_intended(
    connection: &mut Connection,
    issuer: &str,
    directory: &str,
) -> Result<Vec<AccountRow>, StoreError> {
    let rows = sql::query(
        "SELECT * FROM accounts WHERE issuer = ? AND directory = ? AND origin = 'adopted' AND state = 'intended' \
         ORDER BY id DESC",
    )
    .bind(issuer)
    .bind(directory)
    .fetch_all(connection)
    .await?;
    rows.iter().map(account).collect()
}

/// Forgets an adopted account whose key the CA has not heard of.
///
/// # Errors
/// The database's.
pub async fn forget_intended(tx: &mut WriteTx, id: AccountId) -> Result<(), StoreError> {
    sql::query("DELETE FROM accounts WHERE id = ? AND origin = 'adopted' AND state = 'intended'")
        .bind(id.0)
        .execute(tx)
        .await?;
    Ok(())
}

/// A lost account gives its URL free: it is adopted anew. Its row stays, for orders may be of it.
///
/// # Errors
/// The database's.
pub async fn forget_lost(tx: &mut WriteTx, issuer: &str, url: &str) -> Result<(), StoreError> {
    sql::query("UPDATE accounts SET url = NULL WHERE issuer = ? AND url = ? AND state = 'lost'")
        .bind(issuer)
        .bind(url)
        .execute(tx)
        .await?;
    Ok(())
}

fn account(row: &Row) -> Result<AccountRow, StoreError> {
    let id: i64 = row.try_get("id")?;
    let unreadable = || StoreError::Unreadable { what: format!("accounts: {id}") };
    let url: Option<String> = row.try_get("url")?;
    let state = match (row.try_get::<&str>("state")?, url) {
        ("intended", _) => AccountState::Intended,
        ("registered", Some(url)) => AccountState::Registered { url },
        ("lost", _) => AccountState::Lost,
        _ => return Err(unreadable()),
    };
    let origin = match row.try_get::<&str>("origin")? {
        "made" => AccountOrigin::Made,
        "adopted" => AccountOrigin::Adopted,
        _ => return Err(unreadable()),
    };
    Ok(AccountRow {
        id: AccountId(id),
        issuer: row.try_get("issuer")?,
        directory: row.try_get("directory")?,
        origin,
        state,
        sealed_key: row.try_get("sealed_key")?,
        created_at: row.try_get("created_at")?,
    })
}

/// Writes a key down before it is used.
///
/// # Errors
/// The database's; a second own account of the issuer at this directory is one.
pub async fn insert(
    tx: &mut WriteTx,
    issuer: &str,
    directory: &str,
    origin: AccountOrigin,
    sealed_key: &[u8],
    now_ms: i64,
) -> Result<AccountId, StoreError> {
    let id: i64 = sql::query_scalar(
        "INSERT INTO accounts (issuer, directory, origin, state, sealed_key, created_at) \
         VALUES (?, ?, ?, 'intended', ?, ?) RETURNING id",
    )
    .bind(issuer)
    .bind(directory)
    .bind(origin.as_str())
    .bind(sealed_key)
    .bind(now_ms)
    .fetch_one(tx)
    .await?;
    Ok(AccountId(id))
}

/// The CA does not know the account: an own one's key is to be registered again, an adopted one is lost.
///
/// # Errors
/// The database's.
pub async fn set_unknown(tx: &mut WriteTx, id: AccountId) -> Result<(), StoreError> {
    sql::query(
        "UPDATE accounts SET state = CASE origin WHEN 'made' THEN 'intended' ELSE 'lost' END, \
         url = CASE origin WHEN 'made' THEN NULL ELSE url END WHERE id = ?",
    )
    .bind(id.0)
    .execute(tx)
    .await?;
    Ok(())
}

/// Notes the URL and thumbprint (RFC 7638, base64url) of the account that the CA has.
///
/// # Errors
/// The database's.
pub async fn set_registered(
    tx: &mut WriteTx,
    id: AccountId,
    url: &str,
    thumbprint: &str,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query(
        "UPDATE accounts SET state = 'registered', url = ?, thumbprint = ?, registered_at = ? WHERE id = ?",
    )
    .bind(url)
    .bind(thumbprint)
    .bind(now_ms)
    .bind(id.0)
    .execute(tx)
    .await?;
    Ok(())
}

/// The sealed secret of an external account.
///
/// # Errors
/// The database's.
pub async fn external_secret(
    connection: &mut Connection,
    issuer: &str,
    directory: &str,
    key_id: &str,
) -> Result<Option<Vec<u8>>, StoreError> {
    let secret = sql::query_scalar(
        "SELECT sealed_secret FROM external_accounts WHERE issuer = ? AND directory = ? AND key_id = ?",
    )
    .bind(issuer)
    .bind(directory)
    .bind(key_id)
    .fetch_optional(connection)
    .await?;
    Ok(secret)
}

/// # Errors
/// The database's.
pub async fn put_external_secret(
    tx: &mut WriteTx,
    issuer: &str,
    directory: &str,
    key_id: &str,
    sealed: &[u8],
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO external_accounts VALUES (?, ?, ?, ?, ?) \
         ON CONFLICT (issuer, directory, key_id) DO UPDATE SET sealed_secret = excluded.sealed_secret",
    )
    .bind(issuer)
    .bind(directory)
    .bind(key_id)
    .bind(sealed)
    .bind(now_ms)
    .execute(tx)
    .await?;
    Ok(())
}

//! Accounts at CAs: one row per issuer, its key sealed, written before the CA hears of the key.

use super::{Connection, StoreError, WriteTx, sql};

/// An account as it is kept.
#[derive(Clone, Debug)]
pub struct AccountRow {
    pub issuer: String,
    pub directory: String,
    pub state: AccountState,
    /// PKCS#8, by the Sealer.
    pub sealed_key: Vec<u8>,
}

/// How far an account has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountState {
    /// The key is stored; whether the CA has it is not known.
    Intended,
    Registered {
        url: String,
    },
}

/// # Errors
/// The database's, or a row that cannot be read.
pub async fn find(connection: &mut Connection, issuer: &str) -> Result<Option<AccountRow>, StoreError> {
    let row = sql::query("SELECT issuer, directory, state, sealed_key, url FROM accounts WHERE issuer = ?")
        .bind(issuer)
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let url: Option<String> = row.try_get("url")?;
    let state = match (row.try_get::<String>("state")?.as_str(), url) {
        ("intended", _) => AccountState::Intended,
        ("registered", Some(url)) => AccountState::Registered { url },
        _ => return Err(StoreError::Unreadable { what: format!("accounts: {issuer}") }),
    };
    Ok(Some(AccountRow {
        issuer: row.try_get("issuer")?,
        directory: row.try_get("directory")?,
        state,
        sealed_key: row.try_get("sealed_key")?,
    }))
}

/// Writes a key down before it is used. An issuer that was pointed at another directory starts anew there.
///
/// # Errors
/// The database's.
pub async fn put_intended(tx: &mut WriteTx, row: &AccountRow, now_ms: i64) -> Result<(), StoreError> {
    sql::query("DELETE FROM accounts WHERE issuer = ?").bind(&row.issuer).execute(tx).await?;
    sql::query(
        "INSERT INTO accounts (issuer, directory, state, sealed_key, created_at) VALUES (?, ?, 'intended', ?, ?)",
    )
    .bind(&row.issuer)
    .bind(&row.directory)
    .bind(&row.sealed_key)
    .bind(now_ms)
    .execute(tx)
    .await?;
    Ok(())
}

/// The CA does not know the account: its key is to be registered again.
///
/// # Errors
/// The database's.
pub async fn set_intended(tx: &mut WriteTx, issuer: &str) -> Result<(), StoreError> {
    sql::query("UPDATE accounts SET state = 'intended', url = NULL WHERE issuer = ?")
        .bind(issuer)
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
    issuer: &str,
    url: &str,
    thumbprint: &str,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query(
        "UPDATE accounts SET state = 'registered', url = ?, thumbprint = ?, registered_at = ? WHERE issuer = ?",
    )
    .bind(url)
    .bind(thumbprint)
    .bind(now_ms)
    .bind(issuer)
    .execute(tx)
    .await?;
    Ok(())
}

//! Taking over an ACME account that another client has used.

use super::account::{KEY_PURPOSE, row_name};
use super::issuer::Issuer;
use crate::acme::{Account, AccountKey, AcmeError};
use crate::config::IssuerConfig;
use crate::sealer::Sealer;
use crate::store::account::{self, AccountOrigin, AccountRow, AccountState};
use crate::store::{StoreError, WriteTx};

/// An account that a CA knows.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) url: String,
    thumbprint: String,
}

/// Asks the issuer's CA for the account of a key.
///
/// # Errors
/// The CA's; of kind `Account` where the key has none.
pub(crate) async fn find(config: &IssuerConfig, key: &AccountKey) -> Result<Found, AcmeError> {
    let issuer = Issuer::new(config).map_err(AcmeError::ours)?;
    let account = Account::find(issuer.http(), key).await?;
    Ok(Found { url: account.url().to_owned(), thumbprint: account.thumbprint().to_owned() })
}

/// Writes an account down.
///
/// # Errors
/// The database's.
pub(crate) async fn put(
    tx: &mut WriteTx,
    sealer: &Sealer,
    config: &IssuerConfig,
    key: &AccountKey,
    found: &Found,
    now_ms: i64,
) -> Result<AccountRow, StoreError> {
    let (name, directory) = (&config.name, &config.directory);
    let sealed_key = sealer.seal(KEY_PURPOSE, &row_name(name, directory), key.secret_pkcs8());
    account::forget_lost(tx, name, &found.url).await?;
    let id = account::insert(tx, name, directory, AccountOrigin::Adopted, &sealed_key, now_ms).await?;
    account::set_registered(tx, id, &found.url, &found.thumbprint, now_ms).await?;
    Ok(AccountRow {
        id,
        issuer: name.clone(),
        directory: directory.clone(),
        origin: AccountOrigin::Adopted,
        state: AccountState::Registered { url: found.url.clone() },
        sealed_key,
        created_at: now_ms,
    })
}

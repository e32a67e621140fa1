//! Taking over an ACME account that another client has used.

use super::account::{KEY_PURPOSE, row_name};
use super::issuer::Issuer;
use crate::Parts;
use crate::acme::{Account, AccountKey, AcmeError, AcmeErrorKind, CaHttp, RsaAccountKey};
use crate::config::IssuerConfig;
use crate::sealer::Sealer;
use crate::store::account::{self, AccountId, AccountOrigin, AccountRow, AccountState};
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

/// The account of an RSA key, with a P-256 key of ours in its place. The new key is written down before the CA hears of it, so a
/// call that was not seen to its end is repeated to the same end.
///
/// # Errors
/// The CA's; of kind `Account` where the key has none, or the CA will not have the change.
pub(crate) async fn change_key(
    parts: &Parts,
    config: &IssuerConfig,
    old: &RsaAccountKey,
) -> Result<Changed, AcmeError> {
    let issuer = Issuer::new(config).map_err(AcmeError::ours)?;
    let http = issuer.http();
    let url = match old.find(http).await {
        Ok(url) => url,
        Err(error) if error.kind == AcmeErrorKind::Account => {
            return changed_before(parts, config, http).await?.ok_or(error);
        }
        Err(error) => return Err(error),
    };
    let key = AccountKey::generate()?;
    let sealed =
        parts.sealer.seal(KEY_PURPOSE, &row_name(&config.name, &config.directory), key.secret_pkcs8());
    let now = parts.clock.now_ms();
    let written = async {
        let mut tx = parts.store.begin().await?;
        let (name, directory, origin) = (&config.name, &config.directory, AccountOrigin::Adopted);
        let id = account::insert(&mut tx, name, directory, origin, &sealed, now).await?;
        tx.commit().await?;
        Ok::<_, StoreError>(id)
    };
    let id = written.await.map_err(AcmeError::ours)?;
    if let Err(error) = old.change_to(http, &url, &key).await {
        if error.nothing_made {
            let forgotten = async {
                let mut tx = parts.store.begin().await?;
                account::forget_intended(&mut tx, id).await?;
                tx.commit().await
            };
            forgotten.await.map_err(|error: StoreError| AcmeError::ours(error))?;
        }
        return Err(error);
    }
    // By its new key, which is what counts from now on.
    let account = Account::find(http, &key).await?;
    Ok(Changed {
        id,
        found: Found { url: account.url().to_owned(), thumbprint: account.thumbprint().to_owned() },
    })
}

/// An account whose key has been changed.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) id: AccountId,
    pub(crate) found: Found,
}

/// The CA knows the old key no more: perhaps it took the new one, and its answer was lost.
async fn changed_before(
    parts: &Parts,
    config: &IssuerConfig,
    http: &CaHttp,
) -> Result<Option<Changed>, AcmeError> {
    let (name, directory) = (&config.name, &config.directory);
    let rows = async { account::adoptions_intended(&mut *parts.store.read().await?, name, directory).await };
    for row in rows.await.map_err(AcmeError::ours)? {
        let key = parts.sealer.open(KEY_PURPOSE, &row_name(name, directory), &row.sealed_key);
        let key = AccountKey::from_pkcs8(key.map_err(AcmeError::ours)?)?;
        match Account::find(http, &key).await {
            Ok(account) => {
                let found =
                    Found { url: account.url().to_owned(), thumbprint: account.thumbprint().to_owned() };
                return Ok(Some(Changed { id: row.id, found }));
            }
            Err(error) if error.kind == AcmeErrorKind::Account || error.is_refusal() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Notes that an account answers to the key that was written down for it.
///
/// # Errors
/// The database's.
pub(crate) async fn put_changed(
    tx: &mut WriteTx,
    issuer: &str,
    changed: &Changed,
    now_ms: i64,
) -> Result<AccountRow, StoreError> {
    account::forget_lost(tx, issuer, &changed.found.url).await?;
    account::set_registered(tx, changed.id, &changed.found.url, &changed.found.thumbprint, now_ms).await?;
    let row = account::find(tx, changed.id).await?;
    row.ok_or_else(|| StoreError::Unreadable { what: format!("accounts: {}", changed.id) })
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

//! The accounts of an issuer: its own, which is made at its first use, and adopted ones, which replace what they ordered.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::Mutex;

use super::issuer::Issuer;
use super::{fail_point, spending};
use crate::Parts;
use crate::acme::{Account, AccountKey, AcmeError, AcmeErrorKind, ExternalAccount};
use crate::plan::ledger::{self, BucketKey, Charged, LimitName, Need};
use crate::store::account::{self, AccountId, AccountOrigin, AccountRow, AccountState};
use crate::store::{StoreError, WriteTx, ledger as buckets};

pub(super) const KEY_PURPOSE: &str = "acme account key";
const SECRET_PURPOSE: &str = "acme external account";

/// Accounts that were used since the start; `None` is the issuer's own.
#[derive(Debug, Default)]
pub(crate) struct Accounts(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    accounts: HashMap<Option<AccountId>, Account>,
    /// [`crate::acme::CaHttp::moves`] that they were made at.
    moves: u64,
}

impl Issuer {
    /// A registered account; `None`: the issuer's own, which is made at the CA at the first call of all and found again by its
    /// key after a crash.
    ///
    /// # Errors
    /// The CA's, or ours when the stored key cannot be opened.
    pub(crate) async fn account(&self, parts: &Parts, id: Option<AccountId>) -> Result<Account, AcmeError> {
        let mut known = self.accounts.0.lock().await;
        let moves = self.http().moves().await?;
        if known.moves != moves {
            tracing::info!(issuer = self.config.name, "the CA's directory names other places than before");
            *known = Known { accounts: HashMap::new(), moves };
        }
        if let Some(account) = known.accounts.get(&id) {
            return Ok(account.clone());
        }
        let row = match id {
            None => self.own_row(parts).await?,
            Some(id) => self.adopted_row(parts, id).await?,
        };
        let name = row_name(&row.issuer, &row.directory);
        let key = parts.sealer.open(KEY_PURPOSE, &name, &row.sealed_key).map_err(AcmeError::ours)?;
        let key = AccountKey::from_pkcs8(key)?;
        let account = match &row.state {
            AccountState::Registered { url } => Account::restore(self.http(), &key, url).await?,
            AccountState::Intended => self.register(parts, &row, &key).await?,
            AccountState::Lost => {
                return Err(AcmeError::account(&format!("the CA knows adopted account {} no more", row.id)));
            }
        };
        known.accounts.insert(id, account.clone());
        Ok(account)
    }

    async fn register(
        &self,
        parts: &Parts,
        row: &AccountRow,
        key: &AccountKey,
    ) -> Result<Account, AcmeError> {
        let contact = self.config.contact.as_deref();
        let external = self.external_account(parts).await?;
        self.take_account(parts).await?;
        let made = match &external {
            None => Account::register(self.http(), key, contact).await,
            Some(external) => Account::register_bound(self.http(), key, contact, external).await,
        };
        let account = match made {
            Ok(account) => account,
            Err(error) => {
                self.account_not_made(parts, &error).await.map_err(AcmeError::ours)?;
                return Err(error);
            }
        };
        fail_point::reach("account.registered");
        let written = async {
            let now = parts.clock.now_ms();
            let mut tx = parts.store.begin().await?;
            self.account_made(&mut tx, now).await?;
            account::set_registered(&mut tx, row.id, account.url(), account.thumbprint(), now).await?;
            tx.commit().await
        };
        written.await.map_err(AcmeError::ours)?;
        fail_point::reach("account.recorded");
        tracing::info!(issuer = self.config.name, account = account.url(), "account registered");
        Ok(account)
    }

    /// The external account to bind to, its secret written down (sealed) before the CA hears of it. What was written stands when
    /// the file is gone.
    async fn external_account(&self, parts: &Parts) -> Result<Option<ExternalAccount>, AcmeError> {
        let Some(external) = &self.config.external_account else { return Ok(None) };
        let (name, directory, key_id) = (&self.config.name, &self.config.directory, &external.key_id);
        let seal_name = format!("{}/{key_id}", row_name(name, directory));
        let read = external.read_secret();
        let stored = async {
            let mut tx = parts.store.begin().await?;
            if let Ok(secret) = &read {
                let sealed = parts.sealer.seal(SECRET_PURPOSE, &seal_name, secret);
                let now = parts.clock.now_ms();
                account::put_external_secret(&mut tx, name, directory, key_id, &sealed, now).await?;
            }
            let stored = account::external_secret(&mut tx, name, directory, key_id).await?;
            tx.commit().await?;
            Ok::<_, StoreError>(stored)
        };
        let Some(sealed) = stored.await.map_err(AcmeError::ours)? else {
            let why = read.err().unwrap_or_default();
            let text = format!("issuer \"{name}\": the secret of its external account is not here: {why}");
            return Err(AcmeError::ours(text));
        };
        let secret = parts.sealer.open(SECRET_PURPOSE, &seal_name, &sealed).map_err(AcmeError::ours)?;
        Ok(Some(ExternalAccount::new(key_id.clone(), secret)))
    }

    /// Reserves a new account of the CA's limit for our address.
    async fn take_account(&self, parts: &Parts) -> Result<(), AcmeError> {
        let take = async {
            let now = parts.clock.now_ms();
            let mut tx = parts.store.begin().await?;
            // Its answer was lost: the CA may have made one.
            self.account_made(&mut tx, now).await?;
            let key = BucketKey::new(LimitName::NewAccounts, self.at(), "");
            let rate = self.limits.new_accounts;
            let needs = [Need { key, rate, keep: 0, charged: Charged::AtOrder }];
            let levels = buckets::levels_of(&mut tx, &needs).await?;
            let room = ledger::check(&needs, &levels, now);
            match &room {
                Ok(()) => buckets::reserve(&mut tx, &self.holder(), &needs).await?,
                Err(_) => buckets::see_clock(&mut tx, &needs, &levels, now).await?,
            }
            tx.commit().await?;
            Ok::<_, StoreError>(room.map_err(|no_room| no_room.next_ms - now))
        };
        take.await.map_err(AcmeError::ours)?.map_err(|wait_ms| AcmeError {
            kind: AcmeErrorKind::AccountLimited,
            retry_after: u64::try_from(wait_ms).ok().map(Duration::from_millis),
            ..AcmeError::ours("our ledger is at the CA's limit on new accounts of one address")
        })
    }

    async fn account_made(&self, tx: &mut WriteTx, now: i64) -> Result<(), StoreError> {
        buckets::charge_reserved(tx, &self.holder(), Charged::AtOrder, now).await
    }

    async fn account_not_made(&self, parts: &Parts, error: &AcmeError) -> Result<(), StoreError> {
        let mut tx = parts.store.begin().await?;
        if error.nothing_made {
            buckets::release(&mut tx, &self.holder()).await?;
        }
        spending::learn(&mut tx, self, self.at(), error, &[], "", parts.clock.now_ms()).await?;
        tx.commit().await
    }

    /// Of the reservation for the account itself.
    fn holder(&self) -> String {
        format!("account {}", self.config.name)
    }

    /// Whose buckets the limits of an order on this account are.
    pub(super) fn label(&self, id: Option<AccountId>) -> String {
        match id {
            None => self.config.name.clone(),
            Some(id) => format!("{}/{id}", self.config.name),
        }
    }

    /// The URL of its own account, where it is known without asking.
    pub(crate) fn account_url(&self) -> Option<String> {
        let known = self.accounts.0.try_lock().ok()?;
        known.accounts.get(&None).map(|account| account.url().to_owned())
    }

    /// The CA does not know the account (any more): an own one's key is registered again at the next use.
    pub(crate) async fn forget_account(
        &self,
        parts: &Parts,
        id: Option<AccountId>,
    ) -> Result<(), StoreError> {
        let mut known = self.accounts.0.lock().await;
        let mut tx = parts.store.begin().await?;
        let row = match id {
            None => account::own(&mut tx, &self.config.name, &self.config.directory).await?,
            Some(id) => account::find(&mut tx, id).await?,
        };
        if let Some(row) = row {
            account::set_unknown(&mut tx, row.id).await?;
        }
        tx.commit().await?;
        known.accounts.remove(&id);
        Ok(())
    }

    async fn adopted_row(&self, parts: &Parts, id: AccountId) -> Result<AccountRow, AcmeError> {
        let find = async { account::find(&mut *parts.store.read().await?, id).await };
        let row = find.await.map_err(AcmeError::ours)?;
        // Another directory is another CA, which knows nothing of it.
        row.filter(|row| row.directory == self.config.directory)
            .ok_or_else(|| AcmeError::account(&format!("no adopted account {id} at this directory")))
    }

    /// The row of its own account, the key written down (sealed) before anybody hears of it.
    async fn own_row(&self, parts: &Parts) -> Result<AccountRow, AcmeError> {
        let (name, directory) = (&self.config.name, &self.config.directory);
        let mut tx = parts.store.begin().await.map_err(AcmeError::ours)?;
        if let Some(row) = account::own(&mut tx, name, directory).await.map_err(AcmeError::ours)? {
            return Ok(row);
        }
        let key = AccountKey::generate()?;
        let sealed_key = parts.sealer.seal(KEY_PURPOSE, &row_name(name, directory), key.secret_pkcs8());
        let (origin, now) = (AccountOrigin::Made, parts.clock.now_ms());
        let id = account::insert(&mut tx, name, directory, origin, &sealed_key, now)
            .await
            .map_err(AcmeError::ours)?;
        tx.commit().await.map_err(AcmeError::ours)?;
        fail_point::reach("account.intended");
        Ok(AccountRow {
            id,
            issuer: name.clone(),
            directory: directory.clone(),
            origin,
            state: AccountState::Intended,
            sealed_key,
            created_at: now,
        })
    }
}

/// What the seals of an issuer's secrets are bound to.
pub(super) fn row_name(issuer: &str, directory: &str) -> String {
    format!("{issuer}/{directory}")
}

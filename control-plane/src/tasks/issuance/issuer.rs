//! An issuer at work: its configuration, the way to its CA, its account.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::Mutex;

use super::turns::Turns;
use super::{fail_point, spending};
use crate::Parts;
use crate::acme::{Account, AccountKey, AcmeError, AcmeErrorKind, CaEndpoint, CaHttp, Pace};
use crate::config::IssuerConfig;
use crate::plan::ledger::{self, At, BucketKey, Charged, LimitName, Limits, Need};
use crate::store::account::{self, AccountRow, AccountState};
use crate::store::{StoreError, WriteTx, ledger as buckets};

/// A CA whose directory cannot be read is asked for it again no sooner.
const DIRECTORY_PAUSE_MS: i64 = 60_000;

/// Orders that are halved in a row, over all tenants, before one is issued. One bad name among 100 takes 7; a CA that
/// refuses everything would have each name of the fleet ordered alone.
const HALVED_IN_A_ROW_MAX: u32 = 16;

const PURPOSE: &str = "acme account key";

/// One configured issuer.
#[derive(Debug)]
pub(crate) struct Issuer {
    pub(crate) config: IssuerConfig,
    pub(super) limits: Limits,
    pub(super) turns: Turns,
    /// What issued chains must lead to.
    pub(crate) roots: Arc<RootCertStore>,
    http: CaHttp,
    account: Mutex<Option<Account>>,
    held_until_ms: AtomicI64,
    /// Orders that were halved since one was issued.
    halved_in_a_row: AtomicU32,
    /// Held while the directory is read; when it may be read again after a failure.
    directory_at_ms: Mutex<i64>,
}

impl Issuer {
    /// # Errors
    /// A file of roots that cannot be read, or a directory that is no https URL.
    pub(crate) fn new(config: &IssuerConfig) -> anyhow::Result<Self> {
        let name = &config.name;
        let endpoint = CaEndpoint {
            directory: config.directory.parse().with_context(|| format!("issuer \"{name}\": directory"))?,
            roots: Arc::new(
                roots(config.root_pem.as_deref(), true).with_context(|| format!("issuer \"{name}\""))?,
            ),
            serialize_orders: config.serialize_orders,
            pace: Pace {
                per_second: config.requests_per_second,
                burst: config.requests_per_second.div_ceil(4),
            },
            nonce_pace: Pace {
                per_second: config.nonces_per_second,
                burst: config.nonces_per_second.div_ceil(2),
            },
        };
        Ok(Self {
            config: config.clone(),
            limits: config.limits(),
            turns: Turns::default(),
            roots: Arc::new(
                roots(config.roots_pem.as_deref(), false).with_context(|| format!("issuer \"{name}\""))?,
            ),
            http: CaHttp::new(&endpoint)?,
            account: Mutex::new(None),
            held_until_ms: AtomicI64::new(0),
            halved_in_a_row: AtomicU32::new(0),
            directory_at_ms: Mutex::new(0),
        })
    }

    /// The registered account. Made at the CA at the first call of all; found again by its key after a crash.
    ///
    /// # Errors
    /// The CA's, or ours when the stored key cannot be opened.
    pub(crate) async fn account(&self, parts: &Parts) -> Result<Account, AcmeError> {
        let mut slot = self.account.lock().await;
        if let Some(account) = slot.as_ref() {
            return Ok(account.clone());
        }
        let (key, state) = self.stored_key(parts).await?;
        let account = match state {
            AccountState::Registered { url } => Account::restore(&self.http, &key, &url).await?,
            AccountState::Intended => {
                self.take_account(parts).await?;
                let account = match Account::register(&self.http, &key, self.config.contact.as_deref()).await
                {
                    Ok(account) => account,
                    Err(error) => {
                        self.account_not_made(parts, &error).await.map_err(AcmeError::ours)?;
                        return Err(error);
                    }
                };
                fail_point::reach("account.registered");
                let mut tx = parts.store.begin().await.map_err(AcmeError::ours)?;
                let now = parts.clock.now_ms();
                self.account_made(&mut tx, now).await.map_err(AcmeError::ours)?;
                account::set_registered(&mut tx, &self.config.name, account.url(), account.thumbprint(), now)
                    .await
                    .map_err(AcmeError::ours)?;
                tx.commit().await.map_err(AcmeError::ours)?;
                fail_point::reach("account.recorded");
                tracing::info!(issuer = self.config.name, account = account.url(), "account registered");
                account
            }
        };
        *slot = Some(account.clone());
        Ok(account)
    }

    /// Whose buckets its limits are.
    pub(super) fn at(&self) -> At<'_> {
        At { ca: &self.config.directory, account: &self.config.name }
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
        spending::learn(&mut tx, self, error, &[], "", parts.clock.now_ms()).await?;
        tx.commit().await
    }

    /// Of the reservation for the account itself.
    fn holder(&self) -> String {
        format!("account {}", self.config.name)
    }

    /// What the CA calls itself in CAA records; empty when it does not say or cannot be asked at present.
    pub(crate) async fn caa_identities(&self, parts: &Parts) -> &[String] {
        if let Some(known) = self.http.caa_identities() {
            return known;
        }
        let mut at = self.directory_at_ms.lock().await;
        if self.http.caa_identities().is_none() && parts.clock.now_ms() >= *at {
            if let Err(error) = self.http.read_directory().await {
                tracing::info!(issuer = self.config.name, %error, "CAA records are not looked at for now");
            }
            *at = parts.clock.now_ms() + DIRECTORY_PAUSE_MS;
        }
        self.http.caa_identities().unwrap_or_default()
    }

    /// The way to the CA.
    pub(super) fn http(&self) -> &CaHttp {
        &self.http
    }

    /// The account's URL, where it is known without asking.
    pub(crate) fn account_url(&self) -> Option<String> {
        let slot = self.account.try_lock().ok()?;
        slot.as_ref().map(|account| account.url().to_owned())
    }

    /// The CA does not know the account (any more): the same key is registered again at the next use.
    pub(crate) async fn forget_account(&self, parts: &Parts) -> Result<(), AcmeError> {
        let mut slot = self.account.lock().await;
        let mut tx = parts.store.begin().await.map_err(AcmeError::ours)?;
        account::set_intended(&mut tx, &self.config.name).await.map_err(AcmeError::ours)?;
        tx.commit().await.map_err(AcmeError::ours)?;
        *slot = None;
        Ok(())
    }

    /// The key of the account, written down (sealed) before anybody hears of it.
    async fn stored_key(&self, parts: &Parts) -> Result<(AccountKey, AccountState), AcmeError> {
        let name = &self.config.name;
        let mut tx = parts.store.begin().await.map_err(AcmeError::ours)?;
        let found = account::find(&mut tx, name).await.map_err(AcmeError::ours)?;
        if let Some(row) = found.filter(|row| row.directory == self.config.directory) {
            let pkcs8 =
                parts.sealer.open(PURPOSE, &row_name(&row), &row.sealed_key).map_err(AcmeError::ours)?;
            return Ok((AccountKey::from_pkcs8(pkcs8)?, row.state));
        }
        let key = AccountKey::generate()?;
        let mut row = AccountRow {
            issuer: name.clone(),
            directory: self.config.directory.clone(),
            state: AccountState::Intended,
            sealed_key: Vec::new(),
        };
        row.sealed_key = parts.sealer.seal(PURPOSE, &row_name(&row), key.secret_pkcs8());
        account::put_intended(&mut tx, &row, parts.clock.now_ms()).await.map_err(AcmeError::ours)?;
        tx.commit().await.map_err(AcmeError::ours)?;
        fail_point::reach("account.intended");
        Ok((key, AccountState::Intended))
    }

    /// Nothing new is asked of this CA before (Unix milliseconds).
    pub(crate) fn held_until(&self) -> i64 {
        self.held_until_ms.load(Ordering::Relaxed)
    }

    /// Whether one more order that the CA refuses as a whole is to be halved; counts it.
    pub(crate) fn may_halve(&self) -> bool {
        self.halved_in_a_row.fetch_add(1, Ordering::Relaxed) < HALVED_IN_A_ROW_MAX
    }

    /// The CA has issued: what it refuses is the names' fault again.
    pub(crate) fn has_issued(&self) {
        self.halved_in_a_row.store(0, Ordering::Relaxed);
    }

    pub(crate) fn hold(&self, until_ms: i64) {
        self.held_until_ms.fetch_max(until_ms, Ordering::Relaxed);
    }
}

fn row_name(row: &AccountRow) -> String {
    format!("{}/{}", row.issuer, row.directory)
}

/// The roots of `file`, or the system's; with `and_system` both.
fn roots(file: Option<&Path>, and_system: bool) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if file.is_none() || and_system {
        // Some of a system's roots may not parse; that is no reason to trust none.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if let Some(file) = file {
        for certificate in CertificateDer::pem_file_iter(file).with_context(|| file.display().to_string())? {
            let certificate = certificate.with_context(|| file.display().to_string())?;
            roots.add(certificate).with_context(|| file.display().to_string())?;
        }
    }
    anyhow::ensure!(
        !roots.is_empty(),
        "no trust anchors: install the system's CA certificates or name a file"
    );
    Ok(roots)
}

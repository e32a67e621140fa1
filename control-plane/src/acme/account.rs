//! The account key and its registration.
//!
//! The key is made and stored (sealed) before the CA hears of it. Registering the same key again finds the same account
//! (RFC 8555 section 7.3.1), so a crash at any point leaves one account.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use instant_acme::Key;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::NONCE_TRIES;
use super::error::{AcmeError, AcmeErrorKind};
use super::external_account::ExternalAccount;
use super::http::{CaHttp, observe};

/// An account's private key (P-256), PKCS#8 DER; zeroed on drop, never printed.
pub struct AccountKey {
    pkcs8: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for AccountKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccountKey(..)")
    }
}

impl AccountKey {
    /// # Errors
    /// The random source fails.
    pub fn generate() -> Result<Self, AcmeError> {
        let (_, pkcs8) = Key::generate_pkcs8().map_err(AcmeError::ours)?;
        Self::from_pkcs8(Zeroizing::new(pkcs8.secret_pkcs8_der().to_vec()))
    }

    /// # Errors
    /// These bytes are no P-256 key.
    pub fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, AcmeError> {
        Key::from_pkcs8_der(PrivatePkcs8KeyDer::from(pkcs8.as_slice())).map_err(AcmeError::ours)?;
        Ok(Self { pkcs8 })
    }

    /// An account key of another client, PKCS#8 or SEC 1 in PEM.
    ///
    /// # Errors
    /// For people: what it is instead of a P-256 key. Never its content.
    pub fn from_pem(pem: &str) -> Result<Self, String> {
        let only = "only P-256 keys can be adopted, for accounts are signed for with ES256";
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| format!("holds no private key in PEM; {only}"))?;
        let read = match &key {
            PrivateKeyDer::Pkcs8(key) => {
                Self::from_pkcs8(Zeroizing::new(key.secret_pkcs8_der().to_vec())).ok()
            }
            PrivateKeyDer::Sec1(key) => {
                let pair = EcdsaKeyPair::from_private_key_der(
                    &ECDSA_P256_SHA256_FIXED_SIGNING,
                    key.secret_sec1_der(),
                );
                let pkcs8 = pair.ok().and_then(|pair| pair.to_pkcs8v1().ok());
                pkcs8.and_then(|der| Self::from_pkcs8(Zeroizing::new(der.as_ref().to_vec())).ok())
            }
            PrivateKeyDer::Pkcs1(_) | _ => None,
        };
        read.ok_or_else(|| {
            format!(
                "is no P-256 key; {only}. An RSA key, as certbot makes them, can be changed for one (change_key), by which \
                 the client that has it is locked out of the account; or leave the account out: its names are then renewed \
                 on the issuer's own account"
            )
        })
    }

    /// For sealing only.
    pub fn secret_pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    fn key(&self) -> Result<(Key, PrivatePkcs8KeyDer<'static>), AcmeError> {
        let der = PrivatePkcs8KeyDer::from(self.pkcs8.to_vec());
        Ok((Key::from_pkcs8_der(der.clone_key()).map_err(AcmeError::ours)?, der))
    }
}

/// A registered account, ready to order. Clones are cheap.
#[derive(Clone)]
pub struct Account {
    pub(super) account: instant_acme::Account,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Account").field(&self.account.id()).finish()
    }
}

impl Account {
    /// Registers `key` at the CA, or finds the account that it already has there; then sets its contact.
    ///
    /// # Errors
    /// Any of the CA's. A contact that the CA refuses is an error too: its notices would go nowhere.
    pub async fn register(http: &CaHttp, key: &AccountKey, contact: Option<&str>) -> Result<Self, AcmeError> {
        let mut tries = NonceTries::default();
        let account = loop {
            let (key, der) = key.key()?;
            let (result, observed) = observe(
                instant_acme::Account::builder_with_http(Box::new(http.clone()))
                    .create_from_key((key, PrivateKeyDer::Pkcs8(der)), http.directory()),
            )
            .await;
            match result {
                // The credentials hold the key once more; the caller has stored it already.
                Ok((account, _credentials)) => break account,
                Err(error) => tries.again(AcmeError::new(&error, observed))?,
            }
        };
        let mut tries = NonceTries::default();
        while let Some(contact) = contact {
            let (result, observed) = observe(account.update_contacts(&[contact])).await;
            match result {
                Ok(()) => break,
                Err(error) => tries.again(AcmeError::new(&error, observed))?,
            }
        }
        Ok(Self { account })
    }

    /// As [`Self::register`], bound to an external account. An account that the key has already is found, whatever became of
    /// the secret.
    ///
    /// # Errors
    /// Any of the CA's.
    pub async fn register_bound(
        http: &CaHttp,
        key: &AccountKey,
        contact: Option<&str>,
        external: &ExternalAccount,
    ) -> Result<Self, AcmeError> {
        match Self::find(http, key).await {
            // What CAs say of a key that has no account differs; whatever is amiss besides is met again at once.
            Err(error) if error.kind == AcmeErrorKind::Account || error.is_refusal() => {
                let url = external.register(http, key, contact).await?;
                Self::restore(http, key, &url).await
            }
            found => found,
        }
    }

    /// The account that a key has at the CA.
    ///
    /// # Errors
    /// Any of the CA's; [`AcmeErrorKind::Account`] where it has none.
    pub async fn find(http: &CaHttp, key: &AccountKey) -> Result<Self, AcmeError> {
        let mut tries = NonceTries::default();
        loop {
            let (key, der) = key.key()?;
            let (result, observed) = observe(
                instant_acme::Account::builder_with_http(Box::new(http.clone()))
                    .from_key((key, PrivateKeyDer::Pkcs8(der)), http.directory()),
            )
            .await;
            match result {
                Ok((account, _credentials)) => return Ok(Self { account }),
                Err(error) => tries.again(AcmeError::new(&error, observed))?,
            }
        }
    }

    /// Takes up a registered account: fetches the directory, asks nothing of the account.
    ///
    /// # Errors
    /// The directory cannot be had.
    pub async fn restore(http: &CaHttp, key: &AccountKey, url: &str) -> Result<Self, AcmeError> {
        let (_, der) = key.key()?;
        let (result, observed) =
            observe(instant_acme::Account::builder_with_http(Box::new(http.clone())).from_parts(
                url.to_owned(),
                der,
                http.directory(),
            ))
            .await;
        result.map(|account| Self { account }).map_err(|e| AcmeError::new(&e, observed))
    }

    /// The account's URL at the CA.
    pub fn url(&self) -> &str {
        self.account.id()
    }

    /// RFC 7638, base64url: what stateless HTTP-01 answers with.
    pub fn thumbprint(&self) -> &str {
        self.account.key_thumbprint()
    }
}

/// Counts how often one request was repeated because the CA refused its nonce; everything else is the caller's.
#[derive(Debug, Default)]
pub(super) struct NonceTries(u32);

impl NonceTries {
    /// `Ok`: try again at once.
    pub(super) fn again(&mut self, error: AcmeError) -> Result<(), AcmeError> {
        self.0 += 1;
        if error.is_bad_nonce() && self.0 < NONCE_TRIES { Ok(()) } else { Err(error) }
    }
}

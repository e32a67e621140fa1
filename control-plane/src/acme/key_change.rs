//! Another key for an account (RFC 8555 section 7.3.5): from the RSA key that another client has used so far to a P-256 key.
//!
//! By our own request: instant_acme signs with ES256 alone, and makes the new key itself, so that a lost answer would lose the
//! account. The new key is stored, sealed, before the CA hears of it.

use aws_lc_rs::rsa;
use http::StatusCode;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;

use super::account::{AccountKey, NonceTries};
use super::error::{AcmeError, AcmeErrorKind};
use super::http::{CaHttp, observe};
use super::jws::{self, Signer, account_refusal};

/// The RSA key of an account, as other clients have them. Only ever used to give the account another key.
pub struct RsaAccountKey(Signer);

impl std::fmt::Debug for RsaAccountKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RsaAccountKey(..)")
    }
}

impl RsaAccountKey {
    /// PKCS#8 or PKCS#1 in PEM, 2048 to 8192 bits; `None`: it is no such key.
    pub fn from_pem(pem: &str) -> Option<Self> {
        let pair = match PrivateKeyDer::from_pem_slice(pem.as_bytes()).ok()? {
            PrivateKeyDer::Pkcs8(key) => rsa::KeyPair::from_pkcs8(key.secret_pkcs8_der()).ok()?,
            PrivateKeyDer::Pkcs1(key) => rsa::KeyPair::from_der(key.secret_pkcs1_der()).ok()?,
            PrivateKeyDer::Sec1(_) | _ => return None,
        };
        Signer::rsa(pair).ok().map(Self)
    }

    /// URL of the account that the key has at the CA.
    ///
    /// # Errors
    /// Any of the CA's; [`AcmeErrorKind::Account`] where it has none.
    pub async fn find(&self, http: &CaHttp) -> Result<String, AcmeError> {
        http.read_directory().await?;
        let mut tries = NonceTries::default();
        loop {
            let payload = json!({ "onlyReturnExisting": true });
            let (result, observed) = observe(self.0.post(http, &http.new_account_url()?, &payload)).await;
            match result? {
                (StatusCode::OK, _) => {
                    let none = "the CA does not say where the account is";
                    return observed.location.ok_or_else(|| AcmeError::plain(AcmeErrorKind::Garbage, none));
                }
                (_, body) => tries.again(account_refusal(&body, observed))?,
            }
        }
    }

    /// Has the CA take `new` in the place of this key for the account at `account`.
    ///
    /// # Errors
    /// Any of the CA's. Where [`AcmeError::nothing_made`] is not set, the CA may have changed the key all the same.
    pub async fn change_to(&self, http: &CaHttp, account: &str, new: &AccountKey) -> Result<(), AcmeError> {
        let new = Signer::p256(new)?;
        let mut tries = NonceTries::default();
        loop {
            let ask = async {
                let (url, nonce) = (http.key_change_url()?, http.nonce().await?);
                let head = json!({ "jwk": new.jwk, "url": url });
                let payload = json!({ "account": account, "oldKey": self.0.jwk });
                let inner = new.sign(head, &payload).map_err(AcmeError::ours)?;
                let head = json!({ "kid": account, "nonce": nonce, "url": url });
                let outer = self.0.sign(head, &inner).map_err(AcmeError::ours)?;
                jws::post(http, &url, &outer).await
            };
            let (result, observed) = observe(ask).await;
            match result? {
                (status, _) if status.is_success() => return Ok(()),
                (_, body) => tries.again(account_refusal(&body, observed))?,
            }
        }
    }
}

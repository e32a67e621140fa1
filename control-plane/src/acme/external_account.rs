//! Registration with external account binding (RFC 8555 section 7.3.4).
//!
//! By our own request rather than by instant_acme, which makes the account's key itself where an external account is
//! bound: ours is stored, sealed, before the CA hears of it, as every other.

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::account::{AccountKey, NonceTries};
use super::error::{AcmeError, AcmeErrorKind};
use super::http::{CaHttp, observe};
use super::jws::{Signer, account_refusal, encode};

/// An account at the CA's owner that an ACME account is bound to. The secret is zeroed on drop, never printed.
pub struct ExternalAccount {
    key_id: String,
    secret: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for ExternalAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ExternalAccount").field(&self.key_id).finish()
    }
}

impl ExternalAccount {
    pub fn new(key_id: String, secret: Zeroizing<Vec<u8>>) -> Self {
        Self { key_id, secret }
    }

    /// Asks for an account of `key` that is bound to this one; answers its URL.
    pub(super) async fn register(
        &self,
        http: &CaHttp,
        key: &AccountKey,
        contact: Option<&str>,
    ) -> Result<String, AcmeError> {
        http.read_directory().await?;
        let signer = Signer::p256(key)?;
        let mut tries = NonceTries::default();
        loop {
            let (result, observed) = observe(self.ask(http, &signer, contact)).await;
            match result {
                Ok((StatusCode::OK | StatusCode::CREATED, _)) => {
                    let none = "the CA does not say where the account is";
                    return observed.location.ok_or_else(|| AcmeError::plain(AcmeErrorKind::Garbage, none));
                }
                Ok((_, body)) => tries.again(account_refusal(&body, observed))?,
                Err(error) => return Err(error),
            }
        }
    }

    async fn ask(
        &self,
        http: &CaHttp,
        signer: &Signer,
        contact: Option<&str>,
    ) -> Result<(StatusCode, Bytes), AcmeError> {
        let url = http.new_account_url()?;
        let payload = json!({
            "termsOfServiceAgreed": true,
            "contact": contact.into_iter().collect::<Vec<_>>(),
            "externalAccountBinding": self.binding(&signer.jwk, &url),
        });
        signer.post(http, &url, &payload).await
    }

    fn binding(&self, jwk: &Value, url: &str) -> Value {
        let protected = encode(json!({ "alg": "HS256", "kid": self.key_id, "url": url }).to_string());
        let payload = encode(jwk.to_string());
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &self.secret);
        let signature = encode(hmac::sign(&secret, format!("{protected}.{payload}").as_bytes()));
        json!({ "protected": protected, "payload": payload, "signature": signature })
    }
}

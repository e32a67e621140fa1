//! Registration with external account binding (RFC 8555 section 7.3.4).
//!
//! By our own request rather than by instant_acme, which makes the account's key itself where an external account is
//! bound: ours is stored, sealed, before the CA hears of it, as every other.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::account::{AccountKey, NonceTries};
use super::error::{AcmeError, AcmeErrorKind};
use super::http::{CaHttp, Observed, observe};

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
        let mut tries = NonceTries::default();
        loop {
            let (result, observed) = observe(self.ask(http, key, contact)).await;
            match result {
                Ok((StatusCode::OK | StatusCode::CREATED, _)) => {
                    let none = "the CA does not say where the account is";
                    return observed.location.ok_or_else(|| AcmeError::plain(AcmeErrorKind::Garbage, none));
                }
                Ok((_, body)) => tries.again(refusal(&body, observed))?,
                Err(error) => return Err(error),
            }
        }
    }

    async fn ask(
        &self,
        http: &CaHttp,
        key: &AccountKey,
        contact: Option<&str>,
    ) -> Result<(StatusCode, Bytes), AcmeError> {
        let (url, nonce) = http.new_account().await?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8())
            .map_err(AcmeError::ours)?;
        let body = self.request(&pair, &url, &nonce, contact).map_err(AcmeError::ours)?;
        let request = Request::post(&url)
            .header(CONTENT_TYPE, "application/jose+json")
            .body(Bytes::from(body.to_string()))
            .map_err(AcmeError::ours)?;
        let answer = http.ask(request).await?;
        Ok((answer.status(), answer.into_body()))
    }

    fn request(
        &self,
        pair: &EcdsaKeyPair,
        url: &str,
        nonce: &str,
        contact: Option<&str>,
    ) -> Result<Value, aws_lc_rs::error::Unspecified> {
        // Uncompressed: 0x04, x, y.
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        let jwk = json!({ "kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y) });
        let payload = json!({
            "termsOfServiceAgreed": true,
            "contact": contact.into_iter().collect::<Vec<_>>(),
            "externalAccountBinding": self.binding(&jwk, url),
        });
        let protected = json!({ "alg": "ES256", "jwk": jwk, "nonce": nonce, "url": url });
        let (protected, payload) = (encode(protected.to_string()), encode(payload.to_string()));
        let signature = pair.sign(&SystemRandom::new(), format!("{protected}.{payload}").as_bytes())?;
        Ok(json!({ "protected": protected, "payload": payload, "signature": encode(signature) }))
    }

    fn binding(&self, jwk: &Value, url: &str) -> Value {
        let protected = encode(json!({ "alg": "HS256", "kid": self.key_id, "url": url }).to_string());
        let payload = encode(jwk.to_string());
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &self.secret);
        let signature = encode(hmac::sign(&secret, format!("{protected}.{payload}").as_bytes()));
        json!({ "protected": protected, "payload": payload, "signature": signature })
    }
}

fn refusal(body: &[u8], observed: Observed) -> AcmeError {
    let error = match serde_json::from_slice(body) {
        Ok(problem) => instant_acme::Error::Api(problem),
        Err(error) => instant_acme::Error::Json(error),
    };
    let mut read = AcmeError::new(&error, observed);
    // Whatever the CA finds fault with, it is no name.
    if read.is_refusal() {
        read.kind = AcmeErrorKind::Account;
    }
    read
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

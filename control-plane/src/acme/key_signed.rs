//! Requests that a key signs for itself rather than for an account (RFC 8555 section 6.2), by our own hand: instant_acme signs
//! with an account's key alone.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode};
use serde_json::{Value, json};

use super::error::AcmeError;
use super::http::{CaHttp, Observed};

/// A P-256 key that signs.
pub(super) struct KeySigner(EcdsaKeyPair);

impl KeySigner {
    /// # Errors
    /// These bytes are no P-256 key.
    pub(super) fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, AcmeError> {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).map(Self).map_err(AcmeError::ours)
    }

    /// RFC 7517.
    pub(super) fn jwk(&self) -> Value {
        // Uncompressed: 0x04, x, y.
        let (x, y) = self.0.public_key().as_ref()[1..].split_at(32);
        json!({ "kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y) })
    }

    /// Sends `payload` to one of the CA's URLs; answers whatever comes.
    pub(super) async fn post(
        &self,
        http: &CaHttp,
        url: &str,
        payload: &Value,
    ) -> Result<(StatusCode, Bytes), AcmeError> {
        let nonce = http.nonce().await?;
        let body = self.signed(url, &nonce, payload).map_err(AcmeError::ours)?;
        let request = Request::post(url)
            .header(CONTENT_TYPE, "application/jose+json")
            .body(Bytes::from(body.to_string()))
            .map_err(AcmeError::ours)?;
        let answer = http.ask(request).await?;
        Ok((answer.status(), answer.into_body()))
    }

    fn signed(
        &self,
        url: &str,
        nonce: &str,
        payload: &Value,
    ) -> Result<Value, aws_lc_rs::error::Unspecified> {
        let protected = json!({ "alg": "ES256", "jwk": self.jwk(), "nonce": nonce, "url": url });
        let (protected, payload) = (encode(protected.to_string()), encode(payload.to_string()));
        let signature = self.0.sign(&SystemRandom::new(), format!("{protected}.{payload}").as_bytes())?;
        Ok(json!({ "protected": protected, "payload": payload, "signature": encode(signature) }))
    }
}

/// What a refusal says.
pub(super) fn refusal(body: &[u8], observed: Observed) -> AcmeError {
    let error = match serde_json::from_slice(body) {
        Ok(problem) => instant_acme::Error::Api(problem),
        Err(error) => instant_acme::Error::Json(error),
    };
    AcmeError::new(&error, observed)
}

pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

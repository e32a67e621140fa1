//! Requests of our own: a flattened JWS (RFC 8555 section 6.2), for what instant_acme does not send.

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode};
use serde_json::{Value, json};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::RSAPublicKey;

use super::account::AccountKey;
use super::error::{AcmeError, AcmeErrorKind};
use super::http::{CaHttp, Observed};

/// What signs a request, and how its public key is written down.
pub(super) struct Signer {
    pair: Pair,
    pub(super) jwk: Value,
}

enum Pair {
    P256(EcdsaKeyPair),
    Rsa(rsa::KeyPair),
}

impl Signer {
    /// # Errors
    /// The key cannot be read, which its constructor has ruled out.
    pub(super) fn p256(key: &AccountKey) -> Result<Self, AcmeError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8())
            .map_err(AcmeError::ours)?;
        Ok(Self::of_p256(pair))
    }

    fn of_p256(pair: EcdsaKeyPair) -> Self {
        // Uncompressed: 0x04, x, y.
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        let jwk = json!({ "kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y) });
        Self { pair: Pair::P256(pair), jwk }
    }

    /// # Errors
    /// The public key cannot be read.
    pub(super) fn rsa(pair: rsa::KeyPair) -> Result<Self, AcmeError> {
        let public = pair.public_key().as_ref().to_vec();
        let (_, parts) = RSAPublicKey::from_der(&public).map_err(AcmeError::ours)?;
        let number = |bytes: &[u8]| {
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            encode(&bytes[zeros..])
        };
        let jwk = json!({ "kty": "RSA", "n": number(parts.modulus), "e": number(parts.exponent) });
        Ok(Self { pair: Pair::Rsa(pair), jwk })
    }

    /// Of a certificate's key, P-256 or RSA in PKCS#8.
    ///
    /// # Errors
    /// It is no such key.
    pub(super) fn of_key(der: &[u8]) -> Result<Self, AcmeError> {
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der) {
            return Ok(Self::of_p256(pair));
        }
        Self::rsa(rsa::KeyPair::from_pkcs8(der).map_err(AcmeError::ours)?)
    }

    /// Sends `payload` to one of the CA's URLs, signed by the key for itself; answers whatever comes. The directory has been read.
    ///
    /// # Errors
    /// No answer came.
    pub(super) async fn post(
        &self,
        http: &CaHttp,
        url: &str,
        payload: &Value,
    ) -> Result<(StatusCode, Bytes), AcmeError> {
        let head = json!({ "jwk": self.jwk, "nonce": http.nonce().await?, "url": url });
        post(http, url, &self.sign(head, payload).map_err(AcmeError::ours)?).await
    }

    /// A JWS of this payload; `head` is what its protected header holds besides the algorithm.
    ///
    /// # Errors
    /// The signature cannot be made.
    pub(super) fn sign(&self, mut head: Value, payload: &Value) -> Result<Value, Unspecified> {
        head["alg"] = match self.pair {
            Pair::P256(_) => json!("ES256"),
            Pair::Rsa(_) => json!("RS256"),
        };
        let (protected, payload) = (encode(head.to_string()), encode(payload.to_string()));
        let text = format!("{protected}.{payload}");
        let signature = match &self.pair {
            Pair::P256(pair) => pair.sign(&SystemRandom::new(), text.as_bytes())?.as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)?;
                signature
            }
        };
        Ok(json!({ "protected": protected, "payload": payload, "signature": encode(signature) }))
    }
}

/// Sends a JWS.
///
/// # Errors
/// No answer came.
pub(super) async fn post(http: &CaHttp, url: &str, jws: &Value) -> Result<(StatusCode, Bytes), AcmeError> {
    let request = Request::post(url)
        .header(CONTENT_TYPE, "application/jose+json")
        .body(Bytes::from(jws.to_string()))
        .map_err(AcmeError::ours)?;
    let answer = http.ask(request).await?;
    Ok((answer.status(), answer.into_body()))
}

/// What a refusal says.
pub(super) fn refusal(body: &[u8], observed: Observed) -> AcmeError {
    let error = match serde_json::from_slice(body) {
        Ok(problem) => instant_acme::Error::Api(problem),
        Err(error) => instant_acme::Error::Json(error),
    };
    AcmeError::new(&error, observed)
}

/// What a refusal of a request about an account says: whatever the CA finds fault with, it is no name.
pub(super) fn account_refusal(body: &[u8], observed: Observed) -> AcmeError {
    let mut read = refusal(body, observed);
    if read.is_refusal() {
        read.kind = AcmeErrorKind::Account;
    }
    read
}

pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

    use super::*;

    #[test]
    fn either_kind_of_key_signs_what_its_public_key_verifies() {
        let key = AccountKey::generate().unwrap();
        let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
        let public = pair.public_key().as_ref().to_vec();
        let decode = |text: &Value| BASE64_URL_SAFE_NO_PAD.decode(text.as_str().unwrap()).unwrap();
        for (signer, algorithm) in
            [(Signer::p256(&key).unwrap(), "ES256"), (Signer::rsa(pair).unwrap(), "RS256")]
        {
            let jws = signer.sign(json!({ "url": "https://ca.example/x" }), &json!({ "a": 1 })).unwrap();
            let head: Value = serde_json::from_slice(&decode(&jws["protected"])).unwrap();
            assert_eq!(head, json!({ "alg": algorithm, "url": "https://ca.example/x" }));
            let text = format!("{}.{}", jws["protected"].as_str().unwrap(), jws["payload"].as_str().unwrap());
            let signature = decode(&jws["signature"]);
            let verified = match algorithm {
                "ES256" => {
                    let point = [&[4], &*decode(&signer.jwk["x"]), &*decode(&signer.jwk["y"])].concat();
                    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                        .verify(text.as_bytes(), &signature)
                }
                _ => {
                    assert_eq!((decode(&signer.jwk["n"]).len(), &signer.jwk["e"]), (256, &json!("AQAB")));
                    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &public)
                        .verify(text.as_bytes(), &signature)
                }
            };
            verified.unwrap();
        }
    }
}

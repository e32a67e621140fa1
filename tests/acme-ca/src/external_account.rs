//! External account binding (RFC 8555 section 7.3.4): a new account shows that its key's owner knows a secret that the CA
//! gave out elsewhere.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;

use crate::jws::{PublicKey, RawJwk};
use crate::problem::{Kind, Problem};

/// A secret that the CA gave out; no secret worth hiding, for this CA is for tests.
#[derive(Clone, PartialEq, Eq)]
pub struct ExternalAccount {
    pub key_id: String,
    pub hmac_key: Vec<u8>,
}

impl FromStr for ExternalAccount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected KEY_ID=SECRET with a secret of base64url without padding";
        let (key_id, secret) = text.split_once('=').ok_or(expected)?;
        let hmac_key = BASE64_URL_SAFE_NO_PAD.decode(secret).map_err(|_| expected)?;
        if key_id.is_empty() || hmac_key.is_empty() {
            return Err(expected.to_owned());
        }
        Ok(Self { key_id: key_id.to_owned(), hmac_key })
    }
}

impl fmt::Debug for ExternalAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExternalAccount").field(&self.key_id).finish()
    }
}

#[derive(Deserialize)]
struct Binding {
    protected: String,
    payload: String,
    signature: String,
}

#[derive(Deserialize)]
struct Protected {
    alg: String,
    kid: String,
    url: String,
    nonce: Option<String>,
}

/// The key id of the external account that a new account is bound to; `None`: this CA wants none.
///
/// # Errors
/// `externalAccountRequired`, `malformed` or `unauthorized`.
pub(crate) fn check<'a>(
    known: &'a [ExternalAccount],
    binding: Option<&Value>,
    account_key: &PublicKey,
    url: &str,
) -> Result<Option<&'a str>, Problem> {
    if known.is_empty() {
        return Ok(None);
    }
    let Some(binding) = binding else {
        return Err(Problem::new(Kind::ExternalAccountRequired, "a new account needs an external account"));
    };
    let malformed = |what: &str| Problem::malformed(format!("externalAccountBinding: {what}"));
    let binding: Binding = Binding::deserialize(binding).map_err(|_| malformed("not a flattened JWS"))?;
    let decode =
        |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed("not unpadded base64url"));
    let protected: Protected = serde_json::from_slice(&decode(&binding.protected)?)
        .map_err(|_| malformed("the protected header is not understood"))?;
    if protected.alg != "HS256" || protected.nonce.is_some() || protected.url != url {
        return Err(malformed("alg must be HS256, url that of the outer JWS, and there must be no nonce"));
    }
    let payload = decode(&binding.payload)?;
    let jwk: RawJwk = serde_json::from_slice(&payload).map_err(|_| malformed("the payload is not a JWK"))?;
    if PublicKey::from_jwk(&jwk)? != *account_key {
        return Err(malformed("the payload is not the key of the new account"));
    }
    let external = known.iter().find(|external| external.key_id == protected.kid);
    let external = external.ok_or_else(|| Problem::unauthorized("no external account has this key id"))?;
    let input = format!("{}.{}", binding.protected, binding.payload);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &external.hmac_key);
    hmac::verify(&key, input.as_bytes(), &decode(&binding.signature)?)
        .map_err(|_| Problem::unauthorized("the external account's signature does not verify"))?;
    Ok(Some(&external.key_id))
}

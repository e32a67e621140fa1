//! Flattened JWS (RFC 7515) with the strictness of RFC 8555 section 6.2: one signature, no unprotected
//! header, `alg`, `nonce` and `url` protected, and either `jwk` or `kid`.
//!
//! ES256 and RS256 are taken, as public CAs do (certbot signs with RSA by default). No MAC algorithm: that of an external
//! account is [`crate::external_account`]'s.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::problem::{Kind, Problem};

/// A parsed JWS whose signature has not been checked yet.
#[derive(Debug)]
pub(crate) struct Jws {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    signing_input: Vec<u8>,
    signature: Vec<u8>,
}

/// What the protected header says.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) algorithm: Algorithm,
    pub(crate) key: KeyReference,
    pub(crate) nonce: Option<String>,
    pub(crate) url: String,
}

/// `jwk` or `kid`, never both.
#[derive(Debug)]
pub(crate) enum KeyReference {
    Embedded(PublicKey),
    Account(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Es256,
    Rs256,
}

/// A public key that may sign requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PublicKey {
    /// The uncompressed point: 0x04, x, y.
    P256 { point: Vec<u8> },
    /// Modulus and exponent, big-endian, no leading zero.
    Rsa { n: Vec<u8>, e: Vec<u8> },
}

impl Jws {
    /// Reads a request body.
    ///
    /// # Errors
    /// `malformed`, `badSignatureAlgorithm` or `badPublicKey`.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let raw: RawJws = serde_json::from_slice(body)
            .map_err(|error| Problem::malformed(format!("the body is not a flattened JWS: {error}")))?;
        if raw.header.is_some() {
            return Err(Problem::malformed("an unprotected header is not allowed"));
        }
        if raw.signatures.is_some() {
            return Err(Problem::malformed("exactly one signature is allowed"));
        }
        let protected = decode("protected", &raw.protected)?;
        let payload = decode("payload", &raw.payload)?;
        let signature = decode("signature", &raw.signature)?;
        let header = parse_header(&protected)?;
        let signing_input = format!("{}.{}", raw.protected, raw.payload).into_bytes();
        Ok(Self { header, payload, signing_input, signature })
    }

    /// Checks the signature with `key`.
    ///
    /// # Errors
    /// `malformed` when the algorithm is not the key's or the signature is wrong.
    pub(crate) fn verify(&self, key: &PublicKey) -> Result<(), Problem> {
        let outcome = match (key, self.header.algorithm) {
            (PublicKey::P256 { point }, Algorithm::Es256) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                    .verify(&self.signing_input, &self.signature)
            }
            (PublicKey::Rsa { n, e }, Algorithm::Rs256) => RsaPublicKeyComponents { n, e }.verify(
                &RSA_PKCS1_2048_8192_SHA256,
                &self.signing_input,
                &self.signature,
            ),
            (PublicKey::P256 { .. }, Algorithm::Rs256) | (PublicKey::Rsa { .. }, Algorithm::Es256) => {
                return Err(Problem::malformed("alg is not the algorithm of the key"));
            }
        };
        outcome.map_err(|_| Problem::malformed("the signature does not verify"))
    }
}

impl PublicKey {
    /// Reads a JWK.
    ///
    /// # Errors
    /// `badPublicKey` for another kind of key or a wrong one.
    pub(crate) fn from_jwk(jwk: &RawJwk) -> Result<Self, Problem> {
        match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("EC", Some("P-256")) => {
                let x = member(jwk.x.as_deref(), "x")?;
                let y = member(jwk.y.as_deref(), "y")?;
                if x.len() != 32 || y.len() != 32 {
                    return Err(bad_key("x and y of a P-256 key have 32 bytes"));
                }
                Ok(Self::P256 { point: [&[4], &x[..], &y[..]].concat() })
            }
            ("RSA", _) => {
                let n = member(jwk.n.as_deref(), "n")?;
                let e = member(jwk.e.as_deref(), "e")?;
                if !(256..=512).contains(&n.len()) || n[0] == 0 {
                    return Err(bad_key("an RSA key has 2048 to 4096 bits"));
                }
                if e.is_empty() || e.len() > 4 || e[0] == 0 {
                    return Err(bad_key("the RSA exponent is out of range"));
                }
                Ok(Self::Rsa { n, e })
            }
            _ => Err(bad_key("account keys are P-256 or RSA")),
        }
    }

    /// The JWK thumbprint (RFC 7638), base64url.
    pub(crate) fn thumbprint(&self) -> String {
        let canonical = match self {
            Self::P256 { point } => {
                let (x, y) = point[1..].split_at(32);
                format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, encode(x), encode(y))
            }
            Self::Rsa { n, e } => format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, encode(e), encode(n)),
        };
        encode(digest(&SHA256, canonical.as_bytes()).as_ref())
    }
}

/// A JWK as sent; members that do not matter here are ignored.
#[derive(Debug, Deserialize)]
pub(crate) struct RawJwk {
    kty: String,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

#[derive(Deserialize)]
struct RawJws {
    protected: String,
    payload: String,
    signature: String,
    header: Option<serde_json::Value>,
    signatures: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawHeader {
    alg: String,
    jwk: Option<RawJwk>,
    kid: Option<String>,
    nonce: Option<String>,
    url: Option<String>,
    crit: Option<serde_json::Value>,
}

fn parse_header(protected: &[u8]) -> Result<Header, Problem> {
    let raw: RawHeader = serde_json::from_slice(protected)
        .map_err(|error| Problem::malformed(format!("the protected header is not understood: {error}")))?;
    let algorithm = match raw.alg.as_str() {
        "ES256" => Algorithm::Es256,
        "RS256" => Algorithm::Rs256,
        other => {
            let detail = format!("alg {other:?} is not taken; use ES256 or RS256");
            return Err(Problem::new(Kind::BadSignatureAlgorithm, detail));
        }
    };
    if raw.crit.is_some() {
        return Err(Problem::malformed("critical header parameters are not understood"));
    }
    let key = match (raw.jwk, raw.kid) {
        (Some(jwk), None) => KeyReference::Embedded(PublicKey::from_jwk(&jwk)?),
        (None, Some(kid)) => KeyReference::Account(kid),
        (Some(_), Some(_)) => return Err(Problem::malformed("jwk and kid exclude each other")),
        (None, None) => return Err(Problem::malformed("neither jwk nor kid is given")),
    };
    let url = raw.url.ok_or_else(|| Problem::malformed("the protected header has no url"))?;
    Ok(Header { algorithm, key, nonce: raw.nonce, url })
}

fn member(value: Option<&str>, name: &str) -> Result<Vec<u8>, Problem> {
    let text = value.ok_or_else(|| bad_key(&format!("the jwk has no {name}")))?;
    BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| bad_key(&format!("{name} is not unpadded base64url")))
}

fn bad_key(detail: &str) -> Problem {
    Problem::new(Kind::BadPublicKey, detail)
}

fn decode(what: &str, text: &str) -> Result<Vec<u8>, Problem> {
    BASE64_URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|error| Problem::malformed(format!("{what} is not unpadded base64url: {error}")))
}

fn encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thumbprint_is_that_of_rfc_7638() {
        let n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_\
                 BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_\
                 FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI\
                 4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
        let jwk: RawJwk =
            serde_json::from_value(serde_json::json!({"kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256"}))
                .unwrap();
        let key = PublicKey::from_jwk(&jwk).unwrap();
        assert_eq!(key.thumbprint(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
    }

    #[test]
    fn wrong_forms_are_told_apart() {
        let cases: [(&str, Kind); 6] = [
            ("{", Kind::Malformed),
            (r#"{"protected":"e30","payload":"","signature":"","header":{}}"#, Kind::Malformed),
            (r#"{"protected":"e3","payload":"","signature":""}"#, Kind::Malformed),
            (r#"{"protected":"e30=","payload":"","signature":""}"#, Kind::Malformed),
            (r#"{"protected":"e30","payload":"","signature":""}"#, Kind::Malformed),
            // {"alg":"HS256","kid":"x","url":"y"}
            (
                r#"{"protected":"eyJhbGciOiJIUzI1NiIsImtpZCI6IngiLCJ1cmwiOiJ5In0","payload":"","signature":""}"#,
                Kind::BadSignatureAlgorithm,
            ),
        ];
        for (body, kind) in cases {
            assert_eq!(Jws::parse(body.as_bytes()).unwrap_err().kind, kind, "{body}");
        }
    }
}

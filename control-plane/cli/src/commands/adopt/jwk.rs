//! A private key that is written as a JSON Web Key (RFC 7517), as certbot has those of its accounts, in PEM.

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use portico_api::v1::SecretPem;
use serde::Deserialize;
use zeroize::{Zeroize as _, Zeroizing};

/// RSA (RFC 7518 section 6.3) or an elliptic curve (6.2), with its private part.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    d: Option<String>,
    p: Option<String>,
    q: Option<String>,
    dp: Option<String>,
    dq: Option<String>,
    qi: Option<String>,
}

impl Drop for Jwk {
    fn drop(&mut self) {
        for part in [&mut self.d, &mut self.p, &mut self.q, &mut self.dp, &mut self.dq, &mut self.qi] {
            part.zeroize();
        }
    }
}

/// PKCS#1 or SEC 1.
///
/// # Errors
/// In words; never a part of the key.
pub(super) fn pem(text: &str) -> Result<SecretPem, String> {
    let jwk: Jwk = serde_json::from_str(text).map_err(|_| "holds no JSON Web Key".to_owned())?;
    match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => rsa(&jwk),
        ("EC", Some("P-256")) => p256(&jwk),
        (kind, curve) => Err(format!(
            "holds a key of the kind {kind} {}, and only P-256 and RSA can be taken over",
            curve.unwrap_or_default()
        )),
    }
}

/// `RSAPrivateKey` of RFC 8017, appendix A.1.2.
fn rsa(jwk: &Jwk) -> Result<SecretPem, String> {
    let mut body = Zeroizing::new(vec![0x02, 1, 0]);
    let parts = [
        ("n", &jwk.n),
        ("e", &jwk.e),
        ("d", &jwk.d),
        ("p", &jwk.p),
        ("q", &jwk.q),
        ("dp", &jwk.dp),
        ("dq", &jwk.dq),
        ("qi", &jwk.qi),
    ];
    for (name, part) in parts {
        let number = decoded(name, part.as_deref())?;
        let zeros = number.iter().take_while(|byte| **byte == 0).count();
        let digits = &number[zeros..];
        // A first bit that is set would be a sign.
        let sign: &[u8] = if digits.first().is_none_or(|first| *first >= 0x80) { &[0] } else { &[] };
        put(&mut body, 0x02, &[sign, digits]);
    }
    let mut der = Zeroizing::new(Vec::new());
    put(&mut der, 0x30, &[&body]);
    Ok(armoured("RSA PRIVATE KEY", &der))
}

/// `ECPrivateKey` of RFC 5915.
fn p256(jwk: &Jwk) -> Result<SecretPem, String> {
    const P256: [u8; 10] = [0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let coordinate = |name, part: &Option<String>| {
        let bytes = decoded(name, part.as_deref())?;
        if bytes.len() == 32 { Ok(bytes) } else { Err(format!("{name} of its P-256 key has not 32 bytes")) }
    };
    let (d, x, y) = (coordinate("d", &jwk.d)?, coordinate("x", &jwk.x)?, coordinate("y", &jwk.y)?);
    let mut body = Zeroizing::new(vec![0x02, 1, 1]);
    put(&mut body, 0x04, &[&d]);
    put(&mut body, 0xa0, &[&P256]);
    let mut point = Vec::new();
    put(&mut point, 0x03, &[&[0, 4], &x, &y]);
    put(&mut body, 0xa1, &[&point]);
    let mut der = Zeroizing::new(Vec::new());
    put(&mut der, 0x30, &[&body]);
    Ok(armoured("EC PRIVATE KEY", &der))
}

fn decoded(name: &str, part: Option<&str>) -> Result<Zeroizing<Vec<u8>>, String> {
    let part = part.ok_or_else(|| format!("holds a key without its part {name}"))?;
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(part.trim_end_matches('='));
    bytes.map(Zeroizing::new).map_err(|_| format!("holds a key whose part {name} is no base64url"))
}

/// One DER element.
fn put(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.push(tag);
    let bytes = length.to_be_bytes();
    let digits = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
    if length >= 0x80 {
        out.push(0x80 | u8::try_from(digits.len()).unwrap_or(0x7f));
        out.extend_from_slice(digits);
    } else {
        out.extend(u8::try_from(length));
    }
    for part in parts {
        out.extend_from_slice(part);
    }
}

fn armoured(label: &str, der: &[u8]) -> SecretPem {
    let body = Zeroizing::new(BASE64_STANDARD.encode(der));
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    SecretPem::new(text)
}

#[cfg(test)]
mod tests {
    use portico_cert_store::{KeyType, PrivateKey};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_p256_key_is_the_same_in_pem() {
        let key = rcgen::KeyPair::generate().unwrap();
        let pkcs8 = PrivateKey::from_pem(key.serialize_pem().as_bytes()).unwrap();
        // PKCS#8 of this length holds the scalar at a fixed place; the point is public.
        let der = pkcs8.secret_der();
        let scalar = &der[36..68];
        let point = key.public_key_raw();
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let jwk = json!({
            "kty": "EC", "crv": "P-256", "d": encode(scalar), "x": encode(&point[1..33]), "y": encode(&point[33..65]),
        });
        let made = pem(&jwk.to_string()).unwrap();
        let read = PrivateKey::from_pem(made.reveal().as_bytes()).unwrap();
        assert_eq!((read.key_type(), read.spki_sha256()), (KeyType::EcdsaP256, pkcs8.spki_sha256()));
    }

    #[test]
    fn other_keys_and_none_are_refused_without_a_word_of_them() {
        for (text, words) in [
            ("secret", "no JSON Web Key"),
            (r#"{"kty":"EC","crv":"P-384","d":"c2VjcmV0"}"#, "only P-256 and RSA"),
            (r#"{"kty":"RSA","n":"AQAB","d":"c2VjcmV0"}"#, "without its part e"),
            (r#"{"kty":"RSA","n":"AQ AB"}"#, "part n is no base64url"),
        ] {
            let told = pem(text).unwrap_err();
            assert!(told.contains(words) && !told.contains("c2VjcmV0"), "{told}");
        }
    }
}

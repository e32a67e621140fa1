//! Who a client is by its verified certificate, as its name's origin is told.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;
use x509_parser::{
    asn1_rs::{BmpString, Tag},
    der_parser::asn1_rs::Any,
    prelude::{FromDer as _, X509Certificate},
    x509::X509Name,
};

/// The leaf in DER, a byte sequence of structured fields (RFC 9440 section 2.2).
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
/// The leaf's subject (RFC 4514), all but visible ASCII escaped.
pub const CLIENT_CERT_SUBJECT: HeaderName = HeaderName::from_static("x-client-cert-subject");
/// SHA-256 of the leaf in DER, lower-case hexadecimal.
pub const CLIENT_CERT_SHA256: HeaderName = HeaderName::from_static("x-client-cert-sha256");

/// A client whose certificate leads to its name's authorities. Made once for a connection.
#[derive(Debug, Clone)]
pub struct ClientIdentity {
    pub headers: [(HeaderName, HeaderValue); 3],
}

impl ClientIdentity {
    /// Of a verified chain; None: the client has shown no certificate.
    pub fn of(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let leaf = chain.first()?;
        let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
        let headers = [
            (CLIENT_CERT, format!(":{}:", BASE64_STANDARD.encode(leaf))),
            (CLIENT_CERT_SUBJECT, distinguished_name(parsed.subject())),
            (CLIENT_CERT_SHA256, hex::encode(digest(&SHA256, leaf))),
        ];
        let value = |text: String| HeaderValue::try_from(text).expect("it is visible ASCII");
        Some(Self { headers: headers.map(|(name, text)| (name, value(text))) })
    }
}

/// RFC 4514: the last part first; what is no ASCII letter, digit or harmless mark is escaped, so that a name reads one way
/// only, whoever reads it.
fn distinguished_name(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for (place, part) in parts.into_iter().rev().enumerate() {
        if place > 0 {
            text.push(',');
        }
        for (place, attribute) in part.iter().enumerate() {
            if place > 0 {
                text.push('+');
            }
            let oid = attribute.attr_type().to_id_string();
            match (short_name(&oid), value_text(attribute.attr_value())) {
                (Some(short), Some(value)) => {
                    text.push_str(short);
                    text.push('=');
                    escape(&value, &mut text);
                }
                // Section 2.4: of a type without a name here, the value's bytes.
                (short, _) => {
                    text.push_str(short.unwrap_or(&oid));
                    text.push_str("=#");
                    text.push_str(&hex::encode(attribute.attr_value().data));
                }
            }
        }
    }
    text
}

/// The names of section 3, and what private authorities use beside them.
fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return None,
    })
}

fn value_text(value: &Any<'_>) -> Option<String> {
    match value.tag() {
        Tag::BmpString => BmpString::try_from(value).ok().map(|text| text.string()),
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString => {
            std::str::from_utf8(value.data).ok().map(str::to_owned)
        }
        _ => None,
    }
}

fn escape(value: &str, text: &mut String) {
    let last = value.len().saturating_sub(1);
    for (place, byte) in value.bytes().enumerate() {
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' | b'=' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b'#' | b' ' if place == 0 => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b' ' if place == last => text.push_str("\\ "),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => {
                let _infallible = write!(text, "\\{byte:02x}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};

    fn shown(parts: &[(DnType, DnValue)]) -> ClientIdentity {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in parts {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        ClientIdentity::of(&[certificate.der().clone()]).unwrap()
    }

    fn subject(parts: &[(DnType, DnValue)]) -> String {
        shown(parts).headers[1].1.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_subject_reads_one_way_only() {
        let text = |text: &str| DnValue::Utf8String(text.to_owned());
        let unit = [(DnType::OrganizationName, text("Shop")), (DnType::CommonName, text("till 7"))];
        assert_eq!(subject(&unit), "CN=till 7,O=Shop");
        let odd = [
            (DnType::CommonName, text("a,CN=admin")),
            (DnType::OrganizationalUnitName, text("#x+\"y\";\\<z> ")),
            (DnType::LocalityName, text("Köln\r\nX: y")),
            (DnType::CountryName, DnValue::PrintableString("DE".try_into().unwrap())),
            (DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 9]), text("own")),
            (DnType::StateOrProvinceName, DnValue::BmpString("Ä".try_into().unwrap())),
            (DnType::OrganizationName, text(" ")),
        ];
        assert_eq!(
            subject(&odd),
            "O=\\ ,ST=\\c3\\84,1.3.6.1.4.1.9=#6f776e,C=DE,L=K\\c3\\b6ln\\0d\\0aX: y,\
             OU=\\#x\\+\\\"y\\\"\\;\\\\\\<z\\>\\ ,CN=a\\,CN\\=admin"
        );
        assert_eq!(subject(&[]), "");
    }

    #[test]
    fn the_leaf_goes_on_as_rfc_9440_has_it() {
        let identity = shown(&[(DnType::CommonName, DnValue::Utf8String("x".to_owned()))]);
        let [(_, leaf), _, (_, sha256)] = &identity.headers;
        let inner = leaf.to_str().unwrap().strip_prefix(':').unwrap().strip_suffix(':').unwrap();
        let der = BASE64_STANDARD.decode(inner).unwrap();
        assert_eq!(sha256.to_str().unwrap(), hex::encode(digest(&SHA256, &der)));
        assert!(ClientIdentity::of(&[]).is_none());
    }
}

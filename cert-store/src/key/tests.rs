use aws_lc_rs::encoding::EcPrivateKeyRfc5915Der;
use base64::Engine;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::*;
use crate::fixture::{self, P256, RSA};

const ALL: [KeyType; 4] = [KeyType::EcdsaP256, KeyType::EcdsaP384, KeyType::Ed25519, KeyType::Rsa2048];

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("some text\n-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

#[test]
fn generated_keys_have_the_type_asked_for_and_read_back() {
    for key_type in ALL {
        let key = fixture::key(key_type);
        assert_eq!(key.key_type(), key_type);
        let again = PrivateKey::from_pem(pem("PRIVATE KEY", key.secret_der()).as_bytes()).unwrap();
        assert_eq!(again.spki_sha256(), key.spki_sha256());
    }
}

#[test]
fn sec1_and_pkcs1_files_become_pkcs8() {
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, P256.secret_der()).unwrap();
    let sec1: EcPrivateKeyRfc5915Der<'_> = pair.private_key().as_der().unwrap();
    let key = PrivateKey::from_pem(pem("EC PRIVATE KEY", sec1.as_ref()).as_bytes()).unwrap();
    assert_eq!(key.spki_sha256(), P256.spki_sha256());

    // RSA in PKCS#8 is 26 bytes of header around PKCS#1.
    let pkcs1 = &RSA.secret_der()[26..];
    let key = PrivateKey::from_pem(pem("RSA PRIVATE KEY", pkcs1).as_bytes()).unwrap();
    assert_eq!(key.spki_sha256(), RSA.spki_sha256());
}

#[test]
fn a_request_holds_the_names_and_the_key_and_no_subject() {
    let names = ["www.example.org", "*.example.org"].map(|name| NamePattern::parse(name).unwrap());
    for key_type in ALL {
        let key = fixture::key(key_type);
        let der = key.csr(&names).unwrap();
        let (rest, request) = X509CertificationRequest::from_der(&der).unwrap();
        assert!(rest.is_empty());
        request.verify_signature().unwrap();
        let info = &request.certification_request_info;
        assert_eq!(info.subject.to_string(), "");
        assert_eq!(sha256(info.subject_pki.raw), key.spki_sha256());
        let extensions = format!("{:?}", request.requested_extensions().unwrap().collect::<Vec<_>>());
        assert!(
            extensions.contains("www.example.org") && extensions.contains("*.example.org"),
            "{extensions}"
        );
    }
}

#[test]
fn debug_output_holds_no_byte_of_a_key() {
    assert_eq!(format!("{:?}", *P256), "PrivateKey(ECDSA P-256, secret)");
    assert_eq!(format!("{:#?}", Some(&*RSA)).lines().count(), 3);
}

#[test]
fn what_is_not_a_key_is_refused_in_words() {
    let encrypted = pem("ENCRYPTED PRIVATE KEY", b"0000");
    for wrong in [b"".as_slice(), b"hello", encrypted.as_bytes(), b"-----BEGIN PRIVATE KEY-----\n!!\n"] {
        assert_eq!(PrivateKey::from_pem(wrong).unwrap_err(), PrivateKeyError::NotFound);
    }
    let garbage = pem("PRIVATE KEY", &[0x30; 200]);
    assert_eq!(PrivateKey::from_pem(garbage.as_bytes()).unwrap_err(), PrivateKeyError::Unsupported);
    let huge = vec![b'a'; KEY_BYTES_MAX + 1];
    assert!(matches!(PrivateKey::from_pem(&huge), Err(PrivateKeyError::TooLarge { .. })));
    assert!(matches!(PrivateKey::from_pkcs8_der(&huge), Err(PrivateKeyError::TooLarge { .. })));
}

#[test]
fn a_cut_key_is_refused_at_every_length() {
    let der = P256.secret_der();
    for length in 0..der.len() {
        assert!(PrivateKey::from_pkcs8_der(&der[..length]).is_err(), "{length}");
    }
}

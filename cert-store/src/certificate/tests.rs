use proptest::prelude::*;

use super::*;
use crate::fixture::{self, CA, Ca, DAY, ED25519, NOW_SECONDS, P256, RSA, at, now};
use crate::key::PrivateKey;

fn patterns(names: &[&str]) -> Vec<NamePattern> {
    names.iter().map(|name| NamePattern::parse(name).unwrap()).collect()
}

#[test]
fn facts_are_those_of_the_leaf() {
    for (key, key_type) in
        [(&*P256, KeyType::EcdsaP256), (&*RSA, KeyType::Rsa2048), (&*ED25519, KeyType::Ed25519)]
    {
        let chain = fixture::chain(&["www.example.org", "*.example.org"], key);
        let facts = chain.facts();
        assert_eq!(facts.names, patterns(&["www.example.org", "*.example.org"]));
        assert_eq!(facts.not_before, at(NOW_SECONDS - 30 * DAY));
        assert_eq!(facts.not_after, at(NOW_SECONDS + 30 * DAY));
        assert_eq!(facts.spki_sha256, key.spki_sha256());
        assert_eq!(facts.key_type, key_type);
        assert_eq!(&*facts.issuer, "CN=Portico test intermediate");
        assert_eq!(facts.fingerprint_sha256, sha256(chain.leaf()));
        assert!((1..=20).contains(&facts.serial.len()));
        assert!(facts.covers(&DomainName::parse("b.example.org").unwrap()));
        assert!(!facts.covers(&DomainName::parse("a.b.example.org").unwrap()));
    }
}

#[test]
fn pem_reads_back_and_passes_over_a_key() {
    let chain = fixture::chain(&["a.example.org"], &P256);
    let pem = format!("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n{}", chain.to_pem());
    let again = CertificateChain::parse_pem(pem.as_bytes()).unwrap();
    assert_eq!(again.to_vec(), chain.to_vec());
    assert!(pem.lines().all(|line| line.len() <= 64));
}

#[test]
fn names_that_cannot_be_served_are_left_out() {
    let chain = fixture::chain(&["192.0.2.1", "localhost", "a.example.org"], &P256);
    assert_eq!(chain.facts().names, patterns(&["a.example.org"]));
    let only_address = CA.leaf(&["192.0.2.1"], &P256, NOW_SECONDS, NOW_SECONDS + DAY);
    assert_eq!(CertificateChain::parse_der(vec![only_address]).unwrap_err(), CertificateError::NoNames);
}

#[test]
fn wrong_chains_are_refused_in_words() {
    use CertificateError as E;
    let chain = fixture::chain(&["a.example.org"], &P256);
    let leaf = chain.leaf().clone();
    assert_eq!(CertificateChain::parse_der(vec![]).unwrap_err(), E::Empty);
    assert_eq!(CertificateChain::parse_pem(b"no certificate").unwrap_err(), E::Empty);
    assert!(matches!(
        CertificateChain::parse_pem(b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"),
        Err(E::Pem { .. })
    ));
    let longest = vec![leaf.clone(); CHAIN_LENGTH_MAX];
    assert!(CertificateChain::parse_der(longest).is_ok());
    let length = CHAIN_LENGTH_MAX + 1;
    let long = vec![leaf.clone(); length];
    assert_eq!(CertificateChain::parse_der(long).unwrap_err(), E::ChainTooLong { length });
    let big = CertificateDer::from(vec![0x30; CERTIFICATE_BYTES_MAX + 1]);
    assert!(matches!(CertificateChain::parse_der(vec![big]), Err(E::TooLarge { index: 0, .. })));
    let garbage = CertificateDer::from(vec![0x30, 0x80, 1, 2]);
    assert!(matches!(CertificateChain::parse_der(vec![leaf.clone(), garbage]), Err(E::Der { index: 1, .. })));
    let trailing = CertificateDer::from([leaf.as_ref(), b"x"].concat());
    assert!(matches!(CertificateChain::parse_der(vec![trailing]), Err(E::Der { index: 0, .. })));
}

#[test]
fn the_activation_gate_tells_what_is_wrong() {
    use CertificateError as E;
    let chain = fixture::chain(&["a.example.org", "*.b.example.org"], &P256);
    let roots = CA.roots();
    let check = |names: &[&str], seconds| chain.check_chain(&roots, &patterns(names), at(seconds));
    check(&["a.example.org", "x.b.example.org", "*.b.example.org"], NOW_SECONDS).unwrap();

    for missing in ["b.example.org", "*.example.org", "c.example.org", "x.a.example.org"] {
        let error = check(&["a.example.org", missing], NOW_SECONDS).unwrap_err();
        assert!(matches!(&error, E::NameNotCovered { name, .. } if name == missing), "{error:?}");
        assert!(error.to_string().contains("*.b.example.org"), "{error}");
    }
    assert!(matches!(check(&["a.example.org"], NOW_SECONDS + 31 * DAY), Err(E::Expired { .. })));
    assert!(matches!(check(&["a.example.org"], NOW_SECONDS - 31 * DAY), Err(E::NotYetValid { .. })));

    let other_roots = Ca::new("Another").roots();
    assert!(matches!(chain.check_chain(&other_roots, &[], now()), Err(E::Untrusted { .. })));
    let without_intermediate = CertificateChain::parse_der(vec![chain.leaf().clone()]).unwrap();
    let error = without_intermediate.check_chain(&roots, &[], now()).unwrap_err();
    assert!(error.to_string().contains("add the missing intermediates"), "{error}");
}

#[test]
fn equal_intermediates_are_stored_once_and_forgotten_with_their_last_user() {
    let interner = ChainInterner::new();
    let intermediates = |chain: CertificateChain| interner.intern(Arc::clone(chain.intermediates()));
    let first = intermediates(fixture::chain(&["a.example.org"], &P256));
    let second = intermediates(fixture::chain(&["b.example.org"], &P256));
    let third = intermediates(Ca::new("Another").chain(&["a.example.org"], &P256, 0, NOW_SECONDS));
    assert!(Arc::ptr_eq(&first, &second));
    assert!(!Arc::ptr_eq(&first, &third));
    assert_eq!(interner.len(), 2);
    drop((first, third));
    assert_eq!(interner.len(), 1);
    drop(second);
    assert!(interner.is_empty());
}

#[test]
fn an_interner_does_not_grow_with_dead_lists() {
    let interner = ChainInterner::new();
    for serial in 0..10_000_u32 {
        interner.intern([CertificateDer::from(serial.to_be_bytes().to_vec())].into());
    }
    assert!(interner.lists.lock().unwrap().capacity() < 64);
}

#[test]
fn an_unsupported_key_is_named() {
    let der = aws_lc_rs::signature::EcdsaKeyPair::generate_pkcs8(
        &aws_lc_rs::signature::ECDSA_P521_SHA512_ASN1_SIGNING,
        &aws_lc_rs::rand::SystemRandom::new(),
    )
    .unwrap();
    assert!(PrivateKey::from_pkcs8_der(der.as_ref()).is_err());
    assert!(matches!(KeyType::of_spki_der(b"nonsense"), Err(CertificateError::KeyType { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn damaged_certificates_never_panic(flip in any::<prop::sample::Index>(), value: u8, cut in any::<prop::sample::Index>()) {
        static LEAF: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            fixture::chain(&["a.example.org", "*.b.example.org"], &P256).leaf().to_vec()
        });
        let mut leaf = LEAF.clone();
        let at = flip.index(leaf.len());
        leaf[at] = value;
        let _ = CertificateChain::parse_der(vec![leaf.clone().into(), leaf.clone().into()]);
        leaf.truncate(cut.index(leaf.len()));
        let _ = CertificateChain::parse_der(vec![leaf.into()]);
    }
}

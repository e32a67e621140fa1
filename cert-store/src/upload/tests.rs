use std::fmt::Write as _;

use rcgen::{
    CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::*;
use crate::fixture::{CA, Ca, DAY, ED25519, NOW_SECONDS, P256, RSA, now};
use crate::key::RequestSigner;

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut block = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        let _ = writeln!(block, "{}", std::str::from_utf8(line).unwrap());
    }
    block + &format!("-----END {label}-----\n")
}

fn certificates<'a>(chain: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    chain.into_iter().map(|der| pem("CERTIFICATE", der)).collect()
}

fn key_pem(key: &PrivateKey) -> String {
    pem("PRIVATE KEY", key.secret_der())
}

fn leaf(key: &PrivateKey) -> CertificateDer<'static> {
    CA.leaf(&["a.example.org"], key, NOW_SECONDS - DAY, NOW_SECONDS + 30 * DAY)
}

/// A leaf of the test CA's, as `change` wants it.
fn leaf_with(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
    CA.leaf_with(&["a.example.org"], &P256, change)
}

fn read(chain: &str, key: &str) -> Result<Upload, Vec<UploadFault>> {
    Upload::read(chain, key, Some(&CA.roots()), now())
}

fn code_of(chain: &str) -> String {
    let faults = read(chain, &key_pem(&P256)).expect_err("it is refused");
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!(faults[0].part, UploadPart::Chain, "{faults:?}");
    faults[0].code.to_owned()
}

#[test]
fn a_good_pair_is_taken_with_or_without_its_root() {
    for key in [&*P256, &*RSA] {
        let leaf = leaf(key);
        for chain in [vec![&leaf, &CA.intermediate], vec![&leaf, &CA.intermediate, &CA.root]] {
            let upload = read(&certificates(chain), &key_pem(key)).unwrap();
            assert_eq!(upload.chain.intermediates().len(), 1, "the root is left out");
            assert_eq!(upload.key.spki_sha256(), upload.chain.facts().spki_sha256);
        }
    }
}

#[test]
fn what_is_wrong_with_a_chain_has_its_own_word() {
    let good = leaf(&P256);
    let other = Ca::new("Other");
    // An intermediate of the right name and another key.
    let impostor = Ca::new("Portico test");
    let expired = CA.leaf(&["a.example.org"], &P256, NOW_SECONDS - 30 * DAY, NOW_SECONDS - DAY);
    let early = CA.leaf(&["a.example.org"], &P256, NOW_SECONDS + DAY, NOW_SECONDS + 30 * DAY);
    let last_minutes = CA.leaf(&["a.example.org"], &P256, NOW_SECONDS - DAY, NOW_SECONDS + 7199);
    let table: &[(&str, Vec<&CertificateDer<'static>>, &str)] = &[
        ("nothing", vec![], "not_pem"),
        ("reversed", vec![&CA.intermediate, &good], "wrong_order"),
        ("authorities only", vec![&CA.intermediate], "wrong_order"),
        ("root before intermediate", vec![&good, &CA.root, &CA.intermediate], "wrong_order"),
        ("no intermediate", vec![&good], "untrusted"),
        ("an unrelated one", vec![&good, &other.intermediate], "wrong_issuer"),
        ("one of the same name", vec![&good, &impostor.intermediate], "wrong_issuer"),
        ("expired", vec![&expired, &CA.intermediate], "expired"),
        ("not yet valid", vec![&early, &CA.intermediate], "not_yet_valid"),
        ("about to end", vec![&last_minutes, &CA.intermediate], "ends_too_soon"),
        ("too many", vec![&good; CHAIN_LENGTH_MAX + 1], "too_many"),
        ("as many as may be, all the same", vec![&good; CHAIN_LENGTH_MAX], "duplicate_certificate"),
        ("root twice", vec![&good, &CA.intermediate, &CA.root, &CA.root], "duplicate_certificate"),
        ("intermediate twice", vec![&good, &CA.intermediate, &CA.intermediate], "duplicate_certificate"),
    ];
    for (case, chain, code) in table {
        assert_eq!(code_of(&certificates(chain.iter().copied())), *code, "{case}");
    }
}

#[test]
fn a_root_is_followed_by_no_other_of_its_name_and_key() {
    let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
    let signer = || RequestSigner::new(&key).unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "Own root");
    let old = authority.self_signed(&signer()).unwrap().der().clone();
    authority.not_after = crate::fixture::date(NOW_SECONDS + 300 * DAY);
    let new = authority.self_signed(&signer()).unwrap().der().clone();
    let mut leaf = CertificateParams::new(vec!["a.example.org".to_owned()]).unwrap();
    leaf.not_before = crate::fixture::date(NOW_SECONDS - DAY);
    leaf.not_after = crate::fixture::date(NOW_SECONDS + 30 * DAY);
    let issuer = Issuer::new(authority, signer());
    let leaf = leaf.signed_by(&RequestSigner::new(&P256).unwrap(), &issuer).unwrap().der().clone();
    let private = |chain: &[&CertificateDer<'static>]| {
        Upload::read(&certificates(chain.iter().copied()), &key_pem(&P256), None, now())
    };
    assert!(private(&[&leaf, &old]).is_ok() && private(&[&leaf, &new]).is_ok());
    for chain in [[&leaf, &old, &new], [&leaf, &new, &old]] {
        let faults = private(&chain).unwrap_err();
        assert_eq!((faults[0].part, faults[0].code), (UploadPart::Chain, "behind_root"));
        assert!(faults[0].text.contains("behind certificate 2"), "{faults:?}");
    }
}

#[test]
fn what_a_leaf_is_not_good_for_is_refused() {
    let with = |change: fn(&mut CertificateParams)| certificates([&leaf_with(change), &CA.intermediate]);
    assert_eq!(
        code_of(&with(|leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyEncipherment])),
        "wrong_usage"
    );
    let clients = with(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    assert_eq!(code_of(&clients), "wrong_usage");
    let acme = with(|leaf| leaf.custom_extensions = vec![CustomExtension::new_acme_identifier(&[7; 32])]);
    assert_eq!(code_of(&acme), "acme_identifier");
    let staple = with(|leaf| {
        let content = vec![0x30, 0x03, 0x02, 0x01, 0x05];
        leaf.custom_extensions =
            vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 24], content)];
    });
    assert_eq!(code_of(&staple), "must_staple");
    let edwards = certificates([&leaf(&ED25519), &CA.intermediate]);
    let faults = read(&edwards, &key_pem(&ED25519)).unwrap_err();
    assert_eq!(faults.iter().map(|fault| fault.code).collect::<Vec<_>>(), ["key_unsupported"; 2]);
}

/// Made by `openssl req -x509 -newkey rsa:1024 -sha1 -days 36500 -nodes -subj /CN=a.example.org`, with the name.
const WEAK: &str = include_str!("weak.pem");

#[test]
fn small_keys_and_old_hashes_are_refused() {
    assert_eq!(code_of(WEAK), "weak_signature");
    let der = CertificateDer::from_pem_slice(WEAK.as_bytes()).unwrap();
    // The same key under a signature of SHA-256, which the reader looks at no further.
    assert_eq!(chain::check_key(&der).unwrap_err().code, "weak_key");
}

#[test]
fn an_authority_of_ones_own_needs_no_root_but_a_chain_that_holds_together() {
    let own = Ca::new("Own");
    let leaf = own.leaf(&["a.example.org"], &P256, NOW_SECONDS - DAY, NOW_SECONDS + 30 * DAY);
    let key = key_pem(&P256);
    let whole = certificates([&leaf, &own.intermediate]);
    assert_eq!(read(&whole, &key).unwrap_err()[0].code, "untrusted");
    let private = |chain: &str| Upload::read(chain, &key, None, now());
    assert_eq!(private(&whole).unwrap().chain.intermediates().len(), 1);
    assert!(private(&certificates([&leaf, &own.intermediate, &own.root])).is_ok());
    assert!(private(&certificates([&leaf])).is_ok(), "clients may know its issuer");
    let unrelated = private(&certificates([&leaf, &CA.intermediate])).unwrap_err();
    assert_eq!(unrelated[0].code, "wrong_issuer");
}

#[test]
fn an_intermediate_that_may_not_sign_is_refused() {
    let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
    let mut parameters = CertificateParams::new(vec!["no-ca.example.org".to_owned()]).unwrap();
    parameters.distinguished_name.push(DnType::CommonName, "No CA");
    let signer = RequestSigner::new(&key).unwrap();
    let parent = CA.leaf_with(&["no-ca.example.org"], &key, |leaf| {
        leaf.distinguished_name.push(DnType::CommonName, "No CA");
        leaf.is_ca = IsCa::NoCa;
    });
    let mut leaf = CertificateParams::new(vec!["a.example.org".to_owned()]).unwrap();
    leaf.not_before = crate::fixture::date(NOW_SECONDS - DAY);
    leaf.not_after = crate::fixture::date(NOW_SECONDS + 30 * DAY);
    let leaf = leaf.signed_by(&RequestSigner::new(&P256).unwrap(), &Issuer::new(parameters, signer)).unwrap();
    let chain = certificates([leaf.der(), &parent, &CA.intermediate]);
    assert_eq!(code_of(&chain), "invalid_chain");
    assert_eq!(Upload::read(&chain, &key_pem(&P256), None, now()).unwrap_err()[0].code, "invalid_chain");
}

#[test]
fn what_is_wrong_with_a_key_has_its_own_word_and_shows_nothing_of_it() {
    let chain = certificates([&leaf(&P256), &CA.intermediate]);
    let good = key_pem(&P256);
    let one_line = good.replace('\n', "");
    let table: &[(&str, String, &str)] = &[
        ("nothing", String::new(), "not_pem"),
        ("a certificate", chain.clone(), "not_pem"),
        ("without its lines", one_line.clone(), "not_pem"),
        ("another's", key_pem(&PrivateKey::generate(KeyType::EcdsaP256).unwrap()), "key_mismatch"),
        ("of another kind", key_pem(&RSA), "key_mismatch"),
        ("twice", good.repeat(2), "several_keys"),
        ("encrypted", good.replace("PRIVATE", "ENCRYPTED PRIVATE"), "key_encrypted"),
        ("encrypted, the old way", format!("Proc-Type: 4,ENCRYPTED\n{good}"), "key_encrypted"),
        ("no key inside", pem("PRIVATE KEY", &[7; 100]), "key_unsupported"),
        ("too large", " ".repeat(UPLOADED_KEY_BYTES_MAX + 1), "too_large"),
    ];
    for (case, key, code) in table {
        let faults = read(&chain, key).expect_err(case);
        assert_eq!((faults[0].part, faults[0].code, faults.len()), (UploadPart::Key, *code, 1), "{case}");
        assert_shows_nothing(&faults, &good);
    }
    for misplaced in [&good, &one_line, &format!("{chain}{good}")] {
        let faults = read(misplaced, &good).unwrap_err();
        assert_eq!((faults[0].part, faults[0].code), (UploadPart::Chain, "key_in_chain"));
        assert_shows_nothing(&faults, &good);
    }
    let bare: String = good.lines().filter(|line| !line.starts_with('-')).collect();
    for broken in [format!("-----BEGIN {bare}"), format!("-----BEGIN CERTIFICATE-----\n{bare}"), bare] {
        let faults = read(&broken, &good).unwrap_err();
        assert_eq!(faults[0].code, "not_pem", "{broken}");
        assert_shows_nothing(&faults, &good);
    }
    let both = read("", "").unwrap_err();
    assert_eq!(both.iter().map(|fault| fault.part).collect::<Vec<_>>(), [UploadPart::Chain, UploadPart::Key]);
    let large = read(&" ".repeat(UPLOADED_CHAIN_BYTES_MAX + 1), &good).unwrap_err();
    assert_eq!((large[0].part, large[0].code), (UploadPart::Chain, "too_large"));
}

fn assert_shows_nothing(faults: &[UploadFault], key_pem: &str) {
    let text = format!("{faults:?}");
    let body: String = key_pem.lines().filter(|line| !line.starts_with('-')).collect();
    for window in body.as_bytes().windows(12) {
        assert!(!text.contains(std::str::from_utf8(window).unwrap()), "{text}");
    }
}

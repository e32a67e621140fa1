use super::*;
use crate::certificate::KeyType;
use crate::fixture::{self, P256, RSA, cell, now};
use crate::handshake::check_certified_key;
use crate::key::PrivateKey;

fn lineage() -> LineageId {
    LineageId::generate()
}

#[test]
fn a_credential_gives_back_what_it_was_made_of() {
    let cell_key = CellKey::generate(cell(), 1);
    let chain = fixture::chain(&["a.example.org", "b.example.org"], &P256);
    let credential = fixture::credential(chain.clone(), &P256, &cell_key, lineage());
    assert_eq!(credential.facts(), *chain.facts());
    assert_eq!(credential.chain_der(), chain.to_vec());
    assert_eq!(credential.spki_sha256(), P256.spki_sha256());
    assert_eq!(credential.key_type(), KeyType::EcdsaP256);
    assert!(credential.is_valid_at(now()));
    assert!(credential.covers(&DomainName::parse("b.example.org").unwrap()));
    assert!(!credential.covers(&DomainName::parse("c.example.org").unwrap()));
    assert_eq!(credential.names(), 2);
    assert!(!format!("{credential:?}").contains("sealed"));
}

#[test]
fn coverage_is_that_of_the_names_in_the_leaf() {
    let cell_key = CellKey::generate(cell(), 1);
    let chain = fixture::chain(&["a.example.org", "*.example.org", "*.b.example.org"], &P256);
    let credential = fixture::credential(chain, &P256, &cell_key, lineage());
    for (name, coverage) in [
        ("a.example.org", Some(Coverage::Exact)),
        ("b.example.org", Some(Coverage::Wildcard)),
        ("x.b.example.org", Some(Coverage::Wildcard)),
        ("example.org", None),
        ("x.a.example.org", None),
        ("y.x.b.example.org", None),
    ] {
        let name = DomainName::parse(name).unwrap();
        assert_eq!(credential.coverage(&name), coverage, "{name}");
        assert_eq!(credential.covers(&name), coverage.is_some(), "{name}");
    }
    assert_eq!(wildcard_hash("example.org"), exact_hash("*.example.org"));
}

#[test]
fn a_credential_of_another_key_is_refused() {
    let cell_key = CellKey::generate(cell(), 1);
    let right = fixture::credential(fixture::chain(&["a.example.org"], &P256), &P256, &cell_key, lineage());
    let parts = CredentialParts {
        id: right.id(),
        lineage: right.lineage(),
        group: right.group(),
        cell: cell(),
        cell_key_epoch: 1,
        key_tenant: "operator".into(),
        spki_sha256: P256.spki_sha256(),
        chain: fixture::chain(&["a.example.org"], &RSA),
        sealed_key: right.sealed_key(),
    };
    let error = Credential::new(parts, &ChainInterner::new()).unwrap_err();
    assert_eq!(error, CertificateError::KeyMismatch);
}

#[test]
fn the_cache_opens_a_key_once_and_again_after_eviction() {
    let cell_key = CellKey::generate(cell(), 1);
    let credential =
        fixture::credential(fixture::chain(&["a.example.org"], &P256), &P256, &cell_key, lineage());
    let cell_keys = CellKeys::new();
    let cache = KeyCache::new(1 << 20, cell_keys.clone());
    let error = cache.certified_key(&credential).unwrap_err();
    assert!(matches!(error, KeyError::NoCellKey { epoch: 1, .. }), "{error}");

    cell_keys.add(cell_key);
    let first = cache.certified_key(&credential).unwrap();
    assert_eq!(first.cert, credential.chain_der());
    first.keys_match().unwrap();
    assert!(Arc::ptr_eq(&first, &cache.certified_key(&credential).unwrap()));

    cache.evict(credential.id());
    assert!(!Arc::ptr_eq(&first, &cache.certified_key(&credential).unwrap()));
    cache.evict(credential.id());
    assert!(cell_keys.remove(&cell(), 1) && !cell_keys.remove(&cell(), 1));
    assert!(cache.certified_key(&credential).is_err(), "a withdrawn cell key opens nothing more");
}

#[test]
fn the_cache_keeps_within_its_bytes() {
    let cell_key = CellKey::generate(cell(), 1);
    let chain = fixture::chain(&["a.example.org"], &P256);
    let credentials: Vec<_> =
        (0..200).map(|_| fixture::credential(chain.clone(), &P256, &cell_key, lineage())).collect();
    let cell_keys = CellKeys::new();
    cell_keys.add(cell_key);
    let bytes_max = 100 * 1024;
    let cache = KeyCache::new(bytes_max, cell_keys);
    for credential in &credentials {
        cache.certified_key(credential).unwrap();
    }
    let held = cache.weighted_bytes();
    assert!(held <= bytes_max && held > bytes_max / 2, "{held}");
}

#[test]
fn a_sealed_key_of_another_credential_does_not_open() {
    let cell_key = CellKey::generate(cell(), 1);
    let chain = fixture::chain(&["a.example.org"], &P256);
    let one = fixture::credential(chain.clone(), &P256, &cell_key, lineage());
    let parts = CredentialParts {
        id: CredentialId::generate(),
        lineage: one.lineage(),
        group: one.group(),
        cell: cell(),
        cell_key_epoch: 1,
        key_tenant: "operator".into(),
        spki_sha256: P256.spki_sha256(),
        chain,
        sealed_key: one.sealed_key(),
    };
    let moved = Credential::new(parts, &ChainInterner::new()).unwrap();
    let cell_keys = CellKeys::new();
    cell_keys.add(cell_key);
    one.open(&cell_keys).unwrap();
    let error = moved.open(&cell_keys).unwrap_err();
    assert!(matches!(error, KeyError::Seal { source: SealError::Refused, .. }), "{error:?}");
}

#[test]
fn the_handshake_gate_passes_what_works_and_names_what_does_not() {
    let name = DomainName::parse("a.example.org").unwrap();
    let check = |held: &str, key: &PrivateKey| {
        let chain = fixture::chain(&[held], key);
        let certified = CertifiedKey::new(chain.to_vec(), key.signing_key().unwrap());
        check_certified_key(Arc::new(certified), &name)
    };
    for key in [&*P256, &*RSA, &*fixture::ED25519] {
        check("a.example.org", key).unwrap();
        check("*.example.org", key).unwrap();
    }
    let wrong_name = check("b.example.org", &P256).unwrap_err();
    assert!(matches!(wrong_name, CertificateError::Handshake { .. }), "{wrong_name}");

    // A key that signs, but is not the certificate's: only the handshake itself can tell.
    let impostor = fixture::key(KeyType::EcdsaP256).signing_key().unwrap();
    let chain = fixture::chain(&["a.example.org"], &P256);
    let mismatched = Arc::new(CertifiedKey::new(chain.to_vec(), impostor));
    let error = check_certified_key(mismatched, &name).unwrap_err();
    assert!(matches!(error, CertificateError::Handshake { .. }), "{error}");
}

#[test]
fn a_single_name_credential_is_small() {
    let cell_key = CellKey::generate(cell(), 1);
    let chain = fixture::chain(&["www.customer-of-a-hoster.example"], &P256);
    let leaf = chain.leaf().len();
    let credential = fixture::credential(chain, &P256, &cell_key, lineage());
    // A public CA's leaf has about 0.6 KB more than this one (SCTs, policies, URLs).
    assert!(credential.heap_bytes() < leaf + 450, "{} for a leaf of {leaf}", credential.heap_bytes());
}

#[test]
fn cell_keys_are_bounded_and_replaced_by_epoch() {
    let keys = CellKeys::new();
    for epoch in 0..3 {
        keys.add(CellKey::generate(cell(), epoch));
    }
    keys.add(CellKey::from_bytes(cell(), 1, &[9; 32]));
    assert_eq!(keys.held().len(), 3);
    assert_eq!(keys.find(&cell(), 1).unwrap().secret_bytes(), &[9; 32]);
    assert!(keys.find(&CellId::parse("us-1").unwrap(), 1).is_none());
    let text = format!("{keys:?}");
    assert!(!text.contains("[9") && text.contains("eu-1"), "{text}");
}

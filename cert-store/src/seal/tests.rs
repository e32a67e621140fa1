use aws_lc_rs::encoding::{AsBigEndian, EcPrivateKeyBin};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use proptest::prelude::*;

use super::*;
use crate::fixture::{P256, cell};
use crate::ids::TenantId;

fn context<'a>(cell: &'a CellId, tenant: &'a str) -> SealContext<'a> {
    SealContext {
        cell,
        epoch: 3,
        key_tenant: tenant,
        credential: CredentialId::generate(),
        spki_sha256: P256.spki_sha256(),
    }
}

/// The private scalar, as whoever searches a disk or a capture for it would.
fn scalar() -> Vec<u8> {
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, P256.secret_der()).unwrap();
    let scalar: EcPrivateKeyBin<'_> = pair.private_key().as_be_bytes().unwrap();
    scalar.as_ref().to_vec()
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn a_sealed_key_opens_as_sealed_and_does_not_hold_the_scalar() {
    let (cell, tenant) = (cell(), TenantId::generate().to_string());
    let cell_key = CellKey::generate(cell.clone(), 3);
    let context = context(&cell, &tenant);
    let sealed = cell_key.seal(&P256, &context).unwrap();

    assert!(holds(P256.secret_der(), &scalar()), "the search itself works");
    assert!(!holds(sealed.as_bytes(), &scalar()[..8]));
    assert_eq!(sealed.as_bytes().len(), P256.secret_der().len() + OVERHEAD);
    let opened = cell_key.open(&sealed, &context).unwrap();
    assert_eq!(opened.secret_der(), P256.secret_der());
    // Equal keys do not show as equal bytes.
    assert_ne!(cell_key.seal(&P256, &context).unwrap(), sealed);
}

#[test]
fn a_key_moved_elsewhere_does_not_open() {
    let (cell, tenant) = (cell(), TenantId::generate().to_string());
    let cell_key = CellKey::generate(cell.clone(), 3);
    let context = context(&cell, &tenant);
    let sealed = cell_key.seal(&P256, &context).unwrap();

    let other_tenant = TenantId::generate().to_string();
    let refused = [
        SealContext { key_tenant: &other_tenant, ..context },
        SealContext { key_tenant: "operator", ..context },
        SealContext { credential: CredentialId::generate(), ..context },
        SealContext { spki_sha256: [7; 32], ..context },
    ];
    for context in refused {
        assert_eq!(cell_key.open(&sealed, &context).unwrap_err(), SealError::Refused, "{context:?}");
    }

    // Another cell or epoch is refused before any cipher, and by the cipher too where the secret is the same.
    let other_cell = CellId::parse("us-1").unwrap();
    let elsewhere = SealContext { cell: &other_cell, ..context };
    let later = SealContext { epoch: 4, ..context };
    assert!(matches!(cell_key.open(&sealed, &elsewhere), Err(SealError::OtherCell { .. })));
    assert!(matches!(cell_key.open(&sealed, &later), Err(SealError::OtherCell { .. })));
    let same_secret =
        |cell: &CellId, epoch| CellKey::from_bytes(cell.clone(), epoch, cell_key.secret_bytes());
    assert_eq!(same_secret(&other_cell, 3).open(&sealed, &elsewhere).unwrap_err(), SealError::Refused);
    assert_eq!(same_secret(&cell, 4).open(&sealed, &later).unwrap_err(), SealError::Refused);
    assert_eq!(CellKey::generate(cell.clone(), 3).open(&sealed, &context).unwrap_err(), SealError::Refused);
}

#[test]
fn a_wrong_context_never_becomes_sealed_bytes() {
    let (cell, other) = (cell(), CellId::parse("us-1").unwrap());
    let cell_key = CellKey::generate(cell.clone(), 3);
    let context = context(&cell, "operator");
    let wrong_key = SealContext { spki_sha256: [7; 32], ..context };
    assert_eq!(cell_key.seal(&P256, &wrong_key).unwrap_err(), SealError::OtherKey);
    let wrong_cell = SealContext { cell: &other, ..context };
    assert!(matches!(cell_key.seal(&P256, &wrong_cell), Err(SealError::OtherCell { .. })));
}

#[test]
fn contexts_whose_fields_run_together_differ() {
    let (a, b) = (CellId::parse("ab").unwrap(), CellId::parse("a").unwrap());
    let credential = CredentialId::generate();
    let context =
        |cell, key_tenant| SealContext { cell, epoch: 1, key_tenant, credential, spki_sha256: [0; 32] };
    assert_ne!(context(&a, "c").associated_data(), context(&b, "bc").associated_data());
}

#[test]
fn debug_output_holds_no_byte_of_a_secret() {
    let cell_key = CellKey::from_bytes(cell(), 3, b"0123456789abcdef0123456789abcdef");
    assert_eq!(format!("{cell_key:?}"), "CellKey(eu-1, epoch 3, secret)");
    let (private, _) = hpke::generate_key_pair().unwrap();
    assert_eq!(format!("{private:?}"), "HpkePrivateKey(secret)");
    let sealed = cell_key.seal(&P256, &context(&cell(), "operator")).unwrap();
    assert_eq!(format!("{sealed:?}"), format!("SealedKey({} bytes)", sealed.as_bytes().len()));
}

#[test]
fn a_cell_key_reaches_one_edge_only() {
    let key = CellKey::generate(cell(), 7);
    let (private, public) = hpke::generate_key_pair().unwrap();
    let (encapsulated, ciphertext) = hpke::seal_cell_key(&public, &key).unwrap();
    assert_eq!(ciphertext.len(), 32 + 16);

    let restored = hpke::HpkePrivateKey::from_bytes(private.secret_bytes().try_into().unwrap());
    let opened = hpke::open_cell_key(&restored, cell(), 7, &encapsulated, &ciphertext).unwrap();
    assert_eq!(opened.secret_bytes(), key.secret_bytes());
    assert_eq!((opened.cell(), opened.epoch()), (&cell(), 7));

    let (other, _) = hpke::generate_key_pair().unwrap();
    let us = CellId::parse("us-1").unwrap();
    assert!(hpke::open_cell_key(&other, cell(), 7, &encapsulated, &ciphertext).is_err());
    assert!(hpke::open_cell_key(&private, us, 7, &encapsulated, &ciphertext).is_err());
    assert!(hpke::open_cell_key(&private, cell(), 8, &encapsulated, &ciphertext).is_err());
    assert!(hpke::open_cell_key(&private, cell(), 7, &encapsulated[1..], &ciphertext).is_err());
    assert!(hpke::open_cell_key(&private, cell(), 7, &encapsulated, &[]).is_err());
    assert!(hpke::seal_cell_key(&public[1..], &key).is_err());
}

proptest! {
    #[test]
    fn sealed_bytes_open_only_unaltered(
        key: [u8; 32],
        aad in prop::collection::vec(any::<u8>(), 0..40),
        plain in prop::collection::vec(any::<u8>(), 0..300),
        flip in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let mut sealed = seal_bytes(&key, &aad, &plain);
        prop_assert_eq!(&*open_bytes(&key, &aad, &sealed).unwrap(), &plain);
        for length in 0..sealed.len() {
            prop_assert!(open_bytes(&key, &aad, &sealed[..length]).is_err());
        }
        let at = flip.index(sealed.len());
        sealed[at] ^= 1 << bit;
        let error = open_bytes(&key, &aad, &sealed).unwrap_err();
        let version = at == 0;
        prop_assert_eq!(version, matches!(error, SealError::Version { .. }), "{:?}", error);
    }
}

use super::*;

/// An identity as a control plane would give it.
pub(in crate::control) fn identity() -> Identity {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = IdentityCertificate::new(pkcs8(&key), vec![certificate(&key)], vec![certificate(&key)]);
    let cell = CellId::parse("cell-a").expect("a cell's name");
    let certificate = certificate.expect("it is that of the key");
    Identity::new(EdgeId::generate(), cell, certificate, hpke_pair().expect("a key pair"))
}

fn pkcs8(key: &rcgen::KeyPair) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(key.serialize_der())
}

fn certificate(key: &rcgen::KeyPair) -> CertificateDer<'static> {
    rcgen::CertificateParams::default().self_signed(key).expect("a certificate").der().clone()
}

#[test]
fn a_chain_has_so_many_certificates_and_so_has_what_is_trusted() {
    let key = rcgen::KeyPair::generate().expect("a key");
    let list = |length: usize| vec![certificate(&key); length];
    let made = |chain, trusted| IdentityCertificate::new(pkcs8(&key), list(chain), list(trusted)).is_ok();
    let most = limits::IDENTITY_CHAIN_MAX;
    assert!(made(most, most));
    assert!(!made(most + 1, 1) && !made(1, most + 1));
    assert!(!made(0, 1) && !made(1, 0));
}

#[test]
fn an_identity_file_is_read_up_to_its_bound() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("identity");
    files::private_folder(&folder).expect("a private one");
    identity().store(&folder).expect("it is written");
    assert!(Identity::load(&folder).is_ok_and(|identity| identity.is_some()));
    // JSON that goes on with spaces is still JSON.
    let path = folder.join(FILE);
    let mut text = std::fs::read(&path).expect("it is there");
    text.resize(usize::try_from(limits::IDENTITY_FILE_BYTES_MAX).expect("it fits"), b' ');
    files::write_private(&path, &text).expect("it is written");
    assert!(Identity::load(&folder).is_ok_and(|identity| identity.is_some()), "the bound itself");
    text.push(b' ');
    files::write_private(&path, &text).expect("it is written");
    let error = Identity::load(&folder).expect_err("one more");
    assert!(matches!(error, IdentityError::File(FileError::TooLarge { .. })), "{error}");
}

//! Sealing: how secrets look wherever they are not in use.
//!
//! Sealed bytes are `version (1) || nonce (12) || ciphertext || tag (16)`, AES-256-GCM with a random nonce. A private
//! key is sealed once under the data key of its cell's epoch; the same bytes go over the wire, into last-good files and
//! to every edge of that cell. What the key belongs to is bound as associated data, so a sealed key that is moved to
//! another tenant, credential, cell, epoch or certificate does not open. The data key itself travels by HPKE
//! (RFC 9180), sealed to each edge alone. Random nonces are sound for 2^32 seals under one key
//! (NIST SP 800-38D section 8.3); a new epoch comes long before.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::sign::SigningKey;
use zeroize::Zeroizing;

use crate::ids::{CellId, CredentialId};
use crate::key::{PrivateKey, signing_key};

const VERSION: u8 = 1;
const TAG_LEN: usize = 16;
const OVERHEAD: usize = 1 + NONCE_LEN + TAG_LEN;

/// The data key of one cell in one epoch. Zeroed on drop, never printed.
pub struct CellKey {
    cell: CellId,
    epoch: u32,
    secret: Zeroizing<[u8; 32]>,
}

/// What a sealed private key belongs to. All of it is authenticated, none of it is stored in the sealed bytes.
#[derive(Debug, Clone, Copy)]
pub struct SealContext<'a> {
    pub cell: &'a CellId,
    pub epoch: u32,
    /// Tenant id, or `operator`.
    pub key_tenant: &'a str,
    pub credential: CredentialId,
    pub spki_sha256: [u8; 32],
}

/// A private key under its cell's data key; safe to store and send.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedKey(Box<[u8]>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("sealed bytes of format version {found}; this build reads version {VERSION}")]
    Version { found: u8 },
    #[error("the sealed bytes are too short to hold a nonce and a tag")]
    TooShort,
    #[error(
        "the sealed bytes do not open: they were altered, or belong to another key, tenant, credential, cell or epoch"
    )]
    Refused,
    #[error("the key of cell {cell}, epoch {epoch} was asked to work for cell {other}, epoch {other_epoch}")]
    OtherCell { cell: CellId, epoch: u32, other: CellId, other_epoch: u32 },
    #[error("the private key is not that of the certificate named in the seal")]
    OtherKey,
    #[error("what was sealed is not a private key of a known type")]
    NotAKey,
    #[error("HPKE failed: {reason}")]
    Hpke { reason: String },
}

impl CellKey {
    /// A new random key.
    pub fn generate(cell: CellId, epoch: u32) -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        fill_random(secret.as_mut_slice());
        Self { cell, epoch, secret }
    }

    pub fn from_bytes(cell: CellId, epoch: u32, secret: &[u8; 32]) -> Self {
        Self { cell, epoch, secret: Zeroizing::new(*secret) }
    }

    pub fn cell(&self) -> &CellId {
        &self.cell
    }

    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The key in clear: for sealing it under a key-encryption key, never for a file, a wire or a log.
    pub fn secret_bytes(&self) -> &[u8; 32] {
        &self.secret
    }

    /// # Errors
    /// Where `context` names another cell, epoch or public key than those at hand: a fault of the caller that must
    /// never become sealed bytes.
    pub fn seal(&self, key: &PrivateKey, context: &SealContext<'_>) -> Result<SealedKey, SealError> {
        self.check_cell(context)?;
        if key.spki_sha256() != context.spki_sha256 {
            return Err(SealError::OtherKey);
        }
        Ok(SealedKey(seal_bytes(&self.secret, &context.associated_data(), key.secret_der()).into()))
    }

    /// # Errors
    /// [`SealError::Refused`] unless `context` is exactly the one it was sealed with.
    pub fn open(&self, sealed: &SealedKey, context: &SealContext<'_>) -> Result<PrivateKey, SealError> {
        let pkcs8 = self.open_pkcs8(sealed.as_bytes(), context)?;
        let key = PrivateKey::from_pkcs8_der(&pkcs8).map_err(|_| SealError::NotAKey)?;
        if key.spki_sha256() == context.spki_sha256 { Ok(key) } else { Err(SealError::OtherKey) }
    }

    /// As [`open`](Self::open), straight to what rustls signs with: half the time, and it runs inside handshakes.
    /// [`seal`](Self::seal) has checked the public key, and the seal authenticates it.
    pub(crate) fn open_signing_key(
        &self,
        sealed: &[u8],
        context: &SealContext<'_>,
    ) -> Result<Arc<dyn SigningKey>, SealError> {
        let pkcs8 = self.open_pkcs8(sealed, context)?;
        signing_key(&pkcs8).map_err(|_| SealError::NotAKey)
    }

    fn open_pkcs8(&self, sealed: &[u8], context: &SealContext<'_>) -> Result<Zeroizing<Vec<u8>>, SealError> {
        self.check_cell(context)?;
        open_bytes(&self.secret, &context.associated_data(), sealed)
    }

    fn check_cell(&self, context: &SealContext<'_>) -> Result<(), SealError> {
        if self.cell == *context.cell && self.epoch == context.epoch {
            return Ok(());
        }
        Err(SealError::OtherCell {
            cell: self.cell.clone(),
            epoch: self.epoch,
            other: context.cell.clone(),
            other_epoch: context.epoch,
        })
    }
}

impl fmt::Debug for CellKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CellKey({}, epoch {}, secret)", self.cell, self.epoch)
    }
}

impl SealContext<'_> {
    /// Each field after its length, so that no two contexts give the same bytes.
    fn associated_data(&self) -> Vec<u8> {
        let credential = self.credential.ulid().to_bytes();
        let fields: [&[u8]; 6] = [
            b"portico private key v1",
            self.cell.as_str().as_bytes(),
            &self.epoch.to_be_bytes(),
            self.key_tenant.as_bytes(),
            &credential,
            &self.spki_sha256,
        ];
        length_prefixed(&fields)
    }
}

impl SealedKey {
    /// Takes bytes from a wire or a disk. They are checked when they are opened.
    pub fn from_bytes(bytes: impl Into<Box<[u8]>>) -> Self {
        Self(bytes.into())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SealedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedKey({} bytes)", self.0.len())
    }
}

/// Seals `plain` under `key`; opening needs the same `aad`.
pub fn seal_bytes(key: &[u8; 32], aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut nonce = [0; NONCE_LEN];
    fill_random(&mut nonce);
    let mut sealed = Vec::with_capacity(OVERHEAD + plain.len());
    sealed.push(VERSION);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(plain);
    let tag = cipher(key)
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(aad),
            &mut sealed[1 + NONCE_LEN..],
        )
        .expect("AES-256-GCM seals any plaintext of less than 64 GiB");
    sealed.extend_from_slice(tag.as_ref());
    sealed
}

/// # Errors
/// [`SealError`] unless `sealed` came from [`seal_bytes`] with the same key and associated data.
pub fn open_bytes(key: &[u8; 32], aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    match sealed.first() {
        None => return Err(SealError::TooShort),
        Some(&VERSION) => {}
        Some(&found) => return Err(SealError::Version { found }),
    }
    if sealed.len() < OVERHEAD {
        return Err(SealError::TooShort);
    }
    let (nonce, ciphertext) = sealed[1..].split_at(NONCE_LEN);
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::TooShort)?;
    let mut plain = Zeroizing::new(ciphertext.to_vec());
    cipher(key).open_in_place(nonce, Aad::from(aad), &mut plain).map_err(|_| SealError::Refused)?;
    plain.truncate(ciphertext.len() - TAG_LEN);
    Ok(plain)
}

fn cipher(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("AES-256 takes a key of 32 bytes"))
}

fn fill_random(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("aws-lc has randomness or ends the process");
}

fn length_prefixed(fields: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(fields.iter().map(|field| 4 + field.len()).sum());
    for field in fields {
        let length = u32::try_from(field.len()).expect("fields of a seal context are short");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(field);
    }
    out
}

/// HPKE (RFC 9180) for a cell's data key: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, base mode. Cell and
/// epoch are bound as `info`, so a key cannot be passed off as that of another cell.
pub mod hpke {
    use std::fmt;

    use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
    use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePublicKey};
    use zeroize::Zeroizing;

    use super::{CellKey, SealError, length_prefixed};
    use crate::ids::CellId;

    /// The private half of an edge's HPKE key. Zeroed on drop, never printed.
    pub struct HpkePrivateKey(Zeroizing<Vec<u8>>);

    impl HpkePrivateKey {
        pub fn from_bytes(secret: &[u8; 32]) -> Self {
            Self(Zeroizing::new(secret.to_vec()))
        }

        /// The key in clear, 32 bytes: for the edge's own identity file (0600), nothing else.
        pub fn secret_bytes(&self) -> &[u8] {
            &self.0
        }
    }

    impl fmt::Debug for HpkePrivateKey {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("HpkePrivateKey(secret)")
        }
    }

    /// A new pair; the public key is 32 bytes.
    ///
    /// # Errors
    /// [`SealError::Hpke`] where the library fails.
    pub fn generate_key_pair() -> Result<(HpkePrivateKey, [u8; 32]), SealError> {
        let (public, private) = SUITE.generate_key_pair().map_err(hpke_error)?;
        let public = <[u8; 32]>::try_from(public.0.as_slice())
            .map_err(|_| SealError::Hpke { reason: "public key is not 32 bytes".into() })?;
        Ok((HpkePrivateKey(Zeroizing::new(private.secret_bytes().to_vec())), public))
    }

    /// Seals `key` to one edge; gives the encapsulated key and the ciphertext.
    ///
    /// # Errors
    /// [`SealError::Hpke`] where `recipient_public` is not an X25519 public key.
    pub fn seal_cell_key(recipient_public: &[u8], key: &CellKey) -> Result<(Vec<u8>, Vec<u8>), SealError> {
        let recipient = HpkePublicKey(recipient_public.to_vec());
        let (encapsulated, ciphertext) = SUITE
            .seal(&info(key.cell(), key.epoch()), &[], key.secret_bytes(), &recipient)
            .map_err(hpke_error)?;
        Ok((encapsulated.0, ciphertext))
    }

    /// # Errors
    /// [`SealError::Hpke`] unless the key was sealed to this edge, for this cell and epoch.
    pub fn open_cell_key(
        private: &HpkePrivateKey,
        cell: CellId,
        epoch: u32,
        encapsulated: &[u8],
        ciphertext: &[u8],
    ) -> Result<CellKey, SealError> {
        let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
        let private = rustls::crypto::hpke::HpkePrivateKey::from(private.0.to_vec());
        let secret = SUITE
            .open(&encapsulated, &info(&cell, epoch), &[], ciphertext, &private)
            .map_err(hpke_error)
            .map(Zeroizing::new)?;
        let secret = <&[u8; 32]>::try_from(secret.as_slice())
            .map_err(|_| SealError::Hpke { reason: "the data key is not 32 bytes".into() })?;
        Ok(CellKey::from_bytes(cell, epoch, secret))
    }

    fn info(cell: &CellId, epoch: u32) -> Vec<u8> {
        length_prefixed(&[b"portico cell key v1", cell.as_str().as_bytes(), &epoch.to_be_bytes()])
    }

    fn hpke_error(error: rustls::Error) -> SealError {
        SealError::Hpke { reason: error.to_string() }
    }
}

#[cfg(test)]
mod tests;

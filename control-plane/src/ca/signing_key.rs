//! A P-256 key as `rcgen` wants it, without the clear copy of the private key that `rcgen::KeyPair` keeps.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey};
use zeroize::Zeroizing;

use super::{CaError, sha256};

/// A private key that signs; its only clear bytes are inside the cryptographic library.
pub(super) struct P256Key(EcdsaKeyPair);

impl P256Key {
    /// A new key, and its PKCS#8 form.
    pub(super) fn generate() -> Result<(Self, Zeroizing<Vec<u8>>), CaError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| CaError::Crypto)?;
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| CaError::Crypto)?;
        let pkcs8 = Zeroizing::new(pkcs8.as_ref().to_vec());
        Ok((Self(pair), pkcs8))
    }

    pub(super) fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, CaError> {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8)
            .map(Self)
            .map_err(|e| CaError::Damaged(e.to_string()))
    }

    /// The uncompressed point (SEC 1), as in the certificate's SubjectPublicKeyInfo.
    pub(super) fn public_point(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    pub(super) fn key_hash(&self) -> [u8; 32] {
        sha256(self.public_point())
    }
}

impl PublicKeyData for P256Key {
    fn der_bytes(&self) -> &[u8] {
        self.public_point()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for P256Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature =
            self.0.sign(&SystemRandom::new(), message).map_err(|_| rcgen::Error::RingUnspecified)?;
        Ok(signature.as_ref().to_vec())
    }
}

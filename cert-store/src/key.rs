//! Private keys, as long as they are in clear.
//!
//! A [`PrivateKey`] is zeroed when dropped, has no text form, cannot be cloned or serialized, and is always PKCS#8
//! inside, whatever form it came in. At rest and on the wire keys are sealed ([`crate::CellKey`]).

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::SigningKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use crate::certificate::{KeyType, sha256};
use crate::domain_name::NamePattern;

/// Largest key file or DER that is looked at; RSA 4096 in PEM has 3.3 KB.
pub const KEY_BYTES_MAX: usize = 64 * 1024;

/// A private key in clear. Zeroed on drop; `Debug` shows its type only.
pub struct PrivateKey {
    pkcs8: Zeroizing<Vec<u8>>,
    key_type: KeyType,
    spki_sha256: [u8; 32],
}

/// None of these holds a byte of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrivateKeyError {
    #[error("no private key found; give a PEM file with a PKCS#8, SEC1 or PKCS#1 key that is not encrypted")]
    NotFound,
    #[error("the key has {octets} bytes and {KEY_BYTES_MAX} are allowed")]
    TooLarge { octets: usize },
    #[error(
        "the key cannot be read; use ECDSA P-256 or P-384, RSA 2048, 3072 or 4096, or Ed25519 in PKCS#8, SEC1 or PKCS#1"
    )]
    Unsupported,
    #[error("the cryptographic library refused to make a key")]
    Generation,
    #[error("the certificate request cannot be made: {reason}")]
    Request { reason: String },
}

impl PrivateKey {
    /// # Errors
    /// [`PrivateKeyError::Generation`] where the library has no randomness, which aws-lc does not let happen.
    pub fn generate(key_type: KeyType) -> Result<Self, PrivateKeyError> {
        let random = SystemRandom::new();
        let ecdsa = |algorithm| EcdsaKeyPair::generate_pkcs8(algorithm, &random);
        let failed = |_| PrivateKeyError::Generation;
        match key_type {
            KeyType::EcdsaP256 => {
                Self::from_pkcs8_der(ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(failed)?.as_ref())
            }
            KeyType::EcdsaP384 => {
                Self::from_pkcs8_der(ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING).map_err(failed)?.as_ref())
            }
            KeyType::Ed25519 => {
                Self::from_pkcs8_der(Ed25519KeyPair::generate_pkcs8v1(&random).map_err(failed)?.as_ref())
            }
            KeyType::Rsa2048 => Self::generate_rsa(KeySize::Rsa2048),
            KeyType::Rsa3072 => Self::generate_rsa(KeySize::Rsa3072),
            KeyType::Rsa4096 => Self::generate_rsa(KeySize::Rsa4096),
        }
    }

    fn generate_rsa(size: KeySize) -> Result<Self, PrivateKeyError> {
        let pair = aws_lc_rs::rsa::KeyPair::generate(size).map_err(|_| PrivateKeyError::Generation)?;
        let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| PrivateKeyError::Generation)?;
        Self::from_pkcs8_der(der.as_ref())
    }

    /// Copies the key; the caller's bytes are the caller's to zero.
    ///
    /// # Errors
    /// [`PrivateKeyError::Unsupported`] where the bytes are not a key of a known type.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, PrivateKeyError> {
        if der.len() > KEY_BYTES_MAX {
            return Err(PrivateKeyError::TooLarge { octets: der.len() });
        }
        let pkcs8 = Zeroizing::new(der.to_vec());
        let signing_key = signing_key(&pkcs8)?;
        let spki = signing_key.public_key().ok_or(PrivateKeyError::Unsupported)?;
        let key_type = KeyType::of_spki_der(&spki).map_err(|_| PrivateKeyError::Unsupported)?;
        Ok(Self { key_type, spki_sha256: sha256(&spki), pkcs8 })
    }

    /// The first key of a PEM text in PKCS#8, SEC1 (RFC 5915) or PKCS#1 (RFC 8017); other parts are passed over.
    ///
    /// # Errors
    /// Where there is none, or it is of an unknown type. Encrypted keys are not read.
    pub fn from_pem(pem: &[u8]) -> Result<Self, PrivateKeyError> {
        if pem.len() > KEY_BYTES_MAX {
            return Err(PrivateKeyError::TooLarge { octets: pem.len() });
        }
        let mut der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| PrivateKeyError::NotFound)?;
        let key = match &der {
            PrivateKeyDer::Pkcs8(key) => Self::from_pkcs8_der(key.secret_pkcs8_der()),
            PrivateKeyDer::Sec1(key) => Self::from_sec1_der(key.secret_sec1_der()),
            PrivateKeyDer::Pkcs1(key) => Self::from_pkcs1_der(key.secret_pkcs1_der()),
            _ => Err(PrivateKeyError::Unsupported),
        };
        der.zeroize();
        key
    }

    fn from_sec1_der(der: &[u8]) -> Result<Self, PrivateKeyError> {
        let read =
            |algorithm: &'static EcdsaSigningAlgorithm| EcdsaKeyPair::from_private_key_der(algorithm, der);
        let pair = read(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .or_else(|_| read(&ECDSA_P384_SHA384_ASN1_SIGNING))
            .map_err(|_| PrivateKeyError::Unsupported)?;
        Self::from_pkcs8_der(pair.to_pkcs8v1().map_err(|_| PrivateKeyError::Unsupported)?.as_ref())
    }

    fn from_pkcs1_der(der: &[u8]) -> Result<Self, PrivateKeyError> {
        let pair = aws_lc_rs::rsa::KeyPair::from_der(der).map_err(|_| PrivateKeyError::Unsupported)?;
        let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| PrivateKeyError::Unsupported)?;
        Self::from_pkcs8_der(der.as_ref())
    }

    /// The key in clear, PKCS#8 in DER. Give it to a cipher or a signer, never to a file, a wire or a log.
    pub fn secret_der(&self) -> &[u8] {
        &self.pkcs8
    }

    pub fn key_type(&self) -> KeyType {
        self.key_type
    }

    /// SHA-256 of the public key as SubjectPublicKeyInfo in DER.
    pub fn spki_sha256(&self) -> [u8; 32] {
        self.spki_sha256
    }

    /// The key as rustls signs with it.
    ///
    /// # Errors
    /// [`PrivateKeyError::Unsupported`], which the constructor has ruled out.
    pub fn signing_key(&self) -> Result<Arc<dyn SigningKey>, PrivateKeyError> {
        signing_key(&self.pkcs8)
    }

    /// A certificate request (PKCS#10, DER) for `names`, without a common name: CAs read the names only.
    ///
    /// # Errors
    /// [`PrivateKeyError::Request`] with the library's reason.
    pub fn csr(&self, names: &[NamePattern]) -> Result<Vec<u8>, PrivateKeyError> {
        let request = |error: rcgen::Error| PrivateKeyError::Request { reason: error.to_string() };
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut parameters = rcgen::CertificateParams::new(names).map_err(request)?;
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        let signer = RequestSigner::new(self)?;
        Ok(parameters.serialize_request(&signer).map_err(request)?.der().to_vec())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({}, secret)", self.key_type)
    }
}

pub(crate) fn signing_key(pkcs8: &[u8]) -> Result<Arc<dyn SigningKey>, PrivateKeyError> {
    any_supported_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8)))
        .map_err(|_| PrivateKeyError::Unsupported)
}

/// Signs requests with the key inside aws-lc. rcgen's own `KeyPair` would keep a second copy of the key and not zero it.
pub(crate) struct RequestSigner {
    pair: Pair,
    algorithm: &'static rcgen::SignatureAlgorithm,
}

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl RequestSigner {
    pub(crate) fn new(key: &PrivateKey) -> Result<Self, PrivateKeyError> {
        let pkcs8 = key.secret_der();
        let (pair, algorithm) = match key.key_type {
            KeyType::EcdsaP256 => (
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8).map(Pair::Ecdsa),
                &rcgen::PKCS_ECDSA_P256_SHA256,
            ),
            KeyType::EcdsaP384 => (
                EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, pkcs8).map(Pair::Ecdsa),
                &rcgen::PKCS_ECDSA_P384_SHA384,
            ),
            KeyType::Ed25519 => {
                (Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).map(Pair::Ed25519), &rcgen::PKCS_ED25519)
            }
            KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => {
                (RsaKeyPair::from_pkcs8(pkcs8).map(Pair::Rsa), &rcgen::PKCS_RSA_SHA256)
            }
        };
        Ok(Self { pair: pair.map_err(|_| PrivateKeyError::Unsupported)?, algorithm })
    }
}

impl rcgen::PublicKeyData for RequestSigner {
    fn der_bytes(&self) -> &[u8] {
        match &self.pair {
            Pair::Ecdsa(pair) => pair.public_key().as_ref(),
            Pair::Rsa(pair) => pair.public_key().as_ref(),
            Pair::Ed25519(pair) => pair.public_key().as_ref(),
        }
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.algorithm
    }
}

impl rcgen::SigningKey for RequestSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let random = SystemRandom::new();
        let failed = |_| rcgen::Error::RemoteKeyError;
        match &self.pair {
            Pair::Ecdsa(pair) => Ok(pair.sign(&random, message).map_err(failed)?.as_ref().to_vec()),
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).map_err(failed)?;
                Ok(signature)
            }
        }
    }
}

#[cfg(test)]
mod tests;

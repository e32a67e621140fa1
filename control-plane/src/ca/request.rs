//! The certificate request of an edge: parsed once, checked here, nothing in it but the key is taken over.

use rcgen::{PublicKeyData, SignatureAlgorithm};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256};
use x509_parser::prelude::FromDer;

/// A P-256 request is about 250 bytes; a larger one than this is not ours.
pub const CSR_BYTES_MAX: usize = 4096;

/// A request whose sender has shown that it holds the key.
///
/// Names and extensions in the request are ignored on purpose: who an edge is, the control plane decides.
#[derive(Clone, Debug)]
pub struct EdgeRequest {
    public_point: Vec<u8>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("the certificate request is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    #[error("the certificate request is not PKCS#10 in DER")]
    Malformed,
    #[error("the certificate request's key is not ECDSA P-256, or it is not signed with SHA-256")]
    KeyType,
    #[error("the certificate request's own signature does not hold: its sender does not have the key")]
    Signature,
}

impl EdgeRequest {
    /// Parses PKCS#10 (RFC 2986) and checks its self-signature.
    pub fn parse(der: &[u8]) -> Result<Self, RequestError> {
        Self::parse_within(der, CSR_BYTES_MAX)
    }

    /// The same for one of another size.
    pub fn parse_within(der: &[u8], bytes_max: usize) -> Result<Self, RequestError> {
        if der.len() > bytes_max {
            return Err(RequestError::TooLarge { bytes_max });
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| RequestError::Malformed)?;
        if !rest.is_empty() {
            return Err(RequestError::Malformed);
        }
        let key = &request.certification_request_info.subject_pki;
        let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY
            || curve != Some(OID_EC_P256)
            || request.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256
        {
            return Err(RequestError::KeyType);
        }
        request.verify_signature().map_err(|_| RequestError::Signature)?;
        Ok(Self { public_point: key.subject_public_key.data.to_vec() })
    }
}

impl PublicKeyData for EdgeRequest {
    fn der_bytes(&self) -> &[u8] {
        &self.public_point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    fn csr(key: &KeyPair) -> Vec<u8> {
        CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn only_a_self_signed_p256_request_is_taken() {
        let good = csr(&KeyPair::generate().unwrap());
        EdgeRequest::parse(&good).unwrap();
        let refused = |der: &[u8]| EdgeRequest::parse(der).unwrap_err();

        let mut forged = good.clone();
        // The last bytes are the signature's s: still DER, no longer true.
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(refused(&forged), RequestError::Signature);

        let mut trailing = good.clone();
        trailing.push(0);
        assert_eq!(refused(&trailing), RequestError::Malformed);
        assert_eq!(refused(&good[..good.len() - 1]), RequestError::Malformed);
        assert_eq!(refused(b""), RequestError::Malformed);
        assert_eq!(
            refused(&vec![0x30; CSR_BYTES_MAX + 1]),
            RequestError::TooLarge { bytes_max: CSR_BYTES_MAX }
        );

        for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            assert_eq!(refused(&csr(&KeyPair::generate_for(algorithm).unwrap())), RequestError::KeyType);
        }
    }

    #[test]
    fn no_mutation_of_a_request_panics() {
        let good = csr(&KeyPair::generate().unwrap());
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                drop(EdgeRequest::parse(&bad));
            }
            drop(EdgeRequest::parse(&good[..at]));
        }
    }
}

//! The authorities whose certificates the clients of a name may show (mTLS).
//!
//! Control plane and edges read a set here, so that what the one accepts the others serve. Deliberately absent: revocation
//! lists. An authority that signed what it should not have is replaced, and that ends sessions and tickets made by it.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Version};

use crate::pem::{PemFault, pem_certificates};

/// Most certificates in a set.
pub const CLIENT_AUTHORITIES_MAX: usize = 16;
/// Most bytes of a set: their names go to each client.
pub const CLIENT_AUTHORITIES_BYTES_MAX: usize = 32 * 1024;

/// 1 to [`CLIENT_AUTHORITIES_MAX`] CA certificates. Equal where the certificates are, in their order.
#[derive(Clone)]
pub struct ClientAuthorities {
    roots: Arc<RootCertStore>,
    der: Box<[CertificateDer<'static>]>,
    sha256: [u8; 32],
}

/// Why a set cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientAuthoritiesError {
    #[error("has {0} bytes; at most {CLIENT_AUTHORITIES_BYTES_MAX}")]
    TooLarge(usize),
    #[error("holds a private key, which does not belong here; give certificates alone")]
    HoldsKey,
    #[error("is not PEM: {0}")]
    NotPem(#[from] PemFault),
    #[error("holds {0} certificates; 1 to {CLIENT_AUTHORITIES_MAX} are wanted")]
    Count(usize),
    #[error("certificate {number}: {problem}")]
    Certificate {
        /// From 1.
        number: usize,
        problem: String,
    },
}

impl ClientAuthorities {
    /// Reads the certificates of a PEM text.
    ///
    /// # Errors
    /// [`ClientAuthoritiesError`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, ClientAuthoritiesError> {
        if pem.len() > CLIENT_AUTHORITIES_BYTES_MAX {
            return Err(ClientAuthoritiesError::TooLarge(pem.len()));
        }
        if pem.windows(KEY_LABEL.len()).any(|window| window == KEY_LABEL) {
            return Err(ClientAuthoritiesError::HoldsKey);
        }
        let found = pem_certificates(pem).collect::<Result<Vec<_>, _>>()?;
        Self::from_der(found)
    }

    /// # Errors
    /// [`ClientAuthoritiesError`].
    pub fn from_der(der: Vec<CertificateDer<'static>>) -> Result<Self, ClientAuthoritiesError> {
        if !(1..=CLIENT_AUTHORITIES_MAX).contains(&der.len()) {
            return Err(ClientAuthoritiesError::Count(der.len()));
        }
        let bytes = der.iter().map(|certificate| certificate.len()).sum();
        if bytes > CLIENT_AUTHORITIES_BYTES_MAX {
            return Err(ClientAuthoritiesError::TooLarge(bytes));
        }
        let mut roots = RootCertStore::empty();
        let mut hash = Context::new(&SHA256);
        for (index, certificate) in der.iter().enumerate() {
            let wrong = |problem| ClientAuthoritiesError::Certificate { number: index + 1, problem };
            check_authority(certificate).map_err(wrong)?;
            roots.add(certificate.clone()).map_err(|error| wrong(error.to_string()))?;
            hash.update(&(certificate.len() as u64).to_be_bytes());
            hash.update(certificate);
        }
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(hash.finish().as_ref());
        Ok(Self { roots: Arc::new(roots), der: der.into(), sha256 })
    }

    pub fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }

    pub fn der(&self) -> &[CertificateDer<'static>] {
        &self.der
    }

    /// Over all certificates, each behind its length.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// What tells this set from others in a [`ClientCertificates`](crate::ClientCertificates).
    pub fn short_id(&self) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = self.sha256;
        [a, b, c, d, e, f, g, h]
    }
}

const KEY_LABEL: &[u8] = b"PRIVATE KEY";

/// A leaf in the place of its authority would let nobody in, and nobody would be told why.
fn check_authority(certificate: &CertificateDer<'_>) -> Result<(), String> {
    let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    if !rest.is_empty() {
        return Err("bytes follow the certificate".to_owned());
    }
    // Old private authorities are of version 1, which has no extensions.
    let may_sign = parsed.is_ca() || parsed.version() == X509Version::V1;
    if !may_sign {
        return Err(format!("`{}` is no certificate of an authority (basicConstraints)", parsed.subject()));
    }
    Ok(())
}

impl PartialEq for ClientAuthorities {
    fn eq(&self, other: &Self) -> bool {
        self.sha256 == other.sha256
    }
}

impl Eq for ClientAuthorities {}

impl fmt::Debug for ClientAuthorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientAuthorities").field("certificates", &self.der.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(name: &str, is_ca: bool) -> rcgen::Certificate {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        if is_ca {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn a_set_is_told_by_its_certificates() {
        let (one, two) = (authority("one", true), authority("two", true));
        let both = format!("{}{}", one.pem(), two.pem());
        let read = ClientAuthorities::from_pem(both.as_bytes()).unwrap();
        assert_eq!(read.der().len(), 2);
        assert_eq!(read, ClientAuthorities::from_der(vec![one.der().clone(), two.der().clone()]).unwrap());
        let alone = ClientAuthorities::from_pem(one.pem().as_bytes()).unwrap();
        assert_ne!(read, alone);
        assert_ne!(read.short_id(), alone.short_id());
    }

    #[test]
    fn what_is_no_set_of_authorities_is_refused_with_its_reason() {
        let good = authority("good", true).pem();
        let many = good.repeat(CLIENT_AUTHORITIES_MAX + 1);
        let large = good.repeat(CLIENT_AUTHORITIES_BYTES_MAX / good.len() + 1);
        let with_leaf = format!("{good}{}", authority("leaf", false).pem());
        let with_key = format!("{good}{}", rcgen::KeyPair::generate().unwrap().serialize_pem());
        let broken = "-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n";
        for (pem, hint) in [
            ("", "holds 0 certificates"),
            ("hello", "holds 0 certificates"),
            (many.as_str(), "holds 17 certificates"),
            (large.as_str(), "at most 32768"),
            (with_leaf.as_str(), "certificate 2: `CN=leaf` is no certificate of an authority"),
            (with_key.as_str(), "holds a private key"),
            ("-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n", "is not PEM"),
            (broken, "certificate 1:"),
        ] {
            let error = ClientAuthorities::from_pem(pem.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}

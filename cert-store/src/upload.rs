//! A certificate that somebody brings, with its key or for one that was made here: whether it may be served.
//!
//! What an ACME CA sends was asked for by us; what is brought was put together by hand, and half of all such files are
//! wrong in one of a few ways: the order of the chain, a missing intermediate, the key of last year. Each is told apart
//! here and answered with what to do. No text of a fault repeats anything of what was given but names, dates and numbers,
//! since a key may stand where none belongs.
//!
//! Deliberately absent: whose the names are, and revocation.

use rustls::RootCertStore;
use rustls_pki_types::UnixTime;

use crate::certificate::{CHAIN_LENGTH_MAX, CertificateChain, CertificateError, KeyType};
use crate::key::{PrivateKey, PrivateKeyError};
use crate::pem::pem_certificates;

mod chain;

/// Largest chain in bytes of PEM; public CAs send 4 to 8 KiB.
pub const UPLOADED_CHAIN_BYTES_MAX: usize = 64 * 1024;
/// Largest key in bytes of PEM; RSA 4096 has 3.3 KB, with its text form from OpenSSL 12 KB.
pub const UPLOADED_KEY_BYTES_MAX: usize = 16 * 1024;
/// A certificate that ends sooner than this, in seconds, would be of no use.
pub const UPLOADED_REMAINING_SECONDS_MIN: u64 = 2 * 3600;

/// A chain that may be served, and its key.
#[derive(Debug)]
pub struct Upload {
    /// Without the root, whatever was given.
    pub chain: CertificateChain,
    pub key: PrivateKey,
}

/// What of an upload is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadPart {
    Chain,
    Key,
}

/// One thing that is wrong, and what to do. Never holds a byte of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct UploadFault {
    pub part: UploadPart,
    /// Stable.
    pub code: &'static str,
    pub text: String,
}

impl Upload {
    /// Reads and checks chain and key. `roots`: what the chain must lead to; `None` for an authority of the tenant's own,
    /// whose chain then only has to hold together.
    ///
    /// # Errors
    /// What is wrong with the chain and what with the key, both where both are.
    pub fn read(
        chain_pem: &str,
        key_pem: &str,
        roots: Option<&RootCertStore>,
        now: UnixTime,
    ) -> Result<Self, Vec<UploadFault>> {
        let (chain, key) = (read_chain(chain_pem, roots, now), read_key(key_pem));
        let (chain, key) = match (chain, key) {
            (Ok(chain), Ok(key)) => (chain, key),
            (chain, key) => return Err(chain.err().into_iter().chain(key.err()).collect()),
        };
        if key.spki_sha256() != chain.facts().spki_sha256 {
            let text = format!(
                "is not the key of the certificate (that one has {}, this is {}); give the key that the certificate was \
                 requested with",
                chain.facts().key_type,
                key.key_type()
            );
            return Err(vec![fault(UploadPart::Key, "key_mismatch", text)]);
        }
        Ok(Self { chain, key })
    }
}

/// Reads and checks a chain alone, whose key is known already. `roots`: as for [`Upload::read`].
///
/// # Errors
/// What is wrong with it.
pub fn read_chain(
    pem: &str,
    roots: Option<&RootCertStore>,
    now: UnixTime,
) -> Result<CertificateChain, UploadFault> {
    if pem.len() > UPLOADED_CHAIN_BYTES_MAX {
        let text = format!("has {} bytes, at most {UPLOADED_CHAIN_BYTES_MAX}", pem.len());
        return Err(of_chain("too_large", text));
    }
    if pem.contains("PRIVATE KEY") {
        let text = "holds a private key, which does not belong here; give the certificates alone, and the key as the key";
        return Err(of_chain("key_in_chain", text));
    }
    let found =
        pem_certificates(pem.as_bytes()).take(CHAIN_LENGTH_MAX + 1).collect::<Result<Vec<_>, _>>().map_err(
            |_| of_chain("not_pem", "is no PEM; give the file as the CA issued it, line breaks included"),
        )?;
    let found = chain::check(found, roots, now)?;
    CertificateChain::parse_der(found).map_err(|error| unreadable(&error))
}

/// What the plain parser says; its errors hold names, numbers and dates only.
fn unreadable(error: &CertificateError) -> UploadFault {
    of_chain("invalid_certificate", error.to_string())
}

fn read_key(pem: &str) -> Result<PrivateKey, UploadFault> {
    let of_key = |code, text: &str| fault(UploadPart::Key, code, text);
    if pem.len() > UPLOADED_KEY_BYTES_MAX {
        let text = format!("has {} bytes, at most {UPLOADED_KEY_BYTES_MAX}", pem.len());
        return Err(of_key("too_large", &text));
    }
    if pem.contains("ENCRYPTED") {
        let text = "is encrypted; give it without its passphrase (openssl pkey -in KEY prints it so)";
        return Err(of_key("key_encrypted", text));
    }
    if keys_in(pem) > 1 {
        return Err(of_key("several_keys", "holds several keys; give the one of the certificate"));
    }
    let key = PrivateKey::from_pem(pem.as_bytes()).map_err(|error| match error {
        PrivateKeyError::NotFound => {
            of_key("not_pem", "holds no private key in PEM (PKCS#8, SEC1 or PKCS#1), line breaks included")
        }
        PrivateKeyError::TooLarge { .. }
        | PrivateKeyError::Unsupported
        | PrivateKeyError::Generation
        | PrivateKeyError::Request { .. } => of_key(
            "key_unsupported",
            "cannot be used; give RSA of 2048, 3072 or 4096 bits, or ECDSA P-256 or P-384",
        ),
    })?;
    if key.key_type() == KeyType::Ed25519 {
        return Err(fault(UploadPart::Key, "key_unsupported", ED25519_REFUSED));
    }
    Ok(key)
}

fn keys_in(pem: &str) -> usize {
    pem.lines().filter(|line| line.starts_with("-----BEGIN ") && line.contains("PRIVATE KEY")).count()
}

/// No browser verifies it, and no public CA may sign one (Baseline Requirements, section 6.1.1.3).
const ED25519_REFUSED: &str =
    "is of the kind Ed25519, which no browser can verify; use ECDSA P-256, or RSA for old clients";

fn fault(part: UploadPart, code: &'static str, text: impl Into<String>) -> UploadFault {
    UploadFault { part, code, text: text.into() }
}

fn of_chain(code: &'static str, text: impl Into<String>) -> UploadFault {
    fault(UploadPart::Chain, code, text)
}

#[cfg(test)]
mod tests;

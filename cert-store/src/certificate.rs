//! Certificates: a chain as the CA gave it, and the facts that Portico reads from its leaf.
//!
//! A chain is parsed once, where it enters (API, CA, file, distribution). Equal intermediates are stored once in a
//! process ([`ChainInterner`]): at a million names they would be the largest part of all memory otherwise.
//! Deliberately absent: revocation, and building chains from loose certificates.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::domain_name::{DomainName, NamePattern};
use crate::pem::{PemFault, pem_certificates};

/// Most certificates in one chain, for all who take one in and for each edge; public CAs send two to four.
pub const CHAIN_LENGTH_MAX: usize = 8;
/// Largest certificate in bytes; a leaf with 100 long names has about 10 KB.
pub const CERTIFICATE_BYTES_MAX: usize = 64 * 1024;
/// Most names read from one certificate (Let's Encrypt: 100, other CAs: 250).
pub const CERTIFICATE_NAMES_MAX: usize = 1000;

/// What Portico reads from a leaf certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The DNS names of the subject alternative name extension, in the certificate's order. Entries that cannot be
    /// served by name (IP addresses, single labels, underscores) are left out.
    pub names: Vec<NamePattern>,
    pub not_before: UnixTime,
    /// The last second of validity.
    pub not_after: UnixTime,
    /// SHA-256 of the SubjectPublicKeyInfo in DER.
    pub spki_sha256: [u8; 32],
    /// Big-endian, as in the certificate.
    pub serial: Box<[u8]>,
    /// The issuer's distinguished name as text.
    pub issuer: Box<str>,
    pub key_type: KeyType,
    /// SHA-256 of the whole certificate in DER.
    pub fingerprint_sha256: [u8; 32],
}

/// The kinds of key that Portico makes or accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyType {
    EcdsaP256,
    EcdsaP384,
    Rsa2048,
    Rsa3072,
    Rsa4096,
    Ed25519,
}

/// A leaf with its intermediates, parsed: the public half of a credential. Cheap to clone but for the leaf.
#[derive(Clone)]
pub struct CertificateChain {
    leaf: CertificateDer<'static>,
    intermediates: Arc<[CertificateDer<'static>]>,
    facts: CertificateFacts,
}

/// Keeps equal lists of intermediates once. Shared by all who parse chains in a process; used when a credential is
/// published, never in a handshake.
#[derive(Default)]
pub struct ChainInterner {
    /// By a hash of the contents, which are compared: two lists of one hash are only not shared.
    lists: Mutex<HashMap<u64, Weak<[CertificateDer<'static>]>>>,
    hasher: foldhash::fast::RandomState,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("no certificate found; give the leaf first and then its intermediates")]
    Empty,
    #[error(
        "the chain has {length} certificates and {CHAIN_LENGTH_MAX} are allowed; send the leaf and its intermediates only"
    )]
    ChainTooLong { length: usize },
    #[error("certificate {index} of the chain has {octets} bytes and {CERTIFICATE_BYTES_MAX} are allowed")]
    TooLarge { index: usize, octets: usize },
    #[error("the sealed key has {octets} bytes, more than any supported key has")]
    SealedKeyTooLarge { octets: usize },
    #[error("the PEM text is damaged: {0}; give the file as the CA issued it")]
    Pem(#[from] PemFault),
    #[error("certificate {index} of the chain is not valid DER: {reason}")]
    Der { index: usize, reason: String },
    #[error(
        "the certificate holds no DNS name that can be served; its subject alternative names must hold one"
    )]
    NoNames,
    #[error("the certificate holds {names} names and {CERTIFICATE_NAMES_MAX} are allowed")]
    TooManyNames { names: usize },
    #[error(
        "the key is of an unsupported kind ({found}); use ECDSA P-256 or P-384, RSA 2048, 3072 or 4096, or Ed25519"
    )]
    KeyType { found: String },
    #[error("the certificate is valid only from {from} on (unix seconds); check this machine's clock")]
    NotYetValid { from: u64 },
    #[error("the certificate expired at {at} (unix seconds); renew it")]
    Expired { at: u64 },
    #[error("the certificate does not cover `{name}`; it names: {held}")]
    NameNotCovered { name: String, held: String },
    #[error(
        "no chain from the certificate to a trusted root: {reason}; add the missing intermediates, or trust the root"
    )]
    Untrusted { reason: String },
    #[error("the certificate was issued for another key than the one given")]
    KeyMismatch,
    #[error("a handshake with this certificate fails: {reason}")]
    Handshake { reason: String },
}

impl CertificateChain {
    /// Parses a chain, leaf first.
    ///
    /// # Errors
    /// A [`CertificateError`] where the chain is empty, too long, or a certificate cannot be read. The intermediates
    /// are only checked to be certificates; [`check_chain`](Self::check_chain) builds the path.
    pub fn parse_der(mut chain: Vec<CertificateDer<'static>>) -> Result<Self, CertificateError> {
        if chain.is_empty() {
            return Err(CertificateError::Empty);
        }
        if chain.len() > CHAIN_LENGTH_MAX {
            return Err(CertificateError::ChainTooLong { length: chain.len() });
        }
        for (index, certificate) in chain.iter().enumerate() {
            if certificate.len() > CERTIFICATE_BYTES_MAX {
                return Err(CertificateError::TooLarge { index, octets: certificate.len() });
            }
        }
        for (index, intermediate) in chain.iter().enumerate().skip(1) {
            webpki::EndEntityCert::try_from(intermediate)
                .map_err(|error| CertificateError::Der { index, reason: error.to_string() })?;
        }
        let facts = CertificateFacts::of_der(&chain[0])?;
        let intermediates = chain.split_off(1).into();
        let leaf = chain.pop().expect("the chain is not empty");
        Ok(Self { leaf, intermediates, facts })
    }

    /// Parses a PEM file; parts that are not certificates, such as a key, are passed over.
    ///
    /// # Errors
    /// As [`parse_der`](Self::parse_der), and for damaged PEM.
    pub fn parse_pem(pem: &[u8]) -> Result<Self, CertificateError> {
        let chain = pem_certificates(pem).take(CHAIN_LENGTH_MAX + 1).collect::<Result<Vec<_>, _>>()?;
        Self::parse_der(chain)
    }

    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.leaf
    }

    pub fn intermediates(&self) -> &Arc<[CertificateDer<'static>]> {
        &self.intermediates
    }

    /// All certificates, leaf first, as rustls wants them.
    pub fn to_vec(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(&self.leaf).chain(self.intermediates.iter()).cloned().collect()
    }

    pub fn to_pem(&self) -> String {
        std::iter::once(&self.leaf).chain(self.intermediates.iter()).map(|der| certificate_pem(der)).collect()
    }

    /// Checks that a chain leads to one of `roots`, that each of `names` is covered, and that `now` is within the
    /// leaf's dates: the control plane's half of the activation gate.
    ///
    /// # Errors
    /// The first of these that does not hold.
    pub fn check_chain(
        &self,
        roots: &RootCertStore,
        names: &[NamePattern],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        self.facts.check_dates(now)?;
        self.facts.check_names(names)?;
        let untrusted = |error: webpki::Error| CertificateError::Untrusted { reason: error.to_string() };
        let leaf = webpki::EndEntityCert::try_from(&self.leaf).map_err(untrusted)?;
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &roots.roots,
            &self.intermediates,
            now,
            webpki::KeyUsage::server_auth(),
            None,
            None,
        )
        .map_err(untrusted)?;
        Ok(())
    }
}

impl fmt::Debug for CertificateChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateChain")
            .field("facts", &self.facts)
            .field("intermediates", &self.intermediates.len())
            .finish()
    }
}

impl CertificateFacts {
    /// # Errors
    /// Where the leaf cannot be read, has an unsupported key or no name that can be served.
    pub fn of_der(leaf: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse_leaf(leaf)?;
        let spki = &certificate.tbs_certificate.subject_pki;
        Ok(Self {
            names: served_names(&certificate)?,
            not_before: unix_time(certificate.validity().not_before.timestamp()),
            not_after: unix_time(certificate.validity().not_after.timestamp()),
            spki_sha256: sha256(spki.raw),
            serial: certificate.tbs_certificate.raw_serial().into(),
            issuer: certificate.issuer().to_string().into(),
            key_type: KeyType::of_spki(spki)?,
            fingerprint_sha256: sha256(leaf),
        })
    }

    /// Whether one of the certificate's names matches.
    pub fn covers(&self, name: &DomainName) -> bool {
        self.names.iter().any(|pattern| pattern.matches(name))
    }

    /// # Errors
    /// [`CertificateError::NameNotCovered`] with the first name that no entry of the certificate covers.
    pub fn check_names(&self, wanted: &[NamePattern]) -> Result<(), CertificateError> {
        match wanted.iter().find(|wanted| !self.names.iter().any(|held| held.covers(wanted))) {
            None => Ok(()),
            Some(missing) => {
                let held: Vec<String> = self.names.iter().take(10).map(ToString::to_string).collect();
                Err(CertificateError::NameNotCovered { name: missing.to_string(), held: held.join(", ") })
            }
        }
    }

    /// # Errors
    /// Where `now` is outside the certificate's dates.
    pub fn check_dates(&self, now: UnixTime) -> Result<(), CertificateError> {
        if now < self.not_before {
            return Err(CertificateError::NotYetValid { from: self.not_before.as_secs() });
        }
        if now > self.not_after {
            return Err(CertificateError::Expired { at: self.not_after.as_secs() });
        }
        Ok(())
    }
}

impl KeyType {
    /// The type of a public key in DER (SubjectPublicKeyInfo, RFC 5280 section 4.1).
    ///
    /// # Errors
    /// [`CertificateError::KeyType`] for any other kind.
    pub fn of_spki_der(spki: &[u8]) -> Result<Self, CertificateError> {
        let (_, spki) = SubjectPublicKeyInfo::from_der(spki)
            .map_err(|_| CertificateError::KeyType { found: "unreadable public key".into() })?;
        Self::of_spki(&spki)
    }

    fn of_spki(spki: &SubjectPublicKeyInfo<'_>) -> Result<Self, CertificateError> {
        use x509_parser::oid_registry::{OID_EC_P256, OID_NIST_EC_P384, OID_SIG_ED25519};
        let unsupported = |found: String| CertificateError::KeyType { found };
        if spki.algorithm.algorithm == OID_SIG_ED25519 {
            return Ok(Self::Ed25519);
        }
        let parsed = spki.parsed().map_err(|_| unsupported("unreadable public key".into()))?;
        if let PublicKey::EC(_) = parsed {
            let curve = spki.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
            return match curve {
                Some(curve) if curve == OID_EC_P256 => Ok(Self::EcdsaP256),
                Some(curve) if curve == OID_NIST_EC_P384 => Ok(Self::EcdsaP384),
                Some(curve) => Err(unsupported(format!("elliptic curve {curve}"))),
                None => Err(unsupported("elliptic curve without a name".into())),
            };
        }
        if let PublicKey::RSA(_) = parsed {
            return match parsed.key_size() {
                2048 => Ok(Self::Rsa2048),
                3072 => Ok(Self::Rsa3072),
                4096 => Ok(Self::Rsa4096),
                bits => Err(unsupported(format!("RSA with {bits} bits"))),
            };
        }
        Err(unsupported(format!("algorithm {}", spki.algorithm.algorithm)))
    }

    pub fn is_rsa(self) -> bool {
        matches!(self, Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096)
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EcdsaP256 => "ECDSA P-256",
            Self::EcdsaP384 => "ECDSA P-384",
            Self::Rsa2048 => "RSA 2048",
            Self::Rsa3072 => "RSA 3072",
            Self::Rsa4096 => "RSA 4096",
            Self::Ed25519 => "Ed25519",
        })
    }
}

impl ChainInterner {
    pub fn new() -> Self {
        Self::default()
    }

    /// The shared copy of `list`, which becomes it if there is none.
    pub fn intern(&self, list: Arc<[CertificateDer<'static>]>) -> Arc<[CertificateDer<'static>]> {
        let hash = self.hash(&list);
        if let Some(shared) = self.find(hash, &list) {
            return shared;
        }
        let mut lists = self.lock();
        if lists.len() == lists.capacity() {
            lists.retain(|_, list| list.strong_count() > 0);
        }
        lists.insert(hash, Arc::downgrade(&list));
        list
    }

    /// The shared copy of a list that was parsed before; nothing is copied.
    pub(crate) fn known(&self, list: &[&[u8]]) -> Option<Arc<[CertificateDer<'static>]>> {
        self.find(self.hash(list), list)
    }

    fn hash<D: AsRef<[u8]>>(&self, list: &[D]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for der in list {
            der.as_ref().hash(&mut hasher);
        }
        hasher.finish()
    }

    fn find<D: AsRef<[u8]>>(&self, hash: u64, list: &[D]) -> Option<Arc<[CertificateDer<'static>]>> {
        let shared = self.lock().get(&hash).and_then(Weak::upgrade)?;
        let equal = shared.len() == list.len()
            && shared.iter().zip(list).all(|(held, der)| held.as_ref() == der.as_ref());
        equal.then_some(shared)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Weak<[CertificateDer<'static>]>>> {
        // A panic while the lock is held leaves a map that is still sound: entries are independent.
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists that somebody holds.
    pub fn len(&self) -> usize {
        self.lock().values().filter(|list| list.strong_count() > 0).count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for ChainInterner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainInterner").field("lists", &self.len()).finish()
    }
}

fn parse_leaf(leaf: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    match X509Certificate::from_der(leaf) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(CertificateError::Der { index: 0, reason: "bytes after the certificate".into() }),
        Err(error) => Err(CertificateError::Der { index: 0, reason: error.to_string() }),
    }
}

fn served_names(certificate: &X509Certificate<'_>) -> Result<Vec<NamePattern>, CertificateError> {
    let extension = certificate
        .subject_alternative_name()
        .map_err(|error| CertificateError::Der { index: 0, reason: error.to_string() })?
        .ok_or(CertificateError::NoNames)?;
    let entries = &extension.value.general_names;
    if entries.len() > CERTIFICATE_NAMES_MAX {
        return Err(CertificateError::TooManyNames { names: entries.len() });
    }
    let mut names = Vec::with_capacity(entries.len());
    for entry in entries {
        if let x509_parser::extensions::GeneralName::DNSName(name) = entry {
            names.extend(served_name(name));
        }
    }
    if names.is_empty() { Err(CertificateError::NoNames) } else { Ok(names) }
}

/// A name as a certificate holds it. No public-suffix check: that guards claims, and here a CA has already signed.
pub(crate) fn served_name(name: &str) -> Option<NamePattern> {
    match name.strip_prefix("*.") {
        Some(base) => DomainName::parse(base).ok().map(NamePattern::Wildcard),
        None => DomainName::parse(name).ok().map(NamePattern::Exact),
    }
}

fn unix_time(seconds: i64) -> UnixTime {
    // Dates before 1970 are "always in the past" for every use here.
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// A certificate as text (RFC 7468).
pub fn certificate_pem(der: &[u8]) -> String {
    pem_block("CERTIFICATE", der)
}

/// One certificate request as PEM.
pub fn request_pem(der: &[u8]) -> String {
    pem_block("CERTIFICATE REQUEST", der)
}

fn pem_block(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut block = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        block.push_str(line);
        block.push('\n');
        rest = after;
    }
    block.push_str(&format!("-----END {label}-----\n"));
    block
}

#[cfg(test)]
mod tests;

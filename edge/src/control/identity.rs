//! Who this edge is to the control plane: its id and cell, the key and certificate of its mTLS identity, the CA that it
//! trusts, and the HPKE key pair that cell keys are sealed to.
//!
//! All of it is one file, `identity/identity.json`, so that a renewal is one rename: key and certificate can never be of
//! different age. None of it ever crosses a wire but the public halves.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use portico_cert_store::hpke::{self, HpkePrivateKey};
use portico_cert_store::{CellId, EdgeId, UnixTime};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::files::{self, FileError};
use super::limits;

/// In the state folder.
pub(super) const FOLDER: &str = "identity";
const FILE: &str = "identity.json";

/// A joined edge.
pub struct Identity {
    pub edge: EdgeId,
    pub cell: CellId,
    pub(super) hpke_private: HpkePrivateKey,
    pub(super) hpke_public: [u8; 32],
    pub(super) certificate: IdentityCertificate,
}

/// The part that is renewed.
pub(super) struct IdentityCertificate {
    key_pkcs8: Zeroizing<Vec<u8>>,
    pub(super) certified: Arc<CertifiedKey>,
    /// What the control plane's certificate has to lead to.
    pub(super) trusted: Vec<CertificateDer<'static>>,
    pub(super) not_before: UnixTime,
    pub(super) not_after: UnixTime,
}

/// A key made for a certificate that does not exist yet.
pub(super) struct Request {
    pub(super) csr_der: Vec<u8>,
    key_pkcs8: Zeroizing<Vec<u8>>,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path} is damaged ({reason}): move the folder away and join again with a new token")]
    Damaged { path: PathBuf, reason: String },
    #[error("the control plane's answer is not an identity: {0}")]
    Answer(String),
    #[error("the cryptographic library refused to make a key")]
    Crypto,
}

/// The file's form. Base64 of DER or raw bytes.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    edge_id: String,
    cell_id: String,
    key_pkcs8: String,
    certificate_chain: Vec<String>,
    trusted: Vec<String>,
    hpke_private: String,
    hpke_public: String,
}

impl Identity {
    /// Whether an edge with this state folder has joined, as far as can be seen: who may not look there is not told that it has not.
    pub fn may_be_in(state: &Path) -> bool {
        state.join(FOLDER).join(FILE).try_exists().unwrap_or(true)
    }

    /// The identity kept in `folder`; None if this edge has not joined yet.
    ///
    /// # Errors
    /// [`IdentityError`] if the folder or file can be read by others, or the file is damaged.
    pub fn load(folder: &Path) -> Result<Option<Self>, IdentityError> {
        files::private_folder(folder)?;
        let path = folder.join(FILE);
        let Some(text) = files::read_private(&path, limits::IDENTITY_FILE_BYTES_MAX)? else {
            return Ok(None);
        };
        let damaged = |reason: String| IdentityError::Damaged { path: path.clone(), reason };
        let stored: Stored = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        Self::from_stored(&stored).map(Some).map_err(damaged)
    }

    /// Puts the identity on disk, whole or not at all.
    pub(super) fn store(&self, folder: &Path) -> Result<(), IdentityError> {
        let encoded = |list: &[CertificateDer<'static>]| list.iter().map(|der| BASE64.encode(der)).collect();
        let stored = Stored {
            format: 1,
            edge_id: self.edge.to_string(),
            cell_id: self.cell.to_string(),
            key_pkcs8: BASE64.encode(&self.certificate.key_pkcs8),
            certificate_chain: encoded(&self.certificate.certified.cert),
            trusted: encoded(&self.certificate.trusted),
            hpke_private: BASE64.encode(self.hpke_private.secret_bytes()),
            hpke_public: BASE64.encode(self.hpke_public),
        };
        let text = Zeroizing::new(serde_json::to_vec_pretty(&stored).map_err(|_| IdentityError::Crypto)?);
        Ok(files::write_private(&folder.join(FILE), &text)?)
    }

    /// From a join's answer.
    pub(super) fn new(
        edge: EdgeId,
        cell: CellId,
        certificate: IdentityCertificate,
        hpke: (HpkePrivateKey, [u8; 32]),
    ) -> Self {
        Self { edge, cell, hpke_private: hpke.0, hpke_public: hpke.1, certificate }
    }

    pub(super) fn hpke_pair(&self) -> (HpkePrivateKey, [u8; 32]) {
        let mut secret = Zeroizing::new([0; 32]);
        secret.copy_from_slice(self.hpke_private.secret_bytes());
        (HpkePrivateKey::from_bytes(&secret), self.hpke_public)
    }

    fn from_stored(stored: &Stored) -> Result<Self, String> {
        if stored.format != 1 {
            return Err(format!("format {}; this build reads format 1", stored.format));
        }
        let decode =
            |text: &String| BASE64.decode(text).map(Zeroizing::new).map_err(|error| error.to_string());
        let list = |list: &[String]| {
            list.iter()
                .map(|text| decode(text).map(|der| CertificateDer::from(der.to_vec())))
                .collect::<Result<Vec<_>, _>>()
        };
        let secret = |text: &String| -> Result<Zeroizing<[u8; 32]>, String> {
            let bytes = decode(text)?;
            bytes
                .as_slice()
                .try_into()
                .map(Zeroizing::new)
                .map_err(|_| "an HPKE key has not 32 bytes".to_owned())
        };
        let certificate = IdentityCertificate::new(
            decode(&stored.key_pkcs8)?,
            list(&stored.certificate_chain)?,
            list(&stored.trusted)?,
        )?;
        Ok(Self {
            edge: stored.edge_id.parse().map_err(|error| format!("{error}"))?,
            cell: CellId::parse(&stored.cell_id).map_err(|error| error.to_string())?,
            hpke_private: HpkePrivateKey::from_bytes(&*secret(&stored.hpke_private)?),
            hpke_public: *secret(&stored.hpke_public)?,
            certificate,
        })
    }
}

impl IdentityCertificate {
    /// A third of the life is left for trying, as with every other certificate here.
    pub(super) fn renew_at(&self) -> UnixTime {
        let (from, to) = (self.not_before.as_secs(), self.not_after.as_secs());
        UnixTime::since_unix_epoch(Duration::from_secs(from + to.saturating_sub(from) / 3 * 2))
    }

    /// Takes a chain for the key of `request`.
    pub(super) fn from_answer<'a>(
        request: Request,
        chain: impl IntoIterator<Item = &'a [u8]>,
        trusted: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Self, IdentityError> {
        let owned =
            |list: Vec<&[u8]>| list.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let (chain, trusted): (Vec<_>, Vec<_>) =
            (owned(chain.into_iter().collect()), owned(trusted.into_iter().collect()));
        Self::new(request.key_pkcs8, chain, trusted).map_err(IdentityError::Answer)
    }

    fn new(
        key_pkcs8: Zeroizing<Vec<u8>>,
        chain: Vec<CertificateDer<'static>>,
        trusted: Vec<CertificateDer<'static>>,
    ) -> Result<Self, String> {
        for list in [&chain, &trusted] {
            if list.is_empty() || list.len() > limits::IDENTITY_CHAIN_MAX {
                let most = limits::IDENTITY_CHAIN_MAX;
                return Err(format!("{} certificates where 1 to {most} are expected", list.len()));
            }
        }
        let (not_before, not_after) = dates(&chain[0])?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key_pkcs8.as_slice()));
        let signer = any_ecdsa_type(&key).map_err(|_| "the key is not ECDSA in PKCS#8".to_owned())?;
        let certified = CertifiedKey::new(chain, signer);
        certified.keys_match().map_err(|_| "the certificate is not that of the key".to_owned())?;
        Ok(Self { key_pkcs8, certified: Arc::new(certified), trusted, not_before, not_after })
    }
}

impl Request {
    /// A fresh P-256 key and a request for it. Who the edge is, the control plane decides.
    pub(super) fn new() -> Result<Self, IdentityError> {
        let failed = |_| IdentityError::Crypto;
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let csr = rcgen::CertificateParams::default().serialize_request(&key).map_err(failed)?;
        Ok(Self { csr_der: csr.der().to_vec(), key_pkcs8: Zeroizing::new(key.serialize_der()) })
    }
}

/// The pair that cell keys will be sealed to.
pub(super) fn hpke_pair() -> Result<(HpkePrivateKey, [u8; 32]), IdentityError> {
    hpke::generate_key_pair().map_err(|_| IdentityError::Crypto)
}

fn dates(leaf: &[u8]) -> Result<(UnixTime, UnixTime), String> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
    let time =
        |seconds: i64| UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
    let validity = parsed.validity();
    Ok((time(validity.not_before.timestamp()), time(validity.not_after.timestamp())))
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("edge", &self.edge).field("cell", &self.cell).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(in crate::control) mod tests;

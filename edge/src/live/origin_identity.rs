//! Who we are to an origin that asks for a client certificate.
//!
//! An identity is its chain: two with the same bytes are one, any other is another, and whatever is made of one (pools, TLS
//! configurations with their sessions) serves no other (promise P5). In a fleet each cell has a key of its own for each
//! tenant that wants it, and all of a tenant's certificates lead to one authority; an edge alone reads it from a file.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use portico_api::distribution as wire;
use portico_cert_store::{CredentialId, PrivateKey, SealContext, SealedKey};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::origin::OriginRoots;
use super::stage::StagingContext;
use super::{Fault, full_text, limits};
use crate::upstream::ClientConfigs;

/// A client certificate with its key, opened.
pub struct OriginIdentity {
    /// SHA-256 of the whole chain.
    sha256: [u8; 32],
    key: Arc<SingleCertAndKey>,
    /// What was made for it, by the roots that origins are trusted by (absent: the system's).
    configs: Mutex<Vec<(Option<Arc<OriginRoots>>, ClientConfigs)>>,
}

/// Which client certificate an origin is shown when it asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Presents {
    #[default]
    Nothing,
    /// The tenant's own, whichever is in force.
    TenantsOwn,
    This(Arc<OriginIdentity>),
}

impl OriginIdentity {
    /// # Errors
    /// A text that says which half is wrong.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: &PrivateKey) -> Result<Self, String> {
        let Some(leaf) = chain.first() else { return Err("holds no certificate".to_owned()) };
        if chain.len() > limits::CHAIN_CERTIFICATES_MAX {
            let most = limits::CHAIN_CERTIFICATES_MAX;
            return Err(format!("the chain has {} certificates; at most {most}", chain.len()));
        }
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf)
            .map_err(|error| format!("the certificate cannot be read: {error}"))?;
        if sha256([parsed.subject_pki.raw]) != key.spki_sha256() {
            return Err("the private key is not that of the certificate".to_owned());
        }
        let sha256 = sha256(chain.iter().map(AsRef::as_ref));
        let signing = key.signing_key().map_err(|error| error.to_string())?;
        let key = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, signing)));
        Ok(Self { sha256, key, configs: Mutex::default() })
    }

    /// A tenant's, as it is distributed: for one cell, sealed under its key.
    pub(super) fn parse(resource: &wire::Resource, context: &StagingContext) -> Result<Self, Fault> {
        let body: wire::Credential = super::stage::decode(resource)?;
        let bad = |text: String| Fault::new("BadOriginIdentity", text);
        if body.cell_id != context.cell.as_str() {
            let text = format!(
                "the key is sealed for cell `{:.32}`, this edge is in `{}`",
                body.cell_id, context.cell
            );
            return Err(Fault::new("OtherCell", text));
        }
        if body.key_tenant != resource.tenant_id {
            return Err(Fault::new("ForeignKey", "the key belongs to another tenant than the resource"));
        }
        let spki_sha256: [u8; 32] = (body.spki_sha256.as_ref().try_into())
            .map_err(|_| bad(format!("the key's hash has {} bytes, not 32", body.spki_sha256.len())))?;
        let epoch = body.cell_key_epoch;
        let sealing = SealContext {
            cell: &context.cell,
            epoch,
            key_tenant: &body.key_tenant,
            credential: super::stage::parse_id::<CredentialId>(&body.credential_id)?,
            spki_sha256,
        };
        let closed = |why: String| Fault::new("KeyDoesNotOpen", why);
        let cell_key = context.cell_keys.find(&context.cell, epoch);
        let cell_key =
            cell_key.ok_or_else(|| closed(format!("epoch {epoch} of the cell's key is not here")))?;
        let key = cell_key.open(&SealedKey::from_bytes(body.sealed_key.to_vec()), &sealing);
        let key = key.map_err(|error| closed(full_text(&error)))?;
        let chain = body.chain_der.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        Self::new(chain, &key).map_err(bad)
    }

    pub(crate) fn resolver(&self) -> Arc<dyn ResolvesClientCert> {
        Arc::clone(&self.key) as Arc<dyn ResolvesClientCert>
    }

    /// The configurations under these roots, made at the first connection.
    pub(crate) fn configs(
        &self,
        roots: Option<&Arc<OriginRoots>>,
        make: impl FnOnce() -> ClientConfigs,
    ) -> ClientConfigs {
        let mut made = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, configs)) = made.iter().find(|(of, _)| of.as_ref() == roots) {
            return configs.clone();
        }
        if made.len() >= limits::ORIGIN_IDENTITY_ROOTS_MAX {
            made.clear();
        }
        let configs = make();
        made.push((roots.cloned(), configs.clone()));
        configs
    }

    /// Of the whole chain; tells what an origin may have answered to this identity alone.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }
}

fn sha256<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut hash = Context::new(&SHA256);
    for part in parts {
        hash.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(hash.finish().as_ref());
    out
}

impl PartialEq for OriginIdentity {
    fn eq(&self, other: &Self) -> bool {
        self.sha256 == other.sha256
    }
}

impl Eq for OriginIdentity {}

impl Hash for OriginIdentity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.sha256.hash(state);
    }
}

impl fmt::Debug for OriginIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = u32::from_be_bytes([self.sha256[0], self.sha256[1], self.sha256[2], self.sha256[3]]);
        write!(f, "OriginIdentity({short:08x}, secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Vec<CertificateDer<'static>>, PrivateKey) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (vec![certificate.der().clone()], PrivateKey::from_pkcs8_der(&key.serialize_der()).unwrap())
    }

    #[test]
    fn an_identity_is_its_chain() {
        let ((chain, key), (other, other_key)) = (pair(), pair());
        let identity = OriginIdentity::new(chain.clone(), &key).unwrap();
        assert_eq!(identity, OriginIdentity::new(chain.clone(), &key).unwrap());
        assert_ne!(identity, OriginIdentity::new(other.clone(), &other_key).unwrap());
        assert_ne!(identity, OriginIdentity::new([chain.clone(), other.clone()].concat(), &key).unwrap());
        let error = OriginIdentity::new(other, &key).unwrap_err();
        assert_eq!(error, "the private key is not that of the certificate");
        let long = vec![chain[0].clone(); limits::CHAIN_CERTIFICATES_MAX + 1];
        assert!(OriginIdentity::new(long, &key).unwrap_err().contains("at most 8"));
        assert!(!format!("{identity:?}").contains(&format!("{:?}", key.secret_der())));
    }

    #[test]
    fn configurations_are_kept_for_some_sets_of_roots() {
        let (chain, key) = pair();
        let identity = OriginIdentity::new(chain, &key).unwrap();
        let roots: Vec<_> = (0..=limits::ORIGIN_IDENTITY_ROOTS_MAX)
            .map(|_| Arc::new(OriginRoots::parse(&[authority().into()]).unwrap().unwrap()))
            .collect();
        let mut made = 0;
        let mut ask = |roots: &Arc<OriginRoots>| {
            let before = made;
            identity.configs(Some(roots), || {
                made += 1;
                ClientConfigs::new(&roots.store)
            });
            made > before
        };
        for roots in &roots {
            assert!(ask(roots), "the first time");
            assert!(!ask(roots), "and then no more");
        }
        assert!(ask(&roots[0]), "beyond the bound it is made anew");
        assert!(identity.configs.lock().unwrap().len() <= limits::ORIGIN_IDENTITY_ROOTS_MAX);
    }

    fn authority() -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }
}

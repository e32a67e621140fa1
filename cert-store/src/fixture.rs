//! A root, an intermediate and leaves for this crate's tests, made by rcgen with our own keys.

use std::sync::LazyLock;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::certificate::{CertificateChain, ChainInterner, KeyType};
use crate::credential::{Credential, CredentialParts};
use crate::ids::{CellId, CredentialId, GroupId, LineageId};
use crate::key::{PrivateKey, RequestSigner};
use crate::seal::{CellKey, SealContext};

/// 2026-01-01, the middle of all test certificates.
pub(crate) const NOW_SECONDS: u64 = 1_767_225_600;
pub(crate) const DAY: u64 = 86_400;

pub(crate) struct Ca {
    pub(crate) root: CertificateDer<'static>,
    pub(crate) intermediate: CertificateDer<'static>,
    issuer: Issuer<'static, RequestSigner>,
}

pub(crate) static CA: LazyLock<Ca> = LazyLock::new(|| Ca::new("Portico test"));
pub(crate) static P256: LazyLock<PrivateKey> = LazyLock::new(|| key(KeyType::EcdsaP256));
pub(crate) static RSA: LazyLock<PrivateKey> = LazyLock::new(|| key(KeyType::Rsa2048));
pub(crate) static ED25519: LazyLock<PrivateKey> = LazyLock::new(|| key(KeyType::Ed25519));

pub(crate) fn key(key_type: KeyType) -> PrivateKey {
    PrivateKey::generate(key_type).unwrap()
}

pub(crate) fn now() -> UnixTime {
    at(NOW_SECONDS)
}

pub(crate) fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

pub(crate) fn cell() -> CellId {
    CellId::parse("eu-1").unwrap()
}

/// A chain for `names`, valid 30 days to both sides of [`now`].
pub(crate) fn chain(names: &[&str], key: &PrivateKey) -> CertificateChain {
    CA.chain(names, key, NOW_SECONDS - 30 * DAY, NOW_SECONDS + 30 * DAY)
}

/// A credential of `chain`, its key sealed under `cell_key`.
pub(crate) fn credential(
    chain: CertificateChain,
    key: &PrivateKey,
    cell_key: &CellKey,
    lineage: LineageId,
) -> Credential {
    let id = CredentialId::generate();
    let context = SealContext {
        cell: cell_key.cell(),
        epoch: cell_key.epoch(),
        key_tenant: "operator",
        credential: id,
        spki_sha256: key.spki_sha256(),
    };
    let parts = CredentialParts {
        id,
        lineage,
        group: GroupId::generate(),
        cell: cell_key.cell().clone(),
        cell_key_epoch: cell_key.epoch(),
        key_tenant: "operator".into(),
        spki_sha256: key.spki_sha256(),
        sealed_key: cell_key.seal(key, &context).unwrap(),
        chain,
    };
    Credential::new(parts, &ChainInterner::new()).unwrap()
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let (root_key, intermediate_key) = (key(KeyType::EcdsaP256), key(KeyType::EcdsaP256));
        let root_signer = || RequestSigner::new(&root_key).unwrap();
        let root_parameters = ca_parameters(&format!("{name} root"));
        let root = root_parameters.self_signed(&root_signer()).unwrap().der().clone();
        let parameters = ca_parameters(&format!("{name} intermediate"));
        let signer = RequestSigner::new(&intermediate_key).unwrap();
        let intermediate = parameters
            .signed_by(&signer, &Issuer::new(root_parameters, root_signer()))
            .unwrap()
            .der()
            .clone();
        Self { root, intermediate, issuer: Issuer::new(parameters, signer) }
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        roots
    }

    pub(crate) fn leaf(
        &self,
        names: &[&str],
        key: &PrivateKey,
        not_before: u64,
        not_after: u64,
    ) -> CertificateDer<'static> {
        self.leaf_with(names, key, |parameters| {
            parameters.not_before = date(not_before);
            parameters.not_after = date(not_after);
        })
    }

    /// Valid 30 days to both sides of [`now`] unless `change` says otherwise.
    pub(crate) fn leaf_with(
        &self,
        names: &[&str],
        key: &PrivateKey,
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.not_before = date(NOW_SECONDS - 30 * DAY);
        parameters.not_after = date(NOW_SECONDS + 30 * DAY);
        change(&mut parameters);
        parameters.signed_by(&RequestSigner::new(key).unwrap(), &self.issuer).unwrap().der().clone()
    }

    pub(crate) fn chain(
        &self,
        names: &[&str],
        key: &PrivateKey,
        not_before: u64,
        not_after: u64,
    ) -> CertificateChain {
        let leaf = self.leaf(names, key, not_before, not_after);
        CertificateChain::parse_der(vec![leaf, self.intermediate.clone()]).unwrap()
    }
}

fn ca_parameters(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.not_before = date(NOW_SECONDS - 3650 * DAY);
    parameters.not_after = date(NOW_SECONDS + 3650 * DAY);
    parameters
}

pub(crate) fn date(seconds: u64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap()
}

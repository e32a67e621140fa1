//! What the benches share: made-up names and credentials, in any number.

use portico_cert_store::{
    CellId, CellKey, CertificateChain, ChainInterner, Credential, CredentialId, CredentialParts, DomainId,
    DomainName, GroupId, KeyType, LineageId, NamePattern, PrivateKey, SealContext, SniEntryInput,
    SniPublisher, TenantId, TlsPolicy, TlsVersion,
};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::CertificateDer;

/// Names that stand on one certificate in the tables below.
pub const NAMES_PER_CREDENTIAL: usize = 25;

/// A CA of the bench's own.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Trust anchor.
    pub root: CertificateDer<'static>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("P-256 key");
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "bench root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).expect("self-signed").der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// A leaf for `names` with a key of `key_type`, and that key.
    pub fn issue(&self, names: &[String], key_type: KeyType) -> (CertificateChain, PrivateKey) {
        let key = PrivateKey::generate(key_type).expect("key");
        let pair = KeyPair::try_from(key.secret_der()).expect("PKCS#8");
        let mut params = CertificateParams::new(names.to_vec()).expect("names");
        params.distinguished_name = DistinguishedName::new();
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&pair, &self.issuer).expect("signed").der().clone();
        (CertificateChain::parse_der(vec![leaf]).expect("leaf parses"), key)
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// The policy of all names in the benches.
pub const POLICY: TlsPolicy =
    TlsPolicy { minimum_version: TlsVersion::Tls12, http2: true, http3: true, client_certificates: None };

/// `name-<at>.bench.test`
pub fn name(at: usize) -> DomainName {
    DomainName::parse(&format!("name-{at}.bench.test")).expect("a valid name")
}

/// A source of credentials that share one certificate and key: enough where only the table is measured.
#[derive(Debug)]
pub struct CredentialSource {
    chain: CertificateChain,
    key: PrivateKey,
    cell: CellId,
    cell_key: CellKey,
    interner: ChainInterner,
}

impl CredentialSource {
    pub fn new() -> Self {
        let (chain, key) = Authority::new().issue(&["name-0.bench.test".to_owned()], KeyType::EcdsaP256);
        let cell = CellId::parse("bench").expect("a valid cell");
        Self {
            chain,
            key,
            cell_key: CellKey::generate(cell.clone(), 1),
            cell,
            interner: ChainInterner::new(),
        }
    }

    /// A new version of `lineage`.
    pub fn credential(&self, lineage: LineageId) -> Credential {
        let id = CredentialId::generate();
        let context = SealContext {
            cell: &self.cell,
            epoch: 1,
            key_tenant: "operator",
            credential: id,
            spki_sha256: self.key.spki_sha256(),
        };
        let parts = CredentialParts {
            id,
            lineage,
            group: GroupId::generate(),
            cell: self.cell.clone(),
            cell_key_epoch: 1,
            key_tenant: "operator".into(),
            spki_sha256: self.key.spki_sha256(),
            chain: self.chain.clone(),
            sealed_key: self.cell_key.seal(&self.key, &context).expect("sealed"),
        };
        Credential::new(parts, &self.interner).expect("a credential")
    }
}

impl Default for CredentialSource {
    fn default() -> Self {
        Self::new()
    }
}

/// An index with `count` exact names in groups of 25 and one wildcard, `*.wild.test`.
pub fn index_of(count: usize, source: &CredentialSource) -> (SniPublisher, Vec<LineageId>) {
    let lineages: Vec<LineageId> =
        (0..count.div_ceil(NAMES_PER_CREDENTIAL)).map(|_| LineageId::generate()).collect();
    let (tenant, domain) = (TenantId::generate(), DomainId::generate());
    let mut publisher = SniPublisher::new(count);
    let exact = (0..count).map(|at| (NamePattern::Exact(name(at)), at / NAMES_PER_CREDENTIAL));
    let wildcard = (NamePattern::parse("*.wild.test").expect("a wildcard"), 0);
    let names = exact.chain([wildcard]).map(|(pattern, lineage)| {
        (
            pattern,
            SniEntryInput {
                tenant,
                domain,
                policy: POLICY,
                lineages: std::slice::from_ref(&lineages[lineage]),
            },
        )
    });
    publisher.publish_all(lineages.iter().map(|l| source.credential(*l)), names).expect("published");
    (publisher, lineages)
}

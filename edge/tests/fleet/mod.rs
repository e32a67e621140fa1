//! Resources as a control plane would send them, made by hand.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod process;
pub mod server;

use std::sync::Arc;

use http::{HeaderMap, Method};
use portico_api::distribution as wire;
use portico_cert_store::{
    CellId, CellKey, CellKeys, CertificateChain, ChainInterner, CredentialId, DomainId, Generation, GroupId,
    KeyType, LineageId, PrivateKey, SealContext, TenantId, UnixTime,
};
use portico_edge::live::{
    Batch, BatchKind, Checks, Host, Live, LivePublisher, Published, Rejected, Route, StagingContext, stage,
};
use rustls_pki_types::CertificateDer;
use wire::ResourceKind;

/// 2026-11-24; certificates of the tests are valid around it.
pub const NOW: u64 = 1_795_500_000;

pub fn now() -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW))
}

pub fn cell() -> CellId {
    CellId::parse("cell-a").unwrap()
}

pub const CELL_SECRET: [u8; 32] = [7; 32];

pub fn cell_key(epoch: u32) -> CellKey {
    CellKey::from_bytes(cell(), epoch, &CELL_SECRET)
}

/// An edge's tables and writer, with the cell's key at hand.
pub struct Bench {
    pub live: Arc<Live>,
    pub publisher: LivePublisher,
    pub context: StagingContext,
}

impl Bench {
    pub fn new() -> Self {
        let cell_keys = CellKeys::new();
        cell_keys.add(cell_key(1));
        let (live, publisher) = Live::new(1000, 1 << 20, cell_keys.clone());
        let context = StagingContext {
            cell: cell(),
            cell_keys,
            interner: Arc::new(ChainInterner::new()),
            now: now(),
            checks: Checks::Handshake,
            own_keys: None,
        };
        Self { live, publisher, context }
    }

    pub fn apply(&mut self, batch: Batch) -> Result<Published, Rejected> {
        let admitted = self.publisher.admit(batch)?;
        self.publisher.publish(stage(admitted, &self.context))
    }

    /// A delta on what is applied.
    pub fn delta(&mut self, resources: Vec<wire::Resource>) -> Published {
        let batch = delta(self.publisher.applied(), resources);
        self.apply(batch).unwrap()
    }

    pub fn remove(&mut self, tombstones: Vec<wire::Tombstone>) -> Published {
        let mut batch = delta(self.publisher.applied(), Vec::new());
        batch.tombstones = tombstones;
        self.apply(batch).unwrap()
    }

    pub fn snapshot(&mut self, resources: Vec<wire::Resource>) -> Published {
        let mut generation = self.publisher.applied();
        generation.epoch = generation.epoch.max(1);
        generation.sequence += 1;
        self.apply(snapshot(generation, resources)).unwrap()
    }

    /// The certificate served for a name, as its leaf's DER.
    pub fn served(&self, name: &str) -> Option<Vec<u8>> {
        let name = portico_cert_store::DomainName::parse(name).unwrap();
        let capabilities = portico_cert_store::ClientCapabilities::ALL;
        let hit = self.live.sni.lookup(&name, now(), capabilities)?;
        let key = self.live.keys.certified_key(&hit.credential).unwrap();
        Some(key.cert[0].to_vec())
    }

    pub fn host(&self, name: &str) -> Option<Arc<Host>> {
        self.live.host(&portico_cert_store::DomainName::parse(name).unwrap())
    }
}

pub fn delta(base: Generation, resources: Vec<wire::Resource>) -> Batch {
    let generation = Generation { epoch: base.epoch, sequence: base.sequence + 1 };
    Batch {
        kind: BatchKind::Delta { base },
        generation,
        resources,
        tombstones: Vec::new(),
        removals_signed_off: false,
    }
}

pub fn snapshot(generation: Generation, resources: Vec<wire::Resource>) -> Batch {
    Batch {
        kind: BatchKind::Snapshot,
        generation,
        resources,
        tombstones: Vec::new(),
        removals_signed_off: false,
    }
}

pub fn resource(
    kind: ResourceKind,
    id: &str,
    version: u64,
    tenant: TenantId,
    body: &impl prost::Message,
) -> wire::Resource {
    wire::Resource {
        kind: kind as u32,
        id: id.to_owned(),
        version,
        tenant_id: tenant.to_string(),
        body: body.encode_to_vec().into(),
    }
}

pub fn tenant(id: TenantId, version: u64) -> wire::Resource {
    resource(ResourceKind::Tenant, &id.to_string(), version, id, &wire::Tenant::default())
}

/// A served domain with one fixed answer.
pub fn domain_body(name: &str, lineages: &[LineageId]) -> wire::Domain {
    wire::Domain {
        name: name.to_owned(),
        lineages: lineages
            .iter()
            .map(|lineage| wire::LineageRef { cell_id: cell().to_string(), lineage_id: lineage.to_string() })
            .collect(),
        routes: vec![fixed(name)],
        served: true,
        ..Default::default()
    }
}

pub fn fixed(body: &str) -> wire::Route {
    wire::Route {
        path_prefix: "/".into(),
        action: Some(wire::route::Action::StaticAnswer(wire::StaticAnswer {
            status: 200,
            content_type: "text/plain".into(),
            body: body.to_owned().into_bytes().into(),
        })),
        rule: None,
    }
}

/// What a plain GET of `path` leads to.
pub fn route<'h>(host: &'h Host, path: &str) -> Option<&'h Route> {
    host.route(&Method::GET, path, &HeaderMap::new()).map(|(route, _)| route)
}

pub fn domain(id: DomainId, version: u64, tenant: TenantId, body: &wire::Domain) -> wire::Resource {
    resource(ResourceKind::Domain, &id.to_string(), version, tenant, body)
}

pub fn tombstone(kind: ResourceKind, id: &str) -> wire::Tombstone {
    wire::Tombstone { kind: kind as u32, id: id.to_owned() }
}

/// A credential, with all that tests may want to spoil.
pub struct Minted {
    pub leaf: Vec<u8>,
    pub body: wire::Credential,
}

pub fn mint(tenant: TenantId, names: &[&str]) -> Minted {
    mint_valid(tenant, names, NOW - 86_400, NOW + 60 * 86_400)
}

/// Valid between two times, unix seconds.
pub fn mint_valid(tenant: TenantId, names: &[&str], from: u64, to: u64) -> Minted {
    mint_for(&tenant.to_string(), names, from, to)
}

/// For an operator's group: names of several tenants may use it.
pub fn mint_operators(names: &[&str]) -> Minted {
    mint_for("operator", names, NOW - 86_400, NOW + 60 * 86_400)
}

/// With a key of another type.
pub fn mint_with_key(tenant: TenantId, names: &[&str], key: KeyType) -> Minted {
    let key = PrivateKey::generate(key).unwrap();
    let key = rcgen::KeyPair::try_from(key.secret_der()).unwrap();
    mint_by(&key, &tenant.to_string(), names, NOW - 86_400, NOW + 60 * 86_400)
}

fn mint_for(key_tenant: &str, names: &[&str], from: u64, to: u64) -> Minted {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    mint_by(&key, key_tenant, names, from, to)
}

fn mint_by(key: &rcgen::KeyPair, key_tenant: &str, names: &[&str], from: u64, to: u64) -> Minted {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    let date =
        |seconds: u64| time::OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap();
    params.not_before = date(from);
    params.not_after = date(to);
    let certificate = params.self_signed(key).unwrap();
    let leaf = certificate.der().to_vec();
    let chain = CertificateChain::parse_der(vec![CertificateDer::from(leaf.clone())]).unwrap();
    let spki_sha256 = chain.facts().spki_sha256;
    let key = PrivateKey::from_pkcs8_der(&key.serialize_der()).unwrap();
    assert_eq!(key.spki_sha256(), spki_sha256);
    let body = sealed(key_tenant, vec![leaf.clone()], &key);
    Minted { leaf, body }
}

/// A chain with its key, sealed for the cell of the tests.
pub fn sealed(key_tenant: &str, chain: Vec<Vec<u8>>, key: &PrivateKey) -> wire::Credential {
    let (id, key_tenant, cell) = (CredentialId::generate(), key_tenant.to_owned(), cell());
    let spki_sha256 = key.spki_sha256();
    let context = SealContext { cell: &cell, epoch: 1, key_tenant: &key_tenant, credential: id, spki_sha256 };
    let sealed = cell_key(1).seal(key, &context).unwrap();
    wire::Credential {
        credential_id: id.to_string(),
        group_id: GroupId::generate().to_string(),
        cell_id: cell.to_string(),
        chain_der: chain.into_iter().map(Into::into).collect(),
        sealed_key: sealed.as_bytes().to_vec().into(),
        cell_key_epoch: 1,
        spki_sha256: spki_sha256.to_vec().into(),
        key_tenant,
        uploaded: false,
        goes_first: false,
        edge_cell_id: String::new(),
    }
}

pub fn credential(
    lineage: LineageId,
    version: u64,
    tenant: TenantId,
    body: &wire::Credential,
) -> wire::Resource {
    resource(ResourceKind::Credential, &lineage.to_string(), version, tenant, body)
}

/// One tenant with one served name of its own certificate.
pub struct Shop {
    pub tenant: TenantId,
    pub domain: DomainId,
    pub lineage: LineageId,
    pub minted: Minted,
    pub name: String,
}

impl Shop {
    pub fn new(name: &str) -> Self {
        let tenant = TenantId::generate();
        Self {
            tenant,
            domain: DomainId::generate(),
            lineage: LineageId::generate(),
            minted: mint(tenant, &[name]),
            name: name.to_owned(),
        }
    }

    pub fn resources(&self, version: u64) -> Vec<wire::Resource> {
        vec![
            tenant(self.tenant, version),
            credential(self.lineage, version, self.tenant, &self.minted.body),
            self.domain(version, |_| ()),
        ]
    }

    pub fn domain(&self, version: u64, change: impl FnOnce(&mut wire::Domain)) -> wire::Resource {
        let mut body = domain_body(&self.name, &[self.lineage]);
        change(&mut body);
        domain(self.domain, version, self.tenant, &body)
    }
}

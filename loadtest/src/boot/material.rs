//! The files that an edge starts from, with many names: a state folder as a joined edge has it, or PEM files.
//!
//! Certificates have the size of a public CA's and one intermediate. Each has names of its own, its own sealed key bytes
//! and its own lineage, but they come from one signed leaf with one key, so that 100,000 are made in seconds.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portico_api::distribution as wire;
use portico_cert_store::{
    CellId, CellKey, CertificateChain, CredentialId, DomainId, DomainName, EdgeId, Generation, GroupId,
    KeyType, LastGood, LineageId, PrivateKey, SealContext, TenantId, hpke,
};
use prost::Message as _;
use rcgen::{CertificateParams, CustomExtension, KeyPair};

use super::BootArgs;

/// Certificates of one tenant.
const PER_TENANT: usize = 10;

/// Makes `state` or `certificates` in `folder`, and gives the names.
pub(super) fn make(folder: &Path, args: &BootArgs) -> Result<Vec<DomainName>> {
    let leaves = Leaves::new(args.per_certificate)?;
    let certificates = args.names.div_ceil(args.per_certificate);
    let state = folder.join("state");
    private_folder(&state)?;
    if args.standalone {
        let files = folder.join("certificates");
        fs::create_dir(&files)?;
        for at in 0..certificates {
            let pem = format!("{}{}", leaves.chain(at)?.to_pem(), leaves.key_pem);
            fs::write(files.join(format!("{at:08}.pem")), pem)?;
        }
    } else {
        let cell = CellId::parse("cell-a")?;
        let cell_key = CellKey::generate(cell.clone(), 1);
        write_identity(&state, &cell, &cell_key)?;
        let mut frames = Vec::with_capacity(2 * args.names);
        for at in 0..certificates {
            leaves.resources(at, &cell_key, &mut frames)?;
        }
        LastGood::open(state.join("last-good"))?.write_snapshot(Generation::new(1, 1), &frames)?;
    }
    (0..certificates * args.per_certificate).map(|at| Ok(DomainName::parse(&name(at))?)).collect()
}

/// All names have the same length, so that one leaf can be turned into another.
fn name(at: usize) -> String {
    format!("www.customer-{at:08}.example")
}

/// One leaf as a template.
struct Leaves {
    key: PrivateKey,
    key_pem: String,
    template: Vec<u8>,
    intermediate: Vec<u8>,
    /// Where the names are.
    offsets: Vec<usize>,
}

impl Leaves {
    fn new(per_certificate: usize) -> Result<Self> {
        let pair = KeyPair::generate()?;
        let placeholders: Vec<String> = (0..per_certificate).map(|n| name(99_000_000 + n)).collect();
        let mut parameters = CertificateParams::new(placeholders.clone())?;
        // About what a public CA's leaf has beside its names: two signed timestamps, policies, addresses.
        parameters
            .custom_extensions
            .push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 55555, 1], vec![5; 620]));
        let template = parameters.self_signed(&pair)?.der().to_vec();
        let find = |text: &String| template.windows(text.len()).position(|window| window == text.as_bytes());
        let offsets = placeholders.iter().map(find).collect::<Option<_>>().context("a name is missing")?;
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.custom_extensions
            .push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 55555, 2], vec![5; 620]));
        let intermediate = ca.self_signed(&pair)?.der().to_vec();
        Ok(Self {
            key: PrivateKey::from_pkcs8_der(&pair.serialize_der())?,
            key_pem: pair.serialize_pem(),
            template,
            intermediate,
            offsets,
        })
    }

    fn leaf(&self, certificate: usize) -> Vec<u8> {
        let mut leaf = self.template.clone();
        for (n, offset) in self.offsets.iter().enumerate() {
            let name = name(certificate * self.offsets.len() + n);
            leaf[*offset..offset + name.len()].copy_from_slice(name.as_bytes());
        }
        leaf
    }

    fn chain(&self, certificate: usize) -> Result<CertificateChain> {
        let chain = vec![self.leaf(certificate).into(), self.intermediate.clone().into()];
        Ok(CertificateChain::parse_der(chain)?)
    }

    /// A certificate with its domains, and now and then a tenant, as a snapshot has them.
    fn resources(&self, certificate: usize, cell_key: &CellKey, frames: &mut Vec<Vec<u8>>) -> Result<()> {
        let tenant = TenantId::from_ulid(u128::try_from(certificate / PER_TENANT + 1)?.into()).to_string();
        let mut put = |kind: wire::ResourceKind, id: String, body: Vec<u8>| {
            let tenant_id = tenant.clone();
            let resource = wire::Resource { kind: kind as u32, id, version: 1, tenant_id, body: body.into() };
            frames.push(resource.encode_to_vec());
        };
        if certificate.is_multiple_of(PER_TENANT) {
            put(wire::ResourceKind::Tenant, tenant.clone(), wire::Tenant::default().encode_to_vec());
        }
        let (lineage, credential) = (LineageId::generate().to_string(), CredentialId::generate());
        let spki_sha256 = self.key.spki_sha256();
        let context =
            SealContext { cell: cell_key.cell(), epoch: 1, key_tenant: &tenant, credential, spki_sha256 };
        let body = wire::Credential {
            credential_id: credential.to_string(),
            group_id: GroupId::generate().to_string(),
            cell_id: cell_key.cell().to_string(),
            chain_der: vec![self.leaf(certificate).into(), self.intermediate.clone().into()],
            sealed_key: cell_key.seal(&self.key, &context)?.as_bytes().to_vec().into(),
            cell_key_epoch: 1,
            spki_sha256: spki_sha256.to_vec().into(),
            key_tenant: tenant.clone(),
        };
        put(wire::ResourceKind::Credential, lineage.clone(), body.encode_to_vec());
        for n in 0..self.offsets.len() {
            let body = domain(name(certificate * self.offsets.len() + n), &lineage, cell_key.cell());
            put(wire::ResourceKind::Domain, DomainId::generate().to_string(), body.encode_to_vec());
        }
        Ok(())
    }
}

fn domain(name: String, lineage: &str, cell: &CellId) -> wire::Domain {
    let action = wire::route::Action::StaticAnswer(wire::StaticAnswer {
        status: 200,
        content_type: "text/plain".to_owned(),
        body: b"x".to_vec().into(),
    });
    wire::Domain {
        name,
        lineages: vec![wire::LineageRef { cell_id: cell.to_string(), lineage_id: lineage.to_owned() }],
        routes: vec![wire::Route { path_prefix: "/".to_owned(), action: Some(action), rule: None }],
        served: true,
        ..wire::Domain::default()
    }
}

/// What a join leaves behind: an identity that its own certificate stands for, and the cell's key sealed to it.
fn write_identity(state: &Path, cell: &CellId, cell_key: &CellKey) -> Result<()> {
    let key = PrivateKey::generate(KeyType::EcdsaP256)?;
    let pair = KeyPair::try_from(key.secret_der())?;
    let certificate = STANDARD.encode(CertificateParams::new(Vec::new())?.self_signed(&pair)?.der());
    let (private, public) = hpke::generate_key_pair()?;
    let identity = serde_json::json!({
        "format": 1,
        "edge_id": EdgeId::generate().to_string(),
        "cell_id": cell.as_str(),
        "key_pkcs8": STANDARD.encode(key.secret_der()),
        "certificate_chain": [certificate],
        "trusted": [certificate],
        "hpke_private": STANDARD.encode(private.secret_bytes()),
        "hpke_public": STANDARD.encode(public),
    });
    let (encapsulated_key, ciphertext) = hpke::seal_cell_key(&public, cell_key)?;
    let sealed = wire::SealedCellKey {
        cell_id: cell.to_string(),
        epoch: cell_key.epoch(),
        encapsulated_key: encapsulated_key.into(),
        ciphertext: ciphertext.into(),
    };
    private_folder(&state.join("identity"))?;
    private_folder(&state.join("cell-keys"))?;
    write_private(&state.join("identity/identity.json"), identity.to_string().as_bytes())?;
    write_private(&state.join("cell-keys/1.key"), &sealed.encode_to_vec())
}

fn private_folder(path: &Path) -> Result<()> {
    DirBuilder::new().mode(0o700).create(path).with_context(|| format!("make {}", path.display()))
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(bytes)?;
    Ok(())
}

//! The files that an edge starts from, with many names: a state folder as a joined edge has it, or PEM files.
//!
//! Certificates have the size of a public CA's and one intermediate. Each has names of its own, its own sealed key bytes
//! and its own lineage, but they come from one signed leaf with one key, so that 100,000 are made in seconds.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use portico_api::distribution as wire;
use portico_cert_store::{CellId, CertificateChain, DomainId, DomainName, LineageId, PrivateKey, TenantId};
use rcgen::{CertificateParams, CustomExtension, KeyPair};

use super::BootArgs;
use crate::fleet_state::FleetState;

/// Certificates of one tenant.
const PER_TENANT: usize = 10;

/// Makes `state` or `certificates` in `folder`, and gives the names.
pub(super) fn make(folder: &Path, args: &BootArgs) -> Result<Vec<DomainName>> {
    let leaves = Leaves::new(args.per_certificate)?;
    let certificates = args.names.div_ceil(args.per_certificate);
    if args.standalone {
        fs::create_dir(folder.join("state"))?;
        let files = folder.join("certificates");
        fs::create_dir(&files)?;
        for at in 0..certificates {
            let pem = format!("{}{}", leaves.chain(at)?.to_pem(), leaves.key_pem);
            fs::write(files.join(format!("{at:08}.pem")), pem)?;
        }
    } else {
        let mut state = FleetState::create(&folder.join("state"))?;
        for at in 0..certificates {
            leaves.resources(at, &mut state)?;
        }
        state.finish()?;
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
    fn resources(&self, certificate: usize, state: &mut FleetState) -> Result<()> {
        let tenant = TenantId::from_ulid(u128::try_from(certificate / PER_TENANT + 1)?.into()).to_string();
        if certificate.is_multiple_of(PER_TENANT) {
            state.put(wire::ResourceKind::Tenant, tenant.clone(), &tenant, &wire::Tenant::default());
        }
        let lineage = LineageId::generate().to_string();
        let chain = vec![self.leaf(certificate), self.intermediate.clone()];
        state.put_credential(lineage.clone(), &tenant, chain, &self.key)?;
        for n in 0..self.offsets.len() {
            let body = domain(name(certificate * self.offsets.len() + n), &lineage, state.cell());
            state.put(wire::ResourceKind::Domain, DomainId::generate().to_string(), &tenant, &body);
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

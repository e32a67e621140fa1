//! Certificates, keys and the small answer that every server in a comparison gets.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use portico_cert_store::DomainName;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};

/// The answer's body.
pub(crate) const BODY_BYTES: usize = 1024;

/// All that the servers are configured from.
#[derive(Debug)]
pub(crate) struct Material {
    pub(crate) folder: PathBuf,
    pub(crate) names: Vec<DomainName>,
    /// One `<name>.pem` each: leaf, intermediate, key.
    pub(crate) certificates: PathBuf,
    pub(crate) roots: PathBuf,
    pub(crate) body: PathBuf,
}

impl Material {
    /// A root, an intermediate and `count` single-name P-256 leaves below `folder`.
    pub(crate) fn make(folder: &Path, count: usize) -> Result<Self> {
        let certificates = folder.join("certificates");
        fs::create_dir(&certificates)?;
        let (root, root_key) = authority("comparison root")?;
        let root_pem = root.self_signed(&root_key)?.pem();
        let root = Issuer::new(root, root_key);
        let (intermediate, intermediate_key) = authority("comparison intermediate")?;
        let intermediate_pem = intermediate.signed_by(&intermediate_key, &root)?.pem();
        let intermediate = Issuer::new(intermediate, intermediate_key);
        let mut names = Vec::with_capacity(count);
        for at in 0..count {
            let name = DomainName::parse(&format!("host-{at}.compare.test"))?;
            let key = KeyPair::generate()?;
            let mut leaf = CertificateParams::new(vec![name.to_string()])?;
            leaf.distinguished_name = DistinguishedName::new();
            leaf.use_authority_key_identifier_extension = true;
            let pem = format!(
                "{}{intermediate_pem}{}",
                leaf.signed_by(&key, &intermediate)?.pem(),
                key.serialize_pem()
            );
            let path = certificates.join(format!("{name}.pem"));
            fs::write(&path, pem).with_context(|| format!("write {}", path.display()))?;
            names.push(name);
        }
        let roots = folder.join("root.pem");
        fs::write(&roots, root_pem)?;
        let body = folder.join("body.txt");
        fs::write(&body, "x".repeat(BODY_BYTES))?;
        Ok(Self { folder: folder.to_owned(), names, certificates, roots, body })
    }
}

fn authority(name: &str) -> Result<(CertificateParams, KeyPair)> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok((params, KeyPair::generate()?))
}

//! Debian's Pebble, a CA that we did not write, with a server certificate made for it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::{Addresses, Running, wait_until};

/// Where Debian installs it.
const PEBBLE: &str = "/usr/bin/pebble";

/// A running Pebble.
#[derive(Debug)]
pub(crate) struct Pebble {
    pub(crate) directory: String,
    pub(crate) api_root: PathBuf,
    pub(crate) issuing_root: PathBuf,
    /// Every validation that it made is a line of its log.
    pub(crate) process: Running,
}

/// Whether Pebble is installed.
pub fn pebble_is_installed() -> bool {
    Path::new(PEBBLE).exists()
}

/// Starts Pebble; it validates at ports 8080 and 8443 of whatever `dns` answers.
pub(crate) async fn start(addresses: &Addresses, folder: &Path, dns: std::net::SocketAddr) -> Result<Pebble> {
    let api = addresses.at(1, 14000);
    let management = addresses.at(1, 15000);
    let api_root = make_server_certificate(folder, api.ip())?;
    let config = folder.join("pebble.json");
    std::fs::write(
        &config,
        serde_json::to_string_pretty(&serde_json::json!({ "pebble": {
            "listenAddress": api.to_string(), "managementListenAddress": management.to_string(),
            "certificate": folder.join("pebble.pem"), "privateKey": folder.join("pebble.key"),
            "httpPort": 8080, "tlsPort": 8443, "ocspResponderURL": "", "externalAccountBindingRequired": false,
        }}))?,
    )?;
    let process = Running::start(
        "pebble",
        folder,
        Command::new(PEBBLE)
            .arg("-config")
            .arg(&config)
            .args(["-strict", "-dnsserver", &dns.to_string()])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_AUTHZREUSE", "100")
            .env("PEBBLE_WFE_NONCEREJECT", "5"),
    );
    let issuing_root = folder.join("pebble-issuing-root.pem");
    let root = wait_until("Pebble's issuing root", Duration::from_secs(60), async || {
        Command::new("curl")
            .args(["-sf", "--cacert"])
            .arg(&api_root)
            .arg(format!("https://{management}/roots/0"))
            .output()
            .ok()
            .filter(|o| o.status.success())
            .map(|o| o.stdout)
    })
    .await;
    std::fs::write(&issuing_root, root)?;
    Ok(Pebble { directory: format!("https://{api}/dir"), api_root, issuing_root, process })
}

fn make_server_certificate(folder: &Path, ip: std::net::IpAddr) -> Result<PathBuf> {
    let mut ca = CertificateParams::new(Vec::<String>::new())?;
    ca.distinguished_name.push(DnType::CommonName, "test API CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate()?;
    let root = folder.join("pebble-api-root.pem");
    std::fs::write(&root, ca.self_signed(&ca_key)?.pem())?;
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(vec!["localhost".to_owned(), ip.to_string()])?;
    std::fs::write(folder.join("pebble.pem"), leaf.signed_by(&key, &issuer)?.pem())?;
    std::fs::write(folder.join("pebble.key"), key.serialize_pem())?;
    Ok(root)
}

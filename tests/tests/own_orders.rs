//! MASTER orders with its own client for a key that was made here: `portico shadow csr`, Debian's certbot, `portico cert upload`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_api::v1::{DomainSpec, Sharing};
use portico_tests::{CaKind, Lab, LabOptions, files, pebble_is_installed, shown, wait_until};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

const CERTBOT: &str = "/usr/bin/certbot";
const DEADLINE: Duration = Duration::from_secs(60);
/// MASTER: where DNS leads, and where certbot answers.
const MASTER: u8 = 20;

/// Has certbot order by the request; answers the chain's file.
async fn certbot(lab: &Lab, request: &Path, at: &str) -> Result<PathBuf> {
    let folder = lab.folder.path().join("master");
    std::fs::create_dir_all(&folder)?;
    let chain = folder.join(format!("{at}-fullchain.pem"));
    let mut command = Command::new(CERTBOT);
    command
        .args([
            "certonly",
            "--non-interactive",
            "--agree-tos",
            "--register-unsafely-without-email",
            "--standalone",
        ])
        .args(["--http-01-address", &lab.addresses.ip(MASTER).to_string(), "--http-01-port", "8080"])
        .args(["--server", &lab.directory])
        .arg("--csr")
        .arg(request)
        .arg("--cert-path")
        .arg(folder.join(format!("{at}-cert.pem")))
        .arg("--chain-path")
        .arg(folder.join(format!("{at}-chain.pem")))
        .arg("--fullchain-path")
        .arg(&chain);
    for (option, name) in [("--config-dir", "config"), ("--work-dir", "work"), ("--logs-dir", "logs")] {
        command.arg(option).arg(folder.join(name));
    }
    command.env("REQUESTS_CA_BUNDLE", &lab.api_root).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(chain)
}

/// A command of ours, while the labs serve on.
async fn portico(lab: &Lab, arguments: &[&str]) -> Result<Output> {
    let mut command = lab.portico();
    command.args(arguments);
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

async fn succeeds(lab: &Lab, arguments: &[&str]) -> Result<()> {
    let output = portico(lab, arguments).await?;
    ensure!(output.status.success(), "{arguments:?}: {output:?}");
    Ok(())
}

fn leaf_of(chain: &Path) -> Result<Vec<u8>> {
    Ok(CertificateDer::pem_file_iter(chain)?.next().context("an empty chain")??.to_vec())
}

/// What the edge shows, once it is this.
async fn until_shown(lab: &Lab, chain: &Path) -> Result<Vec<u8>> {
    let leaf = leaf_of(chain)?;
    let edge = lab.edges[0].https;
    Ok(wait_until("certbot's certificate at the edge", DEADLINE, async || {
        let shown = shown(edge, "shop.test", &lab.issuing_root).await.ok()?;
        (shown.leaf == leaf).then_some(shown.spki)
    })
    .await)
}

#[tokio::test]
async fn what_certbot_orders_by_a_request_of_ours_is_served_and_renewed_and_no_key_is_copied() -> Result<()> {
    if !Path::new(CERTBOT).exists() || !pebble_is_installed() {
        portico_skipping::skipped("certbot or pebble is not on this machine");
        return Ok(());
    }
    let lab = Lab::start(LabOptions { ca: CaKind::Pebble, ..LabOptions::default() }).await?;
    for name in ["shop.test", "www.shop.test"] {
        lab.set_record(name, "A", &[&lab.addresses.ip(MASTER).to_string()]).await?;
    }
    let tenant = lab.tenant("shops", Sharing::Tenant, &[]).await?;
    for name in ["shop.test", "www.shop.test"] {
        let spec = DomainSpec { issue_certificates: false, ..lab.proxied(name) };
        let domain = lab.client.create_domain(tenant.id, &spec).await?;
        lab.publish_records(&domain).await?;
        lab.client.check_domain(domain.id).await?;
    }
    let request = lab.folder.path().join("request.pem");
    let request_text = request.to_str().context("UTF-8")?;
    succeeds(&lab, &["shadow", "csr", "shop.test", "www.shop.test", "--out", request_text]).await?;
    let again = portico(&lab, &["shadow", "csr", "shop.test", "--out", request_text]).await?;
    ensure!(again.status.code() == Some(2), "a file that is there stays: {again:?}");

    let first = certbot(&lab, &request, "first").await?;
    let chain = first.to_str().context("UTF-8")?;
    succeeds(&lab, &["cert", "upload", "shop.test", "www.shop.test", "--chain", chain]).await?;
    let key = until_shown(&lab, &first).await?;
    // MASTER renews, by the request that it has.
    let second = certbot(&lab, &request, "second").await?;
    let chain = second.to_str().context("UTF-8")?;
    succeeds(&lab, &["cert", "upload", "shop.test", "www.shop.test", "--chain", chain]).await?;
    assert_eq!(until_shown(&lab, &second).await?, key, "the same key");
    assert_ne!(leaf_of(&first)?, leaf_of(&second)?);

    // MASTER has its account's keys alone.
    for file in files(&lab.folder.path().join("master"))? {
        let is_of_account = file.components().any(|part| part.as_os_str() == "accounts");
        let holds_key = String::from_utf8_lossy(&std::fs::read(&file)?).contains("PRIVATE KEY");
        assert!(!holds_key || is_of_account, "a key is in {}", file.display());
    }
    let stray = portico(&lab, &["cert", "requests", "--tenant", "shops", "-o", "json"]).await?;
    assert_eq!(String::from_utf8_lossy(&stray.stdout).trim(), "[]");
    Ok(())
}

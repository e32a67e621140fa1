//! An origin that has an ACME client of its own keeps it when it comes behind us: a token that we did not push is the
//! tenant's, and goes to the tenant's own route. The client is Debian's certbot, with an account of its own at the CA.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_api::v1::{Action, DomainStatus, Sharing};
use portico_tests::{CaKind, Lab, LabOptions, Running, pebble_is_installed, shown, wait_until};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;

const CERTBOT: &str = "/usr/bin/certbot";
/// What Debian's certbot runs on, so it is there wherever certbot is.
const PYTHON: &str = "/usr/bin/python3";

#[tokio::test]
async fn an_origins_certbot_issues_through_our_edges_standalone_and_by_webroot() -> Result<()> {
    if !certbot_is_installed() {
        return Ok(());
    }
    let lab = Lab::start(LabOptions::default()).await?;
    certbot_issues_beside_us(&lab, "standalone.test", Plugin::Standalone).await?;
    certbot_issues_beside_us(&lab, "webroot.test", Plugin::Webroot).await?;
    let stats = lab.ca_stats().await?;
    assert_eq!(stats["accounts"]["created"], 2, "ours and certbot's: {stats}");
    for name in ["standalone.test", "webroot.test"] {
        // Each account validates for itself: RFC 8555 authorizations belong to one account.
        assert_eq!(stats["validations"]["by_name"][name]["http-01"]["performed"], 2, "{stats}");
    }
    Ok(())
}

#[tokio::test]
async fn an_origins_certbot_issues_through_our_edges_from_pebble() -> Result<()> {
    if !certbot_is_installed() {
        return Ok(());
    }
    if !pebble_is_installed() {
        portico_skipping::skipped("pebble is not installed (apt-get install pebble)");
        return Ok(());
    }
    let lab = Lab::start(LabOptions { ca: CaKind::Pebble, ..LabOptions::default() }).await?;
    certbot_issues_beside_us(&lab, "webroot.test", Plugin::Webroot).await
}

/// Our own order is open, its token stands on the edges and the CA has not looked yet; certbot comes between.
#[tokio::test]
async fn certbot_and_our_own_order_validate_one_name_at_once() -> Result<()> {
    if !certbot_is_installed() {
        return Ok(());
    }
    let lab = Lab::start(LabOptions::default()).await?;
    // The first request for a validation is ours; the CA takes its time with it.
    lab.ca_faults(&json!({ "kind": "slow", "endpoint": "challenge", "delay_ms": 25_000 })).await?;
    let site = Site::start(&lab, "both.test", Plugin::Webroot).await?;
    let lab = &lab;
    wait_until("our request for a validation", Duration::from_secs(60), async || {
        let stats = lab.ca_stats().await.ok()?;
        (stats["faults"]["slow"] == 1).then_some(())
    })
    .await;
    let theirs = site.certbot(lab).await?;
    let stats = lab.ca_stats().await?;
    assert_eq!(stats["validations"]["by_name"]["both.test"]["http-01"]["performed"], 1, "{stats}");
    assert_eq!(
        lab.client.domain("both.test").await?.status,
        DomainStatus::Validating,
        "ours waited meanwhile"
    );
    lab.active("both.test").await?;
    let ours = shown(lab.edges[0].https, "both.test", &lab.issuing_root).await?;
    assert_ne!(ours.leaf, theirs);
    let stats = lab.ca_stats().await?;
    let validations = &stats["validations"]["by_name"]["both.test"]["http-01"];
    assert_eq!((&validations["performed"], &validations["failed"]), (&json!(2), &json!(0)), "{stats}");
    assert_eq!(stats["orders"]["created"], 2, "one of ours, one of certbot's: {stats}");
    Ok(())
}

/// Our own order waits for hours, as after a limit of the CA: until then the origin's client must work all the same.
#[tokio::test]
async fn certbot_issues_while_our_own_order_is_held_up() -> Result<()> {
    if !certbot_is_installed() {
        return Ok(());
    }
    let lab = Lab::start(LabOptions::default()).await?;
    let hour = json!({ "kind": "rate-limited", "endpoint": "newOrder", "retry_after_seconds": 3_600 });
    lab.ca_faults(&hour).await?;
    let site = Site::start(&lab, "held.test", Plugin::Webroot).await?;
    let lab = &lab;
    wait_until("our order to be refused", Duration::from_secs(60), async || {
        let stats = lab.ca_stats().await.ok()?;
        (stats["faults"]["rate-limited"] == 1).then_some(())
    })
    .await;
    site.certbot(lab).await?;
    assert_ne!(lab.client.domain("held.test").await?.status, DomainStatus::Active);
    Ok(())
}

fn certbot_is_installed() -> bool {
    let there = Path::new(CERTBOT).exists();
    if !there {
        portico_skipping::skipped("certbot is not installed (apt-get install certbot)");
    }
    there
}

/// How certbot answers the challenge at the origin.
#[derive(Clone, Copy)]
enum Plugin {
    /// By a server of its own, which is the whole origin meanwhile.
    Standalone,
    /// By a file under the web server that is there.
    Webroot,
}

/// A tenant's site: its origin, and certbot beside it.
struct Site {
    name: &'static str,
    plugin: Plugin,
    folder: PathBuf,
    origin: std::net::SocketAddr,
    _server: Option<Running>,
}

async fn certbot_issues_beside_us(lab: &Lab, name: &'static str, plugin: Plugin) -> Result<()> {
    let site = Site::start(lab, name, plugin).await?;
    lab.active(name).await?;
    let mut before = Vec::new();
    for edge in &lab.edges {
        before.push(shown(edge.https, name, &lab.issuing_root).await?.leaf);
    }
    let theirs = site.certbot(lab).await?;
    for (edge, before) in lab.edges.iter().zip(&before) {
        let after = shown(edge.https, name, &lab.issuing_root).await?.leaf;
        assert_eq!(&after, before, "our own certificate is served as before");
        assert_ne!(after, theirs);
    }
    Ok(())
}

impl Site {
    /// Starts the origin and brings the name in: claimed and proved, not yet issued.
    async fn start(lab: &Lab, name: &'static str, plugin: Plugin) -> Result<Self> {
        let folder = lab.folder.path().join(name);
        std::fs::create_dir_all(folder.join("web"))?;
        std::fs::write(folder.join("web/index.html"), format!("the origin of {name}\n"))?;
        let port = match plugin {
            Plugin::Standalone => 9001,
            Plugin::Webroot => 9002,
        };
        let origin = std::net::SocketAddr::new(lab.origin.ip(), port);
        let server = matches!(plugin, Plugin::Webroot).then(|| {
            let mut command = Command::new(PYTHON);
            command.args(["-m", "http.server", &origin.port().to_string(), "--bind"]);
            command.arg(origin.ip().to_string()).arg("--directory").arg(folder.join("web"));
            Running::start("web-server", &folder, &mut command)
        });
        if server.is_some() {
            wait_until("the origin's web server", Duration::from_secs(60), async || {
                tokio::net::TcpStream::connect(origin).await.ok()
            })
            .await;
        }
        let tenant = lab.tenant(&name.replace('.', "-"), Sharing::RegisteredDomain, &[]).await?;
        let mut spec = lab.proxied(name);
        spec.routes[0].action = Action::proxy(format!("http://{origin}"));
        let domain = lab.client.create_domain(tenant.id, &spec).await?;
        lab.publish_records(&domain).await?;
        lab.client.check_domain(domain.id).await?;
        Ok(Self { name, plugin, folder, origin, _server: server })
    }

    /// Runs certbot at the origin; answers the leaf that it got, DER.
    async fn certbot(&self, lab: &Lab) -> Result<Vec<u8>> {
        let mut command = Command::new(CERTBOT);
        command
            .args(["certonly", "--non-interactive", "--agree-tos", "--register-unsafely-without-email"])
            .args(["-d", self.name, "--server", &lab.directory])
            .arg("--config-dir")
            .arg(lab.folder.path().join("certbot"))
            .arg("--work-dir")
            .arg(self.folder.join("work"))
            .arg("--logs-dir")
            .arg(self.folder.join("logs"))
            .env("REQUESTS_CA_BUNDLE", &lab.api_root)
            .stdin(std::process::Stdio::null());
        match self.plugin {
            Plugin::Standalone => command
                .args(["--standalone", "--http-01-address", &self.origin.ip().to_string()])
                .args(["--http-01-port", &self.origin.port().to_string()]),
            Plugin::Webroot => command.arg("--webroot").arg("-w").arg(self.folder.join("web")),
        };
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let log = std::fs::read_to_string(self.folder.join("logs/letsencrypt.log")).unwrap_or_default();
        ensure!(output.status.success(), "{}\n{log}", String::from_utf8_lossy(&output.stderr));
        let live = lab.folder.path().join("certbot/live").join(self.name).join("fullchain.pem");
        let leaf = CertificateDer::pem_file_iter(&live)?.next().context("an empty chain")??;
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf)?;
        let san = parsed.subject_alternative_name()?.context("no names")?;
        let names: Vec<String> = san.value.general_names.iter().map(ToString::to_string).collect();
        ensure!(names == [format!("DNSName({})", self.name)], "{names:?}");
        Ok(leaf.to_vec())
    }
}

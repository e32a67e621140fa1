//! A name whose DNS still leads to its present server (MASTER: Debian's nginx, Apache or Caddy) gets its certificate on
//! the edge (SHADOW): the lines that `portico shadow` prints are all that MASTER needs.

mod servers;

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use portico_api::v1::Sharing;
use portico_tests::{Lab, LabOptions, Running, ask, wait_until};

use servers::{Addresses, Lines, OWN_PAGE, Server};

const NAME: &str = "moving.test";

/// A name that leads to MASTER, claimed and not proved yet.
async fn claimed(lab: &Lab) -> Result<(portico_api::v1::Domain, Addresses)> {
    let tenant = lab.tenant("moving", Sharing::RegisteredDomain, &[]).await?;
    let at = Addresses { http: lab.addresses.at(50, 8080), https: lab.addresses.at(50, 8443) };
    lab.set_record(NAME, "A", &[&at.http.ip().to_string()]).await?;
    Ok((lab.client.create_domain(tenant.id, &lab.proxied(NAME)).await?, at))
}

/// Waits until MASTER listens; its last words otherwise.
async fn listening(master: &mut Running, address: SocketAddr) {
    wait_until("MASTER", Duration::from_secs(60), async || {
        master.assert_alive();
        tokio::net::TcpStream::connect(address).await.ok()
    })
    .await;
}

async fn certificate_on_shadow(lab: &Lab, domain: &portico_api::v1::Domain) -> Result<()> {
    lab.publish_records(domain).await?;
    lab.client.check_domain(domain.id).await?;
    let shown = wait_until("the certificate on SHADOW", Duration::from_secs(60), async || {
        ask(lab.edges[0].https, NAME, "/", &lab.issuing_root).await.ok()
    })
    .await;
    assert_eq!((shown.shown.names, shown.status), (vec![NAME.to_owned()], 200));
    Ok(())
}

#[tokio::test]
async fn a_master_with_the_printed_lines_lets_the_edge_get_its_certificate_before_dns_moves() -> Result<()> {
    for server in Server::installed() {
        let lab = Lab::start(LabOptions::default()).await?;
        let (domain, at) = claimed(&lab).await?;
        let mut master = server.start(&lab, NAME, at, &server.printed(&lab, NAME, false)?)?;
        listening(&mut master, at.https).await;
        certificate_on_shadow(&lab, &domain).await?;
        // DNS has not moved, and MASTER still serves everything else itself.
        assert!(curl("https", NAME, at.https, "/")?.contains(OWN_PAGE), "{server:?}");
        assert!(!curl("http", NAME, at.http, "/")?.contains("origin of"), "{server:?}");
    }
    Ok(())
}

// Two threads: the origin is a task of this process and answers while the test waits for curl.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_with_the_lines_for_the_whole_site_passes_all_of_it_on() -> Result<()> {
    for server in Server::installed() {
        let lab = Lab::start(LabOptions::default()).await?;
        let (domain, at) = claimed(&lab).await?;
        let mut master = server.start(&lab, NAME, at, &server.printed(&lab, NAME, true)?)?;
        listening(&mut master, at.https).await;
        certificate_on_shadow(&lab, &domain).await?;
        let page = curl("https", NAME, at.https, "/deep/path?q=1")?;
        assert!(page.contains(" path /deep/path\n"), "{server:?}: {page}\n{}", master.last_words());
    }
    Ok(())
}

/// As most sites are: port 80 leads to https, here with a certificate that nobody trusts. A CA follows, and so do we.
#[tokio::test]
async fn a_master_that_redirects_everything_to_https_is_no_obstacle() -> Result<()> {
    if !Server::installed().iter().any(|server| matches!(server, Server::Nginx)) {
        return Ok(());
    }
    let lab = Lab::start(LabOptions::default()).await?;
    let (domain, at) = claimed(&lab).await?;
    let Lines { http: lines, .. } = Server::Nginx.printed(&lab, NAME, false)?;
    let mut master = Server::Nginx.start_redirecting(&lab, NAME, at, &lines)?;
    listening(&mut master, at.https).await;
    certificate_on_shadow(&lab, &domain).await?;
    let stats = lab.ca_stats().await?;
    assert_eq!(stats["validations"]["by_challenge"]["http-01"]["performed"], 1, "{stats}");
    Ok(())
}

/// The page at `address`, whatever certificate is shown there.
fn curl(scheme: &str, name: &str, address: SocketAddr, path: &str) -> Result<String> {
    let url = format!("{scheme}://{name}:{}{path}", address.port());
    let resolve = format!("{name}:{}:{}", address.port(), address.ip());
    let output =
        Command::new("curl").args(["-sk", "--max-time", "5", "--resolve", &resolve, &url]).output()?;
    String::from_utf8(output.stdout).context("the page is UTF-8")
}

//! A name whose DNS still leads to its present server (MASTER, Debian's nginx) gets its certificate on the edge (SHADOW):
//! the lines that `portico shadow` prints are all that MASTER needs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use portico_api::v1::Sharing;
use portico_tests::{Lab, LabOptions, Running, ask, wait_until};

const NGINX: &str = "/usr/sbin/nginx";

/// What `portico shadow` prints for the present server, here nginx.
fn printed_lines(lab: &Lab) -> Result<String> {
    let output = lab
        .portico()
        .args(["shadow", "moving.test", "--print", "nginx"])
        .args(["--edge-http", &lab.edges[0].http.to_string()])
        .output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test]
async fn nginx_with_the_printed_lines_lets_the_edge_get_its_certificate_before_dns_moves() -> Result<()> {
    if !Path::new(NGINX).exists() {
        println!("skipped: nginx is not installed (apt-get install nginx-light)");
        return Ok(());
    }
    let lab = Lab::start(LabOptions::default()).await?;
    let tenant = lab.tenant("moving", Sharing::RegisteredDomain, &[]).await?;
    let master = lab.addresses.at(50, 8080);
    lab.set_record("moving.test", "A", &[&master.ip().to_string()]).await?;
    let domain = lab.client.create_domain(tenant.id, &lab.proxied("moving.test")).await?;

    let lines = printed_lines(&lab)?;
    let _nginx = start_nginx(&lab, &plain_site(master, &lines))?;
    wait_until("MASTER's own site", Duration::from_secs(20), async || {
        let answer = curl(&format!("http://{master}/"), "moving.test").ok()?;
        answer.contains("MASTER's own page").then_some(())
    })
    .await;

    lab.publish_records(&domain).await?;
    lab.client.check_domain(domain.id).await?;
    let shown = wait_until("the certificate on SHADOW", Duration::from_secs(60), async || {
        ask(lab.edges[0].https, "moving.test", "/", &lab.issuing_root).await.ok()
    })
    .await;
    assert_eq!(shown.shown.names, ["moving.test"]);
    assert_eq!(shown.status, 200);
    // DNS has not moved, and MASTER still serves everything else itself.
    assert!(curl(&format!("http://{master}/"), "moving.test")?.contains("MASTER's own page"));
    Ok(())
}

/// As most sites are: port 80 leads to https, here with a certificate that nobody trusts. A CA follows, and so do we.
#[tokio::test]
async fn a_master_that_redirects_everything_to_https_is_no_obstacle() -> Result<()> {
    if !Path::new(NGINX).exists() {
        println!("skipped: nginx is not installed (apt-get install nginx-light)");
        return Ok(());
    }
    let lab = Lab::start(LabOptions::default()).await?;
    let tenant = lab.tenant("moving", Sharing::RegisteredDomain, &[]).await?;
    let (http, https) = (lab.addresses.at(50, 8080), lab.addresses.at(50, 8443));
    lab.set_record("moving.test", "A", &[&http.ip().to_string()]).await?;
    let domain = lab.client.create_domain(tenant.id, &lab.proxied("moving.test")).await?;
    let lines = printed_lines(&lab)?;
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec!["moving.test".to_owned()])?.self_signed(&key)?;
    std::fs::write(lab.folder.path().join("master.pem"), certificate.pem())?;
    std::fs::write(lab.folder.path().join("master.key"), key.serialize_pem())?;
    let at = lab.folder.path().display();
    let servers = format!(
        "server {{ listen {http}; server_name moving.test; return 301 https://$host$request_uri; }}\n\
         server {{ listen {https} ssl; server_name moving.test; ssl_certificate {at}/master.pem;\n\
         ssl_certificate_key {at}/master.key;\n{lines}\nlocation / {{ return 200 \"MASTER's own page\\n\"; }} }}\n"
    );
    let _nginx = start_nginx(&lab, &servers)?;
    wait_until("MASTER", Duration::from_secs(20), async || tokio::net::TcpStream::connect(https).await.ok())
        .await;
    lab.publish_records(&domain).await?;
    lab.client.check_domain(domain.id).await?;
    let shown = wait_until("the certificate on SHADOW", Duration::from_secs(60), async || {
        ask(lab.edges[0].https, "moving.test", "/", &lab.issuing_root).await.ok()
    })
    .await;
    assert_eq!(shown.shown.names, ["moving.test"]);
    let stats = lab.ca_stats().await?;
    assert_eq!(stats["validations"]["by_challenge"]["http-01"]["performed"], 1, "{stats}");
    Ok(())
}

fn plain_site(address: std::net::SocketAddr, lines: &str) -> String {
    format!(
        "server {{ listen {address}; server_name moving.test;\n{lines}\n\
         location / {{ return 200 \"MASTER's own page\\n\"; }} }}\n"
    )
}

fn start_nginx(lab: &Lab, servers: &str) -> Result<Running> {
    let folder = lab.folder.path().join("nginx");
    std::fs::create_dir(&folder)?;
    let at = folder.display();
    let config = format!(
        "daemon off;\npid {at}/pid;\nerror_log {at}/error.log;\nworker_processes 1;\nevents {{ worker_connections 256; }}\n\
         http {{\naccess_log {at}/access.log;\nclient_body_temp_path {at}/b;\nproxy_temp_path {at}/p;\n\
         fastcgi_temp_path {at}/f;\nuwsgi_temp_path {at}/u;\nscgi_temp_path {at}/s;\n{servers}}}\n"
    );
    std::fs::write(folder.join("nginx.conf"), config)?;
    let mut command = Command::new(NGINX);
    command.arg("-c").arg(folder.join("nginx.conf")).arg("-p").arg(&folder);
    Ok(Running::start("nginx", lab.folder.path(), &mut command))
}

fn curl(url: &str, host: &str) -> Result<String> {
    let output =
        Command::new("curl").args(["-s", "--max-time", "5", "-H", &format!("Host: {host}"), url]).output()?;
    String::from_utf8(output.stdout).context("the page is UTF-8")
}

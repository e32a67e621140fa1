//! certbot, the client that most of the world uses, obtains a certificate by its standalone HTTP-01 server.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::stage::Stage;

#[tokio::test]
async fn certbot_obtains_a_certificate_standalone() {
    let version = Command::new("certbot").arg("--version").stdin(Stdio::null()).output().await;
    if version.is_err() {
        // Past the capture of the test harness, which hides what a passing test prints.
        writeln!(std::io::stderr(), "skipped: certbot is not installed (apt-get install certbot)").unwrap();
        return;
    }
    let web = portico_ports::reserve();
    let stage = Stage::start(|args| args.http_port = web.port()).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("api-ca.pem"), &stage.ca.api_ca_pem).unwrap();
    let port = web.port().to_string();
    let run = Command::new("certbot")
        .args(["certonly", "--standalone", "--non-interactive", "--agree-tos"])
        .args(["--register-unsafely-without-email", "-d", "shop.test", "-d", "www.shop.test"])
        .args(["--server", &stage.ca.addresses.directory, "--http-01-address", "127.0.0.1"])
        .args(["--http-01-port", &port, "--config-dir", &path("config")])
        .args(["--work-dir", &path("work"), "--logs-dir", &path("logs")])
        .env("REQUESTS_CA_BUNDLE", path("api-ca.pem"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(120), run).await.expect("certbot hangs").unwrap();
    let log = std::fs::read_to_string(path("logs/letsencrypt.log")).unwrap_or_default();
    assert!(output.status.success(), "{}\n{log}", String::from_utf8_lossy(&output.stderr));
    let chain = std::fs::read_to_string(path("config/live/shop.test/fullchain.pem")).unwrap();
    let key = std::fs::read_to_string(path("config/live/shop.test/privkey.pem")).unwrap();
    let issued = crate::stage::Issued { chain, key: rcgen::KeyPair::from_pem(&key).unwrap() };
    issued.check(&stage.ca.root_pem, &["shop.test", "www.shop.test"]).unwrap();
    let stats = stage.stats().await;
    assert_eq!(stats["validations"]["by_challenge"]["http-01"]["performed"], 2);
    let version = String::from_utf8_lossy(&version.unwrap().stdout).trim().to_owned();
    writeln!(std::io::stderr(), "a certificate was obtained by {version}").unwrap();
}

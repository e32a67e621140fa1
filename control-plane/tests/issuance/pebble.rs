//! Debian's Pebble: the CA that we did not write. Without it on the machine these tests say so and check nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use portico_acme_ca::ExternalAccount;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::issuing;
use crate::lab::{Lab, Options};
use crate::stand_in::StandIn;

const PROGRAM: &str = "/usr/bin/pebble";

/// A running Pebble; it ends with this value.
pub struct Pebble {
    pub directory: String,
    _child: Child,
}

impl Pebble {
    /// Starts one on free ports, with its API's anchor in `api-ca.pem` and its issuing root in `root.pem`.
    pub async fn start(
        folder: &Path,
        dns: SocketAddr,
        stand_in: &StandIn,
        external: Option<&ExternalAccount>,
    ) -> Option<Self> {
        if !Path::new(PROGRAM).exists() {
            portico_skipping::skipped(&format!("{PROGRAM} is not on this machine (apt-get install pebble)"));
            return None;
        }
        let (api, management) = (portico_ports::reserve().port(), portico_ports::reserve().port());
        write_identity(folder);
        let mac_keys: BTreeMap<&str, String> = external
            .into_iter()
            .map(|given| (given.key_id.as_str(), BASE64_URL_SAFE_NO_PAD.encode(&given.hmac_key)))
            .collect();
        let config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{api}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": folder.join("pebble.pem"), "privateKey": folder.join("pebble.key"),
            "httpPort": stand_in.http_port, "tlsPort": stand_in.tls_port,
            "ocspResponderURL": "", "externalAccountBindingRequired": external.is_some(),
            "externalAccountMACKeys": mac_keys,
            "certificateValidityPeriod": 90 * 86_400,
        }});
        std::fs::write(folder.join("pebble.json"), config.to_string()).unwrap();
        let log = std::fs::File::create(folder.join("pebble.log")).unwrap();
        let child = Command::new(PROGRAM)
            .arg("-config")
            .arg(folder.join("pebble.json"))
            .args(["-strict", "-dnsserver", &dns.to_string()])
            .envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_AUTHZREUSE", "100"), ("PEBBLE_WFE_NONCEREJECT", "5")])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let root = loop {
            match fetch_root(folder, management).await {
                Some(root) => break root,
                None => assert!(Instant::now() < deadline, "Pebble does not answer"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        std::fs::write(folder.join("root.pem"), root).unwrap();
        Some(Self { directory: format!("https://127.0.0.1:{api}/dir"), _child: child })
    }
}

fn write_identity(folder: &Path) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let anchor = ca.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
    std::fs::write(folder.join("api-ca.pem"), anchor.pem()).unwrap();
    std::fs::write(folder.join("pebble.pem"), leaf.pem()).unwrap();
    std::fs::write(folder.join("pebble.key"), key.serialize_pem()).unwrap();
}

/// `GET /roots/0` of Pebble's management listener, which speaks TLS.
async fn fetch_root(folder: &Path, port: u16) -> Option<String> {
    use rustls_pki_types::pem::PemObject;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_file(folder.join("api-ca.pem")).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut tls = connector.connect("127.0.0.1".try_into().unwrap(), tcp).await.ok()?;
    tls.write_all(b"GET /roots/0 HTTP/1.0\r\nhost: localhost\r\n\r\n").await.ok()?;
    let mut answer = String::new();
    // Go closes without close_notify; what was read is whole by its length.
    drop(tls.read_to_string(&mut answer).await);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.to_owned())
}

fn options() -> Options {
    Options { pebble: true, ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pebble_issues_one_name_by_each_method() {
    for challenges in [r#"["http-01"]"#, r#"["tls-alpn-01"]"#] {
        let Some(lab) = Lab::try_start(&Options { challenges, ..options() }).await else { return };
        issuing::one_name(&lab).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pebble_issues_a_group_of_25_as_one_certificate() {
    let Some(lab) = Lab::try_start(&options()).await else { return };
    issuing::group_of_25(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pebble_issues_a_wildcard_through_the_delegation() {
    let Some(lab) = Lab::try_start(&options()).await else { return };
    issuing::wildcard(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pebble_issues_nine_of_ten_when_one_is_dead() {
    let Some(lab) = Lab::try_start(&Options { preflight: false, ..options() }).await else { return };
    issuing::nine_of_ten(&lab).await;
}

/// The second cell's certificate costs Pebble no look at the names: counted where it would look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pebble_validates_once_for_two_cells() {
    let options = Options { cells: vec!["master", "shadow"], preflight: false, ..options() };
    let Some(lab) = Lab::try_start(&options).await else { return };
    issuing::two_cells(&lab).await;
    // Pebble looks three times at each name.
    let answered = lab.world.stand_in.answered.load(std::sync::atomic::Ordering::Relaxed);
    assert!(answered <= 9, "3 names, looked at {answered} times");
}

/// The import's shape: many small tenants, a few large ones. Prints the rate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pebble_issues_2000_names_in_minutes() {
    let options = Options { preflight: false, issuer: "[issuer.limits]\npreset = \"none\"", ..options() };
    let Some(lab) = Lab::try_start(&options).await else { return };
    let mut names = 0;
    let start = Instant::now();
    let mut tenant = 0;
    while names < 2000 {
        // Of ten tenants eight have apex and www, one has ten names, one has a registered domain of fifty.
        let own: Vec<String> = match tenant % 10 {
            0..8 => vec![format!("t{tenant}.test"), format!("www.t{tenant}.test")],
            8 => (0..10).map(|n| format!("n{n}.t{tenant}.test")).collect(),
            _ => (0..50).map(|n| format!("n{n}.t{tenant}.test")).collect(),
        };
        let id = lab.tenant(&[], "registered_domain").await;
        names += own.len();
        lab.domains(id, &own).await;
        tenant += 1;
    }
    let deadline = Instant::now() + Duration::from_secs(280);
    loop {
        let covered: usize = lab.live_credentials().await.iter().map(|live| live.names.len()).sum();
        if covered >= names {
            break;
        }
        assert!(Instant::now() < deadline, "{covered} of {names} names after {:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = start.elapsed();
    let orders = lab.rows("SELECT id FROM orders").await.len();
    println!(
        "{names} names of {tenant} tenants in {orders} orders: {:.1} s, {:.1} orders/s",
        took.as_secs_f64(),
        orders as f64 / took.as_secs_f64()
    );
}

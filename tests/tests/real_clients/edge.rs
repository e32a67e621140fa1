//! A standalone edge of two workers, with a certificate of a CA of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use portico_tests::{Addresses, Running, binary, plain_http, wait_until};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PublicKeyData,
};
use tempfile::TempDir;

pub(crate) const HOST: &str = "shop.example";

/// Ends with the test.
#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) https: SocketAddr,
    pub(crate) http: SocketAddr,
    metrics: SocketAddr,
    pub(crate) identity: Identity,
    pub(crate) folder: TempDir,
    _process: Running,
}

/// PEM files.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) ca: PathBuf,
    /// Leaf and key, for [`HOST`] and for `in.example`, an origin's name.
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// SubjectPublicKeyInfo, DER.
    pub(crate) spki: Vec<u8>,
}

impl Edge {
    /// Waits until it serves [`HOST`] by `routes` (TOML), on the ring or on epoll. Origins on loopback may be any port's.
    pub(crate) async fn start(
        io: &str,
        folder: TempDir,
        identity: Identity,
        routes: &str,
        ports: &[u16],
    ) -> Self {
        let addresses = Addresses::take();
        let (https, http, metrics) = (addresses.at(11, 8443), addresses.at(11, 8080), addresses.at(11, 9109));
        let config = format!(
            "workers = 2\nio = \"{io}\"\nstate = \"state\"\nmetrics = \"{metrics}\"\naccess_log = \"access.log\"\n\
             cache_bytes = 67108864\n\
             [[listen]]\naddress = \"{https}\"\nkind = \"https\"\nhttp3 = true\n\
             [[listen]]\naddress = \"{http}\"\nkind = \"http\"\n\
             [certificates]\nfolder = \"certificates\"\n\
             [egress]\nallow = [{{ cidr = \"127.0.0.0/8\", ports = {ports:?} }}]\n{routes}"
        );
        fs::write(folder.path().join("edge.toml"), config).unwrap();
        let mut command = Command::new(binary("portico-edge"));
        command.arg("--config").arg(folder.path().join("edge.toml"));
        let mut process = Running::start("edge", folder.path(), &mut command);
        wait_until("the edge", Duration::from_secs(60), async || {
            process.assert_alive();
            let ready = plain_http(metrics, "GET", "/readyz", String::new()).await.ok()?;
            ready.0.is_success().then_some(())
        })
        .await;
        Self { https, http, metrics, identity, folder, _process: process }
    }

    /// The value of one series, 0 when it is not there.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let (_, text) = plain_http(self.metrics, "GET", "/metrics", String::new()).await.unwrap();
        let text = String::from_utf8(text.to_vec()).unwrap();
        let line = text.lines().find(|line| line.starts_with(series));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().unwrap())
    }

    /// Lines of the access log for requests whose target begins so.
    pub(crate) fn log_of(&self, target: &str) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter(|line| line["target"].as_str().unwrap_or("").starts_with(target)).collect()
    }
}

/// A folder with a CA and a leaf that it has signed.
pub(crate) fn identity() -> (TempDir, Identity) {
    let folder = tempfile::tempdir().unwrap();
    let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.distinguished_name.push(DnType::CommonName, "the test's CA");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, authority.self_signed(&authority_key).unwrap().pem()).unwrap();

    let mut leaf = CertificateParams::new(vec![HOST.to_owned(), "in.example".to_owned()]).unwrap();
    leaf.use_authority_key_identifier_extension = true;
    leaf.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    let leaf_key = KeyPair::generate().unwrap();
    let signed = leaf.signed_by(&leaf_key, &Issuer::new(authority, authority_key)).unwrap();
    fs::create_dir(folder.path().join("certificates")).unwrap();
    let certificate = folder.path().join("certificates/shop.pem");
    let key = folder.path().join("certificates/shop.key");
    fs::write(&certificate, signed.pem()).unwrap();
    fs::write(&key, leaf_key.serialize_pem()).unwrap();
    let spki = leaf_key.subject_public_key_info();
    (folder, Identity { ca, certificate, key, spki })
}

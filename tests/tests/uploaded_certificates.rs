//! A tenant's own certificates, RSA and ECDSA side by side, from the command to real edges and back.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use portico_api::v1::Sharing;
use portico_cert_store::{KeyType, PrivateKey};
use portico_tests::{CellPlan, Lab, LabOptions, files, holds, wait_until};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs::{self, cipher_suite as suite, kx_group};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SignatureScheme, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const DEADLINE: Duration = Duration::from_secs(60);

/// An authority of the tenant's own, with what it has issued.
struct OwnCa {
    root_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate in files, as a tenant has it.
struct Brought {
    leaf: Vec<u8>,
    key: PrivateKey,
    chain_file: PathBuf,
    key_file: PathBuf,
}

impl OwnCa {
    fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).expect("parameters");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let root_pem = parameters.self_signed(&key).expect("a root").pem();
        Self { root_pem, issuer: Issuer::new(parameters, key) }
    }

    fn issue(&self, folder: &Path, name: &str, key_type: KeyType) -> Brought {
        let key = PrivateKey::generate(key_type).expect("a key");
        let algorithm =
            if key_type.is_rsa() { &rcgen::PKCS_RSA_SHA256 } else { &rcgen::PKCS_ECDSA_P256_SHA256 };
        let der = PrivatePkcs8KeyDer::from(key.secret_der().to_vec());
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, algorithm).expect("a key pair");
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2090, 1, 1);
        let leaf = parameters.signed_by(&pair, &self.issuer).expect("a leaf");
        let (chain_file, key_file) =
            (folder.join(format!("{key_type}.pem")), folder.join(format!("{key_type}.key")));
        std::fs::write(&chain_file, leaf.pem() + &self.root_pem).expect("a file");
        std::fs::write(&key_file, pair.serialize_pem()).expect("a file");
        Brought { leaf: leaf.der().to_vec(), key, chain_file, key_file }
    }
}

/// What a client can verify and speak.
#[derive(Clone, Copy)]
struct Ability {
    name: &'static str,
    version: &'static SupportedProtocolVersion,
    rsa_signatures_only: bool,
    /// Suites for RSA keys alone; ECDSA signatures are offered all the same.
    rsa_suites_only: bool,
    /// Without the curve of the ECDSA certificate.
    without_p256: bool,
    /// Suites of the other version too, which it does not speak.
    suites_of_both: bool,
    is_rsa: bool,
}

const MODERN: Ability = Ability {
    name: "TLS 1.3",
    version: &rustls::version::TLS13,
    rsa_signatures_only: false,
    rsa_suites_only: false,
    without_p256: false,
    suites_of_both: false,
    is_rsa: false,
};

fn abilities() -> Vec<Ability> {
    let old = Ability { version: &rustls::version::TLS12, ..MODERN };
    vec![
        MODERN,
        Ability { name: "TLS 1.3, RSA signatures", rsa_signatures_only: true, is_rsa: true, ..MODERN },
        Ability { name: "TLS 1.3 without P-256 for the exchange", without_p256: true, ..MODERN },
        Ability { name: "TLS 1.3, suites of both", suites_of_both: true, ..MODERN },
        Ability { name: "TLS 1.2", ..old },
        Ability { name: "TLS 1.2, suites of both", suites_of_both: true, ..old },
        Ability { name: "TLS 1.2, RSA signatures", rsa_signatures_only: true, is_rsa: true, ..old },
        Ability { name: "TLS 1.2, RSA suites", rsa_suites_only: true, is_rsa: true, ..old },
        Ability { name: "TLS 1.2 without P-256", without_p256: true, is_rsa: true, ..old },
        Ability {
            name: "TLS 1.2 without P-256, suites of both",
            without_p256: true,
            suites_of_both: true,
            is_rsa: true,
            ..old
        },
    ]
}

fn client(ability: Ability, roots: &RootCertStore) -> ClientConfig {
    let mut provider = aws_lc_rs::default_provider();
    if ability.rsa_signatures_only {
        let is_rsa = |scheme: SignatureScheme| {
            let pss = [SignatureScheme::RSA_PSS_SHA256, SignatureScheme::RSA_PSS_SHA384];
            pss.contains(&scheme) || scheme == SignatureScheme::RSA_PKCS1_SHA256
        };
        // For handshakes; chains are verified by all that there is.
        let mapping: Vec<_> = provider.signature_verification_algorithms.mapping.to_vec();
        let mapping: Vec<_> = mapping.into_iter().filter(|(scheme, _)| is_rsa(*scheme)).collect();
        provider.signature_verification_algorithms.mapping = mapping.leak();
    }
    if !ability.suites_of_both {
        provider.cipher_suites.retain(|suite| suite.version() == ability.version);
    }
    if ability.rsa_suites_only {
        provider.cipher_suites = vec![suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256];
    }
    if ability.without_p256 {
        provider.kx_groups = vec![kx_group::X25519, kx_group::SECP384R1];
    }
    ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[ability.version])
        .expect("suites of the version")
        .with_root_certificates(roots.clone())
        .with_no_client_auth()
}

/// The leaf that an edge shows over TCP.
async fn leaf(address: SocketAddr, name: &'static str, config: ClientConfig) -> Result<Vec<u8>> {
    let handshake = async {
        let tcp = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from(name)?, tcp)
            .await
            .context("handshake")
    };
    let stream = tokio::time::timeout(DEADLINE, handshake).await??;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    Ok(shown.context("no certificate")?.to_vec())
}

/// The leaf that an edge shows over QUIC.
async fn leaf_over_quic(address: SocketAddr, name: &str, mut config: ClientConfig) -> Result<Vec<u8>> {
    config.alpn_protocols = vec![b"h3".to_vec()];
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(config)?;
    let mut endpoint = quinn::Endpoint::client(SocketAddr::new(address.ip(), 0))?;
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(config)));
    let connection = tokio::time::timeout(DEADLINE, endpoint.connect(address, name)?).await??;
    let identity = connection.peer_identity().context("no certificate")?;
    let Ok(chain) = identity.downcast::<Vec<CertificateDer<'static>>>() else { bail!("no chain") };
    connection.close(0_u32.into(), b"");
    Ok(chain.first().context("an empty chain")?.to_vec())
}

fn portico(lab: &Lab, arguments: &[&str]) -> Output {
    lab.portico().args(arguments).output().expect("portico runs")
}

fn upload(lab: &Lab, name: &str, brought: &Brought) {
    let (chain, key) =
        (brought.chain_file.to_str().expect("UTF-8"), brought.key_file.to_str().expect("UTF-8"));
    let done = portico(lab, &["cert", "upload", name, "--chain", chain, "--key", key, "--private-ca"]);
    assert!(done.status.success(), "{done:?}");
}

async fn shown_until(edge: SocketAddr, roots: &RootCertStore, ability: Ability, expected: &[u8], what: &str) {
    wait_until(what, DEADLINE, async || {
        let shown = leaf(edge, "shop.test", client(ability, roots)).await.expect("a handshake");
        (shown == expected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_certificates_go_to_the_cells_of_their_name_and_each_client_gets_the_one_it_can_use() -> Result<()>
{
    let cells = vec![CellPlan { name: "one", edges: 1 }, CellPlan { name: "two", edges: 1 }];
    let mut lab = Lab::start(LabOptions { cells, ..LabOptions::default() }).await?;
    let tenant = lab.tenant("shops", Sharing::Tenant, &["one"]).await?;
    lab.domain(&tenant, "shop.test").await?;
    lab.active("shop.test").await?;

    let own = OwnCa::new();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(own.root_pem.as_bytes())?)?;
    roots.add(CertificateDer::from_pem_file(&lab.issuing_root)?)?;
    let edge = lab.edges[0].https;
    let issued = leaf(edge, "shop.test", client(MODERN, &roots)).await?;
    let folder = lab.folder.path().to_owned();
    let rsa = own.issue(&folder, "shop.test", KeyType::Rsa2048);
    let ecdsa = own.issue(&folder, "shop.test", KeyType::EcdsaP256);

    // RSA alone: all clients get it, although the issued one is ECDSA.
    upload(&lab, "shop.test", &rsa);
    shown_until(edge, &roots, MODERN, &rsa.leaf, "the uploaded RSA certificate").await;
    upload(&lab, "shop.test", &ecdsa);
    shown_until(edge, &roots, MODERN, &ecdsa.leaf, "the uploaded ECDSA certificate").await;
    check_abilities(edge, &roots, &rsa, &ecdsa).await?;

    // As after a crash, without a second handshake of the edge's own.
    lab.edges[0].process.kill();
    lab.restart_edge(0).await;
    check_abilities(edge, &roots, &rsa, &ecdsa).await?;

    for brought in [&rsa, &ecdsa] {
        let has = |edge: usize| holds(&lab.edges[edge].folder, &brought.leaf).expect("an edge's files");
        assert!(has(0), "the scan finds what is there");
        assert!(!has(1), "a cell that does not serve the name has it");
        for folder in [&lab.edges[0].folder, &lab.edges[1].folder, &folder.join("control-plane")] {
            assert_no_key(folder, &brought.key);
        }
        for log in ["control-plane.log", "edge.log"] {
            let log = std::fs::read(folder.join(log)).unwrap_or_default();
            assert!(!has_key(&log, &brought.key), "a key is in a log");
        }
    }

    // Back to the issued one, and no handshake fails meanwhile.
    let watch = {
        let roots = roots.clone();
        let seen = [issued.clone(), rsa.leaf.clone(), ecdsa.leaf.clone()];
        async move {
            loop {
                let shown = leaf(edge, "shop.test", client(MODERN, &roots)).await.expect("no gap");
                assert!(seen.contains(&shown), "another certificate");
                if shown == seen[0] {
                    return;
                }
            }
        }
    };
    let watch = tokio::spawn(watch);
    for kind in ["ecdsa", "rsa"] {
        let done = portico(&lab, &["cert", "rm", "shop.test", "--key-type", kind]);
        assert!(done.status.success(), "{done:?}");
    }
    tokio::time::timeout(DEADLINE, watch).await??;
    Ok(())
}

async fn check_abilities(
    edge: SocketAddr,
    roots: &RootCertStore,
    rsa: &Brought,
    ecdsa: &Brought,
) -> Result<()> {
    for ability in abilities() {
        let expected = if ability.is_rsa { rsa } else { ecdsa };
        let shown = leaf(edge, "shop.test", client(ability, roots)).await.context(ability.name)?;
        assert!(shown == expected.leaf, "{}", ability.name);
        if ability.version.version == rustls::ProtocolVersion::TLSv1_3 {
            let shown =
                leaf_over_quic(edge, "shop.test", client(ability, roots)).await.context(ability.name)?;
            assert!(shown == expected.leaf, "{} over QUIC", ability.name);
        }
    }
    Ok(())
}

fn assert_no_key(folder: &Path, key: &PrivateKey) {
    for file in files(folder).expect("a folder") {
        let bytes = std::fs::read(&file).unwrap_or_default();
        assert!(!has_key(&bytes, key), "a key is in {}", file.display());
    }
}

/// Whether bytes hold the secret part of a key, in DER, hex or base64.
fn has_key(bytes: &[u8], key: &PrivateKey) -> bool {
    // Past what all keys of a kind begin with: in the private exponent of RSA, in the scalar of ECDSA.
    let der = key.secret_der();
    let at = if key.key_type().is_rsa() { der.len() / 2 } else { 36 };
    let secret = &der[at..at + 24];
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let has = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    if has(secret) || has(hex.as_bytes()) {
        return true;
    }
    // In PEM, whichever line it is.
    let pem = pem_lines(key);
    pem.iter().any(|line| has(line.as_bytes()))
}

/// Full lines of the key's PEM that hold secret bytes.
fn pem_lines(key: &PrivateKey) -> Vec<String> {
    let der = PrivatePkcs8KeyDer::from(key.secret_der().to_vec());
    let algorithm =
        if key.key_type().is_rsa() { &rcgen::PKCS_RSA_SHA256 } else { &rcgen::PKCS_ECDSA_P256_SHA256 };
    let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, algorithm).expect("a key pair");
    let pem = pair.serialize_pem();
    let lines: Vec<String> = pem.lines().filter(|line| line.len() == 64).map(str::to_owned).collect();
    // The second half of an RSA key; of an ECDSA key the first line, for its public key begins in the second.
    if key.key_type().is_rsa() { lines[lines.len() / 2..].to_vec() } else { lines[..1].to_vec() }
}

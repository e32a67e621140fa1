//! One TLS client connection, with the verdict on the certificate it was shown.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use portico_cert_store::DomainName;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// From connect to the end of the handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How the client speaks TLS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlsChoice {
    pub(crate) resume: bool,
    pub(crate) http2: bool,
    /// X25519 only, as the published comparisons use; otherwise X25519MLKEM768 first.
    pub(crate) classical: bool,
}

/// The trust anchors in a PEM file.
pub(crate) fn read_roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let certificates =
        CertificateDer::pem_file_iter(path).with_context(|| format!("read {}", path.display()))?;
    for certificate in certificates {
        roots.add(certificate.with_context(|| format!("parse {}", path.display()))?)?;
    }
    if roots.is_empty() {
        return Err(anyhow!("{} holds no certificate", path.display()));
    }
    Ok(roots)
}

pub(crate) fn config(roots: RootCertStore, choice: TlsChoice) -> Result<Arc<ClientConfig>> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    // The suite that current browsers and the comparisons lead with.
    provider
        .cipher_suites
        .sort_by_key(|suite| u8::from(suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256));
    // As browsers name them; the library's own order has X25519 first.
    provider.kx_groups = match choice.classical {
        true => vec![kx_group::X25519],
        false => vec![kx_group::X25519MLKEM768, kx_group::X25519],
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![if choice.http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    if !choice.resume {
        config.resumption = Resumption::disabled();
    }
    Ok(Arc::new(config))
}

/// What went wrong with a connection: the certificate, or anything else.
#[derive(Debug)]
pub(crate) enum ConnectError {
    WrongCertificate(String),
    Failed(String),
}

/// Connects to `address` for `name`; the chain must lead to a root and the certificate must name `name`.
pub(crate) async fn connect(
    address: SocketAddr,
    name: &DomainName,
    config: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let attempt = async {
        let tcp =
            TcpStream::connect(address).await.map_err(|e| ConnectError::Failed(format!("connect: {e}")))?;
        tcp.set_nodelay(true).map_err(|e| ConnectError::Failed(format!("nodelay: {e}")))?;
        let server = ServerName::try_from(name.as_str().to_owned())
            .map_err(|e| ConnectError::Failed(e.to_string()))?;
        TlsConnector::from(Arc::clone(config)).connect(server, tcp).await.map_err(|e| {
            let certificate_fault = e
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>())
                .is_some_and(|e| matches!(e, rustls::Error::InvalidCertificate(_)));
            if certificate_fault {
                ConnectError::WrongCertificate(format!("{name}: {e}"))
            } else {
                ConnectError::Failed(format!("handshake: {e}"))
            }
        })
    };
    tokio::time::timeout(HANDSHAKE_DEADLINE, attempt)
        .await
        .unwrap_or_else(|_| Err(ConnectError::Failed(format!("no handshake within {HANDSHAKE_DEADLINE:?}"))))
}

pub(crate) fn was_resumed(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
}

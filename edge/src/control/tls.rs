//! TLS to the control plane: an own connector under tonic, so that an identity can be exchanged between two connections
//! and a joining edge can trust a fingerprint instead of a root store.
//!
//! The control plane is known by what it is, not by its address: its certificate has to lead to the internal CA and to
//! carry [`SERVER_NAME`].

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use hyper_util::rt::TokioIo;
use portico_api::distribution::distribution_client::DistributionClient;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::identity::IdentityCertificate;
use super::limits::{self, ControlDeadlines};

/// Carried by every control plane's certificate.
pub const SERVER_NAME: &str = "control-plane.portico.internal";

/// The TLS configuration of a joined edge.
pub(super) fn client_config(identity: &IdentityCertificate) -> Result<ClientConfig, rustls::Error> {
    let verifier = verifier_for(&identity.trusted)?;
    config(verifier, Some(Arc::clone(&identity.certified)))
}

/// The TLS configuration of a joining edge. A control plane of another CA is noted in `other_ca`.
pub(super) fn joining_config(
    ca_sha256: [u8; 32],
    other_ca: Arc<OnceLock<()>>,
) -> Result<ClientConfig, rustls::Error> {
    let provider = provider();
    config(Arc::new(PinnedCa { ca_sha256, other_ca, provider }), None)
}

/// Connects, shakes hands, and gives a client whose calls share the connection.
pub(super) async fn connect(
    address: &str,
    config: ClientConfig,
    deadlines: &ControlDeadlines,
) -> Result<DistributionClient<Channel>, tonic::transport::Error> {
    let address: Arc<str> = address.into();
    let tls = TlsConnector::from(Arc::new(config));
    let connector = service_fn(move |_| {
        let (address, tls) = (Arc::clone(&address), tls.clone());
        async move {
            let stream = TcpStream::connect(&*address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
            tls.connect(name, stream).await.map(TokioIo::new)
        }
    });
    // The scheme and name are those of the HTTP/2 requests; the connector alone decides where they go.
    let channel = Endpoint::from_static("http://control-plane.portico.internal")
        .connect_timeout(deadlines.control_connect)
        .http2_keep_alive_interval(deadlines.control_keepalive)
        .keep_alive_timeout(deadlines.control_keepalive)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await?;
    Ok(DistributionClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES_MAX))
}

fn config(
    verifier: Arc<dyn ServerCertVerifier>,
    identity: Option<Arc<CertifiedKey>>,
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(certified) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Each connection proves the identity of the day anew.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn verifier_for(trusted: &[CertificateDer<'static>]) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for certificate in trusted {
        roots.add(certificate.clone())?;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Trusts whatever leads to the one CA certificate that has this hash; the server sends it along.
struct PinnedCa {
    ca_sha256: [u8; 32],
    other_ca: Arc<OnceLock<()>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_pinned = |der: &&CertificateDer<'_>| sha256(der) == self.ca_sha256;
        let Some(ca) = intermediates.iter().find(is_pinned) else {
            // Set twice is set.
            let _already = self.other_ca.set(());
            return Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        let verifier = verifier_for(&[ca.clone().into_owned()])?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

impl fmt::Debug for PinnedCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedCa").finish_non_exhaustive()
    }
}

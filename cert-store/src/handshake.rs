//! The last gate before a credential goes live: a real TLS 1.3 handshake with it, in memory.
//!
//! Chain, names and dates can all be right while the key is not the certificate's, or cannot sign. So client and server
//! shake hands within this process, no socket involved, about 0.2 ms of CPU. The chain's trust is not judged here (the
//! control plane did that, with its roots); everything that a client checks with the leaf alone is.

use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConnection, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, ServerConnection};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::certificate::CertificateError;
use crate::domain_name::DomainName;

/// Turns that a handshake may take; TLS 1.3 needs two.
const TURNS_MAX: usize = 10;

/// Shakes hands as a client that asks for `name`. Chain and dates are the caller's to check.
///
/// # Errors
/// [`CertificateError::Handshake`].
pub fn check_certified_key(key: Arc<CertifiedKey>, name: &DomainName) -> Result<(), CertificateError> {
    let leaf = key.cert.first().cloned().ok_or(CertificateError::Empty)?;
    let (client, server) = (client_config(leaf)?, server_config(key)?);
    let mut client =
        ClientConnection::new(Arc::new(client), name.to_server_name()).map_err(|error| failed(&error))?;
    let mut server = ServerConnection::new(Arc::new(server)).map_err(|error| failed(&error))?;
    let mut wire = Vec::with_capacity(8 * 1024);
    for _ in 0..TURNS_MAX {
        wire.clear();
        client.write_tls(&mut wire).map_err(|error| failed(&error))?;
        feed(&mut wire.as_slice(), |bytes| server.read_tls(bytes))?;
        server.process_new_packets().map_err(|error| failed(&error))?;
        wire.clear();
        server.write_tls(&mut wire).map_err(|error| failed(&error))?;
        feed(&mut wire.as_slice(), |bytes| client.read_tls(bytes))?;
        client.process_new_packets().map_err(|error| failed(&error))?;
        if !client.is_handshaking() && !server.is_handshaking() {
            return Ok(());
        }
    }
    Err(CertificateError::Handshake { reason: "it does not come to an end".into() })
}

fn feed(
    bytes: &mut &[u8],
    mut read_tls: impl FnMut(&mut dyn std::io::Read) -> std::io::Result<usize>,
) -> Result<(), CertificateError> {
    while !bytes.is_empty() {
        read_tls(bytes).map_err(|error| failed(&error))?;
    }
    Ok(())
}

fn server_config(key: Arc<CertifiedKey>) -> Result<ServerConfig, CertificateError> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| failed(&error))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(leaf: CertificateDer<'static>) -> Result<ClientConfig, CertificateError> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| failed(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(LeafVerifier { leaf }))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn failed(error: &dyn std::error::Error) -> CertificateError {
    CertificateError::Handshake { reason: error.to_string() }
}

/// AES-128 and X25519 only: the certificate is on trial, not the exchange.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
});

/// Accepts the one leaf that is on trial, if it names what was asked for and its key signed the handshake.
#[derive(Debug)]
struct LeafVerifier {
    leaf: CertificateDer<'static>,
}

impl ServerCertVerifier for LeafVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity != self.leaf {
            return Err(rustls::CertificateError::ApplicationVerificationFailure.into());
        }
        let parsed = rustls::server::ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_name(&parsed, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signature,
            &PROVIDER.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

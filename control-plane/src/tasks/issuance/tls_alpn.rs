//! Meeting a TLS-ALPN-01 challenge as a CA would (RFC 8737 section 3): a handshake at port 443 that offers `acme-tls/1` alone, and
//! the acmeIdentifier in the certificate that is shown.
//!
//! Where another answers, who it may be and what to do is said: a port that is closed, a server or CDN before the edges that
//! ends TLS itself, one that is none of ours. Deliberately absent: what only our own edges could get wrong (a second name, a
//! signature by another), and any request.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use portico_cert_store::DomainName;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
};
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Issuance, self_fetch};
use crate::config::EgressAllow;

const PROTOCOL: &[u8] = b"acme-tls/1";
/// id-pe-acmeIdentifier (RFC 8737 section 6.1).
const ACME_IDENTIFIER: &str = "1.3.6.1.5.5.7.1.31";
/// For the handshake, behind the connect: a CA is no more patient.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// Looks for the challenge with this digest at one of the name's addresses; an error says for the tenant what was met instead.
pub(super) async fn meet_as_a_ca(
    issuance: &Issuance,
    granted: &[EgressAllow],
    name: &DomainName,
    address: IpAddr,
    digest: &[u8; 32],
) -> Result<(), String> {
    let port = issuance.parts.config.fleet.https_port;
    let at = format!("{name} at {address}, port {port}");
    let socket = SocketAddr::new(address, port);
    let stream = self_fetch::connect(issuance, granted, &[socket]).await.map_err(|error| {
        format!("{at}: {error}; open that port, or let the name lead to the edges, for a CA goes there")
    })?;
    let server = ServerName::try_from(name.to_string()).map_err(|error| format!("{at}: {error}"))?;
    let shaken =
        tokio::time::timeout(HANDSHAKE_DEADLINE, TlsConnector::from(OFFER.clone()).connect(server, stream));
    let stream = match shaken.await {
        Err(_) => return Err(format!("{at}: no TLS within {} s; {LEAD_HERE}", HANDSHAKE_DEADLINE.as_secs())),
        Ok(Err(error)) => return Err(format!("{at}: {}; {LEAD_HERE}", words(&error))),
        Ok(Ok(stream)) => stream,
    };
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != Some(PROTOCOL) {
        return Err(format!("{at}: {WITHOUT_ALPN}; {LEAD_HERE}"));
    }
    let shown = session.peer_certificates().and_then(<[_]>::first);
    match shown.map(|certificate| has_identifier(certificate, digest)) {
        Some(true) => Ok(()),
        Some(false) | None => Err(format!(
            "{at}: the challenge of TLS-ALPN-01 is answered by somebody else, not by our edges; {LEAD_HERE}"
        )),
    }
}

const WITHOUT_ALPN: &str =
    "the server there does not speak acme-tls/1, as a CDN or a proxy that ends TLS before the edges does not";
const LEAD_HERE: &str = "let the name lead to the edges, or have what is before them pass TLS on as it is";

/// What a failed handshake says of who is there.
fn words(error: &std::io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => WITHOUT_ALPN.to_owned(),
        Some(Error::AlertReceived(AlertDescription::UnrecognisedName)) => {
            "the server there does not know the name".to_owned()
        }
        Some(other) => format!("TLS: {other}"),
        None => format!("TLS: {error}"),
    }
}

fn has_identifier(certificate: &CertificateDer<'_>, digest: &[u8; 32]) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    // An OCTET STRING of 32 bytes in DER.
    let wanted = [&[0x04, 0x20], digest.as_slice()].concat();
    let mut found = parsed.extensions().iter().filter(|one| one.oid.to_id_string() == ACME_IDENTIFIER);
    found.any(|extension| extension.critical && extension.value == wanted)
}

static OFFER: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider knows TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Challenged(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    // A resumed session shows no certificate.
    config.resumption = Resumption::disabled();
    Arc::new(config)
});

/// Takes every certificate whose key the peer holds. Not by webpki: it refuses what has a critical acmeIdentifier.
#[derive(Debug)]
struct Challenged(Arc<CryptoProvider>);

impl Challenged {
    fn check(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let bad = |error: CertificateError| Error::InvalidCertificate(error);
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|_| bad(CertificateError::BadEncoding))?;
        let key = &parsed.public_key().subject_public_key.data;
        let all = self.0.signature_verification_algorithms.mapping;
        let usable = all.iter().find(|(scheme, _)| *scheme == signed.scheme).map(|(_, usable)| *usable);
        let mut usable = usable.unwrap_or_default().iter();
        if usable.any(|one| one.verify_signature(key, message, signed.signature()).is_ok()) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        Err(bad(CertificateError::BadSignature))
    }
}

impl ServerCertVerifier for Challenged {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

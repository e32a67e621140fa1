//! TLS-ALPN-01 (RFC 8737): a handshake with ALPN `acme-tls/1`, then the certificate is judged: self-signed,
//! one name, and the critical acmeIdentifier extension with the digest of the key authorization.

use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio_rustls::TlsConnector;
use x509_parser::extensions::GeneralName;

use super::{Target, Validator};
use crate::problem::{Kind, Problem};

/// id-pe-acmeIdentifier (RFC 8737 section 3).
const ACME_IDENTIFIER: &str = "1.3.6.1.5.5.7.1.31";
const PROTOCOL: &[u8] = b"acme-tls/1";

impl Validator {
    pub(super) async fn tls_alpn01(&self, target: &Target) -> Result<(), Problem> {
        let (stream, address) = self.connect(&target.name, self.tls_port).await?;
        let server = ServerName::try_from(target.name.clone())
            .map_err(|error| Problem::malformed(format!("{}: {error}", target.name)))?;
        let stream = TlsConnector::from(Arc::clone(&self.tls_alpn))
            .connect(server, stream)
            .await
            .map_err(|error| Problem::new(Kind::Tls, format!("{} ({address}): {error}", target.name)))?;
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(PROTOCOL) {
            return Err(wrong(target, address, "acme-tls/1 was not negotiated"));
        }
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        let certificate = certificate.ok_or_else(|| wrong(target, address, "no certificate was shown"))?;
        judge(target, certificate).map_err(|text| wrong(target, address, &text))
    }
}

/// A client that takes any certificate but checks that the server holds its key.
///
/// # Errors
/// Of the TLS library.
pub(crate) fn client_config(alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
    let provider = crate::tls::provider();
    let verifier = AnyCertificate { algorithms: provider.signature_verification_algorithms };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    // Each validation is a full handshake: a resumed one would show no certificate.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn judge(target: &Target, der: &CertificateDer<'_>) -> Result<(), String> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(der).map_err(|error| format!("certificate: {error}"))?;
    let self_signed = certificate.issuer().as_raw() == certificate.subject().as_raw()
        && certificate.verify_signature(None).is_ok();
    if !self_signed {
        return Err("the certificate is not self-signed".to_owned());
    }
    let san = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    let names = san.map(|san| &san.value.general_names[..]).unwrap_or_default();
    let [GeneralName::DNSName(name)] = names else {
        return Err(format!("the certificate has {} alternative names, not one DNS name", names.len()));
    };
    if !name.eq_ignore_ascii_case(&target.name) {
        return Err(format!("the certificate names {name:?}"));
    }
    let mut found = certificate.extensions().iter().filter(|e| e.oid.to_id_string() == ACME_IDENTIFIER);
    let extension = found.next().ok_or("the certificate has no acmeIdentifier extension")?;
    if found.next().is_some() {
        return Err("the certificate has two acmeIdentifier extensions".to_owned());
    }
    if !extension.critical {
        return Err("the acmeIdentifier extension is not critical".to_owned());
    }
    let digest = digest(&SHA256, target.key_authorization.as_bytes());
    // OCTET STRING of 32 bytes in DER.
    let wanted = [&[0x04, 0x20], digest.as_ref()].concat();
    if extension.value != wanted {
        return Err("the acmeIdentifier is not that of this key authorization".to_owned());
    }
    Ok(())
}

fn wrong(target: &Target, address: IpAddr, text: &str) -> Problem {
    Problem::unauthorized(format!("{} ({address}): {text}", target.name))
}

/// Accepts every certificate. The handshake's signature is checked without the library's certificate
/// parser, which refuses the critical acmeIdentifier extension.
#[derive(Debug)]
struct AnyCertificate {
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyCertificate {
    fn check(
        &self,
        message: &[u8],
        der: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let bad = || Error::InvalidCertificate(rustls::CertificateError::BadSignature);
        let (_, certificate) = x509_parser::parse_x509_certificate(der)
            .map_err(|_| Error::InvalidCertificate(rustls::CertificateError::BadEncoding))?;
        let key = &certificate.public_key().subject_public_key.data;
        let mapping = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let candidates = mapping.map(|(_, candidates)| *candidates).ok_or_else(bad)?;
        let good = candidates.iter().any(|a| a.verify_signature(key, message, signed.signature()).is_ok());
        if good { Ok(HandshakeSignatureValid::assertion()) } else { Err(bad()) }
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

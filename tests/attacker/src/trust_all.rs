//! A client that takes every certificate: its tests look at certificates themselves, or do not care whom they attack.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

/// Counts how often it is shown a certificate: a resumed session shows none.
#[derive(Debug, Default)]
pub struct TrustAll {
    shown: AtomicUsize,
    /// Signatures that it can verify; `None`: all that the library knows.
    schemes: Option<Vec<SignatureScheme>>,
}

impl TrustAll {
    /// Of a client that can verify no other signatures.
    pub fn by(schemes: &[SignatureScheme]) -> Self {
        Self { schemes: Some(schemes.to_vec()), ..Self::default() }
    }

    /// Certificates so far.
    pub fn shown(&self) -> usize {
        self.shown.load(Ordering::SeqCst)
    }
}

impl ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.shown.fetch_add(1, Ordering::SeqCst);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone().unwrap_or_else(|| {
            let provider = rustls::crypto::aws_lc_rs::default_provider();
            provider.signature_verification_algorithms.supported_schemes()
        })
    }
}

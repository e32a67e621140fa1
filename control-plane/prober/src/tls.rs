//! The TLS half of a check: handshake with any certificate, verdict afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_lc_rs::digest;
use portico_cert_store::{DomainName, PrivateKey, pem_certificates};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::report::{CertificateReport, ChainVerdict};

/// The most subject alternative names that a report lists.
const NAMES_MAX: usize = 1000;

/// The trust anchors against which chains are judged.
#[derive(Clone, Debug)]
pub struct Roots(Arc<RootCertStore>);

impl Roots {
    /// All certificates of a PEM text.
    ///
    /// # Errors
    /// When the text holds no certificate, or one that cannot be a trust anchor.
    pub fn from_pem(pem: &[u8]) -> Result<Self, ProberError> {
        let mut store = RootCertStore::empty();
        for certificate in pem_certificates(pem) {
            let certificate = certificate.map_err(|e| ProberError::Roots(e.to_string()))?;
            store.add(certificate).map_err(|e| ProberError::Roots(e.to_string()))?;
        }
        Self::from_store(store)
    }

    /// # Errors
    /// When the store is empty.
    pub fn from_store(store: RootCertStore) -> Result<Self, ProberError> {
        if store.is_empty() {
            return Err(ProberError::Roots("it holds no certificate".to_owned()));
        }
        Ok(Self(Arc::new(store)))
    }
}

/// What is shown to servers that ask for a client certificate.
#[derive(Clone)]
pub struct ClientCertificate(Arc<CertifiedKey>);

impl ClientCertificate {
    /// A chain and its key, of PEM texts, which may be one and the same.
    ///
    /// # Errors
    /// [`ProberError::ClientCertificate`], which says which of the two is wrong.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, ProberError> {
        let wrong = |text: String| ProberError::ClientCertificate(text);
        let chain: Result<Vec<_>, _> = pem_certificates(chain).collect();
        let chain = chain.map_err(|error| wrong(format!("the certificate: {error}")))?;
        if chain.is_empty() {
            return Err(wrong("the file holds no certificate".to_owned()));
        }
        let key = PrivateKey::from_pem(key).and_then(|key| key.signing_key());
        let key = key.map_err(|error| wrong(format!("the private key: {error}")))?;
        let pair = CertifiedKey::new(chain, key);
        pair.keys_match().map_err(|_| wrong("the private key is not that of the certificate".to_owned()))?;
        Ok(Self(Arc::new(pair)))
    }
}

impl std::fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientCertificate(secret)")
    }
}

/// Notes whether the server of one check asks.
#[derive(Debug)]
struct Showing {
    pair: Option<ClientCertificate>,
    asked: Arc<AtomicBool>,
}

impl ResolvesClientCert for Showing {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.pair.as_ref().map(|pair| Arc::clone(&pair.0))
    }

    fn has_certs(&self) -> bool {
        self.pair.is_some()
    }
}

/// A prober cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ProberError {
    #[error("trust anchors: {0}")]
    Roots(String),
    #[error("{0}")]
    ClientCertificate(String),
    #[error("TLS set-up")]
    Tls(#[source] Error),
}

/// Which protocols a check offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Alpn {
    #[default]
    H2AndHttp1,
    H2,
    Http1,
}

impl Alpn {
    fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Self::H2AndHttp1 => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Self::H2 => vec![b"h2".to_vec()],
            Self::Http1 => vec![b"http/1.1".to_vec()],
        }
    }
}

/// What the handshakes of one prober share.
#[derive(Debug)]
pub(crate) struct Tls {
    config: ClientConfig,
    verifier: Arc<WebPkiServerVerifier>,
}

impl Tls {
    pub(crate) fn new(roots: &Roots, alpn: Alpn) -> Result<Self, ProberError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots.0), Arc::clone(&provider))
                .build()
                .map_err(|e| ProberError::Roots(e.to_string()))?;
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(ProberError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        config.alpn_protocols = alpn.protocols();
        // A resumed session shows no certificate.
        config.resumption = Resumption::disabled();
        Ok(Self { config, verifier })
    }

    /// For one check; `asked` is set if its server asks for a client certificate.
    pub(crate) fn config(
        &self,
        pair: Option<&ClientCertificate>,
        asked: &Arc<AtomicBool>,
    ) -> Arc<ClientConfig> {
        let mut config = self.config.clone();
        let showing = Showing { pair: pair.cloned(), asked: Arc::clone(asked) };
        config.client_auth_cert_resolver = Arc::new(showing);
        Arc::new(config)
    }

    /// What a client that does verify would have said of this chain.
    pub(crate) fn verdict(
        &self,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> ChainVerdict {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return ChainVerdict::Invalid { reason: "the server sent no certificate".to_owned() };
        };
        match self.verifier.verify_server_cert(leaf, intermediates, name, &[], now) {
            Ok(_) => ChainVerdict::Trusted,
            Err(error) => verdict_of(&error),
        }
    }
}

fn verdict_of(error: &Error) -> ChainVerdict {
    let reason = error.to_string();
    let Error::InvalidCertificate(fault) = error else { return ChainVerdict::Invalid { reason } };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "rustls may add kinds; all others are plainly invalid"
    )]
    match fault {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            ChainVerdict::Expired { reason }
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ChainVerdict::NotYetValid { reason }
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            ChainVerdict::WrongName { reason }
        }
        CertificateError::UnknownIssuer => ChainVerdict::UnknownIssuer { reason },
        _ => ChainVerdict::Invalid { reason },
    }
}

/// The facts of the leaf; the error says why it does not parse.
pub(crate) fn describe(chain: &[CertificateDer<'_>]) -> Result<CertificateReport, String> {
    let leaf = chain.first().ok_or("the server sent no certificate")?;
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|e| format!("certificate does not parse: {e}"))?;
    let names = match parsed.subject_alternative_name() {
        Ok(Some(extension)) => {
            extension.value.general_names.iter().filter_map(name_text).take(NAMES_MAX).collect()
        }
        Ok(None) => Vec::new(),
        Err(error) => return Err(format!("subject alternative name does not parse: {error}")),
    };
    Ok(CertificateReport {
        names,
        subject: parsed.subject().to_string(),
        issuer: parsed.issuer().to_string(),
        not_before: rfc3339(parsed.validity().not_before),
        not_after: rfc3339(parsed.validity().not_after),
        serial: hex::encode(parsed.raw_serial()),
        fingerprint_sha256: sha256_hex(leaf),
        spki_sha256: sha256_hex(parsed.public_key().raw),
        chain_length: chain.len(),
    })
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "other kinds of names mean nothing to a TLS client")]
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|octets| std::net::Ipv4Addr::from(octets).to_string()),
            16 => {
                <[u8; 16]>::try_from(*bytes).ok().map(|octets| std::net::Ipv6Addr::from(octets).to_string())
            }
            _ => None,
        },
        _ => None,
    }
}

fn rfc3339(time: x509_parser::time::ASN1Time) -> String {
    let time = time.to_datetime();
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

pub(crate) fn server_name(name: &DomainName) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.as_str().to_owned()).map_err(|e| format!("{name} cannot stand in SNI: {e}"))
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// Takes every chain, but never a handshake whose key was not proved.
#[derive(Debug)]
pub struct AnyCertificate(pub Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
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
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

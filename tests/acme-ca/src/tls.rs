//! The API's own TLS: a certificate from a CA that is made at start, so that clients can trust it by file.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::clock::Moment;

/// The API's certificate, ready to serve, and the anchor that clients trust.
#[derive(Debug)]
pub(crate) struct ApiIdentity {
    pub(crate) ca_pem: String,
    pub(crate) tls: Arc<ServerConfig>,
}

const LIFETIME: Duration = Duration::from_secs(365 * 86_400);
const DAY: Duration = Duration::from_secs(86_400);

impl ApiIdentity {
    /// Makes a CA and a certificate for the hosts of `authorities` (`host:port`).
    ///
    /// # Errors
    /// A host that cannot stand in a certificate.
    pub(crate) fn generate(authorities: &[String], now: Moment) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Portico Test CA API");
        params.not_before = now.minus(DAY).date();
        params.not_after = now.plus(LIFETIME).date();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

        let mut hosts: Vec<String> = authorities.iter().map(|authority| host_of(authority)).collect();
        hosts.sort();
        hosts.dedup();
        let mut params = CertificateParams::new(hosts).context("--authority: not a host name")?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.not_before = now.minus(DAY).date();
        params.not_after = now.plus(LIFETIME).date();
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut tls = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { ca_pem: issuer.pem(), tls: Arc::new(tls) })
    }
}

/// The one crypto library, named each time and never the process default.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn host_of(authority: &str) -> String {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

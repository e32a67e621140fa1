//! Authorities of clients' certificates, and clients that have one of them.

use std::sync::Arc;

use portico_api::distribution as wire;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, SupportedProtocolVersion};

use crate::client;
use crate::fleet;

pub struct ClientCa {
    pub certificate: CertificateDer<'static>,
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A client's certificate and key.
pub struct ClientPair {
    pub leaf: CertificateDer<'static>,
    /// What it sends behind the leaf.
    pub intermediates: Vec<CertificateDer<'static>>,
    key: KeyPair,
    pub pem: String,
}

impl ClientCa {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate: certificate.der().clone(),
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    pub fn issue(&self, name: &str) -> ClientPair {
        self.issue_with(name, |_| ())
    }

    pub fn issue_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> ClientPair {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Tills");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let pem = format!("{}{}", certificate.pem(), key.serialize_pem());
        ClientPair { leaf: certificate.der().clone(), intermediates: Vec::new(), key, pem }
    }

    /// One whose days are over.
    pub fn issue_expired(&self) -> ClientPair {
        self.issue_with("late", |params| {
            let day =
                |seconds: u64| time::OffsetDateTime::from_unix_timestamp(seconds.cast_signed()).unwrap();
            (params.not_before, params.not_after) =
                (day(fleet::NOW - 20 * 86_400), day(fleet::NOW - 10 * 86_400));
        })
    }

    /// One that is longer than an edge takes.
    pub fn issue_long(&self, bytes: usize) -> ClientPair {
        self.issue_with("long", |params| {
            let padding = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9], vec![0; bytes]);
            params.custom_extensions.push(padding);
        })
    }

    pub fn policy(&self, required: bool) -> wire::TlsPolicy {
        let asked = wire::ClientCertificates {
            required,
            ca_der: vec![self.certificate.to_vec().into()],
            minimum_version: 0,
        };
        wire::TlsPolicy {
            minimum_version: wire::TlsVersion::Below as i32,
            client_certificates: Some(asked),
            ..wire::TlsPolicy::default()
        }
    }
}

impl ClientPair {
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.serialize_der().into())
    }

    pub fn key(&self) -> portico_cert_store::PrivateKey {
        portico_cert_store::PrivateKey::from_pkcs8_der(&self.key.serialize_der()).unwrap()
    }

    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    pub fn certificate_pem(&self) -> String {
        self.pem.replace(&self.key.serialize_pem(), "")
    }

    /// A client that shows it when asked.
    pub fn config(&self, alpn: &[&str], versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(self.key.serialize_der().into());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_client_auth_cert([std::slice::from_ref(&self.leaf), &self.intermediates].concat(), key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        client::trust_all(&mut config);
        config
    }

    pub fn any_version(&self, alpn: &[&str]) -> ClientConfig {
        self.config(alpn, rustls::ALL_VERSIONS)
    }
}

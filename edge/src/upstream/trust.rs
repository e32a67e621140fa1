//! Whom https origins are trusted by (the machine's own roots or a route's; there is no way to trust anyone), and what
//! client certificate they are shown.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use rustls::{ClientConfig, RootCertStore, client::ResolvesClientCert, pki_types::ServerName};

use super::{OriginError, TlsFault};
use crate::live::{Origin, OriginHost, OriginIdentity};

/// How origins are trusted; shared by all threads.
#[derive(Debug, Clone)]
pub struct OriginTls(Arc<OnceLock<ClientConfigs>>);

/// The configurations for one set of roots, by what is offered in ALPN.
#[derive(Debug, Clone)]
pub struct ClientConfigs {
    roots: Arc<RootCertStore>,
    /// Nothing is offered, which means HTTP/1.1.
    http1: Arc<ClientConfig>,
    either: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

/// What may be spoken over a connection that is about to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    Http1,
    Either,
    Http2,
}

impl OriginTls {
    /// Trusts the machine's own roots (`SSL_CERT_FILE` names others). They are read by a thread of their own, because a
    /// start must not wait for 150 certificates that it may never need.
    pub fn from_system() -> Self {
        let tls = Self(Arc::default());
        let reader = tls.clone();
        let started = std::thread::Builder::new().name("root-certificates".to_owned()).spawn(move || {
            reader.system();
        });
        if let Err(error) = started {
            tracing::debug!(%error, "root certificates are read at first use");
        }
        tls
    }

    /// Trusts exactly these roots.
    pub fn with_roots(roots: RootCertStore) -> Self {
        Self(Arc::new(OnceLock::from(ClientConfigs::new(&Arc::new(roots)))))
    }

    pub(super) fn config(
        &self,
        origin: &Origin,
        identity: Option<&OriginIdentity>,
        offer: Offer,
    ) -> Arc<ClientConfig> {
        let configs = match &origin.roots {
            Some(own) => own.configs.get_or_init(|| ClientConfigs::new(&own.store)),
            None => self.system(),
        };
        // With sessions of their own: one that was made with another certificate, or none, is not resumed.
        match identity {
            None => configs.of(offer),
            Some(identity) => {
                let make = || ClientConfigs::make(&configs.roots, Some(identity.resolver()));
                identity.configs(origin.roots.as_ref(), make).of(offer)
            }
        }
    }

    fn system(&self) -> &ClientConfigs {
        self.0.get_or_init(|| {
            let mut roots = RootCertStore::empty();
            let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if added == 0 {
                tracing::warn!(
                    "no root certificates found on this machine: https origins will not be trusted"
                );
            }
            ClientConfigs::new(&Arc::new(roots))
        })
    }
}

impl ClientConfigs {
    pub(crate) fn new(roots: &Arc<RootCertStore>) -> Self {
        Self::make(roots, None)
    }

    fn make(roots: &Arc<RootCertStore>, shown: Option<Arc<dyn ResolvesClientCert>>) -> Self {
        let config = |alpn: &[&[u8]]| client_config(roots, shown.clone(), alpn);
        Self {
            roots: Arc::clone(roots),
            http1: config(&[]),
            either: config(&[b"h2", b"http/1.1"]),
            http2: config(&[b"h2"]),
        }
    }

    fn of(&self, offer: Offer) -> Arc<ClientConfig> {
        Arc::clone(match offer {
            Offer::Http1 => &self.http1,
            Offer::Either => &self.either,
            Offer::Http2 => &self.http2,
        })
    }
}

fn client_config(
    roots: &Arc<RootCertStore>,
    shown: Option<Arc<dyn ResolvesClientCert>>,
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has suites and groups of both versions");
    let config = config.with_root_certificates(Arc::clone(roots));
    let mut config = match shown {
        None => config.with_no_client_auth(),
        Some(shown) => config.with_client_cert_resolver(shown),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

pub(super) fn server_name(origin: &Origin) -> Result<ServerName<'static>, OriginError> {
    if let Some(name) = &origin.server_name {
        return Ok(name.clone());
    }
    match &origin.host {
        OriginHost::Address(ip) => Ok(ServerName::IpAddress((*ip).into())),
        OriginHost::Name(name) => ServerName::try_from(name.to_string()).map_err(|error| {
            OriginError::Tls(TlsFault::NoName, io::Error::new(io::ErrorKind::InvalidInput, error))
        }),
    }
}

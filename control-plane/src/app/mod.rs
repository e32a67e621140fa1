//! What the API does, apart from HTTP: rules on what may be written, views of what is, and what a proof changes.

pub(crate) mod adoption;
pub(crate) mod budget;
pub(crate) mod certificate;
pub(crate) mod certificate_request;
pub(crate) mod claim;
pub(crate) mod compromise;
pub(crate) mod fleet;
pub(crate) mod instructions;
pub(crate) mod origin_identity;
pub(crate) mod own;
pub(crate) mod ownership;
pub(crate) mod rekey;
pub(crate) mod reserved;
pub(crate) mod spec;
pub(crate) mod status;
pub(crate) mod upload;
pub(crate) mod view;
pub(crate) mod webhook;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use ipnet::IpNet;
use portico_cert_store::pem_certificates;
use portico_prober::egress::EgressPolicy;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Notify;

use crate::Parts;
use crate::dns::lookup::Lookup;
use crate::http::pace::Pace;
use crate::http::waits::Waits;
use crate::roots::roots;
use fleet::FleetLink;
use own::Own;

/// What every handler and reconciler of the API shares. Clones are cheap.
#[derive(Clone, Debug)]
pub struct App {
    pub parts: Parts,
    pub(crate) fleet: FleetLink,
    pub(crate) lookup: Lookup,
    /// Which addresses fetches of tenants' proofs, and their webhooks, may have.
    pub(crate) egress: Arc<EgressPolicy>,
    /// What no operator grants to a tenant, and no origin may be.
    pub(crate) own: Own,
    /// Wakes the checks of ownership: a claim was made or changed.
    pub(crate) claims_changed: Arc<Notify>,
    /// Long polls under way.
    pub(crate) waits: Waits,
    /// How fast each tenant writes.
    pub(crate) pace: Pace,
    /// Read when the first certificate is uploaded.
    roots: Arc<OnceLock<RootCertStore>>,
    /// Set up for the first webhook over https.
    webhook_tls: Arc<OnceLock<Arc<ClientConfig>>>,
}

impl App {
    /// # Errors
    /// The resolver cannot be set up.
    pub fn new(parts: &Parts, fleet: FleetLink) -> anyhow::Result<Self> {
        let config = &parts.config;
        let public: Vec<IpNet> = config.fleet.public_addresses.iter().copied().map(IpNet::from).collect();
        let own: Vec<SocketAddr> = [Some(config.api), Some(config.distribution), config.dns.responder]
            .into_iter()
            .flatten()
            .collect();
        Ok(Self {
            parts: parts.clone(),
            fleet,
            lookup: Lookup::new(&config.dns)?,
            egress: Arc::new(EgressPolicy::new(public.clone(), own.clone())),
            own: Own::new(public, own),
            claims_changed: Arc::default(),
            waits: Waits::default(),
            pace: Pace::default(),
            roots: Arc::default(),
            webhook_tls: Arc::default(),
        })
    }

    /// The same for the work of a term.
    pub(crate) fn within(&self, parts: Parts) -> Self {
        Self { parts, ..self.clone() }
    }

    /// What uploaded chains must lead to: the system's roots, and those that issuers' certificates lead to.
    pub(crate) fn trusted_roots(&self) -> &RootCertStore {
        self.roots.get_or_init(|| {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            let files = self.parts.config.issuers.iter().filter_map(|issuer| issuer.roots_pem.as_deref());
            for file in files {
                // The issuer itself has refused to start with a file that cannot be read.
                let pem = std::fs::read(file).unwrap_or_default();
                roots.add_parsable_certificates(pem_certificates(&pem).flatten());
            }
            roots
        })
    }

    /// How webhooks are known: by the system's roots, and those of the configuration.
    ///
    /// # Errors
    /// There are none, or the file cannot be read any more.
    pub(crate) fn webhook_tls(&self) -> anyhow::Result<&Arc<ClientConfig>> {
        if self.webhook_tls.get().is_none() {
            let roots = roots(self.parts.config.webhooks.root_pem.as_deref(), true)?;
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let tls = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots)
                .with_no_client_auth();
            // Whoever came first has set the same.
            let _ = self.webhook_tls.set(Arc::new(tls));
        }
        self.webhook_tls.get().context("it was set just now")
    }

    /// Whether the address is one that tenants' names should resolve to.
    pub(crate) fn is_ours(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.parts.config.fleet.public_addresses.iter().any(|own| own.to_canonical() == address)
    }
}

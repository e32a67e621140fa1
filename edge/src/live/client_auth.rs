//! What a name asks of its clients: a certificate that leads to one of its authorities.

use std::fmt;
use std::sync::Arc;

use portico_api::distribution as wire;
use portico_cert_store::{ClientAuthorities, ClientCertificates};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use super::Fault;

/// Equal where the same is asked.
pub struct ClientAuth {
    pub required: bool,
    authorities: ClientAuthorities,
    pub(crate) verifier: Arc<dyn ClientCertVerifier>,
}

impl ClientAuth {
    /// # Errors
    /// A [`Fault`] if no client could be verified by these authorities.
    pub fn new(required: bool, authorities: ClientAuthorities) -> Result<Self, Fault> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(authorities.roots()), provider);
        let builder = if required { builder } else { builder.allow_unauthenticated() };
        let verifier = builder.build().map_err(|error| Fault::new("BadClientCa", error.to_string()))?;
        Ok(Self { required, authorities, verifier })
    }

    pub(super) fn parse(from: &wire::ClientCertificates) -> Result<Self, Fault> {
        let der = from.ca_der.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let authorities = ClientAuthorities::from_der(der)
            .map_err(|error| Fault::new("BadClientCa", format!("the clients' authorities: {error}")))?;
        Self::new(from.required, authorities)
    }

    /// For the index and the planner.
    pub fn policy(&self) -> ClientCertificates {
        ClientCertificates { required: self.required, authorities: self.authorities.short_id() }
    }

    /// What a session that was made under this is bound to.
    pub(crate) fn binding(&self) -> [u8; 33] {
        let mut binding = [u8::from(self.required); 33];
        binding[1..].copy_from_slice(self.authorities.sha256());
        binding
    }
}

impl PartialEq for ClientAuth {
    fn eq(&self, other: &Self) -> bool {
        self.required == other.required && self.authorities == other.authorities
    }
}

impl Eq for ClientAuth {}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientAuth")
            .field("required", &self.required)
            .field("authorities", &self.authorities)
            .finish_non_exhaustive()
    }
}

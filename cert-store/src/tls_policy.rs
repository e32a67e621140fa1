//! How a name may be spoken to over TLS.

use serde::{Deserialize, Serialize};

/// What a name asks of its connections. Names of differing policies never share a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TlsPolicy {
    pub minimum_version: TlsVersion,
    pub http2: bool,
    pub http3: bool,
    /// Absent: clients are not asked for a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificates: Option<ClientCertificates>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TlsVersion {
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

/// Clients are asked for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientCertificates {
    /// A client without one is refused.
    pub required: bool,
    /// Tells sets of authorities apart: the first bytes of their SHA-256. Names on one certificate need no more, since a
    /// connection that asks for client certificates serves its own name only.
    pub authorities: [u8; 8],
}

impl Default for TlsPolicy {
    fn default() -> Self {
        Self { minimum_version: TlsVersion::Tls12, http2: true, http3: true, client_certificates: None }
    }
}

//! How a domain may be spoken to over TLS.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum MinimumTls {
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

/// Clients are asked for a certificate in the handshake. Origins are told of a verified one in `Client-Cert` (RFC 9440),
/// `X-Client-Cert-Subject` (RFC 4514) and `X-Client-Cert-Sha256` (hexadecimal, of the certificate in DER); such fields of
/// a client's own are removed. Connections then serve this domain only (421 for others), and what an origin answers to a client
/// with a certificate is cached as if the request had `Authorization`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificates {
    pub mode: ClientCertificateMode,
    /// The authorities to one of which a client's chain leads: 1 to 16 CA certificates, PEM, at most 32 KiB. Another set ends all
    /// sessions that were made under this one.
    pub ca_pem: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificateMode {
    /// The handshake of a client without a valid one is refused.
    Require,
    /// A client without one is served, and its origin told nothing; one with an invalid one is refused.
    Optional,
}

//! How origins that ask for client certificates know the edges.

use portico_cert_store::CellId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A tenant's own authority. Origins trust its certificate (nginx: `ssl_client_certificate`, Apache: `SSLCACertificateFile`) and
/// ask for one. It has no end; the certificates of the edges are renewed below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OriginAuthority {
    /// What origins are to trust.
    pub certificate_pem: String,
    /// Hexadecimal, of the certificate in DER.
    pub certificate_sha256: String,
    /// RFC 3339.
    pub created_at: String,
    /// One for each cell that serves a route with `tls.client_certificate`.
    pub identities: Vec<OriginIdentity>,
}

/// What the edges of one cell show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OriginIdentity {
    #[schema(value_type = String)]
    pub cell: CellId,
    /// Hexadecimal, of the certificate in DER.
    pub certificate_sha256: String,
    /// RFC 3339; it is renewed when a third of its life is left.
    pub not_after: String,
}

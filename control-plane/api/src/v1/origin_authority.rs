//! How origins that ask for client certificates know the edges.

use portico_cert_store::{CellId, EdgeId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A tenant's own authority. Origins trust its certificate (nginx: `ssl_client_certificate`, Apache: `SSLCACertificateFile`) and
/// ask for one. It has no end; the certificates of the edges are renewed below it.
///
/// To replace it: make the next one, have the origins trust both ([`OriginAuthority::trust_pem`]), switch, and wait until
/// `previous` is gone; then they need trust the new one only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OriginAuthority {
    /// What issues the certificates that edges show.
    #[serde(flatten)]
    pub present: AuthorityCertificate,
    /// One for each cell that serves a route with `tls.client_certificate`.
    pub identities: Vec<OriginIdentity>,
    /// What is to take its place; nothing is issued by it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<AuthorityCertificate>,
    /// What it has taken the place of; absent as soon as no edge can show any more what that one issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<PreviousOriginAuthority>,
}

impl OriginAuthority {
    /// All that origins are to trust for now, PEM.
    pub fn trust_pem(&self) -> String {
        let previous = self.previous.iter().map(|previous| &previous.certificate);
        let all = std::iter::once(&self.present).chain(&self.next).chain(previous);
        all.map(|certificate| certificate.certificate_pem.as_str()).collect()
    }
}

/// An authority's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuthorityCertificate {
    /// What origins are to trust.
    pub certificate_pem: String,
    /// Hexadecimal, of the certificate in DER.
    pub certificate_sha256: String,
    /// RFC 3339.
    pub created_at: String,
}

/// An authority that was replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PreviousOriginAuthority {
    #[serde(flatten)]
    pub certificate: AuthorityCertificate,
    /// Edges that may still show what it issued: away, or not there yet. Take out those that never come back.
    #[schema(value_type = Vec<String>)]
    pub edges_behind: Vec<EdgeId>,
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

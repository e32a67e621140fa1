//! Edges: who joined, and how far each has followed.

use portico_cert_store::{CellId, DomainId, EdgeId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /v1/edges/join-tokens`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenRequest {
    #[schema(value_type = String)]
    pub cell: CellId,
    /// Seconds until it expires; 60 to 86,400.
    #[serde(default = "join_token_ttl")]
    pub ttl_seconds: u32,
}

fn join_token_ttl() -> u32 {
    3600
}

/// Body of `PUT /v1/default-certificate`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DefaultCertificateRequest {
    /// A domain that is served and has a certificate.
    pub hostname: String,
}

/// What edges show for names that nobody brought, and to clients that name none. Whatever is asked for then is answered
/// 421.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DefaultCertificate {
    #[schema(value_type = String)]
    pub domain_id: DomainId,
    pub hostname: String,
    /// Where the domain has a certificate now. Edges of other cells refuse unknown names.
    #[schema(value_type = Vec<String>)]
    pub cells: Vec<CellId>,
}

/// Good for one edge, once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JoinToken {
    /// `pjt_<id>_<secret>_<fingerprint>`: the last part is the SHA-256 of the control plane's internal CA certificate
    /// in hex, by which the joining edge knows whom it talks to. Shown once.
    pub token: String,
    /// RFC 3339.
    pub expires_at: String,
    /// The address to join at.
    pub distribution: String,
}

/// An edge that has joined.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Edge {
    #[schema(value_type = String)]
    pub id: EdgeId,
    #[schema(value_type = String)]
    pub cell: CellId,
    pub connected: bool,
    pub build: String,
    /// "uring" or "epoll"
    pub io_backend: String,
    /// `<epoch>-<sequence>` that the edge has acknowledged.
    pub applied_generation: String,
    /// `<epoch>-<sequence>` that the control plane has published.
    pub published_generation: String,
    pub connections: u64,
    pub names: u64,
    /// Resources that the edge refused, with its reason.
    pub nacks: Vec<EdgeNack>,
    /// RFC 3339.
    pub joined_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_at: Option<String>,
    /// When its identity ends; it renews by itself before.
    pub identity_not_after: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EdgeNack {
    pub kind: String,
    pub id: String,
    pub version: u64,
    pub code: String,
    pub text: String,
}

//! Events and the audit trail.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something happened to a domain, a certificate or an edge.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Rising; `GET /v1/events?since=` goes on from it.
    pub sequence: u64,
    /// RFC 3339.
    pub at: String,
    /// `domain.proved`, `domain.failed`, `certificate.issued`, `certificate.renewal_failed`, `edge.joined`, ...
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    /// The id of what it is about.
    pub subject: String,
    pub text: String,
}

/// One write through the API: who, what, before and after.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    pub sequence: u64,
    /// RFC 3339.
    pub at: String,
    /// A token's id.
    pub actor: String,
    pub request_id: String,
    /// `domain.create`, `tenant.suspend`, ...
    pub action: String,
    pub subject: String,
    #[schema(value_type = Object)]
    pub before: serde_json::Value,
    #[schema(value_type = Object)]
    pub after: serde_json::Value,
}

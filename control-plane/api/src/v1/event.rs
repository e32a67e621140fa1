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

/// The answer of `GET /v1/audit/verify`: how far the trail's chain of hashes holds.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditVerdict {
    /// Entries that were found to follow on from each other.
    pub checked: u64,
    /// `SEQUENCE:HASH` of the last of them: give it as `from` to go on. Kept elsewhere, it shows later that no entry up to
    /// there was altered and that the end was not cut. Absent where `altered` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
    /// Nothing is left to follow.
    pub complete: bool,
    /// The first entry that was altered or is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub altered: Option<u64>,
    /// Entries up to this one are older than what is kept; 0: none.
    pub forgotten: u64,
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

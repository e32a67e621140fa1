//! API tokens.

use portico_cert_store::TenantId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /v1/tokens`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Absent: an operator's token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub tenant_id: Option<TenantId>,
    /// For the audit trail; at most 100 bytes.
    pub label: String,
}

/// A token with its secret, shown once: `ptk_<id>_<secret>`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NewToken {
    pub id: String,
    pub token: String,
}

/// A token without its secret.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Token {
    pub id: String,
    #[schema(value_type = Option<String>)]
    pub tenant_id: Option<TenantId>,
    pub label: String,
    /// RFC 3339.
    pub created_at: String,
}

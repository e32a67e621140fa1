//! What was served: per tenant, domain and hour, for invoices and for who is busiest.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What figures are summed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UsageBy {
    Tenant,
    Domain,
    /// UTC.
    Day,
    Hour,
}

/// Which rows come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UsageOrder {
    /// By what they are summed by.
    #[default]
    Key,
    /// Most requests first.
    Requests,
    /// Most bytes sent first.
    ResponseBytes,
}

/// A sum over all edges. Bytes are those of bodies and of tunnels (WebSocket): heads, TLS and retransmissions are not in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageRow {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    /// What that tenant is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_name: Option<String>,
    /// The name; the domain may be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain_id: Option<String>,
    /// When the day or hour begins, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    pub requests: u64,
    /// From clients.
    pub request_bytes: u64,
    /// To clients.
    pub response_bytes: u64,
    /// Of `response_bytes`: from the cache.
    pub cached_bytes: u64,
}

impl std::str::FromStr for UsageBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tenant" => Ok(Self::Tenant),
            "domain" => Ok(Self::Domain),
            "day" => Ok(Self::Day),
            "hour" => Ok(Self::Hour),
            other => Err(format!("`{other}` is not tenant, domain, day or hour")),
        }
    }
}

impl std::fmt::Display for UsageBy {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Tenant => "tenant",
            Self::Domain => "domain",
            Self::Day => "day",
            Self::Hour => "hour",
        })
    }
}

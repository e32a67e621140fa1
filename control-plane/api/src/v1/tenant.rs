//! Tenants: whose domains these are.

use portico_cert_store::{CellId, TenantId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ErrorPages, Suspension, TenantLimits};

/// A customer of the hosting provider.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Tenant {
    #[schema(value_type = String)]
    pub id: TenantId,
    #[serde(flatten)]
    pub spec: TenantSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspension: Option<Suspension>,
    pub domains: u64,
    /// Goes up with each change; send it back as `If-Match: "<revision>"`.
    pub revision: u64,
    /// RFC 3339.
    pub created_at: String,
}

/// What a caller decides about a tenant.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantSpec {
    /// Unique; `[a-z0-9-]{1,63}`.
    pub name: String,
    /// Whether the tenant's names may share certificates across registered domains.
    #[serde(default)]
    pub sharing: Sharing,
    /// The cells that serve the tenant's domains when a domain does not say; `["default"]` when absent or
    /// empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub cells: Vec<CellId>,
    /// Issuers of the configuration that its certificates come from, the best first: the next where one is away or may not
    /// issue. Absent: the fleet's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub issuers: Vec<String>,
    /// Whether names whose domain does not say have a backup certificate standing by, of another of the issuers and with another
    /// key. Absent: as the fleet has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_certificates: Option<bool>,
    /// Only an operator may set it: address ranges with ports that this tenant's origins may use although the
    /// egress guard refuses them to others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress_grants: Vec<EgressGrant>,
    /// Only an operator may set it.
    #[serde(default, skip_serializing_if = "TenantLimits::is_empty")]
    pub limits: TenantLimits,
    /// Only an operator may set it.
    #[serde(default, skip_serializing_if = "OrderBudget::is_empty")]
    pub order_budget: OrderBudget,
    /// The tenant's own token may change it too.
    #[serde(default, skip_serializing_if = "ErrorPages::is_empty")]
    pub error_pages: ErrorPages,
    /// The most domains that the tenant may have.
    #[serde(default = "domains_max_default")]
    pub domains_max: u32,
}

/// What of a CA's limits is the tenant's, for names that have no certificate yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderBudget {
    /// New orders in an hour at each issuer; 0: without bound; absent: `tenant_1h` of the issuer's limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_hour: Option<u32>,
    /// The same in a day; absent: `tenant_24h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_day: Option<u32>,
    /// Its new names may use what `priority_reserve` keeps from others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub priority: bool,
}

impl OrderBudget {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn domains_max_default() -> u32 {
    10_000
}

/// Which names may stand on one certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// Each name alone.
    Alone,
    /// Names below one registered domain.
    #[default]
    RegisteredDomain,
    /// Names of one tenant. They are linked in public Certificate Transparency logs for ever.
    Tenant,
}

/// An address range and the ports in it that a tenant may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EgressGrant {
    /// `127.0.0.1/32`, `10.1.0.0/16`, `fd00:1::/32`
    pub cidr: String,
    pub ports: Vec<u16>,
}

//! Many domains of many tenants, all or nothing.

use portico_cert_store::TenantId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{DomainBatchResult, DomainSpec, TenantSpec};

/// The most domains of one import: what one transaction does within seconds.
pub const IMPORT_ITEMS_MAX: usize = 5000;

/// Body of `POST /v1/imports`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// At most 5,000, with 1 to 5,000 domains together.
    pub tenants: Vec<ImportTenant>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportTenant {
    /// A tenant of that name is used as it is; where there is none, one is made.
    pub tenant: TenantSpec,
    pub domains: Vec<DomainSpec>,
}

/// What an import came to; one entry a tenant, in order.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImportAnswer {
    /// `false`: something is wrong, so no tenant and no domain was made.
    pub applied: bool,
    pub tenants: Vec<ImportedTenant>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImportedTenant {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub id: Option<TenantId>,
    pub created: bool,
    /// Why the tenant itself cannot be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<super::Problem>,
    /// One a domain, in order.
    pub results: Vec<DomainBatchResult>,
}

//! Removals that the control plane holds back, because a batch would take many names off the edges at once.

use portico_cert_store::{DomainId, TenantId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A domain that is to leave edges and still is on them, until an operator signs the removal off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeldRemoval {
    #[schema(value_type = String)]
    pub domain_id: DomainId,
    pub hostname: String,
    #[schema(value_type = String)]
    pub tenant_id: TenantId,
    #[serde(default)]
    pub tenant_name: String,
    /// RFC 3339.
    pub held_at: String,
}

/// Body of `POST /v1/removals/sign-off`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemovalSignOff {
    /// How many the operator saw held. With another number held by now the answer is 409, so that nothing goes that
    /// nobody has looked at. 0: nothing is held; for ten minutes edges then take a snapshot that leaves names out.
    pub held: u64,
}

/// The answer to a sign-off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemovalsSignedOff {
    /// 0 when none was held any more.
    pub released: u64,
}

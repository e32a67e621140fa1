//! What issuance is about to do, and what it would do under other settings: the answer of `GET /v1/plan`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The plan over all names whose proof stands. Nothing of it is kept: it is made anew from the store at each call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanReport {
    /// Names that are in a group.
    pub names: u64,
    /// Proved names that are in none: their pre-flight has not passed.
    pub waiting: u64,
    /// Claims that are not part of the plan: no proof of control stands.
    #[serde(default)]
    pub unproved: u64,
    /// Certificates of one cell; each further cell has as many again.
    pub groups: u64,
    /// Orders for names that have no certificate in some cell yet.
    pub orders_now: u64,
    /// Groups whose names change with their next renewal.
    pub changes_at_renewal: u64,
    pub limits: PlanLimits,
    /// When the CA's limits and ours let how many of the names that have no certificate have one; empty without such.
    /// Time for validation, and what others use of a domain's limit, come on top.
    pub eta: Vec<PlanEta>,
    /// What holds orders back, the longest first.
    pub held_by: Vec<PlanHold>,
    /// What would change it.
    pub levers: Vec<PlanLever>,
    /// Names that one lost key, one revocation or one dead name at an order touches at most.
    pub names_per_key_max: u64,
    pub tenants_per_key_max: u64,
    /// The server's first flight in TLS 1.3, estimated, of the largest group.
    pub handshake_bytes_max: u64,
    /// What QUIC lets a server send before the client's address is validated (RFC 9000 section 8.1).
    pub handshake_bytes_budget: u64,
    pub groups_over_budget: u64,
    /// What is to be in several cells, each with a key of its own, and whether the CA's limits bear it.
    #[serde(default)]
    pub cells: Vec<PlanCells>,
    /// The largest groups, as many as were asked for.
    pub largest: Vec<PlanGroup>,
    /// Why the name that was asked about is where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<String>,
}

/// What the plan was made under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanLimits {
    pub names_per_certificate_max: u64,
    /// New orders of the account in 3 hours; 0: no limit.
    pub orders_3h: u32,
    /// Of them, how many are left now.
    pub orders_left: u32,
    /// Certificates of one registered domain in 7 days; 0: no limit.
    pub registered_domain_7d: u32,
    /// New orders of one tenant in an hour; 0: no limit.
    pub tenant_1h: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanCells {
    pub cells: Vec<String>,
    /// Each with as many certificates as there are cells.
    pub groups: u64,
    pub names: u64,
    /// So many cells at most, by the limits that the plan was made under.
    pub cells_max: u64,
    pub is_borne: bool,
    /// The numbers in words.
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanEta {
    /// Of the names without a certificate.
    pub percent: u8,
    pub seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanHold {
    pub limit: String,
    pub orders: u64,
    pub names: u64,
    /// The last of them goes then.
    pub seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanLever {
    pub text: String,
    pub orders_now: u64,
    /// Until the last name.
    pub seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanGroup {
    /// Absent: a new group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// At most 4 of them.
    pub names: Vec<String>,
    pub names_count: u64,
    pub tenants: u64,
    /// Why these may be together.
    pub basis: String,
    pub handshake_bytes: u64,
}

//! What CAs, and the operator, still let a fleet order: the answer of `GET /v1/budget`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// As it stands now, for each issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BudgetReport {
    pub issuers: Vec<IssuerBudget>,
}

/// One account at one CA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IssuerBudget {
    pub issuer: String,
    /// Of an operator without a name: the account's, then the fullest. Else those of the name, or of a tenant's names, and
    /// the tenant's own.
    pub buckets: Vec<BudgetBucket>,
    /// Buckets of which something is spent or reserved, those that are not listed among them.
    pub buckets_in_use: u64,
    /// Orders that names without a certificate still need. Absent: asked for a name, by a tenant, or of an issuer that no new
    /// name goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orders_needed: Option<u64>,
    /// RFC 3339; when the last of them can go, at the earliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through_at: Option<String>,
}

/// One limit of one account, registered domain, set of names, name or tenant. A bucket refills evenly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BudgetBucket {
    pub limit: BudgetLimit,
    /// What it is about; absent: the account, or our address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Others spend of it too, of which we know only when the CA says so.
    pub shared_with_others: bool,
    /// So many in `period_seconds`.
    pub count: u32,
    pub period_seconds: u64,
    /// Spent and not refilled yet.
    pub used: u32,
    /// For orders under way.
    pub reserved: u32,
    /// What new names leave to names that are served.
    pub kept: u32,
    /// What new names may still spend now.
    pub free: u32,
    /// RFC 3339; when one more new name has room. Absent: now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<String>,
    /// Planned orders that need it and have not gone.
    pub waiting: u64,
    /// RFC 3339; when this limit lets the last of them go. Absent: none waits, or all have room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_through_at: Option<String>,
}

/// Which limit. There may be more of them in a later release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BudgetLimit {
    /// New orders of the account.
    Orders,
    /// Certificates of a registered domain.
    RegisteredDomain,
    /// Certificates of an exact set of names.
    ExactSet,
    /// Failed validations of a name.
    FailedAuthorizations,
    /// Failed validations of a name in a row.
    ConsecutiveFailures,
    /// New accounts of our address.
    NewAccounts,
    /// New orders of a tenant in an hour, ours.
    #[serde(rename = "tenant_1h")]
    TenantHour,
    /// New orders of a tenant in a day, ours.
    #[serde(rename = "tenant_24h")]
    TenantDay,
}

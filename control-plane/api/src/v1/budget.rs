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

/// Every limit that is kept account of. There may be more of them in a later release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BudgetLimit {
    Orders,
    RegisteredDomain,
    ExactSet,
    FailedAuthorizations,
    ConsecutiveFailures,
    NewAccounts,
    #[serde(rename = "tenant_1h")]
    TenantHour,
    #[serde(rename = "tenant_24h")]
    TenantDay,
}

impl BudgetLimit {
    pub const ALL: [Self; 8] = [
        Self::Orders,
        Self::RegisteredDomain,
        Self::ExactSet,
        Self::FailedAuthorizations,
        Self::ConsecutiveFailures,
        Self::NewAccounts,
        Self::TenantHour,
        Self::TenantDay,
    ];

    /// Its key in `[issuer.limits]`, in JSON and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Orders => "orders",
            Self::RegisteredDomain => "registered_domain",
            Self::ExactSet => "exact_set",
            Self::FailedAuthorizations => "failed_authorizations",
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::NewAccounts => "new_accounts",
            Self::TenantHour => "tenant_1h",
            Self::TenantDay => "tenant_24h",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|limit| limit.as_str() == text)
    }

    /// What is counted, for people; the figures are told beside it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Orders => "new orders of one account",
            Self::RegisteredDomain => "certificates of one registered domain",
            Self::ExactSet => "certificates of one exact set of names",
            Self::FailedAuthorizations => "failed validations of one name",
            Self::ConsecutiveFailures => "failed validations of one name in a row",
            Self::NewAccounts => "new accounts of one address",
            Self::TenantHour => "new orders of one tenant in an hour",
            Self::TenantDay => "new orders of one tenant in a day",
        }
    }

    /// Ours, not the CA's.
    pub fn is_of_tenant(self) -> bool {
        matches!(self, Self::TenantHour | Self::TenantDay)
    }

    /// Others spend of it, too.
    pub fn is_global(self) -> bool {
        matches!(self, Self::RegisteredDomain | Self::ExactSet | Self::NewAccounts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_has_one_word_in_the_configuration_the_store_and_the_api() {
        for limit in BudgetLimit::ALL {
            assert_eq!(serde_json::to_value(limit).unwrap(), limit.as_str());
            assert_eq!(BudgetLimit::parse(limit.as_str()), Some(limit));
        }
    }
}

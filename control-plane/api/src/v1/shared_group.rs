//! Certificates that tenants share with each other: offered by the operator, in force by each tenant's own consent.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a tenant consents to.
pub const SHARED_GROUP_MEANING: &str = "Names of this tenant stand on certificates with names of other tenants. Public certificate \
    transparency logs show that for ever; one lost key or one revocation takes the names of all of them. Each tenant sees the \
    other names on its certificates. Leaving takes effect with the next certificate.";

/// An operator's group across tenants, as it is offered to one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SharedGroup {
    /// `[a-z0-9-]{1,63}`
    pub group: String,
    /// RFC 3339.
    pub offered_at: String,
    /// Absent: nothing of this tenant is shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consent: Option<SharingConsent>,
    /// Tenants that have consented to this group, this one included.
    pub tenants: u64,
    /// What consent means, for people.
    pub meaning: String,
}

/// That a tenant agrees, on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SharingConsent {
    /// RFC 3339.
    pub at: String,
    /// The id of the token that said so.
    pub by: String,
    /// Where an operator says it for the tenant: how the tenant agreed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What an operator offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SharedGroupOffer {
    /// `[a-z0-9-]{1,63}`
    pub group: String,
}

/// A tenant's consent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SharingConsentRequest {
    /// The group that is offered: an answer to another offer is refused.
    pub group: String,
    /// Needed of an operator; at most 1,000 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

//! Certificates of other ACME clients, taken over with their keys.

use portico_cert_store::DomainId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Certificate, DomainSpec, Problem, SecretPem};

/// Most domains of one adoption: as many as a certificate has names.
pub const ADOPTION_DOMAINS_MAX: usize = 100;

/// Body of `POST /v1/tenants/{id}/adoptions`: a certificate that another ACME client has obtained, and the names to serve with it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Adoption {
    /// 1 to 100, whose names the certificate holds. One that the tenant has stays as it is, whatever stands here besides its name.
    pub domains: Vec<DomainSpec>,
    /// PEM: the site's own certificate, then the one that issued it, and so on; at most 64 KiB.
    pub chain_pem: String,
    pub key_pem: SecretPem,
    /// Why the operator may vouch for names that the tenant has not proved; kept with each proof.
    pub note: String,
    /// The configured issuer that issued it. Absent: none of them; what follows is then an order like any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// URL of the account at that issuer that ordered it, adopted before: it is the only one that may replace it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Answers what would be, and changes nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// The answer to an [`Adoption`].
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AdoptionAnswer {
    /// One for each domain, in order.
    pub domains: Vec<AdoptedDomain>,
    /// Those that are new, one for each cell that serves a name of it; with `unchanged` those that were there.
    pub certificates: Vec<Certificate>,
    /// The certificate served all of these names before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchanged: bool,
    /// URL of the account that is to replace the certificate. Absent: the issuer's own orders the next one, as any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
}

/// What became of one name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AdoptedDomain {
    /// As it was asked for.
    pub hostname: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub domain_id: Option<DomainId>,
    /// It was made now; else the tenant had it.
    #[serde(default)]
    pub created: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// It was served with the certificate before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchanged: bool,
    /// Why it was not adopted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

//! Certificates as the API shows them: never a key.

use portico_cert_store::{CellId, CredentialId, DomainId, GroupId, LineageId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One certificate, as it stands with a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CertificateSummary {
    #[schema(value_type = String)]
    pub credential_id: CredentialId,
    #[schema(value_type = String)]
    pub lineage_id: LineageId,
    #[schema(value_type = String)]
    pub group_id: GroupId,
    #[schema(value_type = String)]
    pub cell: CellId,
    pub issuer: String,
    /// RFC 3339.
    pub not_before: String,
    pub not_after: String,
    /// RFC 3339; when renewal is due.
    pub renew_at: String,
    pub names: Vec<String>,
    /// Lower-case hex.
    pub fingerprint_sha256: String,
    pub spki_sha256: String,
}

/// One certificate with its public chain.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Certificate {
    #[serde(flatten)]
    pub summary: CertificateSummary,
    pub state: CertificateState,
    /// PEM, leaf first.
    pub chain_pem: String,
    #[schema(value_type = Vec<String>)]
    pub domain_ids: Vec<DomainId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CertificateState {
    Live,
    /// A newer one of the lineage has taken its place.
    Replaced,
    Expired,
}

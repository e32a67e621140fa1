//! Requests for certificates that tenants order themselves, with keys that are made here.

use portico_cert_store::{Id, IdKind, KeyType, TenantId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Kind of [`CertificateRequestId`].
#[derive(Debug)]
pub enum CertificateRequestKind {}

impl IdKind for CertificateRequestKind {
    const PREFIX: &'static str = "csr";
    const NOUN: &'static str = "certificate request";
}

/// Names one request.
pub type CertificateRequestId = Id<CertificateRequestKind>;

/// Body of `POST /v1/tenants/{id}/certificate-requests`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateRequestSpec {
    /// What the certificate is to hold, 1 to 100: names of the tenant's domains, proved or not yet.
    pub hostnames: Vec<String>,
    /// `ecdsa-p256` (when absent), `ecdsa-p384`, `rsa2048`, `rsa3072`, `rsa4096`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub key_type: Option<KeyType>,
}

/// A request whose key waits here, sealed, for its certificate.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CertificateRequest {
    #[schema(value_type = String)]
    pub id: CertificateRequestId,
    #[schema(value_type = String)]
    pub tenant_id: TenantId,
    pub hostnames: Vec<String>,
    /// `ecdsa-p256`, `ecdsa-p384`, `rsa2048`, `rsa3072`, `rsa4096`
    #[schema(value_type = String)]
    pub key_type: KeyType,
    /// PKCS#10 in PEM, for any CA and any client; without a common name.
    pub csr_pem: String,
    /// SHA-256 of the public key (its SubjectPublicKeyInfo), lower-case hex; the certificate's has to be the same.
    pub spki_sha256: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339; the key is destroyed then, unless its certificate has come.
    pub expires_at: String,
}

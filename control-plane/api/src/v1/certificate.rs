//! Certificates as the API shows them, never with a key; and as a tenant brings them.

use std::fmt;

use portico_cert_store::{CellId, CredentialId, Custody, DomainId, GroupId, KeyType, LineageId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroize as _;

use super::BackupState;

/// Most hostnames of one upload.
pub const UPLOAD_HOSTNAMES_MAX: usize = 100;

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
    /// The issuer's configured name; of an uploaded one the name in the certificate.
    pub issuer: String,
    /// `cell`: issued here, with a key made here; `edge`: issued here, with a key that the one edge of the cell has made and keeps;
    /// `uploaded`: brought by the tenant, who alone can renew it.
    #[serde(default)]
    #[schema(value_type = String)]
    pub custody: Custody,
    /// Of a backup certificate: what it is to its names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupState>,
    /// Taken over from another ACME client with its key; the next one is issued here, with a key made here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
    /// `ecdsa-p256`, `ecdsa-p384`, `rsa2048`, `rsa3072`, `rsa4096`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub key_type: Option<KeyType>,
    /// RFC 3339.
    pub not_before: String,
    pub not_after: String,
    /// RFC 3339; when renewal is due. Of an uploaded one: from when on an event and a condition ask for the next.
    pub renew_at: String,
    /// Where that time comes from; absent of an uploaded one, and where the control plane is older.
    #[serde(default)]
    pub renewal: Option<RenewalSuggestion>,
    pub names: Vec<String>,
    /// Lower-case hex.
    pub fingerprint_sha256: String,
    pub spki_sha256: String,
}

/// What a certificate's renewal goes by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RenewalSuggestion {
    pub source: RenewalSource,
    /// RFC 3339; the window that the CA suggests (RFC 9773). One in the past: it is to be replaced at once.
    pub window_start: Option<String>,
    pub window_end: Option<String>,
    /// A page of the CA that says why the window is where it is.
    pub explanation_url: Option<String>,
    /// RFC 3339; the CA's last answer.
    pub asked_at: Option<String>,
    /// Why there is no window, or why the last question to the CA failed.
    pub note: Option<String>,
}

/// Who says when a certificate is to be renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RenewalSource {
    /// The CA, by its renewal information.
    Ari,
    /// The configured share of the lifetime.
    Share,
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

/// Body of `POST /v1/tenants/{id}/certificates`: a certificate of the tenant's own for some of its domains. RSA and ECDSA
/// stand side by side; another one of the same kind takes the place of a hostname's present one.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateUpload {
    /// The domains that it is for, 1 to 100: proved ones of the tenant, whose names it holds, by a wildcard or itself.
    pub hostnames: Vec<String>,
    /// PEM: the site's own certificate, then the one that issued it, and so on; at most 64 KiB. A root is left out.
    pub chain_pem: String,
    /// Absent where the key is here already: made for this certificate (`POST /v1/tenants/{id}/certificate-requests`), or in
    /// service with the tenant's certificate before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_pem: Option<SecretPem>,
    /// Its chain leads to an authority of the tenant's own, not to a root that clients trust.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub private_ca: bool,
    /// Also where the present one is valid for longer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace_longer: bool,
}

/// A private key in PEM (PKCS#8, SEC1 or PKCS#1), not encrypted, at most 16 KiB. It is sealed for the cells that serve the
/// hostnames, and never shown again.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, format = Password)]
pub struct SecretPem(String);

impl SecretPem {
    pub fn new(pem: String) -> Self {
        Self(pem)
    }

    /// The key in clear: for a reader of keys, never for a log or a file.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Drop for SecretPem {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SecretPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretPem")
    }
}

/// The answer to an upload: one certificate for each cell that serves a hostname of it, each with the key sealed for that cell.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CertificateUploadAnswer {
    pub certificates: Vec<Certificate>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_no_text_but_that_of_the_body() {
        let upload = CertificateUpload {
            hostnames: vec!["a.example".to_owned()],
            chain_pem: "chain".to_owned(),
            key_pem: Some(SecretPem::new("secret".to_owned())),
            private_ca: false,
            replace_longer: false,
        };
        assert!(!format!("{upload:?}").contains("secret"));
        let body = serde_json::to_value(&upload).expect("JSON");
        assert_eq!(body["key_pem"], "secret");
    }
}

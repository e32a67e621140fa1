//! The CAs of the configuration, how they stand, and our accounts there.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::SecretPem;

/// One issuer as it stands now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Issuer {
    pub name: String,
    /// URL of its ACME directory.
    pub directory: String,
    /// Whether tenants that name no issuer get certificates of this one.
    pub by_default: bool,
    pub state: IssuerState,
    /// RFC 3339; since when its orders fail. Absent: they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<String>,
    /// RFC 3339; when one order tries it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_at: Option<String>,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Certificates in use.
    pub certificates: u64,
    /// Of them: their time of renewal has come.
    pub due: u64,
    /// Orders that are not over.
    pub orders: u64,
    pub accounts: Vec<IssuerAccount>,
}

/// Whether orders go there. There may be more of them in a later release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IssuerState {
    Well,
    /// The last orders failed; not for long enough to leave it.
    Failing,
    /// New names, and certificates that end soon, go to the next issuer.
    Away,
    /// One order tries it.
    Trial,
}

/// An ACME account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IssuerAccount {
    /// At the CA. Absent: it is not registered yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    pub origin: AccountOrigin,
    /// The CA knows it, as far as we know.
    pub registered: bool,
    /// RFC 3339.
    pub created_at: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AccountOrigin {
    /// New orders go there.
    Made,
    /// It replaces what it ordered elsewhere before.
    Adopted,
}

/// An account that another ACME client has used so far.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdoptAccount {
    /// Its private key, PEM: PKCS#8, SEC 1 or PKCS#1; P-256, or RSA with `change_key`.
    pub key_pem: SecretPem,
    /// The account of an RSA key gets a new P-256 key (RFC 8555 section 7.3.5), which is made here and stays here. Whoever has used
    /// the old key is locked out of the account from then on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub change_key: bool,
}

//! Keys that are replaced before their time: the calls below `/v1/rekeys`.

use portico_cert_store::{CellId, CredentialId, EdgeId, Id, IdKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Kind of [`RekeyId`].
#[derive(Debug)]
pub enum RekeyKind {}

impl IdKind for RekeyKind {
    const PREFIX: &'static str = "rky";
    const NOUN: &'static str = "rekey";
}

/// Names one replacement of keys.
pub type RekeyId = Id<RekeyKind>;

/// The longest note, bytes.
pub const REKEY_NOTE_BYTES_MAX: usize = 500;

/// Body of `POST /v1/rekeys`: exactly one of `edge`, `cell`, `certificate` and `spki_sha256`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RekeyRequest {
    /// All keys that this edge could read: those of its cell. Also of an edge that was taken out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub edge: Option<EdgeId>,
    /// All keys of this cell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub cell: Option<CellId>,
    /// The key of this certificate; an uploaded one, or one that was replaced, can only be compromised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub certificate: Option<CredentialId>,
    /// The public key with this SHA-256 (of its SubjectPublicKeyInfo, hex), whosever it is; it can only be compromised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spki_sha256: Option<String>,
    /// Others may have the keys: new ones are ordered before all else, the certificates are revoked when the edges have the new
    /// ones, after 24 hours at the latest, and the keys are never accepted again.
    #[serde(default)]
    pub compromised: bool,
    /// Why, for those who look at it later; at most 500 bytes.
    #[serde(default)]
    pub note: String,
    /// Nothing is done; the answer says what would be.
    #[serde(default)]
    pub dry_run: bool,
}

/// What is replaced by one. There may be more of them in a later release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RekeyScope {
    Edge,
    Cell,
    Certificate,
    Key,
}

/// Keys that are replaced, and how far that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rekey {
    /// Absent: a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub id: Option<RekeyId>,
    pub scope: RekeyScope,
    /// The edge, cell, certificate or public key (SHA-256, hex).
    pub subject: String,
    /// Of an edge or a cell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub cell: Option<CellId>,
    /// Others may have the keys.
    #[serde(default)]
    pub compromised: bool,
    pub note: String,
    pub requested_by: String,
    /// RFC 3339.
    pub requested_at: String,
    /// RFC 3339; absent: it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// RFC 3339; by when all certificates are revoked, replaced or not. Absent: they are not revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_by: Option<String>,
    /// Certificates whose key is replaced.
    pub certificates: u64,
    /// Of them: another took its place.
    pub replaced: u64,
    /// Of them: all edges that can be reached have that one, and the old key was forgotten.
    pub retired: u64,
    /// Of them: revoked at their CA.
    #[serde(default)]
    pub revoked: u64,
    /// Keys that tenants brought; only they can bring others, and have been told.
    pub uploaded: u64,
    pub forecast: RekeyForecast,
    /// Edges that can be reached and do not have yet what took the place of others.
    pub behind: Vec<String>,
    /// Orders, and revocations, that failed last; at most 20 of each.
    pub troubles: Vec<RekeyTrouble>,
}

/// When the CA's limits let the orders through that are still needed, by the ledger. Time for validation comes on top.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RekeyForecast {
    pub orders: u64,
    /// Of them, such as can go now.
    pub at_once: u64,
    /// RFC 3339; when the last one can go. Absent: now, or none is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_at: Option<String>,
    /// What holds the others, the longest first.
    pub held_by: Vec<RekeyHold>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RekeyHold {
    pub limit: String,
    pub orders: u64,
    /// RFC 3339; when the last of them can go.
    pub last_at: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RekeyTrouble {
    #[schema(value_type = String)]
    pub certificate: CredentialId,
    /// At most 4 of them.
    pub names: Vec<String>,
    pub text: String,
}

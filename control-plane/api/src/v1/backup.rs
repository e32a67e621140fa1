//! Backup certificates: of another issuer than what serves and with another key, on the edges before they are needed.

use portico_cert_store::{CellId, EdgeId, GroupId, TenantId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The backup of one certificate in one cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Backup {
    /// The group that it stands by for.
    #[schema(value_type = String)]
    pub group_id: GroupId,
    /// Absent: the operator's group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub tenant_id: Option<TenantId>,
    #[schema(value_type = String)]
    pub cell_id: CellId,
    pub state: BackupState,
    pub hostnames: Vec<String>,
    /// Who issued what serves. Absent: nothing serves there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving_issuer: Option<String>,
    /// Who issued the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_at: Option<String>,
    /// Why its last order has not led to a certificate, or why a hostname is not on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a backup is to its names. There may be more in a later release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackupState {
    /// It has not been issued yet.
    Wanted,
    /// On the edges, and shown to nobody.
    Staged,
    /// Switched to: it is shown as long as it is valid.
    Shown,
}

/// Which backups: exactly one of the fields is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupScope {
    /// That of one group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub group: Option<GroupId>,
    /// Those of a tenant's own groups; a group that it shares with others is named by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub tenant: Option<TenantId>,
    /// Those of all that this issuer has issued and that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
}

/// What a switch did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupSwitch {
    /// Certificates, one for each group and cell.
    pub switched: u64,
    /// Those that were so before.
    pub unchanged: u64,
    /// Hostnames of the scope, counted in each cell, that are shown what they were before, for no backup has them; at most 100
    /// of them are in `without`.
    pub without_backup: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<WithoutBackup>,
    /// Edges that show it.
    #[schema(value_type = Vec<String>)]
    pub applied: Vec<EdgeId>,
    /// Edges that were away or have not said so within 15 s: they follow as soon as they are told.
    #[schema(value_type = Vec<String>)]
    pub behind: Vec<EdgeId>,
}

/// Hostnames of one certificate that no backup has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WithoutBackup {
    #[schema(value_type = String)]
    pub group_id: GroupId,
    #[schema(value_type = String)]
    pub cell_id: CellId,
    pub hostnames: Vec<String>,
}

/// What would keep edges from showing backups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupDrill {
    /// There are backups, for every hostname of the scope that is to have one, and every edge would show them to whoever asks.
    pub passed: bool,
    /// Backups that were tried, one for each group and cell.
    pub certificates: u64,
    /// Hostnames that were tried, counted in each cell.
    pub names: u64,
    /// Hostnames of the scope that are to have a backup and have none, counted in each cell; at most 100 of them are in `without`.
    pub without_backup: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<WithoutBackup>,
    pub edges: Vec<DrilledEdge>,
    /// Send it back for the rest of a large scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// What one edge has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrilledEdge {
    #[schema(value_type = String)]
    pub edge_id: EdgeId,
    #[schema(value_type = String)]
    pub cell_id: CellId,
    pub passed: bool,
    /// Why it was not tried, or not to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Names that it would not serve; at most 100 of them are in `faults`.
    pub faulty: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<BackupFault>,
}

/// Why a name would not be served by its backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupFault {
    #[schema(value_type = String)]
    pub group_id: GroupId,
    pub hostname: String,
    /// CamelCase, stable.
    pub code: String,
    pub text: String,
}

/// Which backups a drill is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupDrillRequest {
    /// Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<BackupScope>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

//! How renewals stand: the answer of `GET /v1/renewals`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Figures over all certificates in use, as they stand now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RenewalsReport {
    pub live: u64,
    /// Of `live`: renewed when their CA suggests; the others by share of the lifetime.
    pub by_ari: u64,
    /// Of `live`: their time of renewal has come.
    pub due: u64,
    /// Of `due`: their CA's window is over, as before a revocation.
    pub overdue: u64,
    /// Of `due`: a quarter of the time between renewal and end has passed.
    pub late: u64,
    /// Of `live`: ended.
    pub expired: u64,
    /// RFC 3339; when the first of `due` has to be replaced by.
    pub first_deadline: Option<String>,
    /// Orders under way that keep names alive.
    pub orders: u64,
    /// Certificates replaced in the last 15 minutes.
    pub replaced_15min: u64,
    /// RFC 3339; when all that is due now is replaced at this pace; absent: nothing is due, or nothing was replaced.
    pub done_at: Option<String>,
}

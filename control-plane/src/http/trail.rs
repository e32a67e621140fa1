//! `/v1/events` and `/v1/audit`: what happened, and who wrote what.

use axum::extract::State;
use axum::http::StatusCode;
use portico_api::v1::{AuditEntry, AuditVerdict, Event, Page};
use serde::Deserialize;

use super::call::{Call, OperatorCall};
use super::fault::{Answered, Fault};
use super::list::limit;
use super::query::Query;
use crate::app::App;
use crate::store::audit::{self, Followed, Mark};
use crate::store::event;

/// Entries that one call follows: about a tenth of a second.
const VERIFIED_MAX: u32 = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SinceQuery {
    #[serde(default)]
    since: u64,
    limit: Option<u32>,
}

/// Events after `since`, oldest first; a tenant sees its own. Go on from the last one's `sequence`.
#[utoipa::path(get, path = "/v1/events", tag = "trail",
    params(("since" = Option<u64>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = Page<Event>)))]
pub(super) async fn events(
    State(app): State<App>,
    call: Call,
    Query(query): Query<SinceQuery>,
) -> Answered<axum::Json<Page<Event>>> {
    let limit = limit(query.limit)?;
    let mut read = app.parts.store.read().await?;
    let items = event::list(&mut read, query.since.min(i64::MAX as u64), call.caller.tenant, limit).await?;
    let full = items.len() == limit as usize;
    let next_cursor = items.last().filter(|_| full).map(|event| event.sequence.to_string());
    Ok(axum::Json(Page { items, next_cursor }))
}

/// The audit trail after `since`, oldest first.
#[utoipa::path(get, path = "/v1/audit", tag = "trail",
    params(("since" = Option<u64>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = Page<AuditEntry>)))]
pub(super) async fn audit(
    State(app): State<App>,
    _call: OperatorCall,
    Query(query): Query<SinceQuery>,
) -> Answered<axum::Json<Page<AuditEntry>>> {
    let limit = limit(query.limit)?;
    let mut read = app.parts.store.read().await?;
    let (items, is_end) = audit::list(&mut read, query.since.min(i64::MAX as u64), limit).await?;
    let next_cursor = items.last().filter(|_| !is_end).map(|entry| entry.sequence.to_string());
    Ok(axum::Json(Page { items, next_cursor }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyQuery {
    from: Option<String>,
}

/// Follows the audit trail's chain of hashes over up to 10,000 entries: from its beginning, or on from `from`, the `mark`
/// of an earlier answer. An entry that was altered, removed, or is not the one that `from` names is `altered`.
#[utoipa::path(get, path = "/v1/audit/verify", tag = "trail",
    params(("from" = Option<String>, Query, description = "`SEQUENCE:HASH`")),
    responses((status = 200, body = AuditVerdict), (status = 400), (status = 410)))]
pub(super) async fn verify(
    State(app): State<App>,
    _call: OperatorCall,
    Query(query): Query<VerifyQuery>,
) -> Answered<axum::Json<AuditVerdict>> {
    let read_mark = |text: &str| {
        text.parse::<Mark>().map_err(|()| {
            Fault::bad_request("from_invalid", "from must be the mark of an earlier answer, SEQUENCE:HASH")
        })
    };
    let from = query.from.as_deref().map(read_mark).transpose()?;
    let mut read = app.parts.store.read().await?;
    let forgotten = audit::forgotten(&mut read).await?.sequence.unsigned_abs();
    let verdict = match audit::follow(&mut read, from, VERIFIED_MAX).await? {
        Followed::Holds { to, checked, is_end } => {
            AuditVerdict { checked, mark: Some(to.to_string()), complete: is_end, altered: None, forgotten }
        }
        Followed::Altered { sequence, checked } => {
            AuditVerdict { checked, mark: None, complete: true, altered: Some(sequence), forgotten }
        }
        Followed::Forgotten => {
            let detail = format!(
                "entries up to {forgotten} are older than [audit] keep_days and were forgotten; leave `from` out"
            );
            return Err(Fault::new(StatusCode::GONE, "audit_forgotten", detail));
        }
    };
    Ok(axum::Json(verdict))
}

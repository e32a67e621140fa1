//! `/v1/events` and `/v1/audit`: what happened, and who wrote what.

use axum::extract::State;
use portico_api::v1::{AuditEntry, Event, Page};
use serde::Deserialize;

use super::call::{Call, OperatorCall};
use super::fault::Answered;
use super::list::limit;
use super::query::Query;
use crate::app::App;
use crate::store::{audit, event};

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
    let items = audit::list(&mut read, query.since.min(i64::MAX as u64), limit).await?;
    let full = items.len() == limit as usize;
    let next_cursor = items.last().filter(|_| full).map(|entry| entry.sequence.to_string());
    Ok(axum::Json(Page { items, next_cursor }))
}

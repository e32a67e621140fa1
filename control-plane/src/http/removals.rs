//! `/v1/removals`: names that are held on the edges because too many would have left at once.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{HeldRemoval, Page, RemovalSignOff, RemovalsSignedOff};
use serde::Deserialize;

use super::call::OperatorCall;
use super::fault::{Answered, Fault};
use super::json_body::JsonBody;
use super::list::{cursor_after, limit, read_cursor};
use super::query::Query;
use super::write::{Answer, Begun, Write};
use crate::app::App;
use crate::clock::rfc3339;
use crate::store::publication::{self, WaitingRemoval};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    cursor: Option<String>,
    limit: Option<u32>,
}

/// Lists the removals that wait for an operator's word; their names are still served.
#[utoipa::path(get, path = "/v1/removals", tag = "removals",
    params(("cursor" = Option<String>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = Page<HeldRemoval>)))]
pub(super) async fn list(
    State(app): State<App>,
    _call: OperatorCall,
    Query(query): Query<ListQuery>,
) -> Answered<axum::Json<Page<HeldRemoval>>> {
    let (limit, after) = (limit(query.limit)?, read_cursor(query.cursor.as_deref())?);
    let mut read = app.parts.store.read().await?;
    let mut rows = publication::waiting_removals(&mut read, &after, limit + 1).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows.last().filter(|_| more).map(|row| cursor_after(&row.domain.to_string()));
    Ok(axum::Json(Page { items: rows.into_iter().map(shown).collect(), next_cursor }))
}

/// Lets all held removals go, and for ten minutes lets a snapshot leave names out that an edge still has. The same
/// again, with none held any more, is 200 with 0 released.
#[utoipa::path(post, path = "/v1/removals/sign-off", tag = "removals", request_body = RemovalSignOff,
    responses((status = 200, body = RemovalsSignedOff), (status = 409), (status = 422)))]
pub(super) async fn sign_off(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    body: JsonBody<RemovalSignOff>,
) -> Answered<Response> {
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let (seen, held) = (body.value.held, publication::count_waiting_removals(&mut write.tx).await?);
    if held != 0 && held != seen {
        return Err(Fault::conflict(
            "removals_changed",
            format!("{held} removals are held now, not {seen}; look at GET /v1/removals again, then repeat"),
        ));
    }
    let actor = write.actor().to_owned();
    let released = app.fleet.sign_off_removals_in(&mut write.tx, &actor).await?;
    write.audit("removals.sign_off", "fleet", &held, &released).await?;
    let response = write.finish(Answer::json(StatusCode::OK, &RemovalsSignedOff { released })).await?;
    app.fleet.removals_signed_off();
    Ok(response)
}

pub(super) fn shown(row: WaitingRemoval) -> HeldRemoval {
    HeldRemoval {
        domain_id: row.domain,
        hostname: row.hostname,
        tenant_id: row.tenant,
        tenant_name: row.tenant_name,
        held_at: rfc3339(row.held_at_ms),
    }
}

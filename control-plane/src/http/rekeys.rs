//! `/v1/rekeys`: keys that are replaced before their time.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{Page, Rekey, RekeyId, RekeyRequest};
use serde::Deserialize;

use super::call::OperatorCall;
use super::fault::{Answered, Fault};
use super::json_body::JsonBody;
use super::list::{cursor_after, limit, read_cursor};
use super::query::Query;
use super::write::{Answer, Begun, Write};
use crate::app::{App, rekey as app_rekey};
use crate::clock::rfc3339;
use crate::store::rekey;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    cursor: Option<String>,
    limit: Option<u32>,
}

/// Replaces the key of a certificate, or all keys that an edge or the edges of a cell can read, by new ones: the orders go
/// through the CA's limits as all do, each certificate serves until every edge that can be reached has its successor, and then
/// its key is forgotten. Of an edge or a cell the cell's own data key is replaced too. With `compromised` the orders go before
/// all others, the certificates are revoked with reason keyCompromise as soon as the edges have the new ones, 24 hours after the
/// report at the latest, and no key among them is ever accepted again, of uploads neither. 200 when one of the same goes on already,
/// and for a dry run, which says what would be done and when the limits would let it through.
#[utoipa::path(post, path = "/v1/rekeys", tag = "rekeys", request_body = RekeyRequest,
    responses((status = 201, body = Rekey), (status = 200, body = Rekey), (status = 404), (status = 409), (status = 422)))]
pub(super) async fn create(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    body: JsonBody<RekeyRequest>,
) -> Answered<Response> {
    let request = body.value;
    // What takes long is found before the writer's turn; a refusal waits for it, for the same request may have been answered.
    let expected = app_rekey::expected(&app, &request).await;
    if request.dry_run {
        return Ok(Answer::json(StatusCode::OK, &expected?).into_response());
    }
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let expected = expected?;
    let begun = app_rekey::begin(&app, &mut write, &request, &expected).await?;
    let row = begun.row;
    if begun.is_new {
        write.audit("rekey.create", &row.id.to_string(), &(), &request).await?;
    }
    let shown = Rekey {
        id: Some(row.id),
        requested_at: rfc3339(row.requested_at),
        revoked_by: row.revoked_by().map(rfc3339),
        note: row.note,
        requested_by: row.requested_by,
        ..expected
    };
    let status = if begun.is_new { StatusCode::CREATED } else { StatusCode::OK };
    let response = write.finish(Answer::json(status, &shown)).await?;
    if begun.begins_epoch {
        app.fleet.cell_key_changed();
    }
    Ok(response)
}

/// Lists what was replaced and what goes on, the newest first.
#[utoipa::path(get, path = "/v1/rekeys", tag = "rekeys",
    params(("cursor" = Option<String>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = Page<Rekey>)))]
pub(super) async fn list(
    State(app): State<App>,
    _call: OperatorCall,
    Query(query): Query<ListQuery>,
) -> Answered<axum::Json<Page<Rekey>>> {
    let limit = limit(query.limit)?;
    let before = read_cursor(query.cursor.as_deref())?;
    let mut read = app.parts.store.read().await?;
    let before = Some(before.as_str()).filter(|before| !before.is_empty());
    let mut rows = rekey::list(&mut read, before, limit + 1).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows.last().filter(|_| more).map(|row| cursor_after(&row.id.to_string()));
    let mut items = Vec::with_capacity(rows.len());
    for row in &rows {
        items.push(app_rekey::shown(&app, &mut read, row).await?);
    }
    Ok(axum::Json(Page { items, next_cursor }))
}

/// Shows one: how far it is, when the CA's limits let the rest through, which edges are behind and which orders failed.
#[utoipa::path(get, path = "/v1/rekeys/{id}", tag = "rekeys", params(("id" = String, Path)),
    responses((status = 200, body = Rekey), (status = 404)))]
pub(super) async fn show(
    State(app): State<App>,
    _call: OperatorCall,
    Path(id): Path<String>,
) -> Answered<axum::Json<Rekey>> {
    let id: RekeyId = id.parse().map_err(|_| Fault::not_found("rekey"))?;
    let mut read = app.parts.store.read().await?;
    let row = rekey::find(&mut read, id).await?.ok_or_else(|| Fault::not_found("rekey"))?;
    Ok(axum::Json(app_rekey::shown(&app, &mut read, &row).await?))
}

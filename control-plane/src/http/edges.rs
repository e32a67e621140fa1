//! `/v1/edges`

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{Edge, JoinToken, JoinTokenRequest, Page};
use portico_cert_store::EdgeId;

use super::call::OperatorCall;
use super::fault::{Answered, Fault};
use super::json_body::JsonBody;
use super::write::{Answer, Begun, Write};
use crate::app::App;

/// Makes a one-time token with which an edge joins a cell.
#[utoipa::path(post, path = "/v1/edges/join-tokens", tag = "edges", request_body = JoinTokenRequest,
    responses((status = 201, body = JoinToken), (status = 422)))]
pub(super) async fn create_join_token(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    body: JsonBody<JoinTokenRequest>,
) -> Answered<Response> {
    let JoinTokenRequest { cell, ttl_seconds } = body.value;
    // Made in its own transaction by the distribution; the secret is shown once and not kept for a replay.
    let made = app.fleet.create_join_token(&cell, ttl_seconds).await?;
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    write.audit("edge.create_join_token", cell.as_str(), &(), &ttl_seconds).await?;
    write.commit().await?;
    Ok(Answer::json(StatusCode::CREATED, &made).into_response())
}

/// Lists the edges with what each has applied.
#[utoipa::path(get, path = "/v1/edges", tag = "edges", responses((status = 200, body = Page<Edge>)))]
pub(super) async fn list(State(app): State<App>, _call: OperatorCall) -> Answered<axum::Json<Page<Edge>>> {
    Ok(axum::Json(Page { items: app.fleet.edges().await?, next_cursor: None }))
}

/// Shows an edge.
#[utoipa::path(get, path = "/v1/edges/{id}", tag = "edges", params(("id" = String, Path)),
    responses((status = 200, body = Edge), (status = 404)))]
pub(super) async fn show(
    State(app): State<App>,
    _call: OperatorCall,
    Path(id): Path<String>,
) -> Answered<axum::Json<Edge>> {
    let id: EdgeId = id.parse().map_err(|_| missing())?;
    Ok(axum::Json(app.fleet.edge(id).await?.ok_or_else(missing)?))
}

/// Takes an edge out of the fleet: its identity counts no longer and its cell gets a new key. 204 also when it is gone.
#[utoipa::path(delete, path = "/v1/edges/{id}", tag = "edges", params(("id" = String, Path)),
    responses((status = 204), (status = 404)))]
pub(super) async fn delete(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    Path(id): Path<String>,
) -> Answered<Response> {
    let id: EdgeId = id.parse().map_err(|_| missing())?;
    let removed = app.fleet.remove_edge(id).await?;
    let mut write = match Write::begin(&app, &call, &[]).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    if removed {
        write.audit("edge.delete", &id.to_string(), &(), &()).await?;
    }
    write.finish(Answer::no_content()).await
}

fn missing() -> Fault {
    Fault::not_found("edge")
}

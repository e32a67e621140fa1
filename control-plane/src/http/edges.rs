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

/// Makes a one-time token with which an edge joins a cell. It is shown this once; the same call again under its
/// `Idempotency-Key` makes no second one and is 409 `secret_shown_once`.
#[utoipa::path(post, path = "/v1/edges/join-tokens", tag = "edges", request_body = JoinTokenRequest,
    responses((status = 201, body = JoinToken), (status = 409), (status = 422)))]
pub(super) async fn create_join_token(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    body: JsonBody<JoinTokenRequest>,
) -> Answered<Response> {
    let JoinTokenRequest { cell, ttl_seconds } = body.value;
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let made = app.fleet.create_join_token_in(&mut write.tx, &cell, ttl_seconds).await?;
    write.audit("edge.create_join_token", cell.as_str(), &(), &ttl_seconds).await?;
    let repeated = format!(
        "a join token for cell {cell} was made by this request before and shown then only; if you do not have it, make \
         another with a new Idempotency-Key: an unused one ends by itself, that one at {}",
        made.expires_at
    );
    write.finish_shown_once(Answer::json(StatusCode::CREATED, &made), &repeated).await
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
    let mut write = match Write::begin(&app, &call, &[]).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let removed = app.fleet.remove_edge_in(&mut write.tx, id).await?;
    if removed {
        write.audit("edge.delete", &id.to_string(), &(), &()).await?;
    }
    let response = write.finish(Answer::no_content()).await?;
    if removed {
        app.fleet.edge_removed(id);
    }
    Ok(response)
}

fn missing() -> Fault {
    Fault::not_found("edge")
}

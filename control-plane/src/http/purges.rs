//! `/v1/tenants/{id}/purges`

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{Purge, PurgeRequest};

use super::call::Call;
use super::fault::{Answered, Fault};
use super::json_body::JsonBody;
use super::tenants::{missing, visible};
use super::write::{Answer, Begun, Write};
use crate::app::{App, spec};
use crate::store::{purge, tenant};

/// Makes the edges forget answers of one tenant that they keep. It is durable before it is told; edges that are away are told
/// when they are back.
#[utoipa::path(post, path = "/v1/tenants/{id}/purges", tag = "tenants", params(("id" = String, Path)),
    request_body = PurgeRequest, responses((status = 200, body = Purge), (status = 404), (status = 422)))]
pub(super) async fn create(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    body: JsonBody<PurgeRequest>,
) -> Answered<Response> {
    let id = visible(&call, &id)?;
    let request = body.value;
    let errors = spec::purge(&request);
    if !errors.is_empty() {
        return Err(Fault::fields(errors));
    }
    let turn = app.fleet.purge_turn().await;
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    tenant::find(&mut write.tx, id).await?.ok_or_else(missing)?;
    let now_ms = write.now_ms;
    let number = purge::append(&mut write.tx, id, &request, now_ms).await?;
    write.audit("cache.purge", &id.to_string(), &(), &request).await?;
    write.commit().await?;
    let done = app.fleet.purge(turn, number, id, &request).await;
    Ok(Answer::json(StatusCode::OK, &done).into_response())
}

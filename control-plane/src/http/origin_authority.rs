//! `/v1/tenants/{id}/origin-authority`

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::OriginAuthority;

use super::call::Call;
use super::fault::{Answered, Fault};
use super::json_body::RawBody;
use super::tenants::{missing, visible};
use super::write::{Answer, Begun, Write};
use crate::app::{App, origin_identity};
use crate::store::{origin_identity as stored, tenant};

/// Makes the authority that a tenant's origins know the edges by; 200 when it is there. Its certificate is to be trusted by
/// origins that ask for client certificates; routes then say `tls.client_certificate`. No key is ever shown.
#[utoipa::path(post, path = "/v1/tenants/{id}/origin-authority", tag = "tenants", params(("id" = String, Path)),
    responses((status = 201, body = OriginAuthority), (status = 200, body = OriginAuthority), (status = 404)))]
pub(super) async fn create(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    body: RawBody,
) -> Answered<Response> {
    let id = visible(&call, &id)?;
    let mut write = match Write::begin(&app, &call, &body.0).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    tenant::find(&mut write.tx, id).await?.ok_or_else(missing)?;
    if let Some(row) = stored::authority(&mut write.tx, id).await? {
        let shown = origin_identity::show(&mut write.tx, &row).await?;
        return write.finish(Answer::json(StatusCode::OK, &shown)).await;
    }
    let now_ms = write.now_ms;
    let row = origin_identity::make_authority(&mut write.tx, &app.parts.sealer, id, now_ms).await?;
    let shown = origin_identity::show(&mut write.tx, &row).await?;
    write.audit("tenant.create_origin_authority", &id.to_string(), &(), &shown.certificate_sha256).await?;
    let text = "an authority for its origins was made";
    write.event("tenant.origin_authority_created", Some(id), &id.to_string(), text).await?;
    write.finish(Answer::json(StatusCode::CREATED, &shown)).await
}

/// Shows a tenant's origin authority, with what the edges of each cell show at present.
#[utoipa::path(get, path = "/v1/tenants/{id}/origin-authority", tag = "tenants", params(("id" = String, Path)),
    responses((status = 200, body = OriginAuthority), (status = 404)))]
pub(super) async fn show(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
) -> Answered<axum::Json<OriginAuthority>> {
    let id = visible(&call, &id)?;
    let mut read = app.parts.store.read().await?;
    let row = stored::authority(&mut read, id).await?.ok_or_else(none_yet)?;
    Ok(axum::Json(origin_identity::show(&mut read, &row).await?))
}

fn none_yet() -> Fault {
    Fault::new(
        StatusCode::NOT_FOUND,
        "no_origin_authority",
        "the tenant has no origin authority; POST to the same path makes it",
    )
}

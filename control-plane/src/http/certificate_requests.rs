//! `/v1/tenants/{id}/certificate-requests`, `/v1/certificate-requests`

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{CertificateRequest, CertificateRequestId, CertificateRequestSpec, Page};
use serde::Deserialize;

use super::call::Call;
use super::fault::{Answered, Fault};
use super::json_body::JsonBody;
use super::list::{cursor_after, limit, read_cursor};
use super::query::Query;
use super::tenants::{self, visible};
use super::write::{Answer, Begun, Write, paced};
use crate::app::App;
use crate::app::certificate_request::{self, Made};
use crate::store::certificate_request::{self as store, CertificateRequestRow};
use crate::store::tenant;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    cursor: Option<String>,
    limit: Option<u32>,
}

/// Makes a key and a request (PKCS#10) for a certificate that the tenant orders itself, from any CA with any client. The key stays
/// here, sealed; the certificate is uploaded without one. It waits for 30 days. 200 with the one that waits for these names and
/// this kind of key already.
#[utoipa::path(post, path = "/v1/tenants/{id}/certificate-requests", tag = "certificates", params(("id" = String, Path)),
    request_body = CertificateRequestSpec,
    responses((status = 201, body = CertificateRequest), (status = 200, body = CertificateRequest), (status = 404),
        (status = 409), (status = 422)))]
pub(super) async fn create(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    body: JsonBody<CertificateRequestSpec>,
) -> Answered<Response> {
    let id = visible(&call, &id)?;
    paced(&app, &call)?;
    // No key is made for what was answered before.
    if let Some(response) = Write::replayed(&app, &call, &body.raw).await? {
        return Ok(response);
    }
    let wanted = certificate_request::read(&body.value)?;
    tenant::find(&mut *app.parts.store.read().await?, id).await?.ok_or_else(tenants::missing)?;
    let key = certificate_request::make_key(&app, id, &wanted).await?;
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    tenant::find(&mut write.tx, id).await?.ok_or_else(tenants::missing)?;
    let (status, row) = match certificate_request::put(&app, &mut write, id, &wanted, key).await? {
        Made::New(row) => (StatusCode::CREATED, row),
        Made::Same(row) => (StatusCode::OK, row),
    };
    write.finish(Answer::json(status, &certificate_request::shown(&row))).await
}

/// Lists a tenant's requests whose certificates have not come.
#[utoipa::path(get, path = "/v1/tenants/{id}/certificate-requests", tag = "certificates",
    params(("id" = String, Path), ("cursor" = Option<String>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = Page<CertificateRequest>), (status = 404)))]
pub(super) async fn list(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    Query(query): Query<ListQuery>,
) -> Answered<axum::Json<Page<CertificateRequest>>> {
    let id = visible(&call, &id)?;
    let limit = limit(query.limit)?;
    let after = read_cursor(query.cursor.as_deref())?;
    let mut read = app.parts.store.read().await?;
    tenant::find(&mut read, id).await?.ok_or_else(tenants::missing)?;
    let now = app.parts.clock.now_ms();
    let mut rows = store::of_tenant(&mut read, id, now, &after, limit + 1).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows.last().filter(|_| more).map(|row| cursor_after(&row.id.to_string()));
    Ok(axum::Json(Page { items: rows.iter().map(certificate_request::shown).collect(), next_cursor }))
}

/// Shows a request that waits for its certificate; never its key.
#[utoipa::path(get, path = "/v1/certificate-requests/{id}", tag = "certificates", params(("id" = String, Path)),
    responses((status = 200, body = CertificateRequest), (status = 404)))]
pub(super) async fn show(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
) -> Answered<axum::Json<CertificateRequest>> {
    let id: CertificateRequestId = id.parse().map_err(|_| missing())?;
    let mut read = app.parts.store.read().await?;
    let row = store::find(&mut read, id, app.parts.clock.now_ms()).await?;
    let row = seen(&call, row).ok_or_else(missing)?;
    Ok(axum::Json(certificate_request::shown(&row)))
}

/// Deletes a request and destroys its key; a certificate that is issued for it later cannot be uploaded without one any more. 404
/// when it is gone, or its certificate has come: that one stays.
#[utoipa::path(delete, path = "/v1/certificate-requests/{id}", tag = "certificates", params(("id" = String, Path)),
    responses((status = 204), (status = 404)))]
pub(super) async fn delete(State(app): State<App>, call: Call, Path(id): Path<String>) -> Answered<Response> {
    let id: CertificateRequestId = id.parse().map_err(|_| missing())?;
    let mut write = match Write::begin(&app, &call, &[]).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let row = store::find(&mut write.tx, id, write.now_ms).await?;
    let row = seen(&call, row).ok_or_else(missing)?;
    certificate_request::delete(&mut write, &row).await?;
    write.finish(Answer::no_content()).await
}

fn seen(call: &Call, row: Option<CertificateRequestRow>) -> Option<CertificateRequestRow> {
    row.filter(|row| call.caller.sees(row.tenant))
}

fn missing() -> Fault {
    Fault::not_found("certificate request")
}

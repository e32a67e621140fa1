//! `/v1/tenants/{id}/origin-authority`

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{OriginAuthority, PreviousOriginAuthority};
use portico_cert_store::TenantId;

use super::call::Call;
use super::fault::{Answered, Fault};
use super::json_body::RawBody;
use super::tenants::{missing, visible};
use super::write::{Answer, Begun, Write};
use crate::app::{App, origin_identity};
use crate::ca::sha256;
use crate::store::origin_identity::{self as stored, AuthorityRole};
use crate::store::tenant;

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
    if let Some(shown) = origin_identity::show(&mut write.tx, id).await? {
        return write.finish(Answer::json(StatusCode::OK, &shown)).await;
    }
    let text = "an authority for its origins was made";
    made(&app, write, (id, AuthorityRole::Present), "origin_authority", text).await
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
    Ok(axum::Json(origin_identity::show(&mut read, id).await?.ok_or_else(none_yet)?))
}

/// Makes the authority that is to take the place of the present one; 200 when it is there. Nothing is issued by it before the
/// switch: until then origins learn to trust it too.
#[utoipa::path(post, path = "/v1/tenants/{id}/origin-authority/next", tag = "tenants", params(("id" = String, Path)),
    responses((status = 201, body = OriginAuthority), (status = 200, body = OriginAuthority), (status = 404),
        (status = 409)))]
pub(super) async fn create_next(
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
    let shown = origin_identity::show(&mut write.tx, id).await?.ok_or_else(none_yet)?;
    if let Some(previous) = &shown.previous {
        return Err(under_way(previous));
    }
    if shown.next.is_some() {
        return write.finish(Answer::json(StatusCode::OK, &shown)).await;
    }
    let text = "an authority that is to take the place of its origin authority was made; its origins are to trust both";
    made(&app, write, (id, AuthorityRole::Next), "next_origin_authority", text).await
}

/// Drops the authority that was to take the place of the present one; gone counts as dropped.
#[utoipa::path(delete, path = "/v1/tenants/{id}/origin-authority/next", tag = "tenants", params(("id" = String, Path)),
    responses((status = 204), (status = 404)))]
pub(super) async fn delete_next(
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
    let shown = origin_identity::show(&mut write.tx, id).await?.ok_or_else(none_yet)?;
    if let Some(next) = shown.next {
        stored::remove_authority(&mut write.tx, id, AuthorityRole::Next).await?;
        let subject = id.to_string();
        write.audit("tenant.delete_next_origin_authority", &subject, &next.certificate_sha256, &()).await?;
        let text =
            format!("the authority {} will not take its origin authority's place", next.certificate_sha256);
        write.event("tenant.next_origin_authority_deleted", Some(id), &subject, &text).await?;
    }
    write.finish(Answer::no_content()).await
}

/// Has the next authority issue what edges show, at once. Its origins have to trust both by now. The one before goes by itself
/// when no edge can show any more what it issued; 200 also when that is under way.
#[utoipa::path(post, path = "/v1/tenants/{id}/origin-authority/switch", tag = "tenants", params(("id" = String, Path)),
    responses((status = 200, body = OriginAuthority), (status = 404), (status = 409)))]
pub(super) async fn switch(
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
    let before = origin_identity::show(&mut write.tx, id).await?.ok_or_else(none_yet)?;
    if before.previous.is_some() {
        return write.finish(Answer::json(StatusCode::OK, &before)).await;
    }
    if before.next.is_none() {
        let detail =
            "there is no authority to switch to: POST to ../next makes it, then let the origins trust both";
        return Err(Fault::conflict("no_next_origin_authority", detail));
    }
    let now_ms = write.now_ms;
    origin_identity::switch(&mut write.tx, &app.parts.sealer, id, now_ms).await?;
    let after = origin_identity::show(&mut write.tx, id).await?.ok_or_else(none_yet)?;
    let (subject, old, new) =
        (id.to_string(), &before.present.certificate_sha256, &after.present.certificate_sha256);
    write.audit("tenant.switch_origin_authority", &subject, old, new).await?;
    let text = format!("edges show certificates of the origin authority {new} from now on, no more of {old}");
    write.event("tenant.origin_authority_switched", Some(id), &subject, &text).await?;
    write.finish(Answer::json(StatusCode::OK, &after)).await
}

/// Makes an authority, with its entry in the trail and its event; `what` is its name there.
async fn made(
    app: &App,
    mut write: Box<Write>,
    (tenant, role): (TenantId, AuthorityRole),
    what: &str,
    text: &str,
) -> Answered<Response> {
    let (now_ms, subject) = (write.now_ms, tenant.to_string());
    let row =
        origin_identity::make_authority(&mut write.tx, &app.parts.sealer, (tenant, role), now_ms).await?;
    let shown = origin_identity::show(&mut write.tx, tenant).await?.ok_or_else(none_yet)?;
    write
        .audit(&format!("tenant.create_{what}"), &subject, &(), &hex::encode(sha256(&row.certificate)))
        .await?;
    write.event(&format!("tenant.{what}_created"), Some(tenant), &subject, text).await?;
    write.finish(Answer::json(StatusCode::CREATED, &shown)).await
}

fn under_way(previous: &PreviousOriginAuthority) -> Fault {
    let edges: Vec<String> = previous.edges_behind.iter().map(ToString::to_string).collect();
    let detail = format!(
        "the last change of the authority is under way: these edges may still show certificates of the one before: {}; wait for \
         them, or take out those that do not come back (DELETE /v1/edges/{{id}})",
        if edges.is_empty() { "none, it is over within seconds".to_owned() } else { edges.join(", ") }
    );
    Fault::conflict("switch_under_way", detail)
}

fn none_yet() -> Fault {
    Fault::new(
        StatusCode::NOT_FOUND,
        "no_origin_authority",
        "the tenant has no origin authority; POST to the same path makes it",
    )
}

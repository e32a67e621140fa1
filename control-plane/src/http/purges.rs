//! `/v1/tenants/{id}/purges`

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{FieldError, Purge, PurgeRequest};
use portico_cert_store::{NamePattern, TenantId};

use super::call::Call;
use super::fault::{Answered, Fault, field};
use super::json_body::JsonBody;
use super::tenants::{missing, visible};
use super::write::{Answer, Begun, Write};
use crate::app::{App, spec};
use crate::store::{Connection, StoreError, domain, purge, tenant};

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
    let strangers = strangers(&mut write.tx, id, &request).await?;
    if !strangers.is_empty() {
        return Err(Fault::fields(strangers));
    }
    let now_ms = write.now_ms;
    let number = purge::append(&mut write.tx, id, &request, now_ms).await?;
    write.audit("cache.purge", &id.to_string(), &(), &request).await?;
    write.commit().await?;
    let done = app.fleet.purge(turn, number, id, &request).await;
    Ok(Answer::json(StatusCode::OK, &done).into_response())
}

/// Hosts that are named and are no domain of the tenant: nothing of theirs is kept for it, so the call is a mistake.
async fn strangers(
    connection: &mut Connection,
    tenant: TenantId,
    request: &PurgeRequest,
) -> Result<Vec<FieldError>, StoreError> {
    let mut errors = Vec::new();
    for (at, host) in spec::hosts_of(request) {
        let above = host.as_str().split_once('.').map(|(_, above)| format!("*.{above}"));
        let wildcard = above.and_then(|text| NamePattern::parse(&text).ok());
        let mut is_known = false;
        for pattern in [NamePattern::Exact(host.clone())].iter().chain(&wildcard) {
            is_known |= domain::find_of_tenant(connection, tenant, pattern).await?.is_some();
        }
        if !is_known {
            errors.push(field(at, "unknown_host", format!("{host} is no domain of this tenant")));
        }
    }
    Ok(errors)
}

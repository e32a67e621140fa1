//! `/v1/tenants/{id}/shared-group`

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{
    SHARED_GROUP_MEANING, SharedGroup, SharedGroupOffer, SharingConsent, SharingConsentRequest,
};
use portico_cert_store::TenantId;

use super::call::{Call, OperatorCall};
use super::fault::{Answered, Fault, field};
use super::json_body::{JsonBody, RawBody};
use super::tenants::{missing, visible};
use super::write::{Answer, Begun, Write};
use crate::app::App;
use crate::clock::rfc3339;
use crate::limits::CONSENT_NOTE_BYTES_MAX;
use crate::store::shared_group::{self as stored, ConsentRow, SharedGroupRow};
use crate::store::{Connection, StoreError, tenant};

/// Offers a tenant a place in an operator's group of names of several tenants. Nothing is shared before the tenant consents; an
/// offer of another group takes the place of the one before, with its consent.
#[utoipa::path(put, path = "/v1/tenants/{id}/shared-group", tag = "tenants", params(("id" = String, Path)),
    request_body = SharedGroupOffer, responses((status = 200, body = SharedGroup), (status = 404), (status = 422)))]
pub(super) async fn offer(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    Path(id): Path<String>,
    body: JsonBody<SharedGroupOffer>,
) -> Answered<Response> {
    let id = visible(&call, &id)?;
    let group = body.value.group;
    let plain = group.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if !plain || !(1..=63).contains(&group.len()) {
        let text = "must be 1 to 63 of a-z, 0-9 and `-`";
        return Err(Fault::fields(vec![field("/group", "invalid_name", text)]));
    }
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    tenant::find(&mut write.tx, id).await?.ok_or_else(missing)?;
    let before = stored::find(&mut write.tx, id).await?;
    if before.as_ref().is_some_and(|before| before.group == group) {
        return shown(write, id).await;
    }
    let row = SharedGroupRow { group, offered_at: write.now_ms, consent: None };
    stored::put(&mut write.tx, id, &row).await?;
    let before = before.map(|before| before.group);
    write.audit("tenant.offer_shared_group", &id.to_string(), &before, &row.group).await?;
    let text = format!(
        "certificates with names of other tenants are offered, group {}: consent is needed",
        row.group
    );
    write.event("tenant.shared_group_offered", Some(id), &id.to_string(), &text).await?;
    shown(write, id).await
}

/// Shows what is offered to a tenant, and whether it has consented.
#[utoipa::path(get, path = "/v1/tenants/{id}/shared-group", tag = "tenants", params(("id" = String, Path)),
    responses((status = 200, body = SharedGroup), (status = 404)))]
pub(super) async fn show(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
) -> Answered<axum::Json<SharedGroup>> {
    let id = visible(&call, &id)?;
    let mut read = app.parts.store.read().await?;
    Ok(axum::Json(view(&mut read, id).await?.ok_or_else(not_offered)?))
}

/// Records a tenant's consent: from its next certificates on its names may stand with those of the other tenants that have
/// consented. An operator who says it for a tenant says how it agreed.
#[utoipa::path(post, path = "/v1/tenants/{id}/shared-group/consent", tag = "tenants", params(("id" = String, Path)),
    request_body = SharingConsentRequest,
    responses((status = 200, body = SharedGroup), (status = 404), (status = 409), (status = 422)))]
pub(super) async fn consent(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    body: JsonBody<SharingConsentRequest>,
) -> Answered<Response> {
    let id = visible(&call, &id)?;
    let SharingConsentRequest { group, note } = body.value;
    let note = note.filter(|note| !note.trim().is_empty());
    if call.caller.tenant.is_none() && note.is_none() {
        let text = "is needed of an operator: when and how the tenant agreed, for the record";
        return Err(Fault::fields(vec![field("/note", "missing_field", text)]));
    }
    if let Some(long) = note.as_ref().filter(|note| note.len() > CONSENT_NOTE_BYTES_MAX) {
        let text = format!("has {} bytes, at most {CONSENT_NOTE_BYTES_MAX}", long.len());
        return Err(Fault::fields(vec![field("/note", "too_large", text)]));
    }
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let offered = stored::find(&mut write.tx, id).await?.ok_or_else(not_offered)?;
    if offered.group != group {
        let detail = format!(
            "group {} is offered to this tenant, not {group}; consent is to one group, so look at what is offered \
             (GET /v1/tenants/{id}/shared-group) and answer that",
            offered.group
        );
        return Err(Fault::conflict("other_group_offered", detail));
    }
    if offered.consent.is_some() {
        return shown(write, id).await;
    }
    let by = call.caller.token_id.clone();
    let consent = ConsentRow { at: write.now_ms, by, note };
    let row = SharedGroupRow { consent: Some(consent.clone()), ..offered };
    stored::put(&mut write.tx, id, &row).await?;
    let of_record = serde_json::json!({ "group": row.group, "note": consent.note });
    write.audit("tenant.consent_to_sharing", &id.to_string(), &(), &of_record).await?;
    let text = format!("consent to certificates with names of other tenants, group {}", row.group);
    write.event("tenant.sharing_consented", Some(id), &id.to_string(), &text).await?;
    shown(write, id).await
}

/// Takes offer and consent back. Names leave the shared certificates with their next renewal.
#[utoipa::path(delete, path = "/v1/tenants/{id}/shared-group", tag = "tenants", params(("id" = String, Path)),
    responses((status = 204), (status = 404)))]
pub(super) async fn leave(
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
    if let Some(row) = stored::find(&mut write.tx, id).await? {
        stored::remove(&mut write.tx, id).await?;
        write.audit("tenant.leave_shared_group", &id.to_string(), &row.group, &()).await?;
        let text = format!("no further certificate has names of other tenants; group {} was left", row.group);
        write.event("tenant.shared_group_left", Some(id), &id.to_string(), &text).await?;
    }
    write.finish(Answer::no_content()).await
}

async fn shown(mut write: Box<Write>, tenant: TenantId) -> Answered<Response> {
    let shown = view(&mut write.tx, tenant).await?.ok_or_else(not_offered)?;
    write.finish(Answer::json(StatusCode::OK, &shown)).await
}

async fn view(connection: &mut Connection, tenant: TenantId) -> Result<Option<SharedGroup>, StoreError> {
    let Some(row) = stored::find(connection, tenant).await? else { return Ok(None) };
    let consent = row.consent.map(|consent| SharingConsent {
        at: rfc3339(consent.at),
        by: consent.by,
        note: consent.note,
    });
    Ok(Some(SharedGroup {
        tenants: stored::members(connection, &row.group).await?,
        group: row.group,
        offered_at: rfc3339(row.offered_at),
        consent,
        meaning: SHARED_GROUP_MEANING.to_owned(),
    }))
}

fn not_offered() -> Fault {
    Fault::new(
        StatusCode::NOT_FOUND,
        "no_shared_group",
        "no group with other tenants is offered to this tenant; an operator offers one with PUT to ../shared-group",
    )
}

//! `/v1/tenants`

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::distribution::ResourceKind;
use portico_api::v1::{FieldError, Page, Suspension, SuspensionAnswer, Tenant, TenantSpec};
use portico_cert_store::TenantId;
use serde::Deserialize;

use super::call::{Call, OperatorCall, operators_only};
use super::fault::{Answered, Fault, field};
use super::json_body::{self, JsonBody, RawBody};
use super::list::{cursor_after, limit, read_cursor};
use super::query::Query;
use super::write::{Answer, Begun, Write};
use crate::app::{App, spec, view};
use crate::store::domain::{self, DomainFilter};
use crate::store::tenant::{self, TenantRow};
use crate::store::{WriteTx, cell, change};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    cursor: Option<String>,
    limit: Option<u32>,
    name: Option<String>,
}

/// Makes a tenant; 200 when it is there with the same wishes.
#[utoipa::path(post, path = "/v1/tenants", tag = "tenants", request_body = TenantSpec,
    responses((status = 201, body = Tenant), (status = 200, body = Tenant), (status = 409), (status = 422)))]
pub(super) async fn create(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    body: JsonBody<TenantSpec>,
) -> Answered<Response> {
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let wanted = body.value;
    let own = app.own.places(&mut write.tx).await?;
    let found = tenant::find_by_name(&mut write.tx, &wanted.name).await?;
    let known = found.as_ref().map_or(&[][..], |row| row.spec.egress_grants.as_slice());
    let mut errors = spec::tenant(&wanted, &own.addresses, known);
    errors.extend(spec::issuers(&wanted.issuers, &app.parts.config.issuers));
    errors.extend(borne_cells(&app, &wanted));
    errors.extend(backups(&app, &wanted));
    if !errors.is_empty() {
        return Err(Fault::fields(errors));
    }
    if let Some(row) = found {
        if serde_json::to_value(&row.spec).ok() != serde_json::to_value(&wanted).ok() {
            let detail = format!(
                "{} is there with other settings; change it with PATCH /v1/tenants/{}",
                wanted.name, row.id
            );
            return Err(Fault::conflict("tenant_exists", detail));
        }
        let shown = view::tenant(&app, &mut write.tx, &row).await?;
        return write.finish(Answer::json(StatusCode::OK, &shown).revision(row.revision)).await;
    }
    let row = insert(&mut write, wanted).await?;
    let shown = view::tenant(&app, &mut write.tx, &row).await?;
    write.finish(Answer::json(StatusCode::CREATED, &shown).revision(row.revision)).await
}

pub(super) fn backups(app: &App, wanted: &TenantSpec) -> Option<FieldError> {
    let configured = &app.parts.config.issuers;
    spec::backups("/backup_certificates", wanted.backup_certificates, &wanted.issuers, configured)
}

/// A new tenant of a name that is free, with its audit entry and event.
pub(super) async fn insert(write: &mut Write, spec: TenantSpec) -> Answered<TenantRow> {
    known_cells(write, &spec).await?;
    let created_at = write.now_ms;
    let row = TenantRow { id: TenantId::generate(), spec, suspension: None, revision: 1, created_at };
    let id = row.id.to_string();
    tenant::insert(&mut write.tx, &row).await?;
    change::record(&mut write.tx, ResourceKind::Tenant, &id, Some(&id)).await?;
    write.audit("tenant.create", &id, &(), &row.spec).await?;
    write.event("tenant.created", Some(row.id), &id, &format!("tenant {} was added", row.spec.name)).await?;
    Ok(row)
}

pub(super) fn borne_cells(app: &App, spec: &TenantSpec) -> Option<FieldError> {
    spec::borne_cells(&spec.cells, &spec.issuers, &app.parts.config.issuers, None)
}

async fn known_cells(write: &mut Write, wanted: &TenantSpec) -> Answered<()> {
    match cell::unknown(&mut write.tx, &wanted.cells).await? {
        Some((unknown, known)) => Err(Fault::fields(vec![spec::unknown_cell(&unknown, &known)])),
        None => Ok(()),
    }
}

/// Lists tenants; with `name`, the one of that name. A tenant's token sees its own.
#[utoipa::path(get, path = "/v1/tenants", tag = "tenants",
    params(("cursor" = Option<String>, Query), ("limit" = Option<u32>, Query), ("name" = Option<String>, Query)),
    responses((status = 200, body = Page<Tenant>)))]
pub(super) async fn list(
    State(app): State<App>,
    call: Call,
    Query(query): Query<ListQuery>,
) -> Answered<axum::Json<Page<Tenant>>> {
    let (limit, after) = (limit(query.limit)?, read_cursor(query.cursor.as_deref())?);
    let mut read = app.parts.store.read().await?;
    let (rows, is_end): (Vec<TenantRow>, bool) = match (call.caller.tenant, &query.name) {
        (None, None) => tenant::list(&mut read, &after, limit).await?,
        (None, Some(name)) => (tenant::find_by_name(&mut read, name).await?.into_iter().collect(), true),
        (Some(own), name) => {
            let own = tenant::find(&mut read, own).await?;
            let is_asked_for = |row: &TenantRow| {
                name.as_ref().is_none_or(|name| row.spec.name == *name) && row.id.to_string() > after
            };
            (own.filter(is_asked_for).into_iter().collect(), true)
        }
    };
    let next_cursor = rows.last().filter(|_| !is_end).map(|row| cursor_after(&row.id.to_string()));
    let mut items = Vec::with_capacity(rows.len());
    for row in &rows {
        items.push(view::tenant(&app, &mut read, row).await?);
    }
    Ok(axum::Json(Page { items, next_cursor }))
}

/// Shows a tenant; `self` is the one whose token asks.
#[utoipa::path(get, path = "/v1/tenants/{id}", tag = "tenants", params(("id" = String, Path)),
    responses((status = 200, body = Tenant), (status = 404)))]
pub(super) async fn show(State(app): State<App>, call: Call, Path(id): Path<String>) -> Answered<Response> {
    let mut read = app.parts.store.read().await?;
    let row = tenant::find(&mut read, visible(&call, &id)?).await?.ok_or_else(missing)?;
    let shown = view::tenant(&app, &mut read, &row).await?;
    Ok(Answer::json(StatusCode::OK, &shown).revision(row.revision).into_response())
}

/// Changes a tenant by a merge patch (RFC 7396). A tenant's own token may change `error_pages` and nothing else.
#[utoipa::path(patch, path = "/v1/tenants/{id}", tag = "tenants", params(("id" = String, Path), ("If-Match" = String, Header)),
    request_body = TenantSpec, responses((status = 200, body = Tenant), (status = 403), (status = 404), (status = 412), (status = 422), (status = 428)))]
pub(super) async fn patch(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    body: JsonBody<serde_json::Value>,
) -> Answered<Response> {
    let id = visible(&call, &id)?;
    if call.caller.tenant.is_some() && !is_a_tenants_to_change(&body.value) {
        return Err(operators_only());
    }
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let mut row = tenant::find(&mut write.tx, id).await?.ok_or_else(missing)?;
    call.check_revision(row.revision)?;
    let before = row.spec.clone();
    row.spec = patched(&before, &body.value)?;
    let own = app.own.places(&mut write.tx).await?;
    let mut errors = spec::tenant(&row.spec, &own.addresses, &before.egress_grants);
    if row.spec.issuers != before.issuers {
        errors.extend(spec::issuers(&row.spec.issuers, &app.parts.config.issuers));
    }
    if row.spec.cells != before.cells || row.spec.issuers != before.issuers {
        errors.extend(borne_cells(&app, &row.spec));
    }
    if row.spec.issuers != before.issuers || row.spec.backup_certificates != before.backup_certificates {
        errors.extend(backups(&app, &row.spec));
    }
    if !errors.is_empty() {
        return Err(Fault::fields(errors));
    }
    if row.spec.cells != before.cells {
        known_cells(&mut write, &row.spec).await?;
    }
    if row.spec.name != before.name && tenant::find_by_name(&mut write.tx, &row.spec.name).await?.is_some() {
        return Err(Fault::fields(vec![field("/name", "taken", "another tenant has this name")]));
    }
    tenant::update(&mut write.tx, &mut row).await?;
    change::record(&mut write.tx, ResourceKind::Tenant, &id.to_string(), Some(&id.to_string())).await?;
    if row.spec.cells != before.cells || row.spec.sharing != before.sharing {
        republish_domains(&mut write.tx, id).await?;
    }
    write.audit("tenant.patch", &id.to_string(), &before, &row.spec).await?;
    let shown = view::tenant(&app, &mut write.tx, &row).await?;
    write.finish(Answer::json(StatusCode::OK, &shown).revision(row.revision)).await
}

/// Takes all domains of a tenant out of service.
#[utoipa::path(post, path = "/v1/tenants/{id}/suspend", tag = "tenants", params(("id" = String, Path)),
    request_body = Suspension, responses((status = 200, body = SuspensionAnswer), (status = 404), (status = 422)))]
pub(super) async fn suspend(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    Path(id): Path<String>,
    body: JsonBody<Suspension>,
) -> Answered<Response> {
    let errors = spec::suspension(&body.value, app.parts.clock.now_ms());
    if !errors.is_empty() {
        return Err(Fault::fields(errors));
    }
    set_suspension(&app, &call, &id, Some(body.value), &body.raw).await
}

/// Puts them back into service.
#[utoipa::path(post, path = "/v1/tenants/{id}/resume", tag = "tenants", params(("id" = String, Path)),
    responses((status = 200, body = SuspensionAnswer), (status = 404)))]
pub(super) async fn resume(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    Path(id): Path<String>,
    body: RawBody,
) -> Answered<Response> {
    set_suspension(&app, &call, &id, None, &body.0).await
}

/// The durable part in one transaction, then the short way to the edges.
async fn set_suspension(
    app: &App,
    call: &Call,
    id: &str,
    wanted: Option<Suspension>,
    body: &[u8],
) -> Answered<Response> {
    let id = visible(call, id)?;
    let mut write = match Write::begin(app, call, body).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let mut row = tenant::find(&mut write.tx, id).await?.ok_or_else(missing)?;
    let before = std::mem::replace(&mut row.suspension, wanted.clone());
    tenant::update(&mut write.tx, &mut row).await?;
    let text = id.to_string();
    let version = change::record(&mut write.tx, ResourceKind::Tenant, &text, Some(&text)).await?;
    let (action, word) =
        if wanted.is_some() { ("tenant.suspend", "suspended") } else { ("tenant.resume", "resumed") };
    write.audit(action, &text, &before, &wanted).await?;
    write
        .event(&format!("tenant.{word}"), Some(id), &text, &format!("tenant {} was {word}", row.spec.name))
        .await?;
    write.commit().await?;
    let answer = app.fleet.suspend(id, None, wanted.as_ref(), version).await;
    Ok(Answer::json(StatusCode::OK, &answer).into_response())
}

/// The cells and sharing of a tenant stand in the resources of its domains.
async fn republish_domains(tx: &mut WriteTx, tenant: TenantId) -> Answered<()> {
    let mut filter = DomainFilter { tenant: Some(tenant), limit: 1000, ..DomainFilter::default() };
    loop {
        let rows = domain::list(tx, &filter).await?;
        for row in rows.iter().filter(|row| row.served) {
            domain::publish(tx, row).await?;
        }
        match rows.last() {
            Some(last) if rows.len() == filter.limit as usize => filter.after = last.id.to_string(),
            _ => return Ok(()),
        }
    }
}

/// Whether a merge patch changes only what is a tenant's own to decide.
fn is_a_tenants_to_change(patch: &serde_json::Value) -> bool {
    patch.as_object().is_none_or(|fields| fields.keys().all(|name| name == "error_pages"))
}

/// RFC 7396 over the document, then read strictly.
pub(super) fn patched<T: serde::Serialize + serde::de::DeserializeOwned>(
    before: &T,
    patch: &serde_json::Value,
) -> Answered<T> {
    if !patch.is_object() {
        return Err(Fault::fields(vec![field("", "invalid_value", "a merge patch is a JSON object")]));
    }
    let mut document = serde_json::to_value(before).unwrap_or_default();
    merge(&mut document, patch);
    json_body::from_value(document)
}

fn merge(target: &mut serde_json::Value, patch: &serde_json::Value) {
    let serde_json::Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = serde_json::Value::Object(serde_json::Map::new());
    }
    let Some(fields) = target.as_object_mut() else { return };
    for (key, change) in changes {
        if change.is_null() {
            fields.remove(key);
        } else {
            merge(fields.entry(key.clone()).or_insert(serde_json::Value::Null), change);
        }
    }
}

/// In the place of an id: the tenant whose token it is.
const SELF: &str = "self";

/// The tenant of a path, when the caller may see it.
pub(super) fn visible(call: &Call, id: &str) -> Answered<TenantId> {
    if id == SELF {
        return call.caller.tenant.ok_or_else(|| {
            Fault::new(
                StatusCode::NOT_FOUND,
                "no_tenant_of_its_own",
                "an operator's token is no tenant's: give a tenant's id",
            )
        });
    }
    id.parse().ok().filter(|&id| call.caller.sees(id)).ok_or_else(missing)
}

pub(super) fn missing() -> Fault {
    Fault::not_found("tenant")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merge_patches_follow_the_examples_of_rfc_7396() {
        for (target, patch, result) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":"foo"}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ] {
            let mut target = target;
            merge(&mut target, &patch);
            assert_eq!(target, result);
        }
    }
}

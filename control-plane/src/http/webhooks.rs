//! `/v1/webhooks`

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{
    Event, NewWebhook, Page, Webhook, WebhookReplay, WebhookRequest, WebhookSecret, WebhookTry,
};
use portico_cert_store::TenantId;
use serde::Deserialize;

use super::call::{Call, OperatorCall};
use super::fault::{Answered, Fault};
use super::json_body::{JsonBody, RawBody};
use super::list::{cursor_after, limit, read_cursor};
use super::query::Query;
use super::tenants::visible;
use super::write::{Answer, Begun, Write, paced};
use crate::app::App;
use crate::app::webhook::send::Courier;
use crate::app::webhook::{check, new_secret, place, secrets, shown, signed};
use crate::clock::{DAY_MS, rfc3339};
use crate::limits::{WEBHOOK_TRIES_KEPT, WEBHOOKS_OF_OPERATORS_MAX, WEBHOOKS_OF_TENANT_MAX};
use crate::store::webhook::{self, Try, WebhookRow};
use crate::store::{Connection, event, meta, tenant};

/// How long the secret before signs too.
const PREVIOUS_LASTS_MS: i64 = DAY_MS;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    cursor: Option<String>,
    limit: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TriesQuery {
    limit: Option<u32>,
}

/// Has all events sent to an endpoint of the operators. Its secret is shown this once.
#[utoipa::path(post, path = "/v1/webhooks", tag = "webhooks", request_body = WebhookRequest,
    responses((status = 201, body = NewWebhook), (status = 409), (status = 422)))]
pub(super) async fn create(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    body: JsonBody<WebhookRequest>,
) -> Answered<Response> {
    add(&app, &call, None, &body).await
}

/// Has a tenant's events sent to an endpoint. Its secret is shown this once: the receiver verifies `webhook-signature` by it, as
/// Standard Webhooks has it. Each event is sent at least once, in order; the next one waits until the endpoint answers 2xx.
#[utoipa::path(post, path = "/v1/tenants/{id}/webhooks", tag = "webhooks", params(("id" = String, Path)),
    request_body = WebhookRequest,
    responses((status = 201, body = NewWebhook), (status = 404), (status = 409), (status = 422)))]
pub(super) async fn create_of_tenant(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    body: JsonBody<WebhookRequest>,
) -> Answered<Response> {
    let tenant = visible(&call, &id)?;
    add(&app, &call, Some(tenant), &body).await
}

async fn add(
    app: &App,
    call: &Call,
    tenant: Option<TenantId>,
    body: &JsonBody<WebhookRequest>,
) -> Answered<Response> {
    let wanted = &body.value;
    let errors = check(wanted);
    if !errors.is_empty() {
        return Err(Fault::fields(errors));
    }
    let mut write = match Write::begin(app, call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    if let Some(tenant) = tenant {
        tenant::find(&mut write.tx, tenant).await?.ok_or_else(super::tenants::missing)?;
    }
    let most = if tenant.is_some() { WEBHOOKS_OF_TENANT_MAX } else { WEBHOOKS_OF_OPERATORS_MAX };
    if webhook::count(&mut write.tx, tenant).await? >= most {
        let detail = format!("there are {most} webhooks already; delete one first");
        return Err(Fault::conflict("webhooks_max_reached", detail));
    }
    let delivered_to = since(&mut write.tx, wanted.since).await?;
    let id = format!("whk_{}", ulid::Ulid::new());
    let (secret, sealed_secret) = new_secret(&app.parts.sealer, &id);
    let row = WebhookRow {
        id: id.clone(),
        tenant,
        url: wanted.url.clone(),
        kinds: wanted.kinds.clone(),
        label: wanted.label.clone(),
        sealed_secret,
        previous: None,
        delivered_to,
        disabled: None,
        failures: 0,
        failing_since: None,
        next_at: write.now_ms,
        last_error: None,
        taken_at: None,
        created_at: write.now_ms,
    };
    webhook::insert(&mut write.tx, &row).await?;
    let kept = WebhookRequest { url: place(&wanted.url).to_owned(), ..wanted.clone() };
    write.audit("webhook.create", &id, &(), &kept).await?;
    let made = NewWebhook { webhook: shown(&row, write.now_ms), secret };
    let repeated = format!(
        "webhook {id} was made by this request before, and its secret was shown then only; if you do not have it, POST \
         /v1/webhooks/{id}/secret makes another"
    );
    write.finish_shown_once(Answer::json(StatusCode::CREATED, &made), &repeated).await
}

/// From which event on is sent; an event that is no longer kept cannot be.
async fn since(connection: &mut Connection, since: Option<u64>) -> Answered<u64> {
    let (first, last) = event::kept(connection).await?;
    let Some(since) = since else { return Ok(last) };
    if since.saturating_add(1) < first && last > 0 {
        let detail = format!(
            "events up to {} are older than 90 days and are no longer kept; say since={0}",
            first - 1
        );
        return Err(Fault::new(StatusCode::GONE, "events_forgotten", detail));
    }
    // What has not happened yet is sent when it has.
    Ok(since.min(last))
}

/// Lists webhooks, without their secrets.
#[utoipa::path(get, path = "/v1/webhooks", tag = "webhooks",
    params(("cursor" = Option<String>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = Page<Webhook>)))]
pub(super) async fn list(
    State(app): State<App>,
    call: Call,
    Query(query): Query<ListQuery>,
) -> Answered<axum::Json<Page<Webhook>>> {
    let limit = limit(query.limit)?;
    let after = read_cursor(query.cursor.as_deref())?;
    let now = app.parts.clock.now_ms();
    let mut read = app.parts.store.read().await?;
    let mut rows = webhook::list(&mut read, call.caller.tenant, &after, limit + 1).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows.last().filter(|_| more).map(|row| cursor_after(&row.id));
    Ok(axum::Json(Page { items: rows.iter().map(|row| shown(row, now)).collect(), next_cursor }))
}

/// Shows a webhook: how far it has come, and what is wrong.
#[utoipa::path(get, path = "/v1/webhooks/{id}", tag = "webhooks", params(("id" = String, Path)),
    responses((status = 200, body = Webhook), (status = 404)))]
pub(super) async fn show(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
) -> Answered<axum::Json<Webhook>> {
    let row = find(&mut *app.parts.store.read().await?, &call, &id).await?;
    Ok(axum::Json(shown(&row, app.parts.clock.now_ms())))
}

/// Ends a webhook at once; what is under way to it is still sent.
#[utoipa::path(delete, path = "/v1/webhooks/{id}", tag = "webhooks", params(("id" = String, Path)),
    responses((status = 204), (status = 404)))]
pub(super) async fn delete(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    body: RawBody,
) -> Answered<Response> {
    let (mut write, row) = match begin(&app, &call, &id, &body.0).await? {
        Known::Replay(response) => return Ok(response),
        Known::Fresh(write, row) => (write, row),
    };
    let shown = shown(&row, write.now_ms);
    let before = Webhook { url: place(&shown.url).to_owned(), ..shown };
    webhook::delete(&mut write.tx, &row.id).await?;
    write.audit("webhook.delete", &row.id, &before, &()).await?;
    write.finish(Answer::no_content()).await
}

/// Sends events again from behind this number on, or, without one, on from where the webhook stands; one that was disabled is
/// no longer.
#[utoipa::path(post, path = "/v1/webhooks/{id}/replay", tag = "webhooks", params(("id" = String, Path)),
    request_body = WebhookReplay,
    responses((status = 200, body = Webhook), (status = 404), (status = 410), (status = 422)))]
pub(super) async fn replay(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    body: JsonBody<WebhookReplay>,
) -> Answered<Response> {
    let (mut write, row) = match begin(&app, &call, &id, &body.raw).await? {
        Known::Replay(response) => return Ok(response),
        Known::Fresh(write, row) => (write, row),
    };
    let to = match body.value.since {
        None => row.delivered_to,
        wanted => since(&mut write.tx, wanted).await?,
    };
    let now = write.now_ms;
    webhook::restart(&mut write.tx, &row.id, to, now).await?;
    let places = serde_json::json!({ "delivered_to": row.delivered_to });
    write.audit("webhook.replay", &row.id, &places, &serde_json::json!({ "delivered_to": to })).await?;
    let row = find(&mut write.tx, &call, &id).await?;
    write.finish(Answer::json(StatusCode::OK, &shown(&row, now))).await
}

/// Makes a new secret, shown this once. Both sign for a day, so that receivers can change over.
#[utoipa::path(post, path = "/v1/webhooks/{id}/secret", tag = "webhooks", params(("id" = String, Path)),
    responses((status = 200, body = WebhookSecret), (status = 404), (status = 409)))]
pub(super) async fn renew_secret(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    body: RawBody,
) -> Answered<Response> {
    let (mut write, row) = match begin(&app, &call, &id, &body.0).await? {
        Known::Replay(response) => return Ok(response),
        Known::Fresh(write, row) => (write, row),
    };
    let (secret, sealed) = new_secret(&app.parts.sealer, &row.id);
    let until = write.now_ms + PREVIOUS_LASTS_MS;
    webhook::put_secret(&mut write.tx, &row.id, &sealed, until).await?;
    write.audit("webhook.renew_secret", &row.id, &(), &()).await?;
    let made = WebhookSecret { secret, previous_until: rfc3339(until) };
    let repeated = "this request made a secret before, which was shown then only; send it with a new Idempotency-Key for \
                    another one";
    write.finish_shown_once(Answer::json(StatusCode::OK, &made), repeated).await
}

/// Sends one message of the kind `webhook.test` now, out of order, and answers what became of it.
#[utoipa::path(post, path = "/v1/webhooks/{id}/test", tag = "webhooks", params(("id" = String, Path)),
    responses((status = 200, body = WebhookTry), (status = 404)))]
pub(super) async fn test(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    body: RawBody,
) -> Answered<Response> {
    paced(&app, &call)?;
    // What was sent before is not sent again.
    if let Some(response) = Write::replayed(&app, &call, &body.0).await? {
        return Ok(response);
    }
    let (row, epoch) = {
        let mut read = app.parts.store.read().await?;
        (find(&mut read, &call, &id).await?, meta::epoch(&mut read).await?)
    };
    let _place = app.waits.begin_webhook_test(row.tenant)?;
    let now = app.parts.clock.now_ms();
    let keys = secrets(&app.parts.sealer, &row, now).map_err(|error| {
        tracing::error!(%error, webhook = row.id, "a webhook's secret cannot be opened");
        Fault::internal()
    })?;
    let message = Event {
        sequence: 0,
        at: rfc3339(now),
        kind: "webhook.test".to_owned(),
        tenant_id: row.tenant.map(|tenant| tenant.to_string()),
        subject: row.id.clone(),
        text: "somebody tries this webhook".to_owned(),
    };
    // Before the writer's turn: this may take seconds.
    let sent = Courier::new(&app, &row).await?.send(&signed(&keys, epoch, &message, now)).await;
    let (mut write, row) = match begin(&app, &call, &id, &body.0).await? {
        Known::Replay(response) => return Ok(response),
        Known::Fresh(write, row) => (write, row),
    };
    let tried = Try {
        sequence: 0,
        kind: message.kind.clone(),
        at: now,
        status: sent.status,
        error: sent.error,
        took_ms: sent.took_ms,
    };
    webhook::note_try(&mut write.tx, &row.id, &tried, WEBHOOK_TRIES_KEPT).await?;
    write.audit("webhook.test", &row.id, &(), &()).await?;
    let answer = WebhookTry {
        sequence: tried.sequence,
        kind: tried.kind,
        at: message.at,
        status: tried.status,
        error: tried.error,
        took_ms: tried.took_ms.unsigned_abs(),
    };
    write.finish(Answer::json(StatusCode::OK, &answer)).await
}

/// The last tries of a webhook, newest first; 200 of them are kept.
#[utoipa::path(get, path = "/v1/webhooks/{id}/tries", tag = "webhooks",
    params(("id" = String, Path), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = Page<WebhookTry>), (status = 404)))]
pub(super) async fn tries(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    Query(query): Query<TriesQuery>,
) -> Answered<axum::Json<Page<WebhookTry>>> {
    let limit = limit(query.limit)?;
    let mut read = app.parts.store.read().await?;
    let row = find(&mut read, &call, &id).await?;
    let items = webhook::tries(&mut read, &row.id, limit).await?;
    Ok(axum::Json(Page { items, next_cursor: None }))
}

/// As [`Begun`], of one webhook.
enum Known {
    Fresh(Box<Write>, WebhookRow),
    Replay(Response),
}

/// Begins to write to a webhook that the caller may see.
async fn begin(app: &App, call: &Call, id: &str, body: &[u8]) -> Answered<Known> {
    match Write::begin(app, call, body).await? {
        Begun::Replay(response) => Ok(Known::Replay(response)),
        Begun::Fresh(mut write) => {
            let row = find(&mut write.tx, call, id).await?;
            Ok(Known::Fresh(write, row))
        }
    }
}

/// A webhook that the caller may see.
async fn find(connection: &mut Connection, call: &Call, id: &str) -> Answered<WebhookRow> {
    let row = webhook::find(connection, id).await?;
    let is_seen = |row: &WebhookRow| match row.tenant {
        Some(tenant) => call.caller.sees(tenant),
        None => call.caller.tenant.is_none(),
    };
    row.filter(is_seen).ok_or_else(|| Fault::not_found("webhook"))
}

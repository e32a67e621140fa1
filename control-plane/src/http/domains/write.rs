//! Makes, changes, checks, vouches for and deletes domains.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{
    Attestation, BATCH_ITEMS_MAX, Domain, DomainBatch, DomainBatchAnswer, DomainBatchResult, DomainSpec,
    FieldError, HeldRemoval,
};
use portico_cert_store::{DomainId, NamePattern};

use super::{find, missing};
use crate::app::claim::{Claimed, Quota, backup, claim, delete as delete_domain};
use crate::app::{App, origin_identity, ownership, spec, view};
use crate::clock::rfc3339;
use crate::http::call::{Call, OperatorCall};
use crate::http::fault::{Answered, Fault, field};
use crate::http::json_body::{JsonBody, RawBody};
use crate::http::removals;
use crate::http::tenants::{self, patched};
use crate::http::write::{Answer, Begun, Write, paced};
use crate::store::domain;
use crate::store::{cell, group, presence, retry, tenant};

pub(in crate::http) const NOTE_BYTES_MAX: usize = 500;

/// Adds a domain; 200 when it is there with the same wishes.
#[utoipa::path(post, path = "/v1/tenants/{id}/domains", tag = "domains", params(("id" = String, Path)),
    request_body = DomainSpec,
    responses((status = 201, body = Domain), (status = 200, body = Domain), (status = 404), (status = 409), (status = 422)))]
pub(in crate::http) async fn create(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    body: JsonBody<DomainSpec>,
) -> Answered<Response> {
    let id = tenants::visible(&call, &id)?;
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let tenant = tenant::find(&mut write.tx, id).await?.ok_or_else(tenants::missing)?;
    let mut quota = Quota::count(&mut write, &tenant, call.caller.tenant.is_none()).await?;
    let (status, row) = match claim(&app, &mut write, &tenant, body.value, &mut quota).await? {
        Claimed::New(row) => (StatusCode::CREATED, row),
        Claimed::Same(row) => (StatusCode::OK, row),
    };
    let shown = view::one_domain(&app, &mut write.tx, &row).await?;
    let response = write.finish(Answer::json(status, &shown).revision(row.revision)).await?;
    app.claims_changed.notify_one();
    Ok(response)
}

/// Adds up to 1,000 domains; one result for each, in order. With `atomic`, all or none.
#[utoipa::path(post, path = "/v1/tenants/{id}/domains/batch", tag = "domains", params(("id" = String, Path)),
    request_body = DomainBatch,
    responses((status = 200, body = DomainBatchAnswer), (status = 404), (status = 413), (status = 422)))]
pub(in crate::http) async fn create_batch(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    body: JsonBody<DomainBatch>,
) -> Answered<Response> {
    let id = tenants::visible(&call, &id)?;
    let DomainBatch { items, atomic } = body.value;
    bounded("/items", items.len())?;
    let mut write = match Write::begin_bulk(&app, &call, &body.raw, items.len()).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let tenant = tenant::find(&mut write.tx, id).await?.ok_or_else(tenants::missing)?;
    let mut quota = Quota::count(&mut write, &tenant, call.caller.tenant.is_none()).await?;
    let mut results = Vec::with_capacity(items.len());
    for item in items {
        write.assert_in_turn()?;
        results.push(match claim(&app, &mut write, &tenant, item, &mut quota).await {
            Ok(Claimed::New(row)) => done(StatusCode::CREATED, row.id),
            Ok(Claimed::Same(row)) => done(StatusCode::OK, row.id),
            Err(fault) if fault.status.is_server_error() => return Err(fault),
            Err(fault) => refused(&fault, &call),
        });
    }
    if atomic && results.iter().any(|result| result.problem.is_some()) {
        // Dropping the write undoes what was made before the faulty item.
        drop(write);
        let fault = Fault::new(
            StatusCode::FAILED_DEPENDENCY,
            "batch_not_applied",
            "another item of the batch is wrong",
        );
        let spoilt = results.into_iter().map(|result| match result.problem {
            Some(_) => result,
            None => refused(&fault, &call),
        });
        let answer = DomainBatchAnswer { results: spoilt.collect() };
        return Ok(Answer::json(StatusCode::OK, &answer).into_response());
    }
    let response = write.finish(Answer::json(StatusCode::OK, &DomainBatchAnswer { results })).await?;
    app.claims_changed.notify_one();
    Ok(response)
}

/// Changes a domain by a merge patch (RFC 7396). Its hostname stays.
#[utoipa::path(patch, path = "/v1/domains/{domain}", tag = "domains",
    params(("domain" = String, Path), ("If-Match" = String, Header)), request_body = DomainSpec,
    responses((status = 200, body = Domain), (status = 404), (status = 412), (status = 422), (status = 428)))]
pub(in crate::http) async fn patch(
    State(app): State<App>,
    call: Call,
    Path(text): Path<String>,
    body: JsonBody<serde_json::Value>,
) -> Answered<Response> {
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let mut row = find(&mut write.tx, &call, &text).await?;
    call.check_revision(row.revision)?;
    let before = row.spec.clone();
    row.spec = patched(&before, &body.value)?;
    let tenant = tenant::find(&mut write.tx, row.tenant_id).await?.ok_or_else(missing)?;
    let own = app.own.places(&mut write.tx).await?;
    let judged = |spec: &DomainSpec| {
        let mut errors = spec::domain(spec, &own.egress, &tenant.spec.egress_grants);
        errors.extend(backup(&app, &tenant, spec));
        errors.extend(spec::circular(&row.name, &spec.routes, &app.parts.config.fleet));
        errors
    };
    let mut errors = judged(&row.spec);
    if errors.len() > 1 {
        // What this call brings comes before what stood there and is refused today, such as an origin without its grant.
        let standing = judged(&before);
        let stood = |error: &FieldError| {
            standing.iter().any(|other| other.code == error.code && other.message == error.message)
        };
        errors.sort_by_key(stood);
    }
    if row.spec.cells != before.cells {
        if call.caller.tenant.is_some() {
            errors.extend(spec::cells_of_tenant(&row.spec.cells, &tenant.spec.cells));
        } else if let Some((unknown, known)) = cell::unknown(&mut write.tx, &row.spec.cells).await? {
            errors.push(spec::unknown_cell(&unknown, &known));
        }
        let (issuers, name) = (&app.parts.config.issuers, row.name.to_string());
        errors.extend(spec::borne_cells(&row.spec.cells, &tenant.spec.issuers, issuers, Some(&name)));
    }
    match spec::hostname(&mut row.spec) {
        Ok(name) if name == row.name => {}
        Ok(_) => errors.push(field(
            "/hostname",
            "immutable",
            "a domain keeps its name; add the other name as its own domain",
        )),
        Err(error) => errors.push(error),
    }
    errors.extend(origin_identity::check(&mut write.tx, row.tenant_id, &row.spec).await?);
    if !errors.is_empty() {
        return Err(Fault::fields(errors));
    }
    if row.spec == before {
        // Nothing to bring to the edges, and whoever has read this revision has read what there is.
        let shown = view::one_domain(&app, &mut write.tx, &row).await?;
        return write.finish(Answer::json(StatusCode::OK, &shown).revision(row.revision)).await;
    }
    let now = write.now_ms;
    if row.served {
        let of = (row.tenant_id, &*tenant.spec.cells);
        origin_identity::prepare(&mut write.tx, &app.parts.sealer, of, &row.spec, now).await?;
    }
    domain::update(&mut write.tx, &mut row, now).await?;
    domain::publish(&mut write.tx, &row).await?;
    write.audit("domain.patch", &row.id.to_string(), &before, &row.spec).await?;
    let shown = view::one_domain(&app, &mut write.tx, &row).await?;
    write.finish(Answer::json(StatusCode::OK, &shown).revision(row.revision)).await
}

/// Deletes a domain; 204 also when it is gone, 202 when the edges still serve it, because so many names left at once that an
/// operator has to sign their removal off. Whoever claims the name next, this tenant too, proves anew. A suspended one is an
/// operator's to delete.
#[utoipa::path(delete, path = "/v1/domains/{domain}", tag = "domains",
    params(("domain" = String, Path), ("If-Match" = String, Header)),
    responses((status = 204), (status = 202, body = HeldRemoval), (status = 404), (status = 409), (status = 412),
        (status = 428)))]
pub(in crate::http) async fn delete(
    State(app): State<App>,
    call: Call,
    Path(text): Path<String>,
) -> Answered<Response> {
    let mut write = match Write::begin(&app, &call, &[]).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let row = match find(&mut write.tx, &call, &text).await {
        Ok(row) => row,
        // Gone counts as deleted, but only for whoever had it.
        Err(fault) => {
            let Ok(id) = text.parse::<DomainId>() else { return Err(fault) };
            let before = domain::find_any(&mut write.tx, id).await?;
            return match before.filter(|row| call.caller.sees(row.tenant_id) && row.deleted_at.is_some()) {
                Some(_) => {
                    let response = write.finish(Answer::no_content()).await?;
                    Ok(still_served(&app, id).await.unwrap_or(response))
                }
                None => Err(fault),
            };
        }
    };
    call.check_revision(row.revision)?;
    if call.caller.tenant.is_some() && view::effective(row.suspension.as_ref(), write.now_ms).is_some() {
        // Claimed anew it would be served: the suspension would be over at the tenant's word.
        let detail = format!("{} is suspended; ask the operator to resume or delete it", row.name);
        return Err(Fault::conflict("suspended", detail));
    }
    let id = row.id;
    delete_domain(&mut write, row).await?;
    let response = write.finish(Answer::no_content()).await?;
    Ok(still_served(&app, id).await.unwrap_or(response))
}

/// The answer about a deleted domain that the edges still serve: its removal waits for an operator's word.
async fn still_served(app: &App, id: DomainId) -> Option<Response> {
    match app.fleet.held_removal(&app.parts.store, id).await {
        Ok(held) => Some(Answer::json(StatusCode::ACCEPTED, &removals::shown(held?)).into_response()),
        // The deletion is done and stays acknowledged; the publisher tries again by itself.
        Err(fault) => {
            tracing::warn!(%id, detail = fault.detail, "cannot tell whether the removal is held");
            None
        }
    }
}

/// Looks at DNS and proofs now, and lets a failed order be tried again.
#[utoipa::path(post, path = "/v1/domains/{domain}/check", tag = "domains", params(("domain" = String, Path)),
    responses((status = 200, body = Domain), (status = 404)))]
pub(in crate::http) async fn check(
    State(app): State<App>,
    call: Call,
    Path(text): Path<String>,
    body: RawBody,
) -> Answered<Response> {
    paced(&app, &call)?;
    let row = find(&mut *app.parts.store.read().await?, &call, &text).await?;
    // Before the writer's turn: this takes seconds.
    let seen = ownership::look(&app, &row).await;
    let mut write = match Write::begin(&app, &call, &body.0).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let (now, actor) = (write.now_ms, write.actor().to_owned());
    ownership::apply(&mut write.tx, &seen, &actor, now).await?;
    presence::wake(&mut write.tx, row.id).await?;
    // As `retry` does, when it may; else the back-off goes on. Not for a claim that is not proved: nothing is ordered for it, and
    // whoever has the name would be told that its retry is spent.
    let by_operator = call.caller.tenant.is_none();
    let served = domain::find(&mut write.tx, row.id).await?.is_some_and(|row| row.served);
    if served
        && group::name_waits(&mut write.tx, row.id, now).await?
        && retry::ask(&mut write.tx, row.id, row.tenant_id, by_operator, now).await?.is_ok()
    {
        group::retry_name_now(&mut write.tx, row.id, now).await?;
    }
    write.audit("domain.check", &row.id.to_string(), &(), &()).await?;
    write.commit().await?;
    let mut read = app.parts.store.read().await?;
    let row = domain::find(&mut read, row.id).await?.ok_or_else(missing)?;
    let shown = view::one_domain(&app, &mut read, &row).await?;
    Ok(Answer::json(StatusCode::OK, &shown).revision(row.revision).into_response())
}

/// Has a name whose certificate failed tried again now, instead of after its back-off; the CA's limits hold all the same.
/// 429 when it was asked for within 12 minutes, or ten times in an hour by the tenant.
#[utoipa::path(post, path = "/v1/domains/{domain}/retry", tag = "domains", params(("domain" = String, Path)),
    responses((status = 200, body = Domain), (status = 404), (status = 409), (status = 429)))]
pub(in crate::http) async fn retry(
    State(app): State<App>,
    call: Call,
    Path(text): Path<String>,
    body: RawBody,
) -> Answered<Response> {
    let mut write = match Write::begin(&app, &call, &body.0).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let row = find(&mut write.tx, &call, &text).await?;
    if !row.served {
        let detail =
            format!("{} is not proved yet, so nothing is ordered for it; see its next_action", row.name);
        return Err(Fault::conflict("not_proved", detail));
    }
    let now = write.now_ms;
    if group::name_waits(&mut write.tx, row.id, now).await? {
        let by_operator = call.caller.tenant.is_none();
        let asked = retry::ask(&mut write.tx, row.id, row.tenant_id, by_operator, now).await?;
        asked.map_err(|too_soon| retry_later(&row.name, too_soon, now))?;
        group::retry_name_now(&mut write.tx, row.id, now).await?;
        write.audit("domain.retry", &row.id.to_string(), &(), &()).await?;
    }
    let shown = view::one_domain(&app, &mut write.tx, &row).await?;
    write.finish(Answer::json(StatusCode::OK, &shown).revision(row.revision)).await
}

fn retry_later(name: &NamePattern, too_soon: retry::TooSoon, now: i64) -> Fault {
    let at = rfc3339(too_soon.next_ms);
    let detail = if too_soon.of_tenant {
        format!(
            "{} names were tried again at your request within an hour, the most there may be; ask again at {at}",
            retry::TENANT_CALLS_MAX
        )
    } else {
        format!("{name} was tried again at somebody's request a short while ago; ask again at {at}")
    };
    let wait_ms = too_soon.next_ms.saturating_sub(now).max(1).unsigned_abs();
    Fault::new(StatusCode::TOO_MANY_REQUESTS, "retry_too_soon", detail).retry_after(wait_ms.div_ceil(1000))
}

/// The operator vouches for names. That displaces nobody, and a tenant's own proof goes before it.
#[utoipa::path(post, path = "/v1/domains/attest", tag = "domains", request_body = Attestation,
    responses((status = 200, body = DomainBatchAnswer), (status = 422)))]
pub(in crate::http) async fn attest(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    body: JsonBody<Attestation>,
) -> Answered<Response> {
    let Attestation { domain_ids, note } = body.value;
    bounded("/domain_ids", domain_ids.len())?;
    if !(1..=NOTE_BYTES_MAX).contains(&note.len()) {
        let message = format!("say why in 1 to {NOTE_BYTES_MAX} bytes");
        return Err(Fault::fields(vec![field("/note", "invalid_note", message)]));
    }
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let mut results = Vec::with_capacity(domain_ids.len());
    for id in domain_ids {
        results.push(match attest_one(&mut write, id, &note).await {
            Ok(()) => done(StatusCode::OK, id),
            Err(fault) if fault.status.is_server_error() => return Err(fault),
            Err(fault) => refused(&fault, &call),
        });
    }
    write.finish(Answer::json(StatusCode::OK, &DomainBatchAnswer { results })).await
}

async fn attest_one(write: &mut Write, id: DomainId, note: &str) -> Answered<()> {
    let row = domain::find(&mut write.tx, id).await?.ok_or_else(missing)?;
    ownership::attest(write, row, note).await
}

fn bounded(pointer: &str, items: usize) -> Answered<()> {
    if (1..=BATCH_ITEMS_MAX).contains(&items) {
        return Ok(());
    }
    Err(Fault::fields(vec![field(
        pointer,
        "out_of_range",
        format!("must have 1 to {BATCH_ITEMS_MAX} items"),
    )]))
}

pub(in crate::http) fn done(status: StatusCode, id: DomainId) -> DomainBatchResult {
    DomainBatchResult { status: status.as_u16(), id: Some(id), problem: None }
}

pub(in crate::http) fn refused(fault: &Fault, call: &Call) -> DomainBatchResult {
    DomainBatchResult {
        status: fault.status.as_u16(),
        id: None,
        problem: Some(fault.problem(&call.request_id)),
    }
}

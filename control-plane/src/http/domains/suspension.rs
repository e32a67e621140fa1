//! Suspends and resumes one domain.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::distribution::ResourceKind;
use portico_api::v1::{Suspension, SuspensionAnswer};

use super::find;
use crate::app::{App, spec};
use crate::http::call::{Call, OperatorCall};
use crate::http::fault::{Answered, Fault};
use crate::http::json_body::{JsonBody, RawBody};
use crate::http::write::{Answer, Begun, Write};
use crate::store::{change, domain};

/// Takes a domain out of service; its certificate and challenges stay alive.
#[utoipa::path(post, path = "/v1/domains/{domain}/suspend", tag = "domains", params(("domain" = String, Path)),
    request_body = Suspension, responses((status = 200, body = SuspensionAnswer), (status = 404), (status = 422)))]
pub(in crate::http) async fn suspend(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    Path(text): Path<String>,
    body: JsonBody<Suspension>,
) -> Answered<Response> {
    let errors = spec::suspension(&body.value, app.parts.clock.now_ms());
    if !errors.is_empty() {
        return Err(Fault::fields(errors));
    }
    set(&app, &call, &text, Some(body.value), &body.raw).await
}

/// Puts a domain back into service.
#[utoipa::path(post, path = "/v1/domains/{domain}/resume", tag = "domains", params(("domain" = String, Path)),
    responses((status = 200, body = SuspensionAnswer), (status = 404)))]
pub(in crate::http) async fn resume(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    Path(text): Path<String>,
    body: RawBody,
) -> Answered<Response> {
    set(&app, &call, &text, None, &body.0).await
}

/// The durable part in one transaction, then the short way to the edges. The same call again does the same again.
async fn set(
    app: &App,
    call: &Call,
    text: &str,
    wanted: Option<Suspension>,
    body: &[u8],
) -> Answered<Response> {
    let mut write = match Write::begin(app, call, body).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let mut row = find(&mut write.tx, call, text).await?;
    let before = std::mem::replace(&mut row.suspension, wanted.clone());
    let (now, id) = (write.now_ms, row.id.to_string());
    domain::update(&mut write.tx, &mut row, now).await?;
    domain::publish(&mut write.tx, &row).await?;
    let version = change::version(&mut write.tx, ResourceKind::Domain, &id).await?;
    let (action, word) =
        if wanted.is_some() { ("domain.suspend", "suspended") } else { ("domain.resume", "resumed") };
    write.audit(action, &id, &before, &wanted).await?;
    write
        .event(&format!("domain.{word}"), Some(row.tenant_id), &id, &format!("{} was {word}", row.name))
        .await?;
    write.commit().await?;
    let answer = match version {
        Some(version) => app.fleet.suspend(row.tenant_id, Some(row.id), wanted.as_ref(), version).await,
        // Not served, so no edge has it.
        None => SuspensionAnswer { acked: Vec::new(), not_acked: Vec::new() },
    };
    Ok(Answer::json(StatusCode::OK, &answer).into_response())
}

//! Lists, shows, waits, previews.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{ConditionKind, ConditionStatus, Domain, DomainStatus, IDS_MAX, Page, Preview};
use portico_cert_store::{DomainId, NamePattern, TenantId};
use serde::Deserialize;

use super::{find, missing};
use crate::app::{App, view};
use crate::clock;
use crate::http::call::Call;
use crate::http::fault::{Answered, Fault};
use crate::http::list::{cursor_after, limit, read_cursor};
use crate::http::query::Query;
use crate::http::write::Answer;
use crate::store::condition;
use crate::store::domain::{self, DomainFilter};

/// Rows that one call looks through for a status; a page may then be short and have a cursor all the same.
const SCANNED_MAX: usize = 10_000;
const SCAN_STEP: u32 = 500;
const WAIT_MAX: Duration = Duration::from_secs(300);
const WAIT_DEFAULT: Duration = Duration::from_secs(60);
/// Edges' acknowledgements are not in the store, so waiting looks again at this pace too.
const WAIT_STEP: Duration = Duration::from_millis(100);
const FILTER_BYTES_MAX: usize = 253;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct ListQuery {
    ids: Option<String>,
    tenant: Option<String>,
    status: Option<String>,
    q: Option<String>,
    hostname: Option<String>,
    cursor: Option<String>,
    limit: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct ShowQuery {
    wait: Option<String>,
    timeout: Option<String>,
}

/// Lists domains, oldest first. A page may be short although there are more: go on while there is a cursor. With `ids`,
/// and nothing else, those of them that there are.
#[utoipa::path(get, path = "/v1/domains", tag = "domains",
    params(("ids" = Option<String>, Query, description = "up to 200 ids, with commas between"),
        ("tenant" = Option<String>, Query), ("status" = Option<DomainStatus>, Query),
        ("q" = Option<String>, Query, description = "part of the hostname"),
        ("hostname" = Option<String>, Query, description = "the whole hostname: each tenant's claim of it"),
        ("cursor" = Option<String>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = Page<Domain>)))]
pub(in crate::http) async fn list(
    State(app): State<App>,
    call: Call,
    Query(query): Query<ListQuery>,
) -> Answered<axum::Json<Page<Domain>>> {
    if query.ids.is_some() {
        return list_ids(&app, &call, &query).await;
    }
    let limit = limit(query.limit)? as usize;
    let status = query.status.as_deref().map(read_status).transpose()?;
    let empty = || axum::Json(Page { items: Vec::new(), next_cursor: None });
    let wanted = match query.tenant.as_deref().map(str::parse::<TenantId>) {
        Some(Ok(tenant)) if call.caller.sees(tenant) => Some(tenant),
        Some(_) => return Ok(empty()),
        None => call.caller.tenant,
    };
    let part = query.q.filter(|part| !part.is_empty());
    if part.as_ref().is_some_and(|part| part.len() > FILTER_BYTES_MAX) {
        return Ok(empty());
    }
    let name = match query.hostname.as_deref().map(NamePattern::parse) {
        Some(Err(_)) => return Ok(empty()),
        Some(Ok(name)) => Some(name),
        None => None,
    };
    let after = read_cursor(query.cursor.as_deref())?;
    // With a status, most rows may not match: take larger steps, bounded as a whole.
    let step = if status.is_some() { SCAN_STEP } else { u32::try_from(limit).unwrap_or(SCAN_STEP) + 1 };
    let mut filter = DomainFilter { tenant: wanted, part, name, after, limit: step };
    let mut read = app.parts.store.read().await?;
    let (mut items, mut scanned) = (Vec::new(), 0);
    loop {
        let rows = domain::list(&mut read, &filter).await?;
        let last_step = rows.len() < step as usize;
        scanned += rows.len();
        for domain in view::domains(&app, &mut read, &rows).await? {
            if status.is_none_or(|status| domain.status == status) {
                if items.len() == limit {
                    let next_cursor = items.last().map(|last: &Domain| cursor_after(&last.id.to_string()));
                    return Ok(axum::Json(Page { items, next_cursor }));
                }
                items.push(domain);
            }
        }
        if last_step {
            return Ok(axum::Json(Page { items, next_cursor: None }));
        }
        filter.after = rows.last().map(|row| row.id.to_string()).unwrap_or_default();
        if scanned >= SCANNED_MAX {
            let next_cursor = Some(cursor_after(&filter.after));
            return Ok(axum::Json(Page { items, next_cursor }));
        }
    }
}

async fn list_ids(app: &App, call: &Call, query: &ListQuery) -> Answered<axum::Json<Page<Domain>>> {
    let others = [&query.tenant, &query.status, &query.q, &query.hostname, &query.cursor];
    let ids = query.ids.as_deref().unwrap_or_default().split(',').map(str::parse);
    let ids: Option<Vec<DomainId>> = ids.collect::<Result<_, _>>().ok();
    let ids = ids.filter(|ids| ids.len() <= IDS_MAX && others.iter().all(|other| other.is_none()));
    let ids = ids.ok_or_else(|| {
        let text =
            format!("ids takes 1 to {IDS_MAX} ids of domains with commas between, and no other filter");
        Fault::bad_request("ids_invalid", text)
    })?;
    let mut read = app.parts.store.read().await?;
    let mut rows = domain::find_many(&mut read, &ids).await?;
    rows.retain(|row| call.caller.sees(row.tenant_id));
    Ok(axum::Json(Page { items: view::domains(app, &mut read, &rows).await?, next_cursor: None }))
}

fn read_status(text: &str) -> Answered<DomainStatus> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|_| {
        Fault::bad_request(
            "status_invalid",
            "status must be pending, validating, issuing, deploying, active, degraded, failed, left, suspended or deleting",
        )
    })
}

/// Shows a domain by id or hostname; with `wait=active` answers when it is active, or as it stands at the timeout.
#[utoipa::path(get, path = "/v1/domains/{domain}", tag = "domains",
    params(("domain" = String, Path, description = "id or hostname"),
        ("wait" = Option<String>, Query, description = "`active`"),
        ("timeout" = Option<String>, Query, description = "seconds, such as `60s`; at most 300")),
    responses((status = 200, body = Domain), (status = 404)))]
pub(in crate::http) async fn show(
    State(app): State<App>,
    call: Call,
    Path(text): Path<String>,
    Query(query): Query<ShowQuery>,
) -> Answered<Response> {
    let wait = match query.wait.as_deref() {
        None => Duration::ZERO,
        Some("active") => read_timeout(query.timeout.as_deref())?,
        Some(_) => return Err(Fault::bad_request("wait_invalid", "wait must be `active`")),
    };
    let until = clock::instant() + wait;
    let mut changes = app.parts.store.changes();
    let id = find(&mut *app.parts.store.read().await?, &call, &text).await?.id;
    let _place = if wait.is_zero() { None } else { Some(app.waits.begin(&call.caller.token_id)?) };
    loop {
        let mut read = app.parts.store.read().await?;
        let row = domain::find(&mut read, id).await?.ok_or_else(missing)?;
        let shown = view::one_domain(&app, &mut read, &row).await?;
        drop(read);
        let left = until.saturating_duration_since(clock::instant());
        if shown.status == DomainStatus::Active || left.is_zero() || app.parts.shutdown.is_cancelled() {
            return Ok(Answer::json(StatusCode::OK, &shown).revision(row.revision).into_response());
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = app.parts.shutdown.cancelled() => {}
            () = tokio::time::sleep(WAIT_STEP.min(left)) => {}
        }
    }
}

fn read_timeout(text: Option<&str>) -> Answered<Duration> {
    let Some(text) = text else { return Ok(WAIT_DEFAULT) };
    let seconds = text.strip_suffix('s').unwrap_or(text).parse().ok().map(Duration::from_secs);
    seconds.filter(|&seconds| seconds <= WAIT_MAX).ok_or_else(|| {
        Fault::bad_request("timeout_invalid", "timeout must be whole seconds up to 300, such as `60s`")
    })
}

/// How to try the site on an edge before DNS moves.
#[utoipa::path(get, path = "/v1/domains/{domain}/preview", tag = "domains", params(("domain" = String, Path)),
    responses((status = 200, body = Preview), (status = 404)))]
pub(in crate::http) async fn preview(
    State(app): State<App>,
    call: Call,
    Path(text): Path<String>,
) -> Answered<axum::Json<Preview>> {
    let mut read = app.parts.store.read().await?;
    let row = find(&mut read, &call, &text).await?;
    let observed = condition::of(&mut read, &[row.id]).await?;
    let points_here = observed.iter().find(|row| row.observed.kind == ConditionKind::DnsPointsHere);
    let fleet = &app.parts.config.fleet;
    let base = row.name.base();
    let host = if row.name.is_wildcard() { format!("preview.{base}") } else { base.to_string() };
    let port = fleet.https_port;
    let at_port = if port == 443 { String::new() } else { format!(":{port}") };
    let curl = |address: &std::net::IpAddr| {
        let address = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
        format!("curl --resolve {host}:{port}:{address} https://{host}{at_port}/")
    };
    Ok(axum::Json(Preview {
        hosts_lines: fleet.public_addresses.iter().map(|address| format!("{address} {host}")).collect(),
        curl_lines: fleet.public_addresses.iter().map(curl).collect(),
        dns_points_here: points_here.map_or(ConditionStatus::Unknown, |row| row.observed.status),
        hostname: host,
    }))
}

//! `/v1/usage`: what was served, summed as the caller wants it.

use axum::extract::State;
use portico_api::v1::{Page, UsageBy, UsageOrder, UsageRow};
use portico_cert_store::{NamePattern, TenantId};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::call::Call;
use super::fault::{Answered, Fault};
use super::list::{cursor_after, limit, read_cursor};
use super::query::Query;
use crate::app::App;
use crate::store::tenant;
use crate::store::usage::{self, Wanted};

const HOUR_SECONDS: i64 = 3600;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageQuery {
    from: Option<String>,
    to: Option<String>,
    tenant: Option<String>,
    domain: Option<String>,
    by: Option<String>,
    #[serde(default)]
    order: UsageOrder,
    cursor: Option<String>,
    limit: Option<u32>,
}

/// Sums what was served from `from` (as a rule, ever) up to `to` (now), both whole hours, by tenant unless `by` says
/// otherwise. An edge reports once a minute; figures are final when the edges have been connected since. A tenant sees its own.
#[utoipa::path(get, path = "/v1/usage", tag = "usage",
    params(("from" = Option<String>, Query, description = "RFC 3339, on the hour"),
        ("to" = Option<String>, Query, description = "RFC 3339, on the hour; not in itself"),
        ("tenant" = Option<String>, Query), ("domain" = Option<String>, Query, description = "its name"),
        ("by" = Option<String>, Query, description = "of `tenant`, `domain`, and `day` or `hour`, with commas between; empty: one sum"),
        ("order" = Option<UsageOrder>, Query), ("cursor" = Option<String>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = Page<UsageRow>), (status = 400)))]
pub(super) async fn list(
    State(app): State<App>,
    call: Call,
    Query(query): Query<UsageQuery>,
) -> Answered<axum::Json<Page<UsageRow>>> {
    let limit = limit(query.limit)?;
    let by = read_by(query.by.as_deref().unwrap_or("tenant"))?;
    let from_hour = query.from.as_deref().map_or(Ok(0), |text| read_hour("from", text))?;
    let to_hour = query.to.as_deref().map_or(Ok(i64::MAX), |text| read_hour("to", text))?;
    if from_hour >= to_hour {
        return Err(Fault::bad_request("time_invalid", "from must lie before to, which is not in itself"));
    }
    let offset: u64 = match read_cursor(query.cursor.as_deref())?.as_str() {
        "" => 0,
        text => text.parse().map_err(|_| Fault::bad_request("cursor_invalid", "give back next_cursor"))?,
    };
    let nothing = || axum::Json(Page { items: Vec::new(), next_cursor: None });
    let tenant = match query.tenant.as_deref().map(str::parse::<TenantId>) {
        Some(Ok(tenant)) if call.caller.sees(tenant) => Some(tenant),
        Some(_) => return Ok(nothing()),
        None => call.caller.tenant,
    };
    let name = match query.domain.as_deref().map(NamePattern::parse) {
        Some(Ok(name)) => Some(name.to_string()),
        Some(Err(_)) => return Ok(nothing()),
        None => None,
    };
    let wanted = Wanted { from_hour, to_hour, tenant, name: name.as_deref(), by: &by, order: query.order };
    let mut read = app.parts.store.read().await?;
    let mut items = usage::list(&mut read, &wanted, limit, offset).await?;
    if by.contains(&UsageBy::Tenant) {
        let names = tenant::names(&mut read).await?;
        for row in &mut items {
            let id = row.tenant_id.as_deref().and_then(|id| id.parse::<TenantId>().ok());
            row.tenant_name = id.and_then(|id| names.get(&id).cloned());
        }
    }
    let next = offset + items.len() as u64;
    let next_cursor = (items.len() == limit as usize).then(|| cursor_after(&next.to_string()));
    Ok(axum::Json(Page { items, next_cursor }))
}

fn read_by(text: &str) -> Answered<Vec<UsageBy>> {
    let mut by: Vec<UsageBy> = Vec::new();
    for word in text.split(',').filter(|word| !word.is_empty()) {
        let one: UsageBy =
            word.parse().map_err(|text| Fault::bad_request("by_invalid", format!("by: {text}")))?;
        if by.contains(&one) {
            return Err(Fault::bad_request("by_invalid", format!("by: `{word}` is there twice")));
        }
        by.push(one);
    }
    if by.contains(&UsageBy::Day) && by.contains(&UsageBy::Hour) {
        return Err(Fault::bad_request("by_invalid", "by: `hour` is within its `day`; give one of them"));
    }
    Ok(by)
}

fn read_hour(name: &str, text: &str) -> Answered<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp);
    let hour = time.filter(|seconds| seconds % HOUR_SECONDS == 0).map(|seconds| seconds / HOUR_SECONDS);
    hour.ok_or_else(|| {
        let detail = format!("{name} must be a whole hour as 2026-11-01T00:00:00Z");
        Fault::bad_request("time_invalid", detail)
    })
}

//! `/v1/budget`: what CAs, and the operator, still let us order.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use portico_api::v1::{BudgetReport, IssuerBudget};
use portico_cert_store::NamePattern;
use serde::Deserialize;

use super::call::Call;
use super::fault::{Answered, Fault};
use super::query::Query;
use crate::app::App;
use crate::app::budget::{self, Scope};
use crate::clock::rfc3339;
use crate::config::IssuerConfig;
use crate::plan::report::{Terms, outlook};
use crate::store::domain;
use crate::tasks::issuance::read_facts;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BudgetQuery {
    issuer: Option<String>,
    name: Option<String>,
}

/// Shows used, free, next slot and forecast of every limit: an operator those of the accounts and the fullest of all others, or
/// those of a name; a tenant its own budget, and the limits of its names.
#[utoipa::path(get, path = "/v1/budget", tag = "plan",
    params(("issuer" = Option<String>, Query, description = "of this issuer only"),
        ("name" = Option<String>, Query, description = "the limits of this hostname")),
    responses((status = 200, body = BudgetReport), (status = 400), (status = 404)))]
pub(super) async fn show(
    State(app): State<App>,
    call: Call,
    Query(query): Query<BudgetQuery>,
) -> Answered<axum::Json<BudgetReport>> {
    let scope = scope(&app, &call, query.name.as_deref()).await?;
    let configured = &app.parts.config.issuers;
    let is_wanted =
        |issuer: &&IssuerConfig| query.issuer.as_ref().is_none_or(|wanted| issuer.name == *wanted);
    let wanted: Vec<&IssuerConfig> = configured.iter().filter(is_wanted).collect();
    if wanted.is_empty()
        && let Some(name) = &query.issuer
    {
        let known: Vec<&str> = configured.iter().map(|issuer| issuer.name.as_str()).collect();
        let detail = format!("no issuer is named {name}; there are: {}", known.join(", "));
        return Err(Fault::new(StatusCode::NOT_FOUND, "not_found", detail));
    }
    let mut issuers = Vec::new();
    for issuer in wanted {
        let mut budget = budget::of_issuer(&app, issuer, &scope).await?;
        // New names go to the first.
        if matches!(scope, Scope::All) && configured.first().is_some_and(|first| first.name == issuer.name) {
            forecast(&app, issuer, &mut budget).await?;
        }
        issuers.push(budget);
    }
    Ok(axum::Json(BudgetReport { issuers }))
}

async fn scope(app: &App, call: &Call, name: Option<&str>) -> Answered<Scope> {
    let Some(name) = name else { return Ok(call.caller.tenant.map_or(Scope::All, Scope::Tenant)) };
    let name = NamePattern::parse(name)
        .map_err(|error| Fault::bad_request("query_invalid", format!("name: {error}")))?;
    if call.caller.tenant.is_some() {
        let served = domain::find_served(&mut *app.parts.store.read().await?, &name).await?;
        if served.is_none_or(|row| !call.caller.sees(row.tenant_id)) {
            return Err(Fault::not_found("domain"));
        }
    }
    Ok(Scope::Name(name))
}

/// When the orders that are still needed can go.
async fn forecast(app: &App, issuer: &IssuerConfig, budget: &mut IssuerBudget) -> Answered<()> {
    let spent = Arc::new(budget::spent(app, issuer).await?);
    let names_per_certificate_max = app.parts.config.names_per_certificate_max();
    let terms =
        Terms { names_per_certificate_max, limits: issuer.limits(), spent, sharing: None, cells: None };
    let facts = read_facts(&app.parts).await?;
    let now_ms = facts.now_ms;
    // Up to seconds of work with a million names: not on a thread that serves others.
    let made = tokio::task::spawn_blocking(move || outlook(&facts, &terms)).await;
    let (orders, last_ms) = made.map_err(|error| {
        tracing::error!(%error, "the forecast could not be made");
        let detail = "the forecast could not be made; the log has the cause";
        Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    })?;
    budget.orders_needed = Some(orders);
    budget.through_at = (last_ms > 0).then(|| rfc3339(now_ms + last_ms));
    Ok(())
}

//! `/v1/plan`: what issuance is about to do, and what-if.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use portico_api::v1::{PlanReport, Sharing};
use portico_cert_store::NamePattern;
use serde::Deserialize;

use super::call::OperatorCall;
use super::fault::{Answered, Fault};
use super::query::Query;
use crate::app::{App, budget};
use crate::clock::HOUR_MS;
use crate::limits::CELLS_OF_NAME_MAX;
use crate::plan::ledger::Rate;
use crate::plan::reconcile::Facts;
use crate::plan::report::{Asked, Question, Terms, report};
use crate::store::{condition, domain, tenant};
use crate::tasks::issuance::read_facts;

/// Groups that are listed unless asked for more, and at most.
const GROUPS_LISTED: usize = 100;
const GROUPS_LISTED_MAX: usize = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanQuery {
    names_per_certificate_max: Option<usize>,
    sharing: Option<Sharing>,
    orders_3h: Option<u32>,
    groups: Option<usize>,
    cells: Option<usize>,
    explain: Option<String>,
}

/// Shows which names share certificates, how many orders that takes, when the CA's limits let them through and what hangs
/// on one key; with parameters, what it would be under other terms. Changes nothing.
#[utoipa::path(get, path = "/v1/plan", tag = "plan",
    params(("names_per_certificate_max" = Option<u32>, Query), ("sharing" = Option<Sharing>, Query),
        ("orders_3h" = Option<u32>, Query), ("groups" = Option<u32>, Query), ("cells" = Option<u32>, Query), ("explain" = Option<String>, Query)),
    responses((status = 200, body = PlanReport), (status = 400), (status = 404), (status = 409)))]
pub(super) async fn show(
    State(app): State<App>,
    _call: OperatorCall,
    Query(query): Query<PlanQuery>,
) -> Answered<axum::Json<PlanReport>> {
    let Some(issuer) = app.parts.config.issuers.first() else {
        let detail = "no issuer is configured, so nothing is ordered; add an [[issuer]] to the configuration";
        return Err(Fault::conflict("no_issuer", detail));
    };
    let names_max =
        query.names_per_certificate_max.unwrap_or_else(|| app.parts.config.names_per_certificate_max());
    if !(1..=100).contains(&names_max) {
        return Err(Fault::bad_request(
            "query_invalid",
            "names_per_certificate_max: from 1 to 100".to_owned(),
        ));
    }
    let groups_listed = query.groups.unwrap_or(GROUPS_LISTED);
    if groups_listed > GROUPS_LISTED_MAX {
        return Err(Fault::bad_request("query_invalid", format!("groups: at most {GROUPS_LISTED_MAX}")));
    }
    if query.orders_3h == Some(0) {
        let detail = "orders_3h: from 1; an account that may order nothing gets no certificate at all";
        return Err(Fault::bad_request("query_invalid", detail));
    }
    if query.cells.is_some_and(|cells| !(1..=CELLS_OF_NAME_MAX).contains(&cells)) {
        return Err(Fault::bad_request("query_invalid", format!("cells: from 1 to {CELLS_OF_NAME_MAX}")));
    }
    let name = match query.explain.as_deref().map(NamePattern::parse).transpose() {
        Ok(name) => name,
        Err(error) => return Err(Fault::bad_request("query_invalid", format!("explain: {error}"))),
    };
    let spent = Arc::new(budget::spent(&app, issuer).await?);
    let limits = match query.orders_3h {
        Some(orders) => issuer.limits_with(Rate::per(orders, 3 * HOUR_MS)),
        None => spent.limits.clone(),
    };
    let terms = Terms {
        names_per_certificate_max: names_max,
        limits,
        spent,
        sharing: query.sharing,
        cells: query.cells,
    };
    let facts = read_facts(&app.parts).await?;
    let question = question(&app, &facts, name.as_ref(), groups_listed).await?;
    // Up to seconds of work with a million names: not on a thread that serves others.
    let made = tokio::task::spawn_blocking(move || report(&facts, &terms, &question)).await;
    let made = made.map_err(|error| {
        tracing::error!(%error, "the plan could not be made");
        Fault::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the plan could not be made; the log has the cause",
        )
    })?;
    match name {
        Some(name) if made.explanation.is_none() => {
            let detail = format!("nobody brings {name}, and no wildcard covers it");
            Err(Fault::new(StatusCode::NOT_FOUND, "not_found", detail))
        }
        _ => Ok(axum::Json(made)),
    }
}

async fn question(
    app: &App,
    facts: &Facts,
    name: Option<&NamePattern>,
    groups_listed: usize,
) -> Answered<Question> {
    let mut read = app.parts.store.read().await?;
    let explain = match name {
        None => None,
        Some(name) => {
            let claims = domain::claims(&mut read, name).await?;
            let ids: Vec<_> = claims.iter().filter(|claim| claim.served).map(|claim| claim.id).collect();
            let conditions = condition::of(&mut read, &ids).await?;
            Some(Asked::of(name.clone(), &claims, &conditions, facts))
        }
    };
    let tenants = tenant::names(&mut read).await?;
    Ok(Question { tenants, unproved: domain::count_unproved(&mut read).await?, groups_listed, explain })
}

//! `/v1/default-certificate`: what edges show for names that nobody brought.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{DefaultCertificate, DefaultCertificateRequest};
use portico_cert_store::{CellId, NamePattern};

use super::call::OperatorCall;
use super::fault::{Answered, Fault, field};
use super::json_body::JsonBody;
use super::write::{Answer, Begun, Write};
use crate::app::App;
use crate::store::domain::{self, DomainRow};
use crate::store::{Connection, cell, projection_rows, publication};

/// Shows whose certificate is the default one.
#[utoipa::path(get, path = "/v1/default-certificate", tag = "edges",
    responses((status = 200, body = DefaultCertificate), (status = 404)))]
pub(super) async fn show(
    State(app): State<App>,
    _call: OperatorCall,
) -> Answered<axum::Json<DefaultCertificate>> {
    let mut read = app.parts.store.read().await?;
    chosen(&mut read).await?.map(axum::Json).ok_or_else(|| Fault::not_found("default certificate"))
}

/// Chooses the certificate of a domain, in every cell that has one. It follows the domain: a renewed certificate, and
/// one of another group, take its place by themselves.
#[utoipa::path(put, path = "/v1/default-certificate", tag = "edges", request_body = DefaultCertificateRequest,
    responses((status = 200, body = DefaultCertificate), (status = 409), (status = 422)))]
pub(super) async fn choose(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    body: JsonBody<DefaultCertificateRequest>,
) -> Answered<Response> {
    let hostname = body.value.hostname;
    let wrong = |code, text| Fault::fields(vec![field("/hostname", code, text)]);
    let name = NamePattern::parse(&hostname).map_err(|error| wrong("invalid", error.to_string()))?;
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let domain = domain::find_served(&mut write.tx, &name).await?.ok_or_else(|| {
        wrong("not_served", format!("no domain {name} is served; add it and prove that it is yours first"))
    })?;
    let new = with_cells(&mut write.tx, &domain).await?;
    if new.cells.is_empty() {
        let text =
            format!("{name} has no certificate yet; choose it when GET /v1/domains/{name} says active");
        return Err(Fault::conflict("no_certificate", text));
    }
    let old = chosen(&mut write.tx).await?;
    if old.as_ref().map(|old| old.domain_id) != Some(new.domain_id) {
        publication::put_default_domain(&mut write.tx, Some(new.domain_id)).await?;
        write.audit("default_certificate.choose", &new.hostname, &old, &new).await?;
    }
    write.finish(Answer::json(StatusCode::OK, &new)).await
}

/// Refuses unknown names again, with the alert unrecognized_name (RFC 6066 section 3). 204 also when none was chosen.
#[utoipa::path(delete, path = "/v1/default-certificate", tag = "edges", responses((status = 204)))]
pub(super) async fn delete(State(app): State<App>, OperatorCall(call): OperatorCall) -> Answered<Response> {
    let mut write = match Write::begin(&app, &call, &[]).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    if publication::default_domain(&mut write.tx).await?.is_some() {
        let old = chosen(&mut write.tx).await?;
        publication::put_default_domain(&mut write.tx, None).await?;
        write.audit("default_certificate.delete", "fleet", &old, &()).await?;
    }
    write.finish(Answer::no_content()).await
}

/// `None` also when the chosen domain is gone.
async fn chosen(connection: &mut Connection) -> Answered<Option<DefaultCertificate>> {
    let Some(id) = publication::default_domain(connection).await? else { return Ok(None) };
    match domain::find(connection, id).await? {
        Some(domain) => Ok(Some(with_cells(connection, &domain).await?)),
        None => Ok(None),
    }
}

async fn with_cells(connection: &mut Connection, domain: &DomainRow) -> Answered<DefaultCertificate> {
    let mut cells: Vec<CellId> = Vec::new();
    for row in projection_rows::domains(connection, &[domain.id.to_string()]).await? {
        let wanted = cell::of_domain(&row.spec.cells, &row.tenant_cells);
        let lineages = row.lineages.into_iter().map(|lineage| lineage.cell);
        cells.extend(lineages.filter(|cell| wanted.contains(cell)));
    }
    cells.sort();
    cells.dedup();
    Ok(DefaultCertificate { domain_id: domain.id, hostname: domain.name.to_string(), cells })
}

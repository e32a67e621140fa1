//! `/v1/certificates`

use axum::extract::{Path, State};
use portico_api::v1::{Certificate, Page};
use portico_cert_store::{CredentialId, DomainId, NamePattern};
use serde::Deserialize;

use super::call::Call;
use super::fault::{Answered, Fault};
use super::list::{cursor_after, limit, read_cursor};
use super::query::Query;
use crate::app::{App, certificate};
use crate::clock::parse_rfc3339;
use crate::store::issuance::{self, CertificateFilter, CertificateRow};
use crate::store::{Connection, domain};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    domain: Option<String>,
    expires_before: Option<String>,
    cursor: Option<String>,
    limit: Option<u32>,
}

/// Lists certificates; of one domain, or those that end soon.
#[utoipa::path(get, path = "/v1/certificates", tag = "certificates",
    params(("domain" = Option<String>, Query, description = "id or hostname"),
        ("expires_before" = Option<String>, Query, description = "RFC 3339"),
        ("cursor" = Option<String>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = Page<Certificate>)))]
pub(super) async fn list(
    State(app): State<App>,
    call: Call,
    Query(query): Query<ListQuery>,
) -> Answered<axum::Json<Page<Certificate>>> {
    let limit = limit(query.limit)?;
    let expires_before = query.expires_before.as_deref().map(read_time).transpose()?;
    let mut filter = CertificateFilter {
        tenant: call.caller.tenant.map(|id| id.to_string()),
        domain: None,
        expires_before,
        after: read_cursor(query.cursor.as_deref())?,
        limit: limit + 1,
    };
    let mut read = app.parts.store.read().await?;
    if let Some(text) = &query.domain {
        match find_domain(&mut read, &call, text).await? {
            Some(domain) => filter.domain = Some(domain),
            None => return Ok(axum::Json(Page { items: Vec::new(), next_cursor: None })),
        }
    }
    let mut rows = issuance::certificates(&mut read, &filter).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows.last().filter(|_| more).map(|row| cursor_after(&row.id.to_string()));
    let mut items = Vec::with_capacity(rows.len());
    for row in &rows {
        items.push(shown(&app, &mut read, &call, row).await?.0);
    }
    Ok(axum::Json(Page { items, next_cursor }))
}

/// Shows a certificate with its public chain; never a key.
#[utoipa::path(get, path = "/v1/certificates/{id}", tag = "certificates", params(("id" = String, Path)),
    responses((status = 200, body = Certificate), (status = 404)))]
pub(super) async fn show(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
) -> Answered<axum::Json<Certificate>> {
    let missing = || Fault::not_found("certificate");
    let id: CredentialId = id.parse().map_err(|_| missing())?;
    let mut read = app.parts.store.read().await?;
    // The key just before it, so that the list's one query serves here too.
    let filter = CertificateFilter { limit: 1, after: before(id), ..CertificateFilter::default() };
    let row = issuance::certificates(&mut read, &filter).await?.into_iter().next();
    let row = row.filter(|row| row.id == id).ok_or_else(missing)?;
    let (certificate, is_visible) = shown(&app, &mut read, &call, &row).await?;
    if is_visible { Ok(axum::Json(certificate)) } else { Err(missing()) }
}

/// The certificate with the domains on it that the caller may see, and whether there are any such.
async fn shown(
    app: &App,
    connection: &mut Connection,
    call: &Call,
    row: &CertificateRow,
) -> Answered<(Certificate, bool)> {
    let all = issuance::domains_of_group(connection, row.group).await?;
    let own = call.caller.tenant.map(|id| id.to_string());
    let visible: Vec<DomainId> = all
        .into_iter()
        .filter(|(_, tenant)| own.as_ref().is_none_or(|own| own == tenant))
        .map(|(domain, _)| domain)
        .collect();
    let is_visible = call.caller.tenant.is_none() || !visible.is_empty();
    Ok((certificate::certificate(row, visible, app.parts.clock.now_ms()), is_visible))
}

async fn find_domain(connection: &mut Connection, call: &Call, text: &str) -> Answered<Option<DomainId>> {
    let row = match text.parse::<DomainId>() {
        Ok(id) => domain::find(connection, id).await?,
        Err(_) => match (NamePattern::parse(text), call.caller.tenant) {
            (Ok(name), Some(tenant)) => domain::find_of_tenant(connection, tenant, &name).await?,
            (Ok(name), None) => domain::find_served(connection, &name).await?,
            (Err(_), _) => None,
        },
    };
    Ok(row.filter(|row| call.caller.sees(row.tenant_id)).map(|row| row.id))
}

/// A text that sorts before this id and after every smaller one.
fn before(id: CredentialId) -> String {
    let mut text = id.to_string();
    text.pop();
    text
}

fn read_time(text: &str) -> Answered<i64> {
    parse_rfc3339(text).ok_or_else(|| {
        Fault::bad_request(
            "expires_before_invalid",
            "expires_before must be RFC 3339, such as 2027-01-31T12:00:00Z",
        )
    })
}

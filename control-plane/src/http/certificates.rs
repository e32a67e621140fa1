//! `/v1/certificates`

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{Certificate, CertificateUpload, CertificateUploadAnswer, Page};
use portico_cert_store::{CredentialId, DomainId, GroupId, NamePattern, TenantId};
use serde::Deserialize;

use super::call::Call;
use super::fault::{Answered, Fault};
use super::json_body::SecretBody;
use super::list::{cursor_after, limit, read_cursor};
use super::query::Query;
use super::tenants;
use super::write::{Answer, Begun, Write, paced};
use crate::app::{App, adoption, certificate, upload};
use crate::clock::parse_rfc3339;
use crate::store::issuance::{self, CertificateFilter, CertificateRow};
use crate::store::{Connection, adopted, domain, tenant, uploaded};

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
    let id: CredentialId = id.parse().map_err(|_| missing())?;
    let mut read = app.parts.store.read().await?;
    let (certificate, is_visible) = by_id(&app, &mut read, &call, id).await?;
    if is_visible { Ok(axum::Json(certificate)) } else { Err(missing()) }
}

/// Takes a certificate of the tenant's own with its key, for some of its domains. Edges show it before an issued one to all
/// clients that can use it, until an hour before its end; nobody renews it but the tenant. Another of the same kind of key (RSA or
/// ECDSA) takes the place of a hostname's present one. The key is sealed for the cells that serve the hostnames now, and shown to
/// nobody again. Without a key it is for one that is here: of a certificate request of the tenant, or of its certificate in service
/// (422 `unknown_key` where there is none). 200 when everything is so already.
#[utoipa::path(post, path = "/v1/tenants/{id}/certificates", tag = "certificates", params(("id" = String, Path)),
    request_body = CertificateUpload,
    responses((status = 201, body = CertificateUploadAnswer), (status = 200, body = CertificateUploadAnswer), (status = 404),
        (status = 422)))]
pub(super) async fn upload(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    body: SecretBody<CertificateUpload>,
) -> Answered<Response> {
    let id = tenants::visible(&call, &id)?;
    paced(&app, &call)?;
    let request = &body.value;
    // Before the writer's turn: this takes some milliseconds.
    let read = match &request.key_pem {
        Some(key) => upload::read(&app, &request.chain_pem, key, request.private_ca),
        None => upload::read_without_key(&app, id, &request.chain_pem, request.private_ca).await,
    };
    let of_own = "If it is from an authority of your own, say so (private_ca)";
    let read = read.map_err(|fault| fault.with_hint("untrusted", of_own))?;
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let tenant = tenant::find(&mut write.tx, id).await?.ok_or_else(tenants::missing)?;
    let (status, made) = match upload::put(&app, &mut write, &tenant, request, &read).await? {
        upload::Put::New(made) => (StatusCode::CREATED, made),
        upload::Put::Same(made) => (StatusCode::OK, made),
    };
    let mut certificates = Vec::with_capacity(made.len());
    for credential in &made {
        certificates.push(by_id(&app, &mut write.tx, &call, *credential).await?.0);
    }
    if let (StatusCode::CREATED, Some(first)) = (status, certificates.first()) {
        write.keeps(made.len() * first.chain_pem.len());
        let subject = first.summary.credential_id.to_string();
        let group = uploaded::find(&mut write.tx, first.summary.group_id).await?;
        write.audit("certificate.upload", &subject, &(), &group.as_ref().map(upload::described)).await?;
        let names = request.hostnames.join(", ");
        let text = format!("{names} until {}", first.summary.not_after);
        write.event("certificate.uploaded", Some(id), &subject, &text).await?;
    }
    write.finish(Answer::json(status, &CertificateUploadAnswer { certificates })).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteQuery {
    #[serde(default)]
    leave_unserved: bool,
}

/// Takes an uploaded or adopted certificate out of service in all its cells, and forgets its key; its hostnames fall back to their
/// other certificates. 204 also when it is gone, or was replaced: what took its place stays. 409 `only_certificate` where a hostname has
/// no other that is valid, unless `leave_unserved`; 409 `issued` for one that was issued here.
#[utoipa::path(delete, path = "/v1/certificates/{id}", tag = "certificates",
    params(("id" = String, Path), ("leave_unserved" = Option<bool>, Query)),
    responses((status = 204), (status = 404), (status = 409)))]
pub(super) async fn delete(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Answered<Response> {
    let id: CredentialId = id.parse().map_err(|_| missing())?;
    let mut write = match Write::begin(&app, &call, &[]).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let (group, owner, is_uploaded) = uploaded::group_of(&mut write.tx, id).await?.ok_or_else(missing)?;
    if !is_uploaded && adopted::is_adopted(&mut write.tx, id).await? {
        return delete_adopted(write, &call, (id, group, owner), query.leave_unserved).await;
    }
    if !is_uploaded {
        // Whose domains are on it decides whether it is there for the caller.
        return match by_id(&app, &mut write.tx, &call, id).await? {
            (_, true) => Err(Fault::conflict(
                "issued",
                "the certificate was issued here and is renewed by itself; it goes with its domains",
            )),
            (_, false) => Err(missing()),
        };
    }
    if owner.is_none_or(|owner| !call.caller.sees(owner)) {
        return Err(missing());
    }
    // One that was replaced is gone already; what took its place has its lineage and stays.
    let in_use = uploaded::find(&mut write.tx, group).await?.filter(|found| found.serves(id));
    if let Some(found) = in_use {
        upload::delete(&mut write, &found, query.leave_unserved).await?;
        let subject = id.to_string();
        write.audit("certificate.delete", &subject, &upload::described(&found), &()).await?;
        let names: Vec<&str> = found.names.keys().map(String::as_str).collect();
        let text = format!("the uploaded certificate of {} was removed", names.join(", "));
        write.event("certificate.removed", Some(found.tenant), &subject, &text).await?;
    }
    write.finish(Answer::no_content()).await
}

/// One that has been replaced by an issued one is gone already, and that one stays.
async fn delete_adopted(
    mut write: Box<Write>,
    call: &Call,
    (id, group, owner): (CredentialId, GroupId, Option<TenantId>),
    leave_unserved: bool,
) -> Answered<Response> {
    if owner.is_none_or(|owner| !call.caller.sees(owner)) {
        return Err(missing());
    }
    let in_use = adopted::find(&mut write.tx, group).await?.filter(|found| found.serves(id));
    if let Some(found) = in_use {
        adoption::delete(&mut write, &found, leave_unserved).await?;
        let (subject, names) = (id.to_string(), adoption::listed(&found));
        write.audit("certificate.delete", &subject, &names, &()).await?;
        let text = format!("the adopted certificate of {names} was removed");
        write.event("certificate.removed", Some(found.tenant), &subject, &text).await?;
    }
    write.finish(Answer::no_content()).await
}

fn missing() -> Fault {
    Fault::not_found("certificate")
}

/// The certificate as the caller sees it, and whether it does.
pub(super) async fn by_id(
    app: &App,
    connection: &mut Connection,
    call: &Call,
    id: CredentialId,
) -> Answered<(Certificate, bool)> {
    // The key just before it, so that the list's one query serves here too.
    let filter = CertificateFilter { limit: 1, after: before(id), ..CertificateFilter::default() };
    let row = issuance::certificates(connection, &filter).await?.into_iter().next();
    let row = row.filter(|row| row.id == id).ok_or_else(missing)?;
    shown(app, connection, call, &row).await
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

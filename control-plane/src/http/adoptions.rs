//! `POST /v1/tenants/{id}/adoptions`: certificates of other ACME clients, taken over with their keys.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{ADOPTION_DOMAINS_MAX, AdoptedDomain, Adoption, AdoptionAnswer, Problem};
use portico_cert_store::Upload;

use super::call::{Call, OperatorCall};
use super::certificates::by_id;
use super::domains::NOTE_BYTES_MAX;
use super::fault::{Answered, Fault, field};
use super::json_body::SecretBody;
use super::tenants;
use super::write::{Answer, Begun, Write};
use crate::app::adoption::{self, Brought};
use crate::app::claim::Quota;
use crate::app::{App, upload};
use crate::store::tenant::{self, TenantRow};

/// Takes over a certificate with its key that another ACME client has obtained, and the names that it serves: all in one step, so
/// that the names are served with it at once and nothing is ordered for them before its time comes. Domains that the tenant has
/// stay as they are; others are made, on the operator's word (an attestation, which displaces nobody). With `account`, one of
/// ours at `issuer`, what follows is ordered there as a replacement, which spends no limit. A name that cannot be adopted is
/// refused by itself; 409 `nothing_adopted` where none is left. 200 when all is so already. With `dry_run` nothing is written.
#[utoipa::path(post, path = "/v1/tenants/{id}/adoptions", tag = "certificates", params(("id" = String, Path)),
    request_body = Adoption,
    responses((status = 201, body = AdoptionAnswer), (status = 200, body = AdoptionAnswer), (status = 404), (status = 409),
        (status = 422)))]
pub(super) async fn create(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    Path(id): Path<String>,
    body: SecretBody<Adoption>,
) -> Answered<Response> {
    let id = tenants::visible(&call, &id)?;
    let wanted = &body.value;
    check(wanted)?;
    // Before the writer's turn: this takes some milliseconds.
    let read = upload::read(&app, &wanted.chain_pem, &wanted.key_pem, false);
    let of_own = "What takes its place is issued by a CA that clients trust, so one of an authority of your own is not adopted: \
                  its tenant uploads it (`portico cert upload --private-ca`)";
    let read = read.map_err(|fault| fault.with_hint("untrusted", of_own))?;
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let tenant = tenant::find(&mut write.tx, id).await?.ok_or_else(tenants::missing)?;
    adoption::check_origin(&app, &mut write, wanted).await?;
    let (brought, mut domains) = bring_all(&app, &mut write, &call, &tenant, wanted, &read).await?;
    let put = adoption::put(&app, &mut write, &tenant, wanted, &read, &brought).await?;
    for domain in &mut domains {
        domain.unchanged = domain.domain_id.is_some_and(|id| put.unchanged.contains(&id));
    }
    let unchanged = put.unchanged.len() == brought.len();
    let mut certificates = Vec::with_capacity(put.certificates.len());
    for credential in &put.certificates {
        certificates.push(by_id(&app, &mut write.tx, &call, *credential).await?.0);
    }
    let answer = AdoptionAnswer { domains, certificates, unchanged, account: put.account };
    let status = if unchanged { StatusCode::OK } else { StatusCode::CREATED };
    if wanted.dry_run {
        // Dropping the write undoes all of it.
        drop(write);
        return Ok(Answer::json(StatusCode::OK, &answer).into_response());
    }
    if let (StatusCode::CREATED, Some(first)) = (status, answer.certificates.first()) {
        let (subject, summary) = (first.summary.credential_id.to_string(), &first.summary);
        let names: Vec<String> = brought.iter().map(|brought| brought.row.name.to_string()).collect();
        let shown = serde_json::json!({
            "hostnames": names, "fingerprint_sha256": summary.fingerprint_sha256, "not_after": summary.not_after,
            "issuer": wanted.issuer, "account": wanted.account, "note": wanted.note,
        });
        write.audit("certificate.adopt", &subject, &(), &shown).await?;
        let text = format!("{} until {}", names.join(", "), summary.not_after);
        write.event("certificate.adopted", Some(id), &subject, &text).await?;
    }
    let response = write.finish(Answer::json(status, &answer)).await?;
    app.claims_changed.notify_one();
    Ok(response)
}

fn check(wanted: &Adoption) -> Answered<()> {
    let mut errors = Vec::new();
    if !(1..=ADOPTION_DOMAINS_MAX).contains(&wanted.domains.len()) {
        let text =
            format!("must have 1 to {ADOPTION_DOMAINS_MAX} domains, those that the certificate is for");
        errors.push(field("/domains", "out_of_range", text));
    }
    if !(1..=NOTE_BYTES_MAX).contains(&wanted.note.len()) {
        let text = format!("say in 1 to {NOTE_BYTES_MAX} bytes why you may vouch for the names");
        errors.push(field("/note", "invalid_note", text));
    }
    if errors.is_empty() { Ok(()) } else { Err(Fault::fields(errors)) }
}

/// The domains that are served from now on, and the result of each, in order.
async fn bring_all(
    app: &App,
    write: &mut Write,
    call: &Call,
    tenant: &TenantRow,
    wanted: &Adoption,
    upload: &Upload,
) -> Answered<(Vec<Brought>, Vec<AdoptedDomain>)> {
    let mut quota = Quota::count(write, tenant, true).await?;
    let (mut brought, mut results): (Vec<Brought>, Vec<AdoptedDomain>) = Default::default();
    for domain in &wanted.domains {
        let hostname = domain.hostname.clone();
        let about = (upload.chain.facts(), wanted.note.as_str());
        let done = adoption::bring(app, write, tenant, domain.clone(), &mut quota, about).await;
        results.push(match done {
            Ok(one) if brought.iter().any(|other| other.row.id == one.row.id) => {
                let fault = Fault::fields(vec![field("/hostname", "duplicate", "is there twice")]);
                refused(hostname, fault.problem(&call.request_id))
            }
            Ok(one) => {
                let shown = AdoptedDomain {
                    hostname,
                    domain_id: Some(one.row.id),
                    created: one.created,
                    revision: Some(one.row.revision),
                    unchanged: false,
                    problem: None,
                };
                brought.push(one);
                shown
            }
            Err(fault) if fault.status.is_server_error() => return Err(fault),
            Err(fault) => refused(hostname, fault.problem(&call.request_id)),
        });
    }
    if brought.is_empty() {
        let why = results
            .iter()
            .filter_map(|one| Some(format!("{}: {}", one.hostname, one.problem.as_ref()?.detail)));
        return Err(Fault::conflict("nothing_adopted", why.collect::<Vec<_>>().join("; ")));
    }
    Ok((brought, results))
}

fn refused(hostname: String, problem: Problem) -> AdoptedDomain {
    AdoptedDomain {
        hostname,
        domain_id: None,
        created: false,
        revision: None,
        unchanged: false,
        problem: Some(problem),
    }
}

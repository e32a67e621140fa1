//! `/v1/imports`: tenants with their domains in one transaction, so that an import that fails leaves nothing behind, not
//! even after a kill in the middle.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{
    DomainBatchResult, DomainSpec, IMPORT_ITEMS_MAX, Import, ImportAnswer, ImportTenant, ImportedTenant,
    TenantSpec,
};
use portico_cert_store::TenantId;

use super::call::Call;
use super::domains::{done, refused};
use super::fault::{Answered, Fault, field};
use super::json_body::JsonBody;
use super::tenants;
use super::write::{Answer, Begun, Write};
use crate::app::claim::{Claimed, Quota, claim};
use crate::app::{App, spec};
use crate::store::tenant::{self, TenantRow};

/// Adds up to 5,000 domains of any number of tenants, and the tenants that are not there yet: all or nothing. With a tenant's
/// token its own domains only.
#[utoipa::path(post, path = "/v1/imports", tag = "domains", request_body = Import,
    responses((status = 200, body = ImportAnswer), (status = 413), (status = 422)))]
pub(super) async fn create(State(app): State<App>, call: Call, body: JsonBody<Import>) -> Answered<Response> {
    let wanted = body.value.tenants;
    let count: usize = wanted.iter().map(|part| part.domains.len()).sum();
    if !(1..=IMPORT_ITEMS_MAX).contains(&count) {
        let message = format!("must have 1 to {IMPORT_ITEMS_MAX} domains together; these are {count}");
        return Err(Fault::fields(vec![field("/tenants", "out_of_range", message)]));
    }
    if wanted.len() > IMPORT_ITEMS_MAX {
        let message = format!("must name {IMPORT_ITEMS_MAX} tenants at most; these are {}", wanted.len());
        return Err(Fault::fields(vec![field("/tenants", "out_of_range", message)]));
    }
    // A tenant costs a look as a domain does.
    let items = wanted.len() + count;
    let mut write = match Write::begin_bulk(&app, &call, &body.raw, items).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let mut parts = Vec::with_capacity(wanted.len());
    let mut quotas = HashMap::new();
    for part in wanted {
        parts.push(import_tenant(&app, &mut write, &call, part, &mut quotas).await?);
    }
    let faulty = |part: &ImportedTenant| {
        part.problem.is_some() || part.results.iter().any(|result| result.problem.is_some())
    };
    if parts.iter().any(faulty) {
        // Dropping the write undoes what was made before the fault.
        drop(write);
        let answer = ImportAnswer { applied: false, tenants: undone(parts, &call) };
        return Ok(Answer::json(StatusCode::OK, &answer).into_response());
    }
    let answer = ImportAnswer { applied: true, tenants: parts };
    let response = write.finish(Answer::json(StatusCode::OK, &answer)).await?;
    app.claims_changed.notify_one();
    Ok(response)
}

async fn import_tenant(
    app: &App,
    write: &mut Write,
    call: &Call,
    part: ImportTenant,
    quotas: &mut HashMap<TenantId, Quota>,
) -> Answered<ImportedTenant> {
    write.assert_in_turn()?;
    let (row, created) = match take_tenant(app, write, call, part.tenant).await {
        Ok(taken) => taken,
        Err(fault) if fault.status.is_server_error() => return Err(fault),
        Err(fault) => {
            let results = part.domains.iter().map(|_| refused(&not_applied(), call)).collect();
            let problem = Some(fault.problem(&call.request_id));
            return Ok(ImportedTenant { id: None, created: false, problem, results });
        }
    };
    // Counted once for a tenant that is named more than once: that goes through all of its domains.
    let quota = match quotas.entry(row.id) {
        Entry::Occupied(counted) => counted.into_mut(),
        Entry::Vacant(absent) => {
            absent.insert(Quota::count(write, &row, call.caller.tenant.is_none()).await?)
        }
    };
    let mut results = Vec::with_capacity(part.domains.len());
    for item in part.domains {
        write.assert_in_turn()?;
        results.push(one(app, write, call, &row, item, quota).await?);
    }
    Ok(ImportedTenant { id: Some(row.id), created, problem: None, results })
}

async fn take_tenant(
    app: &App,
    write: &mut Write,
    call: &Call,
    wanted: TenantSpec,
) -> Answered<(TenantRow, bool)> {
    let found = tenant::find_by_name(&mut write.tx, &wanted.name).await?;
    if let Some(row) = found.filter(|row| call.caller.sees(row.id)) {
        return Ok((row, false));
    }
    if call.caller.tenant.is_some() {
        // Whether there is one of that name is not this caller's to know.
        return Err(tenants::missing());
    }
    let own = app.own.places(&mut write.tx).await?;
    let mut errors = spec::tenant(&wanted, &own.addresses, &[]);
    errors.extend(spec::issuers(&wanted.issuers, &app.parts.config.issuers));
    errors.extend(tenants::borne_cells(app, &wanted));
    errors.extend(tenants::backups(app, &wanted));
    if !errors.is_empty() {
        return Err(Fault::fields(errors));
    }
    Ok((tenants::insert(write, wanted).await?, true))
}

async fn one(
    app: &App,
    write: &mut Write,
    call: &Call,
    tenant: &TenantRow,
    item: DomainSpec,
    quota: &mut Quota,
) -> Answered<DomainBatchResult> {
    match claim(app, write, tenant, item, quota).await {
        Ok(Claimed::New(row)) => Ok(done(StatusCode::CREATED, row.id)),
        Ok(Claimed::Same(row)) => Ok(done(StatusCode::OK, row.id)),
        Err(fault) if fault.status.is_server_error() => Err(fault),
        Err(fault) => Ok(refused(&fault, call)),
    }
}

/// What was made and is undone says so, and names no id that no longer is.
fn undone(parts: Vec<ImportedTenant>, call: &Call) -> Vec<ImportedTenant> {
    let fault = not_applied();
    let spoilt = |result: DomainBatchResult| match result.problem {
        Some(_) => result,
        None => refused(&fault, call),
    };
    let undo = |part: ImportedTenant| ImportedTenant {
        id: part.id.filter(|_| !part.created),
        created: false,
        results: part.results.into_iter().map(spoilt).collect(),
        ..part
    };
    parts.into_iter().map(undo).collect()
}

fn not_applied() -> Fault {
    Fault::new(StatusCode::FAILED_DEPENDENCY, "import_not_applied", "another part of the import is wrong")
}

//! Sends rows: tenants as needed, then their domains in batches.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use portico_api::v1::client::Client;
use portico_api::v1::{
    Domain, DomainBatch, DomainBatchAnswer, DomainSpec, IMPORT_ITEMS_MAX, Import, ImportTenant, Problem,
    Sharing, Tenant,
};
use portico_cert_store::{DomainId, TenantId};

use super::rows::{Row, RowError};
use crate::commands::domain;
use crate::commands::tenant::{self, TenantArgs};
use crate::failure::{Failure, Outcome};
use crate::progress;

/// Items in one call; the API's own limit.
const BATCH: usize = portico_api::v1::BATCH_ITEMS_MAX;
/// Calls under way at once: enough to hide a round trip, few enough to leave the control plane to others.
const CONCURRENCY: usize = 8;

/// What became of the rows.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) tenants_created: usize,
    /// Were there already, with settings of their own.
    pub(super) tenants_existing: Vec<String>,
    pub(super) created: Vec<DomainId>,
    pub(super) existing: Vec<DomainId>,
    pub(super) refused: Vec<RowError>,
}

/// # Errors
/// When the API cannot be reached or refuses the caller; a refused row or tenant is in [`Sent::refused`].
pub(super) async fn send(client: &Client, rows: Vec<Row>, new_tenant: &TenantArgs) -> Outcome<Sent> {
    let bar = progress::bar("sending", rows.len() as u64);
    let groups = by_tenant(rows);
    let mut work = futures_util::stream::iter(groups)
        .map(|(name, rows)| send_tenant(client, name, rows, new_tenant))
        .buffer_unordered(CONCURRENCY);
    let mut sent = Sent::default();
    while let Some(part) = work.next().await {
        let part = part?;
        bar.inc((part.created.len() + part.existing.len() + part.refused.len()) as u64);
        sent.tenants_created += part.tenants_created;
        sent.tenants_existing.extend(part.tenants_existing);
        sent.created.extend(part.created);
        sent.existing.extend(part.existing);
        sent.refused.extend(part.refused);
    }
    bar.finish_and_clear();
    Ok(sent)
}

/// All rows in one call, of which all is made or nothing.
///
/// # Errors
/// More rows than one call takes, or the API's; a refused row is in [`Sent::refused`].
pub(super) async fn send_atomic(client: &Client, rows: Vec<Row>, new_tenant: &TenantArgs) -> Outcome<Sent> {
    if rows.len() > IMPORT_ITEMS_MAX {
        let text = format!("{} rows; with --atomic there may be {IMPORT_ITEMS_MAX}", rows.len());
        return Err(Failure::usage(text).next_text("split the file, or leave --atomic out"));
    }
    let mut sent = Sent::default();
    let groups = by_tenant(rows);
    let mut tenants = Vec::with_capacity(groups.len());
    for (name, rows) in &groups {
        match sharing_wish(client, name, rows).await {
            Ok((found, sharing)) => tenants.push(ImportTenant {
                tenant: new_tenant.spec(found.map_or_else(|| name.clone(), |found| found.spec.name), sharing),
                domains: rows.iter().map(wanted).collect(),
            }),
            Err(failure) => sent.refuse_all(name, rows, &failure.text),
        }
    }
    if !sent.refused.is_empty() || tenants.is_empty() {
        return Ok(sent);
    }
    let answer = client.import(&Import { tenants }).await?;
    for ((name, rows), part) in groups.iter().zip(answer.tenants) {
        match part.problem {
            Some(problem) => sent.refuse_all(name, rows, &problem_text(&problem)),
            None => sort_results(&mut sent, rows, DomainBatchAnswer { results: part.results })?,
        }
        sent.tenants_created += usize::from(part.created);
        if part.id.is_some() && !part.created {
            sent.tenants_existing.push(name.clone());
        }
    }
    Ok(sent)
}

/// Has proofs looked at now; what cannot be looked at now is looked at later by the control plane itself.
pub(super) async fn check(client: &Client, domains: &[Domain]) {
    let bar = progress::bar("proofs", domains.len() as u64);
    let unproved = domains.iter().filter(|domain| domain.proof.is_none());
    let mut work = futures_util::stream::iter(unproved)
        .map(|domain| client.check_domain(domain.id))
        .buffer_unordered(CONCURRENCY);
    while work.next().await.is_some() {
        bar.inc(1);
    }
    bar.finish_and_clear();
}

/// Rows of one tenant together, tenants in the order of the file.
fn by_tenant(rows: Vec<Row>) -> Vec<(String, Vec<Row>)> {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut groups: Vec<(String, Vec<Row>)> = Vec::new();
    for row in rows {
        let place = *places.entry(row.tenant.clone()).or_insert_with(|| {
            groups.push((row.tenant.clone(), Vec::new()));
            groups.len() - 1
        });
        groups[place].1.push(row);
    }
    groups
}

async fn send_tenant(
    client: &Client,
    name: String,
    rows: Vec<Row>,
    new_tenant: &TenantArgs,
) -> Outcome<Sent> {
    let mut sent = Sent::default();
    let tenant = match tenant_of(client, &name, &rows, new_tenant, &mut sent).await {
        Ok(tenant) => tenant,
        Err(failure) => {
            sent.refuse_all(&name, &rows, &failure.text);
            return Ok(sent);
        }
    };
    for chunk in rows.chunks(BATCH) {
        let items = chunk.iter().map(wanted).collect();
        match client.create_domains(tenant, &DomainBatch { items, atomic: false }).await {
            Ok(answer) => sort_results(&mut sent, chunk, answer)?,
            // The whole batch was refused: the tenant is gone, say.
            Err(error)
                if error.status().is_some_and(|status| status < 500 && status != 401 && status != 403) =>
            {
                let text = error.to_string();
                sent.refused.extend(chunk.iter().map(|row| refused(row, text.clone())));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sent)
}

/// The tenant's id; made when there is none of that name.
async fn tenant_of(
    client: &Client,
    name: &str,
    rows: &[Row],
    new_tenant: &TenantArgs,
    sent: &mut Sent,
) -> Outcome<TenantId> {
    let (found, sharing) = sharing_wish(client, name, rows).await?;
    if let Some(tenant) = found {
        sent.tenants_existing.push(tenant.spec.name);
        return Ok(tenant.id);
    }
    let tenant = client.create_tenant(&new_tenant.spec(name.to_owned(), sharing)).await?;
    sent.tenants_created += 1;
    Ok(tenant.id)
}

/// The tenant of that name where there is one, and the sharing that its rows ask for.
///
/// # Errors
/// The rows do not agree with each other, or with the tenant.
async fn sharing_wish(
    client: &Client,
    name: &str,
    rows: &[Row],
) -> Outcome<(Option<Tenant>, Option<Sharing>)> {
    let mut wishes = rows.iter().filter_map(|row| row.sharing.map(|sharing| (row.line, sharing)));
    let wish = wishes.next();
    if let Some((first, sharing)) = wish
        && let Some((line, other)) = wishes.find(|(_, other)| *other != sharing)
    {
        let text =
            format!("line {first} says sharing {sharing:?}, line {line} says {other:?}; a tenant has one");
        return Err(Failure::failed(text));
    }
    let sharing = wish.map(|(_, sharing)| sharing);
    let found = tenant::find_or_free(client, name).await?;
    if let Some(tenant) =
        found.as_ref().filter(|tenant| sharing.is_some_and(|sharing| sharing != tenant.spec.sharing))
    {
        let text = format!(
            "it exists with sharing {:?}; leave the cell empty or change the tenant",
            tenant.spec.sharing
        );
        return Err(Failure::failed(text));
    }
    Ok((found, sharing))
}

fn wanted(row: &Row) -> DomainSpec {
    domain::spec(&row.hostname, row.action.clone(), Vec::new(), false)
}

impl Sent {
    fn refuse_all(&mut self, tenant: &str, rows: &[Row], text: &str) {
        let text = format!("tenant {tenant}: {text}");
        self.refused.extend(rows.iter().map(|row| refused(row, text.clone())));
    }
}

fn sort_results(sent: &mut Sent, chunk: &[Row], answer: DomainBatchAnswer) -> Outcome {
    if answer.results.len() != chunk.len() {
        return Err(Failure::failed(format!("{} results for {} domains", answer.results.len(), chunk.len())));
    }
    for (row, result) in chunk.iter().zip(answer.results) {
        match (result.status, result.id, result.problem) {
            (201, Some(id), _) => sent.created.push(id),
            (200, Some(id), _) => sent.existing.push(id),
            (_, _, Some(problem)) => sent.refused.push(refused(row, problem_text(&problem))),
            (status, _, None) => sent.refused.push(refused(row, format!("the API answered {status}"))),
        }
    }
    Ok(())
}

/// The problem's text with the file's columns in the place of pointers into a body that nobody has seen.
fn problem_text(problem: &Problem) -> String {
    let mut text = problem.to_string();
    for error in &problem.errors {
        let column = match error.pointer.rsplit('/').next() {
            Some("origin" | "to" | "body" | "status") => "target",
            Some("hostname") => "hostname",
            _ => continue,
        };
        text = text.replace(&format!("{}:", error.pointer), &format!("{column}:"));
    }
    text
}

fn refused(row: &Row, text: String) -> RowError {
    RowError { line: row.line, hostname: row.hostname.to_string(), text }
}

//! Sends rows: tenants as needed, then their domains in batches.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use portico_api::v1::client::{Client, ClientError};
use portico_api::v1::{Domain, DomainBatch, DomainBatchAnswer};
use portico_cert_store::{DomainId, TenantId};

use super::rows::{Row, RowError};
use crate::commands::domain;
use crate::commands::tenant::{TenantArgs, find_by_name};
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
    pub(super) created: Vec<DomainId>,
    pub(super) existing: Vec<DomainId>,
    pub(super) refused: Vec<RowError>,
}

/// # Errors
/// When the API cannot be reached or refuses the caller; a refused row or tenant is in [`Sent::refused`].
pub(super) async fn send(
    client: &Client,
    rows: Vec<Row>,
    new_tenant: &TenantArgs,
    atomic: bool,
) -> Outcome<Sent> {
    let bar = progress::bar("sending", rows.len() as u64);
    let groups = by_tenant(rows);
    let mut work = futures_util::stream::iter(groups)
        .map(|(name, rows)| send_tenant(client, name, rows, new_tenant, atomic))
        .buffer_unordered(CONCURRENCY);
    let mut sent = Sent::default();
    while let Some(part) = work.next().await {
        let part = part?;
        bar.inc((part.created.len() + part.existing.len() + part.refused.len()) as u64);
        sent.tenants_created += part.tenants_created;
        sent.created.extend(part.created);
        sent.existing.extend(part.existing);
        sent.refused.extend(part.refused);
    }
    bar.finish_and_clear();
    Ok(sent)
}

/// Removes what an atomic import made before it failed.
pub(super) async fn undo(client: &Client, created: &[DomainId]) -> Outcome {
    let bar = progress::bar("removing", created.len() as u64);
    let mut work =
        futures_util::stream::iter(created).map(|id| remove(client, *id)).buffer_unordered(CONCURRENCY);
    while let Some(removed) = work.next().await {
        removed.map_err(|error| {
            Failure::from(error)
                .about("domains of this import are left over")
                .next("domain list --status pending")
        })?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Removes a domain at whichever revision it is now: nobody else has a wish about a name that is seconds old.
async fn remove(client: &Client, id: DomainId) -> Result<(), ClientError> {
    const TRIES: usize = 5;
    let mut last = Ok(());
    for _ in 0..TRIES {
        let revision = match client.domain(&id.to_string()).await {
            Ok(domain) => domain.revision,
            Err(error) if error.status() == Some(404) => return Ok(()),
            Err(error) => return Err(error),
        };
        last = client.delete_domain(id, Some(revision)).await;
        if !last.as_ref().is_err_and(|error| error.status() == Some(412)) {
            return last;
        }
    }
    last
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
    atomic: bool,
) -> Outcome<Sent> {
    let mut sent = Sent::default();
    let tenant = match tenant(client, &name, &rows, new_tenant, &mut sent).await {
        Ok(tenant) => tenant,
        Err(failure) => {
            let text = format!("tenant {name}: {}", failure.text);
            sent.refused.extend(rows.iter().map(|row| refused(row, text.clone())));
            return Ok(sent);
        }
    };
    for chunk in rows.chunks(BATCH) {
        let items = chunk
            .iter()
            .map(|row| domain::spec(&row.hostname, row.action.clone(), Vec::new(), false))
            .collect();
        match client.create_domains(tenant, &DomainBatch { items, atomic }).await {
            Ok(answer) => sort_results(&mut sent, chunk, answer)?,
            // The whole batch was refused: an atomic one, or the tenant's quota.
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
async fn tenant(
    client: &Client,
    name: &str,
    rows: &[Row],
    new_tenant: &TenantArgs,
    sent: &mut Sent,
) -> Outcome<TenantId> {
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
    match find_by_name(client, name).await? {
        Some(tenant) if sharing.is_some_and(|sharing| sharing != tenant.spec.sharing) => {
            let text = format!(
                "it exists with sharing {:?}; leave the cell empty or change the tenant",
                tenant.spec.sharing
            );
            Err(Failure::failed(text))
        }
        Some(tenant) => Ok(tenant.id),
        None => {
            let tenant = client.create_tenant(&new_tenant.spec(name.to_owned(), sharing)).await?;
            sent.tenants_created += 1;
            Ok(tenant.id)
        }
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
            (_, _, Some(problem)) => sent.refused.push(refused(row, problem.to_string())),
            (status, _, None) => sent.refused.push(refused(row, format!("the API answered {status}"))),
        }
    }
    Ok(())
}

fn refused(row: &Row, text: String) -> RowError {
    RowError { line: row.line, hostname: row.hostname.to_string(), text }
}

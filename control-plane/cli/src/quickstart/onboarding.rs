//! Two tenants with their domains, proved and issued as in earnest.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use portico_api::v1::client::{Client, DomainQuery};
use portico_api::v1::{
    Action, ConditionStatus, Domain, DomainBatch, DomainSpec, DomainStatus, EgressGrant, ErrorPages,
    OrderBudget, Sharing, Tenant, TenantLimits, TenantSpec,
};
use portico_cert_store::{DomainId, NamePattern};

use super::addresses::Addresses;
use super::wait;
use crate::commands::domain::{listed, spec};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::progress;
use crate::records::{self, RecordSet};

/// The first keeps to the default (names of one registered domain share), the second opts in to sharing across its own.
pub(super) const TENANTS: [&str; 2] = ["tulip", "harbour"];
pub(super) const SHARED_NAMES: usize = 40;
/// Its DNS points elsewhere, so it cannot be validated.
pub(super) const BROKEN: &str = "broken.tulip.test";
/// A documentation address (RFC 5737): nothing answers there.
const ELSEWHERE: &str = "192.0.2.10";

/// Every domain active, except the broken one.
const ACTIVE_DEADLINE: Duration = Duration::from_secs(60);

/// What stands after the onboarding.
#[derive(Debug)]
pub(super) struct Onboarded {
    pub(super) domains: usize,
    pub(super) active: usize,
    /// Different live certificates.
    pub(super) certificates: usize,
}

/// The names of the second tenant.
pub(super) fn shared_name(number: usize) -> String {
    format!("boat-{number:02}.test")
}

/// The names of the first tenant that become active.
pub(super) fn tulip_names() -> [&'static str; 4] {
    ["tulip.test", "www.tulip.test", "old.tulip.test", "*.apps.tulip.test"]
}

/// # Errors
/// When the API refuses, or not all but the broken domain are active in time; says which and why.
pub(super) async fn onboard(client: &Client, addresses: &Addresses) -> Outcome<Onboarded> {
    let tulip = tenant(client, addresses, 0, Sharing::RegisteredDomain).await?;
    let harbour = tenant(client, addresses, 1, Sharing::Tenant).await?;
    create(client, &tulip, tulip_domains(addresses)?).await?;
    create(client, &harbour, harbour_domains(addresses)?).await?;

    let domains = listed(client, DomainQuery::default(), 0).await?.items;
    let mut sets = records::needed(&domains);
    sets.push(RecordSet {
        name: BROKEN.to_owned(),
        kind: "A".to_owned(),
        values: vec![ELSEWHERE.to_owned()],
    });
    records::publish(addresses.dns_management, &sets).await?;
    check(client, &domains).await?;
    until_active(client, domains.len()).await
}

async fn tenant(client: &Client, addresses: &Addresses, place: usize, sharing: Sharing) -> Outcome<Tenant> {
    let origin = addresses.origins[place];
    let grant = EgressGrant { cidr: format!("{}/32", origin.ip()), ports: vec![origin.port()] };
    let spec = TenantSpec {
        name: TENANTS[place].to_owned(),
        sharing,
        cells: Vec::new(),
        issuers: Vec::new(),
        backup_certificates: None,
        egress_grants: vec![grant],
        limits: TenantLimits::default(),
        order_budget: OrderBudget::default(),
        error_pages: ErrorPages::default(),
        domains_max: 1000,
    };
    client
        .create_tenant(&spec)
        .await
        .map_err(|error| Failure::from(error).about(format!("tenant {}", spec.name)))
}

fn tulip_domains(addresses: &Addresses) -> Outcome<Vec<DomainSpec>> {
    let new_site = format!("https://tulip.test:{}", addresses.https_port);
    let redirect = Action::redirect(new_site);
    tulip_names()
        .into_iter()
        .chain([BROKEN])
        .map(|name| {
            let action = if name == "old.tulip.test" { redirect.clone() } else { proxy(addresses, 0) };
            domain(name, action)
        })
        .collect()
}

fn harbour_domains(addresses: &Addresses) -> Outcome<Vec<DomainSpec>> {
    (1..=SHARED_NAMES).map(|number| domain(&shared_name(number), proxy(addresses, 1))).collect()
}

fn proxy(addresses: &Addresses, place: usize) -> Action {
    Action::proxy(format!("http://{}", addresses.origins[place]))
}

fn domain(name: &str, action: Action) -> Outcome<DomainSpec> {
    let name = NamePattern::parse(name).map_err(|error| Failure::failed(error.to_string()))?;
    Ok(spec(&name, action, Vec::new(), false))
}

async fn create(client: &Client, tenant: &Tenant, items: Vec<DomainSpec>) -> Outcome {
    let names: Vec<String> = items.iter().map(|spec| spec.hostname.clone()).collect();
    let answer = client.create_domains(tenant.id, &DomainBatch { items, atomic: true }).await?;
    for (name, result) in names.iter().zip(answer.results) {
        if let Some(problem) = result.problem {
            return Err(Failure::failed(format!("{name}: {problem}")));
        }
    }
    Ok(())
}

/// Has every proof looked at now rather than at the control plane's own pace.
async fn check(client: &Client, domains: &[Domain]) -> Outcome {
    const CONCURRENCY: usize = 8;
    let ids: Vec<DomainId> = domains.iter().map(|domain| domain.id).collect();
    let mut work =
        futures_util::stream::iter(ids).map(|id| client.check_domain(id)).buffer_unordered(CONCURRENCY);
    while let Some(checked) = work.next().await {
        checked?;
    }
    Ok(())
}

async fn until_active(client: &Client, count: usize) -> Outcome<Onboarded> {
    let bar = progress::bar("certificates", count as u64 - 1);
    let mut last = Vec::new();
    let settled = wait::until(ACTIVE_DEADLINE, async || {
        let domains = match listed(client, DomainQuery::default(), 0).await {
            Ok(domains) => domains.items,
            Err(failure) => return Some(Err(failure)),
        };
        let active = domains.iter().filter(|domain| domain.status == DomainStatus::Active).count();
        bar.set_position(active as u64);
        let settled = domains.iter().all(|domain| match domain.spec.hostname.as_str() {
            BROKEN => is_diagnosed(domain),
            _ => domain.status == DomainStatus::Active,
        });
        last = domains;
        settled.then_some(Ok(()))
    })
    .await;
    bar.finish_and_clear();
    match settled {
        Some(outcome) => outcome.map(|()| summary(&last)),
        None => Err(not_active(&last)),
    }
}

/// The control plane has seen that DNS points elsewhere, and says what to do.
fn is_diagnosed(domain: &Domain) -> bool {
    let is_false = domain.conditions.iter().any(|condition| condition.status == ConditionStatus::False);
    domain.proof.is_some() && is_false && domain.next_action.is_some()
}

fn summary(domains: &[Domain]) -> Onboarded {
    let certificates = domains.iter().flat_map(|domain| &domain.certificates);
    let fingerprints: HashSet<_> =
        certificates.map(|certificate| certificate.fingerprint_sha256.as_str()).collect();
    Onboarded {
        domains: domains.len(),
        active: domains.iter().filter(|domain| domain.status == DomainStatus::Active).count(),
        certificates: fingerprints.len(),
    }
}

fn not_active(domains: &[Domain]) -> Failure {
    const SHOWN: usize = 5;
    let late: Vec<String> = domains
        .iter()
        .filter(|domain| domain.status != DomainStatus::Active && domain.spec.hostname != BROKEN)
        .map(|domain| {
            let next = domain.next_action.as_ref().map(|next| next.text.as_str()).unwrap_or_default();
            format!("{} is {}: {next}", domain.spec.hostname, output::word(&domain.status))
        })
        .collect();
    let seconds = ACTIVE_DEADLINE.as_secs();
    let text = if late.is_empty() {
        format!("{BROKEN} was not diagnosed within {seconds} s")
    } else {
        let shown = late[..late.len().min(SHOWN)].join("\n  ");
        format!("{} domains are not active after {seconds} s, among them\n  {shown}", late.len())
    };
    Failure::not_ready(text).next_text("read the logs in the quickstart's folder")
}

//! Domains and tenants as the API shows them: rows of several tables, gathered for many at once, assessed by `status`.

use std::collections::HashMap;

use portico_api::distribution::ResourceKind;
use portico_api::v1::{Domain, Suspension, Tenant};
use portico_cert_store::{Custody, DomainId, TenantId};

use super::status::{
    self, CellFacts, CertificateFacts, Facts, OrderFacts, OrderStep, RefusalFacts, RefusedPart, Trouble,
    UploadedFacts,
};
use super::{App, certificate, instructions};
use crate::clock::{parse_rfc3339, rfc3339};
use crate::plan::ledger::{At, BucketKey, LimitName};
use crate::store::condition::{self, ConditionRow};
use crate::store::domain::{self, DomainRow};
use crate::store::edge::{self, Refusal};
use crate::store::issuance::{self, CertificateRow, NameTrouble, OrderSummary};
use crate::store::proof::{self, ProofRow};
use crate::store::tenant::{self, TenantRow};
use crate::store::{Connection, StoreError, cell, change, ledger};

/// What the tables say about a set of domains.
#[derive(Debug, Default)]
struct Gathered {
    tenants: HashMap<TenantId, TenantRow>,
    proofs: HashMap<DomainId, ProofRow>,
    conditions: HashMap<DomainId, Vec<ConditionRow>>,
    certificates: HashMap<DomainId, Vec<CertificateRow>>,
    orders: HashMap<DomainId, OrderSummary>,
    troubles: HashMap<DomainId, NameTrouble>,
    refusals: HashMap<DomainId, Vec<RefusalFacts>>,
    budgets: HashMap<TenantId, i64>,
}

/// The domains of `rows`, in their order.
///
/// # Errors
/// The store's.
pub(crate) async fn domains(
    app: &App,
    connection: &mut Connection,
    rows: &[DomainRow],
) -> Result<Vec<Domain>, StoreError> {
    let mut domains = Vec::with_capacity(rows.len());
    for part in rows.chunks(500) {
        let gathered = gather(app, connection, part).await?;
        for row in part {
            domains.push(domain(app, connection, row, &gathered).await?);
        }
    }
    Ok(domains)
}

/// One domain.
///
/// # Errors
/// The store's.
pub(crate) async fn one_domain(
    app: &App,
    connection: &mut Connection,
    row: &DomainRow,
) -> Result<Domain, StoreError> {
    let gathered = gather(app, connection, std::slice::from_ref(row)).await?;
    domain(app, connection, row, &gathered).await
}

async fn gather(app: &App, connection: &mut Connection, rows: &[DomainRow]) -> Result<Gathered, StoreError> {
    let ids: Vec<DomainId> = rows.iter().map(|row| row.id).collect();
    let mut gathered = Gathered::default();
    for row in rows {
        if !gathered.tenants.contains_key(&row.tenant_id)
            && let Some(tenant) = tenant::find(connection, row.tenant_id).await?
        {
            gathered.tenants.insert(row.tenant_id, tenant);
        }
    }
    for id in gathered.tenants.keys().copied().collect::<Vec<_>>() {
        if let Some(until) = budget_until(app, connection, id).await? {
            gathered.budgets.insert(id, until);
        }
    }
    for proof in proof::standing_of(connection, &ids).await? {
        gathered.proofs.insert(proof.domain_id, proof);
    }
    for condition in condition::of(connection, &ids).await? {
        gathered.conditions.entry(condition.domain_id).or_default().push(condition);
    }
    for (domain, certificate) in issuance::certificates_of(connection, &ids).await? {
        gathered.certificates.entry(domain).or_default().push(certificate);
    }
    for order in issuance::unfinished_orders(connection, &ids).await? {
        gathered.orders.insert(order.domain, order);
    }
    for trouble in issuance::troubles(connection, &ids).await? {
        gathered.troubles.insert(trouble.domain, trouble);
    }
    for refusal in edge::refusals_of(connection, &ids).await? {
        gathered.refusals.entry(refusal.domain).or_default().push(refused(refusal));
    }
    Ok(gathered)
}

/// When a tenant that has used up its budget of new orders may order again.
async fn budget_until(
    app: &App,
    connection: &mut Connection,
    tenant: TenantId,
) -> Result<Option<i64>, StoreError> {
    let Some(issuer) = app.parts.config.issuers.first() else { return Ok(None) };
    let (now, mut limits) = (app.parts.clock.now_ms(), issuer.limits());
    limits.tenants = tenant::order_budgets(connection, Some(tenant)).await?;
    let at = At { ca: &issuer.directory, account: &issuer.name };
    let subject = tenant.to_string();
    let keys = [LimitName::TenantHour, LimitName::TenantDay].map(|limit| BucketKey::new(limit, at, &subject));
    let levels = ledger::levels(connection, &keys.each_ref()).await?;
    let until = keys.iter().map(|key| {
        let level = levels.of(key);
        level.bucket.room_at(limits.rate(key.limit, &subject), level.reserved, 0, now)
    });
    Ok(until.max().filter(|until| *until > now))
}

async fn domain(
    app: &App,
    connection: &mut Connection,
    row: &DomainRow,
    gathered: &Gathered,
) -> Result<Domain, StoreError> {
    let now = app.parts.clock.now_ms();
    let tenant = gathered.tenants.get(&row.tenant_id);
    let suspension = effective(row.suspension.as_ref(), now)
        .or_else(|| tenant.and_then(|tenant| effective(tenant.suspension.as_ref(), now)));
    let standing = gathered.proofs.get(&row.id).filter(|_| row.served);
    let owned_by_another = !row.served && domain::find_served(connection, &row.name).await?.is_some();
    let dns = instructions::instructions(row, &app.parts.config);
    let certificates = gathered.certificates.get(&row.id).map(Vec::as_slice).unwrap_or_default();
    let cells = cells(app, connection, row, tenant, certificates).await?;
    let name = row.name.to_string();
    let facts = Facts {
        name: &name,
        suspended: suspension.is_some(),
        proved_at: standing.map(|proof| proof.proved_at),
        owned_by_another,
        created_at: row.created_at,
        next_check_at: row.check_at,
        conditions: gathered.conditions.get(&row.id).map(Vec::as_slice).unwrap_or_default(),
        dns: &dns,
        cells,
        order: gathered.orders.get(&row.id).map(order),
        trouble: gathered.troubles.get(&row.id).map(trouble),
        refusals: gathered.refusals.get(&row.id).cloned().unwrap_or_default(),
        budget_until: gathered.budgets.get(&row.tenant_id).copied(),
        issues: row.spec.issue_certificates,
        uploaded: certificates.iter().filter_map(uploaded).collect(),
    };
    let assessed = status::assess(&facts, now);
    Ok(Domain {
        id: row.id,
        tenant_id: row.tenant_id,
        tenant_name: tenant.map(|tenant| tenant.spec.name.clone()).unwrap_or_default(),
        spec: row.spec.clone(),
        hostname_unicode: unicode(row),
        status: assessed.status,
        conditions: assessed.conditions,
        next_action: assessed.next_action,
        dns,
        proof: standing.map(Into::into),
        certificates: certificates.iter().map(certificate::summary).collect(),
        suspension,
        revision: row.revision,
        created_at: rfc3339(row.created_at),
    })
}

/// The cells that are to serve the domain, each with its best certificate and how far its edges have come.
async fn cells(
    app: &App,
    connection: &mut Connection,
    row: &DomainRow,
    tenant: Option<&TenantRow>,
    certificates: &[CertificateRow],
) -> Result<Vec<CellFacts>, StoreError> {
    let now = app.parts.clock.now_ms();
    let of_domain = change::version(connection, ResourceKind::Domain, &row.id.to_string()).await?;
    let mut cells = Vec::new();
    let of_tenant = tenant.map_or(&[][..], |tenant| tenant.spec.cells.as_slice());
    for cell in cell::of_domain(&row.spec.cells, of_tenant) {
        // The rows come with a backup that is shown first, then by the latest expiry.
        let mut here = certificates.iter().filter(|certificate| certificate.cell == cell);
        let issued = here.clone().find(|row| row.custody.is_ours() && row.not_after > now);
        let mut needed = of_domain;
        for certificate in here.clone() {
            let id = certificate.lineage.to_string();
            needed = needed.max(change::version(connection, ResourceKind::Credential, &id).await?);
        }
        let best = issued.or_else(|| here.next());
        let state = app.fleet.cell(&cell);
        let current = state.applied.iter().filter(|&&applied| needed.is_some_and(|needed| applied >= needed));
        cells.push(CellFacts {
            certificate: best.map(|best| CertificateFacts {
                created_at: best.created_at,
                // An uploaded one is never renewed, so never late.
                renew_at: if best.custody == Custody::Uploaded { i64::MAX } else { best.renew_at },
                not_after: best.not_after,
            }),
            live_edges: state.applied.len(),
            current_edges: current.count(),
            cell,
        });
    }
    Ok(cells)
}

fn uploaded(row: &CertificateRow) -> Option<UploadedFacts> {
    (row.custody == Custody::Uploaded).then(|| UploadedFacts {
        cell: row.cell.clone(),
        key: certificate::key_type(row).map(|kind| kind.to_string()).unwrap_or_default(),
        created_at: row.created_at,
        renew_at: row.renew_at,
        not_after: row.not_after,
    })
}

fn order(summary: &OrderSummary) -> OrderFacts {
    let step = match summary.state.as_str() {
        "created" | "challenged" => OrderStep::Validating,
        "failed" => OrderStep::Failed,
        _ => OrderStep::Issuing,
    };
    OrderFacts { step, carries: summary.carries, error: summary.error.clone(), next_at: summary.next_at }
}

fn trouble(trouble: &NameTrouble) -> Trouble {
    Trouble { error: trouble.error.clone(), next_at: trouble.next_at, at_ca: trouble.failed_before }
}

fn refused(refusal: Refusal) -> RefusalFacts {
    let of = match i32::try_from(refusal.nack.kind).map(ResourceKind::try_from) {
        Ok(Ok(ResourceKind::Credential)) => RefusedPart::Certificate,
        Ok(Ok(ResourceKind::Tenant | ResourceKind::OriginIdentity)) => RefusedPart::Tenant,
        _ => RefusedPart::Domain,
    };
    RefusalFacts {
        edge: refusal.edge,
        of,
        version: refusal.nack.version,
        code: refusal.nack.code,
        text: refusal.nack.text.trim_end_matches('.').to_owned(),
        since: refusal.at_ms,
    }
}

/// A suspension that holds at `now`: without an end, or with an end ahead.
pub(crate) fn effective(suspension: Option<&Suspension>, now_ms: i64) -> Option<Suspension> {
    let holds = |suspension: &&Suspension| {
        suspension.until.as_deref().and_then(parse_rfc3339).is_none_or(|until| until > now_ms)
    };
    suspension.filter(holds).cloned()
}

fn unicode(row: &DomainRow) -> String {
    let base = row.name.base().to_unicode();
    if row.name.is_wildcard() { format!("*.{base}") } else { base }
}

/// One tenant.
///
/// # Errors
/// The store's.
pub(crate) async fn tenant(
    app: &App,
    connection: &mut Connection,
    row: &TenantRow,
) -> Result<Tenant, StoreError> {
    let count = tenant::count_domains(connection, row.id).await?;
    Ok(Tenant {
        id: row.id,
        spec: row.spec.clone(),
        suspension: effective(row.suspension.as_ref(), app.parts.clock.now_ms()),
        domains: count.all,
        revision: row.revision,
        created_at: rfc3339(row.created_at),
    })
}

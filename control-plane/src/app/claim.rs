//! Claims: a tenant says that it brings a name. A claim displaces nobody, routes nothing and reaches no edge until it
//! is proved.

use aws_lc_rs::rand;
use axum::http::StatusCode;
use portico_api::v1::{DomainSpec, FieldError};
use portico_cert_store::DomainId;

use super::{App, origin_identity, reserved, spec};
use crate::http::fault::{Answered, Fault, field};
use crate::http::write::Write;
use crate::store::domain::{self, DomainRow, Labels};
use crate::store::tenant::{self, DomainCount, TenantRow};
use crate::store::{cell, group, presence, proof};

/// Claims of one tenant that are not proved, made with the tenant's own token. An operator's are not
/// counted against it: an import proves by attestation or in its own time.
pub(crate) const PENDING_CLAIMS_MAX: u64 = 100;

/// A claim that was made now, or before with the same wishes.
#[derive(Debug)]
pub(crate) enum Claimed {
    New(DomainRow),
    Same(DomainRow),
}

/// What a caller may claim for a tenant, and how much more of it; counted once for a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quota {
    count: DomainCount,
    domains_max: u64,
    pending_max: u64,
    by_operator: bool,
}

impl Quota {
    /// # Errors
    /// The store's.
    pub(crate) async fn count(write: &mut Write, tenant: &TenantRow, by_operator: bool) -> Answered<Self> {
        Ok(Self {
            count: tenant::count_domains(&mut write.tx, tenant.id).await?,
            domains_max: tenant.spec.domains_max.into(),
            pending_max: if by_operator { u64::MAX } else { PENDING_CLAIMS_MAX },
            by_operator,
        })
    }

    fn take(&mut self) -> Answered<()> {
        let refused = |code, detail| Err(Fault::new(StatusCode::CONFLICT, code, detail));
        if self.count.all >= self.domains_max {
            let detail = format!(
                "the tenant may have {} domains; an operator can raise domains_max",
                self.domains_max
            );
            return refused("domains_max_reached", detail);
        }
        if self.count.all.saturating_sub(self.count.served) >= self.pending_max {
            let detail =
                format!("{} claims are not proved yet; prove or delete some first", self.pending_max);
            return refused("pending_claims_max_reached", detail);
        }
        self.count.all += 1;
        Ok(())
    }
}

/// Whether a domain's wish for a backup certificate can be met.
pub(crate) fn backup(app: &App, tenant: &TenantRow, wanted: &DomainSpec) -> Option<FieldError> {
    let configured = &app.parts.config.issuers;
    spec::backups("/backup_certificate", wanted.backup_certificate, &tenant.spec.issuers, configured)
}

/// Makes the claim, with its audit entry and event.
///
/// # Errors
/// 422 with the faulty fields, 409 when the tenant has the name with other wishes or may have no more.
pub(crate) async fn claim(
    app: &App,
    write: &mut Write,
    tenant: &TenantRow,
    mut wanted: DomainSpec,
    quota: &mut Quota,
) -> Answered<Claimed> {
    let name = spec::hostname(&mut wanted);
    let own = app.own.places(&mut write.tx).await?;
    let mut errors = spec::domain(&wanted, &own.egress, &tenant.spec.egress_grants);
    errors.extend(backup(app, tenant, &wanted));
    if let Ok(name) = &name {
        errors.extend(spec::circular(name, &wanted.routes, &app.parts.config.fleet));
    }
    let refusal = name.as_ref().ok().and_then(|name| reserved::refusal(name, &app.parts.config.dns));
    errors.extend(refusal.map(|why| field("/hostname", "name_reserved", why)));
    if !quota.by_operator {
        errors.extend(spec::cells_of_tenant(&wanted.cells, &tenant.spec.cells));
    } else if let Some((unknown, known)) = cell::unknown(&mut write.tx, &wanted.cells).await? {
        errors.push(spec::unknown_cell(&unknown, &known));
    }
    let issuers = &app.parts.config.issuers;
    errors.extend(spec::borne_cells(&wanted.cells, &tenant.spec.issuers, issuers, Some(&wanted.hostname)));
    errors.extend(origin_identity::check(&mut write.tx, tenant.id, &wanted).await?);
    let name = match name {
        Ok(name) if errors.is_empty() => name,
        Ok(_) => return Err(Fault::fields(errors)),
        Err(error) => {
            errors.insert(0, error);
            return Err(Fault::fields(errors));
        }
    };
    if let Some(row) = domain::find_of_tenant(&mut write.tx, tenant.id, &name).await? {
        if row.spec == wanted {
            return Ok(Claimed::Same(row));
        }
        let detail =
            format!("{name} is there with other settings; change it with PATCH /v1/domains/{}", row.id);
        return Err(Fault::conflict("domain_exists", detail));
    }
    quota.take()?;
    let row = DomainRow {
        id: DomainId::generate(),
        tenant_id: tenant.id,
        name,
        spec: wanted,
        served: false,
        labels: new_labels(),
        suspension: None,
        acme_thumbprint: None,
        check_at: Some(write.now_ms),
        check_failures: 0,
        revision: 1,
        created_at: write.now_ms,
        deleted_at: None,
    };
    domain::insert(&mut write.tx, &row).await?;
    group::inherit_back_off(&mut write.tx, row.id, &row.name.to_string(), write.now_ms).await?;
    let id = row.id.to_string();
    write.audit("domain.create", &id, &(), &row.spec).await?;
    write.event("domain.created", Some(tenant.id), &id, &format!("{} was added", row.name)).await?;
    Ok(Claimed::New(row))
}

/// Ends a claim, served or not. A tombstone of it stays, and its texts are never handed out again: whoever claims the name next
/// proves anew.
///
/// # Errors
/// The store's.
pub(crate) async fn delete(write: &mut Write, mut row: DomainRow) -> Answered<()> {
    let (now, id, before) = (write.now_ms, row.id.to_string(), row.spec.clone());
    row.served = false;
    row.deleted_at = Some(now);
    row.check_at = None;
    domain::update(&mut write.tx, &mut row, now).await?;
    proof::end(&mut write.tx, row.id, now, "the domain was deleted").await?;
    presence::end(&mut write.tx, row.id).await?;
    group::keep_back_off(&mut write.tx, row.id, now).await?;
    domain::publish(&mut write.tx, &row).await?;
    write.audit("domain.delete", &id, &before, &()).await?;
    write.event("domain.deleted", Some(row.tenant_id), &id, &format!("{} was deleted", row.name)).await
}

/// Four texts of 128 random bits, each a valid DNS label.
pub(crate) fn new_labels() -> Labels {
    let random = || {
        let mut bytes = [0; 16];
        rand::fill(&mut bytes).expect("the system gives random bytes");
        hex::encode(bytes)
    };
    Labels {
        proof_label: random(),
        txt_token: format!("portico-{}", random()),
        http_token: random(),
        challenge_label: random(),
    }
}

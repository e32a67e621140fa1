//! Certificates that are taken over from other ACME clients: the names are served with them at once, nothing is ordered, and what
//! replaces them is issued here.
//!
//! Domains, the operator's word for them and the certificate are one transaction: between them a name would be served without a
//! certificate, and an order would begin for it. The key is sealed for the cells that serve the names now, as an uploaded one is;
//! each cell makes one of its own with the next certificate.

use std::collections::{BTreeMap, BTreeSet};

use portico_api::v1::{Adoption, DomainSpec, FieldError};
use portico_cert_store::{CellId, CertificateFacts, CredentialId, Custody, DomainId, Upload};

use super::claim::{Claimed, Quota, claim};
use super::{App, ownership, spec, upload};
use crate::clock::{rfc3339, unix_ms};
use crate::http::fault::{Answered, Fault, field};
use crate::http::write::Write;
use crate::store::adopted::{self, Adopted, AdoptedLineage};
use crate::store::credential::{self, NewCredential};
use crate::store::domain::{self, DomainRow};
use crate::store::tenant::TenantRow;
use crate::store::{account, cell, compromise, group, uploaded};

/// A domain that the certificate is to serve.
#[derive(Debug)]
pub(crate) struct Brought {
    pub(crate) row: DomainRow,
    /// It is the tenant's by this adoption.
    pub(crate) created: bool,
}

/// What became of the certificate.
#[derive(Debug)]
pub(crate) struct Put {
    /// Those that are new; where all was so before, those that were there.
    pub(crate) certificates: Vec<CredentialId>,
    /// Domains that were served with it before.
    pub(crate) unchanged: BTreeSet<DomainId>,
    /// URL of the account that is to replace it.
    pub(crate) account: Option<String>,
}

/// Whether issuer and account are ours.
///
/// # Errors
/// 422 with what is not known here.
pub(crate) async fn check_origin(app: &App, write: &mut Write, wanted: &Adoption) -> Answered<()> {
    let Some(name) = &wanted.issuer else {
        return match &wanted.account {
            None => Ok(()),
            Some(_) => Err(fields(field("/issuer", "missing_field", "say at which issuer the account is"))),
        };
    };
    let Some(config) = app.parts.config.issuers.iter().find(|issuer| issuer.name == *name) else {
        let text =
            format!("{name} is no issuer of the configuration; leave it out, or see `GET /v1/issuers`");
        return Err(fields(field("/issuer", "unknown_issuer", text)));
    };
    let Some(url) = &wanted.account else { return Ok(()) };
    let known = account::of_url(&mut write.tx, name, url).await?;
    if known.is_some_and(|row| row.directory == config.directory) {
        return Ok(());
    }
    let text =
        format!("{url} is no account of ours at issuer {name}; take it over first (`portico issuer adopt`)");
    Err(fields(field("/account", "unknown_account", text)))
}

/// Makes a domain the tenant's and served, unless it is so already. A domain that is there keeps its routes.
///
/// # Errors
/// What keeps this name from being adopted; or the store's.
pub(crate) async fn bring(
    app: &App,
    write: &mut Write,
    tenant: &TenantRow,
    mut wanted: DomainSpec,
    quota: &mut Quota,
    (facts, note): (&CertificateFacts, &str),
) -> Answered<Brought> {
    let name = spec::hostname(&mut wanted).map_err(fields)?;
    facts
        .check_names(std::slice::from_ref(&name))
        .map_err(|error| fields(field("/hostname", "name_not_covered", error.to_string())))?;
    let served = domain::find_served(&mut write.tx, &name).await?;
    if served.as_ref().is_some_and(|row| row.tenant_id != tenant.id) {
        let detail = format!(
            "{name} is served for another tenant on a proof of its own; nothing that an operator says displaces that"
        );
        return Err(Fault::conflict("owned_by_another", detail));
    }
    let present = domain::find_of_tenant(&mut write.tx, tenant.id, &name).await?;
    if let Some(row) = &present {
        not_issued(write, tenant, row).await?;
    }
    let (row, created) = match present {
        Some(row) => (row, false),
        None => match claim(app, write, tenant, wanted, quota).await? {
            Claimed::New(row) => (row, true),
            Claimed::Same(row) => (row, false),
        },
    };
    if row.served {
        return Ok(Brought { row, created });
    }
    let id = row.id;
    ownership::attest(write, row, note).await?;
    let row = domain::find(&mut write.tx, id).await?.ok_or_else(Fault::internal)?;
    Ok(Brought { row, created })
}

/// A name with a certificate of ours in each of its cells has no use for another.
async fn not_issued(write: &mut Write, tenant: &TenantRow, row: &DomainRow) -> Answered<()> {
    let mut until = i64::MAX;
    for cell in cell::of_domain(&row.spec.cells, &tenant.spec.cells) {
        match adopted::issued_until(&mut write.tx, row.id, &cell, write.now_ms).await? {
            Some(ends) => until = until.min(ends),
            None => return Ok(()),
        }
    }
    let detail = format!(
        "{} has a certificate that was issued here, until {}; it needs no other",
        row.name,
        rfc3339(until)
    );
    Err(Fault::conflict("has_certificate", detail))
}

/// Puts a certificate into service for these domains, which are served. Those that it serves already are left alone.
///
/// # Errors
/// 422 where one that was adopted before is better, or the key was reported compromised; the store's.
pub(crate) async fn put(
    app: &App,
    write: &mut Write,
    tenant: &TenantRow,
    wanted: &Adoption,
    upload: &Upload,
    domains: &[Brought],
) -> Answered<Put> {
    let facts = upload.chain.facts();
    if compromise::is_compromised(&mut write.tx, &facts.spki_sha256).await? {
        let text = "this key was reported compromised and is never accepted again; let its names have certificates of ours";
        return Err(fields(field("/key_pem", "key_compromised", text)));
    }
    not_of_another(write, tenant, facts).await?;
    let ids: Vec<DomainId> = domains.iter().map(|brought| brought.row.id).collect();
    let mut present = adopted::of_domains(&mut write.tx, &ids).await?;
    present.retain(|other| other.lineages.iter().any(|lineage| lineage.is_rsa == facts.key_type.is_rsa()));
    let (same, others): (Vec<Adopted>, Vec<Adopted>) =
        present.into_iter().partition(|other| is_same(other, facts));
    let mut put = Put { certificates: Vec::new(), unchanged: BTreeSet::new(), account: None };
    put.account = account_of(write, holder(&same), wanted).await?;
    let (mut names, mut cells) = (BTreeMap::new(), BTreeMap::<CellId, BTreeMap<String, DomainId>>::new());
    for Brought { row, .. } in domains {
        let name = row.name.to_string();
        let of_domain = cell::of_domain(&row.spec.cells, &tenant.spec.cells);
        if of_domain.iter().all(|cell| serves(&same, cell, &name, row.id)) {
            put.unchanged.insert(row.id);
            continue;
        }
        for cell in of_domain {
            cells.entry(cell).or_default().insert(name.clone(), row.id);
        }
        names.insert(name, row.id);
    }
    if names.is_empty() {
        put.certificates =
            same.iter().flat_map(|one| &one.lineages).map(|lineage| lineage.credential).collect();
        return Ok(put);
    }
    not_shorter(&others, &names, facts)?;
    for other in same.iter().chain(&others) {
        adopted::give_up(&mut write.tx, other, &names, write.now_ms).await?;
    }
    let group = adopted::insert_group(&mut write.tx, tenant.id, &names, write.now_ms).await?;
    // A CA has each certificate replaced once, so one of the credentials has the account: that of the first cell.
    let is_held = holder(&same).is_some_and(|one| one.names.keys().any(|name| !names.contains_key(name)));
    let mut account = put.account.clone().filter(|_| !is_held);
    for (cell, names) in &cells {
        let lineage = group::ensure_lineage(&mut write.tx, group, cell, write.now_ms).await?;
        let brought = upload::sealed(app, write, tenant.id, lineage, cell, upload).await?;
        let mut new = NewCredential {
            custody: Custody::Cell,
            issuer: wanted.issuer.clone().unwrap_or(brought.issuer),
            tell_at: None,
            adopted: true,
            ..brought
        };
        new.account = account.take();
        let names: Vec<(String, DomainId)> = names.iter().map(|(name, id)| (name.clone(), *id)).collect();
        credential::publish(&mut write.tx, &new, &names, write.now_ms).await?;
        put.certificates.push(new.id);
    }
    Ok(put)
}

/// P5: whoever has a key can have every certificate of it revoked, so no two tenants are served with one.
async fn not_of_another(write: &mut Write, tenant: &TenantRow, facts: &CertificateFacts) -> Answered<()> {
    let other = match compromise::in_use_by_another(&mut write.tx, &facts.spki_sha256, tenant.id).await? {
        None => return Ok(()),
        Some(Some(other)) => format!("tenant {other}"),
        Some(None) => "the operator".to_owned(),
    };
    let text = format!(
        "names of {other} are served with this key; a report of it would take the certificates of both. Let the names of one \
         of them have certificates of ours: leave them out here, and add them with `portico domain add`"
    );
    Err(fields(field("/key_pem", "key_of_another", text)))
}

fn is_same(other: &Adopted, facts: &CertificateFacts) -> bool {
    other.lineages.iter().all(|lineage| lineage.fingerprint_sha256 == facts.fingerprint_sha256)
}

fn serves(same: &[Adopted], cell: &CellId, name: &str, id: DomainId) -> bool {
    same.iter()
        .flat_map(|one| &one.lineages)
        .any(|lineage| lineage.cell == *cell && lineage.names.get(name) == Some(&id))
}

/// The lineage whose credential is to be replaced: the one that has the account, or would.
fn holder(same: &[Adopted]) -> Option<&AdoptedLineage> {
    let all = || same.iter().flat_map(|one| &one.lineages);
    all().find(|lineage| lineage.account.is_some()).or_else(|| all().next())
}

/// The account that is to replace the certificate; of one that is there already it may come later.
async fn account_of(
    write: &mut Write,
    holder: Option<&AdoptedLineage>,
    wanted: &Adoption,
) -> Answered<Option<String>> {
    let known = holder.and_then(|lineage| lineage.account.clone());
    if let (None, Some(holder), Some(issuer), Some(url)) = (&known, holder, &wanted.issuer, &wanted.account) {
        adopted::set_account(&mut write.tx, holder.credential, issuer, url).await?;
    }
    Ok(known.or_else(|| wanted.account.clone()))
}

/// P9: nothing takes the place of what is better.
fn not_shorter(
    present: &[Adopted],
    names: &BTreeMap<String, DomainId>,
    facts: &CertificateFacts,
) -> Answered<()> {
    let ends = unix_ms(facts.not_after);
    for lineage in present.iter().flat_map(|other| &other.lineages) {
        let name = lineage.names.keys().find(|name| names.contains_key(*name));
        if let Some(name) = name.filter(|_| lineage.not_after > ends) {
            let text = format!(
                "ends at {}, and the one that was adopted for {name} before at {}; is it the right file?",
                rfc3339(ends),
                rfc3339(lineage.not_after)
            );
            return Err(fields(field("/chain_pem", "ends_earlier", text)));
        }
    }
    Ok(())
}

/// Takes an adopted certificate out of service in all its cells.
///
/// # Errors
/// 409 where a name would be left without a certificate, unless `leave_unserved`; the store's.
pub(crate) async fn delete(write: &mut Write, adopted: &Adopted, leave_unserved: bool) -> Answered<()> {
    let now = write.now_ms;
    for lineage in adopted.lineages.iter().filter(|_| !leave_unserved) {
        for (name, domain) in &lineage.names {
            let at = (name.as_str(), *domain);
            if !uploaded::has_another(&mut write.tx, at, &lineage.cell, adopted.group, now).await? {
                let detail = format!(
                    "{name} would be left without a certificate in cell {}; wait until one is issued for it, upload \
                     another, or say that you mean it (leave_unserved)",
                    lineage.cell
                );
                return Err(Fault::conflict("only_certificate", detail));
            }
        }
    }
    Ok(adopted::retire(&mut write.tx, adopted, now).await?)
}

/// The names of a certificate, for people.
pub(crate) fn listed(adopted: &Adopted) -> String {
    let mut names: Vec<&str> =
        adopted.lineages.iter().flat_map(|lineage| lineage.names.keys()).map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

fn fields(error: FieldError) -> Fault {
    Fault::fields(vec![error])
}

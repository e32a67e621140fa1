//! Certificates that tenants bring: what is taken, what it takes the place of, and how it goes.
//!
//! A hostname has at most one uploaded certificate with an RSA key and one with an ECDSA key. What is brought for a hostname
//! takes the place of that of its kind; a certificate with no hostname left is forgotten with its key. Where all hostnames of an
//! earlier one move, its lineages are used again, so that an edge which refuses the new version goes on with the old one.
//! The key is sealed for each cell that serves a hostname now, and for none that comes later: what is sealed for a cell is
//! never opened for another. Only where a certificate comes without its key, for one that is in service or was made here for it,
//! that key is opened and sealed anew.

use std::collections::{BTreeMap, BTreeSet};

use portico_api::v1::{CertificateUpload, FieldError, SecretPem, UPLOAD_HOSTNAMES_MAX};
use portico_cert_store::{
    CellId, CertificateFacts, CredentialId, Custody, DomainId, GroupId, LineageId, NamePattern, SealContext,
    TenantId, Upload, UploadFault, UploadPart, check_certified_key, read_chain,
};
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;

use super::{App, certificate_request};
use crate::clock::{rfc3339, unix_ms};
use crate::http::fault::{Answered, Fault, field};
use crate::http::write::Write;
use crate::limits::UPLOADED_BYTES_OF_TENANT_MAX;
use crate::plan::timing::{self, Ends};
use crate::store::credential::NewCredential;
use crate::store::tenant::TenantRow;
use crate::store::uploaded::{self, Uploaded};
use crate::store::{cell, compromise, domain, group};

/// What became of an upload.
#[derive(Debug)]
pub(crate) enum Put {
    New(Vec<CredentialId>),
    /// Everything is so already.
    Same(Vec<CredentialId>),
}

/// Reads and checks chain and key; names are looked at by [`put`].
///
/// # Errors
/// 422 with what is wrong.
pub(crate) fn read(app: &App, chain_pem: &str, key_pem: &SecretPem, private_ca: bool) -> Answered<Upload> {
    let upload = Upload::read(chain_pem, key_pem.reveal(), roots(app, private_ca), app.parts.clock.now());
    let upload = upload.map_err(refused)?;
    check_handshake(&upload)?;
    Ok(upload)
}

/// As [`read`], where the key is here already: it waits for this certificate, or serves with the one before.
///
/// # Errors
/// 422 with what is wrong; the store's.
pub(crate) async fn read_without_key(
    app: &App,
    tenant: TenantId,
    chain_pem: &str,
    private_ca: bool,
) -> Answered<Upload> {
    let chain = read_chain(chain_pem, roots(app, private_ca), app.parts.clock.now());
    let chain = chain.map_err(|fault| refused(vec![fault]))?;
    let key = certificate_request::key_of(app, tenant, chain.facts()).await?;
    let upload = Upload { chain, key };
    check_handshake(&upload)?;
    Ok(upload)
}

fn roots(app: &App, private_ca: bool) -> Option<&RootCertStore> {
    if private_ca { None } else { Some(app.trusted_roots()) }
}

fn refused(faults: Vec<UploadFault>) -> Fault {
    let pointer = |part| match part {
        UploadPart::Chain => "/chain_pem",
        UploadPart::Key => "/key_pem",
    };
    Fault::fields(faults.into_iter().map(|f| field(pointer(f.part), f.code, f.text)).collect())
}

/// A client's handshake, as each edge does it again.
fn check_handshake(upload: &Upload) -> Answered<()> {
    let wrong = |text: String| Fault::fields(vec![field("/chain_pem", "handshake_failed", text)]);
    let names = &upload.chain.facts().names;
    let name = match names.first() {
        Some(NamePattern::Exact(name)) => name.clone(),
        Some(NamePattern::Wildcard(base)) => format!("w.{base}")
            .parse()
            .map_err(|error| wrong(format!("no name below its wildcard can be asked for: {error}")))?,
        None => return Err(wrong("holds no name".to_owned())),
    };
    let key = upload.key.signing_key().map_err(|error| wrong(error.to_string()))?;
    let key = CertifiedKey::new(upload.chain.to_vec(), key);
    check_certified_key(key.into(), &name).map_err(|error| wrong(error.to_string()))
}

/// Puts a certificate into service for the hostnames.
///
/// # Errors
/// 422 with a key that others may have or have, the hostnames that it cannot be for, or a present one that is better; the store's.
pub(crate) async fn put(
    app: &App,
    write: &mut Write,
    tenant: &TenantRow,
    request: &CertificateUpload,
    upload: &Upload,
) -> Answered<Put> {
    let spki_sha256 = upload.chain.facts().spki_sha256;
    check_key(write, tenant.id, request, &spki_sha256).await?;
    certificate_request::complete(write, tenant.id, &spki_sha256).await?;
    let wanted = wanted(write, tenant, request, upload.chain.facts()).await?;
    let kind = upload.chain.facts().key_type.is_rsa();
    let ids: Vec<DomainId> = wanted.names.values().copied().collect();
    let mut present = uploaded::of_domains(&mut write.tx, &ids).await?;
    present.retain(|other| other.is_rsa() == kind);
    if let Some(same) = same(write, &present, &wanted, upload).await? {
        return Ok(Put::Same(same));
    }
    if !request.replace_longer {
        not_shorter(&present, &wanted, upload.chain.facts())?;
    }
    let home =
        present.iter().position(|other| other.names.keys().all(|name| wanted.names.contains_key(name)));
    let home = home.map(|at| present.swap_remove(at));
    let group = match &home {
        Some(home) => {
            group::put_names(&mut write.tx, home.group, &wanted.names).await?;
            home.group
        }
        None => uploaded::insert_group(&mut write.tx, tenant.id, &wanted.names, write.now_ms).await?,
    };
    let made = seal_for_cells(app, write, tenant.id, group, &wanted, upload).await?;
    // Afterwards: a name points to the new one before it leaves the old one, and both are one transaction.
    for lineage in home.iter().flat_map(|home| &home.lineages) {
        if !wanted.cells.contains_key(&lineage.cell) {
            uploaded::retire_lineage(&mut write.tx, lineage.id, write.now_ms).await?;
        }
    }
    for other in present {
        let left: BTreeMap<_, _> =
            other.names.iter().filter(|(name, _)| !wanted.names.contains_key(*name)).collect();
        let left = left.into_iter().map(|(name, id)| (name.clone(), *id)).collect();
        leave(write, other, &left).await?;
    }
    has_room(write, tenant).await?;
    Ok(Put::New(made))
}

/// Whether nobody else has this key, as far as is known here.
async fn check_key(
    write: &mut Write,
    tenant: TenantId,
    request: &CertificateUpload,
    spki_sha256: &[u8],
) -> Answered<()> {
    let pointer = if request.key_pem.is_some() { "/key_pem" } else { "/chain_pem" };
    let refused = |code: &str, text: String| Err(Fault::fields(vec![field(pointer, code, text)]));
    if compromise::is_compromised(&mut write.tx, spki_sha256).await? {
        let text = "this key was reported compromised and is never accepted again; make a new one";
        return refused("key_compromised", text.to_owned());
    }
    // P5, as at adoption; whose they are is not a tenant's to know.
    if compromise::in_use_by_another(&mut write.tx, spki_sha256, tenant).await?.is_some() {
        let text = "names of others are served with this key, and a report of it would take both certificates; make a new \
                    key for these names, and have a certificate issued for it";
        return refused("key_of_another", text.to_owned());
    }
    // Under the cell's newer key it would look as if it had been replaced.
    if let Some(cell) = compromise::exposed_in(&mut write.tx, spki_sha256).await? {
        let text = format!(
            "the keys of cell {cell} were replaced since this one was sealed for it, because others may have read them; what \
             is in service stays so until you upload a certificate for a new key (`portico shadow csr NAME` makes one)"
        );
        return refused("key_exposed", text);
    }
    Ok(())
}

/// Whether a tenant's uploads are within their bound. What is in use no more is forgotten before anything is refused for it.
async fn has_room(write: &mut Write, tenant: &TenantRow) -> Answered<()> {
    let bytes = uploaded::bytes_of(&mut write.tx, tenant.id).await?;
    if bytes.kept > UPLOADED_BYTES_OF_TENANT_MAX {
        uploaded::forget_replaced(&mut write.tx, tenant.id).await?;
    }
    if bytes.live <= UPLOADED_BYTES_OF_TENANT_MAX {
        return Ok(());
    }
    let detail = format!(
        "with this one the uploaded certificates of tenant {} would take {} bytes (chains and sealed keys, in each cell); at \
         most {UPLOADED_BYTES_OF_TENANT_MAX}; remove those that are not needed (`portico cert rm`), or have one for several \
         names, and upload it again",
        tenant.spec.name, bytes.live
    );
    Err(Fault::conflict("uploads_full", detail))
}

/// The hostnames that it is for, and the cells that serve them.
struct Wanted {
    names: BTreeMap<String, DomainId>,
    cells: BTreeMap<CellId, BTreeMap<String, DomainId>>,
}

async fn wanted(
    write: &mut Write,
    tenant: &TenantRow,
    request: &CertificateUpload,
    facts: &CertificateFacts,
) -> Answered<Wanted> {
    let hostnames = &request.hostnames;
    if !(1..=UPLOAD_HOSTNAMES_MAX).contains(&hostnames.len()) {
        let text =
            format!("must have 1 to {UPLOAD_HOSTNAMES_MAX} names, those of the domains that it is for");
        return Err(Fault::fields(vec![field("/hostnames", "out_of_range", text)]));
    }
    let mut wanted = Wanted { names: BTreeMap::new(), cells: BTreeMap::new() };
    let mut errors = Vec::new();
    for (index, hostname) in hostnames.iter().enumerate() {
        let at = format!("/hostnames/{index}");
        match one_wanted(write, tenant.id, &at, hostname, facts).await? {
            Err(error) => errors.push(error),
            Ok(row) => {
                let name = row.name.to_string();
                if wanted.names.insert(name.clone(), row.id).is_some() {
                    errors.push(field(at, "duplicate", "is there twice"));
                }
                for cell in cell::of_domain(&row.spec.cells, &tenant.spec.cells) {
                    wanted.cells.entry(cell).or_default().insert(name.clone(), row.id);
                }
            }
        }
    }
    if errors.is_empty() { Ok(wanted) } else { Err(Fault::fields(errors)) }
}

async fn one_wanted(
    write: &mut Write,
    tenant: TenantId,
    at: &str,
    hostname: &str,
    facts: &CertificateFacts,
) -> Answered<Result<domain::DomainRow, FieldError>> {
    let name = match NamePattern::parse(hostname) {
        Ok(name) => name,
        Err(error) => return Ok(Err(field(at, "domain_name_invalid", error.to_string()))),
    };
    let Some(row) = domain::find_of_tenant(&mut write.tx, tenant, &name).await? else {
        let text = format!("{name} is no domain of this tenant; add it and prove that it is yours first");
        return Ok(Err(field(at, "unknown_domain", text)));
    };
    if !row.served {
        let text = format!(
            "control of {name} is not proved, so no certificate is served for it; see next_action of GET /v1/domains/{}",
            row.id
        );
        return Ok(Err(field(at, "not_proved", text)));
    }
    if let Err(error) = facts.check_names(std::slice::from_ref(&name)) {
        return Ok(Err(field(at, "name_not_covered", error.to_string())));
    }
    Ok(Ok(row))
}

/// Whether it is in service so already: this certificate, for these hostnames at least, in their cells, under the cells' newest
/// keys.
async fn same(
    write: &mut Write,
    present: &[Uploaded],
    wanted: &Wanted,
    upload: &Upload,
) -> Answered<Option<Vec<CredentialId>>> {
    let fingerprint = upload.chain.facts().fingerprint_sha256;
    let has_all = |other: &&Uploaded| {
        let has = |(cell, names): (&CellId, &BTreeMap<String, DomainId>)| {
            other.lineages.iter().any(|lineage| {
                lineage.cell == *cell
                    && lineage.fingerprint_sha256 == fingerprint
                    && names.iter().all(|(name, id)| lineage.names.get(name) == Some(id))
            })
        };
        wanted.cells.iter().all(has)
    };
    let Some(found) = present.iter().find(has_all) else { return Ok(None) };
    for lineage in &found.lineages {
        if cell::newest_epoch(&mut write.tx, &lineage.cell).await? != Some(lineage.cell_key_epoch) {
            return Ok(None);
        }
    }
    Ok(Some(found.lineages.iter().map(|lineage| lineage.credential).collect()))
}

/// P9: nothing takes the place of what is better, unless its owner says so.
fn not_shorter(present: &[Uploaded], wanted: &Wanted, facts: &CertificateFacts) -> Answered<()> {
    let ends = unix_ms(facts.not_after);
    for other in present {
        let longest = other.lineages.iter().map(|lineage| lineage.not_after).max().unwrap_or(i64::MIN);
        let Some(name) = other.names.keys().find(|name| wanted.names.contains_key(*name)) else { continue };
        if longest > ends {
            let text = format!(
                "ends at {}, and the one that was uploaded for {name} before at {}; is it the right file? To replace it all \
                 the same, say so (replace_longer)",
                rfc3339(ends),
                rfc3339(longest)
            );
            return Err(Fault::fields(vec![field("/chain_pem", "ends_earlier", text)]));
        }
    }
    Ok(())
}

async fn seal_for_cells(
    app: &App,
    write: &mut Write,
    tenant: TenantId,
    group: GroupId,
    wanted: &Wanted,
    upload: &Upload,
) -> Answered<Vec<CredentialId>> {
    let mut made = Vec::with_capacity(wanted.cells.len());
    for (cell, names) in &wanted.cells {
        let lineage = uploaded::ensure_lineage(&mut write.tx, group, cell, write.now_ms).await?;
        let new = sealed(app, write, tenant, lineage, cell, upload).await?;
        uploaded::publish(&mut write.tx, &new, names, write.now_ms).await?;
        made.push(new.id);
    }
    Ok(made)
}

/// An uploaded certificate for a cell that serves its names, its key sealed for that one.
///
/// # Errors
/// The store's; a key that cannot be sealed.
pub(super) async fn sealed(
    app: &App,
    write: &mut Write,
    tenant: TenantId,
    lineage: LineageId,
    cell: &CellId,
    upload: &Upload,
) -> Answered<NewCredential> {
    let internal = |error: &(dyn std::error::Error + 'static)| {
        tracing::error!(error, "a key that was brought cannot be sealed");
        Fault::internal()
    };
    let cell_key = cell::current_key(&mut write.tx, &app.parts.sealer, cell, write.now_ms).await;
    let cell_key = cell_key.map_err(|error| internal(&error))?;
    let (id, facts, key_tenant) = (CredentialId::generate(), upload.chain.facts(), tenant.to_string());
    let context = SealContext {
        cell,
        epoch: cell_key.epoch(),
        key_tenant: &key_tenant,
        credential: id,
        spki_sha256: facts.spki_sha256,
    };
    let sealed_key = cell_key.seal(&upload.key, &context).map_err(|error| internal(&error))?;
    let (not_before, not_after) = (unix_ms(facts.not_before), unix_ms(facts.not_after));
    let renew_at = timing::renew_at(not_before, not_after, app.parts.config.renewal.share, lineage);
    Ok(NewCredential {
        id,
        lineage,
        custody: Custody::Uploaded,
        issuer: facts.issuer.to_string(),
        names: facts.names.iter().map(ToString::to_string).collect(),
        // Written anew: whatever else stood in the text is not kept.
        chain_pem: upload.chain.to_pem(),
        sealed_key: sealed_key.as_bytes().to_vec(),
        cell_key_epoch: cell_key.epoch(),
        key_tenant,
        spki_sha256: facts.spki_sha256,
        fingerprint_sha256: facts.fingerprint_sha256,
        not_before,
        not_after,
        renew_at,
        account: None,
        is_rsa: facts.key_type.is_rsa(),
        tell_at: timing::tell_at(&Ends { not_before, not_after, renew_at }, 0),
        adopted: false,
    })
}

/// Has an uploaded certificate serve `left` of its hostnames only; without any it goes.
async fn leave(write: &mut Write, other: Uploaded, left: &BTreeMap<String, DomainId>) -> Answered<()> {
    if left.is_empty() {
        return Ok(uploaded::retire(&mut write.tx, &other, write.now_ms).await?);
    }
    group::put_names(&mut write.tx, other.group, left).await?;
    for lineage in &other.lineages {
        let names: BTreeMap<String, DomainId> = lineage
            .names
            .iter()
            .filter(|(name, _)| left.contains_key(*name))
            .map(|(n, id)| (n.clone(), *id))
            .collect();
        if names.is_empty() {
            uploaded::retire_lineage(&mut write.tx, lineage.id, write.now_ms).await?;
        } else {
            uploaded::serve(&mut write.tx, lineage.id, &names).await?;
        }
    }
    Ok(())
}

/// Takes an uploaded certificate out of service in all cells and forgets its key.
///
/// # Errors
/// 409 where a hostname would be left without a certificate, unless `leave_unserved`; the store's.
pub(crate) async fn delete(write: &mut Write, uploaded: &Uploaded, leave_unserved: bool) -> Answered<()> {
    let now = write.now_ms;
    if !leave_unserved {
        let mut bare = BTreeSet::new();
        for lineage in &uploaded.lineages {
            for (name, domain) in &lineage.names {
                let at = (name.as_str(), *domain);
                let another = uploaded::has_another(&mut write.tx, at, &lineage.cell, uploaded.group, now);
                if !another.await? {
                    bare.insert(format!("{name} in cell {}", lineage.cell));
                }
            }
        }
        if let Some(first) = bare.first() {
            let detail = format!(
                "{} would be left without a certificate, {first} first; wait until one is issued for it, upload another, or \
                 say that you mean it (leave_unserved)",
                if bare.len() == 1 { "a name".to_owned() } else { format!("{} names", bare.len()) }
            );
            return Err(Fault::conflict("only_certificate", detail));
        }
    }
    uploaded::retire(&mut write.tx, uploaded, now).await?;
    Ok(())
}

/// What the trail and events say of an uploaded certificate.
pub(crate) fn described(uploaded: &Uploaded) -> serde_json::Value {
    let first = uploaded.lineages.first();
    serde_json::json!({
        "hostnames": uploaded.names.keys().collect::<Vec<_>>(),
        "fingerprint_sha256": first.map(|lineage| hex::encode(&lineage.fingerprint_sha256)),
        "not_after": first.map(|lineage| rfc3339(lineage.not_after)),
        "cells": uploaded.lineages.iter().map(|lineage| &lineage.cell).collect::<Vec<_>>(),
    })
}

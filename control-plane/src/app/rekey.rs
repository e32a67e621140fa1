//! Keys that are replaced before their time, as the API takes and shows them.

use std::collections::BTreeMap;

use portico_api::v1::{
    REKEY_NOTE_BYTES_MAX, Rekey, RekeyForecast, RekeyHold, RekeyId, RekeyRequest, RekeyScope, RekeyTrouble,
};
use portico_cert_store::{CellId, CredentialId, TenantId};

use super::{App, budget};
use crate::clock::rfc3339;
use crate::http::fault::{Answered, Fault, field};
use crate::http::write::Write;
use crate::plan::rekey::{Forecast, Replacement, forecast};
use crate::sealer::hex;
use crate::store::rekey::{self, Outstanding, Progress, REVOKED_WITHIN_MS, RekeyRow};
use crate::store::{Connection, cell, compromise, credential, uploaded};

/// Orders that failed last and are told.
const TROUBLES_MAX: usize = 20;
/// Names of a certificate that are told.
const NAMES_TOLD_MAX: usize = 4;

/// What a request means.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) scope: RekeyScope,
    pub(crate) subject: String,
    /// Of an edge or a cell, with the epoch before which what is sealed is concerned.
    pub(crate) cell: Option<(CellId, u32)>,
    /// That epoch has not begun.
    pub(crate) begins_epoch: bool,
    /// Others may have them.
    pub(crate) compromised: bool,
    pub(crate) credentials: Vec<CredentialId>,
    /// SHA-256 of public keys that no certificate of `credentials` may tell of: of one that is reported by itself, and of those
    /// that tenants brought.
    pub(crate) keys: Vec<Vec<u8>>,
}

/// Reads what is to be replaced.
///
/// # Errors
/// 422 with the faulty field; 409 for a certificate that is not renewed here; the store's.
pub(crate) async fn read(app: &App, connection: &mut Connection, request: &RekeyRequest) -> Answered<Asked> {
    let now_ms = app.parts.clock.now_ms();
    let mut asked = read_scope(connection, request, now_ms).await?;
    asked.compromised = request.compromised;
    if let Some((cell, epoch)) = asked.cell.as_ref().filter(|_| request.compromised) {
        asked.credentials = compromise::readable(connection, cell, *epoch, now_ms).await?;
        for found in uploaded::under_older_key(connection, cell, *epoch).await? {
            for lineage in &found.lineages {
                asked
                    .keys
                    .extend(credential::find(connection, lineage.credential).await?.map(|c| c.spki_sha256));
            }
        }
    }
    Ok(asked)
}

async fn read_scope(connection: &mut Connection, request: &RekeyRequest, now_ms: i64) -> Answered<Asked> {
    if request.note.len() > REKEY_NOTE_BYTES_MAX {
        let text = format!("has {} bytes, at most {REKEY_NOTE_BYTES_MAX}", request.note.len());
        return Err(Fault::fields(vec![field("/note", "too_large", text)]));
    }
    match (request.edge, &request.cell, request.certificate, &request.spki_sha256) {
        (Some(edge), None, None, None) => {
            let Some((of, epoch)) = rekey::cell_of_edge(connection, edge).await? else {
                let text = format!("{edge} is no edge, nor was it one");
                return Err(Fault::fields(vec![field("/edge", "unknown_edge", text)]));
            };
            of_cell(connection, RekeyScope::Edge, edge.to_string(), of, epoch).await
        }
        (None, Some(of), None, None) => {
            of_cell(connection, RekeyScope::Cell, of.to_string(), of.clone(), None).await
        }
        (None, None, Some(id), None) => of_certificate(connection, id, request.compromised).await,
        (None, None, None, Some(hash)) => of_key(connection, hash, request.compromised, now_ms).await,
        _ => {
            let text = "say what is to be replaced: exactly one of edge, cell, certificate and spki_sha256";
            Err(Fault::fields(vec![field("", "one_of", text)]))
        }
    }
}

async fn of_cell(
    connection: &mut Connection,
    scope: RekeyScope,
    subject: String,
    of: CellId,
    epoch: Option<u32>,
) -> Answered<Asked> {
    let Some(newest) = cell::newest_epoch(connection, &of).await? else {
        let text = format!("no edge has joined {of} and no join token was made for it");
        return Err(Fault::fields(vec![field("/cell", "unknown_cell", text)]));
    };
    let begins_epoch = epoch.is_none();
    let epoch = epoch.unwrap_or(newest + 1);
    let credentials = rekey::under_older_key(connection, &of, epoch).await?;
    Ok(Asked {
        scope,
        subject,
        cell: Some((of, epoch)),
        begins_epoch,
        compromised: false,
        credentials,
        keys: Vec::new(),
    })
}

async fn of_key(connection: &mut Connection, hash: &str, compromised: bool, now_ms: i64) -> Answered<Asked> {
    let wrong = |code, text| Err(Fault::fields(vec![field("/spki_sha256", code, text)]));
    let Some(key) = unhex(hash) else {
        return wrong(
            "invalid_value",
            "is no SHA-256 in hex; `portico cert show` has it of a certificate, as \"public key\"",
        );
    };
    if !compromised {
        return wrong(
            "compromised_only",
            "say compromised too; else name the certificate whose key is replaced",
        );
    }
    Ok(Asked {
        scope: RekeyScope::Key,
        subject: hex(&key),
        cell: None,
        begins_epoch: false,
        compromised,
        credentials: compromise::of_key(connection, &key, now_ms).await?,
        keys: vec![key],
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let is_hash = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).ok();
    is_hash.then(|| (0..64).step_by(2).filter_map(byte).collect())
}

async fn of_certificate(connection: &mut Connection, id: CredentialId, compromised: bool) -> Answered<Asked> {
    let found = credential::find(connection, id).await?.ok_or_else(|| Fault::not_found("certificate"))?;
    let is_uploaded = matches!(uploaded::group_of(connection, id).await?, Some((_, _, true)));
    let asked = Asked {
        scope: RekeyScope::Certificate,
        subject: id.to_string(),
        cell: None,
        begins_epoch: false,
        compromised,
        credentials: if is_uploaded { Vec::new() } else { vec![id] },
        keys: vec![found.spki_sha256],
    };
    if compromised {
        return Ok(asked);
    }
    if is_uploaded {
        let detail =
            "the certificate was uploaded: only its tenant has the key; upload another with a new key";
        return Err(Fault::conflict("uploaded", detail));
    }
    let live = credential::live_of_lineage(connection, found.lineage).await?;
    if live.is_none_or(|live| live.id != id) {
        let detail = "the certificate is not in use any more: another took its place, or its names have gone";
        return Err(Fault::conflict("not_in_use", detail));
    }
    Ok(asked)
}

/// Begins, as a part of the caller's write; one that goes on already is left as it is. The second value: it was begun now.
///
/// # Errors
/// The store's; the cell's key cannot be made.
pub(crate) async fn begin(
    app: &App,
    write: &mut Write,
    asked: &Asked,
    note: &str,
) -> Answered<(RekeyRow, bool)> {
    let (scope, subject) = (asked.scope, asked.subject.as_str());
    if let Some(row) = rekey::find_open(&mut write.tx, scope, subject, asked.compromised).await? {
        return Ok((row, false));
    }
    if let Some((of, _)) = asked.cell.as_ref().filter(|_| asked.begins_epoch) {
        cell::next_epoch(&mut write.tx, &app.parts.sealer, of, write.now_ms).await?;
    }
    let row = RekeyRow {
        id: RekeyId::generate(),
        scope: asked.scope,
        subject: asked.subject.clone(),
        cell: asked.cell.clone(),
        compromised: asked.compromised,
        note: note.to_owned(),
        requested_by: write.actor().to_owned(),
        requested_at: write.now_ms,
        finished_at: None,
        behind: Vec::new(),
    };
    rekey::insert(&mut write.tx, &row).await?;
    for credential in &asked.credentials {
        rekey::add(&mut write.tx, row.id, *credential).await?;
    }
    if asked.compromised {
        condemn(write, &row, asked).await?;
    } else {
        tell(write, &row, asked.credentials.len()).await?;
    }
    Ok((row, true))
}

/// Notes the keys, has the orders go before all others, and tells everybody concerned.
async fn condemn(write: &mut Write, row: &RekeyRow, asked: &Asked) -> Answered<()> {
    for credential in &asked.credentials {
        compromise::note_key_of(&mut write.tx, row.id, *credential, write.now_ms).await?;
    }
    for key in &asked.keys {
        compromise::note_key(&mut write.tx, row.id, key, write.now_ms).await?;
    }
    compromise::press_orders(&mut write.tx, row.id, write.now_ms).await?;
    let by = rfc3339(row.requested_at + REVOKED_WITHIN_MS);
    let certificates = asked.credentials.len();
    let text = format!(
        "{}: reported compromised; {certificates} certificates get new keys now and are revoked when the edges have those, by \
         {by} at the latest",
        of(row)
    );
    tracing::warn!(rekey = %row.id, text, "keys were reported compromised");
    write.event("keys.compromised", None, &row.id.to_string(), &text).await?;
    let mut by_tenant: BTreeMap<TenantId, Vec<(CredentialId, Vec<String>)>> = BTreeMap::new();
    for (tenant, credential, names) in compromise::owners(&mut write.tx, row.id).await? {
        if let Some(tenant) = tenant {
            by_tenant.entry(tenant).or_default().push((credential, names));
        }
    }
    for (tenant, owned) in by_tenant {
        let names: Vec<&str> = owned.iter().flat_map(|(_, names)| names).map(String::as_str).collect();
        let text = format!(
            "{}: others may have the keys of {} certificates; new ones are ordered, and these are revoked by {by}",
            listed(&names),
            owned.len()
        );
        write.event("certificate.key_compromised", Some(tenant), &owned[0].0.to_string(), &text).await?;
    }
    for key in &asked.keys {
        expose_uploaded(write, key).await?;
    }
    Ok(())
}

/// What tenants brought with a key is taken out of service where its names have another certificate; they are told in any case.
async fn expose_uploaded(write: &mut Write, key: &[u8]) -> Answered<()> {
    for group in compromise::uploaded_groups(&mut write.tx, key).await? {
        let Some(found) = uploaded::find(&mut write.tx, group).await? else { continue };
        let mut is_only = false;
        for lineage in &found.lineages {
            for (name, domain) in &lineage.names {
                let at = (name.as_str(), *domain);
                is_only |=
                    !uploaded::has_another(&mut write.tx, at, &lineage.cell, group, write.now_ms).await?;
            }
        }
        let names: Vec<&str> = found.names.keys().map(String::as_str).collect();
        let then = if is_only {
            "it is still served, because some of its names have no other certificate; upload one with a new key now"
        } else {
            "it is served no more, its names have other certificates"
        };
        let text =
            format!("{}: others may have the uploaded key; {then}; have its CA revoke it", listed(&names));
        let subject = found.lineages.first().map(|lineage| lineage.credential.to_string());
        write
            .event("certificate.key_compromised", Some(found.tenant), &subject.unwrap_or_default(), &text)
            .await?;
        if !is_only {
            uploaded::retire(&mut write.tx, &found, write.now_ms).await?;
        }
    }
    Ok(())
}

fn listed(names: &[&str]) -> String {
    let shown = names[..names.len().min(NAMES_TOLD_MAX)].join(", ");
    match names.len().saturating_sub(NAMES_TOLD_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

async fn tell(write: &mut Write, row: &RekeyRow, certificates: usize) -> Answered<()> {
    let text = format!("the keys of {certificates} certificates of {} are replaced", of(row));
    write.event("keys.rekey", None, &row.id.to_string(), &text).await?;
    let Some((cell, epoch)) = &row.cell else { return Ok(()) };
    for found in uploaded::under_older_key(&mut write.tx, cell, *epoch).await? {
        let Some(lineage) = found.lineages.first() else { continue };
        let names: Vec<&str> = lineage.names.keys().map(String::as_str).collect();
        let text = format!(
            "the keys of cell {cell} are replaced, and the uploaded key of {} is among them; upload a certificate with a new \
             key",
            names.join(", ")
        );
        let subject = lineage.credential.to_string();
        write.event("certificate.key_exposed", Some(found.tenant), &subject, &text).await?;
    }
    Ok(())
}

/// Whose keys, for people.
pub(crate) fn of(row: &RekeyRow) -> String {
    match (row.scope, &row.cell) {
        (RekeyScope::Edge, Some((cell, _))) => format!("edge {} (cell {cell})", row.subject),
        (RekeyScope::Cell, _) => format!("cell {}", row.subject),
        (RekeyScope::Key, _) => format!("public key {}", row.subject),
        (RekeyScope::Edge | RekeyScope::Certificate, _) => row.subject.clone(),
    }
}

/// What would be done.
///
/// # Errors
/// The store's.
pub(crate) async fn would(
    app: &App,
    connection: &mut Connection,
    asked: &Asked,
    note: &str,
) -> Answered<Rekey> {
    let row = RekeyRow {
        id: RekeyId::generate(),
        scope: asked.scope,
        subject: asked.subject.clone(),
        cell: asked.cell.clone(),
        compromised: asked.compromised,
        note: note.to_owned(),
        requested_by: String::new(),
        requested_at: app.parts.clock.now_ms(),
        finished_at: None,
        behind: Vec::new(),
    };
    let certificates = u64::try_from(asked.credentials.len()).unwrap_or(u64::MAX);
    let left = rekey::outstanding(connection, &asked.credentials).await?.len();
    let replaced = certificates.saturating_sub(u64::try_from(left).unwrap_or(u64::MAX));
    let progress = Progress { certificates, replaced, ..Progress::default() };
    let rekey = described(app, connection, &row, progress, &asked.credentials).await?;
    Ok(Rekey { id: None, ..rekey })
}

/// One as it stands now.
///
/// # Errors
/// The store's.
pub(crate) async fn shown(app: &App, connection: &mut Connection, row: &RekeyRow) -> Answered<Rekey> {
    let progress = rekey::progress(connection, row.id).await?;
    let left = rekey::not_replaced(connection, row.id).await?;
    described(app, connection, row, progress, &left).await
}

async fn described(
    app: &App,
    connection: &mut Connection,
    row: &RekeyRow,
    progress: Progress,
    left: &[CredentialId],
) -> Answered<Rekey> {
    let uploaded = match &row.cell {
        Some((cell, epoch)) if row.finished_at.is_none() => {
            uploaded::under_older_key(connection, cell, *epoch).await?.len()
        }
        _ => 0,
    };
    let outstanding = rekey::outstanding(connection, left).await?;
    let mut troubles: Vec<RekeyTrouble> = outstanding.iter().filter_map(trouble).take(TROUBLES_MAX).collect();
    let (revoked, unrevoked) = compromise::revocations(connection, row).await?;
    troubles.extend(unrevoked.into_iter().map(|(certificate, names, text)| RekeyTrouble {
        certificate,
        names: names.into_iter().take(NAMES_TOLD_MAX).collect(),
        text: format!("not revoked: {text}"),
    }));
    Ok(Rekey {
        id: Some(row.id),
        scope: row.scope,
        subject: row.subject.clone(),
        cell: row.cell.as_ref().map(|(cell, _)| cell.clone()),
        compromised: row.compromised,
        note: row.note.clone(),
        requested_by: row.requested_by.clone(),
        requested_at: rfc3339(row.requested_at),
        finished_at: row.finished_at.map(rfc3339),
        revoked_by: row.revoked_by().map(rfc3339),
        certificates: progress.certificates,
        replaced: progress.replaced,
        retired: progress.retired,
        revoked,
        uploaded: u64::try_from(uploaded).unwrap_or(u64::MAX),
        forecast: forecast_of(app, connection, &outstanding).await?,
        behind: row.behind.iter().map(ToString::to_string).collect(),
        troubles,
    })
}

fn trouble(one: &Outstanding) -> Option<RekeyTrouble> {
    let names = one.names.iter().take(NAMES_TOLD_MAX).cloned().collect();
    Some(RekeyTrouble { certificate: one.credential, names, text: one.trouble.clone()? })
}

/// By the ledger of each issuer that the certificates are of: their orders go there as a rule.
async fn forecast_of(
    app: &App,
    connection: &mut Connection,
    outstanding: &[Outstanding],
) -> Answered<RekeyForecast> {
    let now = app.parts.clock.now_ms();
    let mut all = Forecast { last_ms: now, ..Forecast::default() };
    for issuer in &app.parts.config.issuers {
        let wanted: Vec<Replacement<'_>> = outstanding
            .iter()
            .filter(|one| one.issuer == issuer.name)
            .map(|one| Replacement { names: &one.names, tenant: one.tenant, window: one.window })
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let spent = budget::spent_as_of(connection, issuer, now).await?;
        let found = forecast(&wanted, spent.at(), &spent.limits, &spent.levels, now);
        all.orders += found.orders;
        all.at_once += found.at_once;
        all.last_ms = all.last_ms.max(found.last_ms);
        all.held_by.extend(found.held_by);
    }
    Ok(RekeyForecast {
        orders: all.orders,
        at_once: all.at_once,
        last_at: (all.last_ms > now).then(|| rfc3339(all.last_ms)),
        held_by: all
            .held_by
            .into_iter()
            .map(|(limit, orders, until)| RekeyHold {
                limit: limit.text().to_owned(),
                orders,
                last_at: rfc3339(until),
            })
            .collect(),
    })
}

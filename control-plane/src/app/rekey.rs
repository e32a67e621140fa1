//! Keys that are replaced before their time, as the API takes and shows them.

use portico_api::v1::{
    REKEY_NOTE_BYTES_MAX, Rekey, RekeyForecast, RekeyHold, RekeyId, RekeyRequest, RekeyScope, RekeyTrouble,
};
use portico_cert_store::{CellId, CredentialId};

use super::{App, budget};
use crate::clock::rfc3339;
use crate::http::fault::{Answered, Fault, field};
use crate::http::write::Write;
use crate::plan::rekey::{Forecast, Replacement, forecast};
use crate::store::rekey::{self, Outstanding, Progress, RekeyRow};
use crate::store::{Connection, cell, credential, uploaded};

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
    pub(crate) credentials: Vec<CredentialId>,
}

/// Reads what is to be replaced.
///
/// # Errors
/// 422 with the faulty field; 409 for a certificate that is not renewed here; the store's.
pub(crate) async fn read(connection: &mut Connection, request: &RekeyRequest) -> Answered<Asked> {
    if request.note.len() > REKEY_NOTE_BYTES_MAX {
        let text = format!("has {} bytes, at most {REKEY_NOTE_BYTES_MAX}", request.note.len());
        return Err(Fault::fields(vec![field("/note", "too_large", text)]));
    }
    match (request.edge, &request.cell, request.certificate) {
        (Some(edge), None, None) => {
            let Some((of, epoch)) = rekey::cell_of_edge(connection, edge).await? else {
                let text = format!("{edge} is no edge, nor was it one");
                return Err(Fault::fields(vec![field("/edge", "unknown_edge", text)]));
            };
            of_cell(connection, RekeyScope::Edge, edge.to_string(), of, epoch).await
        }
        (None, Some(of), None) => {
            of_cell(connection, RekeyScope::Cell, of.to_string(), of.clone(), None).await
        }
        (None, None, Some(id)) => of_certificate(connection, id).await,
        _ => {
            let text = "say what is to be replaced: exactly one of edge, cell and certificate";
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
    Ok(Asked { scope, subject, cell: Some((of, epoch)), begins_epoch, credentials })
}

async fn of_certificate(connection: &mut Connection, id: CredentialId) -> Answered<Asked> {
    let found = credential::find(connection, id).await?.ok_or_else(|| Fault::not_found("certificate"))?;
    if let Some((_, _, true)) = uploaded::group_of(connection, id).await? {
        let detail =
            "the certificate was uploaded: only its tenant has the key; upload another with a new key";
        return Err(Fault::conflict("uploaded", detail));
    }
    let live = credential::live_of_lineage(connection, found.lineage).await?;
    if live.is_none_or(|live| live.id != id) {
        let detail = "the certificate is not in use any more: another took its place, or its names have gone";
        return Err(Fault::conflict("not_in_use", detail));
    }
    let (scope, subject) = (RekeyScope::Certificate, id.to_string());
    Ok(Asked { scope, subject, cell: None, begins_epoch: false, credentials: vec![id] })
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
    if let Some(row) = rekey::find_open(&mut write.tx, asked.scope, &asked.subject).await? {
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
    tell(write, &row, asked.credentials.len()).await?;
    Ok((row, true))
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
        note: note.to_owned(),
        requested_by: String::new(),
        requested_at: app.parts.clock.now_ms(),
        finished_at: None,
        behind: Vec::new(),
    };
    let certificates = u64::try_from(asked.credentials.len()).unwrap_or(u64::MAX);
    let progress = Progress { certificates, ..Progress::default() };
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
    let troubles = outstanding.iter().filter_map(trouble).take(TROUBLES_MAX).collect();
    Ok(Rekey {
        id: Some(row.id),
        scope: row.scope,
        subject: row.subject.clone(),
        cell: row.cell.as_ref().map(|(cell, _)| cell.clone()),
        note: row.note.clone(),
        requested_by: row.requested_by.clone(),
        requested_at: rfc3339(row.requested_at),
        finished_at: row.finished_at.map(rfc3339),
        certificates: progress.certificates,
        replaced: progress.replaced,
        retired: progress.retired,
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

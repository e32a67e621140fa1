//! Keys that are replaced before their time, as the API takes and shows them.

use portico_api::v1::{
    REKEY_NOTE_BYTES_MAX, Rekey, RekeyForecast, RekeyHold, RekeyId, RekeyRequest, RekeyScope, RekeyTrouble,
};
use portico_cert_store::{CellId, CredentialId};

use super::compromise::{expose_uploaded, not_revoked_here, take_in};
use super::{App, budget};
use crate::clock::rfc3339;
use crate::http::fault::{Answered, Fault, field};
use crate::http::write::Write;
use crate::plan::rekey::{Forecast, Replacement, forecast};
use crate::store::rekey::{self, Outstanding, Progress, REVOKED_WITHIN_MS, RekeyRow};
use crate::store::{Connection, cell, compromise, credential, uploaded};

/// Orders that failed last and are told.
const TROUBLES_MAX: usize = 20;
/// Names of a certificate that are told.
pub(super) const NAMES_TOLD_MAX: usize = 4;

/// What a request means.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) scope: RekeyScope,
    pub(crate) subject: String,
    /// Of an edge or a cell, with the epoch before which what is sealed is concerned.
    pub(crate) cell: Option<(CellId, u32)>,
    /// That epoch has not begun.
    pub(crate) begins_epoch: bool,
    /// What is concerned; of a cell it is what is sealed there, which may be much, and the loop over rekeys finds it.
    pub(crate) credentials: Vec<CredentialId>,
    /// SHA-256 of the public key that is reported, which no certificate of `credentials` need have.
    pub(crate) key: Option<Vec<u8>>,
}

impl Asked {
    fn row(&self, request: &RekeyRequest, requested_by: &str, requested_at: i64) -> RekeyRow {
        RekeyRow {
            id: RekeyId::generate(),
            scope: self.scope,
            subject: self.subject.clone(),
            cell: self.cell.clone(),
            compromised: request.compromised,
            note: request.note.clone(),
            requested_by: requested_by.to_owned(),
            requested_at,
            finished_at: None,
            behind: Vec::new(),
        }
    }
}

/// Reads what is to be replaced.
///
/// # Errors
/// 422 with the faulty field; 409 for a certificate that is not renewed here; the store's.
pub(crate) async fn read(app: &App, connection: &mut Connection, request: &RekeyRequest) -> Answered<Asked> {
    let now_ms = app.parts.clock.now_ms();
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
        (None, None, Some(id), None) => of_certificate(connection, id, request.compromised, now_ms).await,
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
    Ok(Asked { scope, subject, cell: Some((of, epoch)), begins_epoch, credentials: Vec::new(), key: None })
}

async fn of_key(connection: &mut Connection, hash: &str, compromised: bool, now_ms: i64) -> Answered<Asked> {
    let wrong = |code, text| Err(Fault::fields(vec![field("/spki_sha256", code, text)]));
    let mut key = vec![0; 32];
    if hex::decode_to_slice(hash, &mut key).is_err() {
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
        subject: hex::encode(&key),
        cell: None,
        begins_epoch: false,
        credentials: compromise::of_key(connection, &key, now_ms).await?,
        key: Some(key),
    })
}

async fn of_certificate(
    connection: &mut Connection,
    id: CredentialId,
    compromised: bool,
    now_ms: i64,
) -> Answered<Asked> {
    let found = credential::find(connection, id).await?.ok_or_else(|| Fault::not_found("certificate"))?;
    let is_uploaded = matches!(uploaded::group_of(connection, id).await?, Some((_, _, true)));
    let mut asked = Asked {
        scope: RekeyScope::Certificate,
        subject: id.to_string(),
        cell: None,
        begins_epoch: false,
        credentials: if is_uploaded { Vec::new() } else { vec![id] },
        key: None,
    };
    if compromised {
        // An adopted key is in each cell that serves its names, and may have stood in several certificates: a CA revokes the
        // certificate wherever it is served.
        let same = compromise::of_key(connection, &found.spki_sha256, now_ms).await?;
        asked.credentials.extend(same.into_iter().filter(|other| *other != id));
        asked.key = Some(found.spki_sha256);
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
    request: &RekeyRequest,
    expected: &Rekey,
) -> Answered<Begun> {
    let asked = read(app, &mut write.tx, request).await?;
    let (scope, subject) = (asked.scope, asked.subject.as_str());
    if let Some(row) = rekey::find_open(&mut write.tx, scope, subject, request.compromised).await? {
        return Ok(Begun { row, is_new: false, begins_epoch: false });
    }
    if let Some((of, _)) = asked.cell.as_ref().filter(|_| asked.begins_epoch) {
        cell::next_epoch(&mut write.tx, &app.parts.sealer, of, write.now_ms).await?;
    }
    let row = asked.row(request, write.actor(), write.now_ms);
    rekey::insert(&mut write.tx, &row).await?;
    if row.compromised {
        condemn(app, write, &row, &asked, expected.certificates).await?;
    } else {
        rekey::add(&mut write.tx, row.id, &asked.credentials, write.now_ms).await?;
        tell(write, &row, expected.certificates).await?;
    }
    Ok(Begun { row, is_new: true, begins_epoch: asked.begins_epoch })
}

/// What [`begin`] found or made.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) row: RekeyRow,
    pub(crate) is_new: bool,
    /// The cell has another key from now on.
    pub(crate) begins_epoch: bool,
}

/// Tells the operators, and does what need not wait for the loop over rekeys.
async fn condemn(
    app: &App,
    write: &mut Write,
    row: &RekeyRow,
    asked: &Asked,
    certificates: u64,
) -> Answered<()> {
    let by = rfc3339(row.requested_at + REVOKED_WITHIN_MS);
    let text = format!(
        "{}: reported compromised; {certificates} certificates get new keys now and are revoked when the edges have those, by \
         {by} at the latest",
        of(row)
    );
    tracing::warn!(rekey = %row.id, text, "keys were reported compromised");
    write.event("keys.compromised", None, &row.id.to_string(), &text).await?;
    let now_ms = write.now_ms;
    let keys: Vec<Vec<u8>> = asked.key.iter().cloned().collect();
    compromise::note_keys(&mut write.tx, row.id, &keys, now_ms).await?;
    take_in(&mut write.tx, row, &asked.credentials, &app.parts.config.issuers, now_ms).await?;
    Ok(expose_uploaded(&mut write.tx, &keys, now_ms).await?)
}

async fn tell(write: &mut Write, row: &RekeyRow, certificates: u64) -> Answered<()> {
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

/// What a request would do, or, unless it is a dry run, how far what it asks for is already.
///
/// # Errors
/// As [`read`].
pub(crate) async fn expected(app: &App, request: &RekeyRequest) -> Answered<Rekey> {
    let mut connection = app.parts.store.read().await?;
    let asked = read(app, &mut connection, request).await?;
    if !request.dry_run {
        let (scope, subject) = (asked.scope, asked.subject.as_str());
        if let Some(row) = rekey::find_open(&mut connection, scope, subject, request.compromised).await? {
            return shown(app, &mut connection, &row).await;
        }
    }
    let row = asked.row(request, "", app.parts.clock.now_ms());
    let mut all = asked.credentials;
    all.extend(rekey::lacking(&mut connection, &row, None).await?);
    let left = rekey::outstanding(&mut connection, &all).await?.len();
    let certificates = u64::try_from(all.len()).unwrap_or(u64::MAX);
    let replaced = certificates.saturating_sub(u64::try_from(left).unwrap_or(u64::MAX));
    let progress = Progress { certificates, replaced, ..Progress::default() };
    let rekey = described(app, &mut connection, &row, progress, &all).await?;
    Ok(Rekey { id: None, ..rekey })
}

/// One as it stands now.
///
/// # Errors
/// The store's.
pub(crate) async fn shown(app: &App, connection: &mut Connection, row: &RekeyRow) -> Answered<Rekey> {
    let mut progress = rekey::progress(connection, row.id).await?;
    let mut left = rekey::not_replaced(connection, row.id).await?;
    if row.finished_at.is_none() {
        // What the loop over rekeys has not come to yet.
        let lacking = rekey::lacking(connection, row, None).await?;
        progress.certificates += u64::try_from(lacking.len()).unwrap_or(u64::MAX);
        left.extend(lacking);
    }
    described(app, connection, row, progress, &left).await
}

async fn described(
    app: &App,
    connection: &mut Connection,
    row: &RekeyRow,
    progress: Progress,
    left: &[CredentialId],
) -> Answered<Rekey> {
    // Also when all that can be done here is: their tenants alone can bring others.
    let uploaded = compromise::uploads_left(connection, row).await?;
    let outstanding = rekey::outstanding(connection, left).await?;
    let most = u32::try_from(TROUBLES_MAX).unwrap_or(u32::MAX);
    let mut troubles: Vec<RekeyTrouble> = outstanding.iter().filter_map(trouble).take(TROUBLES_MAX).collect();
    let (revoked, unrevoked) = compromise::revocations(connection, row, most).await?;
    troubles.extend(unrevoked.into_iter().map(|(certificate, names, text)| RekeyTrouble {
        certificate,
        names: names.into_iter().take(NAMES_TOLD_MAX).collect(),
        text: format!("not revoked: {text}"),
    }));
    let issuers: Vec<&str> = app.parts.config.issuers.iter().map(|issuer| issuer.name.as_str()).collect();
    let now_ms = app.parts.clock.now_ms();
    let elsewhere = match row.compromised {
        true => compromise::of_other_issuers(connection, row.id, &issuers, now_ms, most).await?.1,
        false => Vec::new(),
    };
    troubles.extend(elsewhere.into_iter().map(|one| RekeyTrouble {
        certificate: one.credential,
        names: one.names.into_iter().take(NAMES_TOLD_MAX).collect(),
        text: not_revoked_here(&one.issuer),
    }));
    troubles.truncate(TROUBLES_MAX);
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
        uploaded,
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

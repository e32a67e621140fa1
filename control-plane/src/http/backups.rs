//! `/v1/backups`: certificates that stand by, the switch to them, the way back, and the drill.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::distribution::{DRILL_NAMES_MAX, DrillTarget};
use portico_api::v1::{
    self, BackupDrill, BackupDrillRequest, BackupFault, BackupScope, BackupState, BackupSwitch, DrilledEdge,
    Page, WithoutBackup,
};
use portico_cert_store::{CellId, EdgeId, Generation, GroupId, LineageId, TenantId};
use serde::Deserialize;

use super::call::{Call, OperatorCall};
use super::fault::{Answered, Fault, field};
use super::json_body::JsonBody;
use super::list::{cursor_after, limit, read_cursor};
use super::query::Query;
use super::tenants;
use super::write::{Answer, Begun, Write};
use crate::app::App;
use crate::clock::{self, rfc3339};
use crate::store::backup::{self, Backup, Filter, StandBy};
use crate::store::{Connection, StoreError, meta, tenant};

/// How long a switch waits for the edges' word. An edge that says nothing for 10 s is away.
const SWITCH_DEADLINE: Duration = Duration::from_secs(15);
/// Certificates that one write of a switch turns; each may have a hundred names, whose domains are told to the edges again.
const TURNED_AT_ONCE: usize = 500;
/// No part of a drill begins after this; a part waits 10 s at most, and the whole call has a minute.
const DRILL_TIME_MAX: Duration = Duration::from_secs(40);
/// Certificates of one call of a drill; a cursor goes on behind them.
const DRILL_CERTIFICATES_MAX: u32 = 500;
/// Hostnames without a backup, and an edge's faults, that an answer lists.
const LISTED_MAX: u32 = 100;
/// Of a backup that is not to be shown.
const COMPROMISED: &str = "its key was reported compromised; it is not shown, and another takes its place";
/// Of an edge's words.
const TEXT_CHARS_MAX: usize = 300;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    group: Option<String>,
    tenant: Option<String>,
    issuer: Option<String>,
    cursor: Option<String>,
    limit: Option<u32>,
}

/// Lists backups: those that stand by, those that are shown, and those that are wanted and not there yet. `issuer`: of what serves.
#[utoipa::path(get, path = "/v1/backups", tag = "backups",
    params(("group" = Option<String>, Query), ("tenant" = Option<String>, Query), ("issuer" = Option<String>, Query),
        ("cursor" = Option<String>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = Page<v1::Backup>)))]
pub(super) async fn list(
    State(app): State<App>,
    call: Call,
    Query(query): Query<ListQuery>,
) -> Answered<axum::Json<Page<v1::Backup>>> {
    let limit = limit(query.limit)?;
    let bad_id = |_| Fault::not_found("group or tenant");
    let asked: Option<TenantId> = query.tenant.as_deref().map(str::parse).transpose().map_err(bad_id)?;
    let own = call.caller.tenant;
    if asked.is_some_and(|asked| own.is_some_and(|own| own != asked)) {
        return Err(tenants::missing());
    }
    let filter = Filter {
        group: query.group.as_deref().map(str::parse).transpose().map_err(bad_id)?,
        tenant: own.or(asked),
        issuer: query.issuer,
        after: read_cursor(query.cursor.as_deref())?,
        limit: Some(limit + 1),
    };
    let mut read = app.parts.store.read().await?;
    // A wrong name would be an empty list.
    if let Some(text) = unknown_issuer(&app, &mut read, &filter).await?.filter(|_| own.is_none()) {
        return Err(Fault::new(StatusCode::NOT_FOUND, "not_found", text));
    }
    let mut found = backup::standing_by(&mut read, &filter).await?;
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let next_cursor = found.last().filter(|_| more).map(|one| cursor_after(&one.lineage.to_string()));
    Ok(axum::Json(Page { items: found.iter().map(shown).collect(), next_cursor }))
}

fn shown(one: &StandBy) -> v1::Backup {
    v1::Backup {
        group_id: one.of,
        tenant_id: one.tenant,
        cell_id: one.cell.clone(),
        state: match (one.state, &one.live) {
            (_, None) => BackupState::Wanted,
            (Backup::Staged, Some(_)) => BackupState::Staged,
            (Backup::Shown, Some(_)) => BackupState::Shown,
        },
        hostnames: one.names.keys().cloned().collect(),
        serving_issuer: one.serving_issuer.clone(),
        issuer: one.live.as_ref().map(|live| live.issuer.clone()),
        not_after: one.live.as_ref().map(|live| rfc3339(live.not_after)),
        renew_at: one.live.as_ref().map(|live| rfc3339(live.renew_at)),
        error: match one.compromised {
            true => Some(one.error.clone().unwrap_or_else(|| COMPROMISED.to_owned())),
            false => one.error.clone(),
        },
    }
}

/// Shows the backups of a group, of a tenant, or of all that an issuer has issued, instead of what serves now. It holds until it
/// is taken back; where a backup is about to end, edges go back to the other by themselves. 200 also where nothing was to be done.
#[utoipa::path(post, path = "/v1/backups/switch-to-backup", tag = "backups", request_body = BackupScope,
    responses((status = 200, body = BackupSwitch), (status = 404), (status = 422)))]
pub(super) async fn switch(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    body: JsonBody<BackupScope>,
) -> Answered<Response> {
    turn(&app, &call, body, Backup::Shown).await
}

/// The way back: what is renewed all the while is shown again. The backups stay where they are.
#[utoipa::path(post, path = "/v1/backups/switch-back", tag = "backups", request_body = BackupScope,
    responses((status = 200, body = BackupSwitch), (status = 404), (status = 422)))]
pub(super) async fn switch_back(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    body: JsonBody<BackupScope>,
) -> Answered<Response> {
    turn(&app, &call, body, Backup::Staged).await
}

async fn turn(app: &App, call: &Call, body: JsonBody<BackupScope>, to: Backup) -> Answered<Response> {
    let filter = filter_of(&body.value, "")?;
    // What takes long is found before the writer's turn; a refusal waits for it, for the same request may have been answered.
    let turn = Turn::of(app, &filter, to).await;
    let mut write = match Write::begin(app, call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let turn = turn?;
    tell(&mut write, &body.value, &turn).await?;
    let app = app.clone();
    // What is in the trail is done to its end, whether or not its caller waits for it.
    let done = tokio::spawn(async move {
        let (generation, switched) = turn.make(&app, write).await?;
        Ok::<_, Fault>(turn.answer(&app, generation, switched).await)
    });
    let answer = done.await.map_err(|error| {
        tracing::error!(%error, "a switch of backups broke off");
        Fault::internal()
    })??;
    Ok(Answer::json(StatusCode::OK, &answer).into_response())
}

/// A switch: what it is about.
struct Turn {
    to: Backup,
    standing: Vec<StandBy>,
    /// Hostnames without a backup, and some of them.
    without: (u64, Vec<WithoutBackup>),
}

impl Turn {
    async fn of(app: &App, filter: &Filter, to: Backup) -> Answered<Self> {
        let mut read = app.parts.store.read().await?;
        let mut standing = found(app, &mut read, filter, "").await?;
        let now = app.parts.clock.now_ms();
        let is_valid =
            |one: &StandBy| !one.compromised && one.live.as_ref().is_some_and(|live| live.not_after > now);
        // On the way back also what is not there yet: it would be shown when it comes.
        standing.retain(|one| to == Backup::Staged || is_valid(one));
        let without = match to {
            Backup::Shown => listed(backup::without(&mut read, filter, now, LISTED_MAX).await?),
            Backup::Staged => (0, Vec::new()),
        };
        Ok(Self { to, standing, without })
    }

    /// Certificates that are another thing to their names afterwards.
    fn turning(&self) -> impl Iterator<Item = &StandBy> {
        self.standing.iter().filter(|one| one.state != self.to && one.live.is_some())
    }

    /// In several writes where it is much, so that others have their turn; the first one is that of the trail. Answers the newest
    /// change, and how many certificates it is of.
    async fn make(&self, app: &App, mut write: Box<Write>) -> Answered<(Generation, usize)> {
        let lineages: Vec<LineageId> = self.standing.iter().map(|one| one.lineage).collect();
        let mut parts = lineages.chunks(TURNED_AT_ONCE);
        let first = parts.next().unwrap_or_default();
        let (mut sequence, mut switched) = backup::set_state(&mut write.tx, first, self.to).await?;
        let epoch = meta::epoch(&mut write.tx).await?;
        write.commit().await?;
        for part in parts {
            let mut tx = app.parts.store.begin().await?;
            let (newest, count) = backup::set_state(&mut tx, part, self.to).await?;
            tx.commit().await?;
            (sequence, switched) = (sequence.max(newest), switched + count);
        }
        Ok((Generation { epoch, sequence }, switched))
    }

    /// When the edges have it, or have had the time for it.
    async fn answer(self, app: &App, generation: Generation, switched: usize) -> BackupSwitch {
        let issued: Vec<&StandBy> = self.standing.iter().filter(|one| one.live.is_some()).collect();
        let mut cells: Vec<CellId> = issued.iter().map(|one| one.cell.clone()).collect();
        cells.sort();
        cells.dedup();
        let (applied, behind) = match switched {
            0 => (Vec::new(), Vec::new()),
            _ => app.fleet.applied(&cells, generation, SWITCH_DEADLINE).await,
        };
        let unchanged = count(issued.len().saturating_sub(switched));
        let (without_backup, without) = self.without;
        BackupSwitch { switched: count(switched), unchanged, without_backup, without, applied, behind }
    }
}

/// In the trail, and to each tenant whose names it is about.
async fn tell(write: &mut Write, scope: &BackupScope, turn: &Turn) -> Answered<()> {
    let (action, verb) = match turn.to {
        Backup::Shown => ("backup.switch", "shown instead of what served"),
        Backup::Staged => ("backup.switch_back", "no longer shown"),
    };
    let subject = subject(scope);
    let record = serde_json::json!({ "switched": turn.turning().count(), "without_backup": turn.without.0 });
    write.audit(action, &subject, scope, &record).await?;
    let mut by_tenant: BTreeMap<Option<TenantId>, usize> = BTreeMap::new();
    for one in turn.turning() {
        *by_tenant.entry(one.tenant).or_default() += 1;
    }
    for (tenant, count) in by_tenant {
        let text = format!("backup certificates are {verb}: {count}");
        write.event(action, tenant, &subject, &text).await?;
    }
    Ok(())
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// Has every edge try, with itself and in memory, whether it would show the backups of a scope to whoever asks for their names.
/// Nothing is switched for visitors.
#[utoipa::path(post, path = "/v1/backups/drill", tag = "backups", request_body = BackupDrillRequest,
    responses((status = 200, body = BackupDrill), (status = 404), (status = 422)))]
pub(super) async fn drill(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    body: JsonBody<BackupDrillRequest>,
) -> Answered<Response> {
    let BackupDrillRequest { scope, cursor } = &body.value;
    let mut filter = match scope {
        Some(scope) => filter_of(scope, "/scope")?,
        None => Filter::default(),
    };
    filter.after = read_cursor(cursor.as_deref())?;
    filter.limit = Some(DRILL_CERTIFICATES_MAX + 1);
    // No write waits for edges.
    let mut read = app.parts.store.read().await?;
    let mut standing = found(&app, &mut read, &filter, "/scope").await?;
    let now = app.parts.clock.now_ms();
    let (without_backup, without) = listed(backup::wanted(&mut read, &filter, now, LISTED_MAX).await?);
    drop(read);
    let more = standing.len() > DRILL_CERTIFICATES_MAX as usize;
    standing.truncate(DRILL_CERTIFICATES_MAX as usize);
    let next_cursor = standing.last().filter(|_| more).map(|one| cursor_after(&one.lineage.to_string()));
    standing.retain(|one| one.live.is_some());
    let (edges, is_whole) = tried(&app, &standing).await;
    // What nobody has tried has not passed; but a later part of a drill may be of backups that are not there yet.
    let is_tried = is_whole && (cursor.is_some() || more || !edges.is_empty());
    let answer = BackupDrill {
        passed: is_tried && without_backup == 0 && edges.iter().all(|edge| edge.passed),
        certificates: count(standing.len()),
        names: count(standing.iter().map(|one| one.names.len()).sum()),
        without_backup,
        without,
        edges,
        next_cursor,
    };
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let record = serde_json::json!({
        "passed": answer.passed,
        "certificates": answer.certificates,
        "edges": answer.edges.len(),
    });
    let subject = scope.as_ref().map_or_else(|| "all".to_owned(), subject);
    write.audit("backup.drill", &subject, &(), &record).await?;
    write.finish(Answer::json(StatusCode::OK, &answer)).await
}

/// What each edge of the cells that have them says, and whether there was time for all.
async fn tried(app: &App, standing: &[StandBy]) -> (Vec<DrilledEdge>, bool) {
    let began = clock::instant();
    let groups: HashMap<String, GroupId> =
        standing.iter().map(|one| (one.lineage.to_string(), one.of)).collect();
    let mut by_cell: BTreeMap<&CellId, Vec<DrillTarget>> = BTreeMap::new();
    for one in standing {
        by_cell.entry(&one.cell).or_default().push(DrillTarget {
            lineage_id: one.lineage.to_string(),
            names: one.names.keys().cloned().collect(),
        });
    }
    let mut edges: BTreeMap<EdgeId, DrilledEdge> = BTreeMap::new();
    for (cell, targets) in by_cell {
        for part in parts(targets) {
            if began.elapsed() > DRILL_TIME_MAX {
                return (unfinished(edges), false);
            }
            let outcome = app.fleet.drill(cell, part).await;
            for (edge, error) in outcome.words() {
                let entry = edges.entry(edge).or_insert_with(|| DrilledEdge {
                    edge_id: edge,
                    cell_id: cell.clone(),
                    passed: true,
                    error: None,
                    faulty: 0,
                    faults: Vec::new(),
                });
                entry.passed &= error.is_none();
                entry.error = entry.error.take().or(error.map(|text| cut(&text)));
            }
            for (edge, fault) in outcome.faults {
                let Some(entry) = edges.get_mut(&edge) else { continue };
                let Some(group_id) = groups.get(&fault.lineage_id) else { continue };
                entry.passed = false;
                entry.faulty += 1;
                if entry.faults.len() < LISTED_MAX as usize {
                    entry.faults.push(BackupFault {
                        group_id: *group_id,
                        hostname: cut(&fault.name),
                        code: cut(&fault.code),
                        text: cut(&fault.text),
                    });
                }
            }
        }
    }
    (edges.into_values().collect(), true)
}

fn unfinished(edges: BTreeMap<EdgeId, DrilledEdge>) -> Vec<DrilledEdge> {
    let text = "there was no time to try it to the end; drill a smaller scope".to_owned();
    let edge =
        |edge: DrilledEdge| DrilledEdge { error: edge.error.or(Some(text.clone())), passed: false, ..edge };
    edges.into_values().map(edge).collect()
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

/// Each with as many names as one message takes; a certificate has fewer.
fn parts(targets: Vec<DrillTarget>) -> Vec<Vec<DrillTarget>> {
    let mut parts: Vec<Vec<DrillTarget>> = Vec::new();
    let mut room = 0;
    for target in targets {
        let names = target.names.len();
        match parts.last_mut().filter(|_| names <= room) {
            Some(part) => part.push(target),
            None => {
                parts.push(vec![target]);
                room = DRILL_NAMES_MAX;
            }
        }
        room = room.saturating_sub(names);
    }
    parts
}

/// What a scope asks for.
fn filter_of(scope: &BackupScope, at: &str) -> Answered<Filter> {
    let BackupScope { group, tenant, issuer } = scope;
    let named = [group.is_some(), tenant.is_some(), issuer.is_some()];
    if named.into_iter().filter(|named| *named).count() != 1 {
        let text = "must name exactly one of group, tenant and issuer";
        return Err(Fault::fields(vec![field(at, "one_of", text)]));
    }
    Ok(Filter { group: *group, tenant: *tenant, issuer: issuer.clone(), ..Filter::default() })
}

/// The backups of a scope that there is. An issuer is one also when it is configured no more and its certificates serve on.
async fn found(app: &App, connection: &mut Connection, filter: &Filter, at: &str) -> Answered<Vec<StandBy>> {
    if let Some(id) = filter.tenant {
        tenant::find(connection, id).await?.ok_or_else(tenants::missing)?;
    }
    if let Some(group) = filter.group
        && !backup::is_serving(connection, group).await?
    {
        return Err(Fault::not_found("group"));
    }
    if let Some(text) = unknown_issuer(app, connection, filter).await? {
        return Err(Fault::fields(vec![field(format!("{at}/issuer"), "unknown_issuer", text)]));
    }
    Ok(backup::standing_by(connection, filter).await?)
}

async fn unknown_issuer(
    app: &App,
    connection: &mut Connection,
    filter: &Filter,
) -> Result<Option<String>, StoreError> {
    let configured = &app.parts.config.issuers;
    let Some(issuer) = filter.issuer.as_ref().filter(|name| !configured.iter().any(|one| one.name == **name))
    else {
        return Ok(None);
    };
    if backup::has_issued(connection, issuer).await? {
        return Ok(None);
    }
    let known: Vec<&str> = configured.iter().map(|issuer| issuer.name.as_str()).collect();
    Ok(Some(format!("no issuer is named {issuer}; there are: {}", known.join(", "))))
}

fn listed((count, some): (u64, Vec<backup::Alone>)) -> (u64, Vec<WithoutBackup>) {
    let shown =
        |one: backup::Alone| WithoutBackup { group_id: one.group, cell_id: one.cell, hostnames: one.names };
    (count, some.into_iter().map(shown).collect())
}

/// As the audit names it.
fn subject(scope: &BackupScope) -> String {
    let BackupScope { group, tenant, issuer } = scope;
    let issuer = || issuer.as_ref().map(|name| format!("issuer {name}"));
    let tenant = || tenant.map(|id| id.to_string());
    group.map(|id| id.to_string()).or_else(tenant).or_else(issuer).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_goes_in_parts_that_an_edge_takes() {
        let target =
            |names: usize| DrillTarget { lineage_id: String::new(), names: vec![String::new(); names] };
        let sizes = |targets: Vec<usize>| -> Vec<usize> {
            let parts = parts(targets.into_iter().map(target).collect());
            parts.iter().map(|part| part.iter().map(|target| target.names.len()).sum()).collect()
        };
        assert_eq!(sizes(vec![]), [0_usize; 0]);
        assert_eq!(sizes(vec![1, 2, 3]), [6]);
        assert_eq!(sizes(vec![DRILL_NAMES_MAX - 1, 1, 1]), [DRILL_NAMES_MAX, 1]);
        assert_eq!(sizes(vec![100; 11]), [500, 500, 100]);
    }
}

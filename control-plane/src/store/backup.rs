//! Backup certificates: which groups stand by for which, what their lineages hold, and what is shown of them.
//!
//! A backup is a group of its own with one lineage for each cell, as any other; `groups.backup_of` names the group that it
//! stands by for, and `lineages.backup` says whether names refer to it. Nothing that plans, judges or tells of what serves
//! reads these rows.

use std::collections::{BTreeMap, HashMap};

use portico_api::distribution::ResourceKind;
use portico_cert_store::{CellId, DomainId, GroupId, LineageId, TenantId};

use super::credential::NewCredential;
use super::group::{self, GroupRow, LiveCredential};
use super::sql::{QueryBuilder, Row};
use super::{Connection, IDS_PER_QUERY, StoreError, WriteTx, change, credential, from_id, push_ids, sql};

/// What a backup's lineage is to the names of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backup {
    /// On the edges; no name refers to it.
    Staged,
    /// The operator has switched to it.
    Shown,
}

/// A backup that is not gone.
#[derive(Clone, Debug)]
pub struct BackupGroup {
    pub id: GroupId,
    /// The group that it stands by for.
    pub of: GroupId,
    /// `None`: the operator's.
    pub tenant: Option<TenantId>,
    /// It orders nothing any more: what it shows goes on until it is needed no longer.
    pub leaving: bool,
    pub names: BTreeMap<String, DomainId>,
    pub lineages: Vec<BackupLineage>,
}

#[derive(Clone, Debug)]
pub struct BackupLineage {
    pub id: LineageId,
    pub cell: CellId,
    pub state: Backup,
    pub live: Option<LiveCredential>,
    /// The names of its live credential.
    pub holds: BTreeMap<String, DomainId>,
}

/// Of a row with `lineages.backup`.
pub(super) fn of_row(row: &Row) -> Result<Option<Backup>, StoreError> {
    match row.try_get::<&str>("backup")? {
        "" => Ok(None),
        "staged" => Ok(Some(Backup::Staged)),
        "shown" => Ok(Some(Backup::Shown)),
        other => Err(StoreError::Unreadable { what: format!("lineages: backup {other}") }),
    }
}

/// All of them.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn groups(connection: &mut Connection) -> Result<Vec<BackupGroup>, StoreError> {
    let rows = sql::query(
        "SELECT l.id, l.group_id, l.cell, l.backup, l.live_credential, g.backup_of, g.tenant_id, g.retired_at, \
         c.issuer, c.names, c.not_before, c.not_after, c.created_at, c.renew_at, c.window_end \
         FROM lineages l JOIN groups g ON g.id = l.group_id LEFT JOIN credentials c ON c.id = l.live_credential \
         WHERE l.backup <> '' AND l.retired_at IS NULL ORDER BY l.group_id, l.cell",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut groups: BTreeMap<GroupId, BackupGroup> = BTreeMap::new();
    for row in &rows {
        let id: GroupId = from_id(row.try_get("group_id")?, "lineages")?;
        let group = match groups.entry(id) {
            std::collections::btree_map::Entry::Occupied(group) => group.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => place.insert(backup_group(row, id)?),
        };
        group.lineages.push(BackupLineage {
            id: from_id(row.try_get("id")?, "lineages")?,
            cell: from_id(row.try_get("cell")?, "lineages")?,
            state: of_row(row)?.unwrap_or(Backup::Staged),
            live: group::live_credential(row)?,
            holds: BTreeMap::new(),
        });
    }
    let of_group = sql::query(
        "SELECT n.group_id, n.name, n.domain_id FROM group_names n JOIN groups g ON g.id = n.group_id \
         WHERE g.backup_of IS NOT NULL AND g.retired_at IS NULL",
    );
    for row in of_group.fetch_all(&mut *connection).await? {
        let group: GroupId = from_id(row.try_get("group_id")?, "group_names")?;
        if let Some(group) = groups.get_mut(&group) {
            group.names.insert(row.try_get("name")?, from_id(row.try_get("domain_id")?, "group_names")?);
        }
    }
    let mut holds = held_names(connection).await?;
    for lineage in groups.values_mut().flat_map(|group| &mut group.lineages) {
        lineage.holds = holds.remove(&lineage.id).unwrap_or_default();
    }
    Ok(groups.into_values().collect())
}

fn backup_group(row: &Row, id: GroupId) -> Result<BackupGroup, StoreError> {
    let tenant: Option<String> = row.try_get("tenant_id")?;
    Ok(BackupGroup {
        id,
        of: from_id(row.try_get("backup_of")?, "groups")?,
        tenant: tenant.map(|tenant| from_id(&tenant, "groups")).transpose()?,
        leaving: row.try_get::<Option<i64>>("retired_at")?.is_some(),
        names: BTreeMap::new(),
        lineages: Vec::new(),
    })
}

async fn held_names(
    connection: &mut Connection,
) -> Result<HashMap<LineageId, BTreeMap<String, DomainId>>, StoreError> {
    let rows = sql::query(
        "SELECT n.lineage_id, n.name, n.domain_id FROM lineage_names n JOIN lineages l ON l.id = n.lineage_id \
         WHERE l.backup <> '' AND l.retired_at IS NULL",
    )
    .fetch_all(connection)
    .await?;
    let mut holds: HashMap<LineageId, BTreeMap<String, DomainId>> = HashMap::new();
    for row in &rows {
        let lineage = from_id(row.try_get("lineage_id")?, "lineage_names")?;
        let domain = from_id(row.try_get("domain_id")?, "lineage_names")?;
        holds.entry(lineage).or_default().insert(row.try_get("name")?, domain);
    }
    Ok(holds)
}

/// A backup for a group, with a lineage in each cell. `shown`: what its names had before was switched to.
///
/// # Errors
/// The database's; a second one for the group is one.
pub async fn insert(
    tx: &mut WriteTx,
    of: GroupId,
    row: &GroupRow,
    shown: bool,
    now_ms: i64,
) -> Result<(), StoreError> {
    group::insert(tx, row, "{}", now_ms).await?;
    sql::query("UPDATE groups SET backup_of = ? WHERE id = ?")
        .bind(of.to_string())
        .bind(row.id.to_string())
        .execute(tx)
        .await?;
    for cell in &row.cells {
        sql::query("INSERT INTO lineages (id, group_id, cell, created_at, backup) VALUES (?, ?, ?, ?, ?)")
            .bind(LineageId::generate().to_string())
            .bind(row.id.to_string())
            .bind(cell.as_str())
            .bind(now_ms)
            .bind(if shown { "shown" } else { "staged" })
            .execute(tx)
            .await?;
    }
    Ok(())
}

/// What these lineages are to their names from now on. Answers the newest change, and how many lineages it is of; one without a
/// certificate is none of them.
///
/// # Errors
/// The database's.
pub async fn set_state(
    tx: &mut WriteTx,
    lineages: &[LineageId],
    state: Backup,
) -> Result<(u64, usize), StoreError> {
    let (from, to) = match state {
        Backup::Staged => ("shown", "staged"),
        Backup::Shown => ("staged", "shown"),
    };
    let (mut sequence, mut changed) = (0, 0);
    for some in lineages.chunks(IDS_PER_QUERY) {
        let mut query = QueryBuilder::new("UPDATE lineages SET backup = ");
        query
            .push_bind(to)
            .push(" WHERE retired_at IS NULL AND backup = ")
            .push_bind(from)
            .push(" AND id IN (");
        push_ids(&mut query, some).push(
            ") RETURNING id, live_credential, (SELECT g.tenant_id FROM groups g WHERE g.id = lineages.group_id) AS tenant_id",
        );
        let mut turned: Vec<(String, Option<String>)> = Vec::new();
        for row in query.build().fetch_all(tx).await? {
            if row.try_get::<Option<String>>("live_credential")?.is_some() {
                turned.push((row.try_get("id")?, row.try_get("tenant_id")?));
            }
        }
        if turned.is_empty() {
            continue;
        }
        turned.sort();
        changed += turned.len();
        let at = change::record_all(tx, ResourceKind::Credential, &turned).await?;
        let domains = domains_of(tx, turned.iter().map(|(id, _)| id)).await?;
        sequence = sequence.max(at).max(credential::record_domains(tx, &domains).await?);
    }
    Ok((sequence, changed))
}

/// The domains of lineages' live certificates, at most [`IDS_PER_QUERY`] lineages; each once.
async fn domains_of(
    connection: &mut Connection,
    lineages: impl Iterator<Item = &String>,
) -> Result<Vec<DomainId>, StoreError> {
    let mut query = QueryBuilder::new("SELECT DISTINCT domain_id FROM lineage_names WHERE lineage_id IN (");
    query.push_list(lineages).push(") ORDER BY domain_id");
    let rows = query.build().fetch_all(connection).await?;
    rows.iter().map(|row| from_id(row.try_get("domain_id")?, "lineage_names")).collect()
}

/// Makes a credential its lineage's live one. Its names are told of it only where it is shown.
///
/// # Errors
/// The database's; a public key that another lineage has is one.
pub async fn publish(
    tx: &mut WriteTx,
    new: &NewCredential,
    domains: &[(String, DomainId)],
    now_ms: i64,
) -> Result<u64, StoreError> {
    let (group, _, replaced) = credential::lineage(tx, new.lineage).await?;
    let mut touched = credential::names_of(tx, new.lineage).await?;
    touched.extend(domains.iter().cloned());
    credential::insert(tx, new, now_ms).await?;
    credential::set_live(tx, new.lineage, new.id).await?;
    credential::put_names(tx, new.lineage, domains).await?;
    if let Some(replaced) = replaced {
        sql::query("UPDATE credentials SET state = 'replaced' WHERE id = ?")
            .bind(replaced.to_string())
            .execute(tx)
            .await?;
    }
    let tenant = credential::group_tenant(tx, group).await?;
    let sequence = credential::record_lineage(tx, new.lineage, tenant.as_deref()).await?;
    if state_of(tx, new.lineage).await? != Some(Backup::Shown) {
        return Ok(sequence);
    }
    let mut touched: Vec<DomainId> = touched.into_iter().map(|(_, domain)| domain).collect();
    touched.sort();
    touched.dedup();
    Ok(credential::record_domains(tx, &touched).await?.max(sequence))
}

async fn state_of(connection: &mut Connection, lineage: LineageId) -> Result<Option<Backup>, StoreError> {
    let row = sql::query("SELECT backup FROM lineages WHERE id = ?")
        .bind(lineage.to_string())
        .fetch_one(connection)
        .await?;
    of_row(&row)
}

// ---- names that are left out ----

/// Until when an issuer is not asked for a name's backup, by domain and issuer.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn failures(
    connection: &mut Connection,
    now_ms: i64,
) -> Result<HashMap<(DomainId, String), i64>, StoreError> {
    let rows = sql::query("SELECT domain_id, issuer, until FROM backup_failures WHERE until > ?")
        .bind(now_ms)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            let domain = from_id(row.try_get("domain_id")?, "backup_failures")?;
            Ok(((domain, row.try_get("issuer")?), row.try_get("until")?))
        })
        .collect()
}

/// How often in a row an issuer has failed for a name's backup.
///
/// # Errors
/// The database's.
pub async fn attempts(
    connection: &mut Connection,
    domain: DomainId,
    issuer: &str,
) -> Result<u32, StoreError> {
    let found = sql::query_scalar("SELECT attempts FROM backup_failures WHERE domain_id = ? AND issuer = ?")
        .bind(domain.to_string())
        .bind(issuer)
        .fetch_optional(connection)
        .await?;
    Ok(found.unwrap_or(0))
}

/// # Errors
/// The database's.
pub async fn put_failure(
    tx: &mut WriteTx,
    (domain, issuer): (DomainId, &str),
    attempts: u32,
    until: i64,
    error: &str,
) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO backup_failures (domain_id, issuer, attempts, until, error) VALUES (?, ?, ?, ?, ?) \
         ON CONFLICT (domain_id, issuer) DO UPDATE SET attempts = excluded.attempts, until = excluded.until, \
         error = excluded.error",
    )
    .bind(domain.to_string())
    .bind(issuer)
    .bind(attempts)
    .bind(until)
    .bind(error)
    .execute(tx)
    .await?;
    Ok(())
}

/// The issuer has issued for these.
///
/// # Errors
/// The database's.
pub async fn clear_failures(tx: &mut WriteTx, domains: &[DomainId], issuer: &str) -> Result<(), StoreError> {
    for domain in domains {
        sql::query("DELETE FROM backup_failures WHERE domain_id = ? AND issuer = ?")
            .bind(domain.to_string())
            .bind(issuer)
            .execute(tx)
            .await?;
    }
    Ok(())
}

/// Forgets failures that nothing waits for any more: whose time was over before `before_ms`.
///
/// # Errors
/// The database's.
pub async fn prune(tx: &mut WriteTx, before_ms: i64) -> Result<(), StoreError> {
    sql::query("DELETE FROM backup_failures WHERE until < ?").bind(before_ms).execute(tx).await?;
    Ok(())
}

// ---- what is shown of them ----

/// Which backups: all where nothing is said. One whose own group is gone, and that is shown all the same, is of the groups that
/// have its names now.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// The group that they stand by for.
    pub group: Option<GroupId>,
    /// Whose group.
    pub tenant: Option<TenantId>,
    /// By whom what serves was issued.
    pub issuer: Option<String>,
    /// After this lineage.
    pub after: String,
    pub limit: Option<u32>,
}

/// A backup in one cell, with what serves there.
#[derive(Clone, Debug)]
pub struct StandBy {
    pub lineage: LineageId,
    pub group: GroupId,
    /// The group that it stands by for.
    pub of: GroupId,
    pub tenant: Option<TenantId>,
    pub cell: CellId,
    pub state: Backup,
    /// Of its certificate, or wanted.
    pub names: BTreeMap<String, DomainId>,
    /// `None`: it has not been issued yet.
    pub live: Option<LiveCredential>,
    /// By whom what serves was issued; `None`: nothing serves there.
    pub serving_issuer: Option<String>,
    /// Others may have its key: it is not to be shown, and another takes its place.
    pub compromised: bool,
    /// Why the last order for it did not lead to a certificate, or one of the names is not on it.
    pub error: Option<String>,
}

/// Of a backup's certificate `c`: nobody else has its key, as far as we know.
const HAS_ITS_KEY_ALONE: &str =
    "NOT EXISTS (SELECT 1 FROM compromised_keys k WHERE k.spki_sha256 = c.spki_sha256)";

/// What serves names of a backup whose group is gone.
const SERVES_ITS_NAMES: &str = "FROM lineage_names n JOIN lineage_names m ON m.domain_id = n.domain_id \
     JOIN lineages q ON q.id = m.lineage_id JOIN credentials i ON i.id = q.live_credential \
     WHERE g.retired_at IS NOT NULL AND n.lineage_id = l.id AND q.cell = l.cell AND q.backup = '' AND q.custody = 'cell' \
     AND q.retired_at IS NULL";

/// # Errors
/// The database's, or a row that cannot be read.
pub async fn standing_by(connection: &mut Connection, filter: &Filter) -> Result<Vec<StandBy>, StoreError> {
    let mut query = QueryBuilder::new(
        "SELECT l.id, l.group_id, l.cell, l.backup, l.live_credential, g.backup_of, g.tenant_id, \
         c.issuer, c.names, c.not_before, c.not_after, c.created_at, c.renew_at, c.window_end, \
         (SELECT COUNT(*) FROM compromised_keys k WHERE k.spki_sha256 = c.spki_sha256) AS compromised, \
         COALESCE(s.issuer, (SELECT i.issuer ",
    );
    query.push(SERVES_ITS_NAMES).push(
        " ORDER BY i.not_after DESC, i.id LIMIT 1)) AS serving, \
         COALESCE((SELECT CASE WHEN o.state = 'issued' THEN NULL ELSE o.error END FROM orders o WHERE o.lineage_id = l.id \
           ORDER BY o.created_at DESC, o.id DESC LIMIT 1), \
          (SELECT n.name || ': ' || f.error FROM group_names n JOIN backup_failures f ON f.domain_id = n.domain_id \
           WHERE n.group_id = l.group_id AND NOT EXISTS (SELECT 1 FROM lineage_names h WHERE h.lineage_id = l.id \
            AND h.domain_id = n.domain_id) ORDER BY n.name LIMIT 1)) AS error \
         FROM lineages l JOIN groups g ON g.id = l.group_id LEFT JOIN credentials c ON c.id = l.live_credential \
         LEFT JOIN lineages p ON p.group_id = g.backup_of AND p.cell = l.cell AND p.retired_at IS NULL \
         LEFT JOIN credentials s ON s.id = p.live_credential \
         WHERE l.backup <> '' AND l.retired_at IS NULL AND l.id > ",
    );
    query.push_bind(&filter.after);
    if let Some(group) = filter.group {
        query.push(" AND (g.backup_of = ").push_bind(group.to_string());
        query.push(
            " OR (g.retired_at IS NOT NULL AND EXISTS (SELECT 1 FROM lineage_names n JOIN group_names m \
             ON m.domain_id = n.domain_id WHERE n.lineage_id = l.id AND m.group_id = ",
        );
        query.push_bind(group.to_string()).push(")))");
    }
    if let Some(tenant) = filter.tenant {
        query.push(" AND g.tenant_id = ").push_bind(tenant.to_string());
    }
    if let Some(issuer) = &filter.issuer {
        query.push(" AND (s.issuer = ").push_bind(issuer).push(" OR EXISTS (SELECT 1 ");
        query.push(SERVES_ITS_NAMES).push(" AND i.issuer = ").push_bind(issuer).push("))");
    }
    query.push(" ORDER BY l.id");
    if let Some(limit) = filter.limit {
        query.push(" LIMIT ").push_bind(limit);
    }
    let rows = query.build().fetch_all(&mut *connection).await?;
    let mut found = rows.iter().map(stand_by).collect::<Result<Vec<_>, _>>()?;
    let (issued, wanted): (Vec<&StandBy>, Vec<&StandBy>) = found.iter().partition(|one| one.live.is_some());
    let issued: Vec<String> = issued.into_iter().map(|one| one.lineage.to_string()).collect();
    let of_lineage = "SELECT lineage_id AS id, name, domain_id FROM lineage_names WHERE lineage_id IN (";
    let wanted: Vec<String> = wanted.into_iter().map(|one| one.group.to_string()).collect();
    let of_group = "SELECT group_id AS id, name, domain_id FROM group_names WHERE group_id IN (";
    let mut held = credential::names_by_id(connection, of_lineage, &issued).await?;
    // A group has one in each cell.
    let of_groups = credential::names_by_id(connection, of_group, &wanted).await?;
    for one in &mut found {
        let names = match one.live {
            Some(_) => held.remove(&one.lineage.to_string()),
            None => of_groups.get(&one.group.to_string()).cloned(),
        };
        one.names = names.unwrap_or_default();
    }
    Ok(found)
}

/// Names of one certificate that no backup has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alone {
    pub group: GroupId,
    pub cell: CellId,
    pub names: Vec<String>,
}

/// Whether there is such a group, which orders what serves.
///
/// # Errors
/// The database's.
pub async fn is_serving(connection: &mut Connection, group: GroupId) -> Result<bool, StoreError> {
    Ok(sql::query_scalar("SELECT EXISTS (SELECT 1 FROM groups WHERE id = ? AND backup_of IS NULL)")
        .bind(group.to_string())
        .fetch_one(connection)
        .await?)
}

/// Whether certificates of an issuer are in use, whether or not it is configured today.
///
/// # Errors
/// The database's.
pub async fn has_issued(connection: &mut Connection, issuer: &str) -> Result<bool, StoreError> {
    Ok(sql::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM credentials WHERE state = 'live' AND custody = 'cell' AND issuer = ?)",
    )
    .bind(issuer)
    .fetch_one(connection)
    .await?)
}

/// Names of issued certificates that serve and no backup has that could be shown: how many there are, counted in each cell, and some.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn without(
    connection: &mut Connection,
    filter: &Filter,
    now_ms: i64,
    limit: u32,
) -> Result<(u64, Vec<Alone>), StoreError> {
    let of = |columns: &str| {
        let mut query = QueryBuilder::new("SELECT ");
        query.push(columns).push(
            " FROM lineages p JOIN groups g ON g.id = p.group_id JOIN credentials s ON s.id = p.live_credential \
             JOIN lineage_names n ON n.lineage_id = p.id JOIN domains d ON d.id = n.domain_id \
             WHERE p.retired_at IS NULL AND p.backup = '' AND p.custody = 'cell' AND d.deleted_at IS NULL AND d.served = 1 \
             AND NOT EXISTS (SELECT 1 FROM lineage_names b JOIN lineages l ON l.id = b.lineage_id \
              JOIN credentials c ON c.id = l.live_credential WHERE b.domain_id = n.domain_id AND l.cell = p.cell \
              AND l.backup <> '' AND l.retired_at IS NULL AND ",
        );
        query.push(HAS_ITS_KEY_ALONE).push(" AND c.not_after > ").push_bind(now_ms).push(")");
        narrowed(query, "p.group_id", filter)
    };
    alone(connection, of, "p.group_id", limit).await
}

/// Names that are to have a backup and have none that is valid: how many there are, counted in each cell, and some.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn wanted(
    connection: &mut Connection,
    filter: &Filter,
    now_ms: i64,
    limit: u32,
) -> Result<(u64, Vec<Alone>), StoreError> {
    let of = |columns: &str| {
        let mut query = QueryBuilder::new("SELECT ");
        query.push(columns).push(
            " FROM lineages p JOIN groups g ON g.id = p.group_id JOIN group_names n ON n.group_id = g.id \
             LEFT JOIN lineages w ON w.group_id = g.backup_of AND w.cell = p.cell AND w.retired_at IS NULL \
             LEFT JOIN credentials s ON s.id = w.live_credential \
             WHERE p.backup <> '' AND p.retired_at IS NULL AND g.retired_at IS NULL \
             AND NOT EXISTS (SELECT 1 FROM lineage_names b JOIN credentials c ON c.id = p.live_credential \
              WHERE b.lineage_id = p.id AND b.domain_id = n.domain_id AND ",
        );
        query.push(HAS_ITS_KEY_ALONE).push(" AND c.not_after > ").push_bind(now_ms).push(")");
        narrowed(query, "g.backup_of", filter)
    };
    alone(connection, of, "g.backup_of", limit).await
}

fn narrowed(mut query: QueryBuilder, group: &str, filter: &Filter) -> QueryBuilder {
    if let Some(id) = filter.group {
        query.push(" AND ").push(group).push(" = ").push_bind(id.to_string());
    }
    if let Some(tenant) = filter.tenant {
        query.push(" AND g.tenant_id = ").push_bind(tenant.to_string());
    }
    if let Some(issuer) = &filter.issuer {
        query.push(" AND s.issuer = ").push_bind(issuer);
    }
    query
}

/// `of`: the statement for these columns.
async fn alone(
    connection: &mut Connection,
    of: impl Fn(&str) -> QueryBuilder,
    group: &str,
    limit: u32,
) -> Result<(u64, Vec<Alone>), StoreError> {
    let row = of("COUNT(*) AS count").build().fetch_one(&mut *connection).await?;
    let count = row.try_get::<i64>("count")?.unsigned_abs();
    let mut some = of(&format!("{group} AS group_id, p.cell, n.name"));
    some.push(" ORDER BY p.id, n.name LIMIT ").push_bind(limit);
    let mut found: Vec<Alone> = Vec::new();
    for row in some.build().fetch_all(connection).await? {
        let (group, cell) = (row.try_get("group_id")?, row.try_get("cell")?);
        let (group, cell) = (from_id(group, "groups")?, from_id(cell, "lineages")?);
        let name = row.try_get("name")?;
        match found.last_mut().filter(|last| (&last.group, &last.cell) == (&group, &cell)) {
            Some(last) => last.names.push(name),
            None => found.push(Alone { group, cell, names: vec![name] }),
        }
    }
    Ok((count, found))
}

fn stand_by(row: &Row) -> Result<StandBy, StoreError> {
    let tenant: Option<String> = row.try_get("tenant_id")?;
    Ok(StandBy {
        lineage: from_id(row.try_get("id")?, "lineages")?,
        group: from_id(row.try_get("group_id")?, "lineages")?,
        of: from_id(row.try_get("backup_of")?, "groups")?,
        tenant: tenant.map(|tenant| from_id(&tenant, "groups")).transpose()?,
        cell: from_id(row.try_get("cell")?, "lineages")?,
        state: of_row(row)?.unwrap_or(Backup::Staged),
        names: BTreeMap::new(),
        live: group::live_credential(row)?,
        serving_issuer: row.try_get("serving")?,
        compromised: row.try_get::<i64>("compromised")? > 0,
        error: row.try_get("error")?,
    })
}

//! SAN groups, their lineages, what is known about ordering each name, and the TXT values of open challenges.

use std::collections::BTreeMap;

use portico_api::v1;
use portico_cert_store::{CellId, CredentialId, DomainId, GroupId, LineageId, OrderId, TenantId};

use super::sql::Row;
use super::{Connection, StoreError, WriteTx, cell, from_id, from_json, sql, to_json};
use crate::acme::ChallengeMethod;
use crate::clock::DAY_MS;
use crate::plan::issuers::Restrictions;

/// A domain that may have a certificate: its proof stands, and it has not been retired as a leaver.
#[derive(Clone, Debug)]
pub struct OrderableDomain {
    pub id: DomainId,
    pub tenant: TenantId,
    /// A-label, or `*.` and a base.
    pub name: String,
    pub spec: v1::DomainSpec,
    pub sharing: v1::Sharing,
    /// Whether its tenant wants backup certificates, where it says.
    pub tenant_backups: Option<bool>,
    /// The operator's group with other tenants that it is to be in, its tenant's consent on record.
    pub shared_group: Option<String>,
    /// The domain's, or its tenant's, or the default cell.
    pub cells: Vec<CellId>,
    /// Label below the challenge zone.
    pub challenge_label: String,
    pub created_at: i64,
}

/// A group that is not retired. Those of uploaded certificates are not among what is read here: nothing is planned for them.
/// Nor are those of backups, which [`super::backup`] reads: what serves is planned as if there were none.
#[derive(Clone, Debug)]
pub struct GroupRow {
    pub id: GroupId,
    /// `None`: the operator's.
    pub tenant: Option<TenantId>,
    /// Sorted.
    pub cells: Vec<CellId>,
    pub alone: bool,
    /// By name.
    pub names: BTreeMap<String, DomainId>,
}

/// A lineage that is not retired, with its live credential.
#[derive(Clone, Debug)]
pub struct LineageRow {
    pub id: LineageId,
    pub group: GroupId,
    pub cell: CellId,
    pub live: Option<LiveCredential>,
    /// The names that its live credential serves.
    pub serves: BTreeMap<String, DomainId>,
    /// Its group is retired: it serves until its names are live elsewhere.
    pub leaving: bool,
}

/// What decides about a lineage's renewal.
#[derive(Clone, Debug)]
pub struct LiveCredential {
    pub id: CredentialId,
    pub issuer: String,
    /// As in the certificate.
    pub names: Vec<String>,
    pub not_before: i64,
    pub not_after: i64,
    /// When we had it.
    pub issued_at: i64,
    pub renew_at: i64,
    /// End of the window that its CA suggests.
    pub window_end: Option<i64>,
}

impl LiveCredential {
    /// When it has to be replaced by: a CA that suggests a window may revoke it afterwards.
    pub fn deadline(&self) -> i64 {
        self.window_end.map_or(self.not_after, |end| end.min(self.not_after))
    }
}

/// What is known about getting a certificate for a name.
#[derive(Clone, Debug, Default)]
pub struct NameState {
    /// What pre-flight found possible; empty until it passed.
    pub methods: Vec<ChallengeMethod>,
    pub ready_at: Option<i64>,
    pub failed_before: bool,
    /// Which part of a refused order's names it is in; 0: none. A part is ordered by itself.
    pub part: u64,
    pub attempts: u32,
    pub next_at: i64,
    pub error: Option<String>,
    /// What is known against issuers.
    pub issuers: Restrictions,
}

/// # Errors
/// The database's, or a row that cannot be read.
pub async fn orderable_domains(connection: &mut Connection) -> Result<Vec<OrderableDomain>, StoreError> {
    let rows = sql::query(
        "SELECT d.id, d.tenant_id, d.name, d.spec, d.challenge_label, d.created_at, t.spec AS tenant_spec, \
         s.group_name FROM domains d JOIN tenants t ON t.id = d.tenant_id \
         LEFT JOIN shared_groups s ON s.tenant_id = d.tenant_id AND s.consented_at IS NOT NULL \
         WHERE d.deleted_at IS NULL AND d.served = 1 AND NOT EXISTS \
         (SELECT 1 FROM presences p WHERE p.domain_id = d.id AND p.retired_at IS NOT NULL) ORDER BY d.id",
    )
    .fetch_all(connection)
    .await?;
    let domain = |row: &Row| {
        let spec: v1::DomainSpec = from_json(row.try_get("spec")?, "domains: spec")?;
        let tenant: v1::TenantSpec = from_json(row.try_get("tenant_spec")?, "tenants: spec")?;
        let cells = cell::of_domain(&spec.cells, &tenant.cells);
        Ok(OrderableDomain {
            id: from_id(row.try_get("id")?, "domains")?,
            tenant: from_id(row.try_get("tenant_id")?, "domains")?,
            name: row.try_get("name")?,
            tenant_backups: tenant.backup_certificates,
            sharing: if spec.alone { v1::Sharing::Alone } else { tenant.sharing },
            shared_group: row.try_get::<Option<String>>("group_name")?.filter(|_| !spec.alone),
            spec,
            cells,
            challenge_label: row.try_get("challenge_label")?,
            created_at: row.try_get("created_at")?,
        })
    };
    rows.iter().map(domain).collect()
}

/// Whether the domain is still there and its proof stands.
///
/// # Errors
/// The database's.
pub async fn is_orderable(connection: &mut Connection, domain: DomainId) -> Result<bool, StoreError> {
    let found: Option<i64> =
        sql::query_scalar("SELECT 1 FROM domains WHERE id = ? AND deleted_at IS NULL AND served = 1")
            .bind(domain.to_string())
            .fetch_optional(connection)
            .await?;
    Ok(found.is_some())
}

/// # Errors
/// The database's, or a row that cannot be read.
pub async fn live_groups(connection: &mut Connection) -> Result<Vec<GroupRow>, StoreError> {
    let rows = sql::query(
        "SELECT id, tenant_id, cells, alone FROM groups WHERE retired_at IS NULL AND backup_of IS NULL AND id NOT IN \
         (SELECT group_id FROM lineages WHERE custody = 'uploaded') ORDER BY id",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut groups = BTreeMap::new();
    for row in &rows {
        let id: GroupId = from_id(row.try_get("id")?, "groups")?;
        let tenant: Option<String> = row.try_get("tenant_id")?;
        let group = GroupRow {
            id,
            tenant: tenant.map(|tenant| from_id(&tenant, "groups")).transpose()?,
            cells: from_json(row.try_get("cells")?, "groups: cells")?,
            alone: row.try_get("alone")?,
            names: BTreeMap::new(),
        };
        groups.insert(id, group);
    }
    let rows = sql::query(
        "SELECT n.group_id, n.name, n.domain_id FROM group_names n JOIN groups g ON g.id = n.group_id \
         WHERE g.retired_at IS NULL",
    )
    .fetch_all(connection)
    .await?;
    for row in &rows {
        let group: GroupId = from_id(row.try_get("group_id")?, "group_names")?;
        if let Some(group) = groups.get_mut(&group) {
            group.names.insert(row.try_get("name")?, from_id(row.try_get("domain_id")?, "group_names")?);
        }
    }
    Ok(groups.into_values().collect())
}

/// Writes a new group without lineages.
///
/// # Errors
/// The database's.
pub async fn insert(tx: &mut WriteTx, group: &GroupRow, policy: &str, now_ms: i64) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO groups (id, tenant_id, cells, policy, alone, created_at) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(group.id.to_string())
    .bind(group.tenant.map(|tenant| tenant.to_string()))
    .bind(to_json(&group.cells)?)
    .bind(policy)
    .bind(group.alone)
    .bind(now_ms)
    .execute(tx)
    .await?;
    put_names(tx, group.id, &group.names).await
}

/// Puts these names in place of a group's.
///
/// # Errors
/// The database's.
pub async fn put_names(
    tx: &mut WriteTx,
    group: GroupId,
    names: &BTreeMap<String, DomainId>,
) -> Result<(), StoreError> {
    sql::query("DELETE FROM group_names WHERE group_id = ?").bind(group.to_string()).execute(tx).await?;
    for (name, domain) in names {
        sql::query("INSERT INTO group_names (group_id, name, domain_id) VALUES (?, ?, ?)")
            .bind(group.to_string())
            .bind(name)
            .bind(domain.to_string())
            .execute(tx)
            .await?;
    }
    Ok(())
}

/// The group orders nothing any more; its lineages serve on until [`retire_lineage`].
///
/// # Errors
/// The database's.
pub async fn retire(tx: &mut WriteTx, group: GroupId, now_ms: i64) -> Result<(), StoreError> {
    sql::query("UPDATE groups SET retired_at = ? WHERE id = ?")
        .bind(now_ms)
        .bind(group.to_string())
        .execute(tx)
        .await?;
    sql::query("DELETE FROM group_names WHERE group_id = ?").bind(group.to_string()).execute(tx).await?;
    Ok(())
}

/// Makes the lineage of (group, cell) unless it exists; answers its id.
///
/// # Errors
/// The database's.
pub async fn ensure_lineage(
    tx: &mut WriteTx,
    group: GroupId,
    cell: &CellId,
    now_ms: i64,
) -> Result<LineageId, StoreError> {
    let id = LineageId::generate();
    let id: String = sql::query_scalar(
        "INSERT INTO lineages (id, group_id, cell, created_at) VALUES (?, ?, ?, ?) \
         ON CONFLICT (group_id, cell) DO UPDATE SET retired_at = NULL RETURNING id",
    )
    .bind(id.to_string())
    .bind(group.to_string())
    .bind(cell.as_str())
    .bind(now_ms)
    .fetch_one(tx)
    .await?;
    from_id(&id, "lineages")
}

/// Those of issued certificates.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn lineages(connection: &mut Connection) -> Result<Vec<LineageRow>, StoreError> {
    let mut serves = served_names(connection).await?;
    let rows = sql::query(
        "SELECT l.id, l.group_id, l.cell, l.live_credential, g.retired_at, \
         c.issuer, c.names, c.not_before, c.not_after, c.created_at, c.renew_at, c.window_end \
         FROM lineages l JOIN groups g ON g.id = l.group_id LEFT JOIN credentials c ON c.id = l.live_credential \
         WHERE l.retired_at IS NULL AND l.custody = 'cell' AND l.backup = '' ORDER BY l.group_id, l.cell",
    )
    .fetch_all(connection)
    .await?;
    let mut lineage = |row: &Row| {
        let live = live_credential(row)?;
        let id = from_id(row.try_get("id")?, "lineages")?;
        Ok(LineageRow {
            id,
            serves: serves.remove(&id).unwrap_or_default(),
            group: from_id(row.try_get("group_id")?, "lineages")?,
            cell: from_id(row.try_get("cell")?, "lineages")?,
            live,
            leaving: row.try_get::<Option<i64>>("retired_at")?.is_some(),
        })
    };
    rows.iter().map(&mut lineage).collect()
}

/// Of a row with a lineage's `live_credential` and the columns of that one, where there is one.
pub(super) fn live_credential(row: &Row) -> Result<Option<LiveCredential>, StoreError> {
    let credential: Option<String> = row.try_get("live_credential")?;
    let names: Option<String> = row.try_get("names")?;
    let (Some(credential), Some(names)) = (credential, names) else { return Ok(None) };
    Ok(Some(LiveCredential {
        id: from_id(&credential, "credentials")?,
        issuer: row.try_get("issuer")?,
        names: from_json(&names, "credentials: names")?,
        not_before: row.try_get("not_before")?,
        not_after: row.try_get("not_after")?,
        issued_at: row.try_get("created_at")?,
        renew_at: row.try_get("renew_at")?,
        window_end: row.try_get("window_end")?,
    }))
}

async fn served_names(
    connection: &mut Connection,
) -> Result<BTreeMap<LineageId, BTreeMap<String, DomainId>>, StoreError> {
    let rows = sql::query(
        "SELECT n.lineage_id, n.name, n.domain_id FROM lineage_names n JOIN lineages l ON l.id = n.lineage_id \
         WHERE l.retired_at IS NULL AND l.custody = 'cell' AND l.backup = ''",
    )
    .fetch_all(connection)
    .await?;
    let mut serves: BTreeMap<LineageId, BTreeMap<String, DomainId>> = BTreeMap::new();
    for row in &rows {
        let lineage = from_id(row.try_get("lineage_id")?, "lineage_names")?;
        let domain = from_id(row.try_get("domain_id")?, "lineage_names")?;
        serves.entry(lineage).or_default().insert(row.try_get("name")?, domain);
    }
    Ok(serves)
}

/// # Errors
/// The database's; an unknown lineage is one.
pub async fn cell_of_lineage(connection: &mut Connection, lineage: LineageId) -> Result<CellId, StoreError> {
    let cell: String = sql::query_scalar("SELECT cell FROM lineages WHERE id = ?")
        .bind(lineage.to_string())
        .fetch_one(connection)
        .await?;
    from_id(&cell, "lineages")
}

/// The lineage is distributed no more.
///
/// # Errors
/// The database's.
pub async fn retire_lineage(tx: &mut WriteTx, lineage: LineageId, now_ms: i64) -> Result<(), StoreError> {
    sql::query("UPDATE lineages SET retired_at = ?, live_credential = NULL WHERE id = ?")
        .bind(now_ms)
        .bind(lineage.to_string())
        .execute(tx)
        .await?;
    sql::query("UPDATE credentials SET state = 'replaced' WHERE lineage_id = ? AND state = 'live'")
        .bind(lineage.to_string())
        .execute(tx)
        .await?;
    sql::query("DELETE FROM lineage_names WHERE lineage_id = ?")
        .bind(lineage.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

// ---- names ----

/// # Errors
/// The database's, or a row that cannot be read.
pub async fn name_states(connection: &mut Connection) -> Result<BTreeMap<DomainId, NameState>, StoreError> {
    let rows = sql::query("SELECT * FROM name_states").fetch_all(connection).await?;
    rows.iter()
        .map(|row| Ok((from_id(row.try_get("domain_id")?, "name_states")?, read_name_state(row)?)))
        .collect()
}

/// # Errors
/// The database's, or a row that cannot be read.
pub async fn name_state(
    connection: &mut Connection,
    domain: DomainId,
) -> Result<Option<NameState>, StoreError> {
    let row = sql::query("SELECT * FROM name_states WHERE domain_id = ?")
        .bind(domain.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read_name_state).transpose()
}

fn read_name_state(row: &Row) -> Result<NameState, StoreError> {
    Ok(NameState {
        methods: from_json(row.try_get("methods")?, "name_states: methods")?,
        ready_at: row.try_get("ready_at")?,
        failed_before: row.try_get("failed_before")?,
        part: u64::try_from(row.try_get::<i64>("part")?).unwrap_or(0),
        attempts: row.try_get("attempts")?,
        next_at: row.try_get("next_at")?,
        error: row.try_get("error")?,
        issuers: match row.try_get("issuers")? {
            "{}" => Restrictions::new(),
            text => from_json(text, "name_states: issuers")?,
        },
    })
}

/// # Errors
/// The database's.
pub async fn put_name_state(
    tx: &mut WriteTx,
    domain: DomainId,
    state: &NameState,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO name_states (domain_id, methods, ready_at, failed_before, part, attempts, next_at, error, \
         issuers, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (domain_id) DO UPDATE SET \
         methods = excluded.methods, ready_at = excluded.ready_at, \
         failed_before = excluded.failed_before, part = excluded.part, attempts = excluded.attempts, \
         next_at = excluded.next_at, error = excluded.error, issuers = excluded.issuers, \
         updated_at = excluded.updated_at",
    )
    .bind(domain.to_string())
    .bind(to_json(&state.methods)?)
    .bind(state.ready_at)
    .bind(state.failed_before)
    .bind(i64::try_from(state.part).unwrap_or(0))
    .bind(state.attempts)
    .bind(state.next_at)
    .bind(&state.error)
    .bind(to_json(&state.issuers)?)
    .bind(now_ms)
    .execute(tx)
    .await?;
    Ok(())
}

/// Writes the failed orders of a domain that is being deleted down as failures of its name, for [`inherit_back_off`]: its
/// group, which they belong to, goes with it.
///
/// # Errors
/// The database's.
pub async fn keep_back_off(tx: &mut WriteTx, domain: DomainId, now_ms: i64) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO name_states (domain_id, methods, failed_before, attempts, next_at, error, updated_at) \
         SELECT ?1, '[]', 1, COUNT(*), MAX(o.next_at), MAX(o.error), ?2 FROM group_names n \
         JOIN lineages l ON l.group_id = n.group_id JOIN orders o ON o.lineage_id = l.id \
         WHERE n.domain_id = ?1 AND o.backup = 0 AND o.state = 'failed' AND o.next_at + ?3 > ?2 AND NOT EXISTS (SELECT 1 FROM orders i \
           WHERE i.lineage_id = o.lineage_id AND i.state = 'issued' AND i.created_at >= o.created_at) \
         HAVING COUNT(*) > 0 \
         ON CONFLICT (domain_id) DO UPDATE SET failed_before = 1, \
         attempts = CASE WHEN excluded.attempts > name_states.attempts THEN excluded.attempts ELSE name_states.attempts END, \
         next_at = CASE WHEN excluded.next_at > name_states.next_at THEN excluded.next_at ELSE name_states.next_at END",
    )
    .bind(domain.to_string())
    .bind(now_ms)
    .bind(BACK_OFF_KEPT_MS)
    .execute(tx)
    .await?;
    Ok(())
}

/// Gives a new domain the back-off that the last domain of its name left behind: to delete a name and to claim it anew, for
/// whichever tenant, must not be a way to a CA's next failed validation.
///
/// # Errors
/// The database's.
pub async fn inherit_back_off(
    tx: &mut WriteTx,
    domain: DomainId,
    name: &str,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO name_states (domain_id, methods, failed_before, attempts, next_at, error, updated_at) \
         SELECT ?1, '[]', 1, s.attempts, s.next_at, s.error, ?3 FROM domains d JOIN name_states s ON s.domain_id = d.id \
         WHERE d.name = ?2 AND d.deleted_at IS NOT NULL AND s.failed_before = 1 AND s.next_at + ?4 > ?3 \
         ORDER BY s.next_at DESC LIMIT 1",
    )
    .bind(domain.to_string())
    .bind(name)
    .bind(now_ms)
    .bind(BACK_OFF_KEPT_MS)
    .execute(tx)
    .await?;
    Ok(())
}

/// For so long after a back-off's end the next failure counts as the one after it: the longest back-off.
const BACK_OFF_KEPT_MS: i64 = DAY_MS;

/// Whether a try of this name, or of a backup for it, waits for its back-off.
///
/// # Errors
/// The database's.
pub async fn name_waits(
    connection: &mut Connection,
    domain: DomainId,
    now_ms: i64,
) -> Result<bool, StoreError> {
    let found: i64 = sql::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM name_states WHERE domain_id = ?1 AND next_at > ?2) OR EXISTS (SELECT 1 \
         FROM group_names n JOIN lineages l ON l.group_id = n.group_id JOIN orders o ON o.lineage_id = l.id \
         WHERE n.domain_id = ?1 AND o.state <> 'issued' AND o.next_at > ?2) \
         OR EXISTS (SELECT 1 FROM backup_failures WHERE domain_id = ?1 AND until > ?2)",
    )
    .bind(domain.to_string())
    .bind(now_ms)
    .fetch_one(connection)
    .await?;
    Ok(found != 0)
}

/// "Retry now": nothing about this name waits any longer. Whoever calls this for a caller of the API asks
/// [`super::retry::ask`] first.
///
/// # Errors
/// The database's.
pub async fn retry_name_now(tx: &mut WriteTx, domain: DomainId, now_ms: i64) -> Result<(), StoreError> {
    sql::query("UPDATE name_states SET next_at = 0, updated_at = ?1 WHERE domain_id = ?2 AND next_at > ?1")
        .bind(now_ms)
        .bind(domain.to_string())
        .execute(tx)
        .await?;
    sql::query("UPDATE backup_failures SET until = 0 WHERE domain_id = ?")
        .bind(domain.to_string())
        .execute(tx)
        .await?;
    let lineages: Vec<String> = sql::query_scalar(
        "SELECT l.id FROM lineages l JOIN group_names n ON n.group_id = l.group_id WHERE n.domain_id = ?",
    )
    .bind(domain.to_string())
    .fetch_all(tx)
    .await?;
    for lineage in lineages {
        super::order::retry_now(tx, from_id(&lineage, "lineages")?, now_ms).await?;
    }
    Ok(())
}

// ---- sets of names ----

/// The sets of names of a tenant's groups, each sorted.
///
/// # Errors
/// The database's.
pub async fn sets_of_tenant(
    connection: &mut Connection,
    tenant: TenantId,
) -> Result<Vec<Vec<String>>, StoreError> {
    let rows = sql::query(
        "SELECT n.group_id, n.name FROM groups g JOIN group_names n ON n.group_id = g.id \
         WHERE g.tenant_id = ? AND g.retired_at IS NULL AND g.backup_of IS NULL ORDER BY n.group_id, n.name",
    )
    .bind(tenant.to_string())
    .fetch_all(connection)
    .await?;
    sets(&rows)
}

/// The sets of the groups that have this name, each sorted.
///
/// # Errors
/// The database's.
pub async fn sets_with(connection: &mut Connection, name: &str) -> Result<Vec<Vec<String>>, StoreError> {
    let rows = sql::query(
        "SELECT n.group_id, n.name FROM domains d JOIN group_names own ON own.domain_id = d.id \
         JOIN groups g ON g.id = own.group_id AND g.retired_at IS NULL AND g.backup_of IS NULL JOIN group_names n ON n.group_id = g.id \
         WHERE d.name = ? AND d.served = 1 ORDER BY n.group_id, n.name",
    )
    .bind(name)
    .fetch_all(connection)
    .await?;
    sets(&rows)
}

/// Names by their group.
fn sets(rows: &[Row]) -> Result<Vec<Vec<String>>, StoreError> {
    let mut sets: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in rows {
        sets.entry(row.try_get("group_id")?).or_default().push(row.try_get("name")?);
    }
    Ok(sets.into_values().collect())
}

// ---- challenges ----

/// Sets or clears the account's thumbprint on domains; answers those that changed.
///
/// # Errors
/// The database's.
pub async fn set_thumbprint(
    tx: &mut WriteTx,
    domains: &[DomainId],
    thumbprint: Option<&str>,
) -> Result<Vec<DomainId>, StoreError> {
    let mut changed = Vec::new();
    for domain in domains {
        let done = sql::query(
            "UPDATE domains SET acme_thumbprint = ?1 \
             WHERE id = ?2 AND deleted_at IS NULL AND acme_thumbprint IS DISTINCT FROM ?1",
        )
        .bind(thumbprint)
        .bind(domain.to_string())
        .execute(tx)
        .await?;
        if done.rows_affected() > 0 {
            changed.push(*domain);
        }
    }
    Ok(changed)
}

/// The labels below the challenge zone that `_acme-challenge.<base>` may point to: those of the tenant's exact name and
/// of its wildcard, which one CNAME has to serve. The domain's own comes first.
///
/// # Errors
/// The database's.
pub async fn challenge_labels(
    connection: &mut Connection,
    domain: DomainId,
) -> Result<Vec<String>, StoreError> {
    Ok(sql::query_scalar(
        "SELECT o.challenge_label FROM domains d JOIN domains o ON o.tenant_id = d.tenant_id \
         AND o.deleted_at IS NULL AND (o.name = d.name OR o.name = '*.' || d.name OR d.name = '*.' || o.name) \
         WHERE d.id = ? AND d.deleted_at IS NULL ORDER BY o.id <> d.id, o.id",
    )
    .bind(domain.to_string())
    .fetch_all(connection)
    .await?)
}

/// # Errors
/// The database's.
pub async fn add_challenge_record(
    tx: &mut WriteTx,
    label: &str,
    value: &str,
    order: OrderId,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO challenge_records (label, value, order_id, created_at) VALUES (?, ?, ?, ?) \
         ON CONFLICT (label, value) DO UPDATE SET order_id = excluded.order_id",
    )
    .bind(label)
    .bind(value)
    .bind(order.to_string())
    .bind(now_ms)
    .execute(tx)
    .await?;
    Ok(())
}

/// Forgets the labels' records of an order; answers them. Whole names (with a final dot) stay until others have taken them
/// down: see [`left_records`].
///
/// # Errors
/// The database's.
pub async fn take_challenge_records(
    tx: &mut WriteTx,
    order: OrderId,
) -> Result<Vec<(String, String)>, StoreError> {
    let rows = sql::query(
        "DELETE FROM challenge_records WHERE order_id = ? AND label NOT LIKE '%.' RETURNING label, value",
    )
    .bind(order.to_string())
    .fetch_all(tx)
    .await?;
    rows.iter().map(|row| Ok((row.try_get("label")?, row.try_get("value")?))).collect()
}

/// A record at a whole name whose order is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftRecord {
    /// With its final dot.
    pub name: String,
    pub value: String,
    order: String,
    /// The order has been forgotten too.
    pub is_old: bool,
}

/// Records at whole names whose orders are over, those first that were not put off.
///
/// # Errors
/// The database's.
pub async fn left_records(connection: &mut Connection, most: u32) -> Result<Vec<LeftRecord>, StoreError> {
    let rows = sql::query(
        "SELECT r.label, r.value, r.order_id, o.id IS NULL AS is_old FROM challenge_records r \
         LEFT JOIN orders o ON o.id = r.order_id \
         WHERE r.label LIKE '%.' AND (o.id IS NULL OR o.state IN ('issued', 'failed')) \
         ORDER BY r.created_at, r.label, r.value LIMIT ?",
    )
    .bind(i64::from(most))
    .fetch_all(connection)
    .await?;
    let record = |row: &Row| {
        Ok(LeftRecord {
            name: row.try_get("label")?,
            value: row.try_get("value")?,
            order: row.try_get("order_id")?,
            is_old: row.try_get::<i64>("is_old")? != 0,
        })
    };
    rows.iter().map(record).collect()
}

/// Forgets a record; `false`: another order has it by now.
///
/// # Errors
/// The database's.
pub async fn forget_left_record(tx: &mut WriteTx, record: &LeftRecord) -> Result<bool, StoreError> {
    let done = sql::query("DELETE FROM challenge_records WHERE label = ? AND value = ? AND order_id = ?")
        .bind(&record.name)
        .bind(&record.value)
        .bind(&record.order)
        .execute(tx)
        .await?;
    Ok(done.rows_affected() > 0)
}

/// Others come before this record.
///
/// # Errors
/// The database's.
pub async fn put_off_left_record(
    tx: &mut WriteTx,
    record: &LeftRecord,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query("UPDATE challenge_records SET created_at = ? WHERE label = ? AND value = ? AND order_id = ?")
        .bind(now_ms)
        .bind(&record.name)
        .bind(&record.value)
        .bind(&record.order)
        .execute(tx)
        .await?;
    Ok(())
}

/// Every label's (label, value), for the responder at start.
///
/// # Errors
/// The database's.
pub async fn challenge_records(connection: &mut Connection) -> Result<Vec<(String, String)>, StoreError> {
    let rows = sql::query("SELECT label, value FROM challenge_records WHERE label NOT LIKE '%.'")
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| Ok((row.try_get("label")?, row.try_get("value")?))).collect()
}

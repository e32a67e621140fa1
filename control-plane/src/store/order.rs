//! Orders: one row each, moved by the order machine alone, and a log of what was asked of each CA. What an edge makes for them is
//! [`super::edge_key`]'s.

use portico_cert_store::{CredentialId, DomainId, LineageId, OrderId, TenantId};

use super::account::AccountId;
use super::renewal_info::{self, Predecessor};
use super::replacement::{self, Replaces};
use super::sql::Row;
use super::{Connection, StoreError, WriteTx, from_id, from_json, sql, to_json};
use crate::plan::ledger::{At, LimitName};
use crate::plan::reconcile::OpenOrder;

/// Where an order stands; RFC 8555 section 7.1.6 from our side. Each state is durable before the step out of it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderState {
    /// Intent, key and request are durable; the CA may or may not have heard of it.
    Planned,
    Created {
        url: String,
    },
    /// Every challenge stands where the CA will look.
    Challenged {
        url: String,
    },
    /// Every authorization is valid.
    Ready {
        url: String,
    },
    /// The certificate request was sent.
    Finalizing {
        url: String,
    },
    Issued,
    /// Over. Another order for the lineage may follow from then on.
    Failed {
        retry_at: i64,
    },
}

/// An order with all that its steps need.
#[derive(Clone, Debug)]
pub struct OrderRow {
    pub id: OrderId,
    pub lineage: LineageId,
    /// `None`: the operator's.
    pub tenant: Option<TenantId>,
    pub issuer: String,
    /// The adopted account that it is placed on; `None`: the issuer's own.
    pub account: Option<AccountId>,
    /// Sorted.
    pub names: Vec<String>,
    /// In the order of `names`.
    pub domains: Vec<DomainId>,
    pub name_set: String,
    pub state: OrderState,
    pub credential: CredentialId,
    /// The edge of its cell makes the key and keeps it.
    pub key_at_edge: bool,
    /// Under the cell's data key; empty where the key is on the edge.
    pub sealed_key: Vec<u8>,
    pub cell_key_epoch: u32,
    pub key_tenant: String,
    /// Empty until the edge has made the key.
    pub spki_sha256: Vec<u8>,
    /// PKCS#10, DER; empty until the edge has made the key.
    pub csr: Vec<u8>,
    pub renewal: bool,
    /// For a backup certificate.
    pub backup: bool,
    /// The certificate that it replaces; `None`: none, or the CA would not have it.
    pub replaces: Option<Replaces>,
    /// The CA took it as the replacement.
    pub replaces_accepted: bool,
    /// Where each name has a certificate: when the first of those ends or is to be replaced by.
    pub deadline: Option<i64>,
    /// Until when the CA takes the authorizations of the same names in another cell again.
    pub window_until: Option<i64>,
    /// Failed tries of the present step.
    pub attempts: u32,
    /// Nothing is tried before.
    pub next_at: i64,
    pub error: Option<String>,
}

impl OrderRow {
    /// Its edge has not made the key yet.
    pub fn lacks_key(&self) -> bool {
        self.key_at_edge && self.csr.is_empty()
    }

    /// Until when it should be over: before a name is without a certificate, or the CA wants its names validated again.
    pub fn wanted_by(&self) -> Option<i64> {
        self.deadline.into_iter().chain(self.window_until).min()
    }
}

impl OrderState {
    /// Of orders that are not over.
    pub const OPEN: [&'static str; 5] = ["planned", "created", "challenged", "ready", "finalizing"];

    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Created { .. } => "created",
            Self::Challenged { .. } => "challenged",
            Self::Ready { .. } => "ready",
            Self::Finalizing { .. } => "finalizing",
            Self::Issued => "issued",
            Self::Failed { .. } => "failed",
        }
    }

    pub fn url(&self) -> Option<&str> {
        match self {
            Self::Created { url }
            | Self::Challenged { url }
            | Self::Ready { url }
            | Self::Finalizing { url } => Some(url),
            Self::Planned | Self::Issued | Self::Failed { .. } => None,
        }
    }

    pub fn is_over(&self) -> bool {
        matches!(self, Self::Issued | Self::Failed { .. })
    }
}

/// Writes a planned order down.
///
/// # Errors
/// The database's; a second open order of the lineage is one.
pub async fn insert(tx: &mut WriteTx, order: &OrderRow, now_ms: i64) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO orders (id, lineage_id, tenant_id, issuer, account_id, names, domains, name_set, state, credential_id, \
         sealed_key, cell_key_epoch, key_tenant, spki_sha256, csr, renewal, replaces_credential, replaces, \
         deadline, window_until, backup, next_at, created_at, updated_at, key_at_edge) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'planned', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(order.id.to_string())
    .bind(order.lineage.to_string())
    .bind(order.tenant.map(|tenant| tenant.to_string()))
    .bind(&order.issuer)
    .bind(order.account.map(|id| id.0))
    .bind(to_json(&order.names)?)
    .bind(to_json(&order.domains)?)
    .bind(&order.name_set)
    .bind(order.credential.to_string())
    .bind(&order.sealed_key)
    .bind(order.cell_key_epoch)
    .bind(&order.key_tenant)
    .bind(&order.spki_sha256)
    .bind(&order.csr)
    .bind(order.renewal)
    .bind(order.replaces.as_ref().map(|replaces| replaces.credential.to_string()))
    .bind(order.replaces.as_ref().map(|replaces| &replaces.certificate))
    .bind(order.deadline)
    .bind(order.window_until)
    .bind(order.backup)
    .bind(order.next_at)
    .bind(now_ms)
    .bind(now_ms)
    .bind(order.key_at_edge)
    .execute(tx)
    .await?;
    Ok(())
}

/// When it was planned, Unix milliseconds.
///
/// # Errors
/// The database's, also when there is no such order.
pub async fn created_at(connection: &mut Connection, id: OrderId) -> Result<i64, StoreError> {
    let query = sql::query_scalar("SELECT created_at FROM orders WHERE id = ?").bind(id.to_string());
    Ok(query.fetch_one(connection).await?)
}

/// Moves an order to its next state and forgets the tries of the last.
///
/// # Errors
/// The database's.
pub async fn set_state(
    tx: &mut WriteTx,
    id: OrderId,
    state: &OrderState,
    now_ms: i64,
) -> Result<(), StoreError> {
    let next_at = match state {
        OrderState::Failed { retry_at } => *retry_at,
        OrderState::Planned
        | OrderState::Created { .. }
        | OrderState::Challenged { .. }
        | OrderState::Ready { .. }
        | OrderState::Finalizing { .. }
        | OrderState::Issued => now_ms,
    };
    sql::query(
        "UPDATE orders SET state = ?, url = COALESCE(?, url), attempts = 0, next_at = ?, updated_at = ?, \
         issued_at = CASE WHEN ? = 1 THEN ? ELSE issued_at END WHERE id = ?",
    )
    .bind(state.as_str())
    .bind(state.url())
    .bind(next_at)
    .bind(now_ms)
    .bind(matches!(state, OrderState::Issued))
    .bind(now_ms)
    .bind(id.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// Notes a failed try; the state stays.
///
/// # Errors
/// The database's.
pub async fn postpone(
    tx: &mut WriteTx,
    id: OrderId,
    next_at: i64,
    error: &str,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query(
        "UPDATE orders SET attempts = attempts + 1, next_at = ?, error = ?, updated_at = ? WHERE id = ?",
    )
    .bind(next_at)
    .bind(error)
    .bind(now_ms)
    .bind(id.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// Ends an order; `error` says why.
///
/// # Errors
/// The database's.
pub async fn fail(
    tx: &mut WriteTx,
    id: OrderId,
    retry_at: i64,
    error: &str,
    now_ms: i64,
) -> Result<(), StoreError> {
    set_state(tx, id, &OrderState::Failed { retry_at }, now_ms).await?;
    sql::query("UPDATE orders SET error = ? WHERE id = ?")
        .bind(error)
        .bind(id.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// Puts orders of a domain back to now: the owner's "retry now". Answers how many.
///
/// # Errors
/// The database's.
pub async fn retry_now(tx: &mut WriteTx, lineage: LineageId, now_ms: i64) -> Result<u64, StoreError> {
    let done = sql::query(
        "UPDATE orders SET next_at = ? WHERE lineage_id = ? AND state <> 'issued' AND next_at > ?",
    )
    .bind(now_ms)
    .bind(lineage.to_string())
    .bind(now_ms)
    .execute(tx)
    .await?;
    Ok(done.rows_affected())
}

/// Every order that is not over and may go on, oldest first. Those that wait may be many times as many.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn due(connection: &mut Connection, now_ms: i64) -> Result<Vec<OrderRow>, StoreError> {
    let rows = sql::query(
        "SELECT * FROM orders WHERE state NOT IN ('issued', 'failed') AND next_at <= ? ORDER BY created_at, id",
    )
    .bind(now_ms)
    .fetch_all(connection)
    .await?;
    rows.iter().map(order).collect()
}

/// What planning needs of every order that is not over.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn open_summaries(connection: &mut Connection) -> Result<Vec<OpenOrder>, StoreError> {
    let rows = sql::query(
        "SELECT id, issuer, lineage_id, name_set, tenant_id, deadline, backup, next_at, \
         key_at_edge = 1 AND length(csr) = 0 AND attempts > 0 AS lacks_key FROM orders \
         WHERE state NOT IN ('issued', 'failed')",
    )
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let tenant: Option<String> = row.try_get("tenant_id")?;
            Ok(OpenOrder {
                id: from_id(row.try_get("id")?, "orders")?,
                issuer: row.try_get("issuer")?,
                lineage: from_id(row.try_get("lineage_id")?, "orders")?,
                name_set: row.try_get("name_set")?,
                tenant: tenant.map(|tenant| from_id(&tenant, "orders")).transpose()?,
                keeps_alive: row.try_get::<Option<i64>>("deadline")?.is_some(),
                backup: row.try_get("backup")?,
                lacks_key: row.try_get("lacks_key")?,
                next_at: row.try_get("next_at")?,
            })
        })
        .collect()
}

/// # Errors
/// The database's, or a row that cannot be read.
pub async fn find(connection: &mut Connection, id: OrderId) -> Result<Option<OrderRow>, StoreError> {
    let row = sql::query("SELECT * FROM orders WHERE id = ?")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(order).transpose()
}

/// An order that has not gone to its CA yet.
#[derive(Clone, Debug)]
pub struct PlannedOrder {
    pub names: Vec<String>,
    pub name_set: String,
    pub tenant: Option<TenantId>,
    /// Each of its names was served when it was planned.
    pub keeps_alive: bool,
    /// For a backup certificate.
    pub backup: bool,
    /// The CA has issued exactly these names to us before.
    pub issued: bool,
    pub replaces: Option<Predecessor>,
}

/// Planned orders that are told of.
const PLANNED_MAX: u32 = 50_000;

/// Orders that wait to go to their CA, oldest first.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn planned(connection: &mut Connection, at: At<'_>) -> Result<Vec<PlannedOrder>, StoreError> {
    let rows = sql::query(
        "SELECT o.names AS order_names, o.name_set, o.tenant_id, o.deadline, o.backup, p.names, p.window_start, p.window_end, \
         EXISTS (SELECT 1 FROM ledger_buckets b WHERE b.ca = ?2 AND b.limit_name = ?3 AND b.account = '' \
         AND b.subject = o.name_set AND b.charged_at IS NOT NULL) OR (o.renewal = 1 AND c.issuer = o.issuer) AS issued \
         FROM orders o LEFT JOIN lineages l ON l.id = o.lineage_id LEFT JOIN credentials c ON c.id = l.live_credential \
         LEFT JOIN credentials p ON p.id = o.replaces_credential WHERE o.state = 'planned' AND o.issuer = ?1 \
         ORDER BY o.created_at, o.id LIMIT ?4",
    )
    .bind(at.account)
    .bind(at.ca)
    .bind(LimitName::ExactSet.as_str())
    .bind(PLANNED_MAX)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let tenant: Option<String> = row.try_get("tenant_id")?;
            Ok(PlannedOrder {
                names: from_json(row.try_get("order_names")?, "orders: names")?,
                name_set: row.try_get("name_set")?,
                tenant: tenant.map(|tenant| from_id(&tenant, "orders")).transpose()?,
                keeps_alive: row.try_get::<Option<i64>>("deadline")?.is_some(),
                backup: row.try_get("backup")?,
                issued: row.try_get::<Option<bool>>("issued")?.unwrap_or(false),
                replaces: renewal_info::predecessor_of(row)?,
            })
        })
        .collect()
}

/// The names of a set that was ordered within the last weeks.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn names_of_set(
    connection: &mut Connection,
    name_set: &str,
) -> Result<Option<Vec<String>>, StoreError> {
    let names: Option<String> = sql::query_scalar("SELECT names FROM orders WHERE name_set = ? LIMIT 1")
        .bind(name_set)
        .fetch_optional(connection)
        .await?;
    names.map(|names| from_json(&names, "orders: names")).transpose()
}

/// For each lineage whose newest order failed: when another may follow.
///
/// # Errors
/// The database's.
pub async fn retry_times(connection: &mut Connection) -> Result<Vec<(LineageId, i64)>, StoreError> {
    let rows = sql::query(
        "SELECT o.lineage_id, o.next_at FROM orders o \
         JOIN lineages l ON l.id = o.lineage_id AND l.retired_at IS NULL \
         WHERE o.state = 'failed' AND NOT EXISTS (SELECT 1 FROM orders n WHERE n.lineage_id = o.lineage_id \
           AND (n.created_at > o.created_at OR (n.created_at = o.created_at AND n.id > o.id)))",
    )
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok((from_id(row.try_get("lineage_id")?, "orders")?, row.try_get("next_at")?)))
        .collect()
}

fn order(row: &Row) -> Result<OrderRow, StoreError> {
    let id: String = row.try_get("id")?;
    let unreadable = || StoreError::Unreadable { what: format!("orders: {id}") };
    let url: Option<String> = row.try_get("url")?;
    let at_ca = |make: fn(String) -> OrderState| url.clone().map(make).ok_or_else(unreadable);
    let next_at: i64 = row.try_get("next_at")?;
    let state = match row.try_get::<String>("state")?.as_str() {
        "planned" => OrderState::Planned,
        "created" => at_ca(|url| OrderState::Created { url })?,
        "challenged" => at_ca(|url| OrderState::Challenged { url })?,
        "ready" => at_ca(|url| OrderState::Ready { url })?,
        "finalizing" => at_ca(|url| OrderState::Finalizing { url })?,
        "issued" => OrderState::Issued,
        "failed" => OrderState::Failed { retry_at: next_at },
        _ => return Err(unreadable()),
    };
    let tenant: Option<String> = row.try_get("tenant_id")?;
    Ok(OrderRow {
        id: from_id(&id, "orders")?,
        lineage: from_id(row.try_get("lineage_id")?, "orders")?,
        tenant: tenant.map(|tenant| from_id(&tenant, "orders")).transpose()?,
        issuer: row.try_get("issuer")?,
        account: row.try_get::<Option<i64>>("account_id")?.map(AccountId),
        names: from_json(row.try_get("names")?, "orders: names")?,
        domains: from_json(row.try_get("domains")?, "orders: domains")?,
        name_set: row.try_get("name_set")?,
        state,
        credential: from_id(row.try_get("credential_id")?, "orders")?,
        key_at_edge: row.try_get("key_at_edge")?,
        sealed_key: row.try_get("sealed_key")?,
        cell_key_epoch: row.try_get("cell_key_epoch")?,
        key_tenant: row.try_get("key_tenant")?,
        spki_sha256: row.try_get("spki_sha256")?,
        csr: row.try_get("csr")?,
        renewal: row.try_get("renewal")?,
        backup: row.try_get("backup")?,
        replaces: replacement::of_row(row)?,
        replaces_accepted: row.try_get("replaces_accepted")?,
        deadline: row.try_get("deadline")?,
        window_until: row.try_get("window_until")?,
        attempts: row.try_get("attempts")?,
        next_at,
        error: row.try_get("error")?,
    })
}

// ---- what was asked ----

/// Notes a newOrder that is about to be sent, for the fair queue. `renewal`: of names that were issued before.
///
/// # Errors
/// The database's.
pub async fn log_request(
    tx: &mut WriteTx,
    order: &OrderRow,
    renewal: bool,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query("INSERT INTO order_requests (order_id, tenant_id, renewal, at) VALUES (?, ?, ?, ?)")
        .bind(order.id.to_string())
        .bind(order.tenant.map(|tenant| tenant.to_string()))
        .bind(renewal)
        .bind(now_ms)
        .execute(tx)
        .await?;
    Ok(())
}

/// How many newOrders, renewals of the same set aside, each tenant sent since; `None`: the operator.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn requests_by_tenant(
    connection: &mut Connection,
    since: i64,
) -> Result<Vec<(Option<TenantId>, u32)>, StoreError> {
    let rows = sql::query(
        "SELECT tenant_id, COUNT(*) AS n FROM order_requests WHERE at > ? AND renewal = 0 GROUP BY tenant_id",
    )
    .bind(since)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let tenant: Option<String> = row.try_get("tenant_id")?;
            Ok((tenant.map(|t| from_id(&t, "order_requests")).transpose()?, row.try_get("n")?))
        })
        .collect()
}

/// The last newOrder of this order made nothing at the CA for certain.
///
/// # Errors
/// The database's.
pub async fn forget_last_request(tx: &mut WriteTx, order: OrderId) -> Result<(), StoreError> {
    sql::query(
        "DELETE FROM order_requests WHERE id = (SELECT MAX(id) FROM order_requests WHERE order_id = ?)",
    )
    .bind(order.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// How many orders of a lineage failed since one was issued; at most 8 are told.
///
/// # Errors
/// The database's.
pub async fn failed_in_a_row(connection: &mut Connection, lineage: LineageId) -> Result<u32, StoreError> {
    let failed: i64 = sql::query_scalar(
        "SELECT COUNT(*) FROM (SELECT 1 FROM orders f WHERE f.lineage_id = ?1 AND f.state = 'failed' \
         AND f.created_at >= COALESCE((SELECT MAX(i.created_at) FROM orders i \
           WHERE i.lineage_id = ?1 AND i.state = 'issued'), 0) LIMIT 8) newest",
    )
    .bind(lineage.to_string())
    .fetch_one(connection)
    .await?;
    Ok(u32::try_from(failed).unwrap_or(0))
}

/// Forgets what was asked and orders that ended before.
///
/// # Errors
/// The database's.
pub async fn prune(tx: &mut WriteTx, before: i64) -> Result<(), StoreError> {
    sql::query("DELETE FROM order_requests WHERE at < ?").bind(before).execute(tx).await?;
    sql::query("DELETE FROM orders WHERE state IN ('issued', 'failed') AND updated_at < ? AND next_at < ?")
        .bind(before)
        .bind(before)
        .execute(tx)
        .await?;
    Ok(())
}

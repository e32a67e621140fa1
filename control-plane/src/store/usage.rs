//! What domains served, hour by hour, as the edges report it: for invoices and for who is busiest.

use portico_api::v1::{UsageBy, UsageOrder, UsageRow};
use portico_cert_store::{DomainId, EdgeId, TenantId};

use super::sql::{QueryBuilder, Row};
use super::{Connection, StoreError, WriteTx, sql};
use crate::clock::{HOUR_MS, rfc3339};

const DAY_HOURS: i64 = 24;

/// One domain's figures in one hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    pub tenant: TenantId,
    pub domain: DomainId,
    pub name: String,
    /// Unix time in whole hours.
    pub hour: i64,
    pub requests: i64,
    pub request_bytes: i64,
    pub response_bytes: i64,
    pub cached_bytes: i64,
}

/// What is asked for. Hours are Unix time in whole hours.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub from_hour: i64,
    /// The first one that is not in.
    pub to_hour: i64,
    pub tenant: Option<TenantId>,
    pub name: Option<&'a str>,
    pub by: &'a [UsageBy],
    pub order: UsageOrder,
}

/// Adds a report of an edge once; false: it was added before.
///
/// # Errors
/// The database's.
pub async fn append(
    tx: &mut WriteTx,
    (series, number): (&[u8], i64),
    edge: EdgeId,
    rows: &[Reported],
    now_ms: i64,
) -> Result<bool, StoreError> {
    let noted = sql::query(
        "INSERT INTO usage_series (series, edge_id, number, at) VALUES (?, ?, ?, ?) \
         ON CONFLICT (series) DO UPDATE SET number = excluded.number, at = excluded.at \
         WHERE excluded.number > usage_series.number",
    )
    .bind(series)
    .bind(edge.to_string())
    .bind(number)
    .bind(now_ms)
    .execute(tx)
    .await?;
    if noted.rows_affected() == 0 {
        return Ok(false);
    }
    if rows.is_empty() {
        return Ok(true);
    }
    let mut insert: QueryBuilder = QueryBuilder::new(
        "INSERT INTO usage (tenant_id, hour, domain_id, name, requests, request_bytes, response_bytes, cached_bytes) ",
    );
    for (at, row) in rows.iter().enumerate() {
        insert.push(if at == 0 { " VALUES (" } else { ", (" });
        insert.push_list([row.tenant.to_string()]).push(", ").push_list([row.hour]).push(", ");
        insert.push_list([&row.domain.to_string(), &row.name]).push(", ");
        insert.push_list([row.requests, row.request_bytes, row.response_bytes, row.cached_bytes]).push(")");
    }
    insert.push(
        " ON CONFLICT (tenant_id, hour, domain_id) DO UPDATE SET requests = usage.requests + excluded.requests, \
         request_bytes = usage.request_bytes + excluded.request_bytes, \
         response_bytes = usage.response_bytes + excluded.response_bytes, \
         cached_bytes = usage.cached_bytes + excluded.cached_bytes",
    );
    insert.build().execute(tx).await?;
    Ok(true)
}

/// Sums, at most `limit` of them after the first `offset`.
///
/// # Errors
/// The database's.
pub async fn list(
    connection: &mut Connection,
    wanted: &Wanted<'_>,
    limit: u32,
    offset: u64,
) -> Result<Vec<UsageRow>, StoreError> {
    let keys: Vec<&str> = wanted.by.iter().flat_map(|by| columns(*by)).copied().collect();
    let mut select: QueryBuilder = QueryBuilder::new("SELECT ");
    for key in &keys {
        select.push(key).push(", ");
    }
    select
        .push(
            "CAST(SUM(requests) AS BIGINT) AS requests, CAST(SUM(request_bytes) AS BIGINT) AS request_bytes, \
             CAST(SUM(response_bytes) AS BIGINT) AS response_bytes, \
             CAST(SUM(cached_bytes) AS BIGINT) AS cached_bytes \
             FROM usage WHERE hour >= ",
        )
        .push_bind(wanted.from_hour)
        .push(" AND hour < ")
        .push_bind(wanted.to_hour);
    if let Some(tenant) = wanted.tenant {
        select.push(" AND tenant_id = ").push_bind(tenant.to_string());
    }
    if let Some(name) = wanted.name {
        select.push(" AND name = ").push_bind(name);
    }
    // Nothing was used: no row, and not a row of nothing.
    let positions: Vec<String> = (1..=keys.len()).map(|position| position.to_string()).collect();
    match positions.is_empty() {
        true => select.push(" HAVING COUNT(*) > 0"),
        false => select.push(" GROUP BY ").push(positions.join(", ")),
    };
    let mut order: Vec<String> = match wanted.order {
        UsageOrder::Key => Vec::new(),
        UsageOrder::Requests => vec!["SUM(requests) DESC".to_owned()],
        UsageOrder::ResponseBytes => vec!["SUM(response_bytes) DESC".to_owned()],
    };
    order.extend(positions);
    if !order.is_empty() {
        select.push(" ORDER BY ").push(order.join(", "));
    }
    select
        .push(" LIMIT ")
        .push_bind(limit)
        .push(" OFFSET ")
        .push_bind(offset.min(i64::MAX as u64).cast_signed());
    let rows = select.build().fetch_all(connection).await?;
    rows.iter().map(|row| read(row, wanted.by)).collect()
}

/// Forgets hours that were over before `before_ms`, at most `limit` rows at a time; answers how many.
///
/// # Errors
/// The database's.
pub async fn purge(tx: &mut WriteTx, before_ms: i64, limit: u32) -> Result<u64, StoreError> {
    let done = sql::query(
        "DELETE FROM usage WHERE (tenant_id, hour, domain_id) IN \
         (SELECT tenant_id, hour, domain_id FROM usage WHERE hour < ? LIMIT ?)",
    )
    .bind(before_ms / HOUR_MS)
    .bind(limit)
    .execute(tx)
    .await?;
    // An edge that comes back after so long a time has figures of hours that nobody asks for any more.
    sql::query("DELETE FROM usage_series WHERE at < ?").bind(before_ms).execute(tx).await?;
    Ok(done.rows_affected())
}

fn columns(by: UsageBy) -> &'static [&'static str] {
    match by {
        UsageBy::Tenant => &["tenant_id"],
        UsageBy::Domain => &["name", "domain_id"],
        UsageBy::Day => &["hour / 24"],
        UsageBy::Hour => &["hour"],
    }
}

fn read(row: &Row, by: &[UsageBy]) -> Result<UsageRow, StoreError> {
    let figure = |name: &str| row.try_get::<i64>(name).map(i64::unsigned_abs);
    let mut shown = UsageRow {
        requests: figure("requests")?,
        request_bytes: figure("request_bytes")?,
        response_bytes: figure("response_bytes")?,
        cached_bytes: figure("cached_bytes")?,
        ..UsageRow::default()
    };
    let mut position = 0;
    for by in by {
        match by {
            UsageBy::Tenant => shown.tenant_id = Some(row.try_get(position)?),
            UsageBy::Domain => {
                shown.domain = Some(row.try_get(position)?);
                shown.domain_id = Some(row.try_get(position + 1)?);
            }
            UsageBy::Day => {
                let day: i64 = row.try_get(position)?;
                shown.from = Some(rfc3339(day * DAY_HOURS * HOUR_MS));
            }
            UsageBy::Hour => shown.from = Some(rfc3339(row.try_get::<i64>(position)? * HOUR_MS)),
        }
        position += columns(*by).len();
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    const DAY: i64 = 24;

    async fn sums(store: &Store, wanted: Wanted<'_>) -> Vec<UsageRow> {
        list(&mut store.read().await.unwrap(), &wanted, 100, 0).await.unwrap()
    }

    fn all(by: &[UsageBy]) -> Wanted<'_> {
        let (tenant, name, order) = (None, None, UsageOrder::Key);
        Wanted { from_hour: 0, to_hour: i64::MAX, tenant, name, by, order }
    }

    #[tokio::test]
    async fn reports_are_added_once_and_summed_as_one_likes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(folder.path()).await.unwrap();
        let (ours, theirs, edge) = (TenantId::generate(), TenantId::generate(), EdgeId::generate());
        let shop = DomainId::generate();
        let row = |tenant, domain, name: &str, hour, requests| Reported {
            tenant,
            domain,
            name: name.to_owned(),
            hour,
            requests,
            request_bytes: 1,
            response_bytes: 100 - requests,
            cached_bytes: 2,
        };
        let rows = [
            row(ours, shop, "shop.example", DAY, 10),
            row(ours, shop, "shop.example", DAY + 1, 5),
            row(ours, shop, "shop.example", 2 * DAY, 1),
            row(theirs, DomainId::generate(), "blog.example", DAY, 20),
        ];
        for (series, number, is_new) in
            [(b"a", 1, true), (b"a", 1, false), (b"a", 2, true), (b"a", 1, false), (b"b", 1, true)]
        {
            let mut tx = store.begin().await.unwrap();
            let added = append(&mut tx, (series, number), edge, &rows, 0).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(added, is_new, "{number}");
        }
        let [total] = sums(&store, all(&[])).await.try_into().unwrap();
        let figures = (total.requests, total.request_bytes, total.response_bytes, total.cached_bytes);
        assert_eq!(figures, (3 * 36, 3 * 4, 3 * (400 - 36), 3 * 8));
        let requests = |rows: Vec<UsageRow>| rows.iter().map(|row| row.requests).collect::<Vec<_>>();
        let by = [UsageBy::Tenant, UsageBy::Day];
        let own = Wanted { tenant: Some(ours), ..all(&by) };
        let days = sums(&store, own).await;
        assert_eq!(days[0].from.as_deref(), Some("1970-01-02T00:00:00Z"));
        assert_eq!(days[0].tenant_id.as_deref(), Some(ours.to_string().as_str()));
        assert_eq!(requests(days), [45, 3]);
        let by = [UsageBy::Domain];
        let busiest = Wanted { order: UsageOrder::Requests, ..all(&by) };
        let names = sums(&store, busiest).await;
        assert_eq!((names[0].domain.as_deref(), names[0].requests), (Some("blog.example"), 60));
        let sent = Wanted { order: UsageOrder::ResponseBytes, ..all(&by) };
        assert_eq!(requests(sums(&store, sent).await), [48, 60]);
        let by = [UsageBy::Hour];
        let some = Wanted { from_hour: DAY + 1, to_hour: 2 * DAY, name: Some("shop.example"), ..all(&by) };
        assert_eq!(requests(sums(&store, some).await), [15]);
        let none = Wanted { name: Some("other.example"), ..all(&[]) };
        assert!(sums(&store, none).await.is_empty());
        let mut read = store.read().await.unwrap();
        assert_eq!(list(&mut read, &all(&by), 2, 1).await.unwrap().len(), 2);
        assert_eq!(list(&mut read, &all(&by), 2, 2).await.unwrap().len(), 1);
        drop(read);

        let mut tx = store.begin().await.unwrap();
        assert_eq!(purge(&mut tx, 2 * DAY * HOUR_MS, 2).await.unwrap(), 2, "so many at a time");
        assert_eq!(purge(&mut tx, 2 * DAY * HOUR_MS, 2).await.unwrap(), 1);
        tx.commit().await.unwrap();
        assert_eq!(requests(sums(&store, all(&[])).await), [3]);
    }
}

//! Reports of usage from the edges: checked, made durable, acknowledged.

use portico_api::distribution::{USAGE_ROWS_MAX, Usage, UsageAck, UsageReport};
use portico_cert_store::{EdgeId, NamePattern};
use tonic::Status;

use super::context::Context;
use super::metrics;
use super::sync::unavailable;
use crate::clock::HOUR_MS;
use crate::store::StoreError;
use crate::store::usage::{self, Reported};

const SERIES_BYTES: usize = 16;
/// Clocks differ; beyond this a figure is of no hour that can be.
const AHEAD_HOURS: i64 = 24;

/// Adds what an edge reports, once.
///
/// # Errors
/// A status when the report is none of this protocol; when the store does not answer, the edge sends it again.
pub(super) async fn received(
    context: &Context,
    edge: EdgeId,
    report: UsageReport,
) -> Result<UsageAck, Status> {
    if report.series.len() != SERIES_BYTES || report.rows.len() > USAGE_ROWS_MAX {
        return Err(Status::invalid_argument("a usage report that this protocol does not have"));
    }
    let now_ms = context.clock.now_ms();
    let known: Vec<Reported> = report.rows.iter().filter_map(|row| read(row, now_ms)).collect();
    let unread = report.rows.len() - known.len();
    if unread > 0 {
        // Told once and not asked for again: the edge would send the same.
        tracing::error!(%edge, unread, "figures of usage that cannot be read are left out");
        metrics::usage_unread(unread);
    }
    add(context, edge, &report, &known, now_ms).await.map_err(unavailable)?;
    Ok(UsageAck { series: report.series, number: report.number })
}

async fn add(
    context: &Context,
    edge: EdgeId,
    report: &UsageReport,
    rows: &[Reported],
    now_ms: i64,
) -> Result<(), StoreError> {
    let mut tx = context.store.begin().await?;
    let series = (report.series.as_ref(), report.number.min(i64::MAX as u64).cast_signed());
    if usage::append(&mut tx, series, edge, rows, now_ms).await? {
        tx.commit().await?;
        metrics::usage_added(rows.len());
    }
    Ok(())
}

fn read(row: &Usage, now_ms: i64) -> Option<Reported> {
    // Sums of a great many of these stay within what a database counts.
    let figure = |figure: u64| i64::try_from(figure).ok().filter(|figure| *figure < 1 << 48);
    let hour = i64::try_from(row.hour).ok().filter(|hour| *hour <= now_ms / HOUR_MS + AHEAD_HOURS)?;
    Some(Reported {
        tenant: row.tenant_id.parse().ok()?,
        domain: row.domain_id.parse().ok()?,
        name: NamePattern::parse(&row.name).ok()?.to_string(),
        hour,
        requests: figure(row.requests)?,
        request_bytes: figure(row.request_bytes)?,
        response_bytes: figure(row.response_bytes)?,
        cached_bytes: figure(row.cached_bytes)?,
    })
}

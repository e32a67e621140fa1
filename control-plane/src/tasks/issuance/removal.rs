//! Taking down the TXT records in zones that others serve.
//!
//! A record is in the store before it is written and until it is taken down, so none is left by a crash at any moment, nor by a
//! server that is away when its order ends. What an order of today has taken over from one that is over stays.
//!
//! Deliberately absent: an end to the tries for a zone that is away. They end when its order is forgotten
//! ([`super::KEEP_MS`]), or when nobody writes the zone any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};

use super::Issuance;
use crate::dns::writer::Writer;
use crate::limits;
use crate::store::StoreError;
use crate::store::group::{self, LeftRecord};

/// What could not be taken down is tried again after this, and what nobody told of is found.
const PAUSE: Duration = Duration::from_secs(20);
/// After so many failures the zone is left alone until the next turn.
const FAILURES_OF_TURN: usize = 4;

/// Takes down what is left of orders, until shutdown: what was under way then is done at the next start.
pub(super) async fn run(issuance: Arc<Issuance>) {
    let shutdown = issuance.parts.shutdown.clone();
    loop {
        let again = tokio::select! {
            () = shutdown.cancelled() => return,
            turn = turn(&issuance) => turn.unwrap_or_else(|error| {
                tracing::warn!(%error, "which DNS records are left could not be read or noted");
                false
            }),
        };
        if again {
            continue;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = issuance.left.notified() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Answers whether there is more to do at once.
async fn turn(issuance: &Issuance) -> Result<bool, StoreError> {
    let most = limits::DNS_REMOVALS_OF_TURN_MAX;
    let left = group::left_records(&mut *issuance.parts.store.read().await?, most).await?;
    let is_full = left.len() == usize::try_from(most).unwrap_or(usize::MAX);
    let mut by_zone: BTreeMap<&str, (&Writer, Vec<&LeftRecord>)> = BTreeMap::new();
    let mut given_up = Vec::new();
    for record in &left {
        match issuance.writers.of(name_of(record)) {
            Some(writer) if !record.is_old => {
                by_zone.entry(writer.zone()).or_insert_with(|| (writer, Vec::new())).1.push(record);
            }
            _ => given_up.push(record),
        }
    }
    give_up(issuance, &given_up).await?;
    let zones: Vec<_> =
        by_zone.into_values().map(|(writer, records)| of_zone(issuance, writer, records).boxed()).collect();
    let mut removed = 0;
    for of_zone in join_all(zones).await {
        removed += of_zone?;
    }
    Ok(is_full && removed + given_up.len() > 0)
}

/// A whole name without its final dot.
fn name_of(record: &LeftRecord) -> &str {
    record.name.trim_end_matches('.')
}

/// Records that nobody takes down any more.
async fn give_up(issuance: &Issuance, records: &[&LeftRecord]) -> Result<(), StoreError> {
    if records.is_empty() {
        return Ok(());
    }
    let mut tx = issuance.parts.store.begin().await?;
    for record in records {
        let name = name_of(record);
        tracing::warn!(
            name,
            value = record.value,
            "a DNS record that is of no use any more stays: remove it by hand"
        );
        group::forget_left_record(&mut tx, record).await?;
    }
    tx.commit().await
}

/// Answers how many were taken down.
async fn of_zone(
    issuance: &Issuance,
    writer: &Writer,
    records: Vec<&LeftRecord>,
) -> Result<usize, StoreError> {
    let failures = AtomicUsize::new(0);
    let removals: Vec<_> =
        records.into_iter().map(|record| remove(issuance, writer, record, &failures).boxed()).collect();
    let done: Vec<Result<bool, StoreError>> =
        stream::iter(removals).buffer_unordered(limits::DNS_REMOVALS_IN_FLIGHT_MAX).collect().await;
    done.into_iter().try_fold(0, |count, done| Ok(count + usize::from(done?)))
}

/// Answers whether it was taken down.
async fn remove(
    issuance: &Issuance,
    writer: &Writer,
    record: &LeftRecord,
    failures: &AtomicUsize,
) -> Result<bool, StoreError> {
    if failures.load(Ordering::Relaxed) >= FAILURES_OF_TURN {
        return put_off(issuance, record).await.map(|()| false);
    }
    // Another replica may need it for an order of today.
    issuance.parts.store.assert_in_term()?;
    match writer.remove(name_of(record), &record.value).await {
        Ok(()) => removed(issuance, writer, record).await.map(|()| true),
        Err(why) => {
            failures.fetch_add(1, Ordering::Relaxed);
            let (name, zone) = (name_of(record), writer.zone());
            tracing::warn!(name, zone, why, "a DNS record is not taken down yet; it is tried again");
            put_off(issuance, record).await.map(|()| false)
        }
    }
}

async fn removed(issuance: &Issuance, writer: &Writer, record: &LeftRecord) -> Result<(), StoreError> {
    let mut tx = issuance.parts.store.begin().await?;
    let is_ours = group::forget_left_record(&mut tx, record).await?;
    tx.commit().await?;
    if !is_ours && let Err(why) = writer.add(name_of(record), &record.value).await {
        // A CA that hands out an order twice hands out its values twice.
        let (name, zone) = (name_of(record), writer.zone());
        tracing::warn!(name, zone, why, "a record was taken down that another order had begun to need");
    }
    Ok(())
}

async fn put_off(issuance: &Issuance, record: &LeftRecord) -> Result<(), StoreError> {
    let mut tx = issuance.parts.store.begin().await?;
    group::put_off_left_record(&mut tx, record, issuance.parts.clock.now_ms()).await?;
    tx.commit().await
}

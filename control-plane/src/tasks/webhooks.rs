//! Sends events to the endpoints that want them, in order, each at least once.
//!
//! An endpoint's place in the events moves behind an event only when it was taken; what comes after waits. One turn sends
//! at most [`TURN_EVENTS`] over one connection and then writes down how far it came, so a crash sends those again. A failure
//! ends the turn; the next try waits, longer each time. An endpoint that has taken nothing for [`DISABLED_AFTER_MS`] is
//! disabled, and an event tells that; nothing is lost, since events are kept for 90 days and a replay goes on from any of
//! them.

use std::collections::HashMap;
use std::time::Duration;

use portico_cert_store::TenantId;
use tokio::task::{Id, JoinSet};

use crate::app::App;
use crate::app::webhook::send::Courier;
use crate::app::webhook::{place, secrets, signed};
use crate::clock::{self, DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS};
use crate::limits::{WEBHOOK_TRIES_KEPT, WEBHOOKS_IN_FLIGHT_MAX, WEBHOOKS_OF_TENANT_IN_FLIGHT_MAX};
use crate::metrics;
use crate::plan::timing;
use crate::store::webhook::{self, Try, WebhookRow};
use crate::store::{StoreError, event, meta};

/// Events that one turn sends: what a crash sends again at most, and how long another endpoint waits for a place.
const TURN_EVENTS: usize = 50;
/// A turn begins no further event after this: an endpoint that takes each one slowly leaves its place to others.
const TURN_LASTS: Duration = Duration::from_secs(30);
/// Events read at once; those that the endpoint does not want are many.
const PAGE: u32 = 500;
/// Between two looks for something to send: events are not told to this task.
const INTERVAL: Duration = Duration::from_millis(500);
/// Waits after failures in a row; the last one is for all others.
const WAITS_MS: [i64; 7] =
    [5 * SECOND_MS, 15 * SECOND_MS, MINUTE_MS, 5 * MINUTE_MS, 15 * MINUTE_MS, 30 * MINUTE_MS, HOUR_MS];
/// Failing for so long ends it: over a weekend somebody may be away.
pub(crate) const DISABLED_AFTER_MS: i64 = 3 * DAY_MS;
/// Of the words of a failure, bytes: some of them are another's.
const ERROR_BYTES_MAX: usize = 500;

/// Runs until the control plane ends.
///
/// # Errors
/// None of its own: what fails is logged and done again.
pub async fn run(app: App) -> anyhow::Result<()> {
    let shutdown = app.parts.shutdown.clone();
    let mut turns: JoinSet<()> = JoinSet::new();
    let mut running: HashMap<Id, (String, Option<TenantId>)> = HashMap::new();
    loop {
        if let Err(error) = start(&app, &mut turns, &mut running).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "webhooks could not be looked at");
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(ended) = turns.join_next_with_id() => {
                running.remove(&ended.map_or_else(|error| error.id(), |(id, ())| id));
            }
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// Starts turns of endpoints that have something to send, as far as there is room.
async fn start(
    app: &App,
    turns: &mut JoinSet<()>,
    running: &mut HashMap<Id, (String, Option<TenantId>)>,
) -> Result<(), StoreError> {
    if running.len() >= WEBHOOKS_IN_FLIGHT_MAX {
        return Ok(());
    }
    let now = app.parts.clock.now_ms();
    let most = u32::try_from(WEBHOOKS_IN_FLIGHT_MAX * 2).unwrap_or(u32::MAX);
    let due = webhook::due(&mut *app.parts.store.read().await?, now, most).await?;
    for row in due {
        let of_tenant = running.values().filter(|(_, tenant)| *tenant == row.tenant).count();
        let is_full =
            running.len() >= WEBHOOKS_IN_FLIGHT_MAX || of_tenant >= WEBHOOKS_OF_TENANT_IN_FLIGHT_MAX;
        if is_full || running.values().any(|(id, _)| *id == row.id) {
            continue;
        }
        let (app, key) = (app.clone(), (row.id.clone(), row.tenant));
        let handle = turns.spawn(async move {
            if let Err(error) = turn(&app, &row).await {
                tracing::warn!(%error, webhook = row.id, "a webhook's turn could not be noted; it is done again");
                tokio::time::sleep(INTERVAL).await;
            }
        });
        running.insert(handle.id(), key);
    }
    Ok(())
}

/// Sends what is next to one endpoint.
async fn turn(app: &App, row: &WebhookRow) -> Result<(), StoreError> {
    let (events, epoch) = {
        let mut read = app.parts.store.read().await?;
        let events = event::list(&mut read, row.delivered_to, row.tenant, PAGE).await?;
        (events, meta::epoch(&mut read).await?)
    };
    let mut to = row.delivered_to;
    let mut tries: Vec<Try> = Vec::new();
    let mut gone = false;
    let mut courier = Courier::new(app, row).await?;
    let began = clock::instant();
    for event in &events {
        if !row.wants(&event.kind) {
            to = event.sequence;
            continue;
        }
        let is_over = tries.len() >= TURN_EVENTS || began.elapsed() >= TURN_LASTS;
        if is_over || app.parts.shutdown.is_cancelled() {
            break;
        }
        let at = app.parts.clock.now_ms();
        let tried = |status, error: Option<String>, took_ms| {
            let error = error.map(|text| text[..text.floor_char_boundary(ERROR_BYTES_MAX)].to_owned());
            Try { sequence: event.sequence, kind: event.kind.clone(), at, status, error, took_ms }
        };
        let keys = match secrets(&app.parts.sealer, row, at) {
            Ok(keys) => keys,
            Err(error) => {
                tracing::error!(%error, webhook = row.id, "a webhook's secret cannot be opened");
                tries.push(tried(
                    None,
                    Some("its secret cannot be opened here; make a new one".to_owned()),
                    0,
                ));
                break;
            }
        };
        let sent = courier.send(&signed(&keys, epoch, event, at)).await;
        metrics::webhook_sent(sent.error.is_none());
        gone = sent.is_gone();
        let failed = sent.error.is_some();
        tries.push(tried(sent.status, sent.error, sent.took_ms));
        if failed {
            break;
        }
        to = event.sequence;
    }
    note(app, row, to, &tries, gone).await
}

/// Writes down how far a turn came.
async fn note(app: &App, row: &WebhookRow, to: u64, tries: &[Try], gone: bool) -> Result<(), StoreError> {
    let now = app.parts.clock.now_ms();
    let mut tx = app.parts.store.begin().await?;
    let Some(current) = webhook::find(&mut tx, &row.id).await? else { return Ok(()) };
    for tried in tries {
        webhook::note_try(&mut tx, &row.id, tried, WEBHOOK_TRIES_KEPT).await?;
    }
    // A replay in between has the last word, and its own tries.
    if !webhook::advance(&mut tx, &row.id, row.delivered_to, to).await? || current.disabled.is_some() {
        return tx.commit().await;
    }
    if tries.iter().any(|tried| tried.error.is_none()) {
        webhook::note_taken(&mut tx, &row.id, now).await?;
    }
    if let Some(error) = tries.last().and_then(|tried| tried.error.as_deref()) {
        let began = tries.len() > 1;
        let failures = if began { 1 } else { current.failures.saturating_add(1) };
        let since = current.failing_since.filter(|_| !began).unwrap_or(now);
        let why = match (gone, now - since >= DISABLED_AFTER_MS) {
            (true, _) => Some(format!("the endpoint {error}: it is no more")),
            (false, true) => Some(format!("it has taken nothing since {}: {error}", clock::rfc3339(since))),
            (false, false) => None,
        };
        let next_at = now + wait(failures, &row.id);
        webhook::note_failure(&mut tx, &row.id, error, next_at, why.as_deref(), now).await?;
        if let Some(why) = why {
            let text = format!(
                "the webhook to {} is disabled: {why}; mend it, then replay it from event {to} on (POST \
                 /v1/webhooks/{}/replay, `portico webhook replay`)",
                place(&row.url),
                row.id
            );
            event::append(&mut tx, "webhook.disabled", row.tenant, &row.id, &text, now).await?;
        }
    }
    tx.commit().await
}

/// Until the next try, up to a tenth longer for some: many endpoints may be one receiver's.
fn wait(failures: u32, id: &str) -> i64 {
    let index = usize::try_from(failures.saturating_sub(1)).unwrap_or(usize::MAX);
    let base = WAITS_MS[index.min(WAITS_MS.len() - 1)];
    let seed = id.bytes().fold(0u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    base + timing::jitter(base / 10, seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_an_hour() {
        let waits: Vec<i64> = (1..=9).map(|failures| wait(failures, "whk_1")).collect();
        assert!(waits.is_sorted() && waits[0] >= 5 * SECOND_MS, "{waits:?}");
        assert!(waits[8] <= HOUR_MS + HOUR_MS / 10);
        assert_eq!(wait(u32::MAX, "whk_1"), waits[8]);
    }
}

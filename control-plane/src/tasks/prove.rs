//! The reconciler of ownership: looks at every claim that is due, and forgets what has aged.

use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};

use crate::app::{App, ownership};
use crate::clock::DAY_MS;
use crate::http::write::KEY_LASTS_MS;
use crate::metrics;
use crate::store::{StoreError, audit, domain, event, idempotency, usage};

/// Claims looked at side by side. Each takes up to four DNS questions, which `Lookup` bounds again.
const CONCURRENCY: usize = 32;
/// Claims taken up in one round: few, so that what becomes due meanwhile has its turn after one or two slow look-ups.
const ROUND: u32 = 64;
/// Results written in one transaction.
const WRITES_TOGETHER: usize = 32;
const INTERVAL: Duration = Duration::from_secs(1);
/// Audit entries or figures of usage that one transaction forgets.
const FORGOTTEN_TOGETHER: u32 = 5_000;
/// Events are kept so long.
const EVENTS_LAST_MS: i64 = 90 * DAY_MS;
const TIDY_EVERY: u64 = 3600;

/// Runs until the control plane ends.
///
/// # Errors
/// None of its own: a round that fails is logged and done again.
pub async fn run(app: App) -> anyhow::Result<()> {
    let shutdown = app.parts.shutdown.clone();
    let mut rounds: u64 = 0;
    loop {
        match round(&app).await {
            Ok(0) => {}
            // There may be more that is due.
            Ok(_) if !shutdown.is_cancelled() => continue,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "checks of ownership failed")
            }
        }
        if rounds.is_multiple_of(TIDY_EVERY)
            && let Err(error) = tidy(&app).await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "tidying failed");
        }
        rounds += 1;
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = app.claims_changed.notified() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// Looks at what is due; answers how many claims that were.
async fn round(app: &App) -> Result<usize, StoreError> {
    let now = app.parts.clock.now_ms();
    let due = domain::due(&mut *app.parts.store.read().await?, now, ROUND).await?;
    let count = due.len();
    let looks = stream::iter(due.into_iter().map(|row| async move { ownership::look(app, &row).await }))
        .buffer_unordered(CONCURRENCY)
        .ready_chunks(WRITES_TOGETHER);
    let mut looks = std::pin::pin!(looks);
    while let Some(seen) = looks.next().await {
        let now = app.parts.clock.now_ms();
        let mut tx = app.parts.store.begin().await?;
        for seen in &seen {
            let checked = ownership::apply(&mut tx, seen, "system", now).await?;
            metrics::ownership_check(checked.word());
        }
        tx.commit().await?;
    }
    Ok(count)
}

async fn tidy(app: &App) -> Result<(), StoreError> {
    let now = app.parts.clock.now_ms();
    let mut tx = app.parts.store.begin().await?;
    idempotency::purge(&mut tx, now - KEY_LASTS_MS).await?;
    event::purge(&mut tx, now - EVENTS_LAST_MS).await?;
    tx.commit().await?;
    let config = &app.parts.config;
    let before = now - i64::from(config.audit.keep_days) * DAY_MS;
    loop {
        let mut tx = app.parts.store.begin().await?;
        let forgotten = audit::purge(&mut tx, before, FORGOTTEN_TOGETHER).await?;
        tx.commit().await?;
        if forgotten < FORGOTTEN_TOGETHER as usize {
            break;
        }
    }
    let before = now - i64::from(config.usage.keep_days) * DAY_MS;
    loop {
        let mut tx = app.parts.store.begin().await?;
        let forgotten = usage::purge(&mut tx, before, FORGOTTEN_TOGETHER).await?;
        tx.commit().await?;
        if forgotten < u64::from(FORGOTTEN_TOGETHER) {
            return Ok(());
        }
    }
}
